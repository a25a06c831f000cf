//! storage.cfg, read as PVE reads it.

use super::hosts::{host_and_port, is_node_name, is_server};
use super::perl::{excerpt, is_blank, is_true, leading_digits, lossy, split_list, trim_end, trim_start};
use super::volume::{is_lvm_name, is_storage_id};
use super::words::Note;
use crate::reading::Failure;
use crate::sys::root::Root;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// An rbd section of storage.cfg, as PVE holds it after its checks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RbdStorage {
    /// The storage's id.
    pub id: String,
    /// The pool (`rbd` where the section names none).
    pub pool: String,
    /// The RBD namespace.
    pub namespace: Option<String>,
    /// The pool that holds the data of an erasure coded storage.
    pub data_pool: Option<String>,
    /// `krbd 1`: the kernel opens VMs' disks too, not only containers'.
    pub krbd: bool,
    /// The Ceph user without `client.`; PVE takes `admin` where it is absent.
    pub username: Option<String>,
    /// The `monhost` line; where it is absent the cluster is PVE's own.
    pub monhost: Option<String>,
    /// A `monhost` line that PVE ignores; only where none is left that it takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monhost_dropped: Option<DroppedLine>,
    /// Kinds of volume it may hold.
    pub content: Vec<String>,
    /// Nodes it is on; `None` is all of them.
    pub nodes: Option<Vec<String>>,
    /// The storage is switched off (`disable`).
    pub disabled: bool,
}

/// A line of storage.cfg that PVE ignores.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DroppedLine {
    /// Its number, from 1.
    pub line: usize,
    /// What stands in the line after the key.
    pub text: String,
}

/// What storage.cfg holds after PVE's checks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct StorageConfig {
    /// The rbd sections, sorted by id.
    pub rbd: Vec<RbdStorage>,
    /// The other storages of the types that PVE itself has, by id.
    pub others: BTreeMap<String, OtherStorage>,
    /// Ids of sections of a type that PVE itself does not have, with the type: a plugin may know it.
    pub foreign: BTreeMap<String, String>,
    /// What is odd or dropped.
    pub notes: Vec<Note>,
}

/// A storage that is not rbd: only what decides whether PVE starts a guest on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct OtherStorage {
    /// Its type: `dir`, `lvmthin`, …
    #[serde(rename = "type")]
    pub storage_type: String,
    /// Kinds of volume it may hold.
    pub content: Vec<String>,
    /// Nodes it is on; `None` is all of them.
    pub nodes: Option<Vec<String>>,
    /// The storage is switched off (`disable`).
    pub disabled: bool,
    /// The directory of its snippets, if it is of a type that holds files
    /// (`PVE::Storage::Plugin::get_subdir`: `content-dirs`, else `snippets`, under its path).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snippets: Option<String>,
    /// Every node reaches the same volumes: by its type, or because its section says `shared`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shared: bool,
    /// Where its files are, if it is a directory that is laid out as PVE does it by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// What decides whether a volume of a storage may be used, for every type of storage alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StorageRules<'a> {
    /// The storage's type: `dir`, `rbd`, `nfs`.
    pub storage_type: &'a str,
    /// Kinds of volume it may hold.
    pub content: &'a [String],
    /// Nodes it is on; `None` is all of them.
    pub nodes: Option<&'a [String]>,
    /// The storage is switched off (`disable`).
    pub disabled: bool,
}

impl RbdStorage {
    /// It can be used on this node.
    pub fn is_on(&self, node: &str) -> bool {
        !self.disabled && self.nodes.as_ref().is_none_or(|nodes| nodes.iter().any(|name| name == node))
    }
}

impl StorageConfig {
    /// The rbd storage of that id.
    pub fn rbd(&self, id: &str) -> Option<&RbdStorage> {
        let at = self.rbd.binary_search_by(|storage| storage.id.as_str().cmp(id)).ok()?;
        self.rbd.get(at)
    }

