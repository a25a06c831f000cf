//! Keyrings that somebody on this node cannot use: Ceph's libraries, the kernel, Proxmox VE's own check. The real binary on a real
//! Ceph; and of no key a byte in anything that it prints or writes.

use crate::common::node::{DEFAULT, Node, Ran, codes, finding, new_vmid};
use crate::common::{Lab, executable};
use rbd_preflight::ceph::ffi;
use serde_json::Value;
use std::fmt::Write as _;

const KRBD: &str = "/etc/pve/priv/ceph/ceph-krbd.keyring";
const LIBRBD: &str = "/etc/pve/priv/ceph/ceph-librbd.keyring";
/// A key of type aes256k that opens nothing.
pub const AES256K: &str = "AgDRB3ZpAAAAACAAq83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJA=";

/// The key of client.admin on the lab.
fn aes(lab: &Lab) -> String {
    let text = std::fs::read_to_string(lab.keyring("admin")).unwrap();
    text.split("key = ").nth(1).unwrap().split_whitespace().next().unwrap().to_owned()
}

/// The libraries of this node know the type aes256k.
fn libraries_know_aes256k() -> bool {
    let release = ffi::release().unwrap();
    let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or_default());
    let mut next = || numbers.next().unwrap_or_default();
    let release = (next(), next(), next());
    (19, 2, 6) <= release && !((20, 0, 0)..(20, 2, 4)).contains(&release)
}

/// Every command that reads or changes, and what each file that it writes holds, as one text each.
fn everything(node: &Node, vmid: u32, path: Option<&str>) -> Vec<(String, Ran)> {
    let vmid = &vmid.to_string();
    let survey = &node.path("/survey.json").display().to_string();
    let mut runs = Vec::new();
    for arguments in [
        &["check", vmid, "--verbose", "--save-survey", survey][..],
        &["check", vmid, "--json"],
        &["check", "--all"],
        &["check", "--survey", survey, "--json"],
        &["repair", vmid, "--yes"],
        &["hook", vmid, "pre-start"],
        &["doctor"],
        &["doctor", "--json"],
        &["history", "--json"],
    ] {
        let mut command = node.command([]);
        command.args(arguments);
        if let Some(path) = path {
            command.env("PATH", path);
        }
        runs.push((arguments.join(" "), Ran::of(command)));
    }
    runs
}

/// None of the keys, nor the half of one, in what was printed or written.
fn assert_no_key(node: &Node, runs: &[(String, Ran)], keys: &[&str]) {
    let mut texts: Vec<(String, String)> =
        runs.iter().map(|(what, ran)| (what.clone(), format!("{}{}", ran.stdout, ran.stderr))).collect();
    for file in ["/survey.json", "/var/lib/rbd-preflight/journal.jsonl"] {
        texts.push((file.to_owned(), std::fs::read_to_string(node.path(file)).unwrap_or_default()));
    }
    for (what, text) in texts {
        for key in keys {
            let half = key.len() / 2;
            assert!(!text.contains(&key[..half]) && !text.contains(&key[half..]), "{what} shows a key");
        }
    }
}

/// A guest with a disk on the krbd storage and one under QEMU, both with this keyring.
fn with_keyring(text: &str) -> (Node, u32) {
    let (node, vmid) = (Node::new(), new_vmid());
    for disk in 0..2 {
        node.image(&format!("rbd/vm-{vmid}-disk-{disk}"), DEFAULT);
    }
    node.vm(vmid, &format!("scsi0: ceph-krbd:vm-{vmid}-disk-0\nscsi1: ceph-librbd:vm-{vmid}-disk-1\n"));
    for keyring in [KRBD, LIBRBD] {
        node.write(keyring, text);
    }
    (node, vmid)
}

