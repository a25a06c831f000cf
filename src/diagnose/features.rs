//! Features: what the kernel cannot map, what PVE wants, what is flagged invalid.

use crate::diagnose::finding::{Finding, RemedyKind};
use crate::diagnose::image::Image;
use crate::finding_codes::Code;
use crate::kernel::version::pve_target;
use crate::rbd::action::Change;
use crate::rbd::features::{Changeable, Features};
use crate::reading::Reading;

/// What only Ceph's own progress fixes; these have codes of their own.
const OWN_CODES: Features =
    Features(Features::MIGRATING.0 | Features::NON_PRIMARY.0 | Features::JOURNALING.0);

/// Findings about the image's features and flags.
pub fn findings(image: &Image) -> Vec<Finding> {
    let mut findings = Vec::new();
    if image.by_kernel() {
        findings.extend(unsupported(image));
        findings.extend(journaling(image));
        findings.extend(unwanted(image));
        findings.extend(missing(image));
    }
    findings.extend(invalid_map(image));
    if image.reset {
        findings.extend(reset(image));
    }
    if !image.facts.features.contains(Features::DEEP_FLATTEN) {
        let detail = format!("features: {}", image.facts.features);
        findings.push(Finding::new(Code::DeepFlattenMissing, detail));
    }
    findings
}

/// The kernel maps no image that has a feature it does not know (`_rbd_dev_v2_snap_features`).
fn unsupported(image: &Image) -> Option<Finding> {
    let supported = *image.kernel().supported.known()?;
    let lacking = image.facts.features - supported - OWN_CODES;
    if lacking.is_empty() {
        return None;
    }
    let detail = format!("{lacking}: kernel {} does not know them", image.kernel().release);
    let finding = Finding::new(Code::FeaturesUnsupported, detail);
    let changeable = Features::with_change(Changeable::Both) | Features::with_change(Changeable::DisableOnly);
    Some(if changeable.contains(lacking) {
        disable(image, finding.remedy(RemedyKind::Manual, "disable them"), lacking)
    } else {
        finding
    })
}

/// Features taken off with all that depends on them; where that is a mirror's journal, by an administrator only.
fn disable(image: &Image, finding: Finding, features: Features) -> Finding {
    let features = features.with_dependents() & image.facts.features;
    let change = Change::DisableFeatures { features };
    let mut finding = image.fix(finding, image.settings.change.features, vec![change]);
    if features.contains(Features::JOURNALING) && image.facts.mirroring != Reading::Known(None) {
        finding.remedy.withhold("journaling would go too, and the image is mirrored".to_owned());
    }
    finding
}

fn journaling(image: &Image) -> Option<Finding> {
    if !image.facts.features.contains(Features::JOURNALING) {
        return None;
    }
    let finding = Finding::new(Code::JournalingOnKrbd, format!("features: {}", image.facts.features));
    match &image.facts.mirroring {
        // `image-mirrored` tells why the start is blocked; the journal is not ours to take away.
        Reading::Known(Some(_)) => None,
        Reading::Known(None) => {
            let change = Change::DisableFeatures { features: Features::JOURNALING };
            Some(image.fix(finding, image.settings.change.journaling, vec![change]))
        }
        Reading::Unknown(failure) => {
            let mut finding = finding;
            finding.remedy.withheld =
                Some(format!("it is not known whether the image is mirrored: {failure}"));
            Some(finding)
        }
    }
}

/// What PVE itself would disable before it maps (kernels before 5.3 only).
fn unwanted(image: &Image) -> Option<Finding> {
    let unwanted = pve_target(image.kernel().version).disable & image.facts.features;
    if unwanted.is_empty() {
        return None;
    }
    Some(disable(image, Finding::new(Code::FeaturesUnwanted, unwanted.to_string()), unwanted))
}

