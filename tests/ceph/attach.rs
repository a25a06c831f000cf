//! `attach`, `detach` and the hookscripts that ours calls besides: the real binary, with stand-ins for PVE's programs
//! (`tests/fakes`).

use crate::common::executable;
use crate::common::node::{DEFAULT, Node, Ran};
use serde_json::Value;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const FAKES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fakes");
const OURS: &str = "local:snippets/rbd-preflight";
/// Ours for a guest that had `old.sh`.
const WITH_OLD: &str = "local:snippets/rbd-preflight+local+old.sh";
/// Where earlier versions remembered the hookscript of a guest of the number 517.
const LEFT_BEHIND: &str = "/etc/pve/rbd-preflight/chain/517";
const WITHOUT: &str =
    "#a note\ncores: 2\nname: web\nscsi0: local:516/vm-516-disk-0.raw,size=1G\n\n[before]\ncores: 1\n";
const WITH: &str = "cores: 2\nhookscript: local:snippets/old.sh\nname: db\n";

/// A command as on a node: the stand-ins first on the path, the real binary where the snippet looks for it.
fn on_node(root: &Path, program: &str, arguments: &[&str]) -> Command {
    let program = if program == "rbd-preflight" { env!("CARGO_BIN_EXE_rbd-preflight") } else { program };
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("PATH", format!("{FAKES}:{}", std::env::var("PATH").unwrap()))
        .env("RBD_PREFLIGHT_ROOT", root)
        .env("RBD_PREFLIGHT", env!("CARGO_BIN_EXE_rbd-preflight"))
        .env_remove("PVE_MIGRATED_FROM")
        .stdin(Stdio::null());
    command
}

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

/// A script that notes its call down in ROOT/calls, with what stands in `code-PHASE` for its exit code.
fn noting(root: &Path) -> String {
    let root = root.display();
    format!(
        "#!/bin/sh\necho \"$0 $* stdin=$(cat | wc -c) from=$PVE_MIGRATED_FROM\" >>{root}/calls\n\
         echo out-of-old; echo err-of-old >&2\nread -r code 2>/dev/null <{root}/code-$2 && exit $code\nexit 0\n"
    )
}

/// A node without Ceph: pve1 of a cluster of three, whose pve3 is offline.
struct Tree(tempfile::TempDir);

impl Tree {
    fn new() -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        for directory in ["nodes/pve1/qemu-server", "nodes/pve1/lxc", "nodes/pve2/qemu-server"] {
            std::fs::create_dir_all(tree.path(&format!("/etc/pve/{directory}"))).unwrap();
        }
        symlink("nodes/pve1", tree.path("/etc/pve/local")).unwrap();
        std::fs::create_dir_all(tree.path("/var/lib/vz")).unwrap();
        write(
            &tree.path("/etc/pve/storage.cfg"),
            "dir: local\n\tpath /var/lib/vz\n\tcontent iso,snippets\n\nrbd: ceph\n",
        );
        let nodes = r#"{"pve1":{"online":1},"pve2":{"online":1},"pve3":{"online":0}}"#;
        let members = format!(r#"{{"nodename":"pve1","cluster":{{"quorate":1}},"nodelist":{nodes}}}"#);
        write(&tree.path("/etc/pve/.members"), &members);
        executable(&tree.path("/var/lib/vz/snippets/old.sh"), &noting(tree.0.path()));
        tree.guest("pve1/qemu-server/516", WITHOUT);
        tree.guest("pve1/qemu-server/517", WITH);
        tree.guest("pve1/lxc/520", "arch: amd64\nhookscript: local:snippets/old.sh\nhostname: ct\n");
        tree.guest("pve2/qemu-server/600", "cores: 1\n");
        tree
    }

    fn path(&self, absolute: &str) -> PathBuf {
        self.0.path().join(absolute.trim_start_matches('/'))
    }

    fn read(&self, absolute: &str) -> String {
        std::fs::read_to_string(self.path(absolute)).unwrap_or_default()
    }

    fn guest(&self, place: &str, config: &str) {
        write(&self.path(&format!("/etc/pve/nodes/{place}.conf")), config);
    }

