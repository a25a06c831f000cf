//! The property strings of VMs' drives and containers' mount points in PVE 9.2, as schemas: which options each bus has, and what
//! each option's value may be (`PVE::QemuServer::Drive`, `PVE::LXC::Config`).

use super::perl::is_blank;
use super::property::{Schema, ValueType, is_size};
use super::volume::split_volid;

/// A group of options.
type Options = &'static [(&'static str, ValueType)];

pub(super) static IDE: Schema = drive(&[FILE, IMAGE_FORMAT, SIZE, COMMON, THROTTLE, MODEL, SSD, WWN]);
pub(super) static SCSI: Schema =
    drive(&[FILE, IMAGE_FORMAT, SIZE, COMMON, THROTTLE, IOTHREAD, READ_ONLY, SSD, WWN, SCSI_ONLY]);
pub(super) static VIRTIO: Schema = drive(&[FILE, IMAGE_FORMAT, SIZE, COMMON, THROTTLE, IOTHREAD, READ_ONLY]);
pub(super) static SATA: Schema = drive(&[FILE, IMAGE_FORMAT, SIZE, COMMON, THROTTLE, SSD, WWN]);
pub(super) static EFIDISK: Schema = drive(&[FILE, IMAGE_FORMAT, SIZE, EFI_ONLY]);
pub(super) static TPMSTATE: Schema = drive(&[FILE, SIZE, TPM_ONLY]);
pub(super) static ROOTFS: Schema =
    Schema { default_key: "volume", groups: &[ROOT, SIZE], required: &["volume"] };
pub(super) static MOUNTPOINT: Schema =
    Schema { default_key: "volume", groups: &[ROOT, SIZE, MOUNT_ONLY], required: &["volume", "mp"] };

const fn drive(groups: &'static [Options]) -> Schema {
    Schema { default_key: "file", groups, required: &["file"] }
}

const FILE: Options = &[
    ("file", ValueType::Valid(is_volume_or_path, "a volume, a path, none or cdrom")),
    ("volume", ValueType::Alias("file")),
];
const IMAGE_FORMAT: Options =
    &[("format", ValueType::Enum(&["raw", "qcow", "qed", "qcow2", "vmdk", "cloop"]))];
const SIZE: Options = &[("size", ValueType::Valid(is_size, "a size"))];
const COMMON: Options = &[
    ("media", ValueType::Enum(&["cdrom", "disk"])),
    ("snapshot", ValueType::Boolean),
    ("cache", ValueType::Enum(&["none", "writethrough", "writeback", "unsafe", "directsync"])),
    ("backup", ValueType::Boolean),
    ("replicate", ValueType::Boolean),
    ("rerror", ValueType::Enum(&["ignore", "report", "stop"])),
    ("werror", ValueType::Enum(&["enospc", "ignore", "report", "stop"])),
    ("aio", ValueType::Enum(&["native", "threads", "io_uring"])),
    ("discard", ValueType::Enum(&["ignore", "on"])),
    ("detect_zeroes", ValueType::Boolean),
    ("serial", ValueType::Valid(|text| is_url_encoded(text, 60), "URL-encoded text of up to 60 bytes")),
    ("shared", ValueType::Boolean),
];
const SECONDS: ValueType = ValueType::Integer(Some(1.0));
const THROTTLE: Options = &[
    ("bps", ValueType::Integer(None)),
    ("bps_rd", ValueType::Integer(None)),
    ("bps_wr", ValueType::Integer(None)),
    ("mbps", ValueType::Number),
    ("mbps_rd", ValueType::Number),
    ("mbps_wr", ValueType::Number),
    ("iops", ValueType::Integer(None)),
    ("iops_rd", ValueType::Integer(None)),
    ("iops_wr", ValueType::Integer(None)),
    ("mbps_max", ValueType::Number),
    ("mbps_rd_max", ValueType::Number),
    ("mbps_wr_max", ValueType::Number),
    ("iops_max", ValueType::Integer(None)),
    ("iops_rd_max", ValueType::Integer(None)),
    ("iops_wr_max", ValueType::Integer(None)),
    ("bps_max_length", SECONDS),
    ("bps_rd_max_length", SECONDS),
    ("bps_wr_max_length", SECONDS),
    ("iops_max_length", SECONDS),
    ("iops_rd_max_length", SECONDS),
    ("iops_wr_max_length", SECONDS),
    ("bps_rd_length", ValueType::Alias("bps_rd_max_length")),
    ("bps_wr_length", ValueType::Alias("bps_wr_max_length")),
    ("iops_rd_length", ValueType::Alias("iops_rd_max_length")),
    ("iops_wr_length", ValueType::Alias("iops_wr_max_length")),
];
const MODEL: Options =
    &[("model", ValueType::Valid(|text| is_url_encoded(text, 120), "URL-encoded text of up to 120 bytes"))];
