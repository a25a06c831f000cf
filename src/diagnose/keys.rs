//! The keys of the storages' users: can Ceph's libraries, the kernel and Proxmox VE use them on this node. All of it is reported before
//! anything is mapped.

use crate::ceph::keyring::{Key, Keyring};
use crate::ceph::qemu_keyring::NoKeyForQemu;
use crate::diagnose::finding::{Finding, RemedyKind};
use crate::finding_codes::{Code, Severity};
use crate::kernel::key_types;
use crate::observe::survey::{DiskFacts, StorageFacts, Survey};
use crate::pve::guest::{Access, Role};
use crate::pve::keyring::rewrite_command;
use crate::pve::words::Kind;
use crate::reading::Reading;
use crate::sys::quote::quoted;

/// Findings about the key of each storage that a disk of the guest's lies on.
pub fn findings(survey: &Survey) -> Vec<Finding> {
    let mut findings = Vec::new();
    for storage in survey.storages.values() {
        let disks: Vec<&DiskFacts> = disks_on(survey, storage).collect();
        if !disks.is_empty() {
            let found = [refused(storage), unsupported(survey, storage, &disks), unfound_by_qemu(storage)];
            let found = found.into_iter().flatten();
            let of_storage = |finding| Finding { storages: vec![storage.section.id.clone()], ..finding };
            findings.extend(found.map(of_storage));
        }
    }
    findings
}

/// The storage's disks that a start uses: not those on lines that PVE drops.
fn disks_on<'a>(survey: &'a Survey, storage: &StorageFacts) -> impl Iterator<Item = &'a DiskFacts> {
    let on = survey.disks.iter().filter(move |disk| disk.disk.storage == storage.section.id);
    on.filter(|disk| disk.disk.pve_drops.as_ref().is_none_or(|dropped| dropped.unknown_option))
}

fn content(storage: &StorageFacts) -> Option<&Keyring> {
    storage.keyring.as_ref()?.content.known()
}

/// Proxmox VE's own check refuses the keyring.
fn refused(storage: &StorageFacts) -> Option<Finding> {
    let facts = storage.keyring.as_ref()?;
    if facts.accepted != Reading::Known(false) {
        return None;
    }
    let (section, connection) = (&storage.section, &storage.connection);
    let path = connection.keyring.as_deref().unwrap_or_default();
    let user = &connection.user;
    let holds = content(storage).map(|keyring| format!("; client.{user} has {}", keyring.key));
    let detail = format!(
        "storage {}: {path}: PVE fails with \"Not a proper rbd authentication file\"{}",
        section.id,
        holds.unwrap_or_default()
    );
    Some(Finding::new(Code::KeyringRefusedByPve, detail).commands(rewrite_command(section, user)))
}

/// The kernel opens a disk of the storage, and takes no key of this type.
fn unsupported(survey: &Survey, storage: &StorageFacts, disks: &[&DiskFacts]) -> Option<Finding> {
    if content(storage)?.key != Key::Aes256k {
        return None;
    }
    let disks: Vec<&DiskFacts> =
        disks.iter().copied().filter(|disk| disk.disk.access == Access::Krbd).collect();
    let kernel = &survey.node.kernel;
    let (severity, why) = match &kernel.takes_aes256k {
        _ if disks.is_empty() => return None,
        Reading::Known(true) => return None,
        Reading::Known(false) => (Severity::Blocker, "refuses such a key".to_owned()),
        Reading::Unknown(_) if !key_types::unlikely(kernel.version) => return None,
        Reading::Unknown(failure) => {
            let (major, minor) = key_types::SINCE;
            let guess = format!("is older than {major}.{minor}, and could not be asked: {}", failure.message);
            (Severity::Unknown, guess)
        }
    };
    // PVE maps nothing that is mapped.
    let all_mapped = disks.iter().all(|disk| survey.mapped(disk).known().is_some_and(|all| !all.is_empty()));
    let severity = if all_mapped { Severity::Warning } else { severity };
    let keys: Vec<&str> = disks.iter().map(|disk| disk.disk.key.as_str()).collect();
    let detail = format!(
        "storage {}: client.{} has {}; Linux {} {why}; mapped by the kernel: {}",
        storage.section.id,
        storage.connection.user,
        Key::Aes256k,
        kernel.release,
        keys.join(", ")
    );
    let mut finding = Finding::new(Code::KeyTypeUnsupported, detail).severity(severity);
    if severity == Severity::Unknown {
        finding.summary =
            "this node's kernel can probably not use the type of key that the storage's user has".to_owned();
    }
    Some(finding.remedy(RemedyKind::Manual, ways_out(survey, &disks)))
}

/// QEMU looks for the user's key elsewhere than `rbd` is told to, and does not find it.
fn unfound_by_qemu(storage: &StorageFacts) -> Option<Finding> {
    let NoKeyForQemu { paths, found, by_blockdev } = storage.qemu_keyring.as_ref()?;
    let (section, connection) = (&storage.section, &storage.connection);
    let severity = match by_blockdev {
        Some(true) => Severity::Blocker,
        Some(false) => return None,
        None => Severity::Note,
    };
    let where_ = match found {
        Some(path) => format!("in {path}, which has no key of client.{}", connection.user),
        None => format!("for {}, and there is no such file", paths.join(", ")),
    };
    let own = format!("/etc/pve/priv/ceph/{}.keyring", section.id);
    let detail = format!("storage {}: QEMU looks {where_}; {own} is passed to rbd only", section.id);
    let finding = Finding::new(Code::QemuKeyMissing, detail).severity(severity);
    let external = section.monhost.is_some();
    let (file, place) = match external {
        true => (format!("/etc/pve/priv/ceph/{}.conf", section.id), "global".to_owned()),
        false => ("/etc/pve/ceph.conf".to_owned(), format!("client.{}", connection.user)),
    };
    let text = format!("set `keyring = {own}` in the section [{place}] of {file}");
    let finding = finding.remedy(RemedyKind::Manual, text);
    // A file that is not there yet can be made by a command; one that is there is for an editor.
    Some(match external && connection.conf.is_none() {
        true => finding.commands([format!(
            "printf '[global]\\n\\tkeyring = %s\\n' {} >{}",
            quoted(&own),
            quoted(&file)
        )]),
        false => finding,
    })
}

/// `krbd 0` helps only those that the kernel opens for that setting's sake: not a container's volumes, nor a TPM's state.
fn ways_out(survey: &Survey, disks: &[&DiskFacts]) -> String {
    let by_setting = |disk: &&DiskFacts| disk.disk.krbd_storage && disk.disk.role != Role::Tpm;
    let text = Code::KeyTypeUnsupported.remedy();
    if survey.guest.kind == Kind::Qemu && disks.iter().all(by_setting) {
        return format!("{text}; or set `krbd 0` on the storage");
    }
    text.to_owned()
}
