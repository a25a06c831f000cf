use super::carry_out::Hands;
use super::doubt::made_all_the_same;
use super::kernel_log::attribute;
use super::run_rbd::TimeLimit;
use crate::journal::RunId;
use crate::kernel::kmsg::LogLine;
use crate::observe::survey::Survey;
use crate::plan::rule::Rule;
use crate::rbd::action::{Action, ActionReport, ActionResult, Change, LockOwner, Target};
use crate::rbd::lock::Locker;
use crate::rbd::spec::Spec;
use crate::sys::process::{Outcome, Runner, Status, Stream};
use crate::sys::root::Root;
use anyhow::Result;
use serde_json::json;
use std::collections::BTreeSet;
use std::time::Duration;

fn failed_with(change: Change) -> ActionReport {
    let spec = Spec { pool: "rbd".into(), namespace: None, image: "a".into() };
    let (storage, fsid, id) = ("s".into(), "f".into(), Some("1".into()));
    let target = Target { storage, fsid, spec, id, rbd_arguments: vec![] };
    ActionReport::new(
        Action { target, change },
        ActionResult::Failed { errno: Some(110), message: "".into() },
    )
}

/// A node on which /dev/rbd0 is the image of this id, and guest 516 names it.
fn node(image_id: &str) -> (tempfile::TempDir, Root) {
    let directory = tempfile::tempdir().unwrap();
    let root = Root::new(directory.path());
    let device = [
        ("pool", "rbd"),
        ("name", "a"),
        ("current_snap", "-"),
        ("cluster_fsid", "f"),
        ("client_addr", "10.0.0.1:0/1"),
        ("client_id", "client1"),
        ("image_id", image_id),
    ];
    for (file, text) in device {
        let file = root.path(format!("/sys/bus/rbd/devices/0/{file}"));
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
    }
    std::fs::create_dir_all(root.path("/var/lock/qemu-server")).unwrap();
    (directory, root)
}

/// What was seen there before: nobody is at guest 516, which names the image.
fn seen() -> Survey {
    serde_json::from_value(json!({
        "schema": 1, "taken_at": 0,
        "node": {
            "name": "pve1", "quorate": { "known": true }, "running": { "known": false },
            "kernel": { "release": "6.14", "version": [6, 14], "module_loaded": true,
                        "supported": { "known": [] }, "mappings": { "known": [] } },
            "mapping_users": { "0": { "holders": { "known": [] }, "guests": { "516": { "known": false } },
                                      "locked": { "516": { "known": false } } } },
        },
        "guest": { "vmid": 516, "kind": "qemu", "node": "pve1", "name": null, "lock": null, "template": false,
                   "hookscript": null, "ostype": null, "disks": [], "refusals": [], "notes": [] },
        "storages": {}, "clusters": [], "disks": [],
    }))
    .unwrap()
}

struct Asks(Action);

impl Rule for Asks {
    fn wanted(&self, _: &Survey) -> Vec<Action> {
        vec![self.0.clone()]
    }

    fn why_not(&self, _: &Survey, _: &Action) -> Option<String> {
        None
    }
}

/// Notes whether PVE could begin something with guest 516 while the command ran.
struct Notes<'a>(&'a Root, std::sync::Mutex<Vec<bool>>);

impl Runner for Notes<'_> {
    fn run_watched(
        &self,
        command: &crate::sys::command::Command,
        _: &mut dyn FnMut(Stream, &[u8]),
    ) -> Result<Outcome> {
        let file = self.0.path("/var/lock/qemu-server/lock-516.conf");
        let pve = std::fs::File::open(file)
            .map(|file| nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock).is_ok());
        self.1.lock().unwrap().push(pve.unwrap_or(true));
        Ok(Outcome {
            command: command.display(),
            status: Status::Exit(0),
            stdout: Vec::new(),
            stdout_truncated: false,
            stderr_tail: String::new(),
            duration: Duration::ZERO,
            survived_kill: false,
        })
    }
}

/// Unmaps /dev/rbd0 as the image 12ab; what came of it, and for each command whether PVE was shut out meanwhile.
fn unmapped(root: &Root) -> (ActionResult, Vec<bool>) {
    let action = failed_with(Change::Unmap { device: 0 }).action;
    let runner = Notes(root, std::sync::Mutex::default());
    let (run, rule) = (RunId("r".into()), Asks(action.clone()));
    let time = TimeLimit { limit: Duration::from_secs(5), cut: false };
    let hands = Hands { root, vmid: 516, run: &run, rule: &rule, runner: &runner, time };
    let result = hands.make_all(&[action], &|| Ok(seen()), &|_| ()).remove(0).result;
    (result, runner.1.into_inner().unwrap())
}

