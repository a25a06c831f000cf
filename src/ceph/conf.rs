//! ceph.conf as text: who sets an option, and the text with an option set in `[global]`. Pure.
//!
//! As Ceph 16 and later read it (`src/common/ConfUtils.cc`, run on 16.2.15): blanks in a name stand for `_`, `#` and
//! `;` begin a comment, a backslash before the line's end joins the next line unless it is in a comment, the last of
//! several equal names in a section holds. A dash is no `_` to Ceph 16; whoever wrote one meant it, so it is found too.

use std::ops::Range;

/// A line that sets an option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// `global`, `client`, `client.admin`.
    pub section: String,
    /// The number of its first line, from 1.
    pub line: usize,
    /// Its value without quotes.
    pub value: String,
    /// Its bytes in the text, line end included.
    bytes: Range<usize>,
}

/// The lines that set `option` (spelt with `_`), in the file's order.
pub fn settings(text: &str, option: &str) -> Vec<Setting> {
    let found = lines(text).into_iter().filter_map(|line| match line.kind {
        Kind::Option { name, value } if name == option => {
            Some(Setting { section: line.section, line: line.number, value, bytes: line.bytes })
        }
        _ => None,
    });
    found.collect()
}

/// Of the lines that set an option, the one that holds for `client.USER`: the nearest section's, and of those the last.
pub fn strongest<'a>(settings: &'a [Setting], user: &str) -> Option<&'a Setting> {
    let last_in = |section: String| settings.iter().rev().find(move |setting| setting.section == section);
    [format!("client.{user}"), "client".to_owned(), "global".to_owned()].into_iter().find_map(last_in)
}

/// The text with `option` set in `[global]`, everything else as it was. The line that holds now is replaced, its
/// comment kept; without one, the option becomes the section's last line, or a section is made.
pub fn with_global(text: &str, option: &str, value: &str) -> String {
    let end =
        if text.split_inclusive('\n').next().is_some_and(|l| l.ends_with("\r\n")) { "\r\n" } else { "\n" };
    let setting = format!("{option} = {value}");
    if let Some(old) = settings(text, option).iter().rev().find(|s| s.section == "global") {
        let before = &text[old.bytes.clone()];
        let last = before.split_inclusive('\n').next_back().unwrap_or(before);
        let (_, comment) = split_comment(last);
        let comment = comment.trim_end_matches(['\r', '\n']);
        let gap = if comment.is_empty() { "" } else { " " };
        let new = format!("{}{setting}{gap}{comment}{}", indent(before), line_end(before));
        return [&text[..old.bytes.start], &new, &text[old.bytes.end..]].concat();
    }
    let told_in_global =
        |line: &Line| line.section == "global" && !matches!(line.kind, Kind::Junk | Kind::Nothing);
    match lines(text).into_iter().rfind(told_in_global) {
        Some(line) => {
            let at = line.bytes.end;
            let before = &text[line.bytes];
            let lead = if line_end(before).is_empty() { end } else { "" };
            [&text[..at], &format!("{lead}{}{setting}{end}", indent(before)), &text[at..]].concat()
        }
        None => {
            let lead = if text.is_empty() || !line_end(text).is_empty() { "" } else { end };
            let gap = if text.trim().is_empty() { "" } else { end };
            format!("{text}{lead}{gap}[global]{end}{setting}{end}")
        }
    }
}

/// What differs between two texts, as one block: its first line's number, and the lines that go and come.
pub fn difference<'a>(old: &'a str, new: &'a str) -> (usize, Vec<&'a str>, Vec<&'a str>) {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    let same = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
    let (old, new) = (&old[same..], &new[same..]);
    let tail = old.iter().rev().zip(new.iter().rev()).take_while(|(a, b)| a == b).count();
    (same + 1, old[..old.len() - tail].to_vec(), new[..new.len() - tail].to_vec())
}

