//! The settings: `/etc/rbd-preflight/config.yaml` of this node over `/etc/pve/rbd-preflight.yaml` of the cluster.
//!
//! A file becomes a layer of optional keys; layers are laid over the built-in values for one guest, which gives
//! [`Resolved`]. Within a layer what is said of a storage goes over what is said in general, and what is said of a
//! guest over both. `packaging/config.yaml` describes every key for the administrator.

pub mod policy;

use crate::finding_codes::Code;
use crate::kernel::version::{PveTarget, pve_target};
use crate::rbd::features::{Changeable, Features};
use crate::sys::root::Root;
use anyhow::{Context, Result, bail};
use serde::de::{self, MapAccess, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;
use std::fmt;
use std::io::{ErrorKind, Read};
use std::marker::PhantomData;
use std::time::Duration;

/// The settings of all nodes; pmxcfs carries it around.
pub const CLUSTER_FILE: &str = "/etc/pve/rbd-preflight.yaml";
/// The settings of this node; they go over the cluster's.
pub const NODE_FILE: &str = "/etc/rbd-preflight/config.yaml";
/// A settings file is not larger than this many bytes (pmxcfs takes 1 MiB at most).
const LARGEST_FILE: u64 = 1 << 20;

/// How far the tool goes for a guest or for the disks of a storage. In order: a later one does more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The tool does nothing.
    Off,
    /// It reads and reports, and changes nothing.
    Check,
    /// It also changes what is safe to change.
    Repair,
}

/// What a fault of the tool itself does to a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// The guest starts as it would without the tool.
    Allow,
    /// The guest does not start.
    Block,
}

/// The features that a disk which the kernel opens should have turned on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// What Proxmox VE sets itself.
    Pve,
    /// These; checked to be ones that Proxmox VE would not undo on a kernel since 5.3.
    Set(Features),
}

/// What may be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MayChange {
    /// exclusive-lock, object-map, fast-diff, and what the kernel cannot map.
    pub features: bool,
    /// Journaling may be turned off where it stops a map and the image is not mirrored.
    pub journaling: bool,
    /// Object maps flagged invalid may be rebuilt.
    pub object_map: bool,
    /// A lock whose owner is gone may be taken over.
    pub locks: bool,
}

/// What holds for a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskSettings {
    /// How far the tool goes.
    pub mode: Mode,
    /// The features wanted on a disk that the kernel opens.
    pub krbd_features: Wanted,
    /// What may be changed.
    pub change: MayChange,
    /// Codes of findings that shall not stop a start; they are shown all the same.
    pub ignore: Vec<Code>,
}

/// What holds for one guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The most that any of its disks asks for: with `off` there is nothing to do at all.
    pub mode: Mode,
    /// What a fault of the tool does to the start.
    pub on_error: OnError,
    /// The whole hook is over after this.
    pub deadline: Duration,
    /// A check by hand is over after this.
    pub check_deadline: Duration,
    /// One `rbd` command is over after this.
    pub command_timeout: Duration,
    /// The cluster has to answer a connection within this.
    pub connect_timeout: Duration,
    /// Rebuilding object maps takes at most this in a hook, and at boot for all guests together; zero is never there.
    pub rebuild_deadline: Duration,
    /// How long to wait for a watcher that may already be dead (an OSD drops it after 30 s or a little more).
    pub watcher_grace: Duration,
    /// Before a start, disks that the kernel opens are mapped by the hook, all at once and with retries.
    pub map: bool,
    /// For disks of storages not in [`Resolved::storages`].
    pub general: DiskSettings,
    /// For disks of the storages asked for.
    pub storages: BTreeMap<String, DiskSettings>,
}

/// The settings files, read and checked.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Settings {
    layers: Vec<Layer>,
}

/// One settings file.
#[derive(Debug, Clone, PartialEq)]
struct Layer {
    file: String,
    general: Keys,
    storages: BTreeMap<String, DiskKeys>,
    guests: BTreeMap<u32, Keys>,
}

/// What a section says of a whole guest; [`Resolved`] says what the keys mean.
#[derive(Debug, Clone, Default, PartialEq)]
struct Keys {
    on_error: Option<OnError>,
    deadline: Option<Seconds<1, 3600>>,
    check_deadline: Option<Seconds<1, 3600>>,
    command_timeout: Option<Seconds<1, 3600>>,
    connect_timeout: Option<Seconds<1, 300>>,
    rebuild_deadline: Option<Seconds<0, 3600>>,
    watcher_grace: Option<Seconds<0, 600>>,
    map: Option<bool>,
    disk: DiskKeys,
}

