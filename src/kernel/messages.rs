//! What the lines of krbd and libceph in the kernel's log mean: Linux `drivers/block/rbd.c` and `net/ceph`, the
//! spellings of 4.9 to 7.2. Every errno here is positive.

use crate::kernel::protocol_features;
use crate::rbd::features::Features;
use nix::errno::Errno;
use nix::libc::{EBUSY, EINVAL, ENOENT, ENXIO, EROFS, ETIMEDOUT};
use regex::{Captures, Regex};
use serde::{Deserialize, Serialize};
use std::sync::LazyLock;

use KernelMessage as M;

/// What a line is about, as `rbd_warn` puts it in front.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum About {
    /// `rbd: rbd3: …`: a disk, also one whose map still waits for its lock.
    Disk(u32),
    /// `rbd: image vm-516-disk-0: …`, before it has a disk, or a parent.
    Image(String),
    /// `rbd: id 101e4cccf697: …`: an image whose name krbd does not know, most likely a parent.
    ImageId(String),
    /// `rbd: …`: the driver itself.
    Driver,
    /// `libceph: …`: a Ceph client, which all mappings with the same options share.
    Client,
}

/// A line that is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct KernelLine {
    /// What it is about.
    pub about: About,
    /// What the line says.
    pub message: KernelMessage,
}

