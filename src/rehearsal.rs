//! Which guest could start on which node now. Each node says what it would meet (`check --here --json`); what comes of
//! their words together is made here. Pure.

use crate::diagnose::finding::{Finding, RemedyKind};
use crate::diagnose::verdict::Verdict;
use crate::exit::Exit;
use crate::finding_codes::{Code, Severity};
use crate::pve::needs::{Lack, Weight};
use crate::pve::words::Kind;
use serde::Deserialize;
use std::cmp::Reverse;
use std::collections::BTreeSet;

/// What a node says of all guests: what is needed of the JSON of `check --here`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Answer {
    /// The node that speaks.
    pub node: String,
    /// The version of its rbd-preflight.
    #[serde(default)]
    pub version: String,
    /// What it says of each guest.
    #[serde(default)]
    pub guests: Vec<Told>,
    /// The guests whose config it could not read.
    #[serde(default)]
    pub unread: Vec<Unread>,
}

/// A guest whose config a node could not read.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Unread {
    /// The guest's number.
    pub vmid: u32,
    /// Why it could not be read.
    pub error: String,
}

/// What a node says of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Told {
    /// Which guest it is.
    pub guest: ToldGuest,
    /// Its RBD disks, as the node's `check --here` lists them.
    pub disks: Vec<ToldDisk>,
    /// What a start there would meet.
    pub findings: Vec<Said>,
}

/// A guest in a node's answer.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ToldGuest {
    /// The guest's number.
    pub vmid: u32,
    /// The guest's name, if it has one.
    pub name: Option<String>,
    /// It runs on the node that speaks; `None` where that is not known.
    pub running: Option<bool>,
    /// It is a template.
    #[serde(default)]
    pub template: bool,
}

/// A disk in a node's answer.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ToldDisk {
    /// The disk's key in the config: `scsi0`.
    pub key: String,
    /// The disk's storage.
    pub storage: String,
    /// `unknown` where the image could not be read.
    pub state: String,
    /// What was read of the image.
    pub facts: Option<ToldImage>,
}

/// An image in a node's answer.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ToldImage {
    /// Who watches it; `None` where that could not be read.
    pub watchers: Option<serde_json::Value>,
}

/// A finding as a node says it. Its code may be one that this version does not know.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Said {
    /// The finding's code, which another version's node may have and this one not.
    pub code: String,
    /// How grave the node calls it.
    pub severity: Severity,
    /// The disk's config key.
    pub disk: Option<String>,
    /// What it means, in one sentence.
    pub summary: String,
    /// What was seen that it rests on.
    pub detail: String,
}

/// Why a node says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Silence {
    /// It could not be reached, or did not answer in time.
    NoAnswer,
    /// Corosync does not see it; it was not asked.
    Offline,
    /// It has no rbd-preflight.
    NoTool,
    /// Its rbd-preflight cannot do this.
    OlderTool,
    /// What it said cannot be understood.
    NoSense,
}

impl Silence {
    /// In words, for a table's cell.
    pub fn word(self) -> &'static str {
        match self {
            Self::NoAnswer => "no answer",
            Self::Offline => "offline",
            Self::NoTool => "no tool",
            Self::OlderTool => "older tool",
            Self::NoSense => "no sense",
        }
    }

    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoAnswer => "no-answer",
            Self::Offline => "offline",
            Self::NoTool => "no-tool",
            Self::OlderTool => "older-tool",
            Self::NoSense => "no-sense",
        }
    }
}

/// A node and what it says, or why it says nothing and in detail.
#[derive(Debug, Clone)]
pub struct Column {
    /// The node's name.
    pub node: String,
    /// What it says of every guest, or why nothing came.
    pub answer: Result<Answer, (Silence, String)>,
}

/// A guest of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The guest's number.
    pub vmid: u32,
    /// Virtual machine or container.
    pub kind: Kind,
    /// The node whose directory holds its config.
    pub node: String,
    /// The HA manager looks after it.
    pub ha: bool,
}

