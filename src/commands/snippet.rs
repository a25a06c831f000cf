//! Our snippet: put where Proxmox VE takes hookscripts from, and looked for on the other nodes.

use crate::chain::{NAME, SNIPPET, is_ours};
use crate::exit::{Coded, Exit};
use crate::process::{Command, Runner, quoted};
use crate::pve::snippet;
use crate::pve::storage::StorageConfig;
use crate::report::attach::{OtherNode, Placed, Presence};
use crate::root::Root;
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::fs::Permissions;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

/// The API asks the other node, which may not answer.
const API_LIMIT: Duration = Duration::from_secs(20);
/// Where a hookscript looks for programs (`PVE::CLIHandler`, `PVE::Daemon`).
const HOOK_PATH: &str = "/sbin:/bin:/usr/sbin:/usr/bin";

/// Where the snippet is to be.
#[derive(Debug, Clone)]
pub struct Place {
    /// Its storage.
    pub storage: String,
    /// Its volume id.
    pub volid: String,
    /// Its file.
    pub path: String,
    /// PVE lists the storage's snippets.
    listed: bool,
}

impl Place {
    /// The place of the snippet on a storage, and what speaks against that storage.
    pub fn on(storages: &StorageConfig, storage: &str) -> Result<(Self, Option<String>)> {
        let volid = format!("{storage}:snippets/{NAME}");
        let path = snippet::path(storages, &volid).map_err(|why| {
            Coded::error(Exit::Usage, format!("{why}; `local` is a directory on every node"))
        })?;
        let rules = storages.rules(storage);
        let kind = rules.map_or("", |rules| rules.storage_type);
        let against = matches!(kind, "cephfs" | "nfs" | "cifs").then(|| {
            format!(
                "{storage} is a network storage ({kind}): while it is not mounted, PVE starts no guest that is attached \
                 (\"script '{volid}' does not exist\"). `--storage local` does not depend on a network."
            )
        });
        let listed = rules.is_some_and(|rules| rules.content.iter().any(|kind| kind == "snippets"));
        Ok((Self { storage: storage.to_owned(), volid, path, listed }, against))
    }

    /// The report of it.
    pub fn placed(&self, text: String) -> Placed {
        Placed { volid: self.volid.clone(), path: self.path.clone(), text }
    }

    /// The file is there as it should be. Somebody else's file of this name is an error.
    pub fn is_there(&self, root: &Root) -> Result<bool> {
        let path = root.path(&self.path);
        let meta = match std::fs::symlink_metadata(&path) {
            Ok(meta) => meta,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error).with_context(|| format!("cannot look at {}", self.path)),
        };
        if is_ours(&path) {
            return Ok(snippet::check(root, &self.path, &self.volid).is_ok());
        }
        let mentions = |text: String| text.contains(NAME);
        let older = meta.is_file() && std::fs::read_to_string(&path).is_ok_and(mentions);
        let dangling = meta.is_symlink() && !path.exists();
        if !older && !dangling {
            bail!("{} is not this tool's: remove it, or name another --storage", self.path);
        }
        Ok(false)
    }

    /// Writes the file, whole or not at all, and through no link.
    pub fn install(&self, root: &Root) -> Result<()> {
        let path = root.path(&self.path);
        let write = || -> Result<()> {
            let directory = path.parent().unwrap_or(Path::new("/"));
            match std::fs::create_dir(directory) {
                Ok(()) => std::fs::set_permissions(directory, Permissions::from_mode(0o755))?,
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("is the storage {} mounted?", self.storage));
                }
            }
            let mut new = tempfile::Builder::new().prefix(".rbd-preflight.").tempfile_in(directory)?;
            new.write_all(SNIPPET.as_bytes())?;
            new.as_file().set_permissions(Permissions::from_mode(0o755))?;
            new.as_file().sync_all()?;
            new.persist(&path)?;
            Ok(())
        };
        write().with_context(|| format!("cannot write the snippet {}", self.path))
    }

    /// Which other nodes have the snippet, by PVE's API.
    pub fn elsewhere(&self, runner: &dyn Runner, this: &str) -> Vec<OtherNode> {
        match get::<Vec<Node>>(runner, &["/nodes"]) {
            Ok(mut nodes) => {
                nodes.sort_by(|a, b| a.node.cmp(&b.node));
                nodes.iter().filter(|node| node.node != this).map(|node| self.on_node(runner, node)).collect()
            }
            Err(why) => vec![OtherNode {
                node: "other nodes".to_owned(),
                snippet: Presence::Unknown,
                text: format!("{why:#}"),
            }],
        }
    }

    fn on_node(&self, runner: &dyn Runner, node: &Node) -> OtherNode {
        let (snippet, text) = match self.ask(runner, node) {
            Ok(true) => (Presence::Present, String::new()),
            Ok(false) => (Presence::Missing, self.copy_to(&node.node)),
            Err(why) => (Presence::Unknown, why),
        };
        OtherNode { node: node.node.clone(), snippet, text }
    }

    fn ask(&self, runner: &dyn Runner, node: &Node) -> Result<bool, String> {
        if node.status != "online" {
            return Err("the node is offline".to_owned());
        }
        if !self.listed {
            return Err(format!(
                "PVE does not list the snippets of {}, since its `content` does not name them. See there: \
                 ssh root@{} ls -l {}",
                self.storage, node.node, self.path
            ));
        }
        let content = format!("/nodes/{}/storage/{}/content", node.node, self.storage);
        let volumes: Vec<Volume> =
            get(runner, &[&content, "--content", "snippets"]).map_err(|why| format!("{why:#}"))?;
        Ok(volumes.iter().any(|volume| volume.volid == self.volid))
    }

    fn copy_to(&self, node: &str) -> String {
        let path = quoted(&self.path);
        let directory = Path::new(&self.path).parent().unwrap_or(Path::new("/"));
        format!("ssh root@{node} mkdir -p {} && scp -p {path} root@{node}:{path}", quoted(directory))
    }
}

/// Why the hook would not find this program, if it would not: only where the root is the system's own.
pub fn not_on_path(root: &Root) -> Option<String> {
    let found = which::which_in(NAME, Some(HOOK_PATH), "/").is_ok();
    (root.is_system() && !found).then(|| {
        let this = std::env::current_exe().unwrap_or_default();
        format!(
            "The hook will not find this program: it looks in {HOOK_PATH}. `install {} /usr/sbin/{NAME}` puts it there.",
            quoted(&this)
        )
    })
}

/// A node, as `/nodes` tells it.
#[derive(Deserialize)]
struct Node {
    node: String,
    #[serde(default)]
    status: String,
}

/// A volume, as a storage's `content` tells it.
#[derive(Deserialize)]
struct Volume {
    volid: String,
}

fn get<T: serde::de::DeserializeOwned>(runner: &dyn Runner, arguments: &[&str]) -> Result<T> {
    let command = Command::new("pvesh").arg("get").args(arguments).args(["--output-format", "json"]);
    runner.run(&command.deadline(API_LIMIT))?.json()
}
