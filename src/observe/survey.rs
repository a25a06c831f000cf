//! The survey: everything that was seen of a guest, as one plain value.

use crate::ceph::caps::Caps;
use crate::ceph::cluster::ClusterFacts;
use crate::ceph::image::{ImageFacts, ImageReading};
use crate::ceph::manager::Manager;
use crate::ceph::qemu_keyring::NoKeyForQemu;
use crate::ceph::way::Way;
use crate::kernel::holders::Holder;
use crate::kernel::{KernelFacts, Mapping, device};
use crate::observe::keyring::KeyringFacts;
use crate::pve::connection::Connection;
use crate::pve::guest::{Disk, Guest};
use crate::pve::snippet::SnippetFacts;
use crate::pve::storage::RbdStorage;
use crate::rbd::action::ActionReport;
use crate::rbd::address::same_client;
use crate::rbd::blocklist::BlocklistEntry;
use crate::rbd::blocklist::entry_of;
use crate::rbd::identity::{ImageIdentity, Same};
use crate::rbd::lock::Watcher;
use crate::rbd::spec::Spec;
use crate::reading::{Failure, Origin, Reading};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The version of the saved form.
pub const SCHEMA: u32 = 1;

/// How the whereabouts of a client begin that is on this node.
pub const THIS_NODE: &str = "this node";

/// Everything that was seen of a guest at one time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Survey {
    /// The version of the survey's form, [`SCHEMA`].
    pub schema: u32,
    /// When it was taken, seconds since 1970.
    pub taken_at: u64,
    /// The node that was looked from.
    pub node: NodeFacts,
    /// The guest, as its config has it.
    pub guest: Guest,
    /// The rbd storages that the guest's disks lie on, by id.
    pub storages: BTreeMap<String, StorageFacts>,
    /// The clusters, one per connection.
    pub clusters: Vec<Reading<ClusterFacts>>,
    /// The guest's disks and what Ceph says of each.
    pub disks: Vec<DiskFacts>,
    /// What this run has done so far, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<ActionReport>,
}

/// What was seen of the node that was looked from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NodeFacts {
    /// The node's name.
    pub name: String,
    /// The PVE cluster has quorum.
    pub quorate: Reading<bool>,
    /// The guest runs here.
    pub running: Reading<bool>,
    /// What the kernel can do and has mapped.
    pub kernel: KernelFacts,
    /// Who uses what is mapped here, by the mapping's number.
    #[serde(default)]
    pub mapping_users: BTreeMap<u32, MappingUsers>,
    /// By the address of a client that has an image of the guest open: `node pve2, with guest 516`, `this node: process 77
    /// (rbd-nbd)`.
    #[serde(default)]
    pub whereabouts: BTreeMap<String, String>,
    /// Snippets that the guest's config names and that a start here fails at, or that could not be looked at; only looked
    /// for where the guest is this node's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub snippets: Vec<SnippetFacts>,
    /// The release of this node's `rbd`, `20.2.4`; only looked for where one of its kernel clients is dead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rbd_release: Option<Reading<String>>,
}

/// Who uses a mapping of this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct MappingUsers {
    /// What holds the device open.
    pub holders: Reading<Vec<Holder>>,
    /// Guests of this node whose configs name the image, and whether each runs.
    pub guests: BTreeMap<u32, Reading<bool>>,
    /// Of these, those that do not run: whether somebody is at the guest, so that it may be just about to open the
    /// device ([`crate::pve::lock`]). Less the guest whose hook this is: PVE, which called it, is at that one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub locked: BTreeMap<u32, Reading<bool>>,
}

/// A storage and how to reach it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct StorageFacts {
    /// The section of storage.cfg.
    pub section: RbdStorage,
    /// How PVE reaches it.
    pub connection: Connection,
    /// Index into [`Survey::clusters`].
    pub cluster: usize,
    /// What its user may do; only looked for where a lock is to be broken.
    #[serde(default)]
    pub caps: Option<Reading<Caps>>,
    /// What is known of its keyring, of whose content nothing but the key's type is kept; `None` without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keyring: Option<KeyringFacts>,
    /// QEMU does not find the user's key, which `rbd` is given; only looked for where QEMU opens a disk of the guest's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qemu_keyring: Option<NoKeyForQemu>,
    /// How far this node gets on the way to its monitors; only looked for where they could not be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub way: Option<Way>,
    /// When its keyring was last written, seconds since 1970; only looked for where a kernel client of the cluster is
    /// dead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keyring_written: Option<u64>,
}

