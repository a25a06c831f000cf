//! Makes changes: observe, diagnose, plan, act, and observe again, until nothing is left to do.

mod break_lock;
pub mod carry_out;
mod doubt;
mod kernel_log;
pub mod load_module;
pub mod run_lock;
pub mod run_rbd;
#[cfg(test)]
mod tests;
mod unmap;

use crate::diagnose::diagnose;
use crate::diagnose::finding::{Finding, RemedyKind};
use crate::finding_codes::Severity;
use crate::observe::survey::Survey;
use crate::plan::assessment::GuestReport;
use crate::plan::order::plan;
use crate::plan::rule::Rule;
use crate::rbd::action::{Action, ActionReport, is_same_image};
use crate::settings::policy::Policy;
use anyhow::Result;
use std::collections::BTreeSet;
use std::time::Duration;

/// How long one object map's rebuild may take; terabytes take minutes.
pub const REBUILD_LIMIT: Duration = Duration::from_secs(3600);

/// How often the loop goes round at most. Four rounds fix everything that can be fixed, three more are for maps
/// that are tried again; more means that somebody else undoes what is done here.
const MAX_ROUNDS: usize = 8;

/// The outside, as far as a repair needs it.
pub trait World {
    /// Looks at the guest anew.
    fn observe(&mut self) -> Result<Survey>;
    /// Makes changes, after a fresh look at their images: one change, or several maps or unmaps at once. `history` is
    /// what this run has done so far, which a fresh look must be judged by too.
    fn apply(&mut self, batch: &[Action], history: &[ActionReport]) -> Vec<ActionReport>;
    /// Is given each finding once, before it is fixed.
    fn found(&mut self, finding: &Finding);
    /// Whether there is time for another change.
    fn has_time(&self) -> bool;
    /// Waits before something is tried again that has failed `failures` times.
    fn pause(&mut self, failures: usize);
}

/// Repairs a guest as far as it can be repaired.
pub fn repair(world: &mut dyn World, policy: &Policy) -> Result<GuestReport> {
    let mut history: Vec<ActionReport> = Vec::new();
    let mut told = BTreeSet::new();
    for _ in 0..MAX_ROUNDS {
        let survey = Survey { history: history.clone(), ..world.observe()? };
        let findings = diagnose(&survey, policy);
        let planned = plan(&findings, policy);
        if planned.is_empty() || !world.has_time() {
            return Ok(GuestReport { survey, findings, actions: history });
        }
        for finding in
            findings.iter().filter(|f| f.remedy.kind == RemedyKind::Automatic && f.severity > Severity::Note)
        {
            if told.insert((finding.code, finding.disk.clone())) {
                world.found(finding);
            }
        }
        carry_out(world, planned, &mut history);
    }
    let survey = Survey { history: history.clone(), ..world.observe()? };
    let findings = diagnose(&survey, policy);
    Ok(GuestReport { survey, findings, actions: history })
}

/// Does once what a rule asks for: what was seen at the end, and what was done.
pub fn once(world: &mut dyn World, rule: &dyn Rule) -> Result<(Survey, Vec<ActionReport>)> {
    let planned = rule.wanted(&world.observe()?);
    let mut history = Vec::new();
    carry_out(world, planned, &mut history);
    Ok((world.observe()?, history))
}

/// Carries out a plan: first all unmaps at once, then changes one after another, then all maps at once.
fn carry_out(world: &mut dyn World, planned: Vec<Action>, history: &mut Vec<ActionReport>) {
    let (maps, rest): (Vec<Action>, Vec<Action>) = planned.into_iter().partition(Action::is_map);
    let (unmaps, changes): (Vec<Action>, Vec<Action>) = rest.into_iter().partition(Action::is_kernels);
    let single = changes.into_iter().map(|action| vec![action]);
    let batches = std::iter::once(unmaps).chain(single).chain([maps]);
    let mut stuck: Vec<Action> = Vec::new();
    for mut batch in batches {
        // What follows on an image was planned on the belief that what came before would succeed.
        batch.retain(|action| !stuck.iter().any(|failed| is_same_image(failed, action)));
        if batch.is_empty() || !world.has_time() {
            continue;
        }
        let failed = |report: &&ActionReport| !report.done() && batch.contains(&report.action);
        let failures = history.iter().filter(failed).count();
        if failures > 0 {
            world.pause(failures);
        }
        for report in world.apply(&batch, history) {
            if !report.done() {
                stuck.push(report.action.clone());
            }
            history.push(report);
        }
    }
}
