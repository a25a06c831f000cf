//! What Ceph knows of one image.

use crate::rbd::features::Features;
use crate::rbd::lock::{Lock, Watcher};
use crate::rbd::spec::Spec;
use crate::reading::Reading;
use serde::{Deserialize, Serialize};

/// `RBD_FLAG_*`: what Ceph holds for untrue about the object map of a head or snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Flags {
    /// `RBD_FLAG_OBJECT_MAP_INVALID`.
    pub object_map_invalid: bool,
    /// `RBD_FLAG_FAST_DIFF_INVALID`.
    pub fast_diff_invalid: bool,
}

impl Flags {
    /// Either flag is set: nothing but a rebuild takes it away.
    pub fn any(self) -> bool {
        self.object_map_invalid || self.fast_diff_invalid
    }
}

/// A snapshot of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Snapshot {
    /// Its number in the pool.
    pub id: u64,
    /// The snapshot's name.
    pub name: String,
    /// What it is: `user`, `group`, `trash`, `mirror`.
    pub namespace: String,
    /// Its object map's flags.
    pub flags: Reading<Flags>,
    /// It is protected (clone v1 parents).
    pub protected: bool,
}

/// One ancestor of a clone; the direct parent comes first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Parent {
    /// The parent image. Its name is its id where only that is known.
    pub spec: Spec,
    /// The parent image's id.
    pub id: String,
    /// The parent's snapshot.
    pub snapshot: String,
    /// The parent lies in the trash.
    pub trashed: bool,
    /// The parent's features; unknown where it cannot be opened.
    pub features: Reading<Features>,
}

/// How an image is mirrored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Mirroring {
    /// `journal` or `snapshot`.
    pub mode: String,
    /// `enabled`, `disabling`, `creating`.
    pub state: String,
    /// This cluster's copy is the one to write to.
    pub primary: bool,
}

/// What Ceph knows of one image. What could not be read says so field by field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ImageFacts {
    /// The image's id; empty for format 1, which has none.
    pub id: String,
    /// Image format 1 (old) or 2.
    pub format: u8,
    /// The image's size in bytes.
    pub size: u64,
    /// Bytes in an object.
    pub object_size: u64,
    /// How many objects the size makes, written or not.
    pub objects: u64,
    /// The image's features, all bits of them.
    pub features: Features,
    /// `RBD_OPERATION_FEATURE_*`, by name (`clone-parent`, `clone-child`, `group`, `snap-trash`).
    pub op_features: Reading<Vec<String>>,
    /// The head's flags.
    pub flags: Reading<Flags>,
    /// Snapshots of all kinds.
    pub snapshots: Reading<Vec<Snapshot>>,
    /// The locks on the image's header object.
    pub lock: Reading<Lock>,
    /// Every watcher; this process's own read-only opens register none.
    pub watchers: Reading<Vec<Watcher>>,
    /// Ancestors, nearest first; empty for an image that is no clone.
    pub parents: Reading<Vec<Parent>>,
    /// How it is mirrored; `Known(None)` is not at all.
    pub mirroring: Reading<Option<Mirroring>>,
    /// The state of a live migration (`prepared`, `executing`, …); `Known(None)` is none.
    pub migration: Reading<Option<String>>,
    /// The other pool in which its data is; `None`: it is in the image's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_pool: Option<Reading<DataPool>>,
}

/// A pool that holds an image's data, and nothing else of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DataPool {
    /// The pool's name.
    pub name: String,
    /// The storage's user may read there: an OSD was asked for an object.
    pub readable: Reading<bool>,
}

impl ImageFacts {
    /// This watcher owns the image's lock, as far as that could be read.
    pub fn is_locked_by(&self, watcher: &Watcher) -> bool {
        self.lock.known().is_some_and(|lock| lock.is_owned_by(watcher))
    }
}

/// An image that was moved to its pool's trash, and can be restored from there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Trashed {
    /// The image's id, by which it is restored.
    pub id: String,
    /// Who moved it there: `user`, `mirroring`, `migration` (a live migration's source), `removing` (its removal has
    /// begun), `user-parent` (a clone's parent).
    pub source: String,
    /// When, in seconds since 1970.
    pub deleted: u64,
    /// Until when `rbd trash purge` leaves it alone, in seconds since 1970.
    pub kept_until: u64,
}

/// What came of looking for an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ImageReading {
    /// It was opened and read.
    Found(Box<ImageFacts>),
    /// Ceph says that there is no such image.
    ImageMissing,
    /// There is no such image, but there are some in the trash that had its name, the last one first.
    InTrash(Vec<Trashed>),
    /// Ceph says that there is no such pool.
    PoolMissing,
    /// Ceph says that the pool has no such namespace.
    NamespaceMissing,
    /// An ancestor of the clone is gone, so the image cannot be opened.
    ParentMissing(crate::reading::Failure),
    /// It could not be read.
    Unknown(crate::reading::Failure),
}

impl ImageReading {
    /// Ceph says that its pool has no image of this name.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::ImageMissing | Self::InTrash(_))
    }
}
