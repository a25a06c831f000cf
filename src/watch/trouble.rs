//! What is reported: a state that began or is over.

use crate::watch::code::Code;
use crate::watch::seen::Disk;
use std::collections::BTreeSet;

/// What tells one state from another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    code: Code,
    subject: String,
}

impl Key {
    /// A code, and what it is about, in words that are the same as long as it is the same.
    pub fn new(code: Code, subject: impl Into<String>) -> Self {
        Self { code, subject: subject.into() }
    }

    /// A code of a guest's disk.
    pub fn disk(code: Code, disk: &Disk) -> Self {
        Self::new(code, format!("{} {} {} {}", disk.vmid, disk.key, disk.cluster, disk.image))
    }
}

/// A state that is reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// What is wrong.
    pub code: Code,
    /// The guests that run here and have to do with it.
    pub guests: BTreeSet<u32>,
    /// The disk's key in its guest's config.
    pub disk: Option<String>,
    /// The device, `N` of `/dev/rbdN`.
    pub device: Option<u32>,
    /// The image, `pool/image`, where it is about one.
    pub image: Option<String>,
    /// The storage's id, where it is about one.
    pub storage: Option<String>,
    /// The cluster's fsid, where it is about one.
    pub fsid: Option<String>,
    /// The Ceph client's address; several of them, joined with commas, for entries of the blocklist.
    pub client: Option<String>,
    /// The errno that came back.
    pub errno: Option<i32>,
    /// What was seen, in words.
    pub seen: String,
}

impl Trouble {
    /// A state of which only this much is known.
    pub fn new(code: Code, seen: impl Into<String>) -> Self {
        Self {
            code,
            guests: BTreeSet::new(),
            disk: None,
            device: None,
            image: None,
            storage: None,
            fsid: None,
            client: None,
            errno: None,
            seen: seen.into(),
        }
    }

    /// The same, of a guest's disk.
    #[must_use]
    pub fn of_disk(mut self, disk: &Disk) -> Self {
        self.guests = [disk.vmid].into();
        self.disk = Some(disk.key.clone());
        self.image = Some(disk.image.to_string());
        self.storage = Some(disk.storage.clone());
        self
    }
}

/// A state began or is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// It is over; else it has just begun.
    pub over: bool,
    /// The trouble that began or is over.
    pub trouble: Trouble,
}

/// Entries of one cluster's blocklist that came or went together are reported together: a ceph-mgr that hands over leaves
/// ten at once.
pub fn joined(events: Vec<Event>) -> Vec<Event> {
    let mut told: Vec<Event> = Vec::with_capacity(events.len());
    for event in events {
        let alike = |other: &&mut Event| {
            event.trouble.code == Code::BlocklistEntry
                && other.trouble.code == Code::BlocklistEntry
                && (other.over, &other.trouble.fsid) == (event.over, &event.trouble.fsid)
        };
        match told.iter_mut().find(alike) {
            Some(other) => {
                let join = |one: &mut String, more: &str| *one = format!("{one}, {more}");
                join(&mut other.trouble.seen, &event.trouble.seen);
                if let (Some(one), Some(more)) = (&mut other.trouble.client, &event.trouble.client) {
                    join(one, more);
                }
            }
            None => told.push(event),
        }
    }
    told
}
