//! A rehearsal: a table of guests and nodes for people, a list for programs, metrics.

use crate::diagnose::verdict::Verdict;
use crate::pve::words::Kind;
use crate::rehearsal::{Cell, Column, Row, Said};
use crate::report::table::{padded, widths};
use crate::report::text::{count, name};
use crate::report::{coloured, json};
use crate::sys::plain::plain;
use serde_json::{Value, json};
use std::fmt::Write as _;

/// The table of the rows that are shown, why not, what silent nodes were silent for, and a summary of all rows.
pub fn text(shown: &[Row], all: &[Row], columns: &[Column], width: Option<usize>) -> String {
    let mut out = String::new();
    if !shown.is_empty() {
        out.push_str(&table(shown, columns, width));
        out.push('\n');
    }
    let mut why = String::new();
    for column in columns {
        if let Err((silence, detail)) = &column.answer {
            let _ = writeln!(why, "{}: {}: {}", plain(&column.node), silence.word(), plain(detail));
        }
    }
    for row in shown {
        for (nodes, said) in reasons(row, columns) {
            let guest = name(row.guest.kind, row.guest.vmid, None);
            let _ = writeln!(why, "{guest} on {}: {}", plain(&nodes.join(", ")), sentence(said));
        }
    }
    if !why.is_empty() {
        out.push_str(&why);
        out.push('\n');
    }
    out + &summary(all, columns) + "\n"
}

/// Each reason of a row once, with the nodes that it holds for.
fn reasons<'a>(row: &'a Row, columns: &'a [Column]) -> Vec<(Vec<&'a str>, &'a Said)> {
    let mut all: Vec<(Vec<&str>, &Said)> = Vec::new();
    for (column, cell) in columns.iter().zip(&row.cells) {
        for said in &cell.reasons {
            match all.iter_mut().find(|(_, known)| *known == said) {
                Some((nodes, _)) => nodes.push(&column.node),
                None => all.push((vec![&column.node], said)),
            }
        }
    }
    all
}

/// `scsi0: the disk's storage is not available on this node (…) [storage-not-on-node]`
fn sentence(said: &Said) -> String {
    let place = said.disk.as_ref().map(|disk| format!("{disk}: ")).unwrap_or_default();
    let seen = if said.detail.is_empty() { String::new() } else { format!(" ({})", said.detail) };
    let text = format!("{place}{}{seen}", said.summary);
    let cut = text.char_indices().nth(2000).map_or(text.as_str(), |(end, _)| &text[..end]);
    format!("{} [{}]", plain(cut), plain(&said.code))
}

fn table(rows: &[Row], columns: &[Column], width: Option<usize>) -> String {
    let head = ["GUEST", "NAME", "STATE"].map(str::to_owned).into_iter();
    let nodes = columns.iter().map(|column| plain(&column.node));
    let mut lines: Vec<Vec<String>> = vec![head.chain(nodes).collect()];
    for row in rows {
        let guest = name(row.guest.kind, row.guest.vmid, None);
        let title = plain(row.name.as_deref().unwrap_or_default());
        let cells = row.cells.iter().map(cell);
        lines.push([guest, title, state(row)].into_iter().chain(cells).collect());
    }
    let widths = widths(&lines);
    let mut out = String::new();
    for line in lines {
        let cells = line.iter().zip(&widths).map(|(cell, width)| {
            let (word, rest) = cell.split_once(' ').unwrap_or((cell, ""));
            let blanks = padded(cell, *width);
            let tail = blanks.strip_prefix(word).unwrap_or(rest).to_owned();
            coloured(word) + &tail
        });
        let line = cells.collect::<Vec<_>>().join("  ");
        let line = line.trim_end();
        let cut = width.map_or(line.into(), |width| console::truncate_str(line, width, "…"));
        let _ = writeln!(out, "{cut}");
    }
    out
}

/// `pve1, running, HA`
fn state(row: &Row) -> String {
    let running = match row.running {
        Some(true) => ", running",
        Some(false) => ", stopped",
        None => "",
    };
    let ha = if row.guest.ha { ", HA" } else { "" };
    format!("{}{running}{ha}", plain(&row.guest.node))
}

/// `ready`, or the verdict and the gravest reason.
fn cell(cell: &Cell) -> String {
    match (cell.silent, cell.reasons.first()) {
        (Some(silence), _) => silence.word().to_owned(),
        (None, None) => cell.verdict.to_string(),
        (None, Some(said)) => format!("{} {}", cell.verdict, plain(&said.code)),
    }
}

