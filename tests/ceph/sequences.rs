//! The model's rules for features, object maps, locks and mirroring against the real Ceph: the same random steps on both, and
//! after each step the same exit code and the same image, as the product reads it.
//!
//! `RBD_PREFLIGHT_SEQUENCES=N` plays N sequences, `RBD_PREFLIGHT_SEED=N` begins at that seed; a failure names its own.

use crate::common::model::{HANGS, Image, Locker, Mode, OK, Step};
use crate::common::{Lab, Writer, until_closed, wait_until};
use rbd_preflight::ceph::image::{Flags, ImageFacts, ImageReading};
use rbd_preflight::ceph::read_cluster::read_cluster;
use rbd_preflight::rbd::features::Features;
use rbd_preflight::rbd::lock::Lock;
use rbd_preflight::rbd::lock::watcher_of;
use rbd_preflight::rbd::spec::Spec;
use rbd_preflight::reading::Reading;
use std::process::Command;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Steps of one sequence.
const STEPS: usize = 20;
/// Sequences at one time; most of a step is waiting for Ceph.
const AT_ONCE: usize = 6;
/// Of so many sequences one has its writer killed, and waits until Ceph has dropped the dead one's watch.
const KILLED_EVERY: u64 = 8;

/// The same numbers for the same seed, on every machine (xorshift64*).
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        usize::try_from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).unwrap() % n
    }

    /// Some of what can be named in `rbd feature`; often what can be done at once.
    fn features(&mut self) -> Features {
        let all = [
            Features::EXCLUSIVE_LOCK,
            Features::OBJECT_MAP,
            Features::FAST_DIFF,
            Features::JOURNALING,
            Features::DEEP_FLATTEN,
            Features::LAYERING,
        ];
        let among = if self.below(6) == 0 { all.len() } else { 4 };
        let mut features = all[self.below(among)];
        while self.below(2) == 0 {
            features = features | all[self.below(among)];
        }
        features
    }

    fn step(&mut self, image: &Image) -> Step {
        match self.below(15) {
            0..=2 => Step::Enable(self.features()),
            3..=4 => Step::Disable(self.features()),
            // What is there or lacking, so that what goes through is tried as often as what is refused.
            5 => Step::Disable(self.features() & image.features | Features::FAST_DIFF),
            6 => Step::SnapCreate(self.below(2)),
            7 => Step::SnapRemove(self.below(2)),
            8 => Step::Rebuild(None),
            9 => Step::Rebuild(Some(self.below(2))),
            // Not under a writer that no lock of Ceph's keeps apart: enabled under both, it would wait for ever.
            10 if !image.writer || image.locker == Locker::Live => Step::LockAdd,
            10 => Step::Rebuild(None),
            11 => Step::LockRemove,
            // What the lock of another program does to these is not the model's to know: the gate lets nothing through.
            _ if image.locker == Locker::ByHand => Step::LockRemove,
            12 => Step::MirrorEnable(Mode::Snapshot),
            13 => Step::MirrorEnable(Mode::Journal),
            _ => Step::MirrorDisable,
        }
    }
}

/// One image, played on both.
struct Play<'a> {
    lab: &'a Lab,
    spec: Spec,
    model: Image,
    writer: Option<Writer>,
    /// What was done, for whoever has to understand a failure.
    told: Vec<String>,
}

