//! `rehearse` between two machines, over an sshd that is one: a fault of each kind on the other node, and the guest that
//! runs goes on.

use crate::common::kernel::{KRBD, Kernel, KernelNode, NAMESPACE, Storage, disk, on_the_kernel};
use crate::common::node::{DEFAULT, Ran};
use serde_json::Value;

/// krbd, on the first node only.
const NEAR: &Storage = &Storage { id: "krbd-near", place: "rbd", user: "admin" };
const SNIPPET: &str = "/var/lib/vz/snippets/rbd-preflight";

/// The first node may come to the second one as root, as Proxmox VE's nodes may, by a network that is not Ceph's.
fn open_the_door(kernel: &Kernel) {
    let (one, two) = (kernel.node(1), kernel.node(2));
    let key = one.must("test -e /root/.ssh/id_ed25519 || ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519; cat /root/.ssh/id_ed25519.pub");
    two.put("/run/lab-door/keys", &key);
    let host = two.must(
        "mkdir -p /run/sshd; cd /run/lab-door; test -e host || ssh-keygen -q -t ed25519 -N '' -f host; \
         /usr/sbin/sshd -f /dev/null -h /run/lab-door/host -o PidFile=/run/lab-door/pid -o StrictModes=no \
         -o AuthorizedKeysFile=/run/lab-door/keys && cat host.pub",
    );
    one.put("/etc/pve/nodes/pve2/ssh_known_hosts", &format!("pve2 {host}"));
    one.must("sed -i s/10.77.0.3/10.78.0.3/ /etc/pve/.members");
}

fn close_the_door(kernel: &Kernel) {
    kernel.node(2).must("cd /run/lab-door; kill $(cat pid); while test -e pid; do sleep 0.1; done");
}

/// A guest of the first node, which the cluster file system shows to both.
fn guest(kernel: &Kernel, vmid: u32, storage: &'static Storage, more: &str) {
    let disk = disk(storage, format!("vm-{vmid}-disk-0"));
    kernel.image(&disk, DEFAULT);
    let config = format!("name: guest{vmid}\nscsi0: {}:{},size=8M\n{more}", storage.id, disk.image);
    kernel.node(1).guest(vmid, &config);
    kernel.node(2).put(&format!("/etc/pve/nodes/pve1/qemu-server/{vmid}.conf"), &config);
}

/// How long a node waits for Ceph, in seconds.
fn patience(node: &KernelNode, seconds: u32) {
    let settings = format!("connect_timeout: {seconds}\ncheck_deadline: {seconds}\n");
    node.put("/etc/rbd-preflight/config.yaml", &settings);
}

fn rehearse(node: &KernelNode, arguments: &str) -> (Value, i32) {
    let ran: Ran = node.preflight(&format!("rehearse --json --deadline 280 {arguments}"));
    (serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}")), ran.code)
}

/// The verdict on a guest and the first reason, on the second node.
fn on_two(report: &Value, vmid: u32) -> String {
    let guests = report["guests"].as_array().unwrap();
    let guest = guests.iter().find(|guest| guest["vmid"] == vmid).unwrap_or_else(|| panic!("{report:#}"));
    let on = guest["on"].as_array().unwrap();
    let cell = on.iter().find(|cell| cell["node"] == "pve2").unwrap();
    let reason = cell["reasons"][0]["code"].as_str().map(|code| format!(" {code}")).unwrap_or_default();
    format!("{}{reason}", cell["verdict"].as_str().unwrap())
}

#[test]
fn what_the_other_node_lacks_is_told_from_there_and_the_running_guest_goes_on() {
    on_the_kernel(|kernel| {
        let (one, two) = (kernel.node(1), kernel.node(2));
        let [running, near, keyed, hooked] = [(); 4].map(|()| kernel.new_vmid());
        open_the_door(kernel);
        guest(kernel, running, KRBD, "");
        guest(kernel, near, NEAR, "");
        guest(kernel, keyed, NAMESPACE, "");
        guest(kernel, hooked, KRBD, "hookscript: local:snippets/rbd-preflight\n");
        for node in [one, two] {
            // However slow the machine is, what the node can reach is not to seem out of reach.
            patience(&node, 200);
            node.must(&format!(
                "cp /etc/pve/storage.cfg /run/lab-storage.cfg
                 printf '\nrbd: krbd-near\n\tcontent images\n\tkrbd 1\n\tpool rbd\n\tnodes pve1\n' >>/etc/pve/storage.cfg
                 cp /etc/pve/priv/ceph/ceph-krbd.keyring /etc/pve/priv/ceph/krbd-near.keyring
                 mkdir -p /etc/pve/ha; printf 'vm: {running}\n' >/etc/pve/ha/resources.cfg"
            ));
        }
        one.must(&format!("printf '#!/bin/sh\n' >{SNIPPET}; chmod 755 {SNIPPET}"));
        two.must("mv /etc/pve/priv/ceph/ceph-ns.keyring /run/lab-keyring");
        let of_running = disk(KRBD, format!("vm-{running}-disk-0"));
        assert_eq!(one.pve_start(std::slice::from_ref(&of_running)), [0]);
        let qemu = one.run_guest(running, &of_running);

        let (report, code) = rehearse(&one, "");
        assert_eq!(on_two(&report, running), "ready", "who is at its disk is the guest itself: {report:#}");
        assert_eq!(on_two(&report, near), "blocked storage-not-on-node");
        assert!(on_two(&report, keyed).starts_with("blocked keyring-missing"), "{report:#}");
        assert_eq!(on_two(&report, hooked), "blocked hookscript-missing");
        assert_eq!(code, 0, "the one guest of HA has a place: {report:#}");

        patience(&two, 10);
        let (report, code) = two.without_ceph(|| rehearse(&one, "--node pve2"));
        assert_eq!(
            (on_two(&report, running).as_str(), code),
            ("blocked cluster-unreachable", 3),
            "{report:#}"
        );

        close_the_door(kernel);
        let (report, code) = rehearse(&one, "");
        assert_eq!((on_two(&report, running).as_str(), code), ("unknown", 1));
        assert_eq!(report["nodes"][1]["state"], "no-answer", "{report:#}");

        assert!(one.writes(qemu), "the running guest was harmed");
        assert!(!one.run("test -e /var/lib/rbd-preflight/journal.jsonl && grep -c . /var/lib/rbd-preflight/journal.jsonl").stdout.contains(&format!("{running}")));
        one.kill(qemu);
        one.unmap(&[of_running]);
    });
}
