//! Which changes to make, and in which order. Pure.

use crate::diagnose::finding::{Finding, RemedyKind};
use crate::finding_codes::{Code, Severity};
use crate::rbd::action::{Action, Change, is_same_image};
use crate::rbd::features::Features;
use crate::settings::policy::Policy;

/// The changes that the findings' automatic remedies add up to: image by image, each change once, feature
/// changes of one direction in one command, locks before features before object maps. Where a start follows that will be
/// refused, none but what puts back what this run has taken off.
pub fn plan(findings: &[Finding], policy: &Policy) -> Vec<Action> {
    if policy.read_only.is_some() {
        return Vec::new();
    }
    let mut images: Vec<Vec<Action>> = Vec::new();
    let kept = |action: &&Action, finding: &Finding| !is_held(findings, policy, finding, action);
    let actions = findings.iter().flat_map(|f| f.remedy.actions.iter().filter(move |action| kept(action, f)));
    for action in actions {
        let same = |of: &&mut Vec<Action>| is_same_image(&of[0], action);
        match images.iter_mut().find(same) {
            Some(image) => add(image, action),
            None => images.push(vec![action.clone()]),
        }
    }
    for image in &mut images {
        drop_needless_rebuilds(image);
        image.sort_by(|a, b| a.change.cmp(&b.change));
    }
    images.sort_by(|a, b| a[0].target.spec.cmp(&b[0].target.spec));
    images.into_iter().flatten().collect()
}

/// What will have a start refused that follows at once, and that no change fixes: `None` if nothing will.
pub fn refusal<'a>(findings: &'a [Finding], policy: &Policy) -> Option<Vec<&'a Finding>> {
    let stops = |finding: &&Finding| {
        let fixed = match finding.remedy.kind {
            RemedyKind::Automatic => true,
            // At boot the start comes later than this.
            RemedyKind::Wait => policy.at_boot,
            RemedyKind::Manual | RemedyKind::None => is_let_go_first(findings, finding),
        };
        finding.severity >= Severity::Blocker && !fixed
    };
    let stops: Vec<&Finding> = findings.iter().filter(stops).collect();
    ((policy.starting || policy.at_boot) && !stops.is_empty()).then_some(stops)
}

/// What fixes it is withheld while the disk is mapped, and the disk is unmapped first: then it is looked at again.
fn is_let_go_first(findings: &[Finding], finding: &Finding) -> bool {
    let same = |other: &&Finding| other.disk.is_some() && other.disk == finding.disk;
    let mut actions = findings.iter().filter(same).flat_map(|other| &other.remedy.actions);
    finding.remedy.withheld.is_some() && actions.any(|action| matches!(action.change, Change::Unmap { .. }))
}

/// A change is not made, for the sake of a start that will be refused. While all that refuses it may pass with time, what
/// is left over is unmapped: that may be what it waits for, and changes no image.
fn is_held(findings: &[Finding], policy: &Policy, finding: &Finding, action: &Action) -> bool {
    let Some(stops) = refusal(findings, policy) else { return false };
    let may_pass = stops.iter().all(|stop| stop.remedy.kind == RemedyKind::Wait);
    let lets_go = matches!(action.change, Change::Unmap { .. });
    let takes_off = |action: &Action| matches!(action.change, Change::DisableFeatures { .. });
    let puts_back = finding.code == Code::FeatureReset && !finding.remedy.actions.iter().any(takes_off);
    !(puts_back || may_pass && lets_go)
}

/// An object map that the same plan takes off for good is not to be rebuilt: `rbd` would end with 22.
fn drop_needless_rebuilds(image: &mut Vec<Action>) {
    let has_map = |features: &Features| features.contains(Features::OBJECT_MAP);
    let goes = |a: &Action| matches!(&a.change, Change::DisableFeatures { features } if has_map(features));
    let comes = |a: &Action| matches!(&a.change, Change::EnableFeatures { features } if has_map(features));
    if image.iter().any(goes) && !image.iter().any(comes) {
        image.retain(|action| !matches!(action.change, Change::RebuildObjectMap { .. }));
    }
}

/// Adds a change to those of its image, into one that it can be one command with.
fn add(image: &mut Vec<Action>, action: &Action) {
    for known in image.iter_mut() {
        match (&mut known.change, &action.change) {
            (Change::DisableFeatures { features: all }, Change::DisableFeatures { features })
            | (Change::EnableFeatures { features: all }, Change::EnableFeatures { features }) => {
                *all = *all | *features;
                return;
            }
            (known, change) if known == change => return,
            _ => {}
        }
    }
    image.push(action.clone());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding_codes::Code;
    use crate::rbd::action::Target;
    use crate::rbd::spec::Spec;

    fn finding(image: &str, changes: Vec<Change>) -> Finding {
        let target = Target {
            storage: "ceph".into(),
            fsid: "f".into(),
            spec: Spec { pool: "rbd".into(), namespace: None, image: image.into() },
            id: Some(image.into()),
            rbd_arguments: Vec::new(),
        };
        let mut finding = Finding::new(Code::ObjectMapInvalid, "");
        finding.remedy.actions =
            changes.into_iter().map(|change| Action { target: target.clone(), change }).collect();
        finding
    }

    #[test]
    fn changes_of_an_image_come_in_a_valid_order_and_once() {
        let rebuild = Change::RebuildObjectMap { snapshot: None };
        let findings = [
            finding("b", vec![rebuild.clone()]),
            finding("a", vec![Change::EnableFeatures { features: Features::OBJECT_MAP }, rebuild.clone()]),
            finding("a", vec![Change::EnableFeatures { features: Features::FAST_DIFF }]),
            finding("a", vec![rebuild.clone(), Change::DisableFeatures { features: Features::JOURNALING }]),
        ];
        let actions = plan(&findings, &Policy::default());
        let told: Vec<_> = actions.iter().map(|a| (a.target.spec.image.as_str(), a.change.clone())).collect();
        let both = Features::OBJECT_MAP | Features::FAST_DIFF;
        assert_eq!(
            told,
            [
                ("a", Change::DisableFeatures { features: Features::JOURNALING }),
                ("a", Change::EnableFeatures { features: both }),
                ("a", rebuild.clone()),
                ("b", rebuild),
            ]
        );
    }

    #[test]
    fn an_object_map_that_goes_is_not_rebuilt() {
        let map = Features::OBJECT_MAP | Features::FAST_DIFF;
        let disable = Change::DisableFeatures { features: map };
        let (enable, rebuild) =
            (Change::EnableFeatures { features: map }, Change::RebuildObjectMap { snapshot: None });
        let changes = |changes: &[&Change]| -> Vec<Change> {
            let findings = [finding("a", changes.iter().copied().cloned().collect())];
            plan(&findings, &Policy::default()).into_iter().map(|action| action.change).collect()
        };
        assert_eq!(changes(&[&disable, &rebuild]), changes(&[&disable]));
        assert_eq!(changes(&[&disable, &rebuild, &enable]), [disable.clone(), enable, rebuild]);
    }

    #[test]
    fn a_read_only_policy_plans_nothing() {
        let findings = [finding("a", vec![Change::RebuildObjectMap { snapshot: None }])];
        let policy = Policy { read_only: Some("mode is check".into()), ..Policy::default() };
        assert!(plan(&findings, &policy).is_empty());
    }
}
