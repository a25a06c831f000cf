//! What the tool reads of a real Ceph is what Ceph's own commands say; run with `tests/run`.

use crate::common::{Lab, spec, unique, until_closed, wait_until};
use rbd_preflight::ceph::cluster::ClusterFacts;
use rbd_preflight::ceph::image::{Flags, ImageFacts, ImageReading, Snapshot};
use rbd_preflight::ceph::lock::{NotBroken, break_stale_lock};
use rbd_preflight::ceph::map_options::{read_map_options, read_release};
use rbd_preflight::ceph::mirror::read_mirror_daemons;
use rbd_preflight::ceph::read_cluster::read_cluster;
use rbd_preflight::kernel::Mapping;
use rbd_preflight::kernel::client::{Identity, PlainMap, Sharing};
use rbd_preflight::pve::connection::Connection;
use rbd_preflight::rbd::features::Features;
use rbd_preflight::rbd::lock::watcher_of;
use rbd_preflight::rbd::lock::{Lock, Watcher};
use rbd_preflight::rbd::spec::Spec;
use rbd_preflight::reading::{Origin, Reading};
use serde_json::{Value, json};
use std::process::Command;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(20);

fn read_all(lab: &Lab, specs: &[Spec]) -> (ClusterFacts, Vec<ImageReading>) {
    let reading = read_cluster(&lab.connection("admin"), specs, LIMIT);
    until_closed();
    reading.known().unwrap_or_else(|| panic!("{:?}", reading.failure())).clone()
}

fn read(lab: &Lab, spec: &Spec) -> ImageReading {
    read_all(lab, std::slice::from_ref(spec)).1.remove(0)
}

fn found(reading: ImageReading) -> ImageFacts {
    match reading {
        ImageReading::Found(facts) => *facts,
        other => panic!("not found: {other:?}"),
    }
}

fn facts(lab: &Lab, spec: &Spec) -> ImageFacts {
    found(read(lab, spec))
}

fn known<T: Clone + std::fmt::Debug>(reading: &Reading<T>) -> T {
    reading.known().unwrap_or_else(|| panic!("{reading:?}")).clone()
}

/// The facts in the words of `rbd info --format json`.
fn in_words_of_rbd(facts: &ImageFacts) -> Value {
    let flag_words = |flags: Flags| {
        let words = [
            (flags.object_map_invalid, "object map invalid"),
            (flags.fast_diff_invalid, "fast diff invalid"),
        ];
        words.into_iter().filter(|(set, _)| *set).map(|(_, word)| word).collect::<Vec<_>>()
    };
    let mut words = json!({
        "id": facts.id,
        "size": facts.size,
        "objects": facts.objects,
        "object_size": facts.object_size,
        "format": facts.format,
        "snapshot_count": known(&facts.snapshots).len(),
    });
    if facts.format == 2 {
        words["features"] = json!(facts.features.names());
        words["op_features"] = json!(known(&facts.op_features));
        words["flags"] = json!(flag_words(known(&facts.flags)));
    }
    if let Some(parent) = known(&facts.parents).first() {
        words["parent"] = json!({
            "pool": parent.spec.pool,
            "pool_namespace": parent.spec.namespace.clone().unwrap_or_default(),
            "image": parent.spec.image,
            "id": parent.id,
            "snapshot": parent.snapshot,
            "trash": parent.trashed,
        });
    }
    if let Some(mirroring) = known(&facts.mirroring) {
        let state = mirroring.state;
        words["mirroring"] = json!({ "mode": mirroring.mode, "state": state, "primary": mirroring.primary });
    }
    words
}

/// Every word of ours stands in `rbd info` with the same value, and a parent or mirroring that it names is known to us.
fn assert_as_rbd_says(lab: &Lab, spec: &Spec, facts: &ImageFacts) {
    let info = lab.rbd_json(&["info", &spec.to_string()]);
    let ours = in_words_of_rbd(facts);
    for (key, value) in ours.as_object().unwrap() {
        assert_contains(&info[key], value, &format!("{spec}: {key} of {info}"));
    }
    for key in ["parent", "features", "flags"] {
        assert_eq!(info.get(key).is_some(), ours.get(key).is_some(), "{spec}: {key} of {info}");
    }
    // rbd shows this section of every image with a journal, mirrored or not.
    let mirrored = info.get("mirroring").is_some_and(|mirroring| mirroring["state"] != "disabled");
    assert_eq!(mirrored, ours.get("mirroring").is_some(), "{spec}: mirroring of {info}");
}

fn assert_contains(theirs: &Value, ours: &Value, what: &str) {
    match ours {
        Value::Object(fields) => {
            for (key, value) in fields {
                assert_eq!(&theirs[key], value, "{what}: {key}");
            }
        }
        // rbd leaves an id of format 1 out.
        Value::String(text) if text.is_empty() => assert!(theirs.is_null() || theirs == "", "{what}"),
        _ => assert_eq!(theirs, ours, "{what}"),
    }
}

