//! What this node's kernel has mapped of a guest's images, and what came of mapping more.

use crate::diagnose::finding::{Finding, RemedyKind};
use crate::diagnose::image::Image;
use crate::diagnose::sharing::{clients, rxbounce, takes};
use crate::diagnose::{features, map_failure};
use crate::finding_codes::{Code, Severity};
use crate::kernel::Mapping;
use crate::kernel::client::{Identity, Sharing};
use crate::kernel::holders::{Holder, Process};
use crate::observe::survey::Survey;
use crate::pve::guest::Role;
use crate::pve::words::Kind;
use crate::rbd::action::{Action, ActionResult, Change, Target};
use crate::reading::{Reading, errno_text};
use crate::settings::policy::Scope;
use nix::errno::Errno;

/// From a map to the moment when its device is opened, in seconds: what PVE and people do in between takes a few.
const FRESH: u64 = 10;

/// `/dev/rbd0 rbd/vm-100-disk-0 (guest 100, running)`.
pub fn told(survey: &Survey, mapping: &Mapping) -> String {
    let spec = mapping.spec();
    let guests = survey.node.mapping_users.get(&mapping.id).map(|users| &users.guests);
    let guests: Vec<String> = guests
        .into_iter()
        .flatten()
        .map(|(vmid, running)| match running {
            Reading::Known(true) => format!("guest {vmid}, running: its disk is dead"),
            Reading::Known(false) => format!("guest {vmid}, not running"),
            Reading::Unknown(_) => format!("guest {vmid}"),
        })
        .collect();
    let named = if guests.is_empty() { "no guest of this node".to_owned() } else { guests.join(", ") };
    format!("/dev/rbd{} {spec} ({named})", mapping.id)
}

/// Any mapping of this node can be unmapped by its device alone, whichever storage it came by.
pub fn unmap(mapping: &Mapping) -> Action {
    let target = Target {
        storage: String::new(),
        fsid: mapping.fsid.clone(),
        spec: mapping.spec(),
        id: mapping.image_id.clone(),
        rbd_arguments: Vec::new(),
    };
    Action { target, change: Change::Unmap { device: mapping.id } }
}

/// Why a mapping is not a leftover; `None` if it is one: nothing has it open, no guest that names it runs, and nobody is
/// at such a guest.
pub fn kept(survey: &Survey, mapping: &Mapping) -> Option<String> {
    let device = format!("/dev/rbd{}", mapping.id);
    let Some(users) = survey.node.mapping_users.get(&mapping.id) else {
        return Some(format!("it is not known who uses {device}"));
    };
    let running = users.guests.iter().find_map(|(vmid, running)| match running {
        Reading::Known(false) => None,
        Reading::Known(true) => Some(format!("guest {vmid} runs on {device}")),
        Reading::Unknown(failure) => Some(format!("it is not known whether guest {vmid} runs: {failure}")),
    });
    let open = match &users.holders {
        Reading::Known(holders) if holders.is_empty() => None,
        Reading::Known(holders) => Some(format!("{device} is open: {}", listed(holders))),
        Reading::Unknown(failure) => Some(format!("it is not known what has {device} open: {failure}")),
    };
    let locked = users.locked.iter().find_map(|(vmid, held)| match held {
        Reading::Known(false) => None,
        Reading::Known(true) => {
            Some(format!("somebody is at guest {vmid} right now (PVE's lock of it is held)"))
        }
        Reading::Unknown(failure) => {
            Some(format!("it is not known whether somebody is at guest {vmid}: {failure}"))
        }
    });
    running.or(open).or(locked)
}

/// It was mapped a moment ago, and by hand there is nobody who vouches for it: whoever did it may be about to open it.
/// `None` too where the kernel does not tell since when it is mapped.
pub(super) fn fresh(survey: &Survey, mapping: &Mapping, scope: Scope) -> Option<String> {
    let seconds = survey.taken_at.checked_sub(mapping.made_at?)?;
    let device = format!("/dev/rbd{}", mapping.id);
    (scope == Scope::All && seconds < FRESH)
        .then(|| format!("{device} was mapped {seconds} s ago: whoever did it may be about to open it"))
}

/// Why an unmap that was tried in this run is not tried again.
pub(super) fn gave_up(survey: &Survey, action: &Action) -> Option<String> {
    let last = survey.history.iter().rev().find(|report| report.action == *action)?;
    match &last.result {
        ActionResult::Failed { message, .. } => Some(format!("it was tried and failed: {message}")),
        ActionResult::Withheld { why } | ActionResult::Busy { why } => Some(why.clone()),
        ActionResult::Planned | ActionResult::Done { .. } => None,
    }
}

