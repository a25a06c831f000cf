//! Which of the kernel's lines belong to which change.

use crate::kernel::kmsg::LogLine;
use crate::kernel::messages::{self, About};
use crate::rbd::action::{ActionReport, Change};
use std::collections::BTreeSet;

/// Gives each failed change of the kernel's what the kernel said meanwhile, less what it said of other images and of
/// disks that were mapped before. The number of a map that failed is not known, so a line may still be another's that
/// was mapped at the same time: whoever reads it compares it with the errno.
pub fn attribute(log: &[LogLine], mapped_before: &BTreeSet<u32>, reports: &mut [ActionReport]) {
    let images: Vec<String> = reports.iter().map(|r| r.action.target.spec.image.clone()).collect();
    for report in reports.iter_mut().filter(|r| r.action.is_kernels() && !r.done()) {
        let own = &report.action.target.spec.image;
        let device = match report.action.change {
            Change::Unmap { device } => Some(device),
            _ => None,
        };
        let others = |line: &&LogLine| match messages::parse(&line.text).map(|line| line.about) {
            Some(About::Image(image)) => image != *own && images.contains(&image),
            Some(About::Disk(disk)) => Some(disk) != device && mapped_before.contains(&disk),
            _ => false,
        };
        report.kernel_log = log.iter().filter(|line| !others(line)).map(|line| line.text.clone()).collect();
    }
}
