//! `defaults --set`: writes ceph.conf, or has the monitors hold it.

use super::Node;
use crate::ceph::caps::admin;
use crate::ceph::conf::{difference, settings, strongest, with_global};
use crate::ceph::defaults::{OPTION, in_file, read};
use crate::ceph::monitors::parse_features;
use crate::cli::{Defaults, Manner};
use crate::commands::confirm::confirm;
use crate::defaults::{line, overruled, value};
use crate::exit::{Coded, Exit};
use crate::journal::{Intent, Journal, RunId};
use crate::pve::node::quorate;
use crate::rbd::features::Features;
use crate::reading::{Reading, error_text};
use crate::report::defaults::{json, report};
use crate::report::json::{SCHEMA, printed};
use crate::sys::command::Command;
use crate::sys::plain::plain;
use crate::sys::process::{Runner, System};
use crate::sys::time::now;
use crate::sys::write::whole;
use anyhow::{Context, Result, bail, ensure};
use nix::sys::stat::utimes;
use nix::sys::time::{TimeVal, TimeValLike};
use serde_json::{Value, json};
use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The ceph.conf that pmxcfs carries to every node.
const CONF: &str = "/etc/pve/ceph.conf";
/// What PVE's own commands hold while they change ceph.conf (`PVE::Cluster::cfs_lock_file`).
const LOCK: &str = "/etc/pve/priv/lock/file-ceph_conf";
/// Where PVE's locks on the cluster's files are.
const LOCKS: &str = "/etc/pve/priv/lock";
/// PVE waits as long.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// Sets the features that new images get, after a question unless `--yes`.
pub fn run(node: &Node<'_>, wanted: Features, options: &Defaults) -> Result<Exit> {
    may(node, wanted)?;
    let change = if options.mon { by_monitors(node, wanted)? } else { in_conf(node, wanted)? };
    let manner = &options.manner;
    let told = if let Some(change) = change {
        if manner.dry_run {
            return Ok(planned(&change, manner));
        }
        confirm(manner.yes, || format!("This will be done:\n{}", change.shown()))?;
        change.make(node, wanted)?
    } else {
        Made {
            text: format!("nothing to do: it is {} already\n", line(wanted)),
            json: json!({ "state": "nothing" }),
        }
    };
    let places = node.look();
    if manner.json {
        let mut value = json(&places, &node.kernel);
        value["change"] = told.json;
        outln!("{}", printed(&value));
    } else {
        out!("{}\n{}", told.text, report(&places, &node.kernel));
    }
    Ok(Exit::Ready)
}

fn refuse<T>(why: impl Into<String>) -> Result<T> {
    Err(Coded::error(Exit::Refused, format!("nothing was changed: {}", why.into())))
}

/// New images would have to be fit for this node's kernel, and /etc/pve fit to be written.
fn may(node: &Node<'_>, wanted: Features) -> Result<()> {
    let release = &node.kernel.release;
    match &node.kernel.supported {
        Reading::Known(supported) if supported.contains(wanted) => {}
        Reading::Known(supported) => {
            let lacking = wanted - *supported;
            return refuse(format!("this node's kernel {release} cannot map images with {lacking}"));
        }
        Reading::Unknown(failure) => return refuse(format!("what the kernel can map is unknown: {failure}")),
    }
    has_quorum(node)
}

/// Asked before anything is shown, and again right before the change: it may have been lost while a lock was waited for.
fn has_quorum(node: &Node<'_>) -> Result<()> {
    match quorate(node.root) {
        Reading::Known(true) => Ok(()),
        Reading::Known(false) => refuse("the cluster has no quorum, and /etc/pve cannot be written"),
        Reading::Unknown(failure) => refuse(format!("whether there is quorum is unknown: {failure}")),
    }
}

/// What is to be changed.
enum NewDefault {
    /// ceph.conf.
    File { file: PathBuf, old: String, new: String },
    /// What the monitors hold.
    Monitors(Command),
}

/// What was changed.
struct Made {
    text: String,
    json: Value,
}

