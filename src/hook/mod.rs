//! Being Proxmox VE's hookscript: in which situation it is called, what it answers, which guests have it.

pub mod attach;
pub mod earlier;
pub(crate) mod meant;
pub mod situation;
