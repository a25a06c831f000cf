//! Faults at the commands that the real binary runs: an `rbd` that is found first counts its calls and spoils one.

use std::path::{Path, PathBuf};
use std::process::Command;

/// What goes wrong with one call of `rbd`. `during` is in milliseconds after the call has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It does nothing and ends with this.
    Fails(i32),
    /// It does its work and still ends with this.
    FailsAfter(i32),
    /// It does nothing and never ends.
    Hangs,
    /// It does its work and never ends.
    HangsAfter,
    /// It is killed itself while it works.
    IsKilled { during: u32 },
    /// rbd-preflight is killed before the work.
    KillBefore,
    /// rbd-preflight is killed while the work is done.
    KillDuring { during: u32 },
    /// rbd-preflight is killed when the work is done and before it hears of it.
    KillAfter,
}

impl Fault {
    /// rbd-preflight itself is killed.
    pub fn kills(self) -> bool {
        matches!(self, Self::KillBefore | Self::KillDuring { .. } | Self::KillAfter)
    }

    /// What the `rbd` in front does instead of just being the real one. Its parent is rbd-preflight, since `setpriv`
    /// becomes the program; what it becomes itself still dies with that parent.
    fn script(self) -> String {
        let later = |ms: u32| format!("sleep {}.{:03}", ms / 1000, ms % 1000);
        match self {
            Self::Fails(code) => format!("echo 'rbd: it was made to fail' >&2; exit {code}"),
            Self::FailsAfter(code) => format!("\"$real\" \"$@\"; exit {code}"),
            Self::Hangs => "exec sleep 1000".to_owned(),
            Self::HangsAfter => "\"$real\" \"$@\"; exec sleep 1000".to_owned(),
            Self::IsKilled { during } => {
                format!("( {}; kill -KILL $$ ) >/dev/null 2>&1 & exec \"$real\" \"$@\"", later(during))
            }
            Self::KillBefore => "kill -KILL $PPID; exec sleep 1000".to_owned(),
            Self::KillDuring { during } => {
                format!("( {}; kill -KILL $PPID ) >/dev/null 2>&1 & exec \"$real\" \"$@\"", later(during))
            }
            Self::KillAfter => "\"$real\" \"$@\"; kill -KILL $PPID; exec sleep 1000".to_owned(),
        }
    }
}

/// An `rbd` for one run.
pub struct Spoiled {
    directory: tempfile::TempDir,
}

impl Spoiled {
    /// Counts its calls, and does `fault` at call `at` (from 1); with `None` it only counts.
    pub fn new(fault: Option<(usize, Fault)>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let real = which("rbd");
        let (at, script) = fault.map_or((0, ":".to_owned()), |(at, fault)| (at, fault.script()));
        let text = format!(
            "#!/bin/sh\nreal={}\necho \"$*\" >>{}\nif [ \"$(wc -l <{1})\" -eq {at} ]; then\n{script}\nfi\nexec \"$real\" \"$@\"\n",
            real.display(),
            directory.path().join("calls").display(),
        );
        let program = directory.path().join("rbd");
        super::executable(&program, &text);
        Self { directory }
    }

    /// Lets a command find it first.
    pub fn before(&self, command: &mut Command) {
        let path = std::env::var("PATH").unwrap();
        command.env("PATH", format!("{}:{path}", self.directory.path().display()));
    }

    /// The calls so far, each as its arguments.
    pub fn calls(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.directory.path().join("calls")).unwrap_or_default();
        text.lines().map(ToOwned::to_owned).collect()
    }
}

fn which(program: &str) -> PathBuf {
    let path = std::env::var("PATH").unwrap();
    path.split(':').map(|place| Path::new(place).join(program)).find(|file| file.is_file()).unwrap()
}
