//! One image as the rules look at it, and what there is to say before its features and locks.

use crate::ceph::image::{ImageFacts, ImageReading, Trashed};
use crate::diagnose::finding::{Finding, RemedyKind};
use crate::diagnose::{advice, owner, rights, safety};
use crate::finding_codes::{Code, Severity};
use crate::kernel::{KernelFacts, Mapping};
use crate::observe::lock_owner::{self, Life};
use crate::observe::survey::{DiskFacts, StorageFacts, Survey};
use crate::pve::connection::rbd_arguments;
use crate::pve::guest::{Access, Role};
use crate::rbd::action::{Action, ActionReport, Change, Target};
use crate::rbd::address::same_client;
use crate::rbd::features::Features;
use crate::rbd::lock::Watcher;
use crate::rbd::spec::Spec;
use crate::reading::{Failure, Reading};
use crate::settings::DiskSettings;
use crate::settings::policy::{Policy, Scope};
use crate::sys::command::Command;
use crate::sys::dates;
use nix::errno::Errno;

/// Why a change is left for later at boot.
const AT_BOOT: &str = "at boot all guests would have to wait for the second look that shows whether the lock's owner is \
     dead; the guest's hook does it at its start, or a later repair";

/// An image that was read, with all that decides about it.
pub struct Image<'a> {
    /// The survey that the image is part of.
    pub survey: &'a Survey,
    /// The disk in the guest's config.
    pub disk: &'a DiskFacts,
    /// The image's name.
    pub spec: Spec,
    /// What Ceph says of it.
    pub facts: &'a ImageFacts,
    /// The settings for its storage.
    pub settings: DiskSettings,
    /// Which changes are wanted now.
    pub scope: Scope,
    /// No guest of the node starts before this is over.
    pub at_boot: bool,
    /// Its features are to be taken off and put back.
    pub reset: bool,
    /// Where this node's kernel has it mapped.
    pub mapped: Reading<Vec<Mapping>>,
    /// Why nothing may be changed on it; `None` if it may.
    pub forbidden: Option<String>,
    /// Why it may not be mapped; `None` if it may. rbd-mirror's daemon at a primary image does not keep it from that, nor does the
    /// cluster's manager.
    map_forbidden: Option<String>,
    /// Watchers that are rbd-mirror's, copy the image to another cluster and write nothing to it.
    pub mirror_daemons: Vec<Watcher>,
    /// Watchers that are the cluster's manager, which hands the lock over.
    pub managers: Vec<Watcher>,
    /// Why nothing may be done for its guest, whatever the image; `None` if it may.
    pub guest_forbidden: Option<String>,
    /// How its changes reach it.
    target: Target,
}

impl<'a> Image<'a> {
    /// The view of a disk whose image was found; `None` for any other.
    pub fn of(survey: &'a Survey, policy: &Policy, disk: &'a DiskFacts) -> Option<Self> {
        let spec = disk.spec()?;
        let Some(ImageReading::Found(facts)) = &disk.reading else { return None };
        let storage = survey.storages.get(&disk.disk.storage)?;
        let mapped = survey.mapped(disk);
        let guest_forbidden = policy.forbids(&storage.section.id).or_else(|| safety::guest_forbids(survey));
        let mirror_daemons = mirror_daemons(disk, facts);
        let managers = managers(disk, facts);
        let harmless = [&mirror_daemons[..], &managers].concat();
        let forbids = |harmless: &[Watcher]| {
            let by_guest = guest_forbidden.clone();
            by_guest.or_else(|| image_forbids(survey, disk, facts, &mapped, harmless))
        };
        let (forbidden, map_forbidden) = (forbids(&[]), forbids(&harmless));
        let target = Target {
            storage: storage.section.id.clone(),
            fsid: survey.cluster_of(disk)?.known()?.fsid.clone(),
            spec: spec.clone(),
            id: Some(facts.id.clone()),
            rbd_arguments: rbd_arguments(&storage.section, &storage.connection),
        };
        let settings = policy.disk(&storage.section.id).clone();
        Some(Self {
            survey,
            disk,
            spec,
            facts,
            settings,
            mapped,
            forbidden,
            map_forbidden,
            mirror_daemons,
            managers,
            guest_forbidden,
            target,
            scope: policy.scope,
            at_boot: policy.at_boot,
            reset: policy.reset,
        })
    }

