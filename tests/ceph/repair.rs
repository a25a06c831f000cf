//! What `repair` and the hook change on a real Ceph, and what they leave alone.

use crate::common::node::{DEFAULT, Node, Ran, codes, new_vmid};
use crate::common::{executable, wait_until};
use rbd_preflight::act::run_lock::{Holder, Name, RunLock};
use rbd_preflight::rbd::identity::ImageIdentity;
use rbd_preflight::sys::root::Root;
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

fn repair(node: &Node, vmid: u32) -> Ran {
    node.run(["repair", &vmid.to_string(), "--yes"])
}

/// Everything that Ceph tells of an image and that a change would alter.
fn state(node: &Node, spec: &str) -> (Value, Value) {
    let mut info = node.lab.rbd_json(&["info", spec]);
    for moving in ["access_timestamp", "modify_timestamp"] {
        info[moving] = Value::Null;
    }
    (info, node.lab.rbd_json(&["lock", "ls", spec]))
}

#[test]
fn journaling_goes_where_the_kernel_opens_the_disk() {
    let (node, vmid, spec) = Node::with_vm(&format!("{DEFAULT},journaling"));
    let ran = repair(&node, vmid);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(node.features(&spec), DEFAULT.split(',').collect::<Vec<_>>());
    assert!(ran.stdout.contains(&format!("done: disable journaling on {spec}")), "{ran:?}");

    let (node, vmid, spec) = Node::with_vm_on("ceph-librbd", "rbd", &format!("{DEFAULT},journaling"));
    let before = state(&node, &spec);
    assert_eq!(repair(&node, vmid).code, 0);
    assert_eq!(state(&node, &spec), before);
}

/// Safety rule 4.
#[test]
fn mirrored_and_migrating_images_are_left_alone() {
    let (node, vmid, spec) = Node::with_mirrored_vm();
    let before = state(&node, &spec);
    assert_ne!(repair(&node, vmid).code, 0);
    assert_eq!(state(&node, &spec), before);
    node.lab.rbd(&["mirror", "image", "demote", &spec]);
    let before = state(&node, &spec);
    assert_ne!(repair(&node, vmid).code, 0);
    assert_eq!(state(&node, &spec), before);

    let (node, vmid, spec) = Node::with_vm("layering,exclusive-lock,journaling");
    node.lab.rbd(&["migration", "prepare", &spec, &spec]);
    let before = state(&node, &spec);
    assert_ne!(repair(&node, vmid).code, 0);
    assert_eq!(state(&node, &spec), before);
    node.lab.rbd(&["migration", "abort", &spec]);
}

#[test]
fn missing_features_come_and_object_maps_are_rebuilt_snapshots_too() {
    let (node, vmid, spec) = Node::with_vm("layering");
    node.lab.rbd(&["snap", "create", &format!("{spec}@a"), "--no-progress"]);
    node.lab.rbd(&["snap", "create", &format!("{spec}@b c"), "--no-progress"]);
    let ran = repair(&node, vmid);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(node.features(&spec), ["layering", "exclusive-lock", "object-map", "fast-diff"]);
    for place in [spec.clone(), format!("{spec}@a"), format!("{spec}@b c")] {
        assert_eq!(node.flags(&place), Vec::<String>::new(), "{place}");
    }
    let before = (state(&node, &spec), node.journal());
    let again = repair(&node, vmid);
    assert_eq!(again.code, 0, "{again:?}");
    assert_eq!((state(&node, &spec), node.journal()), before, "a second repair does nothing");
}

#[test]
fn object_maps_are_rebuilt_under_librbd_too_and_nothing_else() {
    let (node, vmid, spec) = Node::with_vm_on("ceph-librbd", "rbd", "layering,exclusive-lock");
    node.lab.rbd(&["feature", "enable", &spec, "object-map"]);
    let features = node.features(&spec);
    assert_eq!(repair(&node, vmid).code, 0);
    assert_eq!((node.features(&spec), node.flags(&spec)), (features, vec![]));
}

