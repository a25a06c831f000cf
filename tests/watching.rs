//! What `watch` tells of which course of events, and when: played, with no Ceph and no kernel.
#![allow(clippy::unwrap_used)] // a helper that fails must fail the test

use rbd_preflight::ceph::keep::Answer;
use rbd_preflight::kernel::{Mapping, messages};
use rbd_preflight::pve::guest::Access;
use rbd_preflight::rbd::blocklist::BlocklistEntry;
use rbd_preflight::rbd::lock::Watcher;
use rbd_preflight::rbd::spec::Spec;
use rbd_preflight::reading::{Failure, Origin, Reading};
use rbd_preflight::report::watch as report;
use rbd_preflight::watch::Watch;
use rbd_preflight::watch::code::Code;
use rbd_preflight::watch::seen::{ClusterLook, Disk, Guests, NodeLook};
use rbd_preflight::watch::trouble::Event;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const FSID: &str = "c0c55799-7178-41aa-804e-6e900331f900";
const PLACE: &str = "Ceph as client.admin";
/// The node's kernel client.
const KERNEL: &str = "10.0.0.1:0/77";
/// The client of a QEMU on this node.
const QEMU: &str = "10.0.0.1:0/4000";
/// The watcher's own.
const OWN: &str = "10.0.0.1:0/9";
const ELSEWHERE: &str = "10.0.0.2:0/5";

fn image(name: &str) -> Spec {
    Spec { pool: "rbd".into(), namespace: None, image: name.into() }
}

fn disk(vmid: u32, access: Access) -> Disk {
    Disk {
        vmid,
        key: "scsi0".into(),
        storage: "ceph".into(),
        cluster: PLACE.into(),
        image: image(&format!("vm-{vmid}-disk-0")),
        access,
        writes: true,
    }
}

fn mapping(id: u32, vmid: u32, address: &str) -> Mapping {
    serde_json::from_value(serde_json::json!({
        "id": id, "pool": "rbd", "namespace": null, "image": format!("vm-{vmid}-disk-0"), "snapshot": null,
        "fsid": FSID, "client_address": address, "client": 77, "read_only": false, "image_id": format!("id{vmid}"),
    }))
    .unwrap()
}

fn node(disks: &[Disk], mappings: &[Mapping]) -> NodeLook {
    let guests = Guests { disks: disks.to_vec(), ..Guests::default() };
    NodeLook { guests: Reading::Known(guests), mappings: Reading::Known(Arc::new(mappings.to_vec())) }
}

fn entry(address: &str) -> BlocklistEntry {
    BlocklistEntry {
        address: address.into(),
        until: "2026-11-29T16:00:00".into(),
        range: address.ends_with("/24"),
    }
}

fn answer(blocklist: &[&str], watchers: &[(u32, &[&str])]) -> ClusterLook {
    let watcher = |address: &&str| Watcher { address: (*address).into(), client: 1, cookie: 1 };
    let watchers = watchers.iter().map(|(vmid, addresses)| {
        (image(&format!("vm-{vmid}-disk-0")), Reading::Known(addresses.iter().map(watcher).collect()))
    });
    let answer = Answer {
        fsid: FSID.into(),
        own: vec![OWN.into()],
        blocklist: Reading::Known(blocklist.iter().map(|address| entry(address)).collect()),
        watchers: watchers.collect(),
    };
    ClusterLook { cluster: PLACE.into(), answer: Reading::Known(answer) }
}

fn no_answer() -> ClusterLook {
    ClusterLook { cluster: PLACE.into(), answer: Reading::Unknown(Failure::errno("ask Ceph", 110)) }
}

/// A watcher, and the time.
#[derive(Default)]
struct Play {
    watch: Watch,
    now: u64,
}

