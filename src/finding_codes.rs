//! Every finding there is: its name, how grave it is, what it means. The one place for these facts.

use serde::{Deserialize, Serialize};
use std::fmt;

/// How grave a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing, nothing to do.
    Note,
    /// The guest starts, but something is not as it should be.
    Warning,
    /// It could not be found out whether the guest can start.
    Unknown,
    /// The start is certain to fail.
    Blocker,
    /// The start would succeed and put data at risk.
    Unsafe,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Unknown => "unknown",
            Self::Blocker => "blocker",
            Self::Unsafe => "unsafe",
        })
    }
}

/// What there is to say of one code.
struct FindingRow {
    code: Code,
    name: &'static str,
    severity: Severity,
    summary: &'static str,
    remedy: &'static str,
}

/// Makes the enum and its table from one list, so that no code can lack a text.
macro_rules! codes {
    ($($variant:ident $name:literal $severity:ident $summary:literal $remedy:literal;)*) => {
        /// What can be found wrong, or worth reporting.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $(#[doc = $summary] $variant,)*
        }

        /// Every code, in the order in which they are documented.
        const TABLE: &[FindingRow] = &[
            $(FindingRow { code: Code::$variant, name: $name, severity: Severity::$severity, summary: $summary, remedy: $remedy },)*
        ];
    };
}