/// Every set of features that can be asked for at creation.
fn creatable_features() -> Vec<String> {
    let locks = [
        "",
        "exclusive-lock",
        "exclusive-lock,journaling",
        "exclusive-lock,object-map",
        "exclusive-lock,object-map,fast-diff",
        "exclusive-lock,object-map,fast-diff,journaling",
    ];
    let mut all = Vec::new();
    for base in ["", "layering", "deep-flatten", "layering,deep-flatten"] {
        for lock in locks {
            let names = [base, lock].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>();
            all.push(names.join(","));
        }
    }
    all.retain(|features| !features.is_empty()); // rbd takes no features for the default ones
    all
}

/// An image of format 1, which librbd still opens but makes only when it is told to.
fn old_image(lab: &Lab) -> Spec {
    let name = unique("old");
    let mut create = lab.command("rbd");
    create.env("RBD_FORCE_ALLOW_V1", "1").args(["create", "--image-format", "1", "--size", "8M", &name]);
    let output = create.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    spec(&name)
}

#[test]
fn every_creatable_image_is_read_as_rbd_info_says() {
    let lab = Lab::shared();
    let mut specs: Vec<Spec> = creatable_features()
        .iter()
        .map(|features| lab.image("features", &["--image-feature", features]))
        .collect();
    specs.push(lab.image("striped", &["--stripe-unit", "65536", "--stripe-count", "4"]));
    specs.push(lab.image("data-pool", &["--data-pool", "pool2"]));
    specs.push(lab.image("small-objects", &["--object-size", "64K"]));
    specs.push(old_image(&lab));
    let begun = Instant::now();
    let (_, readings) = read_all(&lab, &specs);
    println!("{} images read in {:?}", specs.len(), begun.elapsed());
    let mut seen = Features::NONE;
    for (spec, reading) in specs.iter().zip(readings) {
        let facts = found(reading);
        assert_as_rbd_says(&lab, spec, &facts);
        assert_eq!((known(&facts.watchers), known(&facts.lock)), (vec![], Lock::default()));
        seen = seen | facts.features;
    }
    assert_eq!(seen, Features(0xff), "every feature that can be asked for was seen");
}

