//! The `lock:` of a guest's config: what each value means, and when it may be taken off.
//!
//! Values: `PVE::QemuServer` (`$confdesc->{lock}`) and `PVE::LXC::Config` (`lock`). `PVE::AbstractConfig::check_lock` dies on any of them
//! at a start; only a VM's `suspended` is let through, because a start resumes it.

use super::words::Kind;

/// What a lock is, and when it is safe to take it off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meaning {
    /// What sets it, and what it means where it was left behind.
    pub what: &'static str,
    /// When `qm unlock` (`pct unlock`) is safe, and what then is still to be done.
    pub safe: &'static str,
}

/// What every sentence about safety rests on.
const NO_TASK: &str = "no such task of this guest runs on any node (`pvesh get /cluster/tasks`)";

/// Whether Proxmox VE starts a guest of this kind with this lock in its config.
pub fn lets_start(kind: Kind, lock: &str) -> bool {
    kind == Kind::Qemu && lock == "suspended"
}

/// What a lock is. A value that is not known here is reported as such.
pub fn meaning(lock: &str) -> Meaning {
    let of = |what, safe| Meaning { what, safe };
    match lock {
        "backup" => of(
            "a backup (vzdump) sets it, and one that was killed, or whose node went down, leaves it behind",
            "safe when no backup of this guest runs",
        ),
        "snapshot" => of(
            "a snapshot is being taken, or was broken off",
            "safe when no snapshot is being taken; then look at `listsnapshot`, and delete a snapshot that is not whole with `delsnapshot … --force`",
        ),
        "snapshot-delete" => of(
            "a snapshot is being deleted, or that was broken off",
            "safe when no snapshot is being deleted; then delete it again with `delsnapshot … --force`",
        ),
        "rollback" => of(
            "a rollback to a snapshot is under way, or was broken off: some disks may be rolled back and others not",
            "safe when no rollback runs; roll back once more before the guest is started",
        ),
        "migrate" => of(
            "the guest is being moved to another node, or that was broken off",
            "safe only when no migration of it runs and the guest runs on neither node: look on both with `qm status` or `pct status`",
        ),
        "create" => of(
            "the guest is being created or restored: its disks are not whole before that is over",
            "safe only when that has ended; where it was broken off, destroy the guest and restore it again instead",
        ),
        "clone" => of(
            "the guest is being cloned: its disks are not whole before that is over",
            "safe only when that has ended; where it was broken off, destroy the clone and clone again instead",
        ),
        "suspending" => of(
            "the guest is being suspended to disk, or that was broken off: its memory may not be saved in whole",
            "safe when it is not being suspended any more; it then starts as after a power cut",
        ),
        "suspended" => {
            of("the guest is suspended to disk; a start of a VM resumes it", "not needed: start it")
        }
        "mounted" => of(
            "`pct mount` has mounted the container's file systems on the node",
            "use `pct unmount` instead, which takes the lock off; unlock only when nothing of it is mounted any more",
        ),
        "disk" => of(
            "a volume of the container is being moved or resized, or that was broken off",
            "safe when no such task runs",
        ),
        "fstrim" => of("`pct fstrim` runs, or was broken off", "safe when no `pct fstrim` of it runs"),
        "destroyed" => of(
            "the container is being destroyed, or that was broken off: some of its volumes may be gone",
            "safe only to destroy it once more",
        ),
        _ => of("not a lock that rbd-preflight knows", "safe only when whatever set it has surely ended"),
    }
}

/// What to do about a lock, with the command, for an administrator to judge.
pub fn way_out(kind: Kind, vmid: u32, lock: &str) -> String {
    let tool = match kind {
        Kind::Qemu => "qm",
        Kind::Lxc => "pct",
    };
    let Meaning { what, safe } = meaning(lock);
    format!(
        "{what}; wait for the task to end; if {NO_TASK}, the lock was left behind: `{tool} unlock {vmid}` removes it, which is {safe}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values that PVE 9 has (qemu-server 9.2.6, pve-container 6.1.10).
    const VM: [&str; 9] = [
        "backup",
        "clone",
        "create",
        "migrate",
        "rollback",
        "snapshot",
        "snapshot-delete",
        "suspending",
        "suspended",
    ];
    const CONTAINER: [&str; 10] = [
        "backup",
        "create",
        "destroyed",
        "disk",
        "fstrim",
        "migrate",
        "mounted",
        "rollback",
        "snapshot",
        "snapshot-delete",
    ];

    #[test]
    fn every_lock_of_proxmox_ve_is_explained() {
        let other = meaning("something else");
        for lock in VM.into_iter().chain(CONTAINER) {
            assert_ne!(meaning(lock), other, "{lock}");
        }
    }

    #[test]
    fn only_a_suspended_vm_starts_with_its_lock() {
        let lets = |kind| move |lock: &&str| lets_start(kind, lock);
        assert_eq!(VM.into_iter().filter(lets(Kind::Qemu)).collect::<Vec<_>>(), ["suspended"]);
        assert_eq!(CONTAINER.into_iter().filter(lets(Kind::Lxc)).count(), 0);
    }

    #[test]
    fn the_way_out_names_the_command_and_when_it_is_safe() {
        let text = way_out(Kind::Qemu, 516, "backup");
        assert!(text.contains("`qm unlock 516`") && text.contains("safe when no backup"), "{text}");
        assert!(way_out(Kind::Lxc, 101, "mounted").contains("pct unmount"));
    }
}
