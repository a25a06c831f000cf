//! Which guests the HA manager runs, and whether it does: `/etc/pve/ha/resources.cfg` and `manager_status`
//! (`PVE::HA::Config`).

use crate::pve::words::Kind;
use crate::reading::{Failure, Reading};
use crate::sys::root::Root;
use serde::Deserialize;
use std::collections::BTreeMap;

const RESOURCES: &str = "/etc/pve/ha/resources.cfg";
const STATUS: &str = "/etc/pve/ha/manager_status";

/// A guest that the HA manager looks after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    /// Virtual machine or container.
    pub kind: Kind,
    /// What the manager is asked to bring about: `started`, `stopped`, `disabled`.
    pub state: String,
}

/// The guests that the HA manager looks after, by number; none where there is no such file.
pub fn resources(root: &Root) -> Result<BTreeMap<u32, Resource>, Failure> {
    Ok(root.read_text(RESOURCES)?.map(|text| parse(&text)).unwrap_or_default())
}

/// How a cluster's HA stack was disarmed (`ha-manager crm-command disarm-ha MODE`, pve-ha-manager 5.2 and later).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Disarm {
    /// What becomes of its guests: `freeze`, no wish of theirs is fulfilled; `ignore`, they are nobody's.
    pub mode: String,
    /// How far it is: `disarming`, `disarmed`.
    #[serde(default)]
    pub state: String,
}

/// Whether the HA stack is disarmed; without a status, as before the manager's first run, it is not.
pub fn disarm(root: &Root) -> Reading<Option<Disarm>> {
    #[derive(Deserialize)]
    struct Status {
        #[serde(default)]
        disarm: Option<Disarm>,
    }
    let status = match root.read(STATUS) {
        Ok(status) => status.unwrap_or_default(),
        Err(failure) => return Reading::Unknown(failure),
    };
    if status.trim_ascii().is_empty() {
        return Reading::Known(None);
    }
    match serde_json::from_slice::<Status>(&status) {
        Ok(status) => Reading::Known(status.disarm),
        Err(error) => {
            Reading::Unknown(Failure::new(format!("read {STATUS}"), format!("not pmxcfs's JSON: {error}")))
        }
    }
}

/// The HA manager has given the guest up: it starts it no more before somebody has cleared that. A status that cannot be read
/// says no.
pub fn gave_up(root: &Root, kind: Kind, vmid: u32) -> bool {
    let Ok(bytes) = std::fs::read(root.path(STATUS)) else { return false };
    let service = match kind {
        Kind::Qemu => format!("vm:{vmid}"),
        Kind::Lxc => format!("ct:{vmid}"),
    };
    let status: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
    status["service_status"][&service]["state"] == "error"
}

/// Who is to be asked for a guest's start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// `qm start` or `pct start`.
    Direct,
    /// `ha-manager set … --state started`.
    Manager,
    /// Nobody: the manager holds its guests as they are, and `qm start` only asks the manager. Why, in words.
    Nobody(String),
}

/// Who is to be asked. A status that could not be read changes nothing.
pub fn way(managed: bool, disarm: &Reading<Option<Disarm>>) -> Way {
    match disarm.known().and_then(Option::as_ref) {
        _ if !managed => Way::Direct,
        Some(disarm) if disarm.mode == "ignore" => Way::Direct,
        Some(Disarm { mode, state }) => Way::Nobody(format!(
            "the HA stack is disarmed (mode {mode}, {state}) and starts nothing; arm it first: ha-manager crm-command arm-ha"
        )),
        None => Way::Manager,
    }
}

/// Sections `vm: 100` and `ct: 101` with indented properties; `ignored` ones are left to nobody's care, and so to none.
fn parse(text: &str) -> BTreeMap<u32, Resource> {
    let mut resources: BTreeMap<u32, Resource> = BTreeMap::new();
    let mut current = None;
    for line in text.lines() {
        if !line.starts_with([' ', '\t']) {
            current = header(line);
            if let Some((vmid, kind)) = current {
                resources.insert(vmid, Resource { kind, state: "started".to_owned() });
            }
        } else if let (Some((vmid, _)), Some((key, value))) = (current, line.trim().split_once([' ', '\t'])) {
            if let (true, Some(resource)) = (key == "state", resources.get_mut(&vmid)) {
                resource.state = value.trim().to_owned();
            }
        }
    }
    resources.retain(|_, resource| resource.state != "ignored");
    resources
}

fn header(line: &str) -> Option<(u32, Kind)> {
    let (kind, vmid) = line.split_once(':')?;
    let kind = match kind {
        "vm" => Kind::Qemu,
        "ct" => Kind::Lxc,
        _ => return None,
    };
    Some((vmid.trim().parse().ok()?, kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disarmed_manager_starts_nothing_and_an_ignored_guest_is_started_directly() {
        let told = |text: &str| {
            let dir = tempfile::tempdir().unwrap();
            let root = Root::new(dir.path());
            std::fs::create_dir_all(root.path("/etc/pve/ha")).unwrap();
            std::fs::write(root.path(STATUS), text).unwrap();
            disarm(&root)
        };
        let disarmed = |mode: &str| {
            let status = r#"{"master_node":"pve1","disarm":{"mode":"MODE","state":"disarmed","time":1},"node_status":{}}"#;
            told(&status.replace("MODE", mode))
        };
        assert_eq!(way(true, &told("")), Way::Manager);
        assert_eq!(way(true, &told("{}")), Way::Manager);
        assert_eq!(way(true, &told("{")), Way::Manager, "not known");
        assert_eq!(way(true, &disarmed("ignore")), Way::Direct);
        assert_eq!(way(false, &disarmed("freeze")), Way::Direct);
        let Way::Nobody(why) = way(true, &disarmed("freeze")) else {
            panic!("a frozen guest is not started")
        };
        assert!(why.contains("freeze, disarmed") && why.contains("arm-ha"), "{why}");
    }

    #[test]
    fn managed_guests_and_what_is_asked_of_them() {
        let text = "vm: 100\n\tstate stopped\n\tmax_restart 2\n\nct: 101\n\tgroup a\n\nvm: 102\n\tstate ignored\n\nfoo: 103\n";
        let resource = |kind, state: &str| Resource { kind, state: state.into() };
        let expected = [(100, resource(Kind::Qemu, "stopped")), (101, resource(Kind::Lxc, "started"))];
        assert_eq!(parse(text), BTreeMap::from(expected));
    }
}
