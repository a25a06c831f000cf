//! This node, its cluster, and which node owns a guest.

use super::members::{self, Members};
use super::perl::lossy;
use super::words::Kind;
use crate::reading::{Failure, Reading};
use crate::sys::root::Root;
use nix::libc::{ENOENT, ESRCH};
use std::io::{Error, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where a guest's config lies. The directory's node owns the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestFile {
    /// The guest's number.
    pub vmid: u32,
    /// Virtual machine or container.
    pub kind: Kind,
    /// The node whose directory the config is in, which owns the guest.
    pub node: String,
    /// The config's path as PVE writes it: `/etc/pve/nodes/pve1/qemu-server/516.conf`.
    pub file: String,
}

impl GuestFile {
    /// Reads the config's bytes; they need not be UTF-8.
    pub fn read(&self, root: &Root) -> Result<Vec<u8>, Failure> {
        let path = root.path(&self.file);
        std::fs::read(&path).map_err(|error| Failure::path("read", &path, &error))
    }
}

/// This node's name: what `/etc/pve/local` points to, else the host's name up to the first dot
/// (`PVE::INotify::nodename`).
pub fn node_name(root: &Root) -> Result<String, Failure> {
    let link = std::fs::read_link(root.path("/etc/pve/local")).ok();
    if let Some(name) = link.as_deref().and_then(Path::file_name).and_then(|name| name.to_str()) {
        return Ok(name.to_owned());
    }
    let host = nix::sys::utsname::uname().map_err(|errno| Failure::errno("uname", errno as i32))?;
    let name = host.nodename().to_string_lossy();
    match name.split('.').next() {
        Some(name) if !name.is_empty() => Ok(name.to_owned()),
        _ => Err(Failure::new("uname", "this host has no name; set one in /etc/hostname")),
    }
}

/// The guest's config, on whichever node it is. pmxcfs sees to it that there is only one.
pub fn find_guest(root: &Root, vmid: u32) -> Result<Option<GuestFile>, Failure> {
    for node in nodes(root)? {
        for kind in [Kind::Qemu, Kind::Lxc] {
            let file = format!("{}/{vmid}.conf", directory(&node, kind));
            if root.exists(&file)? {
                return Ok(Some(GuestFile { vmid, kind, node, file }));
            }
        }
    }
    Ok(None)
}

/// All guests of one node, by number.
pub fn guests_of_node(root: &Root, node: &str) -> Result<Vec<GuestFile>, Failure> {
    let mut found = Vec::new();
    for kind in [Kind::Qemu, Kind::Lxc] {
        let directory = directory(node, kind);
        for name in names(&root.path(&directory))?.unwrap_or_default() {
            if let Some(vmid) = guest_number(&name) {
                found.push(GuestFile {
                    vmid,
                    kind,
                    node: node.to_owned(),
                    file: format!("{directory}/{name}"),
                });
            }
        }
    }
    found.sort_by_key(|guest| guest.vmid);
    Ok(found)
}

/// All guests of the cluster, by number.
pub fn all_guests(root: &Root) -> Result<Vec<GuestFile>, Failure> {
    let mut found = Vec::new();
    for node in nodes(root)? {
        found.extend(guests_of_node(root, &node)?);
    }
    found.sort_by_key(|guest| guest.vmid);
    Ok(found)
}

/// The cluster's nodes, by name. No such directory means that pmxcfs is not mounted: a failure.
pub fn nodes(root: &Root) -> Result<Vec<String>, Failure> {
    let path = root.path("/etc/pve/nodes");
    let missing = || Failure::errno(format!("list {}", path.display()), ENOENT);
    names(&path)?.ok_or_else(missing)
}

fn directory(node: &str, kind: Kind) -> String {
    let kind = match kind {
        Kind::Qemu => "qemu-server",
        Kind::Lxc => "lxc",
    };
    format!("/etc/pve/nodes/{node}/{kind}")
}

/// `516.conf` and nothing else.
fn guest_number(name: &str) -> Option<u32> {
    let digits = name.strip_suffix(".conf")?;
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit()) && !digits.starts_with('0');
    if plain { digits.parse().ok() } else { None }
}

/// The names in a directory, sorted; `None` if it is not there.
fn names(path: &Path) -> Result<Option<Vec<String>>, Failure> {
    let told = |error: &Error| Failure::path("list", path, error);
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(told(&error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| told(&error))?;
        names.extend(entry.file_name().into_string());
    }
    names.sort();
    Ok(Some(names))
}

