//! Volume ids and volume names.

use super::perl::{is_blank, leading_digits};
use regex::bytes::Regex;
use std::sync::LazyLock;

/// The two parts of a volume id (`storage:volname`), as `PVE::Storage::Plugin::parse_volume_id` cuts it.
///
/// `None` where PVE takes the text for no volume: a path, `none`, `cdrom`, a storage id of one letter.
pub fn split_volid(volid: &[u8]) -> Option<(&str, &[u8])> {
    let colon = volid.iter().position(|&byte| byte == b':')?;
    let (storage, name) = (&volid[..colon], &volid[colon + 1..]);
    (is_storage_id(storage) && !name.is_empty()).then_some(())?;
    Some((std::str::from_utf8(storage).ok()?, name))
}

/// A storage id (`PVE::JSONSchema::parse_storage_id`): two characters or more, a letter first, no sign last.
pub fn is_storage_id(id: &[u8]) -> bool {
    let [first, middle @ .., last] = id else { return false };
    first.is_ascii_alphabetic()
        && middle.iter().all(|&byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && last.is_ascii_alphanumeric()
}

/// What an RBD volume's name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RbdName<'a> {
    /// The image.
    pub image: &'a [u8],
    /// The parent part of a linked clone's name; it is not opened by this name.
    pub base: Option<&'a [u8]>,
}

/// An RBD volume's name as `PVE::Storage::RBDPlugin::parse_volname` takes it apart.
///
/// `base-9-disk-0/vm-1-disk-0` is the image `vm-1-disk-0`; `vm-9-a/vm-1-b` is one image with a slash in its name.
pub fn rbd_name(name: &[u8]) -> Option<RbdName<'_>> {
    if name.iter().any(|&byte| is_blank(byte)) {
        return None;
    }
    if let Some(parent) = after_number(name, b"base-") {
        // the shortest clone name wins, so look from the last slash on
        let first = name.len() - parent.len() + 1;
        for slash in (first..name.len()).rev().filter(|&at| name[at] == b'/') {
            let image = &name[slash + 1..];
            if is_image(image) {
                return Some(RbdName { image, base: Some(&name[..slash]) });
            }
        }
    }
    is_image(name).then_some(RbdName { image: name, base: None })
}

/// `vm-1-x`, `base-1-x`, and also `-1-x` and `basevm-1-x`, which PVE accepts.
fn is_image(name: &[u8]) -> bool {
    let name = name.strip_prefix(b"base").unwrap_or(name);
    let name = name.strip_prefix(b"vm").unwrap_or(name);
    after_number(name, b"-").is_some()
}

/// What follows `prefix`, a number and a hyphen, if it is not empty.
fn after_number<'a>(name: &'a [u8], prefix: &[u8]) -> Option<&'a [u8]> {
    let rest = name.strip_prefix(prefix)?;
    let digits = leading_digits(rest);
    let rest = rest[digits..].strip_prefix(b"-")?;
    (digits > 0 && !rest.is_empty()).then_some(rest)
}

/// The kind of a volume on a storage of `storage_type`, or PVE's words for a name that its plugin cannot parse.
///
/// The `parse_volname` of each of `PVE::Storage`'s plugins. A type that PVE itself does not have takes every name.
pub fn content_type(storage_type: &str, name: &[u8]) -> Result<&'static str, String> {
    let told = || super::perl::lossy(name);
    match storage_type {
        "rbd" => {
            image_if(rbd_name(name).is_some(), || format!("unable to parse rbd volume name '{}'", told()))
        }
        "dir" | "nfs" | "cifs" | "cephfs" | "btrfs" => directory_content(name),
        "lvm" | "lvmthin" if !is_lvm_name(name) => {
            Err(format!("lvm name '{}' contains illegal characters", told()))
        }
        "lvm" => image_if(after_number(name, b"vm-").is_some(), || lvm_error(name)),
        "lvmthin" => {
            let known = after_number(name, b"vm-").or_else(|| after_number(name, b"base-"));
            image_if(known.is_some(), || lvm_error(name))
        }
        "zfspool" | "zfs" => {
            image_if(ZFS.is_match(name), || format!("unable to parse zfs volume name '{}'", told()))
        }
        "iscsi" => {
            image_if(ISCSI.is_match(name), || format!("unable to parse iscsi volume name '{}'", told()))
        }
        "iscsidirect" => {
            image_if(LUN.is_match(name), || format!("unable to parse iscsi volume name '{}'", told()))
        }
        "pbs" if PBS.is_match(name) => Ok("backup"),
        "pbs" => Err(format!("unable to parse PBS volume name '{}'", told())),
        "esxi" if !ESXI.is_match(name) => Err(format!("failed to parse volname '{}'", told())),
        "esxi" if name.ends_with(b".vmx") => Ok("import"),
        _ => Ok("images"),
    }
}

/// `images`, or the error.
fn image_if(valid: bool, error: impl FnOnce() -> String) -> Result<&'static str, String> {
    if valid { Ok("images") } else { Err(error()) }
}

