//! `defaults` on a real Ceph: what it says, what it writes, and what images made afterwards really have.

use crate::common::Lab;
use crate::common::node::{Node, Ran};
use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;

const CONF: &str = "/etc/pve/ceph.conf";
const WANTED: &str = "layering, exclusive-lock, object-map, fast-diff";

fn conf(node: &Node) -> String {
    std::fs::read_to_string(node.path(CONF)).unwrap()
}

/// What lies in /etc/pve besides what was there before.
fn backups(node: &Node) -> Vec<PathBuf> {
    let files = std::fs::read_dir(node.path("/etc/pve")).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("ceph.conf.")).collect()
}

/// The features of an image that `rbd create` makes by the node's own ceph.conf, nothing said of features.
fn made(node: &Node, conf: &str) -> Vec<String> {
    let name = crate::common::unique("defaults");
    let mut create = Command::new("rbd");
    create.args(["-c", node.path(conf).to_str().unwrap(), "-n", "client.admin", "--keyring"]);
    create.arg(node.path("/etc/pve/priv/ceph/ceph-krbd.keyring"));
    create.args(["create", "--size", "8M", &name]).env_remove("CEPH_CONF").env_remove("CEPH_ARGS");
    let output = create.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    node.features(&format!("rbd/{name}"))
}

/// `defaults --json`: the node's own cluster.
fn own(node: &Node) -> Value {
    let ran = node.run(["defaults", "--json"]);
    let report: Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"));
    let clusters = report["clusters"].as_array().unwrap();
    clusters.iter().find(|cluster| cluster["external"] == false).unwrap().clone()
}

