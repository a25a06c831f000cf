//! What the cluster's manager does with images: its module rbd_support flattens, migrates and removes them (`ceph rbd task
//! add`), and makes the snapshots of a mirroring schedule. It is a watcher of the image meanwhile and owns its lock, and writes
//! nothing that a guest's client would not: it hands the lock over to whoever asks for it.
//!
//! The monitors know the addresses of its clients (`mgr dump`, `active_clients`; named since 16.2.15). They tell them to
//! client.admin, and not to `profile rbd`. Its tasks are kept in each pool's object `rbd_task`, which every user of the pool may
//! read (`src/pybind/mgr/rbd_support/task.py`, `RBD_TASK_OID`). Seen on 16.2.15.

use crate::ceph::caps::admin;
use crate::ceph::connect::connect;
use crate::ceph::deadline;
use crate::ceph::deadline::Wanted;
use crate::ceph::ffi::Cluster;
use crate::pve::connection::{Connection, arguments};
use crate::rbd::address::bare_address;
use crate::reading::{Failure, Reading};
use crate::sys::command::Command;
use crate::sys::process::{Runner, Status, System};
use crate::sys::root::Root;
use serde::{Deserialize, Serialize};
use std::sync::mpsc::Sender;
use std::time::Duration;

/// The module that is at images.
const MODULE: &str = "rbd_support";
/// Where it keeps its tasks.
const TASKS: &str = "rbd_task";

/// What is known of the manager and one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Manager {
    /// The addresses of its clients that may be at images.
    pub clients: Reading<Vec<String>>,
    /// Its task for the image, in its own words: `Flattening image rbd/vm-516-disk-0`.
    pub task: Reading<Option<String>>,
}

/// The addresses of the manager's clients in a cluster, asked for at most `limit` and a second: by a storage's own connection,
/// and where that one may not know by client.admin's, which a node of a hyperconverged cluster has. Unknown with what the
/// storage's own was told.
pub fn read_clients(root: &Root, connection: &Connection, limit: Duration) -> Reading<Vec<String>> {
    let mut found = None;
    let (own, admin) = (connection.clone(), admin(root));
    let work = move |tell: &Sender<_>, _: &Wanted| {
        let _ = tell.send(clients(&own, admin.as_ref(), limit));
    };
    match deadline::run(limit, work, |clients| found = Some(clients)) {
        Ok(_) => found.unwrap_or_else(|| Err(Failure::late("ask the monitors: mgr dump"))).into(),
        Err(failure) => Reading::Unknown(failure),
    }
}

fn clients(own: &Connection, admin: Option<&Connection>, limit: Duration) -> Result<Vec<String>, Failure> {
    let session = connect(own, limit)?;
    ask(&session).or_else(|failure| {
        let as_admin = || {
            let admin = connect(admin?, limit).ok()?;
            let same = admin.fsid().ok()? == session.fsid().ok()?;
            if same { ask(&admin).ok() } else { None }
        };
        as_admin().ok_or(failure)
    })
}

fn ask(cluster: &Cluster) -> Result<Vec<String>, Failure> {
    let what = || "ask the monitors: mgr dump".to_owned();
    let request = serde_json::json!({ "prefix": "mgr dump", "format": "json" });
    let answer = cluster.mon_command(&request.to_string()).map_err(|errno| Failure::errno(what(), errno))?;
    let clients = parse_clients(&answer);
    let clients = clients.map_err(|error| Failure::new(what(), format!("answer not understood: {error}")))?;
    if clients.is_empty() {
        // A manager tells its clients' addresses with a beacon, some seconds after it has become the active one.
        return Err(Failure::new(what(), format!("the monitors have no address of {MODULE} yet")));
    }
    Ok(clients)
}

#[derive(Deserialize)]
struct Dump {
    /// Not there before Ceph 15.
    #[serde(default)]
    active_clients: Vec<Client>,
}

#[derive(Deserialize)]
struct Client {
    name: Option<String>,
    addrvec: Vec<Address>,
}

#[derive(Deserialize)]
struct Address {
    addr: String,
    nonce: u64,
}

/// The clients of the module in the answer to `mgr dump`, and those of which it is not said whose they are.
fn parse_clients(answer: &[u8]) -> Result<Vec<String>, serde_json::Error> {
    let dump: Dump = serde_json::from_slice(answer)?;
    let ours = |client: &Client| client.name.as_ref().is_none_or(|name| name == MODULE);
    let addresses = dump.active_clients.into_iter().filter(ours).flat_map(|client| client.addrvec);
    Ok(addresses.map(|Address { addr, nonce }| format!("{}/{nonce}", bare_address(&addr))).collect())
}

