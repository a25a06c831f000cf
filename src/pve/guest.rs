//! A guest and its RBD disks, as its config and storage.cfg describe them.

use super::config::{self, KeyValue, Section};
use super::drive::{self, Bus, Drive, Key, container_key, vm_key};
use super::hosts::is_dns_name;
use super::node::GuestFile;
use super::perl::{boolean, excerpt, is_true, lossy};
use super::property::{self, Schema, ValueType};
use super::storage::StorageConfig;
use super::volume::{content_type, is_cloudinit, rbd_name, split_volid};
use super::words::{Dropped, Kind, Note};
use crate::rbd::spec::Spec;
use crate::reading::Failure;
use crate::sys::root::Root;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};

/// Who opens a disk when the guest starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// The node's kernel, by `rbd map`.
    Krbd,
    /// QEMU opens it, through librbd: no map.
    Librbd,
}

/// What a disk is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// An ordinary disk, which is all that a container has.
    Disk,
    /// The EFI variables, `efidisk0`.
    Efi,
    /// `tpmstate0`: always mapped by the kernel.
    Tpm,
    /// The cloud-init image: PVE opens it before the hook is called.
    Cloudinit,
    /// Any other `media=cdrom`.
    Cdrom,
    /// The memory of a hibernated guest.
    Vmstate,
    /// A container's root file system.
    Rootfs,
    /// A container's mount point.
    Mountpoint,
}

/// One RBD volume of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Disk {
    /// The config key: `scsi0`, `efidisk0`, `vmstate`, `rootfs`, `mp3`.
    pub key: String,
    /// The volume as PVE holds it: `ceph:base-100-disk-0/vm-101-disk-0`.
    pub volid: String,
    /// The storage's id in storage.cfg.
    pub storage: String,
    /// The storage's pool.
    pub pool: String,
    /// The storage's RBD namespace.
    pub namespace: Option<String>,
    /// The image's name; `None` where PVE cannot parse the volume name.
    pub image: Option<String>,
    /// The parent part of a linked clone's volume name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// The storage has `krbd 1`.
    pub krbd_storage: bool,
    /// Who opens it.
    pub access: Access,
    /// What it is for.
    pub role: Role,
    /// It is in a CD drive (`media=cdrom`).
    #[serde(default)]
    pub cdrom: bool,
    /// The guest only reads it (`ro=1`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// PVE opens it before it calls the pre-start hook: the cloud-init image, a container's volume on a krbd storage.
    #[serde(default)]
    pub before_hook: bool,
    /// PVE 9.2 does not see this disk, and why.
    pub pve_drops: Option<Dropped>,
}

impl Disk {
    /// The disk's image; `None` where PVE cannot parse the volume's name.
    pub fn spec(&self) -> Option<Spec> {
        let Self { pool, namespace, image, .. } = self;
        Some(Spec { pool: pool.clone(), namespace: namespace.clone(), image: image.clone()? })
    }
}

/// Why PVE refuses a start before it opens any volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum RefusalKind {
    /// The storage is not in storage.cfg, or PVE removed it there.
    StorageUnknown,
    /// The storage's plugin cannot parse the volume's name.
    VolumeNameInvalid,
    /// The storage may not hold this kind of volume.
    ContentMissing,
    /// The storage has `disable`.
    StorageDisabled,
    /// The storage's `nodes` does not name this node.
    StorageNotOnNode,
}

/// Why PVE will refuse the start over one volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Refusal {
    /// The volume's key in the config: `scsi0`, `rootfs`.
    pub key: String,
    /// The volume id: `ceph:vm-516-disk-0`.
    pub volid: String,
    /// The storage's id.
    pub storage: String,
    /// Which rule refuses it.
    pub kind: RefusalKind,
    /// What PVE says of it in its task log.
    pub message: String,
    /// The storage's section is of this type, which PVE itself does not have. A plugin may, and then PVE refuses nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub foreign_type: Option<String>,
}

