//! Where the HA manager may not put a guest: `/etc/pve/ha/rules.cfg` (pve-ha-manager 5) and, of older ones,
//! `groups.cfg` with the groups that `resources.cfg` names (`PVE::HA::Rules`, `PVE::HA::Groups`).
//!
//! Only rules that bind are looked at: a node affinity that is not strict and a group that is not restricted are wishes,
//! and so is where resources are to be together: the manager then moves all of them. A rule that the manager throws out,
//! because it contradicts another one, binds nobody.

use super::sections::{Section, sections};
use crate::reading::Failure;
use crate::sys::root::Root;
use std::collections::{BTreeMap, BTreeSet};

/// The rules that bind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// Resources that may only be on some nodes.
    confined: Vec<Placement>,
    /// Resources of which no two may be on one node; no nodes are named.
    apart: Vec<Placement>,
    /// The resources that are to run, and are on a node therefore.
    started: BTreeSet<String>,
}

/// A rule or a group.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Placement {
    /// What it is called in a sentence: `the rule web-apart`.
    name: String,
    resources: BTreeSet<String>,
    nodes: BTreeSet<String>,
}

impl Rules {
    /// Reads the rules; a file that is not there has none in it.
    pub fn read(root: &Root) -> Result<Self, Failure> {
        let text = |file: &str| root.read_text(file).map(Option::unwrap_or_default);
        let (rules, groups) = (text("/etc/pve/ha/rules.cfg")?, text("/etc/pve/ha/groups.cfg")?);
        Ok(Self::of(&rules, &groups, &text("/etc/pve/ha/resources.cfg")?))
    }

    /// What these three files say.
    pub fn of(rules: &str, groups: &str, resources: &str) -> Self {
        let (rules, resources) = (sections(rules), sections(resources));
        let active = |kind: &str| {
            let kind = kind.to_owned();
            rules.iter().filter(move |rule| rule.kind == kind && !rule.is_set("disable"))
        };
        // A resource that two rules of one kind place makes the manager throw out both.
        let placed: Vec<String> = active("node-affinity").flat_map(|rule| rule.list("resources")).collect();
        let once = |rule: &&Section| {
            rule.list("resources").iter().all(|sid| placed.iter().filter(|other| *other == sid).count() == 1)
        };
        let strict = active("node-affinity").filter(|rule| rule.is_set("strict")).filter(once);
        let mut confined: Vec<Placement> = strict.map(|rule| Placement::of("rule", rule)).collect();
        for group in sections(groups).iter().filter(|group| group.is_set("restricted")) {
            let members = resources.iter().filter(|resource| resource.get("group") == Some(&group.id));
            let resources = members.map(sid).collect();
            confined.push(Placement { resources, ..Placement::of("group", group) });
        }
        let negative = active("resource-affinity").filter(|rule| rule.get("affinity") == Some("negative"));
        let to_run =
            |resource: &&Section| matches!(resource.get("state"), None | Some("started" | "enabled"));
        Self {
            confined,
            apart: negative.map(|rule| Placement::of("rule", rule)).collect(),
            started: resources.iter().filter(to_run).map(sid).collect(),
        }
    }

    /// Why the manager does not start a resource (`vm:100`) on a node, as things are: `at` is the node of each guest.
    /// Empty where it may.
    pub fn forbid(&self, sid: &str, node: &str, at: &BTreeMap<String, String>) -> Vec<String> {
        let here = |rule: &&Placement| rule.resources.contains(sid);
        let confined = self.confined.iter().filter(here).filter(|rule| !rule.nodes.contains(node));
        let confined = confined.map(|rule| {
            let nodes: Vec<&str> = rule.nodes.iter().map(String::as_str).collect();
            format!("{} lets it run on {} only", rule.name, nodes.join(", "))
        });
        let apart = self.apart.iter().filter(here).filter_map(|rule| {
            let others = rule.resources.iter().filter(|other| *other != sid);
            let there = others
                .filter(|other| self.started.contains(*other) && at.get(*other).is_some_and(|at| at == node));
            let there: Vec<&str> = there.map(String::as_str).collect();
            let name = &rule.name;
            (!there.is_empty())
                .then(|| format!("{name} keeps it apart from {}, which is there", there.join(", ")))
        });
        confined.chain(apart).collect()
    }
}

