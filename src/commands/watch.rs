//! `watch`: says what happens to the disks of running guests. It looks and listens, and changes nothing.

use crate::ceph::keep::{Ask, Kept};
use crate::cli::Watch as Options;
use crate::exit::Exit;
use crate::kernel::follow::{Follower, Heard};
use crate::observe::running;
use crate::observe::running::Running;
use crate::pve::connection::Connection;
use crate::pve::node::node_name;
use crate::reading::{Failure, Origin, Reading};
use crate::report::{json, watch as report};
use crate::settings::Settings;
use crate::sys::root::Root;
use crate::sys::time;
use crate::sys::write::unsynced;
use crate::watch::Watch;
use crate::watch::seen::ClusterLook;
use crate::watch::trouble::Event;
use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// Lines of the kernel's log that wait to be read here; more than these wait in the kernel.
const WAITING: usize = 1000;
/// How long lines are gathered: what kills a client writes dozens at once.
const GATHER: Duration = Duration::from_millis(250);

/// A way to a cluster, with its connection, or why there is none.
type Way = Result<(Connection, Kept), Failure>;

/// What the watcher waits for.
enum Input {
    Kernel(Heard),
    Stop,
}

/// Watches until it is told to stop (SIGTERM, SIGINT, SIGHUP).
pub fn run(root: &Root, options: &Options) -> Result<Exit> {
    let (tell, told) = sync_channel(WAITING);
    let stop = tell.clone();
    // Before any other thread is there: each of them is to leave the signals to the one that waits for them.
    wait_for_the_end(move || drop(stop.send(Input::Stop)))?;
    listen(root, tell);
    let metrics = options.metrics.clone().map(Metrics::new);
    let every = Duration::from_secs(options.every);
    let mut watcher = Watcher {
        root: root.clone(),
        json: options.json,
        plain: !systemd_journal_logger::connected_to_journal(),
        watch: Watch::default(),
        kept: BTreeMap::new(),
        settings: None,
        metrics,
    };
    watcher.follow(&told, every);
    watcher.metrics = None;
    // Closing a connection to a cluster that is silent takes as long as Ceph likes.
    Exit::Ready.leave()
}

fn wait_for_the_end(stop: impl FnOnce() + Send + 'static) -> Result<()> {
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect();
    signals.thread_block().context("cannot set signals aside")?;
    thread::spawn(move || {
        let _ = signals.wait();
        stop();
    });
    Ok(())
}

/// Hears the kernel from now on. Where that ends, by a fault of ours, the watcher ends: its unit starts it again.
fn listen(root: &Root, tell: SyncSender<Input>) {
    struct Deaf(SyncSender<Input>);
    impl Drop for Deaf {
        fn drop(&mut self) {
            let _ = self.0.send(Input::Stop);
        }
    }
    let follower = Follower::new(root);
    thread::spawn(move || {
        let deaf = Deaf(tell);
        follower.follow(|heard| deaf.0.send(Input::Kernel(heard)).is_ok());
    });
}

struct Watcher {
    root: Root,
    json: bool,
    /// Tell in words on stdout, since stdout is not systemd's journal already.
    plain: bool,
    watch: Watch,
    /// A connection for each way to reach a cluster, by the words for it.
    kept: BTreeMap<String, Way>,
    /// The settings as they were last understood.
    settings: Option<Settings>,
    metrics: Option<Metrics>,
}

