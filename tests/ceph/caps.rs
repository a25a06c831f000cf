//! What a user may do on a real Ceph is what we say of its caps; run with `tests/run`.

use crate::common::node::Node;
use crate::common::{Lab, unique};
use rbd_preflight::ceph::caps::{Caps, caps_command, find_caps, may_blocklist};
use rbd_preflight::ceph::ffi::Cluster;
use rbd_preflight::pve::connection::Connection;
use rbd_preflight::reading::Reading;
use rbd_preflight::sys::root::Root;
use serde_json::{Value, json};
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(20);

/// A new user with these caps; its name without `client.`. Its keyring lies beside the lab's own.
pub fn new_user(lab: &Lab, caps: &[(&str, &str)]) -> String {
    let name = unique("user");
    let caps: Vec<&str> = caps.iter().flat_map(|(service, caps)| [*service, *caps]).collect();
    let entity = format!("client.{name}");
    let command =
        json!({ "prefix": "auth get-or-create", "entity": entity, "caps": caps, "format": "plain" });
    let keyring = connected(lab, "admin").unwrap().mon_command(&command.to_string());
    std::fs::write(lab.keyring(&name), keyring.unwrap_or_else(|errno| panic!("{errno}: {command}"))).unwrap();
    name
}

/// Connects without a program's start, which takes longer than all else.
fn connected(lab: &Lab, user: &str) -> Result<Cluster, i32> {
    let cluster = Cluster::create(user).unwrap();
    cluster.read_conf(Some(&lab.conf())).unwrap();
    cluster.set("keyring", &lab.keyring(user)).unwrap();
    cluster.connect().map(|()| cluster)
}

pub fn as_user(lab: &Lab, program: &str, user: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.env_remove("CEPH_ARGS").args([
        "--conf",
        &lab.conf(),
        "--id",
        user,
        "--keyring",
        &lab.keyring(user),
    ]);
    command.args(arguments).output().unwrap().status.success()
}

/// The monitor lets the user do what krbd and librbd do before they break a lock: an address of the documentation's,
/// for a second.
fn blocklists(lab: &Lab, user: &str) -> bool {
    // EACCES: not even the map of the monitors may be read.
    let cluster = match connected(lab, user) {
        Ok(cluster) => cluster,
        Err(errno) => {
            assert_eq!(errno, 13);
            return false;
        }
    };
    let add =
        json!({ "prefix": "osd blocklist", "blocklistop": "add", "addr": "192.0.2.1:0/1", "expire": 1.0 });
    match cluster.mon_command(&add.to_string()) {
        Ok(_) => true,
        Err(errno) => {
            assert_eq!(errno, 13);
            false
        }
    }
}

pub fn as_ceph_says(lab: &Lab, user: &str) -> Caps {
    let all: Value =
        serde_json::from_str(&lab.ceph(&["auth", "get", &format!("client.{user}"), "-f", "json"])).unwrap();
    serde_json::from_value(all[0]["caps"].clone()).unwrap()
}

fn find(root: &Root, connection: &Connection, user: &str) -> Reading<Caps> {
    find_caps(root, connection, user, LIMIT)
}

/// A root without any keyring of client.admin's.
fn nowhere() -> Root {
    Root::new("/nonexistent")
}

#[test]
fn a_monitor_lets_blocklist_whom_we_say() {
    let lab = Lab::shared();
    let table = [
        "allow *",
        "allow all",
        "allow rwx",
        "allow rw",
        "allow r",
        "allow w",
        "allow r, allow w",
        "allow r;allow w",
        "allow service osd rw",
        "allow service osd w",
        "allow service=osd r, allow w",
        "allow service mon rw",
        "profile rbd",
        "allow profile rbd",
        "profile=\"rbd\"",
        "profile 'rbd'",
        "profile rbd-mirror",
        "profile rbd-read-only",
        "profile read-write",
        "profile read-only",
        "profile osd",
        "profile mds",
        "profile mgr",
        "profile simple-rados-client",
        "profile simple-rados-client-with-blocklist",
        "profile cephfs-mirror",
        "profile fs-client",
        "profile crash",
        "profile rbd-mirror-peer",
        "profile role-definer",
        "profile bootstrap-osd",
        "allow r, allow command \"osd blocklist\"",
        "allow r, allow command=\"osd blocklist\"",
        "allow r, allow command 'osd blocklist'",
        "allow r, allow command \"osd blacklist\"",
        "allow r, allow command \"osd blocklist\" with blocklistop=add",
        "allow r, allow command \"osd blocklist\" with blocklistop=rm",
        "allow r, allow command \"osd blocklist\" with blocklistop=add addr regex \"^[^/]+/[0-9]+$\"",
        "allow r, allow command \"osd blocklist\" with addr prefix 10.",
        "allow r, allow rw network 203.0.113.0/24",
        "allow r, allow command \"osd blocklist\" network 203.0.113.0/24",
        "allow r, profile rbd network 203.0.113.0/24",
        "profile rbd network 127.0.0.0/8",
        "allow rw fsname=a",
    ];
    let users = table.map(|mon| new_user(&lab, &[("mon", mon)]));
    let wrong = table.iter().zip(&users).filter(|(mon, user)| {
        let caps = Caps([("mon".to_owned(), (**mon).to_owned())].into());
        let sure = !["network", "prefix", "blocklistop=rm"].iter().any(|word| mon.contains(word));
        let may = may_blocklist(&caps);
        may.is_some() != sure || may.is_some_and(|may| may != blocklists(&lab, user))
    });
    assert_eq!(wrong.collect::<Vec<_>>(), []);
    let odd = table.iter().position(|mon| mon.contains("regex")).unwrap();
    assert_eq!(
        as_ceph_says(&lab, &users[odd]).0["mon"],
        table[odd],
        "the monitor knows the caps as they are above"
    );
}

