//! Breaks a stale lock, by librbd, and says what came of it.

use crate::ceph::lock::{NotBroken, break_stale_lock};
use crate::observe::survey::Survey;
use crate::rbd::action::{Action, ActionResult};
use crate::rbd::lock::Locker;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Breaks the lock that `owner` has left on an image. `left_at_it` becomes true where librbd is still at it after
/// `time_limit`: nobody may come to the image then until this process ends.
pub fn break_lock(
    survey: &Survey,
    action: &Action,
    owner: &Locker,
    time_limit: Duration,
    left_at_it: &AtomicBool,
) -> ActionResult {
    let Some(storage) = survey.storages.get(&action.target.storage) else {
        return ActionResult::withheld("its storage is gone from storage.cfg");
    };
    match break_stale_lock(&storage.connection, &action.target.spec, owner, time_limit) {
        Ok(()) => ActionResult::done(),
        Err(not_broken) => {
            left_at_it.fetch_or(matches!(not_broken, NotBroken::StillAtIt(_)), Ordering::Relaxed);
            not_broken_result(&not_broken)
        }
    }
}

/// A refusal of our own is no failure: nothing was tried.
fn not_broken_result(not_broken: &NotBroken) -> ActionResult {
    match not_broken {
        NotBroken::MayNotBlocklist(failure)
        | NotBroken::HeldExternally(failure)
        | NotBroken::BlocklistExpiry(failure)
        | NotBroken::Failed(failure)
        | NotBroken::StillAtIt(failure) => {
            ActionResult::Failed { errno: failure.errno, message: failure.to_string() }
        }
        NotBroken::Changed(_)
        | NotBroken::Watched(_)
        | NotBroken::External(_)
        | NotBroken::NoExclusiveLock => ActionResult::withheld(not_broken.to_string()),
    }
}
