//! `rehearse` on a cluster of two nodes, whose ssh to each other is played by `tests/fakes/ssh`: the real binary with
//! another root, or whatever else may answer.

use crate::common::node::{DEFAULT, Node, Ran, new_vmid};
use crate::common::{Lab, executable, wait_until};
use serde_json::Value;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const FAKES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fakes");
const BINARY: &str = env!("CARGO_BIN_EXE_rbd-preflight");

/// Two nodes, pve1 and pve2, of one cluster: pve2 has a root of its own.
struct Pair {
    one: Node,
    two: tempfile::TempDir,
}

impl Pair {
    /// Both have everything that the other one has.
    fn new() -> Self {
        let one = Node::on(Lab::shared());
        let pair = Self { one, two: tempfile::tempdir().unwrap() };
        pair.peer(&format!("exec env RBD_PREFLIGHT_ROOT={} {BINARY} \"$@\"", pair.two.path().display()));
        // `rbd-preflight` is the command's first word, as it is over ssh.
        let script = std::fs::read_to_string(pair.peers().join("pve2")).unwrap();
        executable(&pair.peers().join("pve2"), &script.replace("exec env", "shift; exec env"));
        pair
    }

    fn peers(&self) -> std::path::PathBuf {
        self.one.path("/peers")
    }

    /// What pve2 does when it is asked over ssh.
    fn peer(&self, script: &str) {
        executable(&self.peers().join("pve2"), &format!("#!/bin/sh\n{script}\n"));
    }

    /// A VM of pve1 with a disk of its own.
    fn vm(&self, config: &str) -> u32 {
        let vmid = new_vmid();
        self.one.image(&format!("rbd/vm-{vmid}-disk-0"), DEFAULT);
        self.one.vm(vmid, &format!("name: web\nscsi0: ceph-krbd:vm-{vmid}-disk-0,size=8M\n{config}"));
        vmid
    }

    /// Gives pve2 what pve1 has now: pmxcfs shows all nodes the same /etc/pve.
    fn sync(&self) {
        let two = self.two.path();
        let copied =
            Command::new("cp").arg("-aT").args([self.one.path("/"), two.to_owned()]).status().unwrap();
        assert!(copied.success());
        std::fs::remove_file(two.join("etc/pve/local")).unwrap();
        symlink("nodes/pve2", two.join("etc/pve/local")).unwrap();
        // External storages have a ceph.conf that names the keyring in the root.
        let conf = two.join("etc/pve/priv/ceph/ceph-poor.conf");
        let text = std::fs::read_to_string(&conf).unwrap();
        std::fs::write(
            conf,
            text.replace(self.one.path("/").to_str().unwrap(), &format!("{}/", two.display())),
        )
        .unwrap();
    }

    fn there(&self, path: &str) -> std::path::PathBuf {
        self.two.path().join(path.trim_start_matches('/'))
    }

    fn run<const N: usize>(&self, arguments: [&str; N]) -> Ran {
        let mut command = self.one.command(arguments);
        let path = format!("{FAKES}:{}", std::env::var("PATH").unwrap());
        command.env("PATH", path).env("FAKE_PEERS", self.peers());
        Ran::of(command)
    }

    /// `rehearse --json`, and how it ended.
    fn rehearse(&self) -> (Value, i32) {
        let ran = self.run(["rehearse", "--json"]);
        (serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}")), ran.code)
    }
}

/// Nothing that a rehearsal is made of names what carries out changes, or what notes them.
#[test]
fn no_part_of_a_rehearsal_reaches_what_changes_anything() {
    let parts = [
        "commands/rehearse.rs",
        "commands/here.rs",
        "commands/many_guests.rs",
        "rehearsal.rs",
        "report/rehearsal.rs",
    ];
    let more =
        ["pve/peer.rs", "pve/needs.rs", "pve/ha_rules.rs", "observe/rehearsed.rs", "observe/gather.rs"];
    for part in parts.into_iter().chain(more) {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(part);
        let text = std::fs::read_to_string(&file).unwrap();
        for word in ["crate::act:", "crate::act;", "crate::journal", "crate::commands::live", "Step::Set"] {
            assert!(!text.contains(word), "{part} names {word}");
        }
    }
}

