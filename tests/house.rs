//! Where what stands, and who may name whom: the rules that keep `src/` a house that can be read from the ground up.

#![allow(clippy::unwrap_used)]

use regex::Regex;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::LazyLock;

/// The files of `src/` by their module's path (`diagnose::lock`), without tests and comments.
type House = BTreeMap<String, String>;

/// The rooms below views and commands.
#[rustfmt::skip]
const BELOW: [&str; 18] = [
    "act", "ceph", "defaults", "diagnose", "doctor", "exit", "finding_codes", "hook", "journal", "kernel", "observe", "plan",
    "pve", "rbd", "reading", "settings", "sys", "undo",
];

/// Rooms, what their code never names, and why.
#[rustfmt::skip]
const NEVER: [(&[&str], &str, &str); 4] = [
    (&["pve", "kernel", "rbd", "sys"], r"\bcrate::ceph\b", "Ceph is asked in ceph/ alone"),
    (
        &["diagnose", "plan", "rbd", "finding_codes"],
        r"\bstd::(fs|process|env)\b|\bsys::(time|process|root|private_dir)\b|\bInstant\b|\bSystemTime\b",
        "what decides takes and returns values: no file, no program, no clock",
    ),
    (&BELOW, r"\bcrate::(report|commands|cli)\b", "views and the command line stand above everything else"),
    (&["report"], r"\bcrate::(commands|cli)\b", "a view is given what it shows"),
];

/// The files that may hold `unsafe`.
const UNSAFE: [&str; 2] = ["ceph::ffi", "sys::syscalls"];

fn read(directory: &Path, room: &str, house: &mut House) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let module = if room.is_empty() { name.clone() } else { format!("{room}::{name}") };
        if path.is_dir() {
            read(&path, &module, house);
        } else if path.extension().is_some_and(|extension| extension == "rs") && name != "tests" {
            let module = if name == "mod" { room.to_owned() } else { module };
            house.insert(module, code(&std::fs::read_to_string(&path).unwrap()));
        }
    }
}

/// A file's code: what stands before its tests, without comments.
fn code(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn house() -> House {
    let mut house = House::new();
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "", &mut house);
    house
}

/// Every path of a tree of imports: `a::{b, c::{d, e}}`.
fn leaves(tree: &str, before: &str, into: &mut Vec<String>) {
    let (mut depth, mut part) = (0_usize, String::new());
    for c in tree.chars().chain([',']) {
        depth = depth + usize::from(c == '{') - usize::from(c == '}');
        if c != ',' || depth > 0 {
            part.push(c);
            continue;
        }
        match part.trim().split_once('{') {
            Some((head, rest)) => {
                leaves(rest.strip_suffix('}').unwrap_or(rest), &format!("{before}{head}"), into);
            }
            None => into.push(format!("{before}{}", part.trim())),
        }
        part.clear();
    }
}

/// Every path of this crate and of the standard library that a file's code names, whole.
fn paths(module: &str, text: &str) -> Vec<String> {
    static PATH: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\b(?:crate|std)::(?:(?:\w+::)*\{[^;]*\}|[\w:]+)").unwrap());
    let parent =
        module.rsplit_once("::").map_or("crate".to_owned(), |(parent, _)| format!("crate::{parent}"));
    let text = text.replace("super::", &format!("{parent}::"));
    let mut paths = Vec::new();
    PATH.find_iter(&text).for_each(|found| leaves(found.as_str(), "", &mut paths));
    paths
}

/// The files that a file names, itself left out, and the face of a room that it stands in.
fn names(house: &House, module: &str) -> BTreeSet<String> {
    let file = |path: String| {
        let mut path = path.strip_prefix("crate::")?;
        while !house.contains_key(path) {
            path = path.rsplit_once("::")?.0;
        }
        Some(path.to_owned())
    };
    let face = |file: &String| format!("{module}::").starts_with(&format!("{file}::"));
    paths(module, &house[module]).into_iter().filter_map(file).filter(|file| !face(file)).collect()
}

/// A way from something back to itself.
fn circle(arrows: &BTreeMap<String, BTreeSet<String>>) -> Option<String> {
    let mut left = arrows.clone();
    // What names nothing that is left is on no circle.
    while let Some(done) =
        left.iter().find(|(_, to)| to.iter().all(|to| !left.contains_key(to))).map(|(from, _)| from.clone())
    {
        left.remove(&done);
    }
    let mut way = vec![left.keys().next()?.clone()];
    loop {
        let next = left[way.last()?].iter().find(|to| left.contains_key(*to))?.clone();
        let known = way.iter().position(|step| *step == next);
        way.push(next);
        if let Some(known) = known {
            return Some(way[known..].join(" -> "));
        }
    }
}

fn room(module: &str) -> &str {
    module.split("::").next().unwrap_or_default()
}

