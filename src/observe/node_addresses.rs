//! Which node of the cluster an address belongs to, so that a watcher or lock owner can be named.
//!
//! PVE keeps no list of its nodes' addresses in Ceph's network. What there is: this node's own addresses, pmxcfs's
//! `.members`, corosync.conf's rings, the daemons' sections that PVE writes to ceph.conf, and `/etc/hosts`. An earlier
//! one outweighs a later one. An address that none of them names may still be a node's.

use crate::ceph::conf::{Kind, lines};
use crate::pve::members::Members;
use crate::pve::node::{node_name, nodes};
use crate::rbd::address::host_of;
use crate::reading::{Failure, Reading};
use crate::sys::root::Root;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

/// What is known of the nodes' addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Whereabouts {
    /// This node.
    this_node: Option<String>,
    /// This node's own addresses, those of the loopback left out: every host has them.
    own: Reading<BTreeSet<IpAddr>>,
    /// The node of each address that a file names.
    nodes: BTreeMap<IpAddr, String>,
}

impl Whereabouts {
    /// Reads what there is; a file that is not there, or cannot be read, tells nothing.
    pub fn read(root: &Root) -> Self {
        let text = |file: &str| {
            let bytes = std::fs::read(root.path(file)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        Self::of(&Sources {
            this_node: node_name(root).ok(),
            own: own_addresses(root).into(),
            nodes: nodes(root).unwrap_or_default(),
            members: Members::read(root).ok().flatten().unwrap_or_default(),
            corosync: text("/etc/pve/corosync.conf"),
            ceph: text("/etc/pve/ceph.conf"),
            hosts: text("/etc/hosts"),
        })
    }

    /// What these files tell.
    pub fn of(sources: &Sources) -> Self {
        let listed = sources.members.nodes.iter();
        let members: Vec<Named> =
            listed.filter_map(|(node, member)| Some((node.clone(), member.ip.clone()?))).collect();
        let rings = rings(&sources.corosync);
        let ceph = sections(&sources.ceph);
        let hosts = hosts(&sources.hosts);
        let mut known: BTreeSet<&str> =
            sources.nodes.iter().chain(&sources.this_node).map(String::as_str).collect();
        known.extend(members.iter().chain(&rings).map(|(node, _)| node.as_str()));
        known.remove("");
        let named = members.iter().cloned().chain(rings.iter().cloned()).chain(daemons(&ceph));
        let by_name = |name: &str| hosts.iter().find(|(host, _)| host == name).map(|(_, address)| *address);
        let resolved = named.filter_map(|(node, at)| Some((node, host_of(&at).or_else(|| by_name(&at))?)));
        let mut nodes = BTreeMap::new();
        for (host, address) in resolved.chain(hosts.iter().cloned()) {
            let node = host.split('.').next().unwrap_or_default();
            if known.contains(node) && !address.is_loopback() {
                nodes.entry(address).or_insert_with(|| node.to_owned());
            }
        }
        Self { this_node: sources.this_node.clone(), own: sources.own.clone(), nodes }
    }

    /// The node that has this address, in any of Ceph's spellings (`10.0.0.2:0/77`, `[fd00::2]:0/77`, `v1:…`); `None`
    /// where nothing tells.
    pub fn node_of(&self, address: &str) -> Option<String> {
        let address = host_of(address)?;
        if self.own.known().is_some_and(|own| own.contains(&address)) {
            return self.this_node.clone();
        }
        self.nodes.get(&address).cloned()
    }

    /// The address is one of this node's own, loopback excepted. Where these are not known, it is not said to be.
    pub fn is_own(&self, address: &str) -> bool {
        let own = self.own.known();
        own.is_some_and(|own| host_of(address).is_some_and(|address| own.contains(&address)))
    }
}

/// What nodes' addresses are learnt from; a file's text is empty where there is none.
#[derive(Debug, Clone)]
pub struct Sources {
    /// This node's name.
    pub this_node: Option<String>,
    /// This node's own addresses.
    pub own: Reading<BTreeSet<IpAddr>>,
    /// The names of the cluster's nodes.
    pub nodes: Vec<String>,
    /// pmxcfs's list of nodes with their addresses.
    pub members: Members,
    /// `/etc/pve/corosync.conf`: the addresses of its rings.
    pub corosync: String,
    /// `/etc/pve/ceph.conf`: the addresses of daemons and their hosts.
    pub ceph: String,
    /// `/etc/hosts`: names of addresses.
    pub hosts: String,
}

/// A node, or a host's name, and an address or another name of it.
type Named = (String, String);

/// The `node { name: …; ring0_addr: … }` sections of corosync.conf(5), one setting a line.
fn rings(text: &str) -> Vec<Named> {
    let mut all = Vec::new();
    let mut name = String::new();
    let mut addresses = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.ends_with('{') || line == "}" {
            all.extend(addresses.drain(..).map(|address| (name.clone(), address)));
            name.clear();
        } else if let Some((key, value)) = line.split_once(':') {
            match key.trim() {
                "name" => value.trim().clone_into(&mut name),
                key if key.starts_with("ring") && key.ends_with("_addr") => {
                    addresses.push(value.trim().to_owned())
                }
                _ => {}
            }
        }
    }
    all
}

/// A section of ceph.conf: its name, and its settings.
type Section = (String, Vec<(String, String)>);

fn sections(text: &str) -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    for line in lines(text) {
        match (line.kind, sections.last_mut()) {
            (Kind::Section, _) => sections.push((line.section, Vec::new())),
            (Kind::Option { name, value }, Some((_, settings))) => settings.push((name, value)),
            _ => {}
        }
    }
    sections
}

