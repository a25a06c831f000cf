//! What a guest's config asks of the node that it starts on, besides its RBD disks: where Proxmox VE refuses a start for
//! the lack of it. [`needs`] and [`lacks`] are pure; [`Place::look`] reads what a node has.
//!
//! From `PVE::QemuServer` (`config_to_command`: processors), `PVE::Network` (`tap_plug`: bridges), `PVE::QemuServer::PCI`
//! and `USB`, `PVE::Mapping::*` (devices), `PVE::Storage` (volumes), `PVE::GuestHelpers` (hookscripts).

use super::config::{self, Section};
use super::guest::drives;
use super::perl::lossy;
use super::sections::sections;
use super::snippet;
use super::storage::StorageConfig;
use super::volume::split_volid;
use super::words::Kind;
use crate::reading::{Failure, Reading};
use crate::sys::root::Root;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Error;
use std::path::Path;

/// One thing that a config asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// The config's key: `net0`, `hostpci1`, `cores`.
    pub key: String,
    /// What the guest needs.
    pub what: What,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// At least so many processors: PVE starts no VM with more than the node has.
    Processors(u64),
    /// A bridge, or a VNet of the software-defined network.
    Bridge(String),
    /// PCI devices by their addresses on one node.
    Pci(Vec<String>),
    /// A USB device by its port or its numbers.
    Usb(String),
    /// A device or directory that each node says for itself which one it is.
    Mapped(Mapping, String),
    /// A file or directory.
    File {
        /// Its path, as Proxmox VE names it.
        path: String,
        /// The volume that it is; `None` for a path in the config.
        volid: Option<String>,
        /// It is on a storage that each node has for itself and holds the guest's own data.
        own: bool,
    },
    /// A volume on a storage that each node has for itself, and that is no directory.
    Local {
        /// The volume id.
        volid: String,
        /// The storage's id.
        storage: String,
        /// The storage's type.
        storage_type: String,
    },
    /// A hookscript that Proxmox VE can call; the first of two calls the other.
    Hookscript(Result<String, String>, String),
}

/// What is mapped for the whole cluster under one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mapping {
    /// PCI devices, `/etc/pve/mapping/pci.cfg`.
    Pci,
    /// USB devices, `/etc/pve/mapping/usb.cfg`.
    Usb,
    /// A directory, for virtiofs.
    Directory,
}

impl Mapping {
    const ALL: [Self; 3] = [Self::Pci, Self::Usb, Self::Directory];

    /// The file that has them.
    fn file(self) -> &'static str {
        match self {
            Self::Pci => "/etc/pve/mapping/pci.cfg",
            Self::Usb => "/etc/pve/mapping/usb.cfg",
            Self::Directory => "/etc/pve/mapping/directory.cfg",
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Pci => "PCI",
            Self::Usb => "USB",
            Self::Directory => "directory",
        }
    }
}