/// What a line says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum KernelMessage {
    /// The kernel cannot map these features (map: ENXIO).
    UnsupportedFeatures {
        /// The features that it cannot map.
        features: Features,
    },
    /// There is no such pool (map: ENOENT).
    PoolMissing {
        /// The pool's name.
        pool: String,
    },
    /// There is no such image (map: ENOENT).
    ImageMissing {
        /// `pool/namespace/image`.
        image: String,
    },
    /// A format 1 image's header is damaged (map: ENXIO).
    HeaderInvalid,
    /// More than 16 parents (map: EINVAL).
    ParentChainTooLong,
    /// Mapped with `exclusive` or `lock_on_read`, and the image has no exclusive-lock (map: EINVAL).
    ExclusiveLockNotEnabled,
    /// The lock's owner could not be read.
    LockersUnreadable {
        /// The errno that came back, positive.
        errno: i32,
    },
    /// The watchers could not be read.
    WatchersUnreadable {
        /// The errno that came back, positive.
        errno: i32,
    },
    /// A lock that neither krbd nor librbd took, such as `rbd lock add` (map: EBUSY, before 2023 it hung).
    ExternalLock {
        /// Its tag, where that is what is foreign.
        tag: Option<String>,
        /// Its cookie, where that is what is foreign.
        cookie: Option<String>,
    },
    /// A shared lock (map: EBUSY).
    IncompatibleLockType,
    /// The lock's owner has no address (map: EBUSY).
    BlankLockerAddress,
    /// A dead owner's lock is being broken; as it should be.
    BreakingLock {
        /// The owner's client number.
        client: u64,
    },
    /// The dead owner could not be put on the blocklist; EACCES is a user without the right to.
    BlocklistFailed {
        /// The owner's client number.
        client: u64,
        /// The errno that came back, positive.
        errno: i32,
    },
    /// The dead owner's lock could not be broken.
    BreakFailed {
        /// The errno that came back, positive.
        errno: i32,
    },
    /// The lock could not be taken, not because another has it; ESHUTDOWN is this node's client on the blocklist.
    LockFailed {
        /// The errno that came back, positive.
        errno: i32,
    },
    /// The sum of the above: the map fails with this.
    AcquireFailed {
        /// The errno that came back, positive.
        errno: i32,
    },
    /// A live owner keeps the lock: mapped with `exclusive` (map: EROFS).
    PeerKeepsLock,
    /// The owner has a watch and does not answer: it is dying or stuck. krbd asks again.
    NoOwnerAnswers,
    /// Two clients say that they own the lock.
    DuplicateOwners,
    /// The owner could not be asked; krbd asks again.
    RequestFailed {
        /// The errno that came back, positive.
        errno: i32,
    },
    /// The object map's own lock could not be taken.
    ObjectMapLockFailed {
        /// The errno that came back, positive.
        errno: i32,
    },
    /// The object map's lock is being taken from a dead owner; as it should be.
    BreakingObjectMapLock {
        /// The owner's client number.
        client: u64,
    },
    /// The object map's lock could not be broken, or its owner not be read.
    ObjectMapBreakFailed {
        /// The errno that came back, positive.
        errno: i32,
    },
    /// The object map is flagged invalid: krbd does not trust it. It wants a rebuild; harmless.
    ObjectMapInvalid,
    /// The object map's size does not fit the image (map: EINVAL).
    ObjectMapSizeMismatch,
    /// The object map could not be loaded after the lock was taken; the map fails with this. ENOENT: it is missing.
    PostAcquireFailed {
        /// The errno that came back, positive.
        errno: i32,
    },
    /// The object map could not be written; the guest's write failed.
    ObjectMapUpdateFailed {
        /// The errno that came back, positive.
        errno: i32,
    },
    /// The image's lock or its object map's could not be given back and may stay. ESHUTDOWN: this client was
    /// put on the blocklist.
    UnlockFailed {
        /// It was the object map's.
        object_map: bool,
        /// The errno that came back, positive.
        errno: i32,
    },
    /// The watch was lost: an OSD restarted, the network broke, or this client was put on the blocklist.
    WatchLost {
        /// The errno that came back, positive.
        errno: i32,
    },
    /// The watch could not be given back.
    UnwatchFailed {
        /// The errno that came back, positive.
        errno: i32,
    },
    /// The watch could not be taken again. ESHUTDOWN: krbd gives this client up for good.
    ReregisterFailed {
        /// The errno that came back, positive.
        errno: i32,
    },
    /// The lock could not be carried over to the new watch.
    LockCookieFailed {
        /// The errno that came back, positive.
        errno: i32,
    },
    /// Input or output failed; the guest sees an I/O error.
    IoFailed {
        /// `read`, `write`, `discard`, `zeroout`.
        operation: String,
        /// The errno that came back, positive.
        errno: i32,
    },
    /// The monitors could not be reached by a client that is already there.
    OsdmapFailed {
        /// The errno that came back, positive.
        errno: i32,
    },
    /// The map named no monitor.
    NoMonitors,
    /// The kernel does not know a map option (map: EINVAL).
    UnknownOption {
        /// The option's name.
        option: String,
    },
    /// The monitor was lost; the client looks for another.
    SessionLost {
        /// The monitor's rank, which is no name.
        monitor: u32,
    },
    /// A connection broke or was refused.
    SocketFailed {
        /// `mon0`, `osd3`.
        peer: String,
    },
    /// The monitors refuse the client's key.
    AuthFailed {
        /// The errno that came back, positive.
        errno: i32,
    },
    /// The kernel cannot use a key of this type: aes256k before Linux 7.0 (map: EINVAL).
    SecretTooBig {
        /// Its length in bytes.
        bytes: u32,
    },
    /// A monitor speaks the old protocol at an address where `ms_mode` wants the new one.
    OldProtocol {
        /// `mon0`.
        peer: String,
    },
    /// The monitor allows no connection of the mode that `ms_mode` asks for.
    ModeNotAllowed {
        /// `crc`, `secure`.
        mode: String,
    },
    /// The cluster demands features of the protocol that this kernel does not have (map: ETIMEDOUT, after a minute of trying).
    FeaturesMissing {
        /// Which, as bits of `ceph_features.h`; 0 where the line does not say.
        missing: u64,
    },
    /// An OSD did not answer in time (only with the map option `osd_request_timeout`).
    OsdTimeout {
        /// The OSD's number.
        osd: u32,
    },
    /// An OSD is down.
    OsdDown {
        /// The OSD's number.
        osd: u32,
    },
}

impl KernelMessage {
    /// It is said of a disk that is as it should be, or that is being made so.
    pub fn is_ordinary(&self) -> bool {
        matches!(self, M::BreakingLock { .. } | M::BreakingObjectMapLock { .. } | M::ObjectMapInvalid)
    }

    /// What the map ends with that this line is the reason for; `None` where the line is the reason for none.
    pub fn map_errno(&self) -> Option<i32> {
        Some(match self {
            M::UnsupportedFeatures { .. } | M::HeaderInvalid => ENXIO,
            M::PoolMissing { .. } | M::ImageMissing { .. } => ENOENT,
            M::ParentChainTooLong
            | M::ExclusiveLockNotEnabled
            | M::ObjectMapSizeMismatch
            | M::UnknownOption { .. }
            | M::SecretTooBig { .. } => EINVAL,
            M::ExternalLock { .. } | M::IncompatibleLockType | M::BlankLockerAddress => EBUSY,
            M::PeerKeepsLock => EROFS,
            M::NoOwnerAnswers
            | M::OldProtocol { .. }
            | M::ModeNotAllowed { .. }
            | M::FeaturesMissing { .. } => ETIMEDOUT,
            M::BlocklistFailed { errno, .. }
            | M::PostAcquireFailed { errno }
            | M::LockFailed { errno }
            | M::AcquireFailed { errno }
            | M::BreakFailed { errno }
            | M::AuthFailed { errno } => *errno,
            _ => return None,
        })
    }
}

