//! What "ready" means: Proxmox VE starts this guest now, and its disks work. Each case is seen to be refused, or to hang,
//! where it is not called ready.

use crate::common::node::{DEFAULT, Node, Ran, finding, new_vmid};
use crate::common::{Lab, wait_until};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::Duration;

/// How long something is given that must not be held back, on a machine that is slow and busy.
const LONG: Duration = Duration::from_secs(120);

fn config(vmid: u32) -> String {
    format!("/etc/pve/nodes/pve1/qemu-server/{vmid}.conf")
}

/// `check` calls the guest blocked, with exit 3, and so do the metrics; `start` changes nothing and ends with `start`; and Proxmox VE's
/// stand-in refuses the start with these words.
fn assert_blocked(node: &Node, vmid: u32, code: &str, pve: &str, start: i32) -> serde_json::Value {
    let number = vmid.to_string();
    let report = node.check(vmid);
    let found = finding(&report, code).clone();
    assert_eq!(
        (found["severity"].as_str(), report["verdict"].as_str()),
        (Some("blocker"), Some("blocked")),
        "{report:#}"
    );
    let ran = node.run(["check", &number]);
    assert!(ran.code == 3 && ran.stdout.contains(code), "{ran:?}");
    let metrics = node.run(["check", &number, "--prometheus"]).stdout;
    let verdict = |line: &&str| line.contains("guest_verdict{") && line.contains("\"blocked\"");
    assert!(metrics.lines().find(verdict).is_some_and(|line| line.ends_with(" 1")), "{metrics}");
    let ran = node.run(["start", &number, "--yes", "--tries", "1"]);
    assert!(ran.code == start && !ran.stdout.contains("try 1"), "{ran:?}");
    let ran = node.qm("start", vmid);
    assert!(ran.code != 0 && ran.stderr.contains(pve), "{ran:?}");
    found
}

fn assert_starts(node: &Node, vmid: u32) {
    node.assert_healthy(vmid);
    let ran = node.qm("start", vmid);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(node.qm("stop", vmid).code, 0);
}

#[test]
fn a_lock_that_was_left_behind_is_a_blocker_with_the_way_out() {
    let (node, vmid, _) = Node::with_vm_on("ceph-librbd", "rbd", DEFAULT);
    assert_starts(&node, vmid);
    let healthy = std::fs::read_to_string(node.path(&config(vmid))).unwrap();
    for lock in ["backup", "snapshot-delete", "suspending"] {
        node.append(&config(vmid), &format!("lock: {lock}\n"));
        let found = assert_blocked(&node, vmid, "guest-locked", &format!("VM is locked ({lock})"), 4);
        let way_out = found["remedy"]["text"].as_str().unwrap();
        assert!(way_out.contains(&format!("`qm unlock {vmid}`")) && way_out.contains("safe"), "{way_out}");
        node.write(&config(vmid), &healthy);
    }
    // vzdump starts the guest under its own lock, and a start resumes a suspended one.
    node.append(&config(vmid), "lock: backup\n");
    let ran = node.run(["hook", &vmid.to_string(), "pre-start"]);
    assert!(ran.code == 0 && !ran.stderr.contains("guest-locked"), "{ran:?}");
    node.write(&config(vmid), &format!("{healthy}lock: suspended\n"));
    assert_starts(&node, vmid);
}