    /// The disk's storage; `None` where storage.cfg has none of that name.
    pub fn storage(&self) -> Option<&'a StorageFacts> {
        self.survey.storages.get(&self.disk.disk.storage)
    }

    /// The cluster's fsid.
    pub fn fsid(&self) -> &str {
        &self.target.fsid
    }

    /// What Ceph says of it, less the watches of this node's own mappings.
    pub fn facts_unmapped(&self) -> ImageFacts {
        let mapped = self.mapped.known().into_iter().flatten();
        let own: Vec<&str> = mapped.map(|mapping| mapping.client_address.as_str()).collect();
        let mut facts = self.facts.clone();
        if let Reading::Known(watchers) = &mut facts.watchers {
            watchers.retain(|watcher| !own.contains(&watcher.address.as_str()));
        }
        facts
    }

    /// The image as it would be if this node's kernel did not have it mapped; `facts` are [`Self::facts_unmapped`].
    pub fn unmapped<'b>(&'b self, facts: &'b ImageFacts) -> Image<'b> {
        let mapped = Reading::Known(Vec::new());
        let by_guest = self.guest_forbidden.clone();
        let forbidden = by_guest.or_else(|| image_forbids(self.survey, self.disk, facts, &mapped, &[]));
        Image {
            facts,
            mapped,
            forbidden,
            map_forbidden: self.map_forbidden.clone(),
            mirror_daemons: self.mirror_daemons.clone(),
            managers: self.managers.clone(),
            guest_forbidden: self.guest_forbidden.clone(),
            spec: self.spec.clone(),
            settings: self.settings.clone(),
            target: self.target.clone(),
            ..*self
        }
    }

    /// The kernel opens it.
    pub fn by_kernel(&self) -> bool {
        self.disk.disk.access == Access::Krbd
    }

    /// It is a copy of an image that is mirrored from another cluster: nobody may write to it but rbd-mirror.
    pub fn is_copy(&self) -> bool {
        let mirroring = self.facts.mirroring.known().and_then(Option::as_ref);
        self.facts.features.contains(Features::NON_PRIMARY) || mirroring.is_some_and(|m| !m.primary)
    }

    /// What this node's kernel can do and has mapped.
    pub fn kernel(&self) -> &'a KernelFacts {
        &self.survey.node.kernel
    }

    /// A finding whose remedy is these changes: automatic where the gate lets them pass and the settings allow
    /// them, else for an administrator, with the reason why.
    pub fn fix(&self, finding: Finding, allowed: bool, changes: Vec<Change>) -> Finding {
        let actions: Vec<Action> =
            changes.into_iter().map(|change| Action { target: self.target.clone(), change }).collect();
        let commands: Vec<String> = actions.iter().map(Action::command_line).collect();
        let text = finding.remedy.text.clone();
        let mut finding = match self.why_not(&actions, allowed) {
            Some(why) => {
                let mut finding = finding.remedy(RemedyKind::Manual, text);
                finding.remedy.refused = self.forbidden.is_some();
                finding.remedy.withheld = Some(why);
                finding
            }
            None => {
                let mut finding = finding.remedy(RemedyKind::Automatic, text);
                finding.remedy.actions = actions;
                finding
            }
        };
        finding.remedy.commands.extend(commands);
        finding
    }

    /// Why changes are not made by `repair`; `None` if they are.
    fn why_not(&self, actions: &[Action], allowed: bool) -> Option<String> {
        let by_settings = || (!allowed).then(|| "the settings do not allow it (`change:`)".to_owned());
        let by_failure = || {
            let failed = actions.iter().find_map(|action| self.gave_up(action))?;
            Some(format!("it was tried and failed: {}", failed.1))
        };
        let is_rebuild = |action: &Action| matches!(action.change, Change::RebuildObjectMap { .. });
        let later =
            self.scope == Scope::AfterStop && !self.disk.disk.before_hook && !actions.iter().all(is_rebuild);
        let by_scope = || later.then(|| "the next start does it".to_owned());
        let by_boot = || self.is_for_the_hook(actions).then(|| AT_BOOT.to_owned());
        let only_maps = actions.iter().all(Action::is_map);
        let forbidden = if only_maps { &self.map_forbidden } else { &self.forbidden };
        let reasons = forbidden.clone().or_else(by_settings).or_else(by_scope);
        reasons.or_else(by_boot).or_else(by_failure)
    }

    /// At boot all guests would wait for a second look at the owner of its lock. The hook of its own guest can, except for
    /// what PVE opens before it; and a lock alone is broken by whoever opens the image.
    fn is_for_the_hook(&self, actions: &[Action]) -> bool {
        let breaks_lock = |action: &Action| matches!(action.change, Change::BreakLock { .. });
        let waits = || matches!(lock_owner::life(self.survey, self.disk), Some(Life::NotYet(_)));
        self.at_boot && (!self.disk.disk.before_hook || actions.iter().all(breaks_lock)) && waits()
    }

    /// What this run has done on this image, and on no other that has its name: in another cluster, or before it.
    fn history(&self) -> impl Iterator<Item = &'a ActionReport> {
        let own = self.target.identity();
        self.survey.history.iter().filter(move |report| report.action.target.identity().may_be(own))
    }

    /// This run has mapped it.
    pub fn was_mapped(&self) -> bool {
        self.history().any(|report| report.done() && report.action.is_map())
    }

    /// What this run has done on this image since its last change that was made: what failed before that one
    /// may have failed because of what it fixed.
    pub fn recent(&self) -> Vec<&'a ActionReport> {
        let all: Vec<&ActionReport> = self.history().collect();
        let since = all.iter().rposition(|report| report.done()).map_or(0, |last| last + 1);
        all[since..].to_vec()
    }

    /// The features that this run has taken off the image together with its lock, and those that it has put back since.
    pub fn reset_so_far(&self) -> (Option<Features>, Features) {
        let mut so_far = (None, Features::NONE);
        for report in self.history().filter(|report| report.done()) {
            match &report.action.change {
                Change::DisableFeatures { features } if features.contains(Features::EXCLUSIVE_LOCK) => {
                    so_far = (Some(*features), Features::NONE);
                }
                Change::EnableFeatures { features } => so_far.1 = so_far.1 | *features,
                _ => {}
            }
        }
        so_far
    }

    /// The last failure of a change that is not to be tried again in this run.
    pub fn gave_up(&self, action: &Action) -> Option<(Option<i32>, &'a str)> {
        let failures: Vec<_> = self
            .recent()
            .into_iter()
            .filter(|r| r.action == *action)
            .filter_map(ActionReport::failure)
            .collect();
        let last = *failures.last()?;
        (failures.len() >= tries(action, last.0)).then_some(last)
    }

    /// A change of this image, as an action.
    pub fn action(&self, change: Change) -> Action {
        Action { target: self.target.clone(), change }
    }

    /// A command line for an administrator, with PVE's arguments for this storage.
    pub fn rbd(&self, arguments: &[&str]) -> String {
        Command::new("rbd").args(&self.target.rbd_arguments).args(arguments).display()
    }

    /// The same for a subcommand that takes the pool as an argument, and neither `-p` nor `--namespace`.
    pub fn rbd_of_pool(&self, arguments: &[&str]) -> String {
        let pairs = self.target.rbd_arguments.chunks(2);
        let kept = pairs
            .filter(|pair| !pair.first().is_some_and(|option| option == "-p" || option == "--namespace"));
        Command::new("rbd").args(kept.flatten()).args(arguments).display()
    }
}

