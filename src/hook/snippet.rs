//! Our snippet, which Proxmox VE calls as the guest's hookscript: its text, its name, and how it is known again.
//!
//! Its name also says which hookscript the guest had before, `rbd-preflight+STORAGE+NAME` for `STORAGE:snippets/NAME`
//! ([`super::earlier`] says why).

use crate::pve::snippet;
use serde::Serialize;
use std::io::Read;
use std::path::Path;

/// The file name of our snippet on its storage; the earlier hookscript may follow.
pub const NAME: &str = "rbd-preflight";

/// Stands before the parts that name the earlier hookscript; no storage's name has it.
const MARK: char = '+';

/// A file's name is no longer, in bytes.
const LONGEST_NAME: usize = 255;

/// The text of the snippet that becomes guests' hookscript (`hooks/rbd-preflight`).
pub const SNIPPET: &str = include_str!("../../hooks/rbd-preflight");

/// What our snippet is called on a storage for a guest that had this hookscript before, as a volume id.
///
/// # Errors
/// It is no snippet, or a file's name has no room for it; in words.
pub fn snippet_for(storage: &str, earlier: Option<&str>) -> Result<String, String> {
    let Some(earlier) = earlier else { return Ok(format!("{storage}:snippets/{NAME}")) };
    let Some((of, name)) = snippet::parse(earlier) else {
        return Err(format!("{earlier} is no snippet's volume id"));
    };
    let file = format!("{NAME}{MARK}{of}{MARK}{name}");
    if file.len() > LONGEST_NAME {
        return Err(format!(
            "the name of {earlier} is too long to be kept in our snippet's: give it a shorter one"
        ));
    }
    Ok(format!("{storage}:snippets/{file}"))
}

/// Our snippet by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ours {
    /// The storage that it is on.
    pub storage: String,
    /// The hookscript that it calls too.
    pub earlier: Option<String>,
}

/// Our snippet, if this volume id is one of its names.
pub fn ours(volid: &str) -> Option<Ours> {
    let (storage, name) = snippet::parse(volid)?;
    let earlier = match name.strip_prefix(NAME)? {
        "" => None,
        rest => {
            let (of, name) = rest.strip_prefix(MARK)?.split_once(MARK)?;
            let earlier = format!("{of}:snippets/{name}");
            snippet::parse(&earlier)?;
            Some(earlier)
        }
    };
    Some(Ours { storage: storage.to_owned(), earlier })
}

/// How guests name the snippet if they had no hookscript before, and nobody has put it elsewhere.
pub const ON_LOCAL: &str = "local:snippets/rbd-preflight";

/// The file is our snippet under some name, or a link to this program.
pub fn is_ours(path: &Path) -> bool {
    let this = || Some(path.canonicalize().ok()? == std::env::current_exe().ok()?.canonicalize().ok()?);
    holds_snippet(path) || this() == Some(true)
}

fn holds_snippet(path: &Path) -> bool {
    let mut bytes = Vec::new();
    let limit = SNIPPET.len() as u64 + 1;
    // Opening a fifo would wait for its other end.
    path.is_file()
        && std::fs::File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes)).is_ok()
        && bytes == SNIPPET.as_bytes()
}

/// Whether another node has the snippet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Presence {
    /// It is there under its name.
    Present,
    /// It is not there: guests that ask for it do not start on that node.
    Missing,
    /// That could not be learnt.
    Unknown,
}

/// Another node and the snippet.
#[derive(Debug, Clone, Serialize)]
pub struct OtherNode {
    /// The node's name.
    pub node: String,
    /// The snippet's volume id.
    pub volid: String,
    /// Whether it has the snippet.
    pub snippet: Presence,
    /// What puts it there, or why it is not known.
    pub text: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_snippets_name_says_what_it_calls_too() {
        for earlier in [None, Some("local:snippets/old.sh"), Some("nas-1.x:snippets/a b+c.sh")] {
            let volid = snippet_for("local", earlier).unwrap();
            let expected = Ours { storage: "local".to_owned(), earlier: earlier.map(str::to_owned) };
            assert_eq!(ours(&volid), Some(expected), "{volid}");
        }
        assert_eq!(
            snippet_for("nas", Some("local:snippets/old.sh")).unwrap(),
            "nas:snippets/rbd-preflight+local+old.sh"
        );
        for other in
            ["rbd-preflight.sh", "rbd-preflight+local", "rbd-preflight++a", "rbd-preflight+local+", "old.sh"]
        {
            assert_eq!(ours(&format!("local:snippets/{other}")), None, "{other}");
        }
        assert!(snippet_for("local", Some("local:iso/a")).is_err());
        let long = |length: usize| format!("local:snippets/{}", "x".repeat(length));
        assert!(snippet_for("local", Some(&long(235))).is_ok());
        assert!(snippet_for("local", Some(&long(236))).unwrap_err().contains("too long"));
    }

    #[test]
    fn our_snippet_is_known_under_any_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("other");
        assert!(!is_ours(&path));
        std::fs::write(&path, SNIPPET).unwrap();
        assert!(is_ours(&path));
        std::fs::write(&path, format!("{SNIPPET}x")).unwrap();
        assert!(!is_ours(&path));
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(std::env::current_exe().unwrap(), &link).unwrap();
        assert!(is_ours(&link));
    }
}
