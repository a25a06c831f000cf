//! What `attach` and `detach` have to do to a guest. Pure: decided from the guest's config and the settings.

use crate::hook::earlier;
use crate::pve::words::Kind;
use crate::sys::command::Command;
use serde::Serialize;
use std::time::Duration;

/// PVE waits 10 s for a config's lock; its programs take about a second to begin.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// What matters of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Facts {
    /// The guest's number.
    pub vmid: u32,
    /// Virtual machine or container.
    pub kind: Kind,
    /// The node that owns it.
    pub node: String,
    /// The guest's name, if it has one.
    pub name: Option<String>,
    /// The lock that keeps PVE from changing its config.
    #[serde(skip)]
    pub lock: Option<String>,
    /// It has an RBD disk.
    #[serde(skip)]
    pub has_rbd: bool,
    /// The settings say `mode: off`.
    #[serde(skip)]
    pub off: bool,
    /// The hookscript that its config names.
    #[serde(skip)]
    pub hookscript: Option<Hookscript>,
    /// What an earlier version remembered for this number, of this guest or of an earlier one; or why that is not known.
    #[serde(skip)]
    pub left_behind: Result<Option<String>, String>,
}

/// A guest's hookscript.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hookscript {
    /// Its volume id, as the config has it.
    pub volid: String,
    /// It is ours, on whichever storage.
    pub ours: bool,
    /// The one that it calls too, if it is ours.
    pub earlier: Option<String>,
    /// Why it could not be run.
    pub trouble: Option<String>,
}

/// Where, and for how many, something is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// The node that it is to be done on.
    pub node: String,
    /// All guests are meant, not this one by its number.
    pub all: bool,
}

/// One step; each leaves the guest with its own hookscript or with ours, never with none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Forget what an earlier version noted down.
    Forget,
    /// Make this the guest's hookscript.
    Set(String),
    /// Leave the guest without hookscript.
    Delete,
}

/// What is to be done to a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// These steps, in this order.
    Change(Vec<Step>),
    /// Nothing: it is as it should be.
    Nothing(String),
    /// Nothing: the guest is not meant, and why.
    Skip(String),
    /// It cannot be done now, and why.
    Refuse(String),
}

/// How a guest comes to have our snippet on this storage for its hookscript.
pub fn attach(facts: &Facts, storage: &str, extent: &Extent) -> Decision {
    if facts.node != extent.node {
        return elsewhere(facts, "attach");
    }
    if extent.all && !facts.has_rbd {
        return Decision::Skip("it has no RBD disk".to_owned());
    }
    if extent.all && facts.off {
        return Decision::Skip("the settings say `mode: off`".to_owned());
    }
    let forget = matches!(facts.left_behind, Ok(Some(_))).then_some(Step::Forget);
    let set = |earlier: Option<&String>| match crate::hook::snippet::snippet_for(
        storage,
        earlier.map(String::as_str),
    ) {
        Ok(volid) => Ok(Step::Set(volid)),
        Err(why) => Err(Decision::Refuse(why)),
    };
    let steps = match &facts.hookscript {
        Some(script) if script.ours => match kept(facts, script, extent) {
            Ok(earlier) => set(earlier.as_ref()).map(|set| vec![set]),
            Err(decision) => Err(decision),
        },
        Some(Hookscript { volid, trouble: Some(why), .. }) => {
            let delete = Step::Delete.line(facts.kind, facts.vmid);
            Err(Decision::Refuse(format!(
                "PVE cannot run the hookscript that it has, {volid}: {why}; fix that, or do without: {delete}"
            )))
        }
        script => set(script.as_ref().map(|script| &script.volid)).map(|set| vec![set]),
    };
    let (has, earlier) = match &facts.hookscript {
        Some(script) => (Some(Step::Set(script.volid.clone())), script.earlier.as_deref()),
        None => (None, None),
    };
    match steps {
        // Forgotten is what was left behind when the guest's config has it.
        Ok(steps) if steps.first() == has.as_ref() => match forget {
            Some(forget) => Decision::Change(vec![forget]),
            None => Decision::Nothing(with_earlier("already attached", earlier)),
        },
        Ok(steps) => change(facts, steps.into_iter().chain(forget).collect()),
        Err(decision) => decision,
    }
}

/// The earlier hookscript of an attached guest. What an earlier version remembered for its number is its own only if root
/// names the guest: it may be of another that had this number.
fn kept(facts: &Facts, script: &Hookscript, extent: &Extent) -> Result<Option<String>, Decision> {
    match (&script.earlier, &facts.left_behind) {
        (Some(earlier), _) => Ok(Some(earlier.clone())),
        (None, Ok(Some(left))) if extent.all => Err(left_to_root(facts, left)),
        (None, Ok(left)) => Ok(left.clone()),
        (None, Err(why)) => Err(unknown(facts, why)),
    }
}

