//! One change: locked against other runs, justified by a fresh look, in the journal before and after.

use crate::act::run_lock::{Busy, Holder, Name, RunLock};
use crate::ceph::image::{ImageFacts, ImageReading};
use crate::ceph::lock::{NotBroken, break_stale_lock};
use crate::diagnose::owner;
use crate::journal::{Intent, Journal, RunId};
use crate::kernel::kmsg::{self, LogLine};
use crate::kernel::messages::{self, About};
use crate::kernel::{Mapping, device, sysfs};
use crate::observe::survey::{DiskFacts, Survey};
use crate::plan::rule::Rule;
use crate::pve::lock::{self, Held};
use crate::rbd::action::{Action, ActionReport, ActionResult, Change, is_same_image};
use crate::rbd::identity::Same;
use crate::rbd::lock::Locker;
use crate::reading::{Reading, errno_text, error_text};
use crate::sys::process::{Outcome, Runner, Status, Stream};
use crate::sys::root::Root;
use crate::sys::time::now;
use anyhow::Result;
use nix::errno::Errno;
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How long to wait for another run that is at the same image.
const LOCK_PATIENCE: Duration = Duration::from_secs(20);

/// How long PVE's lock of a guest may be held; its tasks wait 10 s for it.
const PVE_PATIENCE: Duration = Duration::from_secs(7);

/// How long udev may take to make the link to a device.
const LINK_PATIENCE: Duration = Duration::from_secs(10);

/// What it takes to make a change.
pub struct Hands<'a> {
    /// Where the journal and the locks are.
    pub root: &'a Root,
    /// The guest that it is done for.
    pub vmid: u32,
    /// This run, for the journal.
    pub run: &'a RunId,
    /// What justifies it.
    pub rule: &'a dyn Rule,
    /// Runs `rbd`.
    pub runner: &'a (dyn Runner + Sync),
    /// The time that is left for one command.
    pub time_limit: Duration,
    /// That is less than a command is given by the settings.
    pub cut: bool,
}

