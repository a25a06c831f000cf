//! Options that a release does not know: a copy of the release's own library, in which one option has another name.

mod common;

use common::node::{DEFAULT, Node, Ran, finding};
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
        assert!(ran.stderr.contains("1 RBD disk checked, the start goes on"), "{option}: {ran:?}");
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
    assert!(ran.stderr.contains("could not be checked in full, the start goes on"), "{ran:?}");
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
    std::fs::remove_file(node.path("/etc/pve/ceph.conf")).unwrap();
    let report = node.check(vmid);
    let found = finding(&report, "ceph-conf-missing");
    assert_eq!(found["severity"], "blocker");
    assert!(found["detail"].as_str().unwrap().contains("/etc/pve/ceph.conf"), "{found}");
}
