//! Which maps share a kernel client, worked out as the kernel does it.
//!
//! A map takes a client that is there if nothing tells the two apart that `ceph_compare_options` looks at
//! (`net/ceph/ceph_common.c`; `rbd_client_find` in `drivers/block/rbd.c`): the cluster, the user, the key, libceph's
//! flags and times, the way of connecting, the CRUSH location. Read in Linux 6.x and run option by option on 6.1; the
//! same on 7.x. A client with `noshare` is nobody else's, and a map with `noshare` takes none that is there. The rbd
//! driver's own options (`queue_depth`, `ro`, …) are not compared, nor is `cephx_require_signatures`, which the kernel
//! has read and ignored since it deprecated the option.
//!
//! The kernel compares two things more, which are taken as given: both are in the host's network namespace, and one
//! monitor of the new map is one of the client's, since both come from the cluster's own map of monitors.

use crate::kernel::Mapping;
use crate::reading::Reading;
use std::collections::BTreeMap;

/// libceph's options that are compared, each as it is if nothing is said (`ceph_alloc_options`). Times in seconds.
const COMPARED: [(&str, &str); 15] = [
    ("share", YES),
    ("rxbounce", NO),
    ("ms_mode", "legacy"),
    ("crc", YES),
    ("cephx_sign_messages", YES),
    ("tcp_nodelay", YES),
    ("abort_on_full", NO),
    ("read_from_replica", "no"),
    ("crush_location", ""),
    ("mount_timeout", "60"),
    ("osd_idle_ttl", "60"),
    ("osdkeepalive", "5"),
    ("osd_request_timeout", "0"),
    ("fsid", ""),
    ("ip", ""),
];
/// A flag that is set.
const YES: &str = "yes";
/// A flag that is not set.
const NO: &str = "no";
/// Flags that are set by their name and cleared by `no` before it.
const BOTH_WAYS: [&str; 4] = ["share", "crc", "cephx_sign_messages", "tcp_nodelay"];
/// Flags that can only be set.
const ONE_WAY: [&str; 2] = ["abort_on_full", "rxbounce"];
/// Options with a number of seconds.
const TIMES: [&str; 4] = ["mount_timeout", "osd_idle_ttl", "osdkeepalive", "osd_request_timeout"];
/// Options that nobody compares: the rbd driver's (`rbd_parameters`), those of `rbd map` that the kernel never sees
/// (`udev`), and what the kernel ignores.
const NOT_COMPARED: [&str; 16] = [
    "_pool_ns",
    "alloc_size",
    "cephx_require_signatures",
    "compression_hint",
    "exclusive",
    "lock_on_read",
    "lock_timeout",
    "nocephx_require_signatures",
    "notrim",
    "noudev",
    "queue_depth",
    "read_only",
    "read_write",
    "ro",
    "rw",
    "udev",
];
/// The first release of Ceph whose `rbd map` asks for `ms_mode=prefer-crc` where nobody says otherwise (`build_map_buf`
/// in `src/krbd.cc`, Ceph's pull request 64635, in no release before 20). 16.2.15 and 20.2.4 were run.
const PREFER_CRC_SINCE: u32 = 20;

/// Whether a map would take a client that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sharing {
    /// A map would share it.
    Yes,
    /// It would not, and what tells them apart: `rxbounce`.
    No(String),
    /// It cannot be told, and why.
    Unknown(String),
}

/// What makes a kernel client the one that it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// By option, and `cluster`, `name` and `key`: the value, or why it is not known.
    values: BTreeMap<&'static str, Value>,
    /// Why something more may tell it apart, nobody knows what.
    odd: Option<String>,
}

type Value = Result<String, String>;

/// A map that is to be made.
#[derive(Debug, Clone, Copy)]
pub struct PlainMap<'a> {
    /// The cluster's fsid.
    pub fsid: &'a str,
    /// The Ceph user, without `client.`.
    pub user: &'a str,
    /// The storage has a keyring, so the kernel is given the user's key.
    pub keyring: bool,
    /// The caller's own option `rxbounce`.
    pub rxbounce: bool,
    /// `rbd_default_map_options` as it holds for the image.
    pub defaults: &'a Reading<String>,
    /// The release of the `rbd` that maps, `20.2.4`.
    pub release: &'a Reading<String>,
}

