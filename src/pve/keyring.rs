//! What Proxmox VE's own check makes of a storage's keyring.
//!
//! `PVE::CephConfig::ceph_connect_option` looks at the keyring each time before a storage is used, krbd or not, mapped or not, and
//! dies with "Not a proper rbd authentication file". What it wants has changed: up to libpve-storage-perl 9.1.8 (and in all of
//! 5 to 8) `[name]`, at once `key =`, and a value that ends with `==`, which an aes256k key does not; since 9.1.9 any value.
//! Caps before the key are refused by both. So the check that is installed here is read, and its own pattern tried.

use crate::pve::storage::RbdStorage;
use crate::reading::{Failure, Reading};
use crate::sys::command::Command;
use crate::sys::quote::quoted;
use crate::sys::root::Root;
use regex::bytes::{Regex, RegexBuilder};

/// Where the check is.
pub const CHECK: &str = "/usr/share/perl5/PVE/CephConfig.pm";

/// The check that is installed on this node: what a keyring has to match.
pub type Check = Reading<Regex>;

/// Reads the check. It is not run: only its pattern is taken.
pub fn installed_check(root: &Root) -> Check {
    let what = || format!("read {CHECK}");
    let pattern =
        std::fs::read(root.path(CHECK)).map_err(|error| Failure::io(what(), &error)).and_then(|text| {
            pattern(&String::from_utf8_lossy(&text)).ok_or_else(|| {
                Failure::new(what(), "its check of a keyring is not one that rbd-preflight knows")
            })
        });
    pattern.into()
}

/// The pattern that a keyring of an rbd storage has to match, from the module's text. Perl's pattern means the same here as long as it
/// keeps to what both know; one that does not is none that is understood.
pub fn pattern(module: &str) -> Option<Regex> {
    let (_, check) = module.split_once("ceph_check_keyfile = sub")?;
    let (_, of_rbd) = check.split_once("'rbd'")?;
    let (_, test) = of_rbd.split_once("$content !~ /")?;
    let end = pattern_end(test)?;
    let flags = test[end + 1..].split(';').next()?.trim();
    // Beyond this point another storage type is meant.
    if of_rbd.find("elsif").is_some_and(|other| other < of_rbd.len() - test.len())
        || !["", "m"].contains(&flags)
    {
        return None;
    }
    let pattern = &test[..end];
    if has_variables(pattern) {
        return None;
    }
    // PVE reads the file as bytes.
    RegexBuilder::new(pattern).multi_line(flags == "m").unicode(false).build().ok()
}

/// Perl puts the values of variables into a pattern, which stands as it is here.
fn has_variables(pattern: &str) -> bool {
    let after_dollar = pattern.split('$').skip(1).map(|rest| rest.chars().next());
    let anchor = |next: Option<char>| matches!(next, None | Some(')' | '|'));
    pattern.contains('@') || !after_dollar.into_iter().all(anchor)
}

/// Where a pattern's closing slash is.
fn pattern_end(test: &str) -> Option<usize> {
    let mut escaped = false;
    test.find(|c| {
        let ends = c == '/' && !escaped;
        escaped = c == '\\' && !escaped;
        ends
    })
}

/// The lines that write a storage's keyring anew, as every Ceph and every check of PVE's takes it: the key alone, with neither caps nor
/// the `pending key` that `ceph auth get` may tell too. The key is seen by nobody.
///
/// They are for a node of PVE's own cluster; where the storage's cluster is another one (`monhost`), the first is for a node of that.
pub fn rewrite_command(storage: &RbdStorage, user: &str) -> Vec<String> {
    let entity = quoted(format!("client.{user}"));
    let own = quoted(format!("/etc/pve/priv/ceph/{}.keyring", storage.id));
    let write = |file: &str| {
        let format = quoted("[%s]\n\tkey = %s\n");
        format!("(umask 077; printf {format} {entity} \"$(ceph auth get-key {entity})\" >{file})")
    };
    match storage.monhost {
        None => vec![write(&own)],
        Some(_) => {
            let set = Command::new("pvesm").args(["set", &storage.id, "--keyring", "FILE"]);
            vec![write("FILE"), set.display()]
        }
    }
}

/// Whether the check takes a keyring. Perl takes a text that is empty or `0` for none.
pub fn accepts(check: &Regex, text: &[u8]) -> bool {
    !text.is_empty() && text != b"0" && check.is_match(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A module with this check of rbd's keyrings.
    fn module(test: &str) -> String {
        format!(
            "package X;\nmy $ceph_check_keyfile = sub {{\n my ($f, $type) = @_;\n if ($type eq 'rbd') {{\n  {test}\n \
             }} elsif ($type eq 'cephfs') {{\n  die if $content !~ /^b$/;\n }}\n}};\n"
        )
    }

    fn check(value: &str) -> Regex {
        pattern(&module(&format!(r"die if $content !~ /\[\S+\]\s*key\s*=\s*{value}\s*$/m;"))).unwrap()
    }

    /// As the real modules of libpve-storage-perl 9.1.7 and 9.1.9 answer.
    #[test]
    fn the_checks_of_both_ages_are_tried() {
        let (old, new) = (check(r"\S+=="), check(r"\S+"));
        for (text, by_old, by_new) in [
            ("[client.admin]\n\tkey = AQ==\n", true, true),
            ("[client.admin]\n\tkey = AQ==\n\tcaps mon = \"allow *\"\n", true, true),
            ("[client.admin]\r\n\tkey = AQ==\r\n", true, true),
            ("[client.admin]\n\tkey = Ag=\n", false, true),
            ("[client.admin]\n\tcaps mon = \"allow *\"\n\tkey = AQ==\n", false, false),
            ("[client.admin]\n# mine\n\tkey = AQ==\n", false, false),
            ("[client.admin]\n\tkey = AQ== # mine\n", false, false),
            ("[client.a]\n\tcaps mon = x\n\tkey = AQ==\n[client.b]\nkey = AQ==\n", true, true),
            ("[client.a]\n\u{a0}key = AQ==\n", false, false),
            ("AQ==\n", false, false),
            ("", false, false),
        ] {
            let accepted = (accepts(&old, text.as_bytes()), accepts(&new, text.as_bytes()));
            assert_eq!(accepted, (by_old, by_new), "{text:?}");
        }
    }

    #[test]
    fn a_check_that_is_not_understood_is_none() {
        for test in [
            r"die if $content !~ $re;",
            r"die if $content !~ /$name==/m;",
            r"die if $content !~ /a@b/m;",
            r"die if $content !~ /a/mx;",
            r"die if $content !~ /(?<=a)b/;",
            r"die if $content !~ /a",
            r"return;",
        ] {
            assert!(pattern(&module(test)).is_none(), "{test}");
        }
        assert!(pattern("package X;").is_none());
        assert_eq!(pattern(&module(r"die if $content !~ /a\/b(c|$)/;")).unwrap().as_str(), r"a\/b(c|$)");
    }
}
