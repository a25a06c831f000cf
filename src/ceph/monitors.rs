//! What the monitors answer, and the options that hold on a connection.

use crate::ceph::cluster::{Health, InactivePool, UNAVAILABLE};
use crate::ceph::ffi::Cluster;
use crate::rbd::address::bare_address;
use crate::rbd::blocklist::BlocklistEntry;
use crate::rbd::features::Features;
use crate::reading::{Failure, Reading};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// Asks the monitors for the OSD blocklist (`osd blocklist ls`).
pub fn read_blocklist(cluster: &Cluster) -> Reading<Vec<BlocklistEntry>> {
    ask(cluster, "osd blocklist ls", parse_blocklist).into()
}

/// Asks the monitors for the cluster's health (`health`).
pub fn read_health(cluster: &Cluster) -> Reading<Health> {
    ask(cluster, "health", parse_health).into()
}

/// A pool, as far as its service goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolService {
    id: i64,
    name: String,
    /// It takes no more writes: the flag `full` (`pg_pool_t::FLAG_FULL`).
    full: bool,
}

/// All pools (`osd pool ls detail`).
pub fn read_pools(cluster: &Cluster) -> Reading<Vec<PoolService>> {
    let request = serde_json::json!({ "prefix": "osd pool ls", "detail": "detail", "format": "json" });
    request_json(cluster, "osd pool ls detail", &request, parse_pools).into()
}

/// The names of those pools that take no more writes.
pub fn full_pools(pools: &Reading<Vec<PoolService>>) -> Reading<Vec<String>> {
    match pools {
        Reading::Known(pools) => {
            Reading::Known(pools.iter().filter(|pool| pool.full).map(|pool| pool.name.clone()).collect())
        }
        Reading::Unknown(failure) => Reading::Unknown(failure.clone()),
    }
}

/// Those pools that have inactive placement groups (`health detail`, the check `PG_AVAILABILITY`).
pub fn read_inactive_pools(
    cluster: &Cluster,
    pools: &Reading<Vec<PoolService>>,
) -> Reading<Vec<InactivePool>> {
    let pools = match pools {
        Reading::Known(pools) => pools,
        Reading::Unknown(failure) => return Reading::Unknown(failure.clone()),
    };
    let request = serde_json::json!({ "prefix": "health", "detail": "detail", "format": "json" });
    request_json(cluster, "health detail", &request, |answer| parse_inactive(answer, pools)).into()
}

/// The only protocol at which any monitor has an address (`mon dump`); `None` where they have both, or it is not known.
pub fn read_only_protocol(cluster: &Cluster) -> Option<String> {
    ask(cluster, "mon dump", parse_only_protocol).ok().flatten()
}

#[derive(Deserialize)]
struct RawMonMap {
    mons: Vec<RawMonitor>,
}

#[derive(Deserialize)]
struct RawMonitor {
    public_addrs: RawAddresses,
}

#[derive(Deserialize)]
struct RawAddresses {
    addrvec: Vec<RawAddress>,
}

#[derive(Deserialize)]
struct RawAddress {
    #[serde(rename = "type")]
    protocol: String,
}

fn parse_only_protocol(answer: &[u8]) -> Result<Option<String>, serde_json::Error> {
    let RawMonMap { mons } = serde_json::from_slice(answer)?;
    let addresses = mons.into_iter().flat_map(|monitor| monitor.public_addrs.addrvec);
    let protocols: BTreeSet<String> = addresses.map(|address| address.protocol).collect();
    let mut all = protocols.into_iter();
    // `any` and whatever else may come is none of the two.
    Ok(match (all.next(), all.next()) {
        (Some(one), None) if one == "v1" || one == "v2" => Some(one),
        _ => None,
    })
}

/// The addresses of this client, without their messengers' types.
pub fn read_own_addresses(cluster: &Cluster) -> Vec<String> {
    cluster.addresses().map(|text| parse_addresses(&text)).unwrap_or_default()
}

/// `10.0.0.1:0/7`, or `[v2:10.0.0.1:0/7,v1:10.0.0.1:0/7]` (`operator<<` of `entity_addrvec_t`).
fn parse_addresses(text: &str) -> Vec<String> {
    let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let mut all: Vec<String> =
        inner.split(',').map(|address| bare_address(address.trim()).to_owned()).collect();
    all.retain(|address| address.contains('/') && !address.starts_with('-'));
    all.dedup();
    all
}

/// `rbd_default_features` as it holds now, from ceph.conf or the monitors' own settings.
pub fn read_default_features(cluster: &Cluster) -> Reading<Features> {
    option(cluster, "rbd_default_features", parse_features).into()
}

