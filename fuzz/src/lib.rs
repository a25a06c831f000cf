//! What is fuzzed: each function takes bytes as they may come from outside and asserts what holds of all of them.
//!
//! `fuzz_targets/` calls them for cargo-fuzz, `tests/fuzz_seeds.rs` for `tests/run`. Nothing here touches a file.

use rbd_preflight::ceph::caps::{self, caps_command, may_blocklist};
use rbd_preflight::ceph::keyring;
use rbd_preflight::ceph::monitors::{parse_blocklist, parse_features, parse_health};
use rbd_preflight::diagnose::diagnose;
use rbd_preflight::kernel::{kmsg, messages, version};
use rbd_preflight::observe::node_addresses::{Sources, Whereabouts};
use rbd_preflight::observe::survey::Survey;
use rbd_preflight::plan::assessment::GuestReport;
use rbd_preflight::plan::order::plan;
use rbd_preflight::pve;
use rbd_preflight::pve::connection::{Connection, mon_host, rbd_arguments};
use rbd_preflight::pve::guest;
use rbd_preflight::pve::guest::{Guest, Source};
use rbd_preflight::pve::members::Members;
use rbd_preflight::pve::storage::{self, StorageConfig};
use rbd_preflight::pve::volume::rbd_name;
use rbd_preflight::pve::words::Kind;
use rbd_preflight::rbd::action::{ActionReport, ActionResult, Change};
use rbd_preflight::rbd::address::host_of;
use rbd_preflight::rbd::blocklist::entry_of;
use rbd_preflight::rbd::features::Features;
use rbd_preflight::reading::{Failure, Reading};
use rbd_preflight::report::{json, text};
use rbd_preflight::settings::Settings;
use rbd_preflight::settings::policy::{Policy, Scope};
use rbd_preflight::sys::plain::is_hidden;
use rbd_preflight::sys::process::masked;
use std::sync::LazyLock;

/// Storages of many kinds, for guests to lie on.
static STORAGES: LazyLock<StorageConfig> = LazyLock::new(|| {
    storage::parse("storage.cfg", include_bytes!("../../tests/fixtures/vectors/storage/03.cfg"))
});

/// Nothing in it acts on a terminal; line ends are ours.
#[track_caller]
fn is_plain(text: &str) {
    assert!(!text.chars().any(|c| c != '\n' && is_hidden(c)), "a hidden character in {text:?}");
}

/// The pieces of `data` between NUL bytes: several files in one input.
fn files(data: &[u8]) -> impl Iterator<Item = String> {
    data.split(|byte| *byte == 0).map(|part| String::from_utf8_lossy(part).into_owned())
}

fn check_guest(kind: Kind, config: &[u8]) {
    let source = Source { vmid: 100, kind, node: "pve1", file: "100.conf", config };
    let guest = guest::read(&source, &STORAGES);
    let held = guest.disks.iter().filter(|disk| disk.pve_drops.is_none());
    if guest.parser_dies.is_none() {
        assert!(held.count() <= guest::volumes(kind, config).len(), "each disk is among the volumes");
    }
    assert!(guest.notes.iter().all(|note| note.text.chars().count() < 2000), "notes stay short");
    for disk in &guest.disks {
        // PVE accepts `-1-x`, which could be an option of rbd's; `diagnose::gate` keeps changes off it.
        if let Some(image) = &disk.image {
            assert!(!image.starts_with("--"), "an option as an image: {image:?}");
            assert!(
                !image.contains(|c: char| c.is_ascii_whitespace()),
                "a blank in an image's name: {image:?}"
            );
        }
    }
    is_plain(&text::disks(&guest));
    let saved = serde_json::to_string(&guest).expect("a guest is JSON");
    assert_eq!(serde_json::from_str::<Guest>(&saved).expect("a guest can be read back"), guest);
}

/// A guest's config, as a VM's and as a container's.
pub fn guest_config(data: &[u8]) {
    check_guest(Kind::Qemu, data);
    check_guest(Kind::Lxc, data);
}