#[test]
fn sixteen_images_are_read_in_well_under_a_second() {
    let lab = Lab::shared();
    let specs: Vec<Spec> = (0..16).map(|_| lab.image("many", &[])).collect();
    let begun = Instant::now();
    let (_, readings) = read_all(&lab, &specs);
    let took = begun.elapsed();
    println!("16 images read in {took:?}");
    assert!(readings.iter().all(|reading| matches!(reading, ImageReading::Found(_))));
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[test]
fn flags_are_those_of_the_head_and_of_each_snapshot() {
    let lab = Lab::shared();
    let image = lab.image("flags", &["--image-feature", "layering,exclusive-lock"]);
    let name = image.to_string();
    for snapshot in ["one", "two"] {
        lab.rbd(&["snap", "create", "--no-progress", &format!("{name}@{snapshot}")]);
    }
    lab.rbd(&["snap", "protect", &format!("{name}@two")]);
    lab.rbd(&["feature", "enable", &name, "object-map"]);
    let invalid = Flags { object_map_invalid: true, fast_diff_invalid: true };
    let of = |facts: &ImageFacts| {
        let snapshots = known(&facts.snapshots).into_iter();
        let snapshots = snapshots.map(|s: Snapshot| (s.name, s.namespace, s.protected, known(&s.flags)));
        (known(&facts.flags), snapshots.collect::<Vec<_>>())
    };
    let snapshot = |name: &str, protected, flags| (name.to_owned(), "user".to_owned(), protected, flags);
    let read = facts(&lab, &image);
    assert_as_rbd_says(&lab, &image, &read);
    assert_eq!(of(&read), (invalid, vec![snapshot("one", false, invalid), snapshot("two", true, invalid)]));

    lab.rbd(&["object-map", "rebuild", "--no-progress", &name]);
    lab.rbd(&["object-map", "rebuild", "--no-progress", &format!("{name}@two")]);
    let valid = Flags::default();
    let expected = (valid, vec![snapshot("one", false, invalid), snapshot("two", true, valid)]);
    assert_eq!(of(&facts(&lab, &image)), expected);
}

#[test]
fn many_snapshots_with_long_names_are_read() {
    let lab = Lab::shared();
    let image = lab.image("snapshots", &[]);
    let long = "s".repeat(300);
    for number in 0..40 {
        lab.rbd(&["snap", "create", "--no-progress", &format!("{image}@{long}{number}")]);
    }
    let names: Vec<_> = known(&facts(&lab, &image).snapshots).into_iter().map(|s| s.name).collect();
    assert_eq!(names, (0..40).map(|number| format!("{long}{number}")).collect::<Vec<_>>());
}

#[test]
fn snapshots_of_groups_and_of_the_trash_say_what_they_are() {
    let lab = Lab::shared();
    let image = lab.image("kinds", &[]);
    let group = format!("rbd/{}", unique("group"));
    lab.rbd(&["group", "create", &group]);
    lab.rbd(&["group", "image", "add", &group, &image.to_string()]);
    lab.rbd(&["group", "snap", "create", &format!("{group}@g")]);
    let child = clone_of(&lab, &image, "base", &format!("rbd/{}", unique("kinds-child")));
    // The clone still needs it, so it goes to the trash.
    lab.rbd(&["snap", "rm", "--no-progress", &format!("{image}@base")]);
    let read = facts(&lab, &image);
    let kinds: Vec<_> = known(&read.snapshots).into_iter().map(|s| s.namespace).collect();
    assert_eq!(kinds, ["group", "trash"]);
    assert_eq!(known(&read.op_features), ["clone-parent", "group", "snap-trash"]);
    let parents = known(&facts(&lab, &child).parents);
    assert_eq!(known(&parents.first().unwrap().features), read.features);
}

/// Makes `parent@snapshot` and a clone of it (version 2, so that the parent may be trashed).
fn clone_of(lab: &Lab, parent: &Spec, snapshot: &str, child: &str) -> Spec {
    let source = format!("{parent}@{snapshot}");
    lab.rbd(&["snap", "create", "--no-progress", &source]);
    lab.rbd(&["clone", "--rbd-default-clone-format", "2", &source, child]);
    match *child.split('/').collect::<Vec<_>>() {
        [pool, namespace, image] => {
            Spec { pool: pool.to_owned(), namespace: Some(namespace.to_owned()), image: image.to_owned() }
        }
        [_, image] => spec(image),
        _ => panic!("{child}"),
    }
}

#[test]
fn the_whole_chain_of_parents_is_read_across_pools_and_trash() {
    let lab = Lab::shared();
    let base = lab.image("base", &["--image-feature", "layering"]);
    let middle = clone_of(&lab, &base, "s1", &format!("pool2/tenant/{}", unique("middle")));
    let top = clone_of(&lab, &middle, "s2", &format!("rbd/{}", unique("top")));
    // Each goes to a trash, for the clone still needs it.
    lab.rbd(&["snap", "rm", "--no-progress", &format!("{base}@s1")]);
    lab.rbd(&["trash", "mv", &base.to_string()]);
    let middle_facts = facts(&lab, &middle);
    let read = facts(&lab, &top);
    assert_as_rbd_says(&lab, &top, &read);
    assert_as_rbd_says(&lab, &middle, &middle_facts);
    let seen: Vec<_> = known(&read.parents)
        .into_iter()
        .map(|p| (p.spec.to_string(), p.trashed, known(&p.features)))
        .collect();
    let base_features = Features::LAYERING | Features::OPERATIONS;
    // librbd's words of the nearest parent, ours of one further away.
    assert_eq!(known(&read.parents).get(1..), Some(&known(&middle_facts.parents)[..]));
    let expected =
        [(middle.to_string(), false, middle_facts.features), (base.to_string(), true, base_features)];
    assert_eq!(seen, expected);
}

#[test]
fn an_ancestor_that_is_being_moved_has_the_parents_that_librbd_gives_it() {
    let lab = Lab::shared();
    let base = lab.image("move-base", &["--image-feature", "layering"]);
    let middle = clone_of(&lab, &base, "s1", &format!("rbd/{}", unique("move-middle")));
    let top = clone_of(&lab, &middle, "s2", &format!("rbd/{}", unique("move-top")));
    let target = format!("pool2/{}", middle.image);
    lab.rbd(&["migration", "prepare", "--rbd-default-clone-format", "2", &middle.to_string(), &target]);
    let moved = Spec { pool: "pool2".to_owned(), ..middle };
    let parents = known(&facts(&lab, &top).parents);
    assert_eq!(parents.first().map(|parent| &parent.spec), Some(&moved));
    assert!(known(&parents.first().unwrap().features).contains(Features::MIGRATING));
    assert_eq!(parents.get(1..), Some(&known(&facts(&lab, &moved).parents)[..]));
}

#[test]
fn a_flattened_head_does_not_hide_the_parent_that_its_snapshot_has() {
    let lab = Lab::shared();
    let base = lab.image("old-base", &["--image-feature", "layering"]);
    lab.rbd(&["snap", "create", "--no-progress", &format!("{base}@s")]);
    let middle = spec(&unique("flat-middle"));
    let shallow = ["--rbd-default-clone-format", "2", "--image-feature", "layering"];
    lab.rbd(&[&["clone"], &shallow[..], &[&format!("{base}@s"), &middle.to_string()]].concat());
    let top = clone_of(&lab, &middle, "s", &format!("rbd/{}", unique("flat-top")));
    lab.rbd(&["flatten", "--no-progress", &middle.to_string()]);
    assert_eq!(known(&facts(&lab, &middle).parents), []);
    let names: Vec<_> = known(&facts(&lab, &top).parents).into_iter().map(|p| p.spec).collect();
    assert_eq!(names, [middle, base]);
}

#[test]
fn what_is_missing_is_called_by_its_name() {
    let lab = Lab::shared();
    let at = |pool: &str, namespace: Option<&str>, image: &str| Spec {
        pool: pool.to_owned(),
        namespace: namespace.map(str::to_owned),
        image: image.to_owned(),
    };
    let there = lab.image("there", &[]);
    let specs = [
        at("rbd", None, "no-such-image"),
        at("no-such-pool", None, &there.image),
        at("pool2", Some("no-such-namespace"), &there.image),
        at("pool2", Some("tenant"), "no-such-image"),
        at("no-such-pool", Some("tenant"), "no-such-image"),
        there,
    ];
    let (_, readings) = read_all(&lab, &specs);
    let expected = [
        ImageReading::ImageMissing,
        ImageReading::PoolMissing,
        ImageReading::NamespaceMissing,
        ImageReading::ImageMissing,
        ImageReading::PoolMissing,
    ];
    assert_eq!(readings[..5], expected);
    assert!(matches!(readings[5], ImageReading::Found(_)), "{:?}", readings[5]);
}

#[test]
fn an_image_whose_parent_is_gone_is_not_called_missing() {
    let lab = Lab::shared();
    let base = lab.image("lost", &[]);
    let child = clone_of(&lab, &base, "s", &format!("rbd/{}", unique("orphan")));
    let grandchild = clone_of(&lab, &child, "s", &format!("rbd/{}", unique("orphans-child")));
    lab.rados(&["--pool", "rbd", "rm", &format!("rbd_header.{}", facts(&lab, &base).id)]);
    for orphan in [child, grandchild] {
        match read(&lab, &orphan) {
            ImageReading::ParentMissing(failure) => {
                assert_eq!(failure.errno, Some(2));
                assert!(failure.message.contains("in pool rbd is gone"), "{failure}");
            }
            other => panic!("{other:?}"),
        }
    }
    // The parent itself has a name and no header: broken, not missing.
    assert!(matches!(read(&lab, &base), ImageReading::Unknown(_)), "{:?}", read(&lab, &base));
}

#[test]
fn an_image_that_the_user_may_not_read_is_unknown() {
    let lab = Lab::own(&[]);
    let image = lab.image("private", &[]);
    let keyring = lab.directory().join("keyring.narrow");
    let caps = ["mon", "profile rbd", "osd", "profile rbd pool=pool2"];
    lab.ceph(
        &[&["auth", "get-or-create", "client.narrow"], &caps[..], &["-o", keyring.to_str().unwrap()]]
            .concat(),
    );
    let reading = read_cluster(&lab.connection("narrow"), &[image, spec("none")], LIMIT);
    for image in known(&reading).1 {
        let ImageReading::Unknown(failure) = image else { panic!("{image:?}") };
        assert_eq!(failure.errno, Some(1), "{failure}");
    }
}

/// That nobody watches is only said by the pool itself: what leads there and is missing ends with the same errno.
#[test]
fn an_object_without_watchers_is_told_from_one_that_could_not_be_asked() {
    let lab = Lab::shared();
    let ask = |connection: &Connection, pool: &str| {
        read_mirror_daemons(connection, pool, None, Duration::from_secs(60))
    };
    let connection = lab.connection("admin");
    // The pool has no mirroring, so there is no such object.
    assert_eq!(ask(&connection, "pool2"), Reading::Known(Vec::new()));
    let nowhere = || Some("/nonexistent/file".to_owned());
    let no_keyring = Connection { keyring: nowhere(), ..connection.clone() };
    let no_conf = Connection { conf: nowhere(), ..connection.clone() };
    for (connection, pool) in [(&connection, "no-such-pool"), (&no_keyring, "pool2"), (&no_conf, "pool2")] {
        let told = ask(connection, pool);
        assert!(told.failure().is_some(), "{connection:?} {pool}: {told:?}");
    }
}

#[test]
fn users_with_few_rights_read_all_that_matters() {
    let lab = Lab::shared();
    let image = lab.image("rights", &["--image-feature", "layering,exclusive-lock,object-map,journaling"]);
    lab.rbd(&["snap", "create", "--no-progress", &format!("{image}@s")]);
    let as_admin = read_all(&lab, std::slice::from_ref(&image)).1;
    for user in ["vms", "poor", "reader"] {
        let reading = read_cluster(&lab.connection(user), std::slice::from_ref(&image), LIMIT);
        let (cluster, images) = known(&reading);
        assert_eq!(images, as_admin, "{user}");
        known(&cluster.blocklist);
        known(&cluster.health);
    }
}

#[test]
fn mirroring_and_its_snapshots_are_read() {
    let lab = Lab::own(&[]);
    lab.rbd(&["mirror", "pool", "enable", "rbd", "image"]);
    let by_snapshot = lab.image("mirrored", &[]);
    lab.rbd(&["mirror", "image", "enable", &by_snapshot.to_string(), "snapshot"]);
    let by_journal = lab.image("journaled", &["--image-feature", "exclusive-lock,journaling"]);
    lab.rbd(&["mirror", "image", "enable", &by_journal.to_string(), "journal"]);
    let demoted = lab.image("demoted", &[]);
    lab.rbd(&["mirror", "image", "enable", &demoted.to_string(), "snapshot"]);
    lab.rbd(&["mirror", "image", "demote", &demoted.to_string()]);
    let expected = [("snapshot", true), ("journal", true), ("snapshot", false)];
    for (spec, (mode, primary)) in [&by_snapshot, &by_journal, &demoted].into_iter().zip(expected) {
        let read = facts(&lab, spec);
        assert_as_rbd_says(&lab, spec, &read);
        let mirroring = known(&read.mirroring).unwrap();
        let seen = (mirroring.mode.as_str(), mirroring.state.as_str(), mirroring.primary);
        assert_eq!(seen, (mode, "enabled", primary));
    }
    let read = facts(&lab, &by_snapshot);
    assert_eq!(known(&read.snapshots).first().unwrap().namespace, "mirror");
    assert!(facts(&lab, &demoted).features.contains(Features::NON_PRIMARY));
}

#[test]
fn a_migration_is_followed() {
    let lab = Lab::shared();
    let image = lab.image("moving", &[]);
    let name = image.to_string();
    assert_eq!(known(&facts(&lab, &image).migration), None);
    lab.rbd(&["migration", "prepare", &name]);
    let read = facts(&lab, &image);
    assert_as_rbd_says(&lab, &image, &ImageFacts { parents: Reading::Known(vec![]), ..read.clone() });
    assert!(read.features.contains(Features::MIGRATING));
    assert_eq!(known(&read.migration).as_deref(), Some("prepared"));
    lab.rbd(&["migration", "execute", "--no-progress", &name]);
    assert_eq!(known(&facts(&lab, &image).migration).as_deref(), Some("executed"));
}

#[test]
fn the_blocklist_health_and_options_are_the_clusters() {
    let lab = Lab::own(&[]);
    lab.ceph(&["osd", "blocklist", "add", "192.0.2.7:0/123", "600"]);
    lab.ceph(&["osd", "blocklist", "range", "add", "198.51.100.0/24", "600"]);
    lab.ceph(&["config", "set", "client", "rbd_default_features", "layering,exclusive-lock"]);
    lab.ceph(&["config", "set", "client", "rbd_blocklist_expire_seconds", "30"]);
    let (cluster, images) = read_all(&lab, &[]);
    assert_eq!(images, []);
    assert_eq!(cluster.fsid, lab.ceph(&["fsid"]).trim());
    let entries: Vec<_> = known(&cluster.blocklist).into_iter().map(|e| (e.address, e.range)).collect();
    let expected = [("192.0.2.7:0/123", false), ("198.51.100.0:0/24", true)];
    assert_eq!(entries, expected.map(|(address, range)| (address.to_owned(), range)));
    assert_eq!(known(&cluster.default_features), Features::LAYERING | Features::EXCLUSIVE_LOCK);
    assert_eq!(known(&cluster.blocklist_expire_seconds), 30);
    // The monitor looks at the pools from time to time.
    wait_until("one copy of each object is noticed", LIMIT, || {
        let health = known(&read_all(&lab, &[]).0.health);
        health.status == "HEALTH_WARN" && health.checks.iter().any(|(code, _)| code == "POOL_NO_REDUNDANCY")
    });
}

/// What `rbd map` writes to the kernel: to a file in its place, in a mount namespace of its own. The key is left out.
fn written_by_map(lab: &Lab, spec: &Spec, options: &[&str]) -> String {
    const SCRIPT: &str = r#"
        mount --make-private /sys && mount -t tmpfs none /sys/bus && mkdir -p /sys/bus/rbd/devices && add=/sys/bus/rbd/add_single_major && : >$add || exit
        rbd map "$@" >/dev/null & n=0
        # It would wait for its device.
        while [ ! -s $add ] && kill -0 $! 2>/dev/null && [ $n -lt 300 ]; do sleep 0.1; n=$((n + 1)); done
        kill -9 $! 2>/dev/null
        sed 's/secret=[^, ]*/key=client.admin/' $add"#;
    let spec = spec.to_string();
    let mut command = Command::new("unshare");
    command
        .env("CEPH_CONF", lab.conf())
        .args(["--mount", "--propagation", "unchanged", "sh", "-c", SCRIPT, "sh", &spec])
        .args(options);
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains(" name=admin,"), "{text} {}", String::from_utf8_lossy(&output.stderr));
    text
}

