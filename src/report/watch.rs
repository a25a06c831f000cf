//! What `watch` reports: a line for people, fields for systemd's journal, JSON, metrics.

use crate::report::prometheus::{escaped, family};
use crate::sys::plain::plain;
use crate::watch::code::Gravity;
use crate::watch::trouble::{Event, Trouble};
use serde_json::{Value, json};

/// One line: `error: guest 516, scsi0 (rbd/vm-516-disk-0): … [disk-dead]`.
pub fn line(event: &Event) -> String {
    let Event { over, trouble } = event;
    let code = trouble.code;
    let about = about(trouble);
    if *over {
        return plain(&format!("over: {about}{}: {} [{code}]", code.over(), trouble.seen));
    }
    plain(&format!(
        "{}: {about}{}: {}; to do: {} [{code}]",
        code.gravity(),
        code.meaning(),
        trouble.seen,
        code.remedy()
    ))
}

/// `guest 516, scsi0 (rbd/vm-516-disk-0): `; nothing where it is about no guest and no image.
fn about(trouble: &Trouble) -> String {
    let guests: Vec<String> = trouble.guests.iter().map(ToString::to_string).collect();
    let guests = match guests.as_slice() {
        [] => None,
        [one] => Some(format!("guest {one}")),
        more => Some(format!("guests {}", more.join(", "))),
    };
    let place = match (&trouble.disk, &trouble.image) {
        (Some(disk), Some(image)) => Some(format!("{disk} ({image})")),
        (None, Some(image)) => Some(image.clone()),
        _ => None,
    };
    let words: Vec<String> = [guests, place].into_iter().flatten().collect();
    if words.is_empty() { String::new() } else { words.join(", ") + ": " }
}

/// The fields that it has in systemd's journal besides the message, in order; `VMID` once for each guest.
pub fn fields(event: &Event) -> Vec<(&'static str, String)> {
    let Event { over, trouble } = event;
    let mut fields = vec![
        ("MESSAGE_ID", trouble.code.message_id().to_owned()),
        ("CODE", trouble.code.name().to_owned()),
        ("STATE", if *over { "over" } else { "begun" }.to_owned()),
    ];
    fields.extend(trouble.guests.iter().map(|vmid| ("VMID", vmid.to_string())));
    let known = [
        ("DISK", trouble.disk.clone()),
        ("DEVICE", trouble.device.map(|number| format!("/dev/rbd{number}"))),
        ("IMAGE", trouble.image.clone()),
        ("STORAGE", trouble.storage.clone()),
        ("CEPH_FSID", trouble.fsid.clone()),
        ("CEPH_CLIENT", trouble.client.clone()),
        ("ERRNO", trouble.errno.map(|errno| errno.to_string())),
    ];
    fields.extend(known.into_iter().filter_map(|(name, value)| Some((name, plain(&value?)))));
    fields
}

/// The level of systemd's journal: an end is a notice.
pub fn level(event: &Event) -> log::Level {
    match (event.over, event.trouble.code.gravity()) {
        (false, Gravity::Error) => log::Level::Error,
        (false, Gravity::Warning) => log::Level::Warn,
        (true, _) | (false, Gravity::Notice) => log::Level::Info,
    }
}

/// The same as JSON, to be printed in one line.
pub fn json(event: &Event, at: u64) -> Value {
    let Event { over, trouble } = event;
    json!({
        "schema": 1,
        "at": at,
        "code": trouble.code.name(),
        "gravity": trouble.code.gravity().to_string(),
        "over": over,
        "guests": trouble.guests,
        "disk": trouble.disk,
        "device": trouble.device.map(|number| format!("/dev/rbd{number}")),
        "image": trouble.image,
        "storage": trouble.storage,
        "fsid": trouble.fsid,
        "client": trouble.client,
        "errno": trouble.errno,
        "seen": trouble.seen,
    })
}

/// What `watch --metrics` writes: `standing` is what was reported and is not over, `disks` how many disks of running guests
/// are watched, `at` when the last look was, in seconds since 1970.
pub fn metrics<'a>(node: &str, standing: impl Iterator<Item = &'a Trouble>, disks: usize, at: u64) -> String {
    let mut samples = Vec::new();
    for trouble in standing {
        let text = |value: &Option<String>| escaped(value.as_deref().unwrap_or_default());
        let device = trouble.device.map(|number| format!("/dev/rbd{number}"));
        let code = trouble.code.name();
        let of = |vmid: &str| {
            format!(
                "node=\"{}\",code=\"{code}\",gravity=\"{}\",vmid=\"{vmid}\",disk=\"{}\",device=\"{}\",image=\"{}\",client=\"{}\"",
                escaped(node),
                trouble.code.gravity(),
                text(&trouble.disk),
                text(&device),
                text(&trouble.image),
                text(&trouble.client),
            )
        };
        let vmids: Vec<String> = trouble.guests.iter().map(ToString::to_string).collect();
        match vmids.as_slice() {
            [] => samples.push(of("")),
            all => samples.extend(all.iter().map(|vmid| of(vmid))),
        }
    }
    samples.sort();
    // Two storages without any other difference, such as two files that cannot be read, are one sample.
    samples.dedup();
    let samples = samples.into_iter().map(|labels| (labels, "1".to_owned())).collect();
    let own = format!("node=\"{}\"", escaped(node));
    [
        family(
            "watch_trouble",
            "What the watcher has reported and what is not over, by code and guest: 1.",
            samples,
        ),
        family(
            "watch_disks",
            "Disks of guests that run here and are watched.",
            vec![(own.clone(), disks.to_string())],
        ),
        family("watch_timestamp_seconds", "When the watcher last looked.", vec![(own, at.to_string())]),
    ]
    .concat()
}
