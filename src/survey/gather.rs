//! Takes a survey: PVE's files, this node's kernel, and every cluster that the guest's disks lie in, all at once.

use crate::ceph::caps::find_caps;
use crate::ceph::cluster::ClusterFacts;
use crate::ceph::image::{ImageReading, Spec};
use crate::ceph::read::read_cluster;
use crate::ceph::sharing::share;
use crate::diagnose::lock::is_stale;
use crate::kernel::holders::holders_of;
use crate::kernel::{Mapping, device};
use crate::pve::connection::{Connection, connection};
use crate::pve::guest::Disk;
use crate::pve::load::{Index, load};
use crate::pve::node::{node_name, quorate, running};
use crate::pve::storage::{RbdStorage, StorageConfig};
use crate::pve::whereabouts::Whereabouts;
use crate::reading::{Failure, Reading};
use crate::root::Root;
use crate::survey::{DiskFacts, MappingUsers, NodeFacts, SCHEMA, StorageFacts, Survey};
use crate::{clock, kernel};
use anyhow::Result;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Looks at a guest: all its images, or only one. Nothing is asked of Ceph for longer than `limit`; what was not
/// answered by then is unknown.
pub fn gather(root: &Root, vmid: u32, only: Option<&Spec>, limit: Duration) -> Result<Survey> {
    let (guest, config) = load(root, vmid)?;
    let wanted = |disk: &&Disk| only.is_none_or(|spec| Spec::of(disk).as_ref() == Some(spec));
    let index = if only.is_none() { Index::read(root, &config)? } else { Index::default() };
    let sharers = |disk: &Disk| {
        let naming = Spec::of(disk).map(|spec| index.naming(&spec).map(|g| g.vmid).collect::<Vec<_>>());
        naming.unwrap_or_default().into_iter().filter(|other| *other != vmid).collect()
    };
    let disks = guest.disks.iter().filter(wanted).map(|disk| DiskFacts {
        shared_with: sharers(disk),
        disk: disk.clone(),
        reading: None,
        linked_device: None,
    });
    let mut disks: Vec<DiskFacts> = disks.collect();
    let (storages, clusters) = ask_ceph(root, &config, &mut disks, limit);
    let mut survey = Survey {
        schema: SCHEMA,
        taken_at: clock::now().as_secs(),
        node: NodeFacts {
            name: node_name(root)?,
            quorate: quorate(root),
            running: running(root, guest.kind, vmid),
            kernel: kernel::gather(root),
            mapping_users: BTreeMap::new(),
            whereabouts: BTreeMap::new(),
        },
        guest,
        storages,
        clusters,
        disks,
        history: Vec::new(),
    };
    look_at_mappings(root, &index, &mut survey);
    survey.node.whereabouts = whereabouts(root, &index, &survey);
    look_for_caps(root, &mut survey, limit);
    Ok(survey)
}

/// Whether the users of storages with a stale lock may break it: that takes the right to blocklist.
fn look_for_caps(root: &Root, survey: &mut Survey, limit: Duration) {
    let stale = survey.disks.iter().filter(|disk| is_stale(disk)).map(|disk| disk.disk.storage.clone());
    for id in stale.collect::<BTreeSet<String>>() {
        if let Some(storage) = survey.storages.get_mut(&id) {
            storage.caps = Some(find_caps(root, &storage.connection, &storage.connection.user, limit));
        }
    }
}

/// Where the clients are that have the guest's images open, as far as PVE's and Ceph's files tell.
fn whereabouts(root: &Root, index: &Index, survey: &Survey) -> BTreeMap<String, String> {
    let watchers = survey.disks.iter().filter_map(|disk| match &disk.reading {
        Some(ImageReading::Found(facts)) => Some((disk.spec()?, facts.watchers.known()?)),
        _ => None,
    });
    let addresses: Vec<(Spec, &str)> = watchers
        .flat_map(|(spec, all)| all.iter().map(move |watcher| (spec.clone(), watcher.address.as_str())))
        .collect();
    if addresses.is_empty() {
        return BTreeMap::new();
    }
    let places = Whereabouts::read(root);
    let told = addresses.into_iter().filter_map(|(spec, address)| {
        let node = places.node_of(address)?;
        let guests: Vec<String> = index
            .naming(&spec)
            .filter(|guest| guest.node == node)
            .map(|guest| guest.vmid.to_string())
            .collect();
        let named =
            if guests.is_empty() { String::new() } else { format!(", with guest {}", guests.join(", ")) };
        Some((address.to_owned(), format!("node {node}{named}")))
    });
    told.collect()
}