/// A disk and what Ceph says of its image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DiskFacts {
    /// The disk in the guest's config.
    #[serde(flatten)]
    pub disk: Disk,
    /// What Ceph says; `None` where there is no image to look for.
    pub reading: Option<ImageReading>,
    /// The device that PVE's link to the image leads to: `rbd0`.
    #[serde(default)]
    pub linked_device: Option<String>,
    /// What `rbd map` takes by default for the image (`rbd_default_map_options`); only looked for where the kernel opens
    /// it and a kernel client of its cluster is dead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub map_options: Option<Reading<String>>,
    /// Other guests whose configs name the same image.
    pub shared_with: Vec<u32>,
    /// rbd-mirror's daemons at the image's pool; only looked for where a mirrored primary image is watched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror_daemons: Option<Reading<Vec<Watcher>>>,
    /// What the cluster's manager may be doing with the image; only looked for where somebody watches it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manager: Option<Manager>,
    /// What speaks for the life of the owner of the image's lock; only looked for where it does not watch the image and
    /// nothing else tells ([`crate::diagnose::owner`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lock_owner: Option<OwnerLook>,
}

/// A look for a client at all images of the pools that guests of this node use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct OwnerLook {
    /// The images that it watches.
    pub open: Vec<String>,
    /// How many images were looked at.
    pub looked_at: usize,
    /// What could not be looked at, and why.
    pub unread: Vec<String>,
    /// How long ago this node first saw it without any watch, in seconds; 0 by the first look.
    pub unwatched_for: u64,
    /// How long an OSD keeps the watch of a client that it does not hear of, in seconds (`osd_client_watch_timeout`).
    pub watch_timeout: u64,
}

impl Survey {
    /// Which image a disk is; `None` where PVE cannot parse the volume's name, or its cluster is not known.
    pub fn identity<'a>(&'a self, disk: &'a DiskFacts) -> Option<ImageIdentity<'a>> {
        let id = match &disk.reading {
            Some(ImageReading::Found(facts)) => Some(facts.id.as_str()),
            _ => None,
        };
        let fsid = &self.cluster_of(disk)?.known()?.fsid;
        let Disk { pool, namespace, image, .. } = &disk.disk;
        Some(ImageIdentity { fsid, pool, namespace: namespace.as_deref(), name: image.as_deref()?, id })
    }

    /// Whether a disk is this image.
    pub fn is_of(&self, disk: &DiskFacts, image: ImageIdentity<'_>) -> Same {
        self.identity(disk).map_or(Same::No, |own| own.same(image))
    }

    /// What was seen of this very image, whatever its name leads to by now; `None` where it is not certain that a disk is it.
    pub fn image(&self, image: ImageIdentity<'_>) -> Option<&ImageFacts> {
        let disk = self.disks.iter().find(|disk| self.is_of(disk, image) == Same::Yes)?;
        match &disk.reading {
            Some(ImageReading::Found(facts)) => Some(facts),
            _ => None,
        }
    }

    /// Where this node's kernel has the disk's image mapped, snapshots left aside: those are read-only.
    pub fn mapped(&self, disk: &DiskFacts) -> Reading<Vec<Mapping>> {
        let is_disk = |m: &&Mapping| self.is_mapping_of(disk, m);
        match &self.node.kernel.mappings {
            Reading::Known(all) => Reading::Known(all.iter().filter(is_disk).cloned().collect()),
            Reading::Unknown(failure) => Reading::Unknown(failure.clone()),
        }
    }

    fn is_mapping_of(&self, disk: &DiskFacts, mapping: &Mapping) -> bool {
        let gone = disk.reading.as_ref().is_some_and(ImageReading::is_gone);
        mapping.snapshot.is_none() && !gone && self.is_of(disk, mapping.identity()) != Same::No
    }

