//! What justifies a change: asked before it is planned, and again on a fresh look just before it is made. Pure.

use crate::diagnose::diagnose;
use crate::journal::RunId;
use crate::observe::survey::Survey;
use crate::plan::order::plan;
use crate::plan::order::refusal;
use crate::rbd::action::Action;
use crate::settings::policy::Policy;

/// A rule that asks for changes.
pub trait Rule: Sync {
    /// The changes that it asks for as things stand, in the order in which they are to be made. Every one must be
    /// one that [`crate::diagnose::safety`] lets pass.
    fn wanted(&self, survey: &Survey) -> Vec<Action>;

    /// Why a change is not asked for, if that can be said.
    fn why_not(&self, survey: &Survey, action: &Action) -> Option<String>;

    /// The run that its changes undo; it is kept in the journal.
    fn undoes(&self) -> Option<&RunId> {
        None
    }
}

/// The rule of `repair` and the hook: what is wrong is fixed.
#[derive(Debug, Clone, Copy)]
pub struct Fix<'a>(pub &'a Policy);

impl Rule for Fix<'_> {
    fn wanted(&self, survey: &Survey) -> Vec<Action> {
        plan(&diagnose(survey, self.0), self.0)
    }

    fn why_not(&self, survey: &Survey, _: &Action) -> Option<String> {
        let findings = diagnose(survey, self.0);
        let refused = || refusal(&findings, self.0).map(|_| "the start is going to be refused".to_owned());
        findings.iter().find_map(|finding| finding.remedy.withheld.clone()).or_else(refused)
    }
}