/// What a guest's config asks for. `earlier` is the hookscript that ours calls, by the hookscript's volume.
pub fn needs(
    kind: Kind,
    config: &[u8],
    storages: &StorageConfig,
    earlier: impl Fn(&str) -> Option<String>,
) -> Vec<Need> {
    let main = config::read(kind, "", config).main;
    let mut needs = Vec::new();
    let mut add = |key: &str, what: What| needs.push(Need { key: key.to_owned(), what });
    if let (Kind::Qemu, Some(number)) = (kind, processors(&main)) {
        add("cores", What::Processors(number));
    }
    for entry in last_of_each(&main) {
        let value = lossy(&entry.value);
        match (kind, entry.key.trim_end_matches(|c: char| c.is_ascii_digit())) {
            (_, "net") => {
                if let Some(bridge) = option(&value, "bridge") {
                    add(&entry.key, What::Bridge(bridge.to_owned()));
                }
            }
            (Kind::Qemu, "hostpci") => {
                let host = option(&value, "host").or_else(|| first(&value));
                match (option(&value, "mapping"), host) {
                    (Some(id), _) => add(&entry.key, What::Mapped(Mapping::Pci, id.to_owned())),
                    (None, Some(host)) => {
                        add(&entry.key, What::Pci(host.split(';').map(str::to_ascii_lowercase).collect()));
                    }
                    (None, None) => {}
                }
            }
            (Kind::Qemu, "usb") => {
                let host = option(&value, "host").or_else(|| first(&value));
                match (option(&value, "mapping"), host) {
                    (Some(id), _) => add(&entry.key, What::Mapped(Mapping::Usb, id.to_owned())),
                    (None, Some(host)) if !host.eq_ignore_ascii_case("spice") => {
                        add(&entry.key, What::Usb(host.to_ascii_lowercase()));
                    }
                    _ => {}
                }
            }
            (Kind::Qemu, "virtiofs") => {
                if let Some(id) = option(&value, "dirid").or_else(|| first(&value)) {
                    add(&entry.key, What::Mapped(Mapping::Directory, id.to_owned()));
                }
            }
            (_, "hookscript") => {
                for volid in [Some(value.clone()), earlier(&value)].into_iter().flatten() {
                    add(&entry.key, What::Hookscript(snippet::path(storages, &volid), volid.clone()));
                }
            }
            _ => {}
        }
    }
    for (key, file) in drives(kind, &main) {
        if let Some(what) = drive(&file, storages) {
            add(&key, what);
        }
    }
    needs
}

/// Of doubled keys the last line.
fn last_of_each(main: &Section) -> impl Iterator<Item = &config::KeyValue> {
    let last: BTreeMap<&str, usize> =
        main.entries.iter().enumerate().map(|(index, entry)| (entry.key.as_str(), index)).collect();
    let entries = main.entries.iter().enumerate();
    entries.filter(move |(index, entry)| last.get(entry.key.as_str()) == Some(index)).map(|(_, entry)| entry)
}

/// `sockets` times `cores`; `None` where neither is said.
fn processors(main: &Section) -> Option<u64> {
    let number = |key: &str| {
        let entry = main.entries.iter().rfind(|entry| entry.key == key)?;
        lossy(&entry.value).parse::<u64>().ok().filter(|number| *number > 0)
    };
    let (sockets, cores) = (number("sockets").or_else(|| number("smp")), number("cores"));
    let one = sockets.is_none() && cores.is_none();
    (!one).then(|| sockets.unwrap_or(1).saturating_mul(cores.unwrap_or(1)))
}

/// `key=value` of a property string.
fn option<'v>(value: &'v str, key: &str) -> Option<&'v str> {
    value.split(',').find_map(|part| part.trim().strip_prefix(key)?.strip_prefix('='))
}

/// The part of a property string that has no key.
fn first(value: &str) -> Option<&str> {
    value.split(',').map(str::trim).find(|part| !part.is_empty() && !part.contains('='))
}

/// What a drive asks for, if it is not on a storage that every node reaches alike.
fn drive(file: &str, storages: &StorageConfig) -> Option<What> {
    if file.starts_with('/') {
        return Some(What::File { path: file.to_owned(), volid: None, own: false });
    }
    let (storage, name) = split_volid(file.as_bytes())?;
    let other = storages.others.get(storage)?;
    let name = std::str::from_utf8(name).ok()?;
    let volid = file.to_owned();
    match (&other.path, other.shared) {
        (Some(path), shared) => {
            let (directory, own) = match name.split_once('/')? {
                ("iso", _) => ("template/", false),
                ("vztmpl", _) => return None,
                _ => ("images/", !shared),
            };
            let inside = !name.split('/').any(|part| part == "..");
            // A linked clone's own file is the last part of its name.
            let name = if own || directory == "images/" { linked(name) } else { name.to_owned() };
            inside.then(|| What::File { path: format!("{path}/{directory}{name}"), volid: Some(volid), own })
        }
        (None, false) => {
            let (storage, storage_type) = (storage.to_owned(), other.storage_type.clone());
            Some(What::Local { volid, storage, storage_type })
        }
        (None, true) => None,
    }
}

