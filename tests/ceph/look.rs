//! How the output looks: colours on a terminal only and by NO_COLOR's leave, the hook plain, little where little is asked.

use crate::common::node::{Node, Ran, new_vmid};
use regex::Regex;
use std::process::Command;

/// Runs the real binary on a pseudo-terminal.
fn on_terminal<const N: usize>(node: &Node, arguments: [&str; N], environment: &[(&str, &str)]) -> String {
    let mut script = Command::new("/usr/bin/python3");
    script.args(["-c", "import pty, sys; pty.spawn(sys.argv[1:])", env!("CARGO_BIN_EXE_rbd-preflight")]);
    script.args(arguments).env("TERM", "xterm");
    script.env("RBD_PREFLIGHT_ROOT", node.path("/")).envs(environment.iter().copied());
    for name in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "PVE_MIGRATED_FROM"] {
        if !environment.iter().any(|(given, _)| *given == name) {
            script.env_remove(name);
        }
    }
    Ran::of(script).stdout
}

fn colours(text: &str) -> usize {
    Regex::new("\x1b\\[[0-9;]*m").unwrap().find_iter(text).count()
}

#[test]
fn verdicts_have_colours_on_a_terminal_that_may_have_them() {
    let (node, vmid, _) = Node::with_vm("layering,exclusive-lock,object-map,fast-diff");
    let id = vmid.to_string();
    let ready = "\x1b[32mready";
    assert!(on_terminal(&node, ["check", &id], &[]).contains(ready));
    assert!(on_terminal(&node, ["check", "--all"], &[]).contains(ready));
    node.vm(vmid, &format!("name: ready\nscsi0: ceph-krbd:vm-{vmid}-disk-7\n"));
    let table = on_terminal(&node, ["check", "--all"], &[]);
    assert!(table.contains("\x1b[31mblocked") && !table.contains(ready), "{table}");
    for arguments in [["check", &id], ["check", "--all"]] {
        let text = on_terminal(&node, arguments, &[("NO_COLOR", "1")]);
        assert!(text.contains("blocked") && colours(&text) == 0, "{text:?}");
    }
    let hook = on_terminal(&node, ["hook", &id, "pre-start"], &[]);
    assert!(hook.contains("image-missing") && !hook.contains('\x1b'), "{hook:?}");
}

#[test]
fn nothing_but_text_goes_where_there_is_no_terminal() {
    let (node, vmid, _) = Node::with_vm("layering,exclusive-lock,journaling");
    let id = vmid.to_string();
    let runs = [
        node.run(["check", &id]),
        node.run(["check", "--all", "--verbose"]),
        node.run(["check", "--all", "--prometheus"]),
        node.run(["disks", &id, "--json"]),
        node.run(["defaults", "--set", "--dry-run"]),
        node.run(["doctor", "--json"]),
        node.run(["repair", &id, "--dry-run"]),
        node.run(["repair", "--all", "--yes"]),
        node.run(["history", &id]),
        node.run(["hook", &id, "pre-start"]),
    ];
    for ran in runs {
        assert!(!(ran.stdout.clone() + &ran.stderr).contains('\x1b'), "{ran:?}");
    }
}

#[test]
fn a_quiet_repair_tells_what_it_changes_and_what_still_blocks() {
    let (node, vmid, _) = Node::with_vm("layering,exclusive-lock,object-map,fast-diff,journaling");
    let (healthy, broken) = (new_vmid(), new_vmid());
    node.image(&format!("rbd/vm-{healthy}-disk-0"), "layering,exclusive-lock,object-map,fast-diff");
    node.vm(healthy, &format!("scsi0: ceph-krbd:vm-{healthy}-disk-0\n"));
    node.vm(broken, &format!("scsi0: ceph-krbd:vm-{broken}-disk-0\n"));
    node.assert_healthy(healthy);
    let ran = node.run(["repair", "--all", "--yes", "--quiet"]);
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert_eq!((ran.code, lines.len()), (3, 2), "{ran:?}");
    let done = format!("done: disable journaling on rbd/vm-{vmid}-disk-0 (");
    assert!(lines.iter().any(|line| line.starts_with(&done)), "{ran:?}");
    let blocked = format!("VM {broken} on pve1: scsi0: ");
    assert!(
        lines.iter().any(|line| line.starts_with(&blocked) && line.ends_with("[image-missing]")),
        "{ran:?}"
    );
}
