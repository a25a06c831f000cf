//! Which images of some pools some clients have open: whether a client that does not watch one image lives with others.
//!
//! A watch is a registration on an image's header object, which the OSD drops `osd_client_watch_timeout` after it last
//! heard of its client (`Watch::got_ping` in Ceph's `src/osd/Watch.cc`). Only who opens an image for writing has one.
//! No image is opened for this: there may be thousands, and some may be in a state that ends librbd. Each is asked for its
//! lock, one short request: whoever writes to an image with exclusive-lock owns that. Who watches the images whose locks such
//! a client owns is then asked by `rados`, and of those that nobody has locked as many as there is time for.

use crate::ceph::connect::{connect, place};
use crate::ceph::deadline;
use crate::ceph::deadline::Wanted;
use crate::ceph::ffi::{Cluster, Pool};
use crate::ceph::image_names;
use crate::ceph::objects::header;
use crate::ceph::read_cluster::{PoolName, side_by_side};
use crate::pve::connection::{Connection, arguments};
use crate::rbd::address::bare_address;
use crate::rbd::lock::Watcher;
use crate::rbd::spec::Spec;
use crate::reading::{Failure, Reading, error_text};
use crate::sys::command::Command;
use crate::sys::process::{Runner, Status, System};
use nix::libc::{ENOENT, ERANGE, ETIMEDOUT};
use std::collections::BTreeSet;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long `rados` may take for one object at most.
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
    /// The pools whose images could not even be listed: this user may not.
    pub closed: Vec<(PoolName, Failure)>,
    /// `osd_client_watch_timeout`, as it holds for this client: one that is set for OSDs alone is not seen. `None` where
    /// there is no ceph.conf that could have set it.
    pub watch_timeout: Option<Duration>,
}

/// What is looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Search {
    /// Pools, and namespaces in them, of one cluster.
    pub pools: Vec<PoolName>,
    /// Images of which it is known who watches them.
    pub known: BTreeSet<Spec>,
    /// The clients' numbers: 4127 is `client.4127`.
    pub clients: Vec<u64>,
    /// How long images are looked at that nobody has locked; what is left over then is left out.
    pub others: Duration,
}

/// Looks for clients at the images of some pools, over a connection of its own. Registers no watch and changes nothing.
/// Returns by `deadline` and at most a second; what had to be looked at and was not by then is unread.
pub fn read_watches(connection: &Connection, search: &Search, deadline: Duration) -> Reading<Watches> {
    let (mut cluster, mut over) = (None, false);
    let (mut images, mut unread, mut closed) = (Vec::new(), Vec::new(), Vec::new());
    let job = Job { connection: connection.clone(), search: search.clone(), deadline };
    let hear = |news| match news {
        News::Connected(result) => cluster = Some(result),
        News::Image(spec, watchers) => images.push((spec, watchers)),
        News::Unread(failure) => unread.push(failure),
        News::Closed(pool, failure) => closed.push((pool, failure)),
        News::Over => over = true,
    };
    if let Err(failure) = deadline::run(deadline, move |tell, wanted| job.run(tell, wanted), hear) {
        return Reading::Unknown(failure);
    }
    let late = |what: &str| Failure::errno(format!("{what} {}", place(connection)), ETIMEDOUT);
    match cluster {
        Some(Ok((fsid, watch_timeout))) => {
            if !over {
                unread.push(late("look through all images of"));
            }
            Reading::Known(Watches { fsid, images, unread, closed, watch_timeout })
        }
        Some(Err(failure)) => Reading::Unknown(failure),
        None => Reading::Unknown(late("connect to")),
    }
}

