//! This machine: its directories, files, clock and programs.

pub mod dates;
pub(crate) mod private_dir;
pub mod process;
pub mod root;
pub mod time;
