//! A fact read from outside: known, or not known and why. An error while reading is never taken for "no".

use serde::{Deserialize, Serialize};
use std::error::Error;
use std::path::Path;
use std::{fmt, io};

/// A positive errno.
pub type Errno = i32;

/// What came of reading one fact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(rename = "Reading_of_{T}"))]
#[serde(rename_all = "snake_case")]
pub enum Reading<T> {
    /// The outside answered, and this is the answer.
    Known(T),
    /// It did not; nothing may be concluded or changed on this.
    Unknown(Failure),
}

/// On whose side something failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// On the side that was asked: the cluster, the kernel, a file of PVE's.
    #[default]
    Outside,
    /// On our own: a limit, an option, a client that could not be set up. It says nothing of the outside.
    Own,
    /// A library of Ceph's is missing here, or too old.
    Library,
    /// The ceph.conf that PVE too would use is missing or may not be read.
    Conf,
    /// It is not known on whose: our own time was over, and no time limit of Ceph's had passed. This node may be slow.
    Late,
}

impl Origin {
    fn is_outside(&self) -> bool {
        *self == Self::Outside
    }
}

/// Why a fact is not known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Failure {
    /// On whose side it failed.
    #[serde(default, skip_serializing_if = "Origin::is_outside")]
    pub origin: Origin,
    /// What was tried, and on what: `open vm-516-disk-0`.
    pub what: String,
    /// The positive errno that came back, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno: Option<i32>,
    /// What came back, in words.
    pub message: String,
}

impl<T> Reading<T> {
    /// The fact, if it is known.
    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Unknown(_) => None,
        }
    }

    /// Why the fact is not known, if it is not.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Known(_) => None,
            Self::Unknown(failure) => Some(failure),
        }
    }
}

impl<T> From<Result<T, Failure>> for Reading<T> {
    fn from(result: Result<T, Failure>) -> Self {
        result.map_or_else(Self::Unknown, Self::Known)
    }
}

/// An errno (either sign) with its number, name and text, as people search for it:
/// `error 108 (ESHUTDOWN, Cannot send after transport endpoint shutdown)`.
pub fn errno_text(errno: i32) -> String {
    let errno = errno.saturating_abs();
    let name = match (errno, nix::errno::Errno::from_raw(errno)) {
        (ENOTSUPP, _) => "ENOTSUPP".to_owned(),
        (_, nix::errno::Errno::UnknownErrno) => return format!("error {errno}"),
        (_, known) => format!("{known:?}"),
    };
    format!("error {errno} ({name}, {})", errno_words(errno))
}

/// The kernel's own errno for what it does not support, for which the C library has neither name nor words (`include/linux/errno.h`).
pub const ENOTSUPP: Errno = 524;

/// What comes back where the user may not do it.
pub fn is_not_permitted(errno: Errno) -> bool {
    matches!(errno, nix::libc::EPERM | nix::libc::EACCES)
}

/// The C library's words for a positive errno: those that `rbd`, QEMU and the shell show.
fn errno_words(errno: i32) -> String {
    if errno == ENOTSUPP {
        return "Operation is not supported".to_owned();
    }
    let words = io::Error::from_raw_os_error(errno).to_string();
    words.strip_suffix(&format!(" (os error {errno})")).map_or(words.clone(), str::to_owned)
}

/// An error with all its causes, in one line, each errno as [`errno_text`] has it.
pub fn error_text(error: &anyhow::Error) -> String {
    error.chain().map(cause_text).collect::<Vec<_>>().join(": ")
}

