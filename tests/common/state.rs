//! One state of the world as `diagnose` and `plan` see it: how it is read, which changes the design's rules forbid in it,
//! and what a change makes of it. `tests/space.rs` goes through all of them.

use crate::model::{Image, Locker, OK};
use rbd_preflight::ceph::caps::Caps as Granted;
use rbd_preflight::ceph::image::{Flags, ImageFacts, ImageReading, Mirroring};
use rbd_preflight::ceph::manager::Manager;
use rbd_preflight::kernel::Mapping;
use rbd_preflight::kernel::holders::{Holder, Process};
use rbd_preflight::observe::survey::{MappingUsers, OwnerLook, Survey};
use rbd_preflight::pve::guest::Access;
use rbd_preflight::rbd::action::{Action, ActionReport, ActionResult, Change};
use rbd_preflight::rbd::features::Features;
use rbd_preflight::rbd::lock::{Lock, Locker as LockOwner, Watcher};
use rbd_preflight::reading::{Failure, Reading};
use rbd_preflight::settings::Settings;
use rbd_preflight::settings::policy::{Policy, Scope};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// What is said of the object map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Map {
    Valid,
    Invalid,
    Unknown,
}

/// Who watches the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watchers {
    Nobody,
    /// This node's kernel: of the mapping, or of one that sysfs does not show (any more).
    Own,
    OwnAndOther,
    Other,
    /// A client that is on the blocklist, and whose watch has not run out.
    Blocklisted,
    /// rbd-mirror, which copies the image to another cluster.
    Daemon,
    DaemonAndOther,
    /// Somebody, and whether it is rbd-mirror could not be found out.
    PerhapsDaemon,
    /// The cluster's manager, which is at work on the image.
    Manager,
    ManagerAndOther,
    /// The manager has a task for the image, and whether that is it could not be found out.
    PerhapsManager,
    Unknown,
}

/// Whether the storage's user may put a dead owner on the blocklist, and whether that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caps {
    May,
    MayNot,
    /// It may, and its caps could not be read.
    UnreadMay,
    /// It may not, and its caps could not be read.
    UnreadMayNot,
}

/// What is known of the life of a lock's owner that does not watch the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Nothing that was read speaks for its life, and a second look will find the same.
    FirstLook,
    /// Nothing speaks for its life, twice and far enough apart.
    Gone,
    /// It has another guest's image open.
    Elsewhere,
    /// Not all images could be looked at.
    Unknown,
    /// Nobody has looked.
    NotLooked,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mirror {
    No,
    Journal,
    Snapshot,
    NonPrimary,
    /// Only the image's features say so.
    NonPrimaryFeature,
    Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Migration {
    No,
    UnderWay,
    /// Only the image's features say so.
    Feature,
    Unknown,
}

/// The image in this node's kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mapped {
    No,
    Leftover,
    Busy,
    /// Through a kernel client on the blocklist.
    Dead,
    DeadAndBusy,
    Unknown,
    /// Left over, and the kernel does not tell the image's id.
    NoId,
    /// Left over, for reading only.
    ReadOnly,
    /// Left over, and somebody is at the guest: by hand that is a start, in the hook it is PVE that called it.
    Held,
    /// Another image has the name in the kernel and the link to it, left over.
    Stranger,
    /// The same, and somebody has it open.
    StrangerAndBusy,
}

/// Another guest's image in this node's kernel, through a client that is on the blocklist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Neighbour {
    None,
    /// The client that a plain map of the image would take. That guest runs.
    Taken,
    /// The same, and nothing uses it.
    TakenLeftover,
    /// Another client.
    Other,
    OtherLeftover,
    /// A client of which it cannot be seen that a plain map would take it. It would.
    Perhaps,
    PerhapsLeftover,
    /// The same, and a map of this run has ended with 108.
    Proven,
    ProvenLeftover,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guest {
    Stopped,
    /// `lock: backup`, under which a start is ordinary.
    Backup,
    Running,
    Elsewhere,
    Locked,
    NoQuorum,
    QuorumUnknown,
    Template,
    Unknown,
}

