//! What a start costs, in what does not depend on the machine: libraries loaded, requests sent. `tests/bench` has the
//! times.

use crate::common::Lab;
use crate::common::node::{DEFAULT, Node, new_vmid};
use rbd_preflight::observe::gather::{gather, gather_node};
use rbd_preflight::observe::survey::Survey;
use rbd_preflight::sys::root::Root;
use std::time::Duration;

/// The shared libraries that a hook of this guest loads, as the dynamic linker reports them.
fn loaded(node: &Node, vmid: u32) -> String {
    let output =
        node.command(["hook", &vmid.to_string(), "pre-start"]).env("LD_DEBUG", "files").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_guest_without_rbd_disks_loads_nothing_of_ceph() {
    let (node, vmid, _) = Node::with_vm_on("ceph-librbd", "rbd", DEFAULT);
    node.assert_healthy(vmid);
    let with = loaded(&node, vmid);
    assert!(with.contains("librados.so.2") && with.contains("librbd.so.1"), "the linker's report: {with}");
    let vmid = new_vmid();
    node.vm(vmid, "scsi0: local-lvm:vm-1-disk-0\nnet0: virtio=02:00:00:00:00:01,bridge=vmbr0\n");
    let without = loaded(&node, vmid);
    assert!(without.contains("libc.so.6"), "the linker's report: {without}");
    assert!(!without.contains("librados") && !without.contains("librbd"), "{without}");
}

/// Requests that the OSD has answered so far.
fn answered(lab: &Lab) -> u64 {
    let counters = lab.ceph(&["tell", "osd.0", "perf", "dump", "--format", "json"]);
    serde_json::from_str::<serde_json::Value>(&counters).unwrap()["osd"]["op"].as_u64().unwrap()
}

/// The requests of one check of a guest with so many disks.
fn requests(node: &Node, disks: usize) -> u64 {
    let vmid = new_vmid();
    let volumes: Vec<String> = (0..disks).map(|disk| format!("vm-{vmid}-disk-{disk}")).collect();
    for volume in &volumes {
        node.image(&format!("rbd/{volume}"), DEFAULT);
    }
    let lines =
        volumes.iter().enumerate().map(|(n, volume)| format!("scsi{n}: ceph-librbd:{volume},size=8M\n"));
    node.vm(vmid, &lines.collect::<String>());
    let before = answered(&node.lab);
    let ran = node.run(["check", &vmid.to_string()]);
    let after = answered(&node.lab);
    assert_eq!(ran.code, 0, "{ran:?}");
    after - before
}

/// As measured with Ceph 16.2. Each is a round trip, and librbd asks most of an image one after another; images side
/// by side.
#[test]
fn an_image_costs_a_dozen_requests() {
    let node = Node::on(Lab::own(&[]));
    let (one, nine) = (requests(&node, 1), requests(&node, 9));
    let each = (nine - one) as f64 / 8.0;
    println!("requests to the OSD: {one} for one image, {each:.1} for each further one");
    assert!(each <= 12.0 && one <= 12, "{one} for one image, {each:.1} for each further one");
}

/// The requests of one check of a clone with so many ancestors.
fn requests_of_a_clone(node: &Node, ancestors: usize) -> u64 {
    let vmid = new_vmid();
    let disk = format!("vm-{vmid}-disk-0");
    let name = |level: usize| if level == 0 { disk.clone() } else { format!("above-{level}-of-{vmid}") };
    node.image(&format!("rbd/{}", name(ancestors)), "layering");
    let clone = ["--rbd-default-clone-format", "2", "--image-feature", "layering"];
    for level in (0..ancestors).rev() {
        let source = format!("{}@s", name(level + 1));
        node.lab.rbd(&["snap", "create", "--no-progress", &source]);
        node.lab.rbd(&[&["clone", &source, &name(level)], &clone[..]].concat());
    }
    node.vm(vmid, &format!("scsi0: ceph-librbd:{disk},size=8M\n"));
    let before = answered(&node.lab);
    let ran = node.run(["check", &vmid.to_string()]);
    assert_eq!(ran.code, 0, "{ran:?}");
    answered(&node.lab) - before
}

/// librbd opens all ancestors with the clone; if each of them were opened again, so were all that are above it.
#[test]
fn each_further_ancestor_costs_the_same() {
    let node = Node::on(Lab::own(&[]));
    let (two, ten) = (requests_of_a_clone(&node, 2), requests_of_a_clone(&node, 10));
    let each = (ten - two) as f64 / 8.0;
    println!("requests to the OSD: {two} with two ancestors, {each:.1} for each further one");
    assert!(each <= 18.0, "{two} with two ancestors, {each:.1} for each further one");
}

/// Around a map Ceph is asked once (the kernel lab counts that); the node is looked at anew, with the same result where
/// nothing has changed, and not at all where the guest has.
#[test]
fn a_look_at_the_node_alone() {
    let node = Node::on(Lab::own(&[]));
    let vmid = new_vmid();
    let config = format!("scsi0: ceph-librbd:vm-{vmid}-disk-0,size=8M\n");
    node.image(&format!("rbd/vm-{vmid}-disk-0"), DEFAULT);
    node.vm(vmid, &config);
    let root = Root::new(node.path("/"));
    let seen = gather(&root, vmid, None, Duration::from_secs(10)).unwrap();
    let before = answered(&node.lab);
    let again = gather_node(&root, &seen).unwrap().unwrap();
    assert_eq!(answered(&node.lab), before);
    assert_eq!(Survey { taken_at: seen.taken_at, ..again }, seen);
    node.vm(vmid, &format!("{config}scsi1: ceph-librbd:vm-{vmid}-disk-1,size=8M\n"));
    assert!(gather_node(&root, &seen).unwrap().is_none());
}
