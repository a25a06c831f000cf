//! Each finding by its real cause on a real Ceph, seen by the real binary.

use crate::common::node::{DEFAULT, Node, codes, finding, new_vmid};
use crate::common::{Lab, wait_until};
use serde_json::Value;
use std::time::Duration;

/// Asserts the code, its severity, and the exit code of `check`.
fn assert_found(node: &Node, vmid: u32, code: &str, severity: &str, exit: i32) -> Value {
    let report = node.check(vmid);
    assert_eq!(finding(&report, code)["severity"], severity, "{report:#}");
    let ran = node.run(["check", &vmid.to_string()]);
    assert_eq!(ran.code, exit, "{ran:?}");
    assert!(severity == "note" || ran.stdout.contains(code), "{ran:?}");
    report
}

#[test]
fn healthy_is_ready() {
    let (node, vmid, _) = Node::with_vm(DEFAULT);
    let report = node.check(vmid);
    node.assert_healthy(vmid);
    let wanted: Vec<&str> = DEFAULT.split(',').collect();
    assert_eq!(report["disks"][0]["features"], serde_json::json!(wanted));
}

#[test]
fn image_missing() {
    let (node, vmid) = (Node::new(), new_vmid());
    node.vm(vmid, &format!("scsi0: ceph-krbd:vm-{vmid}-disk-0\n"));
    assert_found(&node, vmid, "image-missing", "blocker", 3);
    // What QEMU and Proxmox VE get.
    let image = format!("vm-{vmid}-disk-0");
    let said = String::from_utf8_lossy(&node.lab.try_rbd(&["info", &image]).stderr).into_owned();
    assert!(said.contains(&format!("error opening image {image}: (2) No such file or directory")), "{said}");
}

#[test]
fn pool_and_namespace_missing() {
    let (node, vmid) = (Node::new(), new_vmid());
    node.storage("nopool", "pool no-such-pool");
    node.storage("nons", "pool pool2; namespace no-such");
    node.vm(vmid, &format!("scsi0: nopool:vm-{vmid}-disk-0\nscsi1: nons:vm-{vmid}-disk-1\n"));
    assert_found(&node, vmid, "pool-missing", "blocker", 3);
    assert_found(&node, vmid, "namespace-missing", "blocker", 3);
}

#[test]
fn storage_unknown_and_disabled_and_name_invalid() {
    let (node, vmid, _) = Node::with_vm(DEFAULT);
    node.storage("off", "pool rbd; disable");
    node.vm(
        vmid,
        &format!("scsi0: nowhere:vm-{vmid}-disk-0\nscsi1: off:vm-{vmid}-disk-0\nscsi2: ceph-krbd:efi790\n"),
    );
    for code in ["storage-unknown", "storage-disabled", "volume-name-invalid"] {
        assert_found(&node, vmid, code, "blocker", 3);
    }
}

#[test]
fn cluster_auth_failed() {
    let (node, vmid, _) = Node::with_vm(DEFAULT);
    let key = node.path("/etc/pve/priv/ceph/ceph-krbd.keyring");
    let poor = std::fs::read_to_string(node.path("/etc/pve/priv/ceph/ceph-poor.keyring")).unwrap();
    std::fs::write(key, poor.replace("client.poor", "client.admin")).unwrap();
    let report = assert_found(&node, vmid, "cluster-auth-failed", "blocker", 3);
    assert!(!report.to_string().contains(poor.split("key = ").nth(1).unwrap().trim()), "the key is shown");
}

#[test]
fn journaling_on_krbd_and_not_under_librbd() {
    let (node, vmid, _) = Node::with_vm(&format!("{DEFAULT},journaling"));
    assert_found(&node, vmid, "journaling-on-krbd", "blocker", 3);
    let (node, vmid, _) = Node::with_vm_on("ceph-librbd", "rbd", &format!("{DEFAULT},journaling"));
    node.assert_healthy(vmid);
}

#[test]
fn lock_features_and_deep_flatten_missing() {
    let (node, vmid, _) = Node::with_vm("layering");
    assert_found(&node, vmid, "lock-features-missing", "warning", 0);
    assert_found(&node, vmid, "deep-flatten-missing", "note", 0);
}

#[test]
fn object_map_invalid() {
    let (node, vmid, spec) = Node::with_vm("layering,exclusive-lock");
    node.lab.rbd(&["feature", "enable", &spec, "object-map", "fast-diff"]);
    let report = assert_found(&node, vmid, "object-map-invalid", "warning", 0);
    assert_eq!(report["verdict"], "repairable");
}

#[test]
fn features_that_an_old_kernel_lacks() {
    let (node, vmid, _) = Node::with_vm(DEFAULT);
    node.write("/sys/bus/rbd/supported_features", "0x9f\n");
    let report = assert_found(&node, vmid, "features-unsupported", "blocker", 3);
    assert!(finding(&report, "features-unsupported")["detail"].as_str().unwrap().contains("deep-flatten"));
}

