//! What a guest and a line of its config can be, in the words that every reader of a config uses.

use serde::{Deserialize, Serialize};

/// Virtual machine or container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A virtual machine (`/etc/pve/qemu-server`).
    Qemu,
    /// A container (`/etc/pve/lxc`).
    Lxc,
}

/// Why PVE 9.2 drops a config line that names an RBD volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Dropped {
    /// What is wrong, in words.
    pub why: String,
    /// Only an option that this tool's PVE does not know: a newer PVE may well take the line.
    pub unknown_option: bool,
}

/// Something in a config file worth reporting: a dropped line, a doubled section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Note {
    /// The file, as PVE names it.
    pub file: String,
    /// The line, counted from 1.
    pub line: usize,
    /// What is odd about it.
    pub text: String,
}
