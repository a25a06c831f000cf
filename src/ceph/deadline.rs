//! A worker thread with a deadline: no call into Ceph can hold the caller longer than that.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use crate::reading::Failure;

/// Ceph's own timeouts count from a little later than ours; its errno says more than our clock, so it gets this long.
const GRACE: Duration = Duration::from_millis(500);

/// Whether anybody still waits for the worker.
#[derive(Clone, Default)]
pub struct Wanted(Arc<AtomicBool>);

impl Wanted {
    /// False from the moment when the caller has given up: nothing new may be begun then.
    pub fn still(&self) -> bool {
        !self.0.load(Ordering::Acquire)
    }
}

/// Runs `work` on a thread of its own and gives its news to `hear`, until the work is over (true) or the deadline and
/// a short grace have passed (false). A worker that is stuck in Ceph is left behind; it ends with Ceph's own timeouts,
/// or with the process. What `work` returns is dropped on its thread after the work is over: nobody need wait until images and
/// connections that were only read are closed.
///
/// # Errors
/// No thread could be started.
pub fn run<News: Send + 'static, Rest>(
    deadline: Duration,
    work: impl FnOnce(&Sender<News>, &Wanted) -> Rest + Send + 'static,
    mut hear: impl FnMut(News),
) -> Result<bool, Failure> {
    let until = Instant::now() + deadline + GRACE;
    let (tell, told) = mpsc::channel();
    let wanted = Wanted::default();
    let worker = wanted.clone();
    thread::Builder::new()
        .name("ceph".to_owned())
        .spawn(move || {
            let rest = work(&tell, &worker);
            drop(tell);
            drop(rest);
        })
        .map_err(|error| Failure::io("start a thread", &error))?;
    loop {
        match told.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(news) => hear(news),
            Err(RecvTimeoutError::Disconnected) => return Ok(true),
            Err(RecvTimeoutError::Timeout) => {
                wanted.0.store(true, Ordering::Release);
                return Ok(false);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_in_time_is_heard_to_its_end() {
        let mut heard = Vec::new();
        let ended = run(
            Duration::from_secs(5),
            |tell, _| (1..4).for_each(|n| tell.send(n).unwrap()),
            |n| heard.push(n),
        );
        assert_eq!((ended, heard), (Ok(true), vec![1, 2, 3]));
    }

    #[test]
    fn nobody_waits_until_what_was_read_is_closed() {
        struct Slow(mpsc::Receiver<()>);
        impl Drop for Slow {
            fn drop(&mut self) {
                let _ = self.0.recv();
            }
        }
        let (let_close, close) = mpsc::channel();
        let ended = run(Duration::from_secs(60), move |tell, _| (tell.send(1), Slow(close)).1, drop);
        assert_eq!(ended, Ok(true));
        drop(let_close);
    }

    #[test]
    fn work_that_is_stuck_is_left_behind_and_told_so() {
        let (tell_seen, seen) = mpsc::channel();
        let begun = Instant::now();
        let ended = run(
            Duration::ZERO,
            move |tell, wanted| {
                tell.send(1).unwrap();
                while wanted.still() {
                    thread::sleep(Duration::from_millis(5));
                }
                tell_seen.send(()).unwrap();
            },
            drop,
        );
        assert_eq!(ended, Ok(false));
        assert!(begun.elapsed() < Duration::from_secs(2));
        seen.recv_timeout(Duration::from_secs(5)).unwrap();
    }
}
