//! What undoes a run: its feature changes backwards, where nobody has changed the image since. Pure.

mod image_past;

use crate::ceph::image::ImageReading;
use crate::diagnose::features::rebuilds;
use crate::diagnose::image::Image;
use crate::journal::RunId;
use crate::journal::runs::{JournaledChange, Run};
use crate::observe::survey::{DiskFacts, Survey};
use crate::plan::rule::Rule;
use crate::rbd::action::{Action, Change, Target};
use crate::rbd::features::{Changeable, Features};
use crate::rbd::identity::Same;
use crate::settings::policy::Policy;
use image_past::Past;

/// The rule that asks for what undoes a run.
#[derive(Debug, Clone, Copy)]
pub struct Undo<'a> {
    /// The run to undo.
    pub run: &'a Run,
    /// All runs that are known.
    pub runs: &'a [Run],
    /// What may be done.
    pub policy: &'a Policy,
}

/// What undoing a run means for one of its images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageUndo {
    /// The image as the journal names it.
    pub image: String,
    /// Which image it was, if the journal says so in a way that this version understands.
    pub target: Option<Target>,
    /// What is to be done.
    pub verdict: Verdict,
    /// What cannot come back, or need not.
    pub remarks: Vec<String>,
}

/// What is to be done to an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// These changes, in this order.
    Change(Vec<Action>),
    /// Nothing, since there is nothing to do; in words.
    Nothing(&'static str),
    /// Nothing, since it must not be done; why.
    Refused(String),
    /// Nothing, since the image could not be read; why.
    Unread(String),
}

impl Rule for Undo<'_> {
    fn wanted(&self, survey: &Survey) -> Vec<Action> {
        let verdicts = self.judge(survey).into_iter().map(|image| image.verdict);
        verdicts
            .filter_map(|verdict| if let Verdict::Change(all) = verdict { Some(all) } else { None })
            .flatten()
            .collect()
    }

    fn why_not(&self, survey: &Survey, action: &Action) -> Option<String> {
        let is_it = |image: &ImageUndo| {
            let target = image.target.as_ref();
            target.is_some_and(|target| target.identity().may_be(action.target.identity()))
        };
        let image = self.judge(survey).into_iter().find(is_it)?;
        match image.verdict {
            Verdict::Refused(why) | Verdict::Unread(why) => Some(why),
            _ => None,
        }
    }

    fn undoes(&self) -> Option<&RunId> {
        Some(&self.run.run)
    }
}

