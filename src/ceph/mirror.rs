//! rbd-mirror's daemons, by what the cluster itself knows of them.
//!
//! The daemon of the other site opens each image that it copies from here for writing, and so is one of its watchers
//! (`BootstrapRequest`, `snapshot::Replayer` in Ceph's `src/tools/rbd_mirror/image_replayer`). It writes nothing to a primary image
//! but its own snapshots' state. What tells it from a writer: it also watches the pool's object `rbd_mirroring`
//! (`librbd::MirroringWatcher`), which nothing else in Ceph does. Seen on 16.2.15, 18.2.7 and 20.2.4.

use crate::ceph::objects::MIRRORING;
use crate::ceph::watches::listed_by_rados;
use crate::pve::connection::Connection;
use crate::rbd::lock::Watcher;
use crate::reading::Reading;
use std::time::Duration;

/// The rbd-mirror daemons that are at the images of a pool and namespace. Asked by `rados`, for at most
/// `limit` and never more than a few seconds: librados has no call for it in C.
pub fn read_mirror_daemons(
    connection: &Connection,
    pool: &str,
    namespace: Option<&str>,
    limit: Duration,
) -> Reading<Vec<Watcher>> {
    listed_by_rados(connection, (pool, namespace), MIRRORING, limit).into()
}