/// What a map asks the kernel for is known before: on every release, wherever the options are set.
#[test]
fn a_map_asks_for_what_was_said() {
    let lab = Lab::own(&[]);
    let (a, b) = (lab.image("a", &[]), lab.image("b", &[]));
    let tenant = Spec { pool: "pool2".into(), namespace: Some("tenant".into()), image: "c".into() };
    lab.rbd(&["create", "--size", "8M", &tenant.to_string()]);
    let (pool, pool2) = (a.pool.clone(), "pool2");
    let release = read_release();
    println!("rbd is {release:?}");
    let steps: [&[&str]; 7] = [
        &[],
        &["config", "global", "set", "client", "rbd_default_map_options", "osd_idle_ttl=61"],
        &["config", "pool", "set", &pool, "rbd_default_map_options", "nocrc,queue_depth=64"],
        &["config", "pool", "set", pool2, "rbd_default_map_options", "ms_mode=secure"],
        &["config", "image", "set", &a.to_string(), "rbd_default_map_options", "ms_mode=legacy,noudev"],
        &["config", "image", "set", &b.to_string(), "rbd_default_map_options", "rxbounce,share"],
        &[
            "config",
            "image",
            "set",
            &tenant.to_string(),
            "rbd_default_map_options",
            "crush_location=host:a|rack:b",
        ],
    ];
    let mut told = Vec::new();
    for step in steps {
        if !step.is_empty() {
            lab.rbd(step);
        }
        let specs = [&a, &b, &tenant];
        let images: Vec<(Spec, String)> = specs.map(|spec| (spec.clone(), facts(&lab, spec).id)).into();
        let options = read_map_options(&lab.connection("admin"), &images, LIMIT);
        for ((spec, defaults), windows) in specs.iter().zip(&options).zip([false, true, true]) {
            let asked = if windows { &["--options", "rxbounce"][..] } else { &[] };
            let text = written_by_map(&lab, spec, asked);
            let mapping: Mapping = serde_json::from_value(json!({
                "id": 0, "pool": "", "namespace": null, "image": "", "snapshot": null, "fsid": "f",
                "client_address": "", "client": 1, "options": text.split(' ').nth(1).unwrap(),
            }))
            .unwrap();
            let map = PlainMap {
                fsid: "f",
                user: "admin",
                keyring: true,
                rxbounce: windows,
                defaults,
                release: &release,
            };
            let (ours, theirs) = (Identity::of_map(&map), Identity::of_mapping(&mapping));
            assert_eq!(ours.told(), theirs.told(), "{step:?} {spec}: {text}");
            assert!(matches!(ours.takes(&theirs), Sharing::Yes), "{step:?} {spec}: {text}");
            told.push(ours.told());
        }
    }
    told.sort();
    told.dedup();
    assert!(told.len() >= 7, "{told:?}");
}