impl Hands<'_> {
    /// Makes changes if a fresh look at their images still asks for them: one, or several maps or unmaps at once. `look` reads
    /// the images anew; `progress` is given what a rebuild says of itself, in percent.
    pub fn make_all(
        &self,
        batch: &[Action],
        look: &(dyn Fn() -> Result<Survey> + Sync),
        progress: &(dyn Fn(u64) + Sync),
    ) -> Vec<ActionReport> {
        self.try_make_all(batch, look, progress).unwrap_or_else(|error| {
            let why = error_text(&error);
            let result = if error.is::<Busy>() { ActionResult::Busy { why } } else { withheld(why) };
            batch.iter().map(|action| ActionReport::new(action.clone(), result.clone())).collect()
        })
    }

    fn try_make_all(
        &self,
        batch: &[Action],
        look: &(dyn Fn() -> Result<Survey> + Sync),
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Vec<ActionReport>> {
        let holder = Holder { pid: std::process::id(), vmid: Some(self.vmid) };
        let patience = LOCK_PATIENCE.min(self.time_limit);
        let locks = RunLock::acquire_all(self.root, batch.iter().flat_map(lock_names), holder, patience)?;
        let survey = look()?;
        let wanted = self.rule.wanted(&survey);
        let asked = |action: &Action| {
            wanted.iter().any(|fresh| is_same_image(fresh, action) && fresh.change == action.change)
        };
        let left_at_it = AtomicBool::new(false);
        let log = kmsg::mark(self.root).ok().filter(|_| batch.iter().any(Action::is_kernels));
        let mut reports: Vec<ActionReport> = std::thread::scope(|scope| {
            let made = batch.iter().map(|action| {
                let asked = asked(action);
                let (survey, left_at_it) = (&survey, &left_at_it);
                scope.spawn(move || match asked {
                    true => self.make(action, survey, look, progress, left_at_it),
                    false => withheld(self.not_wanted(survey, action)),
                })
            });
            let threads: Vec<_> = made.collect();
            let results = threads.into_iter().map(|thread| {
                thread.join().unwrap_or_else(|_| withheld("rbd-preflight itself failed; see stderr".into()))
            });
            batch
                .iter()
                .cloned()
                .zip(results)
                .map(|(action, result)| ActionReport::new(action, result))
                .collect()
        });
        if left_at_it.into_inner() {
            // Until the end of this process, and with it of what it has left at work.
            std::mem::forget(locks);
        }
        if let Some(mut log) = log {
            let mapped = survey.node.kernel.mappings.known().into_iter().flat_map(|all| all.iter());
            attribute(&log.since().unwrap_or_default(), &mapped.map(|m| m.id).collect(), &mut reports);
        }
        Ok(reports)
    }

    /// Why a change that was planned is no longer wanted.
    fn not_wanted(&self, survey: &Survey, action: &Action) -> String {
        let why = self.rule.why_not(survey, action);
        why.unwrap_or_else(|| "a fresh look at the image no longer asks for it".to_owned())
    }

    /// One change that a fresh look has asked for: in the journal before it is made, and after.
    fn make(
        &self,
        action: &Action,
        survey: &Survey,
        look: &dyn Fn() -> Result<Survey>,
        progress: &(dyn Fn(u64) + Sync),
        left_at_it: &AtomicBool,
    ) -> ActionResult {
        if let Some(why) = owner::not_yet(survey, action) {
            return withheld(why);
        }
        let journal = Journal::open(self.root);
        let begun = Instant::now();
        let intent = self.intent(survey, action);
        let ticket = match journal.intent(self.run, now().as_secs(), intent) {
            Ok(ticket) => ticket,
            Err(error) => return withheld(error_text(&error)),
        };
        let result = match &action.change {
            Change::BreakLock { owner } => self.break_lock(survey, action, &Locker::from(owner), left_at_it),
            Change::Unmap { device } => self.unmap(survey, action, *device, progress),
            _ => self.run(action, progress),
        };
        let result = if in_doubt(action, &result) && made(action, look) { done() } else { result };
        let result = with_duration(result, begun.elapsed());
        // The change is made: a journal that cannot be written now is no reason to say that it was not.
        if let Err(error) = journal.outcome(ticket, now().as_secs(), json!(result), begun.elapsed()) {
            log::error!("{}: the change was made, but {}", action.target.spec, error_text(&error));
        }
        log::info!("guest {}: {} [{}]", self.vmid, result.of(&action.describe()), action.command_line());
        result
    }

    fn intent(&self, survey: &Survey, action: &Action) -> Intent {
        let facts = image_of(survey, action);
        let before = facts.map(|f| json!({ "features": f.features, "flags": f.flags, "lock": f.lock }));
        Intent {
            action: json!(action),
            guest: Some(self.vmid),
            guest_uuid: survey.guest.uuid.clone(),
            image: Some(action.target.spec.to_string()),
            before: before.unwrap_or_default(),
            command: Some(action.command_line()),
            undoes: self.rule.undoes().cloned(),
        }
    }

    fn break_lock(
        &self,
        survey: &Survey,
        action: &Action,
        owner: &Locker,
        left_at_it: &AtomicBool,
    ) -> ActionResult {
        let Some(storage) = survey.storages.get(&action.target.storage) else {
            return withheld("its storage is gone from storage.cfg".into());
        };
        match break_stale_lock(&storage.connection, &action.target.spec, owner, self.time_limit) {
            Ok(()) => done(),
            Err(not_broken) => {
                left_at_it.fetch_or(matches!(not_broken, NotBroken::StillAtIt(_)), Ordering::Relaxed);
                not_broken_result(&not_broken)
            }
        }
    }

    /// Unmaps a device if it still is what was judged: its number may be another image's by now. Meanwhile PVE is kept
    /// from beginning anything with the guests that name the image: one of them might open the device just then.
    fn unmap(
        &self,
        survey: &Survey,
        action: &Action,
        device: u32,
        progress: &(dyn Fn(u64) + Sync),
    ) -> ActionResult {
        let guests = survey.node.mapping_users.get(&device).into_iter().flat_map(|users| users.locked.keys());
        let mut held = Vec::new();
        for vmid in guests {
            match lock::hold(self.root, *vmid) {
                Ok(Some(lock)) => held.push(lock),
                Ok(None) => {
                    return withheld(format!("somebody has come to guest {vmid} (PVE's lock of it is held)"));
                }
                Err(failure) => return withheld(failure.to_string()),
            }
        }
        match still_there(&sysfs::mapping_now(self.root, device), action) {
            Some(why) => withheld(format!("/dev/rbd{device} {why}")),
            None => holding_for(PVE_PATIENCE, held, || self.run(action, progress)),
        }
    }

    fn run(&self, action: &Action, progress: &(dyn Fn(u64) + Sync)) -> ActionResult {
        let Some(command) = action.command() else { return withheld("there is no command for it".into()) };
        let command = command.deadline(self.time_limit);
        let mut watch = |stream, bytes: &[u8]| {
            if let (Stream::Stderr, Some(percent)) = (stream, percent(bytes)) {
                progress(percent);
            }
        };
        match self.runner.run_watched(&command, &mut watch) {
            Ok(outcome) if outcome.success() => {
                if action.is_map() {
                    await_link(self.root, action);
                }
                done()
            }
            // A map that had less time than the settings give it has not been found to fail: PVE makes its own.
            Ok(outcome) if outcome.status == Status::TimedOut && self.cut && action.is_map() => withheld(
                format!("there was no time left for it; ended after {} s", outcome.duration.as_secs()),
            ),
            Ok(outcome) => failed(&outcome),
            Err(error) => ActionResult::Failed { errno: None, message: error_text(&error) },
        }
    }
}

