//! What there is to say of the clusters.

use crate::ceph::cluster::{BlocklistEntry, ClusterFacts, FULL, Health};
use crate::diagnose::connecting;
use crate::diagnose::finding::{Finding, RemedyKind};
use crate::finding_codes::{Code, Severity};
use crate::observe::survey::{StorageFacts, Survey};
use crate::pve::guest::Access;
use crate::rbd::blocklist::entry_of_host;
use crate::reading::{Failure, Reading};
use nix::errno::Errno;
use std::collections::BTreeSet;

/// Health checks under which reads or writes may not be answered (Ceph `doc/rados/operations/health-checks`).
const IO_STOPPERS: [&str; 6] =
    ["PG_AVAILABILITY", "OSD_FULL", "POOL_FULL", "SLOW_OPS", "OSD_DOWN", "MON_DISK_CRIT"];

/// What `rados_connect` ends with where the monitors refuse the user, or Ceph finds no key of it to offer them. 2 (ENOENT) and 22 (EINVAL)
/// it ends with before any monitor is asked.
pub(super) const REFUSED: [Errno; 3] = [Errno::EPERM, Errno::EACCES, Errno::EOPNOTSUPP];

/// What it ends with where nobody answers.
pub(super) const NO_ANSWER: [Errno; 5] =
    [Errno::ETIMEDOUT, Errno::ECONNREFUSED, Errno::EHOSTUNREACH, Errno::ENETUNREACH, Errno::EHOSTDOWN];

/// Findings about each cluster that the guest's disks lie in.
pub fn findings(survey: &Survey) -> Vec<Finding> {
    let dropped = survey.storages.values().filter_map(|storage| {
        let finding = connecting::monhost_dropped(&storage.section)?;
        Some(Finding { storages: vec![storage.section.id.clone()], ..finding })
    });
    let each = survey
        .clusters
        .iter()
        .enumerate()
        .map(|(index, cluster)| (index, cluster, storages_of(survey, index)));
    let used = each.filter(|(_, _, storages)| !storages.is_empty());
    let of_clusters = used.flat_map(|(index, cluster, storages)| {
        let findings = match cluster {
            Reading::Known(facts) => {
                let full = full(survey, facts, &storages);
                let told = answers(facts, lock_to_break(survey, index), full.is_some());
                told.into_iter().chain(full).chain(shut_out(facts)).collect()
            }
            Reading::Unknown(failure) => silent(survey, index, failure, &storages.join(", ")),
        };
        findings.into_iter().map(move |finding| Finding { storages: storages.clone(), ..finding })
    });
    dropped.chain(of_clusters).collect()
}

fn storages_of(survey: &Survey, cluster: usize) -> Vec<String> {
    survey.storages.values().filter(|s| s.cluster == cluster).map(|s| s.section.id.clone()).collect()
}

/// Why a cluster could not be asked. Its storages share one connection, so what holds of the first does of all.
fn silent(survey: &Survey, cluster: usize, failure: &Failure, named: &str) -> Vec<Finding> {
    let mut storages = survey.storages.values().filter(|storage| storage.cluster == cluster);
    let why = |storage: &StorageFacts| storage.attempt(named, failure).why();
    storages.next().map(why).into_iter().collect()
}

/// Is there a lock in this cluster that librbd will have to break at the start. krbd breaks one whatever the option says.
fn lock_to_break(survey: &Survey, cluster: usize) -> bool {
    let here = |disk: &&crate::observe::survey::DiskFacts| {
        disk.disk.access != Access::Krbd
            && survey.storages.get(&disk.disk.storage).is_some_and(|storage| storage.cluster == cluster)
    };
    survey.disks.iter().filter(here).any(crate::diagnose::lock::is_stale)
}

/// The entry of the blocklist that shuts out every client on this node (`ceph osd blocklist add HOST`, a range): as far
/// as is known the tool's own client has the address that the others have.
pub fn node_entry(facts: &ClusterFacts) -> Option<&BlocklistEntry> {
    let list = facts.blocklist.known()?;
    facts.own_addresses.iter().find_map(|address| entry_of_host(address, list))
}

