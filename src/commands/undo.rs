//! `undo`: puts the features back that a run has changed.

use crate::act;
use crate::cli;
use crate::commands::confirm::confirm;
use crate::commands::history;
use crate::commands::live::RealWorld;
use crate::commands::session::Session;
use crate::exit::{Coded, Exit};
use crate::journal::runs::{Run, State};
use crate::observe::survey::Survey;
use crate::plan::order::plan;
use crate::rbd::action::{ActionReport, ActionResult};
use crate::report::text;
use crate::sys::plain::plain;
use crate::sys::root::Root;
use crate::undo::{ImageUndo, Undo, Verdict};
use anyhow::{Context, Result};
use std::io::Write as _;

/// Puts back the features that a run has changed, after a question unless `--yes`.
pub fn run(root: &Root, options: &cli::Undo) -> Result<Exit> {
    let runs = history::read(root)?;
    let run = find(&runs, &options.run)?;
    let vmid = run.guest.context("that run was for no guest: there is nothing to undo")?;
    let session = Session::open(root, vmid)?;
    let undo = Undo { run, runs: &runs, policy: &session.policy };
    let survey = session.observe(session.policy.settings.check_deadline)?;
    let images = undo.judge(&survey);
    let title = format!("{}: undo of run {}", text::title(&session.guest), run.run);
    if options.dry_run {
        out!("{}", plan_lines(&title, &images));
        return Ok(Exit::Ready);
    }
    if images.iter().all(|image| planned(image).is_empty()) {
        out!("{}", told(&title, &images));
        return Ok(exit_code(&images, &[]));
    }
    confirm(options.yes, || question(&title, &images))?;
    let mut world = RealWorld::new(&session, None);
    world.by_rule(undo);
    // Whoever stops reading does not stop the work.
    world.on_action(|report: &ActionReport| {
        let _ = writeln!(crate::sys::stdout::stdout(), "{}", text::action(report));
    });
    world.on_wait(|wait| {
        let _ = writeln!(crate::sys::stdout::stdout(), "{}", text::second_look(wait));
    });
    let (after, done) = act::once(&mut world, &undo)?;
    let name = world.run().clone();
    let made = done.iter().any(ActionReport::done);
    // What was refused before is told as it was judged then.
    let left = undo.judge(&after);
    outln!();
    out!("{}", told(&title, &left));
    if made {
        outln!("\n`rbd-preflight undo {name}` takes this back.");
        out!("{}", comes_again(&session, &after));
    }
    Ok(exit_code(&left, &done))
}

fn find<'a>(runs: &'a [Run], name: &str) -> Result<&'a Run> {
    let Some(run) = runs.iter().find(|run| run.run.0 == name) else {
        anyhow::bail!("the journal has no run {name}: `rbd-preflight history` lists them");
    };
    if run.changes.iter().any(|change| change.state == State::UnderWay) {
        return Err(Coded::error(Exit::Busy, format!("run {name} still is at work: nothing was changed")));
    }
    Ok(run)
}

fn planned(image: &ImageUndo) -> &[crate::rbd::action::Action] {
    match &image.verdict {
        Verdict::Change(actions) => actions,
        _ => &[],
    }
}

/// The commands, ready to paste, and all else as comments.
fn plan_lines(title: &str, images: &[ImageUndo]) -> String {
    let mut lines = vec![format!("# {title}")];
    for image in images {
        lines.extend(planned(image).iter().map(|action| action.command_line()));
        lines.extend(words(image).into_iter().map(|words| format!("# {words}")));
    }
    if images.iter().all(|image| planned(image).is_empty()) {
        lines.push("# nothing will be changed".to_owned());
    }
    joined(&lines)
}

/// What will be done, and what will not.
fn question(title: &str, images: &[ImageUndo]) -> String {
    let mut lines = vec![title.to_owned()];
    lines.extend(images.iter().flat_map(words).map(|words| format!("  {words}")));
    lines.push(String::new());
    lines.push("This will be done:".to_owned());
    let actions = images.iter().flat_map(planned);
    lines.extend(actions.map(|action| format!("  {}", action.describe())));
    joined(&lines)
}

/// How each image stands.
fn told(title: &str, images: &[ImageUndo]) -> String {
    let mut lines = vec![title.to_owned()];
    for image in images {
        if let [first, ..] = planned(image) {
            lines.push(format!("  {}: still to do: {}", image.image, first.describe()));
        }
        lines.extend(words(image).into_iter().map(|words| format!("  {words}")));
    }
    joined(&lines)
}

/// What there is to say of an image besides its changes.
fn words(image: &ImageUndo) -> Vec<String> {
    let verdict = match &image.verdict {
        Verdict::Change(_) => None,
        Verdict::Nothing(why) => Some((*why).to_owned()),
        Verdict::Refused(why) => Some(format!("REFUSED: {why}")),
        Verdict::Unread(why) => Some(format!("not read: {why}")),
    };
    verdict.iter().chain(&image.remarks).map(|words| format!("{}: {words}", image.image)).collect()
}

/// The next repair would change it again, and what keeps it from that.
fn comes_again(session: &Session, survey: &Survey) -> String {
    let policy = &session.policy;
    let again = plan(&crate::diagnose::diagnose(survey, policy), policy);
    let Some(first) = again.first() else { return String::new() };
    let vmid = survey.guest.vmid;
    joined(&[
        format!("The next repair, and a start with the hook, would change it again ({}).", first.describe()),
        format!(
            "What keeps them from it: `guests: {{{vmid}: {{mode: check}}}}` in {}.",
            crate::settings::NODE_FILE
        ),
    ])
}

fn joined(lines: &[String]) -> String {
    lines.iter().map(|line| plain(line) + "\n").collect()
}

fn exit_code(images: &[ImageUndo], done: &[ActionReport]) -> Exit {
    let result = |is: fn(&ActionResult) -> bool| done.iter().any(|report| is(&report.result));
    let verdict = |is: fn(&Verdict) -> bool| images.iter().any(|image| is(&image.verdict));
    if result(|r| matches!(r, ActionResult::Failed { .. })) {
        Exit::Error
    } else if result(|r| matches!(r, ActionResult::Busy { .. })) {
        Exit::Busy
    } else if result(|r| matches!(r, ActionResult::Withheld { .. }))
        || verdict(|v| matches!(v, Verdict::Refused(_)))
    {
        Exit::Refused
    } else if verdict(|v| matches!(v, Verdict::Unread(_) | Verdict::Change(_))) {
        Exit::Error
    } else {
        Exit::Ready
    }
}
