//! Snippets: where a hookscript lies, and whether Proxmox VE would call it.
//!
//! `PVE::GuestHelpers::check_hookscript`, which PVE asks when a hookscript is set and again before every call.

use super::perl::excerpt;
use super::storage::StorageConfig;
use super::volume::split_volid;
use crate::sys::root::Root;
use std::os::unix::fs::PermissionsExt;

/// A snippet's volume id taken apart: its storage, and its file's name (`^snippets/([^/]+)$`).
pub fn parse(volid: &str) -> Option<(&str, &str)> {
    let (storage, volume) = split_volid(volid.as_bytes())?;
    let name = std::str::from_utf8(volume).ok()?.strip_prefix("snippets/")?;
    let plain = !name.is_empty() && !name.contains(['/', '\n']) && name != "." && name != "..";
    plain.then_some((storage, name))
}

/// The file of a snippet, as PVE names it, or why there is none. The storage need not be enabled or mounted:
/// PVE does not look.
pub fn path(storages: &StorageConfig, volid: &str) -> Result<String, String> {
    let Some((storage, name)) = parse(volid) else {
        return Err(format!("'{}' is not in the snippets directory", excerpt(volid.as_bytes())));
    };
    if let Some(other) = storages.others.get(storage) {
        return match &other.snippets {
            Some(directory) => Ok(format!("{directory}/{name}")),
            None => {
                Err(format!("the storage '{storage}' ({}) has no snippets directory", other.storage_type))
            }
        };
    }
    match storages.foreign.get(storage) {
        _ if storages.rbd(storage).is_some() => Err(format!("the storage '{storage}' (rbd) holds no files")),
        Some(kind) => Err(format!("the storage '{storage}' is of type {kind}, which is not known here")),
        None => Err(format!("storage '{storage}' does not exist")),
    }
}

/// PVE's own checks of a hookscript's file, in its words. To root any x bit will do.
pub fn check(root: &Root, path: &str, volid: &str) -> Result<(), String> {
    let volid = excerpt(volid.as_bytes());
    match std::fs::metadata(root.path(path)) {
        Ok(meta) if !meta.is_file() => Err(format!("script '{volid}' does not exist ({path} is no file)")),
        Ok(meta) if meta.permissions().mode() & 0o111 == 0 => {
            Err(format!("script '{volid}' is not executable ({path})"))
        }
        Ok(_) => Ok(()),
        Err(error) => Err(format!("script '{volid}' does not exist ({path}: {error})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pve::storage;

    #[test]
    fn a_snippet_is_one_file_in_one_directory() {
        assert_eq!(parse("local:snippets/a.sh"), Some(("local", "a.sh")));
        for bad in ["local:iso/a", "local:snippets/", "local:snippets/a/b", "snippets/a", "local:snippets/.."]
        {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn paths_follow_the_storage() {
        let config = "dir: aa\n\tpath /srv\n\tcontent-dirs snippets=hooks\n\nrbd: ceph\n\nlinbit: cc\n\nlvm: l1\n\tvgname v\n";
        let storages = storage::parse("storage.cfg", config.as_bytes());
        assert_eq!(path(&storages, "aa:snippets/x").unwrap(), "/srv/hooks/x");
        assert_eq!(path(&storages, "local:snippets/x").unwrap(), "/var/lib/vz/snippets/x");
        for bad in ["ceph:snippets/x", "cc:snippets/x", "l1:snippets/x", "none:snippets/x", "aa:iso/x"] {
            assert!(path(&storages, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_file_is_checked_as_pve_does() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        let file = directory.path().join("a");
        let said = || {
            check(&root, "/a", "local:snippets/a").map_err(|why| why.split(" (").next().unwrap().to_owned())
        };
        assert_eq!(said().unwrap_err(), "script 'local:snippets/a' does not exist");
        std::fs::write(&file, "").unwrap();
        assert_eq!(said().unwrap_err(), "script 'local:snippets/a' is not executable");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(said(), Ok(()));
    }
}
