//! What the watcher sees, as plain values.

use crate::ceph::keep::Answer;
use crate::kernel::Mapping;
use crate::pve::guest::Access;
use crate::rbd::spec::Spec;
use crate::reading::Reading;
use std::collections::BTreeSet;
use std::sync::Arc;

/// What this node's files and its kernel say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeLook {
    /// The guests that run here.
    pub guests: Reading<Guests>,
    /// What the kernel has mapped.
    pub mappings: Reading<Arc<Vec<Mapping>>>,
}

/// The guests that run here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Guests {
    /// Their RBD disks, those on storages that are off left out.
    pub disks: Vec<Disk>,
    /// Guests of which it could not be found out whether they run, or which disks they have.
    pub unsure: BTreeSet<u32>,
    /// Images on storages that are off: of those nothing is reported.
    pub off: BTreeSet<Spec>,
}

/// A disk of a guest that runs here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The guest's number.
    pub vmid: u32,
    /// The key of its config: `scsi0`.
    pub key: String,
    /// The storage's id.
    pub storage: String,
    /// How its cluster is reached, in words; one for all storages that share a connection.
    pub cluster: String,
    /// The image's pool, namespace and name.
    pub image: Spec,
    /// Who opens it.
    pub access: Access,
    /// It is open for writing, so that whoever has it open watches it.
    pub writes: bool,
}

/// What came of asking a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterLook {
    /// How it is reached, as in [`Disk::cluster`].
    pub cluster: String,
    /// What the cluster said, or why it could not be asked.
    pub answer: Reading<Answer>,
}
