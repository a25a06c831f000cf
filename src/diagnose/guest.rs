//! What there is to say of the guest itself, before any image is looked at.

use crate::diagnose::finding::{Finding, RemedyKind};
use crate::diagnose::safety::HARMLESS_LOCKS;
use crate::finding_codes::{Code, Severity};
use crate::hook::snippet::ours;
use crate::observe::survey::{DiskFacts, Survey};
use crate::pve::config_lock;
use crate::pve::guest::{Guest, Refusal, RefusalKind};
use crate::pve::snippet::SnippetFacts;
use crate::pve::words::Note;
use crate::reading::Reading;
use crate::settings::policy::{Policy, Scope};

/// Findings about the guest, its config and its node.
pub fn findings(survey: &Survey, policy: &Policy) -> Vec<Finding> {
    let mut findings: Vec<Finding> = survey.guest.refusals.iter().map(refusal).collect();
    if let Some(note) = &survey.guest.parser_dies {
        findings.push(Finding::new(Code::ConfigUnreadable, at(note)));
    }
    findings.extend(state(survey, policy));
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

/// Whether a start here and now is what is asked about: by hand, of a guest of this node that does not run. A hook that
/// Proxmox VE has called is past its own checks, and a guest that runs is not started.
fn is_to_start(survey: &Survey, policy: &Policy) -> bool {
    let Survey { guest, node, .. } = survey;
    let by_hand = policy.scope == Scope::All && policy.read_only.is_none();
    by_hand && guest.node == node.name && node.running == Reading::Known(false) && !guest.template
}

/// What keeps Proxmox VE from starting this guest, and changes off it.
fn state(survey: &Survey, policy: &Policy) -> Vec<Finding> {
    let (guest, node) = (&survey.guest, &survey.node);
    let to_start = is_to_start(survey, policy);
    let mut findings = Vec::new();
    if guest.node != node.name {
        let detail = format!("its config is in {}'s directory; this node is {}", guest.node, node.name);
        findings.push(Finding::new(Code::GuestOnOtherNode, detail));
    }
    if node.running == Reading::Known(true) {
        findings.push(Finding::new(Code::GuestRunning, format!("guest {} is running", guest.vmid)));
    }
    if node.quorate == Reading::Known(false) {
        let finding = Finding::new(Code::QuorumMissing, format!("node {} is not quorate", node.name));
        let commands = ["pvecm status".to_owned()];
        findings
            .push(if to_start { finding } else { finding.severity(Severity::Warning) }.commands(commands));
    }
    for failure in [node.running.failure(), node.quorate.failure()].into_iter().flatten() {
        findings.push(Finding::new(Code::GuestStateUnknown, failure.to_string()));
    }
    findings.extend(guest.locked().map(|lock| locked(guest, lock, to_start)));
    if guest.template {
        findings.push(Finding::new(Code::GuestTemplate, "template: 1"));
    }
    findings.extend(node.snippets.iter().map(|facts| snippet(guest, facts, to_start)));
    findings
}

/// `lock:` in the config. What runs, or is being started by Proxmox VE, is not held up by it.
fn locked(guest: &Guest, lock: &str, to_start: bool) -> Finding {
    let finding = Finding::new(Code::GuestLocked, format!("lock: {lock}"));
    if to_start && !config_lock::lets_start(guest.kind, lock) {
        return finding.remedy(RemedyKind::Manual, config_lock::way_out(guest.kind, guest.vmid, lock));
    }
    let mut finding = finding.severity(Severity::Note).remedy(RemedyKind::None, "");
    finding.summary = if HARMLESS_LOCKS.contains(&lock) {
        "the guest's config is locked, in a way that keeps nothing from being repaired".to_owned()
    } else {
        "the guest's config is locked by another operation; nothing is changed".to_owned()
    };
    finding
}

/// A hookscript or a cloud-init snippet that Proxmox VE does not take. In a hook it has taken them already.
fn snippet(guest: &Guest, facts: &SnippetFacts, to_start: bool) -> Finding {
    let hookscript = facts.option == "hookscript";
    let code = if hookscript { Code::HookscriptMissing } else { Code::CicustomMissing };
    let of = |why: &dyn std::fmt::Display| format!("{}: {}: {why}", facts.option, facts.volid);
    let finding = match &facts.refused {
        Reading::Known(why) => Finding::new(code, of(why)),
        Reading::Unknown(failure) => {
            let mut finding = Finding::new(code, of(failure)).severity(Severity::Note);
            finding.summary =
                "it could not be looked at whether a snippet of the guest's is there".to_owned();
            return finding.remedy(RemedyKind::None, "");
        }
    };
    if !to_start {
        return finding.severity(Severity::Note).remedy(RemedyKind::None, "");
    }
    let (tool, vmid) = (guest.tool(), guest.vmid);
    if hookscript && ours(&facts.volid).is_some() {
        let text = format!(
            "it is rbd-preflight's own: `rbd-preflight attach {vmid}` puts it back, `rbd-preflight detach {vmid}` takes it \
             out of the guest's config"
        );
        return finding.remedy(RemedyKind::Manual, text);
    }
    if hookscript {
        return finding.commands([format!("{tool} set {vmid} --delete hookscript")]);
    }
    finding.commands([format!("{tool} config {vmid}")])
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
