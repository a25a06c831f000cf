//! The hookscript that a guest had before ours. Proxmox VE calls one script per guest, so ours calls the other: with
//! the same arguments, after us in pre-start and post-start, before us in the stop phases.
//!
//! Which script that is says the snippet's own name, `rbd-preflight+STORAGE+NAME` for `STORAGE:snippets/NAME`, and so
//! the guest's `hookscript:`, which only root may set (`PVE::API2::Qemu`, `PVE::LXC`):
//! * it belongs to the guest and not to its number: it goes when the guest is destroyed, and Proxmox VE copies it with the
//!   config to a clone, a snapshot, a backup, another node, and brings it back with a rollback or a restore;
//! * nothing else does all that: a clone gets a new `smbios1` uuid, a restore may keep it, `vmgenid` is new after a
//!   rollback, and a container has neither;
//! * the snippet needs no tool and no file to know it.
//!
//! Earlier versions remembered it in `/etc/pve/rbd-preflight/chain/VMID`. Such a file may be of an earlier guest of that
//! number, and is never run: `attach VMID` takes it over where root says so.

use crate::cli::{Hook, Phase};
use crate::exit::Exit;
use crate::hook::meant;
use crate::pve::{snippet, storage};
use crate::report::plain;
use crate::sys::process::{become_program, pass_through};
use crate::sys::root::Root;
use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::io::{ErrorKind, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

/// Where earlier versions remembered the earlier hookscripts, by the guest's number.
pub const DIRECTORY: &str = "/etc/pve/rbd-preflight/chain";
/// The file name of our snippet on its storage; the earlier hookscript may follow.
pub const NAME: &str = "rbd-preflight";
/// Stands before the parts that name the earlier hookscript; no storage's name has it.
const MARK: char = '+';
/// A file's name is no longer, in bytes.
const LONGEST_NAME: usize = 255;
/// The snippet.
pub const SNIPPET: &str = include_str!("../../hooks/rbd-preflight");
/// Tells a hook that is called by a chained script, however far down, which calls it is part of.
const CALLS: &str = "RBD_PREFLIGHT_CHAIN";
/// A volume id is shorter than this.
const LONGEST: u64 = 4096;

/// One call of the hook by PVE.
#[derive(Debug, Clone)]
pub struct Call {
    root: Root,
    vmid: u32,
    phase: Phase,
    /// The earlier hookscript, as the snippet's name has it.
    earlier: Option<String>,
}

/// A script to be run.
struct Script {
    volid: String,
    path: PathBuf,
    calls: String,
}

impl Call {
    /// The call that the command line describes.
    pub fn new(root: &Root, options: &Hook) -> Self {
        Self {
            root: root.clone(),
            vmid: options.vmid,
            phase: options.phase.clone(),
            earlier: options.earlier.clone(),
        }
    }

    /// Runs our part and the earlier hookscript, in the phase's order. Where our part stops the start, the earlier
    /// script is not run: PVE would call it for no later phase in which it could undo what it did.
    pub fn run(&self, ours: impl FnOnce() -> Exit) -> Exit {
        match self.phase {
            Phase::PreStart | Phase::PostStart | Phase::Other(_) => self.after(ours()),
            Phase::PreStop | Phase::PostStop => {
                let earlier = self.before();
                let exit = ours();
                if exit == Exit::Ready { earlier } else { exit }
            }
        }
    }

    /// Ends the process from outside our part, which is stuck; the earlier hookscript has its turn all the same.
    pub fn end(&self, exit: Exit) -> ! {
        let exit = match self.phase {
            Phase::PreStart => self.after(exit),
            _ => exit,
        };
        exit.leave()
    }

    /// Becomes the earlier hookscript: its end, its signals and its output are then what PVE sees. Comes back only if
    /// there is none, or if it cannot be run, which stops a start as it would without us.
    fn after(&self, exit: Exit) -> Exit {
        if exit != Exit::Ready {
            return exit;
        }
        let script = match self.script() {
            Ok(Some(script)) => script,
            Ok(None) => return Exit::Ready,
            Err(error) => return self.cannot(&error),
        };
        say(&format!("now the earlier hookscript {}", script.volid));
        meant::say();
        let error = become_program(&script.path, &self.arguments(), (CALLS, &script.calls));
        self.cannot(&anyhow::Error::new(error).context(format!("cannot run {}", script.volid)))
    }

    /// Runs the earlier hookscript to its end.
    fn before(&self) -> Exit {
        match self.script().and_then(|script| script.map_or(Ok(()), |script| self.wait_for(&script))) {
            Ok(()) => Exit::Ready,
            Err(error) => self.cannot(&error),
        }
    }

    fn wait_for(&self, script: &Script) -> Result<()> {
        // From here on the snippet must not run it once more.
        meant::say();
        let ended = pass_through(&script.path, &self.arguments(), (CALLS, &script.calls))
            .with_context(|| format!("cannot run {}", script.volid))?;
        if !ended.success() {
            bail!("{} failed: {}", script.volid, how(ended));
        }
        Ok(())
    }

    /// What an earlier version has remembered for this number is not known to be this guest's.
    fn tell_left_behind(&self) {
        if self.phase != Phase::PreStart {
            return;
        }
        let what = match left_behind(&self.root, self.vmid) {
            Ok(None) => return,
            Ok(Some(volid)) => format!("the hookscript {volid}"),
            Err(error) => format!("{error:#}: an earlier hookscript"),
        };
        let (vmid, file) = (self.vmid, file(self.vmid));
        say(&format!(
            "{what}, which an earlier version remembered for the number {vmid}, may be of an earlier guest of that number \
             and is not run: `rbd-preflight attach {vmid}` keeps it for this guest, `rm {file}` forgets it"
        ));
    }

    fn cannot(&self, error: &anyhow::Error) -> Exit {
        meant::say();
        say(&format!("the earlier hookscript of guest {}: {error:#}", self.vmid));
        Exit::Error
    }

    fn arguments(&self) -> [OsString; 2] {
        [self.vmid.to_string().into(), self.phase.name().into()]
    }

    /// The earlier hookscript, if there is one and this call is not part of its own.
    fn script(&self) -> Result<Option<Script>> {
        let Some(volid) = self.earlier.clone() else {
            self.tell_left_behind();
            return Ok(None);
        };
        let Some(calls) = deeper(&std::env::var(CALLS).unwrap_or_default(), self.vmid, &self.phase) else {
            say(&format!("{volid} has called this hook itself; it is not run again"));
            return Ok(None);
        };
        let path = snippet::path(&storage::load(&self.root)?, &volid).map_err(anyhow::Error::msg)?;
        snippet::check(&self.root, &path, &volid).map_err(anyhow::Error::msg)?;
        let path = self.root.path(path);
        if is_ours(&path) {
            say(&format!("{volid} is this hook itself; it is not run again"));
            return Ok(None);
        }
        Ok(Some(Script { volid, path, calls }))
    }
}

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

/// The calls that a chained script is part of, with this one; `None` if this one is among them.
fn deeper(calls: &str, vmid: u32, phase: &Phase) -> Option<String> {
    let this = format!("{vmid}/{}", phase.name());
    let mut calls: Vec<&str> = calls.split(' ').filter(|call| !call.is_empty()).collect();
    if calls.contains(&this.as_str()) {
        return None;
    }
    calls.push(&this);
    Some(calls.join(" "))
}

fn how(ended: ExitStatus) -> String {
    match (ended.code(), ended.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, signal) => format!("got signal {}", signal.unwrap_or_default()),
    }
}