    /// The rules of the storage of that id, if PVE knows it.
    pub fn rules(&self, id: &str) -> Option<StorageRules<'_>> {
        if let Some(rbd) = self.rbd(id) {
            let (content, nodes, disabled) = (&rbd.content[..], rbd.nodes.as_deref(), rbd.disabled);
            return Some(StorageRules { storage_type: "rbd", content, nodes, disabled });
        }
        self.others.get(id).map(|other| StorageRules {
            storage_type: &other.storage_type,
            content: &other.content,
            nodes: other.nodes.as_deref(),
            disabled: other.disabled,
        })
    }
}

/// Reads this cluster's storage.cfg.
pub fn load(root: &Root) -> Result<StorageConfig, Failure> {
    const FILE: &str = "/etc/pve/storage.cfg";
    let path = root.path(FILE);
    let bytes = std::fs::read(&path).map_err(|error| {
        let mut failure = Failure::path("read", &path, &error);
        failure.message.push_str("; is pmxcfs (pve-cluster.service) running?");
        failure
    })?;
    Ok(parse(FILE, &bytes))
}

/// Reads storage.cfg as `PVE::Storage::Plugin::parse_config` does. `file` is only for the notes.
pub fn parse(file: &str, bytes: &[u8]) -> StorageConfig {
    let mut reader = Reader { file, known: BTreeMap::new(), foreign: BTreeMap::new(), notes: Vec::new() };
    let mut lines = numbered_lines(bytes);
    while let Some((number, line)) = lines.next() {
        if ends_section(line) {
            continue;
        }
        let Some((storage_type, id)) = header(line) else {
            reader.note(number, format!("PVE ignores this line: {}", excerpt(line)));
            continue;
        };
        let body = lines.by_ref().take_while(|(_, line)| !ends_section(line)).collect::<Vec<_>>();
        reader.section(number, &storage_type, id, &body);
    }
    reader.finish()
}

/// The lines that are no comments, counted from 1.
fn numbered_lines(bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let numbered = bytes.split(|&byte| byte == b'\n').enumerate().map(|(index, line)| (index + 1, line));
    numbered.filter(|(_, line)| !trim_start(line).starts_with(b"#"))
}

/// A section ends at a line that is false to Perl: an empty one, or `0`. One of blanks does not end it.
fn ends_section(line: &[u8]) -> bool {
    !is_true(line)
}

/// `type: id` at the beginning of the line, and nothing else.
fn header(line: &[u8]) -> Option<(String, &[u8])> {
    let line = trim_end(line);
    let word = line.iter().position(|&byte| is_blank(byte)).unwrap_or(line.len());
    let rest = trim_start(&line[word..]);
    let (storage_type, id) = if rest.is_empty() {
        // `type:id` without a blank: the last colon with something behind it cuts
        let colon = line[..line.len().saturating_sub(1)].iter().rposition(|&byte| byte == b':')?;
        (&line[..colon], &line[colon + 1..])
    } else {
        (line[..word].strip_suffix(b":")?, rest)
    };
    let one_word = !id.iter().any(|&byte| is_blank(byte));
    (one_word && !storage_type.is_empty()).then(|| (lossy(storage_type).to_ascii_lowercase(), id))
}

/// A section's property: its name, and its value if it has one. The line must begin with a blank.
fn property(line: &[u8]) -> Option<(&[u8], Option<&[u8]>)> {
    let text = trim_end(trim_start(line));
    if text.is_empty() || !line.first().copied().is_some_and(is_blank) {
        return None;
    }
    let word = text.iter().position(|&byte| is_blank(byte)).unwrap_or(text.len());
    let value = trim_start(&text[word..]);
    Some((&text[..word], (!value.is_empty()).then_some(value)))
}

/// The sections so far. `None` is an id whose last section PVE has thrown away.
struct Reader<'f> {
    file: &'f str,
    known: BTreeMap<String, Option<Storage>>,
    foreign: BTreeMap<String, String>,
    notes: Vec<Note>,
}