/// Why the tool runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Context {
    ByHand,
    /// The hook before a start.
    Hook,
    /// The hook where the guest is alive on another node.
    MigrationTarget,
    AfterStop,
    /// `start`.
    Start,
    /// The last try of `start`, which takes the features off and puts them back.
    LastTry,
}

/// One state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    pub features: Features,
    pub map: Map,
    pub locker: Locker,
    pub watchers: Watchers,
    pub owner: Owner,
    pub caps: Caps,
    pub mirror: Mirror,
    pub migration: Migration,
    pub guest: Guest,
    pub krbd: bool,
    pub old_kernel: bool,
    pub mapped: Mapped,
    pub neighbour: Neighbour,
    /// PVE opens the disk before it calls the hook.
    pub before_hook: bool,
    pub context: Context,
}

/// A disk of a guest that can start, to be varied.
static BASE: LazyLock<Survey> = LazyLock::new(|| {
    serde_json::from_value(json!({
        "schema": 1, "taken_at": 0,
        "node": {
            "name": "pve1", "quorate": { "known": true }, "running": { "known": false },
            "kernel": { "release": "6.14.8-2-pve", "version": [6, 14], "module_loaded": true,
                        "supported": { "known": [] }, "mappings": { "known": [] } },
            "rbd_release": { "known": "19.2.6" },
        },
        "guest": { "vmid": 516, "kind": "qemu", "node": "pve1", "name": null, "lock": null, "template": false,
                   "hookscript": null, "ostype": null, "disks": [], "refusals": [], "notes": [] },
        "storages": { "ceph": {
            "section": { "id": "ceph", "pool": "rbd", "namespace": null, "data_pool": null, "krbd": true,
                         "username": null, "monhost": null, "content": ["images"], "nodes": null, "disabled": false },
            "connection": { "conf": null, "mon_host": null, "user": "vms", "keyring": null },
            "cluster": 0,
        } },
        "clusters": [{ "known": {
            "fsid": "f", "health": { "known": { "status": "HEALTH_OK", "checks": [] } },
            "blocklist": { "known": [
                { "address": "10.0.0.1:0/5", "until": "later", "range": false },
                { "address": "10.0.0.2:0/8", "until": "later", "range": false },
                { "address": "10.0.0.1:0/9", "until": "later", "range": false },
            ] },
            "default_features": { "known": [] }, "blocklist_expire_seconds": { "known": 0 },
        } }],
        "disks": [{
            "key": "scsi0", "volid": "ceph:vm-516-disk-0", "storage": "ceph", "pool": "rbd", "namespace": null,
            "image": "vm-516-disk-0", "krbd_storage": true, "access": "krbd", "role": "disk", "pve_drops": null,
            "shared_with": [], "map_options": { "known": "" },
            "reading": { "found": {
                "id": "1", "format": 2, "size": 1, "object_size": 1, "objects": 1, "features": [],
                "op_features": { "known": [] }, "snapshots": { "known": [] }, "parents": { "known": [] },
                "flags": { "known": { "object_map_invalid": false, "fast_diff_invalid": false } },
                "lock": { "known": { "tag": "", "exclusive": true, "lockers": [] } },
                "watchers": { "known": [] }, "mirroring": { "known": null }, "migration": { "known": null },
            } },
        }],
    }))
    .unwrap()
});

/// This node's kernel clients, and clients elsewhere. Those of number 5, 8 and 9 are on the blocklist.
const OWN: (&str, u64) = ("10.0.0.1:0/6", 6);
const OWN_DEAD: (&str, u64) = ("10.0.0.1:0/5", 5);
const OWN_OTHER: (&str, u64) = ("10.0.0.1:0/9", 9);
const OTHER: (&str, u64) = ("10.0.0.2:0/7", 7);
const DAEMON: (&str, u64) = ("10.0.9.1:0/4", 4);
const MANAGER: (&str, u64) = ("10.0.0.3:0/3", 3);
const BLOCKLISTED: (&str, u64) = ("10.0.0.2:0/8", 8);

