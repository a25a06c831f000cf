//! Addresses as PVE's configs write them.

use std::net::{Ipv4Addr, Ipv6Addr};

/// The host and port of an address (`PVE::Tools::parse_host_and_port`): `h`, `h:1`, `[h]`, `[h]:1`, `fd00::1.1`.
pub(crate) fn host_and_port(address: &[u8]) -> Option<(&str, Option<&str>)> {
    let address = std::str::from_utf8(address).ok()?;
    if let Some(found) = split_port(address, ':').filter(|(host, _)| is_plain_host(host)) {
        return Some(found);
    }
    if let Some((host, rest)) = address.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        let port = if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) };
        let valid = (is_plain_host(host) || is_ipv6(host)) && port.is_none_or(is_port);
        return valid.then_some((host, port));
    }
    if is_ipv6(address) {
        return Some((address, None));
    }
    split_port(address, '.').filter(|(host, _)| is_ipv6(host))
}

/// One monitor as `PVE::CephConfig::hostlist` writes it: IPv6 in brackets, the port behind a colon.
///
/// An address that PVE cannot parse becomes the empty string.
pub(crate) fn monitor(address: &[u8]) -> String {
    let Some((host, port)) = host_and_port(address) else { return String::new() };
    let colons = host.bytes().filter(|&byte| byte == b':').count();
    // Net::IP counts colons and takes eight of them for no IPv6 address
    let host = if (1..8).contains(&colons) { format!("[{host}]") } else { host.to_owned() };
    port.map_or(host.clone(), |port| format!("{host}:{port}"))
}

/// An IP address or DNS name (`PVE::Storage::Plugin::verify_server`).
pub(crate) fn is_server(text: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(text) else { return false };
    text.parse::<Ipv4Addr>().is_ok() || is_ipv6(text) || is_dns_name(text.as_bytes())
}

/// A DNS name (`PVE::JSONSchema::pve_verify_dns_name`).
pub(crate) fn is_dns_name(name: &[u8]) -> bool {
    name.split(|&byte| byte == b'.').all(is_node_name)
}

/// A node's name (`PVE::JSONSchema::pve_verify_node_name`): one DNS label.
pub(crate) fn is_node_name(name: &[u8]) -> bool {
    let inner = name.iter().all(|&byte| byte.is_ascii_alphanumeric() || byte == b'-');
    inner && !name.is_empty() && !name.starts_with(b"-") && !name.ends_with(b"-")
}

/// Cuts a port off, if the part behind the last separator is one.
fn split_port(address: &str, separator: char) -> Option<(&str, Option<&str>)> {
    match address.rsplit_once(separator) {
        Some((host, port)) => is_port(port).then_some((host, Some(port))),
        None => Some((address, None)),
    }
}

fn is_port(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// IPv4 addresses are of this form too.
fn is_plain_host(host: &str) -> bool {
    !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'))
}

fn is_ipv6(text: &str) -> bool {
    text.parse::<Ipv6Addr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let parse = |text: &'static str| host_and_port(text.as_bytes());
        assert_eq!(parse("10.0.0.1"), Some(("10.0.0.1", None)));
        assert_eq!(parse("10.0.0.1:6789"), Some(("10.0.0.1", Some("6789"))));
        assert_eq!(parse("mon-a.example:3300"), Some(("mon-a.example", Some("3300"))));
        assert_eq!(parse("[fd00::1]:6789"), Some(("fd00::1", Some("6789"))));
        assert_eq!(parse("[mon]"), Some(("mon", None)));
        assert_eq!(parse("fd00::1.6789"), Some(("fd00::1", Some("6789"))));
        assert_eq!(parse("fd00::1"), Some(("fd00::1", None)));
        assert_eq!(parse("::1.2.3.4"), Some(("::1.2.3.4", None)));
        for not in ["mon_a", "10.0.0.1:", "[v2:1.2.3.4:3300", "", "[]", "[fd00::1]x", "fd00::g", "a:b"] {
            assert_eq!(parse(not), None, "{not}");
        }
    }

    #[test]
    fn monitors_as_rbd_gets_them() {
        assert_eq!(monitor(b"fd00::1.6789"), "[fd00::1]:6789");
        assert_eq!(monitor(b"[fd00::1]"), "[fd00::1]");
        assert_eq!(monitor(b"1:2:3:4:5:6:7::"), "1:2:3:4:5:6:7::");
        assert_eq!(monitor(b"a:1"), "a:1");
        assert_eq!(monitor(b"mon_a"), "");
    }

    #[test]
    fn names() {
        assert!(is_dns_name(b"a-b.c1") && is_server(b"::1") && is_server(b"10.0.0.1") && is_node_name(b"n1"));
        for not in ["", "a..b", "-a", "a-", "a_b", "a."] {
            assert!(!is_dns_name(not.as_bytes()), "{not}");
        }
    }
}
