//! Reads a cluster and any number of its images over one connection, within a deadline.

use crate::ceph::absence;
use crate::ceph::background::{self, Wanted};
use crate::ceph::binding::{Errno, Image, Pool};
use crate::ceph::cluster::{BlocklistEntry, ClusterFacts, Health};
use crate::ceph::connect::{Session, place};
use crate::ceph::facts::read_facts;
use crate::ceph::features::Features;
use crate::ceph::image::{ImageReading, Spec};
use crate::ceph::{list, monitors};
use crate::pve::connection::Connection;
use crate::reading::{Failure, Reading};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// `ETIMEDOUT`.
const ETIMEDOUT: Errno = 110;
/// Images that are open at one time.
const OPEN_AT_ONCE: usize = 64;
/// Threads that read open images.
const READERS: usize = 8;

/// Reads what the monitors say and what Ceph knows of each image of `specs` (any pools and namespaces of one
/// cluster), in the order of `specs`. Registers no watch and changes nothing. librbd is loaded only if there are specs.
///
/// It returns by `deadline` and at most a second. What was not read by then is `Unknown` with errno 110; what was, is
/// returned. The whole is `Unknown` only if there was no connection: errno 110 nobody answered, 13 or 1 a wrong key,
/// 2 no ceph.conf or no keyring, none if librados is not installed.
pub fn read_cluster(
    connection: &Connection,
    specs: &[Spec],
    deadline: Duration,
) -> Reading<(ClusterFacts, Vec<ImageReading>)> {
    read_all(connection, &Wish { specs, ..Wish::default() }, deadline, &|| ()).0
}

/// What is wanted of a cluster.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wish<'a> {
    /// Images to read.
    pub specs: &'a [Spec],
    /// Pools, and namespaces in them, whose images' names are wanted.
    pub pools: &'a [PoolName],
}

/// A pool's name, and a namespace in it.
pub type PoolName = (String, Option<String>);

/// What was read of a cluster and its images.
pub type ClusterReading = Reading<(ClusterFacts, Vec<ImageReading>)>;

/// [`read_cluster`], and over the same connection the names of all images in some pools, in the order of the pools.
/// `on_image` is called after each image that was read.
pub fn read_all(
    connection: &Connection,
    wish: &Wish<'_>,
    deadline: Duration,
    on_image: &dyn Fn(),
) -> (ClusterReading, Vec<Reading<Vec<String>>>) {
    let Wish { specs, pools } = *wish;
    let mut gathered =
        Gathered { images: vec![None; specs.len()], listed: vec![None; pools.len()], ..Gathered::default() };
    let job = Job { connection: connection.clone(), specs: specs.to_vec(), pools: pools.to_vec(), deadline };
    let hear = |news| {
        if matches!(news, News::Image(..)) {
            on_image();
        }
        gathered.take(news);
    };
    let ended = background::run(deadline, move |tell, wanted| job.run(tell, wanted), hear);
    let listed = std::mem::take(&mut gathered.listed).into_iter().zip(pools);
    let listed = listed.map(|(names, pool)| or_late(names, &format!("list the images of {}", pool.0)));
    let listed = listed.collect();
    match ended {
        Ok(_) => (gathered.finish(connection, specs), listed),
        Err(failure) => (Reading::Unknown(failure), listed),
    }
}

/// What the worker tells as soon as it knows it.
enum News {
    Connected(Result<String, Failure>),
    Blocklist(Reading<Vec<BlocklistEntry>>),
    Health(Reading<Health>),
    DefaultFeatures(Reading<Features>),
    BlocklistExpiry(Reading<u64>),
    Image(usize, ImageReading),
    Listed(usize, Reading<Vec<String>>),
}

/// What has been heard so far.
#[derive(Default)]
struct Gathered {
    fsid: Option<Result<String, Failure>>,
    blocklist: Option<Reading<Vec<BlocklistEntry>>>,
    health: Option<Reading<Health>>,
    default_features: Option<Reading<Features>>,
    blocklist_expiry: Option<Reading<u64>>,
    images: Vec<Option<ImageReading>>,
    listed: Vec<Option<Reading<Vec<String>>>>,
}