fn watcher((address, client): (&str, u64)) -> Watcher {
    Watcher { address: address.into(), client, cookie: client * 10 }
}

/// The owner of a lock that is `client`'s by its watch; any other has no watch.
fn owner((address, client): (&str, u64), cookie: &str) -> LockOwner {
    LockOwner { client: format!("client.{client}"), cookie: cookie.into(), address: address.into() }
}

fn mapping(id: u32, image: &str, client: (&str, u64), options: &str) -> Mapping {
    serde_json::from_value(json!({
        "id": id, "pool": "rbd", "namespace": null, "image": image, "snapshot": null, "fsid": "f",
        "client_address": client.0, "client": client.1, "options": options,
    }))
    .unwrap()
}

/// What a plain map of the image is made with.
const PLAIN: &str = "name=vms";
static LIVE_MAPPING: LazyLock<Mapping> = LazyLock::new(|| mapping(0, "vm-516-disk-0", OWN, PLAIN));
static LIVE_PRIVATE: LazyLock<Mapping> =
    LazyLock::new(|| mapping(0, "vm-516-disk-0", OWN, "name=vms,noshare"));
static DEAD_MAPPING: LazyLock<Mapping> = LazyLock::new(|| mapping(0, "vm-516-disk-0", OWN_DEAD, PLAIN));

/// The device of the other guest's image.
const NEIGHBOUR: u32 = 9;

fn unknown<T>() -> Reading<T> {
    Reading::Unknown(Failure::errno("read it", 5))
}

impl Context {
    /// The guest is about to start, and its krbd disks are to be mapped.
    pub fn starts(self) -> bool {
        matches!(self, Self::Hook | Self::Start | Self::LastTry)
    }

    /// What the commands make of the context (`commands::session`, `commands::hook`, `commands::start`).
    pub fn policy(self) -> Policy {
        let ordinary = Policy::new(Settings::default().for_guest(516, ["ceph"]));
        let budget = Some(ordinary.settings.rebuild_deadline);
        let starting = Policy { starting: true, map: true, ..ordinary.clone() };
        match self {
            Self::ByHand => ordinary,
            Self::Hook => Policy { scope: Scope::InHook, rebuild_budget: budget, ..starting },
            Self::MigrationTarget => Policy { read_only: Some("alive on pve2".into()), ..ordinary },
            Self::AfterStop => Policy { scope: Scope::AfterStop, rebuild_budget: budget, ..ordinary },
            Self::Start => starting,
            Self::LastTry => Policy { reset: true, ..starting },
        }
    }
}

impl State {
    /// What is seen of the state.
    pub fn survey(&self, history: &[ActionReport]) -> Survey {
        let mut survey = BASE.clone();
        survey.history = history.to_vec();
        self.paint_guest(&mut survey);
        self.paint_kernel(&mut survey);
        survey.storages.get_mut("ceph").unwrap().caps = self.caps_read();
        survey.disks[0].disk.access = if self.krbd { Access::Krbd } else { Access::Librbd };
        survey.disks[0].disk.before_hook = self.before_hook;
        survey.disks[0].lock_owner = self.owner_look();
        survey.disks[0].mirror_daemons = match self.watchers {
            Watchers::Daemon | Watchers::DaemonAndOther => Some(Reading::Known(vec![watcher(DAEMON)])),
            Watchers::PerhapsDaemon => Some(unknown()),
            _ => None,
        };
        let task = Reading::Known(Some("Flattening image rbd/vm-516-disk-0".to_owned()));
        survey.disks[0].manager = match self.watchers {
            Watchers::Manager | Watchers::ManagerAndOther => {
                Some(Manager { clients: Reading::Known(vec![MANAGER.0.to_owned()]), task })
            }
            Watchers::PerhapsManager => Some(Manager { clients: unknown(), task }),
            _ => None,
        };
        let Some(ImageReading::Found(facts)) = &mut survey.disks[0].reading else { panic!() };
        self.paint_image(facts);
        survey
    }

