//! Two nodes with real kernels beside a real Ceph (tests/lab/node), and the real binary in them.
//!
//! `tests/run` starts them once and says where they are in RBD_PREFLIGHT_KERNEL_LAB. All tests share them, one after
//! the other; [`on_the_kernel`] lets one in, watches that no live client is harmed, and cleans up after it.

use super::node::{Ran, alarms};
use super::{succeed, tool, wait_until};
use serde_json::Value;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a command in a node may take if nothing else is said.
const LIMIT: Duration = Duration::from_secs(300);
/// The image of the writer that must outlive every test.
const WITNESS: &str = "pool2/witness";
/// The process that stands for a running guest, or for whoever has a device open.
const HOLDER: &str = "/usr/local/lib/lab-holder.py";

/// A storage of the nodes: those of tests/lab/pve-tree, and [`MORE_STORAGES`].
#[derive(Debug)]
pub struct Storage {
    /// Its name in storage.cfg.
    pub id: &'static str,
    /// `POOL` or `POOL/NAMESPACE`.
    pub place: &'static str,
    /// The Ceph user.
    pub user: &'static str,
}

/// krbd, the pool `rbd`.
pub const KRBD: &Storage = &Storage { id: "ceph-krbd", place: "rbd", user: "admin" };
/// librbd, the pool `rbd`.
pub const LIBRBD: &Storage = &Storage { id: "ceph-librbd", place: "rbd", user: "admin" };
/// krbd, a namespace.
pub const NAMESPACE: &Storage = &Storage { id: "ceph-ns", place: "pool2/tenant", user: "admin" };
/// krbd, by a user that may not blocklist.
pub const POOR: &Storage = &Storage { id: "krbd-poor", place: "rbd", user: "poor" };
/// krbd, a pool whose images are mirrored by their journals.
pub const MIRROR: &Storage = &Storage { id: "krbd-mirror", place: "mirror", user: "admin" };

/// krbd, a pool that does not exist.
pub const NO_POOL: &Storage = &Storage { id: "no-pool", place: "no-such-pool", user: "admin" };
/// krbd, a namespace that does not exist.
pub const NO_NAMESPACE: &Storage = &Storage { id: "no-namespace", place: "pool2/no-such", user: "admin" };

/// What is added to the storage.cfg of pve-tree.
const MORE_STORAGES: &str = "
rbd: krbd-poor
	content images
	krbd 1
	pool rbd
	username poor

rbd: krbd-mirror
	content images
	krbd 1
	pool mirror

rbd: no-pool
	content images
	krbd 1
	pool no-such-pool

rbd: no-namespace
	content images
	krbd 1
	pool pool2
	namespace no-such
";

/// What images hold, by tests/lab/content. udev looks at each in its own way, and has the disk open meanwhile.
const CONTENTS: [&str; 4] = ["gpt", "lvm", "ext4", "mbr"];

/// Lists processes that are the product, an `rbd`, or a stand-in that sleeps. Without a process of its own for each:
/// there are many, and the node is slow.
const LEFT_RUNNING: &str = r#"
    for p in /proc/[0-9]*; do
        { read -r name <$p/comm; } 2>/dev/null || continue
        case $name in rbd | rbd-preflight | sleep) ;; *) continue ;; esac
        # The kernel's own threads have no command line.
        line=$(tr '\0' ' ' <$p/cmdline)
        case $name$line in rbd | rbd-preflight | "sleepsleep "[!9]*) ;; *) echo "${p#/proc/} $line" ;; esac
    done 2>/dev/null"#;

