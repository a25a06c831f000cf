//! What there is to say of the clusters.

use crate::ceph::cluster::{ClusterFacts, FULL, Health, UNAVAILABLE};
use crate::diagnose::finding::{Finding, RemedyKind};
use crate::diagnose::{connecting, service};
use crate::finding_codes::{Code, Severity};
use crate::observe::lock_owner::unwatching;
use crate::observe::survey::{StorageFacts, Survey};
use crate::pve::guest::Access;
use crate::rbd::blocklist::BlocklistEntry;
use crate::reading::{Failure, Reading};
use crate::settings::policy::Policy;

/// Health checks under which reads or writes may not be answered (Ceph `doc/rados/operations/health-checks`).
const IO_STOPPERS: [&str; 6] =
    ["PG_AVAILABILITY", "OSD_FULL", "POOL_FULL", "SLOW_OPS", "OSD_DOWN", "MON_DISK_CRIT"];

/// Findings about each cluster that the guest's disks lie in.
pub fn findings(survey: &Survey, policy: &Policy) -> Vec<Finding> {
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
                let full = service::full(survey, facts, &storages);
                let inactive = service::inactive(survey, policy, facts, &storages);
                let service: Vec<Finding> = full.into_iter().chain(inactive).collect();
                let told = answers(facts, lock_to_break(survey, index), &service);
                told.into_iter().chain(service).chain(shut_out(facts)).collect()
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
    let why = |storage: &StorageFacts| connecting::attempt(storage, named, failure).why();
    storages.next().map(why).into_iter().collect()
}

/// Is there a lock in this cluster that librbd will have to break at the start. krbd breaks one whatever the option says.
fn lock_to_break(survey: &Survey, cluster: usize) -> bool {
    let here = |disk: &&crate::observe::survey::DiskFacts| {
        disk.disk.access != Access::Krbd
            && survey.storages.get(&disk.disk.storage).is_some_and(|storage| storage.cluster == cluster)
    };
    survey.disks.iter().filter(here).any(|disk| unwatching(disk).is_some())
}

fn shut_out(facts: &ClusterFacts) -> Option<Finding> {
    let BlocklistEntry { address, until, .. } = facts.node_entry()?;
    let own = facts.own_addresses.join(", ");
    let detail = format!("{address} until {until}; this node's clients have that address ({own})");
    Some(Finding::new(Code::NodeBlocklisted, detail).commands(["ceph osd blocklist ls".to_owned()]))
}

/// What there is to say of a cluster that answers; what `service` its pools do not give is a finding of its own.
fn answers(facts: &ClusterFacts, lock_to_break: bool, service: &[Finding]) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Reading::Known(health) = &facts.health {
        let told = |code| service.iter().any(|finding| finding.code == code);
        let full: &[&str] = if told(Code::ClusterFull) { &FULL } else { &[] };
        let inactive: &[&str] = if told(Code::PlacementGroupsInactive) { &[UNAVAILABLE] } else { &[] };
        findings.extend(unhealthy(health, &[full, inactive].concat()));
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
const KEYS: &str = "this stops no read and no write; keys of type aes are in use, or allowed, and an attacker who has one could make \
     more of them (CVE-2025-30156): once all clients know the type aes256k, give them keys of that type";

/// Only what can stop reads and writes is a warning; a cluster that wants attention is worth a note.
/// `elsewhere`: checks that are findings of their own.
fn unhealthy(health: &Health, elsewhere: &[&str]) -> Option<Finding> {
    let checks = health.checks.iter().filter(|(code, _)| !elsewhere.contains(&code.as_str()));
    let checks: Vec<(String, String)> = checks.cloned().collect();
    if health.status == "HEALTH_OK" || checks.is_empty() && !elsewhere.is_empty() {
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
    let grave = !stopping.is_empty() || (health.is_error() && elsewhere.is_empty());
    let told = if stopping.is_empty() { list(&mut checks.iter()) } else { stopping };
    let finding = Finding::new(Code::ClusterHealth, format!("{}: {told}", health.status))
        .commands(["ceph health detail".to_owned()]);
    if health.only_keys() {
        return Some(finding.severity(Severity::Note).remedy(RemedyKind::Manual, KEYS));
    }
    Some(if grave { finding } else { finding.severity(Severity::Note) })
}
