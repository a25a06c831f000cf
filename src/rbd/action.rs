//! A change to an image, as a value: what `diagnose` proposes, `plan` orders and `act` carries out.

use crate::rbd::features::Features;
use crate::rbd::identity::ImageIdentity;
use crate::rbd::lock::Locker;
use crate::rbd::spec::Spec;
use crate::sys::command::Command;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The image to change and how to reach it. Which image it is, its [`Target::identity`] says: a command names it by
/// `spec`, and is only run while that name still is this image's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Target {
    /// The storage's id; empty where none is needed (an unmap).
    pub storage: String,
    /// The cluster's fsid.
    pub fsid: String,
    /// The image's pool, namespace and name when the change was planned.
    pub spec: Spec,
    /// The image's id, empty for format 1; `None` where it could not be read, and in journals of versions before it was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// PVE's own arguments for `rbd` on this storage, before the command's name.
    pub rbd_arguments: Vec<String>,
}

impl Target {
    /// The image, told from all others.
    pub fn identity(&self) -> ImageIdentity<'_> {
        ImageIdentity::new(&self.fsid, &self.spec, self.id.as_deref())
    }
}

/// What is changed. The order is the order in which changes of one image are made.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "change", rename_all = "kebab-case")]
pub enum Change {
    /// `rbd unmap`, never by force: the kernel refuses where the device is open.
    Unmap {
        /// `N` of `/dev/rbdN`.
        device: u32,
    },
    /// librbd takes the exclusive lock from an owner that is gone, and releases it.
    BreakLock {
        /// The owner that is gone.
        owner: LockOwner,
    },
    /// Takes features away (`rbd feature disable`).
    DisableFeatures {
        /// All in one command; Ceph orders them.
        features: Features,
    },
    /// Gives features (`rbd feature enable`).
    EnableFeatures {
        /// All in one command; Ceph orders them.
        features: Features,
    },
    /// Makes an object map anew (`rbd object-map rebuild`), which may take many minutes.
    RebuildObjectMap {
        /// A snapshot's map; `None` is the head's.
        snapshot: Option<String>,
    },
    /// `rbd map`, left mapped for PVE, which then finds the device and does not map it itself.
    Map {
        /// With a kernel client of its own, since the shared one is on the blocklist.
        noshare: bool,
        /// As PVE maps the disks of Windows guests (bug 5779).
        rxbounce: bool,
    },
}

/// A lock's owner in a form that can be ordered.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LockOwner {
    /// The client's name, `client.4140`.
    pub client: String,
    /// The lock's cookie, `auto 140192430251296`.
    pub cookie: String,
    /// The client's address, `10.0.0.1:0/492268007`.
    pub address: String,
}

impl From<&Locker> for LockOwner {
    fn from(locker: &Locker) -> Self {
        Self { client: locker.client.clone(), cookie: locker.cookie.clone(), address: locker.address.clone() }
    }
}

impl From<&LockOwner> for Locker {
    fn from(owner: &LockOwner) -> Self {
        Self { client: owner.client.clone(), cookie: owner.cookie.clone(), address: owner.address.clone() }
    }
}

/// One change of one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Action {
    /// The image that is changed.
    pub target: Target,
    /// What is changed in it.
    #[serde(flatten)]
    pub change: Change,
}

impl Action {
    /// The change in words: `disable journaling on rbd/vm-516-disk-1`.
    pub fn describe(&self) -> String {
        let spec = &self.target.spec;
        match &self.change {
            Change::Unmap { device } => format!("unmap /dev/rbd{device} ({spec})"),
            Change::Map { noshare: false, .. } => format!("map {spec}"),
            Change::Map { noshare: true, .. } => {
                format!("map {spec} with a kernel client of its own (noshare)")
            }
            Change::BreakLock { owner } => {
                format!("break the lock of {spec}, left by {} at {}", owner.client, owner.address)
            }
            Change::DisableFeatures { features } => format!("disable {features} on {spec}"),
            Change::EnableFeatures { features } => format!("enable {features} on {spec}"),
            Change::RebuildObjectMap { snapshot: None } => format!("rebuild the object map of {spec}"),
            Change::RebuildObjectMap { snapshot: Some(name) } => {
                format!("rebuild the object map of {spec}@{name}")
            }
        }
    }

