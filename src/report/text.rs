//! What people read.

use crate::ceph::image::{ImageFacts, ImageReading};
use crate::diagnose::finding::{Finding, RemedyKind};
use crate::diagnose::verdict::Verdict;
use crate::finding_codes::Severity;
use crate::observe::survey::DiskFacts;
use crate::plan::assessment::GuestReport;
use crate::pve::guest::{Access, Disk, Guest};
use crate::pve::words::Kind;
use crate::rbd::action::ActionReport;
use crate::report::coloured;
use crate::report::table::{padded, widths};
use crate::sys::plain::plain;
use std::fmt::Write as _;
use std::time::Duration;

/// How much of a report to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Notes that most guests have are counted, not shown.
    Short,
    /// Notes too, and what a repair would run.
    Full,
}

/// A guest's report: its disks, what is wrong with them, and what to do next.
pub fn guest(report: &GuestReport, detail: Detail) -> String {
    let mut out = format!("{}: {}\n", title(&report.survey.guest), coloured(&report.verdict().to_string()));
    out.push('\n');
    out.push_str(&table(report.survey.disks.iter().map(disk_row).collect()));
    let quiet = |finding: &&Finding| {
        detail == Detail::Short && finding.severity == Severity::Note && finding.code.is_quiet()
    };
    let (hidden, shown): (Vec<&Finding>, Vec<&Finding>) = report.findings.iter().partition(quiet);
    for finding in shown {
        out.push('\n');
        out.push_str(&self::finding(finding));
    }
    if !hidden.is_empty() {
        let _ = writeln!(out, "\n{} with --verbose", count(hidden.len(), "more note"));
    }
    out
}

/// `VM 516 "xds-dev-516" on pve1`, safe for a terminal.
pub fn title(guest: &Guest) -> String {
    format!("{} on {}", name(guest.kind, guest.vmid, guest.name.as_deref()), plain(&guest.node))
}

/// `VM 516 "xds-dev-516"`, safe for a terminal.
pub fn name(kind: Kind, vmid: u32, name: Option<&str>) -> String {
    let kind = match kind {
        Kind::Qemu => "VM",
        Kind::Lxc => "CT",
    };
    match name.map(shown) {
        Some(name) => format!("{kind} {vmid} \"{name}\""),
        None => format!("{kind} {vmid}"),
    }
}

/// What comes after a check: the next command.
pub fn next_step(report: &GuestReport) -> Option<String> {
    let vmid = report.survey.guest.vmid;
    let automatic = report.findings.iter().filter(|f| f.remedy.kind == RemedyKind::Automatic).count();
    let stops = |f: &&Finding| f.severity >= Severity::Blocker && f.remedy.kind != RemedyKind::Automatic;
    let mut stopping = report.findings.iter().filter(stops).peekable();
    let by_repair = format!("`rbd-preflight repair {vmid}` fixes {automatic} of these; --dry-run shows how.");
    match (report.verdict(), automatic) {
        (Verdict::Unknown, 0) => Some(
            "Whether the guest can start is not known; the hook lets it start, unless the settings say `on_error: block`."
                .to_owned(),
        ),
        (Verdict::Ready, _) | (_, 0) if stopping.peek().is_none() => None,
        (_, 1..) if stopping.peek().is_none() => Some(by_repair),
        (_, 1..) => Some(format!("{by_repair} What else stops the start needs an administrator.")),
        (_, 0) if stopping.all(|finding| finding.remedy.kind == RemedyKind::Wait) => {
            Some(format!("When that has passed or is done, run `rbd-preflight check {vmid}` again."))
        }
        (_, 0) => Some("Nothing here can be fixed automatically; it needs an administrator.".to_owned()),
    }
}

/// A finding: what, where, what was seen, what fixes it, safe for a terminal. Commands of what `repair` does itself are left to
/// `--dry-run`.
pub fn finding(finding: &Finding) -> String {
    let place = match (&finding.disk, &finding.image) {
        (Some(disk), Some(image)) => shown(&format!("{disk} ({image})")) + ": ",
        (Some(disk), None) => shown(disk) + ": ",
        _ => String::new(),
    };
    let ignored = if finding.ignored { ", ignored by the settings" } else { "" };
    let mut out = format!("{:<8} {place}{} [{}{ignored}]\n", finding.severity, finding.summary, finding.code);
    if !finding.detail.is_empty() {
        let _ = writeln!(out, "         seen:   {}", shown(&finding.detail));
    }
    let label = match finding.remedy.kind {
        RemedyKind::None if finding.remedy.is_nothing() => return out,
        RemedyKind::None => "hint:  ",
        RemedyKind::Automatic => "repair:",
        RemedyKind::Manual => "to do: ",
        RemedyKind::Wait => "wait:  ",
    };
    let _ = writeln!(out, "         {label} {}", shown(&finding.remedy.text));
    if let Some(why) = &finding.remedy.withheld {
        let _ = writeln!(out, "         not done automatically: {}", shown(why));
    }
    if finding.remedy.kind != RemedyKind::Automatic {
        for command in &finding.remedy.commands {
            let _ = writeln!(out, "           {}", plain(command));
        }
    }
    out
}

/// A finding in one line: what, where, what was seen.
pub fn finding_line(finding: &Finding) -> String {
    let place = finding.disk.as_ref().map(|disk| format!("{disk}: ")).unwrap_or_default();
    let seen =
        if finding.detail.is_empty() { String::new() } else { format!(" ({})", shown(&finding.detail)) };
    plain(&format!("{place}{}{seen} [{}]", finding.summary, finding.code))
}