/// How a guest gets back what it had.
pub fn detach(facts: &Facts, extent: &Extent) -> Decision {
    if facts.node != extent.node {
        return elsewhere(facts, "detach");
    }
    let forget = matches!(facts.left_behind, Ok(Some(_))).then_some(Step::Forget);
    let back = match &facts.hookscript {
        Some(script) if script.ours => match kept(facts, script, extent) {
            Ok(Some(earlier)) => Step::Set(earlier),
            Ok(None) => Step::Delete,
            Err(decision) => return decision,
        },
        _ => match forget {
            Some(forget) => return Decision::Change(vec![forget]),
            None => return Decision::Nothing("not attached".to_owned()),
        },
    };
    change(facts, std::iter::once(back).chain(forget).collect())
}

fn left_to_root(facts: &Facts, left: &str) -> Decision {
    let (vmid, file) = (facts.vmid, earlier::file(facts.vmid));
    Decision::Refuse(format!(
        "an earlier version remembered {left} for this number, maybe of an earlier guest: name the guest by its number \
         (`rbd-preflight attach {vmid}` keeps it), or forget it: rm {file}"
    ))
}

fn elsewhere(facts: &Facts, command: &str) -> Decision {
    Decision::Skip(format!("it is on {}: run `rbd-preflight {command} {}` there", facts.node, facts.vmid))
}

fn unknown(facts: &Facts, why: &str) -> Decision {
    let file = earlier::file(facts.vmid);
    Decision::Refuse(format!(
        "its earlier hookscript is not known: {why}; put its volume id into {file}, or remove that"
    ))
}

fn change(facts: &Facts, steps: Vec<Step>) -> Decision {
    match &facts.lock {
        Some(lock) => {
            Decision::Refuse(format!("PVE has locked its config ({lock}); try again when that is over"))
        }
        None => Decision::Change(steps),
    }
}

/// What was done, with the script that is called besides.
pub fn with_earlier(done: &str, earlier: Option<&str>) -> String {
    match earlier {
        Some(earlier) => format!("{done}; it calls {earlier} too"),
        None => done.to_owned(),
    }
}

impl Step {
    /// The hookscript that it gives the guest.
    pub fn sets(&self) -> Option<&String> {
        match self {
            Self::Set(volid) => Some(volid),
            Self::Forget | Self::Delete => None,
        }
    }

    /// PVE's command for it; `None` for what is ours to note down.
    pub fn command(&self, kind: Kind, vmid: u32) -> Option<Command> {
        let tool = match kind {
            Kind::Qemu => "qm",
            Kind::Lxc => "pct",
        };
        let command = Command::new(tool).arg("set").arg(vmid.to_string()).deadline(COMMAND_LIMIT);
        match self {
            Self::Set(volid) => Some(command.args(["--hookscript", volid])),
            Self::Delete => Some(command.args(["--delete", "hookscript"])),
            Self::Forget => None,
        }
    }

