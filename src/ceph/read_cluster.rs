//! Reads a cluster and any number of its images over one connection, within a deadline.

use crate::ceph::cluster::{BlocklistEntry, ClusterFacts, Health};
use crate::ceph::connect::{connect, place};
use crate::ceph::deadline;
use crate::ceph::deadline::Wanted;
use crate::ceph::ffi::{Cluster, Errno, Pool, libraries};
use crate::ceph::image::{ImageReading, Spec};
use crate::ceph::missing;
use crate::ceph::read_image::read_facts;
use crate::ceph::{image_names, monitors};
use crate::pve::connection::Connection;
use crate::rbd::features::Features;
use crate::reading::{Failure, Origin, Reading};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

/// `ETIMEDOUT`.
const ETIMEDOUT: Errno = 110;
/// Images that are read at one time.
const READERS: usize = 16;

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
    let ended = deadline::run(deadline, move |tell, wanted| job.run(tell, wanted), hear);
    let listed = std::mem::take(&mut gathered.listed).into_iter().zip(pools);
    let listed = listed.map(|(names, pool)| or_late(names, &format!("list the images of {}", pool.0)));
    let listed = listed.collect();
    match ended {
        Ok(ended) => (gathered.finish(connection, specs, ended), listed),
        Err(failure) => (Reading::Unknown(failure.on(Origin::Own)), listed),
    }
}

/// What the worker tells as soon as it knows it.
enum News {
    Connected(Result<String, Failure>),
    OwnAddresses(Vec<String>),
    FullPools(Reading<Vec<String>>),
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
    own_addresses: Vec<String>,
    full_pools: Option<Reading<Vec<String>>>,
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
            News::OwnAddresses(addresses) => self.own_addresses = addresses,
            News::FullPools(reading) => self.full_pools = Some(reading),
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