    /// What this node's kernel has mapped in the disk's place although it is another image: by its name, which that one
    /// had when it was mapped, or at the end of PVE's link. `rbd rename` does not ask whether an image is mapped.
    pub fn strangers<'a>(&'a self, disk: &'a DiskFacts) -> impl Iterator<Item = &'a Mapping> {
        let all = self.node.kernel.mappings.known().into_iter().flat_map(|all| all.iter());
        let (own, linked) = (self.identity(disk), disk.linked_number());
        // Of an image that was not read nobody can say that another one is not it.
        let read = match &disk.reading {
            Some(ImageReading::Found(_)) => true,
            other => other.as_ref().is_some_and(ImageReading::is_gone),
        };
        all.filter(move |mapping| {
            let theirs = ImageIdentity { id: None, ..mapping.identity() };
            let by_name = mapping.snapshot.is_none() && own.is_some_and(|own| own.may_be(theirs));
            read && (by_name || linked == Some(mapping.id)) && !self.is_mapping_of(disk, mapping)
        })
    }

    /// Mappings of this node whose kernel client is on the blocklist, each with the entry that says so.
    pub fn dead_mappings(&self) -> impl Iterator<Item = (&Mapping, &BlocklistEntry)> {
        let mappings = self.node.kernel.mappings.known().into_iter().flat_map(|all| all.iter());
        mappings.filter_map(|mapping| {
            // Two users may reach one cluster, and only one of them may read the blocklist.
            let here = self.clusters.iter().filter_map(Reading::known).filter(|c| c.fsid == mapping.fsid);
            let lists = here.filter_map(|cluster| cluster.blocklist.known());
            let entry = lists.filter_map(|list| entry_of(&mapping.client_address, list)).next()?;
            Some((mapping, entry))
        })
    }

    /// The address is a kernel client's of this node.
    pub fn is_kernels(&self, address: &str) -> bool {
        let mut mappings = self.node.kernel.mappings.known().into_iter().flat_map(|all| all.iter());
        mappings.any(|mapping| same_client(&mapping.client_address, address))
    }

    /// What is known of the cluster that a disk lies in.
    pub fn cluster_of(&self, disk: &DiskFacts) -> Option<&Reading<ClusterFacts>> {
        self.clusters.get(self.storages.get(&disk.disk.storage)?.cluster)
    }
}

impl Survey {
    /// Whether something got no answer, or none in time: to look again with more time may tell more.
    pub fn is_unanswered(&self) -> bool {
        let images = self.disks.iter().filter_map(|disk| match &disk.reading {
            Some(ImageReading::Unknown(failure)) => Some(failure),
            _ => None,
        });
        let mut failures = self.clusters.iter().filter_map(Reading::failure).chain(images);
        failures.any(|failure| failure.is_no_answer() || failure.origin == Origin::Late)
    }

    /// The same survey, taken in less time than a cluster is given to answer: what got no answer is not known, and that
    /// is nobody's fault but ours.
    #[must_use]
    pub fn without_blame(mut self) -> Self {
        let own = |failure: &mut Failure| {
            if failure.is_no_answer() {
                failure.origin = Origin::Late;
                failure.message = "there was not enough time left to wait for an answer".to_owned();
                failure.errno = None;
            }
        };
        for cluster in &mut self.clusters {
            if let Reading::Unknown(failure) = cluster {
                own(failure);
            }
        }
        for disk in &mut self.disks {
            if let Some(ImageReading::Unknown(failure)) = &mut disk.reading {
                own(failure);
            }
        }
        self
    }
}

impl NodeFacts {
    /// A client that has an image of the guest open is on this node.
    pub fn has_client(&self, address: &str) -> bool {
        self.whereabouts.get(address).is_some_and(|place| place.starts_with(THIS_NODE))
    }
}

impl DiskFacts {
    /// `N` of the `/dev/rbdN` that PVE's link to the image leads to.
    pub fn linked_number(&self) -> Option<u32> {
        device::number(self.linked_device.as_ref()?)
    }

    /// The disk's image; `None` where PVE cannot parse the volume's name.
    pub fn spec(&self) -> Option<Spec> {
        self.disk.spec()
    }
}
