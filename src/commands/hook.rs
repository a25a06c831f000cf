//! `hook`: what Proxmox VE calls. Everything it says goes to stderr; it stops a start only when that start is
//! certain to fail or certain to be unsafe.

use crate::act;
use crate::cli::Hook;
use crate::commands::live::RealWorld;
use crate::commands::session::{self, Session};
use crate::diagnose::finding::{Finding, RemedyKind};
use crate::diagnose::is_a_moment;
use crate::diagnose::verdict::{Verdict, exit_code};
use crate::exit::Exit;
use crate::finding_codes::{Code, Severity};
use crate::hook::earlier::Call;
use crate::hook::meant;
use crate::hook::situation::{Situation, situation};
use crate::plan::assessment::GuestReport;
use crate::plan::assessment::assess;
use crate::plan::tries::passes;
use crate::rbd::action::{ActionReport, Change};
use crate::reading::error_text;
use crate::report::text;
use crate::settings::policy::Scope;
use crate::settings::{Mode, OnError, Resolved};
use crate::sys::plain::plain;
use crate::sys::root::Root;
use anyhow::{Result, anyhow};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The first and the longest pause between two looks at a guest that is not ready.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));
/// How often a guest is looked at again whose disks could not be read.
const UNKNOWN_TRIES: u32 = 3;
/// How long a process that has a disk open may take to go before it is a reason.
const HOLDER_GRACE: Duration = Duration::from_secs(10);
/// How long a hook after a stop may take. PVE holds the guest's lock meanwhile, and a start waits 10 s for it
/// (`PVE::QemuConfig`, `lock_config`).
const AFTER_STOP: Duration = Duration::from_secs(4);
/// How long after the deadline a hook that is still busy is ended from outside its work.
const LAST_GRACE: Duration = Duration::from_secs(2);

/// How long it may take until the settings are read, which say how long it may take.
const FIRST_LIMIT: Duration = Duration::from_secs(30);

/// Runs a hook, and the hookscript that the guest had before.
pub fn run(root: &Root, options: &Hook) -> Exit {
    meant::open();
    let call = Call::new(root, options.vmid, options.phase.clone(), options.earlier.clone());
    call.run(|| guarded(|on_error| ours(root, options, &call, on_error)))
}

/// A fault of our own that nobody foresaw is treated as one that was: it says nothing about the guest.
fn guarded(ours: impl FnOnce(&Cell<OnError>) -> Exit) -> Exit {
    let on_error = Cell::new(OnError::Allow);
    std::panic::catch_unwind(AssertUnwindSafe(|| ours(&on_error))).unwrap_or_else(|_| {
        fault(
            &anyhow!("rbd-preflight itself failed, see the lines above; please report them"),
            on_error.get(),
        )
    })
}

/// Runs our own part.
fn ours(root: &Root, options: &Hook, call: &Call, on_error: &Cell<OnError>) -> Exit {
    let migrated_from = std::env::var("PVE_MIGRATED_FROM").ok();
    let situation = |lock| situation(&options.phase, migrated_from.as_deref(), lock);
    let begun = Instant::now();
    if !situation(None).allowed().look {
        return Exit::Ready;
    }
    // Until the settings say how long it may take.
    let first = watchdog(call, FIRST_LIMIT, Exit::Ready);
    let guest = match session::guest(root, options.vmid) {
        Ok(guest) => guest,
        Err(error) => return fault(&error, OnError::Allow),
    };
    if guest.disks.is_empty() {
        return Exit::Ready;
    }
    let situation = situation(guest.locked());
    let session = match Session::of(root, guest) {
        Ok(session) => session,
        Err(error) => return fault(&error, OnError::Allow),
    };
    if session.policy.settings.mode == Mode::Off {
        return Exit::Ready;
    }
    on_error.set(session.policy.settings.on_error);
    if on_error.get() == OnError::Block {
        // Then any end that is not a yes stops the start.
        meant::say();
    }
    let settings = &session.policy.settings;
    // All that the hook does is within its time, from its very beginning: PVE's files, the kernel's module.
    let (limit, grace) = match situation {
        Situation::NotOurs => return Exit::Ready,
        Situation::Start | Situation::Backup => (settings.deadline, LAST_GRACE),
        Situation::Stopped => (settings.deadline.min(AFTER_STOP), Duration::from_secs(1)),
        _ => (situation.allowed().budget.unwrap_or(settings.deadline), Duration::ZERO),
    };
    let starts = matches!(situation, Situation::Start | Situation::Backup);
    let exit = if starts && on_error.get() == OnError::Block { Exit::Deadline } else { Exit::Ready };
    watchdog(call, (limit + grace).saturating_sub(begun.elapsed()), exit);
    first.call_off();
    let result = match situation {
        Situation::NotOurs => return Exit::Ready,
        Situation::Start | Situation::Backup => pre_start(session, begun),
        Situation::Stopped => Ok(post_stop(session, limit.saturating_sub(begun.elapsed()))),
        _ => look(session, &situation, limit.saturating_sub(begun.elapsed())),
    };
    result.unwrap_or_else(|error| fault(&error, on_error.get()))
}

