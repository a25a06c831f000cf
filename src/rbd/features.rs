//! RBD image features as a typed set. Bits and rules: Ceph `src/include/rbd/features.h`.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::ops::{BitAnd, BitOr, Not, Sub};

/// A set of image features; bits without a name are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Features(pub u64);

/// How a feature may be changed on an existing image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changeable {
    /// Set at creation for good.
    Never,
    /// Can be taken away, never given back.
    DisableOnly,
    /// Can be taken away and given back.
    Both,
    /// Ceph sets and clears it itself.
    Internal,
}

/// One named feature.
struct Named {
    bit: Features,
    name: &'static str,
    change: Changeable,
}

const fn named(bit: Features, name: &'static str, change: Changeable) -> Named {
    Named { bit, name, change }
}

/// Every feature that Ceph 20 knows, by bit.
const TABLE: [Named; 12] = [
    named(Features::LAYERING, "layering", Changeable::Never),
    named(Features::STRIPING, "striping", Changeable::Never),
    named(Features::EXCLUSIVE_LOCK, "exclusive-lock", Changeable::Both),
    named(Features::OBJECT_MAP, "object-map", Changeable::Both),
    named(Features::FAST_DIFF, "fast-diff", Changeable::Both),
    named(Features::DEEP_FLATTEN, "deep-flatten", Changeable::DisableOnly),
    named(Features::JOURNALING, "journaling", Changeable::Both),
    named(Features::DATA_POOL, "data-pool", Changeable::Never),
    named(Features::OPERATIONS, "operations", Changeable::Internal),
    named(Features::MIGRATING, "migrating", Changeable::Internal),
    named(Features::NON_PRIMARY, "non-primary", Changeable::Internal),
    named(Features::DIRTY_CACHE, "dirty-cache", Changeable::Internal),
];

impl Features {
    /// No feature at all.
    pub const NONE: Self = Self(0);
    /// Copy-on-write clones.
    pub const LAYERING: Self = Self(0x1);
    /// Fancy striping.
    pub const STRIPING: Self = Self(0x2);
    /// One writer at a time.
    pub const EXCLUSIVE_LOCK: Self = Self(0x4);
    /// A bitmap of the objects that exist.
    pub const OBJECT_MAP: Self = Self(0x8);
    /// Fast differences between snapshots.
    pub const FAST_DIFF: Self = Self(0x10);
    /// Snapshots are flattened too.
    pub const DEEP_FLATTEN: Self = Self(0x20);
    /// A write-ahead journal; krbd never had it.
    pub const JOURNALING: Self = Self(0x40);
    /// Data objects in another pool.
    pub const DATA_POOL: Self = Self(0x80);
    /// Clone v2, groups, trash snapshots.
    pub const OPERATIONS: Self = Self(0x100);
    /// A live migration of the image is under way.
    pub const MIGRATING: Self = Self(0x200);
    /// Demoted mirror image.
    pub const NON_PRIMARY: Self = Self(0x400);
    /// A persistent write-back cache holds writes not yet in the cluster.
    pub const DIRTY_CACHE: Self = Self(0x800);

    /// What `cls_rbd` masks with for a reader (`RBD_FEATURES_INCOMPATIBLE`).
    pub const READ_INCOMPATIBLE: Self = Self(0x1 | 0x2 | 0x80 | 0x800);

    /// The object map and the differences kept with it: Ceph turns both on and off together (`EnableFeaturesRequest`,
    /// `DisableFeaturesRequest`).
    pub const MAPS: Self = Self(0x8 | 0x10);
    /// Which feature needs which (`validate_features` in `librbd/image/CreateRequest.cc`).
    pub const NEEDS: [(Self, Self); 3] = [
        (Self::OBJECT_MAP, Self::EXCLUSIVE_LOCK),
        (Self::FAST_DIFF, Self::OBJECT_MAP),
        (Self::JOURNALING, Self::EXCLUSIVE_LOCK),
    ];

    /// The set with all that has to go when it goes: what needs one of it, and the other of [`Self::MAPS`].
    pub fn with_dependents(self) -> Self {
        // From a need to what needs that: in the order of the table one way through is enough.
        let all = Self::NEEDS.iter().fold(self, |all, (one, needed)| match all.contains(*needed) {
            true => all | *one,
            false => all,
        });
        all.paired()
    }

