//! Breaks the exclusive lock of a dead owner, by librbd itself, which puts the owner on the blocklist first.
//!
//! Never `rbd lock rm` or `rbd_lock_break`: those do not look whether the owner lives.

use crate::ceph::connect::{connect, place};
use crate::ceph::deadline;
use crate::ceph::deadline::Wanted;
use crate::ceph::ffi::Image;
use crate::ceph::read_image::{read_lock, read_watchers};
use crate::pve::connection::Connection;
use crate::rbd::features::Features;
use crate::rbd::lock::{Lock, Locker, Watcher};
use crate::rbd::spec::Spec;
use crate::reading::{Errno, Failure, Reading, is_not_permitted};
use nix::libc::{EBUSY, EINVAL, ETIMEDOUT};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// Why a lock was not broken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum NotBroken {
    /// Refused: the lock is no longer as it was when it was judged. It may be free already.
    Changed(Lock),
    /// Refused: somebody watches the image.
    Watched(Vec<Watcher>),
    /// Refused: the lock is of `rbd lock add` or another program's (its tag, its owners); only an administrator knows whose.
    External(Lock),
    /// Refused: the image has no exclusive-lock, so librbd has no lock to take over.
    NoExclusiveLock,
    /// Ceph: 16, locked by other means than exclusive-lock.
    HeldExternally(Failure),
    /// Ceph: 13 or 1, the user may not blocklist the dead owner; its mon caps need `profile rbd`.
    MayNotBlocklist(Failure),
    /// Ceph: 22, `rbd_blocklist_expire_seconds` is set and the monitors refuse how librbd sends it (tracker 54613).
    BlocklistExpiry(Failure),
    /// Anything else that failed, with what was tried and the errno.
    Failed(Failure),
    /// Out of time, and librbd is still at it: the lock may have been broken, or may be yet. Nobody else may come to the image
    /// as long as this process lives.
    StillAtIt(Failure),
}

impl std::fmt::Display for NotBroken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Changed(_) => f.write_str("the lock has changed since it was judged"),
            Self::Watched(watchers) => {
                let addresses: Vec<_> = watchers.iter().map(|watcher| watcher.address.as_str()).collect();
                write!(f, "the image is in use at {}", addresses.join(", "))
            }
            Self::External(lock) => write!(f, "the lock is another program's, tag `{}`", lock.tag),
            Self::NoExclusiveLock => f.write_str("the image has no exclusive-lock"),
            Self::HeldExternally(failure)
            | Self::MayNotBlocklist(failure)
            | Self::BlocklistExpiry(failure)
            | Self::Failed(failure)
            | Self::StillAtIt(failure) => failure.fmt(f),
        }
    }
}

impl std::error::Error for NotBroken {}

/// Breaks the lock that `expected` holds on an image, if it is dead: reads lock and watchers anew and refuses unless
/// the lock is held by `expected` alone, and nobody but this call watches; then takes the exclusive lock, gives it back
/// and closes. The image is free after that, and `expected`'s address is on the blocklist.
///
/// Returns by `deadline` and at most a second. The lock is taken in the first half of that or not at all, and Ceph is given
/// less than the other half for each of the steps: so it has said what came of it before our own time is over.
///
/// # Errors
/// Why the lock was not broken.
pub fn break_stale_lock(
    connection: &Connection,
    spec: &Spec,
    expected: &Locker,
    deadline: Duration,
) -> Result<(), NotBroken> {
    let mut outcome = None;
    let begins_until = Instant::now() + deadline / 2;
    let (connection, spec, expected) = (connection.clone(), spec.clone(), expected.clone());
    let late = late(&connection, &spec);
    let job = Job { connection, spec, expected, each: deadline / 2, begins_until };
    let work = move |tell: &std::sync::mpsc::Sender<_>, wanted: &Wanted| {
        let _ = tell.send(job.run(wanted));
    };
    deadline::run(deadline, work, |told| outcome = Some(told)).map_err(NotBroken::Failed)?;
    outcome.unwrap_or(Err(NotBroken::StillAtIt(late)))
}

fn late(connection: &Connection, spec: &Spec) -> Failure {
    Failure::errno(format!("break the lock of {spec} through {}", place(connection)), ETIMEDOUT)
}

struct Job {
    connection: Connection,
    spec: Spec,
    expected: Locker,
    /// For each of Ceph's calls.
    each: Duration,
    /// After that the lock is not taken any more.
    begins_until: Instant,
}

impl Job {
    fn run(&self, wanted: &Wanted) -> Result<(), NotBroken> {
        let session = connect(&self.connection, self.each).map_err(NotBroken::Failed)?;
        let pool = session
            .pool(&self.spec.pool, self.spec.namespace.as_deref())
            .map_err(|errno| self.failed("reach the pool of", errno))?;
        let image = pool.open_for_writing(&self.spec.image).map_err(NotBroken::Failed)?;
        self.judge(&image, session.instance_id())?;
        if !wanted.still() || Instant::now() > self.begins_until {
            return Err(NotBroken::Failed(late(&self.connection, &self.spec)));
        }
        image.acquire_lock().map_err(|errno| self.refused(errno))?;
        image.release_lock().map_err(|errno| self.failed("release the lock of", errno))
    }

