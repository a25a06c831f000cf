//! What the journal has, by run. Pure.

use crate::journal::{Record, RunId, interrupted};
use crate::rbd::action::{Action, ActionResult};
use serde_json::Value;
use std::collections::{HashMap, HashSet};

/// One run of the tool on one guest.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// The run's name: when it began, and its process.
    pub run: RunId,
    /// When it made its first change, in seconds since 1970.
    pub at: u64,
    /// The guest it was for.
    pub guest: Option<u32>,
    /// What tells that guest from another one of its number, if the journal has it.
    pub guest_uuid: Option<String>,
    /// The run that it undid.
    pub undoes: Option<RunId>,
    /// What it changed, in the order in which the changes were begun.
    pub changes: Vec<JournaledChange>,
}

/// One change, as the journal has it.
#[derive(Debug, Clone, PartialEq)]
pub struct JournaledChange {
    /// The image, `pool/image` or `pool/namespace/image`.
    pub image: Option<String>,
    /// What was changed, as it was recorded.
    pub recorded: Value,
    /// The command, as it could be pasted.
    pub command: Option<String>,
    /// What stood before: features, flags and lock of an image.
    pub before: Value,
    /// What came of it; null where no outcome was recorded.
    pub result: Value,
    /// How long it took.
    pub duration_ms: Option<u64>,
    /// When it was begun, in seconds since 1970.
    pub at: u64,
    /// How far it came.
    pub state: State,
}

/// How far a change came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Its outcome was recorded.
    Ended,
    /// Its process still is at it.
    UnderWay,
    /// Its process is gone and has recorded no outcome: it may have been made or not.
    Interrupted,
}

/// Which runs to show.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Runs on this guest.
    pub guest: Option<u32>,
    /// Changes of this image: `pool/image`, `pool/namespace/image`, or the image's name in any pool.
    pub image: Option<String>,
    /// Runs since this time, in seconds since 1970.
    pub since: Option<u64>,
}

impl JournaledChange {
    /// What was changed; `None` where another version of this tool recorded something unknown to this one.
    pub fn action(&self) -> Option<Action> {
        serde_json::from_value(self.recorded.clone()).ok()
    }

    /// What came of it, if that was recorded and is understood.
    pub fn outcome(&self) -> Option<ActionResult> {
        serde_json::from_value(self.result.clone()).ok()
    }
}

/// The runs of these records, oldest first. `alive` says whether a run's process is still at work.
pub fn runs(records: &[Record], alive: &dyn Fn(&RunId) -> bool) -> Vec<Run> {
    let open: HashSet<_> = interrupted(records).iter().map(|record| (&record.run, record.step)).collect();
    let mut runs: Vec<Run> = Vec::new();
    let mut numbers: HashMap<&RunId, usize> = HashMap::new();
    let mut places: HashMap<(&RunId, u32), usize> = HashMap::new();
    for record in records {
        let run = *numbers.entry(&record.run).or_insert_with(|| {
            runs.push(begin(record));
            runs.len() - 1
        });
        let state = match open.contains(&(&record.run, record.step)) {
            false => State::Ended,
            true if alive(&record.run) => State::UnderWay,
            true => State::Interrupted,
        };
        let changes = &mut runs[run].changes;
        match places.get(&(&record.run, record.step)) {
            Some(place) => end(&mut changes[*place], record),
            None => {
                places.insert((&record.run, record.step), changes.len());
                changes.push(change(record, state));
            }
        }
    }
    runs.sort_by(|a, b| (a.at, &a.run).cmp(&(b.at, &b.run)));
    runs
}

fn begin(record: &Record) -> Run {
    Run {
        run: record.run.clone(),
        at: record.at,
        guest: record.guest,
        guest_uuid: record.guest_uuid.clone(),
        undoes: record.undoes.clone(),
        changes: Vec::new(),
    }
}

/// A change by its first record: the intent, or the outcome where the intent has been rotated away.
fn change(record: &Record, state: State) -> JournaledChange {
    JournaledChange {
        image: record.image.clone(),
        recorded: record.action.clone(),
        command: record.command.clone(),
        before: record.before.clone(),
        result: record.result.clone(),
        duration_ms: record.duration_ms,
        at: record.at,
        state,
    }
}

