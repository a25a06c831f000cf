//! Which changes to make, and in which order. Pure.

use crate::diagnose::finding::Finding;
use crate::rbd::action::{Action, Change, is_same_image};
use crate::rbd::features::Features;
use crate::settings::policy::Policy;

/// The changes that the findings' automatic remedies add up to: image by image, each change once, feature
/// changes of one direction in one command, locks before features before object maps.
pub fn plan(findings: &[Finding], policy: &Policy) -> Vec<Action> {
    if policy.read_only.is_some() {
        return Vec::new();
    }
    let mut images: Vec<Vec<Action>> = Vec::new();
    for action in findings.iter().flat_map(|finding| &finding.remedy.actions) {
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
    use crate::ceph::image::Spec;
    use crate::finding_codes::Code;
    use crate::rbd::action::Target;

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
