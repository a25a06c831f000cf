//! `history`: what was changed, when, and what came of it.

use crate::cli::History;
use crate::exit::Exit;
use crate::journal::runs::{Filter, Run, runs};
use crate::journal::{Journal, RunId};
use crate::report::history;
use crate::report::json::printed;
use crate::sys::dates::When;
use crate::sys::plain::plain;
use crate::sys::root::Root;
use crate::sys::time::now;
use anyhow::{Context, Result};

/// Prints what the journal of this node has.
pub fn run(root: &Root, options: &History) -> Result<Exit> {
    let filter = Filter {
        guest: options.vmid.or(options.guest),
        image: options.image.clone(),
        since: options.since.map(|when: When| when.seconds(now())),
    };
    let told = filter.apply(read(root)?);
    if options.json {
        outln!("{}", printed(&history::json(&told)));
    } else if told.is_empty() {
        outln!("no change {}", if filter == Filter::default() { "was ever recorded" } else { "matches" });
    } else {
        out!("{}", history::text(&told));
    }
    Ok(Exit::Ready)
}

/// Every run in the journal; invalid lines are reported on stderr.
pub fn read(root: &Root) -> Result<Vec<Run>> {
    let (records, notes) = Journal::open(root).read_all().context("the journal cannot be read")?;
    for note in notes {
        errln!("rbd-preflight: note: {}", plain(&note));
    }
    Ok(runs(&records, &|run| is_alive(root, run)))
}

/// The run's process is still there.
fn is_alive(root: &Root, run: &RunId) -> bool {
    let Some(pid) = run.pid() else { return false };
    let name = std::fs::read_to_string(root.path(format!("/proc/{pid}/comm"))).unwrap_or_default();
    name.trim_end() == env!("CARGO_PKG_NAME")
}
