//! `/sys/bus/rbd`: what krbd can map and has mapped. Linux `Documentation/ABI/testing/sysfs-bus-rbd`.
//!
//! A device appears there only once its image's lock is taken (`do_rbd_add` adds it last), so a map that still waits
//! for a lock is not seen here.

use super::Mapping;
use crate::rbd::features::Features;
use crate::reading::{Failure, Reading};
use crate::sys::root::Root;
use nix::libc::{ENODEV, ENOENT};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

/// How often a device is read again that vanishes while it is read.
const TRIES: u32 = 5;
/// How long an unmap takes to take the rest of a device away.
const PAUSE: Duration = Duration::from_millis(10);

/// `/sys/bus/rbd/supported_features`; `None` while the module is not loaded (or is older than Linux 4.11).
pub fn supported_features(root: &Root) -> Result<Option<Features>, Failure> {
    const FILE: &str = "/sys/bus/rbd/supported_features";
    match read(&root.path(FILE)) {
        Ok(text) => match features(&text) {
            Some(features) => Ok(Some(features)),
            None => Err(Failure::new(format!("read {FILE}"), format!("`{text}` is no set of features"))),
        },
        Err(e) if absent(&e) => Ok(None),
        Err(e) => Err(Failure::path("read", FILE, &e)),
    }
}

/// Every mapping, by number. Without the module there is none; without sysfs nothing is known.
pub fn mappings(root: &Root) -> Reading<Arc<Vec<Mapping>>> {
    read_mappings(root).map(Arc::new).into()
}

fn read_mappings(root: &Root) -> Result<Vec<Mapping>, Failure> {
    let devices = root.path("/sys/bus/rbd/devices");
    let entries = match fs::read_dir(&devices) {
        Ok(entries) => entries,
        Err(e) if absent(&e) && root.path("/sys/bus").is_dir() => return Ok(Vec::new()),
        Err(e) => return Err(Failure::path("read", &devices, &e)),
    };
    let mut mappings = Vec::new();
    for entry in entries {
        let name = entry.map_err(|e| Failure::path("read", &devices, &e))?.file_name();
        if let Some(id) = name.to_str().and_then(|name| name.parse().ok()) {
            mappings.extend(mapping(root, &devices.join(name), id)?);
        }
    }
    mappings.sort_by_key(|mapping| mapping.id);
    Ok(mappings)
}

/// One mapping; `None` if it went away while it was read.
fn mapping(root: &Root, device: &Path, id: u32) -> Result<Option<Mapping>, Failure> {
    let mut last = None;
    for _ in 0..TRIES {
        match try_mapping(root, device, id) {
            Ok(mapping) => return Ok(Some(mapping)),
            Err((file, e)) if absent(&e) => last = Some(Failure::path("read", &file, &e)),
            Err((file, e)) => return Err(Failure::path("read", &file, &e)),
        }
        if !device.exists() {
            return Ok(None);
        }
        std::thread::sleep(PAUSE);
    }
    last.map_or(Ok(None), Err)
}

fn try_mapping(root: &Root, device: &Path, id: u32) -> Result<Mapping, (PathBuf, io::Error)> {
    let get = |name: &str| read(&device.join(name)).map_err(|e| (device.join(name), e));
    let optional = |name: &str| read(&device.join(name)).ok();
    let client = get("client_id")?;
    let client = client_number(&client).ok_or_else(|| {
        (device.join("client_id"), io::Error::new(io::ErrorKind::InvalidData, format!("`{client}`")))
    })?;
    Ok(Mapping {
        id,
        pool: get("pool")?,
        // Namespaces are known since Linux 4.20.
        namespace: optional("pool_ns").filter(|namespace| !namespace.is_empty()),
        image: get("name")?,
        snapshot: Some(get("current_snap")?).filter(|snapshot| snapshot != "-"),
        fsid: get("cluster_fsid")?,
        client_address: get("client_addr")?,
        client,
        image_id: optional("image_id"),
        options: optional("config_info").and_then(|info| options(&info)),
        size: optional("size").and_then(|size| size.parse().ok()),
        features: optional("features").and_then(|text| features(&text)),
        read_only: read(&root.path(format!("/sys/block/rbd{id}/ro"))).ok().map(|ro| ro != "0"),
        made_at: made_at(&root.path(format!("/dev/rbd{id}"))),
    })
}

/// One mapping as it is now; `None` if it is not mapped any more.
pub fn mapping_now(root: &Root, id: u32) -> Reading<Option<Mapping>> {
    mapping(root, &root.path(format!("/sys/bus/rbd/devices/{id}")), id).into()
}

/// devtmpfs makes a device's file together with the device, and keeps the time.
fn made_at(file: &Path) -> Option<u64> {
    let made = fs::metadata(file).and_then(|file| file.created()).ok()?;
    made.duration_since(UNIX_EPOCH).ok().map(|time| time.as_secs())
}

/// `0x1bf`, also with leading zeros.
fn features(text: &str) -> Option<Features> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok().map(Features)
}

/// The number of `client4324`, also written `client.4324`.
fn client_number(text: &str) -> Option<u64> {
    text.strip_prefix("client")?.trim_start_matches('.').parse().ok()
}

/// The options of the line that mapped the image (`<mons> <options> <pool> <image> <snap>`), never with a key: `rbd`
/// puts `secret=…` there where the kernel has no keyring.
fn options(config_info: &str) -> Option<String> {
    let options = config_info.split(' ').nth(1)?.split(',');
    let shown = options.map(|option| if option.starts_with("secret=") { "secret=…" } else { option });
    Some(shown.collect::<Vec<_>>().join(","))
}

