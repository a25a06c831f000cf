//! `repair`: mends what is safe to mend, shows it first, and asks.

use crate::act;
use crate::action::{ActionReport, ActionResult};
use crate::cli::Repair;
use crate::commands::check::assess;
use crate::commands::confirm::confirm;
use crate::commands::session::{self, Session};
use crate::commands::world::RealWorld;
use crate::diagnose::code::Severity;
use crate::exit::{self, Exit};
use crate::pve::ha;
use crate::report::text::Detail;
use crate::report::{GuestReport, json, plain, text};
use crate::root::Root;
use crate::verdict::exit_code;
use anyhow::Result;
use std::io::Write;
use std::time::{Duration, Instant};

/// Repairs each guest; the exit code is the gravest. A guest that cannot be looked at does not keep the others from
/// being repaired.
pub fn run(root: &Root, options: &Repair) -> Result<Exit> {
    let end = options.deadline.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let left = || end.map(|end| end.saturating_duration_since(Instant::now()));
    let (mut reports, mut exit) = (Vec::new(), Exit::Ready);
    for vmid in vmids(root, options)? {
        if left().is_some_and(|left| left.is_zero()) {
            eprintln!(
                "rbd-preflight: the deadline has passed; guest {vmid} and those after it were not looked at"
            );
            exit = graver(exit, Exit::Deadline);
            break;
        }
        match of_guest(root, vmid, options, left()) {
            Ok(report) => {
                exit = graver(exit, if options.manner.dry_run { Exit::Ready } else { outcome(&report) });
                reports.push(report);
            }
            Err(error) if options.guests.all => {
                super::complain(&error);
                exit = graver(exit, exit::of(&error));
            }
            Err(error) => return Err(error),
        }
    }
    if options.manner.json {
        print_json(&reports);
    }
    Ok(exit)
}

/// One guest is one object; several are in a list.
fn print_json(reports: &[GuestReport]) {
    match reports {
        [report] => outln!("{}", json::printed(&json::guest(report))),
        _ => outln!("{}", json::printed(&json::guests(reports))),
    }
}

fn graver(a: Exit, b: Exit) -> Exit {
    if b as u8 > a as u8 { b } else { a }
}

/// The guests asked for; at boot only those that PVE or the HA manager will start.
fn vmids(root: &Root, options: &Repair) -> Result<Vec<u32>> {
    let mut vmids = session::vmids(root, &options.guests)?;
    if options.onboot {
        let managed = ha::resources(root)?;
        vmids
            .retain(|vmid| managed.contains_key(vmid) || session::guest(root, *vmid).is_ok_and(|g| g.onboot));
    }
    Ok(vmids)
}

fn of_guest(root: &Root, vmid: u32, options: &Repair, limit: Option<Duration>) -> Result<GuestReport> {
    let session = Session::open(root, vmid)?;
    let before = assess(session.observe(session.policy.settings.check_deadline)?, &session.policy);
    if options.manner.dry_run {
        if !options.manner.json {
            show_plan(&before);
        }
        return Ok(before);
    }
    if before.actions.is_empty() {
        if !options.manner.json {
            out!("{}", text::guest(&before, detail(options)));
        }
        return Ok(before);
    }
    confirm(options.manner.yes, || question(&before, options))?;
    let mut world = RealWorld::new(&session, limit);
    if !options.manner.json {
        // Whoever stops reading does not stop the work.
        world.on_action(|report: &ActionReport| {
            let _ = writeln!(std::io::stdout(), "{}", text::action(report));
        });
    }
    let after = act::repair(&mut world, &session.policy)?;
    if !options.manner.json {
        outln!();
        out!("{}", text::guest(&after, detail(options)));
    }
    Ok(after)
}

fn detail(options: &Repair) -> Detail {
    if options.verbose { Detail::Full } else { Detail::Short }
}

/// The commands, ready to paste; what repair cannot mend as comments.
fn show_plan(report: &GuestReport) {
    outln!("# {}: {}", text::title(&report.survey.guest), report.verdict());
    for planned in &report.actions {
        outln!("{}", plain(&planned.action.command_line()));
    }
    let left = report.findings.iter().filter(|f| f.severity > Severity::Note && f.remedy.actions.is_empty());
    for finding in left {
        for line in text::finding(finding).lines() {
            outln!("# {line}");
        }
    }
    if report.actions.is_empty() {
        outln!("# nothing to do");
    }
}

/// How it stands, and what will be changed.
fn question(report: &GuestReport, options: &Repair) -> String {
    let mut lines = text::guest(report, detail(options)) + "\nThis will be done:\n";
    for planned in &report.actions {
        lines += &format!("  {}\n", text::action(planned));
    }
    lines
}

/// What is left tells the exit code; what a safety rule kept from being mended is a refusal.
fn outcome(report: &GuestReport) -> Exit {
    let busy = |report: &ActionReport| matches!(report.result, ActionResult::Busy { .. });
    let refused = report.findings.iter().any(|f| f.severity > Severity::Note && f.remedy.refused);
    match exit_code(&report.findings) {
        Exit::Ready if !refused => Exit::Ready,
        _ if report.actions.last().is_some_and(busy) => Exit::Busy,
        Exit::Ready | Exit::Stopped if refused => Exit::Refused,
        exit => exit,
    }
}
