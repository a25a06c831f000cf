//! The pure core: from a survey to findings, actions and a verdict, without Ceph and without Proxmox VE.

#![allow(clippy::unwrap_used)] // a helper that fails must fail the test

use rbd_preflight::diagnose::diagnose;
use rbd_preflight::diagnose::finding::{Finding, RemedyKind};
use rbd_preflight::diagnose::owner::not_yet;
use rbd_preflight::diagnose::verdict::{Verdict, exit_code, verdict};
use rbd_preflight::finding_codes::Severity;
use rbd_preflight::observe::rehearsed::as_if_stopped_here;
use rbd_preflight::observe::survey::Survey;
use rbd_preflight::plan::order::plan;
use rbd_preflight::rbd::action::{Action, Change};
use rbd_preflight::settings::Settings;
use rbd_preflight::settings::policy::{Policy, Scope};
use serde_json::{Value, json};

/// A healthy VM 516 with one krbd disk, as a saved survey.
fn healthy() -> Value {
    json!({
        "schema": 1,
        "taken_at": 1_795_000_000,
        "node": {
            "name": "pve1",
            "quorate": { "known": true },
            "running": { "known": false },
            "kernel": {
                "release": "6.14.8-2-pve", "version": [6, 14], "module_loaded": true,
                "supported": { "known": ["layering", "striping", "exclusive-lock", "object-map", "fast-diff",
                                         "deep-flatten", "data-pool", "operations"] },
                "mappings": { "known": [] },
            },
        },
        "guest": {
            "vmid": 516, "kind": "qemu", "node": "pve1", "name": "xds-dev-516", "lock": null, "template": false,
            "hookscript": null, "ostype": "l26", "disks": [], "refusals": [], "notes": [],
        },
        "storages": { "ceph": {
            "section": { "id": "ceph", "pool": "rbd", "namespace": null, "data_pool": null, "krbd": true,
                         "username": null, "monhost": null, "content": ["images"], "nodes": null, "disabled": false },
            "connection": { "conf": "/etc/pve/ceph.conf", "mon_host": null, "user": "admin",
                            "keyring": "/etc/pve/priv/ceph/ceph.keyring" },
            "cluster": 0,
        } },
        "clusters": [{ "known": {
            "fsid": "f", "blocklist": { "known": [] },
            "health": { "known": { "status": "HEALTH_OK", "checks": [] } },
            "default_features": { "known": ["layering"] }, "blocklist_expire_seconds": { "known": 0 },
        } }],
        "disks": [disk("scsi0", "krbd")],
    })
}

fn disk(key: &str, access: &str) -> Value {
    json!({
        "key": key, "volid": format!("ceph:vm-516-disk-{key}"), "storage": "ceph", "pool": "rbd", "namespace": null,
        "image": format!("vm-516-disk-{key}"), "krbd_storage": access == "krbd", "access": access, "role": "disk",
        "pve_drops": null, "shared_with": [],
        "reading": { "found": {
            "id": if key == "scsi0" { "1" } else { key }, "format": 2, "size": 4194304, "object_size": 4194304, "objects": 1,
            "features": ["layering", "exclusive-lock", "object-map", "fast-diff", "deep-flatten"],
            "op_features": { "known": [] },
            "flags": { "known": { "object_map_invalid": false, "fast_diff_invalid": false } },
            "snapshots": { "known": [] },
            "lock": { "known": { "tag": "", "exclusive": true, "lockers": [] } },
            "watchers": { "known": [] }, "parents": { "known": [] },
            "mirroring": { "known": null }, "migration": { "known": null },
        } },
        // Twice looked for; it means something only where a lock has an owner without a watch.
        "lock_owner": { "open": [], "looked_at": 9, "unread": [], "unwatched_for": 30, "watch_timeout": 30 },
    })
}

/// The facts of the first disk's image.
fn facts(survey: &mut Value) -> &mut Value {
    &mut survey["disks"][0]["reading"]["found"]
}

fn unknown() -> Value {
    json!({ "unknown": { "what": "read it", "errno": 5, "message": "Input/output error" } })
}

fn watcher() -> Value {
    json!({ "address": "10.0.0.2:0/77", "client": 4242, "cookie": 94_000_000_000_001_u64 })
}

/// The exclusive lock of the watcher above.
fn lock() -> Value {
    json!({ "tag": "internal", "exclusive": true, "lockers": [
        { "client": "client.4242", "cookie": "auto 94000000000001", "address": "10.0.0.2:0/77" } ] })
}

struct Seen {
    findings: Vec<Finding>,
    actions: Vec<Action>,
}

impl Seen {
    fn severity(&self, code: &str) -> Option<Severity> {
        self.findings.iter().find(|f| f.code.name() == code).map(|f| f.severity)
    }
    fn kind(&self, code: &str) -> Option<RemedyKind> {
        self.findings.iter().find(|f| f.code.name() == code).map(|f| f.remedy.kind)
    }
    fn verdict(&self) -> Verdict {
        verdict(&self.findings)
    }
    fn changes(&self) -> Vec<&Change> {
        self.actions.iter().map(|action| &action.change).collect()
    }
}

fn policy(settings: &str) -> Policy {
    Policy::new(Settings::parse([("config.yaml", settings)]).unwrap().for_guest(516, ["ceph"]))
}

fn see(survey: &Value) -> Seen {
    see_with(survey, &policy(""))
}

fn see_with(survey: &Value, policy: &Policy) -> Seen {
    let survey: Survey = serde_json::from_value(survey.clone()).unwrap();
    let findings = diagnose(&survey, policy);
    let actions = plan(&findings, policy);
    Seen { findings, actions }
}

/// A survey with everything wrong that repair can fix.
fn mendable() -> Value {
    let mut survey = healthy();
    facts(&mut survey)["features"] = json!(["layering", "exclusive-lock", "journaling"]);
    facts(&mut survey)["lock"] = json!({ "known": lock() });
    survey
}

#[test]
fn a_healthy_guest_is_ready() {
    let seen = see(&healthy());
    assert!(seen.findings.is_empty(), "{:?}", seen.findings);
    assert_eq!(seen.verdict(), Verdict::Ready);
    assert_eq!(exit_code(&seen.findings) as u8, 0);
}

#[test]
fn what_can_be_fixed_is_fixed_in_a_valid_order() {
    let seen = see(&mendable());
    assert_eq!(seen.verdict(), Verdict::Repairable);
    assert_eq!(exit_code(&seen.findings) as u8, 3, "journaling stops the map");
    let names: Vec<String> = seen.changes().iter().map(|c| format!("{c:?}")).collect();
    let kinds: Vec<&str> = names.iter().map(|n| n.split([' ', '{']).next().unwrap()).collect();
    assert_eq!(kinds, ["BreakLock", "DisableFeatures", "EnableFeatures", "RebuildObjectMap"]);
}

/// Safety rules 1, 2, 4, 5 and 6: none of these states may be changed, whatever else is wrong.
#[test]
fn no_safety_rule_lets_a_change_through() {
    type Spoil = fn(&mut Value);
    let forbidding: [(&str, Spoil); 23] = [
        ("live watcher", |s| facts(s)["watchers"] = json!({ "known": [watcher()] })),
        ("watchers unknown", |s| facts(s)["watchers"] = unknown()),
        ("lock unknown", |s| facts(s)["lock"] = unknown()),
        ("lock set by hand", |s| facts(s)["lock"]["known"]["tag"] = json!("backup")),
        ("shared lock", |s| facts(s)["lock"]["known"]["exclusive"] = json!(false)),
        ("odd cookie", |s| facts(s)["lock"]["known"]["lockers"][0]["cookie"] = json!("mine")),
        ("migrating", |s| facts(s)["migration"] = json!({ "known": "prepared" })),
        ("migration unknown", |s| facts(s)["migration"] = unknown()),
        ("journal-mirrored", |s| {
            facts(s)["mirroring"] =
                json!({ "known": { "mode": "journal", "state": "enabled", "primary": true } })
        }),
        ("non-primary", |s| {
            facts(s)["mirroring"] =
                json!({ "known": { "mode": "snapshot", "state": "enabled", "primary": false } })
        }),
        ("mirroring unknown", |s| facts(s)["mirroring"] = unknown()),
        ("mapped here", |s| {
            s["node"]["kernel"]["mappings"] = json!({ "known": [{
                "id": 0, "pool": "rbd", "namespace": null, "image": "vm-516-disk-scsi0", "snapshot": null,
                "fsid": "f", "client_address": "10.0.0.1:0/1", "client": 1,
            }] })
        }),
        ("mappings unknown", |s| s["node"]["kernel"]["mappings"] = unknown()),
        ("guest runs", |s| s["node"]["running"] = json!({ "known": true })),
        ("running unknown", |s| s["node"]["running"] = unknown()),
        ("no quorum", |s| s["node"]["quorate"] = json!({ "known": false })),
        ("quorum unknown", |s| s["node"]["quorate"] = unknown()),
        ("other node's guest", |s| s["guest"]["node"] = json!("pve2")),
        ("migrate lock", |s| s["guest"]["lock"] = json!("migrate")),
        ("a lock nobody knows", |s| s["guest"]["lock"] = json!("new-in-pve-12")),
        ("template", |s| s["guest"]["template"] = json!(true)),
        ("a name like an option", |s| s["disks"][0]["image"] = json!("-1-keyring=x")),
        ("a name that is no text", |s| s["disks"][0]["image"] = json!("vm-516-\u{fffd}")),
    ];
    assert!(!see(&mendable()).actions.is_empty());
    for (name, spoil) in forbidding {
        let mut survey = mendable();
        spoil(&mut survey);
        let seen = see(&survey);
        assert!(seen.actions.is_empty(), "{name}: {:?}", seen.actions);
        let automatic = seen.findings.iter().find(|f| f.remedy.kind == RemedyKind::Automatic);
        assert!(automatic.is_none(), "{name}: {automatic:?}");
    }
}

#[test]
fn an_ordinary_lock_on_the_config_does_not_forbid() {
    for lock in ["backup", "suspended"] {
        let mut survey = mendable();
        survey["guest"]["lock"] = json!(lock);
        let seen = see(&survey);
        assert!(!seen.actions.is_empty(), "{lock}");
        let told = seen.findings.iter().find(|f| f.code.name() == "guest-locked").unwrap();
        assert!(!told.summary.contains("nothing is changed"), "{lock}: {told:?}");
    }
}

/// What `check` calls ready Proxmox VE starts.
#[test]
fn a_lock_on_the_config_blocks_by_hand_and_nowhere_else() {
    let in_hook = Policy { scope: Scope::InHook, ..policy("") };
    let looking = Policy { read_only: Some("alive on pve2".into()), ..policy("") };
    for lock in
        ["backup", "clone", "create", "migrate", "rollback", "snapshot", "snapshot-delete", "suspending"]
    {
        let mut survey = healthy();
        survey["guest"]["lock"] = json!(lock);
        let seen = see(&survey);
        assert_eq!((seen.verdict(), exit_code(&seen.findings) as u8), (Verdict::Blocked, 3), "{lock}");
        let told = seen.findings.iter().find(|f| f.code.name() == "guest-locked").unwrap();
        assert!(
            told.remedy.text.contains("`qm unlock 516`") && told.remedy.text.contains("safe"),
            "{told:?}"
        );
        for policy in [&in_hook, &looking] {
            let seen = see_with(&survey, policy);
            assert_eq!(seen.severity("guest-locked"), Some(Severity::Note), "{lock}");
            assert!(exit_code(&seen.findings) as u8 == 0, "{lock}");
        }
        for (place, value) in
            [("running", json!({ "known": true })), ("running", unknown()), ("name", json!("pve2"))]
        {
            let mut survey = survey.clone();
            survey["node"][place] = value;
            assert_eq!(see(&survey).severity("guest-locked"), Some(Severity::Note), "{lock} {place}");
        }
    }
    let mut survey = healthy();
    survey["guest"]["lock"] = json!("suspended");
    assert_eq!(see(&survey).verdict(), Verdict::Ready, "a start resumes it");
    survey["guest"]["kind"] = json!("lxc");
    assert_eq!(see(&survey).verdict(), Verdict::Blocked);
    assert_eq!(see_with(&survey, &policy("ignore: [guest-locked]")).verdict(), Verdict::Ready);
}

