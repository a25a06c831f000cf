//! A keyring's text: of which type is a user's key, and can a client of Ceph read the file at all. Pure; the key itself
//! is looked at no further than its header, and nothing of it is kept.
//!
//! As `KeyRing::decode_plaintext` and `CryptoKey::decode` read it (Ceph `src/auth`; run on 16.2.15, 18.2.7 and 20.2.4): the
//! file is a ceph.conf whose sections are users, each with `key`, `caps SERVICE` and `auid`. One line that is none of these, or one key
//! that cannot be decoded, whoever's it is, and the whole file is refused. A key is base64 of: type (le16), time of
//! creation (2 × le32), length (le16), secret.

use crate::ceph::conf::{Kind, lines};
use crate::reading::{Failure, Origin};
use nix::libc::{EIO, ENOENT};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Of which type a user's key is, or why that cannot be told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Key {
    /// `aes`, type 1: 40 characters that begin with `AQ`. Known to every release; what CVE-2025-30156 is about.
    Aes,
    /// `aes256k`, type 2: 60 characters that begin with `Ag`. Known since Ceph 19.2.6, 20.2.4 and 21.2, and Linux 7.0.
    Aes256k,
    /// Another type, by its number.
    Other(u16),
    /// No release of Ceph reads this file.
    Malformed {
        /// The first line that is wrong, from 1.
        line: usize,
        /// What is wrong with it. Never anything of the line itself.
        why: String,
    },
    /// The file has no key of the user.
    NoKey,
    /// There is no file.
    NoFile,
}

/// What a keyring's text says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Keyring {
    /// The user's key.
    pub key: Key,
    /// The first line with a key, the user's or another's, of a type newer than `aes`: a library that does not know the type
    /// reads nothing of the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newer: Option<usize>,
    /// Where the file has no key of the user: of whom it has one, `client.admin`. The first few.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<String>,
}

/// How many users are named that a keyring has a key of.
const FEW: usize = 8;

/// The mark that some editors put before a text. Over it 16.2.15 ends the whole process (an assertion of its parser).
pub const BYTE_ORDER_MARK: [u8; 3] = [0xef, 0xbb, 0xbf];

/// Kinds of users (`EntityName::from_str`).
const ENTITIES: [&str; 6] = ["auth", "mon", "osd", "mds", "mgr", "client"];

/// Reads what a keyring says of `client.<user>`.
pub fn read(text: &[u8], user: &str) -> Keyring {
    if text.starts_with(&BYTE_ORDER_MARK) {
        return malformed(1, "a byte order mark stands before its text");
    }
    let user = format!("client.{user}");
    let mut keyring = Keyring { key: Key::NoKey, newer: None, others: Vec::new() };
    for line in lines(&String::from_utf8_lossy(text)) {
        // What stands in no section is in `global`, which belongs to no user.
        let of_a_user = !["", "global"].contains(&line.section.as_str());
        let wrong = match &line.kind {
            Kind::Section if of_a_user && !is_entity(&line.section) => {
                Some("its section is no user of Ceph's")
            }
            Kind::Junk => Some("it is neither a section nor `name = value`"),
            Kind::Option { name, value } if of_a_user && name == "key" => match key_type(value) {
                Ok(number) => {
                    let key = Key::of_type(number);
                    if !matches!(key, Key::Aes | Key::Other(0)) {
                        keyring.newer.get_or_insert(line.number);
                    }
                    if line.section == user {
                        keyring.key = key;
                    } else if keyring.others.len() < FEW && !keyring.others.contains(&line.section) {
                        keyring.others.push(line.section);
                    }
                    None
                }
                Err(why) => Some(why),
            },
            Kind::Option { name, .. } if of_a_user => misplaced(name),
            Kind::Section | Kind::Option { .. } | Kind::Nothing => None,
        };
        if let Some(why) = wrong {
            return malformed(line.number, why);
        }
    }
    if keyring.key != Key::NoKey {
        keyring.others.clear();
    }
    keyring
}

