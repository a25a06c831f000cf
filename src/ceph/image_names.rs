//! The names of a pool's images, from its directory object (`cls_rbd`, method `dir_list`).

use crate::ceph::encoding::{Answer, text};
use crate::ceph::ffi::Pool;
use crate::ceph::objects::DIRECTORY;
use crate::reading::Failure;
use nix::libc::{ENOENT, ERANGE};

/// Entries that are asked for at a time; the answer has to fit into 4 KiB.
const PAGE: u64 = 32;

/// The names of a pool's images, in order. A pool in which there never was an image has none.
///
/// # Errors
/// What was tried, and Ceph's errno; 22 for an answer that is not understood.
pub fn image_names(pool: &Pool) -> Result<Vec<String>, Failure> {
    Ok(images(pool)?.into_iter().map(|(name, _)| name).collect())
}

/// The same, each with its id.
pub fn images(pool: &Pool) -> Result<Vec<(String, String)>, Failure> {
    let failure = |errno| Failure::errno("list the images of a pool", errno);
    let (mut images, mut page) = (Vec::new(), PAGE);
    loop {
        let last = images.last().map_or("", |(name, _): &(String, String)| name.as_str());
        match pool.class_call(DIRECTORY, "dir_list", &request(last, page)) {
            Ok(answer) => {
                let more = parse(&answer)
                    .ok_or_else(|| Failure::new("list the images of a pool", "answer not understood"))?;
                if more.is_empty() {
                    return Ok(images);
                }
                images.extend(more);
            }
            Err(errno) if errno.abs() == ENOENT => return Ok(images),
            Err(errno) if errno.abs() == ERANGE && page > 1 => page /= 2,
            Err(errno) => return Err(failure(errno)),
        }
    }
}

/// The name after which to begin, and how many at most.
fn request(after: &str, at_most: u64) -> Vec<u8> {
    [&text(after)[..], &at_most.to_le_bytes()].concat()
}

/// A map of names to ids.
fn parse(answer: &[u8]) -> Option<Vec<(String, String)>> {
    let mut answer = Answer::new(answer);
    (0..answer.u32()?).map(|_| Some((answer.text()?, answer.text()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_an_answer_cut_short_is_none() {
        let answer = b"\x02\0\0\0\x01\0\0\0a\x02\0\0\0id\x01\0\0\0b\0\0\0\0";
        let named = |name: &str, id: &str| (name.to_owned(), id.to_owned());
        assert_eq!(parse(answer), Some(vec![named("a", "id"), named("b", "")]));
        assert!((0..answer.len()).all(|length| parse(&answer[..length]).is_none()));
        assert_eq!(request("a", 2), b"\x01\0\0\0a\x02\0\0\0\0\0\0\0");
    }
}
