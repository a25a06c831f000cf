//! How the hook tells the snippet that its end is meant. The snippet (`hooks/rbd-preflight`) lets a guest start whatever
//! becomes of the tool, unless a word came out of the descriptor that `RBD_PREFLIGHT_VERDICT` names. So a crash, a
//! signal, a limit or a missing library never stops a start.

use std::fs::File;
use std::io::Write;
use std::os::fd::RawFd;
use std::sync::OnceLock;

/// The variable that names the descriptor.
const VARIABLE: &str = "RBD_PREFLIGHT_VERDICT";

static CHANNEL: OnceLock<Option<File>> = OnceLock::new();

/// Takes the descriptor over, once, before anything is run: nothing that this process becomes or runs has it, since the
/// snippet waits until it is closed.
pub fn open() {
    CHANNEL.get_or_init(|| {
        let fd: RawFd = std::env::var(VARIABLE).ok()?.parse().ok().filter(|fd| *fd > 2)?;
        let channel = File::options().write(true).open(format!("/proc/self/fd/{fd}")).ok();
        let _ = nix::unistd::close(fd);
        channel
    });
}

/// From now on the process's end is meant, whatever it is: a refusal, the earlier hookscript's own, or any end at all
/// where the settings say `on_error: block`.
pub fn say() {
    if let Some(Some(mut channel)) = CHANNEL.get().map(Option::as_ref) {
        // Who does not listen lets the guest start, which is what an end that is not told does.
        let _ = channel.write_all(b"meant\n");
    }
}
