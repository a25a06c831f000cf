//! Whether the owners of locks live that have no watch on their images: the images of all pools that guests of this node
//! use are looked at, and again by a later look.

use crate::ceph::image::Spec;
use crate::ceph::read::PoolName;
use crate::ceph::sharing::share;
use crate::ceph::watches::{Search, Watches, read_watches};
use crate::clock;
use crate::diagnose::owner::{self, same_client};
use crate::pve::connection::{Connection, connection};
use crate::pve::storage::StorageConfig;
use crate::reading::{Failure, Reading};
use crate::root::Root;
use crate::survey::sightings::unwatched_for;
use crate::survey::{Fsids, OwnerLook, Survey};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What Ceph takes where nobody has set `osd_client_watch_timeout`.
const WATCH_TIMEOUT: Duration = Duration::from_secs(30);

/// How long images are looked at that the owners have not locked: several hundred of them and more.
const OTHERS: Duration = Duration::from_secs(1);

/// Looks for the owners of locks of which nothing else says whether they live. Nothing is asked for longer than `limit`.
pub fn look(root: &Root, config: &StorageConfig, fsids: &Fsids, surveys: &mut [Survey], limit: Duration) {
    let mut wanted: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for survey in surveys.iter() {
        for disk in owner::to_be_looked_for(survey) {
            let owner = owner::unwatching(&survey.disks[disk]);
            if let (Some(fsid), Some(owner)) = (fsid_of(survey, disk), owner) {
                wanted.entry(fsid).or_default().extend(number(&owner.client));
            }
        }
    }
    let begun = clock::since_boot();
    let seen = |(fsid, clients): (String, Vec<u64>)| {
        let seen = Seen::of(root, config, fsids, surveys, (&fsid, &clients), limit);
        (fsid, seen)
    };
    let seen: BTreeMap<String, Seen> = wanted.into_iter().map(seen).collect();
    for survey in surveys {
        for disk in owner::to_be_looked_for(survey) {
            let (Some(fsid), Some(owner)) = (fsid_of(survey, disk), owner::unwatching(&survey.disks[disk]))
            else {
                continue;
            };
            let Some(seen) = seen.get(&fsid).filter(|_| number(&owner.client).is_some()) else { continue };
            let client = [fsid, owner.client.clone(), owner.address.clone()];
            let open = seen.open_by(&owner.address);
            let watching = !open.is_empty();
            // A look that was not whole is not the first one.
            let unwatched_for = match seen.unread.is_empty() || watching {
                true => unwatched_for(root, &client, begun, watching).as_secs(),
                false => 0,
            };
            let look = OwnerLook {
                open,
                looked_at: seen.images.len(),
                unread: seen.unread.clone(),
                unwatched_for,
                watch_timeout: seen.watch_timeout.unwrap_or(WATCH_TIMEOUT).as_secs(),
            };
            survey.disks[disk].lock_owner = Some(look);
        }
    }
}

/// 4127 of `client.4127`.
fn number(client: &str) -> Option<u64> {
    client.strip_prefix("client.")?.parse().ok()
}

fn fsid_of(survey: &Survey, disk: usize) -> Option<String> {
    Some(survey.cluster_of(&survey.disks[disk])?.known()?.fsid.clone())
}

/// What was seen of a cluster's images.
#[derive(Default)]
struct Seen {
    images: BTreeMap<Spec, Vec<String>>,
    unread: Vec<String>,
    watch_timeout: Option<Duration>,
}

impl Seen {
    /// Looks at the images of the pools of all storages of this node that lie, or may lie, in a cluster; and at what was
    /// read of the guests' own images just now.
    fn of(
        root: &Root,
        config: &StorageConfig,
        fsids: &Fsids,
        surveys: &[Survey],
        (fsid, clients): (&str, &[u64]),
        limit: Duration,
    ) -> Self {
        let mut seen = Self::default();
        let Some(node) = surveys.first().map(|survey| survey.node.name.as_str()) else { return seen };
        let here = config.rbd.iter().filter(|storage| storage.is_on(node) && fsids.may_be(&storage.id, fsid));
        let mut wanted: Vec<(Connection, PoolName, bool)> = Vec::new();
        for storage in here {
            let known = fsids.of(&storage.id) == Some(fsid);
            match connection(root, storage) {
                Ok(connection) => {
                    wanted.push((connection, (storage.pool.clone(), storage.namespace.clone()), known));
                }
                Err(failure) if known => seen.unread.push(failure.to_string()),
                Err(_) => {}
            }
        }
        let shared = share(&wanted.iter().map(|(connection, ..)| connection.clone()).collect::<Vec<_>>());
        std::thread::scope(|scope| {
            let asked = shared.connections.iter().enumerate().map(|(index, connection)| {
                let here = wanted.iter().zip(&shared.of).filter(|(_, of)| **of == index);
                let known = here.clone().any(|((.., known), _)| *known);
                let pools: BTreeSet<PoolName> = here.map(|((_, pool, _), _)| pool.clone()).collect();
                let (pools, clients) = (pools.into_iter().collect(), clients.to_vec());
                let search = Search { pools, clients, others: OTHERS.min(limit / 2) };
                (known, scope.spawn(move || read_watches(connection, &search, limit)))
            });
            for (known, thread) in asked.collect::<Vec<_>>() {
                let watches = thread.join().unwrap_or_else(|_| {
                    let what = "the reader panicked; this is a fault of rbd-preflight";
                    Reading::Unknown(Failure::new("look for the owners of locks", what))
                });
                seen.add(watches, known, fsid);
            }
        });
        seen
    }

    /// A storage of which it is not known that it lies in the cluster, and that does not say so, is none of it.
    fn add(&mut self, watches: Reading<Watches>, known: bool, fsid: &str) {
        match watches {
            Reading::Known(watches) if watches.fsid == fsid => {
                self.watch_timeout = self.watch_timeout.max(watches.watch_timeout);
                self.unread.extend(watches.unread.iter().map(Failure::to_string));
                self.images.extend(watches.images.into_iter().map(|(spec, watchers)| {
                    (spec, watchers.into_iter().map(|watcher| watcher.address).collect())
                }));
            }
            Reading::Known(_) => {}
            Reading::Unknown(failure) if known => self.unread.push(failure.to_string()),
            Reading::Unknown(_) => {}
        }
    }

    fn open_by(&self, address: &str) -> Vec<String> {
        let watched =
            self.images.iter().filter(|(_, by)| by.iter().any(|watcher| same_client(watcher, address)));
        watched.map(|(spec, _)| spec.to_string()).collect()
    }
}
