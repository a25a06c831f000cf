//! The whole decision space: `diagnose` and `plan` over every state of a small model of an image and its world.
//!
//! In every state no safety rule of the design is broken, every plan leads to a state that needs no plan, every state
//! that can be made ready becomes ready, and every blocker says what it is and what mends it. What a change does to a
//! state is written down in [`State::after`]; for features, flags and locks that is `tests/common/model.rs`, which
//! `tests/sequences.rs` compares with a real Ceph.
#![allow(clippy::unwrap_used)] // a helper that fails must fail the test

#[allow(dead_code)] // only a part is used here
#[path = "common/model.rs"]
mod model;

use model::{Image, Locker, OK};
use rbd_preflight::action::{Action, ActionReport, ActionResult, Change};
use rbd_preflight::ceph::caps::Caps;
use rbd_preflight::ceph::features::Features;
use rbd_preflight::ceph::image::{
    Flags, ImageFacts, ImageReading, Lock, Locker as Locker_, Mirroring, Watcher,
};
use rbd_preflight::diagnose::code::Severity;
use rbd_preflight::diagnose::diagnose;
use rbd_preflight::diagnose::finding::{Finding, RemedyKind};
use rbd_preflight::kernel::Mapping;
use rbd_preflight::kernel::holders::{Holder, Process};
use rbd_preflight::plan::plan;
use rbd_preflight::policy::Policy;
use rbd_preflight::pve::guest::Access;
use rbd_preflight::reading::{Failure, Reading};
use rbd_preflight::settings::Settings;
use rbd_preflight::survey::{MappingUsers, Survey};
use rbd_preflight::verdict::{Verdict, verdict};
use serde_json::json;
use std::collections::BTreeMap;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Watchers {
    Nobody,
    Other,
    Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mirror {
    No,
    Journal,
    Snapshot,
    NonPrimary,
    Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mapped {
    No,
    Leftover,
    Busy,
    /// Through a kernel client on the blocklist.
    Dead,
    DeadAndBusy,
    Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Guest {
    Stopped,
    Running,
    Elsewhere,
    Locked,
    NoQuorum,
    Template,
    Unknown,
}

/// One state of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    features: Features,
    map_invalid: bool,
    locker: Locker,
    watchers: Watchers,
    mirror: Mirror,
    migrating: bool,
    old_kernel: bool,
    krbd: bool,
    mapped: Mapped,
    guest: Guest,
    may_blocklist: bool,
    /// The guest is about to start, and its krbd disks are to be mapped.
    starting: bool,
}

const EXCLUSIVE: Features = Features::EXCLUSIVE_LOCK;
const MAP: Features = Features(Features::OBJECT_MAP.0 | Features::FAST_DIFF.0);

/// The feature sets that Ceph lets one create, as far as they differ for the rules.
fn feature_sets() -> Vec<Features> {
    let base = Features::LAYERING;
    let mut sets = vec![base];
    for map in [false, true] {
        for journal in [false, true] {
            for flatten in [false, true] {
                let pick = |on: bool, set: Features| if on { set } else { Features::NONE };
                sets.push(
                    base | EXCLUSIVE
                        | pick(map, MAP)
                        | pick(journal, Features::JOURNALING)
                        | pick(flatten, Features::DEEP_FLATTEN),
                );
            }
        }
    }
    sets
}

/// Every state. What cannot matter is not varied: the kernel's doings for a disk that QEMU opens, the right to blocklist
/// where no lock is to be broken.
fn all_states() -> Vec<State> {
    use Guest::{Elsewhere, Locked, NoQuorum, Running, Stopped, Template};
    let bools = [false, true];
    let mapped_states =
        [Mapped::No, Mapped::Leftover, Mapped::Busy, Mapped::Dead, Mapped::DeadAndBusy, Mapped::Unknown];
    let mut states = Vec::new();
    for features in feature_sets() {
        for map_invalid in bools.into_iter().filter(|on| !on || features.contains(Features::OBJECT_MAP)) {
            for locker in [Locker::Nobody, Locker::Live, Locker::Dead, Locker::ByHand, Locker::Unknown] {
                for may_blocklist in bools.into_iter().filter(|may| *may || locker == Locker::Dead) {
                    for watchers in [Watchers::Nobody, Watchers::Other, Watchers::Unknown] {
                        for mirror in [
                            Mirror::No,
                            Mirror::Journal,
                            Mirror::Snapshot,
                            Mirror::NonPrimary,
                            Mirror::Unknown,
                        ] {
                            for guest in
                                [Stopped, Running, Elsewhere, Locked, NoQuorum, Template, Guest::Unknown]
                            {
                                for migrating in bools {
                                    let state = State {
                                        features,
                                        map_invalid,
                                        locker,
                                        watchers,
                                        mirror,
                                        migrating,
                                        guest,
                                        may_blocklist,
                                        old_kernel: false,
                                        krbd: false,
                                        mapped: Mapped::No,
                                        starting: false,
                                    };
                                    states.push(state);
                                    for mapped in mapped_states {
                                        for (old_kernel, starting) in
                                            [(false, false), (false, true), (true, false), (true, true)]
                                        {
                                            states.push(State {
                                                krbd: true,
                                                mapped,
                                                old_kernel,
                                                starting,
                                                ..state
                                            });
                                        }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
    states
}

/// A disk of a guest that can start, to be varied.
fn base() -> Survey {
    serde_json::from_value(json!({
        "schema": 1, "taken_at": 0,
        "node": {
            "name": "pve1", "quorate": { "known": true }, "running": { "known": false },
            "kernel": { "release": "6.14.8-2-pve", "version": [6, 14], "module_loaded": true,
                        "supported": { "known": [] }, "mappings": { "known": [] } },
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
            "blocklist": { "known": [{ "address": "10.0.0.1:0/5", "until": "later", "range": false }] },
            "default_features": { "known": [] }, "blocklist_expire_seconds": { "known": 0 },
        } }],
        "disks": [{
            "key": "scsi0", "volid": "ceph:vm-516-disk-0", "storage": "ceph", "pool": "rbd", "namespace": null,
            "image": "vm-516-disk-0", "krbd_storage": true, "access": "krbd", "role": "disk", "pve_drops": null,
            "shared_with": [],
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
}

fn unknown<T>() -> Reading<T> {
    Reading::Unknown(Failure::errno("read it", 5))
}

impl State {
    /// What is seen of the state.
    fn survey(&self, base: &Survey, history: &[ActionReport]) -> Survey {
        let mut survey = base.clone();
        survey.history = history.to_vec();
        self.paint_guest(&mut survey);
        self.paint_kernel(&mut survey);
        let caps = if self.may_blocklist { "profile rbd" } else { "allow r" };
        let caps = Caps(BTreeMap::from([("mon".to_owned(), caps.to_owned())]));
        survey.storages.get_mut("ceph").unwrap().caps =
            (self.locker == Locker::Dead).then_some(Reading::Known(caps));
        survey.disks[0].disk.access = if self.krbd { Access::Krbd } else { Access::Librbd };
        let Some(ImageReading::Found(facts)) = &mut survey.disks[0].reading else { panic!() };
        self.paint_image(facts);
        survey
    }

    fn paint_guest(&self, survey: &mut Survey) {
        match self.guest {
            Guest::Stopped => {}
            Guest::Running => survey.node.running = Reading::Known(true),
            Guest::Elsewhere => survey.guest.node = "pve2".into(),
            Guest::Locked => survey.guest.lock = Some("snapshot".into()),
            Guest::NoQuorum => survey.node.quorate = Reading::Known(false),
            Guest::Template => survey.guest.template = true,
            Guest::Unknown => survey.node.running = unknown(),
        }
    }

    fn paint_kernel(&self, survey: &mut Survey) {
        let kernel = &mut survey.node.kernel;
        let old = Features(0x87);
        kernel.supported = Reading::Known(if self.old_kernel { old } else { Features::KRBD_5_3 });
        kernel.version = if self.old_kernel { (4, 15) } else { (6, 14) };
        let dead = matches!(self.mapped, Mapped::Dead | Mapped::DeadAndBusy);
        let busy = matches!(self.mapped, Mapped::Busy | Mapped::DeadAndBusy);
        let address = if dead { "10.0.0.1:0/5" } else { "10.0.0.1:0/6" };
        kernel.mappings = match self.mapped {
            Mapped::No => return,
            Mapped::Unknown => unknown(),
            _ => Reading::Known(vec![mapping(address)].into()),
        };
        survey.disks[0].linked_device = Some("rbd0".into());
        let process = Process { pid: 1, command: "dd".into(), guest: None };
        let holder = Holder::Process { device: "rbd0".into(), process };
        let holders = Reading::Known(if busy { vec![holder] } else { Vec::new() });
        survey.node.mapping_users.insert(0, MappingUsers { holders, guests: BTreeMap::new() });
    }

    fn paint_image(&self, facts: &mut ImageFacts) {
        facts.features = self.features;
        facts.flags = Reading::Known(Flags {
            object_map_invalid: self.map_invalid,
            fast_diff_invalid: self.map_invalid,
        });
        let other = Watcher { address: "10.0.0.2:0/7".into(), client: 7, cookie: 70 };
        let locker = |cookie: &str| Locker_ {
            client: "client.7".into(),
            cookie: cookie.into(),
            address: "10.0.0.2:0/7".into(),
        };
        let internal = |lockers| Lock { tag: "internal".into(), exclusive: true, lockers };
        facts.lock = match self.locker {
            Locker::Nobody => Reading::Known(internal(vec![])),
            Locker::Live => Reading::Known(internal(vec![locker("auto 70")])),
            Locker::Dead => Reading::Known(internal(vec![locker("auto 99")])),
            Locker::ByHand => Reading::Known(Lock { tag: String::new(), ..internal(vec![locker("backup")]) }),
            Locker::Unknown => unknown(),
        };
        facts.watchers = match self.watchers {
            Watchers::Unknown => unknown(),
            Watchers::Other => Reading::Known(vec![other]),
            Watchers::Nobody if self.locker == Locker::Live => Reading::Known(vec![other]),
            Watchers::Nobody => Reading::Known(Vec::new()),
        };
        let mirrored = |mode: &str, primary| {
            Reading::Known(Some(Mirroring { mode: mode.into(), state: "enabled".into(), primary }))
        };
        facts.mirroring = match self.mirror {
            Mirror::No => Reading::Known(None),
            Mirror::Journal => mirrored("journal", true),
            Mirror::Snapshot => mirrored("snapshot", true),
            Mirror::NonPrimary => mirrored("snapshot", false),
            Mirror::Unknown => unknown(),
        };
        facts.migration = Reading::Known(self.migrating.then(|| "prepared".to_owned()));
    }

    /// Nobody has the image open, and nobody may have.
    fn idle(&self) -> bool {
        self.watchers == Watchers::Nobody && matches!(self.locker, Locker::Nobody | Locker::Dead)
    }

    /// What the rules of the design say of a change in this state; the reason if it is forbidden.
    fn breaks_a_rule(&self, change: &Change) -> Option<&'static str> {
        let rule = |broken: bool, name: &'static str| broken.then_some(name);
        let named = match change {
            Change::EnableFeatures { features } | Change::DisableFeatures { features } => *features,
            _ => Features::NONE,
        };
        let by_kind = match change {
            Change::Unmap { .. } => rule(
                !matches!(self.mapped, Mapped::Leftover | Mapped::Dead),
                "unmap of what is open or unknown",
            ),
            Change::Map { .. } => rule(
                !(self.starting && self.krbd && self.mapped == Mapped::No),
                "map that PVE would not make",
            ),
            _ => rule(self.mapped != Mapped::No, "rule 1: an image that a kernel has mapped"),
        };
        let on_image = !matches!(change, Change::Unmap { .. });
        by_kind
            .or(rule(self.guest != Guest::Stopped, "rule 5: a guest that is not ours to change"))
            .or(rule(on_image && !self.idle(), "rule 1 or 6: an image that somebody uses, or may use"))
            .or(rule(
                matches!(change, Change::BreakLock { .. }) && self.locker != Locker::Dead,
                "rule 2: a live lock",
            ))
            .or(rule(
                on_image && (self.migrating || !matches!(self.mirror, Mirror::No | Mirror::Snapshot)),
                "rule 4",
            ))
            .or(rule(
                named.contains(Features::JOURNALING) && self.mirror != Mirror::No,
                "rule 4: a mirror's journal",
            ))
            .or(rule(
                named.intersects(Features::LAYERING | Features::STRIPING | Features::DATA_POOL),
                "an immutable feature",
            ))
    }

    /// The state after a change, and what is reported of it.
    fn after(self, action: &Action) -> (Self, ActionReport) {
        let done =
            |state: Self| (state, ActionReport::new(action.clone(), ActionResult::Done { duration_ms: 1 }));
        match &action.change {
            Change::BreakLock { .. } if !self.may_blocklist => {
                let failed = ActionResult::Failed { errno: Some(13), message: "Permission denied".into() };
                (self, ActionReport::new(action.clone(), failed))
            }
            Change::BreakLock { .. } => done(self.changed(|image| image.break_lock())),
            Change::DisableFeatures { features } => done(self.changed(|image| image.disable(*features))),
            Change::EnableFeatures { features } => done(self.changed(|image| image.enable(*features))),
            Change::RebuildObjectMap { .. } => done(self.changed(|image| image.rebuild(None))),
            Change::Unmap { .. } => done(Self { mapped: Mapped::No, ..self }),
            Change::Map { .. } => done(Self { mapped: Mapped::Leftover, ..self }),
        }
    }

    /// The state after a change that Ceph must take as it is.
    fn changed(self, change: impl FnOnce(&mut Image) -> i32) -> Self {
        let (features, map_invalid, locker) = (self.features, self.map_invalid, self.locker);
        let mut image = Image { map_invalid, locker, ..Image::new(features) };
        assert_eq!(change(&mut image), OK, "{self:?}");
        Self { features: image.features, map_invalid: image.map_invalid, locker: image.locker, ..self }
    }

    /// By the design, a guest in this state can be made ready without a person.
    fn can_be_made_ready(&self) -> bool {
        let journal_stops =
            self.krbd && self.features.contains(Features::JOURNALING) && self.mirror != Mirror::No;
        // PVE gives every krbd disk exclusive-lock, and then the lock counts.
        let lock_counts = self.features.contains(EXCLUSIVE) || (self.krbd && !self.old_kernel);
        let lock_stops = self.locker == Locker::Dead && lock_counts && !self.may_blocklist;
        self.guest == Guest::Stopped
            && self.idle()
            && !lock_stops
            && matches!(self.mirror, Mirror::No | Mirror::Snapshot)
            && !self.migrating
            && matches!(self.mapped, Mapped::No | Mapped::Leftover | Mapped::Dead)
            && !journal_stops
    }
}

fn mapping(address: &str) -> Mapping {
    serde_json::from_value(json!({
        "id": 0, "pool": "rbd", "namespace": null, "image": "vm-516-disk-0", "snapshot": null, "fsid": "f",
        "client_address": address, "client": 5,
    }))
    .unwrap()
}

/// Every finding of a survey says what it is, and what stops a start says what mends it.
fn assert_told(state: &State, findings: &[Finding]) {
    for finding in findings {
        assert!(!finding.summary.is_empty(), "{state:?}: {finding:?}");
        let stops = finding.severity >= Severity::Blocker;
        assert!(!stops || !finding.remedy.text.is_empty(), "{state:?}: {finding:?}");
        let automatic = finding.remedy.kind == RemedyKind::Automatic;
        assert_eq!(automatic, !finding.remedy.actions.is_empty(), "{state:?}: {finding:?}");
    }
}

/// Plans and makes changes until nothing is planned; returns how many plans it took.
fn settle(start: State, base: &Survey, policy: &Policy) -> usize {
    let (mut state, mut history) = (start, Vec::new());
    for round in 0..6 {
        let survey = state.survey(base, &history);
        let findings = diagnose(&survey, policy);
        assert_told(&state, &findings);
        let actions = plan(&findings, policy);
        if actions.is_empty() {
            let end = verdict(&findings);
            assert!(
                !start.can_be_made_ready() || end == Verdict::Ready,
                "{start:?} ends as {end}: {state:?} {findings:?}"
            );
            return round;
        }
        for action in &actions {
            let broken = state.breaks_a_rule(&action.change);
            assert!(
                broken.is_none(),
                "{}: {:?} in {state:?} (from {start:?})",
                broken.unwrap_or_default(),
                action.change
            );
            let (next, report) = state.after(action);
            let failed = !report.done();
            (state, history) = (next, [history, vec![report]].concat());
            if failed {
                break;
            }
        }
    }
    panic!("{start:?} never settles: {state:?} {history:?}");
}

#[test]
fn no_state_breaks_a_rule_and_every_state_settles() {
    let (base, states) = (base(), all_states());
    let ordinary = Policy::new(Settings::default().for_guest(516, ["ceph"]));
    let starting = Policy { map: true, ..ordinary.clone() };
    let halves = states.chunks(states.len().div_ceil(2));
    let plans: usize = std::thread::scope(|scope| {
        let see = |half: &[State]| -> usize {
            let policy = |state: &State| if state.starting { &starting } else { &ordinary };
            half.iter().map(|state| settle(*state, &base, policy(state))).sum()
        };
        let threads: Vec<_> = halves.map(|half| scope.spawn(move || see(half))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    println!("{} states, {plans} plans", states.len());
    assert!(states.len() > 300_000, "{}", states.len());
}