#[test]
fn monitors_alone_are_enough_to_connect() {
    let lab = Lab::shared();
    let monitors = lab.command("ceph-conf").args(["--lookup", "mon_host"]).output().unwrap();
    let mut connection = lab.connection("admin");
    connection.mon_host = Some(String::from_utf8(monitors.stdout).unwrap().trim().to_owned());
    connection.conf = None;
    let image = lab.image("external", &[]);
    let reading = read_cluster(&connection, &[image], LIMIT);
    assert!(matches!(known(&reading).1[..], [ImageReading::Found(_)]), "{reading:?}");
}

#[test]
fn wrong_keys_and_missing_files_keep_their_errno() {
    let lab = Lab::shared();
    let good = lab.connection("admin");
    let mut wrong_key = good.clone();
    wrong_key.keyring = Some(swapped_key(&lab));
    let mut no_keyring = good.clone();
    no_keyring.keyring = Some("/nonexistent/keyring".to_owned());
    let mut no_conf = good.clone();
    no_conf.conf = Some("/nonexistent/ceph.conf".to_owned());
    let mut no_user = good;
    no_user.user = "nobody".to_owned();
    for (connection, errno, says) in [
        (wrong_key, vec![13, 1], "connect to"),
        (no_keyring, vec![2], "/nonexistent/keyring"),
        (no_conf, vec![2], "read /nonexistent/ceph.conf"),
        (no_user, vec![2, 13, 1], "client.nobody"),
    ] {
        let reading = read_cluster(&connection, &[spec("any")], LIMIT);
        let failure = reading.failure().unwrap();
        assert!(errno.contains(&failure.errno.unwrap()), "{failure}");
        assert!(failure.what.contains(says), "{failure}");
    }
}

