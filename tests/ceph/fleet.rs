//! `check --all` on many guests of a real Ceph: what it tells, how fast, and in how much memory.

use crate::common::Lab;
use crate::common::node::{Node, Ran};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

const GUESTS: usize = 200;
/// With which is gone on after the measurements.
const FEWER: usize = 20;
const DISKS: usize = 4;
const FIRST: usize = 1000;
/// How many times as fast as `rbd` by hand it has to be at least; 22 to 25 were measured in this build on a quiet machine.
const FASTER: f64 = 15.0;

/// Every guest of the node, with `DISKS` images each, on a Ceph of its own.
fn fleet() -> Node {
    let node = Node::on(Lab::own(&[]));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/many_images.py");
    let numbers = [FIRST, GUESTS, DISKS].map(|number| number.to_string());
    let made =
        Command::new("/usr/bin/python3").arg(script).args([&node.lab.conf(), "rbd"]).args(numbers).status();
    assert!(made.unwrap().success());
    for vmid in FIRST..FIRST + GUESTS {
        let disk = |n: usize| format!("scsi{n}: ceph-krbd:vm-{vmid}-disk-{n},size=8M\n");
        let disks: String = (0..DISKS).map(disk).collect();
        node.vm(u32::try_from(vmid).unwrap(), &format!("name: guest{vmid}\n{disks}"));
    }
    node
}

/// As many other images mapped on the node.
fn map_others(node: &Node) {
    for id in 0..GUESTS * DISKS {
        let name = format!("vm-{}-disk-0", 50_000 + id);
        let info = format!("10.77.0.1:6789 name=admin,key=client.admin,ms_mode=prefer-crc other {name} -");
        let address = format!("10.77.0.2:0/{}", 4_000_000_000 + id);
        let files = [
            ("pool", "other"),
            ("name", &name),
            ("current_snap", "-"),
            ("cluster_fsid", "5d1f0b1e-2c3d-4e5f-8a9b-0c1d2e3f4a5b"),
            ("client_addr", &address),
            ("client_id", "client4324"),
            ("image_id", "10d2e4f5a6b7"),
            ("config_info", &info),
            ("size", "8388608"),
            ("features", "0x000000000000003d"),
        ];
        for (file, text) in files {
            node.write(&format!("/sys/bus/rbd/devices/{id}/{file}"), &format!("{text}\n"));
        }
    }
}

/// Seconds that `rbd info`, `status` and `lock ls` take for an image, by a sample.
fn by_hand(node: &Node, sample: usize) -> f64 {
    let began = Instant::now();
    for at in 0..sample {
        let image = format!("rbd/vm-{}-disk-0", FIRST + at * (GUESTS / sample));
        for what in [&["info"][..], &["status"], &["lock", "ls"]] {
            node.lab.rbd(&[what, &[image.as_str()]].concat());
        }
    }
    began.elapsed().as_secs_f64() / sample as f64
}

