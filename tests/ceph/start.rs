//! `start` on stand-ins for Proxmox VE's programs (`tests/fakes`) and a real Ceph: what it makes of a start that fails.

use crate::common::executable;
use crate::common::node::{DEFAULT, Node, Ran, new_vmid};
use serde_json::{Value, json};

/// Each disk of the guest, and what it is given as: name, features.
const JOURNALED: &str = "layering,exclusive-lock,journaling";

/// `start VMID --yes --json`, with the stand-ins first on the path.
fn start(node: &Node, vmid: u32, tries: &str) -> (Ran, Value) {
    let fakes = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fakes");
    let mut command = node.command(["start", &vmid.to_string(), "--yes", "--json", "--tries", tries]);
    command.env("PATH", format!("{fakes}:{}", std::env::var("PATH").unwrap()));
    command.env("RBD_PREFLIGHT", env!("CARGO_BIN_EXE_rbd-preflight"));
    let ran = Ran::of(command);
    let told = serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"));
    (ran, told)
}

/// The guest's start fails so often, after its hook. `printed` comes as QEMU's output does, `error` as the task's error.
fn fails(node: &Node, vmid: u32, often: u32, printed: &str, error: &str) {
    node.write(&format!("/fakes.fail/{vmid}"), &format!("{often}\n{printed}---\n{error}\n"));
}

/// The image as `rbd` shows it.
fn state(node: &Node, spec: &str) -> (Value, Value) {
    let mut info = node.lab.rbd_json(&["info", spec]);
    info["access_timestamp"] = Value::Null;
    (info, node.lab.rbd_json(&["lock", "ls", spec]))
}

fn stop(node: &Node, vmid: u32) {
    let pid = node.path(&format!("/var/run/qemu-server/{vmid}.pid"));
    let pid = std::fs::read_to_string(pid).unwrap();
    std::process::Command::new("kill").args(["-KILL", pid.trim()]).status().unwrap();
}

/// Seen on a real node: three changes, and the same failure.
#[test]
fn a_failure_that_has_nothing_to_do_with_disks_changes_none() {
    for error in ["MAX 2 vcpus allowed per VM on this node", "something that nobody has ever seen"] {
        let (node, vmid, spec) = Node::with_vm_on("ceph-librbd", "rbd", DEFAULT);
        let before = state(&node, &spec);
        fails(&node, vmid, 9, "", error);
        let (ran, told) = start(&node, vmid, "3");
        assert_eq!(ran.code, 3, "{ran:?}");
        let rungs: Vec<&Value> = told["tries"].as_array().unwrap().iter().map(|t| &t["rung"]).collect();
        assert_eq!(rungs, ["repair", "repair-again", "repair-again"], "{told:#}");
        for attempt in told["tries"].as_array().unwrap() {
            assert_eq!(attempt["actions"], json!([]), "{told:#}");
            assert!(attempt["failure"].as_str().unwrap().contains(error), "{told:#}");
        }
        assert_eq!(state(&node, &spec), before);
        assert!(node.journal().is_empty(), "{:?}", node.journal());
    }
}

#[test]
fn a_failure_that_a_disk_can_explain_resets_features_last() {
    let (node, vmid, spec) = Node::with_vm_on("ceph-librbd", "rbd", DEFAULT);
    node.assert_healthy(vmid);
    let printed =
        format!("kvm: -drive file=rbd:{spec}:conf=/etc/pve/ceph.conf,id=drive-scsi0: error opening\n");
    fails(&node, vmid, 2, &printed, "start failed: QEMU exited with code 1");
    let (ran, told) = start(&node, vmid, "3");
    assert_eq!((ran.code, &told["started"]), (0, &json!(true)), "{told:#}");
    let [first, second, last] = &told["tries"].as_array().unwrap()[..] else { panic!("{told:#}") };
    assert_eq!((&first["actions"], &second["actions"]), (&json!([]), &json!([])));
    assert_eq!((&first["by_a_disk"], &last["by_a_disk"]), (&json!(printed.trim()), &Value::Null));
    assert_eq!(last["rung"], "feature-reset");
    assert_eq!(last["actions"].as_array().unwrap().len(), 3, "{told:#}");
    assert_eq!(
        (node.features(&spec), node.flags(&spec)),
        (DEFAULT.split(',').map(str::to_owned).collect(), vec![])
    );
    stop(&node, vmid);
}

