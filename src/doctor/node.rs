//! What the node itself has.

use super::{Check, Facts, State};
use crate::journal;
use crate::reading::Reading;
use crate::settings::NODE_FILE;

/// What each program is for, how grave it is without it, and its package.
const PROGRAMS: [(&str, &str, State, &str); 3] = [
    ("rbd", "nothing can be mapped or changed", State::Fail, "ceph-common"),
    ("ceph", "the commands that the tool prints cannot be run here", State::Warn, "ceph-common"),
    ("setpriv", "commands outlive the tool if it is killed", State::Warn, "util-linux"),
];

pub(super) fn checks(facts: &Facts) -> Vec<Check> {
    let mut checks: Vec<Check> = PROGRAMS.iter().map(|program| self::program(facts, program)).collect();
    checks.push(match &facts.libraries {
        Ok(()) => Check::ok("librbd", "librados2 and librbd1 can be loaded"),
        Err(why) => Check::new("librbd", State::Fail, format!("no cluster can be asked: {why}"))
            .remedy("apt install librados2 librbd1"),
    });
    checks.push(module(facts));
    checks.push(udev(facts));
    checks.push(match &facts.kernel_log {
        Ok(()) => Check::ok("kernel-log", "/dev/kmsg can be read"),
        Err(why) => {
            Check::new("kernel-log", State::Warn, format!("why a map fails can only be guessed: {why}"))
                .remedy("run rbd-preflight as root, outside of a container")
        }
    });
    checks.extend(clock(facts));
    checks.push(settings(facts));
    checks.push(match &facts.journal {
        Ok(()) => Check::ok("journal", format!("{} can be written", journal::DIRECTORY)),
        Err(why) => {
            Check::new("journal", State::Fail, format!("nothing is changed without a journal: {why}"))
                .remedy(format!("findmnt -T {0}; ls -ld {0}", journal::DIRECTORY))
        }
    });
    checks
}

fn program(facts: &Facts, (name, without, state, package): &(&str, &str, State, &str)) -> Check {
    match facts.programs.get(name).and_then(Option::as_ref) {
        Some(path) => Check::ok(*name, path),
        None => Check::new(*name, *state, format!("there is no program `{name}` in the PATH: {without}"))
            .remedy(format!("apt install {package}")),
    }
}

/// Without the module the kernel maps nothing; that is grave only where it is asked to.
fn module(facts: &Facts) -> Check {
    let kernel = &facts.kernel;
    let name = "kernel-module";
    let can = match &kernel.supported {
        Reading::Known(features) => format!("Linux {} can map images with {features}", kernel.release),
        Reading::Unknown(failure) => {
            return Check::new(
                name,
                State::Unknown,
                format!("what the kernel can map is not known: {failure}"),
            );
        }
    };
    match (&facts.loadable, kernel.module_loaded) {
        (_, true) => Check::ok(name, format!("rbd is loaded; {can}")),
        (Some(Ok(())), _) => Check::ok(name, format!("rbd is not loaded yet and can be; {can}")),
        (Some(Err(why)), _) => {
            let state = if facts.uses_kernel() { State::Fail } else { State::Warn };
            Check::new(name, state, format!("no image can be mapped: {why}")).remedy("modprobe rbd; uname -r")
        }
        (None, false) => {
            Check::new(name, State::Unknown, "rbd is not loaded, and it is not known whether it can be")
                .remedy("modprobe rbd")
        }
    }
}

fn udev(facts: &Facts) -> Check {
    let name = "udev-rule";
    if facts.udev_missing.is_empty() {
        return Check::ok(name, "50-rbd-pve.rules and ceph-rbdnamer-pve make PVE's links in /dev/rbd-pve");
    }
    let state = if facts.uses_kernel() { State::Fail } else { State::Warn };
    let missing = facts.udev_missing.join(", ");
    Check::new(name, state, format!("PVE does not find the images it maps: missing {missing}"))
        .remedy("apt install --reinstall libpve-storage-perl")
}

/// Ceph's keys are good for a time only, and a blocklist entry ends at one.
fn clock(facts: &Facts) -> Option<Check> {
    Some(match facts.clock? {
        true => Check::ok("clock", "it is kept by a time server"),
        false => Check::new(
            "clock",
            State::Warn,
            "no time server keeps it: a clock that is off makes Ceph refuse keys",
        )
        .remedy("systemctl enable --now chrony; chronyc tracking"),
    })
}

fn settings(facts: &Facts) -> Check {
    let files = facts.settings_files.join(" and ");
    match &facts.settings {
        Ok(()) if files.is_empty() => {
            Check::ok("settings", format!("the built-in ones: there is no {NODE_FILE}"))
        }
        Ok(()) => Check::ok("settings", files),
        Err(why) => {
            let file = facts.settings_files.iter().find(|file| why.contains(**file)).unwrap_or(&NODE_FILE);
            Check::new("settings", State::Fail, format!("no guest is checked or repaired: {why}"))
                .remedy(format!("editor {file}"))
        }
    }
}
