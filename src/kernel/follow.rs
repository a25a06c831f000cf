//! Follows `/dev/kmsg`: what the kernel says of rbd from now on, as it says it.

use crate::kernel::kmsg::{self, Mark};
use crate::kernel::messages::{self, KernelLine};
use crate::reading::Failure;
use crate::sys::root::Root;
use anyhow::Error;
use std::thread;
use std::time::Duration;

/// How long to wait where nothing more is there to be read at once. The kernel could wake a reader for each of its lines,
/// of which few are about rbd.
const PAUSE: Duration = Duration::from_secs(1);

/// What has come since the last time that the kernel's log was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// A line of krbd's that is understood.
    Line(KernelLine),
    /// The log can be read (again).
    Readable,
    /// It cannot, and why.
    Unreadable(Failure),
}

/// A reader of the log, from where it ended when the reader was made.
pub struct Follower {
    root: Root,
    mark: Result<Mark, Failure>,
    /// Whether it could be read, as was said last.
    said: Option<bool>,
}

impl Follower {
    /// Remembers where the log ends now.
    pub fn new(root: &Root) -> Self {
        Self { root: root.clone(), mark: mark(root), said: None }
    }

    /// Follows the log until `hear` says no. A log that cannot be read is tried again.
    pub fn follow(mut self, mut hear: impl FnMut(Heard) -> bool) {
        while self.news().into_iter().all(&mut hear) {
            thread::sleep(PAUSE);
            if self.mark.is_err() {
                self.mark = mark(&self.root);
            }
        }
    }

    /// What was written since the last call.
    fn news(&mut self) -> Vec<Heard> {
        let read = match &mut self.mark {
            Ok(mark) => mark.since().map_err(|error| failure(&error)),
            Err(failure) => Err(failure.clone()),
        };
        let said = self.said.replace(read.is_ok());
        match read {
            Ok(lines) => {
                let lines = lines.iter().filter_map(|line| messages::parse(&line.text)).map(Heard::Line);
                (said != Some(true)).then_some(Heard::Readable).into_iter().chain(lines).collect()
            }
            Err(failure) => {
                self.mark = Err(failure.clone());
                if said == Some(false) { Vec::new() } else { vec![Heard::Unreadable(failure)] }
            }
        }
    }
}

fn mark(root: &Root) -> Result<Mark, Failure> {
    kmsg::mark(root).map_err(|error| failure(&error))
}

fn failure(error: &Error) -> Failure {
    let errno = error.root_cause().downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
    match errno {
        Some(errno) => Failure::errno("follow /dev/kmsg", errno),
        None => Failure::new("follow /dev/kmsg", format!("{error:#}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn write(root: &Root, line: &str) {
        let mut log =
            std::fs::File::options().create(true).append(true).open(root.path("/dev/kmsg")).unwrap();
        writeln!(log, "4,1,1,-;{line}").unwrap();
    }

    #[test]
    fn what_is_written_after_the_reader_was_made_is_heard() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        std::fs::create_dir(root.path("/dev")).unwrap();
        write(&root, "rbd: rbd0: write result -5");
        let mut follower = Follower::new(&root);
        write(&root, "rbd: rbd1: write result -5");
        write(&root, "rbd: something else");
        let news = follower.news();
        assert_eq!(news.len(), 2, "{news:?}");
        assert_eq!(news.first(), Some(&Heard::Readable));
        assert_eq!(follower.news(), []);
    }

    #[test]
    fn a_log_that_cannot_be_read_is_said_once_and_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        let mut follower = Follower::new(&root);
        let unreadable = Heard::Unreadable(Failure::errno("follow /dev/kmsg", 2));
        assert_eq!(follower.news(), [unreadable]);
        assert_eq!(follower.news(), []);
        std::fs::create_dir(root.path("/dev")).unwrap();
        write(&root, "rbd: rbd0: write result -5");
        follower.mark = mark(&root);
        assert_eq!(follower.news(), [Heard::Readable]);
    }
}