fn in_conf(node: &Node<'_>, wanted: Features) -> Result<Option<NewDefault>> {
    let file = node.root.path(CONF);
    let told = || format!("cannot read {CONF}: has this cluster a Ceph of its own?");
    ensure!(file.symlink_metadata().with_context(told)?.is_file(), "{CONF} is not a plain file");
    let old = std::fs::read_to_string(&file).with_context(told)?;
    let lines = settings(&old, OPTION);
    let users = node.own_users();
    for user in &users {
        if let Some(near) = overruled(&lines, user) {
            let (number, section) = (near.line, &near.section);
            return refuse(format!(
                "line {number} of {CONF}, in [{section}], sets it for client.{user} and is stronger than [global]: remove it first"
            ));
        }
    }
    let path = file.to_string_lossy();
    let is_set = strongest(&lines, "admin").is_some_and(|line| parse_features(&line.value) == Some(wanted));
    if is_set && hold(&path, wanted, &users).is_ok() {
        return Ok(None);
    }
    let new = with_global(&old, OPTION, &value(wanted));
    let mut trial = tempfile::NamedTempFile::new().context("cannot make a file to try the new text with")?;
    trial.write_all(new.as_bytes())?;
    hold(&trial.path().to_string_lossy(), wanted, &users)
        .with_context(|| format!("nothing was changed: {CONF} with the new line would not do"))?;
    Ok(Some(NewDefault::File { file, old, new }))
}

/// By this file, new images get what is wanted, as librbd itself says.
fn hold(conf: &str, wanted: Features, users: &[String]) -> Result<()> {
    for user in users {
        let taken = in_file(Some(Some(conf)), user)?;
        ensure!(taken == wanted, "Ceph takes it for {taken} as client.{user}");
    }
    Ok(())
}

fn by_monitors(node: &Node<'_>, wanted: Features) -> Result<Option<NewDefault>> {
    let connection = admin(node.root).with_context(|| {
        format!("{CONF} or client.admin's keyring is missing: has this cluster a Ceph of its own?")
    })?;
    let conf = connection.conf.clone().unwrap_or_default();
    let lines =
        settings(&std::fs::read_to_string(&conf).with_context(|| format!("cannot read {CONF}"))?, OPTION);
    for user in node.own_users() {
        if let Some(strong) = strongest(&lines, &user) {
            let line = strong.line;
            return refuse(format!(
                "line {line} of {CONF} sets it, and is stronger than the monitors: leave --mon out"
            ));
        }
    }
    let held = match read(&connection, &[], node.limit).cluster {
        Reading::Known(cluster) => cluster.held.known().cloned(),
        Reading::Unknown(failure) => return Err(failure.into()),
    };
    let held = held.with_context(|| format!("what the monitors hold of {OPTION} could not be read"))?;
    if let Some(near) = held.iter().find(|held| held.section.starts_with("client") || !held.mask.is_empty()) {
        let mask = if near.mask.is_empty() { String::new() } else { format!("/{}", near.mask) };
        let remove = format!("ceph config rm {}{mask} {OPTION}", near.section);
        return refuse(format!("the monitors hold a stronger value for {}: `{remove}` first", near.section));
    }
    if held.iter().any(|held| held.section == "global" && parse_features(&held.value) == Some(wanted)) {
        return Ok(None);
    }
    let keyring = connection.keyring.unwrap_or_default();
    let command = Command::new("ceph")
        .args(["-c", &conf, "-n", "client.admin", "--keyring", &keyring])
        .args(["config", "set", "global", OPTION, &value(wanted).replace(' ', "")]);
    Ok(Some(NewDefault::Monitors(command)))
}

fn planned(change: &NewDefault, manner: &Manner) -> Exit {
    if manner.json {
        let change = json!({ "state": "planned", "text": change.shown() });
        outln!("{}", printed(&json!({ "schema": SCHEMA, "change": change })));
    } else {
        out!("{}", change.shown());
    }
    Exit::Ready
}

impl NewDefault {
    /// The command; or what differs in the file and no line more, since ceph.conf may hold keys.
    fn shown(&self) -> String {
        match self {
            Self::Monitors(command) => format!("{}\n", command.display()),
            Self::File { old, new, .. } => {
                let (line, gone, come) = difference(old, new);
                let marked = |mark: char, lines: Vec<&str>| {
                    lines.iter().map(|line| format!("{mark}{}\n", plain(line))).collect::<String>()
                };
                format!("{CONF}, line {line}:\n{}{}", marked('-', gone), marked('+', come))
            }
        }
    }

