//! A guest config's text, cut into sections and `key: value` lines as PVE's own parsers cut it.
//!
//! `PVE::QemuServer::parse_vm_config` and `PVE::LXC::Config::parse_pct_config`; they differ in small things. What a
//! value means is not looked at here.

use super::perl::{all_blank, excerpt, lossy, trim_end, trim_start};
use super::words::{Kind, Note};

/// A guest config, cut into its sections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The main section first; there is always one.
    pub main: Section,
    /// All other sections, in the file's order.
    pub others: Vec<Section>,
    /// The lines that PVE drops or swallows.
    pub notes: Vec<Note>,
    /// PVE's parser dies on this file: at which line and why.
    pub fatal: Option<Note>,
}

/// A section of a guest config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// What the section is for.
    pub kind: SectionKind,
    /// The line of its header; 0 for the main section.
    pub line: usize,
    /// Its `key: value` lines in the file's order, doubled keys included.
    pub entries: Vec<KeyValue>,
}

/// What a section's header makes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SectionKind {
    /// Before the first header: what PVE starts.
    Main,
    /// `[PENDING]`, in a container `[pve:pending]`.
    Pending,
    /// `[name]`: a snapshot.
    Snapshot(String),
    /// `[special:…]` of a VM.
    Special(String),
    /// Any other header of a VM: PVE skips its lines.
    Unknown(String),
}

/// A `key: value` line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// Its line, counted from 1.
    pub line: usize,
    /// The key before the colon.
    pub key: String,
    /// The value, without blanks around it; a value of blanks alone keeps the last one.
    pub value: Vec<u8>,
}

/// Cuts a guest config into its sections. `file` is only for the notes.
pub fn read(kind: Kind, file: &str, bytes: &[u8]) -> Config {
    let mut reader = Reader::new(kind, file);
    for (index, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        reader.line(index + 1, line);
    }
    reader.finish()
}

/// What one line is to PVE.
enum Line<'a> {
    /// A blank line, a comment, a description: no setting.
    Nothing,
    Header(SectionKind),
    /// `snapstate: prepare|delete` at the end of any line.
    Snapstate,
    /// `delete: …`, which only the pending section may have.
    Delete,
    /// A raw setting of LXC.
    Raw,
    KeyValue(&'a [u8], &'a [u8]),
    Unparsable,
}

/// The state between two lines.
struct Reader<'f> {
    kind: Kind,
    file: &'f str,
    sections: Vec<Section>,
    notes: Vec<Note>,
    fatal: Option<Note>,
    /// The main section has a key `snapshots`.
    snapshots_key: bool,
    /// This section has a key `lxc`.
    lxc_key: bool,
}

impl<'f> Reader<'f> {
    fn new(kind: Kind, file: &'f str) -> Self {
        let main = Section { kind: SectionKind::Main, line: 0, entries: Vec::new() };
        let (notes, fatal) = (Vec::new(), None);
        Self { kind, file, sections: vec![main], notes, fatal, snapshots_key: false, lxc_key: false }
    }

    fn line(&mut self, number: usize, line: &[u8]) {
        let found = match self.kind {
            Kind::Qemu => vm_line(line),
            Kind::Lxc => container_line(line),
        };
        if let Line::Header(kind) = found {
            return self.header(number, kind);
        }
        if matches!(self.section().kind, SectionKind::Unknown(_)) {
            return;
        }
        match found {
            Line::Nothing | Line::Header(_) => {}
            Line::Snapstate => self.note(number, "PVE takes this line for a snapshot's state", line),
            Line::Delete if matches!(self.section().kind, SectionKind::Pending) => {}
            Line::Delete => self.note(number, "PVE drops `delete` outside the pending section", line),
            Line::Unparsable => self.note(number, "PVE drops this line: it is no `key: value`", line),
            Line::Raw => self.raw(number),
            Line::KeyValue(key, value) => {
                self.entry(KeyValue { line: number, key: lossy(key), value: value.to_vec() })
            }
        }
    }

    fn entry(&mut self, entry: KeyValue) {
        self.lxc_key |= entry.key == "lxc";
        self.snapshots_key |= entry.key == "snapshots" && self.sections.len() == 1;
        if let Some(section) = self.sections.last_mut() {
            section.entries.push(entry);
        }
    }

    /// The section that lines go to now.
    fn section(&self) -> &Section {
        &self.sections[self.sections.len() - 1]
    }