    fn owner_look(&self) -> Option<OwnerLook> {
        let words = |there: bool, word: &str| if there { vec![word.to_owned()] } else { Vec::new() };
        (self.owner != Owner::NotLooked).then(|| OwnerLook {
            open: words(self.owner == Owner::Elsewhere, "rbd/vm-600-disk-0"),
            looked_at: 2,
            unread: words(
                self.owner == Owner::Unknown,
                "list the images of rbd: (1) Operation not permitted",
            ),
            unwatched_for: if self.owner == Owner::Gone { 30 } else { 0 },
            watch_timeout: 30,
        })
    }

    fn paint_guest(&self, survey: &mut Survey) {
        match self.guest {
            Guest::Stopped => {}
            Guest::Backup => survey.guest.lock = Some("backup".into()),
            Guest::Running => survey.node.running = Reading::Known(true),
            Guest::Elsewhere => survey.guest.node = "pve2".into(),
            Guest::Locked => survey.guest.lock = Some("snapshot".into()),
            Guest::NoQuorum => survey.node.quorate = Reading::Known(false),
            Guest::QuorumUnknown => survey.node.quorate = unknown(),
            Guest::Template => survey.guest.template = true,
            Guest::Unknown => survey.node.running = unknown(),
        }
    }

    /// The caps are only looked for where a lock is to be broken.
    fn caps_read(&self) -> Option<Reading<Granted>> {
        let mon = |caps: &str| {
            let all = [("mon", caps), ("osd", "profile rbd")];
            Reading::Known(Granted(all.map(|(service, caps)| (service.to_owned(), caps.to_owned())).into()))
        };
        (self.locker == Locker::Dead).then(|| match self.caps {
            Caps::May => mon("profile rbd"),
            Caps::MayNot => mon("allow r"),
            Caps::UnreadMay | Caps::UnreadMayNot => unknown(),
        })
    }

    fn paint_kernel(&self, survey: &mut Survey) {
        let kernel = &mut survey.node.kernel;
        let old = Features(0x87);
        kernel.supported = Reading::Known(if self.old_kernel { old } else { Features(0x1bf) });
        kernel.version = if self.old_kernel { (4, 15) } else { (6, 14) };
        let busy = matches!(self.mapped, Mapped::Busy | Mapped::DeadAndBusy | Mapped::StrangerAndBusy);
        // While the shared client is dead, what is mapped well has one of its own.
        let mapping = match self.neighbour {
            _ if self.client_is_dead() => &DEAD_MAPPING,
            Neighbour::None | Neighbour::Other | Neighbour::OtherLeftover => &LIVE_MAPPING,
            _ => &LIVE_PRIVATE,
        };
        let mut mappings = self.neighbours(&mut survey.node.mapping_users);
        kernel.mappings = match self.mapped {
            Mapped::No => {
                kernel.mappings = Reading::Known(mappings.into());
                return;
            }
            Mapped::Unknown => unknown(),
            _ => {
                mappings.push(self.identified((*mapping).clone()));
                Reading::Known(mappings.into())
            }
        };
        survey.disks[0].linked_device = Some("rbd0".into());
        let holders = Reading::Known(if busy { vec![self.holder()] } else { Vec::new() });
        survey
            .node
            .mapping_users
            .insert(0, MappingUsers { holders, guests: BTreeMap::new(), locked: self.locked() });
    }