/// A keyring that says admin and holds the key of another user.
fn swapped_key(lab: &Lab) -> String {
    let text = std::fs::read_to_string(lab.keyring("vms")).unwrap();
    let path = lab.directory().join(unique("wrong-keyring"));
    std::fs::write(&path, text.replace("client.vms", "client.admin")).unwrap();
    path.to_str().unwrap().to_owned()
}

fn lock_and_watchers(lab: &Lab, spec: &Spec) -> (Lock, Vec<Watcher>) {
    let facts = facts(lab, spec);
    (known(&facts.lock), known(&facts.watchers))
}

/// What `rbd lock ls` and `rbd status` say.
fn assert_owner_as_rbd_says(lab: &Lab, spec: &Spec, lock: &Lock, watchers: &[Watcher]) {
    let locker = lock.lockers.first().unwrap();
    let expected = json!([{ "id": locker.cookie, "locker": locker.client, "address": locker.address }]);
    assert_eq!(lab.rbd_json(&["lock", "ls", &spec.to_string()]), expected);
    let watcher = watchers.first().unwrap();
    let expected = json!({ "address": watcher.address, "client": watcher.client, "cookie": watcher.cookie });
    assert_eq!(lab.rbd_json(&["status", &spec.to_string()])["watchers"], json!([expected]));
}

