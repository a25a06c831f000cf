//! Which images of some pools some clients have open: whether a client that does not watch one image lives with others.
//!
//! A watch is a registration on an image's header object, which the OSD drops `osd_client_watch_timeout` after it last
//! heard of its client (`Watch::got_ping` in Ceph's `src/osd/Watch.cc`). Only who opens an image for writing has one.
//! To ask for watches librbd has to open the image, which takes milliseconds; to ask for its lock takes one short request.
//! So first each image is asked for its lock: whoever writes to an image with exclusive-lock owns that. The images whose
//! locks such a client owns are then looked at, and of all others as many as there is time for.

use crate::ceph::alive::bare_address;
use crate::ceph::background::{self, Wanted};
use crate::ceph::binding::{Cluster, Errno, Pool};
use crate::ceph::connect::{connect, place};
use crate::ceph::facts::read_watchers;
use crate::ceph::image::{Spec, Watcher};
use crate::ceph::list;
use crate::ceph::read::{PoolName, side_by_side};
use crate::process::{Command, Runner, Status, System};
use crate::pve::connection::{Connection, arguments};
use crate::reading::{Failure, Reading};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

const ENOENT: Errno = 2;
const ERANGE: Errno = 34;
const ETIMEDOUT: Errno = 110;
/// How long `rados` may take for an image that cannot be opened.
const PATIENCE: Duration = Duration::from_secs(5);

/// What was seen of the images of some pools.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watches {
    /// The cluster's fsid.
    pub fsid: String,
    /// The images that were looked at, and the addresses of those who watch each.
    pub images: Vec<(Spec, Vec<Watcher>)>,
    /// What had to be looked at and could not be, and why: one of the clients may have it open.
    pub unread: Vec<Failure>,
    /// `osd_client_watch_timeout`, as it holds for this client: one that is set for OSDs alone is not seen. `None` where
    /// there is no ceph.conf that could have set it.
    pub watch_timeout: Option<Duration>,
}

/// What is looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Search {
    /// Pools, and namespaces in them, of one cluster.
    pub pools: Vec<PoolName>,
    /// The clients' numbers: 4127 is `client.4127`.
    pub clients: Vec<u64>,
    /// How long images are looked at that none of the clients has locked; what is left over then is left out.
    pub others: Duration,
}

/// Looks for clients at the images of some pools, over a connection of its own. Registers no watch and changes nothing.
/// Returns by `deadline` and at most a second; what had to be looked at and was not by then is unread.
pub fn read_watches(connection: &Connection, search: &Search, deadline: Duration) -> Reading<Watches> {
    let (mut cluster, mut over) = (None, false);
    let (mut images, mut unread) = (Vec::new(), Vec::new());
    let job = Job { connection: connection.clone(), search: search.clone(), deadline };
    let hear = |news| match news {
        News::Connected(result) => cluster = Some(result),
        News::Image(spec, watchers) => images.push((spec, watchers)),
        News::Unread(failure) => unread.push(failure),
        News::Over => over = true,
    };
    if let Err(failure) = background::run(deadline, move |tell, wanted| job.run(tell, wanted), hear) {
        return Reading::Unknown(failure);
    }
    let late = |what: &str| Failure::errno(format!("{what} {}", place(connection)), ETIMEDOUT);
    match cluster {
        Some(Ok((fsid, watch_timeout))) => {
            if !over {
                unread.push(late("look through all images of"));
            }
            Reading::Known(Watches { fsid, images, unread, watch_timeout })
        }
        Some(Err(failure)) => Reading::Unknown(failure),
        None => Reading::Unknown(late("connect to")),
    }
}

enum News {
    Connected(Result<(String, Option<Duration>), Failure>),
    Image(Spec, Vec<Watcher>),
    Unread(Failure),
    /// All that had to be looked at was.
    Over,
}

struct Job {
    connection: Connection,
    search: Search,
    deadline: Duration,
}

/// An image, where it is.
struct Listed {
    pool: Arc<Pool>,
    spec: Spec,
    id: String,
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
        let mut images = Vec::new();
        for (pool, namespace) in &self.search.pools {
            match listed(&session, pool, namespace.as_deref()) {
                Ok(more) => images.extend(more),
                Err(failure) => drop(tell.send(News::Unread(failure))),
            }
        }
        let locked: Vec<AtomicBool> = images.iter().map(|_| AtomicBool::new(false)).collect();
        side_by_side(&images, wanted, |index, image| match self.has_locked(image) {
            Ok(false) => {}
            Ok(true) => locked[index].store(true, Ordering::Relaxed),
            Err(failure) => drop(tell.send(News::Unread(failure))),
        });
        let (locked, others): (Vec<_>, Vec<_>) =
            images.into_iter().zip(locked).partition(|(_, locked)| locked.load(Ordering::Relaxed));
        side_by_side(&locked, wanted, |_, (image, _)| {
            let read = watchers(image).or_else(|failure| by_rados(&self.connection, image, &failure));
            let _ = tell.send(match read {
                Ok(watchers) => News::Image(image.spec.clone(), watchers),
                Err(failure) => News::Unread(failure),
            });
        });
        if wanted.still() {
            let _ = tell.send(News::Over);
        }
        let until = Instant::now() + self.search.others;
        side_by_side(&others, wanted, |_, (image, _)| {
            if let Some(Ok(watchers)) = (Instant::now() < until).then(|| watchers(image)) {
                let _ = tell.send(News::Image(image.spec.clone(), watchers));
            }
        });
    }

    fn watch_timeout(&self, session: &Cluster) -> Option<Duration> {
        self.connection.conf.as_ref()?;
        let told = session.option("osd_client_watch_timeout").ok()?;
        told.trim().parse().ok().map(Duration::from_secs)
    }

    /// One of the clients owns the image's lock, or may own it.
    fn has_locked(&self, image: &Listed) -> Result<bool, Failure> {
        let answer = image.pool.class_method(c"lock", &header(&image.id), "get_info", &LOCK_NAME);
        match answer {
            Ok(answer) => Ok(self.search.clients.iter().any(|client| names(&answer, *client))),
            // No header, so that nobody can have it open; or more lockers than the exclusive lock has.
            Err(ENOENT) => Ok(false),
            Err(ERANGE) => Ok(true),
            Err(errno) => Err(Failure::errno(format!("read the lock of {}", image.spec), errno)),
        }
    }
}

