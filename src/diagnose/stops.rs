//! What may stop a start: the one table. A finding stops a start only by what was read and is sure, whatever the rule that
//! made it believed: what has no row here, or lacks the reading that its row names, is at most unknown.

use crate::ceph::cluster::ClusterFacts;
use crate::ceph::cluster::{NO_ANSWER, REFUSED};
use crate::ceph::image::{ImageFacts, ImageReading};
use crate::ceph::way::{Resolved, Way};
use crate::diagnose::finding::{Finding, RemedyKind};
use crate::finding_codes::{Code, Severity};
use crate::observe::survey::{DiskFacts, StorageFacts, Survey};
use crate::rbd::action::{ActionReport, ActionResult};
use crate::reading::{Failure, Origin, Reading};

/// What a stop rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ground {
    /// Proxmox VE's own files: the guest's config and storage.cfg. Without them there is no survey.
    Files,
    /// Ceph has said that there is no such image, pool, namespace or parent.
    Absence,
    /// The image, with its features.
    Image,
    /// Whether the image is mirrored, and as what.
    Mirroring,
    /// The image's ancestors.
    Parents,
    /// The image's lock.
    Lock,
    /// Who has the image open.
    Watchers,
    /// The OSD blocklist.
    Blocklist,
    /// Who owns the lock, who has the image open, and who is on the blocklist.
    Owner,
    /// The same two, and what the storage's user may do.
    OwnerAndCaps,
    /// An OSD has refused the user to read in the pool of the image's data.
    DataPool,
    /// The image was opened, and what the storage's user may do was read.
    Caps,
    /// An OSD has refused the user to open the image.
    Denied,
    /// A client's option, as the cluster has it.
    Option,
    /// What this node's kernel can open, for an image that was read.
    Kernel,
    /// What this node's kernel has mapped.
    Mapped,
    /// The same, and what has it open.
    Holders,
    /// The kernel's module is not there and could not be loaded.
    Module,
    /// The keyring's file, or Proxmox VE's own check of it.
    Keyring,
    /// The files in which QEMU looks for the user's key, and that it is the way in which it is told of the disk.
    QemuKey,
    /// The cluster or the network gave no answer within the whole time that the settings give it.
    NoAnswer,
    /// The monitors, or Ceph's library, refused the user.
    Refusal,
    /// The ceph.conf is not there, or not as Ceph takes it.
    Conf,
    /// The cluster's quorum, as Proxmox VE reads it.
    Quorum,
    /// A snippet's file, by Proxmox VE's own check of it.
    Snippet,
    /// A pool of the finding's storages has the flag `full`.
    FullPool,
    /// What the manager says of placement groups, read in detail.
    Groups,
    /// The only protocol of the monitors, and what a map asks for.
    Protocol,
    /// The ceph.conf was read, and storage.cfg, and neither names a monitor.
    Way,
    /// The resolver has said that there is no such name.
    Names,
    /// This run has tried the map, or the change, and it failed.
    Tried,
}

use Ground as G;

