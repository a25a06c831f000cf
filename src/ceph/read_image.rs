//! Everything that an open image tells.

use crate::ceph::ffi::{Image, Pool, RawLock, RawMirror, RawSnapshot, RawWatcher};
use crate::ceph::image::{DataPool, Flags, ImageFacts, Mirroring, Snapshot};
use crate::ceph::objects::{Header, MIRRORING, exists};
use crate::ceph::parents::read_parents;
use crate::rbd::address::bare_address;
use crate::rbd::features::Features;
use crate::rbd::lock::{Lock, Locker, Watcher};
use crate::rbd::spec::Spec;
use crate::reading::Errno;
use crate::reading::{Failure, Reading};
use nix::libc::{ENOENT, EPERM};
use std::sync::{Arc, OnceLock};

/// A pool, or a namespace in it, with what is the same for all of its images and so is asked once.
pub struct ImagePool {
    /// Where its images are.
    pub pool: Arc<Pool>,
    mirrored: OnceLock<Result<bool, Errno>>,
}

impl ImagePool {
    /// Asks for nothing yet.
    pub fn new(pool: Arc<Pool>) -> Self {
        Self { pool, mirrored: OnceLock::new() }
    }

    /// Whether any of its images can be mirrored: the object in which the mirroring of all of them is kept is there. librbd would ask it
    /// for each of them.
    ///
    /// # Errors
    /// Ceph's errno, the same for all.
    pub fn has_mirroring(&self) -> Result<bool, Errno> {
        *self.mirrored.get_or_init(|| exists(&self.pool, MIRRORING))
    }
}

/// Reads all facts of an image that was opened for reading, in `pool`.
///
/// # Errors
/// What belongs to every image (id, sizes, features) could not be read. All else says so field by field.
pub fn read_facts(spec: &Spec, image: &Image, pool: &ImagePool) -> Result<ImageFacts, Failure> {
    let need = |what: &str, errno| Failure::errno(format!("read {what} of {spec}"), errno);
    let sizes = image.sizes().map_err(|errno| need("the size", errno))?;
    let old_format = image.old_format().map_err(|errno| need("the format", errno))?;
    // librbd answers 22 for an image of format 1, which has none.
    let id = if old_format { Ok(String::new()) } else { image.id() };
    let id = id.map_err(|errno| need("the id", errno))?;
    let features = Features(image.features().map_err(|errno| need("the features", errno))?);
    Ok(ImageFacts {
        format: if old_format { 1 } else { 2 },
        size: sizes.size,
        object_size: sizes.object_size,
        objects: sizes.objects,
        features,
        op_features: reading(spec, "the op features", image.op_features().map(op_feature_names)),
        flags: reading(spec, "the flags", image.flags().map(flags)),
        snapshots: snapshots(spec, image, &id),
        lock: read_lock(spec, image),
        watchers: read_watchers(spec, image),
        parents: read_parents(spec, image).into(),
        mirroring: reading(spec, "the mirroring", mirroring(image, old_format, pool)),
        migration: migration(spec, image, features),
        data_pool: features.contains(Features::DATA_POOL).then(|| data_pool(spec, image).into()),
        id,
    })
}

/// The pool of its data. An object that need not be there is asked for: an OSD looks at the user's rights before it looks for the object.
fn data_pool(spec: &Spec, image: &Image) -> Result<DataPool, Failure> {
    let cluster = image.pool().cluster();
    let id = image.data_pool_id();
    let failure = |errno| Failure::errno(format!("look for the data pool of {spec}"), errno);
    let name = cluster.pool_name(id).map_err(failure)?;
    let pool = cluster.pool_by_id(id, spec.namespace.as_deref()).map_err(failure)?;
    let readable = match pool.stat("rbd_data") {
        Ok(()) | Err(ENOENT) => Reading::Known(true),
        Err(EPERM) => Reading::Known(false),
        Err(errno) => Reading::Unknown(Failure::errno(format!("read in the data pool {name}"), errno)),
    };
    Ok(DataPool { name, readable })
}

/// The lock object, as it was when the image was opened.
pub fn read_lock(spec: &Spec, image: &Image) -> Reading<Lock> {
    reading(spec, "the lock", image.lock().map(lock))
}

/// Everybody who watches the image, asked now.
pub fn read_watchers(spec: &Spec, image: &Image) -> Reading<Vec<Watcher>> {
    let watchers = image.watchers().map(|list| list.into_iter().map(watcher).collect());
    reading(spec, "the watchers", watchers)
}

fn reading<T>(spec: &Spec, what: &str, result: Result<T, Errno>) -> Reading<T> {
    result.map_err(|errno| Failure::errno(format!("read {what} of {spec}"), errno)).into()
}

fn flags(bits: u64) -> Flags {
    Flags { object_map_invalid: bits & 1 != 0, fast_diff_invalid: bits & 2 != 0 }
}

/// `RBD_OPERATION_FEATURE_*` by name; bits without a name in hexadecimal.
fn op_feature_names(bits: u64) -> Vec<String> {
    const NAMES: [&str; 4] = ["clone-parent", "clone-child", "group", "snap-trash"];
    let named = NAMES.iter().enumerate().filter(|(bit, _)| bits >> bit & 1 != 0);
    let mut names: Vec<String> = named.map(|(_, name)| (*name).to_owned()).collect();
    let rest = bits & !0xf;
    if rest != 0 {
        names.push(format!("{rest:#x}"));
    }
    names
}

fn lock(RawLock { exclusive, tag, lockers }: RawLock) -> Lock {
    let locker = |[client, cookie, address]: [String; 3]| {
        let address = bare_address(&address).to_owned();
        Locker { client, cookie, address }
    };
    Lock { tag, exclusive, lockers: lockers.into_iter().map(locker).collect() }
}

