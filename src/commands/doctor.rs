//! `doctor`: has this node what the tool needs.

use crate::cli::Doctor;
use crate::commands::snippet::Place;
use crate::doctor::{SNIPPET, examine, fails, gather::gather};
use crate::exit::Exit;
use crate::process::{System, find};
use crate::pve::storage::StorageConfig;
use crate::report::attach::OtherNode;
use crate::report::{doctor, json};
use crate::root::Root;
use anyhow::Result;

/// Prints each check; something that fails is exit 1.
pub fn run(root: &Root, options: &Doctor) -> Result<Exit> {
    let checks = examine(&gather(root, &snippet_elsewhere)?);
    if options.json {
        outln!("{}", json::printed(&doctor::json(&checks)));
    } else {
        out!("{}", doctor::text(&checks));
    }
    Ok(if fails(&checks) { Exit::Error } else { Exit::Ready })
}

/// Which other nodes have the snippet, where there is PVE's API to ask.
fn snippet_elsewhere(storages: &StorageConfig, here: &str) -> Vec<OtherNode> {
    let (storage, _) = SNIPPET.split_once(':').unwrap_or((SNIPPET, ""));
    match Place::on(storages, storage) {
        Ok((place, _)) if find("pvesh").is_some() => place.elsewhere(&System, here),
        _ => Vec::new(),
    }
}
