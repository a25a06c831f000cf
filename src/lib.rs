//! Makes sure that a Proxmox VE guest's Ceph RBD disks can be opened and mapped before the guest starts.
//!
//! Everything that reads the outside makes one plain value, the [`observe::survey::Survey`]; `diagnose` and `plan` turn it
//! into findings and changes without touching anything; only `act` changes something, and then all is observed again.
//!
//! The map, from the ground up, the flow in its order; `tests/house.rs` holds who may name whom:
//!
//! | room | what is there |
//! |---|---|
//! | [`reading`] | a fact from outside: known, or not known and why |
//! | [`finding_codes`] | every finding: its name, how grave it is, what it means, what fixes it |
//! | [`sys`] | this machine: directories, files, clock, programs |
//! | [`exit`] | the exit codes |
//! | [`rbd`] | words and rules of RBD, each once |
//! | [`pve`] | Proxmox VE's own words: guests' configs, storage.cfg, nodes, HA, its locks |
//! | [`kernel`] | this node's kernel: what it can map, has mapped, and says |
//! | [`ceph`] | the cluster, through librados and librbd; ceph.conf and keyrings |
//! | [`settings`] | the settings, and what they allow for one guest |
//! | [`observe`] | 1. everything that is seen of a guest, as one value |
//! | [`diagnose`] | 2. what is wrong with it, and what must not be touched |
//! | [`plan`] | 3. which changes, in which order, in how many tries |
//! | [`act`] | 4. makes them, each after a fresh look; then again from 1 |
//! | [`journal`] | what was changed, when and why |
//! | [`undo`] | what takes a run's changes back |
//! | [`hook`] | being Proxmox VE's hookscript |
//! | [`doctor`] | whether this node has what the tool needs |
//! | [`defaults`] | the features that new images get |
//! | [`rehearsal`] | which guest could start on which node, judged of what the nodes said |
//! | [`watch`] | what happens to running guests' disks, and what is said of it when |
//! | [`report`] | what people see: text and JSON |
//! | [`cli`] | the command line |
//! | [`commands`] | one file a subcommand: gathers, calls the core, shows |

/// `eprintln!` that ignores a failed write: a lost line is no reason to stop.
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
pub mod rehearsal;
pub mod report;
pub mod settings;
pub mod sys;
pub mod undo;
pub mod watch;
