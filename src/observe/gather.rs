//! Takes a survey: PVE's files, this node's kernel, and every cluster that the guest's disks lie in, all at once.

use crate::ceph::caps::{Caps, find_caps, find_caps_as_admin};
use crate::ceph::cluster::ClusterFacts;
use crate::ceph::image::ImageReading;
use crate::ceph::qemu_keyring::{self, NoKeyForQemu};
use crate::ceph::read_cluster::{PoolName, Wish, read_all};
use crate::ceph::sharing::share;
use crate::ceph::way;
use crate::kernel;
use crate::kernel::holders::holders_of;
use crate::kernel::programs::{self, Program};
use crate::kernel::{KernelFacts, Mapping, device};
use crate::observe::fsids::Fsids;
use crate::observe::keyring::keyring_facts;
use crate::observe::lock_owner::unwatching;
use crate::observe::node_addresses::Whereabouts;
use crate::observe::survey::{DiskFacts, MappingUsers, NodeFacts, SCHEMA, StorageFacts, Survey, THIS_NODE};
use crate::observe::{clients, managers, mirrors, owners};
use crate::pve::connection::{Connection, connection};
use crate::pve::guest::{Access, Disk, Guest};
use crate::pve::keyring::{self, Check};
use crate::pve::load::{Index, load};
use crate::pve::lock;
use crate::pve::node::{GuestFile, node_name, quorate, running};
use crate::pve::storage::{RbdStorage, StorageConfig};
use crate::pve::{qemu, snippet};
use crate::rbd::address::host_of;
use crate::rbd::spec::Spec;
use crate::reading::{Failure, Reading};
use crate::sys::root::Root;
use crate::sys::time;
use anyhow::{Context, Result};
use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Looks at a guest: all its images, or only one. Nothing is asked of Ceph for longer than `limit`; what was not
/// answered by then is unknown.
pub fn gather(root: &Root, vmid: u32, only: Option<&Spec>, limit: Duration) -> Result<Survey> {
    gather_some(root, vmid, only, (limit, limit), &|_| false)
}

/// The same, without the disks on storages that are `off`: those are not looked at. The second limit is for looking
/// through all images of the pools, where that has to be done.
pub fn gather_some(
    root: &Root,
    vmid: u32,
    only: Option<&Spec>,
    (limit, search_limit): (Duration, Duration),
    off: &(dyn Fn(&str) -> bool + Sync),
) -> Result<Survey> {
    let (guest, config) = load(root, vmid)?;
    let index = if only.is_none() { Index::read(root, &config)? } else { Index::default() };
    let look = Look {
        root,
        config: &config,
        index: &index,
        only,
        off: &|_, storage| off(storage),
        orphans: false,
        limit,
        search_limit,
        on_image: &|| (),
    };
    let (mut surveys, ..) = look.at(vec![guest])?;
    surveys.pop().context("no guest was looked at; this is a fault of rbd-preflight")
}

/// A guest that was looked at before, with what PVE's files and the kernel say now; Ceph is not asked. `None` if its
/// config is another by now.
pub fn gather_node(root: &Root, seen: &Survey) -> Result<Option<Survey>> {
    let (guest, config) = load(root, seen.guest.vmid)?;
    if guest != seen.guest {
        return Ok(None);
    }
    let index = Index::read(root, &config)?;
    let node = NodeFacts {
        whereabouts: seen.node.whereabouts.clone(),
        rbd_release: seen.node.rbd_release.clone(),
        ..node_facts(root, &config, &guest, &seen.node.name, (quorate(root), kernel::gather(root)))
    };
    let mut survey = Survey { node, taken_at: time::now().as_secs(), history: Vec::new(), ..seen.clone() };
    let fsids = Fsids::read(root, &config, &seen.storages, &seen.clusters);
    look_at_mappings(root, &Named { index: &index, fsids: &fsids }, std::slice::from_mut(&mut survey));
    Ok(Some(survey))
}

/// Many guests, and what they lie on.
pub struct Fleet<'a> {
    /// storage.cfg: the storages of Proxmox VE's cluster.
    pub config: &'a StorageConfig,
    /// The images that guests of the cluster name.
    pub index: &'a Index,
    /// Also list the images in the pools of this node's storages.
    pub list: bool,
    /// Nothing is asked of Ceph for longer.
    pub limit: Duration,
    /// Called for each image that was read.
    pub on_image: &'a (dyn Fn() + Sync),
    /// Whether a guest's disks on a storage are not to be looked at.
    pub off: &'a (dyn Fn(u32, &str) -> bool + Sync),
}

