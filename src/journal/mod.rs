//! What was changed, when and why: `/var/lib/rbd-preflight/journal.jsonl`, one JSON record a line.
//!
//! Every change is recorded durably before it is made (an intent, with what stood before) and again after (an
//! outcome). So whatever interrupts us, the journal says where it stopped. If an intent cannot be recorded, the
//! change must not be made.

pub mod runs;

use crate::sys::dates::date;
use crate::sys::private_dir::PrivateDir;
use crate::sys::root::Root;
use anyhow::{Context, Result, bail};
use nix::fcntl::{FlockArg, OFlag};
use nix::unistd::AccessFlags;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Where the journal is.
pub const DIRECTORY: &str = "/var/lib/rbd-preflight";
/// The file that is written to; older ones are `journal.jsonl.1`, `.2` and so on.
pub const FILE: &str = "journal.jsonl";
/// The version of the records.
pub const SCHEMA: u32 = 1;

/// A file that would grow beyond this is moved aside first.
const LARGEST_FILE: u64 = 4 << 20;
/// As many files are kept besides the one that is written to.
const KEPT: u32 = 4;
/// How long another process may hold the journal: it writes one line.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// Names one run of the tool: `20261123T050000.123Z-4242-0` (time, process, counter). Sorts by time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(pub String);

/// Before or after the change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// It is about to be made.
    Intent,
    /// It was made, or failed.
    Outcome,
}

/// A change that is about to be made.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Intent {
    /// What is changed, as JSON.
    pub action: Value,
    /// The guest it is for.
    pub guest: Option<u32>,
    /// What tells the guest from another one of its number, where there is something.
    pub guest_uuid: Option<String>,
    /// The image, `pool/namespace/image`.
    pub image: Option<String>,
    /// What stood before, as JSON: enough to put it back.
    pub before: Value,
    /// The command, as an administrator can paste it.
    pub command: Option<String>,
    /// The run that it undoes.
    pub undoes: Option<RunId>,
}

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The version of the records' form, [`SCHEMA`].
    pub schema: u32,
    /// The run that made the change.
    pub run: RunId,
    /// Which of the run's changes: intent and outcome of one change have the same.
    pub step: u32,
    /// When, in seconds since 1970.
    pub at: u64,
    /// Whether the record was written before the change or after it.
    pub phase: Phase,
    /// The change as JSON: an [`crate::rbd::action::Action`], or what a command of ours changes.
    pub action: Value,
    /// The guest it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<u32>,
    /// What tells the guest from another one of its number ([`crate::pve::guest::Guest::uuid`]); not there for a container,
    /// and in journals of versions before it was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_uuid: Option<String>,
    /// The image, `pool/image` or `pool/namespace/image`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// What stood before: features, flags and lock of an image.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub before: Value,
    /// The command that is run, as it could be pasted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// The run that this change undoes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undoes: Option<RunId>,
    /// What came of it; only in outcomes.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub result: Value,
    /// How long it took; only in outcomes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
}

/// A recorded intent; to be given back with the outcome.
#[derive(Debug)]
#[must_use = "an intent without an outcome reads as an interrupted change"]
pub struct Ticket(Record);

/// The journal of this node.
#[derive(Debug, Clone)]
pub struct Journal {
    directory: PathBuf,
    largest_file: u64,
}

impl RunId {
    /// The id of a run that begins at `now` (since 1970) in the process `pid`. Never the same twice.
    pub fn new(now: Duration, pid: u32) -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let counter = COUNTER.fetch_add(1, Ordering::Relaxed);
        let seconds = now.as_secs();
        let (year, month, day) = date(seconds / 86_400);
        let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
        let millis = now.subsec_millis();
        Self(format!(
            "{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}.{millis:03}Z-{pid}-{counter}"
        ))
    }
}