/// The manager's task for an image of a pool and namespace. Asked by `rados`, for at most `limit`: librados has five calls
/// for it in C.
pub fn read_task(
    connection: &Connection,
    (pool, namespace): (&str, Option<&str>),
    id: &str,
    limit: Duration,
) -> Reading<Option<String>> {
    let command = Command::new("rados")
        .args(arguments(pool, namespace, connection))
        .args(["listomapvals", TASKS])
        .deadline(limit);
    let failed = |message: String| Failure::new(format!("read {TASKS} in {pool}"), message);
    match System.run(&command) {
        Ok(outcome) if outcome.status == Status::Exit(0) => {
            let text = String::from_utf8_lossy(&outcome.stdout);
            tasks(&text)
                .map(|tasks| task_of(&tasks, id))
                .ok_or_else(|| failed("not understood".to_owned()))
                .into()
        }
        // The object itself: no task was ever given here.
        Ok(outcome) if outcome.said().contains(&format!("/{TASKS}: (2)")) => Reading::Known(None),
        Ok(outcome) => Reading::Unknown(failed(outcome.said())),
        Err(error) => Reading::Unknown(failed(format!("{error:#}"))),
    }
}

#[derive(Deserialize)]
struct Task {
    message: String,
    refs: References,
}

#[derive(Deserialize)]
struct References {
    #[serde(default)]
    image_id: String,
}

fn task_of(tasks: &[Task], id: &str) -> Option<String> {
    tasks.iter().find(|task| task.refs.image_id == id).map(|task| task.message.clone())
}

/// The values in what `rados listomapvals` writes: for each the key, `value (242 bytes) :`, and its bytes in hexadecimal with
/// their text beside it, sixteen a line.
fn tasks(text: &str) -> Option<Vec<Task>> {
    let mut values: Vec<(usize, Vec<u8>)> = Vec::new();
    for line in text.lines() {
        let size = line.strip_prefix("value (").and_then(|rest| rest.strip_suffix(" bytes) :"));
        if let Some(size) = size {
            values.push((size.parse().ok()?, Vec::new()));
        } else if let (Some((size, value)), Some((_, bytes))) = (values.last_mut(), row(line)) {
            if value.len() < *size {
                value.extend(bytes);
            }
        }
    }
    let whole = |(size, value): (usize, Vec<u8>)| {
        if value.len() == size { serde_json::from_slice(&value).ok() } else { None }
    };
    values.into_iter().map(whole).collect()
}

/// `000000f0  7d 7d                                             |}}|`: where it is, and the bytes.
fn row(line: &str) -> Option<(usize, Vec<u8>)> {
    let (at, rest) = line.split_once("  ")?;
    let at = (at.len() == 8).then(|| usize::from_str_radix(at, 16).ok())??;
    let bytes: Option<Vec<u8>> =
        rest.split('|').next()?.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    Some((at, bytes?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_modules_clients_are_those_of_the_managers_that_may_be_at_images() {
        let named = br#"{"epoch":4,"active_name":"x","active_clients":[
            {"name":"devicehealth","addrvec":[{"type":"v2","addr":"10.0.0.1:0","nonce":1}]},
            {"name":"rbd_support","addrvec":[{"type":"v2","addr":"10.0.0.1:0","nonce":3257005792}]}]}"#;
        assert_eq!(parse_clients(named).unwrap(), ["10.0.0.1:0/3257005792"]);
        let older = br#"{"active_clients":[{"addrvec":[{"type":"v2","addr":"10.0.0.1:0","nonce":1}]}]}"#;
        assert_eq!(parse_clients(older).unwrap(), ["10.0.0.1:0/1"]);
        assert_eq!(parse_clients(b"{}").unwrap(), [""; 0]);
        assert!(parse_clients(b"no").is_err());
    }

    #[test]
    fn a_task_is_read_from_what_rados_lists() {
        let json =
            r#"{"message": "Flattening image rbd/a", "refs": {"action": "flatten", "image_id": "10ab"}}"#;
        let rows = json.as_bytes().chunks(16).enumerate().map(|(n, bytes)| {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x} ")).collect();
            format!("{:08x}  {hex:<48} |{}|\n", n * 16, String::from_utf8_lossy(bytes))
        });
        let size = json.len();
        let text =
            format!("0000000000000001\nvalue ({size} bytes) :\n{}{size:08x}\n\n", rows.collect::<String>());
        let tasks = tasks(&text).unwrap();
        assert_eq!(task_of(&tasks, "10ab").as_deref(), Some("Flattening image rbd/a"));
        assert_eq!(task_of(&tasks, "10a"), None);
        assert!(super::tasks("").unwrap().is_empty());
        assert!(super::tasks("1\nvalue (90 bytes) :\n00000000  7b 22 |{\"|\n").is_none(), "cut short");
    }
}