/// One drive string, under every kind of key. Line ends would make more than one of it.
pub fn drive(data: &[u8]) {
    let value: Vec<u8> = data.iter().copied().filter(|byte| *byte != b'\n').collect();
    for (kind, key) in [
        (Kind::Qemu, "scsi0"),
        (Kind::Qemu, "ide2"),
        (Kind::Qemu, "virtio1"),
        (Kind::Qemu, "efidisk0"),
        (Kind::Qemu, "tpmstate0"),
        (Kind::Qemu, "unused0"),
        (Kind::Qemu, "vmstate"),
        (Kind::Lxc, "rootfs"),
        (Kind::Lxc, "mp0"),
    ] {
        check_guest(kind, &[key.as_bytes(), b": ", &value, b"\n"].concat());
    }
    if let Some(name) = rbd_name(&value) {
        assert!(!name.image.is_empty() && value.ends_with(name.image));
    }
}

/// storage.cfg, and the arguments for `rbd` that come of it.
pub fn storage_cfg(data: &[u8]) {
    let config = storage::parse("storage.cfg", data);
    assert!(config.rbd.is_sorted_by(|a, b| a.id < b.id), "ids are sorted and each is there once");
    for storage in &config.rbd {
        assert_eq!(config.rbd(&storage.id), Some(storage));
        assert!(config.rules(&storage.id).is_some());
        // An id is a part of a keyring's path.
        assert!(
            !storage.id.contains(['/', '\0', '\n']) && !storage.id.starts_with(['-', '.']),
            "{}",
            storage.id
        );
        let connection = Connection::unknown(storage);
        let arguments = rbd_arguments(storage, &connection);
        assert!(arguments.len() % 2 == 0, "options and values in pairs: {arguments:?}");
        assert!(arguments.iter().step_by(2).all(|option| option.starts_with('-')), "{arguments:?}");
        mon_host(storage.monhost.as_deref().unwrap_or_default());
    }
    assert!(config.notes.iter().all(|note| note.text.chars().count() < 2000), "notes stay short");
    let saved = serde_json::to_string(&config).expect("storages are JSON");
    assert_eq!(serde_json::from_str::<StorageConfig>(&saved).expect("storages can be read back"), config);
}

/// ceph.conf, then `.members`, corosync.conf, `/etc/hosts` and an address, each after a NUL.
pub fn ceph_conf(data: &[u8]) {
    let mut files = files(data);
    let mut next = || files.next().unwrap_or_default();
    let sources = Sources {
        this_node: Some("pve1".to_owned()),
        own: Reading::Unknown(Failure::new("read", "not there")),
        nodes: vec!["pve1".to_owned(), "pve2".to_owned()],
        ceph: next(),
        members: Members::parse(next().as_bytes()).unwrap_or_default(),
        corosync: next(),
        hosts: next(),
    };
    let whereabouts = Whereabouts::of(&sources);
    for address in ["10.0.0.1:0/7", "[fd00::1]:0/7", "v1:10.9.0.1:6789/0", &next()] {
        if let Some(node) = whereabouts.node_of(address) {
            assert!(!node.is_empty());
        }
        host_of(address);
    }
}

/// A keyring, then Proxmox VE's module with the check of one, after a NUL; and both as what a program prints.
pub fn keyring(data: &[u8]) {
    let text = data.split(|byte| *byte == 0).next().unwrap_or_default();
    for user in ["admin", "vms"] {
        let keyring = keyring::read(text, user);
        let lines = text.split(|byte| *byte == b'\n').count();
        if let keyring::Key::Malformed { line, .. } = &keyring.key {
            assert!((1..=lines).contains(line), "line {line} of {lines}");
        }
        assert!(keyring.newer.is_none_or(|line| (1..=lines).contains(&line)));
        let saved = serde_json::to_string(&keyring).expect("a keyring's facts are JSON");
        assert_eq!(serde_json::from_str::<keyring::Keyring>(&saved).expect("they can be read back"), keyring);
        // What is told of it are words of ours.
        let told = format!("{saved} {}", keyring.key);
        let words = text.split(|byte| !byte.is_ascii_alphanumeric()).filter(|word| word.len() > 12);
        for word in words.map(String::from_utf8_lossy) {
            assert!(!told.contains(&*word), "{told} shows {word}");
        }
    }
    for text in files(data) {
        if let Some(check) = pve::keyring::pattern(&text) {
            check.is_match(data);
        }
        let masked = masked(&text);
        assert_eq!(rbd_preflight::sys::process::masked(&masked), masked, "what is masked stays as it is");
        let begins = |at: usize| masked.get(at..at + 20).is_some_and(|part| is_key(part.as_bytes()));
        assert!(!(0..masked.len()).any(begins), "a key is left in {masked:?}");
    }
}

