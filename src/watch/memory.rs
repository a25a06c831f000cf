//! What was last known. What cannot be read now is as it was.

use crate::ceph::keep::Answer;
use crate::kernel::Mapping;
use crate::kernel::messages::{About, KernelLine, KernelMessage as M};
use crate::pve::guest::Access;
use crate::rbd::address::host_of;
use crate::rbd::blocklist::BlocklistEntry;
use crate::rbd::blocklist::entry_of;
use crate::rbd::identity::ImageIdentity;
use crate::rbd::lock::Watcher;
use crate::rbd::spec::Spec;
use crate::reading::{Failure, Reading};
use crate::watch::seen::{ClusterLook, Disk, Guests, NodeLook};
use nix::libc::ESHUTDOWN;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// What was last known.
#[derive(Debug, Default)]
pub struct Memory {
    /// The disks of the guests that run here.
    pub disks: Vec<Disk>,
    /// Images of which nothing is reported.
    pub off: BTreeSet<Spec>,
    /// Why the guests cannot be read now.
    pub pve: Option<Failure>,
    /// What the kernel has mapped.
    pub mappings: Arc<Vec<Mapping>>,
    /// Why that cannot be read now.
    pub sysfs: Option<Failure>,
    /// Why the kernel's log cannot be read now.
    pub log: Option<Failure>,
    /// The clusters, by how they are reached.
    pub clusters: BTreeMap<String, Cluster>,
    /// What the kernel said of its devices, by number and client: the next device of a number is another one.
    pub devices: BTreeMap<(u32, String), Device>,
    /// Clients of this node that were seen on the blocklist while they were in use here, and until when the entry holds. They
    /// stay dead when it is gone: neither krbd nor librbd takes a watch again that was refused with ESHUTDOWN.
    pub fenced: BTreeMap<String, String>,
    /// What the clusters said of images, by cluster.
    pub images: BTreeMap<(String, Spec), Image>,
}

/// What is known of a Ceph cluster.
#[derive(Debug, Default)]
pub struct Cluster {
    /// Its fsid; `None` until it has answered once.
    pub fsid: Option<String>,
    /// The addresses of the watcher's own client.
    pub own: Vec<String>,
    /// The OSD blocklist.
    pub blocklist: Vec<BlocklistEntry>,
    /// When an entry came to it that was not there before.
    pub listed_anew: Option<Duration>,
    /// How often in a row it did not answer.
    pub failures: u32,
    /// Why, or why its blocklist is not known.
    pub failure: Option<Failure>,
}

/// A device that the kernel said something of.
#[derive(Debug, Default)]
pub struct Device {
    /// The last read or write that failed.
    pub error: Option<IoError>,
    /// The kernel says that its client is on the blocklist: nothing else ends with ESHUTDOWN.
    pub killed: bool,
    /// When the kernel last said that its watch is lost.
    pub watch_lost: Option<Duration>,
}

/// A read or write that failed.
#[derive(Debug)]
pub struct IoError {
    /// When the kernel wrote the line, since the boot.
    pub at: Duration,
    /// What was tried: `read`, `write`, `discard`.
    pub operation: String,
    /// The errno that came back, positive.
    pub errno: i32,
}

/// What a cluster said of an image.
#[derive(Debug, Default)]
pub struct Image {
    /// When it was last asked for.
    pub tried: Option<Duration>,
    /// When that was last answered.
    pub asked: Option<Duration>,
    /// The client of this node that watched it when one last did.
    pub watched_by: Option<String>,
    /// Since when none does.
    pub missing_since: Option<Duration>,
}

impl Memory {
    /// What the node's files and kernel say now.
    pub fn take_node(&mut self, look: NodeLook) {
        match look.mappings {
            Reading::Known(mappings) => (self.mappings, self.sysfs) = (mappings, None),
            Reading::Unknown(failure) => self.sysfs = Some(failure),
        }
        let mapped: BTreeSet<(u32, String)> =
            self.mappings.iter().map(|mapping| (mapping.id, mapping.client_address.clone())).collect();
        if self.sysfs.is_none() {
            self.devices.retain(|device, _| mapped.contains(device));
        }
        match look.guests {
            Reading::Known(guests) => self.take_guests(guests),
            Reading::Unknown(failure) => self.pve = Some(failure),
        }
        self.forget_fenced();
    }

