//! Looking: everything that is seen of a guest, as one plain value. Reads only.

mod clients;
pub mod fsids;
pub mod gather;
mod mirrors;
mod owners;
mod sightings;
pub mod survey;
