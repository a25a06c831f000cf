//! Whether the owner of a lock lives that has no watch on the image. In one place, since everything that takes the lock
//! over puts the owner on the OSD blocklist, and with it all that it has open: `rbd map`, a change of features, QEMU,
//! librbd's own break (`ManagedLock` → `BreakRequest` in Ceph's `src/librbd/managed_lock`, `rbd_try_lock` in the kernel).
//!
//! A client is dead only if nothing that was read speaks for its life, twice, as far apart as an OSD keeps the watch of a
//! client that it does not hear of: one that lost its watch by a hitch of the network has it back by then.

use crate::ceph::cluster::BlocklistEntry;
use crate::ceph::image::{ImageFacts, ImageReading, Locker};
use crate::diagnose::safety::external_locker;
use crate::observe::survey::{DiskFacts, OwnerLook, Survey};
use crate::rbd::action::{Action, Change};
use crate::rbd::blocklist::entry_of;
use crate::rbd::lock::{same_client, watcher_of};
use crate::reading::Reading;

/// What is known of an owner's life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Life {
    /// It is on the blocklist: dead, whatever it seems to have open.
    Fenced,
    /// It has these open, in words.
    Alive(Vec<String>),
    /// Nothing speaks for its life, twice and far enough apart.
    Dead,
    /// Nothing speaks for its life; a second look can tell in so many seconds.
    NotYet(u64),
    /// It is not known, for this reason.
    Unknown(String),
}

/// A guest that runs, or that another node owns, is expected to have its images open.
pub fn is_to_be_open(survey: &Survey) -> bool {
    survey.guest.node != survey.node.name || survey.node.running == Reading::Known(true)
}

/// The owner of a disk's lock that has no watch on its image; `None` where there is none, or none of librbd's or krbd's.
pub fn unwatching(disk: &DiskFacts) -> Option<&Locker> {
    match &disk.reading {
        Some(ImageReading::Found(facts)) => unwatching_of(facts),
        _ => None,
    }
}

fn unwatching_of(facts: &ImageFacts) -> Option<&Locker> {
    let (lock, watchers) = (facts.lock.known()?, facts.watchers.known()?);
    if external_locker(lock).is_some() {
        return None;
    }
    lock.lockers.iter().find(|locker| watcher_of(locker, watchers).is_none())
}

/// The disks, by index, whose locks' owners all images have to be looked at for: where nothing cheaper tells.
pub fn to_be_looked_for(survey: &Survey) -> Vec<usize> {
    let open = |disk: &&usize| matches!(life(survey, &survey.disks[**disk]), Some(Life::Unknown(_)));
    let all: Vec<usize> = if is_to_be_open(survey) { Vec::new() } else { (0..survey.disks.len()).collect() };
    all.iter().filter(open).copied().collect()
}

/// What is known of the life of the owner of a disk's lock; `None` where it watches the image, or there is none.
pub fn life(survey: &Survey, disk: &DiskFacts) -> Option<Life> {
    let owner = unwatching(disk)?;
    let blocklist = blocklist_of(survey, disk);
    if blocklist.is_some_and(|list| entry_of(&owner.address, list).is_some()) {
        return Some(Life::Fenced);
    }
    let mut open = open_here(survey, owner);
    open.extend(disk.lock_owner.iter().flat_map(|look| &look.open).map(|spec| format!("it has {spec} open")));
    Some(match (open.is_empty(), blocklist) {
        (false, Some(_)) => Life::Alive(open),
        (false, None) => {
            Life::Unknown(format!("{}; whether it is on the blocklist is not known", open.join(", ")))
        }
        (true, _) => disk
            .lock_owner
            .as_ref()
            .map_or_else(|| Life::Unknown("its other images were not looked at".to_owned()), by_other_images),
    })
}

/// What the images say that are not the guest's.
fn by_other_images(look: &OwnerLook) -> Life {
    match (look.unread.first(), look.watch_timeout.saturating_sub(look.unwatched_for)) {
        (Some(first), _) => Life::Unknown(format!("not all images could be looked at: {first}")),
        (None, 0) => Life::Dead,
        (None, left) => Life::NotYet(left),
    }
}

/// The OSD blocklist of a disk's cluster, if it could be read.
pub(super) fn blocklist_of<'a>(survey: &'a Survey, disk: &DiskFacts) -> Option<&'a [BlocklistEntry]> {
    survey.cluster_of(disk).and_then(Reading::known)?.blocklist.known().map(Vec::as_slice)
}

/// What the owner has open as far as this node's kernel and the guest's other images tell.
fn open_here(survey: &Survey, owner: &Locker) -> Vec<String> {
    let mappings = survey.node.kernel.mappings.known().into_iter().flat_map(|all| all.iter());
    let here =
        mappings.filter(|mapping| same_client(&mapping.client_address, &owner.address)).map(|mapping| {
            format!(
                "it is this node's kernel client and has {} mapped at /dev/rbd{}",
                mapping.image, mapping.id
            )
        });
    let watching = survey.disks.iter().filter_map(|disk| match &disk.reading {
        Some(ImageReading::Found(facts)) => {
            let mut watchers = facts.watchers.known()?.iter();
            let watches = watchers.any(|watcher| same_client(&watcher.address, &owner.address));
            watches.then(|| format!("it has {} open", disk.disk.volid))
        }
        _ => None,
    });
    here.chain(watching).collect()
}

/// Why nothing may be done on a disk's image that would take its lock over; `None` if that may be done, or will be after a
/// second look.
pub fn forbids(survey: &Survey, disk: &DiskFacts) -> Option<String> {
    let owner = unwatching(disk)?;
    let who = format!("the owner of its lock, {} at {},", owner.client, owner.address);
    match life(survey, disk)? {
        Life::Alive(open) => Some(format!("{who} lives: {}", open.join(", "))),
        Life::Unknown(why) => Some(format!("{who} may live: {why}")),
        Life::Fenced | Life::Dead | Life::NotYet(_) => None,
    }
}

/// Why a change may not be made now that would take a lock over; `None` if it may.
pub fn not_yet(survey: &Survey, action: &Action) -> Option<String> {
    let disk = disk_of(survey, action)?;
    match life(survey, disk)? {
        Life::NotYet(seconds) => Some(format!(
            "whether the owner of the image's lock is dead can only be told by a second look, in {seconds} s"
        )),
        _ => forbids(survey, disk),
    }
}

/// The disk whose image a change is made on; `None` for an unmap, which takes no lock over.
fn disk_of<'a>(survey: &'a Survey, action: &Action) -> Option<&'a DiskFacts> {
    let is_it =
        |disk: &&DiskFacts| survey.is_of(disk, action.target.identity()) != crate::rbd::identity::Same::No;
    let takes_over = !matches!(action.change, Change::Unmap { .. });
    survey.disks.iter().find(is_it).filter(|_| takes_over)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(open: &[&str], unread: &[&str], unwatched_for: u64) -> Life {
        let own = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        by_other_images(&OwnerLook {
            open: own(open),
            looked_at: 9,
            unread: own(unread),
            unwatched_for,
            watch_timeout: 30,
        })
    }

    #[test]
    fn a_client_is_dead_only_by_two_whole_looks_far_enough_apart() {
        assert_eq!(look(&[], &[], 0), Life::NotYet(30));
        assert_eq!(look(&[], &[], 29), Life::NotYet(1));
        assert_eq!(look(&[], &[], 30), Life::Dead);
        assert!(matches!(look(&[], &["rbd/a: (1) Operation not permitted"], 90), Life::Unknown(_)));
    }
}