/// Takes away what tests leave; fails where that cannot be done.
const CLEAN: &str = r#"
    exec 2>/dev/null
    for pid in $(cat /run/lab-holders); do kill -9 $pid; done
    rm -rf /run/lab-holder* /run/lab-path /run/qemu-server/* /etc/rbd-preflight /etc/pve/nodes/*/qemu-server/* \
        /etc/pve/.vmlist /etc/pve/ha/resources.cfg /etc/pve/nodes/*/ssh_known_hosts /var/lib/vz/snippets/rbd-preflight
    kill $(cat /run/lab-door/pid)
    mv /run/lab-storage.cfg /etc/pve/storage.cfg
    mv /run/lab-keyring /etc/pve/priv/ceph/ceph-ns.keyring
    sed -i s/10.78.0.3/10.77.0.3/ /etc/pve/.members
    devices() { set -- /sys/bus/rbd/devices/*; [ -e "$1" ]; }
    tries=0
    while devices && [ $tries -lt 20 ]; do
        for d in /sys/bus/rbd/devices/*; do echo ${d##*/} >/sys/bus/rbd/remove_single_major; done
        tries=$((tries + 1)); ! devices || sleep 0.2
    done
    test -e /sys/bus/rbd || modprobe rbd
    udevadm settle
    ! devices"#;

/// A guest's disk.
#[derive(Debug, Clone)]
pub struct Disk {
    pub storage: &'static Storage,
    pub image: String,
}

/// A disk.
pub fn disk(storage: &'static Storage, image: impl Into<String>) -> Disk {
    Disk { storage, image: image.into() }
}

impl Disk {
    /// `POOL[/NAMESPACE]/IMAGE`.
    pub fn spec(&self) -> String {
        format!("{}/{}", self.storage.place, self.image)
    }

    /// `rbd` with Proxmox VE's own arguments on this storage (RBDPlugin.pm, `$rbd_cmd`).
    pub fn rbd(&self, operation: &str) -> String {
        let Storage { id, place, user } = self.storage;
        let (pool, namespace) = place.split_once('/').unwrap_or((place, ""));
        let namespace =
            if namespace.is_empty() { String::new() } else { format!(" --namespace {namespace}") };
        format!(
            "rbd -p {pool}{namespace} -c /etc/pve/ceph.conf --auth_client_required cephx -n client.{user} \
             --keyring /etc/pve/priv/ceph/{id}.keyring {operation} {}",
            self.image
        )
    }
}

/// Lets a test at the nodes when nobody else is. Afterwards: no live client was harmed, and all is clean again.
pub fn on_the_kernel(test: impl FnOnce(&Kernel)) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let kernel = Kernel::open();
    let begun = Instant::now();
    let result = catch_unwind(AssertUnwindSafe(|| {
        test(&kernel);
        kernel.assert_nobody_harmed();
    }));
    let tested = begun.elapsed();
    kernel.clean();
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    say(&format!(
        "{name}: {:.0} s, and {:.0} s to clean up",
        tested.as_secs_f32(),
        (begun.elapsed() - tested).as_secs_f32()
    ));
    if let Err(panic) = result {
        resume_unwind(panic);
    }
}

/// A line for whoever runs the tests, also of tests that pass.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "    {line}");
}

/// The lab during one test.
pub struct Kernel {
    directory: PathBuf,
    /// The cluster's.
    pub fsid: String,
    vmid: Cell<u32>,
    images: Cell<usize>,
    blocklist: BTreeSet<String>,
    dead: RefCell<BTreeSet<String>>,
}

impl Kernel {
    fn open() -> Self {
        let directory: PathBuf = std::env::var_os("RBD_PREFLIGHT_KERNEL_LAB")
            .expect(
                "RBD_PREFLIGHT_KERNEL_LAB is not set: these tests need two nodes; run them with tests/run",
            )
            .into();
        let environment = std::fs::read_to_string(directory.join("env")).unwrap();
        let fsid = environment.lines().find_map(|line| line.strip_prefix("export FSID="));
        let fsid = fsid.unwrap().trim_matches('\'').to_owned();
        let mut kernel = Self {
            directory,
            fsid,
            vmid: Cell::new(0),
            images: Cell::new(0),
            blocklist: BTreeSet::new(),
            dead: RefCell::default(),
        };
        if kernel.unclean().exists() {
            // The last run was killed.
            kernel.clean();
        }
        kernel.prepare();
        std::fs::write(kernel.unclean(), "").unwrap();
        kernel.blocklist = kernel.blocklisted();
        kernel
    }

