//! `check`: what would stop a start, and what repair would do. Reads only.

use crate::cli::{Check, Filter};
use crate::commands::here;
use crate::commands::many_guests;
use crate::commands::many_guests::{Manner, Seen};
use crate::commands::session::{self, Session};
use crate::diagnose::finding::Finding;
use crate::diagnose::verdict::{Verdict, exit_code};
use crate::diagnose::{diagnose, is_a_moment};
use crate::exit::Exit;
use crate::finding_codes::Code;
use crate::observe::survey::Survey;
use crate::plan::assessment::{GuestReport, assess};
use crate::pve::load::Unread;
use crate::pve::node::{all_guests, node_name};
use crate::report;
use crate::report::text::Detail;
use crate::report::{json, text};
use crate::settings::Settings;
use crate::settings::policy::Policy;
use crate::sys::plain::plain;
use crate::sys::root::Root;
use crate::sys::time;
use crate::sys::write::whole;
use anyhow::{Context, Result};
use std::cmp::Reverse;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a process that has a device open may take to go, and how often it is looked.
const MOMENT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(300);

/// Checks each guest and prints its report; the exit code is the gravest.
pub fn run(root: &Root, options: &Check) -> Result<Exit> {
    if options.guests.all
        || options.cluster
        || options.here
        || options.guests.vmids.len() > 1
        || options.prometheus
    {
        return many(root, options);
    }
    let report = match &options.survey {
        Some(file) => saved(file)?,
        None => match session::vmids(root, &options.guests)?.first() {
            Some(vmid) => of_guest(root, *vmid, options)?,
            None => return Ok(Exit::Ready),
        },
    };
    if options.json {
        outln!("{}", json::printed(&json::guest(&report)));
    } else {
        print_text(&report, options.verbose);
    }
    Ok(exit_code(&report.findings))
}

/// Checks many guests over one connection to each cluster.
fn many(root: &Root, options: &Check) -> Result<Exit> {
    anyhow::ensure!(options.save_survey.is_none(), "--save-survey is for one guest");
    let (began, at) = (Instant::now(), time::now().as_secs());
    let files = if options.here {
        Vec::new()
    } else if options.cluster {
        all_guests(root)?
    } else {
        session::files(root, &options.guests)?
    };
    let whole = options.guests.all || options.cluster;
    let manner = Manner {
        // What a rehearsal asks for is an upper limit: a cluster that does not answer takes no longer than usual.
        deadline: options.deadline.filter(|_| !options.here).map(Duration::from_secs),
        at_most: options.deadline.filter(|_| options.here).map(Duration::from_secs),
        orphans: whole,
        quiet: options.quiet || options.json || options.prometheus,
    };
    let Seen { mut reports, unread, findings } =
        if options.here { here::look(root, manner)? } else { many_guests::look(root, &files, manner)? };
    reports.retain(|report| wanted(report, &options.filter));
    reports.sort_by_key(|report| (Reverse(report.verdict()), report.survey.guest.vmid));
    if options.json {
        let value = if options.here {
            report::many_guests::here(&reports, &unread, &node_name(root)?)
        } else {
            report::many_guests::json(&reports, &unread, &findings)
        };
        outln!("{}", json::printed(&value));
    } else if options.prometheus {
        let took = began.elapsed().as_secs_f64();
        out!("{}", report::prometheus::text(&reports, &unread, &findings, at, took));
        return Ok(Exit::Ready);
    } else {
        print_many(&reports, &unread, &findings, options);
    }
    let unread = if unread.is_empty() { Exit::Ready } else { Exit::Error };
    let exits = reports.iter().map(|report| exit_code(&report.findings)).chain([unread]);
    Ok(exits.max_by_key(|exit| *exit as u8).unwrap_or(Exit::Ready))
}

