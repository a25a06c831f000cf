//! What the user is shown: text for people, JSON for programs.

pub mod attach;
pub mod defaults;
pub mod doctor;
pub mod history;
pub mod json;
pub mod many_guests;
pub mod prometheus;
pub mod text;

use crate::diagnose::finding::Finding;
use crate::diagnose::verdict::{Verdict, verdict};
use crate::observe::survey::Survey;
use crate::rbd::action::ActionReport;

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

/// A character that acts on a terminal or on the text around it instead of being seen: control characters, line and
/// paragraph separators, marks of text direction, blanks without width.
pub fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Text from outside made safe for a terminal: control characters, escapes among them, are shown as codes.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if is_hidden(c) { c.escape_unicode().to_string() } else { c.to_string() }).collect()
}

/// A verdict's word, blanks around it or not, in its colour where stdout is a terminal and NO_COLOR is not set.
pub(crate) fn coloured(word: &str) -> String {
    let style = console::Style::new();
    let style = match word.trim() {
        "refused" | "blocked" => style.red(),
        "unknown" | "repairable" => style.yellow(),
        "ready" => style.green(),
        _ => return word.to_owned(),
    };
    style.apply_to(word).to_string()
}

#[cfg(test)]
mod tests {
    #[test]
    fn escapes_do_not_reach_the_terminal() {
        assert_eq!(super::plain("a\x1b[31mb\u{202e}c"), "a\\u{1b}[31mb\\u{202e}c");
        assert_eq!(super::plain("größe 中文"), "größe 中文");
        for hidden in
            ['\n', '\r', '\u{7f}', '\u{9b}', '\u{61c}', '\u{2028}', '\u{2066}', '\u{2069}', '\u{feff}']
        {
            assert!(!super::plain(&format!("a{hidden}b")).contains(hidden), "{hidden:?}");
        }
    }
}