/// `disk-dead 516`, `over disk-dead 516`.
fn told(events: Vec<Event>) -> Vec<String> {
    let one = |event: Event| {
        let over = if event.over { "over " } else { "" };
        let guests = event.trouble.guests.iter().map(|vmid| format!(" {vmid}")).collect::<String>();
        format!("{over}{}{guests}", event.trouble.code)
    };
    events.into_iter().map(one).collect()
}

impl Play {
    fn at(&mut self, now: u64) -> Duration {
        assert!(now >= self.now, "time goes forward");
        self.now = now;
        Duration::from_secs(1000 + now)
    }

    fn node(&mut self, now: u64, look: NodeLook) -> Vec<String> {
        let now = self.at(now);
        told(self.watch.node(now, look))
    }

    fn clusters(&mut self, now: u64, look: ClusterLook) -> Vec<String> {
        let now = self.at(now);
        told(self.watch.clusters(now, vec![look]))
    }

    fn lines(&mut self, now: u64, lines: &[&str]) -> Vec<String> {
        let now = self.at(now);
        let lines: Vec<_> = lines.iter().map(|line| messages::parse(line).unwrap()).collect();
        told(self.watch.lines(now, &lines))
    }

    /// One guest that runs on `/dev/rbd0`, and all is well.
    fn krbd() -> Self {
        let mut play = Self::default();
        assert!(play.node(0, node(&[disk(516, Access::Krbd)], &[mapping(0, 516, KERNEL)])).is_empty());
        assert!(play.clusters(0, answer(&[], &[(516, &[KERNEL])])).is_empty());
        play
    }

    /// One guest whose disk QEMU has open, and all is well.
    fn librbd() -> Self {
        let mut play = Self::default();
        assert!(play.node(0, node(&[disk(516, Access::Librbd)], &[])).is_empty());
        assert!(play.clusters(0, answer(&[], &[(516, &[QEMU, ELSEWHERE])])).is_empty());
        play
    }

    fn asked(&self) -> Vec<String> {
        self.watch.asks(PLACE).into_iter().map(|ask| ask.image.image).collect()
    }
}

const DEAD: [&str; 3] = [
    "rbd: rbd0: encountered watch error: -107",
    "rbd: rbd0: failed to reregister watch: -108",
    "rbd: rbd0: write result -108",
];

#[test]
fn a_dead_kernel_client_is_told_with_every_guest_on_it_and_once() {
    let mut play = Play::default();
    let disks = [disk(516, Access::Krbd), disk(517, Access::Krbd)];
    let mappings = [mapping(0, 516, KERNEL), mapping(1, 517, KERNEL), mapping(2, 900, "10.0.0.1:0/78")];
    assert!(play.node(0, node(&disks, &mappings)).is_empty());
    assert!(play.clusters(0, answer(&[], &[])).is_empty());
    let expected = ["disk-dead 516", "disk-dead 517", "client-dead 516 517"];
    assert_eq!(play.clusters(30, answer(&[KERNEL], &[])), expected);
    assert!(play.clusters(60, answer(&[KERNEL], &[])).is_empty());
    assert!(play.node(60, node(&disks, &mappings)).is_empty());
    // The entry ends, and the disks are as dead as before.
    assert!(play.clusters(4000, answer(&[], &[])).is_empty());
    // One is shut down and started again, with another client.
    let anew = [mapping(3, 516, "10.0.0.1:0/79"), mapping(1, 517, KERNEL)];
    assert_eq!(play.node(4010, node(&disks, &anew)), ["over disk-dead 516"]);
    assert_eq!(
        play.node(4020, node(&disks[..1], &anew[..1])),
        ["over disk-dead 517", "over client-dead 516 517"].map(|text| text.replace("516 517", "517"))
    );
}

/// The kernel gives an address to another client one day.
#[test]
fn a_client_that_nothing_uses_any_more_is_forgotten() {
    let mut play = Play::krbd();
    assert_eq!(play.clusters(30, answer(&[KERNEL], &[])), ["disk-dead 516", "client-dead 516"]);
    assert_eq!(play.node(40, node(&[], &[])).len(), 2);
    assert!(play.node(4000, node(&[disk(516, Access::Krbd)], &[mapping(0, 516, KERNEL)])).is_empty());
}

