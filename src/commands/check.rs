//! `check`: what would stop a start, and what repair would do. Reads only.

use crate::cli::{Check, Filter};
use crate::commands::many_guests;
use crate::commands::many_guests::{Manner, Seen};
use crate::commands::session::{self, Session};
use crate::diagnose::diagnose;
use crate::diagnose::finding::Finding;
use crate::diagnose::verdict::{Verdict, exit_code};
use crate::exit::Exit;
use crate::finding_codes::Code;
use crate::observe::survey::Survey;
use crate::plan::order::plan;
use crate::pve::node::all_guests;
use crate::rbd::action::{ActionReport, ActionResult};
use crate::report::many_guests::Unread;
use crate::report::text::Detail;
use crate::report::{self, GuestReport, json, plain, text};
use crate::settings::Settings;
use crate::settings::policy::Policy;
use crate::sys::root::Root;
use crate::sys::time;
use anyhow::{Context, Result};
use std::cmp::Reverse;
use std::path::Path;
use std::time::{Duration, Instant};

/// Checks each guest and prints its report; the exit code is the gravest.
pub fn run(root: &Root, options: &Check) -> Result<Exit> {
    if options.guests.all || options.cluster || options.guests.vmids.len() > 1 || options.prometheus {
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
    let files = if options.cluster { all_guests(root)? } else { session::files(root, &options.guests)? };
    let whole = options.guests.all || options.cluster;
    let manner = Manner {
        deadline: options.deadline.map(Duration::from_secs),
        at_most: None,
        orphans: whole,
        quiet: options.quiet || options.json || options.prometheus,
    };
    let Seen { mut reports, unread, findings } = many_guests::look(root, &files, manner)?;
    reports.retain(|report| wanted(report, &options.filter));
    reports.sort_by_key(|report| (Reverse(report.verdict()), report.survey.guest.vmid));
    if options.json {
        outln!("{}", json::printed(&report::many_guests::json(&reports, &unread, &findings)));
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
        let width = crate::stdout::width();
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
    let survey = session.observe(deadline)?;
    if let Some(file) = &options.save_survey {
        save(file, &survey)?;
    }
    Ok(assess(survey, &session.policy))
}

/// The report on a survey: findings, and what repair would do.
pub fn assess(survey: Survey, policy: &Policy) -> GuestReport {
    let findings = diagnose(&survey, policy);
    let planned = |action| ActionReport::new(action, ActionResult::Planned);
    let actions = plan(&findings, policy).into_iter().map(planned).collect();
    GuestReport { survey, findings, actions }
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
    use std::io::Write;
    let write = || -> Result<()> {
        // A link that somebody planted is not followed, and neither it nor a device (`/dev/stdout`) is replaced.
        match std::fs::symlink_metadata(file) {
            Ok(meta) if !meta.is_file() => anyhow::bail!("that is not a plain file; name another one"),
            _ => {}
        }
        let folder = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut new = tempfile::NamedTempFile::new_in(folder)?;
        serde_json::to_writer_pretty(&mut new, survey)?;
        new.write_all(b"\n")?;
        new.persist(file)?;
        Ok(())
    };
    write().with_context(|| format!("cannot write the survey to {}", file.display()))
}
