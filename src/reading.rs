//! A fact read from outside: known, or not known and why. An error while reading is never taken for "no".

use serde::{Deserialize, Serialize};
use std::fmt;

/// What came of reading one fact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(rename = "Reading_of_{T}"))]
#[serde(rename_all = "snake_case")]
pub enum Reading<T> {
    /// The outside answered.
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
    /// On our own: a limit, an option, a client that could not be set up. It tells nothing of the outside.
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

impl Failure {
    /// A failure with an errno (either sign; Ceph returns it negative), described by the C library's words for it.
    pub fn errno(what: impl Into<String>, errno: i32) -> Self {
        let errno = errno.saturating_abs();
        let words = nix::errno::Errno::from_raw(errno).desc();
        Self { origin: Origin::Outside, what: what.into(), errno: Some(errno), message: words.to_owned() }
    }

    /// A failure without an errno.
    pub fn new(what: impl Into<String>, message: impl Into<String>) -> Self {
        Self { origin: Origin::Outside, what: what.into(), errno: None, message: message.into() }
    }

    /// Our own time was over before anything came back.
    pub fn late(what: impl Into<String>) -> Self {
        Self::new(what, "the time for it was over before it was done; this node may be slow").on(Origin::Late)
    }

    /// The other side did not answer in the time that it was given (110 ETIMEDOUT).
    pub fn is_no_answer(&self) -> bool {
        self.origin == Origin::Outside && self.errno == Some(nix::libc::ETIMEDOUT)
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
        match self.errno {
            Some(errno) => write!(f, "{}: ({errno}) {}", self.what, self.message),
            None => write!(f, "{}: {}", self.what, self.message),
        }
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_names_errno_in_either_sign() {
        let failure = Failure::errno("open x", -108);
        assert_eq!(failure.to_string(), "open x: (108) Cannot send after transport endpoint shutdown");
    }
}
