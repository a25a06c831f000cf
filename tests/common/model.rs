//! A small model of what Ceph does to an image: features, object map flags, the lock. `tests/space.rs` thinks with it,
//! `tests/ceph/sequences.rs` compares it with the real Ceph.

use rbd_preflight::rbd::features::{Changeable, Features};

/// Success.
pub const OK: i32 = 0;
/// `EEXIST`, `EBUSY`, `EINVAL`, `EROFS`, `ENOENT`: what `rbd` ends with.
pub const EEXIST: i32 = 17;
pub const EBUSY: i32 = 16;
pub const EINVAL: i32 = 22;
pub const EROFS: i32 = 30;
pub const ENOENT: i32 = 2;
/// Never comes back: as was seen when journaling is enabled under a lock of `rbd lock add`. The gate lets no
/// change through where there is such a lock.
pub const HANGS: i32 = 124;

const MAP: Features = Features(Features::OBJECT_MAP.0 | Features::FAST_DIFF.0);

/// Who owns the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Locker {
    Nobody,
    /// Its watch is there.
    Live,
    /// Its watch is gone.
    Dead,
    /// `rbd lock add`.
    ByHand,
    Unknown,
}

/// How an image is mirrored, this copy being the primary one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Journal,
    Snapshot,
}

/// An image, in a pool that mirrors single images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Image {
    pub features: Features,
    /// The head's object map is flagged invalid.
    pub map_invalid: bool,
    /// The snapshots `s0` and `s1`, where they are: whether their object maps are flagged invalid.
    pub snapshots: [Option<bool>; 2],
    pub locker: Locker,
    /// A client writes to it, whether the image has a lock to own or not.
    pub writer: bool,
    pub mirror: Option<Mode>,
}

/// What somebody does with `rbd`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Enable(Features),
    Disable(Features),
    SnapCreate(usize),
    SnapRemove(usize),
    /// The head's object map, or a snapshot's.
    Rebuild(Option<usize>),
    LockAdd,
    LockRemove,
    MirrorEnable(Mode),
    MirrorDisable,
}

impl Image {
    /// A new image.
    pub fn new(features: Features) -> Self {
        let locker = Locker::Nobody;
        Self { features, map_invalid: false, snapshots: [None, None], locker, writer: false, mirror: None }
    }

    /// Does a step; what `rbd` ends with.
    pub fn step(&mut self, step: Step) -> i32 {
        match step {
            Step::Enable(features) => self.enable(features),
            Step::Disable(features) => self.disable(features),
            Step::SnapCreate(n) => self.snap_create(n),
            Step::SnapRemove(n) => self.snap_remove(n),
            Step::Rebuild(place) => self.rebuild(place),
            Step::LockAdd => self.lock_add(),
            Step::MirrorEnable(mode) => self.mirror_enable(mode),
            Step::MirrorDisable => self.mirror_disable(),
            Step::LockRemove => match self.locker {
                Locker::ByHand => {
                    self.locker = Locker::Nobody;
                    OK
                }
                _ => ENOENT,
            },
        }
    }

    /// librbd takes the exclusive lock for a change, from a dead owner too; a live one makes the change itself.
    fn may_change(&mut self) -> bool {
        if !self.features.contains(Features::EXCLUSIVE_LOCK) {
            return true;
        }
        if self.locker == Locker::Dead {
            self.locker = Locker::Nobody;
        }
        self.locker != Locker::ByHand
    }

    /// librbd is asked for the lock alone, and gives it back.
    pub fn break_lock(&mut self) -> i32 {
        if !self.features.contains(Features::EXCLUSIVE_LOCK) {
            return EINVAL;
        }
        if self.may_change() { OK } else { EROFS }
    }

    /// A live writer owns the lock as soon as there is one.
    fn settle_lock(&mut self) {
        let locks = self.features.contains(Features::EXCLUSIVE_LOCK);
        self.locker = match self.locker {
            Locker::Nobody if self.writer && locks => Locker::Live,
            Locker::Live if !locks => Locker::Nobody,
            other => other,
        };
    }

    /// Somebody opens the image and writes, breaking a dead owner's lock on the way.
    pub fn writer_comes(&mut self) {
        self.may_change();
        self.writer = true;
        self.settle_lock();
    }

    /// It closes the image and gives the lock back.
    pub fn writer_leaves(&mut self) {
        self.writer = false;
        if self.locker == Locker::Live {
            self.locker = Locker::Nobody;
        }
    }

    /// It dies, and Ceph has dropped its watch.
    pub fn writer_dies(&mut self) {
        self.writer = false;
        if self.locker == Locker::Live {
            self.locker = Locker::Dead;
        }
    }