#[test]
fn a_client_that_watches_and_is_not_on_the_list_lives() {
    let mut play = Play::krbd();
    assert_eq!(
        play.clusters(30, answer(&[KERNEL], &[(516, &[KERNEL])])),
        ["disk-dead 516", "client-dead 516"]
    );
    let expected = ["over disk-dead 516", "over client-dead 516"];
    assert_eq!(play.clusters(60, answer(&[], &[(516, &[KERNEL])])), expected);
}

#[test]
fn the_kernels_own_word_is_enough_and_holds_for_every_disk_of_the_client() {
    let mut play = Play::default();
    let disks = [disk(516, Access::Krbd), disk(517, Access::Krbd)];
    assert!(play.node(0, node(&disks, &[mapping(0, 516, KERNEL), mapping(1, 517, KERNEL)])).is_empty());
    let expected = ["disk-dead 516", "disk-dead 517", "client-dead 516 517", "io-errors 516"];
    assert_eq!(play.lines(10, &DEAD), expected);
    assert!(play.lines(11, &DEAD).is_empty(), "it is told once");
    // The cluster only confirms it.
    assert!(play.clusters(12, answer(&[KERNEL], &[])).is_empty());
}

#[test]
fn failed_input_and_output_is_told_once_and_over_after_a_while() {
    let mut play = Play::krbd();
    assert_eq!(play.lines(10, &["rbd: rbd0: write result -5"]), ["io-errors 516"]);
    assert!(play.lines(200, &["rbd: rbd0: child read result -5"]).is_empty());
    assert!(play.clusters(499, answer(&[], &[])).is_empty());
    assert_eq!(play.clusters(501, answer(&[], &[])), ["over io-errors 516"]);
    // Lines of a device that is not mapped, or of no device, are about no guest.
    assert!(play.lines(510, &["rbd: rbd7: write result -5", "libceph: osd3 down"]).is_empty());
}

#[test]
fn a_device_of_the_same_number_is_another_one_with_another_client() {
    let mut play = Play::krbd();
    assert_eq!(play.lines(10, &["rbd: rbd0: write result -5"]), ["io-errors 516"]);
    assert_eq!(
        play.node(20, node(&[disk(516, Access::Krbd)], &[mapping(0, 516, "10.0.0.1:0/79")])),
        ["over io-errors 516"]
    );
}

#[test]
fn a_watch_that_krbd_loses_and_takes_again_is_not_told() {
    let mut play = Play::krbd();
    assert!(play.lines(10, &["rbd: rbd0: encountered watch error: -107"]).is_empty());
    assert_eq!(play.watch.hurry(), Some(Duration::from_secs(2)), "it is looked at at once");
    assert_eq!(play.asked(), ["vm-516-disk-0"]);
    assert!(play.clusters(12, answer(&[], &[(516, &[])])).is_empty());
    assert!(play.watch.hurry().is_some());
    assert!(play.clusters(23, answer(&[], &[(516, &[KERNEL])])).is_empty());
    assert_eq!(play.watch.hurry(), None);
    assert!(play.clusters(200, answer(&[], &[(516, &[KERNEL])])).is_empty());
}

#[test]
fn a_watch_that_stays_lost_is_told_within_a_minute_and_its_end_too() {
    let mut play = Play::krbd();
    assert!(play.lines(10, &["rbd: rbd0: encountered watch error: -107"]).is_empty());
    let (mut now, mut heard) = (10, Vec::new());
    while heard.is_empty() {
        now += play.watch.hurry().unwrap().as_secs();
        assert!(now <= 60, "not within a minute");
        heard = play.clusters(now, answer(&[], &[(516, &[ELSEWHERE])]));
    }
    assert_eq!(heard, ["watch-lost 516"]);
    assert_eq!(play.watch.hurry(), None, "what is told is not hurried after");
    assert!(play.clusters(90, answer(&[], &[(516, &[])])).is_empty());
    assert_eq!(play.clusters(120, answer(&[], &[(516, &[KERNEL])])), ["over watch-lost 516"]);
}