/// A guest and what a start on each node would meet, in the order of the columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Which guest it is, and whose.
    pub guest: Listed,
    /// The guest's name, if it has one.
    pub name: Option<String>,
    /// It runs on its own node; `None` where that is not known.
    pub running: Option<bool>,
    /// The storages of its RBD disks.
    pub storages: BTreeSet<String>,
    /// One for each column.
    pub cells: Vec<Cell>,
    /// It could start on a node other than its own, of those that were asked; `None` where that is not known, or where
    /// no other node was asked.
    pub elsewhere: Option<bool>,
}

/// What a start of one guest on one node would meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    /// `Ready`, `Unknown`, `Blocked` or `Refused`.
    pub verdict: Verdict,
    /// Why not, the gravest first; empty where it is ready.
    pub reasons: Vec<Said>,
    /// The node says nothing.
    pub silent: Option<Silence>,
}

/// What is said of who uses an image. Only the guest's own node can judge it.
const OF_USERS: [Code; 5] =
    [Code::InUseElsewhere, Code::InUseUnknown, Code::LockOwnerAlive, Code::LockDying, Code::LockExternal];

/// The rows of all guests, the worst first. Templates are none: they are never started.
pub fn rows(guests: &[Listed], columns: &[Column]) -> Vec<Row> {
    let mut rows: Vec<Row> = guests.iter().filter_map(|guest| row(guest, columns)).collect();
    let worst = |row: &Row| row.cells.iter().map(|cell| cell.verdict).max();
    let not_ready = |row: &Row| row.cells.iter().filter(|cell| cell.verdict != Verdict::Ready).count();
    rows.sort_by_key(|row| {
        let stuck = row.guest.ha && row.elsewhere != Some(true);
        (Reverse(stuck), Reverse(not_ready(row)), Reverse(worst(row)), row.guest.vmid)
    });
    rows
}

fn row(guest: &Listed, columns: &[Column]) -> Option<Row> {
    let told = |column: &Column| {
        let answer = column.answer.as_ref().ok()?;
        answer.guests.iter().find(|told| told.guest.vmid == guest.vmid).cloned()
    };
    let all: Vec<Option<Told>> = columns.iter().map(told).collect();
    if all.iter().flatten().any(|told| told.guest.template) {
        return None;
    }
    let home = columns.iter().position(|column| column.node == guest.node);
    let home_told = home.and_then(|at| all[at].as_ref());
    let cells: Vec<Cell> = columns
        .iter()
        .zip(&all)
        .map(|(column, told)| {
            cell(guest, column, told.as_ref(), home_told.filter(|_| column.node != guest.node))
        })
        .collect();
    let others =
        || columns.iter().zip(&cells).filter(|(column, _)| column.node != guest.node).map(|(_, cell)| cell);
    let elsewhere = if others().any(|cell| cell.verdict == Verdict::Ready) {
        Some(true)
    } else if others().next().is_none() || others().any(|cell| cell.verdict == Verdict::Unknown) {
        None
    } else {
        Some(false)
    };
    Some(Row {
        guest: guest.clone(),
        name: all.iter().flatten().find_map(|told| told.guest.name.clone()),
        running: home_told.and_then(|told| told.guest.running),
        storages: all
            .iter()
            .flatten()
            .flat_map(|told| &told.disks)
            .map(|disk| disk.storage.clone())
            .collect(),
        cells,
        elsewhere,
    })
}