fn shut_out(facts: &ClusterFacts) -> Option<Finding> {
    let BlocklistEntry { address, until, .. } = node_entry(facts)?;
    let own = facts.own_addresses.join(", ");
    let detail = format!("{address} until {until}; this node's clients come from there ({own})");
    Some(Finding::new(Code::NodeBlocklisted, detail).commands(["ceph osd blocklist ls".to_owned()]))
}

/// A pool of these storages takes no more writes.
fn full(survey: &Survey, facts: &ClusterFacts, storages: &[String]) -> Option<Finding> {
    let Reading::Known(full) = facts.full_pools.as_ref()? else { return None };
    let sections = storages.iter().filter_map(|id| survey.storages.get(id)).map(|storage| &storage.section);
    let pools: BTreeSet<&String> =
        sections.flat_map(|section| [Some(&section.pool), section.data_pool.as_ref()]).flatten().collect();
    let ours: Vec<&str> = pools.into_iter().filter(|pool| full.contains(pool)).map(String::as_str).collect();
    let health = facts.health.known().map(|health| {
        let told = health.checks.iter().filter(|(code, _)| FULL.contains(&code.as_str()));
        told.map(|(code, summary)| format!("{code}: {summary}")).collect::<Vec<_>>().join("; ")
    });
    let detail = format!("full: {} ({})", ours.join(", "), health.unwrap_or_default());
    let commands = ["ceph health detail", "ceph df"].map(str::to_owned);
    (!ours.is_empty()).then(|| Finding::new(Code::ClusterFull, detail).commands(commands))
}

/// What there is to say of a cluster that answers; that it is `full` is told by itself.
fn answers(facts: &ClusterFacts, lock_to_break: bool, full: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Reading::Known(health) = &facts.health {
        findings.extend(unhealthy(health, full));
    }
    if let Reading::Known(seconds @ 1..) = facts.blocklist_expire_seconds {
        let severity = if lock_to_break { Severity::Blocker } else { Severity::Warning };
        let detail = format!("rbd_blocklist_expire_seconds = {seconds}");
        findings.push(
            Finding::new(Code::BlocklistExpireSet, detail)
                .severity(severity)
                .commands(["ceph config rm client rbd_blocklist_expire_seconds".to_owned()]),
        );
    }
    findings
}

/// What the checks about keys mean (CVE-2025-30156).
const KEYS: &str = "no read or write is stopped by it: keys of type aes are in use, or allowed, with which an attacker who has one could \
     make himself more (CVE-2025-30156); once all clients know the type aes256k, give them such keys";

/// Only what can stop reads and writes is a warning; a cluster that wants attention is worth a note.
fn unhealthy(health: &Health, full: bool) -> Option<Finding> {
    let checks = health.checks.iter().filter(|(code, _)| !(full && FULL.contains(&code.as_str())));
    let checks: Vec<(String, String)> = checks.cloned().collect();
    if health.status == "HEALTH_OK" || checks.is_empty() && full {
        return None;
    }
    let stops = |(code, summary): &&(String, String)| {
        IO_STOPPERS.contains(&code.as_str())
            || (code == "OSDMAP_FLAGS" && (summary.contains("pause") || summary.contains("full")))
    };
    let list = |checks: &mut dyn Iterator<Item = &(String, String)>| {
        checks.map(|(code, summary)| format!("{code}: {summary}")).collect::<Vec<_>>().join("; ")
    };
    let stopping = list(&mut checks.iter().filter(stops));
    let grave = !stopping.is_empty() || (health.is_error() && !full);
    let told = if stopping.is_empty() { list(&mut checks.iter()) } else { stopping };
    let finding = Finding::new(Code::ClusterHealth, format!("{}: {told}", health.status))
        .commands(["ceph health detail".to_owned()]);
    if health.only_keys() {
        return Some(finding.severity(Severity::Note).remedy(RemedyKind::Manual, KEYS));
    }
    Some(if grave { finding } else { finding.severity(Severity::Note) })
}
