//! How much of the time before a start goes to rebuilding object maps: one budget for all disks of the guest, less what
//! this run has spent. A rebuild that is cut off leaves a lock and a watch behind, for which the start has to wait.

use crate::ceph::image::ImageReading;
use crate::diagnose::finding::Finding;
use crate::finding_codes::Code;
use crate::observe::survey::Survey;
use crate::rbd::action::{Action, ActionReport, Change};
use crate::settings::policy::Policy;
use std::time::Duration;

/// Objects that a rebuild looks at in a second, reckoned low: a loaded cluster of hard disks still does that.
const REBUILD_RATE: u64 = 500;

/// Why a rebuild is left for later.
const TOO_LONG: &str = "it would take too long before a start (`rebuild_deadline`)";

/// What this run may still spend on rebuilds; `None` is as long as it takes.
pub fn left_after(history: &[ActionReport], policy: &Policy) -> Option<Duration> {
    policy.rebuild_budget.map(|budget| budget.saturating_sub(spent(history)))
}

/// What a run has spent on rebuilds. One of which it is not known how long it took has taken all there was.
pub fn spent(history: &[ActionReport]) -> Duration {
    let rebuilds = history.iter().filter(|report| report.action.may_take_long());
    let spent = rebuilds.map(|report| report.duration().unwrap_or(Duration::MAX));
    spent.fold(Duration::ZERO, Duration::saturating_add)
}

/// Leaves the rebuilds that the budget has no room for; the first disks of the guest come first.
pub fn share_out(findings: &mut [Finding], survey: &Survey, policy: &Policy) {
    let Some(mut left) = left_after(&survey.history, policy) else { return };
    for finding in findings {
        let (rebuilds, others): (Vec<Action>, Vec<Action>) =
            std::mem::take(&mut finding.remedy.actions).into_iter().partition(Action::may_take_long);
        let needed = rebuilds
            .iter()
            .map(|action| needed(survey, action))
            .fold(Duration::ZERO, Duration::saturating_add);
        let fits = needed <= left && !left.is_zero();
        finding.remedy.actions = others;
        if fits {
            left -= needed;
            finding.remedy.actions.extend(rebuilds);
        } else if !rebuilds.is_empty() && finding.code != Code::LockFeaturesMissing {
            // Features that come back without their map are of use all the same.
            finding.remedy.withhold(TOO_LONG.to_owned());
        }
    }
}

/// How long a rebuild may take, by the image's number of objects.
fn needed(survey: &Survey, action: &Action) -> Duration {
    let Change::RebuildObjectMap { .. } = action.change else { return Duration::ZERO };
    let disk = survey.disks.iter().find(|disk| {
        disk.spec().as_ref() == Some(&action.target.spec) && disk.disk.storage == action.target.storage
    });
    match disk.and_then(|disk| disk.reading.as_ref()) {
        Some(ImageReading::Found(facts)) => Duration::from_secs(facts.objects / REBUILD_RATE),
        _ => Duration::MAX,
    }
}
