//! Who holds `/dev/rbdN` open on this node: devices built on it, mounts, swap, processes.
//!
//! The kernel shows no count of who has an rbd device open, so each kind of user is looked for where Linux tells of it:
//! `/sys/block/*/holders` and `/sys/block/loop*/loop/backing_file`, `/proc/*/mountinfo`, `/proc/swaps`, `/proc/*/fd`.
//! Users inside the kernel that show in none of these (ZFS, an iSCSI target) are not seen: no holder is no promise that
//! an unmap succeeds, only its EBUSY is certain.

use crate::reading::{Failure, Reading};
use crate::sys::root::Root;
use nix::libc::{ENODEV, ENOENT, ESRCH};
use nix::sys::stat::{major, makedev};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// One user of a mapped disk. `device` is what it uses: the disk itself (`rbd0`), a partition of it (`rbd0p1`), or a
/// device that was built on either (`dm-3`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Holder {
    /// A block device built on the disk: LVM, multipath, dm-crypt, MD, a loop device.
    Block {
        /// Its name in `/sys/block`.
        device: String,
        /// Device-mapper's own name for it, as in `/dev/mapper`.
        name: Option<String>,
    },
    /// A mounted file system.
    Mount {
        /// The device that is mounted: `rbd0p1`, `dm-3`.
        device: String,
        /// The directory it is mounted at.
        at: String,
        /// A process that sees it there, where this process does not: the mount is in another mount namespace.
        seen_by: Option<Process>,
    },
    /// Swap space on it is in use.
    Swap {
        /// What is swapped to.
        device: String,
    },
    /// A process that has it open.
    Process {
        /// What it has open.
        device: String,
        /// The process that has it open.
        process: Process,
    },
}

/// A process of this node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Process {
    /// The process id.
    pub pid: u32,
    /// Its name, as `ps` shows it (`kvm`).
    pub command: String,
    /// The guest that it runs or belongs to.
    pub guest: Option<u32>,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pid, command, guest } = self;
        match guest {
            Some(vmid) => write!(f, "process {pid} ({command}, guest {vmid})"),
            None => write!(f, "process {pid} ({command})"),
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Block { device, name: Some(name) } => write!(f, "device-mapper {device} ({name})"),
            Self::Block { device, name: None } => write!(f, "block device {device}"),
            Self::Mount { device, at, seen_by } => {
                write!(f, "mounted at {at}{}", unless_disk(" from", device))?;
                seen_by.as_ref().map_or(Ok(()), |process| write!(f, " for {process}"))
            }
            Self::Swap { device } => write!(f, "swap space{}", unless_disk(" on", device)),
            Self::Process { device, process } => write!(f, "{process}{}", unless_disk(" on", device)),
        }
    }
}

impl Holder {
    /// It may be gone in a moment: a process that is no guest's has the device open (`blkid`, `lsblk`, `pvscan`,
    /// `qemu-img`). What is mounted, swapped to, built upon or a guest's stays.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Process { process: Process { guest: None, .. }, .. })
    }

    /// What it uses, or is: a device's name in sysfs.
    pub fn device(&self) -> &str {
        match self {
            Self::Block { device, .. }
            | Self::Mount { device, .. }
            | Self::Swap { device }
            | Self::Process { device, .. } => device,
        }
    }
}

/// Which device is meant, unless it is the disk as a whole.
fn unless_disk(word: &str, device: &str) -> String {
    let number = device.strip_prefix("rbd").unwrap_or_default();
    let whole = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    if whole { String::new() } else { format!("{word} {device}") }
}

/// Who holds `/dev/rbd{id}`. See [`holders_of`].
pub fn holders(root: &Root, id: u32) -> Reading<Vec<Holder>> {
    match holders_of(root, &[id]) {
        Reading::Known(mut all) => Reading::Known(all.remove(&id).unwrap_or_default()),
        Reading::Unknown(failure) => Reading::Unknown(failure),
    }
}

