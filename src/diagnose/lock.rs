//! Who has the image open, who owns its lock, and whether that owner is still there.

use crate::ceph::caps::{Caps, caps_command, caps_template, may_blocklist, template_remark};
use crate::diagnose::advice;
use crate::diagnose::finding::{Finding, RemedyKind};
use crate::diagnose::image::Image;
use crate::finding_codes::{Code, Severity};
use crate::kernel::Mapping;
use crate::observe::lock_owner::{Life, blocklist_of, is_to_be_open, life, unwatching};
use crate::rbd::action::{Change, LockOwner};
use crate::rbd::blocklist::entry_of;
use crate::rbd::features::Features;
use crate::rbd::lock::{Locker, Watcher};
use crate::reading::{Failure, Reading, is_not_permitted};

/// Findings about the image's users and its lock.
pub fn findings(image: &Image) -> Vec<Finding> {
    let mut findings: Vec<Finding> = in_use(image).into_iter().collect();
    if let Reading::Known(lock) = &image.facts.lock {
        match lock.set_by_hand() {
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
    // Nobody writes to a copy but rbd-mirror: `image-non-primary` tells of it.
    if image.is_copy() {
        return None;
    }
    let watchers = match &image.facts.watchers {
        Reading::Known(watchers) => watchers,
        Reading::Unknown(failure) => return Some(in_use_unknown(image, failure, failure.to_string())),
    };
    let own = image.mapped.known().map_or(&[][..], Vec::as_slice);
    let harmless =
        |w: &Watcher| is_own(w, own) || image.mirror_daemons.contains(w) || image.managers.contains(w);
    let others: Vec<&Watcher> = watchers.iter().filter(|w| !harmless(w)).collect();
    if others.is_empty() {
        return None;
    }
    let detail = others.iter().map(|w| client(image, w)).collect::<Vec<_>>().join("; ");
    if let Some(Reading::Unknown(failure)) = &image.disk.mirror_daemons {
        let detail = format!(
            "{detail}: the image is mirrored, and whether that is rbd-mirror is not known: {failure}"
        );
        return Some(in_use_unknown(image, failure, detail));
    }
    if let Some(why) = perhaps_the_manager(image, &others) {
        return Some(Finding::new(Code::InUseUnknown, format!("{detail}: {why}")));
    }
    let blocklist = blocklist_of(image.survey, image.disk);
    let dead = |w: &&Watcher| blocklist.is_some_and(|list| entry_of(&w.address, list).is_some());
    let code = if others.iter().all(dead) { Code::LockDying } else { Code::InUseElsewhere };
    let command = image.rbd(&["status", &image.spec.image]);
    let remedy = match code {
        Code::InUseElsewhere => found_and_stopped(image, &others),
        _ => code.remedy().to_owned(),
    };
    Some(Finding::new(code, detail).remedy(RemedyKind::Wait, remedy).commands([command]))
}

/// How clients are stopped that do not go by themselves. The last way out is shown as a sentence and not among the commands,
/// which are pasted: done to a client that lives it is what the tool is there against.
fn found_and_stopped(image: &Image, others: &[&Watcher]) -> String {
    let (here, away): (Vec<&Watcher>, Vec<&Watcher>) =
        others.iter().partition(|watcher| image.survey.node.has_client(&watcher.address));
    let mut text = Code::InUseElsewhere.remedy().to_owned();
    if !here.is_empty() {
        text += "; it is on this node: end its process here";
    }
    if !away.is_empty() {
        let commands = away.iter().map(|watcher| format!("`ceph osd blocklist add {}`", watcher.address));
        text += &format!(
            "; only where its host is off for good: {} shuts that client out for an hour, with every disk that it has open",
            commands.collect::<Vec<_>>().join(", ")
        );
    }
    text
}

/// The manager has a task for the image, and whether the only one who has it open is the manager is not known. Where nothing
/// names the image it is somebody else.
fn perhaps_the_manager(image: &Image, others: &[&Watcher]) -> Option<String> {
    let manager = image.disk.manager.as_ref()?;
    let failure = manager.clients.failure()?;
    let task = manager.task.known()?.as_deref()?;
    (others.len() == 1).then(|| {
        format!(
            "the cluster's manager has a task for it ({task}), and whether that is it is not known: {failure}"
        )
    })
}

/// It is not known whether somebody else has the image open, and what to do about that.
fn in_use_unknown(image: &Image, failure: &Failure, detail: String) -> Finding {
    let command = image.rbd(&["status", &image.spec.image]);
    Finding::new(Code::InUseUnknown, detail)
        .remedy(RemedyKind::Manual, advice::unread(image.survey.guest.vmid, &[failure]))
        .commands([command])
}

/// `client.4127 at 10.0.0.2:0/77 (node pve2, with guest 516), it owns the exclusive lock`.
fn client(image: &Image, watcher: &Watcher) -> String {
    let lock = if image.facts.is_locked_by(watcher) { ", it owns the exclusive lock" } else { "" };
    let node = image.survey.node.whereabouts.get(&watcher.address);
    let node = node.map(|node| format!(" ({node})")).unwrap_or_default();
    format!("client.{} at {}{node}{lock}", watcher.client, watcher.address)
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
    let may_not = caps_of(image).and_then(may_blocklist) == Some(false);
    if may_not || gave_up.is_some_and(|(errno, _)| errno.is_some_and(is_not_permitted)) {
        return Some(not_permitted(image, &detail));
    }
    if let Some(Life::Unknown(why)) = life {
        let mut finding = Finding::new(Code::LockStale, detail);
        finding.summary =
            "a client that does not have the image open owns its exclusive lock, and whether it is gone is not known"
                .to_owned();
        finding.remedy.withheld = Some(format!("its owner may be alive: {why}"));
        return Some(finding.commands([image.rbd(&["lock", "ls", &image.spec.image])]));
    }
    if expires(image) {
        // librbd cannot; krbd sends no time with the entry, and breaks it as it maps.
        let mut finding = Finding::new(Code::LockStale, detail);
        if image.by_kernel() {
            return Some(
                finding.remedy(RemedyKind::None, "the kernel breaks the lock when it maps the image"),
            );
        }
        finding.remedy.withheld = Some(
            "rbd_blocklist_expire_seconds is set, and librbd breaks no lock until it is removed".to_owned(),
        );
        return Some(finding);
    }
    let mut finding =
        Finding::new(Code::LockStale, detail).remedy(RemedyKind::Manual, what_it_does(owner, life.as_ref()));
    if matches!(life, Some(Life::NotYet(_))) {
        finding.summary = "a client that seems to be gone still owns the image's exclusive lock".to_owned();
    }
    Some(image.fix(finding, image.settings.change.locks, vec![change]))
}

/// What taking the lock over does, and when it can be done.
fn what_it_does(owner: &Locker, life: Option<&Life>) -> String {
    let fence = format!(
        "this puts {} on the OSD blocklist, for an hour unless `mon_osd_blocklist_default_expire` says otherwise",
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
