//! What `doctor` says of a node, on a real Ceph.

use crate::common::node::{Node, Ran, new_vmid};
use crate::common::{Lab, executable};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

const SNIPPET: &str = "/var/lib/vz/snippets/rbd-preflight";
const NAMER: &str = "/usr/libexec/ceph-rbdnamer-pve";

/// A node that has everything: only storages whose user may do all.
fn healthy() -> Node {
    let node = Node::new();
    let storages = std::fs::read_to_string(node.path("/etc/pve/storage.cfg")).unwrap();
    node.write("/etc/pve/storage.cfg", storages.split("rbd: ceph-poor").next().unwrap());
    node.write("/usr/lib/udev/rules.d/50-rbd-pve.rules", "");
    node.write("/dev/kmsg", "");
    node.keyring_check(false);
    executable(&node.path(NAMER), "#!/bin/sh\n");
    executable(&node.path(SNIPPET), OURS);
    node
}

/// What the snippet is, as this version ships it.
const OURS: &str = include_str!("../../hooks/rbd-preflight");

/// `doctor --json`: the exit code and the checks.
fn doctor(node: &Node) -> (i32, Vec<Value>) {
    let ran = node.run(["doctor", "--json"]);
    let told: Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"));
    assert_eq!(told["schema"], 1);
    (ran.code, told["checks"].as_array().unwrap().clone())
}

/// The state, detail and remedy of one check.
fn check(checks: &[Value], name: &str) -> (String, String, String) {
    let check = checks.iter().find(|check| check["name"] == name);
    let check = check.unwrap_or_else(|| panic!("no {name} in {checks:#?}"));
    let text = |key: &str| check[key].as_str().unwrap_or_default().to_owned();
    (text("state"), text("detail"), text("remedy"))
}

#[test]
fn a_healthy_node_fails_nothing() {
    let node = healthy();
    let (code, checks) = doctor(&node);
    assert_eq!(code, 0, "{checks:#?}");
    // The lab itself has no manager, which its health tells.
    let not_ok =
        checks.iter().filter(|c| c["state"] != "ok" && !c["name"].as_str().unwrap().starts_with("health:"));
    assert_eq!(not_ok.count(), 0, "{checks:#?}");
    for name in [
        "rbd",
        "librbd",
        "kernel-module",
        "udev-rule",
        "storage:ceph-ns",
        "key:ceph-ns",
        "caps:ceph-krbd",
        "snippet",
    ] {
        assert_eq!(check(&checks, name).0, "ok");
    }
    assert_eq!(node.journal(), Vec::<Value>::new());
    assert!(!node.path("/var/lib/rbd-preflight").exists(), "looking creates nothing");
}

#[test]
fn a_wrong_key_is_told_with_the_command_that_gives_the_right_one() {
    let node = healthy();
    let key = std::fs::read_to_string(node.lab.keyring("vms")).unwrap();
    node.write("/etc/pve/priv/ceph/ceph-ns.keyring", &key.replace("[client.vms]", "[client.admin]"));
    let (code, checks) = doctor(&node);
    let (state, detail, remedy) = check(&checks, "storage:ceph-ns");
    assert_eq!((code, state.as_str()), (1, "fail"), "{detail}");
    assert!(detail.contains("the monitors refuse client.admin with its key"), "{detail}");
    assert_eq!(remedy, "cp /etc/pve/priv/ceph.client.admin.keyring /etc/pve/priv/ceph/ceph-ns.keyring");
    assert_eq!(check(&checks, "storage:ceph-krbd").0, "ok");
}

#[test]
fn a_pool_or_namespace_that_is_not_there_is_told() {
    let node = healthy();
    node.storage("nopool", "krbd 1; pool no-such-pool");
    node.storage("nons", "krbd 1; pool pool2; namespace none");
    node.storage("elsewhere", "krbd 1; pool no-such-pool; nodes pve2");
    node.storage("off", "krbd 1; pool no-such-pool; disable 1");
    let (code, checks) = doctor(&node);
    assert_eq!(code, 1);
    let (state, detail, _) = check(&checks, "storage:nopool");
    assert_eq!((state.as_str(), detail.as_str()), ("fail", "the cluster has no pool no-such-pool"));
    let (state, detail, remedy) = check(&checks, "storage:nons");
    assert_eq!((state.as_str(), detail.as_str()), ("fail", "the pool pool2 has no namespace none"));
    assert!(remedy.ends_with("namespace create") && remedy.contains("--namespace none"), "{remedy}");
    for other in ["storage:elsewhere", "storage:off"] {
        assert!(!checks.iter().any(|check| check["name"] == other), "{other} is not this node's");
    }
}

#[test]
fn a_user_that_may_not_break_locks_is_told_with_the_whole_line() {
    let node = healthy();
    node.append("/etc/pve/storage.cfg", "\nrbd: ceph-poor\n\tcontent images\n\tpool rbd\n\tusername poor\n");
    std::fs::copy(node.lab.keyring("poor"), node.path("/etc/pve/priv/ceph/ceph-poor.keyring")).unwrap();
    let (code, checks) = doctor(&node);
    let (state, detail, remedy) = check(&checks, "caps:ceph-poor");
    assert_eq!((code, state.as_str()), (1, "fail"), "{detail}");
    assert_eq!(remedy, "ceph auth caps client.poor mon 'profile rbd' osd 'profile rbd'");
    assert_eq!(check(&checks, "storage:ceph-poor").0, "ok");
}