impl KernelMessage {
    /// What the line means, in words, for whoever has to find the cause of a map that failed.
    pub fn meaning(&self) -> String {
        let with = |what: &str, errno: i32| format!("{what} ({errno}, {})", Errno::from_raw(errno).desc());
        match self {
            M::UnsupportedFeatures { features } => format!("the kernel cannot map images with {features}"),
            M::PoolMissing { pool } => format!("there is no pool {pool}"),
            M::ImageMissing { image } => format!("there is no image {image}"),
            M::HeaderInvalid => "the header of the image (format 1) is damaged".to_owned(),
            M::ParentChainTooLong => "the clone has more than 16 ancestors".to_owned(),
            M::ExclusiveLockNotEnabled => {
                "the map option `exclusive` or `lock_on_read` wants the feature exclusive-lock, which the image has not"
                    .to_owned()
            }
            M::LockersUnreadable { errno } => with("the owner of the lock could not be read", *errno),
            M::WatchersUnreadable { errno } => with("who has the image open could not be read", *errno),
            M::ExternalLock { .. } => "somebody has locked the image by hand or by a script".to_owned(),
            M::IncompatibleLockType => "the image has a shared lock".to_owned(),
            M::BlankLockerAddress => "the owner of the lock has no address, so it cannot be fenced".to_owned(),
            M::BreakingLock { client } => format!("the lock of client.{client}, which is gone, is being broken"),
            M::BlocklistFailed { client, errno } => {
                with(&format!("client.{client} could not be put on the OSD blocklist"), *errno)
            }
            M::BreakFailed { errno } => with("the lock of a client that is gone could not be broken", *errno),
            M::LockFailed { errno } | M::AcquireFailed { errno } => {
                with("the image's lock could not be taken", *errno)
            }
            M::PeerKeepsLock => "the owner of the lock lives and keeps it".to_owned(),
            M::NoOwnerAnswers => "the owner of the lock still watches the image and does not answer".to_owned(),
            M::DuplicateOwners => "two clients say that they own the lock".to_owned(),
            M::RequestFailed { errno } => with("the owner of the lock could not be asked for it", *errno),
            M::ObjectMapLockFailed { errno } => with("the object map's lock could not be taken", *errno),
            M::BreakingObjectMapLock { client } => {
                format!("the object map's lock of client.{client}, which is gone, is being broken")
            }
            M::ObjectMapBreakFailed { errno } => with("the object map's lock could not be broken", *errno),
            M::ObjectMapInvalid => "the object map is flagged invalid and not used, which stops nothing".to_owned(),
            M::ObjectMapSizeMismatch => "the object map is not as large as the image".to_owned(),
            M::PostAcquireFailed { errno } => with("the object map could not be loaded", *errno),
            M::ObjectMapUpdateFailed { errno } => with("the object map could not be written", *errno),
            M::UnlockFailed { errno, .. } => with("a lock could not be given back", *errno),
            M::WatchLost { errno } | M::ReregisterFailed { errno } | M::UnwatchFailed { errno } => {
                with("the watch on the image was lost", *errno)
            }
            M::LockCookieFailed { errno } => with("the lock could not be carried over to a new watch", *errno),
            M::IoFailed { operation, errno } => with(&format!("a {operation} failed"), *errno),
            M::OsdmapFailed { errno } => with("the monitors did not give the map of the OSDs", *errno),
            M::NoMonitors => "the map named no monitor".to_owned(),
            M::UnknownOption { option } => format!("the kernel does not know the map option {option}"),
            M::SessionLost { monitor } => format!("the connection to monitor {monitor} was lost"),
            M::SocketFailed { peer } => format!("the connection to {peer} was refused or broke"),
            M::AuthFailed { errno } => with("the monitors refuse the key", *errno),
            M::SecretTooBig { bytes } => format!("the kernel takes no key of {bytes} bytes (type aes256k)"),
            M::OldProtocol { peer } => format!("{peer} speaks the protocol msgr1 where ms_mode wants msgr2"),
            M::ModeNotAllowed { mode } => format!("the monitors allow no connection of the mode {mode}"),
            M::FeaturesMissing { missing: 0 } => {
                "the cluster demands features of the protocol that this kernel has not".to_owned()
            }
            M::FeaturesMissing { missing } => {
                format!("this kernel lacks what the cluster demands: {}", protocol_features::told(*missing))
            }
            M::OsdTimeout { osd } => format!("OSD {osd} did not answer in time"),
            M::OsdDown { osd } => format!("OSD {osd} is down"),
        }
    }
}

