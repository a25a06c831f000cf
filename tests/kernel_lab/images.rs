//! Images as the kernel does not take them: what can be fixed is, the rest is said.

use crate::assert_said;
use crate::common::kernel::{KRBD, Kernel, LIBRBD, MIRROR, NO_NAMESPACE, NO_POOL, disk, on_the_kernel};
use crate::common::node::DEFAULT;

fn object_map(kernel: &Kernel, spec: &str) -> String {
    format!("rbd_object_map.{}", kernel.image_id(spec))
}

/// Everything that is fixed before a map, on one guest at once.
#[test]
fn features_and_object_maps_are_fixed() {
    on_the_kernel(|kernel| {
        let node = kernel.node(1);
        let journaling = format!("{DEFAULT},journaling");
        let (vmid, mut disks) = node.guest_with(&[
            (KRBD, &journaling),
            (KRBD, "layering"),
            (KRBD, DEFAULT),                   // its object map is gone
            (KRBD, DEFAULT),                   // ... is another size's
            (KRBD, DEFAULT),                   // ... is cut off
            (KRBD, "layering,exclusive-lock"), // ... is flagged invalid, that of its snapshot too
        ]);
        // A TPM is always mapped, also from a storage with `krbd 0`.
        disks.push(disk(LIBRBD, format!("vm-{vmid}-disk-6")));
        kernel.image(&disks[6], &journaling);
        let mut config = node.must(&format!("cat /etc/pve/qemu-server/{vmid}.conf"));
        config += &format!("tpmstate0: ceph-librbd:vm-{vmid}-disk-6,size=4M,version=v2.0\n");
        node.guest(vmid, &config);

        kernel.host("rados", &["-p", "rbd", "rm", &object_map(kernel, &disks[2].spec())]);
        let large = disk(KRBD, format!("vm-{vmid}-large"));
        kernel.rbd(&["create", &large.spec(), "--size", "256M", "--image-feature", DEFAULT]);
        let (from, to) = (object_map(kernel, &large.spec()), object_map(kernel, &disks[3].spec()));
        kernel.host("sh", &["-c", &format!("rados -p rbd get {from} - | rados -p rbd put {to} -")]);
        kernel.host("rados", &["-p", "rbd", "truncate", &object_map(kernel, &disks[4].spec()), "3"]);
        kernel.rbd(&["snap", "create", "--no-progress", &format!("{}@before", disks[5].spec())]);
        kernel.rbd(&["feature", "enable", &disks[5].spec(), "object-map", "fast-diff"]);
        assert_eq!(kernel.flags(&disks[5].spec()), ["object map invalid", "fast diff invalid"]);

        // Without us. What can be mapped at all is mapped on the way; it is taken back for the rest of the test.
        let (codes, said) = node.hear(|| node.pve_start(&disks));
        assert_eq!(codes, [6, 0, 2, 22, 22, 0, 6], "{said}");
        assert!(said.contains("image uses unsupported features: 0x40"), "{said}");
        assert!(said.contains("post-acquire action failed: -2"), "{said}");
        node.unmap(&[disks[1].clone(), disks[5].clone()]);

        // All of it takes longer than two minutes on a slow machine.
        node.put("/etc/rbd-preflight/config.yaml", "deadline: 280\nrebuild_deadline: 200\n");
        let ran = node.hook(vmid);
        assert_said(&ran, 0, &["done: disable journaling"]);
        node.assert_ready(&disks);
        assert_eq!(node.pve_start(&disks), [0; 7]);
        for disk in &disks[..6] {
            let features = kernel.features(disk);
            for wanted in ["exclusive-lock", "object-map", "fast-diff"] {
                assert!(features.contains(&wanted.to_owned()), "{disk:?}: {features:?}");
            }
        }
        for disk in &disks {
            assert!(!kernel.features(disk).contains(&"journaling".to_owned()), "{disk:?}");
            assert_eq!(kernel.flags(&disk.spec()), [""; 0], "{disk:?}");
        }
        assert_eq!(kernel.flags(&format!("{}@before", disks[5].spec())), [""; 0]);
    });
}

/// The journal is what mirrors the image: it stays.
#[test]
fn an_image_mirrored_by_its_journal_is_not_touched() {
    on_the_kernel(|kernel| {
        let node = kernel.node(1);
        let (vmid, disks) = node.guest_with(&[(MIRROR, "layering,exclusive-lock,journaling")]);
        kernel.rbd(&["mirror", "image", "enable", &disks[0].spec(), "journal"]);
        assert_eq!(node.pve_start(&disks), [6]);
        assert_said(&node.hook(vmid), 3, &["image-mirrored"]);
        assert_eq!(kernel.features(&disks[0]), ["layering", "exclusive-lock", "journaling"]);
        assert!(node.mapped().is_empty(), "{:?}", node.mapped());
    });
}

/// What is not there, and a parent that this kernel cannot read.
#[test]
fn images_that_are_not_there_and_a_parent_that_cannot_be_read() {
    on_the_kernel(|kernel| {
        let node = kernel.node(1);
        let (vmid, mut disks) = node.guest_with(&[(KRBD, DEFAULT)]);
        node.assert_healthy(vmid);
        for (n, storage) in [KRBD, NO_POOL, NO_NAMESPACE].into_iter().enumerate() {
            disks.push(disk(storage, format!("vm-{vmid}-disk-{}", n + 1)));
        }
        let config: Vec<String> = disks
            .iter()
            .enumerate()
            .map(|(n, d)| format!("scsi{n}: {}:{}\n", d.storage.id, d.image))
            .collect();
        node.guest(vmid, &config.concat());
        assert_eq!(node.pve_start(&disks[1..]), [2, 2, 2]);
        assert_said(&node.hook(vmid), 3, &["image-missing", "pool-missing", "namespace-missing"]);
        assert!(
            node.mapped().is_empty(),
            "a start that is refused leaves nothing behind: {:?}",
            node.mapped()
        );

        let base = disk(KRBD, format!("base-{vmid}-disk-0"));
        kernel.image(&base, DEFAULT);
        let (parent, clone) = (format!("{}@__base__", base.spec()), disk(KRBD, format!("vm-{vmid}-disk-9")));
        kernel.rbd(&["snap", "create", "--no-progress", &parent]);
        kernel.rbd(&["clone", "--rbd-default-clone-format", "2", &parent, &clone.spec()]);
        // dirty-cache, 0x800: what a crashed client with a write-back cache on its own disk leaves.
        let header = format!("rbd_header.{}", kernel.image_id(&base.spec()));
        let set = format!(r"printf '\075\010\0\0\0\0\0\0' | rados -p rbd setomapval {header} features");
        kernel.host("sh", &["-c", &set]);
        node.guest(vmid, &format!("scsi0: ceph-krbd:base-{vmid}-disk-0/{}\n", clone.image));
        let (codes, said) = node.hear(|| node.pve_start(std::slice::from_ref(&clone)));
        assert_eq!(codes, [6], "{said}");
        assert_said(&node.hook(vmid), 3, &["parent-unsupported", "dirty-cache"]);
    });
}