impl Undo<'_> {
    /// What undoing the run means for each of its images as things stand.
    pub fn judge(&self, survey: &Survey) -> Vec<ImageUndo> {
        image_past::of(self.run).iter().map(|past| self.of_image(survey, past)).collect()
    }

    fn of_image(&self, survey: &Survey, past: &Past) -> ImageUndo {
        let mut remarks = past.remarks.clone();
        let verdict = match self.verdict(survey, past, &mut remarks) {
            Ok(verdict) | Err(verdict) => verdict,
        };
        ImageUndo { image: past.image.clone(), target: past.target.clone(), verdict, remarks }
    }

    fn verdict(&self, survey: &Survey, past: &Past, remarks: &mut Vec<String>) -> Result<Verdict, Verdict> {
        if past.touched.is_empty() && past.unknown.is_none() {
            return Ok(Verdict::Nothing("that run changed no features of it"));
        }
        let refuse = |why: String| Err(Verdict::Refused(why));
        let vmid = survey.guest.vmid;
        if let (Some(then), Some(now)) = (&self.run.guest_uuid, &survey.guest.uuid) {
            if then != now {
                return refuse(format!(
                    "guest {vmid} is another one by now: that run was for the one of the uuid {then}"
                ));
            }
        }
        let image = self.find(survey, past)?;
        if let Some(why) = &image.forbidden {
            return refuse(why.clone());
        }
        if let Some(why) = &past.unknown {
            return refuse(why.clone());
        }
        if image.facts.lock.known().is_some_and(|lock| !lock.lockers.is_empty()) {
            return refuse(format!("its lock was left behind; `rbd-preflight repair {vmid}` takes it over"));
        }
        let present = image.facts.features;
        let target = past.target(present);
        let lost = (target - present) & Features::with_change(Changeable::DisableOnly);
        if let Some((on, off)) = past.changed_since(present) {
            return refuse(self.changed_since(past, on, off));
        }
        let needs = target.without_lock();
        if !needs.is_empty() {
            return refuse(format!("it has {needs} now, which cannot be without exclusive-lock"));
        }
        if !lost.is_empty() {
            remarks.push(format!("{lost} cannot come back: Ceph gives it to new images only"));
        }
        let changes = changes(&image, past, target - lost);
        if changes.is_empty() {
            let whole = "its features are as they were before that run";
            return Ok(Verdict::Nothing(if lost.is_empty() {
                whole
            } else {
                "nothing more can be put back"
            }));
        }
        if !allowed(&image, &changes) {
            return refuse("the settings do not allow it (`change:`)".to_owned());
        }
        Ok(Verdict::Change(changes.into_iter().map(|change| image.action(change)).collect()))
    }

    /// The very image that the run changed, if it still is a disk of the guest that PVE sees. It may have another name
    /// by now, and its name may be another image's.
    fn find<'a>(&self, survey: &'a Survey, past: &Past) -> Result<Image<'a>, Verdict> {
        let refuse = |why: String| Err(Verdict::Refused(why));
        let target = past.target.as_ref();
        let by = |is_it: &dyn Fn(&DiskFacts, &Target) -> bool| {
            survey.disks.iter().find(|disk| target.is_some_and(|target| is_it(disk, target)))
        };
        let in_cluster = |disk: &DiskFacts, target: &Target| {
            survey.identity(disk).is_some_and(|own| own.fsid == target.fsid)
        };
        let named = |disk: &DiskFacts, target: &Target| disk.spec().as_ref() == Some(&target.spec);
        let disk = by(&|disk, target| survey.is_of(disk, target.identity()) == Same::Yes)
            .or_else(|| by(&|disk, target| named(disk, target) && in_cluster(disk, target)))
            .or_else(|| by(&named));
        let (Some(disk), Some(target)) = (disk, target) else {
            return refuse(format!("it no longer is a disk of guest {}", survey.guest.vmid));
        };
        if let Some(dropped) = disk.disk.pve_drops.as_ref().filter(|dropped| !dropped.unknown_option) {
            return refuse(format!("PVE does not see this disk: {}", dropped.why));
        }
        let image =
            Image::of(survey, self.policy, disk).ok_or_else(|| Verdict::Unread(unread(survey, disk)))?;
        if target.fsid != image.fsid() {
            return refuse("its storage leads to another cluster now".to_owned());
        }
        match (survey.is_of(disk, target.identity()), &target.id) {
            (Same::Yes, _) => Ok(image),
            (_, Some(id)) => refuse(format!(
                "it is another image by now: that run changed the one of the id {id}, and the name is now that of the id {}",
                image.facts.id
            )),
            (_, None) => refuse(
                "the journal does not say which image of that name it was, since an older version wrote it: `rbd-preflight \
                 history` shows what to put back by hand, if it still is the same one"
                    .to_owned(),
            ),
        }
    }

    fn changed_since(&self, past: &Past, on: Features, off: Features) -> String {
        let told: Vec<String> = [(on, "on"), (off, "off")]
            .iter()
            .filter(|(features, _)| !features.is_empty())
            .map(|(features, how)| format!("{features} turned {how}"))
            .collect();
        let of_image = |change: &JournaledChange| {
            past.is_of(change.image.as_deref().unwrap_or_default(), change.action().as_ref())
        };
        let later =
            self.runs.iter().rev().find(|run| {
                run.at >= self.run.at && run.run != self.run.run && run.changes.iter().any(of_image)
            });
        let hint = later.map(|run| format!("; run {} changed it later: undo that one first", run.run));
        format!("changed since that run: {}{}", told.join(", "), hint.unwrap_or_default())
    }
}

/// Why an image could not be read.
fn unread(survey: &Survey, disk: &DiskFacts) -> String {
    let cluster = survey.cluster_of(disk).and_then(|cluster| cluster.failure());
    match (&disk.reading, cluster) {
        (_, Some(failure)) => failure.to_string(),
        (Some(ImageReading::Unknown(failure) | ImageReading::ParentMissing(failure)), _) => {
            failure.to_string()
        }
        (Some(ImageReading::InTrash(_)), _) => "it is in the trash".to_owned(),
        (Some(ImageReading::ImageMissing), _) => "there is no such image any more".to_owned(),
        (Some(ImageReading::PoolMissing), _) => "its pool is gone".to_owned(),
        (Some(ImageReading::NamespaceMissing), _) => "its namespace is gone".to_owned(),
        _ => "it was not read".to_owned(),
    }
}

/// What leads from the image's features to `target`, in an order that Ceph takes: what depends on a feature goes
/// before it and comes after it, so all that goes goes first.
fn changes(image: &Image, past: &Past, target: Features) -> Vec<Change> {
    let present = image.facts.features;
    let (goes, comes) = ((present - target) & past.touched, (target - present) & past.touched);
    let mut changes = Vec::new();
    if !goes.is_empty() {
        changes.push(Change::DisableFeatures { features: goes });
    }
    if !comes.is_empty() {
        changes.push(Change::EnableFeatures { features: comes });
    }
    if comes.contains(Features::OBJECT_MAP) {
        changes.extend(rebuilds(image, |_| true));
    } else if (past.touched & target & present).contains(Features::OBJECT_MAP) {
        // The undoing that enabled it was cut off before the rebuild.
        changes.extend(rebuilds(image, |flags| flags.known().is_some_and(|flags| flags.any())));
    }
    changes
}

/// The settings let these changes be made.
fn allowed(image: &Image, changes: &[Change]) -> bool {
    let may = image.settings.change;
    changes.iter().all(|change| match change {
        Change::DisableFeatures { features } | Change::EnableFeatures { features } => {
            (may.journaling || !features.contains(Features::JOURNALING))
                && (may.features || (*features - Features::JOURNALING).is_empty())
        }
        _ => true,
    })
}

#[cfg(test)]
mod tests;