/// Who holds each of some `/dev/rbdN`: every one of `ids` is in the answer, one that is not mapped without holders.
/// One look at each process, however many disks are asked for.
///
/// Unknown where a place that shows holders cannot be read; only root can look at all processes.
pub fn holders_of(root: &Root, ids: &[u32]) -> Reading<BTreeMap<u32, Vec<Holder>>> {
    read_holders(root, ids).into()
}

fn read_holders(root: &Root, ids: &[u32]) -> Result<BTreeMap<u32, Vec<Holder>>, Failure> {
    let mut scan = Scan { root, devices: Devices::read(root, ids)?, found: BTreeSet::new() };
    if !scan.devices.places.is_empty() {
        scan.blocks();
        scan.swaps()?;
        scan.processes()?;
    }
    let mut holders: BTreeMap<u32, Vec<Holder>> = ids.iter().map(|&id| (id, Vec::new())).collect();
    for holder in scan.found {
        for id in scan.devices.disks(holder.device()) {
            holders.entry(id).or_default().push(holder.clone());
        }
    }
    Ok(holders)
}

/// A block device whose use is use of a mapped disk.
struct Place {
    /// `N` of the disk; several, where a device was built on many (LVM, MD).
    ids: BTreeSet<u32>,
    /// The device's name in sysfs.
    device: String,
    /// Device-mapper's name for it.
    name: Option<String>,
    /// It is neither the disk nor a partition of it.
    stacked: bool,
}

/// The disks, their partitions, and everything that is built on them.
#[derive(Default)]
struct Devices {
    places: Vec<Place>,
    /// Index into `places` by device number.
    by_number: BTreeMap<u64, usize>,
    /// Index into `places` by path below `/dev`.
    by_path: BTreeMap<String, usize>,
}

impl Devices {
    fn read(root: &Root, ids: &[u32]) -> Result<Self, Failure> {
        let loops = loops(root)?;
        let mut devices = Self::default();
        for &id in ids {
            devices.add_disk(root, &loops, id, &format!("rbd{id}"), false)?;
        }
        Ok(devices)
    }

    /// A disk with its partitions, and what is built on each. A disk that is not there has neither.
    fn add_disk(
        &mut self,
        root: &Root,
        loops: &Loops,
        id: u32,
        disk: &str,
        stacked: bool,
    ) -> Result<(), Failure> {
        let directory = root.path(format!("/sys/block/{disk}"));
        let Some(entries) = or_gone(names(&directory)).map_err(|e| Failure::path("list", &directory, &e))?
        else {
            return Ok(());
        };
        let is_partition = |name: &&String| {
            let number = name.strip_prefix(disk).map(|rest| rest.strip_prefix('p').unwrap_or(rest));
            number.is_some_and(is_number)
        };
        let partitions: Vec<_> = entries.iter().filter(is_partition).collect();
        self.add_device(root, loops, id, disk, &directory, stacked)?;
        for partition in partitions {
            self.add_device(root, loops, id, partition, &directory.join(partition), stacked)?;
        }
        Ok(())
    }

    fn add_device(
        &mut self,
        root: &Root,
        loops: &Loops,
        id: u32,
        device: &str,
        directory: &Path,
        stacked: bool,
    ) -> Result<(), Failure> {
        let known = self.by_path.get(device).copied();
        let index = known.unwrap_or_else(|| self.add_place(device, directory, stacked));
        if !self.places.get_mut(index).is_some_and(|place| place.ids.insert(id)) {
            return Ok(());
        }
        let holders = directory.join("holders");
        let on_it =
            or_gone(names(&holders)).map_err(|e| Failure::path("list", &holders, &e))?.unwrap_or_default();
        for above in on_it.iter().chain(loops.get(device).into_iter().flatten()) {
            self.add_disk(root, loops, id, above, true)?;
        }
        Ok(())
    }

    /// A new device, of no disk yet; its index.
    fn add_place(&mut self, device: &str, directory: &Path, stacked: bool) -> usize {
        let index = self.places.len();
        self.by_path.insert(device.to_owned(), index);
        let name = fs::read_to_string(directory.join("dm/name")).ok().map(|name| name.trim_end().to_owned());
        if let Some(name) = &name {
            self.by_path.insert(format!("mapper/{name}"), index);
        }
        let number = fs::read_to_string(directory.join("dev")).ok();
        if let Some(number) = number.as_deref().and_then(|text| device_number(text.trim_end())) {
            self.by_number.insert(number, index);
        }
        self.places.push(Place { ids: BTreeSet::new(), device: device.to_owned(), name, stacked });
        index
    }

