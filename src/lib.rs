//! Makes sure that a Proxmox VE guest's Ceph RBD disks can be opened and mapped before the guest starts.
//!
//! Everything that reads the outside makes one plain value, the [`survey::Survey`]; `diagnose` and `plan` turn it
//! into findings and actions without touching anything; only `act` changes something.

/// `eprintln!` that goes on where nobody reads: a lost line is no reason to end.
macro_rules! errln {
    ($($arg:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($arg)*);
    }};
}

pub mod act;
pub mod action;
pub mod attach;
pub mod ceph;
pub mod chain;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod context;
pub mod defaults;
pub mod diagnose;
pub mod doctor;
pub mod exit;
pub mod history;
pub mod journal;
pub mod kernel;
pub mod ladder;
mod meant;
pub mod plan;
pub mod policy;
mod private_dir;
pub mod process;
pub mod pve;
pub mod reading;
pub mod report;
pub mod root;
pub mod settings;
pub mod stdout;
pub mod survey;
pub mod undo;
pub mod verdict;
pub mod when;
