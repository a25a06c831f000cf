//! Why `rbd map` failed: its exit code is the errno, and the kernel's log says the rest. PVE's own message has neither.

use crate::ceph::image::ImageFacts;
use crate::ceph::keyring::Key;
use crate::diagnose::advice;
use crate::diagnose::finding::{Finding, RemedyKind};
use crate::diagnose::image::Image;
use crate::diagnose::lock;
use crate::diagnose::rbd_words::{RbdWord, word};
use crate::finding_codes::{Code, Severity};
use crate::kernel::messages::{KernelMessage, parse};
use crate::rbd::action::{ActionReport, ActionResult, Change};
use crate::rbd::features::Features;
use crate::reading::Reading;
use nix::errno::Errno;

/// What the last failed map of an image has come to, if it was not followed by a change that may have fixed it. While
/// there is a try left, that is its remedy: `next` is how the image would be mapped now.
pub fn finding(image: &Image, next: &Change) -> Option<Finding> {
    let failed = last_failure(image)?;
    let (errno, message) = failed.failure()?;
    let said: Vec<KernelMessage> =
        failed.kernel_log.iter().filter_map(|line| parse(line)).map(|line| line.message).collect();
    let errno = errno.map(Errno::from_raw);
    let ended = if message.starts_with("error ") { " fails with" } else { ":" };
    let mut detail = match failed.kernel_log.as_slice() {
        [] => format!("`rbd map`{ended} {message}"),
        lines => format!("`rbd map`{ended} {message}; the kernel said: {}", lines.join(" | ")),
    };
    let mut meanings: Vec<String> =
        said.iter().filter(|said| fits(said, errno)).map(KernelMessage::meaning).collect();
    meanings.dedup();
    if !meanings.is_empty() {
        detail.push_str(&format!("; that is: {}", meanings.join("; ")));
    }
    let keyring = image.storage().and_then(|storage| storage.keyring.as_ref()?.content.known());
    let new_key = keyring.is_some_and(|keyring| keyring.key == Key::Aes256k);
    Some(match cause(errno, &said, word(message), new_key) {
        Code::LockBreakNotPermitted => lock::not_permitted(image, &detail),
        Code::ObjectMapBroken => broken_object_map(image, detail),
        // A line of libceph's may be another client's, and a quota may have room in a moment: it is tried again.
        code @ (Code::KernelTooOld | Code::KernelKeyringRefused) => {
            try_again(image, Finding::new(code, detail), next)
        }
        code @ (Code::ClusterUnreachable | Code::LockDying) => {
            try_again(image, Finding::new(code, detail).remedy(RemedyKind::Wait, code.remedy()), next)
        }
        code @ (Code::NodeClientBlocklisted | Code::MapFailed) => {
            let mut finding = Finding::new(Code::MapFailed, detail);
            if code == Code::NodeClientBlocklisted {
                finding.summary =
                    "the kernel could not map the image: the kernel client for it is dead".to_owned();
            }
            try_again(image, finding.remedy(RemedyKind::Manual, advice_on(image, errno)), next)
        }
        // What this side did wrong is no fault of the image.
        Code::CommandUnknown => Finding::new(Code::CommandUnknown, detail),
        code => Finding::new(code, detail).severity(code.severity().max(Severity::Blocker)),
    })
}

/// What `rbd map` ends with where the kernel does not know the key's type: 22 (EINVAL), or 524 (ENOTSUPP), of which the exit
/// status has the lowest eight bits.
const KEY_TYPE: [Errno; 2] = [Errno::EINVAL, Errno::ENOMEM];

/// The finding with another try as its remedy, or as it is if there is none left.
fn try_again(image: &Image, finding: Finding, next: &Change) -> Finding {
    let mut tried = image.fix(finding.clone(), true, vec![next.clone()]);
    tried.remedy.text = match next {
        Change::Map { noshare: true, .. } => {
            "map it again, with a kernel client of its own (noshare)".to_owned()
        }
        _ => "map it again".to_owned(),
    };
    if tried.remedy.kind == RemedyKind::Automatic { tried } else { finding }
}

