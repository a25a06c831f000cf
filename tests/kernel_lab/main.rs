//! The hook against real kernels, a real Ceph and real crashes: every way in which a start can fail, seen to fail
//! without us and to end well, or refused, with us. `tests/run` gives it its two nodes; see tests/common/kernel.rs.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod by_hand;
mod images;
mod incident;
mod limits;
mod locks;
mod start;

use common::node::Ran;

/// Asserts how a hook ended and that it named all of this on stderr.
fn assert_said(ran: &Ran, code: i32, words: &[&str]) {
    assert_eq!(ran.code, code, "{ran:#?}");
    for word in words {
        assert!(ran.stderr.contains(word), "`{word}` is not in {ran:#?}");
    }
    assert_eq!(ran.stdout, "", "the hook speaks on stderr only");
}
