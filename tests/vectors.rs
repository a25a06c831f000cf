//! Guest configs and storage.cfg files, against the answers that PVE's own parsers gave (`fixtures/vectors/README.md`).
#![allow(missing_docs)]

use proptest::prelude::*;
use rbd_preflight::pve::connection::mon_host;
use rbd_preflight::pve::guest;
use rbd_preflight::pve::guest::{Access, Disk, Guest, RefusalKind, Role, Source};
use rbd_preflight::pve::storage::{self, RbdStorage, StorageConfig};
use rbd_preflight::pve::volume::is_cloudinit;
use rbd_preflight::pve::words::Kind;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vectors")
}

fn bytes(name: &str) -> Vec<u8> {
    let path = vectors().join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn lines(name: &str) -> Vec<Value> {
    let text = String::from_utf8(bytes(name)).expect("a vector as the README describes it");
    text.lines()
        .map(|line| serde_json::from_str(line).expect("a vector as the README describes it"))
        .collect()
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or_else(|| panic!("no {key} in {value}"))
}

fn storages(name: &str) -> StorageConfig {
    storage::parse("/etc/pve/storage.cfg", &bytes(name))
}

fn kind(expected: &Value) -> Kind {
    if text(expected, "kind") == "qemu" { Kind::Qemu } else { Kind::Lxc }
}

fn guest(expected: &Value) -> Guest {
    let config = bytes(text(expected, "file"));
    let vmid = u32::try_from(expected["vmid"].as_u64().expect("a vector as the README describes it"))
        .expect("a vector as the README describes it");
    let source =
        Source { vmid, kind: kind(expected), node: "pve1", file: text(expected, "file"), config: &config };
    guest::read(&source, &storages(text(expected, "storage_cfg")))
}

/// A disk in the words of expected.jsonl.
fn shown(disk: &Disk, kind: Kind) -> Value {
    let mut shown = Map::new();
    let cloudinit = kind == Kind::Qemu && is_cloudinit(disk.volid.as_bytes());
    for (key, value) in [
        ("key", json!(disk.key)),
        ("volid", json!(disk.volid)),
        ("storage", json!(disk.storage)),
        ("pool", json!(disk.pool)),
        ("namespace", json!(disk.namespace)),
        ("image", json!(disk.image)),
        ("base", json!(disk.base)),
        ("krbd", json!(u8::from(disk.krbd_storage))),
        ("cloudinit", json!(u8::from(cloudinit))),
        ("cdrom", json!(u8::from(disk.cdrom))),
    ] {
        if !value.is_null() {
            shown.insert(key.to_owned(), value);
        }
    }
    Value::Object(shown)
}

fn list(expected: &Value, key: &str) -> Vec<Value> {
    expected[key].as_array().cloned().unwrap_or_default()
}

#[test]
fn volumes_are_pves() {
    for expected in lines("expected.jsonl") {
        let guest = guest(&expected);
        let held: Vec<&Disk> = guest.disks.iter().filter(|disk| disk.pve_drops.is_none()).collect();
        let named = held.iter().filter(|disk| disk.image.is_some());
        let found: Vec<Value> = named.map(|disk| shown(disk, guest.kind)).collect();
        assert_eq!(found, list(&expected, "volumes"), "{}", expected["file"]);

        let nameless: Vec<_> =
            held.iter().filter(|disk| disk.image.is_none()).map(|disk| &disk.volid).collect();
        let invalid = list(&expected, "invalid");
        let expected_nameless: Vec<_> = invalid.iter().map(|volume| text(volume, "volid")).collect();
        assert_eq!(nameless, expected_nameless, "{}", expected["file"]);
    }
}

#[test]
fn settings_are_pves() {
    for expected in lines("expected.jsonl") {
        let guest = guest(&expected);
        assert_eq!(guest.lock.as_deref(), expected["lock"].as_str(), "{}", expected["file"]);
        assert_eq!(guest.hookscript.as_deref(), expected["hookscript"].as_str(), "{}", expected["file"]);
        assert_eq!(guest.template, expected["template"] == 1, "{}", expected["file"]);
        assert_eq!(guest.parser_dies.is_some(), !expected["error"].is_null(), "{}", expected["file"]);
    }
}

/// PVE's words for the first thing that keeps it from listing a VM's volumes, and which rule it is.
#[test]
fn refusals_are_pves() {
    for expected in lines("expected.jsonl") {
        let guest = guest(&expected);
        let listing =
            [RefusalKind::StorageUnknown, RefusalKind::VolumeNameInvalid, RefusalKind::ContentMissing];
        let first = guest.refusals.iter().find(|refusal| listing.contains(&refusal.kind));
        if guest.kind == Kind::Qemu {
            let message = first.map(|refusal| refusal.message.as_str());
            assert_eq!(message, expected["start_error"].as_str(), "{}", expected["file"]);
        }
        if let Some(words) = expected["start_error"].as_str() {
            let kind = match words {
                _ if words.ends_with("does not exist") => RefusalKind::StorageUnknown,
                _ if words.starts_with("unable to parse") => RefusalKind::VolumeNameInvalid,
                _ => RefusalKind::ContentMissing,
            };
            assert_eq!(first.map(|refusal| refusal.kind.clone()), Some(kind), "{}", expected["file"]);
        }
        for invalid in list(&expected, "invalid") {
            let refused = guest.refusals.iter().find(|refusal| refusal.volid == text(&invalid, "volid"));
            assert_eq!(refused.map(|refusal| refusal.message.as_str()), invalid["error"].as_str());
        }
    }
}

#[test]
fn a_disk_is_opened_by_who_opens_it() {
    for expected in lines("expected.jsonl") {
        for disk in guest(&expected).disks {
            let mapped = disk.krbd_storage || kind(&expected) == Kind::Lxc || disk.role == Role::Tpm;
            assert_eq!(disk.access == Access::Krbd, mapped, "{} {}", expected["file"], disk.key);
        }
    }
}

/// A section in the words of storages.jsonl.
fn shown_section(section: &RbdStorage) -> Value {
    let mut shown = Map::new();
    for (key, value) in [
        ("id", json!(section.id)),
        ("pool", json!(section.pool)),
        ("krbd", json!(u8::from(section.krbd))),
        ("disable", json!(u8::from(section.disabled))),
        ("content", json!(section.content)),
        ("namespace", json!(section.namespace)),
        ("username", json!(section.username)),
        ("data-pool", json!(section.data_pool)),
        ("nodes", json!(section.nodes)),
        ("monhost", json!(section.monhost)),
        ("mon_host", json!(section.monhost.as_deref().map(mon_host))),
    ] {
        if !value.is_null() {
            shown.insert(key.to_owned(), value);
        }
    }
    Value::Object(shown)
}

#[test]
fn storages_are_pves() {
    for expected in lines("storages.jsonl") {
        let config = storages(text(&expected, "file"));
        let found: Vec<Value> = config.rbd.iter().map(shown_section).collect();
        assert_eq!(found, list(&expected, "storages"), "{}", expected["file"]);
    }
}

/// All that reads bytes, on one pair of files.
fn read_all(config: &[u8], storage_cfg: &[u8]) {
    let storages = storage::parse("storage.cfg", storage_cfg);
    for kind in [Kind::Qemu, Kind::Lxc] {
        let source = Source { vmid: 100, kind, node: "pve1", file: "100.conf", config };
        let guest = guest::read(&source, &storages);
        let held = guest.disks.iter().filter(|disk| disk.pve_drops.is_none());
        let volumes = guest::volumes(kind, config);
        if guest.parser_dies.is_none() {
            assert!(held.count() <= volumes.len(), "each disk is among the volumes");
        }
        assert!(guest.notes.iter().all(|note| note.text.chars().count() < 2000), "notes stay short");
    }
}

/// The given files with a few bytes changed, put in, taken out.
fn mutate(bytes: &mut Vec<u8>, changes: &[(usize, u8, u8)]) {
    for &(at, how, byte) in changes {
        let at = at % (bytes.len() + 1);
        match how % 3 {
            0 if at < bytes.len() => bytes[at] = byte,
            1 if at < bytes.len() => drop(bytes.remove(at)),
            _ => bytes.insert(at, byte),
        }
    }
}

fn changes() -> impl Strategy<Value = Vec<(usize, u8, u8)>> {
    let signs = prop::sample::select(b",=:;[]# \t\r\n\x0b\x00\xa0\xff0aZ-_/.@\"".to_vec());
    prop::collection::vec((any::<usize>(), any::<u8>(), signs), 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic(config: Vec<u8>, storage_cfg: Vec<u8>) {
        read_all(&config, &storage_cfg);
    }

    #[test]
    fn random_mutations_never_panic(which: prop::sample::Index, config in changes(), storage in changes()) {
        let expected = lines("expected.jsonl");
        let expected = which.get(&expected);
        let (mut guest, mut storages) = (bytes(text(expected, "file")), bytes(text(expected, "storage_cfg")));
        mutate(&mut guest, &config);
        mutate(&mut storages, &storage);
        read_all(&guest, &storages);
    }
}

/// Quadratic time would take minutes here.
#[test]
fn large_files_take_linear_time() {
    let storage_cfg = bytes("storage/03.cfg");
    let begun = std::time::Instant::now();
    for unit in [
        "scsi0: team-red:vm-1-disk-0,size=8G\n",
        "[snap]\n",
        "[\n",
        "a=b,",
        "lxc: x\nlxc.idmap: u\n",
        "/",
        " ",
    ] {
        let many = unit.repeat((1 << 18) / unit.len());
        read_all(many.as_bytes(), &storage_cfg);
        read_all(format!("scsi0: team-red:base-1-x{many}").as_bytes(), &storage_cfg);
        read_all(format!("mp0: X,{many}").as_bytes(), many.as_bytes());
    }
    let sections: String = (0..20_000).map(|n| format!("rbd: s{n}\n\tpool p\n\n")).collect();
    read_all(b"", sections.as_bytes());
    assert!(begun.elapsed().as_secs() < 60, "took {:?}", begun.elapsed());
}
