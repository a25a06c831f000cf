//! Drive strings of VMs and mount points of containers, read as PVE 9.2 reads them (`PVE::QemuServer::Drive`, `PVE::LXC::Config`).

use super::drive_schema;
use super::perl::{boolean, excerpt};
use super::property::{Properties, Schema, parse};
use super::volume::split_volid;
use super::words::Dropped;

/// A volume key of a guest config, which says by what rules its value is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bus {
    Ide,
    Scsi,
    Virtio,
    Sata,
    Efidisk,
    Tpmstate,
    Vmstate,
    Rootfs,
    Mountpoint,
}

/// The buses of a VM in the order in which PVE walks them, with the number of their slots.
const VM_BUSES: [(Bus, &str, u32); 6] = [
    (Bus::Ide, "ide", 4),
    (Bus::Scsi, "scsi", 31),
    (Bus::Virtio, "virtio", 16),
    (Bus::Sata, "sata", 6),
    (Bus::Efidisk, "efidisk", 1),
    (Bus::Tpmstate, "tpmstate", 1),
];

/// Mount points that a container may have.
const MOUNTPOINTS: u32 = 256;

/// What a config key is to PVE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Key {
    /// A volume; the number is its place in PVE's order.
    Volume(Bus, u32),
    /// It looks like a volume, but PVE 9.2 has no such slot.
    NoSlot(Bus, u32),
    /// Something else.
    Other,
}

/// What `key` is in a VM's config. `cdrom` is `ide2`.
pub(crate) fn vm_key(key: &str) -> Key {
    match key {
        "cdrom" => return vm_key("ide2"),
        "vmstate" => return Key::Volume(Bus::Vmstate, u32::MAX),
        _ => {}
    }
    let digits = key.find(|c: char| c.is_ascii_digit()).unwrap_or(key.len());
    let (name, index) = key.split_at(digits);
    if index.is_empty() {
        return Key::Other;
    }
    let mut before = 0;
    for (bus, bus_name, slots) in VM_BUSES {
        if name == bus_name {
            return slot(bus, before, index, slots);
        }
        before += slots;
    }
    Key::Other
}

/// What `key` is in a container's config.
pub(crate) fn container_key(key: &str) -> Key {
    if key == "rootfs" {
        return Key::Volume(Bus::Rootfs, 0);
    }
    match key.strip_prefix("mp") {
        Some(index) if index.starts_with(|c: char| c.is_ascii_digit()) => {
            slot(Bus::Mountpoint, 1, index, MOUNTPOINTS)
        }
        _ => Key::Other,
    }
}

/// `scsi00` and `scsi31` are no slots.
fn slot(bus: Bus, before: u32, index: &str, slots: u32) -> Key {
    match index.parse::<u32>() {
        Ok(number) if number < slots && number.to_string() == index => Key::Volume(bus, before + number),
        _ => Key::NoSlot(bus, before + slots),
    }
}

/// A volume line's value as PVE reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Drive<'v> {
    /// The volume, path, `none` or `cdrom`; empty if the line names none.
    pub file: &'v [u8],
    /// `media=cdrom`.
    pub cdrom: bool,
    /// `ro=1`: the guest only reads it.
    pub read_only: bool,
    /// The config's parser drops the line, so that an earlier one of the same key stays.
    pub rejected: Option<Dropped>,
    /// The config's parser keeps the line, but no volume comes of it.
    pub unusable: Option<Dropped>,
}

/// Reads the value of a volume key.
pub(crate) fn read(bus: Bus, value: &[u8]) -> Drive<'_> {
    if bus == Bus::Vmstate {
        return vmstate(value);
    }
    let found = parse(schema(bus), value);
    let container = matches!(bus, Bus::Rootfs | Bus::Mountpoint);
    let file = found.get(if container { "volume" } else { "file" }).unwrap_or_default();
    let cdrom = found.get("media") == Some(b"cdrom");
    let read_only = found.get("ro").is_some_and(|value| boolean(value) == Some(true));
    let rejected = if !container && value.contains(&b'\r') {
        Some(wrong("a carriage return".to_owned()))
    } else {
        found.rejected()
    };
    // where the string itself is rejected, nothing is said of conflicts
    let unusable = if container || rejected.is_some() { None } else { conflict(bus, &found).map(wrong) };
    Drive { file, cdrom, read_only, rejected, unusable }
}

/// A plain volume id, commas and all.
fn vmstate(value: &[u8]) -> Drive<'_> {
    let valid = split_volid(value).is_some() && !value.contains(&b'\r');
    let rejected = (!valid).then(|| wrong(format!("{} is not a volume", excerpt(value))));
    Drive { file: value, cdrom: false, read_only: false, rejected, unusable: None }
}

