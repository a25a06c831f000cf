//! The exit codes, and errors that carry one.

use crate::sys::syscalls::end_process;
use std::fmt;
use std::io::Write as _;

/// What the process exits with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Nothing stands in the way of a start.
    Ready = 0,
    /// Something went wrong that says nothing about the guest.
    Error = 1,
    /// The command line was wrong, or nothing was confirmed.
    Usage = 2,
    /// Something would stop the start.
    Stopped = 3,
    /// A safety rule forbids the start or the change.
    Refused = 4,
    /// Another run is at it; try later (`EX_TEMPFAIL`).
    Busy = 75,
    /// The deadline passed before all was done (as `timeout` exits).
    Deadline = 124,
}

impl Exit {
    /// Ends the process with this code, whatever a thread that was left behind in Ceph still does. Output ends with a line
    /// end and stdout is flushed with it, so nothing is lost here that was not said before.
    pub fn leave(self) -> ! {
        let _ = crate::sys::stdout::stdout().flush();
        let _ = std::io::stderr().flush();
        end_process(self as i32)
    }
}

/// An error with an exit code of its own.
#[derive(Debug)]
pub struct Coded {
    /// The code that the process is to exit with.
    pub exit: Exit,
    /// What went wrong and what to do.
    pub message: String,
}

impl Coded {
    /// An error for [`anyhow`] that makes the process exit with `exit`.
    pub fn error(exit: Exit, message: impl Into<String>) -> anyhow::Error {
        anyhow::Error::new(Self { exit, message: message.into() })
    }
}

impl fmt::Display for Coded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Coded {}

/// The exit code of an error.
pub fn of(error: &anyhow::Error) -> Exit {
    error.downcast_ref::<Coded>().map_or(Exit::Error, |coded| coded.exit)
}
