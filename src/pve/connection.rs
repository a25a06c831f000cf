//! How PVE reaches a storage's cluster: conf file, monitors, user, keyring.

use super::hosts::monitor;
use super::perl::{is_true, split_list};
use super::storage::RbdStorage;
use crate::reading::Failure;
use crate::sys::root::Root;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The connection options of one rbd storage (`PVE::CephConfig::ceph_connect_option`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Connection {
    /// `/etc/pve/ceph.conf`, or the external storage's own conf if that file exists. A real path, under the root.
    pub conf: Option<String>,
    /// The monitors for `-m`, joined with commas; external clusters only.
    pub mon_host: Option<String>,
    /// The user without `client.`.
    pub user: String,
    /// The keyring's file, if it exists. A real path, under the root. Its content is never held here.
    pub keyring: Option<String>,
}

impl Connection {
    /// What stands for the options where they could not be found out: nobody connects with it.
    pub fn unknown(storage: &RbdStorage) -> Self {
        let user = storage.username.clone().unwrap_or_else(|| "admin".to_owned());
        Self { conf: None, mon_host: None, user, keyring: None }
    }
}

/// The options by which PVE reaches the storage's cluster. `Failure` if a file's existence cannot be told.
///
/// Keyrings and conf files are only looked for, never read.
pub fn connection(root: &Root, storage: &RbdStorage) -> Result<Connection, Failure> {
    let private = format!("/etc/pve/priv/ceph/{}", storage.id);
    let conf = match storage.monhost {
        None => Some(shown(root.path("/etc/pve/ceph.conf"))),
        Some(_) => existing(root, &format!("{private}.conf"))?,
    };
    Ok(Connection {
        conf,
        mon_host: storage
            .monhost
            .as_ref()
            .map(|monhost| mon_host(monhost))
            .filter(|list| is_true(list.as_bytes())),
        user: storage.username.clone().filter(|user| user != "0").unwrap_or_else(|| "admin".to_owned()),
        keyring: existing(root, &format!("{private}.keyring"))?,
    })
}

/// A `monhost` line as PVE hands it to `rbd -m` (`PVE::CephConfig::hostlist`).
pub fn mon_host(monhost: &str) -> String {
    // PVE separates at the bare bytes 0x85 and 0xA0 too; in text they have become U+FFFD
    let monhost = monhost.replace('\u{fffd}', " ");
    split_list(monhost.as_bytes()).into_iter().map(monitor).collect::<Vec<_>>().join(",")
}

/// The arguments that PVE gives to `rbd` before the subcommand (`PVE::Storage::RBDPlugin`'s `rbd_cmd`).
pub fn rbd_arguments(storage: &RbdStorage, connection: &Connection) -> Vec<String> {
    arguments(&storage.pool, storage.namespace.as_deref(), connection)
}

/// The same for any pool and namespace of the cluster; `rados` takes them too.
pub fn arguments(pool: &str, namespace: Option<&str>, connection: &Connection) -> Vec<String> {
    let authentication = if connection.keyring.is_some() { "cephx" } else { "none" };
    let user = format!("client.{}", connection.user);
    let options = [
        ("-p", Some(pool)),
        ("--namespace", namespace),
        ("-c", connection.conf.as_deref()),
        ("-m", connection.mon_host.as_deref()),
        ("--auth_client_required", Some(authentication)),
        ("-n", Some(&user)),
        ("--keyring", connection.keyring.as_deref()),
    ];
    let given =
        options.into_iter().filter_map(|(option, value)| Some([option.to_owned(), value?.to_owned()]));
    given.flatten().collect()
}

/// The path, if there is a file.
fn existing(root: &Root, path: &str) -> Result<Option<String>, Failure> {
    Ok(root.exists(path)?.then(|| shown(root.path(path))))
}

fn shown(path: PathBuf) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pve::storage;
    use std::fs;

    fn section(text: &str) -> RbdStorage {
        storage::parse("storage.cfg", text.as_bytes()).rbd.remove(0)
    }

    #[test]
    fn the_clusters_own_storage() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("etc/pve/priv/ceph")).unwrap();
        fs::write(root.path().join("etc/pve/priv/ceph/ceph.keyring"), "").unwrap();
        fs::write(root.path().join("etc/pve/priv/ceph/ceph.conf"), "").unwrap();
        let storage = section("rbd: ceph\n\tpool p\n\tnamespace ns\n");
        let found = connection(&Root::new(root.path()), &storage).unwrap();
        let at = |path: &str| root.path().join(path).display().to_string();
        assert_eq!(found.conf, Some(at("etc/pve/ceph.conf")), "an own conf of a managed storage is ignored");
        let keyring = at("etc/pve/priv/ceph/ceph.keyring");
        let conf = at("etc/pve/ceph.conf");
        let expected = [
            "-p",
            "p",
            "--namespace",
            "ns",
            "-c",
            &conf,
            "--auth_client_required",
            "cephx",
            "-n",
            "client.admin",
            "--keyring",
            &keyring,
        ];
        assert_eq!(rbd_arguments(&storage, &found), expected);
    }

    #[test]
    fn an_external_storage() {
        let root = tempfile::tempdir().unwrap();
        let storage = section("rbd: far\n\tmonhost 10.0.0.1; fd00::1.6789\n\tusername vms\n");
        let found = connection(&Root::new(root.path()), &storage).unwrap();
        assert_eq!(found.conf, None);
        let expected = [
            "-p",
            "rbd",
            "-m",
            "10.0.0.1,[fd00::1]:6789",
            "--auth_client_required",
            "none",
            "-n",
            "client.vms",
        ];
        assert_eq!(rbd_arguments(&storage, &found), expected);
    }

    #[test]
    fn an_empty_monhost_list_is_still_external() {
        let root = tempfile::tempdir().unwrap();
        let found = connection(&Root::new(root.path()), &section("rbd: far\n\tmonhost ,\n")).unwrap();
        assert_eq!((found.conf, found.mon_host), (None, None));
    }

    #[test]
    fn a_file_that_cannot_be_looked_for_is_a_failure() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("etc/pve/priv")).unwrap();
        std::os::unix::fs::symlink("ceph", root.path().join("etc/pve/priv/ceph")).unwrap();
        let failure = connection(&Root::new(root.path()), &section("rbd: ceph\n")).unwrap_err();
        assert_eq!(failure.errno, Some(40), "ELOOP");
    }
}