/// Safety rule 1: an image in use stays exactly as it was, and its user notices nothing.
#[test]
fn a_live_writer_is_not_disturbed() {
    let (node, vmid, spec) = Node::with_vm("layering,exclusive-lock,journaling");
    let writer = node.lab.writer(&spec);
    let status = node.lab.rbd_json(&["status", &spec]);
    let address = status["watchers"][0]["address"].as_str().unwrap().to_owned();
    let before = state(&node, &spec);
    let ran = repair(&node, vmid);
    assert_eq!(ran.code, 4, "{ran:?}");
    node.write("/etc/rbd-preflight/config.yaml", "watcher_grace: 3\n");
    let hook = node.run(["hook", &vmid.to_string(), "pre-start"]);
    assert_eq!(hook.code, 4, "{hook:?}");
    assert!(hook.stderr.contains("in-use-elsewhere") && hook.stdout.is_empty(), "{hook:?}");
    assert_eq!(state(&node, &spec), before);
    assert!(writer.alive());
    // Others are put there meanwhile, by other tests.
    let blocklist = node.lab.ceph(&["osd", "blocklist", "ls", "-f", "json"]);
    assert!(!blocklist.contains(&address), "{address}: {blocklist}");
    assert_eq!(node.journal(), Vec::<Value>::new());
}

/// Safety rules 2 and 3: a lock goes only with its owner's watch, and through librbd.
#[test]
fn a_dead_writers_lock_is_broken_once_its_watch_is_gone() {
    let (node, vmid, spec) = Node::with_vm(DEFAULT);
    node.assert_healthy(vmid);
    node.lab.writer(&spec).kill();
    let ran = repair(&node, vmid);
    assert_eq!(ran.code, 4, "the watch is still there: {ran:?}");
    assert_ne!(node.lab.rbd_json(&["lock", "ls", &spec]), serde_json::json!([]));
    let hook = node.run(["hook", &vmid.to_string(), "pre-start"]);
    assert_eq!(hook.code, 0, "the hook waits for the watch to go: {hook:?}");
    assert!(hook.stderr.contains("done: break the lock"), "{hook:?}");
    assert_eq!(node.lab.rbd_json(&["lock", "ls", &spec]), serde_json::json!([]));
}

/// A client that has two images open, and no watch on the one whose lock it owns: CEPH_CONF IMAGE-ID IMAGE. It says so,
/// and writes to the other until its input ends.
const TWO_IMAGES: &str = r#"
import struct, sys, rados, rbd
conf, locked, written = sys.argv[1:]
text = lambda value: struct.pack("<I", len(value)) + value
with rados.Rados(conffile=conf, rados_id="admin") as cluster, cluster.open_ioctx("rbd") as ioctx:
    # cls_lock_lock_op: name, exclusive, cookie, tag, description, no end, no flags.
    lock = text(b"rbd_lock") + b"\1" + text(b"auto 77") + text(b"internal") + text(b"") + bytes(9)
    ioctx.execute("rbd_header." + locked, "lock", "lock", struct.pack("<BBI", 1, 1, len(lock)) + lock)
    with rbd.Image(ioctx, written) as image:
        while True:
            image.write(b"x", 0)
            print("written", flush=True)
            if not sys.stdin.readline():
                break
"#;

/// The hook and `repair` leave the lock of an image alone whose owner writes to another one, which it is told by.
fn assert_owner_is_left_alone(node: &Node, vmid: u32, spec: &str, other: &str) {
    node.write("/etc/rbd-preflight/config.yaml", "watcher_grace: 3\n");
    let info = node.lab.rbd_json(&["info", spec]);
    let mut owner = Command::new("/usr/bin/python3")
        .args(["-c", TWO_IMAGES])
        .args([&node.lab.conf(), info["id"].as_str().unwrap(), other])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut to, mut from) =
        (owner.stdin.take().unwrap(), BufReader::new(owner.stdout.take().unwrap()).lines());
    assert_eq!(from.next().unwrap().unwrap(), "written");
    let lock = node.lab.rbd_json(&["lock", "ls", spec]);
    assert_eq!(lock[0]["id"], "auto 77", "{lock}");

    let hook = node.run(["hook", &vmid.to_string(), "pre-start"]);
    assert!(hook.code == 4 && hook.stderr.contains("lock-owner-alive"), "{hook:?}");
    assert!(hook.stderr.contains("it has ") && hook.stderr.contains(&format!("{other} open")), "{hook:?}");
    let ran = repair(node, vmid);
    assert_eq!(ran.code, 4, "{ran:?}");
    assert_eq!(node.lab.rbd_json(&["lock", "ls", spec]), lock);
    // Neither was anything done that would take the lock over on the way.
    assert_eq!(node.lab.rbd_json(&["info", spec])["features"], info["features"]);
    to.write_all(b"again\n").unwrap();
    assert_eq!(from.next().map(Result::unwrap).as_deref(), Some("written"), "it lives on");
    drop(to);
    assert!(owner.wait().unwrap().success());
}