#[test]
fn a_blocklist_expiry_is_told() {
    let node = healthy();
    let conf = std::fs::read_to_string(node.path("/etc/pve/ceph.conf")).unwrap();
    node.write(
        "/etc/pve/ceph.conf",
        &conf.replace("[client]", "[client]\nrbd_blocklist_expire_seconds = 60"),
    );
    let (code, checks) = doctor(&node);
    let (state, detail, remedy) = check(&checks, "blocklist-expiry");
    assert_eq!((code, state.as_str()), (1, "fail"), "{detail}");
    assert!(detail.contains("ceph-krbd (60)") && remedy.contains("ceph config rm"), "{detail}: {remedy}");
}

#[test]
fn settings_that_are_not_understood_are_told_with_file_and_line() {
    let node = healthy();
    node.write("/etc/rbd-preflight/config.yaml", "mode: check\ndeadlin: 5\n");
    let (code, checks) = doctor(&node);
    let (state, detail, remedy) = check(&checks, "settings");
    assert_eq!((code, state.as_str()), (1, "fail"), "{detail}");
    assert!(
        detail.contains("/etc/rbd-preflight/config.yaml:2: ") && detail.contains("`deadlin`"),
        "{detail}"
    );
    assert_eq!(remedy, "editor /etc/rbd-preflight/config.yaml");
    node.write("/etc/rbd-preflight/config.yaml", "ignore: [no-such-code]\n");
    assert_eq!(check(&doctor(&node).1, "settings").0, "fail");
}

