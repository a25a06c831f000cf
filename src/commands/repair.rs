//! `repair`: fixes what is safe to fix, shows it first, and asks.

use crate::act;
use crate::cli::{Guests, Repair};
use crate::commands::confirm::confirm;
use crate::commands::live::RealWorld;
use crate::commands::session::{self, Session};
use crate::commands::{many_guests, quorum};
use crate::diagnose::budget;
use crate::diagnose::verdict::exit_code;
use crate::exit::{self, Exit};
use crate::finding_codes::Severity;
use crate::plan::assessment::GuestReport;
use crate::plan::assessment::assess;
use crate::plan::order::refusal;
use crate::pve::ha;
use crate::rbd::action::{ActionReport, ActionResult};
use crate::report::text::Detail;
use crate::report::{json, text};
use crate::settings::Settings;
use crate::settings::policy::Policy;
use crate::sys::plain::plain;
use crate::sys::root::Root;
use anyhow::Result;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::time::{Duration, Instant};

/// How long a look at many guests may be relied on, where somebody is asked about what was seen.
const FRESH: Duration = Duration::from_secs(30);

/// How long after the deadline a repair at boot is ended from outside its work: all guests wait for it.
const LAST_GRACE: Duration = Duration::from_secs(5);

/// What of a guest's time at boot may go to rebuilds at most: something is left for its other changes.
const REBUILD_SHARE: u32 = 2;