/// The tool could not do its work. That says nothing about the guest.
fn fault(error: &anyhow::Error, on_error: OnError) -> Exit {
    say(&format!("could not check the guest: {}", error_text(error)));
    match on_error {
        OnError::Allow => {
            say("continuing with the start without it (`on_error: allow`)");
            Exit::Ready
        }
        OnError::Block => {
            say("the start is stopped (`on_error: block`)");
            meant::say();
            Exit::Error
        }
    }
}

/// One line on stderr, safe for a terminal and a task log.
fn say(line: &str) {
    errln!("rbd-preflight: {}", plain(line));
}

/// The guest is, or may be, alive elsewhere: look, warn, let it go on.
fn look(mut session: Session, situation: &Situation, budget: Duration) -> Result<Exit> {
    let why = situation.why_not().unwrap_or_default();
    say(&format!("{}: only looking: {why}", text::title(&session.guest)));
    session.policy.read_only = Some(why);
    let report = assess(session.observe(budget / 2)?, &session.policy);
    for finding in &report.findings {
        // What has the disks open is what the guest comes from.
        if finding.severity > Severity::Note && finding.code != Code::InUseElsewhere {
            tell(&text::finding(finding));
        }
    }
    Ok(Exit::Ready)
}

/// The guest has stopped: fix what the hook before the next start would come too late for. Only of a guest that is
/// this node's own; a migration that failed calls this on the target, while the guest runs on the source. It never
/// fails a stop, and says nothing where nothing was to be done.
fn post_stop(mut session: Session, limit: Duration) -> Exit {
    session.prepare_after_stop();
    let mut world = RealWorld::new(&session, Some(limit));
    world.on_finding(|finding| say(&format!("found: {}", text::finding_line(finding))));
    world.on_action(tell_action);
    world.on_wait(|wait| say(&text::second_look(wait)));
    if let Err(error) = act::repair(&mut world, &session.policy) {
        say(&format!("could not look at the guest after its stop: {}", error_text(&error)));
    }
    Exit::Ready
}

