//! Whether the owners of locks live that have no watch on their images: the images of all pools that guests of this node
//! use are looked at, and again by a later look.

use crate::ceph::image::{ImageReading, Spec};
use crate::ceph::read_cluster::PoolName;
use crate::ceph::watches::{Search, read_watches};
use crate::diagnose::owner;
use crate::observe::fsids::Fsids;
use crate::observe::sightings::unwatched_for;
use crate::observe::survey::{OwnerLook, Survey};
use crate::pve::connection::{Connection, connection};
use crate::pve::storage::{RbdStorage, StorageConfig};
use crate::rbd::lock::same_client;
use crate::reading::{Failure, Reading};
use crate::sys::root::Root;
use crate::sys::time;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// What Ceph takes where nobody has set `osd_client_watch_timeout`.
const WATCH_TIMEOUT: Duration = Duration::from_secs(30);

/// How long images are looked at that nobody has locked: those of guests that do not run, for the most part.
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
    let begun = time::since_boot();
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

/// The guests' own images in a cluster whose watchers are known, and the addresses of those.
fn read_already(surveys: &[Survey], fsid: &str) -> BTreeMap<Spec, Vec<String>> {
    let disks = surveys.iter().flat_map(|survey| survey.disks.iter().map(move |disk| (survey, disk)));
    let read = disks.filter_map(|(survey, disk)| match &disk.reading {
        Some(ImageReading::Found(facts)) if survey.identity(disk)?.fsid == fsid => {
            let watchers = facts.watchers.known()?.iter();
            Some((disk.spec()?, watchers.map(|watcher| watcher.address.clone()).collect()))
        }
        _ => None,
    });
    read.collect()
}

/// The pool and namespace of a storage.
fn place(storage: &RbdStorage) -> PoolName {
    (storage.pool.clone(), storage.namespace.clone())
}

/// What was seen of a cluster's images.
#[derive(Default)]
struct Seen {
    images: BTreeMap<Spec, Vec<String>>,
    unread: Vec<String>,
    watch_timeout: Option<Duration>,
}

impl Seen {
    /// Looks at the images of the pools of all storages of this node that are known to lie in a cluster. One connection is
    /// asked for all of them, a storage of the guests'; what its user may not list, the pool's own storage is asked for.
    fn of(
        root: &Root,
        config: &StorageConfig,
        fsids: &Fsids,
        surveys: &[Survey],
        (fsid, clients): (&str, &[u64]),
        limit: Duration,
    ) -> Self {
        let mut seen = Self { images: read_already(surveys, fsid), ..Self::default() };
        let known: BTreeSet<Spec> = seen.images.keys().cloned().collect();
        let Some(node) = surveys.first().map(|survey| survey.node.name.as_str()) else { return seen };
        let until = Instant::now() + limit;
        let own =
            |storage: &&RbdStorage| surveys.iter().any(|survey| survey.storages.contains_key(&storage.id));
        let here =
            config.rbd.iter().filter(|storage| storage.is_on(node) && fsids.of(&storage.id) == Some(fsid));
        let (own, others): (Vec<&RbdStorage>, Vec<&RbdStorage>) = here.partition(own);
        let storages = [own, others].concat();
        let mut closed: BTreeMap<PoolName, String> = storages
            .iter()
            .map(|storage| (place(storage), "its pool was not looked into".to_owned()))
            .collect();
        for (index, storage) in storages.into_iter().enumerate() {
            let to_ask = closed.keys().filter(|pool| index == 0 || **pool == place(storage));
            let pools: Vec<PoolName> = to_ask.cloned().collect();
            if !pools.is_empty() {
                let left = until.saturating_duration_since(Instant::now());
                // Of many guests none is repaired by this look, and it is to be over soon.
                let others = if surveys.len() > 1 { Duration::ZERO } else { OTHERS.min(left / 2) };
                let search = Search { pools, known: known.clone(), clients: clients.to_vec(), others };
                seen.ask(root, (storage, fsid), &search, left, &mut closed);
            }
        }
        seen.unread.extend(closed.into_values());
        seen
    }

    /// Searches by one storage's connection; pools that it may not list are, or stay, among the closed ones.
    fn ask(
        &mut self,
        root: &Root,
        (storage, fsid): (&RbdStorage, &str),
        search: &Search,
        limit: Duration,
        closed: &mut BTreeMap<PoolName, String>,
    ) {
        let read = |connection: Connection| read_watches(&connection, search, limit);
        let mut all_closed =
            |why: String| closed.extend(search.pools.iter().map(|pool| (pool.clone(), why.clone())));
        let watches = match connection(root, storage).map_or_else(Reading::Unknown, read) {
            Reading::Known(watches) if watches.fsid == fsid => watches,
            Reading::Known(watches) => {
                return all_closed(format!(
                    "storage {} leads to another cluster, {}",
                    storage.id, watches.fsid
                ));
            }
            Reading::Unknown(failure) => return all_closed(failure.to_string()),
        };
        search.pools.iter().for_each(|pool| drop(closed.remove(pool)));
        closed.extend(watches.closed.into_iter().map(|(pool, failure)| (pool, failure.to_string())));
        self.watch_timeout = self.watch_timeout.max(watches.watch_timeout);
        self.unread.extend(watches.unread.iter().map(Failure::to_string));
        self.images.extend(
            watches.images.into_iter().map(|(spec, watchers)| {
                (spec, watchers.into_iter().map(|watcher| watcher.address).collect())
            }),
        );
    }

    fn open_by(&self, address: &str) -> Vec<String> {
        let watched =
            self.images.iter().filter(|(_, by)| by.iter().any(|watcher| same_client(watcher, address)));
        watched.map(|(spec, _)| spec.to_string()).collect()
    }
}