/// What a section says of disks: all that the section of a storage may say.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct DiskKeys {
    mode: Option<Mode>,
    features: Option<FeatureKeys>,
    change: Option<ChangeKeys>,
    ignore: Option<Vec<Code>>,
}

/// `features:`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct FeatureKeys {
    krbd: Option<Wanted>,
}

/// `change:`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChangeKeys {
    features: Option<bool>,
    journaling: Option<bool>,
    object_map: Option<bool>,
    locks: Option<bool>,
}

/// A section as it stands in the file. Written flat twice over, since serde's `flatten` forgets line numbers and
/// does not go with `deny_unknown_fields`.
macro_rules! section {
    ($name:ident { $($extra:ident: $type:ty),* }) => {
        #[derive(Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct $name {
            mode: Option<Mode>,
            on_error: Option<OnError>,
            deadline: Option<Seconds<1, 3600>>,
            check_deadline: Option<Seconds<1, 3600>>,
            command_timeout: Option<Seconds<1, 3600>>,
            connect_timeout: Option<Seconds<1, 300>>,
            rebuild_deadline: Option<Seconds<0, 3600>>,
            watcher_grace: Option<Seconds<0, 600>>,
            map: Option<bool>,
            features: Option<FeatureKeys>,
            change: Option<ChangeKeys>,
            ignore: Option<Vec<Code>>,
            $($extra: Option<$type>),*
        }

        impl From<$name> for Keys {
            fn from(s: $name) -> Self {
                let disk = DiskKeys { mode: s.mode, features: s.features, change: s.change, ignore: s.ignore };
                Self {
                    on_error: s.on_error,
                    deadline: s.deadline,
                    check_deadline: s.check_deadline,
                    command_timeout: s.command_timeout,
                    connect_timeout: s.connect_timeout,
                    rebuild_deadline: s.rebuild_deadline,
                    watcher_grace: s.watcher_grace,
                    map: s.map,
                    disk,
                }
            }
        }
    };
}

section!(GuestSection {});
section!(FileSection { storages: Unique<String, DiskKeys>, guests: Unique<u32, GuestSection> });

impl Settings {
    /// Reads both files; one that is not there says nothing. A file that cannot be read or understood is an error
    /// that names it, the line, and what could stand there.
    pub fn load(root: &Root) -> Result<Self> {
        let mut files = Vec::new();
        for name in [CLUSTER_FILE, NODE_FILE] {
            if let Some(text) = read(root, name)? {
                files.push((name, text));
            }
        }
        Self::parse(files.iter().map(|(name, text)| (*name, text.as_str())))
    }

    /// Settings from the name and text of files, the weaker first.
    pub fn parse<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self> {
        let layers = files.into_iter().map(|(name, text)| Layer::parse(name, text)).collect::<Result<_>>()?;
        Ok(Self { layers })
    }

    /// What holds for a guest whose disks lie on these storages.
    pub fn for_guest(&self, vmid: u32, storages: impl IntoIterator<Item = impl AsRef<str>>) -> Resolved {
        let mut resolved = Resolved::default();
        for keys in self.layers.iter().flat_map(|layer| layer.of_guest(vmid)) {
            resolved.apply(keys);
        }
        resolved.general = self.for_disk(vmid, None);
        for storage in storages {
            let storage = storage.as_ref();
            resolved.storages.insert(storage.to_owned(), self.for_disk(vmid, Some(storage)));
        }
        let modes = resolved.storages.values().map(|disk| disk.mode);
        resolved.mode = modes.max().unwrap_or(resolved.general.mode);
        resolved
    }

    fn for_disk(&self, vmid: u32, storage: Option<&str>) -> DiskSettings {
        let mut disk = DiskSettings::default();
        for layer in &self.layers {
            disk.apply(&layer.general.disk);
            if let Some(keys) = storage.and_then(|storage| layer.storages.get(storage)) {
                disk.apply(keys);
            }
            if let Some(keys) = layer.guests.get(&vmid) {
                disk.apply(&keys.disk);
            }
        }
        disk
    }
}