    /// What all tests need and the first one makes; a node that died comes back.
    fn prepare(&self) {
        if !self.ceph(&["osd", "pool", "ls"]).lines().any(|pool| pool == "mirror") {
            self.ceph(&["osd", "pool", "create", "mirror", "8"]);
            self.rbd(&["pool", "init", "mirror"]);
            self.rbd(&["mirror", "pool", "enable", "mirror", "image"]);
            self.rbd(&["create", "--size", "8M", WITNESS]);
        }
        self.wake_witness();
        for node in [self.node(1), self.node(2)] {
            node.come_up();
        }
    }

    fn unclean(&self) -> PathBuf {
        self.directory.join("run/unclean")
    }

    fn witness(&self) -> PathBuf {
        self.directory.join("run/witness.pid")
    }

    fn writer(&self, what: &str, pid_file: &PathBuf) -> bool {
        tool("writer").arg(what).arg(pid_file).stderr(Stdio::null()).status().unwrap().success()
    }

    /// The node pve1 or pve2.
    pub fn node(&self, number: u8) -> KernelNode<'_> {
        KernelNode { kernel: self, number }
    }

    /// A program beside the Ceph, as client.admin, which must succeed.
    pub fn host(&self, program: &str, arguments: &[&str]) -> String {
        succeed(tool("ceph").arg("exec").arg(&self.directory).arg(program).args(arguments))
    }

    /// Runs `ceph`, which must succeed.
    pub fn ceph(&self, arguments: &[&str]) -> String {
        self.host("ceph", arguments)
    }

    /// Runs `rbd`, which must succeed.
    pub fn rbd(&self, arguments: &[&str]) -> String {
        self.host("rbd", arguments)
    }

    /// What `rbd ARGUMENTS --format json` says.
    pub fn rbd_json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.rbd(&[arguments, &["--format", "json"]].concat())).unwrap()
    }

    /// A number that no other guest has had in this lab.
    pub fn new_vmid(&self) -> u32 {
        let file = self.directory.join("run/last-vmid");
        let last = std::fs::read_to_string(&file).map_or(500, |text| text.parse().unwrap());
        std::fs::write(file, (last + 1).to_string()).unwrap();
        self.vmid.set(last + 1);
        last + 1
    }

    /// An image of 8 MiB that holds what guests' disks hold: in turn, each of [`CONTENTS`].
    pub fn image(&self, disk: &Disk, features: &str) {
        let turn = self.images.get();
        self.images.set(turn + 1);
        self.image_with(disk, features, CONTENTS[turn % CONTENTS.len()]);
    }

    /// An image of 8 MiB that holds this.
    pub fn image_with(&self, disk: &Disk, features: &str, content: &str) {
        let file = self.directory.join(format!("content.{content}"));
        if !file.exists() {
            succeed(tool("content").arg(content).arg(&file));
        }
        let file = file.to_str().unwrap();
        self.rbd(&["import", "--no-progress", file, &disk.spec(), "--image-feature", features]);
    }

    /// The names of an image's features.
    pub fn features(&self, disk: &Disk) -> Vec<String> {
        serde_json::from_value(self.rbd_json(&["info", &disk.spec()])["features"].clone()).unwrap()
    }

    /// The names of an image's flags.
    pub fn flags(&self, spec: &str) -> Vec<String> {
        serde_json::from_value(self.rbd_json(&["info", spec])["flags"].clone()).unwrap()
    }

    /// The id of an image.
    pub fn image_id(&self, spec: &str) -> String {
        self.rbd_json(&["info", spec])["id"].as_str().unwrap().to_owned()
    }

    /// The addresses of those who have an image open.
    pub fn watchers(&self, disk: &Disk) -> Vec<String> {
        let status = self.rbd_json(&["status", &disk.spec()]);
        let addresses = status["watchers"].as_array().unwrap().iter();
        addresses.map(|watcher| watcher["address"].as_str().unwrap().to_owned()).collect()
    }

    /// The address of the owner of an image's lock.
    pub fn lock_owner(&self, disk: &Disk) -> Option<String> {
        let lockers = self.rbd_json(&["lock", "ls", &disk.spec()]);
        lockers.get(0).map(|locker| locker["address"].as_str().unwrap().to_owned())
    }

    /// Who is on the blocklist.
    pub fn blocklisted(&self) -> BTreeSet<String> {
        let text = self.ceph(&["osd", "blocklist", "ls", "--format", "json"]);
        // Newer releases add a list of ranges, as a second document.
        let first = serde_json::Deserializer::from_str(&text).into_iter::<Value>().next().unwrap().unwrap();
        first.as_array().unwrap().iter().map(|entry| entry["addr"].as_str().unwrap().to_owned()).collect()
    }

    /// This client is dead, by the test's own hand: it may be blocklisted.
    pub fn is_dead(&self, address: &str) {
        self.dead.borrow_mut().insert(address.to_owned());
    }

    /// Puts a client on the blocklist, as whoever breaks its lock does.
    pub fn blocklist(&self, address: &str) {
        self.is_dead(address);
        self.ceph(&["osd", "blocklist", "add", address]);
    }

    /// The witness writes on, and nobody is on the blocklist but those that the test killed.
    pub fn assert_nobody_harmed(&self) {
        assert!(self.writer("alive", &self.witness()), "a live writer was harmed");
        let known = &self.blocklist | &*self.dead.borrow();
        let new: Vec<String> = self.blocklisted().difference(&known).cloned().collect();
        assert!(new.is_empty(), "{new:?} was put on the blocklist");
    }

    /// A live librbd client that owns the image's lock and writes all the time; the end of the lab ends it.
    pub fn live_writer(&self, disk: &Disk) -> LiveWriter<'_> {
        let pid_file = self.directory.join(format!("run/{}.pid", super::unique("writer")));
        succeed(tool("writer").arg("start").arg(&self.directory).arg(disk.spec()).arg(&pid_file));
        LiveWriter { kernel: self, pid_file }
    }

    /// An image whose lock was left by a librbd client that crashed.
    pub fn leave_lock(&self, disk: &Disk) {
        let writer = self.live_writer(disk);
        self.is_dead(&self.lock_owner(disk).unwrap());
        drop(writer);
    }

    /// Stops the daemons' time: `mon`, `osd` or `all`.
    pub fn pause(&self, daemons: &str) {
        succeed(tool("ceph").arg("pause").arg(&self.directory).arg(daemons));
    }

    /// Stops the OSD as a reboot of its node does, with the data that it has, while something is done.
    pub fn without_the_osd<T>(&self, work: impl FnOnce() -> T) -> T {
        succeed(tool("ceph").arg("osd-down").arg(&self.directory));
        let result = work();
        succeed(tool("ceph").arg("osd-up").arg(&self.directory));
        self.wake_witness();
        result
    }

    /// Ends a pause. What the pause did to the witness is the lab's doing, not the product's.
    pub fn resume(&self, daemons: &str) {
        succeed(tool("ceph").arg("resume").arg(&self.directory).arg(daemons));
        self.wake_witness();
    }

    /// The witness writes; one that does not is replaced. In a pause longer than its watch lasts a librbd client
    /// loses the watch, and does not always find back.
    fn wake_witness(&self) {
        if self.writer("alive", &self.witness()) {
            return;
        }
        let lockers = self.rbd_json(&["lock", "ls", WITNESS]);
        let owner = lockers.get(0).and_then(|locker| locker["address"].as_str());
        owner.into_iter().for_each(|address| self.is_dead(address));
        self.writer("kill", &self.witness());
        succeed(tool("writer").arg("start").arg(&self.directory).arg(WITNESS).arg(self.witness()));
    }

    fn clean(&self) {
        self.resume("all");
        let nodes = [self.node(1), self.node(2)];
        let cleaning = nodes.map(|node| node.spawn(&format!("({CLEAN}) && {LEFT_RUNNING}")));
        for (node, cleaned) in nodes.iter().zip(cleaning) {
            node.clean(&cleaned.join().unwrap());
        }
        let _ = std::fs::remove_file(self.unclean());
    }
}

