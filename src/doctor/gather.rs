//! Gathers what there is to know of a node. Changes nothing, and asks no cluster for longer than the settings allow.

use super::{Facts, LeftBehind, Snippet, SnippetFacts, StorageFacts, Works};
use crate::ceph::caps::find_caps;
use crate::ceph::ffi;
use crate::ceph::image::ImageReading;
use crate::ceph::read_cluster::read_cluster;
use crate::ceph::way;
use crate::hook::earlier;
use crate::hook::snippet::ON_LOCAL;
use crate::hook::snippet::OtherNode;
use crate::journal::Journal;
use crate::kernel::{self, kmsg, module};
use crate::observe::keyring::keyring_facts;
use crate::pve::connection::connection;
use crate::pve::guest::{self, Guest};
use crate::pve::keyring::{self, Check};
use crate::pve::node::{find_guest, guests_of_node, node_name};
use crate::pve::snippet;
use crate::pve::storage::{self, RbdStorage, StorageConfig};
use crate::rbd::spec::Spec;
use crate::reading::{Failure, Reading, error_text};
use crate::settings::{CLUSTER_FILE, NODE_FILE, Settings};
use crate::sys::command::Command;
use crate::sys::process::{Outcome, Runner, System, find};
use crate::sys::root::Root;
use anyhow::Result;
use std::collections::BTreeSet;
use std::time::Duration;

/// Programs whose place is shown.
const PROGRAMS: [&str; 3] = ["rbd", "ceph", "setpriv"];
/// The image that is looked for to see whether a pool can be looked into. Nobody has one of this name.
const NO_IMAGE: &str = "rbd-preflight-doctor";
/// How long a program of the system's may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// What PVE's links to mapped images need, each with the places where it may be.
const UDEV: [(&str, &[&str]); 2] = [
    (
        "50-rbd-pve.rules",
        &[
            "/usr/lib/udev/rules.d/50-rbd-pve.rules",
            "/lib/udev/rules.d/50-rbd-pve.rules",
            "/etc/udev/rules.d/50-rbd-pve.rules",
        ],
    ),
    ("ceph-rbdnamer-pve", &["/usr/libexec/ceph-rbdnamer-pve"]),
];

/// Asks which other nodes have the snippet under some names, of the storages and this node's name.
type Elsewhere<'a> = dyn Fn(&StorageConfig, &[String], &str) -> Vec<OtherNode> + Sync + 'a;

/// Looks at this node. `elsewhere` asks which other nodes have the snippet under some names, of the storages and this
/// node's name.
pub fn gather(root: &Root, elsewhere: &Elsewhere<'_>) -> Result<Facts> {
    let node = node_name(root)?;
    let settings = Settings::load(root);
    let limit = settings.as_ref().map(|all| all.for_guest(0, [""; 0])).unwrap_or_default().connect_timeout;
    let config = storage::load(root);
    let kernel = kernel::gather(root);
    let guests = guests(root, &node, &config);
    let snippets = snippets(root, &config, &guests);
    let names: Vec<String> = snippets.iter().map(|snippet| snippet.volid.clone()).collect();
    let (storages, elsewhere) = std::thread::scope(|scope| {
        let elsewhere = scope
            .spawn(|| config.as_ref().map(|config| elsewhere(config, &names, &node)).unwrap_or_default());
        let storages = match &config {
            Ok(config) => Reading::Known(ask_storages(root, &node, config, limit)),
            Err(failure) => Reading::Unknown(failure.clone()),
        };
        (storages, elsewhere.join().unwrap_or_default())
    });
    Ok(Facts {
        programs: PROGRAMS.map(|name| (name, find(name).map(|path| path.display().to_string()))).into(),
        libraries: ffi::libraries().map_err(|missing| format!("{}: {}", missing.library, missing.detail)),
        release: ffi::release(),
        loadable: module::loadable(root, &kernel).map(works),
        kernel,
        udev_missing: udev_missing(root),
        kernel_log: works(kmsg::mark(root)),
        clock: clock(root),
        settings_files: [CLUSTER_FILE, NODE_FILE]
            .into_iter()
            .filter(|file| root.path(file).exists())
            .collect(),
        settings: works(settings),
        journal: works(Journal::open(root).writable()),
        storages,
        earlier: earlier(root, &config, &guests),
        left_behind: left_behind(root).map_err(|error| error_text(&error)),
        in_snapshots: in_snapshots(root, &node, &guests),
        snippets,
        guests,
        elsewhere,
        boot_unit: boot_unit(root),
        node,
    })
}

