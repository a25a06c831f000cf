//! The one place that runs another program: with a deadline, killed with its whole group, its output bounded.
//!
//! [`Runner`] is the seam: [`System`] really runs a [`Command`]; a test may put faults in front of it.

mod pass;
mod secret;
mod system;

pub use pass::{become_program, pass_through};
pub use secret::masked;
pub use system::{System, find};

use crate::sys::command::Command;
use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use std::fmt;
use std::time::Duration;

/// How much of the end of stderr is kept, in bytes.
pub const STDERR_TAIL: usize = 4 << 10;
/// How much of the beginning of stdout is kept, in bytes.
pub const STDOUT_LIMIT: usize = 16 << 20;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It ended itself; Ceph's tools end with the errno.
    Exit(i32),
    /// A signal that was not ours ended it.
    Signal(i32),
    /// Its deadline passed and it was killed with its group.
    TimedOut,
}

/// Where a piece of output came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// What the program writes to standard output.
    Stdout,
    /// What the program writes to standard error.
    Stderr,
}

/// What came of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The command as [`Command::display`] shows it.
    pub command: String,
    /// How it ended.
    pub status: Status,
    /// Its standard output, the first [`STDOUT_LIMIT`] bytes.
    pub stdout: Vec<u8>,
    /// There was more on standard output than is kept.
    pub stdout_truncated: bool,
    /// The last [`STDERR_TAIL`] bytes of its standard error, fit for a terminal: line ends, tabs and text; keys are masked.
    pub stderr_tail: String,
    /// How long it took.
    pub duration: Duration,
    /// It was killed and is still there: stuck in the kernel, as `rbd map` can be.
    pub survived_kill: bool,
}

/// A command that did not end with exit 0; made by [`Outcome::check`] to be found by `downcast_ref`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// The command as an administrator can paste it.
    pub command: String,
    /// How it ended.
    pub status: Status,
    /// The end of what it said.
    pub stderr: String,
}

/// What runs commands: the system, or a test's stand-in.
pub trait Runner {
    /// Runs a command to its end and hands over each piece of output as it comes, such as the progress that
    /// `rbd object-map rebuild` writes (`Object Map Rebuild: 10% complete...\r`).
    ///
    /// An error is a command that could not be run at all; one that ran and failed is an [`Outcome`].
    fn run_watched(&self, command: &Command, watch: &mut dyn FnMut(Stream, &[u8])) -> Result<Outcome>;

    /// Runs a command to its end.
    fn run(&self, command: &Command) -> Result<Outcome> {
        self.run_watched(command, &mut |_, _| ())
    }
}

impl Outcome {
    /// It ended with exit 0.
    pub fn success(&self) -> bool {
        self.status == Status::Exit(0)
    }

    /// The errno that a Ceph tool ended with: its exit code.
    pub fn errno(&self) -> Option<i32> {
        match self.status {
            Status::Exit(code) if code != 0 => Some(code),
            _ => None,
        }
    }

    /// All that it said on its standard error and that was kept, as one line: progress left out, lines joined by ` | `.
    pub fn said(&self) -> String {
        let lines = self.stderr_tail.lines().map(str::trim);
        lines.filter(|line| !line.is_empty() && !is_progress(line)).collect::<Vec<_>>().join(" | ")
    }

    /// The same outcome if it ended with exit 0, otherwise [`Failed`].
    pub fn check(self) -> Result<Self> {
        if self.success() {
            return Ok(self);
        }
        Err(Failed { command: self.command, status: self.status, stderr: self.stderr_tail }.into())
    }

    /// Its whole standard output read as JSON; an error if it did not end with exit 0.
    pub fn json<T: DeserializeOwned>(self) -> Result<T> {
        let outcome = self.check()?;
        if outcome.stdout_truncated {
            bail!("{}: wrote more than {STDOUT_LIMIT} bytes", outcome.command);
        }
        serde_json::from_slice(&outcome.stdout)
            .with_context(|| format!("{}: its output is not the JSON that was expected", outcome.command))
    }
}

/// `Object Map Rebuild: 10% complete...`, of which there are hundreds.
fn is_progress(line: &str) -> bool {
    line.contains("% complete")
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exit(code) => write!(f, "exit {code}"),
            Self::Signal(signal) => write!(f, "killed by signal {signal}"),
            Self::TimedOut => f.write_str("killed at its deadline"),
        }
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.command, self.status)?;
        match self.stderr.trim() {
            "" => Ok(()),
            stderr => write!(f, ": {stderr}"),
        }
    }
}

impl std::error::Error for Failed {}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(status: Status, stdout: &str) -> Outcome {
        Outcome {
            command: "rbd info x".into(),
            status,
            stdout: stdout.into(),
            stdout_truncated: false,
            stderr_tail: "rbd: error opening image x: (2)\n".into(),
            duration: Duration::ZERO,
            survived_kill: false,
        }
    }

    #[test]
    fn a_failure_says_the_command_how_it_ended_and_why() {
        let error = outcome(Status::Exit(2), "").check().unwrap_err();
        assert_eq!(error.to_string(), "rbd info x: exit 2: rbd: error opening image x: (2)");
        assert_eq!(error.downcast_ref::<Failed>().unwrap().status, Status::Exit(2));
        assert_eq!(outcome(Status::Exit(2), "").errno(), Some(2));
        assert_eq!(outcome(Status::TimedOut, "").errno(), None);
        assert_eq!(outcome(Status::Exit(0), "").errno(), None);
    }

    #[test]
    fn all_that_was_said_is_one_line_without_progress() {
        let mut outcome = outcome(Status::Exit(22), "");
        outcome.stderr_tail =
            "a\n\n  b \nObject Map Rebuild: 10% complete...\nrbd: map failed: (22)\n".into();
        assert_eq!(outcome.said(), "a | b | rbd: map failed: (22)");
    }

    #[test]
    fn json_is_read_only_from_a_whole_success() {
        assert_eq!(outcome(Status::Exit(0), "[1,2]\n").json::<Vec<u8>>().unwrap(), [1, 2]);
        assert!(outcome(Status::Exit(1), "[1]").json::<Vec<u8>>().is_err());
        let said = outcome(Status::Exit(0), "[1").json::<Vec<u8>>().unwrap_err().to_string();
        assert!(said.starts_with("rbd info x: its output is not"), "{said}");
        let truncated = Outcome { stdout_truncated: true, ..outcome(Status::Exit(0), "[1]") };
        assert!(truncated.json::<Vec<u8>>().is_err());
    }
}