/// Each finding that may stop a start, and what it may rest on; one of these is enough.
pub const TABLE: &[(Code, &[Ground])] = &[
    (Code::ImageMissing, &[G::Absence, G::Tried]),
    (Code::ImageInTrash, &[G::Absence]),
    (Code::PoolMissing, &[G::Absence, G::Tried]),
    (Code::NamespaceMissing, &[G::Absence]),
    (Code::StorageUnknown, &[G::Files]),
    (Code::StorageDisabled, &[G::Files]),
    (Code::StorageNotOnNode, &[G::Files]),
    (Code::StorageContent, &[G::Files]),
    (Code::ConfigUnreadable, &[G::Files]),
    (Code::VolumeNameInvalid, &[G::Files]),
    (Code::ClusterUnreachable, &[G::NoAnswer, G::Tried]),
    (Code::ClusterAuthFailed, &[G::Refusal, G::Tried]),
    (Code::KeyringUnreadable, &[G::Keyring]),
    (Code::KeyringRefusedByPve, &[G::Keyring]),
    (Code::KeyTypeUnsupported, &[G::Keyring, G::Tried]),
    (Code::CephConfMissing, &[G::Conf]),
    (Code::CephConfInvalid, &[G::Conf]),
    (Code::MonitorsNotNamed, &[G::Way]),
    (Code::MonitorNameUnresolved, &[G::Names]),
    (Code::MonitorPortWrong, &[G::NoAnswer]),
    (Code::KeyringMissing, &[G::Refusal]),
    (Code::KeyringWithoutUser, &[G::Keyring]),
    (Code::QemuKeyMissing, &[G::QemuKey]),
    (Code::NodeBlocklisted, &[G::Blocklist]),
    (Code::QuorumMissing, &[G::Quorum]),
    (Code::GuestLocked, &[G::Files]),
    (Code::HookscriptMissing, &[G::Snippet]),
    (Code::CicustomMissing, &[G::Snippet]),
    (Code::ClusterFull, &[G::FullPool]),
    (Code::PlacementGroupsInactive, &[G::Groups]),
    (Code::BlocklistExpireSet, &[G::Option]),
    (Code::FeaturesUnsupported, &[G::Kernel, G::Tried]),
    (Code::JournalingOnKrbd, &[G::Image]),
    (Code::ImageNonPrimary, &[G::Mirroring, G::Image]),
    (Code::ImageMirrored, &[G::Mirroring]),
    (Code::ImageMigrating, &[G::Image, G::Tried]),
    (Code::ParentMissing, &[G::Absence, G::Parents]),
    (Code::ParentUnsupported, &[G::Parents]),
    (Code::ParentChainTooDeep, &[G::Parents, G::Tried]),
    (Code::LockOwnerAlive, &[G::Owner]),
    (Code::LockBreakNotPermitted, &[G::OwnerAndCaps, G::Tried]),
    (Code::RightsMissing, &[G::DataPool, G::Caps, G::Denied]),
    (Code::InUseElsewhere, &[G::Watchers, G::Tried]),
    (Code::LockExternal, &[G::Lock, G::Tried]),
    (Code::LockDying, &[G::Watchers, G::Tried]),
    (Code::MappingDead, &[G::Mapped]),
    (Code::MappingBusy, &[G::Holders]),
    (Code::MappingOtherImage, &[G::Mapped]),
    (Code::MappingReadOnly, &[G::Mapped]),
    (Code::NotMapped, &[G::Mapped]),
    (Code::MapFailed, &[G::Tried]),
    (Code::KernelTooOld, &[G::Tried]),
    (Code::MapOptionUnknown, &[G::Tried]),
    (Code::KernelKeyringRefused, &[G::Tried]),
    (Code::MsModeMismatch, &[G::Protocol, G::Tried]),
    (Code::ObjectMapBroken, &[G::Tried]),
    (Code::KernelModuleMissing, &[G::Module]),
    (Code::UdevLinkMissing, &[G::Mapped]),
    (Code::ResourceMissing, &[G::Files]),
    (Code::HaRuleForbids, &[G::Files]),
];

/// Lets stop a start only what the table says may.
pub fn only_what_is_sure(survey: &Survey, findings: &mut [Finding]) {
    let stopping = findings.iter_mut().filter(|finding| finding.severity >= Severity::Blocker);
    for finding in stopping.filter(|finding| !is_sure(survey, finding)) {
        finding.severity = Severity::Unknown;
        if finding.remedy.kind == RemedyKind::Automatic {
            finding.remedy.withhold("what it rests on could not be read".to_owned());
        }
    }
}

/// What a finding says was read.
pub fn is_sure(survey: &Survey, finding: &Finding) -> bool {
    let row = TABLE.iter().find(|(code, _)| *code == finding.code);
    let seen = Seen { survey, finding };
    row.is_some_and(|(_, grounds)| grounds.iter().any(|ground| seen.has(*ground)))
}

/// A finding and what it may rest on.
struct Seen<'a> {
    survey: &'a Survey,
    finding: &'a Finding,
}