fn works<T>(result: Result<T>) -> Works {
    result.map(drop).map_err(|error| error_text(&error))
}

fn udev_missing(root: &Root) -> Vec<&'static str> {
    let there = |places: &[&str]| places.iter().any(|place| root.path(place).is_file());
    UDEV.iter().filter(|(_, places)| !there(places)).map(|(name, _)| *name).collect()
}

/// systemd-timesyncd says so in a file, and for chrony, ntpd and the like timedatectl does.
fn clock(root: &Root) -> Option<bool> {
    if root.path("/run/systemd/timesync/synchronized").exists() {
        return Some(true);
    }
    if !root.is_system() || find("timedatectl").is_none() {
        return None;
    }
    let command =
        Command::new("timedatectl").args(["show", "-p", "NTPSynchronized", "--value"]).deadline(PATIENCE);
    let outcome = System.run(&command).and_then(Outcome::check).ok()?;
    match String::from_utf8_lossy(&outcome.stdout).trim() {
        "yes" => Some(true),
        "no" => Some(false),
        _ => None,
    }
}

/// Each storage of this node in a thread of its own: one that does not answer keeps no other waiting.
fn ask_storages(root: &Root, node: &str, config: &StorageConfig, limit: Duration) -> Vec<StorageFacts> {
    let check = &keyring::installed_check(root);
    std::thread::scope(|scope| {
        let asked = config.rbd.iter().filter(|storage| storage.is_on(node));
        let threads: Vec<_> = asked
            .map(|section| (section, scope.spawn(move || ask_storage(root, section, check, limit))))
            .collect();
        threads
            .into_iter()
            .map(|(section, thread)| {
                thread.join().unwrap_or_else(|_| {
                    unasked(
                        section,
                        Failure::new(
                            "ask the cluster",
                            "the reader panicked; this is a fault of rbd-preflight",
                        ),
                    )
                })
            })
            .collect()
    })
}

fn unasked(section: &RbdStorage, failure: Failure) -> StorageFacts {
    StorageFacts {
        section: section.clone(),
        connection: None,
        cluster: Reading::Unknown(failure.clone()),
        caps: Reading::Unknown(failure),
        keyring: None,
        way: None,
    }
}

fn ask_storage(root: &Root, section: &RbdStorage, check: &Check, limit: Duration) -> StorageFacts {
    let connection = match connection(root, section) {
        Ok(connection) => connection,
        Err(failure) => return unasked(section, failure),
    };
    let spec =
        Spec { pool: section.pool.clone(), namespace: section.namespace.clone(), image: NO_IMAGE.to_owned() };
    let read = || read_cluster(&connection, &[spec], limit);
    let (cluster, way) = way::beside(&connection, limit, read, Reading::failure);
    let cluster = match cluster {
        Reading::Known((facts, images)) => {
            Reading::Known((facts, images.into_iter().next().unwrap_or(ImageReading::ImageMissing)))
        }
        Reading::Unknown(failure) => Reading::Unknown(failure),
    };
    let caps = match &cluster {
        Reading::Known(_) => find_caps(root, &connection, &connection.user, limit),
        Reading::Unknown(failure) => Reading::Unknown(failure.clone()),
    };
    let keyring = keyring_facts(&connection, check);
    StorageFacts { section: section.clone(), connection: Some(connection), cluster, caps, keyring, way }
}

type Guests = Reading<Vec<Result<Guest, (u32, String)>>>;

fn guests(root: &Root, node: &str, config: &Result<StorageConfig, Failure>) -> Guests {
    let read = || -> Result<Vec<_>, Failure> {
        let config = config.as_ref().map_err(Failure::clone)?;
        let all = guests_of_node(root, node)?.into_iter();
        Ok(all
            .map(|file| guest::load(root, &file, config).map_err(|failure| (file.vmid, failure.to_string())))
            .collect())
    };
    read().into()
}

