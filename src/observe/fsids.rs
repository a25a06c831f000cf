//! Which cluster a storage lies in, also one that was not asked: an image's name alone does not say which image is meant.

use crate::ceph::cluster::ClusterFacts;
use crate::ceph::conf;
use crate::ceph::sharing::share;
use crate::observe::survey::StorageFacts;
use crate::pve::connection::{Connection, connection};
use crate::pve::storage::StorageConfig;
use crate::reading::Reading;
use crate::sys::root::Root;
use std::collections::BTreeMap;

/// The fsid of each rbd storage's cluster, as far as it is known.
#[derive(Debug, Default)]
pub struct Fsids(BTreeMap<String, String>);

impl Fsids {
    /// The clusters of all rbd storages: those that were asked have said it; a storage that is reached by the same
    /// ceph.conf and monitors as one that was asked lies in the same cluster; else the ceph.conf may name it.
    pub fn read(
        root: &Root,
        config: &StorageConfig,
        storages: &BTreeMap<String, StorageFacts>,
        clusters: &[Reading<ClusterFacts>],
    ) -> Self {
        let asked = |id: &str| Some(clusters.get(storages.get(id)?.cluster)?.known()?.fsid.clone());
        let all: Vec<(&str, Connection)> = config
            .rbd
            .iter()
            .filter_map(|section| Some((section.id.as_str(), connection(root, section).ok()?)))
            .collect();
        let places: Vec<Connection> = all.iter().map(|(_, connection)| place(connection)).collect();
        let places = share(&places).of;
        let told = |id: &str, place: usize| {
            let alike = || all.iter().zip(&places).filter(|(_, other)| **other == place);
            asked(id).or_else(|| alike().find_map(|((other, _), _)| asked(other)))
        };
        let known = all.iter().zip(&places).filter_map(|((id, connection), at)| {
            Some(((*id).to_owned(), told(id, *at).or_else(|| named(connection))?))
        });
        Self(known.collect())
    }

    /// The cluster that a storage lies in; `None` where that is not known.
    pub fn of(&self, storage: &str) -> Option<&str> {
        self.0.get(storage).map(String::as_str)
    }

    /// A storage lies in this cluster, or may.
    pub fn may_be(&self, storage: &str, fsid: &str) -> bool {
        self.of(storage).is_none_or(|own| own == fsid)
    }

    /// Two storages lie in one cluster, and it is known.
    pub fn same(&self, one: &str, two: &str) -> bool {
        one == two || self.of(one).is_some_and(|fsid| self.of(two) == Some(fsid))
    }
}

/// What leads to a cluster, whoever goes there.
fn place(connection: &Connection) -> Connection {
    Connection { user: String::new(), keyring: None, ..connection.clone() }
}

/// The fsid that a ceph.conf names. Ceph's own tools write it there, and PVE's `pveceph init` does.
fn named(connection: &Connection) -> Option<String> {
    let text = std::fs::read_to_string(connection.conf.as_ref()?).ok()?;
    let named = conf::settings(&text, "fsid");
    Some(conf::strongest(&named, &connection.user)?.value.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pve::storage;

    const STORAGES: &str = "rbd: own\n\tpool rbd\n\trbd: own-krbd\n\nrbd: other\n\tpool rbd\n\tmonhost 10.9.0.1 10.9.0.2\n\n\
                            rbd: other-krbd\n\tpool rbd\n\tmonhost 10.9.0.2 10.9.0.1\n\tusername vms\n\n\
                            rbd: third\n\tpool rbd\n\tmonhost 10.8.0.1\n";

    fn fsids(asked: &[(&str, &str)]) -> Fsids {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        std::fs::create_dir_all(root.path("/etc/pve")).unwrap();
        std::fs::write(root.path("/etc/pve/storage.cfg"), STORAGES).unwrap();
        std::fs::write(root.path("/etc/pve/ceph.conf"), "[global]\n\tfsid = OWN\n").unwrap();
        let config = storage::load(&root).unwrap();
        let (mut storages, mut clusters) = (BTreeMap::new(), Vec::new());
        for (id, fsid) in asked {
            let section = config.rbd(id).unwrap().clone();
            let connection = connection(&root, &section).unwrap();
            let facts = serde_json::json!({ "section": section, "connection": connection, "cluster": clusters.len() });
            storages.insert((*id).to_owned(), serde_json::from_value(facts).unwrap());
            clusters.push(serde_json::from_value(serde_json::json!({ "known": {
                "fsid": fsid, "blocklist": { "known": [] }, "health": { "known": { "status": "HEALTH_OK", "checks": [] } },
                "default_features": { "known": [] }, "blocklist_expire_seconds": { "known": 0 },
            } })).unwrap());
        }
        Fsids::read(&root, &config, &storages, &clusters)
    }

    #[test]
    fn a_cluster_is_known_by_asking_it_by_its_monitors_or_by_its_conf() {
        let nobody_asked = fsids(&[]);
        assert_eq!(nobody_asked.of("own"), Some("own"));
        assert_eq!([nobody_asked.of("other"), nobody_asked.of("third")], [None, None]);
        let asked = fsids(&[("other", "g")]);
        assert_eq!([asked.of("other"), asked.of("other-krbd")], [Some("g"), Some("g")]);
        assert_eq!(asked.of("third"), None);
        let asked = fsids(&[("own", "f")]);
        assert_eq!(asked.of("own"), Some("f"), "the cluster itself knows best");
    }

    #[test]
    fn what_is_not_known_may_be_and_is_not_said_to_be() {
        let fsids = fsids(&[("own", "f"), ("other", "g")]);
        assert!(fsids.may_be("own", "f") && !fsids.may_be("own", "g") && fsids.may_be("third", "g"));
        assert!(fsids.same("other", "other-krbd") && fsids.same("third", "third"));
        assert!(!fsids.same("own", "other") && !fsids.same("own", "third"));
    }
}