    /// `rbd feature enable`: object-map and fast-diff come together, and both need exclusive-lock.
    pub fn enable(&mut self, asked: Features) -> i32 {
        let features = paired(asked);
        if !Features::with_change(Changeable::Both).contains(asked) || asked.is_empty() {
            return EINVAL;
        }
        if self.features.intersects(asked) {
            return EINVAL;
        }
        if !self.may_change() {
            return if features.contains(Features::JOURNALING) { HANGS } else { EROFS };
        }
        let after = self.features | features;
        let dependents = features & (MAP | Features::JOURNALING);
        if !dependents.is_empty() && !after.contains(Features::EXCLUSIVE_LOCK) {
            return EINVAL;
        }
        self.features = after;
        if features.intersects(MAP) {
            self.map_invalid = true;
            self.snapshots.iter_mut().flatten().for_each(|invalid| *invalid = true);
        }
        self.settle_lock();
        OK
    }

    /// `rbd feature disable`: object-map and fast-diff go together, exclusive-lock only with all that needs it.
    pub fn disable(&mut self, asked: Features) -> i32 {
        let features = paired(asked);
        let can_go = Features::with_change(Changeable::Both) | Features::with_change(Changeable::DisableOnly);
        if !can_go.contains(asked) || asked.is_empty() {
            return EINVAL;
        }
        if !self.features.contains(asked) {
            return EINVAL;
        }
        if !self.may_change() {
            return EROFS;
        }
        let after = self.features - features;
        let stranded =
            features.contains(Features::EXCLUSIVE_LOCK) && after.intersects(MAP | Features::JOURNALING);
        let feeds_mirror = features.contains(Features::JOURNALING) && self.mirror == Some(Mode::Journal);
        if stranded || feeds_mirror {
            return EINVAL;
        }
        self.features = after;
        if features.intersects(MAP) {
            self.map_invalid = false;
            self.snapshots.iter_mut().flatten().for_each(|invalid| *invalid = false);
        }
        self.settle_lock();
        OK
    }

    /// `rbd snap create`: its object map's flags are the head's.
    fn snap_create(&mut self, n: usize) -> i32 {
        if self.snapshots[n].is_some() {
            return EEXIST;
        }
        if !self.may_change() {
            return EROFS;
        }
        self.snapshots[n] = Some(self.map_invalid);
        OK
    }

    fn snap_remove(&mut self, n: usize) -> i32 {
        if self.snapshots[n].is_none() {
            return ENOENT;
        }
        if !self.may_change() {
            return EROFS;
        }
        self.snapshots[n] = None;
        OK
    }

    /// `rbd object-map rebuild` of the head or of a snapshot.
    pub fn rebuild(&mut self, place: Option<usize>) -> i32 {
        if place.is_some_and(|n| self.snapshots[n].is_none()) {
            return ENOENT;
        }
        // A snapshot is opened by itself, and has no lock.
        if place.is_none() && !self.may_change() {
            return EROFS;
        }
        if !self.features.contains(Features::OBJECT_MAP) {
            return EINVAL;
        }
        match place {
            None => self.map_invalid = false,
            Some(n) => self.snapshots[n] = Some(false),
        }
        OK
    }

    /// `rbd mirror image enable`. What a journal needs is enabled first, and stays even if the mirroring is then refused.
    fn mirror_enable(&mut self, mode: Mode) -> i32 {
        let needed = (Features::EXCLUSIVE_LOCK | Features::JOURNALING) - self.features;
        if mode == Mode::Journal && needed.contains(Features::JOURNALING) {
            let exit = self.enable(needed);
            if exit != OK {
                return exit;
            }
        }
        if let Some(now) = self.mirror {
            return if now == mode { OK } else { EINVAL };
        }
        // The first mirror snapshot is made at once.
        if mode == Mode::Snapshot && !self.may_change() {
            return EROFS;
        }
        self.mirror = Some(mode);
        OK
    }

    /// `rbd mirror image disable`: the journal goes with the mirroring that it fed.
    fn mirror_disable(&mut self) -> i32 {
        let Some(mode) = self.mirror else { return OK };
        if !self.may_change() {
            return EROFS;
        }
        self.mirror = None;
        if mode == Mode::Journal {
            self.features = self.features - Features::JOURNALING;
        }
        OK
    }

    fn lock_add(&mut self) -> i32 {
        match self.locker {
            Locker::Nobody => {
                self.locker = Locker::ByHand;
                OK
            }
            _ => EBUSY,
        }
    }
}

fn paired(features: Features) -> Features {
    if features.intersects(MAP) { features | MAP } else { features }
}