#[test]
fn what_proxmox_ve_refuses_blocks_by_hand_and_nowhere_else() {
    let in_hook = Policy { scope: Scope::InHook, ..policy("") };
    let snippet = |option: &str, refused: Value| json!([{ "option": option, "volid": "local:snippets/x", "refused": refused }]);
    for (code, place, value, hook) in [
        ("quorum-missing", "quorate", json!({ "known": false }), Severity::Warning),
        ("hookscript-missing", "snippets", snippet("hookscript", json!({ "known": "no" })), Severity::Note),
        ("cicustom-missing", "snippets", snippet("cicustom user", json!({ "known": "no" })), Severity::Note),
    ] {
        let mut survey = healthy();
        survey["node"][place] = value;
        let seen = see(&survey);
        assert_eq!(
            (seen.severity(code), seen.verdict()),
            (Some(Severity::Blocker), Verdict::Blocked),
            "{code}"
        );
        assert_eq!(exit_code(&seen.findings) as u8, 3, "{code}");
        let seen = see_with(&survey, &in_hook);
        assert_eq!(seen.severity(code), Some(hook), "{code}");
        assert_eq!(exit_code(&seen.findings) as u8, 0, "{code}");
        survey["node"]["running"] = json!({ "known": true });
        assert!(see(&survey).severity(code) < Some(Severity::Blocker), "{code}");
    }
    // What is not known stops nothing.
    for (place, value) in [("quorate", unknown()), ("snippets", snippet("hookscript", unknown()))] {
        let mut survey = healthy();
        survey["node"][place] = value;
        assert_eq!(see(&survey).verdict(), Verdict::Ready, "{place}");
    }
}

#[test]
fn a_hookscript_of_our_own_is_brought_back_by_attach() {
    let mut survey = healthy();
    for (volid, told) in [
        ("local:snippets/rbd-preflight", "rbd-preflight attach 516"),
        ("local:snippets/x", "qm set 516 --delete hookscript"),
    ] {
        survey["node"]["snippets"] =
            json!([{ "option": "hookscript", "volid": volid, "refused": { "known": "no" } }]);
        let seen = see(&survey);
        let found = seen.findings.iter().find(|f| f.code.name() == "hookscript-missing").unwrap();
        assert!(format!("{:?}", found.remedy).contains(told), "{found:?}");
    }
}

/// The flag `full` of the pool, as `osd pool ls detail` has it.
#[test]
fn a_full_pool_stops_what_is_opened_for_writing_in_it() {
    let full = |pool: &str| {
        let mut survey = mendable();
        survey["clusters"][0]["known"]["health"] = json!({ "known": { "status": "HEALTH_ERR",
            "checks": [["POOL_FULL", "1 pool(s) full"]], "errors": [] } });
        survey["clusters"][0]["known"]["full_pools"] = json!({ "known": [pool] });
        survey
    };
    let seen = see(&full("rbd"));
    assert_eq!(seen.severity("cluster-full"), Some(Severity::Blocker));
    assert_eq!(seen.kind("cluster-full"), Some(RemedyKind::Wait));
    assert!(seen.actions.is_empty(), "a change would hang: {:?}", seen.actions);
    assert_eq!(seen.severity("cluster-health"), None, "it is told once");
    let in_hook = Policy { scope: Scope::InHook, map: true, ..policy("") };
    assert_eq!(exit_code(&see_with(&full("rbd"), &in_hook).findings) as u8, 3);

    let severity = |survey: &Value| see(survey).severity("cluster-full");
    assert_eq!(severity(&full("another")), None);
    let mut data = full("data");
    data["storages"]["ceph"]["section"]["data_pool"] = json!("data");
    assert_eq!(severity(&data), Some(Severity::Warning), "the guest starts, and its writes wait");
    assert!(!see(&data).actions.is_empty());
    for (place, value) in [("role", json!("cdrom")), ("read_only", json!(true))] {
        let mut read = full("rbd");
        read["disks"][0][place] = value;
        assert_eq!(severity(&read), Some(Severity::Warning), "{place}");
    }
    let mut mapped = full("rbd");
    let mut own = mapping(0, 5, "");
    own["image"] = json!("vm-516-disk-scsi0");
    mapped["node"]["kernel"]["mappings"] = json!({ "known": [own] });
    assert_eq!(severity(&mapped), Some(Severity::Warning), "PVE maps nothing that is mapped");
    mapped["node"]["kernel"]["mappings"] = unknown();
    assert_eq!(severity(&mapped), Some(Severity::Warning), "it is not sure");
    let mut unread = full("rbd");
    unread["clusters"][0]["known"]["full_pools"] = unknown();
    assert_eq!(severity(&unread), None);
}

/// `rbd map` goes by the monitors' own map, the options that maps take by default, and its release.
#[test]
fn monitors_without_an_address_that_a_map_asks_for_are_told_before_it() {
    let only = |protocol: Value, release: Value, options: Value| {
        let mut survey = healthy();
        survey["clusters"][0]["known"]["only_protocol"] = protocol;
        survey["node"]["rbd_release"] = release;
        survey["disks"][0]["map_options"] = options;
        survey
    };
    let (old, new) = (json!({ "known": "19.2.6" }), json!({ "known": "20.2.4" }));
    let told = |survey: &Value| see(survey).severity("ms-mode-mismatch");
    let options = |text: &str| json!({ "known": text });
    let mismatch = only(json!("v2"), old.clone(), options("rxbounce"));
    assert_eq!((told(&mismatch), see(&mismatch).verdict()), (Some(Severity::Blocker), Verdict::Blocked));
    assert_eq!(told(&only(json!("v1"), old.clone(), options("ms_mode=secure"))), Some(Severity::Blocker));
    for healthy in [
        only(json!("v2"), old.clone(), options("ms_mode=prefer-crc")),
        only(json!("v2"), new.clone(), options("")),
        only(json!("v1"), old.clone(), options("")),
        // What such a release then does was not tried.
        only(json!("v1"), new, options("")),
        only(Value::Null, old.clone(), options("")),
        // What is not known is not claimed.
        only(json!("v2"), unknown(), options("")),
        only(json!("v2"), Value::Null, options("")),
        only(json!("v2"), old.clone(), unknown()),
        only(json!("v2"), old, Value::Null),
    ] {
        assert_eq!(told(&healthy), None, "{healthy:#}");
    }
    // Where the map is about to be tried, that tells.
    for policy in
        [Policy { map: true, ..policy("") }, Policy { scope: Scope::InHook, map: true, ..policy("") }]
    {
        let seen = see_with(&mismatch, &policy);
        assert_eq!(seen.severity("ms-mode-mismatch"), Some(Severity::Warning));
        assert!(
            seen.changes().iter().any(|change| matches!(change, Change::Map { .. })),
            "{:?}",
            seen.actions
        );
    }
    let mut librbd = mismatch.clone();
    librbd["disks"] = json!([disk("scsi0", "librbd")]);
    librbd["disks"][0]["map_options"] = options("");
    assert_eq!(told(&librbd), None);
}

#[test]
fn inactive_placement_groups_of_the_images_pool_block_by_hand_and_warn_in_the_hook() {
    let inactive = |pool: &str| {
        let mut survey = healthy();
        survey["clusters"][0]["known"]["health"] = json!({ "known": { "status": "HEALTH_WARN",
            "checks": [["PG_AVAILABILITY", "Reduced data availability: 9 pgs inactive"]], "errors": [] } });
        survey["clusters"][0]["known"]["inactive_pools"] = json!({ "known": [
            { "pool": pool, "count": 9, "groups": ["pg 2.1f is down, acting [3]"] } ] });
        survey
    };
    let seen = see(&inactive("rbd"));
    let found = seen.findings.iter().find(|f| f.code.name() == "placement-groups-inactive").unwrap();
    assert_eq!((found.severity, seen.verdict()), (Severity::Blocker, Verdict::Blocked));
    assert_eq!(found.detail, "pool rbd: pg 2.1f is down, acting [3], and 8 more");
    assert_eq!(seen.severity("cluster-health"), None, "it is told once");
    let in_hook = Policy { scope: Scope::InHook, ..policy("") };
    let seen = see_with(&inactive("rbd"), &in_hook);
    assert_eq!(seen.severity("placement-groups-inactive"), Some(Severity::Warning));
    assert_eq!(
        exit_code(&seen.findings) as u8,
        0,
        "whether the start needs what lies in them cannot be told"
    );
    let seen = see(&inactive("another"));
    assert_eq!(seen.severity("placement-groups-inactive"), None);
    assert_eq!(seen.severity("cluster-health"), Some(Severity::Warning));
}

/// The second connection to a cluster may read the blocklist where the first may not.
#[test]
fn a_blocklist_that_one_user_may_not_read_is_read_by_another() {
    let mut survey = healthy();
    survey["node"]["kernel"]["mappings"] = json!({ "known": [mapping(0, 5, "")] });
    survey["node"]["kernel"]["mappings"]["known"][0]["client_address"] = json!("10.0.0.1:0/5");
    let mut other = survey["clusters"][0].clone();
    other["known"]["blocklist"] =
        json!({ "known": [{ "address": "10.0.0.1:0/5", "until": "later", "range": false }] });
    survey["clusters"][0]["known"]["blocklist"] = unknown();
    survey["clusters"] = json!([survey["clusters"][0], other]);
    let survey: Survey = serde_json::from_value(survey).unwrap();
    assert_eq!(survey.dead_mappings().count(), 1);
}

#[test]
fn a_mapping_of_the_same_name_in_another_cluster_is_another_image() {
    let mut survey = mendable();
    survey["node"]["kernel"]["mappings"] = json!({ "known": [{
        "id": 0, "pool": "rbd", "namespace": null, "image": "vm-516-disk-scsi0", "snapshot": null,
        "fsid": "another", "client_address": "10.0.0.1:0/1", "client": 1,
    }] });
    assert!(!see(&survey).actions.is_empty());
}

#[test]
fn a_live_writer_is_unsafe_locked_or_not() {
    for lock in [lock(), json!({ "tag": "", "exclusive": true, "lockers": [] })] {
        let mut survey = healthy();
        facts(&mut survey)["watchers"] = json!({ "known": [watcher()] });
        facts(&mut survey)["lock"] = json!({ "known": lock });
        let seen = see(&survey);
        assert_eq!(seen.verdict(), Verdict::Refused);
        assert_eq!(seen.severity("lock-stale"), None);
        assert_eq!(exit_code(&seen.findings) as u8, 4);
    }
}

/// The watch of a host that is gone for good stays for ever where its client was only cut off; what ends it is an
/// administrator's to do, and never offered against a client of this node.
#[test]
fn how_a_client_of_a_dead_host_is_shut_out_is_told_and_never_among_the_commands() {
    let mut survey = healthy();
    facts(&mut survey)["watchers"] = json!({ "known": [watcher()] });
    let told = |survey: &Value| {
        let finding = see(survey).findings.into_iter().find(|f| f.code.name() == "in-use-elsewhere").unwrap();
        assert!(!finding.remedy.commands.iter().any(|command| command.contains("blocklist")), "{finding:?}");
        finding.remedy.text
    };
    let away = told(&survey);
    assert!(
        away.contains("only where its host is off for good: `ceph osd blocklist add 10.0.0.2:0/77`"),
        "{away}"
    );
    survey["node"]["whereabouts"] = json!({ "10.0.0.2:0/77": "this node: process 7 (rbd-nbd)" });
    let here = told(&survey);
    assert!(!here.contains("blocklist") && here.contains("end its process here"), "{here}");
}

/// In a failover this site's own rbd-mirror has the copy open: what to do is to promote it.
#[test]
fn a_copy_that_rbd_mirror_has_open_is_to_be_promoted_and_not_freed_of_a_writer() {
    let mut survey = healthy();
    facts(&mut survey)["watchers"] = json!({ "known": [watcher()] });
    facts(&mut survey)["lock"] = json!({ "known": lock() });
    facts(&mut survey)["mirroring"] =
        json!({ "known": { "mode": "snapshot", "state": "enabled", "primary": false } });
    let seen = see(&survey);
    let codes: Vec<&str> = seen.findings.iter().map(|finding| finding.code.name()).collect();
    assert_eq!((codes, seen.verdict()), (vec!["image-non-primary"], Verdict::Blocked));
    let finding = &seen.findings[0];
    assert!(finding.detail.contains("client.4242 at 10.0.0.2:0/77 has it open"), "{finding:?}");
    assert!(finding.remedy.commands[0].contains("mirror image promote"), "{finding:?}");
}

#[test]
fn a_running_guest_may_watch_its_own_images() {
    let mut survey = healthy();
    facts(&mut survey)["watchers"] = json!({ "known": [watcher()] });
    facts(&mut survey)["lock"] = json!({ "known": lock() });
    survey["node"]["running"] = json!({ "known": true });
    assert_eq!(see(&survey).verdict(), Verdict::Ready);
}

#[test]
fn unknown_watchers_are_never_taken_for_none() {
    let mut survey = healthy();
    facts(&mut survey)["watchers"] = unknown();
    assert_eq!(see(&survey).verdict(), Verdict::Unknown);
}