/// This node's kernel client was found dead by a map, whatever sysfs and the blocklist say.
pub fn client_is_dead(image: &Image) -> bool {
    last_failure(image)
        .and_then(ActionReport::failure)
        .is_some_and(|(errno, _)| errno == Some(Errno::ESHUTDOWN as i32))
}

fn last_failure<'a>(image: &Image<'a>) -> Option<&'a ActionReport> {
    let maps = image.recent().into_iter().filter(|r| r.action.is_map());
    // What was withheld, or left to another run, was never tried: PVE tries it.
    maps.rev().find(|report| matches!(report.result, ActionResult::Failed { .. }))
}

/// The line may be about this map: it is not one that makes a map end with another errno.
fn fits(message: &KernelMessage, errno: Option<Errno>) -> bool {
    message.map_errno().is_none_or(|expected| errno.is_none_or(|errno| errno as i32 == expected))
}

/// The true cause, from what the kernel said, what `rbd` said, and the errno (`drivers/block/rbd.c`), in this order. The
/// kernel's log is the whole node's: a line that makes a map end with another errno is about another disk.
/// `new_key`: the storage's key is of type aes256k.
fn cause(errno: Option<Errno>, said: &[KernelMessage], word: Option<RbdWord>, new_key: bool) -> Code {
    use KernelMessage as M;
    let told = said.iter().rev().filter(|said| fits(said, errno)).find_map(|message| match message {
        // Any other errno is one of monitors that were busy, or could not be reached: no question of rights.
        M::BlocklistFailed { errno, .. } if [1, 13].contains(errno) => Some(Code::LockBreakNotPermitted),
        M::PostAcquireFailed { .. } | M::ObjectMapSizeMismatch => Some(Code::ObjectMapBroken),
        M::ExternalLock { .. } | M::IncompatibleLockType | M::BlankLockerAddress => Some(Code::LockExternal),
        M::PeerKeepsLock => Some(Code::InUseElsewhere),
        M::UnsupportedFeatures { features } if features.contains(Features::MIGRATING) => {
            Some(Code::ImageMigrating)
        }
        M::UnsupportedFeatures { .. } => Some(Code::FeaturesUnsupported),
        M::PoolMissing { .. } => Some(Code::PoolMissing),
        M::ImageMissing { .. } => Some(Code::ImageMissing),
        M::ParentChainTooLong => Some(Code::ParentChainTooDeep),
        M::NoOwnerAnswers => Some(Code::LockDying),
        M::AuthFailed { .. } => Some(Code::ClusterAuthFailed),
        M::SecretTooBig { .. } => Some(Code::KeyTypeUnsupported),
        M::OldProtocol { .. } | M::ModeNotAllowed { .. } => Some(Code::MsModeMismatch),
        M::FeaturesMissing { .. } => Some(Code::KernelTooOld),
        M::UnknownOption { .. } | M::ExclusiveLockNotEnabled => Some(Code::MapOptionUnknown),
        _ => None,
    });
    let by_rbd = word.map(|word| match word {
        // By rights or by quota the kernel refuses a key of any type.
        RbdWord::SecretNotAdded if new_key && errno.is_none_or(|errno| KEY_TYPE.contains(&errno)) => {
            Code::KeyTypeUnsupported
        }
        RbdWord::SecretNotAdded => Code::KernelKeyringRefused,
        RbdWord::MapOptionUnknown => Code::MapOptionUnknown,
        RbdWord::KeyTypeUnknown => Code::KeyTypeUnsupported,
        RbdWord::NoMonitorAddress => Code::MsModeMismatch,
        RbdWord::OptionUnknown => Code::CommandUnknown,
    });
    told.or(by_rbd).unwrap_or(match errno {
        Some(Errno::ESHUTDOWN) => Code::NodeClientBlocklisted,
        Some(Errno::EBUSY) => Code::LockExternal,
        Some(Errno::EROFS) => Code::InUseElsewhere,
        Some(Errno::ENXIO) => Code::FeaturesUnsupported,
        Some(Errno::ETIMEDOUT) => Code::ClusterUnreachable,
        _ => Code::MapFailed,
    })
}

