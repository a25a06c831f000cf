//! The command line: every clap type there is.

use crate::defaults;
use crate::diagnose::verdict::Verdict;
use crate::finding_codes::Code;
use crate::hook::situation::Phase;
use crate::rbd::features::Features;
use crate::sys::dates::When;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Makes sure that a Proxmox VE guest's Ceph RBD disks can be opened before it starts.
#[derive(Debug, Parser)]
#[command(
    name = "rbd-preflight",
    version,
    max_term_width = 100,
    disable_help_subcommand = true,
    help_expected = true
)]
#[command(after_help = "Exit codes: 0 ready, 1 error, 2 usage, 3 something would stop the start, \
4 refused for safety, 75 busy, 124 deadline passed.")]
pub struct Cli {
    /// Look at this directory instead of / (for tests)
    #[arg(long, global = true, hide = true, env = "RBD_PREFLIGHT_ROOT", default_value = "/")]
    pub root: PathBuf,
    /// Show on stderr what is done meanwhile, down to this level: off, error, warn, info, debug (each command that is run)
    #[arg(long, global = true, value_name = "LEVEL", env = "RBD_PREFLIGHT_LOG", default_value = "off")]
    pub log: log::LevelFilter,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what would stop a start, and what repair would do; changes nothing
    Check(Check),
    /// Show which guest could start on which node now: asks every node over ssh; changes nothing
    Rehearse(Rehearse),
    /// Fix what is safe to fix
    Repair(Repair),
    /// Repair and start a guest, and try again while there is something to try
    Start(Start),
    /// List a guest's RBD disks and how each is opened; needs no Ceph
    Disks(Disks),
    /// Show what was changed, when, and what came of it
    History(History),
    /// Put the features back that a run has changed
    Undo(Undo),
    /// Make Proxmox VE call this tool before guests start; keeps a hookscript that a guest already has
    Attach(Attach),
    /// Undo `attach`; a hookscript that a guest had before comes back
    Detach(Detach),
    /// Show what features new images get, or set them
    Defaults(Defaults),
    /// Check whether this node has what the tool needs, and show what fixes it where not
    Doctor(Doctor),
    /// Report what happens to the disks of running guests, until it is stopped; changes nothing
    Watch(Watch),
    /// What Proxmox VE's hookscript calls; not meant to be run by hand
    Hook(Hook),
}

/// The guests that a command is for: by number, or all of this node.
#[derive(Debug, Args)]
pub struct Guests {
    /// Guests by their number (VMID)
    #[arg(value_name = "VMID", value_parser = vmid)]
    pub vmids: Vec<u32>,
    /// Every guest of this node
    #[arg(long, conflicts_with = "vmids")]
    pub all: bool,
}

/// The options of `check`.
#[derive(Debug, Args)]
pub struct Check {
    /// Which guests to look at
    #[command(flatten)]
    pub guests: Guests,
    /// Every guest of every node, as it would start from this one's view; only read
    #[arg(long, conflicts_with_all = ["vmids", "all"])]
    pub cluster: bool,
    /// Every guest of every node as if it were this one's and stopped: what `rehearse` asks each node
    #[arg(long, conflicts_with_all = ["vmids", "all", "cluster", "survey", "save_survey", "prometheus"])]
    pub here: bool,
    /// Which of the guests to show
    #[command(flatten)]
    pub filter: Filter,
    /// Print JSON
    #[arg(long, conflicts_with = "prometheus")]
    pub json: bool,
    /// Print metrics in Prometheus's text format, for the textfile collector of node_exporter
    #[arg(long, conflicts_with_all = ["survey", "verbose", "quiet"])]
    pub prometheus: bool,
    /// Show notes too; after a table, also each guest's report
    #[arg(long, short)]
    pub verbose: bool,
    /// Of a table, only the guests that are not ready, and no progress bar
    #[arg(long, short, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Write what was seen to FILE, to be diagnosed anywhere
    #[arg(long, value_name = "FILE", conflicts_with_all = ["survey", "all", "cluster"])]
    pub save_survey: Option<PathBuf>,
    /// Diagnose a saved survey; needs neither Ceph nor Proxmox VE
    #[arg(long, value_name = "FILE", conflicts_with_all = ["vmids", "all", "cluster"])]
    pub survey: Option<PathBuf>,
    /// Give up after this many seconds [default: `check_deadline` of the settings]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub deadline: Option<u64>,
}