/// QEMU may have a disk open without watching it: an unread image, one that it only reads.
#[test]
fn a_watch_that_qemu_was_never_seen_to_have_is_not_lost() {
    let mut play = Play::default();
    assert!(play.node(0, node(&[disk(516, Access::Librbd)], &[])).is_empty());
    for now in [0, 30, 60, 90] {
        assert!(play.clusters(now, answer(&[], &[(516, &[ELSEWHERE])])).is_empty());
    }
    assert_eq!(play.watch.hurry(), None);
}

#[test]
fn a_process_whose_client_is_on_the_blocklist_has_a_dead_disk() {
    let mut play = Play::librbd();
    assert!(play.clusters(30, answer(&[QEMU], &[])).is_empty(), "it may have another client by now");
    assert_eq!(play.watch.hurry(), Some(Duration::from_secs(2)));
    assert_eq!(play.asked(), ["vm-516-disk-0"]);
    assert_eq!(play.clusters(32, answer(&[QEMU], &[(516, &[])])), ["disk-dead 516"]);
    assert!(play.clusters(4000, answer(&[], &[(516, &[])])).is_empty(), "it stays dead when the entry ends");
    assert_eq!(play.clusters(4030, answer(&[], &[(516, &["10.0.0.1:0/4001"])])), ["over disk-dead 516"]);
}

/// QEMU crashed and was started again: its start broke the old lock, and with it put the old client on the blocklist.
#[test]
fn a_process_that_was_started_again_has_a_living_disk() {
    let mut play = Play::librbd();
    let again = answer(&[QEMU], &[(516, &["10.0.0.1:0/4001"])]);
    let heard = play.clusters(30, again.clone());
    assert_eq!(heard, ["blocklist-entry"]);
    assert!(play.clusters(60, again).is_empty());
}

#[test]
fn entries_for_this_node_are_told_together_and_those_of_others_and_of_daemons_are_not() {
    let mut play = Play::librbd();
    let list = ["10.0.0.1:0/11", "10.0.0.1:0/12", "10.0.0.1:6800/13", "10.0.0.2:0/14", "10.0.1.0:0/24"];
    let now = play.at(30);
    let events = play.watch.clusters(now, vec![answer(&list, &[])]);
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].trouble.client.as_deref(), Some("10.0.0.1:0/11, 10.0.0.1:0/12"));
    assert_eq!(play.clusters(60, answer(&list[1..], &[])), ["over blocklist-entry"]);
}

#[test]
fn an_entry_for_the_whole_node_is_told_with_every_guest() {
    for entry in ["10.0.0.1:0/0", "10.0.0.0:0/24"] {
        let mut play = Play::krbd();
        assert_eq!(
            play.clusters(30, answer(&[entry], &[])),
            ["disk-dead 516", "client-dead 516", "node-fenced 516"],
            "{entry}"
        );
        assert_eq!(play.clusters(60, answer(&[], &[])), ["over node-fenced 516"]);
    }
}

#[test]
fn a_silent_cluster_is_told_once_with_its_guests_and_changes_nothing_else() {
    let mut play = Play::krbd();
    assert!(play.clusters(30, no_answer()).is_empty(), "monitors may be electing a leader");
    assert_eq!(play.watch.hurry(), Some(Duration::from_secs(2)));
    assert_eq!(play.clusters(42, no_answer()), ["cluster-silent 516"]);
    assert_eq!(play.watch.hurry(), None);
    for now in [80, 120, 4000] {
        assert!(play.clusters(now, no_answer()).is_empty());
    }
    assert_eq!(play.clusters(4030, answer(&[], &[(516, &[KERNEL])])), ["over cluster-silent 516"]);
}