/// A guest as its config file describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Guest {
    /// The guest's number (VMID).
    pub vmid: u32,
    /// Virtual machine or container.
    pub kind: Kind,
    /// The node whose directory holds the config: the guest's owner.
    pub node: String,
    /// `name` or `hostname`.
    pub name: Option<String>,
    /// The `lock` property, any text; see [`Guest::locked`].
    pub lock: Option<String>,
    /// It is a template.
    pub template: bool,
    /// PVE starts it at boot.
    #[serde(default)]
    pub onboot: bool,
    /// The volume id of its hookscript.
    pub hookscript: Option<String>,
    /// The snippets that Proxmox VE makes the cloud-init image from (`cicustom`), by what each is for: `user`, `network`, …
    /// Empty without a cloud-init image: then they are not looked at.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub cicustom: BTreeMap<String, String>,
    /// The guest's system, as PVE names it (`win11`, `l26`).
    pub ostype: Option<String>,
    /// The type of a VM's machine, as its config has it (`q35`, `pc-q35-9.2+pve1`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// What tells a VM from another one that has had its number: the `uuid` of `smbios1`, which PVE gives to each new one
    /// and each clone, and leaves at that in snapshots, migrations and restores. Containers have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Its RBD volumes, in PVE's order.
    pub disks: Vec<Disk>,
    /// Why PVE would refuse the start before it opens anything, in PVE's order.
    pub refusals: Vec<Refusal>,
    /// What else is odd in the files.
    pub notes: Vec<Note>,
    /// PVE's own parser dies on this config, and why: no start can succeed, and to PVE the guest has no volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parser_dies: Option<Note>,
}

/// `ostype` values of Windows guests (`PVE::QemuServer::Helpers::windows_version`).
const WINDOWS: [&str; 9] = ["wxp", "w2k", "w2k3", "w2k8", "wvista", "win7", "win8", "win10", "win11"];

impl Guest {
    /// PVE's command line tool for it.
    pub fn tool(&self) -> &'static str {
        match self.kind {
            Kind::Qemu => "qm",
            Kind::Lxc => "pct",
        }
    }

    /// What the HA manager calls it: `vm:516`.
    pub fn ha_type(&self) -> &'static str {
        match self.kind {
            Kind::Qemu => "vm",
            Kind::Lxc => "ct",
        }
    }

    /// PVE maps a Windows guest's disks with `rxbounce`.
    pub fn is_windows(&self) -> bool {
        self.kind == Kind::Qemu && self.ostype.as_deref().is_some_and(|ostype| WINDOWS.contains(&ostype))
    }

    /// The lock that keeps PVE from starting the guest; to Perl an empty one and `0` are none.
    pub fn locked(&self) -> Option<&str> {
        self.lock.as_deref().filter(|lock| is_true(lock.as_bytes()))
    }
}

/// A guest's config, and where it comes from.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// The guest's number.
    pub vmid: u32,
    /// Virtual machine or container.
    pub kind: Kind,
    /// The node whose directory holds the config, and on which the guest would start.
    pub node: &'a str,
    /// The config's path, for notes.
    pub file: &'a str,
    /// The config's bytes.
    pub config: &'a [u8],
}

/// Reads a guest from its config file, for a start on the node that owns it.
pub fn load(root: &Root, file: &GuestFile, storages: &StorageConfig) -> Result<Guest, Failure> {
    let config = file.read(root)?;
    let GuestFile { vmid, kind, node, file } = file;
    Ok(read(&Source { vmid: *vmid, kind: *kind, node, file, config: &config }, storages))
}

/// A guest as PVE 9.2 sees it, and what it would drop.
pub fn read(source: &Source<'_>, storages: &StorageConfig) -> Guest {
    let config = config::read(source.kind, source.file, source.config);
    let lines = volume_lines(source.kind, &config.main);
    let mut guest = Guest {
        vmid: source.vmid,
        kind: source.kind,
        node: source.node.to_owned(),
        name: None,
        lock: None,
        template: false,
        onboot: false,
        hookscript: None,
        cicustom: BTreeMap::new(),
        ostype: None,
        machine: None,
        uuid: None,
        disks: Vec::new(),
        refusals: Vec::new(),
        notes: config.notes,
        parser_dies: config.fatal,
    };
    settings(&mut guest, &config.main);
    if !lines.iter().any(|line| line.trouble.is_none() && line.is_cloudinit_of(source)) {
        guest.cicustom.clear();
    }
    args_note(&mut guest, source.file, &config.main);
    for line in &lines {
        guest.notes.extend(line.note(source.file));
        let fatal =
            guest.parser_dies.as_ref().map(|note| Dropped { why: note.text.clone(), unknown_option: false });
        guest.disks.extend(line.disk(source, storages, fatal));
    }
    if guest.parser_dies.is_none() {
        guest.refusals = refusals(source, storages, &lines);
    }
    guest.notes.sort_by_key(|note| note.line);
    guest
}

