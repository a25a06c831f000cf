//! What decides which kernel client a map would take. It matters only where one is dead, and is only looked for there.

use crate::ceph::image::{ImageReading, Spec};
use crate::ceph::map_options::read_map_options;
use crate::process::{Command, Outcome, Runner, System};
use crate::pve::connection::Connection;
use crate::pve::guest::Access;
use crate::reading::{Failure, Reading};
use crate::survey::{DiskFacts, Survey};
use std::cell::OnceCell;
use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, UNIX_EPOCH};

/// How long `rbd --version` may take; it asks nobody.
const PATIENCE: Duration = Duration::from_secs(10);

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
        survey.node.rbd_release = Some(release.get_or_init(rbd_release).clone());
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

/// The release of the `rbd` that maps on this node.
fn rbd_release() -> Reading<String> {
    let failure = |message: String| Failure::new("ask rbd for its release", message);
    let asked = System.run(&Command::new("rbd").arg("--version").deadline(PATIENCE)).and_then(Outcome::check);
    let told = asked.map_err(|error| failure(format!("{error:#}"))).and_then(|outcome| {
        let text = String::from_utf8_lossy(&outcome.stdout).into_owned();
        release(&text).ok_or_else(|| failure(format!("answer not understood: {}", text.trim())))
    });
    told.into()
}

/// The release in `ceph version 16.2.15 (618f44…) pacific (stable)`.
fn release(text: &str) -> Option<String> {
    let release = text.strip_prefix("ceph version ")?.split_whitespace().next()?;
    release.starts_with(|c: char| c.is_ascii_digit()).then(|| release.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_the_third_word() {
        for (text, expected) in [
            (
                "ceph version 16.2.15 (618f440892089921c3e944a991122ddc44e60516) pacific (stable)\n",
                Some("16.2.15"),
            ),
            ("ceph version 20.2.4 (7f79) tentacle (stable - RelWithDebInfo)\n", Some("20.2.4")),
            ("ceph version Development (no_version) squid (dev)\n", None),
            ("rbd: unknown option\n", None),
            ("", None),
        ] {
            assert_eq!(release(text).as_deref(), expected, "{text}");
        }
    }
}