fn end(change: &mut JournaledChange, outcome: &Record) {
    change.result = outcome.result.clone();
    change.duration_ms = outcome.duration_ms;
}

impl Filter {
    /// Of the runs, those that are asked for, with those of their changes that are.
    pub fn apply(&self, runs: Vec<Run>) -> Vec<Run> {
        let wanted = |run: &Run| {
            self.guest.is_none_or(|guest| run.guest == Some(guest))
                && self.since.is_none_or(|since| run.at >= since)
        };
        let mut runs: Vec<Run> = runs.into_iter().filter(wanted).collect();
        for run in &mut runs {
            run.changes.retain(|change| self.image.as_ref().is_none_or(|spec| is_of(change, spec)));
        }
        runs.retain(|run| !run.changes.is_empty());
        runs
    }
}

fn is_of(change: &JournaledChange, spec: &str) -> bool {
    let named = |image: &String| image == spec || image.rsplit('/').next() == Some(spec);
    change.image.as_ref().is_some_and(named)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{Phase, SCHEMA};
    use serde_json::json;

    fn record(run: &str, step: u32, at: u64, phase: Phase) -> Record {
        Record {
            schema: SCHEMA,
            run: RunId(run.into()),
            step,
            at,
            phase,
            action: json!({}),
            guest: Some(516),
            guest_uuid: None,
            image: Some(format!("rbd/ns/disk-{step}")),
            before: Value::Null,
            command: None,
            undoes: None,
            result: if phase == Phase::Outcome { json!({"result": "done"}) } else { Value::Null },
            duration_ms: (phase == Phase::Outcome).then_some(5),
        }
    }

    type Told = (String, Vec<(u64, State, bool)>);

    fn told(records: &[Record], alive: bool) -> Vec<Told> {
        let change = |c: &JournaledChange| (c.at, c.state, c.result.is_null());
        runs(records, &|_| alive)
            .iter()
            .map(|run| (run.run.0.clone(), run.changes.iter().map(change).collect()))
            .collect()
    }

    #[test]
    fn records_of_runs_that_overlap_are_told_apart_oldest_run_first() {
        let records = [
            record("b", 7, 20, Phase::Intent),
            record("a", 1, 10, Phase::Intent),
            record("a", 1, 11, Phase::Outcome),
            record("b", 7, 21, Phase::Outcome),
            record("a", 2, 22, Phase::Intent),
        ];
        let a = vec![(10, State::Ended, false), (22, State::Interrupted, true)];
        assert_eq!(told(&records, false), [("a".into(), a), ("b".into(), vec![(20, State::Ended, false)])]);
        assert_eq!(told(&records, true)[0].1[1], (22, State::UnderWay, true));
    }

    #[test]
    fn an_outcome_whose_intent_was_rotated_away_is_told() {
        let records = [record("a", 1, 11, Phase::Outcome)];
        assert_eq!(told(&records, false), [("a".into(), vec![(11, State::Ended, false)])]);
    }

    #[test]
    fn a_filter_keeps_what_is_asked_for() {
        let records = [
            record("a", 1, 10, Phase::Intent),
            record("a", 2, 11, Phase::Intent),
            record("b", 3, 20, Phase::Intent),
        ];
        let count = |filter: Filter| {
            let kept = filter.apply(runs(&records, &|_| false));
            kept.iter().map(|run| run.changes.len()).collect::<Vec<_>>()
        };
        assert_eq!(count(Filter::default()), [2, 1]);
        assert_eq!(count(Filter { since: Some(11), ..Filter::default() }), [1]);
        assert_eq!(count(Filter { guest: Some(7), ..Filter::default() }), [0; 0]);
        for image in ["rbd/ns/disk-2", "disk-2"] {
            assert_eq!(count(Filter { image: Some(image.into()), ..Filter::default() }), [1], "{image}");
        }
        assert_eq!(count(Filter { image: Some("rbd/disk-2".into()), ..Filter::default() }), [0; 0]);
    }
}
