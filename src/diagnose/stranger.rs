//! A device in the disk's place that is another image. PVE goes by the link /dev/rbd-pve/FSID/POOL/NAME, and udev makes it
//! from the name that the image had when it was mapped: after `rbd rename A B; rbd create A` it leads to B's data, and a
//! start of the guest with the disk A would write there.

use crate::ceph::image::{ImageReading, Spec};
use crate::diagnose::finding::{Finding, RemedyKind};
use crate::diagnose::mapping::{fresh, gave_up, kept, unmap};
use crate::diagnose::safety;
use crate::finding_codes::{Code, Severity};
use crate::kernel::Mapping;
use crate::kernel::holders::Holder;
use crate::observe::survey::{DiskFacts, Survey};
use crate::pve::connection::rbd_arguments;
use crate::pve::guest::Access;
use crate::rbd::identity::ImageIdentity;
use crate::reading::Reading;
use crate::settings::policy::{Policy, Scope};
use crate::sys::process::Command;

/// What is mapped in the place of a disk that the kernel opens, and is another image.
pub fn findings(survey: &Survey, policy: &Policy, disk: &DiskFacts) -> Vec<Finding> {
    let by_kernel = disk.disk.access == Access::Krbd;
    let strangers = survey.strangers(disk).filter(|_| by_kernel);
    strangers.map(|mapping| of_mapping(survey, policy, disk, mapping)).collect()
}

fn of_mapping(survey: &Survey, policy: &Policy, disk: &DiskFacts, mapping: &Mapping) -> Finding {
    let linked = disk.linked_number() == Some(mapping.id);
    let starts = survey.guest.node == survey.node.name && survey.node.running != Reading::Known(true);
    let detail = detail(disk, mapping, linked);
    // Without the link PVE does not find it; but udev may turn the link to it at any time.
    let severity = if linked && starts { Severity::Unsafe } else { Severity::Warning };
    let mut finding = Finding::new(Code::MappingOtherImage, detail).severity(severity);
    let action = unmap(mapping);
    let storage = &disk.disk.storage;
    let why_not = policy
        .forbids(storage)
        .or_else(|| safety::guest_forbids(survey))
        .or_else(|| kept(survey, mapping))
        .or_else(|| {
            (policy.scope == Scope::InHook && disk.disk.before_hook)
                .then(|| "PVE has opened it for this start".to_owned())
        })
        .or_else(|| fresh(survey, mapping, policy.scope))
        .or_else(|| gave_up(survey, &action));
    finding.remedy.commands = present_name(survey, disk, mapping).into_iter().collect();
    finding.remedy.commands.push(action.command_line());
    match why_not {
        None => {
            finding.remedy.kind = RemedyKind::Automatic;
            finding.remedy.actions = vec![action];
        }
        Some(why) => {
            let users = survey.node.mapping_users.get(&mapping.id);
            let holders = users.and_then(|users| users.holders.known());
            let passes = holders.is_some_and(|all| !all.is_empty() && all.iter().all(Holder::may_pass));
            finding.remedy.kind = if passes { RemedyKind::Wait } else { RemedyKind::Manual };
            finding.remedy.withheld = Some(why);
        }
    }
    finding
}

/// What was seen: which image the device is, and which one the disk is.
fn detail(disk: &DiskFacts, mapping: &Mapping, linked: bool) -> String {
    let spec = disk.spec().map(|spec| spec.to_string()).unwrap_or_default();
    let (theirs, own) = (Spec::of_mapping(mapping), disk.spec());
    let name = if own == Some(theirs.clone()) {
        "mapped when it had this name".to_owned()
    } else {
        format!("mapped as {theirs}")
    };
    let present = match &disk.reading {
        Some(ImageReading::Found(facts)) => format!("{spec} is {}", told(Some(&facts.id))),
        _ => format!("there is no {spec} now"),
    };
    let link = if linked { ", and PVE's link to the disk leads to it" } else { "" };
    format!("/dev/rbd{} is {}, {name}{link}; {present}", mapping.id, told(mapping.image_id.as_deref()))
}

fn told(id: Option<&str>) -> String {
    match id {
        Some("") => "an image of format 1".to_owned(),
        Some(id) => format!("the image of the id {id}"),
        None => "an image of an unknown id".to_owned(),
    }
}

/// The command that tells which name the other image has now, where the disk's storage leads to it.
fn present_name(survey: &Survey, disk: &DiskFacts, mapping: &Mapping) -> Option<String> {
    let storage = survey.storages.get(&disk.disk.storage)?;
    let (own, theirs) = (survey.identity(disk)?, ImageIdentity::of_mapping(mapping));
    let id = theirs.id.filter(|id| !id.is_empty())?;
    let here = (own.fsid, own.pool, own.namespace) == (theirs.fsid, theirs.pool, theirs.namespace);
    let command = Command::new("rbd").args(rbd_arguments(&storage.section, &storage.connection));
    here.then(|| command.args(["info", "--image-id", id]).display())
}