fn row(report: &Value, vmid: u32) -> &Value {
    let guests = report["guests"].as_array().unwrap();
    guests.iter().find(|guest| guest["vmid"] == vmid).unwrap_or_else(|| panic!("no {vmid} in {report:#}"))
}

/// `ready`, or the verdict and the codes of the reasons.
fn cell(report: &Value, vmid: u32, node: &str) -> String {
    let on = row(report, vmid)["on"].as_array().unwrap();
    let cell = on.iter().find(|cell| cell["node"] == node).unwrap();
    let reasons = cell["reasons"].as_array().unwrap().iter().map(|said| said["code"].as_str().unwrap());
    let words = std::iter::once(cell["verdict"].as_str().unwrap()).chain(reasons);
    words.collect::<Vec<_>>().join(" ")
}

/// All that is in a directory: each file with its text, its mode and when it was written.
fn tree(directory: &Path) -> Vec<String> {
    let mut command = Command::new("/usr/bin/find");
    command.arg(directory).args(["-not", "-path", "*/run/*", "-printf", "%p %m %s %T@ %l\\n"]);
    let mut lines: Vec<String> =
        String::from_utf8(command.output().unwrap().stdout).unwrap().lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn a_guest_that_lacks_something_on_the_other_node_is_told_with_the_cause() {
    let pair = Pair::new();
    let healthy = pair.vm("");
    pair.one.assert_healthy(healthy);
    let far = new_vmid();
    pair.one.append(
        "/etc/pve/storage.cfg",
        "\nrbd: near\n\tcontent images\n\tkrbd 1\n\tpool rbd\n\tnodes pve1\n",
    );
    let key = |id: &str| pair.one.path(&format!("/etc/pve/priv/ceph/{id}.keyring"));
    std::fs::copy(key("ceph-krbd"), key("near")).unwrap();
    pair.one.image(&format!("rbd/vm-{far}-disk-0"), DEFAULT);
    pair.one.vm(far, &format!("name: far\nscsi0: near:vm-{far}-disk-0\n"));
    let hooked = pair.vm("hookscript: local:snippets/rbd-preflight\n");
    executable(&pair.one.path("/var/lib/vz/snippets/rbd-preflight"), "#!/bin/sh\n");
    let apart = pair.vm("");
    pair.one.write("/etc/pve/ha/resources.cfg", &format!("vm: {healthy}\n\nvm: {apart}\n"));
    pair.one.write(
        "/etc/pve/ha/rules.cfg",
        &format!("node-affinity: near\n\tresources vm:{apart}\n\tnodes pve1\n\tstrict 1\n"),
    );
    let wide = pair.vm("cores: 100000\n");
    let local = pair.vm("ide2: local:iso/x.iso,media=cdrom\n");
    pair.one.write("/var/lib/vz/template/iso/x.iso", "");
    pair.sync();
    for file in ["/var/lib/vz/snippets/rbd-preflight", "/var/lib/vz/template/iso/x.iso"] {
        std::fs::remove_file(pair.there(file)).unwrap();
    }
    // What another kernel can map.
    let features = pair.there("/sys/bus/rbd/supported_features");

    let before = [tree(&pair.one.path("/etc")), tree(&pair.there("/etc"))];
    let (report, code) = pair.rehearse();
    let cells = [
        (healthy, "ready", "ready"),
        (far, "ready", "blocked storage-not-on-node"),
        (hooked, "ready", "blocked hookscript-missing"),
        (apart, "ready", "blocked ha-rule-forbids"),
        (wide, "blocked resource-missing", "blocked resource-missing"),
        (local, "ready", "blocked resource-missing"),
    ];
    for (vmid, one, two) in cells {
        assert_eq!(
            (cell(&report, vmid, "pve1"), cell(&report, vmid, "pve2")),
            (one.into(), two.into()),
            "{report:#}"
        );
    }
    assert_eq!(report["guests"][0]["vmid"], apart, "the guest of HA that can go nowhere comes first");
    assert_eq!(code, 3, "{report:#}");
    assert_eq!([tree(&pair.one.path("/etc")), tree(&pair.there("/etc"))], before, "nothing was written");
    assert!(!pair.one.path("/var/lib/rbd-preflight").exists(), "there was nothing to be noted");

    let table = pair.run(["rehearse"]);
    assert_eq!(table.code, 3, "{table:?}");
    let said = format!("VM {far} on pve2: the disk's storage is not available on this node");
    assert!(table.stdout.contains("blocked storage-not-on-node"), "{}", table.stdout);
    assert!(
        table.stdout.contains(&said) || table.stdout.contains(&said.replace("on pve2: ", "on pve2: scsi0: "))
    );
    assert!(!table.stdout.contains("repair"), "nothing is offered for a guest elsewhere: {}", table.stdout);

    let few = pair.run(["rehearse", "--json", "--code", "storage-not-on-node"]);
    let few: Value = serde_json::from_str(&few.stdout).unwrap();
    assert_eq!(few["guests"].as_array().unwrap().len(), 1, "{few:#}");
    let near = pair.run(["rehearse", "--json", "--storage", "near"]);
    assert!(near.stdout.contains(&far.to_string()) && !near.stdout.contains(&healthy.to_string()));
    let alone = pair.run(["rehearse", "--json", "--node", "pve2", "--only", "blocked"]);
    let alone: Value = serde_json::from_str(&alone.stdout).unwrap();
    assert_eq!(
        (alone["nodes"].as_array().unwrap().len(), cell(&alone, far, "pve2")),
        (1, "blocked storage-not-on-node".into())
    );
    assert_eq!(pair.run(["rehearse", "--node", "pve9"]).code, 2);

    // Without the rule the guest of HA has a place.
    for root in [pair.one.path("/"), pair.two.path().to_owned()] {
        std::fs::remove_file(root.join("etc/pve/ha/rules.cfg")).unwrap();
    }
    let (report, code) = pair.rehearse();
    assert_eq!((cell(&report, apart, "pve2").as_str(), code), ("ready", 0), "{report:#}");

    // A kernel that cannot map the images, and keys that are nonsense, not there, or of a type that is too new.
    std::fs::write(&features, "0x1\n").unwrap();
    assert_eq!(cell(&pair.rehearse().0, healthy, "pve2"), "blocked features-unsupported");
    std::fs::write(&features, "0x1bf\n").unwrap();
    let keyring = pair.there("/etc/pve/priv/ceph/ceph-krbd.keyring");
    let key = std::fs::read_to_string(&keyring).unwrap();
    std::fs::write(pair.there("/proc/sys/kernel/osrelease"), "6.14.8-2-pve\n").unwrap();
    for (content, codes) in
        [(Some("nonsense"), "keyring-"), (Some(crate::keys::AES256K), "key"), (None, "keyring-missing")]
    {
        match content {
            Some(key) => std::fs::write(&keyring, format!("[client.admin]\n\tkey = {key}\n")).unwrap(),
            None => std::fs::remove_file(&keyring).unwrap(),
        }
        let (report, code) = pair.rehearse();
        let broken = cell(&report, healthy, "pve2");
        // A librados that knows the new type of key is refused by the monitors besides.
        assert!(
            broken.starts_with("blocked ") && broken.contains(codes),
            "{content:?}: {broken}: {report:#}"
        );
        assert_eq!((cell(&report, healthy, "pve1").as_str(), code), ("ready", 3));
        assert!(!report.to_string().contains(content.unwrap_or("=key=")), "a key is shown to nobody");
    }
    std::fs::write(&keyring, key).unwrap();
}

#[test]
fn a_node_that_does_not_answer_is_a_column_that_says_so() {
    let pair = Pair::new();
    let vmid = pair.vm("");
    pair.one.write("/etc/pve/ha/resources.cfg", &format!("vm: {vmid}\n"));
    let silent = |script: &str, state: &str, words: &str| {
        pair.peer(script);
        let (report, code) = pair.rehearse();
        let node = &report["nodes"][1];
        assert_eq!((node["state"].as_str(), code), (Some(state), 1), "{script}: {report:#}");
        assert!(node["error"].as_str().unwrap().contains(words), "{script}: {node}");
        assert_eq!(
            (cell(&report, vmid, "pve1").as_str(), cell(&report, vmid, "pve2").as_str()),
            ("ready", "unknown")
        );
    };
    silent(
        "echo 'bash: line 1: rbd-preflight: command not found' >&2; exit 127",
        "no-tool",
        "command not found",
    );
    let older = "error: unexpected argument '--here' found";
    silent(&format!("echo \"{older}\" >&2; exit 2"), "older-tool", "does not know");
    silent("echo 'Host key verification failed.' >&2; exit 255", "no-answer", "Host key verification failed");
    silent("echo hello", "no-sense", "not the JSON");
    silent("echo '{\"schema\":1,\"guests\":[]}'", "no-sense", "node");
    silent("echo '{\"schema\":1,\"node\":\"pve7\",\"guests\":[]}'", "no-sense", "pve7");
    silent("kill -9 $$", "no-sense", "signal");
    silent(
        "echo '{\"schema\":1,\"node\":\"pve2\",\"guests\":[' ; head -c 17000000 /dev/zero | tr '\\0' ' '",
        "no-sense",
        "16 MiB",
    );
    std::fs::remove_file(pair.peers().join("pve2")).unwrap();
    let table = pair.run(["rehearse"]);
    assert!(table.stdout.contains("pve2: no answer: fake ssh: connect to host pve2"), "{}", table.stdout);
    assert!(table.stdout.contains(&format!("not known: VM {vmid}.")), "{}", table.stdout);
    let members = std::fs::read_to_string(pair.one.path("/etc/pve/.members")).unwrap();
    pair.one
        .write("/etc/pve/.members", &members.replace("\"id\": 2, \"online\": 1", "\"id\": 2, \"online\": 0"));
    assert_eq!(pair.rehearse().0["nodes"][1]["state"], "offline");
    assert_eq!(pair.rehearse().1, 1, "and that is no yes either");
}

#[test]
fn a_node_whose_answer_does_not_end_is_given_up() {
    let pair = Pair::new();
    let vmid = pair.vm("");
    pair.peer("exec yes");
    let ran = pair.run(["rehearse", "--json", "--node", "pve2", "--deadline", "2"]);
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((report["nodes"][0]["state"].as_str(), ran.code), (Some("no-answer"), 1), "{report:#}");
    assert_eq!(cell(&report, vmid, "pve2"), "unknown");
}

/// What a guest has open on its own node keeps it from starting nowhere; what somebody else has open does, everywhere.
#[test]
fn who_is_at_a_guests_disk_is_judged_by_its_own_node() {
    let pair = Pair::new();
    let vmid = pair.vm("");
    pair.sync();
    let writer = pair.one.lab.writer(&format!("rbd/vm-{vmid}-disk-0"));
    let (report, _) = pair.rehearse();
    let words = ["pve1", "pve2"].map(|node| cell(&report, vmid, node));
    assert_eq!(
        words,
        ["refused in-use-elsewhere", "refused in-use-elsewhere"],
        "stopped, and somebody writes: {report:#}"
    );
    assert_eq!(
        cell(
            &{
                let ran = pair.run(["rehearse", "--json", "--node", "pve2"]);
                serde_json::from_str(&ran.stdout).unwrap()
            },
            vmid,
            "pve2"
        ),
        "unknown in-use-unknown",
        "pve2 alone cannot tell whether that is the guest"
    );
    // The same with the guest running on pve1: then it is the guest.
    let pid = std::process::id();
    pair.one.write(&format!("/run/qemu-server/{vmid}.pid"), &format!("{pid}\n"));
    pair.one.write(&format!("/proc/{pid}/cmdline"), &format!("/usr/bin/kvm\0-id\0{vmid}\0"));
    let (report, _) = pair.rehearse();
    assert_eq!(row(&report, vmid)["running"], true);
    assert_eq!(["pve1", "pve2"].map(|node| cell(&report, vmid, node)), ["ready", "ready"], "{report:#}");
    assert!(
        pair.one.lab.rbd_json(&["status", &format!("rbd/vm-{vmid}-disk-0")])["watchers"]
            .as_array()
            .is_some_and(|w| w.len() == 1)
    );
    writer.kill();
    wait_until("the writer's watch is gone", Duration::from_secs(90), || {
        let status = pair.one.lab.rbd_json(&["status", &format!("rbd/vm-{vmid}-disk-0")]);
        status["watchers"].as_array().is_some_and(Vec::is_empty)
    });
}

#[test]
fn metrics_of_a_rehearsal_are_numbers_with_labels() {
    let pair = Pair::new();
    let vmid = pair.vm("hookscript: local:snippets/none\n");
    pair.one.write("/etc/pve/ha/resources.cfg", &format!("vm: {vmid}\n"));
    pair.sync();
    let ran = pair.run(["rehearse", "--prometheus"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let labels = format!("vmid=\"{vmid}\",node=\"pve1\",kind=\"qemu\"");
    for line in [
        format!("rbd_preflight_rehearse_ready{{{labels},target=\"pve2\"}} 0"),
        format!("rbd_preflight_rehearse_unknown{{{labels},target=\"pve2\"}} 0"),
        format!("rbd_preflight_rehearse_ha_elsewhere{{{labels}}} 0"),
        "rbd_preflight_rehearse_answered{target=\"pve2\"} 1".to_owned(),
    ] {
        assert!(ran.stdout.lines().any(|found| found == line), "no {line} in {}", ran.stdout);
    }
    crate::fleet::are_samples(&ran.stdout);
}

/// README's example: three nodes, of which one has a storage that the others lack, one no snippet, and one no tool.
#[test]
fn readmes_table_is_what_comes_out() {
    let pair = Pair::new();
    let pool = "rehearsed";
    pair.one.lab.ceph(&["osd", "pool", "create", pool, "8"]);
    pair.one.lab.rbd(&["pool", "init", pool]);
    pair.one.storage("ceph", &format!("krbd 1; pool {pool}"));
    pair.one.storage("nvme", &format!("krbd 1; pool {pool}; nodes pve1"));
    let hook = "hookscript: local:snippets/rbd-preflight\n";
    for (vmid, name, storage, more) in [
        (101, "web", "ceph", ""),
        (102, "db", "nvme", ""),
        (103, "mail", "ceph", hook),
        (104, "test", "ceph", ""),
    ] {
        let image = format!("{pool}/vm-{vmid}-disk-0");
        // Of an earlier run of this test on the same lab.
        pair.one.lab.try_rbd(&["rm", "--no-progress", &image]);
        pair.one.image(&image, DEFAULT);
        pair.one.vm(vmid, &format!("name: {name}\nscsi0: {storage}:vm-{vmid}-disk-0,size=8M\n{more}"));
    }
    pair.one.write("/etc/pve/ha/resources.cfg", "vm: 101\n\nvm: 102\n");
    executable(&pair.one.path("/var/lib/vz/snippets/rbd-preflight"), "#!/bin/sh\n");
    std::fs::create_dir_all(pair.one.path("/etc/pve/nodes/pve3")).unwrap();
    let members = std::fs::read_to_string(pair.one.path("/etc/pve/.members")).unwrap();
    let third = "\"pve3\": { \"id\": 3, \"online\": 1, \"ip\": \"10.77.0.4\"},\n  \"pve1\"";
    pair.one.write("/etc/pve/.members", &members.replacen("\"pve1\": {", &format!("{third}: {{"), 1));
    executable(
        &pair.peers().join("pve3"),
        "#!/bin/sh\necho 'bash: line 1: rbd-preflight: command not found' >&2\nexit 127\n",
    );
    pair.sync();
    std::fs::remove_file(pair.there("/var/lib/vz/snippets/rbd-preflight")).unwrap();

    let ran = pair.run(["rehearse"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    let shown = format!("# rbd-preflight rehearse\n{}", ran.stdout);
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = std::fs::read_to_string(&file).unwrap();
    let example = readme.split("```").find(|block| block.starts_with("\n# rbd-preflight rehearse\n"));
    let example = example.expect("README shows no `rehearse`").trim_start();
    if std::env::var_os("RBD_PREFLIGHT_WRITE_DOCS").is_some() {
        std::fs::write(file, readme.replacen(example, &shown, 1)).unwrap();
    } else {
        assert!(
            example == shown,
            "README does not show what comes out; tests/docs-generate writes it anew:\n{shown}"
        );
    }
}
