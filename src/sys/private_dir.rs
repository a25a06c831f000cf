//! A directory of our own: nobody else may enter it, and no link planted in it is ever followed.

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, Flockable, OFlag, open, openat};
use nix::sys::stat::Mode;
use std::fs::{DirBuilder, File, Permissions};
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often to look whether a lock is free: short against a start, long against a processor.
const POLL: Duration = Duration::from_millis(20);

/// Where the tool's own files are that need not outlive this boot: the locks between runs, and what was seen of clients.
pub const RUN: &str = "/run/rbd-preflight";

/// A file's name is at most 255 bytes long; a longer one is cut here and ends with a hash of the whole.
const LONGEST_NAME: usize = 200;

/// An opened directory with mode 0700.
#[derive(Debug)]
pub(crate) struct PrivateDir {
    directory: File,
    path: PathBuf,
}

impl PrivateDir {
    /// Opens it; creates it first, durably, if it is not there.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        if let Some(there) = Self::open(path)? {
            return Ok(there);
        }
        let parent = path.parent().unwrap_or(path);
        std::fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
        match DirBuilder::new().mode(0o700).create(path) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => {
                return Err(e).with_context(|| format!("cannot create {}", path.display()));
            }
            _ => File::open(parent)
                .and_then(|parent| parent.sync_all())
                .with_context(|| format!("cannot sync {}", parent.display()))?,
        }
        Self::open(path)?.with_context(|| format!("{} is gone again", path.display()))
    }

    /// Opens it; `None` if it is not there. One that is a link or another user's is an error.
    pub(crate) fn open(path: &Path) -> Result<Option<Self>> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let directory = match open(path, flags, Mode::empty()) {
            Ok(directory) => File::from(directory),
            Err(Errno::ENOENT) => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("cannot open the directory {}", path.display())),
        };
        let meta = directory.metadata()?;
        if meta.uid() != nix::unistd::geteuid().as_raw() {
            bail!("{} belongs to the user {}, not to us", path.display(), meta.uid());
        }
        if meta.mode() & 0o077 != 0 {
            directory
                .set_permissions(Permissions::from_mode(0o700))
                .with_context(|| format!("cannot close {} to others", path.display()))?;
        }
        Ok(Some(Self { directory, path: path.to_owned() }))
    }

    /// Opens the file of this plain name, with mode 0600 if `flags` create it. Anything but a file is an error.
    pub(crate) fn file(&self, name: &str, flags: OFlag) -> Result<File> {
        match self.try_file(name, flags)? {
            Some(file) => Ok(file),
            None => bail!("there is no {}", self.path.join(name).display()),
        }
    }

    /// The same; `None` if it is not there.
    pub(crate) fn try_file(&self, name: &str, flags: OFlag) -> Result<Option<File>> {
        let path = self.path.join(name);
        // Without O_NONBLOCK a planted fifo would hold us in open().
        let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let file: OwnedFd = match openat(&self.directory, name, flags, Mode::S_IRUSR | Mode::S_IWUSR) {
            Ok(file) => file,
            Err(Errno::ENOENT) => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("cannot open {}", path.display())),
        };
        let file = File::from(file);
        if !file.metadata()?.is_file() {
            bail!("{} is not a file", path.display());
        }
        Ok(Some(file))
    }

    /// Moves a file over another one; one that is not there is left at that.
    pub(crate) fn rename(&self, from: &str, to: &str) -> Result<()> {
        match nix::fcntl::renameat(&self.directory, from, &self.directory, to) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(e) => Err(e).with_context(|| format!("cannot rename {}", self.path.join(from).display())),
        }
    }

    /// Removes a file; one that is not there is left at that.
    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        match nix::unistd::unlinkat(&self.directory, name, nix::unistd::UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(e) => Err(e).with_context(|| format!("cannot remove {}", self.path.join(name).display())),
        }
    }

    /// Makes new and moved names durable.
    pub(crate) fn sync(&self) -> Result<()> {
        self.directory.sync_all().with_context(|| format!("cannot sync {}", self.path.display()))
    }

    /// The directory's own lock, freed when what comes back is dropped. Waits at most `timeout`.
    pub(crate) fn lock(&self, how: FlockArg, timeout: Duration) -> Result<Flock<File>> {
        // A second opening, since a lock is tied to one: two threads on one opening would not exclude each other.
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let again = File::from(openat(&self.directory, ".", flags, Mode::empty())?);
        lock_within(again, how, timeout)
            .map_err(|(_, e)| e)
            .with_context(|| format!("cannot lock {}", self.path.display()))
    }
}

