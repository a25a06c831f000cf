//! What `attach` and `detach` have to do to a guest. Pure: decided from the guest's config and the settings.

use crate::chain;
use crate::process::Command;
use crate::pve::guest::Kind;
use serde::Serialize;
use std::time::Duration;

/// PVE waits 10 s for a config's lock; its programs take about a second to begin.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// What matters of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Facts {
    /// Its number.
    pub vmid: u32,
    /// Virtual machine or container.
    pub kind: Kind,
    /// The node that owns it.
    pub node: String,
    /// Its name.
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
    /// The earlier hookscript that ours calls, as far as one is remembered.
    #[serde(skip)]
    pub earlier: Option<String>,
    /// Why it is not known which one that is.
    #[serde(skip)]
    pub unreadable: Option<String>,
}

/// A hookscript.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hookscript {
    /// Its volume id.
    pub volid: String,
    /// It is ours, on whichever storage.
    pub ours: bool,
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
    /// Note the earlier hookscript down for our hook.
    Remember(String),
    /// Forget what was noted down.
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

/// How a guest comes to have our snippet for its hookscript.
pub fn attach(facts: &Facts, snippet: &str, extent: &Extent) -> Decision {
    if facts.node != extent.node {
        return elsewhere(facts, "attach");
    }
    if extent.all && !facts.has_rbd {
        return Decision::Skip("it has no RBD disk".to_owned());
    }
    if extent.all && facts.off {
        return Decision::Skip("the settings say `mode: off`".to_owned());
    }
    if let Some(why) = &facts.unreadable {
        return unknown(facts, why);
    }
    let set = || Step::Set(snippet.to_owned());
    match &facts.hookscript {
        Some(script) if script.ours && script.volid == snippet => {
            Decision::Nothing(with_earlier("already attached", facts.earlier.as_deref()))
        }
        Some(script) if script.ours => change(facts, vec![set()]),
        Some(Hookscript { volid, trouble: Some(why), .. }) => {
            let delete = Step::Delete.line(facts.kind, facts.vmid);
            Decision::Refuse(format!(
                "PVE cannot run the hookscript that it has, {volid}: {why}; mend that, or do without: {delete}"
            ))
        }
        Some(script) if facts.earlier.as_ref() == Some(&script.volid) => change(facts, vec![set()]),
        Some(script) => change(facts, vec![Step::Remember(script.volid.clone()), set()]),
        None if facts.earlier.is_some() => change(facts, vec![Step::Forget, set()]),
        None => change(facts, vec![set()]),
    }
}

/// How a guest gets back what it had.
pub fn detach(facts: &Facts, extent: &Extent) -> Decision {
    if facts.node != extent.node {
        return elsewhere(facts, "detach");
    }
    if let Some(why) = &facts.unreadable {
        return unknown(facts, why);
    }
    let attached = facts.hookscript.as_ref().is_some_and(|script| script.ours);
    match &facts.earlier {
        Some(earlier) if attached => change(facts, vec![Step::Set(earlier.clone()), Step::Forget]),
        None if attached => change(facts, vec![Step::Delete]),
        Some(_) => Decision::Change(vec![Step::Forget]),
        None => Decision::Nothing("not attached".to_owned()),
    }
}

fn elsewhere(facts: &Facts, command: &str) -> Decision {
    Decision::Skip(format!("it is on {}: run `rbd-preflight {command} {}` there", facts.node, facts.vmid))
}

