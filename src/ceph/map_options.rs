//! What `rbd map` takes by default for an image: the option `rbd_default_map_options`, and what its release adds by
//! itself ([`crate::kernel::client`]). Reads only.
//!
//! `rbd map` opens the image and takes the option as it holds there (`execute_map` in Ceph's
//! `src/tools/rbd/action/Kernel.cc`): the image's own value, else its pool's, else what ceph.conf and the monitors say.
//! The strongest holds whole; nothing is merged. Run so on 16.2.15 and 20.2.4.

use crate::ceph::connect::{connect, place};
use crate::ceph::deadline;
use crate::ceph::deadline::Wanted;
use crate::ceph::defaults::own_value;
use crate::ceph::ffi::{Cluster, Pool};
use crate::ceph::objects::header;
use crate::pve::connection::Connection;
use crate::rbd::spec::Spec;
use crate::reading::{Errno, Failure, Reading, error_text};
use crate::sys::command::Command;
use crate::sys::process::{Outcome, Runner, System};
use nix::libc::ETIMEDOUT;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

/// The option's name.
const OPTION: &str = "rbd_default_map_options";
/// How long `rbd --version` may take; it asks nobody.
const PATIENCE: Duration = Duration::from_secs(10);

/// Reads the option for each image, in their order; each comes with its id, empty for format 1. Opens a connection of
/// its own and returns by `deadline` and at most a second: meant for when a kernel client is dead.
pub fn read_map_options(
    connection: &Connection,
    images: &[(Spec, String)],
    deadline: Duration,
) -> Vec<Reading<String>> {
    let late = || Failure::errno(format!("read {OPTION} through {}", place(connection)), ETIMEDOUT);
    let mut all = vec![Reading::Unknown(late()); images.len()];
    let job = Job { connection: connection.clone(), images: images.to_vec(), deadline };
    let hear = |(index, reading): (usize, Reading<String>)| {
        if let Some(place) = all.get_mut(index) {
            *place = reading;
        }
    };
    if let Err(failure) = deadline::run(deadline, move |tell, wanted| job.run(tell, wanted), hear) {
        all.fill(Reading::Unknown(failure));
    }
    all
}

struct Job {
    connection: Connection,
    images: Vec<(Spec, String)>,
    deadline: Duration,
}

impl Job {
    fn run(&self, tell: &Sender<(usize, Reading<String>)>, wanted: &Wanted) {
        let session = connect(&self.connection, self.deadline);
        let mut pools = HashMap::new();
        for (index, (spec, id)) in self.images.iter().enumerate().take_while(|_| wanted.still()) {
            let reading = match &session {
                Ok(session) => of_image(session, &mut pools, spec, id).into(),
                Err(failure) => Reading::Unknown(failure.clone()),
            };
            let _ = tell.send((index, reading));
        }
    }
}

/// The pools' own values that were looked for.
type Pools = HashMap<String, Result<Option<String>, Errno>>;

fn of_image(session: &Arc<Cluster>, pools: &mut Pools, spec: &Spec, id: &str) -> Result<String, Failure> {
    let failure = |errno| Failure::errno(format!("read {OPTION} for {spec}"), errno);
    // An image of format 1 has no place for values of its own.
    if !id.is_empty() {
        let pool = session.pool(&spec.pool, spec.namespace.as_deref()).map_err(failure)?;
        if let Some(own) = own_value(&pool, &header(id), OPTION).map_err(failure)? {
            return Ok(own);
        }
    }
    let of_pool = |pool: Arc<Pool>| own_value(&pool, "rbd_info", OPTION);
    let value =
        pools.entry(spec.pool.clone()).or_insert_with(|| session.pool(&spec.pool, None).and_then(of_pool));
    match value {
        Ok(Some(value)) => Ok(value.clone()),
        Ok(None) => session.option(OPTION).map_err(failure),
        Err(errno) => Err(failure(*errno)),
    }
}

/// The release of the `rbd` that maps on this node, `16.2.15`.
pub fn read_release() -> Reading<String> {
    let failure = |message: String| Failure::new("ask rbd for its release", message);
    let asked = System.run(&Command::new("rbd").arg("--version").deadline(PATIENCE)).and_then(Outcome::check);
    let told = asked.map_err(|error| failure(error_text(&error))).and_then(|outcome| {
        let text = String::from_utf8_lossy(&outcome.stdout).into_owned();
        release(&text).ok_or_else(|| failure(format!("answer not understood: {}", text.trim())))
    });
    told.into()
}

/// The release in `ceph version 16.2.15 (618f44…) pacific (stable)`.
fn release(text: &str) -> Option<String> {
    let release = text.strip_prefix("ceph version ")?.split_whitespace().next()?;
    release.starts_with(|c: char| c.is_ascii_digit()).then(|| release.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_the_third_word() {
        for (text, expected) in [
            (
                "ceph version 16.2.15 (618f440892089921c3e944a991122ddc44e60516) pacific (stable)\n",
                Some("16.2.15"),
            ),
            ("ceph version 20.2.4 (7f79) tentacle (stable - RelWithDebInfo)\n", Some("20.2.4")),
            ("ceph version Development (no_version) squid (dev)\n", None),
            ("rbd: unknown option\n", None),
            ("", None),
        ] {
            assert_eq!(release(text).as_deref(), expected, "{text}");
        }
    }
}
