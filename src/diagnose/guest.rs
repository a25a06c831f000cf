//! What there is to say of the guest itself, before any image is looked at.

use crate::diagnose::finding::{Finding, RemedyKind};
use crate::diagnose::safety::HARMLESS_LOCKS;
use crate::finding_codes::{Code, Severity};
use crate::observe::survey::{DiskFacts, Survey};
use crate::pve::guest::{Note, Refusal, RefusalKind};
use crate::reading::Reading;

/// Findings about the guest, its config and its node.
pub fn findings(survey: &Survey) -> Vec<Finding> {
    let mut findings: Vec<Finding> = survey.guest.refusals.iter().map(refusal).collect();
    if let Some(note) = &survey.guest.parser_dies {
        findings.push(Finding::new(Code::ConfigUnreadable, at(note)));
    }
    findings.extend(state(survey));
    findings.extend(shared(survey));
    let notes = survey.guest.notes.iter();
    findings.extend(notes.map(|note| Finding::new(Code::ConfigLineDropped, at(note))));
    findings
}

fn at(note: &Note) -> String {
    format!("{}:{}: {}", note.file, note.line, note.text)
}

fn refusal(refusal: &Refusal) -> Finding {
    let code = match refusal.kind {
        RefusalKind::StorageUnknown => Code::StorageUnknown,
        RefusalKind::StorageDisabled => Code::StorageDisabled,
        RefusalKind::StorageNotOnNode => Code::StorageNotOnNode,
        RefusalKind::ContentMissing => Code::StorageContent,
        RefusalKind::VolumeNameInvalid => Code::VolumeNameInvalid,
    };
    let mut finding =
        Finding::new(code, format!("{} is {}: {}", refusal.key, refusal.volid, refusal.message));
    finding.disk = Some(refusal.key.clone());
    if let Some(plugin) = &refusal.foreign_type {
        // Where that plugin is installed PVE refuses nothing.
        finding.detail.push_str(&format!("; its type `{plugin}` is not one of PVE's own"));
        return finding.severity(Severity::Note);
    }
    match code {
        Code::StorageDisabled => finding.commands([format!("pvesm set {} --disable 0", refusal.storage)]),
        _ => finding,
    }
}

/// What keeps changes off this guest, as far as an administrator has to know it.
fn state(survey: &Survey) -> Vec<Finding> {
    let (guest, node) = (&survey.guest, &survey.node);
    let mut findings = Vec::new();
    if guest.node != node.name {
        let detail = format!("its config is in {}'s directory; this node is {}", guest.node, node.name);
        findings.push(Finding::new(Code::GuestOnOtherNode, detail));
    }
    if node.running == Reading::Known(true) {
        findings.push(Finding::new(Code::GuestRunning, format!("guest {} is running", guest.vmid)));
    }
    if node.quorate == Reading::Known(false) {
        findings.push(Finding::new(Code::QuorumMissing, format!("node {} is not quorate", node.name)));
    }
    for failure in [node.running.failure(), node.quorate.failure()].into_iter().flatten() {
        findings.push(Finding::new(Code::GuestStateUnknown, failure.to_string()));
    }
    if let Some(lock) = guest.locked() {
        let mut finding = Finding::new(Code::GuestLocked, format!("lock: {lock}"));
        if HARMLESS_LOCKS.contains(&lock) {
            finding.summary =
                "the guest's config is locked, in a way that keeps nothing from being repaired".to_owned();
            finding = finding.remedy(RemedyKind::None, "");
        }
        findings.push(finding);
    }
    if guest.template {
        findings.push(Finding::new(Code::GuestTemplate, "template: 1"));
    }
    findings
}

/// Images that more than one disk names, in this guest or in others.
fn shared(survey: &Survey) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, disk) in survey.disks.iter().enumerate() {
        let Some(spec) = disk.spec() else { continue };
        let twin = survey.disks[..index].iter().find(|other| is_same(survey, disk, other));
        let mut named_by: Vec<String> =
            twin.iter().map(|t| format!("{} of this guest", t.disk.key)).collect();
        named_by.extend(disk.shared_with.iter().map(|vmid| format!("guest {vmid}")));
        if named_by.is_empty() {
            continue;
        }
        let mut finding = Finding::new(Code::ImageShared, format!("also named by {}", named_by.join(", ")));
        finding.disk = Some(disk.disk.key.clone());
        finding.image = Some(spec.to_string());
        findings
            .push(finding.severity(Severity::Warning).remedy(RemedyKind::Manual, Code::ImageShared.remedy()));
    }
    findings
}

/// Two disks are one image, as far as is known: one name in two clusters is two images (PVE bug 3969).
fn is_same(survey: &Survey, one: &DiskFacts, two: &DiskFacts) -> bool {
    match (survey.identity(one), survey.identity(two)) {
        (Some(one), Some(two)) => one.may_be(two),
        _ => one.disk.storage == two.disk.storage && one.spec() == two.spec(),
    }
}
