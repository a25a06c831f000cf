//! The guests of this node: are they started with the hook, and can it help them in time.

use super::{Check, Facts, SNIPPET, Snippet, State};
use crate::pve::guest::{Guest, Role};
use crate::reading::Reading;
use crate::report::attach::{OtherNode, Presence};

pub(super) fn checks(facts: &Facts) -> Vec<Check> {
    let mut checks = vec![snippet(facts)];
    checks.extend(facts.elsewhere.iter().map(elsewhere));
    match &facts.guests {
        Reading::Known(all) => {
            checks.extend(unread(all));
            checks.push(without_hook(facts));
            checks.push(before_hook(facts));
        }
        Reading::Unknown(failure) => {
            checks.push(Check::new("guests", State::Unknown, format!("the guests were not read: {failure}")));
        }
    }
    checks
}

fn without_hook(facts: &Facts) -> Check {
    let name = "guests-without-hook";
    let unhooked: Vec<String> = with_disks(facts).filter(|guest| !is_hooked(guest)).map(number).collect();
    if unhooked.is_empty() {
        return Check::ok(name, "every guest with RBD disks is started with the hook");
    }
    Check::new(name, State::Warn, format!("started without the hook: {}", unhooked.join(", ")))
        .remedy(format!("rbd-preflight attach {}", unhooked.join(" ")))
}

fn number(guest: &Guest) -> String {
    guest.vmid.to_string()
}

/// Guests that can be started and have RBD disks.
fn with_disks(facts: &Facts) -> impl Iterator<Item = &Guest> {
    facts.guests().filter(|guest| !guest.template && !guest.disks.is_empty())
}

/// The guest's hookscript is ours, on whatever storage.
fn is_hooked(guest: &Guest) -> bool {
    let name = SNIPPET.split_once(':').map_or(SNIPPET, |(_, name)| name);
    guest
        .hookscript
        .as_deref()
        .and_then(|volid| volid.split_once(':'))
        .is_some_and(|(_, there)| there == name)
}

/// PVE refuses to start a guest whose hookscript is not there.
fn snippet(facts: &Facts) -> Check {
    let path = &facts.snippet_path;
    let name = "snippet";
    let users: Vec<String> =
        facts.guests().filter(|guest| guest.hookscript.as_deref() == Some(SNIPPET)).map(number).collect();
    let (state, meaning) = match users.as_slice() {
        [] => (State::Warn, "no guest that was read names it".to_owned()),
        _ => (State::Fail, format!("PVE will not start guest {}", users.join(", "))),
    };
    match facts.snippet {
        Snippet::Runs => Check::ok(name, path),
        Snippet::NotExecutable => Check::new(name, state, format!("{path} is not executable: {meaning}"))
            .remedy(format!("chmod 755 {path}")),
        Snippet::Missing => {
            let vmid = users.first().map_or("VMID", String::as_str);
            Check::new(name, state, format!("there is no {path}: {meaning}"))
                .remedy(format!("rbd-preflight attach {vmid}"))
        }
    }
}

fn elsewhere(node: &OtherNode) -> Check {
    let name = format!("snippet:{}", node.node);
    match node.snippet {
        Presence::Present => Check::ok(name, SNIPPET),
        Presence::Missing => {
            let detail =
                format!("no {SNIPPET} there: a guest that names it neither starts there nor migrates there");
            Check::new(name, State::Warn, detail).remedy(&node.text)
        }
        Presence::Unknown => {
            Check::new(name, State::Unknown, format!("whether it is there is not known: {}", node.text))
        }
    }
}

fn unread(all: &[Result<Guest, (u32, String)>]) -> Option<Check> {
    let failed: Vec<String> = all
        .iter()
        .filter_map(|guest| guest.as_ref().err())
        .map(|(vmid, why)| format!("{vmid}: {why}"))
        .collect();
    let detail = format!("not read, and left out below: {}", failed.join("; "));
    (!failed.is_empty()).then(|| Check::new("guests", State::Unknown, detail))
}

/// PVE opens these disks before it calls the hook; what mends them is the hook after a stop, and the boot unit.
fn before_hook(facts: &Facts) -> Check {
    let name = "disks-before-hook";
    let early = |guest: &Guest| -> Vec<String> {
        let disks = guest.disks.iter().filter(|disk| disk.before_hook && disk.pve_drops.is_none());
        disks
            .map(|disk| {
                format!(
                    "{} {}{}",
                    guest.vmid,
                    disk.key,
                    if disk.role == Role::Cloudinit { " (cloud-init)" } else { "" }
                )
            })
            .collect()
    };
    let disks: Vec<String> = with_disks(facts).flat_map(early).collect();
    if disks.is_empty() {
        return Check::ok(name, "PVE opens no disk before it calls the hook");
    }
    let seen = format!("PVE opens these before it calls the hook: {}", disks.join(", "));
    if facts.boot_unit {
        return Check::ok(
            name,
            format!("{seen}; the hook mends them after each stop, and the boot unit before the first start"),
        );
    }
    Check::new(
        name,
        State::Warn,
        format!("{seen}; without the boot unit nothing mends them before a first start"),
    )
    .remedy("systemctl enable rbd-preflight-boot.service")
}
