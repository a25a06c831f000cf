//! One change: locked against other runs, justified by a fresh look, in the journal before and after.

use super::break_lock::break_lock;
use super::doubt::made_all_the_same;
use super::kernel_log;
use super::run_rbd::{TimeLimit, run_rbd};
use super::unmap::unmap;
use crate::act::run_lock::{Busy, Holder, Name, RunLock};
use crate::diagnose::owner;
use crate::journal::{Intent, Journal, RunId};
use crate::kernel::kmsg;
use crate::observe::survey::Survey;
use crate::plan::rule::Rule;
use crate::rbd::action::{Action, ActionReport, ActionResult, Change, is_same_image};
use crate::rbd::lock::Locker;
use crate::reading::error_text;
use crate::sys::process::Runner;
use crate::sys::root::Root;
use crate::sys::time::now;
use anyhow::Result;
use serde_json::json;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// How long to wait for another run that is at the same image.
const LOCK_PATIENCE: Duration = Duration::from_secs(20);

/// What it takes to make a change.
pub struct Hands<'a> {
    /// Where the journal and the locks are.
    pub root: &'a Root,
    /// The guest that it is done for.
    pub vmid: u32,
    /// This run, for the journal.
    pub run: &'a RunId,
    /// What justifies a change: it has to ask for it again after a fresh look.
    pub rule: &'a dyn Rule,
    /// Runs `rbd`; a test's own one elsewhere.
    pub runner: &'a (dyn Runner + Sync),
    /// The time that is left for one command.
    pub time: TimeLimit,
}

impl Hands<'_> {
    /// Makes changes if a fresh look at their images still asks for them: one, or several maps or unmaps at once. `look` reads
    /// the images anew; `progress` is given what a rebuild says of itself, in percent.
    pub fn make_all(
        &self,
        batch: &[Action],
        look: &(dyn Fn() -> Result<Survey> + Sync),
        progress: &(dyn Fn(u64) + Sync),
    ) -> Vec<ActionReport> {
        self.try_make_all(batch, look, progress).unwrap_or_else(|error| {
            let why = error_text(&error);
            let result =
                if error.is::<Busy>() { ActionResult::Busy { why } } else { ActionResult::withheld(why) };
            batch.iter().map(|action| ActionReport::new(action.clone(), result.clone())).collect()
        })
    }

    fn try_make_all(
        &self,
        batch: &[Action],
        look: &(dyn Fn() -> Result<Survey> + Sync),
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Vec<ActionReport>> {
        let holder = Holder { pid: std::process::id(), vmid: Some(self.vmid) };
        let patience = LOCK_PATIENCE.min(self.time.limit);
        let locks = RunLock::acquire_all(self.root, batch.iter().flat_map(lock_names), holder, patience)?;
        let survey = look()?;
        let wanted = self.rule.wanted(&survey);
        let asked = |action: &Action| {
            wanted.iter().any(|fresh| is_same_image(fresh, action) && fresh.change == action.change)
        };
        let left_at_it = AtomicBool::new(false);
        let log = kmsg::mark(self.root).ok().filter(|_| batch.iter().any(Action::is_kernels));
        let mut reports: Vec<ActionReport> = std::thread::scope(|scope| {
            let made = batch.iter().map(|action| {
                let asked = asked(action);
                let (survey, left_at_it) = (&survey, &left_at_it);
                scope.spawn(move || match asked {
                    true => self.make(action, survey, look, progress, left_at_it),
                    false => ActionResult::withheld(self.not_wanted(survey, action)),
                })
            });
            let threads: Vec<_> = made.collect();
            let results = threads.into_iter().map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| ActionResult::withheld("rbd-preflight itself failed; see stderr"))
            });
            batch
                .iter()
                .cloned()
                .zip(results)
                .map(|(action, result)| ActionReport::new(action, result))
                .collect()
        });
        if left_at_it.into_inner() {
            // Until the end of this process, and with it of what it has left at work.
            std::mem::forget(locks);
        }
        if let Some(mut log) = log {
            let mapped = survey.node.kernel.mappings.known().into_iter().flat_map(|all| all.iter());
            kernel_log::attribute(
                &log.since().unwrap_or_default(),
                &mapped.map(|m| m.id).collect(),
                &mut reports,
            );
        }
        Ok(reports)
    }

    /// Why a change that was planned is no longer wanted.
    fn not_wanted(&self, survey: &Survey, action: &Action) -> String {
        let why = self.rule.why_not(survey, action);
        why.unwrap_or_else(|| "a fresh look at the image no longer asks for it".to_owned())
    }

    /// One change that a fresh look has asked for: in the journal before it is made, and after.
    fn make(
        &self,
        action: &Action,
        survey: &Survey,
        look: &dyn Fn() -> Result<Survey>,
        progress: &(dyn Fn(u64) + Sync),
        left_at_it: &AtomicBool,
    ) -> ActionResult {
        if let Some(why) = owner::not_yet(survey, action) {
            return ActionResult::withheld(why);
        }
        let journal = Journal::open(self.root);
        let begun = Instant::now();
        let intent = self.intent(survey, action);
        let ticket = match journal.intent(self.run, now().as_secs(), intent) {
            Ok(ticket) => ticket,
            Err(error) => return ActionResult::withheld(error_text(&error)),
        };
        let command = || run_rbd(self.runner, self.root, action, self.time, progress);
        let result = match &action.change {
            Change::BreakLock { owner } => {
                break_lock(survey, action, &Locker::from(owner), self.time.limit, left_at_it)
            }
            Change::Unmap { device } => unmap(self.root, survey, action, *device, command),
            _ => command(),
        };
        let result = if made_all_the_same(action, &result, look) { ActionResult::done() } else { result };
        let result = with_duration(result, begun.elapsed());
        // The change is made: a journal that cannot be written now is no reason to say that it was not.
        if let Err(error) = journal.outcome(ticket, now().as_secs(), json!(result), begun.elapsed()) {
            log::error!("{}: the change was made, but {}", action.target.spec, error_text(&error));
        }
        log::info!("guest {}: {} [{}]", self.vmid, result.of(&action.describe()), action.command_line());
        result
    }

    fn intent(&self, survey: &Survey, action: &Action) -> Intent {
        let facts = survey.image(action.target.identity());
        let before = facts.map(|f| json!({ "features": f.features, "flags": f.flags, "lock": f.lock }));
        Intent {
            action: json!(action),
            guest: Some(self.vmid),
            guest_uuid: survey.guest.uuid.clone(),
            image: Some(action.target.spec.to_string()),
            before: before.unwrap_or_default(),
            command: Some(action.command_line()),
            undoes: self.rule.undoes().cloned(),
        }
    }
}

/// The locks between runs that a change needs: its image's.
fn lock_names(action: &Action) -> Vec<Name> {
    Name::image(action.target.identity())
}

fn with_duration(result: ActionResult, took: Duration) -> ActionResult {
    match result {
        ActionResult::Done { .. } => {
            ActionResult::Done { duration_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX) }
        }
        other => other,
    }
}
