//! Keys of type aes256k, which Ceph 20 makes by default and kernels before 7.0 do not take.

use crate::assert_said;
use crate::common::kernel::{KRBD, Storage, disk, on_the_kernel, say};
use crate::common::node::{DEFAULT, codes, finding};

/// krbd, by a user of its own, whose key this test changes.
const KEYS: &Storage = &Storage { id: "krbd-keys", place: "rbd", user: "keys" };

/// What this kernel cannot use is said before anything is mapped, and stops the start; with a key of type aes it starts.
/// Where the kernel takes the key, and where Ceph makes no such keys, there is nothing to say.
#[test]
fn a_key_that_the_kernel_does_not_take() {
    on_the_kernel(|kernel| {
        let node = kernel.node(1);
        let caps = ["mon", "profile rbd", "osd", "profile rbd"];
        let key = kernel.ceph(&[&["auth", "get-or-create-key", "client.keys"][..], &caps].concat());
        let keyring = |key: &str| {
            let text = format!("[client.keys]\n\tkey = {}\n", key.trim());
            node.put("/etc/pve/priv/ceph/krbd-keys.keyring", &text);
        };
        keyring(&key);
        node.must(
            "grep -q krbd-keys /etc/pve/storage.cfg || \
             printf '\nrbd: krbd-keys\n\tcontent images\n\tkrbd 1\n\tpool rbd\n\tusername keys\n' >>/etc/pve/storage.cfg",
        );
        let vmid = kernel.new_vmid();
        let disk = disk(KEYS, format!("vm-{vmid}-disk-0"));
        kernel.image(&disk, DEFAULT);
        node.guest(vmid, &format!("scsi0: krbd-keys:{}\n", disk.image));
        let release = node.must("uname -r");
        let major: u32 = release.split('.').next().unwrap().parse().unwrap();
        let is_new = key.starts_with("Ag");
        say(&format!("a key of type {}, Linux {}", if is_new { "aes256k" } else { "aes" }, release.trim()));
        if is_new && major < 7 {
            let report = node.check(vmid);
            let found = finding(&report, "key-type-unsupported");
            assert_eq!(found["severity"], "blocker", "{report:#}");
            assert!(node.mapped().is_empty(), "nothing was mapped to find it out");
            assert_ne!(node.pve_start(std::slice::from_ref(&disk)), [0], "and so it is");
            let ran = node.hook(vmid);
            assert_said(&ran, 3, &["key-type-unsupported", "Linux 7.0", "type aes"]);
            assert!(!format!("{report} {ran:?}").contains(key.trim()), "the key itself is shown to nobody");
            // The way out that the guide tells.
            kernel.ceph(&["mon", "set", "auth_allowed_ciphers", "aes,aes256k"]);
            kernel.ceph(&["config", "set", "mon", "mon_auth_allow_insecure_key", "true"]);
            kernel.ceph(&["auth", "rotate", "client.keys", "--key_type", "aes"]);
            keyring(&kernel.ceph(&["auth", "get-key", "client.keys"]));
        }
        let told = codes(&node.check(vmid));
        assert!(!told.contains(&"key-type-unsupported".to_owned()), "{told:?}");
        assert_said(&node.hook(vmid), 0, &["continuing with the start"]);
        node.assert_ready(&[disk]);
    });
}

/// The kernel's keyring takes no further key of root's, and `rbd map` ends with 122.
#[test]
fn a_keyring_of_the_kernels_that_is_full() {
    on_the_kernel(|kernel| {
        let node = kernel.node(1);
        let (vmid, disks) = node.guest_with(&[(KRBD, DEFAULT)]);
        let quota = node.must("cat /proc/sys/kernel/keys/root_maxkeys");
        // Root has one key or more already.
        node.must("echo 1 >/proc/sys/kernel/keys/root_maxkeys");
        let (alone, ran) = (node.pve_start(&disks), node.hook(vmid));
        node.must(&format!("echo {} >/proc/sys/kernel/keys/root_maxkeys", quota.trim()));
        assert_eq!(alone, [122], "Proxmox VE without us");
        assert_said(&ran, 3, &["kernel-keyring-refused", "Disk quota exceeded", "root_maxkeys"]);
        assert_said(&node.hook(vmid), 0, &["continuing with the start"]);
        node.assert_ready(&disks);
    });
}

/// An option in `rbd_default_map_options` that this release of `rbd` does not know.
#[test]
fn an_option_that_nobody_knows() {
    on_the_kernel(|kernel| {
        let node = kernel.node(1);
        let (vmid, disks) = node.guest_with(&[(KRBD, DEFAULT)]);
        kernel.rbd(&["config", "image", "set", &disks[0].spec(), "rbd_default_map_options", "nonsense"]);
        assert_eq!(node.pve_start(&disks), [22]);
        let ran = node.hook(vmid);
        assert_said(
            &ran,
            3,
            &["map-option-unknown", "unknown map option 'nonsense'", "rbd_default_map_options"],
        );
        kernel.rbd(&["config", "image", "remove", &disks[0].spec(), "rbd_default_map_options"]);
        assert_said(&node.hook(vmid), 0, &["continuing with the start"]);
        node.assert_ready(&disks);
    });
}
