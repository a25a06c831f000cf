//! The boot unit's command: it waits for quorum as Proxmox VE does, and repairs the guests that are this node's then.

use crate::common::node::{DEFAULT, Node, Ran, new_vmid};
use crate::common::wait_until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const UNIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/rbd-preflight-boot.service");

/// What a healthy run takes at most, on a machine that is slow and busy.
const SOON: Duration = Duration::from_secs(60);

/// The command of the unit that the package brings.
fn unit_command() -> Vec<String> {
    let unit = std::fs::read_to_string(UNIT).unwrap();
    let line =
        unit.lines().find_map(|line| line.strip_prefix("ExecStart=-/usr/sbin/rbd-preflight ")).unwrap();
    line.split(' ').map(str::to_owned).collect()
}

/// A node that boots. Its /etc/pve/local is a directory, whose mode can be changed, unlike a link's, so that its name is
/// the host's, in a namespace of its own.
fn boots(node: &Node) {
    let local = node.path("/etc/pve/local");
    std::fs::remove_file(&local).unwrap();
    std::fs::create_dir(&local).unwrap();
    node.write("/etc/pve/corosync.conf", "totem {}\n");
    node.write("/etc/pve/.members", r#"{"nodename":"pve1","version":0}"#);
    mode(node, 0o555);
}

fn mode(node: &Node, mode: u32) {
    std::fs::set_permissions(node.path("/etc/pve/local"), std::fs::Permissions::from_mode(mode)).unwrap();
}

/// Corosync is up and the node has met its cluster.
fn has_quorum(node: &Node) {
    node.write(
        "/etc/pve/.members",
        r#"{"nodename":"pve1","version":3,"cluster":{"name":"lab","quorate":1}}"#,
    );
    mode(node, 0o755);
}

fn boot_command(node: &Node) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--uts", "sh", "-c", r#"hostname pve1 && exec "$0" "$@""#]);
    command.arg(env!("CARGO_BIN_EXE_rbd-preflight")).args(unit_command());
    command.env("RBD_PREFLIGHT_ROOT", node.path("/")).stdin(Stdio::null());
    command
}

/// A run of it, which is ended with the test.
struct Boot(Option<Child>);

impl Drop for Boot {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Boot {
    fn begin(node: &Node) -> Self {
        let mut command = boot_command(node);
        Self(Some(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()))
    }

    fn child(&mut self) -> &mut Child {
        self.0.as_mut().unwrap()
    }

    fn runs(&mut self) -> bool {
        self.child().try_wait().unwrap().is_none()
    }