/// The images in each pool and namespace; once per cluster and user that reaches it.
pub type Names = Vec<Listed>;

/// The images in a pool and namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The cluster's fsid; `None` where nobody answered.
    pub fsid: Option<String>,
    /// The pool and namespace.
    pub pool: PoolName,
    /// The names of the images in it, in Ceph's order.
    pub names: Reading<Vec<String>>,
}

/// The images that guests of the cluster name, and which cluster each of their storages lies in.
struct Named<'a> {
    index: &'a Index,
    fsids: &'a Fsids,
}

impl<'a> Named<'a> {
    /// The guests that name an image of a cluster; also those of which it is not known which cluster they mean.
    fn by(&self, fsid: &str, spec: &Spec) -> impl Iterator<Item = &'a GuestFile> {
        let here =
            |(guest, storage): (&'a GuestFile, &str)| self.fsids.may_be(storage, fsid).then_some(guest);
        let guests = self.index.naming(spec).filter_map(here);
        guests.map(|guest| (guest.vmid, guest)).collect::<BTreeMap<_, _>>().into_values()
    }
}

/// Looks at many guests over one connection to each cluster; an image that several of them name is read once. The
/// surveys come in the order of the guests, with them the names that were listed, and which cluster each storage lies in.
pub fn gather_fleet(
    root: &Root,
    guests: Vec<Guest>,
    fleet: &Fleet<'_>,
) -> Result<(Vec<Survey>, Names, Fsids)> {
    let Fleet { config, index, list, limit, on_image, off } = *fleet;
    Look { root, config, index, only: None, off, orphans: list, limit, search_limit: limit, on_image }
        .at(guests)
}

/// What to look at, and for how long.
struct Look<'a> {
    root: &'a Root,
    config: &'a StorageConfig,
    index: &'a Index,
    only: Option<&'a Spec>,
    off: &'a (dyn Fn(u32, &str) -> bool + Sync),
    orphans: bool,
    limit: Duration,
    search_limit: Duration,
    on_image: &'a (dyn Fn() + Sync),
}

impl Look<'_> {
    fn at(&self, guests: Vec<Guest>) -> Result<(Vec<Survey>, Names, Fsids)> {
        let root = self.root;
        let own: Vec<Vec<DiskFacts>> = guests.iter().map(|guest| self.disks(guest)).collect();
        let counts: Vec<usize> = own.iter().map(Vec::len).collect();
        let mut disks: Vec<DiskFacts> = own.into_iter().flatten().collect();
        let node = node_name(root)?;
        let (storages, clusters, names) = self.ask_ceph(&node, &mut disks);
        let (quorate, kernel) = (quorate(root), kernel::gather(root));
        let mut disks = disks.into_iter();
        let mut surveys = Vec::with_capacity(guests.len());
        for (guest, count) in guests.into_iter().zip(counts) {
            let disks: Vec<DiskFacts> = disks.by_ref().take(count).collect();
            let (storages, clusters) = under(&disks, &storages, &clusters);
            let seen = (quorate.clone(), kernel.clone());
            let node = node_facts(root, self.config, &guest, &node, seen);
            let taken_at = time::now().as_secs();
            let history = Vec::new();
            surveys.push(Survey {
                schema: SCHEMA,
                taken_at,
                node,
                guest,
                storages,
                clusters,
                disks,
                history,
            });
        }
        let fsids = Fsids::read(root, self.config, &storages, &clusters);
        let named = Named { index: self.index, fsids: &fsids };
        look_at_mappings(root, &named, &mut surveys);
        clients::look(&mut surveys, self.limit);
        mirrors::look(&mut surveys, self.limit);
        managers::look(root, &mut surveys, self.limit);
        owners::look(root, self.config, &fsids, &mut surveys, self.search_limit);
        let (places, programs) = (OnceCell::new(), OnceCell::new());
        for survey in &mut surveys {
            share_out(&named, survey);
            let places = || places.get_or_init(|| Whereabouts::read(root));
            let programs = || programs.get_or_init(|| programs::of_ceph(root));
            survey.node.whereabouts = whereabouts(places, programs, &named, survey);
        }
        look_for_caps(root, &mut surveys, self.limit);
        look_for_qemus_keys(root, &mut surveys);
        Ok((surveys, names, fsids))
    }

    /// The guest's disks that are wanted, not yet read.
    fn disks(&self, guest: &Guest) -> Vec<DiskFacts> {
        let wanted = |disk: &&Disk| {
            self.only.is_none_or(|spec| disk.spec().as_ref() == Some(spec))
                && !(self.off)(guest.vmid, &disk.storage)
        };
        let disks = guest.disks.iter().filter(wanted).map(|disk| DiskFacts {
            shared_with: Vec::new(),
            disk: disk.clone(),
            reading: None,
            linked_device: None,
            map_options: None,
            lock_owner: None,
            mirror_daemons: None,
            manager: None,
        });
        disks.collect()
    }
}

