//! Which clients the OSD blocklist shuts out. An entry that holds a kernel client stops all that is mapped through it, and
//! every further map that shares it ([`crate::kernel::client`]).

use crate::rbd::address::{host_of, in_range};
use serde::{Deserialize, Serialize};

/// An address on the OSD blocklist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct BlocklistEntry {
    /// `10.0.0.1:0/492268007`, or a range `10.0.0.0:0/24`.
    pub address: String,
    /// When the entry ends, as the monitor writes it (`2026-11-23T05:00:00.000000+0000`).
    pub until: String,
    /// A CIDR range, not one address.
    pub range: bool,
}

/// The entry that holds a client's address, `10.0.0.1:0/492268007`.
pub fn entry_of<'a>(address: &str, blocklist: &'a [BlocklistEntry]) -> Option<&'a BlocklistEntry> {
    blocklist.iter().find(|entry| {
        if entry.range { in_range(address, &entry.address) } else { is(address, &entry.address) }
    })
}

/// The entry that holds every client on the host of an address, whatever its nonce.
pub fn entry_of_host<'a>(address: &str, blocklist: &'a [BlocklistEntry]) -> Option<&'a BlocklistEntry> {
    let (place, _) = address.rsplit_once('/')?;
    // No client has this nonce: the monitors take it for the whole host.
    entry_of(&format!("{place}/0"), blocklist)
}

/// The same client; nonce 0 stands for every client of the address (`OSDMap::is_blocklisted`).
fn is(address: &str, entry: &str) -> bool {
    let whole_host = || {
        let host = entry.strip_suffix("/0")?;
        Some(host_of(host)? == host_of(address)?)
    };
    address == entry || whole_host().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(address: &str, range: bool) -> BlocklistEntry {
        BlocklistEntry { address: address.into(), until: "later".into(), range }
    }

    #[test]
    fn entries_are_clients_hosts_or_ranges() {
        let mine = "10.0.0.1:0/77";
        for (address, range, hit) in [
            ("10.0.0.1:0/77", false, true),
            ("10.0.0.1:0/78", false, false),
            ("10.0.0.1:0/0", false, true),
            ("10.0.0.2:0/0", false, false),
            ("10.0.0.0:0/24", true, true),
            ("10.0.1.0:0/24", true, false),
            ("0.0.0.0:0/0", true, true),
            ("nonsense", true, false),
            ("10.0.0.0:0/33", true, false),
        ] {
            assert_eq!(entry_of(mine, &[entry(address, range)]).is_some(), hit, "{address}");
        }
        for (address, range, hit) in
            [("10.0.0.1:0/77", false, false), ("10.0.0.1:0/0", false, true), ("10.0.0.0:0/24", true, true)]
        {
            assert_eq!(entry_of_host(mine, &[entry(address, range)]).is_some(), hit, "{address}");
        }
        assert!(entry_of("[fd00::1]:0/5", &[entry("[fd00::]:0/64", true)]).is_some());
        assert!(entry_of("[fd00::1]:0/5", &[entry("[fd00::1]:0/0", false)]).is_some());
    }
}
