//! The documents say what the code says. `tests/docs-generate` writes anew those that are made from it.
#![allow(clippy::unwrap_used)] // a helper that fails must fail the test

use clap::Parser;
use rbd_preflight::cli::Cli;
use rbd_preflight::finding_codes::{Code, Severity};
use rbd_preflight::kernel::messages;
use rbd_preflight::settings::Settings;
use regex::Regex;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

const CONFIG: &str = include_str!("../packaging/config.yaml");
const GUIDE: &str = "docs/when-a-guest-does-not-start.md";
const GUIDE_IN_CHINESE: &str = "docs/when-a-guest-does-not-start.zh-CN.md";
const HEAD: &str = "<!-- Made by tests/docs-generate; edit what it is made from instead. -->\n\n";

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Every document that people read: those at the top and those in docs/.
fn documents() -> Vec<(String, String)> {
    let mut names: Vec<String> =
        ["README.md", "README.zh-CN.md", "CONTRIBUTING.md"].map(str::to_owned).into();
    for entry in std::fs::read_dir(path("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".md") {
            names.push(format!("docs/{name}"));
        }
    }
    names.into_iter().filter(|name| path(name).exists()).map(|name| (name.clone(), read(&name))).collect()
}

/// Compares a document with what the code gives, or writes it where `tests/docs-generate` asks for that.
fn assert_generated(name: &str, text: &str) {
    if std::env::var_os("RBD_PREFLIGHT_WRITE_DOCS").is_some() {
        std::fs::write(path(name), text).unwrap();
    }
    let there = std::fs::read_to_string(path(name)).unwrap_or_default();
    assert!(there == text, "{name} is not what the code says; tests/docs-generate writes it anew");
}

#[test]
fn the_findings_are_the_codes() {
    let mut text = format!("{HEAD}# What rbd-preflight finds\n\n");
    text.push_str(
        "`check --json` names these codes; they do not change. The severity is the usual one: a finding can be less grave\n\
         where it cannot stop a start, and graver where it can. \"What fixes it\" is done by `repair` where that is safe, and\n\
         needs an administrator otherwise; `check` says which, and why.\n",
    );
    for (severity, meaning) in [
        (Severity::Unsafe, "The start would succeed and put data at risk. Exit code 4."),
        (Severity::Blocker, "The start is certain to fail. Exit code 3."),
        (Severity::Unknown, "It could not be found out whether the guest can start. Exit code 1."),
        (Severity::Warning, "The guest starts, but something is not as it should be."),
        (Severity::Note, "Worth knowing."),
    ] {
        let _ = write!(
            text,
            "\n## {severity}\n\n{meaning}\n\n| code | meaning | what fixes it |\n|---|---|---|\n"
        );
        for code in Code::all().filter(|code| code.severity() == severity) {
            let _ = writeln!(text, "| `{code}` | {} | {} |", code.summary(), code.remedy());
        }
    }
    assert_generated("docs/findings.md", &text);
}

#[test]
fn the_settings_are_those_that_are_shipped() {
    let mut text = format!("{HEAD}# Settings\n\n");
    text.push_str(
        "`/etc/rbd-preflight/config.yaml` on a node, over `/etc/pve/rbd-preflight.yaml` for the whole cluster. Neither has to\n\
         exist; `rbd-preflight doctor` says whether they are understood. Shown is the built-in value of each key.\n",
    );
    let mut paragraphs = CONFIG.split("\n\n");
    let _ = writeln!(text, "\n{}", prose(paragraphs.next().unwrap().split("\n#\n").nth(1).unwrap()));
    let mut keys = BTreeSet::new();
    for paragraph in paragraphs {
        let value = paragraph.lines().filter(|line| !is_prose(line)).map(|line| &line[1..]);
        let value = value.collect::<Vec<_>>().join("\n");
        let (key, first) = value.split_once(':').unwrap();
        let _ = write!(text, "\n## {key}\n\n{}\n", prose(paragraph));
        if first.starts_with(' ') && !first.contains('[') {
            let _ = write!(text, "\nPossible: {}.\n", possible(key));
        }
        let _ = write!(text, "\n```yaml\n{value}\n```\n");
        keys.insert(key.to_owned());
    }
    assert_eq!(
        keys,
        known_keys(),
        "packaging/config.yaml does not describe every key, or one that there is not"
    );
    assert_generated("docs/settings.md", &text);
}

/// A line of prose, where `#key: value` and what is indented below it are settings.
fn is_prose(line: &&str) -> bool {
    line.starts_with("# ") && !line.starts_with("#  ")
}

/// The prose of a paragraph of comments.
fn prose(paragraph: &str) -> String {
    paragraph.lines().filter(is_prose).map(|line| &line[2..]).collect::<Vec<_>>().join("\n")
}

/// What the settings' own parser says may stand under a key.
fn possible(key: &str) -> String {
    let error = Settings::parse([("f", format!("{key}: !nonsense").as_str())]).unwrap_err().to_string();
    let plain = Settings::parse([("f", format!("{key}: nonsense").as_str())]).unwrap_err().to_string();
    let told = if plain.contains("expected ") { plain } else { error };
    let told = told.split("expected ").nth(1).unwrap().trim_start_matches("one of ");
    told.replace("a boolean", "`true`, `false`")
}

/// The keys that the settings' own parser knows.
fn known_keys() -> BTreeSet<String> {
    let error = Settings::parse([("f", "nonsense: 1")]).unwrap_err().to_string();
    let expected = error.split("expected ").nth(1).unwrap_or_else(|| panic!("{error}"));
    Regex::new("`([a-z_]+)`").unwrap().captures_iter(expected).map(|c| c[1].to_owned()).collect()
}