/// Who uses those mappings of this node that matter: of the guest's images, and of kernel clients that are dead.
fn look_at_mappings(root: &Root, index: &Index, survey: &mut Survey) {
    for disk in 0..survey.disks.len() {
        let linked = survey
            .cluster_of(&survey.disks[disk])
            .and_then(Reading::known)
            .and_then(|cluster| device::linked(root, &cluster.fsid, &survey.disks[disk].spec()?));
        survey.disks[disk].linked_device = linked;
    }
    let own = survey.disks.iter().filter_map(|disk| survey.mapped(disk).known().cloned()).flatten();
    let mappings: BTreeMap<u32, Mapping> =
        own.chain(survey.dead_mappings().map(|(mapping, _)| mapping.clone())).map(|m| (m.id, m)).collect();
    if mappings.is_empty() {
        return;
    }
    let ids: Vec<u32> = mappings.keys().copied().collect();
    let holders = holders_of(root, &ids);
    for (id, mapping) in mappings {
        let spec = Spec::of_mapping(&mapping);
        let here = index.naming(&spec).filter(|guest| guest.node == survey.node.name);
        let guests = here.map(|guest| (guest.vmid, running(root, guest.kind, guest.vmid))).collect();
        let holders = match &holders {
            Reading::Known(all) => Reading::Known(all.get(&id).cloned().unwrap_or_default()),
            Reading::Unknown(failure) => Reading::Unknown(failure.clone()),
        };
        survey.node.mapping_users.insert(id, MappingUsers { holders, guests });
    }
}

type Clusters = (BTreeMap<String, StorageFacts>, Vec<Reading<ClusterFacts>>);

/// Asks every cluster at once, over one connection each, for all images of the disks.
fn ask_ceph(root: &Root, config: &StorageConfig, disks: &mut [DiskFacts], limit: Duration) -> Clusters {
    let ids: BTreeSet<&str> = disks.iter().map(|disk| disk.disk.storage.as_str()).collect();
    let mut storages = BTreeMap::new();
    let mut clusters = Vec::new();
    let mut reachable: Vec<(&RbdStorage, Connection)> = Vec::new();
    for section in ids.into_iter().filter_map(|id| config.rbd(id)) {
        match connection(root, section) {
            Ok(connection) => reachable.push((section, connection)),
            Err(failure) => {
                storages.insert(
                    section.id.clone(),
                    storage(section, Connection::unknown(section), clusters.len()),
                );
                clusters.push(Reading::Unknown(failure));
            }
        }
    }
    let connections: Vec<Connection> = reachable.iter().map(|(_, connection)| connection.clone()).collect();
    let shared = share(&connections);
    for ((section, connection), index) in reachable.into_iter().zip(&shared.of) {
        storages.insert(section.id.clone(), storage(section, connection, clusters.len() + index));
    }
    let first = clusters.len();
    let specs: Vec<Vec<Spec>> =
        (0..shared.connections.len()).map(|index| specs_in(disks, &storages, first + index)).collect();
    let readings = std::thread::scope(|scope| {
        let asked = shared.connections.iter().zip(&specs);
        let threads: Vec<_> =
            asked.map(|(connection, specs)| scope.spawn(|| read_cluster(connection, specs, limit))).collect();
        threads.into_iter().map(|thread| thread.join()).collect::<Vec<_>>()
    });
    for (reading, specs) in readings.into_iter().zip(&specs) {
        let reading = reading.unwrap_or_else(|_| {
            Reading::Unknown(Failure::new(
                "read the cluster",
                "the reader panicked; this is a fault of rbd-preflight",
            ))
        });
        clusters.push(take(reading, specs, clusters.len(), &storages, disks));
    }
    (storages, clusters)
}

fn storage(section: &RbdStorage, connection: Connection, cluster: usize) -> StorageFacts {
    StorageFacts { section: section.clone(), connection, cluster, caps: None }
}

/// The images to look for in a cluster, each once.
fn specs_in(disks: &[DiskFacts], storages: &BTreeMap<String, StorageFacts>, cluster: usize) -> Vec<Spec> {
    let here = disks.iter().filter(|disk| is_in(disk, storages, cluster));
    here.filter_map(DiskFacts::spec).collect::<BTreeSet<_>>().into_iter().collect()
}

fn is_in(disk: &DiskFacts, storages: &BTreeMap<String, StorageFacts>, cluster: usize) -> bool {
    storages.get(&disk.disk.storage).is_some_and(|storage| storage.cluster == cluster)
}

/// Gives each disk of a cluster what was read of its image, and returns what was read of the cluster.
fn take(
    reading: Reading<(ClusterFacts, Vec<ImageReading>)>,
    specs: &[Spec],
    cluster: usize,
    storages: &BTreeMap<String, StorageFacts>,
    disks: &mut [DiskFacts],
) -> Reading<ClusterFacts> {
    let (facts, images) = match reading {
        Reading::Known((facts, images)) => (Reading::Known(facts), images),
        Reading::Unknown(failure) => {
            let unread = vec![ImageReading::Unknown(failure.clone()); specs.len()];
            (Reading::Unknown(failure), unread)
        }
    };
    let images: BTreeMap<&Spec, ImageReading> = specs.iter().zip(images).collect();
    for disk in disks.iter_mut().filter(|disk| is_in(disk, storages, cluster)) {
        disk.reading = disk.spec().and_then(|spec| images.get(&spec).cloned());
    }
    facts
}
