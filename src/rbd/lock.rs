//! Whether a lock's owner lives: it does if it still watches the image.

use crate::ceph::image::{Locker, Watcher};

/// An address without its messenger's type: `v1:10.0.0.1:0/4` and `v2:10.0.0.1:0/4` are one client's
/// (librbd's `BreakRequest` and krbd's `find_watcher` compare without it too).
pub fn bare_address(address: &str) -> &str {
    ["v1:", "v2:", "any:"].iter().find_map(|kind| address.strip_prefix(kind)).unwrap_or(address)
}

/// Both addresses are one client's.
pub fn same_client(a: &str, b: &str) -> bool {
    bare_address(a) == bare_address(b)
}

/// The watcher that a locker is: same address, and the cookie that `auto N` names. `None`: the owner is dead, or the
/// lock is none of librbd's or krbd's own.
pub fn watcher_of<'a>(locker: &Locker, watchers: &'a [Watcher]) -> Option<&'a Watcher> {
    let cookie: u64 = locker.cookie.strip_prefix("auto ")?.parse().ok()?;
    watchers.iter().find(|w| w.cookie == cookie && same_client(&w.address, &locker.address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locker(address: &str, cookie: &str) -> Locker {
        Locker { client: "client.4".to_owned(), cookie: cookie.to_owned(), address: address.to_owned() }
    }

    fn watcher(address: &str, cookie: u64) -> Watcher {
        Watcher { address: address.to_owned(), client: 4, cookie }
    }

    #[test]
    fn addresses_lose_their_type_only() {
        assert_eq!(bare_address("v1:10.0.0.1:0/492268007"), "10.0.0.1:0/492268007");
        assert_eq!(bare_address("v2:[fd00::1]:0/7"), "[fd00::1]:0/7");
        assert_eq!(bare_address("10.0.0.1:0/7"), "10.0.0.1:0/7");
    }

    #[test]
    fn an_owner_lives_if_address_and_cookie_both_watch() {
        let watchers = [watcher("10.0.0.1:0/7", 18_446_462_598_732_840_961), watcher("10.0.0.2:0/8", 5)];
        let krbd = locker("v1:10.0.0.1:0/7", "auto 18446462598732840961");
        assert_eq!(watcher_of(&krbd, &watchers), watchers.first());
        assert_eq!(watcher_of(&locker("10.0.0.1:0/7", "auto 5"), &watchers), None);
        assert_eq!(watcher_of(&locker("10.0.0.2:0/9", "auto 5"), &watchers), None);
    }

    #[test]
    fn a_lock_added_by_hand_has_no_watcher() {
        assert_eq!(watcher_of(&locker("10.0.0.2:0/8", "5"), &[watcher("10.0.0.2:0/8", 5)]), None);
        assert_eq!(watcher_of(&locker("10.0.0.2:0/8", "auto x"), &[watcher("10.0.0.2:0/8", 5)]), None);
    }
}
