//! The features of Ceph's protocol that a client may lack: their names, what in a cluster demands them, and the first Linux that has
//! them (`include/linux/ceph/ceph_features.h`; what demands them: `OSDMap::get_features` in Ceph's `src/osd/OSDMap.cc`).

/// A feature that the cluster demands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProtocolFeature {
    /// The number of its bit, from 0.
    pub bit: u8,
    /// Its name in the header; the newest one where several share a bit.
    pub name: &'static str,
    /// What in the cluster demands it.
    pub demanded_by: &'static str,
    /// The first Linux that has it; `None` where none is known to.
    pub since: Option<&'static str>,
}

/// Those that a cluster can come to demand of a client. Bits that are used a second or third time are only so used by servers
/// since Jewel and Mimic, which every cluster of today is.
const TABLE: [ProtocolFeature; 23] = [
    of(2, "SERVER_NAUTILUS", "require_min_compat_client nautilus", None),
    of(14, "SERVER_KRAKEN", "require_min_compat_client kraken", None),
    of(16, "SERVER_OCTOPUS", "require_min_compat_client octopus", None),
    of(18, "CRUSH_TUNABLES", "CRUSH tunables (profile bobtail or later)", Some("3.6")),
    of(20, "SERVER_PACIFIC", "require_min_compat_client pacific", None),
    of(
        21,
        "OSDMAP_PG_UPMAP, CRUSH_CHOOSE_ARGS",
        "pg-upmap or pg-upmap-primary entries (the balancer's mode upmap or read), or a CRUSH weight-set",
        Some("4.13"),
    ),
    of(23, "MSG_AUTH", "cephx_require_signatures", Some("3.19")),
    of(25, "CRUSH_TUNABLES2", "CRUSH tunables (profile bobtail or later)", Some("3.9")),
    of(28, "SERVER_MIMIC", "require_min_compat_client mimic", None),
    of(30, "OSDHASHPSPOOL", "pools with the flag hashpspool", Some("3.9")),
    of(
        31,
        "SERVER_REEF",
        "pg-upmap-primary entries (the read balancer), or require_min_compat_client reef",
        None,
    ),
    of(33, "SERVER_QUINCY", "require_min_compat_client quincy", None),
    of(35, "OSD_CACHEPOOL", "a cache tier", Some("3.14")),
    of(36, "CRUSH_V2", "CRUSH rules of erasure-coded pools (indep)", Some("3.14")),
    of(38, "CRUSH_MSR", "CRUSH rules of type msr", None),
    of(
        41,
        "CRUSH_TUNABLES3, OSD_PRIMARY_AFFINITY",
        "CRUSH tunables (profile firefly or later), or primary affinity",
        Some("3.15"),
    ),
    of(43, "OSD_POOLRESEND", "OSDs of Ceph 12 or later", Some("4.13")),
    of(48, "CRUSH_V4", "straw2 buckets (CRUSH tunables, profile hammer or later)", Some("4.1")),
    of(56, "NEW_OSDOP_ENCODING", "OSDs of Ceph 12 or later", Some("4.13")),
    of(57, "SERVER_JEWEL, MON_STATEFUL_SUB", "require_min_compat_client jewel", Some("4.13")),
    of(58, "CRUSH_TUNABLES5", "CRUSH tunables, profile jewel or later (chooseleaf_stable)", Some("4.5")),
    of(59, "MSG_ADDR2", "monitors that are reached by the protocol msgr2 only", Some("5.11")),
    of(61, "CEPHX_V2", "cephx_require_version 2", Some("4.19")),
];

const fn of(
    bit: u8,
    name: &'static str,
    demanded_by: &'static str,
    since: Option<&'static str>,
) -> ProtocolFeature {
    ProtocolFeature { bit, name, demanded_by, since }
}

/// The features of a mask that are known, and the bits that are not.
pub fn named(mask: u64) -> (Vec<ProtocolFeature>, Vec<u8>) {
    let known: Vec<ProtocolFeature> =
        TABLE.into_iter().filter(|feature| mask & 1 << feature.bit != 0).collect();
    let bits = (0..64).filter(|bit| mask & 1 << bit != 0);
    (known.clone(), bits.filter(|bit| known.iter().all(|feature| feature.bit != *bit)).collect())
}

/// What a mask demands, in words: `CRUSH_TUNABLES5 (bit 58, Linux 4.5 and later): demanded by CRUSH tunables, …`.
pub fn told(mask: u64) -> String {
    let (known, rest) = named(mask);
    let mut words: Vec<String> = known
        .iter()
        .map(|ProtocolFeature { bit, name, demanded_by, since }| {
            let since = since.map(|since| format!(", Linux {since} and later")).unwrap_or_default();
            format!("{name} (bit {bit}{since}): demanded by {demanded_by}")
        })
        .collect();
    words.extend(rest.iter().map(|bit| format!("bit {bit}, which rbd-preflight does not know")));
    words.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Masks that people reported, and one of which nothing is known.
    #[test]
    fn what_is_missing_is_named_with_what_demands_it() {
        let names = |mask| named(mask).0.into_iter().map(|feature| feature.name).collect::<Vec<_>>();
        assert_eq!(names(0x400_0000_0000_0000), ["CRUSH_TUNABLES5"]);
        assert_eq!(names(0x1_0000_0000_0000), ["CRUSH_V4"]);
        assert_eq!(
            names(0x200_0000_0020_0000),
            ["OSDMAP_PG_UPMAP, CRUSH_CHOOSE_ARGS", "SERVER_JEWEL, MON_STATEFUL_SUB"]
        );
        assert_eq!(named(1 << 62 | 1 << 18), (vec![TABLE[3]], vec![62]));
        let expected = "CRUSH_TUNABLES5 (bit 58, Linux 4.5 and later): demanded by CRUSH tunables, profile jewel or later \
             (chooseleaf_stable); bit 62, which rbd-preflight does not know";
        assert_eq!(told(1 << 58 | 1 << 62), expected);
    }

    #[test]
    fn each_bit_has_one_row() {
        assert!(TABLE.windows(2).all(|pair| pair[0].bit < pair[1].bit));
    }
}
