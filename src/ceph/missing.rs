//! Why an image could not be opened: Ceph says "no such file" for a missing image and for a missing parent alike.

use crate::ceph::encoding::Answer;
use crate::ceph::ffi::{Pool, RawTrash};
use crate::ceph::image::{ImageReading, Trashed};
use crate::ceph::objects::{Header, exists};
use crate::ceph::parents::MAX_PARENTS;
use crate::rbd::spec::Spec;
use crate::reading::Errno;
use crate::reading::{Failure, Origin};
use nix::libc::{EIO, ENOENT, EPERM};
use std::sync::Arc;

/// What it means that a pool could not be reached.
pub fn of_pool(spec: &Spec, errno: Errno) -> ImageReading {
    match errno {
        ENOENT => ImageReading::PoolMissing,
        errno => ImageReading::Unknown(Failure::errno(format!("reach the pool {}", spec.pool), errno)),
    }
}

/// What it means that an image could not be opened.
pub fn of_image(spec: &Spec, pool: &Arc<Pool>, errno: Errno) -> ImageReading {
    let failure = Failure::errno(format!("open {spec}"), errno);
    // An OSD answers so where the user's caps do not allow it.
    if errno == EPERM {
        return ImageReading::Unknown(refused(spec, pool).unwrap_or(failure));
    }
    if errno != ENOENT {
        return ImageReading::Unknown(failure);
    }
    match look_for(spec, pool) {
        Ok(Whereabouts::Nowhere) => no_image(spec, pool),
        Ok(Whereabouts::OldFormat) => ImageReading::Unknown(failure),
        Ok(Whereabouts::Id(id)) => match find_gap(spec, pool, &id) {
            Ok(Some(Gap::Header(text))) => ImageReading::Unknown(broken(spec, text)),
            Ok(Some(Gap::Parent(text))) => ImageReading::ParentMissing(broken(spec, text)),
            Ok(None) => ImageReading::Unknown(failure),
            Err(failure) => ImageReading::Unknown(failure),
        },
        Err(failure) => ImageReading::Unknown(failure),
    }
}

/// What of an image the OSDs refuse to this user: its own header, or that of an ancestor, with its pool.
fn refused(spec: &Spec, pool: &Arc<Pool>) -> Option<Failure> {
    match look_for(spec, pool).ok()? {
        Whereabouts::Id(id) => find_gap(spec, pool, &id).err().filter(|failure| failure.errno == Some(EPERM)),
        Whereabouts::Nowhere | Whereabouts::OldFormat => None,
    }
}

/// Where an image's name leads.
enum Whereabouts {
    /// There is no image of this name.
    Nowhere,
    /// To an image of format 1.
    OldFormat,
    /// To this id.
    Id(String),
}

/// What is missing.
enum Gap {
    Header(String),
    Parent(String),
}

fn broken(spec: &Spec, message: String) -> Failure {
    Failure { origin: Origin::Outside, what: format!("open {spec}"), errno: Some(ENOENT), message }
}

fn look_for(spec: &Spec, pool: &Pool) -> Result<Whereabouts, Failure> {
    let failure = |errno| Failure::errno(format!("look for {spec}"), errno);
    match pool.read(&format!("rbd_id.{}", spec.image)) {
        Ok(bytes) => Ok(Whereabouts::Id(Answer::new(&bytes).text().ok_or_else(|| failure(EIO))?)),
        Err(ENOENT) if exists(pool, &format!("{}.rbd", spec.image)).map_err(failure)? => {
            Ok(Whereabouts::OldFormat)
        }
        Err(ENOENT) => Ok(Whereabouts::Nowhere),
        Err(errno) => Err(failure(errno)),
    }
}

