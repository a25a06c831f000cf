//! A file that is there whole, or as it was before.

use std::fs::File;
use std::io::{Result, Write};
use std::path::Path;

/// Puts a file in its place whole or not at all, and through no link: what is written under another name beside it, which
/// begins with `prefix`, is on the disk before it takes the place. `prepare` sets what else the new file has to have.
pub fn whole(
    file: &Path,
    prefix: &str,
    bytes: &[u8],
    prepare: impl FnOnce(&File) -> Result<()>,
) -> Result<()> {
    unsynced(file, prefix, bytes, |new| prepare(new).and_then(|()| new.sync_all()))
}

/// The same without waiting for the disk, for a file that is written again and again: after a power failure it may be empty.
pub fn unsynced(
    file: &Path,
    prefix: &str,
    bytes: &[u8],
    prepare: impl FnOnce(&File) -> Result<()>,
) -> Result<()> {
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut new = tempfile::Builder::new().prefix(prefix).tempfile_in(directory)?;
    new.write_all(bytes)?;
    prepare(new.as_file())?;
    new.persist(file)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_left_alone_by_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a");
        whole(&file, ".a.", b"one", |_| Ok(())).unwrap();
        whole(&file, ".a.", b"two", |_| Err(std::io::ErrorKind::PermissionDenied.into())).unwrap_err();
        assert_eq!(std::fs::read(&file).unwrap(), b"one");
        whole(&file, ".a.", b"two", |_| Ok(())).unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 1, "nothing is left beside it");
    }
}
