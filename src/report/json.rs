//! The JSON that `check`, `repair` and `disks` print. One versioned schema; names never change within a version.

use crate::ceph::image::{ImageFacts, ImageReading};
use crate::observe::survey::DiskFacts;
use crate::plan::assessment::GuestReport;
use crate::pve::guest::{Disk, Guest};
use crate::rbd::action::ActionReport;
use crate::sys::plain::is_hidden;
use serde_json::{Value, json};

/// The version of the schema.
pub const SCHEMA: u32 = 1;

/// JSON as it is printed. What acts on a terminal is in strings only, and is written there as `\uXXXX`: JSON itself
/// asks that of the first 32 characters alone.
pub fn printed(value: &Value) -> String {
    shown(&format!("{value:#}"))
}

/// The same in one line.
pub fn in_one_line(value: &Value) -> String {
    shown(&value.to_string())
}

fn shown(json: &str) -> String {
    let shown = |c: char| match c {
        '\n' => c.to_string(),
        c if is_hidden(c) => format!("\\u{:04x}", u32::from(c)),
        c => c.to_string(),
    };
    json.chars().map(shown).collect()
}

/// A guest's report, as `check --json` prints it (`docs/report.schema.json`).
pub fn guest(report: &GuestReport) -> Value {
    let survey = &report.survey;
    json!({
        "schema": SCHEMA,
        "guest": {
            "vmid": survey.guest.vmid,
            "kind": survey.guest.kind,
            "name": survey.guest.name,
            "node": survey.guest.node,
            "this_node": survey.node.name,
            "running": survey.node.running.known(),
            "lock": survey.guest.lock,
            "template": survey.guest.template,
        },
        "verdict": report.verdict(),
        "disks": survey.disks.iter().map(disk_facts).collect::<Vec<_>>(),
        "findings": report.findings,
        "actions": report.actions.iter().map(action).collect::<Vec<_>>(),
    })
}

/// The reports of several guests.
pub fn guests(reports: &[GuestReport]) -> Value {
    json!({ "schema": SCHEMA, "guests": reports.iter().map(guest).collect::<Vec<_>>() })
}

/// The name that a plain enum has in JSON.
pub(super) fn word(value: &impl serde::Serialize) -> String {
    json!(value).as_str().unwrap_or_default().to_owned()
}

/// A disk with what Ceph says of it.
fn disk_facts(facts: &DiskFacts) -> Value {
    let mut value = disk(&facts.disk);
    let (state, image, error) = match &facts.reading {
        None => ("none", None, None),
        Some(ImageReading::Found(image)) => ("found", Some(image), None),
        Some(ImageReading::ImageMissing) => ("image-missing", None, None),
        Some(ImageReading::InTrash(_)) => ("image-in-trash", None, None),
        Some(ImageReading::PoolMissing) => ("pool-missing", None, None),
        Some(ImageReading::NamespaceMissing) => ("namespace-missing", None, None),
        Some(ImageReading::ParentMissing(failure)) => ("parent-missing", None, Some(failure)),
        Some(ImageReading::Unknown(failure)) => ("unknown", None, Some(failure)),
    };
    value["state"] = json!(state);
    value["error"] = json!(error.map(ToString::to_string));
    value["facts"] = image.map_or(Value::Null, |facts| image_facts(facts));
    value["features"] = value["facts"]["features"].clone();
    value["shared_with"] = json!(facts.shared_with);
    value
}

/// An image's facts; what could not be read is null, and a finding says why.
fn image_facts(facts: &ImageFacts) -> Value {
    json!({
        "id": facts.id,
        "format": facts.format,
        "size": facts.size,
        "object_size": facts.object_size,
        "objects": facts.objects,
        "features": facts.features,
        "op_features": facts.op_features.known(),
        "flags": facts.flags.known(),
        "snapshots": facts.snapshots.known(),
        "lock": facts.lock.known(),
        "watchers": facts.watchers.known(),
        "parents": facts.parents.known(),
        "mirroring": facts.mirroring.known(),
        "migration": facts.migration.known(),
    })
}

/// A change and what came of it.
pub fn action(report: &ActionReport) -> Value {
    let action = &report.action;
    let mut value = json!(report.result);
    value["kernel_log"] = json!(report.kernel_log);
    value["storage"] = json!(action.target.storage);
    value["image"] = json!(action.target.spec.to_string());
    value["change"] = json!(action.change);
    value["command"] = json!(action.command_line());
    value
}

/// `disks --json`: the guest's disks as its config has them.
pub fn disks(guest: &Guest) -> Value {
    json!({
        "schema": SCHEMA,
        "vmid": guest.vmid,
        "kind": guest.kind,
        "node": guest.node,
        "name": guest.name,
        "disks": guest.disks.iter().map(disk).collect::<Vec<_>>(),
        "refusals": guest.refusals,
        "notes": guest.notes,
    })
}

fn disk(disk: &Disk) -> Value {
    let mut value = json!(disk);
    value["pve_drops"] = json!(disk.pve_drops.as_ref().map(|dropped| &dropped.why));
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_shows_everything_and_reads_back_the_same() {
        let value = json!({ "a\u{9b}": "b\u{7f}\n\u{1b}[2J\u{202e}\u{2066}\u{feff} ö" });
        let text = printed(&value);
        assert!(!text.chars().any(|c| c != '\n' && is_hidden(c)), "{text:?}");
        assert_eq!(text.lines().count(), 3);
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
    }
}
