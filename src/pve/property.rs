//! Property strings (`file,key=value,…`) and the schemas they are checked against.
//!
//! `PVE::JSONSchema::parse_property_string` and `check_prop`: one wrong option loses the whole string.

use super::perl::{all_blank, boolean, excerpt, is_true};
use super::words::Dropped;
use std::collections::HashSet;

/// What a property string may hold.
pub(crate) struct Schema {
    /// The option that a part without `=` is for.
    pub default_key: &'static str,
    /// All options, in groups that several schemas share.
    pub groups: &'static [&'static [(&'static str, ValueType)]],
    /// Options that must be there.
    pub required: &'static [&'static str],
}

/// What a value may be.
#[derive(Clone, Copy)]
pub(crate) enum ValueType {
    /// Another name of an option.
    Alias(&'static str),
    /// `1`, `on`, `yes`, `true` or the contrary.
    Boolean,
    /// An integer, perhaps with a least value.
    Integer(Option<f64>),
    /// A decimal number.
    Number,
    /// One of some words.
    Enum(&'static [&'static str]),
    /// Anything that a function accepts, and what it accepts in words.
    Valid(fn(&[u8]) -> bool, &'static str),
}

impl Schema {
    fn option(&self, key: &[u8]) -> Option<(&'static str, ValueType)> {
        let mut all = self.groups.iter().flat_map(|group| group.iter());
        all.find(|(name, _)| name.as_bytes() == key).copied()
    }
}

/// A property string taken apart.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Properties<'v> {
    values: Vec<(&'static str, &'v [u8])>,
    unknown: Vec<&'v [u8]>,
    wrong: Option<String>,
}

impl<'v> Properties<'v> {
    /// An option's value; booleans are `1` or `0`.
    pub fn get(&self, key: &str) -> Option<&'v [u8]> {
        self.values.iter().find(|(name, _)| *name == key).map(|(_, value)| *value)
    }

    /// An option is set to something that Perl takes for true.
    pub fn is_true(&self, key: &str) -> bool {
        self.get(key).is_some_and(is_true)
    }

    /// Why PVE rejects the string, if it does.
    pub fn rejected(&self) -> Option<Dropped> {
        if let Some(why) = &self.wrong {
            return Some(Dropped { why: why.clone(), unknown_option: false });
        }
        let names: Vec<String> = self.unknown.iter().take(4).map(|name| excerpt(name)).collect();
        let why = match &names[..] {
            [] => return None,
            [name] => format!("unknown option {name}"),
            _ => format!("unknown options {}", names.join(", ")),
        };
        Some(Dropped { why, unknown_option: true })
    }

    fn complain(&mut self, why: impl FnOnce() -> String) {
        self.wrong.get_or_insert_with(why);
    }

    fn set(&mut self, key: &'static str, value: &'v [u8]) {
        self.values.retain(|(name, _)| *name != key);
        self.values.push((key, value));
    }
}

/// Takes a property string apart and checks it; what is wrong is in the result, next to what could be read.
pub(crate) fn parse<'v>(schema: &Schema, text: &'v [u8]) -> Properties<'v> {
    let mut found = Properties::default();
    let mut unknown = HashSet::new();
    let mut bare = false;
    for part in text.split(|&byte| byte == b',').filter(|part| !all_blank(part)) {
        match part.iter().position(|&byte| byte == b'=') {
            None => bare_part(schema, &mut found, part, std::mem::replace(&mut bare, true)),
            Some(at) if at == 0 || at + 1 == part.len() => {
                found.complain(|| format!("an option without name or value: {}", excerpt(part)));
            }
            Some(at) => option(schema, &mut found, &mut unknown, &part[..at], &part[at + 1..]),
        }
    }
    for key in schema.required {
        if found.get(key).is_none() {
            found.complain(|| format!("no {key}"));
        }
    }
    for (key, value) in found.values.clone() {
        if let Some((_, of)) = schema.option(key.as_bytes()).filter(|(_, of)| !accepts(*of, value)) {
            found.complain(|| format!("{key}={} is not {}", excerpt(value), wanted(of)));
        }
    }
    found
}

