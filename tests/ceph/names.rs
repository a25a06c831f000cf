//! An image is its cluster, its place and its id: what has its name elsewhere, or had it before, is another one. On a real
//! Ceph.

use crate::common::Lab;
use crate::common::node::{DEFAULT, Node, Ran, codes, finding, new_vmid};
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

/// The number of a guest is not the guest: it may have been destroyed, and the disk given to a new one of its number.
#[test]
fn another_guest_of_the_number_is_not_the_one_that_a_run_was_for() {
    let (node, vmid, spec) = Node::with_vm("layering");
    let config = format!("/etc/pve/nodes/pve1/qemu-server/{vmid}.conf");
    let plain = std::fs::read_to_string(node.path(&config)).unwrap();
    let of = |last: char| {
        node.write(&config, &format!("{plain}smbios1: uuid=4ed1cbc9-0000-4000-8000-00000000000{last}\n"))
    };
    of('a');
    assert_eq!(repair(&node, vmid).code, 0);
    let (run, repaired) = (last(&node), node.features(&spec));
    of('b');
    let ran = undo(&node, &run);
    assert_eq!((ran.code, node.features(&spec)), (4, repaired), "{ran:?}");
    assert!(ran.stdout.contains(&format!("guest {vmid} is another one by now")), "{ran:?}");
    of('a');
    let ran = undo(&node, &run);
    assert_eq!((ran.code, node.features(&spec)), (0, vec!["layering".to_owned()]), "{ran:?}");
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

/// Format 1 has no id, and no features that it could be given: nothing is tried.
#[test]
fn an_image_of_format_1_is_left_as_it_is() {
    let (node, vmid) = (Node::new(), new_vmid());
    let image = format!("vm-{vmid}-disk-0");
    let mut create = node.lab.command("rbd");
    create.env("RBD_FORCE_ALLOW_V1", "1").args(["create", "--image-format", "1", "--size", "8M", &image]);
    let output = create.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    node.vm(vmid, &format!("scsi0: ceph-krbd:{image}\n"));
    let report = node.check(vmid);
    assert_eq!(report["disks"][0]["facts"]["format"], 1, "{report:#}");
    assert!(!codes(&report).contains(&"lock-features-missing".to_owned()), "{report:#}");
    let ran = repair(&node, vmid);
    assert_eq!((ran.code, node.journal().len()), (0, 0), "{ran:?}");
}

/// The codes of what is told besides the state of the lab's cluster.
fn stoppers(report: &Value) -> Vec<String> {
    codes(report).into_iter().filter(|code| code != "cluster-health").collect()
}

/// In the pool, and in a namespace: what was deleted last comes first, and the command that is told brings it back.
#[test]
fn an_image_in_the_trash_is_told_with_what_brings_it_back() {
    for (storage, place) in [("ceph-krbd", "rbd"), ("ceph-ns", "pool2/tenant")] {
        let (node, vmid, spec) = Node::with_vm_on(storage, place, DEFAULT);
        let first = id(&node.lab, &spec);
        node.lab.rbd(&["trash", "mv", &spec]);
        std::thread::sleep(std::time::Duration::from_millis(1100));
        node.image(&spec, DEFAULT);
        let last = id(&node.lab, &spec);
        node.lab.rbd(&["trash", "mv", &spec, "--expires-at", "2037-01-02 03:04:05"]);
        let report = node.check(vmid);
        assert_eq!(stoppers(&report), ["image-in-trash"], "{report:#}");
        let found = finding(&report, "image-in-trash");
        let detail = found["detail"].as_str().unwrap();
        let (a, b) = (detail.find(&last).unwrap(), detail.find(&first).unwrap());
        assert!(
            a < b && detail.contains("kept until 2037-01-0") && detail.contains("purged at any time"),
            "{detail}"
        );
        assert_eq!(report["disks"][0]["state"], "image-in-trash");
        let ran = node.run(["hook", &vmid.to_string(), "pre-start"]);
        assert!(ran.code == 3 && ran.stderr.contains(&format!("trash restore {last}")), "{ran:?}");

        let command = found["remedy"]["commands"][0].as_str().unwrap();
        let ran = std::process::Command::new("/bin/sh").args(["-c", command]).output().unwrap();
        assert!(ran.status.success(), "{command}: {ran:?}");
        assert_eq!(id(&node.lab, &spec), last);
        assert_eq!(node.run(["check", &vmid.to_string()]).code, 0);
    }
}

/// `ceph osd blocklist add HOST`, as fence agents do: every client of this node is shut out.
#[test]
fn a_node_that_is_on_the_blocklist_as_a_whole_is_told_so() {
    let node = Node::on(Lab::own(&[]));
    let vmid = new_vmid();
    node.image(&format!("rbd/vm-{vmid}-disk-0"), DEFAULT);
    node.vm(vmid, &format!("scsi0: ceph-krbd:vm-{vmid}-disk-0\n"));
    assert_eq!(node.run(["check", &vmid.to_string()]).code, 0);
    node.lab.ceph(&["osd", "blocklist", "add", "127.0.0.1", "600"]);
    let report = node.check(vmid);
    assert_eq!(stoppers(&report), ["node-blocklisted"], "{report:#}");
    let found = finding(&report, "node-blocklisted");
    let detail = found["detail"].as_str().unwrap();
    assert!(detail.starts_with("127.0.0.1:0/0 until 20"), "{detail}");
    let ran = node.run(["hook", &vmid.to_string(), "pre-start"]);
    assert!(
        ran.code == 3 && ran.stderr.contains("127.0.0.1:0/0 until 20") && !ran.stderr.contains("(108)"),
        "{ran:?}"
    );
    // What QEMU and the kernel would get.
    let rbd = node.lab.try_rbd(&["info", &format!("rbd/vm-{vmid}-disk-0")]);
    let said = String::from_utf8_lossy(&rbd.stderr).into_owned();
    let image = format!("vm-{vmid}-disk-0");
    let expected =
        format!("error opening image {image}: (108) Cannot send after transport endpoint shutdown");
    assert!(said.contains(&expected), "{said}");
    node.lab.ceph(&["osd", "blocklist", "rm", "127.0.0.1:0/0"]);
    crate::common::wait_until("the node is let in again", std::time::Duration::from_secs(20), || {
        node.run(["check", &vmid.to_string()]).code == 0
    });
}
