//! Whether this node has what the tool needs. [`Facts`] are gathered; what they mean is pure.

pub mod gather;
mod guests;
mod keys;
mod node;
mod storages;

use crate::ceph::caps::Caps;
use crate::ceph::cluster::ClusterFacts;
use crate::ceph::image::ImageReading;
use crate::ceph::way::Way;
use crate::hook::snippet::OtherNode;
use crate::kernel::KernelFacts;
use crate::observe::keyring::KeyringFacts;
use crate::pve::connection::Connection;
use crate::pve::guest::{Access, Guest};
use crate::pve::storage::RbdStorage;
use crate::reading::Reading;
use serde::Serialize;
use std::collections::BTreeMap;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is as it should be.
    Ok,
    /// It will do, but not for everything.
    Warn,
    /// Guests may not start for it, or the tool cannot do its work.
    Fail,
    /// It could not be found out.
    Unknown,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at: `rbd`, `storage:ceph-krbd`.
    pub name: String,
    /// How it came out.
    pub state: State,
    /// What was seen, and what it means.
    pub detail: String,
    /// The command that fixes it, or what to do.
    pub remedy: Option<String>,
}

impl Check {
    fn new(name: impl Into<String>, state: State, detail: impl Into<String>) -> Self {
        Self { name: name.into(), state, detail: detail.into(), remedy: None }
    }

    fn ok(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(name, State::Ok, detail)
    }

    fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

/// A check in words that went wrong; `Ok` holds nothing.
pub type Works = Result<(), String>;

/// What was gathered of this node.
#[derive(Debug, Clone)]
pub struct Facts {
    /// This node's name.
    pub node: String,
    /// Where programs are; `None` where there is none.
    pub programs: BTreeMap<&'static str, Option<String>>,
    /// librados and librbd can be loaded.
    pub libraries: Works,
    /// The release of Ceph that they are of; `None` if they do not say.
    pub release: Option<String>,
    /// What the kernel can do and has mapped.
    pub kernel: KernelFacts,
    /// The rbd module could be loaded; `None` where it is loaded, or where that cannot be asked.
    pub loadable: Option<Works>,
    /// The files that are missing for PVE's links to mapped images.
    pub udev_missing: Vec<&'static str>,
    /// The kernel's log can be read.
    pub kernel_log: Works,
    /// The clock is kept by a time server; `None` where that is not known.
    pub clock: Option<bool>,
    /// The settings files that are there.
    pub settings_files: Vec<&'static str>,
    /// The settings are understood.
    pub settings: Works,
    /// The journal can be written.
    pub journal: Works,
    /// The rbd storages of this node.
    pub storages: Reading<Vec<StorageFacts>>,
    /// The guests of this node; those that could not be read by their number and why.
    pub guests: Reading<Vec<Result<Guest, (u32, String)>>>,
    /// The snippet that PVE calls, under each name that guests of this node ask for; at least under one.
    pub snippets: Vec<SnippetFacts>,
    /// The guests whose snippet calls another hookscript too, that one, and whether it could be run.
    pub earlier: Vec<(u32, String, Works)>,
    /// What earlier versions remembered by guests' numbers.
    pub left_behind: Result<Vec<LeftBehind>, String>,
    /// Attached guests whose snippet calls no other hookscript, and the hookscripts that their snapshots name.
    pub in_snapshots: Vec<(u32, Vec<String>)>,
    /// Whether the other nodes of the cluster have it; empty where PVE cannot be asked.
    pub elsewhere: Vec<OtherNode>,
    /// The unit that repairs before guests start at boot is enabled.
    pub boot_unit: bool,
}

/// An rbd storage and what came of using it.
#[derive(Debug, Clone)]
pub struct StorageFacts {
    /// Its section of storage.cfg.
    pub section: RbdStorage,
    /// How PVE reaches it; `None` if that is not known.
    pub connection: Option<Connection>,
    /// The cluster, and what came of looking for an image that is not there.
    pub cluster: Reading<(ClusterFacts, ImageReading)>,
    /// What its user may do.
    pub caps: Reading<Caps>,
    /// What is known of its keyring; `None` without one.
    pub keyring: Option<KeyringFacts>,
    /// How far this node gets on the way to its monitors; only looked for where they could not be asked.
    pub way: Option<Way>,
}

/// The snippet on this node under one name.
#[derive(Debug, Clone)]
pub struct SnippetFacts {
    /// The snippet's volume id: `local:snippets/rbd-preflight`.
    pub volid: String,
    /// Where its file is.
    pub path: String,
    /// Whether it is there.
    pub there: Snippet,
}

/// What an earlier version remembered for a number.
#[derive(Debug, Clone)]
pub struct LeftBehind {
    /// The guest's number.
    pub vmid: u32,
    /// The hookscript, or why it is not known.
    pub script: Result<String, String>,
    /// The node that has a guest of that number; `None` where there is no such guest.
    pub node: Option<String>,
}

/// The snippet on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Snippet {
    /// It is there and can be run.
    Runs,
    /// It is there and can be run, and is another version's.
    Other,
    /// It is there and is not executable.
    NotExecutable,
    /// It is not there.
    Missing,
}

impl Facts {
    /// The guests that could be read.
    fn guests(&self) -> impl Iterator<Item = &Guest> {
        self.guests.known().into_iter().flatten().filter_map(|guest| guest.as_ref().ok())
    }

    /// The kernel opens images on this node.
    fn uses_kernel(&self) -> bool {
        let storages = self.storages.known().into_iter().flatten();
        let mut disks = self.guests().flat_map(|guest| &guest.disks);
        storages.into_iter().any(|storage| storage.section.krbd)
            || disks.any(|disk| disk.access == Access::Krbd)
    }
}

/// What the facts mean, in the order in which things are needed.
pub fn examine(facts: &Facts) -> Vec<Check> {
    let mut checks = node::checks(facts);
    checks.extend(storages::checks(facts));
    checks.extend(guests::checks(facts));
    checks
}

/// At least one check failed, so that the tool does not work here as it should.
pub fn fails(checks: &[Check]) -> bool {
    checks.iter().any(|check| check.state == State::Fail)
}
