//! Images that are named after guests which are not there.

use crate::ceph::image::Spec;
use crate::diagnose::code::Code;
use crate::diagnose::finding::Finding;
use crate::reading::Reading;
use crate::survey::Names;
use std::collections::BTreeSet;

/// A note on each image whose name says that it is a guest's (`vm-516-disk-0`, `base-516-disk-0`), where no node of
/// the cluster has that guest and no other guest names the image. A pool that could not be listed says nothing.
pub fn findings(names: &Names, guests: &BTreeSet<u32>, named: &dyn Fn(&Spec) -> bool) -> Vec<Finding> {
    let mut orphans: BTreeSet<(Spec, u32)> = BTreeSet::new();
    for ((pool, namespace), listed) in names {
        let Reading::Known(listed) = listed else { continue };
        for image in listed {
            let Some(vmid) = owner(image).filter(|vmid| !guests.contains(vmid)) else { continue };
            let spec = Spec { pool: pool.clone(), namespace: namespace.clone(), image: image.clone() };
            if !named(&spec) {
                orphans.insert((spec, vmid));
            }
        }
    }
    let finding = |(spec, vmid): (Spec, u32)| {
        let mut finding = Finding::new(Code::ImageOrphaned, format!("there is no guest {vmid}"));
        finding.image = Some(spec.to_string());
        finding
    };
    orphans.into_iter().map(finding).collect()
}

/// The guest in a volume's name (`PVE::Storage::RBDPlugin`, `parse_volname`).
fn owner(image: &str) -> Option<u32> {
    let rest = image.strip_prefix("vm-").or_else(|| image.strip_prefix("base-"))?;
    rest.split_once('-')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reading::Failure;

    #[test]
    fn only_images_of_guests_that_nobody_has_and_nobody_names() {
        let listed =
            ["vm-100-disk-0", "vm-200-disk-0", "base-201-disk-0", "vm-202-disk-0", "golden", "vm-x-1"];
        let listed = Reading::Known(listed.map(str::to_owned).to_vec());
        let pool = |name: &str| (name.to_owned(), None);
        let silent = Reading::Unknown(Failure::errno("list", 110));
        let names = vec![(pool("a"), listed.clone()), (pool("b"), silent), (pool("a"), listed)];
        let found = findings(&names, &BTreeSet::from([100]), &|spec| spec.image == "vm-202-disk-0");
        let images: Vec<_> = found.iter().filter_map(|finding| finding.image.as_deref()).collect();
        assert_eq!(images, ["a/base-201-disk-0", "a/vm-200-disk-0"]);
    }
}
