//! Which guests the HA manager runs: `/etc/pve/ha/resources.cfg` (`PVE::HA::Config`).

use crate::pve::guest::Kind;
use crate::reading::Failure;
use crate::root::Root;
use std::collections::BTreeMap;
use std::io::ErrorKind;

const RESOURCES: &str = "/etc/pve/ha/resources.cfg";

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
    match std::fs::read_to_string(root.path(RESOURCES)) {
        Ok(text) => Ok(parse(&text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(Failure::new(format!("read {RESOURCES}"), error.to_string())),
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
    fn managed_guests_and_what_is_asked_of_them() {
        let text = "vm: 100\n\tstate stopped\n\tmax_restart 2\n\nct: 101\n\tgroup a\n\nvm: 102\n\tstate ignored\n\nfoo: 103\n";
        let resource = |kind, state: &str| Resource { kind, state: state.into() };
        let expected = [(100, resource(Kind::Qemu, "stopped")), (101, resource(Kind::Lxc, "started"))];
        assert_eq!(parse(text), BTreeMap::from(expected));
    }
}