/// Safety rules 2 and 3: breaking the lock would put its owner on the blocklist, and take its other image from it.
#[test]
fn a_lock_whose_owner_has_another_image_open_is_left_alone() {
    let (node, vmid, spec) = Node::with_vm(DEFAULT);
    let other = format!("vm-{vmid}-disk-1");
    node.image(&format!("rbd/{other}"), DEFAULT);
    node.append(
        &format!("/etc/pve/nodes/pve1/qemu-server/{vmid}.conf"),
        &format!("scsi1: ceph-krbd:{other},size=8M\n"),
    );
    assert_owner_is_left_alone(&node, vmid, &spec, &other);
}

/// The same of an image that the guest has nothing to do with, where features are to be changed too.
#[test]
fn a_lock_whose_owner_has_another_guests_image_open_is_left_alone() {
    let (node, vmid, spec) = Node::with_vm("layering,exclusive-lock");
    let other = format!("vm-{vmid}0-disk-0");
    node.image(&format!("rbd/{other}"), DEFAULT);
    assert_owner_is_left_alone(&node, vmid, &spec, &other);
}

/// A client that is not heard of for a while loses its watch and not its life: it has the watch back by the second look.
#[test]
fn a_lock_whose_owner_comes_back_is_left_alone() {
    let (node, vmid, spec) = Node::with_vm(DEFAULT);
    node.write("/etc/rbd-preflight/config.yaml", "watcher_grace: 3\n");
    let writer = node.lab.writer(&spec);
    let status = node.lab.rbd_json(&["status", &spec]);
    let address = status["watchers"][0]["address"].as_str().unwrap().to_owned();
    writer.signal("STOP");
    let unwatched = || node.lab.rbd_json(&["status", &spec])["watchers"] == serde_json::json!([]);
    wait_until("the writer's watch is dropped", Duration::from_secs(90), unwatched);
    let hook = std::thread::scope(|scope| {
        let hook = scope.spawn(|| node.run(["hook", &vmid.to_string(), "pre-start"]));
        let seen = || {
            std::fs::read_dir(node.path("/run/rbd-preflight")).is_ok_and(|mut files| {
                files.any(|file| file.unwrap().file_name().to_string_lossy().starts_with("unwatched"))
            })
        };
        wait_until("the hook has looked for the owner", Duration::from_secs(60), seen);
        writer.signal("CONT");
        hook.join().unwrap()
    });
    assert_eq!(hook.code, 4, "{hook:?}");
    assert!(hook.stderr.contains("looking for the owner of the lock once more"), "{hook:?}");
    assert!(hook.stderr.contains("in-use-elsewhere") && !hook.stderr.contains(": done: break"), "{hook:?}");
    let blocklist = node.lab.ceph(&["osd", "blocklist", "ls", "-f", "json"]);
    assert!(!blocklist.contains(&address), "{address}: {blocklist}");
    assert!(writer.alive());
}

#[test]
fn a_lock_that_may_not_be_broken_is_told_with_its_cause() {
    let (node, vmid, spec) = Node::with_vm_on("ceph-poor", "rbd", DEFAULT);
    node.lab.writer(&spec).kill();
    let gone = || !codes(&node.check(vmid)).contains(&"in-use-elsewhere".to_owned());
    wait_until("the dead writer's watch is dropped", Duration::from_secs(60), gone);
    let ran = repair(&node, vmid);
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(ran.stdout.contains("lock-break-not-permitted"), "{ran:?}");
    let line = "ceph auth caps client.poor mon 'profile rbd' osd 'profile rbd'";
    assert!(ran.stdout.contains(line), "the very line that fixes it, its osd caps kept: {ran:?}");
    assert_ne!(node.lab.rbd_json(&["lock", "ls", &spec]), serde_json::json!([]));
}