    /// What it said; it has to end by itself.
    fn said(mut self) -> String {
        wait_until("the end of the boot unit's command", SOON, || !self.runs());
        let output = self.0.take().unwrap().wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    }
}

/// A guest that starts at boot, with an image that is to be repaired.
fn guest(node: &Node) -> (u32, String) {
    let vmid = new_vmid();
    let spec = format!("rbd/vm-{vmid}-disk-0");
    node.image(&spec, "layering,exclusive-lock,journaling");
    node.vm(vmid, &format!("onboot: 1\nscsi0: ceph-krbd:vm-{vmid}-disk-0,size=8M\n"));
    (vmid, spec)
}

/// The node takes over what the others have changed: the guest was moved while it was down.
fn moved(node: &Node, vmid: u32) {
    let at = |n| node.path(&format!("/etc/pve/nodes/{n}/qemu-server/{vmid}.conf"));
    std::fs::rename(at("pve1"), at("pve2")).unwrap();
}

fn state(node: &Node, spec: &str) -> (Value, Value) {
    let mut info = node.lab.rbd_json(&["info", spec]);
    info["access_timestamp"] = Value::Null;
    (info, node.lab.rbd_json(&["lock", "ls", spec]))
}

fn journaled(node: &Node, spec: &str) -> bool {
    node.features(spec).contains(&"journaling".to_owned())
}

#[test]
fn the_boot_unit_waits_for_quorum_and_repairs_the_guests_that_are_this_nodes_then() {
    let node = Node::new();
    let ((_, stays), (before, goes_before), (after, goes_after)) = (guest(&node), guest(&node), guest(&node));
    let untouched = (state(&node, &goes_before), state(&node, &goes_after));
    boots(&node);
    let mut boot = Boot::begin(&node);
    std::thread::sleep(Duration::from_secs(4));
    assert!(boot.runs(), "it waits");
    assert!(journaled(&node, &stays), "nothing is changed without quorum");
    moved(&node, before);
    let begun = Instant::now();
    has_quorum(&node);
    // pmxcfs has quorum a moment before it has what the other nodes have changed.
    std::thread::sleep(Duration::from_millis(1500));
    moved(&node, after);
    // It waits 3 s for that; on a machine that is busy this test itself may be later.
    let in_time = begun.elapsed() < Duration::from_millis(2500);
    let said = boot.said();
    assert!(said.contains("waiting for quorum") && said.contains("for quorum\n"), "{said}");
    assert!(!journaled(&node, &stays), "{said}");
    assert_eq!(state(&node, &goes_before), untouched.0, "{said}");
    let changed: Vec<Value> = node.journal().iter().map(|record| record["image"].clone()).collect();
    let may_be = |image: &Value| image.is_null() || image == &stays || !in_time && image == &goes_after;
    assert!(changed.iter().all(may_be), "{changed:?}");
    assert!(!in_time || state(&node, &goes_after) == untouched.1, "{said}");
}

#[test]
fn stopping_the_unit_ends_its_wait() {
    let node = Node::new();
    let (_, spec) = guest(&node);
    boots(&node);
    let mut boot = Boot::begin(&node);
    std::thread::sleep(Duration::from_secs(3));
    assert!(boot.runs(), "it waits");
    kill(Pid::from_raw(boot.child().id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    wait_until("the end of what was told to end", SOON, || !boot.runs());
    assert!(journaled(&node, &spec));
}

/// Proxmox VE starts guests as soon as it has quorum, whatever else pmxcfs says; nothing is changed on what is not known.
#[test]
fn nobody_waits_for_longer_than_proxmox_ve_would_and_what_is_not_known_changes_nothing() {
    let node = Node::new();
    let (_, spec) = guest(&node);
    boots(&node);
    mode(&node, 0o755);
    let mut boot = Boot::begin(&node);
    wait_until("the end of the boot unit's command", SOON, || !boot.runs());
    assert!(journaled(&node, &spec));
    assert!(node.journal().is_empty());
}

#[test]
fn without_a_guest_that_starts_at_boot_and_has_rbd_disks_nobody_waits() {
    let (node, absent) = (Node::new(), new_vmid());
    node.vm(new_vmid(), "onboot: 1\nscsi0: local:1/vm-1-disk-0.raw\n");
    node.vm(new_vmid(), &format!("scsi0: ceph-krbd:vm-{absent}-disk-0\n"));
    boots(&node);
    assert_eq!(Boot::begin(&node).said(), "", "there is no quorum, and nothing to wait for");
}

/// A rebuild keeps every guest of the node from starting.
#[test]
fn object_maps_that_take_too_long_are_left_to_the_hook() {
    let node = Node::new();
    let specs: Vec<String> = (0..3)
        .map(|_| {
            let vmid = new_vmid();
            let spec = format!("rbd/vm-{vmid}-disk-0");
            node.lab.rbd(&["create", &spec, "--size", "6G", "--image-feature", "layering,exclusive-lock"]);
            node.lab.rbd(&["feature", "enable", &spec, "object-map"]);
            node.vm(vmid, &format!("onboot: 1\nscsi0: ceph-librbd:vm-{vmid}-disk-0\n"));
            spec
        })
        .collect();
    // 1536 objects each, 3 s as they are reckoned.
    node.write("/etc/rbd-preflight/config.yaml", "rebuild_deadline: 2\n");
    has_quorum_already(&node);
    let ran = Ran::of(boot_command(&node));
    assert!(ran.stdout.contains("it would take too long before a start"), "{ran:?}");
    for spec in &specs {
        assert!(node.flags(spec).contains(&"object map invalid".to_owned()), "{ran:?}");
    }
    node.write("/etc/rbd-preflight/config.yaml", "");
    let ran = Ran::of(boot_command(&node));
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(specs.iter().all(|spec| node.flags(spec).is_empty()), "what fits is rebuilt: {ran:?}");
}

/// All guests would wait until the owner of one guest's lock can be told to be dead; its own hook waits for that too.
#[test]
fn a_lock_of_which_it_is_not_known_yet_whether_its_owner_is_dead_is_left_to_the_hook() {
    let node = Node::new();
    let vmid = new_vmid();
    let spec = format!("rbd/vm-{vmid}-disk-0");
    node.image(&spec, DEFAULT);
    node.vm(vmid, &format!("onboot: 1\nscsi0: ceph-librbd:vm-{vmid}-disk-0\n"));
    has_quorum_already(&node);
    node.lab.writer(&spec).kill();
    let status = || node.lab.rbd_json(&["status", &spec]);
    wait_until("the dead writer's watch goes", SOON, || status()["watchers"] == serde_json::json!([]));
    let locks = || node.lab.rbd_json(&["lock", "ls", &spec]);
    let lock = locks();
    let ran = Ran::of(boot_command(&node));
    assert!(ran.stdout.contains("the guest's hook does it at its start, or a later repair"), "{ran:?}");
    assert_eq!(locks(), lock, "{ran:?}");
    // What it has seen counts for the hook, and for a later repair.
    let gone = || Ran::of(boot_command(&node)).code == 0 && locks() == serde_json::json!([]);
    wait_until("the lock is broken by a later look", 2 * SOON, gone);
}

fn has_quorum_already(node: &Node) {
    boots(node);
    has_quorum(node);
}

/// After a power cut of the whole site Ceph comes up later than the node.
#[test]
fn a_ceph_that_is_away_holds_nobody_up_for_long_and_the_others_are_repaired() {
    let node = Node::new();
    node.storage("away", "monhost 127.0.0.1:1; pool rbd");
    node.write("/etc/rbd-preflight/config.yaml", "connect_timeout: 10\n");
    for _ in 0..12 {
        let vmid = new_vmid();
        node.vm(vmid, &format!("onboot: 1\nscsi0: away:vm-{vmid}-disk-0\n"));
    }
    let (_, spec) = guest(&node);
    has_quorum_already(&node);
    let begun = Instant::now();
    let ran = Ran::of(boot_command(&node));
    assert!(
        ran.stdout.contains("cluster-unreachable") && begun.elapsed() < Duration::from_secs(100),
        "{ran:?}"
    );
    assert!(!journaled(&node, &spec), "{ran:?}");
}

/// What systemd makes of the unit: before everything that starts guests, after what brings quorum, and no limit of its own.
#[test]
fn the_unit_is_ordered_between_the_cluster_and_the_guests() {
    let unit = std::fs::read_to_string(UNIT).unwrap();
    let words = |key: &str| -> Vec<&str> {
        unit.lines().filter_map(|line| line.strip_prefix(key)).flat_map(|line| line.split(' ')).collect()
    };
    assert_eq!(words("Before="), ["pve-guests.service", "pve-ha-lrm.service"]);
    for needed in ["corosync.service", "pve-cluster.service"] {
        assert!(words("After=").contains(&needed), "{needed}");
    }
    assert_eq!((words("Type="), words("TimeoutStartSec=")), (vec!["oneshot"], vec!["infinity"]));
    let command = unit_command();
    for needed in ["--all", "--onboot", "--wait-quorum", "--yes", "--deadline"] {
        assert!(command.iter().any(|word| word == needed), "{needed}: {command:?}");
    }
}