    fn take_guests(&mut self, guests: Guests) {
        self.pve = None;
        self.off = guests.off;
        let kept =
            std::mem::take(&mut self.disks).into_iter().filter(|disk| guests.unsure.contains(&disk.vmid));
        self.disks = kept.chain(guests.disks).collect();
        let clusters: BTreeSet<&str> = self.disks.iter().map(|disk| disk.cluster.as_str()).collect();
        self.clusters.retain(|cluster, _| clusters.contains(cluster.as_str()));
        let images: BTreeSet<(&str, &Spec)> =
            self.disks.iter().map(|disk| (disk.cluster.as_str(), &disk.image)).collect();
        self.images.retain(|(cluster, image), _| images.contains(&(cluster.as_str(), image)));
    }

    /// Clients that nothing here uses any more.
    fn forget_fenced(&mut self) {
        let used = |address: &String| {
            self.mappings.iter().any(|mapping| mapping.client_address == *address)
                || self.images.values().any(|image| image.watched_by.as_ref() == Some(address))
        };
        let kept = self.fenced.iter().filter(|(address, _)| used(address));
        self.fenced = kept.map(|(address, until)| (address.clone(), until.clone())).collect();
    }

    /// Which clients of this node are on a cluster's blocklist.
    fn mark_fenced(&mut self, place: &str) {
        let Some(cluster) = self.clusters.get(place) else { return };
        let mapped = self.mappings.iter().filter(|mapping| cluster.fsid.as_ref() == Some(&mapping.fsid));
        let images = self.images.iter().filter(|((of, _), _)| of == place);
        let used = mapped.map(|mapping| &mapping.client_address);
        let used = used.chain(images.filter_map(|(_, image)| image.watched_by.as_ref()));
        let fenced = used.filter_map(|address| {
            Some((address.clone(), entry_of(address, &cluster.blocklist)?.until.clone()))
        });
        self.fenced.extend(fenced.collect::<Vec<_>>());
    }

    /// A line of the kernel's log.
    pub fn take_line(&mut self, now: Duration, line: &KernelLine) {
        let About::Disk(number) = line.about else { return };
        let mapping = self.mappings.iter().find(|mapping| mapping.id == number);
        // A device that is not mapped is being mapped or unmapped: no guest has it.
        let Some(address) = mapping.map(|mapping| mapping.client_address.clone()) else { return };
        let device = self.devices.entry((number, address)).or_default();
        match &line.message {
            M::IoFailed { operation, errno } => {
                device.error = Some(IoError { at: now, operation: operation.clone(), errno: *errno });
            }
            M::ObjectMapUpdateFailed { errno } => {
                device.error = Some(IoError { at: now, operation: "write".to_owned(), errno: *errno });
            }
            M::WatchLost { .. } => device.watch_lost = Some(now),
            _ => {}
        }
        device.killed |= died_with(&line.message) == Some(ESHUTDOWN);
    }

    /// What a cluster said, or that it did not.
    pub fn take_cluster(&mut self, now: Duration, look: ClusterLook) {
        let cluster = self.clusters.entry(look.cluster.clone()).or_default();
        match look.answer {
            Reading::Unknown(failure) => {
                cluster.failures = cluster.failures.saturating_add(1);
                cluster.failure = Some(failure);
            }
            Reading::Known(answer) => {
                cluster.take(now, &answer);
                self.mark_fenced(&look.cluster);
                for (image, watchers) in answer.watchers {
                    let seen = self.images.entry((look.cluster.clone(), image.clone())).or_default();
                    seen.tried = Some(now);
                    if let Reading::Known(watchers) = watchers {
                        self.take_watchers(now, &look.cluster, image, &watchers);
                    }
                }
            }
        }
    }

