//! The incident: this node's kernel client is on the blocklist, and nothing can be mapped, whatever one does.

use crate::common::kernel::{KRBD, disk, on_the_kernel};
use crate::common::node::{DEFAULT, codes, finding};
use crate::{assert_said, assert_shown_in_readme};

/// The whole story, with another guest that keeps the dead client alive.
#[test]
fn another_guest_sits_on_the_dead_client() {
    on_the_kernel(|kernel| {
        let node = kernel.node(1);
        let (other, others) = node.guest_with(&[(KRBD, DEFAULT)]);
        let (vmid, disks) = node.guest_with(&[(KRBD, DEFAULT), (KRBD, DEFAULT)]);
        node.assert_healthy(vmid);
        assert_eq!(node.pve_start(&[&others[..], &disks].concat()), [0, 0, 0]);
        let qemu = node.run_guest(other, &others[0]);
        let dead = node.blocklist_client_of(&disks[0]);
        let ((), said) = node.hear(|| node.unmap(&disks));
        assert!(said.contains("failed to unlock header: -108"), "{said}");

        // What the operator saw: it does not start, also not without the features.
        assert_eq!(node.pve_start(&disks), [108, 108]);
        for disk in &disks {
            let all = ["fast-diff", "object-map", "exclusive-lock", "deep-flatten"];
            kernel.rbd(&[&["feature", "disable", &disk.spec()], &all[..]].concat());
        }
        assert_eq!(node.pve_start(&disks), [108, 108]);

        let report = node.check(vmid);
        let found = finding(&report, "node-client-blocklisted").to_string();
        assert!(found.contains(&dead) && found.contains(&other.to_string()), "{found}");

        let check = node.preflight(&format!("check {vmid}")).stdout;
        let ran = node.hook(vmid);
        let shown =
            format!("# rbd-preflight check 516\n{check}# rbd-preflight hook 516 pre-start\n{}", ran.stderr);
        let shown = shown
            .replace(&format!("guest{vmid}"), "xds-dev-516")
            .replace(&vmid.to_string(), "516")
            .replace(&other.to_string(), "515")
            .replace("rbd/vm-", "xds_kvm_dev_data/vm-");
        assert_shown_in_readme("node-client-blocklisted", &shown);
        assert_said(&ran, 0, &["node-client-blocklisted", &dead, &other.to_string()]);
        node.assert_ready(&disks);
        assert_eq!(node.pve_start(&disks), [0, 0]);
        for disk in &disks {
            assert_eq!(kernel.features(disk), ["layering", "exclusive-lock", "object-map", "fast-diff"]);
            assert_eq!(kernel.flags(&disk.spec()), [""; 0]);
            assert_ne!(node.client_of(disk), dead);
        }
        assert_eq!(node.client_of(&others[0]), dead, "what a running guest uses is never unmapped");
        node.must(&format!("kill -0 {qemu}"));

        // The same again, with nothing left to do.
        assert_said(&node.hook(vmid), 0, &[&other.to_string()]);
        node.assert_ready(&disks);
    });
}

/// Nobody else uses the dead client: its leftovers go, and the client is born anew.
#[test]
fn leftovers_of_the_dead_client_are_unmapped() {
    on_the_kernel(|kernel| {
        let node = kernel.node(1);
        let (_, others) = node.guest_with(&[(KRBD, DEFAULT)]);
        let (vmid, disks) = node.guest_with(&[(KRBD, DEFAULT), (KRBD, DEFAULT)]);
        assert_eq!(node.pve_start(&[&others[..], &disks].concat()), [0, 0, 0]);
        let dead = node.blocklist_client_of(&disks[0]);
        // The worst kind: the start succeeds, and the first write fails.
        assert_eq!(node.pve_start(&disks), [0, 0]);

        let report = node.check(vmid);
        let codes = codes(&report);
        assert!(codes.contains(&"mapping-dead".to_owned()), "{codes:?}");
        assert_eq!(node.preflight(&format!("check {vmid}")).code, 3);

        let ran = node.hook(vmid);
        assert_said(&ran, 0, &[]);
        node.assert_ready(&disks);
        let mapped = node.mapped();
        assert!(mapped.iter().all(|mapping| mapping.client != dead), "{mapped:?}");
        let options: Vec<_> =
            disks.iter().map(|disk| mapped.iter().find(|m| m.spec == disk.spec()).unwrap()).collect();
        assert!(options.iter().all(|mapping| !mapping.options.contains("noshare")), "{mapped:?}");
        assert_eq!(options[0].client, options[1].client, "one client for all, as Proxmox VE has it");
        // Whoever reads the task's log tomorrow must learn what it was.
        assert_said(&ran, 0, &["node-client-blocklisted", &dead]);
    });
}

/// What somebody has open is never taken away: neither from a dead client nor from a live one.
#[test]
fn busy_leftovers_are_named_and_left_alone() {
    on_the_kernel(|kernel| {
        let node = kernel.node(1);
        let (vmid, disks) = node.guest_with(&[(KRBD, DEFAULT), (KRBD, DEFAULT)]);
        assert_eq!(node.pve_start(&disks), [0, 0]);
        let holder = node.writer(&disks[0], "mount");
        let before = node.client_of(&disks[0]);
        assert_said(&node.hook(vmid), 4, &["mapping-busy", &holder.to_string(), "python3"]);
        assert!(node.writes(holder));

        let dead = node.blocklist_client_of(&disks[1]);
        assert_eq!(before, dead);
        assert_said(&node.hook(vmid), 3, &["mapping-dead", &holder.to_string(), "python3"]);
        assert_eq!(node.client_of(&disks[0]), before);
        node.must(&format!("kill -0 {holder}"));

        // When it is gone, all can be fixed.
        node.kill(holder);
        assert_said(&node.hook(vmid), 0, &[]);
        node.assert_ready(&disks);
    });
}

/// Proxmox VE maps a cloud-init image on krbd before it calls the hook: repair by hand is in time.
#[test]
fn the_cloudinit_image_is_mapped_before_the_hook() {
    on_the_kernel(|kernel| {
        let node = kernel.node(1);
        let (other, others) = node.guest_with(&[(KRBD, DEFAULT)]);
        let (vmid, mut disks) = node.guest_with(&[(KRBD, DEFAULT)]);
        disks.insert(0, disk(KRBD, format!("vm-{vmid}-cloudinit")));
        kernel.image(&disks[0], DEFAULT);
        node.guest(
            vmid,
            &format!("ide2: ceph-krbd:vm-{vmid}-cloudinit,media=cdrom\nscsi0: ceph-krbd:vm-{vmid}-disk-0\n"),
        );
        assert_eq!(node.pve_start(&others), [0]);
        node.run_guest(other, &others[0]);
        node.blocklist_client_of(&others[0]);
        assert_eq!(node.pve_start(&disks), [108, 108]);
        let check = node.preflight(&format!("check {vmid}"));
        assert!(check.code == 3 && check.stdout.contains("cloudinit-before-hook"), "{check:#?}");
        let ran = node.preflight(&format!("repair {vmid} --yes"));
        assert_eq!(ran.code, 0, "{ran:#?}");
        // Proxmox VE, then the hook, then Proxmox VE.
        assert_eq!(node.pve_start(&disks[..1]), [0]);
        assert_said(&node.hook(vmid), 0, &[]);
        node.assert_ready(&disks);
    });
}
