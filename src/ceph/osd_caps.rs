//! What a user's caps allow on the OSDs: yes, no, or not known. Pure.
//!
//! As `src/osd/OSDCap.cc` reads them (run on 16.2.15, `tests/ceph/rights.rs`): grants add up; each is `allow` with letters and a place, in either
//! order, or a profile with a place. A grant that is bound to a network, an object's name, a class or a tag allows something
//! that is not known here; so does one that is not understood.

use crate::ceph::caps::{Caps, grants, words};

/// The right to read objects (`r`).
pub const READ: u8 = 1;
/// Writing objects, watching them too.
pub const WRITE: u8 = 2;
/// Calling methods of classes, which RBD's lock and header are made of.
pub const EXECUTE: u8 = 4;
/// All of them: what opening an image for writing takes.
pub const ALL: u8 = READ | WRITE | EXECUTE;

/// A pool and a namespace in it; `None` is the default one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<'a> {
    /// The pool's name.
    pub pool: &'a str,
    /// The RBD namespace, if not the default one.
    pub namespace: Option<&'a str>,
}

/// Whether the caps allow all of `rights` in a place.
pub fn may(caps: &Caps, place: Place<'_>, rights: u8) -> Option<bool> {
    let osd = caps.0.get("osd").map_or("", String::as_str);
    let (mut sure, mut perhaps) = (0, 0);
    for grant in grants(osd) {
        match Grant::parse(&words(grant)) {
            Some(grant) if !grant.is_for(place) => {}
            Some(grant) if grant.bound => perhaps |= grant.rights | grant.partly,
            Some(grant) => {
                sure |= grant.rights;
                perhaps |= grant.partly;
            }
            None => perhaps |= ALL,
        }
    }
    match (rights & !sure == 0, rights & !(sure | perhaps) == 0) {
        (true, _) => Some(true),
        (_, false) => Some(false),
        (false, true) => None,
    }
}

/// One grant.
#[derive(Debug, Default, PartialEq, Eq)]
struct Grant {
    rights: u8,
    /// Rights of which it gives a part.
    partly: u8,
    pool: Option<String>,
    namespace: Option<String>,
    /// It holds under a condition that is not looked at here.
    bound: bool,
}

impl Grant {
    /// `None`: not understood.
    fn parse(words: &[String]) -> Option<Self> {
        let mut grant = Self::default();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let words = match words.as_slice() {
            [granted @ .., "network", _] => {
                grant.bound = true;
                granted
            }
            granted => granted,
        };
        let mut rest = match words {
            ["profile", name, rest @ ..] => {
                grant.profile(name)?;
                rest
            }
            ["allow", rest @ ..] if !rest.is_empty() => rest,
            _ => return None,
        };
        while let Some(left) = grant.take(rest) {
            rest = left;
        }
        rest.is_empty().then_some(grant)
    }

    /// Takes what stands first; `None` where that is nothing, or not understood.
    fn take<'w>(&mut self, words: &'w [&'w str]) -> Option<&'w [&'w str]> {
        let rest = match *words {
            ["pool", name, ref rest @ ..] => {
                self.pool = Some(name.to_owned());
                rest
            }
            ["namespace", name, ref rest @ ..] => {
                self.namespace = Some(name.to_owned());
                rest
            }
            ["object_prefix", _, ref rest @ ..] | ["tag", _, _, _, ref rest @ ..] => {
                self.bound = true;
                rest
            }
            ["class-read" | "class-write", ref rest @ ..] => {
                self.partly |= EXECUTE;
                rest
            }
            ["*" | "all", ref rest @ ..] => {
                self.rights |= ALL;
                rest
            }
            [letters, ref rest @ ..]
                if !letters.is_empty() && letters.bytes().all(|l| b"rwx".contains(&l)) =>
            {
                let right = |letter, right| if letters.contains(letter) { right } else { 0 };
                self.rights |= right('r', READ) | right('w', WRITE) | right('x', EXECUTE);
                rest
            }
            _ => return None,
        };
        Some(rest)
    }

    /// `OSDCapGrant::expand_profile`.
    fn profile(&mut self, name: &str) -> Option<()> {
        (self.rights, self.partly) = match name {
            "rbd" => (ALL, 0),
            // And those methods that only read.
            "rbd-read-only" => (READ, EXECUTE),
            "read-only" => (READ, 0),
            "read-write" => (READ | WRITE, 0),
            _ => return None,
        };
        Some(())
    }

    fn is_for(&self, place: Place<'_>) -> bool {
        let namespace = place.namespace.unwrap_or_default();
        let fits = |wanted: &String| match wanted.strip_suffix('*') {
            Some(prefix) => namespace.starts_with(prefix),
            None => namespace == wanted,
        };
        self.pool.as_deref().is_none_or(|pool| pool == place.pool) && self.namespace.as_ref().is_none_or(fits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caps(osd: &str) -> Caps {
        Caps([("osd".to_owned(), osd.to_owned())].into())
    }

    /// `tests/ceph/rights.rs` asks a real OSD the same.
    #[test]
    fn what_is_not_understood_is_never_a_no() {
        let place = Place { pool: "data", namespace: None };
        for (osd, read, all) in [
            ("profile rbd pool=data", Some(true), Some(true)),
            ("profile rbd pool=rbd", Some(false), Some(false)),
            ("profile rbd", Some(true), Some(true)),
            ("allow rwx", Some(true), Some(true)),
            ("allow *", Some(true), Some(true)),
            ("allow rw pool=data, allow x pool data", Some(true), Some(true)),
            ("allow pool data rwx", Some(true), Some(true)),
            ("allow r", Some(true), Some(false)),
            ("profile rbd-read-only pool=data", Some(true), Some(false)),
            ("allow r pool=data;profile rbd pool=rbd", Some(true), Some(false)),
            ("profile rbd pool=data namespace=x", Some(false), Some(false)),
            ("profile rbd pool=data namespace=\"\"", Some(true), Some(true)),
            ("profile rbd pool=rbd, profile rbd pool=data network 10.0.0.0/8", None, None),
            ("allow rwx pool=data object_prefix rbd_", None, None),
            ("allow rwx tag rbd data=*", None, None),
            ("profile of-a-later-release", None, None),
            ("allow rwx pool=data and more", None, None),
            ("allow class rbd", None, None),
            ("", Some(false), Some(false)),
        ] {
            assert_eq!((may(&caps(osd), place, READ), may(&caps(osd), place, ALL)), (read, all), "{osd}");
        }
        assert_eq!(may(&Caps::default(), place, READ), Some(false));
        let tenant = Place { pool: "p", namespace: Some("tenant-1") };
        assert_eq!(may(&caps("profile rbd pool=p namespace=tenant-*"), tenant, ALL), Some(true));
        assert_eq!(may(&caps("profile rbd pool=p namespace=other"), tenant, ALL), Some(false));
    }
}
