//! The guests that run here and what the kernel has mapped: what is looked at every half minute, without Ceph.

use crate::ceph::connect::place;
use crate::ceph::sharing::share;
use crate::kernel::sysfs;
use crate::pve::connection::{Connection, connection};
use crate::pve::guest::{self, Access, Disk, Guest, Role};
use crate::pve::node::{GuestFile, guests_of_node, node_name, nodes, running};
use crate::pve::storage::{self, StorageConfig};
use crate::reading::{Failure, Reading};
use crate::settings::{Mode, Settings};
use crate::sys::root::Root;
use crate::watch::seen::{self, Guests, NodeLook};
use std::collections::BTreeMap;

/// A look at this node.
#[derive(Debug)]
pub struct Running {
    /// What was seen of the node at that time.
    pub look: NodeLook,
    /// How the clusters of the disks seen are reached, by [`seen::Disk::cluster`]. `None` where the guests could not be
    /// read: then they are reached as before.
    pub clusters: Option<BTreeMap<String, Result<Connection, Failure>>>,
}

/// Looks at this node. `settings` say which storages are off.
pub fn look(root: &Root, settings: &Reading<Settings>) -> Running {
    let mappings = sysfs::mappings(root);
    let (guests, clusters) = match settings {
        Reading::Unknown(failure) => (Reading::Unknown(failure.clone()), None),
        Reading::Known(settings) => match guests(root, settings) {
            Ok((guests, clusters)) => (Reading::Known(guests), Some(clusters)),
            Err(failure) => (Reading::Unknown(failure), None),
        },
    };
    Running { look: NodeLook { guests, mappings }, clusters }
}

type Clusters = BTreeMap<String, Result<Connection, Failure>>;

fn guests(root: &Root, settings: &Settings) -> Result<(Guests, Clusters), Failure> {
    let node = node_name(root)?;
    let all = nodes(root)?;
    if !all.contains(&node) {
        return Err(Failure::new("look for this node under /etc/pve/nodes", format!("there is no {node}")));
    }
    let config = storage::load(root)?;
    let (mut guests, mut disks) = (Guests::default(), Vec::new());
    for file in guests_of_node(root, &node)? {
        match one(root, &file, &config) {
            Some(Some(guest)) => {
                let policy = settings.for_guest(guest.vmid, guest.disks.iter().map(|disk| &disk.storage));
                let (off, on): (Vec<Disk>, Vec<Disk>) =
                    guest.disks.into_iter().partition(|disk| policy.disk(&disk.storage).mode == Mode::Off);
                guests.off.extend(off.iter().filter_map(Disk::spec));
                disks.extend(on.into_iter().map(|disk| (guest.vmid, disk)));
            }
            Some(None) => {}
            None => drop(guests.unsure.insert(file.vmid)),
        }
    }
    let (places, clusters) = reached(root, &config, &disks);
    guests.disks = disks.into_iter().filter_map(|(vmid, disk)| seen_disk(vmid, disk, &places)).collect();
    Ok((guests, clusters))
}

/// A guest that runs; `Some(None)` where it does not, `None` where that, or what it has, is not known.
fn one(root: &Root, file: &GuestFile, config: &StorageConfig) -> Option<Option<Guest>> {
    match running(root, file.kind, file.vmid) {
        Reading::Known(true) => guest::load(root, file, config).ok().map(Some),
        Reading::Known(false) => Some(None),
        Reading::Unknown(_) => None,
    }
}

/// How the storages of these disks are reached: for each storage the words for it, and what they stand for.
fn reached(
    root: &Root,
    config: &StorageConfig,
    disks: &[(u32, Disk)],
) -> (BTreeMap<String, String>, Clusters) {
    let (mut places, mut clusters, mut reachable) = (BTreeMap::new(), Clusters::new(), Vec::new());
    let used: std::collections::BTreeSet<&str> =
        disks.iter().map(|(_, disk)| disk.storage.as_str()).collect();
    for id in used {
        let Some(section) = config.rbd(id) else { continue };
        match connection(root, section) {
            Ok(connection) => reachable.push((id, connection)),
            Err(failure) => {
                let words = format!("the storage {id}");
                clusters.insert(words.clone(), Err(failure));
                places.insert(id.to_owned(), words);
            }
        }
    }
    let connections: Vec<Connection> = reachable.iter().map(|(_, connection)| connection.clone()).collect();
    let shared = share(&connections);
    for ((id, _), index) in reachable.iter().zip(shared.of) {
        if let Some(connection) = shared.connections.get(index) {
            let words = place(connection);
            clusters.insert(words.clone(), Ok(connection.clone()));
            places.insert((*id).to_owned(), words);
        }
    }
    (places, clusters)
}

fn seen_disk(vmid: u32, disk: Disk, places: &BTreeMap<String, String>) -> Option<seen::Disk> {
    let image = disk.spec()?;
    let cluster = places.get(&disk.storage)?.clone();
    // Not opened by a running guest.
    if disk.role == Role::Vmstate || disk.pve_drops.as_ref().is_some_and(|drop| !drop.unknown_option) {
        return None;
    }
    let reads = disk.cdrom || disk.read_only || matches!(disk.role, Role::Cdrom | Role::Cloudinit);
    let Disk { key, storage, access, .. } = disk;
    // The kernel maps for writing whatever the guest does with it.
    let writes = !reads || access == Access::Krbd;
    Some(seen::Disk { vmid, key, storage, cluster, image, access, writes })
}
