//! What decides which kernel client a map would take. It matters only where one is dead, and is only looked for there.

use crate::ceph::image::{ImageReading, Spec};
use crate::ceph::map_options::{read_map_options, read_release};
use crate::observe::survey::{DiskFacts, Survey};
use crate::pve::connection::Connection;
use crate::pve::guest::Access;
use crate::reading::Reading;
use std::cell::OnceCell;
use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, UNIX_EPOCH};

/// Looks, for the surveys in which a kernel client of this node is dead: which release `rbd` is, what it takes by default
/// for each image that the kernel opens, when the keyrings were written. No cluster is asked for longer than `limit`.
pub fn look(surveys: &mut [Survey], limit: Duration) {
    let release = OnceCell::new();
    let mut wanted: HashMap<Connection, Vec<(Spec, String)>> = HashMap::new();
    for survey in surveys.iter_mut() {
        let here = concerned(survey);
        if here.is_empty() {
            continue;
        }
        survey.node.rbd_release = Some(release.get_or_init(read_release).clone());
        for disk in here {
            let Some((connection, image)) = asked(survey, disk) else { continue };
            let images = wanted.entry(connection).or_default();
            if !images.contains(&image) {
                images.push(image);
            }
        }
        for id in survey.disks.iter().map(|disk| disk.disk.storage.clone()).collect::<BTreeSet<_>>() {
            if let Some(storage) = survey.storages.get_mut(&id) {
                storage.keyring_written = storage.connection.keyring.as_deref().and_then(written);
            }
        }
    }
    let mut read: HashMap<(Connection, (Spec, String)), Reading<String>> = HashMap::new();
    for (connection, images) in wanted {
        let options = read_map_options(&connection, &images, limit);
        read.extend(images.into_iter().map(|image| (connection.clone(), image)).zip(options));
    }
    for survey in surveys {
        for disk in concerned(survey) {
            let options = asked(survey, disk).and_then(|key| read.get(&key).cloned());
            survey.disks[disk].map_options = options;
        }
    }
}

/// The disks that the kernel opens and a kernel client of whose cluster is dead, by their index.
fn concerned(survey: &Survey) -> Vec<usize> {
    let dead: BTreeSet<&str> = survey.dead_mappings().map(|(mapping, _)| mapping.fsid.as_str()).collect();
    let concerned = |disk: &DiskFacts| {
        let cluster = survey.cluster_of(disk).and_then(Reading::known);
        disk.disk.access == Access::Krbd
            && cluster.is_some_and(|cluster| dead.contains(cluster.fsid.as_str()))
    };
    (0..survey.disks.len()).filter(|disk| concerned(&survey.disks[*disk])).collect()
}

/// How a disk's image is reached, which it is, and its id.
fn asked(survey: &Survey, disk: usize) -> Option<(Connection, (Spec, String))> {
    let disk = &survey.disks[disk];
    let storage = survey.storages.get(&disk.disk.storage)?;
    let Some(ImageReading::Found(facts)) = &disk.reading else { return None };
    Some((storage.connection.clone(), (disk.spec()?, facts.id.clone())))
}

/// When a file was last written, seconds since 1970.
fn written(path: &str) -> Option<u64> {
    let written = std::fs::metadata(path).and_then(|file| file.modified()).ok()?;
    written.duration_since(UNIX_EPOCH).ok().map(|time| time.as_secs())
}
