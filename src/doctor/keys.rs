//! The key of a storage's user: of which type it is, and who on this node can use it.

use super::{Check, Facts, State, StorageFacts};
use crate::ceph::keyring::{Key, Keyring};
use crate::finding_codes::Code;
use crate::kernel::key_types;
use crate::pve::guest::Access;
use crate::pve::keyring::rewrite_command;
use crate::reading::Reading;

/// What there is to say of one of those who use the key.
struct Part {
    state: State,
    told: String,
    remedy: Option<String>,
}

impl Part {
    fn new(state: State, told: impl Into<String>) -> Self {
        Self { state, told: told.into(), remedy: None }
    }

    fn ok(told: impl Into<String>) -> Self {
        Self::new(State::Ok, told)
    }

    fn fail(told: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { state: State::Fail, told: told.into(), remedy: Some(remedy.into()) }
    }
}

/// The key of one storage, and in one line Ceph's libraries, the kernel and Proxmox VE's own check. `None` where it is not known how the
/// storage is reached.
pub(super) fn check(facts: &Facts, storage: &StorageFacts) -> Option<Check> {
    storage.connection.as_ref()?;
    let name = format!("key:{}", storage.section.id);
    let Some(keyring) = &storage.keyring else {
        return Some(Check::ok(
            name,
            "there is no keyring: Proxmox VE asks this cluster without authentication",
        ));
    };
    let content = match &keyring.content {
        Reading::Known(content) => content,
        Reading::Unknown(failure) => {
            return Some(Check::new(name, State::Unknown, format!("the keyring was not read: {failure}")));
        }
    };
    let user = user_of(storage);
    let mut parts =
        vec![Part::ok(format!("client.{user} has {}", content.key)), libraries(facts, storage, content)];
    if content.key == Key::Aes256k {
        parts.push(kernel(facts, storage));
    }
    parts.push(match &keyring.accepted {
        Reading::Known(true) => Part::ok("Proxmox VE's own check accepts the keyring"),
        Reading::Known(false) => Part::fail(
            "Proxmox VE's own check refuses the keyring (\"Not a proper rbd authentication file\")",
            with_commands(Code::KeyringRefusedByPve, storage),
        ),
        Reading::Unknown(failure) => {
            Part::new(State::Unknown, format!("what Proxmox VE's own check says is not known: {failure}"))
        }
    });
    Some(joined(name, parts))
}

/// What in the keyring kept Ceph's libraries from reading it, where that is why they did not connect.
pub(super) fn why_unread(storage: &StorageFacts) -> Option<String> {
    storage.keyring.as_ref()?.content.known()?.why_unread(storage.cluster.failure()?)
}

fn joined(name: String, parts: Vec<Part>) -> Check {
    let rank =
        |state: &State| [State::Ok, State::Unknown, State::Warn, State::Fail].iter().position(|s| s == state);
    let worst = parts.iter().map(|part| part.state).max_by_key(rank).unwrap_or(State::Unknown);
    let told: Vec<&str> = parts.iter().map(|part| part.told.as_str()).collect();
    let check = Check::new(name, worst, told.join("; "));
    match parts.iter().find_map(|part| part.remedy.clone()) {
        Some(remedy) => check.remedy(remedy),
        None => check,
    }
}

fn with_commands(code: Code, storage: &StorageFacts) -> String {
    format!("{}: {}", code.remedy(), rewrite_command(&storage.section, user_of(storage)).join("; "))
}

/// Whether they can is seen by what came of connecting.
fn libraries(facts: &Facts, storage: &StorageFacts, content: &Keyring) -> Part {
    let release = facts.release.as_ref().map(|release| format!("Ceph {release}"));
    let release = release.unwrap_or_else(|| "Ceph of an unknown release".to_owned());
    match &storage.cluster {
        Reading::Known(_) => Part::ok(format!("{release} can use it")),
        Reading::Unknown(_) => match why_unread(storage) {
            Some(why) => Part::fail(
                format!("{release} cannot read the keyring: {why}"),
                with_commands(Code::KeyringUnreadable, storage),
            ),
            None if content.key == Key::Aes => Part::ok(format!("{release} knows that type")),
            None => Part::new(
                State::Unknown,
                format!("whether {release} can use it is not known, since it did not connect"),
            ),
        },
    }
}

/// Grave only where the kernel opens an image of the storage.
fn kernel(facts: &Facts, storage: &StorageFacts) -> Part {
    let kernel = &facts.kernel;
    let linux = format!("Linux {}", kernel.release);
    let on_it =
        |disk: &&crate::pve::guest::Disk| disk.storage == storage.section.id && disk.access == Access::Krbd;
    let used = storage.section.krbd || facts.guests().flat_map(|guest| &guest.disks).any(|disk| on_it(&disk));
    let (state, told) = match &kernel.takes_aes256k {
        Reading::Known(true) => return Part::ok(format!("{linux} takes it")),
        Reading::Known(false) => (State::Fail, format!("{linux} refuses such a key")),
        Reading::Unknown(_) if kernel.version == (0, 0) => {
            (State::Unknown, format!("whether {linux} takes it is not known"))
        }
        Reading::Unknown(failure) => {
            let (verdict, state) = match key_types::unlikely(kernel.version) {
                true => ("most likely refuses", State::Warn),
                false => ("most likely takes", State::Ok),
            };
            (state, format!("{linux} {verdict} such a key, by its version ({})", failure.message))
        }
    };
    match (used, state) {
        (false, _) => Part::ok(format!("{told}, which no disk of this storage needs")),
        (true, State::Ok | State::Unknown) => Part::new(state, told),
        (true, state) => Part { state, ..Part::fail(told, Code::KeyTypeUnsupported.remedy()) },
    }
}

pub fn user_of(storage: &StorageFacts) -> &str {
    storage.connection.as_ref().map_or("admin", |connection| connection.user.as_str())
}