fn cell(guest: &Listed, column: &Column, told: Option<&Told>, home: Option<&Told>) -> Cell {
    let answer = match &column.answer {
        Ok(answer) => answer,
        Err((silence, _)) => {
            return Cell { verdict: Verdict::Unknown, reasons: Vec::new(), silent: Some(*silence) };
        }
    };
    let mut reasons = match (told, answer.unread.iter().find(|unread| unread.vmid == guest.vmid)) {
        (Some(told), _) => told.findings.clone(),
        (None, Some(unread)) => vec![unsaid("its config could not be read", &unread.error)],
        (None, None) => {
            vec![unsaid("the node says nothing of this guest", "its config may have just moved; try again")]
        }
    };
    if let Some(home) = home {
        // Who is at the disks of a guest is for its own node to say, and holds for all.
        let is_of_users = |said: &Said| OF_USERS.iter().any(|code| code.name() == said.code);
        reasons.retain(|said| !(is_of_users(said) && home.knows_users_of(said.disk.as_deref())));
        let words = home.findings.iter().filter(|said| is_of_users(said) && !reasons.contains(said));
        reasons.extend(words.cloned().collect::<Vec<_>>());
    }
    reasons.retain(|said| said.severity > Severity::Warning);
    reasons.sort_by_key(|said| Reverse(said.severity));
    Cell { verdict: worst(&reasons), reasons, silent: None }
}

impl Told {
    /// The node has read who watches a disk's image, or that there is no image.
    fn knows_users_of(&self, key: Option<&str>) -> bool {
        let disk = self.disks.iter().find(|disk| Some(disk.key.as_str()) == key);
        disk.is_some_and(|disk| match (&disk.facts, disk.state.as_str()) {
            (Some(facts), _) => facts.watchers.is_some(),
            (None, state) => !matches!(state, "unknown" | "none"),
        })
    }
}

fn unsaid(summary: &str, detail: &str) -> Said {
    Said {
        code: Code::GuestStateUnknown.name().to_owned(),
        severity: Severity::Unknown,
        disk: None,
        summary: summary.to_owned(),
        detail: detail.to_owned(),
    }
}

fn worst(reasons: &[Said]) -> Verdict {
    match reasons.iter().map(|said| said.severity).max() {
        Some(Severity::Unsafe) => Verdict::Refused,
        Some(Severity::Blocker) => Verdict::Blocked,
        Some(Severity::Unknown) => Verdict::Unknown,
        _ => Verdict::Ready,
    }
}

/// The exit code: 0 only if every guest that HA looks after could start on a node other than its own. Guests for which no
/// other node was asked do not count where only `some` nodes were meant to be asked.
pub fn exit(rows: &[Row], columns: &[Column], some: bool) -> Exit {
    let counts = |row: &&Row| !some || columns.iter().any(|column| column.node != row.guest.node);
    let ha = || rows.iter().filter(|row| row.guest.ha).filter(counts);
    let alone = columns.len() == 1 && !some;
    if ha().any(|row| row.elsewhere == Some(false) || alone) {
        Exit::Stopped
    } else if ha().any(|row| row.elsewhere.is_none()) {
        Exit::Error
    } else {
        Exit::Ready
    }
}

/// A finding of a check as it is in a rehearsal, where nothing is changed and nothing is offered: what the guest's own hook
/// does before the start stops none. `hooked` says whether the hook is in time for it.
#[must_use]
pub fn as_rehearsed(mut finding: Finding, hooked: bool) -> Finding {
    let remedy = &mut finding.remedy;
    if remedy.kind == RemedyKind::Automatic {
        remedy.actions.clear();
        remedy.commands.clear();
        let stops = finding.severity >= Severity::Blocker;
        (remedy.kind, remedy.text) = match (stops, hooked) {
            (_, true) => (RemedyKind::None, "the guest's hook does that before the start".to_owned()),
            (true, false) => {
                let text = "attach rbd-preflight to the guest: its hook does away with that before the start";
                (RemedyKind::Manual, text.to_owned())
            }
            (false, false) => (RemedyKind::None, remedy.text.clone()),
        };
        if stops && hooked {
            finding.severity = Severity::Warning;
        }
    }
    finding.remedy.withheld = None;
    match finding.code {
        // Proxmox VE starts nothing then, and calls no hook that could say it.
        Code::QuorumMissing => finding.severity = Severity::Blocker,
        Code::GuestStateUnknown => finding.severity = Severity::Unknown,
        _ => {}
    }
    finding
}