fn malformed(line: usize, why: &str) -> Keyring {
    Keyring { key: Key::Malformed { line, why: why.to_owned() }, newer: None, others: Vec::new() }
}

fn is_entity(section: &str) -> bool {
    section.split_once('.').is_some_and(|(kind, _)| ENTITIES.contains(&kind))
}

/// What is wrong with a setting that is no key.
fn misplaced(name: &str) -> Option<&'static str> {
    match name {
        "auid" => None,
        "pending_key" => Some("`pending key` is for `ceph auth`, and no client reads a keyring that has it"),
        name if name.strip_prefix("caps_").is_some_and(|service| !service.is_empty()) => None,
        _ => Some("it sets neither `key` nor `caps SERVICE`"),
    }
}

/// The number of a key's type. Its length is reckoned, its secret is not decoded.
fn key_type(value: &str) -> Result<u16, &'static str> {
    const HEADER: usize = 12;
    let coded = value.split('=').next().unwrap_or_default();
    if coded.is_empty() {
        return Err("its key is empty");
    }
    let sixbits: Option<Vec<u32>> = coded.bytes().map(sixbit).collect();
    let sixbits = sixbits.ok_or("its key is not base64")?;
    let length = sixbits.len() * 3 / 4;
    let header: Vec<u8> = sixbits.chunks_exact(4).take(HEADER / 3).flat_map(decoded).collect();
    let &[low, high, .., length_low, length_high] = header.as_slice() else { return Err(CUT_OFF) };
    let (number, secret) = (u16::from_le_bytes([low, high]), u16::from_le_bytes([length_low, length_high]));
    let least = match Key::of_type(number) {
        Key::Aes => 16,
        Key::Aes256k => 32,
        _ => 0,
    };
    if header.len() < HEADER || secret < least || length < HEADER + usize::from(secret) {
        return Err(CUT_OFF);
    }
    Ok(number)
}

const CUT_OFF: &str = "its key is cut off";

fn sixbit(character: u8) -> Option<u32> {
    let value = match character {
        b'A'..=b'Z' => character - b'A',
        b'a'..=b'z' => character - b'a' + 26,
        b'0'..=b'9' => character - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    };
    Some(value.into())
}

fn decoded(four: &[u32]) -> [u8; 3] {
    let [_, first, second, third] = four.iter().fold(0, |all, sixbit| all << 6 | sixbit).to_be_bytes();
    [first, second, third]
}

impl Key {
    fn of_type(number: u16) -> Self {
        match number {
            1 => Self::Aes,
            2 => Self::Aes256k,
            number => Self::Other(number),
        }
    }
}

impl Keyring {
    /// What in the keyring kept a client from reading it, where that is why it did not connect. It is sure: the client ended as it ends over a
    /// keyring, before any monitor is asked, and there is something in this one that it may not be able to read.
    pub fn why_unread(&self, failure: &Failure) -> Option<String> {
        // 5 (EIO) from 16 to 18, 2 (ENOENT) in 20.
        let not_read = [Some(EIO), Some(ENOENT)].contains(&failure.errno);
        match (&self.key, self.newer) {
            _ if failure.origin != Origin::Outside || !not_read => None,
            (Key::Malformed { line, why }, _) => Some(format!("line {line}: {why}")),
            (_, Some(line)) => Some(format!(
                "line {line}: a key of a type newer than aes, which Ceph's libraries on this node do not know (aes256k is known since 19.2.6, \
                 20.2.4 and 21.2)"
            )),
            _ => None,
        }
    }
}

