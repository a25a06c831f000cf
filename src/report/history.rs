//! What was changed, by run: text for people, JSON for programs.

use crate::journal::runs::{JournaledChange, Run, State};
use crate::rbd::action::ActionReport;
use crate::report::json::SCHEMA;
use crate::report::text;
use crate::sys::dates;
use crate::sys::plain::plain;
use serde_json::{Value, json};
use std::fmt::Write as _;

/// One block per run, oldest first.
pub fn text(runs: &[Run]) -> String {
    runs.iter().map(block).collect::<Vec<_>>().join("\n")
}

fn block(run: &Run) -> String {
    let guest = run.guest.map(|vmid| format!(", guest {vmid}")).unwrap_or_default();
    let undoes = run.undoes.as_ref().map(|undone| format!(", undo of {undone}")).unwrap_or_default();
    let mut out = plain(&format!("{}: {}{guest}{undoes}", run.run, dates::shown(run.at))) + "\n";
    for change in &run.changes {
        let _ = writeln!(out, "  {}", line(change));
    }
    out
}

/// A change in words, and what came of it.
fn line(change: &JournaledChange) -> String {
    let command = change.command.as_deref().unwrap_or("a change unknown to this version");
    let Some(action) = change.action() else { return plain(&format!("{}: {command}", state(change))) };
    let what = action.describe();
    match change.outcome() {
        Some(result) => text::action(&ActionReport::new(action, result)),
        None => plain(&format!("{}: {what}", state(change))),
    }
}

fn state(change: &JournaledChange) -> String {
    match change.state {
        State::Ended if change.result["result"] == "done" => "done".to_owned(),
        State::Ended => format!("ended ({})", change.result),
        State::UnderWay => "under way".to_owned(),
        State::Interrupted => "INTERRUPTED, made or not".to_owned(),
    }
}

/// The same for programs: `{"schema": 1, "runs": [...]}`, oldest first.
pub fn json(runs: &[Run]) -> Value {
    json!({ "schema": SCHEMA, "runs": runs.iter().map(run_json).collect::<Vec<_>>() })
}

fn run_json(run: &Run) -> Value {
    json!({
        "run": run.run,
        "at": run.at,
        "guest": run.guest,
        "guest_uuid": run.guest_uuid,
        "changes": run.changes.iter().map(change_json).collect::<Vec<_>>(),
    })
}

/// `change` and `result` are objects as in the journal: `{"change": "enable-features", "features": [...]}` and
/// `{"result": "failed", "errno": 22, "message": ...}`; a change without an outcome has null for a result.
fn change_json(change: &JournaledChange) -> Value {
    let mut changed = change.recorded.clone();
    // Which image it is and how it is reached is told by `image`, `fsid`, `image_id` and `command`.
    let target = changed.as_object_mut().and_then(|fields| fields.remove("target")).unwrap_or_default();
    let mut result = change.result.clone();
    result.as_object_mut().map(|fields| fields.remove("duration_ms"));
    json!({
        "image": change.image,
        "fsid": target["fsid"],
        "image_id": target["id"],
        "change": changed,
        "command": change.command,
        "before": change.before,
        "result": result,
        "duration_ms": change.duration_ms,
        "at": change.at,
        "interrupted": change.state == State::Interrupted,
    })
}