impl Identity {
    /// The client that a mapping of this node goes through.
    pub fn of_mapping(mapping: &Mapping) -> Self {
        let mut identity = Self::of_cluster(&mapping.fsid);
        match &mapping.options {
            Some(options) => identity.take(options),
            None => identity.forget("the options of a mapping could not be read"),
        }
        identity
    }

    /// The client that a map asks for: what the caller says comes before what is set for all, and only where neither
    /// names an `ms_mode` does the release of `rbd` (`execute_map` in Ceph's `src/tools/rbd/action/Kernel.cc`).
    pub fn of_map(map: &PlainMap<'_>) -> Self {
        let mut identity = Self::of_cluster(map.fsid);
        identity.set("ms_mode", mode_of_release(map.release));
        match map.defaults {
            Reading::Known(options) => identity.take(options),
            Reading::Unknown(failure) => {
                identity.forget(&format!("what maps take by default is not known: {failure}"));
            }
        }
        identity.set("name", Ok(map.user.to_owned()));
        identity.set("key", Ok(if map.keyring { format!("client.{}", map.user) } else { String::new() }));
        if map.rxbounce {
            identity.set("rxbounce", Ok(YES.to_owned()));
        }
        identity
    }

    /// Whether a map that asks for this client takes `client`, which is there. A difference is sure whatever else is
    /// not known.
    pub fn takes(&self, client: &Self) -> Sharing {
        let mut doubts: Vec<&str> =
            [&self.odd, &client.odd].into_iter().flatten().map(String::as_str).collect();
        let mut apart = Vec::new();
        for side in [self, client] {
            if side.value("share") == Some(NO) {
                return Sharing::No("noshare".to_owned());
            }
        }
        for (option, ours) in &self.values {
            match (ours, client.values.get(option)) {
                (Ok(ours), Some(Ok(theirs))) if ours == theirs => {}
                (Ok(_), Some(Ok(theirs))) if *option == "key" && !theirs.is_empty() => {
                    doubts.push("the kernel compares the keys themselves, and they are not shown");
                }
                (Ok(ours), Some(Ok(theirs))) => apart.push(difference(option, ours, theirs)),
                (Err(why), _) | (_, Some(Err(why))) => doubts.push(why),
                (Ok(_), None) => {}
            }
        }
        doubts.dedup();
        match (apart.as_slice(), doubts.as_slice()) {
            ([], []) => Sharing::Yes,
            ([], doubts) => Sharing::Unknown(doubts.join("; ")),
            (apart, _) => Sharing::No(apart.join(", ")),
        }
    }

    /// It is nobody else's client (`noshare`), as far as that is known.
    pub fn is_private(&self) -> bool {
        self.value("share") == Some(NO)
    }

    /// How many of its values are not known.
    pub fn doubts(&self) -> usize {
        self.values.values().filter(|value| value.is_err()).count() + usize::from(self.odd.is_some())
    }

    /// The options that set it apart from a client without any: `rxbounce, ms_mode=prefer-crc`; empty for that one.
    pub fn told(&self) -> String {
        let told = COMPARED.iter().filter_map(|(option, default)| {
            let value = self.value(option)?;
            (value != *default).then(|| as_option(option, value))
        });
        told.collect::<Vec<_>>().join(", ")
    }

    /// The `ms_mode`, if it is known: `legacy`, `crc`, `secure`, `prefer-crc`, `prefer-secure`.
    pub fn ms_mode(&self) -> Option<&str> {
        self.value("ms_mode")
    }

    /// The Ceph user, if it is known.
    pub fn user(&self) -> Option<&str> {
        self.value("name")
    }

    fn of_cluster(fsid: &str) -> Self {
        let mut values: BTreeMap<&'static str, Value> =
            COMPARED.iter().map(|(option, default)| (*option, Ok((*default).to_owned()))).collect();
        values.insert("cluster", Ok(fsid.to_owned()));
        values.insert("name", Ok(String::new()));
        values.insert("key", Ok(String::new()));
        Self { values, odd: None }
    }

    fn value(&self, option: &str) -> Option<&str> {
        self.values.get(option)?.as_ref().ok().map(String::as_str)
    }

    fn set(&mut self, option: &'static str, value: Value) {
        self.values.insert(option, value);
    }

    /// Nothing is known of it but its cluster.
    fn forget(&mut self, why: &str) {
        for (option, value) in &mut self.values {
            if *option != "cluster" {
                *value = Err(why.to_owned());
            }
        }
    }

