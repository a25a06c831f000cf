//! Locks and watches of the dead, which go, and of the living, which stay.

use crate::assert_said;
use crate::common::kernel::{KRBD, POOR, on_the_kernel};
use crate::common::node::DEFAULT;
use crate::common::wait_until;
use std::time::Duration;

/// A node lost its power while its guest ran; the guest is started on the other one at once.
#[test]
fn a_crashed_node_left_its_lock() {
    on_the_kernel(|kernel| {
        let (node, lost) = (kernel.node(1), kernel.node(2));
        let (vmid, disks) = node.guest_with(&[(KRBD, DEFAULT)]);
        node.assert_healthy(vmid);
        assert_eq!(lost.pve_start(&disks), [0]);
        lost.must(&format!(
            "echo written by pve2 | dd of={} bs=4k seek=1 conv=sync oflag=direct",
            lost.device(&disks[0])
        ));
        let dead = lost.client_of(&disks[0]);
        lost.crash();
        lost.boot();
        assert_eq!(kernel.lock_owner(&disks[0]), Some(dead.clone()), "the lock stays");
        assert_eq!(
            kernel.watchers(&disks[0]),
            std::slice::from_ref(&dead),
            "and so does the watch, for a while"
        );

        let (ran, said) = node.hear(|| node.hook(vmid));
        assert_said(&ran, 0, &[]);
        // That Ceph still took it for alive is told while it is waited for; on a slow machine it no longer did.
        let told = ["lock-dying", "in-use-elsewhere", "has no watch on the image"];
        assert!(told.iter().any(|words| ran.stderr.contains(words)), "{ran:#?}");
        assert!(ran.took < Duration::from_secs(110), "{ran:#?}\n{said}");
        node.assert_ready(&disks);
        let text = node.must(&format!(
            "dd if={} bs=4k skip=1 count=1 iflag=direct 2>/dev/null | head -c 15",
            node.device(&disks[0])
        ));
        assert_eq!(text, "written by pve2");
        assert_eq!(kernel.lock_owner(&disks[0]), Some(node.client_of(&disks[0])));
    });
}

/// The lock of a client that is gone, and a user that may not fence it: said with the very command that helps.
#[test]
fn a_user_that_may_not_blocklist() {
    on_the_kernel(|kernel| {
        let node = kernel.node(1);
        let (vmid, disks) = node.guest_with(&[(POOR, DEFAULT)]);
        kernel.leave_lock(&disks[0]);
        let owner = kernel.lock_owner(&disks[0]);
        let (codes, said) = node.hear(|| node.pve_start(&disks));
        assert_eq!(codes, [13], "{said}");
        assert!(said.contains(": -13"), "{said}");

        let ran = node.hook(vmid);
        assert_said(&ran, 3, &["lock-break-not-permitted", "client.poor"]);
        assert_eq!(kernel.lock_owner(&disks[0]), owner);

        // What helps; the tool says the very command.
        kernel.ceph(&["auth", "caps", "client.poor", "mon", "profile rbd", "osd", "profile rbd"]);
        let permitted = node.hook(vmid);
        kernel.ceph(&["auth", "caps", "client.poor", "mon", "allow r", "osd", "profile rbd"]);
        assert_said(&permitted, 0, &[]);
        node.assert_ready(&disks);
        let line = "ceph auth caps client.poor mon 'profile rbd' osd 'profile rbd'";
        assert_said(&ran, 3, &[line]);
    });
}

/// The guest runs already, on another node (krbd) and somewhere else (librbd). Without us it starts a second time.
#[test]
fn live_writers_are_not_disturbed() {
    on_the_kernel(|kernel| {
        let (node, other) = (kernel.node(1), kernel.node(2));
        let (vmid, disks) = node.guest_with(&[(KRBD, DEFAULT), (KRBD, DEFAULT)]);
        assert_eq!(other.pve_start(&disks[..1]), [0]);
        let krbd = other.writer(&disks[0], "live");
        let librbd = kernel.live_writer(&disks[1]);
        let owners: Vec<_> = disks.iter().map(|disk| kernel.lock_owner(disk).unwrap()).collect();
        // Longer than Ceph needs here to forget a client that is dead.
        node.put("/etc/rbd-preflight/config.yaml", "watcher_grace: 12\n");

        let ran = node.hook(vmid);
        assert_said(&ran, 4, &["in-use-elsewhere", &owners[0], &owners[1], "10.77.0.3", "pve2"]);
        assert!(other.writes(krbd) && librbd.alive());
        let still: Vec<_> = disks.iter().map(|disk| kernel.lock_owner(disk).unwrap()).collect();
        assert_eq!(still, owners, "nobody took a lock");
        assert!(node.mapped().is_empty(), "{:?}", node.mapped());
        kernel.assert_nobody_harmed();

        // Proxmox VE alone goes on: two writers, and no word of it.
        assert_eq!(node.pve_start(&disks), [0, 0]);
    });
}

/// An image is unmapped while its OSD is away, so that the kernel can give back neither watch nor lock. The watch runs out,
/// the lock stays: its owner is the node's kernel client, which lives on with another guest's disk.
#[test]
fn a_lock_that_this_nodes_living_client_could_not_give_back() {
    on_the_kernel(|kernel| {
        let node = kernel.node(1);
        let (vmid, disks) = node.guest_with(&[(KRBD, DEFAULT)]);
        let (_, others) = node.guest_with(&[(KRBD, DEFAULT)]);
        for disk in disks.iter().chain(&others) {
            node.must(&format!("{} --options osd_request_timeout=4", disk.rbd("map")));
        }
        node.assert_ready(&[disks[0].clone(), others[0].clone()]);
        let client = node.client_of(&others[0]);
        let (_, said) = node.hear(|| kernel.without_the_osd(|| node.run(&disks[0].rbd("unmap"))));
        assert!(said.contains("failed to unlock header: -110"), "{said}");
        wait_until("the watch has run out", Duration::from_secs(120), || {
            kernel.watchers(&disks[0]).is_empty()
        });
        assert_eq!((kernel.lock_owner(&disks[0]), node.mapped().len()), (Some(client.clone()), 1), "{said}");

        let writer = node.writer(&others[0], "live");
        let told = ["lock-owner-alive", &client, "this node's kernel client", &others[0].image];
        assert_said(&node.hook(vmid), 4, &told);
        for (command, code) in [(format!("repair {vmid} --yes"), 4), (format!("start {vmid} --yes"), 3)] {
            let ran = node.preflight(&command);
            assert!(ran.code == code && told.iter().all(|word| ran.stdout.contains(word)), "{ran:#?}");
        }
        assert!(node.writes(writer), "the other guest writes on");
        assert_eq!(kernel.lock_owner(&disks[0]), Some(client));
        node.kill(writer);
    });
}

/// A lock set by hand says that somebody wants nobody to write.
#[test]
fn a_lock_set_by_hand() {
    on_the_kernel(|kernel| {
        let node = kernel.node(1);
        let (vmid, disks) = node.guest_with(&[(KRBD, DEFAULT)]);
        kernel.rbd(&["lock", "add", &disks[0].spec(), "backup"]);
        let owner = kernel.lock_owner(&disks[0]);
        let (codes, said) = node.hear(|| node.pve_start(&disks));
        assert_eq!(codes, [16]);
        assert!(said.contains("locked by external mechanism"), "{said}");
        assert_said(&node.hook(vmid), 3, &["lock-external", "backup"]);
        assert_eq!(kernel.lock_owner(&disks[0]), owner);
        assert!(node.mapped().is_empty(), "{:?}", node.mapped());
    });
}
