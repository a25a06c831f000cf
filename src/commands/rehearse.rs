//! `rehearse`: which guest could start on which node now. Asks every node; changes nothing.

use crate::cli::Rehearse;
use crate::commands::here;
use crate::commands::many_guests::Manner;
use crate::exit::{Coded, Exit};
use crate::pve::ha;
use crate::pve::members::Members;
use crate::pve::node::{all_guests, node_name, nodes};
use crate::pve::peer;
use crate::rehearsal::{self, Answer, Column, Listed, Row, Silence};
use crate::report::rehearsal as view;
use crate::report::{json, many_guests};
use crate::sys::process::{Outcome, Runner, Status, System};
use crate::sys::root::Root;
use crate::sys::time;
use anyhow::Result;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// What is kept of a node's time for the connection and the answer.
const ON_THE_WAY: Duration = Duration::from_secs(15);

/// Asks the nodes, and prints what comes of it.
pub fn run(root: &Root, options: &Rehearse) -> Result<Exit> {
    let (began, at) = (Instant::now(), time::now().as_secs());
    let asked = asked(root, &options.node)?;
    let managed = ha::resources(root)?;
    let listed = |file: crate::pve::node::GuestFile| Listed {
        vmid: file.vmid,
        kind: file.kind,
        node: file.node,
        ha: managed.contains_key(&file.vmid),
    };
    let guests: Vec<Listed> = all_guests(root)?.into_iter().map(listed).collect();
    let columns = ask_all(root, &asked, options)?;
    let mut rows = rehearsal::rows(&guests, &columns);
    rows.retain(|row| wanted(row, options));
    let took = began.elapsed().as_secs_f64();
    if options.json {
        outln!("{}", json::printed(&view::json(&rows, &columns)));
    } else if options.prometheus {
        out!("{}", view::prometheus(&rows, &columns, at, took));
        return Ok(Exit::Ready);
    } else {
        let told: Vec<Row> = rows.iter().filter(|row| !options.quiet || !row.is_ready()).cloned().collect();
        let width = crate::sys::stdout::width();
        out!("{}", view::text(&told, &rows, &columns, width));
    }
    if columns.iter().all(|column| column.answer.is_err()) {
        return Ok(Exit::Error);
    }
    Ok(rehearsal::exit(&rows, &columns, !options.node.is_empty()))
}

fn wanted(row: &Row, options: &Rehearse) -> bool {
    let filter = &options.filter;
    let reasons = || row.cells.iter().flat_map(|cell| &cell.reasons);
    (filter.only.is_empty() || row.cells.iter().any(|cell| filter.only.contains(&cell.verdict)))
        && filter.storage.as_ref().is_none_or(|storage| row.storages.contains(storage))
        && filter.code.is_none_or(|code| reasons().any(|said| said.code == code.name()))
}

/// The nodes to be asked: all of the cluster, or those that are named.
fn asked(root: &Root, named: &[String]) -> Result<Vec<String>> {
    let all = nodes(root)?;
    if let Some(other) = named.iter().find(|name| !all.contains(name)) {
        let message = format!("there is no node {other}; the cluster has {}", all.join(", "));
        return Err(Coded::error(Exit::Usage, message));
    }
    Ok(all.into_iter().filter(|node| named.is_empty() || named.contains(node)).collect())
}