    /// What was heard; what was not is late, or was never told by a worker that has `ended`: it died of a limit.
    fn finish(self, connection: &Connection, specs: &[Spec], ended: bool) -> ClusterReading {
        let late = |what: String| if ended { given_up(what) } else { late(what) };
        let fsid = match self.fsid {
            Some(Ok(fsid)) => fsid,
            Some(Err(failure)) => return Reading::Unknown(failure),
            None => return Reading::Unknown(late(format!("connect to {}", place(connection)))),
        };
        let cluster = ClusterFacts {
            fsid,
            own_addresses: self.own_addresses,
            full_pools: self.full_pools,
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

/// A thread ended in the middle of its work, most likely since no further one could be had.
fn given_up(what: String) -> Failure {
    Failure::new(
        what,
        "given up in the middle by rbd-preflight itself; is there a limit on memory or processes?",
    )
    .on(Origin::Own)
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
        if !self.specs.is_empty() {
            // While the monitors are asked. Whoever needs librbd waits for it, and tells if it is missing.
            thread::spawn(|| drop(libraries()));
        }
        let cluster = match connect(&self.connection, self.deadline) {
            Ok(cluster) => cluster,
            Err(failure) => {
                let _ = tell.send(News::Connected(Err(failure)));
                return;
            }
        };
        let fsid = cluster.fsid().map_err(|errno| Failure::errno("read the cluster's fsid", errno));
        let _ = tell.send(News::Connected(fsid));
        let _ = tell.send(News::OwnAddresses(monitors::read_own_addresses(&cluster)));
        thread::scope(|scope| {
            scope.spawn(|| ask_monitors(&cluster, tell));
            scope.spawn(|| list_pools(&cluster, &self.pools, tell, wanted));
            read_images(&cluster, &self.specs, tell, wanted);
        });
    }
}

fn ask_monitors(cluster: &Cluster, tell: &Sender<News>) {
    let _ = tell.send(News::DefaultFeatures(monitors::read_default_features(cluster)));
    let _ = tell.send(News::BlocklistExpiry(monitors::read_blocklist_expiry(cluster)));
    let _ = tell.send(News::Blocklist(monitors::read_blocklist(cluster)));
    let health = monitors::read_health(cluster);
    let full = health.known().is_some_and(Health::is_full);
    let _ = tell.send(News::Health(health));
    if full {
        let _ = tell.send(News::FullPools(monitors::read_full_pools(cluster)));
    }
}

fn list_pools(cluster: &Arc<Cluster>, pools: &[PoolName], tell: &Sender<News>, wanted: &Wanted) {
    for (index, (pool, namespace)) in pools.iter().enumerate() {
        if !wanted.still() {
            return;
        }
        let failure = |errno| Failure::errno(format!("list the images of {pool}"), errno);
        let names = cluster
            .pool(pool, namespace.as_deref())
            .map_err(failure)
            .and_then(|pool| image_names::image_names(&pool));
        let _ = tell.send(News::Listed(index, names.into()));
    }
}

/// Pools that were looked for, by name and namespace.
type Pools<'a> = HashMap<(&'a str, Option<&'a str>), Result<Arc<Pool>, Errno>>;

/// Each reader takes the next image that nobody has taken, so one that is slow keeps few others waiting.
fn read_images(cluster: &Arc<Cluster>, specs: &[Spec], tell: &Sender<News>, wanted: &Wanted) {
    let mut pools = Pools::new();
    for Spec { pool, namespace, .. } in specs {
        let namespace = namespace.as_deref();
        pools.entry((pool, namespace)).or_insert_with(|| cluster.pool(pool, namespace));
    }
    side_by_side(specs, wanted, |index, spec| {
        read_image(&pools, spec, |reading| {
            let _ = tell.send(News::Image(index, reading));
        });
    });
}

/// Does something with each of some things, a number of them at a time.
pub(crate) fn side_by_side<T: Sync>(all: &[T], wanted: &Wanted, with: impl Fn(usize, &T) + Sync) {
    let next = AtomicUsize::new(0);
    let take = || {
        let index = next.fetch_add(1, Ordering::Relaxed);
        all.get(index).map(|one| (index, one))
    };
    thread::scope(|scope| {
        for _ in 0..READERS.min(all.len()) {
            scope.spawn(|| {
                while let Some((index, one)) = take().filter(|_| wanted.still()) {
                    with(index, one);
                }
            });
        }
    });
}

/// Tells what was read before the image is closed: nobody need wait for that.
fn read_image(pools: &Pools, spec: &Spec, tell: impl FnOnce(ImageReading)) {
    let pool = match pools.get(&(spec.pool.as_str(), spec.namespace.as_deref())) {
        Some(Ok(pool)) => pool,
        Some(Err(errno)) => return tell(missing::of_pool(spec, *errno)),
        None => return, // every spec's pool was looked for
    };
    match pool.open(&spec.image) {
        Ok(image) => tell(
            read_facts(spec, &image)
                .map_or_else(ImageReading::Unknown, |facts| ImageReading::Found(Box::new(facts))),
        ),
        Err(failure) => tell(match failure.errno {
            Some(errno) => missing::of_image(spec, pool, errno),
            None => ImageReading::Unknown(failure),
        }),
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
        let reading = gathered.finish(&connection(), &[spec("a"), spec("b")], false);
        let (cluster, images) = reading.known().unwrap();
        assert_eq!(cluster.blocklist_expire_seconds, Reading::Known(0));
        assert_eq!(cluster.health.failure().unwrap().errno, Some(110));
        let late = Failure::errno("open and read rbd/a", 110);
        assert_eq!(images, &[ImageReading::Unknown(late), ImageReading::ImageMissing]);
    }

    #[test]
    fn no_word_at_all_is_a_connection_that_timed_out() {
        let reading = Gathered::default().finish(&connection(), &[], false);
        let expected =
            "connect to Ceph as client.admin, conf /nonexistent/ceph.conf: (110) Connection timed out";
        assert_eq!(reading.failure().unwrap().to_string(), expected);
    }
}