/// A rebuild makes the object map anew; it is tried once.
fn broken_object_map(image: &Image, detail: String) -> Finding {
    let rebuild = Change::RebuildObjectMap { snapshot: None };
    let action = image.action(rebuild.clone());
    let finding = Finding::new(Code::ObjectMapBroken, detail);
    if image.survey.history.iter().any(|report| report.action == action) {
        return finding;
    }
    image.fix(finding, image.settings.change.object_map, vec![rebuild])
}

/// What fixes a map that failed for a reason that is none of the known ones.
fn advice_on(image: &Image, errno: Option<Errno>) -> String {
    let by_errno = match errno {
        Some(Errno::EPERM | Errno::EACCES) => {
            "the storage's user may not use the image: compare `ceph auth get client.USER` with what it needs, `mon 'profile rbd' osd 'profile rbd pool=POOL'`"
        }
        Some(Errno::ENOENT) => {
            "something that the map needs is missing, such as the image, a parent of it, or its object map: `rbd info` and `rbd object-map check` read them"
        }
        Some(Errno::EIO) => {
            "the cluster could not read it: see `ceph health detail` for damaged placement groups"
        }
        Some(Errno::ENOMEM) => "the kernel lacks memory: see `free` and `dmesg`",
        Some(Errno::EINVAL) => {
            "the kernel does not take what the map asks for: see its options (`rbd_default_map_options`) in the cluster and in ceph.conf"
        }
        Some(Errno::ESHUTDOWN) => {
            "this node's kernel client is on the OSD blocklist: see `ceph osd blocklist ls`; `rbd-preflight repair` gives the disk a client of its own"
        }
        // A map that did not end was killed.
        None => {
            "the map did not end in time: see `ceph health detail`, and `dmesg` for what the kernel waits for"
        }
        _ => return advice::report(image.survey.guest.vmid, &ruled_out(image)),
    };
    format!("{by_errno}; if that is not it: {}", advice::report(image.survey.guest.vmid, &ruled_out(image)))
}