impl<'a> Seen<'a> {
    fn has(&self, ground: Ground) -> bool {
        let image = self.image();
        let in_image = |read: &dyn Fn(&ImageFacts) -> bool| image.is_some_and(read);
        match ground {
            G::Files => true,
            G::Absence => self.disk().is_some_and(|disk| {
                !matches!(disk.reading, None | Some(ImageReading::Found(_) | ImageReading::Unknown(_)))
            }),
            G::Image => image.is_some(),
            G::Mirroring => in_image(&|facts| facts.mirroring.known().is_some()),
            G::Parents => in_image(&|facts| facts.parents.known().is_some()),
            G::Lock => in_image(&|facts| facts.lock.known().is_some()),
            G::Watchers => in_image(&|facts| facts.watchers.known().is_some()),
            G::Owner => self.has(G::Lock) && self.has(G::Watchers) && self.has(G::Blocklist),
            G::OwnerAndCaps => self.has(G::Lock) && self.has(G::Watchers) && self.storages().any(has_caps),
            G::DataPool => in_image(&|facts| {
                let pool = facts.data_pool.as_ref().and_then(Reading::known);
                pool.is_some_and(|pool| pool.readable == Reading::Known(false))
            }),
            G::Caps => image.is_some() && self.storages().any(has_caps),
            G::Denied => self.disk().is_some_and(
                |disk| matches!(&disk.reading, Some(ImageReading::Unknown(failure)) if failure.is_refusal()),
            ),
            G::Blocklist => self.clusters().any(|facts| facts.blocklist.known().is_some()),
            G::Option => self.clusters().any(|facts| facts.blocklist_expire_seconds.known().is_some()),
            G::Kernel => image.is_some() && self.survey.node.kernel.supported.known().is_some(),
            G::Mapped => self.survey.node.kernel.mappings.known().is_some(),
            G::Holders => {
                let users = self.survey.node.mapping_users.values();
                self.has(G::Mapped) && users.into_iter().any(|users| users.holders.known().is_some())
            }
            G::Module => self.survey.node.kernel.load_failure.is_some(),
            G::Keyring => self.storages().any(|storage| storage.keyring.is_some()),
            G::QemuKey => self.storages().any(|storage| {
                storage.qemu_keyring.as_ref().is_some_and(|lacking| lacking.by_blockdev == Some(true))
            }),
            G::NoAnswer => self.failures().any(|failure| failure.is_one_of(&NO_ANSWER)),
            G::Refusal => self.failures().any(|failure| failure.is_one_of(&REFUSED)),
            G::Conf => self.failures().any(|failure| failure.origin == Origin::Conf),
            G::Quorum => self.survey.node.quorate.known().is_some(),
            G::Snippet => self.survey.node.snippets.iter().any(|facts| facts.refused.known().is_some()),
            G::FullPool => {
                let read = |facts: &ClusterFacts| {
                    facts.full_pools.as_ref().is_some_and(|full| full.known().is_some())
                };
                self.clusters().any(read)
            }
            G::Protocol => {
                let options =
                    |disk: &DiskFacts| disk.map_options.as_ref().is_some_and(|read| read.known().is_some());
                let release =
                    self.survey.node.rbd_release.as_ref().is_some_and(|read| read.known().is_some());
                release
                    && self.disk().is_some_and(options)
                    && self.clusters().any(|facts| facts.only_protocol.is_some())
            }
            G::Groups => {
                let read = |facts: &ClusterFacts| {
                    facts.inactive_pools.as_ref().is_some_and(|all| all.known().is_some())
                };
                self.clusters().any(read)
            }
            G::Way => self.ways().any(|way| way.named.is_none() && way.is_read()),
            G::Names => {
                self.ways().any(|way| way.hosts.iter().any(|host| matches!(host.found, Resolved::Unknown(_))))
            }
            G::Tried => self.survey.history.iter().any(|report| self.is_tried(report)),
        }
    }

    fn disk(&self) -> Option<&'a DiskFacts> {
        self.survey.disks.iter().find(|disk| Some(&disk.disk.key) == self.finding.disk.as_ref())
    }

    fn image(&self) -> Option<&'a ImageFacts> {
        match &self.disk()?.reading {
            Some(ImageReading::Found(facts)) => Some(facts),
            _ => None,
        }
    }

    /// The storage of the finding's disk, or those that it is about.
    fn storages(&self) -> impl Iterator<Item = &'a StorageFacts> {
        let of_disk = self.disk().map(|disk| disk.disk.storage.as_str());
        let named = self.finding.storages.iter().map(String::as_str);
        of_disk.into_iter().chain(named).filter_map(|id| self.survey.storages.get(id))
    }

    fn ways(&self) -> impl Iterator<Item = &'a Way> {
        self.storages().filter_map(|storage| storage.way.as_ref())
    }

    fn readings(&self) -> impl Iterator<Item = &'a Reading<ClusterFacts>> {
        self.storages().filter_map(|storage| self.survey.clusters.get(storage.cluster))
    }

    fn clusters(&self) -> impl Iterator<Item = &'a ClusterFacts> {
        self.readings().filter_map(Reading::known)
    }

    /// Why a cluster could not be asked, or the image not be read.
    fn failures(&self) -> impl Iterator<Item = &'a Failure> {
        let of_image = self.disk().and_then(|disk| match &disk.reading {
            Some(ImageReading::Unknown(failure)) => Some(failure),
            _ => None,
        });
        self.readings().filter_map(Reading::failure).chain(of_image)
    }

    /// The run has failed at the finding's image.
    fn is_tried(&self, report: &ActionReport) -> bool {
        let own = self.disk().and_then(|disk| self.survey.identity(disk));
        let same = own.is_some_and(|own| own.may_be(report.action.target.identity()));
        same && matches!(report.result, ActionResult::Failed { .. })
    }
}

fn has_caps(storage: &StorageFacts) -> bool {
    storage.caps.as_ref().is_some_and(|caps| caps.known().is_some())
}
