//! A connection that is kept: who looks every half minute does not log in anew each time.

use crate::ceph::connect::{connect, place};
use crate::ceph::deadline;
use crate::ceph::deadline::Wanted;
use crate::ceph::ffi::Cluster;
use crate::ceph::monitors::{read_blocklist, read_own_addresses};
use crate::pve::connection::Connection;
use crate::rbd::address::bare_address;
use crate::rbd::blocklist::BlocklistEntry;
use crate::rbd::lock::Watcher;
use crate::rbd::spec::Spec;
use crate::reading::{Failure, Reading};
use nix::libc::{ESHUTDOWN, ETIMEDOUT};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// An image whose watchers are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// Where it is.
    pub image: Spec,
    /// Its id, which a rename does not change, where it is known.
    pub id: Option<String>,
}

/// What a cluster said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The cluster's fsid.
    pub fsid: String,
    /// The addresses of the watcher's own client there: every client of this node has the same host.
    pub own: Vec<String>,
    /// The OSD blocklist.
    pub blocklist: Reading<Vec<BlocklistEntry>>,
    /// Who watches the images that were asked for.
    pub watchers: Vec<(Spec, Reading<Vec<Watcher>>)>,
}

/// A connection to a cluster, made when it is first asked, and anew after a failure.
pub struct Kept {
    connection: Connection,
    session: Arc<Mutex<Session>>,
}

/// Where the connection is.
enum Session {
    None,
    /// A connection that nobody is using.
    Open(Arc<Cluster>),
    /// With a worker, which may be stuck in Ceph for as long as Ceph's own timeouts last.
    Lent,
}

enum News {
    Connected(Answer),
    Watchers(usize, Reading<Vec<Watcher>>),
    Failed(Failure),
}

impl Kept {
    /// A connection that is not made yet.
    pub fn new(connection: Connection) -> Self {
        Self { connection, session: Arc::new(Mutex::new(Session::None)) }
    }

    /// How the cluster is reached, in words.
    pub fn place(&self) -> String {
        place(&self.connection)
    }

    /// Reads the blocklist and who watches some images. Registers no watch and changes nothing; returns by `deadline` and
    /// at most a second. Images that were not read by then are not in the answer.
    pub fn ask(&self, asks: &[Ask], deadline: Duration) -> Reading<Answer> {
        let late = || Failure::errno(format!("ask {}", self.place()), ETIMEDOUT);
        let Some(session) = self.lend() else { return Reading::Unknown(late()) };
        let (shared, connection) = (Arc::clone(&self.session), self.connection.clone());
        let wanted_images = asks.to_vec();
        let work = move |tell: &Sender<News>, wanted: &Wanted| {
            let after = work(session, &connection, &wanted_images, deadline, tell, wanted);
            put_back(&shared, after);
        };
        let (mut answer, mut failure) = (None, None);
        let hear = |news| match news {
            News::Connected(first) => answer = Some(first),
            News::Failed(why) => failure = Some(why),
            News::Watchers(index, watchers) => {
                let image = asks.get(index).map(|ask| ask.image.clone());
                if let Some((answer, image)) = answer.as_mut().zip(image) {
                    let answer: &mut Answer = answer;
                    answer.watchers.push((image, watchers));
                }
            }
        };
        if let Err(failure) = deadline::run(deadline, work, hear) {
            put_back(&self.session, None);
            return Reading::Unknown(failure);
        }
        match (answer, failure) {
            (Some(answer), _) => Reading::Known(answer),
            (None, Some(failure)) => Reading::Unknown(failure),
            (None, None) => Reading::Unknown(late()),
        }
    }

    /// The connection, for one worker; `None` while another one still has it.
    fn lend(&self) -> Option<Option<Arc<Cluster>>> {
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *session, Session::Lent) {
            Session::None => Some(None),
            Session::Open(cluster) => Some(Some(cluster)),
            Session::Lent => None,
        }
    }
}

fn put_back(session: &Mutex<Session>, cluster: Option<Arc<Cluster>>) {
    let mut session = session.lock().unwrap_or_else(PoisonError::into_inner);
    *session = cluster.map_or(Session::None, Session::Open);
}

/// Gives the connection back, unless it failed: then it is made anew the next time.
fn work(
    session: Option<Arc<Cluster>>,
    connection: &Connection,
    asks: &[Ask],
    deadline: Duration,
    tell: &Sender<News>,
    wanted: &Wanted,
) -> Option<Arc<Cluster>> {
    let opened = session.map_or_else(|| connect(connection, deadline), Ok);
    let cluster = match opened {
        Ok(cluster) => cluster,
        Err(failure) => {
            let _ = tell.send(News::Failed(failure));
            return None;
        }
    };
    let blocklist = read_blocklist(&cluster);
    if let Some(failure) = blocklist.failure().filter(|failure| failure.is_no_answer()) {
        let _ = tell.send(News::Failed(failure.clone()));
        return None;
    }
    let fsid = match cluster.fsid() {
        Ok(fsid) => fsid,
        Err(errno) => {
            let _ = tell.send(News::Failed(Failure::errno("read the cluster's fsid", errno)));
            return None;
        }
    };
    let own = read_own_addresses(&cluster);
    let _ = tell.send(News::Connected(Answer { fsid, own, blocklist, watchers: Vec::new() }));
    let mut whole = true;
    for (index, ask) in asks.iter().enumerate() {
        if !wanted.still() {
            return None;
        }
        let watchers = watchers(&cluster, ask);
        let errno = watchers.failure().and_then(|failure| failure.errno);
        whole &= errno != Some(ETIMEDOUT) && errno != Some(ESHUTDOWN);
        let _ = tell.send(News::Watchers(index, watchers));
        if !whole {
            // The OSDs are silent, and the next image would cost as long again; or they refuse this client, which is on the
            // blocklist, and will refuse it for ever.
            break;
        }
    }
    whole.then_some(cluster)
}

/// Who watches an image, which is opened for reading for that: librados' C interface cannot ask the OSD itself.
fn watchers(cluster: &Arc<Cluster>, ask: &Ask) -> Reading<Vec<Watcher>> {
    let Ask { image, id } = ask;
    let read = || {
        let pool = cluster
            .pool(&image.pool, image.namespace.as_deref())
            .map_err(|errno| Failure::errno(format!("look into the pool {}", image.pool), errno))?;
        let open = match id.as_deref().filter(|id| !id.is_empty()) {
            Some(id) => pool.open_by_id(id)?,
            None => pool.open(&image.image)?,
        };
        let all = open
            .watchers()
            .map_err(|errno| Failure::errno(format!("list the watchers of {image}"), errno))?;
        let bare = all.into_iter().map(|raw| Watcher {
            address: bare_address(&raw.address).to_owned(),
            client: raw.client,
            cookie: raw.cookie,
        });
        Ok::<_, Failure>(bare.collect())
    };
    read().into()
}