/// Every volume that PVE starts a guest with, as `(storage, volid)`: cheap, to find guests that share an image.
pub fn volumes(kind: Kind, config: &[u8]) -> Vec<(String, String)> {
    let config = config::read(kind, "", config);
    let lines = volume_lines(kind, &config.main);
    let held = lines.iter().filter(|line| line.trouble.is_none());
    held.filter_map(|line| Some((line.volume()?.0.to_owned(), lossy(line.drive.file)))).collect()
}

/// Every drive that PVE starts a guest with, volume or path: its key, and what the line names.
pub(crate) fn drives(kind: Kind, main: &Section) -> Vec<(String, String)> {
    let held = volume_lines(kind, main).into_iter().filter(|line| line.trouble.is_none());
    held.map(|line| (line.key, lossy(line.drive.file))).collect()
}

/// A line that is about a volume.
struct VolumeLine<'c> {
    /// Its place in PVE's order.
    order: u32,
    /// Its number in the file.
    number: usize,
    key: String,
    bus: Bus,
    drive: Drive<'c>,
    /// Why PVE has no volume from it.
    trouble: Option<Trouble>,
}

/// Why a line gives PVE no volume.
enum Trouble {
    /// PVE drops it.
    Dropped(Dropped),
    /// A later line of the same key took its place.
    Replaced(usize),
}

impl VolumeLine<'_> {
    /// The storage and the volume's name, if the line names a volume and no path.
    fn volume(&self) -> Option<(&str, &[u8])> {
        split_volid(self.drive.file)
    }

    /// The volume that `PVE::QemuServer::Cloudinit` writes before a start; it looks only for the VM's own number in the name.
    fn is_cloudinit_of(&self, source: &Source<'_>) -> bool {
        let own = format!("vm-{}-cloudinit", source.vmid);
        let has_own = |(_, name): (&str, &[u8])| name.windows(own.len()).any(|part| part == own.as_bytes());
        source.kind == Kind::Qemu && self.bus != Bus::Vmstate && self.volume().is_some_and(has_own)
    }

    fn note(&self, file: &str) -> Option<Note> {
        let text = match self.trouble.as_ref()? {
            Trouble::Dropped(dropped) => {
                format!("PVE drops {}: {}", excerpt(self.key.as_bytes()), dropped.why)
            }
            Trouble::Replaced(by) => format!("{} is there again in line {by}, which counts", self.key),
        };
        Some(Note { file: file.to_owned(), line: self.number, text })
    }

    /// The RBD volume of this line, if it names one. What PVE drops is only shown if its name is an image's.
    fn disk(&self, source: &Source<'_>, storages: &StorageConfig, fatal: Option<Dropped>) -> Option<Disk> {
        let pve_drops = match &self.trouble {
            Some(Trouble::Replaced(_)) => return None,
            Some(Trouble::Dropped(dropped)) => Some(dropped.clone()),
            None => fatal,
        };
        let (storage, name) = self.volume()?;
        let section = storages.rbd(storage)?;
        let parsed = rbd_name(name);
        if pve_drops.is_some() && parsed.is_none() {
            return None;
        }
        let role = self.role();
        Some(Disk {
            key: self.key.clone(),
            volid: lossy(self.drive.file),
            storage: storage.to_owned(),
            pool: section.pool.clone(),
            namespace: section.namespace.clone(),
            image: parsed.map(|name| lossy(name.image)),
            base: parsed.and_then(|name| name.base).map(lossy),
            krbd_storage: section.krbd,
            access: access(source.kind, role, section.krbd),
            role,
            cdrom: self.drive.cdrom,
            read_only: self.drive.read_only,
            before_hook: before_hook(source, role, section.krbd, name),
            pve_drops,
        })
    }

    fn role(&self) -> Role {
        match self.bus {
            Bus::Efidisk => Role::Efi,
            Bus::Tpmstate => Role::Tpm,
            Bus::Vmstate => Role::Vmstate,
            Bus::Rootfs => Role::Rootfs,
            Bus::Mountpoint => Role::Mountpoint,
            _ if is_cloudinit(self.drive.file) => Role::Cloudinit,
            _ if self.drive.cdrom => Role::Cdrom,
            _ => Role::Disk,
        }
    }
}

/// The TPM state and a container's volumes are mapped whatever the storage says.
fn access(kind: Kind, role: Role, krbd: bool) -> Access {
    if krbd || kind == Kind::Lxc || role == Role::Tpm { Access::Krbd } else { Access::Librbd }
}