    /// The set with both of [`Self::MAPS`] where it has one.
    pub fn paired(self) -> Self {
        if self.intersects(Self::MAPS) { self | Self::MAPS } else { self }
    }

    /// What of the set needs exclusive-lock, if that is not in it.
    pub fn without_lock(self) -> Self {
        let lock = Self::EXCLUSIVE_LOCK;
        if self.contains(lock) { Self::NONE } else { self & lock.with_dependents() }
    }

    /// Every feature of `other` is in this set.
    pub fn contains(self, other: Self) -> bool {
        self & other == other
    }

    /// At least one feature of `other` is in this set.
    pub fn intersects(self, other: Self) -> bool {
        !(self & other).is_empty()
    }

    /// No feature at all.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The features whose change is of this kind.
    pub fn with_change(change: Changeable) -> Self {
        TABLE.iter().filter(|n| n.change == change).fold(Self::NONE, |all, n| all | n.bit)
    }

    /// The names, by bit; bits without a name in hexadecimal.
    pub fn names(self) -> Vec<String> {
        let known = TABLE.iter().fold(Self::NONE, |all, n| all | n.bit);
        let mut names: Vec<String> =
            TABLE.iter().filter(|n| self.contains(n.bit)).map(|n| n.name.to_owned()).collect();
        let rest = self - known;
        if !rest.is_empty() {
            names.push(format!("{:#x}", rest.0));
        }
        names
    }

    /// The feature of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        let hex = || u64::from_str_radix(name.strip_prefix("0x")?, 16).ok().map(Self);
        TABLE.iter().find(|n| n.name == name).map(|n| n.bit).or_else(hex)
    }
}

impl BitOr for Features {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitAnd for Features {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl Not for Features {
    type Output = Self;
    fn not(self) -> Self {
        Self(!self.0)
    }
}

impl Sub for Features {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        self & !other
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names().join(", "))
    }
}

impl Serialize for Features {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.names().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Features {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::<String>::deserialize(deserializer)?.iter().try_fold(Self::NONE, |all, name| {
            let feature = Self::from_name(name)
                .ok_or_else(|| serde::de::Error::custom(format!("unknown RBD feature `{name}`")))?;
            Ok(all | feature)
        })
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for Features {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Features".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let mut schema = Vec::<String>::json_schema(generator);
        schema.insert("description".to_owned(), "Names of image features, as `rbd info` shows them.".into());
        schema
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixty_one_is_the_incident() {
        assert_eq!(Features(61).to_string(), "layering, exclusive-lock, object-map, fast-diff, deep-flatten");
    }

    #[test]
    fn serialises_to_names_and_back_with_unknown_bits() {
        let set = Features(0x1 | 0x40 | 0x1_0000);
        let text = serde_json::to_string(&set).unwrap();
        assert_eq!(text, r#"["layering","journaling","0x10000"]"#);
        assert_eq!(serde_json::from_str::<Features>(&text).unwrap(), set);
    }

    #[test]
    fn what_needs_a_feature_goes_with_it_and_is_nothing_without_the_lock() {
        let (lock, maps, journal) = (Features::EXCLUSIVE_LOCK, Features::MAPS, Features::JOURNALING);
        for (set, with) in [
            (lock, lock | maps | journal),
            (Features::OBJECT_MAP, maps),
            (Features::FAST_DIFF, maps),
            (journal, journal),
            (Features::DEEP_FLATTEN, Features::DEEP_FLATTEN),
        ] {
            assert_eq!(set.with_dependents(), with, "{set}");
        }
        assert_eq!((lock | maps).without_lock(), Features::NONE);
        assert_eq!((Features::LAYERING | maps | journal).without_lock(), maps | journal);
    }

    #[test]
    fn layering_can_never_be_changed_and_deep_flatten_never_be_given_back() {
        assert!(Features::with_change(Changeable::Never).contains(Features::LAYERING));
        assert_eq!(Features::with_change(Changeable::DisableOnly), Features::DEEP_FLATTEN);
    }
}
