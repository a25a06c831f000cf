//! docs/metrics.md has every metric that is printed, with its labels, and no other; docs/watch.md has every code.
#![allow(clippy::unwrap_used)] // a helper that fails must fail the test

use rbd_preflight::diagnose::diagnose;
use rbd_preflight::observe::survey::Survey;
use rbd_preflight::report::{GuestReport, prometheus, watch};
use rbd_preflight::settings::Settings;
use rbd_preflight::settings::policy::Policy;
use rbd_preflight::watch::code::Code;
use rbd_preflight::watch::trouble::Trouble;
use regex::Regex;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

type Metrics = BTreeMap<String, BTreeSet<String>>;

fn read(name: &str) -> String {
    std::fs::read_to_string(format!("{}/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// Every metric of a text, with the labels of its samples.
fn printed(text: &str) -> Metrics {
    let sample = Regex::new(r#"(?m)^(rbd_preflight_\w+)(?:\{(.*)\})? [0-9.]+$"#).unwrap();
    let label = Regex::new(r#"(\w+)="(?:[^"\\]|\\.)*""#).unwrap();
    let mut metrics = Metrics::new();
    for found in sample.captures_iter(text) {
        let labels = found.get(2).map_or("", |labels| labels.as_str());
        let labels = label.captures_iter(labels).map(|name| name[1].to_owned());
        metrics.entry(found[1].to_owned()).or_default().extend(labels);
    }
    for family in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = family.split_once(' ').unwrap();
        assert_eq!(kind, "gauge");
        assert!(metrics.contains_key(name), "nothing shows what labels {name} has");
    }
    metrics
}

/// The rows of the document's sections whose titles have this in them.
fn documented(section: &str) -> Metrics {
    let document = read("docs/metrics.md");
    let row = Regex::new(r"(?m)^\| `(rbd_preflight_\w+)` \| ([^|]*)\|").unwrap();
    let label = Regex::new("`([a-z]+)`").unwrap();
    let text = document.split("\n## ").find(|text| text.starts_with(&format!("`{section}"))).unwrap();
    let rows = row.captures_iter(text).map(|row| {
        (row[1].to_owned(), label.captures_iter(&row[2]).map(|label| label[1].to_owned()).collect())
    });
    rows.collect()
}

#[test]
fn the_metrics_of_a_check_are_those_that_are_documented() {
    let survey: Survey = serde_json::from_str(&read("fuzz/seeds/survey/used.json")).unwrap();
    let settings = Settings::default().for_guest(survey.guest.vmid, survey.storages.keys());
    let findings = diagnose(&survey, &Policy::new(settings));
    assert!(!findings.is_empty());
    let report = GuestReport { survey, findings, actions: Vec::new() };
    assert_eq!(printed(&prometheus::text(&[report], &[], &[], 1, 0.5)), documented("check"));
}

#[test]
fn the_metrics_of_the_watcher_are_those_that_are_documented() {
    let troubles = Code::ALL.map(|code| Trouble::new(code, "seen"));
    let text = watch::metrics("pve1", troubles.iter(), 3, 5);
    assert_eq!(printed(&text), documented("watch"));
    for code in Code::ALL {
        assert!(text.contains(&format!("code=\"{code}\"")), "{code}");
    }
}

/// Alert rules and dashboard ask only for what there is.
#[test]
fn rules_and_dashboard_name_only_metrics_and_codes_that_there_are() {
    let known: Metrics = ["check", "watch", "rehearse"].into_iter().flat_map(documented).collect();
    let name = Regex::new(r"rbd_preflight_\w+").unwrap();
    let code = Regex::new(r#"rbd_preflight_watch_trouble\{[^}]*code=~?\\?"([a-z|-]+)"#).unwrap();
    let mut seen = BTreeSet::new();
    for file in ["packaging/prometheus/rbd-preflight.rules.yml", "packaging/grafana/rbd-preflight.json"] {
        let text = read(file);
        for found in name.find_iter(&text) {
            assert!(known.contains_key(found.as_str()), "{file}: there is no {}", found.as_str());
            seen.insert(found.as_str().to_owned());
        }
        for found in code
            .captures_iter(&text)
            .flat_map(|found| found[1].split('|').map(str::to_owned).collect::<Vec<_>>())
        {
            assert!(Code::ALL.iter().any(|code| code.name() == found), "{file}: there is no code {found}");
        }
    }
    assert!(seen.len() > 10, "{seen:?}");
}

#[test]
fn every_code_of_the_watcher_is_documented() {
    let document = read("docs/watch.md");
    let (before, rest) = document.split_once("|---|---|---|---|---|---|\n").unwrap();
    let (_, after) = rest.split_once("\n\n").unwrap_or(("", rest.trim_start_matches('\n')));
    let mut text = format!("{before}|---|---|---|---|---|---|\n");
    for code in Code::ALL {
        let (gravity, meaning, over) = (code.gravity(), code.meaning(), code.over());
        let _ = writeln!(
            text,
            "| `{code}` | {gravity} | {meaning} | {over} | {} | `{}` |",
            code.remedy(),
            code.message_id()
        );
    }
    text = format!("{text}\n{after}");
    if std::env::var_os("RBD_PREFLIGHT_WRITE_DOCS").is_some() {
        std::fs::write(format!("{}/docs/watch.md", env!("CARGO_MANIFEST_DIR")), &text).unwrap();
    }
    assert!(
        read("docs/watch.md") == text,
        "docs/watch.md is not what the code says; tests/docs-generate writes it anew"
    );
}
