//! What the kernel says: /sys/bus/rbd, kernel version, /dev/kmsg and what its messages mean.

pub mod client;
pub mod device;
pub mod follow;
pub mod holders;
pub mod key_types;
pub mod kmsg;
pub mod messages;
pub mod module;
pub mod programs;
pub mod protocol_features;
pub mod sysfs;
pub mod version;

use crate::rbd::features::Features;
use crate::rbd::identity::ImageIdentity;
use crate::rbd::spec::Spec;
use crate::reading::{Failure, Reading};
use crate::sys::root::Root;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// An image that this node's kernel has mapped (`/sys/bus/rbd/devices/N`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Mapping {
    /// The device's number, `N` of `/dev/rbdN`.
    pub id: u32,
    /// The pool's name.
    pub pool: String,
    /// The namespace, if not the default one.
    pub namespace: Option<String>,
    /// The image, by the name that it had when it was mapped.
    pub image: String,
    /// The snapshot; `None` is the head.
    pub snapshot: Option<String>,
    /// The cluster's fsid.
    pub fsid: String,
    /// The kernel client's address, `10.0.0.1:0/492268007`.
    pub client_address: String,
    /// The kernel client's number.
    pub client: u64,
    /// The image's id, which a rename does not change.
    #[serde(default)]
    pub image_id: Option<String>,
    /// The options it was mapped with, `name=admin,key=client.admin,rxbounce`; a key itself is never kept.
    #[serde(default)]
    pub options: Option<String>,
    /// Its size in bytes.
    #[serde(default)]
    pub size: Option<u64>,
    /// The features that it had when it was mapped; krbd never looks again.
    #[serde(default)]
    pub features: Option<Features>,
    /// It is mapped for reading only.
    #[serde(default)]
    pub read_only: Option<bool>,
    /// When its device appeared, seconds since 1970; `None` where that could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_at: Option<u64>,
}

impl Mapping {
    /// The image, by the name that it had when it was mapped.
    pub fn spec(&self) -> Spec {
        let Self { pool, namespace, image, .. } = self;
        Spec { pool: pool.clone(), namespace: namespace.clone(), image: image.clone() }
    }

    /// Which image it is. Every kernel that shows a mapping's client (`client_addr`, since 4.9) shows its `image_id`
    /// (Linux `Documentation/ABI/testing/sysfs-bus-rbd`).
    pub fn identity(&self) -> ImageIdentity<'_> {
        let Self { fsid, pool, namespace, image, image_id, .. } = self;
        ImageIdentity { fsid, pool, namespace: namespace.as_deref(), name: image, id: image_id.as_deref() }
    }
}

/// What this node's kernel can do and has mapped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct KernelFacts {
    /// The kernel's release, as `uname -r` prints it.
    pub release: String,
    /// Major and minor version: PVE decides by it. `(0, 0)` where the release says none.
    pub version: (u32, u32),
    /// What krbd can map: from sysfs, or by the kernel's version while the module is not loaded.
    pub supported: Reading<Features>,
    /// The features came from `/sys/bus/rbd/supported_features`.
    pub module_loaded: bool,
    /// What is mapped here; one list for the surveys of all guests.
    pub mappings: Reading<Arc<Vec<Mapping>>>,
    /// Why the module could not be loaded, if that was tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_failure: Option<String>,
    /// The kernel itself, asked, takes keys of type aes256k.
    #[serde(default = "key_types::not_asked")]
    pub takes_aes256k: Reading<bool>,
}

/// Reads all of it; changes nothing and does not load the module.
pub fn gather(root: &Root) -> KernelFacts {
    let release = release(root);
    let version = version::parse(&release).unwrap_or_default();
    let from_sysfs = sysfs::supported_features(root);
    let module_loaded = matches!(from_sysfs, Ok(Some(_)));
    let by_version = || match version {
        (0, 0) => Err(Failure::new("read the kernel's version", format!("`{release}` is not a version"))),
        version => Ok(version::krbd_features(version)),
    };
    let supported = from_sysfs.and_then(|features| features.map_or_else(by_version, Ok)).into();
    KernelFacts {
        version,
        supported,
        module_loaded,
        mappings: sysfs::mappings(root),
        release,
        load_failure: None,
        takes_aes256k: key_types::takes_aes256k(root),
    }
}

/// The running kernel's release; from the kernel itself where the root has no `/proc`.
fn release(root: &Root) -> String {
    if let Ok(text) = std::fs::read_to_string(root.path("/proc/sys/kernel/osrelease")) {
        return text.trim_end().to_owned();
    }
    match nix::sys::utsname::uname() {
        Ok(uname) => uname.release().to_string_lossy().into_owned(),
        Err(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(release: &str, features: Option<&str>) -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        for place in ["/proc/sys/kernel", "/sys/bus/rbd/devices"] {
            std::fs::create_dir_all(root.path(place)).unwrap();
        }
        std::fs::write(root.path("/proc/sys/kernel/osrelease"), release).unwrap();
        if let Some(features) = features {
            std::fs::write(root.path("/sys/bus/rbd/supported_features"), features).unwrap();
        }
        (dir, root)
    }

    #[test]
    fn the_module_says_what_it_can_or_else_the_version_does() {
        let (_dir, loaded) = root("6.8.12-4-pve\n", Some("0x3bf\n"));
        let facts = gather(&loaded);
        assert_eq!(
            (facts.release.as_str(), facts.version, facts.module_loaded),
            ("6.8.12-4-pve", (6, 8), true)
        );
        assert_eq!(facts.supported, Reading::Known(Features(0x3bf)));
        let (_dir, old) = root("5.0.21-1-pve\n", None);
        let facts = gather(&old);
        assert_eq!((facts.supported, facts.module_loaded), (Reading::Known(Features(0x187)), false));
        assert_eq!(facts.mappings, Reading::Known(Arc::default()));
    }

    #[test]
    fn what_cannot_be_read_is_unknown_and_not_taken_for_none() {
        let (_dir, odd) = root("odd\n", None);
        assert_eq!(gather(&odd).version, (0, 0));
        assert!(gather(&odd).supported.failure().is_some());
        let (_dir, broken) = root("6.8.12-4-pve\n", Some("?\n"));
        assert!(gather(&broken).supported.failure().is_some());
        assert!(!gather(&broken).module_loaded);
    }

    #[test]
    fn an_older_survey_without_the_later_fields_is_read() {
        let text = r#"{"id":0,"pool":"p","namespace":null,"image":"i","snapshot":null,"fsid":"f",
            "client_address":"a","client":1}"#;
        let mapping: Mapping = serde_json::from_str(text).unwrap();
        assert_eq!((mapping.read_only, mapping.size), (None, None));
    }
}