#[test]
fn mirrored_by_journal_and_demoted() {
    let (node, vmid, spec) = Node::with_mirrored_vm();
    let report = assert_found(&node, vmid, "image-mirrored", "blocker", 3);
    assert_eq!(report["actions"], serde_json::json!([]), "journal-mirrored images are never touched");
    node.lab.rbd(&["mirror", "image", "demote", &spec]);
    assert_found(&node, vmid, "image-non-primary", "blocker", 3);
}

#[test]
fn image_migrating() {
    let (node, vmid, spec) = Node::with_vm(DEFAULT);
    node.lab.rbd(&["migration", "prepare", &spec, &spec]);
    let report = assert_found(&node, vmid, "image-migrating", "blocker", 3);
    assert_eq!(report["actions"], serde_json::json!([]));
    node.lab.rbd(&["migration", "abort", &spec]);
    node.assert_healthy(vmid);
}

#[test]
fn parents_gone_unsupported_or_too_many() {
    let (node, vmid) = (Node::new(), new_vmid());
    // 17 ancestors: each generation a clone of the one before.
    let generation = |n: usize| format!("rbd/base-{vmid}-disk-{n}");
    node.image(&generation(0), DEFAULT);
    for n in 1..=17 {
        let parent = format!("{}@s", generation(n - 1));
        node.lab.rbd(&["snap", "create", &parent, "--no-progress"]);
        node.lab.rbd(&["clone", "--rbd-default-clone-format", "2", &parent, &generation(n)]);
    }
    node.vm(vmid, &format!("scsi0: ceph-krbd:base-{vmid}-disk-17\n"));
    assert_found(&node, vmid, "parent-chain-too-deep", "blocker", 3);
    node.vm(vmid, &format!("scsi0: ceph-krbd:base-{vmid}-disk-16\n"));
    assert!(!codes(&node.check(vmid)).contains(&"parent-chain-too-deep".to_owned()));

    node.lab.rbd(&["create", &format!("rbd/base-{vmid}-ec"), "--size", "8M", "--data-pool", "pool2"]);
    node.lab.rbd(&["snap", "create", &format!("rbd/base-{vmid}-ec@s"), "--no-progress"]);
    let clone = format!("rbd/vm-{vmid}-disk-1");
    node.lab.rbd(&["clone", "--rbd-default-clone-format", "2", &format!("rbd/base-{vmid}-ec@s"), &clone]);
    node.vm(vmid, &format!("scsi0: ceph-krbd:base-{vmid}-ec/vm-{vmid}-disk-1\n"));
    node.assert_healthy(vmid);
    node.write("/sys/bus/rbd/supported_features", "0x3f\n");
    assert_found(&node, vmid, "parent-unsupported", "blocker", 3);

    let id = node.lab.rbd_json(&["info", &format!("rbd/base-{vmid}-ec")])["id"].as_str().unwrap().to_owned();
    node.lab.rados(&["-p", "rbd", "rm", &format!("rbd_header.{id}")]);
    assert_found(&node, vmid, "parent-missing", "blocker", 3);
}

#[test]
fn live_writer_then_dead_writer() {
    let (node, vmid, spec) = Node::with_vm(DEFAULT);
    let writer = node.lab.writer(&spec);
    let report = assert_found(&node, vmid, "in-use-elsewhere", "unsafe", 4);
    assert_eq!(report["verdict"], "refused");
    let detail = |report: &Value| finding(report, "in-use-elsewhere")["detail"].as_str().unwrap().to_owned();
    assert!(detail(&report).contains(" (this node), it owns the exclusive lock"), "{report:#}");
    // The writer is a process of this machine, and so of the node whose /proc is this machine's.
    std::fs::create_dir(node.path("/away")).unwrap();
    std::fs::rename(node.path("/proc"), node.path("/away/proc")).unwrap();
    std::os::unix::fs::symlink("/proc", node.path("/proc")).unwrap();
    let process = format!(" (this node: process {} (python3))", writer.pid());
    let report = node.check(vmid);
    assert!(detail(&report).contains(&process), "{process}: {report:#}");
    std::fs::remove_file(node.path("/proc")).unwrap();
    std::fs::rename(node.path("/away/proc"), node.path("/proc")).unwrap();
    assert!(!codes(&report).contains(&"lock-stale".to_owned()));
    assert!(writer.alive());
    writer.kill();
    let stale = || codes(&node.check(vmid)).contains(&"lock-stale".to_owned());
    wait_until("the dead writer's watch is dropped", Duration::from_secs(60), stale);
    assert_found(&node, vmid, "lock-stale", "warning", 0);
}

