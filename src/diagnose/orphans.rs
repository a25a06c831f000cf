//! Images that are named after guests which are not there.

use crate::ceph::image::Spec;
use crate::diagnose::finding::Finding;
use crate::finding_codes::Code;
use crate::observe::gather::{Listed, Names};
use crate::reading::Reading;
use std::collections::BTreeSet;

/// A note on each image whose name says that it is a guest's (`vm-516-disk-0`, `base-516-disk-0`), where no node of
/// the cluster has that guest and no other guest names the image: `named` tells it of an image in the cluster of an
/// fsid. A pool that could not be listed says nothing.
pub fn findings(
    names: &Names,
    guests: &BTreeSet<u32>,
    named: &dyn Fn(Option<&str>, &Spec) -> bool,
) -> Vec<Finding> {
    let mut orphans: BTreeSet<(Option<&str>, Spec, u32)> = BTreeSet::new();
    let clusters: BTreeSet<_> = names.iter().map(|listed| &listed.fsid).collect();
    for Listed { fsid, pool: (pool, namespace), names } in names {
        let Reading::Known(names) = names else { continue };
        let fsid = fsid.as_deref();
        for image in names {
            let Some(vmid) = owner(image).filter(|vmid| !guests.contains(vmid)) else { continue };
            let spec = Spec { pool: pool.clone(), namespace: namespace.clone(), image: image.clone() };
            if !named(fsid, &spec) {
                orphans.insert((fsid, spec, vmid));
            }
        }
    }
    let finding = |(fsid, spec, vmid): (Option<&str>, Spec, u32)| {
        let place = fsid.filter(|_| clusters.len() > 1);
        let place = place.map(|fsid| format!("in the cluster {fsid}: ")).unwrap_or_default();
        let mut finding = Finding::new(Code::ImageOrphaned, format!("{place}there is no guest {vmid}"));
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
        let pool = |fsid: &str, pool: &str, names: &Reading<Vec<String>>| Listed {
            fsid: Some(fsid.to_owned()),
            pool: (pool.to_owned(), None),
            names: names.clone(),
        };
        let silent = Reading::Unknown(Failure::errno("list", 110));
        let mut names = vec![pool("f", "a", &listed), pool("f", "b", &silent), pool("f", "a", &listed)];
        let told = |names: &Names| -> Vec<(String, String)> {
            let named = |fsid: Option<&str>, spec: &Spec| fsid == Some("f") && spec.image == "vm-202-disk-0";
            let found = findings(names, &BTreeSet::from([100]), &named);
            found.into_iter().map(|finding| (finding.image.unwrap(), finding.detail)).collect()
        };
        let none = |image: &str, vmid: u32| (format!("a/{image}"), format!("there is no guest {vmid}"));
        assert_eq!(told(&names), [none("base-201-disk-0", 201), none("vm-200-disk-0", 200)]);
        names.push(pool("g", "a", &Reading::Known(vec!["vm-202-disk-0".to_owned()])));
        assert_eq!(
            told(&names).last().unwrap(),
            &("a/vm-202-disk-0".to_owned(), "in the cluster g: there is no guest 202".to_owned()),
            "that one name in another cluster is another image"
        );
    }
}
