//! `disks --json` of the real binary against Proxmox VE's own answers, and hostile configs.
#![allow(clippy::unwrap_used)] // a helper that fails must fail the test

use proptest::prelude::*;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vectors")
}

/// A node's tree with one guest.
fn tree(kind: &str, vmid: u64, config: &[u8], storages: &[u8]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let folder =
        root.path().join("etc/pve/nodes/pve1").join(if kind == "lxc" { "lxc" } else { "qemu-server" });
    std::fs::create_dir_all(&folder).unwrap();
    std::os::unix::fs::symlink("nodes/pve1", root.path().join("etc/pve/local")).unwrap();
    std::fs::write(folder.join(format!("{vmid}.conf")), config).unwrap();
    std::fs::write(root.path().join("etc/pve/storage.cfg"), storages).unwrap();
    root
}

fn disks(root: &Path, vmid: u64) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rbd-preflight"));
    let output =
        command.arg("--root").arg(root).args(["disks", &vmid.to_string(), "--json"]).output().unwrap();
    assert!(output.status.success(), "{vmid}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What both sides say of a disk that PVE holds.
fn row(disk: &Value, krbd: bool) -> Value {
    json!([disk["key"], disk["volid"], disk["storage"], disk["pool"], disk["namespace"], disk["image"], krbd])
}

#[test]
fn the_binary_agrees_with_pve_on_every_vector() {
    let lines = std::fs::read_to_string(vectors().join("expected.jsonl")).unwrap();
    let mut compared = 0;
    for line in lines.lines() {
        let expected: Value = serde_json::from_str(line).unwrap();
        let read = |key: &str| std::fs::read(vectors().join(expected[key].as_str().unwrap())).unwrap();
        let vmid = expected["vmid"].as_u64().unwrap();
        let root = tree(expected["kind"].as_str().unwrap(), vmid, &read("file"), &read("storage_cfg"));
        let told = disks(root.path(), vmid);
        let held = told["disks"].as_array().unwrap().iter();
        let held = held.filter(|disk| disk["pve_drops"].is_null() && !disk["image"].is_null());
        let ours: Vec<Value> = held.map(|disk| row(disk, disk["krbd_storage"].as_bool().unwrap())).collect();
        let empty = Vec::new();
        let theirs = expected["volumes"].as_array().unwrap_or(&empty).iter();
        let theirs: Vec<Value> = theirs.map(|disk| row(disk, disk["krbd"] == 1)).collect();
        assert_eq!(ours, theirs, "{}", expected["file"]);
        compared += 1;
    }
    assert!(compared >= 80, "{compared}");
}

#[test]
fn a_config_of_two_thousand_lines_and_a_value_of_a_mebibyte_are_read_in_no_time() {
    let mut config: String =
        (0..2000).map(|n| format!("scsi{}: ceph:vm-100-disk-{n},size=1G\n", n % 31)).collect();
    config.push_str(&format!("scsi1: ceph:vm-100-{}\n", "x,".repeat(1 << 19)));
    let root = tree("qemu", 100, config.as_bytes(), b"rbd: ceph\n\tpool rbd\n");
    let begun = Instant::now();
    disks(root.path(), 100);
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn random_bytes_neither_panic_nor_hang_the_binary(config in prop::collection::vec(any::<u8>(), 0..2000),
                                                      storages in prop::collection::vec(any::<u8>(), 0..500)) {
        for kind in ["qemu", "lxc"] {
            let root = tree(kind, 100, &config, &storages);
            disks(root.path(), 100);
        }
    }
}