fn say(line: &str) {
    errln!("rbd-preflight: {}", plain(line));
}

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

/// The file in which earlier versions remembered the hookscript of a guest of this number.
pub fn file(vmid: u32) -> String {
    format!("{DIRECTORY}/{vmid}")
}

/// What an earlier version remembered for this number: of this guest, or of an earlier one.
///
/// # Errors
/// The file cannot be read or holds no snippet's volume id.
pub fn left_behind(root: &Root, vmid: u32) -> Result<Option<String>> {
    let name = file(vmid);
    let told = || format!("cannot read {name}");
    let file = match std::fs::File::open(root.path(&name)) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(error).with_context(told),
    };
    let mut text = String::new();
    file.take(LONGEST).read_to_string(&mut text).with_context(told)?;
    let volid = text.trim_end_matches('\n');
    if snippet::parse(volid).is_none() {
        bail!("{name} does not hold a snippet's volume id");
    }
    Ok(Some(volid.to_owned()))
}

/// The numbers for which earlier versions remembered a hookscript.
///
/// # Errors
/// The directory is there and cannot be listed.
pub fn all_left_behind(root: &Root) -> Result<Vec<u32>> {
    let entries = match std::fs::read_dir(root.path(DIRECTORY)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot list {DIRECTORY}")),
    };
    let mut vmids = Vec::new();
    for entry in entries {
        vmids.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    vmids.sort_unstable();
    Ok(vmids)
}

/// Forgets what was left behind.
pub fn forget(root: &Root, vmid: u32) -> Result<()> {
    match std::fs::remove_file(root.path(file(vmid))) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", file(vmid)))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_never_part_of_itself() {
        let calls = deeper("", 516, &Phase::PreStart).unwrap();
        assert_eq!(calls, "516/pre-start");
        assert_eq!(deeper(&calls, 516, &Phase::PreStart), None);
        let other = deeper(&calls, 517, &Phase::PreStart).unwrap();
        assert_eq!(other, "516/pre-start 517/pre-start");
        assert_eq!(deeper(&other, 516, &Phase::PreStart), None);
        // A script that starts its guest again after a stop is no loop.
        assert!(deeper("516/post-stop", 516, &Phase::PreStart).is_some());
    }

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
    fn what_earlier_versions_left_is_found_and_goes() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        assert_eq!((left_behind(&root, 516).unwrap(), all_left_behind(&root).unwrap()), (None, vec![]));
        forget(&root, 516).unwrap();
        std::fs::create_dir_all(root.path(DIRECTORY)).unwrap();
        for name in ["517", "516", "new.x1"] {
            std::fs::write(root.path(format!("{DIRECTORY}/{name}")), "local:snippets/a b.sh\n").unwrap();
        }
        assert_eq!(left_behind(&root, 516).unwrap().as_deref(), Some("local:snippets/a b.sh"));
        assert_eq!(all_left_behind(&root).unwrap(), [516, 517]);
        forget(&root, 516).unwrap();
        assert_eq!(left_behind(&root, 516).unwrap(), None);
        for text in ["", "/bin/sh\n", "local:snippets/a\nlocal:snippets/b\n", "local:iso/a\n"] {
            std::fs::write(root.path(file(516)), text).unwrap();
            assert!(left_behind(&root, 516).is_err(), "{text:?}");
        }
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