/// Why a device is not the image any more that an unmap was planned for; `None` if it is.
fn still_there(now: &Reading<Option<Mapping>>, action: &Action) -> Option<String> {
    match now {
        Reading::Known(Some(mapping)) if mapping.identity().may_be(action.target.identity()) => None,
        Reading::Known(Some(mapping)) => Some(format!("is another image by now: {}", mapping.spec())),
        Reading::Known(None) => Some("is not mapped any more".to_owned()),
        Reading::Unknown(failure) => Some(format!("cannot be read again: {failure}")),
    }
}

/// Does something under PVE's locks, and gives them back when it is done, or after a while.
fn holding_for<T: Send>(patience: Duration, held: Vec<Held>, work: impl FnOnce() -> T + Send) -> T {
    let (done, ended) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        // Where no thread can be had they are given back at once.
        let keeper = std::thread::Builder::new().spawn_scoped(scope, move || {
            let _ = ended.recv_timeout(patience);
            drop(held);
        });
        if let Err(error) = keeper {
            log::warn!("PVE's locks are not held: {error}");
        }
        let result = work();
        drop(done);
        result
    })
}

/// The locks between runs that a change needs: its image's.
fn lock_names(action: &Action) -> Vec<Name> {
    Name::image(action.target.identity())
}

/// udev makes the link that PVE looks for shortly after the map. One that is there may still lead to another device.
fn await_link(root: &Root, action: &Action) {
    let target = &action.target;
    let leads_there = || {
        let device = device::linked(root, &target.fsid, &target.spec)?;
        let now = sysfs::mapping_now(root, device::number(&device)?);
        Some(still_there(&now, action).is_none())
    };
    let until = Instant::now() + LINK_PATIENCE;
    while leads_there() != Some(true) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Gives each failed change of the kernel's what the kernel said meanwhile, less what it said of other images and of
/// disks that were mapped before. The number of a map that failed is not known, so a line may still be another's that
/// was mapped at the same time: whoever reads it compares it with the errno.
fn attribute(log: &[LogLine], mapped_before: &BTreeSet<u32>, reports: &mut [ActionReport]) {
    let images: Vec<String> = reports.iter().map(|r| r.action.target.spec.image.clone()).collect();
    for report in reports.iter_mut().filter(|r| r.action.is_kernels() && !r.done()) {
        let own = &report.action.target.spec.image;
        let device = match report.action.change {
            Change::Unmap { device } => Some(device),
            _ => None,
        };
        let others = |line: &&LogLine| match messages::parse(&line.text).map(|line| line.about) {
            Some(About::Image(image)) => image != *own && images.contains(&image),
            Some(About::Disk(disk)) => Some(disk) != device && mapped_before.contains(&disk),
            _ => false,
        };
        report.kernel_log = log.iter().filter(|line| !others(line)).map(|line| line.text.clone()).collect();
    }
}

/// A refusal of our own is no failure: nothing was tried.
fn not_broken_result(not_broken: &NotBroken) -> ActionResult {
    match not_broken {
        NotBroken::MayNotBlocklist(failure)
        | NotBroken::HeldExternally(failure)
        | NotBroken::BlocklistExpiry(failure)
        | NotBroken::Failed(failure)
        | NotBroken::StillAtIt(failure) => {
            ActionResult::Failed { errno: failure.errno, message: failure.to_string() }
        }
        NotBroken::Changed(_)
        | NotBroken::Watched(_)
        | NotBroken::External(_)
        | NotBroken::NoExclusiveLock => withheld(not_broken.to_string()),
    }
}

/// Whether a change may have been made although it failed. `rbd` writes features first and tells the
/// image's watchers last. A watcher that died less than 30 s ago cannot be told, and `rbd` ends with 110; a command
/// that was killed says nothing at all. After 22 nothing was made: the features stood as they were wanted, or cannot.
/// A lock is in doubt where nothing but the time says that it failed.
fn in_doubt(action: &Action, result: &ActionResult) -> bool {
    let of_features = matches!(action.change, Change::DisableFeatures { .. } | Change::EnableFeatures { .. });
    let of_lock = matches!(action.change, Change::BreakLock { .. });
    match result {
        ActionResult::Failed { errno, .. } if of_features => *errno != Some(Errno::EINVAL as i32),
        ActionResult::Failed { errno, .. } if of_lock => *errno == Some(Errno::ETIMEDOUT as i32),
        _ => false,
    }
}

/// A change of features, or of the lock, is made if the image says so.
fn made(action: &Action, look: &dyn Fn() -> Result<Survey>) -> bool {
    let Ok(survey) = look() else { return false };
    let Some(facts) = image_of(&survey, action) else { return false };
    match &action.change {
        Change::DisableFeatures { features } => !facts.features.intersects(*features),
        Change::EnableFeatures { features } => facts.features.contains(*features),
        Change::BreakLock { owner } => {
            let owner = Locker::from(owner);
            facts.lock.known().is_some_and(|lock| !lock.lockers.contains(&owner))
        }
        _ => false,
    }
}

/// What was seen of the very image that a change is for, whatever its name leads to by now.
fn image_of<'a>(survey: &'a Survey, action: &Action) -> Option<&'a ImageFacts> {
    let is_it = |disk: &&DiskFacts| survey.is_of(disk, action.target.identity()) == Same::Yes;
    let disk = survey.disks.iter().find(is_it)?;
    match &disk.reading {
        Some(ImageReading::Found(facts)) => Some(facts),
        _ => None,
    }
}

