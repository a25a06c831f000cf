//! What RBD's own objects in a pool say of its images, asked of the OSDs by the class `rbd` (`src/cls/rbd/cls_rbd.cc`), without opening an
//! image. The names of the objects are those of `src/cls/rbd/cls_rbd_types.h`; all methods are there from Ceph 14 on.

use crate::ceph::encoding::{Answer, text};
use crate::ceph::ffi::Pool;
use crate::rbd::features::Features;
use crate::reading::Errno;
use nix::libc::{EIO, ENOENT};
use std::sync::Arc;

/// Holds the names and ids of all images of format 2 in a pool or namespace.
pub const DIRECTORY: &str = "rbd_directory";
/// Holds what is in the trash of a pool or namespace.
const TRASH: &str = "rbd_trash";
/// Holds the mirroring of all images in a pool or namespace.
pub const MIRRORING: &str = "rbd_mirroring";

/// The name of the header object of an image of format 2.
pub fn header(id: &str) -> String {
    format!("rbd_header.{id}")
}

/// The header object of an image of format 2.
pub struct Header {
    pool: Arc<Pool>,
    object: String,
}

/// Where a clone's parent is (`cls::rbd::ParentImageSpec`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentLink {
    /// The pool's number.
    pub pool: i64,
    /// The namespace; empty for the default one.
    pub namespace: String,
    /// The image's id.
    pub image: String,
    /// The snapshot's number.
    pub snapshot: u64,
}

impl Header {
    /// The header of the image of this id in a pool; nothing is asked for yet.
    pub fn of(pool: &Arc<Pool>, id: &str) -> Self {
        Self { pool: Arc::clone(pool), object: header(id) }
    }

    /// The pool and namespace that it is in.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// The object's name.
    pub fn object(&self) -> &str {
        &self.object
    }

    /// Calls a method and reads its answer.
    fn ask<T>(
        &self,
        method: &str,
        input: &[u8],
        read: impl FnOnce(&mut Answer<'_>) -> Option<T>,
    ) -> Result<T, Errno> {
        let answer = self.pool.class_call(&self.object, method, input)?;
        read(&mut Answer::new(&answer)).ok_or(EIO)
    }

    /// The object is there.
    ///
    /// # Errors
    /// Ceph's errno.
    pub fn exists(&self) -> Result<bool, Errno> {
        exists(&self.pool, &self.object)
    }

    /// The image's features. They are the same for all of its snapshots.
    ///
    /// # Errors
    /// Ceph's errno; 5 for an answer that is not understood.
    pub fn features(&self, snapshot: u64) -> Result<Features, Errno> {
        const READ_ONLY: u8 = 1;
        let mut input = snapshot.to_le_bytes().to_vec();
        input.push(READ_ONLY);
        self.ask("get_features", &input, |answer| answer.u64()).map(Features)
    }

    /// The flags of a snapshot, `RBD_FLAG_*`.
    ///
    /// # Errors
    /// Ceph's errno; 5 for an answer that is not understood.
    pub fn flags(&self, snapshot: u64) -> Result<u64, Errno> {
        self.ask("get_flags", &snapshot.to_le_bytes(), |answer| answer.u64())
    }

    /// The image's parent; `None` for an image that is no clone. A clone that was flattened keeps it for as long as one of its
    /// snapshots has it: see [`overlap`](Self::overlap).
    ///
    /// # Errors
    /// Ceph's errno; 5 for an answer that is not understood.
    pub fn parent(&self) -> Result<Option<ParentLink>, Errno> {
        let link = self.ask("parent_get", &[], parent_link)?;
        Ok((link.pool >= 0).then_some(link))
    }

    /// How many bytes a snapshot shares with the image's parent; 0 for a snapshot that needs none.
    ///
    /// # Errors
    /// Ceph's errno; 5 for an answer that is not understood.
    pub fn overlap(&self, snapshot: u64) -> Result<u64, Errno> {
        let read = |answer: &mut Answer<'_>| match answer.u8()? {
            0 => Some(0),
            _ => answer.u64(),
        };
        self.ask("parent_overlap_get", &snapshot.to_le_bytes(), read)
    }

