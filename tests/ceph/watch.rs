//! `watch` on a real Ceph: real entries of the blocklist, real watches that are lost, a cluster that is silent. The kernel's log
//! is a file of the node's tree, and so is what it has mapped.

use crate::common::node::{DEFAULT, Node, new_vmid};
use crate::common::{Lab, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How long anything may take that is told within a minute, on a machine that is slow and busy.
const SOON: Duration = Duration::from_secs(120);

/// A watcher that runs, until the test ends.
struct Watcher {
    child: Child,
    out: PathBuf,
    metrics: PathBuf,
    _keep: tempfile::TempDir,
}

impl Watcher {
    fn start(node: &Node) -> Self {
        Self::every(node, "2")
    }

    fn every(node: &Node, seconds: &str) -> Self {
        let keep = tempfile::tempdir().unwrap();
        let (out, metrics) = (keep.path().join("out"), keep.path().join("watch.prom"));
        let mut command = node.command(["watch", "--json", "--every", seconds]);
        command.arg("--metrics").arg(&metrics).env("MALLOC_ARENA_MAX", "2").stdin(Stdio::null());
        let child = command.stdout(File::create(&out).unwrap()).spawn().unwrap();
        let watcher = Self { child, out, metrics, _keep: keep };
        wait_until("the watcher's first look", SOON, || watcher.metrics.exists());
        watcher
    }

    /// Waits for this many looks more, each of which leaves its time in the metrics, in whole seconds.
    fn looks(&self, count: usize) {
        for _ in 0..count {
            let last = self.metric("timestamp_seconds");
            wait_until("the watcher's next look", SOON, || {
                let now = self.metric("timestamp_seconds");
                !now.is_empty() && now != last
            });
        }
    }

    /// The lines of the metrics with this in their name.
    fn metric(&self, name: &str) -> Vec<String> {
        let text = std::fs::read_to_string(&self.metrics).unwrap_or_default();
        let lines = text.lines().filter(|line| !line.starts_with('#') && line.contains(name));
        lines.map(str::to_owned).collect()
    }

    /// What it has told of this code.
    fn told(&self, code: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.out).unwrap();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let events = whole.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        events.filter(|event| event["code"] == code).collect()
    }

    /// Waits until it has told this code so many times, begins and ends counted.
    fn tells(&self, code: &str, times: usize) -> Vec<Value> {
        wait_until(&format!("{code}, {times} times"), SOON, || self.told(code).len() >= times);
        let told = self.told(code);
        assert_eq!(told.len(), times, "{told:?}");
        told
    }

    /// Ends it as systemd does; nothing of its metrics may be left.
    fn end(mut self) {
        assert!(self.metrics.exists());
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
        assert!(!self.metrics.exists(), "metrics of a watcher that is gone");
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A guest that runs, as its pid file says.
fn runs(node: &Node, vmid: u32) {
    node.write(&format!("/run/qemu-server/{vmid}.pid"), &format!("{vmid}\n"));
    node.write(&format!("/proc/{vmid}/cmdline"), &format!("/usr/bin/kvm\0-id\0{vmid}\0"));
}

fn stops(node: &Node, vmid: u32) {
    std::fs::remove_file(node.path(&format!("/run/qemu-server/{vmid}.pid"))).unwrap();
}

/// A node with a running guest whose scsi0 is on this storage; its number, and its image.
fn guest(lab: Lab, storage: &str) -> (Node, u32, String) {
    let (node, vmid) = (Node::on(lab), new_vmid());
    let image = format!("rbd/vm-{vmid}-disk-0");
    node.image(&image, DEFAULT);
    node.vm(vmid, &format!("scsi0: {storage}:vm-{vmid}-disk-0,size=8M\n"));
    runs(&node, vmid);
    node.write("/dev/kmsg", "");
    (node, vmid, image)
}

/// The addresses of those who watch an image.
fn watchers(node: &Node, image: &str) -> Vec<String> {
    let status = node.lab.rbd_json(&["status", image]);
    let all = status["watchers"].as_array().unwrap().iter();
    all.map(|watcher| watcher["address"].as_str().unwrap().to_owned()).collect()
}

/// The kernel has an image mapped as this device, through this client.
fn maps(node: &Node, number: u32, image: &str, address: &str) {
    let info = node.lab.rbd_json(&["info", image]);
    let (pool, name) = image.split_once('/').unwrap();
    let fsid = node.lab.ceph(&["fsid"]);
    for (file, text) in [
        ("pool", pool),
        ("name", name),
        ("current_snap", "-"),
        ("cluster_fsid", fsid.trim()),
        ("client_addr", address),
        ("client_id", "client4324"),
        ("image_id", info["id"].as_str().unwrap()),
        ("config_info", "10.77.0.1:6789 name=admin,key=client.admin pool image -"),
    ] {
        node.write(&format!("/sys/bus/rbd/devices/{number}/{file}"), &format!("{text}\n"));
    }
    node.write(&format!("/sys/block/rbd{number}/ro"), "0\n");
}

/// The kernel writes a line to its log.
fn says(node: &Node, line: &str) {
    let mut log = File::options().append(true).open(node.path("/dev/kmsg")).unwrap();
    writeln!(log, "4,1,1,-;{line}").unwrap();
}

#[test]
fn a_guest_whose_client_comes_onto_the_blocklist_is_told_once_and_its_end_too() {
    let (node, vmid, image) = guest(Lab::shared(), "ceph-librbd");
    node.assert_healthy(vmid);
    let _writer = node.lab.writer(&image);
    let address = watchers(&node, &image).remove(0);
    let watcher = Watcher::start(&node);
    watcher.looks(1);
    node.lab.ceph(&["osd", "blocklist", "add", &address, "3600"]);
    let told = watcher.tells("disk-dead", 1).remove(0);
    assert_eq!((&told["guests"], &told["disk"]), (&serde_json::json!([vmid]), &"scsi0".into()));
    assert_eq!((told["client"].as_str(), told["image"].as_str()), (Some(&*address), Some(&*image)));
    wait_until("the metric", SOON, || !watcher.metric("watch_trouble{").is_empty());
    let metric = watcher.metric("code=\"disk-dead\"").remove(0);
    assert!(metric.contains(&format!("vmid=\"{vmid}\"")) && metric.ends_with("} 1"), "{metric}");
    watcher.looks(3);
    watcher.tells("disk-dead", 1);
    node.lab.ceph(&["osd", "blocklist", "rm", &address]);
    watcher.looks(2);
    watcher.tells("disk-dead", 1);
    stops(&node, vmid);
    assert_eq!(watcher.tells("disk-dead", 2)[1]["over"], true);
    assert!(watcher.metric("code=\"disk-dead\"").is_empty());
    watcher.end();
}

#[test]
fn what_the_kernel_says_of_a_guests_device_is_told_with_the_guest() {
    let (node, vmid, image) = guest(Lab::shared(), "ceph-krbd");
    let _kernel = node.lab.writer(&image);
    maps(&node, 0, &image, &watchers(&node, &image)[0]);
    let watcher = Watcher::every(&node, "3600");
    says(&node, "rbd: rbd0: write result -5");
    let told = watcher.tells("io-errors", 1).remove(0);
    assert_eq!((&told["guests"], &told["device"]), (&serde_json::json!([vmid]), &"/dev/rbd0".into()));
    assert_eq!(told["errno"], 5);
    // A device that was mapped since the last look.
    let (other, second) = (new_vmid(), format!("rbd/vm-{}-disk-0", new_vmid()));
    node.image(&second, DEFAULT);
    node.vm(other, &format!("scsi3: ceph-krbd:{},size=8M\n", second.split_once('/').unwrap().1));
    runs(&node, other);
    maps(&node, 1, &second, "127.0.0.1:0/4294967291");
    says(&node, "rbd: rbd1: write result -108");
    let told = watcher.tells("disk-dead", 1).remove(0);
    assert_eq!((&told["guests"], &told["disk"]), (&serde_json::json!([other]), &"scsi3".into()));
    watcher.tells("client-dead", 1);
}

#[test]
fn an_entry_for_a_kernel_client_is_told_with_all_guests_that_run_on_it() {
    let (node, vmid, image) = guest(Lab::shared(), "ceph-krbd");
    let address = format!("127.0.0.1:0/{}", 3_000_000_000 + u64::from(std::process::id()));
    maps(&node, 0, &image, &address);
    let watcher = Watcher::start(&node);
    node.lab.ceph(&["osd", "blocklist", "add", &address, "3600"]);
    let told = watcher.tells("client-dead", 1).remove(0);
    assert_eq!((&told["guests"], told["client"].as_str()), (&serde_json::json!([vmid]), Some(&*address)));
    watcher.tells("disk-dead", 1);
    watcher.looks(3);
    watcher.tells("client-dead", 1);
    node.lab.ceph(&["osd", "blocklist", "rm", &address]);
}

#[test]
fn a_watch_that_is_lost_is_told_and_one_that_is_there_is_not() {
    let (node, vmid, image) = guest(Lab::shared(), "ceph-krbd");
    let writer = node.lab.writer(&image);
    maps(&node, 0, &image, &watchers(&node, &image)[0]);
    let watcher = Watcher::start(&node);
    says(&node, "rbd: rbd0: encountered watch error: -107");
    watcher.looks(12);
    assert_eq!(watcher.told("watch-lost"), [] as [Value; 0]);
    writer.stop();
    says(&node, "rbd: rbd0: encountered watch error: -107");
    let told = watcher.tells("watch-lost", 1).remove(0);
    assert_eq!((&told["guests"], &told["device"]), (&serde_json::json!([vmid]), &"/dev/rbd0".into()));
    stops(&node, vmid);
    assert_eq!(watcher.tells("watch-lost", 2)[1]["over"], true);
}

#[test]
fn a_silent_cluster_an_entry_for_the_whole_node_and_files_that_are_gone_are_told_once() {
    let (node, vmid, image) = guest(Lab::own(&["--watch-timeout", "10"]), "ceph-librbd");
    let _writer = node.lab.writer(&image);
    let watcher = Watcher::start(&node);
    let away = node.path("/etc/pve-away");
    std::fs::rename(node.path("/etc/pve"), &away).unwrap();
    watcher.tells("pve-unreadable", 1);
    watcher.looks(3);
    std::fs::rename(&away, node.path("/etc/pve")).unwrap();
    assert_eq!(watcher.tells("pve-unreadable", 2)[1]["over"], true);
    node.lab.pause("all");
    let told = watcher.tells("cluster-silent", 1).remove(0);
    assert_eq!(told["guests"], serde_json::json!([vmid]));
    watcher.looks(2);
    node.lab.resume("all");
    assert_eq!(watcher.tells("cluster-silent", 2)[1]["over"], true);
    assert_eq!(watcher.told("disk-dead"), [] as [Value; 0], "a silent cluster says nothing of its clients");
    node.lab.ceph(&["osd", "blocklist", "add", "127.0.0.1:0/0", "3600"]);
    let told = watcher.tells("node-fenced", 1).remove(0);
    assert_eq!(told["guests"], serde_json::json!([vmid]));
    // It ends when it is told to, however silent the cluster is.
    node.lab.pause("all");
    watcher.end();
    node.lab.resume("all");
}

#[test]
fn a_storage_that_is_off_is_not_asked() {
    let (node, ..) = guest(Lab::shared(), "ceph-librbd");
    node.write("/etc/rbd-preflight/config.yaml", "storages:\n  ceph-librbd:\n    mode: off\n");
    let watcher = Watcher::start(&node);
    watcher.looks(3);
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", watcher.child.id())).unwrap();
    assert!(!maps.contains("librados"), "Ceph's library was loaded");
    assert_eq!(watcher.metric("watch_disks").remove(0).split(' ').nth(1), Some("0"));
}

/// Every file of a tree and what is in it.
fn tree(directory: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match std::fs::symlink_metadata(&path).unwrap() {
            meta if meta.is_dir() => {
                files.insert(path.clone(), b"directory".to_vec());
                tree(&path, files);
            }
            meta if meta.is_symlink() => {
                let target = std::fs::read_link(&path).unwrap();
                drop(files.insert(path, target.into_os_string().into_encoded_bytes()));
            }
            _ => drop(files.insert(path.clone(), std::fs::read(&path).unwrap())),
        }
    }
}

#[test]
fn the_tree_and_the_image_are_the_same_before_and_after() {
    let (node, vmid, image) = guest(Lab::shared(), "ceph-krbd");
    // Whatever repair would change: a flagged object map, a feature missing, a lock left by the dead, a leftover mapping.
    node.lab.rbd(&["feature", "disable", &image, "object-map"]);
    node.lab.rbd(&["feature", "enable", &image, "object-map"]);
    let writer = node.lab.writer(&image);
    let address = watchers(&node, &image).remove(0);
    maps(&node, 0, &image, &address);
    writer.kill();
    wait_until("the dead writer's watch to go", SOON, || watchers(&node, &image).is_empty());
    node.lab.ceph(&["osd", "blocklist", "add", &address, "3600"]);
    let seen = || {
        let mut files = BTreeMap::new();
        tree(&node.path("/"), &mut files);
        files.remove(&node.path("/dev/kmsg"));
        let said = |command: &[&str]| node.lab.rbd(&[command, &[image.as_str()]].concat());
        let header = format!("rbd_header.{}", node.lab.rbd_json(&["info", &image])["id"].as_str().unwrap());
        let omap = node.lab.rados(&["-p", "rbd", "listomapvals", &header]);
        let listed = node.lab.ceph(&["osd", "blocklist", "ls"]).contains(&address);
        (files, said(&["info"]), said(&["status"]), said(&["lock", "ls"]), omap, listed)
    };
    let before = seen();
    let watcher = Watcher::start(&node);
    says(&node, "rbd: rbd0: encountered watch error: -107");
    says(&node, "rbd: rbd0: write result -108");
    watcher.tells("disk-dead", 1);
    watcher.tells("io-errors", 1);
    watcher.looks(5);
    watcher.end();
    let after = seen();
    assert_eq!(before.0.keys().collect::<Vec<_>>(), after.0.keys().collect::<Vec<_>>());
    assert!(before == after, "something of guest {vmid} was changed:\n{:#?}\n{:#?}", before.1, after.1);
    node.lab.ceph(&["osd", "blocklist", "rm", &address]);
}

/// One entry of systemd's journal, as the native protocol sends it, for each event.
#[test]
fn the_journal_gets_one_entry_with_its_fields() {
    let (node, vmid, image) = guest(Lab::shared(), "ceph-krbd");
    maps(&node, 0, &image, "127.0.0.1:0/4294967290");
    // In a /run of its own, where the socket of the journal is the script's.
    let mut command = Command::new("unshare");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/common/journal.py");
    command.args([
        "--mount",
        "sh",
        "-c",
        "mount -t tmpfs none /run && exec \"$0\" \"$@\"",
        "/usr/bin/python3",
    ]);
    command.arg(script).args(["CODE=io-errors", env!("CARGO_BIN_EXE_rbd-preflight"), "watch"]);
    command.env("RBD_PREFLIGHT_ROOT", node.path("/")).stdout(Stdio::piped());
    let child = command.spawn().unwrap();
    std::thread::scope(|scope| {
        let waited = scope.spawn(|| child.wait_with_output().unwrap());
        while !waited.is_finished() {
            says(&node, "rbd: rbd0: write result -5");
            std::thread::sleep(Duration::from_secs(1));
        }
        let output = waited.join().unwrap();
        assert!(output.status.success());
        let fields: BTreeMap<String, Vec<String>> = serde_json::from_slice(&output.stdout).unwrap();
        let vmid = vmid.to_string();
        for (name, value) in [
            ("MESSAGE_ID", "5a31408741ac4bca85c193c5da3f03fb"),
            ("PRIORITY", "3"),
            ("SYSLOG_IDENTIFIER", "rbd-preflight"),
            ("STATE", "begun"),
            ("VMID", &vmid),
            ("DISK", "scsi0"),
            ("DEVICE", "/dev/rbd0"),
            ("IMAGE", &image),
            ("ERRNO", "5"),
        ] {
            assert_eq!(fields.get(name), Some(&vec![value.to_owned()]), "{name} in {fields:?}");
        }
        assert!(fields["MESSAGE"][0].contains("write failed with error 5"), "{fields:?}");
    });
}

/// A number of kibibytes in /proc/PID/status.
fn kibibytes(pid: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Ticks of processor time so far, of a hundredth of a second each.
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// What it costs is printed; what must not happen is that it grows with every look, or opens a connection for each.
#[test]
fn it_does_not_grow_and_keeps_its_connection() {
    const LOOKS: usize = 60;
    const MOST: u64 = 32 << 10;
    let (node, _, image) = guest(Lab::shared(), "ceph-librbd");
    let _writer = node.lab.writer(&image);
    let watcher = Watcher::every(&node, "1");
    watcher.looks(10);
    let pid = watcher.child.id();
    let descriptors = || std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let before = (kibibytes(pid, "VmRSS:"), ticks(pid), descriptors());
    watcher.looks(LOOKS);
    let after = (kibibytes(pid, "VmRSS:"), ticks(pid), descriptors());
    println!(
        "{LOOKS} looks: {} ms of processor time each, {} KiB in memory",
        (after.1 - before.1) * 10 / LOOKS as u64,
        after.0
    );
    assert!(after.0 < before.0 + MOST, "{} KiB became {} KiB", before.0, after.0);
    assert!(after.2 < before.2 + 10, "{} descriptors became {}", before.2, after.2);
}