fn words(ran: &Ran) -> String {
    ran.stdout.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn the_line_is_written_and_images_made_afterwards_have_those_features() {
    let node = Node::new();
    let before =
        conf(&node).replace("[global]\n", "# ours\n[global]\n    rbd default features = 61 # as ever\n");
    node.write(CONF, &before);
    assert_eq!(made(&node, CONF).len(), 5);
    let shown = node.run(["defaults"]);
    assert_eq!(shown.code, 0, "{shown:?}");
    let line = before.lines().position(|line| line.contains("as ever")).unwrap() + 1;
    for told in
        ["deep-flatten (61)", &format!("line {line} in [global]"), "7.0.14-2-pve maps such images", WANTED]
    {
        assert!(words(&shown).contains(told), "{told}: {shown:?}");
    }

    let planned = node.run(["defaults", "--set", "0x1d", "--dry-run"]);
    let diff = format!(
        "{CONF}, line {line}:\n-    rbd default features = 61 # as ever\n+    rbd_default_features = {WANTED} # as ever\n"
    );
    assert_eq!((planned.code, planned.stdout.as_str()), (0, diff.as_str()), "{planned:?}");
    let asked = node.run(["defaults", "--set", "29"]);
    assert!(asked.code == 2 && asked.stderr.contains("nothing was changed"), "{asked:?}");
    assert!(conf(&node) == before && backups(&node).is_empty() && node.journal().is_empty());

    let set = node.run(["defaults", "--set", WANTED, "--yes"]);
    assert_eq!(set.code, 0, "{set:?}");
    assert_eq!(
        conf(&node),
        before.replace("rbd default features = 61", &format!("rbd_default_features = {WANTED}"))
    );
    let kept = backups(&node);
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert_eq!(std::fs::read_to_string(&kept[0]).unwrap(), before);
    assert!(set.stdout.contains(kept[0].file_name().unwrap().to_str().unwrap()), "{set:?}");
    assert!(!node.path("/etc/pve/priv/lock/file-ceph_conf").exists());
    assert_eq!(made(&node, CONF).join(", "), WANTED);

    let journal = node.journal();
    assert_eq!((&journal[0]["phase"], &journal[1]["result"]["result"]), (&"intent".into(), &"done".into()));
    let history = node.run(["history"]);
    assert!(history.code == 0 && history.stdout.contains("defaults --set layering,"), "{history:?}");
    let run = journal[0]["run"].as_str().unwrap();
    let undo = node.run(["undo", run, "--yes"]);
    assert!(undo.stderr.contains("nothing to undo") && node.journal().len() == 2, "{undo:?}");
    let again = node.run(["defaults", "--set", "--yes"]);
    assert!(again.code == 0 && again.stdout.contains("nothing to do"), "{again:?}");
    assert_eq!(backups(&node).len(), 1);
}

/// A command of PVE's was killed that held the lock. pmxcfs gives such a lock up when it is asked to, by both times of the
/// directory set to 0; here somebody plays that. Where there is no directory for locks yet it is made, as PVE makes it.
#[test]
fn a_lock_whose_owner_was_killed_is_given_up_when_pmxcfs_is_asked() {
    use std::os::unix::fs::MetadataExt;
    let node = Node::new();
    std::fs::remove_dir_all(node.path("/etc/pve/priv/lock")).ok();
    let lock = node.path("/etc/pve/priv/lock/file-ceph_conf");
    std::fs::create_dir_all(&lock).unwrap();
    let pmxcfs = std::thread::spawn(move || {
        let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while std::fs::metadata(&lock).is_ok_and(|lock| (lock.mtime(), lock.atime()) != (0, 0)) {
            assert!(std::time::Instant::now() < until, "nobody asks");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        std::fs::remove_dir(&lock).unwrap();
    });
    let set = node.run(["defaults", "--set", "--yes"]);
    assert_eq!(set.code, 0, "{set:?}");
    pmxcfs.join().unwrap();

    std::fs::remove_dir(node.path("/etc/pve/priv/lock")).unwrap();
    let set = node.run(["defaults", "--set", WANTED, "--yes"]);
    assert_eq!(set.code, 0, "{set:?}");
}

#[test]
fn what_cannot_be_used_is_an_error_and_nothing_is_written() {
    let node = Node::new();
    let before = conf(&node);
    for bad in ["layering,warp", "layering,object-map", "0", "0x101", "layering,striping", ""] {
        let ran = node.run(["defaults", "--set", bad, "--yes"]);
        assert_eq!(ran.code, 2, "{bad}: {ran:?}");
    }
    let unmappable = node.run(["defaults", "--set", "layering,exclusive-lock,journaling", "--yes"]);
    assert!(
        unmappable.code == 4 && unmappable.stderr.contains("cannot map images with journaling"),
        "{unmappable:?}"
    );
    node.append(CONF, "\n[client]\nrbd_default_features = 1\n");
    let stronger = node.run(["defaults", "--set", "--yes"]);
    assert!(stronger.code == 4 && stronger.stderr.contains("in [client], sets it"), "{stronger:?}");
    let stronger = node.run(["defaults", "--set", "--mon", "--yes"]);
    assert!(stronger.code == 4 && stronger.stderr.contains("stronger than the monitors"), "{stronger:?}");
    node.write(CONF, &before);
    std::fs::create_dir(node.path("/etc/pve/priv/lock/file-ceph_conf")).unwrap();
    let busy = node.run(["defaults", "--set", "--yes"]);
    assert!(busy.code == 75 && busy.stderr.contains("another task holds"), "{busy:?}");
    let members = std::fs::read_to_string(node.path("/etc/pve/.members")).unwrap();
    node.write("/etc/pve/.members", &members.replace("\"quorate\": 1", "\"quorate\": 0"));
    let alone = node.run(["defaults", "--set", "--yes"]);
    assert!(alone.code == 4 && alone.stderr.contains("no quorum"), "{alone:?}");
    assert!(conf(&node) == before && backups(&node).is_empty());
}

#[test]
fn the_monitors_hold_it_and_a_pool_may_say_otherwise() {
    let node = Node::on(Lab::own(&[]));
    assert_eq!(
        (&own(&node)["source"]["kind"], &own(&node)["effective"]["number"]),
        (&"built-in".into(), &61.into())
    );
    node.lab.ceph(&["config", "set", "client", "rbd_default_features", "layering"]);
    let seen = own(&node);
    assert_eq!((&seen["source"]["section"], &seen["effective"]["number"]), (&"client".into(), &1.into()));
    let stronger = node.run(["defaults", "--set", "--mon", "--yes"]);
    assert!(
        stronger.code == 4 && stronger.stderr.contains("ceph config rm client rbd_default_features"),
        "{stronger:?}"
    );
    node.lab.ceph(&["config", "rm", "client", "rbd_default_features"]);

    let before = conf(&node);
    let planned = node.run(["defaults", "--set", "--mon", "--dry-run"]);
    let command = "config set global rbd_default_features layering,exclusive-lock,object-map,fast-diff\n";
    assert!(planned.code == 0 && planned.stdout.ends_with(command), "{planned:?}");
    let set = node.run(["defaults", "--set", "--mon", "--yes"]);
    assert!(set.code == 0 && words(&set).contains("the cluster's monitors, for global"), "{set:?}");
    assert_eq!(made(&node, CONF).join(", "), WANTED);
    assert!(conf(&node) == before && backups(&node).is_empty());

    node.lab.rbd(&["config", "pool", "set", "rbd", "rbd_default_features", "3"]);
    let shown = node.run(["defaults"]);
    let told = "the pool rbd has a value of its own: layering, striping (3)";
    assert!(words(&shown).contains(told), "{shown:?}");
}

#[test]
fn a_value_that_ceph_does_not_understand_and_an_old_kernel_are_told() {
    let node = Node::new();
    node.write("/sys/bus/rbd/supported_features", "0x1\n");
    node.append(CONF, "\n[global]\nrbd_default_features = 0x1d\n");
    let shown = words(&node.run(["defaults"]));
    assert!(shown.contains("Ceph does not understand `0x1d`"), "{shown}");
    assert!(shown.contains("CANNOT map such images: it lacks exclusive-lock"), "{shown}");
    assert!(shown.contains("ceph-poor: client.poor"), "{shown}");
    assert!(shown.contains("here set by hand, in"), "{shown}");
}