fn wanted(report: &GuestReport, filter: &Filter) -> bool {
    let on = |storage: &String| report.survey.disks.iter().any(|disk| disk.disk.storage == *storage);
    let found = |code: Code| report.findings.iter().any(|finding| finding.code == code);
    (filter.only.is_empty() || filter.only.contains(&report.verdict()))
        && filter.storage.as_ref().is_none_or(on)
        && filter.code.is_none_or(found)
}

/// The table, then with `--verbose` each guest's report; guests that were named are reported without a table.
fn print_many(reports: &[GuestReport], unread: &[Unread], findings: &[Finding], options: &Check) {
    let named = !options.guests.vmids.is_empty();
    if !named {
        let told = |report: &&GuestReport| !options.quiet || report.verdict() != Verdict::Ready;
        let shown: Vec<&GuestReport> = reports.iter().filter(told).collect();
        let width = crate::sys::stdout::width();
        out!("{}", report::many_guests::text(&shown, unread, findings, width));
    }
    if named || options.verbose {
        for report in reports {
            if !named {
                outln!();
            }
            print_text(report, options.verbose);
        }
        for finding in findings {
            outln!(
                "{}: {}",
                plain(finding.image.as_deref().unwrap_or_default()),
                text::finding_line(finding)
            );
        }
    }
    if named {
        for guest in unread {
            errln!("rbd-preflight: guest {}: {}", guest.file.vmid, plain(&guest.error));
        }
    }
}

fn of_guest(root: &Root, vmid: u32, options: &Check) -> Result<GuestReport> {
    let session = Session::open(root, vmid)?;
    let deadline = options.deadline.map_or(session.policy.settings.check_deadline, Duration::from_secs);
    let survey = past_a_moment(&session, session.observe(deadline)?, deadline)?;
    if let Some(file) = &options.save_survey {
        save(file, &survey)?;
    }
    Ok(assess(survey, &session.policy))
}

/// What is seen when those have gone who had a device open for a moment, as the hook would wait for them: only the node is
/// looked at again.
fn past_a_moment(session: &Session, mut survey: Survey, deadline: Duration) -> Result<Survey> {
    let until = Instant::now() + MOMENT.min(deadline);
    while diagnose(&survey, &session.policy).iter().any(is_a_moment) && Instant::now() < until {
        std::thread::sleep(PAUSE);
        match session.observe_node(&survey)? {
            Some(later) => survey = later,
            // Its config has changed meanwhile: what was seen is true of the guest that it was.
            None => break,
        }
    }
    Ok(survey)
}

fn print_text(report: &GuestReport, verbose: bool) {
    let detail = if verbose { Detail::Full } else { Detail::Short };
    out!("{}", text::guest(report, detail));
    if let Some(next) = text::next_step(report) {
        outln!("\n{next}");
    }
}

fn saved(file: &Path) -> Result<GuestReport> {
    let text = std::fs::read(file).with_context(|| format!("cannot read the survey {}", file.display()))?;
    let survey: Survey = serde_json::from_slice(&text)
        .with_context(|| format!("{} is not a survey of this version of rbd-preflight", file.display()))?;
    anyhow::ensure!(
        survey.schema == crate::observe::survey::SCHEMA,
        "{} is a survey of schema {}, this rbd-preflight reads {}",
        file.display(),
        survey.schema,
        crate::observe::survey::SCHEMA
    );
    let policy = Policy::new(Settings::default().for_guest(survey.guest.vmid, survey.storages.keys()));
    Ok(assess(survey, &policy))
}

/// Writes a survey whole or not at all.
fn save(file: &Path, survey: &Survey) -> Result<()> {
    let write = || -> Result<()> {
        // A link that somebody planted is not followed, and neither it nor a device (`/dev/stdout`) is replaced.
        match std::fs::symlink_metadata(file) {
            Ok(meta) if !meta.is_file() => anyhow::bail!("that is not a plain file; name another one"),
            _ => {}
        }
        let mut text = serde_json::to_vec_pretty(survey)?;
        text.push(b'\n');
        Ok(whole(file, ".survey.", &text, |_| Ok(()))?)
    };
    write().with_context(|| format!("cannot write the survey to {}", file.display()))
}
