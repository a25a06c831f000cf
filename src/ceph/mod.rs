//! What Ceph says: features, the librados/librbd binding, images, locks, blocklist, ceph.conf.
//!
//! [`read::read_cluster`] reads everything over one connection; [`lock::break_stale_lock`] is the one change that is
//! made through librbd itself; [`sharing::share`] tells which storages can use one connection.

mod absence;
pub mod alive;
mod background;
pub mod binding;
pub mod caps;
pub mod cluster;
pub mod conf;
mod connect;
pub mod defaults;
mod facts;
pub mod features;

pub mod identity;
pub mod image;
pub mod keyring;
mod lineage;
mod list;
pub mod lock;
pub mod map_options;
pub mod mirror;
pub mod monitors;
pub mod osd_caps;
pub mod qemu_keyring;
pub mod read;
pub mod sharing;
pub mod watches;
pub mod way;