/// `100/base-100-disk-0.qcow2/101/vm-101-disk-0.qcow2`: the last two parts.
fn linked(name: &str) -> String {
    let parts: Vec<&str> = name.split('/').collect();
    parts[parts.len().saturating_sub(2)..].join("/")
}

/// What a node has.
#[derive(Debug, Clone)]
pub struct Place {
    /// The node's name.
    pub node: String,
    /// How many processors it has (`/proc/cpuinfo`).
    pub processors: Reading<u64>,
    /// The names of its network devices, bridges among them (`/sys/class/net`).
    pub networks: Reading<BTreeSet<String>>,
    /// Its PCI devices: `VENDOR:DEVICE` by address, `0000:01:00.0`.
    pub pci: Reading<BTreeMap<String, String>>,
    /// Its USB devices: `VENDOR:DEVICE` by port, `1-2.1`.
    pub usb: Reading<BTreeMap<String, String>>,
    /// What is mapped on it: of each name the entries for this node.
    pub mapped: BTreeMap<Mapping, Reading<BTreeMap<String, Vec<MappingEntry>>>>,
    /// The guests that are replicated to it.
    pub replicas: Reading<BTreeSet<u32>>,
}

/// A mapping's entry for one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappingEntry {
    /// Where the device or directory is; empty where only `id` says which one it is.
    pub path: String,
    /// `VENDOR:DEVICE` in small letters.
    pub id: Option<String>,
}

impl Place {
    /// Reads what a node has. What a test's root does not have is the running kernel's to say.
    pub fn look(root: &Root, node: &str) -> Self {
        let at = |path: &str| {
            let own = root.path(path);
            if own.exists() { own } else { Path::new(path).to_owned() }
        };
        let devices = |path: &str, vendor: &str, device: &str| match names(&root.path(path)) {
            Ok(names) => {
                let hex = |name: &str, file: &str| {
                    let text = std::fs::read_to_string(root.path(format!("{path}/{name}/{file}"))).ok()?;
                    Some(text.trim().trim_start_matches("0x").to_lowercase())
                };
                let id = |name: String| {
                    let id = format!("{}:{}", hex(&name, vendor)?, hex(&name, device)?);
                    Some((name, id))
                };
                Reading::Known(names.into_iter().filter_map(id).collect())
            }
            Err(error) if error.errno == Some(nix::libc::ENOENT) => Reading::Known(BTreeMap::new()),
            Err(error) => Reading::Unknown(error),
        };
        let cpuinfo = at("/proc/cpuinfo");
        let mapped = |mapping: Mapping| match read(root, mapping.file()) {
            Ok(text) => Reading::Known(entries(&text, node)),
            Err(error) => Reading::Unknown(error),
        };
        Self {
            node: node.to_owned(),
            processors: match std::fs::read_to_string(&cpuinfo) {
                Ok(text) => Reading::Known(text.lines().filter(|line| is_processor(line)).count() as u64),
                Err(error) => Reading::Unknown(Failure::path("read", &cpuinfo, &error)),
            },
            networks: names(&at("/sys/class/net")).map(|names| names.into_iter().collect()).into(),
            pci: devices("/sys/bus/pci/devices", "vendor", "device"),
            usb: devices("/sys/bus/usb/devices", "idVendor", "idProduct"),
            mapped: Mapping::ALL.into_iter().map(|mapping| (mapping, mapped(mapping))).collect(),
            replicas: read(root, "/etc/pve/replication.cfg").map(|text| replicas(&text, node)).into(),
        }
    }
}

fn is_processor(line: &str) -> bool {
    line.strip_prefix("processor").is_some_and(|rest| rest.trim_start().starts_with(':'))
}

