//! What Proxmox VE says: guest configs, drive strings, storage.cfg, node and cluster files.

pub mod config;
pub mod connection;
mod drive;
pub mod guest;
pub mod ha;
mod hosts;
pub mod keyring;
pub mod load;
pub mod lock;
pub mod node;
pub mod node_addresses;
mod perl;
mod property;
pub mod qemu;
pub mod snippet;
pub mod storage;
pub mod volume;