/// What `rbd` says of a rebuild: `Object Map Rebuild: 10% complete...`.
fn percent(bytes: &[u8]) -> Option<u64> {
    let text = String::from_utf8_lossy(bytes);
    let before = text.rsplit_once("% complete")?.0;
    before.rsplit(' ').next()?.parse().ok()
}

fn failed(outcome: &Outcome) -> ActionResult {
    let said = outcome.said();
    let message = match outcome.status {
        Status::Exit(code) => format!("{}: {said}", exit_in_words(code, &said)),
        status => format!("{status} after {} s: {said}", outcome.duration.as_secs()),
    };
    ActionResult::Failed { errno: outcome.errno(), message }
}

/// What `rbd` exits with: 1 for a command line that it does not take, else the lowest eight bits of the errno, which it has
/// whole in its last words (`rbd: map failed: (524) Unknown error 524`, exit 12).
fn exit_in_words(code: i32, said: &str) -> String {
    let whole = said.rsplit('(').find_map(|rest| rest.split_once(')')?.0.parse().ok());
    match whole.filter(|errno: &i32| errno & 0xff == code) {
        Some(errno) => errno_text(errno),
        None if code == 1 => "exit code 1".to_owned(),
        None => errno_text(code),
    }
}

fn withheld(why: String) -> ActionResult {
    ActionResult::Withheld { why }
}

