//! The watcher on a real kernel: what it says when a client dies under a running guest, and that it says nothing of an OSD
//! that restarts.

use crate::common::kernel::{KRBD, KernelNode, on_the_kernel, say};
use crate::common::node::DEFAULT;
use crate::common::wait_until;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Where it tells. The end of the test ends it with the processes that have devices open.
const TOLD: &str = "/run/lab-holder.watch";

/// How long an emulated kernel on a busy machine may take for what is told within a minute.
const SOON: Duration = Duration::from_secs(240);

/// Starts the watcher as its unit does, and waits for its first look.
fn watch(node: &KernelNode) {
    node.must(&format!(
        "MALLOC_ARENA_MAX=2 setsid rbd-preflight watch --json --metrics {TOLD}.prom </dev/null >{TOLD} 2>&1 & echo $! >>/run/lab-holders"
    ));
    wait_until("the watcher's first look", SOON, || node.run(&format!("test -s {TOLD}.prom")).code == 0);
}

fn told(node: &KernelNode) -> Vec<Value> {
    let text = node.must(&format!("cat {TOLD}"));
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {text}")))
        .collect()
}

#[test]
fn a_client_that_dies_under_a_running_guest_is_told() {
    on_the_kernel(|kernel| {
        let node = kernel.node(1);
        let (vmid, disks) = node.guest_with(&[(KRBD, DEFAULT), (KRBD, DEFAULT)]);
        assert_eq!(node.pve_start(&disks), [0, 0]);
        node.run_guest(vmid, &disks[0]);
        watch(&node);
        assert_eq!(alarms(&node), [] as [Value; 0]);
        let address = node.client_of(&disks[0]);
        let began = Instant::now();
        kernel.blocklist(&address);
        let code =
            |code: &str| told(&node).into_iter().filter(|event| event["code"] == code).collect::<Vec<_>>();
        wait_until("the watcher tells of the dead disks", SOON, || code("disk-dead").len() == 2);
        say(&format!("the dead client is told after {:.1} s", began.elapsed().as_secs_f64()));
        let client = code("client-dead");
        assert_eq!(client.len(), 1, "{client:?}");
        assert_eq!((&client[0]["guests"], client[0]["client"].as_str()), (&json!([vmid]), Some(&*address)));
        wait_until("the guest's failed writes are told", SOON, || !code("io-errors").is_empty());
        assert_eq!(code("io-errors")[0]["guests"], json!([vmid]));
        assert_eq!(code("watch-lost"), [] as [Value; 0], "the dead client says it all");
        // It has looked, and changed nothing: what a dead client has mapped is still mapped.
        assert_eq!(node.mapped().len(), 2);
    });
}

/// What was told that is more than a notice, such as entries that earlier tests have left on the blocklist.
fn alarms(node: &KernelNode) -> Vec<Value> {
    told(node).into_iter().filter(|event| event["gravity"] != "notice").collect()
}

/// Waits for this many looks more.
fn looks(node: &KernelNode, count: usize) {
    let looked = || node.must(&format!("grep watch_timestamp {TOLD}.prom"));
    for _ in 0..count {
        let before = looked();
        wait_until("the watcher's next look", SOON, || looked() != before);
    }
}

/// An OSD that restarts, and then one that hears nothing for longer than it keeps a watch: krbd takes its own again.
#[test]
fn watches_that_krbd_takes_again_are_no_alarm() {
    on_the_kernel(|kernel| {
        let node = kernel.node(1);
        let (vmid, disks) = node.guest_with(&[(KRBD, DEFAULT)]);
        assert_eq!(node.pve_start(&disks), [0]);
        let qemu = node.run_guest(vmid, &disks[0]);
        watch(&node);
        let ((), said) = node.hear(|| {
            kernel.without_the_osd(|| ());
            wait_until("the guest to write on", SOON, || node.writes(qemu));
            kernel.pause("osd");
            std::thread::sleep(Duration::from_secs(20));
            kernel.resume("osd");
            wait_until("the guest to write on", SOON, || node.writes(qemu));
            wait_until("krbd to have its watch again", SOON, || !kernel.watchers(&disks[0]).is_empty());
            looks(&node, 2);
        });
        say(&format!("the kernel said: {said}"));
        let alarms: Vec<Value> =
            alarms(&node).into_iter().filter(|event| event["code"] != "cluster-silent").collect();
        assert_eq!(alarms, [] as [Value; 0], "the kernel said: {said}");
    });
}
