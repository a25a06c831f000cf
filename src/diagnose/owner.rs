//! What must not be done while the owner of a lock that has no watch on the image may live
//! ([`crate::observe::lock_owner`]). In one place, since everything that takes the lock over puts the owner on the OSD blocklist,
//! and with it all that it has open: `rbd map`, a change of features, QEMU, librbd's own break (`ManagedLock` →
//! `BreakRequest` in Ceph's `src/librbd/managed_lock`, `rbd_try_lock` in the kernel).

use crate::observe::lock_owner::{Life, life, unwatching};
use crate::observe::survey::{DiskFacts, Survey};
use crate::rbd::action::{Action, Change};
use crate::rbd::identity::Same;

/// Why nothing may be done on a disk's image that would take its lock over; `None` if that may be done, or will be after a
/// second look.
pub fn forbids(survey: &Survey, disk: &DiskFacts) -> Option<String> {
    let owner = unwatching(disk)?;
    let who = format!("the owner of its lock, {} at {},", owner.client, owner.address);
    match life(survey, disk)? {
        Life::Alive(open) => Some(format!("{who} is alive: {}", open.join(", "))),
        Life::Unknown(why) => Some(format!("{who} may be alive: {why}")),
        Life::Fenced | Life::Dead | Life::NotYet(_) => None,
    }
}

/// Why a change may not be made now that would take a lock over; `None` if it may.
pub fn not_yet(survey: &Survey, action: &Action) -> Option<String> {
    let disk = disk_of(survey, action)?;
    match life(survey, disk)? {
        Life::NotYet(seconds) => Some(format!(
            "only a second look can show whether the owner of the image's lock is dead, in {seconds} s"
        )),
        _ => forbids(survey, disk),
    }
}

/// The disk whose image a change is made on; `None` for an unmap, which takes no lock over.
fn disk_of<'a>(survey: &'a Survey, action: &Action) -> Option<&'a DiskFacts> {
    let is_it = |disk: &&DiskFacts| survey.is_of(disk, action.target.identity()) != Same::No;
    let takes_over = !matches!(action.change, Change::Unmap { .. });
    survey.disks.iter().find(is_it).filter(|_| takes_over)
}
