//! Which storages can use one connection.

use crate::pve::connection::Connection;
use std::collections::BTreeSet;
use std::fs;

/// Connections that are really different, and for each that was given the index of the one that serves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shared {
    /// One connection for each cluster, user and key, in order of first use.
    pub connections: Vec<Connection>,
    /// For each connection given, the index into `connections`.
    pub of: Vec<usize>,
}

/// Finds those that lead to the same cluster as the same user with the same key. PVE writes a keyring file of its own
/// for each storage (`/etc/pve/priv/ceph/<storage>.keyring`), so the files' bytes are compared; nothing of them is kept.
pub fn share(connections: &[Connection]) -> Shared {
    let mut different: Vec<(Identity, Connection)> = Vec::new();
    let mut of = Vec::with_capacity(connections.len());
    for connection in connections {
        let identity = Identity::of(connection);
        let known = different.iter().position(|(other, _)| *other == identity);
        of.push(known.unwrap_or(different.len()));
        if known.is_none() {
            different.push((identity, connection.clone()));
        }
    }
    Shared { connections: different.into_iter().map(|(_, connection)| connection).collect(), of }
}

/// What makes two connections the same. No `Debug`: it holds a key.
#[derive(PartialEq, Eq)]
struct Identity {
    conf: Option<Content>,
    monitors: Option<BTreeSet<String>>,
    user: String,
    keyring: Option<Content>,
}

/// A file's bytes, or its path where it cannot be read.
#[derive(PartialEq, Eq)]
enum Content {
    Bytes(Vec<u8>),
    Path(String),
}

impl Identity {
    fn of(connection: &Connection) -> Self {
        let Connection { conf, mon_host, user, keyring } = connection;
        let monitors = |list: &String| {
            let names = list.split([',', ';', ' ']).filter(|name| !name.is_empty());
            names.map(str::to_owned).collect()
        };
        Self {
            conf: conf.as_deref().map(content),
            monitors: mon_host.as_ref().map(monitors),
            user: user.clone(),
            keyring: keyring.as_deref().map(content),
        }
    }
}

fn content(path: &str) -> Content {
    fs::read(path).map_or_else(|_| Content::Path(path.to_owned()), Content::Bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn file(directory: &Path, name: &str, content: &str) -> Option<String> {
        let path = directory.join(name);
        fs::write(&path, content).unwrap();
        Some(path.to_str().unwrap().to_owned())
    }

    #[test]
    fn equal_keys_in_different_files_share_a_connection() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        let conf = file(at, "ceph.conf", "[global]\n");
        let with = |keyring: Option<String>, user: &str| Connection {
            conf: conf.clone(),
            mon_host: None,
            user: user.to_owned(),
            keyring,
        };
        let one = with(file(at, "a.keyring", "key = 1"), "admin");
        let same = with(file(at, "b.keyring", "key = 1"), "admin");
        let other_key = with(file(at, "c.keyring", "key = 2"), "admin");
        let other_user = with(one.keyring.clone(), "vms");
        let shared = share(&[one.clone(), same, other_key.clone(), other_user.clone(), one.clone()]);
        assert_eq!(shared.of, [0, 0, 1, 2, 0]);
        assert_eq!(shared.connections, [one, other_key, other_user]);
    }

    #[test]
    fn monitors_in_another_order_are_the_same_cluster() {
        let with = |monitors: &str| Connection {
            conf: None,
            mon_host: Some(monitors.to_owned()),
            user: "admin".to_owned(),
            keyring: None,
        };
        let shared = share(&[with("10.0.0.1,10.0.0.2"), with("10.0.0.2,10.0.0.1"), with("10.0.0.3")]);
        assert_eq!(shared.of, [0, 0, 1]);
    }

    #[test]
    fn files_that_cannot_be_read_are_told_apart_by_path() {
        let with = |keyring: &str| Connection {
            conf: None,
            mon_host: None,
            user: "admin".to_owned(),
            keyring: Some(keyring.to_owned()),
        };
        assert_eq!(
            share(&[with("/nonexistent/a"), with("/nonexistent/b"), with("/nonexistent/a")]).of,
            [0, 1, 0]
        );
    }
}
