//! Waiting for quorum, as Proxmox VE's own start of guests at boot does (`PVE::API2::Nodes`, `startall`).

use crate::pve::node::{is_clustered, pve_has_quorum, quorate};
use crate::reading::Reading;
use crate::sys::root::Root;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Between two looks; Proxmox VE looks as often.
const PAUSE: Duration = Duration::from_secs(1);

/// How long the cluster's members may be unknown though Proxmox VE has quorum. It starts guests then, so nobody's start
/// waits for longer; the gate before each change asks again.
const DOUBT: Duration = Duration::from_secs(15);

/// pmxcfs has quorum as soon as corosync says so, and takes over what the other nodes have changed right after (`dfsm`,
/// "all data is up to date"): until then /etc/pve is what it was when this node went down.
const SETTLE: Duration = Duration::from_secs(3);

/// Comes back when Proxmox VE would start guests and /etc/pve is the cluster's. As it, without limit: no guest starts
/// before that, whatever this does. A signal ends the process meanwhile, as it does by default.
pub fn wait(root: &Root) {
    let begun = Instant::now();
    while !pve_has_quorum(root) {
        tell_once(begun);
        sleep(PAUSE);
    }
    let doubt = Instant::now();
    while quorate(root) != Reading::Known(true) && doubt.elapsed() < DOUBT {
        sleep(PAUSE);
    }
    if is_clustered(root) {
        sleep(SETTLE);
    }
    if begun.elapsed() > PAUSE + SETTLE {
        errln!("rbd-preflight: waited {} s for quorum", begun.elapsed().as_secs());
    }
}

fn tell_once(begun: Instant) {
    if begun.elapsed() < PAUSE {
        errln!("rbd-preflight: waiting for quorum; Proxmox VE starts no guest before");
    }
}
