//! A Proxmox VE node's file tree on the lab's Ceph, and the real binary run on it.

use super::{Lab, succeed, tool};
use serde_json::Value;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// What `rbd_default_features` 61 gives an image.
pub const DEFAULT: &str = "layering,exclusive-lock,object-map,fast-diff,deep-flatten";

/// A guest's number that no other test of this run has.
pub fn new_vmid() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    100_000 + std::process::id() % 100_000 * 1000 + NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A node of the lab: pve1, with a file tree of its own.
pub struct Node {
    /// The Ceph that its storages are on.
    pub lab: Lab,
    root: tempfile::TempDir,
}

impl Node {
    /// A node on the lab that `tests/run` started.
    pub fn new() -> Self {
        Self::on(Lab::shared())
    }

    /// A node on some lab.
    pub fn on(lab: Lab) -> Self {
        let root = tempfile::tempdir().unwrap();
        succeed(tool("pve-tree").arg(lab.directory()).arg(root.path()));
        Self { lab, root }
    }

    /// A node with one VM whose scsi0 is on a krbd storage; its number, and its image.
    pub fn with_vm(features: &str) -> (Self, u32, String) {
        Self::with_vm_on("ceph-krbd", "rbd", features)
    }

    /// The same on another storage, whose images are in `place`.
    pub fn with_vm_on(storage: &str, place: &str, features: &str) -> (Self, u32, String) {
        let (node, vmid) = (Self::new(), new_vmid());
        let spec = format!("{place}/vm-{vmid}-disk-0");
        node.image(&spec, features);
        node.vm(vmid, &format!("name: web\nscsi0: {storage}:vm-{vmid}-disk-0,size=8M\n"));
        (node, vmid, spec)
    }

    /// A node with one VM whose krbd disk is mirrored by its journal, from here; its number, and its image.
    pub fn with_mirrored_vm() -> (Self, u32, String) {
        let (node, vmid) = (Self::new(), new_vmid());
        let pool = format!("mirror{vmid}");
        node.lab.ceph(&["osd", "pool", "create", &pool, "8"]);
        node.lab.rbd(&["pool", "init", &pool]);
        node.lab.rbd(&["mirror", "pool", "enable", &pool, "image"]);
        node.storage(&pool, &format!("krbd 1; pool {pool}"));
        let spec = format!("{pool}/vm-{vmid}-disk-0");
        node.image(&spec, "layering,exclusive-lock,journaling");
        node.lab.rbd(&["mirror", "image", "enable", &spec, "journal"]);
        node.vm(vmid, &format!("scsi0: {pool}:vm-{vmid}-disk-0\n"));
        (node, vmid, spec)
    }

    /// A path in its file tree.
    pub fn path(&self, absolute: &str) -> PathBuf {
        self.root.path().join(absolute.trim_start_matches('/'))
    }

