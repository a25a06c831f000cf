//! What `history` tells and what `undo` puts back, on a real Ceph.

use crate::common::node::{DEFAULT, Node, Ran};
use crate::common::wait_until;
use serde_json::{Value, json};
use std::time::Duration;

const JOURNAL: &str = "/var/lib/rbd-preflight/journal.jsonl";

/// `history --json` with further options.
fn runs(node: &Node, options: &[&str]) -> Vec<Value> {
    let mut command = node.command(["history", "--json"]);
    command.args(options);
    let ran = Ran::of(command);
    assert_eq!(ran.code, 0, "{ran:?}");
    let told: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(told["schema"], 1);
    told["runs"].as_array().unwrap().clone()
}

/// The name of the last run.
fn last(node: &Node) -> String {
    runs(node, &[]).last().unwrap()["run"].as_str().unwrap().to_owned()
}

/// Repairs a guest; the name of the run.
fn repaired(node: &Node, vmid: u32) -> String {
    let ran = node.run(["repair", &vmid.to_string(), "--yes"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    last(node)
}

fn undo(node: &Node, run: &str) -> Ran {
    node.run(["undo", run, "--yes"])
}

/// Nothing of the object map of the image or its snapshot is flagged.
fn maps_are_valid(node: &Node, spec: &str) -> bool {
    [spec.to_owned(), format!("{spec}@a")].iter().all(|place| node.flags(place).is_empty())
}

#[test]
fn a_repair_is_told_undone_and_the_undoing_undone() {
    let (node, vmid, spec) = Node::with_vm("layering,exclusive-lock,journaling");
    node.lab.rbd(&["snap", "create", &format!("{spec}@a"), "--no-progress"]);
    let before = node.features(&spec);
    let first = repaired(&node, vmid);
    node.assert_healthy(vmid);
    let repaired = node.features(&spec);

    let told = runs(&node, &["--guest", &vmid.to_string(), "--image", &spec, "--since", "1h"]);
    let [run] = told.as_slice() else { panic!("{told:#?}") };
    assert_eq!(run["guest"], vmid);
    let changes: Vec<_> = run["changes"].as_array().unwrap().iter().map(|c| c["change"].clone()).collect();
    assert_eq!(
        changes,
        [
            json!({ "change": "disable-features", "features": ["journaling"] }),
            json!({ "change": "enable-features", "features": ["object-map", "fast-diff"] }),
            json!({ "change": "rebuild-object-map", "snapshot": null }),
            json!({ "change": "rebuild-object-map", "snapshot": "a" }),
        ]
    );
    let change = &run["changes"][0];
    assert_eq!((&change["image"], &change["before"]["features"]), (&json!(spec), &json!(before)));
    assert_eq!((&change["result"], &change["interrupted"]), (&json!({ "result": "done" }), &json!(false)));
    assert!(change["duration_ms"].is_u64() && change["at"].is_u64() && change["command"].is_string());
    assert_eq!(runs(&node, &["--since", "2030-01-01"]), Vec::<Value>::new());
    let text = node.run(["history"]).stdout;
    assert!(text.starts_with(&first) && text.contains(&format!("\n  done: disable journaling on {spec}")));

    let plan = node.run(["undo", &first, "--dry-run"]);
    assert_eq!((plan.code, node.features(&spec)), (0, repaired.clone()), "{plan:?}");
    assert!(plan.stdout.contains("feature enable") && plan.stdout.contains(" journaling\n"), "{plan:?}");
    let unasked = node.run(["undo", &first]);
    assert_eq!((unasked.code, node.features(&spec)), (2, repaired.clone()), "{unasked:?}");

    let ran = undo(&node, &first);
    assert_eq!((ran.code, node.features(&spec)), (0, before), "{ran:?}");
    assert!(ran.stdout.contains("would change it again"), "{ran:?}");
    let second = last(&node);
    assert!(node.run(["history"]).stdout.contains(&format!("undo of {first}")));
    let again = undo(&node, &first);
    assert!(again.code == 0 && last(&node) == second, "there is nothing left to undo: {again:?}");

    let ran = undo(&node, &second);
    assert_eq!((ran.code, node.features(&spec)), (0, repaired), "{ran:?}");
    assert!(maps_are_valid(&node, &spec), "enabled again, the object map is rebuilt");
}

/// Safety rule 1.
#[test]
fn nothing_is_put_back_under_a_live_writer() {
    let (node, vmid, spec) = Node::with_vm("layering,exclusive-lock,journaling");
    let run = repaired(&node, vmid);
    let (features, journal) = (node.features(&spec), node.journal());
    let writer = node.lab.writer(&spec);
    let ran = undo(&node, &run);
    assert_eq!((ran.code, node.features(&spec), node.journal()), (4, features, journal), "{ran:?}");
    assert!(ran.stdout.contains("has it open") && writer.alive(), "{ran:?}");
    writer.kill();
    let seen = || node.lab.rbd_json(&["status", &spec])["watchers"] == json!([]);
    wait_until("the dead writer's watch is dropped", Duration::from_secs(60), seen);
    let ran = undo(&node, &run);
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(ran.stdout.contains("its lock was left behind"), "{ran:?}");
}

#[test]
fn what_has_been_changed_since_is_left_alone() {
    let (node, vmid, spec) = Node::with_vm("layering");
    let other = format!("rbd/vm-{vmid}-disk-1");
    node.image(&other, "layering");
    node.append(
        &format!("/etc/pve/nodes/pve1/qemu-server/{vmid}.conf"),
        &format!("scsi1: ceph-krbd:vm-{vmid}-disk-1\n"),
    );
    let run = repaired(&node, vmid);
    node.lab.rbd(&["feature", "disable", &spec, "object-map,fast-diff"]);
    let changed = node.features(&spec);
    let ran = undo(&node, &run);
    assert_eq!((ran.code, node.features(&spec)), (4, changed), "{ran:?}");
    assert!(
        ran.stdout
            .contains(&format!("{spec}: REFUSED: changed since that run: object-map, fast-diff turned off")),
        "{ran:?}"
    );
    assert_eq!(node.features(&other), ["layering"], "the other image is put back: {ran:?}");
}

#[test]
fn a_later_run_is_to_be_undone_first() {
    let (node, vmid, spec) = Node::with_vm("layering");
    let first = repaired(&node, vmid);
    // PVE turns other features off on an older kernel, which most likely takes no key that Ceph 20 makes.
    node.write("/proc/sys/kernel/osrelease", "5.2.0-1-pve\n");
    node.write("/etc/rbd-preflight/config.yaml", "ignore: [key-type-unsupported]\n");
    let second = repaired(&node, vmid);
    assert_eq!(node.features(&spec), ["layering", "exclusive-lock"]);
    let ran = undo(&node, &first);
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(ran.stdout.contains(&format!("run {second} changed it later: undo that one first")), "{ran:?}");
    for run in [&second, &first] {
        assert_eq!(undo(&node, run).code, 0);
    }
    assert_eq!(node.features(&spec), ["layering"]);
}

#[test]
fn deep_flatten_is_said_to_be_gone_for_good() {
    let (node, vmid, spec) = Node::with_vm(&format!("{DEFAULT},journaling"));
    node.write("/sys/bus/rbd/supported_features", "0x19f\n");
    let run = repaired(&node, vmid);
    assert!(!node.features(&spec).contains(&"deep-flatten".to_owned()));
    let ran = undo(&node, &run);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stdout.contains("deep-flatten cannot come back"), "{ran:?}");
    assert_eq!(node.features(&spec).join(","), "layering,exclusive-lock,object-map,fast-diff,journaling");
}

/// The journal as it stands when the process was killed in the middle of its last change.
fn cut_off(node: &Node) {
    let journal = std::fs::read_to_string(node.path(JOURNAL)).unwrap();
    let lines: Vec<&str> = journal.lines().collect();
    node.write(JOURNAL, &format!("{}\n{{\"schema\":1,\"ru", lines[..lines.len() - 1].join("\n")));
}

#[test]
fn an_interrupted_change_is_told_and_judged_by_the_image() {
    for made in [true, false] {
        let (node, vmid, spec) = Node::with_vm(&format!("{DEFAULT},journaling"));
        let before = node.features(&spec);
        let run = repaired(&node, vmid);
        cut_off(&node);
        if !made {
            node.lab.rbd(&["feature", "enable", &spec, "journaling"]);
        }
        let [told] = runs(&node, &[]).try_into().unwrap();
        let change = &told["changes"][0];
        assert_eq!((&change["interrupted"], &change["result"]), (&json!(true), &Value::Null));
        let text = node.run(["history"]);
        assert!(text.stdout.contains("INTERRUPTED, made or not: disable journaling"), "{text:?}");
        assert!(text.stderr.contains("is not a whole record"), "{text:?}");
        let ran = undo(&node, &run);
        assert_eq!((ran.code, node.features(&spec)), (0, before), "{ran:?}");
        assert_eq!(runs(&node, &[]).len(), if made { 2 } else { 1 }, "{ran:?}");
    }
}

/// Safety rule 5.
#[test]
fn guests_that_are_locked_or_elsewhere_are_left_alone() {
    let (node, vmid, spec) = Node::with_vm("layering");
    let run = repaired(&node, vmid);
    let features = node.features(&spec);
    let config = format!("/etc/pve/nodes/pve1/qemu-server/{vmid}.conf");
    let plain = std::fs::read_to_string(node.path(&config)).unwrap();
    node.append(&config, "lock: snapshot\n");
    let ran = undo(&node, &run);
    assert_eq!((ran.code, ran.stdout.contains("locked (snapshot)")), (4, true), "{ran:?}");
    node.write(&config, &plain);
    std::fs::rename(node.path(&config), node.path(&config.replace("pve1", "pve2"))).unwrap();
    let ran = undo(&node, &run);
    assert_eq!((ran.code, ran.stdout.contains("belongs to node pve2")), (4, true), "{ran:?}");
    assert_eq!(node.features(&spec), features);
}

#[test]
fn wrong_words_are_usage_errors() {
    let node = Node::new();
    for bad in ["yesterday", "2h ago", "2026-13-01", ""] {
        assert_eq!(node.run(["history", "--since", bad]).code, 2, "{bad}");
    }
    assert_eq!(node.run(["undo", "20261123T050000.000Z-1-0", "--yes"]).code, 1);
    let none = node.run(["history"]);
    assert_eq!((none.code, none.stdout.as_str()), (0, "no change was ever recorded\n"));
}

/// Safety rule 8.
#[test]
fn an_undoing_that_was_cut_off_is_finished() {
    let (node, vmid, spec) = Node::with_vm("layering,exclusive-lock,journaling");
    let before = node.features(&spec);
    let run = repaired(&node, vmid);
    // So far it came: what has to go is gone, and journaling is not back yet.
    node.lab.rbd(&["feature", "disable", &spec, "object-map,fast-diff"]);
    let ran = undo(&node, &run);
    assert_eq!((ran.code, node.features(&spec)), (0, before), "{ran:?}");

    let (node, vmid, spec) = Node::with_vm("layering");
    node.lab.rbd(&["snap", "create", &format!("{spec}@a"), "--no-progress"]);
    let run = repaired(&node, vmid);
    assert_eq!(undo(&node, &run).code, 0);
    let undoing = last(&node);
    // So far its undoing came: the features are back, and the object map is not rebuilt yet.
    node.lab.rbd(&["feature", "enable", &spec, "exclusive-lock,object-map,fast-diff"]);
    assert!(!maps_are_valid(&node, &spec));
    let ran = undo(&node, &undoing);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(maps_are_valid(&node, &spec), "{ran:?}");
}
