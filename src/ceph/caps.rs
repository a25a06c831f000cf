//! What a Ceph user may do, and the command that lets it break a dead client's lock.
//!
//! Before krbd and librbd break a lock they put its owner on the blocklist, by the monitor command `osd blocklist`
//! (`osd blacklist` only if the monitor does not know the newer name, not if it refuses). `mon 'allow r'`, with which
//! many users were made, does not allow that; `profile rbd` does, for one client's address at a time (Ceph
//! `src/mon/MonCap.cc`, `doc/rados/operations/user-management`). A user may hardly ever read its own caps, so whoever
//! is refused must ask as client.admin.

use crate::ceph::connect::{connect, place};
use crate::ceph::deadline;
use crate::ceph::ffi::Cluster;
use crate::pve::connection::Connection;
use crate::pve::storage::RbdStorage;
use crate::reading::{Failure, Reading};
use crate::sys::quote::quoted;
use crate::sys::root::Root;
use nix::libc::ETIMEDOUT;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// A user's caps by service (`mon`, `osd`, `mgr`, `mds`), as the monitors keep them. Never its key.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Caps(pub BTreeMap<String, String>);

/// The order in which Ceph's documentation writes them.
const SERVICES: [&str; 4] = ["mon", "osd", "mgr", "mds"];

/// Whether the caps allow `osd blocklist add` of a client's address. `None`: a grant is bound to a network, or of a form
/// that is not known here, and nothing else allows it.
pub fn may_blocklist(caps: &Caps) -> Option<bool> {
    let mon = caps.0.get("mon").map_or("", String::as_str);
    let grants: Vec<Option<Allowed>> = grants(mon).map(|grant| allows(&words(grant))).collect();
    let allowed = grants.iter().flatten().fold(NOTHING, |all, one| all | one);
    match allowed & (READ | WRITE) == READ | WRITE {
        true => Some(true),
        false if grants.contains(&None) => None,
        false => Some(false),
    }
}

/// The whole `ceph auth caps` line after which the user may break locks and may do all that it may now. It replaces
/// all caps of the user at once, so it names them all.
pub fn caps_command(user: &str, caps: &Caps) -> String {
    let mut wanted = caps.0.clone();
    let mon = wanted.remove("mon").unwrap_or_default();
    let mon =
        if may_blocklist(caps) == Some(true) { mon } else { with_profile(&mon, caps.0.contains_key("mds")) };
    wanted.insert("mon".to_owned(), mon);
    let order = |service: &str| SERVICES.iter().position(|known| *known == service).unwrap_or(SERVICES.len());
    let mut all: Vec<_> = wanted.iter().map(|(service, caps)| (service.as_str(), caps.as_str())).collect();
    all.sort_by_key(|(service, _)| order(service));
    line(user, &all)
}

/// The caps with `profile rbd` for further pools, each with the namespace in it.
pub fn with_pools(caps: &Caps, pools: &[(&str, Option<&str>)]) -> Caps {
    let mut caps = caps.clone();
    let osd = caps.0.get("osd").map(|osd| osd.trim().trim_end_matches([',', ';']).to_owned());
    let further = pools.iter().map(|(pool, namespace)| pool_grant(pool, *namespace));
    let all: Vec<String> = osd.into_iter().filter(|osd| !osd.is_empty()).chain(further).collect();
    if !all.is_empty() {
        caps.0.insert("osd".to_owned(), all.join(", "));
    }
    caps
}

/// The user that has all rights: a line with fewer would take them from the whole cluster.
const ADMIN: &str = "admin";

/// The line for a user whose caps are not known: what Ceph's documentation gives a user of these storages; for
/// client.admin, the one that shows its caps. It must not be shown without [`template_remark`].
pub fn caps_template<'a>(user: &str, storages: impl IntoIterator<Item = &'a RbdStorage>) -> String {
    if user == ADMIN {
        return format!("ceph auth get client.{ADMIN}");
    }
    let mut osd: Vec<String> = Vec::new();
    for storage in storages {
        for pool in [Some(&storage.pool), storage.data_pool.as_ref()].into_iter().flatten() {
            let grant = pool_grant(pool, storage.namespace.as_deref());
            if !osd.contains(&grant) {
                osd.push(grant);
            }
        }
    }
    line(user, &[("mon", "profile rbd"), ("osd", &osd.join(", "))])
}

