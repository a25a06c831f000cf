//! Who has the image open, who owns its lock, and whether that owner is still there.

use crate::ceph::caps::{Caps, caps_command, caps_template, may_blocklist, template_remark};
use crate::ceph::image::{ImageFacts, Locker, Watcher};
use crate::diagnose::finding::{Finding, RemedyKind};
use crate::diagnose::image::Image;
use crate::diagnose::owner::{Life, blocklist_of, is_to_be_open, life, unwatching};
use crate::diagnose::safety::external_locker;
use crate::finding_codes::{Code, Severity};
use crate::kernel::Mapping;
use crate::observe::survey::DiskFacts;
use crate::rbd::action::{Change, LockOwner};
use crate::rbd::blocklist::entry_of;
use crate::rbd::features::Features;
use crate::rbd::lock::watcher_of;
use crate::reading::Reading;
use nix::errno::Errno;

/// Findings about the image's users and its lock.
pub fn findings(image: &Image) -> Vec<Finding> {
    let mut findings: Vec<Finding> = in_use(image).into_iter().collect();
    if let Reading::Known(lock) = &image.facts.lock {
        match external_locker(lock) {
            Some(locker) => findings.push(external(image, locker)),
            None => findings.extend(stale(image)),
        }
    }
    findings
}

/// Somebody else has the image open.
fn in_use(image: &Image) -> Option<Finding> {
    if is_to_be_open(image.survey) {
        return None;
    }
    let watchers = match &image.facts.watchers {
        Reading::Known(watchers) => watchers,
        Reading::Unknown(failure) => return Some(Finding::new(Code::InUseUnknown, failure.to_string())),
    };
    let own = image.mapped.known().map_or(&[][..], Vec::as_slice);
    let harmless = |w: &Watcher| is_own(w, own) || image.mirror_daemons.contains(w);
    let others: Vec<&Watcher> = watchers.iter().filter(|w| !harmless(w)).collect();
    if others.is_empty() {
        return None;
    }
    let detail = others.iter().map(|w| client(image, w)).collect::<Vec<_>>().join("; ");
    if let Some(Reading::Unknown(failure)) = &image.disk.mirror_daemons {
        let detail = format!(
            "{detail}: the image is mirrored, and whether that is rbd-mirror is not known: {failure}"
        );
        return Some(Finding::new(Code::InUseUnknown, detail));
    }
    let blocklist = blocklist_of(image.survey, image.disk);
    let dead = |w: &&Watcher| blocklist.is_some_and(|list| entry_of(&w.address, list).is_some());
    let code = if others.iter().all(dead) { Code::LockDying } else { Code::InUseElsewhere };
    let command = image.rbd(&["status", &image.spec.image]);
    Some(Finding::new(code, detail).remedy(RemedyKind::Wait, code.remedy()).commands([command]))
}

/// `client.4127 at 10.0.0.2:0/77 (node pve2, with guest 516), it owns the exclusive lock`.
fn client(image: &Image, watcher: &Watcher) -> String {
    let lock = if owns_lock(image.facts, watcher) { ", it owns the exclusive lock" } else { "" };
    let node = image.survey.node.whereabouts.get(&watcher.address);
    let node = node.map(|node| format!(" ({node})")).unwrap_or_default();
    format!("client.{} at {}{node}{lock}", watcher.client, watcher.address)
}

/// The watcher owns the image's exclusive lock.
pub(super) fn owns_lock(facts: &ImageFacts, watcher: &Watcher) -> bool {
    let mut lockers = facts.lock.known().into_iter().flat_map(|lock| &lock.lockers);
    lockers.any(|locker| watcher_of(locker, std::slice::from_ref(watcher)).is_some())
}

/// The watch of this node's own mapping: the kernel's client has one address for all its mappings.
fn is_own(watcher: &Watcher, mapped: &[Mapping]) -> bool {
    mapped.iter().any(|mapping| mapping.client_address == watcher.address)
}

/// A lock set by hand stops whoever needs the exclusive lock; PVE gives every krbd disk that feature.
fn external(image: &Image, locker: &Locker) -> Finding {
    let needs_lock = image.by_kernel() || image.facts.features.contains(Features::EXCLUSIVE_LOCK);
    let detail = format!("{} at {}, id \"{}\"", locker.client, locker.address, locker.cookie);
    let command = image.rbd(&["lock", "ls", &image.spec.image]);
    let finding = Finding::new(Code::LockExternal, detail).commands([command]);
    if needs_lock { finding } else { finding.severity(Severity::Warning) }
}

