//! What a user may do with an image: what is said is what the real OSDs let it do, nothing is said that was not read, and the line that
//! is shown gives what is missing and takes nothing.

use super::caps::{as_ceph_says, as_user, new_user};
use crate::common::Lab;
use crate::common::node::{Node, codes, finding, new_vmid};
use rbd_preflight::ceph::caps::Caps;
use rbd_preflight::ceph::osd_caps::{ALL, Place, READ, may};
use serde_json::Value;
use std::process::Command;

const MON: (&str, &str) = ("mon", "profile rbd");

/// An OSD lets the user read, and do all that opening an image for writing takes, in the pool `pool2` or its namespace.
fn real(lab: &Lab, user: &str, namespace: Option<&str>) -> (bool, bool) {
    let rados = |arguments: &[&str]| {
        let place =
            [&["-p", "pool2"][..], namespace.map_or(&[][..], |_| &["--namespace", "tenant"])].concat();
        as_user(lab, "rados", user, &[&place, arguments].concat())
    };
    let object = format!("probe-{user}");
    let there = [
        &["-p", "pool2"][..],
        namespace.map_or(&[][..], |_| &["--namespace", "tenant"]),
        &["create", &object],
    ];
    lab.rados(&there.concat());
    let read = rados(&["stat", &object]);
    (read, read && rados(&["setxattr", &object, "a", "b"]) && rados(&["lock", "get", &object, "l"]))
}

#[test]
fn an_osd_lets_do_what_we_say() {
    let lab = Lab::shared();
    let mut wrong = Vec::new();
    for (osd, namespace) in [
        ("profile rbd", None),
        ("profile rbd pool=pool2", None),
        ("profile rbd pool=rbd", None),
        ("profile=rbd pool pool2", None),
        ("allow *", None),
        ("allow rwx pool=pool2", None),
        ("allow pool pool2 rwx", None),
        ("allow rw pool=pool2, allow x", None),
        ("allow rw pool=pool2", None),
        ("allow r", None),
        ("allow r class-read pool=pool2; profile rbd pool=rbd", None),
        ("profile rbd-read-only pool=pool2", None),
        ("profile rbd pool=pool2 namespace=tenant", None),
        ("profile rbd pool=pool2 namespace=tenant", Some("tenant")),
        ("profile rbd pool=pool2 namespace=ten*", Some("tenant")),
        ("profile rbd pool=pool2 namespace=other", Some("tenant")),
        ("profile rbd pool=pool2 namespace=\"\"", Some("tenant")),
        ("profile rbd pool=pool2", Some("tenant")),
        ("allow rwx pool=pool2 object_prefix rbd_", None),
        ("profile rbd network 203.0.113.0/24", None),
    ] {
        let user = new_user(&lab, &[MON, ("osd", osd)]);
        let caps = Caps([("osd".to_owned(), osd.to_owned())].into());
        let place = Place { pool: "pool2", namespace };
        let said = (may(&caps, place, READ), may(&caps, place, ALL));
        let seen = real(&lab, &user, namespace);
        let right = |said: Option<bool>, seen| said.is_none_or(|said| said == seen);
        let sure = !osd.contains("object_prefix") && !osd.contains("network");
        if !right(said.0, seen.0) || !right(said.1, seen.1) || said.0.is_some() != sure {
            wrong.push((osd, namespace, said, seen));
        }
    }
    assert_eq!(wrong, []);
}

/// A node with a guest whose disk lies on the storage `mine`, of PVE's own cluster, as a user with these caps.
fn guest_of(osd: &str, mon: &str, create: &[&str]) -> (Node, u32, String) {
    let (node, vmid) = (Node::new(), new_vmid());
    let user = new_user(&node.lab, &[("mon", mon), ("osd", osd)]);
    node.storage("mine", &format!("krbd 0; username {user}"));
    std::fs::copy(node.lab.keyring(&user), node.path("/etc/pve/priv/ceph/mine.keyring")).unwrap();
    node.lab.rbd(&[&["create", "--size", "8M", &format!("rbd/vm-{vmid}-disk-0")], create].concat());
    node.vm(vmid, &format!("scsi0: mine:vm-{vmid}-disk-0,size=8M\n"));
    (node, vmid, user)
}

