//! The whole decision space: `diagnose` and `plan` over every state of a small model of an image and its world.
//!
//! In every state no safety rule of the design is broken, every plan leads to a state that needs no plan, every state
//! that can be made ready becomes ready, and every blocker says what it is and what fixes it. What a state is, and what a
//! change does to it, is in `tests/common/state.rs`; for features, flags and locks that is `tests/common/model.rs`, which
//! `tests/ceph/sequences.rs` compares with a real Ceph.
//!
//! `RBD_PREFLIGHT_SPACE=N` goes through every combination for each N-th image, 13 million for all of them; without it those
//! are left out that [`states_of`] says why.
#![allow(clippy::unwrap_used)] // a helper that fails must fail the test

#[allow(dead_code)] // only a part is used here
#[path = "common/model.rs"]
mod model;
#[path = "common/state.rs"]
mod state;

use model::Locker;
use rbd_preflight::ceph::image::ImageReading;
use rbd_preflight::diagnose::diagnose;
use rbd_preflight::diagnose::finding::{Finding, RemedyKind};
use rbd_preflight::diagnose::stops::is_sure;
use rbd_preflight::diagnose::verdict::{Verdict, stops_start, verdict};
use rbd_preflight::finding_codes::{Code, Severity};
use rbd_preflight::observe::survey::Survey;
use rbd_preflight::plan::order::plan;
use rbd_preflight::pve::guest::Access;
use rbd_preflight::rbd::action::{Action, ActionReport, ActionResult, Change, Target};
use rbd_preflight::rbd::features::Features;
use rbd_preflight::reading::Reading;
use rbd_preflight::settings::policy::Policy;
use serde_json::json;
use state::{Caps, Context, Guest, Map, Mapped, Migration, Mirror, Neighbour, Owner, State, Watchers};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const CONTEXTS: [Context; 6] = [
    Context::ByHand,
    Context::Hook,
    Context::MigrationTarget,
    Context::AfterStop,
    Context::Start,
    Context::LastTry,
];

/// What `rbd_default_features` 61 gives an image.
const DEFAULT: Features = Features(0x3d);

const MAPPED: [Mapped; 6] =
    [Mapped::No, Mapped::Leftover, Mapped::Busy, Mapped::Dead, Mapped::DeadAndBusy, Mapped::Unknown];

/// What is mapped there that is not the image as it should be, or is about to be opened. Looked at where nobody else's
/// watch decides.
const ODDLY_MAPPED: [Mapped; 5] =
    [Mapped::NoId, Mapped::ReadOnly, Mapped::Held, Mapped::Stranger, Mapped::StrangerAndBusy];

/// What else than `Gone` is known of the owner of a lock that does not watch the image.
const LIVES: [Owner; 4] = [Owner::FirstLook, Owner::Elsewhere, Owner::Unknown, Owner::NotLooked];

/// Each state once with each value.
fn vary<T: Copy>(states: &[State], values: &[T], set: impl Fn(&mut State, T)) -> Vec<State> {
    let one = |state: &State, value: T| {
        let mut state = *state;
        set(&mut state, value);
        state
    };
    states
        .iter()
        .flat_map(|state| values.iter().map(move |value| (state, *value)))
        .map(|(s, v)| one(s, v))
        .collect()
}

/// The feature sets that Ceph lets one create, as far as they differ for the rules, and what is said of their maps.
fn feature_sets() -> Vec<(Features, Map)> {
    let base = Features::LAYERING;
    let object_map = Features::OBJECT_MAP | Features::FAST_DIFF;
    let mut sets = vec![(base, Map::Valid)];
    for journal in [Features::NONE, Features::JOURNALING] {
        for flatten in [Features::NONE, Features::DEEP_FLATTEN] {
            let plain = base | Features::EXCLUSIVE_LOCK | journal | flatten;
            sets.extend([
                (plain, Map::Valid),
                (plain | object_map, Map::Valid),
                (plain | object_map, Map::Invalid),
            ]);
        }
    }
    // Flags that are not known are looked at by themselves alone.
    sets.push((DEFAULT, Map::Unknown));
    sets
}