#[test]
fn a_lock_is_stale_only_without_a_matching_watch() {
    let mut survey = healthy();
    facts(&mut survey)["lock"] = json!({ "known": lock() });
    assert_eq!(see(&survey).kind("lock-stale"), Some(RemedyKind::Automatic));
    let mut other = watcher();
    other["cookie"] = json!(5);
    facts(&mut survey)["watchers"] = json!({ "known": [other] });
    let seen = see(&survey);
    assert_eq!(seen.severity("lock-owner-alive"), Some(Severity::Unsafe), "it watches by another cookie");
    assert!(seen.actions.is_empty());
    facts(&mut survey)["watchers"] =
        json!({ "known": [{ "address": "10.0.0.3:0/5", "client": 7, "cookie": 5 }] });
    let seen = see(&survey);
    assert_eq!(seen.kind("lock-stale"), Some(RemedyKind::Manual), "somebody else watches");
    assert_eq!(seen.verdict(), Verdict::Refused);
}

/// Breaking a lock puts its owner on the blocklist, and with it all that it has open elsewhere.
#[test]
fn a_lock_is_not_broken_while_anything_speaks_for_its_owners_life() {
    let mut with_another = healthy();
    facts(&mut with_another)["lock"] = json!({ "known": lock() });
    with_another["disks"] = json!([with_another["disks"][0], disk("scsi1", "krbd")]);
    assert_eq!(see(&with_another).kind("lock-stale"), Some(RemedyKind::Automatic));
    let mut mapped = with_another.clone();
    with_another["disks"][1]["reading"]["found"]["watchers"] =
        json!({ "known": [{ "address": "v1:10.0.0.2:0/77", "client": 4242, "cookie": 3 }] });
    let mut mapping = mapping(7, 4242, "");
    mapping["client_address"] = json!("10.0.0.2:0/77");
    mapped["node"]["kernel"]["mappings"] = json!({ "known": [mapping] });
    for mut survey in [with_another, mapped] {
        let breaks = |survey: &Value| {
            let seen = see(survey);
            seen.changes().iter().any(|change| matches!(change, Change::BreakLock { .. }))
        };
        let seen = see(&survey);
        assert_eq!(seen.severity("lock-owner-alive"), Some(Severity::Unsafe), "{:?}", seen.findings);
        assert!(!breaks(&survey));
        survey["clusters"][0]["known"]["blocklist"] = unknown();
        assert!(!breaks(&survey), "it may be alive");
        assert_eq!(see(&survey).severity("lock-owner-alive"), None, "and may be dead");
        let dead = json!({ "address": "10.0.0.2:0/77", "until": "2026-11-23T06:00", "range": false });
        survey["clusters"][0]["known"]["blocklist"] = json!({ "known": [dead] });
        assert_eq!(see(&survey).severity("lock-owner-alive"), None, "on the blocklist nothing lives");
        survey["clusters"][0]["known"]["blocklist"] = json!({ "known": [] });
        survey["node"]["running"] = json!({ "known": true });
        let seen = see(&survey);
        assert_eq!(seen.severity("lock-owner-alive"), None, "a guest that runs is not to be started");
        assert_eq!((seen.verdict(), breaks(&survey)), (Verdict::Ready, false));
    }
}

/// Nor by one look, or by one that was not whole; the start is not stopped by that.
#[test]
fn a_lock_is_not_broken_before_a_second_look_for_its_owner() {
    let mut survey = healthy();
    facts(&mut survey)["lock"] = json!({ "known": lock() });
    facts(&mut survey)["features"] = json!(["layering", "exclusive-lock"]);
    let look = |unwatched_for: u64, unread: &[&str]| json!({ "open": [], "looked_at": 9, "unread": unread, "unwatched_for": unwatched_for, "watch_timeout": 30 });
    survey["disks"][0]["lock_owner"] = look(0, &[]);
    let seen = see(&survey);
    let text = &seen.findings.iter().find(|f| f.code.name() == "lock-stale").unwrap().remedy.text;
    assert!(
        text.contains("second look for its owner in 30 s") && text.contains("puts 10.0.0.2:0/77 on"),
        "{text}"
    );
    let fresh: Survey = serde_json::from_value(survey.clone()).unwrap();
    let held_back: Vec<bool> = seen.actions.iter().map(|action| not_yet(&fresh, action).is_some()).collect();
    assert!(held_back.len() > 1 && held_back.iter().all(|held| *held), "features too: {:?}", seen.actions);
    for no_look in [look(90, &["list the images of rbd: (1) EPERM"]), json!(null)] {
        survey["disks"][0]["lock_owner"] = no_look;
        let seen = see(&survey);
        assert_eq!((seen.changes(), exit_code(&seen.findings) as u8), (vec![], 0), "{:?}", seen.findings);
        assert_eq!(seen.kind("lock-stale"), Some(RemedyKind::Manual));
    }
}

/// All guests of the node would wait for it. A hook keeps only its own guest waiting, and does it then.
#[test]
fn at_boot_nobody_waits_for_a_second_look_that_a_hook_can_take() {
    let boot = Policy { at_boot: true, ..policy("") };
    let changes = |survey: &Value, policy: &Policy| -> Vec<Change> {
        see_with(survey, policy).changes().into_iter().cloned().collect()
    };
    let mut survey = healthy();
    facts(&mut survey)["lock"] = json!({ "known": lock() });
    facts(&mut survey)["features"] = json!(["layering", "exclusive-lock"]);
    let dead = changes(&survey, &policy(""));
    assert!(dead.iter().any(|change| matches!(change, Change::BreakLock { .. })) && dead.len() > 1);
    assert_eq!(changes(&survey, &boot), dead, "nothing is to be waited for");
    let look = json!({ "open": [], "looked_at": 9, "unread": [], "unwatched_for": 0, "watch_timeout": 30 });
    survey["disks"][0]["lock_owner"] = look;
    assert_eq!(changes(&survey, &policy("")), dead);
    assert_eq!(changes(&survey, &boot), []);
    // What PVE opens before it calls the hook cannot wait for it; but whoever opens it breaks its lock.
    survey["disks"][0]["before_hook"] = json!(true);
    let early: Vec<Change> =
        dead.iter().filter(|change| !matches!(change, Change::BreakLock { .. })).cloned().collect();
    assert_eq!(changes(&survey, &boot), early);
}

/// The monitors refuse librbd's entry where its time is set; krbd sends none, and breaks the lock as it maps.
#[test]
fn a_time_for_blocklist_entries_stops_only_what_librbd_opens() {
    for (access, stops) in [("krbd", false), ("librbd", true)] {
        let mut survey = healthy();
        survey["disks"] = json!([disk("scsi0", access)]);
        facts(&mut survey)["lock"] = json!({ "known": lock() });
        survey["clusters"][0]["known"]["blocklist_expire_seconds"] = json!({ "known": 60 });
        let seen = see(&survey);
        let blocker = seen.severity("blocklist-expire-set") == Some(Severity::Blocker);
        assert_eq!(blocker, stops, "{access}: {:?}", seen.findings);
        let breaks = seen.changes().iter().any(|change| matches!(change, Change::BreakLock { .. }));
        assert!(stops || !breaks, "{access}");
        survey["storages"]["ceph"]["caps"] = json!({ "known": { "mon": "allow r" } });
        let forbidden = see(&survey).severity("lock-break-not-permitted");
        assert_eq!(forbidden, Some(Severity::Blocker), "{access}: krbd may not either");
    }
}

#[test]
fn a_lock_break_that_was_forbidden_is_told_with_its_cause() {
    let mut survey = healthy();
    facts(&mut survey)["lock"] = json!({ "known": lock() });
    let action = json!(see(&survey).actions[0]);
    survey["history"] =
        json!([{ "action": action, "result": "failed", "errno": 13, "message": "Permission denied" }]);
    let seen = see(&survey);
    assert!(seen.actions.is_empty());
    assert_eq!(seen.severity("lock-break-not-permitted"), Some(Severity::Blocker));
}

#[test]
fn a_change_that_failed_is_not_tried_for_ever() {
    let mut survey = mendable();
    let actions: Vec<Value> = see(&survey).actions.iter().map(|a| json!(a)).collect();
    let failed = |errno: i32, times: usize| -> Vec<Value> {
        let one = |a: &Value| json!({ "action": a, "result": "failed", "errno": errno, "message": "no" });
        actions.iter().flat_map(|a| vec![one(a); times]).collect()
    };
    survey["history"] = json!(failed(30, 1));
    assert!(see(&survey).actions.is_empty());
    survey["history"] = json!(failed(22, 1));
    assert!(!see(&survey).actions.is_empty(), "22 may be a passing one");
    survey["history"] = json!(failed(22, 2));
    assert!(see(&survey).actions.is_empty());
}

#[test]
fn journaling_stays_under_librbd_and_where_mirrored() {
    let mut survey = healthy();
    survey["disks"] = json!([disk("scsi0", "librbd")]);
    facts(&mut survey)["features"] = json!(["layering", "exclusive-lock", "journaling"]);
    let seen = see(&survey);
    assert_eq!(seen.verdict(), Verdict::Ready);
    assert!(seen.actions.is_empty());

    let mut survey = healthy();
    facts(&mut survey)["features"] = json!(["layering", "exclusive-lock", "journaling"]);
    facts(&mut survey)["mirroring"] =
        json!({ "known": { "mode": "journal", "state": "enabled", "primary": true } });
    let seen = see(&survey);
    assert_eq!(seen.severity("image-mirrored"), Some(Severity::Blocker));
    assert_eq!(seen.severity("journaling-on-krbd"), None);
    assert!(seen.actions.is_empty());
}

#[test]
fn a_flagged_object_map_is_rebuilt_head_and_named_snapshots() {
    let mut survey = healthy();
    let invalid = json!({ "known": { "object_map_invalid": true, "fast_diff_invalid": true } });
    facts(&mut survey)["flags"] = invalid.clone();
    facts(&mut survey)["snapshots"] = json!({ "known": [
        { "id": 4, "name": "before-upgrade", "namespace": "user", "flags": invalid, "protected": false },
        { "id": 5, "name": "x", "namespace": "trash", "flags": invalid, "protected": false },
        { "id": 7, "name": "a/vm-1-disk-0", "namespace": "user", "flags": invalid, "protected": false },
        { "id": 8, "name": "a@b", "namespace": "user", "flags": invalid, "protected": false },
        { "id": 6, "name": "fine", "namespace": "user", "protected": false,
          "flags": { "known": { "object_map_invalid": false, "fast_diff_invalid": false } } },
    ] });
    let seen = see(&survey);
    assert_eq!(
        seen.changes(),
        [
            &Change::RebuildObjectMap { snapshot: None },
            &Change::RebuildObjectMap { snapshot: Some("before-upgrade".into()) }
        ]
    );
    assert_eq!(exit_code(&seen.findings) as u8, 0, "it does not stop a start");
}

#[test]
fn old_kernels_get_what_pve_sets_for_them() {
    let mut survey = healthy();
    survey["node"]["kernel"]["release"] = json!("4.15.0-pve");
    survey["node"]["kernel"]["version"] = json!([4, 15]);
    survey["node"]["kernel"]["supported"] =
        json!({ "known": ["layering", "striping", "exclusive-lock", "data-pool"] });
    let seen = see(&survey);
    let [Change::DisableFeatures { features }] = seen.changes()[..] else { panic!("{:?}", seen.changes()) };
    assert_eq!(features.to_string(), "exclusive-lock, object-map, fast-diff, deep-flatten");
}

#[test]
fn the_settings_hold_changes_back() {
    for (settings, left) in [
        ("mode: check", 0),
        ("change: { features: false, journaling: false, object_map: false, locks: false }", 0),
        ("change: { locks: false }", 3),
        ("storages: { ceph: { mode: check } }", 0),
        ("storages: { other: { mode: check } }", 4),
        ("guests: { 516: { mode: check } }", 0),
    ] {
        assert_eq!(see_with(&mendable(), &policy(settings)).actions.len(), left, "{settings}");
    }
}

#[test]
fn an_ignored_finding_stops_nothing_and_changes_nothing() {
    let mut survey = mendable();
    facts(&mut survey)["watchers"] = json!({ "known": [watcher()] });
    let seen =
        see_with(&survey, &policy("guests: { 516: { ignore: [in-use-elsewhere, journaling-on-krbd] } }"));
    assert_eq!(seen.severity("in-use-elsewhere"), Some(Severity::Warning));
    assert_eq!(exit_code(&seen.findings) as u8, 0);
    assert!(seen.actions.is_empty());
}

#[test]
fn a_line_that_pve_drops_can_only_warn() {
    let mut survey = mendable();
    survey["disks"][0]["pve_drops"] = json!({ "why": "cache=bogus", "unknown_option": false });
    let seen = see(&survey);
    assert!(seen.actions.is_empty());
    assert_eq!(exit_code(&seen.findings) as u8, 0);
    survey["disks"][0]["pve_drops"] = json!({ "why": "newer=1", "unknown_option": true });
    assert_eq!(see(&survey).actions.len(), 4, "a newer PVE may know the option");
}