/// `PVE::QemuServer::Cloudinit` looks only for the VM's own number in the name; containers activate before the hook.
fn before_hook(source: &Source<'_>, role: Role, krbd: bool, name: &[u8]) -> bool {
    let own = format!("vm-{}-cloudinit", source.vmid);
    match source.kind {
        Kind::Lxc => krbd,
        Kind::Qemu if role == Role::Vmstate => false,
        Kind::Qemu => name.windows(own.len()).any(|part| part == own.as_bytes()),
    }
}

/// The main section's volume lines in PVE's order. Of a doubled key the last counts: in a VM the last that the schema
/// takes, in a container the last of all.
fn volume_lines(kind: Kind, main: &Section) -> Vec<VolumeLine<'_>> {
    let mut lines: Vec<VolumeLine<'_>> = Vec::new();
    let mut held: HashMap<u32, usize> = HashMap::new();
    for entry in &main.entries {
        let key = match kind {
            Kind::Qemu => vm_key(&entry.key),
            Kind::Lxc => container_key(&entry.key),
        };
        let (line, takes_place) = match key {
            Key::Other => continue,
            Key::NoSlot(bus, order) => (no_slot(entry, bus, order), false),
            Key::Volume(bus, order) => volume_line(kind, entry, bus, order),
        };
        let earlier = if takes_place { held.insert(line.order, lines.len()) } else { None };
        if let Some(earlier) = earlier.and_then(|index| lines.get_mut(index)) {
            earlier.trouble = Some(Trouble::Replaced(entry.line));
        }
        lines.push(line);
    }
    lines.sort_by_key(|line| (line.order, line.trouble.is_some()));
    lines
}

/// A volume line, and whether it takes the place of an earlier one of its key.
fn volume_line(kind: Kind, entry: &KeyValue, bus: Bus, order: u32) -> (VolumeLine<'_>, bool) {
    let mut drive = drive::read(bus, &entry.value);
    let takes_place = kind == Kind::Lxc || drive.rejected.is_none();
    let trouble = drive.rejected.take().or_else(|| drive.unusable.take()).map(Trouble::Dropped);
    let key = if entry.key == "cdrom" { "ide2".to_owned() } else { entry.key.clone() };
    (VolumeLine { order, number: entry.line, key, bus, drive, trouble }, takes_place)
}

fn no_slot(entry: &KeyValue, bus: Bus, order: u32) -> VolumeLine<'_> {
    let why = format!("PVE 9.2 has no {}", excerpt(entry.key.as_bytes()));
    let trouble = Some(Trouble::Dropped(Dropped { why, unknown_option: false }));
    let drive = drive::read(bus, &entry.value);
    VolumeLine { order, number: entry.line, key: entry.key.clone(), bus, drive, trouble }
}

/// The settings besides volumes that matter, as PVE holds them.
fn settings(guest: &mut Guest, main: &Section) {
    for entry in &main.entries {
        let value = match guest.kind {
            Kind::Qemu => vm_setting(&entry.key, &entry.value),
            Kind::Lxc => Some(&entry.value[..]),
        };
        let Some(value) = value else { continue };
        match (guest.kind, entry.key.as_str()) {
            (_, "lock") => guest.lock = Some(lossy(value)),
            (_, "hookscript") => guest.hookscript = Some(lossy(value)),
            (_, "ostype") => guest.ostype = Some(lossy(value)),
            (Kind::Qemu, "machine") => guest.machine = machine(value),
            (Kind::Qemu, "smbios1") => guest.uuid = uuid(value),
            (Kind::Qemu, "cicustom") => guest.cicustom = cicustom(value).unwrap_or_default(),
            (_, "template") => guest.template = boolean(value).unwrap_or(is_true(value)),
            (_, "onboot") => guest.onboot = boolean(value).unwrap_or(is_true(value)),
            (Kind::Qemu, "name") | (Kind::Lxc, "hostname") => guest.name = Some(lossy(value)),
            _ => {}
        }
    }
}

/// `user=local:snippets/u.yaml,network=…` (`PVE::QemuServer`, `$cicustom_fmt`); `None` where PVE drops the line.
fn cicustom(value: &[u8]) -> Option<BTreeMap<String, String>> {
    const VOLUME: ValueType = ValueType::Valid(|value| split_volid(value).is_some(), "a volume");
    const PARTS: &[(&str, ValueType)] =
        &[("meta", VOLUME), ("network", VOLUME), ("user", VOLUME), ("vendor", VOLUME)];
    let schema = Schema { default_key: "", groups: &[PARTS], required: &[] };
    let found = property::parse(&schema, value);
    if found.rejected().is_some() {
        return None;
    }
    let named = PARTS.iter().filter_map(|(part, _)| Some(((*part).to_owned(), lossy(found.get(part)?))));
    Some(named.collect())
}

