//! Metrics in Prometheus's text format (`docs/instrumenting/exposition_formats`). The names never change.

use crate::diagnose::finding::Finding;
use crate::report::many_guests::{Unread, WORST_FIRST};
use crate::report::{GuestReport, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// The metrics of a check: `at` is when it began, in seconds since 1970, `took` how long it took, in seconds.
pub fn text(reports: &[GuestReport], unread: &[Unread], findings: &[Finding], at: u64, took: f64) -> String {
    let mut verdicts = Vec::new();
    for report in reports {
        let labels = labels(report);
        for verdict in WORST_FIRST {
            let is = u8::from(report.verdict() == verdict);
            verdicts.push((format!("{labels},verdict=\"{verdict}\""), is.to_string()));
        }
    }
    let disks = reports.iter().map(|r| (labels(r), r.survey.disks.len().to_string())).collect();
    let none = String::new;
    [
        family(
            "guest_verdict",
            "Whether the guest's Ceph RBD disks allow its start: 1 for the verdict that holds, 0 for the others.",
            verdicts,
        ),
        family("guest_disks", "Disks of the guest that are on Ceph RBD.", disks),
        family("guest_findings", "What was found of a guest, by code and severity.", counted(reports)),
        family(
            "guests_unread",
            "Guests whose config could not be read.",
            vec![(none(), unread.len().to_string())],
        ),
        family(
            "images_orphaned",
            "Images named after guests that no node has.",
            vec![(none(), findings.len().to_string())],
        ),
        family("check_timestamp_seconds", "When the check began.", vec![(none(), at.to_string())]),
        family("check_duration_seconds", "How long the check took.", vec![(none(), format!("{took:.3}"))]),
    ]
    .concat()
}

fn counted(reports: &[GuestReport]) -> Vec<(String, String)> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for report in reports {
        for finding in &report.findings {
            let (code, severity) = (finding.code, finding.severity);
            let labels = format!("{},code=\"{code}\",severity=\"{severity}\"", labels(report));
            *counts.entry(labels).or_default() += 1;
        }
    }
    counts.into_iter().map(|(labels, number)| (labels, number.to_string())).collect()
}

fn labels(report: &GuestReport) -> String {
    let guest = &report.survey.guest;
    format!("vmid=\"{}\",node=\"{}\",kind=\"{}\"", guest.vmid, escaped(&guest.node), json::word(&guest.kind))
}

/// A label's value: backslash, quote and end of line are escaped.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// A gauge, its help, and its samples by their labels.
fn family(name: &str, help: &str, samples: Vec<(String, String)>) -> String {
    let mut out = format!("# HELP rbd_preflight_{name} {help}\n# TYPE rbd_preflight_{name} gauge\n");
    for (labels, value) in samples {
        let labels = if labels.is_empty() { labels } else { format!("{{{labels}}}") };
        let _ = writeln!(out, "rbd_preflight_{name}{labels} {value}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_labels_are_escaped() {
        assert_eq!(escaped("a\"b\\c\n"), "a\\\"b\\\\c\\n");
    }
}