/// Every image and who is at it, of a guest that may be changed, by hand, without a kernel.
fn images() -> Vec<State> {
    use Watchers::{
        Blocklisted, Daemon, DaemonAndOther, Manager, ManagerAndOther, Nobody, Other, Own, OwnAndOther,
        PerhapsDaemon, PerhapsManager, Unknown,
    };
    let any = [Nobody, Own, OwnAndOther, Other, Blocklisted, Unknown, Daemon, DaemonAndOther, PerhapsDaemon];
    // Where the lock alone decides it does not matter who is beside a daemon.
    let fewer = &any[..7];
    let plain = State {
        features: Features::NONE,
        map: Map::Valid,
        locker: Locker::Nobody,
        watchers: Nobody,
        owner: Owner::Gone,
        caps: Caps::May,
        mirror: Mirror::No,
        migration: Migration::No,
        guest: Guest::Stopped,
        krbd: false,
        old_kernel: false,
        mapped: Mapped::No,
        neighbour: Neighbour::None,
        before_hook: false,
        context: Context::ByHand,
    };
    let sets = vary(&[plain], &feature_sets(), |s, (features, map)| (s.features, s.map) = (features, map));
    let watched = |locker, watchers: &[Watchers]| {
        vary(&vary(&sets, &[locker], |s, locker| s.locker = locker), watchers, |s, w| s.watchers = w)
    };
    let dead = watched(Locker::Dead, &any);
    // The right to blocklist counts where a lock may have to be broken, once the kernel's own watch is gone.
    let may_break: Vec<State> =
        dead.iter().copied().filter(|state| matches!(state.watchers, Nobody | Own)).collect();
    [
        watched(Locker::Nobody, &any),
        // A live owner is one that is seen to watch.
        watched(Locker::Live, &[Own, OwnAndOther, Other, Blocklisted, Manager]),
        watched(Locker::Nobody, &[Manager, ManagerAndOther, PerhapsManager]),
        watched(Locker::ByHand, fewer),
        watched(Locker::Unknown, fewer),
        vary(&may_break, &[Caps::MayNot, Caps::UnreadMay, Caps::UnreadMayNot], |s, caps| s.caps = caps),
        vary(&may_break, &LIVES, |s, owner| s.owner = owner),
        dead,
    ]
    .concat()
}

/// An image in every place that it can be opened from, in every context. Kernels differ for what they open; only a disk
/// that they open is mapped for a start, so that `start` is `by hand` for any other.
fn everywhere(image: State) -> Vec<State> {
    let told = matches!(image.watchers, Watchers::Nobody | Watchers::Own) && image.caps == Caps::May;
    let odd: &[Mapped] = if told { &ODDLY_MAPPED } else { &[] };
    let mapped = vary(&[image], &[&MAPPED, odd].concat(), |s, mapped| s.mapped = mapped);
    let librbd: Vec<Context> = CONTEXTS.into_iter().filter(|c| *c != Context::Start).collect();
    let before = [Context::Hook, Context::AfterStop].map(|context| (context, true));
    let contexts: Vec<(Context, bool)> =
        CONTEXTS.map(|context| (context, false)).into_iter().chain(before).collect();
    let krbd = vary(&mapped, &[false, true], |s, old| (s.krbd, s.old_kernel) = (true, old));
    [
        vary(&mapped, &librbd, |s, context| s.context = context),
        vary(&krbd, &contexts, |s, (context, before)| (s.context, s.before_hook) = (context, before)),
    ]
    .concat()
}