/// The last `monhost` line of a section for which PVE keeps none.
fn dropped_monhost(section: &RbdStorage, body: &[(usize, &[u8])]) -> Option<DroppedLine> {
    if section.monhost.is_some() {
        return None;
    }
    let monhost = |&(line, text): &(usize, &[u8])| {
        let (name, value) = property(text)?;
        (name == b"monhost").then(|| DroppedLine { line, text: lossy(value.unwrap_or_default()) })
    };
    body.iter().filter_map(monhost).next_back()
}

/// A section that has passed its checks.
enum Storage {
    Rbd(RbdStorage),
    Other(OtherStorage, Option<String>),
}

impl Reader<'_> {
    fn note(&mut self, line: usize, text: String) {
        self.notes.push(Note { file: self.file.to_owned(), line, text });
    }

    fn section(&mut self, number: usize, name: &str, id: &[u8], body: &[(usize, &[u8])]) {
        if !is_storage_id(id) {
            let text = format!("{} is no storage id; PVE skips the section", excerpt(id));
            return self.note(number, text);
        }
        let id = lossy(id);
        let Some(kind) = TYPES.iter().find(|kind| kind.name == name) else {
            self.note(
                number,
                format!("PVE itself has no storage type {}; it skips {id}", excerpt(name.as_bytes())),
            );
            self.foreign.insert(id, name.to_owned());
            return;
        };
        let properties = self.properties(kind, &id, body);
        let mut storage = build(kind, &id, &properties);
        if let Ok(Storage::Rbd(section)) = &mut storage {
            section.monhost_dropped = dropped_monhost(section, body);
        }
        if let Err(why) = &storage {
            self.note(number, format!("PVE removes the storage {id}: {why}"));
        }
        if self.known.insert(id.clone(), storage.ok()).is_some() {
            self.note(number, format!("the storage {id} is there twice; PVE takes the last"));
        }
    }

    /// The properties that PVE keeps: of a doubled one the first that is valid.
    fn properties<'v>(
        &mut self,
        kind: &Type,
        id: &str,
        body: &[(usize, &'v [u8])],
    ) -> BTreeMap<&'v str, &'v [u8]> {
        let mut kept = BTreeMap::new();
        for &(number, line) in body {
            let Some((name, value)) = property(line) else {
                self.note(number, format!("PVE ignores this line in the section {id}: {}", excerpt(line)));
                continue;
            };
            match std::str::from_utf8(name).map_err(|_| "unknown".to_owned()).and_then(|name| {
                let value = if kept.contains_key(name) {
                    Err("doubled".to_owned())
                } else {
                    check(kind, name, value)
                };
                value.map(|value| (name, value))
            }) {
                Ok((name, value)) => {
                    kept.insert(name, value);
                }
                Err(why) => {
                    self.note(number, format!("PVE drops {} of the storage {id}: {why}", excerpt(name)));
                }
            }
        }
        kept
    }

    fn finish(mut self) -> StorageConfig {
        let found = self.known.remove("local").flatten();
        self.known.insert("local".to_owned(), Some(local(found)));
        let mut config =
            StorageConfig { foreign: self.foreign, notes: self.notes, ..StorageConfig::default() };
        for (id, storage) in self.known {
            match storage {
                Some(Storage::Rbd(rbd)) => config.rbd.push(rbd),
                Some(Storage::Other(other, _)) => {
                    config.others.insert(id, other);
                }
                None => continue,
            }
        }
        // a section of a foreign type does not touch one of the same id that PVE knows
        let foreign = std::mem::take(&mut config.foreign);
        config.foreign = foreign.into_iter().filter(|(id, _)| config.rules(id).is_none()).collect();
        config
    }
}

/// Where `local` is.
const LOCAL: &str = "/var/lib/vz";