    /// The disks that a device is part of, or stands on.
    fn disks(&self, device: &str) -> impl Iterator<Item = u32> {
        let place = self.by_path.get(device).and_then(|&index| self.places.get(index));
        place.into_iter().flat_map(|place| place.ids.iter().copied())
    }

    /// The device that a path names: `/dev/rbd0p1`, `/dev/mapper/vg-lv`, with ` (deleted)` where the node is gone.
    fn of_path(&self, path: &[u8]) -> Option<&Place> {
        let path = std::str::from_utf8(path).ok()?.strip_prefix("/dev/")?;
        let path = path.strip_suffix(" (deleted)").unwrap_or(path);
        self.places.get(*self.by_path.get(path)?)
    }

    fn of_number(&self, number: u64) -> Option<&Place> {
        self.places.get(*self.by_number.get(&number)?)
    }

    /// The device that a path below `/dev` names, or that the node behind it is. Only there: to look at any other file
    /// can take for ever (NFS, FUSE).
    fn of_node(&self, path: &[u8], node: &Path) -> Option<&Place> {
        let at_node = || self.of_number(fs::metadata(node).ok()?.rdev());
        if path.starts_with(b"/dev/") { self.of_path(path).or_else(at_node) } else { None }
    }
}

/// Loop devices by the name of the device that is behind them. sysfs does not list them as its holders.
type Loops = BTreeMap<String, Vec<String>>;

fn loops(root: &Root) -> Result<Loops, Failure> {
    let directory = root.path("/sys/block");
    let mut loops = Loops::new();
    for name in names(&directory).map_err(|e| Failure::path("list", &directory, &e))? {
        if !name.starts_with("loop") {
            continue;
        }
        let Ok(file) = fs::read_to_string(directory.join(&name).join("loop/backing_file")) else { continue };
        if let Some(device) = file.trim_end().strip_prefix("/dev/") {
            loops.entry(device.to_owned()).or_default().push(name);
        }
    }
    Ok(loops)
}

/// One look at everything.
struct Scan<'a> {
    root: &'a Root,
    devices: Devices,
    found: BTreeSet<Holder>,
}

