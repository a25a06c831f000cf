//! What a start that failed says, and whether a disk can explain it. Pure.
//!
//! To take the features off every disk is the last remedy there is, and one for disks. It is tried only after a start that a
//! disk can explain: by Proxmox VE's error, by what QEMU said, by what the kernel said of the guest's disks meanwhile, or, where
//! nobody gave a reason, by what was found wrong with a disk. Words that are not known explain nothing.
//!
//! Where it is said, seen on Proxmox VE 9.2: a task's two streams are one (`PVE::RESTEnvironment::fork_worker`), so what the
//! hookscript and QEMU print comes on `qm`'s stdout. On its stderr is the error alone that the task ended with. Its exit code
//! says nothing more: 255 for most refusals, 2 for some (`qm start` without quorum).

use crate::diagnose::finding::{Finding, RemedyKind};
use crate::finding_codes::Severity;
use crate::kernel::messages::{About, parse};
use crate::observe::survey::{DiskFacts, Survey};
use crate::rbd::spec::Spec;
use regex::Regex;
use std::sync::LazyLock;

/// How many lines of a start's output are shown: QEMU's reason is among the last.
const LINES_SHOWN: usize = 12;

/// The word `rbd` in a message; not in the name of this tool, its snippet or another program.
static RBD: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"(?:^|[^\w.-])(?:k|lib)?rbd(?:[^\w.-]|$)|/dev/rbd").ok());

/// QEMU, or the container, was started and failed, and the reason is not in these words. `command '…'`: PVE up to 8.
static LAUNCHED: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(
        r"start failed: (?:QEMU exited|command )|startup for container|QEMU exited|failed to start swtpm",
    )
    .ok()
});

/// What opens disks says so in its own name.
static OPENER: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(
        r"^(?:kvm|qemu-[\w.-]+|swtpm|rbd|mount|lxc-start)(?: [\w.-]+)*:|^\d{4}-\d\d-\d\dT\S+ .*-1 \S*rbd",
    )
    .ok()
});

/// What came of a start that failed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StartFailure {
    /// The command and how it ended: `` `qm start 516`: exit 255 ``.
    pub ended: String,
    /// What the task printed: `qm`'s stdout.
    pub output: String,
    /// The error it ended with: `qm`'s stderr.
    pub error: String,
    /// What the kernel said of rbd and libceph meanwhile, by line.
    pub kernel: Vec<String>,
}

impl StartFailure {
    /// All of it in one line, of a long output the end.
    pub fn told(&self) -> String {
        let output = lines(&self.output).collect::<Vec<_>>();
        let shown = output.iter().skip(output.len().saturating_sub(LINES_SHOWN)).copied();
        let said: Vec<&str> = shown.chain(lines(&self.error)).collect();
        let said = if said.is_empty() { "nothing".to_owned() } else { said.join(" | ") };
        let kernel = match self.kernel.as_slice() {
            [] => String::new(),
            lines => format!("; the kernel said: {}", lines.join(" | ")),
        };
        format!("{}, it said: {said}{kernel}", self.ended)
    }

    /// What of it a disk of the guest can explain, as it was said or found; `None` if nothing. `survey` and `findings`: how the
    /// disks stood just before the start.
    pub fn by_a_disk(&self, survey: &Survey, findings: &[Finding]) -> Option<String> {
        let names = |line: &str| speaks_of_a_disk(line, survey);
        let errors: Vec<String> = lines(&self.error).filter_map(reason).collect();
        if let Some(line) = errors.iter().find(|line| names(line)) {
            return Some(line.clone());
        }
        if let Some(line) = self.kernel.iter().find(|line| is_trouble_of(line, survey)) {
            return Some(line.clone());
        }
        if !errors.is_empty() && !errors.iter().any(|line| matches(&LAUNCHED, line)) {
            return None;
        }
        let mut opener = lines(&self.output).filter(|line| matches(&OPENER, line)).peekable();
        if opener.peek().is_some() {
            return opener.find(|line| names(line)).map(str::to_owned);
        }
        findings.iter().find(|finding| is_left(finding)).map(|finding| finding.summary.clone())
    }
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty())
}

