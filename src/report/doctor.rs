//! The node's checks: text for people, JSON for programs.

use crate::doctor::{Check, State};
use crate::report::json::SCHEMA;
use crate::report::text::count;
use crate::sys::plain::plain;
use serde_json::{Value, json};
use std::fmt::Write as _;

/// A line per check, what fixes it below it, and how many of each kind at the end.
pub fn text(checks: &[Check]) -> String {
    let mut out = String::new();
    for check in checks {
        let _ = writeln!(out, "{:<8} {}: {}", word(check.state), plain(&check.name), plain(&check.detail));
        if let Some(remedy) = &check.remedy {
            let _ = writeln!(out, "         to do:  {}", plain(remedy));
        }
    }
    let of = |state| checks.iter().filter(|check| check.state == state).count();
    let (failed, warnings, unknown) = (of(State::Fail), of(State::Warn), of(State::Unknown));
    let _ = writeln!(
        out,
        "\n{}: {failed} failed, {}, {unknown} unknown",
        count(checks.len(), "check"),
        count(warnings, "warning")
    );
    out
}

fn word(state: State) -> &'static str {
    match state {
        State::Ok => "ok",
        State::Warn => "warn",
        State::Fail => "FAIL",
        State::Unknown => "unknown",
    }
}

/// `{"schema": 1, "checks": [...]}`.
pub fn json(checks: &[Check]) -> Value {
    json!({ "schema": SCHEMA, "checks": checks })
}