impl Scan<'_> {
    fn blocks(&mut self) {
        for place in self.devices.places.iter().filter(|place| place.stacked) {
            let holder = Holder::Block { device: place.device.clone(), name: place.name.clone() };
            self.found.insert(holder);
        }
    }

    /// `/proc/swaps`: a heading, then lines that begin with the file's name. A kernel without swap has no such file.
    fn swaps(&mut self) -> Result<(), Failure> {
        let file = self.root.path("/proc/swaps");
        let text =
            or_gone(fs::read(&file)).map_err(|e| Failure::path("read", &file, &e))?.unwrap_or_default();
        for line in text.split(|&byte| byte == b'\n').skip(1) {
            let path = unescaped(line.split(u8::is_ascii_whitespace).next().unwrap_or_default());
            let node = self.root.path(OsStr::from_bytes(&path));
            if let Some(place) = self.devices.of_node(&path, &node) {
                self.found.insert(Holder::Swap { device: place.device.clone() });
            }
        }
        Ok(())
    }

    /// Mounts of this and of all other mount namespaces, and open files.
    fn processes(&mut self) -> Result<(), Failure> {
        let proc = self.root.path("/proc");
        let own = self.own_mounts(&proc)?;
        let mut namespaces: BTreeSet<PathBuf> = fs::read_link(proc.join("self/ns/mnt")).into_iter().collect();
        let mut elsewhere = BTreeSet::new();
        for name in names(&proc).map_err(|e| Failure::path("list", &proc, &e))? {
            let Ok(pid) = name.parse::<u32>() else { continue };
            let directory = proc.join(&name);
            self.open_files(pid, &directory)?;
            let Some(namespace) = look(fs::read_link(directory.join("ns/mnt")), &directory)? else {
                continue;
            };
            if namespaces.insert(namespace) {
                self.other_mounts(pid, &directory, &own, &mut elsewhere)?;
            }
        }
        Ok(())
    }

    fn own_mounts(&mut self, proc: &Path) -> Result<BTreeSet<Mount>, Failure> {
        let file = proc.join("self/mountinfo");
        let text = fs::read(&file).map_err(|e| Failure::path("read", &file, &e))?;
        let mounts = self.mounts(&text);
        for (device, at) in mounts.iter().cloned() {
            self.found.insert(Holder::Mount { device, at, seen_by: None });
        }
        Ok(mounts)
    }

    /// What is mounted in this process's namespace and not in our own. Copies in still further namespaces, as many
    /// services have them, tell nothing new.
    fn other_mounts(
        &mut self,
        pid: u32,
        directory: &Path,
        own: &BTreeSet<Mount>,
        elsewhere: &mut BTreeSet<Mount>,
    ) -> Result<(), Failure> {
        let Some(text) = look(fs::read(directory.join("mountinfo")), directory)? else { return Ok(()) };
        for mount in self.mounts(&text) {
            if !own.contains(&mount) && elsewhere.insert(mount.clone()) {
                let (device, at) = mount;
                let seen_by = Some(process(pid, directory));
                self.found.insert(Holder::Mount { device, at, seen_by });
            }
        }
        Ok(())
    }

    fn mounts(&self, mountinfo: &[u8]) -> BTreeSet<Mount> {
        mountinfo.split(|&byte| byte == b'\n').filter_map(|line| self.mount(line)).collect()
    }

    /// One line of mountinfo (proc_pid_mountinfo(5)): `36 35 98:0 /root /at opts … - type source superopts`. A file
    /// system on many devices (btrfs) has a number of its own; its source is one of them.
    fn mount(&self, line: &[u8]) -> Option<Mount> {
        let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
        let number = device_number(std::str::from_utf8(fields.get(2)?).ok()?)?;
        let end = fields.iter().position(|&field| field == b"-")?;
        let source = || {
            let source = unescaped(fields.get(end + 2)?);
            let node = self.root.path(OsStr::from_bytes(&source));
            if major(number) == 0 { self.devices.of_node(&source, &node) } else { None }
        };
        let place = self.devices.of_number(number).or_else(source)?;
        let at = String::from_utf8_lossy(&unescaped(fields.get(4)?)).into_owned();
        Some((place.device.clone(), at))
    }

    /// A process's open files. One that ends meanwhile holds nothing.
    fn open_files(&mut self, pid: u32, directory: &Path) -> Result<(), Failure> {
        let fds = directory.join("fd");
        let Some(entries) = look(fs::read_dir(&fds), &fds)? else { return Ok(()) };
        let mut seen = BTreeSet::new();
        for entry in entries {
            let Some(file) = look(entry.map(|entry| entry.path()), &fds)? else { return Ok(()) };
            let Some(target) = look(fs::read_link(&file), &fds)? else { continue };
            if let Some(place) = self.devices.of_node(target.as_os_str().as_bytes(), &file) {
                seen.insert(place.device.clone());
            }
        }
        if !seen.is_empty() {
            let process = process(pid, directory);
            if is_udev(&process) {
                return Ok(());
            }
            let holder = |device| Holder::Process { device, process: process.clone() };
            self.found.extend(seen.into_iter().map(holder));
        }
        Ok(())
    }
}

/// udev's workers open every disk, and hold it as a whole while they look at its partitions: after each map, and after
/// each time that somebody has written to it. They write nothing and are gone in a moment (systemd `udev-event.c`,
/// `udev-worker.c`; the name is that of `worker_spawn`).
fn is_udev(process: &Process) -> bool {
    ["(udev-worker)", "systemd-udevd", "udevd"].contains(&process.command.as_str())
}

/// The device that is mounted, and where.
type Mount = (String, String);

