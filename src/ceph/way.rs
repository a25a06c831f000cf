//! The way to a storage's monitors as far as this node gets on it without being let in: its ceph.conf, who names the monitors, whether
//! their names resolve, and what answers at their addresses.
//!
//! Looked at only where a connection failed. Names are taken apart as Ceph does it (`MonMap::build_initial`, `resolve_addrs` in
//! `src/include/addr_parsing.c`; run on 16.2.15): a list of nothing but addresses is taken as it is; in any other each entry
//! is asked of the resolver, and one that does not resolve refuses the whole list.

use crate::ceph::conf::{first_junk, settings, strongest};
use crate::ceph::ffi;
use crate::pve::connection::Connection;
use crate::reading::{Failure, Origin, Reading};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

/// How far this node gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Way {
    /// The ceph.conf that PVE hands to `rbd` and QEMU, or where that is none Ceph's default one.
    pub conf: Reading<ConfFile>,
    /// Who names the monitors; `None`: nobody does.
    pub named: Option<Named>,
    /// The monitors' hosts, in the order in which they are named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<Host>,
    /// What answers at their addresses; only looked for where a connection got no answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub knocks: Vec<Knock>,
}

/// A ceph.conf that was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ConfFile {
    /// The file's path, as PVE hands it on.
    pub path: String,
    /// The first line that Ceph does not read past, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub junk: Option<usize>,
}

/// Who names the monitors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Named {
    /// `monhost` of storage.cfg, or a line of a ceph.conf: `/etc/pve/ceph.conf, line 4`.
    pub by: String,
    /// What is said there.
    pub text: String,
}

/// A monitor's host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Host {
    /// Its address or name.
    pub name: String,
    /// Its port, where one is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The protocol that is asked of it.
    pub protocol: Protocol,
    /// What the resolver says of it.
    pub found: Resolved,
}

/// What the resolver says of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Resolved {
    /// The addresses that the name resolves to here.
    At(Vec<IpAddr>),
    /// There is no such name, in the resolver's words.
    Unknown(String),
    /// Nobody can tell now: the name service did not answer.
    NotNow(String),
}

/// A protocol between Ceph's programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// Whichever is spoken.
    Any,
    /// msgr1, at port 6789.
    V1,
    /// msgr2, at port 3300.
    V2,
}

/// What came of connecting to a monitor's address by TCP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Knock {
    /// `10.0.0.1:3300`.
    pub address: SocketAddr,
    /// The protocol that is asked there.
    pub asked: Protocol,
    /// What came back when it was spoken to.
    pub answer: Answer,
}

/// What answers at an address. Each of Ceph's daemons says at once which protocol it speaks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// A daemon of Ceph's that speaks this protocol.
    Ceph(Protocol),
    /// Something that is none of Ceph's.
    Other,
    /// The connection was taken, and nothing was said.
    Silence,
    /// Nobody took the connection.
    Failed(Failure),
}

/// Monitors that are looked at; nobody has more.
const MOST: usize = 16;
/// The longest name that a resolver takes (RFC 1035).
const LONGEST: usize = 255;
/// How long the resolver is waited for, then whoever is at an address, then its first word.
const PATIENCE: Duration = Duration::from_millis(700);
/// All of that.
const LOOKING: Duration = PATIENCE.saturating_mul(3);
/// Ports of a monitor (`CEPH_MON_PORT_LEGACY`, `CEPH_MON_PORT_IANA`).
const PORT_V1: u16 = 6789;
/// See above.
const PORT_V2: u16 = 3300;

/// Reads a cluster within `limit`; where that has `failed`, also how far this node gets on its way there. A cluster that does not answer
/// is knocked at before its time is over, so that this takes no further time; where there is too little of it, it is not.
pub fn beside<T>(
    connection: &Connection,
    limit: Duration,
    read: impl FnOnce() -> T,
    failed: impl FnOnce(&T) -> Option<&Failure>,
) -> (T, Option<Way>) {
    let (done, late) = channel::<()>();
    let wait = limit.saturating_sub(LOOKING);
    thread::scope(|scope| {
        let knock = move || match late.recv_timeout(wait) {
            Err(RecvTimeoutError::Timeout) if wait >= LOOKING => Some(look(connection, true)),
            Ok(()) | Err(_) => None,
        };
        let knocking = thread::Builder::new().name("way".to_owned()).spawn_scoped(scope, knock);
        let result = read();
        drop(done);
        let knocked = knocking.ok().and_then(|thread| thread.join().ok()).flatten();
        // What failed on our own side, or for want of a library, never came to any of this.
        let on_the_way = |failure: &&Failure| matches!(failure.origin, Origin::Outside | Origin::Conf);
        let failed = failed(&result).filter(on_the_way).is_some();
        let way = failed.then(|| knocked.unwrap_or_else(|| look(connection, false)));
        (result, way)
    })
}