    fn header(&mut self, number: usize, kind: SectionKind) {
        let snapshot = matches!(kind, SectionKind::Snapshot(_));
        if self.kind == Kind::Lxc && snapshot && self.snapshots_key {
            self.dies(number, "the key `snapshots` stands where PVE wants to put this snapshot");
        }
        if let SectionKind::Unknown(name) = &kind {
            let text = format!("PVE skips the unknown section [{}]", excerpt(name.as_bytes()));
            self.notes.push(Note { file: self.file.to_owned(), line: number, text });
        }
        self.lxc_key = false;
        self.sections.push(Section { kind, line: number, entries: Vec::new() });
    }

    /// Perl cannot push to a list where a plain `lxc: …` line has put a text.
    fn raw(&mut self, number: usize) {
        if self.lxc_key {
            self.dies(number, "the key `lxc` stands where PVE wants to put this setting");
        }
    }

    fn dies(&mut self, number: usize, why: &str) {
        let file = self.file.to_owned();
        self.fatal.get_or_insert(Note {
            file,
            line: number,
            text: format!("PVE's parser fails here: {why}"),
        });
    }

    fn note(&mut self, number: usize, what: &str, line: &[u8]) {
        let text = format!("{what}: {}", excerpt(line));
        self.notes.push(Note { file: self.file.to_owned(), line: number, text });
    }

    fn finish(self) -> Config {
        let mut sections = self.sections.into_iter();
        let empty = Section { kind: SectionKind::Main, line: 0, entries: Vec::new() };
        let main = sections.next().unwrap_or(empty);
        let mut notes = self.notes;
        let others: Vec<Section> = sections.collect();
        note_doubled(self.file, &others, &mut notes);
        Config { main, others, notes, fatal: self.fatal }
    }
}

/// Of two sections of one name the last replaces the first.
fn note_doubled(file: &str, sections: &[Section], notes: &mut Vec<Note>) {
    let mut seen = std::collections::HashSet::new();
    for section in sections {
        let name = match &section.kind {
            SectionKind::Pending => "(pending)",
            SectionKind::Snapshot(name) | SectionKind::Special(name) => name,
            SectionKind::Main | SectionKind::Unknown(_) => continue,
        };
        if !seen.insert((std::mem::discriminant(&section.kind), name)) {
            let text = format!("section {name} is there twice; PVE takes the last");
            notes.push(Note { file: file.to_owned(), line: section.line, text });
        }
    }
}

/// The order of the tests is PVE's.
fn vm_line(line: &[u8]) -> Line<'_> {
    if all_blank(line) {
        return Line::Nothing;
    }
    if let Some(header) = vm_header(line) {
        return Line::Header(header);
    }
    if line.starts_with(b"#") || setting(line, b"description").is_some() {
        return Line::Nothing;
    }
    if is_snapstate(line) {
        return Line::Snapstate;
    }
    if let Some(value) = setting(line, b"args") {
        return Line::KeyValue(b"args", value);
    }
    if setting(line, b"delete").is_some() {
        return Line::Delete;
    }
    key_and_value(line, b"_-")
}

fn container_line(line: &[u8]) -> Line<'_> {
    if all_blank(line) {
        return Line::Nothing;
    }
    if let Some(header) = container_header(line) {
        return Line::Header(header);
    }
    if line.starts_with(b"#") {
        return Line::Nothing;
    }
    if let Some(key) = raw_setting(line) {
        return match key {
            // PVE knows them and does not want them, or keeps them elsewhere
            b"lxc.rootfs.path" | b"lxc.rootfs.options" | b"lxc.environment.runtime" => Line::Nothing,
            _ => Line::Raw,
        };
    }
    if setting(line, b"description").is_some() {
        return Line::Nothing;
    }
    if is_snapstate(line) {
        return Line::Snapstate;
    }
    if setting(line, b"delete").is_some() {
        return Line::Delete;
    }
    key_and_value(line, b"_")
}

/// `[name]` with nothing but blanks behind it.
fn bracketed(line: &[u8]) -> Option<&[u8]> {
    let name = trim_end(line).strip_prefix(b"[")?.strip_suffix(b"]")?;
    (!name.contains(&b']')).then_some(name)
}

