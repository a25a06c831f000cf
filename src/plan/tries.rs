//! What `start` tries next. Pure.
//!
//! Each try is a repair and a start. The last one, where a disk can explain why the start failed, is the operator's remedy of
//! the incident: the features of every disk are taken off and put back first.

use crate::diagnose::finding::{Finding, RemedyKind};
use crate::finding_codes::{Code, Severity};
use crate::observe::survey::Survey;
use crate::pve::config_lock;
use crate::pve::guest::Guest;
use crate::reading::Reading;
use std::time::Duration;

/// What kind of try it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rung {
    /// Repair what is wrong, then start.
    Repair,
    /// The same after a pause.
    RepairAgain,
    /// Take the changeable features off every disk and put them back, then start, which is for a failure that a disk can
    /// explain. There is nothing after it.
    FeatureReset,
}

/// The rung of a try, counted from 1. One try alone is an ordinary one, and so is the last of several where no disk explains
/// why the start before it has failed (`by_a_disk`).
pub fn rung(number: u32, tries: u32, by_a_disk: bool) -> Rung {
    match number {
        1 => Rung::Repair,
        _ if number >= tries && by_a_disk => Rung::FeatureReset,
        _ => Rung::RepairAgain,
    }
}

/// How long to wait before a try: 2 s, doubling, half a minute at most.
pub fn pause_before(number: u32) -> Duration {
    let doublings = number.saturating_sub(2).min(4);
    if number < 2 { Duration::ZERO } else { Duration::from_secs(2 << doublings).min(Duration::from_secs(30)) }
}

/// What `start` does about the guest before it tries anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begin {
    /// There is something to try: repair what can be, and start.
    Go,
    /// There is nothing to do.
    Runs,
    /// Not from here or not now, why, and what to do instead.
    No(String),
}

/// Whether a start makes sense.
pub fn begin(survey: &Survey) -> Begin {
    let Guest { vmid, node, template, .. } = &survey.guest;
    let tool = survey.guest.tool();
    if *node != survey.node.name {
        return Begin::No(format!(
            "guest {vmid} belongs to node {node}; run there: ssh {node} rbd-preflight start {vmid}"
        ));
    }
    match &survey.node.running {
        Reading::Known(true) => return Begin::Runs,
        Reading::Known(false) => {}
        Reading::Unknown(failure) => {
            return Begin::No(format!("it is not known whether guest {vmid} runs: {failure}"));
        }
    }
    if *template {
        return Begin::No(format!("guest {vmid} is a template; clone it: {tool} clone {vmid} NEWID"));
    }
    match survey.guest.locked() {
        Some(lock) if !config_lock::lets_start(survey.guest.kind, lock) => Begin::No(format!(
            "guest {vmid} is locked ({lock}): {}",
            config_lock::way_out(survey.guest.kind, *vmid, lock)
        )),
        _ => Begin::Go,
    }
}

/// What Proxmox VE itself would refuse the start for, whatever is repaired: nothing is changed for such a start.
pub fn refused_by_pve(findings: &[Finding]) -> Vec<&Finding> {
    use Code::{CicustomMissing, GuestLocked, HookscriptMissing, QuorumMissing};
    let own = [CicustomMissing, GuestLocked, HookscriptMissing, QuorumMissing];
    findings.iter().filter(|f| f.severity >= Severity::Blocker && own.contains(&f.code)).collect()
}

/// What stops a start. What a change fixes is none of it where something else does: it was not made for that reason.
pub fn stoppers(findings: &[Finding]) -> impl Iterator<Item = &Finding> {
    let stops = |finding: &&Finding| finding.severity >= Severity::Blocker;
    let fixed = |finding: &Finding| finding.remedy.kind == RemedyKind::Automatic;
    let other = findings.iter().filter(stops).any(|finding| !fixed(finding));
    findings.iter().filter(stops).filter(move |finding| !(other && fixed(finding)))
}

/// Whether findings leave any hope for another try: what only an administrator fixes does not fix itself.
pub fn hopeless(findings: &[Finding]) -> bool {
    let stoppers: Vec<&Finding> = stoppers(findings).collect();
    stoppers.iter().any(|finding| finding.remedy.kind != RemedyKind::Automatic && !passes(finding, &stoppers))
}

/// It passes by itself, or is a change that is withheld on a disk of which something `beside` it passes: it is withheld for that, most
/// likely, and is made once that has passed.
pub fn passes(finding: &Finding, beside: &[&Finding]) -> bool {
    let waits = |finding: &Finding| finding.remedy.kind == RemedyKind::Wait;
    let withheld = finding.disk.is_some() && finding.remedy.withheld.is_some();
    waits(finding) || withheld && beside.iter().any(|other| waits(other) && other.disk == finding.disk)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_of_several_tries_resets_features() {
        let rungs: Vec<Rung> = (1..=4).map(|number| rung(number, 4, true)).collect();
        assert_eq!(rungs, [Rung::Repair, Rung::RepairAgain, Rung::RepairAgain, Rung::FeatureReset]);
        assert_eq!(rung(1, 1, true), Rung::Repair);
        assert_eq!(rung(2, 2, true), Rung::FeatureReset);
        assert_eq!(rung(2, 2, false), Rung::RepairAgain);
    }

    #[test]
    fn a_change_that_is_withheld_for_what_passes_leaves_hope() {
        let of = |code, disk: &str| Finding { disk: Some(disk.to_owned()), ..Finding::new(code, "") };
        let open = of(Code::InUseElsewhere, "scsi0").remedy(RemedyKind::Wait, "");
        let mut journaling = of(Code::JournalingOnKrbd, "scsi0").remedy(RemedyKind::Automatic, "");
        journaling.remedy.withhold("somebody has it open".to_owned());
        assert!(!hopeless(&[open.clone(), journaling.clone()]));
        assert!(hopeless(&[journaling.clone()]), "nothing passes");
        let other = Finding { disk: Some("scsi1".to_owned()), ..journaling };
        assert!(hopeless(&[open.clone(), other]), "what passes is at another disk");
        assert!(hopeless(&[open, of(Code::ImageMissing, "scsi0")]), "nothing is withheld");
    }

    #[test]
    fn pauses_grow_and_are_bounded() {
        let pauses: Vec<u64> = (1..=8).map(|number| pause_before(number).as_secs()).collect();
        assert_eq!(pauses, [0, 2, 4, 8, 16, 30, 30, 30]);
    }
}