/// The cluster has quorum. A node without a cluster (no `/etc/pve/corosync.conf`) has it always.
///
/// PVE goes by the owner's write bit of the link `/etc/pve/local` (`PVE::Cluster::check_cfs_quorum`). What pmxcfs says in
/// `/etc/pve/.members` can only add a no: until it has met corosync, at every boot, it has no `cluster` in it.
pub fn quorate(root: &Root) -> Reading<bool> {
    ask_quorum(root).into()
}

/// What PVE itself goes by, and waits for before it starts guests at boot (`PVE::Cluster::check_cfs_quorum`): the owner's
/// write bit of `/etc/pve/local`, and nothing else. A link that cannot be looked at is a no.
pub fn pve_has_quorum(root: &Root) -> bool {
    link(root).is_ok_and(|link| link.mode() & 0o200 != 0)
}

/// This node is one of a cluster, or may be: `/etc/pve/corosync.conf` is there, or cannot be looked for.
pub fn is_clustered(root: &Root) -> bool {
    root.exists("/etc/pve/corosync.conf").unwrap_or(true)
}

fn ask_quorum(root: &Root) -> Result<bool, Failure> {
    let said = match Members::read(root)? {
        Some(members) => members.cluster.map(|cluster| cluster.quorate == 1),
        None => return Ok(link(root)?.mode() & 0o200 != 0),
    };
    if said.is_none() && root.exists("/etc/pve/corosync.conf")? {
        let why = "this node has not met its cluster yet: corosync is not up, or has just started (`systemctl status corosync`)";
        return Err(Failure::new(format!("read {}", members::FILE), why));
    }
    if said == Some(false) {
        return Ok(false);
    }
    match link(root) {
        Ok(link) => Ok(link.mode() & 0o200 != 0),
        // A tree without the link is not pmxcfs's; there `.members` has to do.
        Err(failure) if failure.errno == Some(ENOENT) => Ok(true),
        Err(failure) => Err(failure),
    }
}

/// What there is of the link `/etc/pve/local` itself.
fn link(root: &Root) -> Result<std::fs::Metadata, Failure> {
    let path = root.path("/etc/pve/local");
    std::fs::symlink_metadata(&path).map_err(|error| Failure::path("look at", &path, &error))
}

/// The guest runs on this node.
pub fn running(root: &Root, kind: Kind, vmid: u32) -> Reading<bool> {
    match kind {
        Kind::Qemu => vm_running(root, vmid),
        Kind::Lxc => container_running(root, vmid),
    }
    .into()
}

/// QEMU's pid file names a live process that is this VM's QEMU (`PVE::QemuServer::Helpers::vm_running_locally`).
fn vm_running(root: &Root, vmid: u32) -> Result<bool, Failure> {
    let pid_file = format!("/var/run/qemu-server/{vmid}.pid");
    let other = format!("/run/qemu-server/{vmid}.pid");
    let Some((file, text)) = first_file(root, [&pid_file, &other])? else {
        return Ok(false);
    };
    let Ok(pid) = lossy(&text).trim().parse::<u32>() else {
        // QEMU may be writing it right now
        return Err(Failure::new(format!("read {file}"), "it holds no process number"));
    };
    let path = root.path(format!("/proc/{pid}/cmdline"));
    let command = match std::fs::read(&path) {
        Ok(command) => command,
        // no such process, or it ended while we read
        Err(error) if error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(ESRCH) => {
            return Ok(false);
        }
        Err(error) => return Err(Failure::path("read", &path, &error)),
    };
    let words: Vec<&[u8]> = command.split(|&byte| byte == 0).collect();
    let says = |option: &[u8], value: &str| words.windows(2).any(|pair| pair == [option, value.as_bytes()]);
    Ok(says(b"-pidfile", &pid_file) || says(b"-id", &vmid.to_string()))
}

/// The first of two files that is there. Real nodes have `/var/run` as a link to `/run`, test trees may not.
fn first_file<'a>(root: &Root, files: [&'a String; 2]) -> Result<Option<(&'a String, Vec<u8>)>, Failure> {
    for file in files {
        if let Some(text) = root.read(file)? {
            return Ok(Some((file, text)));
        }
    }
    Ok(None)
}