/// A process that looks at a disk for a moment is waited for by hand too, as the hook does.
#[test]
fn who_has_a_device_open_for_a_moment_is_waited_for_by_hand_too() {
    let (node, vmid, spec) = Node::with_vm(DEFAULT);
    node.mapped(&spec);
    let process = node.path("/proc/77");
    std::fs::create_dir_all(process.join("fd")).unwrap();
    std::fs::create_dir_all(process.join("ns")).unwrap();
    std::fs::write(process.join("comm"), "blkid\n").unwrap();
    std::fs::write(process.join("mountinfo"), "").unwrap();
    std::os::unix::fs::symlink("mnt:[1]", process.join("ns/mnt")).unwrap();
    std::os::unix::fs::symlink("/dev/rbd0", process.join("fd/3")).unwrap();
    let report = assert_found(&node, vmid, "mapping-busy", "unsafe", 4);
    assert_eq!(finding(&report, "mapping-busy")["remedy"]["kind"], "wait", "it stays: {report:#}");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_secs(1));
            std::fs::remove_dir_all(&process).unwrap();
        });
        let report = node.check(vmid);
        assert!(!codes(&report).contains(&"mapping-busy".to_owned()), "{report:#}");
    });
}

#[test]
fn lock_external() {
    let (node, vmid, spec) = Node::with_vm(DEFAULT);
    node.lab.rbd(&["lock", "add", &spec, "backup"]);
    let report = assert_found(&node, vmid, "lock-external", "blocker", 3);
    assert_eq!(report["actions"], serde_json::json!([]));
}

#[test]
fn blocklist_expire_set() {
    let (node, vmid, _) = Node::with_vm(DEFAULT);
    node.append("/etc/pve/ceph.conf", "\n[client]\nrbd_blocklist_expire_seconds = 60\n");
    assert_found(&node, vmid, "blocklist-expire-set", "warning", 0);
}

#[test]
fn image_shared_within_and_between_guests() {
    let (node, vmid, _) = Node::with_vm(DEFAULT);
    let other = new_vmid();
    node.vm(other, &format!("virtio0: ceph-librbd:vm-{vmid}-disk-0\n"));
    let report = assert_found(&node, vmid, "image-shared", "warning", 0);
    assert!(finding(&report, "image-shared")["detail"].as_str().unwrap().contains(&format!("guest {other}")));
    node.vm(other, "");
    node.append(
        &format!("/etc/pve/nodes/pve1/qemu-server/{vmid}.conf"),
        &format!("scsi1: ceph-krbd:vm-{vmid}-disk-0\n"),
    );
    assert_found(&node, vmid, "image-shared", "warning", 0);
}

#[test]
fn dropped_lines_are_told_with_file_and_line() {
    let (node, vmid, _) = Node::with_vm(DEFAULT);
    node.append(
        &format!("/etc/pve/nodes/pve1/qemu-server/{vmid}.conf"),
        "scsi1: ceph-krbd:vm-1-disk-0,cache=bogus\n",
    );
    let report = node.check(vmid);
    let detail = finding(&report, "config-line-dropped")["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains(&format!("{vmid}.conf:3")), "{detail}");
}

/// A lab of its own: it is paused, and its health is spoilt.
#[test]
fn cluster_unreachable_and_unhealthy() {
    let (node, vmid) = (Node::on(Lab::own(&[])), new_vmid());
    node.image(&format!("rbd/vm-{vmid}-disk-0"), DEFAULT);
    node.vm(vmid, &format!("scsi0: ceph-krbd:vm-{vmid}-disk-0\n"));
    node.write("/etc/rbd-preflight/config.yaml", "connect_timeout: 3\ncheck_deadline: 5\ndeadline: 8\n");
    node.assert_healthy(vmid);

    node.lab.ceph(&["osd", "set", "pause"]);
    let report = node.check(vmid);
    assert!(codes(&report).contains(&"cluster-health".to_owned()), "{report:#}");
    node.lab.ceph(&["osd", "unset", "pause"]);

    for what in ["osd", "mon", "all"] {
        node.lab.pause(what);
        let report = node.check(vmid);
        assert_eq!(finding(&report, "cluster-unreachable")["severity"], "blocker", "{what}");
        let ran = node.run(["check", &vmid.to_string()]);
        assert!(ran.code == 3 && ran.took < Duration::from_secs(8), "{what}: {ran:?}");
        let ran = node.run(["hook", &vmid.to_string(), "pre-start"]);
        assert!(ran.code == 3 && ran.took < Duration::from_secs(11), "{what}: {ran:?}");
        assert!(ran.stderr.contains("cluster-unreachable"), "{what}: {ran:?}");
        node.lab.resume(what);
    }
}
