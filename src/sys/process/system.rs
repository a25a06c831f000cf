//! Really runs commands.

use super::{Command, Outcome, Runner, STDERR_TAIL, STDOUT_LIMIT, Status, Stream, masked};
use anyhow::{Context, Result, anyhow};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// How often to look whether a child ended whose pipes are still open.
const TICK: Duration = Duration::from_millis(20);
/// How long output is still read after the child's end: a grandchild may keep the pipes open for ever.
const DRAIN: Duration = Duration::from_secs(1);
/// How long a killed child may take to go; in the kernel's uninterruptible sleep it does not.
const KILL: Duration = Duration::from_secs(5);
/// A key in base64 is shorter, in bytes.
const LONGEST_KEY: usize = 256;
/// Where programs are, besides `PATH`: a session by `su` or a daemon may lack the sbin directories.
const USUAL_PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs commands on this machine.
///
/// Each runs in a process group of its own and dies with this process, even if that is killed: `setpriv --pdeathsig`
/// asks the kernel for it. That signal goes off when the *thread* that started the child ends; `run` stays in that
/// thread until the child is gone, so it never goes off early.
#[derive(Debug, Clone, Copy, Default)]
pub struct System;

impl Runner for System {
    fn run_watched(&self, command: &Command, watch: &mut dyn FnMut(Stream, &[u8])) -> Result<Outcome> {
        let started = Instant::now();
        log::debug!("runs {}", command.display());
        let mut group = Group::spawn(command)?;
        let events = group.pump(command.stdin.clone())?;
        let mut output = Output::default();
        let deadline = started.checked_add(command.deadline).unwrap_or(started + Duration::from_secs(86_400));
        let mut ended = group.collect(&events, &mut output, watch, deadline)?;
        let timed_out = ended.is_none();
        if timed_out {
            group.kill();
            ended = group.collect(&events, &mut output, watch, Instant::now() + KILL)?;
        }
        let stderr_tail = output.stderr_tail();
        let outcome = Outcome {
            command: command.display(),
            // A child that ended itself just before it was killed did what it says.
            status: match ended {
                Some(ended) if !timed_out || ended.signal() != Some(Signal::SIGKILL as i32) => status(ended),
                _ => Status::TimedOut,
            },
            stdout: output.stdout,
            stdout_truncated: output.truncated,
            stderr_tail,
            duration: started.elapsed(),
            survived_kill: ended.is_none(),
        };
        log::debug!("{}: {} after {} ms", outcome.command, outcome.status, outcome.duration.as_millis());
        Ok(outcome)
    }
}

/// A running child and its process group; dropped before the child's end, it kills both.
struct Group {
    child: Child,
    reaped: bool,
}

/// A piece of output, as a thread hands it over.
type Chunk = (Stream, Vec<u8>);

/// What was written so far.
#[derive(Default)]
struct Output {
    stdout: Vec<u8>,
    truncated: bool,
    stderr: Vec<u8>,
    stderr_truncated: bool,
}

impl Group {
    fn spawn(command: &Command) -> Result<Self> {
        let (program, args) = command_line(command)?;
        let mut process = std::process::Command::new(program);
        process.args(args).process_group(0).env("LC_ALL", "C");
        for (name, value) in &command.env {
            match value {
                Some(value) => process.env(name, value),
                None => process.env_remove(name),
            };
        }
        process.stdin(if command.stdin.is_some() { Stdio::piped() } else { Stdio::null() });
        process.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = process.spawn().with_context(|| format!("cannot run {}", command.display()))?;
        Ok(Self { child, reaped: false })
    }

    /// Threads that move input and output. They end with the pipes; one whose pipe a grandchild keeps stays behind.
    fn pump(&mut self, input: Option<Vec<u8>>) -> Result<Receiver<Chunk>> {
        let (sender, events) = sync_channel(64);
        if let Some(pipe) = self.child.stdout.take() {
            let sender = sender.clone();
            thread::Builder::new().spawn(move || pump(Stream::Stdout, pipe, &sender))?;
        }
        if let Some(pipe) = self.child.stderr.take() {
            thread::Builder::new().spawn(move || pump(Stream::Stderr, pipe, &sender))?;
        }
        if let (Some(mut pipe), Some(input)) = (self.child.stdin.take(), input) {
            // A child that does not read its input is no fault: it says itself what it thinks of it.
            thread::Builder::new().spawn(move || drop(pipe.write_all(&input)))?;
        }
        Ok(events)
    }

