//! Why a storage's cluster could not be asked, in the order in which a connection comes about: library, our own options, ceph.conf,
//! monitors, their names, keyring, network, protocol, user. The first step that failed is the cause; what comes after it was never
//! tried, so nothing is said of it. A monitor is said to be silent or to refuse only where one was asked.

use crate::ceph::cluster::{NO_ANSWER, REFUSED};
use crate::ceph::keyring::{Key, Keyring};
use crate::ceph::way::{Answer, Host, Knock, Named, Resolved, Way};
use crate::diagnose::finding::{Finding, RemedyKind};
use crate::finding_codes::{Code, Severity};
use crate::observe::keyring::KeyringFacts;
use crate::observe::survey::StorageFacts;
use crate::pve::connection::Connection;
use crate::pve::keyring::rewrite_command;
use crate::pve::storage::RbdStorage;
use crate::reading::{Failure, Origin, Reading};
use crate::sys::command::Command;
use nix::errno::Errno;

/// A storage whose cluster could not be asked, and all that is known of the way there.
#[derive(Debug, Clone, Copy)]
pub struct Attempt<'a> {
    /// Its id, and those of the other storages that would share the connection.
    pub storages: &'a str,
    /// The section of storage.cfg.
    pub section: &'a RbdStorage,
    /// How PVE reaches it.
    pub connection: &'a Connection,
    /// What is known of its keyring.
    pub keyring: Option<&'a KeyringFacts>,
    /// The steps that were looked at; `None` where none were.
    pub way: Option<&'a Way>,
    /// What came of connecting.
    pub failure: &'a Failure,
}

/// A connection that failed, of a storage and of the others that share it.
pub fn attempt<'a>(storage: &'a StorageFacts, storages: &'a str, failure: &'a Failure) -> Attempt<'a> {
    let StorageFacts { section, connection, keyring, way, .. } = storage;
    Attempt { storages, section, connection, keyring: keyring.as_ref(), way: way.as_ref(), failure }
}