/// Safety rule 5.
#[test]
fn guests_that_run_or_are_locked_or_elsewhere_are_left_alone() {
    type Spoil = fn(&Node, u32);
    let cases: [(&str, Spoil); 4] = [
        ("locked", |node, vmid| {
            node.append(&format!("/etc/pve/nodes/pve1/qemu-server/{vmid}.conf"), "lock: snapshot\n")
        }),
        ("elsewhere", |node, vmid| {
            let at = |n| node.path(&format!("/etc/pve/nodes/{n}/qemu-server/{vmid}.conf"));
            std::fs::rename(at("pve1"), at("pve2")).unwrap();
        }),
        ("no quorum", |node, _| {
            let members = std::fs::read_to_string(node.path("/etc/pve/.members")).unwrap();
            node.write("/etc/pve/.members", &members.replace("\"quorate\": 1", "\"quorate\": 0"));
        }),
        ("template", |node, vmid| {
            node.append(&format!("/etc/pve/nodes/pve1/qemu-server/{vmid}.conf"), "template: 1\n")
        }),
    ];
    for (name, spoil) in cases {
        let (node, vmid, spec) = Node::with_vm("layering,exclusive-lock,journaling");
        spoil(&node, vmid);
        let before = state(&node, &spec);
        let ran = repair(&node, vmid);
        assert_eq!(ran.code, 4, "{name}: {ran:?}");
        assert_eq!(state(&node, &spec), before, "{name}");
        assert_eq!(node.journal(), Vec::<Value>::new(), "{name}");
    }
}

/// Safety rule 7: intent before, outcome after, with what stood before.
#[test]
fn every_change_is_in_the_journal() {
    let (node, vmid, spec) = Node::with_vm("layering,exclusive-lock,journaling");
    assert_eq!(repair(&node, vmid).code, 0);
    let journal = node.journal();
    let phases: Vec<&str> = journal.iter().map(|r| r["phase"].as_str().unwrap()).collect();
    assert_eq!(phases, ["intent", "outcome", "intent", "outcome", "intent", "outcome"]);
    assert_eq!(journal[0]["image"], serde_json::json!(spec));
    assert_eq!(
        journal[0]["before"]["features"],
        serde_json::json!(["layering", "exclusive-lock", "journaling"])
    );
    assert!(journal[0]["command"].as_str().unwrap().contains("feature disable"), "{journal:#?}");
    assert_eq!(journal[1]["result"]["result"], "done");
}

#[test]
fn without_a_journal_nothing_is_changed() {
    let (node, vmid, spec) = Node::with_vm("layering,exclusive-lock,journaling");
    node.write("/var/lib/rbd-preflight", "in the way\n");
    let before = state(&node, &spec);
    let ran = repair(&node, vmid);
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(ran.stdout.contains("journal"), "{ran:?}");
    assert_eq!(state(&node, &spec), before);
}

#[test]
fn nothing_is_changed_without_a_yes() {
    let (node, vmid, spec) = Node::with_vm("layering,exclusive-lock,journaling");
    let before = state(&node, &spec);
    let ran = node.run(["repair", &vmid.to_string()]);
    assert_eq!(ran.code, 2, "{ran:?}");
    let dry = node.run(["repair", &vmid.to_string(), "--dry-run"]);
    assert_eq!(dry.code, 0, "{dry:?}");
    assert_eq!(state(&node, &spec), before);
    // What a dry run prints does what repair would have done.
    let script = dry.stdout.lines().filter(|line| line.starts_with("rbd ")).collect::<Vec<_>>().join("\n");
    let status = Command::new("sh").args(["-ec", &script]).status().unwrap();
    assert!(status.success(), "{script}");
    let ran = node.run(["check", &vmid.to_string()]);
    assert_eq!(ran.code, 0, "{ran:?}");
}