#[test]
fn a_node_without_quorum_starts_no_guest() {
    let (node, vmid, _) = Node::with_vm_on("ceph-librbd", "rbd", DEFAULT);
    let members = std::fs::read_to_string(node.path("/etc/pve/.members")).unwrap();
    node.write("/etc/pve/.members", &members.replace("\"quorate\": 1", "\"quorate\": 0"));
    assert_blocked(&node, vmid, "quorum-missing", "cluster not ready - no quorum?", 3);
    // Proxmox VE had quorum when it called the hook.
    let ran = node.run(["hook", &vmid.to_string(), "pre-start"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    node.write("/etc/pve/.members", &members);
    assert_starts(&node, vmid);
}

#[test]
fn a_hookscript_that_is_missing_or_cannot_be_run_is_a_blocker() {
    let (node, vmid, _) = Node::with_vm_on("ceph-librbd", "rbd", DEFAULT);
    let file = "/var/lib/vz/snippets/guest.sh";
    node.append(&config(vmid), "hookscript: local:snippets/guest.sh\n");
    let found = assert_blocked(
        &node,
        vmid,
        "hookscript-missing",
        "script 'local:snippets/guest.sh' does not exist",
        3,
    );
    assert!(found["detail"].as_str().unwrap().contains(file), "{found:#}");
    assert_eq!(found["remedy"]["commands"][0], format!("qm set {vmid} --delete hookscript"));
    node.write(file, "#!/bin/sh\n");
    assert_blocked(
        &node,
        vmid,
        "hookscript-missing",
        "script 'local:snippets/guest.sh' is not executable",
        3,
    );
    std::fs::set_permissions(node.path(file), std::fs::Permissions::from_mode(0o755)).unwrap();
    assert_starts(&node, vmid);
}

#[test]
fn a_snippet_of_cloud_init_that_is_missing_is_a_blocker_where_it_is_read() {
    let (node, vmid, _) = Node::with_vm_on("ceph-librbd", "rbd", DEFAULT);
    node.append(&config(vmid), "cicustom: user=local:snippets/user.yaml\n");
    // Without a cloud-init image nobody reads it.
    assert_starts(&node, vmid);
    node.image(&format!("rbd/vm-{vmid}-cloudinit"), "layering");
    node.append(&config(vmid), &format!("ide2: ceph-librbd:vm-{vmid}-cloudinit,media=cdrom\n"));
    let found = assert_blocked(
        &node,
        vmid,
        "cicustom-missing",
        "volume 'local:snippets/user.yaml' does not exist",
        3,
    );
    assert!(
        found["detail"].as_str().unwrap().starts_with("cicustom user: local:snippets/user.yaml"),
        "{found:#}"
    );
    node.write("/var/lib/vz/snippets/user.yaml", "#cloud-config\n");
    assert_starts(&node, vmid);
}

/// Opens an image as QEMU does, for writing, and closes it.
fn opens(lab: &Lab, image: &str) -> std::process::Child {
    let script = "import rados, rbd, sys\n\
        cluster = rados.Rados(conffile=sys.argv[1], name='client.admin', conf={'keyring': sys.argv[2]})\n\
        cluster.connect()\n\
        rbd.Image(cluster.open_ioctx('rbd'), sys.argv[3]).close()\n";
    let mut python = Command::new("/usr/bin/python3");
    python.args(["-c", script, &lab.conf(), &lab.keyring("admin"), image]).stdin(Stdio::null());
    python.spawn().unwrap()
}

/// A real full OSD: opening an image for writing hangs, until there is room, and so would the start.
#[test]
fn a_full_pool_is_what_hangs_the_start_and_is_said_so() {
    let node = Node::on(Lab::own(&[]));
    let vmid = new_vmid();
    let number = vmid.to_string();
    let image = format!("vm-{vmid}-disk-0");
    node.image(&format!("rbd/{image}"), DEFAULT);
    node.vm(vmid, &format!("scsi0: ceph-librbd:{image}\n"));
    node.write("/etc/rbd-preflight/config.yaml", "deadline: 25\n");
    node.assert_healthy(vmid);
    let write = format!(
        "head -c 8388608 /dev/urandom | rbd --conf {} --id admin --keyring {} import --no-progress - rbd/filler",
        node.lab.conf(),
        node.lab.keyring("admin")
    );
    assert!(Command::new("/bin/sh").args(["-c", &write]).status().unwrap().success());
    let ratios = |values: [(&str, &str); 3]| {
        for (ratio, value) in values {
            node.lab.ceph(&["osd", &format!("set-{ratio}-ratio"), value]);
        }
    };
    ratios([("backfillfull", "0.0002"), ("nearfull", "0.0001"), ("full", "0.0003")]);
    wait_until("the pool is full", LONG, || node.lab.ceph(&["health"]).contains("pool(s) full"));

    let report = node.check(vmid);
    let full = finding(&report, "cluster-full");
    assert_eq!(
        (full["severity"].as_str(), report["verdict"].as_str()),
        (Some("blocker"), Some("blocked")),
        "{report:#}"
    );
    let detail = full["detail"].as_str().unwrap();
    assert!(
        detail.starts_with("full: rbd (OSD_FULL: 1 full osd(s)") && detail.ends_with("writing there: scsi0"),
        "{full}"
    );
    assert_eq!(node.run(["check", &number]).code, 3);
    let mut opening = opens(&node.lab, &image);
    // The hook waits for room, then stops the start with the cause.
    let ran = node.run(["hook", &number, "pre-start"]);
    assert!(ran.code == 3 && ran.stderr.contains("the start is stopped (cluster-full)"), "{ran:?}");
    assert!(ran.stderr.contains("looking again"), "{ran:?}");
    assert!(
        opening.try_wait().unwrap().is_none(),
        "an image is opened for writing in a full pool all the same"
    );
    // It is told beside any other cause, and does not keep a guest from starting where the settings say so.
    node.append(&config(vmid), &format!("scsi1: ceph-librbd:vm-{vmid}-disk-9\n"));
    let ran = node.run(["hook", &number, "pre-start"]);
    assert!(
        ran.code == 3 && ran.stderr.contains("the start is stopped (cluster-full, image-missing)"),
        "{ran:?}"
    );
    node.write("/etc/rbd-preflight/config.yaml", "deadline: 25\nignore: [cluster-full]\n");
    let ran: Ran = node.run(["hook", &number, "pre-start"]);
    assert!(ran.code == 3 && ran.stderr.contains("the start is stopped (image-missing)"), "{ran:?}");
    assert!(ran.stderr.contains("cluster-full, ignored by the settings"), "{ran:?}");

    node.vm(vmid, &format!("scsi0: ceph-librbd:{image}\n"));
    ratios([("full", "0.95"), ("backfillfull", "0.9"), ("nearfull", "0.85")]);
    wait_until("what was being opened is", LONG, || {
        opening.try_wait().unwrap().is_some_and(|status| status.success())
    });
    wait_until("the guest is ready again", LONG, || node.run(["check", &number]).code == 0);
    node.assert_healthy(vmid);
}

/// `rbd map` itself fails, before any kernel is asked, so that this is seen on a machine without one.
#[test]
fn monitors_of_one_protocol_are_seen_before_a_map_fails_at_them() {
    let node = Node::on(Lab::own(&[]));
    let vmid = new_vmid();
    let image = format!("vm-{vmid}-disk-0");
    node.image(&format!("rbd/{image}"), DEFAULT);
    node.vm(vmid, &format!("scsi0: ceph-krbd:{image}\n"));
    node.assert_healthy(vmid);
    let release = node.lab.command("rbd").arg("--version").output().unwrap().stdout;
    let release = String::from_utf8(release).unwrap();
    let major: u32 = release.split(' ').nth(2).unwrap().split('.').next().unwrap().parse().unwrap();
    let map: serde_json::Value =
        serde_json::from_str(&node.lab.ceph(&["mon", "dump", "--format", "json"])).unwrap();
    let addresses = map["mons"][0]["public_addrs"]["addrvec"].as_array().unwrap();
    let only = |protocol: &str| {
        let found = addresses.iter().find(|address| address["type"] == protocol).unwrap();
        format!("[{protocol}:{}]", found["addr"].as_str().unwrap())
    };
    let set = |mode: &str| {
        node.lab.rbd(&[
            "config",
            "pool",
            "set",
            "rbd",
            "rbd_default_map_options",
            &format!("ms_mode={mode}"),
        ]);
    };
    // What releases before ask for by themselves.
    let asks_for_new = major >= 20;
    if asks_for_new {
        set("legacy");
    }
    node.lab.ceph(&["mon", "set-addrs", "a", &only("v2")]);
    let has = |protocol: &str| {
        let map: serde_json::Value =
            serde_json::from_str(&node.lab.ceph(&["mon", "dump", "--format", "json"])).unwrap();
        let addresses = map["mons"][0]["public_addrs"]["addrvec"].as_array().unwrap().clone();
        addresses.iter().any(|address| address["type"] == protocol)
    };
    wait_until("the monitor has one address", LONG, || !has("v1"));
    let map = node.lab.try_rbd(&["map", &image]);
    let said = String::from_utf8_lossy(&map.stderr).into_owned();
    assert!(said.contains("failed to get mon address (possible ms_mode mismatch)"), "{said}");
    let report = node.check(vmid);
    let found = finding(&report, "ms-mode-mismatch");
    assert_eq!(
        (found["severity"].as_str(), report["verdict"].as_str()),
        (Some("blocker"), Some("blocked")),
        "{report:#}"
    );
    if asks_for_new {
        // Where an option is set already it is for the administrator to change.
        set("prefer-crc");
    } else {
        let command = found["remedy"]["commands"][0].as_str().unwrap();
        let ran = Command::new("/bin/sh").args(["-c", command]).output().unwrap();
        assert!(ran.status.success(), "{command}: {ran:?}");
    }
    node.assert_healthy(vmid);
}
