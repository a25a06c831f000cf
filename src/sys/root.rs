//! The directory that every absolute path hangs off: `/`, or a test's own tree.

use crate::reading::Failure;
use std::io::{ErrorKind, Result as IoResult};
use std::path::{Path, PathBuf};

/// Where the tool's view of the file system begins (`--root`, `RBD_PREFLIGHT_ROOT`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root(PathBuf);

impl Root {
    /// A view that begins at `directory`.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self(directory.into())
    }

    /// It is the system's own root, and so the kernel seen in it is the running one.
    pub fn is_system(&self) -> bool {
        self.0 == Path::new("/")
    }

    /// The real place of `absolute`, a path as Proxmox VE and Ceph write it (`/etc/pve/storage.cfg`).
    pub fn path(&self, absolute: impl AsRef<Path>) -> PathBuf {
        let absolute = absolute.as_ref();
        self.0.join(absolute.strip_prefix("/").unwrap_or(absolute))
    }

    /// Whether something is there; through links, so that one which leads nowhere is not.
    ///
    /// # Errors
    /// It could not be looked for, which is no "no".
    pub fn exists(&self, absolute: impl AsRef<Path>) -> Result<bool, Failure> {
        match std::fs::metadata(self.path(&absolute)) {
            Ok(_) => Ok(true),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(false),
            Err(error) => Err(Failure::path("look for", absolute, &error)),
        }
    }

    /// A file's bytes; `None` if it is not there.
    ///
    /// # Errors
    /// It may be there and could not be read.
    pub fn read(&self, absolute: impl AsRef<Path>) -> Result<Option<Vec<u8>>, Failure> {
        if_there(&absolute, std::fs::read(self.path(&absolute)))
    }

    /// A file's text; `None` if it is not there.
    ///
    /// # Errors
    /// It may be there and could not be read, or is not UTF-8.
    pub fn read_text(&self, absolute: impl AsRef<Path>) -> Result<Option<String>, Failure> {
        if_there(&absolute, std::fs::read_to_string(self.path(&absolute)))
    }
}

fn if_there<T>(file: impl AsRef<Path>, read: IoResult<T>) -> Result<Option<T>, Failure> {
    match read {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::path("read", file, &error)),
    }
}

impl Default for Root {
    fn default() -> Self {
        Self::new("/")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absolute_paths_hang_off_the_root() {
        assert_eq!(Root::default().path("/etc/pve"), Path::new("/etc/pve"));
        assert_eq!(Root::new("/lab").path("/etc/pve"), Path::new("/lab/etc/pve"));
        assert_eq!(Root::new("/lab").path("etc/pve"), Path::new("/lab/etc/pve"));
    }

    #[test]
    fn only_a_path_that_is_not_there_is_not_there() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        std::fs::write(root.path("/a"), [b'x', 0xff]).unwrap();
        std::os::unix::fs::symlink("loop", root.path("/loop")).unwrap();
        assert_eq!((root.exists("/a"), root.read("/a")), (Ok(true), Ok(Some(vec![b'x', 0xff]))));
        assert_eq!(
            (root.exists("/b"), root.read("/b"), root.read_text("/b")),
            (Ok(false), Ok(None), Ok(None))
        );
        let failure = root.exists("/loop").unwrap_err();
        assert_eq!((failure.what.as_str(), failure.errno), ("look for /loop", Some(nix::libc::ELOOP)));
        assert!(root.read("/a/b").is_err() && root.read_text("/a").is_err());
    }
}