/// Whether the disk's image has a lock that will have to be broken at the start.
pub fn is_stale(disk: &DiskFacts) -> bool {
    unwatching(disk).is_some()
}

fn stale(image: &Image) -> Option<Finding> {
    let owner = unwatching(image.disk)?;
    if !image.facts.features.contains(Features::EXCLUSIVE_LOCK) {
        return None;
    }
    let detail = format!("{} at {} has no watch on the image", owner.client, owner.address);
    let life = if is_to_be_open(image.survey) { None } else { life(image.survey, image.disk) };
    if let Some(Life::Alive(open)) = &life {
        let finding = Finding::new(Code::LockOwnerAlive, format!("{detail}, but {}", open.join(", ")))
            .remedy(RemedyKind::Wait, Code::LockOwnerAlive.remedy());
        return Some(finding.commands([image.rbd(&["lock", "ls", &image.spec.image])]));
    }
    let change = Change::BreakLock { owner: LockOwner::from(owner) };
    let gave_up = image.gave_up(&image.action(change.clone()));
    let refused = [Some(Errno::EACCES as i32), Some(Errno::EPERM as i32)];
    let may_not = caps_of(image).and_then(may_blocklist) == Some(false);
    if may_not || gave_up.is_some_and(|(errno, _)| refused.contains(&errno)) {
        return Some(not_permitted(image, &detail));
    }
    if let Some(Life::Unknown(why)) = life {
        let mut finding = Finding::new(Code::LockStale, detail);
        finding.remedy.withheld = Some(format!("it may live: {why}"));
        return Some(finding.commands([image.rbd(&["lock", "ls", &image.spec.image])]));
    }
    if image.by_kernel() && expires(image) {
        // librbd cannot; krbd sends no time with the entry, and breaks it as it maps.
        let text = "the kernel breaks the lock when it maps the image";
        return Some(Finding::new(Code::LockStale, detail).remedy(RemedyKind::None, text));
    }
    let finding =
        Finding::new(Code::LockStale, detail).remedy(RemedyKind::Manual, what_it_does(owner, life.as_ref()));
    Some(image.mend(finding, image.settings.change.locks, vec![change]))
}

/// What taking the lock over does, and when it can be done.
fn what_it_does(owner: &Locker, life: Option<&Life>) -> String {
    let fence = format!(
        "librbd puts {} on the OSD blocklist first, for an hour unless `mon_osd_blocklist_default_expire` says otherwise",
        owner.address
    );
    match life {
        Some(Life::Fenced) => {
            "let librbd break the lock; its owner is on the OSD blocklist already".to_owned()
        }
        Some(Life::NotYet(seconds)) => {
            format!("let librbd break the lock, after a second look for its owner in {seconds} s; {fence}")
        }
        _ => format!("let librbd break the lock; {fence}"),
    }
}

/// `rbd_blocklist_expire_seconds` is set for the image's cluster.
fn expires(image: &Image) -> bool {
    let cluster = image.survey.cluster_of(image.disk).and_then(Reading::known);
    cluster.is_some_and(|facts| matches!(facts.blocklist_expire_seconds, Reading::Known(1..)))
}

fn caps_of<'a>(image: &Image<'a>) -> Option<&'a Caps> {
    image.storage()?.caps.as_ref()?.known()
}

/// krbd and librbd both put a dead owner on the blocklist before they break its lock.
pub fn not_permitted(image: &Image, detail: &str) -> Finding {
    let user = image.storage().map_or("admin", |storage| storage.connection.user.as_str());
    let finding = Finding::new(
        Code::LockBreakNotPermitted,
        format!("{detail}; client.{user} may not blocklist its owner"),
    );
    match caps_of(image) {
        Some(caps) => finding.commands([caps_command(user, caps)]),
        None => {
            let storages = image.storage().map(|storage| &storage.section);
            finding
                .remedy(RemedyKind::Manual, template_remark(user))
                .commands([caps_template(user, storages)])
        }
    }
}