/// What can be told of a process; one that has ended by now has no name.
pub(super) fn process(pid: u32, directory: &Path) -> Process {
    let read = |name: &str| fs::read(directory.join(name)).unwrap_or_default();
    let command = String::from_utf8_lossy(&read("comm")).trim_end().to_owned();
    let guest = guest_of_qemu(&read("cmdline"))
        .or_else(|| guest_of_cgroup(&String::from_utf8_lossy(&read("cgroup"))));
    Process { pid, command: if command.is_empty() { "?".to_owned() } else { command }, guest }
}

/// The number that PVE gives QEMU: `/usr/bin/kvm -id 517 …` (`PVE::QemuServer::config_to_command`).
fn guest_of_qemu(cmdline: &[u8]) -> Option<u32> {
    let words: Vec<&[u8]> = cmdline.split(|&byte| byte == 0).collect();
    let program = words.first()?.rsplit(|&byte| byte == b'/').next()?;
    if program != b"kvm" && !program.starts_with(b"qemu-system-") {
        return None;
    }
    let id = words.windows(2).find_map(|pair| if pair[0] == b"-id" { Some(pair[1]) } else { None })?;
    std::str::from_utf8(id).ok()?.parse().ok()
}

/// The guest by the control group: `/qemu.slice/517.scope` (a VM's helpers too, such as its TPM emulator),
/// `/lxc/101/…` and `/lxc.monitor/101` (containers).
fn guest_of_cgroup(cgroup: &str) -> Option<u32> {
    cgroup.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').nth(2)?.split('/').skip(1);
        match parts.next()? {
            "qemu.slice" => parts.next()?.strip_suffix(".scope")?.parse().ok(),
            "lxc" | "lxc.monitor" => parts.next()?.parse().ok(),
            _ => None,
        }
    })
}

/// `252:16` of sysfs and mountinfo.
fn device_number(text: &str) -> Option<u64> {
    let (major, minor) = text.split_once(':')?;
    Some(makedev(major.parse().ok()?, minor.parse().ok()?))
}

/// `\040` and its like, by which `/proc` writes blanks and backslashes in names.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        let octal = if byte == b'\\' { after.get(..3).and_then(octal) } else { None };
        plain.push(octal.unwrap_or(byte));
        rest = after.get(if octal.is_some() { 3 } else { 0 }..).unwrap_or_default();
    }
    plain
}

fn octal(digits: &[u8]) -> Option<u8> {
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// The names in a directory, sorted.
fn names(directory: &Path) -> io::Result<Vec<String>> {
    let names = fs::read_dir(directory)?
        .map(|entry| Ok(String::from_utf8_lossy(&entry?.file_name().into_vec()).into_owned()));
    let mut names = names.collect::<io::Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

/// What was read; `None` if the device or process is gone.
fn or_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if matches!(e.raw_os_error(), Some(ENOENT | ESRCH | ENODEV)) => Ok(None),
        Err(e) => Err(e),
    }
}

