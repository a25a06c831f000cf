//! Which of a mirrored image's watchers are rbd-mirror's daemons. Only looked for where somebody watches such an image that
//! is to be started from.

use crate::ceph::image::{ImageReading, Watcher};
use crate::ceph::mirror::read_mirror_daemons;
use crate::diagnose::owner::is_to_be_open;
use crate::observe::survey::{DiskFacts, Survey};
use crate::pve::connection::Connection;
use crate::reading::Reading;
use std::collections::HashMap;
use std::time::Duration;

type Place = (Connection, String, Option<String>);

/// Looks for them, once for each pool and namespace, which may take `limit` each.
pub fn look(surveys: &mut [Survey], limit: Duration) {
    let mut known: HashMap<Place, Reading<Vec<Watcher>>> = HashMap::new();
    for survey in surveys.iter_mut().filter(|survey| !is_to_be_open(survey)) {
        for disk in 0..survey.disks.len() {
            let Some(place) = place(survey, &survey.disks[disk]) else { continue };
            let (connection, pool, namespace) = &place;
            let read = || read_mirror_daemons(connection, pool, namespace.as_deref(), limit);
            let daemons = known.entry(place.clone()).or_insert_with(read).clone();
            survey.disks[disk].mirror_daemons = Some(daemons);
        }
    }
}

/// Where to ask about a disk; `None` where nobody watches a primary image.
fn place(survey: &Survey, disk: &DiskFacts) -> Option<Place> {
    let Some(ImageReading::Found(facts)) = &disk.reading else { return None };
    let primary = facts.mirroring.known()?.as_ref()?.primary;
    let watched = !facts.watchers.known()?.is_empty();
    let storage = survey.storages.get(&disk.disk.storage)?;
    let place = (storage.connection.clone(), disk.disk.pool.clone(), disk.disk.namespace.clone());
    (primary && watched).then_some(place)
}