/// Runs a line as it is shown, as client.admin of the lab.
fn run(node: &Node, line: &str) {
    let ran = Command::new("bash").args(["-c", line]).env("CEPH_CONF", node.lab.conf()).output().unwrap();
    assert!(ran.status.success(), "{line}: {ran:?}");
}

fn line_of(report: &Value, code: &str) -> String {
    finding(report, code)["remedy"]["commands"][0].as_str().unwrap().to_owned()
}

/// The user can do to an image what only one does who has opened it for writing.
fn writes(node: &Node, user: &str, vmid: u32) -> bool {
    let image = format!("rbd/vm-{vmid}-disk-0");
    as_user(&node.lab, "rbd", user, &["image-meta", "set", &image, "a", "b"])
}

/// The user can write objects to a pool, as each write of a guest does. `rbd bench` would die of the first that fails, and leave its lock.
fn writes_to(node: &Node, user: &str, pool: &str) -> bool {
    as_user(&node.lab, "rados", user, &["-p", pool, "create", &format!("probe-{user}")])
}

#[test]
fn a_data_pool_that_is_not_in_the_caps_stops_the_start_and_the_line_fixes_it() {
    let (node, vmid, user) = guest_of("profile rbd pool=rbd", "profile rbd", &["--data-pool", "pool2"]);
    assert!(
        writes(&node, &user, vmid) && !writes_to(&node, &user, "pool2"),
        "it opens, and the first write fails"
    );
    let report = node.check(vmid);
    let missing = finding(&report, "rights-missing");
    assert_eq!(
        (&missing["severity"], &report["verdict"]),
        (&"blocker".into(), &"blocked".into()),
        "{report:#}"
    );
    let detail = missing["detail"].as_str().unwrap();
    assert!(detail.contains(&format!("client.{user} may not read the pool pool2")), "{detail}");
    let line = line_of(&report, "rights-missing");
    assert_eq!(
        line,
        format!(
            "ceph auth caps client.{user} mon 'profile rbd' osd 'profile rbd pool=rbd, profile rbd pool=pool2'"
        )
    );
    let hook = node.run(["hook", &vmid.to_string(), "pre-start"]);
    assert!(hook.code == 3 && hook.stderr.contains("the start is stopped (rights-missing)"), "{hook:?}");
    run(&node, &line);
    assert!(writes_to(&node, &user, "pool2"));
    node.assert_healthy(vmid);
}

#[test]
fn where_the_caps_cannot_be_read_an_osds_own_refusal_is_told_and_nothing_else() {
    let (node, vmid, user) = guest_of("profile rbd pool=rbd", "profile rbd", &["--data-pool", "pool2"]);
    std::fs::remove_file(node.path("/etc/pve/priv/ceph.client.admin.keyring")).unwrap();
    let report = node.check(vmid);
    let missing = finding(&report, "rights-missing");
    assert!(missing["detail"].as_str().unwrap().contains("may not read the pool pool2"), "{missing}");
    assert!(missing["remedy"]["text"].as_str().unwrap().contains("could not be read"), "{missing}");
    assert!(line_of(&report, "rights-missing").contains("profile rbd pool=pool2"), "{missing}");
    // What only the caps would say is not claimed.
    let (node, vmid, _) = guest_of("profile rbd-read-only pool=rbd", "profile rbd", &[]);
    std::fs::remove_file(node.path("/etc/pve/priv/ceph.client.admin.keyring")).unwrap();
    assert_eq!(node.check(vmid)["verdict"], "ready");
    assert!(!user.is_empty());
}

