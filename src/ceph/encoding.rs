//! Ceph's own encoding of numbers and texts (`src/include/encoding.h`): little end first, a text after its length in four bytes.

/// What is left of an answer of Ceph's. Each read takes its part from the front, and is `None` where the answer is too short.
pub struct Answer<'a>(&'a [u8]);

impl<'a> Answer<'a> {
    /// An answer from its beginning.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*first)
    }

    /// A `u8`, such as the one before an optional value.
    pub fn u8(&mut self) -> Option<u8> {
        self.bytes().map(u8::from_le_bytes)
    }

    /// A `u32`, such as the number of things in a list.
    pub fn u32(&mut self) -> Option<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    /// A `u64`.
    pub fn u64(&mut self) -> Option<u64> {
        self.bytes().map(u64::from_le_bytes)
    }

    /// An `i64`.
    pub fn i64(&mut self) -> Option<i64> {
        self.bytes().map(i64::from_le_bytes)
    }

    /// A text. What is not UTF-8 in it is replaced.
    pub fn text(&mut self) -> Option<String> {
        let length = self.u32()?;
        let (text, rest) = self.0.split_at_checked(usize::try_from(length).ok()?)?;
        self.0 = rest;
        Some(String::from_utf8_lossy(text).into_owned())
    }

    /// The inside of a structure (`ENCODE_START`): what stands after its version, the oldest version that can read it, and its
    /// length. A later version adds its fields at the end.
    pub fn structure(&mut self) -> Option<Self> {
        let _versions: [u8; 2] = self.bytes()?;
        let length = self.u32()?;
        let (inside, rest) = self.0.split_at_checked(usize::try_from(length).ok()?)?;
        self.0 = rest;
        Some(Self(inside))
    }
}

/// A text as it stands in a request.
pub fn text(text: &str) -> Vec<u8> {
    let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
    [&length.to_le_bytes()[..], text.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_structure_is_skipped_by_its_length_and_what_is_cut_short_is_none() {
        let bytes = b"\x02\x01\x07\0\0\0\x02\0\0\0abX\x09\0\0\0\0\0\0\0";
        let mut answer = Answer::new(bytes);
        let mut inside = answer.structure().unwrap();
        assert_eq!((inside.text().as_deref(), inside.u8(), inside.u8()), (Some("ab"), Some(b'X'), None));
        assert_eq!((answer.u64(), answer.u8()), (Some(9), None));
        assert!((0..13).all(|length| Answer::new(&bytes[..length]).structure().is_none()));
    }

    #[test]
    fn a_text_is_read_as_it_was_written() {
        assert_eq!(Answer::new(&text("101e4cccf697")).text().as_deref(), Some("101e4cccf697"));
        assert_eq!(Answer::new(b"\x0c\0\0\x00101e").text(), None);
    }
}