#[test]
fn a_stale_lock_is_broken_and_a_live_one_never() {
    let lab = Lab::own(&["--watch-timeout", "8"]);
    let image = lab.image("locked", &[]);
    let admin = lab.connection("admin");
    let writer = lab.writer(&image);
    let (lock, watchers) = lock_and_watchers(&lab, &image);
    assert_eq!((lock.tag.as_str(), lock.exclusive, watchers.len()), ("internal", true, 1));
    assert_owner_as_rbd_says(&lab, &image, &lock, &watchers);
    let owner = lock.lockers.first().unwrap().clone();
    assert_eq!(watcher_of(&owner, &watchers), watchers.first());

    let refused = break_stale_lock(&admin, &image, &owner, LIMIT);
    assert_eq!(refused, Err(NotBroken::Watched(watchers)));
    assert!(writer.alive());
    assert_eq!(lock_and_watchers(&lab, &image).0, lock);

    writer.kill();
    let refused = break_stale_lock(&admin, &image, &owner, LIMIT);
    assert!(matches!(refused, Err(NotBroken::Watched(_))), "its watch is still there: {refused:?}");
    wait_until("the watch ends", Duration::from_secs(40), || lock_and_watchers(&lab, &image).1.is_empty());
    assert_eq!(lock_and_watchers(&lab, &image).0, lock, "the lock stays behind");

    let other = rbd_preflight::rbd::lock::Locker { cookie: "auto 1".to_owned(), ..owner.clone() };
    assert_eq!(break_stale_lock(&admin, &image, &other, LIMIT), Err(NotBroken::Changed(lock)));
    let poor = break_stale_lock(&lab.connection("poor"), &image, &owner, LIMIT);
    assert!(matches!(&poor, Err(NotBroken::MayNotBlocklist(f)) if f.errno == Some(13)), "{poor:?}");
    lab.ceph(&["config", "set", "client", "rbd_blocklist_expire_seconds", "30"]);
    let trapped = break_stale_lock(&admin, &image, &owner, LIMIT);
    assert!(matches!(&trapped, Err(NotBroken::BlocklistExpiry(f)) if f.errno == Some(22)), "{trapped:?}");
    lab.ceph(&["config", "rm", "client", "rbd_blocklist_expire_seconds"]);

    assert_eq!(break_stale_lock(&lab.connection("vms"), &image, &owner, LIMIT), Ok(()));
    let (lock, watchers) = lock_and_watchers(&lab, &image);
    assert_eq!((lock.lockers, watchers), (vec![], vec![]));
    let blocklist = known(&read_all(&lab, &[]).0.blocklist);
    assert!(blocklist.iter().any(|entry| entry.address == owner.address), "{blocklist:?}");
    let again = break_stale_lock(&admin, &image, &owner, LIMIT);
    assert!(matches!(again, Err(NotBroken::Changed(_))), "{again:?}");
}

#[test]
fn a_lock_by_hand_is_left_alone() {
    let lab = Lab::shared();
    let image = lab.image("by-hand", &[]);
    lab.rbd(&["lock", "add", &image.to_string(), "mine"]);
    let (lock, _) = lock_and_watchers(&lab, &image);
    let owner = lock.lockers.first().unwrap().clone();
    assert_eq!((lock.tag.as_str(), owner.cookie.as_str()), ("", "mine"));
    let refused = break_stale_lock(&lab.connection("admin"), &image, &owner, LIMIT);
    assert_eq!(refused, Err(NotBroken::External(lock.clone())));
    assert_eq!(lock_and_watchers(&lab, &image).0, lock);
}

#[test]
fn readers_register_no_watch() {
    let lab = Lab::shared();
    let image = lab.image("unwatched", &[]);
    let at_once = vec![image; 8];
    for reading in read_all(&lab, &at_once).1 {
        assert_eq!(known(&found(reading).watchers), []);
    }
}