#[test]
fn a_survey_survives_being_saved() {
    let survey: Survey = serde_json::from_value(mendable()).unwrap();
    let text = serde_json::to_string(&survey).unwrap();
    assert_eq!(serde_json::from_str::<Survey>(&text).unwrap(), survey);
}

/// The last rung of `start`: off, on, rebuilt, in that order, on images that nobody watches, and only once.
#[test]
fn a_feature_reset_takes_off_and_puts_back_once() {
    let mut policy = policy("");
    policy.reset = true;
    for access in ["krbd", "librbd"] {
        let mut survey = healthy();
        survey["disks"] = json!([disk("scsi0", access)]);
        let seen = see_with(&survey, &policy);
        let [disable, enable, rebuild] = seen.changes()[..] else { panic!("{:?}", seen.changes()) };
        assert!(
            matches!((disable, enable), (Change::DisableFeatures { features: a }, Change::EnableFeatures { features: b })
            if a == b && a.to_string() == "exclusive-lock, object-map, fast-diff")
        );
        assert_eq!(rebuild, &Change::RebuildObjectMap { snapshot: None });

        // Interrupted after the first step: what was taken off is put back.
        let done = |action: &Action| json!({ "action": action, "result": "done", "duration_ms": 1 });
        survey["history"] = json!([done(&seen.actions[0])]);
        facts(&mut survey)["features"] = json!(["layering", "deep-flatten"]);
        let next = see_with(&survey, &policy);
        assert_eq!(next.changes()[0], enable, "{access}");

        survey["history"] = json!([done(&seen.actions[0]), done(&seen.actions[1]), done(&seen.actions[2])]);
        facts(&mut survey)["features"] = healthy()["disks"][0]["reading"]["found"]["features"].clone();
        assert!(see_with(&survey, &policy).actions.is_empty(), "{access}: once is enough");

        survey["history"] = json!([]);
        facts(&mut survey)["watchers"] = json!({ "known": [watcher()] });
        assert!(see_with(&survey, &policy).actions.is_empty(), "{access}: somebody watches");
    }
}

/// Whatever has come up meanwhile that stops the start: an image is not left without what this run has taken off.
#[test]
fn what_a_reset_has_taken_off_is_put_back_though_the_start_will_be_refused() {
    let policy = Policy { reset: true, starting: true, ..policy("") };
    for access in ["krbd", "librbd"] {
        let mut survey = healthy();
        survey["disks"] = json!([disk("scsi0", access)]);
        let seen = see_with(&survey, &policy);
        survey["history"] = json!([{ "action": &seen.actions[0], "result": "done", "duration_ms": 1 }]);
        facts(&mut survey)["features"] = json!(["layering", "deep-flatten"]);
        let mut gone = disk("scsi1", access);
        gone["reading"] = json!("image_missing");
        survey["disks"] = json!([survey["disks"][0], gone]);
        let next = see_with(&survey, &policy);
        assert_eq!(next.changes()[0], seen.changes()[1], "{access}");
        survey["history"] = json!([]);
        assert_eq!(see_with(&survey, &policy).changes(), [] as [&Change; 0], "{access}: nothing is begun");
    }
}

/// At boot a start that is certain to be refused is worth no change either. What may have passed by then keeps nothing from
/// being repaired: PVE opens some disks before it calls their guest's hook.
#[test]
fn at_boot_nothing_is_changed_for_a_guest_that_is_certain_not_to_start() {
    let boot = Policy { at_boot: true, ..policy("") };
    let mut survey = mendable();
    let fixed = see_with(&survey, &boot).changes().len();
    let all = |other: Value| json!([mendable()["disks"][0], other]);
    let (mut gone, mut dying) = (disk("scsi1", "krbd"), disk("scsi1", "krbd"));
    gone["reading"] = json!("image_missing");
    let other = json!({ "address": "10.0.0.9:0/9", "client": 9, "cookie": 1 });
    dying["reading"]["found"]["watchers"] = json!({ "known": [other] });
    survey["disks"] = all(dying);
    assert_eq!(see_with(&survey, &boot).changes().len(), fixed);
    survey["disks"] = all(gone);
    assert_eq!(see_with(&survey, &boot).changes(), [] as [&Change; 0]);
    assert_eq!(see_with(&survey, &policy("")).changes().len(), fixed, "by hand somebody has asked for it");
    survey = mendable();
    survey["node"]["kernel"]["load_failure"] = json!("modprobe: FATAL: Module rbd not found");
    let seen = see_with(&survey, &boot);
    assert_eq!((seen.changes().len(), exit_code(&seen.findings) as u8), (0, 3));
}

/// What the kernel cannot map, or PVE would take off again, does not come back.
#[test]
fn a_feature_reset_puts_back_only_what_the_kernel_maps() {
    let mut policy = policy("");
    policy.reset = true;
    let mut survey = healthy();
    survey["node"]["kernel"]["version"] = json!([5, 2]);
    survey["node"]["kernel"]["supported"] =
        json!({ "known": ["layering", "exclusive-lock", "deep-flatten"] });
    let seen = see_with(&survey, &policy);
    let [Change::DisableFeatures { features: off }, Change::EnableFeatures { features: on }] =
        seen.changes()[..]
    else {
        panic!("{:?}", seen.changes())
    };
    assert_eq!(off.to_string(), "exclusive-lock, object-map, fast-diff, deep-flatten");
    assert_eq!(on.to_string(), "exclusive-lock");
}

#[test]
fn disks_are_mapped_last_and_only_if_the_guest_will_start() {
    let mut policy = policy("");
    policy.map = true;
    let seen = see_with(&mendable(), &policy);
    assert!(
        matches!(seen.changes()[..], [.., Change::Map { noshare: false, rxbounce: false }]),
        "{:?}",
        seen.changes()
    );
    let mut survey = healthy();
    survey["guest"]["ostype"] = json!("win11");
    let windows = see_with(&survey, &policy);
    assert_eq!(windows.changes(), [&Change::Map { noshare: false, rxbounce: true }]);

    let mut survey = healthy();
    survey["disks"] = json!([disk("scsi0", "krbd"), disk("scsi1", "krbd"), disk("scsi2", "librbd")]);
    assert_eq!(see_with(&survey, &policy).actions.len(), 2, "librbd disks are never mapped");
    survey["disks"][1]["reading"]["found"]["watchers"] = json!({ "known": [watcher()] });
    assert!(
        see_with(&survey, &policy).actions.is_empty(),
        "a guest that will not start needs no disk mapped"
    );
}

/// The other site's rbd-mirror has the image open: it is mapped all the same, nothing else is changed, and whoever owns the
/// image's lock is a writer whatever else it is.
#[test]
fn rbd_mirrors_daemon_keeps_nobody_from_mapping() {
    let mut policy = policy("");
    policy.map = true;
    let mut survey = healthy();
    facts(&mut survey)["mirroring"] =
        json!({ "known": { "mode": "snapshot", "state": "enabled", "primary": true } });
    facts(&mut survey)["watchers"] = json!({ "known": [watcher()] });
    let daemon = json!({ "address": "10.0.0.2:0/77", "client": 4242, "cookie": 3 });
    survey["disks"][0]["mirror_daemons"] = json!({ "known": [daemon] });
    let seen = see_with(&survey, &policy);
    assert!(matches!(seen.changes()[..], [Change::Map { .. }]), "{:?}", seen.findings);
    facts(&mut survey)["features"] = json!(["layering", "exclusive-lock"]);
    let seen = see_with(&survey, &policy);
    assert!(matches!(seen.changes()[..], [Change::Map { .. }]), "features stay: {:?}", seen.findings);
    facts(&mut survey)["lock"] = json!({ "known": lock() });
    let seen = see_with(&survey, &policy);
    assert_eq!((seen.changes(), seen.severity("in-use-elsewhere")), (vec![], Some(Severity::Unsafe)));
}

/// The manager flattens the image and owns its lock meanwhile: it is mapped all the same, and nothing else is changed. By its
/// address alone it is told from a writer.
#[test]
fn the_managers_tasks_keep_nobody_from_mapping() {
    let mut policy = policy("");
    policy.map = true;
    let mut survey = healthy();
    facts(&mut survey)["features"] = json!(["layering", "exclusive-lock"]);
    facts(&mut survey)["watchers"] = json!({ "known": [watcher()] });
    facts(&mut survey)["lock"] = json!({ "known": lock() });
    let known = |address: &str| json!({ "known": [address] });
    let (task, none) = (json!({ "known": "Flattening image rbd/a" }), json!({ "known": null }));
    let mut told = |clients: &Value, task: &Value| {
        survey["disks"][0]["manager"] = json!({ "clients": clients, "task": task });
        let seen = see_with(&survey, &policy);
        let maps = matches!(seen.changes()[..], [Change::Map { .. }]);
        assert_eq!(maps, !seen.actions.is_empty(), "features stay: {:?}", seen.actions);
        let codes = ["manager-task", "in-use-unknown", "in-use-elsewhere"];
        (codes.into_iter().find(|code| seen.severity(code).is_some()).unwrap(), maps)
    };
    assert_eq!(told(&known("10.0.0.2:0/77"), &task), ("manager-task", true));
    assert_eq!(told(&known("10.0.0.2:0/77"), &unknown()), ("manager-task", true));
    assert_eq!(told(&known("10.0.0.2:0/78"), &task), ("in-use-elsewhere", false));
    assert_eq!(told(&unknown(), &task), ("in-use-unknown", false));
    assert_eq!(told(&unknown(), &none), ("in-use-elsewhere", false));
    assert_eq!(told(&unknown(), &unknown()), ("in-use-elsewhere", false));
    let writer = json!({ "address": "10.0.0.3:0/9", "client": 9, "cookie": 9 });
    facts(&mut survey)["watchers"] = json!({ "known": [watcher(), writer] });
    for clients in [known("10.0.0.2:0/77"), unknown()] {
        survey["disks"][0]["manager"] = json!({ "clients": clients, "task": task });
        let seen = see_with(&survey, &policy);
        assert_eq!((seen.changes(), seen.severity("in-use-elsewhere")), (vec![], Some(Severity::Unsafe)));
    }
}

/// What is looked for where a kernel client is dead: what maps take by default, and which `rbd` it is.
fn set_defaults(survey: &mut Value, options: &str, release: &str) {
    survey["node"]["rbd_release"] = json!({ "known": release });
    for disk in survey["disks"].as_array_mut().unwrap() {
        disk["map_options"] = json!({ "known": options });
    }
}

/// An image of another guest, mapped here through client.admin's kernel client of this number.
fn mapping(device: u32, client: u64, options: &str) -> Value {
    let comma = if options.is_empty() { "" } else { "," };
    json!({
        "id": device, "pool": "rbd", "namespace": null, "image": format!("vm-{}-disk-0", 600 + device),
        "snapshot": null, "fsid": "f", "client_address": format!("10.0.0.1:0/{client}"), "client": client,
        "options": format!("name=admin,key=client.admin{comma}{options}"),
    })
}

/// These kernel clients are on the blocklist.
fn blocklist(clients: &[u64]) -> Value {
    let entry = |client| json!({ "address": format!("10.0.0.1:0/{client}"), "until": "2026-11-23T06:00", "range": false });
    json!({ "known": clients.iter().map(entry).collect::<Vec<_>>() })
}

/// The guest of a mapping runs, or does not and nothing has the device open.
fn users(running: bool) -> Value {
    json!({ "holders": { "known": [] }, "guests": { "600": { "known": running } } })
}

/// A dead kernel client that something still uses is stepped round; one that nothing uses is let go.
#[test]
fn a_dead_kernel_client_is_unmapped_or_stepped_round() {
    let mut policy = policy("");
    policy.map = true;
    let mut survey = healthy();
    set_defaults(&mut survey, "", "19.2.6");
    survey["clusters"][0]["known"]["blocklist"] = blocklist(&[5]);
    survey["node"]["kernel"]["mappings"] = json!({ "known": [mapping(7, 5, "")] });
    let users =
        |holders: Value, running: Value| json!({ "7": { "holders": holders, "guests": { "600": running } } });
    let no = json!({ "known": false });
    survey["node"]["mapping_users"] = users(json!({ "known": [] }), no.clone());
    let left_over = see_with(&survey, &policy);
    assert_eq!(
        left_over.changes(),
        [&Change::Map { noshare: false, rxbounce: false }, &Change::Unmap { device: 7 }],
        "image by image; act unmaps first"
    );
    let process = json!({ "known": [{ "process": { "device": "rbd7",
        "process": { "pid": 1, "command": "kvm", "guest": 600 } } }] });
    for users in [
        users(process, json!({ "known": true })),
        users(json!({ "known": [] }), json!({ "known": true })),
        users(unknown(), no),
        users(json!({ "known": [] }), unknown()),
        json!({}),
    ] {
        survey["node"]["mapping_users"] = users;
        let seen = see_with(&survey, &policy);
        assert_eq!(seen.changes(), [&Change::Map { noshare: true, rxbounce: false }]);
        assert_eq!(seen.severity("node-client-blocklisted"), Some(Severity::Warning));
        // By hand too: a plain map by PVE would end with 108.
        let by_hand = see(&survey);
        assert_eq!(by_hand.kind("not-mapped"), Some(RemedyKind::Automatic));
        assert_eq!((by_hand.verdict(), exit_code(&by_hand.findings) as u8), (Verdict::Repairable, 3));
        assert_eq!(by_hand.changes(), [&Change::Map { noshare: true, rxbounce: false }]);
    }
    let mut librbd = survey.clone();
    librbd["disks"] = json!([disk("scsi0", "librbd")]);
    let seen = see(&librbd);
    assert_eq!(seen.severity("node-client-blocklisted"), Some(Severity::Warning));
    assert_eq!((seen.verdict(), seen.changes()), (Verdict::Ready, vec![]));
}

