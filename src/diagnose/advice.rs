//! What to do where the cause of a failure has no finding of its own: by the errno, and where that says nothing, what was ruled out and what to
//! send to whom.

use crate::reading::{Failure, Origin};
use nix::errno::Errno;

/// What fixes what could not be read of an image, or of what belongs to it.
pub(super) fn unread(vmid: u32, failures: &[&Failure]) -> String {
    let mut told: Vec<&str> = failures.iter().filter_map(|failure| by_errno(failure)).collect();
    told.dedup();
    match told.as_slice() {
        [] => report(
            vmid,
            "the cluster answers and takes the storage's key, and the image was not said to be missing",
        ),
        told => format!("{}; then try again", told.join("; ")),
    }
}

/// What an errno of Ceph's means for whoever reads with the storage's user.
fn by_errno(failure: &Failure) -> Option<&'static str> {
    if failure.origin == Origin::Own && failure.errno.is_none() {
        return Some(
            "rbd-preflight ran out of time or of threads: run it again, with a longer `--deadline`, when the node is less busy",
        );
    }
    Some(match Errno::from_raw(failure.errno?) {
        Errno::EPERM | Errno::EACCES => {
            "the storage's user may not read it: compare `ceph auth get client.USER` with what it needs, `mon 'profile rbd' osd 'profile rbd pool=POOL'`"
        }
        Errno::ENOENT => {
            "something that belongs to the image is missing: see `rbd info`, and `rbd snap ls --all`; it may just have been removed"
        }
        Errno::EIO => {
            "an OSD could not read it: see `ceph health detail` for damaged placement groups, and the OSDs' logs"
        }
        Errno::ETIMEDOUT => {
            "there was no answer in time: see `ceph health detail` and `ceph osd tree` for OSDs and placement groups that do not serve; `connect_timeout` says how long is waited"
        }
        Errno::ESHUTDOWN => {
            "this node's client was put on the OSD blocklist meanwhile: see `ceph osd blocklist ls`"
        }
        Errno::ENOMEM | Errno::EMFILE | Errno::ENFILE | Errno::EAGAIN => {
            "this node lacks memory, files or processes: see `free`, `ulimit -a` and the limits of the service that started this"
        }
        Errno::EOPNOTSUPP => {
            "the cluster's OSDs do not know what was asked: see `ceph versions` for OSDs that are older than the client"
        }
        Errno::EBADMSG | Errno::EINVAL => {
            "what the image's header holds is not understood: see whether `rbd info` reads it; it may be damaged, or made by a newer Ceph (`ceph versions`)"
        }
        _ => return None,
    })
}

/// What to send to whom, where the cause is not known.
pub(super) fn report(vmid: u32, ruled_out: &str) -> String {
    format!(
        "rbd-preflight does not know the cause (ruled out: {ruled_out}): file an issue for it with the file of `rbd-preflight check {vmid} \
         --save-survey {vmid}.json` and the output of `rbd-preflight doctor --json`: they hold names and addresses, but no key"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errno_that_is_known_says_what_to_do_and_any_other_what_to_send() {
        for (errno, told) in [
            (1, "ceph auth get client.USER"),
            (5, "ceph health detail"),
            (110, "connect_timeout"),
            (108, "ceph osd blocklist ls"),
            (24, "ulimit -a"),
            (95, "ceph versions"),
            (22, "rbd info"),
        ] {
            let failure = Failure::errno("read it", errno);
            let text = unread(516, &[&failure, &failure]);
            assert!(text.contains(told) && text.matches(told).count() == 1, "{errno}: {text}");
        }
        for failure in [Failure::errno("read it", 75), Failure::new("read it", "answer not understood")] {
            let text = unread(516, &[&failure]);
            assert!(text.contains("--save-survey 516.json") && text.contains("ruled out:"), "{text}");
        }
    }
}
