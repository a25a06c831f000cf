//! The directory that every absolute path hangs off: `/`, or a test's own tree.

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
}
