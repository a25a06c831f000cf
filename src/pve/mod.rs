//! What Proxmox VE says: guest configs, drive strings, storage.cfg, node and cluster files.

pub mod config;
pub mod config_lock;
pub mod connection;
mod drive;
mod drive_schema;
pub mod guest;
pub mod ha;
pub mod ha_rules;
pub(crate) mod hosts;
pub mod keyring;
pub mod load;
pub mod lock;
pub mod members;
pub mod needs;
pub mod node;
pub mod peer;
mod perl;
mod property;
pub mod qemu;
mod sections;
pub mod snippet;
pub mod storage;
pub mod task;
pub mod volume;
pub mod words;
