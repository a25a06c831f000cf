//! A finding: what is wrong, where, how grave, and what fixes it.

use crate::finding_codes::{Code, Severity};
use crate::rbd::action::Action;
use serde::Serialize;

/// How a finding is fixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RemedyKind {
    /// `repair` and the hook do it, unless it is withheld.
    Automatic,
    /// An administrator has to.
    Manual,
    /// It passes by itself, or once somebody has acted elsewhere; then look again.
    Wait,
    /// Nothing is to be done.
    None,
}

/// What fixes a finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Remedy {
    /// Who does it: the tool, an administrator, or time.
    pub kind: RemedyKind,
    /// What is to be done, in one sentence.
    pub text: String,
    /// Commands that do it, ready to paste.
    pub commands: Vec<String>,
    /// Why `repair` does not do what it otherwise would.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub withheld: Option<String>,
    /// It is a safety rule that withholds it.
    #[serde(skip)]
    pub refused: bool,
    /// The changes that `plan` may take up; only of automatic remedies.
    #[serde(skip)]
    pub actions: Vec<Action>,
}

/// One thing that is not as it should be, or worth knowing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was found; the documents and `ignore:` know it by this.
    pub code: Code,
    /// How grave it is here, which may differ from the code's own.
    pub severity: Severity,
    /// The disk's config key, if it is about one.
    pub disk: Option<String>,
    /// The image, if it is about one.
    pub image: Option<String>,
    /// The storages that it is about, if it is about a cluster.
    #[serde(skip)]
    pub storages: Vec<String>,
    /// What it means, in one sentence.
    pub summary: String,
    /// What was seen that it rests on; `seen:` in the report.
    pub detail: String,
    /// What fixes it, and who does that.
    pub remedy: Remedy,
    /// The settings say that this shall not stop the guest.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub ignored: bool,
}

impl Remedy {
    /// There is nothing to do, and nothing to say of it.
    pub fn is_nothing(&self) -> bool {
        self.kind == RemedyKind::None && (self.text.is_empty() || self.text.starts_with("nothing to do"))
    }

    /// Leaves to an administrator what `repair` would have done, and says why.
    pub fn withhold(&mut self, why: String) {
        if self.kind == RemedyKind::Automatic {
            self.kind = RemedyKind::Manual;
            self.actions.clear();
            self.withheld = Some(why);
        }
    }
}

impl Finding {
    /// A finding with the code's own severity, sentence and remedy text.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        let kind = if code.severity() == Severity::Note { RemedyKind::None } else { RemedyKind::Manual };
        Self {
            code,
            severity: code.severity(),
            disk: None,
            image: None,
            storages: Vec::new(),
            summary: code.summary().to_owned(),
            detail: detail.into(),
            remedy: Remedy {
                kind,
                text: code.remedy().to_owned(),
                commands: Vec::new(),
                withheld: None,
                refused: false,
                actions: Vec::new(),
            },
            ignored: false,
        }
    }

    /// With another severity than the code's own.
    pub fn severity(mut self, severity: Severity) -> Self {
        self.severity = severity;
        self
    }

    /// With commands for an administrator to run.
    pub fn commands(mut self, commands: impl IntoIterator<Item = String>) -> Self {
        self.remedy.commands.extend(commands);
        self
    }

    /// With another text for what fixes it.
    pub fn remedy(mut self, kind: RemedyKind, text: impl Into<String>) -> Self {
        self.remedy.kind = kind;
        self.remedy.text = text.into();
        self
    }
}