#[test]
fn a_fault_of_ones_own_is_not_told_as_one_of_the_cluster() {
    let mut play = Play::krbd();
    for failure in [
        Failure::new("load librados.so.2", "no such file").on(Origin::Library),
        Failure::errno("osd blocklist ls", 13),
    ] {
        let look = ClusterLook { cluster: PLACE.into(), answer: Reading::Unknown(failure) };
        assert_eq!(play.clusters(play.now + 30, look), ["cannot-look 516"]);
        assert_eq!(play.clusters(play.now + 30, answer(&[], &[])), ["over cannot-look 516"]);
    }
}

#[test]
fn what_cannot_be_read_is_as_it_was() {
    let mut play = Play::krbd();
    assert_eq!(play.lines(10, &DEAD).len(), 3);
    let failure = || Failure::errno("list /etc/pve/nodes", 2);
    let gone = NodeLook { guests: Reading::Unknown(failure()), mappings: Reading::Unknown(failure()) };
    assert_eq!(play.node(20, gone.clone()), ["pve-unreadable", "cannot-look"]);
    assert!(play.node(50, gone).is_empty(), "it is told once");
    assert!(play.clusters(51, no_answer()).is_empty());
    let back = node(&[disk(516, Access::Krbd)], &[mapping(0, 516, KERNEL)]);
    assert_eq!(play.node(60, back), ["over pve-unreadable", "over cannot-look"]);
    // Nobody knows whether it runs: it is taken to run as before.
    let unsure = Guests { unsure: [516].into(), ..Guests::default() };
    let look = NodeLook {
        guests: Reading::Known(unsure),
        mappings: Reading::Known(Arc::new(vec![mapping(0, 516, KERNEL)])),
    };
    assert!(play.node(70, look).is_empty());
    assert_eq!(
        play.node(80, node(&[], &[])),
        ["over disk-dead 516", "over client-dead 516", "over io-errors 516"]
    );
}

#[test]
fn a_storage_that_is_off_is_not_told_of() {
    let mut play = Play::default();
    let guests = Guests { off: [image("vm-516-disk-0")].into(), ..Guests::default() };
    let look = NodeLook {
        guests: Reading::Known(guests),
        mappings: Reading::Known(Arc::new(vec![mapping(0, 516, KERNEL)])),
    };
    assert!(play.node(0, look).is_empty());
    assert!(play.lines(10, &DEAD).is_empty());
    assert!(play.asked().is_empty());
}

#[test]
fn a_kernel_log_that_cannot_be_read_is_told_once() {
    let mut play = Play::krbd();
    let now = play.at(10);
    let failure = Failure::errno("follow /dev/kmsg", 1);
    assert_eq!(told(play.watch.kernel_log(now, Some(failure.clone()))), ["cannot-look"]);
    assert!(play.watch.kernel_log(now, Some(failure)).is_empty());
    assert_eq!(told(play.watch.kernel_log(now, None)), ["over cannot-look"]);
}

#[test]
fn few_images_are_asked_for_at_a_time_and_all_get_their_turn() {
    let mut play = Play::default();
    let disks: Vec<Disk> = (1000..1100).map(|vmid| disk(vmid, Access::Librbd)).collect();
    play.node(0, node(&disks, &[]));
    let (mut seen, mut most) = (BTreeSet::new(), 0);
    for look in 0..120 {
        let asked: Vec<String> = play.asked();
        most = most.max(asked.len());
        let watchers = asked.iter().map(|name| {
            (image(name), Reading::Known(vec![Watcher { address: QEMU.into(), client: 1, cookie: 1 }]))
        });
        let ClusterLook { cluster, answer: Reading::Known(said) } = answer(&[], &[]) else { unreachable!() };
        let look_at =
            ClusterLook { cluster, answer: Reading::Known(Answer { watchers: watchers.collect(), ..said }) };
        assert!(play.clusters(look * 30, look_at).is_empty());
        if look > 5 {
            assert_eq!(asked.len(), 1, "without a reason only one, in turn");
            seen.extend(asked);
        }
    }
    assert!(most <= 33, "{most} at once");
    assert_eq!(seen.len(), 100, "every image has had its turn");
}