    /// What has the device open: for a moment, for as long as a guest runs, or until somebody takes it away.
    fn holder(&self) -> Holder {
        let device = || "rbd0".to_owned();
        let process = |guest| Process { pid: 1, command: "dd".into(), guest };
        match self.word(["passes", "guest's", "mounted", "swap", "built on"]).as_str() {
            "passes" => Holder::Process { device: device(), process: process(None) },
            "guest's" => Holder::Process { device: device(), process: process(Some(600)) },
            "mounted" => Holder::Mount { device: device(), at: "/mnt".into(), seen_by: None },
            "swap" => Holder::Swap { device: device() },
            _ => Holder::Block { device: "dm-3".into(), name: Some("vg-root".into()) },
        }
    }

    /// The mapping with the image that it is of.
    fn identified(&self, mapping: Mapping) -> Mapping {
        let image_id = match self.mapped {
            Mapped::NoId => None,
            Mapped::Stranger | Mapped::StrangerAndBusy => Some("2".to_owned()),
            _ => Some("1".to_owned()),
        };
        Mapping { image_id, read_only: Some(self.mapped == Mapped::ReadOnly), ..mapping }
    }

    /// Who is at the guest, as `commands::session` sees it: in a hook it is PVE that has called it.
    fn locked(&self) -> BTreeMap<u32, Reading<bool>> {
        let held = Reading::Known(self.mapped == Mapped::Held);
        if self.in_hook() { BTreeMap::new() } else { BTreeMap::from([(516, held)]) }
    }

    fn in_hook(&self) -> bool {
        matches!(self.context, Context::Hook | Context::AfterStop)
    }

    /// The image itself is not what the kernel has there.
    fn is_stranger(&self) -> bool {
        matches!(self.mapped, Mapped::Stranger | Mapped::StrangerAndBusy)
    }

    /// Nothing uses what is mapped there, and nobody is about to.
    fn can_be_let_go(&self) -> bool {
        match self.mapped {
            Mapped::Leftover | Mapped::Dead | Mapped::NoId | Mapped::ReadOnly | Mapped::Stranger => true,
            Mapped::Held => self.in_hook(),
            Mapped::No | Mapped::Busy | Mapped::DeadAndBusy | Mapped::Unknown | Mapped::StrangerAndBusy => {
                false
            }
        }
    }

    /// The other guest's mapping, and who uses it.
    fn neighbours(&self, users: &mut BTreeMap<u32, MappingUsers>) -> Vec<Mapping> {
        use Neighbour::{None, Other, OtherLeftover, Perhaps, Proven, Taken, TakenLeftover};
        let (client, options) = match self.neighbour {
            None => return Vec::new(),
            Taken | TakenLeftover => (OWN_DEAD, PLAIN),
            Other | OtherLeftover => (OWN_OTHER, "name=vms,rxbounce"),
            _ => (OWN_OTHER, "name=vms,warp"),
        };
        let running = Reading::Known(matches!(self.neighbour, Taken | Other | Perhaps | Proven));
        let guests = BTreeMap::from([(600, running)]);
        let locked = BTreeMap::new();
        users.insert(NEIGHBOUR, MappingUsers { holders: Reading::Known(Vec::new()), guests, locked });
        vec![mapping(NEIGHBOUR, "vm-600-disk-0", client, options)]
    }

    /// One of some words that are shown and never compared; each comes up in some states.
    fn word<const N: usize>(&self, words: [&str; N]) -> String {
        let number = self.features.0 + self.watchers as u64 + self.locker as u64 + self.mapped as u64;
        words[usize::try_from(number).unwrap() % N].to_owned()
    }

