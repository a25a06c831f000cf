//! `disks`: a guest's RBD disks and how each is opened, from the config files alone.

use crate::cli::Disks;
use crate::commands::session;
use crate::exit::Exit;
use crate::report::{json, text};
use crate::sys::root::Root;
use anyhow::Result;

/// Prints the disks of a guest.
pub fn run(root: &Root, options: &Disks) -> Result<Exit> {
    let guest = session::guest(root, options.vmid)?;
    if options.json {
        outln!("{}", json::printed(&json::disks(&guest)));
    } else {
        out!("{}", text::disks(&guest));
    }
    Ok(Exit::Ready)
}