#[test]
fn a_user_that_may_only_read_cannot_open_a_disk_for_writing() {
    let (node, vmid, user) = guest_of("profile rbd-read-only pool=rbd", "profile rbd", &[]);
    assert!(!writes(&node, &user, vmid));
    let report = node.check(vmid);
    let detail = finding(&report, "rights-missing")["detail"].as_str().unwrap();
    assert!(detail.contains("open images in the pool rbd for writing"), "{detail}");
    let line = line_of(&report, "rights-missing");
    assert!(line.contains("profile rbd-read-only pool=rbd, profile rbd pool=rbd"), "{line}");
    node.vm(vmid, &format!("ide2: mine:vm-{vmid}-disk-0,media=cdrom\n"));
    let report = node.check(vmid);
    assert_eq!(report["verdict"], "ready", "a CD is only read: {report:#}");
    run(&node, &line);
    assert!(writes(&node, &user, vmid));
}

#[test]
fn an_ancestor_in_a_pool_that_the_user_may_not_read_is_named() {
    let (node, vmid, user) = guest_of("profile rbd pool=rbd", "profile rbd", &[]);
    let parent = format!("pool2/parent-{vmid}");
    let child = format!("rbd/vm-{vmid}-disk-1");
    node.lab.rbd(&["create", "--size", "8M", &parent]);
    node.lab.rbd(&["snap", "create", &format!("{parent}@s")]);
    node.lab.rbd(&["snap", "protect", &format!("{parent}@s")]);
    node.lab.rbd(&["clone", &format!("{parent}@s"), &child]);
    node.vm(vmid, &format!("scsi0: mine:vm-{vmid}-disk-1,size=8M\n"));
    assert!(!as_user(&node.lab, "rbd", &user, &["info", &child]));
    let report = node.check(vmid);
    let missing = finding(&report, "rights-missing");
    let detail = missing["detail"].as_str().unwrap();
    assert!(detail.contains("in pool pool2") && detail.contains(&format!("client.{user}")), "{detail}");
    assert_eq!(missing["severity"], "blocker");
}

#[test]
fn whoever_may_not_blocklist_is_told_in_a_note_and_starts() {
    let (node, vmid, user) = guest_of("profile rbd pool=rbd", "allow r", &[]);
    let report = node.check(vmid);
    assert_eq!(report["verdict"], "ready", "{report:#}");
    let note = finding(&report, "blocklist-not-permitted");
    assert_eq!(note["severity"], "note");
    run(&node, &line_of(&report, "blocklist-not-permitted"));
    assert_eq!(as_ceph_says(&node.lab, &user).0["mon"], "profile rbd");
    let report = node.check(vmid);
    assert!(!codes(&report).contains(&"blocklist-not-permitted".to_owned()), "{report:#}");
}

#[test]
fn whoever_may_do_all_that_is_needed_hears_nothing() {
    for (osd, mon, create) in [
        ("profile rbd", "profile rbd", &["--data-pool", "pool2"][..]),
        ("profile rbd pool=rbd, profile rbd pool=pool2", "profile rbd", &["--data-pool", "pool2"]),
        ("profile rbd pool=rbd, allow rw pool=pool2", "profile rbd", &["--data-pool", "pool2"]),
        ("allow *", "allow *", &["--data-pool", "pool2"]),
        ("allow rwx pool=rbd", "allow rw", &[]),
        ("allow class-read object_prefix rbd_children, allow rwx pool=rbd", "profile rbd", &[]),
        ("profile rbd network 127.0.0.0/8", "profile rbd network 127.0.0.0/8", &["--data-pool", "pool2"]),
        ("profile rbd pool=rbd network 127.0.0.0/8", "profile rbd", &[]),
    ] {
        let (node, vmid, _) = guest_of(osd, mon, create);
        let report = node.check(vmid);
        assert_eq!(report["verdict"], "ready", "{osd}: {report:#}");
        let grave = report["findings"].as_array().unwrap().iter().filter(|f| f["severity"] != "note").count();
        assert_eq!(grave, 0, "{osd}: {report:#}");
    }
}