#[test]
fn a_device_whose_number_is_another_images_by_now_is_not_unmapped() {
    let (_directory, root) = node("34cd");
    let (result, commands) = unmapped(&root);
    assert_eq!(result, ActionResult::withheld("/dev/rbd0 is another image by now: rbd/a"));
    assert!(commands.is_empty());
    std::fs::remove_dir_all(root.path("/sys/bus/rbd/devices/0")).unwrap();
    assert_eq!(unmapped(&root).0, ActionResult::withheld("/dev/rbd0 is not mapped any more"));
    let (_directory, root) = node("1");
    assert!(matches!(unmapped(&root).0, ActionResult::Done { .. }));
}

#[test]
fn pve_begins_nothing_with_a_guest_whose_disk_is_being_unmapped() {
    let (_directory, root) = node("1");
    let (result, pve_could) = unmapped(&root);
    assert!(
        matches!(result, ActionResult::Done { .. }),
        "nobody was at the guest since the boot: {result:?}"
    );
    assert_eq!(pve_could, [true]);
    let pve = std::fs::File::create(root.path("/var/lock/qemu-server/lock-516.conf")).unwrap();
    let (_, pve_could) = unmapped(&root);
    assert_eq!(pve_could, [false]);
    let _pve = nix::fcntl::Flock::lock(pve, nix::fcntl::FlockArg::LockExclusiveNonblock).unwrap();
    let (result, commands) = unmapped(&root);
    assert_eq!(result, ActionResult::withheld("somebody has come to guest 516 (PVE's lock of it is held)"));
    assert!(commands.is_empty());
}

#[test]
fn what_the_kernel_says_of_another_guests_disk_is_not_this_maps() {
    let line = |text: &str| LogLine { sequence: 0, since_boot: Duration::ZERO, text: text.to_owned() };
    let log =
        [line("rbd: rbd7: post-acquire action failed: -2"), line("rbd: rbd8: peer will not release lock")];
    let map = failed_with(Change::Map { noshare: false, rxbounce: false });
    let mut reports = [map, failed_with(Change::Unmap { device: 7 })];
    attribute(&log, &BTreeSet::from([7]), &mut reports);
    assert_eq!(reports[0].kernel_log, ["rbd: rbd8: peer will not release lock"]);
    assert_eq!(reports[1].kernel_log.len(), 2);
}

#[test]
fn a_lock_is_broken_if_its_owner_is_gone_whatever_the_time_said() {
    let owner = Locker { client: "client.4".into(), cookie: "auto 7".into(), address: "10.0.0.1:0/1".into() };
    let action = failed_with(Change::BreakLock { owner: LockOwner::from(&owner) }).action;
    let late = || ActionResult::Failed { errno: Some(110), message: "late".into() };
    let denied = ActionResult::Failed { errno: Some(13), message: "no".into() };
    let survey = |lockers: &[Locker]| {
        let mut survey = json!(seen());
        let lock = json!({ "tag": "internal", "exclusive": true, "lockers": lockers });
        survey["storages"]["s"] = json!({
            "section": { "id": "s", "pool": "rbd", "namespace": null, "data_pool": null, "krbd": true, "username": null,
                         "monhost": null, "content": [], "nodes": null, "disabled": false },
            "connection": { "conf": null, "mon_host": null, "user": "a", "keyring": null }, "cluster": 0 });
        survey["clusters"] = json!([{ "known": { "fsid": "f", "blocklist": { "known": [] },
            "health": { "known": { "status": "HEALTH_OK", "checks": [] } },
            "default_features": { "known": [] }, "blocklist_expire_seconds": { "known": 0 } } }]);
        survey["disks"] = json!([{
            "key": "scsi0", "volid": "s:a", "storage": "s", "pool": "rbd", "namespace": null, "image": "a",
            "krbd_storage": true, "access": "krbd", "role": "disk", "pve_drops": null, "shared_with": [],
            "reading": { "found": {
                "id": "1", "format": 2, "size": 1, "object_size": 1, "objects": 1, "features": [],
                "op_features": { "known": [] }, "snapshots": { "known": [] }, "parents": { "known": [] },
                "flags": { "known": { "object_map_invalid": false, "fast_diff_invalid": false } },
                "lock": { "known": lock }, "watchers": { "known": [] }, "mirroring": { "known": null },
                "migration": { "known": null } } } }]);
        Ok(serde_json::from_value::<Survey>(survey)?)
    };
    let broken =
        |result: &ActionResult, lockers: &[Locker]| made_all_the_same(&action, result, &|| survey(lockers));
    assert!(broken(&late(), &[]));
    assert!(!broken(&late(), &[owner]));
    assert!(!broken(&denied, &[]), "somebody else has freed it");
}