#[test]
fn an_image_that_cannot_be_read_is_not_asked_for_without_a_pause() {
    let mut play = Play::default();
    play.node(0, node(&[disk(516, Access::Librbd)], &[]));
    let ClusterLook { cluster, answer: Reading::Known(said) } = answer(&[], &[]) else { unreachable!() };
    let unread = (image("vm-516-disk-0"), Reading::Unknown(Failure::errno("open", 2)));
    let look = ClusterLook { cluster, answer: Reading::Known(Answer { watchers: vec![unread], ..said }) };
    assert!(play.clusters(0, look).is_empty());
    assert_eq!(play.watch.hurry(), None);
}

fn event() -> Event {
    let mut play = Play::krbd();
    let now = play.at(10);
    let lines: Vec<_> = DEAD.iter().map(|line| messages::parse(line).unwrap()).collect();
    play.watch.lines(now, &lines).remove(0)
}

#[test]
fn an_event_is_one_line_and_has_its_fields() {
    let event = event();
    let line = report::line(&event);
    assert!(
        !line.contains('\n') && line.starts_with("error: guest 516, scsi0 (rbd/vm-516-disk-0): "),
        "{line}"
    );
    assert!(line.ends_with("[disk-dead]") && line.contains("108 (ESHUTDOWN"), "{line}");
    let fields = report::fields(&event);
    let get = |name: &str| fields.iter().find(|(key, _)| *key == name).map(|(_, value)| value.as_str());
    for (name, value) in [
        ("MESSAGE_ID", Code::DiskDead.message_id()),
        ("CODE", "disk-dead"),
        ("STATE", "begun"),
        ("VMID", "516"),
        ("DISK", "scsi0"),
        ("DEVICE", "/dev/rbd0"),
        ("IMAGE", "rbd/vm-516-disk-0"),
        ("STORAGE", "ceph"),
        ("CEPH_FSID", FSID),
        ("CEPH_CLIENT", KERNEL),
        ("ERRNO", "108"),
    ] {
        assert_eq!(get(name), Some(value), "{name}");
    }
    assert_eq!(report::level(&event), log::Level::Error);
    let over = Event { over: true, ..event };
    assert!(report::line(&over).starts_with("over: guest 516"));
    assert_eq!(report::level(&over), log::Level::Info);
}

#[test]
fn each_code_has_a_name_and_a_message_id_of_its_own() {
    let names: BTreeSet<&str> = Code::ALL.iter().map(|code| code.name()).collect();
    let ids: BTreeSet<&str> = Code::ALL.iter().map(|code| code.message_id()).collect();
    assert_eq!((names.len(), ids.len()), (Code::ALL.len(), Code::ALL.len()));
    assert!(ids.iter().all(|id| id.len() == 32 && id.chars().all(|c| c.is_ascii_hexdigit())));
}

/// By construction: what changes something is not even named where the watcher is made.
#[test]
fn the_watcher_names_nothing_that_changes_anything() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = vec![
        "commands/watch.rs",
        "report/watch.rs",
        "observe/running.rs",
        "ceph/keep.rs",
        "kernel/follow.rs",
    ]
    .into_iter()
    .map(|file| source.join(file))
    .collect::<Vec<_>>();
    files.extend(std::fs::read_dir(source.join("watch")).unwrap().map(|file| file.unwrap().path()));
    assert!(files.len() > 8);
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        for word in [
            "act::",
            "crate::act",
            "sys::process",
            "sys::command",
            "open_for_writing",
            "acquire_lock",
            "Runner",
            "journal::Journal",
        ] {
            assert!(!text.contains(word), "{} names {word}", file.display());
        }
    }
}