fn look<T>(result: io::Result<T>, place: &Path) -> Result<Option<T>, Failure> {
    or_gone(result).map_err(|e| Failure::path("look at", place, &e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::minor;
    use std::os::unix::fs::symlink;
    use std::process::Command;

    struct Tree(tempfile::TempDir);

    impl Tree {
        /// A node that has mapped rbd0 with a partition, and rbd1; process 1 is in our own mount namespace.
        fn new() -> Self {
            let tree = Self(tempfile::tempdir().unwrap());
            for (file, text) in [
                ("/sys/block/rbd0/dev", "252:0\n"),
                ("/sys/block/rbd0/rbd0p1/dev", "252:1\n"),
                ("/sys/block/rbd0/rbd0p1/holders/.keep/x", ""),
                ("/sys/block/rbd1/dev", "252:16\n"),
                ("/proc/self/mountinfo", "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"),
                ("/proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n"),
            ] {
                tree.write(file, text);
            }
            fs::remove_dir_all(tree.root().path("/sys/block/rbd0/rbd0p1/holders/.keep")).unwrap();
            tree.link("/proc/self/ns/mnt", "mnt:[1]");
            tree.process(1, "systemd", "mnt:[1]");
            tree
        }

        fn root(&self) -> Root {
            Root::new(self.0.path())
        }

        fn write(&self, file: &str, text: &str) {
            let file = self.root().path(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }

        fn link(&self, file: &str, target: &str) {
            let file = self.root().path(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            symlink(target, file).unwrap();
        }

        fn process(&self, pid: u32, command: &str, namespace: &str) {
            self.write(&format!("/proc/{pid}/comm"), &format!("{command}\n"));
            self.write(&format!("/proc/{pid}/mountinfo"), "");
            self.link(&format!("/proc/{pid}/fd/0"), "/dev/null");
            self.link(&format!("/proc/{pid}/ns/mnt"), namespace);
        }

        fn dm(&self, on: &str, device: &str, number: &str, name: &str) {
            self.write(&format!("{on}/holders/{device}/x"), "");
            self.write(&format!("/sys/block/{device}/dev"), number);
            self.write(&format!("/sys/block/{device}/dm/name"), name);
        }

        fn told(&self, id: u32) -> Vec<String> {
            let reading = holders(&self.root(), id);
            let known = reading.known().unwrap_or_else(|| panic!("{reading:?}"));
            known.iter().map(Holder::to_string).collect()
        }
    }

    #[test]
    fn a_disk_that_nobody_uses_has_no_holder_and_neither_has_one_that_is_not_mapped() {
        let tree = Tree::new();
        let none = BTreeMap::from([(0, vec![]), (7, vec![])]);
        assert_eq!(holders_of(&tree.root(), &[0, 7]), Reading::Known(none));
    }

    #[test]
    fn devices_built_on_it_are_told_to_the_top_and_whoever_uses_those() {
        let tree = Tree::new();
        tree.dm("/sys/block/rbd0/rbd0p1", "dm-3", "253:3\n", "vg-lv\n");
        tree.dm("/sys/block/dm-3", "dm-4", "253:4\n", "crypt\n");
        tree.write("/sys/block/loop0/loop/backing_file", "/dev/rbd0p1\n");
        tree.write("/sys/block/loop1/loop/backing_file", "/srv/file\n");
        tree.write("/proc/self/mountinfo", "40 22 253:4 / /mnt/x rw shared:1 - ext4 /dev/mapper/crypt rw\n");
        let expected = [
            "device-mapper dm-3 (vg-lv)",
            "device-mapper dm-4 (crypt)",
            "block device loop0",
            "mounted at /mnt/x from dm-4",
        ];
        assert_eq!(tree.told(0), expected);
        assert_eq!(tree.told(1), [""; 0]);
    }

    #[test]
    fn a_device_on_several_disks_holds_each_of_them() {
        let tree = Tree::new();
        tree.dm("/sys/block/rbd0", "dm-3", "253:3\n", "vg-lv\n");
        tree.dm("/sys/block/rbd1", "dm-3", "253:3\n", "vg-lv\n");
        tree.dm("/sys/block/dm-3", "dm-4", "253:4\n", "crypt\n");
        tree.write("/proc/self/mountinfo", "40 22 253:4 / /mnt/x rw - ext4 /dev/mapper/crypt rw\n");
        let reading = holders_of(&tree.root(), &[0, 1]);
        let all = reading.known().unwrap();
        assert_eq!(all[&0].len(), 3);
        assert_eq!(all[&0], all[&1]);
    }

    #[test]
    fn a_device_that_stands_on_itself_ends_the_search() {
        let tree = Tree::new();
        tree.dm("/sys/block/rbd0", "dm-3", "253:3\n", "a\n");
        tree.write("/sys/block/dm-3/holders/dm-3/x", "");
        assert_eq!(tree.told(0), ["device-mapper dm-3 (a)"]);
    }

    #[test]
    fn mounts_are_found_by_number_and_by_source_where_the_number_is_the_file_systems_own() {
        let tree = Tree::new();
        tree.write(
            "/proc/self/mountinfo",
            "30 22 252:16 / /mnt/a\\040b rw shared:1 - xfs /dev/other rw\n\
             31 22 0:45 / /mnt/btrfs rw - btrfs /dev/rbd1 rw\n\
             32 22 0:46 / /mnt/nfs rw - nfs4 server:/dev/rbd1 rw\n\
             33 22 252:1 /sub /mnt/part rw master:1 master:2 - ext4 /dev/rbd0p1 rw\n\
             not a line\n",
        );
        assert_eq!(tree.told(1), ["mounted at /mnt/a b", "mounted at /mnt/btrfs"]);
        assert_eq!(tree.told(0), ["mounted at /mnt/part from rbd0p1"]);
    }

    #[test]
    fn mounts_of_other_namespaces_are_told_once_with_a_process_that_sees_them() {
        let tree = Tree::new();
        let own = "30 22 252:16 / /mnt/both rw - xfs /dev/rbd1 rw\n";
        tree.write("/proc/self/mountinfo", own);
        for (pid, namespace) in [(50, "mnt:[2]"), (51, "mnt:[2]"), (52, "mnt:[3]")] {
            tree.process(pid, "lxc-start", namespace);
            tree.write(&format!("/proc/{pid}/cgroup"), "0::/lxc.monitor/101\n");
            let text = format!("{own}31 22 252:16 / /pinned rw - xfs /dev/rbd1 rw\n");
            tree.write(&format!("/proc/{pid}/mountinfo"), &text);
        }
        let expected = ["mounted at /mnt/both", "mounted at /pinned for process 50 (lxc-start, guest 101)"];
        assert_eq!(tree.told(1), expected);
    }

    #[test]
    fn swap_is_a_holder() {
        let tree = Tree::new();
        tree.dm("/sys/block/rbd1", "dm-3", "253:3\n", "a b\n");
        tree.write(
            "/proc/swaps",
            "Filename Type Size Used Priority\n/dev/rbd0p1 partition 8 0 -2\n/dev/mapper/a\\040b partition 8 0 -3\n",
        );
        assert_eq!(tree.told(0), ["swap space on rbd0p1"]);
        assert_eq!(tree.told(1), ["device-mapper dm-3 (a b)", "swap space on dm-3"]);
    }

    #[test]
    fn a_process_is_told_once_a_device_with_its_guest() {
        let tree = Tree::new();
        tree.process(4242, "kvm", "mnt:[1]");
        tree.write("/proc/4242/cmdline", "/usr/bin/kvm\0-id\x00517\0-name\0x\0");
        for (fd, target) in [(10, "/dev/rbd0"), (11, "/dev/rbd0"), (12, "/dev/rbd0p1"), (13, "/dev/rbd10")] {
            tree.link(&format!("/proc/4242/fd/{fd}"), target);
        }
        tree.process(4243, "dd", "mnt:[1]");
        tree.link("/proc/4243/fd/1", "/dev/rbd0 (deleted)");
        let expected =
            ["process 4243 (dd)", "process 4242 (kvm, guest 517)", "process 4242 (kvm, guest 517) on rbd0p1"];
        let mut told = tree.told(0);
        told.sort_by_key(|text| !text.contains("dd"));
        assert_eq!(told, expected);
        assert_eq!(tree.told(1), [""; 0]);
    }

    #[test]
    fn a_node_of_any_name_is_known_by_its_number() {
        let tree = Tree::new();
        let zero = fs::metadata("/dev/zero").unwrap().rdev();
        tree.write("/sys/block/rbd1/dev", &format!("{}:{}\n", major(zero), minor(zero)));
        tree.process(60, "cat", "mnt:[1]");
        tree.link("/proc/60/fd/3", "/dev/zero");
        assert_eq!(tree.told(1), ["process 60 (cat)"]);
    }

    #[test]
    fn udevs_workers_hold_nothing() {
        let tree = Tree::new();
        for (pid, command) in [(73, "(udev-worker)"), (74, "systemd-udevd"), (75, "blkid")] {
            tree.process(pid, command, "mnt:[1]");
            tree.link(&format!("/proc/{pid}/fd/3"), "/dev/rbd1");
        }
        assert_eq!(tree.told(1), ["process 75 (blkid)"]);
    }

    #[test]
    fn processes_that_end_meanwhile_hold_nothing() {
        let tree = Tree::new();
        for place in ["/proc/70/fd", "/proc/71"] {
            fs::create_dir_all(tree.root().path(place)).unwrap();
        }
        tree.process(72, "cat", "mnt:[1]");
        tree.link("/proc/72/fd/3", "/dev/rbd1");
        assert_eq!(tree.told(1), ["process 72 (cat)"]);
    }

    #[test]
    fn what_cannot_be_read_is_unknown() {
        let without = |place: &str| {
            let tree = Tree::new();
            let place = tree.root().path(place);
            fs::remove_dir_all(&place).or_else(|_| fs::remove_file(&place)).unwrap();
            holders(&tree.root(), 0).failure().unwrap_or_else(|| panic!("{}", place.display())).errno
        };
        for place in ["/sys/block", "/proc", "/proc/self/mountinfo"] {
            assert_eq!(without(place), Some(ENOENT), "{place}");
        }
        let tree = Tree::new();
        // A file where a directory should be: what is not gone and cannot be read.
        tree.write("/proc/80/fd", "");
        assert_eq!(holders(&tree.root(), 0).failure().unwrap().errno, Some(nix::libc::ENOTDIR));
    }

    #[test]
    fn guests_are_known_by_qemus_arguments_or_by_the_control_group() {
        assert_eq!(guest_of_qemu(b"/usr/bin/qemu-system-x86_64\0-id\x0012\0"), Some(12));
        assert_eq!(guest_of_qemu(b"/usr/bin/something\0-id\x0012\0"), None);
        assert_eq!(guest_of_qemu(b"kvm\0-id\0"), None);
        let table = [
            ("0::/qemu.slice/517.scope\n", Some(517)),
            ("9:name=systemd:/lxc/101/ns/init.scope\n0::/\n", Some(101)),
            ("0::/lxc.monitor/101\n", Some(101)),
            ("0::/system.slice/ssh.service\n", None),
            ("0::/user.slice/qemu.slice/5.scope\n", None),
        ];
        for (text, guest) in table {
            assert_eq!(guest_of_cgroup(text), guest, "{text}");
        }
    }

    #[test]
    fn names_are_unescaped() {
        assert_eq!(unescaped(br"/a\040b\134c\9\0"), br"/a b\c\9\0");
    }

    /// The machine's own processes, as far as this one may look at them (root may at all, in a container perhaps not),
    /// with a disk that has the number of a device that a child has open.
    #[test]
    fn a_real_process_is_found_and_soon() {
        let tree = Tree::new();
        let full = fs::metadata("/dev/full").unwrap().rdev();
        tree.write("/sys/block/rbd1/dev", &format!("{}:{}\n", major(full), minor(full)));
        let device = fs::File::open("/dev/full").unwrap();
        let mut child = Command::new("sleep").arg("60").stdin(device).spawn().unwrap();
        let root = tree.root();
        fs::remove_dir_all(root.path("/proc")).unwrap();
        for name in names(Path::new("/proc")).unwrap() {
            let real = Path::new("/proc").join(&name);
            let needed = ["self", "swaps"].contains(&name.as_str());
            if needed || is_number(&name) && fs::read_link(real.join("ns/mnt")).is_ok() {
                tree.link(&format!("/proc/{name}"), real.to_str().unwrap());
            }
        }
        let begun = std::time::Instant::now();
        let found = holders(&root, 1);
        let took = begun.elapsed();
        child.kill().unwrap();
        child.wait().unwrap();
        let process = Process { pid: child.id(), command: "sleep".to_owned(), guest: None };
        let expected = Holder::Process { device: "rbd1".to_owned(), process };
        assert!(found.known().unwrap_or_else(|| panic!("{found:?}")).contains(&expected), "{found:?}");
        println!("looked through /proc in {took:?}");
        assert!(took < std::time::Duration::from_secs(5), "{took:?}");
    }

    #[test]
    fn a_holder_survives_json() {
        let holder = Holder::Swap { device: "rbd0".to_owned() };
        let text = serde_json::to_string(&holder).unwrap();
        assert_eq!(text, r#"{"swap":{"device":"rbd0"}}"#);
        assert_eq!(serde_json::from_str::<Holder>(&text).unwrap(), holder);
    }
}