enum News {
    Connected(Result<(String, Option<Duration>), Failure>),
    Image(Spec, Vec<Watcher>),
    Unread(Failure),
    Closed(PoolName, Failure),
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
        for place in &self.search.pools {
            match listed(&session, &place.0, place.1.as_deref()) {
                Ok(more) => images.extend(more),
                Err(failure) => drop(tell.send(News::Closed(place.clone(), failure))),
            }
        }
        images.retain(|image| !self.search.known.contains(&image.spec));
        let locks: Mutex<Vec<(usize, Lock)>> = Mutex::default();
        side_by_side(&images, wanted, |index, image| match self.lock_of(image) {
            Ok(Lock::Others) => {}
            Ok(lock) => locks.lock().unwrap_or_else(PoisonError::into_inner).push((index, lock)),
            Err(failure) => drop(tell.send(News::Unread(failure))),
        });
        let locks = locks.into_inner().unwrap_or_else(PoisonError::into_inner);
        let (theirs, free): (Vec<_>, Vec<_>) = locks.into_iter().partition(|(_, lock)| *lock == Lock::Theirs);
        side_by_side(&theirs, wanted, |_, (index, _)| {
            let image = &images[*index];
            let _ = tell.send(match watchers(&self.connection, image) {
                Ok(watchers) => News::Image(image.spec.clone(), watchers),
                Err(failure) => News::Unread(failure),
            });
        });
        if wanted.still() {
            let _ = tell.send(News::Over);
        }
        let until = Instant::now() + self.search.others;
        side_by_side(&free, wanted, |_, (index, _)| {
            let image = &images[*index];
            if let Some(Ok(watchers)) = (Instant::now() < until).then(|| watchers(&self.connection, image)) {
                let _ = tell.send(News::Image(image.spec.clone(), watchers));
            }
        });
    }

    fn watch_timeout(&self, session: &Cluster) -> Option<Duration> {
        self.connection.conf.as_ref()?;
        let told = session.option("osd_client_watch_timeout").ok()?;
        told.trim().parse().ok().map(Duration::from_secs)
    }

    fn lock_of(&self, image: &Listed) -> Result<Lock, Failure> {
        match image.pool.class_method(c"lock", &header(&image.id), "get_info", &LOCK_NAME) {
            Ok(answer) if self.search.clients.iter().any(|client| names(&answer, *client)) => {
                Ok(Lock::Theirs)
            }
            Ok(answer) if has_owners(&answer) => Ok(Lock::Others),
            Ok(_) => Ok(Lock::Nobodys),
            // No header, so that nobody can have it open; or more owners than an exclusive lock has.
            Err(ENOENT) => Ok(Lock::Others),
            Err(ERANGE) => Ok(Lock::Theirs),
            Err(errno) => Err(Failure::errno(format!("read the lock of {}", image.spec), errno)),
        }
    }
}

/// Who owns the lock of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lock {
    /// One of the clients that are looked for, or perhaps one of them.
    Theirs,
    /// Certainly none of those.
    Others,
    /// Nobody: it may be open all the same.
    Nobodys,
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

/// Whether an answer to `get_info` names an owner at all: their number comes after six bytes of version and length.
fn has_owners(answer: &[u8]) -> bool {
    answer.get(6..10) != Some(&[0; 4])
}

fn listed(session: &Arc<Cluster>, pool: &str, namespace: Option<&str>) -> Result<Vec<Listed>, Failure> {
    let ioctx = match session.pool(pool, namespace) {
        Ok(ioctx) => ioctx,
        // A storage without its pool has no images.
        Err(ENOENT) => return Ok(Vec::new()),
        Err(errno) => return Err(Failure::errno(format!("look into the pool {pool}"), errno)),
    };
    let all = image_names::images(&ioctx)?.into_iter().map(|(image, id)| Listed {
        pool: ioctx.clone(),
        spec: Spec { pool: pool.to_owned(), namespace: namespace.map(str::to_owned), image },
        id,
    });
    Ok(all.collect())
}

fn watchers(connection: &Connection, image: &Listed) -> Result<Vec<Watcher>, Failure> {
    listed_by_rados(
        connection,
        (&image.spec.pool, image.spec.namespace.as_deref()),
        &header(&image.id),
        PATIENCE,
    )
}

/// Who watches an object of a pool and namespace; nobody, if there is none. Asked for at most `limit`. librados has no call for that in C.
///
/// # Errors
/// What `rados` said, or that it could not be run.
pub(super) fn listed_by_rados(
    connection: &Connection,
    (pool, namespace): (&str, Option<&str>),
    object: &str,
    limit: Duration,
) -> Result<Vec<Watcher>, Failure> {
    let arguments = arguments(pool, namespace, connection);
    let command = Command::new("rados").args(arguments).args(["listwatchers", object]);
    let failed = |message: String| Failure::new(format!("list the watchers of {object} in {pool}"), message);
    let outcome =
        System.run(&command.deadline(PATIENCE.min(limit))).map_err(|error| failed(error_text(&error)))?;
    match outcome.status {
        Status::Exit(0) => {
            let text = String::from_utf8_lossy(&outcome.stdout);
            let one = |line| a_watcher(line).ok_or_else(|| failed(format!("not understood: {line}")));
            text.lines().map(one).collect()
        }
        // Of the object itself: a pool, a keyring or a ceph.conf that is not there is told with the same errno.
        _ if outcome.said().contains(&format!("error listing watchers {pool}/{object}: (2)")) => {
            Ok(Vec::new())
        }
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
        assert!(has_owners(answer) && !has_owners(b"\x01\x01\x09\0\0\0\0\0\0\0\0\0\0\0\0"));
    }

    #[test]
    fn what_rados_lists_is_a_watcher() {
        let watcher = Watcher { address: "127.0.0.1:0/3016423158".to_owned(), client: 4127, cookie: 1 };
        assert_eq!(a_watcher("watcher=127.0.0.1:0/3016423158 client.4127 cookie=1"), Some(watcher));
        assert_eq!(a_watcher("watcher= client.4127 cookie="), None);
    }
}