    /// Options as they are written for the kernel and for `rbd map --options`, the last of a kind holds.
    fn take(&mut self, options: &str) {
        for option in options.trim_start().split(',').filter(|option| !option.is_empty()) {
            let (name, value) =
                option.split_once('=').map_or((option, None), |(name, value)| (name, Some(value)));
            match self.understood(name, value) {
                Some((option, value)) => self.set(option, value),
                None if NOT_COMPARED.contains(&name) => {}
                None => self.odd = Some(format!("`{name}` is an option that is not known here")),
            }
        }
    }

    /// An option that is compared, as the kernel understands it.
    fn understood(&self, name: &str, value: Option<&str>) -> Option<(&'static str, Value)> {
        let (option, cleared) = match name.strip_prefix("no") {
            Some(flag) if BOTH_WAYS.contains(&flag) => (flag, true),
            _ => (name, false),
        };
        let option = if name == "secret" { "key" } else { option };
        let (option, _) = self.values.get_key_value(option).filter(|(option, _)| **option != "cluster")?;
        let flag = BOTH_WAYS.contains(option) || ONE_WAY.contains(option);
        Some((
            *option,
            match value {
                None if flag => Ok(if cleared { NO } else { YES }.to_owned()),
                Some(_) if name == "secret" => Err("a key is given by itself, and is not shown".to_owned()),
                Some(value) if !flag => normal(option, value),
                _ => Err(format!("`{name}` is not written as it is known here")),
            },
        ))
    }
}

/// A value in the one form that can be compared.
fn normal(option: &str, value: &str) -> Value {
    let sorted = |value: &str| {
        let mut places: Vec<&str> = value.split('|').collect();
        places.sort_unstable();
        places.join("|")
    };
    match option {
        _ if TIMES.contains(&option) => {
            let number = value.parse::<u32>().map(|number| number.to_string());
            number.map_err(|_| format!("`{option}={value}` is not a number of seconds"))
        }
        // A set of places (`ceph_compare_crush_locs`).
        "crush_location" => Ok(sorted(value)),
        "fsid" => Ok(value.to_ascii_lowercase()),
        // `rbd` adds the port nought.
        "ip" => Ok(value.strip_suffix(":0").unwrap_or(value).to_owned()),
        _ => Ok(value.to_owned()),
    }
}

/// What `rbd map` of a release asks for where nobody names an `ms_mode`.
fn mode_of_release(release: &Reading<String>) -> Value {
    match release {
        Reading::Known(release) => {
            match release.split('.').next().and_then(|major| major.parse::<u32>().ok()) {
                Some(major) if major >= PREFER_CRC_SINCE => Ok("prefer-crc".to_owned()),
                Some(_) => Ok("legacy".to_owned()),
                None => Err(format!("`{release}` is no release of Ceph that is known here")),
            }
        }
        Reading::Unknown(failure) => Err(format!("the release of rbd is not known: {failure}")),
    }
}

/// An option as it is written.
fn as_option(option: &str, value: &str) -> String {
    match value {
        YES => option.to_owned(),
        NO if BOTH_WAYS.contains(&option) => format!("no{option}"),
        _ => format!("{option}={value}"),
    }
}

