//! A process that has given up on Ceph ends with its exit code, whatever the thread that it left behind still does there.

use crate::common::node::{Node, Ran, new_vmid};

/// So many start at once that not all of them are connected within their second, nor much later.
const AT_ONCE: usize = 120;

#[test]
fn a_process_that_gives_up_on_ceph_ends_by_itself() {
    let (node, vmid) = (Node::new(), new_vmid());
    node.vm(vmid, &format!("scsi0: ceph-krbd:vm-{vmid}-disk-0,size=8M\n"));
    node.write("/etc/rbd-preflight/config.yaml", "connect_timeout: 1\n");
    let all: Vec<Ran> = std::thread::scope(|scope| {
        let runs: Vec<_> =
            (0..AT_ONCE).map(|_| scope.spawn(|| node.run(["check", &vmid.to_string()]))).collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    // The image is missing; or, for those that gave up, the cluster does not answer, or they do not know whether it does.
    let odd: Vec<_> = all.iter().filter(|ran| ![1, 3].contains(&ran.code)).collect();
    assert!(odd.is_empty(), "{} of {AT_ONCE}: {odd:#?}", odd.len());
    let late = all.iter().filter(|ran| !ran.stdout.contains("image-missing")).count();
    println!("{late} of {AT_ONCE} gave up");
}
