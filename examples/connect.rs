//! Connects to a cluster by bare librados, and ends: `connect CONF USER KEYRING`. The floor for any client of Ceph, to
//! measure the tool against (tests/bench), so it shares no code with it.
#![allow(unsafe_code)] // Calling C needs it.

use std::ffi::{CString, c_char, c_int, c_void};

type Handle = *mut c_void;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [conf, user, keyring] = arguments.as_slice() else {
        anyhow::bail!("usage: connect CONF USER KEYRING");
    };
    let text = |text: &str| CString::new(text);
    let (name, conf, keyring) = (text(&format!("client.{user}"))?, text(conf)?, text(keyring)?);
    let mut cluster: Handle = std::ptr::null_mut();
    // SAFETY: the signatures are those of rados/librados.h; the strings outlive the calls.
    unsafe {
        let library = libloading::Library::new("librados.so.2")?;
        let create = library
            .get::<unsafe extern "C" fn(*mut Handle, *const c_char, *const c_char, u64) -> c_int>(
                b"rados_create2\0",
            )?;
        let read =
            library.get::<unsafe extern "C" fn(Handle, *const c_char) -> c_int>(b"rados_conf_read_file\0")?;
        let set = library.get::<unsafe extern "C" fn(Handle, *const c_char, *const c_char) -> c_int>(
            b"rados_conf_set\0",
        )?;
        let connect = library.get::<unsafe extern "C" fn(Handle) -> c_int>(b"rados_connect\0")?;
        let shutdown = library.get::<unsafe extern "C" fn(Handle)>(b"rados_shutdown\0")?;
        succeed("create", create(&raw mut cluster, c"ceph".as_ptr(), name.as_ptr(), 0))?;
        succeed("read the conf", read(cluster, conf.as_ptr()))?;
        succeed("set the keyring", set(cluster, c"keyring".as_ptr(), keyring.as_ptr()))?;
        succeed("connect", connect(cluster))?;
        shutdown(cluster);
        // Its threads may still be about.
        std::mem::forget(library);
    }
    Ok(())
}

fn succeed(what: &str, code: c_int) -> anyhow::Result<()> {
    anyhow::ensure!(code == 0, "{what}: errno {}", -code);
    Ok(())
}
