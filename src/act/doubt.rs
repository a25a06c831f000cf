//! A change whose failure may only be one of its command.

use crate::observe::survey::Survey;
use crate::rbd::action::{Action, ActionResult, Change};
use crate::rbd::lock::Locker;
use anyhow::Result;
use nix::errno::Errno;

/// Whether a change was made although it failed: it may have been, and `look` shows that it was.
pub fn made_all_the_same(action: &Action, result: &ActionResult, look: &dyn Fn() -> Result<Survey>) -> bool {
    in_doubt(action, result) && made(action, look)
}

/// Whether a change may have been made although it failed. `rbd` writes features first and notifies the
/// image's watchers last. One that died less than 30 s ago does not answer, and `rbd` fails with 110 (ETIMEDOUT); a command
/// that was killed says nothing at all. After 22 nothing was made: the features stood as they were wanted, or cannot.
/// A lock is in doubt where nothing but the time says that it failed.
fn in_doubt(action: &Action, result: &ActionResult) -> bool {
    let of_features = matches!(action.change, Change::DisableFeatures { .. } | Change::EnableFeatures { .. });
    let of_lock = matches!(action.change, Change::BreakLock { .. });
    match result {
        ActionResult::Failed { errno, .. } if of_features => *errno != Some(Errno::EINVAL as i32),
        ActionResult::Failed { errno, .. } if of_lock => *errno == Some(Errno::ETIMEDOUT as i32),
        _ => false,
    }
}

/// A change of features, or of the lock, is made if the image says so.
fn made(action: &Action, look: &dyn Fn() -> Result<Survey>) -> bool {
    let Ok(survey) = look() else { return false };
    let Some(facts) = survey.image(action.target.identity()) else { return false };
    match &action.change {
        Change::DisableFeatures { features } => !facts.features.intersects(*features),
        Change::EnableFeatures { features } => facts.features.contains(*features),
        Change::BreakLock { owner } => {
            let owner = Locker::from(owner);
            facts.lock.known().is_some_and(|lock| !lock.lockers.contains(&owner))
        }
        _ => false,
    }
}
