//! Two runs of the tool on one image: one waits. A lock is a `flock` on a file in `/run/rbd-preflight/`, which
//! the kernel frees when its process ends, however it ends. The files stay; an unlocked one means nothing.

use crate::rbd::identity::ImageIdentity;
pub use crate::sys::private_dir::RUN;
use crate::sys::private_dir::{PrivateDir, file_name, lock_within};
use crate::sys::root::Root;
use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// The name of what is locked, which becomes its file's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// The parts, such as `image`, fsid, pool, namespace, image.
    parts: Vec<String>,
}

/// Who holds a lock; written into its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// The guest it works for.
    pub vmid: Option<u32>,
}

/// The lock was held by another for as long as we would wait; found by `downcast_ref`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Busy {
    /// What we waited for.
    pub name: Name,
    /// Who holds it, as far as the file tells.
    pub holder: Option<Holder>,
    /// How long we waited.
    pub waited: Duration,
}

/// A held lock; dropping it frees it.
#[derive(Debug)]
#[must_use = "the lock is free as soon as this is dropped"]
pub struct RunLock {
    file: Flock<File>,
}

impl Name {
    /// An image: by its name, which PVE and `rbd` find it by, and by its id where it is known (format 1 has none), so
    /// that a rename between two runs does not part them.
    pub fn image(image: ImageIdentity<'_>) -> Vec<Self> {
        let ImageIdentity { fsid, pool, namespace, name, id } = image;
        let one = |what: &str, which: &str| Self {
            parts: [what, fsid, pool, namespace.unwrap_or_default(), which].map(String::from).into(),
        };
        let by_id = id.filter(|id| !id.is_empty()).map(|id| one("image-id", id));
        [one("image", name)].into_iter().chain(by_id).collect()
    }

    /// Anything else, such as `kernel client`.
    pub fn other(name: &str) -> Self {
        Self { parts: vec!["other".into(), name.into()] }
    }

    fn file(&self) -> String {
        file_name(&self.parts)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = self.parts.iter().filter(|part| !part.is_empty());
        f.write_str(&parts.map(|part| part.escape_debug().to_string()).collect::<Vec<_>>().join(" "))
    }
}

impl RunLock {
    /// Takes a lock, waiting at most `timeout` for another process or thread that holds it; then the error is
    /// [`Busy`].
    pub fn acquire(root: &Root, name: &Name, holder: Holder, timeout: Duration) -> Result<Self> {
        let started = Instant::now();
        let directory = PrivateDir::create(&root.path(RUN))?;
        let file = directory.file(&name.file(), OFlag::O_CREAT | OFlag::O_RDWR)?;
        let file = match lock_within(file, FlockArg::LockExclusiveNonblock, timeout) {
            Ok(file) => file,
            Err((file, Errno::EWOULDBLOCK)) => {
                let busy = Busy { name: name.clone(), holder: read(&file), waited: started.elapsed() };
                return Err(busy.into());
            }
            Err((_, e)) => return Err(e).with_context(|| format!("cannot lock {name}")),
        };
        // Only a help for whoever waits: without it the lock holds as well.
        if let Err(e) = write(&file, holder) {
            log::debug!("cannot write the holder of {name}: {e:#}");
        }
        Ok(Self { file })
    }

    /// Takes several locks, always in the same order, so that two runs cannot each hold what the other waits for.
    /// They wait `timeout` in all.
    pub fn acquire_all(
        root: &Root,
        names: impl IntoIterator<Item = Name>,
        holder: Holder,
        timeout: Duration,
    ) -> Result<Vec<Self>> {
        let started = Instant::now();
        let mut names: Vec<_> = names.into_iter().collect();
        names.sort();
        names.dedup();
        let left = || timeout.saturating_sub(started.elapsed());
        names.iter().map(|name| Self::acquire(root, name, holder, left())).collect()
    }
}

impl Drop for RunLock {
    fn drop(&mut self) {
        // An empty file shows that nobody holds it; if that fails, the next holder writes over it.
        let _ = self.file.set_len(0);
    }
}

fn read(file: &File) -> Option<Holder> {
    let mut bytes = [0; 256];
    let length = file.read_at(&mut bytes, 0).ok()?;
    serde_json::from_slice(&bytes[..length]).ok()
}