fn done() -> ActionResult {
    ActionResult::Done { duration_ms: 0 }
}

fn with_duration(result: ActionResult, took: Duration) -> ActionResult {
    match result {
        ActionResult::Done { .. } => {
            ActionResult::Done { duration_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX) }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rbd::action::{LockOwner, Target};
    use crate::rbd::spec::Spec;

    fn failed_with(change: Change) -> ActionReport {
        let spec = Spec { pool: "rbd".into(), namespace: None, image: "a".into() };
        let (storage, fsid, id) = ("s".into(), "f".into(), Some("1".into()));
        let target = Target { storage, fsid, spec, id, rbd_arguments: vec![] };
        ActionReport::new(
            Action { target, change },
            ActionResult::Failed { errno: Some(110), message: "".into() },
        )
    }

    #[test]
    fn what_rbd_exits_with_is_its_errno_cut_to_eight_bits_unless_it_is_the_command_line() {
        for (code, said, expected) in [
            (
                108,
                "rbd: map failed: (108) Cannot send after transport endpoint shutdown",
                "error 108 (ESHUTDOWN, Cannot send after transport endpoint shutdown)",
            ),
            (
                12,
                "rbd: map failed: (524) Unknown error 524",
                "error 524 (ENOTSUPP, Operation is not supported)",
            ),
            (22, "rbd: (1) of (2) ", "error 22 (EINVAL, Invalid argument)"),
            (1, "rbd: unrecognised option '--x'", "exit code 1"),
            (1, "rbd: list failed: (1) Operation not permitted", "error 1 (EPERM, Operation not permitted)"),
        ] {
            assert_eq!(exit_in_words(code, said), expected);
        }
    }

    #[test]
    fn what_the_kernel_says_of_another_guests_disk_is_not_this_maps() {
        let line = |text: &str| LogLine { sequence: 0, since_boot: Duration::ZERO, text: text.to_owned() };
        let log = [
            line("rbd: rbd7: post-acquire action failed: -2"),
            line("rbd: rbd8: peer will not release lock"),
        ];
        let map = failed_with(Change::Map { noshare: false, rxbounce: false });
        let mut reports = [map, failed_with(Change::Unmap { device: 7 })];
        attribute(&log, &BTreeSet::from([7]), &mut reports);
        assert_eq!(reports[0].kernel_log, ["rbd: rbd8: peer will not release lock"]);
        assert_eq!(reports[1].kernel_log.len(), 2);
    }

    /// A node on which /dev/rbd0 is the image of this id, and guest 516 names it.
    fn node(image_id: &str) -> (tempfile::TempDir, Root) {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        let device = [
            ("pool", "rbd"),
            ("name", "a"),
            ("current_snap", "-"),
            ("cluster_fsid", "f"),
            ("client_addr", "10.0.0.1:0/1"),
            ("client_id", "client1"),
            ("image_id", image_id),
        ];
        for (file, text) in device {
            let file = root.path(format!("/sys/bus/rbd/devices/0/{file}"));
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        }
        std::fs::create_dir_all(root.path("/var/lock/qemu-server")).unwrap();
        (directory, root)
    }

    /// What was seen there before: nobody is at guest 516, which names the image.
    fn seen() -> Survey {
        serde_json::from_value(json!({
            "schema": 1, "taken_at": 0,
            "node": {
                "name": "pve1", "quorate": { "known": true }, "running": { "known": false },
                "kernel": { "release": "6.14", "version": [6, 14], "module_loaded": true,
                            "supported": { "known": [] }, "mappings": { "known": [] } },
                "mapping_users": { "0": { "holders": { "known": [] }, "guests": { "516": { "known": false } },
                                          "locked": { "516": { "known": false } } } },
            },
            "guest": { "vmid": 516, "kind": "qemu", "node": "pve1", "name": null, "lock": null, "template": false,
                       "hookscript": null, "ostype": null, "disks": [], "refusals": [], "notes": [] },
            "storages": {}, "clusters": [], "disks": [],
        }))
        .unwrap()
    }

    struct Asks(Action);

    impl Rule for Asks {
        fn wanted(&self, _: &Survey) -> Vec<Action> {
            vec![self.0.clone()]
        }

        fn why_not(&self, _: &Survey, _: &Action) -> Option<String> {
            None
        }
    }

    /// Notes whether PVE could begin something with guest 516 while the command ran.
    struct Notes<'a>(&'a Root, std::sync::Mutex<Vec<bool>>);

    impl Runner for Notes<'_> {
        fn run_watched(
            &self,
            command: &crate::sys::command::Command,
            _: &mut dyn FnMut(Stream, &[u8]),
        ) -> Result<Outcome> {
            let file = self.0.path("/var/lock/qemu-server/lock-516.conf");
            let pve = std::fs::File::open(file).map(|file| {
                nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock).is_ok()
            });
            self.1.lock().unwrap().push(pve.unwrap_or(true));
            Ok(Outcome {
                command: command.display(),
                status: Status::Exit(0),
                stdout: Vec::new(),
                stdout_truncated: false,
                stderr_tail: String::new(),
                duration: Duration::ZERO,
                survived_kill: false,
            })
        }
    }

    /// Unmaps /dev/rbd0 as the image 12ab; what came of it, and for each command whether PVE was shut out meanwhile.
    fn unmapped(root: &Root) -> (ActionResult, Vec<bool>) {
        let action = failed_with(Change::Unmap { device: 0 }).action;
        let runner = Notes(root, std::sync::Mutex::default());
        let (run, rule) = (RunId("r".into()), Asks(action.clone()));
        let time_limit = Duration::from_secs(5);
        let hands =
            Hands { root, vmid: 516, run: &run, rule: &rule, runner: &runner, time_limit, cut: false };
        let result = hands.make_all(&[action], &|| Ok(seen()), &|_| ()).remove(0).result;
        (result, runner.1.into_inner().unwrap())
    }

    #[test]
    fn a_device_whose_number_is_another_images_by_now_is_not_unmapped() {
        let (_directory, root) = node("34cd");
        let (result, commands) = unmapped(&root);
        assert_eq!(result, withheld("/dev/rbd0 is another image by now: rbd/a".into()));
        assert!(commands.is_empty());
        std::fs::remove_dir_all(root.path("/sys/bus/rbd/devices/0")).unwrap();
        assert_eq!(unmapped(&root).0, withheld("/dev/rbd0 is not mapped any more".into()));
        let (_directory, root) = node("1");
        assert!(matches!(unmapped(&root).0, ActionResult::Done { .. }));
    }

    #[test]
    fn pve_begins_nothing_with_a_guest_whose_disk_is_being_unmapped() {
        let (_directory, root) = node("1");
        let (result, pve_could) = unmapped(&root);
        assert!(
            matches!(result, ActionResult::Done { .. }),
            "nobody was at the guest since the boot: {result:?}"
        );
        assert_eq!(pve_could, [true]);
        let pve = std::fs::File::create(root.path("/var/lock/qemu-server/lock-516.conf")).unwrap();
        let (_, pve_could) = unmapped(&root);
        assert_eq!(pve_could, [false]);
        let _pve = nix::fcntl::Flock::lock(pve, nix::fcntl::FlockArg::LockExclusiveNonblock).unwrap();
        let (result, commands) = unmapped(&root);
        assert_eq!(result, withheld("somebody has come to guest 516 (PVE's lock of it is held)".into()));
        assert!(commands.is_empty());
    }

    #[test]
    fn pves_lock_is_not_held_for_longer_than_pve_waits() {
        let (_directory, root) = node("1");
        let file = root.path("/var/lock/qemu-server/lock-516.conf");
        std::fs::write(&file, "").unwrap();
        let held = lock::hold(&root, 516).unwrap().into_iter().collect();
        let free = || {
            let file = std::fs::File::open(&file).unwrap();
            nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock).is_ok()
        };
        let patience = Duration::from_millis(50);
        let freed = holding_for(patience, held, || {
            let until = Instant::now() + Duration::from_secs(20);
            let began = free();
            while !free() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(5));
            }
            (began, free())
        });
        assert_eq!(freed, (false, true));
    }

    #[test]
    fn a_lock_is_broken_if_its_owner_is_gone_whatever_the_time_said() {
        let owner =
            Locker { client: "client.4".into(), cookie: "auto 7".into(), address: "10.0.0.1:0/1".into() };
        let action = failed_with(Change::BreakLock { owner: LockOwner::from(&owner) }).action;
        let late = || ActionResult::Failed { errno: Some(110), message: "late".into() };
        let denied = ActionResult::Failed { errno: Some(13), message: "no".into() };
        let survey = |lockers: &[Locker]| {
            let mut survey = json!(seen());
            let lock = json!({ "tag": "internal", "exclusive": true, "lockers": lockers });
            survey["storages"]["s"] = json!({
                "section": { "id": "s", "pool": "rbd", "namespace": null, "data_pool": null, "krbd": true, "username": null,
                             "monhost": null, "content": [], "nodes": null, "disabled": false },
                "connection": { "conf": null, "mon_host": null, "user": "a", "keyring": null }, "cluster": 0 });
            survey["clusters"] = json!([{ "known": { "fsid": "f", "blocklist": { "known": [] },
                "health": { "known": { "status": "HEALTH_OK", "checks": [] } },
                "default_features": { "known": [] }, "blocklist_expire_seconds": { "known": 0 } } }]);
            survey["disks"] = json!([{
                "key": "scsi0", "volid": "s:a", "storage": "s", "pool": "rbd", "namespace": null, "image": "a",
                "krbd_storage": true, "access": "krbd", "role": "disk", "pve_drops": null, "shared_with": [],
                "reading": { "found": {
                    "id": "1", "format": 2, "size": 1, "object_size": 1, "objects": 1, "features": [],
                    "op_features": { "known": [] }, "snapshots": { "known": [] }, "parents": { "known": [] },
                    "flags": { "known": { "object_map_invalid": false, "fast_diff_invalid": false } },
                    "lock": { "known": lock }, "watchers": { "known": [] }, "mirroring": { "known": null },
                    "migration": { "known": null } } } }]);
            Ok(serde_json::from_value::<Survey>(survey)?)
        };
        let broken = |result: &ActionResult, lockers: &[Locker]| {
            in_doubt(&action, result) && made(&action, &|| survey(lockers))
        };
        assert!(broken(&late(), &[]));
        assert!(!broken(&late(), &[owner]));
        assert!(!broken(&denied, &[]), "somebody else has freed it");
    }

    #[test]
    fn progress_is_read_from_what_rbd_writes() {
        assert_eq!(
            percent(b"\rObject Map Rebuild: 10% complete...\rObject Map Rebuild: 35% complete..."),
            Some(35)
        );
        assert_eq!(percent(b"2026-11-23T05:00 librbd: something"), None);
    }
}