/// What tells two clients apart, in words: the option, for a flag, or both values.
fn difference(option: &str, ours: &str, theirs: &str) -> String {
    let default = COMPARED.iter().find(|(name, _)| *name == option).map(|(_, default)| *default);
    match (default, default == Some(ours)) {
        (Some(YES | NO), true) => as_option(option, theirs),
        (Some(YES | NO), false) => as_option(option, ours),
        _ => {
            let shown = |value: &str| if value.is_empty() { "none".to_owned() } else { value.to_owned() };
            format!("{option} {} here, {} there", shown(ours), shown(theirs))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reading::Failure;

    fn mapped(options: Option<&str>) -> Mapping {
        serde_json::from_value(serde_json::json!({
            "id": 0, "pool": "rbd", "namespace": null, "image": "a", "snapshot": null, "fsid": "f",
            "client_address": "10.0.0.1:0/5", "client": 5, "options": options,
        }))
        .unwrap()
    }

    /// A client that was mapped with these options by client.admin.
    fn client(options: &str) -> Identity {
        let comma = if options.is_empty() { "" } else { "," };
        Identity::of_mapping(&mapped(Some(&format!("name=admin,key=client.admin{comma}{options}"))))
    }

    fn known(text: &str) -> Reading<String> {
        Reading::Known(text.to_owned())
    }

    fn unknown() -> Reading<String> {
        Reading::Unknown(Failure::errno("read it", 5))
    }

    /// A plain map by client.admin where these options are set for all.
    fn map(defaults: &str) -> Identity {
        let (defaults, release) = (known(defaults), known("18.2.7"));
        Identity::of_map(&PlainMap { defaults: &defaults, release: &release, ..PLAIN })
    }

    static NOTHING: Reading<String> = Reading::Known(String::new());
    const PLAIN: PlainMap<'static> = PlainMap {
        fsid: "f",
        user: "admin",
        keyring: true,
        rxbounce: false,
        defaults: &NOTHING,
        release: &NOTHING,
    };

    fn is_no(sharing: &Sharing, what: &str) -> bool {
        matches!(sharing, Sharing::No(why) if why.contains(what))
    }

    fn is_unknown(sharing: &Sharing, what: &str) -> bool {
        matches!(sharing, Sharing::Unknown(why) if why.contains(what))
    }

    /// As the kernel answers it: tests/kernel_lab/clients.rs asks a real one.
    #[test]
    fn each_option_is_compared_as_the_kernel_does() {
        for same in [
            "",
            "share",
            "noshare,share",
            "crc",
            "nocrc,crc",
            "cephx_sign_messages",
            "cephx_require_signatures",
            "nocephx_require_signatures",
            "tcp_nodelay",
            "ms_mode=legacy",
            "ms_mode=secure,ms_mode=legacy",
            "mount_timeout=60",
            "mount_timeout=060",
            "osd_idle_ttl=60",
            "osdkeepalive=5",
            "osd_request_timeout=0",
            "read_from_replica=no",
            "queue_depth=64,alloc_size=65536,lock_timeout=5,compression_hint=none,_pool_ns=tenant",
            "exclusive,lock_on_read,notrim,ro",
            "rw",
            "read_only",
            "read_write",
        ] {
            assert_eq!(map("").takes(&client(same)), Sharing::Yes, "{same}");
            assert_eq!(map(same).takes(&client("")), Sharing::Yes, "{same}");
            assert_eq!(client(same).told(), "", "{same}");
        }
        for other in [
            "noshare",
            "nocrc",
            "nocephx_sign_messages",
            "notcp_nodelay",
            "abort_on_full",
            "rxbounce",
            "ms_mode=crc",
            "ms_mode=secure",
            "ms_mode=prefer-crc",
            "ms_mode=prefer-secure",
            "mount_timeout=61",
            "osd_idle_ttl=61",
            "osdkeepalive=6",
            "osd_request_timeout=30",
            "read_from_replica=balance",
            "read_from_replica=localize",
            "crush_location=host:a|rack:b",
            "fsid=6ad4ff3e-2a7f-4c7b-8f0c-8a1c1f0a2f0a",
            "ip=10.0.0.9",
        ] {
            let name = other.split('=').next().unwrap();
            assert!(is_no(&map("").takes(&client(other)), name), "{other}");
            assert!(is_no(&map(other).takes(&client("")), name), "{other}");
            let same = if other == "noshare" { Sharing::No("noshare".into()) } else { Sharing::Yes };
            assert_eq!(map(other).takes(&client(other)), same, "{other}");
            assert_eq!(client(other).told(), other);
        }
    }

    #[test]
    fn order_and_spelling_tell_nothing_apart() {
        for (one, another) in [
            ("rxbounce,ms_mode=crc", "ms_mode=crc,rxbounce"),
            ("crush_location=rack:b|host:a", "crush_location=host:a|rack:b"),
            ("ip=10.0.0.9", "ip=10.0.0.9:0"),
            (" rxbounce,,nocrc", "nocrc,rxbounce"),
            ("fsid=6AD4FF3E-2A7F-4C7B-8F0C-8A1C1F0A2F0A", "fsid=6ad4ff3e-2a7f-4c7b-8f0c-8a1c1f0a2f0a"),
        ] {
            assert_eq!(map(one).takes(&client(another)), Sharing::Yes, "{one}");
        }
        assert_eq!(client("ms_mode=prefer-crc,nocrc,rxbounce").told(), "rxbounce, ms_mode=prefer-crc, nocrc");
    }

    #[test]
    fn cluster_user_and_key_are_part_of_it() {
        let takes = |map: PlainMap<'_>, options: &str| {
            let (defaults, release) = (known(""), known("16.2.15"));
            let map = PlainMap { defaults: &defaults, release: &release, ..map };
            Identity::of_map(&map).takes(&Identity::of_mapping(&mapped(Some(options))))
        };
        let admin = "name=admin,key=client.admin";
        assert_eq!(takes(PLAIN, admin), Sharing::Yes);
        assert!(is_no(&takes(PlainMap { fsid: "g", ..PLAIN }, admin), "cluster"));
        assert!(is_no(&takes(PlainMap { user: "vms", ..PLAIN }, admin), "name vms here, admin there"));
        let without = PlainMap { keyring: false, ..PLAIN };
        assert_eq!(takes(without, "name=admin"), Sharing::Yes, "a cluster without cephx");
        assert!(is_no(&takes(PLAIN, "name=admin"), "key"));
        // `rbd` takes a key that the kernel has from before.
        assert!(is_unknown(&takes(without, admin), "keys"));
        assert!(is_unknown(&takes(PLAIN, "name=admin,key=client.old"), "keys"));
        assert!(is_unknown(&takes(PLAIN, "name=admin,secret=…"), "not shown"));
    }

    /// What is sure is sure, whatever else is not known.
    #[test]
    fn what_is_not_known_is_neither_yes_nor_no() {
        let unread = Identity::of_mapping(&mapped(None));
        assert!(is_unknown(&map("").takes(&unread), "could not be read"));
        assert!(unread.doubts() > 0 && client("rxbounce").doubts() == 0);
        assert_eq!(map("noshare").takes(&unread), Sharing::No("noshare".into()));
        // `rbd` takes no blank before an option.
        for odd in
            ["warp", "warp=9", "crc, rxbounce", "rxbounce=1", "norxbounce", "mount_timeout=soon", "nocrc=1"]
        {
            assert!(matches!(map("").takes(&client(odd)), Sharing::Unknown(_)), "{odd}");
            assert!(
                is_no(&map("tcp_nodelay").takes(&client(&format!("{odd},notcp_nodelay"))), "notcp"),
                "{odd}"
            );
        }
        let (defaults, release) = (unknown(), known("18.2.7"));
        let map =
            Identity::of_map(&PlainMap { rxbounce: true, defaults: &defaults, release: &release, ..PLAIN });
        assert!(is_unknown(&map.takes(&client("rxbounce")), "by default is not known"));
        assert_eq!(
            map.takes(&client("")),
            Sharing::No("rxbounce".into()),
            "the caller's own option is known"
        );
        assert!(is_no(&map.takes(&Identity::of_mapping(&mapped(Some("name=vms,key=client.vms")))), "name"));
    }

    #[test]
    fn from_ceph_20_on_rbd_asks_for_another_way_to_connect() {
        let takes = |release: &Reading<String>, defaults: &str, options: &str| {
            let defaults = known(defaults);
            Identity::of_map(&PlainMap { defaults: &defaults, release, ..PLAIN }).takes(&client(options))
        };
        for (release, mode) in [
            ("16.2.15", "legacy"),
            ("18.2.7", "legacy"),
            ("19.2.6", "legacy"),
            ("20.2.4", "prefer-crc"),
            ("21.0.0-123-gabcdef", "prefer-crc"),
        ] {
            let release = known(release);
            assert_eq!(takes(&release, "", &format!("ms_mode={mode}")), Sharing::Yes, "{release:?}");
            assert!(is_no(&takes(&release, "", "ms_mode=secure"), "ms_mode"), "{release:?}");
            // Who names one is asked for no other.
            assert_eq!(takes(&release, "nocrc,ms_mode=secure", "ms_mode=secure,nocrc"), Sharing::Yes);
        }
        for release in [unknown(), known("tentacle")] {
            assert!(matches!(takes(&release, "", ""), Sharing::Unknown(_)));
            assert!(is_no(&takes(&release, "", "rxbounce"), "rxbounce"));
            assert_eq!(takes(&release, "ms_mode=legacy", ""), Sharing::Yes, "nothing is left to the release");
        }
    }
}
