//! The logs of Proxmox VE's tasks on this node: `/var/log/pve/tasks/X/UPID:NODE:PID:PSTART:START:TYPE:ID:USER:`, in which X is
//! the last digit of START, the second in which it began, in hexadecimal (`PVE::Tools::upid_decode`, `PVE::RESTEnvironment`).

use crate::pve::words::Kind;
use crate::sys::root::Root;
use std::path::PathBuf;

const TASKS: &str = "/var/log/pve/tasks";

/// What the last start of a guest has said that began on this node at this second (since 1970) or later, and the error that
/// it ended with; `None` where there is none, or it cannot be read.
pub fn last_start(root: &Root, kind: Kind, vmid: u32, since: u64) -> Option<(String, Option<String>)> {
    let wanted = match kind {
        Kind::Qemu => "qmstart",
        Kind::Lxc => "vzstart",
    };
    let list = |path: PathBuf| std::fs::read_dir(path).into_iter().flatten().flatten();
    let tasks = list(root.path(TASKS)).flat_map(|directory| list(directory.path()));
    let begun = |name: &str| {
        let fields: Vec<&str> = name.split(':').collect();
        let ["UPID", _, _, _, begun, kind, id, ..] = fields[..] else { return None };
        let begun = u64::from_str_radix(begun, 16).ok()?;
        (kind == wanted && id == vmid.to_string() && begun >= since).then_some(begun)
    };
    let starts = tasks.filter_map(|file| Some((begun(file.file_name().to_str()?)?, file.path())));
    let (_, path) = starts.max()?;
    let log = std::fs::read(path).ok()?;
    let log = String::from_utf8_lossy(&log).into_owned();
    Some(match log.split_once("TASK ERROR: ") {
        Some((said, error)) => (said.to_owned(), Some(error.trim_end().to_owned())),
        None => (log, None),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_start_of_the_guest_since_then_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        let log = |begun: u64, what: &str, text: &str| {
            let begun = format!("{begun:08X}");
            let file = root.path(format!(
                "{TASKS}/{}/UPID:pve1:0000ABCD:00000000:{begun}:{what}:root@pam:",
                &begun[7..]
            ));
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        };
        assert_eq!(last_start(&root, Kind::Qemu, 516, 0), None);
        log(100, "qmstart:516", "TASK ERROR: old\n");
        log(117, "qmstart:516", "kvm: no\nTASK ERROR: start failed:\nQEMU exited\n");
        log(120, "qmstart:517", "TASK OK\n");
        log(121, "vzstart:516", "TASK OK\n");
        let said = ("kvm: no\n".to_owned(), Some("start failed:\nQEMU exited".to_owned()));
        assert_eq!(last_start(&root, Kind::Qemu, 516, 101), Some(said));
        assert_eq!(last_start(&root, Kind::Qemu, 516, 118), None);
        assert_eq!(last_start(&root, Kind::Lxc, 516, 0), Some(("TASK OK\n".to_owned(), None)));
    }
}