fn listed(holders: &[Holder]) -> String {
    holders.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Findings about the mappings of one image, and about mapping it.
pub fn findings(image: &Image, map: bool) -> Vec<Finding> {
    if !image.by_kernel() {
        return Vec::new();
    }
    let mut findings = Vec::new();
    let mapped = image.mapped.known().map_or(&[][..], Vec::as_slice);
    if image.survey.node.running != Reading::Known(true) {
        findings.extend(mapped.iter().map(|mapping| of_mapping(image, mapping, map)));
    }
    if mapped.is_empty() {
        let shared = dead_and_shared(image);
        let next = next_map(image, matches!(shared, Shared::Dead(_)));
        findings.extend(map_failure::finding(image, &next));
        if let Some(failure) = &image.kernel().load_failure {
            findings.push(Finding::new(Code::KernelModuleMissing, failure.clone()));
        } else if map || matches!(shared, Shared::Dead(_)) {
            findings.push(not_mapped(image, next, &shared, map));
        }
    } else if map && image.disk.linked_device.is_none() {
        let device = mapped.first().map(|mapping| mapping.id).unwrap_or_default();
        findings.push(Finding::new(Code::UdevLinkMissing, format!("mapped as /dev/rbd{device}")));
    }
    findings
}

/// The guest does not run, and its image is mapped: left over, or mapped by PVE a moment ago.
fn of_mapping(image: &Image, mapping: &Mapping, map: bool) -> Finding {
    let device = format!("/dev/rbd{}, client at {}", mapping.id, mapping.client_address);
    let dead = image.survey.dead_mappings().find(|(dead, _)| dead.id == mapping.id);
    let kept = kept(image.survey, mapping);
    let useless = read_only(image, mapping);
    let finding = match (&dead, busy(image.survey, mapping), useless) {
        (Some((_, entry)), _, _) => {
            let detail = format!("{device}, on the blocklist until {}", entry.until);
            Finding::new(Code::MappingDead, detail)
        }
        (None, None | Some((Severity::Warning, _)), Some(severity)) => {
            Finding::new(Code::MappingReadOnly, device).severity(severity)
        }
        (None, Some((severity, holders)), _) => {
            Finding::new(Code::MappingBusy, format!("{device}: {holders}")).severity(severity)
        }
        (None, None, None) => Finding::new(Code::MappingLeftover, device),
    };
    let action = unmap(mapping);
    let command = action.command_line();
    // A healthy mapping is what PVE wants to find when the guest is about to start, unless it hides something.
    // One with a client of its own is there because the shared client is dead, or was when it was mapped.
    let own_client = Identity::of_mapping(mapping).is_private();
    let on_purpose = own_client && !matches!(dead_and_shared(image), Shared::Fit);
    let wanted = useless.is_some() || (!map && !on_purpose) || wants_change_unmapped(image);
    let just_made = image.was_mapped();
    // A dead one is of no use to anybody.
    let needed = || {
        let opened = image.scope == Scope::InHook && image.disk.disk.before_hook;
        match dead {
            None if opened => Some("PVE has opened it for this start".to_owned()),
            None if !wanted || just_made => Some("PVE uses it for the start".to_owned()),
            None => fresh(image.survey, mapping, image.scope),
            Some(_) => None,
        }
    };
    let gave_up = || image.gave_up(&action).map(|(_, message)| format!("it was tried and failed: {message}"));
    let why_not = image.guest_forbidden.clone().or(kept).or_else(needed).or_else(gave_up);
    let mut finding = match why_not {
        Some(why) if finding.code == Code::MappingLeftover => {
            let mut finding = Finding::new(Code::MappedHere, format!("{}; {why}", finding.detail));
            finding.remedy.kind = RemedyKind::None;
            return finding;
        }
        Some(why) => {
            let mut finding = finding;
            finding.remedy.kind = RemedyKind::Manual;
            finding.remedy.withheld = Some(why);
            finding
        }
        None => {
            let mut finding = finding;
            finding.remedy.kind = RemedyKind::Automatic;
            finding.remedy.actions = vec![action];
            finding
        }
    };
    if finding.code == Code::MappingBusy && passes(image.survey, mapping) {
        finding.remedy.kind = RemedyKind::Wait;
        finding.remedy.text = MOMENT.to_owned();
    }
    finding.remedy.commands.push(command);
    finding
}

/// Whether `repair` would change the image if this node's kernel did not have it mapped.
fn wants_change_unmapped(image: &Image) -> bool {
    let facts = image.facts_unmapped();
    let findings = features::findings(&image.unmapped(&facts));
    findings.iter().any(|finding| finding.remedy.kind == RemedyKind::Automatic)
}

/// What to do about a process that may be gone in a moment.
pub(super) const MOMENT: &str = "programs that look at a disk (`blkid`, `lsblk`, `pvscan`) have it open for a moment: check again \
     in a few seconds; if one stays, end it";

/// It is a reason against a start only as long as a process has the device open, which may be over in a moment.
pub fn is_a_moment(finding: &Finding) -> bool {
    let held = matches!(finding.code, Code::MappingBusy | Code::MappingOtherImage);
    held && finding.severity >= Severity::Blocker && finding.remedy.kind == RemedyKind::Wait
}

/// Whoever has the device open may be gone in a moment.
fn passes(survey: &Survey, mapping: &Mapping) -> bool {
    let holders = survey.node.mapping_users.get(&mapping.id).and_then(|users| users.holders.known());
    holders.is_some_and(|holders| {
        let mut users = holders.iter().filter(|holder| !matches!(holder, Holder::Block { .. })).peekable();
        users.peek().is_some() && users.all(Holder::may_pass)
    })
}

/// How grave it is that the device can only be read; `None` if it can be written, or need not be. QEMU opens what it is
/// to write with `O_RDWR` and fails; `mount` goes on for reading only.
fn read_only(image: &Image, mapping: &Mapping) -> Option<Severity> {
    let disk = &image.disk.disk;
    match (mapping.read_only?, disk.role) {
        (false, _) | (_, Role::Cdrom | Role::Vmstate) => None,
        _ if disk.read_only => None,
        (true, Role::Rootfs | Role::Mountpoint) => Some(Severity::Warning),
        (true, Role::Disk | Role::Efi | Role::Tpm | Role::Cloudinit) => Some(Severity::Blocker),
    }
}

/// Two containers of one node may share a volume: the kernel has one file system for both. The other one is known if it
/// runs here and its config names the image.
fn is_shared(survey: &Survey, mapping: &Mapping, holder: &Holder) -> bool {
    let Holder::Mount { seen_by: Some(Process { guest: Some(vmid), .. }), .. } = holder else { return false };
    let users = survey.node.mapping_users.get(&mapping.id);
    let runs = users.and_then(|users| users.guests.get(vmid)) == Some(&Reading::Known(true));
    survey.guest.kind == Kind::Lxc && *vmid != survey.guest.vmid && runs
}

/// What has the device open while the guest does not run. A volume group that the node has activated is a nuisance;
/// a process or a mount is a second user of the disk.
fn busy(survey: &Survey, mapping: &Mapping) -> Option<(Severity, String)> {
    let holders = survey.node.mapping_users.get(&mapping.id)?.holders.known()?;
    let holders: Vec<Holder> = holders.iter().filter(|h| !is_shared(survey, mapping, h)).cloned().collect();
    let harmless = holders.iter().all(|holder| matches!(holder, Holder::Block { .. }));
    let severity = if harmless { Severity::Warning } else { Severity::Unsafe };
    (!holders.is_empty()).then(|| (severity, listed(&holders)))
}

/// The kernel client that a plain map of the image would take.
enum Shared {
    /// It is dead, and something keeps it alive; by what it is told from others, ` with rxbounce`.
    Dead(String),
    /// That may be so.
    Perhaps,
    /// It lives, or is made for the map, or can be let go before.
    Fit,
}

fn dead_and_shared(image: &Image) -> Shared {
    let survey = image.survey;
    if survey.dead_mappings().next().is_none() {
        return Shared::Fit;
    }
    let all = clients(survey);
    let mut shared = Shared::Fit;
    let stays = |mappings: &[&Mapping]| mappings.iter().any(|mapping| kept(survey, mapping).is_some());
    for client in all.iter().filter(|client| client.entry.is_some() && stays(&client.mappings)) {
        match takes(survey, image.disk, client, &all) {
            Sharing::Yes => return Shared::Dead(client.with(&all)),
            Sharing::Unknown(_) => shared = Shared::Perhaps,
            Sharing::No(_) => {}
        }
    }
    shared
}

/// How the image is mapped next: as PVE would map it, or with a kernel client of its own.
fn next_map(image: &Image, step_round: bool) -> Change {
    let rxbounce = rxbounce(image.survey, image.disk);
    Change::Map { noshare: step_round || map_failure::client_is_dead(image), rxbounce }
}

/// The image is to be mapped: for a start, or because PVE's own map would fail and there is a way round that. It stays
/// mapped for PVE.
fn not_mapped(image: &Image, next: Change, shared: &Shared, map: bool) -> Finding {
    let mut finding = Finding::new(Code::NotMapped, "");
    if let (Shared::Dead(with), false) = (shared, map) {
        let errno = errno_text(Errno::ESHUTDOWN as i32);
        finding = finding.severity(Severity::Blocker);
        finding.summary = format!(
            "a plain map of the image fails with {errno}, since this node's kernel client{with} is dead"
        );
        finding.remedy.text =
            "map it with a kernel client of its own (noshare), and leave it mapped for PVE".to_owned();
    }
    image.fix(finding, true, vec![next])
}