/// The most memory that the command held, in MiB.
fn peak_memory(node: &Node) -> u64 {
    let mut child = node.command(["check", "--all"]).stdout(std::process::Stdio::null()).spawn().unwrap();
    let mut peak = 0;
    while child.try_wait().unwrap().is_none() {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let high = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = high.and_then(|text| text.trim().trim_end_matches(" kB").parse::<u64>().ok());
        peak = peak.max(kib.unwrap_or(0) / 1024);
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    peak
}

fn json(ran: &Ran) -> serde_json::Value {
    serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
}

/// How many times as fast as `rbd` by hand a command is on all images, one right after the other. Other tests run beside
/// this one and may slow down one of the two: where it is not [`FASTER`], it is measured again, three times in all.
fn times_as_fast<const N: usize>(node: &Node, arguments: [&str; N]) -> f64 {
    let mut best = 0.0_f64;
    for _ in 0..3 {
        let by_hand = by_hand(node, 10) * (GUESTS * DISKS) as f64;
        best = best.max(by_hand / node.run(arguments).took.as_secs_f64());
        if best >= FASTER {
            break;
        }
    }
    best
}

#[test]
fn two_hundred_guests_are_told_right_at_once() {
    let node = fleet();
    map_others(&node);
    node.assert_healthy(1005);
    let healthy = node.run(["check", "--all"]);
    assert_eq!(healthy.code, 0, "{healthy:?}");
    assert!(healthy.stdout.ends_with("200 guests: 200 ready\n"), "{}", healthy.stdout);
    let ratio = times_as_fast(&node, ["check", "--all"]);
    let memory = peak_memory(&node);
    println!("800 images: {:?}; ratio {ratio:.0}; {memory} MiB", healthy.took);
    assert!(ratio >= FASTER, "only {ratio:.1} times as fast as rbd by hand");
    assert!((1..=100).contains(&memory), "{memory} MiB");

    // One gone image, one config that cannot be read, one image that two guests name, one of no guest.
    node.lab.rbd(&["rm", "--no-progress", "rbd/vm-1005-disk-1"]);
    node.lab.rbd(&["feature", "disable", "rbd/vm-1007-disk-0", "fast-diff", "object-map"]);
    node.vm(1010, "name: twin\nscsi0: ceph-librbd:vm-1011-disk-0,size=8M\n");
    node.image("rbd/vm-7777-disk-0", "layering");
    std::fs::create_dir(node.path("/etc/pve/nodes/pve1/qemu-server/7000.conf")).unwrap();

    let planned = node.run(["repair", "--all", "--dry-run"]);
    assert_eq!(planned.stdout.matches("\n# VM 1").count(), GUESTS - 1, "{}", planned.stdout);
    assert!(planned.stdout.contains("feature enable vm-1007-disk-0"), "{}", planned.stdout);
    assert!(planned.stderr.contains("7000"), "{}", planned.stderr);
    let ratio = times_as_fast(&node, ["repair", "--all", "--dry-run"]);
    println!("repair --all --dry-run: {:?}; ratio {ratio:.0}", planned.took);
    assert!(ratio >= FASTER, "only {ratio:.1} times as fast as rbd by hand");

    // What follows tells as much of fewer.
    for vmid in FIRST + FEWER..FIRST + GUESTS {
        std::fs::remove_file(node.path(&format!("/etc/pve/nodes/pve1/qemu-server/{vmid}.conf"))).unwrap();
    }
    let ran = node.run(["check", "--all", "--json"]);
    let report = json(&ran);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert_eq!(report["unread"][0]["vmid"], 7000, "{}", report["unread"]);
    let guests = report["guests"].as_array().unwrap();
    assert_eq!((guests.len(), &guests[0]["guest"]["vmid"]), (FEWER, &1005.into()), "the worst comes first");
    assert_eq!(guests[1]["guest"]["vmid"], 1007);
    assert_eq!(guests[1]["verdict"], "repairable");
    let orphans: Vec<_> = report["findings"].as_array().unwrap().iter().map(|f| &f["image"]).collect();
    let spare = |n| format!("rbd/vm-{n}");
    assert!(orphans.contains(&&spare("7777-disk-0").into()), "{orphans:?}");
    assert!(!orphans.contains(&&spare("1011-disk-0").into()), "{orphans:?}");

    let shared = json(&node.run(["check", "--all", "--json", "--code", "image-shared"]));
    let vmids: Vec<_> = shared["guests"].as_array().unwrap().iter().map(|g| &g["guest"]["vmid"]).collect();
    assert_eq!(vmids, [&serde_json::json!(1010), &serde_json::json!(1011)]);
    let librbd = json(&node.run(["check", "--all", "--json", "--storage", "ceph-librbd"]));
    assert_eq!(librbd["guests"].as_array().unwrap().len(), 1);
    let blocked = node.run(["check", "--all", "--only", "blocked"]);
    assert!(blocked.stdout.contains("VM 1005") && !blocked.stdout.contains("VM 1006"), "{}", blocked.stdout);
    assert!(!blocked.stdout.contains('\u{1b}'), "no colours where there is no terminal");

    // Another node's guest is seen with --cluster only.
    node.write("/etc/pve/nodes/pve2/qemu-server/8000.conf", "scsi0: ceph-krbd:vm-8000-disk-0\n");
    assert!(!node.run(["check", "--all"]).stdout.contains("VM 8000"));
    assert!(node.run(["check", "--cluster"]).stdout.contains("VM 8000"));

    let metrics = node.run(["check", "--all", "--prometheus"]).stdout;
    are_samples(&metrics);
    assert!(metrics.contains("rbd_preflight_guests_unread 1\n"), "{metrics}");
    let blocked =
        "rbd_preflight_guest_verdict{vmid=\"1005\",node=\"pve1\",kind=\"qemu\",verdict=\"blocked\"} 1\n";
    assert!(metrics.contains(blocked), "{metrics}");
}

/// Every sample has its help and type before it, no sample comes twice, and every value is a number.
pub fn are_samples(text: &str) {
    let sample = regex::Regex::new(r#"^(rbd_preflight_[a-z_]+)(\{([a-z]+="[^"\\]*",?)+\})? (\S+)$"#).unwrap();
    let (mut seen, mut family) = (std::collections::BTreeSet::new(), String::new());
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            family = help.split(' ').next().unwrap().to_owned();
            assert!(seen.insert(family.clone()), "{family} twice");
            assert_eq!(lines.next(), Some(format!("# TYPE {family} gauge").as_str()));
            continue;
        }
        let parts = sample.captures(line).unwrap_or_else(|| panic!("no sample: {line}"));
        assert_eq!(&parts[1], family, "{line}");
        assert!(parts[4].parse::<f64>().is_ok(), "{line}");
        assert!(seen.insert(line.rsplit_once(' ').unwrap().0.to_owned()) || parts.get(2).is_none(), "{line}");
    }
}