/// A message's pattern, and what it becomes; the pattern has to match all that follows the subject.
type Pattern = (&'static str, fn(&Groups) -> Option<KernelMessage>);

/// What a pattern caught.
struct Groups<'a>(&'a Captures<'a>);

impl Groups<'_> {
    fn text(&self) -> Option<String> {
        Some(self.0.get(1)?.as_str().to_owned())
    }

    fn number<T: std::str::FromStr>(&self, group: usize) -> Option<T> {
        self.0.get(group)?.as_str().parse().ok()
    }

    fn errno(&self) -> Option<i32> {
        Some(self.number::<i32>(1)?.saturating_abs())
    }
}

/// What krbd says. Older spellings: up to 5.2 `seems dead, breaking lock` and `failed to unlock`; up to 5.10
/// `blacklist of … failed`, up to 6.4 `blocklist of … failed` and `failed to acquire exclusive lock`.
const KRBD: &[Pattern] = &[
    (r"image uses unsupported features: 0x([0-9a-f]+)", |g| {
        let features = u64::from_str_radix(&g.text()?, 16).ok()?;
        Some(M::UnsupportedFeatures { features: Features(features) })
    }),
    (r"pool (.+) does not exist", |g| Some(M::PoolMissing { pool: g.text()? })),
    (r"image (.+/.+) does not exist", |g| Some(M::ImageMissing { image: g.text()? })),
    (r"short header read.*|invalid header", |_| Some(M::HeaderInvalid)),
    (r"parent chain is too long.*", |_| Some(M::ParentChainTooLong)),
    (r"exclusive-lock feature is not enabled", |_| Some(M::ExclusiveLockNotEnabled)),
    (r"failed to get header lockers: (-?\d+)", |g| Some(M::LockersUnreadable { errno: g.errno()? })),
    (r"failed to get watchers: (-?\d+)", |g| Some(M::WatchersUnreadable { errno: g.errno()? })),
    (r"locked by external mechanism, tag ?(.*)", |g| {
        Some(M::ExternalLock { tag: Some(g.text()?), cookie: None })
    }),
    (r"locked by external mechanism, cookie ?(.*)", |g| {
        Some(M::ExternalLock { tag: None, cookie: Some(g.text()?) })
    }),
    (r"incompatible lock type detected", |_| Some(M::IncompatibleLockType)),
    (r"locker has a blank address", |_| Some(M::BlankLockerAddress)),
    (r"breaking header lock owned by [a-z]+(\d+)", |g| Some(M::BreakingLock { client: g.number(1)? })),
    (r"[a-z]+(\d+) seems dead, breaking lock", |g| Some(M::BreakingLock { client: g.number(1)? })),
    (r"(?:failed to bl[ao]c?klist [a-z]+|bl[ao]c?klist of [a-z]+)(\d+)(?: failed)?: (-?\d+)", blocklist),
    (r"failed to break header lock: (-?\d+)", |g| Some(M::BreakFailed { errno: g.errno()? })),
    (r"failed to lock header: (-?\d+)", |g| Some(M::LockFailed { errno: g.errno()? })),
    (r"failed to acquire (?:exclusive )?lock: (-?\d+)", |g| Some(M::AcquireFailed { errno: g.errno()? })),
    (r"peer will not release lock", |_| Some(M::PeerKeepsLock)),
    (r"no lock owners detected", |_| Some(M::NoOwnerAnswers)),
    (r"duplicate lock owners detected", |_| Some(M::DuplicateOwners)),
    (r"(?:failed to request lock|error requesting lock|failed to decode ResponseMessage): (-?\d+)", |g| {
        Some(M::RequestFailed { errno: g.errno()? })
    }),
    (r"failed to lock object map: (-?\d+)", |g| Some(M::ObjectMapLockFailed { errno: g.errno()? })),
    (r"breaking object map lock owned by [a-z]+(\d+)", |g| {
        Some(M::BreakingObjectMapLock { client: g.number(1)? })
    }),
    (r"failed to (?:break object map lock|get object map lockers): (-?\d+)", |g| {
        Some(M::ObjectMapBreakFailed { errno: g.errno()? })
    }),
    (r"object map is invalid", |_| Some(M::ObjectMapInvalid)),
    (r"object map size mismatch.*", |_| Some(M::ObjectMapSizeMismatch)),
    (r"post-acquire action failed: (-?\d+)", |g| Some(M::PostAcquireFailed { errno: g.errno()? })),
    (r"(?:pre|post|snap) object map update failed: (-?\d+)", |g| {
        Some(M::ObjectMapUpdateFailed { errno: g.errno()? })
    }),
    (r"failed to unlock(?: header)?: (-?\d+)", |g| {
        Some(M::UnlockFailed { object_map: false, errno: g.errno()? })
    }),
    (r"failed to unlock object map: (-?\d+)", |g| {
        Some(M::UnlockFailed { object_map: true, errno: g.errno()? })
    }),
    (r"encountered watch error: (-?\d+)", |g| Some(M::WatchLost { errno: g.errno()? })),
    (r"failed to unwatch: (-?\d+)", |g| Some(M::UnwatchFailed { errno: g.errno()? })),
    (r"failed to reregister watch: (-?\d+)", |g| Some(M::ReregisterFailed { errno: g.errno()? })),
    (r"failed to update lock cookie: (-?\d+)", |g| Some(M::LockCookieFailed { errno: g.errno()? })),
    (r"(?:child )?(read|write|discard|zeroout)(?: at objno .*)? result (-?\d+).*", |g| {
        Some(M::IoFailed { operation: g.text()?, errno: g.number::<i32>(2)?.saturating_abs() })
    }),
    (r"failed to get latest osdmap: (-?\d+)", |g| Some(M::OsdmapFailed { errno: g.errno()? })),
    (r"no monitor address(?:\(es\)|es)? provided", |_| Some(M::NoMonitors)),
    (r"Unknown parameter '(.*)'|bad option at '(.*)'", |g| {
        let option = g.text().or_else(|| g.number(2))?;
        Some(M::UnknownOption { option })
    }),
];

