//! What may be done and what is wanted: the settings and the situation, as the pure core needs them.

use crate::finding_codes::Code;
use crate::settings::{DiskSettings, Mode, Resolved};
use std::collections::BTreeSet;
use std::time::Duration;

/// What `diagnose` and `plan` are given besides the survey.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    /// The settings for this guest and its storages.
    pub settings: Resolved,
    /// Why nothing may be changed in this situation whatever the settings say (a migration target).
    pub read_only: Option<String>,
    /// A start follows at once, and where that is certain to be refused nothing is changed for it.
    pub starting: bool,
    /// Disks that the kernel opens shall end up mapped: the guest is about to start.
    pub map: bool,
    /// Which changes are wanted now.
    pub scope: Scope,
    /// The last rung of `start`: take the features that can be changed off every disk, and put them back.
    pub reset: bool,
    /// No guest of the node starts before this is over: nothing is waited for that the guest's own hook may wait for.
    pub at_boot: bool,
    /// How long rebuilding object maps may take here; `None` is as long as it takes.
    pub rebuild_budget: Option<Duration>,
}

/// Which changes are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scope {
    /// All that the findings ask for.
    #[default]
    All,
    /// The hook before a start: PVE has opened some images already.
    InHook,
    /// After a stop: what the next pre-start comes too late for, leftover mappings, and object maps.
    AfterStop,
}

impl Policy {
    /// The policy of an ordinary situation.
    pub fn new(settings: Resolved) -> Self {
        Self { settings, ..Self::default() }
    }

    /// The settings for disks of a storage.
    pub fn disk(&self, storage: &str) -> &DiskSettings {
        self.settings.disk(storage)
    }

    /// Why the settings or the situation keep changes off a storage's images; `None` if they do not.
    pub fn forbids(&self, storage: &str) -> Option<String> {
        let by_mode = || match self.disk(storage).mode {
            Mode::Repair => None,
            Mode::Check => Some("the settings say `mode: check`".to_owned()),
            Mode::Off => Some("the settings say `mode: off`".to_owned()),
        };
        self.read_only.clone().or_else(by_mode)
    }

    /// Findings on a storage's disks, or on the guest, that shall not stop it.
    pub fn ignored(&self, storage: Option<&str>) -> BTreeSet<Code> {
        let settings = storage.map_or(&self.settings.general, |storage| self.disk(storage));
        settings.ignore.iter().copied().collect()
    }
}