/// The hookscripts of the guests that could be read.
fn hookscripts(guests: &Guests) -> impl Iterator<Item = (u32, &String)> {
    let read = guests.known().into_iter().flatten().filter_map(|guest| guest.as_ref().ok());
    read.filter_map(|guest| Some((guest.vmid, guest.hookscript.as_ref()?)))
}

/// The snippet under each name that guests ask for; where none does, under its plain one.
fn snippets(root: &Root, config: &Result<StorageConfig, Failure>, guests: &Guests) -> Vec<SnippetFacts> {
    let asked = hookscripts(guests).map(|(_, volid)| volid.clone());
    let mut names: BTreeSet<String> =
        asked.filter(|volid| crate::hook::snippet::ours(volid).is_some()).collect();
    if names.is_empty() {
        names.insert(ON_LOCAL.to_owned());
    }
    names.into_iter().map(|volid| snippet(root, config, volid)).collect()
}

fn snippet(root: &Root, config: &Result<StorageConfig, Failure>, volid: String) -> SnippetFacts {
    let usual = || format!("/var/lib/vz/{}", volid.split_once(':').map_or(volid.as_str(), |(_, name)| name));
    let path = config.as_ref().ok().and_then(|config| snippet::path(config, &volid).ok());
    let path = path.unwrap_or_else(usual);
    let there = match (snippet::check(root, &path, &volid), root.path(&path).is_file()) {
        (Ok(()), _) if crate::hook::snippet::is_ours(&root.path(&path)) => Snippet::Runs,
        (Ok(()), _) => Snippet::Other,
        (Err(_), true) => Snippet::NotExecutable,
        (Err(_), false) => Snippet::Missing,
    };
    SnippetFacts { volid, path, there }
}

/// The hookscripts that the snippet calls too, and whether they could be run.
fn earlier(
    root: &Root,
    config: &Result<StorageConfig, Failure>,
    guests: &Guests,
) -> Vec<(u32, String, Works)> {
    let runs = |volid: &str| -> Works {
        let config = config.as_ref().map_err(Failure::to_string)?;
        snippet::path(config, volid).and_then(|path| snippet::check(root, &path, volid))
    };
    let named = hookscripts(guests)
        .filter_map(|(vmid, volid)| Some((vmid, crate::hook::snippet::ours(volid)?.earlier?)));
    named.map(|(vmid, earlier)| (vmid, earlier.clone(), runs(&earlier))).collect()
}

fn left_behind(root: &Root) -> Result<Vec<LeftBehind>> {
    let found = |vmid| -> Result<LeftBehind> {
        let script = earlier::left_behind(root, vmid).map_err(|error| error_text(&error));
        let script = script.map(Option::unwrap_or_default);
        Ok(LeftBehind { vmid, script, node: find_guest(root, vmid)?.map(|guest| guest.node) })
    };
    earlier::all_left_behind(root)?.into_iter().map(found).collect()
}

/// Attached guests whose snippet calls nothing else, and whose snapshots know another hookscript.
fn in_snapshots(root: &Root, node: &str, guests: &Guests) -> Vec<(u32, Vec<String>)> {
    let plain = |volid: &str| crate::hook::snippet::ours(volid).is_some_and(|ours| ours.earlier.is_none());
    let attached: BTreeSet<u32> =
        hookscripts(guests).filter(|(_, volid)| plain(volid)).map(|(vmid, _)| vmid).collect();
    let files = guests_of_node(root, node).unwrap_or_default().into_iter();
    let read = files.filter(|file| attached.contains(&file.vmid)).filter_map(|file| {
        let text = file.read(root).ok()?;
        let text = String::from_utf8_lossy(&text);
        let snapshots = text.lines().skip_while(|line| !line.starts_with('['));
        let named = snapshots.filter_map(|line| line.strip_prefix("hookscript:")).map(str::trim);
        let others: BTreeSet<String> = named
            .filter_map(|volid| match crate::hook::snippet::ours(volid) {
                Some(ours) => ours.earlier,
                None => Some(volid.to_owned()),
            })
            .collect();
        (!others.is_empty()).then(|| (file.vmid, others.into_iter().collect()))
    });
    read.collect()
}

/// The unit is linked to a target, as `systemctl enable` does.
fn boot_unit(root: &Root) -> bool {
    root.path("/etc/systemd/system/multi-user.target.wants/rbd-preflight-boot.service")
        .symlink_metadata()
        .is_ok()
}
