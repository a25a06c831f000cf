//! From a storage's connection to a connected cluster.

use crate::ceph::ffi::Cluster;
use crate::ceph::keyring::BYTE_ORDER_MARK;
use crate::pve::connection::Connection;
use crate::reading::{Failure, Origin};
use nix::libc::{EACCES, EINVAL, EIO, ENOENT, ENOTDIR};
use std::fs;
use std::sync::Arc;
use std::time::Duration;

/// Whether the client proves who it is: `cephx` or `none`. Known to every Ceph from 16 to 20, also on the command line
/// of `rbd` (`src/common/options/global.yaml.in`).
pub(crate) const AUTHENTICATION: &str = "auth_client_required";

/// What a client of a few seconds has no use for, and what would write where we write.
/// `doc/rados/configuration/{ceph-conf,log-and-debug}`, `doc/rbd/rbd-config-ref`.
const QUIET: [(&str, &str); 17] = [
    ("log_file", ""),
    ("log_to_stderr", "false"),
    ("err_to_stderr", "false"),
    ("log_to_syslog", "false"),
    ("err_to_syslog", "false"),
    ("log_to_journald", "false"),
    ("err_to_journald", "false"),
    ("log_to_graylog", "false"),
    ("err_to_graylog", "false"),
    // What is gathered in memory for the log of a crash, which goes nowhere, takes a part of each request's time.
    ("debug_ms", "0/0"),
    ("debug_monc", "0/0"),
    ("debug_auth", "0/0"),
    ("debug_objecter", "0/0"),
    ("debug_rbd", "0/0"),
    ("admin_socket", ""),
    ("rbd_cache", "false"),
    ("rbd_tracing", "false"),
];

/// The options that bound Ceph's own calls, in whole seconds.
const TIMEOUTS: [&str; 3] = ["client_mount_timeout", "rados_mon_op_timeout", "rados_osd_op_timeout"];

/// Connects as PVE does (`PVE::CephConfig::ceph_connect_option`), with every call of Ceph's bounded by `deadline`.
///
/// # Errors
/// What was tried, and Ceph's errno: 2 no keyring, 13 or 1 a wrong key, 110 nobody answered. What fails before anybody
/// is asked is of another [`Origin`] than outside.
pub fn connect(connection: &Connection, deadline: Duration) -> Result<Arc<Cluster>, Failure> {
    refuse_byte_order_mark(connection)?;
    let cluster = Cluster::create(&connection.user)?;
    configure(&cluster, connection, deadline)?;
    cluster.connect().map_err(|errno| Failure::errno(format!("connect to {}", place(connection)), errno))?;
    Ok(Arc::new(cluster))
}

/// A keyring that begins with a byte order mark is read by no release; 16.2.15 does not say so but ends this whole
/// process, as soon as it is told of the file.
fn refuse_byte_order_mark(connection: &Connection) -> Result<(), Failure> {
    let Some(path) = &connection.keyring else { return Ok(()) };
    let marked = fs::read(path).is_ok_and(|text| text.starts_with(&BYTE_ORDER_MARK));
    if marked { Err(Failure::errno(format!("read {path}"), EIO)) } else { Ok(()) }
}

/// Where a connection leads and as whom, in words.
pub fn place(connection: &Connection) -> String {
    let Connection { conf, mon_host, user, keyring } = connection;
    let mut words = format!("Ceph as client.{user}");
    for (label, value) in [("conf", conf), ("monitors", mon_host), ("keyring", keyring)] {
        if let Some(value) = value {
            words.push_str(&format!(", {label} {value}"));
        }
    }
    words
}

/// Sets a client up as PVE sets one up. Only an option without which it would ask somebody else, or as somebody else,
/// is needed; whatever else this release does not know, or takes another value for, it does without.
fn configure(cluster: &Cluster, connection: &Connection, deadline: Duration) -> Result<(), Failure> {
    read_conf(cluster, connection)?;
    let place = place(connection);
    let need = |option: &str, value: &str| {
        let own =
            |errno| Failure::errno(format!("set {option} = {value} for {place}"), errno).on(Origin::Own);
        cluster.set(option, value).map_err(own)
    };
    let like = |option: &str, value: &str| {
        if let Err(errno) = cluster.set(option, value) {
            log::debug!("{}", Failure::errno(format!("set {option} = {value} for {place}"), errno));
        }
    };
    // First of all: from when it is told of the keyring Ceph may say what is wrong with it, key and all.
    for (option, value) in QUIET {
        like(option, value);
    }
    if let Some(monitors) = &connection.mon_host {
        need("mon_host", monitors)?;
    }
    // PVE passes both, always (`PVE::CephConfig`): no keyring file means a cluster without cephx. Its own option,
    // `auth_supported`, is gone since 20.2.4.
    match &connection.keyring {
        Some(keyring) => {
            need("keyring", keyring)?;
            // What every release does by itself.
            like(AUTHENTICATION, "cephx");
        }
        None => need(AUTHENTICATION, "none")?,
    }
    for option in TIMEOUTS {
        like(option, &of_ceph(deadline).as_secs().to_string());
    }
    Ok(())
}

/// How long a call of Ceph's may take, in whole seconds, of a time that is given for all of them. It is over earlier, so that
/// Ceph itself can say that nobody answered: our own clock cannot tell that from a node that is slow. Nought would mean for ever.
fn of_ceph(deadline: Duration) -> Duration {
    Duration::from_secs((deadline * 3 / 4).as_secs().max(1))
}

fn read_conf(cluster: &Cluster, connection: &Connection) -> Result<(), Failure> {
    match &connection.conf {
        Some(conf) => cluster.read_conf(Some(conf)).map_err(|errno| {
            // Anything else is a limit of this process.
            let of_file = [ENOENT, ENOTDIR, EACCES, EINVAL].contains(&errno);
            Failure::errno(format!("read {conf}"), errno).on(if of_file { Origin::Conf } else { Origin::Own })
        }),
        // As rbd and QEMU do when they are given monitors only: Ceph's default file, which need not be there.
        None => {
            let _ = cluster.read_conf(None);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_names_files_and_never_their_content() {
        let connection = Connection {
            conf: Some("/etc/pve/ceph.conf".to_owned()),
            mon_host: None,
            user: "admin".to_owned(),
            keyring: Some("/etc/pve/priv/ceph/vms.keyring".to_owned()),
        };
        let expected =
            "Ceph as client.admin, conf /etc/pve/ceph.conf, keyring /etc/pve/priv/ceph/vms.keyring";
        assert_eq!(place(&connection), expected);
    }
}