/// What is wanted on a krbd disk and not there. The object map is rebuilt, which PVE never does.
fn missing(image: &Image) -> Option<Finding> {
    // Format 1 has no features, and `rbd` refuses to give it any (22).
    if image.facts.format == 1 {
        return None;
    }
    let wanted = image.settings.krbd_features.on(pve_target(image.kernel().version));
    let supported = image.kernel().supported.known().copied().unwrap_or(Features::NONE);
    let missing = (wanted & supported) - image.facts.features;
    if missing.is_empty() || !Features::with_change(Changeable::Both).contains(missing) {
        return None;
    }
    let finding = Finding::new(Code::LockFeaturesMissing, format!("missing: {missing}"));
    let mut changes = vec![Change::EnableFeatures { features: missing }];
    if missing.contains(Features::OBJECT_MAP) {
        changes.extend(rebuilds(image, |_| true));
    }
    Some(image.fix(finding, image.settings.change.features, changes))
}

fn invalid_map(image: &Image) -> Option<Finding> {
    if !image.facts.features.contains(Features::OBJECT_MAP) {
        return None;
    }
    let flagged = |flags: &Reading<crate::ceph::image::Flags>| flags.known().is_some_and(|flags| flags.any());
    let changes: Vec<Change> = rebuilds(image, flagged);
    if changes.is_empty() {
        return None;
    }
    let names = changes.iter().map(|change| match change {
        Change::RebuildObjectMap { snapshot: Some(name) } => format!("snapshot {name}"),
        _ => "the image".to_owned(),
    });
    let detail = format!("flagged invalid: {}", names.collect::<Vec<_>>().join(", "));
    let finding = Finding::new(Code::ObjectMapInvalid, detail);
    Some(image.fix(finding, image.settings.change.object_map, changes))
}

/// The operator's own remedy in the incident, in a valid order and with everything back afterwards: what can be
/// switched off and on again is, once. Journaled images keep what they have: their journal needs exclusive-lock.
fn reset(image: &Image) -> Option<Finding> {
    if image.facts.features.contains(Features::JOURNALING) {
        return None;
    }
    let (off, back) = image.reset_so_far();
    let set = off.unwrap_or(image.facts.features) & can_come_back(image);
    if set.is_empty() || back.contains(set) {
        return None;
    }
    let mut changes = vec![Change::EnableFeatures { features: set }];
    if off.is_none() {
        changes.push(Change::DisableFeatures { features: set });
    }
    if set.contains(Features::OBJECT_MAP) {
        changes.extend(rebuilds(image, |_| true));
    }
    Some(image.fix(
        Finding::new(Code::FeatureReset, set.to_string()),
        image.settings.change.features,
        changes,
    ))
}

/// What a reset puts back: nothing that this kernel cannot map or PVE would take off again; that goes for good.
fn can_come_back(image: &Image) -> Features {
    let all = Features::EXCLUSIVE_LOCK | Features::MAPS;
    if !image.by_kernel() {
        return all;
    }
    let supported = image.kernel().supported.known().copied().unwrap_or(all);
    (all & supported) - pve_target(image.kernel().version).disable
}

/// `IMAGE@SNAPSHOT` means this snapshot and nothing else. librbd lets any name be given to one, and `rbd` takes
/// `image@a/b` for the image `b` in a pool `image@a`.
fn can_be_named(snapshot: &str) -> bool {
    !snapshot.is_empty() && !snapshot.contains(['/', '@', char::REPLACEMENT_CHARACTER])
}

/// A rebuild of the head's map and of each user snapshot's whose flags fit; no other snapshot can be named to `rbd`.
pub fn rebuilds(image: &Image, fits: impl Fn(&Reading<crate::ceph::image::Flags>) -> bool) -> Vec<Change> {
    let head = fits(&image.facts.flags).then_some(None);
    let snapshots = image.facts.snapshots.known().into_iter().flatten();
    let named = snapshots
        .filter(|s| s.namespace == "user" && can_be_named(&s.name) && fits(&s.flags))
        .map(|s| Some(s.name.clone()));
    head.into_iter().chain(named).map(|snapshot| Change::RebuildObjectMap { snapshot }).collect()
}
