//! A guest with its storages, from PVE's files.

use crate::pve::guest::{self, Guest};
use crate::pve::node::{GuestFile, all_guests, find_guest};
use crate::pve::storage::{self, StorageConfig};
use crate::pve::volume::rbd_name;
use crate::rbd::spec::Spec;
use crate::reading::Failure;
use crate::sys::root::Root;
use anyhow::{Result, bail};
use std::collections::{BTreeMap, BTreeSet};

/// Reads a guest, on whichever node it is, and the storages of the cluster.
///
/// # Errors
/// There is no such guest, or a file cannot be read.
pub fn load(root: &Root, vmid: u32) -> Result<(Guest, StorageConfig)> {
    let Some(file) = find_guest(root, vmid)? else {
        bail!(
            "there is no guest {vmid}: neither /etc/pve/nodes/*/qemu-server/{vmid}.conf nor \
             /etc/pve/nodes/*/lxc/{vmid}.conf exists"
        );
    };
    let storages = storage::load(root)?;
    let guest = guest::load(root, &file, &storages)?;
    Ok((guest, storages))
}

/// Which guests of the cluster name which images, by way of which storage, and on which node each guest is. An image
/// is named within a cluster, and two storages may lead to two clusters: the name alone does not say which is meant.
#[derive(Debug, Default)]
pub struct Index {
    images: BTreeMap<Spec, Vec<(GuestFile, String)>>,
}

impl Index {
    /// Reads every guest's config. One that has just gone or cannot be read names nothing: this is only reported.
    pub fn read(root: &Root, storages: &StorageConfig) -> Result<Self, Failure> {
        let mut index = Self::default();
        for file in all_guests(root)? {
            for (spec, storage) in images(root, &file, storages) {
                index.images.entry(spec).or_default().push((file.clone(), storage));
            }
        }
        Ok(index)
    }

    /// The guests that name an image of this name, and the storages by which they do; each pair once.
    pub fn naming(&self, spec: &Spec) -> impl Iterator<Item = (&GuestFile, &str)> {
        self.images.get(spec).into_iter().flatten().map(|(guest, storage)| (guest, storage.as_str()))
    }
}

/// The images that a guest names and the storages by which it does, each once.
fn images(root: &Root, file: &GuestFile, storages: &StorageConfig) -> BTreeSet<(Spec, String)> {
    let Ok(config) = file.read(root) else { return BTreeSet::new() };
    let spec = |(id, volid): &(String, String)| {
        let storage = storages.rbd(id)?;
        let name = volid.split_once(':')?.1;
        let image = String::from_utf8_lossy(rbd_name(name.as_bytes())?.image).into_owned();
        let spec = Spec { pool: storage.pool.clone(), namespace: storage.namespace.clone(), image };
        Some((spec, id.clone()))
    };
    guest::volumes(file.kind, &config).iter().filter_map(spec).collect()
}

/// A guest whose config cannot be read.
#[derive(Debug, Clone)]
pub struct Unread {
    /// The config that could not be read.
    pub file: GuestFile,
    /// Why not, in one line with the errno.
    pub error: String,
}