    fn paint_image(&self, facts: &mut ImageFacts) {
        let only_by_feature = |on: bool, feature| if on { feature } else { Features::NONE };
        facts.features = self.features
            | only_by_feature(self.migration == Migration::Feature, Features::MIGRATING)
            | only_by_feature(self.mirror == Mirror::NonPrimaryFeature, Features::NON_PRIMARY);
        let flags = |invalid| Flags { object_map_invalid: invalid, fast_diff_invalid: invalid };
        facts.flags = match self.map {
            Map::Valid => Reading::Known(flags(false)),
            Map::Invalid => Reading::Known(flags(true)),
            Map::Unknown => unknown(),
        };
        let own = if self.client_is_dead() { OWN_DEAD } else { OWN };
        facts.watchers = match self.watchers {
            Watchers::Nobody => Reading::Known(Vec::new()),
            Watchers::Own => Reading::Known(vec![watcher(own)]),
            Watchers::OwnAndOther => Reading::Known(vec![watcher(own), watcher(OTHER)]),
            Watchers::Other => Reading::Known(vec![watcher(OTHER)]),
            Watchers::Blocklisted => Reading::Known(vec![watcher(BLOCKLISTED)]),
            Watchers::Daemon | Watchers::PerhapsDaemon => Reading::Known(vec![watcher(DAEMON)]),
            Watchers::DaemonAndOther => Reading::Known(vec![watcher(DAEMON), watcher(OTHER)]),
            Watchers::Manager | Watchers::PerhapsManager => Reading::Known(vec![watcher(MANAGER)]),
            Watchers::ManagerAndOther => Reading::Known(vec![watcher(MANAGER), watcher(OTHER)]),
            Watchers::Unknown => unknown(),
        };
        let live = match self.watchers {
            Watchers::Own | Watchers::OwnAndOther => own,
            Watchers::Blocklisted => BLOCKLISTED,
            Watchers::Manager => MANAGER,
            _ => OTHER,
        };
        let internal = |lockers| Lock { tag: "internal".into(), exclusive: true, lockers };
        facts.lock = match self.locker {
            Locker::Nobody => Reading::Known(internal(vec![])),
            Locker::Live => Reading::Known(internal(vec![owner(live, &format!("auto {}", live.1 * 10))])),
            Locker::Dead => Reading::Known(internal(vec![owner(OTHER, "auto 99")])),
            Locker::ByHand => {
                Reading::Known(Lock { tag: String::new(), ..internal(vec![owner(OTHER, "backup")]) })
            }
            Locker::Unknown => unknown(),
        };
        let mirrored = |mode: &str, primary| {
            let state = self.word(["enabled", "disabling", "creating"]);
            Reading::Known(Some(Mirroring { mode: mode.into(), state, primary }))
        };
        facts.mirroring = match self.mirror {
            Mirror::No | Mirror::NonPrimaryFeature => Reading::Known(None),
            Mirror::Journal => mirrored("journal", true),
            Mirror::Snapshot => mirrored("snapshot", true),
            Mirror::NonPrimary => mirrored(&self.word(["snapshot", "journal"]), false),
            Mirror::Unknown => unknown(),
        };
        facts.migration = match self.migration {
            Migration::No | Migration::Feature => Reading::Known(None),
            Migration::UnderWay => {
                let states = ["preparing", "prepared", "executing", "executed", "aborting", "error"];
                Reading::Known(Some(self.word(states)))
            }
            Migration::Unknown => unknown(),
        };
    }

    fn client_is_dead(&self) -> bool {
        matches!(self.mapped, Mapped::Dead | Mapped::DeadAndBusy)
    }

    /// The kernel client that a plain map takes is dead.
    fn taken_is_dead(&self) -> bool {
        !matches!(self.neighbour, Neighbour::None | Neighbour::Other | Neighbour::OtherLeftover)
    }

    fn may_blocklist(&self) -> bool {
        matches!(self.caps, Caps::May | Caps::UnreadMay)
    }

    fn mirror_allows(&self) -> bool {
        matches!(self.mirror, Mirror::No | Mirror::Snapshot)
    }

    fn guest_allows(&self) -> bool {
        matches!(self.guest, Guest::Stopped | Guest::Backup)
    }

    /// Nobody has the image open, and nobody may have.
    fn idle(&self) -> bool {
        self.watchers == Watchers::Nobody && matches!(self.locker, Locker::Nobody | Locker::Dead)
    }

