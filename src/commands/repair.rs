//! `repair`: mends what is safe to mend, shows it first, and asks.

use crate::act;
use crate::action::{ActionReport, ActionResult};
use crate::cli::{Guests, Repair};
use crate::commands::check::assess;
use crate::commands::confirm::confirm;
use crate::commands::fleet;
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
use std::collections::BTreeMap;
use std::io::Write;
use std::time::{Duration, Instant};

/// How long a look at many guests may be relied on.
const FRESH: Duration = Duration::from_secs(30);

/// Repairs each guest; the exit code is the gravest. A guest that cannot be looked at does not keep the others from
/// being repaired.
pub fn run(root: &Root, options: &Repair) -> Result<Exit> {
    let end = options.deadline.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let left = || end.map(|end| end.saturating_duration_since(Instant::now()));
    let (mut reports, mut exit) = (Vec::new(), Exit::Ready);
    let vmids = vmids(root, options)?;
    let mut first = FirstLook::take(root, &vmids, options, left());
    for vmid in vmids {
        if left().is_some_and(|left| left.is_zero()) {
            errln!(
                "rbd-preflight: the deadline has passed; guest {vmid} and those after it were not looked at"
            );
            exit = graver(exit, Exit::Deadline);
            break;
        }
        match of_guest(root, vmid, options, left(), first.of(vmid)) {
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

/// A look at many guests over one connection to each cluster: what is to be shown and asked. Repair itself looks anew.
struct FirstLook {
    at: Instant,
    reports: BTreeMap<u32, GuestReport>,
}

impl FirstLook {
    /// Nothing for a guest that could not be looked at: a look of its own then says why.
    fn take(root: &Root, vmids: &[u32], options: &Repair, at_most: Option<Duration>) -> Self {
        let look = || -> Result<Vec<GuestReport>> {
            let files = session::files(root, &Guests { vmids: vmids.to_vec(), all: false })?;
            let manner = fleet::Manner {
                at_most,
                quiet: options.quiet || options.manner.json,
                ..fleet::Manner::default()
            };
            Ok(fleet::look(root, &files, manner)?.reports)
        };
        let reports = if vmids.len() > 1 { look().unwrap_or_default() } else { Vec::new() };
        let by_guest = reports.into_iter().map(|report| (report.survey.guest.vmid, report));
        Self { at: Instant::now(), reports: by_guest.collect() }
    }

    /// What was seen of a guest, while it is fresh: repairs of others may have taken long.
    fn of(&mut self, vmid: u32) -> Option<GuestReport> {
        self.reports.remove(&vmid).filter(|_| self.at.elapsed() < FRESH)
    }
}

fn of_guest(
    root: &Root,
    vmid: u32,
    options: &Repair,
    limit: Option<Duration>,
    seen: Option<GuestReport>,
) -> Result<GuestReport> {
    let session = Session::open(root, vmid)?;
    let before = match seen {
        Some(report) => report,
        None => assess(session.observe(session.policy.settings.check_deadline)?, &session.policy),
    };
    if options.manner.dry_run {
        if !options.manner.json {
            show_plan(&before);
        }
        return Ok(before);
    }
    if before.actions.is_empty() {
        show(&before, options);
        return Ok(before);
    }
    confirm(options.manner.yes, || question(&before, options))?;
    let mut world = RealWorld::new(&session, limit);
    if !options.manner.json {
        // Whoever stops reading does not stop the work.
        world.on_action(|report: &ActionReport| {
            let _ = writeln!(std::io::stdout(), "{}", text::action(report));
        });
        world.on_wait(|wait| {
            let _ = writeln!(std::io::stdout(), "{}", text::second_look(wait));
        });
    }
    let after = act::repair(&mut world, &session.policy)?;
    if !options.manner.json && !options.quiet {
        outln!();
    }
    show(&after, options);
    Ok(after)
}

/// How a guest stands.
fn show(report: &GuestReport, options: &Repair) {
    if options.quiet {
        for finding in report.findings.iter().filter(|finding| finding.severity > Severity::Warning) {
            outln!("{}: {}", text::title(&report.survey.guest), text::finding_line(finding));
        }
    } else if !options.manner.json {
        out!("{}", text::guest(report, detail(options)));
    }
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
