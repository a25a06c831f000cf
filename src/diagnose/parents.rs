//! What there is to say of a linked clone's ancestors. The kernel opens each of them read-only.

use crate::ceph::image::Parent;
use crate::diagnose::finding::Finding;
use crate::diagnose::image::Image;
use crate::finding_codes::Code;
use crate::rbd::features::Features;
use crate::reading::Reading;

/// How many ancestors the kernel follows (`RBD_MAX_PARENT_CHAIN_LEN`, `drivers/block/rbd.c`).
pub const MAX_CHAIN: usize = 16;

/// Findings about the ancestors of an image.
pub fn findings(image: &Image) -> Vec<Finding> {
    let Reading::Known(parents) = &image.facts.parents else { return Vec::new() };
    let mut findings: Vec<Finding> = parents.iter().filter_map(|parent| unopened(image, parent)).collect();
    if image.by_kernel() {
        findings.extend(parents.iter().filter_map(|parent| unsupported(image, parent)));
        if parents.len() > MAX_CHAIN {
            let detail = format!("{} ancestors, the kernel follows {MAX_CHAIN}", parents.len());
            findings.push(flattened(image, Finding::new(Code::ParentChainTooDeep, detail)));
        }
    }
    findings
}

fn unopened(_image: &Image, parent: &Parent) -> Option<Finding> {
    let failure = parent.features.failure()?;
    let code = if failure.errno == Some(nix::errno::Errno::ENOENT as i32) {
        Code::ParentMissing
    } else {
        Code::FactsIncomplete
    };
    Some(Finding::new(code, format!("parent {}@{}: {failure}", parent.spec, parent.snapshot)))
}

fn unsupported(image: &Image, parent: &Parent) -> Option<Finding> {
    let features = *parent.features.known()?;
    let supported = *image.kernel().supported.known()?;
    let missing = (features & Features::READ_INCOMPATIBLE) - supported;
    (!missing.is_empty()).then(|| {
        let detail = format!("parent {}@{} has {missing}", parent.spec, parent.snapshot);
        flattened(image, Finding::new(Code::ParentUnsupported, detail))
    })
}

fn flattened(image: &Image, finding: Finding) -> Finding {
    let command = image.rbd(&["flatten", &image.spec.image]);
    finding.commands([command])
}