impl Gathered {
    fn take(&mut self, news: News) {
        match news {
            News::Connected(result) => self.fsid = Some(result),
            News::Blocklist(reading) => self.blocklist = Some(reading),
            News::Health(reading) => self.health = Some(reading),
            News::DefaultFeatures(reading) => self.default_features = Some(reading),
            News::BlocklistExpiry(reading) => self.blocklist_expiry = Some(reading),
            News::Image(index, reading) => {
                if let Some(place) = self.images.get_mut(index) {
                    *place = Some(reading);
                }
            }
            News::Listed(index, names) => {
                if let Some(place) = self.listed.get_mut(index) {
                    *place = Some(names);
                }
            }
        }
    }

    fn finish(self, connection: &Connection, specs: &[Spec]) -> Reading<(ClusterFacts, Vec<ImageReading>)> {
        let fsid = match self.fsid {
            Some(Ok(fsid)) => fsid,
            Some(Err(failure)) => return Reading::Unknown(failure),
            None => return Reading::Unknown(late(format!("connect to {}", place(connection)))),
        };
        let cluster = ClusterFacts {
            fsid,
            blocklist: or_late(self.blocklist, "ask the monitors: osd blocklist ls"),
            health: or_late(self.health, "ask the monitors: health"),
            default_features: or_late(self.default_features, "read the option rbd_default_features"),
            blocklist_expire_seconds: or_late(
                self.blocklist_expiry,
                "read the option rbd_blocklist_expire_seconds",
            ),
        };
        let unread = |spec: &Spec| ImageReading::Unknown(late(format!("open and read {spec}")));
        let images = self.images.into_iter().zip(specs);
        let images = images.map(|(image, spec)| image.unwrap_or_else(|| unread(spec))).collect();
        Reading::Known((cluster, images))
    }
}

fn late(what: impl Into<String>) -> Failure {
    Failure::errno(what, ETIMEDOUT)
}

fn or_late<T>(reading: Option<Reading<T>>, what: &str) -> Reading<T> {
    reading.unwrap_or_else(|| Reading::Unknown(late(what)))
}

/// What the worker is to do.
struct Job {
    connection: Connection,
    specs: Vec<Spec>,
    pools: Vec<PoolName>,
    deadline: Duration,
}

impl Job {
    /// The receiver of news may be gone at any time, which is no failure: nobody wants the rest then.
    fn run(self, tell: &Sender<News>, wanted: &Wanted) {
        let session = match Session::open(&self.connection, self.deadline) {
            Ok(session) => session,
            Err(failure) => {
                let _ = tell.send(News::Connected(Err(failure)));
                return;
            }
        };
        let fsid = session.fsid().map_err(|errno| Failure::errno("read the cluster's fsid", errno));
        let _ = tell.send(News::Connected(fsid));
        thread::scope(|scope| {
            scope.spawn(|| ask_monitors(&session, tell));
            scope.spawn(|| list_pools(&session, &self.pools, tell, wanted));
            read_images(&session, &self.specs, tell, wanted);
        });
    }
}

fn ask_monitors(session: &Session, tell: &Sender<News>) {
    let _ = tell.send(News::DefaultFeatures(monitors::read_default_features(session)));
    let _ = tell.send(News::BlocklistExpiry(monitors::read_blocklist_expiry(session)));
    let _ = tell.send(News::Blocklist(monitors::read_blocklist(session)));
    let _ = tell.send(News::Health(monitors::read_health(session)));
}

fn list_pools(session: &Session, pools: &[PoolName], tell: &Sender<News>, wanted: &Wanted) {
    for (index, (pool, namespace)) in pools.iter().enumerate() {
        if !wanted.still() {
            return;
        }
        let failure = |errno| Failure::errno(format!("list the images of {pool}"), errno);
        let names = session
            .pool(pool, namespace.as_deref())
            .map_err(failure)
            .and_then(|pool| list::image_names(&pool));
        let _ = tell.send(News::Listed(index, names.into()));
    }
}

/// An image that librbd has opened, or the errno of opening it.
type Arrival = (usize, Arc<Pool>, Result<Image, Errno>);

