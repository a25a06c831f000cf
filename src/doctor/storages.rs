//! The rbd storages: can they be reached, and may their users do what is needed.

use super::keys::user_of;
use super::{Check, Facts, State, StorageFacts, keys};
use crate::ceph::caps::{caps_command, caps_template, may_blocklist, template_remark};
use crate::ceph::cluster::ClusterFacts;
use crate::ceph::image::ImageReading;
use crate::diagnose::connecting::Attempt;
use crate::diagnose::finding::Finding;
use crate::finding_codes::Severity;
use crate::pve::connection::rbd_arguments;
use crate::reading::{Failure, Reading};
use crate::sys::command::Command;
use std::collections::BTreeMap;

pub(super) fn checks(facts: &Facts) -> Vec<Check> {
    let storages = match &facts.storages {
        Reading::Known(storages) => storages,
        Reading::Unknown(failure) => {
            return vec![Check::new(
                "storages",
                State::Unknown,
                format!("storage.cfg was not read: {failure}"),
            )];
        }
    };
    if storages.is_empty() {
        return vec![Check::ok("storages", format!("storage.cfg has no rbd storage for {}", facts.node))];
    }
    let mut checks: Vec<Check> = storages
        .iter()
        .flat_map(|storage| [Some(reach(storage)), keys::check(facts, storage), user(storage)])
        .flatten()
        .collect();
    checks.extend(expiry(storages));
    checks.extend(health(storages));
    checks
}

/// The storage's images can be looked for.
fn reach(storage: &StorageFacts) -> Check {
    let id = &storage.section.id;
    let name = format!("storage:{id}");
    let who = format!("client.{}", user_of(storage));
    let pool = &storage.section.pool;
    let fail = |detail: String| Check::new(&name, State::Fail, detail);
    match &storage.cluster {
        Reading::Known((
            _,
            ImageReading::ImageMissing | ImageReading::InTrash(_) | ImageReading::Found(_),
        )) => Check::ok(&name, format!("{who} reaches the pool {pool}")),
        Reading::Known((_, ImageReading::PoolMissing)) => {
            fail(format!("the cluster has no pool {pool}")).remedy(rbd(storage, &["ls"]))
        }
        Reading::Known((_, ImageReading::NamespaceMissing)) => {
            let namespace = storage.section.namespace.clone().unwrap_or_default();
            fail(format!("the pool {pool} has no namespace {namespace}"))
                .remedy(rbd(storage, &["namespace", "create"]))
        }
        Reading::Known((_, ImageReading::Unknown(failure) | ImageReading::ParentMissing(failure))) => {
            let check = fail(format!("{who} connects, but cannot look into the pool {pool}: {failure}"));
            match failure.is_refusal() {
                true => check.remedy(template(storage)),
                false => check.remedy(rbd(storage, &["ls"])),
            }
        }
        Reading::Unknown(failure) => unreached(storage, name, failure),
    }
}

/// The cluster could not be asked: why, as `check` says it of a guest.
fn unreached(storage: &StorageFacts, name: String, failure: &Failure) -> Check {
    let Some(connection) = &storage.connection else {
        return Check::new(&name, State::Unknown, failure.to_string());
    };
    let attempt = Attempt {
        storages: &storage.section.id,
        section: &storage.section,
        connection,
        keyring: storage.keyring.as_ref(),
        way: storage.way.as_ref(),
        failure,
    };
    let Finding { severity, summary, detail, remedy, .. } = attempt.why();
    let state = if severity == Severity::Unknown { State::Unknown } else { State::Fail };
    Check::new(&name, state, format!("{summary}: {detail}")).remedy(match remedy.commands.as_slice() {
        [] => remedy.text,
        [there, here] if storage.section.monhost.is_some() => {
            format!("`{there}` on that cluster, then here `{here}`")
        }
        commands => commands.join("; "),
    })
}