codes! {
    ImageMissing "image-missing" Blocker
        "the image does not exist in its pool"
        "restore the image, or take the disk out of the guest's config";
    ImageInTrash "image-in-trash" Blocker
        "the image is in its pool's trash"
        "restore it from the trash, or take the disk out of the guest's config";
    PoolMissing "pool-missing" Blocker
        "the storage's pool does not exist in the cluster"
        "correct `pool` in storage.cfg, or create the pool";
    NamespaceMissing "namespace-missing" Blocker
        "the storage's namespace does not exist in the pool"
        "correct `namespace` in storage.cfg, or create the namespace";
    StorageUnknown "storage-unknown" Blocker
        "the disk's storage is not in storage.cfg"
        "add the storage, or correct the disk's line in the guest's config";
    StorageDisabled "storage-disabled" Blocker
        "the disk's storage is disabled"
        "enable the storage";
    StorageNotOnNode "storage-not-on-node" Blocker
        "the disk's storage is not available on this node"
        "add this node to the storage's `nodes`, or start the guest where the storage is";
    StorageContent "storage-content" Blocker
        "the disk's storage may not hold this kind of volume"
        "add the content type to the storage";
    ConfigUnreadable "config-unreadable" Blocker
        "PVE cannot read the guest's config: its parser fails on a line"
        "correct the line";
    VolumeNameInvalid "volume-name-invalid" Blocker
        "PVE cannot parse the volume's name and refuses the start"
        "correct the volume's name in the guest's config";
    ClusterUnreachable "cluster-unreachable" Blocker
        "the Ceph cluster does not answer; PVE would wait for it without limit"
        "check the monitors, the OSDs and the network, then try again";
    ClusterAuthFailed "cluster-auth-failed" Blocker
        "the Ceph cluster refuses the storage's user or key"
        "compare the storage's keyring with what the cluster holds for the user (`ceph auth get client.USER`)";
    KeyringUnreadable "keyring-unreadable" Blocker
        "Ceph's libraries on this node cannot read the storage's keyring; QEMU and rbd use the same ones"
        "write the keyring anew, with nothing but the key; for a key of type aes256k install Ceph 19.2.6 or 20.2.4 on this node, or give the user a key of type aes (`ceph auth rotate client.USER --key_type aes`)";
    KeyringRefusedByPve "keyring-refused-by-pve" Blocker
        "Proxmox VE's own check refuses the storage's keyring, and with it every use of the storage"
        "write the keyring anew with nothing but `[client.USER]` and, directly below, `key = …`; for a key of type aes256k install libpve-storage-perl 9.1.9 or later";
    KeyTypeUnsupported "key-type-unsupported" Blocker
        "this node's kernel cannot use the type of key that the storage's user has"
        "boot Linux 7.0 or later; or give the user a key of type aes (`ceph auth rotate client.USER --key_type aes`, where the monitors allow it) and write the keyring anew: as long as such keys are allowed, the cluster is not safe from CVE-2025-30156";
    CephConfMissing "ceph-conf-missing" Blocker
        "the storage's ceph.conf is missing or may not be read; QEMU and rbd need it too"
        "bring the file back: /etc/pve/ceph.conf, or /etc/pve/priv/ceph/STORAGE.conf of an external storage";
    CephConfInvalid "ceph-conf-invalid" Blocker
        "the storage's ceph.conf has a line that Ceph does not read past; QEMU and rbd refuse the file too"
        "correct the line: a section `[name]`, `name = value`, or a comment after `#`";
    MonitorsNotNamed "monitors-not-named" Blocker
        "none of the cluster's monitors is configured, so QEMU and rbd have nobody to ask"
        "set mon_host in the [global] section of the storage's ceph.conf; for an external cluster set `monhost` of the storage";
    MonitorNameUnresolved "monitor-name-unresolved" Blocker
        "a monitor's name does not resolve on this node; Ceph's libraries then ask none of the monitors"
        "correct the name, put it into /etc/hosts or the DNS, or name the monitors by their addresses";
    MonhostDropped "monhost-dropped" Warning
        "Proxmox VE ignores the storage's monhost line and takes the storage's cluster for this node's own"
        "write addresses or names without protocol and nonce, separated by commas: `monhost 10.0.0.1,10.0.0.2:6789`";
    MonitorPortWrong "monitor-port-wrong" Blocker
        "no configured monitor address speaks the protocol (v1 or v2) in which it is asked"
        "correct the ports in monhost or mon_host: a monitor speaks msgr2 (v2) at 3300 and msgr1 (v1) at 6789; see `ceph mon dump`";
    KeyringMissing "keyring-missing" Blocker
        "the storage has no keyring, and its cluster wants authentication"
        "put the user's keyring in its place";
    KeyringWithoutUser "keyring-without-user" Blocker
        "the storage's keyring has no key of the storage's user"
        "correct `username` of the storage, or write the keyring of that user";
    QemuKeyMissing "qemu-key-missing" Blocker
        "QEMU does not find the key of the storage's user: from machine version 10.0 on, Proxmox VE passes it no keyring"
        "set `keyring` in the ceph.conf that QEMU reads";
    ClusterNotAsked "cluster-not-asked" Unknown
        "rbd-preflight could not ask the Ceph cluster, for a reason on this node; the cluster itself may be fine"
        "`seen` names the step that failed on this node; `rbd-preflight doctor` checks what it needs (memory, files, options, libraries); until that is fixed the guest is not checked";
    NodeBlocklisted "node-blocklisted" Blocker
        "this node's whole address is on the OSD blocklist: Ceph serves no client on it"
        "find out who put it there and why (an administrator, a fence agent); until the entry expires, or whoever made it removes it, start the guest on another node";
    ClusterFull "cluster-full" Blocker
        "the image's pool is full: Ceph holds all writes back, and opening an image for writing is one, so the start hangs"
        "make room (`ceph df`, `ceph osd df`): delete what is not needed, add OSDs, or raise the pool's quota (`ceph osd pool get-quota POOL`); the start continues by itself once there is room";
    PlacementGroupsInactive "placement-groups-inactive" Blocker
        "placement groups of the image's pool are inactive: reads and writes of the data in them hang until they are active again"
        "bring back the OSDs that hold them (`ceph health detail`, `ceph osd tree`, `ceph pg ID query`); the data in them is not lost by that and can be used again at once";
    ClusterHealth "cluster-health" Warning
        "the Ceph cluster is not healthy"
        "see `ceph health detail`";
    LibraryMissing "library-missing" Unknown
        "the Ceph libraries cannot be opened on this node"
        "install the packages librados2 and librbd1";
    ImageUnreadable "image-unreadable" Unknown
        "the image could not be read"
        "that depends on the errno: rights of the storage's user, damaged or missing objects, OSDs that do not serve, or a node that lacks memory; `check` says which, and what to send where the cause is not known";
    FactsIncomplete "facts-incomplete" Unknown
        "some facts about the image could not be read"
        "that depends on the errno, as for `image-unreadable`; `check` says what to do";
    FeaturesUnsupported "features-unsupported" Blocker
        "the image has features that this node's kernel cannot map"
        "disable the features where Ceph allows it, or set `krbd 0` on the storage";
    JournalingOnKrbd "journaling-on-krbd" Blocker
        "the image has journaling, which no kernel can map"
        "disable journaling on the image";
    LockFeaturesMissing "lock-features-missing" Warning
        "the image lacks features that PVE sets on krbd disks"
        "enable them, then rebuild the object map";
    FeaturesUnwanted "features-unwanted" Warning
        "the image has features that PVE disables on krbd disks of this kernel"
        "disable them";
    ObjectMapInvalid "object-map-invalid" Warning
        "the object map is flagged invalid and not used; nothing but a rebuild fixes it"
        "rebuild the object map";
    FeatureReset "feature-reset" Note
        "the last thing to try: disable exclusive-lock, object-map and fast-diff, enable them again, and rebuild the object map"
        "reset them";
    DeepFlattenMissing "deep-flatten-missing" Note
        "the image has no deep-flatten; Ceph cannot add it later, and no start needs it"
        "nothing to do";
    ImageNonPrimary "image-non-primary" Blocker
        "the image is the non-primary copy of a mirrored image and cannot be written"
        "where the other site is surely down, or the image was demoted there, promote it here (`--force` if it could not be demoted); else start the guest there";
    ImageMigrating "image-migrating" Blocker
        "a live migration of the image is under way"
        "finish it with `rbd migration execute` and `rbd migration commit`, or `rbd migration abort`";
    ImageMirrored "image-mirrored" Note
        "the image is mirrored to another cluster"
        "nothing to do";
    ManagerTask "manager-task" Note
        "the cluster's manager (ceph-mgr) works on the image; it is not a second writer, and hands the lock over"
        "nothing to do; `ceph rbd task list` shows its tasks";
    ParentMissing "parent-missing" Blocker
        "an ancestor of the linked clone is gone"
        "restore the parent image and its snapshot";
    ParentUnsupported "parent-unsupported" Blocker
        "an ancestor of the linked clone has features that this node's kernel cannot map"
        "flatten the clone, or set `krbd 0` on the storage";
    ParentChainTooDeep "parent-chain-too-deep" Blocker
        "the linked clone has more ancestors than the kernel follows"
        "flatten the clone or one of its ancestors";
    LockStale "lock-stale" Warning
        "a client that is gone still owns the image's exclusive lock"
        "let librbd break the lock";
    LockOwnerAlive "lock-owner-alive" Unsafe
        "the owner of the image's lock no longer watches this image, but it is alive and has others open: taking the lock over puts that client on the OSD blocklist, and its other disks fail"
        "shut down the guests whose disks it has open and unmap what is left; once that client is gone, the lock can be broken";
    LockBreakNotPermitted "lock-break-not-permitted" Blocker
        "the storage's user may not put the dead lock owner on the blocklist, so the lock cannot be broken"
        "give the user `profile rbd` on the monitors";
    RightsMissing "rights-missing" Blocker
        "the storage's user may not read or write a pool that the disk is stored in; the guest's reads or writes there would fail"
        "give the user the pool in its caps";
    BlocklistNotPermitted "blocklist-not-permitted" Note
        "the storage's user may not put a client on the OSD blocklist: the lock that a node leaves when it crashes cannot be broken then"
        "give the user `profile rbd` on the monitors";
    InUseElsewhere "in-use-elsewhere" Unsafe
        "another client has the image open; starting now would make a second writer"
        "if that client has just crashed, Ceph forgets it within 30 s; if it is alive, stop it where it runs, then start the guest";
    InUseUnknown "in-use-unknown" Unknown
        "whether another client has the image open could not be read"
        "that depends on the errno, as for `image-unreadable`; `rbd status IMAGE` asks the same by hand";
    LockExternal "lock-external" Blocker
        "the image has a lock that was set by hand or by a script"
        "find out who set it and what for; when that is surely over, remove it with `rbd lock rm`";
    BlocklistExpireSet "blocklist-expire-set" Warning
        "rbd_blocklist_expire_seconds is set: librbd then cannot break a stale lock (Ceph tracker 54613)"
        "remove rbd_blocklist_expire_seconds from ceph.conf and from the monitors' configuration (`ceph config rm`)";
    ImageShared "image-shared" Warning
        "the image is named by more than one disk"
        "make sure that only one of the guests runs, or give each disk its own image";
    ImageOrphaned "image-orphaned" Note
        "the image is named after a guest that no node of this cluster has"
        "see that no other cluster uses the pool and no backup needs the image, then remove it by hand";
    LockDying "lock-dying" Blocker
        "a dead client still has the image open, until Ceph drops it"
        "Ceph drops a dead client within 30 s, or a little more";
    NodeClientBlocklisted "node-client-blocklisted" Warning
        "this node's kernel client is on the OSD blocklist: every disk mapped through it is dead, and so is every further map that shares it"
        "unmap what is left over from it, or map with a client of its own (noshare); never remove the blocklist entry";
    MappingDead "mapping-dead" Blocker
        "the image is mapped here through a kernel client that is dead; PVE would use that device and every write would fail"
        "unmap it";
    MappingBusy "mapping-busy" Unsafe
        "the image is mapped here and something other than the guest has the device open"
        "stop what has it open, then unmap it";
    MappingOtherImage "mapping-other-image" Unsafe
        "the device that PVE would use for the disk is another image"
        "unmap it, so that the disk's own image is mapped; its data stays as it is";
    MappingReadOnly "mapping-read-only" Blocker
        "the image is mapped here for reading only; PVE would use that device, and the guest cannot write to it"
        "unmap it; the start maps it anew";
    MappingLeftover "mapping-leftover" Note
        "the image is still mapped here from before; PVE would use that device"
        "unmap it";
    NotMapped "not-mapped" Note
        "the image is not mapped yet"
        "map it";
    MapFailed "map-failed" Blocker
        "the kernel could not map the image"
        "that depends on the errno; where it says nothing, send what `check --save-survey` writes: `check` says what was ruled out and where to send it";
    KernelTooOld "kernel-too-old" Blocker
        "this node's kernel lacks features of Ceph's protocol that the cluster demands of its clients"
        "boot a newer kernel, or take back in the cluster what demands them (`seen` names it: `ceph osd crush show-tunables`, `ceph osd dump | grep upmap`; other tunables move data)";
    MapOptionUnknown "map-option-unknown" Blocker
        "the map is made with an option that this node's rbd or kernel does not take"
        "take the option out of `rbd_default_map_options` (`rbd config image ls`, `rbd config pool ls`, ceph.conf, `ceph config dump`), or boot a kernel that knows it";
    KernelKeyringRefused "kernel-keyring-refused" Blocker
        "the kernel's keyring refuses new keys"
        "look at the quota of root's keys (`cat /proc/key-users`, `sysctl kernel.keys.root_maxkeys kernel.keys.root_maxbytes`), and whether a container or a security module forbids add_key(2)";
    MsModeMismatch "ms-mode-mismatch" Blocker
        "no monitor has an address for the protocol that the map asks for (ms_mode)"
        "give the monitors an address of that protocol in monhost or ceph.conf (`v2:…:3300`), or set rbd_default_map_options = ms_mode=… to the protocol that they have";
    CommandUnknown "command-unknown" Unknown
        "this release of Ceph does not know a command or an option that rbd-preflight used; the image itself may be fine"
        "the start continues without it; update rbd-preflight, or file an issue for it with what `seen` shows and the release (`rbd --version`)";
    ObjectMapBroken "object-map-broken" Blocker
        "the image's object map is missing or of the wrong size, and the kernel maps no such image"
        "rebuild the object map";
    KernelModuleMissing "kernel-module-missing" Blocker
        "the kernel's rbd module cannot be loaded on this node"
        "boot a kernel that has it, or install the modules of the running one";
    UdevLinkMissing "udev-link-missing" Blocker
        "the image is mapped, but the link in /dev/rbd-pve that PVE looks for is missing"
        "see that systemd-udevd runs and that 50-rbd-pve.rules and ceph-rbdnamer-pve are installed (package libpve-storage-perl)";
    CloudinitBeforeHook "cloudinit-before-hook" Note
        "PVE opens this image before it calls the hook, so the hook comes too late for it"
        "fix it by hand with `rbd-preflight repair` before the start";
    MappedHere "mapped-here" Note
        "this node's kernel has the image mapped"
        "nothing to do while the guest starts or runs";
    GuestRunning "guest-running" Note
        "the guest runs on this node; nothing is changed under it"
        "shut the guest down first, if something is to be changed";
    GuestOnOtherNode "guest-on-other-node" Note
        "the guest belongs to another node; nothing is changed from here"
        "run the command on that node";
    GuestLocked "guest-locked" Blocker
        "the guest's config is locked; PVE does not start it"
        "wait for the task that has locked it; where no such task of the guest runs on any node, the lock was left behind: remove it with `qm unlock VMID` or `pct unlock VMID`";
    GuestTemplate "guest-template" Note
        "the guest is a template; its images are never changed"
        "nothing to do";
    QuorumMissing "quorum-missing" Blocker
        "this node has no quorum; PVE refuses to start guests and nothing is changed"
        "bring back the cluster's other nodes or their network (`pvecm status`, `systemctl status corosync`); PVE starts guests again as soon as a majority of the votes is there";
    HookscriptMissing "hookscript-missing" Blocker
        "the guest's hookscript is not there, or not executable; PVE refuses every start"
        "bring the file back on this node, or take the hookscript out of the guest's config";
    CicustomMissing "cicustom-missing" Blocker
        "a snippet that PVE makes the guest's cloud-init image from is not there; PVE refuses every start"
        "bring the file back on this node, or take it out of the guest's `cicustom`";
    GuestStateUnknown "guest-state-unknown" Warning
        "whether the guest runs, or whether the cluster has quorum, could not be read; nothing is changed"
        "see that /etc/pve is mounted and answers (`systemctl status pve-cluster corosync`), then try again";
    ResourceMissing "resource-missing" Blocker
        "this node lacks something else that the guest needs to start"
        "give the node what is missing, or let the guest start on other nodes only (HA: a strict node affinity rule)";
    HaRuleForbids "ha-rule-forbids" Blocker
        "a rule of the HA manager keeps the guest off this node"
        "nothing, if that is intended; else change the rule (`ha-manager rules list`)";
    ConfigLineDropped "config-line-dropped" Note
        "PVE ignores a line of its configuration, or does not read it as it was meant"
        "correct the line";
}