/// The other guests that name the image of each disk. One name in two clusters is two images (PVE bug 3969).
fn share_out(named: &Named, survey: &mut Survey) {
    let own = survey.guest.vmid;
    for disk in &mut survey.disks {
        let Some(spec) = disk.spec() else { continue };
        let same = |storage: &str| named.fsids.same(storage, &disk.disk.storage);
        let others = named.index.naming(&spec).filter(|(guest, storage)| guest.vmid != own && same(storage));
        let others: BTreeSet<u32> = others.map(|(guest, _)| guest.vmid).collect();
        disk.shared_with = others.into_iter().collect();
    }
}

/// This node, as it stands to the guest; its mappings' users are not known yet.
fn node_facts(
    root: &Root,
    config: &StorageConfig,
    guest: &Guest,
    name: &str,
    (quorate, kernel): (Reading<bool>, KernelFacts),
) -> NodeFacts {
    let snippets = if guest.node == name { snippet::look(root, config, guest) } else { Vec::new() };
    NodeFacts {
        snippets,
        name: name.to_owned(),
        quorate,
        running: running(root, guest.kind, guest.vmid),
        kernel,
        mapping_users: BTreeMap::new(),
        whereabouts: BTreeMap::new(),
        rbd_release: None,
    }
}

/// The storages of these disks, and the clusters of these storages.
fn under(
    disks: &[DiskFacts],
    storages: &BTreeMap<String, StorageFacts>,
    clusters: &[Reading<ClusterFacts>],
) -> Clusters {
    let used: BTreeSet<&str> = disks.iter().map(|disk| disk.disk.storage.as_str()).collect();
    let own: Vec<(&str, &StorageFacts)> =
        used.into_iter().filter_map(|id| Some((id, storages.get(id)?))).collect();
    let kept: BTreeSet<usize> = own.iter().map(|(_, storage)| storage.cluster).collect();
    let renumbered = own.into_iter().map(|(id, storage)| {
        let cluster = kept.range(..storage.cluster).count();
        (id.to_owned(), StorageFacts { cluster, ..storage.clone() })
    });
    (renumbered.collect(), kept.iter().filter_map(|at| clusters.get(*at).cloned()).collect())
}

/// Whether QEMU finds the keys for the disks that it opens: it is not given what `rbd` is given.
fn look_for_qemus_keys(root: &Root, surveys: &mut [Survey]) {
    let installed = OnceCell::new();
    for survey in surveys {
        let Survey { guest, storages, disks, .. } = survey;
        let opened =
            |id: &str| disks.iter().any(|disk| disk.disk.storage == id && disk.disk.access == Access::Librbd);
        for (_, storage) in storages.iter_mut().filter(|(id, _)| opened(id)) {
            let lacking = qemu_keyring::lacking(&storage.connection);
            storage.qemu_keyring = lacking.map(|lacking| {
                let installed = installed.get_or_init(|| qemu::installed(root));
                NoKeyForQemu { by_blockdev: qemu::by_blockdev(guest, installed), ..lacking }
            });
        }
    }
}

/// What the users of storages may do: where a lock is stale, for that takes the right to blocklist, or an OSD has refused them
/// something, whatever it costs; elsewhere only where it costs little.
fn look_for_caps(root: &Root, surveys: &mut [Survey], limit: Duration) {
    let mut known: BTreeMap<(String, bool), Option<Reading<Caps>>> = BTreeMap::new();
    for survey in surveys {
        let needed = |disk: &&DiskFacts| {
            let refused =
                matches!(&disk.reading, Some(ImageReading::Unknown(failure)) if failure.is_refusal());
            refused || unwatching(disk).is_some()
        };
        let needed: BTreeSet<String> =
            survey.disks.iter().filter(needed).map(|disk| disk.disk.storage.clone()).collect();
        for (id, storage) in &mut survey.storages {
            let reached =
                survey.clusters.get(storage.cluster).is_some_and(|cluster| cluster.known().is_some());
            let connection = &storage.connection;
            let needed = needed.contains(id);
            let find = || match needed {
                true => Some(find_caps(root, connection, &connection.user, limit)),
                false if reached => find_caps_as_admin(root, connection, limit),
                false => None,
            };
            storage.caps = known.entry((id.clone(), needed)).or_insert_with(find).clone();
        }
    }
}