/// The names in a directory.
fn names(path: &Path) -> Result<Vec<String>, Failure> {
    let told = |error: Error| Failure::path("list", path, &error);
    let entries = std::fs::read_dir(path).map_err(told)?;
    let named = |entry: std::io::Result<std::fs::DirEntry>| entry.map(|entry| entry.file_name());
    let names: Vec<_> = entries.map(named).collect::<Result<_, _>>().map_err(told)?;
    Ok(names.into_iter().filter_map(|name| name.into_string().ok()).collect())
}

/// A file's text; none where there is no such file.
fn read(root: &Root, file: &str) -> Result<String, Failure> {
    root.read_text(file).map(Option::unwrap_or_default)
}

/// `map node=pve1,path=0000:01:00.0,id=10de:1eb8`: of each name the entries for a node.
fn entries(text: &str, node: &str) -> BTreeMap<String, Vec<MappingEntry>> {
    let of = |section: super::sections::Section| {
        let here = section.all("map").filter(|map| option(map, "node") == Some(node));
        let entries = here.map(|map| MappingEntry {
            path: option(map, "path").unwrap_or_default().to_lowercase(),
            id: option(map, "id").map(|id| id.replace("0x", "").to_lowercase()),
        });
        (section.id.clone(), entries.collect())
    };
    sections(text).into_iter().map(of).collect()
}

/// The guests that `local: 100-0` jobs replicate to a node (`PVE::ReplicationConfig`).
fn replicas(text: &str, node: &str) -> BTreeSet<u32> {
    let jobs = sections(text)
        .into_iter()
        .filter(|job| job.get("target") == Some(node) && !job.is_set("disable") && !job.is_set("remove_job"));
    jobs.filter_map(|job| job.id.split('-').next()?.parse().ok()).collect()
}

/// How sure it is that the start fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// The guest starts, and is not quite what it was.
    Warning,
    /// It is not known.
    Unknown,
    /// Proxmox VE refuses the start.
    Refused,
}

/// Something that a node does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lack {
    /// The key in the guest's config that asks for it.
    pub key: String,
    /// What is missing, in words.
    pub text: String,
    /// What it does to a start.
    pub weight: Weight,
}

/// What of its needs a guest does not find at a place. `home` is the guest's own node; `there` says whether a file is
/// there, `runs` whether Proxmox VE would call a snippet.
pub fn lacks(
    needs: &[Need],
    (vmid, home): (u32, &str),
    place: &Place,
    there: &dyn Fn(&str) -> Reading<bool>,
    runs: &dyn Fn(&str, &str) -> Result<(), String>,
) -> Vec<Lack> {
    let judge = Judge { vmid, home, place, there, runs };
    let lack = |need: &Need| {
        let (weight, text) = judge.lack(&need.what)?;
        Some(Lack { key: need.key.clone(), text, weight })
    };
    needs.iter().filter_map(lack).collect()
}

struct Judge<'a> {
    vmid: u32,
    home: &'a str,
    place: &'a Place,
    there: &'a dyn Fn(&str) -> Reading<bool>,
    runs: &'a dyn Fn(&str, &str) -> Result<(), String>,
}

type Lacking = Option<(Weight, String)>;