/// A file's name made of parts: different for different parts, and never one that leaves the directory or is hidden.
pub(crate) fn file_name(parts: &[String]) -> String {
    let mut file = parts.iter().map(|part| escaped(part)).collect::<Vec<_>>().join(",");
    if file.len() > LONGEST_NAME {
        let hash = fnv1a(file.as_bytes());
        // Escaped text is ASCII, so it can be cut anywhere.
        file.truncate(LONGEST_NAME);
        file.push_str(&format!(",{hash:016x}"));
    }
    file
}

/// Every byte but letters, digits, `-` and `.` as `_` and two hexadecimal digits.
fn escaped(part: &str) -> String {
    part.bytes().fold(String::new(), |name, byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' => name + char::from(byte).to_string().as_str(),
        _ => name + &format!("_{byte:02x}"),
    })
}

/// A hash that is the same in every build, unlike the standard library's; two runs of different builds have to agree.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Takes a lock (a `…Nonblock` one), waiting at most `timeout`; then it is `EWOULDBLOCK`.
pub(crate) fn lock_within<T: Flockable>(
    mut file: T,
    how: FlockArg,
    timeout: Duration,
) -> Result<Flock<T>, (T, Errno)> {
    let started = Instant::now();
    loop {
        match Flock::lock(file, how) {
            Ok(lock) => return Ok(lock),
            Err((back, Errno::EWOULDBLOCK | Errno::EINTR)) if started.elapsed() < timeout => {
                file = back;
                std::thread::sleep(POLL.min(timeout.saturating_sub(started.elapsed())));
            }
            Err(failed) => return Err(failed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn it_is_created_closed_and_an_open_one_is_closed() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("var/lib/ours");
        assert!(PrivateDir::open(&path).unwrap().is_none());
        PrivateDir::create(&path).unwrap();
        assert_eq!(mode(&path), 0o700);
        std::fs::set_permissions(&path, Permissions::from_mode(0o777)).unwrap();
        PrivateDir::create(&path).unwrap();
        assert_eq!(mode(&path), 0o700);
    }

    #[test]
    fn links_and_fifos_are_refused() {
        let temporary = tempfile::tempdir().unwrap();
        let elsewhere = temporary.path().join("elsewhere");
        std::fs::create_dir(&elsewhere).unwrap();
        let link = temporary.path().join("link");
        std::os::unix::fs::symlink(&elsewhere, &link).unwrap();
        assert!(PrivateDir::create(&link).is_err());

        let ours = PrivateDir::create(&temporary.path().join("ours")).unwrap();
        std::os::unix::fs::symlink(elsewhere.join("stolen"), ours.path.join("file")).unwrap();
        assert!(ours.file("file", OFlag::O_CREAT | OFlag::O_RDWR).is_err());
        assert!(!elsewhere.join("stolen").exists());
        nix::unistd::mkfifo(&ours.path.join("fifo"), Mode::S_IRWXU).unwrap();
        assert!(ours.file("fifo", OFlag::O_RDONLY).unwrap_err().to_string().contains("is not a file"));
    }

    #[test]
    fn files_are_created_for_us_alone() {
        let temporary = tempfile::tempdir().unwrap();
        let ours = PrivateDir::create(&temporary.path().join("ours")).unwrap();
        assert!(ours.try_file("a", OFlag::O_RDONLY).unwrap().is_none());
        ours.file("a", OFlag::O_CREAT | OFlag::O_RDWR).unwrap();
        assert_eq!(mode(&ours.path.join("a")), 0o600);
    }

    #[test]
    fn the_directory_is_locked_once_at_a_time() {
        let temporary = tempfile::tempdir().unwrap();
        let ours = PrivateDir::create(&temporary.path().join("ours")).unwrap();
        let held = ours.lock(FlockArg::LockExclusiveNonblock, Duration::ZERO).unwrap();
        assert!(ours.lock(FlockArg::LockSharedNonblock, Duration::from_millis(50)).is_err());
        drop(held);
        ours.lock(FlockArg::LockExclusiveNonblock, Duration::ZERO).unwrap();
    }
}