/// What libceph says.
const LIBCEPH: &[Pattern] = &[
    (r"mon(\d+) .*session lost.*", |g| Some(M::SessionLost { monitor: g.number(1)? })),
    (r"((?:mon|osd)\d+) .*(?:socket closed|socket error|connect error|missed bytes|wrong peer).*", |g| {
        Some(M::SocketFailed { peer: g.text()? })
    }),
    (
        r"(?:mon|osd)\d+ .*feature set mismatch, my [0-9a-f]+ < (?:server|peer)'s [0-9a-f]+, missing ([0-9a-f]+)",
        features,
    ),
    (
        r".*RADOS feature set mismatch: server's required > my supported 0x[0-9a-f]+, missing 0x([0-9a-f]+)",
        features,
    ),
    (r"(?:mon|osd)\d+ .*missing required protocol features", |_| Some(M::FeaturesMissing { missing: 0 })),
    (r"secret too big (\d+)", |g| Some(M::SecretTooBig { bytes: g.number(1)? })),
    (r"((?:mon|osd)\d+) .*server is speaking msgr1 protocol", |g| Some(M::OldProtocol { peer: g.text()? })),
    (r"(?:preferred|fallback) mode '(.*)' not allowed", |g| Some(M::ModeNotAllowed { mode: g.text()? })),
    (r"auth protocol '.*' (?:(?:m?auth|msgr) authentication(?: to \S+)? failed|init failed): (-?\d+)", |g| {
        Some(M::AuthFailed { errno: g.errno()? })
    }),
    (r"auth method '.*' error (-?\d+)|error (-?\d+) on auth protocol.*", |g| {
        let errno = g.number::<i32>(1).or_else(|| g.number(2))?;
        Some(M::AuthFailed { errno: errno.saturating_abs() })
    }),
    (r"tid \d+ on osd(\d+) timeout", |g| Some(M::OsdTimeout { osd: g.number(1)? })),
    (r"osd(\d+)(?: .*)? down", |g| Some(M::OsdDown { osd: g.number(1)? })),
    (r"no monitor address(?:\(es\)|es)? provided", |_| Some(M::NoMonitors)),
    (r"Unknown parameter '(.*)'", |g| Some(M::UnknownOption { option: g.text()? })),
];

