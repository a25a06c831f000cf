//! Who has which images of some pools open: whether a client that does not watch one image lives with others.
//!
//! A watch is a registration on an image's header object, which the OSD drops `osd_client_watch_timeout` after it last
//! heard of its client (`Watch::got_ping` in Ceph's `src/osd/Watch.cc`). Only who opens an image for writing has one.

use crate::ceph::background::{self, Wanted};
use crate::ceph::binding::{Cluster, Errno, Pool};
use crate::ceph::connect::{connect, place};
use crate::ceph::facts::read_watchers;
use crate::ceph::image::{Spec, Watcher};
use crate::ceph::list;
use crate::ceph::read::{PoolName, side_by_side};
use crate::pve::connection::Connection;
use crate::reading::{Failure, Reading};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

const ENOENT: Errno = 2;
const ETIMEDOUT: Errno = 110;

/// What was seen of the images of some pools.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watches {
    /// The cluster's fsid.
    pub fsid: String,
    /// The images that could be looked at, and who watches each.
    pub images: Vec<(Spec, Vec<Watcher>)>,
    /// What could not be looked at, and why; a client may have it open. Not all of many.
    pub unread: Vec<Failure>,
    /// `osd_client_watch_timeout`, as it holds for this client: one that is set for OSDs alone is not seen. `None` where
    /// there is no ceph.conf that could have set it.
    pub watch_timeout: Option<Duration>,
}

/// Reads who watches each image of some pools and namespaces of one cluster, over a connection of its own. Registers no
/// watch and changes nothing. Returns by `deadline` and at most a second; what was not looked at by then is unread.
pub fn read_watches(connection: &Connection, pools: &[PoolName], deadline: Duration) -> Reading<Watches> {
    let mut gathered = Gathered::default();
    let job = Job { connection: connection.clone(), pools: pools.to_vec(), deadline };
    let ended =
        background::run(deadline, move |tell, wanted| job.run(tell, wanted), |news| gathered.take(news));
    match ended {
        Ok(_) => gathered.finish(connection),
        Err(failure) => Reading::Unknown(failure),
    }
}

enum News {
    Connected(Result<(String, Option<Duration>), Failure>),
    Listed(usize),
    Unlisted(Failure),
    Image(Spec, Option<Result<Vec<Watcher>, Failure>>),
    Over,
}

#[derive(Default)]
struct Gathered {
    cluster: Option<Result<(String, Option<Duration>), Failure>>,
    listed: usize,
    read: usize,
    images: Vec<(Spec, Vec<Watcher>)>,
    unread: Vec<Failure>,
    over: bool,
}

impl Gathered {
    fn take(&mut self, news: News) {
        match news {
            News::Connected(cluster) => self.cluster = Some(cluster),
            News::Listed(count) => self.listed += count,
            News::Unlisted(failure) => self.unread.push(failure),
            News::Image(spec, read) => {
                self.read += 1;
                match read {
                    Some(Ok(watchers)) => self.images.push((spec, watchers)),
                    Some(Err(failure)) => self.unread.push(failure),
                    None => {} // gone since it was listed
                }
            }
            News::Over => self.over = true,
        }
    }

    fn finish(mut self, connection: &Connection) -> Reading<Watches> {
        let late = |what: String| Failure::errno(what, ETIMEDOUT);
        let (fsid, watch_timeout) = match self.cluster {
            Some(Ok(cluster)) => cluster,
            Some(Err(failure)) => return Reading::Unknown(failure),
            None => return Reading::Unknown(late(format!("connect to {}", place(connection)))),
        };
        if !self.over {
            let left = self.listed.saturating_sub(self.read);
            self.unread.push(late(format!("look at {left} or more images of {}", place(connection))));
        }
        Reading::Known(Watches { fsid, images: self.images, unread: self.unread, watch_timeout })
    }
}

struct Job {
    connection: Connection,
    pools: Vec<PoolName>,
    deadline: Duration,
}

impl Job {
    /// The receiver may be gone at any time, which is no failure: nobody wants the rest then.
    fn run(&self, tell: &Sender<News>, wanted: &Wanted) {
        let session = match connect(&self.connection, self.deadline) {
            Ok(session) => session,
            Err(failure) => return drop(tell.send(News::Connected(Err(failure)))),
        };
        let fsid = session.fsid().map_err(|errno| Failure::errno("read the cluster's fsid", errno));
        let _ = tell.send(News::Connected(fsid.map(|fsid| (fsid, self.watch_timeout(&session)))));
        for (pool, namespace) in self.pools.iter().take_while(|_| wanted.still()) {
            if let Err(failure) = look_through(&session, (pool, namespace.as_deref()), tell, wanted) {
                let _ = tell.send(News::Unlisted(failure));
            }
        }
        if wanted.still() {
            let _ = tell.send(News::Over);
        }
    }

    fn watch_timeout(&self, session: &Cluster) -> Option<Duration> {
        self.connection.conf.as_ref()?;
        let told = session.option("osd_client_watch_timeout").ok()?;
        told.trim().parse().ok().map(Duration::from_secs)
    }
}

fn look_through(
    session: &Arc<Cluster>,
    (pool, namespace): (&str, Option<&str>),
    tell: &Sender<News>,
    wanted: &Wanted,
) -> Result<(), Failure> {
    let ioctx = match session.pool(pool, namespace) {
        Ok(ioctx) => ioctx,
        // A storage without its pool has no images.
        Err(ENOENT) => return Ok(()),
        Err(errno) => return Err(Failure::errno(format!("look into the pool {pool}"), errno)),
    };
    let spec = |image: String| Spec { pool: pool.to_owned(), namespace: namespace.map(str::to_owned), image };
    let specs: Vec<Spec> = list::image_names(&ioctx)?.into_iter().map(spec).collect();
    let _ = tell.send(News::Listed(specs.len()));
    side_by_side(&specs, wanted, |_, spec| {
        let _ = tell.send(News::Image(spec.clone(), watchers(&ioctx, spec)));
    });
    Ok(())
}

/// `None` if there is no such image any more, or none that anybody could open.
fn watchers(pool: &Arc<Pool>, spec: &Spec) -> Option<Result<Vec<Watcher>, Failure>> {
    let image = match pool.open(&spec.image) {
        Ok(image) => image,
        Err(failure) if failure.errno == Some(ENOENT) => return None,
        Err(failure) => return Some(Err(failure)),
    };
    Some(match read_watchers(spec, &image) {
        Reading::Known(watchers) => Ok(watchers),
        Reading::Unknown(failure) => Err(failure),
    })
}