/// `local` is always a directory at /var/lib/vz, on every node.
fn local(found: Option<Storage>) -> Storage {
    if let Some(Storage::Other(mut other, path)) = found {
        if other.storage_type == "dir" && path.as_deref().is_none_or(|path| path == LOCAL) {
            other.nodes = None;
            return Storage::Other(other, path);
        }
    }
    let content = ["backup", "images", "iso", "rootdir", "snippets", "vztmpl"].map(str::to_owned).to_vec();
    let snippets = Some(format!("{LOCAL}/snippets"));
    let (storage_type, path) = ("dir".to_owned(), Some(LOCAL.to_owned()));
    let other =
        OtherStorage { storage_type, content, nodes: None, disabled: false, snippets, shared: false, path };
    Storage::Other(other, None)
}

/// Properties and what their values must be.
type Required = &'static [(&'static str, fn(&[u8]) -> bool)];

/// A type of storage that PVE itself has: what matters for reading its sections.
struct Type {
    name: &'static str,
    /// Kinds of volume it can hold.
    content: &'static [&'static str],
    /// Those it holds where the section names none.
    default_content: &'static [&'static str],
    /// Properties without which PVE removes the storage.
    required: Required,
    /// Its path is a directory's, with a stricter check.
    directory: bool,
}

const FILES: &[&str] = &["images", "rootdir", "vztmpl", "iso", "backup", "snippets", "import"];
const FILES_OR_NONE: &[&str] =
    &["images", "rootdir", "vztmpl", "iso", "backup", "snippets", "none", "import"];
const GUESTS: &[&str] = &["images", "rootdir"];
const IMAGES: &[&str] = &["images"];

/// `PVE::Storage`'s own plugins, their `plugindata` and the `fixed` of their `options`.
static TYPES: [Type; 14] = [
    kind("dir", FILES_OR_NONE, GUESTS, &[("path", is_path)], true),
    kind("btrfs", FILES_OR_NONE, GUESTS, &[("path", is_path)], true),
    kind("nfs", FILES, IMAGES, &[("server", is_server), ("export", is_path)], false),
    kind("cifs", FILES, IMAGES, &[("server", is_server), ("share", any)], false),
    kind("cephfs", &["vztmpl", "iso", "backup", "snippets", "import"], &["backup"], &[], false),
    kind("lvm", GUESTS, IMAGES, &[("vgname", is_lvm_name)], false),
    kind("lvmthin", GUESTS, GUESTS, &[("vgname", is_lvm_name), ("thinpool", is_lvm_name)], false),
    kind("zfspool", GUESTS, GUESTS, &[("pool", any)], false),
    kind(
        "zfs",
        IMAGES,
        IMAGES,
        &[
            ("portal", is_portal),
            ("target", any),
            ("pool", any),
            ("blocksize", is_block_size),
            ("iscsiprovider", any),
        ],
        false,
    ),
    kind("iscsi", &["images", "none"], IMAGES, &[("portal", is_portal), ("target", any)], false),
    kind("iscsidirect", &["images", "none"], IMAGES, &[("portal", is_portal), ("target", any)], false),
    kind("rbd", GUESTS, IMAGES, &[], false),
    kind("pbs", &["backup", "none"], &["backup"], &[("server", is_server), ("datastore", any)], false),
    kind("esxi", &["import"], &["import"], &[("server", is_server), ("username", any)], false),
];

const fn kind(
    name: &'static str,
    content: &'static [&'static str],
    default_content: &'static [&'static str],
    required: Required,
    directory: bool,
) -> Type {
    Type { name, content, default_content, required, directory }
}

fn any(_: &[u8]) -> bool {
    true
}

/// The format `pve-storage-path`.
fn is_path(path: &[u8]) -> bool {
    matches!(path, [b'/', next, ..] if !b";()".contains(next))
}

/// The format `pve-storage-portal-dns`.
fn is_portal(portal: &[u8]) -> bool {
    host_and_port(portal).is_some()
}