/// `rbd_blocklist_expire_seconds` as it holds now.
pub fn read_blocklist_expiry(cluster: &Cluster) -> Reading<u64> {
    option(cluster, "rbd_blocklist_expire_seconds", |text| text.trim().parse().ok()).into()
}

/// What the monitors hold of an option for one kind of client.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Held {
    /// `global`, `client`, `client.admin`.
    pub section: String,
    /// The option's name.
    pub name: String,
    /// Its value.
    pub value: String,
    /// Hosts or device classes that it is for; empty for all.
    #[serde(default)]
    pub mask: String,
}

/// What the monitors hold of one option (`config dump`).
pub fn read_held(cluster: &Cluster, option: &str) -> Reading<Vec<Held>> {
    let parse = |answer: &[u8]| serde_json::from_slice::<Vec<Held>>(answer);
    let held = ask(cluster, "config dump", parse);
    held.map(|all| all.into_iter().filter(|held| held.name == option).collect()).into()
}

fn ask<T>(
    cluster: &Cluster,
    command: &str,
    parse: impl FnOnce(&[u8]) -> Result<T, serde_json::Error>,
) -> Result<T, Failure> {
    request_json(cluster, command, &serde_json::json!({ "prefix": command, "format": "json" }), parse)
}

fn request_json<T>(
    cluster: &Cluster,
    command: &str,
    request: &serde_json::Value,
    parse: impl FnOnce(&[u8]) -> Result<T, serde_json::Error>,
) -> Result<T, Failure> {
    let what = || format!("ask the monitors: {command}");
    let answer = cluster.mon_command(&request.to_string()).map_err(|errno| Failure::errno(what(), errno))?;
    parse(&answer).map_err(|error| Failure::new(what(), format!("answer not understood: {error}")))
}

fn option<T>(cluster: &Cluster, name: &str, parse: impl FnOnce(&str) -> Option<T>) -> Result<T, Failure> {
    let what = || format!("read the option {name}");
    let text = cluster.option(name).map_err(|errno| Failure::errno(what(), errno))?;
    parse(&text).ok_or_else(|| Failure::new(what(), format!("value not understood: {text}")))
}

/// One entry of either list.
#[derive(Deserialize)]
struct RawBlocklistEntry {
    addr: Option<String>,
    range: Option<String>,
    until: String,
}

/// The answer to `osd blocklist ls`: two JSON documents back to back, `[addresses][ranges]`; older monitors send the
/// first one only.
pub fn parse_blocklist(answer: &[u8]) -> Result<Vec<BlocklistEntry>, serde_json::Error> {
    let mut all = Vec::new();
    for document in serde_json::Deserializer::from_slice(answer).into_iter::<Vec<RawBlocklistEntry>>() {
        all.extend(document?.into_iter().filter_map(entry));
    }
    Ok(all)
}

fn entry(RawBlocklistEntry { addr, range, until }: RawBlocklistEntry) -> Option<BlocklistEntry> {
    let ranged = range.is_some();
    let address = range.or(addr)?;
    let address = address.strip_prefix("cidr:").unwrap_or_else(|| bare_address(&address)).to_owned();
    Some(BlocklistEntry { address, until, range: ranged })
}

#[derive(Deserialize)]
struct RawPool {
    #[serde(default)]
    pool_id: i64,
    pool_name: String,
    #[serde(default)]
    flags_names: String,
}

fn parse_pools(answer: &[u8]) -> Result<Vec<PoolService>, serde_json::Error> {
    let pools: Vec<RawPool> = serde_json::from_slice(answer)?;
    let of = |RawPool { pool_id, pool_name, flags_names }| PoolService {
        id: pool_id,
        name: pool_name,
        full: flags_names.split(',').any(|flag| flag == "full"),
    };
    Ok(pools.into_iter().map(of).collect())
}

/// How many of a pool's inactive groups are kept word for word.
const GROUPS_KEPT: usize = 4;

/// What `health detail` says of placement groups: `pg 2.1f is stuck inactive for 5m, current state …`. The number before the
/// dot is the pool's (`PGMap::get_health_checks`).
fn parse_inactive(answer: &[u8], pools: &[PoolService]) -> Result<Vec<InactivePool>, serde_json::Error> {
    let RawHealth { checks, .. } = serde_json::from_slice(answer)?;
    let mut found: BTreeMap<i64, InactivePool> = BTreeMap::new();
    for RawDetail { message } in checks.get(UNAVAILABLE).into_iter().flat_map(|check| &check.detail) {
        let id = message.strip_prefix("pg ").and_then(|rest| rest.split_once('.')?.0.parse().ok());
        let Some(pool) = id.and_then(|id: i64| pools.iter().find(|pool| pool.id == id)) else { continue };
        let new = || InactivePool { pool: pool.name.clone(), count: 0, groups: Vec::new() };
        let entry = found.entry(pool.id).or_insert_with(new);
        entry.count += 1;
        if entry.groups.len() < GROUPS_KEPT {
            entry.groups.push(message.clone());
        }
    }
    Ok(found.into_values().collect())
}