/// The hosts of daemons that ceph.conf places: `[mon.pve1] public_addr = 10.0.0.1` (PVE 6 and later; a monitor and a
/// metadata server have the node's name), `[osd.3] host = pve1`.
fn daemons(sections: &[Section]) -> Vec<Named> {
    const ADDRESSES: [&str; 4] = ["public_addr", "cluster_addr", "mon_addr", "addr"];
    let named = sections.iter().filter_map(|(section, settings)| {
        let (_, id) = section.split_once('.')?;
        let host = settings.iter().find(|(key, _)| key == "host").map_or(id, |(_, host)| host);
        let addresses = settings.iter().filter(|(key, _)| ADDRESSES.contains(&key.as_str()));
        Some(
            addresses
                .flat_map(move |(_, value)| listed(value).map(move |at| (host.to_owned(), at.to_owned()))),
        )
    });
    named.flatten().collect()
}

/// The addresses of `10.0.0.1:6789` or of `[v2:10.0.0.1:3300/0,v1:10.0.0.1:6789/0]`.
fn listed(value: &str) -> impl Iterator<Item = &str> {
    let several = value.starts_with("[v");
    let list = if several { value.trim_start_matches('[').trim_end_matches(']') } else { value };
    list.split(',').map(str::trim)
}

/// hosts(5): an address, then its names.
fn hosts(text: &str) -> Vec<(String, IpAddr)> {
    let of_line = |line: &str| {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace().map(str::to_owned);
        let address = words.next().and_then(|word| word.parse::<IpAddr>().ok());
        address.map(|ip| words.map(|name| (name, ip.to_canonical())).collect::<Vec<_>>()).unwrap_or_default()
    };
    text.lines().flat_map(of_line).collect()
}

/// This node's addresses, from `/proc/net`: IPv4 from the routing table's local entries, IPv6 where the kernel has it.
fn own_addresses(root: &Root) -> Result<BTreeSet<IpAddr>, Failure> {
    let path = root.path("/proc/net/fib_trie");
    let trie = std::fs::read_to_string(&path).map_err(|error| Failure::path("read", &path, &error))?;
    let v6 = std::fs::read_to_string(root.path("/proc/net/if_inet6")).unwrap_or_default();
    let mut own = local_v4(&trie);
    own.extend(v6.lines().filter_map(v6_of_line));
    own.retain(|address| !address.is_loopback());
    Ok(own)
}

/// fib_trie: a leaf `|-- 10.0.0.2`, and below it `/32 host LOCAL` where it is an address of this host.
fn local_v4(trie: &str) -> BTreeSet<IpAddr> {
    let mut local = BTreeSet::new();
    let mut leaf: Option<IpAddr> = None;
    for line in trie.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            leaf = address.parse().ok();
        } else if line == "/32 host LOCAL" {
            local.extend(leaf);
        }
    }
    local
}