fn wrong(why: String) -> Dropped {
    Dropped { why, unknown_option: false }
}

/// What `PVE::QemuServer::Drive::parse_drive` checks after the schema.
fn conflict(bus: Bus, found: &Properties<'_>) -> Option<String> {
    for (bytes, megabytes) in [("bps", "mbps"), ("bps_rd", "mbps_rd"), ("bps_wr", "mbps_wr")] {
        if found.get(bytes).is_some() && found.get(megabytes).is_some() {
            return Some(format!("both {bytes} and {megabytes}"));
        }
    }
    // a rate in bytes, even of 0, stands for the one in megabytes
    let set =
        |key: &str| found.is_true(key) || key.strip_prefix('m').is_some_and(|rate| found.get(rate).is_some());
    for (option, needs) in REQUIREMENTS {
        if found.is_true(option) && !set(needs) {
            return Some(format!("{option} without {needs}"));
        }
    }
    for (one, other) in [("mbps_rd", "mbps"), ("mbps_wr", "mbps"), ("iops_rd", "iops"), ("iops_wr", "iops")] {
        if set(one) && set(other) {
            return Some(format!("both {one} and {other}"));
        }
    }
    if found.get("media") != Some(b"cdrom") {
        return None;
    }
    if bus == Bus::Virtio {
        return Some("media=cdrom on virtio".to_owned());
    }
    ["snapshot", "format"]
        .into_iter()
        .find(|key| found.is_true(key))
        .map(|key| format!("media=cdrom with {key}"))
}

const REQUIREMENTS: [(&str, &str); 9] = [
    ("mbps_max", "mbps"),
    ("mbps_rd_max", "mbps_rd"),
    ("mbps_wr_max", "mbps_wr"),
    ("bps_max_length", "mbps_max"),
    ("bps_rd_max_length", "mbps_rd_max"),
    ("bps_wr_max_length", "mbps_wr_max"),
    ("iops_max_length", "iops_max"),
    ("iops_rd_max_length", "iops_rd_max"),
    ("iops_wr_max_length", "iops_wr_max"),
];

