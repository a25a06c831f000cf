//! The text of every finding, as an administrator reads it: each case of `tests/golden/cases.yaml` is made of a healthy guest's
//! survey (`base.json`), and what `check --verbose` prints of it stands beside it. `tests/docs-generate` writes it anew.
#![allow(clippy::unwrap_used)] // a helper that fails must fail the test

use rbd_preflight::diagnose::finding::Finding;
use rbd_preflight::diagnose::{diagnose, orphans};
use rbd_preflight::finding_codes::Code;
use rbd_preflight::observe::gather::Listed;
use rbd_preflight::observe::survey::Survey;
use rbd_preflight::plan::assessment::GuestReport;
use rbd_preflight::plan::order::plan;
use rbd_preflight::pve::needs::{Lack, Weight};
use rbd_preflight::reading::Reading;
use rbd_preflight::rehearsal;
use rbd_preflight::report::text::{self, Detail};
use rbd_preflight::settings::Settings;
use rbd_preflight::settings::policy::{Policy, Scope};
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Findings that `diagnose` does not make, why, and what makes them.
type Otherwise = (Code, &'static str, fn() -> Vec<Finding>);
const OTHERWISE: &[Otherwise] = &[
    (
        Code::ImageOrphaned,
        "it is about no guest, and comes from the list of the pools' images (`check --all --verbose`)",
        orphaned,
    ),
    (Code::ResourceMissing, "only a rehearsal looks at what else a guest needs of a node", lacking),
    (Code::HaRuleForbids, "only a rehearsal asks HA's rules", forbidden),
];

fn lacking() -> Vec<Finding> {
    let lack = Lack {
        key: "net0".to_owned(),
        text: "bridge 'vmbr7' does not exist".to_owned(),
        weight: Weight::Refused,
    };
    vec![rehearsal::lacking(&lack, &["scsi0"])]
}

fn forbidden() -> Vec<Finding> {
    vec![Finding::new(Code::HaRuleForbids, "rule `stays-on-pve2` (node-affinity, strict): pve2 only")]
}

fn orphaned() -> Vec<Finding> {
    let names = [Listed {
        fsid: Some("c0c55799-7178-41aa-804e-6e900331f900".to_owned()),
        pool: ("vms".to_owned(), None),
        names: Reading::Known(vec!["vm-516-disk-0".to_owned(), "vm-517-disk-0".to_owned()]),
    }];
    orphans::findings(&names.into(), &BTreeSet::from([516]), &|_, _| false)
}

/// Where the tool runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum When {
    /// `check`, by hand.
    #[default]
    Check,
    /// The hook before a start.
    Hook,
    /// The hook after a stop.
    AfterStop,
    /// The hook on the target of a migration.
    MigrationTarget,
    /// `repair --all --onboot`.
    Boot,
    /// The last try of `start`.
    LastTry,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Cases {
    /// Pieces that cases share (YAML anchors).
    #[serde(rename = "pieces")]
    _pieces: serde_yaml::Value,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    /// The name of its file, and of the code that it is about if nothing else is said.
    name: String,
    finds: Option<String>,
    #[serde(default)]
    when: When,
    #[serde(default)]
    settings: BTreeMap<String, serde_yaml::Value>,
    /// A JSON merge patch (RFC 7396) on the base survey. A list is patched too: by an object whose keys are the `key`s of its
    /// elements (`scsi1`), or their places ("0").
    #[serde(default)]
    survey: Value,
}

impl Case {
    fn finds(&self) -> &str {
        self.finds.as_deref().unwrap_or(&self.name)
    }

    fn policy(&self, survey: &Survey) -> Policy {
        let settings = serde_yaml::to_string(&self.settings).unwrap();
        let settings = Settings::parse([("cases.yaml", settings.as_str())]).unwrap();
        let policy = Policy::new(settings.for_guest(survey.guest.vmid, survey.storages.keys()));
        let budget = Some(policy.settings.rebuild_deadline);
        match self.when {
            When::Check => policy,
            When::Hook => Policy { map: true, scope: Scope::InHook, rebuild_budget: budget, ..policy },
            When::AfterStop => Policy { scope: Scope::AfterStop, rebuild_budget: budget, ..policy },
            When::MigrationTarget => {
                let why = "the guest is being migrated here from node pve2".to_owned();
                Policy { read_only: Some(why), ..policy }
            }
            When::Boot => Policy { at_boot: true, rebuild_budget: budget, ..policy },
            When::LastTry => Policy { map: true, reset: true, ..policy },
        }
    }

    /// What an administrator sees of it, and the findings.
    fn seen(&self, base: &Value) -> (String, Vec<Finding>) {
        let mut survey = base.clone();
        patch(&mut survey, &self.survey);
        let survey: Survey =
            serde_json::from_value(survey).unwrap_or_else(|error| panic!("{}: {error}", self.name));
        let policy = self.policy(&survey);
        let findings = diagnose(&survey, &policy);
        let changes = plan(&findings, &policy);
        let report = GuestReport { survey, findings, actions: Vec::new() };
        let mut text = text::guest(&report, Detail::Full);
        if let Some(next) = text::next_step(&report).filter(|_| self.when == When::Check) {
            text.push_str(&format!("\n{next}\n"));
        }
        if !changes.is_empty() {
            text.push_str("\nrepair --dry-run:\n");
            changes.iter().for_each(|change| text.push_str(&format!("  {}\n", change.command_line())));
        }
        (text, report.findings)
    }
}

/// A JSON merge patch, that goes into lists too.
fn patch(target: &mut Value, change: &Value) {
    match (target, change) {
        (_, Value::Null) => {}
        (Value::Array(list), Value::Object(changes)) => {
            for (name, change) in changes {
                let by_key = list.iter().position(|element| element["key"] == name.as_str());
                let at = by_key.or_else(|| name.parse().ok()).filter(|at| *at < list.len());
                patch(&mut list[at.unwrap_or_else(|| panic!("there is no `{name}` in the list"))], change);
            }
        }
        (target, Value::Object(changes)) => {
            if !target.is_object() {
                *target = Value::Object(serde_json::Map::new());
            }
            for (name, change) in changes {
                if change.is_null() {
                    target.as_object_mut().unwrap().remove(name);
                } else {
                    patch(&mut target[name], change);
                }
            }
        }
        (target, change) => *target = change.clone(),
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn base() -> Value {
    serde_json::from_str(include_str!("golden/base.json")).unwrap()
}

fn cases() -> Vec<Case> {
    let mut yaml: serde_yaml::Value = serde_yaml::from_str(include_str!("golden/cases.yaml")).unwrap();
    yaml.apply_merge().unwrap();
    serde_yaml::from_value::<Cases>(yaml).unwrap().cases
}

/// Every text by its name, as the code gives it now.
fn texts() -> BTreeMap<String, String> {
    console::set_colors_enabled(false);
    let (base, mut texts) = (base(), BTreeMap::new());
    for case in cases() {
        let (text, findings) = case.seen(&base);
        let found = findings.iter().any(|finding| finding.code.name() == case.finds());
        assert!(found, "{} does not find `{}`, but:\n{text}", case.name, case.finds());
        assert!(texts.insert(case.name.clone(), text).is_none(), "two cases have the name {}", case.name);
    }
    for (code, why, make) in OTHERWISE {
        let findings = make();
        assert!(findings.iter().any(|finding| finding.code == *code), "{code}: {why}");
        texts.insert(code.name().to_owned(), findings.iter().map(text::finding).collect());
    }
    texts
}

#[test]
fn what_is_said_of_every_finding_is_what_was_read_and_approved() {
    let texts = texts();
    let file = |name: &str| folder().join(format!("{name}.txt"));
    let there = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let there: BTreeSet<PathBuf> =
        there.filter(|path| path.extension().is_some_and(|e| e == "txt")).collect();
    let wanted: BTreeSet<PathBuf> = texts.keys().map(|name| file(name)).collect();
    if std::env::var_os("RBD_PREFLIGHT_WRITE_DOCS").is_some() {
        there.difference(&wanted).for_each(|old| std::fs::remove_file(old).unwrap());
        texts.iter().for_each(|(name, text)| std::fs::write(file(name), text).unwrap());
        return;
    }
    let hint = "tests/docs-generate writes tests/golden anew: read the difference as one who is woken at three in the morning";
    for (name, text) in &texts {
        let golden = std::fs::read_to_string(file(name)).unwrap_or_default();
        assert!(golden == *text, "{name}.txt is\n{golden}\nand the code says\n{text}\n{hint}");
    }
    let old: Vec<&PathBuf> = there.difference(&wanted).collect();
    assert!(old.is_empty(), "texts without a case: {old:?}; {hint}");
}

#[test]
fn every_finding_has_a_case() {
    let mut told: BTreeSet<String> = cases().iter().map(|case| case.finds().to_owned()).collect();
    told.extend(OTHERWISE.iter().map(|(code, ..)| code.name().to_owned()));
    let lacking: Vec<&str> = Code::all().map(Code::name).filter(|name| !told.contains(*name)).collect();
    assert!(
        lacking.is_empty(),
        "no case shows what is said of {lacking:?}: add one to tests/golden/cases.yaml, then run tests/docs-generate"
    );
}

#[test]
fn the_base_is_a_guest_with_which_nothing_is_wrong() {
    let healthy = Case {
        name: "base".to_owned(),
        finds: None,
        when: When::Check,
        settings: BTreeMap::new(),
        survey: Value::Null,
    };
    let (text, findings) = healthy.seen(&base());
    assert!(findings.is_empty(), "{text}");
}