/// Why an image itself may not be changed: by the gate, or since its lock would be taken from somebody who may live.
fn image_forbids(
    survey: &Survey,
    disk: &DiskFacts,
    facts: &ImageFacts,
    mapped: &Reading<Vec<Mapping>>,
    harmless: &[Watcher],
) -> Option<String> {
    safety::image_forbids(&disk.spec()?, facts, mapped, harmless).or_else(|| owner::forbids(survey, disk))
}

/// rbd-mirror's daemons among those who watch an image. Whoever owns its lock is none, whatever else it is: it writes.
fn mirror_daemons(disk: &DiskFacts, facts: &ImageFacts) -> Vec<Watcher> {
    let daemons = disk.mirror_daemons.as_ref().and_then(Reading::known).map_or(&[][..], Vec::as_slice);
    // Its watches on the pool and on the image have cookies of their own.
    let is_one = |watcher: &&Watcher| {
        daemons.iter().any(|daemon| (daemon.client, &daemon.address) == (watcher.client, &watcher.address))
    };
    let watchers = facts.watchers.known().into_iter().flatten().filter(is_one);
    watchers.filter(|watcher| !facts.is_locked_by(watcher)).cloned().collect()
}

/// The cluster's manager among those who watch an image, by the address that the monitors have of its clients.
fn managers(disk: &DiskFacts, facts: &ImageFacts) -> Vec<Watcher> {
    let clients = disk.manager.as_ref().and_then(|manager| manager.clients.known());
    let is_one = |watcher: &&Watcher| {
        clients.is_some_and(|clients| clients.iter().any(|client| same_client(client, &watcher.address)))
    };
    facts.watchers.known().into_iter().flatten().filter(is_one).cloned().collect()
}