fn schema(bus: Bus) -> &'static Schema {
    match bus {
        Bus::Ide => &drive_schema::IDE,
        Bus::Scsi => &drive_schema::SCSI,
        Bus::Virtio => &drive_schema::VIRTIO,
        Bus::Sata => &drive_schema::SATA,
        Bus::Efidisk => &drive_schema::EFIDISK,
        Bus::Tpmstate | Bus::Vmstate => &drive_schema::TPMSTATE,
        Bus::Rootfs => &drive_schema::ROOTFS,
        Bus::Mountpoint => &drive_schema::MOUNTPOINT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(bus: Bus, text: &str) -> Option<String> {
        let drive = read(bus, text.as_bytes());
        drive.rejected.or(drive.unusable).map(|dropped| dropped.why)
    }

    fn taken(bus: Bus, options: &str) -> bool {
        why(bus, &format!("ceph:vm-1-disk-0,{options}")).is_none()
    }

    #[test]
    fn keys_and_their_order() {
        assert_eq!(vm_key("ide0"), Key::Volume(Bus::Ide, 0));
        assert_eq!(vm_key("cdrom"), vm_key("ide2"));
        assert_eq!(vm_key("scsi30"), Key::Volume(Bus::Scsi, 34));
        assert_eq!(vm_key("tpmstate0"), Key::Volume(Bus::Tpmstate, 58));
        assert_eq!(vm_key("vmstate"), Key::Volume(Bus::Vmstate, u32::MAX));
        for not in ["scsi31", "scsi00", "ide4", "efidisk1", "virtio16", "sata6", "scsi99999999999"] {
            assert!(matches!(vm_key(not), Key::NoSlot(..)), "{not}");
        }
        for not in ["unused0", "net0", "scsi", "scsihw", "rootfs", "nvme0"] {
            assert_eq!(vm_key(not), Key::Other, "{not}");
        }
        assert_eq!(container_key("rootfs"), Key::Volume(Bus::Rootfs, 0));
        assert_eq!(container_key("mp255"), Key::Volume(Bus::Mountpoint, 256));
        assert!(matches!(container_key("mp256"), Key::NoSlot(..)));
        for not in ["mp", "unused0", "scsi0", "mpx1"] {
            assert_eq!(container_key(not), Key::Other, "{not}");
        }
    }

    #[test]
    fn options_depend_on_the_bus() {
        let buses = [Bus::Ide, Bus::Scsi, Bus::Virtio, Bus::Sata, Bus::Efidisk, Bus::Tpmstate];
        let table: [(&str, [bool; 6]); 12] = [
            ("ssd=1", [true, true, false, true, false, false]),
            ("iothread=1", [false, true, true, false, false, false]),
            ("ro=1", [false, true, true, false, false, false]),
            ("model=x", [true, false, false, false, false, false]),
            ("wwn=0x0123456789abcdef", [true, true, false, true, false, false]),
            ("queues=2", [false, true, false, false, false, false]),
            ("cache=none", [true, true, true, true, false, false]),
            ("backup=0", [true, true, true, true, false, false]),
            ("discard=on", [true, true, true, true, false, false]),
            ("format=qcow", [true, true, true, true, true, false]),
            ("efitype=4m", [false, false, false, false, true, false]),
            ("version=v2.0", [false, false, false, false, false, true]),
        ];
        for (option, expected) in table {
            assert_eq!(buses.map(|bus| taken(bus, option)), expected, "{option}");
        }
    }

    #[test]
    fn values() {
        for bad in [
            "cache=bogus",
            "size=32g",
            "discard=off",
            "queues=1",
            "iothread=2",
            "cyls=1024",
            "wwn=0x1",
            "aio=x",
            "serial=a b",
            "media=tape",
            "iops=x",
            "bps_max_length=0",
            "vendor=ninechars",
            "format=raw2",
        ] {
            assert!(!taken(Bus::Scsi, bad), "{bad}");
        }
        for good in [
            "iothread=ON",
            "size=8GiB",
            "serial=disk%2033",
            "vendor=ATA,product=My disk",
            "iops=5",
            "mbps=1.5",
            "scsiblock=no",
            "format=qcow2",
            "iops=3,iops_max=9,iops_max_length=5",
        ] {
            assert!(taken(Bus::Scsi, good), "{good}");
        }
    }

    #[test]
    fn conflicts_lose_the_volume_but_not_the_line() {
        for bad in [
            "iops=5,iops_rd=5",
            "mbps=5,mbps_rd=5",
            "mbps_max=5",
            "bps=5,mbps=5",
            "bps=1,bps_rd=1",
            "iops_max_length=3",
            "media=cdrom,format=raw",
            "media=cdrom,snapshot=1",
        ] {
            let text = format!("ceph:vm-1-disk-0,{bad}");
            let drive = read(Bus::Scsi, text.as_bytes());
            assert!(drive.rejected.is_none() && drive.unusable.is_some(), "{bad}");
        }
        for good in ["media=cdrom,snapshot=0", "bps=0,mbps_max=5", "mbps_max=0", "mbps=0,mbps_rd=5"] {
            assert!(taken(Bus::Scsi, good), "{good}");
        }
        assert!(!taken(Bus::Virtio, "media=cdrom"));
    }

    #[test]
    fn the_volume_stays_in_sight() {
        let drive = read(Bus::Scsi, b"ceph:vm-1-disk-0,future=1");
        assert_eq!(drive.file, b"ceph:vm-1-disk-0");
        assert!(drive.rejected.unwrap().unknown_option);
    }

    #[test]
    fn vmstate_is_a_plain_volume() {
        assert_eq!(read(Bus::Vmstate, b"ceph:vm-1-state-x,size=1G").file, b"ceph:vm-1-state-x,size=1G");
        assert!(why(Bus::Vmstate, "none").is_some());
        assert!(why(Bus::Vmstate, "ceph:vm-1\r-state").is_some());
    }

    #[test]
    fn files_that_are_no_volumes() {
        for good in ["none", "cdrom", "/dev/sda", "file=/x", "volume=ceph:x"] {
            assert_eq!(why(Bus::Ide, good), None, "{good}");
        }
        for bad in ["debian.iso", "c:x", "", "media=cdrom", "a\rb"] {
            assert!(why(Bus::Ide, bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn mount_points() {
        assert_eq!(
            why(Bus::Mountpoint, "ceph:vm-1-disk-0,mp=/a,backup=1,mountoptions=discard;noatime"),
            None
        );
        assert_eq!(why(Bus::Mountpoint, "ceph:vm-1-disk-0").as_deref(), Some("no mp"));
        for bad in ["mp=/a", "backup=1", "file=x", "mountoptions=exec", "idmap=x", "acl=2", "size=1g"] {
            assert!(!taken(Bus::Rootfs, bad), "{bad}");
        }
        for good in ["acl=1", "quota=no", "idmap=passthrough", "idmap=u:0:1:2;g:0:1:2", "shared=1", "ro=1"] {
            assert!(taken(Bus::Rootfs, good), "{good}");
        }
    }
}
