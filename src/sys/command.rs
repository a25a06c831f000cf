//! A program to run, as a value: what [`super::process`] runs, and what an administrator can paste.

use crate::sys::quote::quoted;
use std::ffi::{OsStr, OsString};
use std::time::Duration;

/// How long a command may take if nothing else is said.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(60);

/// A program to run and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    pub(super) program: String,
    pub(super) args: Vec<OsString>,
    pub(super) env: Vec<(OsString, Option<OsString>)>,
    pub(super) deadline: Duration,
    pub(super) stdin: Option<Vec<u8>>,
}

impl Command {
    /// A program, by name or path, with nothing on stdin and [`DEFAULT_DEADLINE`].
    pub fn new(program: impl Into<String>) -> Self {
        Self { program: program.into(), args: vec![], env: vec![], deadline: DEFAULT_DEADLINE, stdin: None }
    }

    /// Adds an argument, which no shell ever sees.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments, which no shell ever sees.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets a variable of its environment, over the inherited one. `LC_ALL=C` is always set.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), Some(value.as_ref().to_owned())));
        self
    }

    /// Takes a variable out of its environment.
    #[must_use]
    pub fn env_remove(mut self, name: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), None));
        self
    }

    /// Kills it after this long.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// What it reads on stdin.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// The program's name or path.
    pub fn program(&self) -> &str {
        &self.program
    }

    /// The arguments after the program.
    pub fn arguments(&self) -> &[OsString] {
        &self.args
    }

    /// The line that an administrator can paste into a shell (bash) to run the same.
    pub fn display(&self) -> String {
        let mut words = Vec::new();
        let removed: Vec<_> = self.env.iter().filter(|(_, value)| value.is_none()).collect();
        if !removed.is_empty() {
            words.push("env".to_owned());
            words.extend(removed.iter().flat_map(|(name, _)| ["-u".to_owned(), quoted(name)]));
        }
        for (name, value) in &self.env {
            if let Some(value) = value {
                words.push(format!("{}={}", quoted(name), quoted(value)));
            }
        }
        words.push(quoted(&self.program));
        words.extend(self.args.iter().map(quoted));
        words.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_a_line_to_paste() {
        let command =
            Command::new("rbd").args(["-p", "rbd pool", "map"]).arg("vm-516-disk-0").env("A", "b c");
        assert_eq!(command.display(), "A='b c' rbd -p 'rbd pool' map vm-516-disk-0");
        let removed = Command::new("rbd").env("A", "b").env_remove("CEPH_ARGS").arg("ls");
        assert_eq!(removed.display(), "env -u CEPH_ARGS A=b rbd ls");
    }
}
