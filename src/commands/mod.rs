//! The subcommands: each gathers, calls the core, and shows.

/// `print!` that ends the process quietly when nobody reads on (`rbd-preflight check 516 | head`).
macro_rules! out {
    ($($arg:tt)*) => {{
        use std::io::Write as _;
        if write!(std::io::stdout(), $($arg)*).is_err() {
            $crate::exit::Exit::Ready.leave();
        }
    }};
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
mod fleet;
mod history;
mod hook;
mod quorum;
mod repair;
mod session;
mod snippet;
mod start;
mod undo;
mod world;

use crate::cli::{Cli, Command};
use crate::exit::{self, Exit};
use crate::root::Root;

/// Runs what the command line asks for, and says on stderr what went wrong.
pub fn run(cli: Cli) -> Exit {
    let root = Root::new(cli.root);
    log_to_journal();
    let result = match &cli.command {
        Command::Check(options) => check::run(&root, options),
        Command::Repair(options) => repair::run(&root, options),
        Command::Start(options) => start::run(&root, options),
        Command::Disks(options) => disks::run(&root, options),
        Command::Attach(options) => attach::attach(&root, options),
        Command::Detach(options) => attach::detach(&root, options),
        Command::History(options) => history::run(&root, options),
        Command::Undo(options) => undo::run(&root, options),
        Command::Defaults(options) => defaults::run(&root, options),
        Command::Doctor(options) => doctor::run(&root, options),
        Command::Hook(options) => Ok(hook::run(&root, options)),
    };
    result.unwrap_or_else(|error| {
        complain(&error);
        exit::of(&error)
    })
}

/// Each change also goes to the system's journal, where there is one.
fn log_to_journal() {
    if let Ok(journal) = systemd_journal_logger::JournalLog::new() {
        if journal.with_syslog_identifier("rbd-preflight".to_owned()).install().is_ok() {
            log::set_max_level(log::LevelFilter::Info);
        }
    }
}

/// An error and its causes, one a line, on stderr.
fn complain(error: &anyhow::Error) {
    errln!("rbd-preflight: {}", crate::report::plain(&error.to_string()));
    for cause in error.chain().skip(1) {
        errln!("  because: {}", crate::report::plain(&cause.to_string()));
    }
}