impl Judge<'_> {
    fn lack(&self, what: &What) -> Lacking {
        let node = &self.place.node;
        let is_home = self.home == node;
        match what {
            What::Processors(number) => self.known(&self.place.processors, |there| {
                let text = format!("{number} processors are asked for, and this node has {there}");
                (number > there).then_some((Weight::Refused, text))
            }),
            What::Bridge(name) => self.known(&self.place.networks, |networks| {
                let text = format!("bridge '{name}' does not exist");
                (!networks.contains(name)).then_some((Weight::Refused, text))
            }),
            What::Pci(addresses) => self.known(&self.place.pci, |devices| {
                let missing = addresses.iter().find(|address| !devices.keys().any(|at| is_at(at, address)));
                match missing {
                    Some(address) => Some((Weight::Refused, format!("no PCI device found for '{address}'"))),
                    None if is_home => None,
                    None => Some((
                        Weight::Unknown,
                        format!(
                            "PCI device {} is an address of {}; whether {node} has the same device there is not known \
                             (a mapping would tell)",
                            addresses.join(";"),
                            self.home
                        ),
                    )),
                }
            }),
            What::Usb(device) => self.known(&self.place.usb, |devices| {
                let there = devices.iter().any(|(port, id)| port == device || *id == device.replace("0x", ""));
                let text = format!("there is no USB device {device}; the guest starts without it");
                (!there).then_some((Weight::Warning, text))
            }),
            What::Mapped(kind, id) => self.mapped(*kind, id),
            What::File { path, volid, own } => self.file(path, volid.as_deref(), *own && !is_home),
            What::Local { .. } if is_home => None,
            What::Local { volid, storage, storage_type } => Some(self.local(volid, storage, storage_type)),
            What::Hookscript(Ok(path), volid) => {
                (self.runs)(path, volid).err().map(|why| (Weight::Refused, why))
            }
            What::Hookscript(Err(why), _) => Some((Weight::Refused, why.clone())),
        }
    }

    fn known<T>(&self, reading: &Reading<T>, judge: impl FnOnce(&T) -> Lacking) -> Lacking {
        match reading {
            Reading::Known(value) => judge(value),
            Reading::Unknown(failure) => Some((Weight::Unknown, failure.to_string())),
        }
    }

    fn mapped(&self, kind: Mapping, id: &str) -> Lacking {
        let none = Reading::Known(BTreeMap::new());
        self.known(self.place.mapped.get(&kind).unwrap_or(&none), |mapped| {
            let entries = mapped.get(id).map(Vec::as_slice).unwrap_or_default();
            if entries.is_empty() {
                let text = format!("the {} mapping '{id}' has no entry for {}", kind.word(), self.place.node);
                return Some((Weight::Refused, text));
            }
            entries.iter().find_map(|entry| self.entry(kind, id, entry))
        })
    }

    /// Proxmox VE looks whether each entry still is what it was when it was made.
    fn entry(&self, kind: Mapping, id: &str, entry: &MappingEntry) -> Lacking {
        let changed = |seen: &str| {
            let said = entry.id.as_deref()?;
            let text = format!("the {} mapping '{id}' is for {said}, and there is {seen}", kind.word());
            (said != seen).then_some((Weight::Refused, text))
        };
        let gone = |what: &str| {
            Some((Weight::Refused, format!("the {} mapping '{id}': there is no {what}", kind.word())))
        };
        match kind {
            Mapping::Directory => self.file(&entry.path, None, false),
            Mapping::Pci => self.known(&self.place.pci, |devices| {
                let mut paths = entry.path.split(';');
                paths.find_map(|path| match devices.iter().find(|(at, _)| is_at(at, path)) {
                    Some((_, seen)) => changed(seen),
                    None => gone(path),
                })
            }),
            Mapping::Usb => self.known(&self.place.usb, |devices| match (&entry.id, entry.path.as_str()) {
                (Some(id), "") if devices.values().any(|seen| seen == id) => None,
                (Some(id), "") => gone(id),
                (_, port) => devices.get(port).map_or_else(|| gone(port), |seen| changed(seen)),
            }),
        }
    }

    fn file(&self, path: &str, volid: Option<&str>, of_another: bool) -> Lacking {
        let name = volid.map_or_else(|| path.to_owned(), |volid| format!("{volid} ({path})"));
        match (self.there)(path) {
            Reading::Known(false) => Some((Weight::Refused, format!("{name} does not exist"))),
            Reading::Known(true) if of_another => Some((
                Weight::Unknown,
                format!(
                    "there is a {name}, but its storage is not shared: the guest's own is on {}",
                    self.home
                ),
            )),
            Reading::Known(true) => None,
            Reading::Unknown(failure) => Some((Weight::Unknown, failure.to_string())),
        }
    }

    fn local(&self, volid: &str, storage: &str, storage_type: &str) -> (Weight, String) {
        if storage_type == "zfspool" {
            match &self.place.replicas {
                Reading::Known(replicas) if !replicas.contains(&self.vmid) => {}
                Reading::Known(_) => {
                    let text = format!("{volid} is a replica here, as old as the last replication");
                    return (Weight::Warning, text);
                }
                Reading::Unknown(failure) => return (Weight::Unknown, failure.to_string()),
            }
        }
        let text = format!(
            "{volid} is on {}: the storage '{storage}' ({storage_type}) is not shared, each node has one of its own",
            self.home
        );
        (Weight::Refused, text)
    }
}

