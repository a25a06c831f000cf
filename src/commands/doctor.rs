//! `doctor`: has this node what the tool needs.

use crate::cli::Doctor;
use crate::commands::snippet::{Place, elsewhere};
use crate::doctor::{examine, fails, gather::gather};
use crate::exit::Exit;
use crate::pve::storage::StorageConfig;
use crate::report::attach::OtherNode;
use crate::report::{doctor, json};
use crate::sys::process::{System, find};
use crate::sys::root::Root;
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

/// Which other nodes have the snippet under these names, where there is PVE's API to ask.
fn snippet_elsewhere(storages: &StorageConfig, names: &[String], here: &str) -> Vec<OtherNode> {
    let places: Vec<Place> = names.iter().filter_map(|volid| Place::of(storages, volid).ok()).collect();
    if find("pvesh").is_some() { elsewhere(&places, &System, here) } else { Vec::new() }
}
