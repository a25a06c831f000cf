//! Makes sure that a Proxmox VE guest's Ceph RBD disks can be opened and mapped before the guest starts.
//!
//! Everything that reads the outside makes one plain value, the [`observe::survey::Survey`]; `diagnose` and `plan` turn it
//! into findings and actions without touching anything; only `act` changes something.

/// `eprintln!` that goes on where nobody reads: a lost line is no reason to end.
macro_rules! errln {
    ($($arg:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($arg)*);
    }};
}

pub mod act;
pub mod ceph;
pub mod cli;
pub mod commands;
pub mod defaults;
pub mod diagnose;
pub mod doctor;
pub mod exit;
pub mod finding_codes;
pub mod hook;
pub mod journal;
pub mod kernel;
pub mod observe;
pub mod plan;
pub mod pve;
pub mod rbd;
pub mod reading;
pub mod report;
pub mod settings;
pub mod stdout;
pub mod sys;
pub mod undo;
