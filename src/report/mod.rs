//! What the user is shown: text for people, JSON for programs.

pub mod attach;
pub mod defaults;
pub mod doctor;
pub mod history;
pub mod json;
pub mod many_guests;
pub mod prometheus;
pub mod rehearsal;
mod table;
pub mod text;
pub mod watch;

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