/// The text of the fenced blocks in this language.
fn blocks<'a>(document: &'a str, language: &str) -> Vec<&'a str> {
    let opening = format!("```{language}\n");
    document.split(opening.as_str()).skip(1).map(|rest| rest.split("```").next().unwrap()).collect()
}

#[test]
fn every_command_that_is_shown_is_one() {
    let word = Regex::new(r"[a-z0-9][^ ]*|--?[a-z][a-z-]*(=[^ ]+)?|[A-Z]+").unwrap();
    let inline = Regex::new(r"`(rbd-preflight [^`]+)`").unwrap();
    let in_block = Regex::new(r"(?m)^(?:[#$] )?(rbd-preflight [a-z][^#:\n]*)(?:#.*)?$").unwrap();
    let mut seen = 0;
    for (name, text) in documents() {
        let shown = inline.captures_iter(&text).chain(in_block.captures_iter(&text));
        for line in shown.map(|c| c[1].trim().to_owned()) {
            let words = line.split(' ').filter(|w| word.is_match(w)).map(|w| match w {
                "VMID" => "516",
                "RUN" => "20261123T061500Z-4711",
                w => w,
            });
            // Only a missing argument may be left to the reader.
            if let Err(error) = Cli::try_parse_from(words) {
                let kind = error.kind();
                assert!(
                    kind == clap::error::ErrorKind::MissingRequiredArgument,
                    "{name}: `{line}`: {kind:?}: {error}"
                );
            }
            seen += 1;
        }
    }
    assert!(seen > 20, "only {seen} commands were found in the documents");
}

#[test]
fn every_link_leads_to_a_file() {
    let link = Regex::new(r"\]\(([^)#:]+)(?:#[^)]*)?\)").unwrap();
    for (name, text) in documents() {
        for target in link.captures_iter(&text).map(|c| c[1].to_owned()) {
            let file = path(&name).parent().unwrap().join(&target);
            assert!(file.exists(), "{name}: there is no {target}");
        }
    }
}

#[test]
fn settings_that_are_shown_are_understood() {
    for (name, text) in documents() {
        for block in blocks(&text, "yaml") {
            Settings::parse([(name.as_str(), block)]).unwrap_or_else(|e| panic!("{e:#}\n{block}"));
        }
    }
}

#[test]
fn the_guide_has_every_code_that_stops_a_start() {
    let guide = read(GUIDE);
    for code in Code::all().filter(|code| code.severity() >= Severity::Unknown) {
        assert!(guide.contains(&format!("`{code}`")), "{GUIDE} does not say what to do about {code}");
    }
}

#[test]
fn the_guides_lines_of_the_kernel_are_understood() {
    let guide = read(GUIDE);
    let blocks = blocks(&guide, "kernel");
    assert!(blocks.len() > 5, "only {} blocks of the kernel's lines", blocks.len());
    for line in blocks.iter().flat_map(|block| block.lines()) {
        assert!(messages::parse(line).is_some(), "the kernel does not say: {line}");
    }
}

/// What a translation keeps as it is.
#[derive(Debug, PartialEq)]
struct Kept {
    /// Codes of findings.
    codes: BTreeSet<String>,
    /// The headings' levels.
    headings: Vec<usize>,
    /// What stands in blocks, comments aside.
    blocks: Vec<String>,
}

fn kept(document: &str) -> Kept {
    let name = Regex::new("`([^`\n]+)`").unwrap();
    let (mut headings, mut blocks, mut prose, mut inside) = (Vec::new(), Vec::new(), String::new(), false);
    for line in document.lines() {
        if line.starts_with("```") {
            inside = !inside;
        } else if inside {
            blocks.push(line.split(" # ").next().unwrap().trim_end().to_owned());
        } else {
            headings.extend(line.starts_with('#').then(|| line.split(' ').next().unwrap().len()));
            prose += line;
            prose.push('\n');
        }
    }
    let names = name.captures_iter(&prose).map(|c| c[1].to_owned());
    Kept { codes: names.filter(|name| Code::from_name(name).is_some()).collect(), headings, blocks }
}

#[test]
fn the_guide_in_chinese_is_the_guide() {
    assert_eq!(kept(&read(GUIDE_IN_CHINESE)), kept(&read(GUIDE)));
}

#[test]
fn what_readme_shows_in_chinese_it_shows_in_english() {
    let (chinese, english) = (kept(&read("README.zh-CN.md")), kept(&read("README.md")));
    assert!(chinese.blocks.len() > 50, "only {} lines are shown", chinese.blocks.len());
    for line in &chinese.blocks {
        assert!(english.blocks.contains(line), "README.md does not show: {line}");
    }
}

/// Programs that the code runs, and the long options that it gives them, stand in docs/interfaces.md with the releases that
/// know them.
#[test]
fn every_program_and_long_option_is_in_the_list_of_interfaces() {
    let text = read("docs/interfaces.md");
    let listed: Vec<&str> = text.split(|c: char| c.is_whitespace() || "`,|".contains(c)).collect();
    let literal = Regex::new(r#"Command::new\("([a-z-]+)"\)|"(--[a-z][a-z_-]+)""#).unwrap();
    let mut seen = 0;
    for file in files_below(&path("src")) {
        let text = std::fs::read_to_string(&file).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        for found in literal.captures_iter(code) {
            let word = found.get(1).or(found.get(2)).unwrap().as_str();
            assert!(listed.contains(&word) || word == "cp", "{}: {word}", file.display());
            seen += 1;
        }
    }
    assert!(seen > 20, "{seen}");
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}