/// Looks at the way; `knock`: also at what answers at the monitors' addresses. It takes [`LOOKING`] at most.
fn look(connection: &Connection, knock: bool) -> Way {
    let path = connection.conf.clone().unwrap_or_else(|| DEFAULT_CONF.to_owned());
    let text = std::fs::read_to_string(&path).or_else(|error| match error.kind() {
        ErrorKind::InvalidData => {
            std::fs::read(&path).map(|text| String::from_utf8_lossy(&text).into_owned())
        }
        _ => Err(error),
    });
    let named = named(connection, &path, text.as_deref().unwrap_or_default());
    let conf = match text {
        Ok(text) => Reading::Known(ConfFile { junk: first_junk(&text), path }),
        Err(error) => Reading::Unknown(Failure::path("read", path, &error)),
    };
    let hosts = named.as_ref().map(|named| resolve(monitors(&named.text))).unwrap_or_default();
    let knocks = if knock { knock_at(&hosts) } else { Vec::new() };
    Way { conf, named, hosts, knocks }
}

impl Way {
    /// The ceph.conf was read, or is surely not there.
    pub fn is_read(&self) -> bool {
        self.conf.failure().is_none_or(|failure| failure.errno == Some(nix::libc::ENOENT))
    }
}

/// Where Ceph looks for a ceph.conf that it is not told of; the first of its places.
const DEFAULT_CONF: &str = "/etc/ceph/ceph.conf";

/// Who names the monitors: `-m` goes before any file.
fn named(connection: &Connection, path: &str, text: &str) -> Option<Named> {
    if let Some(text) = &connection.mon_host {
        return Some(Named { by: "monhost in storage.cfg".to_owned(), text: text.clone() });
    }
    let all = settings(text, "mon_host");
    let setting = strongest(&all, &connection.user)?;
    let by = format!("{path}, line {}", setting.line);
    (!setting.value.trim().is_empty()).then(|| Named { by, text: setting.value.clone() })
}

/// A monitor as a list names it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Monitor {
    host: String,
    port: Option<u16>,
    protocol: Protocol,
}

/// The monitors of a list.
fn monitors(text: &str) -> Vec<Monitor> {
    let addresses: Option<Vec<Vec<Monitor>>> = entries(text).into_iter().map(address_entry).collect();
    let mut all: Vec<Monitor> = match addresses {
        Some(addresses) => addresses.into_iter().flatten().collect(),
        None => text.split([',', ';', ' ', '\t']).filter(|token| !token.is_empty()).map(name_entry).collect(),
    };
    all.truncate(MOST);
    all
}