    /// By two looks, of which the second may be still to come.
    fn owner_is_gone(&self) -> bool {
        matches!(self.owner, Owner::Gone | Owner::FirstLook)
    }

    /// Nobody has it open but rbd-mirror, which keeps nobody from mapping it, or the manager, which may own its lock too.
    fn only_copied(&self) -> bool {
        match self.watchers {
            Watchers::Daemon => matches!(self.locker, Locker::Nobody | Locker::Dead),
            Watchers::Manager => matches!(self.locker, Locker::Nobody | Locker::Live),
            _ => false,
        }
    }

    /// What the rules of the design say of a change in this state; the reason if it is forbidden.
    pub fn breaks_a_rule(&self, change: &Change) -> Option<&'static str> {
        let rule = |broken: bool, name: &'static str| broken.then_some(name);
        let named = match change {
            Change::EnableFeatures { features } | Change::DisableFeatures { features } => *features,
            _ => Features::NONE,
        };
        // The map that the kernel refuses is to be stepped round, and no other.
        let steps_round =
            matches!(self.neighbour, Neighbour::Taken | Neighbour::Proven | Neighbour::ProvenLeftover);
        let by_kind = match change {
            Change::Unmap { device: NEIGHBOUR } => rule(
                self.neighbour != Neighbour::TakenLeftover,
                "unmap of another guest's disk that is in use, or for nothing",
            ),
            Change::Unmap { .. } => {
                rule(!self.can_be_let_go(), "rule 3: unmap of what is open, unknown or about to be opened")
            }
            Change::Map { noshare, .. } => rule(
                !((self.context.starts() || self.neighbour == Neighbour::Taken)
                    && self.krbd
                    && self.mapped == Mapped::No),
                "map that PVE would not make",
            )
            .or(rule(*noshare != steps_round, "a client of its own without need, or none in need")),
            _ => rule(
                self.mapped != Mapped::No && !self.is_stranger(),
                "rule 1: an image that a kernel has mapped",
            ),
        };
        let on_image = !matches!(change, Change::Unmap { .. });
        let own_unmap = matches!(change, Change::Unmap { device } if *device != NEIGHBOUR);
        let is_break = matches!(change, Change::BreakLock { .. });
        by_kind
            .or(rule(self.context == Context::MigrationTarget, "alive on another node"))
            .or(rule(!self.guest_allows(), "rule 5: a guest that is not ours to change"))
            .or(rule(
                on_image && !self.idle() && !(matches!(change, Change::Map { .. }) && self.only_copied()),
                "rule 1 or 6: an image that somebody uses, or may use",
            ))
            .or(rule(is_break && self.locker != Locker::Dead, "rule 2: a live lock"))
            .or(rule(
                on_image && self.locker == Locker::Dead && !self.owner_is_gone(),
                "rule 2: a client that may live",
            ))
            .or(rule(on_image && (self.migration != Migration::No || !self.mirror_allows()), "rule 4"))
            .or(rule(
                named.contains(Features::JOURNALING) && self.mirror != Mirror::No,
                "rule 4: a mirror's journal",
            ))
            .or(rule(
                named.intersects(Features::LAYERING | Features::STRIPING | Features::DATA_POOL),
                "an immutable feature",
            ))
            .or(rule(
                self.context == Context::Hook && self.before_hook && own_unmap && self.mapped != Mapped::Dead,
                "unmap of what PVE has mapped for this start",
            ))
    }

    /// The state after a change, and what is reported of it.
    pub fn after(self, action: &Action) -> (Self, ActionReport) {
        let done =
            |state: Self| (state, ActionReport::new(action.clone(), ActionResult::Done { duration_ms: 1 }));
        match &action.change {
            Change::BreakLock { .. } if !self.may_blocklist() => {
                let failed = ActionResult::Failed { errno: Some(13), message: "Permission denied".into() };
                (self, ActionReport::new(action.clone(), failed))
            }
            Change::BreakLock { .. } => done(self.changed(|image| image.break_lock())),
            Change::DisableFeatures { features } => done(self.changed(|image| image.disable(*features))),
            Change::EnableFeatures { features } => done(self.changed(|image| image.enable(*features))),
            Change::RebuildObjectMap { .. } => done(self.changed(|image| image.rebuild(None))),
            Change::Unmap { device: NEIGHBOUR } => done(Self { neighbour: Neighbour::None, ..self }),
            Change::Unmap { .. } => done(self.unmapped()),
            Change::Map { noshare: false, .. } if self.taken_is_dead() => {
                let told = match self.neighbour {
                    Neighbour::Perhaps => Neighbour::Proven,
                    Neighbour::PerhapsLeftover => Neighbour::ProvenLeftover,
                    other => other,
                };
                let failed = ActionResult::Failed { errno: Some(108), message: "shutdown".into() };
                (Self { neighbour: told, ..self }, ActionReport::new(action.clone(), failed))
            }
            Change::Map { .. } => done(Self { mapped: Mapped::Leftover, watchers: Watchers::Own, ..self }),
        }
    }

    /// The kernel gives its watch and its lock back; on the blocklist it can give back neither, but has no watch for long.
    fn unmapped(self) -> Self {
        if self.is_stranger() {
            return Self { mapped: Mapped::No, ..self };
        }
        let had_watch = matches!(self.watchers, Watchers::Own | Watchers::OwnAndOther);
        let watchers = match self.watchers {
            Watchers::Own => Watchers::Nobody,
            Watchers::OwnAndOther => Watchers::Other,
            others => others,
        };
        let locker = match self.locker {
            Locker::Live if had_watch && self.client_is_dead() => Locker::Dead,
            Locker::Live if had_watch => Locker::Nobody,
            other => other,
        };
        Self { mapped: Mapped::No, watchers, locker, ..self }
    }

    /// The state after a change that Ceph must take as it is.
    fn changed(self, change: impl FnOnce(&mut Image) -> i32) -> Self {
        let (features, locker) = (self.features, self.locker);
        let mut image = Image { map_invalid: self.map == Map::Invalid, locker, ..Image::new(features) };
        assert_eq!(change(&mut image), OK, "{self:?}");
        let map = match self.map {
            Map::Unknown => Map::Unknown,
            _ if image.map_invalid => Map::Invalid,
            _ => Map::Valid,
        };
        Self { features: image.features, map, locker: image.locker, ..self }
    }

    /// By the design, a guest in this state can be made ready without a person.
    pub fn can_be_made_ready(&self) -> bool {
        let journal_stops =
            self.krbd && self.features.contains(Features::JOURNALING) && self.mirror != Mirror::No;
        let let_go = if self.can_be_let_go() { self.unmapped() } else { *self };
        // PVE gives every krbd disk exclusive-lock, and then the lock counts.
        let lock_counts = self.features.contains(Features::EXCLUSIVE_LOCK) || (self.krbd && !self.old_kernel);
        let lock_stops = let_go.locker == Locker::Dead && lock_counts && !self.may_blocklist();
        // In the hook before a start PVE has mapped it already, and nothing more can be done to it, unless it is dead.
        let too_late = self.context == Context::Hook
            && self.before_hook
            && !matches!(self.mapped, Mapped::No | Mapped::Dead);
        // By hand Proxmox VE has still to look at the lock itself.
        let by_hand = matches!(self.context, Context::ByHand | Context::Start | Context::LastTry);
        self.context != Context::MigrationTarget
            && self.guest_allows()
            && !(by_hand && self.guest == Guest::Backup)
            && let_go.mapped == Mapped::No
            && let_go.idle()
            && (let_go.locker != Locker::Dead || self.owner_is_gone())
            && !lock_stops
            && self.mirror_allows()
            && self.migration == Migration::No
            && self.map != Map::Unknown
            && !journal_stops
            && !too_late
    }
}