/// There is no such image; is there its namespace, and is the image in the trash? Where that cannot be told, the image
/// is missing all the same.
fn no_image(spec: &Spec, pool: &Pool) -> ImageReading {
    if let Some(namespace) = &spec.namespace {
        let whole_pool = pool.cluster().pool(&spec.pool, None);
        if let Ok(Ok(false)) = whole_pool.map(|pool| pool.namespace_exists(namespace)) {
            return ImageReading::NamespaceMissing;
        }
    }
    match in_trash(&spec.image, pool.trash().unwrap_or_default()) {
        trashed if trashed.is_empty() => ImageReading::ImageMissing,
        trashed => ImageReading::InTrash(trashed),
    }
}

/// What the trash holds that had this name, the last one first.
fn in_trash(name: &str, entries: Vec<RawTrash>) -> Vec<Trashed> {
    let seconds = |time: i64| u64::try_from(time).unwrap_or(0);
    let named = entries.into_iter().filter(|entry| entry.name == name);
    let mut named: Vec<Trashed> = named
        .map(|entry| Trashed {
            id: entry.id,
            source: trash_source(entry.source),
            deleted: seconds(entry.deleted),
            kept_until: seconds(entry.kept_until),
        })
        .collect();
    named.sort_by_key(|entry| std::cmp::Reverse(entry.deleted));
    named
}

/// `rbd_trash_image_source_t`.
fn trash_source(source: i32) -> String {
    const NAMES: [&str; 5] = ["user", "mirroring", "migration", "removing", "user-parent"];
    let name = usize::try_from(source).ok().and_then(|source| NAMES.get(source));
    name.map_or_else(|| format!("unknown {source}"), |name| (*name).to_owned())
}

/// Follows the image's header and those of its ancestors until one is missing.
fn find_gap(spec: &Spec, pool: &Arc<Pool>, id: &str) -> Result<Option<Gap>, Failure> {
    let failure = |errno| Failure::errno(format!("follow the parents of {spec}"), errno);
    let mut header = Header::of(pool, id);
    if !header.exists().map_err(failure)? {
        return Ok(Some(Gap::Header(format!("its header {} is missing", header.object()))));
    }
    for _ in 0..MAX_PARENTS {
        let link = match header.parent() {
            Ok(Some(link)) => link,
            Ok(None) | Err(EIO) => return Ok(None),
            Err(errno) => return Err(failure(errno)),
        };
        let pool = match header.pool().cluster().pool_by_id(link.pool, Some(&link.namespace)) {
            Err(ENOENT) => {
                return Ok(Some(Gap::Parent(format!("the pool {} of a parent is gone", link.pool))));
            }
            other => other.map_err(failure)?,
        };
        header = Header::of(&pool, &link.image);
        let name = pool_name(&pool, link.pool);
        let of_parent = |errno| {
            Failure::errno(format!("read the parent of id {} in {name}, of {spec}", link.image), errno)
        };
        if !header.exists().map_err(of_parent)? {
            return Ok(Some(Gap::Parent(format!("the parent of id {} in {name} is gone", link.image))));
        }
        if header.snapshot_name(link.snapshot) == Err(ENOENT) {
            let text =
                format!("snapshot {} of the parent of id {} in {name} is gone", link.snapshot, link.image);
            return Ok(Some(Gap::Parent(text)));
        }
    }
    Ok(None)
}

fn pool_name(pool: &Pool, id: i64) -> String {
    pool.cluster().pool_name(id).map_or_else(|_| format!("pool {id}"), |name| format!("pool {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_trash_what_had_the_name_counts_the_last_one_first() {
        let entry = |id: &str, name: &str, source, deleted| RawTrash {
            id: id.to_owned(),
            name: name.to_owned(),
            source,
            deleted,
            kept_until: deleted + 60,
        };
        let trash = vec![
            entry("1", "a", 0, 10),
            entry("2", "b", 0, 30),
            entry("3", "a", 3, 20),
            entry("4", "a", 9, -1),
        ];
        let told = in_trash("a", trash);
        let told: Vec<_> =
            told.iter().map(|t| (t.id.as_str(), t.source.as_str(), t.deleted, t.kept_until)).collect();
        assert_eq!(told, [("3", "removing", 20, 80), ("1", "user", 10, 70), ("4", "unknown 9", 0, 59)]);
    }
}
