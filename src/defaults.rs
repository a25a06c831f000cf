//! What features new images are to get: what may be asked for, and where what holds comes from. Pure.

use crate::ceph::conf::{Setting, strongest};
use crate::ceph::defaults::{DefaultFeatures, OPTION};
use crate::ceph::monitors::{Held, parse_features};
use crate::pve::connection::Connection;
use crate::rbd::features::{Changeable, Features};
use crate::reading::{Failure, Reading};

/// What every kernel from 5.3 can map, and what PVE turns on for krbd disks anyway; without deep-flatten, which can be
/// taken off an image but never be given back.
pub const RECOMMENDED: Features = Features(0x1d);

/// Why [`RECOMMENDED`] is recommended.
pub const WHY: &str = "every kernel from 5.3 on maps them, and they are what PVE turns on for disks on krbd, so that \
nothing is left to be changed at a start; deep-flatten can be taken off an image but never be given back";

/// The features that `text` names, by names joined with commas or by a number, if new images may get them by default.
///
/// # Errors
/// What is wrong with it: the rules are those of `librbd/image/CreateRequest.cc` (`validate_features`), and of PVE,
/// whose linked clones need layering.
pub fn parse(text: &str) -> Result<Features, String> {
    let text = text.trim();
    let named = |name: &str| match name.starts_with("0x") {
        true => None,
        false => Features::from_name(name),
    };
    let number = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    let features = match number {
        Some(number) => Features(number),
        None => text.split(',').map(str::trim).try_fold(Features::NONE, |all, name| {
            let feature =
                named(name).ok_or_else(|| format!("`{name}` is no feature; there are: {}", choice()))?;
            Ok::<_, String>(all | feature)
        })?,
    };
    check(features)?;
    Ok(features)
}

/// What may be a default.
fn choice() -> Features {
    Features::LAYERING | Features::DEEP_FLATTEN | Features::with_change(Changeable::Both)
}

fn check(features: Features) -> Result<(), String> {
    let internal = features & Features::with_change(Changeable::Internal);
    if !internal.is_empty() {
        return Err(format!("Ceph sets {internal} itself"));
    }
    let single = features & (Features::STRIPING | Features::DATA_POOL);
    if !single.is_empty() {
        return Err(format!("{single} belongs to the options that one image is made with"));
    }
    let unknown = features - choice();
    if !unknown.is_empty() {
        return Err(format!("no feature has the bits {unknown}"));
    }
    if !features.contains(Features::LAYERING) {
        return Err("layering is missing: PVE's linked clones need it".to_owned());
    }
    for (feature, needed) in Features::NEEDS {
        if features.contains(feature) && !features.contains(needed) {
            return Err(format!("{feature} needs {needed}: Ceph would make no image at all"));
        }
    }
    Ok(())
}

/// Where what holds comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// This line of ceph.conf.
    File(Setting),
    /// ceph.conf, by a line that only Ceph finds.
    FileSomewhere,
    /// The monitors hold the value (`ceph config set`).
    Monitors(Held),
    /// Nobody has said anything.
    BuiltIn,
    /// It could not be found out.
    Unknown,
}

/// Where what holds for `client.USER` comes from. ceph.conf is stronger than the monitors (`common/config.h`, `CONF_FILE`
/// over `CONF_MON`). `lines` are ceph.conf's lines that set it.
pub fn source(lines: &[Setting], user: &str, seen: &DefaultFeatures) -> Source {
    if let Some(line) = strongest(lines, user) {
        return Source::File(line.clone());
    }
    if seen.by_file.known() != seen.built_in.known() {
        return Source::FileSomewhere;
    }
    match seen.cluster.known().map(|cluster| &cluster.held) {
        Some(Reading::Known(held)) => {
            strongest_held(held, user).map_or(Source::BuiltIn, |held| Source::Monitors(held.clone()))
        }
        _ => Source::Unknown,
    }
}

/// Of what the monitors hold, what is for `client.USER` before all else. Values for some hosts only are left aside.
pub fn strongest_held<'a>(held: &'a [Held], user: &str) -> Option<&'a Held> {
    let of = |section: String| held.iter().find(move |held| held.section == section && held.mask.is_empty());
    [format!("client.{user}"), "client".to_owned(), "global".to_owned()].into_iter().find_map(of)
}

/// What Ceph does not take as it was meant: a value in ceph.conf that it does not understand.
pub fn misread(line: &Setting, seen: &DefaultFeatures) -> bool {
    seen.by_file.known().is_some_and(|taken| parse_features(&line.value) != Some(*taken))
}