/// A device's full address begins with what a config says, with or without its domain and its function.
fn is_at(full: &str, said: &str) -> bool {
    let said = said.trim();
    !said.is_empty()
        && (full.starts_with(said) || full.strip_prefix("0000:").is_some_and(|at| at.starts_with(said)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pve::storage;

    const STORAGES: &str = "dir: local\n\tpath /var/lib/vz\n\tcontent iso,snippets,images\n\nlvmthin: local-lvm\n\tvgname pve\n\tthinpool data\n\n\
        zfspool: tank\n\tpool tank\n\nlvm: san\n\tvgname san\n\tshared 1\n\nnfs: nas\n\tserver s\n\texport /x\n\nrbd: ceph\n\tpool rbd\n";

    fn asked(kind: Kind, config: &str) -> Vec<Need> {
        let storages = storage::parse("storage.cfg", STORAGES.as_bytes());
        let earlier =
            |volid: &str| (volid == "local:snippets/ours").then(|| "local:snippets/first".to_owned());
        needs(kind, config.as_bytes(), &storages, earlier)
    }

    fn known<V: Clone, const N: usize>(pairs: [(&str, V); N]) -> Reading<BTreeMap<String, V>> {
        Reading::Known(pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    }

    fn place() -> Place {
        let pci = "gpu\n\tmap node=pve2,path=0000:01:00.0,id=10de:1eb8\n\tmap node=pve1,path=0000:09:00.0,id=10de:1eb8\n\n\
            nic\n\tmap node=pve1,path=0000:03:00,id=8086:1572\n\nold\n\tmap node=pve2,path=0000:01:00.0,id=10de:ffff\n\n\
            gone\n\tmap node=pve2,path=0000:07:00.0,id=10de:1eb8\n";
        let usb = "key\n\tmap node=pve2,id=0529:0001\n\nport\n\tmap node=pve2,path=1-2,id=0529:0001\n\nlost\n\tmap node=pve2,id=dead:beef\n";
        let directories = "share\n\tmap node=pve2,path=/srv/share\n";
        let texts = [pci, usb, directories];
        let mapped = Mapping::ALL
            .into_iter()
            .zip(texts)
            .map(|(mapping, text)| (mapping, Reading::Known(entries(text, "pve2"))));
        Place {
            node: "pve2".to_owned(),
            processors: Reading::Known(8),
            networks: Reading::Known(["lo", "vmbr0"].map(str::to_owned).into()),
            pci: known([("0000:01:00.0", "10de:1eb8".to_owned())]),
            usb: known([("1-2", "0529:0001".to_owned())]),
            mapped: mapped.collect(),
            replicas: Reading::Known(replicas("local: 100-0\n\ttarget pve2\n", "pve2")),
        }
    }

    /// What a guest of pve1 lacks on pve2, or one of pve2 itself.
    fn lack(kind: Kind, home: &str, config: &str) -> Vec<(Weight, String)> {
        let there = |path: &str| Reading::Known(path.contains("there") || path == "/srv/share");
        let runs = |path: &str, volid: &str| {
            if path.ends_with("/ours") { Ok(()) } else { Err(format!("script '{volid}' does not exist")) }
        };
        let lacks = lacks(&asked(kind, config), (100, home), &place(), &there, &runs);
        lacks.into_iter().map(|lack| (lack.weight, format!("{}: {}", lack.key, lack.text))).collect()
    }

    fn one(config: &str) -> (Weight, String) {
        let mut all = lack(Kind::Qemu, "pve1", config);
        assert_eq!(all.len(), 1, "{config}: {all:?}");
        all.remove(0)
    }

    #[test]
    fn a_guest_that_finds_everything_lacks_nothing() {
        let config = "cores: 4\nsockets: 2\nnet0: virtio=BC:24:11:00:00:01,bridge=vmbr0,firewall=1\nhostpci0: mapping=gpu,pcie=1\n\
            usb0: mapping=key\nusb1: mapping=port\nusb2: spice\nvirtiofs0: share\nscsi0: ceph:vm-100-disk-0\nscsi1: san:vm-100-disk-1\n\
            scsi2: nas:100/vm-100-disk-2.qcow2\nide2: local:iso/there.iso,media=cdrom\nide0: none,media=cdrom\n";
        assert_eq!(lack(Kind::Qemu, "pve1", config), []);
    }

    #[test]
    fn processors_and_bridges() {
        let (weight, text) = one("cores: 4\nsockets: 3\n");
        assert_eq!(
            (weight, text.as_str()),
            (Weight::Refused, "cores: 12 processors are asked for, and this node has 8")
        );
        assert_eq!(one("net1: virtio,bridge=vmbr7,tag=3\n").1, "net1: bridge 'vmbr7' does not exist");
        let container = lack(Kind::Lxc, "pve1", "cores: 900\nnet0: name=eth0,bridge=vmbr1\n");
        assert_eq!(container, [(Weight::Refused, "net0: bridge 'vmbr1' does not exist".to_owned())]);
    }

    #[test]
    fn devices_by_mapping_and_by_address() {
        assert_eq!(one("hostpci0: mapping=nic\n").1, "hostpci0: the PCI mapping 'nic' has no entry for pve2");
        assert_eq!(one("hostpci0: mapping=none\n").0, Weight::Refused);
        assert_eq!(
            one("hostpci0: mapping=old\n").1,
            "hostpci0: the PCI mapping 'old' is for 10de:ffff, and there is 10de:1eb8"
        );
        assert_eq!(
            one("hostpci0: mapping=gone\n").1,
            "hostpci0: the PCI mapping 'gone': there is no 0000:07:00.0"
        );
        assert_eq!(one("usb0: mapping=lost\n").0, Weight::Refused);
        assert_eq!(one("virtiofs0: dirid=none\n").0, Weight::Refused);
        assert_eq!(one("hostpci0: 0000:02:00,pcie=1\n").1, "hostpci0: no PCI device found for '0000:02:00'");
        let (weight, text) = one("hostpci0: 01:00\n");
        assert!(weight == Weight::Unknown && text.contains("an address of pve1"), "{text}");
        assert_eq!(lack(Kind::Qemu, "pve2", "hostpci0: 01:00\n"), [], "its own node's address");
        assert_eq!(one("usb0: host=1234:5678\n").0, Weight::Warning, "QEMU starts without it");
    }

    #[test]
    fn volumes_that_only_the_guests_own_node_has() {
        let (weight, text) = one("scsi0: local-lvm:vm-100-disk-0,size=8G\n");
        assert!(weight == Weight::Refused && text.contains("local-lvm:vm-100-disk-0 is on pve1"), "{text}");
        assert_eq!(lack(Kind::Qemu, "pve2", "scsi0: local-lvm:vm-100-disk-0\n"), []);
        assert_eq!(one("scsi0: tank:vm-100-disk-0\n").0, Weight::Warning, "replicated");
        assert_eq!(
            one("ide2: local:iso/gone.iso,media=cdrom\n").1,
            "ide2: local:iso/gone.iso (/var/lib/vz/template/iso/gone.iso) does not exist"
        );
        assert_eq!(
            one("scsi0: local:100/there.qcow2\n").0,
            Weight::Unknown,
            "a file of that name, but whose?"
        );
        assert_eq!(one("scsi0: /dev/disk/by-id/ata-x\n").0, Weight::Refused);
        let container =
            lack(Kind::Lxc, "pve1", "rootfs: local-lvm:vm-100-disk-0,size=8G\nmp0: /srv/gone,mp=/x\n");
        assert_eq!(container.len(), 2, "{container:?}");
    }

    #[test]
    fn the_hookscript_and_the_one_that_it_calls() {
        assert_eq!(
            one("hookscript: local:snippets/ours\n").1,
            "hookscript: script 'local:snippets/first' does not exist"
        );
        assert_eq!(one("hookscript: none:snippets/x\n").0, Weight::Refused);
    }

    #[test]
    fn a_place_is_read_from_the_nodes_own_files() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        for (file, text) in [
            ("/proc/cpuinfo", "processor\t: 0\nmodel name\t: x\n\nprocessor\t: 1\nprocessors: no\n"),
            ("/sys/class/net/vmbr3/mtu", "1500\n"),
            ("/sys/bus/pci/devices/0000:01:00.0/vendor", "0x10DE\n"),
            ("/sys/bus/pci/devices/0000:01:00.0/device", "0x1eb8\n"),
            ("/sys/bus/usb/devices/1-2/idVendor", "0529\n"),
            ("/sys/bus/usb/devices/1-2/idProduct", "0001\n"),
            ("/sys/bus/usb/devices/1-2:1.0/bInterfaceClass", "03\n"),
            ("/etc/pve/mapping/pci.cfg", "gpu\n\tmap node=a,path=0000:01:00.0,id=0x10de:0x1EB8\n"),
            ("/etc/pve/replication.cfg", "local: 100-0\n\ttarget a\n\nlocal: 101-0\n\ttarget b\n"),
        ] {
            std::fs::create_dir_all(root.path(file).parent().unwrap()).unwrap();
            std::fs::write(root.path(file), text).unwrap();
        }
        let place = Place::look(&root, "a");
        assert_eq!(place.processors, Reading::Known(2));
        assert_eq!(place.networks, Reading::Known(["vmbr3".to_owned()].into()));
        assert_eq!(place.pci, known([("0000:01:00.0", "10de:1eb8".to_owned())]));
        assert_eq!(place.usb, known([("1-2", "0529:0001".to_owned())]));
        let entry = MappingEntry { path: "0000:01:00.0".to_owned(), id: Some("10de:1eb8".to_owned()) };
        assert_eq!(place.mapped[&Mapping::Pci], known([("gpu", vec![entry])]));
        assert_eq!(place.replicas, Reading::Known([100].into()));
        std::fs::write(root.path("/etc/pve/mapping/usb.cfg"), [0xff, 0xfe]).unwrap();
        assert!(Place::look(&root, "a").mapped[&Mapping::Usb].failure().is_some());
    }

    #[test]
    fn what_cannot_be_read_is_unknown() {
        let none = |_: &str| Reading::Unknown(Failure::errno("look", 5));
        let place = Place {
            processors: Reading::Unknown(Failure::errno("read", 5)),
            replicas: Reading::Unknown(Failure::errno("read", 5)),
            ..place()
        };
        let needs = asked(Kind::Qemu, "cores: 2\nscsi0: /dev/x\nscsi1: tank:vm-100-disk-0\n");
        let all = lacks(&needs, (100, "pve1"), &place, &none, &|_, _| Ok(()));
        assert_eq!(all.iter().map(|lack| lack.weight).collect::<Vec<_>>(), [Weight::Unknown; 3]);
    }
}
