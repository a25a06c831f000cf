//! What may stop a start (`diagnose::stops`), row by row: each finding of the table stops one where what it rests on was
//! read, and none where all else was.

#![allow(clippy::unwrap_used)] // a helper that fails must fail the test

use rbd_preflight::diagnose::finding::Finding;
use rbd_preflight::diagnose::stops::{Ground, TABLE, only_what_is_sure};
use rbd_preflight::finding_codes::{Code, Severity};
use rbd_preflight::observe::survey::Survey;
use serde_json::{Value, json};
use std::collections::BTreeSet;

const ALL: [Ground; 31] = [
    Ground::Files,
    Ground::Absence,
    Ground::Image,
    Ground::Mirroring,
    Ground::Parents,
    Ground::Lock,
    Ground::Watchers,
    Ground::Blocklist,
    Ground::Owner,
    Ground::OwnerAndCaps,
    Ground::DataPool,
    Ground::Caps,
    Ground::Denied,
    Ground::Option,
    Ground::Kernel,
    Ground::Mapped,
    Ground::Holders,
    Ground::Module,
    Ground::Keyring,
    Ground::QemuKey,
    Ground::NoAnswer,
    Ground::Refusal,
    Ground::Conf,
    Ground::Quorum,
    Ground::Snippet,
    Ground::FullPool,
    Ground::Groups,
    Ground::Protocol,
    Ground::Way,
    Ground::Names,
    Ground::Tried,
];

/// A fault of our own: an option, a limit, a library.
fn unknown() -> Value {
    json!({ "unknown": { "origin": "own", "what": "read it", "errno": 12, "message": "Cannot allocate memory" } })
}

/// A guest of which nothing but its config could be read.
fn blank() -> Value {
    json!({
        "schema": 1, "taken_at": 0,
        "node": {
            "name": "pve1", "quorate": unknown(), "running": unknown(),
            "kernel": { "release": "6.14.8-2-pve", "version": [6, 14], "module_loaded": true,
                        "supported": unknown(), "mappings": unknown() },
        },
        "guest": { "vmid": 516, "kind": "qemu", "node": "pve1", "name": null, "lock": null, "template": false,
                   "hookscript": null, "ostype": null, "disks": [], "refusals": [], "notes": [] },
        "storages": { "ceph": {
            "section": { "id": "ceph", "pool": "rbd", "namespace": null, "data_pool": null, "krbd": true,
                         "username": null, "monhost": null, "content": ["images"], "nodes": null, "disabled": false },
            "connection": { "conf": null, "mon_host": null, "user": "vms", "keyring": null },
            "cluster": 0,
        } },
        "clusters": [{ "known": {
            "fsid": "f", "health": unknown(), "blocklist": unknown(), "default_features": unknown(),
            "blocklist_expire_seconds": unknown(),
        } }],
        "disks": [{
            "key": "scsi0", "volid": "ceph:a", "storage": "ceph", "pool": "rbd", "namespace": null, "image": "a",
            "krbd_storage": true, "access": "krbd", "role": "disk", "pve_drops": null, "shared_with": [],
            "reading": unknown(),
        }],
    })
}

/// An image that was opened, and of which nothing more is known.
fn opened() -> Value {
    json!({ "found": {
        "id": "1", "format": 2, "size": 1, "object_size": 1, "objects": 1, "features": [], "op_features": unknown(),
        "snapshots": unknown(), "parents": unknown(), "flags": unknown(), "lock": unknown(), "watchers": unknown(),
        "mirroring": unknown(), "migration": unknown(),
    } })
}

fn failure(origin: &str, errno: i32) -> Value {
    json!({ "unknown": { "origin": origin, "what": "connect", "errno": errno, "message": "no" } })
}

/// A ceph.conf that was read, and what names the monitors.
fn way(named: &Value, hosts: &Value) -> Value {
    json!({ "conf": { "known": { "path": "c" } }, "named": named, "hosts": hosts })
}

