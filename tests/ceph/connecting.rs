//! Storages whose cluster cannot be asked: the step that failed is named, `rbd` with the arguments of Proxmox VE's fails too, and
//! nothing but our own words is on standard output. Real files, names, ports and monitors.

use crate::common::node::{DEFAULT, Node, Ran, codes, finding, new_vmid};
use crate::common::{Lab, executable};
use serde_json::Value;
use std::io::Write as _;
use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

const CONF: &str = "/etc/pve/ceph.conf";
const KEYRING: &str = "/etc/pve/priv/ceph/ceph-librbd.keyring";

/// A node with a guest whose one disk QEMU opens, on the storage `id`.
fn node_on(lab: Lab, id: &str) -> (Node, u32) {
    let (node, vmid) = (Node::on(lab), new_vmid());
    node.image(&format!("rbd/vm-{vmid}-disk-0"), DEFAULT);
    node.vm(vmid, &format!("scsi0: {id}:vm-{vmid}-disk-0,size=8M\n"));
    (node, vmid)
}

fn node() -> (Node, u32) {
    node_on(Lab::shared(), "ceph-librbd")
}

/// The monitors' line of a lab's ceph.conf.
fn mon_host(lab: &Lab) -> String {
    let conf = std::fs::read_to_string(lab.conf()).unwrap();
    let line = conf.lines().find_map(|line| line.trim().strip_prefix("mon_host = "));
    line.unwrap().to_owned()
}

/// The monitor's ports: msgr2's, msgr1's.
fn ports(lab: &Lab) -> (u16, u16) {
    let list = mon_host(lab);
    let port = |protocol: &str| {
        let (_, rest) = list.split_once(&format!("{protocol}:127.0.0.1:")).unwrap();
        rest.split([',', ']']).next().unwrap().parse().unwrap()
    };
    (port("v2"), port("v1"))
}

/// Puts another list of monitors, or nothing, in place of the line in the node's own ceph.conf.
fn monitors(node: &Node, list: Option<&str>) {
    let line = format!("mon_host = {}", mon_host(&node.lab));
    let conf = std::fs::read_to_string(node.path(CONF)).unwrap();
    assert!(conf.contains(&line), "{conf}");
    node.write(
        CONF,
        &conf.replace(&line, &list.map(|list| format!("mon_host = {list}")).unwrap_or_default()),
    );
}

/// Nobody is waited for as long as in earnest.
fn in_haste(node: &Node) {
    node.write("/etc/rbd-preflight/config.yaml", "connect_timeout: 6\ndeadline: 10\n");
}

/// `rbd ls` as Proxmox VE would run it for its own cluster.
fn rbd_of_pve(node: &Node, keyring: Option<&str>) -> std::process::Output {
    let mut command = Command::new("timeout");
    command.args(["60", "rbd", "-p", "rbd", "-c"]).arg(node.path(CONF)).args(["-n", "client.admin"]);
    match keyring {
        Some(path) => command.args(["--auth_client_required", "cephx", "--keyring"]).arg(node.path(path)),
        None => command.args(["--auth_client_required", "none"]),
    };
    command.arg("ls").env_remove("CEPH_CONF").env_remove("CEPH_ARGS").output().unwrap()
}

/// The hook stops the start for this and does not wait for what no time fixes.
fn stops_at_once(node: &Node, vmid: u32, code: &str) -> Ran {
    let ran = node.run(["hook", &vmid.to_string(), "pre-start"]);
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(ran.stderr.contains(&format!("the start is stopped ({code})")), "{ran:?}");
    assert!(!ran.stderr.contains("looking again"), "{ran:?}");
    assert_eq!(ran.stdout, "", "{ran:?}");
    ran
}

/// The detail of the one finding that stops the guest.
fn stopper(report: &Value, code: &str) -> String {
    let grave = |f: &&Value| ["unknown", "blocker", "unsafe"].contains(&f["severity"].as_str().unwrap());
    let all: Vec<&Value> = report["findings"].as_array().unwrap().iter().filter(grave).collect();
    assert_eq!(all.len(), 1, "{report:#}");
    assert_eq!(all[0]["code"], code, "{report:#}");
    all[0]["detail"].as_str().unwrap().to_owned()
}