#[derive(Deserialize)]
struct RawHealth {
    status: String,
    #[serde(default)]
    checks: BTreeMap<String, RawCheck>,
}

#[derive(Deserialize)]
struct RawCheck {
    #[serde(default)]
    severity: String,
    #[serde(default)]
    muted: bool,
    summary: RawSummary,
    #[serde(default)]
    detail: Vec<RawDetail>,
}

#[derive(Deserialize)]
struct RawDetail {
    message: String,
}

#[derive(Deserialize)]
struct RawSummary {
    message: String,
}

/// The answer to `health`.
pub fn parse_health(answer: &[u8]) -> Result<Health, serde_json::Error> {
    let RawHealth { status, checks } = serde_json::from_slice(answer)?;
    let grave = checks.iter().filter(|(_, check)| check.severity == "HEALTH_ERR" && !check.muted);
    let errors = Some(grave.map(|(code, _)| code.clone()).collect());
    let checks = checks.into_iter().map(|(code, check)| (code, check.summary.message)).collect();
    Ok(Health { status, checks, errors })
}

/// A number (`61`, as librados gives it) or names joined with commas (as an administrator writes it).
pub fn parse_features(text: &str) -> Option<Features> {
    let text = text.trim();
    if let Ok(number) = text.parse() {
        return Some(Features(number));
    }
    let names = text.split([',', '+']).map(str::trim).filter(|name| !name.is_empty());
    names.map(Features::from_name).try_fold(Features::NONE, |all, feature| Some(all | feature?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocklist_is_two_documents_back_to_back() {
        let answer = br#"[{"addr":"192.0.2.1:0/1","until":"2026-11-23T04:15:01.444827+0000"}][{"range":"192.0.2.0:0/24","until":"later"}]"#;
        let list = parse_blocklist(answer).unwrap();
        let seen: Vec<_> = list.iter().map(|e| (e.address.as_str(), e.range)).collect();
        assert_eq!(seen, [("192.0.2.1:0/1", false), ("192.0.2.0:0/24", true)]);
        assert_eq!(list.first().unwrap().until, "2026-11-23T04:15:01.444827+0000");
    }

    #[test]
    fn an_empty_blocklist_and_one_without_ranges_are_read() {
        assert_eq!(parse_blocklist(b"\n[][]").unwrap(), []);
        assert_eq!(parse_blocklist(b"[]").unwrap(), []);
        assert!(parse_blocklist(b"[{").is_err());
    }

    #[test]
    fn prefixes_of_addresses_and_ranges_are_dropped() {
        let answer =
            br#"[{"addr":"v1:10.0.0.1:0/5","until":"u"}][{"range":"cidr:10.0.0.0:0/8","until":"u"}]"#;
        let list = parse_blocklist(answer).unwrap();
        let seen: Vec<_> = list.iter().map(|e| e.address.as_str()).collect();
        assert_eq!(seen, ["10.0.0.1:0/5", "10.0.0.0:0/8"]);
    }

    #[test]
    fn health_is_status_and_checks() {
        let answer = br#"{"status":"HEALTH_WARN","checks":{"POOL_NO_REDUNDANCY":{"severity":"HEALTH_WARN","summary":{"message":"2 pool(s) have no replicas configured","count":2},"muted":false}},"mutes":[]}"#;
        let health = parse_health(answer).unwrap();
        assert_eq!(health.status, "HEALTH_WARN");
        let expected = ("POOL_NO_REDUNDANCY", "2 pool(s) have no replicas configured");
        assert_eq!(health.checks, [(expected.0.to_owned(), expected.1.to_owned())]);
        assert_eq!(health.errors, Some(vec![]));
    }

    #[test]
    fn monitors_of_one_protocol_are_told() {
        let of = |protocols: &[&[&str]]| {
            let monitor = |protocols: &&[&str]| {
                let addresses: Vec<_> = protocols
                    .iter()
                    .map(|p| serde_json::json!({ "type": p, "addr": "10.0.0.1:3300", "nonce": 0 }))
                    .collect();
                serde_json::json!({ "name": "a", "public_addrs": { "addrvec": addresses } })
            };
            let map =
                serde_json::json!({ "epoch": 2, "mons": protocols.iter().map(monitor).collect::<Vec<_>>() });
            parse_only_protocol(map.to_string().as_bytes()).unwrap()
        };
        assert_eq!(of(&[&["v2", "v1"], &["v2", "v1"]]), None);
        assert_eq!(of(&[&["v2"], &["v2", "v1"]]), None, "one of them is enough");
        assert_eq!(of(&[&["v2"], &["v2"]]).as_deref(), Some("v2"));
        assert_eq!(of(&[&["v1"]]).as_deref(), Some("v1"));
        assert_eq!(of(&[&["any"]]), None);
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn inactive_groups_are_told_by_pool() {
        let pools = parse_pools(
            br#"[{"pool_id":2,"pool_name":"rbd","flags_names":"hashpspool,full,full_quota"},
                 {"pool_id":11,"pool_name":"other","flags_names":"hashpspool,nearfull"}]"#,
        )
        .unwrap();
        assert_eq!(full_pools(&Reading::Known(pools.clone())), Reading::Known(vec!["rbd".to_owned()]));
        let messages = [
            "pg 2.0 is stuck inactive for 5m, current state unknown, last acting []",
            "pg 2.1f is down, acting [3]",
            "pg 11.a is incomplete, acting [1] (reducing pool other min_size from 2 may help; search ceph.com/docs for 'incomplete')",
            "pg 9.a is down, acting [1]",
            "something else",
        ];
        let detail: Vec<_> =
            messages.iter().map(|message| serde_json::json!({ "message": message })).collect();
        let answer = serde_json::json!({ "status": "HEALTH_WARN", "checks": { "PG_AVAILABILITY": {
            "severity": "HEALTH_WARN", "muted": false, "detail": detail,
            "summary": { "message": "Reduced data availability: 3 pgs inactive, 2 pgs down", "count": 5 } } } });
        let found = parse_inactive(answer.to_string().as_bytes(), &pools).unwrap();
        let seen: Vec<_> = found.iter().map(|pool| (pool.pool.as_str(), pool.count)).collect();
        assert_eq!(seen, [("rbd", 2), ("other", 1)]);
        assert_eq!(found[0].groups, messages[..2]);
        assert_eq!(parse_inactive(br#"{"status":"HEALTH_OK","checks":{}}"#, &pools).unwrap(), []);
    }

    #[test]
    fn an_error_of_keys_alone_is_none_of_the_cluster() {
        let health = |status: &str, checks: &[(&str, &str, bool)]| {
            let checks: serde_json::Map<_, _> = checks
                .iter()
                .map(|(code, severity, muted)| {
                    let check = serde_json::json!({"severity": severity, "summary": {"message": "m"}, "muted": muted});
                    ((*code).to_owned(), check)
                })
                .collect();
            parse_health(serde_json::json!({"status": status, "checks": checks}).to_string().as_bytes())
                .unwrap()
        };
        let keys = ("AUTH_INSECURE_SERVICE_TICKETS", "HEALTH_ERR", false);
        let allowed = ("AUTH_INSECURE_KEYS_ALLOWED", "HEALTH_WARN", false);
        let damaged = |muted| ("PG_DAMAGED", "HEALTH_ERR", muted);
        for (status, checks, only_keys, is_error) in [
            ("HEALTH_ERR", &[keys, allowed][..], true, false),
            ("HEALTH_WARN", &[allowed], true, false),
            ("HEALTH_ERR", &[keys, ("OSD_DOWN", "HEALTH_WARN", false)], false, false),
            ("HEALTH_ERR", &[keys, damaged(false)], false, true),
            ("HEALTH_ERR", &[keys, damaged(true)], false, false),
            ("HEALTH_ERR", &[], false, true),
            ("HEALTH_WARN", &[damaged(true)], false, false),
        ] {
            let health = health(status, checks);
            assert_eq!((health.only_keys(), health.is_error()), (only_keys, is_error), "{health:?}");
        }
        let older = Health { errors: None, ..health("HEALTH_ERR", &[keys]) };
        assert!(!older.is_error() && Health { checks: vec![], ..older }.is_error());
    }

    #[test]
    fn default_features_are_a_number_or_names() {
        assert_eq!(parse_features("61"), Some(Features(61)));
        assert_eq!(parse_features(" layering,exclusive-lock "), Some(Features(5)));
        assert_eq!(parse_features("layering, object-map"), Some(Features(9)));
        assert_eq!(parse_features("layering,warp"), None);
    }
}
