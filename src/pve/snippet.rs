//! Snippets: where a hookscript lies, and whether Proxmox VE would call it.
//!
//! `PVE::GuestHelpers::check_hookscript`, which PVE asks when a hookscript is set and again before every call.

use super::guest::Guest;
use super::perl::excerpt;
use super::storage::StorageConfig;
use super::volume::split_volid;
use crate::reading::{Failure, Reading, cause_text};
use crate::sys::root::Root;
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

/// How long a file may take to be looked at: it may be on a file server that is gone.
const PATIENCE: Duration = Duration::from_secs(2);

/// Types of storage that Proxmox VE mounts by itself when a volume of theirs is used.
const MOUNTED: [&str; 3] = ["nfs", "cifs", "cephfs"];

/// A snippet that the guest's config names and that Proxmox VE will not take, or of which that could not be found out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SnippetFacts {
    /// The option that names it: `hookscript`, `cicustom user`.
    pub option: String,
    /// The snippet as the config names it: `local:snippets/x`.
    pub volid: String,
    /// Why Proxmox VE refuses it, in its words, with the file.
    pub refused: Reading<String>,
}

/// The snippets of a guest of this node that a start will fail at, and those that could not be looked at.
pub fn look(root: &Root, storages: &StorageConfig, guest: &Guest) -> Vec<SnippetFacts> {
    let hookscript = guest.hookscript.iter().filter_map(|volid| {
        let refused = hookscript(root, storages, volid)?;
        Some(SnippetFacts { option: "hookscript".to_owned(), volid: volid.clone(), refused })
    });
    let cicustom = guest.cicustom.iter().filter_map(|(part, volid)| {
        let refused = cicustom(root, storages, volid)?;
        Some(SnippetFacts { option: format!("cicustom {part}"), volid: volid.clone(), refused })
    });
    hookscript.chain(cicustom).collect()
}

/// The same as [`check`], with what cannot be known told apart; `None` if Proxmox VE takes it.
fn hookscript(root: &Root, storages: &StorageConfig, volid: &str) -> Option<Reading<String>> {
    let path = match file(storages, volid) {
        Ok(path) => path,
        Err(refused) => return Some(refused),
    };
    let name = excerpt(volid.as_bytes());
    let said = |what: &str| Some(Reading::Known(format!("script '{name}' {what} ({path})")));
    match stat(root, &path) {
        Ok(Some(Found { file: true, executable: true })) => None,
        Ok(Some(Found { file: true, executable: false })) => said("is not executable"),
        Ok(_) => said("does not exist"),
        Err(failure) => Some(Reading::Unknown(failure)),
    }
}

/// `PVE::QemuServer::Cloudinit::read_cloudinit_snippets_file`: the storage is activated, which mounts it, and the file read.
fn cicustom(root: &Root, storages: &StorageConfig, volid: &str) -> Option<Reading<String>> {
    let path = match file(storages, volid) {
        Ok(path) => path,
        Err(refused) => return Some(refused),
    };
    match stat(root, &path) {
        Ok(Some(Found { file: true, .. })) => None,
        Ok(found) => {
            let mounted = parse(volid).and_then(|(storage, _)| storages.others.get(storage));
            let mounted = mounted.is_some_and(|storage| MOUNTED.contains(&storage.storage_type.as_str()));
            let directory = Path::new(&path).parent().and_then(Path::to_str).unwrap_or_default();
            if found.is_none() && mounted && !matches!(stat(root, directory), Ok(Some(_))) {
                let why = "the storage is not mounted; Proxmox VE mounts it at the start";
                return Some(Reading::Unknown(Failure::new(format!("look at {path}"), why)));
            }
            Some(Reading::Known(format!("volume '{}' does not exist ({path})", excerpt(volid.as_bytes()))))
        }
        Err(failure) => Some(Reading::Unknown(failure)),
    }
}

/// The snippet's file, or what [`path`] says. What is on a plugin's storage is not known.
fn file(storages: &StorageConfig, volid: &str) -> Result<String, Reading<String>> {
    path(storages, volid).map_err(|why| match parse(volid) {
        Some((storage, _)) if storages.foreign.contains_key(storage) => {
            Reading::Unknown(Failure::new(format!("look for {}", excerpt(volid.as_bytes())), why))
        }
        _ => Reading::Known(why),
    })
}