#[test]
fn a_line_of_ceph_conf_that_is_none_is_named() {
    let (node, vmid) = node();
    node.assert_healthy(vmid);
    let conf = std::fs::read_to_string(node.path(CONF)).unwrap();
    node.write(CONF, &conf.replacen("[global]\n", "[global]\nthis is junk\n", 1));
    let detail = stopper(&node.check(vmid), "ceph-conf-invalid");
    assert!(detail.contains("/etc/pve/ceph.conf, line 3:"), "{detail}");
    let rbd = rbd_of_pve(&node, Some(KEYRING));
    assert!(String::from_utf8_lossy(&rbd.stderr).contains("error reading config file"), "{rbd:?}");
    stops_at_once(&node, vmid, "ceph-conf-invalid");
}

#[test]
fn monitors_that_nobody_names_were_not_asked() {
    let (node, vmid) = node();
    for list in [None, Some("")] {
        let conf = std::fs::read_to_string(node.lab.conf()).unwrap();
        node.write(CONF, &conf);
        monitors(&node, list);
        let detail = stopper(&node.check(vmid), "monitors-not-named");
        assert!(
            detail.contains("no mon_host for client.admin") && detail.contains("no monitor was asked"),
            "{detail}"
        );
        assert_eq!(rbd_of_pve(&node, Some(KEYRING)).status.code(), Some(2));
        stops_at_once(&node, vmid, "monitors-not-named");
    }
}

/// librados writes `server name not found` to standard output.
#[test]
fn one_name_that_does_not_resolve_is_named_and_json_stays_json() {
    let (node, vmid) = node();
    let good = ports(&node.lab).0;
    monitors(&node, Some(&format!("127.0.0.1:{good},mon-x.invalid:{good}")));
    let rbd = rbd_of_pve(&node, Some(KEYRING));
    assert_eq!(rbd.status.code(), Some(22), "{rbd:?}");
    // check() takes standard output for JSON, the whole of it.
    let report = node.check(vmid);
    let detail = stopper(&report, "monitor-name-unresolved");
    assert!(detail.contains("/etc/pve/ceph.conf, line 4") && detail.contains("mon-x.invalid ("), "{detail}");
    assert_eq!(
        finding(&report, "monitor-name-unresolved")["remedy"]["commands"][0],
        "getent ahosts mon-x.invalid"
    );
    stops_at_once(&node, vmid, "monitor-name-unresolved");
    // What a library prints is not lost: it goes to standard error.
    let ran = node.run(["check", &vmid.to_string()]);
    assert!(!ran.stdout.contains("server name not found"), "{ran:?}");
    assert_eq!(
        String::from_utf8_lossy(&rbd.stdout).contains("server name not found"),
        ran.stderr.contains("server name not found"),
        "{ran:?}"
    );
}

/// A script that is called too has the standard output that we were given.
#[test]
fn an_earlier_hookscript_writes_to_the_output_that_was_ours() {
    let (node, vmid) = node();
    let script = "/var/lib/vz/snippets/mine.sh";
    executable(&node.path(script), "#!/bin/sh\necho out $2\necho err $2 >&2\n");
    for phase in ["pre-start", "post-stop"] {
        let ran = node.run(["hook", "--earlier", "local:snippets/mine.sh", &vmid.to_string(), phase]);
        assert_eq!((ran.code, ran.stdout), (0, format!("out {phase}\n")), "{}", ran.stderr);
        assert!(ran.stderr.contains(&format!("err {phase}\n")));
    }
}

