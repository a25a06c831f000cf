//! Reads a cluster and any number of its images over one connection, within a deadline.

use crate::ceph::cluster::{ClusterFacts, Health, InactivePool};
use crate::ceph::connect::{connect, place};
use crate::ceph::deadline;
use crate::ceph::deadline::Wanted;
use crate::ceph::ffi::{Cluster, Image, Opening, libraries};
use crate::ceph::image::ImageReading;
use crate::ceph::missing;
use crate::ceph::read_image::{ImagePool, read_facts};
use crate::ceph::{image_names, monitors};
use crate::pve::connection::Connection;
use crate::rbd::blocklist::BlocklistEntry;
use crate::rbd::features::Features;
use crate::rbd::spec::Spec;
use crate::reading::{Failure, Origin, Reading};
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// Images that are read at one time.
const READERS: usize = 16;

/// Reads what the monitors say and what Ceph knows of each image of `specs` (any pools and namespaces of one
/// cluster), in the order of `specs`. Registers no watch and changes nothing. librbd is loaded only if there are specs.
///
/// It returns by `deadline` and at most a second. What was not read by then is `Unknown` and [`Origin::Late`]; what was, is
/// returned. Errno 110 is Ceph's own word, which it is given less time for. The whole is `Unknown` only if there was no
/// connection: errno 110 nobody answered, 13 or 1 a wrong key, 2 no ceph.conf or no keyring, none if librados is not
/// installed.
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
    InactivePools(Reading<Vec<InactivePool>>),
    OnlyProtocol(Option<String>),
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
    inactive_pools: Option<Reading<Vec<InactivePool>>>,
    only_protocol: Option<String>,
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
            News::OnlyProtocol(protocol) => self.only_protocol = protocol,
            News::InactivePools(reading) => self.inactive_pools = Some(reading),
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
        let late = |what: String| if ended { given_up(what) } else { Failure::late(what) };
        let fsid = match self.fsid {
            Some(Ok(fsid)) => fsid,
            Some(Err(failure)) => return Reading::Unknown(failure),
            None => return Reading::Unknown(late(format!("connect to {}", place(connection)))),
        };
        let cluster = ClusterFacts {
            fsid,
            own_addresses: self.own_addresses,
            full_pools: self.full_pools,
            inactive_pools: self.inactive_pools,
            only_protocol: self.only_protocol,
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

/// A thread ended in the middle of its work, most likely since no further one could be had.
fn given_up(what: String) -> Failure {
    Failure::new(
        what,
        "given up in the middle by rbd-preflight itself; is there a limit on memory or processes?",
    )
    .on(Origin::Own)
}

fn or_late<T>(reading: Option<Reading<T>>, what: &str) -> Reading<T> {
    reading.unwrap_or_else(|| Reading::Unknown(Failure::late(what)))
}

/// What the worker is to do.
struct Job {
    connection: Connection,
    specs: Vec<Spec>,
    pools: Vec<PoolName>,
    deadline: Duration,
}

impl Job {
    /// The receiver of news may be gone at any time, which is no failure: nobody wants the rest then. Gives back what is to be closed.
    fn run(self, tell: &Sender<News>, wanted: &Wanted) -> Option<(Vec<Image>, Arc<Cluster>)> {
        if !self.specs.is_empty() {
            // While the monitors are asked. Whoever needs librbd waits for it, and tells if it is missing.
            thread::spawn(|| drop(libraries()));
        }
        let cluster = match connect(&self.connection, self.deadline) {
            Ok(cluster) => cluster,
            Err(failure) => {
                let _ = tell.send(News::Connected(Err(failure)));
                return None;
            }
        };
        let fsid = cluster.fsid().map_err(|errno| Failure::errno("read the cluster's fsid", errno));
        let _ = tell.send(News::Connected(fsid));
        let _ = tell.send(News::OwnAddresses(monitors::read_own_addresses(&cluster)));
        let open = thread::scope(|scope| {
            scope.spawn(|| ask_monitors(&cluster, tell));
            scope.spawn(|| list_pools(&cluster, &self.pools, tell, wanted));
            read_images(&cluster, &self.specs, tell, wanted)
        });
        Some((open, cluster))
    }
}

fn ask_monitors(cluster: &Cluster, tell: &Sender<News>) {
    let _ = tell.send(News::DefaultFeatures(monitors::read_default_features(cluster)));
    let _ = tell.send(News::BlocklistExpiry(monitors::read_blocklist_expiry(cluster)));
    let _ = tell.send(News::Blocklist(monitors::read_blocklist(cluster)));
    let _ = tell.send(News::OnlyProtocol(monitors::read_only_protocol(cluster)));
    let health = monitors::read_health(cluster);
    let full = health.known().is_some_and(Health::is_full);
    let inactive = health.known().is_some_and(Health::has_inactive_groups);
    let _ = tell.send(News::Health(health));
    if !full && !inactive {
        return;
    }
    let pools = monitors::read_pools(cluster);
    if full {
        let _ = tell.send(News::FullPools(monitors::full_pools(&pools)));
    }
    if inactive {
        let _ = tell.send(News::InactivePools(monitors::read_inactive_pools(cluster, &pools)));
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

/// Each reader takes the next image that nobody has taken, so one that is slow keeps few others waiting. Gives back those that
/// are still open.
fn read_images(cluster: &Arc<Cluster>, specs: &[Spec], tell: &Sender<News>, wanted: &Wanted) -> Vec<Image> {
    let mut pools = HashMap::new();
    let look_for = |Spec { pool, namespace, .. }: &Spec| {
        let namespace = namespace.as_deref();
        Arc::new(cluster.pool(pool, namespace).map(ImagePool::new))
    };
    let images: Vec<_> = specs
        .iter()
        .map(|spec| {
            let pool = pools.entry((&spec.pool, &spec.namespace)).or_insert_with(|| look_for(spec));
            (spec, Arc::clone(pool))
        })
        .collect();
    thread::scope(|scope| {
        // Meanwhile: an image's reader needs it last.
        for pool in pools.values() {
            scope.spawn(|| pool.as_ref().as_ref().map(ImagePool::has_mirroring));
        }
        // librbd makes a timer with the first image that it opens, and whoever opens another one meanwhile spins.
        let first = images.first().filter(|_| images.len() > 1);
        let first =
            first.and_then(|(spec, pool)| Some(pool.as_ref().as_ref().ok()?.pool.begin_to_open(&spec.image)));
        let first = Mutex::new(first);
        let last = side_by_side(&images, wanted, |index, (spec, pool)| {
            let begun = if index == 0 { first.lock().ok().and_then(|mut first| first.take()) } else { None };
            let (reading, image) = match &**pool {
                Ok(pool) => read_image(pool, spec, begun),
                Err(errno) => (missing::of_pool(spec, *errno), None),
            };
            let _ = tell.send(News::Image(index, reading));
            image
        });
        last.into_iter().flatten().collect()
    })
}

/// Does something with each of some things, a number of them at a time. What `with` gives is kept until its thread takes the
/// next thing; what each thread had last is given back.
pub(crate) fn side_by_side<T: Sync, Kept: Send>(
    all: &[T],
    wanted: &Wanted,
    with: impl Fn(usize, &T) -> Kept + Sync,
) -> Vec<Kept> {
    let next = AtomicUsize::new(0);
    let take = || {
        let index = next.fetch_add(1, Ordering::Relaxed);
        all.get(index).map(|one| (index, one))
    };
    let work = || {
        let mut kept = None;
        while let Some((index, one)) = take().filter(|_| wanted.still()) {
            drop(kept.take());
            kept = Some(with(index, one));
        }
        kept
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..READERS.min(all.len())).map(|_| scope.spawn(work)).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok().flatten()).collect()
    })
}

