//! The keyring that QEMU finds where Proxmox VE names none: the one that the ceph.conf names, or that lies in one of Ceph's usual places.
//!
//! `-n`, `-c` and `--keyring` are for `rbd`; QEMU with `-blockdev` has a user and a ceph.conf, and no keyring.

use crate::ceph::conf::{settings, strongest};
use crate::ceph::keyring::{Key, read};
use crate::pve::connection::Connection;
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;

/// Where QEMU looks, and that it does not find a key of the user's there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NoKeyForQemu {
    /// The files, in the order in which they are looked for.
    pub paths: Vec<String>,
    /// The first of them that is there, which is the one that counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<String>,
    /// Whether QEMU is told of the disk in the way that names no keyring; `None` is not known.
    pub by_blockdev: Option<bool>,
}

/// Ceph's usual places (`src/common/options/global.yaml.in`).
const USUAL: &str =
    "/etc/ceph/$cluster.$name.keyring,/etc/ceph/$cluster.keyring,/etc/ceph/keyring,/etc/ceph/keyring.bin";

/// Where QEMU looks for the key of the connection's user in vain; `None`: it finds it, needs none, or that cannot be told.
pub fn lacking(connection: &Connection) -> Option<NoKeyForQemu> {
    connection.keyring.as_ref()?;
    let user = &connection.user;
    let text = match &connection.conf {
        Some(path) => std::fs::read_to_string(path).ok()?,
        None => std::fs::read_to_string("/etc/ceph/ceph.conf").unwrap_or_default(),
    };
    let value = |option: &str| {
        let all = settings(&text, option);
        strongest(&all, user).map(|setting| setting.value.clone())
    };
    // A key that the conf itself holds, or a cluster without authentication.
    let keyless = ["auth_client_required", "auth_supported"].iter().filter_map(|option| value(option));
    if value("key").is_some()
        || value("keyfile").is_some()
        || keyless.into_iter().any(|how| how.contains("none"))
    {
        return None;
    }
    let named = value("keyring").unwrap_or_else(|| USUAL.to_owned());
    let name = format!("client.{user}");
    let named = named
        .replace("$cluster", "ceph")
        .replace("$name", &name)
        .replace("$type", "client")
        .replace("$id", user);
    if named.contains('$') {
        return None;
    }
    let paths: Vec<String> =
        named.split([',', ';', ' ']).filter(|path| !path.is_empty()).map(str::to_owned).collect();
    for path in &paths {
        match std::fs::read(path) {
            Ok(text) if matches!(read(&text, user).key, Key::NoKey) => {
                return Some(NoKeyForQemu { found: Some(path.clone()), paths, by_blockdev: None });
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            // It has the key, or it cannot be told.
            Ok(_) | Err(_) => return None,
        }
    }
    Some(NoKeyForQemu { paths, found: None, by_blockdev: None })
}
