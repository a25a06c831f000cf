//! The `rbd-preflight` command: parse, run, exit code; nothing else.

use clap::Parser;
use rbd_preflight::{cli::Cli, commands};

fn main() -> ! {
    let exit = commands::run(Cli::parse());
    std::process::exit(exit as i32)
}