/// What must be done before a [`caps_template`] is run.
pub fn template_remark(user: &str) -> String {
    let who = format!("client.{user}");
    if user == ADMIN {
        return format!("{who} is made with all rights (mon 'allow *'): see who took them from it, and why");
    }
    format!(
        "the caps of {who} could not be read, and this command replaces all of them: look at `ceph auth get {}` first, \
         and add what else it has (pools of clones' parents, mgr, mds)",
        quoted(&who)
    )
}

fn line(user: &str, caps: &[(&str, &str)]) -> String {
    let words = caps.iter().flat_map(|(service, caps)| [quoted(service), quoted(caps)]);
    let start = ["ceph".to_owned(), "auth".to_owned(), "caps".to_owned(), quoted(format!("client.{user}"))];
    start.into_iter().chain(words).collect::<Vec<_>>().join(" ")
}

fn pool_grant(pool: &str, namespace: Option<&str>) -> String {
    let namespace = namespace.map(|name| format!(" namespace={}", cap_word(name))).unwrap_or_default();
    format!("profile rbd pool={}{namespace}", cap_word(pool))
}

/// A name as caps take it: bare only if it holds nothing but letters, digits and `_./-`.
fn cap_word(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_./-".contains(&byte);
    if name.bytes().all(plain) { name.to_owned() } else { format!("\"{name}\"") }
}

/// The mon caps with `profile rbd`, in place of `allow r`, of which the profile holds what RBD needs. Where the user has
/// to do with file systems too, `allow r` stays.
fn with_profile(mon: &str, file_systems: bool) -> String {
    let contained = |grant: &&str| !file_systems && words(grant) == ["allow", "r"];
    let place = grants(mon).position(|grant| contained(&grant));
    let mut kept: Vec<&str> = grants(mon).filter(|grant| !contained(grant)).collect();
    kept.insert(place.unwrap_or(kept.len()).min(kept.len()), "profile rbd");
    kept.join(", ")
}

type Allowed = u8;
const NOTHING: Allowed = 0;
const READ: Allowed = 1;
const WRITE: Allowed = 2;

/// What one grant allows with `osd blocklist add` (`MonCapGrant::get_allowed`); `None` is not known.
fn allows(grant: &[String]) -> Option<Allowed> {
    let grant: Vec<&str> = grant.iter().map(String::as_str).collect();
    match grant[..] {
        // Where the user connects from is not known here.
        [ref granted @ .., "network", _] => allowed_anywhere(granted).filter(|allowed| *allowed == NOTHING),
        ref granted => allowed_anywhere(granted),
    }
}

fn allowed_anywhere(grant: &[&str]) -> Option<Allowed> {
    match *grant {
        ["profile", name] | ["allow", "profile", name] => profile(name),
        ["allow", "service", "osd", letters] | ["allow", letters] | ["allow", letters, "fsname", _] => {
            access(letters)
        }
        ["allow", "service", _, letters] => access(letters).map(|_| NOTHING),
        ["allow", "command", "osd blocklist", ref conditions @ ..] => {
            adds(conditions).then_some(READ | WRITE)
        }
        // Of a command that is named, its name alone says that it is another one.
        ["allow", "command", other, ..] if !other.contains("blocklist") => Some(NOTHING),
        _ => None,
    }
}

/// Every profile of RBD's lets blocklist, `rbd-read-only` too (seen on 16.2.15). `None`: it is not known here.
fn profile(name: &str) -> Option<Allowed> {
    const ALLOWED: [&str; 5] = ["simple-rados-client-with-blocklist", "read-write", "osd", "mds", "mgr"];
    const NOT_ALLOWED: [&str; 6] =
        ["simple-rados-client", "read-only", "crash", "role-definer", "fs-client", "cephfs-mirror"];
    if name.starts_with("rbd") || ALLOWED.contains(&name) {
        return Some(READ | WRITE);
    }
    (NOT_ALLOWED.contains(&name) || name.starts_with("bootstrap-")).then_some(NOTHING)
}

