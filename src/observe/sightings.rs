//! Since when this node has seen a client without any watch. Kept for all runs, for a while, so that of fifty guests that
//! start after a crash only the first has to wait for the second look.

use crate::sys::private_dir::{PrivateDir, RUN, file_name};
use crate::sys::root::Root;
use anyhow::Result;
use nix::fcntl::OFlag;
use std::io::{Read, Write};
use std::time::Duration;

/// For how long a first look counts. A client that had lost its watch an hour ago may have had it back since.
const KEPT: Duration = Duration::from_secs(15 * 60);

/// How long ago a client was first seen without a watch, when `now` (since the boot) the images were looked at again; zero
/// if this is the first time, or if it is not known. `watching` forgets it: the client lives.
pub fn unwatched_for(root: &Root, client: &[String; 3], now: Duration, watching: bool) -> Duration {
    let file = file_name(&[&["unwatched".to_owned()], &client[..]].concat());
    let since = match watching {
        true => {
            PrivateDir::create(&root.path(RUN)).and_then(|directory| directory.remove(&file)).map(|()| now)
        }
        false => since(root, &file, now),
    };
    since.map_or(Duration::ZERO, |since| now.saturating_sub(since))
}

/// When it was first seen so; noted if it was not.
fn since(root: &Root, name: &str, now: Duration) -> Result<Duration> {
    let directory = PrivateDir::create(&root.path(RUN))?;
    let mut text = String::new();
    if let Some(file) = directory.try_file(name, OFlag::O_RDONLY)? {
        file.take(64).read_to_string(&mut text)?;
    }
    // Cut short by a crash or a full disk, in the future, or too long ago: as if it had not been seen.
    if let Some(since) = text.strip_suffix('\n').and_then(|text| text.parse().ok()) {
        let since = Duration::from_millis(since);
        if since <= now && now - since <= KEPT {
            return Ok(since);
        }
    }
    let mut file = directory.file(name, OFlag::O_CREAT | OFlag::O_WRONLY | OFlag::O_TRUNC)?;
    writeln!(file, "{}", crate::sys::time::since_boot().max(now).as_millis())?;
    Ok(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_look_counts_and_a_watch_makes_it_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("run")).unwrap();
        let root = Root::new(directory.path());
        let client = ["f", "client.4", "10.0.0.1:0/1"].map(str::to_owned);
        let other = ["f", "client.5", "10.0.0.1:0/2"].map(str::to_owned);
        let far = |seconds| crate::sys::time::since_boot() + Duration::from_secs(seconds);
        let seconds = |client: &_, now, watching| unwatched_for(&root, client, now, watching).as_secs();
        assert_eq!(seconds(&client, far(0), false), 0);
        assert!((98..=100).contains(&seconds(&client, far(100), false)));
        assert_eq!(seconds(&other, far(100), false), 0);
        assert_eq!(seconds(&client, far(101), true), 0);
        assert_eq!(seconds(&client, far(200), false), 0);
        assert_eq!(seconds(&client, far(200) + KEPT, false), 0, "it may have been back meanwhile");
        let file = root.path(format!("{RUN}/{}", file_name(&[&["unwatched".into()], &client[..]].concat())));
        std::fs::write(file, "12").unwrap();
        assert_eq!(seconds(&client, far(300), false), 0, "a note that was cut short is none");
    }
}
