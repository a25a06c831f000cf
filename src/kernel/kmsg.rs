//! `/dev/kmsg`: what the kernel's rbd driver and Ceph client said. Linux `Documentation/ABI/testing/dev-kmsg`.

use crate::sys::process::masked;
use crate::sys::root::Root;
use anyhow::{Context, Result};
use nix::libc::{EAGAIN, EPIPE};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

/// The kernel's largest record: one read has to take it whole, or is EINVAL (`PRINTKRB_RECORD_MAX` and its escapes).
const LARGEST_RECORD: usize = 16 << 10;
/// A reading ends after this many records, however fast the kernel writes more.
const MOST_RECORDS: usize = 200_000;

/// One line of the kernel's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LogLine {
    /// Its number since the node's boot.
    pub sequence: u64,
    /// When it was written, since the node's boot.
    pub since_boot: Duration,
    /// The line, `rbd: rbd0: write result -108`.
    pub text: String,
}

/// A point in the log: what is written after it can be read later.
#[derive(Debug)]
pub struct Mark {
    file: File,
}

impl LogLine {
    /// It is krbd's or its Ceph client's.
    pub fn is_ours(&self) -> bool {
        self.text.starts_with("rbd: ") || self.text.starts_with("libceph: ")
    }
}

/// Remembers where the log ends now. Fails without the right to read it (root, or `dmesg_restrict` 0).
pub fn mark(root: &Root) -> Result<Mark> {
    let mut mark = open(root)?;
    mark.file.seek(SeekFrom::End(0)).context("cannot go to the end of /dev/kmsg")?;
    Ok(mark)
}

/// All that the kernel still remembers of rbd and libceph, oldest first.
pub fn everything(root: &Root) -> Result<Vec<LogLine>> {
    open(root)?.since()
}

fn open(root: &Root) -> Result<Mark> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_CLOEXEC)
        .open(root.path("/dev/kmsg"))
        .context("cannot open /dev/kmsg")?;
    Ok(Mark { file })
}

impl Mark {
    /// The lines of rbd and libceph that were written since the mark or the last call, oldest first.
    pub fn since(&mut self) -> Result<Vec<LogLine>> {
        let mut buffer = vec![0; LARGEST_RECORD];
        let mut text = Vec::new();
        for _ in 0..MOST_RECORDS {
            match self.file.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => text.extend_from_slice(&buffer[..length]),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.raw_os_error() == Some(EAGAIN) => break,
                // The kernel wrote over records not yet read; the next read goes on with the oldest left.
                Err(e) if e.raw_os_error() == Some(EPIPE) => {}
                Err(e) => return Err(e).context("cannot read /dev/kmsg"),
            }
        }
        Ok(parse(&text).into_iter().filter(LogLine::is_ours).collect())
    }
}

/// The kernel's own records in `bytes`, as reads of `/dev/kmsg` give them. Programs may write there too, but cannot
/// do so in the kernel's name: their records have another facility and are left out.
pub fn parse(bytes: &[u8]) -> Vec<LogLine> {
    bytes.split(|byte| *byte == b'\n').filter_map(record).collect()
}

/// With its debugging switched on the kernel writes keys too, which are masked.
///
/// `6,1234,98765432,-;text`: priority and facility, sequence, microseconds, flags and perhaps more; then the text.
/// A line that begins with a space continues a record (` DEVICE=b251:0`) and has no number in front, so it is none.
fn record(line: &[u8]) -> Option<LogLine> {
    let line = String::from_utf8_lossy(line);
    let (head, text) = line.split_once(';')?;
    let mut fields = head.split(',');
    let priority: u32 = fields.next()?.parse().ok()?;
    let sequence = fields.next()?.parse().ok()?;
    let since_boot = Duration::from_micros(fields.next()?.parse().ok()?);
    const KERNEL: u32 = 0;
    (priority >> 3 == KERNEL).then(|| LogLine { sequence, since_boot, text: masked(&unescaped(text)) })
}

/// The text with its `\xNN` undone where that gives printable text; control characters stay escaped, so that no
/// line can act on a terminal.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("\\x") {
        bytes.extend_from_slice(&rest.as_bytes()[..at]);
        let code = rest.get(at + 2..at + 4).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match code.filter(|code| *code == b'\\' || *code >= 0x80) {
            Some(code) => bytes.push(code),
            None => bytes.extend_from_slice(rest.get(at..at + 4).unwrap_or("\\x").as_bytes()),
        }
        let length = if rest.get(at + 2..at + 4).is_some() { 4 } else { 2 };
        rest = &rest[at + length..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8_lossy(&bytes)
        .chars()
        .map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn texts(bytes: &[u8]) -> Vec<String> {
        parse(bytes).into_iter().map(|line| line.text).collect()
    }

    #[test]
    fn a_record_is_taken_apart() {
        let bytes = b"4,1234,98765432,-;rbd: rbd0: write result -108\n SUBSYSTEM=block\n DEVICE=b251:0\n";
        let expected = LogLine {
            sequence: 1234,
            since_boot: Duration::from_micros(98_765_432),
            text: "rbd: rbd0: write result -108".into(),
        };
        assert_eq!(parse(bytes), [expected]);
    }

    #[test]
    fn further_fields_and_a_semicolon_in_the_text_do_no_harm() {
        assert_eq!(texts(b"6,1,2,-,caller=T12;rbd: a;b\n"), ["rbd: a;b"]);
        for torn in ["", "6,1,2,-", "6,x,2,-;a", "6;a", "six,1,2,-;a", " ;6,1,2;a"] {
            assert!(texts(torn.as_bytes()).is_empty(), "{torn:?}");
        }
    }

    #[test]
    fn only_the_kernels_own_records_count() {
        // Facility 1 (8 and up) is what a program writes to /dev/kmsg.
        assert_eq!(texts(b"12,1,2,-;rbd: forged\n4,2,3,-;rbd: real\n"), ["rbd: real"]);
    }

    #[test]
    fn escapes_are_undone_but_never_into_control_characters() {
        let table = [
            (r"a\x5cb", r"a\b"),
            (r"Gr\xc3\xb6\xc3\x9fe", "Größe"),
            (r"a\x1b[2J", r"a\x1b[2J"),
            (r"a\x0ab", r"a\x0ab"),
            (r"end\x4", r"end\x4"),
            (r"end\x", r"end\x"),
            (r"\xzz", r"\xzz"),
            (r"\x€", r"\x€"),
            (r"\xc2\x9b", "\u{fffd}"),
        ];
        for (escaped, expected) in table {
            assert_eq!(unescaped(escaped), expected);
        }
    }

    #[test]
    fn only_what_came_after_the_mark_and_is_ours_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        assert!(mark(&root).is_err());
        std::fs::create_dir(root.path("/dev")).unwrap();
        std::fs::write(root.path("/dev/kmsg"), "4,1,1,-;rbd: before\n").unwrap();
        let mut mark = mark(&root).unwrap();
        assert_eq!(mark.since().unwrap(), []);
        let mut log = OpenOptions::new().append(true).open(root.path("/dev/kmsg")).unwrap();
        log.write_all(b"4,2,2,-;rbd: after\n6,3,3,-;usb 1-1: new\n6,4,4,-;libceph: mon0 session lost\n")
            .unwrap();
        let lines: Vec<_> = mark.since().unwrap().into_iter().map(|line| line.text).collect();
        assert_eq!(lines, ["rbd: after", "libceph: mon0 session lost"]);
        assert_eq!(mark.since().unwrap(), []);
        assert_eq!(everything(&root).unwrap().len(), 3);
    }
}