/// What was read of an image, and the image itself if it could be opened.
fn read_image(
    pool: &ImagePool,
    spec: &Spec,
    begun: Option<Result<Opening, Failure>>,
) -> (ImageReading, Option<Image>) {
    match begun.map_or_else(|| pool.pool.open(&spec.image), |begun| begun.and_then(Opening::wait)) {
        Ok(image) => {
            let facts = read_facts(spec, &image, pool);
            (
                facts.map_or_else(ImageReading::Unknown, |facts| ImageReading::Found(Box::new(facts))),
                Some(image),
            )
        }
        Err(failure) => match failure.errno {
            Some(errno) => (missing::of_image(spec, &pool.pool, errno), None),
            None => (ImageReading::Unknown(failure), None),
        },
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
        assert_eq!(cluster.health.failure().unwrap().origin, Origin::Late);
        let late = Failure::late("open and read rbd/a");
        assert_eq!(images, &[ImageReading::Unknown(late), ImageReading::ImageMissing]);
    }

    #[test]
    fn no_word_at_all_is_not_known_to_be_the_clusters_fault() {
        let reading = Gathered::default().finish(&connection(), &[], false);
        let failure = reading.failure().unwrap();
        assert_eq!(failure.what, "connect to Ceph as client.admin, conf /nonexistent/ceph.conf");
        assert_eq!((failure.origin, failure.is_no_answer()), (Origin::Late, false));
    }
}
