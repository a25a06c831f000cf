//! In which situation Proxmox VE calls the hook, and what may be done in it. Pure; one table.
//!
//! Facts: `PVE::QemuServer::vm_start_nolock`, `PVE::QemuMigrate`, `PVE::VZDump::QemuServer`, `PVE::LXC::vm_start`.

use std::time::Duration;

/// How long a hook may take where the guest is alive on another node: its memory waits for this one.
const MIGRATION_BUDGET: Duration = Duration::from_secs(5);

/// When Proxmox VE calls a hookscript (`PVE::GuestHelpers::exec_hookscript`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// Before the start; a failure stops it.
    PreStart,
    /// `post-start`: the guest runs.
    PostStart,
    /// `pre-stop`: the guest is about to be shut down.
    PreStop,
    /// After the guest has stopped.
    PostStop,
    /// One that a later Proxmox VE has; it is none of ours.
    Other(String),
}

impl From<&str> for Phase {
    fn from(name: &str) -> Self {
        let known = [Self::PreStart, Self::PostStart, Self::PreStop, Self::PostStop];
        known.into_iter().find(|phase| phase.name() == name).unwrap_or_else(|| Self::Other(name.to_owned()))
    }
}

impl Phase {
    /// Its name, as Proxmox VE passes it.
    pub fn name(&self) -> &str {
        match self {
            Self::PreStart => "pre-start",
            Self::PostStart => "post-start",
            Self::PreStop => "pre-stop",
            Self::PostStop => "post-stop",
            Self::Other(name) => name,
        }
    }
}

/// What PVE is doing with the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Situation {
    /// Something in which the hook has no part.
    NotOurs,
    /// A guest comes here from another node and is alive there: `PVE_MIGRATED_FROM`.
    MigrationTarget {
        /// The node that it comes from.
        from: String,
    },
    /// `lock: migrate` alone is a migration from another cluster, `lock: create` a live restore: the disks are in
    /// use by what fills them.
    BeingFilled {
        /// What `lock:` says: `backup`, `snapshot`, `migrate` and so on.
        lock: String,
    },
    /// vzdump starts a stopped guest, or a template, paused.
    Backup,
    /// Any other start: by hand, at boot, by HA, out of hibernation, after a rollback.
    Start,
    /// The guest has stopped, or was stopped by a migration that failed.
    Stopped,
}

/// What may be done in a situation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowed {
    /// Look at Ceph and the kernel.
    pub look: bool,
    /// Change images, locks and mappings, as far as the gate lets it.
    pub change: bool,
    /// Map disks for the start.
    pub map: bool,
    /// The start is to be stopped, by an exit code other than 0.
    pub stop: bool,
    /// The most time that it may take; `None` is the settings' `deadline`.
    pub budget: Option<Duration>,
}

/// The situation of a hook: the phase, `PVE_MIGRATED_FROM`, and the guest's `lock`.
pub fn situation(phase: &Phase, migrated_from: Option<&str>, lock: Option<&str>) -> Situation {
    match (phase, migrated_from, lock) {
        (Phase::PostStart | Phase::PreStop | Phase::Other(_), ..) => Situation::NotOurs,
        (Phase::PostStop, ..) => Situation::Stopped,
        (Phase::PreStart, Some(node), _) if !node.is_empty() => {
            Situation::MigrationTarget { from: node.to_owned() }
        }
        (Phase::PreStart, _, Some(lock @ ("migrate" | "create"))) => {
            Situation::BeingFilled { lock: lock.to_owned() }
        }
        (Phase::PreStart, _, Some("backup")) => Situation::Backup,
        (Phase::PreStart, ..) => Situation::Start,
    }
}

impl Situation {
    /// What may be done.
    pub fn allowed(&self) -> Allowed {
        let row = |look, change, map, stop, budget| Allowed { look, change, map, stop, budget };
        match self {
            //                                   look   change map    stop   budget
            Self::NotOurs => row(false, false, false, false, None),
            Self::MigrationTarget { .. } => row(true, false, false, false, Some(MIGRATION_BUDGET)),
            Self::BeingFilled { .. } => row(true, false, false, false, Some(MIGRATION_BUDGET)),
            Self::Backup => row(true, true, true, true, None),
            Self::Start => row(true, true, true, true, None),
            Self::Stopped => row(true, true, false, false, None),
        }
    }

    /// Why nothing may be changed, where nothing may.
    pub fn why_not(&self) -> Option<String> {
        match self {
            Self::MigrationTarget { from } => {
                Some(format!("the guest is being migrated here from {from} and is alive there"))
            }
            Self::BeingFilled { lock } => {
                Some(format!("the guest's config is locked ({lock}); its disks are being filled"))
            }
            Self::NotOurs | Self::Backup | Self::Start | Self::Stopped => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Phase::{PostStart, PostStop, PreStart, PreStop};

    /// Each row of the table by what PVE really passes.
    #[test]
    fn every_situation_is_told_by_phase_variable_and_lock() {
        let from = || Situation::MigrationTarget { from: "pve2".into() };
        let filled = |lock: &str| Situation::BeingFilled { lock: lock.into() };
        for (phase, migrated_from, lock, expected) in [
            (PreStart, None, None, Situation::Start),
            // PVE 7.3 and later export an empty variable on every ordinary start.
            (PreStart, Some(""), None, Situation::Start),
            (PreStart, Some(""), Some("suspended"), Situation::Start),
            (PreStart, Some(""), Some("backup"), Situation::Backup),
            (PreStart, Some("pve2"), Some("migrate"), from()),
            (PreStart, Some("pve2"), None, from()),
            (PreStart, Some(""), Some("migrate"), filled("migrate")),
            (PreStart, None, Some("create"), filled("create")),
            (PostStart, None, None, Situation::NotOurs),
            (PreStop, None, None, Situation::NotOurs),
            (PostStop, None, None, Situation::Stopped),
            (PostStop, Some("pve2"), Some("migrate"), Situation::Stopped),
        ] {
            assert_eq!(
                situation(&phase, migrated_from, lock),
                expected,
                "{phase:?} {migrated_from:?} {lock:?}"
            );
        }
    }

    #[test]
    fn where_the_guest_may_be_alive_elsewhere_nothing_is_changed_and_no_start_is_stopped() {
        for situation in [
            Situation::MigrationTarget { from: "pve2".into() },
            Situation::BeingFilled { lock: "create".into() },
        ] {
            let allowed = situation.allowed();
            assert!(allowed.look && !allowed.change && !allowed.map && !allowed.stop);
            assert!(allowed.budget.is_some_and(|budget| budget <= Duration::from_secs(5)));
            assert!(situation.why_not().is_some());
        }
    }
}