const SSD: Options = &[("ssd", ValueType::Boolean)];
const WWN: Options = &[("wwn", ValueType::Valid(is_wwn, "0x and 16 hexadecimal digits"))];
const IOTHREAD: Options = &[("iothread", ValueType::Boolean)];
const READ_ONLY: Options = &[("ro", ValueType::Boolean)];
const SCSI_ONLY: Options = &[
    (
        "product",
        ValueType::Valid(|text| is_inquiry_text(text, 16), "up to 16 letters, digits, blanks, - and _"),
    ),
    ("vendor", ValueType::Valid(|text| is_inquiry_text(text, 8), "up to 8 letters, digits, blanks, - and _")),
    ("queues", ValueType::Integer(Some(2.0))),
    ("scsiblock", ValueType::Boolean),
];
const EFI_ONLY: Options = &[
    ("efitype", ValueType::Enum(&["2m", "4m"])),
    ("pre-enrolled-keys", ValueType::Boolean),
    ("ms-cert", ValueType::Enum(&["2011", "2023", "2023w", "2023k"])),
];
const TPM_ONLY: Options = &[
    ("format", ValueType::Enum(&["raw", "qcow2", "vmdk"])),
    ("version", ValueType::Enum(&["v1.2", "v2.0"])),
];
const ROOT: Options = &[
    ("volume", ValueType::Valid(is_mount_text, "a volume or a path without . and ..")),
    ("acl", ValueType::Boolean),
    ("mountoptions", ValueType::Valid(is_mount_options, "mount options joined by semicolons")),
    ("idmap", ValueType::Valid(is_idmap, "passthrough or entries like u:0:100000:65536")),
    ("ro", ValueType::Boolean),
    ("quota", ValueType::Boolean),
    ("replicate", ValueType::Boolean),
    ("shared", ValueType::Boolean),
];
const MOUNT_ONLY: Options = &[
    ("backup", ValueType::Boolean),
    ("mp", ValueType::Valid(is_mount_text, "a path without . and ..")),
    ("keepattrs", ValueType::Boolean),
];

/// The format `pve-volume-id-or-qm-path`.
fn is_volume_or_path(text: &[u8]) -> bool {
    matches!(text, b"none" | b"cdrom") || text.starts_with(b"/") || split_volid(text).is_some()
}

/// The format `urlencoded`.
fn is_url_encoded(text: &[u8], limit: usize) -> bool {
    text.len() <= limit
        && text.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-%_.!~*'()".contains(byte))
}

fn is_wwn(text: &[u8]) -> bool {
    let digits = text.strip_prefix(b"0x").unwrap_or_default();
    digits.len() == 16 && digits.iter().all(u8::is_ascii_hexdigit)
}

fn is_inquiry_text(text: &[u8], limit: usize) -> bool {
    let valid = |&byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_') || is_blank(byte);
    text.len() <= limit && text.iter().all(valid)
}

/// The format `pve-lxc-mp-string`: no `.` or `..` between slashes or last, no `../` first.
fn is_mount_text(text: &[u8]) -> bool {
    let mut parts = text.split(|&byte| byte == b'/');
    let first = parts.next().unwrap_or_default();
    let climbs = first == b".." && first.len() < text.len();
    !climbs && !parts.any(|part| matches!(part, b"." | b".."))
}

fn is_mount_options(text: &[u8]) -> bool {
    const KNOWN: [&[u8]; 6] = [b"discard", b"lazytime", b"noatime", b"nodev", b"noexec", b"nosuid"];
    text.split(|&byte| byte == b';').all(|option| KNOWN.contains(&option))
}

fn is_idmap(text: &[u8]) -> bool {
    text == b"passthrough" || text.split(|&byte| byte == b';').all(is_idmap_entry)
}

fn is_idmap_entry(entry: &[u8]) -> bool {
    let digits = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    match entry.split(|&byte| byte == b':').collect::<Vec<_>>()[..] {
        [b"u" | b"g", inside, outside, count] => {
            digits(inside) && digits(outside) && digits(count) && !count.starts_with(b"0")
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_does_not_climb() {
        for bad in ["/a/../b", "/a/..", "../a", "/a/./b", "/."] {
            assert!(!is_mount_text(bad.as_bytes()), "{bad}");
        }
        for good in ["/a", "..", "a..", "/.a", "./a"] {
            assert!(is_mount_text(good.as_bytes()), "{good}");
        }
    }
}