/// Where the clients are that have the guest's images open, as far as PVE's and Ceph's files tell.
fn whereabouts<'a>(
    places: impl FnOnce() -> &'a Whereabouts,
    programs: impl Fn() -> &'a Vec<Program>,
    named: &Named,
    survey: &Survey,
) -> BTreeMap<String, String> {
    let watchers = survey.disks.iter().filter_map(|disk| match &disk.reading {
        Some(ImageReading::Found(facts)) => {
            Some((survey.identity(disk)?.fsid, disk.spec()?, facts.watchers.known()?))
        }
        _ => None,
    });
    let addresses: Vec<(&str, Spec, &str)> = watchers
        .flat_map(|(fsid, spec, all)| {
            all.iter().map(move |watcher| (fsid, spec.clone(), watcher.address.as_str()))
        })
        .collect();
    if addresses.is_empty() {
        return BTreeMap::new();
    }
    let places = places();
    let told = addresses.into_iter().filter_map(|(fsid, spec, address)| {
        if is_here(survey, places, fsid, address) {
            let told = if survey.is_kernels(address) {
                Some("its kernel".to_owned())
            } else {
                programs::told(programs(), &spec.image)
            };
            let told = told.map(|told| format!(": {told}")).unwrap_or_default();
            return Some((address.to_owned(), format!("{THIS_NODE}{told}")));
        }
        let node = places.node_of(address)?;
        let there = |guest: &&GuestFile| guest.node == node;
        let guests: Vec<String> =
            named.by(fsid, &spec).filter(there).map(|guest| guest.vmid.to_string()).collect();
        let named =
            if guests.is_empty() { String::new() } else { format!(", with guest {}", guests.join(", ")) };
        Some((address.to_owned(), format!("node {node}{named}")))
    });
    told.collect()
}

/// A client of a cluster is on this node: it has an address of the node's, or the one that the tool's own client has there.
fn is_here(survey: &Survey, places: &Whereabouts, fsid: &str, address: &str) -> bool {
    let clusters = survey.clusters.iter().filter_map(Reading::known).filter(|cluster| cluster.fsid == fsid);
    let mut own = clusters.flat_map(|cluster| &cluster.own_addresses);
    let host = host_of(address);
    places.is_own(address) || host.is_some() && own.any(|own| host_of(own) == host)
}

/// Who uses those mappings of this node that matter: of the guests' images, and of kernel clients that are dead.
fn look_at_mappings(root: &Root, named: &Named, surveys: &mut [Survey]) {
    let mut wanted: Vec<BTreeMap<u32, Mapping>> = Vec::new();
    for survey in surveys.iter_mut() {
        link_devices(root, survey);
        let own = survey.disks.iter().filter_map(|disk| survey.mapped(disk).known().cloned()).flatten();
        let strangers = survey.disks.iter().flat_map(|disk| survey.strangers(disk).cloned());
        let dead = survey.dead_mappings().map(|(mapping, _)| mapping.clone());
        wanted.push(own.chain(strangers).chain(dead).map(|m| (m.id, m)).collect());
    }
    let ids: BTreeSet<u32> = wanted.iter().flat_map(|mappings| mappings.keys().copied()).collect();
    if ids.is_empty() {
        return;
    }
    let holders = holders_of(root, &ids.into_iter().collect::<Vec<_>>());
    for (survey, mappings) in surveys.iter_mut().zip(wanted) {
        for (id, mapping) in mappings {
            let spec = mapping.spec();
            let here = named.by(&mapping.fsid, &spec).filter(|guest| guest.node == survey.node.name);
            let guests: BTreeMap<u32, Reading<bool>> =
                here.map(|guest| (guest.vmid, running(root, guest.kind, guest.vmid))).collect();
            let stopped = guests.iter().filter(|(_, running)| **running == Reading::Known(false));
            let locked = stopped.map(|(vmid, _)| (*vmid, lock::is_held(root, *vmid))).collect();
            let holders = match &holders {
                Reading::Known(all) => Reading::Known(all.get(&id).cloned().unwrap_or_default()),
                Reading::Unknown(failure) => Reading::Unknown(failure.clone()),
            };
            survey.node.mapping_users.insert(id, MappingUsers { holders, guests, locked });
        }
    }
}

