//! What is done about findings: which changes, in which order, in how many tries. Pure.

pub mod order;
pub mod rule;
pub mod tries;
