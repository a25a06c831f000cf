//! Whether the pools of the guest's images serve reads and writes: they are not full, and their placement groups are active.

use crate::ceph::cluster::{ClusterFacts, FULL, InactivePool};
use crate::diagnose::finding::{Finding, RemedyKind};
use crate::finding_codes::{Code, Severity};
use crate::observe::survey::{DiskFacts, Survey};
use crate::pve::guest::Role;
use crate::reading::Reading;
use crate::settings::policy::{Policy, Scope};
use std::collections::BTreeSet;

/// Why nothing is changed on images in a full pool.
const WOULD_HANG: &str = "the pool is full: the change would wait for room";

/// Pools of these storages that take no more writes.
///
/// A client registers a watch when it opens an image for writing, and that is a write: librados and the kernel keep it back
/// while the pool has the flag `full` (`Objecter::target_should_be_paused`, `net/ceph/osd_client.c`). So a start hangs at every
/// image that lies in such a pool, until there is room. Where only the data pool is full the guest starts, and its writes wait.
pub(super) fn full(survey: &Survey, facts: &ClusterFacts, storages: &[String]) -> Option<Finding> {
    let Reading::Known(full) = facts.full_pools.as_ref()? else { return None };
    let ours: Vec<&str> =
        pools(survey, storages).into_iter().filter(|pool| full.iter().any(|name| name == pool)).collect();
    if ours.is_empty() {
        return None;
    }
    let health = facts.health.known().map(|health| {
        let told = health.checks.iter().filter(|(code, _)| FULL.contains(&code.as_str()));
        told.map(|(code, summary)| format!("{code}: {summary}")).collect::<Vec<_>>().join("; ")
    });
    let hanging = hanging_disks(survey, full, storages);
    let mut detail = format!("full: {} ({})", ours.join(", "), health.unwrap_or_default());
    if !hanging.is_empty() {
        let keys: Vec<&str> = hanging.iter().map(|disk| disk.disk.key.as_str()).collect();
        detail.push_str(&format!("; opened for writing there: {}", keys.join(", ")));
    }
    let commands = ["ceph health detail", "ceph df", "ceph osd df"].map(str::to_owned);
    let finding = Finding::new(Code::ClusterFull, detail).commands(commands);
    if hanging.is_empty() {
        let mut finding = finding.severity(Severity::Warning);
        finding.summary =
            "a pool that the guest uses is full: Ceph lets writes wait until there is room".to_owned();
        return Some(finding);
    }
    Some(finding.remedy(RemedyKind::Wait, Code::ClusterFull.remedy()))
}

/// The disks that a start opens for writing in a full pool.
fn hanging_disks<'a>(survey: &'a Survey, full: &[String], storages: &[String]) -> Vec<&'a DiskFacts> {
    let opens = |disk: &&DiskFacts| {
        let read = disk.disk.role == Role::Cdrom || disk.disk.read_only;
        let dropped = disk.disk.pve_drops.as_ref().is_some_and(|dropped| !dropped.unknown_option);
        // PVE maps nothing that is mapped; where that is not known, it is not sure.
        let mapped = survey.mapped(disk).known().is_none_or(|mappings| !mappings.is_empty());
        storages.contains(&disk.disk.storage)
            && full.contains(&disk.disk.pool)
            && !read
            && !dropped
            && !mapped
    };
    survey.disks.iter().filter(opens).collect()
}

/// Nothing is changed where the change would hang.
pub(super) fn keep_off_full_pools(findings: &mut [Finding], survey: &Survey) {
    let full = findings.iter().filter(|finding| finding.code == Code::ClusterFull);
    let storages: BTreeSet<String> = full.flat_map(|finding| finding.storages.clone()).collect();
    let full_pool = |disk: &DiskFacts| {
        let facts = survey.cluster_of(disk).and_then(Reading::known);
        facts
            .and_then(|facts| facts.full_pools.as_ref()?.known())
            .is_some_and(|full| full.contains(&disk.disk.pool))
    };
    let on_full = |key: &String| {
        let disk = survey.disks.iter().find(|disk| disk.disk.key == *key);
        disk.is_some_and(|disk| storages.contains(&disk.disk.storage) && full_pool(disk))
    };
    for finding in findings.iter_mut().filter(|finding| finding.disk.as_ref().is_some_and(on_full)) {
        finding.remedy.withhold(WOULD_HANG.to_owned());
    }
}

/// Pools of these storages with inactive placement groups. What lies in those groups waits; whether
/// the start needs it is not known, so that it stops none: but the guest is not ready.
pub(super) fn inactive(
    survey: &Survey,
    policy: &Policy,
    facts: &ClusterFacts,
    storages: &[String],
) -> Option<Finding> {
    let Reading::Known(inactive) = facts.inactive_pools.as_ref()? else { return None };
    let ours = pools(survey, storages);
    let told: Vec<String> =
        inactive.iter().filter(|found| ours.contains(found.pool.as_str())).map(inactive_pool).collect();
    if told.is_empty() {
        return None;
    }
    let by_hand = policy.scope == Scope::All && policy.read_only.is_none();
    let commands = ["ceph health detail", "ceph osd tree"].map(str::to_owned);
    let finding = Finding::new(Code::PlacementGroupsInactive, told.join("; ")).commands(commands);
    let finding = finding.remedy(RemedyKind::Wait, Code::PlacementGroupsInactive.remedy());
    Some(if by_hand { finding } else { finding.severity(Severity::Warning) })
}

fn inactive_pool(found: &InactivePool) -> String {
    let InactivePool { pool, count, groups } = found;
    let more = count.saturating_sub(groups.len());
    let more = if more == 0 { String::new() } else { format!(", and {more} more") };
    format!("pool {pool}: {}{more}", groups.join(", "))
}

/// The pools that images of these storages lie in, and those of their data.
fn pools<'a>(survey: &'a Survey, storages: &[String]) -> BTreeSet<&'a str> {
    let sections = storages.iter().filter_map(|id| survey.storages.get(id)).map(|storage| &storage.section);
    let own = sections.flat_map(|section| [Some(section.pool.as_str()), section.data_pool.as_deref()]);
    own.flatten().collect()
}