fn watcher(RawWatcher { address, client, cookie }: RawWatcher) -> Watcher {
    Watcher { address: bare_address(&address).to_owned(), client, cookie }
}

fn snapshots(spec: &Spec, image: &Image, id: &str) -> Reading<Vec<Snapshot>> {
    let all = image.snapshots().and_then(|list| {
        list.into_iter().map(|raw| snapshot(spec, image, id, raw)).collect::<Result<Vec<_>, _>>()
    });
    reading(spec, "the snapshots", all)
}

fn snapshot(spec: &Spec, image: &Image, image_id: &str, raw: RawSnapshot) -> Result<Snapshot, Errno> {
    let RawSnapshot { id, name } = raw;
    let kind = image.snapshot_namespace(id)?;
    // Only user snapshots can be protected, and librbd finds no others by name.
    let protected = kind == 0 && image.snapshot_protected(&name)?;
    let flags = reading(spec, &format!("the flags of snapshot {name}"), snapshot_flags(image, image_id, id));
    Ok(Snapshot { id, name, namespace: snapshot_kind(kind), flags, protected })
}

/// Asked of the header itself: librbd would have to be turned to the snapshot, and would load its whole object map.
fn snapshot_flags(image: &Image, image_id: &str, snapshot: u64) -> Result<Flags, Errno> {
    if image_id.is_empty() {
        return Ok(Flags::default()); // format 1 has no object map
    }
    Header::of(image.pool(), image_id).flags(snapshot).map(flags)
}

/// `rbd_snap_namespace_type_t`.
fn snapshot_kind(kind: i32) -> String {
    match kind {
        0 => "user".to_owned(),
        1 => "group".to_owned(),
        2 => "trash".to_owned(),
        3 => "mirror".to_owned(),
        other => format!("unknown {other}"),
    }
}

fn mirroring(image: &Image, old_format: bool, pool: &ImagePool) -> Result<Option<Mirroring>, Errno> {
    if old_format {
        return Ok(None); // cannot be mirrored
    }
    match pool.has_mirroring() {
        Ok(false) => Ok(None),
        // Caps can allow the class's methods and nothing else.
        Ok(true) | Err(EPERM) => mirror(image.mirror()?, || image.mirror_mode()),
        Err(errno) => Err(errno),
    }
}

fn mirror(
    RawMirror { state, primary }: RawMirror,
    mode: impl FnOnce() -> Result<i32, Errno>,
) -> Result<Option<Mirroring>, Errno> {
    let state = match state {
        0 => "disabling".to_owned(),
        1 => "enabled".to_owned(),
        2 => return Ok(None),
        3 => "creating".to_owned(),
        other => format!("unknown {other}"),
    };
    let mode = match mode()? {
        0 => "journal".to_owned(),
        1 => "snapshot".to_owned(),
        other => format!("unknown {other}"),
    };
    Ok(Some(Mirroring { mode, state, primary }))
}

/// Asked only where the feature says that there is one: librbd would open every image once more for it.
fn migration(spec: &Spec, image: &Image, features: Features) -> Reading<Option<String>> {
    if !features.contains(Features::MIGRATING) {
        return Reading::Known(None);
    }
    image.pool().migration_state(&spec.image).map(|state| Some(migration_name(state))).into()
}

/// `rbd_image_migration_state_t`.
fn migration_name(state: i32) -> String {
    const NAMES: [&str; 6] = ["error", "preparing", "prepared", "executing", "executed", "aborting"];
    let name = usize::try_from(state).ok().and_then(|state| NAMES.get(state));
    name.map_or_else(|| format!("unknown {state}"), |name| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn op_features_have_names_and_unknown_bits_stay() {
        assert_eq!(op_feature_names(0), Vec::<String>::new());
        assert_eq!(op_feature_names(0b1010), ["clone-child", "snap-trash"]);
        assert_eq!(op_feature_names(0x21), ["clone-parent", "0x20"]);
    }

    #[test]
    fn flags_are_two_bits() {
        assert!(!flags(0).any());
        assert_eq!(flags(3), Flags { object_map_invalid: true, fast_diff_invalid: true });
        assert!(flags(2).fast_diff_invalid);
    }

    #[test]
    fn an_image_whose_mirroring_is_disabled_is_not_asked_for_a_mode() {
        let raw = RawMirror { state: 2, primary: false };
        assert_eq!(mirror(raw, || Err(95)), Ok(None));
        let raw = RawMirror { state: 1, primary: true };
        let found = mirror(raw, || Ok(1)).unwrap().unwrap();
        assert_eq!((found.mode.as_str(), found.state.as_str(), found.primary), ("snapshot", "enabled", true));
    }

    #[test]
    fn migration_states_have_names() {
        assert_eq!(migration_name(2), "prepared");
        assert_eq!(migration_name(-1), "unknown -1");
        assert_eq!(migration_name(9), "unknown 9");
    }

    #[test]
    fn addresses_of_lockers_and_watchers_lose_their_type() {
        let raw = RawLock {
            exclusive: true,
            tag: "internal".to_owned(),
            lockers: vec![["client.4".to_owned(), "auto 7".to_owned(), "v1:10.0.0.1:0/2".to_owned()]],
        };
        assert_eq!(lock(raw).lockers.first().unwrap().address, "10.0.0.1:0/2");
        let raw = RawWatcher { address: "v1:10.0.0.1:0/2".to_owned(), client: 4, cookie: 7 };
        assert_eq!(watcher(raw).address, "10.0.0.1:0/2");
    }
}