/// The text of a settings file; `None` if there is none.
fn read(root: &Root, name: &str) -> Result<Option<String>> {
    let file = match std::fs::File::open(root.path(name)) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).with_context(|| format!("cannot read the settings {name}")),
    };
    let mut text = String::new();
    file.take(LARGEST_FILE + 1)
        .read_to_string(&mut text)
        .with_context(|| format!("cannot read the settings {name}"))?;
    if text.len() as u64 > LARGEST_FILE {
        bail!("the settings {name} are larger than {LARGEST_FILE} bytes");
    }
    Ok(Some(text))
}

impl Layer {
    fn parse(file: &str, text: &str) -> Result<Self> {
        // A file of comments alone is YAML's null.
        let section: Option<FileSection> =
            serde_yaml::from_str(text).map_err(|e| anyhow::anyhow!(describe(file, &e)))?;
        let mut section = section.unwrap_or_default();
        let storages = section.storages.take().map(|map| map.0).unwrap_or_default();
        let guests = section.guests.take().map(|map| map.0).unwrap_or_default();
        Ok(Self {
            file: file.to_owned(),
            general: section.into(),
            storages,
            guests: guests.into_iter().map(|(vmid, guest)| (vmid, guest.into())).collect(),
        })
    }

    /// The keys that hold for a whole guest, the weaker first.
    fn of_guest(&self, vmid: u32) -> impl Iterator<Item = &Keys> {
        std::iter::once(&self.general).chain(self.guests.get(&vmid))
    }
}

/// A parser's error as `file:line: what`.
fn describe(file: &str, error: &serde_yaml::Error) -> String {
    let text = error.to_string();
    let Some(place) = error.location() else { return format!("{file}: {text}") };
    let suffix = format!(" at line {} column {}", place.line(), place.column());
    format!("{file}:{}: {}", place.line(), text.replace(&suffix, ""))
}

impl Default for DiskSettings {
    fn default() -> Self {
        Self {
            mode: Mode::Repair,
            krbd_features: Wanted::Pve,
            change: MayChange { features: true, journaling: true, object_map: true, locks: true },
            ignore: Vec::new(),
        }
    }
}

impl DiskSettings {
    fn apply(&mut self, keys: &DiskKeys) {
        set(&mut self.mode, keys.mode);
        set(&mut self.krbd_features, keys.features.as_ref().and_then(|features| features.krbd));
        if let Some(change) = &keys.change {
            set(&mut self.change.features, change.features);
            set(&mut self.change.journaling, change.journaling);
            set(&mut self.change.object_map, change.object_map);
            set(&mut self.change.locks, change.locks);
        }
        set(&mut self.ignore, keys.ignore.clone());
    }
}

impl Default for Resolved {
    fn default() -> Self {
        Self {
            mode: Mode::Repair,
            on_error: OnError::Allow,
            deadline: Duration::from_secs(120),
            check_deadline: Duration::from_secs(30),
            command_timeout: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(10),
            rebuild_deadline: Duration::from_secs(60),
            watcher_grace: Duration::from_secs(40),
            map: true,
            general: DiskSettings::default(),
            storages: BTreeMap::new(),
        }
    }
}

impl Resolved {
    /// What holds for a disk of this storage.
    pub fn disk(&self, storage: &str) -> &DiskSettings {
        self.storages.get(storage).unwrap_or(&self.general)
    }

    fn apply(&mut self, keys: &Keys) {
        set(&mut self.on_error, keys.on_error);
        set(&mut self.deadline, keys.deadline.map(Seconds::duration));
        set(&mut self.check_deadline, keys.check_deadline.map(Seconds::duration));
        set(&mut self.command_timeout, keys.command_timeout.map(Seconds::duration));
        set(&mut self.connect_timeout, keys.connect_timeout.map(Seconds::duration));
        set(&mut self.rebuild_deadline, keys.rebuild_deadline.map(Seconds::duration));
        set(&mut self.watcher_grace, keys.watcher_grace.map(Seconds::duration));
        set(&mut self.map, keys.map);
    }
}

/// What a section says goes over what stood there.
fn set<T>(value: &mut T, said: Option<T>) {
    if let Some(said) = said {
        *value = said;
    }
}

impl Wanted {
    /// The features to turn on, given what PVE sets on this kernel: never one that PVE turns off again.
    pub fn on(self, pve: PveTarget) -> Features {
        match self {
            Self::Pve => pve.enable,
            Self::Set(features) => features - pve.disable,
        }
    }

