//! Text from outside, made safe to be shown on a terminal.

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