/// All that breaks a rule.
fn breaches(house: &House) -> Vec<String> {
    let mut all = Vec::new();
    for (rooms, pattern, why) in NEVER {
        let pattern = Regex::new(pattern).unwrap();
        for (module, text) in house.iter().filter(|(module, _)| rooms.contains(&room(module))) {
            let named = paths(module, text).join("\n") + "\n" + text;
            all.extend(pattern.find(&named).map(|found| format!("{module} names {}: {why}", found.as_str())));
        }
    }
    let word = Regex::new(r"\bunsafe\s+(\{|fn|impl|extern)|allow\(unsafe_code").unwrap();
    let with_unsafe =
        house.iter().filter(|(module, text)| word.is_match(text) && !UNSAFE.contains(&module.as_str()));
    all.extend(with_unsafe.map(|(module, _)| format!("{module} holds unsafe code")));
    let modules = house.keys().filter(|module| !["lib", "main"].contains(&module.as_str()));
    let files: BTreeMap<String, BTreeSet<String>> =
        modules.map(|module| (module.clone(), names(house, module))).collect();
    all.extend(circle(&files).map(|way| format!("a circle of files: {way}")));
    let mut rooms: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (module, named) in &files {
        let others = named.iter().map(|named| room(named).to_owned()).filter(|named| named != room(module));
        rooms.entry(room(module).to_owned()).or_default().extend(others);
    }
    all.extend(circle(&rooms).map(|way| format!("a circle of rooms: {way}")));
    all
}

#[test]
fn the_house_stands_as_it_is_meant_to() {
    assert_eq!(breaches(&house()), Vec::<String>::new());
}

#[test]
fn the_map_and_the_guide_name_every_room() {
    let read =
        |file: &str| std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
    let (map, guide) = (read("src/lib.rs"), read("docs/how-it-works.md"));
    for room in house().keys().map(|module| room(module)).filter(|room| !["lib", "main"].contains(room)) {
        assert!(map.contains(&format!("//! | [`{room}`] | ")), "src/lib.rs does not say what is in {room}");
        let there = [format!("`{room}/`"), format!("`{room}.rs`")].iter().any(|name| guide.contains(name));
        assert!(there, "docs/how-it-works.md does not say what is in {room}");
    }
}

#[test]
fn every_rule_is_broken_by_what_it_is_for() {
    for (module, line, expected) in [
        ("pve::guest", "use crate::ceph::conf;", "pve::guest names crate::ceph"),
        ("kernel::sysfs", "fn f() { crate::ceph::conf::lines() }", "kernel::sysfs names crate::ceph"),
        ("diagnose::lock", "use std::fs;", "diagnose::lock names std::fs"),
        ("plan::order", "use std::process::Command;", "plan::order names std::process"),
        ("rbd::lock", "fn f() { Instant::now(); }", "rbd::lock names Instant"),
        ("diagnose::image", "use crate::sys::{dates, time};", "diagnose::image names sys::time"),
        ("diagnose::image", "use crate::sys::time;", "diagnose::image names sys::time"),
        ("act", "use crate::report::text;", "act names crate::report"),
        ("hook::earlier", "use crate::cli::Hook;", "hook::earlier names crate::cli"),
        ("report::text", "use crate::commands::hook;", "report::text names crate::commands"),
        ("act::carry_out", "fn f() { unsafe { g() } }", "act::carry_out holds unsafe code"),
        (
            "reading",
            "use crate::{rbd, sys::{root::Root, plain}};",
            "a circle of files: reading -> sys::root -> reading",
        ),
        ("rbd::spec", "use super::lock::Lock;", "a circle of files: rbd::lock -> rbd::spec -> rbd::lock"),
        ("sys::plain", "use crate::rbd::address;", "a circle of rooms: rbd -> sys -> rbd"),
    ] {
        let mut house: House = [
            ("act", ""),
            ("act::carry_out", ""),
            ("diagnose::image", ""),
            ("diagnose::lock", ""),
            ("hook::earlier", ""),
            ("kernel::sysfs", ""),
            ("plan::order", ""),
            ("pve::guest", ""),
            ("rbd", ""),
            ("rbd::address", ""),
            ("rbd::lock", "use crate::rbd::spec::Spec;"),
            ("rbd::spec", ""),
            ("reading", ""),
            ("report::text", ""),
            ("rbd::action", "use crate::sys::quote;"),
            ("sys::plain", ""),
            ("sys::quote", ""),
            ("sys::root", "use crate::reading::Failure;"),
        ]
        .map(|(module, text)| (module.to_owned(), text.to_owned()))
        .into();
        assert_eq!(breaches(&house), Vec::<String>::new(), "as it is meant to be");
        house.get_mut(module).unwrap().push_str(&format!("\n{line}"));
        let found = breaches(&house);
        assert!(found.iter().any(|breach| breach.starts_with(expected)), "{module}: {line}: {found:?}");
    }
}