/// An image of which nothing may be changed, in the places and contexts that are told apart for such a one: what is left
/// is to unmap it.
fn where_it_matters(image: State) -> Vec<State> {
    let krbd = State { krbd: true, ..image };
    let contexts = [Context::ByHand, Context::Hook, Context::AfterStop, Context::MigrationTarget];
    let krbd = vary(&vary(&[krbd], &MAPPED, |s, mapped| s.mapped = mapped), &contexts, |s, c| s.context = c);
    [vec![image, State { context: Context::AfterStop, ..image }], krbd].concat()
}

/// The reasons for which nothing may be changed, the first value of each being none; mirroring by snapshots is none
/// either.
const GUESTS: [Guest; 9] = [
    Guest::Stopped,
    Guest::Backup,
    Guest::Running,
    Guest::Elsewhere,
    Guest::Locked,
    Guest::NoQuorum,
    Guest::QuorumUnknown,
    Guest::Template,
    Guest::Unknown,
];
const MIRRORS: [Mirror; 6] = [
    Mirror::No,
    Mirror::Snapshot,
    Mirror::Journal,
    Mirror::NonPrimary,
    Mirror::NonPrimaryFeature,
    Mirror::Unknown,
];
const MIGRATIONS: [Migration; 4] =
    [Migration::No, Migration::UnderWay, Migration::Feature, Migration::Unknown];

/// All states of an image. Guest, mirroring and migration are looked at in all combinations, but unless `whole`
///
/// - everywhere only without a reason against changes, where plans are made;
/// - with a reason where it matters: each gives its own answer, before anything else is asked (`diagnose::gate`), and what
///   else there is, is only told;
/// - with more than one on the image that needs most: the first alone decides.
fn states_of(image: State, whole: bool) -> Vec<State> {
    let guests = vary(&[image], &GUESTS, |s, guest| s.guest = guest);
    let mirrors = vary(&guests, &MIRRORS, |s, mirror| s.mirror = mirror);
    let all = vary(&mirrors, &MIGRATIONS, |s, migration| s.migration = migration);
    let needs_most = image.map == Map::Invalid && image.features == DEFAULT;
    let places = |state: &State| {
        let reasons =
            [state.guest != Guest::Stopped, state.mirror != Mirror::No, state.migration != Migration::No];
        match reasons.iter().filter(|reason| **reason).count() {
            _ if whole => everywhere(*state),
            0 => everywhere(*state),
            1 if state.mirror == Mirror::Snapshot => everywhere(*state),
            1 => where_it_matters(*state),
            _ if needs_most => where_it_matters(*state),
            _ => Vec::new(),
        }
    };
    all.iter().flat_map(places).collect()
}

/// Every finding of a survey says what it is, and what stops a start says what fixes it.
fn assert_told(state: &State, findings: &[Finding]) {
    for finding in findings {
        assert!(!finding.summary.is_empty(), "{state:?}: {finding:?}");
        let stops = finding.severity >= Severity::Blocker;
        // What would stop a start rests on what was read; nothing had to be held back for that.
        let held_back = finding.severity == Severity::Unknown && finding.code.severity() > Severity::Unknown;
        assert!(!held_back, "{state:?}: {finding:?}");
        assert!(!stops || !finding.remedy.text.is_empty(), "{state:?}: {finding:?}");
        let automatic = finding.remedy.kind == RemedyKind::Automatic;
        assert_eq!(automatic, !finding.remedy.actions.is_empty(), "{state:?}: {finding:?}");
        assert!(!automatic || state.context != Context::MigrationTarget, "{state:?}: {finding:?}");
    }
}

/// A start that will be refused as things stand changes no image. What is left over may be unmapped: it may be what the
/// refusal is for, or what it waits for.
fn assert_no_image_changed_for_a_refused_start(policy: &Policy, findings: &[Finding], planned: &[Action]) {
    let stops = |f: &Finding| f.severity >= Severity::Blocker && f.remedy.kind != RemedyKind::Automatic;
    if policy.starting && findings.iter().any(stops) {
        let lets_go = |action: &Action| matches!(action.change, Change::Unmap { .. });
        assert!(planned.iter().all(lets_go), "{planned:?} though {findings:?}");
    }
}

