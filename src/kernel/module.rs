//! Whether the kernel's rbd module can be loaded.

use super::KernelFacts;
use crate::sys::command::Command;
use crate::sys::process::{Outcome, Runner, System};
use crate::sys::root::Root;
use anyhow::Result;
use std::time::Duration;

/// Asks `modprobe --dry-run`, which loads nothing, whether the module could be loaded. `None` where it is loaded already, and
/// for a test's root: only the running kernel can be asked.
pub fn loadable(root: &Root, kernel: &KernelFacts) -> Option<Result<()>> {
    if kernel.module_loaded || !root.is_system() {
        return None;
    }
    let command = Command::new("modprobe").args(["--dry-run", "rbd"]).deadline(Duration::from_secs(10));
    Some(System.run(&command).and_then(Outcome::check).map(drop))
}