/// How often a change is tried at most that fails with this errno. Ceph may answer 22 or 110 once for no good
/// reason (Ceph PR 66581; a watcher that is dying), and a map that got no answer may get one the next time.
fn tries(action: &Action, errno: Option<i32>) -> usize {
    let known = errno.map(Errno::from_raw);
    match (&action.change, known) {
        (Change::Map { .. }, None | Some(Errno::ETIMEDOUT | Errno::EIO)) => 3,
        // udev, or who else looks at a disk for a moment.
        (Change::Unmap { .. }, Some(Errno::EBUSY)) => 3,
        (_, Some(Errno::EINVAL | Errno::ETIMEDOUT)) => 2,
        _ => 1,
    }
}

/// What there is to say of an image that was not found or not read.
pub fn reading_findings(survey: &Survey, disk: &DiskFacts) -> Vec<Finding> {
    let spec = disk.spec().map(|spec| spec.to_string()).unwrap_or_default();
    let finding = match &disk.reading {
        None | Some(ImageReading::Found(_)) => return Vec::new(),
        Some(reading) if reading.is_gone() && disk.disk.role == Role::Cloudinit => {
            let detail = format!("no image {spec}; PVE makes a new one at the start");
            Finding::new(Code::ImageMissing, detail).severity(Severity::Note).remedy(RemedyKind::None, "")
        }
        Some(ImageReading::InTrash(trashed)) => in_trash(survey, disk, &spec, trashed),
        Some(ImageReading::ImageMissing) => Finding::new(Code::ImageMissing, format!("no image {spec}")),
        Some(ImageReading::PoolMissing) => {
            Finding::new(Code::PoolMissing, format!("no pool {}", disk.disk.pool))
        }
        Some(ImageReading::NamespaceMissing) => {
            let namespace = disk.disk.namespace.as_deref().unwrap_or_default();
            Finding::new(
                Code::NamespaceMissing,
                format!("no namespace {namespace} in pool {}", disk.disk.pool),
            )
        }
        Some(ImageReading::ParentMissing(failure)) => Finding::new(Code::ParentMissing, failure.to_string()),
        // A cluster that does not answer, or not this node, is told once, not for every image.
        Some(ImageReading::Unknown(failure))
            if failure.errno == Some(Errno::ESHUTDOWN as i32) && shut_out(survey, disk) =>
        {
            return Vec::new();
        }
        Some(ImageReading::Unknown(_)) if survey.cluster_of(disk).is_none_or(|c| c.known().is_none()) => {
            return Vec::new();
        }
        Some(ImageReading::Unknown(failure)) if failure.is_no_answer() => {
            Finding::new(Code::ClusterUnreachable, failure.to_string())
                .remedy(RemedyKind::Wait, Code::ClusterUnreachable.remedy())
        }
        Some(ImageReading::Unknown(failure)) => rights::refused(survey, disk, failure).unwrap_or_else(|| {
            Finding::new(Code::ImageUnreadable, failure.to_string())
                .remedy(RemedyKind::Manual, advice::unread(survey.guest.vmid, &[failure]))
        }),
    };
    vec![finding]
}

/// This node as a whole is on the blocklist of the disk's cluster.
fn shut_out(survey: &Survey, disk: &DiskFacts) -> bool {
    survey.cluster_of(disk).and_then(Reading::known).is_some_and(|facts| facts.node_entry().is_some())
}

/// The image was moved to the trash: what is there, until when, and how it comes back.
fn in_trash(survey: &Survey, disk: &DiskFacts, spec: &str, trashed: &[Trashed]) -> Finding {
    let entry = |trashed: &Trashed| {
        let by = match trashed.source.as_str() {
            "user" | "user-parent" => String::new(),
            "removing" => ", its removal has begun".to_owned(),
            source => format!(", by {source}"),
        };
        let kept = match trashed.kept_until > trashed.deleted {
            true => format!("kept until {}", dates::shown(trashed.kept_until)),
            false => "may be purged at any time".to_owned(),
        };
        format!("as id {}, moved there {}{by}, {kept}", trashed.id, dates::shown(trashed.deleted))
    };
    let told: Vec<String> = trashed.iter().map(entry).collect();
    let finding =
        Finding::new(Code::ImageInTrash, format!("no image {spec}; in the trash: {}", told.join("; ")));
    let can_come_back = |trashed: &&Trashed| !["removing", "migration"].contains(&trashed.source.as_str());
    let storage = survey.storages.get(&disk.disk.storage);
    let commands = trashed.iter().filter(can_come_back).zip(storage.into_iter().cycle());
    finding.commands(commands.map(|(trashed, storage)| {
        let rbd = Command::new("rbd").args(rbd_arguments(&storage.section, &storage.connection));
        rbd.args(["trash", "restore", trashed.id.as_str()]).display()
    }))
}