#[test]
fn a_monhost_line_that_pve_ignores_is_told_with_the_form_that_it_takes() {
    let (node, vmid) = node_on(Lab::shared(), "far");
    let (v2, v1) = ports(&node.lab);
    node.storage("far", &format!("krbd 0; monhost [v2:127.0.0.1:{v2}/0,v1:127.0.0.1:{v1}/0]"));
    let report = node.check(vmid);
    let dropped = finding(&report, "monhost-dropped");
    assert_eq!(
        (&report["verdict"], &dropped["severity"]),
        (&"ready".into(), &"warning".into()),
        "{report:#}"
    );
    let command = format!("pvesm set far --monhost 127.0.0.1:{v2},127.0.0.1:{v1}");
    assert_eq!(dropped["remedy"]["commands"][0], command);
    // And on a node that has no cluster of its own.
    std::fs::remove_file(node.path(CONF)).unwrap();
    let report = node.check(vmid);
    stopper(&report, "ceph-conf-missing");
    assert!(codes(&report).contains(&"monhost-dropped".to_owned()), "{report:#}");
}

#[test]
fn a_user_whose_prefix_is_doubled_and_a_keyring_of_somebody_else_are_named() {
    let (node, vmid) = node_on(Lab::shared(), "twice");
    node.storage("twice", "krbd 0; username client.vms");
    let keyring = "/etc/pve/priv/ceph/twice.keyring";
    std::fs::copy(node.lab.keyring("vms"), node.path(keyring)).unwrap();
    let report = node.check(vmid);
    let detail = stopper(&report, "keyring-without-user");
    assert!(detail.contains("no key of client.client.vms; it has the key of client.vms"), "{detail}");
    let remedy = &finding(&report, "keyring-without-user")["remedy"];
    assert_eq!(remedy["commands"][0], "pvesm set twice --username vms");
    assert!(remedy["text"].as_str().unwrap().contains("write `username vms`"), "{remedy}");
    stops_at_once(&node, vmid, "keyring-without-user");

    std::fs::copy(node.lab.keyring("poor"), node.path(KEYRING)).unwrap();
    node.vm(vmid, &format!("scsi0: ceph-librbd:vm-{vmid}-disk-0\n"));
    let report = node.check(vmid);
    let detail = stopper(&report, "keyring-without-user");
    assert!(detail.contains("no key of client.admin; it has the key of client.poor"), "{detail}");
    let commands = &finding(&report, "keyring-without-user")["remedy"]["commands"];
    assert_eq!(commands[0], format!("cp /etc/pve/priv/ceph.client.admin.keyring {KEYRING}"));
}

#[test]
fn a_keyring_that_is_not_there_is_named_by_its_file() {
    let (node, vmid) = node();
    std::fs::remove_file(node.path(KEYRING)).unwrap();
    let detail = stopper(&node.check(vmid), "keyring-missing");
    assert!(detail.contains("there is no /etc/pve/priv/ceph/ceph-librbd.keyring"), "{detail}");
    assert_eq!(rbd_of_pve(&node, None).status.code(), Some(13));
    stops_at_once(&node, vmid, "keyring-missing");
}

#[test]
fn only_a_key_that_the_monitors_refused_is_told_as_refused() {
    let (node, vmid) = node();
    let key = std::fs::read_to_string(node.lab.keyring("vms")).unwrap();
    node.write(KEYRING, &key.replace("[client.vms]", "[client.admin]"));
    let detail = stopper(&node.check(vmid), "cluster-auth-failed");
    assert!(detail.contains("the monitors refuse client.admin"), "{detail}");
    stops_at_once(&node, vmid, "cluster-auth-failed");
}

/// Looks until an answer has come from the address: a busy machine may take longer than we wait for one.
fn seen(node: &Node, vmid: u32, code: &str, what: &str) -> Value {
    let mut report = Value::Null;
    crate::common::wait_until(what, Duration::from_secs(120), || {
        report = node.check(vmid);
        report["findings"]
            .as_array()
            .unwrap()
            .iter()
            .any(|f| f["code"] == code && f["detail"].as_str().unwrap().contains(what))
    });
    stopper(&report, code);
    report
}

