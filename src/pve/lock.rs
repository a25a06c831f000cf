//! PVE's own lock of a guest: whoever starts, stops, migrates or changes it on this node holds a `flock` meanwhile
//! (`PVE::AbstractConfig::lock_config`), so also between the map of its disks and the moment when QEMU opens them.

use crate::reading::{Failure, Reading};
use crate::sys::root::Root;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, open};
use nix::sys::stat::Mode;
use std::fs::File;

/// The files that PVE locks for a guest (`PVE::QemuConfig`, `PVE::LXC::Config`); it makes them with the first lock after
/// a boot.
fn files(vmid: u32) -> [String; 2] {
    [format!("/var/lock/qemu-server/lock-{vmid}.conf"), format!("/run/lock/lxc/pve-config-{vmid}.lock")]
}

/// Keeps PVE from beginning anything with a guest until it is dropped. PVE waits 10 s for it, then its task fails.
#[derive(Debug)]
#[must_use = "the guest is PVE's again as soon as this is dropped"]
pub struct Held(#[allow(dead_code)] Vec<Flock<File>>);

/// Takes PVE's lock of a guest without waiting; `None` if somebody has it. A guest whose file is not there was not
/// touched since the boot: there is nothing to hold then, and no file is made.
///
/// # Errors
/// A file cannot be opened or locked.
pub fn hold(root: &Root, vmid: u32) -> Result<Option<Held>, Failure> {
    let mut held = Vec::new();
    for path in files(vmid).map(|file| root.path(file)) {
        let failure = |errno: Errno| Failure::errno(format!("lock {}", path.display()), errno as i32);
        // Without O_NONBLOCK a planted fifo would hold us in open().
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let file = match open(&path, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::ENOENT) => continue,
            Err(errno) => return Err(failure(errno)),
        };
        // A shared one keeps PVE's exclusive one out as well, and two of ours do not shut each other out.
        match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Ok(lock) => held.push(lock),
            Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
            Err((_, errno)) => return Err(failure(errno)),
        }
    }
    Ok(Some(Held(held)))
}

/// Somebody is at the guest right now.
pub fn is_held(root: &Root, vmid: u32) -> Reading<bool> {
    hold(root, vmid).map(|held| held.is_none()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_at_a_guest_is_seen_and_a_guest_that_is_held_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        assert_eq!(is_held(&root, 516), Reading::Known(false), "nobody was at it since the boot");
        for file in files(516).map(|file| root.path(file)) {
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            let pve = File::create(&file).unwrap();
            assert_eq!(is_held(&root, 516), Reading::Known(false));
            let pve = Flock::lock(pve, FlockArg::LockExclusiveNonblock).unwrap();
            assert_eq!(is_held(&root, 516), Reading::Known(true));
            assert_eq!(is_held(&root, 517), Reading::Known(false));
            let pve = pve.unlock().unwrap();
            let ours = hold(&root, 516).unwrap().unwrap();
            assert_eq!(is_held(&root, 516), Reading::Known(false), "two of ours");
            let (pve, errno) = Flock::lock(pve, FlockArg::LockExclusiveNonblock).unwrap_err();
            assert_eq!(errno, Errno::EWOULDBLOCK);
            drop(ours);
            let _pve = Flock::lock(pve, FlockArg::LockExclusiveNonblock).unwrap();
        }
    }

    #[test]
    fn what_cannot_be_opened_is_not_known() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        let [file, _] = files(516).map(|file| root.path(file));
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink("/dev/null", &file).unwrap();
        assert_eq!(is_held(&root, 516).failure().unwrap().errno, Some(Errno::ELOOP as i32));
    }
}
