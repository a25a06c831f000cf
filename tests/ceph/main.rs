//! What needs a real Ceph, and no kernel of its own: a module for each thing that is tried. `tests/run` gives it its lab
//! (RBD_PREFLIGHT_LAB); `cargo test` alone leaves it out.
#![allow(clippy::unwrap_used)] // a helper that fails must fail the test

#[path = "../common/mod.rs"]
mod common;

mod attach;
mod boot;
mod caps;
mod ceph_facts;
mod connecting;
mod cost;
mod defaults;
mod doctor;
mod examples;
mod exit;
mod faults;
mod findings;
mod fleet;
mod hook;
mod hostile;
mod keys;
mod look;
mod manager;
mod many;
mod mirror;
mod names;
mod options;
mod quorum;
mod ready;
mod rehearse;
mod repair;
mod rights;
mod sequences;
mod start;
mod undo;
mod watch;
