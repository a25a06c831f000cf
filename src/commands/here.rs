//! `check --here`: every guest of the cluster as if it were this node's and stopped. What a rehearsal asks each node.

use crate::commands::many_guests::{Manner, Seen, look_by};
use crate::diagnose::finding::Finding;
use crate::finding_codes::{Code, Severity};
use crate::kernel::{self, module};
use crate::observe::rehearsed::as_if_stopped_here;
use crate::observe::survey::Survey;
use crate::plan::assessment::GuestReport;
use crate::plan::assessment::assess;
use crate::pve::ha;
use crate::pve::ha_rules::Rules;
use crate::pve::needs::{self, Place};
use crate::pve::node::{GuestFile, all_guests, node_name};
use crate::pve::snippet;
use crate::pve::storage::{self, StorageConfig};
use crate::reading::{Failure, error_text};
use crate::rehearsal::{as_rehearsed, lacking};
use crate::settings::policy::Policy;
use crate::sys::root::Root;
use anyhow::Result;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// Looks at every guest of the cluster as if it were this node's.
pub fn look(root: &Root, manner: Manner) -> Result<Seen> {
    let homes: BTreeMap<u32, GuestFile> =
        all_guests(root)?.into_iter().map(|file| (file.vmid, file)).collect();
    let node = node_name(root)?;
    let here: Vec<GuestFile> =
        homes.values().map(|file| GuestFile { node: node.clone(), ..file.clone() }).collect();
    let unloadable = module::loadable(root, &kernel::gather(root)).and_then(Result::err);
    let rehearsal = Rehearsal {
        root,
        storages: storage::load(root)?,
        place: Place::look(root, &node),
        managed: ha::resources(root)?.into_keys().collect(),
        rules: Rules::read(root),
        at: homes.values().map(|file| (sid(file), file.node.clone())).collect(),
        homes: &homes,
        unloadable: unloadable.map(|error| error_text(&error)),
    };
    let mut seen = look_by(root, &here, manner, &|survey, policy| rehearsal.judge(survey, policy))?;
    for unread in &mut seen.unread {
        if let Some(home) = homes.get(&unread.file.vmid) {
            unread.file.node.clone_from(&home.node);
        }
    }
    Ok(seen)
}

/// What the HA manager calls a guest.
fn sid(file: &GuestFile) -> String {
    match file.kind {
        crate::pve::words::Kind::Qemu => format!("vm:{}", file.vmid),
        crate::pve::words::Kind::Lxc => format!("ct:{}", file.vmid),
    }
}

/// What all guests are judged by.
struct Rehearsal<'a> {
    root: &'a Root,
    storages: StorageConfig,
    place: Place,
    managed: BTreeSet<u32>,
    rules: Result<Rules, Failure>,
    at: BTreeMap<String, String>,
    homes: &'a BTreeMap<u32, GuestFile>,
    unloadable: Option<String>,
}

impl Rehearsal<'_> {
    fn judge(&self, survey: Survey, policy: &Policy) -> GuestReport {
        let vmid = survey.guest.vmid;
        let home = self.homes.get(&vmid).map_or(&survey.guest.node, |file| &file.node).clone();
        let running = survey.node.running.clone();
        let mut survey = as_if_stopped_here(survey, &home);
        survey.node.kernel.load_failure.clone_from(&self.unloadable);
        // A module that cannot be loaded is told of disks that would have to be mapped.
        let policy = &Policy { map: self.unloadable.is_some(), ..policy.clone() };
        let mut report = assess(survey, policy);
        report.actions.clear();
        // The guest's own hookscript is told by its own finding.
        let told = report.findings.iter().any(|finding| finding.code == Code::HookscriptMissing);
        let lacks = self.lacks(&report.survey, &home).into_iter();
        let lacks = lacks.filter(|lack| !(told && lack.detail.starts_with("hookscript: ")));
        let more = lacks.chain(self.forbidden(vmid));
        let more = more.map(|finding| ignore(finding, policy)).collect::<Vec<_>>();
        report.findings.retain(|finding| finding.code != Code::CloudinitBeforeHook);
        let hook = report.survey.guest.hookscript.as_deref().and_then(crate::hook::snippet::ours).is_some();
        let late: BTreeSet<String> = report
            .survey
            .disks
            .iter()
            .filter(|disk| disk.disk.before_hook)
            .map(|disk| disk.disk.key.clone())
            .collect();
        let in_time =
            |finding: &Finding| hook && !finding.disk.as_ref().is_some_and(|key| late.contains(key));
        let all = report.findings.drain(..).chain(more);
        let mut findings: Vec<Finding> = all
            .map(|finding| {
                let hooked = in_time(&finding);
                as_rehearsed(finding, hooked)
            })
            .collect();
        findings.sort_by_key(|finding| Reverse(finding.severity));
        report.findings = findings;
        report.survey.guest.node = home;
        report.survey.node.running = running;
        report
    }

    /// What this node does not have that the guest needs.
    fn lacks(&self, survey: &Survey, home: &str) -> Vec<Finding> {
        let Some(file) = self.homes.get(&survey.guest.vmid) else { return Vec::new() };
        let config = match file.read(self.root) {
            Ok(config) => config,
            Err(failure) => return vec![not_known(&failure)],
        };
        let earlier = |volid: &str| crate::hook::snippet::ours(volid)?.earlier;
        let needs = needs::needs(file.kind, &config, &self.storages, earlier);
        let there = |path: &str| self.root.exists(path).into();
        let runs = |path: &str, volid: &str| snippet::check(self.root, path, volid);
        let guest = (survey.guest.vmid, home);
        let disks: Vec<&str> = survey.disks.iter().map(|disk| disk.disk.key.as_str()).collect();
        let lacks = needs::lacks(&needs, guest, &self.place, &there, &runs);
        lacks.iter().map(|lack| lacking(lack, &disks)).collect()
    }

    /// The rules of HA that keep a guest off this node.
    fn forbidden(&self, vmid: u32) -> Vec<Finding> {
        let Some(file) = self.homes.get(&vmid).filter(|_| self.managed.contains(&vmid)) else {
            return Vec::new();
        };
        match &self.rules {
            Ok(rules) => {
                let why = rules.forbid(&sid(file), &self.place.node, &self.at);
                why.into_iter().map(|why| Finding::new(Code::HaRuleForbids, why)).collect()
            }
            Err(failure) => {
                let finding = Finding::new(Code::HaRuleForbids, failure.to_string());
                vec![finding.severity(Severity::Unknown)]
            }
        }
    }
}

fn not_known(failure: &Failure) -> Finding {
    Finding::new(Code::ResourceMissing, failure.to_string()).severity(Severity::Unknown)
}

/// The settings may say that a finding shall stop nobody.
fn ignore(mut finding: Finding, policy: &Policy) -> Finding {
    if finding.severity > Severity::Warning && policy.ignored(None).contains(&finding.code) {
        finding.severity = Severity::Warning;
        finding.ignored = true;
    }
    finding
}