/// `*`, `all`, or of `rwx` what is named.
fn access(letters: &str) -> Option<Allowed> {
    match letters {
        "*" | "all" => Some(READ | WRITE),
        letters if letters.bytes().all(|letter| b"rwx".contains(&letter)) => {
            let of = |letter, allowed| if letters.contains(letter) { allowed } else { NOTHING };
            Some(of('r', READ) | of('w', WRITE))
        }
        _ => None,
    }
}

/// The conditions are none, or no stricter than those of `profile rbd`.
fn adds(conditions: &[&str]) -> bool {
    const CLIENT: [&str; 3] = ["addr", "regex", "^[^/]+/[0-9]+$"];
    let Some((with, rest)) = conditions.split_first() else { return true };
    let rest = rest.strip_prefix(&["blocklistop", "add"]).unwrap_or(rest);
    *with == "with" && (rest.is_empty() || rest == CLIENT)
}

/// The grants of a service's caps, which commas or semicolons outside of quotes separate.
pub(super) fn grants(caps: &str) -> impl Iterator<Item = &str> {
    let mut quote = None;
    let separates = move |c: char| outside(&mut quote, c) && matches!(c, ',' | ';');
    caps.split(separates).map(str::trim).filter(|grant| !grant.is_empty())
}

/// The words of a grant, without quotes; `=` is as good as a blank.
pub(super) fn words(grant: &str) -> Vec<String> {
    let mut quote = None;
    let separates = move |c: char| outside(&mut quote, c) && (c.is_ascii_whitespace() || c == '=');
    let words = grant.split(separates).filter(|word| !word.is_empty());
    words.map(|word| word.trim_matches(['"', '\'']).to_owned()).collect()
}

/// The character is in no quotes; `quote` is the one that is open.
fn outside(quote: &mut Option<char>, c: char) -> bool {
    match (*quote, c) {
        (None, '"' | '\'') => *quote = Some(c),
        (Some(open), _) if open == c => *quote = None,
        (Some(_), _) => return false,
        (None, _) => return true,
    }
    false
}

/// Asks the monitors for a user's caps; errno 13: this connection's user may not know, 2: there is no such user.
fn ask(cluster: &Cluster, user: &str) -> Result<Caps, Failure> {
    let what = || format!("ask the monitors: auth get client.{user}");
    let request =
        serde_json::json!({ "prefix": "auth get", "entity": format!("client.{user}"), "format": "json" });
    let answer = cluster.mon_command(&request.to_string()).map_err(|errno| Failure::errno(what(), errno))?;
    // An error of the parser's could quote the answer, and with it the key.
    parse(&answer).ok_or_else(|| Failure::new(what(), "answer not understood"))
}

/// One user in the answer; what else it holds, the key above all, is never looked at.
#[derive(Deserialize)]
struct RawUser {
    caps: Caps,
}

/// The caps in the answer to `auth get`.
pub fn parse(answer: &[u8]) -> Option<Caps> {
    let [user] = <[RawUser; 1]>::try_from(serde_json::from_slice::<Vec<RawUser>>(answer).ok()?).ok()?;
    Some(user.caps)
}

/// Finds a user's caps: by the storage's own connection, and if that is refused by client.admin's keyring, which a node
/// of a hyperconverged cluster has, provided that it is for the same cluster. Opens connections of its own and takes up
/// to `deadline` and at most a second: meant for when a lock could not be broken.
///
/// Unknown with what came of the storage's own connection.
pub fn find_caps(root: &Root, connection: &Connection, user: &str, deadline: Duration) -> Reading<Caps> {
    let mut found = None;
    let job = Job { own: connection.clone(), admin: admin(root), user: user.to_owned(), deadline };
    let work = move |tell: &std::sync::mpsc::Sender<_>, _: &deadline::Wanted| {
        let _ = tell.send(job.run());
    };
    match deadline::run(deadline, work, |caps| found = Some(caps)) {
        Ok(_) => found.unwrap_or_else(|| Err(late(connection, user))).into(),
        Err(failure) => Reading::Unknown(failure),
    }
}

