//! The links by which PVE finds a mapped image (`PVE::Storage::RBDPlugin::get_rbd_dev_path`).

use crate::ceph::image::Spec;
use crate::root::Root;

/// The device that PVE's link to an image leads to, `rbd0`; `None` where there is no link.
pub fn linked(root: &Root, fsid: &str, spec: &Spec) -> Option<String> {
    let target = std::fs::read_link(root.path(format!("/dev/rbd-pve/{fsid}/{spec}"))).ok()?;
    Some(target.file_name()?.to_string_lossy().into_owned())
}
