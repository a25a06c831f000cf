//! Words as a shell reads them.

use std::ffi::OsStr;
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;

/// A word written so that bash reads exactly it back, and that no terminal acts on: bare where nothing is special,
/// otherwise in single quotes, and in `$'…'` where it holds control or invisible characters or bytes that are no text.
pub fn quoted(word: impl AsRef<OsStr>) -> String {
    let bytes = word.as_ref().as_bytes();
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.is_empty() && text.bytes().all(is_plain) => text.to_owned(),
        Ok(text) if text.chars().all(is_visible) => format!("'{}'", text.replace('\'', r"'\''")),
        _ => escaped(bytes),
    }
}

/// A character that means only itself to a shell.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_@%+=:,./-".contains(&byte)
}

/// A character that shows as itself: beyond ASCII only letters and digits, since marks and format characters can
/// reorder or hide what stands beside them.
fn is_visible(c: char) -> bool {
    c == ' ' || c.is_ascii_graphic() || (!c.is_ascii() && c.is_alphanumeric())
}

fn escaped(bytes: &[u8]) -> String {
    let mut word = String::from("$'");
    for &byte in bytes {
        match byte {
            b'\n' => word.push_str(r"\n"),
            b'\t' => word.push_str(r"\t"),
            b'\'' => word.push_str(r"\'"),
            b'\\' => word.push_str(r"\\"),
            b' '..=b'~' => word.push(char::from(byte)),
            // Three octal digits: a digit that follows is never taken for one of them.
            _ => drop(write!(word, "\\{byte:03o}")),
        }
    }
    word.push('\'');
    word
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;

    #[test]
    fn words_are_quoted_only_as_far_as_needed() {
        let table: [(&[u8], &str); 9] = [
            (b"rbd/vm-516-disk-0@snap", "rbd/vm-516-disk-0@snap"),
            (b"", "''"),
            (b"a b", "'a b'"),
            (b"it's", r"'it'\''s'"),
            (b"$(rm)", "'$(rm)'"),
            (b"~", "'~'"),
            (b"\x1b[31m", r"$'\033[31m'"),
            ("Größe".as_bytes(), "'Größe'"),
            ("a\u{202e}b".as_bytes(), r"$'a\342\200\256b'"),
        ];
        for (word, line) in table {
            assert_eq!(quoted(OsStr::from_bytes(word)), line);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

        #[test]
        fn bash_reads_back_what_was_quoted(words in prop::collection::vec(prop::collection::vec(1u8.., 0..12), 1..12)) {
            let line: Vec<_> = words.iter().map(|word| quoted(OsString::from_vec(word.clone()))).collect();
            let line = line.join(" ");
            prop_assert!(!line.chars().any(char::is_control));
            let script = format!("printf '%s\\0' {line}");
            let output = std::process::Command::new("bash").args(["-c", &script]).env("LC_ALL", "C").output().unwrap();
            let read: Vec<_> = output.stdout.split(|byte| *byte == 0).collect();
            prop_assert_eq!(&read[..read.len() - 1], &words[..]);
        }
    }
}