    /// The last look before the change: the image was opened a moment ago, and the watchers are asked now.
    fn judge(&self, image: &Image, own_id: u64) -> Result<(), NotBroken> {
        let features = image.features().map_err(|errno| self.failed("read the features of", errno))?;
        let lock = known(read_lock(&self.spec, image))?;
        let watchers = known(read_watchers(&self.spec, image))?;
        verdict(Features(features), lock, watchers, &self.expected, own_id)
    }

    fn failed(&self, what: &str, errno: Errno) -> NotBroken {
        NotBroken::Failed(Failure::errno(format!("{what} {}", self.spec), errno))
    }

    fn refused(&self, errno: Errno) -> NotBroken {
        let failure = Failure::errno(format!("take over the lock of {}", self.spec), errno);
        match errno {
            _ if is_not_permitted(errno) => NotBroken::MayNotBlocklist(failure),
            EBUSY => NotBroken::HeldExternally(failure),
            EINVAL => NotBroken::BlocklistExpiry(failure),
            _ => NotBroken::Failed(failure),
        }
    }
}

fn known<T>(reading: Reading<T>) -> Result<T, NotBroken> {
    match reading {
        Reading::Known(value) => Ok(value),
        Reading::Unknown(failure) => Err(NotBroken::Failed(failure)),
    }
}

/// Whether the lock may be broken.
fn verdict(
    features: Features,
    lock: Lock,
    watchers: Vec<Watcher>,
    expected: &Locker,
    own_id: u64,
) -> Result<(), NotBroken> {
    let others: Vec<_> = watchers.into_iter().filter(|watcher| watcher.client != own_id).collect();
    if !others.is_empty() {
        return Err(NotBroken::Watched(others));
    }
    if lock.lockers != [expected.clone()] {
        return Err(NotBroken::Changed(lock));
    }
    if lock.set_by_hand().is_some() {
        return Err(NotBroken::External(lock));
    }
    if features.contains(Features::EXCLUSIVE_LOCK) { Ok(()) } else { Err(NotBroken::NoExclusiveLock) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner() -> Locker {
        Locker {
            client: "client.4".to_owned(),
            cookie: "auto 7".to_owned(),
            address: "10.0.0.1:0/1".to_owned(),
        }
    }

    fn held_by(lockers: &[Locker]) -> Lock {
        Lock { tag: "internal".to_owned(), exclusive: true, lockers: lockers.to_vec() }
    }

    fn watcher(client: u64) -> Watcher {
        Watcher { address: format!("10.0.0.{client}:0/1"), client, cookie: 7 }
    }

    const OWN: u64 = 99;
    const LOCKED: Features = Features::EXCLUSIVE_LOCK;

    #[test]
    fn a_lock_that_only_we_watch_may_be_broken() {
        assert_eq!(verdict(LOCKED, held_by(&[owner()]), vec![watcher(OWN)], &owner(), OWN), Ok(()));
    }

    #[test]
    fn any_watcher_but_ourselves_forbids_it() {
        for other in [4, 5] {
            let found =
                verdict(LOCKED, held_by(&[owner()]), vec![watcher(OWN), watcher(other)], &owner(), OWN);
            assert_eq!(found, Err(NotBroken::Watched(vec![watcher(other)])));
        }
    }

    #[test]
    fn a_lock_that_changed_is_not_touched() {
        let newer = Locker { cookie: "auto 8".to_owned(), ..owner() };
        for lockers in [vec![], vec![newer.clone()], vec![owner(), newer]] {
            let lock = held_by(&lockers);
            let found = verdict(LOCKED, lock.clone(), vec![watcher(OWN)], &owner(), OWN);
            assert_eq!(found, Err(NotBroken::Changed(lock)));
        }
    }

    #[test]
    fn a_lock_of_another_program_is_not_touched() {
        let by_hand = Locker { cookie: "mine".to_owned(), ..owner() };
        let locks = [
            Lock { tag: String::new(), ..held_by(&[owner()]) },
            Lock { exclusive: false, ..held_by(&[owner()]) },
            held_by(&[by_hand]),
        ];
        for lock in locks {
            let expected = lock.lockers.first().unwrap().clone();
            let found = verdict(LOCKED, lock.clone(), vec![], &expected, OWN);
            assert_eq!(found, Err(NotBroken::External(lock)));
        }
    }

    #[test]
    fn an_image_without_exclusive_lock_has_nothing_to_take_over() {
        let found = verdict(Features::LAYERING, held_by(&[owner()]), vec![], &owner(), OWN);
        assert_eq!(found, Err(NotBroken::NoExclusiveLock));
    }
}
