//! Runs `rbd` for one change, and says what came of it.

use super::unmap::still_there;
use crate::kernel::{device, sysfs};
use crate::rbd::action::{Action, ActionResult};
use crate::reading::{errno_text, error_text};
use crate::sys::process::{Outcome, Runner, Status, Stream};
use crate::sys::root::Root;
use std::time::{Duration, Instant};

/// How long udev may take to make the link to a device.
const LINK_PATIENCE: Duration = Duration::from_secs(10);

/// How long one command may take.
#[derive(Clone, Copy)]
pub struct TimeLimit {
    /// The time after which the command is killed.
    pub limit: Duration,
    /// That is less than the settings give a command.
    pub cut: bool,
}

/// Runs a change's command; a map is done once udev has made the link to the device. `progress` is given what a rebuild
/// says of itself, in percent.
pub fn run_rbd(
    runner: &dyn Runner,
    root: &Root,
    action: &Action,
    time: TimeLimit,
    progress: &(dyn Fn(u64) + Sync),
) -> ActionResult {
    let Some(command) = action.command() else { return ActionResult::withheld("there is no command for it") };
    let command = command.deadline(time.limit);
    let mut watch = |stream, bytes: &[u8]| {
        if let (Stream::Stderr, Some(percent)) = (stream, percent(bytes)) {
            progress(percent);
        }
    };
    match runner.run_watched(&command, &mut watch) {
        Ok(outcome) if outcome.success() => {
            if action.is_map() {
                await_link(root, action);
            }
            ActionResult::done()
        }
        // A map that had less time than the settings give it has not been found to fail: PVE makes its own.
        Ok(outcome) if outcome.status == Status::TimedOut && time.cut && action.is_map() => {
            ActionResult::withheld(format!(
                "there was no time left for it; ended after {} s",
                outcome.duration.as_secs()
            ))
        }
        Ok(outcome) => failed(&outcome),
        Err(error) => ActionResult::Failed { errno: None, message: error_text(&error) },
    }
}

/// udev makes the link that PVE looks for shortly after the map. One that is there may still lead to another device.
fn await_link(root: &Root, action: &Action) {
    let target = &action.target;
    let leads_there = || {
        let device = device::linked(root, &target.fsid, &target.spec)?;
        let now = sysfs::mapping_now(root, device::number(&device)?);
        Some(still_there(&now, action).is_none())
    };
    let until = Instant::now() + LINK_PATIENCE;
    while leads_there() != Some(true) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What `rbd` says of a rebuild: `Object Map Rebuild: 10% complete...`.
fn percent(bytes: &[u8]) -> Option<u64> {
    let text = String::from_utf8_lossy(bytes);
    let before = text.rsplit_once("% complete")?.0;
    before.rsplit(' ').next()?.parse().ok()
}

fn failed(outcome: &Outcome) -> ActionResult {
    let said = outcome.said();
    let message = match outcome.status {
        Status::Exit(code) => format!("{}: {said}", exit_in_words(code, &said)),
        status => format!("{status} after {} s: {said}", outcome.duration.as_secs()),
    };
    ActionResult::Failed { errno: outcome.errno(), message }
}

/// What `rbd` exits with: 1 for a command line that it does not take, else the lowest eight bits of the errno, which it has
/// whole in its last words (`rbd: map failed: (524) Unknown error 524`, exit 12).
fn exit_in_words(code: i32, said: &str) -> String {
    let whole = said.rsplit('(').find_map(|rest| rest.split_once(')')?.0.parse().ok());
    match whole.filter(|errno: &i32| errno & 0xff == code) {
        Some(errno) => errno_text(errno),
        None if code == 1 => "exit code 1".to_owned(),
        None => errno_text(code),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rbd_exits_with_is_its_errno_cut_to_eight_bits_unless_it_is_the_command_line() {
        for (code, said, expected) in [
            (
                108,
                "rbd: map failed: (108) Cannot send after transport endpoint shutdown",
                "error 108 (ESHUTDOWN, Cannot send after transport endpoint shutdown)",
            ),
            (
                12,
                "rbd: map failed: (524) Unknown error 524",
                "error 524 (ENOTSUPP, Operation is not supported)",
            ),
            (22, "rbd: (1) of (2) ", "error 22 (EINVAL, Invalid argument)"),
            (1, "rbd: unrecognised option '--x'", "exit code 1"),
            (1, "rbd: list failed: (1) Operation not permitted", "error 1 (EPERM, Operation not permitted)"),
        ] {
            assert_eq!(exit_in_words(code, said), expected);
        }
    }

    #[test]
    fn progress_is_read_from_what_rbd_writes() {
        assert_eq!(
            percent(b"\rObject Map Rebuild: 10% complete...\rObject Map Rebuild: 35% complete..."),
            Some(35)
        );
        assert_eq!(percent(b"2026-11-23T05:00 librbd: something"), None);
    }
}
