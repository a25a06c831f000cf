//! The fuzz targets of `fuzz/`, run over their seeds and over mutations of them: the same ones in every run.
//!
//! `RBD_PREFLIGHT_FUZZ_ROUNDS` makes it longer (1000 rounds a target if it is not set, surveys a tenth of it). `cargo fuzz` searches further:
//! `fuzz/README.md`.
#![allow(missing_docs)]

#[path = "../fuzz/src/lib.rs"]
mod targets;

use std::path::Path;

/// SplitMix64: small, and the same numbers everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit.max(1) as u64).unwrap_or_default()
    }
}

/// What inputs are made of, and what has upset parsers before.
const PIECES: [&[u8]; 24] = [
    b"\n",
    b"\0",
    b"\r",
    b"\t",
    b" ",
    b":",
    b",",
    b"=",
    b"\"",
    b"\\x1b",
    b"\x1b[2J",
    b"\xc2\x9b",
    b"\xff",
    b"[",
    b"]",
    b"{",
    b"}",
    b"null",
    b"18446744073709551615",
    b"-1",
    b"--keyring=/x",
    b"../",
    b"%s",
    b"\xe2\x80\xae",
];

/// The seeds of a target: files, of `fuzz/seeds` or of the vectors.
fn seeds(directory: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    let mut files: Vec<_> = std::fs::read_dir(&directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    files.iter().map(|file| std::fs::read(file).expect("a seed")).collect()
}

/// One seed with a few changes: a byte, a piece put in, a stretch taken out, doubled, or brought from another seed.
fn mutated(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut bytes = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(6) {
        let at = random.below(bytes.len() + 1);
        let end = (at + random.below(64)).min(bytes.len());
        match random.below(5) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 => drop(bytes.drain(at..end)),
            2 => {
                let stretch = bytes[at..end].to_vec();
                bytes.splice(at..at, stretch);
            }
            3 => {
                let other = &seeds[random.below(seeds.len())];
                let from = random.below(other.len() + 1);
                let stretch = other[from..(from + 64).min(other.len())].to_vec();
                bytes.splice(at..at, stretch);
            }
            _ => drop(bytes.splice(at..at, PIECES[random.below(PIECES.len())].iter().copied())),
        }
    }
    bytes
}

/// How many rounds are run of a target that is as fast as most are.
fn rounds() -> usize {
    std::env::var("RBD_PREFLIGHT_FUZZ_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(1000)
}

fn run(directories: &[&str], rounds: usize, target: fn(&[u8])) {
    let seeds: Vec<Vec<u8>> = directories.iter().flat_map(|directory| seeds(directory)).collect();
    assert!(seeds.len() > 1, "no seeds in {directories:?}");
    seeds.iter().for_each(|seed| target(seed));
    let mut random = Random(516);
    for round in 0..rounds {
        let input = mutated(&seeds, &mut random);
        if std::panic::catch_unwind(|| target(&input)).is_err() {
            panic!("round {round}: {:?}", String::from_utf8_lossy(&input));
        }
    }
}

#[test]
fn guest_config() {
    run(&["tests/fixtures/vectors/qemu", "tests/fixtures/vectors/lxc"], rounds(), targets::guest_config);
}

#[test]
fn storage_cfg() {
    run(&["tests/fixtures/vectors/storage"], rounds(), targets::storage_cfg);
}

#[test]
fn drive() {
    run(&["fuzz/seeds/drive"], rounds(), targets::drive);
}

#[test]
fn ceph_conf() {
    run(&["fuzz/seeds/ceph_conf"], rounds(), targets::ceph_conf);
}

#[test]
fn keyring() {
    run(&["fuzz/seeds/keyring"], rounds(), targets::keyring);
}

#[test]
fn settings() {
    run(&["fuzz/seeds/settings"], rounds(), targets::settings);
}

#[test]
fn kernel_log() {
    run(&["fuzz/seeds/kernel_log"], rounds(), targets::kernel_log);
}

#[test]
fn ceph_json() {
    run(&["fuzz/seeds/ceph_json"], rounds(), targets::ceph_json);
}

#[test]
fn survey() {
    run(&["fuzz/seeds/survey"], rounds() / 10, targets::survey);
}

/// A mutation that is no longer JSON says little: here values of a real survey are exchanged instead.
#[test]
fn surveys_with_other_values() {
    let seeds = seeds("fuzz/seeds/survey");
    let read = |seed: &Vec<u8>| serde_json::from_slice(seed).expect("a seed is JSON");
    let surveys: Vec<serde_json::Value> = seeds.iter().map(read).collect();
    let mut random = Random(516);
    let mut whole = 0;
    let rounds = rounds() / 10;
    for _ in 0..rounds {
        let mut survey = surveys[random.below(surveys.len())].clone();
        for _ in 0..=random.below(3) {
            let donor = &surveys[random.below(surveys.len())];
            exchange(&mut survey, donor, &mut random);
        }
        let bytes = survey.to_string();
        whole += usize::from(serde_json::from_str::<rbd_preflight::observe::survey::Survey>(&bytes).is_ok());
        targets::survey(bytes.as_bytes());
    }
    assert!(whole > rounds / 3, "only {whole} of {rounds} were surveys at all");
}

/// Walks down at random and puts there what the other survey has at the same place, or an odd value.
fn exchange(value: &mut serde_json::Value, donor: &serde_json::Value, random: &mut Random) {
    use serde_json::{Value, json};
    match value {
        Value::Object(map) if !map.is_empty() && random.below(16) > 0 => {
            let at = random.below(map.len());
            if let Some((key, value)) = map.iter_mut().nth(at) {
                exchange(value, &donor[key.as_str()], random);
            }
        }
        Value::Array(list) if !list.is_empty() && random.below(4) > 0 => {
            let at = random.below(list.len());
            exchange(&mut list[at], &donor[at], random);
        }
        Value::String(_) => {
            *value = json!(["", "--keyring=x", "a\n\u{1b}[2Jb", "../..", "%n"][random.below(5)])
        }
        Value::Number(_) => *value = json!([0, 1, u64::from(u32::MAX), u64::MAX][random.below(4)]),
        Value::Bool(is) => *value = json!(!*is),
        _ if !donor.is_null() => *value = donor.clone(),
        _ => *value = Value::Null,
    }
}