/// `3 guests on 2 nodes: 2 could start on another node than their own; …`
fn summary(rows: &[Row], columns: &[Column]) -> String {
    let answered = columns.iter().filter(|column| column.answer.is_ok()).count();
    let of = |wanted: Option<bool>, ha: bool| {
        let guests = rows.iter().filter(|row| row.elsewhere == wanted && row.guest.ha == ha);
        guests.map(|row| name(row.guest.kind, row.guest.vmid, None)).collect::<Vec<_>>()
    };
    let guests = count(rows.len(), "guest");
    let mut out = format!("{guests}, {} asked, {answered} answered", count(columns.len(), "node"));
    let ha = rows.iter().filter(|row| row.guest.ha).count();
    if ha == 0 {
        return out + ". No guest is managed by HA.";
    }
    let could = of(Some(true), true).len();
    let _ = write!(out, ". Managed by HA: {ha}, of which {could} could start on a node other than its own");
    for (wanted, words) in [(Some(false), "could not"), (None, "not known")] {
        let some = of(wanted, true);
        if !some.is_empty() {
            let _ = write!(out, "; {words}: {}", some.join(", "));
        }
    }
    out + "."
}

impl Row {
    /// It could start on every node.
    pub fn is_ready(&self) -> bool {
        self.cells.iter().all(|cell| cell.verdict == Verdict::Ready)
    }
}

/// `{"schema":1,"nodes":[…],"guests":[…]}`.
pub fn json(rows: &[Row], columns: &[Column]) -> Value {
    let nodes = columns.iter().map(|column| match &column.answer {
        Ok(answer) => {
            json!({ "node": column.node, "state": "answered", "version": answer.version, "error": null })
        }
        Err((silence, why)) => {
            json!({ "node": column.node, "state": silence.name(), "version": null, "error": why })
        }
    });
    let guests = rows.iter().map(|row| {
        let on = columns.iter().zip(&row.cells).map(|(column, cell)| {
            let reasons = cell.reasons.iter().map(|said| {
                json!({
                    "code": said.code,
                    "severity": said.severity,
                    "disk": said.disk,
                    "summary": said.summary,
                    "detail": said.detail,
                })
            });
            let reasons = reasons.collect::<Vec<_>>();
            json!({ "node": column.node, "verdict": cell.verdict, "reasons": reasons })
        });
        json!({
            "vmid": row.guest.vmid,
            "kind": row.guest.kind,
            "name": row.name,
            "node": row.guest.node,
            "running": row.running,
            "ha": row.guest.ha,
            "elsewhere": row.elsewhere,
            "on": on.collect::<Vec<_>>(),
        })
    });
    let (nodes, guests) = (nodes.collect::<Vec<_>>(), guests.collect::<Vec<_>>());
    json!({ "schema": json::SCHEMA, "nodes": nodes, "guests": guests })
}

/// The metrics of a rehearsal: `at` is when it began, in seconds since 1970, `took` how long it took, in seconds.
pub fn prometheus(rows: &[Row], columns: &[Column], at: u64, took: f64) -> String {
    use crate::report::prometheus::{escaped, family};
    let guest = |row: &Row| {
        let kind = match row.guest.kind {
            Kind::Qemu => "qemu",
            Kind::Lxc => "lxc",
        };
        format!("vmid=\"{}\",node=\"{}\",kind=\"{kind}\"", row.guest.vmid, escaped(&row.guest.node))
    };
    let cells = |of: &dyn Fn(&Cell) -> bool| {
        let each = rows.iter().flat_map(|row| {
            columns.iter().zip(&row.cells).map(move |(column, cell)| {
                let labels = format!("{},target=\"{}\"", guest(row), escaped(&column.node));
                (labels, u8::from(of(cell)).to_string())
            })
        });
        each.collect::<Vec<_>>()
    };
    let elsewhere = rows.iter().filter(|row| row.guest.ha);
    let elsewhere = elsewhere.map(|row| (guest(row), u8::from(row.elsewhere == Some(true)).to_string()));
    let answered = columns.iter().map(|column| {
        let labels = format!("target=\"{}\"", escaped(&column.node));
        (labels, u8::from(column.answer.is_ok()).to_string())
    });
    let none = String::new;
    [
        family(
            "rehearse_ready",
            "Whether the guest could start on the node `target` now: 1 if so, 0 if not or not known.",
            cells(&|cell| cell.verdict == Verdict::Ready),
        ),
        family(
            "rehearse_unknown",
            "Whether it is not known if the guest could start on the node `target`.",
            cells(&|cell| cell.verdict == Verdict::Unknown),
        ),
        family(
            "rehearse_ha_elsewhere",
            "Whether a guest managed by HA could start on a node other than its own: 1 if so, 0 if not or not known.",
            elsewhere.collect(),
        ),
        family("rehearse_answered", "Whether the node `target` answered.", answered.collect()),
        family("rehearse_timestamp_seconds", "When the rehearsal began.", vec![(none(), at.to_string())]),
        family("rehearse_duration_seconds", "How long it took.", vec![(none(), format!("{took:.3}"))]),
    ]
    .concat()
}