/// What is at a path.
#[derive(Debug, Clone, Copy)]
struct Found {
    file: bool,
    executable: bool,
}

/// What is at a path, within [`PATIENCE`]; `None` if nothing is.
fn stat(root: &Root, path: &str) -> Result<Option<Found>, Failure> {
    let (tell, told) = mpsc::channel();
    let real = root.path(path);
    let look = move || {
        let _ = tell.send(std::fs::metadata(real));
    };
    let what = || format!("look at {path}");
    std::thread::Builder::new().spawn(look).map_err(|error| Failure::io(what(), &error))?;
    match told.recv_timeout(PATIENCE) {
        Ok(Ok(meta)) => {
            Ok(Some(Found { file: meta.is_file(), executable: meta.permissions().mode() & 0o111 != 0 }))
        }
        Ok(Err(error)) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Ok(Err(error)) => Err(Failure::io(what(), &error)),
        Err(_) => Err(Failure::new(what(), "no answer within 2 s; is it on a file server that is gone?")),
    }
}

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
        Err(error) => Err(format!("script '{volid}' does not exist ({path}: {})", cause_text(&error))),
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

    /// What is reported of a VM's hookscript and of its cloud-init snippet.
    fn told(root: &Root, hookscript: &str, user: &str) -> Vec<(String, Option<String>)> {
        let config = "dir: aa\n\tpath /srv\n\nnfs: far\n\tpath /mnt/far\n\tserver s\n\texport /e\n\nlinbit: cc\n\nlvm: l1\n\tvgname v\n\n\
            rbd: ceph\n\tpool rbd\n";
        let storages = storage::parse("storage.cfg", config.as_bytes());
        let text = format!("hookscript: {hookscript}\ncicustom: user={user}\nide2: ceph:vm-7-cloudinit\n");
        let source = crate::pve::guest::Source {
            vmid: 7,
            kind: crate::pve::words::Kind::Qemu,
            node: "n1",
            file: "7.conf",
            config: text.as_bytes(),
        };
        let guest = crate::pve::guest::read(&source, &storages);
        let all = look(root, &storages, &guest).into_iter();
        all.map(|facts| (facts.option, facts.refused.known().cloned())).collect()
    }

    #[test]
    fn what_a_start_will_fail_at_is_told_apart_from_what_is_not_known() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        for (path, mode) in [("srv/snippets/good", 0o755), ("srv/snippets/plain", 0o644)] {
            let path = directory.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, "").unwrap();
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        let good = "aa:snippets/good";
        assert_eq!(told(&root, good, "aa:snippets/plain"), []);
        let refused = |option: &str, why: &str| vec![(option.to_owned(), Some(why.to_owned()))];
        let unknown = |option: &str| vec![(option.to_owned(), None)];
        let script = |volid| told(&root, volid, good);
        let snippet = |volid| told(&root, good, volid);
        let missing = "script 'aa:snippets/no' does not exist (/srv/snippets/no)";
        assert_eq!(script("aa:snippets/no"), refused("hookscript", missing));
        let plain = "script 'aa:snippets/plain' is not executable (/srv/snippets/plain)";
        assert_eq!(script("aa:snippets/plain"), refused("hookscript", plain));
        assert_eq!(script("none:snippets/x"), refused("hookscript", "storage 'none' does not exist"));
        // Proxmox VE mounts nothing for a hookscript.
        let far = "script 'far:snippets/x' does not exist (/mnt/far/snippets/x)";
        assert_eq!(script("far:snippets/x"), refused("hookscript", far));
        assert_eq!(script("cc:snippets/x"), unknown("hookscript"));
        let missing = "volume 'aa:snippets/no' does not exist (/srv/snippets/no)";
        assert_eq!(snippet("aa:snippets/no"), refused("cicustom user", missing));
        assert_eq!(snippet("far:snippets/x"), unknown("cicustom user"));
        std::fs::create_dir_all(directory.path().join("mnt/far/snippets")).unwrap();
        let missing = "volume 'far:snippets/x' does not exist (/mnt/far/snippets/x)";
        assert_eq!(snippet("far:snippets/x"), refused("cicustom user", missing));
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
