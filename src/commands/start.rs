//! `start`: repair, start, and if that fails find out why, and try again while there is something to try.

use crate::act;
use crate::cli::Start;
use crate::commands::confirm::confirm;
use crate::commands::live::RealWorld;
use crate::commands::session::Session;
use crate::diagnose::diagnose;
use crate::diagnose::verdict::exit_code;
use crate::exit::{Coded, Exit};
use crate::kernel::kmsg;
use crate::plan::assessment::GuestReport;
use crate::plan::start_failure::StartFailure;
use crate::plan::tries::{Begin, Rung, begin, hopeless, pause_before, refused_by_pve, rung, stoppers};
use crate::pve::ha::{self, Way};
use crate::pve::node::running;
use crate::pve::task::last_start;
use crate::rbd::action::{ActionReport, ActionResult};
use crate::reading::Reading;
use crate::report::{json, text};
use crate::sys::command::Command;
use crate::sys::plain::plain;
use crate::sys::process::{Runner, System, masked};
use crate::sys::root::Root;
use crate::sys::time::{jitter, now};
use anyhow::Result;
use serde_json::json;
use std::time::{Duration, Instant};

/// One try and what came of it.
struct Try {
    number: u32,
    rung: Rung,
    actions: Vec<ActionReport>,
    /// Why it failed; `None` if the guest runs.
    failure: Option<String>,
    /// What of the failure a disk can explain.
    by_a_disk: Option<String>,
}

/// Repairs and starts a guest, and tries again while there is something to try.
pub fn run(root: &Root, options: &Start) -> Result<Exit> {
    let session = Session::open(root, options.vmid)?;
    let first = session.observe(session.policy.settings.check_deadline)?;
    match begin(&first) {
        Begin::Go => {}
        Begin::Runs => {
            outln!("{} runs already.", text::title(&session.guest));
            return Ok(Exit::Ready);
        }
        Begin::No(why) => return Err(Coded::error(Exit::Refused, why)),
    }
    let findings = diagnose(&first, &session.policy);
    let refused: Vec<String> = refused_by_pve(&findings).into_iter().map(text::finding).collect();
    if !refused.is_empty() {
        let title = text::title(&session.guest);
        errln!("{}", refused.concat().trim_end());
        return Err(Coded::error(Exit::Stopped, format!("{title} cannot be started; nothing was changed")));
    }
    // What is certain to be refused is not worth a change.
    let nobody = match way(&session)? {
        Way::Nobody(why) => Some(why),
        Way::Direct | Way::Manager => session.hookscript_refuses(),
    };
    if let Some(why) = nobody {
        return Err(cannot(&session, &why));
    }
    confirm(options.yes, || {
        let last = if options.tries > 1 {
            ". Where a disk can explain why it fails, the last try resets the features of all its disks first"
        } else {
            ""
        };
        let title = plain(&text::title(&session.guest));
        format!("{title} will be repaired and started, in {} tries at most{last}.\n", options.tries)
    })?;
    let (tries, end) = climb(session, options)?;
    if options.json {
        outln!("{}", json::printed(&to_json(options.vmid, &tries, end)));
    } else {
        print_table(&tries);
    }
    Ok(end)
}

fn cannot(session: &Session, why: &str) -> anyhow::Error {
    Coded::error(Exit::Stopped, format!("{} cannot be started: {why}", text::title(&session.guest)))
}

/// Tries until the guest runs, nothing is left to try, or the time is over.
fn climb(mut session: Session, options: &Start) -> Result<(Vec<Try>, Exit)> {
    session.prepare_to_start();
    session.policy.rebuild_budget = None;
    let deadline = Instant::now() + Duration::from_secs(options.deadline);
    let mut tries: Vec<Try> = Vec::new();
    let mut by_a_disk = None;
    for number in 1..=options.tries {
        let pause = if number > 1 { pause_before(number) + jitter() } else { Duration::ZERO };
        if Instant::now() + pause >= deadline {
            return Ok((tries, Exit::Deadline));
        }
        std::thread::sleep(pause);
        let rung = rung(number, options.tries, by_a_disk.is_some());
        session.policy.reset = rung == Rung::FeatureReset;
        let last = match rung {
            Rung::FeatureReset => ", the last: the features of every disk are reset first",
            Rung::RepairAgain if number == options.tries && !tries.is_empty() => {
                ", the last: no feature is touched, since no disk explains why the start failed"
            }
            Rung::Repair | Rung::RepairAgain => "",
        };
        tell(options, &format!("try {number} of {}{last}", options.tries));
        let report = repair(&session, options, deadline)?;
        let stopped = exit_code(&report.findings);
        let mut attempt =
            Try { number, rung, actions: report.actions.clone(), failure: None, by_a_disk: None };
        if stopped == Exit::Stopped || stopped == Exit::Refused {
            attempt.failure = Some(why(&report));
            tries.push(attempt);
            if hopeless(&report.findings) {
                return Ok((tries, stopped));
            }
            continue;
        }
        let failure = start(&session, deadline)?;
        by_a_disk = failure.as_ref().and_then(|failure| failure.by_a_disk(&report.survey, &report.findings));
        attempt.failure = failure.as_ref().map(StartFailure::told);
        attempt.by_a_disk = by_a_disk.clone();
        let done = attempt.failure.is_none();
        tell(options, attempt.failure.as_deref().unwrap_or("started"));
        tries.push(attempt);
        if done {
            return Ok((tries, Exit::Ready));
        }
    }
    Ok((tries, Exit::Stopped))
}

