//! The subcommands: each gathers, calls the core, and shows.

/// `print!` that ends the process where the words cannot be written ([`print`]).
macro_rules! out {
    ($($arg:tt)*) => { $crate::commands::print(format_args!($($arg)*)) };
}

/// `println!` in the manner of `out!`.
macro_rules! outln {
    () => { out!("\n") };
    ($($arg:tt)*) => {{
        out!($($arg)*);
        out!("\n");
    }};
}

mod attach;
mod check;
mod confirm;
mod defaults;
mod disks;
mod doctor;
mod here;
mod history;
mod hook;
mod live;
mod logging;
mod many_guests;
mod quorum;
mod rehearse;
mod repair;
mod session;
mod snippet;
mod start;
mod undo;
mod watch;

use crate::cli::{Cli, Command};
use crate::exit::{self, Exit};
use crate::reading::cause_text;
use crate::sys::plain::plain;
use crate::sys::root::Root;
use std::fmt;
use std::io::{self, Write as _};

/// Runs what the command line asks for, and says on stderr what went wrong.
pub fn run(cli: Cli) -> Exit {
    crate::sys::stdout::keep();
    let root = Root::new(cli.root);
    logging::begin(cli.log);
    let result = match &cli.command {
        Command::Check(options) => check::run(&root, options),
        Command::Rehearse(options) => rehearse::run(&root, options),
        Command::Repair(options) => repair::run(&root, options),
        Command::Start(options) => start::run(&root, options),
        Command::Disks(options) => disks::run(&root, options),
        Command::Attach(options) => attach::attach(&root, options),
        Command::Detach(options) => attach::detach(&root, options),
        Command::History(options) => history::run(&root, options),
        Command::Undo(options) => undo::run(&root, options),
        Command::Defaults(options) => defaults::run(&root, options),
        Command::Doctor(options) => doctor::run(&root, options),
        Command::Watch(options) => watch::run(&root, options),
        Command::Hook(options) => Ok(hook::run(&root, options)),
    };
    result.unwrap_or_else(|error| {
        complain(&error);
        exit::of(&error)
    })
}

/// Writes to stdout. Where nobody reads on (`check 516 | head`) the process ends quietly; any other fault of stdout, such as
/// a full disk, is said, and the exit code is that of an error: half a report must not pass for one.
fn print(words: fmt::Arguments) {
    if let Err(error) = crate::sys::stdout::stdout().write_fmt(words) {
        if error.kind() != io::ErrorKind::BrokenPipe {
            errln!(
                "rbd-preflight: cannot write to stdout: {}; the output is not complete",
                cause_text(&error)
            );
            Exit::Error.leave();
        }
        Exit::Ready.leave();
    }
}

/// An error and its causes, one a line, on stderr.
fn complain(error: &anyhow::Error) {
    errln!("rbd-preflight: {}", plain(&cause_text(error.as_ref())));
    for cause in error.chain().skip(1) {
        errln!("  because: {}", plain(&cause_text(cause)));
    }
}
