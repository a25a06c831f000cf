//! A storage's keyring: the type of its user's key, and what Proxmox VE's own check ([`crate::pve::keyring`]) makes of the file.

use crate::ceph::conf::{settings, strongest};
use crate::ceph::keyring::{Key, Keyring, read};
use crate::pve::connection::Connection;
use crate::pve::keyring::{Check, accepts};
use crate::pve::storage::RbdStorage;
use crate::reading::{Failure, Reading};
use crate::sys::root::Root;
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
use std::path::Path;

/// What is known of a storage's keyring. Nothing of its content but the key's type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct KeyringFacts {
    /// What a client of Ceph reads in it.
    pub content: Reading<Keyring>,
    /// Proxmox VE's own check accepts it.
    pub accepted: Reading<bool>,
    /// The conf of an external storage names a keyring, where QEMU finds one only there; `None` where that does not matter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_conf: Option<bool>,
}

/// The storage plugin that is installed here.
const PLUGIN: &str = "/usr/share/perl5/PVE/Storage/RBDPlugin.pm";

/// Where Ceph looks for a keyring that no conf names (`keyring` of Ceph's own options).
fn default_places(user: &str) -> [String; 4] {
    [format!("ceph.client.{user}.keyring"), "ceph.keyring".into(), "keyring".into(), "keyring.bin".into()]
}

/// Whether the conf of an external storage names a keyring. Since Proxmox VE 9 QEMU of a machine type of 10.0 or later is given
/// the conf, but no keyring (`PVE::Storage::RBDPlugin`, `qemu_blockdev_options`), and PVE makes such a conf itself for a
/// storage that is added (libpve-storage-perl 7684225). `None` where this is an older PVE, or Ceph finds a keyring in one of its own places.
fn in_conf(root: &Root, storage: &RbdStorage, connection: &Connection) -> Option<bool> {
    storage.monhost.as_ref()?;
    let plugin = std::fs::read_to_string(root.path(PLUGIN)).ok()?;
    let elsewhere =
        default_places(&connection.user).iter().any(|name| root.path("/etc/ceph").join(name).exists());
    if elsewhere || !plugin.contains("sub qemu_blockdev_options") {
        return None;
    }
    let Some(conf) = &connection.conf else { return Some(false) };
    let text = std::fs::read(conf).ok()?;
    let lines = settings(&String::from_utf8_lossy(&text), "keyring");
    Some(strongest(&lines, &connection.user).is_some())
}

/// Looks at a storage's keyring; `None` if it has none, which to Proxmox VE is a cluster without authentication.
pub fn keyring_facts(
    root: &Root,
    storage: &RbdStorage,
    connection: &Connection,
    check: &Check,
) -> Option<KeyringFacts> {
    let facts = look(connection, check)?;
    Some(KeyringFacts { in_conf: in_conf(root, storage, connection), ..facts })
}

/// What stands in a connection's keyring.
fn look(connection: &Connection, check: &Check) -> Option<KeyringFacts> {
    let path = connection.keyring.as_deref()?;
    Some(match std::fs::read(Path::new(path)) {
        Ok(text) => KeyringFacts {
            content: Reading::Known(read(&text, &connection.user)),
            accepted: match check {
                Reading::Known(check) => Reading::Known(accepts(check, &text)),
                Reading::Unknown(failure) => Reading::Unknown(failure.clone()),
            },
            in_conf: None,
        },
        Err(error) if error.kind() == ErrorKind::NotFound => KeyringFacts {
            content: Reading::Known(Keyring { key: Key::NoFile, newer: None }),
            accepted: Reading::Known(true),
            in_conf: None,
        },
        Err(error) => {
            let failure = Failure::io(format!("read {path}"), &error);
            let accepted = Reading::Unknown(failure.clone());
            KeyringFacts { content: Reading::Unknown(failure), accepted, in_conf: None }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pve::keyring::installed_check;
    use regex::bytes::Regex;

    #[test]
    fn a_keyring_is_looked_at_and_not_kept() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| Some(root.path().join(name).display().to_string());
        let look = |keyring, check: &Check| {
            super::look(&Connection { conf: None, mon_host: None, user: "v".to_owned(), keyring }, check)
        };
        let unknown = installed_check(&Root::new(root.path()));
        assert_eq!(unknown.failure().unwrap().errno, Some(2));
        assert_eq!(look(None, &unknown), None);
        assert_eq!(look(at("gone"), &unknown).unwrap().content.known().unwrap().key, Key::NoFile);
        std::fs::write(
            root.path().join("k"),
            "[client.v]\n\tkey = AQBaWlpaWlpaWhAApaWlpaWlpaWlpaWlpaWlpQ==\n",
        )
        .unwrap();
        let seen = look(at("k"), &unknown).unwrap();
        assert_eq!((seen.content.known().unwrap().key.clone(), seen.accepted.known()), (Key::Aes, None));
        assert!(!serde_json::to_string(&seen).unwrap().contains("AQBa"));
        assert_eq!(
            look(at("k"), &Reading::Known(Regex::new(r"key = \S+").unwrap())).unwrap().accepted,
            Reading::Known(true)
        );
        assert!(look(at("."), &unknown).unwrap().content.failure().is_some(), "a directory");
    }
}