/// A start that is certain to be refused changes nothing, on no disk of the guest.
#[test]
fn what_is_sure_to_stop_the_start_is_looked_at_before_anything_is_changed() {
    let (node, vmid) = (Node::new(), new_vmid());
    let spec = format!("rbd/vm-{vmid}-disk-0");
    node.image(&spec, JOURNALED);
    node.storage("away", "disable; pool rbd; krbd 1");
    let before = state(&node, &spec);
    for other in [format!("ceph-krbd:vm-{vmid}-disk-1"), format!("away:vm-{vmid}-disk-1")] {
        node.vm(vmid, &format!("scsi0: ceph-krbd:vm-{vmid}-disk-0\nscsi1: {other}\n"));
        let (ran, told) = start(&node, vmid, "2");
        assert_eq!((ran.code, told["tries"].as_array().unwrap().len()), (3, 1), "{told:#}");
        let failure = told["tries"][0]["failure"].as_str().unwrap();
        assert!(failure.contains("scsi1: ") && !failure.contains("scsi0"), "{failure}");
        let ran = node.run(["hook", &vmid.to_string(), "pre-start"]);
        assert_eq!(ran.code, 3, "{ran:?}");
        assert!(!ran.stderr.contains("journaling-on-krbd"), "what would be repaired stops nothing: {ran:?}");
        assert_eq!(state(&node, &spec), before, "{ran:?}");
        assert!(node.journal().is_empty(), "{:?}", node.journal());
    }
    // By hand somebody has asked for it.
    let ran = node.run(["repair", &vmid.to_string(), "--yes"]);
    assert!(!node.features(&spec).contains(&"journaling".to_owned()), "{ran:?}");
}

/// What time fixes is waited for, and then the rest is repaired.
#[test]
fn the_hook_waits_for_one_disk_and_repairs_the_other_then() {
    let (node, vmid) = (Node::new(), new_vmid());
    let spec = |n: u32| format!("rbd/vm-{vmid}-disk-{n}");
    node.image(&spec(0), JOURNALED);
    node.image(&spec(1), DEFAULT);
    node.vm(vmid, &format!("scsi0: ceph-krbd:vm-{vmid}-disk-0\nscsi1: ceph-librbd:vm-{vmid}-disk-1\n"));
    let writer = node.lab.writer(&spec(1));
    node.write("/etc/rbd-preflight/config.yaml", "watcher_grace: 2\n");
    let hook = || node.run(["hook", &vmid.to_string(), "pre-start"]);
    let before = state(&node, &spec(0));
    let ran = hook();
    assert_eq!((ran.code, state(&node, &spec(0))), (4, before), "{ran:?}");
    assert!(ran.stderr.contains("looking again") && !ran.stderr.contains("journaling-on-krbd"), "{ran:?}");
    writer.stop();
    let ran = hook();
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(!node.features(&spec(0)).contains(&"journaling".to_owned()), "{ran:?}");
}

/// Both streams of a task come on `qm`'s stdout; its stderr says of our hook no more than how it ended.
#[test]
fn what_the_hook_said_is_told_with_the_failure_of_the_start() {
    let (node, vmid, _) = Node::with_vm_on("ceph-librbd", "rbd", DEFAULT);
    let snippet = node.path("/var/lib/vz/snippets/old.sh");
    executable(&snippet, "#!/bin/sh\necho why-it-stops >&2\nexit 3\n");
    let config = format!("/etc/pve/nodes/pve1/qemu-server/{vmid}.conf");
    node.append(&config, "hookscript: local:snippets/old.sh\n");
    let (ran, told) = start(&node, vmid, "1");
    assert_eq!(ran.code, 3, "{ran:?}");
    let failure = told["tries"][0]["failure"].as_str().unwrap();
    assert!(failure.contains("why-it-stops | hookscript error for "), "{failure}");
    assert!(failure.contains("on pre-start: command '"), "{failure}");
}

