//! The guests of this node: are they started with the hook, and can it help them in time.

use super::{Check, Facts, LeftBehind, Snippet, SnippetFacts, State, Works};
use crate::hook::earlier;
use crate::hook::snippet::ON_LOCAL;
use crate::hook::snippet::{OtherNode, Presence};
use crate::pve::guest::{Guest, Role};
use crate::reading::Reading;
use crate::sys::quote::quoted;

pub(super) fn checks(facts: &Facts) -> Vec<Check> {
    let mut checks: Vec<Check> = facts.snippets.iter().map(|there| snippet(facts, there)).collect();
    checks.extend(facts.elsewhere.iter().map(elsewhere));
    checks.extend(facts.earlier.iter().filter_map(earlier));
    checks.extend(left_behind(facts));
    checks.extend(facts.in_snapshots.iter().map(in_snapshots));
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
    guest.hookscript.as_deref().is_some_and(|volid| crate::hook::snippet::ours(volid).is_some())
}

/// `snippet`, and for another name than the usual one that name too.
fn named(what: &str, volid: &str) -> String {
    if volid == ON_LOCAL { what.to_owned() } else { format!("{what}:{volid}") }
}

/// PVE refuses to start a guest whose hookscript is not there.
fn snippet(facts: &Facts, snippet: &SnippetFacts) -> Check {
    let path = &snippet.path;
    let name = named("snippet", &snippet.volid);
    let users: Vec<String> = facts
        .guests()
        .filter(|guest| guest.hookscript.as_deref() == Some(snippet.volid.as_str()))
        .map(number)
        .collect();
    let (state, meaning) = match users.as_slice() {
        [] => (State::Warn, "no guest that was read names it".to_owned()),
        _ => (State::Fail, format!("PVE will not start guest {}", users.join(", "))),
    };
    let attach = format!("rbd-preflight attach {}", users.first().map_or("VMID", String::as_str));
    match snippet.there {
        Snippet::Runs => Check::ok(name, path),
        Snippet::Other => {
            Check::new(name, State::Warn, format!("{path} is not this version's")).remedy(attach)
        }
        Snippet::NotExecutable => Check::new(name, state, format!("{path} is not executable: {meaning}"))
            .remedy(format!("chmod 755 {}", quoted(path))),
        Snippet::Missing => Check::new(name, state, format!("there is no {path}: {meaning}")).remedy(attach),
    }
}

/// A hookscript that the snippet calls too and that cannot be run stops the start, as it would without us.
fn earlier((vmid, volid, runs): &(u32, String, Works)) -> Option<Check> {
    let why = runs.as_ref().err()?;
    let detail = format!("guest {vmid} does not start: its snippet calls {volid} too, and PVE says: {why}");
    let remedy =
        format!("put it back; or do without it: qm set {vmid} --hookscript {ON_LOCAL} (pct for a container)");
    Some(Check::new(format!("earlier-hookscript:{vmid}"), State::Fail, detail).remedy(remedy))
}

/// What earlier versions remembered by numbers is never run; root says whose it is.
fn left_behind(facts: &Facts) -> Vec<Check> {
    let all = match &facts.left_behind {
        Ok(all) => all,
        Err(why) => return vec![Check::new("earlier-hookscripts", State::Unknown, why)],
    };
    let told = all.iter().filter(|left| left.node.as_ref().is_none_or(|node| *node == facts.node));
    told.map(|left| of_number(facts, left)).collect()
}

fn of_number(facts: &Facts, left: &LeftBehind) -> Check {
    let vmid = left.vmid;
    let script = match &left.script {
        Ok(volid) => volid.clone(),
        Err(why) => format!("something unknown ({why})"),
    };
    let plain = |guest: &Guest| {
        let ours = guest.hookscript.as_deref().and_then(crate::hook::snippet::ours);
        guest.vmid == vmid && ours.is_some_and(|ours| ours.earlier.is_none())
    };
    let seen = format!("an earlier version remembered {script} for the number {vmid}; it is not run");
    let forget = format!("rm {}", earlier::file(vmid));
    let (detail, remedy) = match &left.node {
        None => (format!("{seen}, and there is no such guest"), forget),
        Some(_) if facts.guests().any(plain) => (
            format!("{seen}, since it may be of an earlier guest of that number"),
            format!("rbd-preflight attach {vmid}, if it is this guest's; else {forget}"),
        ),
        Some(_) => (format!("{seen}, and the guest's config names another hookscript, or none"), forget),
    };
    Check::new(format!("earlier-hookscript:{vmid}"), State::Warn, detail).remedy(remedy)
}

/// A clone, a restore, or a rollback past a detach of an earlier version may have lost it.
fn in_snapshots((vmid, scripts): &(u32, Vec<String>)) -> Check {
    let scripts = scripts.join(", ");
    let detail = format!(
        "guest {vmid} runs no other hookscript than ours, and its snapshots name {scripts}: whether it should is not known"
    );
    let remedy = format!(
        "to run it too: rbd-preflight detach {vmid}, set it as the guest's hookscript, rbd-preflight attach {vmid}"
    );
    Check::new(format!("hookscript-in-snapshots:{vmid}"), State::Unknown, detail).remedy(remedy)
}

fn elsewhere(node: &OtherNode) -> Check {
    let name = named(&format!("snippet:{}", node.node), &node.volid);
    match node.snippet {
        Presence::Present => Check::ok(name, &node.volid),
        Presence::Missing => {
            let detail = format!(
                "no {} there: a guest that names it neither starts there nor migrates there",
                node.volid
            );
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

/// PVE opens these disks before it calls the hook; what fixes them is the hook after a stop, and the boot unit.
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
            format!("{seen}; the hook fixes them after each stop, and the boot unit before the first start"),
        );
    }
    Check::new(
        name,
        State::Warn,
        format!("{seen}; without the boot unit nothing fixes them before a first start"),
    )
    .remedy("systemctl enable rbd-preflight-boot.service")
}
