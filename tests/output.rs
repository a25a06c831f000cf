//! What becomes of output that cannot be written, and where the program says what it does meanwhile.
#![allow(clippy::unwrap_used)] // a helper that fails must fail the test

use std::fs::File;
use std::os::unix::fs::symlink;
use std::process::{Command, Output, Stdio};

/// A run of `disks 100` on a node with one guest, with this as its stdout.
fn disks(stdout: Stdio, change: impl FnOnce(&mut Command)) -> Output {
    let root = tempfile::tempdir().unwrap();
    let guests = root.path().join("etc/pve/nodes/pve1/qemu-server");
    std::fs::create_dir_all(&guests).unwrap();
    symlink("nodes/pve1", root.path().join("etc/pve/local")).unwrap();
    std::fs::write(guests.join("100.conf"), "scsi0: ceph:vm-100-disk-0,size=8M\n").unwrap();
    std::fs::write(root.path().join("etc/pve/storage.cfg"), "rbd: ceph\n\tpool rbd\n\tcontent images\n")
        .unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_rbd-preflight"));
    command.arg("--root").arg(root.path()).args(["disks", "100"]).env_remove("RBD_PREFLIGHT_LOG");
    change(&mut command);
    command.stdout(stdout).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn a_full_disk_is_an_error_and_said() {
    for json in [false, true] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = disks(full.into(), |command| {
            command.args(json.then_some("--json"));
        });
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(
            stderr(&output).contains("cannot write to stdout: error 28 (ENOSPC, No space left on device)"),
            "{output:?}"
        );
    }
}

#[test]
fn a_reader_that_has_gone_is_none() {
    let (reader, writer) = nix::unistd::pipe().unwrap();
    drop(reader);
    let output = disks(writer.into(), |_| ());
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
}

#[test]
fn what_is_done_meanwhile_is_shown_when_asked_for() {
    let quiet = disks(Stdio::null(), |_| ());
    assert_eq!(stderr(&quiet), "");
    let by_option = disks(Stdio::null(), |command| {
        command.args(["--log", "debug"]);
    });
    let by_variable = disks(Stdio::null(), |command| {
        command.env("RBD_PREFLIGHT_LOG", "debug");
    });
    for shown in [by_option, by_variable] {
        assert!(stderr(&shown).starts_with("rbd-preflight: debug: version "), "{shown:?}");
    }
}