/// The devices that PVE's links to the disks' images lead to.
fn link_devices(root: &Root, survey: &mut Survey) {
    for disk in 0..survey.disks.len() {
        let linked = survey
            .cluster_of(&survey.disks[disk])
            .and_then(Reading::known)
            .and_then(|cluster| device::linked(root, &cluster.fsid, &survey.disks[disk].spec()?));
        survey.disks[disk].linked_device = linked;
    }
}

type Clusters = (BTreeMap<String, StorageFacts>, Vec<Reading<ClusterFacts>>);

impl Look<'_> {
    /// Asks every cluster at once, over one connection each, for all images of the disks.
    fn ask_ceph(
        &self,
        node: &str,
        disks: &mut [DiskFacts],
    ) -> (BTreeMap<String, StorageFacts>, Vec<Reading<ClusterFacts>>, Names) {
        let ids: BTreeSet<&str> = disks.iter().map(|disk| disk.disk.storage.as_str()).collect();
        let listed = self.config.rbd.iter().filter(|storage| self.orphans && storage.is_on(node));
        let listed: BTreeSet<&str> = listed.map(|storage| storage.id.as_str()).collect();
        let mut storages = BTreeMap::new();
        let mut clusters = Vec::new();
        let mut reachable: Vec<(&RbdStorage, Connection)> = Vec::new();
        let check = keyring::installed_check(self.root);
        for section in ids.union(&listed).filter_map(|id| self.config.rbd(id)) {
            match connection(self.root, section) {
                Ok(connection) => reachable.push((section, connection)),
                Err(failure) => {
                    let unknown = Connection::unknown(section);
                    storages.insert(section.id.clone(), storage(section, unknown, clusters.len(), &check));
                    clusters.push(Reading::Unknown(failure));
                }
            }
        }
        let connections: Vec<Connection> =
            reachable.iter().map(|(_, connection)| connection.clone()).collect();
        let shared = share(&connections);
        for ((section, connection), index) in reachable.into_iter().zip(&shared.of) {
            storages.insert(section.id.clone(), storage(section, connection, clusters.len() + index, &check));
        }
        let first = clusters.len();
        let wishes: Vec<(Vec<Spec>, Vec<PoolName>)> = (first..first + shared.connections.len())
            .map(|cluster| (specs_in(disks, &storages, cluster), pools_in(&listed, &storages, cluster)))
            .collect();
        let readings = std::thread::scope(|scope| {
            let asked = shared.connections.iter().zip(&wishes);
            let threads: Vec<_> = asked
                .map(|(connection, (specs, pools))| {
                    scope.spawn(|| {
                        let wish = Wish { specs, pools };
                        let read = || read_all(connection, &wish, self.limit, &|| (self.on_image)());
                        way::beside(connection, self.limit, read, |(read, _)| read.failure())
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join()).collect::<Vec<_>>()
        });
        let mut names = Names::new();
        for (reading, (specs, pools)) in readings.into_iter().zip(&wishes) {
            let ((reading, listed), way) = reading.unwrap_or_else(|_| {
                let failure =
                    Failure::new("read the cluster", "the reader panicked; this is a fault of rbd-preflight");
                ((Reading::Unknown(failure), Vec::new()), None)
            });
            for storage in storages.values_mut().filter(|storage| storage.cluster == clusters.len()) {
                storage.way.clone_from(&way);
            }
            let facts = take(reading, specs, clusters.len(), &storages, disks);
            let fsid = facts.known().map(|facts| &facts.fsid);
            let listed = pools.iter().cloned().zip(listed);
            names.extend(listed.map(|(pool, names)| Listed { fsid: fsid.cloned(), pool, names }));
            clusters.push(facts);
        }
        (storages, clusters, names)
    }
}

/// The pools of a cluster to be listed, each once.
fn pools_in(
    listed: &BTreeSet<&str>,
    storages: &BTreeMap<String, StorageFacts>,
    cluster: usize,
) -> Vec<PoolName> {
    let here = listed.iter().filter_map(|id| storages.get(*id)).filter(|storage| storage.cluster == cluster);
    let pools = here.map(|storage| (storage.section.pool.clone(), storage.section.namespace.clone()));
    pools.collect::<BTreeSet<_>>().into_iter().collect()
}

fn storage(section: &RbdStorage, connection: Connection, cluster: usize, check: &Check) -> StorageFacts {
    let keyring = keyring_facts(&connection, check);
    StorageFacts {
        section: section.clone(),
        connection,
        cluster,
        caps: None,
        keyring,
        qemu_keyring: None,
        way: None,
        keyring_written: None,
    }
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
