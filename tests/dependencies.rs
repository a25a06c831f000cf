//! What deny.toml says of the dependencies, as far as it can be checked without a network, and their minimum Rust.
#![allow(missing_docs, clippy::unwrap_used)]

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

fn metadata() -> Value {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    // The platforms that deny.toml names; both need the same packages.
    let arguments = [
        "metadata",
        "--format-version=1",
        "--locked",
        "--offline",
        "--filter-platform=x86_64-unknown-linux-gnu",
    ];
    let output =
        Command::new(cargo).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or_default()
}

/// The ids of all that the product is built from: tests' dependencies are left out.
fn of_product(metadata: &Value) -> BTreeSet<&str> {
    let nodes = metadata["resolve"]["nodes"].as_array().unwrap();
    let nodes: BTreeMap<&str, &Value> = nodes.iter().map(|node| (text(node, "id"), node)).collect();
    let mut found = BTreeSet::new();
    let mut next = vec![metadata["resolve"]["root"].as_str().unwrap()];
    while let Some(id) = next.pop() {
        if !found.insert(id) {
            continue;
        }
        for dependency in nodes[id]["deps"].as_array().unwrap() {
            let mut kinds = dependency["dep_kinds"].as_array().unwrap().iter();
            if kinds.any(|kind| kind["kind"] != "dev") {
                next.push(text(dependency, "pkg"));
            }
        }
    }
    found
}

/// The licences of deny.toml: the words in quotes of its `allow` list.
fn allowed() -> BTreeSet<String> {
    let file = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deny.toml")).unwrap();
    let list = file.split("allow = [").nth(1).unwrap().split(']').next().unwrap();
    list.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// An SPDX expression of names, AND, OR, WITH and brackets is met by these licences. AND binds closer than OR.
fn is_met(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    any_of(&mut rest, allowed) && rest.is_empty()
}

fn any_of(words: &mut &[&str], allowed: &BTreeSet<String>) -> bool {
    let mut met = all_of(words, allowed);
    while let ["OR", rest @ ..] = *words {
        *words = rest;
        met |= all_of(words, allowed);
    }
    met
}

fn all_of(words: &mut &[&str], allowed: &BTreeSet<String>) -> bool {
    let mut met = one(words, allowed);
    while let ["AND", rest @ ..] = *words {
        *words = rest;
        met &= one(words, allowed);
    }
    met
}

fn one(words: &mut &[&str], allowed: &BTreeSet<String>) -> bool {
    match *words {
        ["(", rest @ ..] => {
            *words = rest;
            let met = any_of(words, allowed);
            let closed = words.strip_prefix(&[")"]);
            *words = closed.unwrap_or_default();
            met && closed.is_some()
        }
        [name, "WITH", exception, rest @ ..] => {
            *words = rest;
            allowed.contains(&format!("{name} WITH {exception}"))
        }
        [name, rest @ ..] => {
            *words = rest;
            allowed.contains(*name)
        }
        [] => false,
    }
}

#[test]
fn expressions_are_read_as_spdx_means_them() {
    let allowed = BTreeSet::from(["MIT".to_owned(), "Unicode-3.0".to_owned()]);
    for met in ["MIT", "GPL-3.0 OR MIT", "MIT/GPL-3.0", "(MIT OR A) AND Unicode-3.0", "A AND B OR MIT"] {
        assert!(is_met(met, &allowed), "{met}");
    }
    for not in ["", "GPL-3.0", "MIT AND GPL-3.0", "MIT WITH x", "(MIT", "(A OR B) AND MIT", "MIT MIT"] {
        assert!(!is_met(not, &allowed), "{not}");
    }
}

/// Every package that is built here at all, tests' and build scripts' included.
#[test]
fn licences_are_allowed_and_sources_known() {
    let (metadata, allowed) = (metadata(), allowed());
    assert!(allowed.len() > 2, "{allowed:?}");
    let packages = metadata["packages"].as_array().unwrap();
    for package in packages {
        let (name, licence) = (text(package, "name"), text(package, "license"));
        assert!(is_met(licence, &allowed), "{name} is {licence:?}, which deny.toml does not allow");
        let source = text(package, "source");
        assert!(name == "rbd-preflight" || source.starts_with("registry+"), "{name} comes from {source:?}");
        assert_ne!(name, "serde_yaml", "deny.toml bans it");
    }
    println!("{} packages", packages.len());
}

/// `rust-version` of Cargo.toml is what the whole product can be built with.
#[test]
fn the_product_builds_with_its_rust_version() {
    let metadata = metadata();
    let product = of_product(&metadata);
    let version = |package: &Value| -> Option<Vec<u32>> {
        text(package, "rust_version").split('.').map(|part| part.parse().ok()).collect()
    };
    let packages = metadata["packages"].as_array().unwrap();
    let ours =
        packages.iter().find(|package| text(package, "name") == "rbd-preflight").and_then(version).unwrap();
    assert_eq!(ours, [1, 85], "what design.md says");
    let mut looked_at = 0;
    for package in packages.iter().filter(|package| product.contains(text(package, "id"))) {
        let needs = version(package).unwrap_or_default();
        assert!(needs[..needs.len().min(2)] <= ours[..], "{} needs Rust {needs:?}", text(package, "name"));
        looked_at += 1;
    }
    println!("{looked_at} of {} packages are the product's", packages.len());
    assert!(looked_at > 20 && looked_at < packages.len(), "{looked_at}");
}
