//! The question before a change.

use crate::exit::{Coded, Exit};
use anyhow::Result;
use std::io::{IsTerminal, Write};

/// Shows what is about to be done and asks on a terminal, unless `yes` was said. Without a terminal nothing is done.
pub fn confirm(yes: bool, show: impl FnOnce() -> String) -> Result<()> {
    if yes {
        return Ok(());
    }
    if !(std::io::stdin().is_terminal() && std::io::stderr().is_terminal()) {
        return Err(Coded::error(
            Exit::Usage,
            "nothing was changed: without a terminal to ask on, say --yes (or --dry-run to see the commands)",
        ));
    }
    eprint!("{}Continue? [y/N] ", show());
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Coded::error(Exit::Usage, "nothing was changed")),
    }
}