fn lvm_error(name: &[u8]) -> String {
    format!("unable to parse lvm volume name '{}'", super::perl::lossy(name))
}

/// A volume group's or logical volume's name (`PVE::Storage::Plugin::parse_lvm_name`).
pub(crate) fn is_lvm_name(name: &[u8]) -> bool {
    let [first, middle @ .., last] = name else { return false };
    first.is_ascii_alphanumeric()
        && middle.iter().all(|&byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && last.is_ascii_alphanumeric()
}

/// A regex over bytes, with Perl's meaning of `\s` and `\d`. The patterns are constants that a test compiles.
macro_rules! pattern {
    ($name:ident, $pattern:expr) => {
        static $name: LazyLock<Pattern> =
            LazyLock::new(|| Pattern(Regex::new(concat!("(?-u)", $pattern)).ok()));
    };
}

/// A constant regex; one that did not compile would match nothing.
struct Pattern(Option<Regex>);

impl Pattern {
    fn is_match(&self, text: &[u8]) -> bool {
        self.0.as_ref().is_some_and(|regex| regex.is_match(text))
    }

    fn captures<'t>(&self, text: &'t [u8]) -> Option<regex::bytes::Captures<'t>> {
        self.0.as_ref()?.captures(text)
    }
}

pattern!(ZFS, r"^((base|basevol)-\d+-\S+/)?(base|basevol|vm|subvol)-\d+-\S+$");
pattern!(ISCSI, r"^\d+\.\d+\.\d+\.[^/\s]+$");
pattern!(LUN, r"^lun\d+$");
pattern!(PBS, r"^backup/[^\s_]+/[^\s_]+/[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$");
pattern!(ESXI, r"^[^/]+/[^/]+/[^\n]+$");
pattern!(DIR_CLONE, r"^\d+/(\S+)/\d+/(\S+)$");
pattern!(DIR_IMAGE, r"^\d+/(\S+)$");
pattern!(ISO, r"^iso/[^/]+\.(?i:iso|img)$");
pattern!(VZTMPL, r"^vztmpl/[^/]+\.(?i:tar(\.(gz|xz|zst|bz2))?)$");
pattern!(BACKUP, r"^backup/[^/]+\.(tgz|(tar|vma)(\.(gz|lzo|zst|bz2))?)$");
pattern!(SNIPPET, r"^snippets/[^/]+$");
pattern!(OVA, r"^import/[ a-zA-Z0-9.+=_-]+\.ova/[ a-zA-Z0-9.+=_-]+\.(qcow2|raw|vmdk)$");
pattern!(IMPORT, r"^import/[ a-zA-Z0-9.+=_-]+\.(ova|ovf|qcow2|raw|vmdk)$");
pattern!(FILE_NAME, r"^[^/\s]+\.(raw|qcow2|vmdk|subvol)$");
pattern!(SNAPSHOT_FILE, r"^snap-.*\.qcow2$");

/// The storages that keep volumes as files (`PVE::Storage::Plugin::parse_volname`).
fn directory_content(name: &[u8]) -> Result<&'static str, String> {
    if let Some(found) = DIR_CLONE.captures(name).or_else(|| DIR_IMAGE.captures(name)) {
        return found
            .iter()
            .skip(1)
            .flatten()
            .try_for_each(|part| file_name(part.as_bytes()))
            .map(|()| "images");
    }
    let kinds: [(&Pattern, &str); 6] = [
        (&ISO, "iso"),
        (&VZTMPL, "vztmpl"),
        (&BACKUP, "backup"),
        (&SNIPPET, "snippets"),
        (&OVA, "import"),
        (&IMPORT, "import"),
    ];
    kinds
        .iter()
        .find(|(pattern, _)| pattern.is_match(name))
        .map(|(_, kind)| *kind)
        .ok_or_else(|| format!("unable to parse directory volume name '{}'", super::perl::lossy(name)))
}

/// A volume's file name (`PVE::Storage::Plugin::parse_name_dir`).
fn file_name(name: &[u8]) -> Result<(), String> {
    if SNAPSHOT_FILE.is_match(name) {
        return Err(format!("'{}' is a snapshot filename, not a volume!", super::perl::lossy(name)));
    }
    if FILE_NAME.is_match(name) {
        return Ok(());
    }
    Err(format!("unable to parse volume filename '{}'", super::perl::lossy(name)))
}

/// PVE's test for the cloud-init image of a VM (`PVE::QemuServer::Drive::drive_is_cloudinit`).
pub fn is_cloudinit(volid: &[u8]) -> bool {
    CLOUDINIT.is_match(volid)
}