/// The first line that Ceph does not read past, from 1: it is neither a section, nor `name = value`, nor a comment.
pub fn first_junk(text: &str) -> Option<usize> {
    lines(text).into_iter().find(|line| line.kind == Kind::Junk).map(|line| line.number)
}

/// A line with those that it is continued on. No `Debug`: a keyring's holds a key.
pub struct Line {
    /// Where it stands, or the section that it begins.
    pub section: String,
    /// The number of its first line, from 1.
    pub number: usize,
    bytes: Range<usize>,
    /// What the line is to Ceph.
    pub kind: Kind,
}

/// What a line is.
#[derive(PartialEq)]
pub enum Kind {
    /// A section's header, `[global]`.
    Section,
    /// `name = value`, with `_` between the name's words and no quotes around the value.
    Option {
        /// The option's name, with `_` between its words.
        name: String,
        /// The value, without the quotes around it.
        value: String,
    },
    /// Neither, which Ceph does not read past.
    Junk,
    /// Blank, or a comment.
    Nothing,
}

/// A text's lines, as ceph.conf and keyrings are made of them.
pub fn lines(text: &str) -> Vec<Line> {
    let (mut all, mut section, mut at) = (Vec::new(), String::new(), 0);
    let mut physical = text.split_inclusive('\n').enumerate();
    while let Some((index, first)) = physical.next() {
        let (start, mut content) = (at, String::new());
        let mut line = first;
        loop {
            at += line.len();
            let (told, comment) = split_comment(line);
            let told = told.trim_end();
            let joined = if comment.is_empty() { told.strip_suffix('\\') } else { None };
            content += joined.unwrap_or(told);
            match joined.and_then(|_| physical.next()) {
                Some((_, next)) => line = next,
                None => break,
            }
        }
        let kind = kind(content.trim(), &mut section);
        all.push(Line { section: section.clone(), number: index + 1, bytes: start..at, kind });
    }
    all
}

fn kind(content: &str, section: &mut String) -> Kind {
    if let Some((name, _)) = content.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        name.trim().clone_into(section);
        return Kind::Section;
    }
    match content.split_once('=') {
        Some((name, value)) => {
            let name = name.split_whitespace().collect::<Vec<_>>().join("_").replace('-', "_");
            Kind::Option { name, value: unquoted(value.trim()).to_owned() }
        }
        None if content.is_empty() => Kind::Nothing,
        None => Kind::Junk,
    }
}

fn unquoted(value: &str) -> &str {
    let within = |quote: char| value.strip_prefix(quote)?.strip_suffix(quote);
    within('"').or_else(|| within('\'')).unwrap_or(value)
}

/// A physical line, cut where its comment begins.
fn split_comment(line: &str) -> (&str, &str) {
    let (mut quote, mut escaped) = (None, false);
    for (at, c) in line.char_indices() {
        match (quote, c) {
            _ if escaped => escaped = false,
            (_, '\\') => escaped = true,
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, '#' | ';') => return line.split_at(at),
            _ => {}
        }
    }
    (line, "")
}

fn indent(line: &str) -> &str {
    &line[..line.len() - line.trim_start_matches([' ', '\t']).len()]
}

