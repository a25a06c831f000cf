//! Asking another node of the cluster over the ssh that Proxmox VE's nodes have to each other (`PVE::SSHInfo`): as root, by
//! the address that pmxcfs knows, and only if the node's key is the one that the cluster holds for it.

use crate::reading::Failure;
use crate::sys::command::Command;
use crate::sys::root::Root;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

/// How long a connection may take to be made, in seconds: a node that is off answers no more than that.
const CONNECT: u64 = 10;

/// What pmxcfs knows of a node (`/etc/pve/.members`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Corosync sees it: it is up and in the cluster.
    pub online: bool,
    /// Its address; `None` where pmxcfs has none yet.
    pub address: Option<IpAddr>,
}

/// The cluster's nodes by name; none where this node has no cluster.
pub fn members(root: &Root) -> Result<BTreeMap<String, Member>, Failure> {
    #[derive(Deserialize)]
    struct File {
        #[serde(default)]
        nodelist: BTreeMap<String, RawMember>,
    }
    #[derive(Deserialize)]
    struct RawMember {
        #[serde(default)]
        online: u8,
        ip: Option<String>,
    }
    const FILE: &str = "/etc/pve/.members";
    let Some(text) = root.read(FILE)? else { return Ok(BTreeMap::new()) };
    let file: File = serde_json::from_slice(&text)
        .map_err(|error| Failure::new(format!("read {FILE}"), format!("not pmxcfs's JSON: {error}")))?;
    let member = |member: RawMember| Member {
        online: member.online == 1,
        address: member.ip.and_then(|ip| ip.parse().ok()),
    };
    Ok(file.nodelist.into_iter().map(|(node, raw)| (node, member(raw))).collect())
}

/// `ssh` as Proxmox VE calls it (`ssh_info_to_command`), to run `words` on a node, for at most `limit`. Nothing in `words`
/// may need quoting: a shell reads them there.
pub fn command(root: &Root, node: &str, address: IpAddr, words: &[&str], limit: Duration) -> Command {
    let known_hosts = root.path(format!("/etc/pve/nodes/{node}/ssh_known_hosts"));
    let mut ssh = Command::new("ssh").args(["-e", "none", "-o", "BatchMode=yes"]);
    ssh = ssh.args(["-o", &format!("HostKeyAlias={node}")]);
    if known_hosts.is_file() {
        // Before PVE 8.2 the keys are in a file that the whole cluster shares, and /etc/ssh/ssh_known_hosts leads to it.
        let file = format!("UserKnownHostsFile={}", known_hosts.display());
        ssh = ssh.args(["-o", &file, "-o", "GlobalKnownHostsFile=none"]);
    }
    let connect = limit.as_secs().clamp(1, CONNECT);
    ssh = ssh.args(["-o", &format!("ConnectTimeout={connect}"), &format!("root@{address}")]);
    ssh.args(words).deadline(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(files: &[(&str, &str)]) -> (tempfile::TempDir, Root) {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        for (file, text) in files {
            std::fs::create_dir_all(root.path(file).parent().unwrap()).unwrap();
            std::fs::write(root.path(file), text).unwrap();
        }
        (directory, root)
    }

    #[test]
    fn members_are_pmxcfs_own_and_an_address_is_an_address() {
        let text = r#"{"nodename":"a","cluster":{"quorate":1},"nodelist":{"a":{"id":1,"online":1,"ip":"10.0.0.1"},
            "b":{"id":2,"online":0},"c":{"id":3,"online":1,"ip":"-oProxyCommand=x"},"d":{"online":1,"ip":"fd00::4"}}}"#;
        let (_directory, there) = root(&[("/etc/pve/.members", text)]);
        let all = members(&there).unwrap();
        assert_eq!(all["a"], Member { online: true, address: "10.0.0.1".parse().ok() });
        assert_eq!((all["b"].online, all["b"].address, all["c"].address), (false, None, None));
        assert_eq!(all["d"].address, "fd00::4".parse().ok());
        assert!(members(&root(&[("/etc/pve/.members", "{")]).1).is_err());
        assert_eq!(members(&root(&[]).1), Ok(BTreeMap::new()), "a node without a cluster");
    }

    #[test]
    fn ssh_is_called_as_proxmox_ve_calls_it() {
        let said = |root: &Root| {
            let address = "10.0.0.2".parse().unwrap();
            command(root, "pve2", address, &["rbd-preflight", "check"], Duration::from_secs(60)).display()
        };
        let (directory, older) = root(&[]);
        assert_eq!(
            said(&older),
            "ssh -e none -o BatchMode=yes -o HostKeyAlias=pve2 -o ConnectTimeout=10 root@10.0.0.2 rbd-preflight check"
        );
        drop(directory);
        let (directory, newer) = root(&[("/etc/pve/nodes/pve2/ssh_known_hosts", "")]);
        let file = directory.path().join("etc/pve/nodes/pve2/ssh_known_hosts");
        let options = format!("-o UserKnownHostsFile={} -o GlobalKnownHostsFile=none", file.display());
        assert!(said(&newer).contains(&options), "{}", said(&newer));
    }
}
