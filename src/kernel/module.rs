//! Loads the kernel's rbd module. Never done by reading: whoever is about to map decides.

use crate::sys::process::{Command, Runner};
use anyhow::{Context, Result};
use std::time::Duration;

/// The command that loads the module.
pub fn command() -> Command {
    Command::new("modprobe").arg("rbd").deadline(Duration::from_secs(20))
}

/// Loads the module; harmless if it is loaded. `rbd map` would do the same, but names no cause if it fails.
pub fn load(runner: &dyn Runner) -> Result<()> {
    runner.run(&command())?.check().context("the kernel's rbd module cannot be loaded")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::{Outcome, Status, Stream};

    struct Exits(i32);

    impl Runner for Exits {
        fn run_watched(&self, command: &Command, _: &mut dyn FnMut(Stream, &[u8])) -> Result<Outcome> {
            Ok(Outcome {
                command: command.display(),
                status: Status::Exit(self.0),
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
        assert!(load(&Exits(0)).is_ok());
        let said = format!("{:#}", load(&Exits(1)).unwrap_err());
        let expected = "the kernel's rbd module cannot be loaded: modprobe rbd: exit 1: modprobe: FATAL: \
                        Module rbd not found";
        assert_eq!(said, expected);
    }
}