/// An error without its causes.
pub fn cause_text(error: &(dyn Error + 'static)) -> String {
    match error.downcast_ref::<nix::errno::Errno>() {
        Some(errno) => errno_text(*errno as i32),
        None => with_errnos(&error.to_string()),
    }
}

/// Text in which the standard library's `No such file or directory (os error 2)`, however deep, has become [`errno_text`].
fn with_errnos(text: &str) -> String {
    const MARK: &str = " (os error ";
    let (mut done, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once(MARK) {
        let errno = after.split_once(')').and_then(|(errno, tail)| Some((errno.parse().ok()?, tail)));
        let known =
            errno.and_then(|(errno, tail)| Some((before.strip_suffix(&errno_words(errno))?, errno, tail)));
        match known {
            Some((before, errno, tail)) => {
                done += &format!("{before}{}", errno_text(errno));
                rest = tail;
            }
            None => {
                done += &format!("{before}{MARK}");
                rest = after;
            }
        }
    }
    done + rest
}

impl Failure {
    /// A failure with an errno (either sign; Ceph returns it negative), described by the C library's words for it.
    pub fn errno(what: impl Into<String>, errno: i32) -> Self {
        let errno = errno.saturating_abs();
        Self { origin: Origin::Outside, what: what.into(), errno: Some(errno), message: errno_words(errno) }
    }

    /// What the system answered when a file was to be read, or something like it.
    pub fn io(what: impl Into<String>, error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(errno) => Self::errno(what, errno),
            None => Self::new(what, cause_text(error)),
        }
    }

    /// The same with what was done to which path: `read /etc/pve/storage.cfg`.
    pub fn path(verb: &str, path: impl AsRef<Path>, error: &io::Error) -> Self {
        Self::io(format!("{verb} {}", path.as_ref().display()), error)
    }

    /// A failure without an errno.
    pub fn new(what: impl Into<String>, message: impl Into<String>) -> Self {
        Self { origin: Origin::Outside, what: what.into(), errno: None, message: message.into() }
    }

    /// Our own time was over before anything came back.
    pub fn late(what: impl Into<String>) -> Self {
        Self::new(what, "the time for it was over before it was done; this node may be slow").on(Origin::Late)
    }

    /// The other side answered with one of these errnos.
    pub fn is_one_of(&self, errnos: &[nix::errno::Errno]) -> bool {
        self.origin == Origin::Outside
            && self.errno.is_some_and(|errno| errnos.iter().any(|one| *one as i32 == errno))
    }

    /// The other side did not answer in the time that it was given (110 ETIMEDOUT).
    pub fn is_no_answer(&self) -> bool {
        self.is_one_of(&[nix::errno::Errno::ETIMEDOUT])
    }

    /// An OSD or a monitor did not let the user do it.
    pub fn is_refusal(&self) -> bool {
        self.origin == Origin::Outside && self.errno.is_some_and(is_not_permitted)
    }

    /// The same failure, known to be on this side.
    #[must_use]
    pub fn on(mut self, origin: Origin) -> Self {
        self.origin = origin;
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(errno) = self.errno else { return write!(f, "{}: {}", self.what, self.message) };
        write!(f, "{}: {}", self.what, errno_text(errno))?;
        // What is said beyond the errno's own words.
        match self.message.strip_prefix(&errno_words(errno)) {
            Some(rest) => f.write_str(rest),
            None => write!(f, ": {}", self.message),
        }
    }
}

impl Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_names_errno_in_either_sign() {
        let failure = Failure::errno("open x", -108);
        assert_eq!(
            failure.to_string(),
            "open x: error 108 (ESHUTDOWN, Cannot send after transport endpoint shutdown)"
        );
    }

    /// The words are those that Ceph's own programs show: nix has others for some of them.
    #[test]
    fn an_errno_has_its_number_its_name_and_the_words_that_people_search_for() {
        for (errno, text) in [
            (-5, "error 5 (EIO, Input/output error)"),
            (95, "error 95 (EOPNOTSUPP, Operation not supported)"),
            (524, "error 524 (ENOTSUPP, Operation is not supported)"),
            (4000, "error 4000"),
        ] {
            assert_eq!(errno_text(errno), text);
        }
    }

    #[test]
    fn an_error_says_the_errno_of_each_cause_in_full() {
        let io = io::Error::from_raw_os_error(13);
        let nested = io::Error::other(format!("{io} at path \"/x\""));
        let error = anyhow::Error::new(nested).context("cannot write");
        assert_eq!(error_text(&error), "cannot write: error 13 (EACCES, Permission denied) at path \"/x\"");
        let error = anyhow::Error::new(nix::errno::Errno::EBUSY).context("lock it");
        assert_eq!(error_text(&error), "lock it: error 16 (EBUSY, Device or resource busy)");
        for text in ["what (os error 13)", "(os error ", "a (os error x) b"] {
            assert_eq!(with_errnos(text), text);
        }
    }

    #[test]
    fn what_is_said_beyond_the_errno_is_shown_and_its_words_once() {
        let mut failure = Failure::io("read f", &io::Error::from_raw_os_error(2));
        failure.message += "; is it there?";
        assert_eq!(failure.to_string(), "read f: error 2 (ENOENT, No such file or directory); is it there?");
        failure.message = "the parent is gone".to_owned();
        assert_eq!(
            failure.to_string(),
            "read f: error 2 (ENOENT, No such file or directory): the parent is gone"
        );
    }
}
