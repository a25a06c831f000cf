//! Options that a release does not know: a copy of the release's own library, in which one option has another name.

use crate::common::Lab;
use crate::common::node::{DEFAULT, Node, Ran, finding};
use std::path::{Path, PathBuf};

/// Options that the tool sets and can do without. Left out are those that Ceph itself cannot live without (the
/// timeouts), and those whose names are no texts in the library.
const LIKED: [&str; 3] = ["auth_client_required", "err_to_syslog", "rbd_tracing"];

/// The library that knows the options, beside librados or in its own directory.
fn libceph_common() -> PathBuf {
    let lib = Path::new("/usr/lib");
    let places = std::fs::read_dir(lib).unwrap().map(|entry| entry.unwrap().path());
    let mut found =
        places.chain([lib.to_owned()]).map(|dir| dir.join("ceph/libceph-common.so.2")).filter(|f| f.exists());
    found.next().expect("there is no libceph-common.so.2; tests/lab/install installs it")
}

/// A directory with a copy of the library that does not know the option; `None` if the name stands in no table there.
fn without(option: &str) -> Option<tempfile::TempDir> {
    let mut bytes = std::fs::read(libceph_common()).unwrap();
    let name = format!("\0{option}\0").into_bytes();
    let at = bytes.windows(name.len()).position(|window| window == name)?;
    bytes[at + name.len() - 2] = b'_';
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("libceph-common.so.2"), bytes).unwrap();
    Some(directory)
}

/// The real binary, with the libraries of that directory.
fn run<const N: usize>(node: &Node, arguments: [&str; N], libraries: &Path) -> Ran {
    let mut command = node.command(arguments);
    command.env("LD_LIBRARY_PATH", libraries);
    Ran::of(command)
}

#[test]
fn a_release_that_lacks_an_option_starts_its_guests() {
    let (node, vmid, _) = Node::with_vm(DEFAULT);
    let id = vmid.to_string();
    let mut tried = Vec::new();
    for option in LIKED {
        let Some(libraries) = without(option) else { continue };
        let ran = run(&node, ["hook", &id, "pre-start"], libraries.path());
        assert_eq!((ran.code, ran.stderr.lines().count()), (0, 1), "{option}: {ran:?}");
        assert!(ran.stderr.contains("1 RBD disk checked, continuing with the start"), "{option}: {ran:?}");
        tried.push(option);
    }
    assert!(tried.contains(&"auth_client_required") && tried.len() > 1, "only {tried:?} could be taken out");
}

/// Without a keyring the option is needed: the client would prove who it is, to a cluster that wants no proof.
#[test]
fn a_client_that_cannot_be_set_up_is_no_fault_of_the_cluster() {
    let (node, vmid, _) = Node::with_vm(DEFAULT);
    std::fs::remove_file(node.path("/etc/pve/priv/ceph/ceph-krbd.keyring")).unwrap();
    let libraries = without("auth_client_required").unwrap();
    let id = vmid.to_string();
    let ran = run(&node, ["hook", &id, "pre-start"], libraries.path());
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stderr.contains("could not be checked in full, continuing with the start"), "{ran:?}");
    assert!(ran.stderr.contains("set auth_client_required = none"), "{ran:?}");

    let ran = run(&node, ["check", &id, "--json"], libraries.path());
    let report = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(finding(&report, "cluster-not-asked")["severity"], "unknown");
    assert_eq!(ran.code, 1, "{ran:?}");

    node.write("/etc/rbd-preflight/config.yaml", "on_error: block\n");
    let ran = run(&node, ["hook", &id, "pre-start"], libraries.path());
    assert_eq!(ran.code, 1, "{ran:?}");
}

#[test]
fn a_conf_that_is_not_there_is_named() {
    let (node, vmid, _) = Node::with_vm(DEFAULT);
    node.assert_healthy(vmid);
    std::fs::remove_file(node.path("/etc/pve/ceph.conf")).unwrap();
    let report = node.check(vmid);
    let found = finding(&report, "ceph-conf-missing");
    assert_eq!(found["severity"], "blocker");
    assert!(found["detail"].as_str().unwrap().contains("/etc/pve/ceph.conf"), "{found}");
}

/// What stands in the first column of the table under a heading of docs/interfaces.md.
fn listed(heading: &str) -> Vec<String> {
    let text =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/interfaces.md")).unwrap();
    let (_, section) = text.split_once(&format!("\n## {heading}\n")).unwrap();
    let rows =
        section.lines().take_while(|line| !line.starts_with("## ")).filter(|line| line.starts_with("| `"));
    let listed: Vec<String> = rows.map(|row| row.split('`').nth(1).unwrap().to_owned()).collect();
    assert!(listed.len() > 3, "no table under {heading}");
    listed
}

#[test]
fn this_release_knows_what_it_is_said_to_know() {
    let lab = Lab::shared();
    for argument in listed("`rbd`, with the storage's own arguments") {
        let value = match argument.split_once(' ').unwrap() {
            ("-p", _) => vec!["-p", "rbd"],
            ("--namespace", _) => vec!["--namespace", ""],
            ("--auth_client_required", value) => vec!["--auth_client_required", value],
            // The lab gives these itself, in their long forms.
            _ => continue,
        };
        lab.rbd(&[value, vec!["ls"]].concat());
    }
    for command in listed("`rbd`, what it is to do") {
        let (words, options): (Vec<&str>, Vec<&str>) =
            command.split(' ').partition(|word| !word.starts_with('-'));
        if words.is_empty() {
            lab.rbd(&options);
            continue;
        }
        let help = lab.rbd(&[vec!["help"], words].concat());
        assert!(options.iter().all(|option| help.contains(option)), "{command}: {help}");
    }
    for option in listed("Options of librados and librbd") {
        let known =
            std::process::Command::new("ceph-conf").args(["--show-config-value", &option]).output().unwrap();
        assert!(known.status.success(), "{option}: {known:?}");
    }
}

/// What the code passes stands in the list.
#[test]
fn every_argument_that_is_passed_is_listed() {
    let listed: Vec<String> = ["`rbd`, with the storage's own arguments", "`rbd`, what it is to do"]
        .iter()
        .flat_map(|heading| listed(heading))
        .flat_map(|row| row.split(' ').map(str::to_owned).collect::<Vec<_>>())
        .collect();
    let (node, vmid, spec) = Node::with_vm("layering,exclusive-lock,journaling");
    node.lab.rbd(&["feature", "enable", &spec, "object-map"]);
    let report = node.check(vmid);
    let commands: Vec<&str> = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|finding| finding["remedy"]["commands"].as_array().unwrap())
        .map(|command| command.as_str().unwrap())
        .collect();
    assert!(commands.iter().any(|command| command.contains("feature disable")), "{report:#}");
    for word in commands.iter().flat_map(|command| command.split(' ')).filter(|word| word.starts_with('-')) {
        assert!(listed.iter().any(|known| known == word), "{word} is not in docs/interfaces.md");
    }
}
