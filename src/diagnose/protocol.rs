//! Whether the monitors have an address of the protocol that a map will ask for. `rbd map` itself then fails, before the kernel is
//! asked: `failed to get mon address (possible ms_mode mismatch)`.

use crate::diagnose::finding::Finding;
use crate::diagnose::image::Image;
use crate::diagnose::sharing::wanted;
use crate::finding_codes::{Code, Severity};
use crate::reading::Reading;
use crate::settings::policy::Scope;

/// The mismatch, where all of it was read: the monitors' own map, what maps take by default for the image, and the release of `rbd`. Where
/// the map is about to be tried that tells more surely, and this is a warning.
pub(super) fn finding(image: &Image, map: bool) -> Option<Finding> {
    let only = image.survey.cluster_of(image.disk)?.known()?.only_protocol.as_deref()?;
    // PVE maps nothing that is mapped, and what was tried has told.
    let unmapped = matches!(&image.mapped, Reading::Known(mapped) if mapped.is_empty());
    let read = image.survey.node.rbd_release.as_ref()?.known().is_some();
    let options = image.disk.map_options.as_ref()?.known()?;
    let tried = image.recent().into_iter().any(|report| report.action.is_map());
    if !unmapped || !read || tried {
        return None;
    }
    let mode = wanted(image.survey, image.disk)?.ms_mode()?.to_owned();
    let asked = if mode == "legacy" { "v1" } else { "v2" };
    let named = options.contains("ms_mode");
    // Whether a release that asks for the new protocol by itself makes do with the old one was not tried.
    if asked == only || (asked == "v2" && !named) {
        return None;
    }
    let by = if named { "rbd_default_map_options" } else { "what this release of rbd does by itself" };
    let detail = format!(
        "the monitors have addresses of {only} only; the map asks for ms_mode={mode} ({asked}), by {by}"
    );
    let severity = if map || image.scope != Scope::All { Severity::Warning } else { Severity::Blocker };
    let finding = Finding::new(Code::MsModeMismatch, detail).severity(severity);
    if !options.is_empty() {
        // Set for the pool, for the image, or in ceph.conf: where, is not known, and the others in it are to stay.
        return Some(finding);
    }
    let option = format!("ms_mode={}", if only == "v2" { "prefer-crc" } else { "legacy" });
    let pool = image.spec.pool.as_str();
    Some(finding.commands([image.rbd_of_pool(&[
        "config",
        "pool",
        "set",
        pool,
        "rbd_default_map_options",
        &option,
    ])]))
}