fn vm_header(line: &[u8]) -> Option<SectionKind> {
    let name = bracketed(line)?;
    if name.eq_ignore_ascii_case(b"pending") {
        return Some(SectionKind::Pending);
    }
    if name.eq_ignore_ascii_case(b"special:cloudinit") || name.eq_ignore_ascii_case(b"special:fleecing") {
        return Some(SectionKind::Special(lossy(&name[b"special:".len()..])));
    }
    Some(if is_snapshot_name(name) {
        SectionKind::Snapshot(lossy(name))
    } else {
        SectionKind::Unknown(lossy(name))
    })
}

/// An unknown header is no header in a container's config: the section goes on.
fn container_header(line: &[u8]) -> Option<SectionKind> {
    let name = bracketed(line)?;
    if name.eq_ignore_ascii_case(b"pve:pending") {
        return Some(SectionKind::Pending);
    }
    is_snapshot_name(name).then(|| SectionKind::Snapshot(lossy(name)))
}

/// `PVE::JSONSchema::CONFIGID_RE`.
fn is_snapshot_name(name: &[u8]) -> bool {
    let [first, rest @ ..] = name else { return false };
    first.is_ascii_alphabetic()
        && !rest.is_empty()
        && rest.iter().all(|&byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

/// The value of `key: value` for a fixed key, if it is not blank.
fn setting<'a>(line: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    let value = trim_end(trim_start(line.strip_prefix(key)?.strip_prefix(b":")?));
    (!value.is_empty()).then_some(value)
}

/// The key of a raw LXC line: `lxc.key: value` or `lxc.key = value`.
fn raw_setting(line: &[u8]) -> Option<&[u8]> {
    let rest = line.strip_prefix(b"lxc.")?;
    let is_key = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-.".contains(&byte);
    let length = rest.iter().take_while(|&&byte| is_key(byte)).count();
    let behind = &rest[length..];
    let separated = behind.starts_with(b":") || trim_start(behind).starts_with(b"=");
    (length > 0 && separated).then_some(&line[..b"lxc.".len() + length])
}

/// `snapstate: prepare` or `snapstate: delete` at the end of the line, whatever stands before it.
fn is_snapstate(line: &[u8]) -> bool {
    let line = trim_end(line);
    [&b"prepare"[..], b"delete"]
        .iter()
        .filter_map(|state| line.strip_suffix(*state))
        .any(|before| trim_end(before).ends_with(b"snapstate:"))
}

/// `key: value`, where keys are small letters, then `signs` too, then digits.
fn key_and_value<'a>(line: &'a [u8], signs: &[u8]) -> Line<'a> {
    let is_name = |byte: u8| byte.is_ascii_lowercase() || signs.contains(&byte);
    let name = line.iter().take_while(|&&byte| is_name(byte)).count();
    let key = name + super::perl::leading_digits(&line[name..]);
    let starts_well = line.first().is_some_and(u8::is_ascii_lowercase);
    let Some(rest) = line[key..].strip_prefix(b":").filter(|rest| starts_well && !rest.is_empty()) else {
        return Line::Unparsable;
    };
    let value = trim_end(trim_start(rest));
    // PVE's regex wants one character: where all are blanks it takes the last
    let value = if value.is_empty() { &rest[rest.len() - 1..] } else { value };
    Line::KeyValue(&line[..key], value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn main_of(kind: Kind, text: &str) -> Vec<(String, String)> {
        let entries = read(kind, "f", text.as_bytes()).main.entries;
        entries.into_iter().map(|entry| (entry.key, lossy(&entry.value))).collect()
    }

    fn keys(kind: Kind, text: &str) -> Vec<String> {
        main_of(kind, text).into_iter().map(|(key, _)| key).collect()
    }

    #[test]
    fn keys_and_values() {
        let pair = |key: &str, value: &str| vec![(key.to_owned(), value.to_owned())];
        for kind in [Kind::Qemu, Kind::Lxc] {
            assert_eq!(main_of(kind, "scsi0: A"), pair("scsi0", "A"));
            assert_eq!(main_of(kind, "scsi0:A \x0b\r\n"), pair("scsi0", "A"));
            assert_eq!(main_of(kind, "lock: \r\n"), pair("lock", "\r"));
            assert_eq!(main_of(kind, "a: b: c"), pair("a", "b: c"));
            for not in
                ["scsi0 : A", " scsi0: A", "SCSI0: A", "scsi0:", "scsi0= A", "0a: A", "a0b: A", "_a: A"]
            {
                assert_eq!(main_of(kind, not), [], "{not}");
                assert_eq!(read(kind, "f", not.as_bytes()).notes.len(), 1, "{not}");
            }
        }
        assert_eq!(keys(Kind::Qemu, "a-b: x"), ["a-b"]);
        assert_eq!(keys(Kind::Lxc, "a-b: x").len(), 0);
    }

    #[test]
    fn a_byte_order_mark_loses_only_the_first_line() {
        assert_eq!(keys(Kind::Qemu, "\u{feff}scsi0: A\nscsi1: B"), ["scsi1"]);
    }

    #[test]
    fn a_lone_carriage_return_ends_no_line() {
        assert_eq!(main_of(Kind::Qemu, "a: b\rc: d"), [("a".to_owned(), "b\rc: d".to_owned())]);
    }

    #[test]
    fn no_break_spaces_are_no_blanks() {
        assert_eq!(keys(Kind::Qemu, "\u{a0}a: b\n\u{85}a: b\n\u{2028}a: b").len(), 0);
    }

    #[test]
    fn comments_descriptions_and_swallowed_lines() {
        for kind in [Kind::Qemu, Kind::Lxc] {
            let text =
                "#scsi0: A\ndescription: x\nscsi1: B,snapstate: prepare\nscsi2: snapstate:delete \na: b";
            assert_eq!(keys(kind, text), ["a"]);
            assert_eq!(read(kind, "f", text.as_bytes()).notes.len(), 2);
            assert_eq!(keys(kind, "delete: scsi0\nsnapstate: other"), ["snapstate"]);
        }
    }

    #[test]
    fn vm_sections() {
        let text = "a: 1\n[pending] \nb: 2\n[snap-1]\nc: 3\n[special:CloudInit]\nd: 4\n[pve:pending]\ne: 5\n[s2]\nf: 6";
        let config = read(Kind::Qemu, "f", text.as_bytes());
        let kinds: Vec<_> = config.others.iter().map(|section| section.kind.clone()).collect();
        let expected = [
            SectionKind::Pending,
            SectionKind::Snapshot("snap-1".to_owned()),
            SectionKind::Special("CloudInit".to_owned()),
            SectionKind::Unknown("pve:pending".to_owned()),
            SectionKind::Snapshot("s2".to_owned()),
        ];
        assert_eq!(kinds, expected);
        assert_eq!(config.main.entries.len(), 1);
        assert_eq!(config.others[3].entries.len(), 0);
        assert_eq!(config.others[4].entries[0].line, 11);
    }

    #[test]
    fn broken_headers_are_no_headers() {
        for kind in [Kind::Qemu, Kind::Lxc] {
            for header in [" [snap]", "[snap] x", "[snap]]", "[snap"] {
                assert_eq!(keys(kind, &format!("{header}\na: b")), ["a"], "{header}");
            }
        }
    }

    #[test]
    fn an_unknown_header_ends_only_a_vms_section() {
        assert_eq!(keys(Kind::Qemu, "[a b]\na: b").len(), 0);
        assert_eq!(keys(Kind::Lxc, "[a b]\na: b"), ["a"]);
        let config = read(Kind::Lxc, "f", b"[PENDING]\na: b\n[PVE:Pending]\nc: d");
        assert_eq!(config.others[0].kind, SectionKind::Snapshot("PENDING".to_owned()));
        assert_eq!(config.others[1].kind, SectionKind::Pending);
    }

    #[test]
    fn raw_lxc_lines_are_no_settings() {
        assert_eq!(
            keys(Kind::Lxc, "lxc.mount.entry: x\nlxc.idmap = u 0 1 2\nlxc.a b\nlxcmp0: x"),
            ["lxcmp0"]
        );
    }

    #[test]
    fn some_keys_kill_the_container_parser() {
        let fatal = |text: &str| read(Kind::Lxc, "f", text.as_bytes()).fatal.map(|note| note.line);
        assert_eq!(fatal("snapshots: x\n[snap]"), Some(2));
        assert_eq!(fatal("snapshots: x\n[pve:pending]"), None);
        assert_eq!(fatal("lxc: x\nlxc.idmap: u"), Some(2));
        assert_eq!(read(Kind::Qemu, "f", b"snapshots: x\n[snap]").fatal, None);
    }

    #[test]
    fn doubled_sections_are_noted() {
        let config = read(Kind::Qemu, "f", b"[snap]\n[PENDING]\n[snap]\n");
        assert_eq!(config.notes.len(), 1);
        assert_eq!(config.notes[0].line, 3);
    }
}
