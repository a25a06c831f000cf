//! One kernel client or several: which maps share one is the kernel's to say, and the tool says the same.

use crate::assert_said;
use crate::common::kernel::{Disk, KRBD, Kernel, KernelNode, on_the_kernel};
use crate::common::node::DEFAULT;
use rbd_preflight::kernel::Mapping;
use rbd_preflight::kernel::client::{Identity, Sharing};
use serde_json::{Value, json};

/// Options of a map, each with what the kernel is to make of it: whether it takes the client that a map without options
/// has made. `nocephx_sign_messages` is left out: a cluster that wants signatures lets nobody in without, and the map
/// waits a minute for that.
const OPTIONS: [(&str, bool); 20] = [
    // What holds if nothing is said.
    ("noshare,share,nocrc,crc,cephx_sign_messages,notcp_nodelay,tcp_nodelay,ms_mode=legacy", true),
    ("mount_timeout=60,osd_idle_ttl=60,osdkeepalive=5,osd_request_timeout=0,read_from_replica=no", true),
    ("cephx_require_signatures", true),
    ("nocephx_require_signatures", true),
    // The rbd driver's own.
    ("queue_depth=64,alloc_size=65536,lock_timeout=5,compression_hint=compressible,notrim", true),
    ("exclusive,lock_on_read,rw,read_write,read_only", true),
    ("noshare", false),
    ("rxbounce", false),
    ("ms_mode=crc", false),
    ("ms_mode=prefer-crc", false),
    ("nocrc", false),
    ("notcp_nodelay", false),
    ("abort_on_full", false),
    ("read_from_replica=balance", false),
    ("crush_location=host:a|rack:b", false),
    ("mount_timeout=61", false),
    ("osd_idle_ttl=61", false),
    ("osdkeepalive=6", false),
    ("osd_request_timeout=30", false),
    ("ip=10.77.0.2", false),
];

/// Every option that the kernel knows, written to the kernel as `rbd` does, for reading only, so that no
/// lock is waited for.
#[test]
fn each_option_is_compared_as_the_kernel_does() {
    on_the_kernel(|kernel| {
        let node = kernel.node(1);
        let (_, disks) = node.guest_with(&[(KRBD, DEFAULT), (KRBD, DEFAULT)]);
        let words: Vec<String> = OPTIONS.iter().map(|(option, _)| format!("'{option}'")).collect();
        let (first, second) = (&disks[0].image, &disks[1].image);
        let answers = node.must(&format!(
            r#"cd /sys/bus/rbd/devices
               monitor=$(sed -n 's/.*v1:\([0-9.:]*\).*/\1/p' /etc/pve/ceph.conf | head -n 1)
               key=name=admin,secret=$(sed -n 's/.*key = //p' /etc/pve/priv/ceph/ceph-krbd.keyring)
               newest() {{ ls | sort -n | tail -n 1; }}
               # udev would have each device open when it is to go.
               trap 'udevadm control --start-exec-queue' EXIT; udevadm control --stop-exec-queue
               echo "$monitor $key,ro rbd {first} -" >/sys/bus/rbd/add_single_major || exit 1
               echo $(cat $(newest)/client_addr)
               for option in {options}; do
                   case $option in ms_mode=legacy) at=$monitor ;; ms_mode=*) at=${{monitor%:*}}:3300 ;; *) at=$monitor ;; esac
                   echo "$at $key,$option,ro rbd {second} -" >/sys/bus/rbd/add_single_major || exit 1
                   echo $(cat $(newest)/client_addr)
                   newest >/sys/bus/rbd/remove_single_major || exit 1
               done"#,
            options = words.join(" "),
        ));
        let mut clients = answers.lines();
        let plain = clients.next().unwrap();
        let kernels: Vec<bool> = clients.map(|client| client == plain).collect();
        let expected: Vec<bool> = OPTIONS.iter().map(|(_, shared)| *shared).collect();
        for ((option, _), (kernels, expected)) in OPTIONS.iter().zip(kernels.iter().zip(&expected)) {
            let ours = match identity("").takes(&identity(option)) {
                Sharing::Yes => true,
                Sharing::No(_) => false,
                Sharing::Unknown(why) => panic!("{option}: {why}"),
            };
            assert_eq!((*kernels, ours), (*expected, *expected), "{option}");
        }
        assert_eq!(kernels.len(), OPTIONS.len());
    });
}

/// A client that is mapped with these options.
fn identity(options: &str) -> Identity {
    let comma = if options.is_empty() { "" } else { "," };
    let mapping: Mapping = serde_json::from_value(json!({
        "id": 0, "pool": "rbd", "namespace": null, "image": "a", "snapshot": null, "fsid": "f", "client_address": "a",
        "client": 1, "options": format!("name=admin,key=client.admin{comma}{options}"),
    }))
    .unwrap();
    Identity::of_mapping(&mapping)
}

/// What a map as Proxmox VE makes it ends with; what it has mapped is unmapped again.
fn tried(node: &KernelNode<'_>, disk: &Disk, options: &str) -> i32 {
    let code = node.run(&format!("timeout 60 {} {options} >/dev/null 2>&1", disk.rbd("map"))).code;
    if code == 0 {
        node.unmap(std::slice::from_ref(disk));
    }
    code
}

/// A guest of this OS type with one disk, on an image with these options of its own for maps.
fn guest(kernel: &Kernel, node: &KernelNode<'_>, ostype: &str, options: &str) -> (u32, Disk) {
    let (vmid, mut disks) = node.guest_with(&[(KRBD, DEFAULT)]);
    let config = node.must(&format!("cat /etc/pve/qemu-server/{vmid}.conf"));
    node.guest(vmid, &format!("{config}ostype: {ostype}\n"));
    let disk = disks.remove(0);
    if !options.is_empty() {
        kernel.rbd(&["config", "image", "set", &disk.spec(), "rbd_default_map_options", options]);
    }
    (vmid, disk)
}

