//! The links by which PVE finds a mapped image (`PVE::Storage::RBDPlugin::get_rbd_dev_path`).

use crate::ceph::image::Spec;
use crate::sys::root::Root;

/// The device that PVE's link to an image leads to, `rbd0`; `None` where there is no link. udev makes it from the name that
/// the image had when it was mapped (`ceph-rbdnamer-pve`), so the device may be another image by now.
pub fn linked(root: &Root, fsid: &str, spec: &Spec) -> Option<String> {
    let target = std::fs::read_link(root.path(format!("/dev/rbd-pve/{fsid}/{spec}"))).ok()?;
    Some(target.file_name()?.to_string_lossy().into_owned())
}

/// `N` of `rbdN`; `None` for any other device, and for a partition.
pub fn number(device: &str) -> Option<u32> {
    device.strip_prefix("rbd")?.parse().ok()
}
