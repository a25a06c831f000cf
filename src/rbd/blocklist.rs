//! Which of this node's kernel clients are on the OSD blocklist. One entry stops all that is mapped through the client,
//! and every further map that shares it ([`crate::kernel::client`]).

use crate::ceph::cluster::BlocklistEntry;
use std::net::IpAddr;

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

/// `10.0.0.0:0/24`, a CIDR range: the number after the slash is the length of the prefix.
fn in_range(address: &str, range: &str) -> bool {
    let covers = || {
        let (place, length) = range.rsplit_once('/')?;
        let length: u32 = length.parse().ok()?;
        match (host_of(place).or_else(|| place.parse().ok())?, host_of(address)?) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                let mask = u32::MAX.checked_shl(32_u32.checked_sub(length)?).unwrap_or(0);
                Some(a.to_bits() & mask == b.to_bits() & mask)
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                let mask = u128::MAX.checked_shl(128_u32.checked_sub(length)?).unwrap_or(0);
                Some(a.to_bits() & mask == b.to_bits() & mask)
            }
            _ => None,
        }
    };
    covers().unwrap_or(false)
}

/// The host of `10.0.0.1:0/492268007` or `[fd00::1]:0/492268007`.
pub fn host_of(address: &str) -> Option<IpAddr> {
    let place = address.split('/').next()?;
    let host = place.rsplit_once(':').map_or(place, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
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