/// What a guest is to be told of this node's kernel clients.
enum Told {
    /// The client that its map would take is dead; its options.
    Dead(&'static str),
    /// It lives, or will be made.
    Fit,
    /// It is not known which one its map would take.
    Unknown,
}

/// One client lives and two are dead, all three with a guest that runs on it: each guest to be started is told what is
/// true of the client that its own map would take.
#[test]
fn of_several_kernel_clients_only_the_shared_one_counts() {
    let mut survey = healthy();
    survey["clusters"][0]["known"]["blocklist"] = blocklist(&[5, 6]);
    survey["node"]["kernel"]["mappings"] = json!({ "known": [mapping(1, 4, ""), mapping(2, 5, "rxbounce"), mapping(3, 6, "ms_mode=prefer-crc")] });
    survey["node"]["mapping_users"] = json!({ "1": users(true), "2": users(true), "3": users(true) });
    let mut starting = policy("");
    starting.map = true;
    for (ostype, options, release, told) in [
        ("l26", json!({ "known": "" }), json!({ "known": "19.2.6" }), Told::Fit),
        ("win11", json!({ "known": "" }), json!({ "known": "19.2.6" }), Told::Dead("rxbounce")),
        ("l26", json!({ "known": "rxbounce" }), json!({ "known": "19.2.6" }), Told::Dead("rxbounce")),
        (
            "l26",
            json!({ "known": "ms_mode=prefer-crc" }),
            json!({ "known": "19.2.6" }),
            Told::Dead("ms_mode=prefer-crc"),
        ),
        ("l26", json!({ "known": "" }), json!({ "known": "20.2.4" }), Told::Dead("ms_mode=prefer-crc")),
        ("l26", json!({ "known": "ms_mode=legacy" }), json!({ "known": "20.2.4" }), Told::Fit),
        ("win11", json!({ "known": "" }), json!({ "known": "20.2.4" }), Told::Fit),
        ("win11", json!({ "known": "ms_mode=legacy" }), json!({ "known": "20.2.4" }), Told::Dead("rxbounce")),
        ("l26", json!({ "known": "noshare" }), json!({ "known": "20.2.4" }), Told::Fit),
        ("l26", json!({ "known": "" }), unknown(), Told::Unknown),
        ("l26", unknown(), json!({ "known": "19.2.6" }), Told::Unknown),
        ("l26", json!(null), json!(null), Told::Unknown),
        ("win11", unknown(), json!({ "known": "20.2.4" }), Told::Unknown),
    ] {
        survey["guest"]["ostype"] = json!(ostype);
        survey["disks"][0]["map_options"] = options.clone();
        survey["node"]["rbd_release"] = release.clone();
        let case = format!("{ostype}, {options}, {release}");
        let (seen, by_hand) = (see_with(&survey, &starting), see(&survey));
        let (noshare, rxbounce) = (matches!(told, Told::Dead(_)), ostype == "win11");
        assert_eq!(seen.changes(), [&Change::Map { noshare, rxbounce }], "{case}");
        let dead: Vec<&Finding> =
            by_hand.findings.iter().filter(|f| f.code.name() == "node-client-blocklisted").collect();
        assert_eq!(dead.len(), 2, "{case}: each by itself");
        assert!(dead.iter().all(|f| f.severity == Severity::Warning), "{case}");
        assert!(dead[0].detail.starts_with("client with rxbounce at 10.0.0.1:0/5"), "{}", dead[0].detail);
        assert!(
            dead[1].detail.starts_with("client with ms_mode=prefer-crc at 10.0.0.1:0/6"),
            "{}",
            dead[1].detail
        );
        let stopper = by_hand.findings.iter().find(|f| f.severity == Severity::Blocker);
        let taken = dead.iter().find(|f| f.remedy.text.contains("of their own (noshare)"));
        let perhaps = dead.iter().any(|f| f.remedy.text.contains("not known"));
        match told {
            Told::Dead(options) => {
                let summary = &stopper.unwrap().summary;
                assert!(
                    summary.contains(&format!("kernel client with {options} is dead")),
                    "{case}: {summary}"
                );
                assert!(taken.unwrap().detail.contains(&format!("client with {options} ")), "{case}");
                assert_eq!((by_hand.verdict(), by_hand.actions.len()), (Verdict::Repairable, 1), "{case}");
            }
            Told::Fit => {
                assert!(stopper.is_none() && taken.is_none() && !perhaps, "{case}: {:#?}", by_hand.findings);
                assert!(dead.iter().all(|f| f.summary.contains("their maps do not share it")), "{case}");
                assert_eq!((by_hand.verdict(), by_hand.actions.len()), (Verdict::Ready, 0), "{case}");
            }
            Told::Unknown => {
                assert!(stopper.is_none() && taken.is_none() && perhaps, "{case}: {:#?}", by_hand.findings);
                assert_eq!((by_hand.verdict(), by_hand.actions.len()), (Verdict::Ready, 0), "{case}");
                // The map itself shows it.
                let failed = json!({ "action": seen.actions[0], "result": "failed", "errno": 108, "message": "shutdown" });
                let mut survey = survey.clone();
                survey["history"] = json!([failed]);
                assert_eq!(
                    see_with(&survey, &starting).changes(),
                    [&Change::Map { noshare: true, rxbounce }],
                    "{case}"
                );
            }
        }
    }
}

/// Leftovers of a dead client go for the sake of a map that would take it, and for nothing else.
#[test]
fn leftovers_go_only_where_a_map_would_share_their_client() {
    let mut survey = healthy();
    survey["clusters"][0]["known"]["blocklist"] = blocklist(&[5]);
    survey["node"]["kernel"]["mappings"] = json!({ "known": [mapping(1, 4, ""), mapping(2, 5, "rxbounce"), mapping(3, 5, "queue_depth=9,rxbounce")] });
    survey["node"]["mapping_users"] = json!({ "1": users(true), "2": users(false), "3": users(false) });
    set_defaults(&mut survey, "", "19.2.6");
    let linux = see(&survey);
    assert_eq!(linux.severity("node-client-blocklisted"), Some(Severity::Note));
    assert_eq!((linux.verdict(), linux.changes()), (Verdict::Ready, vec![]));

    survey["guest"]["ostype"] = json!("win11");
    let unmaps = [&Change::Unmap { device: 2 }, &Change::Unmap { device: 3 }];
    assert_eq!(see(&survey).changes(), unmaps);
    survey["node"]["mapping_users"]["3"] = users(true);
    assert_eq!(see(&survey).changes(), [&Change::Map { noshare: true, rxbounce: true }], "all or none");
    survey["node"]["mapping_users"]["3"] = users(false);

    // Nothing is changed on a guess.
    survey["disks"][0]["map_options"] = unknown();
    let seen = see(&survey);
    assert_eq!(seen.severity("node-client-blocklisted"), Some(Severity::Warning));
    assert_eq!((seen.verdict(), seen.changes()), (Verdict::Ready, vec![]));
    set_defaults(&mut survey, "", "19.2.6");
    survey["node"]["kernel"]["mappings"]["known"] =
        json!([mapping(1, 4, ""), mapping(2, 5, "warp,rxbounce")]);
    assert_eq!(see(&survey).changes(), [] as [&Change; 0]);
}

/// A disk that is mapped through a dead client is unmapped, whatever its next map takes; the leftovers of others are left
/// where that next map takes another client.
#[test]
fn a_disk_on_a_dead_client_is_mapped_anew() {
    let mut survey = healthy();
    survey["clusters"][0]["known"]["blocklist"] = blocklist(&[5]);
    let mut own = mapping(1, 5, "");
    own["image"] = json!("vm-516-disk-scsi0");
    survey["node"]["kernel"]["mappings"] = json!({ "known": [own, mapping(2, 5, "")] });
    survey["node"]["mapping_users"] = json!({ "1": users(false), "2": users(false) });
    set_defaults(&mut survey, "", "19.2.6");
    let changes = |survey: &Value| {
        let mut changes: Vec<Change> = see(survey).changes().into_iter().cloned().collect();
        changes.sort();
        changes
    };
    let (first, second) = (Change::Unmap { device: 1 }, Change::Unmap { device: 2 });
    assert_eq!(changes(&survey), [first.clone(), second]);
    set_defaults(&mut survey, "", "20.2.4");
    let seen = see(&survey);
    assert_eq!(changes(&survey), [first]);
    assert_eq!(seen.severity("mapping-dead"), Some(Severity::Blocker));
    assert_eq!(seen.severity("node-client-blocklisted"), Some(Severity::Warning));
}

/// The kernel compares keys, and shows none.
#[test]
fn a_key_that_may_be_another_makes_it_unknown() {
    let mut survey = healthy();
    survey["clusters"][0]["known"]["blocklist"] = blocklist(&[5]);
    survey["node"]["mapping_users"] = json!({ "1": users(true), "2": users(true) });
    set_defaults(&mut survey, "", "19.2.6");
    let dead = mapping(2, 5, "");
    let at = |time: u64| {
        let mut dead = dead.clone();
        dead["made_at"] = json!(time);
        dead
    };
    for (mappings, written, shared) in [
        (vec![dead.clone()], None, true),
        (vec![dead.clone()], Some(100), true),
        (vec![at(100)], Some(100), true),
        (vec![at(100)], Some(101), false),
        // Whatever was mapped through it since had the key of the client.
        (
            vec![at(100), {
                let mut later = at(200);
                later["id"] = json!(1);
                later
            }],
            Some(101),
            true,
        ),
        // Another that looks the same: there are two keys.
        (vec![dead.clone(), mapping(1, 4, "")], None, false),
        (vec![dead.clone(), mapping(1, 4, "noshare")], None, true),
        (vec![dead.clone(), mapping(1, 4, "rxbounce")], None, true),
    ] {
        survey["node"]["kernel"]["mappings"] = json!({ "known": mappings });
        survey["storages"]["ceph"]["keyring_written"] = json!(written);
        let seen = see(&survey);
        let expected = if shared { Verdict::Repairable } else { Verdict::Ready };
        assert_eq!(seen.verdict(), expected, "{mappings:?} {written:?} {:#?}", seen.findings);
        assert_eq!(seen.severity("node-client-blocklisted"), Some(Severity::Warning));
    }
}

/// A map that got no answer is tried again, three times in all; what cannot get better is not.
#[test]
fn maps_are_tried_again_while_that_may_help() {
    let mut policy = policy("");
    policy.map = true;
    let mut survey = healthy();
    let action = json!(see_with(&survey, &policy).actions[0]);
    for (errno, tries) in [(json!(null), 3), (json!(110), 3), (json!(6), 1), (json!(13), 1), (json!(16), 1)] {
        for failed in 1..=3_usize {
            let failure = json!({ "action": action, "result": "failed", "errno": errno, "message": "no" });
            survey["history"] = json!(vec![failure; failed]);
            let seen = see_with(&survey, &policy);
            assert_eq!(seen.actions.len(), usize::from(failed < tries), "{errno} {failed}");
            assert_eq!(exit_code(&seen.findings) as u8, 3, "{errno} {failed}");
        }
    }
    // The shared client is dead, though nothing else says so: the next try has a client of its own.
    survey["history"] =
        json!([{ "action": action, "result": "failed", "errno": 108, "message": "shutdown" }]);
    let seen = see_with(&survey, &policy);
    assert_eq!(seen.changes(), [&Change::Map { noshare: true, rxbounce: false }]);
}

/// A map that was not tried is no failed map: PVE makes its own.
/// What a map that failed for good is told to have failed of, and what to do.
#[test]
fn the_words_of_rbd_and_the_kernel_name_the_cause_of_a_failed_map() {
    let policy = Policy { map: true, ..policy("") };
    let planned = json!(see_with(&healthy(), &policy).actions[0]);
    let told = |errno: i32, message: &str, log: &[&str]| {
        let mut survey = healthy();
        let failed = json!({ "action": planned, "result": "failed", "errno": errno, "message": message, "kernel_log": log });
        survey["history"] = json!(vec![failed; 9]);
        let seen = see_with(&survey, &policy);
        let stops = |finding: &&Finding| finding.severity >= Severity::Blocker;
        let found = seen.findings.into_iter().find(|finding| stops(&finding)).unwrap();
        (found.code.name(), found.detail, found.remedy.text)
    };
    let mismatch = "libceph: mon0 10.0.7.102:6789 feature set mismatch, my 106b84a842a42 < server's 40106b84a842a42, missing 400000000000000";
    let required = "libceph: mon0 10.0.7.102:6789 missing required protocol features";
    for (errno, message, log, code, seen) in [
        (
            110,
            "exit 110: rbd: sysfs write failed | rbd: map failed: (110) Connection timed out",
            &[mismatch, required][..],
            "kernel-too-old",
            "CRUSH_TUNABLES5 (bit 58, Linux 4.5",
        ),
        (110, "exit 110: rbd: map failed", &[], "cluster-unreachable", "map failed"),
        (
            122,
            "exit 122: rbd: failed to add secret 'client.admin' to kernel | rbd: map failed: (122) Disk quota exceeded",
            &[],
            "kernel-keyring-refused",
            "Disk quota exceeded",
        ),
        (
            1,
            "exit 1: rbd: failed to add secret 'client.admin' to kernel | rbd: map failed: (1) Operation not permitted",
            &[],
            "kernel-keyring-refused",
            "Operation not permitted",
        ),
        (
            22,
            "exit 22: rbd: sysfs write failed | rbd: map failed: (22) Invalid argument",
            &["libceph: Unknown parameter 'rxbounce'"],
            "map-option-unknown",
            "the kernel does not know the map option rxbounce",
        ),
        (
            22,
            "exit 22: rbd: unknown map option 'nonsense' | rbd: couldn't parse map options",
            &[],
            "map-option-unknown",
            "unknown map option 'nonsense'",
        ),
        (
            2,
            "exit 2: rbd: failed to get mon address (possible ms_mode mismatch) | rbd: map failed: (2) No such file or directory",
            &[],
            "ms-mode-mismatch",
            "failed to get mon address",
        ),
    ] {
        let (found, detail, _) = told(errno, message, log);
        assert_eq!(found, code, "{message}");
        assert!(detail.contains(seen), "{detail}");
    }
    // A line about another errno is another disk's, and gives no meaning to this one.
    let (found, detail, _) = told(5, "exit 5: rbd: map failed: (5) Input/output error", &[mismatch]);
    assert!(found == "map-failed" && !detail.contains("CRUSH_TUNABLES5 (bit"), "{detail}");
    let (found, _, remedy) =
        told(75, "exit 75: rbd: map failed: (75) Value too large for defined data type", &[]);
    assert_eq!(found, "map-failed");
    for part in [
        "ruled out: the image is there",
        "nobody has locked it",
        "nobody has it open",
        "--save-survey 516.json",
    ] {
        assert!(remedy.contains(part), "{part}: {remedy}");
    }
}

#[test]
fn a_map_that_was_withheld_or_busy_stops_nothing() {
    let mapping = Policy { map: true, ..policy("") };
    let history = |result: Value| {
        let mut survey = healthy();
        let action = &see_with(&survey, &mapping).actions[0];
        assert!(action.is_map());
        let mut report = json!({ "action": action });
        report.as_object_mut().unwrap().extend(result.as_object().unwrap().clone());
        survey["history"] = json!([report, report, report]);
        see_with(&survey, &mapping)
    };
    for result in ["withheld", "busy"] {
        let seen =
            history(json!({ "result": result, "why": "cannot write the journal: Read-only file system" }));
        assert_eq!(seen.severity("map-failed"), None, "{:?}", seen.findings);
        assert_eq!(exit_code(&seen.findings) as u8, 0, "{:?}", seen.findings);
        assert!(seen.actions.is_empty(), "it is not tried for ever");
    }
    let failed = history(json!({ "result": "failed", "errno": 5, "message": "exit 5: rbd: map failed" }));
    assert_eq!(failed.severity("map-failed"), Some(Severity::Blocker));
    let ours = history(
        json!({ "result": "failed", "errno": 1, "message": "exit 1: rbd: unrecognised option '--x'" }),
    );
    assert_eq!(ours.severity("command-unknown"), Some(Severity::Unknown));
    assert_eq!(exit_code(&ours.findings) as u8, 1);
}

/// The rebuilds of a guest's disks share one budget, less what was spent.
#[test]
fn rebuilds_share_one_budget() {
    let mut survey = healthy();
    survey["disks"] = json!([disk("scsi0", "librbd"), disk("scsi1", "librbd"), disk("scsi2", "librbd")]);
    for index in 0..3 {
        let facts = &mut survey["disks"][index]["reading"]["found"];
        facts["flags"] = json!({ "known": { "object_map_invalid": true, "fast_diff_invalid": true } });
        facts["objects"] = json!(10_000);
    }
    let rebuilt = |survey: &Value, seconds| {
        let policy = Policy { rebuild_budget: Some(std::time::Duration::from_secs(seconds)), ..policy("") };
        see_with(survey, &policy)
            .actions
            .iter()
            .map(|action| action.target.spec.image.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(rebuilt(&survey, 60).len(), 3);
    assert_eq!(rebuilt(&survey, 45), ["vm-516-disk-scsi0", "vm-516-disk-scsi1"]);
    assert_eq!(rebuilt(&survey, 19), [""; 0]);
    let first = see(&survey).actions[0].clone();
    survey["history"] = json!([{ "action": first, "result": "done", "duration_ms": 30_000 }]);
    assert_eq!(rebuilt(&survey, 60).len(), 1, "half of it is spent");
    survey["history"] = json!([{ "action": first, "result": "failed", "errno": null, "message": "killed" }]);
    assert_eq!(rebuilt(&survey, 60).len(), 0, "one was cut off; no other is begun");
}

#[test]
fn a_look_that_had_no_time_finds_nothing_out() {
    let mut survey = healthy();
    let late = json!({ "unknown": { "what": "connect", "errno": 110, "message": "Connection timed out" } });
    survey["clusters"][0] = late.clone();
    survey["disks"][0]["reading"] = late;
    assert_eq!(see(&survey).severity("cluster-unreachable"), Some(Severity::Blocker));
    let survey: Survey = serde_json::from_value(survey).unwrap();
    let findings = diagnose(&survey.without_blame(), &policy(""));
    assert_eq!(verdict(&findings), Verdict::Unknown, "{findings:?}");
}

/// On a slow node our own clock is the first to give up: Ceph has not said that nobody answers.
#[test]
fn a_read_that_was_not_done_in_time_is_unknown_and_stops_nothing() {
    let late = json!({ "unknown": { "origin": "late", "what": "connect", "message": "not done in time" } });
    let mut survey = healthy();
    survey["disks"][0]["reading"] = late.clone();
    let seen = see(&survey);
    assert_eq!((seen.verdict(), seen.actions.len()), (Verdict::Unknown, 0), "{:?}", seen.findings);
    survey["clusters"][0] = late;
    let seen = see(&survey);
    assert_eq!((seen.verdict(), seen.actions.len()), (Verdict::Unknown, 0), "{:?}", seen.findings);
    assert_eq!(seen.severity("cluster-unreachable"), None);
}

/// A process that looks at a disk for a moment is waited for; what stays is a reason.
#[test]
fn who_has_a_device_open_for_a_moment_is_waited_for() {
    let mut survey = healthy();
    survey["node"]["kernel"]["mappings"] = json!({ "known": [{
        "id": 0, "pool": "rbd", "namespace": null, "image": "vm-516-disk-scsi0", "snapshot": null, "fsid": "f",
        "client_address": "10.0.0.1:0/1", "client": 4100, "image_id": "1", "options": "name=admin", "size": null,
        "features": null, "read_only": false, "holders": [] }] });
    let open = |survey: &mut Value, holders: Value| {
        survey["node"]["mapping_users"] = json!({ "0": { "holders": { "known": holders }, "guests": {} } });
        see(survey)
    };
    let process = |guest: Value| json!({ "process": { "device": "rbd0", "process": { "pid": 9, "command": "x", "guest": guest } } });
    let mount = json!({ "mount": { "device": "rbd0p1", "at": "/mnt", "seen_by": null } });
    let passing = open(&mut survey, json!([process(Value::Null)]));
    assert_eq!(
        (passing.severity("mapping-busy"), passing.kind("mapping-busy")),
        (Some(Severity::Unsafe), Some(RemedyKind::Wait))
    );
    for lasting in [json!([process(json!(517))]), json!([mount]), json!([process(Value::Null), mount])] {
        assert_eq!(open(&mut survey, lasting).kind("mapping-busy"), Some(RemedyKind::Manual));
    }
}

/// A mapping of scsi0's name, of an image of this id, at the end of PVE's link, which nobody has open.
fn mapped(survey: &mut Value, image_id: Value) {
    survey["node"]["kernel"]["mappings"] = json!({ "known": [{
        "id": 0, "pool": "rbd", "namespace": null, "image": "vm-516-disk-scsi0", "snapshot": null, "fsid": "f",
        "client_address": "10.0.0.1:0/1", "client": 4100, "image_id": image_id, "read_only": false,
    }] });
    survey["node"]["mapping_users"] = json!({ "0": { "holders": { "known": [] }, "guests": { "516": { "known": false } },
                                                     "locked": { "516": { "known": false } } } });
    survey["disks"][0]["linked_device"] = json!("rbd0");
}

fn process(guest: Value) -> Value {
    json!({ "process": { "device": "rbd0", "process": { "pid": 9, "command": "x", "guest": guest } } })
}

fn hold(survey: &mut Value, holders: Value) {
    survey["node"]["mapping_users"]["0"]["holders"] = json!({ "known": holders });
}

const OTHER_IMAGE: &str = "mapping-other-image";

/// `rbd map A; rbd rename A B; rbd create A`: PVE's link leads to B's data.
#[test]
fn a_device_that_is_another_image_is_unsafe_and_unmapped_where_nothing_holds_it() {
    let starts = Policy { map: true, ..policy("") };
    let mut survey = healthy();
    mapped(&mut survey, json!("12ab"));
    let seen = see_with(&survey, &starts);
    assert_eq!(seen.severity(OTHER_IMAGE), Some(Severity::Unsafe));
    assert_eq!(
        seen.changes(),
        [&Change::Unmap { device: 0 }, &Change::Map { noshare: false, rxbounce: false }]
    );
    let finding = seen.findings.iter().find(|f| f.code.name() == OTHER_IMAGE).unwrap();
    for words in [
        "/dev/rbd0 is the image with the id 12ab",
        "PVE's link to the disk leads to it",
        "is the image with the id 1",
    ] {
        assert!(finding.detail.contains(words), "{finding:#?}");
    }
    assert!(finding.remedy.commands.iter().any(|c| c.ends_with("info --image-id 12ab")), "{finding:#?}");
    assert!(exit_code(&see(&survey).findings) as u8 == 3, "by hand it can be fixed");

    hold(&mut survey, json!([process(json!(517))]));
    let seen = see_with(&survey, &starts);
    assert_eq!(
        (seen.severity(OTHER_IMAGE), seen.kind(OTHER_IMAGE)),
        (Some(Severity::Unsafe), Some(RemedyKind::Manual))
    );
    assert_eq!((seen.changes().len(), exit_code(&seen.findings) as u8), (0, 4), "{:?}", seen.findings);
    hold(&mut survey, json!([process(Value::Null)]));
    assert_eq!(see_with(&survey, &starts).kind(OTHER_IMAGE), Some(RemedyKind::Wait));
}

#[test]
fn another_image_is_told_wherever_it_stands_in_the_disks_place() {
    let starts = Policy { map: true, ..policy("") };
    let see_spoilt = |spoil: fn(&mut Value)| {
        let mut survey = healthy();
        mapped(&mut survey, json!("12ab"));
        spoil(&mut survey);
        see_with(&survey, &starts)
    };
    let no_link = see_spoilt(|s| s["disks"][0]["linked_device"] = Value::Null);
    assert_eq!(no_link.severity(OTHER_IMAGE), Some(Severity::Warning), "PVE does not find it");
    assert!(no_link.changes().contains(&&Change::Unmap { device: 0 }), "it would get the link");
    let by_link_alone = see_spoilt(|s| s["node"]["kernel"]["mappings"]["known"][0]["image"] = json!("other"));
    assert_eq!(by_link_alone.severity(OTHER_IMAGE), Some(Severity::Unsafe));
    let gone = see_spoilt(|s| s["disks"][0]["reading"] = json!("image_missing"));
    assert_eq!(gone.severity(OTHER_IMAGE), Some(Severity::Unsafe), "PVE would not even notice");
    assert_eq!(gone.severity("image-missing"), Some(Severity::Blocker));
    let runs = see_spoilt(|s| s["node"]["running"] = json!({ "known": true }));
    assert_eq!((runs.severity(OTHER_IMAGE), runs.changes().len()), (Some(Severity::Warning), 0));
    for (spoil, why) in [
        (
            &(|s: &mut Value| s["disks"][0]["access"] = json!("librbd")) as &dyn Fn(&mut Value),
            "QEMU goes by the name in Ceph",
        ),
        (&|s| s["node"]["kernel"]["mappings"]["known"][0]["image_id"] = Value::Null, "not known: not said"),
        (&|s| s["node"]["kernel"]["mappings"]["known"][0]["image_id"] = json!("1"), "it is the disk's image"),
        (&|s| s["disks"][0]["reading"] = unknown(), "the disk was not read"),
    ] {
        let mut survey = healthy();
        mapped(&mut survey, json!("12ab"));
        spoil(&mut survey);
        assert_eq!(see_with(&survey, &starts).severity(OTHER_IMAGE), None, "{why}");
    }
}

/// From the map to the moment when QEMU opens the disk nothing has it open; PVE's lock tells that somebody is about to.
#[test]
fn nothing_is_unmapped_while_somebody_is_at_the_guest() {
    let mut survey = healthy();
    mapped(&mut survey, json!("1"));
    assert_eq!(see(&survey).changes(), [&Change::Unmap { device: 0 }]);
    for held in [json!({ "known": true }), unknown()] {
        for id in ["1", "12ab"] {
            let mut survey = survey.clone();
            mapped(&mut survey, json!(id));
            survey["node"]["mapping_users"]["0"]["locked"]["516"] = held.clone();
            let seen = see(&survey);
            assert_eq!(seen.changes().len(), 0, "{held} {id}: {:?}", seen.actions);
            assert!(format!("{:?}", seen.findings).contains("somebody is at guest 516"));
        }
    }
    // Another guest of the same image, as another disk may have it.
    survey["node"]["mapping_users"]["0"]["guests"]["517"] = json!({ "known": false });
    survey["node"]["mapping_users"]["0"]["locked"]["517"] = json!({ "known": true });
    assert_eq!(see(&survey).changes().len(), 0);
}

#[test]
fn what_was_mapped_a_moment_ago_is_left_alone_by_hand() {
    let mut survey = healthy();
    mapped(&mut survey, json!("1"));
    let taken_at = survey["taken_at"].as_u64().unwrap();
    for (age, left_alone) in [(0, true), (9, true), (10, false), (3600, false)] {
        survey["node"]["kernel"]["mappings"]["known"][0]["made_at"] = json!(taken_at - age);
        let seen = see(&survey);
        assert_eq!(seen.changes().is_empty(), left_alone, "{age}: {:?}", seen.findings);
        let after_stop = Policy { scope: Scope::AfterStop, ..policy("") };
        assert_eq!(see_with(&survey, &after_stop).changes().len(), 1, "PVE vouches for its own: {age}");
    }
    // A clock that was set back tells nothing.
    survey["node"]["kernel"]["mappings"]["known"][0]["made_at"] = json!(taken_at + 60);
    assert_eq!(see(&survey).changes().len(), 1);
}

#[test]
fn a_mapping_that_can_only_be_read_is_of_no_use_to_a_start() {
    let starts = Policy { map: true, ..policy("") };
    let mut survey = healthy();
    mapped(&mut survey, json!("1"));
    assert_eq!(see_with(&survey, &starts).severity("mapping-read-only"), None);
    survey["node"]["kernel"]["mappings"]["known"][0]["read_only"] = json!(true);
    let seen = see_with(&survey, &starts);
    assert_eq!(
        (seen.severity("mapping-read-only"), seen.changes()),
        (Some(Severity::Blocker), vec![&Change::Unmap { device: 0 }])
    );
    let mut busy = survey.clone();
    hold(&mut busy, json!([{ "block": { "device": "dm-3", "name": "vg-lv" } }]));
    let seen = see_with(&busy, &starts);
    assert_eq!(
        (seen.kind("mapping-read-only"), exit_code(&seen.findings) as u8),
        (Some(RemedyKind::Manual), 3)
    );
    for (key, value, severity) in [
        ("role", json!("cdrom"), None),
        ("role", json!("vmstate"), None),
        ("role", json!("tpm"), Some(Severity::Blocker)),
        ("role", json!("rootfs"), Some(Severity::Warning)),
        ("read_only", json!(true), None),
    ] {
        let mut survey = survey.clone();
        survey["disks"][0][key] = value.clone();
        assert_eq!(see_with(&survey, &starts).severity("mapping-read-only"), severity, "{key} {value}");
    }
}

/// The kernel has one file system for both, and PVE starts them.
#[test]
fn a_volume_that_another_container_of_the_node_has_mounted_is_shared() {
    let starts = Policy { map: true, ..policy("") };
    let mut survey = healthy();
    mapped(&mut survey, json!("1"));
    survey["guest"]["kind"] = json!("lxc");
    survey["disks"][0]["role"] = json!("mountpoint");
    let mount = |guest: Value| json!({ "mount": { "device": "rbd0", "at": "/", "seen_by": { "pid": 7, "command": "lxc-start", "guest": guest } } });
    let users =
        |survey: &mut Value, runs: Value| survey["node"]["mapping_users"]["0"]["guests"]["101"] = runs;
    users(&mut survey, json!({ "known": true }));
    hold(&mut survey, json!([mount(json!(101))]));
    let seen = see_with(&survey, &starts);
    assert_eq!(
        (seen.severity("mapping-busy"), exit_code(&seen.findings) as u8),
        (None, 0),
        "{:?}",
        seen.findings
    );
    assert_eq!(seen.changes().len(), 0, "what it has mounted is left alone");
    let mut vm = survey.clone();
    vm["guest"]["kind"] = json!("qemu");
    assert_eq!(see_with(&vm, &starts).severity("mapping-busy"), Some(Severity::Unsafe));
    for (holders, runs) in [
        (json!([mount(json!(102))]), json!({ "known": true })),
        (json!([mount(json!(516))]), json!({ "known": true })),
        (json!([mount(Value::Null)]), json!({ "known": true })),
        (json!([mount(json!(101)), process(json!(101))]), json!({ "known": true })),
        (json!([mount(json!(101))]), json!({ "known": false })),
        (json!([mount(json!(101))]), unknown()),
    ] {
        hold(&mut survey, holders.clone());
        users(&mut survey, runs.clone());
        assert_eq!(
            see_with(&survey, &starts).severity("mapping-busy"),
            Some(Severity::Unsafe),
            "{holders} {runs}"
        );
    }
}

#[test]
fn an_image_of_format_1_is_not_asked_for_features() {
    let mut survey = healthy();
    (facts(&mut survey)["format"], facts(&mut survey)["id"]) = (json!(1), json!(""));
    facts(&mut survey)["features"] = json!([]);
    let seen = see(&survey);
    assert_eq!((seen.severity("lock-features-missing"), seen.changes().len()), (None, 0));
}

/// PVE bug 3969: the same pool and name in two clusters.
#[test]
fn one_name_in_two_clusters_is_no_shared_image_and_has_no_shared_history() {
    let mut survey = healthy();
    let mut twin = disk("scsi0", "krbd");
    (twin["key"], twin["storage"]) = (json!("scsi1"), json!("other"));
    survey["disks"].as_array_mut().unwrap().push(twin);
    survey["storages"]["other"] = survey["storages"]["ceph"].clone();
    (survey["storages"]["other"]["cluster"], survey["storages"]["other"]["section"]["id"]) =
        (json!(1), json!("other"));
    let mut cluster = survey["clusters"][0].clone();
    cluster["known"]["fsid"] = json!("g");
    survey["clusters"].as_array_mut().unwrap().push(cluster);
    assert_eq!(see(&survey).severity("image-shared"), None);
    survey["clusters"][1]["known"]["fsid"] = json!("f");
    assert_eq!(see(&survey).severity("image-shared"), Some(Severity::Warning), "two storages, one cluster");
    survey["clusters"][1]["known"]["fsid"] = json!("g");

    // What failed on the one is not given up on the other.
    for disk in [0, 1] {
        survey["disks"][disk]["reading"]["found"]["features"] = json!(["layering"]);
    }
    let all = see(&survey).actions;
    let one = json!(all.iter().find(|action| action.target.fsid == "f").unwrap());
    survey["history"] = json!([{ "action": one, "result": "failed", "errno": 13, "message": "no" }]);
    let left = see(&survey).actions;
    assert!(left.iter().all(|action| action.target.fsid == "g") && !left.is_empty(), "{left:#?}");
}

/// The healthy guest, whose storage's user has a key of type aes256k.
fn with_newer_key() -> Value {
    let mut survey = healthy();
    survey["storages"]["ceph"]["keyring"] = json!({
        "content": { "known": { "key": "aes256k", "newer": 2 } }, "accepted": { "known": true }
    });
    survey
}

/// A mapping of the first disk's image by this node's kernel.
fn mapped_here() -> Value {
    json!({ "id": 0, "pool": "rbd", "namespace": null, "image": "vm-516-disk-scsi0", "snapshot": null, "fsid": "f",
            "client_address": "10.0.0.1:0/5", "client": 5, "image_id": "1" })
}

/// The one finding about a key, its severity and what `check` exits with.
fn key_finding(survey: &Value) -> Option<(String, Severity, u8)> {
    let seen = see(survey);
    let about = |finding: &&Finding| finding.code.name().starts_with("key");
    let found: Vec<&Finding> = seen.findings.iter().filter(about).collect();
    assert!(found.len() < 2, "{found:?}");
    found.first().map(|f| (f.code.name().to_owned(), f.severity, exit_code(&seen.findings) as u8))
}

#[test]
fn a_kernel_that_cannot_use_the_key_is_told_by_how_sure_that_is() {
    let unknown = json!({ "unknown": { "what": "ask the kernel", "message": "libceph is not loaded" } });
    let unsupported = |severity, exit| Some(("key-type-unsupported".to_owned(), severity, exit));
    for (takes, version, mapped, expected) in [
        (json!({ "known": false }), [6, 12], false, unsupported(Severity::Blocker, 3)),
        (json!({ "known": false }), [7, 0], false, unsupported(Severity::Blocker, 3)),
        (json!({ "known": false }), [6, 12], true, unsupported(Severity::Warning, 0)),
        (json!({ "known": true }), [6, 12], false, None),
        (unknown.clone(), [6, 19], false, unsupported(Severity::Unknown, 1)),
        (unknown.clone(), [6, 19], true, unsupported(Severity::Warning, 0)),
        (unknown.clone(), [7, 0], false, None),
        (unknown.clone(), [0, 0], false, None),
    ] {
        let mut survey = with_newer_key();
        survey["node"]["kernel"]["takes_aes256k"] = takes.clone();
        survey["node"]["kernel"]["version"] = json!(version);
        if mapped {
            survey["node"]["kernel"]["mappings"] = json!({ "known": [mapped_here()] });
            survey["disks"][0]["linked_device"] = json!("rbd0");
        }
        assert_eq!(key_finding(&survey), expected, "{takes} {version:?} mapped: {mapped}");
    }
}

#[test]
fn a_kernel_that_no_disk_of_the_storage_needs_may_refuse_the_key() {
    let mut survey = with_newer_key();
    survey["node"]["kernel"]["takes_aes256k"] = json!({ "known": false });
    survey["disks"] = json!([disk("scsi0", "librbd")]);
    assert_eq!(key_finding(&survey), None);
    let mut survey = with_newer_key();
    survey["node"]["kernel"]["takes_aes256k"] = json!({ "known": false });
    survey["storages"]["ceph"]["keyring"]["content"]["known"] = json!({ "key": "aes" });
    assert_eq!(key_finding(&survey), None);
    let mut survey = with_newer_key();
    survey["node"]["kernel"]["takes_aes256k"] = json!({ "known": false });
    survey["disks"][0]["pve_drops"] = json!({ "why": "bad value", "unknown_option": false });
    assert_eq!(key_finding(&survey), None, "PVE does not see the disk");
}

/// The setting helps QEMU's disks only, and nothing is mapped in vain.
#[test]
fn the_ways_out_are_those_that_there_are_and_nothing_is_mapped() {
    let told = |change: &dyn Fn(&mut Value)| {
        let mut survey = with_newer_key();
        survey["node"]["kernel"]["takes_aes256k"] = json!({ "known": false });
        change(&mut survey);
        let seen = see_with(&survey, &Policy { map: true, ..policy("") });
        assert_eq!(seen.changes(), Vec::<&Change>::new(), "{:?}", seen.findings);
        let finding = seen.findings.iter().find(|f| f.code.name() == "key-type-unsupported").unwrap();
        assert!(finding.remedy.text.contains("Linux 7.0") && finding.remedy.text.contains("CVE-2025-30156"));
        finding.remedy.text.contains("`krbd 0`")
    };
    assert!(told(&|_| ()));
    assert!(!told(&|survey| survey["guest"]["kind"] = json!("lxc")));
    assert!(!told(&|survey| survey["disks"][0]["role"] = json!("tpm")));
}

#[test]
fn a_keyring_that_pve_refuses_stops_every_start_on_its_storage() {
    let mut survey = with_newer_key();
    survey["node"]["kernel"]["takes_aes256k"] = json!({ "known": true });
    survey["disks"] = json!([disk("scsi0", "librbd")]);
    survey["storages"]["ceph"]["keyring"]["accepted"] = json!({ "known": false });
    let expected = ("keyring-refused-by-pve".to_owned(), Severity::Blocker, 3);
    assert_eq!(key_finding(&survey), Some(expected));
    survey["storages"]["ceph"]["keyring"]["accepted"] = unknown();
    assert_eq!(key_finding(&survey), None, "not known is no reason");
}

/// A storage may be left to the administrator, as with every finding about a cluster.
#[test]
fn a_finding_about_a_key_is_ignored_for_its_storage() {
    let mut survey = with_newer_key();
    survey["node"]["kernel"]["takes_aes256k"] = json!({ "known": false });
    let seen = see_with(&survey, &policy("storages: { ceph: { ignore: [key-type-unsupported] } }"));
    assert_eq!(exit_code(&seen.findings) as u8, 0, "{:?}", seen.findings);
}

#[test]
fn a_keyring_that_the_libraries_cannot_read_is_why_the_cluster_was_not_asked() {
    let failed = |errno: i32| json!({ "unknown": { "what": "connect", "errno": errno, "message": "no" } });
    let malformed = json!({ "malformed": { "line": 3, "why": "it sets neither `key` nor `caps SERVICE`" } });
    for (key, errno, expected) in [
        (json!({ "key": "aes256k", "newer": 2 }), 5, "keyring-unreadable"),
        (json!({ "key": "aes", "newer": 4 }), 5, "keyring-unreadable"),
        (json!({ "key": malformed }), 5, "keyring-unreadable"),
        (json!({ "key": malformed }), 2, "keyring-unreadable"),
        (json!({ "key": malformed }), 13, "cluster-auth-failed"),
        (json!({ "key": "aes256k", "newer": 2 }), 110, "cluster-unreachable"),
        (json!({ "key": "aes" }), 5, "cluster-not-asked"),
        (json!({ "key": "no_key" }), 2, "keyring-without-user"),
        (json!({ "key": "no_key" }), 13, "keyring-without-user"),
        (json!({ "key": "aes" }), 13, "cluster-auth-failed"),
        (json!({ "key": "aes" }), 22, "cluster-not-asked"),
    ] {
        let mut survey = with_newer_key();
        survey["node"]["kernel"]["takes_aes256k"] = json!({ "known": true });
        survey["storages"]["ceph"]["keyring"]["content"]["known"] = key.clone();
        survey["clusters"] = json!([failed(errno)]);
        survey["disks"][0]["reading"] = failed(errno);
        let codes: Vec<&str> = see(&survey).findings.iter().map(|f| f.code.name()).collect();
        assert_eq!(codes, [expected], "{key} {errno}");
    }
}

/// Every cluster has such checks until its keys are migrated; nothing stands still for them.
#[test]
fn what_is_about_keys_alone_makes_no_warning_of_a_clusters_health() {
    let health = |status: &str, checks: &[&str], errors: Value| {
        let mut survey = healthy();
        let checks: Vec<_> = checks.iter().map(|code| json!([code, "m"])).collect();
        let mut health = json!({ "status": status, "checks": checks });
        if !errors.is_null() {
            health["errors"] = errors;
        }
        survey["clusters"][0]["known"]["health"] = json!({ "known": health });
        let seen = see(&survey);
        let [finding] = seen.findings.as_slice() else { panic!("{:?}", seen.findings) };
        (finding.severity, finding.remedy.text.contains("CVE-2025-30156"))
    };
    let keys = ["AUTH_INSECURE_SERVICE_TICKETS", "AUTH_INSECURE_KEYS_ALLOWED"];
    let tickets = json!(["AUTH_INSECURE_SERVICE_TICKETS"]);
    assert_eq!(health("HEALTH_ERR", &keys, tickets.clone()), (Severity::Note, true));
    assert_eq!(health("HEALTH_ERR", &keys, Value::Null), (Severity::Note, true), "an older survey");
    assert_eq!(health("HEALTH_WARN", &keys, json!([])), (Severity::Note, true));
    let with = |code| [keys[0], keys[1], code];
    assert_eq!(health("HEALTH_ERR", &with("OSD_DOWN"), tickets.clone()), (Severity::Warning, false));
    assert_eq!(health("HEALTH_ERR", &with("MON_CLOCK_SKEW"), tickets), (Severity::Note, false));
    let damaged = json!(["AUTH_INSECURE_SERVICE_TICKETS", "PG_DAMAGED"]);
    assert_eq!(health("HEALTH_ERR", &with("PG_DAMAGED"), damaged), (Severity::Warning, false));
}

/// What a rehearsal on pve1 makes of a survey there, the guest's own node being `home`.
fn rehearsed(survey: &Value, home: &str) -> Seen {
    let survey: Survey = serde_json::from_value(survey.clone()).unwrap();
    see(&serde_json::to_value(as_if_stopped_here(survey, home)).unwrap())
}

/// A guest that somebody has open: its own node, if that is where the client is.
fn watched(place: Option<&str>) -> Value {
    let mut survey = healthy();
    facts(&mut survey)["watchers"] = json!({ "known": [watcher()] });
    facts(&mut survey)["lock"] = json!({ "known": lock() });
    if let Some(place) = place {
        survey["node"]["whereabouts"] = json!({ "10.0.0.2:0/77": place });
    }
    survey
}

#[test]
fn in_a_rehearsal_what_a_guest_has_open_at_home_keeps_it_from_nowhere() {
    for place in ["node pve2", "node pve2, with guest 516"] {
        assert_eq!(rehearsed(&watched(Some(place)), "pve2").verdict(), Verdict::Ready, "{place}");
    }
    assert_eq!(see(&watched(Some("node pve2"))).verdict(), Verdict::Refused, "an ordinary check");
    for place in [None, Some("node pve22"), Some("node pve3")] {
        let seen = rehearsed(&watched(place), "pve2");
        assert_eq!(
            (seen.verdict(), seen.severity("in-use-unknown")),
            (Verdict::Unknown, Some(Severity::Unknown))
        );
        assert_eq!(seen.severity("lock-stale"), None, "and its lock is not called a dead client's");
    }
    let mut crashed = healthy();
    facts(&mut crashed)["lock"] = json!({ "known": lock() });
    assert!(rehearsed(&crashed, "pve2").severity("lock-stale").is_some(), "nobody watches: as after a crash");
    let mut by_hand = watched(Some("node pve2"));
    facts(&mut by_hand)["lock"]["known"]["tag"] = json!("mine");
    assert_eq!(rehearsed(&by_hand, "pve2").severity("lock-external"), Some(Severity::Blocker));
    facts(&mut by_hand)["watchers"] = unknown();
    assert_eq!(rehearsed(&by_hand, "pve2").severity("in-use-unknown"), Some(Severity::Unknown));
}

#[test]
fn in_a_rehearsal_the_guests_own_node_judges_who_is_at_a_stopped_guest() {
    assert_eq!(rehearsed(&watched(None), "pve1").verdict(), Verdict::Refused);
    for running in [json!({ "known": true }), unknown()] {
        let mut survey = watched(None);
        survey["node"]["running"] = running;
        let mut own = mapping(0, 77, "");
        own["image"] = json!("vm-516-disk-scsi0");
        survey["node"]["kernel"]["mappings"] = json!({ "known": [own] });
        survey["disks"][0]["linked_device"] = json!("rbd0");
        let seen = rehearsed(&survey, "pve1");
        assert_eq!(
            (seen.verdict(), seen.severity("mapping-leftover")),
            (Verdict::Ready, None),
            "it is gone when it stops"
        );
    }
}

const GUIDE: &str = include_str!("../docs/when-a-guest-does-not-start.md");

/// A row of the guide's table of texts: the text, where it is seen, the section that it leads to, and the finding's code.
fn guide_rows() -> Vec<(String, String, String, String)> {
    let table = GUIDE.split("## The words that you see").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `"));
    let row = |line: &str| {
        let (text, rest) = line.split_once("` | ").unwrap();
        let cells: Vec<&str> = rest.trim_end_matches('|').split('|').map(str::trim).collect();
        let section = cells[1].split("(#").nth(1).unwrap().trim_end_matches(')').to_owned();
        (text.to_owned(), cells[0].to_owned(), section, cells[2].trim_matches('`').to_owned())
    };
    rows.map(row).collect()
}

/// A heading's name in a link, as it is made of its text.
fn anchor(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// All that the tests, and what they play Proxmox VE with, say, line by line.
fn sources(directory: &std::path::Path, lines: &mut Vec<String>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match std::fs::read_to_string(&path) {
            Ok(text) => lines.extend(text.lines().map(str::to_owned)),
            Err(_) if path.is_dir() => sources(&path, lines),
            Err(_) => {}
        }
    }
}

#[test]
fn every_text_of_the_guide_leads_to_a_section_and_is_produced_by_a_test() {
    let anchors: Vec<String> = GUIDE.lines().filter(|line| line.starts_with('#')).map(anchor).collect();
    let mut lines = Vec::new();
    for directory in ["tests", "src"] {
        sources(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(directory), &mut lines);
    }
    let rows = guide_rows();
    assert!(rows.len() > 30, "{}", rows.len());
    for (text, place, section, code) in rows {
        assert!(anchors.contains(&section), "{text}: there is no #{section}");
        assert!(code.is_empty() || rbd_preflight::finding_codes::Code::from_name(&code).is_some(), "{code}");
        let parts: Vec<&str> = text.split('…').collect();
        let holds = |line: &String| {
            let mut rest = line.as_str();
            parts.iter().all(|part| match rest.find(part) {
                Some(at) => {
                    rest = &rest[at + part.len()..];
                    true
                }
                None => false,
            })
        };
        match place.as_str() {
            "kernel" => assert!(rbd_preflight::kernel::messages::parse(&text).is_some(), "{text}"),
            // The other test looks at the errno and its words.
            "rbd" if text.starts_with("map failed: (") => {}
            "task" | "rbd" => assert!(lines.iter().any(holds), "no test says: {text}"),
            other => panic!("{other}"),
        }
    }
}

/// The rows of the kernel and of `rbd` name what is found where a map fails with them.
#[test]
fn the_guides_texts_name_what_is_found_where_a_map_fails_with_them() {
    let policy = Policy { map: true, ..policy("") };
    let planned = json!(see_with(&healthy(), &policy).actions[0]);
    let found = |errno: i32, message: &str, log: &[&str]| {
        let mut survey = healthy();
        let failed = json!({ "action": planned, "result": "failed", "errno": errno, "message": message, "kernel_log": log });
        survey["history"] = json!(vec![failed; 9]);
        let stops = |finding: &Finding| finding.severity >= Severity::Blocker;
        see_with(&survey, &policy)
            .findings
            .into_iter()
            .find(stops)
            .map(|finding| finding.code.name().to_owned())
    };
    let mut asked = 0;
    for (text, place, _, code) in guide_rows() {
        let by_kernel =
            rbd_preflight::kernel::messages::parse(&text).and_then(|line| line.message.map_errno());
        let told = match (place.as_str(), by_kernel) {
            ("kernel", Some(errno)) => found(errno, "exit: rbd: sysfs write failed", &[&text]),
            // Lines of a mapping that has died, and no map's.
            ("kernel", None) => continue,
            ("rbd", _) if text.starts_with("map failed: (") => {
                let (errno, words) = text["map failed: (".len()..].split_once(") ").unwrap();
                let errno: i32 = errno.parse().unwrap();
                assert_eq!(nix::errno::Errno::from_raw(errno).desc(), words, "the errno's own words");
                // Of these the kernel's line tells which it is, or the dead client is told by itself.
                if [108, 13].contains(&errno) {
                    continue;
                }
                found(errno, &format!("exit {errno}: rbd: {text}"), &[])
            }
            ("rbd", _) if !text.starts_with("error opening") => {
                found(22, &format!("exit 22: rbd: {text}"), &[])
            }
            _ => continue,
        };
        assert_eq!(told.as_deref(), Some(code.as_str()), "{text}");
        asked += 1;
    }
    assert!(asked > 14, "{asked}");
}
