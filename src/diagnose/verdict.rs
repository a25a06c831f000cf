//! From findings to one word and one exit code.

use crate::diagnose::finding::{Finding, RemedyKind};
use crate::exit::Exit;
use crate::finding_codes::Severity;
use serde::Serialize;

/// Can the guest start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Nothing stands in the way and nothing is to be done.
    Ready,
    /// `repair` can fix everything that stands in the way.
    Repairable,
    /// It could not be found out.
    Unknown,
    /// The start is certain to fail, and fixing it needs an administrator.
    Blocked,
    /// The start would put data at risk.
    Refused,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Ready => "ready",
            Self::Repairable => "repairable",
            Self::Unknown => "unknown",
            Self::Blocked => "blocked",
            Self::Refused => "refused",
        })
    }
}

/// The verdict on a guest.
pub fn verdict(findings: &[Finding]) -> Verdict {
    let any = |of: &dyn Fn(&Finding) -> bool| findings.iter().any(of);
    let automatic = |finding: &Finding| finding.remedy.kind == RemedyKind::Automatic;
    if any(&|f| f.severity == Severity::Unsafe && !automatic(f)) {
        Verdict::Refused
    } else if any(&|f| f.severity == Severity::Blocker && !automatic(f)) {
        Verdict::Blocked
    } else if any(&|f| f.severity == Severity::Unknown) {
        Verdict::Unknown
    } else if any(&automatic) {
        Verdict::Repairable
    } else {
        Verdict::Ready
    }
}

/// Something in the findings would stop the start as things stand.
pub fn stops_start(findings: &[Finding]) -> bool {
    findings.iter().any(|f| f.severity >= Severity::Blocker)
}

/// The exit code of `check`, and of a hook whose guest shall not start.
pub fn exit_code(findings: &[Finding]) -> Exit {
    match verdict(findings) {
        Verdict::Refused => Exit::Refused,
        Verdict::Blocked => Exit::Stopped,
        Verdict::Unknown => Exit::Error,
        Verdict::Repairable if stops_start(findings) => Exit::Stopped,
        Verdict::Repairable | Verdict::Ready => Exit::Ready,
    }
}