fn write(file: &File, holder: Holder) -> Result<()> {
    file.set_len(0)?;
    file.write_all_at(serde_json::to_string(&holder)?.as_bytes(), 0)?;
    Ok(())
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.pid)?;
        match self.vmid {
            Some(vmid) => write!(f, " for guest {vmid}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.waited.as_secs();
        write!(f, "another run of rbd-preflight holds {} (waited {seconds} s)", self.name)?;
        match self.holder {
            Some(holder) => write!(f, ": {holder}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Busy {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Stdio;

    const US: Holder = Holder { pid: 4242, vmid: Some(516) };
    const SOON: Duration = Duration::from_millis(80);
    const LONG: Duration = Duration::from_secs(20);

    fn image(image: &str) -> ImageIdentity<'_> {
        ImageIdentity { fsid: "b1d8", pool: "rbd", namespace: None, name: image, id: None }
    }

    fn named(image: ImageIdentity<'_>) -> Name {
        Name::image(image).remove(0)
    }

    fn disk(name: &str) -> Name {
        named(image(name))
    }

    fn root() -> (tempfile::TempDir, Root) {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        (directory, root)
    }

    #[test]
    fn one_at_a_time_and_the_other_is_told_who() {
        let (_directory, root) = root();
        let held = RunLock::acquire(&root, &disk("a"), US, SOON).unwrap();
        let other = Holder { pid: 1, vmid: None };
        let error = RunLock::acquire(&root, &disk("a"), other, SOON).unwrap_err();
        let busy = error.downcast_ref::<Busy>().unwrap();
        assert_eq!(busy.holder, Some(US));
        assert!(busy.waited >= SOON);
        let said =
            "another run of rbd-preflight holds image b1d8 rbd a (waited 0 s): process 4242 for guest 516";
        assert_eq!(busy.to_string(), said);
        drop(held);
        let _taken = RunLock::acquire(&root, &disk("a"), other, SOON).unwrap();
    }

    #[test]
    fn different_images_do_not_wait_for_each_other() {
        let (_directory, root) = root();
        let names = [
            disk("a"),
            disk("b"),
            named(ImageIdentity { namespace: Some("ns"), ..image("a") }),
            named(ImageIdentity { pool: "rbd2", ..image("a") }),
            named(ImageIdentity { fsid: "b1d9", ..image("a") }),
            Name::other("a"),
        ];
        let held: Vec<_> = names.iter().map(|n| RunLock::acquire(&root, n, US, SOON).unwrap()).collect();
        assert_eq!(held.len(), 6);
        assert_eq!(named(ImageIdentity { namespace: Some(""), ..image("a") }).file(), disk("a").file());
    }

    #[test]
    fn a_rename_does_not_part_two_runs() {
        let (_directory, root) = root();
        let renamed = |name| Name::image(ImageIdentity { id: Some("12ab"), ..image(name) });
        let held = RunLock::acquire_all(&root, renamed("a"), US, SOON).unwrap();
        assert_eq!(held.len(), 2);
        assert!(RunLock::acquire_all(&root, renamed("b"), US, SOON).unwrap_err().is::<Busy>());
        // A run that does not know the id goes by the name.
        assert!(RunLock::acquire_all(&root, [disk("a")], US, SOON).unwrap_err().is::<Busy>());
        assert!(RunLock::acquire_all(&root, [disk("b")], US, SOON).is_ok());
        assert_eq!(Name::image(ImageIdentity { id: Some(""), ..image("a") }).len(), 1, "format 1 has no id");
    }

    #[test]
    fn a_lock_that_is_freed_in_time_is_had() {
        let (_directory, root) = root();
        let held = RunLock::acquire(&root, &disk("a"), US, SOON).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| RunLock::acquire(&root, &disk("a"), US, LONG));
            std::thread::sleep(SOON);
            drop(held);
            assert!(waiting.join().unwrap().is_ok());
        });
    }

    #[test]
    fn several_are_taken_in_one_order_whatever_order_they_come_in() {
        let (_directory, root) = root();
        let forth =
            || RunLock::acquire_all(&root, [disk("a"), disk("b"), disk("a")], US, LONG).map(|l| l.len());
        let back = || RunLock::acquire_all(&root, [disk("b"), disk("a")], US, LONG).map(|l| l.len());
        std::thread::scope(|scope| {
            let threads = [
                scope.spawn(|| (0..50).all(|_| forth().unwrap() == 2)),
                scope.spawn(|| (0..50).all(|_| back().unwrap() == 2)),
            ];
            assert!(threads.into_iter().all(|t| t.join().unwrap()));
        });
    }

    #[test]
    fn no_name_leaves_the_directory_or_is_taken_for_another() {
        for odd in ["../../etc/passwd", "/", "..", "a/b", "a\0b", "", "a,b", "a_2cb", "Größe"] {
            let file = Name::other(odd).file();
            assert!(!file.contains(['/', '\0']) && file.starts_with("other,"), "{file}");
        }
        let odd = ImageIdentity { pool: "a,b", ..image("c") };
        assert_ne!(named(odd).file(), named(ImageIdentity { pool: "a", namespace: Some("b"), ..odd }).file());
        assert_ne!(Name::other("a_2cb").file(), Name::other("a,b").file());
        let long = |end: &str| Name::other(&("x".repeat(400) + end)).file();
        assert!(long("a").len() <= 255 && long("a") != long("b"));
    }

    #[test]
    fn a_link_in_its_place_is_not_followed() {
        let (directory, root) = root();
        std::fs::create_dir_all(root.path(RUN)).unwrap();
        let victim = directory.path().join("victim");
        std::fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, root.path(RUN).join(disk("a").file())).unwrap();
        assert!(RunLock::acquire(&root, &disk("a"), US, SOON).is_err());
        assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
    }

    /// Not a test: the process that the next test kills.
    #[test]
    #[ignore = "run by a_killed_process_frees_its_locks"]
    fn holder_to_be_killed() {
        let Some(place) = std::env::var_os("RBD_PREFLIGHT_TEST_ROOT") else { return };
        let root = Root::new(place);
        let _lock = RunLock::acquire(&root, &disk("a"), US, LONG).unwrap();
        std::fs::write(root.path("held"), "").unwrap();
        std::thread::sleep(Duration::from_secs(60));
    }

    #[test]
    fn a_killed_process_frees_its_locks() {
        let (_directory, root) = root();
        let mut process = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "act::run_lock::tests::holder_to_be_killed", "--ignored"])
            .env("RBD_PREFLIGHT_TEST_ROOT", root.path("/"))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        while !root.path("held").exists() {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(RunLock::acquire(&root, &disk("a"), US, SOON).is_err());
        process.kill().unwrap();
        process.wait().unwrap();
        assert!(RunLock::acquire(&root, &disk("a"), US, LONG).is_ok());
    }
}