fn features(groups: &Groups) -> Option<KernelMessage> {
    Some(M::FeaturesMissing { missing: u64::from_str_radix(&groups.text()?, 16).ok()? })
}

fn blocklist(groups: &Groups) -> Option<KernelMessage> {
    Some(M::BlocklistFailed { client: groups.number(1)?, errno: groups.number::<i32>(2)?.saturating_abs() })
}

type Compiled = Vec<(Regex, fn(&Groups) -> Option<KernelMessage>)>;

/// A pattern that does not compile is left out; a test sees to it that there is none.
fn compile(rules: &[Pattern]) -> Compiled {
    rules.iter().filter_map(|(p, make)| Some((Regex::new(&format!("^(?:{p})$")).ok()?, *make))).collect()
}

static COMPILED_KRBD: LazyLock<Compiled> = LazyLock::new(|| compile(KRBD));
static COMPILED_LIBCEPH: LazyLock<Compiled> = LazyLock::new(|| compile(LIBCEPH));

/// What a line of the kernel's log means, if it is one of krbd or libceph and known.
pub fn parse(line: &str) -> Option<KernelLine> {
    let line = line.trim_end();
    if let Some(text) = line.strip_prefix("libceph: ") {
        return Some(KernelLine { about: About::Client, message: apply(&COMPILED_LIBCEPH, text)? });
    }
    let text = line.strip_prefix("rbd: ")?;
    subjects(text).find_map(|(about, text)| Some(KernelLine { about, message: apply(&COMPILED_KRBD, text)? }))
}

fn apply(rules: &Compiled, text: &str) -> Option<KernelMessage> {
    rules.iter().find_map(|(pattern, make)| make(&Groups(&pattern.captures(text)?)))
}

/// Each way to take the subject off a line: an image's name may hold a colon, and `image p/i does not exist` has none.
fn subjects(text: &str) -> impl Iterator<Item = (About, &str)> {
    let ends = text.match_indices(": ").map(|(at, _)| at);
    let named = ends.filter_map(move |at| Some((subject(&text[..at])?, &text[at + 2..])));
    named.chain([(About::Driver, text)])
}

