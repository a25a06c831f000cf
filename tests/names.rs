//! An image is its cluster, its place and its id: what has its name elsewhere, or had it before, is another one. On a real
//! Ceph.
#![allow(clippy::unwrap_used)] // a helper that fails must fail the test

mod common;

use common::Lab;
use common::node::{DEFAULT, Node, Ran, codes, finding, new_vmid};
use serde_json::{Value, json};

const JOURNAL: &str = "/var/lib/rbd-preflight/journal.jsonl";

/// Repairs a guest; what came of it.
fn repair(node: &Node, vmid: u32) -> Ran {
    node.run(["repair", &vmid.to_string(), "--yes"])
}

/// The name of the last run.
fn last(node: &Node) -> String {
    node.journal().last().unwrap()["run"].as_str().unwrap().to_owned()
}

fn undo(node: &Node, run: &str) -> Ran {
    node.run(["undo", run, "--yes"])
}

/// The id of an image.
fn id(lab: &Lab, spec: &str) -> String {
    lab.rbd_json(&["info", spec])["id"].as_str().unwrap().to_owned()
}

/// Another cluster, as the storage `other` of a node: krbd, its pool `rbd`, by a user that may only read.
fn second_cluster(node: &Node) -> Lab {
    let other = Lab::own(&[]);
    let env = std::fs::read_to_string(other.directory().join("env")).unwrap();
    let monhost = env.lines().find_map(|line| line.strip_prefix("export MONHOST=")).unwrap();
    let monhost = monhost.trim_matches('\'');
    node.storage("other", &format!("krbd 1; pool rbd; monhost {monhost}; username reader"));
    std::fs::copy(other.keyring("reader"), node.path("/etc/pve/priv/ceph/other.keyring")).unwrap();
    other
}

/// PVE bug 3969. The change of the second one fails, and the first one's features say nothing of it.
#[test]
fn one_name_in_two_clusters_is_two_images() {
    let node = Node::new();
    let other = second_cluster(&node);
    let (vmid, neighbour) = (new_vmid(), new_vmid());
    let image = format!("vm-{vmid}-disk-0");
    let spec = format!("rbd/{image}");
    node.image(&spec, DEFAULT);
    other.rbd(&["create", &spec, "--size", "8M", "--image-feature", "layering"]);
    node.vm(vmid, &format!("scsi0: ceph-krbd:{image}\nscsi1: other:{image}\n"));
    let report = node.check(vmid);
    assert!(!codes(&report).contains(&"image-shared".to_owned()), "{report:#}");
    assert_eq!(finding(&report, "lock-features-missing")["disk"], "scsi1");

    let ran = repair(&node, vmid);
    assert!(ran.stdout.contains("FAILED") && !ran.stdout.contains("done:"), "{ran:?}");
    let records = node.journal();
    let [intent, outcome] = records.as_slice() else { panic!("{records:#?}") };
    assert_eq!(intent["before"]["features"], json!(["layering"]), "{records:#?}");
    assert_eq!(intent["action"]["target"]["fsid"], other.ceph(&["fsid"]).trim());
    assert_eq!(intent["action"]["target"]["id"], id(&other, &spec));
    assert_eq!(outcome["result"]["result"], "failed", "{records:#?}");

    // Another guest that names it in one of the clusters shares that one.
    node.vm(neighbour, &format!("scsi0: other:{image}\n"));
    let report = node.check(vmid);
    let shared = finding(&report, "image-shared");
    assert_eq!(shared["disk"], "scsi1", "{report:#}");
    assert!(shared["detail"].as_str().unwrap().contains(&neighbour.to_string()), "{shared}");
    let report = node.check(neighbour);
    assert_eq!(finding(&report, "image-shared")["detail"], format!("also named by guest {vmid}"));
}

/// `history` tells which image it was.
fn assert_told(node: &Node, run: &str, id: &str) {
    let told: Value = serde_json::from_str(&node.run(["history", "--json"]).stdout).unwrap();
    let runs = told["runs"].as_array().unwrap();
    let told = runs.iter().find(|told| told["run"] == run).unwrap();
    assert_eq!(told["changes"][0]["image_id"], id, "{told:#}");
    assert_eq!(told["changes"][0]["fsid"], node.lab.ceph(&["fsid"]).trim());
}

#[test]
fn an_image_that_was_made_anew_is_not_what_a_run_changed() {
    let (node, vmid, spec) = Node::with_vm("layering");
    assert_eq!(repair(&node, vmid).code, 0);
    let run = last(&node);
    let old = id(&node.lab, &spec);
    assert_told(&node, &run, &old);
    node.lab.rbd(&["rm", "--no-progress", &spec]);
    node.image(&spec, DEFAULT);
    let before = node.features(&spec);
    let (ran, journal) = (undo(&node, &run), node.journal().len());
    assert_eq!((ran.code, node.features(&spec)), (4, before), "{ran:?}");
    let words = format!("it is another image by now: that run changed the one of the id {old}");
    assert!(ran.stdout.contains(&words) && ran.stdout.contains(&id(&node.lab, &spec)), "{ran:?}");
    assert_eq!(node.journal().len(), journal);
}

#[test]
fn an_image_that_was_renamed_is_still_the_one() {
    let (node, vmid, spec) = Node::with_vm("layering");
    assert_eq!(repair(&node, vmid).code, 0);
    let run = last(&node);
    let renamed = format!("rbd/vm-{vmid}-disk-7");
    node.lab.rbd(&["rename", &spec, &renamed]);
    let ran = undo(&node, &run);
    assert!(ran.code == 1 && ran.stdout.contains("there is no such image any more"), "{ran:?}");
    node.vm(vmid, &format!("scsi0: ceph-krbd:vm-{vmid}-disk-7\n"));
    // One that has its name now is left alone.
    node.image(&spec, DEFAULT);
    let ran = undo(&node, &run);
    assert_eq!((ran.code, node.features(&renamed)), (0, vec!["layering".to_owned()]), "{ran:?}");
    assert_eq!(node.features(&spec), DEFAULT.split(',').collect::<Vec<_>>());
}

#[test]
fn what_an_older_version_wrote_does_not_say_which_image_it_was() {
    let (node, vmid, spec) = Node::with_vm("layering");
    assert_eq!(repair(&node, vmid).code, 0);
    let run = last(&node);
    let id = format!(",\"id\":\"{}\"", id(&node.lab, &spec));
    let journal = std::fs::read_to_string(node.path(JOURNAL)).unwrap();
    assert!(journal.contains(&id), "{journal}");
    node.write(JOURNAL, &journal.replace(&id, ""));
    let before = node.features(&spec);
    let ran = undo(&node, &run);
    assert_eq!((ran.code, node.features(&spec)), (4, before), "{ran:?}");
    assert!(ran.stdout.contains("an older version wrote it"), "{ran:?}");
}