fn doctors(runs: &[(String, Ran)], name: &str) -> (String, String) {
    let (_, ran) = runs.iter().find(|(what, _)| what == "doctor --json").unwrap();
    let told: Value = serde_json::from_str(&ran.stdout).unwrap();
    let checks = told["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("{told:#}"));
    let text = |key: &str| check[key].as_str().unwrap_or_default().to_owned();
    (text("state"), text("detail"))
}

fn exit_of(runs: &[(String, Ran)], what: &str) -> i32 {
    runs.iter().find(|(command, _)| command.starts_with(what)).unwrap().1.code
}

#[test]
fn a_key_that_the_libraries_do_not_know_is_why_no_monitor_was_asked() {
    let lab = Lab::shared();
    let (node, vmid) = with_keyring(&format!("[client.admin]\n\tkey = {AES256K}\n"));
    // What an administrator may have switched on while looking for something, and what must not reach our own stderr.
    let loud = node.path("/client.log");
    let mut conf = std::fs::read_to_string(node.path("/etc/pve/ceph.conf")).unwrap();
    let _ = write!(
        conf,
        "[client]\nlog_to_stderr = true\nerr_to_stderr = true\ndebug_auth = 20\ndebug_monc = 20\nlog_file = {}\n",
        loud.display()
    );
    node.write("/etc/pve/ceph.conf", &conf);
    node.write("/proc/sys/kernel/osrelease", "6.12.118-pve\n");
    let runs = everything(&node, vmid, None);
    let report = node.check(vmid);
    assert_no_key(&node, &runs, &[AES256K, &aes(&lab)]);
    assert!(!std::fs::read_to_string(&loud).unwrap_or_default().contains(&AES256K[..30]));

    let unsupported = finding(&report, "key-type-unsupported");
    assert_eq!(unsupported["severity"], "unknown", "{report:#}");
    let detail = unsupported["detail"].as_str().unwrap();
    assert!(detail.contains("Linux 6.12.118-pve") && detail.contains("older than 7.0"), "{detail}");
    assert!(detail.ends_with("mapped by the kernel: scsi0"), "{detail}");
    assert_eq!((exit_of(&runs, "check"), exit_of(&runs, "hook"), exit_of(&runs, "doctor")), (3, 3, 1));
    let survey = std::fs::read_to_string(node.path("/survey.json")).unwrap();
    assert!(survey.contains("\"aes256k\""), "{survey}");
    let (state, detail) = doctors(&runs, "key:ceph-krbd");
    assert!(state == "fail" || libraries_know_aes256k(), "{detail}");
    assert!(
        detail.contains("client.admin has a key of type aes256k")
            && detail.contains("Linux 6.12.118-pve most likely refuses"),
        "{detail}"
    );
    assert!(doctors(&runs, "key:ceph-librbd").1.contains("which no disk of this storage needs"));
    if libraries_know_aes256k() {
        assert_eq!(finding(&report, "cluster-auth-failed")["severity"], "blocker");
        return;
    }
    let unread = finding(&report, "keyring-unreadable");
    assert_eq!(unread["severity"], "blocker");
    assert!(
        unread["detail"].as_str().unwrap().contains("line 2: a key of a type newer than aes"),
        "{unread}"
    );
    assert!(!codes(&report).contains(&"cluster-unreachable".to_owned()), "{report:#}");
}

#[test]
fn a_pending_key_is_named_and_the_advice_fixes_it() {
    let lab = Lab::shared();
    let key = aes(&lab);
    let (node, vmid) = with_keyring(&format!("[client.admin]\n\tkey = {key}\n\tpending key = {AES256K}\n"));
    let runs = everything(&node, vmid, None);
    assert_no_key(&node, &runs, &[AES256K, &key]);
    let report = node.check(vmid);
    let found = finding(&report, "keyring-unreadable");
    assert!(found["detail"].as_str().unwrap().contains("line 3: `pending key`"), "{found}");
    assert_eq!((exit_of(&runs, "check"), exit_of(&runs, "hook"), exit_of(&runs, "doctor")), (3, 3, 1));
    assert!(doctors(&runs, "storage:ceph-krbd").1.contains("cannot read the storage's keyring"));

    // The command that is shown, run as it is shown, but for where the file and the cluster are.
    let command = found["remedy"]["commands"][0].as_str().unwrap();
    let own = node.path(KRBD).display().to_string();
    let command = command.replace(KRBD, &own).replace(LIBRBD, &own);
    let ceph = format!("ceph --conf {} --id admin --keyring {}", lab.conf(), lab.keyring("admin"));
    let script = command.replace("ceph auth get-key", &format!("{ceph} auth get-key"));
    let done = std::process::Command::new("bash").args(["-c", &script]).output().unwrap();
    assert!(done.status.success() && done.stdout.is_empty(), "{script}: {done:?}");
    assert_eq!(std::fs::read_to_string(&own).unwrap(), format!("[client.admin]\n\tkey = {key}\n"));
    std::fs::copy(&own, node.path(LIBRBD)).unwrap();
    node.keyring_check(false);
    node.assert_healthy(vmid);
}

#[test]
fn what_pve_itself_refuses_is_told_where_its_check_is_known() {
    let lab = Lab::shared();
    let key = aes(&lab);
    let (node, vmid) = with_keyring(&format!("[client.admin]\n\tcaps mon = \"allow *\"\n\tkey = {key}\n"));
    // Not known: said by doctor, no reason to stop.
    node.assert_healthy(vmid);
    assert_eq!(doctors(&everything(&node, vmid, None), "key:ceph-krbd").0, "unknown");
    for old in [true, false] {
        node.keyring_check(old);
        let report = node.check(vmid);
        assert_eq!(finding(&report, "keyring-refused-by-pve")["severity"], "blocker", "{report:#}");
        let runs = everything(&node, vmid, None);
        assert_eq!((exit_of(&runs, "check"), exit_of(&runs, "hook")), (3, 3));
        assert_eq!(doctors(&runs, "key:ceph-librbd").0, "fail");
        assert_no_key(&node, &runs, &[&key]);
    }
    for keyring in [KRBD, LIBRBD] {
        node.write(keyring, &format!("[client.admin]\n\tkey = {key}\n\tcaps mon = \"allow *\"\n"));
    }
    let runs = everything(&node, vmid, None);
    assert_eq!(exit_of(&runs, "check"), 0, "{runs:?}");
    assert_eq!(doctors(&runs, "key:ceph-krbd").0, "ok");
    // The older check wants what a key of the newer type does not have.
    node.keyring_check(true);
    node.write(LIBRBD, &format!("[client.admin]\n\tkey = {AES256K}\n"));
    assert_eq!(codes(&node.check(vmid)).iter().filter(|code| *code == "keyring-refused-by-pve").count(), 1);
    node.keyring_check(false);
    assert!(!codes(&node.check(vmid)).contains(&"keyring-refused-by-pve".to_owned()));
}

/// 16.2.15 ends every process that reads such a keyring.
#[test]
fn a_byte_order_mark_ends_nobody() {
    let lab = Lab::shared();
    let (node, vmid) = with_keyring(&format!("\u{feff}[client.admin]\n\tkey = {}\n", aes(&lab)));
    let runs = everything(&node, vmid, None);
    assert!(runs.iter().all(|(_, ran)| ran.code >= 0), "{runs:?}");
    let report = node.check(vmid);
    assert!(finding(&report, "keyring-unreadable")["detail"].as_str().unwrap().contains("byte order mark"));
}

/// `rbd` itself prints the key of a keyring that it cannot read; here with every change that is asked of it.
#[test]
fn what_rbd_prints_of_a_key_goes_nowhere() {
    let lab = Lab::shared();
    let (node, vmid, _) = Node::with_vm("layering,exclusive-lock,journaling");
    let directory = tempfile::tempdir().unwrap();
    let broken = directory.path().join("broken");
    std::fs::write(&broken, format!("[client.admin]\n\tkey = {AES256K}\n\tpending key = {}\n", aes(&lab)))
        .unwrap();
    let real = std::process::Command::new("sh").args(["-c", "command -v rbd"]).output().unwrap();
    let rbd = directory.path().join("rbd");
    let real = String::from_utf8(real.stdout).unwrap();
    let script = format!(
        "#!/bin/sh\nexec {} --conf {} --id admin --keyring {} ls\n",
        real.trim(),
        lab.conf(),
        broken.display()
    );
    executable(&rbd, &script);
    let said = std::process::Command::new(&rbd).output().unwrap();
    assert!(
        String::from_utf8_lossy(&said.stderr).contains(AES256K) || libraries_know_aes256k(),
        "rbd shows no key any more"
    );
    let path = format!("{}:{}", directory.path().display(), std::env::var("PATH").unwrap());
    let runs = everything(&node, vmid, Some(&path));
    let (_, repair) = runs.iter().find(|(what, _)| what.starts_with("repair")).unwrap();
    assert!(repair.stdout.contains("error setting modifier for [client.admin] ***"), "{repair:?}");
    assert!(node.journal().iter().any(|record| record.to_string().contains("***")), "{:?}", node.journal());
    assert_no_key(&node, &runs, &[AES256K, &aes(&lab)]);
}
