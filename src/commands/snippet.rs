//! Our snippet: put where Proxmox VE takes hookscripts from, and looked for on the other nodes.

use crate::exit::{Coded, Exit};
use crate::hook::snippet::{NAME, SNIPPET, is_ours};
use crate::hook::snippet::{OtherNode, Presence};
use crate::pve::snippet;
use crate::pve::storage::StorageConfig;
use crate::report::attach::Placed;
use crate::sys::command::Command;
use crate::sys::process::Runner;
use crate::sys::quote::quoted;
use crate::sys::root::Root;
use crate::sys::write::whole;
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::Permissions;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

/// The API asks the other node, which may not answer.
const API_LIMIT: Duration = Duration::from_secs(20);
/// Where a hookscript looks for programs (`PVE::CLIHandler`, `PVE::Daemon`).
const HOOK_PATH: &str = "/sbin:/bin:/usr/sbin:/usr/bin";

/// Where the snippet is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The storage's id.
    pub storage: String,
    /// The volume id: `local:snippets/rbd-preflight`.
    pub volid: String,
    /// Where the file is on a node that has the storage.
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
        Ok((Self::at(storages, storage, volid, path), against))
    }

    /// The place of the snippet by one of its names.
    pub fn of(storages: &StorageConfig, volid: &str) -> Result<Self> {
        let path = snippet::path(storages, volid).map_err(anyhow::Error::msg)?;
        let storage = snippet::parse(volid).map_or("", |(storage, _)| storage);
        Ok(Self::at(storages, storage, volid.to_owned(), path))
    }

    fn at(storages: &StorageConfig, storage: &str, volid: String, path: String) -> Self {
        let listed =
            storages.rules(storage).is_some_and(|rules| rules.content.iter().any(|kind| kind == "snippets"));
        Self { storage: storage.to_owned(), volid, path, listed }
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
            let may_run = |new: &std::fs::File| new.set_permissions(Permissions::from_mode(0o755));
            Ok(whole(&path, ".rbd-preflight.", SNIPPET.as_bytes(), may_run)?)
        };
        write().with_context(|| format!("cannot write the snippet {}", self.path))
    }

    /// Whether it is among a node's volumes of its storage.
    fn on_node(&self, node: &Node, volumes: &Result<Vec<Volume>, String>) -> OtherNode {
        let (snippet, text) = match volumes {
            Ok(_) if !self.listed => (Presence::Unknown, self.not_listed(&node.node)),
            Ok(volumes) if volumes.iter().any(|volume| volume.volid == self.volid) => {
                (Presence::Present, String::new())
            }
            Ok(_) => (Presence::Missing, self.copy_to(&node.node)),
            Err(why) => (Presence::Unknown, why.clone()),
        };
        OtherNode { node: node.node.clone(), volid: self.volid.clone(), snippet, text }
    }

    fn not_listed(&self, node: &str) -> String {
        format!(
            "PVE does not list the snippets of {}, since its `content` does not name them. See there: \
             ssh root@{node} ls -l {}",
            self.storage,
            quoted(&self.path)
        )
    }

    fn copy_to(&self, node: &str) -> String {
        let path = quoted(&self.path);
        let directory = Path::new(&self.path).parent().unwrap_or(Path::new("/"));
        format!("ssh root@{node} mkdir -p {} && scp -p {path} root@{node}:{path}", quoted(directory))
    }
}

/// Which other nodes have the snippet under these names, by PVE's API; each storage of each node is asked once.
pub fn elsewhere(places: &[Place], runner: &dyn Runner, this: &str) -> Vec<OtherNode> {
    let Some(first) = places.first() else { return Vec::new() };
    let mut nodes = match get::<Vec<Node>>(runner, &["/nodes"]) {
        Ok(nodes) => nodes,
        Err(why) => {
            return vec![OtherNode {
                node: "other nodes".to_owned(),
                volid: first.volid.clone(),
                snippet: Presence::Unknown,
                text: format!("{why:#}"),
            }];
        }
    };
    nodes.sort_by(|a, b| a.node.cmp(&b.node));
    let mut told = Vec::new();
    for node in nodes.iter().filter(|node| node.node != this) {
        let mut asked: BTreeMap<&str, Result<Vec<Volume>, String>> = BTreeMap::new();
        for place in places {
            let volumes = asked.entry(&place.storage).or_insert_with(|| ask(runner, node, place));
            told.push(place.on_node(node, volumes));
        }
    }
    told
}

/// The snippets on a node's storage.
fn ask(runner: &dyn Runner, node: &Node, place: &Place) -> Result<Vec<Volume>, String> {
    // `unknown` is a node of which pvestatd has not told yet: it may well answer.
    if node.status == "offline" {
        return Err("the node is offline".to_owned());
    }
    if !place.listed {
        return Ok(Vec::new());
    }
    let content = format!("/nodes/{}/storage/{}/content", node.node, place.storage);
    get(runner, &[&content, "--content", "snippets"]).map_err(|why| format!("{why:#}"))
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
