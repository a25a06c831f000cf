//! This machine: its directories, files, clock and programs.

pub mod command;
pub mod dates;
pub mod plain;
pub(crate) mod private_dir;
pub mod process;
pub mod quote;
pub mod root;
pub mod stdout;
pub(crate) mod syscalls;
pub mod time;
pub mod write;