/// What was read before the map and is not its cause.
fn ruled_out(image: &Image) -> String {
    let ImageFacts { features, lock, watchers, .. } = image.facts;
    let mut all = vec!["the image is there and can be read".to_owned()];
    let mut known = |yes: bool, what: &str| {
        if yes {
            all.push(what.to_owned());
        }
    };
    let supported = image.kernel().supported.known();
    known(
        supported.is_some_and(|supported| supported.contains(*features)),
        "the kernel has all its features",
    );
    known(lock.known().is_some_and(|lock| lock.lockers.is_empty()), "nobody has locked it");
    known(watchers.known().is_some_and(Vec::is_empty), "nobody has it open");
    let read = image.survey.cluster_of(image.disk).and_then(Reading::known);
    let dead = image.survey.dead_mappings().next().is_some();
    known(
        !dead && read.is_some_and(|facts| facts.blocklist.known().is_some()),
        "no kernel client of this node is on the blocklist",
    );
    let healthy =
        read.and_then(|facts| facts.health.known()).is_some_and(|health| health.status == "HEALTH_OK");
    known(healthy, "the cluster is healthy");
    all.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_come_before_the_errno() {
        let line = |text: &str| parse(text).map(|line| line.message).into_iter().collect::<Vec<_>>();
        for (errno, text, code) in [
            (108, "", Code::NodeClientBlocklisted),
            (13, "rbd: rbd0: failed to blocklist client4127: -13", Code::LockBreakNotPermitted),
            (110, "rbd: rbd0: failed to blocklist client4127: -110", Code::ClusterUnreachable),
            (2, "rbd: rbd0: post-acquire action failed: -2", Code::ObjectMapBroken),
            (22, "rbd: rbd0: object map size mismatch: 2 vs 1", Code::ObjectMapBroken),
            (16, "rbd: rbd0: locked by external mechanism, tag x", Code::LockExternal),
            (30, "rbd: rbd0: peer will not release lock", Code::InUseElsewhere),
            (6, "rbd: image a: image uses unsupported features: 0x40", Code::FeaturesUnsupported),
            (6, "rbd: image a: image uses unsupported features: 0x200", Code::ImageMigrating),
            (110, "rbd: rbd0: no lock owners detected", Code::LockDying),
            (110, "rbd: rbd0: post-acquire action failed: -2", Code::ClusterUnreachable),
            (110, "rbd: rbd7: failed to blocklist client4127: -13", Code::ClusterUnreachable),
            (108, "rbd: rbd7: locked by external mechanism, tag x", Code::NodeClientBlocklisted),
            (110, "", Code::ClusterUnreachable),
            (110, "libceph: mon0 (2)10.0.0.1:6789 server is speaking msgr1 protocol", Code::MsModeMismatch),
            (22, "libceph: secret too big 32", Code::KeyTypeUnsupported),
            (
                110,
                "libceph: mon0 10.0.7.102:6789 feature set mismatch, my 106b84a842a42 < server's 40106b84a842a42, missing 400000000000000",
                Code::KernelTooOld,
            ),
            (110, "libceph: mon0 (1)10.0.0.1:6789 missing required protocol features", Code::KernelTooOld),
            (
                108,
                "libceph: mon0 (1)10.0.0.1:6789 missing required protocol features",
                Code::NodeClientBlocklisted,
            ),
            (22, "libceph: Unknown parameter 'rxbounce'", Code::MapOptionUnknown),
            (22, "rbd: bad option at 'rxbounce'", Code::MapOptionUnknown),
            (22, "rbd: rbd0: exclusive-lock feature is not enabled", Code::MapOptionUnknown),
            (110, "rbd: Unknown parameter 'x'", Code::ClusterUnreachable),
            (5, "", Code::MapFailed),
        ] {
            assert_eq!(cause(Some(Errno::from_raw(errno)), &line(text), None, false), code, "{errno} {text}");
        }
    }

    #[test]
    fn rbds_words_come_before_the_errno_and_after_the_kernels() {
        let locked = KernelMessage::IncompatibleLockType;
        for (errno, said, word, code) in [
            (Errno::ENOENT, vec![], RbdWord::NoMonitorAddress, Code::MsModeMismatch),
            (Errno::EPERM, vec![], RbdWord::OptionUnknown, Code::CommandUnknown),
            (Errno::ENOMEM, vec![], RbdWord::KeyTypeUnknown, Code::KeyTypeUnsupported),
            (Errno::ENOMEM, vec![], RbdWord::SecretNotAdded, Code::KernelKeyringRefused),
            (Errno::EPERM, vec![], RbdWord::SecretNotAdded, Code::KernelKeyringRefused),
            (Errno::EINVAL, vec![], RbdWord::MapOptionUnknown, Code::MapOptionUnknown),
            (Errno::EBUSY, vec![locked], RbdWord::NoMonitorAddress, Code::LockExternal),
        ] {
            assert_eq!(cause(Some(errno), &said, Some(word), false), code);
        }
        for (errno, new_key, code) in [
            (22, true, Code::KeyTypeUnsupported),
            (524 & 255, true, Code::KeyTypeUnsupported),
            (122, true, Code::KernelKeyringRefused),
            (1, true, Code::KernelKeyringRefused),
            (22, false, Code::KernelKeyringRefused),
        ] {
            let errno = Some(Errno::from_raw(errno));
            assert_eq!(
                cause(errno, &[], Some(RbdWord::SecretNotAdded), new_key),
                code,
                "{errno:?} {new_key}"
            );
        }
    }
}
