//! A real manager that flattens a guest's disk: it is no second writer, and a writer beside it still is one.

use crate::common::node::{Node, codes, finding, new_vmid};
use crate::common::{Lab, wait_until};
use crate::examples::faults;
use serde_json::Value;
use std::time::Duration;

/// The manager starts its tasks when it comes to it, and the machine may be busy.
const LONG: Duration = Duration::from_secs(240);

/// The addresses of those who have an image open.
fn watchers(node: &Node, spec: &str) -> Vec<String> {
    let status = node.lab.rbd_json(&["status", spec]);
    let all = status["watchers"].as_array().unwrap().iter();
    all.map(|watcher| watcher["address"].as_str().unwrap().to_owned()).collect()
}

fn flattens(node: &Node, spec: &str) -> bool {
    let tasks: Value = serde_json::from_str(&node.lab.ceph(&["rbd", "task", "list"])).unwrap();
    let of_it = |task: &Value| task["message"].as_str().unwrap().ends_with(spec);
    tasks.as_array().unwrap().iter().any(of_it)
}

#[test]
fn a_disk_that_the_manager_flattens_is_told_and_starts_and_a_writer_beside_it_is_refused() {
    let node = Node::on(Lab::own(&["--watch-timeout", "10", "--manager"]));
    let vmid = new_vmid();
    let (base, spec) = (format!("rbd/base-{vmid}-disk-0"), format!("rbd/vm-{vmid}-disk-0"));
    // Four million objects, and each is asked for: this is not over before the test is.
    let features = ["--image-feature", "layering,exclusive-lock"];
    node.lab.rbd(&[&["create", &base, "--size", "16T"], &features[..]].concat());
    node.lab.rbd(&["snap", "create", &format!("{base}@s"), "--no-progress"]);
    let clone = ["clone", "--rbd-default-clone-format", "2", &format!("{base}@s"), &spec];
    node.lab.rbd(&[&clone[..], &features].concat());
    let config = |storage: &str| format!("scsi0: {storage}:base-{vmid}-disk-0/vm-{vmid}-disk-0\n");
    node.vm(vmid, &config("ceph-librbd"));
    node.write("/etc/rbd-preflight/config.yaml", "watcher_grace: 2\n");
    let start = || node.run(["hook", &vmid.to_string(), "pre-start"]);
    node.assert_healthy(vmid);

    let dump = || node.lab.ceph(&["mgr", "dump", "--format", "json"]);
    wait_until("the monitors know the manager's clients", LONG, || {
        dump().replace(char::is_whitespace, "").contains("\"name\":\"rbd_support\",\"addrvec\"")
    });
    node.lab.ceph(&["rbd", "task", "add", "flatten", &spec]);
    wait_until("the manager has the image open", LONG, || !watchers(&node, &spec).is_empty());
    let address = watchers(&node, &spec).remove(0);
    let report = node.check(vmid);
    let told = finding(&report, "manager-task");
    let detail = told["detail"].as_str().unwrap();
    assert_eq!(
        (&told["severity"], &report["verdict"]),
        (&Value::from("note"), &Value::from("ready")),
        "{report:#}"
    );
    assert!(detail.contains(&address) && detail.ends_with(&format!("Flattening image {spec}")), "{detail}");
    let ran = start();
    assert!(ran.code == 0 && ran.stderr.contains("continuing with the start"), "{ran:?}");

    let file = node.path("/survey.json");
    node.run(["check", &vmid.to_string(), "--save-survey", file.to_str().unwrap()]);
    let survey: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert!(survey["disks"][0]["manager"]["task"]["known"].is_string(), "{survey:#}");
    let wrong = faults("docs/survey.schema.json", "", &survey);
    assert!(wrong.is_empty(), "not a survey:\n{wrong}");

    // A user that may not ask the monitors knows by the pool that it may be the manager, and no more.
    node.storage("vms", "pool rbd; username vms");
    std::fs::copy(node.lab.keyring("vms"), node.path("/etc/pve/priv/ceph/vms.keyring")).unwrap();
    let admin = node.path("/etc/pve/priv/ceph.client.admin.keyring");
    std::fs::remove_file(&admin).unwrap();
    node.vm(vmid, &config("vms"));
    let report = node.check(vmid);
    let told = finding(&report, "in-use-unknown")["detail"].as_str().unwrap();
    assert!(
        told.contains("mgr dump")
            && told.contains("(EACCES, Permission denied)")
            && report["verdict"] == "unknown",
        "{report:#}"
    );
    // With client.admin's keyring on the node it is known.
    std::fs::copy(node.lab.keyring("admin"), &admin).unwrap();
    let report = node.check(vmid);
    assert!(
        codes(&report).contains(&"manager-task".to_owned()) && report["verdict"] == "ready",
        "{report:#}"
    );
    node.vm(vmid, &config("ceph-librbd"));

    let writer = node.lab.writer(&spec);
    let other = watchers(&node, &spec).into_iter().find(|watcher| *watcher != address).unwrap();
    let ran = start();
    assert!(ran.code == 4 && ran.stderr.contains("in-use-elsewhere"), "{ran:?}");
    let seen = ran.stderr.lines().find(|line| line.contains("seen:") && line.contains(&other));
    assert!(seen.is_some_and(|seen| !seen.contains(&address)), "{ran:?}");
    assert!(writer.alive() && flattens(&node, &spec), "it was looked at while both were at it");
}