#[test]
fn the_line_lets_a_user_blocklist_and_takes_nothing_from_it() {
    let lab = Lab::shared();
    let plain = vec![("mon", "allow r"), ("osd", "profile rbd")];
    let much = vec![
        ("mon", "allow r, allow command \"osd blacklist\"; allow command \"auth ls\""),
        ("osd", "profile rbd pool=rbd, allow r pool=\"pool2\" namespace=\"it is $HOME\""),
        ("mgr", "profile rbd"),
        ("mds", "allow r"),
    ];
    for caps in [plain, much] {
        let user = new_user(&lab, &caps);
        let before = find(&nowhere(), &lab.connection("admin"), &user);
        let before = before.known().unwrap_or_else(|| panic!("{before:?}")).clone();
        assert_eq!(before, as_ceph_says(&lab, &user));
        assert!(may_blocklist(&before) == Some(false) && !blocklists(&lab, &user));
        let line = caps_command(&user, &before);
        let ran = Command::new("bash").args(["-c", &line]).env("CEPH_CONF", lab.conf()).output().unwrap();
        assert!(ran.status.success(), "{line}: {ran:?}");
        let mut after = as_ceph_says(&lab, &user);
        assert!(may_blocklist(&after) == Some(true) && blocklists(&lab, &user), "{line}");
        assert!(as_user(&lab, "rbd", &user, &["ls", "rbd"]));
        assert_eq!(
            as_user(&lab, "ceph", &user, &["auth", "ls"]),
            caps.len() > 2,
            "the other grant of {line}"
        );
        after.0.insert("mon".to_owned(), caps[0].1.to_owned());
        assert_eq!(after, before, "{line}");
        assert_eq!(caps_command(&user, &as_ceph_says(&lab, &user)), line, "nothing more to change");
    }
}

#[test]
fn caps_are_read_as_admin_where_the_user_itself_may_not() {
    let node = Node::new();
    let lab = &node.lab;
    let root = Root::new(node.path("/"));
    for user in ["vms", "poor", "reader"] {
        assert_eq!(
            find(&nowhere(), &lab.connection(user), user).failure().unwrap().errno,
            Some(13),
            "{user}"
        );
        assert_eq!(
            find(&root, &lab.connection(user), user),
            Reading::Known(as_ceph_says(lab, user)),
            "{user}"
        );
    }
    assert_eq!(find(&root, &lab.connection("poor"), "nobody").failure().unwrap().errno, Some(13));
    assert_eq!(find(&root, &lab.connection("admin"), "nobody").failure().unwrap().errno, Some(2));
    // A key that is lost is no reason not to tell, if the storage is of the node's own cluster.
    let lost = Connection {
        conf: Some(node.path("/etc/pve/ceph.conf").to_str().unwrap().to_owned()),
        keyring: Some("/nonexistent".to_owned()),
        ..lab.connection("poor")
    };
    assert_eq!(find(&root, &lost, "poor"), Reading::Known(as_ceph_says(lab, "poor")));
    let elsewhere = Connection { mon_host: Some("127.0.0.1:1".to_owned()), ..lost };
    assert!(find_caps(&root, &elsewhere, "poor", Duration::from_secs(3)).failure().is_some());
}

#[test]
fn another_clusters_admin_is_not_asked() {
    let node = Node::on(Lab::own(&[]));
    let other = Lab::shared();
    let found = find(&Root::new(node.path("/")), &other.connection("poor"), "poor");
    assert_eq!(found.failure().unwrap().errno, Some(13), "{found:?}");
}
