//! What features a cluster gives new images, and who says so. Reads only.

use crate::ceph::connect::{connect, place};
use crate::ceph::deadline;
use crate::ceph::encoding::{self, Answer};
use crate::ceph::ffi::{Cluster, Pool};
use crate::ceph::monitors::{self, Held};
use crate::pve::connection::Connection;
use crate::rbd::features::Features;
use crate::reading::Errno;
use crate::reading::{Failure, Reading};
use nix::libc::{EIO, ENOENT};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

/// The option of librbd that new images' features come from.
pub const OPTION: &str = "rbd_default_features";

/// What holds for a user of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefaultFeatures {
    /// What librbd takes if nobody says anything.
    pub built_in: Reading<Features>,
    /// What it takes by its ceph.conf, without the monitors.
    pub by_file: Reading<Features>,
    /// What the cluster says.
    pub cluster: Reading<FromCluster>,
}

/// What only the cluster can say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FromCluster {
    /// The cluster's fsid.
    pub fsid: String,
    /// What new images get: by ceph.conf, and below it by the monitors.
    pub effective: Reading<Features>,
    /// What the monitors hold of it.
    pub held: Reading<Vec<Held>>,
    /// For each pool asked for, a value of its own, which is stronger than any other (`rbd config pool set`).
    pub pools: Vec<(String, Reading<Option<String>>)>,
}

/// Reads it all; `pools` are those to ask for values of their own. It returns by `deadline` and at most a second.
pub fn read(connection: &Connection, pools: &[String], deadline: Duration) -> DefaultFeatures {
    let built_in = in_file(None, &connection.user);
    let by_file = in_file(Some(connection.conf.as_deref()), &connection.user);
    let mut heard = None;
    let (asked, pools) = (connection.clone(), pools.to_vec());
    let work = move |tell: &Sender<_>, _: &deadline::Wanted| {
        let _ = tell.send(ask(&asked, &pools, deadline));
    };
    let late = || Failure::errno(format!("ask {} for {OPTION}", place(connection)), 110);
    let cluster = match deadline::run(deadline, work, |news| heard = Some(news)) {
        Ok(_) => heard.unwrap_or_else(|| Err(late())),
        Err(failure) => Err(failure),
    };
    DefaultFeatures { built_in: built_in.into(), by_file: by_file.into(), cluster: cluster.into() }
}

/// What librbd itself makes of a ceph.conf for `client.USER`, without any connection: `Some(None)` is Ceph's default
/// file, which need not be there; `None` no file at all.
///
/// # Errors
/// The libraries are missing, or Ceph cannot read the file.
pub fn in_file(conf: Option<Option<&str>>, user: &str) -> Result<Features, Failure> {
    let cluster = Cluster::create(user)?;
    match conf {
        None => {}
        Some(None) => {
            let _ = cluster.read_conf(None);
        }
        Some(Some(conf)) => {
            cluster.read_conf(Some(conf)).map_err(|errno| Failure::errno(format!("read {conf}"), errno))?;
        }
    }
    match monitors::read_default_features(&cluster) {
        Reading::Known(features) => Ok(features),
        Reading::Unknown(failure) => Err(failure),
    }
}

fn ask(connection: &Connection, pools: &[String], deadline: Duration) -> Result<FromCluster, Failure> {
    let session = connect(connection, deadline)?;
    let fsid = session.fsid().map_err(|errno| Failure::errno("read the cluster's fsid", errno))?;
    let pools = pools.iter().map(|pool| (pool.clone(), of_pool(&session, pool).into())).collect();
    Ok(FromCluster {
        fsid,
        effective: monitors::read_default_features(&session),
        held: monitors::read_held(&session, OPTION),
        pools,
    })
}

/// A pool's own value: an entry of its `rbd_info` (`librbd/api/Config.cc`).
fn of_pool(session: &Arc<Cluster>, pool: &str) -> Result<Option<String>, Failure> {
    let failure = |errno| Failure::errno(format!("read the settings of the pool {pool}"), errno);
    let pool = session.pool(pool, None).map_err(failure)?;
    own_value(&pool, "rbd_info", OPTION).map_err(failure)
}

/// The value of an option that a pool (`rbd_info`) or an image (its header) has for itself: an entry of the object,
/// which `rbd config pool|image set` writes.
///
/// # Errors
/// Ceph's errno; 5 for an answer that is not understood.
pub(super) fn own_value(pool: &Pool, object: &str, option: &str) -> Result<Option<String>, Errno> {
    match pool.class_call(object, "metadata_get", &encoding::text(&format!("conf_{option}"))) {
        Ok(answer) => Answer::new(&answer).text().map(Some).ok_or(EIO),
        Err(ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}
