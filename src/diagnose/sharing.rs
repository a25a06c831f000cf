//! This node's kernel clients, and which of them a disk's map would take.

use crate::ceph::cluster::BlocklistEntry;
use crate::ceph::image::ImageReading;
use crate::kernel::Mapping;
use crate::kernel::client::{Identity, PlainMap, Sharing};
use crate::observe::survey::{DiskFacts, Survey};
use crate::pve::guest::Access;
use crate::reading::{Failure, Reading};
use std::collections::BTreeMap;

/// One kernel client of this node, by what is mapped through it.
pub struct Client<'a> {
    /// Its address, `10.0.0.1:0/492268007`.
    pub address: &'a str,
    /// Its cluster's fsid.
    pub fsid: &'a str,
    /// What is mapped through it; at least one.
    pub mappings: Vec<&'a Mapping>,
    /// The entry of the blocklist that holds it: it is dead.
    pub entry: Option<&'a BlocklistEntry>,
    /// What the kernel knows it by.
    pub identity: Identity,
}

/// All kernel clients of this node, in the order of their addresses.
pub fn clients(survey: &Survey) -> Vec<Client<'_>> {
    let mut found: BTreeMap<(&str, &str), Vec<&Mapping>> = BTreeMap::new();
    for mapping in survey.node.kernel.mappings.known().into_iter().flat_map(|all| all.iter()) {
        found.entry((&mapping.client_address, &mapping.fsid)).or_default().push(mapping);
    }
    let dead: BTreeMap<u32, &BlocklistEntry> =
        survey.dead_mappings().map(|(mapping, entry)| (mapping.id, entry)).collect();
    let clients = found.into_iter().filter_map(|((address, fsid), mappings)| {
        let entry = mappings.iter().find_map(|mapping| dead.get(&mapping.id).copied());
        // All of them tell the same client; one whose options could not be read tells less.
        let identities = mappings.iter().map(|mapping| Identity::of_mapping(mapping));
        let identity = identities.min_by_key(Identity::doubts)?;
        Some(Client { address, fsid, mappings, entry, identity })
    });
    clients.collect()
}

impl Client<'_> {
    /// In words: `client at 10.0.0.1:0/5`, where there is another that maps share also by what it was mapped with:
    /// `client with rxbounce at 10.0.0.1:0/6`.
    pub fn told(&self, all: &[Self]) -> String {
        format!("client{} at {}", self.with(all), self.address)
    }

    /// The words of [`Self::told`] that tell it from others: ` with rxbounce`, or none.
    pub fn with(&self, all: &[Self]) -> String {
        let shared = |other: &&Self| other.fsid == self.fsid && !other.identity.is_private();
        let mut others = all.iter().filter(shared).filter(|other| other.address != self.address).peekable();
        let several = others.peek().is_some();
        let users = others.any(|other| other.identity.user() != self.identity.user());
        let name = self.identity.user().filter(|_| users).map(|user| format!("name={user}"));
        let options = Some(self.identity.told()).filter(|options| !options.is_empty());
        let words: Vec<String> = name.into_iter().chain(options).collect();
        match words.as_slice() {
            [] if several && self.identity.doubts() == 0 => " without options".to_owned(),
            [] => String::new(),
            words => format!(" with {}", words.join(", ")),
        }
    }
}

/// Whether a map of the disk, made as PVE makes it, would take the client. `all` are this node's clients.
pub fn takes(survey: &Survey, disk: &DiskFacts, client: &Client<'_>, all: &[Client<'_>]) -> Sharing {
    let Some(wanted) = wanted(survey, disk) else {
        return Sharing::No("the kernel does not map it".to_owned());
    };
    let sharing = wanted.takes(&client.identity);
    if sharing != Sharing::Yes {
        return sharing;
    }
    // The kernel takes the one of two that has the key; which, it does not show.
    let twin = all.iter().find(|other| {
        (other.address, other.fsid) != (client.address, client.fsid)
            && wanted.takes(&other.identity) == Sharing::Yes
    });
    if let Some(twin) = twin {
        let why = format!("the client at {} looks like it, so their keys are not the same", twin.address);
        return Sharing::Unknown(why);
    }
    let written = survey.storages.get(&disk.disk.storage).and_then(|storage| storage.keyring_written);
    let last = client.mappings.iter().map(|mapping| mapping.made_at).max().flatten();
    match (written, last) {
        (Some(written), Some(last)) if written > last => {
            Sharing::Unknown("the storage's keyring was written after the client's last map".to_owned())
        }
        _ => Sharing::Yes,
    }
}

/// What a map of the disk asks the kernel for; `None` where there is nothing that the kernel would map, or its cluster is
/// not known.
fn wanted(survey: &Survey, disk: &DiskFacts) -> Option<Identity> {
    let there = matches!(disk.reading, Some(ImageReading::Found(_) | ImageReading::Unknown(_)));
    let storage = survey.storages.get(&disk.disk.storage)?;
    let cluster = survey.cluster_of(disk)?.known()?;
    let unread = |what: &str| Failure::new(format!("read {what}"), "it was not looked for");
    let no_options = Reading::Unknown(unread("rbd_default_map_options"));
    let no_release = Reading::Unknown(unread("the release of rbd"));
    let map = PlainMap {
        fsid: &cluster.fsid,
        user: &storage.connection.user,
        keyring: storage.connection.keyring.is_some(),
        rxbounce: rxbounce(survey, disk),
        defaults: disk.map_options.as_ref().unwrap_or(&no_options),
        release: survey.node.rbd_release.as_ref().unwrap_or(&no_release),
    };
    (there && disk.disk.access == Access::Krbd).then(|| Identity::of_map(&map))
}

/// PVE maps the disks of Windows guests with `rxbounce` (bug 5779; libpve-storage-perl 9.0.16).
pub fn rxbounce(survey: &Survey, disk: &DiskFacts) -> bool {
    disk.disk.krbd_storage && survey.guest.is_windows()
}