    /// The set of these names, or why it cannot be wanted.
    fn from_names(names: &[String]) -> Result<Self, String> {
        let mut set = Features::NONE;
        for name in names {
            set = set | changeable(name)?;
        }
        let pve = pve_target((5, 3)).enable;
        let missing = pve - set;
        if !set.without_lock().is_empty() {
            return Err(format!("{} cannot be without exclusive-lock", set.without_lock()));
        }
        if !missing.is_empty() {
            return Err(format!(
                "Proxmox VE turns {missing} on again before every map (kernel 5.3 and later): \
                 name {pve}, or write `pve`"
            ));
        }
        Ok(Self::Set(set))
    }
}

/// The feature of this name, if an image of krbd can be given it.
fn changeable(name: &str) -> Result<Features, String> {
    let both = Features::with_change(Changeable::Both) - Features::JOURNALING;
    let refuse = |why: &str| Err(format!("{name} cannot be wanted: {why}; possible are {both}"));
    let feature = match Features::from_name(name) {
        Some(feature) if !name.starts_with("0x") => feature,
        _ => return refuse("there is no such RBD feature"),
    };
    if feature == Features::JOURNALING {
        return refuse("no kernel can map an image with it");
    }
    if both.contains(feature) {
        return Ok(feature);
    }
    match feature {
        Features::DEEP_FLATTEN => {
            refuse("it cannot be turned on after an image's creation, and is left as it is")
        }
        f if Features::with_change(Changeable::Internal).contains(f) => {
            refuse("Ceph sets and clears it itself")
        }
        _ => refuse("it is set for good when an image is created"),
    }
}

impl<'de> Deserialize<'de> for Wanted {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Wanted;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`pve` or a list of feature names")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Wanted, E> {
                match text {
                    "pve" => Ok(Wanted::Pve),
                    _ => Err(E::invalid_value(Unexpected::Str(text), &self)),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Wanted, A::Error> {
                let mut names = Vec::new();
                while let Some(name) = list.next_element::<String>()? {
                    names.push(name);
                }
                Wanted::from_names(&names).map_err(de::Error::custom)
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

/// A whole number of seconds within bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seconds<const MIN: u64, const MAX: u64>(u64);

impl<const MIN: u64, const MAX: u64> Seconds<MIN, MAX> {
    fn duration(self) -> Duration {
        Duration::from_secs(self.0)
    }
}

impl<const MIN: u64, const MAX: u64> Visitor<'_> for Seconds<MIN, MAX> {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seconds, a whole number from {MIN} to {MAX}")
    }

    fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<Self, E> {
        match seconds {
            s if (MIN..=MAX).contains(&s) => Ok(Self(s)),
            s => Err(E::invalid_value(Unexpected::Unsigned(s), &self)),
        }
    }
}

impl<'de, const MIN: u64, const MAX: u64> Deserialize<'de> for Seconds<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self(MIN))
    }
}

/// A map in which no key stands twice; a key without anything under it counts as empty.
#[derive(Debug)]
struct Unique<K, V>(BTreeMap<K, V>);

