//! The ancestors of a clone.
//!
//! An image that is open has all of its ancestors open too, so each of them can be opened. What else is to be known of them their headers
//! say; to open each of them anew would open all that are above it as often.

use crate::ceph::ffi::{Cluster, Image, RawParent};
use crate::ceph::image::Parent;
use crate::ceph::objects::{Header, image_name};
use crate::rbd::features::Features;
use crate::rbd::spec::Spec;
use crate::reading::{Errno, Failure, Reading};
use nix::libc::EIO;
use std::sync::Arc;

/// krbd follows 16 parents (`RBD_MAX_PARENT_CHAIN_LEN`); one more shows that there are too many.
pub const MAX_PARENTS: usize = 17;

/// Every ancestor, nearest first. One that cannot be opened is the last of the list, its features not known.
///
/// # Errors
/// The link from one image to its parent could not be read.
pub fn read_parents(spec: &Spec, image: &Image) -> Result<Vec<Parent>, Failure> {
    let mut parents = Vec::new();
    let mut next = parent_of(spec, image)?;
    while let Some(link) = next {
        let parent_spec = spec_of(&link);
        let (features, above) = match by_header(&link, image.pool().cluster()) {
            Ok((features, above)) => (Reading::Known(features), above),
            Err(_) => by_opening(&link, &parent_spec, image)?,
        };
        let RawParent { image_id: id, snapshot, trashed, .. } = link;
        parents.push(Parent { spec: parent_spec, id, snapshot, trashed, features });
        next = above.filter(|_| parents.len() < MAX_PARENTS);
    }
    Ok(parents)
}

/// The features of a parent, and its own parent, by their headers. Whatever fails, librbd is to say why.
fn by_header(link: &RawParent, cluster: &Arc<Cluster>) -> Result<(Features, Option<RawParent>), Errno> {
    let pool = cluster.pool_by_id(link.pool_id, some_namespace(link))?;
    let header = Header::of(&pool, &link.image_id);
    let features = header.features(link.snapshot_id)?;
    if features.contains(Features::MIGRATING) {
        return Err(EIO); // what it is moved from is its parent too, which librbd knows
    }
    Ok((features, link_above(&header, link.snapshot_id, cluster)?))
}

/// The parent that an image had when the snapshot was made; a head may have been flattened since.
fn link_above(header: &Header, snapshot: u64, cluster: &Arc<Cluster>) -> Result<Option<RawParent>, Errno> {
    let Some(link) = header.parent()? else { return Ok(None) };
    if header.overlap(snapshot)? == 0 {
        return Ok(None);
    }
    let pool = cluster.pool_by_id(link.pool, Some(&link.namespace))?;
    let (image, trashed) = image_name(&pool, &link.image)?;
    Ok(Some(RawParent {
        pool_id: link.pool,
        pool: cluster.pool_name(link.pool)?,
        snapshot: Header::of(&pool, &link.image).snapshot_name(link.snapshot)?,
        namespace: link.namespace,
        image_id: link.image,
        image,
        trashed,
        snapshot_id: link.snapshot,
    }))
}

/// The same by librbd.
fn by_opening(
    link: &RawParent,
    spec: &Spec,
    child: &Image,
) -> Result<(Reading<Features>, Option<RawParent>), Failure> {
    Ok(match open(link, child) {
        Ok(opened) => (read_features(spec, &opened), parent_of(spec, &opened)?),
        Err(failure) => (Reading::Unknown(failure), None),
    })
}

fn parent_of(spec: &Spec, image: &Image) -> Result<Option<RawParent>, Failure> {
    image.parent().map_err(|errno| Failure::errno(format!("read the parent of {spec}"), errno))
}

fn spec_of(link: &RawParent) -> Spec {
    let name = if link.image.is_empty() { &link.image_id } else { &link.image };
    Spec { pool: link.pool.clone(), namespace: some_namespace(link).map(str::to_owned), image: name.clone() }
}

fn some_namespace(link: &RawParent) -> Option<&str> {
    Some(link.namespace.as_str()).filter(|namespace| !namespace.is_empty())
}

/// Opens a parent by its id, so in the trash too, and as it was when the clone was made: a head may have been
/// flattened since.
fn open(link: &RawParent, child: &Image) -> Result<Image, Failure> {
    let what = || format!("open the parent {} at its snapshot {}", spec_of(link), link.snapshot);
    let failure = |errno| Failure::errno(what(), errno);
    let cluster = child.pool().cluster();
    let pool = cluster.pool_by_id(link.pool_id, some_namespace(link)).map_err(failure)?;
    let parent = pool.open_by_id(&link.image_id)?;
    parent.look_at_snapshot(link.snapshot_id).map_err(failure)?;
    Ok(parent)
}

fn read_features(spec: &Spec, parent: &Image) -> Reading<Features> {
    let features = parent.features().map(Features);
    features.map_err(|errno| Failure::errno(format!("read the features of the parent {spec}"), errno)).into()
}
