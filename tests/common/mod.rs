//! What the tests with a real Ceph share: the lab, its commands, unique names, a live writer.
#![allow(dead_code, clippy::unwrap_used)] // each test file uses a part; a helper that fails must fail the test

pub mod fault;
pub mod kernel;
pub mod model;
pub mod node;

use rbd_preflight::pve::connection::Connection;
use rbd_preflight::rbd::spec::Spec;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A name that no other test and no other run uses.
pub fn unique(what: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("{what}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// An image in the pool `rbd`.
pub fn spec(image: &str) -> Spec {
    Spec { pool: "rbd".to_owned(), namespace: None, image: image.to_owned() }
}

/// Asks until the answer is yes, at most for `limit`; what was waited for is told when it fails.
pub fn wait_until(what: &str, limit: Duration, mut yes: impl FnMut() -> bool) {
    let until = Instant::now() + limit;
    while !yes() {
        assert!(Instant::now() < until, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Waits until this process has closed what it read of a cluster. The tool leaves that to a thread and to its own end (`_exit`); a
/// test's process ends by destructors, under which Ceph's threads may not run any more. Beside other tests that read it goes on after two
/// seconds: the last one is alone.
pub fn until_closed() {
    let until = Instant::now() + Duration::from_secs(2);
    while threads().iter().any(|name| name == "ceph\n") && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The names of this process's threads.
fn threads() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok()).collect()
}

/// Puts a script where it can be run at once. Another process writes it: a program that a test beside this one starts just then would have
/// our own file open for a moment, and the script could not be run (error 26, ETXTBSY, Text file busy).
pub fn executable(path: &Path, text: &str) {
    let mut install = Command::new("install");
    install.args(["-D", "-m", "755", "/dev/stdin"]).arg(path).stdin(Stdio::piped());
    let mut child = install.spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{}", path.display());
}

/// A program of the lab, `tests/lab/NAME`.
fn tool(name: &str) -> Command {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab").join(name))
}

/// The output of a command that must succeed.
fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{command:?}: {}: {}", output.status, text(&output.stderr));
    text(&output.stdout)
}

/// A running Ceph: one monitor, one OSD in memory.
pub struct Lab {
    directory: PathBuf,
    /// The directory of a lab of this test's own, which is stopped when the test ends.
    own: Option<tempfile::TempDir>,
}

impl Lab {
    /// The lab of this run, which all tests share: names in it must be [`unique`], and nobody may pause it.
    pub fn shared() -> Self {
        let directory = std::env::var_os("RBD_PREFLIGHT_LAB")
            .expect("RBD_PREFLIGHT_LAB is not set: these tests need a real Ceph; run them with tests/run");
        Self { directory: directory.into(), own: None }
    }

    /// A lab of one's own, to be paused or filled at will. `options`: those of `tests/lab/ceph start`.
    pub fn own(options: &[&str]) -> Self {
        let own = tempfile::tempdir().unwrap();
        let directory = own.path().join("lab");
        succeed(tool("ceph").arg("start").arg(&directory).args(options));
        Self { directory, own: Some(own) }
    }

    /// The lab's directory: `ceph.conf`, `keyring.USER`, `run/`, `log/`.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The ceph.conf.
    pub fn conf(&self) -> String {
        self.directory.join("ceph.conf").to_str().unwrap().to_owned()
    }

    /// The keyring of a user: `admin`, `vms`, `poor` (may not blocklist), `reader` (may not write).
    pub fn keyring(&self, user: &str) -> String {
        self.directory.join(format!("keyring.{user}")).to_str().unwrap().to_owned()
    }

    /// How a storage of Proxmox VE's would reach this lab as `user`.
    pub fn connection(&self, user: &str) -> Connection {
        Connection {
            conf: Some(self.conf()),
            mon_host: None,
            user: user.to_owned(),
            keyring: Some(self.keyring(user)),
        }
    }

    /// A Ceph program as client.admin.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .arg("--conf")
            .arg(self.conf())
            .args(["--id", "admin", "--keyring"])
            .arg(self.keyring("admin"));
        command.env_remove("CEPH_CONF").env_remove("CEPH_ARGS");
        command
    }

    /// Runs `rbd`, which must succeed.
    pub fn rbd(&self, arguments: &[&str]) -> String {
        succeed(self.command("rbd").args(arguments))
    }

    /// Runs `rbd`, which may fail.
    pub fn try_rbd(&self, arguments: &[&str]) -> Output {
        self.command("rbd").args(arguments).output().unwrap()
    }

    /// Runs `ceph`, which must succeed.
    pub fn ceph(&self, arguments: &[&str]) -> String {
        succeed(self.command("ceph").args(arguments))
    }

    /// Runs `rados`, which must succeed.
    pub fn rados(&self, arguments: &[&str]) -> String {
        succeed(self.command("rados").args(arguments))
    }

    /// What `rbd ARGUMENTS --format json` says.
    pub fn rbd_json(&self, arguments: &[&str]) -> serde_json::Value {
        serde_json::from_str(&succeed(self.command("rbd").args(arguments).args(["--format", "json"])))
            .unwrap()
    }

    /// A new image in the pool `rbd`, of 8 MiB unless `options` say otherwise.
    pub fn image(&self, what: &str, options: &[&str]) -> Spec {
        let name = unique(what);
        self.rbd(&[&["create", "--size", "8M", &name], options].concat());
        spec(&name)
    }

    /// Stops the daemons' time: `mon`, `osd` or `all`. Only for a lab of one's own.
    pub fn pause(&self, daemons: &str) {
        assert!(self.own.is_some(), "the shared lab is not to be paused");
        succeed(tool("ceph").arg("pause").arg(&self.directory).arg(daemons));
    }

    /// Ends a pause.
    pub fn resume(&self, daemons: &str) {
        succeed(tool("ceph").arg("resume").arg(&self.directory).arg(daemons));
    }

    /// A live librbd client that owns the image's lock and writes all the time.
    pub fn writer(&self, spec: &impl std::fmt::Display) -> Writer {
        let pid_file = self.directory.join(format!("run/{}.pid", unique("writer")));
        succeed(tool("writer").arg("start").arg(&self.directory).arg(spec.to_string()).arg(&pid_file));
        Writer { pid_file }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.own.is_some() {
            let _ = tool("ceph").arg("stop").arg(&self.directory).status();
        }
    }
}

/// A live librbd client; it is killed when it is dropped.
pub struct Writer {
    pid_file: PathBuf,
}

impl Writer {
    fn run(&self, what: &str) -> bool {
        tool("writer").arg(what).arg(&self.pid_file).status().unwrap().success()
    }

    /// It lives and its writes still succeed.
    pub fn alive(&self) -> bool {
        self.run("alive")
    }

    /// Its process.
    pub fn pid(&self) -> String {
        let pid = std::fs::read_to_string(&self.pid_file).unwrap();
        pid.split_whitespace().next().unwrap().to_owned()
    }

    /// Sends it a signal: `STOP`, and it is not heard of until `CONT`.
    pub fn signal(&self, signal: &str) {
        succeed(Command::new("kill").args([&format!("-{signal}"), &self.pid()]));
    }

    /// Closes the image properly.
    pub fn stop(self) {
        assert!(self.run("stop"), "the writer did not stop");
    }

    /// Dies as in a crash: lock and watch stay behind.
    pub fn kill(self) {
        assert!(self.run("kill"), "the writer did not die");
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = tool("writer").arg("kill").arg(&self.pid_file).output();
    }
}