impl<'de, K, V> Deserialize<'de> for Unique<K, V>
where
    K: Deserialize<'de> + Ord + fmt::Display,
    V: Deserialize<'de> + Default,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader<K, V>(PhantomData<(K, V)>);
        impl<'de, K, V> Visitor<'de> for Reader<K, V>
        where
            K: Deserialize<'de> + Ord + fmt::Display,
            V: Deserialize<'de> + Default,
        {
            type Value = Unique<K, V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a section per name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unique<K, V>, A::Error> {
                let mut all = BTreeMap::new();
                while let Some(key) = map.next_key::<K>()? {
                    if all.contains_key(&key) {
                        return Err(de::Error::custom(format!("`{key}` stands here twice")));
                    }
                    all.insert(key, map.next_value::<Option<V>>()?.unwrap_or_default());
                }
                Ok(Unique(all))
            }
        }
        deserializer.deserialize_map(Reader(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str = "node.yaml";
    const SHIPPED: &str = include_str!("../../packaging/config.yaml");
    const NO_STORAGE: [&str; 0] = [];

    fn node(text: &str) -> Result<Settings> {
        Settings::parse([(NODE, text)])
    }

    fn complaint(text: &str) -> String {
        node(text).expect_err(text).to_string()
    }

    #[test]
    fn without_any_file_the_built_in_values_hold() {
        let empty = tempfile::tempdir().unwrap();
        let settings = Settings::load(&Root::new(empty.path())).unwrap();
        assert_eq!(settings.for_guest(516, NO_STORAGE), Resolved::default());
    }

    #[test]
    fn both_files_are_read_and_the_node_wins() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        for (file, text) in [(CLUSTER_FILE, "deadline: 50\ncommand_timeout: 7"), (NODE_FILE, "deadline: 70")]
        {
            std::fs::create_dir_all(root.path(file).parent().unwrap()).unwrap();
            std::fs::write(root.path(file), text).unwrap();
        }
        let resolved = Settings::load(&root).unwrap().for_guest(516, NO_STORAGE);
        assert_eq!((resolved.deadline.as_secs(), resolved.command_timeout.as_secs()), (70, 7));
    }

    #[test]
    fn a_file_that_is_there_but_unreadable_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        std::fs::create_dir_all(root.path(NODE_FILE)).unwrap();
        assert!(Settings::load(&root).unwrap_err().to_string().contains(NODE_FILE));
        std::fs::remove_dir(root.path(NODE_FILE)).unwrap();
        std::os::unix::fs::symlink("config.yaml", root.path(NODE_FILE)).unwrap();
        assert!(Settings::load(&root).unwrap_err().to_string().contains(NODE_FILE));
    }

    #[test]
    fn guest_goes_over_storage_over_general_and_node_over_cluster() {
        let cluster = "mode: check\nstorages: {a: {mode: off}}\nguests: {1: {mode: repair}}";
        let settings = Settings::parse([("cluster.yaml", cluster)]).unwrap();
        assert_eq!(settings.for_guest(2, NO_STORAGE).mode, Mode::Check);
        assert_eq!(settings.for_guest(2, ["a"]).mode, Mode::Off);
        assert_eq!(settings.for_guest(2, ["a", "b"]).mode, Mode::Check);
        assert_eq!(settings.for_guest(2, ["a", "b"]).disk("a").mode, Mode::Off);
        assert_eq!(settings.for_guest(1, ["a"]).mode, Mode::Repair);
        let both = Settings::parse([("cluster.yaml", cluster), (NODE, "mode: off")]).unwrap();
        assert_eq!(both.for_guest(1, ["a"]).mode, Mode::Off);
    }

    #[test]
    fn a_layer_changes_only_what_it_names() {
        let text = "change: {locks: false}\nguests: {7: {change: {features: false}, ignore: [image-missing], on_error: block}}";
        let resolved = node(text).unwrap().for_guest(7, NO_STORAGE);
        let expected = MayChange { features: false, journaling: true, object_map: true, locks: false };
        assert_eq!(resolved.general.change, expected);
        assert_eq!(resolved.general.ignore, [Code::ImageMissing]);
        assert_eq!(resolved.on_error, OnError::Block);
        assert_eq!(node(text).unwrap().for_guest(8, NO_STORAGE).on_error, OnError::Allow);
    }

    #[test]
    fn an_unknown_key_is_named_with_file_line_and_what_could_stand_there() {
        let text = complaint("mode: check\n\ndeadlin: 5\n");
        assert!(text.starts_with("node.yaml:3: "), "{text}");
        assert!(
            text.contains("`deadlin`") && text.contains("`deadline`") && text.contains("`guests`"),
            "{text}"
        );
        let text = complaint("storages:\n  ceph:\n    deadline: 5\n");
        assert!(text.starts_with("node.yaml:3: ") && text.contains("`ignore`"), "{text}");
        assert!(!text.contains("at line"), "{text}");
    }

    #[test]
    fn a_bad_value_is_named_with_its_line() {
        let table = [
            ("mode: off\non_error: maybe", "node.yaml:2: ", "`allow`"),
            ("a: 1\nb: [", "node.yaml:", ""),
            ("mode: check\ndeadline: 0", "node.yaml:2: ", "from 1 to 3600"),
            ("deadline: -1", "node.yaml:1: ", "from 1 to 3600"),
            ("deadline: soon", "node.yaml:1: ", "from 1 to 3600"),
            ("connect_timeout: 301", "node.yaml:1: ", "from 1 to 300"),
            ("guests:\n  one: {}", "node.yaml:2: ", "u32"),
            ("change:\n  locks: 3", "node.yaml:2: ", "boolean"),
            ("guests:\n  7: {mode: off}\n  7: {mode: check}", "node.yaml:", "`7` stands here twice"),
            ("features:\n  krbd: no-such", "node.yaml:2: ", "`pve` or a list"),
        ];
        for (text, start, part) in table {
            let said = complaint(text);
            assert!(said.starts_with(start) && said.contains(part), "{text:?}: {said}");
        }
    }

    #[test]
    fn a_section_with_nothing_under_it_is_empty() {
        for text in
            ["", "# only a comment\n", "guests:\n", "guests:\n  7:\n", "mode:\n", "features:\n  krbd:\n"]
        {
            assert_eq!(node(text).unwrap().for_guest(7, NO_STORAGE), Resolved::default(), "{text:?}");
        }
    }

    #[test]
    fn a_wanted_set_that_cannot_hold_is_refused_with_the_reason() {
        let table = [
            ("exclusive-lock", "turns object-map, fast-diff on again"),
            ("exclusive-lock, object-map", "turns fast-diff on again"),
            ("", "turns exclusive-lock, object-map, fast-diff on again"),
            ("object-map, fast-diff", "cannot be without exclusive-lock"),
            ("exclusive-lock, object-map, fast-diff, journaling", "no kernel can map"),
            ("exclusive-lock, object-map, fast-diff, deep-flatten", "after an image's creation"),
            ("layering, exclusive-lock, object-map, fast-diff", "for good when an image is created"),
            ("data-pool", "for good when an image is created"),
            ("migrating", "Ceph sets and clears it itself"),
            ("0x4", "no such RBD feature"),
            ("exclusivelock", "no such RBD feature"),
        ];
        for (names, why) in table {
            let said = complaint(&format!("features:\n  krbd: [{names}]"));
            assert!(said.starts_with("node.yaml:2: ") && said.contains(why), "{names}: {said}");
        }
    }

    #[test]
    fn a_wanted_set_that_pve_keeps_is_taken() {
        let settings = node("features: {krbd: [fast-diff, object-map, exclusive-lock]}").unwrap();
        let wanted = settings.for_guest(7, NO_STORAGE).general.krbd_features;
        assert_eq!(wanted, Wanted::Set(Features(0x1c)));
        assert_eq!(wanted.on(pve_target((6, 8))), Features(0x1c));
        assert_eq!(wanted.on(pve_target((5, 0))), Features::EXCLUSIVE_LOCK);
        assert_eq!(Wanted::Pve.on(pve_target((5, 0))), Features::EXCLUSIVE_LOCK);
    }

    #[test]
    fn a_finding_that_is_none_cannot_be_ignored() {
        for text in [
            "ignore: [no-such]",
            "guests: {7: {ignore: [image-missing, no-such]}}",
            "storages: {s: {ignore: [no-such]}}",
        ] {
            let said = node(text).unwrap_err().to_string();
            assert!(said.starts_with("node.yaml:1: "), "{said}");
            assert!(
                said.contains("there is no finding `no-such`; known are ") && said.contains("image-missing"),
                "{said}"
            );
        }
    }

    #[test]
    fn the_shipped_file_sets_nothing_and_its_comments_are_the_built_in_values() {
        assert_eq!(node(SHIPPED).unwrap().for_guest(7, NO_STORAGE), Resolved::default());
        let lines = SHIPPED.lines().filter_map(|line| line.strip_prefix('#'));
        let keys: String = lines
            .filter(|line| !line.starts_with(' ') || line.starts_with("  "))
            .fold(String::new(), |all, line| all + line + "\n");
        let layer = Layer::parse(NODE, &keys).unwrap();
        let Keys { on_error, deadline, check_deadline, command_timeout, connect_timeout, .. } =
            &layer.general;
        let Keys {
            rebuild_deadline,
            watcher_grace,
            map,
            disk: DiskKeys { mode, features, change, ignore },
            ..
        } = &layer.general;
        assert!(on_error.is_some() && deadline.is_some() && check_deadline.is_some());
        assert!(command_timeout.is_some() && connect_timeout.is_some() && rebuild_deadline.is_some());
        assert!(watcher_grace.is_some() && map.is_some() && mode.is_some() && ignore.is_some());
        assert!(features.as_ref().unwrap().krbd.is_some());
        let ChangeKeys { features, journaling, object_map, locks } = change.as_ref().unwrap();
        assert!(features.is_some() && journaling.is_some() && object_map.is_some() && locks.is_some());
        assert!(!layer.guests.is_empty() && !layer.storages.is_empty());
        let settings = Settings { layers: vec![layer] };
        assert_eq!(settings.for_guest(7, NO_STORAGE), Resolved::default());
    }
}
