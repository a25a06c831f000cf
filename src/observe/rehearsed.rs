//! A survey of a guest as if it were this node's and stopped: what a start here would meet. Pure.
//!
//! What belongs to the guest where it is now is taken away: the watch and the lock of its own node. Whether somebody else
//! is at its disks can only be known on that node, which alone knows whether the guest runs and what its own clients are.

use crate::ceph::image::{ImageFacts, ImageReading};
use crate::observe::survey::Survey;
use crate::rbd::lock::Watcher;
use crate::rbd::lock::watcher_of;
use crate::reading::{Failure, Reading};
use std::sync::Arc;

/// Makes a survey that was taken as if the guest were this node's one of the stopped guest. `home` is the guest's own node.
#[must_use]
pub fn as_if_stopped_here(mut survey: Survey, home: &str) -> Survey {
    let is_home = survey.node.name == home;
    let runs = is_home && survey.node.running != Reading::Known(false);
    survey.guest.node.clone_from(&survey.node.name);
    if runs {
        unmap_own(&mut survey);
    }
    survey.node.running = Reading::Known(false);
    let mapped: Vec<Vec<String>> = survey
        .disks
        .iter()
        .map(|disk| {
            let mapped = survey.mapped(disk).known().cloned().unwrap_or_default();
            mapped.into_iter().map(|mapping| mapping.client_address).collect()
        })
        .collect();
    let places = survey.node.whereabouts.clone();
    for (disk, mapped) in survey.disks.iter_mut().zip(mapped) {
        let mirrors = disk.mirror_daemons.as_ref().and_then(Reading::known).cloned().unwrap_or_default();
        let Some(ImageReading::Found(facts)) = &mut disk.reading else { continue };
        if runs {
            // It is expected to have its images open, and there is no telling it from anybody else.
            facts.watchers = Reading::Known(Vec::new());
            without_owners(facts, None);
        } else if !is_home {
            let known = |watcher: &Watcher| mirrors.contains(watcher) || mapped.contains(&watcher.address);
            let at_home = |watcher: &Watcher| {
                let place = places.get(&watcher.address).and_then(|place| place.strip_prefix("node "));
                place.and_then(|place| place.split(',').next()) == Some(home)
            };
            leave_to_home(facts, home, &known, &at_home);
        }
    }
    survey
}

/// What the guest that runs here has mapped is unmapped when it stops.
fn unmap_own(survey: &mut Survey) {
    let own = survey.disks.iter().filter_map(|disk| survey.mapped(disk).known().cloned()).flatten();
    let own: Vec<u32> = own.map(|mapping| mapping.id).collect();
    if let Reading::Known(all) = &survey.node.kernel.mappings {
        let others = all.iter().filter(|mapping| !own.contains(&mapping.id)).cloned();
        survey.node.kernel.mappings = Reading::Known(Arc::new(others.collect()));
    }
    for disk in &mut survey.disks {
        disk.linked_device = None;
    }
}

/// Takes away the watches and the lock of clients of the guest's own node; of any other client only that node can say
/// whether it is the guest itself.
fn leave_to_home(
    facts: &mut ImageFacts,
    home: &str,
    known: &dyn Fn(&Watcher) -> bool,
    at_home: &dyn Fn(&Watcher) -> bool,
) {
    let Reading::Known(watchers) = facts.watchers.clone() else { return };
    let (stay, go): (Vec<Watcher>, Vec<Watcher>) = watchers.into_iter().partition(known);
    without_owners(facts, Some(&go));
    let strange: Vec<String> =
        go.iter().filter(|watcher| !at_home(watcher)).map(|w| w.address.clone()).collect();
    facts.watchers = if strange.is_empty() {
        Reading::Known(stay)
    } else {
        let what = format!("find out whether the client at {} is the guest itself", strange.join(", "));
        Reading::Unknown(Failure::new(what, format!("only {home}, the guest's own node, knows that")))
    };
}

/// The image without the lock of these clients; of all, those that were made by hand left aside.
fn without_owners(facts: &mut ImageFacts, of: Option<&[Watcher]>) {
    let Reading::Known(lock) = &mut facts.lock else { return };
    if lock.set_by_hand().is_some() {
        return;
    }
    lock.lockers.retain(|locker| of.is_some_and(|of| watcher_of(locker, of).is_none()));
}
