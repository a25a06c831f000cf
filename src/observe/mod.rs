//! Looking: everything that is seen of a guest, as one plain value. Reads only.

mod clients;
pub mod fsids;
pub mod gather;
pub mod keyring;
pub mod lock_owner;
mod managers;
mod mirrors;
pub mod node_addresses;
mod owners;
pub mod rehearsed;
pub mod running;
mod sightings;
pub mod survey;