/// Plans and makes changes until nothing is planned: where that ends, as what, and how many plans it took.
fn settle(start: State, policy: &Policy) -> (State, Verdict, usize) {
    let (mut state, mut history) = (start, Vec::new());
    for round in 0..6 {
        let survey = state.survey(&history);
        let findings = diagnose(&survey, policy);
        assert_told(&state, &findings);
        let mut actions = plan(&findings, policy);
        assert_no_image_changed_for_a_refused_start(policy, &findings, &actions);
        if actions.is_empty() {
            return (state, verdict(&findings), round);
        }
        // As `act` does: unmaps come first, maps last.
        actions.sort_by_key(|action| (action.is_map(), !action.is_kernels()));
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

/// Settles a state, which must end ready if it can; how many plans that took.
fn see(start: State, policies: &[Policy]) -> usize {
    let policy = |context: Context| &policies[context as usize];
    let (end, verdict, plans) = settle(start, policy(start.context));
    if !start.can_be_made_ready() {
        return plans;
    }
    // After a stop the rest is left to the hook before the next start, except for what that would come too late for.
    let (end, verdict, more) = if start.context == Context::AfterStop && !start.before_hook {
        settle(State { context: Context::Hook, ..end }, policy(Context::Hook))
    } else {
        (end, verdict, 0)
    };
    assert_eq!(verdict, Verdict::Ready, "{start:?} ends in {end:?}");
    plans + more
}

#[test]
fn no_state_breaks_a_rule_and_every_state_settles() {
    let each: Option<usize> = std::env::var("RBD_PREFLIGHT_SPACE").ok().map(|n| n.parse().unwrap());
    let images: Vec<State> = images().into_iter().step_by(each.unwrap_or(1)).collect();
    let policies = CONTEXTS.map(Context::policy);
    let (next, seen, plans) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(image) = images.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let states = states_of(*image, each.is_some());
                    seen.fetch_add(states.len(), Ordering::Relaxed);
                    let made: usize = states.iter().map(|state| see(*state, &policies)).sum();
                    plans.fetch_add(made, Ordering::Relaxed);
                }
            });
        }
    });
    let seen = seen.into_inner();
    println!("{seen} states of {} images, {} plans", images.len(), plans.into_inner());
    assert!(seen > 400_000 || each.is_some(), "{seen}");
}

/// The survey with another image of the disk's name: in a second cluster, where it is a disk of the guest too, and another
/// guest runs on it; or one that had the name before. This run has done all that is planned on that one, and has failed.
fn with_twin(survey: &Survey, fsid: &str, id: &str, planned: &[Action]) -> Survey {
    let mut survey = survey.clone();
    for action in planned {
        let target = Target { fsid: fsid.into(), id: Some(id.into()), ..action.target.clone() };
        let action = Action { target, ..action.clone() };
        let failed = ActionResult::Failed { errno: Some(13), message: "no".into() };
        let done = ActionResult::Done { duration_ms: 1 };
        survey.history.extend([failed, done].map(|result| ActionReport::new(action.clone(), result)));
    }
    if fsid != "f" {
        let mut cluster = survey.clusters[0].clone();
        if let Reading::Known(facts) = &mut cluster {
            facts.fsid = fsid.into();
        }
        survey.clusters.push(cluster);
        let mut storage = survey.storages["ceph"].clone();
        (storage.section.id, storage.cluster) = ("other".into(), 1);
        survey.storages.insert("other".into(), storage);
        let mut disk = survey.disks[0].clone();
        (disk.disk.key, disk.disk.storage, disk.disk.access) =
            ("scsi1".into(), "other".into(), Access::Librbd);
        let healthy = images().remove(0).survey(&[]).disks.remove(0);
        (disk.reading, disk.linked_device) = (healthy.reading, None);
        survey.disks.push(disk);
        if let Reading::Known(mappings) = &mut survey.node.kernel.mappings {
            let twin = json!({ "id": 1, "pool": "rbd", "namespace": null, "image": "vm-516-disk-0", "snapshot": null,
                "fsid": fsid, "client_address": "10.0.0.1:0/60", "client": 60, "image_id": id });
            let twin = [serde_json::from_value(twin).unwrap()];
            *mappings = mappings.iter().cloned().chain(twin).collect::<Vec<_>>().into();
        }
    }
    survey
}