    /// Writes a file of its tree.
    pub fn write(&self, absolute: &str, text: &str) {
        let path = self.path(absolute);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// Adds text to a file of its tree.
    pub fn append(&self, absolute: &str, text: &str) {
        let old = std::fs::read_to_string(self.path(absolute)).unwrap();
        self.write(absolute, &(old + text));
    }

    /// Gives the node a VM.
    pub fn vm(&self, vmid: u32, config: &str) {
        self.write(&format!("/etc/pve/nodes/pve1/qemu-server/{vmid}.conf"), config);
    }

    /// Another rbd storage, with client.admin's key.
    pub fn storage(&self, id: &str, options: &str) {
        self.append(
            "/etc/pve/storage.cfg",
            &format!(
                "
rbd: {id}
	content images
	{}
",
                options.replace(
                    "; ", "
	"
                )
            ),
        );
        let key = |id: &str| self.path(&format!("/etc/pve/priv/ceph/{id}.keyring"));
        std::fs::copy(key("ceph-krbd"), key(id)).unwrap();
    }

    /// The check of keyrings that the node's Proxmox VE has: of libpve-storage-perl before 9.1.9, or since.
    pub fn keyring_check(&self, old: bool) {
        let value = if old { r"\S+==" } else { r"\S+" };
        let module = format!(
            "package PVE::CephConfig;\nmy $ceph_check_keyfile = sub {{\n    my ($filename, $type) = @_;\n    if ($type eq 'rbd') {{\n\
             \x20       die if $content !~ /\\[\\S+\\]\\s*key\\s*=\\s*{value}\\s*$/m;\n    }}\n}};\n1;\n"
        );
        self.write("/usr/share/perl5/PVE/CephConfig.pm", &module);
    }

    /// An image of 8 MiB with these features.
    pub fn image(&self, spec: &str, features: &str) {
        self.lab.rbd(&["create", spec, "--size", "8M", "--image-feature", features]);
    }

    /// The node's files are as if its kernel had an image of the pool `rbd` mapped as /dev/rbd0.
    pub fn mapped(&self, spec: &str) {
        let fsid = self.lab.ceph(&["fsid"]);
        let id = self.lab.rbd_json(&["info", spec])["id"].as_str().unwrap().to_owned();
        for (attribute, value) in [
            ("pool", "rbd"),
            ("pool_ns", ""),
            ("name", spec.split('/').nth(1).unwrap()),
            ("current_snap", "-"),
            ("cluster_fsid", fsid.trim()),
            ("client_addr", "10.77.0.2:0/492268007"),
            ("client_id", "client4324"),
            ("image_id", id.as_str()),
            ("config_info", "10.77.0.1:6789 name=admin,key=client.admin rbd x -"),
            ("size", "8388608"),
            ("features", "0x3d"),
            ("major", "252"),
            ("minor", "0"),
        ] {
            self.write(&format!("/sys/bus/rbd/devices/0/{attribute}"), &format!("{value}\n"));
        }
        self.write("/dev/rbd0", "");
        self.write("/sys/block/rbd0/ro", "0\n");
        self.write("/sys/block/rbd0/dev", "252:0\n");
        self.write("/proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n");
        self.write("/proc/self/mountinfo", "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n");
        std::fs::create_dir_all(self.path("/proc/self/ns")).unwrap();
        std::os::unix::fs::symlink("mnt:[1]", self.path("/proc/self/ns/mnt")).unwrap();
    }

    /// The names of an image's features.
    pub fn features(&self, spec: &str) -> Vec<String> {
        let info = self.lab.rbd_json(&["info", spec]);
        serde_json::from_value(info["features"].clone()).unwrap()
    }

    /// The names of an image's flags.
    pub fn flags(&self, spec: &str) -> Vec<String> {
        serde_json::from_value(self.lab.rbd_json(&["info", spec])["flags"].clone()).unwrap()
    }

    /// The real binary, to be run on this node.
    pub fn command<const N: usize>(&self, arguments: [&str; N]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rbd-preflight"));
        command.env("RBD_PREFLIGHT_ROOT", self.root.path()).env_remove("PVE_MIGRATED_FROM").args(arguments);
        command
    }

    /// Runs the real binary.
    pub fn run<const N: usize>(&self, arguments: [&str; N]) -> Ran {
        Ran::of(self.command(arguments))
    }

    /// `check --json`, whatever it exits with.
    pub fn check(&self, vmid: u32) -> Value {
        let ran = self.run(["check", &vmid.to_string(), "--json"]);
        serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
    }

    /// Asserts that nothing is said of a healthy guest that is more than a note: whatever is told of one where nothing
    /// is wrong is a false alarm.
    pub fn assert_healthy(&self, vmid: u32) {
        let report = self.check(vmid);
        assert!(alarms(&report).is_empty() && report["verdict"] == "ready", "{report:#}");
    }

    /// The stand-in for `qm` (`tests/fakes`), run on this node, which calls the real binary as its hookscript.
    pub fn qm(&self, command: &str, vmid: u32) -> Ran {
        let fakes = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fakes");
        let mut qm = Command::new(format!("{fakes}/qm"));
        qm.args([command, &vmid.to_string()])
            .env("PATH", format!("{fakes}:{}", std::env::var("PATH").unwrap()))
            .env("RBD_PREFLIGHT_ROOT", self.root.path())
            .env("RBD_PREFLIGHT", env!("CARGO_BIN_EXE_rbd-preflight"))
            .env_remove("PVE_MIGRATED_FROM")
            .stdin(std::process::Stdio::null());
        Ran::of(qm)
    }

    /// The journal's records.
    pub fn journal(&self) -> Vec<Value> {
        let text =
            std::fs::read_to_string(self.path("/var/lib/rbd-preflight/journal.jsonl")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// What came of a run.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Ran {
    /// Runs a command to its end.
    pub fn of(mut command: Command) -> Self {
        let begun = Instant::now();
        let Output { status, stdout, stderr } = command.output().unwrap();
        Self {
            code: status.code().unwrap_or(-1),
            stdout: String::from_utf8(stdout).unwrap(),
            stderr: String::from_utf8(stderr).unwrap(),
            took: begun.elapsed(),
        }
    }
}

/// The codes of the findings in a report, each once, in order of the alphabet.
pub fn codes(report: &Value) -> Vec<String> {
    let findings = report["findings"].as_array().unwrap();
    let mut codes: Vec<String> = findings.iter().map(|f| f["code"].as_str().unwrap().to_owned()).collect();
    codes.sort();
    codes.dedup();
    codes
}

/// The first finding with this code.
pub fn finding<'a>(report: &'a Value, code: &str) -> &'a Value {
    let findings = report["findings"].as_array().unwrap();
    findings.iter().find(|f| f["code"] == code).unwrap_or_else(|| panic!("no {code} in {report:#}"))
}

/// The codes of the findings that are more than a note.
pub fn alarms(report: &Value) -> Vec<&str> {
    let findings = report["findings"].as_array().unwrap().iter();
    findings.filter(|f| f["severity"] != "note").map(|f| f["code"].as_str().unwrap()).collect()
}