/// Asks some nodes at a time.
fn ask_all(root: &Root, nodes: &[String], options: &Rehearse) -> Result<Vec<Column>> {
    let this = node_name(root)?;
    let members = Members::read(root).map(Option::unwrap_or_default);
    let limit = Duration::from_secs(options.deadline);
    let ask = |node: &String| {
        let answer = if *node == this {
            ask_here(root, limit)
        } else {
            match &members {
                Ok(members) => ask_there(root, node, members, limit),
                Err(failure) => Err((Silence::NoAnswer, failure.to_string())),
            }
        };
        Column { node: node.clone(), answer }
    };
    let next = Mutex::new(nodes.iter().enumerate());
    let columns = Mutex::new(BTreeMap::new());
    let work = || {
        loop {
            let taken = next.lock().map(|mut next| next.next());
            let Ok(Some((index, node))) = taken else { return };
            let column = ask(node);
            if let Ok(mut columns) = columns.lock() {
                columns.insert(index, column);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..options.parallel.min(nodes.len()) {
            scope.spawn(work);
        }
    });
    let columns = columns
        .into_inner()
        .map_err(|_| anyhow::anyhow!("asking the nodes panicked; this is a fault of rbd-preflight"))?;
    Ok(columns.into_values().collect())
}

type Answered = Result<Answer, (Silence, String)>;

/// This node needs no ssh.
fn ask_here(root: &Root, limit: Duration) -> Answered {
    let manner = Manner { at_most: Some(own_time(limit)), quiet: true, ..Manner::default() };
    let told = || -> Result<Answer> {
        let seen = here::look(root, manner)?;
        let value = many_guests::here(&seen.reports, &seen.unread, &node_name(root)?);
        Ok(serde_json::from_value(value)?)
    };
    told().map_err(|error| (Silence::NoAnswer, format!("{error:#}")))
}

/// What a node gets for its own look, of the time that all takes.
fn own_time(limit: Duration) -> Duration {
    limit.saturating_sub(ON_THE_WAY).max(limit / 2)
}

fn ask_there(root: &Root, node: &str, members: &Members, limit: Duration) -> Answered {
    let Some(member) = members.nodes.get(node) else {
        let why = "pmxcfs has it in no list of members; a node that was removed leaves its directory behind";
        return Err((Silence::Offline, why.to_owned()));
    };
    if member.online != 1 {
        return Err((Silence::Offline, "corosync does not see it".to_owned()));
    }
    let Some(address) = member.address() else {
        return Err((Silence::NoAnswer, "pmxcfs knows no address of it".to_owned()));
    };
    let seconds = own_time(limit).as_secs().max(1).to_string();
    let words = ["rbd-preflight", "check", "--here", "--json", "--deadline", &seconds];
    let command = peer::command(root, node, address, &words, limit);
    let outcome = System.run(&command).map_err(|error| (Silence::NoAnswer, format!("{error:#}")))?;
    understood(node, &outcome)
}

/// What a node's answer says, by how ssh ended: 255 is its own failure, 127 and 126 a shell's that finds no such program,
/// 2 clap's that knows no such option.
fn understood(node: &str, outcome: &Outcome) -> Answered {
    let last = outcome.stderr_tail.trim().lines().map(str::trim).rfind(|line| !line.is_empty());
    let last = last.unwrap_or("it said nothing").to_owned();
    match outcome.status {
        Status::TimedOut => {
            return Err((Silence::NoAnswer, format!("no answer within {} s", outcome.duration.as_secs())));
        }
        Status::Exit(255) => return Err((Silence::NoAnswer, last)),
        Status::Exit(126 | 127) => return Err((Silence::NoTool, last)),
        Status::Exit(2) if outcome.stderr_tail.contains("--here") => {
            return Err((Silence::OlderTool, "its rbd-preflight does not know `check --here`".to_owned()));
        }
        _ => {}
    }
    if outcome.stdout_truncated {
        return Err((Silence::NoSense, "its answer is longer than 16 MiB".to_owned()));
    }
    match serde_json::from_slice::<Answer>(&outcome.stdout) {
        Ok(answer) if answer.node == node => Ok(answer),
        Ok(answer) => Err((Silence::NoSense, format!("it says that it is {}", answer.node))),
        Err(error) if outcome.stdout.is_empty() => {
            Err((Silence::NoSense, format!("{}, and no JSON ({error}): {last}", outcome.status)))
        }
        Err(error) => {
            Err((Silence::NoSense, format!("its answer is not the JSON of `check --here`: {error}")))
        }
    }
}