    /// The change as a line for an administrator: a command to paste, or a comment where librbd itself is called.
    pub fn command_line(&self) -> String {
        match self.command() {
            Some(command) => command.display(),
            None => format!("# by librbd: {}", self.describe()),
        }
    }

    /// Whether it maps an image.
    pub fn is_map(&self) -> bool {
        matches!(self.change, Change::Map { .. })
    }

    /// Whether it is made in the kernel rather than on the image.
    pub fn is_kernels(&self) -> bool {
        matches!(self.change, Change::Map { .. } | Change::Unmap { .. })
    }

    /// Whether it takes as long as the image is large.
    pub fn may_take_long(&self) -> bool {
        matches!(self.change, Change::RebuildObjectMap { .. })
    }

    /// The `rbd` command that makes the change; `None` where librbd itself is called.
    ///
    /// Features are named in PVE's order (`PVE::Storage::RBDPlugin`, `$krbd_feature_update`). Names that could be
    /// read as an option never come here: the gate keeps them out.
    pub fn command(&self) -> Option<Command> {
        let image = &self.target.spec.image;
        let tail: Vec<String> = match &self.change {
            Change::BreakLock { .. } => return None,
            Change::Unmap { device } => {
                // A device needs no pool, and PVE too leaves the namespace out.
                return Some(Command::new("rbd").args(["unmap".to_owned(), format!("/dev/rbd{device}")]));
            }
            Change::Map { noshare, rxbounce } => {
                let options: Vec<&str> = [("noshare", noshare), ("rxbounce", rxbounce)]
                    .iter()
                    .filter(|o| *o.1)
                    .map(|o| o.0)
                    .collect();
                let mut words = vec!["map".into(), image.clone()];
                if !options.is_empty() {
                    words.extend(["--options".into(), options.join(",")]);
                }
                words
            }
            Change::DisableFeatures { features } => {
                vec!["feature".into(), "disable".into(), image.clone(), in_pve_order(*features)]
            }
            Change::EnableFeatures { features } => {
                vec!["feature".into(), "enable".into(), image.clone(), in_pve_order(*features)]
            }
            Change::RebuildObjectMap { snapshot: None } => {
                vec!["object-map".into(), "rebuild".into(), image.clone()]
            }
            Change::RebuildObjectMap { snapshot: Some(snapshot) } => {
                vec!["object-map".into(), "rebuild".into(), format!("{image}@{snapshot}")]
            }
        };
        Some(Command::new("rbd").args(&self.target.rbd_arguments).args(tail))
    }
}

/// What came of a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum ActionResult {
    /// It is planned, not made.
    Planned,
    /// It was made.
    Done {
        /// How long it took.
        duration_ms: u64,
    },
    /// It was tried and failed.
    Failed {
        /// The errno that came back, if one did.
        errno: Option<i32>,
        /// What came back, in one line.
        message: String,
    },
    /// It was not made, since a fresh look said that it must not be.
    Withheld {
        /// Why it must not be, in one sentence.
        why: String,
    },
    /// It was not made, since another run is at the same image.
    Busy {
        /// Which run is at it, and how long it was waited for.
        why: String,
    },
}

impl ActionResult {
    /// It was made; how long it took is added by who has measured it.
    pub fn done() -> Self {
        Self::Done { duration_ms: 0 }
    }

    /// It was not made, and why.
    pub fn withheld(why: impl Into<String>) -> Self {
        Self::Withheld { why: why.into() }
    }

    /// What came of `what`, a change in words, in one line.
    pub fn of(&self, what: &str) -> String {
        match self {
            Self::Planned => what.to_owned(),
            Self::Done { duration_ms } => {
                format!("done: {what} ({}.{} s)", duration_ms / 1000, duration_ms % 1000 / 100)
            }
            Self::Failed { message, .. } => format!("FAILED: {what}: {message}"),
            Self::Withheld { why } | Self::Busy { why } => format!("not done: {what}: {why}"),
        }
    }
}

/// A change and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ActionReport {
    /// The change that was planned.
    pub action: Action,
    /// What came of it.
    #[serde(flatten)]
    pub result: ActionResult,
    /// What the kernel's rbd driver and Ceph client said meanwhile; only of what the kernel does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kernel_log: Vec<String>,
}

