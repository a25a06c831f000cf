//! What can be reported of running guests: names that do not change.

use std::fmt;

/// How grave it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gravity {
    /// Worth knowing; nothing has to be done.
    Notice,
    /// Something does not work as it should, or cannot be looked at.
    Warning,
    /// A guest cannot read or write.
    Error,
}

/// What is reported while guests run. Names and message ids stay for ever: rules are written against them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Code {
    /// A running guest's disk is dead.
    DiskDead,
    /// A kernel client of this node is dead.
    ClientDead,
    /// The whole node is on the blocklist.
    NodeFenced,
    /// Reads or writes of a disk fail.
    IoErrors,
    /// Nobody here watches a running guest's image any more.
    WatchLost,
    /// The cluster does not answer.
    ClusterSilent,
    /// Proxmox VE's files cannot be read.
    PveUnreadable,
    /// Something on this side keeps the watcher from looking.
    CannotLook,
    /// A client that this node had is on the blocklist.
    BlocklistEntry,
}

/// What there is to say of a code.
struct TroubleRow {
    name: &'static str,
    gravity: Gravity,
    /// systemd's `MESSAGE_ID`: for this code only, and for ever.
    message_id: &'static str,
    meaning: &'static str,
    over: &'static str,
    remedy: &'static str,
}

impl Code {
    /// All, the gravest first.
    pub const ALL: [Self; 9] = [
        Self::DiskDead,
        Self::ClientDead,
        Self::NodeFenced,
        Self::IoErrors,
        Self::WatchLost,
        Self::ClusterSilent,
        Self::PveUnreadable,
        Self::CannotLook,
        Self::BlocklistEntry,
    ];

    /// The name that the journal, JSON and metrics have: `disk-dead`.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// How grave it is.
    pub fn gravity(self) -> Gravity {
        self.row().gravity
    }

    /// Its `MESSAGE_ID` in systemd's journal: `journalctl MESSAGE_ID=…`.
    pub fn message_id(self) -> &'static str {
        self.row().message_id
    }

    /// What it means, in one sentence.
    pub fn meaning(self) -> &'static str {
        self.row().meaning
    }

    /// What its end means.
    pub fn over(self) -> &'static str {
        self.row().over
    }

    /// What an administrator does about it.
    pub fn remedy(self) -> &'static str {
        self.row().remedy
    }

    fn row(self) -> TroubleRow {
        match self {
            Self::DiskDead => TroubleRow {
                name: "disk-dead",
                gravity: Gravity::Error,
                message_id: "8c436e91536044948fd85a086198a1f0",
                meaning: "a running guest's disk is dead: the client that it goes through is on the OSD blocklist, so every read and write fails",
                over: "the disk is no longer used through that client",
                remedy: "shut the guest down and start it again; `rbd-preflight check VMID` says what its start needs",
            },
            Self::ClientDead => TroubleRow {
                name: "client-dead",
                gravity: Gravity::Error,
                message_id: "8e01b9b83b334bf186470ef391d0de9d",
                meaning: "a kernel client of this node is on the OSD blocklist: all disks mapped through it are dead, and so is every map that would share it",
                over: "nothing that is watched is mapped through that client any more",
                remedy: "shut down the guests named and start them again; `rbd-preflight check VMID` says what a start needs",
            },
            Self::NodeFenced => TroubleRow {
                name: "node-fenced",
                gravity: Gravity::Error,
                message_id: "75450f8880684268a1e42b80c27a22d8",
                meaning: "the OSD blocklist has an entry for this whole node: none of its clients can read or write",
                over: "the entry is gone, or no guest that runs here has a disk there",
                remedy: "find out who fenced the node, and why, before anything is started here; the entry is never removed by rbd-preflight",
            },
            Self::IoErrors => TroubleRow {
                name: "io-errors",
                gravity: Gravity::Error,
                message_id: "5a31408741ac4bca85c193c5da3f03fb",
                meaning: "the kernel's log has failed reads or writes of a mapped disk: the guest has seen I/O errors",
                over: "no further error for five minutes, or the device is gone",
                remedy: "look at the guest's file systems; `rbd-preflight check VMID` and `ceph health detail` for the cause",
            },
            Self::WatchLost => TroubleRow {
                name: "watch-lost",
                gravity: Gravity::Warning,
                message_id: "98888560600746bbb3b2e32eefa6676e",
                meaning: "a running guest's image is not watched by this node any more, and the watch was not taken again: another client may take its lock",
                over: "the image is watched again, or no longer used here",
                remedy: "`rbd-preflight check VMID`; make sure that the guest runs nowhere else, then shut it down and start it again",
            },
            Self::ClusterSilent => TroubleRow {
                name: "cluster-silent",
                gravity: Gravity::Warning,
                message_id: "5fc66977e3e04753b77cf920c7bdda14",
                meaning: "a cluster that running guests have disks in does not answer",
                over: "the cluster answers again, or no guest that runs here has a disk there",
                remedy: "the monitors, and the network to them: `ceph -s` on another node",
            },
            Self::PveUnreadable => TroubleRow {
                name: "pve-unreadable",
                gravity: Gravity::Warning,
                message_id: "2304179d285b48138f91ada052e8330a",
                meaning: "Proxmox VE's files cannot be read, so it is not known which guests run here; those known before are watched on",
                over: "the files can be read again",
                remedy: "`systemctl status pve-cluster`, or the settings file that is named",
            },
            Self::CannotLook => TroubleRow {
                name: "cannot-look",
                gravity: Gravity::Warning,
                message_id: "bc1a96fa817d47aebd56f2e456ba838a",
                meaning: "something on this side keeps the watcher from looking: a library, a right, a file",
                over: "it can be looked at again, or need not be",
                remedy: "what is named; `rbd-preflight doctor`",
            },
            Self::BlocklistEntry => TroubleRow {
                name: "blocklist-entry",
                gravity: Gravity::Notice,
                message_id: "88b9437b80d3478b9e04e0abefa0bb52",
                meaning: "the OSD blocklist has entries for clients that this node had; none is known to be one that a running guest uses. A guest that crashed, a broken lock and a ceph-mgr that handed over leave such entries behind",
                over: "the entries are gone",
                remedy: "nothing, if the cause is known",
            },
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Gravity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Notice => "notice",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}
