//! Safety rule 5: a change is made only under quorum that was read after the lock was taken. Here it is lost while a lock is
//! waited for, in every way that leads to a change.

use crate::common::node::{Node, Ran, new_vmid};
use crate::common::wait_until;
use rbd_preflight::act::run_lock::{Holder, Name, RunLock};
use rbd_preflight::rbd::identity::ImageIdentity;
use rbd_preflight::sys::root::Root;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const FAKES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fakes");
/// On a machine that is slow and busy. The lock is waited for for 20 s.
const SOON: Duration = Duration::from_secs(60);

/// A node with a guest that starts at boot, and its image, which is to be repaired.
fn node() -> (Node, u32, String) {
    let (node, vmid) = (Node::new(), new_vmid());
    let spec = format!("rbd/vm-{vmid}-disk-0");
    node.image(&spec, "layering,exclusive-lock,journaling");
    node.vm(vmid, &format!("onboot: 1\nscsi0: ceph-krbd:vm-{vmid}-disk-0,size=8M\n"));
    (node, vmid, spec)
}

fn set_quorum(node: &Node, quorate: u32) {
    let members = node.path("/etc/pve/.members");
    let text = std::fs::read_to_string(&members).unwrap();
    let text = text.replace(&format!("\"quorate\": {}", 1 - quorate), &format!("\"quorate\": {quorate}"));
    assert!(text.contains(&format!("\"quorate\": {quorate}")), "{text}");
    std::fs::write(members, text).unwrap();
}

/// The process has the file open: it has come to this lock, and waits for it.
fn has_open(child: &Child, path: &Path) -> bool {
    let files = std::fs::read_dir(format!("/proc/{}/fd", child.id())).into_iter().flatten().flatten();
    files.filter_map(|file| std::fs::read_link(file.path()).ok()).any(|file| file == path)
}

/// The file of the lock that this process holds: its holder stands in it.
fn lock_file(node: &Node) -> PathBuf {
    let own = format!("\"pid\":{}", std::process::id());
    let files = std::fs::read_dir(node.path("/run/rbd-preflight")).unwrap().map(|file| file.unwrap().path());
    let is_own = |file: &PathBuf| std::fs::read_to_string(file).is_ok_and(|text| text.contains(&own));
    files.filter(|file| file.is_file()).find(is_own).unwrap()
}

fn spawned(node: &Node, arguments: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rbd-preflight"));
    command.args(arguments).env("RBD_PREFLIGHT_ROOT", node.path("/")).env_remove("PVE_MIGRATED_FROM");
    command.env("PATH", format!("{FAKES}:{}", std::env::var("PATH").unwrap()));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn image_lock(node: &Node, spec: &str) -> RunLock {
    let fsid = node.lab.ceph(&["fsid"]).trim().to_owned();
    let info = node.lab.rbd_json(&["info", spec]);
    let (id, name) = (info["id"].as_str(), info["name"].as_str().unwrap());
    let image = ImageIdentity { fsid: &fsid, pool: "rbd", namespace: None, name, id };
    let holder = Holder { pid: std::process::id(), vmid: None };
    RunLock::acquire(&Root::new(node.path("/")), &Name::image(image)[0], holder, Duration::ZERO).unwrap()
}

#[test]
fn quorum_that_is_lost_while_an_images_lock_is_waited_for_changes_nothing() {
    let (node, vmid, spec) = node();
    let id = vmid.to_string();
    let state = || (node.features(&spec), node.journal().len());
    let lost_meanwhile = |arguments: &[&str]| {
        let before = state();
        let lock = image_lock(&node, &spec);
        let file = lock_file(&node);
        let child = spawned(&node, arguments);
        wait_until(&format!("{arguments:?} waits for the lock"), SOON, || has_open(&child, &file));
        set_quorum(&node, 0);
        drop(lock);
        let ended = child.wait_with_output().unwrap();
        set_quorum(&node, 1);
        assert_eq!(state(), before, "{arguments:?}: {ended:?}");
        let said = String::from_utf8_lossy(&[ended.stdout, ended.stderr].concat()).into_owned();
        assert!(said.contains("the cluster has no quorum"), "{arguments:?}: {said}");
    };
    let boot = ["repair", "--all", "--onboot", "--wait-quorum", "--yes", "--deadline", "600"];
    for arguments in [
        &["repair", &id, "--yes"][..],
        &["hook", &id, "pre-start"],
        &["start", &id, "--yes", "--tries", "1"],
        &boot,
    ] {
        lost_meanwhile(arguments);
    }
    let ran = node.run(["repair", &id, "--yes"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let run = node.journal()[0]["run"].as_str().unwrap().to_owned();
    lost_meanwhile(&["undo", &run, "--yes"]);
}

#[test]
fn quorum_that_is_lost_while_the_lock_of_ceph_conf_is_waited_for_changes_nothing() {
    let node = Node::new();
    let conf = || std::fs::read_to_string(node.path("/etc/pve/ceph.conf")).unwrap();
    let (before, lock) = (conf(), node.path("/etc/pve/priv/lock/file-ceph_conf"));
    std::fs::create_dir_all(&lock).unwrap();
    let child = spawned(&node, &["defaults", "--set", "--yes"]);
    // Each try that fails asks pmxcfs to give up the lock.
    let asked = || {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(&lock).is_ok_and(|lock| lock.mtime() == 0)
    };
    wait_until("it waits for the lock", SOON, asked);
    set_quorum(&node, 0);
    std::fs::remove_dir(&lock).unwrap();
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(4), "{ended:?}");
    assert_eq!(conf(), before);
    let failed = |record: &Value| record["result"]["result"] == "failed";
    assert!(node.journal().iter().any(failed), "{:?}", node.journal());
    set_quorum(&node, 1);
    assert_eq!(Ran::of(node.command(["defaults", "--set", "--yes"])).code, 0);
}
