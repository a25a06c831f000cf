//! What is wrong now, by what is known.

use crate::ceph::cluster::NO_ANSWER;
use crate::kernel::Mapping;
use crate::pve::guest::Access;
use crate::rbd::address::host_of;
use crate::rbd::blocklist::BlocklistEntry;
use crate::rbd::blocklist::entry_of;
use crate::reading::Failure;
use crate::watch::code::Code;
use crate::watch::memory::{Cluster, Memory};
use crate::watch::seen::Disk;
use crate::watch::trouble::{Key, Trouble};
use nix::libc::ESHUTDOWN;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long no read or write may have failed for that to be over.
const QUIET: Duration = Duration::from_secs(300);
/// How long nobody here may be seen to watch an image before that is reported. krbd takes a lost watch again at once, and
/// every ten seconds after that, and so does librbd; an OSD that restarts loses all of its watches.
const RETAKEN: Duration = Duration::from_secs(20);
/// How often in a row a cluster may give no answer before that is reported: monitors elect a leader within seconds.
const UNANSWERED: u32 = 2;

type Wrong = BTreeMap<Key, Trouble>;

/// All that is wrong.
pub fn now(memory: &Memory, now: Duration) -> Wrong {
    let mut wrong = Wrong::new();
    own(memory, &mut wrong);
    for (place, cluster) in &memory.clusters {
        silent(memory, place, cluster, &mut wrong);
        listed(memory, place, cluster, &mut wrong);
    }
    for mapping in memory.mappings.iter().filter(|mapping| !memory.is_off(mapping)) {
        dead_client(memory, mapping, &mut wrong);
        failed_io(memory, mapping, now, &mut wrong);
    }
    for disk in &memory.disks {
        dead_disk(memory, disk, &mut wrong);
    }
    for disk in &memory.disks {
        lost_watch(memory, disk, &mut wrong);
    }
    wrong
}

/// What keeps the watcher from looking.
fn own(memory: &Memory, wrong: &mut Wrong) {
    for (code, what, failure) in [
        (Code::PveUnreadable, "pve", &memory.pve),
        (Code::CannotLook, "mappings", &memory.sysfs),
        (Code::CannotLook, "kernel log", &memory.log),
    ] {
        if let Some(failure) = failure {
            let trouble = Trouble { errno: failure.errno, ..Trouble::new(code, failure.to_string()) };
            wrong.insert(Key::new(code, what), trouble);
        }
    }
}

fn silent(memory: &Memory, place: &str, cluster: &Cluster, wrong: &mut Wrong) {
    let Some(failure) = &cluster.failure else { return };
    let silent = is_silence(failure);
    if silent && cluster.failures < UNANSWERED {
        return;
    }
    let code = if silent { Code::ClusterSilent } else { Code::CannotLook };
    let disks = || memory.disks.iter().filter(|disk| disk.cluster == place);
    let storages: BTreeSet<&str> = disks().map(|disk| disk.storage.as_str()).collect();
    let trouble = Trouble {
        guests: disks().map(|disk| disk.vmid).collect(),
        storage: Some(storages.into_iter().collect::<Vec<_>>().join(", ")),
        fsid: cluster.fsid.clone(),
        errno: failure.errno,
        ..Trouble::new(code, failure.to_string())
    };
    wrong.insert(Key::new(code, place), trouble);
}

/// Nobody answered, which is another thing than an answer that says no.
fn is_silence(failure: &Failure) -> bool {
    failure.is_one_of(&NO_ANSWER)
}

/// Entries of the blocklist that are about this node, and not about a client that is known to be in use.
fn listed(memory: &Memory, place: &str, cluster: &Cluster, wrong: &mut Wrong) {
    let hosts = memory.hosts(place);
    let fsid = cluster.fsid.clone().unwrap_or_default();
    let used = |address: &str| {
        memory.mappings.iter().any(|mapping| mapping.client_address == address)
            || memory.images.values().any(|image| image.watched_by.as_deref() == Some(address))
    };
    let guests = || memory.disks.iter().filter(|disk| disk.cluster == place).map(|disk| disk.vmid).collect();
    for entry in &cluster.blocklist {
        let alone = std::slice::from_ref(entry);
        let all = cluster.own.iter().any(|own| entry_of(own, alone).is_some() && own != &entry.address);
        let seen = format!("{} until {}", entry.address, entry.until);
        let told = |code| Trouble {
            fsid: Some(fsid.clone()),
            client: Some(entry.address.clone()),
            ..Trouble::new(code, seen.clone())
        };
        let key = |code| Key::new(code, format!("{fsid} {}", entry.address));
        if all {
            wrong.insert(key(Code::NodeFenced), Trouble { guests: guests(), ..told(Code::NodeFenced) });
        } else if is_client_of(entry, &hosts) && !used(&entry.address) {
            wrong.insert(key(Code::BlocklistEntry), told(Code::BlocklistEntry));
        }
    }
}

/// It is one client's of these hosts: daemons have a port, clients none.
fn is_client_of(entry: &BlocklistEntry, hosts: &BTreeSet<std::net::IpAddr>) -> bool {
    let place = entry.address.split('/').next().unwrap_or_default();
    !entry.range && place.ends_with(":0") && host_of(&entry.address).is_some_and(|host| hosts.contains(&host))
}

/// Why a mapping's client is known to be dead, in words.
fn dead(memory: &Memory, mapping: &Mapping) -> Option<String> {
    let address = &mapping.client_address;
    if let Some(until) = memory.fenced.get(address) {
        return Some(format!("client {address}, put on the OSD blocklist until {until}"));
    }
    memory.is_killed(address).then(|| {
        let failure = Failure::errno("", ESHUTDOWN).message;
        format!("client {address}, whose requests fail with error {ESHUTDOWN} (ESHUTDOWN, {failure})")
    })
}

