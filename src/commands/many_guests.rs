//! Many guests at once: one look at each cluster for all of them.

use crate::commands::session::Session;
use crate::diagnose::finding::Finding;
use crate::diagnose::orphans;
use crate::observe::gather::{Fleet, gather_fleet};
use crate::observe::survey::Survey;
use crate::plan::assessment::GuestReport;
use crate::plan::assessment::assess;
use crate::pve::guest;
use crate::pve::load::Index;
use crate::pve::load::Unread;
use crate::pve::node::{GuestFile, all_guests};
use crate::pve::storage;
use crate::settings::Mode;
use crate::settings::Settings;
use crate::settings::policy::Policy;
use crate::sys::root::Root;
use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::Duration;

/// What a cluster may take for each image, over the time that it has to answer within.
const PER_IMAGE: Duration = Duration::from_millis(50);

/// What was seen of many guests.
pub struct Seen {
    /// A report for each guest that could be read.
    pub reports: Vec<GuestReport>,
    /// Guests whose config could not be read.
    pub unread: Vec<Unread>,
    /// What is said of no guest.
    pub findings: Vec<Finding>,
}

/// For how long and how widely to look at many guests.
#[derive(Debug, Clone, Copy, Default)]
pub struct Manner {
    /// Give up after this; by default what the settings say, and more where there are many images.
    pub deadline: Option<Duration>,
    /// In any case give up after this.
    pub at_most: Option<Duration>,
    /// Look for images that belong to no guest.
    pub orphans: bool,
    /// No progress bar, on a terminal either.
    pub quiet: bool,
}

/// Looks at guests. One that cannot be read does not stop the others.
pub fn look(root: &Root, files: &[GuestFile], manner: Manner) -> Result<Seen> {
    look_by(root, files, manner, &assess)
}

/// The same, with another way to make a report of a survey.
pub fn look_by(
    root: &Root,
    files: &[GuestFile],
    manner: Manner,
    judge: &dyn Fn(Survey, &Policy) -> GuestReport,
) -> Result<Seen> {
    let config = storage::load(root)?;
    let settings = Settings::load(root)?;
    let index = Index::read(root, &config)?;
    let (mut guests, mut unread) = (Vec::new(), Vec::new());
    for file in files {
        match guest::load(root, file, &config) {
            Ok(guest) => guests.push(guest),
            Err(failure) => unread.push(Unread { file: file.clone(), error: failure.to_string() }),
        }
    }
    let images: usize = guests.iter().map(|guest| guest.disks.len()).sum();
    let general = settings.for_guest(0, std::iter::empty::<&str>());
    let usual = general.check_deadline.min(general.connect_timeout);
    let many = usual + PER_IMAGE * u32::try_from(images).unwrap_or(u32::MAX);
    let limit = manner.deadline.unwrap_or(many);
    let limit = manner.at_most.map_or(limit, |most| limit.min(most));
    let bar = progress_bar(images, manner.quiet);
    let on_image = || bar.inc(1);
    let sessions: Vec<Session> =
        guests.iter().map(|guest| Session::with(root, guest.clone(), &settings)).collect();
    let off = |vmid: u32, storage: &str| {
        let session = sessions.iter().find(|session| session.guest.vmid == vmid);
        session.is_some_and(|session| session.policy.disk(storage).mode == Mode::Off)
    };
    let fleet =
        Fleet { config: &config, index: &index, list: manner.orphans, limit, on_image: &on_image, off: &off };
    let (surveys, names, fsids) = gather_fleet(root, guests, &fleet)?;
    bar.finish_and_clear();
    // Who had less time than the settings give has not found out that nobody answers.
    let fair = |survey: Survey| if limit < usual { survey.without_blame() } else { survey };
    let reports =
        surveys.into_iter().zip(&sessions).map(|(survey, session)| judge(fair(survey), &session.policy));
    let reports = reports.collect();
    let findings = if manner.orphans {
        let known = all_guests(root)?.into_iter().map(|guest| guest.vmid).collect();
        orphans::findings(&names, &known, &|fsid, spec| {
            index.naming(spec).any(|(_, storage)| fsid.is_none_or(|fsid| fsids.may_be(storage, fsid)))
        })
    } else {
        Vec::new()
    };
    Ok(Seen { reports, unread, findings })
}

/// A bar for the images, on a terminal only.
fn progress_bar(images: usize, quiet: bool) -> ProgressBar {
    if quiet || images < 2 || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("  {msg} {bar:30} {pos}/{len}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let total = u64::try_from(images).unwrap_or(u64::MAX);
    ProgressBar::new(total).with_style(style).with_message("reading images")
}
