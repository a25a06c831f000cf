//! The `rbd-preflight` command: parse, run, exit code; nothing else.

use clap::Parser;
use rbd_preflight::{cli::Cli, commands};

fn main() -> ! {
    commands::run(Cli::parse()).leave()
}
