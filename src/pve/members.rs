//! pmxcfs's list of the cluster's nodes, `/etc/pve/.members` (pmxcfs's `cfs_create_memberlist_msg`).

use crate::reading::Failure;
use crate::sys::root::Root;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Where it is.
pub const FILE: &str = "/etc/pve/.members";

/// What pmxcfs says of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct Members {
    /// The cluster as a whole. `None` on a node that has none, and until pmxcfs has met corosync, at every boot.
    pub cluster: Option<Cluster>,
    /// The nodes by name; none where there is no cluster.
    #[serde(default, rename = "nodelist")]
    pub nodes: BTreeMap<String, Member>,
}

/// What it says of the cluster as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Cluster {
    /// 1 if it has quorum.
    pub quorate: u8,
}

/// What it says of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct Member {
    /// 1 if corosync sees it: it is up and in the cluster.
    #[serde(default)]
    pub online: u8,
    /// Its address as text, which only [`Self::address`] checks; `None` where pmxcfs has none yet.
    pub ip: Option<String>,
}

impl Member {
    /// Its address; `None` where there is none, or what is there is none.
    pub fn address(&self) -> Option<IpAddr> {
        self.ip.as_ref()?.parse().ok()
    }
}

impl Members {
    /// Reads the file; `None` where it is not there.
    ///
    /// # Errors
    /// It cannot be read, or is not pmxcfs's JSON.
    pub fn read(root: &Root) -> Result<Option<Self>, Failure> {
        root.read(FILE)?.map(|text| Self::parse(&text)).transpose()
    }

    /// Understands the file's content.
    ///
    /// # Errors
    /// It is not pmxcfs's JSON.
    pub fn parse(text: &[u8]) -> Result<Self, Failure> {
        let error = |error| Failure::new(format!("read {FILE}"), format!("not pmxcfs's JSON: {error}"));
        serde_json::from_slice(text).map_err(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_an_address() {
        let text = br#"{"nodename":"a","cluster":{"quorate":1},"nodelist":{"a":{"id":1,"online":1,"ip":"10.0.0.1"},
            "b":{"id":2,"online":0},"c":{"id":3,"online":1,"ip":"-oProxyCommand=x"},"d":{"online":1,"ip":"fd00::4"}}}"#;
        let members = Members::parse(text).unwrap();
        let address = |node: &str| members.nodes[node].address();
        assert_eq!((address("a"), address("d")), ("10.0.0.1".parse().ok(), "fd00::4".parse().ok()));
        assert_eq!((address("b"), address("c")), (None, None));
        assert_eq!((members.nodes["a"].online, members.nodes["b"].online), (1, 0));
        assert!(Members::parse(b"{").is_err());
    }

    #[test]
    fn a_node_alone_has_no_cluster_and_no_nodes() {
        let members = Members::parse(br#"{"nodename":"pve1","version":3}"#).unwrap();
        assert_eq!(members, Members::default());
    }
}
