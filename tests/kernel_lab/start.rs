//! Starts that go well, and what they cost.

use crate::common::kernel::{KRBD, Kernel, LIBRBD, NAMESPACE, disk, on_the_kernel, say};
use crate::common::node::DEFAULT;
use crate::{assert_said, assert_shown_in_readme};
use std::time::Instant;

/// Each kind of disk, as Proxmox VE would map it, and none that it would not.
#[test]
fn healthy() {
    on_the_kernel(|kernel| {
        let node = kernel.node(1);
        let (vmid, mut disks) = node.guest_with(&[(KRBD, DEFAULT), (NAMESPACE, DEFAULT), (LIBRBD, DEFAULT)]);
        let librbd = disks.pop().unwrap();
        let tpm = disk(LIBRBD, format!("vm-{vmid}-disk-3"));
        kernel.image(&tpm, DEFAULT);
        let config = node.must(&format!("cat /etc/pve/qemu-server/{vmid}.conf"));
        let tpm_line = format!("tpmstate0: ceph-librbd:{},size=4M,version=v2.0\n", tpm.image);
        node.guest(vmid, &format!("{config}ostype: win11\n{tpm_line}"));
        node.assert_healthy(vmid);

        let ran = node.hook(vmid);
        assert_said(&ran, 0, &["continuing with the start"]);
        let mapped = node.mapped();
        assert!(
            mapped.iter().all(|mapping| mapping.spec != librbd.spec()),
            "QEMU opens it itself: {mapped:?}"
        );
        assert_eq!(mapped.len(), 3, "{mapped:?}");
        for disk in &disks {
            let mapping = mapped.iter().find(|m| m.spec == disk.spec()).unwrap();
            assert!(mapping.options.contains("rxbounce"), "a Windows guest: {mapping:?}");
        }
        disks.push(tpm);
        node.assert_ready(&disks);
        assert_eq!(node.pve_start(&disks), [0, 0, 0]);
        let again = node.hook(vmid);
        assert_said(&again, 0, &["continuing with the start"]);
        assert_eq!(again.stderr.lines().count(), 1, "{again:#?}");
        node.assert_ready(&disks);

        // Proxmox VE unmaps what it finds; so nothing is left of the hook after the guest's end.
        node.unmap(&disks);
        assert!(node.mapped().is_empty(), "{:?}", node.mapped());
        let options = |vmid: u32| {
            node.guest(vmid, &config);
            assert_said(&node.hook(vmid), 0, &[]);
            node.mapped()
        };
        let mapped = options(vmid);
        assert!(mapped.iter().all(|m| !m.options.contains("rxbounce")), "no Windows guest: {mapped:?}");
        assert_eq!(ran.stderr.lines().count(), 1, "all is well: one line: {ran:#?}");
    });
}

/// The first start of a disk that udev has never seen: its workers have the disk open while its partitions are looked
/// at, which is no reason to stop.
///
/// `RBD_PREFLIGHT_STARTS` says how many; each is a map of disks that were not mapped, with all that udev makes of it.
#[test]
fn first_starts_in_a_row() {
    let starts = std::env::var("RBD_PREFLIGHT_STARTS").map_or(20, |starts| starts.parse().unwrap());
    on_the_kernel(|kernel| {
        let node = kernel.node(1);
        let vmid = kernel.new_vmid();
        let disks = ["gpt", "mbr"].map(|content| {
            let disk = disk(KRBD, format!("vm-{vmid}-disk-{content}"));
            kernel.image_with(&disk, DEFAULT, content);
            disk
        });
        let lines = disks.iter().enumerate().map(|(n, disk)| format!("scsi{n}: ceph-krbd:{}\n", disk.image));
        node.guest(vmid, &lines.collect::<String>());
        for start in 1..=starts {
            let ran = node.hook(vmid);
            assert_eq!((ran.code, ran.stderr.lines().count()), (0, 1), "start {start}: {ran:#?}");
            node.unmap(&disks);
        }
    });
}