/// Repairs each guest; the exit code is the gravest. A guest that cannot be looked at does not keep the others from
/// being repaired.
pub fn run(root: &Root, options: &Repair) -> Result<Exit> {
    let mut vmids = vmids(root, options)?;
    if options.wait_quorum && !vmids.is_empty() {
        quorum::wait(root);
        // Others may have moved guests while this node was down.
        vmids = self::vmids(root, options)?;
    }
    let mut bounds = Bounds::new(root, options)?;
    let (mut reports, mut exit) = (Vec::new(), Exit::Ready);
    let mut first = FirstLook::take(root, &vmids, options, bounds.left());
    for vmid in vmids {
        if bounds.left().is_some_and(|left| left.is_zero()) {
            errln!(
                "rbd-preflight: the deadline has passed; guest {vmid} and those after it were not looked at"
            );
            exit = graver(exit, Exit::Deadline);
            break;
        }
        match of_guest(root, vmid, options, &mut bounds, first.of(vmid)) {
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

/// How long a run may take. At boot, where no guest starts before the run is over, one guest may take no longer than its
/// hook might, and all rebuilds share one budget.
struct Bounds {
    end: Option<Instant>,
    boot: bool,
    /// What is left for rebuilds; `None` is as long as they take.
    rebuilds: Option<Duration>,
}

impl Bounds {
    fn new(root: &Root, options: &Repair) -> Result<Self> {
        let limit = options.deadline.map(Duration::from_secs);
        let general = Settings::load(root)?.for_guest(0, std::iter::empty::<&str>());
        if let (true, Some(limit)) = (options.onboot, limit) {
            end_after(limit + LAST_GRACE);
        }
        Ok(Self {
            end: limit.map(|limit| Instant::now() + limit),
            boot: options.onboot,
            rebuilds: options.onboot.then_some(general.rebuild_deadline),
        })
    }

    /// What is left for the whole run.
    fn left(&self) -> Option<Duration> {
        self.end.map(|end| end.saturating_duration_since(Instant::now()))
    }

    /// What a guest may take of it; its policy is told what of that may go to rebuilds.
    fn for_guest(&self, policy: &mut Policy) -> Option<Duration> {
        if !self.boot {
            return self.left();
        }
        let usual = policy.settings.deadline;
        let limit = self.left().map_or(usual, |left| left.min(usual));
        let rebuilds = policy.settings.rebuild_deadline.min(limit / REBUILD_SHARE);
        policy.rebuild_budget = Some(self.rebuilds.map_or(rebuilds, |left| left.min(rebuilds)));
        Some(limit)
    }

    /// A guest has had its turn.
    fn spend(&mut self, made: &[ActionReport]) {
        if let Some(left) = &mut self.rebuilds {
            *left = left.saturating_sub(budget::spent(made));
        }
    }
}

/// Ends the process if it is still there after its time, whatever it is stuck in: guests wait for it.
fn end_after(limit: Duration) {
    let end = move || {
        std::thread::sleep(limit);
        errln!("rbd-preflight: gave up after {} s; what is left is done by the hook", limit.as_secs());
        Exit::Deadline.leave()
    };
    if let Err(error) = std::thread::Builder::new().spawn(end) {
        log::warn!("no watchdog: {error}");
    }
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

/// The guests asked for; at boot only those that PVE or the HA manager will start, and that have RBD disks.
fn vmids(root: &Root, options: &Repair) -> Result<Vec<u32>> {
    let mut vmids = session::vmids(root, &options.guests)?;
    if options.onboot {
        let managed = ha::resources(root)?;
        let meant = |vmid: u32| match session::guest(root, vmid) {
            Ok(guest) => !guest.disks.is_empty() && (guest.onboot || managed.contains_key(&vmid)),
            // It is told what is wrong with it.
            Err(_) => managed.contains_key(&vmid),
        };
        vmids.retain(|vmid| meant(*vmid));
    }
    Ok(vmids)
}

/// A look at many guests over one connection to each cluster: what is to be shown and asked. Repair itself looks anew.
struct FirstLook {
    at: Instant,
    /// Nobody is asked at boot, and a guest that needed nothing then is not looked at once more.
    boot: bool,
    reports: BTreeMap<u32, GuestReport>,
}

impl FirstLook {
    /// Nothing for a guest that could not be looked at: a look of its own then says why.
    fn take(root: &Root, vmids: &[u32], options: &Repair, at_most: Option<Duration>) -> Self {
        let look = || -> Result<Vec<GuestReport>> {
            let files = session::files(root, &Guests { vmids: vmids.to_vec(), all: false })?;
            let manner = many_guests::Manner {
                at_most,
                quiet: options.quiet || options.manner.json,
                ..many_guests::Manner::default()
            };
            Ok(many_guests::look(root, &files, manner)?.reports)
        };
        let reports = if vmids.len() > 1 { look().unwrap_or_default() } else { Vec::new() };
        let by_guest = reports.into_iter().map(|report| (report.survey.guest.vmid, report));
        Self { at: Instant::now(), boot: options.onboot, reports: by_guest.collect() }
    }

    /// What was seen of a guest, while it is fresh: repairs of others may have taken long.
    fn of(&mut self, vmid: u32) -> Option<GuestReport> {
        self.reports.remove(&vmid).filter(|_| self.boot || self.at.elapsed() < FRESH)
    }
}

fn of_guest(
    root: &Root,
    vmid: u32,
    options: &Repair,
    bounds: &mut Bounds,
    seen: Option<GuestReport>,
) -> Result<GuestReport> {
    let mut session = Session::open(root, vmid)?;
    if bounds.boot {
        session.prepare_at_boot();
    }
    let limit = bounds.for_guest(&mut session.policy);
    let check = session.policy.settings.check_deadline;
    let before = match seen {
        // At boot it is judged by what is left to do it in, and by whether it can start at all.
        Some(report) if bounds.boot => assess(session.in_situation(report.survey), &session.policy),
        Some(report) => report,
        None => {
            let survey = session.observe(limit.map_or(check, |limit| limit.min(check)))?;
            assess(survey, &session.policy)
        }
    };
    if options.manner.dry_run {
        if !options.manner.json {
            show_plan(&before);
        }
        return Ok(before);
    }
    if before.actions.is_empty() {
        show(&before, options);
        tell_refusal(&before, &session.policy);
        return Ok(before);
    }
    confirm(options.manner.yes, || question(&before, options))?;
    let mut world = RealWorld::new(&session, limit);
    if !options.manner.json {
        // Whoever stops reading does not stop the work.
        world.on_action(|report: &ActionReport| {
            let _ = writeln!(crate::sys::stdout::stdout(), "{}", text::action(report));
        });
        world.on_wait(|wait| {
            let _ = writeln!(crate::sys::stdout::stdout(), "{}", text::second_look(wait));
        });
    }
    let after = act::repair(&mut world, &session.policy)?;
    bounds.spend(&after.actions);
    if !options.manner.json && !options.quiet {
        outln!();
    }
    show(&after, options);
    Ok(after)
}

/// Why nothing is changed at boot, where something could be.
fn tell_refusal(report: &GuestReport, policy: &Policy) {
    let could = report.findings.iter().any(|finding| !finding.remedy.actions.is_empty());
    if let (true, Some(stops)) = (could, refusal(&report.findings, policy)) {
        let codes: BTreeSet<&str> = stops.iter().map(|finding| finding.code.name()).collect();
        errln!(
            "rbd-preflight: {}: nothing is changed: its start is going to be refused ({})",
            plain(&text::title(&report.survey.guest)),
            codes.into_iter().collect::<Vec<_>>().join(", ")
        );
    }
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

/// The commands, ready to paste; what repair cannot fix as comments.
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

/// What is left decides the exit code; what a safety rule kept from being fixed is a refusal.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rbd::action::{Action, Change, Target};
    use crate::rbd::features::Features;
    use crate::rbd::spec::Spec;
    use crate::settings::Resolved;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn bounds(limit: Option<u64>, rebuilds: u64) -> Bounds {
        let end = limit.map(|limit| Instant::now() + seconds(limit));
        Bounds { end, boot: true, rebuilds: Some(seconds(rebuilds)) }
    }

    fn policy(deadline: u64, rebuild_deadline: u64) -> Policy {
        Policy::new(Resolved {
            deadline: seconds(deadline),
            rebuild_deadline: seconds(rebuild_deadline),
            ..Resolved::default()
        })
    }

    #[test]
    fn what_one_guests_rebuilds_took_is_not_there_for_the_next_one() {
        let target = Target {
            storage: "ceph".into(),
            fsid: "f".into(),
            spec: Spec { pool: "rbd".into(), namespace: None, image: "a".into() },
            id: None,
            rbd_arguments: Vec::new(),
        };
        let made = |change, result| ActionReport::new(Action { target: target.clone(), change }, result);
        let rebuild = || Change::RebuildObjectMap { snapshot: None };
        let took = |seconds: u64| ActionResult::Done { duration_ms: seconds * 1000 };
        let mut bounds = bounds(None, 60);
        let features = Change::EnableFeatures { features: Features::OBJECT_MAP };
        bounds.spend(&[made(rebuild(), took(15)), made(features, took(30)), made(rebuild(), took(5))]);
        assert_eq!(bounds.rebuilds, Some(seconds(40)));
        let failed = ActionResult::Failed { errno: Some(110), message: String::new() };
        bounds.spend(&[made(rebuild(), failed)]);
        assert_eq!(bounds.rebuilds, Some(seconds(0)), "it may have taken all there was");
    }

    #[test]
    fn at_boot_a_guest_has_no_more_time_than_its_hook_and_than_is_left() {
        for (limit, deadline, rebuilds, rebuild_deadline, expected) in [
            (None, 120, 60, 60, (120, 60)),
            (None, 120, 60, 20, (120, 20)),
            (None, 120, 7, 60, (120, 7)),
            (None, 120, 60, 0, (120, 0)),
            // Half of what is left at most: nothing begins that cannot end.
            (None, 20, 60, 60, (20, 10)),
            (Some(0), 120, 60, 60, (0, 0)),
        ] {
            let mut policy = policy(deadline, rebuild_deadline);
            let given = bounds(limit, rebuilds).for_guest(&mut policy);
            assert_eq!(
                (given, policy.rebuild_budget),
                (Some(seconds(expected.0)), Some(seconds(expected.1)))
            );
        }
        let mut policy = policy(120, 60);
        let by_hand = Bounds { end: None, boot: false, rebuilds: None };
        assert_eq!((by_hand.for_guest(&mut policy), policy.rebuild_budget), (None, None));
    }
}
