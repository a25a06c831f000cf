//! Fifty hooks of fifty guests at once on a real Ceph. The same on a dead kernel client is `tests/kernel_lab`.

use crate::common::node::{DEFAULT, Node, Ran, new_vmid};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// As many guests, and as many hooks.
const GUESTS: usize = 50;
/// One hook may take this much memory, in KiB: librados' threads and caches are most of it.
const MEMORY: i64 = 96 << 10;

/// How a hook ended, and the most memory it had, in KiB.
struct Ended {
    ran: Ran,
    memory: i64,
    at: Instant,
}

/// Waits for one child, with what only `wait4` tells.
#[allow(unsafe_code)] // `wait4` has no safe wrapper in std or nix
fn wait(child: &Child) -> (ExitStatus, i64) {
    let (mut status, mut usage) = (0, std::mem::MaybeUninit::<nix::libc::rusage>::zeroed());
    let pid = i32::try_from(child.id()).unwrap();
    // SAFETY: both point to memory of the right size, the child is ours and waited for once; zeroes are a rusage.
    let usage = unsafe {
        assert_eq!(nix::libc::wait4(pid, &mut status, 0, usage.as_mut_ptr()), pid);
        usage.assume_init()
    };
    (ExitStatus::from_raw(status), usage.ru_maxrss)
}

fn start(node: &Node, vmid: u32) -> std::thread::JoinHandle<Ended> {
    let mut command = node.command(["hook", &vmid.to_string(), "pre-start"]);
    let begun = Instant::now();
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::spawn(move || {
        use std::io::Read;
        let (mut child, mut stderr) = (child, String::new());
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        let (status, memory) = wait(&child);
        let code = status.code().unwrap_or(-1);
        let ran = Ran { code, stdout: String::new(), stderr, took: begun.elapsed() };
        Ended { ran, memory, at: Instant::now() }
    })
}

/// Linked clones of one base image; every fifth has journaling, and two guests name one image. All are ready at the
/// end, each image was changed once, and no guest waited for another's longest repair.
#[test]
fn fifty_guests_start_at_once() {
    let node = Node::new();
    let base = format!("base-{}-disk-0", new_vmid());
    node.image(&format!("rbd/{base}"), DEFAULT);
    node.lab.rbd(&["snap", "create", "--no-progress", &format!("{base}@__base__")]);
    let guests: Vec<u32> = (0..GUESTS).map(|_| new_vmid()).collect();
    let (shared, ill): (u32, Vec<u32>) = (guests[0], guests.iter().copied().step_by(5).collect());
    for &vmid in &guests {
        // The second guest names the first one's disk.
        let owner = if vmid == guests[1] { shared } else { vmid };
        if owner == vmid {
            let features = if ill.contains(&vmid) { "layering,exclusive-lock,journaling" } else { DEFAULT };
            let clone = [
                "clone",
                "--rbd-default-clone-format",
                "2",
                "--image-feature",
                features,
                &format!("{base}@__base__"),
                &format!("vm-{vmid}-disk-0"),
            ];
            node.lab.rbd(&clone);
        }
        node.vm(vmid, &format!("scsi0: ceph-krbd:{base}/vm-{owner}-disk-0,size=8M\n"));
    }

    node.assert_healthy(guests[2]);
    let begun = Instant::now();
    let running: Vec<_> = guests.iter().map(|vmid| start(&node, *vmid)).collect();
    let ended: Vec<Ended> = running.into_iter().map(|hook| hook.join().unwrap()).collect();
    let took = begun.elapsed();

    let ready = ended.iter().filter(|ended| ended.ran.code == 0).count();
    let memory = ended.iter().map(|ended| ended.memory).max().unwrap();
    let is_ill = |vmid: &u32| ill.contains(vmid) || *vmid == guests[1];
    let last = |wanted: bool| {
        let of = guests.iter().zip(&ended).filter(|(vmid, _)| is_ill(vmid) == wanted);
        of.map(|(_, ended)| ended.at.duration_since(begun)).max().unwrap()
    };
    let (healthy, repaired) = (last(false), last(true));
    println!(
        "{GUESTS} hooks at once: {ready} ready after {took:.1?}; {} repaired, the last after {repaired:.1?}; \
         the last healthy one after {healthy:.1?}; at most {} MiB each",
        ill.len(),
        memory >> 10
    );
    for (vmid, Ended { ran, .. }) in guests.iter().zip(&ended) {
        assert_eq!(ran.code, 0, "guest {vmid}: {ran:?}");
    }
    for vmid in &ill {
        let features = node.features(&format!("rbd/vm-{vmid}-disk-0"));
        // A clone of format 2 has `operations` besides.
        let wanted = ["layering", "exclusive-lock", "object-map", "fast-diff", "operations"];
        assert_eq!(features, wanted, "guest {vmid}");
        assert_eq!(node.flags(&format!("rbd/vm-{vmid}-disk-0")), Vec::<String>::new(), "guest {vmid}");
    }
    // Each change was made once, also where two guests name the image, and nothing is left half done.
    let journal = node.journal();
    let disabled = |record: &&serde_json::Value| {
        record["phase"] == "outcome"
            && record["action"]["change"] == "disable-features"
            && record["result"]["result"] == "done"
    };
    assert_eq!(journal.iter().filter(disabled).count(), ill.len());
    let phase = |phase: &str| journal.iter().filter(|record| record["phase"] == phase).count();
    assert_eq!(phase("intent"), phase("outcome"));
    assert!(memory < MEMORY, "a hook took {memory} KiB");
    assert!(healthy <= repaired, "a healthy guest waited for another's repair");
    assert!(took < Duration::from_secs(100), "{took:?}");
}
