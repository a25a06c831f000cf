//! Asking another node of the cluster over the ssh that Proxmox VE's nodes have to each other (`PVE::SSHInfo`): as root, by
//! the address that pmxcfs knows, and only if the node's key is the one that the cluster holds for it.

use crate::sys::command::Command;
use crate::sys::root::Root;
use std::net::IpAddr;
use std::time::Duration;

/// How long a connection may take to be made, in seconds: a node that is off answers no more than that.
const CONNECT: u64 = 10;

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