impl RunId {
    /// The process that made the run, as its name tells.
    pub fn pid(&self) -> Option<u32> {
        self.0.split('-').nth(1)?.parse().ok()
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Journal {
    /// The journal under this root. Nothing is created before the first record.
    pub fn open(root: &Root) -> Self {
        Self { directory: root.path(DIRECTORY), largest_file: LARGEST_FILE }
    }

    /// Records what is about to be changed. When this returns it is on the disk; an error means that the change
    /// must not be made.
    pub fn intent(&self, run: &RunId, at: u64, intent: Intent) -> Result<Ticket> {
        static STEP: AtomicU32 = AtomicU32::new(0);
        let record = Record {
            schema: SCHEMA,
            run: run.clone(),
            step: STEP.fetch_add(1, Ordering::Relaxed),
            at,
            phase: Phase::Intent,
            action: intent.action,
            guest: intent.guest,
            guest_uuid: intent.guest_uuid,
            image: intent.image,
            before: intent.before,
            command: intent.command,
            undoes: intent.undoes,
            result: Value::Null,
            duration_ms: None,
        };
        self.append(&record).context("the journal cannot be written")?;
        Ok(Ticket(record))
    }

    /// Records what came of a change.
    pub fn outcome(&self, ticket: Ticket, at: u64, result: Value, duration: Duration) -> Result<()> {
        let duration_ms = u64::try_from(duration.as_millis()).ok();
        let record = Record { at, phase: Phase::Outcome, result, duration_ms, ..ticket.0 };
        self.append(&record).context("the journal cannot be written")
    }

    /// Every record, oldest first, and a note for each invalid line: one torn by a crash, or a newer version's.
    pub fn read_all(&self) -> Result<(Vec<Record>, Vec<String>)> {
        let (mut records, mut notes) = (Vec::new(), Vec::new());
        let Some(directory) = PrivateDir::open(&self.directory)? else { return Ok((records, notes)) };
        // Held so that no file is moved aside between two readings.
        let _lock = directory.lock(FlockArg::LockSharedNonblock, LOCK_TIMEOUT)?;
        for name in (1..=KEPT).rev().map(rotated).chain([FILE.to_owned()]) {
            let Some(mut file) = directory.try_file(&name, OFlag::O_RDONLY)? else { continue };
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).with_context(|| format!("cannot read {name}"))?;
            parse(&name, &bytes, &mut records, &mut notes);
        }
        Ok((records, notes))
    }

    /// Whether a record could be written, as far as that can be told without writing.
    pub fn writable(&self) -> Result<()> {
        if let Some(directory) = PrivateDir::open(&self.directory)? {
            directory.try_file(FILE, OFlag::O_RDWR | OFlag::O_APPEND)?;
        }
        let there = self.directory.ancestors().find(|path| path.exists()).unwrap_or(&self.directory);
        nix::unistd::access(there, AccessFlags::W_OK | AccessFlags::X_OK)
            .with_context(|| format!("{} cannot be written to", there.display()))
    }

    fn append(&self, record: &Record) -> Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        let directory = PrivateDir::create(&self.directory)?;
        let _lock = directory.lock(FlockArg::LockExclusiveNonblock, LOCK_TIMEOUT)?;
        let mut file = open(&directory)?;
        let mut size = file.metadata()?.len();
        if size > 0 && size + line.len() as u64 > self.largest_file {
            rotate(&directory)?;
            file = open(&directory)?;
            size = 0;
        }
        if torn(&file, size)? {
            line.insert(0, b'\n');
        }
        write_once(&mut file, &line)?;
        file.sync_data()?;
        if size == 0 {
            directory.sync()?;
        }
        Ok(())
    }
}

/// Of the records, the intents that no outcome followed: changes that were interrupted.
pub fn interrupted(records: &[Record]) -> Vec<&Record> {
    let done: HashSet<_> =
        records.iter().filter(|r| r.phase == Phase::Outcome).map(|r| (&r.run, r.step)).collect();
    records.iter().filter(|r| r.phase == Phase::Intent && !done.contains(&(&r.run, r.step))).collect()
}

fn open(directory: &PrivateDir) -> Result<File> {
    directory.file(FILE, OFlag::O_CREAT | OFlag::O_RDWR | OFlag::O_APPEND)
}

/// The name of the file that was moved aside `n` times.
fn rotated(n: u32) -> String {
    format!("{FILE}.{n}")
}