impl ActionReport {
    /// A report without the kernel's words.
    pub fn new(action: Action, result: ActionResult) -> Self {
        Self { action, result, kernel_log: Vec::new() }
    }

    /// The change was made.
    pub fn done(&self) -> bool {
        matches!(self.result, ActionResult::Done { .. })
    }

    /// How long the change took, where it was made; nothing where nothing was tried; `None` where it was tried and failed.
    pub fn duration(&self) -> Option<Duration> {
        match &self.result {
            ActionResult::Done { duration_ms } => Some(Duration::from_millis(*duration_ms)),
            ActionResult::Planned | ActionResult::Withheld { .. } | ActionResult::Busy { .. } => {
                Some(Duration::ZERO)
            }
            ActionResult::Failed { .. } => None,
        }
    }

    /// What came back instead: the errno, if one did, and the words. `None` where the change was made.
    pub fn failure(&self) -> Option<(Option<i32>, &str)> {
        match &self.result {
            ActionResult::Planned | ActionResult::Done { .. } => None,
            ActionResult::Failed { errno, message } => Some((*errno, message)),
            ActionResult::Withheld { why } | ActionResult::Busy { why } => Some((None, why)),
        }
    }
}

/// The same image, whichever storage it was reached by; also where an id that is not known keeps it from being sure.
pub fn is_same_image(a: &Action, b: &Action) -> bool {
    a.target.identity().may_be(b.target.identity())
}

/// The names joined by commas; dependents come before what they depend on, as PVE writes them.
fn in_pve_order(features: Features) -> String {
    let mut names = features.names();
    names.reverse();
    let rank = |name: &String| match name.as_str() {
        "journaling" => 0,
        "fast-diff" => 1,
        "object-map" => 2,
        "deep-flatten" => 3,
        "exclusive-lock" => 4,
        _ => 5,
    };
    names.sort_by_key(rank);
    names.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn action(change: Change) -> Action {
        Action {
            target: Target {
                storage: "ceph".into(),
                fsid: "f".into(),
                spec: Spec { pool: "rbd".into(), namespace: None, image: "vm-1-disk-0".into() },
                id: Some("12ab".into()),
                rbd_arguments: vec!["-p".into(), "rbd".into()],
            },
            change,
        }
    }

    #[test]
    fn features_are_named_as_pve_names_them() {
        let enable = Features::EXCLUSIVE_LOCK | Features::OBJECT_MAP | Features::FAST_DIFF;
        let command = action(Change::EnableFeatures { features: enable }).command_line();
        assert_eq!(command, "rbd -p rbd feature enable vm-1-disk-0 fast-diff,object-map,exclusive-lock");
    }

    #[test]
    fn a_new_image_of_the_old_name_is_another_one() {
        let one = action(Change::RebuildObjectMap { snapshot: None });
        let of = |id: Option<&str>| {
            let target = Target { id: id.map(Into::into), ..one.target.clone() };
            Action { target, ..one.clone() }
        };
        assert!(is_same_image(&one, &of(Some("12ab"))) && is_same_image(&one, &of(None)));
        assert!(!is_same_image(&one, &of(Some("34cd"))));
    }

    #[test]
    fn a_journal_from_before_the_ids_is_read() {
        let old = r#"{"target":{"storage":"ceph","fsid":"f","spec":{"pool":"rbd","namespace":null,"image":"a"},
            "rbd_arguments":[]},"change":"rebuild-object-map","snapshot":null}"#;
        let action: Action = serde_json::from_str(old).unwrap();
        assert_eq!(action.target.id, None);
        assert!(!serde_json::to_string(&action).unwrap().contains("\"id\""));
    }

    #[test]
    fn pve_disables_deep_flatten_before_exclusive_lock() {
        let all = Features(61) - Features::LAYERING;
        assert_eq!(in_pve_order(all), "fast-diff,object-map,deep-flatten,exclusive-lock");
    }

    #[test]
    fn a_snapshot_is_rebuilt_by_its_own_spec() {
        let command = action(Change::RebuildObjectMap { snapshot: Some("a".into()) }).command_line();
        assert_eq!(command, "rbd -p rbd object-map rebuild vm-1-disk-0@a");
    }
}
