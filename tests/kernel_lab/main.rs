//! The hook against real kernels, a real Ceph and real crashes: every way in which a start can fail, seen to fail
//! without us and to end well, or refused, with us. `tests/run` gives it its two nodes; see tests/common/kernel.rs.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod by_hand;
mod clients;
mod images;
mod incident;
mod keys;
mod limits;
mod locks;
mod names;
mod rehearse;
mod start;
mod watch;

use common::node::Ran;

/// Asserts how a hook ended and that it named all of this on stderr.
fn assert_said(ran: &Ran, code: i32, words: &[&str]) {
    assert_eq!(ran.code, code, "{ran:#?}");
    for word in words {
        assert!(ran.stderr.contains(word), "`{word}` is not in {ran:#?}");
    }
    assert_eq!(ran.stdout, "", "the hook speaks on stderr only");
}

/// README shows this, but for what no two runs have in common; disks that are fixed at once come in any order. Its
/// example is the one that has this word in it.
fn assert_shown_in_readme(word: &str, shown: &str) {
    let readme = include_str!("../../README.md");
    let example = readme.split("```").skip(1).step_by(2).find(|block| block.contains(word)).unwrap();
    assert_eq!(lines_of(shown), lines_of(example), "README, the example with {word}");
}

/// The lines in order of their text, without times, addresses, devices and sizes.
fn lines_of(text: &str) -> Vec<String> {
    let mut text = text.to_owned();
    for (pattern, word) in [
        (r"\d+\.\d+\.\d+\.\d+:0/\d+", "ADDRESS"),
        (r"\d+-\d+-\d+T[\d:.+]+", "DATE"),
        (r"\(\d+\.\d s\)", "(TIME)"),
        (r"/dev/rbd\d+", "/dev/rbdN"),
        // Which the `rbd` of Ceph 20 asks for by itself.
        (" with ms_mode=prefer-crc", ""),
        (r"\d+ MiB", "SIZE"),
        (" +", " "),
    ] {
        text = regex::Regex::new(pattern).unwrap().replace_all(&text, word).into_owned();
    }
    let mut lines: Vec<_> = text.lines().filter(|line| !line.is_empty()).map(ToOwned::to_owned).collect();
    lines.sort();
    lines
}