fn late(connection: &Connection, user: &str) -> Failure {
    Failure::errno(format!("read the caps of client.{user} through {}", place(connection)), ETIMEDOUT)
}

/// client.admin of PVE's own cluster (`PVE::Ceph::Tools`: `pve_ckeyring_path`).
pub fn admin(root: &Root) -> Option<Connection> {
    let file = |path: &str| Some(root.path(path)).filter(|path| path.is_file())?.to_str().map(str::to_owned);
    Some(Connection {
        conf: Some(file("/etc/pve/ceph.conf")?),
        mon_host: None,
        user: "admin".to_owned(),
        keyring: Some(file("/etc/pve/priv/ceph.client.admin.keyring")?),
    })
}

/// The same where it costs little: for a user that is not client.admin, on PVE's own cluster, as client.admin of it. Everybody else may hardly
/// ever read caps, and another cluster's admin is not here; `None` then.
pub fn find_caps_as_admin(root: &Root, connection: &Connection, deadline: Duration) -> Option<Reading<Caps>> {
    let admin = admin(root)?;
    if connection.user == ADMIN || connection.mon_host.is_some() || connection.conf != admin.conf {
        return None;
    }
    Some(find_caps(root, &admin, &connection.user, deadline))
}

struct Job {
    own: Connection,
    admin: Option<Connection>,
    user: String,
    deadline: Duration,
}

impl Job {
    fn run(&self) -> Result<Caps, Failure> {
        let session = connect(&self.own, self.deadline);
        let own = match &session {
            Ok(session) => ask(session, &self.user),
            Err(failure) => Err(failure.clone()),
        };
        own.or_else(|failure| self.ask_as_admin(session.as_deref().ok()).ok_or(failure))
    }