/// The entries of a list; what is in brackets is one.
fn entries(text: &str) -> Vec<&str> {
    let mut depth = 0_usize;
    let separates = |c: char| {
        match c {
            '[' => depth += 1,
            ']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth == 0 && (matches!(c, ',' | ';') || c.is_ascii_whitespace())
    };
    text.split(separates).filter(|entry| !entry.is_empty()).collect()
}

/// `10.0.0.1`, `[fd00::1]:6789`, `v2:10.0.0.1:3300/0`, or several of these in brackets.
fn address_entry(entry: &str) -> Option<Vec<Monitor>> {
    if let Some(one) = address(entry) {
        return Some(vec![one]);
    }
    let group = entry.strip_prefix('[')?.strip_suffix(']')?;
    entries(group).into_iter().map(address).collect()
}

fn address(text: &str) -> Option<Monitor> {
    let (protocol, rest) = match text.split_at_checked(3) {
        Some(("v1:", rest)) => (Protocol::V1, rest),
        Some(("v2:", rest)) => (Protocol::V2, rest),
        _ => (Protocol::Any, text.strip_prefix("any:").unwrap_or(text)),
    };
    let rest = rest.split('/').next().unwrap_or(rest);
    let bare = rest.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(rest);
    let (host, port) = match (bare.parse::<IpAddr>(), rest.parse::<SocketAddr>()) {
        (Ok(host), _) => (host, None),
        (_, Ok(address)) => (address.ip(), Some(address.port()).filter(|port| *port != 0)),
        _ => return None,
    };
    Some(Monitor { host: host.to_string(), port, protocol })
}

/// An entry as `resolve_addrs` takes it apart: only a name or an address, and a port behind the one colon or the bracket.
fn name_entry(token: &str) -> Monitor {
    let (host, port) = match token.split_once("]:") {
        Some((host, port)) => (host.strip_prefix('[').unwrap_or(host), Some(port)),
        None => match token.split_once(':') {
            Some((host, port)) if !port.contains(':') => (host, Some(port)),
            _ => (token.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(token), None),
        },
    };
    let port = port.and_then(|port| port.parse().ok());
    Monitor { host: host.chars().take(LONGEST).collect(), port, protocol: Protocol::Any }
}

/// A list of addresses in the form that PVE's `monhost` takes: hosts, with a port where it is none of Ceph's own, and nothing in
/// brackets but IPv6. `None` where the list is none of addresses.
pub fn as_pve_takes(text: &str) -> Option<String> {
    let addresses: Option<Vec<Vec<Monitor>>> = entries(text).into_iter().map(address_entry).collect();
    let mut hosts: Vec<String> = Vec::new();
    for Monitor { host, port, .. } in addresses?.into_iter().flatten().take(MOST) {
        let host = match port.filter(|port| ![PORT_V1, PORT_V2].contains(port)) {
            Some(port) if host.contains(':') => format!("[{host}]:{port}"),
            Some(port) => format!("{host}:{port}"),
            None => host,
        };
        if !hosts.contains(&host) {
            hosts.push(host);
        }
    }
    (!hosts.is_empty()).then(|| hosts.join(","))
}

/// An address, or where the resolver's answer will come.
type Looked = Result<IpAddr, Receiver<Resolved>>;

/// Asks the resolver, of all names at once.
fn resolve(monitors: Vec<Monitor>) -> Vec<Host> {
    let asked: Vec<(Monitor, Looked)> = monitors
        .into_iter()
        .map(|monitor| {
            let found = monitor.host.parse().map_err(|_| ask_for(&monitor.host));
            (monitor, found)
        })
        .collect();
    let until = Instant::now() + PATIENCE;
    let late = |_| Resolved::NotNow("no answer yet".to_owned());
    let host = |(Monitor { host, port, protocol }, found): (Monitor, Looked)| {
        let answer = |told: Receiver<Resolved>| {
            told.recv_timeout(until.saturating_duration_since(Instant::now())).unwrap_or_else(late)
        };
        let found = found.map_or_else(answer, |address| Resolved::At(vec![address]));
        Host { name: host, port, protocol, found }
    };
    asked.into_iter().map(host).collect()
}

/// Asks on a thread that is left behind where the name service hangs; without a thread nothing is told, which is not known.
fn ask_for(name: &str) -> Receiver<Resolved> {
    let (tell, told) = channel();
    let name = name.to_owned();
    let _ = thread::Builder::new().name("resolver".to_owned()).spawn(move || tell.send(lookup(&name)));
    told
}

fn lookup(name: &str) -> Resolved {
    match ffi::resolve(name) {
        Ok(addresses) => Resolved::At(addresses),
        Err(failed) if failed.for_good => Resolved::Unknown(failed.words),
        Err(failed) => Resolved::NotNow(failed.words),
    }
}

impl Host {
    /// Where its monitor is asked, and in which protocol (`MonMap::_add_ambiguous_addr`).
    pub fn ports(&self) -> Vec<(u16, Protocol)> {
        match (self.protocol, self.port) {
            (Protocol::Any, None) => vec![(PORT_V2, Protocol::V2), (PORT_V1, Protocol::V1)],
            (Protocol::Any, Some(PORT_V2)) => vec![(PORT_V2, Protocol::V2)],
            (Protocol::Any, Some(PORT_V1)) => vec![(PORT_V1, Protocol::V1)],
            (Protocol::V1, None) => vec![(PORT_V1, Protocol::V1)],
            (Protocol::V2, None) => vec![(PORT_V2, Protocol::V2)],
            (protocol, Some(port)) => vec![(port, protocol)],
        }
    }
}

/// Knocks at all addresses at once.
fn knock_at(hosts: &[Host]) -> Vec<Knock> {
    let doors = hosts.iter().flat_map(|host| {
        let at = match &host.found {
            Resolved::At(addresses) => addresses.as_slice(),
            Resolved::Unknown(_) | Resolved::NotNow(_) => &[],
        };
        at.iter().flat_map(|ip| {
            host.ports().into_iter().map(|(port, protocol)| (SocketAddr::new(*ip, port), protocol))
        })
    });
    let mut doors: Vec<(SocketAddr, Protocol)> = doors.collect();
    doors.dedup();
    doors.truncate(2 * MOST);
    thread::scope(|scope| {
        let knock = |(address, asked)| {
            let begun = thread::Builder::new().spawn_scoped(scope, move || answer_at(address));
            begun.ok().map(|thread| (address, asked, thread))
        };
        let threads: Vec<_> = doors.into_iter().filter_map(knock).collect();
        let answered = threads
            .into_iter()
            .filter_map(|(address, asked, thread)| Some((address, asked, thread.join().ok()?)));
        answered.map(|(address, asked, answer)| Knock { address, asked, answer }).collect()
    })
}

/// Takes the first word of whoever answers, and says nothing itself.
fn answer_at(address: SocketAddr) -> Answer {
    let failed = |error: std::io::Error| {
        let what = format!("connect to {address}");
        // The standard library's own limit of time has no errno.
        Answer::Failed(match error.raw_os_error() {
            None if error.kind() == ErrorKind::TimedOut => Failure::errno(what, nix::libc::ETIMEDOUT),
            _ => Failure::io(what, &error),
        })
    };
    let mut stream = match TcpStream::connect_timeout(&address, PATIENCE) {
        Ok(stream) => stream,
        Err(error) => return failed(error),
    };
    let _ = stream.set_read_timeout(Some(PATIENCE));
    let mut banner = [0_u8; 8];
    let mut read = 0;
    while read < banner.len() {
        match stream.read(&mut banner[read..]) {
            Ok(0) | Err(_) => break,
            Ok(more) => read += more,
        }
    }
    spoken(&banner[..read])
}

/// `CEPH_BANNER` and `CEPH_BANNER_V2_PREFIX` of `src/include/msgr.h`.
fn spoken(banner: &[u8]) -> Answer {
    match banner {
        b"" => Answer::Silence,
        b"ceph v2\n" => Answer::Ceph(Protocol::V2),
        told if told.starts_with(b"ceph v0") => Answer::Ceph(Protocol::V1),
        _ => Answer::Other,
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Any => "msgr1 or msgr2",
            Self::V1 => "msgr1 (v1)",
            Self::V2 => "msgr2 (v2)",
        })
    }
}