fn matches(pattern: &LazyLock<Option<Regex>>, line: &str) -> bool {
    pattern.as_ref().is_some_and(|pattern| pattern.is_match(line))
}

/// A line of an error without the command that it quotes: QEMU's names every disk of the guest. `None` for a hookscript that
/// has stopped the start: that one has said why.
fn reason(line: &str) -> Option<String> {
    if line.contains("hookscript error for ") {
        return None;
    }
    Some(match (line.split_once("command '"), line.rsplit_once('\'')) {
        (Some((before, _)), Some((_, after))) => format!("{before}command{after}"),
        _ => line.to_owned(),
    })
}

/// The line speaks of RBD, or names a disk of the guest's: as `drive-scsi0`, by its volume or by its image.
fn speaks_of_a_disk(line: &str, survey: &Survey) -> bool {
    let named = |disk: &DiskFacts| {
        let spec = disk.spec().map(|spec: Spec| spec.to_string()).unwrap_or_default();
        let names = [format!("drive-{}", disk.disk.key), disk.disk.volid.clone(), spec];
        names.iter().any(|name| !name.is_empty() && has_word(line, name))
    };
    matches(&RBD, line) || survey.disks.iter().any(named)
}

/// The text has the name, and not as a part of a longer one.
fn has_word(text: &str, name: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '/');
    text.match_indices(name).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + name.len()..].chars().next();
        !before.is_some_and(part) && !after.is_some_and(|c| part(c) && c != '.')
    })
}

/// The kernel complains of an image of the guest's, or of a device that is one.
fn is_trouble_of(line: &str, survey: &Survey) -> bool {
    let Some(line) = parse(line).filter(|line| !line.message.is_ordinary()) else { return false };
    let own = |disk: &DiskFacts| match &line.about {
        About::Image(image) => disk.disk.image.as_ref() == Some(image),
        About::Disk(number) => {
            survey.mapped(disk).known().is_some_and(|mapped| mapped.iter().any(|m| m.id == *number))
        }
        About::ImageId(_) | About::Driver | About::Client => false,
    };
    survey.disks.iter().any(own)
}

