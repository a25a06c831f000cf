//! The ancestors of a clone.

use crate::ceph::ffi::{Image, RawParent};
use crate::ceph::image::{Parent, Spec};
use crate::rbd::features::Features;
use crate::reading::{Failure, Reading};

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
        let (features, above) = match open(&link, image) {
            Ok(opened) => (read_features(&parent_spec, &opened), parent_of(&parent_spec, &opened)?),
            Err(failure) => (Reading::Unknown(failure), None),
        };
        let RawParent { image_id: id, snapshot, trashed, .. } = link;
        parents.push(Parent { spec: parent_spec, id, snapshot, trashed, features });
        next = above.filter(|_| parents.len() < MAX_PARENTS);
    }
    Ok(parents)
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
