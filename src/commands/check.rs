//! `check`: what would stop a start, and what repair would do. Reads only.

use crate::action::{ActionReport, ActionResult};
use crate::cli::Check;
use crate::commands::session::{self, Session};
use crate::diagnose::diagnose;
use crate::exit::Exit;
use crate::plan::plan;
use crate::policy::Policy;
use crate::report::text::Detail;
use crate::report::{GuestReport, json, text};
use crate::root::Root;
use crate::settings::Settings;
use crate::survey::Survey;
use crate::verdict::exit_code;
use anyhow::{Context, Result};
use std::path::Path;
use std::time::Duration;

/// Checks each guest and prints its report; the exit code is the gravest.
pub fn run(root: &Root, options: &Check) -> Result<Exit> {
    let reports = match &options.survey {
        Some(file) => vec![saved(file)?],
        None => {
            let check = |vmid: u32| of_guest(root, vmid, options);
            session::vmids(root, &options.guests)?.into_iter().map(check).collect::<Result<Vec<_>>>()?
        }
    };
    if options.json {
        print_json(&reports);
    } else {
        for report in &reports {
            print_text(report, options.verbose);
        }
    }
    Ok(reports.iter().map(|r| exit_code(&r.findings)).max_by_key(|e| *e as u8).unwrap_or(Exit::Ready))
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

/// One guest is one object; several are in a list.
pub fn print_json(reports: &[GuestReport]) {
    match reports {
        [report] => outln!("{}", json::printed(&json::guest(report))),
        _ => outln!("{}", json::printed(&json::guests(reports))),
    }
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
        survey.schema == crate::survey::SCHEMA,
        "{} is a survey of schema {}, this rbd-preflight reads {}",
        file.display(),
        survey.schema,
        crate::survey::SCHEMA
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