/// PVE bug 3969, and an image that was removed and made anew: whatever stands, and whatever a run has done to the one,
/// the same is planned for the other.
#[test]
fn another_image_of_the_same_name_changes_nothing() {
    let policies = CONTEXTS.map(Context::policy);
    let mut plans = 0;
    for state in images().into_iter().step_by(11).flat_map(everywhere) {
        // The time for rebuilds is one for all images.
        let policy = &Policy { rebuild_budget: None, ..policies[state.context as usize].clone() };
        let survey = state.survey(&[]);
        let planned = plan(&diagnose(&survey, policy), policy);
        for (fsid, id) in [("g", "1"), ("f", "9")] {
            let twins = plan(&diagnose(&with_twin(&survey, fsid, id, &planned), policy), policy);
            assert_eq!(twins, planned, "{fsid} {id} {state:?}");
        }
        plans += planned.len();
    }
    assert!(plans > 1000, "{plans}");
}

/// What stops a guest's start, beside the disk that there is something to do to.
fn with_a_disk_that_stops_the_start(survey: &Survey, how: &str) -> Survey {
    let mut survey = survey.clone();
    let refusal = |kind: &str| json!({ "key": "scsi1", "volid": "x:vm-516-disk-1", "storage": "x", "kind": kind, "message": "no" });
    let mut disk = survey.disks[0].clone();
    disk.disk.key = "scsi1".into();
    disk.disk.image = Some("vm-516-disk-1".into());
    (disk.linked_device, disk.lock_owner, disk.mirror_daemons, disk.manager) = (None, None, None, None);
    match how {
        "missing" => disk.reading = Some(ImageReading::ImageMissing),
        "dying" => {
            let healthy = images().remove(0);
            let used = State { watchers: Watchers::Blocklisted, ..healthy };
            disk.reading = used.survey(&[]).disks.remove(0).reading;
        }
        "module" => {
            survey.node.kernel.load_failure = Some("modprobe rbd: not found".into());
            disk.disk.access = Access::Krbd;
            disk.reading = images().remove(0).survey(&[]).disks.remove(0).reading;
        }
        kind => {
            survey.guest.refusals.push(serde_json::from_value(refusal(kind)).unwrap());
            return survey;
        }
    }
    if let Some(ImageReading::Found(facts)) = &mut disk.reading {
        facts.id = "3".into();
    }
    survey.disks.push(disk);
    survey
}

/// Whatever there is to do to a disk: where another one is sure to stop the start, nothing is changed for it. By hand it
/// is, since somebody has asked for that.
#[test]
fn a_start_that_is_certain_to_be_refused_changes_nothing() {
    let policies = CONTEXTS.map(Context::policy);
    let (mut held, mut by_hand) = (0, 0);
    for state in images().into_iter().step_by(5).flat_map(everywhere) {
        let (policy, alone) = (&policies[state.context as usize], state.survey(&[]));
        let planned = plan(&diagnose(&alone, policy), policy);
        if planned.is_empty() {
            continue;
        }
        for how in ["missing", "dying", "module", "storage-disabled", "storage-unknown"] {
            let survey = with_a_disk_that_stops_the_start(&alone, how);
            let findings = diagnose(&survey, policy);
            assert!(stops_start(&findings), "{how}: {state:?}");
            let left = plan(&findings, policy);
            if state.context.starts() {
                assert_no_image_changed_for_a_refused_start(policy, &findings, &left);
                assert!(how == "dying" || left.is_empty(), "{how}: {left:?} in {state:?}");
                held += 1;
            } else {
                let changes = planned.iter().filter(|action| !action.is_map());
                assert!(changes.clone().all(|action| left.contains(action)), "{how}: {state:?}");
                by_hand += changes.count();
            }
        }
    }
    assert!(held > 1000 && by_hand > 1000, "{held} {by_hand}");
}