/// Pools that were looked for, by name and namespace.
type Pools = HashMap<(String, Option<String>), Result<Arc<Pool>, Errno>>;

/// librbd opens many images at once in its own threads; each goes to a free reader as it arrives, so one that is slow
/// keeps no other waiting.
fn read_images(session: &Session, specs: &[Spec], tell: &Sender<News>, wanted: &Wanted) {
    let (arrive, arrivals) = mpsc::channel();
    let (leave, left) = mpsc::channel();
    let arrivals = Mutex::new(arrivals);
    thread::scope(|scope| {
        for _ in 0..READERS.min(specs.len()) {
            let leave = leave.clone();
            let arrivals = &arrivals;
            scope.spawn(move || read_arrivals(specs, arrivals, tell, &leave));
        }
        let mut pools = Pools::new();
        for (index, spec) in specs.iter().enumerate() {
            if index >= OPEN_AT_ONCE && left.recv().is_err() || !wanted.still() {
                break;
            }
            if let Err(reading) = start(session, &mut pools, index, spec, &arrive) {
                let _ = tell.send(News::Image(index, reading));
                let _ = leave.send(());
            }
        }
        drop(arrive);
    });
}

fn start(
    session: &Session,
    pools: &mut Pools,
    index: usize,
    spec: &Spec,
    arrive: &Sender<Arrival>,
) -> Result<(), ImageReading> {
    let pool = match pools.entry((spec.pool.clone(), spec.namespace.clone())) {
        Entry::Occupied(known) => known.into_mut(),
        Entry::Vacant(new) => new.insert(session.pool(&spec.pool, spec.namespace.as_deref())),
    };
    let pool = pool.as_ref().map_err(|errno| absence::of_pool(spec, *errno))?;
    let (arrive, held) = (arrive.clone(), Arc::clone(pool));
    let opened = move |image| {
        let _ = arrive.send((index, held, image));
    };
    pool.start_open(&spec.image, opened).map_err(ImageReading::Unknown)
}

fn read_arrivals(
    specs: &[Spec],
    arrivals: &Mutex<Receiver<Arrival>>,
    tell: &Sender<News>,
    leave: &Sender<()>,
) {
    loop {
        let arrival = arrivals.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((index, pool, opened)) = arrival else { return };
        let Some(spec) = specs.get(index) else { return };
        let reading = match opened {
            Ok(image) => read_facts(spec, &image)
                .map_or_else(ImageReading::Unknown, |facts| ImageReading::Found(Box::new(facts))),
            Err(errno) => absence::of_image(spec, &pool, errno),
        };
        let _ = tell.send(News::Image(index, reading));
        let _ = leave.send(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection() -> Connection {
        Connection {
            conf: Some("/nonexistent/ceph.conf".to_owned()),
            mon_host: None,
            user: "admin".to_owned(),
            keyring: None,
        }
    }

    fn spec(image: &str) -> Spec {
        Spec { pool: "rbd".to_owned(), namespace: None, image: image.to_owned() }
    }

    #[test]
    fn what_was_read_in_time_is_kept_and_the_rest_is_late() {
        let mut gathered = Gathered { images: vec![None; 2], ..Gathered::default() };
        gathered.take(News::Connected(Ok("f".to_owned())));
        gathered.take(News::BlocklistExpiry(Reading::Known(0)));
        gathered.take(News::Image(1, ImageReading::ImageMissing));
        let reading = gathered.finish(&connection(), &[spec("a"), spec("b")]);
        let (cluster, images) = reading.known().unwrap();
        assert_eq!(cluster.blocklist_expire_seconds, Reading::Known(0));
        assert_eq!(cluster.health.failure().unwrap().errno, Some(110));
        let late = Failure::errno("open and read rbd/a", 110);
        assert_eq!(images, &[ImageReading::Unknown(late), ImageReading::ImageMissing]);
    }

    #[test]
    fn no_word_at_all_is_a_connection_that_timed_out() {
        let reading = Gathered::default().finish(&connection(), &[]);
        let expected =
            "connect to Ceph as client.admin, conf /nonexistent/ceph.conf: (110) Connection timed out";
        assert_eq!(reading.failure().unwrap().to_string(), expected);
    }
}