/// The findings of a check about kernel clients.
fn clients(report: &Value) -> Vec<&Value> {
    let findings = report["findings"].as_array().unwrap().iter();
    findings.filter(|finding| finding["code"] == "node-client-blocklisted").collect()
}

/// What `rbd map` asked for before Ceph 20 where nobody says otherwise; it asks for prefer-crc since.
const LEGACY: &str = "ms_mode=legacy";

/// Three kernel clients on one node, each with a guest that runs on it; two of them are put on the blocklist. What is
/// said to each guest to be started is held against what its real map ends with.
#[test]
fn two_of_three_clients_are_dead() {
    on_the_kernel(|kernel| {
        let node = kernel.node(1);
        let mut dead = Vec::new();
        for (with, options) in [
            ("", LEGACY),
            ("rxbounce", "ms_mode=legacy,rxbounce"),
            ("ms_mode=prefer-crc", "ms_mode=prefer-crc"),
        ] {
            let (vmid, disks) = node.guest_with(&[(KRBD, DEFAULT)]);
            node.must(&format!("{} --options {options}", disks[0].rbd("map")));
            node.run_guest(vmid, &disks[0]);
            if !with.is_empty() {
                dead.push((with, node.blocklist_client_of(&disks[0])));
            }
        }
        let is_dead = |client: &str| dead.iter().any(|(_, address)| address == client);
        let mapped = node.mapped();
        assert_eq!(mapped.iter().filter(|mapping| is_dead(&mapping.client)).count(), 2, "{mapped:?}");

        for (ostype, own, options, told) in [
            ("l26", LEGACY, "", None),
            ("win11", LEGACY, "--options rxbounce", Some("rxbounce")),
            ("l26", "ms_mode=prefer-crc", "", Some("ms_mode=prefer-crc")),
            ("win11", "ms_mode=prefer-crc", "--options rxbounce", None),
        ] {
            let case = format!("{ostype} {own}");
            let (vmid, disk) = guest(kernel, &node, ostype, own);
            let check = node.preflight(&format!("check {vmid} --json"));
            let report: Value = serde_json::from_str(&check.stdout).unwrap();
            let found = clients(&report);
            assert_eq!(found.len(), 2, "{case}: {report:#}");
            assert!(found.iter().all(|finding| finding["severity"] == "warning"), "{case}: {report:#}");
            for (with, address) in &dead {
                let told = format!("client with {with} at {address}, on the blocklist");
                let is_told = |finding: &&Value| finding["detail"].as_str().unwrap().starts_with(&told);
                assert!(found.iter().any(is_told), "{case}: {told}: {report:#}");
            }
            let mut findings = report["findings"].as_array().unwrap().iter();
            let blocker = findings.find(|finding| finding["severity"] == "blocker");
            match told {
                Some(with) => {
                    let summary = blocker.unwrap()["summary"].as_str().unwrap();
                    assert!(
                        summary.contains(&format!("kernel client with {with} is dead")),
                        "{case}: {summary}"
                    );
                    assert_eq!((check.code, tried(&node, &disk, options)), (3, 108), "{case}");
                }
                None => {
                    assert!(blocker.is_none(), "{case}: {report:#}");
                    assert_eq!((check.code, tried(&node, &disk, options)), (0, 0), "{case}");
                }
            }
            assert_said(&node.hook(vmid), 0, &["continuing with the start"]);
            node.assert_ready(std::slice::from_ref(&disk));
            let mapping = node.mapped().into_iter().find(|mapping| mapping.spec == disk.spec()).unwrap();
            let private = mapping.options.contains("noshare");
            assert_eq!(private, told.is_some() || own == "noshare", "{case}: {mapping:?}");
            assert_eq!(
                mapping.options.contains("rxbounce"),
                ostype == "win11" || own == "rxbounce",
                "{case}"
            );
            assert!(!is_dead(&mapping.client), "{case}: {mapping:?}");
        }
    });
}

/// Where it cannot be told which client a map would take, nothing is claimed, and the map itself shows it.
#[test]
fn a_client_that_cannot_be_told_is_met_by_the_map() {
    on_the_kernel(|kernel| {
        let node = kernel.node(1);
        let (other, others) = node.guest_with(&[(KRBD, DEFAULT)]);
        node.must(&others[0].rbd("map"));
        node.run_guest(other, &others[0]);
        let dead = node.blocklist_client_of(&others[0]);
        let (vmid, disk) = guest(kernel, &node, "l26", "");
        node.stand_in("rbd", "case $* in --version) echo nonsense ;; *) exec /usr/bin/rbd \"$@\" ;; esac");
        let preflight =
            |arguments: &str| node.run(&format!("PATH=/run/lab-path:$PATH rbd-preflight {arguments}"));
        let check = preflight(&format!("check {vmid}"));
        assert_eq!(check.code, 0, "{check:#?}");
        assert!(check.stdout.contains("would share it is not known"), "{check:#?}");
        assert!(check.stdout.contains("nonsense") && check.stdout.contains(&dead), "{check:#?}");
        assert_said(
            &preflight(&format!("hook {vmid} pre-start")),
            0,
            &["noshare", "continuing with the start"],
        );
        node.assert_ready(std::slice::from_ref(&disk));
        assert_ne!(node.client_of(&disk), dead);
    });
}
