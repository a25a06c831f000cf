//! The hookscript that a guest had before ours. Proxmox VE calls one script per guest, so ours calls the other: with
//! the same arguments, after us in pre-start and post-start, before us in the stop phases.
//!
//! Which script that is stands in `/etc/pve/rbd-preflight/chain/VMID`, a line with its volume id:
//! * in the cluster's files, as the guest's config, since HA and migrations move guests to other nodes, and a node
//!   that has just crashed cannot be asked;
//! * not in the guest's description or tags, which users without root's rights may edit: what stands here is run as
//!   root, and only root may set a hookscript (`PVE::API2::Qemu`), as only root may write here;
//! * a plain line, since the snippet itself reads it where the tool is gone, and a person can.

use crate::cli::{Hook, Phase};
use crate::exit::Exit;
use crate::meant;
use crate::process::{become_program, pass_through};
use crate::pve::{snippet, storage};
use crate::report::plain;
use crate::root::Root;
use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

/// Where the earlier hookscripts are remembered.
pub const DIRECTORY: &str = "/etc/pve/rbd-preflight/chain";
/// The file name of our snippet on its storage.
pub const NAME: &str = "rbd-preflight";
/// The snippet.
pub const SNIPPET: &str = include_str!("../hooks/rbd-preflight");
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
        Self { root: root.clone(), vmid: options.vmid, phase: options.phase.clone() }
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
        let Some(volid) = remembered(&self.root, self.vmid)? else { return Ok(None) };
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

/// The file that remembers a guest's earlier hookscript.
pub fn file(vmid: u32) -> String {
    format!("{DIRECTORY}/{vmid}")
}

/// The hookscript that a guest had before ours.
///
/// # Errors
/// The file cannot be read or holds no snippet's volume id: then there is an earlier script, and it is not known.
pub fn remembered(root: &Root, vmid: u32) -> Result<Option<String>> {
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

/// Remembers a guest's earlier hookscript, whole or not at all.
pub fn remember(root: &Root, vmid: u32, volid: &str) -> Result<()> {
    let directory = root.path(DIRECTORY);
    let write = || -> Result<()> {
        std::fs::create_dir_all(&directory)?;
        let mut new = tempfile::Builder::new().prefix("new.").tempfile_in(&directory)?;
        writeln!(new, "{volid}")?;
        new.as_file().sync_all()?;
        new.persist(root.path(file(vmid)))?;
        Ok(())
    };
    write().with_context(|| format!("cannot write {}", file(vmid)))
}

/// Forgets it.
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
    fn what_is_remembered_comes_back_and_goes() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        assert_eq!(remembered(&root, 516).unwrap(), None);
        forget(&root, 516).unwrap();
        remember(&root, 516, "local:snippets/a b.sh").unwrap();
        remember(&root, 516, "local:snippets/old.sh").unwrap();
        assert_eq!(remembered(&root, 516).unwrap().as_deref(), Some("local:snippets/old.sh"));
        assert_eq!(
            std::fs::read_dir(root.path(DIRECTORY)).unwrap().count(),
            1,
            "nothing is left lying about"
        );
        forget(&root, 516).unwrap();
        assert_eq!(remembered(&root, 516).unwrap(), None);
    }

    #[test]
    fn a_line_that_is_no_snippet_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        for text in ["", "/bin/sh\n", "local:snippets/a\nlocal:snippets/b\n", "local:iso/a\n"] {
            std::fs::create_dir_all(root.path(DIRECTORY)).unwrap();
            std::fs::write(root.path(file(516)), text).unwrap();
            assert!(remembered(&root, 516).is_err(), "{text:?}");
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
