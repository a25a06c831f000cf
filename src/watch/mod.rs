//! What is reported while guests run, and when: pure, so that every course of events can be played in a test.
//!
//! `commands/watch.rs` looks and listens; [`Watch`] takes what was seen and heard and gives what is to be reported.
//! Nothing here changes anything, and nothing here may name what does.

pub mod code;
mod memory;
pub mod seen;
mod troubles;

pub mod trouble;

use crate::ceph::keep::Ask;
use crate::kernel::messages::KernelLine;
use crate::pve::guest::Access;
use crate::reading::Failure;
use code::Code;
use memory::Memory;
use seen::{ClusterLook, Disk, NodeLook};
use std::collections::BTreeMap;
use std::time::Duration;
use trouble::{Event, Key, Trouble};

/// Images that are asked for at one look where there is a reason to: a guest that has just started, a watch that was lost.
const AT_ONCE: usize = 32;
/// Images that are asked for at every look without a reason, in turn.
const IN_TURN: usize = 1;
/// When to look again while something is not decided.
const SOON: Duration = Duration::from_secs(2);
/// When to look again at a watch that is missing: krbd takes a lost one again every ten seconds (`RBD_RETRY_DELAY`).
const AGAIN: Duration = Duration::from_secs(11);

/// What is known, and what was reported of it. Every `now` is a time that only goes forward ([`crate::sys::time::since_boot`]).
#[derive(Debug, Default)]
pub struct Watch {
    memory: Memory,
    told: BTreeMap<Key, Trouble>,
}

impl Watch {
    /// Takes what this node's files and kernel say.
    pub fn node(&mut self, now: Duration, look: NodeLook) -> Vec<Event> {
        self.memory.take_node(look);
        self.tell(now)
    }

    /// Takes lines of the kernel's log that were written just now.
    pub fn lines(&mut self, now: Duration, lines: &[KernelLine]) -> Vec<Event> {
        for line in lines {
            self.memory.take_line(now, line);
        }
        self.tell(now)
    }

    /// The kernel's log can be read, or cannot.
    pub fn kernel_log(&mut self, now: Duration, failure: Option<Failure>) -> Vec<Event> {
        self.memory.log = failure;
        self.tell(now)
    }

    /// Takes what the clusters said.
    pub fn clusters(&mut self, now: Duration, looks: Vec<ClusterLook>) -> Vec<Event> {
        for look in looks {
            self.memory.take_cluster(now, look);
        }
        self.tell(now)
    }

    /// What was reported and is not over.
    pub fn standing(&self) -> impl Iterator<Item = &Trouble> {
        self.told.values()
    }

    /// How many disks of running guests are watched.
    pub fn disks(&self) -> usize {
        self.memory.disks.len()
    }

    /// The images of a cluster whose watchers are wanted at the next look.
    pub fn asks(&self, cluster: &str) -> Vec<Ask> {
        let mut images = BTreeMap::new();
        for disk in self.memory.disks.iter().filter(|disk| disk.cluster == cluster && disk.writes) {
            let tried = self.memory.image(disk).and_then(|image| image.tried);
            let id = self.memory.mapping_of(disk).and_then(|mapping| mapping.image_id.clone());
            images.insert(&disk.image, (!self.is_suspect(disk), tried, id));
        }
        let mut images: Vec<_> = images.into_iter().collect();
        images.sort_by_key(|(_, (calm, tried, _))| (*calm, *tried));
        let suspects = images.iter().filter(|(_, (calm, ..))| !calm).count().min(AT_ONCE);
        let wanted = images.into_iter().take(suspects + IN_TURN);
        wanted.map(|(image, (_, _, id))| Ask { image: image.clone(), id }).collect()
    }

    /// When to look again, where that is sooner than usual.
    pub fn hurry(&self) -> Option<Duration> {
        let answers = |disk: &&Disk| {
            disk.writes
                && self.memory.clusters.get(&disk.cluster).is_some_and(|cluster| cluster.failures == 0)
        };
        let disks = || self.memory.disks.iter().filter(answers);
        let silent = self.memory.clusters.values().any(|cluster| cluster.failures == 1);
        let unasked = disks().any(|disk| {
            let tried = self.memory.image(disk).and_then(|image| image.tried);
            tried.is_none_or(|tried| self.is_doubted_since(disk, tried))
        });
        let missing = disks().any(|disk| {
            let image = self.memory.image(disk);
            image.is_some_and(|image| image.missing_since.is_some())
                && troubles::may_be_lost(&self.memory, disk)
                && !self.told.contains_key(&Key::disk(Code::WatchLost, disk))
        });
        match (silent || unasked, missing) {
            (true, _) => Some(SOON),
            (false, true) => Some(AGAIN),
            (false, false) => None,
        }
    }

    /// Something speaks for looking at this disk's image now, and not when its turn comes.
    fn is_suspect(&self, disk: &Disk) -> bool {
        let Some(image) = self.memory.image(disk) else { return true };
        let fenced =
            image.watched_by.as_ref().is_some_and(|address| self.memory.fenced.contains_key(address));
        let answered = image.asked;
        fenced
            || image.missing_since.is_some()
            || answered.is_none_or(|answered| self.is_doubted_since(disk, answered))
    }

    /// Since then the kernel has said that the watch is lost, or somebody came onto the blocklist who may be QEMU.
    fn is_doubted_since(&self, disk: &Disk, then: Duration) -> bool {
        let lost = self.memory.device_of(disk).and_then(|device| device.watch_lost);
        let cluster = self.memory.clusters.get(&disk.cluster);
        let listed = cluster.and_then(|cluster| cluster.listed_anew);
        let listed = listed.filter(|_| disk.access == Access::Librbd);
        lost.is_some_and(|at| at >= then) || listed.is_some_and(|at| at > then)
    }

    /// What is new and what is over, against what was reported.
    fn tell(&mut self, now: Duration) -> Vec<Event> {
        let wrong = troubles::now(&self.memory, now);
        let begun = wrong.iter().filter(|(key, _)| !self.told.contains_key(key));
        let ended = self.told.iter().filter(|(key, _)| !wrong.contains_key(key));
        let mut events: Vec<Event> =
            ended.map(|(_, trouble)| Event { over: true, trouble: trouble.clone() }).collect();
        events.extend(begun.map(|(_, trouble)| Event { over: false, trouble: trouble.clone() }));
        self.told = wrong;
        trouble::joined(events)
    }
}
