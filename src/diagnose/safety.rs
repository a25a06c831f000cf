//! The gate before every change: the safety rules of one guest and one image, in one place.
//!
//! `diagnose` asks it before it proposes a change, `act` asks it again on a fresh reading just before it makes one.

use crate::ceph::image::{ImageFacts, Lock, Locker, Spec, Watcher};
use crate::kernel::Mapping;
use crate::observe::survey::Survey;
use crate::rbd::features::Features;
use crate::reading::Reading;

/// `lock:` values under which a start is ordinary: vzdump of a stopped guest, resume from hibernation.
pub(super) const HARMLESS_LOCKS: [&str; 2] = ["backup", "suspended"];

/// krbd's and librbd's own locks carry this tag; `rbd lock add` any other (`RBD_LOCK_TAG`).
const INTERNAL_TAG: &str = "internal";

/// Why nothing of this guest may be changed; `None` if it may.
pub fn guest_forbids(survey: &Survey) -> Option<String> {
    let (guest, node) = (&survey.guest, &survey.node);
    if guest.node != node.name {
        return Some(format!("the guest belongs to node {}", guest.node));
    }
    match &node.running {
        Reading::Known(false) => {}
        Reading::Known(true) => return Some("the guest is running".into()),
        Reading::Unknown(failure) => {
            return Some(format!("it is not known whether the guest runs: {failure}"));
        }
    }
    match &node.quorate {
        Reading::Known(true) => {}
        Reading::Known(false) => return Some("the cluster has no quorum".into()),
        Reading::Unknown(failure) => {
            return Some(format!("it is not known whether the cluster has quorum: {failure}"));
        }
    }
    match guest.locked() {
        Some(lock) if !HARMLESS_LOCKS.contains(&lock) => {
            return Some(format!("the guest's config is locked ({lock})"));
        }
        _ => {}
    }
    guest.template.then(|| "the guest is a template".into())
}

/// Why an image may not be changed; `None` if it may. `mapped` is where this node's kernel has it mapped, `harmless` are
/// watchers that need not be waited for.
pub fn image_forbids(
    spec: &Spec,
    facts: &ImageFacts,
    mapped: &Reading<Vec<Mapping>>,
    harmless: &[Watcher],
) -> Option<String> {
    if spec.image.starts_with('-') || spec.image.contains(['@', '/']) {
        return Some("its name could be taken for something else on a command line".into());
    }
    // Bytes that are no text were read as this sign (`pve::text::lossy`): there may be an image of that name too.
    if spec.to_string().contains(char::REPLACEMENT_CHARACTER) {
        return Some("its name is not text, and could be taken for another image's".into());
    }
    if facts.features.contains(Features::MIGRATING) {
        return Some("a live migration of the image is under way".into());
    }
    match &facts.migration {
        Reading::Known(None) => {}
        Reading::Known(Some(state)) => return Some(format!("a live migration of the image is {state}")),
        Reading::Unknown(failure) => return Some(format!("its migration state is not known: {failure}")),
    }
    match &facts.mirroring {
        Reading::Known(None) => {}
        Reading::Known(Some(mirroring)) if !mirroring.primary => {
            return Some("it is the non-primary copy of a mirrored image".into());
        }
        Reading::Known(Some(mirroring)) if mirroring.mode != "snapshot" => {
            return Some(format!("it is mirrored by {}", mirroring.mode));
        }
        Reading::Known(Some(_)) => {}
        Reading::Unknown(failure) => return Some(format!("its mirroring is not known: {failure}")),
    }
    if facts.features.contains(Features::NON_PRIMARY) {
        return Some("it is the non-primary copy of a mirrored image".into());
    }
    match mapped {
        Reading::Known(mapped) => {
            if let Some(mapping) = mapped.first() {
                return Some(format!("this node's kernel has it mapped as /dev/rbd{}", mapping.id));
            }
        }
        Reading::Unknown(failure) => {
            return Some(format!("it is not known what this node's kernel has mapped: {failure}"));
        }
    }
    match (&facts.watchers, &facts.lock) {
        (Reading::Known(watchers), Reading::Known(lock)) => {
            if let Some(watcher) = watchers.iter().find(|watcher| !harmless.contains(watcher)) {
                return Some(format!("client.{} at {} has it open", watcher.client, watcher.address));
            }
            external_locker(lock)
                .map(|locker| format!("{} holds a lock on it that was set by hand", locker.client))
        }
        (Reading::Unknown(failure), _) => Some(format!("it is not known who has it open: {failure}")),
        (_, Reading::Unknown(failure)) => Some(format!("it is not known who has locked it: {failure}")),
    }
}

/// A locker that neither librbd nor krbd set: `rbd lock add`, a script, a shared lock.
pub fn external_locker(lock: &Lock) -> Option<&Locker> {
    let own = lock.tag == INTERNAL_TAG && lock.exclusive;
    lock.lockers.iter().find(|locker| !own || !locker.cookie.starts_with("auto "))
}