#[test]
fn a_missing_snippet_is_grave_once_a_guest_names_it() {
    let (node, vmid) = (healthy(), new_vmid());
    std::fs::remove_file(node.path(SNIPPET)).unwrap();
    let (code, checks) = doctor(&node);
    assert_eq!((code, check(&checks, "snippet").0.as_str()), (0, "warn"));
    node.vm(vmid, &format!("hookscript: local:snippets/rbd-preflight\nscsi0: ceph-krbd:vm-{vmid}-disk-0\n"));
    let (code, checks) = doctor(&node);
    let (state, detail, remedy) = check(&checks, "snippet");
    assert_eq!((code, state.as_str()), (1, "fail"), "{detail}");
    assert!(detail.contains(&format!("PVE will not start guest {vmid}")), "{detail}");
    assert_eq!(remedy, format!("rbd-preflight attach {vmid}"));
    node.write(SNIPPET, "#!/bin/sh\n");
    std::fs::set_permissions(node.path(SNIPPET), std::fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(check(&doctor(&node).1, "snippet").2, format!("chmod 755 {SNIPPET}"));
}

#[test]
fn a_snippet_of_another_version_is_told() {
    let node = healthy();
    executable(&node.path(SNIPPET), "#!/bin/sh\nexec rbd-preflight hook \"$@\"\n");
    let (code, checks) = doctor(&node);
    let (state, detail, remedy) = check(&checks, "snippet");
    assert_eq!((code, state.as_str(), remedy.as_str()), (0, "warn", "rbd-preflight attach VMID"), "{detail}");
}

/// Each name that a guest asks for is looked at, and so is what the snippet calls by that name.
#[test]
fn a_chained_guest_needs_our_snippet_by_its_name_and_the_script_that_it_calls() {
    let (node, vmid) = (healthy(), new_vmid());
    let name = "local:snippets/rbd-preflight+local+old.sh";
    node.vm(vmid, &format!("hookscript: {name}\nscsi0: ceph-krbd:vm-{vmid}-disk-0\n"));
    let (code, checks) = doctor(&node);
    let (state, detail, remedy) = check(&checks, &format!("snippet:{name}"));
    assert_eq!((code, state.as_str()), (1, "fail"), "{detail}");
    assert!(detail.contains(&format!("PVE will not start guest {vmid}")), "{detail}");
    assert_eq!(remedy, format!("rbd-preflight attach {vmid}"));
    let (state, detail, _) = check(&checks, &format!("earlier-hookscript:{vmid}"));
    assert!(state == "fail" && detail.contains("script 'local:snippets/old.sh' does not exist"), "{detail}");
    assert_eq!(check(&checks, "guests-without-hook").0, "ok", "it is attached");
    assert!(!checks.iter().any(|check| check["name"] == "snippet"), "nobody needs it by the plain name");

    executable(&node.path(&format!("{SNIPPET}+local+old.sh")), OURS);
    executable(&node.path("/var/lib/vz/snippets/old.sh"), "#!/bin/sh\n");
    let (code, checks) = doctor(&node);
    assert_eq!((code, check(&checks, &format!("snippet:{name}")).0.as_str()), (0, "ok"), "{checks:#?}");
    assert!(!checks.iter().any(|check| check["name"] == format!("earlier-hookscript:{vmid}")));
}

/// What an earlier version remembered by a number, and what a snapshot remembers, is told to root, who knows whose it is.
#[test]
fn hookscripts_that_were_lost_or_left_behind_are_told() {
    let (node, plain, other, gone) = (healthy(), new_vmid(), new_vmid(), new_vmid());
    let remember = |vmid: u32| {
        node.write(&format!("/etc/pve/rbd-preflight/chain/{vmid}"), "local:snippets/old.sh\n");
    };
    [plain, other, gone].iter().for_each(|vmid| remember(*vmid));
    node.vm(plain, "hookscript: local:snippets/rbd-preflight\n");
    node.vm(other, "name: x\n");
    let elsewhere = new_vmid();
    remember(elsewhere);
    node.write(&format!("/etc/pve/nodes/pve2/lxc/{elsewhere}.conf"), "");
    let snapshots = new_vmid();
    node.vm(
        snapshots,
        "hookscript: local:snippets/rbd-preflight\n\n[a]\nhookscript: local:snippets/rbd-preflight+nas+x\n\n\
         [b]\nhookscript: local:snippets/y\n\n[c]\nhookscript: local:snippets/rbd-preflight\n",
    );
    let (code, checks) = doctor(&node);
    assert_eq!(code, 0, "{checks:#?}");
    for (vmid, why, remedy) in [
        (plain, "it may be of an earlier guest", format!("rbd-preflight attach {plain}, if")),
        (other, "names another hookscript, or none", format!("rm /etc/pve/rbd-preflight/chain/{other}")),
        (gone, "there is no such guest", format!("rm /etc/pve/rbd-preflight/chain/{gone}")),
    ] {
        let told = check(&checks, &format!("earlier-hookscript:{vmid}"));
        assert!(told.0 == "warn" && told.1.contains(why) && told.2.starts_with(&remedy), "{told:?}");
    }
    assert!(!checks.iter().any(|check| check["name"] == format!("earlier-hookscript:{elsewhere}")));
    let (state, detail, _) = check(&checks, &format!("hookscript-in-snapshots:{snapshots}"));
    assert!(state == "unknown" && detail.contains("local:snippets/y, nas:snippets/x"), "{detail}");
}

#[test]
fn guests_without_the_hook_and_disks_that_come_before_it_are_told() {
    let (node, vmid, other) = (healthy(), new_vmid(), new_vmid());
    node.vm(vmid, &format!("ide2: ceph-krbd:vm-{vmid}-cloudinit,media=cdrom\n"));
    node.vm(other, "scsi0: local:100/disk.raw\n");
    let (code, checks) = doctor(&node);
    let (state, detail, remedy) = check(&checks, "guests-without-hook");
    assert_eq!((code, state.as_str()), (0, "warn"), "{detail}");
    assert_eq!(remedy, format!("rbd-preflight attach {vmid}"), "no other guest has RBD disks");
    let (state, detail, remedy) = check(&checks, "disks-before-hook");
    assert_eq!((state.as_str(), remedy.as_str()), ("warn", "systemctl enable rbd-preflight-boot.service"));
    assert!(detail.contains(&format!("{vmid} ide2 (cloud-init)")), "{detail}");
    node.write("/etc/systemd/system/multi-user.target.wants/rbd-preflight-boot.service", "");
    assert_eq!(check(&doctor(&node).1, "disks-before-hook").0, "ok");
}

#[test]
fn the_other_nodes_are_asked_through_pve() {
    let node = healthy();
    let fakes = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fakes");
    let ask = || {
        let mut command = node.command(["doctor", "--json"]);
        command.env("PATH", format!("{fakes}:{}", std::env::var("PATH").unwrap()));
        let ran = Ran::of(command);
        let told: Value =
            serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"));
        check(told["checks"].as_array().unwrap(), "snippet:pve2")
    };
    let (state, _, remedy) = ask();
    assert_eq!(state, "warn");
    assert!(remedy.ends_with(&format!("scp -p {SNIPPET} root@pve2:{SNIPPET}")), "{remedy}");
    node.write(&format!("/other-nodes/pve2{SNIPPET}"), "");
    assert_eq!(ask().0, "ok");
    let members = std::fs::read_to_string(node.path("/etc/pve/.members")).unwrap();
    node.write("/etc/pve/.members", &members.replace("\"id\": 2, \"online\": 1", "\"id\": 2, \"online\": 0"));
    let (state, detail, _) = ask();
    assert!(state == "unknown" && detail.contains("offline"), "{detail}");
}

#[test]
fn a_cluster_that_does_not_answer_holds_nobody_up() {
    let node = Node::on(Lab::own(&[]));
    node.write("/etc/rbd-preflight/config.yaml", "connect_timeout: 2\n");
    node.lab.pause("all");
    let ran = node.run(["doctor"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stdout.contains("FAIL     storage:ceph-krbd: the Ceph cluster does not answer"), "{ran:?}");
    assert!(!ran.stdout.contains("caps:"), "{ran:?}");
    assert!(ran.took < Duration::from_secs(8), "{ran:?}");
    node.lab.resume("all");
}
