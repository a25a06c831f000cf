//! Addresses of Ceph's clients: `10.0.0.1:0/492268007` and `[fd00::1]:0/492268007`, host, port and nonce.

use std::net::{IpAddr, SocketAddr};

/// An address without its messenger's type: `v1:10.0.0.1:0/4` and `v2:10.0.0.1:0/4` are one client's
/// (librbd's `BreakRequest` and krbd's `find_watcher` compare without it too).
pub fn bare_address(address: &str) -> &str {
    ["v1:", "v2:", "any:"].iter().find_map(|kind| address.strip_prefix(kind)).unwrap_or(address)
}

/// Both addresses are one client's.
pub fn same_client(a: &str, b: &str) -> bool {
    bare_address(a) == bare_address(b)
}

/// The host of an address is in `10.0.0.0:0/24`, a CIDR range: the number after the slash is the length of the prefix.
pub fn in_range(address: &str, range: &str) -> bool {
    let covers = || {
        let (place, length) = range.rsplit_once('/')?;
        let length: u32 = length.parse().ok()?;
        match (host_of(place)?, host_of(address)?) {
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

/// The host of an address: `10.0.0.1:0/492268007`, `v2:[fd00::1]:3300/0`, `[fd00::1]`, `fd00::1`; an IPv4 address that is written
/// as IPv6 is one. `None` for a name.
pub fn host_of(address: &str) -> Option<IpAddr> {
    let place = bare_address(address.trim()).split('/').next()?;
    let bare = place.strip_prefix('[').and_then(|place| place.strip_suffix(']')).unwrap_or(place);
    let with_port = || Some(place.parse::<SocketAddr>().ok()?.ip());
    bare.parse().ok().or_else(with_port).map(|host: IpAddr| host.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_lose_their_type_only() {
        assert_eq!(bare_address("v1:10.0.0.1:0/492268007"), "10.0.0.1:0/492268007");
        assert_eq!(bare_address("v2:[fd00::1]:0/7"), "[fd00::1]:0/7");
        assert_eq!(bare_address("10.0.0.1:0/7"), "10.0.0.1:0/7");
    }

    #[test]
    fn addresses_are_read_in_every_spelling() {
        let ip = |text: &str| host_of(text).map(|ip| ip.to_string());
        for text in ["10.0.0.2:0/77", "v1:10.0.0.2:0/77", "10.0.0.2", "10.0.0.2:6789", "::ffff:10.0.0.2"] {
            assert_eq!(ip(text).as_deref(), Some("10.0.0.2"), "{text}");
        }
        for text in ["[fd00::2]:0/77", "v2:[fd00::2]:0/77", "fd00::2", "[fd00:0:0::2]"] {
            assert_eq!(ip(text).as_deref(), Some("fd00::2"), "{text}");
        }
        for text in ["", "-", "pve2:0/7", "10.0.0.2.3"] {
            assert_eq!(ip(text), None, "{text}");
        }
    }
}
