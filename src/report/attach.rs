//! What `attach` and `detach` report: of each guest what was done, and on which nodes the snippet is.

use super::json::SCHEMA;
use super::text::{name, table};
use crate::exit::Exit;
use crate::hook::attach::Facts;
use crate::hook::snippet::{OtherNode, Presence};
use crate::sys::plain::plain;
use serde::Serialize;
use serde_json::{Value, json};
use std::fmt::Write as _;

/// What came of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It would be changed.
    Planned,
    /// It was changed, and the config was read again.
    Done,
    /// There was nothing to do.
    Unchanged,
    /// It was not meant.
    Skipped,
    /// It cannot be changed as it is.
    Refused,
    /// Another task of PVE is busy with it.
    Busy,
    /// Something went wrong; the text says what.
    Failed,
}

/// A guest and what came of it.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The guest, as it was before.
    #[serde(flatten)]
    pub guest: Facts,
    /// What came of it.
    pub outcome: Outcome,
    /// The same in words.
    pub text: String,
    /// The lines that do it in a shell.
    pub commands: Vec<String>,
}

/// The snippet on this node.
#[derive(Debug, Clone, Serialize)]
pub struct Placed {
    /// The snippet's volume id.
    pub volid: String,
    /// Where its file is.
    pub path: String,
    /// What was done about it.
    pub text: String,
}

/// All that there is to report.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// The snippet, where it was needed, under each name that guests ask for.
    pub snippets: Vec<Placed>,
    /// The guests, by number.
    pub guests: Vec<Row>,
    /// The other nodes, by name.
    pub nodes: Vec<OtherNode>,
    /// What else is worth a word.
    pub notes: Vec<String>,
}

impl Report {
    /// The gravest that came of any guest.
    pub fn exit(&self) -> Exit {
        let had = |outcome| self.guests.iter().any(|row| row.outcome == outcome);
        match () {
            () if had(Outcome::Failed) => Exit::Error,
            () if had(Outcome::Busy) => Exit::Busy,
            () if had(Outcome::Refused) => Exit::Refused,
            () => Exit::Ready,
        }
    }

    /// What `--json` prints.
    pub fn json(&self) -> Value {
        let mut value = json!(self);
        value["schema"] = json!(SCHEMA);
        value
    }

    /// What is shown to people once all is done.
    pub fn text(&self) -> String {
        let mut out = table(self.guests.iter().map(row).collect());
        if self.guests.is_empty() {
            out.push_str("There was no guest to do anything to.\n");
        }
        for placed in &self.snippets {
            let _ = writeln!(out, "\nThe snippet {} {}.", plain(&placed.volid), plain(&placed.text));
        }
        if !self.nodes.is_empty() {
            out.push_str("On the other nodes (where a guest's snippet is missing, PVE does not start it):\n");
            out.push_str(&table(self.nodes.iter().map(node).collect()));
        }
        for note in &self.notes {
            let _ = writeln!(out, "\n{}", plain(note));
        }
        out
    }

    /// The lines that would be run, and the rest as comments.
    pub fn script(&self) -> String {
        let mut out = String::new();
        for placed in &self.snippets {
            let _ = writeln!(out, "# the snippet {} {}", plain(&placed.volid), plain(&placed.text));
        }
        for row in &self.guests {
            let name = name(row.guest.kind, row.guest.vmid, row.guest.name.as_deref());
            let _ = writeln!(out, "# {name}: {}", plain(&row.text));
            row.commands.iter().for_each(|line| out.push_str(&format!("{}\n", plain(line))));
        }
        if self.guests.is_empty() {
            out.push_str("# there is no guest to do anything to\n");
        }
        let others =
            self.nodes.iter().map(|other| format!("{}: {}: {}", other.node, other.volid, describe(other)));
        for line in others.chain(self.notes.iter().cloned()) {
            let _ = writeln!(out, "# {}", plain(&line));
        }
        out
    }
}

fn row(row: &Row) -> Vec<String> {
    let told = match row.outcome {
        Outcome::Failed | Outcome::Refused | Outcome::Busy => format!("NOT DONE: {}", row.text),
        Outcome::Skipped => format!("skipped: {}", row.text),
        Outcome::Planned | Outcome::Done | Outcome::Unchanged => row.text.clone(),
    };
    let mut lines = told.lines();
    let first = lines.next().unwrap_or_default().to_owned();
    let told = lines.fold(first, |all, line| format!("{all} / {line}"));
    vec![name(row.guest.kind, row.guest.vmid, row.guest.name.as_deref()), told]
}

fn node(other: &OtherNode) -> Vec<String> {
    vec![other.node.clone(), other.volid.clone(), describe(other)]
}

fn describe(other: &OtherNode) -> String {
    match other.snippet {
        Presence::Present => "there".to_owned(),
        Presence::Missing => format!("MISSING; this puts it there: {}", other.text),
        Presence::Unknown => format!("not known: {}", other.text),
    }
}