/// Check, repair, check again; wait for what time fixes; then say whether the guest may start.
fn pre_start(mut session: Session, begun: Instant) -> Result<Exit> {
    session.prepare_to_start();
    session.policy.scope = Scope::InHook;
    let session = &session;
    let settings = &session.policy.settings;
    let mut world = RealWorld::new(session, Some(settings.deadline.saturating_sub(begun.elapsed())));
    world.on_finding(|finding| say(&format!("found: {}", text::finding_line(finding))));
    world.on_action(tell_action);
    world.on_wait(|wait| say(&text::second_look(wait)));
    let mut pause = PAUSES.0;
    let mut looks = 0;
    let mut waits: Option<(Waiting, Instant)> = None;
    loop {
        let report = act::repair(&mut world, &session.policy)?;
        looks += 1;
        let Some(waiting) = waits_for(&report, looks) else {
            return Ok(conclude(&report, begun.elapsed(), settings.on_error));
        };
        // Each cause has its own time, from when it was first seen: a rebuild before may have taken long.
        let since = match waits {
            Some((same, since)) if same == waiting => since,
            _ => Instant::now(),
        };
        let until = (since + waiting.patience(settings)).min(begun + settings.deadline);
        if Instant::now() + pause >= until {
            return Ok(conclude(&report, begun.elapsed(), settings.on_error));
        }
        if waits.is_none_or(|(same, _)| same != waiting) {
            tell_stoppers(&report);
            say(&format!("looking again for up to {} s", (until - Instant::now()).as_secs()));
        }
        waits = Some((waiting, since));
        std::thread::sleep(pause);
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// An ordinary map is what every start does; the last line counts those.
fn tell_action(report: &ActionReport) {
    if !(report.done() && matches!(report.action.change, Change::Map { noshare: false, .. })) {
        say(&text::action(report));
    }
}

/// What time may fix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waiting {
    /// A process that has a disk open for a moment.
    Holder,
    /// A client that may have crashed is forgotten by Ceph within half a minute.
    Watcher,
    /// A cluster, or an image, that did not answer may do so later, and a full pool may get room.
    Answer,
    /// Something that could not be read may be readable in a moment.
    Reading,
}

impl Waiting {
    /// How long it is waited for.
    fn patience(self, settings: &Resolved) -> Duration {
        match self {
            Self::Holder => HOLDER_GRACE,
            Self::Watcher => settings.watcher_grace,
            Self::Answer => settings.deadline,
            // Two more looks, with their pauses.
            Self::Reading => PAUSES.0 * 4 + settings.connect_timeout * UNKNOWN_TRIES,
        }
    }
}

fn waits_for(report: &GuestReport, looks: u32) -> Option<Waiting> {
    // What a change fixes, or will fix after the wait, does not stand in the way of waiting for the rest.
    let stoppers: Vec<&Finding> = stoppers(report).filter(|f| f.severity >= Severity::Blocker).collect();
    let unknown = || report.findings.iter().filter(|f| f.severity == Severity::Unknown);
    let waits = |finding: &&&Finding| finding.remedy.kind == RemedyKind::Wait;
    match report.verdict() {
        Verdict::Refused | Verdict::Blocked if stoppers.iter().all(|finding| passes(finding, &stoppers)) => {
            let any = |code| stoppers.iter().any(|finding| finding.code == code);
            Some(if any(Code::ClusterUnreachable) || any(Code::ClusterFull) {
                Waiting::Answer
            } else if stoppers.iter().filter(waits).all(|finding| is_a_moment(finding)) {
                Waiting::Holder
            } else {
                Waiting::Watcher
            })
        }
        Verdict::Unknown
            if looks < UNKNOWN_TRIES && (report.survey.is_unanswered() || !unknown().all(is_of_ours)) =>
        {
            Some(Waiting::Reading)
        }
        _ => None,
    }
}

/// A fault on this side, which stays what it is however often it is looked.
fn is_of_ours(finding: &Finding) -> bool {
    matches!(finding.code, Code::LibraryMissing | Code::ClusterNotAsked | Code::KeyTypeUnsupported)
}

/// Says how it stands and turns it into the exit code: the guest may start, or why not.
fn conclude(report: &GuestReport, took: Duration, on_error: OnError) -> Exit {
    let title = text::title(&report.survey.guest);
    let exit = match exit_code(&report.findings) {
        // Not known is no reason to stop a guest, unless the settings say so.
        Exit::Error if on_error == OnError::Allow => Exit::Ready,
        exit => exit,
    };
    if exit != Exit::Ready {
        meant::say();
        tell_stoppers(report);
        let codes: BTreeSet<&str> = stoppers(report).map(|f| f.code.name()).collect();
        let codes = codes.into_iter().collect::<Vec<_>>().join(", ");
        say(&format!("{title}: the start is stopped ({})", codes));
        say(&format!(
            "`rbd-preflight check {}` tells more; `ignore: [{}]` under `guests:` in /etc/rbd-preflight/config.yaml \
             lets it start all the same, at your own risk",
            report.survey.guest.vmid, codes
        ));
        return exit;
    }
    for finding in report.findings.iter().filter(|f| f.severity > Severity::Note) {
        tell(&text::finding(finding));
    }
    let disks = text::count(report.survey.disks.len(), "RBD disk");
    let checked =
        if report.verdict() == Verdict::Unknown { "could not be checked in full" } else { "checked" };
    say(&format!(
        "{title}: {disks} {checked}{}, continuing with the start ({:.1} s)",
        done(report),
        took.as_secs_f32()
    ));
    Exit::Ready
}

/// What was done, counted: `, 2 changes made, 3 mapped`.
fn done(report: &GuestReport) -> String {
    let (maps, changes): (Vec<&ActionReport>, Vec<&ActionReport>) =
        report.actions.iter().filter(|a| a.done()).partition(|a| a.action.is_map());
    let changed = match changes.len() {
        0 => String::new(),
        n => format!(", {} made", text::count(n, "change")),
    };
    let mapped = if maps.is_empty() { String::new() } else { format!(", {} mapped", maps.len()) };
    changed + &mapped
}

/// What stops the start, or may. What a change would fix is none of it where the start is refused for something else: for
/// that reason alone it was not made.
fn stoppers(report: &GuestReport) -> impl Iterator<Item = &Finding> {
    let refused = matches!(report.verdict(), Verdict::Refused | Verdict::Blocked);
    let held = move |finding: &Finding| refused && finding.remedy.kind == RemedyKind::Automatic;
    report.findings.iter().filter(move |f| f.severity >= Severity::Unknown && !held(f))
}

/// What stops the start, and the warnings that may be its true cause.
fn tell_stoppers(report: &GuestReport) {
    let warnings = report.findings.iter().filter(|f| f.severity == Severity::Warning && may_explain(f));
    for finding in stoppers(report).chain(warnings) {
        tell(&text::finding(finding));
    }
}

/// A warning under which reads, writes or maps fail or wait, or for which nothing was repaired.
fn may_explain(finding: &Finding) -> bool {
    use Code::{
        BlocklistExpireSet, ClusterFull, ClusterHealth, GuestStateUnknown, KeyTypeUnsupported, LockStale,
        NodeClientBlocklisted, PlacementGroupsInactive, QuorumMissing,
    };
    let explaining = [
        BlocklistExpireSet,
        ClusterFull,
        ClusterHealth,
        GuestStateUnknown,
        KeyTypeUnsupported,
        LockStale,
        NodeClientBlocklisted,
        PlacementGroupsInactive,
        QuorumMissing,
    ];
    finding.ignored || explaining.contains(&finding.code)
}

fn tell(lines: &str) {
    for line in lines.lines() {
        say(line);
    }
}

/// What ends the process if it is still there after its time, whatever it is stuck in.
struct Watchdog(Arc<AtomicBool>);

impl Watchdog {
    /// It will not end anything.
    fn call_off(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Ends the process if it is still there after `limit`; its children die with it. Where no thread can be had the work
/// has its own limits.
fn watchdog(call: &Call, limit: Duration, exit: Exit) -> Watchdog {
    let call = call.clone();
    let watchdog = Watchdog(Arc::default());
    let called_off = watchdog.0.clone();
    let end = move || {
        std::thread::sleep(limit);
        if !called_off.load(Ordering::Acquire) {
            say(&format!("gave up after {} s", limit.as_secs()));
            call.end(exit)
        }
    };
    if let Err(error) = std::thread::Builder::new().spawn(end) {
        log::warn!("no watchdog: {error}");
    }
    watchdog
}
