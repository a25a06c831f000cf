//! Who holds an image's lock, who watches it, and what that says of the owner.

use crate::rbd::address::same_client;
use serde::{Deserialize, Serialize};

/// The tag of krbd's and librbd's own lock; `rbd lock add` sets any other (`RBD_LOCK_TAG`).
const INTERNAL_TAG: &str = "internal";
/// What the cookie of krbd's and librbd's own lock begins with; the cookie of the owner's watch follows.
const INTERNAL_COOKIE: &str = "auto ";

/// Who holds the image's lock object.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Lock {
    /// `internal` for librbd's and krbd's own exclusive lock, anything else for `rbd lock add`.
    pub tag: String,
    /// The lock is exclusive (else shared).
    pub exclusive: bool,
    /// The owners; empty when nobody holds it.
    pub lockers: Vec<Locker>,
}

impl Lock {
    /// An owner that neither librbd nor krbd made one: by `rbd lock add`, a script, a shared lock. Only who set such a lock
    /// knows what it is for, so it is never broken.
    pub fn set_by_hand(&self) -> Option<&Locker> {
        let own = self.tag == INTERNAL_TAG && self.exclusive;
        self.lockers.iter().find(|locker| !own || !locker.cookie.starts_with(INTERNAL_COOKIE))
    }

    /// One of its owners is this watcher.
    pub fn is_owned_by(&self, watcher: &Watcher) -> bool {
        self.lockers.iter().any(|locker| watcher_of(locker, std::slice::from_ref(watcher)).is_some())
    }
}

/// One owner of a lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Locker {
    /// The client's name, `client.4140`.
    pub client: String,
    /// The lock's cookie, `auto 140192430251296`; the watch has the number in it.
    pub cookie: String,
    /// `10.0.0.1:0/492268007`, no `v1:` or `v2:` before it.
    pub address: String,
}

/// One client that watches the image's header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Watcher {
    /// `10.0.0.1:0/492268007`, no `v1:` or `v2:` before it.
    pub address: String,
    /// The client's number: 4140 of `client.4140`.
    pub client: u64,
    /// The watch's cookie; krbd's begin at 0xffff000000000001.
    pub cookie: u64,
}

/// The watcher that a locker is: same address, and the cookie that `auto N` names. `None`: the owner is dead, or the
/// lock is none of librbd's or krbd's own.
pub fn watcher_of<'a>(locker: &Locker, watchers: &'a [Watcher]) -> Option<&'a Watcher> {
    let cookie: u64 = locker.cookie.strip_prefix(INTERNAL_COOKIE)?.parse().ok()?;
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
    fn any_tag_cookie_or_sharing_but_their_own_is_a_lock_set_by_hand() {
        let own = Lock {
            tag: "internal".to_owned(),
            exclusive: true,
            lockers: vec![locker("10.0.0.1:0/7", "auto 7")],
        };
        assert_eq!((own.set_by_hand(), Lock::default().set_by_hand()), (None, None));
        let mut two = own.clone();
        two.lockers.push(locker("10.0.0.2:0/8", "mine"));
        for lock in
            [Lock { tag: String::new(), ..own.clone() }, Lock { exclusive: false, ..own.clone() }, two]
        {
            assert_eq!(lock.set_by_hand(), lock.lockers.last(), "{lock:?}");
        }
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