    /// The line that does it in a shell.
    pub fn line(&self, kind: Kind, vmid: u32) -> String {
        match self {
            Self::Forget => format!("rm {}", earlier::file(vmid)),
            Self::Set(_) | Self::Delete => {
                self.command(kind, vmid).map(|command| command.display()).unwrap_or_default()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Decision::{Change, Nothing, Refuse, Skip};
    use Step::{Delete, Forget};

    const OURS: &str = "local:snippets/rbd-preflight";
    const OLD: &str = "local:snippets/old.sh";
    const WITH_OLD: &str = "local:snippets/rbd-preflight+local+old.sh";

    fn facts(hookscript: Option<&str>, left_behind: Option<&str>) -> Facts {
        let script = |volid: &str| {
            let ours = crate::hook::snippet::ours(volid);
            Hookscript {
                volid: volid.to_owned(),
                ours: ours.is_some(),
                earlier: ours.and_then(|ours| ours.earlier),
                trouble: None,
            }
        };
        Facts {
            vmid: 516,
            kind: Kind::Qemu,
            node: "pve1".to_owned(),
            name: None,
            lock: None,
            has_rbd: true,
            off: false,
            hookscript: hookscript.map(script),
            left_behind: Ok(left_behind.map(str::to_owned)),
        }
    }

    fn extent(all: bool) -> Extent {
        Extent { node: "pve1".to_owned(), all }
    }

    fn set(volid: &str) -> Step {
        Step::Set(volid.to_owned())
    }

    #[test]
    fn attaching_keeps_what_was_there() {
        for (hookscript, left_behind, steps) in [
            (None, None, vec![set(OURS)]),
            (Some(OLD), None, vec![set(WITH_OLD)]),
            (Some("nas:snippets/rbd-preflight"), None, vec![set(OURS)]),
            (Some("nas:snippets/rbd-preflight+local+old.sh"), None, vec![set(WITH_OLD)]),
            // What an earlier version left is this guest's only where the guest has our snippet of that version.
            (None, Some(OLD), vec![set(OURS), Forget]),
            (Some(OLD), Some("local:snippets/older"), vec![set(WITH_OLD), Forget]),
            (Some(WITH_OLD), Some("local:snippets/older"), vec![Forget]),
            (Some(OURS), Some(OLD), vec![set(WITH_OLD), Forget]),
        ] {
            let facts = facts(hookscript, left_behind);
            assert_eq!(
                attach(&facts, "local", &extent(false)),
                Change(steps),
                "{hookscript:?} {left_behind:?}"
            );
        }
        let Nothing(said) = attach(&facts(Some(WITH_OLD), None), "local", &extent(false)) else { panic!() };
        assert!(said.contains(OLD));
        assert!(matches!(attach(&facts(Some(OURS), None), "local", &extent(true)), Nothing(_)));
        let long = format!("local:snippets/{}", "x".repeat(250));
        assert!(matches!(attach(&facts(Some(&long), None), "local", &extent(false)), Refuse(_)));
    }

    #[test]
    fn detaching_brings_back_what_was_there() {
        for (hookscript, left_behind, decision) in [
            (Some(OURS), None, Change(vec![Delete])),
            (Some(WITH_OLD), None, Change(vec![set(OLD)])),
            (Some(WITH_OLD), Some("local:snippets/older"), Change(vec![set(OLD), Forget])),
            (Some(OURS), Some(OLD), Change(vec![set(OLD), Forget])),
            (Some(OLD), Some(OLD), Change(vec![Forget])),
            (Some(OLD), None, Nothing("not attached".to_owned())),
            (None, None, Nothing("not attached".to_owned())),
        ] {
            let facts = facts(hookscript, left_behind);
            assert_eq!(detach(&facts, &extent(false)), decision, "{hookscript:?} {left_behind:?}");
        }
    }

    /// It may be of an earlier guest of the number, and would be run as root.
    #[test]
    fn what_an_earlier_version_left_becomes_a_guests_only_where_root_names_the_guest() {
        let facts = facts(Some(OURS), Some(OLD));
        for decision in [attach(&facts, "local", &extent(true)), detach(&facts, &extent(true))] {
            assert!(
                matches!(&decision, Refuse(why) if why.contains(OLD) && why.contains("rm /etc/pve")),
                "{decision:?}"
            );
        }
    }

    #[test]
    fn guests_that_are_not_meant_are_skipped() {
        let elsewhere = Facts { node: "pve2".to_owned(), ..facts(None, None) };
        for decision in [attach(&elsewhere, "local", &extent(false)), detach(&elsewhere, &extent(false))] {
            assert!(matches!(decision, Skip(why) if why.contains("pve2")));
        }
        let without = Facts { has_rbd: false, ..facts(None, None) };
        let off = Facts { off: true, ..facts(None, None) };
        for facts in [without, off] {
            assert!(matches!(attach(&facts, "local", &extent(true)), Skip(_)));
            assert!(
                matches!(attach(&facts, "local", &extent(false)), Change(_)),
                "one named by its number is meant"
            );
        }
    }

    #[test]
    fn what_pve_would_refuse_is_not_begun() {
        let locked = |hookscript| Facts { lock: Some("backup".to_owned()), ..facts(hookscript, None) };
        assert!(
            matches!(attach(&locked(None), "local", &extent(false)), Refuse(why) if why.contains("backup"))
        );
        assert!(matches!(detach(&locked(Some(OURS)), &extent(false)), Refuse(_)));
        assert!(matches!(attach(&locked(Some(OURS)), "local", &extent(false)), Nothing(_)));
        let unreadable = Facts { left_behind: Err("EIO".to_owned()), ..facts(Some(OURS), None) };
        assert!(matches!(attach(&unreadable, "local", &extent(false)), Refuse(_)));
        assert!(matches!(detach(&unreadable, &extent(false)), Refuse(_)));
        let mut broken = facts(Some(OLD), None);
        broken.hookscript.as_mut().unwrap().trouble = Some("it does not exist".to_owned());
        assert!(matches!(attach(&broken, "local", &extent(false)), Refuse(_)));
    }

    #[test]
    fn each_step_is_a_line_to_paste() {
        let lines = |step: Step, kind| step.line(kind, 516);
        assert_eq!(lines(set(OURS), Kind::Qemu), format!("qm set 516 --hookscript {OURS}"));
        assert_eq!(lines(Delete, Kind::Lxc), "pct set 516 --delete hookscript");
        assert_eq!(lines(Forget, Kind::Qemu), "rm /etc/pve/rbd-preflight/chain/516");
    }
}