/// Nor where it is the hookscript that stops it: Proxmox VE's own check of it, or the one that ours calls besides.
#[test]
fn a_guest_whose_hookscript_is_gone_is_not_changed_for_a_start() {
    let (node, vmid, spec) = Node::with_vm(JOURNALED);
    let config = format!("/etc/pve/nodes/pve1/qemu-server/{vmid}.conf");
    let without = std::fs::read_to_string(node.path(&config)).unwrap();
    executable(&node.path("/var/lib/vz/snippets/rbd-preflight+local+gone.sh"), "#!/bin/sh\n");
    let before = state(&node, &spec);
    for script in ["gone.sh", "rbd-preflight+local+gone.sh"] {
        node.write(&config, &format!("onboot: 1\n{without}hookscript: local:snippets/{script}\n"));
        let fails = |arguments: &[&str], code: i32| {
            let mut command = node.command([]);
            let ran = Ran::of({
                command.args(arguments);
                command
            });
            assert_eq!(ran.code, code, "{arguments:?}: {ran:?}");
            let said = ran.stdout.clone() + &ran.stderr;
            assert!(
                said.contains("script 'local:snippets/gone.sh' does not exist"),
                "{arguments:?}: {ran:?}"
            );
            assert_eq!(state(&node, &spec), before, "{arguments:?}: {ran:?}");
        };
        let id = vmid.to_string();
        fails(&["start", &id, "--yes"], 3);
        fails(&["repair", "--all", "--onboot", "--yes"], 4);
        if script != "gone.sh" {
            fails(&["hook", "--earlier", "local:snippets/gone.sh", &id, "pre-start"], 1);
        }
    }
}

/// Without quorum `qm start` ends with 2, as `qm set` on a read-only pmxcfs does; other refusals with 255. What counts is what
/// it says, and no image is changed.
#[test]
fn without_quorum_the_words_of_qm_are_told_whatever_it_ends_with() {
    let (node, vmid, spec) = Node::with_vm(JOURNALED);
    let before = state(&node, &spec);
    let local = node.path("/etc/pve/local");
    std::fs::remove_file(&local).unwrap();
    std::fs::create_dir(&local).unwrap();
    std::fs::set_permissions(&local, std::os::unix::fs::PermissionsExt::from_mode(0o555)).unwrap();
    let fakes = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fakes");
    // The mode of a link cannot be changed; of a directory it can, and then the host's name is the node's.
    let in_its_name = |program: &str, arguments: &[&str]| {
        let mut command = std::process::Command::new("unshare");
        command.args(["--uts", "sh", "-c", r#"hostname pve1 && exec "$0" "$@""#, program]).args(arguments);
        command.env("RBD_PREFLIGHT_ROOT", node.path("/")).stdin(std::process::Stdio::null());
        command.env("PATH", format!("{fakes}:{}", std::env::var("PATH").unwrap()));
        Ran::of(command)
    };
    let id = vmid.to_string();
    let ran = in_its_name("qm", &["set", &id, "--delete", "hookscript"]);
    assert!(ran.code == 2 && ran.stderr.contains("Permission denied"), "{ran:?}");
    let ours = env!("CARGO_BIN_EXE_rbd-preflight");
    // What could not be repaired would keep it from asking Proxmox VE.
    node.write("/etc/rbd-preflight/config.yaml", "ignore: [journaling-on-krbd, quorum-missing]\n");
    let ran = in_its_name(ours, &["start", &id, "--yes", "--tries", "1"]);
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(ran.stdout.contains("exit 2, it said: cluster not ready - no quorum?"), "{ran:?}");
    assert_eq!(state(&node, &spec), before);
}

/// `ha-manager` only takes the wish: what became of the start stands in the task's log, and in the manager's status that it
/// has given up.
#[test]
fn of_a_guest_of_the_ha_manager_the_tasks_log_is_told() {
    let (node, vmid, _) = Node::with_vm_on("ceph-librbd", "rbd", DEFAULT);
    node.write("/etc/pve/ha/resources.cfg", &format!("vm: {vmid}\n\tstate stopped\n"));
    fails(&node, vmid, 9, "kvm: warning\n", "MAX 2 vcpus allowed per VM on this node");
    let (ran, told) = start(&node, vmid, "1");
    assert_eq!(ran.code, 3, "{ran:?}");
    let failure = told["tries"][0]["failure"].as_str().unwrap();
    assert!(
        failure.contains("ha-manager set") && failure.contains("kvm: warning | MAX 2 vcpus"),
        "{failure}"
    );
}