fn subject(text: &str) -> Option<About> {
    if let Some(image) = text.strip_prefix("image ") {
        return Some(About::Image(image.to_owned()));
    }
    if let Some(id) = text.strip_prefix("id ") {
        return Some(About::ImageId(id.to_owned()));
    }
    text.strip_prefix("rbd")?.parse().ok().map(About::Disk)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> Option<KernelMessage> {
        parse(text).map(|line| line.message)
    }

    #[test]
    fn every_pattern_compiles() {
        assert_eq!(COMPILED_KRBD.len(), KRBD.len());
        assert_eq!(COMPILED_LIBCEPH.len(), LIBCEPH.len());
    }

    #[test]
    fn what_a_line_is_about_is_told() {
        let about = |text: &str| parse(text).unwrap().about;
        assert_eq!(about("rbd: rbd12: peer will not release lock"), About::Disk(12));
        assert_eq!(about("rbd: image vm-1: no lock owners detected"), About::Image("vm-1".into()));
        assert_eq!(about("rbd: image odd: rbd1: object map is invalid"), About::Image("odd: rbd1".into()));
        assert_eq!(
            about("rbd: id 101e4c: image uses unsupported features: 0x1"),
            About::ImageId("101e4c".into())
        );
        assert_eq!(about("rbd: pool p does not exist"), About::Driver);
        assert_eq!(about("rbd: image p/n/i does not exist"), About::Driver);
        assert_eq!(about("libceph: mon0 (1)10.0.0.1:6789 session lost"), About::Client);
    }

    #[test]
    fn every_spelling_of_krbd_is_known() {
        let table = [
            ("image uses unsupported features: 0x40", M::UnsupportedFeatures { features: Features(0x40) }),
            ("short header read (want 112 got 0)", M::HeaderInvalid),
            ("invalid header", M::HeaderInvalid),
            ("exclusive-lock feature is not enabled", M::ExclusiveLockNotEnabled),
            ("failed to get header lockers: -5", M::LockersUnreadable { errno: 5 }),
            ("failed to get watchers: -110", M::WatchersUnreadable { errno: 110 }),
            (
                "locked by external mechanism, tag kube",
                M::ExternalLock { tag: Some("kube".into()), cookie: None },
            ),
            ("locked by external mechanism, tag ", M::ExternalLock { tag: Some("".into()), cookie: None }),
            (
                "locked by external mechanism, cookie c d",
                M::ExternalLock { tag: None, cookie: Some("c d".into()) },
            ),
            ("incompatible lock type detected", M::IncompatibleLockType),
            ("locker has a blank address", M::BlankLockerAddress),
            ("breaking header lock owned by client4324", M::BreakingLock { client: 4324 }),
            ("client4324 seems dead, breaking lock", M::BreakingLock { client: 4324 }),
            ("failed to blocklist client4324: -13", M::BlocklistFailed { client: 4324, errno: 13 }),
            ("blocklist of client4324 failed: -13", M::BlocklistFailed { client: 4324, errno: 13 }),
            ("blacklist of client4324 failed: -22", M::BlocklistFailed { client: 4324, errno: 22 }),
            ("failed to break header lock: -5", M::BreakFailed { errno: 5 }),
            ("failed to lock header: -108", M::LockFailed { errno: 108 }),
            ("failed to acquire lock: -110", M::AcquireFailed { errno: 110 }),
            ("failed to acquire exclusive lock: -512", M::AcquireFailed { errno: 512 }),
            ("peer will not release lock", M::PeerKeepsLock),
            ("no lock owners detected", M::NoOwnerAnswers),
            ("duplicate lock owners detected", M::DuplicateOwners),
            ("error requesting lock: -5", M::RequestFailed { errno: 5 }),
            ("failed to request lock: -107", M::RequestFailed { errno: 107 }),
            ("failed to decode ResponseMessage: -22", M::RequestFailed { errno: 22 }),
            ("failed to lock object map: -16", M::ObjectMapLockFailed { errno: 16 }),
            ("breaking object map lock owned by client7", M::BreakingObjectMapLock { client: 7 }),
            ("failed to break object map lock: -5", M::ObjectMapBreakFailed { errno: 5 }),
            ("failed to get object map lockers: -2", M::ObjectMapBreakFailed { errno: 2 }),
            ("object map is invalid", M::ObjectMapInvalid),
            ("object map size mismatch: 4 vs 8", M::ObjectMapSizeMismatch),
            ("post-acquire action failed: -2", M::PostAcquireFailed { errno: 2 }),
            ("pre object map update failed: -108", M::ObjectMapUpdateFailed { errno: 108 }),
            ("post object map update failed: -108", M::ObjectMapUpdateFailed { errno: 108 }),
            ("snap object map update failed: -2", M::ObjectMapUpdateFailed { errno: 2 }),
            ("failed to unlock header: -108", M::UnlockFailed { object_map: false, errno: 108 }),
            ("failed to unlock: -108", M::UnlockFailed { object_map: false, errno: 108 }),
            ("failed to unlock object map: -108", M::UnlockFailed { object_map: true, errno: 108 }),
            ("encountered watch error: -107", M::WatchLost { errno: 107 }),
            ("failed to unwatch: -108", M::UnwatchFailed { errno: 108 }),
            ("failed to reregister watch: -108", M::ReregisterFailed { errno: 108 }),
            ("failed to update lock cookie: -16", M::LockCookieFailed { errno: 16 }),
            ("write result -108", M::IoFailed { operation: "write".into(), errno: 108 }),
            ("child read result -5", M::IoFailed { operation: "read".into(), errno: 5 }),
            (
                "discard at objno 3 0~4194304 result -108",
                M::IoFailed { operation: "discard".into(), errno: 108 },
            ),
            ("failed to get latest osdmap: -110", M::OsdmapFailed { errno: 110 }),
        ];
        for (text, expected) in table {
            for subject in ["rbd0", "image vm-516-disk-0", "id 101e4cccf697"] {
                let line = format!("rbd: {subject}: {text}");
                assert_eq!(message(&line), Some(expected.clone()), "{line}");
            }
        }
    }

    #[test]
    fn every_spelling_of_the_driver_itself_is_known() {
        let table = [
            ("rbd: pool a b does not exist", M::PoolMissing { pool: "a b".into() }),
            ("rbd: image p/ns/i does not exist", M::ImageMissing { image: "p/ns/i".into() }),
            ("rbd: image p/i: j does not exist", M::ImageMissing { image: "p/i: j".into() }),
            ("rbd: parent chain is too long (17)", M::ParentChainTooLong),
            ("rbd: no monitor address(es) provided", M::NoMonitors),
            ("rbd: failed to get latest osdmap: -110", M::OsdmapFailed { errno: 110 }),
            ("rbd: Unknown parameter 'rxbounce'", M::UnknownOption { option: "rxbounce".into() }),
            ("rbd: bad option at 'rxbounce'", M::UnknownOption { option: "rxbounce".into() }),
        ];
        for (line, expected) in table {
            assert_eq!(message(line), Some(expected), "{line}");
        }
    }

    #[test]
    fn every_spelling_of_libceph_is_known() {
        let table = [
            ("mon2 (1)10.72.36.245:40083 session lost, hunting for new mon", M::SessionLost { monitor: 2 }),
            ("mon1 (2)10.0.0.1:3300 socket closed (con state OPEN)", M::SocketFailed { peer: "mon1".into() }),
            ("osd3 (1)10.0.0.1:6801 socket error on write", M::SocketFailed { peer: "osd3".into() }),
            ("auth protocol 'cephx' mauth authentication failed: -13", M::AuthFailed { errno: 13 }),
            ("auth protocol 'cephx' auth authentication failed: -13", M::AuthFailed { errno: 13 }),
            ("auth protocol 'cephx' msgr authentication failed: -13", M::AuthFailed { errno: 13 }),
            ("auth protocol 'cephx' msgr authentication to osd failed: -1", M::AuthFailed { errno: 1 }),
            ("secret too big 32", M::SecretTooBig { bytes: 32 }),
            (
                "mon0 10.0.7.102:6789 feature set mismatch, my 106b84a842a42 < server's 40106b84a842a42, missing 400000000000000",
                M::FeaturesMissing { missing: 1 << 58 },
            ),
            ("mon0 10.0.7.102:6789 missing required protocol features", M::FeaturesMissing { missing: 0 }),
            (
                "RADOS feature set mismatch: server's required > my supported 0x2f018fb87aa4aafe, missing 0x200000",
                M::FeaturesMissing { missing: 1 << 21 },
            ),
            (
                "mon0 (2)10.0.0.1:6789 server is speaking msgr1 protocol",
                M::OldProtocol { peer: "mon0".into() },
            ),
            ("preferred mode 'crc' not allowed", M::ModeNotAllowed { mode: "crc".into() }),
            ("auth method 'x' error -1", M::AuthFailed { errno: 1 }),
            ("error -22 on auth protocol 2 init", M::AuthFailed { errno: 22 }),
            ("tid 12 on osd3 timeout", M::OsdTimeout { osd: 3 }),
            ("osd3 (1)10.0.0.1:6801 down", M::OsdDown { osd: 3 }),
            ("osd3 down", M::OsdDown { osd: 3 }),
            ("Unknown parameter 'ms_mode'", M::UnknownOption { option: "ms_mode".into() }),
            ("no monitor address(es) provided", M::NoMonitors),
        ];
        for (text, expected) in table {
            assert_eq!(message(&format!("libceph: {text}\n")), Some(expected), "{text}");
        }
    }

    #[test]
    fn a_feature_set_mismatch_is_told_with_what_demands_it() {
        let line = "libceph: mon0 10.0.7.102:6789 feature set mismatch, my 106b84a842a42 < server's 40106b84a842a42, missing 400000000000000";
        let told = message(line).unwrap().meaning();
        assert!(told.contains("CRUSH_TUNABLES5 (bit 58, Linux 4.5 and later)"), "{told}");
    }

    #[test]
    fn other_lines_are_not_guessed_at() {
        let table = [
            "rbd: loaded (major 251)",
            "rbd: rbd0: something new: -5",
            "rbd: rbd0: failed to lock header: -99999999999",
            "rbd: rbd0: failed to lock header: -108 and more",
            "libceph: client4154 fsid c0c55799-7178-41aa-804e-6e900331f900",
            "usb 1-1: failed to lock header: -108",
            "",
        ];
        for line in table {
            assert_eq!(message(line), None, "{line}");
        }
    }

    #[test]
    fn messages_are_kept_as_json() {
        let line = parse("rbd: rbd0: failed to lock header: -108").unwrap();
        let text = serde_json::to_string(&line).unwrap();
        assert_eq!(text, r#"{"about":{"disk":0},"message":{"kind":"lock_failed","errno":108}}"#);
        assert_eq!(serde_json::from_str::<KernelLine>(&text).unwrap(), line);
    }
}