/// What a run could not do for reasons of its own (its journal, another run, its time), and rebuilds that there is no time
/// for, are no reason against a start; and what still stops one rests on what was read.
#[test]
fn what_was_withheld_busy_or_out_of_time_stops_nothing() {
    let policies = CONTEXTS.map(Context::policy);
    let stopping = |survey: &Survey, findings: &[Finding]| -> Vec<Code> {
        let stopping = findings.iter().filter(|finding| finding.severity >= Severity::Blocker);
        stopping.inspect(|finding| assert!(is_sure(survey, finding), "{finding:?}")).map(|f| f.code).collect()
    };
    let (mut withheld, mut left) = (0, 0);
    for state in images().into_iter().step_by(13).flat_map(everywhere) {
        let policy = &policies[state.context as usize];
        let survey = state.survey(&[]);
        let findings = diagnose(&survey, policy);
        let (planned, stops) = (plan(&findings, policy), stopping(&survey, &findings));
        let why = || "no".to_owned();
        for result in [ActionResult::Withheld { why: why() }, ActionResult::Busy { why: why() }] {
            let thrice = planned.iter().chain(&planned).chain(&planned);
            let history: Vec<ActionReport> =
                thrice.map(|action| ActionReport::new(action.clone(), result.clone())).collect();
            let later = state.survey(&history);
            let findings = diagnose(&later, policy);
            assert_told(&state, &findings);
            let now = stopping(&later, &findings);
            assert!(now.iter().all(|code| stops.contains(code)), "{now:?} {stops:?} {result:?} {state:?}");
            withheld += history.len();
        }
        let spent = Policy { rebuild_budget: Some(Duration::ZERO), ..policy.clone() };
        let findings = diagnose(&survey, &spent);
        let now = stopping(&survey, &findings);
        assert!(now.iter().all(|code| stops.contains(code)), "{now:?} {stops:?} {state:?}");
        let cut = plan(&findings, &spent);
        assert!(!cut.iter().any(Action::may_take_long), "{cut:?} {state:?}");
        settle(state, &spent);
        left += planned.iter().filter(|action| action.may_take_long()).count();
    }
    assert!(withheld > 1000 && left > 20, "{withheld} {left}");
}

/// Another guest's image on a dead kernel client, seen from every place and by every guest.
#[test]
fn a_neighbour_on_a_dead_client_breaks_no_rule() {
    use Neighbour::{None, Other, OtherLeftover, Perhaps, PerhapsLeftover, Taken, TakenLeftover};
    let policies = CONTEXTS.map(Context::policy);
    let neighbours = [None, Taken, TakenLeftover, Other, OtherLeftover, Perhaps, PerhapsLeftover];
    let plain = |state: &State| {
        let watched = matches!(state.watchers, Watchers::Nobody | Watchers::Own);
        state.features == DEFAULT && state.map == Map::Valid && watched && state.caps == Caps::May
    };
    let images: Vec<State> = images().into_iter().filter(plain).collect();
    let guests = vary(&images, &GUESTS, |s, guest| s.guest = guest);
    let places: Vec<State> = guests.into_iter().flat_map(everywhere).collect();
    let states = vary(&places, &neighbours, |s, neighbour| s.neighbour = neighbour);
    for state in &states {
        see(*state, &policies);
    }
    println!("{} states of {} images", states.len(), images.len());
    assert!(states.len() > 10_000, "{}", states.len());
}