    /// As client.admin of the same cluster, where that is certain.
    fn ask_as_admin(&self, own: Option<&Cluster>) -> Option<Caps> {
        let admin = self.admin.as_ref()?;
        let session = connect(admin, self.deadline).ok()?;
        let same = match own {
            Some(own) => own.fsid().ok()? == session.fsid().ok()?,
            None => self.own.mon_host.is_none() && self.own.conf == admin.conf,
        };
        if same { ask(&session, &self.user).ok() } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pve::storage;

    fn caps(all: &[(&str, &str)]) -> Caps {
        Caps(all.iter().map(|(service, caps)| ((*service).to_owned(), (*caps).to_owned())).collect())
    }

    fn mon(text: &str) -> Caps {
        caps(&[("mon", text)])
    }

    /// `tests/ceph/caps.rs` asks a real monitor the same.
    #[test]
    fn blocklisting_is_allowed_by_rights_on_the_osds_or_by_the_command() {
        for text in
            ["allow *", "allow rw", "allow r, allow w", "profile rbd", "allow command \"osd blocklist\""]
        {
            assert_eq!(may_blocklist(&mon(text)), Some(true), "{text}");
        }
        for text in ["", "allow r", "allow command \"osd blacklist\"", "allow r network 10.0.0.0/8, allow w"]
        {
            let expected = (!text.contains("network")).then_some(false);
            assert_eq!(may_blocklist(&mon(text)), expected, "{text}");
        }
        assert_eq!(may_blocklist(&caps(&[("osd", "allow *")])), Some(false));
    }

    #[test]
    fn what_is_bound_to_a_network_or_not_understood_is_not_known() {
        for text in [
            "profile rbd network 127.0.0.0/8",
            "allow rw network 10.0.0.0/8",
            "allow r, profile of-a-later-release",
            "allow command \"osd blocklist\" with blocklistop=rm",
            "allow everything and more",
        ] {
            assert_eq!(may_blocklist(&mon(text)), None, "{text}");
            assert_eq!(may_blocklist(&mon(&format!("{text}, profile rbd"))), Some(true), "{text}");
        }
    }

    #[test]
    fn no_line_takes_rights_from_the_one_that_has_all() {
        assert_eq!(caps_template("admin", &[]), "ceph auth get client.admin");
        assert!(!template_remark("admin").contains("replaces"));
    }

    #[test]
    fn the_line_keeps_all_and_puts_the_profile_in_place_of_reading() {
        let command = |mon: &str| caps_command("vms", &caps(&[("mon", mon), ("osd", "profile rbd pool=p")]));
        let table = [
            ("allow r", "'profile rbd'"),
            ("allow r, allow command \"osd blacklist\"", r#"'profile rbd, allow command "osd blacklist"'"#),
            ("allow command \"a, b\";allow r", r#"'allow command "a, b", profile rbd'"#),
            ("allow  profile=rbd-read-only", "'allow  profile=rbd-read-only'"),
            ("allow r network 10.0.0.0/8", "'allow r network 10.0.0.0/8, profile rbd'"),
            ("allow r, allow r", "'profile rbd'"),
            ("profile rbd", "'profile rbd'"),
            ("allow rw; allow r", "'allow rw; allow r'"),
        ];
        for (text, mon) in table {
            assert_eq!(
                command(text),
                format!("ceph auth caps client.vms mon {mon} osd 'profile rbd pool=p'"),
                "{text}"
            );
        }
    }

    #[test]
    fn every_service_is_restated_in_order_and_quoted() {
        let all = caps(&[
            ("mds", "allow r"),
            ("mgr", "profile rbd"),
            ("mon", "allow r"),
            ("osd", "allow rw pool=it's"),
            ("x", "y"),
        ]);
        let expected = r"ceph auth caps 'client.a b' mon 'allow r, profile rbd' osd 'allow rw pool=it'\''s' mgr 'profile rbd' mds 'allow r' x y";
        assert_eq!(caps_command("a b", &all), expected);
        assert_eq!(caps_command("v", &caps(&[])), "ceph auth caps client.v mon 'profile rbd'");
    }

    #[test]
    fn further_pools_are_added_to_what_is_there() {
        let with = |osd: &str| {
            let line = caps_command(
                "v",
                &with_pools(&caps(&[("mon", "profile rbd"), ("osd", osd)]), &[("d", Some("n"))]),
            );
            line.split_once(" osd ").unwrap().1.to_owned()
        };
        assert_eq!(with("profile rbd pool=p"), "'profile rbd pool=p, profile rbd pool=d namespace=n'");
        assert_eq!(with("allow r; "), "'allow r, profile rbd pool=d namespace=n'");
        assert_eq!(with(""), "'profile rbd pool=d namespace=n'");
    }

    #[test]
    fn without_known_caps_the_line_names_the_storages_pools_and_says_what_it_replaces() {
        let text = b"rbd: sa\n\tpool p\n\tdata-pool d\n\nrbd: sb\n\tpool p\n\tdata-pool d\n\nrbd: sc\n\tpool q\n\tnamespace n\n";
        let storages = storage::parse("storage.cfg", text).rbd;
        let expected = "ceph auth caps client.v mon 'profile rbd' osd 'profile rbd pool=p, profile rbd pool=d, \
                        profile rbd pool=q namespace=n'";
        assert_eq!(caps_template("v", &storages), expected);
        assert_eq!(pool_grant("a b", Some("c,d")), r#"profile rbd pool="a b" namespace="c,d""#);
        assert!(template_remark("v").contains("`ceph auth get client.v`"));
    }

    #[test]
    fn an_answer_is_read_without_its_key() {
        let answer = br#"[{"entity":"client.v","key":"AQB==","caps":{"mon":"allow r","osd":"profile rbd"}}]"#;
        assert_eq!(parse(answer), Some(caps(&[("mon", "allow r"), ("osd", "profile rbd")])));
        for not in [&b"[]"[..], b"{", b"[{\"key\":\"AQB==\"}]"] {
            assert_eq!(parse(not), None);
        }
    }
}