fn dead_client(memory: &Memory, mapping: &Mapping, wrong: &mut Wrong) {
    let Some(why) = dead(memory, mapping) else { return };
    let (fsid, address) = (&mapping.fsid, &mapping.client_address);
    let trouble =
        wrong.entry(Key::new(Code::ClientDead, format!("{fsid} {address}"))).or_insert_with(|| Trouble {
            fsid: Some(fsid.clone()),
            client: Some(address.clone()),
            errno: Some(ESHUTDOWN),
            ..Trouble::new(Code::ClientDead, format!("{why}; mapped through it:"))
        });
    let comma = if trouble.seen.ends_with(':') { "" } else { "," };
    trouble.seen += &format!("{comma} /dev/rbd{}", mapping.id);
    if let Some(disk) = memory.disk_of(mapping) {
        trouble.seen += &format!(" (guest {})", disk.vmid);
        trouble.guests.insert(disk.vmid);
    }
}

fn failed_io(memory: &Memory, mapping: &Mapping, now: Duration, wrong: &mut Wrong) {
    let device = memory.devices.get(&(mapping.id, mapping.client_address.clone()));
    let Some(error) = device.and_then(|device| device.error.as_ref()) else { return };
    if now.saturating_sub(error.at) > QUIET {
        return;
    }
    let words = Failure::errno("", error.errno).message;
    let seen =
        format!("/dev/rbd{}: a {} failed with error {} ({words})", mapping.id, error.operation, error.errno);
    let trouble = Trouble { errno: Some(error.errno), ..of_mapping(memory, mapping, Code::IoErrors, seen) };
    let subject = format!("{} {}", mapping.id, mapping.client_address);
    wrong.insert(Key::new(Code::IoErrors, subject), trouble);
}

/// A state of what the kernel has mapped, with the guest that runs on it.
fn of_mapping(memory: &Memory, mapping: &Mapping, code: Code, seen: String) -> Trouble {
    let trouble = Trouble::new(code, seen);
    let trouble = match memory.disk_of(mapping) {
        Some(disk) => trouble.of_disk(disk),
        None => Trouble { image: Some(mapping.spec().to_string()), ..trouble },
    };
    Trouble {
        device: Some(mapping.id),
        fsid: Some(mapping.fsid.clone()),
        client: Some(mapping.client_address.clone()),
        ..trouble
    }
}

fn dead_disk(memory: &Memory, disk: &Disk, wrong: &mut Wrong) {
    let key = Key::disk(Code::DiskDead, disk);
    if let Some(mapping) = memory.mapping_of(disk) {
        if let Some(why) = dead(memory, mapping) {
            let trouble =
                of_mapping(memory, mapping, Code::DiskDead, format!("/dev/rbd{}: {why}", mapping.id));
            wrong.insert(key, Trouble { errno: Some(ESHUTDOWN), ..trouble.of_disk(disk) });
        }
    } else if let Some((address, until)) = dead_process(memory, disk) {
        let seen = format!("QEMU's client {address}, put on the OSD blocklist until {until}");
        let fsid = memory.clusters.get(&disk.cluster).and_then(|cluster| cluster.fsid.clone());
        let trouble = Trouble {
            fsid,
            client: Some(address.to_owned()),
            errno: Some(ESHUTDOWN),
            ..Trouble::new(Code::DiskDead, seen).of_disk(disk)
        };
        wrong.insert(key, trouble);
    }
}

/// The client that QEMU was seen to watch a disk's image with, if it is on the blocklist and QEMU has no other since.
fn dead_process<'a>(memory: &'a Memory, disk: &Disk) -> Option<(&'a str, &'a str)> {
    let image = memory.image(disk).filter(|_| disk.access == Access::Librbd)?;
    let address = image.watched_by.as_deref()?;
    let until = memory.fenced.get(address)?;
    image.missing_since.is_some().then_some((address, until))
}

/// Nobody here watches a disk's image, and somebody must: a mapping for writing always does; QEMU does if it ever did,
/// for it also opens disks without writing to them.
pub fn may_be_lost(memory: &Memory, disk: &Disk) -> bool {
    let watched = memory.image(disk).is_some_and(|image| image.watched_by.is_some());
    let mapping = memory.mapping_of(disk);
    let mapped = mapping.is_some_and(|mapping| mapping.read_only == Some(false));
    let known_dead = mapping.is_some_and(|mapping| dead(memory, mapping).is_some());
    (mapped || watched) && (mapping.is_some() || disk.access == Access::Librbd) && !known_dead
}

fn lost_watch(memory: &Memory, disk: &Disk, wrong: &mut Wrong) {
    let since = memory.image(disk).and_then(|image| Some((image.missing_since?, image.asked?)));
    let Some((since, asked)) = since.filter(|_| may_be_lost(memory, disk)) else { return };
    let known = wrong.contains_key(&Key::disk(Code::DiskDead, disk));
    if known || asked.saturating_sub(since) < RETAKEN {
        return;
    }
    let fsid = memory.clusters.get(&disk.cluster).and_then(|cluster| cluster.fsid.clone());
    let seen =
        format!("no client of this node has watched {} for {} s or more", disk.image, RETAKEN.as_secs());
    let trouble = match memory.mapping_of(disk) {
        Some(mapping) => of_mapping(memory, mapping, Code::WatchLost, seen).of_disk(disk),
        None => Trouble { fsid, ..Trouble::new(Code::WatchLost, seen).of_disk(disk) },
    };
    wrong.insert(Key::disk(Code::WatchLost, disk), trouble);
}
