//! What a run did to the features of one image, by its journal.

use crate::journal::runs::{JournaledChange, Run};
use crate::rbd::action::{Action, ActionResult, Change, Target};
use crate::rbd::features::{Changeable, Features};
use nix::errno::Errno;
use serde_json::Value;

/// What a run did to one image.
#[derive(Debug, Clone, Default)]
pub struct Past {
    /// The image as the journal names it.
    pub image: String,
    /// Which image it was; `None` where another version of this tool recorded what this one does not understand.
    pub target: Option<Target>,
    /// The features that the run changed, or may have changed.
    pub touched: Features,
    /// Of these, those of which the journal does not say whether it did.
    uncertain: Features,
    /// The features before the run.
    before: Features,
    /// The features after it, the uncertain ones aside.
    after: Features,
    /// What cannot come back, or need not.
    pub remarks: Vec<String>,
    /// Why it is not known what the run did.
    pub unknown: Option<String>,
}

/// Each image that the run changed, in the order of its first change.
pub fn of(run: &Run) -> Vec<Past> {
    let mut all: Vec<Past> = Vec::new();
    for change in &run.changes {
        let image = change.image.clone().unwrap_or_default();
        let action = change.action();
        let place = all.iter().position(|past| past.is_of(&image, action.as_ref())).unwrap_or_else(|| {
            all.push(Past { image, ..Past::default() });
            all.len() - 1
        });
        all[place].add(change, action);
    }
    all
}

/// What is known of whether a change was made.
#[derive(PartialEq)]
enum Came {
    Made,
    NotMade,
    Uncertain,
}

/// A change is made if its outcome says so. One that timed out, or has no outcome, may have been made.
fn came(change: &JournaledChange) -> Came {
    match change.outcome() {
        Some(ActionResult::Done { .. }) => Came::Made,
        Some(ActionResult::Failed { errno, .. })
            if errno.is_some_and(|errno| errno != Errno::ETIMEDOUT as i32) =>
        {
            Came::NotMade
        }
        Some(ActionResult::Planned | ActionResult::Withheld { .. } | ActionResult::Busy { .. }) => {
            Came::NotMade
        }
        Some(ActionResult::Failed { .. }) | None => Came::Uncertain,
    }
}

impl Past {
    /// A change of an image of this name is one of this image. A name alone is none: a run may change two images of one
    /// name, in two clusters. What is not understood is counted where it may belong.
    pub(super) fn is_of(&self, image: &str, action: Option<&Action>) -> bool {
        match (&self.target, action) {
            (Some(own), Some(action)) => own.identity().may_be(action.target.identity()),
            _ => self.image == image,
        }
    }

    fn add(&mut self, change: &JournaledChange, action: Option<Action>) {
        let Some(action) = action else {
            self.unknown = Some("that run changed it in a way that this version does not know".to_owned());
            return;
        };
        self.target = Some(action.target.clone());
        let came = came(change);
        if came == Came::NotMade {
            return;
        }
        match action.change {
            Change::EnableFeatures { features } => self.add_features(change, features, true, came),
            Change::DisableFeatures { features } => self.add_features(change, features, false, came),
            Change::BreakLock { owner } => self.remark(format!(
                "the lock that {} left behind was broken: its owner is gone, so there is nothing to give back",
                owner.client
            )),
            Change::RebuildObjectMap { .. } => {
                self.remark("its object map was rebuilt, which needs no undoing".to_owned());
            }
            Change::Map { .. } => self.remark("it was mapped: it is unmapped when its guest stops".to_owned()),
            Change::Unmap { .. } => self.remark("a leftover mapping was unmapped: a start maps it anew".to_owned()),
        }
    }

    fn remark(&mut self, remark: String) {
        if !self.remarks.contains(&remark) {
            self.remarks.push(remark);
        }
    }

    fn add_features(&mut self, change: &JournaledChange, features: Features, on: bool, came: Came) {
        let Some(stood) = features_before(&change.before) else {
            self.unknown = Some("the journal does not say which features it had before that run".to_owned());
            return;
        };
        if self.touched.is_empty() {
            self.before = stood;
        }
        let changed = if on { features.paired() - stood } else { features.paired() & stood };
        self.touched = self.touched | changed;
        // What stood before this change tells what came of the ones before it.
        self.uncertain = if came == Came::Uncertain { changed } else { Features::NONE };
        self.after = if on { stood | changed } else { stood - changed };
    }

    /// What of the touched features the run left on, given what the image has now: where the journal does not say
    /// what became of the last change, the image itself does.
    fn left(&self, present: Features) -> Features {
        ((self.after - self.uncertain) | (present & self.uncertain)) & self.touched
    }

    /// The features that undoing the run leads to; those that it did not touch stay as they are now.
    pub fn target(&self, present: Features) -> Features {
        (present - self.touched) | (self.before & self.touched)
    }

    /// What of the touched features was turned on, and what off, since the run; `None` if the image has those that
    /// the run left, or those that undoing it leads over: first all goes that has to go, then comes what can come.
    pub fn changed_since(&self, present: Features) -> Option<(Features, Features)> {
        let (left, target, now) = (self.left(present), self.before & self.touched, present & self.touched);
        let lost = (target - left) & Features::with_change(Changeable::DisableOnly);
        let on_the_way = [left, left & target, target - lost, target].contains(&now);
        (!on_the_way).then_some((now - left, left - now))
    }
}

fn features_before(before: &Value) -> Option<Features> {
    serde_json::from_value(before.get("features")?.clone()).ok()
}
