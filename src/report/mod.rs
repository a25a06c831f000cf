//! What the user is shown: text for people, JSON for programs.

pub mod attach;
pub mod doctor;
pub mod fleet;
pub mod history;
pub mod json;
pub mod prometheus;
pub mod text;

use crate::action::ActionReport;
use crate::diagnose::finding::Finding;
use crate::survey::Survey;
use crate::verdict::{Verdict, verdict};

/// All there is to report of one guest.
#[derive(Debug, Clone)]
pub struct GuestReport {
    /// What was seen, at the end.
    pub survey: Survey,
    /// What it means.
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

/// Text from outside made safe for a terminal: control characters, escapes among them, are shown as codes.
pub fn plain(text: &str) -> String {
    let hidden = |c: char| {
        c.is_control() || ('\u{200b}'..='\u{200f}').contains(&c) || ('\u{202a}'..='\u{202e}').contains(&c)
    };
    text.chars().map(|c| if hidden(c) { c.escape_unicode().to_string() } else { c.to_string() }).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn escapes_do_not_reach_the_terminal() {
        assert_eq!(super::plain("a\x1b[31mb\u{202e}c"), "a\\u{1b}[31mb\\u{202e}c");
        assert_eq!(super::plain("größe 中文"), "größe 中文");
    }
}