impl Code {
    /// Every code, in the order in which they are documented.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|entry| entry.code)
    }

    fn row(self) -> &'static FindingRow {
        &TABLE[self as usize]
    }

    /// The stable kebab-case name.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// How grave it usually is.
    pub fn severity(self) -> Severity {
        self.row().severity
    }

    /// What it means, in one sentence.
    pub fn summary(self) -> &'static str {
        self.row().summary
    }

    /// What fixes it, in words.
    pub fn remedy(self) -> &'static str {
        self.row().remedy
    }

    /// As a note it is so common that only `--verbose` shows it.
    pub fn is_quiet(self) -> bool {
        use Code::{ClusterHealth, DeepFlattenMissing, ImageMirrored, MappedHere, NotMapped};
        matches!(self, ClusterHealth | DeepFlattenMissing | ImageMirrored | MappedHere | NotMapped)
    }

    /// The code of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        TABLE.iter().find(|entry| entry.name == name).map(|entry| entry.code)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Serialize for Code {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Self::from_name(&name).ok_or_else(|| {
            let known: Vec<&str> = Self::all().map(Self::name).collect();
            serde::de::Error::custom(format!("there is no finding `{name}`; known are {}", known.join(", ")))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_code_finds_itself_and_has_its_own_kebab_name() {
        let mut names = BTreeSet::new();
        for code in Code::all() {
            assert_eq!(Code::from_name(code.name()), Some(code));
            assert!(code.name().chars().all(|c| c.is_ascii_lowercase() || c == '-'), "{code}");
            assert!(names.insert(code.name()), "{code} twice");
        }
    }

    #[test]
    fn no_remedy_only_points_at_what_was_seen() {
        for code in Code::all() {
            let remedy = code.remedy();
            assert!(
                !remedy.starts_with("see the detail") && !remedy.starts_with("see what"),
                "{code}: {remedy}"
            );
        }
    }

    #[test]
    fn summaries_and_remedies_are_sentences_without_a_full_stop() {
        for code in Code::all() {
            for text in [code.summary(), code.remedy()] {
                assert!(!text.is_empty() && !text.ends_with('.'), "{code}: {text}");
            }
        }
    }
}
