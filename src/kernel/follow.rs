//! Follows `/dev/kmsg`: what the kernel says of rbd from now on, as it says it.

use crate::kernel::kmsg;
use crate::kernel::messages::{self, KernelLine};
use crate::reading::Failure;
use crate::sys::root::Root;
use anyhow::Error;
use std::thread;
use std::time::Duration;

/// How long to wait where nothing more is there to be read at once. The kernel could wake a reader for each of its lines,
/// of which few are about rbd.
const PAUSE: Duration = Duration::from_secs(1);

/// What was heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// A line of krbd's that is understood.
    Line(KernelLine),
    /// The log can be read (again).
    Readable,
    /// It cannot, and why.
    Unreadable(Failure),
}

/// Follows the log until `hear` says no. A log that cannot be read is tried again.
pub fn follow(root: &Root, mut hear: impl FnMut(Heard) -> bool) {
    let mut mark = None;
    let mut known = None;
    loop {
        let read = match mark.as_mut() {
            None => kmsg::mark(root).map(|new| {
                mark = Some(new);
                Vec::new()
            }),
            Some(mark) => kmsg::Mark::since(mark),
        };
        let readable = read.is_ok();
        let news = match read {
            Ok(lines) => {
                let lines = lines.iter().filter_map(|line| messages::parse(&line.text)).map(Heard::Line);
                let first = (known != Some(true)).then_some(Heard::Readable);
                first.into_iter().chain(lines).collect()
            }
            Err(error) => {
                mark = None;
                if known == Some(false) { Vec::new() } else { vec![Heard::Unreadable(failure(&error))] }
            }
        };
        known = Some(readable);
        if !news.into_iter().all(&mut hear) {
            return;
        }
        thread::sleep(PAUSE);
    }
}

fn failure(error: &Error) -> Failure {
    let errno = error.root_cause().downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
    match errno {
        Some(errno) => Failure::errno("follow /dev/kmsg", errno),
        None => Failure::new("follow /dev/kmsg", format!("{error:#}")),
    }
}