/// The format `pve-storage-zfs-blocksize`: a power of two from 512 bytes to 16 MiB, perhaps with k or M.
fn is_block_size(size: &[u8]) -> bool {
    let digits = leading_digits(size);
    let unit = match &size[digits..] {
        b"" => 1,
        b"k" | b"K" => 1 << 10,
        b"m" | b"M" => 1 << 20,
        _ => return false,
    };
    let number = std::str::from_utf8(&size[..digits]).ok().and_then(|digits| digits.parse::<u64>().ok());
    let bytes = number.and_then(|number| number.checked_mul(unit)).unwrap_or_default();
    !size.starts_with(b"0") && bytes.is_power_of_two() && (512..=16 << 20).contains(&bytes)
}

/// A value as PVE keeps it (`PVE::SectionConfig::check_value`), or why it drops the property.
///
/// Properties that neither connect nor decide anything are kept unchecked.
fn check<'v>(kind: &Type, name: &str, value: Option<&'v [u8]>) -> Result<&'v [u8], String> {
    let boolean = name == "disable" || (name == "krbd" && kind.name == "rbd");
    let value = match value {
        Some(value) => value,
        None if boolean => b"1",
        None if is_checked(kind, name) => return Err("it has no value".to_owned()),
        None => return Ok(b""),
    };
    let valid = match name {
        _ if boolean => matches!(value, b"0" | b"1"),
        "nodes" => split_list(value).into_iter().all(is_node_name),
        "content" => split_list(value).into_iter().all(is_content),
        "monhost" => split_list(value).into_iter().all(is_portal),
        _ if kind.name == "rbd" && !RBD_PROPERTIES.contains(&name) => return Err("unknown".to_owned()),
        _ => kind.required.iter().all(|(required, valid)| *required != name || valid(value)),
    };
    if value.contains(&b'\r') && is_checked(kind, name) {
        return Err("it holds a carriage return".to_owned());
    }
    valid.then_some(value).ok_or_else(|| format!("{} is not valid", excerpt(value)))
}

/// What an rbd section may say (`PVE::Storage::RBDPlugin::options`).
const RBD_PROPERTIES: [&str; 11] = [
    "nodes",
    "disable",
    "monhost",
    "pool",
    "data-pool",
    "namespace",
    "username",
    "content",
    "krbd",
    "keyring",
    "bwlimit",
];

/// The tool looks at this property, so its value must be right.
fn is_checked(kind: &Type, name: &str) -> bool {
    let required = kind.required.iter().any(|(required, _)| *required == name);
    required || kind.name == "rbd" || matches!(name, "nodes" | "content" | "disable" | "path")
}

/// The format `pve-storage-content`.
fn is_content(kind: &[u8]) -> bool {
    FILES_OR_NONE.iter().any(|known| known.as_bytes() == kind)
}

/// `check_config` of the type's plugin: the storage, or why PVE removes it.
fn build(kind: &Type, id: &str, properties: &BTreeMap<&str, &[u8]>) -> Result<Storage, String> {
    for (name, _) in kind.required {
        if !properties.contains_key(name) {
            return Err(format!("it has no valid {name}"));
        }
    }
    let text = |name: &str| properties.get(name).map(|value| lossy(value));
    let list = |name: &str| properties.get(name).map(|value| split_list(value));
    let nodes = list("nodes").map(|nodes| sorted(nodes.into_iter().map(lossy)));
    let disabled = properties.get("disable") == Some(&&b"1"[..]);
    let content = content(kind, list("content"))?;
    if kind.name != "rbd" {
        let path = text("path").map(|path| directory(kind, &path)).transpose()?;
        let snippets = snippets(kind, path.as_deref(), text("content-dirs").as_deref());
        let storage_type = kind.name.to_owned();
        let shared = match kind.name {
            "dir" | "btrfs" | "lvm" => properties.get("shared") == Some(&&b"1"[..]),
            "lvmthin" | "zfspool" => false,
            _ => true,
        };
        let usual = kind.directory && !properties.contains_key("content-dirs");
        let files = path.clone().filter(|_| usual);
        let other = OtherStorage { storage_type, content, nodes, disabled, snippets, shared, path: files };
        return Ok(Storage::Other(other, path));
    }
    Ok(Storage::Rbd(RbdStorage {
        id: id.to_owned(),
        // a pool called 0 is none to Perl
        pool: text("pool").filter(|pool| pool != "0").unwrap_or_else(|| "rbd".to_owned()),
        namespace: text("namespace"),
        data_pool: text("data-pool"),
        krbd: properties.get("krbd") == Some(&&b"1"[..]),
        username: text("username"),
        monhost: text("monhost"),
        monhost_dropped: None,
        content,
        nodes,
        disabled,
    }))
}