impl Attempt<'_> {
    /// The finding that says why the cluster could not be asked.
    pub fn why(&self) -> Finding {
        let steps = [
            Self::library,
            Self::conf,
            Self::monitors,
            Self::names,
            Self::keyring,
            Self::network,
            Self::user,
        ];
        steps.iter().find_map(|step| step(self)).unwrap_or_else(|| self.unknown())
    }

    fn detail(&self, why: &str) -> String {
        format!("storage {}: {why}", self.storages)
    }

    fn errno(&self) -> Option<Errno> {
        self.failure.errno.map(Errno::from_raw)
    }

    fn library(&self) -> Option<Finding> {
        match self.failure.origin {
            Origin::Library => {
                Some(Finding::new(Code::LibraryMissing, self.detail(&self.failure.to_string())))
            }
            Origin::Own | Origin::Late => {
                Some(Finding::new(Code::ClusterNotAsked, self.detail(&self.failure.to_string())))
            }
            Origin::Outside | Origin::Conf => None,
        }
    }

    fn conf(&self) -> Option<Finding> {
        if self.failure.origin != Origin::Conf {
            return None;
        }
        let junk = self.way.and_then(|way| way.conf.known()).and_then(|conf| Some((&conf.path, conf.junk?)));
        let detail = match (junk, self.errno()) {
            (_, Some(Errno::ENOENT | Errno::EACCES)) => {
                let detail = self.detail(&self.failure.to_string());
                return Some(Finding::new(Code::CephConfMissing, detail));
            }
            (Some((path, line)), _) => {
                format!("{path}, line {line}: neither a section nor `name = value`; {}", self.failure)
            }
            (None, _) => self.failure.to_string(),
        };
        Some(Finding::new(Code::CephConfInvalid, self.detail(&detail)))
    }

    /// Nobody names a monitor. Ceph then asks the DNS for them, and ends with 2 where that names none either.
    fn monitors(&self) -> Option<Finding> {
        let way = self.way?;
        if !self.failure.is_one_of(&[Errno::ENOENT]) || way.named.is_some() {
            return None;
        }
        let conf = match &way.conf {
            Reading::Known(conf) => {
                format!("{} has no mon_host for client.{}", conf.path, self.connection.user)
            }
            Reading::Unknown(failure) => failure.to_string(),
        };
        let detail = format!("{conf}, and the DNS has no record of them (ceph-mon); no monitor was asked");
        Some(Finding::new(Code::MonitorsNotNamed, self.detail(&detail)))
    }

    /// One name that does not resolve, and Ceph asks none of the others.
    fn names(&self) -> Option<Finding> {
        let way = self.way?;
        let Named { by, text } = way.named.as_ref()?;
        let unresolved = |host: &&Host| !matches!(host.found, Resolved::At(_));
        let lost: Vec<&Host> = way.hosts.iter().filter(unresolved).collect();
        let (Some(first), true) =
            (lost.first(), self.failure.is_one_of(&[Errno::EINVAL]) || self.failure.is_one_of(&NO_ANSWER))
        else {
            return None;
        };
        let words = |host: &&Host| match &host.found {
            Resolved::Unknown(words) | Resolved::NotNow(words) => format!("{} ({words})", host.name),
            Resolved::At(_) => host.name.clone(),
        };
        let all = lost.iter().map(words).collect::<Vec<_>>().join(", ");
        let detail = format!("{by} = {text}: {all}; no monitor was asked: {}", self.failure);
        let finding = Finding::new(Code::MonitorNameUnresolved, self.detail(&detail));
        let finding = finding.commands([Command::new("getent").args(["ahosts", &first.name]).display()]);
        let for_good = lost.iter().any(|host| matches!(host.found, Resolved::Unknown(_)));
        Some(match for_good {
            true => finding,
            // It may answer in the next moment, and then PVE's own start succeeds.
            false => finding.severity(Severity::Unknown),
        })
    }

    fn content(&self) -> Option<&Keyring> {
        self.keyring?.content.known()
    }

    fn keyring(&self) -> Option<Finding> {
        let Self { section, connection, failure, .. } = self;
        let user = &connection.user;
        let Some(path) = &connection.keyring else { return self.no_keyring() };
        let content = self.content()?;
        let rewrite = || rewrite_command(section, user);
        if let Some(why) = content.why_unread(failure) {
            let detail = format!("{path}: {why}; no monitor was asked: {failure}");
            return Some(Finding::new(Code::KeyringUnreadable, self.detail(&detail)).commands(rewrite()));
        }
        let keyless = matches!(content.key, Key::NoKey | Key::NoFile);
        if !keyless || !(self.failure.is_one_of(&REFUSED) || self.failure.is_one_of(&[Errno::ENOENT])) {
            return None;
        }
        let others = match content.others.as_slice() {
            [] => "no key of anybody".to_owned(),
            others => format!("the key of {}", others.join(", ")),
        };
        let detail = format!("{path} has no key of client.{user}; it has {others}: {failure}");
        let finding = Finding::new(Code::KeyringWithoutUser, self.detail(&detail));
        Some(match user.strip_prefix("client.") {
            Some(short) => {
                let text = format!("PVE puts `client.` before `username` itself: write `username {short}`");
                let set = Command::new("pvesm").args(["set", &section.id, "--username", short]);
                finding.remedy(RemedyKind::Manual, text).commands([set.display()])
            }
            None => finding.commands(self.key_commands()),
        })
    }

    /// PVE takes a storage without a keyring for a cluster without authentication; monitors that want some refuse it.
    fn no_keyring(&self) -> Option<Finding> {
        if !self.failure.is_one_of(&REFUSED) {
            return None;
        }
        let id = &self.section.id;
        let detail = format!(
            "there is no /etc/pve/priv/ceph/{id}.keyring, so PVE connects without authentication, and the monitors refuse that: {}",
            self.failure
        );
        let finding = Finding::new(Code::KeyringMissing, self.detail(&detail));
        Some(finding.commands(self.key_commands()))
    }

    /// The commands that give the storage its user's key: PVE makes those of its own cluster from client.admin's.
    fn key_commands(&self) -> Vec<String> {
        let own = format!("/etc/pve/priv/ceph/{}.keyring", self.section.id);
        match (&self.section.monhost, self.connection.user.as_str()) {
            (None, "admin") => {
                vec![Command::new("cp").args(["/etc/pve/priv/ceph.client.admin.keyring", &own]).display()]
            }
            (_, user) => rewrite_command(self.section, user),
        }
    }

    fn network(&self) -> Option<Finding> {
        if !self.failure.is_one_of(&NO_ANSWER) {
            return None;
        }
        let knocks: &[Knock] = self.way.map_or(&[], |way| &way.knocks);
        let seen = knocks.iter().map(|knock| format!("; {knock}")).collect::<String>();
        let named = self.way.and_then(|way| way.named.as_ref());
        let by = named.map(|Named { by, text }| format!("; {by} = {text}")).unwrap_or_default();
        let detail = self.detail(&format!("{}{by}{seen}", self.failure));
        if all_wrong(knocks) {
            return Some(Finding::new(Code::MonitorPortWrong, detail));
        }
        let finding = Finding::new(Code::ClusterUnreachable, detail);
        let text = match knocks.iter().find(|knock| knock.is_right()) {
            Some(_) => {
                "the network is in order and a monitor takes connections, but does not answer: see whether enough of the monitors \
                        run to have a quorum (`ceph daemon mon.ID mon_status` on a monitor's node)"
            }
            None => Code::ClusterUnreachable.remedy(),
        };
        Some(finding.remedy(RemedyKind::Wait, text))
    }

    /// The monitors were asked, and let nobody in.
    fn user(&self) -> Option<Finding> {
        if !self.failure.is_one_of(&REFUSED) {
            return None;
        }
        let user = &self.connection.user;
        let detail =
            self.detail(&format!("the monitors refuse client.{user} with its key: {}", self.failure));
        Some(Finding::new(Code::ClusterAuthFailed, detail).commands(self.key_commands()))
    }

    /// Ceph's library failed with what none of the steps explains.
    fn unknown(&self) -> Finding {
        let conf = self.way.and_then(|way| way.conf.known()).map(|conf| format!("; {} is read", conf.path));
        let resolved = self.way.is_some_and(|way| {
            !way.hosts.is_empty() && way.hosts.iter().all(|host| matches!(host.found, Resolved::At(_)))
        });
        let names = resolved.then_some("; all monitors have an address");
        let key =
            self.content().map(|keyring| format!("; client.{} has {}", self.connection.user, keyring.key));
        let detail = format!(
            "{}{}{}{}",
            self.failure,
            conf.unwrap_or_default(),
            names.unwrap_or_default(),
            key.unwrap_or_default()
        );
        Finding::new(Code::ClusterNotAsked, self.detail(&detail))
    }
}

