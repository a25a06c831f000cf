//! The few calls of the system that have no safe form in a crate.
#![allow(unsafe_code)] // Nothing else offers them; beside `ceph/ffi.rs` this is the only file of the product that may.

use crate::reading::Errno;
use nix::libc::EINVAL;
use std::ffi::{CStr, c_int};

/// Ends the process at once, without what C and C++ libraries do at an exit. A worker that was left behind in Ceph at
/// a deadline still uses what they would take apart under it, and the process would die of signal 11 or 6 instead of
/// ending with `code`. What is buffered must have been written before.
pub fn end_process(code: c_int) -> ! {
    // SAFETY: `_exit` takes any number, touches no memory of ours and does not return.
    unsafe { nix::libc::_exit(code) }
}

/// Has the kernel take a key for its Ceph client (`add_key(2)`, type `ceph`) into this process's own keyring, and takes it
/// away again. Nobody else sees it, and no module is loaded.
///
/// # Errors
/// What the kernel has against the key; 19 (ENODEV) if libceph is not loaded.
pub fn offer_kernel_key(description: &CStr, payload: &[u8]) -> Result<(), Errno> {
    use nix::libc::{
        KEY_SPEC_PROCESS_KEYRING, KEYCTL_REVOKE, KEYCTL_UNLINK, SYS_add_key, SYS_keyctl, syscall,
    };
    // SAFETY: both strings are NUL-terminated, the payload is given with its length, and all outlive the call.
    let key = unsafe {
        syscall(
            SYS_add_key,
            c"ceph".as_ptr(),
            description.as_ptr(),
            payload.as_ptr(),
            payload.len(),
            KEY_SPEC_PROCESS_KEYRING,
        )
    };
    if key < 0 {
        return Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(EINVAL));
    }
    // SAFETY: numbers only; the key is the one just made.
    unsafe {
        syscall(SYS_keyctl, KEYCTL_REVOKE, key);
        syscall(SYS_keyctl, KEYCTL_UNLINK, key, KEY_SPEC_PROCESS_KEYRING);
    }
    Ok(())
}