/// A part without `=`. A first value of `0` does not count as one, for Perl.
fn bare_part<'v>(schema: &Schema, found: &mut Properties<'v>, part: &'v [u8], doubled: bool) {
    if doubled || found.is_true(schema.default_key) {
        return found.complain(|| format!("a second {}: {}", schema.default_key, excerpt(part)));
    }
    found.set(schema.default_key, part);
}

fn option<'v>(
    schema: &Schema,
    found: &mut Properties<'v>,
    unknown: &mut HashSet<&'v [u8]>,
    key: &'v [u8],
    value: &'v [u8],
) {
    let target = match schema.option(key) {
        Some((_, ValueType::Alias(target))) => target,
        Some((name, ValueType::Boolean)) => {
            let value = boolean(value).map_or(value, |yes| if yes { b"1" } else { b"0" });
            return once(found, name, value);
        }
        Some((name, _)) => name,
        None if LEGACY.contains(&key) => {
            return found.complain(|| format!("the legacy option {}", excerpt(key)));
        }
        None if unknown.insert(key) => return found.unknown.push(key),
        None => return found.complain(|| format!("option {} twice", excerpt(key))),
    };
    once(found, target, value);
}

/// Old disk geometry, which PVE refuses while it reads a config.
const LEGACY: [&[u8]; 4] = [b"cyls", b"heads", b"secs", b"trans"];

fn once<'v>(found: &mut Properties<'v>, key: &'static str, value: &'v [u8]) {
    if found.get(key).is_some() {
        return found.complain(|| format!("option {key} twice"));
    }
    found.set(key, value);
}

/// `PVE::JSONSchema::check_prop` for one value.
fn accepts(of: ValueType, value: &[u8]) -> bool {
    match of {
        ValueType::Alias(_) => true,
        ValueType::Boolean => matches!(value, b"0" | b"1"),
        ValueType::Integer(least) => is_integer(value) && least.is_none_or(|least| number(value) >= least),
        ValueType::Number => is_number(value),
        ValueType::Enum(words) => words.iter().any(|word| word.as_bytes() == value),
        ValueType::Valid(valid, _) => valid(value),
    }
}

fn wanted(of: ValueType) -> String {
    match of {
        ValueType::Alias(option) => option.to_owned(),
        ValueType::Boolean => "a boolean".to_owned(),
        ValueType::Integer(None) => "an integer".to_owned(),
        ValueType::Integer(Some(least)) => format!("an integer from {least} on"),
        ValueType::Number => "a number".to_owned(),
        ValueType::Enum(words) => format!("one of {}", words.join(", ")),
        ValueType::Valid(_, words) => words.to_owned(),
    }
}

fn unsigned(value: &[u8]) -> &[u8] {
    value.strip_prefix(b"+").or_else(|| value.strip_prefix(b"-")).unwrap_or(value)
}

fn all_digits(value: &[u8]) -> bool {
    !value.is_empty() && value.iter().all(u8::is_ascii_digit)
}

/// `PVE::JSONSchema::is_integer`.
pub(crate) fn is_integer(value: &[u8]) -> bool {
    all_digits(unsigned(value))
}

/// `PVE::JSONSchema::is_number`: digits with at most one point, and an exponent.
pub(crate) fn is_number(value: &[u8]) -> bool {
    let mut halves = unsigned(value).splitn(2, |byte| matches!(byte, b'e' | b'E'));
    let (mantissa, exponent) = (halves.next().unwrap_or_default(), halves.next());
    let (whole, fraction) = match mantissa.iter().position(|&byte| byte == b'.') {
        Some(point) => (&mantissa[..point], &mantissa[point + 1..]),
        None => (mantissa, &b""[..]),
    };
    let digits = [whole, fraction].concat();
    all_digits(&digits) && exponent.is_none_or(is_integer)
}

/// An integer's size; one too long for the type is as good as endless.
fn number(value: &[u8]) -> f64 {
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).unwrap_or(f64::NEG_INFINITY)
}

/// A size like `32G`, `1.5T`, `8GiB` (`PVE::JSONSchema::parse_size`).
pub(crate) fn is_size(value: &[u8]) -> bool {
    let bare = value.strip_suffix(b"iB").filter(|bare| bare.ends_with_any(b"KMGT")).unwrap_or(value);
    let bare = if bare.ends_with_any(b"KMGT") { &bare[..bare.len() - 1] } else { bare };
    match bare.iter().position(|&byte| byte == b'.') {
        Some(point) => all_digits(&bare[..point]) && all_digits(&bare[point + 1..]),
        None => all_digits(bare),
    }
}