/// The blank survey with what a ground names, and what has to be known before that can be.
fn with(ground: Ground) -> (Value, Vec<Ground>) {
    let mut survey = blank();
    let mut grounds = vec![Ground::Files, ground];
    let mut set = |place: &[&str], value: Value| {
        let mut at = &mut survey;
        for step in place {
            at = match step.parse::<usize>() {
                Ok(index) => &mut at[index],
                Err(_) => &mut at[*step],
            };
        }
        *at = value;
    };
    let fact = |name: &'static str| ["disks", "0", "reading", "found", name];
    let open = ["disks", "0", "reading"];
    let lock = json!({ "known": { "tag": "internal", "exclusive": true, "lockers": [] } });
    let none = || json!({ "known": [] });
    let mut opens = || set(&open, opened());
    use Ground as G;
    match ground {
        G::Files => {}
        G::Absence => set(&open, json!("image_missing")),
        G::Image => opens(),
        G::Mirroring | G::Parents | G::Lock | G::Watchers => {
            opens();
            grounds.push(G::Image);
            match ground {
                G::Mirroring => set(&fact("mirroring"), json!({ "known": null })),
                G::Parents => set(&fact("parents"), none()),
                G::Lock => set(&fact("lock"), lock),
                _ => set(&fact("watchers"), none()),
            }
        }
        G::Owner | G::OwnerAndCaps => {
            opens();
            set(&fact("lock"), lock);
            set(&fact("watchers"), none());
            grounds.extend([G::Image, G::Lock, G::Watchers]);
            if ground == G::Owner {
                set(&["clusters", "0", "known", "blocklist"], none());
                grounds.push(G::Blocklist);
            } else {
                set(&["storages", "ceph", "caps"], json!({ "known": { "mon": "allow r" } }));
                grounds.push(G::Caps);
            }
        }
        G::Blocklist => set(&["clusters", "0", "known", "blocklist"], none()),
        G::DataPool => {
            let mut image = opened();
            image["found"]["data_pool"] = json!({ "known": { "name": "d", "readable": { "known": false } } });
            set(&open, image);
            grounds.push(G::Image);
        }
        G::Caps => {
            opens();
            set(&["storages", "ceph", "caps"], json!({ "known": { "osd": "allow r" } }));
            grounds.push(G::Image);
        }
        G::Denied => {
            set(&open, failure("outside", 1));
            grounds.push(G::Refusal);
        }
        G::Option => set(&["clusters", "0", "known", "blocklist_expire_seconds"], json!({ "known": 60 })),
        G::Kernel => {
            opens();
            set(&["node", "kernel", "supported"], none());
            grounds.push(G::Image);
        }
        G::Mapped => set(&["node", "kernel", "mappings"], none()),
        G::Holders => {
            set(&["node", "kernel", "mappings"], none());
            set(&["node", "mapping_users"], json!({ "0": { "holders": none(), "guests": {} } }));
            grounds.push(G::Mapped);
        }
        G::Module => set(&["node", "kernel", "load_failure"], json!("no such module")),
        G::Keyring => set(
            &["storages", "ceph", "keyring"],
            json!({ "content": unknown(), "accepted": { "known": false } }),
        ),
        G::QemuKey => {
            set(&["storages", "ceph", "qemu_keyring"], json!({ "paths": ["k"], "by_blockdev": true }))
        }
        G::NoAnswer => set(&["clusters", "0"], failure("outside", 110)),
        G::Refusal => set(&["clusters", "0"], failure("outside", 13)),
        G::Way => set(&["storages", "ceph", "way"], way(&json!(null), &json!([]))),
        G::Names => {
            let host = json!({ "name": "a", "protocol": "any", "found": { "unknown": "no" } });
            set(&["storages", "ceph", "way"], way(&json!({ "by": "line 1", "text": "a" }), &json!([host])));
        }
        G::Conf => set(&["clusters", "0"], failure("conf", 2)),
        G::Quorum => set(&["node", "quorate"], json!({ "known": false })),
        G::Snippet => set(
            &["node", "snippets"],
            json!([{ "option": "hookscript", "volid": "local:snippets/x", "refused": { "known": "no" } }]),
        ),
        G::FullPool => set(&["clusters", "0", "known", "full_pools"], json!({ "known": ["rbd"] })),
        G::Groups => set(&["clusters", "0", "known", "inactive_pools"], json!({ "known": [] })),
        G::Protocol => {
            set(&["clusters", "0", "known", "only_protocol"], json!("v2"));
            set(&["node", "rbd_release"], json!({ "known": "19.2.6" }));
            set(&["disks", "0", "map_options"], json!({ "known": "" }));
        }
        G::Tried => {
            let target = json!({ "storage": "ceph", "fsid": "f", "rbd_arguments": [],
                                 "spec": { "pool": "rbd", "namespace": null, "image": "a" } });
            let action = json!({ "target": target, "change": "map", "noshare": false, "rxbounce": false });
            set(&["history"], json!([{ "action": action, "result": "failed", "errno": 5, "message": "no" }]));
        }
    }
    (survey, grounds)
}

fn stops(survey: &Survey, code: Code) -> bool {
    let mut finding = Finding::new(code, "").severity(Severity::Blocker);
    finding.disk = Some("scsi0".to_owned());
    finding.storages = vec!["ceph".to_owned()];
    let mut findings = [finding];
    only_what_is_sure(survey, &mut findings);
    findings[0].severity >= Severity::Blocker
}

#[test]
fn a_finding_stops_a_start_only_where_what_it_rests_on_was_read() {
    for ground in ALL {
        let (survey, known) = with(ground);
        let survey: Survey =
            serde_json::from_value(survey).unwrap_or_else(|error| panic!("{ground:?}: {error}"));
        for (code, rests_on) in TABLE {
            let expected = rests_on.iter().any(|on| known.contains(on));
            assert_eq!(stops(&survey, *code), expected, "{code:?} with {known:?}");
        }
    }
}

#[test]
fn what_is_not_in_the_table_never_stops_a_start_and_all_that_is_meant_to_is_in_it() {
    let listed: BTreeSet<Code> = TABLE.iter().map(|(code, _)| *code).collect();
    assert_eq!(listed.len(), TABLE.len(), "a finding has one row");
    let sure: Survey = serde_json::from_value(with(Ground::Owner).0).unwrap();
    for code in Code::all() {
        assert!(listed.contains(&code) || code.severity() < Severity::Blocker, "{code:?} has no row");
        assert!(listed.contains(&code) || !stops(&sure, code), "{code:?}");
    }
}

/// A fault on our side, or a time that was too short, is neither the cluster's refusal nor its silence.
#[test]
fn our_own_faults_stop_nothing() {
    for errno in [110, 13, 111, 2] {
        let mut survey = blank();
        survey["clusters"][0] = failure("own", errno);
        survey["disks"][0]["reading"] = failure("own", errno);
        let survey: Survey = serde_json::from_value(survey).unwrap();
        let stopping: Vec<Code> =
            TABLE.iter().map(|(code, _)| *code).filter(|code| stops(&survey, *code)).collect();
        let by_files = TABLE.iter().filter(|(_, on)| on.contains(&Ground::Files)).map(|(code, _)| *code);
        assert_eq!(stopping, by_files.collect::<Vec<_>>(), "{errno}");
    }
}
