//! Whether somebody who watches an image may be the cluster's manager. Only looked for where somebody does, of an image that a
//! manager may have something to do with, and that is to be started from.

use crate::ceph::image::{ImageReading, Watcher};
use crate::ceph::manager::{Manager, read_clients, read_task};
use crate::diagnose::owner::is_to_be_open;
use crate::observe::survey::{DiskFacts, Survey};
use crate::rbd::features::Features;
use crate::reading::Reading;
use crate::sys::root::Root;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long `rados` may take for the tasks of a pool.
const PATIENCE: Duration = Duration::from_secs(5);

/// Looks for it: the monitors once for each storage, the pool for each image, all together for `limit` and a little more.
pub fn look(root: &Root, surveys: &mut [Survey], limit: Duration) {
    let until = Instant::now() + limit;
    let left = || until.saturating_duration_since(Instant::now());
    let mut known: BTreeMap<String, Reading<Vec<String>>> = BTreeMap::new();
    for survey in surveys.iter_mut().filter(|survey| !is_to_be_open(survey)) {
        for disk in 0..survey.disks.len() {
            let Some(id) = concerned(survey, &survey.disks[disk]) else { continue };
            let Some(storage) = survey.storages.get(&survey.disks[disk].disk.storage) else { continue };
            let connection = &storage.connection;
            let clients = known
                .entry(storage.section.id.clone())
                .or_insert_with(|| read_clients(root, connection, left().max(Duration::from_secs(1))))
                .clone();
            let place = &survey.disks[disk].disk;
            let place = (place.pool.as_str(), place.namespace.as_deref());
            let task = read_task(connection, place, &id, left().clamp(Duration::from_secs(1), PATIENCE));
            survey.disks[disk].manager = Some(Manager { clients, task });
        }
    }
}

/// The id of an image that somebody watches who is neither this node's kernel nor rbd-mirror, and that has a parent to be
/// flattened from, is being migrated, or is mirrored.
fn concerned(survey: &Survey, disk: &DiskFacts) -> Option<String> {
    let Some(ImageReading::Found(facts)) = &disk.reading else { return None };
    let daemons = disk.mirror_daemons.as_ref().and_then(Reading::known);
    let other = |watcher: &&Watcher| {
        !survey.is_kernels(&watcher.address)
            && !daemons.is_some_and(|daemons| daemons.iter().any(|daemon| daemon.client == watcher.client))
    };
    let watched = facts.watchers.known()?.iter().any(|watcher| other(&watcher));
    let may_be = facts.parents.known().is_none_or(|parents| !parents.is_empty())
        || facts.features.contains(Features::MIGRATING)
        || facts.mirroring.known().is_none_or(Option::is_some);
    (watched && may_be).then(|| facts.id.clone())
}