/// What a node does not have, as a finding.
pub fn lacking(lack: &Lack, disks: &[&str]) -> Finding {
    let severity = match lack.weight {
        Weight::Warning => Severity::Warning,
        Weight::Unknown => Severity::Unknown,
        Weight::Refused => Severity::Blocker,
    };
    let mut finding = Finding::new(Code::ResourceMissing, format!("{}: {}", lack.key, lack.text));
    finding.disk = disks.contains(&lack.key.as_str()).then(|| lack.key.clone());
    finding.severity(severity)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(code: Code, severity: Severity) -> Said {
        let (code, summary) = (code.name().to_owned(), code.summary().to_owned());
        Said { code, severity, disk: Some("scsi0".to_owned()), summary, detail: String::new() }
    }

    fn told(vmid: u32, findings: &[Said]) -> Told {
        let guest = ToldGuest { vmid, name: Some("web".to_owned()), running: Some(false), template: false };
        let facts = Some(ToldImage { watchers: Some(serde_json::json!([])) });
        let (key, storage, state) = ("scsi0".to_owned(), "ceph".to_owned(), "found".to_owned());
        Told { guest, disks: vec![ToldDisk { key, storage, state, facts }], findings: findings.to_vec() }
    }

    fn says(node: &str, guests: Vec<Told>) -> Column {
        let answer = Answer { node: node.to_owned(), guests, ..Answer::default() };
        Column { node: node.to_owned(), answer: Ok(answer) }
    }

    fn silent(node: &str, silence: Silence) -> Column {
        Column { node: node.to_owned(), answer: Err((silence, "why".to_owned())) }
    }

    fn guest(vmid: u32, node: &str, ha: bool) -> Listed {
        Listed { vmid, kind: Kind::Qemu, node: node.to_owned(), ha }
    }

    fn verdicts(row: &Row) -> Vec<Verdict> {
        row.cells.iter().map(|cell| cell.verdict).collect()
    }

    use Severity::{Blocker, Note, Unknown, Unsafe, Warning};
    use Verdict::{Blocked, Ready, Refused};

    #[test]
    fn each_cell_is_as_grave_as_the_gravest_that_its_node_says() {
        let cases = [
            (vec![], Ready),
            (vec![said(Code::MappingLeftover, Note), said(Code::ObjectMapInvalid, Warning)], Ready),
            (vec![said(Code::ImageUnreadable, Unknown)], Verdict::Unknown),
            (vec![said(Code::ImageUnreadable, Unknown), said(Code::StorageNotOnNode, Blocker)], Blocked),
            (vec![said(Code::StorageNotOnNode, Blocker), said(Code::MappingOtherImage, Unsafe)], Refused),
        ];
        for (findings, verdict) in cases {
            let columns = [says("pve1", vec![told(100, &[])]), says("pve2", vec![told(100, &findings)])];
            let rows = rows(&[guest(100, "pve1", true)], &columns);
            assert_eq!(verdicts(&rows[0]), [Ready, verdict]);
            assert_eq!(
                rows[0].elsewhere,
                match verdict {
                    Ready => Some(true),
                    Verdict::Unknown => None,
                    _ => Some(false),
                }
            );
        }
    }

    #[test]
    fn a_node_that_says_nothing_is_unknown_and_never_a_yes() {
        for silence in
            [Silence::NoAnswer, Silence::NoTool, Silence::OlderTool, Silence::NoSense, Silence::Offline]
        {
            let columns = [says("pve1", vec![told(100, &[])]), silent("pve2", silence)];
            let rows = rows(&[guest(100, "pve1", true)], &columns);
            assert_eq!((verdicts(&rows[0])[1], rows[0].elsewhere), (Verdict::Unknown, None));
            assert_eq!(exit(&rows, &columns, false), Exit::Error);
        }
        let forgotten = [says("pve1", vec![told(100, &[])]), says("pve2", vec![])];
        assert_eq!(verdicts(&rows(&[guest(100, "pve1", true)], &forgotten)[0])[1], Verdict::Unknown);
    }

    #[test]
    fn who_is_at_a_disk_is_for_the_guests_own_node_to_say_and_holds_for_all() {
        let strange = said(Code::InUseUnknown, Unknown);
        let of_two = |home: Column| {
            let columns = [
                home,
                says("pve2", vec![told(100, std::slice::from_ref(&strange))]),
                says("pve3", vec![told(100, &[])]),
            ];
            verdicts(&rows(&[guest(100, "pve1", true)], &columns)[0])
        };
        assert_eq!(of_two(says("pve1", vec![told(100, &[])])), [Ready; 3], "it is the guest itself");
        let stranger = said(Code::InUseElsewhere, Unsafe);
        assert_eq!(of_two(says("pve1", vec![told(100, &[stranger])])), [Refused; 3]);
        let unknown = Verdict::Unknown;
        assert_eq!(
            of_two(silent("pve1", Silence::NoAnswer)),
            [unknown, unknown, Ready],
            "nobody was seen by pve3"
        );
        let mut blind = told(100, &[said(Code::ClusterUnreachable, Blocker)]);
        blind.disks[0].facts = None;
        blind.disks[0].state = "unknown".to_owned();
        assert_eq!(of_two(says("pve1", vec![blind])), [Blocked, unknown, Ready]);
    }

    #[test]
    fn only_guests_of_ha_count_for_the_exit_code_and_only_other_nodes() {
        let bad = [said(Code::StorageNotOnNode, Blocker)];
        let columns = |two: &[Said]| {
            let guests = |findings: &[Said]| vec![told(100, findings), told(101, findings)];
            [says("pve1", guests(&[])), says("pve2", guests(two))]
        };
        let ended = |ha: bool, two: &[Said]| {
            let columns = columns(two);
            exit(&rows(&[guest(100, "pve1", ha), guest(101, "pve2", false)], &columns), &columns, false)
        };
        assert_eq!(ended(true, &[]), Exit::Ready);
        assert_eq!(ended(true, &bad), Exit::Stopped);
        assert_eq!(ended(false, &bad), Exit::Ready);
        let one = [says("pve1", vec![told(100, &[])])];
        let alone = rows(&[guest(100, "pve1", true)], &one);
        assert_eq!(exit(&alone, &one, false), Exit::Stopped, "there is no other node");
        assert_eq!(exit(&alone, &one, true), Exit::Ready, "no other was to be asked");
    }

    #[test]
    fn the_worst_comes_first_and_templates_do_not_come() {
        let bad = [said(Code::StorageNotOnNode, Blocker)];
        let mut template = told(103, &bad);
        template.guest.template = true;
        let two = vec![told(100, &[]), told(101, &bad), told(102, &bad), template];
        let guests = [100, 101, 102, 103].map(|vmid| guest(vmid, "pve1", vmid == 102));
        let one = [100, 101, 102, 103].map(|vmid| told(vmid, &[])).to_vec();
        let rows = rows(&guests, &[says("pve1", one), says("pve2", two)]);
        assert_eq!(rows.iter().map(|row| row.guest.vmid).collect::<Vec<_>>(), [102, 101, 100]);
    }

    #[test]
    fn what_the_hook_does_in_time_stops_no_start_and_nothing_is_offered() {
        let automatic = |severity| {
            let finding = Finding::new(Code::MappingDead, "").severity(severity);
            finding.remedy(RemedyKind::Automatic, "unmap it")
        };
        let hooked = as_rehearsed(automatic(Blocker), true);
        assert_eq!((hooked.severity, hooked.remedy.kind), (Warning, RemedyKind::None));
        let bare = as_rehearsed(automatic(Blocker), false);
        assert_eq!((bare.severity, bare.remedy.kind), (Blocker, RemedyKind::Manual));
        assert_eq!(as_rehearsed(automatic(Warning), false).remedy.kind, RemedyKind::None);
        assert_eq!(as_rehearsed(Finding::new(Code::QuorumMissing, ""), true).severity, Blocker);
        assert_eq!(as_rehearsed(Finding::new(Code::GuestStateUnknown, ""), true).severity, Unknown);
    }
}