impl fmt::Display for Key {
    /// As in `client.admin has …`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Aes => f.write_str("a key of type aes"),
            Self::Aes256k => f.write_str("a key of type aes256k"),
            Self::Other(number) => write!(f, "a key of type {number}, which rbd-preflight does not know"),
            Self::Malformed { line, why } => write!(f, "a keyring that no Ceph reads: line {line}: {why}"),
            Self::NoKey => f.write_str("no key in its keyring"),
            Self::NoFile => f.write_str("no keyring"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A key: its type, the length that it names, and as many bytes of a secret.
    fn coded(number: u16, named: u16, secret: usize) -> String {
        let header = [number.to_le_bytes().as_slice(), &[0x5a; 8], &named.to_le_bytes()].concat();
        let bytes = [header, vec![0xa5; secret]].concat();
        let alphabet: Vec<char> = ('A'..='Z').chain('a'..='z').chain('0'..='9').chain(['+', '/']).collect();
        let mut text = String::new();
        for chunk in bytes.chunks(3) {
            let whole = [0, chunk[0], *chunk.get(1).unwrap_or(&0), *chunk.get(2).unwrap_or(&0)];
            let whole = u32::from_be_bytes(whole);
            let sixbits = (0..4).map(|at| alphabet[(whole >> (18 - 6 * at)) as usize & 63]);
            text.extend(sixbits.take(chunk.len() + 1));
            text.push_str(&"=".repeat(3 - chunk.len()));
        }
        text
    }

    fn aes() -> String {
        coded(1, 16, 16)
    }

    fn aes256k() -> String {
        coded(2, 32, 32)
    }

    fn key(text: &str) -> Key {
        read(text.as_bytes(), "admin").key
    }

    #[test]
    fn keys_are_what_ceph_makes() {
        let (aes, aes256k) = (aes(), aes256k());
        assert!(aes.starts_with("AQ") && aes.len() == 40 && aes.ends_with("=="), "{aes}");
        assert!(aes256k.starts_with("Ag") && aes256k.len() == 60 && aes256k.ends_with('='), "{aes256k}");
    }

    /// Each as the real 16.2.15 and 20.2.4 took it, by `rbd ls`.
    #[test]
    fn the_type_is_read_from_whatever_ceph_reads() {
        let (aes, aes256k) = (aes(), aes256k());
        for (text, expected) in [
            (format!("[client.admin]\n\tkey = {aes}\n"), Key::Aes),
            (format!("[client.admin]\n\tkey = {aes256k}\n"), Key::Aes256k),
            (format!("[client.admin]\n\tcaps mon = \"allow *\"\n\tkey = {aes}\n"), Key::Aes),
            (format!("[client.admin]\r\n\tkey = {aes}\r\n\tauid = 0\r\n"), Key::Aes),
            (format!("# c\n; d\n\n[client.admin]   # e\nkey=\"{aes}\" # f\n"), Key::Aes),
            (format!("[client.admin]\n\tkey = {aes} xx\n"), Key::Aes),
            (format!("[client.admin]\n\tkey = {aes}==\n"), Key::Aes),
            (format!("[client.admin]\n\tkey = {}\\\n{}\n", &aes[..20], &aes[20..]), Key::Aes),
            (format!("[client.admin]\n\tkey = {aes256k}\n\tkey = {aes}\n"), Key::Aes),
            (format!("[client.a]\nkey = {aes256k}\n[client.admin]\nkey = {aes}\n"), Key::Aes),
            (format!("[global]\nfoo = bar\n[client.admin]\nkey = {aes}\n[mon.]\nkey = {aes}\n"), Key::Aes),
            (format!("[client.admin]\n\tkey = {}\n", coded(0, 16, 16)), Key::Other(0)),
            (format!("[client.admin]\n\tkey = {}\n", coded(3, 48, 48)), Key::Other(3)),
            (format!("[client.other]\n\tkey = {aes}\n"), Key::NoKey),
            ("[client.admin]\n\tcaps mon = \"allow *\"\n".to_owned(), Key::NoKey),
            (format!("{aes}\n"), Key::NoKey),
            (String::new(), Key::NoKey),
        ] {
            assert_eq!(key(&text), expected, "{text}");
        }
    }

    /// Each refused by the real 16.2.15 (`rbd ls`: 5) and 20.2.4 (2), the one with a byte order mark by 16.2.15 with an abort.
    #[test]
    fn what_no_ceph_reads_is_named_by_its_line_and_nothing_of_it() {
        let (aes, aes256k) = (aes(), aes256k());
        let good = format!("[client.admin]\n\tkey = {aes}\n");
        for (text, line, why) in [
            (format!("{good}\tpending key = {aes256k}\n"), 3, "pending key"),
            (format!("[client.admin]\n\tkey = {}!{}\n", &aes[..20], &aes[21..]), 2, "not base64"),
            (format!("[client.admin]\n\tkey = {}\n", &aes[..30]), 2, "cut off"),
            (format!("[client.admin]\n\tkey = {}\n", coded(1, 16, 12)), 2, "cut off"),
            (format!("[client.admin]\n\tkey = {}\n", coded(2, 16, 16)), 2, "cut off"),
            ("[client.admin]\n\tkey = AQ==\n".to_owned(), 2, "cut off"),
            ("[client.admin]\n\tkey =\n".to_owned(), 2, "empty"),
            (format!("[client.admin]\n\tkey {aes}\n"), 2, "neither `key`"),
            (format!("[client.admin]\n\tKey = {aes}\n"), 2, "neither `key`"),
            (format!("{good}\tcaps = \"allow *\"\n"), 3, "neither `key`"),
            (format!("{good}\n\tfoo = bar\n"), 4, "neither `key`"),
            (format!("{good}{aes256k}x\njunk\n"), 3, "neither `key`"),
            (format!("{good}junk line\n"), 3, "neither a section"),
            (format!("[admin]\n\tkey = {aes}\n{good}"), 1, "no user"),
            (format!("\u{feff}{good}"), 1, "byte order mark"),
        ] {
            let Key::Malformed { line: at, why: told } = key(&text) else { panic!("it was read: {text}") };
            assert!(at == line && told.contains(why), "{at}: {told}: {text}");
            assert!(!told.contains(&aes[..20]) && !told.contains(&aes256k[..20]), "{told}");
        }
    }

    #[test]
    fn it_is_why_a_client_did_not_connect_only_where_that_is_sure() {
        let pending =
            read(format!("[client.a]\nkey = {}\npending key = {}\n", aes(), aes256k()).as_bytes(), "a");
        let newer = read(format!("[client.a]\nkey = {}\n", aes256k()).as_bytes(), "a");
        let old = read(format!("[client.a]\nkey = {}\n", aes()).as_bytes(), "a");
        let why = |keyring: &Keyring, errno| {
            keyring.why_unread(&Failure::errno("connect", errno)).unwrap_or_default()
        };
        assert!(why(&pending, 5).starts_with("line 3: `pending key`") && !why(&pending, 2).is_empty());
        assert!(why(&newer, 5).starts_with("line 2: a key of a type newer"));
        assert_eq!([why(&old, 5), why(&newer, 13), why(&newer, 110)], ["", "", ""]);
        let own = Failure::errno("create a client", 5).on(Origin::Own);
        assert_eq!(pending.why_unread(&own), None);
    }

    #[test]
    fn a_key_of_anybodys_that_an_older_library_cannot_read_is_seen() {
        let text = format!("[client.a]\nkey = {}\n[client.b]\n\nkey = {}\n", aes(), aes256k());
        assert_eq!(read(text.as_bytes(), "a"), Keyring { key: Key::Aes, newer: Some(5), others: vec![] });
        assert_eq!(read(text.as_bytes(), "b"), Keyring { key: Key::Aes256k, newer: Some(5), others: vec![] });
    }

    #[test]
    fn a_keyring_without_the_users_key_says_whose_keys_it_has() {
        let text = format!("[client.a]\nkey = {0}\n[client.b]\nkey = {0}\n[client.a]\nkey = {0}\n", aes());
        assert_eq!(read(text.as_bytes(), "c").others, ["client.a", "client.b"]);
        assert!(read(text.as_bytes(), "a").others.is_empty());
    }
}
