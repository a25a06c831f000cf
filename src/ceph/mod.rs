//! What Ceph says: the librados/librbd binding, clusters, images, locks, caps, ceph.conf, keyrings.
//!
//! [`read_cluster::read_cluster`] reads everything over one connection; [`lock::break_stale_lock`] is the one change that is
//! made through librbd itself; [`sharing::share`] tells which storages can use one connection.

pub mod caps;
pub mod cluster;
pub mod conf;
pub(crate) mod connect;
mod deadline;
pub mod defaults;
mod encoding;
pub mod ffi;
pub mod image;
mod image_names;
pub mod keep;
pub mod keyring;
pub mod lock;
pub mod manager;
pub mod map_options;
pub mod mirror;
mod missing;
pub mod monitors;
mod objects;
pub mod osd_caps;
mod parents;
pub mod qemu_keyring;
pub mod read_cluster;
mod read_image;
pub mod sharing;
pub mod watches;
pub mod way;
