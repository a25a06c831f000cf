//! Words and rules of RBD, each in one place. Pure: nothing here reads or changes anything.

pub mod action;
pub mod blocklist;
pub mod features;
pub mod identity;
pub mod lock;
