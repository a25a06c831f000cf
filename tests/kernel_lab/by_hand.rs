//! `start`: by hand, with a stand-in for `qm` that maps as PVE does, one disk after another, one try each.

use crate::common::kernel::{Disk, KRBD, KernelNode, on_the_kernel};
use crate::common::node::DEFAULT;
use serde_json::Value;

/// A `qm start` on the real kernel: it fails with PVE's own message where a map fails, and `before` can spoil it.
fn qm(node: &KernelNode<'_>, vmid: u32, disks: &[Disk], before: &str) {
    let map = |disk: &Disk| {
        format!(
            "test -b {} || {} >/dev/null 2>&1 || {{ echo \"can't map rbd volume vm-516-disk-0: rbd: sysfs write failed\" >&2; exit 255; }}",
            node.device(disk),
            disk.rbd("map")
        )
    };
    let maps: Vec<String> = disks.iter().map(map).collect();
    let guest = format!(
        "setsid /usr/bin/python3 -I -S /usr/local/lib/lab-holder.py {} -id {vmid} </dev/null >/dev/null 2>&1 &
         echo $! | tee -a /run/lab-holders >/var/run/qemu-server/{vmid}.pid",
        node.device(&disks[0])
    );
    node.stand_in(
        "qm",
        &format!("[ \"$1 $2\" = 'start {vmid}' ] || exit 2\n{before}\n{}\n{guest}", maps.join("\n")),
    );
}

/// Runs `start` and returns its exit code and what it tells.
fn start(node: &KernelNode<'_>, vmid: u32, arguments: &str) -> (i32, Value) {
    let ran = node.run(&format!(
        "PATH=/run/lab-path:$PATH {} start {vmid} --yes --json {arguments}",
        env!("CARGO_BIN_EXE_rbd-preflight")
    ));
    let told = serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:#?}"));
    (ran.code, told)
}

fn failures(told: &Value) -> Vec<Option<String>> {
    let tries = told["tries"].as_array().unwrap();
    tries.iter().map(|attempt| attempt["failure"].as_str().map(str::to_owned)).collect()
}

/// No hook is attached: `start` alone steps round the dead client that another guest keeps alive.
#[test]
fn start_ends_the_incident() {
    on_the_kernel(|kernel| {
        let node = kernel.node(1);
        let (other, others) = node.guest_with(&[(KRBD, DEFAULT)]);
        let (vmid, disks) = node.guest_with(&[(KRBD, DEFAULT), (KRBD, DEFAULT)]);
        node.assert_healthy(vmid);
        assert_eq!(node.pve_start(&[&others[..], &disks].concat()), [0, 0, 0]);
        node.run_guest(other, &others[0]);
        node.blocklist_client_of(&disks[0]);
        node.unmap(&disks);
        assert_eq!(node.pve_start(&disks), [108, 108]);
        qm(&node, vmid, &disks, "");
        let (code, told) = start(&node, vmid, "");
        assert_eq!((code, &told["started"], failures(&told)), (0, &true.into(), vec![None]), "{told:#}");
        let (code, _) = {
            let ran = node.run(&format!("{} start {vmid} --yes", env!("CARGO_BIN_EXE_rbd-preflight")));
            (ran.code, assert!(ran.stdout.contains("runs already"), "{ran:#?}"))
        };
        assert_eq!(code, 0);
    });
}

/// What fails twice for reasons of its own is tried again, and nothing is changed that was not needed.
#[test]
fn start_tries_again() {
    on_the_kernel(|kernel| {
        let node = kernel.node(1);
        let (vmid, disks) = node.guest_with(&[(KRBD, DEFAULT)]);
        let spoil = "n=$(cat /run/tries 2>/dev/null || echo 0); echo $((n+1)) >/run/tries
             [ $n -ge 2 ] || { echo 'start failed: QEMU exited with code 1' >&2; exit 255; }";
        node.must("rm -f /run/tries");
        qm(&node, vmid, &disks, spoil);
        let (code, told) = start(&node, vmid, "--tries 4");
        assert_eq!(code, 0, "{told:#}");
        let failed = failures(&told);
        assert_eq!(failed.len(), 3, "{told:#}");
        assert!(failed[0].as_ref().is_some_and(|why| why.contains("QEMU exited with code 1")), "{told:#}");
        assert_eq!(kernel.features(&disks[0]), DEFAULT.split(',').collect::<Vec<_>>());
    });
}

/// What can never work ends with the reason at once, and leaves everything as it was.
#[test]
fn start_knows_when_to_stop() {
    on_the_kernel(|kernel| {
        let node = kernel.node(1);
        let (vmid, disks) = node.guest_with(&[(KRBD, "layering,exclusive-lock,object-map,fast-diff")]);
        kernel.rbd(&["lock", "add", &disks[0].spec(), "by-hand"]);
        qm(&node, vmid, &disks, "echo 'qm was called' >&2; exit 255");
        let (code, told) = start(&node, vmid, "");
        assert_eq!(code, 3, "{told:#}");
        assert_eq!(
            failures(&told),
            [Some("scsi0: lock-external".to_owned())],
            "qm was not even called: {told:#}"
        );
        assert_eq!(kernel.features(&disks[0]), ["layering", "exclusive-lock", "object-map", "fast-diff"]);
    });
}

/// Another node lost its power with the guest on it: the lock is waited out and broken before `qm` is called.
#[test]
fn start_after_a_node_crash() {
    on_the_kernel(|kernel| {
        let (node, lost) = (kernel.node(1), kernel.node(2));
        let (vmid, disks) = node.guest_with(&[(KRBD, DEFAULT)]);
        assert_eq!(lost.pve_start(&disks), [0]);
        lost.writer(&disks[0], "live");
        let dead = lost.client_of(&disks[0]);
        lost.crash();
        lost.boot();
        assert_eq!(kernel.lock_owner(&disks[0]), Some(dead), "the lock stays");
        qm(&node, vmid, &disks, "");
        let (code, told) = start(&node, vmid, "");
        assert_eq!((code, &told["started"]), (0, &true.into()), "{told:#}");
        assert_eq!(kernel.lock_owner(&disks[0]), Some(node.client_of(&disks[0])));
    });
}