impl Placement {
    fn of(word: &str, section: &Section) -> Self {
        // `pve2:10` is a node and its priority.
        let node = |entry: String| entry.split(':').next().unwrap_or_default().to_owned();
        Self {
            name: format!("the {word} {}", section.id),
            resources: section.list("resources").into_iter().collect(),
            nodes: section.list("nodes").into_iter().map(node).collect(),
        }
    }
}

/// `vm:100`
fn sid(resource: &Section) -> String {
    format!("{}:{}", resource.kind, resource.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESOURCES: &str = "vm: 100\n\tstate started\n\nvm: 101\n\nct: 102\n\tstate stopped\n\tgroup west\n\nvm: 103\n\tgroup any\n";

    fn forbidden(rules: &str, groups: &str, sid: &str, node: &str) -> String {
        let at = [("vm:100", "pve1"), ("vm:101", "pve2"), ("ct:102", "pve1"), ("vm:103", "pve1")];
        let at = at.map(|(sid, node)| (sid.to_owned(), node.to_owned())).into();
        Rules::of(rules, groups, RESOURCES).forbid(sid, node, &at).join("; ")
    }

    #[test]
    fn only_a_strict_rule_confines_a_guest_to_its_nodes() {
        let rule =
            |more: &str| format!("node-affinity: near\n\tresources vm:100\n\tnodes pve1:5,pve3\n{more}");
        let said = "the rule near lets it run on pve1, pve3 only";
        assert_eq!(forbidden(&rule("\tstrict 1\n"), "", "vm:100", "pve2"), said);
        assert_eq!(forbidden(&rule("\tstrict 1\n"), "", "vm:100", "pve3"), "");
        assert_eq!(forbidden(&rule("\tstrict 1\n"), "", "vm:101", "pve2"), "", "not its rule");
        assert_eq!(forbidden(&rule(""), "", "vm:100", "pve2"), "", "a wish");
        assert_eq!(forbidden(&rule("\tstrict 1\n\tdisable\n"), "", "vm:100", "pve2"), "", "switched off");
        let two = format!("{}\nnode-affinity: far\n\tresources vm:100\n\tnodes pve2\n", rule("\tstrict 1\n"));
        assert_eq!(forbidden(&two, "", "vm:100", "pve2"), "", "the manager throws out both");
    }

    #[test]
    fn only_a_restricted_group_confines_its_guests() {
        let group = |more: &str| format!("group: west\n\tnodes pve1\n{more}\ngroup: any\n\tnodes pve1\n");
        let said = "the group west lets it run on pve1 only";
        assert_eq!(forbidden("", &group("\trestricted 1\n"), "ct:102", "pve2"), said);
        assert_eq!(forbidden("", &group("\trestricted 1\n"), "vm:103", "pve2"), "", "a wish");
        assert_eq!(forbidden("", &group(""), "ct:102", "pve2"), "");
    }

    #[test]
    fn guests_that_are_kept_apart_are_forbidden_where_one_of_them_is_to_run() {
        let apart = "resource-affinity: apart\n\taffinity negative\n\tresources vm:100,vm:101,ct:102\n";
        let said = "the rule apart keeps it apart from vm:101, which is there";
        assert_eq!(forbidden(apart, "", "vm:100", "pve2"), said);
        assert_eq!(forbidden(apart, "", "vm:100", "pve1"), "", "ct:102 is to be stopped");
        assert_eq!(forbidden(&apart.replace("negative", "positive"), "", "vm:100", "pve2"), "");
    }
}
