//! Keys in what other programs print, which must go no further.
//!
//! Ceph prints the key of a keyring that it cannot read: `error setting modifier for [client.x] type=key val=AQ…: Malformed input`
//! (`KeyRing::decode_plaintext`, on stderr of every tool; seen on 16.2.15, 18.2.7 and 20.2.4). `ceph auth` prints keyrings (`key = AQ…`) and JSON
//! (`"key":"AQ…"`), and `mount` options `secret=AQ…`.

use regex::Regex;
use std::borrow::Cow;
use std::sync::LazyLock;

/// What stands where something was taken out.
const MASK: &str = "***";

/// Each with what is kept before the mask.
static SECRETS: LazyLock<Vec<Regex>> = LazyLock::new(|| {
    [
        // All the rest of the line: where the line is broken, even the setting's name can be a key.
        r"(error setting modifier for \[[^\]\n]*\] ).*",
        r"(\bval *= *).*",
        r#"(\b(?:key|secret)["']?\s*[:=]\s*["']?)[^\s,;"'|]+"#,
        // Whatever stands before it: in base64 its type (le16, 1 to 3), and all that follows, if that is half a key or more.
        r"()A[Qgw][A-D][A-Za-z0-9+/]{17,}={0,2}",
    ]
    .iter()
    .filter_map(|pattern| Regex::new(pattern).ok())
    .collect()
});

/// The text with every key in it masked, by its name or by its shape.
pub fn masked(text: &str) -> String {
    SECRETS
        .iter()
        .fold(Cow::Borrowed(text), |text, secret| {
            let replaced = secret.replace_all(&text, format!("${{1}}{MASK}"));
            Cow::Owned(replaced.into_owned())
        })
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const AES: &str = "AQBaWlpaWlpaWhAApaWlpaWlpaWlpaWlpaWlpQ==";
    const AES256K: &str = "AgBaWlpaWlpaWiAApaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaU=";

    #[test]
    fn every_pattern_is_one() {
        assert_eq!(SECRETS.len(), 4);
    }

    /// The first as 16.2.15 and 20.2.4 print them.
    #[test]
    fn keys_are_masked_wherever_ceph_prints_them() {
        for (text, expected) in [
            (
                "-1 auth: error parsing file /k: error setting modifier for [client.a] type=key val=KEY: Malformed input [buffer:3]",
                "-1 auth: error parsing file /k: error setting modifier for [client.a] ***",
            ),
            (
                "error setting modifier for [client.a] type=key KEY val==: Malformed\nnext",
                "error setting modifier for [client.a] ***\nnext",
            ),
            ("type=pending key val=KEY x: Malformed input", "type=pending key val=***"),
            ("[client.a]\n\tkey = KEY\n\tpending key=KEY\n", "[client.a]\n\tkey = ***\n\tpending key=***\n"),
            (
                r#"[{"entity":"client.a","key":"KEY","caps":{}}]"#,
                r#"[{"entity":"client.a","key":"***","caps":{}}]"#,
            ),
            ("name=a,secret=KEY,noshare", "name=a,secret=***,noshare"),
            ("added key KEY", "added key ***"),
            ("KEY", "***"),
            ("crypto_key_unarmor KEY", "crypto_key_unarmor ***"),
        ] {
            for key in [AES, AES256K] {
                assert_eq!(masked(&text.replace("KEY", key)), expected);
            }
        }
        assert_eq!(masked(&format!("key = {}!{}", &AES[..20], &AES[20..])), "key = ***");
        assert_eq!(masked(&format!("cut: {}", &AES[..25])), "cut: ***");
    }

    #[test]
    fn all_else_stays() {
        for text in [
            "rbd: failed to add secret 'client.admin' to kernel",
            "rbd -p rbd --keyring=/etc/pve/priv/ceph/a.keyring -n client.admin map vm-1-disk-0",
            "auth: unable to find a keyring on /etc/ceph/ceph.client.admin.keyring: (2) No such file or directory",
            "interval=5 monkey=3; ABACUS and AQUARIUM are words",
            "rbd: map failed: (22) Invalid argument",
            "",
        ] {
            assert_eq!(masked(text), text);
        }
    }
}
