//! Loads the kernel's rbd module. Never done by reading: whoever is about to map decides.

use crate::sys::command::Command;
use crate::sys::process::{Runner, Status};
use anyhow::{Context, Result};
use std::time::Duration;

fn command() -> Command {
    Command::new("modprobe").arg("rbd").deadline(Duration::from_secs(20))
}

/// Loads the module; harmless if it is loaded. `rbd map` would do the same, but names no cause if it fails. An error is what
/// `modprobe` itself has said: one that cannot be run here, or is not done in time, says nothing of the module.
pub fn load(runner: &dyn Runner) -> Result<()> {
    match runner.run(&command()) {
        Ok(outcome) if matches!(outcome.status, Status::Exit(_)) => {
            outcome.check().context("the kernel's rbd module cannot be loaded")?;
        }
        Ok(outcome) => log::warn!("{}: {}", outcome.command, outcome.status),
        Err(error) => log::warn!("{error:#}"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::{Outcome, Stream};

    struct Exits(Status);

    impl Runner for Exits {
        fn run_watched(&self, command: &Command, _: &mut dyn FnMut(Stream, &[u8])) -> Result<Outcome> {
            Ok(Outcome {
                command: command.display(),
                status: self.0,
                stdout: vec![],
                stdout_truncated: false,
                stderr_tail: "modprobe: FATAL: Module rbd not found\n".into(),
                duration: Duration::ZERO,
                survived_kill: false,
            })
        }
    }

    #[test]
    fn a_module_that_is_not_there_is_named() {
        assert!(load(&Exits(Status::Exit(0))).is_ok());
        let said = format!("{:#}", load(&Exits(Status::Exit(1))).unwrap_err());
        let expected = "the kernel's rbd module cannot be loaded: modprobe rbd: exit 1: modprobe: FATAL: \
                        Module rbd not found";
        assert_eq!(said, expected);
    }

    #[test]
    fn a_modprobe_that_takes_too_long_says_nothing_of_the_module() {
        assert!(load(&Exits(Status::TimedOut)).is_ok());
    }
}
