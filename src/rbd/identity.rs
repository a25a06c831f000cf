//! Which image it is. A name is for people: an image can be renamed, removed and made anew, and two clusters may both
//! have `rbd/vm-516-disk-0` (PVE bug 3969). What tells an image from all others is its cluster's fsid, its pool and
//! namespace, and the id that Ceph gave it when it was made (`rbd_id.NAME` holds it, and so does sysfs's `image_id`).

use crate::rbd::spec::Spec;

/// An image, as far as it is known which one: borrowed from whatever names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageIdentity<'a> {
    /// The cluster's fsid.
    pub fsid: &'a str,
    /// The pool's name.
    pub pool: &'a str,
    /// The namespace; `None` is the default one.
    pub namespace: Option<&'a str>,
    /// The name that it has, or had when it was looked at.
    pub name: &'a str,
    /// Its id; `None` where that could not be read, empty for an image of format 1, which has none.
    pub id: Option<&'a str>,
}

/// Whether two identities are one image's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Same {
    /// They are one image.
    Yes,
    /// They are two images'.
    No,
    /// They have one name, and an id is not known: it may be another image that has had the name.
    Unknown,
}

impl<'a> ImageIdentity<'a> {
    /// The image of this name and id.
    pub fn new(fsid: &'a str, spec: &'a Spec, id: Option<&'a str>) -> Self {
        let Spec { pool, namespace, image } = spec;
        Self { fsid, pool, namespace: namespace.as_deref(), name: image, id }
    }

    /// Whether the other one is the same image. The ids decide; an image of format 1 has its name alone. Where an id is
    /// not known, another name is taken for another image: PVE goes by names too.
    pub fn same(self, other: Self) -> Same {
        let place = |it: Self| (it.fsid, it.pool, it.namespace.unwrap_or_default());
        let named = self.name == other.name;
        match (self.id, other.id) {
            _ if place(self) != place(other) => Same::No,
            (Some(""), Some("")) if named => Same::Yes,
            (Some(""), Some("")) => Same::No,
            (Some(one), Some(two)) if one == two => Same::Yes,
            (None, _) | (_, None) if named => Same::Unknown,
            _ => Same::No,
        }
    }

    /// [`Self::same`] says yes.
    pub fn is(self, other: Self) -> bool {
        self.same(other) == Same::Yes
    }

    /// [`Self::same`] does not say no.
    pub fn may_be(self, other: Self) -> bool {
        self.same(other) != Same::No
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ImageIdentity<'_> =
        ImageIdentity { fsid: "f", pool: "rbd", namespace: None, name: "vm-516-disk-0", id: Some("12ab") };

    #[test]
    fn the_id_decides_and_the_name_only_where_there_is_none() {
        let renamed = ImageIdentity { name: "vm-516-disk-9", ..A };
        let made_anew = ImageIdentity { id: Some("34cd"), ..A };
        let unread = ImageIdentity { id: None, ..A };
        let old_format = ImageIdentity { id: Some(""), ..A };
        for (one, two, expected) in [
            (A, A, Same::Yes),
            (A, renamed, Same::Yes),
            (A, made_anew, Same::No),
            (A, unread, Same::Unknown),
            (unread, unread, Same::Unknown),
            (renamed, unread, Same::No),
            (old_format, old_format, Same::Yes),
            (old_format, ImageIdentity { name: "other", ..old_format }, Same::No),
            (old_format, A, Same::No),
            (old_format, unread, Same::Unknown),
            (A, ImageIdentity { namespace: Some(""), ..A }, Same::Yes),
        ] {
            assert_eq!((one.same(two), two.same(one)), (expected, expected), "{one:?} {two:?}");
            assert_eq!((one.is(two), one.may_be(two)), (expected == Same::Yes, expected != Same::No));
        }
    }

    /// PVE bug 3969: one name, two clusters.
    #[test]
    fn another_place_is_another_image_whatever_else_is_equal() {
        for other in [
            ImageIdentity { fsid: "g", ..A },
            ImageIdentity { pool: "rbd2", ..A },
            ImageIdentity { namespace: Some("ns"), ..A },
        ] {
            assert_eq!(A.same(other), Same::No, "{other:?}");
            let (unread, other) = (ImageIdentity { id: None, ..A }, ImageIdentity { id: None, ..other });
            assert_eq!(unread.same(other), Same::No, "{other:?}");
        }
    }
}
