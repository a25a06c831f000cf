//! What `rbd` itself says of a map that failed, before or instead of the kernel (Ceph `src/krbd.cc`, run on 16.2.15,
//! 18.2.7 and 20.2.4). Its exit code is the errno's lowest eight bits: 524 (ENOTSUPP) comes out as 12.

/// A line of `rbd` that names a cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RbdWord {
    /// `failed to add secret 'client.admin' to kernel`: the kernel took no key of this type, or no further key at all.
    SecretNotAdded,
    /// The same with `(524)` (ENOTSUPP), which Linux before 7.0 has for a type of key that it does not know.
    KeyTypeUnknown,
    /// `failed to get mon address (possible ms_mode mismatch)`: no monitor has an address of the wanted protocol.
    NoMonitorAddress,
    /// `unknown map option 'x'`, `invalid ms_mode value 'x'`, `couldn't parse map options`: an option that this release of `rbd`
    /// does not take, most likely of `rbd_default_map_options`.
    MapOptionUnknown,
    /// `unrecognised option '--x'`: an argument of ours that this release does not know.
    OptionUnknown,
}

/// The last line that is known, of all that `rbd` said.
pub fn word(said: &str) -> Option<RbdWord> {
    let known = |line: &str| {
        let has = |words: &str| line.contains(words);
        if has("failed to add secret") || has("failed to add ceph secret key") {
            Some(if said.contains("(524)") { RbdWord::KeyTypeUnknown } else { RbdWord::SecretNotAdded })
        } else if has("failed to get mon address") {
            Some(RbdWord::NoMonitorAddress)
        } else if has("unknown map option") || has("invalid ms_mode value") || has("parse map option") {
            Some(RbdWord::MapOptionUnknown)
        } else if has("unrecognised option") || has("unrecognized option") {
            Some(RbdWord::OptionUnknown)
        } else {
            None
        }
    };
    said.split('|').rev().find_map(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_rbd_is_known() {
        for (said, expected) in [
            (
                "error 22 (EINVAL, Invalid argument): rbd: failed to add secret 'client.admin' to kernel | rbd: map failed: (22) Invalid argument",
                Some(RbdWord::SecretNotAdded),
            ),
            (
                "error 524 (ENOTSUPP, Operation is not supported): rbd: failed to add secret 'client.admin' to kernel | rbd: map failed: (524) Unknown error 524",
                Some(RbdWord::KeyTypeUnknown),
            ),
            (
                "error 2 (ENOENT, No such file or directory): rbd: failed to get mon address (possible ms_mode mismatch) | rbd: map failed: (2) No such file or directory",
                Some(RbdWord::NoMonitorAddress),
            ),
            (
                "error 22 (EINVAL, Invalid argument): rbd: unknown map option 'nonsense' | rbd: couldn't parse map options",
                Some(RbdWord::MapOptionUnknown),
            ),
            (
                "error 22 (EINVAL, Invalid argument): rbd: invalid ms_mode value 'bogus' | rbd: couldn't parse map options",
                Some(RbdWord::MapOptionUnknown),
            ),
            ("exit code 1: rbd: unrecognised option '--auth_supported'", Some(RbdWord::OptionUnknown)),
            (
                "error 108 (ESHUTDOWN, Cannot send after transport endpoint shutdown): rbd: sysfs write failed | rbd: map failed: (108) Cannot send after transport endpoint shutdown",
                None,
            ),
            ("", None),
        ] {
            assert_eq!(word(said), expected, "{said}");
        }
    }
}