#[test]
fn a_port_where_nobody_listens_does_not_answer_and_says_why() {
    let (node, vmid) = node();
    in_haste(&node);
    monitors(&node, Some("127.0.0.1:1"));
    let report = seen(&node, vmid, "cluster-unreachable", "127.0.0.1:1: error 111 (Connection refused)");
    assert_eq!(finding(&report, "cluster-unreachable")["remedy"]["kind"], "wait");
}

#[test]
fn a_port_of_something_else_is_told_from_a_monitor() {
    let (node, vmid) = node();
    in_haste(&node);
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = other.local_addr().unwrap().port();
    std::thread::spawn(move || {
        // Left behind: it ends with the process.
        for stream in other.incoming() {
            let _ = stream.map(|mut stream| stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n"));
        }
    });
    monitors(&node, Some(&format!("127.0.0.1:{port}")));
    let what = format!("127.0.0.1:{port} is no port of Ceph's");
    let report = seen(&node, vmid, "monitor-port-wrong", &what);
    assert_eq!(finding(&report, "monitor-port-wrong")["severity"], "blocker");
}

#[test]
fn a_protocol_that_a_monitor_does_not_speak_at_its_port_is_named() {
    let (node, vmid) = node();
    in_haste(&node);
    let (v2, v1) = ports(&node.lab);
    for (list, what) in [
        (
            format!("[v2:127.0.0.1:{v1}]"),
            format!("127.0.0.1:{v1} speaks msgr1 (v1) and is asked in msgr2 (v2)"),
        ),
        (
            format!("[v1:127.0.0.1:{v2}]"),
            format!("127.0.0.1:{v2} speaks msgr2 (v2) and is asked in msgr1 (v1)"),
        ),
    ] {
        node.write(CONF, &std::fs::read_to_string(node.lab.conf()).unwrap());
        monitors(&node, Some(&list));
        seen(&node, vmid, "monitor-port-wrong", &what);
    }
}

#[test]
fn a_monitor_that_hangs_was_asked_and_does_not_answer() {
    let (node, vmid) = node_on(Lab::own(&[]), "ceph-librbd");
    in_haste(&node);
    node.lab.pause("mon");
    let detail = stopper(&node.check(vmid), "cluster-unreachable");
    assert!(detail.contains("takes the connection and says nothing"), "{detail}");
    node.lab.resume("mon");
}

#[test]
fn either_protocol_alone_will_do() {
    let (node, vmid) = node();
    let (v2, v1) = ports(&node.lab);
    for list in [format!("[v2:127.0.0.1:{v2}]"), format!("[v1:127.0.0.1:{v1}]"), format!("localhost:{v2}")] {
        node.write(CONF, &std::fs::read_to_string(node.lab.conf()).unwrap());
        monitors(&node, Some(&list));
        let report = node.check(vmid);
        assert_eq!(report["verdict"], "ready", "{report:#}");
        let grave = report["findings"].as_array().unwrap().iter().filter(|f| f["severity"] != "note").count();
        assert_eq!(grave, 0, "{report:#}");
    }
}

/// An external storage goes by `monhost`, and by a conf of its own where there is one.
#[test]
fn an_external_storages_own_conf_is_read_and_its_monhost_goes_before_it() {
    let (node, vmid) = node_on(Lab::shared(), "ceph-poor");
    let own = "/etc/pve/priv/ceph/ceph-poor.conf";
    let conf = std::fs::read_to_string(node.path(own)).unwrap();
    node.write(own, &format!("{conf}mon_host = mon-x.invalid\n"));
    assert_eq!(node.check(vmid)["verdict"], "ready", "monhost of storage.cfg goes before it");
    node.write(own, &format!("{conf}junk\n"));
    let detail = stopper(&node.check(vmid), "ceph-conf-invalid");
    assert!(detail.contains("/etc/pve/priv/ceph/ceph-poor.conf, line 4"), "{detail}");
    node.write(own, &conf);
    let config = std::fs::read_to_string(node.path("/etc/pve/storage.cfg")).unwrap();
    let line = config.lines().find(|line| line.contains("monhost")).unwrap();
    node.write("/etc/pve/storage.cfg", &config.replace(line, "\tmonhost mon-x.invalid"));
    let detail = stopper(&node.check(vmid), "monitor-name-unresolved");
    assert!(detail.contains("monhost in storage.cfg = mon-x.invalid"), "{detail}");
}

/// QEMU is given a user and a ceph.conf, and since machine version 10.0 no keyring.
#[test]
fn a_key_that_only_rbd_is_told_of_is_missed_by_qemu() {
    let (node, vmid) = node_on(Lab::shared(), "ceph-poor");
    let status = |release: &str| {
        let text = format!("Package: pve-qemu-kvm\nStatus: install ok installed\nVersion: {release}\n\n");
        node.write("/var/lib/dpkg/status", &text);
    };
    let own = "/etc/pve/priv/ceph/ceph-poor.conf";
    let good = std::fs::read_to_string(node.path(own)).unwrap();
    let line = good.lines().find(|line| line.starts_with("keyring = ")).unwrap();
    let elsewhere = node.path("/nowhere/keyring");
    node.write(own, &good.replace(line, &format!("keyring = {}", elsewhere.display())));
    let as_qemu = || {
        let mut command = Command::new("timeout");
        command.args(["60", "rbd", "-p", "rbd", "-c"]).arg(node.path(own)).args(["-n", "client.poor", "-m"]);
        command.arg(format!("[v2:127.0.0.1:{}]", ports(&node.lab).0)).arg("ls");
        command.env_remove("CEPH_CONF").env_remove("CEPH_ARGS").output().unwrap().status.success()
    };
    assert!(!as_qemu());
    let severity = |config: &str| {
        node.vm(vmid, &format!("scsi0: ceph-poor:vm-{vmid}-disk-0,size=8M\n{config}"));
        let report = node.check(vmid);
        let found = report["findings"].as_array().unwrap().iter().find(|f| f["code"] == "qemu-key-missing");
        found.map(|found| {
            let detail = found["detail"].as_str().unwrap();
            assert!(detail.contains(&elsewhere.display().to_string()), "{detail}");
            let remedy = found["remedy"]["text"].as_str().unwrap();
            assert!(
                remedy.contains("in the section [global] of /etc/pve/priv/ceph/ceph-poor.conf"),
                "{remedy}"
            );
            found["severity"].as_str().unwrap().to_owned()
        })
    };
    let blocker = Some("blocker".to_owned());
    status("10.0.2-4");
    assert_eq!(severity(""), blocker);
    assert_eq!(severity("machine: q35\n"), blocker);
    assert_eq!(severity("machine: pc-i440fx-9.2+pve1\n"), None);
    assert_eq!(severity("ostype: win11\n"), Some("note".to_owned()), "PVE goes by when it was made");
    assert_eq!(severity("ostype: win11\nmachine: type=pc-q35-10.0+pve1,viommu=virtio\n"), blocker);
    status("9.2.0-7");
    assert_eq!(severity(""), None);
    status("10.0.2-4");
    node.vm(vmid, &format!("scsi0: ceph-poor:vm-{vmid}-disk-0,size=8M\n"));
    stops_at_once(&node, vmid, "qemu-key-missing");
    node.write(own, &good);
    assert!(as_qemu());
    assert_eq!(severity(""), None);
    assert_eq!(node.check(vmid)["verdict"], "ready");
}

#[test]
fn doctor_says_the_same_of_a_storage() {
    let (node, _) = node();
    monitors(&node, Some("mon-x.invalid"));
    let ran = node.run(["doctor", "--json"]);
    let told: Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"));
    let check =
        told["checks"].as_array().unwrap().iter().find(|check| check["name"] == "storage:ceph-librbd");
    let check = check.unwrap();
    assert_eq!(check["state"], "fail", "{check:#}");
    assert!(check["detail"].as_str().unwrap().contains("mon-x.invalid ("), "{check:#}");
    assert_eq!(check["remedy"], "getent ahosts mon-x.invalid");
}