/// if_inet6: 32 hexadecimal digits, then the interface's.
fn v6_of_line(line: &str) -> Option<IpAddr> {
    let digits = line.split_whitespace().next().filter(|digits| digits.len() == 32)?;
    Some(Ipv6Addr::from(u128::from_str_radix(digits, 16).ok()?).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn sources() -> Sources {
        Sources {
            this_node: Some("pve1".to_owned()),
            own: Reading::Known(BTreeSet::from(["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()])),
            nodes: ["pve1", "pve2", "pve3"].map(str::to_owned).to_vec(),
            members: Members::default(),
            corosync: String::new(),
            ceph: String::new(),
            hosts: String::new(),
        }
    }

    fn node(sources: &Sources, address: &str) -> Option<String> {
        Whereabouts::of(sources).node_of(address)
    }

    fn is(name: &str) -> Option<String> {
        Some(name.to_owned())
    }

    #[test]
    fn own_addresses_are_this_nodes_whatever_the_files_say() {
        let sources = Sources { hosts: "10.0.0.1 pve2\n".to_owned(), ..sources() };
        assert_eq!(node(&sources, "10.0.0.1:0/7"), is("pve1"));
        assert_eq!(node(&sources, "[fd00::1]:0/7"), is("pve1"));
    }

    #[test]
    fn members_of_the_cluster() {
        let members = r#"{"nodename":"pve1","version":4,"cluster":{"name":"c","quorate":1},
            "nodelist":{"pve1":{"id":1,"online":1,"ip":"10.0.0.1"},"new":{"id":2,"online":0,"ip":"10.0.0.9"},
            "off":{"id":3,"online":0}}}"#;
        let sources = Sources { members: Members::parse(members.as_bytes()).unwrap(), ..sources() };
        assert_eq!(node(&sources, "10.0.0.9:0/1"), is("new"));
        assert_eq!(node(&sources, "10.0.0.8:0/1"), None);
        let alone = Sources { members: Members::default(), ..sources };
        assert_eq!(node(&alone, "10.0.0.9:0/1"), None);
    }

    #[test]
    fn rings_of_corosync_by_address_and_by_name() {
        let corosync = "nodelist {\n  node {\n    name: pve2\n    nodeid: 2\n    ring0_addr: 10.0.0.2\n    \
            ring1_addr: fd00::2\n  }\n  node {\n    ring0_addr: pve3-ring\n    name: pve3\n  }\n  node {\n    ring0_addr: 10.0.0.4\n  }\n}\n\
            totem {\n  cluster_name: c\n  interface {\n    linknumber: 0\n  }\n}\n";
        let hosts = "127.0.0.1 localhost\n10.1.0.3 pve3-ring # the ring\n".to_owned();
        let sources = Sources { corosync: corosync.to_owned(), hosts, ..sources() };
        assert_eq!(node(&sources, "10.0.0.2:0/1"), is("pve2"));
        assert_eq!(node(&sources, "[fd00::2]:0/1"), is("pve2"));
        assert_eq!(node(&sources, "10.1.0.3:0/1"), is("pve3"));
        assert_eq!(node(&sources, "10.0.0.4:0/1"), None, "a node without a name");
    }

    #[test]
    fn daemons_of_ceph_are_on_their_hosts() {
        let ceph = "[global]\n\tpublic_network = 10.2.0.0/24, fd00:2::/64\n\tcluster network = 10.3.0.0/16\n\
            [client]\n\tkeyring = /etc/pve/priv/$cluster.$name.keyring\n\
            [mon.pve2]\n\tpublic_addr = 10.2.0.2\n\
            [mon.a]\n\thost = pve3.example.org # old\n\tmon addr = 10.2.0.3:6789\n\
            [mds.pve3]\n\tpublic-addr = [v2:[fd00:2::3]:6800/0,v1:[fd00:2::3]:6801/0]\n\
            [osd.6]\n\thost = pve2\n\tpublic_addr = [v2:10.2.0.6:6800]\n\
            [osd.7]\n\thost = far\n\tpublic_addr = 10.2.0.99\n";
        let sources = Sources { ceph: ceph.to_owned(), ..sources() };
        assert_eq!(node(&sources, "10.2.0.2:0/1"), is("pve2"));
        assert_eq!(node(&sources, "10.2.0.3:0/1"), is("pve3"));
        assert_eq!(node(&sources, "[fd00:2::3]:0/1"), is("pve3"));
        assert_eq!(node(&sources, "10.2.0.6:0/1"), is("pve2"));
        assert_eq!(node(&sources, "10.2.0.99:0/1"), None, "no node of this cluster");
    }

    #[test]
    fn hosts_name_nodes_but_never_by_the_loopback_and_never_against_the_cluster() {
        let hosts = "127.0.1.1 pve2\n10.4.0.2 pve2.example.org pve2\n10.4.0.5 printer\n10.0.0.3 pve2\n";
        let members = r#"{"nodelist":{"pve3":{"ip":"10.0.0.3"}}}"#;
        let sources = Sources {
            hosts: hosts.to_owned(),
            members: Members::parse(members.as_bytes()).unwrap(),
            ..sources()
        };
        assert_eq!(node(&sources, "10.4.0.2:0/1"), is("pve2"));
        assert_eq!(node(&sources, "10.4.0.5:0/1"), None);
        assert_eq!(node(&sources, "127.0.1.1:0/1"), None);
        assert_eq!(node(&sources, "10.0.0.3:0/1"), is("pve3"));
    }

    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new(files: &[(&str, &str)]) -> Self {
            let tree = Self(tempfile::tempdir().unwrap());
            for (file, text) in files {
                let path = tree.root().path(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            tree
        }

        fn root(&self) -> Root {
            Root::new(self.0.path())
        }
    }

    #[test]
    fn all_files_of_a_node_are_read() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.0.0.0\n        /24 link UNICAST\n     |-- 10.0.0.1\n        \
            /32 host LOCAL\n     |-- 10.0.0.255\n        /32 link BROADCAST\n     |-- 127.0.0.1\n        /32 host LOCAL\n";
        let tree = Tree::new(&[
            ("/proc/net/fib_trie", trie),
            (
                "/proc/net/if_inet6",
                "fd000000000000000000000000000001 04 40 00 82     eth0\n00000000000000000000000000000001 01 80 10 80       lo\n",
            ),
            ("/etc/pve/nodes/pve1/x", ""),
            ("/etc/pve/nodes/pve2/x", ""),
            ("/etc/pve/nodes/pve3/x", ""),
            ("/etc/pve/.members", r#"{"nodelist":{"pve2":{"ip":"10.0.0.2"}}}"#),
            ("/etc/pve/corosync.conf", "node {\nname: pve3\nring0_addr: 10.0.0.3\n}\n"),
            ("/etc/pve/ceph.conf", "[mon.pve3]\npublic_addr = 10.2.0.3\n"),
            ("/etc/hosts", "10.4.0.3 pve3\n"),
        ]);
        std::os::unix::fs::symlink("nodes/pve1", tree.root().path("/etc/pve/local")).unwrap();
        let places = Whereabouts::read(&tree.root());
        let table = [
            ("10.0.0.1:0/1", is("pve1")),
            ("[fd00::1]:0/1", is("pve1")),
            ("10.0.0.2:0/1", is("pve2")),
            ("10.0.0.3:0/1", is("pve3")),
            ("10.2.0.3:0/1", is("pve3")),
            ("10.4.0.3:0/1", is("pve3")),
            ("10.0.0.255:0/1", None),
            ("127.0.0.1:0/1", None),
        ];
        for (address, node) in table {
            assert_eq!(places.node_of(address), node, "{address}");
        }
        let text = serde_json::to_string(&places).unwrap();
        assert_eq!(serde_json::from_str::<Whereabouts>(&text).unwrap(), places);
    }

    #[test]
    fn without_any_file_nothing_is_known() {
        let places = Whereabouts::read(&Tree::new(&[]).root());
        assert_eq!(places.node_of("10.0.0.1:0/1"), None);
        assert_eq!(places.own.failure().unwrap().errno, Some(2));
    }
}