/// A live librbd client; it is killed when it is dropped.
pub struct LiveWriter<'a> {
    kernel: &'a Kernel,
    pid_file: PathBuf,
}

impl LiveWriter<'_> {
    /// It lives and its writes still succeed.
    pub fn alive(&self) -> bool {
        self.kernel.writer("alive", &self.pid_file)
    }
}

impl Drop for LiveWriter<'_> {
    fn drop(&mut self) {
        self.kernel.writer("kill", &self.pid_file);
    }
}

/// One of the two nodes.
#[derive(Clone, Copy)]
pub struct KernelNode<'a> {
    kernel: &'a Kernel,
    number: u8,
}

impl KernelNode<'_> {
    fn tool(&self, what: &str) -> Command {
        let mut command = tool("node");
        command.arg(what).arg(&self.kernel.directory).arg(self.number.to_string());
        command
    }

    fn command(&self, limit: Duration, script: &str) -> Command {
        let mut command = self.tool("run");
        command.args(["--timeout", &limit.as_secs().to_string(), "--", "/bin/sh", "-c", script]);
        command
    }

    /// Runs a shell's script there. Exit code 124: `limit` is up, and it was killed; 125: the node is gone.
    pub fn within(&self, limit: Duration, script: &str) -> Ran {
        Ran::of(self.command(limit, script))
    }

    /// Runs a shell's script there.
    pub fn run(&self, script: &str) -> Ran {
        self.within(LIMIT, script)
    }

    /// The output of a script that must succeed.
    pub fn must(&self, script: &str) -> String {
        let ran = self.run(script);
        assert_eq!(ran.code, 0, "pve{}: {script}: {ran:?}", self.number);
        ran.stdout
    }

    /// Runs the product.
    pub fn preflight(&self, arguments: &str) -> Ran {
        self.run(&format!("rbd-preflight {arguments}"))
    }

    /// Runs the hook before a guest's start.
    pub fn hook(&self, vmid: u32) -> Ran {
        self.preflight(&format!("hook {vmid} pre-start"))
    }

    /// `check --json`, whatever it exits with.
    pub fn check(&self, vmid: u32) -> Value {
        let ran = self.preflight(&format!("check {vmid} --json"));
        serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
    }

    /// The same as [`super::node::Node::assert_healthy`]; what was done to the cluster before may have to pass.
    pub fn assert_healthy(&self, vmid: u32) {
        wait_until("nothing is said of a healthy guest that is more than a note", LIMIT, || {
            alarms(&self.check(vmid)).is_empty()
        });
    }

    /// Starts a script that goes on by itself.
    pub fn spawn(&self, script: &str) -> std::thread::JoinHandle<Ran> {
        let command = self.command(LIMIT, script);
        std::thread::spawn(|| Ran::of(command))
    }

    /// Writes a file in the node.
    pub fn put(&self, path: &str, text: &str) {
        let file = tempfile::NamedTempFile::new_in(&self.kernel.directory).unwrap();
        std::fs::write(file.path(), text).unwrap();
        succeed(self.tool("put").arg(file.path()).arg(path));
    }

    /// Gives this node a guest, and writes .vmlist as the cluster file system would.
    pub fn guest(&self, vmid: u32, config: &str) {
        self.put(&format!("/etc/pve/nodes/pve{}/qemu-server/{vmid}.conf", self.number), config);
        self.must(
            r#"cd /etc/pve; list=$(for file in nodes/*/qemu-server/[0-9]*.conf; do
                 node=${file#nodes/}; id=${file##*/}
                 printf '"%s": { "node": "%s", "type": "qemu", "version": 1 },' "${id%.conf}" "${node%%/*}"
               done)
               printf '{"version": 3, "ids": {%s}}\n' "${list%,}" >.vmlist.new && mv .vmlist.new .vmlist"#,
        );
    }

    /// A new guest here with these disks, scsi0 and so on, each image with these features; its number.
    pub fn guest_with(&self, disks: &[(&'static Storage, &str)]) -> (u32, Vec<Disk>) {
        let vmid = self.kernel.new_vmid();
        let mut config = format!("name: guest{vmid}\n");
        let mut all = Vec::new();
        for (n, (storage, features)) in disks.iter().enumerate() {
            let disk = disk(storage, format!("vm-{vmid}-disk-{n}"));
            self.kernel.image(&disk, features);
            config += &format!("scsi{n}: {}:{},size=8M\n", storage.id, disk.image);
            all.push(disk);
        }
        self.guest(vmid, &config);
        (vmid, all)
    }

    /// Takes disks' mappings away as Proxmox VE does at a guest's end.
    pub fn unmap(&self, disks: &[Disk]) {
        let one = |disk: &Disk| {
            let pool = disk.storage.place.split('/').next().unwrap();
            format!("rbd -p {pool} unmap {} || exit\n", self.device(disk))
        };
        self.must(&disks.iter().map(one).collect::<String>());
    }

    /// The link at which Proxmox VE looks for a disk.
    pub fn device(&self, disk: &Disk) -> String {
        format!("/dev/rbd-pve/{}/{}", self.kernel.fsid, disk.spec())
    }

    /// What Proxmox VE does without us: each disk in turn, one try, a device that is there is taken as it is.
    /// The exit codes of `rbd map`, 0 for a device that was there; 124 after a minute.
    pub fn pve_start(&self, disks: &[Disk]) -> Vec<i32> {
        let one = |disk: &Disk| {
            format!(
                "test -b {} || timeout 60 {} >/dev/null 2>&1; echo $?;",
                self.device(disk),
                disk.rbd("map")
            )
        };
        let script: String = disks.iter().map(one).collect();
        self.must(&script).lines().map(|code| code.parse().unwrap()).collect()
    }

    /// Asserts that a start can begin: each disk is mapped at its link, once, and can be written through it.
    pub fn assert_ready(&self, disks: &[Disk]) {
        let write = |disk: &Disk| {
            let device = self.device(disk);
            format!(
                "dd if=/dev/zero of={device} bs=4k count=1 seek=512 oflag=direct conv=notrunc,nocreat status=none || exit 1\n"
            )
        };
        let ran = self.run(&disks.iter().map(write).collect::<String>());
        assert_eq!(ran.code, 0, "{ran:?}\n{}\n{}", self.said(), self.waits_for());
        let mapped = self.mapped();
        for disk in disks {
            let times = mapped.iter().filter(|mapping| mapping.spec == disk.spec()).count();
            assert_eq!(times, 1, "{disk:?} in {mapped:?}");
        }
    }

    /// What is mapped here, in order of the devices' numbers.
    pub fn mapped(&self) -> Vec<Mapped> {
        let text = self.must(
            "cd /sys/bus/rbd/devices; for d in $(ls | sort -n); do
               ns=$(cat $d/pool_ns 2>/dev/null)
               echo \"$d $(cat $d/pool)${ns:+/$ns}/$(cat $d/name) $(cat $d/client_addr) $(cat $d/config_info)\"
             done",
        );
        text.lines()
            .map(|line| {
                let mut fields = line.splitn(4, ' ').map(str::to_owned);
                let mut next = || fields.next().unwrap();
                Mapped {
                    device: format!("/dev/rbd{}", next()),
                    spec: next(),
                    client: next(),
                    options: next(),
                }
            })
            .collect()
    }

    /// The address of the kernel's client that has this disk mapped.
    pub fn client_of(&self, disk: &Disk) -> String {
        let mapped = self.mapped();
        let mapping = mapped.iter().find(|mapping| mapping.spec == disk.spec());
        mapping.unwrap_or_else(|| panic!("{disk:?} is not in {mapped:?}")).client.clone()
    }

    /// Puts the kernel's client on the blocklist that has this disk mapped, and waits until the kernel knows.
    pub fn blocklist_client_of(&self, disk: &Disk) -> String {
        let address = self.client_of(disk);
        self.kernel.blocklist(&address);
        wait_until("the kernel sees that its client is dead", Duration::from_secs(30), || {
            self.run(&format!("dd if=/dev/zero of={} bs=4k count=1 oflag=direct", self.device(disk))).code
                == 1
        });
        address
    }

    /// A process that has a device open and writes to it, as QEMU would, with these arguments; its number.
    pub fn writer(&self, disk: &Disk, arguments: &str) -> u32 {
        let device = self.device(disk);
        let pid = self.must(&format!(
            "setsid /usr/bin/python3 -I -S {HOLDER} {device} {arguments} </dev/null >/run/lab-holder.log 2>&1 & echo $! | tee -a /run/lab-holders
             until test -s /run/lab-holder.$!; do kill -0 $! && sleep 0.1 || {{ cat /run/lab-holder.log >&2; exit 1; }}; done"
        ));
        pid.trim().parse().unwrap()
    }

    /// The process has its device still open and its writes succeed.
    pub fn writes(&self, pid: u32) -> bool {
        let count = format!("cat /run/lab-holder.{pid}");
        let script = format!(
            "a=$({count}); n=0; while [ $n -lt 30 ]; do
               kill -0 {pid} || exit 1; b=$({count}); case $b in *failed*) exit 1;; esac
               [ \"$a\" = \"$b\" ] || exit 0; n=$((n+1)); sleep 0.1
             done; exit 1"
        );
        self.run(&script).code == 0
    }

    /// A process that stands for the guest's QEMU on this disk.
    pub fn run_guest(&self, vmid: u32, disk: &Disk) -> u32 {
        let pid_file = format!("/var/run/qemu-server/{vmid}.pid");
        let pid = self.writer(disk, &format!("-id {vmid} -pidfile {pid_file}"));
        self.must(&format!("echo {pid} >{pid_file}"));
        pid
    }

    /// Ends a process that a test started.
    pub fn kill(&self, pid: u32) {
        self.must(&format!("kill -9 {pid}; while kill -0 {pid} 2>/dev/null; do sleep 0.1; done"));
    }

    /// What its kernel said of rbd last.
    pub fn said(&self) -> String {
        self.must("dmesg | grep -E 'rbd:|libceph:' | tail -n 25")
    }

    /// What a write that does not end waits for: the kernel's requests to the OSDs, the network, who sleeps where.
    fn waits_for(&self) -> String {
        self.must(
            "mount -t debugfs none /sys/kernel/debug 2>/dev/null; tail -n 30 /sys/kernel/debug/ceph/*/osdc
             ss -tno; ip -s link
             echo w >/proc/sysrq-trigger; dmesg | sed -n '/Show Blocked/,$p' | tail -n 150",
        )
    }

    /// Runs what is given and returns what the kernel said meanwhile.
    pub fn hear<T>(&self, act: impl FnOnce() -> T) -> (T, String) {
        // The log forgets its beginning, so lines cannot be counted.
        let mark = super::unique("lab-mark");
        self.must(&format!("echo {mark} >/dev/kmsg"));
        let result = act();
        (result, self.must(&format!("dmesg | sed '1,/{mark}$/d'")))
    }

    /// A program that is found before the real one of that name by `PATH=/run/lab-path:$PATH`.
    pub fn stand_in(&self, name: &str, script: &str) {
        let path = format!("/run/lab-path/{name}");
        self.put(&path, &format!("#!/bin/sh\n{script}\n"));
        self.must(&format!("chmod 755 {path}"));
    }

    /// Numbers and command lines of processes that are the product, an `rbd`, or a stand-in that sleeps.
    pub fn left_running(&self) -> String {
        self.must(LEFT_RUNNING)
    }

    /// Ends it as a power cut does: locks and watches stay. Its clients may be blocklisted.
    pub fn crash(&self) {
        for mapping in self.mapped() {
            self.kernel.is_dead(&mapping.client);
        }
        succeed(&mut self.tool("crash"));
    }

    /// Takes its Ceph network away while something is done; commands still reach it.
    pub fn without_ceph<T>(&self, work: impl FnOnce() -> T) -> T {
        succeed(&mut self.tool("cut"));
        let result = catch_unwind(AssertUnwindSafe(work));
        succeed(&mut self.tool("join"));
        result.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Lets a node that crashed boot while other things are done.
    pub fn boot(&self) {
        succeed(self.tool("start").arg("--no-wait"));
    }

    fn boot_if_dead(&self) {
        if !self.tool("status").stdout(Stdio::null()).status().unwrap().success() {
            self.boot();
        }
    }

    fn come_up(&self) {
        self.boot_if_dead();
        succeed(&mut self.tool("wait"));
        let binary = std::path::Path::new(env!("CARGO_BIN_EXE_rbd-preflight"));
        let built = binary.metadata().unwrap().modified().unwrap();
        let wanted = format!("{built:?} {}", include_str!("holder.py").len());
        if self.run("cat /run/lab-prepared").stdout == wanted {
            return;
        }
        // Without its symbols it is carried over four times as fast.
        let stripped = self.kernel.directory.join(format!("rbd-preflight.{}", self.number));
        succeed(Command::new("strip").arg("--strip-debug").arg("-o").arg(&stripped).arg(binary));
        succeed(self.tool("put").arg(&stripped).arg("/usr/local/bin/rbd-preflight"));
        self.put(HOLDER, include_str!("holder.py"));
        if self.run("grep -q krbd-poor /etc/pve/storage.cfg").code != 0 {
            let storages = self.must("cat /etc/pve/storage.cfg") + MORE_STORAGES;
            self.put("/etc/pve/storage.cfg", &storages);
            self.must(
                "cd /etc/pve/priv/ceph; cp ceph-poor.keyring krbd-poor.keyring
                 for id in krbd-mirror no-pool no-namespace; do cp ceph-krbd.keyring $id.keyring; done",
            );
        }
        self.put("/run/lab-prepared", &wanted);
    }

    /// Takes away what tests leave; a node on which that does not succeed is started anew.
    fn clean(&self, ran: &Ran) {
        if ran.code == 125 {
            // Dead, or on its way up again.
            return self.boot_if_dead();
        }
        if ran.code != 0 || !ran.stdout.is_empty() {
            say(&format!("pve{} cannot be cleaned ({ran:?}) and boots again", self.number));
            succeed(&mut self.tool("crash"));
            self.boot();
        }
    }
}

/// A mapping.
#[derive(Debug, Clone)]
pub struct Mapped {
    /// `/dev/rbd0`.
    pub device: String,
    /// `POOL[/NAMESPACE]/IMAGE`.
    pub spec: String,
    /// The client's address.
    pub client: String,
    /// What was written to the kernel to map it.
    pub options: String,
}