/// The kinds of volume a section allows. Those that its type cannot hold do not count; none left is an error.
fn content(kind: &Type, named: Option<Vec<&[u8]>>) -> Result<Vec<String>, String> {
    let Some(named) = named else {
        return Ok(sorted(kind.default_content.iter().map(|&name| name.to_owned())));
    };
    let can_hold = |name: &str| kind.content.contains(&name);
    let held = sorted(named.into_iter().map(lossy).filter(|name| can_hold(name)));
    if held.len() > 1 && held.iter().any(|name| name == "none") {
        return Err("content none excludes any other".to_owned());
    }
    if held.is_empty() && !can_hold("none") {
        return Err(format!("its content is nothing that {} can hold", kind.name));
    }
    Ok(held)
}

/// The path of a directory storage, tidied like Perl's `canonpath`.
fn directory(kind: &Type, path: &str) -> Result<String, String> {
    let plain = path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-/_.@".contains(&byte));
    if kind.directory && !plain {
        return Err("its path holds signs that a directory storage may not have".to_owned());
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    Ok(format!("/{}", parts.join("/")))
}

/// The directory of a storage's snippets: `content-dirs snippets=DIR`, else `snippets`, under its path.
fn snippets(kind: &Type, path: Option<&str>, content_dirs: Option<&str>) -> Option<String> {
    if !kind.content.contains(&"snippets") {
        return None;
    }
    let overrides = content_dirs.into_iter().flat_map(|list| split_list(list.as_bytes())).map(lossy);
    let directory = overrides.filter_map(|part| Some(part.strip_prefix("snippets=")?.to_owned())).next_back();
    let directory = directory.unwrap_or_else(|| "snippets".to_owned());
    let inside = directory.split('/').all(|part| part != "..");
    let path = path?;
    inside.then(|| format!("{path}/{}", directory.trim_matches('/')))
}

fn sorted(names: impl Iterator<Item = String>) -> Vec<String> {
    names.collect::<BTreeSet<_>>().into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> StorageConfig {
        parse("storage.cfg", text.as_bytes())
    }

    fn ids(text: &str) -> Vec<String> {
        config(text).rbd.into_iter().map(|storage| storage.id).collect()
    }

    fn only(properties: &str) -> RbdStorage {
        config(&format!("rbd: ceph\n\t{}\n", properties.replace('|', "\n\t"))).rbd.remove(0)
    }

    #[test]
    fn a_storage_cfg_that_cannot_be_read_is_a_failure() {
        let root = tempfile::tempdir().unwrap();
        let failure = load(&Root::new(root.path())).unwrap_err();
        assert_eq!(failure.errno, Some(2));
        std::fs::create_dir_all(root.path().join("etc/pve")).unwrap();
        std::fs::write(root.path().join("etc/pve/storage.cfg"), "rbd: aa\n").unwrap();
        assert_eq!(load(&Root::new(root.path())).unwrap().rbd.len(), 1);
    }

    #[test]
    fn a_section_ends_only_at_an_empty_line_or_a_zero() {
        assert_eq!(ids("rbd: aa\n\nrbd: bb\n0\nrbd: cc"), ["aa", "bb", "cc"]);
        for between in ["", " \t\n", "\r\n", "# x\n", "00\n"] {
            assert_eq!(ids(&format!("rbd: aa\n{between}rbd: bb\n")), ["aa"], "{between:?}");
        }
        assert_eq!(ids("rbd: aa\n  rbd: bb\n\n"), ["aa"]);
        let merged = config("rbd: aa\nrbd: bb\n\tpool p\n");
        assert_eq!(merged.rbd[0].pool, "p");
        assert_eq!(merged.notes[0].line, 2);
    }

    #[test]
    fn headers() {
        assert_eq!(ids("RBD: aa"), ["aa"]);
        assert_eq!(ids("rbd:aa \r"), ["aa"]);
        for not in
            ["rbd: a", "rbd: aa # x", " rbd: aa", "rbd : aa", "rbd: 4a", "rbd: a-", "rbd:", "rbd aa", ": aa"]
        {
            assert_eq!(ids(not), [""; 0], "{not}");
        }
    }

    #[test]
    fn a_bad_id_or_type_swallows_all_up_to_the_next_empty_line() {
        assert_eq!(ids("rbd: 4a\nrbd: bb\n\nlinbit: cc\nrbd: dd\n"), [""; 0]);
        let foreign = config("linbit: cc\n\nrbd: dd\n\nlinbit: dd\n").foreign;
        assert_eq!(foreign.into_iter().collect::<Vec<_>>(), [("cc".to_owned(), "linbit".to_owned())]);
    }

    #[test]
    fn booleans_are_bare_zero_or_one() {
        for dropped in ["krbd yes", "krbd on", "krbd true", "krbd 2", "krbd 01", "krbd 0"] {
            assert!(!only(dropped).krbd, "{dropped}");
        }
        for set in ["krbd 1", "krbd", "krbd yes|krbd 1", "krbd 1|krbd 0"] {
            assert!(only(set).krbd, "{set}");
        }
        assert!(only("disable").disabled && !only("disable 0").disabled);
    }

    #[test]
    fn values() {
        assert_eq!(only("pool p # x").pool, "p # x");
        assert_eq!(only("pool 0").pool, "rbd");
        assert_eq!(only("namespace 0").namespace.as_deref(), Some("0"));
        assert_eq!(only("namespace").namespace, None);
        assert_eq!(only("pool one|pool two").pool, "one");
        assert_eq!(only("data-pool ec|username vms").data_pool.as_deref(), Some("ec"));
        assert_eq!(only("pool p\rq").pool, "rbd");
        assert_eq!(config("rbd: aa\npool p\n").rbd[0].pool, "rbd", "a property begins with a blank");
    }

    #[test]
    fn contents() {
        assert_eq!(only("pool p").content, ["images"]);
        assert_eq!(only("content rootdir;images").content, ["images", "rootdir"]);
        assert_eq!(only("content images,iso").content, ["images"]);
        assert_eq!(only("content images,bogus").content, ["images"], "the property is dropped");
        for removed in ["iso", "none", "import", ","] {
            assert_eq!(ids(&format!("rbd: aa\n\tcontent {removed}\n")), [""; 0], "{removed}");
        }
    }

    #[test]
    fn of_a_doubled_id_the_last_counts() {
        assert_eq!(config("rbd: aa\n\tpool p\n\nrbd: aa\n\tkrbd 1\n").rbd[0].pool, "rbd");
        assert_eq!(ids("rbd: aa\n\nrbd: aa\n\tcontent iso\n"), [""; 0]);
        assert_eq!(ids("rbd: aa\n\nlinbit: aa\n"), ["aa"]);
        assert_eq!(ids("rbd: aa\n\nnfs: aa\n"), [""; 0], "an nfs storage without server");
    }

    #[test]
    fn monitors_and_nodes() {
        for bad in ["[v2:1.2.3.4:3300,v1:1.2.3.4:6789]", "mon_a", "10.0.0.1:"] {
            assert_eq!(only(&format!("monhost {bad}")).monhost, None, "{bad}");
        }
        assert_eq!(only("monhost ,").monhost.as_deref(), Some(","));
        let dropped = only("monhost [v2:10.0.0.1:3300/0]").monhost_dropped.unwrap();
        assert_eq!(dropped.text, "[v2:10.0.0.1:3300/0]");
        assert_eq!(only("monhost 10.0.0.1").monhost_dropped, None);
        assert_eq!(only("nodes n2;n1").nodes.unwrap(), ["n1", "n2"]);
        assert_eq!(only("nodes n1,bad_node").nodes, None);
        assert_eq!(only("nodes ,").nodes.unwrap(), [""; 0]);
    }

    #[test]
    fn local_is_always_a_directory() {
        assert_eq!(ids("rbd: local\n"), [""; 0]);
        let found = config("dir: local\n\tpath /var//lib/./vz/\n\tcontent iso\n\tnodes n1\n");
        assert_eq!(found.others["local"].content, ["iso"]);
        assert_eq!(found.others["local"].nodes, None);
        let replaced = config("dir: local\n\tpath /srv\n\tcontent iso\n");
        assert_eq!(replaced.others["local"].content.len(), 6);
    }

    #[test]
    fn snippets_lie_under_the_storages_path() {
        let of = |text: &str| {
            config(&format!("dir: aa\n\tpath /srv/x\n{text}")).others.remove("aa").unwrap().snippets
        };
        assert_eq!(of("").as_deref(), Some("/srv/x/snippets"));
        assert_eq!(of("\tcontent-dirs iso=i,snippets=hooks/a\n").as_deref(), Some("/srv/x/hooks/a"));
        assert_eq!(of("\tcontent-dirs snippets=../../etc\n"), None);
        let local = |text: &str| config(text).others.remove("local").unwrap().snippets;
        assert_eq!(local("").as_deref(), Some("/var/lib/vz/snippets"));
        assert_eq!(local("dir: local\n\tpath /var/lib/vz\n").as_deref(), Some("/var/lib/vz/snippets"));
        assert_eq!(config("lvm: l1\n\tvgname pve\n").others["l1"].snippets, None);
    }

    #[test]
    fn other_types_need_their_properties() {
        let whole = "dir: d1\n\tpath /srv/x\n\nlvmthin: l1\n\tvgname pve\n\tthinpool data\n\nnfs: n1\n\tserver a.b\n\
            \texport /x\n\ncephfs: c1\n\nzfspool: z1\n\tpool tank\n\npbs: p1\n\tserver ::1\n\tdatastore d\n\n\
            zfs: zz\n\tportal 10.0.0.1\n\ttarget t\n\tpool p\n\tblocksize 4k\n\tiscsiprovider LIO\n";
        let found: Vec<_> = config(whole).others.into_keys().collect();
        assert_eq!(found, ["c1", "d1", "l1", "local", "n1", "p1", "z1", "zz"]);
        for broken in [
            "dir: aa\n\tpath srv\n",
            "dir: aa\n\tpath /s v\n",
            "lvm: aa\n",
            "lvm: aa\n\tvgname p!\n",
            "nfs: aa\n\tserver a_b\n\texport /x\n",
            "zfspool: aa\n",
            "zfs: aa\n\tportal 10.0.0.1\n\ttarget t\n\tpool p\n\tblocksize 3\n\tiscsiprovider LIO\n",
            "iscsi: aa\n\tportal x_y\n\ttarget t\n",
        ] {
            assert!(!config(broken).others.contains_key("aa"), "{broken}");
        }
    }

    #[test]
    fn what_is_dropped_is_noted() {
        let lines = |text: &str| config(text).notes.into_iter().map(|note| note.line).collect::<Vec<_>>();
        assert_eq!(lines("x\n\nrbd: aa\n\tpool p\n\tpool q\n\tcolour b\n\tkrbd yes\nodd\n"), [1, 5, 6, 7, 8]);
        assert_eq!(lines("rbd: aa\n\tpool p\n\tkrbd 1\n"), [0; 0]);
    }
}