    /// Makes the change, with the journal's records before and after.
    fn make(&self, node: &Node<'_>, wanted: Features) -> Result<Made> {
        let run = RunId::new(now(), std::process::id());
        let backup = format!("{CONF}.rbd-preflight-{run}");
        let (before, command) = match self {
            Self::File { .. } => {
                let names = value(wanted).replace(' ', "");
                (
                    json!({ "file": CONF, "backup": backup }),
                    format!("rbd-preflight defaults --set {names} --yes"),
                )
            }
            Self::Monitors(command) => (Value::Null, command.display()),
        };
        let intent = Intent {
            action: json!({ "change": "set-default-features", "features": wanted }),
            before,
            command: Some(command),
            ..Intent::default()
        };
        let (journal, began) = (Journal::open(node.root), Instant::now());
        let ticket = journal.intent(&run, now().as_secs(), intent)?;
        let result = self.write(node, wanted, &backup);
        let outcome = match &result {
            Ok(()) => json!({ "result": "done" }),
            Err(error) => json!({ "result": "failed", "message": error_text(error) }),
        };
        journal.outcome(ticket, now().as_secs(), outcome, began.elapsed())?;
        result?;
        let mut text = format!("done: {}, for images made from now on\n", line(wanted));
        if matches!(self, Self::File { .. }) {
            text += &format!("{CONF} as it was is kept: {backup}\n");
        }
        Ok(Made { text, json: json!({ "state": "done", "run": run, "text": self.shown() }) })
    }

    fn write(&self, node: &Node<'_>, wanted: Features, backup: &str) -> Result<()> {
        match self {
            Self::Monitors(command) => {
                has_quorum(node)?;
                System.run(command)?.check()?;
                let connection = admin(node.root).context("client.admin's keyring is gone")?;
                match read(&connection, &[], node.limit).cluster {
                    Reading::Known(cluster) if cluster.effective.known() == Some(&wanted) => Ok(()),
                    _ => bail!("`{}` succeeded, but new images do not get it", command.display()),
                }
            }
            Self::File { file, old, new } => {
                let _lock = PveLock::take(node)?;
                has_quorum(node)?;
                replace(file, old, new, &node.root.path(backup))
                    .with_context(|| format!("cannot write {CONF}"))?;
                hold(&file.to_string_lossy(), wanted, &node.own_users())
                    .with_context(|| format!("{CONF} was written; as it was it is kept in {backup}"))
            }
        }
    }
}

/// Writes a file whole or not at all, if it still is what was shown, and what it was beside it first.
fn replace(file: &Path, old: &str, new: &str, backup: &Path) -> Result<()> {
    ensure!(std::fs::read(file)? == old.as_bytes(), "somebody has just changed it; nothing was changed");
    let permissions = file.metadata()?.permissions();
    let mut kept = OpenOptions::new().write(true).create_new(true).mode(0o600).open(backup)?;
    kept.write_all(old.as_bytes())?;
    // pmxcfs gives every file the mode that its path has, and refuses others.
    let _ = kept.set_permissions(permissions.clone());
    kept.sync_all()?;
    whole(file, "ceph.conf.new.", new.as_bytes(), |new| {
        let _ = new.set_permissions(permissions);
        Ok(())
    })?;
    Ok(())
}

/// PVE's lock on ceph.conf, a directory in pmxcfs, taken as PVE takes it (`PVE::Cluster`, `cfs_lock`): the directory that
/// such locks are in is made if it is not there, and after each try that failed pmxcfs is asked to give up the lock, which
/// it does where the lock is older than 120 s. Without being asked it keeps one for ever whose owner was killed. Let go
/// when it is dropped.
struct PveLock(PathBuf);

impl PveLock {
    fn take(node: &Node<'_>) -> Result<Self> {
        let (path, began) = (node.root.path(LOCK), Instant::now());
        loop {
            match std::fs::create_dir(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(error) if error.kind() == ErrorKind::NotFound && made_locks(node).is_ok() => {}
                Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                    return Err(error).with_context(|| format!("cannot lock {CONF} by {LOCK}"));
                }
                Err(_) if began.elapsed() > LOCK_PATIENCE => {
                    let why =
                        format!("nothing was changed: another task holds {CONF} by {LOCK}; try again later");
                    return Err(Coded::error(Exit::Busy, why));
                }
                Err(_) => {
                    // Both times 0 are the request; whether it is granted shows the next try.
                    let _ = utimes(&path, &TimeVal::zero(), &TimeVal::zero());
                    std::thread::sleep(Duration::from_millis(200));
                }
            }
        }
    }
}

/// Makes the directory of PVE's locks, which comes with `pvecm updatecerts`.
fn made_locks(node: &Node<'_>) -> std::io::Result<()> {
    std::fs::create_dir(node.root.path(LOCKS))
}

impl Drop for PveLock {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}
