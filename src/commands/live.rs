//! The real outside for `act`: PVE's files, Ceph, and the clock.

use crate::act::World;
use crate::act::carry_out::Hands;
use crate::act::run_rbd::TimeLimit;
use crate::commands::session::Session;
use crate::diagnose::budget;
use crate::diagnose::finding::Finding;
use crate::journal::RunId;
use crate::observe::lock_owner::{self, Life};
use crate::observe::survey::Survey;
use crate::plan::rule::{Fix, Rule};
use crate::rbd::action::{Action, ActionReport};
use crate::rbd::spec::Spec;
use crate::sys::plain::plain;
use crate::sys::process::System;
use crate::sys::time;
use crate::sys::time::now;
use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// How old what Ceph has said of a guest's images may be when this run maps them. It is older where the run had to
/// wait for another one at the same image.
const BEFORE_MAPS: Duration = Duration::from_secs(2);

/// How old it may be after maps that all succeeded. Asking takes as long as mapping, and tells nothing new.
const AFTER_MAPS: Duration = Duration::from_secs(30);

/// What is kept of the time for the last look, after which nothing is changed any more; a quarter where there is little.
const LAST_LOOK: Duration = Duration::from_secs(12);

/// A second look is taken a little later than it may be: what was seen is counted in whole seconds.
const CLOCKS: Duration = Duration::from_millis(1100);

/// What is begun has at least this long.
const SHORTEST: Duration = Duration::from_secs(1);

/// A look at the guest and all its images, and when it was over.
struct Seen {
    at: Instant,
    survey: Survey,
    /// Something was mapped since, without a failure, and nobody has looked again.
    only_mapped: bool,
}

/// One run on one guest.
pub struct RealWorld<'a> {
    session: &'a Session,
    rule: Box<dyn Rule + 'a>,
    run: RunId,
    /// When the run is over.
    end: Option<Instant>,
    /// When the last change is to be over.
    deadline: Option<Instant>,
    /// How long a cluster is waited for. Where one did not answer in that time the next look gives it twice as long: this
    /// node, or the way there, may be slow.
    patience: Duration,
    /// The last look, while no image was changed since.
    seen: Option<Seen>,
    /// Images with a lock whose owner can be known to be dead from then on.
    due: Vec<(Spec, Instant)>,
    on_action: Box<dyn FnMut(&ActionReport) + 'a>,
    on_finding: Box<dyn FnMut(&Finding) + 'a>,
    on_wait: Box<dyn FnMut(Duration) + 'a>,
}

impl<'a> RealWorld<'a> {
    /// A run that is over after `limit`, and has ended its last change in time for a last look.
    pub fn new(session: &'a Session, limit: Option<Duration>) -> Self {
        let begun = Instant::now();
        Self {
            session,
            rule: Box::new(Fix(&session.policy)),
            run: RunId::new(now(), std::process::id()),
            end: limit.map(|limit| begun + limit),
            deadline: limit.map(|limit| begun + limit - LAST_LOOK.min(limit / 4)),
            patience: session.policy.settings.connect_timeout,
            seen: None,
            due: Vec::new(),
            on_action: Box::new(|_| ()),
            on_finding: Box::new(|_| ()),
            on_wait: Box::new(|_| ()),
        }
    }

    /// Changes are justified by `rule`; without this, by being a repair.
    pub fn by_rule(&mut self, rule: impl Rule + 'a) {
        self.rule = Box::new(rule);
    }

    /// The run's name in the journal.
    pub fn run(&self) -> &RunId {
        &self.run
    }

    /// Calls `tell` after each change.
    pub fn on_action(&mut self, tell: impl FnMut(&ActionReport) + 'a) {
        self.on_action = Box::new(tell);
    }

    /// Calls `tell` with what is about to be fixed.
    pub fn on_finding(&mut self, tell: impl FnMut(&Finding) + 'a) {
        self.on_finding = Box::new(tell);
    }

    /// Calls `tell` before a wait for a second look at the owner of a lock, with how long it takes.
    pub fn on_wait(&mut self, tell: impl FnMut(Duration) + 'a) {
        self.on_wait = Box::new(tell);
    }

    /// Waits until the owner of a lock that a change would take over can be known to be dead, if there is time for that.
    fn await_second_look(&mut self, batch: &[Action]) {
        let due = self.due.iter().filter(|(spec, _)| batch.iter().any(|action| action.target.spec == *spec));
        let Some(due) = due.map(|(_, at)| *at).max() else { return };
        let wait = due.saturating_duration_since(Instant::now());
        if wait.is_zero() || self.deadline.is_some_and(|end| due + SHORTEST > end) {
            return;
        }
        (self.on_wait)(wait);
        std::thread::sleep(wait);
    }