/// Its user may put a dead client on the blocklist, without which no lock of its can be broken.
fn user(storage: &StorageFacts) -> Option<Check> {
    storage.cluster.known()?;
    let name = format!("caps:{}", storage.section.id);
    let user = user_of(storage);
    let unknown = |why: &str| {
        Check::new(
            &name,
            State::Unknown,
            format!("whether client.{user} may break stale locks is not known: {why}"),
        )
        .remedy(Command::new("ceph").args(["auth", "get", &format!("client.{user}")]).display())
    };
    let caps = match &storage.caps {
        Reading::Known(caps) => caps,
        Reading::Unknown(failure) => return Some(unknown(&failure.to_string())),
    };
    Some(match may_blocklist(caps) {
        Some(true) => Check::ok(&name, format!("client.{user} may break stale locks")),
        Some(false) => {
            let detail = format!(
                "client.{user} may not break the lock that a crashed node leaves: its guests will not start"
            );
            Check::new(&name, State::Fail, detail).remedy(caps_command(user, caps))
        }
        None => unknown("a grant of its mon caps is bound to a network, or of a form that is not known here"),
    })
}

/// A value breaks the command by which librbd breaks locks.
fn expiry(storages: &[StorageFacts]) -> Option<Check> {
    let name = "blocklist-expiry";
    let (mut set, mut unknown) = (Vec::new(), None);
    let mut known = clusters(storages).peekable();
    known.peek()?;
    for (storage, facts) in known {
        match &facts.blocklist_expire_seconds {
            Reading::Known(0) => {}
            Reading::Known(seconds) => set.push(format!("{} ({seconds})", storage.section.id)),
            Reading::Unknown(failure) => unknown = Some(failure.to_string()),
        }
    }
    Some(match (set.is_empty(), unknown) {
        (false, _) => {
            let detail = format!(
                "rbd_blocklist_expire_seconds is set for {}: no stale lock can be broken (Ceph tracker 54613)",
                set.join(", ")
            );
            Check::new(name, State::Fail, detail).remedy("ceph config rm client rbd_blocklist_expire_seconds; grep -n rbd_blocklist_expire_seconds /etc/pve/ceph.conf")
        }
        (true, Some(failure)) => Check::new(name, State::Unknown, failure),
        (true, None) => Check::ok(name, "rbd_blocklist_expire_seconds is not set"),
    })
}

fn clusters(storages: &[StorageFacts]) -> impl Iterator<Item = (&StorageFacts, &ClusterFacts)> {
    storages.iter().filter_map(|storage| Some((storage, &storage.cluster.known()?.0)))
}

/// Each cluster's own word, once.
fn health(storages: &[StorageFacts]) -> Vec<Check> {
    let mut by_cluster: BTreeMap<&str, (Vec<&str>, &ClusterFacts)> = BTreeMap::new();
    for (storage, facts) in clusters(storages) {
        by_cluster.entry(&facts.fsid).or_insert((Vec::new(), facts)).0.push(&storage.section.id);
    }
    by_cluster.into_values().map(|(ids, facts)| of_cluster(&ids.join(", "), facts)).collect()
}

fn of_cluster(ids: &str, facts: &ClusterFacts) -> Check {
    let name = format!("health:{}", facts.fsid);
    let health = match &facts.health {
        Reading::Known(health) => health,
        Reading::Unknown(failure) => {
            return Check::new(name, State::Unknown, format!("{failure} (storage {ids})"));
        }
    };
    let told: Vec<String> =
        health.checks.iter().map(|(code, summary)| format!("; {code}: {summary}")).collect();
    let detail = format!("{} (storage {ids}){}", health.status, told.concat());
    match health.status.as_str() {
        "HEALTH_OK" => Check::ok(name, detail),
        _ if health.is_error() => Check::new(name, State::Fail, detail).remedy("ceph health detail"),
        _ => Check::new(name, State::Warn, detail).remedy("ceph health detail"),
    }
}

/// A command line with PVE's arguments for this storage.
fn rbd(storage: &StorageFacts, arguments: &[&str]) -> String {
    let options = storage.connection.as_ref().map(|connection| rbd_arguments(&storage.section, connection));
    Command::new("rbd").args(options.unwrap_or_default()).args(arguments).display()
}

fn template(storage: &StorageFacts) -> String {
    let user = user_of(storage);
    format!("{} ({})", caps_template(user, [&storage.section]), template_remark(user))
}