/// Several storages, krbd and librbd, a namespace, a linked clone, EFI, TPM and cloud-init: all found and made ready.
#[test]
fn a_guest_with_everything() {
    let (node, vmid) = (Node::new(), new_vmid());
    let name = |what: &str| format!("vm-{vmid}-{what}");
    node.image(&format!("rbd/base-{vmid}-disk-0"), DEFAULT);
    node.lab.rbd(&["snap", "create", &format!("rbd/base-{vmid}-disk-0@__base__"), "--no-progress"]);
    node.lab.rbd(&["snap", "protect", &format!("rbd/base-{vmid}-disk-0@__base__")]);
    let clone = format!("rbd/{}", name("disk-0"));
    node.lab.rbd(&["clone", &format!("rbd/base-{vmid}-disk-0@__base__"), &clone]);
    node.image(&format!("rbd/{}", name("disk-1")), "layering");
    node.image(&format!("pool2/tenant/{}", name("disk-2")), &format!("{DEFAULT},journaling"));
    node.image(&format!("rbd/{}", name("disk-3")), DEFAULT);
    node.image(&format!("rbd/{}", name("disk-4")), &format!("{DEFAULT},journaling"));
    node.image(&format!("rbd/{}", name("cloudinit")), DEFAULT);
    node.vm(
        vmid,
        &format!(
            "scsi0: ceph-krbd:base-{vmid}-disk-0/{},size=8M\nscsi1: ceph-librbd:{},size=8M\nscsi2: ceph-ns:{}\n\
             efidisk0: ceph-librbd:{},efitype=4m,size=528K\ntpmstate0: ceph-librbd:{},size=4M,version=v2.0\n\
             ide2: ceph-krbd:{},media=cdrom\n",
            name("disk-0"),
            name("disk-1"),
            name("disk-2"),
            name("disk-3"),
            name("disk-4"),
            name("cloudinit")
        ),
    );
    let report = node.check(vmid);
    let row = |disk: &Value| {
        let text = |key: &str| disk[key].as_str().unwrap_or_default().to_owned();
        format!("{} {} {} {}", text("key"), text("access"), text("role"), text("state"))
    };
    let rows: Vec<String> = report["disks"].as_array().unwrap().iter().map(row).collect();
    assert_eq!(
        rows,
        [
            "ide2 krbd cloudinit found",
            "scsi0 krbd disk found",
            "scsi1 librbd disk found",
            "scsi2 krbd disk found",
            "efidisk0 librbd efi found",
            "tpmstate0 krbd tpm found"
        ]
    );
    for disk in report["disks"].as_array().unwrap() {
        let namespace = disk["namespace"].as_str().map(|n| format!("{n}/")).unwrap_or_default();
        let spec =
            format!("{}/{namespace}{}", disk["pool"].as_str().unwrap(), disk["image"].as_str().unwrap());
        assert_eq!(disk["features"], node.lab.rbd_json(&["info", &spec])["features"], "{spec}");
    }
    assert_eq!(repair(&node, vmid).code, 0);
    let without_journal: Vec<&str> = DEFAULT.split(',').collect();
    assert_eq!(node.features(&format!("pool2/tenant/{}", name("disk-2"))), without_journal);
    assert_eq!(
        node.features(&format!("rbd/{}", name("disk-4"))),
        without_journal,
        "the TPM is always krbd's"
    );
    assert_eq!(node.features(&format!("rbd/{}", name("disk-1"))), ["layering"], "librbd needs nothing");
}

/// Safety rule 9: two repairs of one image, one waits; both end well.
#[test]
fn two_repairs_at_once_do_the_work_once() {
    let (node, vmid, spec) = Node::with_vm("layering,exclusive-lock,journaling");
    let both: Vec<Ran> = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..2).map(|_| scope.spawn(|| repair(&node, vmid))).collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    assert!(both.iter().all(|ran| ran.code == 0), "{both:?}");
    let outcomes = node.journal().iter().filter(|r| r["phase"] == "outcome").count();
    assert_eq!(outcomes, 3, "{:#?}", node.journal());
    assert_eq!(node.flags(&spec), Vec::<String>::new());
}

/// Safety rule 9: whoever comes second waits, and says whom for.
#[test]
fn a_repair_waits_for_another_run_and_says_who_it_is() {
    let (node, vmid, spec) = Node::with_vm("layering,exclusive-lock,journaling");
    node.write("/etc/rbd-preflight/config.yaml", "command_timeout: 2\n");
    let fsid = node.lab.ceph(&["fsid"]).trim().to_owned();
    let id = node.lab.rbd_json(&["info", &spec])["id"].as_str().unwrap().to_owned();
    // As another run would hold it for the same image while that had another name.
    let image =
        ImageIdentity { fsid: &fsid, pool: "rbd", namespace: None, name: "renamed-since", id: Some(&id) };
    let name = Name::image(image).pop().unwrap();
    let holder = Holder { pid: std::process::id(), vmid: Some(4711) };
    let lock = RunLock::acquire(&Root::new(node.path("/")), &name, holder, Duration::ZERO).unwrap();
    let before = state(&node, &spec);
    let ran = repair(&node, vmid);
    assert_eq!(ran.code, 75, "{ran:?}");
    assert!(ran.stdout.contains("4711"), "{ran:?}");
    assert_eq!(state(&node, &spec), before);
    drop(lock);
    assert_eq!(repair(&node, vmid).code, 0);
}