/// Something is wrong with a disk, and could not be put right before the start.
fn is_left(finding: &Finding) -> bool {
    let to_do = finding.remedy.withheld.is_some()
        || matches!(finding.remedy.kind, RemedyKind::Automatic | RemedyKind::Wait);
    finding.disk.is_some() && finding.severity > Severity::Note && to_do
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding_codes::Code;
    use serde_json::json;

    /// A guest with a krbd disk that is mapped as /dev/rbd3; /dev/rbd4 is another guest's, of the same kernel client.
    fn example() -> Survey {
        serde_json::from_value(json!({
            "schema": 1, "taken_at": 0,
            "node": {
                "name": "pve1", "quorate": { "known": true }, "running": { "known": false },
                "kernel": { "release": "6.14.8-2-pve", "version": [6, 14], "module_loaded": true,
                            "supported": { "known": [] }, "mappings": { "known": [
                    { "id": 3, "pool": "rbd", "namespace": null, "image": "vm-516-disk-0", "snapshot": null, "fsid": "f",
                      "client_address": "10.0.0.1:0/5", "client": 5, "options": "" },
                    { "id": 4, "pool": "rbd", "namespace": null, "image": "vm-600-disk-0", "snapshot": null, "fsid": "f",
                      "client_address": "10.0.0.1:0/5", "client": 5, "options": "" },
                ] } },
                "rbd_release": { "known": "19.2.6" },
            },
            "guest": { "vmid": 516, "kind": "qemu", "node": "pve1", "name": null, "lock": null, "template": false,
                       "hookscript": null, "ostype": null, "disks": [], "refusals": [], "notes": [] },
            "storages": { "ceph": {
                "section": { "id": "ceph", "pool": "rbd", "namespace": null, "data_pool": null, "krbd": true,
                             "username": null, "monhost": null, "content": ["images"], "nodes": null, "disabled": false },
                "connection": { "conf": null, "mon_host": null, "user": "vms", "keyring": null },
                "cluster": 0,
            } },
            "clusters": [{ "known": {
                "fsid": "f", "health": { "known": { "status": "HEALTH_OK", "checks": [] } }, "blocklist": { "known": [] },
                "default_features": { "known": [] }, "blocklist_expire_seconds": { "known": 0 },
            } }],
            "disks": [{
                "key": "scsi0", "volid": "ceph:vm-516-disk-0", "storage": "ceph", "pool": "rbd", "namespace": null,
                "image": "vm-516-disk-0", "krbd_storage": true, "access": "krbd", "role": "disk", "pve_drops": null,
                "shared_with": [], "map_options": { "known": "" }, "reading": null,
            }],
        }))
        .unwrap()
    }

    fn failure(output: &str, error: &str, kernel: &[&str]) -> StartFailure {
        let kernel = kernel.iter().map(|line| (*line).to_owned()).collect();
        StartFailure {
            ended: "`qm start 516`: exit 255".into(),
            output: output.into(),
            error: error.into(),
            kernel,
        }
    }

    fn by_a_disk(output: &str, error: &str, kernel: &[&str], findings: &[Finding]) -> bool {
        failure(output, error, kernel).by_a_disk(&example(), findings).is_some()
    }

    /// An object map whose rebuild there was no time for.
    fn left_invalid() -> Finding {
        let mut finding = Finding::new(Code::ObjectMapInvalid, "");
        finding.disk = Some("scsi0".into());
        finding.remedy.withheld = Some("it would take too long".into());
        finding
    }

    const HOOK: &str =
        "rbd-preflight: VM 516 on pve1: 1 RBD disk checked, continuing with the start (0.1 s)\n";
    const EXITED: &str = "start failed: QEMU exited with code 1\n";
    const OLD: &str = "start failed: command '/usr/bin/kvm -id 516 -drive file=/dev/rbd-pve/f/rbd/vm-516-disk-0,id=drive-scsi0' \
                       failed: exit code 1\n";

    #[test]
    fn what_has_nothing_to_do_with_disks_is_never_explained_by_one() {
        let quoted = "command '/usr/bin/kvm -drive file=rbd:rbd/vm-516-disk-0' failed: got timeout";
        for (output, error) in [
            (HOOK, "MAX 2 vcpus allowed per VM on this node\n"),
            ("rbd: a line of the earlier hookscript\n", "MAX 2 vcpus allowed per VM on this node\n"),
            (HOOK, "cluster not ready - no quorum?\n"),
            ("", "can't lock file '/var/lock/qemu-server/lock-516.conf' - got timeout\n"),
            (HOOK, "no physical interface on bridge 'vmbr9'\n"),
            ("kvm: -device vfio-pci,host=0000:01:00.0: vfio 0000:01:00.0: failed to open\n", EXITED),
            ("kvm: -device vfio-pci,host=0000:01:00.0: vfio 0000:01:00.0: failed to open\n", OLD),
            ("", EXITED),
            ("", OLD),
            ("", quoted),
            ("", ""),
            (
                "",
                "hookscript error for 516 on pre-start: command '/var/lib/vz/snippets/rbd-preflight 516 pre-start' failed: exit code 3\n",
            ),
            ("", "hookscript error for 516 on pre-start: storage 'rbd' does not exist\n"),
            ("", "can't activate LV '/dev/pve/vm-516-disk-0'\n"),
            ("", "unable to open '/var/lib/vz/images/516/vm-516-disk-0.qcow2'\n"),
            (HOOK, "something that nobody has ever seen\n"),
        ] {
            assert!(!by_a_disk(output, error, &[], &[]), "{output:?} {error:?}");
        }
        // What is wrong with a disk explains no failure of something else.
        assert!(!by_a_disk(HOOK, "MAX 2 vcpus allowed per VM on this node\n", &[], &[left_invalid()]));
    }

    #[test]
    fn what_speaks_of_a_disk_is_explained_by_one() {
        for (output, error) in [
            ("", "can't map rbd volume vm-516-disk-0: rbd: sysfs write failed\n"),
            (
                "",
                "rbd error: rbd: error opening image vm-516-disk-0: (108) Cannot send after transport endpoint shutdown\n",
            ),
            (
                "",
                "could not disable krbd-incompatible image features 'journaling' for rbd image: vm-516-disk-0\n",
            ),
            (
                "kvm: -drive file=rbd:rbd/vm-516-disk-0:conf=/etc/pve/ceph.conf,id=drive-scsi0: error opening\n",
                EXITED,
            ),
            (
                "kvm: -blockdev {\"driver\":\"rbd\",\"pool\":\"rbd\"}: error connecting: Operation timed out\n",
                EXITED,
            ),
            ("kvm: -drive file=/dev/rbd-pve/f/rbd/vm-516-disk-0: Could not open: Input/output error\n", OLD),
            ("kvm: -device scsi-hd,drive=drive-scsi0: Failed to get \"write\" lock\n", EXITED),
            (
                "2026-11-29T15:04:42.123+0000 7f0 -1 librbd::image::OpenRequest: failed to open image\n",
                EXITED,
            ),
            ("", "unable to activate volume ceph:vm-516-disk-0.\n"),
        ] {
            assert!(by_a_disk(output, error, &[], &[]), "{output:?} {error:?}");
        }
    }

    #[test]
    fn the_kernels_word_counts_where_it_is_about_a_disk_of_the_guest() {
        for (line, expected) in [
            ("rbd: rbd3: failed to acquire lock: -108", true),
            ("rbd: image vm-516-disk-0: image uses unsupported features: 0x40", true),
            ("rbd: rbd3: write result -108", true),
            ("rbd: rbd4: write result -108", false),
            ("rbd: rbd7: write result -108", false),
            ("rbd: image vm-600-disk-0: image uses unsupported features: 0x40", false),
            ("rbd: rbd3: breaking header lock owned by client4127", false),
            ("rbd: rbd3: capacity 8388608 features 0x3d", false),
            ("libceph: osd3 down", false),
            ("libceph: mon0 (2)10.0.0.1:6789 session established", false),
        ] {
            assert_eq!(by_a_disk("", EXITED, &[line], &[]), expected, "{line}");
        }
    }

    #[test]
    fn where_nobody_gave_a_reason_what_was_left_at_a_disk_may_be_it() {
        assert!(by_a_disk("", EXITED, &[], &[left_invalid()]));
        assert!(by_a_disk("", "", &[], &[left_invalid()]));
        let other = "kvm: -netdev type=tap,id=net0: could not configure /dev/net/tun\n";
        assert!(!by_a_disk(other, EXITED, &[], &[left_invalid()]), "QEMU gave another reason");
        let done = Finding { remedy: Finding::new(Code::ImageShared, "").remedy, ..left_invalid() };
        assert!(!by_a_disk("", EXITED, &[], &[done]));
    }

    #[test]
    fn all_that_was_said_is_told() {
        let told = failure(HOOK, EXITED, &["rbd: rbd3: write result -108"]).told();
        assert!(told.starts_with("`qm start 516`: exit 255, it said: rbd-preflight: VM 516"), "{told}");
        assert!(told.ends_with(
            "| start failed: QEMU exited with code 1; the kernel said: rbd: rbd3: write result -108"
        ));
        assert!(failure("", "", &[]).told().ends_with("it said: nothing"));
        let long: String = (0..100).map(|n| format!("line {n}\n")).collect();
        let told = failure(&long, EXITED, &[]).told();
        assert!(
            !told.contains("line 87 ") && told.contains("line 88 |") && told.contains("line 99 |"),
            "{told}"
        );
    }
}
