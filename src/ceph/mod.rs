//! What Ceph says: features, the librados/librbd binding, images, locks, blocklist, ceph.conf.
//!
//! [`read_cluster::read_cluster`] reads everything over one connection; [`lock::break_stale_lock`] is the one change that is
//! made through librbd itself; [`sharing::share`] tells which storages can use one connection.

pub mod caps;
pub mod cluster;
pub mod conf;
mod connect;
mod deadline;
pub mod defaults;
pub mod ffi;
mod missing;
mod read_image;

pub mod image;
mod image_names;
pub mod keyring;
pub mod lock;
pub mod map_options;
pub mod mirror;
pub mod monitors;
pub mod osd_caps;
mod parents;
pub mod qemu_keyring;
pub mod read_cluster;
pub mod sharing;
pub mod watches;
pub mod way;