/// Moves every file one place on; the last one goes.
fn rotate(directory: &PrivateDir) -> Result<()> {
    for n in (1..KEPT).rev() {
        directory.rename(&rotated(n), &rotated(n + 1))?;
    }
    directory.rename(FILE, &rotated(1))
}

/// The file does not end with a line end: a crash cut its last record off.
fn torn(file: &File, size: u64) -> Result<bool> {
    if size == 0 {
        return Ok(false);
    }
    let mut last = [0];
    file.read_exact_at(&mut last, size - 1)?;
    Ok(last != *b"\n")
}

/// One write for one record: with a second one a crash between them could mix two processes' lines.
fn write_once(file: &mut File, line: &[u8]) -> Result<()> {
    match file.write(line)? {
        n if n == line.len() => Ok(()),
        n => bail!("only {n} of {} bytes were written: is the disk full?", line.len()),
    }
}

fn parse(name: &str, bytes: &[u8], records: &mut Vec<Record>, notes: &mut Vec<String>) {
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        if line.is_empty() {
            continue;
        }
        match serde_json::from_slice::<Record>(line) {
            Ok(record) if record.schema == SCHEMA => records.push(record),
            Ok(record) => {
                notes.push(format!("{name}: line {} has the unknown schema {}", index + 1, record.schema));
            }
            Err(e) => notes.push(format!("{name}: line {} is not a whole record: {e}", index + 1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::os::unix::fs::MetadataExt;

    fn journal(directory: &tempfile::TempDir) -> Journal {
        Journal::open(&Root::new(directory.path()))
    }

    fn run() -> RunId {
        RunId::new(Duration::from_millis(1_795_410_000_123), 4242)
    }

    fn intent() -> Intent {
        Intent {
            action: json!({"feature_enable": ["exclusive-lock"]}),
            guest: Some(516),
            guest_uuid: Some("4ed1cbc9-0000-4000-8000-000000000001".into()),
            image: Some("rbd/vm-516-disk-0".into()),
            before: json!({"features": ["layering"]}),
            command: Some("rbd feature enable rbd/vm-516-disk-0 exclusive-lock".into()),
            undoes: None,
        }
    }

    #[test]
    fn run_ids_are_dates_sort_by_time_and_are_unique() {
        let id = run().0;
        assert!(id.starts_with("20261123T050000.123Z-4242-"), "{id}");
        let at = |seconds| RunId::new(Duration::from_secs(seconds), 1);
        assert!(at(951_782_400).0.starts_with("20000229T000000.000Z-"));
        assert!(at(4_107_542_399).0.starts_with("21000228T235959.000Z-"));
        assert!(at(4_107_542_400).0.starts_with("21000301T000000.000Z-"));
        assert!(at(0).0.starts_with("19700101T"));
        assert!(at(9) < at(10) && at(99_999) < at(100_000));
        assert_ne!(at(9), at(9));
    }

    #[test]
    fn nothing_is_created_by_reading() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(journal(&dir).read_all().unwrap(), (vec![], vec![]));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_intent_and_its_outcome_are_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, run) = (journal(&dir), run());
        let ticket = journal.intent(&run, 7, intent()).unwrap();
        let (records, _) = journal.read_all().unwrap();
        assert_eq!(interrupted(&records), [&records[0]]);
        journal.outcome(ticket, 9, json!({"exit": 0}), Duration::from_millis(1500)).unwrap();
        let (records, notes) = journal.read_all().unwrap();
        assert!(notes.is_empty() && interrupted(&records).is_empty());
        assert_eq!((records[0].at, records[0].phase, records[0].guest), (7, Phase::Intent, Some(516)));
        assert_eq!(
            (records[1].at, records[1].phase, records[1].duration_ms),
            (9, Phase::Outcome, Some(1500))
        );
        assert_eq!((&records[1].result, &records[1].before), (&json!({"exit": 0}), &intent().before));
        assert_eq!((records[1].step, &records[1].run), (records[0].step, &run));
    }

    #[test]
    fn only_we_may_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let journal = journal(&dir);
        let _ticket = journal.intent(&run(), 7, intent()).unwrap();
        let mode = |path: PathBuf| std::fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode(journal.directory.clone()), 0o700);
        assert_eq!(mode(journal.directory.join(FILE)), 0o600);
    }

    #[test]
    fn a_link_in_its_place_is_an_error_and_nothing_is_written_through_it() {
        let dir = tempfile::tempdir().unwrap();
        let journal = journal(&dir);
        std::fs::create_dir_all(&journal.directory).unwrap();
        let victim = dir.path().join("victim");
        std::fs::write(&victim, "").unwrap();
        std::os::unix::fs::symlink(&victim, journal.directory.join(FILE)).unwrap();
        let error = journal.intent(&run(), 7, intent()).unwrap_err();
        assert!(error.to_string().contains("the journal cannot be written"));
        assert_eq!(std::fs::read(&victim).unwrap(), b"");
    }

    #[test]
    fn a_torn_line_is_read_past_and_the_next_record_starts_afresh() {
        let dir = tempfile::tempdir().unwrap();
        let journal = journal(&dir);
        let _first = journal.intent(&run(), 1, intent()).unwrap();
        let file = journal.directory.join(FILE);
        let whole = std::fs::read(&file).unwrap();
        for cut in 1..whole.len() {
            let torn = [whole.as_slice(), &whole[..cut]].concat();
            std::fs::write(&file, torn).unwrap();
            let _second = journal.intent(&run(), 2, intent()).unwrap();
            let (records, notes) = journal.read_all().unwrap();
            let last = records.last().map(|r| r.at);
            // Cut off just before its line end, the record is whole.
            let expected = if cut == whole.len() - 1 { (3, 0) } else { (2, 1) };
            assert_eq!((records.len(), notes.len(), last), (expected.0, expected.1, Some(2)), "cut at {cut}");
        }
        assert_eq!(journal.read_all().unwrap().1.len(), 0);
    }

    #[test]
    fn a_newer_schema_is_noted_and_not_taken_for_ours() {
        let (mut records, mut notes) = (vec![], vec![]);
        let line = br#"{"schema":2,"run":"r","step":0,"at":1,"phase":"intent","action":"x"}"#;
        parse("f", line, &mut records, &mut notes);
        assert!(records.is_empty());
        assert_eq!(notes, ["f: line 1 has the unknown schema 2"]);
    }

    #[test]
    fn old_files_are_moved_aside_and_the_oldest_go() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal { largest_file: 900, ..journal(&dir) };
        for at in 0..40 {
            let _ticket = journal.intent(&run(), at, intent()).unwrap();
        }
        let names = std::fs::read_dir(&journal.directory).unwrap().count();
        assert_eq!(names, KEPT as usize + 1);
        let (records, notes) = journal.read_all().unwrap();
        let times: Vec<_> = records.iter().map(|r| r.at).collect();
        assert!(notes.is_empty() && times.len() < 40 && times.len() > 5);
        assert_eq!(times, (40 - times.len() as u64..40).collect::<Vec<_>>());
    }

    #[test]
    fn a_writer_waits_for_another_process() {
        let dir = tempfile::tempdir().unwrap();
        let journal = journal(&dir);
        let directory = PrivateDir::create(&journal.directory).unwrap();
        let held = directory.lock(FlockArg::LockExclusiveNonblock, Duration::ZERO).unwrap();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| journal.intent(&run(), 1, intent()).is_ok());
            std::thread::sleep(Duration::from_millis(100));
            assert!(!journal.directory.join(FILE).exists());
            drop(held);
            assert!(writer.join().unwrap());
        });
    }

    #[test]
    fn many_writers_do_not_mix_their_lines() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal { largest_file: 8_000, ..journal(&dir) };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for at in 0..20 {
                        let _ticket = journal.intent(&run(), at, intent()).unwrap();
                    }
                });
            }
        });
        let (records, notes) = journal.read_all().unwrap();
        assert_eq!((records.len(), notes), (80, vec![]));
    }
}
