//! What the storage's user may do with an image, as far as it was read: by its caps, or since an OSD refused it. What was not read is not
//! claimed.
//!
//! Of a data pool that the user may not read or write, neither `rbd map` nor QEMU takes notice: the start succeeds, and each read and
//! write of the disk fails with 1 (EPERM). Such a disk works for nobody, and a guest that is started with it does what guests
//! do that lose a disk: it mounts the others without it, takes it out of its RAID. So it stops the start.

use crate::ceph::caps::{Caps, caps_command, caps_template, may_blocklist, template_remark, with_pools};
use crate::ceph::image::{DataPool, ImageFacts};
use crate::ceph::osd_caps::{ALL, Place, READ, WRITE, may};
use crate::diagnose::finding::{Finding, RemedyKind};
use crate::finding_codes::Code;
use crate::observe::lock_owner::unwatching;
use crate::observe::survey::{DiskFacts, StorageFacts, Survey};
use crate::pve::storage::RbdStorage;
use crate::reading::{Failure, Reading};

/// Findings about an image that was read.
pub fn findings(survey: &Survey, disk: &DiskFacts, facts: &ImageFacts) -> Vec<Finding> {
    let Some(storage) = survey.storages.get(&disk.disk.storage) else { return Vec::new() };
    let (pool, namespace) = (disk.disk.pool.as_str(), disk.disk.namespace.as_deref());
    let writes = !disk.disk.read_only && !disk.disk.cdrom;
    let caps = storage.caps.as_ref().and_then(Reading::known);
    let lacks = |place, rights| caps.is_some_and(|caps| may(caps, place, rights) == Some(false));
    let mut missing: Vec<(&str, String)> = Vec::new();
    if writes && lacks(Place { pool, namespace }, ALL) {
        missing.push((pool, format!("open images in the pool {pool} for writing")));
    }
    if let Some(Reading::Known(DataPool { name, readable })) = &facts.data_pool {
        let place = Place { pool: name, namespace };
        if *readable == Reading::Known(false) || lacks(place, READ) {
            missing.push((name, format!("read the pool {name}, where the image's data is")));
        } else if writes && lacks(place, READ | WRITE) {
            missing.push((name, format!("write to the pool {name}, where the image's data is")));
        }
    }
    let mut findings = Vec::new();
    if !missing.is_empty() {
        let (pools, what): (Vec<&str>, Vec<String>) = missing.into_iter().unzip();
        let user = &storage.connection.user;
        let detail = format!("client.{user} may not {}", what.join(", nor "));
        findings.push(with_line(Finding::new(Code::RightsMissing, detail), storage, &pools, namespace));
    }
    if caps.is_some_and(|caps| may_blocklist(caps) == Some(false)) && unwatching(disk).is_none() {
        let user = &storage.connection.user;
        let detail = format!("client.{user} may not put a client on the OSD blocklist");
        findings.push(with_line(Finding::new(Code::BlocklistNotPermitted, detail), storage, &[], namespace));
    }
    findings
}

/// An image that the OSDs let the user not even open.
pub fn refused(survey: &Survey, disk: &DiskFacts, failure: &Failure) -> Option<Finding> {
    let storage = survey.storages.get(&disk.disk.storage)?;
    if !failure.is_refusal() {
        return None;
    }
    let (pool, namespace) = (disk.disk.pool.as_str(), disk.disk.namespace.as_deref());
    let detail = format!("an OSD refuses client.{}: {failure}", storage.connection.user);
    let readable = storage
        .caps
        .as_ref()
        .and_then(Reading::known)
        .and_then(|caps| may(caps, Place { pool, namespace }, ALL));
    // Where it may do all in its own pool, the refusal is about an ancestor's, whose name is in the detail.
    let pools: &[&str] = if readable == Some(true) { &[] } else { &[pool] };
    Some(with_line(Finding::new(Code::RightsMissing, detail), storage, pools, namespace))
}

/// With the line that gives the user what is missing, and takes nothing from it.
fn with_line(finding: Finding, storage: &StorageFacts, pools: &[&str], namespace: Option<&str>) -> Finding {
    let user = storage.connection.user.as_str();
    let caps: Option<&Caps> = storage.caps.as_ref().and_then(Reading::known);
    match caps {
        Some(caps) => {
            let wanted: Vec<(&str, Option<&str>)> = pools.iter().map(|pool| (*pool, namespace)).collect();
            finding.commands([caps_command(user, &with_pools(caps, &wanted))])
        }
        None => {
            let text = format!("{}; {}", finding.code.remedy(), template_remark(user));
            let section = &storage.section;
            // The data pool is the image's, whatever the storage says.
            let further = pools.iter().filter(|pool| **pool != section.pool);
            let further =
                further.map(|pool| RbdStorage { data_pool: Some((*pool).to_owned()), ..section.clone() });
            let sections: Vec<RbdStorage> = std::iter::once(section.clone()).chain(further).collect();
            finding.remedy(RemedyKind::Manual, text).commands([caps_template(user, &sections)])
        }
    }
}
