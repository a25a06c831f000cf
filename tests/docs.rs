//! README says what the code says: every finding, every setting.
#![allow(clippy::unwrap_used)] // a helper that fails must fail the test

use rbd_preflight::diagnose::code::Code;

const README: &str = include_str!("../README.md");

#[test]
fn readme_lists_every_finding_as_the_code_has_it() {
    let row =
        |code: Code| format!("| `{code}` | {} | {} | {} |", code.severity(), code.summary(), code.remedy());
    let rows: Vec<String> = Code::all().map(row).collect();
    assert!(README.contains(&rows.join("\n")), "put this into README.md:\n{}", rows.join("\n"));
}

#[test]
fn readme_shows_the_settings_as_they_are_shipped() {
    assert!(README.contains(include_str!("../packaging/config.yaml").trim_end()));
}