/// The container's monitor listens on its command socket (`PVE::LXC::list_active_containers`). A root without its
/// own table of sockets has no network of its own, so the running kernel's tells.
fn container_running(root: &Root, vmid: u32) -> Result<bool, Failure> {
    let own = root.path("/proc/net/unix");
    let path = if root.exists("/proc/net")? { own } else { PathBuf::from("/proc/net/unix") };
    let table = std::fs::read(&path).map_err(|error| Failure::path("read", &path, &error))?;
    let socket = format!("@/var/lib/lxc/{vmid}/command");
    let is_socket = |line: &[u8]| line.split(|&byte| byte == b' ').next_back() == Some(socket.as_bytes());
    Ok(table.split(|&byte| byte == b'\n').any(is_socket))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new(files: &[(&str, &[u8])]) -> Self {
            let tree = Self(tempfile::tempdir().unwrap());
            for (path, text) in files {
                tree.write(path, text);
            }
            tree
        }

        fn write(&self, path: &str, text: &[u8]) {
            let path = self.root().path(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn root(&self) -> Root {
            Root::new(self.0.path())
        }
    }

    #[test]
    fn the_local_link_names_the_node() {
        let tree = Tree::new(&[("/etc/pve/nodes/pve7/x", b"")]);
        let host = node_name(&tree.root()).unwrap();
        assert!(!host.is_empty() && !host.contains('.'));
        symlink("nodes/pve7", tree.root().path("/etc/pve/local")).unwrap();
        assert_eq!(node_name(&tree.root()).unwrap(), "pve7");
    }

    #[test]
    fn guests_are_found_where_their_config_lies() {
        let tree = Tree::new(&[
            ("/etc/pve/nodes/b/qemu-server/516.conf", b"lock: x"),
            ("/etc/pve/nodes/a/lxc/100.conf", b""),
            ("/etc/pve/nodes/a/lxc/100.conf.tmp.1", b""),
            ("/etc/pve/nodes/a/lxc/x.conf", b""),
            ("/etc/pve/nodes/a/lxc/0100.conf", b""),
        ]);
        let root = tree.root();
        let guest = find_guest(&root, 516).unwrap().unwrap();
        assert_eq!((guest.kind, guest.node.as_str()), (Kind::Qemu, "b"));
        assert_eq!(guest.file, "/etc/pve/nodes/b/qemu-server/516.conf");
        assert_eq!(guest.read(&root).unwrap(), b"lock: x");
        assert_eq!(find_guest(&root, 7).unwrap(), None);
        let numbers = |guests: Vec<GuestFile>| guests.into_iter().map(|guest| guest.vmid).collect::<Vec<_>>();
        assert_eq!(numbers(guests_of_node(&root, "a").unwrap()), [100]);
        assert_eq!(numbers(all_guests(&root).unwrap()), [100, 516]);
        assert_eq!(numbers(guests_of_node(&root, "none").unwrap()), [0; 0]);
    }

    #[test]
    fn without_pmxcfs_no_guest_is_said_to_be_missing() {
        assert_eq!(find_guest(&Tree::new(&[]).root(), 516).unwrap_err().errno, Some(2));
        let tree = Tree::new(&[("/etc/pve/nodes", b"")]);
        assert!(find_guest(&tree.root(), 516).is_err());
    }

    #[test]
    fn quorum() {
        let said = |text: &str| quorate(&Tree::new(&[("/etc/pve/.members", text.as_bytes())]).root());
        assert_eq!(said(r#"{"nodename":"a","version":3}"#), Reading::Known(true));
        assert_eq!(said(r#"{"nodename":"a","cluster":{"name":"c","quorate":1}}"#), Reading::Known(true));
        assert_eq!(said(r#"{"nodename":"a","cluster":{"name":"c","quorate":0}}"#), Reading::Known(false));
        assert!(said("{").failure().is_some());
        let of = |members: &str, corosync: bool, mode: u32| {
            let tree = Tree::new(&[("/etc/pve/.members", members.as_bytes()), ("/etc/pve/local", b"")]);
            if corosync {
                std::fs::write(tree.root().path("/etc/pve/corosync.conf"), "totem {}\n").unwrap();
            }
            // pmxcfs gives its link the bits; a file has them anywhere.
            let bits = std::os::unix::fs::PermissionsExt::from_mode(mode);
            std::fs::set_permissions(tree.root().path("/etc/pve/local"), bits).unwrap();
            quorate(&tree.root())
        };
        let (unmet, met) = (r#"{"nodename":"a","version":0}"#, r#"{"cluster":{"quorate":1}}"#);
        assert_eq!(of(unmet, false, 0o755), Reading::Known(true), "a node without a cluster");
        assert_eq!(of(unmet, false, 0o555), Reading::Known(false));
        assert!(of(unmet, true, 0o555).failure().is_some(), "at every boot of a clustered node");
        assert!(of(unmet, true, 0o755).failure().is_some());
        assert_eq!(of(met, true, 0o755), Reading::Known(true));
        assert_eq!(of(met, true, 0o555), Reading::Known(false), "what PVE goes by");
        assert!(quorate(&Tree::new(&[]).root()).failure().is_some());
        let tree = Tree::new(&[("/etc/pve/x", b"")]);
        symlink("nodes/a", tree.root().path("/etc/pve/local")).unwrap();
        assert_eq!(quorate(&tree.root()), Reading::Known(true));
    }

    #[test]
    fn pve_waits_for_the_owners_write_bit_and_nothing_else() {
        let tree = Tree::new(&[("/etc/pve/local", b""), ("/etc/pve/.members", b"{")]);
        for (mode, quorum) in [(0o555, false), (0o755, true), (0o577, false)] {
            let bits = std::os::unix::fs::PermissionsExt::from_mode(mode);
            std::fs::set_permissions(tree.root().path("/etc/pve/local"), bits).unwrap();
            assert_eq!(pve_has_quorum(&tree.root()), quorum, "{mode:o}");
        }
        assert!(!pve_has_quorum(&Tree::new(&[]).root()), "pmxcfs is not mounted");
        assert!(!is_clustered(&tree.root()));
        tree.write("/etc/pve/corosync.conf", b"totem {}\n");
        assert!(is_clustered(&tree.root()));
    }

    #[test]
    fn a_vm_runs_if_its_pid_file_names_its_qemu() {
        let tree = Tree::new(&[("/var/run/qemu-server/516.pid", b"77\n")]);
        let runs = || running(&tree.root(), Kind::Qemu, 516);
        assert_eq!(running(&tree.root(), Kind::Qemu, 517), Reading::Known(false), "no pid file");
        assert_eq!(runs(), Reading::Known(false), "no such process");
        tree.write("/proc/77/cmdline", b"/usr/bin/kvm\0-id\x00516\0-name\0x\0");
        assert_eq!(runs(), Reading::Known(true));
        tree.write("/proc/77/cmdline", b"/usr/bin/kvm\0-pidfile\0/var/run/qemu-server/516.pid\0");
        assert_eq!(runs(), Reading::Known(true));
        tree.write("/proc/77/cmdline", b"/usr/bin/kvm\0-id\x005160\0");
        assert_eq!(runs(), Reading::Known(false), "another VM's");
        tree.write("/proc/77/cmdline", b"");
        assert_eq!(runs(), Reading::Known(false), "a zombie");
        tree.write("/var/run/qemu-server/516.pid", b"");
        assert!(runs().failure().is_some(), "a pid file without a number");
    }

    #[test]
    fn what_cannot_be_read_is_unknown() {
        let tree = Tree::new(&[("/run/qemu-server/516.pid/x", b""), ("/run/qemu-server/517.pid", b"77")]);
        fs::create_dir_all(tree.root().path("/proc/77/cmdline")).unwrap();
        assert!(running(&tree.root(), Kind::Qemu, 516).failure().is_some());
        assert!(running(&tree.root(), Kind::Qemu, 517).failure().is_some());
        tree.write("/proc/net/tcp", b"");
        assert!(running(&tree.root(), Kind::Lxc, 100).failure().is_some());
    }

    #[test]
    fn a_container_runs_if_its_monitor_listens() {
        let table = b"Num RefCount Protocol Flags Type St Inode Path\n\
            ffff: 00000002 00000000 00010000 0001 01 12345 @/var/lib/lxc/100/command\n\
            ffff: 00000002 00000000 00010000 0001 01 12346\n";
        let tree = Tree::new(&[("/proc/net/unix", table)]);
        assert_eq!(running(&tree.root(), Kind::Lxc, 100), Reading::Known(true));
        assert_eq!(running(&tree.root(), Kind::Lxc, 10), Reading::Known(false));
    }
}
