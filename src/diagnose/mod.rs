//! What is wrong with what was seen. Pure: no clock, no file, no socket.

mod advice;
pub mod budget;
mod client;
mod cluster;
pub mod connecting;
pub(crate) mod features;
pub mod finding;
mod guest;
pub(crate) mod image;
mod keys;
pub mod lock;
mod map_failure;
mod mapping;
pub use mapping::is_a_moment;
pub mod orphans;
pub mod owner;
mod parents;
mod protocol;
mod rbd_words;
pub mod rights;
pub mod safety;
mod service;
mod sharing;
pub mod stops;
mod stranger;
pub mod verdict;

use crate::finding_codes::Severity;
use crate::observe::survey::{DiskFacts, Survey};
use crate::settings::Mode;
use crate::settings::policy::Policy;
use finding::{Finding, RemedyKind};
use image::Image;
use std::borrow::Cow;

/// Everything there is to say of a survey, the gravest first, then in the order of the guest's disks.
pub fn diagnose(survey: &Survey, policy: &Policy) -> Vec<Finding> {
    let survey = &*looked_at(survey, policy);
    let mut findings = guest::findings(survey, policy);
    findings.extend(keys::findings(survey));
    findings.extend(cluster::findings(survey, policy));
    findings.extend(client::findings(survey, forbidden_here(survey, policy).as_deref()));
    for disk in &survey.disks {
        findings.extend(of_disk(survey, policy, disk));
    }
    for finding in &mut findings {
        if finding.severity > Severity::Warning && is_ignored(survey, policy, finding) {
            finding.severity = Severity::Warning;
            finding.ignored = true;
        }
    }
    service::keep_off_full_pools(&mut findings, survey);
    budget::share_out(&mut findings, survey, policy);
    stops::only_what_is_sure(survey, &mut findings);
    if findings.iter().any(|f| f.severity >= Severity::Blocker && f.remedy.kind != RemedyKind::Automatic) {
        // A guest that will not start needs no disk mapped.
        let maps =
            findings.iter_mut().filter(|finding| finding.code == crate::finding_codes::Code::NotMapped);
        maps.for_each(|finding| finding.remedy.withhold("the guest will not start".to_owned()));
    }
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    findings
}

/// The survey without what lies on storages that are `off`: nothing is done or reported there.
fn looked_at<'a>(survey: &'a Survey, policy: &Policy) -> Cow<'a, Survey> {
    let off = |storage: &str| policy.disk(storage).mode == Mode::Off;
    let named = survey.disks.iter().map(|disk| &disk.disk.storage);
    let refused = survey.guest.refusals.iter().map(|refusal| &refusal.storage);
    if !named.chain(refused).any(|storage| off(storage)) {
        return Cow::Borrowed(survey);
    }
    let mut survey = survey.clone();
    survey.disks.retain(|disk| !off(&disk.disk.storage));
    survey.storages.retain(|storage, _| !off(storage));
    survey.guest.refusals.retain(|refusal| !off(&refusal.storage));
    Cow::Owned(survey)
}

/// The settings say that a finding shall not stop the guest: those of its disk's storage, of every storage of its
/// cluster, or, where it is about neither, of the guest.
fn is_ignored(survey: &Survey, policy: &Policy, finding: &Finding) -> bool {
    let by = |storage: Option<&str>| policy.ignored(storage).contains(&finding.code);
    let disk = survey.disks.iter().find(|disk| Some(&disk.disk.key) == finding.disk.as_ref());
    match disk {
        Some(disk) => by(Some(&disk.disk.storage)),
        None => {
            by(None)
                || !finding.storages.is_empty() && finding.storages.iter().all(|storage| by(Some(storage)))
        }
    }
}

/// Why nothing may be done to this node's leftovers; `None` if it may.
fn forbidden_here(survey: &Survey, policy: &Policy) -> Option<String> {
    let storages = survey.storages.keys().map(String::as_str);
    let by_settings = storages.filter_map(|storage| policy.forbids(storage)).next();
    by_settings.or_else(|| safety::guest_forbids(survey))
}

/// What there is to say of one disk.
fn of_disk(survey: &Survey, policy: &Policy, disk: &DiskFacts) -> Vec<Finding> {
    let mut findings = image::reading_findings(survey, disk);
    findings.extend(stranger::findings(survey, policy, disk));
    if let Some(image) = Image::of(survey, policy, disk) {
        findings.extend(image::findings(&image));
        findings.extend(rights::findings(survey, disk, image.facts));
        findings.extend(features::findings(&image));
        findings.extend(parents::findings(&image));
        findings.extend(lock::findings(&image));
        findings.extend(mapping::findings(&image, policy.map));
        findings.extend(protocol::finding(&image, policy.map));
    }
    if disk.disk.before_hook && findings.iter().any(|finding| finding.severity > Severity::Note) {
        findings.push(Finding::new(crate::finding_codes::Code::CloudinitBeforeHook, String::new()));
    }
    let plainly_wrong = disk.disk.pve_drops.as_ref().is_some_and(|dropped| !dropped.unknown_option);
    for finding in &mut findings {
        finding.disk = Some(disk.disk.key.clone());
        finding.image = disk.spec().map(|spec| spec.to_string());
        if plainly_wrong {
            only_warn(finding);
        }
    }
    findings
}

/// A line that PVE drops cannot stop a start, and its image is not this guest's to change.
fn only_warn(finding: &mut Finding) {
    finding.severity = finding.severity.min(Severity::Warning);
    finding.remedy.withhold("PVE does not see this disk".to_owned());
}
