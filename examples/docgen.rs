//! Writes the man pages and the shell completions into a directory, from the command line's own definition:
//! `docgen DIR`. The package is built with it; the product itself carries none of it.

use anyhow::{Context, Result};
use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use rbd_preflight::act::run_lock;
use rbd_preflight::cli::Cli;
use rbd_preflight::hook::earlier;
use rbd_preflight::{journal, settings};
use std::path::Path;

/// Of system administration's commands.
const SECTION: &str = "8";

fn main() -> Result<()> {
    let directory = std::env::args_os().nth(1).context("usage: docgen DIR")?;
    let directory = Path::new(&directory);
    std::fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let mut command = Cli::command();
    command.build();
    for page in std::iter::once(&command).chain(shown(&command)) {
        let path = directory.join(format!("{}.{SECTION}", name(page)));
        let text = man_page(&command, page)?;
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut Cli::command(), "rbd-preflight", directory)
            .with_context(|| format!("cannot write the completions of {shell}"))?;
    }
    Ok(())
}

/// The subcommands that have a page.
fn shown(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|command| !command.is_hide_set())
}

/// A page's name: `rbd-preflight-check`.
fn name(command: &Command) -> &str {
    command.get_display_name().unwrap_or_else(|| command.get_name())
}

/// The page of `page`, which is `command` itself or one of its subcommands.
fn man_page(command: &Command, page: &Command) -> Result<Vec<u8>> {
    let version = command.get_version().unwrap_or_default();
    let man = Man::new(page.clone())
        .section(SECTION)
        .source(format!("rbd-preflight {version}"))
        .manual("Proxmox VE and Ceph");
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if page.has_subcommands() {
        man.render_subcommands_section(&mut text)?;
    }
    let mut roff = Roff::new();
    exit_status(&mut roff, command);
    files(&mut roff);
    see_also(&mut roff, command, page);
    roff.to_writer(&mut text)?;
    Ok(text)
}

/// What the help tells below the options, for every subcommand.
fn exit_status(roff: &mut Roff, command: &Command) {
    let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    roff.control("SH", ["EXIT STATUS"]);
    roff.text([roman(text.trim_start_matches("Exit codes: "))]);
}

fn files(roff: &mut Roff) {
    roff.control("SH", ["FILES"]);
    for (path, what) in [
        (settings::NODE_FILE, "Settings of this node."),
        (settings::CLUSTER_FILE, "Settings of all nodes of the cluster; those of the node go over them."),
        (
            earlier::DIRECTORY,
            "What earlier versions remembered of guests' hookscripts, by number; nothing of it is run.",
        ),
        (journal::DIRECTORY, "The journal of all changes."),
        (
            run_lock::RUN,
            "Locks of runs that change something, and since when a lock's owner has been without a watch.",
        ),
    ] {
        roff.control("TP", []);
        roff.text([bold(path)]);
        roff.text([roman(what)]);
    }
}

fn see_also(roff: &mut Roff, command: &Command, page: &Command) {
    let ours = std::iter::once(command).chain(shown(command)).map(|other| (name(other), SECTION));
    let others = [("rbd", "8"), ("qm", "1"), ("pct", "1")];
    let shown = ours.filter(|(other, _)| *other != name(page)).chain(others);
    let names: Vec<String> = shown.map(|(other, section)| format!("{other}({section})")).collect();
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman(names.join(", "))]);
}