    fn config(&self, vmid: u32) -> String {
        let kind = if vmid == 520 { "lxc" } else { "qemu-server" };
        self.read(&format!("/etc/pve/nodes/pve1/{kind}/{vmid}.conf"))
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Ran {
        Ran::of(on_node(self.0.path(), program, arguments))
    }

    /// Runs what must succeed.
    fn good(&self, program: &str, arguments: &[&str]) -> Ran {
        let ran = self.run(program, arguments);
        assert_eq!(ran.code, 0, "{program} {arguments:?}: {ran:?}");
        ran
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let ran = self.run("rbd-preflight", arguments);
        serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
    }

    /// The calls of the chained script since the last look.
    fn calls(&self) -> Vec<String> {
        let calls =
            self.read("/calls").replace(&format!("{}/var/lib/vz/snippets/", self.0.path().display()), "");
        write(&self.path("/calls"), "");
        calls.lines().map(str::to_owned).collect()
    }
}

#[test]
fn a_life_with_the_hook_leaves_the_config_as_it_was() {
    let tree = Tree::new();
    for (tool, vmid) in [("qm", 516), ("qm", 517), ("pct", 520)] {
        let (number, before) = (vmid.to_string(), tree.config(vmid));
        tree.good("rbd-preflight", &["attach", &number, "--yes"]);
        let ours = if vmid == 516 { OURS } else { WITH_OLD };
        assert!(tree.config(vmid).contains(&format!("hookscript: {ours}\n")), "{}", tree.config(vmid));
        tree.good(tool, &["start", &number]);
        tree.good(tool, &["stop", &number]);
        let calls = tree.calls();
        let phases = ["pre-start", "post-start", "pre-stop", "post-stop"];
        let expected = phases.map(|phase| format!("old.sh {vmid} {phase} stdin=0 from="));
        assert_eq!(calls, if vmid == 516 { &[][..] } else { &expected }, "{vmid}");
        tree.good("rbd-preflight", &["detach", &number, "--yes"]);
        assert_eq!(tree.config(vmid), before, "{vmid}");
    }
    assert!(!tree.path("/etc/pve/rbd-preflight").exists(), "nothing is kept besides the configs");
}

#[test]
fn the_snippet_is_what_pve_takes() {
    let tree = Tree::new();
    let snippet = tree.path("/var/lib/vz/snippets/rbd-preflight");
    // An older one of ours, as a link: the link goes, its target stays.
    let target = tree.path("/target");
    write(&target, "#!/bin/sh\nexec rbd-preflight hook \"$@\"\n");
    symlink(&target, &snippet).unwrap();
    let ran = tree.run("rbd-preflight", &["attach", "516", "--yes"]);
    assert_eq!(ran.code, 1, "a link to what may be anybody's: {ran:?}");
    std::fs::remove_file(&snippet).unwrap();
    symlink("/nonexistent", &snippet).unwrap();
    tree.good("rbd-preflight", &["attach", "516", "--yes"]);
    let meta = std::fs::symlink_metadata(&snippet).unwrap();
    assert!(meta.is_file() && meta.permissions().mode() & 0o777 == 0o755, "{meta:?}");
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/hooks/rbd-preflight");
    assert_eq!(std::fs::read(&snippet).unwrap(), std::fs::read(shipped).unwrap());

    write(&tree.path("/var/lib/vz/snippets/rbd-preflight+local+old.sh"), "#!/bin/sh\necho mine\n");
    let ran = tree.run("rbd-preflight", &["attach", "517", "--yes"]);
    assert!(ran.code == 1 && ran.stderr.contains("not this tool's"), "{ran:?}");
    assert_eq!(tree.config(517), WITH);
}

#[test]
fn the_snippet_goes_where_the_storage_keeps_snippets() {
    let tree = Tree::new();
    std::fs::create_dir_all(tree.path("/srv/x")).unwrap();
    let more = "\ndir: other\n\tpath /srv/x\n\tcontent snippets\n\tcontent-dirs snippets=hooks\n\
                \ncephfs: cfs\n\tpath /mnt/pve/cfs\n\tcontent snippets\n";
    write(&tree.path("/etc/pve/storage.cfg"), &(tree.read("/etc/pve/storage.cfg") + more));
    let ran = tree.good("rbd-preflight", &["attach", "516", "--storage", "other", "--yes"]);
    assert!(tree.path("/srv/x/hooks/rbd-preflight").is_file(), "{ran:?}");
    assert!(tree.config(516).contains("hookscript: other:snippets/rbd-preflight\n"));
    tree.good("qm", &["start", "516"]);
    tree.good("qm", &["stop", "516"]);
    let ran = tree.run("rbd-preflight", &["attach", "516", "--storage", "cfs", "--yes"]);
    assert!(ran.code == 1 && ran.stderr.contains("is the storage cfs mounted?"), "{ran:?}");
    std::fs::create_dir_all(tree.path("/mnt/pve/cfs")).unwrap();
    let ran = tree.good("rbd-preflight", &["attach", "516", "--storage", "cfs", "--yes"]);
    assert!(ran.stdout.contains("cfs is a network storage (cephfs)"), "{ran:?}");
    for storage in ["ceph", "none"] {
        let ran = tree.run("rbd-preflight", &["attach", "516", "--storage", storage, "--yes"]);
        assert_eq!(ran.code, 2, "{ran:?}");
    }
}

#[test]
fn a_second_time_changes_nothing_and_asks_nothing() {
    let tree = Tree::new();
    tree.good("rbd-preflight", &["attach", "516", "517", "--yes"]);
    let before = (tree.config(516), tree.config(517), tree.read("/fakes.log").matches("set").count());
    let ran = tree.good("rbd-preflight", &["attach", "517", "516", "517"]);
    assert!(ran.stdout.contains("already attached; it calls local:snippets/old.sh too"), "{ran:?}");
    assert_eq!((tree.config(516), tree.config(517), tree.read("/fakes.log").matches("set").count()), before);
    tree.good("rbd-preflight", &["detach", "516", "517", "--yes"]);
    let ran = tree.good("rbd-preflight", &["detach", "516", "517"]);
    assert_eq!(ran.stdout.matches("not attached").count(), 2, "{ran:?}");
    assert_eq!(tree.config(517), WITH);
}

#[test]
fn nothing_is_changed_without_a_yes() {
    let tree = Tree::new();
    assert_eq!(tree.run("rbd-preflight", &["attach", "517"]).code, 2);
    let dry = tree.good("rbd-preflight", &["attach", "517", "--dry-run"]);
    assert_eq!(tree.config(517), WITH);
    assert!(!tree.path("/etc/pve/rbd-preflight").exists());
    assert!(!tree.path("/var/lib/vz/snippets/rbd-preflight").exists());
    let lines: Vec<&str> = dry.stdout.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(lines, [format!("qm set 517 --hookscript {WITH_OLD}")]);
    tree.good("rbd-preflight", &["attach", "517", "--yes"]);
    assert_eq!(tree.run("rbd-preflight", &["detach", "517"]).code, 2);
    let dry = tree.good("rbd-preflight", &["detach", "--all", "--dry-run"]);
    assert!(dry.stdout.contains("qm set 517 --hookscript local:snippets/old.sh\n"), "{dry:?}");
    assert!(tree.config(517).contains(WITH_OLD));
}

#[test]
fn guests_of_other_nodes_and_without_rbd_disks_are_skipped_with_a_word() {
    let tree = Tree::new();
    tree.guest("pve1/qemu-server/518", "scsi0: ceph:vm-518-disk-0\n");
    tree.guest("pve1/qemu-server/519", "lock: backup\nscsi0: ceph:vm-519-disk-0\n");
    let ran = tree.good("rbd-preflight", &["attach", "600", "--yes"]);
    assert!(ran.stdout.contains("skipped: it is on pve2: run `rbd-preflight attach 600` there"), "{ran:?}");
    assert!(!tree.path("/var/lib/vz/snippets/rbd-preflight").exists(), "nobody needs it");
    let report = tree.json(&["attach", "--all", "--yes", "--json"]);
    let rows: Vec<_> =
        report["guests"].as_array().unwrap().iter().map(|row| (&row["vmid"], &row["outcome"])).collect();
    let rows: Vec<String> = rows.into_iter().map(|(vmid, outcome)| format!("{vmid} {outcome}")).collect();
    let expected = ["516 skipped", "517 skipped", "518 done", "519 refused", "520 skipped"];
    assert_eq!(rows.iter().map(|row| row.replace('"', "")).collect::<Vec<_>>(), expected, "{report:#}");
    assert!(report["notes"][0].as_str().unwrap().contains("1 guest"), "{report:#}");
    tree.good("rbd-preflight", &["detach", "--all", "--yes"]);
    assert_eq!(tree.config(518), "scsi0: ceph:vm-518-disk-0\n");
}

/// They may come here, and PVE starts no guest whose hookscript is missing.
#[test]
fn attaching_all_guests_puts_the_snippet_where_guests_of_other_nodes_ask_for_it_too() {
    let tree = Tree::new();
    let names = || -> Vec<String> {
        let files = std::fs::read_dir(tree.path("/var/lib/vz/snippets")).unwrap().flatten();
        let mut names: Vec<String> = files.map(|file| file.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    tree.guest("pve2/qemu-server/601", &format!("hookscript: {WITH_OLD}\n"));
    tree.guest("pve2/lxc/602", "hookscript: nas:snippets/rbd-preflight+nas+x\n");
    tree.good("rbd-preflight", &["attach", "516", "--yes"]);
    assert_eq!(names(), ["old.sh", "rbd-preflight"]);
    tree.good("rbd-preflight", &["attach", "--all", "--yes"]);
    assert_eq!(names(), ["old.sh", "rbd-preflight", "rbd-preflight+local+old.sh"]);
}

#[test]
fn other_nodes_without_the_snippet_are_told() {
    let tree = Tree::new();
    let nodes = |arguments: &[&str]| {
        let report = tree.json(arguments);
        let told = |node: &Value| format!("{} {}", node["node"], node["snippet"]).replace('"', "");
        let nodes: Vec<String> = report["nodes"].as_array().unwrap().iter().map(told).collect();
        (nodes, report)
    };
    let (told, report) = nodes(&["attach", "516", "--yes", "--json"]);
    assert_eq!(told, ["pve2 missing", "pve3 unknown"], "{report:#}");
    let copy = report["nodes"][0]["text"].as_str().unwrap();
    assert!(
        copy.ends_with(
            "scp -p /var/lib/vz/snippets/rbd-preflight root@pve2:/var/lib/vz/snippets/rbd-preflight"
        )
    );
    assert!(report["nodes"][1]["text"].as_str().unwrap().contains("offline"), "{report:#}");
    write(&tree.path("/other-nodes/pve2/var/lib/vz/snippets/rbd-preflight"), "");
    assert_eq!(nodes(&["attach", "516", "--yes", "--json"]).0, ["pve2 present", "pve3 unknown"]);
    // So soon after its boot that PVE does not know its state: it is asked all the same.
    write(&tree.path("/unknown-nodes"), "pve2\n");
    assert_eq!(nodes(&["attach", "516", "--yes", "--json"]).0, ["pve2 present", "pve3 unknown"]);
    // PVE lists no snippets of a storage whose content does not name them.
    write(&tree.path("/etc/pve/storage.cfg"), "dir: local\n\tpath /var/lib/vz\n\tcontent iso\n");
    assert_eq!(nodes(&["attach", "516", "--yes", "--json"]).0, ["pve2 unknown", "pve3 unknown"]);
    // Without pvesh nothing is known, and the guest is attached all the same.
    let programs = tree.path("/programs");
    std::fs::create_dir(&programs).unwrap();
    for program in ["qm", "pve.py", "guest.py"] {
        symlink(format!("{FAKES}/{program}"), programs.join(program)).unwrap();
    }
    let mut command = on_node(tree.0.path(), "rbd-preflight", &["attach", "517", "--yes"]);
    command.env("PATH", format!("{}:/usr/bin:/bin", programs.display()));
    let ran = Ran::of(command);
    assert!(ran.code == 0 && ran.stdout.contains("install the package pve-manager"), "{ran:?}");
}

#[test]
fn the_chained_scripts_failure_means_what_it_means_to_pve() {
    let tree = Tree::new();
    tree.good("rbd-preflight", &["attach", "517", "--yes"]);
    write(&tree.path("/code-pre-start"), "7\n");
    let ran = tree.run("qm", &["start", "517"]);
    assert!(ran.code == 255 && ran.stderr.contains("517 pre-start' failed: exit code 7"), "{ran:?}");
    assert!(ran.stdout.contains("out-of-old") && ran.stdout.contains("err-of-old"), "{ran:?}");
    assert!(tree.run("qm", &["status", "517"]).stdout.contains("stopped"));
    std::fs::remove_file(tree.path("/code-pre-start")).unwrap();
    for phase in ["post-start", "pre-stop", "post-stop"] {
        write(&tree.path(&format!("/code-{phase}")), "7\n");
    }
    let ran = tree.good("qm", &["start", "517"]);
    assert!(ran.stdout.contains("hookscript error for 517 on post-start"), "{ran:?}");
    let ran = tree.good("qm", &["stop", "517"]);
    for phase in ["pre-stop", "post-stop"] {
        assert!(ran.stdout.contains(&format!("hookscript error for 517 on {phase}")), "{ran:?}");
    }
    assert!(ran.stdout.contains("local:snippets/old.sh failed: exit code 7"), "{ran:?}");
    // One that has gone stops a start, as it would without us.
    std::fs::remove_file(tree.path("/var/lib/vz/snippets/old.sh")).unwrap();
    let ran = tree.run("qm", &["start", "517"]);
    assert!(
        ran.code == 255 && ran.stdout.contains("script 'local:snippets/old.sh' does not exist"),
        "{ran:?}"
    );
}

#[test]
fn a_script_that_calls_our_hook_is_called_once() {
    let tree = Tree::new();
    let old = tree.path("/var/lib/vz/snippets/old.sh");
    let again = format!("{}rbd-preflight+local+old.sh", tree.path("/var/lib/vz/snippets/").display());
    executable(&old, &noting(tree.0.path()).replace("exit 0\n", &format!("exec {again} \"$@\"\n")));
    tree.good("rbd-preflight", &["attach", "517", "--yes"]);
    let ran = tree.good("qm", &["start", "517"]);
    assert!(ran.stdout.contains("it is not run again"), "{ran:?}");
    tree.good("qm", &["stop", "517"]);
    assert_eq!(tree.calls().len(), 4);
    // A file that is our snippet under another name is no script of somebody else's.
    tree.guest("pve1/qemu-server/518", "hookscript: local:snippets/copy\n");
    std::fs::copy(&again, tree.path("/var/lib/vz/snippets/copy")).unwrap();
    tree.good("rbd-preflight", &["attach", "518", "--yes"]);
    assert!(tree.config(518).contains(&format!("hookscript: {OURS}\n")));
    // Not even if it is made so by hand.
    std::fs::copy(&again, tree.path("/var/lib/vz/snippets/rbd-preflight+local+copy")).unwrap();
    tree.guest("pve1/qemu-server/518", "hookscript: local:snippets/rbd-preflight+local+copy\n");
    let ran = tree.good("qm", &["start", "518"]);
    assert!(ran.stdout.contains("is this hook itself"), "{ran:?}");
    tree.good("qm", &["stop", "518"]);
}

/// The snippet runs the earlier script even where the tool is not installed.
#[test]
fn without_the_tool_the_chained_script_is_still_called() {
    let tree = Tree::new();
    tree.good("rbd-preflight", &["attach", "516", "517", "--yes"]);
    for vmid in ["516", "517"] {
        let mut command = on_node(tree.0.path(), "qm", &["start", vmid]);
        command.env("RBD_PREFLIGHT", "/nonexistent");
        let ran = Ran::of(command);
        assert!(ran.code == 0 && ran.stdout.contains("not installed"), "{ran:?}");
        assert!(!ran.stdout.contains("cannot open"), "{ran:?}");
        tree.good("qm", &["stop", vmid]);
    }
    assert_eq!(tree.calls()[0], "old.sh 517 pre-start stdin=0 from=");
}

#[test]
fn a_guest_that_another_task_holds_is_told_as_busy() {
    let tree = Tree::new();
    let lock = tree.path("/var/lock/qemu-server/lock-517.conf");
    write(&lock, "");
    let mut holder = Command::new("flock").arg("--no-fork").arg(&lock).args(["sleep", "30"]).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let ran = tree.run("rbd-preflight", &["attach", "517", "--yes"]);
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert_eq!(ran.code, 75, "{ran:?}");
    assert!(
        ran.stdout.contains("another task is busy with it") && ran.stdout.contains("got timeout"),
        "{ran:?}"
    );
    assert_eq!(tree.config(517), WITH);
}

#[test]
fn without_quorum_nothing_is_begun() {
    let tree = Tree::new();
    write(
        &tree.path("/etc/pve/.members"),
        &tree.read("/etc/pve/.members").replace("\"quorate\":1", "\"quorate\":0"),
    );
    let ran = tree.run("rbd-preflight", &["attach", "516", "--yes"]);
    assert!(ran.code == 4 && ran.stderr.contains("no quorum"), "{ran:?}");
    assert!(!tree.path("/var/lib/vz/snippets/rbd-preflight").exists());
}

/// PVE waits until nobody holds the hook's output any more. A script's own child may run on if it does not hold it.
#[test]
fn nothing_of_ours_keeps_pve_waiting() {
    let tree = Tree::new();
    let old = tree.path("/var/lib/vz/snippets/old.sh");
    executable(
        &old,
        "#!/bin/sh\nsleep 300 </dev/null >/dev/null 2>&1 &\necho $! >>$RBD_PREFLIGHT_ROOT/children\nexit 0\n",
    );
    tree.good("rbd-preflight", &["attach", "517", "--yes"]);
    let ran = tree.good("qm", &["start", "517"]);
    assert!(ran.took < Duration::from_secs(200), "{ran:?}");
    let ran = tree.good("qm", &["stop", "517"]);
    assert!(ran.took < Duration::from_secs(200), "{ran:?}");
    let children = tree.read("/children");
    assert_eq!(children.lines().count(), 4);
    Command::new("kill").args(children.lines()).status().unwrap();
}

/// The calls of a whole life: a start and a stop.
fn life(tree: &Tree, tool: &str, vmid: u32) -> (Vec<String>, String) {
    let number = vmid.to_string();
    let said = tree.good(tool, &["start", &number]).stdout + &tree.good(tool, &["stop", &number]).stdout;
    (tree.calls(), said)
}

fn all_phases(vmid: u32) -> Vec<String> {
    let phases = ["pre-start", "post-start", "pre-stop", "post-stop"];
    phases.map(|phase| format!("old.sh {vmid} {phase} stdin=0 from=")).into()
}

/// As an earlier version left it: our snippet's plain name in the config, what was there before by the number.
fn left_by_an_earlier_version(tree: &Tree, vmid: u32, script: &str) {
    write(&tree.path(&format!("/etc/pve/rbd-preflight/chain/{vmid}")), &format!("{script}\n"));
}

#[test]
fn a_later_guest_of_the_same_number_never_runs_the_script_of_the_one_before() {
    let tree = Tree::new();
    tree.good("rbd-preflight", &["attach", "516", "517", "520", "--yes"]);
    left_by_an_earlier_version(&tree, 517, "local:snippets/old.sh");
    for (tool, vmid, place) in [("qm", 517, "qemu-server"), ("pct", 520, "lxc")] {
        let number = vmid.to_string();
        tree.good(tool, &["destroy", &number]);
        // By a clone of an attached guest, and by hand.
        if tool == "qm" {
            tree.good(tool, &["clone", "516", &number]);
            assert!(tree.config(vmid).contains(&format!("hookscript: {OURS}\n")));
            assert_eq!(life(&tree, tool, vmid).0, [""; 0]);
            tree.good(tool, &["destroy", &number]);
        }
        tree.guest(&format!("pve1/{place}/{vmid}"), &format!("hookscript: {OURS}\n"));
        let (calls, said) = life(&tree, tool, vmid);
        assert_eq!(calls, [""; 0], "{said}");
        assert_eq!(said.contains("is not run: `rbd-preflight attach 517`"), vmid == 517, "{said}");
    }
}

#[test]
fn a_clone_and_a_restored_guest_run_what_their_origin_ran_and_detach_gives_it_back() {
    let tree = Tree::new();
    tree.good("rbd-preflight", &["attach", "517", "520", "--yes"]);
    for (tool, origin, vmid) in [("qm", "517", 530), ("pct", "520", 531)] {
        let number = vmid.to_string();
        tree.good(tool, &["clone", origin, &number]);
        assert_eq!(life(&tree, tool, vmid).0, all_phases(vmid), "{tool}");
        tree.good("rbd-preflight", &["detach", &number, "--yes"]);
        assert!(tree.good(tool, &["config", &number]).stdout.contains("hookscript: local:snippets/old.sh\n"));
    }
    // A backup has the config as it is, and is restored under another number, or after the guest was destroyed.
    let backup = tree.config(517);
    tree.good("qm", &["destroy", "517"]);
    for vmid in [532, 517] {
        tree.guest(&format!("pve1/qemu-server/{vmid}"), &backup);
        assert_eq!(life(&tree, "qm", vmid).0, all_phases(vmid), "{vmid}");
    }
}

#[test]
fn a_rollback_brings_back_what_the_guest_ran_then() {
    let tree = Tree::new();
    let runs = |what: &str, expected: &[String]| {
        let (calls, said) = life(&tree, "qm", 517);
        assert_eq!(calls, expected, "{what}: {said}");
    };
    tree.good("qm", &["snapshot", "517", "before"]);
    tree.good("rbd-preflight", &["attach", "517", "--yes"]);
    tree.good("qm", &["snapshot", "517", "attached"]);
    tree.good("rbd-preflight", &["detach", "517", "--yes"]);
    tree.good("qm", &["rollback", "517", "attached"]);
    runs("after a detach", &all_phases(517));
    assert!(tree.config(517).contains(&format!("hookscript: {WITH_OLD}\n")));
    tree.good("qm", &["rollback", "517", "before"]);
    assert!(tree.config(517).starts_with("cores: 2\nhookscript: local:snippets/old.sh\n"));
    runs("from before the attach", &all_phases(517));
    // Ours was there alone then.
    tree.good("qm", &["set", "517", "--delete", "hookscript"]);
    tree.good("rbd-preflight", &["attach", "517", "--yes"]);
    tree.good("qm", &["snapshot", "517", "alone"]);
    tree.good("qm", &["rollback", "517", "attached"]);
    tree.good("qm", &["rollback", "517", "alone"]);
    runs("alone", &[]);
}

/// The target calls the hook while the config is still the source's.
#[test]
fn a_migrated_guest_runs_on_the_target_what_it_ran_on_the_source() {
    let tree = Tree::new();
    tree.good("rbd-preflight", &["attach", "517", "--yes"]);
    let at = |node: &str| tree.path(&format!("/etc/pve/nodes/{node}/qemu-server/517.conf"));
    std::fs::rename(at("pve1"), at("pve2")).unwrap();
    let snippet = tree.path("/var/lib/vz/snippets/rbd-preflight+local+old.sh");
    let call = |tool: &str| {
        let mut command = on_node(tree.0.path(), snippet.to_str().unwrap(), &["517", "pre-start"]);
        command.env("PVE_MIGRATED_FROM", "pve2").env("RBD_PREFLIGHT", tool);
        let ran = Ran::of(command);
        assert_eq!(ran.code, 0, "{ran:?}");
        tree.calls()
    };
    let expected = ["old.sh 517 pre-start stdin=0 from=pve2"];
    assert_eq!(call(env!("CARGO_BIN_EXE_rbd-preflight")), expected);
    assert_eq!(call("/nonexistent"), expected);
    std::fs::rename(at("pve2"), at("pve1")).unwrap();
    assert_eq!(life(&tree, "qm", 517).0, all_phases(517));
}

/// A storage that is renamed takes the script away from PVE, and so from us: the start ends as it would without us.
#[test]
fn a_script_on_a_storage_that_was_renamed_stops_the_start_and_is_told() {
    let tree = Tree::new();
    let more = |name: &str| format!("\ndir: {name}\n\tpath /srv/x\n\tcontent snippets\n");
    let local = tree.read("/etc/pve/storage.cfg");
    write(&tree.path("/etc/pve/storage.cfg"), &(local.clone() + &more("nas")));
    executable(&tree.path("/srv/x/snippets/a b+c.sh"), &noting(tree.0.path()));
    tree.guest("pve1/qemu-server/518", "hookscript: nas:snippets/a b+c.sh\n");
    tree.good("rbd-preflight", &["attach", "518", "--yes"]);
    assert_eq!(tree.config(518), "hookscript: local:snippets/rbd-preflight+nas+a b+c.sh\n");
    tree.good("qm", &["start", "518"]);
    tree.good("qm", &["stop", "518"]);
    assert_eq!(tree.calls().len(), 4);
    write(&tree.path("/etc/pve/storage.cfg"), &(local + &more("nas2")));
    let ran = tree.run("qm", &["start", "518"]);
    assert!(ran.code == 255 && ran.stdout.contains("storage 'nas' does not exist"), "{ran:?}");
    let mut command = on_node(tree.0.path(), "qm", &["start", "518"]);
    command.env("RBD_PREFLIGHT", "/nonexistent");
    assert_eq!(Ran::of(command).code, 255);
    assert_eq!(tree.calls(), [""; 0]);
}

#[test]
fn what_an_earlier_version_remembered_is_taken_over_where_root_names_the_guest() {
    let before = WITH.replace("old.sh", "rbd-preflight");
    let attached = || {
        let tree = Tree::new();
        tree.good("rbd-preflight", &["attach", "516", "--yes"]);
        tree.guest("pve1/qemu-server/517", &(before.clone() + "scsi0: ceph:vm-517-disk-0\n"));
        left_by_an_earlier_version(&tree, 517, "local:snippets/old.sh");
        tree
    };
    let tree = attached();
    for command in ["attach", "detach"] {
        let ran = tree.run("rbd-preflight", &[command, "--all", "--yes"]);
        assert!(ran.code == 4 && ran.stdout.contains("`rbd-preflight attach 517` keeps it"), "{ran:?}");
        assert!(tree.config(517).contains(&format!("hookscript: {OURS}\n")));
    }
    tree.good("rbd-preflight", &["attach", "517", "--yes"]);
    assert!(tree.config(517).contains(&format!("hookscript: {WITH_OLD}\n")));
    assert!(!tree.path(LEFT_BEHIND).exists());

    let tree = attached();
    tree.good("rbd-preflight", &["detach", "517", "--yes"]);
    assert!(tree.config(517).contains("hookscript: local:snippets/old.sh\n"));
    assert!(!tree.path(LEFT_BEHIND).exists());

    // One that cannot be read stops neither a start nor, unknown as it is, does it become anything.
    let tree = attached();
    tree.guest("pve1/qemu-server/517", &before);
    write(&tree.path(LEFT_BEHIND), "/bin/sh\n");
    let ran = tree.good("qm", &["start", "517"]);
    assert!(ran.stdout.contains("chain/517 does not hold") && ran.stdout.contains("is not run"), "{ran:?}");
    tree.good("qm", &["stop", "517"]);
    let ran = tree.run("rbd-preflight", &["attach", "517", "--yes"]);
    assert!(ran.code == 4 && ran.stdout.contains("its earlier hookscript is not known"), "{ran:?}");
}

/// A node on the lab's Ceph with a guest that has our snippet and `old.sh`.
fn chained_on_ceph(features: &str) -> (Node, u32, String) {
    let (node, vmid, spec) = Node::with_vm(features);
    node.append(
        &format!("/etc/pve/nodes/pve1/qemu-server/{vmid}.conf"),
        "hookscript: local:snippets/old.sh\n",
    );
    executable(&node.path("/var/lib/vz/snippets/old.sh"), &noting(&node.path("/")));
    let ran = Ran::of(on_node(&node.path("/"), "rbd-preflight", &["attach", &vmid.to_string(), "--yes"]));
    assert_eq!(ran.code, 0, "{ran:?}");
    (node, vmid, spec)
}

/// What the hookscripts ran of PVE's programs, by the stand-ins' own log.
fn in_hooks(log: &str) -> Vec<&str> {
    let mut inside = false;
    let mut ran = Vec::new();
    for line in log.lines() {
        match line.strip_prefix("hook ") {
            Some(what) => inside = what.ends_with("begins"),
            None if inside => ran.push(line),
            None => {}
        }
    }
    ran
}

#[test]
fn the_hook_fixes_then_calls_the_chained_script_and_runs_nothing_that_takes_the_configs_lock() {
    let (node, vmid, spec) = chained_on_ceph("layering,exclusive-lock,journaling");
    let number = vmid.to_string();
    let ran = Ran::of(on_node(&node.path("/"), "qm", &["start", &number]));
    assert_eq!(ran.code, 0, "{ran:?}");
    let at = |text: &str| ran.stdout.find(text).unwrap_or_else(|| panic!("no {text}: {ran:?}"));
    assert!(at("done: disable journaling") < at("now the earlier hookscript"), "{ran:?}");
    assert!(at("continuing with the start") < at("err-of-old"), "{ran:?}");
    assert!(!node.features(&spec).contains(&"journaling".to_owned()));
    assert_eq!(Ran::of(on_node(&node.path("/"), "qm", &["stop", &number])).code, 0);
    let calls = std::fs::read_to_string(node.path("/calls")).unwrap();
    assert_eq!(calls.lines().count(), 4, "{calls}");
    let log = std::fs::read_to_string(node.path("/fakes.log")).unwrap();
    assert_eq!(in_hooks(&log), [""; 0], "{log}");
    assert_eq!(log.matches("begins").count(), 4, "{log}");
}

#[test]
fn where_our_part_stops_the_start_the_chained_script_is_not_run() {
    let (node, vmid, spec) = chained_on_ceph(DEFAULT);
    node.lab.rbd(&["rm", &spec, "--no-progress"]);
    let ran = Ran::of(on_node(&node.path("/"), "qm", &["start", &vmid.to_string()]));
    assert!(ran.code == 255 && ran.stdout.contains("image-missing"), "{ran:?}");
    assert!(!node.path("/calls").exists());
}

/// Where our part is stuck and its deadline passes, the start goes on: with the chained script.
#[test]
fn the_chained_script_has_its_turn_when_our_part_is_given_up() {
    let (node, vmid, _) = chained_on_ceph("layering,exclusive-lock,journaling");
    node.write("/etc/rbd-preflight/config.yaml", "deadline: 8\n");
    let vmid = vmid.to_string();
    let hook = ["hook", "--earlier", "local:snippets/old.sh", &vmid, "pre-start"];
    let inner = on_node(&node.path("/"), "rbd-preflight", &hook);
    let mut command = Command::new("strace");
    command.args(["-f", "-o", "/dev/null", "-e", "trace=flock", "-e", "inject=flock:delay_enter=30000000"]);
    command.arg(inner.get_program()).args(inner.get_args());
    command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.stdin(Stdio::null());
    let ran = Ran::of(command);
    assert!(ran.code == 0 && ran.stderr.contains("gave up after "), "{ran:?}");
    assert!(ran.stderr.contains("err-of-old"), "{ran:?}");
    assert!(std::fs::read_to_string(node.path("/calls")).unwrap().contains("pre-start"), "{ran:?}");
}

/// After a hook that ran `rbd` no process of it is left.
#[test]
fn the_hook_leaves_no_child_behind() {
    let (node, vmid, _) = Node::with_vm("layering,exclusive-lock,journaling");
    let marker = format!("RBD_PREFLIGHT_TEST=hook-of-{vmid}");
    let mut command = node.command(["hook", &vmid.to_string(), "pre-start"]);
    let (name, value) = marker.split_once('=').unwrap();
    command.env(name, value);
    let ran = Ran::of(command);
    assert!(ran.code == 0 && ran.stderr.contains("done: "), "{ran:?}");
    let left = std::fs::read_dir("/proc").unwrap().flatten().filter(|process| {
        let environment = std::fs::read(process.path().join("environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == marker.as_bytes())
    });
    assert_eq!(left.count(), 0);
}