/// The type in `machine: q35`, `machine: type=pc-q35-9.2+pve1,viommu=virtio`.
fn machine(value: &[u8]) -> Option<String> {
    let mut parts = value.split(|byte| *byte == b',');
    let named = parts.clone().find_map(|part| part.strip_prefix(b"type="));
    named.or_else(|| parts.find(|part| !part.contains(&b'='))).map(lossy)
}

/// `uuid=b3b9…` of `smbios1`; the only one of its values that is never in base64 (`PVE::QemuServer`, `$smbios1_fmt`).
fn uuid(value: &[u8]) -> Option<String> {
    let found = value.split(|byte| *byte == b',').find_map(|part| part.strip_prefix(b"uuid="))?;
    let is_uuid = found.len() == 36 && found.iter().all(|byte| byte.is_ascii_hexdigit() || *byte == b'-');
    is_uuid.then(|| lossy(found).to_lowercase())
}

/// A VM's setting after PVE's check, if it passes. A container's passes even if it fails: PVE only warns.
fn vm_setting<'v>(key: &str, value: &'v [u8]) -> Option<&'v [u8]> {
    let valid = match key {
        "hookscript" => split_volid(value).is_some(),
        "name" => is_dns_name(value),
        "template" => boolean(value).is_some(),
        _ => true,
    };
    if !valid || value.contains(&b'\r') {
        return None;
    }
    let quoted = matches!(key, "lock" | "ostype") && value.len() > 1;
    let bare = value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).filter(|_| quoted);
    Some(bare.unwrap_or(value))
}

/// `args` reaches QEMU as it is: a disk in there is in no list of PVE's.
fn args_note(guest: &mut Guest, file: &str, main: &Section) {
    let args = main.entries.iter().rfind(|entry| guest.kind == Kind::Qemu && entry.key == "args");
    let Some(args) = args.filter(|args| args.value.windows(4).any(|part| part == b"rbd:")) else { return };
    let text = "args names an RBD image for QEMU; neither PVE nor this tool looks after it".to_owned();
    guest.notes.push(Note { file: file.to_owned(), line: args.line, text });
}

/// Why PVE refuses the start before it opens a volume.
///
/// For a VM first what `PVE::QemuServer::get_current_vm_volumes` says, then `PVE::Storage::activate_storage`. For a
/// container only the latter, and what comes of a name that RBD cannot parse.
fn refusals(source: &Source<'_>, storages: &StorageConfig, lines: &[VolumeLine<'_>]) -> Vec<Refusal> {
    let held: Vec<_> = lines.iter().filter(|line| line.trouble.is_none()).collect();
    let named = held.iter().filter_map(|line| volume_refusal(source.kind, storages, line));
    let placed = held.iter().filter_map(|line| storage_refusal(source.node, storages, line));
    named.chain(placed).collect()
}

fn volume_refusal(kind: Kind, storages: &StorageConfig, line: &VolumeLine<'_>) -> Option<Refusal> {
    let (storage, name) = line.volume()?;
    let refuse = |kind, message| Some(line.refusal(storage, kind, message));
    let Some(rules) = storages.rules(storage) else {
        let mut refusal =
            line.refusal(storage, RefusalKind::StorageUnknown, format!("storage '{storage}' does not exist"));
        refusal.foreign_type = storages.foreign.get(storage).cloned();
        return Some(refusal);
    };
    let content = match content_type(rules.storage_type, name) {
        Ok(content) => content,
        // what other storages make of a container's volume is not looked into
        Err(_) if kind == Kind::Lxc && rules.storage_type != "rbd" => return None,
        Err(message) => return refuse(RefusalKind::VolumeNameInvalid, message),
    };
    if kind == Kind::Lxc || rules.content.iter().any(|held| held == content) {
        return None;
    }
    let message = format!("storage '{storage}' does not support content-type '{content}'");
    refuse(RefusalKind::ContentMissing, message)
}

fn storage_refusal(node: &str, storages: &StorageConfig, line: &VolumeLine<'_>) -> Option<Refusal> {
    let (storage, _) = line.volume()?;
    let rules = storages.rules(storage)?;
    if rules.disabled {
        let message = format!("storage '{storage}' is disabled");
        return Some(line.refusal(storage, RefusalKind::StorageDisabled, message));
    }
    if rules.nodes.is_none_or(|nodes| nodes.iter().any(|name| name == node)) {
        return None;
    }
    let message = format!("storage '{storage}' is not available on node '{node}'");
    Some(line.refusal(storage, RefusalKind::StorageNotOnNode, message))
}

