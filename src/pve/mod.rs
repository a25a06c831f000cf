//! What Proxmox VE says: guest configs, drive strings, storage.cfg, node and cluster files.

pub mod config;
pub mod connection;
mod drive;
pub mod guest;
pub mod ha;
pub mod ha_rules;
mod hosts;
pub mod keyring;
pub mod load;
pub mod lock;
pub mod needs;
pub mod node;
pub mod peer;
mod property;
mod sections;
pub mod snippet;
pub mod storage;
mod text;
pub mod volume;
pub mod whereabouts;