fn unknown(facts: &Facts, why: &str) -> Decision {
    let file = chain::file(facts.vmid);
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
            Self::Remember(_) | Self::Forget => None,
        }
    }

    /// The line that does it in a shell.
    pub fn line(&self, kind: Kind, vmid: u32) -> String {
        let file = chain::file(vmid);
        match self {
            Self::Remember(volid) => {
                let volid = crate::process::quoted(volid);
                format!("mkdir -p {} && echo {volid} >{file}", chain::DIRECTORY)
            }
            Self::Forget => format!("rm {file}"),
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
    use Step::{Delete, Forget, Remember, Set};

    const OURS: &str = "local:snippets/rbd-preflight";
    const OLD: &str = "local:snippets/old.sh";

    fn facts(hookscript: Option<&str>, earlier: Option<&str>) -> Facts {
        let script = |volid: &str| Hookscript {
            volid: volid.to_owned(),
            ours: volid.ends_with("/rbd-preflight"),
            trouble: None,
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
            earlier: earlier.map(str::to_owned),
            unreadable: None,
        }
    }

    fn extent(all: bool) -> Extent {
        Extent { node: "pve1".to_owned(), all }
    }

    #[test]
    fn attaching_keeps_what_was_there() {
        let (set, remember) = (|| Set(OURS.to_owned()), || Remember(OLD.to_owned()));
        for (hookscript, earlier, steps) in [
            (None, None, vec![set()]),
            // Left behind by an earlier guest of this number.
            (None, Some(OLD), vec![Forget, set()]),
            (Some(OLD), None, vec![remember(), set()]),
            (Some(OLD), Some(OLD), vec![set()]),
            (Some(OLD), Some("local:snippets/older"), vec![remember(), set()]),
            (Some("nas:snippets/rbd-preflight"), Some(OLD), vec![set()]),
        ] {
            assert_eq!(
                attach(&facts(hookscript, earlier), OURS, &extent(false)),
                Change(steps),
                "{hookscript:?} {earlier:?}"
            );
        }
        let Nothing(said) = attach(&facts(Some(OURS), Some(OLD)), OURS, &extent(false)) else { panic!() };
        assert!(said.contains(OLD));
    }

    #[test]
    fn detaching_brings_back_what_was_there() {
        for (hookscript, earlier, decision) in [
            (Some(OURS), None, Change(vec![Delete])),
            (Some(OURS), Some(OLD), Change(vec![Set(OLD.to_owned()), Forget])),
            (Some(OLD), Some(OLD), Change(vec![Forget])),
            (Some(OLD), None, Nothing("not attached".to_owned())),
            (None, None, Nothing("not attached".to_owned())),
        ] {
            assert_eq!(
                detach(&facts(hookscript, earlier), &extent(false)),
                decision,
                "{hookscript:?} {earlier:?}"
            );
        }
    }

    #[test]
    fn guests_that_are_not_meant_are_skipped() {
        let elsewhere = Facts { node: "pve2".to_owned(), ..facts(None, None) };
        for decision in [attach(&elsewhere, OURS, &extent(false)), detach(&elsewhere, &extent(false))] {
            assert!(matches!(decision, Skip(why) if why.contains("pve2")));
        }
        let without = Facts { has_rbd: false, ..facts(None, None) };
        let off = Facts { off: true, ..facts(None, None) };
        for facts in [without, off] {
            assert!(matches!(attach(&facts, OURS, &extent(true)), Skip(_)));
            assert!(
                matches!(attach(&facts, OURS, &extent(false)), Change(_)),
                "one named by its number is meant"
            );
        }
    }

    #[test]
    fn what_pve_would_refuse_is_not_begun() {
        let locked = |hookscript| Facts { lock: Some("backup".to_owned()), ..facts(hookscript, None) };
        assert!(matches!(attach(&locked(None), OURS, &extent(false)), Refuse(why) if why.contains("backup")));
        assert!(matches!(detach(&locked(Some(OURS)), &extent(false)), Refuse(_)));
        assert!(matches!(attach(&locked(Some(OURS)), OURS, &extent(false)), Nothing(_)));
        let unreadable = Facts { unreadable: Some("EIO".to_owned()), ..facts(Some(OURS), None) };
        assert!(matches!(attach(&unreadable, OURS, &extent(false)), Refuse(_)));
        assert!(matches!(detach(&unreadable, &extent(false)), Refuse(_)));
        let mut broken = facts(Some(OLD), None);
        broken.hookscript.as_mut().unwrap().trouble = Some("it does not exist".to_owned());
        assert!(matches!(attach(&broken, OURS, &extent(false)), Refuse(_)));
    }

    #[test]
    fn each_step_is_a_line_to_paste() {
        let lines = |step: Step, kind| step.line(kind, 516);
        assert_eq!(lines(Set(OURS.to_owned()), Kind::Qemu), format!("qm set 516 --hookscript {OURS}"));
        assert_eq!(lines(Delete, Kind::Lxc), "pct set 516 --delete hookscript");
        assert_eq!(lines(Forget, Kind::Qemu), "rm /etc/pve/rbd-preflight/chain/516");
        assert_eq!(
            lines(Remember("local:snippets/a b".to_owned()), Kind::Qemu),
            "mkdir -p /etc/pve/rbd-preflight/chain && echo 'local:snippets/a b' >/etc/pve/rbd-preflight/chain/516"
        );
    }
}
