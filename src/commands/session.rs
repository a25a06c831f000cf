//! One guest, with the settings that hold for it, ready to be looked at.

use crate::act::load_module;
use crate::cli::Guests;
use crate::exit::{Coded, Exit};
use crate::hook::earlier;
use crate::kernel;
use crate::observe::gather::{gather_node, gather_some};
use crate::observe::survey::Survey;
use crate::pve::guest::{Access, Guest};
use crate::pve::load::load;
use crate::pve::node::{GuestFile, find_guest, guests_of_node, node_name};
use crate::pve::storage;
use crate::rbd::spec::Spec;
use crate::reading::error_text;
use crate::settings::policy::{Policy, Scope};
use crate::settings::{Mode, Settings};
use crate::sys::process::System;
use crate::sys::root::Root;
use anyhow::{Context, Result};
use std::time::Duration;

/// How long rebuilding object maps may take after a stop, where PVE holds the guest's lock.
const REBUILDS_AFTER_STOP: Duration = Duration::from_secs(2);

/// How long all images of the pools may be looked through for the owner of a lock: some thousands of them.
const SEARCH: Duration = Duration::from_secs(30);

/// One guest, with the settings that hold for it.
pub struct Session {
    /// Where every path hangs off.
    pub root: Root,
    /// The guest as its config has it.
    pub guest: Guest,
    /// The settings, as the core needs them.
    pub policy: Policy,
    /// Why the kernel's module could not be loaded.
    load_failure: Option<String>,
}

impl Session {
    /// Reads a guest's config and the settings.
    pub fn open(root: &Root, vmid: u32) -> Result<Self> {
        Self::of(root, guest(root, vmid)?)
    }

    /// Reads the settings for a guest.
    pub fn of(root: &Root, guest: Guest) -> Result<Self> {
        Ok(Self::with(root, guest, &Settings::load(root)?))
    }

    /// A guest and the settings for it.
    pub fn with(root: &Root, guest: Guest, settings: &Settings) -> Self {
        let storages = guest.disks.iter().map(|disk| &disk.storage);
        let policy = Policy::new(settings.for_guest(guest.vmid, storages));
        Self { root: root.clone(), guest, policy, load_failure: None }
    }

    /// The guest is about to start: nothing may take long, and disks that the kernel opens shall end up mapped. That is the running kernel's
    /// business, so it is left out where the root is not its own.
    pub fn prepare_to_start(&mut self) {
        self.policy.starting = true;
        self.policy.rebuild_budget = Some(self.policy.settings.rebuild_deadline);
        self.policy.map = self.policy.settings.map && self.is_opened_by_this_kernel();
        self.load_module();
    }

    /// The guest is to be started after this, which comes before all starts of the node at boot.
    pub fn prepare_at_boot(&mut self) {
        self.policy.at_boot = true;
        self.policy.read_only =
            self.hookscript_refuses().map(|why| format!("its start is going to be refused: {why}"));
        self.load_module();
    }

    /// Why Proxmox VE will refuse every start of the guest for its hookscript's sake.
    pub fn hookscript_refuses(&self) -> Option<String> {
        earlier::refusal(&self.root, &storage::load(&self.root).ok()?, self.guest.hookscript.as_deref()?)
    }

    /// The running kernel opens a disk of the guest's.
    fn is_opened_by_this_kernel(&self) -> bool {
        self.root.is_system() && self.guest.disks.iter().any(|disk| disk.access == Access::Krbd)
    }

    /// Without the module the start is certain to fail, so this is known before anything is changed.
    fn load_module(&mut self) {
        if self.is_opened_by_this_kernel() && !kernel::gather(&self.root).module_loaded {
            self.load_failure = load_module::load(&System).err().map(|error| error_text(&error));
        }
    }

    /// The guest has stopped: nothing may take long, and what the next pre-start reaches is left to it.
    pub fn prepare_after_stop(&mut self) {
        self.policy.rebuild_budget = Some(self.policy.settings.rebuild_deadline.min(REBUILDS_AFTER_STOP));
        self.policy.scope = Scope::AfterStop;
    }

    /// Looks at the guest and all its images, for at most `limit`.
    pub fn observe(&self, limit: Duration) -> Result<Survey> {
        self.observe_for(limit, self.policy.settings.connect_timeout)
    }

    /// The same, waiting for each cluster as long as `patience`, which is `connect_timeout` or more.
    pub fn observe_for(&self, limit: Duration, patience: Duration) -> Result<Survey> {
        self.gather(None, limit, patience)
    }

    /// Looks at the guest and one of its images, for at most `limit`.
    pub fn observe_image(&self, spec: &Spec, limit: Duration, patience: Duration) -> Result<Survey> {
        self.gather(Some(spec), limit, patience)
    }

    /// Looks at the guest again, but not at its images: `None` if that does not do, because its config has changed.
    pub fn observe_node(&self, seen: &Survey) -> Result<Option<Survey>> {
        Ok(gather_node(&self.root, seen)?.map(|survey| self.in_situation(survey)))
    }

    fn gather(&self, only: Option<&Spec>, limit: Duration, patience: Duration) -> Result<Survey> {
        let usual = self.policy.settings.connect_timeout;
        let off = |storage: &str| self.policy.disk(storage).mode == Mode::Off;
        let limits = (limit.min(patience), limit.min(patience.max(SEARCH)));
        let survey = gather_some(&self.root, self.guest.vmid, only, limits, &off)?;
        let survey = self.in_situation(survey);
        // Who had less time than the settings give has not found out that nobody answers.
        Ok(if limit < usual { survey.without_blame() } else { survey })
    }

    /// With what is known of the situation: whether the module can be had, and who is at the guest whose hook this is.
    pub fn in_situation(&self, mut survey: Survey) -> Survey {
        survey.node.kernel.load_failure = self.load_failure.clone();
        if self.policy.scope != Scope::All {
            // PVE has called this hook, and keeps everybody else away meanwhile.
            for users in survey.node.mapping_users.values_mut() {
                users.locked.remove(&self.guest.vmid);
            }
        }
        survey
    }
}

/// A guest as its config has it.
pub fn guest(root: &Root, vmid: u32) -> Result<Guest> {
    Ok(load(root, vmid)?.0)
}

/// The guests that a command line asks for: those named, or all of this node.
pub fn vmids(root: &Root, guests: &Guests) -> Result<Vec<u32>> {
    match (guests.all, guests.vmids.is_empty()) {
        (false, true) => Err(Coded::error(Exit::Usage, "which guest? Name a VMID, or say --all")),
        (false, false) => Ok(guests.vmids.clone()),
        (true, _) => all(root),
    }
}

/// The same, each once, as their configs' files.
pub fn files(root: &Root, guests: &Guests) -> Result<Vec<GuestFile>> {
    if guests.all {
        return Ok(guests_of_node(root, &node_name(root)?)?);
    }
    let mut vmids = vmids(root, guests)?;
    vmids.sort_unstable();
    vmids.dedup();
    let file = |vmid| find_guest(root, vmid)?.with_context(|| format!("there is no guest {vmid}"));
    vmids.into_iter().map(file).collect()
}

fn all(root: &Root) -> Result<Vec<u32>> {
    Ok(guests_of_node(root, &node_name(root)?)?.into_iter().map(|guest| guest.vmid).collect())
}
