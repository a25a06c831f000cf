//! Guest configs, names in Ceph, and directories as somebody with fewer rights than root may leave them: the real
//! binary on a real Ceph.

use crate::common::node::{Node, Ran, new_vmid};
use crate::common::{executable, unique};
use rbd_preflight::sys::plain::is_hidden;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A directory with an `rbd` that notes each of its calls, a word a line and a blank one at the end, and then is the
/// real one.
struct Recorder(tempfile::TempDir);

impl Recorder {
    fn new() -> Self {
        let recorder = Self(tempfile::tempdir().unwrap());
        let real = Command::new("sh").args(["-c", "command -v rbd"]).output().unwrap();
        let real = String::from_utf8(real.stdout).unwrap();
        let script = format!(
            "#!/bin/sh\nfor word; do printf '%s\\n' \"$word\"; done >>{0}/calls\necho >>{0}/calls\nexec {1} \"$@\"\n",
            recorder.0.path().display(),
            real.trim()
        );
        let path = recorder.0.path().join("rbd");
        executable(&path, &script);
        recorder
    }

    /// Every word of every call.
    fn words(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.0.path().join("calls")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn run<const N: usize>(&self, node: &Node, arguments: [&str; N]) -> Ran {
        let path = format!("{}:{}", self.0.path().display(), std::env::var("PATH").unwrap());
        let mut command = node.command(arguments);
        command.env("PATH", path).current_dir(self.0.path());
        Ran::of(command)
    }
}

/// Each command that reads or changes, on one guest; what was changed is nothing after the first round.
fn everything(node: &Node, vmid: u32, recorder: &Recorder) -> Vec<(String, Ran)> {
    let vmid = &vmid.to_string();
    let survey = node.path("/survey.json").display().to_string();
    let run = |what: &str, ran: Ran| (what.to_owned(), ran);
    vec![
        run("disks", recorder.run(node, ["disks", vmid])),
        run("disks --json", recorder.run(node, ["disks", vmid, "--json"])),
        run("check", recorder.run(node, ["check", vmid, "--verbose", "--save-survey", &survey])),
        run("check --json", recorder.run(node, ["check", vmid, "--json"])),
        run("check --survey", recorder.run(node, ["check", "--survey", &survey, "--verbose"])),
        run("repair --dry-run", recorder.run(node, ["repair", vmid, "--dry-run"])),
        run("repair", recorder.run(node, ["repair", vmid, "--yes"])),
        run("hook", recorder.run(node, ["hook", vmid, "pre-start"])),
        run("history", recorder.run(node, ["history"])),
        run("history --json", recorder.run(node, ["history", "--json"])),
        run("attach", recorder.run(node, ["attach", vmid, "--dry-run"])),
    ]
}

fn shows_nothing_hidden(runs: &[(String, Ran)]) {
    for (what, ran) in runs {
        assert_ne!(ran.code, 101, "{what} panicked: {ran:?}");
        for text in [&ran.stdout, &ran.stderr] {
            let hidden = text.chars().find(|c| *c != '\n' && is_hidden(*c));
            assert!(hidden.is_none(), "{what} shows {hidden:?}: {text:?}");
        }
    }
}

/// An image whose name is a shell's command, full of quotes and format strings, is one word to `rbd` and repaired.
#[test]
fn a_name_is_one_word_and_no_shell_reads_it() {
    let (node, vmid, recorder) = (Node::new(), new_vmid(), Recorder::new());
    let image = format!("vm-{vmid}-disk-$(touch${{IFS}}canary)`touch${{IFS}}canary`;'\"|&>canary%s%n*{{}}\\");
    node.image(&format!("rbd/{image}"), "layering,exclusive-lock,journaling");
    node.vm(vmid, &format!("name: web\nscsi0: ceph-krbd:{image}\n"));
    let ran = recorder.run(&node, ["repair", &vmid.to_string(), "--yes"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(!node.features(&format!("rbd/{image}")).contains(&"journaling".to_owned()));
    let named = recorder.words().iter().filter(|word| **word == image).count();
    assert!(named >= 2, "{:?}", recorder.words());
    let canaries = [recorder.0.path().join("canary"), node.path("/canary"), PathBuf::from("canary")];
    assert!(canaries.iter().all(|canary| !canary.exists()), "a shell has read the name");
    // What is shown is for a shell to read, and bash reads the same words from it.
    let line =
        node.journal().iter().find_map(|record| record["command"].as_str().map(str::to_owned)).unwrap();
    let read = Command::new("bash").args(["-c", &format!("printf '%s\\n' {line}")]).output().unwrap();
    assert!(String::from_utf8(read.stdout).unwrap().lines().any(|word| word == image), "{line}");
}

/// Names that `rbd` would take for an option, for a snapshot, or for an image in another pool.
#[test]
fn a_name_that_could_be_taken_for_something_else_is_never_given_to_rbd() {
    let (node, vmid, recorder) = (Node::new(), new_vmid(), Recorder::new());
    let option = format!("-{vmid}-keyring=x");
    node.lab.rbd(&["create", &format!("--image={option}"), "--size", "8M", "--image-feature", "layering"]);
    let other = format!("vm-{vmid}-\u{fffd}");
    node.image(&format!("rbd/{other}"), "layering");
    let config = node.path(&format!("/etc/pve/nodes/pve1/qemu-server/{vmid}.conf"));
    let lines = [
        format!("scsi0: ceph-krbd:{option}\nscsi1: ceph-krbd:--keyring=/etc/shadow\nscsi2: ceph-krbd:-c\n"),
        format!("scsi3: ceph-krbd:vm-{vmid}-../../etc/passwd\nscsi4: ceph-krbd:vm-{vmid}-x@snap\n"),
        format!("scsi5: --keyring=x:vm-{vmid}-disk-0\nscsi6: ../../x:vm-{vmid}-disk-0\n"),
    ];
    // A byte that is no text: read as U+FFFD, and there is an image of that name.
    let torn = [format!("scsi7: ceph-krbd:vm-{vmid}-").as_bytes(), b"\xfd\n"].concat();
    std::fs::write(config, [lines.concat().into_bytes(), torn].concat()).unwrap();
    let runs = everything(&node, vmid, &recorder);
    assert_eq!(recorder.words(), Vec::<String>::new(), "rbd was called");
    assert_eq!(node.journal(), Vec::<serde_json::Value>::new());
    assert_eq!(node.features(&format!("rbd/{other}")), ["layering"]);
    assert_eq!(runs.iter().find(|(what, _)| what == "repair").unwrap().1.code, 4, "{runs:?}");
    shows_nothing_hidden(&runs);
}

/// Escapes in a config, in storage.cfg, and in names that really are in Ceph.
#[test]
fn nothing_from_outside_acts_on_a_terminal() {
    let (node, vmid, recorder) = (Node::new(), new_vmid(), Recorder::new());
    let image = format!("vm-{vmid}-\u{1b}[2J\u{1b}]0;pwned\u{7}\u{9b}31m\u{7f}\u{202e}\u{2066}");
    let spec = format!("rbd/{image}");
    node.image(&spec, "layering");
    node.lab.rbd(&["snap", "create", &format!("{spec}@s\u{1b}[2J\nrm -rf forged\r")]);
    let hookscript = "local:snippets/\u{1b}[31mred\u{9b}2J";
    node.append("/etc/pve/storage.cfg", "\nrbd: od\u{1b}[2Jd\n\tpool \u{9b}31m\n\twhat\u{7} ever\n");
    node.vm(
        vmid,
        &format!(
            "name: we\u{1b}[2Jb\u{202e}\r\nhookscript: {hookscript}\nlock: x\u{1b}[1m\nargs: \u{1b}[2J rbd:x\nscsi0: ceph-krbd:{image}\n\
             scsi1: ceph-krbd:vm-{vmid}-x\u{85}\u{2028},\u{1b}[2J=1\nsc\u{1b}[1msi2: x\nscsi3: \u{1b}[2J:vm-1-x\n"
        ),
    );
    let name = vmid.to_string();
    let mut runs: Vec<(String, Ran)> =
        [["check", "--verbose"], ["check", "--json"], ["disks", "--json"], ["hook", "pre-start"]]
            .map(|[command, how]| (format!("{command} {how}"), recorder.run(&node, [command, &name, how])))
            .into();
    let config = format!("hookscript: {hookscript}\nscsi0: ceph-krbd:{image}\n");
    node.vm(vmid, &config);
    runs.extend(everything(&node, vmid, &recorder));
    runs.push(("doctor".to_owned(), recorder.run(&node, ["doctor"])));
    runs.push(("doctor --json".to_owned(), recorder.run(&node, ["doctor", "--json"])));
    runs.push(("detach".to_owned(), recorder.run(&node, ["detach", &name, "--dry-run"])));
    shows_nothing_hidden(&runs);
    assert!(node.features(&spec).contains(&"object-map".to_owned()), "{runs:?}");
    for (what, ran) in &runs {
        let begins =
            |line: &str| line.trim_start_matches("rbd-preflight:").trim_start().starts_with("rm -rf");
        let texts = ran.stdout.lines().chain(ran.stderr.lines());
        assert!(!texts.into_iter().any(begins), "{what}: a line of its own: {ran:?}");
    }
    let shown = runs.iter().any(|(_, ran)| ran.stdout.contains("\\u{1b}[2J"));
    assert!(shown, "the escape is to be seen as such: {runs:?}");
}

/// No key in anything that is shown, written, or given to a program.
#[test]
fn a_key_is_never_shown() {
    let (node, vmid, recorder) = (Node::new(), new_vmid(), Recorder::new());
    node.image(&format!("rbd/vm-{vmid}-disk-0"), "layering,exclusive-lock,journaling");
    node.image(&format!("rbd/vm-{vmid}-disk-1"), "layering");
    node.vm(vmid, &format!("scsi0: ceph-krbd:vm-{vmid}-disk-0\nscsi1: ceph-poor:vm-{vmid}-disk-1\n"));
    let runs = everything(&node, vmid, &recorder);
    let keys: Vec<String> = ["admin", "poor"]
        .iter()
        .map(|user| std::fs::read_to_string(node.lab.keyring(user)).unwrap())
        .map(|text| text.split("key = ").nth(1).unwrap().split_whitespace().next().unwrap().to_owned())
        .collect();
    let mut told: Vec<String> =
        runs.iter().flat_map(|(_, ran)| [ran.stdout.clone(), ran.stderr.clone()]).collect();
    told.extend(recorder.words());
    for file in ["/var/lib/rbd-preflight/journal.jsonl", "/survey.json"] {
        told.push(std::fs::read_to_string(node.path(file)).unwrap());
    }
    assert!(recorder.words().contains(&"journaling".to_owned()), "{runs:?}");
    for key in keys {
        assert!(key.len() > 30 && !told.iter().any(|text| text.contains(&key)), "a key is shown");
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn what_is_written_is_for_root_alone() {
    let (node, vmid, _) = Node::with_vm("layering,exclusive-lock,journaling");
    let survey = node.path("/survey.json");
    node.run(["check", &vmid.to_string(), "--save-survey", survey.to_str().unwrap()]);
    assert_eq!(node.run(["repair", &vmid.to_string(), "--yes"]).code, 0);
    assert_eq!(mode(&survey), 0o600);
    for directory in ["/var/lib/rbd-preflight", "/run/rbd-preflight"] {
        assert_eq!(mode(&node.path(directory)), 0o700, "{directory}");
        let files: Vec<_> =
            std::fs::read_dir(node.path(directory)).unwrap().map(|e| e.unwrap().path()).collect();
        assert!(!files.is_empty() && files.iter().all(|file| mode(file) == 0o600), "{files:?}");
    }
}

/// A link in the place of each thing that is written: nothing changes behind it, and without journal or lock no image.
#[test]
fn planted_links_are_not_followed() {
    for place in ["/var/lib/rbd-preflight", "/run/rbd-preflight", "/var/lib/rbd-preflight/journal.jsonl"] {
        let (node, vmid, spec) = Node::with_vm("layering,exclusive-lock,journaling");
        let precious = node.path("/precious");
        let directory = !place.ends_with("jsonl");
        if directory {
            std::fs::create_dir_all(&precious).unwrap();
        } else {
            std::fs::write(&precious, "precious").unwrap();
        }
        std::fs::create_dir_all(node.path(place).parent().unwrap()).unwrap();
        symlink(&precious, node.path(place)).unwrap();
        let ran = node.run(["repair", &vmid.to_string(), "--yes"]);
        assert_ne!(ran.code, 0, "{place}: {ran:?}");
        assert!(node.features(&spec).contains(&"journaling".to_owned()), "{place}: changed all the same");
        if directory {
            assert_eq!(std::fs::read_dir(&precious).unwrap().count(), 0, "{place}");
        } else {
            assert_eq!(std::fs::read_to_string(&precious).unwrap(), "precious", "{place}");
        }
        // A fault of the tool is no reason to stop a guest whose start may still succeed.
        let hook = node.run(["hook", &vmid.to_string(), "pre-start"]);
        assert!(hook.stderr.contains("journaling-on-krbd") || hook.code == 0, "{place}: {hook:?}");
    }
}

#[test]
fn a_survey_replaces_nothing_but_a_file() {
    let (node, vmid, _) = Node::with_vm("layering");
    let shared = node.path("/shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o1777)).unwrap();
    let (precious, link) = (node.path("/precious"), shared.join("survey.json"));
    std::fs::write(&precious, "precious").unwrap();
    symlink(&precious, &link).unwrap();
    let fifo = node.path("/fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for target in [link.to_str().unwrap(), fifo.to_str().unwrap()] {
        let ran = node.run(["check", &vmid.to_string(), "--save-survey", target]);
        assert!(ran.code == 1 && ran.stderr.contains("not a plain file"), "{ran:?}");
    }
    assert!(
        !fifo.is_file() && link.is_symlink() && std::fs::read_to_string(&precious).unwrap() == "precious"
    );
    let left = std::fs::read_dir(&shared).unwrap().count();
    assert_eq!(left, 1, "no file of ours is left beside it");
}

/// As long a chain of parents as Ceph's own kernel driver would follow, and one more.
#[test]
fn a_long_chain_of_parents_has_an_end() {
    const CLONES: usize = 18;
    let (node, vmid) = (Node::new(), new_vmid());
    let mut parent = unique("parent");
    node.image(&format!("rbd/{parent}"), "layering");
    let clone = ["--rbd-default-clone-format", "2", "--image-feature", "layering"];
    for level in 1..=CLONES {
        let child = if level == CLONES { format!("vm-{vmid}-disk-0") } else { unique("parent") };
        node.lab.rbd(&["snap", "create", "--no-progress", &format!("{parent}@s")]);
        node.lab.rbd(&[&["clone", &format!("{parent}@s"), &child], &clone[..]].concat());
        parent = child;
    }
    node.vm(vmid, &format!("scsi0: ceph-krbd:vm-{vmid}-disk-0\n"));
    // A slow machine needs its time.
    node.write("/etc/rbd-preflight/config.yaml", "connect_timeout: 60\ncheck_deadline: 60\n");
    let report = node.check(vmid);
    let parents = report["disks"][0]["facts"]["parents"].as_array().map(Vec::len);
    assert_eq!(parents, Some(CLONES - 1), "{report:#}");
}

#[test]
fn a_mebibyte_of_everything_does_no_harm() {
    let (node, vmid) = (Node::new(), new_vmid());
    let long = "x".repeat(1 << 20);
    node.vm(
        vmid,
        &format!(
            "name: {long}\ndescription: {long}\nhookscript: {long}\n{long}: x\n\
             scsi1: ceph-krbd:vm-{vmid}-{long}\nscsi2: ceph-krbd:vm-{vmid}-y,serial={long}\nscsi3: {long}:vm-{vmid}-z\n"
        ),
    );
    let vmid = &vmid.to_string();
    for arguments in [["check", vmid, "--verbose"], ["disks", vmid, "--json"], ["hook", vmid, "pre-start"]] {
        let ran = node.run(arguments);
        assert!([0, 3].contains(&ran.code), "{}: {:.2000}", ran.code, ran.stderr);
        assert!(ran.took < Duration::from_secs(30), "took {:?}", ran.took);
        assert!(ran.stderr.len() < 64 << 10, "{} bytes in a task log", ran.stderr.len());
    }
}