/// A file's text without its line end.
fn read(file: &Path) -> io::Result<String> {
    let text = String::from_utf8_lossy(&fs::read(file)?).into_owned();
    Ok(text.strip_suffix('\n').map(String::from).unwrap_or(text))
}

/// The file or its device is gone.
fn absent(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(ENOENT | ENODEV))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn write(root: &Root, file: &str, text: &str) {
        let file = root.path(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }

    fn root() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        fs::create_dir_all(root.path("/sys/bus")).unwrap();
        (dir, root)
    }

    /// A device as Linux 6.x shows it, its directory linked as there.
    fn device(root: &Root, id: u32, changes: &[(&str, &str)]) {
        let attributes = [
            ("pool", "xds_kvm_dev_data\n"),
            ("pool_ns", "\n"),
            ("name", "vm-516-disk-0\n"),
            ("current_snap", "-\n"),
            ("cluster_fsid", "c0c55799-7178-41aa-804e-6e900331f900\n"),
            ("client_addr", "10.77.0.2:0/492268007\n"),
            ("client_id", "client4324\n"),
            ("config_info", "10.0.0.1:6789 name=admin,key=client.admin,rxbounce pool image -\n"),
            ("image_id", "101e4cccf697\n"),
            ("size", "34359738368\n"),
            ("features", "0x000000000000003d\n"),
        ];
        for (name, text) in attributes.iter().chain(changes) {
            write(root, &format!("/sys/devices/rbd/{id}/{name}"), text);
        }
        fs::create_dir_all(root.path("/sys/bus/rbd/devices")).unwrap();
        let link = root.path(format!("/sys/bus/rbd/devices/{id}"));
        symlink(format!("../../../devices/rbd/{id}"), link).unwrap();
    }

    fn known(root: &Root) -> Vec<Mapping> {
        mappings(root).known().unwrap().to_vec()
    }

    #[test]
    fn a_mapping_is_read_with_all_that_the_kernel_tells() {
        let (_dir, root) = root();
        device(&root, 3, &[]);
        write(&root, "/sys/block/rbd3/ro", "0\n");
        let expected = Mapping {
            id: 3,
            pool: "xds_kvm_dev_data".into(),
            namespace: None,
            image: "vm-516-disk-0".into(),
            snapshot: None,
            fsid: "c0c55799-7178-41aa-804e-6e900331f900".into(),
            client_address: "10.77.0.2:0/492268007".into(),
            client: 4324,
            image_id: Some("101e4cccf697".into()),
            options: Some("name=admin,key=client.admin,rxbounce".into()),
            size: Some(34_359_738_368),
            features: Some(Features(0x3d)),
            read_only: Some(false),
            made_at: None,
        };
        assert_eq!(known(&root), [expected]);
    }

    #[test]
    fn snapshots_namespaces_and_a_dotted_client_are_read() {
        let (_dir, root) = root();
        device(&root, 10, &[("pool_ns", "ns\n"), ("current_snap", "before\n"), ("client_id", "client.7\n")]);
        device(&root, 9, &[]);
        write(&root, "/sys/block/rbd10/ro", "1\n");
        let all = known(&root);
        assert_eq!(all.iter().map(|m| m.id).collect::<Vec<_>>(), [9, 10]);
        let second = &all[1];
        assert_eq!((second.namespace.as_deref(), second.snapshot.as_deref()), (Some("ns"), Some("before")));
        assert_eq!((second.client, second.read_only), (7, Some(true)));
    }

    #[test]
    fn a_key_is_never_kept() {
        let line = "10.0.0.1:6789 name=admin,secret=AQB==,rxbounce p i -";
        assert_eq!(options(line).unwrap(), "name=admin,secret=…,rxbounce");
    }

    #[test]
    fn without_the_module_there_is_no_mapping_and_without_sysfs_nothing_is_known() {
        let (_dir, root) = root();
        assert_eq!(known(&root), []);
        assert_eq!(supported_features(&root).unwrap(), None);
        fs::remove_dir(root.path("/sys/bus")).unwrap();
        assert_eq!(mappings(&root).failure().unwrap().errno, Some(ENOENT));
    }

    #[test]
    fn a_device_that_goes_away_while_it_is_read_is_left_out() {
        let (_dir, root) = root();
        device(&root, 1, &[]);
        device(&root, 2, &[]);
        // A dangling link is what stays of a directory that was just removed.
        fs::remove_dir_all(root.path("/sys/devices/rbd/1")).unwrap();
        assert_eq!(known(&root).iter().map(|m| m.id).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn a_device_that_stays_without_a_needed_attribute_makes_the_reading_unknown() {
        let (_dir, root) = root();
        device(&root, 1, &[]);
        fs::remove_file(root.path("/sys/devices/rbd/1/client_addr")).unwrap();
        assert!(mappings(&root).failure().unwrap().what.ends_with("/client_addr"));
        write(&root, "/sys/devices/rbd/1/client_addr", "a");
        write(&root, "/sys/devices/rbd/1/client_id", "4324\n");
        assert!(mappings(&root).failure().unwrap().message.contains("`4324`"));
    }

    #[test]
    fn supported_features_are_a_hexadecimal_line() {
        let (_dir, root) = root();
        write(&root, "/sys/bus/rbd/supported_features", "0x1bf\n");
        assert_eq!(supported_features(&root).unwrap(), Some(Features(0x1bf)));
        write(&root, "/sys/bus/rbd/supported_features", "447\n");
        assert!(supported_features(&root).unwrap_err().message.contains("447"));
    }
}
