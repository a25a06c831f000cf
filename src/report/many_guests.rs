//! Many guests: a table for people, a list for programs.

use crate::diagnose::finding::Finding;
use crate::diagnose::verdict::Verdict;
use crate::finding_codes::Severity;
use crate::pve::guest::Kind;
use crate::pve::node::GuestFile;
use crate::reading::Reading;
use crate::report::text::count;
use crate::report::{GuestReport, coloured, json, plain};
use serde_json::{Value, json};
use std::fmt::Write as _;

/// A guest whose config cannot be read.
#[derive(Debug, Clone)]
pub struct Unread {
    /// The config.
    pub file: GuestFile,
    /// Why.
    pub error: String,
}

/// Every verdict, the worst first.
pub const WORST_FIRST: [Verdict; 5] =
    [Verdict::Refused, Verdict::Blocked, Verdict::Unknown, Verdict::Repairable, Verdict::Ready];

/// A row per guest in lines of at most `width` columns, a row per guest that cannot be read, and a summary.
pub fn text(
    reports: &[&GuestReport],
    unread: &[Unread],
    findings: &[Finding],
    width: Option<usize>,
) -> String {
    let head = ["GUEST", "NAME", "STATE", "DISKS", "VERDICT", "WORST FINDING"].map(str::to_owned);
    let mut rows = vec![head];
    rows.extend(unread.iter().map(unread_row));
    rows.extend(reports.iter().map(|report| row(report)));
    let mut out = if rows.len() > 1 { lines(&rows, width) + "\n" } else { String::new() };
    if !findings.is_empty() {
        let _ = writeln!(out, "{} (--verbose lists them)\n", orphaned(findings));
    }
    out + &summary(reports, unread) + "\n"
}

/// `12 guests: 1 refused, 2 repairable, 9 ready`.
pub fn summary(reports: &[&GuestReport], unread: &[Unread]) -> String {
    let of = |verdict| reports.iter().filter(|report| report.verdict() == verdict).count();
    let mut told: Vec<String> = WORST_FIRST
        .into_iter()
        .map(|verdict| (of(verdict), verdict))
        .filter(|(number, _)| *number > 0)
        .map(|(number, verdict)| format!("{number} {verdict}"))
        .collect();
    if !unread.is_empty() {
        told.insert(0, format!("{} not readable", unread.len()));
    }
    let guests = count(reports.len() + unread.len(), "guest");
    if told.is_empty() { guests } else { format!("{guests}: {}", told.join(", ")) }
}

fn orphaned(findings: &[Finding]) -> String {
    format!("{} named after guests that are not there", count(findings.len(), "image"))
}

/// The gravest finding that is more than a note.
pub fn worst(report: &GuestReport) -> Option<&Finding> {
    report.findings.iter().find(|finding| finding.severity > Severity::Note)
}

type Row = [String; 6];
/// The column of the verdict.
const VERDICT: usize = 4;

fn unread_row(guest: &Unread) -> Row {
    let GuestFile { kind, vmid, node, .. } = &guest.file;
    let cells = [number(*kind, *vmid), String::new(), format!("on {node}"), String::new()];
    let [guest_cell, name, state, disks] = cells;
    [guest_cell, name, state, disks, Verdict::Unknown.to_string(), plain(&guest.error)]
}

fn row(report: &GuestReport) -> Row {
    let guest = &report.survey.guest;
    let finding = worst(report).map(|finding| {
        let place = finding.disk.as_ref().map(|disk| format!("{disk}: ")).unwrap_or_default();
        format!("{}: {place}{}", finding.code, finding.summary)
    });
    [
        number(guest.kind, guest.vmid),
        plain(guest.name.as_deref().unwrap_or_default()),
        state(report),
        report.survey.disks.len().to_string(),
        report.verdict().to_string(),
        plain(&finding.unwrap_or_default()),
    ]
}

fn number(kind: Kind, vmid: u32) -> String {
    match kind {
        Kind::Qemu => format!("VM {vmid}"),
        Kind::Lxc => format!("CT {vmid}"),
    }
}

fn state(report: &GuestReport) -> String {
    let (guest, node) = (&report.survey.guest, &report.survey.node);
    match &node.running {
        _ if guest.node != node.name => format!("on {}", guest.node),
        _ if guest.template => "template".to_owned(),
        Reading::Known(true) => "running".to_owned(),
        Reading::Known(false) => "stopped".to_owned(),
        Reading::Unknown(_) => "unknown".to_owned(),
    }
}

/// Columns as wide as their widest cell, cut where the terminal ends; verdicts in colour where there are colours.
fn lines(rows: &[Row], width: Option<usize>) -> String {
    let widest = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| console::measure_text_width(cell)).max()
    };
    let widths: Vec<usize> = (0..6).map(|column| widest(column).unwrap_or(0)).collect();
    let mut out = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            let padded = console::pad_str(cell, *width, console::Alignment::Left, None);
            if column == VERDICT { coloured(&padded) } else { padded.into_owned() }
        });
        let line = cells.collect::<Vec<_>>().join("  ");
        let line = line.trim_end();
        let cut = width.map_or(line.into(), |width| console::truncate_str(line, width, "…"));
        let _ = writeln!(out, "{cut}");
    }
    out
}

/// `{"schema":1,"guests":[…],"unread":[…],"findings":[…]}`.
pub fn json(reports: &[GuestReport], unread: &[Unread], findings: &[Finding]) -> Value {
    let mut value = json::guests(reports);
    let unread = unread.iter().map(|guest| {
        let GuestFile { vmid, kind, node, .. } = &guest.file;
        json!({ "vmid": vmid, "kind": kind, "node": node, "error": guest.error })
    });
    value["unread"] = json!(unread.collect::<Vec<_>>());
    value["findings"] = json!(findings);
    value
}