/// `cls_lock_get_info_op` for the lock `rbd_lock` (Ceph's `src/cls/lock/cls_lock_ops.h`): version 1, compatible with 1,
/// twelve bytes, a name of eight.
const LOCK_NAME: [u8; 18] = *b"\x01\x01\x0c\0\0\0\x08\0\0\0rbd_lock";

/// Whether an answer to `get_info` names a client as an owner: `entity_name_t`, a byte for the kind (8 is a client) and
/// eight for the number. Those bytes may also come from something else in the answer, which costs one look more.
fn names(answer: &[u8], client: u64) -> bool {
    let mut name = [8_u8; 9];
    name[1..].copy_from_slice(&client.to_le_bytes());
    answer.windows(name.len()).any(|bytes| bytes == name)
}

fn header(id: &str) -> String {
    format!("rbd_header.{id}")
}

fn listed(session: &Arc<Cluster>, pool: &str, namespace: Option<&str>) -> Result<Vec<Listed>, Failure> {
    let ioctx = match session.pool(pool, namespace) {
        Ok(ioctx) => ioctx,
        // A storage without its pool has no images.
        Err(ENOENT) => return Ok(Vec::new()),
        Err(errno) => return Err(Failure::errno(format!("look into the pool {pool}"), errno)),
    };
    let all = list::images(&ioctx)?.into_iter().map(|(image, id)| Listed {
        pool: ioctx.clone(),
        spec: Spec { pool: pool.to_owned(), namespace: namespace.map(str::to_owned), image },
        id,
    });
    Ok(all.collect())
}

fn watchers(image: &Listed) -> Result<Vec<Watcher>, Failure> {
    match image.pool.open(&image.spec.image).map(|open| read_watchers(&image.spec, &open)) {
        Ok(Reading::Known(watchers)) => Ok(watchers),
        Ok(Reading::Unknown(failure)) | Err(failure) => Err(failure),
    }
}

/// The same of an image that cannot be opened, half made, damaged or without its parent: who has it open is still known
/// to its header.
fn by_rados(connection: &Connection, image: &Listed, why: &Failure) -> Result<Vec<Watcher>, Failure> {
    let place = (image.spec.pool.as_str(), image.spec.namespace.as_deref());
    listed_by_rados(connection, place, &header(&image.id))
        .map_err(|failure| Failure { what: format!("{why}; {}", failure.what), ..failure })
}

/// Who watches an object of a pool and namespace; nobody, if there is none. librados has no call for that in C.
///
/// # Errors
/// What `rados` said, or that it could not be run.
pub(super) fn listed_by_rados(
    connection: &Connection,
    (pool, namespace): (&str, Option<&str>),
    object: &str,
) -> Result<Vec<Watcher>, Failure> {
    let arguments = arguments(pool, namespace, connection);
    let command = Command::new("rados").args(arguments).args(["listwatchers", object]);
    let failed = |message: String| Failure::new(format!("list the watchers of {object} in {pool}"), message);
    let outcome = System.run(&command.deadline(PATIENCE)).map_err(|error| failed(format!("{error:#}")))?;
    match outcome.status {
        Status::Exit(0) => {
            let text = String::from_utf8_lossy(&outcome.stdout);
            let one = |line| a_watcher(line).ok_or_else(|| failed(format!("not understood: {line}")));
            text.lines().map(one).collect()
        }
        _ if outcome.said().contains("(2) No such file or directory") => Ok(Vec::new()),
        _ => Err(failed(outcome.said())),
    }
}

/// `watcher=127.0.0.1:0/3016423158 client.4127 cookie=1`.
fn a_watcher(line: &str) -> Option<Watcher> {
    let mut words = line.split_whitespace();
    let address = bare_address(words.next()?.strip_prefix("watcher=")?).to_owned();
    let client = words.next()?.strip_prefix("client.")?.parse().ok()?;
    let cookie = words.next()?.strip_prefix("cookie=")?.parse().ok()?;
    Some(Watcher { address, client, cookie })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_found_by_its_number_in_an_answer() {
        let answer = b"\x01\x01\x30\0\0\0\x01\0\0\0\x01\x01\x0d\0\0\0\x08\x1f\x10\0\0\0\0\0\0\x01\0\0\0a";
        assert!(names(answer, 4127) && !names(answer, 4128) && !names(answer, 31));
    }

    #[test]
    fn what_rados_lists_is_a_watcher() {
        let watcher = Watcher { address: "127.0.0.1:0/3016423158".to_owned(), client: 4127, cookie: 1 };
        assert_eq!(a_watcher("watcher=127.0.0.1:0/3016423158 client.4127 cookie=1"), Some(watcher));
        assert_eq!(a_watcher("watcher= client.4127 cookie="), None);
    }
}