/// Which guests a check shows; its exit code and its JSON are those of the guests shown.
#[derive(Debug, Args)]
pub struct Filter {
    /// Only guests with this verdict; may be given more than once
    #[arg(long, value_name = "VERDICT")]
    pub only: Vec<Verdict>,
    /// Only guests with a disk on this storage
    #[arg(long, value_name = "STORAGE")]
    pub storage: Option<String>,
    /// Only guests with this finding, such as `image-missing`
    #[arg(long, value_name = "CODE", value_parser = code)]
    pub code: Option<Code>,
}

/// A finding by its name.
fn code(text: &str) -> Result<Code, String> {
    Code::from_name(text).ok_or_else(|| "there is no such finding; docs/findings.md lists them".to_owned())
}

/// The options of `rehearse`.
#[derive(Debug, Args)]
pub struct Rehearse {
    /// Ask only this node; may be given more than once
    #[arg(long, value_name = "NODE")]
    pub node: Vec<String>,
    /// Which of the guests to show
    #[command(flatten)]
    pub filter: Filter,
    /// Print JSON
    #[arg(long, conflicts_with = "prometheus")]
    pub json: bool,
    /// Print metrics in Prometheus's text format, for the textfile collector of node_exporter
    #[arg(long, conflicts_with = "quiet")]
    pub prometheus: bool,
    /// Of the table, only the guests that could not start everywhere
    #[arg(long, short)]
    pub quiet: bool,
    /// How long a node may take to answer, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(2..=3600))]
    pub deadline: u64,
    /// How many nodes are asked at a time; each asks the Ceph cluster
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = parallel)]
    pub parallel: usize,
}

/// How many nodes are asked at a time.
fn parallel(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 1..=64) => Ok(number),
        _ => Err("a number from 1 to 64".to_owned()),
    }
}

/// The options of `repair`.
#[derive(Debug, Args)]
pub struct Repair {
    /// Which guests to repair
    #[command(flatten)]
    pub guests: Guests,
    /// Of all, only those that start at boot or are managed by HA, and have RBD disks; a repair of one takes no longer than
    /// a hook (`deadline` of the settings), and all rebuilds together no longer than those of one (`rebuild_deadline`)
    #[arg(long, requires = "all")]
    pub onboot: bool,
    /// Wait until the cluster has quorum, as Proxmox VE does before it starts guests at boot; the guests are those that
    /// are this node's then, and --deadline counts from then
    #[arg(long, requires = "all")]
    pub wait_quorum: bool,
    /// How to go about it
    #[command(flatten)]
    pub manner: Manner,
    /// Show notes too
    #[arg(long, short)]
    pub verbose: bool,
    /// Only what is changed, and what still stops a start
    #[arg(long, short, conflicts_with_all = ["verbose", "json"])]
    pub quiet: bool,
    /// Begin no further change after this many seconds [default: none]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub deadline: Option<u64>,
}

/// The options of `start`.
#[derive(Debug, Args)]
pub struct Start {
    /// The number of the guest (VMID)
    #[arg(value_name = "VMID", value_parser = vmid)]
    pub vmid: u32,
    /// How often to try at most; where a disk can explain why it fails, the last try resets the disks' features
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=20))]
    pub tries: u32,
    /// Begin no further try after this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub deadline: u64,
    /// Do not ask before anything is changed
    #[arg(long, short)]
    pub yes: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// The options of `disks`.
