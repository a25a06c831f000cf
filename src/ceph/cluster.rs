//! What the monitors say of a cluster.

use crate::rbd::blocklist::{BlocklistEntry, entry_of_host};
use crate::rbd::features::Features;
use crate::reading::Reading;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

/// What `rados_connect` ends with where the monitors refuse the user, or Ceph finds no key of it to offer them. 2 (ENOENT) and 22 (EINVAL)
/// it ends with before any monitor is asked.
pub const REFUSED: [Errno; 3] = [Errno::EPERM, Errno::EACCES, Errno::EOPNOTSUPP];

/// What it ends with where nobody answers.
pub const NO_ANSWER: [Errno; 5] =
    [Errno::ETIMEDOUT, Errno::ECONNREFUSED, Errno::EHOSTUNREACH, Errno::ENETUNREACH, Errno::EHOSTDOWN];

/// What `ceph health` says, without its details.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Health {
    /// `HEALTH_OK`, `HEALTH_WARN`, `HEALTH_ERR`.
    pub status: String,
    /// Check code and its summary, such as `PG_AVAILABILITY`.
    pub checks: Vec<(String, String)>,
    /// The codes of those for which the status is `HEALTH_ERR`; muted ones are left out. `None` in older surveys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errors: Option<Vec<String>>,
}

impl Health {
    /// The check is about keys and tickets that CVE-2025-30156 lets an attacker forge, or about whether they are still
    /// allowed: `AUTH_INSECURE_CLIENT_KEY_TYPE`, `…_SERVICE_KEY_TYPE`, `…_SERVICE_TICKETS`, `…_ROTATING_SERVICE_KEY_TYPE`,
    /// `…_KEYS_ALLOWED`, `…_KEYS_CREATABLE`, since Ceph 19.2.6 and 20.2.4 (`doc/rados/operations/health-checks`). No read
    /// or write waits for any of them. `…_GLOBAL_ID_RECLAIM` and `…_GLOBAL_ID_RECLAIM_ALLOWED` are older, and of another matter.
    pub fn is_about_keys(code: &str) -> bool {
        code.strip_prefix("AUTH_INSECURE_").is_some_and(|what| !what.starts_with("GLOBAL_ID"))
    }

    /// Nothing but such checks makes the cluster what it is.
    pub fn only_keys(&self) -> bool {
        !self.checks.is_empty() && self.checks.iter().all(|(code, _)| Self::is_about_keys(code))
    }

    /// It is `HEALTH_ERR`, and not for such checks alone.
    pub fn is_error(&self) -> bool {
        let by_others = match &self.errors {
            Some(errors) => errors.is_empty() || errors.iter().any(|code| !Self::is_about_keys(code)),
            None => !self.only_keys(),
        };
        self.status == "HEALTH_ERR" && by_others
    }
}

/// The health checks that say that something is full, so that writes wait for room.
pub const FULL: [&str; 2] = ["OSD_FULL", "POOL_FULL"];

/// The health check that says that placement groups serve neither reads nor writes. The manager reports it: without
/// one it is not there, or is old.
pub const UNAVAILABLE: &str = "PG_AVAILABILITY";

impl Health {
    fn has(&self, code: &str) -> bool {
        self.checks.iter().any(|(known, _)| known == code)
    }

    /// An OSD or a pool is full.
    pub fn is_full(&self) -> bool {
        FULL.iter().any(|code| self.has(code))
    }

    /// Placement groups are inactive, by the word of a manager that lives.
    pub fn has_inactive_groups(&self) -> bool {
        self.has(UNAVAILABLE) && !self.has("MGR_DOWN")
    }
}

/// A pool some of whose placement groups are inactive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct InactivePool {
    /// The pool's name.
    pub pool: String,
    /// How many of its groups `health detail` names; it names 50 of all pools together at most (`mon_health_max_detail`).
    pub count: usize,
    /// What is said of some of them: `pg 2.1f is stuck inactive for 5m, current state unknown, last acting []`.
    pub groups: Vec<String>,
}

/// What the monitors say of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ClusterFacts {
    /// The cluster's fsid, which tells it from every other one.
    pub fsid: String,
    /// The addresses that this tool's own client had there, `10.0.0.1:0/492268007`; every other client on this node has
    /// the same host. None where that could not be read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub own_addresses: Vec<String>,
    /// The pools that take no more writes (`full`: an OSD is full, or the pool's quota is used up); only asked where the
    /// health says that there are some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full_pools: Option<Reading<Vec<String>>>,
    /// The pools with inactive placement groups (`health detail`); only asked where the health says that there are some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inactive_pools: Option<Reading<Vec<InactivePool>>>,
    /// `v1` or `v2`: the only protocol at which a monitor has an address in the monitors' own map, which `rbd map` takes its
    /// addresses from, whatever ceph.conf says (run on 16.2.15). None where they have both, or that could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only_protocol: Option<String>,
    /// The OSD blocklist (`osd blocklist ls`).
    pub blocklist: Reading<Vec<BlocklistEntry>>,
    /// What the monitors say of the cluster's health (`health`).
    pub health: Reading<Health>,
    /// What new images get.
    pub default_features: Reading<Features>,
    /// Seconds a broken lock's owner stays on the blocklist; 0 is the cluster's own default (tracker 54613: keep it 0).
    pub blocklist_expire_seconds: Reading<u64>,
}

impl ClusterFacts {
    /// The entry of the blocklist that shuts out every client on this node (`ceph osd blocklist add HOST`, a range): as far
    /// as is known the tool's own client has the address that the others have.
    pub fn node_entry(&self) -> Option<&BlocklistEntry> {
        let list = self.blocklist.known()?;
        self.own_addresses.iter().find_map(|address| entry_of_host(address, list))
    }
}
