//! The little of Perl's string handling that PVE's parsers lean on, over bytes: PVE never decodes its files.

/// What `\s` means to PVE's regexes over undecoded bytes: ASCII blanks, vertical tab and form feed.
pub(crate) fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

/// All bytes are blanks, or there are none.
pub(crate) fn all_blank(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| is_blank(byte))
}

/// Without blanks at the end.
pub(crate) fn trim_end(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|&byte| !is_blank(byte)).map_or(0, |last| last + 1);
    &bytes[..end]
}

/// Without blanks at the beginning.
pub(crate) fn trim_start(bytes: &[u8]) -> &[u8] {
    let start = bytes.iter().position(|&byte| !is_blank(byte)).unwrap_or(bytes.len());
    &bytes[start..]
}

/// For people and for JSON: bytes that are not UTF-8 become U+FFFD.
pub(crate) fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The beginning of a text, for messages: a megabyte of line must not become a megabyte of message.
pub(crate) fn excerpt(bytes: &[u8]) -> String {
    const LIMIT: usize = 80;
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4 * LIMIT)]);
    let mut short: String =
        text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).take(LIMIT).collect();
    if bytes.len() > 4 * LIMIT || text.chars().count() > LIMIT {
        short.push('…');
    }
    short
}

/// Perl's truth of a string: neither empty nor `0`.
pub(crate) fn is_true(bytes: &[u8]) -> bool {
    !matches!(bytes, b"" | b"0")
}

/// A boolean as PVE's configs spell it, in any case (`PVE::JSONSchema::parse_boolean`).
pub(crate) fn boolean(bytes: &[u8]) -> Option<bool> {
    let is = |words: [&str; 4]| words.iter().any(|word| bytes.eq_ignore_ascii_case(word.as_bytes()));
    if is(["1", "on", "yes", "true"]) {
        return Some(true);
    }
    is(["0", "off", "no", "false"]).then_some(false)
}

/// A list as `PVE::ParseUtils::split_list` cuts it: at NUL if there is one, else at commas, semicolons and blanks.
///
/// That module alone asks Perl for Unicode blanks, so here the bytes 0x85 and 0xA0 separate too.
pub(crate) fn split_list(bytes: &[u8]) -> Vec<&[u8]> {
    let separates = |byte: &u8| is_blank(*byte) || matches!(byte, b',' | b';' | 0x85 | 0xa0);
    if !bytes.contains(&0) {
        return bytes.split(separates).filter(|item| !item.is_empty()).collect();
    }
    let mut items: Vec<&[u8]> = bytes.split(|&byte| byte == 0).collect();
    while items.last().is_some_and(|item| item.is_empty()) {
        items.pop();
    }
    items
}

/// The number of ASCII digits that a text begins with.
pub(crate) fn leading_digits(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|byte| byte.is_ascii_digit()).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_are_perls_over_bytes() {
        assert!(all_blank(b" \t\r\x0b\x0c"));
        assert!(!is_blank(0xa0) && !is_blank(0x85));
        assert_eq!(trim_end(b" a \x0b"), b" a");
        assert_eq!(trim_start(b" a "), b"a ");
        assert_eq!(trim_end(b"  "), b"");
    }

    #[test]
    fn lists_are_cut_at_separators_or_at_nul() {
        assert_eq!(split_list(b", n1;n2  n3\xa0n4"), [b"n1", b"n2", b"n3", b"n4"]);
        assert_eq!(split_list(b"a,b\0c\0\0"), [&b"a,b"[..], b"c"]);
        assert!(split_list(b",").is_empty());
    }

    #[test]
    fn booleans_are_spelled_in_any_case() {
        assert_eq!(boolean(b"YES"), Some(true));
        assert_eq!(boolean(b"Off"), Some(false));
        assert_eq!(boolean(b"2"), None);
        assert!(is_true(b"00") && !is_true(b"0") && !is_true(b""));
    }

    #[test]
    fn excerpts_are_short() {
        assert_eq!(excerpt(b"a\x01b"), "a\u{fffd}b");
        assert_eq!(excerpt(&[b'x'; 1 << 20]).chars().count(), 81);
    }
}