#[derive(Debug, Args)]
pub struct Disks {
    /// The number of the guest (VMID)
    #[arg(value_name = "VMID", value_parser = vmid)]
    pub vmid: u32,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// The options of `history`.
#[derive(Debug, Args)]
pub struct History {
    /// Only runs on this guest
    #[arg(value_name = "VMID", value_parser = vmid)]
    pub vmid: Option<u32>,
    /// The same as the argument VMID
    #[arg(long, value_name = "VMID", value_parser = vmid, conflicts_with = "vmid")]
    pub guest: Option<u32>,
    /// Only changes of this image: POOL/[NAMESPACE/]IMAGE, or its name alone
    #[arg(long, value_name = "SPEC")]
    pub image: Option<String>,
    /// Only runs since then: 2h, 3d, a date (UTC) or RFC 3339
    #[arg(long, value_name = "WHEN", value_parser = When::parse)]
    pub since: Option<When>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// The options of `undo`.
#[derive(Debug, Args)]
pub struct Undo {
    /// The run to undo, as `history` names it
    #[arg(value_name = "RUN")]
    pub run: String,
    /// Print the commands, change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask before anything is changed
    #[arg(long, short)]
    pub yes: bool,
}

/// The options of `attach`.
#[derive(Debug, Args)]
pub struct Attach {
    /// Which guests; of all, those that have RBD disks
    #[command(flatten)]
    pub guests: Guests,
    /// The storage that holds the snippet: a directory that is there, on every node, before Ceph is
    #[arg(long, value_name = "STORAGE", default_value = "local")]
    pub storage: String,
    /// How to go about it
    #[command(flatten)]
    pub manner: Manner,
}

/// The options of `detach`.
#[derive(Debug, Args)]
pub struct Detach {
    /// Which guests to detach
    #[command(flatten)]
    pub guests: Guests,
    /// How to go about it
    #[command(flatten)]
    pub manner: Manner,
}

/// How to go about a change.
#[derive(Debug, Args)]
pub struct Manner {
    /// Print the commands, change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask before anything is changed
    #[arg(long, short)]
    pub yes: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// The options of `defaults`.
#[derive(Debug, Args)]
pub struct Defaults {
    /// Write `rbd_default_features` into `[global]` of /etc/pve/ceph.conf: names joined with commas, or a number (29,
    /// 0x1d); without a value: layering, exclusive-lock, object-map, fast-diff
    #[arg(long, value_name = "FEATURES", num_args = 0..=1, default_missing_value = "29", value_parser = defaults::parse)]
    pub set: Option<Features>,
    /// Let the cluster's monitors hold it instead (`ceph config set global`); a value in ceph.conf is stronger
    #[arg(long, requires = "set")]
    pub mon: bool,
    /// How to go about it
    #[command(flatten)]
    pub manner: Manner,
}

/// The options of `doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// The options of `watch`.
#[derive(Debug, Args)]
pub struct Watch {
    /// Write metrics for the textfile collector of node_exporter; the file is there only while the watcher runs
    #[arg(long, value_name = "FILE")]
    pub metrics: Option<PathBuf>,
    /// Look at the guests and ask their clusters this often; the kernel's log is followed all the time
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub every: u64,
    /// Print JSON, an object a line
    #[arg(long)]
    pub json: bool,
}

/// The arguments that Proxmox VE gives a hookscript, and what the snippet adds.
#[derive(Debug, Args)]
pub struct Hook {
    /// The hookscript that the guest had before, which is called too; the snippet's name says it
    #[arg(long, value_name = "VOLID", hide = true)]
    pub earlier: Option<String>,
    /// The number of the guest (VMID)
    #[arg(value_name = "VMID", value_parser = vmid)]
    pub vmid: u32,
    /// The phase that Proxmox VE calls it in
    #[arg(value_name = "PHASE", value_parser = |text: &str| Ok::<Phase, String>(Phase::from(text)))]
    pub phase: Phase,
}

/// A guest's number: 100 to 999999999 (`PVE::JSONSchema`, `pve-vmid`).
fn vmid(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(vmid @ 100..=999_999_999) => Ok(vmid),
        _ => Err("a VMID is a number from 100 to 999999999".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn vmids_are_pves() {
        assert_eq!(vmid("516"), Ok(516));
        for bad in ["99", "1000000000", "-1", "5a", ""] {
            assert!(vmid(bad).is_err(), "{bad}");
        }
    }
}