impl VolumeLine<'_> {
    fn refusal(&self, storage: &str, kind: RefusalKind, message: String) -> Refusal {
        let (key, volid, storage) = (self.key.clone(), lossy(self.drive.file), storage.to_owned());
        Refusal { key, volid, storage, kind, message, foreign_type: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pve::storage;

    const STORAGES: &str = "rbd: ceph\n\tpool p\n\tnamespace ns\n\nrbd: kernel\n\tkrbd 1\n\nrbd: off\n\tdisable\n\n\
        rbd: far\n\tnodes n2\n\nrbd: roots\n\tcontent rootdir\n\nplugin: odd\n\n\
        nfs: iso\n\tserver s\n\texport /x\n\tcontent iso\n";

    fn read_as(kind: Kind, config: &str) -> Guest {
        let storages = storage::parse("storage.cfg", STORAGES.as_bytes());
        let source = Source { vmid: 100, kind, node: "n1", file: "100.conf", config: config.as_bytes() };
        read(&source, &storages)
    }

    fn vm(config: &str) -> Guest {
        read_as(Kind::Qemu, config)
    }

    fn ct(config: &str) -> Guest {
        read_as(Kind::Lxc, config)
    }

    /// `key=image` of what PVE holds.
    fn held(guest: &Guest) -> Vec<String> {
        let held = guest.disks.iter().filter(|disk| disk.pve_drops.is_none());
        held.map(|disk| format!("{}={}", disk.key, disk.image.as_deref().unwrap_or("?"))).collect()
    }

    fn refused(guest: &Guest) -> Vec<&str> {
        guest.refusals.iter().map(|refusal| refusal.message.as_str()).collect()
    }

    #[test]
    fn a_vm_is_told_from_another_of_its_number_by_its_uuid() {
        let uuid = "4ED1CBC9-0000-4000-8000-00000000000A";
        let of = |smbios: &str| vm(&format!("smbios1: {smbios}\n")).uuid;
        assert_eq!(of(&format!("uuid={uuid},manufacturer=UUID=,base64=1")), Some(uuid.to_lowercase()));
        assert_eq!(of(&format!("base64=1,uuid={uuid}")), Some(uuid.to_lowercase()));
        assert_eq!([of("manufacturer=x"), of("uuid=4ed1cbc9"), of("uuid=")], [None, None, None]);
        assert_eq!(ct(&format!("smbios1: uuid={uuid}\n")).uuid, None);
        let with_snapshot =
            format!("smbios1: uuid={uuid}\n[s]\nsmbios1: uuid=4ed1cbc9-0000-4000-8000-00000000000b\n");
        assert_eq!(vm(&with_snapshot).uuid, Some(uuid.to_lowercase()));
    }

    #[test]
    fn a_guest_is_loaded_from_its_file() {
        let tree = tempfile::tempdir().unwrap();
        let root = Root::new(tree.path());
        let file =
            GuestFile { vmid: 100, kind: Kind::Qemu, node: "n2".to_owned(), file: "/100.conf".to_owned() };
        let storages = storage::parse("storage.cfg", STORAGES.as_bytes());
        assert_eq!(load(&root, &file, &storages).unwrap_err().errno, Some(2));
        std::fs::write(root.path("/100.conf"), "scsi0: far:vm-100-a\n").unwrap();
        let guest = load(&root, &file, &storages).unwrap();
        assert_eq!((guest.node.as_str(), guest.disks.len(), guest.refusals.len()), ("n2", 1, 0));
    }

    #[test]
    fn disks_come_in_pves_order() {
        let guest = vm("vmstate: ceph:vm-100-state-x\ntpmstate0: ceph:vm-100-t\nefidisk0: ceph:vm-100-e\n\
            sata0: ceph:vm-100-a\nvirtio1: ceph:vm-100-v\nscsi10: ceph:vm-100-d\nscsi9: ceph:vm-100-c\n\
            cdrom: ceph:vm-100-cloudinit,media=cdrom\nide0: ceph:vm-100-i,media=cdrom\nunused0: ceph:vm-100-u\n");
        let keys: Vec<_> = guest.disks.iter().map(|disk| disk.key.as_str()).collect();
        assert_eq!(
            keys,
            ["ide0", "ide2", "scsi9", "scsi10", "virtio1", "sata0", "efidisk0", "tpmstate0", "vmstate"]
        );
        let roles: Vec<_> = guest.disks.iter().map(|disk| disk.role).collect();
        let disk = Role::Disk;
        assert_eq!(
            roles,
            [Role::Cdrom, Role::Cloudinit, disk, disk, disk, disk, Role::Efi, Role::Tpm, Role::Vmstate]
        );
        let mapped: Vec<_> = guest.disks.iter().filter(|disk| disk.access == Access::Krbd).collect();
        assert_eq!(mapped.len(), 1, "the TPM state alone");
        let before: Vec<_> =
            guest.disks.iter().filter(|disk| disk.before_hook).map(|disk| &disk.key).collect();
        assert_eq!(before, ["ide2"]);
    }

    #[test]
    fn krbd_storages_and_containers_are_mapped() {
        assert_eq!(vm("scsi0: kernel:vm-100-d").disks[0].access, Access::Krbd);
        let guest = ct("rootfs: ceph:vm-100-r\nmp0: kernel:vm-100-m,mp=/m\n");
        assert!(guest.disks.iter().all(|disk| disk.access == Access::Krbd));
        assert_eq!(guest.disks.iter().map(|disk| disk.before_hook).collect::<Vec<_>>(), [false, true]);
        assert_eq!(guest.disks[0].role, Role::Rootfs);
    }

    #[test]
    fn of_a_doubled_key_the_last_valid_line_counts_in_a_vm() {
        assert_eq!(held(&vm("scsi0: ceph:vm-1-a\nscsi0: ceph:vm-1-b\n")), ["scsi0=vm-1-b"]);
        assert_eq!(held(&vm("scsi0: ceph:vm-1-a\nscsi0: ceph:vm-1-b,bad=1\n")), ["scsi0=vm-1-a"]);
        assert_eq!(held(&vm("ide2: ceph:vm-1-a\ncdrom: junk\n")), ["ide2=vm-1-a"]);
        let conflict = vm("scsi0: ceph:vm-1-a\nscsi0: ceph:vm-1-b,iops=1,iops_rd=1\n");
        assert_eq!(held(&conflict), [""; 0], "PVE keeps the line and finds the conflict later");
        assert_eq!(conflict.disks.len(), 1);
    }

    #[test]
    fn of_a_doubled_key_the_last_line_counts_in_a_container() {
        assert_eq!(held(&ct("mp0: ceph:vm-1-a,mp=/a\nmp0: ceph:vm-1-b,mp=/b\n")), ["mp0=vm-1-b"]);
        let guest = ct("mp0: ceph:vm-1-a,mp=/a\nmp0: ceph:vm-1-b\n");
        assert_eq!(held(&guest), [""; 0]);
        assert_eq!(guest.disks[0].pve_drops.as_ref().unwrap().why, "no mp");
    }

    #[test]
    fn dropped_lines_stay_in_sight() {
        let guest = vm("scsi0: ceph:vm-1-a,future=1\nscsi1: ceph:vm-1-b,cache=bogus\nscsi31: ceph:vm-1-c\n\
            scsi2: ceph:junk,future=1\n");
        let dropped: Vec<_> = guest.disks.iter().map(|disk| disk.pve_drops.as_ref().unwrap()).collect();
        assert_eq!(
            dropped.iter().map(|dropped| dropped.unknown_option).collect::<Vec<_>>(),
            [true, false, false]
        );
        assert_eq!(dropped[0].why, "unknown option future");
        assert_eq!(guest.notes.iter().map(|note| note.line).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert_eq!(guest.refusals, []);
        assert_eq!(volumes(Kind::Qemu, b"scsi0: ceph:vm-1-a,future=1"), []);
    }

    #[test]
    fn only_the_main_section_counts() {
        let text = "scsi0: ceph:vm-1-a\n[PENDING]\nscsi1: ceph:vm-1-b\n[snap]\nscsi2: ceph:vm-1-c\n";
        assert_eq!(held(&vm(text)), ["scsi0=vm-1-a"]);
        assert_eq!(volumes(Kind::Qemu, text.as_bytes()), [("ceph".to_owned(), "ceph:vm-1-a".to_owned())]);
    }

    #[test]
    fn why_pve_refuses_a_vm() {
        let guest = vm("scsi0: nope:vm-1-a\nscsi1: ceph:junk\nscsi2: roots:vm-1-a\nide0: iso:vm-1-x\n\
            ide1: off:vm-1-a\nide2: far:vm-1-a\nide3: /dev/sda\nscsi3: iso:1/x.raw\n");
        let expected = [
            "unable to parse directory volume name 'vm-1-x'",
            "storage 'nope' does not exist",
            "unable to parse rbd volume name 'junk'",
            "storage 'roots' does not support content-type 'images'",
            "storage 'iso' does not support content-type 'images'",
            "storage 'off' is disabled",
            "storage 'far' is not available on node 'n1'",
        ];
        assert_eq!(refused(&guest), expected);
        assert!(held(&guest).contains(&"scsi1=?".to_owned()));
    }

    #[test]
    fn why_pve_refuses_a_container() {
        let guest =
            ct("rootfs: nope:vm-1-a\nmp0: ceph:junk,mp=/a\nmp1: iso:x,mp=/b\nmp2: off:vm-1-a,mp=/c\n");
        let expected = [
            "storage 'nope' does not exist",
            "unable to parse rbd volume name 'junk'",
            "storage 'off' is disabled",
        ];
        assert_eq!(refused(&guest), expected);
    }

    #[test]
    fn a_plugins_storage_may_exist() {
        let guest = vm("scsi0: odd:vm-1-a\n");
        assert_eq!(guest.refusals[0].foreign_type.as_deref(), Some("plugin"));
    }

    #[test]
    fn settings_of_a_vm() {
        let guest = vm("lock: \"backup\"\ntemplate: Yes\nhookscript: foo\nhookscript: local:snippets/x\n\
            name: a_b\nname: web1\nostype: win11\nhookscript: foo\ntemplate: maybe\n");
        assert_eq!(guest.lock.as_deref(), Some("backup"));
        assert!(guest.template);
        assert_eq!(guest.hookscript.as_deref(), Some("local:snippets/x"));
        assert_eq!((guest.name.as_deref(), guest.ostype.as_deref()), (Some("web1"), Some("win11")));
        assert_eq!(vm("lock: \r").lock, None);
        assert_eq!(vm("lock: \"\"").locked(), None);
        assert_eq!(vm("lock: whatever").locked(), Some("whatever"));
    }

    #[test]
    fn cicustom_counts_with_a_cloud_init_image_on_any_storage() {
        let named = |text: &str| vm(text).cicustom.into_iter().collect::<Vec<_>>();
        let line = "cicustom: user=iso:snippets/u.yaml,network=iso:snippets/n.yaml\n";
        let pair = |part: &str, volid: &str| (part.to_owned(), volid.to_owned());
        let expected = [pair("network", "iso:snippets/n.yaml"), pair("user", "iso:snippets/u.yaml")];
        assert_eq!(named(&format!("{line}ide2: ceph:vm-100-cloudinit,media=cdrom\n")), expected);
        assert_eq!(named(&format!("{line}ide2: iso:100/vm-100-cloudinit.qcow2,media=cdrom\n")), expected);
        assert_eq!(named(line), []);
        assert_eq!(named(&format!("{line}ide2: ceph:vm-101-cloudinit,media=cdrom\n")), []);
        for dropped in ["cicustom: user=nothing\n", "cicustom: user=iso:a,warp=iso:b\n", "cicustom: iso:a\n"]
        {
            assert_eq!(named(&format!("{dropped}ide2: ceph:vm-100-cloudinit\n")), [], "{dropped}");
        }
    }

    #[test]
    fn settings_of_a_container() {
        let guest = ct("lock: \"backup\"\ntemplate: maybe\nhookscript: foo\nhostname: ct1\n");
        assert_eq!(guest.lock.as_deref(), Some("\"backup\""));
        assert!(guest.template && !ct("template: no").template);
        assert_eq!((guest.hookscript.as_deref(), guest.name.as_deref()), (Some("foo"), Some("ct1")));
        assert_eq!(ct("lock: \r").lock.as_deref(), Some("\r"));
    }

    #[test]
    fn a_config_that_kills_pves_parser_has_no_volumes() {
        let guest = ct("rootfs: ceph:vm-1-a\nsnapshots: x\nmp0: nope:x,mp=/a\n[snap]\n");
        assert_eq!(guest.refusals, []);
        assert_eq!(guest.parser_dies.as_ref().map(|note| note.line), Some(4));
        assert_eq!(held(&guest), [""; 0]);
        assert_eq!(guest.disks.len(), 1);
    }

    #[test]
    fn args_are_only_noted() {
        let guest = vm("args: -drive file=rbd:p/vm-1-a\n");
        assert_eq!((guest.disks.len(), guest.notes.len()), (0, 1));
    }
}