impl Watcher {
    fn follow(&mut self, told: &Receiver<Input>, every: Duration) {
        let mut next = Instant::now();
        loop {
            if next <= Instant::now() {
                self.look();
                next = Instant::now() + self.watch.hurry().map_or(every, |soon| soon.min(every));
            }
            match told.recv_timeout(next.saturating_duration_since(Instant::now())) {
                Ok(Input::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {}
                Ok(Input::Kernel(first)) => {
                    let Some(heard) = gathered(first, told) else { return };
                    self.hear(&heard);
                    if let Some(soon) = self.watch.hurry() {
                        next = next.min(Instant::now() + soon);
                    }
                }
            }
        }
    }

    /// What the kernel said, on what is mapped now: a device may be newer than the last look.
    fn hear(&mut self, heard: &[Heard]) {
        self.look_at_node();
        let now = time::since_boot();
        for one in heard {
            let events = match one {
                Heard::Line(line) => self.watch.lines(now, std::slice::from_ref(line)),
                Heard::Readable => self.watch.kernel_log(now, None),
                Heard::Unreadable(failure) => self.watch.kernel_log(now, Some(failure.clone())),
            };
            self.tell(&events);
        }
        self.write_metrics();
    }

    fn look(&mut self) {
        self.look_at_node();
        let looks = self.ask_clusters();
        let events = self.watch.clusters(time::since_boot(), looks);
        self.tell(&events);
        if let Some(metrics) = &mut self.metrics {
            metrics.looked_at = time::now().as_secs();
        }
        self.write_metrics();
    }

    fn look_at_node(&mut self) {
        let settings = self.read_settings();
        let Running { look, clusters } = running::look(&self.root, &settings);
        if let Some(clusters) = clusters {
            self.keep(clusters);
        }
        let events = self.watch.node(time::since_boot(), look);
        self.tell(&events);
    }

    fn read_settings(&mut self) -> Reading<Settings> {
        match Settings::load(&self.root) {
            Ok(settings) => {
                self.settings = Some(settings.clone());
                Reading::Known(settings)
            }
            Err(error) => {
                Reading::Unknown(Failure::new("read the settings", format!("{error:#}")).on(Origin::Own))
            }
        }
    }

    /// Keeps the connections that are still wanted; the others are closed.
    fn keep(&mut self, clusters: BTreeMap<String, Result<Connection, Failure>>) {
        let mut before = std::mem::take(&mut self.kept);
        for (place, connection) in clusters {
            let kept = match connection {
                Err(failure) => Err(failure),
                Ok(connection) => Ok(match before.remove(&place) {
                    Some(Ok((old, kept))) if old == connection => (old, kept),
                    _ => (connection.clone(), Kept::new(connection)),
                }),
            };
            self.kept.insert(place, kept);
        }
        if !before.is_empty() {
            thread::spawn(move || drop(before));
        }
    }

    /// All at once, so that one that is silent does not keep the others waiting.
    fn ask_clusters(&self) -> Vec<ClusterLook> {
        let general = self.settings.clone().unwrap_or_default().for_guest(0, std::iter::empty::<&str>());
        let limit = general.connect_timeout;
        let asks: Vec<(&String, &Way, Vec<Ask>)> =
            self.kept.iter().map(|(place, kept)| (place, kept, self.watch.asks(place))).collect();
        thread::scope(|scope| {
            let asked = asks.iter().map(|(place, kept, asks)| {
                let answer = move || match kept {
                    Ok((_, kept)) => kept.ask(asks, limit),
                    Err(failure) => Reading::Unknown(failure.clone()),
                };
                (*place, scope.spawn(answer))
            });
            let asked: Vec<_> = asked.collect();
            let own =
                || Failure::new("ask a cluster", "the thread panicked; this is a fault of rbd-preflight");
            let joined = asked.into_iter().map(|(place, thread)| ClusterLook {
                cluster: place.clone(),
                answer: thread.join().unwrap_or_else(|_| Reading::Unknown(own().on(Origin::Own))),
            });
            joined.collect()
        })
    }

    fn tell(&self, events: &[Event]) {
        for event in events {
            let line = report::line(event);
            to_journal(event, &line);
            if self.json {
                outln!("{}", json::in_one_line(&report::json(event, time::now().as_secs())));
            } else if self.plain {
                outln!("{line}");
            }
        }
    }

    fn write_metrics(&mut self) {
        let node = node_name(&self.root).unwrap_or_default();
        if let Some(metrics) = &mut self.metrics {
            if metrics.looked_at > 0 {
                metrics.write(&report::metrics(
                    &node,
                    self.watch.standing(),
                    self.watch.disks(),
                    metrics.looked_at,
                ));
            }
        }
    }
}

/// What else the kernel says within a moment; `None` when the watcher is told to stop.
fn gathered(first: Heard, told: &Receiver<Input>) -> Option<Vec<Heard>> {
    let until = Instant::now() + GATHER;
    let mut heard = vec![first];
    while heard.len() < WAITING {
        match told.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(Input::Kernel(more)) => heard.push(more),
            Ok(Input::Stop) | Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) => break,
        }
    }
    Some(heard)
}

/// One entry, with fields; the logger is systemd's journal, or there is none.
fn to_journal(event: &Event, line: &str) {
    let fields = report::fields(event);
    let values: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let level = report::level(event);
    log::logger().log(
        &log::Record::builder()
            .level(level)
            .target("rbd_preflight::watch")
            .args(format_args!("{line}"))
            .key_values(&values.as_slice())
            .build(),
    );
}

/// A file for node_exporter's textfile collector: there, whole and not older than the last look, or not there at all.
struct Metrics {
    file: PathBuf,
    looked_at: u64,
    complained: bool,
}

impl Metrics {
    /// What an earlier watcher left is not true any more.
    fn new(file: PathBuf) -> Self {
        let _ = std::fs::remove_file(&file);
        Self { file, looked_at: 0, complained: false }
    }

    fn write(&mut self, text: &str) {
        // The collector takes up whatever ends in .prom, so the file gets its name when it is whole.
        let readable = |new: &std::fs::File| new.set_permissions(Permissions::from_mode(0o644));
        let written = unsynced(&self.file, ".rbd-preflight.", text.as_bytes(), readable);
        match written.with_context(|| format!("cannot write {}", self.file.display())) {
            Ok(()) => self.complained = false,
            Err(error) if !self.complained => {
                self.complained = true;
                let _ = std::fs::remove_file(&self.file);
                errln!(
                    "rbd-preflight: cannot write the metrics: {error:#}; watching on without them, and trying again"
                );
            }
            Err(_) => {}
        }
    }
}

impl Drop for Metrics {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}
