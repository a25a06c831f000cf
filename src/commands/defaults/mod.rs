//! `defaults`: what features new images get, and the change of it.

mod set;

use crate::ceph::caps::admin;
use crate::ceph::conf::settings;
use crate::ceph::defaults::{OPTION, read};
use crate::ceph::sharing::share;
use crate::cli::Defaults;
use crate::commands::session;
use crate::defaults::source;
use crate::exit::{Coded, Exit};
use crate::kernel::{self, KernelFacts};
use crate::pve::connection::{Connection, connection};
use crate::pve::node::node_name;
use crate::pve::storage::{self, RbdStorage};
use crate::report::defaults::{Place, json, report};
use crate::report::json::printed;
use crate::sys::root::Root;
use anyhow::Result;
use std::panic::resume_unwind;
use std::time::Duration;

/// Shows what holds; with `--set` changes it first.
pub fn run(root: &Root, options: &Defaults) -> Result<Exit> {
    let node = Node::read(root)?;
    if let Some(wanted) = options.set {
        return set::run(&node, wanted, options);
    }
    if options.manner.dry_run || options.manner.yes {
        return Err(Coded::error(Exit::Usage, "--dry-run and --yes go with --set"));
    }
    let places = node.look();
    if options.manner.json {
        outln!("{}", printed(&json(&places, &node.kernel)));
    } else {
        out!("{}", report(&places, &node.kernel));
    }
    let unread =
        places.iter().any(|place| place.effective().1.is_some() || place.effective().0.known().is_none());
    Ok(if unread { Exit::Error } else { Exit::Ready })
}

/// This node, and how it reaches clusters.
struct Node<'a> {
    root: &'a Root,
    kernel: KernelFacts,
    /// How long a cluster may take.
    limit: Duration,
    /// Each way to a cluster, with the storages that are reached so and their pools.
    ways: Vec<Way>,
}

#[derive(Clone)]
struct Way {
    connection: Connection,
    storages: Vec<String>,
    pools: Vec<String>,
}

impl<'a> Node<'a> {
    fn read(root: &'a Root) -> Result<Self> {
        let name = node_name(root)?;
        let limit = session::settings(root)?.for_guest(0, [""; 0]).connect_timeout;
        let config = storage::load(root)?;
        let here: Vec<&RbdStorage> = config.rbd.iter().filter(|storage| storage.is_on(&name)).collect();
        let found = here.iter().map(|storage| connection(root, storage)).collect::<Result<Vec<_>, _>>()?;
        let shared = share(&found);
        let mut ways: Vec<Way> = shared.connections.into_iter().map(Way::bare).collect();
        for (storage, way) in here.iter().zip(shared.of) {
            ways[way].storages.push(storage.id.clone());
            if !ways[way].pools.contains(&storage.pool) {
                ways[way].pools.push(storage.pool.clone());
            }
        }
        if ways.iter().all(|way| way.connection.mon_host.is_some()) {
            ways.extend(admin(root).map(Way::bare));
        }
        Ok(Self { root, kernel: kernel::gather(root), limit, ways })
    }

    /// Asks every cluster at once.
    fn look(&self) -> Vec<Place> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = self.ways.iter().map(|way| scope.spawn(|| self.ask(way))).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
                .collect()
        })
    }

    fn ask(&self, way: &Way) -> Place {
        let connection = way.connection.clone();
        let seen = read(&connection, &way.pools, self.limit);
        // Where a connection names none, Ceph reads this one.
        let conf = connection.conf.clone().unwrap_or_else(|| "/etc/ceph/ceph.conf".to_owned());
        let text = std::fs::read(&conf).unwrap_or_default();
        let lines = settings(&String::from_utf8_lossy(&text), OPTION);
        let source = source(&lines, &connection.user, &seen);
        Place { storages: way.storages.clone(), connection, conf, seen, source }
    }

    /// The users that reach this cluster's own Ceph.
    fn own_users(&self) -> Vec<String> {
        let own = self.ways.iter().filter(|way| way.connection.mon_host.is_none());
        let mut users: Vec<String> =
            own.map(|way| way.connection.user.clone()).chain(["admin".to_owned()]).collect();
        users.sort_unstable();
        users.dedup();
        users
    }
}

impl Way {
    fn bare(connection: Connection) -> Self {
        Self { connection, storages: Vec::new(), pools: Vec::new() }
    }
}
