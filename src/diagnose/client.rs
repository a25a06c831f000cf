//! This node's kernel clients that are on the OSD blocklist, a finding for each.

use crate::diagnose::finding::{Finding, RemedyKind};
use crate::diagnose::mapping::{kept, told, unmap};
use crate::diagnose::sharing::{Client, clients, takes};
use crate::finding_codes::{Code, Severity};
use crate::kernel::client::Sharing;
use crate::observe::survey::Survey;
use crate::rbd::action::{Action, ActionReport};
use crate::reading::errno_text;
use nix::errno::Errno;

/// Findings about this node's dead kernel clients, of every cluster that the guest's disks lie in. `forbidden` is why
/// nothing may be unmapped for this guest.
pub fn findings(survey: &Survey, forbidden: Option<&str>) -> Vec<Finding> {
    let all = clients(survey);
    let dead = all.iter().filter(|client| client.entry.is_some());
    dead.map(|client| of_client(survey, client, &all, forbidden)).collect()
}

/// What a dead client is to a guest.
enum Concern {
    /// A map of one of its disks would take it.
    Taken,
    /// A map might; why that is not known.
    Perhaps(String),
    /// One of its disks is mapped through it, and no map would take it.
    Mapped,
    /// Nothing: the guest has no part in the client.
    Nothing,
}

fn concern(survey: &Survey, client: &Client<'_>, all: &[Client<'_>]) -> Concern {
    let mut perhaps = None;
    for disk in &survey.disks {
        match takes(survey, disk, client, all) {
            Sharing::Yes => return Concern::Taken,
            Sharing::Unknown(why) => perhaps = Some(Concern::Perhaps(why)),
            Sharing::No(_) => {}
        }
    }
    let through = |disk| {
        survey.mapped(disk).known().is_some_and(|own| own.iter().any(|m| m.client_address == client.address))
    };
    let mapped = survey.disks.iter().any(through).then_some(Concern::Mapped);
    perhaps.or(mapped).unwrap_or(Concern::Nothing)
}

/// One dead client: since it lives as long as one image is mapped through it, either all of them go or none. They go
/// for the sake of a map that would take it, and for nothing else.
fn of_client(survey: &Survey, client: &Client<'_>, all: &[Client<'_>], forbidden: Option<&str>) -> Finding {
    let until = client.entry.map(|entry| entry.until.as_str()).unwrap_or_default();
    let through: Vec<String> = client.mappings.iter().map(|mapping| told(survey, mapping)).collect();
    let detail = format!(
        "{}, on the blocklist until {until}; mapped through it: {}",
        client.told(all),
        through.join("; ")
    );
    let mut finding = Finding::new(Code::NodeClientBlocklisted, detail);
    let unmaps: Vec<Action> = client.mappings.iter().map(|mapping| unmap(mapping)).collect();
    let kept: Vec<String> = client.mappings.iter().filter_map(|mapping| kept(survey, mapping)).collect();
    let used = "guests that run on the dead client cannot write: shut each down and start it again";
    match concern(survey, client, all) {
        Concern::Taken if kept.is_empty() => let_go(survey, finding, unmaps, forbidden),
        Concern::Taken => {
            finding.remedy.withheld = Some(format!("the dead client cannot be dropped: {}", kept.join("; ")));
            finding.remedy.text =
                format!("this guest's disks get a kernel client of their own (noshare); {used}");
            finding
        }
        Concern::Perhaps(why) => {
            let errno = errno_text(Errno::ESHUTDOWN as i32);
            finding.remedy.text = format!(
                "whether a map of this guest's disks would share it is not known ({why}); a map that fails with {errno} \
                 is made again with a kernel client of its own (noshare); {used}"
            );
            finding
        }
        Concern::Mapped => {
            finding.summary = "a kernel client of this node is on the OSD blocklist: every disk mapped through it is dead, \
                               and what this guest maps anew does not share it"
                .to_owned();
            finding.remedy.text = used.to_owned();
            finding
        }
        Concern::Nothing => {
            finding.summary =
                "a kernel client of this node is on the OSD blocklist; this guest's disks are not mapped \
                               through it, and their maps do not share it"
                    .to_owned();
            if kept.is_empty() {
                finding.remedy.commands = unmaps.iter().map(Action::command_line).collect();
                return finding
                    .severity(Severity::Note)
                    .remedy(RemedyKind::None, "nothing to do for this guest");
            }
            finding.remedy.text = format!("nothing for this guest; {used}");
            finding
        }
    }
}

/// All that is mapped through the client is left over: it is unmapped, unless something forbids that or it was tried.
fn let_go(survey: &Survey, mut finding: Finding, unmaps: Vec<Action>, forbidden: Option<&str>) -> Finding {
    finding.remedy.commands = unmaps.iter().map(Action::command_line).collect();
    let gave_up = unmaps.iter().find_map(|action| {
        survey.history.iter().filter(|report| report.action == *action).find_map(ActionReport::failure)
    });
    let tried = gave_up.map(|(_, message)| format!("it was tried and failed: {message}"));
    match forbidden.map(str::to_owned).or(tried) {
        Some(why) => finding.remedy.withheld = Some(why),
        None => {
            finding = finding.remedy(
                RemedyKind::Automatic,
                "unmap everything that still goes through it; the next map makes a new client",
            );
            finding.remedy.actions = unmaps;
        }
    }
    finding
}
