//! Unmaps a device, while PVE is kept from beginning anything with the guests that name its image.

use crate::kernel::{Mapping, sysfs};
use crate::observe::survey::Survey;
use crate::pve::lock::{self, Held};
use crate::rbd::action::{Action, ActionResult};
use crate::reading::Reading;
use crate::sys::root::Root;
use std::sync::mpsc;
use std::time::Duration;

/// How long PVE's lock of a guest may be held; its tasks wait 10 s for it.
const PVE_PATIENCE: Duration = Duration::from_secs(7);

/// Unmaps a device by `command` if it still is what was judged: its number may be another image's by now. Meanwhile PVE is kept
/// from beginning anything with the guests that name the image: one of them might open the device just then.
pub fn unmap(
    root: &Root,
    survey: &Survey,
    action: &Action,
    device: u32,
    command: impl FnOnce() -> ActionResult + Send,
) -> ActionResult {
    let guests = survey.node.mapping_users.get(&device).into_iter().flat_map(|users| users.locked.keys());
    let mut held = Vec::new();
    for vmid in guests {
        match lock::hold(root, *vmid) {
            Ok(Some(lock)) => held.push(lock),
            Ok(None) => {
                return ActionResult::withheld(format!(
                    "somebody has come to guest {vmid} (PVE's lock of it is held)"
                ));
            }
            Err(failure) => return ActionResult::withheld(failure.to_string()),
        }
    }
    match still_there(&sysfs::mapping_now(root, device), action) {
        Some(why) => ActionResult::withheld(format!("/dev/rbd{device} {why}")),
        None => holding_for(PVE_PATIENCE, held, command),
    }
}

/// Why a device is not the image any more that an unmap was planned for; `None` if it is.
pub fn still_there(now: &Reading<Option<Mapping>>, action: &Action) -> Option<String> {
    match now {
        Reading::Known(Some(mapping)) if mapping.identity().may_be(action.target.identity()) => None,
        Reading::Known(Some(mapping)) => Some(format!("is another image by now: {}", mapping.spec())),
        Reading::Known(None) => Some("is not mapped any more".to_owned()),
        Reading::Unknown(failure) => Some(format!("cannot be read again: {failure}")),
    }
}

/// Does something under PVE's locks, and gives them back when it is done, or after a while.
fn holding_for<T: Send>(patience: Duration, held: Vec<Held>, work: impl FnOnce() -> T + Send) -> T {
    let (done, ended) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        // Where no thread can be had they are given back at once.
        let keeper = std::thread::Builder::new().spawn_scoped(scope, move || {
            let _ = ended.recv_timeout(patience);
            drop(held);
        });
        if let Err(error) = keeper {
            log::warn!("PVE's locks are not held: {error}");
        }
        let result = work();
        drop(done);
        result
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn pves_lock_is_not_held_for_longer_than_pve_waits() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        let file = root.path("/var/lock/qemu-server/lock-516.conf");
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, "").unwrap();
        let held = lock::hold(&root, 516).unwrap().into_iter().collect();
        let free = || {
            let file = std::fs::File::open(&file).unwrap();
            nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock).is_ok()
        };
        let patience = Duration::from_millis(50);
        let freed = holding_for(patience, held, || {
            let until = Instant::now() + Duration::from_secs(20);
            let began = free();
            while !free() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(5));
            }
            (began, free())
        });
        assert_eq!(freed, (false, true));
    }
}