    /// Collects output until the child ended and its pipes are closed or [`DRAIN`] passed; `None` at the limit.
    fn collect(
        &mut self,
        events: &Receiver<Chunk>,
        output: &mut Output,
        watch: &mut dyn FnMut(Stream, &[u8]),
        mut limit: Instant,
    ) -> Result<Option<ExitStatus>> {
        let mut ended = None;
        let mut open = true;
        loop {
            if ended.is_none() {
                ended = self.child.try_wait().context("cannot learn how a command ended")?;
                if ended.is_some() {
                    self.reaped = true;
                    limit = Instant::now() + DRAIN;
                }
            }
            let left = limit.saturating_duration_since(Instant::now());
            if left.is_zero() || (ended.is_some() && !open) {
                return Ok(ended);
            }
            if !open {
                // The child closed its output, most likely because it is just ending.
                thread::sleep(left.min(Duration::from_millis(1)));
                continue;
            }
            match events.recv_timeout(left.min(TICK)) {
                Ok((stream, bytes)) => {
                    output.take(stream, &bytes);
                    watch(stream, &bytes);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => open = false,
            }
        }
    }

    /// Kills the child and all of its group. The child is not reaped yet, so its number cannot be another's.
    fn kill(&self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            // It fails only if the group is gone, which is what is wanted.
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.reaped {
            return;
        }
        self.kill();
        let limit = Instant::now() + Duration::from_millis(200);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < limit {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Output {
    fn take(&mut self, stream: Stream, bytes: &[u8]) {
        match stream {
            Stream::Stdout => {
                let room = STDOUT_LIMIT - self.stdout.len();
                self.truncated |= bytes.len() > room;
                self.stdout.extend_from_slice(&bytes[..bytes.len().min(room)]);
            }
            Stream::Stderr => {
                self.stderr.extend_from_slice(bytes);
                let surplus = self.stderr.len().saturating_sub(STDERR_TAIL + 2 * LONGEST_KEY);
                self.stderr_truncated |= surplus > 0;
                self.stderr.drain(..surplus);
            }
        }
    }

    /// The end of standard error, fit to be kept and shown.
    fn stderr_tail(&self) -> String {
        // What is cut off in its midst may be a key's second half, which nothing tells for one.
        let whole = if self.stderr_truncated {
            self.stderr.get(LONGEST_KEY..).unwrap_or_default()
        } else {
            &self.stderr
        };
        let text = masked(&printable(whole));
        let surplus = text.len().saturating_sub(STDERR_TAIL);
        let begin = (surplus..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or_default();
        text[begin..].to_owned()
    }
}

/// Hands on what comes out of a pipe until it ends or nobody listens any more.
fn pump(stream: Stream, mut pipe: impl Read, events: &SyncSender<Chunk>) {
    let mut buffer = [0; 16 << 10];
    loop {
        match pipe.read(&mut buffer) {
            Ok(0) => return,
            Ok(n) if events.send((stream, buffer[..n].to_vec())).is_err() => return,
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

fn status(ended: ExitStatus) -> Status {
    match (ended.code(), ended.signal()) {
        (Some(code), _) => Status::Exit(code),
        (None, signal) => Status::Signal(signal.unwrap_or_default()),
    }
}

/// Text fit for a terminal: progress lines that overwrite each other become lines, other controls a question mark.
fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes).replace("\r\n", "\n").replace('\r', "\n");
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '?' } else { c }).collect()
}

/// What is really executed: the program's path, behind `setpriv` if there is one.
fn command_line(command: &Command) -> Result<(PathBuf, Vec<OsString>)> {
    let program = find(&command.program).ok_or_else(|| anyhow!(not_found(&command.program)))?;
    let Some(setpriv) = find("setpriv") else { return Ok((program, command.args.clone())) };
    let mut args: Vec<OsString> = ["--pdeathsig", "KILL", "--"].map(OsString::from).into();
    args.push(program.into_os_string());
    args.extend_from_slice(&command.args);
    Ok((setpriv, args))
}

/// Where a program is: in the `PATH`, or where programs usually are.
pub fn find(program: &str) -> Option<PathBuf> {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(if path.is_empty() { "" } else { ":" });
    path.push(USUAL_PATH);
    which::which_in(program, Some(path), "/").ok()
}

fn not_found(program: &str) -> String {
    match package(program) {
        Some(package) => format!("there is no program `{program}` here: install the package {package}"),
        None => format!("there is no program `{program}` here"),
    }
}

/// The Debian package that holds a program.
fn package(program: &str) -> Option<&'static str> {
    Some(match program {
        "rbd" | "ceph" | "rados" | "ceph-conf" => "ceph-common",
        "qm" => "qemu-server",
        "pct" => "pve-container",
        "pvesm" => "libpve-storage-perl",
        "pvesh" | "pvenode" => "pve-manager",
        "pvecm" => "pve-cluster",
        "ha-manager" => "pve-ha-manager",
        "modprobe" => "kmod",
        "udevadm" => "udev",
        "setpriv" => "util-linux",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn sh(script: &str) -> Command {
        Command::new("sh").args(["-c", script]).deadline(Duration::from_secs(20))
    }

    fn run(command: &Command) -> Outcome {
        System.run(command).unwrap()
    }

    /// Waits until the process is gone (or dead and not reaped).
    fn gone(pid: &str) -> bool {
        (0..200).any(|_| {
            thread::sleep(Duration::from_millis(20));
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z ")
        })
    }

    fn await_file(file: &Path) -> String {
        for _ in 0..500 {
            match std::fs::read_to_string(file) {
                Ok(text) if text.ends_with('\n') => return text.trim().to_owned(),
                _ => thread::sleep(Duration::from_millis(20)),
            }
        }
        panic!("{} did not come", file.display());
    }

    #[test]
    fn exit_code_output_and_signal_come_back() {
        let outcome = run(&sh("echo out; echo err >&2; exit 108"));
        assert_eq!(outcome.status, Status::Exit(108));
        assert_eq!((outcome.stdout.as_slice(), outcome.stderr_tail.as_str()), (&b"out\n"[..], "err\n"));
        assert_eq!(run(&sh("kill -TERM $$")).status, Status::Signal(15));
    }

    #[test]
    fn stdin_is_empty_or_what_was_given() {
        assert_eq!(run(&sh("cat")).stdout, b"");
        let much = vec![b'x'; 1 << 20];
        assert_eq!(run(&sh("cat").stdin(much.clone())).stdout, much);
        assert_eq!(run(&sh("true").stdin(much)).status, Status::Exit(0));
    }

    #[test]
    fn the_environment_is_c_and_can_be_changed() {
        let script = "echo $LC_ALL $ADDED ${HOME-none}";
        let outcome = run(&sh(script).env("ADDED", "yes").env_remove("HOME"));
        assert_eq!(outcome.stdout, b"C yes none\n");
    }

    #[test]
    fn the_whole_group_is_killed_at_the_deadline() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let script = format!("sleep 100 & echo $! >{}; echo begun; wait", file.display());
        let outcome = run(&sh(&script).deadline(Duration::from_millis(500)));
        assert_eq!(outcome.status, Status::TimedOut);
        assert!(!outcome.survived_kill && outcome.duration < Duration::from_secs(4));
        assert_eq!(outcome.stdout, b"begun\n");
        assert!(gone(&await_file(&file)));
    }

    #[test]
    fn a_grandchild_that_keeps_the_pipes_does_not_hold_us() {
        let outcome = run(&sh("echo done; setsid sleep 8 & exit 3"));
        assert_eq!((outcome.status, outcome.stdout.as_slice()), (Status::Exit(3), &b"done\n"[..]));
        assert!(outcome.duration < Duration::from_secs(4), "{:?}", outcome.duration);
    }

    #[test]
    fn a_child_that_closes_its_output_is_still_waited_for() {
        let outcome = run(&sh("exec >&- 2>&-; sleep 0.3; exit 4"));
        assert_eq!(outcome.status, Status::Exit(4));
    }

    #[test]
    fn output_is_bounded_and_the_child_is_not_blocked_by_it() {
        let outcome =
            run(&sh("head -c 20000000 /dev/zero; head -c 9000 /dev/zero | tr '\\0' x >&2; echo end >&2"));
        assert_eq!(outcome.status, Status::Exit(0));
        assert!(outcome.stdout_truncated && outcome.stdout.len() == STDOUT_LIMIT);
        assert!(outcome.stderr_tail.len() == STDERR_TAIL && outcome.stderr_tail.ends_with("xend\n"));
    }

    #[test]
    fn progress_is_handed_over_as_it_comes() {
        let mut seen = Vec::new();
        let command =
            sh("printf 'Object Map Rebuild: 10%% complete...\\r' >&2; sleep 0.3; printf 'done.\\n' >&2");
        let outcome = System
            .run_watched(&command, &mut |stream, bytes| {
                seen.push((stream, String::from_utf8_lossy(bytes).into_owned()));
            })
            .unwrap();
        assert_eq!(seen[0], (Stream::Stderr, "Object Map Rebuild: 10% complete...\r".to_owned()));
        assert_eq!(seen.len(), 2);
        assert_eq!(outcome.stderr_tail, "Object Map Rebuild: 10% complete...\ndone.\n");
    }

    #[test]
    fn no_key_is_kept_of_what_was_said_nor_a_part_of_one() {
        let key = "AQBaWlpaWlpaWhAApaWlpaWlpaWlpaWlpaWlpQ==";
        let said = run(&sh(&format!("echo 'type=key val={key}: Malformed input' >&2"))).stderr_tail;
        assert_eq!(said, "type=key val=***\n");
        // What is kept begins somewhere within the key, and masking what follows makes room for it.
        let kept = STDERR_TAIL + 2 * LONGEST_KEY;
        let secret = format!("\nsecret={}", "0".repeat(100));
        for first in (0..key.len()).step_by(5) {
            let plain = kept - (key.len() - first) - 10 * secret.len();
            let script = format!(
                "printf '{key}{}' >&2; head -c {plain} /dev/zero | tr '\\0' '\\n' >&2",
                secret.repeat(10)
            );
            let said = run(&sh(&script)).stderr_tail;
            assert!(said.contains("secret=***") && !said.contains(&key[30..]), "from {first}: {said:.60}");
        }
    }

    #[test]
    fn terminal_escapes_in_stderr_are_harmless() {
        assert_eq!(printable(b"a\x1b[2Jb\tc\r\nd\xff"), "a?[2Jb\tc\nd\u{fffd}");
    }

    #[test]
    fn a_missing_program_names_its_package() {
        assert!(not_found("rbd").ends_with("install the package ceph-common"));
        let said = System.run(&Command::new("no-such-program")).unwrap_err().to_string();
        assert_eq!(said, "there is no program `no-such-program` here");
    }

    #[test]
    fn a_watcher_that_panics_leaves_no_child() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let command = sh(&format!("echo $$ >{}; echo go; exec sleep 100", file.display()));
        let result =
            std::panic::catch_unwind(|| System.run_watched(&command, &mut |_, _| panic!("on purpose")));
        assert!(result.is_err());
        assert!(gone(&await_file(&file)));
    }

    /// Not a test: the process that the next test kills.
    #[test]
    #[ignore = "run by a_child_dies_with_us_even_if_we_are_killed"]
    fn parent_to_be_killed() {
        let Some(file) = std::env::var_os("RBD_PREFLIGHT_TEST_PID_FILE") else { return };
        let script = format!("echo $$ >{}; exec sleep 100", Path::new(&file).display());
        run(&sh(&script).deadline(Duration::from_secs(60)));
    }

    #[test]
    fn a_child_dies_with_us_even_if_we_are_killed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let mut parent = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "sys::process::system::tests::parent_to_be_killed", "--ignored"])
            .env("RBD_PREFLIGHT_TEST_PID_FILE", &file)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let pid = await_file(&file);
        parent.kill().unwrap();
        parent.wait().unwrap();
        assert!(gone(&pid), "process {pid} outlived its parent");
    }
}
