//! What features new images get: text for people, JSON for programs.

use crate::ceph::conf::Setting;
use crate::ceph::defaults::DefaultFeatures;
use crate::ceph::monitors::parse_features;
use crate::defaults::{RECOMMENDED, Source, WHY, line, misread};
use crate::kernel::KernelFacts;
use crate::pve::connection::Connection;
use crate::rbd::features::Features;
use crate::reading::{Failure, Reading};
use crate::report::{json::SCHEMA, plain, text};
use serde_json::{Value, json};
use std::fmt::Write as _;

/// What holds for one user of one cluster.
#[derive(Debug, Clone)]
pub struct Place {
    /// The storages that are reached so.
    pub storages: Vec<String>,
    /// How.
    pub connection: Connection,
    /// The ceph.conf that is read.
    pub conf: String,
    /// What was seen.
    pub seen: DefaultFeatures,
    /// Where what holds comes from.
    pub source: Source,
}

impl Place {
    /// What new images get, and whether the cluster itself was heard on it.
    pub fn effective(&self) -> (&Reading<Features>, Option<&Failure>) {
        match &self.seen.cluster {
            Reading::Known(cluster) => (&cluster.effective, None),
            Reading::Unknown(failure) => (&self.seen.by_file, Some(failure)),
        }
    }
}

/// A block for each place, then the recommendation.
pub fn report(places: &[Place], kernel: &KernelFacts) -> String {
    let mut out: String = places.iter().map(|place| block(place, kernel) + "\n").collect();
    let _ = writeln!(out, "recommended: {}\n  {WHY}", line(RECOMMENDED));
    let own = places.iter().filter(|place| place.connection.mon_host.is_none());
    if own.clone().any(|place| place.effective().0.known() != Some(&RECOMMENDED)) {
        out += "  `rbd-preflight defaults --set` writes it to /etc/pve/ceph.conf, for images made from then on\n";
    }
    out
}

fn block(place: &Place, kernel: &KernelFacts) -> String {
    let storages = match place.storages.as_slice() {
        [] => "no storage".to_owned(),
        ids => ids.join(", "),
    };
    let fsid = place.seen.cluster.known().map(|cluster| format!(", cluster {}", cluster.fsid));
    let fsid = fsid.unwrap_or_default();
    let mut rows = Vec::new();
    let mut row = |name: &str, told: String| rows.push(vec![name.to_owned(), plain(&told)]);
    let (effective, unheard) = place.effective();
    row("new images get", either(effective, shown));
    row("set by", source(place));
    row("this kernel", of_kernel(effective, kernel));
    for (pool, own) in place.seen.cluster.known().iter().flat_map(|cluster| &cluster.pools) {
        match own {
            Reading::Known(None) => {}
            Reading::Known(Some(value)) => {
                let meant = parse_features(value).map_or_else(|| value.clone(), |all| shown(&all));
                row("but", format!("the pool {pool} has a value of its own: {meant}"));
            }
            Reading::Unknown(failure) => row("but", format!("not read: {failure}")),
        }
    }
    if let Some(failure) = unheard {
        row("but", format!("the cluster was not heard: {failure}"));
    }
    if let Source::File(line) = &place.source {
        if misread(line, &place.seen) {
            row("but", format!("Ceph does not understand `{}` and goes by what is built in", line.value));
        }
    }
    if place.connection.mon_host.is_some() {
        row("another cluster's", format!("here set by hand, in {}", place.conf));
    }
    let title = plain(&format!("{storages}: client.{}{fsid}", place.connection.user));
    format!("{title}\n{}", text::table(rows))
}

fn either<T>(reading: &Reading<T>, show: impl FnOnce(&T) -> String) -> String {
    match reading {
        Reading::Known(value) => show(value),
        Reading::Unknown(failure) => format!("unknown: {failure}"),
    }
}

fn shown(features: &Features) -> String {
    format!("{features} ({})", features.0)
}

fn source(place: &Place) -> String {
    match &place.source {
        Source::File(Setting { section, line, .. }) => format!("{}, line {line} in [{section}]", place.conf),
        Source::FileSomewhere => place.conf.clone(),
        Source::Monitors(held) => format!("the cluster's monitors, for {}", held.section),
        Source::BuiltIn => "nobody: it is built into Ceph".to_owned(),
        Source::Unknown => {
            format!("not {}; what the monitors hold could not be read", place.conf)
        }
    }
}

fn of_kernel(effective: &Reading<Features>, kernel: &KernelFacts) -> String {
    let release = &kernel.release;
    match (effective, &kernel.supported) {
        (Reading::Known(all), Reading::Known(supported)) if supported.contains(*all) => {
            format!("{release} maps such images")
        }
        (Reading::Known(all), Reading::Known(supported)) => {
            format!("{release} CANNOT map such images: it lacks {}", *all - *supported)
        }
        (_, Reading::Unknown(failure)) => format!("what {release} can map is unknown: {failure}"),
        (Reading::Unknown(_), _) => format!("{release}: unknown"),
    }
}

/// `{"schema": 1, "clusters": [...], "kernel": {...}, "recommended": {...}}`.
pub fn json(places: &[Place], kernel: &KernelFacts) -> Value {
    json!({
        "schema": SCHEMA,
        "clusters": places.iter().map(|place| of_place(place, kernel)).collect::<Vec<_>>(),
        "kernel": { "release": kernel.release, "supported": kernel.supported.known() },
        "recommended": features(&RECOMMENDED),
    })
}

fn features(features: &Features) -> Value {
    json!({ "number": features.0, "names": features })
}

fn of_place(place: &Place, kernel: &KernelFacts) -> Value {
    let (effective, unheard) = place.effective();
    let cluster = place.seen.cluster.known();
    let own = |(pool, value): &(String, Reading<Option<String>>)| json!({ "pool": pool, "value": value.known(), "error": value.failure().map(ToString::to_string) });
    let mappable = match (effective.known(), kernel.supported.known()) {
        (Some(all), Some(supported)) => Some(supported.contains(*all)),
        _ => None,
    };
    let source = match &place.source {
        Source::File(line) => {
            json!({ "kind": "file", "file": place.conf, "section": line.section, "line": line.line, "value": line.value })
        }
        Source::FileSomewhere => json!({ "kind": "file", "file": place.conf }),
        Source::Monitors(held) => {
            json!({ "kind": "monitors", "section": held.section, "value": held.value })
        }
        Source::BuiltIn => json!({ "kind": "built-in" }),
        Source::Unknown => json!({ "kind": "unknown" }),
    };
    json!({
        "storages": place.storages,
        "user": place.connection.user,
        "external": place.connection.mon_host.is_some(),
        "fsid": cluster.map(|cluster| &cluster.fsid),
        "effective": effective.known().map(features),
        "source": source,
        "mappable": mappable,
        "pools": cluster.iter().flat_map(|cluster| &cluster.pools).map(own).collect::<Vec<_>>(),
        "error": unheard.or(effective.failure()).map(ToString::to_string),
    })
}