impl Play<'_> {
    fn name(&self) -> String {
        self.spec.to_string()
    }

    /// `rbd` on the real image.
    fn real(&self, step: Step) -> i32 {
        let name = self.name();
        let snapshot = |n: usize| format!("{name}@s{n}");
        let names = |features: Features| features.names().join(",");
        let arguments: Vec<String> = match step {
            Step::Enable(features) => vec!["feature".into(), "enable".into(), name, names(features)],
            Step::Disable(features) => vec!["feature".into(), "disable".into(), name, names(features)],
            Step::SnapCreate(n) => vec!["snap".into(), "create".into(), "--no-progress".into(), snapshot(n)],
            Step::SnapRemove(n) => vec!["snap".into(), "rm".into(), "--no-progress".into(), snapshot(n)],
            Step::Rebuild(None) => vec!["object-map".into(), "rebuild".into(), name],
            Step::Rebuild(Some(n)) => vec!["object-map".into(), "rebuild".into(), snapshot(n)],
            Step::MirrorEnable(mode) => {
                let mode = if mode == Mode::Journal { "journal" } else { "snapshot" };
                vec!["mirror".into(), "image".into(), "enable".into(), name, mode.into()]
            }
            Step::MirrorDisable => vec!["mirror".into(), "image".into(), "disable".into(), name],
            Step::LockAdd => vec!["lock".into(), "add".into(), name, "mine".into()],
            Step::LockRemove => {
                let lockers = self.lab.rbd_json(&["lock", "ls", &name]);
                let mine = lockers.as_array().unwrap().iter().find(|locker| locker["id"] == "mine");
                let owner = mine.map_or("client.1".to_owned(), |l| l["locker"].as_str().unwrap().to_owned());
                vec!["lock".into(), "rm".into(), name, "mine".into(), owner]
            }
        };
        let mut rbd = self.lab.command("rbd");
        rbd.args(arguments);
        let output = Command::new("timeout").arg("60").arg("rbd").args(rbd.get_args()).output().unwrap();
        let code = output.status.code().unwrap();
        assert_ne!(code, 124, "{step:?} does not end: {:#?}", self.told);
        code
    }

    /// The real image as the product reads it, in the model's words.
    fn read(&self) -> Image {
        let reading = read_cluster(
            &self.lab.connection("admin"),
            std::slice::from_ref(&self.spec),
            Duration::from_secs(30),
        );
        until_closed();
        let Reading::Known((_, images)) = reading else { panic!("{reading:?}") };
        let [ImageReading::Found(facts)] = &images[..] else { panic!("{images:?}") };
        Image {
            features: facts.features,
            map_invalid: any(&facts.flags),
            snapshots: [0, 1].map(|n| {
                let named = format!("s{n}");
                facts.snapshots.known().unwrap().iter().find(|s| s.name == named).map(|s| any(&s.flags))
            }),
            locker: locker(facts),
            writer: !facts.watchers.known().unwrap().is_empty(),
            mirror: facts.mirroring.known().unwrap().as_ref().map(|mirroring| {
                assert!(mirroring.primary && mirroring.state == "enabled", "{mirroring:?}");
                if mirroring.mode == "journal" { Mode::Journal } else { Mode::Snapshot }
            }),
        }
    }

    /// A step on both, and the comparison; `exits` are what the model and the real one ended with.
    fn compare(&mut self, what: &str, exits: (i32, i32)) {
        self.told.push(format!("{what}: {} -> {:?}", exits.1, self.model));
        assert_eq!(exits.0, exits.1, "exit of {what}, the model first: {:#?}", self.told);
        let (mut seen, until) = (self.read(), Instant::now() + Duration::from_secs(10));
        // A writer takes the lock back at its next write.
        while seen != self.model && self.writer.is_some() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(100));
            seen = self.read();
        }
        assert_eq!(self.model, seen, "after {what}, the model first: {:#?}", self.told);
    }

    fn step(&mut self, step: Step) -> bool {
        if { self.model }.step(step) == HANGS {
            return false;
        }
        let exits = (self.model.step(step), self.real(step));
        self.compare(&format!("{step:?}"), exits);
        exits.1 == OK
    }

    /// A writer comes, where nothing keeps it from writing.
    fn write(&mut self) {
        if self.writer.is_none() && self.model.locker != Locker::ByHand {
            self.writer = Some(self.lab.writer(&self.spec));
            self.model.writer_comes();
            self.compare("a writer comes", (OK, OK));
        }
    }

    fn leave(&mut self) {
        if let Some(writer) = self.writer.take() {
            writer.stop();
            self.model.writer_leaves();
            self.compare("the writer leaves", (OK, OK));
        }
    }

    fn kill(&mut self) {
        if let Some(writer) = self.writer.take() {
            writer.kill();
            wait_until("a dead writer's watch is dropped", Duration::from_secs(60), || !self.read().writer);
            self.model.writer_dies();
            self.compare("the writer dies", (OK, OK));
        }
    }
}

fn any(flags: &Reading<Flags>) -> bool {
    let flags = flags.known().unwrap();
    assert_eq!(flags.object_map_invalid, flags.fast_diff_invalid);
    flags.any()
}

fn locker(facts: &ImageFacts) -> Locker {
    let Lock { tag, lockers, .. } = facts.lock.known().unwrap();
    match lockers.as_slice() {
        [] => Locker::Nobody,
        [_] if tag != "internal" => Locker::ByHand,
        [owner] if watcher_of(owner, facts.watchers.known().unwrap()).is_some() => Locker::Live,
        [_] => Locker::Dead,
        more => panic!("{more:?}"),
    }
}

/// Plays one sequence; how many of its steps went through.
fn play(lab: &Lab, seed: u64) -> usize {
    let mut dice = Dice::new(seed);
    let sets = [0x1, 0x5, 0x1d, 0x3d, 0x7d, 0x45];
    let features = Features(sets[dice.below(sets.len())]);
    let spec = lab.image("sequence", &["--image-feature", &features.names().join(",")]);
    let told = vec![format!("seed {seed}, {spec}, created with {features}")];
    let mut play = Play { lab, spec, model: Image::new(features), writer: None, told };
    let mut made = 0;
    for number in 0..STEPS {
        match dice.below(9) {
            0 if number % 2 == 0 => play.write(),
            1 => play.leave(),
            _ => {
                let step = dice.step(&play.model);
                made += usize::from(play.step(step));
            }
        }
    }
    if seed % KILLED_EVERY == 1 {
        play.write();
        play.kill();
        let step = dice.step(&play.model);
        made += usize::from(play.step(step));
    }
    made
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |n| n.parse().unwrap())
}

#[test]
fn the_model_and_ceph_agree_on_random_sequences() {
    let (lab, begun) = (Lab::shared(), Instant::now());
    lab.rbd(&["mirror", "pool", "enable", "rbd", "image"]);
    let first = number("RBD_PREFLIGHT_SEED", 1);
    let end = first + number("RBD_PREFLIGHT_SEQUENCES", 16);
    let (next, made) = (AtomicU64::new(first), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    made.fetch_add(play(&lab, seed), Ordering::Relaxed);
                }
            });
        }
    });
    let count = usize::try_from(end - first).unwrap();
    let made = made.into_inner();
    println!(
        "{count} sequences from seed {first} of {STEPS} steps, {made} changes went through, in {} s",
        begun.elapsed().as_secs()
    );
    assert!(made > count, "too few steps go through to show anything");
}