fn repair(session: &Session, options: &Start, deadline: Instant) -> Result<GuestReport> {
    let left = deadline.saturating_duration_since(Instant::now());
    let mut world = RealWorld::new(session, Some(left));
    world.on_action(|action| tell(options, &text::action(action)));
    world.on_wait(|wait| tell(options, &text::second_look(wait)));
    let report = act::repair(&mut world, &session.policy)?;
    for finding in report.findings.iter().filter(|f| f.severity > crate::finding_codes::Severity::Note) {
        text::finding(finding).lines().for_each(|line| tell(options, line));
    }
    Ok(report)
}

/// What stops the start, in short.
fn why(report: &GuestReport) -> String {
    let told: Vec<String> = stoppers(&report.findings)
        .map(|f| format!("{}: {}", f.disk.as_deref().unwrap_or("guest"), f.code))
        .collect();
    told.join(", ")
}

/// Who is to be asked for the guest's start, as things stand.
fn way(session: &Session) -> Result<Way> {
    let managed = ha::resources(&session.root)?.contains_key(&session.guest.vmid);
    Ok(ha::way(managed, &ha::disarm(&session.root)))
}

/// Asks PVE, or the HA manager where the guest is its, to start the guest. `None` if it runs, else what was said,
/// and what the kernel said meanwhile.
fn start(session: &Session, deadline: Instant) -> Result<Option<StartFailure>> {
    let (root, guest) = (&session.root, &session.guest);
    let mut log = kmsg::mark(root).ok();
    let left = || deadline.saturating_duration_since(Instant::now());
    let vmid = guest.vmid.to_string();
    let managed = match way(session)? {
        Way::Direct => false,
        Way::Manager => true,
        Way::Nobody(why) => return Err(cannot(session, &why)),
    };
    let command = if managed {
        let service = format!("{}:{vmid}", guest.ha_type());
        Command::new("ha-manager").args(["set", service.as_str(), "--state", "started"])
    } else {
        Command::new(guest.tool()).args(["start", vmid.as_str()])
    };
    let since = now().as_secs();
    let outcome = System.run(&command.deadline(left()))?;
    if outcome.success() {
        // The HA manager only takes the wish; another node may even fulfil it.
        let until = if managed { deadline } else { Instant::now() + Duration::from_secs(5) };
        if await_running(session, until, managed) {
            return Ok(None);
        }
    }
    let kernel = log.as_mut().and_then(|log| log.since().ok()).into_iter().flatten();
    let (mut output, mut error) =
        (String::from_utf8_lossy(&outcome.stdout).into_owned(), outcome.stderr_tail);
    // The manager's own program says nothing of the start; the task's log does, where this node has made it.
    if let Some((said, ended)) =
        Some(()).filter(|()| managed).and_then(|()| last_start(root, guest.kind, guest.vmid, since))
    {
        (output, error) = (said, ended.unwrap_or(error));
    }
    Ok(Some(StartFailure {
        ended: format!("`{}`: {}", outcome.command, outcome.status),
        output: masked(&output),
        error: masked(&error),
        kernel: kernel.map(|line| line.text).collect(),
    }))
}

fn await_running(session: &Session, until: Instant, managed: bool) -> bool {
    loop {
        if running(&session.root, session.guest.kind, session.guest.vmid) == Reading::Known(true) {
            return true;
        }
        if Instant::now() >= until
            || managed && ha::gave_up(&session.root, session.guest.kind, session.guest.vmid)
        {
            return false;
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn tell(options: &Start, line: &str) {
    if !options.json {
        outln!("{}", plain(line));
    }
}

/// The table at the end: try, what failed, what was done.
fn print_table(tries: &[Try]) {
    outln!();
    for attempt in tries {
        let outcome = attempt.failure.as_deref().unwrap_or("the guest runs");
        outln!("try {}: {}", attempt.number, plain(outcome));
        for action in &attempt.actions {
            let mark = if matches!(action.result, ActionResult::Done { .. }) { "" } else { "not " };
            outln!("       {mark}done: {}", plain(&action.action.describe()));
        }
    }
}

fn to_json(vmid: u32, tries: &[Try], exit: Exit) -> serde_json::Value {
    let tries = tries.iter().map(|attempt| {
        json!({
            "try": attempt.number,
            "rung": attempt.rung,
            "actions": attempt.actions.iter().map(json::action).collect::<Vec<_>>(),
            "failure": attempt.failure,
            "by_a_disk": attempt.by_a_disk,
        })
    });
    json!({ "schema": json::SCHEMA, "vmid": vmid, "started": exit == Exit::Ready, "tries": tries.collect::<Vec<_>>() })
}