/// How a process of its own ends: its exit, its time, its standard error and its JSON.
fn facts_process(lab: &Lab, seconds: &str, images: &[&str]) -> (Duration, Value) {
    let begun = Instant::now();
    let output = Command::new(example("facts"))
        .args([lab.conf().as_str(), "admin", lab.keyring("admin").as_str(), seconds])
        .args(images)
        .output()
        .unwrap();
    let took = begun.elapsed();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", output.status);
    assert_eq!(errors, "", "Ceph is quiet");
    (took, serde_json::from_slice(&output.stdout).unwrap())
}

/// Cargo builds examples beside the tests.
fn example(name: &str) -> std::path::PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().and_then(std::path::Path::parent).unwrap().join("examples").join(name)
}

#[test]
fn a_cluster_that_stands_still_is_unknown_within_the_deadline() {
    let lab = Lab::own(&[]);
    let image = lab.image("still", &[]);
    let deadline = Duration::from_secs(2);
    let admin = lab.connection("admin");

    lab.pause("osd");
    let begun = Instant::now();
    let reading = read_cluster(&admin, std::slice::from_ref(&image), deadline);
    assert!(begun.elapsed() < deadline + Duration::from_secs(1), "{:?}", begun.elapsed());
    let (cluster, images) = known(&reading);
    known(&cluster.health); // the monitor answered
    let [ImageReading::Unknown(failure)] = &images[..] else { panic!("{images:?}") };
    assert_eq!(failure.errno, Some(110));
    let owner = rbd_preflight::rbd::lock::Locker {
        client: "client.1".to_owned(),
        cookie: "auto 1".to_owned(),
        address: "127.0.0.1:0/1".to_owned(),
    };
    let begun = Instant::now();
    let broken = break_stale_lock(&admin, &image, &owner, deadline);
    assert!(begun.elapsed() < deadline + Duration::from_secs(1), "{:?}", begun.elapsed());
    assert!(matches!(&broken, Err(NotBroken::Failed(f)) if f.errno == Some(110)), "{broken:?}");
    // Ends while librbd still waits.
    let (took, _) = facts_process(&lab, "0", &[&image.to_string()]);
    assert!(took < Duration::from_secs(2), "{took:?}");

    lab.pause("mon");
    let begun = Instant::now();
    let reading = read_cluster(&admin, std::slice::from_ref(&image), deadline);
    assert!(begun.elapsed() < deadline + Duration::from_secs(1), "{:?}", begun.elapsed());
    let failure = reading.failure().unwrap();
    assert_eq!(failure.errno, Some(110));
    assert!(failure.what.starts_with("connect to Ceph as client.admin"), "{failure}");
    // Ends while librados still connects, and by itself.
    for seconds in ["0", "1"] {
        let (took, json) = facts_process(&lab, seconds, &[&image.to_string()]);
        assert!(took < Duration::from_millis(2200), "{took:?}");
        let unknown = &json["reading"]["unknown"];
        // Nobody finds out within no time that a cluster does not answer.
        let told = if seconds == "0" { unknown["origin"] == "late" } else { unknown["errno"] == 110 };
        assert!(told, "{json}");
    }

    lab.resume("all");
    wait_until("the cluster answers", Duration::from_secs(30), || {
        matches!(read(&lab, &image), ImageReading::Found(_))
    });
}

#[test]
fn an_image_that_does_not_answer_keeps_no_other_waiting() {
    let lab = Lab::own(&[]);
    let stuck = unique("stuck");
    lab.ceph(&["osd", "pool", "create", &stuck, "1"]);
    // Two copies wanted and one OSD: the pool's placement group takes no request.
    lab.ceph(&["osd", "pool", "set", &stuck, "size", "2"]);
    lab.ceph(&["osd", "pool", "set", &stuck, "min_size", "2"]);
    let silent = |image: String| Spec { pool: stuck.clone(), namespace: None, image };
    // More than there are threads to read with.
    let mut specs: Vec<Spec> = (0..20).map(|number| silent(format!("i{number}"))).collect();
    specs.push(lab.image("quick", &[]));
    let deadline = Duration::from_secs(3);
    wait_until("the pool is stuck", Duration::from_secs(20), || {
        let reading = read_cluster(&lab.connection("admin"), &specs[..1], Duration::from_secs(1));
        matches!(&known(&reading).1[..], [ImageReading::Unknown(_)])
    });
    let begun = Instant::now();
    let reading = read_cluster(&lab.connection("admin"), &specs, deadline);
    assert!(begun.elapsed() < deadline + Duration::from_secs(1), "{:?}", begun.elapsed());
    let (_, images) = known(&reading);
    let (last, silent) = images.split_last().unwrap();
    assert!(matches!(last, ImageReading::Found(_)), "{last:?}");
    for image in silent {
        let ImageReading::Unknown(failure) = image else { panic!("{image:?}") };
        // Those that waited for their turn were not even asked for.
        assert!(failure.errno == Some(110) || failure.origin == Origin::Late, "{failure:?}");
    }
}