/// A change and what came of it, in one line.
pub fn action(report: &ActionReport) -> String {
    plain(&report.result.of(&report.action.describe()))
}

/// That a change waits for the second look at the owner of a lock.
pub fn second_look(wait: Duration) -> String {
    format!(
        "looking for the owner of the lock once more, in {} s; who takes the lock over puts it on the OSD blocklist",
        wait.as_secs_f32().ceil()
    )
}

/// `disks`: what the config says, without Ceph.
pub fn disks(guest: &Guest) -> String {
    let mut out = format!("{}\n\n", title(guest));
    out.push_str(&table(guest.disks.iter().map(config_row).collect()));
    for refusal in &guest.refusals {
        let _ = writeln!(out, "\nPVE refuses {}: {}", shown(&refusal.key), shown(&refusal.message));
    }
    for note in &guest.notes {
        let _ = writeln!(out, "\n{}:{}: {}", plain(&note.file), note.line, shown(&note.text));
    }
    out
}

fn config_row(disk: &Disk) -> Vec<String> {
    let access = match disk.access {
        Access::Krbd => "krbd",
        Access::Librbd => "librbd",
    };
    let image = match (&disk.image, &disk.namespace) {
        (Some(image), Some(namespace)) => format!("{}/{namespace}/{image}", disk.pool),
        (Some(image), None) => format!("{}/{image}", disk.pool),
        (None, _) => disk.volid.clone(),
    };
    let role = super::json::word(&disk.role);
    let dropped = disk.pve_drops.as_ref().map(|dropped| format!("PVE drops the line: {}", dropped.why));
    vec![disk.key.clone(), image, access.to_owned(), role, dropped.unwrap_or_default()]
}

fn disk_row(facts: &DiskFacts) -> Vec<String> {
    let mut row = config_row(&facts.disk);
    let state = match &facts.reading {
        Some(ImageReading::Found(image)) => image_state(image),
        Some(ImageReading::ImageMissing) => "no such image".to_owned(),
        Some(ImageReading::InTrash(_)) => "in the trash".to_owned(),
        Some(ImageReading::PoolMissing) => "no such pool".to_owned(),
        Some(ImageReading::NamespaceMissing) => "no such namespace".to_owned(),
        Some(ImageReading::ParentMissing(_)) => "its parent is gone".to_owned(),
        Some(ImageReading::Unknown(_)) => "not read".to_owned(),
        None => "no image".to_owned(),
    };
    row.insert(4, state);
    row
}

fn image_state(image: &ImageFacts) -> String {
    let mut told = vec![size(image.size), image.features.to_string()];
    if image.flags.known().is_some_and(|flags| flags.any()) {
        told.push("object map invalid".to_owned());
    }
    match image.watchers.known().map(Vec::len) {
        Some(0) => {}
        Some(n) => told.push(count(n, "watcher")),
        None => told.push("watchers unknown".to_owned()),
    }
    if image.lock.known().is_some_and(|lock| !lock.lockers.is_empty()) {
        told.push("locked".to_owned());
    }
    told.join("; ")
}

/// A number and its noun.
pub fn count(n: usize, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{n} {noun}s") }
}

/// Bytes as people say them.
fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let exact = |unit: &usize| bytes >= 1 << (10 * unit) && bytes % (1 << (10 * unit)) == 0;
    let unit = (0..units.len()).rev().find(exact).unwrap_or(0);
    format!("{} {}", bytes >> (10 * unit), units[unit])
}

/// The longest piece of text from outside that is shown whole, in characters: a config may hold a mebibyte of name.
const LONGEST_SHOWN: usize = 4000;
/// The widest column that others are lined up behind.
const WIDEST_COLUMN: usize = 200;

/// Text from outside safe for a terminal, and no more of it than a person reads.
fn shown(text: &str) -> String {
    match text.char_indices().nth(LONGEST_SHOWN) {
        Some((end, _)) => plain(&text[..end]) + "…",
        None => plain(text),
    }
}

/// Columns as wide as their widest cell, safe for a terminal; the last one hangs loose.
pub(super) fn table(rows: Vec<Vec<String>>) -> String {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| shown(cell)).collect()).collect();
    let widths: Vec<usize> = widths(&rows).into_iter().map(|width| width.min(WIDEST_COLUMN)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).filter(|(_, w)| **w > 0);
        let text: Vec<String> = cells.map(|(cell, width)| padded(cell, *width)).collect();
        format!("  {}\n", text.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other_in_chinese_too() {
        let rows = [["数据库", "a"], ["web", "b"]];
        let out = table(rows.map(|row| row.map(str::to_owned).to_vec()).to_vec());
        assert_eq!(out, "  数据库  a\n  web     b\n");
    }

    #[test]
    fn sizes_are_said_exactly() {
        assert_eq!(
            [size(0), size(1536), size(4 << 20), size(40 << 30)],
            ["0 B", "1536 B", "4 MiB", "40 GiB"]
        );
    }

    #[test]
    fn a_mebibyte_of_name_is_cut() {
        let long = "x".repeat(1 << 20);
        let text = table(vec![vec![long.clone(), "b".into()], vec!["a".into(), long]]);
        assert!(text.len() < 3 * LONGEST_SHOWN && text.contains('…'), "{} bytes", text.len());
    }

    #[test]
    fn a_table_has_no_empty_columns_and_no_trailing_blanks() {
        let rows =
            vec![vec!["a".into(), String::new(), "b".into()], vec!["cc".into(), String::new(), "".into()]];
        assert_eq!(table(rows), "  a   b\n  cc\n");
    }
}