#[test]
fn a_survey_can_be_saved_and_diagnosed_anywhere() {
    let (node, vmid, _) = Node::with_vm("layering,exclusive-lock,journaling");
    let file = node.path("/survey.json");
    let ran = node.run(["check", &vmid.to_string(), "--json", "--save-survey", file.to_str().unwrap()]);
    let mut elsewhere = Command::new(env!("CARGO_BIN_EXE_rbd-preflight"));
    elsewhere.args(["check", "--json", "--survey"]).arg(&file).env("RBD_PREFLIGHT_ROOT", "/nonexistent");
    let again = Ran::of(elsewhere);
    assert_eq!((again.code, &again.stdout), (ran.code, &ran.stdout), "{again:?}");
}

/// The last rung of `start` on a real Ceph: taken off, put back, made anew, under librbd too, where nothing but the
/// run's own history says that it is to come back.
#[test]
fn a_feature_reset_leaves_every_feature_where_it_was() {
    for (storage, place) in [("ceph-krbd", "rbd"), ("ceph-librbd", "rbd")] {
        let (node, vmid, spec) = Node::with_vm_on(storage, place, DEFAULT);
        let tools = tempfile::tempdir().unwrap();
        // A `qm` that never starts anything; QEMU's own words come on its stdout.
        let qm = tools.path().join("qm");
        let words = "echo 'kvm: -drive file=rbd:rbd/a,id=drive-scsi0: error opening'\n\
                     echo 'start failed: QEMU exited with code 1' >&2\n";
        executable(&qm, &format!("#!/bin/sh\n{words}exit 255\n"));
        let mut command = node.command(["start", &vmid.to_string(), "--yes", "--tries", "2", "--json"]);
        command.env("PATH", format!("{}:{}", tools.path().display(), std::env::var("PATH").unwrap()));
        let ran = Ran::of(command);
        assert_eq!(ran.code, 3, "{ran:?}");
        let told: Value = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!(told["started"], false);
        assert_eq!(
            told["tries"][0]["actions"],
            serde_json::json!([]),
            "nothing was wrong, nothing was changed"
        );
        assert!(
            told["tries"][0]["failure"].as_str().unwrap().contains("QEMU exited with code 1"),
            "{told:#}"
        );
        let changes: Vec<&str> = told["tries"][1]["actions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|action| action["change"]["change"].as_str().unwrap())
            .collect();
        assert_eq!(changes, ["disable-features", "enable-features", "rebuild-object-map"], "{told:#}");
        assert_eq!(node.features(&spec), DEFAULT.split(',').collect::<Vec<_>>());
        assert_eq!(node.flags(&spec), Vec::<String>::new());
    }
}

/// `qm` and `ha-manager` that only note what they were called with, and a node whose HA stack is disarmed.
#[test]
fn a_guest_of_a_disarmed_ha_stack_is_not_asked_of_it() {
    let (node, vmid, _) = Node::with_vm(DEFAULT);
    let tools = tempfile::tempdir().unwrap();
    for tool in ["qm", "ha-manager"] {
        let path = tools.path().join(tool);
        let calls = node.path("/calls");
        executable(&path, &format!("#!/bin/sh\necho {tool} \"$@\" >>{}\nexit 255\n", calls.display()));
    }
    node.write("/etc/pve/ha/resources.cfg", &format!("vm: {vmid}\n\tstate stopped\n"));
    let start = |mode: &str| {
        node.write(
            "/etc/pve/ha/manager_status",
            &format!(r#"{{"disarm":{{"mode":"{mode}","state":"disarmed"}}}}"#),
        );
        let mut command = node.command(["start", &vmid.to_string(), "--yes", "--tries", "1"]);
        command.env("PATH", format!("{}:{}", tools.path().display(), std::env::var("PATH").unwrap()));
        (Ran::of(command), std::fs::read_to_string(node.path("/calls")).unwrap_or_default())
    };
    let (ran, calls) = start("freeze");
    assert_eq!((ran.code, calls.as_str()), (3, ""), "{ran:?}");
    assert!(ran.stderr.contains("disarmed") && ran.stderr.contains("arm-ha"), "{ran:?}");
    let (ran, calls) = start("ignore");
    assert_eq!(calls, format!("qm start {vmid}\n"), "{ran:?}");
}
