//! A name is not an image, and a device is not its name: what `rbd rename` leaves behind, and what somebody is just about to
//! open.

use crate::assert_said;
use crate::common::kernel::{Disk, KRBD, Kernel, KernelNode, disk, on_the_kernel};
use crate::common::node::{DEFAULT, finding};
use serde_json::Value;

/// What is in an image, in short.
fn content(kernel: &Kernel, disk: &Disk) -> String {
    kernel.host("sh", &["-c", &format!("rbd export --no-progress {} - | sha256sum", disk.spec())])
}

/// The id of the image that is mapped at a disk's link, by what the kernel says.
fn id_at(node: &KernelNode<'_>, disk: &Disk) -> String {
    let device = node.device(disk);
    node.must(&format!("n=$(readlink -f {device}); cat /sys/bus/rbd/devices/${{n#/dev/rbd}}/image_id"))
        .trim()
        .to_owned()
}

/// `rbd map A; rbd rename A B; rbd create A`, with B's data written through its device; A as it is in the guest, and B.
fn renamed(kernel: &Kernel, node: &KernelNode<'_>, holds: bool) -> (u32, Disk, Disk, Option<u32>) {
    let (vmid, disks) = node.guest_with(&[(KRBD, DEFAULT)]);
    let (new, old) = (disks[0].clone(), disk(KRBD, format!("vm-{vmid}-disk-9")));
    assert_eq!(node.pve_start(&disks), [0]);
    let device = node.device(&new);
    node.must(&format!(
        "yes another guest | head -c 1M | dd of={device} oflag=direct bs=64k iflag=fullblock status=none"
    ));
    let holder = holds.then(|| node.writer(&new, "live"));
    kernel.rbd(&["rename", &new.spec(), &old.spec()]);
    kernel.image(&new, DEFAULT);
    (vmid, new, old, holder)
}

/// The guest gets its own image, and the other one is as it was.
#[test]
fn a_device_of_the_disks_name_is_another_image() {
    on_the_kernel(|kernel| {
        let node = kernel.node(1);
        let (vmid, new, old, _) = renamed(kernel, &node, false);
        let (before, features) = (content(kernel, &old), kernel.features(&old));
        let (id, old_id) = (kernel.image_id(&new.spec()), kernel.image_id(&old.spec()));
        // Without us: Proxmox VE finds a device, and starts the guest on it.
        assert_eq!(node.pve_start(std::slice::from_ref(&new)), [0]);
        assert_eq!(id_at(&node, &new), old_id, "the link leads to the other guest's data");

        // Until nobody can be said to be about to open it.
        node.must("sleep 11");
        let report = node.check(vmid);
        let told = finding(&report, "mapping-other-image").to_string();
        assert!(told.contains(&id) && told.contains(&old_id), "{told}");
        let check = node.preflight(&format!("check {vmid}"));
        assert_eq!(check.code, 3, "{check:#?}");
        // The command that tells its present name is one.
        let name = told.split('"').find(|text| text.contains("info --image-id")).unwrap();
        assert!(node.must(name).contains(&old.image), "{told}");

        let ran = node.hook(vmid);
        assert_said(&ran, 0, &["mapping-other-image", &old_id]);
        assert_eq!(id_at(&node, &new), id, "{ran:#?}");
        node.assert_ready(std::slice::from_ref(&new));
        assert_eq!((content(kernel, &old), kernel.features(&old)), (before, features), "B is as it was");
        assert_eq!((kernel.watchers(&old), kernel.lock_owner(&old)), (vec![], None), "nobody has B any more");
        assert_said(&node.hook(vmid), 0, &["continuing with the start"]);
    });
}

/// Somebody has it open: the start is refused, and he writes on.
#[test]
fn a_device_of_the_disks_name_that_is_another_image_and_open() {
    on_the_kernel(|kernel| {
        let node = kernel.node(1);
        let (vmid, new, old, holder) = renamed(kernel, &node, true);
        let holder = holder.unwrap();
        let (id, old_id) = (kernel.image_id(&new.spec()), kernel.image_id(&old.spec()));
        let ran = node.hook(vmid);
        assert_said(&ran, 4, &["mapping-other-image", &old_id, &holder.to_string(), "python3"]);
        assert!(node.writes(holder), "whoever writes to B writes on");
        assert_eq!((id_at(&node, &new), node.mapped().len()), (old_id, 1), "nothing was unmapped or mapped");
        assert_eq!(kernel.watchers(&new), [""; 0]);
        node.kill(holder);
        assert_said(&node.hook(vmid), 0, &["mapping-other-image"]);
        assert_eq!(id_at(&node, &new), id);
    });
}

/// Between Proxmox VE's map and QEMU's open nothing has the device open, but PVE's lock of the guest is held.
#[test]
fn a_guest_that_is_just_being_started_keeps_its_disks() {
    on_the_kernel(|kernel| {
        let node = kernel.node(1);
        let (vmid, disks) = node.guest_with(&[(KRBD, DEFAULT)]);
        let lock = format!("/var/lock/qemu-server/lock-{vmid}.conf");
        node.must(&format!("mkdir -p /var/lock/qemu-server; : >>{lock}"));
        let repair = || node.preflight(&format!("repair {vmid} --yes"));
        let mapped = || node.mapped().len();
        let now = || node.must("date +%s").trim().parse::<u64>().unwrap();
        let before = now();
        assert_eq!(node.pve_start(&disks), [0]);
        let after = now();
        node.must(&format!("rbd-preflight check {vmid} --save-survey /run/lab-survey >&2"));
        let survey: Value =
            serde_json::from_str(&node.must("cat /run/lab-survey; rm /run/lab-survey")).unwrap();
        let since = survey["node"]["kernel"]["mappings"]["known"][0]["made_at"].as_u64().unwrap();
        assert!((before..=after).contains(&since), "mapped from {before} to {after}, told {since}");

        // Until nobody can be said to be about to open it.
        node.must("sleep 11");
        let pid = node.must(&format!(
            "setsid flock {lock} sleep 90 </dev/null >/dev/null 2>&1 & echo $! | tee -a /run/lab-holders
             until ! flock -n {lock} true; do sleep 0.1; done"
        ));
        let ran = repair();
        assert!(ran.code == 0 && mapped() == 1, "somebody is at the guest: {ran:#?}");
        let told = node.preflight(&format!("check -v {vmid}")).stdout;
        assert!(told.contains(&format!("somebody is at guest {vmid} right now")), "{told}");

        node.must(&format!(
            "kill -9 -{0} {0} 2>/dev/null; until flock -n {lock} true; do sleep 0.1; done",
            pid.trim()
        ));
        let ran = repair();
        assert!(ran.code == 0 && mapped() == 0, "it is left over: {ran:#?}");
    });
}

/// `rbd map -o ro`, left over: Proxmox VE would use it, and QEMU could not write.
#[test]
fn a_mapping_for_reading_only_is_mapped_anew() {
    on_the_kernel(|kernel| {
        let node = kernel.node(1);
        let (vmid, disks) = node.guest_with(&[(KRBD, DEFAULT)]);
        node.assert_healthy(vmid);
        node.must(&format!("{} -o ro", disks[0].rbd("map")));
        assert_eq!(node.pve_start(&disks), [0], "a device is there");
        assert_eq!(
            node.run(&format!("dd if=/dev/zero of={} bs=4k count=1 oflag=direct", node.device(&disks[0])))
                .code,
            1
        );
        let ran = node.hook(vmid);
        assert_said(&ran, 0, &["mapping-read-only"]);
        node.assert_ready(&disks);
    });
}