pattern!(CLOUDINIT, r"[:/](vm-\d+-)?cloudinit(\.(raw|qcow|qcow2|qed|vmdk|cloop))?$");

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Option<(&str, Option<&str>)> {
        let utf8 = |bytes| std::str::from_utf8(bytes).unwrap();
        rbd_name(text.as_bytes()).map(|name| (utf8(name.image), name.base.map(utf8)))
    }

    #[test]
    fn volids_have_a_storage_of_two_characters_and_a_name() {
        assert_eq!(split_volid(b"ceph:vm-1-disk-0"), Some(("ceph", &b"vm-1-disk-0"[..])));
        assert_eq!(split_volid(b"ceph::x"), Some(("ceph", &b":x"[..])));
        for not in
            ["c:vm-1-disk-0", "none", "cdrom", "/dev/sda", "ceph:", "9a:x", "a-:x", "ce ph:x", ":x", ""]
        {
            assert_eq!(split_volid(not.as_bytes()), None, "{not}");
        }
    }

    #[test]
    fn rbd_names_as_pve_takes_them() {
        assert_eq!(name("vm-1-disk-0"), Some(("vm-1-disk-0", None)));
        assert_eq!(name("base-1-disk-0"), Some(("base-1-disk-0", None)));
        assert_eq!(name("-1-x"), Some(("-1-x", None)));
        assert_eq!(name("basevm-1-x"), Some(("basevm-1-x", None)));
        assert_eq!(name("vm-1-disk-0@snap"), Some(("vm-1-disk-0@snap", None)));
        assert_eq!(name("vm-1-disk-0/extra"), Some(("vm-1-disk-0/extra", None)));
    }

    #[test]
    fn only_a_base_makes_a_clone() {
        assert_eq!(name("base-9-disk-0/vm-1-disk-0"), Some(("vm-1-disk-0", Some("base-9-disk-0"))));
        assert_eq!(name("vm-9-a/vm-1-b"), Some(("vm-9-a/vm-1-b", None)));
        assert_eq!(name("base-9-a/b/vm-1-d"), Some(("vm-1-d", Some("base-9-a/b"))));
        assert_eq!(name("base-9-a/vm-1-b/vm-2-c"), Some(("vm-2-c", Some("base-9-a/vm-1-b"))));
        assert_eq!(name("base-9-a/x"), Some(("base-9-a/x", None)));
        assert_eq!(name("base-9-/vm-1-d"), Some(("base-9-/vm-1-d", None)));
    }

    #[test]
    fn names_pve_cannot_parse() {
        for not in ["", "disk", "Vm-1-disk-0", "vm-1-", "vm--x", "vm-1-disk 0", "vm-1-disk-0 ", "vm-x-1", "8"]
        {
            assert_eq!(name(not), None, "{not}");
        }
    }

    #[test]
    fn many_slashes_take_linear_time() {
        let long = format!("base-1-x{}", "/".repeat(1 << 20));
        assert!(name(&long).is_some());
    }

    #[test]
    fn other_storages_names() {
        let error = |kind, name: &str| content_type(kind, name.as_bytes()).unwrap_err();
        let kind = |kind, name: &str| content_type(kind, name.as_bytes()).unwrap();
        assert_eq!(error("dir", "vm-1-cloudinit"), "unable to parse directory volume name 'vm-1-cloudinit'");
        assert_eq!(error("dir", "1/x"), "unable to parse volume filename 'x'");
        assert_eq!(error("nfs", "1/snap-a.qcow2"), "'snap-a.qcow2' is a snapshot filename, not a volume!");
        assert_eq!(error("lvm", "vm-1-"), "lvm name 'vm-1-' contains illegal characters");
        assert_eq!(error("lvm", "base-1-d"), "unable to parse lvm volume name 'base-1-d'");
        assert_eq!(error("zfspool", "x"), "unable to parse zfs volume name 'x'");
        assert_eq!(kind("dir", "iso/debian.ISO"), "iso");
        assert_eq!(kind("dir", "100/vm-100-disk-0.qcow2"), "images");
        assert_eq!(kind("lvmthin", "base-1-d"), "images");
        assert_eq!(kind("zfspool", "base-1-d/vm-2-d"), "images");
        assert_eq!(kind("dir", "snippets/x.sh"), "snippets");
        assert_eq!(kind("dir", "vztmpl/x.tar.zst"), "vztmpl");
        assert_eq!(kind("iscsi", "0.0.1.scsi-x"), "images");
        assert_eq!(kind("iscsidirect", "lun1"), "images");
        assert_eq!(kind("pbs", "backup/vm/1/2024-01-01T00:00:00Z"), "backup");
        assert_eq!(kind("dir", "backup/vzdump-qemu-1-x.vma.zst"), "backup");
        assert_eq!(kind("dir", "import/a.ova/b.vmdk"), "import");
        assert_eq!(kind("dir", "import/a.qcow2"), "import");
        assert_eq!(kind("esxi", "ha/ds/x.vmx"), "import");
        assert_eq!(kind("dir", "9/base-9-d.raw/1/vm-1-d.qcow2"), "images");
    }

    #[test]
    fn cloudinit_images() {
        for is in ["ceph:vm-1-cloudinit", "local:1/vm-1-cloudinit.qcow2", "ceph:cloudinit"] {
            assert!(is_cloudinit(is.as_bytes()), "{is}");
        }
        for not in ["ceph:vm-1-cloudinit.iso", "ceph:xvm-1-cloudinit", "ceph:vm-1-cloudinit2"] {
            assert!(!is_cloudinit(not.as_bytes()), "{not}");
        }
    }
}