    fn take_watchers(&mut self, now: Duration, cluster: &str, image: Spec, watchers: &[Watcher]) {
        let Some(disk) = self.disks.iter().find(|disk| disk.cluster == cluster && disk.image == image) else {
            return;
        };
        let hosts = self.hosts(cluster);
        let client = self.mapping_of(disk).map(|mapping| mapping.client_address.as_str());
        let is_ours = |address: &&str| match client {
            Some(client) => *address == client,
            None => host_of(address).is_some_and(|host| hosts.contains(&host)),
        };
        let ours: Vec<&str> =
            watchers.iter().map(|watcher| watcher.address.as_str()).filter(is_ours).collect();
        // A QEMU that was started again watches beside what the one before has left.
        let alive = ours.iter().find(|address| !self.fenced.contains_key(**address));
        let ours = alive.or(ours.first()).map(|address| (*address).to_owned());
        // Who watches, and is not on the list now, lives.
        let listed = |address: &String| {
            self.clusters.get(cluster).is_some_and(|cluster| entry_of(address, &cluster.blocklist).is_some())
        };
        if let Some(address) = ours.as_ref().filter(|address| !listed(address)) {
            self.fenced.remove(address);
        }
        let seen = self.images.entry((cluster.to_owned(), image)).or_default();
        seen.asked = Some(now);
        seen.missing_since = match ours {
            Some(_) => None,
            None => seen.missing_since.or(Some(now)),
        };
        if ours.is_some() {
            seen.watched_by = ours;
        }
    }

    /// The hosts that clients of this node have at a cluster.
    pub fn hosts(&self, cluster: &str) -> BTreeSet<IpAddr> {
        let Some(cluster) = self.clusters.get(cluster) else { return BTreeSet::new() };
        let mapped = self.mappings.iter().filter(|mapping| cluster.fsid.as_ref() == Some(&mapping.fsid));
        let addresses = mapped.map(|mapping| &mapping.client_address).chain(&cluster.own);
        addresses.filter_map(|address| host_of(address)).collect()
    }

    /// What was seen of a disk's image.
    pub fn image(&self, disk: &Disk) -> Option<&Image> {
        self.images.get(&(disk.cluster.clone(), disk.image.clone()))
    }

    /// Where the kernel has a disk's image mapped that the kernel opens.
    pub fn mapping_of(&self, disk: &Disk) -> Option<&Mapping> {
        self.mappings.iter().find(|mapping| self.is_of(mapping, disk))
    }

    /// What the kernel said of a disk's device.
    pub fn device_of(&self, disk: &Disk) -> Option<&Device> {
        let mapping = self.mapping_of(disk)?;
        self.devices.get(&(mapping.id, mapping.client_address.clone()))
    }

    /// The disk of a guest that runs here which a mapping is.
    pub fn disk_of(&self, mapping: &Mapping) -> Option<&Disk> {
        self.disks.iter().find(|disk| self.is_of(mapping, disk))
    }

    /// Where its cluster has not said its fsid yet, the name decides.
    fn is_of(&self, mapping: &Mapping, disk: &Disk) -> bool {
        let fsid = self.clusters.get(&disk.cluster).and_then(|cluster| cluster.fsid.as_deref());
        let theirs = ImageIdentity { id: None, ..mapping.identity() };
        disk.access == Access::Krbd
            && mapping.snapshot.is_none()
            && theirs.may_be(ImageIdentity::new(fsid.unwrap_or(&mapping.fsid), &disk.image, None))
    }

    /// Nothing is reported of this mapping: its storage is off.
    pub fn is_off(&self, mapping: &Mapping) -> bool {
        self.off.contains(&mapping.spec()) && self.disk_of(mapping).is_none()
    }

    /// The kernel said of a device of this client that it is on the blocklist.
    pub fn is_killed(&self, address: &str) -> bool {
        self.devices.iter().any(|((_, client), device)| client == address && device.killed)
    }
}

impl Cluster {
    fn take(&mut self, now: Duration, answer: &Answer) {
        self.failures = 0;
        self.failure = None;
        self.fsid = Some(answer.fsid.clone());
        self.own.clone_from(&answer.own);
        match &answer.blocklist {
            Reading::Known(list) => {
                let known: BTreeSet<&str> =
                    self.blocklist.iter().map(|entry| entry.address.as_str()).collect();
                if list.iter().any(|entry| !known.contains(entry.address.as_str())) {
                    self.listed_anew = Some(now);
                }
                self.blocklist.clone_from(list);
            }
            Reading::Unknown(failure) => self.failure = Some(failure.clone()),
        }
    }
}

/// The errno with which a line says that something of the client itself failed.
fn died_with(message: &M) -> Option<i32> {
    match message {
        M::IoFailed { errno, .. }
        | M::ReregisterFailed { errno }
        | M::UnwatchFailed { errno }
        | M::LockFailed { errno }
        | M::AcquireFailed { errno }
        | M::ObjectMapUpdateFailed { errno }
        | M::UnlockFailed { errno, .. } => Some(*errno),
        _ => None,
    }
}
