//! Whether this node's kernel can use a Ceph key of type aes256k (2): the kernel is asked, and where it cannot be, its version is
//! a guess.
//!
//! `rbd map` gives the key to the kernel (`add_key(2)`, type `ceph`), which looks at it in `ceph_key_preparse` (Linux
//! `net/ceph/crypto.c`): type (le16), time of creation (2 × le32), length (le16), secret. What becomes of a type 2:
//! - up to 6.19 `set_secret` knows no such type: 524 (ENOTSUPP);
//! - with `CEPH_MAX_KEY_LEN` 16, which stable kernels have too (seen: 6.12.118), a secret of its real length, 32, is refused
//!   before that: 22 (EINVAL), and the kernel's log says `libceph: secret too big 32`;
//! - since 7.0 any type is taken here, up to a length of 32, and looked at when it is used.
//!
//! Asked of 6.1, 6.12.117 and 7.2.13.
//!
//! So a secret of 16 bytes is offered first, over which no kernel that refuses it writes a line: it could be taken for the word on
//! a map that is being made at the same time. A kernel that does not refuse the type over that is offered one of 32.

use crate::reading::{ENOTSUPP, Errno, Failure, Reading};
use crate::sys::root::Root;
use crate::sys::syscalls::offer_kernel_key;
use nix::libc::{EINVAL, ENODEV};

/// The first version that can by itself.
pub const SINCE: (u32, u32) = (7, 0);

/// Asks the running kernel. Unknown where the root is not its own, while libceph is not loaded, and where keys cannot be added.
pub fn takes_aes256k(root: &Root) -> Reading<bool> {
    if !root.is_system() {
        return Reading::Unknown(Failure::new(WHAT, "this root is not the running kernel's"));
    }
    // Of this process alone, and of each thread.
    ask(|secret| offer_kernel_key(c"rbd-preflight:aes256k", &payload(secret)))
}

/// A kernel of this version does not take such keys, unless the change was put into it. `(0, 0)` is no version.
pub fn unlikely(version: (u32, u32)) -> bool {
    version != (0, 0) && version < SINCE
}

/// What stands for the answer where nobody has asked.
pub fn not_asked() -> Reading<bool> {
    Reading::Unknown(Failure::new(WHAT, "it was not asked"))
}

const WHAT: &str = "ask the kernel for keys of type aes256k";

/// The answer, by what becomes of a key with a secret of so many bytes.
fn ask(offer: impl Fn(u16) -> Result<(), Errno>) -> Reading<bool> {
    let answer = match offer(16) {
        // 22 here says nothing of the type: perhaps that the length is another type's.
        Ok(()) | Err(EINVAL) => offer(32),
        refused => refused,
    };
    match answer {
        Ok(()) => Reading::Known(true),
        Err(EINVAL | ENOTSUPP) => Reading::Known(false),
        Err(ENODEV) => Reading::Unknown(Failure::new(WHAT, "libceph is not loaded")),
        Err(errno) => Reading::Unknown(Failure::errno(WHAT, errno)),
    }
}

/// A key of type 2 that opens nothing.
fn payload(secret: u16) -> Vec<u8> {
    const AES256K: u16 = 2;
    let header = [AES256K.to_le_bytes().as_slice(), &[0; 8], &secret.to_le_bytes()].concat();
    [header, vec![0; usize::from(secret)]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    /// The answer, and what was offered.
    fn asked(kernel: impl Fn(u16) -> Result<(), Errno>) -> (Option<bool>, Vec<u16>) {
        let offered = RefCell::new(Vec::new());
        let answer = ask(|secret| {
            offered.borrow_mut().push(secret);
            kernel(secret)
        });
        (answer.known().copied(), offered.into_inner())
    }

    #[test]
    fn each_age_of_kernels_gives_its_answer_and_no_old_one_a_line() {
        assert_eq!(asked(|_| Err(ENOTSUPP)), (Some(false), vec![16]), "6.1");
        let by_length = |secret| Err(if secret > 16 { EINVAL } else { ENOTSUPP });
        assert_eq!(asked(by_length), (Some(false), vec![16]), "6.12.118");
        assert_eq!(asked(|_| Ok(())), (Some(true), vec![16, 32]), "7.2");
        let half = |secret| if secret > 16 { Err(EINVAL) } else { Ok(()) };
        assert_eq!(asked(half), (Some(false), vec![16, 32]), "with a part of the change");
        let strict = |secret| if secret < 32 { Err(EINVAL) } else { Ok(()) };
        assert_eq!(asked(strict), (Some(true), vec![16, 32]), "one that minds the length");
    }

    #[test]
    fn a_kernel_that_cannot_be_asked_says_neither_yes_nor_no() {
        for errno in [ENODEV, 1, 12, 13, 38, 122] {
            assert_eq!(asked(|_| Err(errno)).0, None, "{errno}");
        }
        let elsewhere = takes_aes256k(&Root::new("/nonexistent"));
        assert!(elsewhere.failure().unwrap().message.contains("not the running kernel's"));
    }

    #[test]
    fn a_version_is_a_guess() {
        let unlikely: Vec<bool> = [(0, 0), (5, 3), (6, 19), (7, 0), (7, 2), (10, 0)].map(unlikely).into();
        assert_eq!(unlikely, [false, true, true, false, false, false]);
    }

    #[test]
    fn the_key_is_laid_out_as_the_kernel_reads_it() {
        let key = payload(32);
        assert_eq!((key.len(), &key[..2], &key[10..12]), (44, &[2, 0][..], &[32, 0][..]));
    }
}