/// Nothing at the monitors' addresses is a monitor of the protocol that is asked, and none of them may be one that is late.
fn all_wrong(knocks: &[Knock]) -> bool {
    let wrong = |knock: &Knock| match &knock.answer {
        Answer::Ceph(_) => !knock.is_right(),
        Answer::Other => true,
        Answer::Silence | Answer::Failed(_) => false,
    };
    let closed = |knock: &Knock| matches!(&knock.answer, Answer::Failed(failure) if failure.errno == Some(Errno::ECONNREFUSED as i32));
    knocks.iter().any(wrong) && knocks.iter().all(|knock| wrong(knock) || closed(knock))
}

/// PVE ignores the storage's monhost line, and takes the cluster for its own.
pub fn monhost_dropped(section: &RbdStorage) -> Option<Finding> {
    let dropped = section.monhost_dropped.as_ref()?;
    let detail = format!(
        "storage {}: storage.cfg, line {}: PVE ignores `monhost {}`, and goes by this node's own /etc/pve/ceph.conf",
        section.id, dropped.line, dropped.text
    );
    let finding = Finding::new(Code::MonhostDropped, detail);
    Some(match crate::ceph::way::as_pve_takes(&dropped.text) {
        Some(list) => {
            finding.commands([Command::new("pvesm").args(["set", &section.id, "--monhost", &list]).display()])
        }
        None => finding,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// What is said of a storage with a good keyring whose connection ended with this errno, and the way there.
    fn why(errno: i32, way: Value) -> Finding {
        let section = crate::pve::storage::parse("storage.cfg", b"rbd: ceph\n\tpool p\n").rbd.remove(0);
        let connection = Connection {
            conf: Some("c".into()),
            mon_host: None,
            user: "admin".into(),
            keyring: Some("k".into()),
        };
        let keyring: KeyringFacts = serde_json::from_value(
            json!({ "content": { "known": { "key": "aes" } }, "accepted": { "known": true } }),
        )
        .unwrap();
        let way: Way = serde_json::from_value(way).unwrap();
        let failure = &Failure::errno("connect", errno);
        Attempt {
            storages: "ceph",
            section: &section,
            connection: &connection,
            keyring: Some(&keyring),
            way: Some(&way),
            failure,
        }
        .why()
    }

    fn way(found: Value, answers: &[Value]) -> Value {
        let knock = |answer: &Value| json!({ "address": "10.0.0.1:3300", "asked": "v2", "answer": answer });
        json!({
            "conf": { "known": { "path": "c" } }, "named": { "by": "c, line 2", "text": "m" },
            "hosts": [{ "name": "m", "protocol": "any", "found": found }],
            "knocks": answers.iter().map(knock).collect::<Vec<_>>(),
        })
    }

    fn at() -> Value {
        json!({ "at": ["10.0.0.1"] })
    }

    #[test]
    fn a_name_service_that_does_not_answer_now_stops_nothing() {
        for errno in [22, 110] {
            let late = why(errno, way(json!({ "not_now": "Temporary failure" }), &[]));
            assert_eq!(
                (late.code, late.severity),
                (Code::MonitorNameUnresolved, Severity::Unknown),
                "{errno}"
            );
            let gone = why(errno, way(json!({ "unknown": "Name or service not known" }), &[]));
            assert_eq!(
                (gone.code, gone.severity),
                (Code::MonitorNameUnresolved, Severity::Blocker),
                "{errno}"
            );
        }
        assert_eq!(
            why(13, way(json!({ "not_now": "x" }), &[])).code,
            Code::ClusterAuthFailed,
            "a monitor was asked"
        );
    }

    #[test]
    fn a_monitor_that_may_be_late_is_waited_for_whatever_else_listens() {
        let closed =
            json!({ "failed": { "what": "connect", "errno": 111, "message": "Connection refused" } });
        let silent =
            json!({ "failed": { "what": "connect", "errno": 110, "message": "Connection timed out" } });
        let (other, v1, v2) = (json!("other"), json!({ "ceph": "v1" }), json!({ "ceph": "v2" }));
        for (answers, expected) in [
            (vec![], Code::ClusterUnreachable),
            (vec![closed.clone()], Code::ClusterUnreachable),
            (vec![json!("silence")], Code::ClusterUnreachable),
            (vec![other.clone()], Code::MonitorPortWrong),
            (vec![v1.clone(), closed], Code::MonitorPortWrong),
            (vec![other, silent], Code::ClusterUnreachable),
            (vec![v1, v2.clone()], Code::ClusterUnreachable),
        ] {
            assert_eq!(why(110, way(at(), &answers)).code, expected, "{answers:?}");
        }
        assert!(why(110, way(at(), &[v2])).remedy.text.contains("quorum"));
    }

    #[test]
    fn what_no_step_explains_is_not_told_as_a_refusal_and_says_what_was_ruled_out() {
        for errno in [2, 22, 5, 95 + 1000] {
            let finding = why(errno, way(at(), &[]));
            assert_eq!(
                (finding.code, finding.severity),
                (Code::ClusterNotAsked, Severity::Unknown),
                "{errno}"
            );
            for ruled_out in
                ["c is read", "all monitors have an address", "client.admin has a key of type aes"]
            {
                assert!(finding.detail.contains(ruled_out), "{}", finding.detail);
            }
        }
    }
}
