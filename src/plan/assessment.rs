//! What is found and what is planned for a guest, as one value. Pure.

use crate::diagnose::diagnose;
use crate::diagnose::finding::Finding;
use crate::diagnose::verdict::{Verdict, verdict};
use crate::observe::survey::Survey;
use crate::plan::order::plan;
use crate::rbd::action::{ActionReport, ActionResult};
use crate::settings::policy::Policy;

/// All there is to report of one guest.
#[derive(Debug, Clone)]
pub struct GuestReport {
    /// What was seen, at the end.
    pub survey: Survey,
    /// What is wrong, by the survey alone.
    pub findings: Vec<Finding>,
    /// What is planned, or was done.
    pub actions: Vec<ActionReport>,
}

impl GuestReport {
    /// The verdict on the guest as it is now.
    pub fn verdict(&self) -> Verdict {
        verdict(&self.findings)
    }
}

/// The report on a survey: findings, and what repair would do.
pub fn assess(survey: Survey, policy: &Policy) -> GuestReport {
    let findings = diagnose(&survey, policy);
    let planned = |action| ActionReport::new(action, ActionResult::Planned);
    let actions = plan(&findings, policy).into_iter().map(planned).collect();
    GuestReport { survey, findings, actions }
}