    /// The name of a snapshot; of one in the trash the one that it got there, as librbd says it.
    ///
    /// # Errors
    /// 2 if there is none of this number, else Ceph's errno; 5 for an answer that is not understood.
    pub fn snapshot_name(&self, snapshot: u64) -> Result<String, Errno> {
        self.ask("snapshot_get", &snapshot.to_le_bytes(), snapshot_name)
    }
}

/// An object is there.
///
/// # Errors
/// Ceph's errno.
pub fn exists(pool: &Pool, object: &str) -> Result<bool, Errno> {
    match pool.stat(object) {
        Ok(()) => Ok(true),
        Err(ENOENT) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// The name of an image, by its id, and whether it is in the trash.
///
/// # Errors
/// 2 if neither has the id, else Ceph's errno; 5 for an answer that is not understood.
pub fn image_name(pool: &Pool, id: &str) -> Result<(String, bool), Errno> {
    match pool.class_call(DIRECTORY, "dir_get_name", &text(id)) {
        Ok(answer) => Ok((Answer::new(&answer).text().ok_or(EIO)?, false)),
        Err(ENOENT) => {
            let answer = pool.class_call(TRASH, "trash_get", &text(id))?;
            Ok((trash_name(&mut Answer::new(&answer)).ok_or(EIO)?, true))
        }
        Err(errno) => Err(errno),
    }
}

fn parent_link(answer: &mut Answer<'_>) -> Option<ParentLink> {
    let mut spec = answer.structure()?;
    let (pool, namespace) = (spec.i64()?, spec.text()?);
    Some(ParentLink { pool, namespace, image: spec.text()?, snapshot: spec.u64()? })
}

/// `cls::rbd::SnapshotInfo`: a number, a namespace, a name.
fn snapshot_name(answer: &mut Answer<'_>) -> Option<String> {
    let mut info = answer.structure()?;
    info.u64()?;
    info.structure()?;
    info.text()
}

/// `cls::rbd::TrashImageSpec`: who put it there, its name.
fn trash_name(answer: &mut Answer<'_>) -> Option<String> {
    let mut spec = answer.structure()?;
    spec.u8()?;
    spec.text()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn structure(inside: &[u8]) -> Vec<u8> {
        [&[1, 1][..], &u32::try_from(inside.len()).unwrap().to_le_bytes(), inside].concat()
    }

    fn parent(pool: i64) -> Vec<u8> {
        structure(&[&pool.to_le_bytes()[..], &text("ns"), &text("abc"), &7_u64.to_le_bytes()].concat())
    }

    #[test]
    fn a_parent_link_is_pool_namespace_id_snapshot() {
        let link = ParentLink { pool: 3, namespace: "ns".to_owned(), image: "abc".to_owned(), snapshot: 7 };
        assert_eq!(parent_link(&mut Answer::new(&parent(3))), Some(link));
        assert!(
            (0..parent(3).len()).all(|length| parent_link(&mut Answer::new(&parent(3)[..length])).is_none())
        );
    }

    #[test]
    fn a_snapshots_name_stands_behind_its_namespace() {
        let trash = structure(&[&2_u32.to_le_bytes()[..], &text("old"), &[0; 4]].concat());
        let info = structure(&[&7_u64.to_le_bytes()[..], &trash, &text("new"), &[0; 12]].concat());
        assert_eq!(snapshot_name(&mut Answer::new(&info)).as_deref(), Some("new"));
    }

    #[test]
    fn an_image_in_the_trash_has_the_name_that_it_had() {
        let spec = structure(&[&[0][..], &text("base"), &[0; 16]].concat());
        assert_eq!(trash_name(&mut Answer::new(&spec)).as_deref(), Some("base"));
    }
}
