//! What a kernel's version says: what its rbd driver can map, and what Proxmox VE sets on images because of it.

use crate::rbd::features::Features;

/// Major and minor version of a kernel release (`6.8.12-4-pve` → `(6, 8)`), as PVE's
/// `PVE::ProcFSTools::kernel_version` takes it from `/proc/version`.
pub fn parse(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Since which kernel krbd can map which features: Ceph `doc/rbd/rbd-config-ref.rst`, "KRBD support".
const KRBD_SINCE: [((u32, u32), Features); 6] = [
    ((3, 10), Features(Features::LAYERING.0 | Features::STRIPING.0)),
    ((4, 9), Features::EXCLUSIVE_LOCK),
    ((4, 11), Features::DATA_POOL),
    ((4, 16), Features::OPERATIONS),
    ((5, 1), Features::DEEP_FLATTEN),
    ((5, 3), Features(Features::OBJECT_MAP.0 | Features::FAST_DIFF.0)),
];

/// What krbd of this kernel can map, for as long as `/sys/bus/rbd/supported_features` does not say it itself.
pub fn krbd_features(version: (u32, u32)) -> Features {
    KRBD_SINCE
        .iter()
        .filter(|(since, _)| *since <= version)
        .fold(Features::NONE, |all, (_, some)| all | *some)
}

/// What Proxmox VE sets on an image before it maps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PveTarget {
    /// Turned on where missing; if that fails PVE warns and maps all the same.
    pub enable: Features,
    /// Turned off where present; if that fails PVE does not map.
    pub disable: Features,
}

/// What PVE sets on this kernel: `PVE::Storage::RBDPlugin::krbd_feature_update`, unchanged since PVE 6.1.
///
/// A version that could not be read, `(0, 0)`, asks for nothing: nothing may be changed on a guess.
pub fn pve_target(version: (u32, u32)) -> PveTarget {
    let lock = Features::EXCLUSIVE_LOCK;
    let maps = Features::OBJECT_MAP | Features::FAST_DIFF;
    let flatten = Features::DEEP_FLATTEN;
    match version {
        (0, _) => PveTarget { enable: Features::NONE, disable: Features::NONE },
        v if v < (5, 0) => PveTarget { enable: Features::NONE, disable: lock | maps | flatten },
        v if v < (5, 3) => PveTarget { enable: lock, disable: maps | flatten },
        _ => PveTarget { enable: lock | maps, disable: Features::NONE },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_all_kinds_are_parsed() {
        let table = [
            ("6.8.12-4-pve", Some((6, 8))),
            ("5.3.0", Some((5, 3))),
            ("7.2-rc1", Some((7, 2))),
            ("6.17", Some((6, 17))),
            ("6", None),
            ("", None),
            ("pve", None),
        ];
        for (release, version) in table {
            assert_eq!(parse(release), version, "{release}");
        }
    }

    #[test]
    fn what_krbd_can_map_grows_with_the_kernel() {
        let table = [
            ((3, 9), 0),
            ((3, 10), 0x3),
            ((4, 8), 0x3),
            ((4, 9), 0x7),
            ((4, 11), 0x87),
            ((4, 16), 0x187),
            ((5, 0), 0x187),
            ((5, 1), 0x1a7),
            ((5, 3), 0x1bf),
            ((7, 2), 0x1bf),
        ];
        for (version, features) in table {
            assert_eq!(krbd_features(version), Features(features), "{version:?}");
        }
        assert_eq!(krbd_features((5, 3)), Features::KRBD_5_3);
    }

    #[test]
    fn pve_sets_three_features_on_modern_kernels_and_takes_them_on_old_ones() {
        let table = [
            ((4, 15), 0, 0x3c),
            ((5, 0), 0x4, 0x38),
            ((5, 2), 0x4, 0x38),
            ((5, 3), 0x1c, 0),
            ((6, 17), 0x1c, 0),
            ((0, 0), 0, 0),
        ];
        for (version, enable, disable) in table {
            let expected = PveTarget { enable: Features(enable), disable: Features(disable) };
            assert_eq!(pve_target(version), expected, "{version:?}");
        }
    }
}