/// The module is loaded when it is needed; where there is none, that is said.
#[test]
fn the_kernels_module() {
    on_the_kernel(|kernel| {
        let node = kernel.node(1);
        let (vmid, disks) = node.guest_with(&[(KRBD, DEFAULT)]);
        let module = "/lib/modules/$(uname -r)/kernel/drivers/block/rbd.ko*";
        node.must("modprobe -r rbd");
        assert_said(&node.hook(vmid), 0, &[]);
        node.assert_ready(&disks);
        node.unmap(&disks[0..=0]);
        node.must(&format!("modprobe -r rbd && mkdir -p /run/away && mv {module} /run/away/"));
        assert_eq!(node.pve_start(&disks), [2]);
        let ran = node.hook(vmid);
        node.must("mv /run/away/rbd.ko* /lib/modules/$(uname -r)/kernel/drivers/block/ && modprobe rbd");
        assert_said(&ran, 3, &["kernel-module-missing"]);
    });
}

/// Without Proxmox VE's udev rule the image is mapped, and PVE does not see it.
#[test]
fn the_link_that_proxmox_looks_for() {
    on_the_kernel(|kernel| {
        let node = kernel.node(1);
        let (vmid, disks) = node.guest_with(&[(KRBD, DEFAULT)]);
        node.must("mv /run/udev/rules.d/60-rbd-pve.rules /run/ && udevadm control --reload");
        let ran = node.hook(vmid);
        let times = node.mapped().iter().filter(|mapping| mapping.spec == disks[0].spec()).count();
        node.must("mv /run/60-rbd-pve.rules /run/udev/rules.d/ && udevadm control --reload");
        // QEMU would open a file that is not there.
        assert_said(&ran, 3, &["udev-link-missing"]);
        assert!(times <= 1, "it was mapped {times} times");
    });
}

/// Eight disks: Proxmox VE maps one after the other, the hook all at once, and it asks Ceph once.
#[test]
fn eight_disks_take_no_longer_than_without_us() {
    on_the_kernel(|kernel| {
        let node = kernel.node(1);
        let (vmid, disks) = node.guest_with(&[(KRBD, DEFAULT); 8]);
        // What Proxmox VE runs for each: `rbd info` for the features, then the map.
        let proxmox = || {
            let one = |disk| {
                let (device, info, map) =
                    (node.device(disk), disk.rbd("info --format json"), disk.rbd("map"));
                format!("test -b {device} || {{ {info} && {map}; }} >/dev/null || exit 1\n")
            };
            let script: String = disks.iter().map(one).collect();
            let begun = Instant::now();
            node.must(&script);
            begun.elapsed().as_secs_f64()
        };
        // On a machine that others use too one of two moments may be theirs: measured up to three times.
        let faster = (1..=3).any(|_| {
            let ((), own) = counting(kernel, || ());
            let (without, theirs) = counting(kernel, proxmox);
            node.unmap(&disks);
            let begun = Instant::now();
            let (ran, ours) = counting(kernel, || node.hook(vmid));
            let hook = begun.elapsed().as_secs_f64();
            assert_said(&ran, 0, &[]);
            let line = ran.stderr.replace(&vmid.to_string(), "516").replace("guest516", "xds-dev-516");
            assert_shown_in_readme("4 mapped", &line.replace("8 ", "4 "));
            let with = hook + proxmox();
            node.assert_ready(&disks);
            node.unmap(&disks);
            say(&format!(
                "8 disks: Proxmox VE's own steps {without:.1} s; the hook {hook:.1} s, and Proxmox VE's steps after it: \
                 {with:.1} s in all; ratio {:.2}",
                with / without
            ));
            let spared = (theirs - ours) / own;
            // Seven; six where the maps took so long that what was seen before them no longer holds.
            assert!(spared >= 6, "eight `rbd info` against one look: {theirs}, {ours}, {own} for one client");
            with < without
        });
        assert!(faster, "a start takes longer with the hook than without it");
    });
}

/// What is returned, and by how much the numbers have risen meanwhile that the monitors give to clients.
fn counting<T>(kernel: &Kernel, act: impl FnOnce() -> T) -> (T, u64) {
    const OWN_NUMBER: &str = "import rados
with rados.Rados(conffile='', rados_id='admin') as cluster: print(cluster.get_instance_id())";
    let number = || kernel.host("/usr/bin/python3", &["-Ic", OWN_NUMBER]).trim().parse::<u64>().unwrap();
    let before = number();
    let result = act();
    (result, number() - before)
}