    /// The time left of `limit`.
    fn left(&self, limit: Duration) -> Duration {
        left(self.deadline, limit)
    }
}

/// The time that is left of `limit` until a deadline.
fn left(deadline: Option<Instant>, limit: Duration) -> Duration {
    deadline.map_or(limit, |end| limit.min(end.saturating_duration_since(Instant::now())))
}

/// The images whose locks' owners are to be looked for once more, and after how long.
fn due(survey: &Survey) -> impl Iterator<Item = (Spec, Duration)> {
    survey.disks.iter().filter_map(|disk| match lock_owner::life(survey, disk)? {
        Life::NotYet(seconds) => Some((disk.spec()?, Duration::from_secs(seconds))),
        _ => None,
    })
}

/// The guest as it was seen, with what its node says now; `None` if that does not do.
fn node_again(session: &Session, seen: Option<&Seen>, holds: Duration) -> Result<Option<Survey>> {
    match seen {
        Some(seen) if seen.at.elapsed() < holds => session.observe_node(&seen.survey),
        _ => Ok(None),
    }
}

impl World for RealWorld<'_> {
    fn observe(&mut self) -> Result<Survey> {
        if self.seen.as_mut().is_some_and(|seen| std::mem::take(&mut seen.only_mapped)) {
            if let Some(survey) = node_again(self.session, self.seen.as_ref(), AFTER_MAPS)? {
                return Ok(survey);
            }
        }
        let most = self.session.policy.settings.check_deadline;
        let survey = self.session.observe_for(left(self.end, most), self.patience)?;
        if survey.is_unanswered() {
            self.patience = (self.patience * 2).min(most).max(self.patience);
        }
        let at = Instant::now();
        self.due = due(&survey).map(|(spec, wait)| (spec, at + wait + CLOCKS)).collect();
        self.seen = Some(Seen { at, survey: survey.clone(), only_mapped: false });
        Ok(survey)
    }

    fn apply(&mut self, batch: &[Action], history: &[ActionReport]) -> Vec<ActionReport> {
        self.await_second_look(batch);
        let settings = &self.session.policy.settings;
        let long = batch.iter().any(Action::may_take_long);
        let limit = if long { crate::act::REBUILD_LIMIT } else { settings.command_timeout };
        // What was to fit into a budget ends with it.
        let budget = || budget::left_after(history, &self.session.policy);
        let limit = if long { budget().map_or(limit, |budget| budget.min(limit)) } else { limit };
        let hands = Hands {
            root: &self.session.root,
            vmid: self.session.guest.vmid,
            run: &self.run,
            rule: &*self.rule,
            runner: &System,
            time: TimeLimit { limit: self.left(limit), cut: self.left(limit) < limit },
        };
        // A look may take of the time that is kept for the last one: without it nothing can be told of a change.
        let (end, session, patience) = (self.end, self.session, self.patience);
        let last = self.seen.take().filter(|_| batch.iter().all(Action::is_map));
        let look = || {
            let limit = left(end, settings.check_deadline);
            let survey = match (node_again(session, last.as_ref(), BEFORE_MAPS)?, batch) {
                (Some(survey), _) => survey,
                (None, [action]) if !action.is_kernels() => {
                    session.observe_image(&action.target.spec, limit, patience)?
                }
                (None, _) => session.observe_for(limit, patience)?,
            };
            Ok(Survey { history: history.to_vec(), ..survey })
        };
        let bar = progress_bar(batch);
        let reports = hands.make_all(batch, &look, &|percent| bar.set_position(percent));
        bar.finish_and_clear();
        let only_mapped = reports.iter().all(|report| report.action.is_map() && report.done());
        self.seen = last.filter(|_| only_mapped).map(|seen| Seen { only_mapped, ..seen });
        reports.iter().for_each(|report| (self.on_action)(report));
        reports
    }

    fn found(&mut self, finding: &Finding) {
        (self.on_finding)(finding);
    }

    fn has_time(&self) -> bool {
        self.deadline.is_none_or(|end| Instant::now() + SHORTEST < end)
    }

    fn pause(&mut self, failures: usize) {
        let seconds = 1 << failures.min(4);
        std::thread::sleep(self.left(Duration::from_secs(seconds) + time::jitter()));
    }
}

/// A bar for what takes long, on a terminal only.
fn progress_bar(batch: &[Action]) -> ProgressBar {
    let Some(action) = batch.iter().find(|action| action.may_take_long()) else {
        return ProgressBar::hidden();
    };
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("  {msg} {bar:30} {pos} %")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let message = format!("rebuilding the object map of {}", action.target.spec);
    ProgressBar::new(100).with_style(style).with_message(plain(&message))
}