/// The last byte is one of some.
trait EndsWithAny {
    fn ends_with_any(&self, bytes: &[u8]) -> bool;
}

impl EndsWithAny for [u8] {
    fn ends_with_any(&self, bytes: &[u8]) -> bool {
        self.last().is_some_and(|last| bytes.contains(last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEMA: Schema = Schema {
        default_key: "file",
        groups: &[&[
            ("file", ValueType::Valid(|_| true, "a volume")),
            ("volume", ValueType::Alias("file")),
            ("on", ValueType::Boolean),
            ("count", ValueType::Integer(Some(2.0))),
            ("size", ValueType::Valid(is_size, "a size")),
        ]],
        required: &["file"],
    };

    fn why(text: &str) -> Option<String> {
        parse(&SCHEMA, text.as_bytes()).rejected().map(|dropped| dropped.why)
    }

    #[test]
    fn commas_may_be_doubled_and_values_may_hold_an_equals_sign() {
        assert_eq!(why("X,,size=8G,"), None);
        assert_eq!(why(" ,X, \t,on=YES"), None);
        assert_eq!(parse(&SCHEMA, b"file=a=b").get("file"), Some(&b"a=b"[..]));
        assert_eq!(parse(&SCHEMA, b"X,on=Yes").get("on"), Some(&b"1"[..]));
    }

    #[test]
    fn a_blank_before_a_comma_belongs_to_the_value_and_one_behind_it_to_the_name() {
        assert_eq!(parse(&SCHEMA, b"X ,size=8G").get("file"), Some(&b"X "[..]));
        assert_eq!(why("X, size=8G").as_deref(), Some("unknown option  size"));
    }

    #[test]
    fn what_loses_the_whole_string() {
        for text in ["X,size=", "X,=8G", "X,Y", "X,file=Y", "file=X,volume=Y", "X,on=1,on=1", "size=8G", ""] {
            assert!(why(text).is_some(), "{text}");
        }
        for text in ["X,size=8G # note", "X,size=32g", "X,on=2", "X,count=1", "X,count=x", "X,cyls=1"] {
            let dropped = parse(&SCHEMA, text.as_bytes()).rejected().unwrap();
            assert!(!dropped.unknown_option, "{text}");
        }
    }

    #[test]
    fn zero_is_no_volume_to_perl() {
        assert_eq!(parse(&SCHEMA, b"file=0,X").get("file"), Some(&b"X"[..]));
        assert!(why("0,X").is_some());
    }

    #[test]
    fn unknown_options_alone_are_marked_so() {
        let unknown =
            |text: &str| parse(&SCHEMA, text.as_bytes()).rejected().map(|dropped| dropped.unknown_option);
        assert_eq!(unknown("X,new=1"), Some(true));
        assert_eq!(unknown("X,new=1,newer=2"), Some(true));
        assert_eq!(unknown("X,new=1,on=2"), Some(false));
        assert_eq!(unknown("X,new=1,new=1"), Some(false));
        assert_eq!(unknown("X"), None);
    }

    #[test]
    fn sizes() {
        for size in ["32G", "1.5T", "0", "8GiB", "4M", "528K"] {
            assert!(is_size(size.as_bytes()), "{size}");
        }
        for not in ["32g", "8iB", "", "G", ".5G", "5.", "8GB", "8 G", "-1"] {
            assert!(!is_size(not.as_bytes()), "{not}");
        }
    }

    #[test]
    fn numbers() {
        for number in ["1", "+1.5", "-.5", "5.", "1e3", "1.5E-3"] {
            assert!(is_number(number.as_bytes()), "{number}");
        }
        for not in ["", ".", "1.2.3", "e3", "1e", "1e1.5", "++1", "x"] {
            assert!(!is_number(not.as_bytes()), "{not}");
        }
        assert!(is_integer(b"-3") && !is_integer(b"3.0") && !is_integer(b""));
    }

    #[test]
    fn half_a_million_unknown_options_take_linear_time() {
        let text: Vec<u8> = (0..500_000).flat_map(|n| format!("a{n}=1,").into_bytes()).collect();
        assert!(parse(&SCHEMA, &text).rejected().is_some());
    }
}
