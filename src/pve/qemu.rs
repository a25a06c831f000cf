//! How Proxmox VE tells QEMU of a disk: since machine version 10.0 with `-blockdev`, which has no place for a keyring (`PVE::QemuServer`,
//! `PVE::Storage::RBDPlugin::qemu_blockdev_options`); before, with `-drive`, which names it.

use crate::kernel::version;
use crate::pve::guest::Guest;
use crate::reading::{Failure, Reading};
use crate::sys::root::Root;

/// The first machine version that is started with `-blockdev`.
const BLOCKDEV: (u32, u32) = (10, 0);

/// Where Debian's package manager keeps which release is installed.
const INSTALLED: &str = "/var/lib/dpkg/status";

/// Whether a VM's disks are told with `-blockdev`, where `installed` is this node's QEMU; `None` is not known.
pub fn by_blockdev(guest: &Guest, installed: &Reading<String>) -> Option<bool> {
    let pinned = guest.machine.as_deref().and_then(pinned);
    let version = match pinned {
        Some(version) => Some(version),
        // PVE goes by when it was made, which is not read here.
        None if guest.is_windows() => None,
        None => installed.known().and_then(|release| version::parse(release)),
    };
    version.map(|version| version >= BLOCKDEV)
}

/// The version in `pc-i440fx-9.2+pve1`, `pc-q35-10.0`; none in `q35`.
fn pinned(machine: &str) -> Option<(u32, u32)> {
    let rest =
        ["pc-i440fx-", "pc-q35-", "pc-", "virt-"].iter().find_map(|kind| machine.strip_prefix(kind))?;
    rest.starts_with(|c: char| c.is_ascii_digit()).then(|| version::parse(rest))?
}

/// The release of the QEMU that is installed here.
pub fn installed(root: &Root) -> Reading<String> {
    let what = || format!("read in {INSTALLED} which pve-qemu-kvm is installed");
    let read = std::fs::read_to_string(root.path(INSTALLED)).map_err(|error| Failure::io(what(), &error));
    read.and_then(|status| release(&status).ok_or_else(|| Failure::new(what(), "it is not there"))).into()
}

fn release(status: &str) -> Option<String> {
    let mut entries = status.split("\n\n");
    let entry = entries.find(|entry| entry.lines().any(|line| line == "Package: pve-qemu-kvm"))?;
    entry.lines().find_map(|line| line.strip_prefix("Version: ")).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_version_is_pinned_or_not() {
        for (machine, version) in [
            ("pc-i440fx-9.2+pve1", Some((9, 2))),
            ("pc-q35-10.0", Some((10, 0))),
            ("pc-10.1+pve0", Some((10, 1))),
            ("q35", None),
            ("pc", None),
            ("pc-q35", None),
        ] {
            assert_eq!(pinned(machine), version, "{machine}");
        }
    }

    #[test]
    fn the_installed_release_is_that_of_the_package() {
        let status = "Package: a\nVersion: 1\n\nPackage: pve-qemu-kvm\nStatus: install ok installed\nVersion: 10.0.2-4\n\n";
        assert_eq!(release(status).as_deref(), Some("10.0.2-4"));
        assert_eq!(release("Package: qemu\nVersion: 1\n"), None);
    }
}
