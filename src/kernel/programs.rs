//! Programs of this node that are clients of Ceph by its own library: QEMU, `rbd`, `rbd-nbd`, a backup. Which of them an
//! address belongs to is shown nowhere: a client has no port, and the number behind its address is made up by the library
//! (`Messenger::create_client_messenger` in Ceph's `src/msg/Messenger.cc`). What there is: who has the library loaded, and
//! what its command line says.

use crate::kernel::holders::{Process, process};
use crate::sys::root::Root;
use std::fs;

/// How many are named where none of them can be told from the others.
const NAMED: usize = 4;

/// A program that has librados loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// The process that it runs as.
    process: Process,
    /// Its command line, which may hold a key: it is never shown.
    arguments: Vec<String>,
}

/// All of them, but for this one. What cannot be read, or has ended, is left out: nothing rests on it.
pub fn of_ceph(root: &Root) -> Vec<Program> {
    let own = std::process::id();
    let Ok(entries) = fs::read_dir(root.path("/proc")) else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let mut pids: Vec<u32> = pids.filter(|pid| *pid != own).collect();
    pids.sort_unstable();
    let program = |pid: u32| {
        let directory = root.path(format!("/proc/{pid}"));
        let maps = fs::read(directory.join("maps")).ok()?;
        if !contains(&maps, b"/librados.so") {
            return None;
        }
        let arguments = fs::read(directory.join("cmdline")).ok()?;
        let arguments =
            arguments.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
        Some(Program { process: process(pid, &directory), arguments: arguments.collect() })
    };
    pids.into_iter().filter_map(program).collect()
}

/// Which of them has an image open, in words, as far as their command lines tell; `None` where there are none.
pub fn told(programs: &[Program], image: &str) -> Option<String> {
    let list = |programs: &[&Program]| {
        let named: Vec<String> =
            programs.iter().take(NAMED).map(|program| program.process.to_string()).collect();
        let more = programs.len().saturating_sub(NAMED);
        if more == 0 { named.join(", ") } else { format!("{} and {more} more", named.join(", ")) }
    };
    let naming: Vec<&Program> = programs.iter().filter(|program| program.names(image)).collect();
    match (&naming[..], programs) {
        ([], []) => None,
        ([], [one]) => {
            Some(format!("most likely {}, the only one here that uses Ceph's library", one.process))
        }
        ([], all) => {
            Some(format!("one of those that use Ceph's library: {}", list(&all.iter().collect::<Vec<_>>())))
        }
        (naming, _) => Some(list(naming)),
    }
}

impl Program {
    /// Its command line names the image, and not as a device of the kernel's, which has a client of its own.
    fn names(&self, image: &str) -> bool {
        let words = self.arguments.iter().filter(|word| !word.contains("/dev/rbd"));
        words.into_iter().any(|word| holds_name(word, image))
    }
}

/// A word has this name in it, and not as a part of a longer one.
fn holds_name(word: &str, name: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || ['-', '_', '.'].contains(&c);
    word.match_indices(name).any(|(at, _)| {
        let before = word[..at].chars().next_back();
        let after = word[at + name.len()..].chars().next();
        !before.is_some_and(part) && !after.is_some_and(part)
    })
}

fn contains(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|part| part == word)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIBRARY: &str =
        "7f0000000000-7f0000001000 r-xp 00000000 08:01 5 /usr/lib/x86_64-linux-gnu/librados.so.2.0.0\n";

    /// A node with these processes: number, name, command line, whether it uses Ceph's library.
    fn node(processes: &[(u32, &str, &str, bool)]) -> (tempfile::TempDir, Root) {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        for (pid, name, line, uses) in processes {
            let place = root.path(format!("/proc/{pid}"));
            fs::create_dir_all(&place).unwrap();
            fs::write(place.join("comm"), format!("{name}\n")).unwrap();
            fs::write(place.join("cmdline"), line.replace(' ', "\0")).unwrap();
            fs::write(place.join("maps"), if *uses { LIBRARY } else { "" }).unwrap();
        }
        (directory, root)
    }

    fn seen(processes: &[(u32, &str, &str, bool)]) -> Option<String> {
        let (_directory, root) = node(processes);
        told(&of_ceph(&root), "vm-100-disk-0")
    }

    #[test]
    fn a_client_on_this_node_is_named_by_its_command_line() {
        let kvm = (
            7,
            "kvm",
            r#"/usr/bin/kvm -id 105 -blockdev {"driver":"rbd","pool":"rbd","image":"vm-100-disk-0"}"#,
            true,
        );
        let krbd = (8, "kvm", "/usr/bin/kvm -id 100 -drive file=/dev/rbd-pve/f/rbd/vm-100-disk-0", true);
        let other = (9, "rbd", "rbd export rbd/vm-100-disk-01 -", true);
        let tail = (10, "tail", "tail -f rbd/vm-100-disk-0", false);
        assert_eq!(seen(&[kvm, krbd, other, tail]).as_deref(), Some("process 7 (kvm, guest 105)"));
        let nbd = (11, "rbd-nbd", "rbd-nbd map rbd/vm-100-disk-0@s --keyring=/k", true);
        assert_eq!(seen(&[nbd]).as_deref(), Some("process 11 (rbd-nbd)"), "and no more of its command line");
    }

    #[test]
    fn one_that_names_no_image_is_named_as_what_it_is() {
        let backup = |pid| (pid, "python3", "python3 backup.py", true);
        assert_eq!(seen(&[]), None);
        let one = "most likely process 5 (python3), the only one here that uses Ceph's library";
        assert_eq!(seen(&[backup(5)]).as_deref(), Some(one));
        let all: Vec<_> = (1..=6).map(backup).collect();
        let told = seen(&all).unwrap();
        assert!(told.starts_with("one of those that use Ceph's library: process 1 (python3), "), "{told}");
        assert!(told.ends_with("process 4 (python3) and 2 more"), "{told}");
    }
}