/// Why a line for `[global]` of ceph.conf would not hold for `client.USER`: a nearer section of the file says otherwise.
pub fn overruled<'a>(lines: &'a [Setting], user: &str) -> Option<&'a Setting> {
    strongest(lines, user).filter(|line| line.section != "global")
}

/// The value as ceph.conf is to have it.
pub fn value(features: Features) -> String {
    features.to_string()
}

/// The line for ceph.conf.
pub fn line(features: Features) -> String {
    format!("{OPTION} = {}", value(features))
}

/// What holds for one user of one cluster.
#[derive(Debug, Clone)]
pub struct Place {
    /// The storages that are reached so.
    pub storages: Vec<String>,
    /// How a storage of it is reached.
    pub connection: Connection,
    /// The ceph.conf that is read.
    pub conf: String,
    /// What its new images get, and why.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ceph::conf::settings;
    use crate::ceph::defaults::FromCluster;

    #[test]
    fn names_and_numbers_are_taken() {
        for text in ["29", "0x1d", "layering, exclusive-lock, object-map, fast-diff", " 29 "] {
            assert_eq!(parse(text), Ok(RECOMMENDED), "{text}");
        }
        assert_eq!(parse("fast-diff,layering,object-map,exclusive-lock"), Ok(RECOMMENDED));
        assert_eq!(parse("layering"), Ok(Features(1)));
        assert_eq!(parse("125").map(|all| all.0), Ok(125));
    }

    #[test]
    fn what_ceph_or_pve_could_not_use_is_refused() {
        let refused = [
            ("", "is no feature"),
            ("layering,warp", "`warp` is no feature"),
            ("layering,0x4", "`0x4` is no feature"),
            ("layering,,exclusive-lock", "is no feature"),
            ("0", "layering is missing"),
            ("-1", "is no feature"),
            ("0x", "is no feature"),
            ("18446744073709551616", "is no feature"),
            ("exclusive-lock", "layering is missing"),
            ("layering,object-map", "object-map needs exclusive-lock"),
            ("layering,exclusive-lock,fast-diff", "fast-diff needs object-map"),
            ("65", "journaling needs exclusive-lock"),
            ("0x101", "Ceph sets operations itself"),
            ("layering,migrating", "Ceph sets migrating itself"),
            ("0x83", "striping, data-pool belongs"),
            ("0x1001", "no feature has the bits 0x1000"),
        ];
        for (text, why) in refused {
            assert!(parse(text).is_err_and(|said| said.contains(why)), "{text}: {:?}", parse(text));
        }
    }

    fn seen(built_in: u64, by_file: u64, held: Reading<Vec<Held>>) -> DefaultFeatures {
        let known = |bits| Reading::Known(Features(bits));
        let cluster = FromCluster { fsid: String::new(), effective: known(by_file), held, pools: Vec::new() };
        DefaultFeatures {
            built_in: known(built_in),
            by_file: known(by_file),
            cluster: Reading::Known(cluster),
        }
    }

    fn held(section: &str, mask: &str) -> Held {
        Held { section: section.into(), name: OPTION.into(), value: "5".into(), mask: mask.into() }
    }

    #[test]
    fn the_file_is_stronger_than_the_monitors_and_those_than_nobody() {
        let monitors = Reading::Known(vec![held("global", ""), held("client", "host:pve2"), held("mgr", "")]);
        let lines = settings("[global]\nrbd default features = 1\n", OPTION);
        assert_eq!(source(&lines, "admin", &seen(61, 1, monitors.clone())), Source::File(lines[0].clone()));
        let global = Source::Monitors(held("global", ""));
        assert_eq!(source(&[], "admin", &seen(61, 61, monitors.clone())), global);
        assert_eq!(source(&[], "admin", &seen(61, 1, monitors)), Source::FileSomewhere);
        assert_eq!(source(&[], "admin", &seen(61, 61, Reading::Known(vec![]))), Source::BuiltIn);
        let unknown = Reading::Unknown(Failure::errno("x", 13));
        assert_eq!(source(&[], "admin", &seen(61, 61, unknown)), Source::Unknown);
    }

    #[test]
    fn a_value_that_ceph_does_not_understand_is_seen() {
        let lines = settings("[global]\nrbd_default_features = 0x1\n", OPTION);
        assert!(misread(&lines[0], &seen(61, 61, Reading::Known(vec![]))));
        let lines = settings("[global]\nrbd_default_features = layering, exclusive-lock\n", OPTION);
        assert!(!misread(&lines[0], &seen(61, 5, Reading::Known(vec![]))));
    }
}