/// What there is to say of an image as a whole.
pub fn findings(image: &Image) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(unread(image));
    findings.extend(mirroring(image));
    findings.extend(manager(image));
    findings.extend(migration(image));
    findings
}

/// Facts that could not be read and that decide nothing here by themselves; watchers have a code of their own.
fn unread(image: &Image) -> Option<Finding> {
    let facts = image.facts;
    let unknown: Vec<&Failure> = [
        facts.flags.failure(),
        facts.snapshots.failure(),
        facts.lock.failure(),
        facts.parents.failure(),
        facts.mirroring.failure(),
        facts.migration.failure(),
    ]
    .into_iter()
    .flatten()
    .collect();
    let told: Vec<String> = unknown.iter().map(ToString::to_string).collect();
    let finding = || Finding::new(Code::FactsIncomplete, told.join("; "));
    let advice = || advice::unread(image.survey.guest.vmid, &unknown);
    (!unknown.is_empty()).then(|| finding().remedy(RemedyKind::Manual, advice()))
}

fn mirroring(image: &Image) -> Option<Finding> {
    let mirroring = image.facts.mirroring.known().and_then(Option::as_ref);
    if image.is_copy() {
        let mode = mirroring.map_or("unknown mode", |m| m.mode.as_str());
        let command = image.rbd(&["mirror", "image", "promote", &image.spec.image]);
        let watchers = image.facts.watchers.known().into_iter().flatten();
        let open: String = watchers
            .map(|w| {
                format!("; client.{} at {} has it open, as this site's rbd-mirror does", w.client, w.address)
            })
            .collect();
        return Some(
            Finding::new(Code::ImageNonPrimary, format!("mirrored by {mode}, non-primary here{open}"))
                .commands([command]),
        );
    }
    let mirroring = mirroring?;
    let daemons: Vec<String> = image
        .mirror_daemons
        .iter()
        .map(|daemon| format!("; rbd-mirror at {} copies it", daemon.address))
        .collect();
    let detail =
        format!("mirrored by {}, {}, primary here{}", mirroring.mode, mirroring.state, daemons.concat());
    let blocked = image.by_kernel() && image.facts.features.contains(Features::JOURNALING);
    let finding = Finding::new(Code::ImageMirrored, detail);
    Some(if blocked {
        finding.severity(Severity::Blocker).remedy(
            RemedyKind::Manual,
            "the mirroring needs the journal, and no kernel maps a journaled image: set `krbd 0` on the storage, \
             or mirror the image by snapshots",
        )
    } else {
        finding
    })
}

/// The cluster's manager is at the image.
fn manager(image: &Image) -> Option<Finding> {
    let watcher = image.managers.first()?;
    let task = image.disk.manager.as_ref().and_then(|manager| manager.task.known()?.as_deref());
    let detail = format!(
        "client.{} at {}: {}",
        watcher.client,
        watcher.address,
        task.unwrap_or("none of its tasks names the image, so most likely a snapshot of a schedule")
    );
    Some(Finding::new(Code::ManagerTask, detail).remedy(RemedyKind::None, Code::ManagerTask.remedy()))
}

/// The kernel maps no image under migration; librbd opens one that is prepared.
fn migration(image: &Image) -> Option<Finding> {
    let state = image.facts.migration.known().and_then(Option::as_ref);
    if state.is_none() && !image.facts.features.contains(Features::MIGRATING) {
        return None;
    }
    let detail = format!("state: {}", state.map_or("migrating", String::as_str));
    let commands = ["execute", "commit"].map(|step| image.rbd(&["migration", step, &image.spec.image]));
    let finding = Finding::new(Code::ImageMigrating, detail).commands(commands);
    Some(if image.by_kernel() { finding } else { finding.severity(Severity::Warning) })
}
