//! A storage's keyring: the type of its user's key, and what Proxmox VE's own check ([`crate::pve::keyring`]) makes of the file.

use crate::ceph::keyring::{Key, Keyring, read};
use crate::pve::connection::Connection;
use crate::pve::keyring::{Check, accepts};
use crate::reading::{Failure, Reading};
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
}

/// Looks at a connection's keyring; `None` if it has none, which to Proxmox VE is a cluster without authentication.
pub fn keyring_facts(connection: &Connection, check: &Check) -> Option<KeyringFacts> {
    let path = connection.keyring.as_deref()?;
    Some(match std::fs::read(Path::new(path)) {
        Ok(text) => KeyringFacts {
            content: Reading::Known(read(&text, &connection.user)),
            accepted: match check {
                Reading::Known(check) => Reading::Known(accepts(check, &text)),
                Reading::Unknown(failure) => Reading::Unknown(failure.clone()),
            },
        },
        Err(error) if error.kind() == ErrorKind::NotFound => KeyringFacts {
            content: Reading::Known(Keyring { key: Key::NoFile, newer: None, others: Vec::new() }),
            accepted: Reading::Known(true),
        },
        Err(error) => {
            let failure = Failure::path("read", path, &error);
            let accepted = Reading::Unknown(failure.clone());
            KeyringFacts { content: Reading::Unknown(failure), accepted }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pve::keyring::installed_check;
    use crate::sys::root::Root;
    use regex::bytes::Regex;

    #[test]
    fn a_keyring_is_looked_at_and_not_kept() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| Some(root.path().join(name).display().to_string());
        let look = |keyring, check: &Check| {
            keyring_facts(&Connection { conf: None, mon_host: None, user: "v".to_owned(), keyring }, check)
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