fn line_end(text: &str) -> &str {
    ["\r\n", "\n"].into_iter().find(|end| text.ends_with(end)).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(text: &str) -> String {
        with_global(text, "some_option", "new, value")
    }

    #[test]
    fn the_line_that_is_there_is_replaced_and_nothing_else() {
        let text = "# top\n[global]\n\tfsid = x ; y\n\tsome option = 61 # why\n\n[client]\nkeyring = /a#b\n";
        assert_eq!(set(text), text.replace("some option = 61", "some_option = new, value"));
        for spelt in ["some_option=1", "some  option = 1", "some-option = 1", "some\toption = \"1\""] {
            assert_eq!(
                set(&format!("[global]\n{spelt}\nb = 2\n")),
                "[global]\nsome_option = new, value\nb = 2\n"
            );
        }
    }

    #[test]
    fn a_continued_line_is_replaced_whole() {
        let text = "[global]\nsome_option = 1, \\\n  2 ; both\nb = 2\n";
        assert_eq!(set(text), "[global]\nsome_option = new, value ; both\nb = 2\n");
        let other = "[global]\na = 1 \\\nsome_option = 3\n";
        assert_eq!(set(other), format!("{other}some_option = new, value\n"), "that line is a's value");
        let comment = "[global]\na = 1 ; c \\\nsome_option = 3\n";
        assert_eq!(set(comment), "[global]\na = 1 ; c \\\nsome_option = new, value\n");
    }

    #[test]
    fn the_last_line_of_the_section_is_the_one_that_holds() {
        let text = "[global]\nsome_option = 1\n[mon]\nx = 1\n[global]\nsome_option = 2\n";
        assert_eq!(set(text), text.replace("= 2", "= new, value"));
    }

    #[test]
    fn a_section_without_it_gets_it_after_its_last_setting() {
        let text = "[global]\n\t fsid = x\n\n# about osds\n[osd]\nsome_option = 7\n";
        let expected =
            "[global]\n\t fsid = x\n\t some_option = new, value\n\n# about osds\n[osd]\nsome_option = 7\n";
        assert_eq!(set(text), expected);
        assert_eq!(set("[global]\n[osd]\n"), "[global]\nsome_option = new, value\n[osd]\n");
    }

    #[test]
    fn a_file_without_the_section_gets_one() {
        assert_eq!(set(""), "[global]\nsome_option = new, value\n");
        let commented = "#[global]\n; some_option = 1\n[osd]\na = 1";
        assert_eq!(set(commented), format!("{commented}\n\n[global]\nsome_option = new, value\n"));
    }

    #[test]
    fn line_ends_stay_what_they_are() {
        assert_eq!(
            set("[global]\r\nsome_option = 1 ; c\r\nb = 2\r\n"),
            "[global]\r\nsome_option = new, value ; c\r\nb = 2\r\n"
        );
        assert_eq!(set("[global]\r\na = 1"), "[global]\r\na = 1\r\nsome_option = new, value\r\n");
        assert_eq!(set("[global]\nsome_option = 1"), "[global]\nsome_option = new, value");
        assert_eq!(set("[global]\r\na = 1\\\r\n2\r\nsome_option = 1\r\n").lines().count(), 4);
    }

    #[test]
    fn setting_it_twice_is_setting_it_once() {
        for text in
            ["", "[global]", "[osd]\na=1\n", "[global]\nsome option = 1 # c\n[client]\nsome_option=2\n"]
        {
            assert_eq!(set(&set(text)), set(text), "{text:?}");
            let all = settings(&set(text), "some_option");
            let global = all.iter().rev().find(|s| s.section == "global").unwrap();
            assert_eq!(global.value, "new, value", "{text:?}");
        }
    }

    #[test]
    fn the_nearest_section_holds() {
        let text = "[client.admin]\no = 1\n[client]\no = 2\n[global]\no = '3'\n[client]\no = 4\n";
        let all = settings(text, "o");
        let holds = |user| strongest(&all, user).map(|s| (s.value.as_str(), s.line));
        assert_eq!((holds("admin"), holds("vms")), (Some(("1", 2)), Some(("4", 8))));
        assert_eq!(strongest(&settings("[osd]\no = 1\n", "o"), "admin"), None);
    }

    #[test]
    fn the_difference_is_one_block() {
        assert_eq!(difference("a\nb\nc\n", "a\nx\nc\n"), (2, vec!["b"], vec!["x"]));
        assert_eq!(difference("a\nc", "a\nb\nc"), (2, vec![], vec!["b"]));
        assert_eq!(difference("a\na\n", "a\na\na\n"), (3, vec![], vec!["a"]));
        assert_eq!(difference("a\n", "a\n"), (2, vec![], vec![]));
    }
}