/// The beginning of a key of type 1 or 2, after what is no letter.
fn is_key(part: &[u8]) -> bool {
    (part.starts_with(b"AQA") || part.starts_with(b"AgA"))
        && part.iter().all(|byte| byte.is_ascii_alphanumeric() || b"+/".contains(byte))
}

/// Both settings files, with a NUL between.
pub fn settings(data: &[u8]) {
    let files: Vec<String> = files(data).take(2).collect();
    let named = ["cluster.yaml", "node.yaml"].into_iter().zip(files.iter().map(String::as_str));
    match Settings::parse(named) {
        Ok(settings) => {
            let resolved = settings.for_guest(516, ["ceph", "other"]);
            assert!(resolved.deadline.as_secs() <= 3600 && resolved.deadline.as_secs() > 0);
            let pve = version::pve_target((6, 14));
            for storage in ["ceph", "other", "third"] {
                let _ = resolved.disk(storage);
            }
            assert!(pve.enable.contains(Features::EXCLUSIVE_LOCK));
        }
        Err(error) => assert!(format!("{error:#}").contains(".yaml"), "an error names the file: {error:#}"),
    }
}

/// `/dev/kmsg` as it is read, and each line of it.
pub fn kernel_log(data: &[u8]) {
    for line in kmsg::parse(data) {
        assert!(!line.text.contains(char::is_control), "a control character in {:?}", line.text);
        let _ = (line.is_ours(), messages::parse(&line.text));
    }
    for line in String::from_utf8_lossy(data).lines() {
        let _ = (messages::parse(line), version::parse(line));
    }
}

/// What the monitors answer: blocklist, health, caps, options.
pub fn ceph_json(data: &[u8]) {
    if let Ok(blocklist) = parse_blocklist(data) {
        for entry in &blocklist {
            let _ = (entry_of(&entry.address, &blocklist), host_of(&entry.address));
        }
        let _ = entry_of("10.0.0.1:0/7", &blocklist);
    }
    let _ = parse_health(data);
    if let Some(caps) = caps::parse(data) {
        let _ = may_blocklist(&caps);
        is_plain(&caps_command("vms", &caps));
    }
    let text = String::from_utf8_lossy(data);
    if let Some(features) = parse_features(&text) {
        let names = features.names();
        let mut again = names.iter().map(|name| Features::from_name(name));
        assert_eq!(again.try_fold(Features::NONE, |all, next| Some(all | next?)), Some(features));
    }
}

/// A saved survey, in every situation: findings, plan, and what is shown of them.
pub fn survey(data: &[u8]) {
    let Ok(survey) = serde_json::from_slice::<Survey>(data) else { return };
    let saved = serde_json::to_string(&survey).expect("a survey is JSON");
    assert_eq!(serde_json::from_str::<Survey>(&saved).expect("a survey can be read back"), survey);
    let settings = Settings::default().for_guest(survey.guest.vmid, survey.storages.keys());
    let ordinary = Policy::new(settings);
    let policies = [
        Policy { map: true, scope: Scope::InHook, ..ordinary.clone() },
        Policy { scope: Scope::AfterStop, ..ordinary.clone() },
        Policy { reset: true, map: true, ..ordinary.clone() },
        Policy { read_only: Some("the guest is elsewhere".to_owned()), ..ordinary.clone() },
        ordinary,
    ];
    for policy in policies {
        let findings = diagnose(&survey, &policy);
        let actions = plan(&findings, &policy);
        assert!(policy.read_only.is_none() || actions.is_empty(), "a change where only looking is allowed");
        for action in &actions {
            let named = survey.disks.iter().any(|disk| disk.spec().as_ref() == Some(&action.target.spec));
            // What lies on a dead kernel client is let go with it, whosever it was.
            let unmapped = matches!(action.change, Change::Unmap { .. });
            assert!(named || unmapped, "a change to an image that is not the guest's: {action:?}");
            is_plain(&action.command_line());
        }
        let planned = |action| ActionReport::new(action, ActionResult::Planned);
        let report = GuestReport {
            survey: survey.clone(),
            findings,
            actions: actions.into_iter().map(planned).collect(),
        };
        is_plain(&text::guest(&report, text::Detail::Full));
        is_plain(&text::next_step(&report).unwrap_or_default());
        is_plain(&json::printed(&json::guest(&report)));
    }
}