impl Knock {
    /// A daemon of Ceph's answers, in the protocol that is asked.
    pub fn is_right(&self) -> bool {
        matches!(self.answer, Answer::Ceph(spoken) if self.asked == Protocol::Any || spoken == self.asked)
    }
}

impl fmt::Display for Knock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, asked, answer } = self;
        match answer {
            Answer::Ceph(spoken) if !self.is_right() => {
                write!(f, "{address} speaks {spoken} and is asked in {asked}")
            }
            Answer::Ceph(spoken) => write!(f, "{address} takes the connection and speaks {spoken}"),
            Answer::Other => write!(f, "{address} is no port of Ceph's: something else listens there"),
            Answer::Silence => write!(f, "{address} takes the connection and says nothing"),
            Answer::Failed(failure) => match failure.errno {
                Some(errno) => write!(f, "{address}: error {errno} ({})", failure.message),
                None => write!(f, "{address}: {}", failure.message),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Vec<String> {
        let shown = |monitor: &Monitor| {
            let port = monitor.port.map(|port| format!(" {port}")).unwrap_or_default();
            format!("{}{port} {:?}", monitor.host, monitor.protocol)
        };
        monitors(text).iter().map(shown).collect()
    }

    #[test]
    fn a_list_of_addresses_is_taken_as_ceph_takes_it() {
        for (text, expected) in [
            ("10.0.0.1", &["10.0.0.1 Any"][..]),
            ("10.0.0.1:3300, 10.0.0.2;10.0.0.3", &["10.0.0.1 3300 Any", "10.0.0.2 Any", "10.0.0.3 Any"]),
            ("[v2:10.0.0.1:3300/0,v1:10.0.0.1:6789/0]", &["10.0.0.1 3300 V2", "10.0.0.1 6789 V1"]),
            ("[v2:10.0.0.1] v1:10.0.0.2", &["10.0.0.1 V2", "10.0.0.2 V1"]),
            ("[fd00::1]:6789,[fd00::2],fd00::3", &["fd00::1 6789 Any", "fd00::2 Any", "fd00::3 Any"]),
            ("[v2:[fd00::1]:3300,v1:[fd00::1]:6789]", &["fd00::1 3300 V2", "fd00::1 6789 V1"]),
            ("", &[]),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
    }

    /// `rbd` 16.2.15 says of the last: `server name not found: [v2 …`.
    #[test]
    fn one_name_in_a_list_makes_each_entry_a_name() {
        assert_eq!(shown("mon-a, 10.0.0.1:6789"), ["mon-a Any", "10.0.0.1 6789 Any"]);
        assert_eq!(shown("mon-a.example:3300"), ["mon-a.example 3300 Any"]);
        assert_eq!(shown("[v2:mon-a:3300,v1:mon-a:6789]"), ["[v2:mon-a:3300 Any", "v1:mon-a:6789] Any"]);
        assert_eq!(shown(&"a".repeat(1 << 20))[0].len(), LONGEST + " Any".len());
        assert_eq!(shown(&"a,".repeat(1000)).len(), MOST);
    }

    #[test]
    fn a_port_says_which_protocol_is_asked() {
        let ports = |text: &str| {
            let Monitor { host, port, protocol } = monitors(text).remove(0);
            Host { name: host, port, protocol, found: Resolved::At(Vec::new()) }.ports()
        };
        assert_eq!(ports("10.0.0.1"), [(3300, Protocol::V2), (6789, Protocol::V1)]);
        assert_eq!(ports("10.0.0.1:3300"), [(3300, Protocol::V2)]);
        assert_eq!(ports("10.0.0.1:6789"), [(6789, Protocol::V1)]);
        assert_eq!(ports("10.0.0.1:7000"), [(7000, Protocol::Any)]);
        assert_eq!(ports("[v1:10.0.0.1]"), [(6789, Protocol::V1)]);
        assert_eq!(ports("[v2:10.0.0.1:6789]"), [(6789, Protocol::V2)]);
    }

    #[test]
    fn what_pve_takes_is_hosts_and_no_protocols() {
        let list = |text| as_pve_takes(text).unwrap_or_default();
        assert_eq!(list("[v2:10.0.0.1:3300/0,v1:10.0.0.1:6789/0],[v2:10.0.0.2:3300/0]"), "10.0.0.1,10.0.0.2");
        assert_eq!(list("[v2:127.0.0.1:25980,v1:127.0.0.1:25981]"), "127.0.0.1:25980,127.0.0.1:25981");
        assert_eq!(list("[v2:[fd00::1]:3300,v1:[fd00::1]:7000]"), "fd00::1,[fd00::1]:7000");
        assert_eq!((list("mon_a"), list("")), (String::new(), String::new()));
    }

    #[test]
    fn a_daemon_says_at_once_what_it_speaks() {
        for (banner, expected) in [
            (&b"ceph v2\n"[..], Answer::Ceph(Protocol::V2)),
            (b"ceph v02", Answer::Ceph(Protocol::V1)),
            (b"SSH-2.0-", Answer::Other),
            (b"ceph", Answer::Other),
            (b"", Answer::Silence),
        ] {
            assert_eq!(spoken(banner), expected);
        }
    }
}
