//! The C interface of librados and librbd, opened at run time, behind types that cannot be misused.
//!
//! Nothing is linked: a guest without RBD disks never loads Ceph, and a node without it gets an error that names the
//! package. Signatures and layouts are those of `rados/librados.h` and `rbd/librbd.h`, the same from Ceph 16.2 to 20.2.
//! Errors are positive errnos (`c_int` of Ceph with its sign turned).
#![allow(unsafe_code)] // Calling C needs it; beside `sys/syscalls.rs` this is the only file of the product that may.

use crate::reading::Errno;
use crate::reading::{Failure, Origin};
use nix::libc::{EINVAL, ENAMETOOLONG, ENOENT, ERANGE};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, OnceLock};

/// Why a name has no address.
pub struct Unresolved {
    /// There is no such name, or it has no address; otherwise the name service could not be asked now.
    pub for_good: bool,
    /// The C library's words.
    pub words: String,
}

/// The addresses of a host's name, as Ceph's libraries ask for them (`getaddrinfo(3)`); each once. It may take as long as the name service does.
///
/// # Errors
/// Why there are none. The standard library's own call does not tell a name that does not exist from a service that does not answer.
pub fn resolve(name: &str) -> Result<Vec<IpAddr>, Unresolved> {
    use nix::libc::{
        AF_INET, AF_INET6, AF_UNSPEC, EAI_NODATA, EAI_NONAME, SOCK_STREAM, addrinfo, freeaddrinfo,
        gai_strerror, getaddrinfo, sockaddr_in, sockaddr_in6,
    };
    let no_name = |_| Unresolved { for_good: true, words: "it is no name".to_owned() };
    let name = c_text(name).map_err(no_name)?;
    // SAFETY: of this plain structure of numbers and pointers all zeroes is a value.
    let mut hints: addrinfo = unsafe { std::mem::zeroed() };
    (hints.ai_family, hints.ai_socktype) = (AF_UNSPEC, SOCK_STREAM);
    let mut list = std::ptr::null_mut();
    // SAFETY: the name is NUL-terminated, hints and the place for the result outlive the call.
    let result = unsafe { getaddrinfo(name.as_ptr(), std::ptr::null(), &raw const hints, &raw mut list) };
    if result != 0 {
        // SAFETY: it gives a text of the C library's own.
        let words = unsafe { rust_text(gai_strerror(result)) };
        return Err(Unresolved { for_good: [EAI_NONAME, EAI_NODATA].contains(&result), words });
    }
    let mut addresses = Vec::new();
    let mut entry = list;
    // SAFETY: the entries are a list of the C library's that ends with NULL and lives until it is freed below; each address is
    // of the type that its family names, and may stand at any byte.
    unsafe {
        while let Some(found) = entry.as_ref() {
            let address: Option<IpAddr> = match found.ai_family {
                AF_INET => {
                    let address = found.ai_addr.cast::<sockaddr_in>().read_unaligned();
                    Some(Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr)).into())
                }
                AF_INET6 => {
                    let address = found.ai_addr.cast::<sockaddr_in6>().read_unaligned();
                    Some(Ipv6Addr::from(address.sin6_addr.s6_addr).into())
                }
                _ => None,
            };
            addresses.extend(address.filter(|address| !addresses.contains(address)));
            entry = found.ai_next;
        }
        freeaddrinfo(list);
    }
    Ok(addresses)
}

/// Times that a list is asked for again because it grew meanwhile.
const LIST_TRIES: usize = 8;

// ---------------------------------------------------------------------------------------------------------------
// Loading
// ---------------------------------------------------------------------------------------------------------------

/// A Ceph library that this node lacks, or that is too old.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingLibrary {
    /// The library: `librbd.so.1`.
    pub library: &'static str,
    /// The Debian package that holds it: `librbd1`.
    pub package: &'static str,
    /// What the loader said.
    pub detail: String,
}

impl From<MissingLibrary> for Failure {
    fn from(missing: MissingLibrary) -> Self {
        let MissingLibrary { library, package, detail } = missing;
        Self::new(format!("load {library}"), format!("{detail}; the package {package} provides it"))
            .on(Origin::Library)
    }
}

/// Makes a table of C functions and the function that fills it from a library.
macro_rules! functions {
    ($table:ident, $library:literal, $package:literal, { $($name:ident ( $($argument:ty),* ) $(-> $result:ty)?; )* }) => {
        struct $table { $( $name: unsafe extern "C" fn($($argument),*) $(-> $result)?, )* }

        impl $table {
            fn load(library: &str) -> Result<Self, String> {
                // SAFETY: Ceph's libraries only run ordinary C++ initialisers when they are loaded.
                let opened = unsafe { libloading::Library::new(library) }.map_err(|e| e.to_string())?;
                let table = Self { $(
                    // SAFETY: the type is the function's signature in Ceph's header.
                    $name: *unsafe { opened.get(concat!(stringify!($name), "\0").as_bytes()) }.map_err(|e| e.to_string())?,
                )* };
                // Ceph's threads outlive every handle, so the library stays loaded until the process ends.
                std::mem::forget(opened);
                Ok(table)
            }

            fn get() -> Result<&'static Self, MissingLibrary> {
                static TABLE: OnceLock<Result<$table, String>> = OnceLock::new();
                TABLE.get_or_init(|| Self::load($library)).as_ref().map_err(|detail| MissingLibrary {
                    library: $library,
                    package: $package,
                    detail: detail.clone(),
                })
            }
        }
    };
}

type Handle = *mut c_void;

functions!(Rados, "librados.so.2", "librados2", {
    rados_create2(*mut Handle, *const c_char, *const c_char, u64) -> c_int;
    rados_conf_read_file(Handle, *const c_char) -> c_int;
    rados_conf_set(Handle, *const c_char, *const c_char) -> c_int;
    rados_conf_get(Handle, *const c_char, *mut c_char, usize) -> c_int;
    rados_connect(Handle) -> c_int;
    rados_shutdown(Handle);
    rados_cluster_fsid(Handle, *mut c_char, usize) -> c_int;
    rados_get_instance_id(Handle) -> u64;
    rados_getaddrs(Handle, *mut *mut c_char) -> c_int;
    rados_mon_command(Handle, *mut *const c_char, usize, *const c_char, usize, *mut *mut c_char, *mut usize,
        *mut *mut c_char, *mut usize) -> c_int;
    rados_buffer_free(*mut c_char);
    rados_pool_reverse_lookup(Handle, i64, *mut c_char, usize) -> c_int;
    rados_ioctx_create(Handle, *const c_char, *mut Handle) -> c_int;
    rados_ioctx_create2(Handle, i64, *mut Handle) -> c_int;
    rados_ioctx_set_namespace(Handle, *const c_char);
    rados_ioctx_destroy(Handle);
    rados_stat(Handle, *const c_char, *mut u64, *mut i64) -> c_int;
    rados_read(Handle, *const c_char, *mut c_char, usize, u64) -> c_int;
    rados_exec(Handle, *const c_char, *const c_char, *const c_char, *const c_char, usize, *mut c_char, usize) -> c_int;
});

functions!(Rbd, "librbd.so.1", "librbd1", {
    rbd_open(Handle, *const c_char, *mut Handle, *const c_char) -> c_int;
    rbd_close(Handle) -> c_int;
    rbd_open_read_only(Handle, *const c_char, *mut Handle, *const c_char) -> c_int;
    rbd_open_by_id_read_only(Handle, *const c_char, *mut Handle, *const c_char) -> c_int;
    rbd_aio_open_read_only(Handle, *const c_char, *mut Handle, *const c_char, Handle) -> c_int;
    rbd_aio_create_completion(*mut c_void, Option<extern "C" fn(Handle, *mut c_void)>, *mut Handle) -> c_int;
    rbd_aio_wait_for_complete(Handle) -> c_int;
    rbd_aio_get_return_value(Handle) -> isize;
    rbd_aio_release(Handle);
    rbd_stat(Handle, *mut ImageInfo, usize) -> c_int;
    rbd_get_old_format(Handle, *mut u8) -> c_int;
    rbd_get_id(Handle, *mut c_char, usize) -> c_int;
    rbd_get_features(Handle, *mut u64) -> c_int;
    rbd_get_op_features(Handle, *mut u64) -> c_int;
    rbd_get_data_pool_id(Handle) -> i64;
    rbd_get_flags(Handle, *mut u64) -> c_int;
    rbd_snap_list(Handle, *mut SnapInfo, *mut c_int) -> c_int;
    rbd_snap_list_end(*mut SnapInfo);
    rbd_snap_get_namespace_type(Handle, u64, *mut c_int) -> c_int;
    rbd_snap_is_protected(Handle, *const c_char, *mut c_int) -> c_int;
    rbd_snap_set_by_id(Handle, u64) -> c_int;
    rbd_list_lockers(Handle, *mut c_int, *mut c_char, *mut usize, *mut c_char, *mut usize, *mut c_char, *mut usize,
        *mut c_char, *mut usize) -> isize;
    rbd_watchers_list(Handle, *mut ImageWatcher, *mut usize) -> c_int;
    rbd_watchers_list_cleanup(*mut ImageWatcher, usize);
    rbd_get_parent(Handle, *mut LinkedImageSpec, *mut SnapSpec) -> c_int;
    rbd_linked_image_spec_cleanup(*mut LinkedImageSpec);
    rbd_snap_spec_cleanup(*mut SnapSpec);
    rbd_mirror_image_get_info(Handle, *mut MirrorImageInfo, usize) -> c_int;
    rbd_mirror_image_get_info_cleanup(*mut MirrorImageInfo);
    rbd_mirror_image_get_mode(Handle, *mut c_int) -> c_int;
    rbd_migration_status(Handle, *const c_char, *mut MigrationStatus, usize) -> c_int;
    rbd_migration_status_cleanup(*mut MigrationStatus);
    rbd_namespace_exists(Handle, *const c_char, *mut bool) -> c_int;
    rbd_trash_list(Handle, *mut TrashInfo, *mut usize) -> c_int;
    rbd_trash_list_cleanup(*mut TrashInfo, usize);
    rbd_lock_acquire(Handle, c_int) -> c_int;
    rbd_lock_release(Handle) -> c_int;
});

/// Both libraries can be loaded here.
///
/// # Errors
/// The first that cannot, and the package that holds it.
pub fn libraries() -> Result<(), MissingLibrary> {
    Rados::get()?;
    Rbd::get()?;
    Ok(())
}

/// The release of the Ceph libraries that are installed here, `20.2.4`; `None` if they do not say. librados's own
/// `rados_version` is that of its interface, the same from 16 to 20.
pub fn release() -> Option<String> {
    Rados::get().ok()?;
    // SAFETY: librados has loaded it already.
    let common = unsafe { libloading::Library::new("libceph-common.so.2") }.ok()?;
    // SAFETY: `const char *ceph_version_to_str()` (Ceph `src/common/version.h`), as C++ names it, from 16 to 20.
    let told =
        unsafe { common.get::<unsafe extern "C" fn() -> *const c_char>(b"_Z19ceph_version_to_strv\0") };
    let told = *told.ok()?;
    // SAFETY: it gives a text that lasts as long as the library, which librados keeps loaded.
    let text = unsafe { rust_text(told()) };
    Some(text).filter(|text| !text.is_empty())
}

// ---------------------------------------------------------------------------------------------------------------
// Layouts of librbd.h
// ---------------------------------------------------------------------------------------------------------------

/// `rbd_image_info_t`.
#[repr(C)]
struct ImageInfo {
    size: u64,
    obj_size: u64,
    num_objs: u64,
    order: c_int,
    block_name_prefix: [c_char; 24],
    parent_pool: i64,
    parent_name: [c_char; 96],
}

/// `rbd_snap_info_t`.
#[repr(C)]
struct SnapInfo {
    id: u64,
    size: u64,
    name: *const c_char,
}

/// `rbd_image_watcher_t`.
#[repr(C)]
struct ImageWatcher {
    addr: *mut c_char,
    id: i64,
    cookie: u64,
}

/// `rbd_linked_image_spec_t`.
#[repr(C)]
struct LinkedImageSpec {
    pool_id: i64,
    pool_name: *mut c_char,
    pool_namespace: *mut c_char,
    image_id: *mut c_char,
    image_name: *mut c_char,
    trash: bool,
}

/// `rbd_snap_spec_t`.
#[repr(C)]
struct SnapSpec {
    id: u64,
    namespace_type: c_int,
    name: *mut c_char,
}

/// `rbd_mirror_image_info_t`.
#[repr(C)]
struct MirrorImageInfo {
    global_id: *mut c_char,
    state: c_int,
    primary: bool,
}

/// `rbd_image_migration_status_t`.
#[repr(C)]
struct MigrationStatus {
    source_pool_id: i64,
    source_pool_namespace: *mut c_char,
    source_image_name: *mut c_char,
    source_image_id: *mut c_char,
    dest_pool_id: i64,
    dest_pool_namespace: *mut c_char,
    dest_image_name: *mut c_char,
    dest_image_id: *mut c_char,
    state: c_int,
    state_description: *mut c_char,
}

/// `rbd_trash_image_info_t`.
#[repr(C)]
struct TrashInfo {
    id: *mut c_char,
    name: *mut c_char,
    source: c_int,
    deletion_time: i64,
    deferment_end_time: i64,
}

// ---------------------------------------------------------------------------------------------------------------
// Small helpers
// ---------------------------------------------------------------------------------------------------------------

/// Ceph's return value: not negative, or a negative errno.
fn check(result: c_int) -> Result<c_int, Errno> {
    if result < 0 { Err(result.saturating_neg()) } else { Ok(result) }
}

fn check_size(result: isize) -> Result<isize, Errno> {
    if result < 0 { Err(i32::try_from(result.saturating_neg()).unwrap_or(i32::MAX)) } else { Ok(result) }
}

/// Text for C; text with a NUL inside is no name that Ceph could know.
fn c_text(text: &str) -> Result<CString, Errno> {
    CString::new(text).map_err(|_| EINVAL)
}

/// A copy of C's text, empty for NULL.
///
/// # Safety
/// `text` is NULL or a NUL-terminated string.
unsafe fn rust_text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: as the caller promises.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// The text before the first NUL of a buffer that C wrote.
fn buffer_text(buffer: &[u8]) -> String {
    let text = buffer.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

/// The texts of a buffer that C wrote, each ended by NUL.
fn buffer_texts(buffer: &[u8]) -> Vec<String> {
    let mut texts: Vec<String> =
        buffer.split(|byte| *byte == 0).map(|text| String::from_utf8_lossy(text).into_owned()).collect();
    texts.pop(); // what follows the last NUL
    texts
}

/// Asks for a text, with a larger buffer as long as the answer is `ERANGE` (or, as `rados_conf_get` does, 36).
fn ask_text(ask: impl Fn(*mut c_char, usize) -> c_int) -> Result<String, Errno> {
    let mut buffer = vec![0_u8; 256];
    loop {
        match check(ask(buffer.as_mut_ptr().cast(), buffer.len())) {
            Ok(_) => return Ok(buffer_text(&buffer)),
            Err(ERANGE | ENAMETOOLONG) if buffer.len() < 1 << 20 => buffer.resize(buffer.len() * 4, 0),
            Err(errno) => return Err(errno),
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Cluster
// ---------------------------------------------------------------------------------------------------------------

/// A handle on a cluster (`rados_t`): configured, then connected, shut down when it is dropped.
pub struct Cluster {
    handle: Handle,
    rados: &'static Rados,
}

// SAFETY: librados documents `rados_t` as usable from any thread, and from several at once.
unsafe impl Send for Cluster {}
// SAFETY: as above.
unsafe impl Sync for Cluster {}

impl Cluster {
    /// A handle for `client.<user>`, not yet configured or connected.
    ///
    /// # Errors
    /// The library is missing, or the user is no name.
    pub fn create(user: &str) -> Result<Self, Failure> {
        let rados = Rados::get()?;
        let what = || format!("create a Ceph client for client.{user}");
        let name = c_text(&format!("client.{user}"))
            .map_err(|errno| Failure::errno(what(), errno).on(Origin::Own))?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the strings are NUL-terminated and outlive the call; `handle` is a place for the result.
        let result = unsafe { (rados.rados_create2)(&raw mut handle, c"ceph".as_ptr(), name.as_ptr(), 0) };
        check(result).map_err(|errno| Failure::errno(what(), errno).on(Origin::Own))?;
        Ok(Self { handle, rados })
    }

    /// Reads a ceph.conf; `None` stands for Ceph's default places (`/etc/ceph/ceph.conf`, …).
    ///
    /// # Errors
    /// 2 if the file is missing, 13 if it may not be read, 22 if it is no ceph.conf.
    pub fn read_conf(&self, path: Option<&str>) -> Result<(), Errno> {
        let path = path.map(c_text).transpose()?;
        let pointer = path.as_ref().map_or(std::ptr::null(), |path| path.as_ptr());
        // SAFETY: the handle is live; the path is NULL or a string that outlives the call.
        check(unsafe { (self.rados.rados_conf_read_file)(self.handle, pointer) }).map(drop)
    }

    /// Sets an option.
    ///
    /// # Errors
    /// 2 if this Ceph does not know the option, 22 if the value does not fit.
    pub fn set(&self, option: &str, value: &str) -> Result<(), Errno> {
        let (option, value) = (c_text(option)?, c_text(value)?);
        // SAFETY: the handle is live; both strings outlive the call.
        check(unsafe { (self.rados.rados_conf_set)(self.handle, option.as_ptr(), value.as_ptr()) }).map(drop)
    }

    /// An option's effective value; after connecting this includes what the monitors hold.
    ///
    /// # Errors
    /// 2 if this Ceph does not know the option.
    pub fn option(&self, option: &str) -> Result<String, Errno> {
        let option = c_text(option)?;
        // SAFETY: the handle is live; C writes at most `length` bytes.
        ask_text(|buffer, length| unsafe {
            (self.rados.rados_conf_get)(self.handle, option.as_ptr(), buffer, length)
        })
    }

    /// Connects. Blocks for at most `client_mount_timeout`.
    ///
    /// # Errors
    /// 110 no monitor answered, 13 or 1 the key is wrong, 2 the keyring is missing.
    pub fn connect(&self) -> Result<(), Errno> {
        // SAFETY: the handle is live and not yet connected.
        check(unsafe { (self.rados.rados_connect)(self.handle) }).map(drop)
    }

    /// The cluster's fsid, as text.
    ///
    /// # Errors
    /// Ceph's errno.
    pub fn fsid(&self) -> Result<String, Errno> {
        // SAFETY: the handle is connected; C writes at most `length` bytes.
        ask_text(|buffer, length| unsafe { (self.rados.rados_cluster_fsid)(self.handle, buffer, length) })
    }

    /// This client's number, the one that its watches and locks carry.
    pub fn instance_id(&self) -> u64 {
        // SAFETY: the handle is connected.
        unsafe { (self.rados.rados_get_instance_id)(self.handle) }
    }

    /// The address that this client has to the others, as the messenger writes it: `10.0.0.1:0/492268007`, several of them
    /// in brackets, some with `v1:` or `v2:` before them.
    ///
    /// # Errors
    /// Ceph's errno.
    pub fn addresses(&self) -> Result<String, Errno> {
        let mut text = std::ptr::null_mut();
        // SAFETY: the handle is connected; a place for the answer.
        check(unsafe { (self.rados.rados_getaddrs)(self.handle, &raw mut text) })?;
        // SAFETY: librados gave a NUL-terminated string of its own, or NULL.
        let addresses = unsafe { rust_text(text) };
        if !text.is_null() {
            // SAFETY: the string is librados's, freed once, and not used after.
            unsafe { (self.rados.rados_buffer_free)(text) };
        }
        Ok(addresses)
    }

    /// Sends one monitor command, in JSON, and gives its output.
    ///
    /// # Errors
    /// The monitor's errno (13: the client's caps do not allow it).
    pub fn mon_command(&self, command: &str) -> Result<Vec<u8>, Errno> {
        let command = c_text(command)?;
        let mut commands = [command.as_ptr()];
        let (mut out, mut out_length) = (std::ptr::null_mut(), 0);
        let (mut status, mut status_length) = (std::ptr::null_mut(), 0);
        // SAFETY: the handle is connected; one command of one string; no input; places for both answers.
        let result = unsafe {
            (self.rados.rados_mon_command)(
                self.handle,
                commands.as_mut_ptr(),
                commands.len(),
                std::ptr::null(),
                0,
                &raw mut out,
                &raw mut out_length,
                &raw mut status,
                &raw mut status_length,
            )
        };
        self.take_buffer(status, status_length);
        let output = self.take_buffer(out, out_length);
        check(result).map(|_| output)
    }

    /// Copies and frees a buffer that librados gave.
    fn take_buffer(&self, buffer: *mut c_char, length: usize) -> Vec<u8> {
        if buffer.is_null() {
            return Vec::new();
        }
        // SAFETY: librados gave this buffer with this length.
        let copy = unsafe { std::slice::from_raw_parts(buffer.cast::<u8>(), length) }.to_vec();
        // SAFETY: the buffer is librados's, freed once, and not used after.
        unsafe { (self.rados.rados_buffer_free)(buffer) };
        copy
    }

    /// The name of a pool.
    ///
    /// # Errors
    /// 2 if there is no pool of this number.
    pub fn pool_name(&self, id: i64) -> Result<String, Errno> {
        // SAFETY: the handle is connected; C writes at most `length` bytes.
        ask_text(|buffer, length| unsafe {
            (self.rados.rados_pool_reverse_lookup)(self.handle, id, buffer, length)
        })
    }

    /// A pool's namespace by the pool's name; `None` is the default namespace.
    ///
    /// # Errors
    /// 2 if there is no such pool.
    pub fn pool(self: &Arc<Self>, name: &str, namespace: Option<&str>) -> Result<Arc<Pool>, Errno> {
        let name = c_text(name)?;
        // SAFETY: the handle is connected; the name outlives the call.
        self.io_context(namespace, |io| unsafe {
            (self.rados.rados_ioctx_create)(self.handle, name.as_ptr(), io)
        })
    }

    /// A pool's namespace by the pool's number.
    ///
    /// # Errors
    /// 2 if there is no such pool.
    pub fn pool_by_id(self: &Arc<Self>, id: i64, namespace: Option<&str>) -> Result<Arc<Pool>, Errno> {
        // SAFETY: the handle is connected.
        self.io_context(namespace, |io| unsafe { (self.rados.rados_ioctx_create2)(self.handle, id, io) })
    }

    fn io_context(
        self: &Arc<Self>,
        namespace: Option<&str>,
        create: impl FnOnce(*mut Handle) -> c_int,
    ) -> Result<Arc<Pool>, Errno> {
        let namespace = c_text(namespace.unwrap_or_default())?;
        let mut io = std::ptr::null_mut();
        check(create(&raw mut io))?;
        // SAFETY: the io context was just made; librados copies the name.
        unsafe { (self.rados.rados_ioctx_set_namespace)(io, namespace.as_ptr()) };
        Ok(Arc::new(Pool { io, cluster: Arc::clone(self) }))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // SAFETY: the handle is live and used by nobody else: every `Pool` and `Image` holds an `Arc` of this.
        unsafe { (self.rados.rados_shutdown)(self.handle) };
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Pool
// ---------------------------------------------------------------------------------------------------------------

/// A namespace of a pool (`rados_ioctx_t`).
pub struct Pool {
    io: Handle,
    cluster: Arc<Cluster>,
}

// SAFETY: an io context may be used from several threads as long as nobody sets its namespace or locator; only
// `Cluster::io_context` does, before anybody else has it.
unsafe impl Send for Pool {}
// SAFETY: as above.
unsafe impl Sync for Pool {}

impl Pool {
    /// The cluster that this pool is of.
    pub fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    /// The object exists.
    ///
    /// # Errors
    /// 2 if it does not; else Ceph's errno.
    pub fn stat(&self, object: &str) -> Result<(), Errno> {
        let object = c_text(object)?;
        let (mut size, mut modified) = (0, 0);
        // SAFETY: the io context is live; the name outlives the call; places for both answers.
        let result = unsafe {
            (self.cluster.rados.rados_stat)(self.io, object.as_ptr(), &raw mut size, &raw mut modified)
        };
        check(result).map(drop)
    }

    /// The first 4096 bytes of an object.
    ///
    /// # Errors
    /// Ceph's errno.
    pub fn read(&self, object: &str) -> Result<Vec<u8>, Errno> {
        let object = c_text(object)?;
        let mut buffer = vec![0_u8; 4096];
        // SAFETY: the io context is live; C writes at most the buffer's length.
        let result = unsafe {
            (self.cluster.rados.rados_read)(
                self.io,
                object.as_ptr(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                0,
            )
        };
        let length = usize::try_from(check(result)?).unwrap_or(0);
        buffer.truncate(length);
        Ok(buffer)
    }

    /// Calls a method of the class `rbd` on an object; for methods that only read.
    ///
    /// # Errors
    /// The method's errno; 95 if the OSD does not know the method.
    pub fn class_call(&self, object: &str, method: &str, input: &[u8]) -> Result<Vec<u8>, Errno> {
        self.class_method(c"rbd", object, method, input)
    }

    /// The same of any class.
    ///
    /// # Errors
    /// The method's errno; 95 if the OSD does not know the class or the method; 34 if the answer has more than 4 KiB.
    pub fn class_method(
        &self,
        class: &CStr,
        object: &str,
        method: &str,
        input: &[u8],
    ) -> Result<Vec<u8>, Errno> {
        let (object, method) = (c_text(object)?, c_text(method)?);
        let mut buffer = vec![0_u8; 4096];
        // SAFETY: the io context is live; input and output are given with their lengths.
        let result = unsafe {
            (self.cluster.rados.rados_exec)(
                self.io,
                object.as_ptr(),
                class.as_ptr(),
                method.as_ptr(),
                input.as_ptr().cast(),
                input.len(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
            )
        };
        let length = usize::try_from(check(result)?).unwrap_or(0);
        buffer.truncate(length);
        Ok(buffer)
    }

    /// This pool has an RBD namespace of that name. To be asked of the default namespace.
    ///
    /// # Errors
    /// Ceph's errno, or that librbd is missing.
    pub fn namespace_exists(&self, namespace: &str) -> Result<bool, Failure> {
        let rbd = Rbd::get()?;
        let failure = |errno| Failure::errno(format!("look for the namespace {namespace}"), errno);
        let name = c_text(namespace).map_err(failure)?;
        let mut exists = false;
        // SAFETY: the io context is live; the name outlives the call; a place for the answer.
        check(unsafe { (rbd.rbd_namespace_exists)(self.io, name.as_ptr(), &raw mut exists) })
            .map_err(failure)?;
        Ok(exists)
    }

    /// What is in the trash.
    ///
    /// # Errors
    /// Ceph's errno, or that librbd is missing.
    pub fn trash(&self) -> Result<Vec<RawTrash>, Failure> {
        let rbd = Rbd::get()?;
        let failure = |errno| Failure::errno("list the trash", errno);
        let mut room = 32_usize;
        for _ in 0..LIST_TRIES {
            let nothing = || TrashInfo {
                id: std::ptr::null_mut(),
                name: std::ptr::null_mut(),
                source: 0,
                deletion_time: 0,
                deferment_end_time: 0,
            };
            let mut list: Vec<TrashInfo> = (0..room).map(|_| nothing()).collect();
            // SAFETY: the io context is live; the list has `room` entries.
            match check(unsafe { (rbd.rbd_trash_list)(self.io, list.as_mut_ptr(), &raw mut room) }) {
                Ok(_) => {
                    let filled = room.min(list.len());
                    let entries = list.iter().take(filled).map(raw_trash).collect();
                    // SAFETY: librbd filled this many entries.
                    unsafe { (rbd.rbd_trash_list_cleanup)(list.as_mut_ptr(), filled) };
                    return Ok(entries);
                }
                Err(ERANGE) => room = room.saturating_add(8),
                Err(errno) => return Err(failure(errno)),
            }
        }
        Err(failure(ERANGE))
    }

    /// The state of an image's live migration (`rbd_image_migration_state_t`).
    ///
    /// # Errors
    /// Ceph's errno, or that librbd is missing.
    pub fn migration_state(&self, image: &str) -> Result<i32, Failure> {
        let rbd = Rbd::get()?;
        let failure = |errno| Failure::errno(format!("read the migration of {image}"), errno);
        let name = c_text(image).map_err(failure)?;
        // SAFETY: zero is a valid value of every field.
        let mut status: MigrationStatus = unsafe { std::mem::zeroed() };
        // SAFETY: the io context is live; the struct is given with its size.
        let result = unsafe {
            (rbd.rbd_migration_status)(self.io, name.as_ptr(), &raw mut status, size_of::<MigrationStatus>())
        };
        check(result).map_err(failure)?;
        let state = status.state;
        // SAFETY: librbd filled the struct; it is not used after.
        unsafe { (rbd.rbd_migration_status_cleanup)(&raw mut status) };
        Ok(state)
    }

    /// Opens an image for reading. Registers no watch.
    ///
    /// # Errors
    /// Ceph's errno, or that librbd is missing.
    pub fn open(self: &Arc<Self>, image: &str) -> Result<Image, Failure> {
        let rbd = Rbd::get()?;
        self.open_now(rbd, image, rbd.rbd_open_read_only)
            .map_err(|errno| Failure::errno(format!("open {image}"), errno))
    }

    /// Begins to open an image for reading and returns at once; [`Opening::wait`] gives the image. Registers no watch.
    ///
    /// # Errors
    /// Ceph's errno, or that librbd is missing.
    pub fn begin_to_open(self: &Arc<Self>, image: &str) -> Result<Opening, Failure> {
        let rbd = Rbd::get()?;
        let failure = |errno| Failure::errno(format!("open {image}"), errno);
        let name = c_text(image).map_err(failure)?;
        let mut completion = std::ptr::null_mut();
        // SAFETY: no callback; a place for the completion.
        check(unsafe { (rbd.rbd_aio_create_completion)(std::ptr::null_mut(), None, &raw mut completion) })
            .map_err(failure)?;
        let mut place = Box::new(std::ptr::null_mut());
        // SAFETY: the io context is live; librbd copies the name; no snapshot; the place for the image stays where it is until the
        // `Opening`, when it is dropped, has waited for the completion.
        let begun = check(unsafe {
            (rbd.rbd_aio_open_read_only)(
                self.io,
                name.as_ptr(),
                &raw mut *place,
                std::ptr::null(),
                completion,
            )
        });
        if let Err(errno) = begun {
            // SAFETY: nothing was begun, so nobody else has the completion.
            unsafe { (rbd.rbd_aio_release)(completion) };
            return Err(failure(errno));
        }
        let what = format!("open {image}");
        Ok(Opening { completion, image: place, what, rbd, pool: Arc::clone(self) })
    }

    /// Opens an image by its id for reading, also one in the trash. Registers no watch.
    ///
    /// # Errors
    /// Ceph's errno, or that librbd is missing.
    pub fn open_by_id(self: &Arc<Self>, id: &str) -> Result<Image, Failure> {
        let rbd = Rbd::get()?;
        self.open_now(rbd, id, rbd.rbd_open_by_id_read_only)
            .map_err(|errno| Failure::errno(format!("open the image of id {id}"), errno))
    }

    /// Opens an image for writing, which registers a watch of this client's.
    ///
    /// # Errors
    /// Ceph's errno, or that librbd is missing.
    pub fn open_for_writing(self: &Arc<Self>, image: &str) -> Result<Image, Failure> {
        let rbd = Rbd::get()?;
        self.open_now(rbd, image, rbd.rbd_open)
            .map_err(|errno| Failure::errno(format!("open {image} for writing"), errno))
    }

    fn open_now(
        self: &Arc<Self>,
        rbd: &'static Rbd,
        image: &str,
        open: unsafe extern "C" fn(Handle, *const c_char, *mut Handle, *const c_char) -> c_int,
    ) -> Result<Image, Errno> {
        let name = c_text(image)?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the io context is live; the name outlives the call; no snapshot; a place for the image.
        check(unsafe { open(self.io, name.as_ptr(), &raw mut handle, std::ptr::null()) })?;
        Ok(Image { handle, rbd, pool: Arc::clone(self) })
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: the io context is live and nobody else has it; images hold an `Arc` of this.
        unsafe { (self.cluster.rados.rados_ioctx_destroy)(self.io) };
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Image
// ---------------------------------------------------------------------------------------------------------------

/// An open image (`rbd_image_t`), closed when it is dropped.
pub struct Image {
    handle: Handle,
    rbd: &'static Rbd,
    pool: Arc<Pool>,
}

// SAFETY: librbd's images are internally locked and may be used from any thread.
unsafe impl Send for Image {}
// SAFETY: as above.
unsafe impl Sync for Image {}

/// An image that librbd is opening.
pub struct Opening {
    completion: Handle,
    /// Where librbd writes the image.
    image: Box<Handle>,
    what: String,
    rbd: &'static Rbd,
    pool: Arc<Pool>,
}

// SAFETY: librbd's completions may be waited for from any thread.
unsafe impl Send for Opening {}

impl Opening {
    /// The image, as soon as it is open.
    ///
    /// # Errors
    /// Ceph's errno.
    pub fn wait(mut self) -> Result<Image, Failure> {
        self.end().map_err(|errno| Failure::errno(self.what.clone(), errno))?;
        let handle = std::mem::replace(&mut *self.image, std::ptr::null_mut());
        Ok(Image { handle, rbd: self.rbd, pool: Arc::clone(&self.pool) })
    }

    /// Waits until it is open, or cannot be opened.
    fn end(&self) -> Result<(), Errno> {
        // SAFETY: the completion is live until `self` is dropped.
        let result = unsafe {
            (self.rbd.rbd_aio_wait_for_complete)(self.completion);
            (self.rbd.rbd_aio_get_return_value)(self.completion)
        };
        check_size(result).map(drop)
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        if self.end().is_ok() && !self.image.is_null() {
            // SAFETY: it was opened, and nobody has taken it.
            unsafe { (self.rbd.rbd_close)(*self.image) };
        }
        // SAFETY: it is complete, and nobody else has it.
        unsafe { (self.rbd.rbd_aio_release)(self.completion) };
    }
}

/// An image in the trash as librbd lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawTrash {
    /// The image's id.
    pub id: String,
    /// The name that it had.
    pub name: String,
    /// `rbd_trash_image_source_t`.
    pub source: i32,
    /// When it was moved there, in seconds since 1970.
    pub deleted: i64,
    /// Until when it is not to be removed from there, in seconds since 1970.
    pub kept_until: i64,
}

/// Sizes of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Bytes.
    pub size: u64,
    /// Bytes in an object.
    pub object_size: u64,
    /// Number of objects.
    pub objects: u64,
}

/// A snapshot as librbd lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawSnapshot {
    /// Its number.
    pub id: u64,
    /// Its name.
    pub name: String,
}

/// The lock object as librbd lists it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RawLock {
    /// The lock is exclusive.
    pub exclusive: bool,
    /// The lock's tag.
    pub tag: String,
    /// Client, cookie, address of each owner.
    pub lockers: Vec<[String; 3]>,
}

/// A watcher as librbd lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawWatcher {
    /// Address.
    pub address: String,
    /// The client's number.
    pub client: u64,
    /// The watch's cookie.
    pub cookie: u64,
}

/// The parent of a clone as librbd tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawParent {
    /// The pool's number.
    pub pool_id: i64,
    /// The pool's name.
    pub pool: String,
    /// The namespace; empty for the default one.
    pub namespace: String,
    /// The image's id.
    pub image_id: String,
    /// The image's name; empty where only the id is known.
    pub image: String,
    /// The image lies in the trash.
    pub trashed: bool,
    /// The snapshot's number.
    pub snapshot_id: u64,
    /// The snapshot's name.
    pub snapshot: String,
}

/// How an image is mirrored as librbd tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawMirror {
    /// `rbd_mirror_image_state_t`.
    pub state: i32,
    /// This cluster's copy is primary.
    pub primary: bool,
}

impl Image {
    /// The pool and namespace that the image was opened in.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    fn number<T: Default>(&self, get: unsafe extern "C" fn(Handle, *mut T) -> c_int) -> Result<T, Errno> {
        let mut value = T::default();
        // SAFETY: the image is open; a place for the answer of the getter's own type.
        check(unsafe { get(self.handle, &raw mut value) })?;
        Ok(value)
    }

    /// Size, object size, number of objects.
    ///
    /// # Errors
    /// Ceph's errno.
    pub fn sizes(&self) -> Result<Sizes, Errno> {
        // SAFETY: zero is a valid value of every field.
        let mut info: ImageInfo = unsafe { std::mem::zeroed() };
        // SAFETY: the image is open; the struct is given with its size.
        check(unsafe { (self.rbd.rbd_stat)(self.handle, &raw mut info, size_of::<ImageInfo>()) })?;
        Ok(Sizes { size: info.size, object_size: info.obj_size, objects: info.num_objs })
    }

    /// The image is of format 1.
    ///
    /// # Errors
    /// Ceph's errno.
    pub fn old_format(&self) -> Result<bool, Errno> {
        self.number(self.rbd.rbd_get_old_format).map(|old| old != 0)
    }

    /// The image's id; empty for format 1.
    ///
    /// # Errors
    /// Ceph's errno.
    pub fn id(&self) -> Result<String, Errno> {
        // SAFETY: the image is open; C writes at most `length` bytes.
        ask_text(|buffer, length| unsafe { (self.rbd.rbd_get_id)(self.handle, buffer, length) })
    }

    /// Feature bits.
    ///
    /// # Errors
    /// Ceph's errno.
    pub fn features(&self) -> Result<u64, Errno> {
        self.number(self.rbd.rbd_get_features)
    }

    /// The number of the pool that holds the data; the image's own where no other does.
    pub fn data_pool_id(&self) -> i64 {
        // SAFETY: the image is open.
        unsafe { (self.rbd.rbd_get_data_pool_id)(self.handle) }
    }

    /// `RBD_OPERATION_FEATURE_*` bits.
    ///
    /// # Errors
    /// Ceph's errno.
    pub fn op_features(&self) -> Result<u64, Errno> {
        self.number(self.rbd.rbd_get_op_features)
    }

    /// `RBD_FLAG_*` bits of the head.
    ///
    /// # Errors
    /// Ceph's errno.
    pub fn flags(&self) -> Result<u64, Errno> {
        self.number(self.rbd.rbd_get_flags)
    }

    /// Snapshots of every kind.
    ///
    /// # Errors
    /// Ceph's errno.
    pub fn snapshots(&self) -> Result<Vec<RawSnapshot>, Errno> {
        let mut room: c_int = 32;
        for _ in 0..LIST_TRIES {
            let length = usize::try_from(room).unwrap_or(0);
            let mut list: Vec<SnapInfo> =
                (0..length).map(|_| SnapInfo { id: 0, size: 0, name: std::ptr::null() }).collect();
            // SAFETY: the image is open; the list has `room` entries.
            match check(unsafe { (self.rbd.rbd_snap_list)(self.handle, list.as_mut_ptr(), &raw mut room) }) {
                Ok(count) => {
                    let count = usize::try_from(count).unwrap_or(0);
                    let name = |info: &SnapInfo| {
                        // SAFETY: librbd filled this entry with a string of its own.
                        unsafe { rust_text(info.name) }
                    };
                    let snapshots =
                        list.iter().take(count).map(|i| RawSnapshot { id: i.id, name: name(i) }).collect();
                    if count > 0 {
                        // SAFETY: librbd filled the list and ended it with a NULL name.
                        unsafe { (self.rbd.rbd_snap_list_end)(list.as_mut_ptr()) };
                    }
                    return Ok(snapshots);
                }
                Err(ERANGE) => room = room.saturating_add(8),
                Err(errno) => return Err(errno),
            }
        }
        Err(ERANGE)
    }

    /// What a snapshot is (`rbd_snap_namespace_type_t`).
    ///
    /// # Errors
    /// Ceph's errno.
    pub fn snapshot_namespace(&self, id: u64) -> Result<i32, Errno> {
        let mut kind = 0;
        // SAFETY: the image is open; a place for the answer.
        check(unsafe { (self.rbd.rbd_snap_get_namespace_type)(self.handle, id, &raw mut kind) })?;
        Ok(kind)
    }

    /// A user snapshot is protected.
    ///
    /// # Errors
    /// Ceph's errno.
    pub fn snapshot_protected(&self, name: &str) -> Result<bool, Errno> {
        let name = c_text(name)?;
        let mut protected = 0;
        // SAFETY: the image is open; the name outlives the call; a place for the answer.
        check(unsafe { (self.rbd.rbd_snap_is_protected)(self.handle, name.as_ptr(), &raw mut protected) })?;
        Ok(protected != 0)
    }

    /// Looks at a snapshot instead of the head from now on.
    ///
    /// # Errors
    /// Ceph's errno.
    pub fn look_at_snapshot(&self, id: u64) -> Result<(), Errno> {
        // SAFETY: the image is open.
        check(unsafe { (self.rbd.rbd_snap_set_by_id)(self.handle, id) }).map(drop)
    }

    /// The lock object, as it was when the image was opened.
    ///
    /// # Errors
    /// Ceph's errno.
    pub fn lock(&self) -> Result<RawLock, Errno> {
        let mut sizes = [256_usize; 4];
        for _ in 0..LIST_TRIES {
            let [mut tag, mut clients, mut cookies, mut addresses] = sizes.map(|size| vec![0_u8; size]);
            let [tag_size, clients_size, cookies_size, addresses_size] = &mut sizes;
            let mut exclusive = 0;
            // SAFETY: the image is open; each buffer is given with its size, each size can be written.
            let result = unsafe {
                (self.rbd.rbd_list_lockers)(
                    self.handle,
                    &raw mut exclusive,
                    tag.as_mut_ptr().cast(),
                    tag_size,
                    clients.as_mut_ptr().cast(),
                    clients_size,
                    cookies.as_mut_ptr().cast(),
                    cookies_size,
                    addresses.as_mut_ptr().cast(),
                    addresses_size,
                )
            };
            match check_size(result) {
                Ok(count) => {
                    let lists =
                        [(clients, *clients_size), (cookies, *cookies_size), (addresses, *addresses_size)];
                    let lockers = if count == 0 { Vec::new() } else { zip_lockers(lists) };
                    return Ok(RawLock { exclusive: exclusive != 0, tag: buffer_text(&tag), lockers });
                }
                Err(ERANGE) => sizes = sizes.map(|size| size.max(256)),
                Err(errno) => return Err(errno),
            }
        }
        Err(ERANGE)
    }

    /// Everybody who watches the image's header, asked now.
    ///
    /// # Errors
    /// Ceph's errno.
    pub fn watchers(&self) -> Result<Vec<RawWatcher>, Errno> {
        let mut room = 16_usize;
        for _ in 0..LIST_TRIES {
            let mut list: Vec<ImageWatcher> =
                (0..room).map(|_| ImageWatcher { addr: std::ptr::null_mut(), id: 0, cookie: 0 }).collect();
            // SAFETY: the image is open; the list has `room` entries.
            match check(unsafe {
                (self.rbd.rbd_watchers_list)(self.handle, list.as_mut_ptr(), &raw mut room)
            }) {
                Ok(_) => {
                    let filled = room.min(list.len());
                    let watchers = list.iter().take(filled).map(raw_watcher).collect();
                    // SAFETY: librbd filled this many entries.
                    unsafe { (self.rbd.rbd_watchers_list_cleanup)(list.as_mut_ptr(), filled) };
                    return Ok(watchers);
                }
                Err(ERANGE) => room = room.saturating_add(8),
                Err(errno) => return Err(errno),
            }
        }
        Err(ERANGE)
    }

    /// The parent of a clone; `None` for an image that is no clone.
    ///
    /// # Errors
    /// Ceph's errno.
    pub fn parent(&self) -> Result<Option<RawParent>, Errno> {
        // SAFETY: zero is a valid value of every field of both.
        let (mut image, mut snapshot): (LinkedImageSpec, SnapSpec) = unsafe { std::mem::zeroed() };
        // SAFETY: the image is open; places for both answers.
        match check(unsafe { (self.rbd.rbd_get_parent)(self.handle, &raw mut image, &raw mut snapshot) }) {
            Err(ENOENT) => return Ok(None),
            Err(errno) => return Err(errno),
            Ok(_) => {}
        }
        // SAFETY: librbd filled both with strings of its own.
        let parent = unsafe {
            RawParent {
                pool_id: image.pool_id,
                pool: rust_text(image.pool_name),
                namespace: rust_text(image.pool_namespace),
                image_id: rust_text(image.image_id),
                image: rust_text(image.image_name),
                trashed: image.trash,
                snapshot_id: snapshot.id,
                snapshot: rust_text(snapshot.name),
            }
        };
        // SAFETY: librbd filled both; they are not used after.
        unsafe {
            (self.rbd.rbd_linked_image_spec_cleanup)(&raw mut image);
            (self.rbd.rbd_snap_spec_cleanup)(&raw mut snapshot);
        }
        Ok(Some(parent))
    }

    /// Whether and how the image is mirrored.
    ///
    /// # Errors
    /// Ceph's errno.
    pub fn mirror(&self) -> Result<RawMirror, Errno> {
        // SAFETY: zero is a valid value of every field.
        let mut info: MirrorImageInfo = unsafe { std::mem::zeroed() };
        let size = size_of::<MirrorImageInfo>();
        // SAFETY: the image is open; the struct is given with its size.
        check(unsafe { (self.rbd.rbd_mirror_image_get_info)(self.handle, &raw mut info, size) })?;
        let mirror = RawMirror { state: info.state, primary: info.primary };
        // SAFETY: librbd filled the struct; it is not used after.
        unsafe { (self.rbd.rbd_mirror_image_get_info_cleanup)(&raw mut info) };
        Ok(mirror)
    }

    /// `rbd_mirror_image_mode_t`.
    ///
    /// # Errors
    /// Ceph's errno.
    pub fn mirror_mode(&self) -> Result<i32, Errno> {
        self.number(self.rbd.rbd_mirror_image_get_mode)
    }

    /// Takes the exclusive lock (`RBD_LOCK_MODE_EXCLUSIVE`). librbd breaks, and blocklists the owner of, a lock whose
    /// owner no longer watches; a live owner is asked to hand it over, so that must be ruled out before.
    ///
    /// # Errors
    /// 13 may not blocklist, 16 locked by other means, 22 no exclusive-lock or a refused blocklist command, 30.
    pub fn acquire_lock(&self) -> Result<(), Errno> {
        const RBD_LOCK_MODE_EXCLUSIVE: c_int = 0;
        // SAFETY: the image is open for writing.
        check(unsafe { (self.rbd.rbd_lock_acquire)(self.handle, RBD_LOCK_MODE_EXCLUSIVE) }).map(drop)
    }

    /// Gives the exclusive lock back.
    ///
    /// # Errors
    /// Ceph's errno.
    pub fn release_lock(&self) -> Result<(), Errno> {
        // SAFETY: the image is open for writing.
        check(unsafe { (self.rbd.rbd_lock_release)(self.handle) }).map(drop)
    }
}

/// Client, cookie, address of each locker from librbd's three lists.
fn zip_lockers(lists: [(Vec<u8>, usize); 3]) -> Vec<[String; 3]> {
    let [clients, cookies, addresses] =
        lists.map(|(buffer, used)| buffer_texts(buffer.get(..used).unwrap_or_default()));
    let pairs = clients.into_iter().zip(cookies).zip(addresses);
    pairs.map(|((client, cookie), address)| [client, cookie, address]).collect()
}

fn raw_trash(entry: &TrashInfo) -> RawTrash {
    // SAFETY: librbd filled this entry with strings of its own.
    let (id, name) = unsafe { (rust_text(entry.id), rust_text(entry.name)) };
    let TrashInfo { source, deletion_time: deleted, deferment_end_time: kept_until, .. } = *entry;
    RawTrash { id, name, source, deleted, kept_until }
}

fn raw_watcher(watcher: &ImageWatcher) -> RawWatcher {
    // SAFETY: librbd filled this entry with a string of its own.
    let address = unsafe { rust_text(watcher.addr) };
    RawWatcher { address, client: watcher.id as u64, cookie: watcher.cookie }
}

impl Drop for Image {
    fn drop(&mut self) {
        // SAFETY: the image is open and nobody else has it; its io context lives until `pool` is dropped.
        unsafe { (self.rbd.rbd_close)(self.handle) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_or_symbol_is_an_error_with_its_name() {
        let missing = Rados::load("libnosuchceph.so.9").err().unwrap();
        assert!(missing.contains("libnosuchceph.so.9"), "{missing}");
        let symbol = Rados::load("libc.so.6").err().unwrap();
        assert!(symbol.contains("rados_create2"), "{symbol}");
    }

    #[test]
    fn a_missing_library_names_its_package() {
        let missing =
            MissingLibrary { library: "librbd.so.1", package: "librbd1", detail: "not found".to_owned() };
        let text = Failure::from(missing).to_string();
        assert_eq!(text, "load librbd.so.1: not found; the package librbd1 provides it");
    }

    #[test]
    fn layouts_are_those_of_the_headers_on_64_bit() {
        let sizes = [
            size_of::<ImageInfo>(),
            size_of::<SnapInfo>(),
            size_of::<ImageWatcher>(),
            size_of::<LinkedImageSpec>(),
            size_of::<SnapSpec>(),
            size_of::<MirrorImageInfo>(),
            size_of::<MigrationStatus>(),
            size_of::<TrashInfo>(),
        ];
        assert_eq!(sizes, [160, 24, 24, 48, 24, 16, 80, 40]);
    }

    #[test]
    fn lists_of_lockers_are_taken_apart() {
        let list = |text: &[u8]| (text.to_vec(), text.len());
        let lockers = zip_lockers([
            list(b"client.1\0client.2\0"),
            list(b"auto 7\0auto 8\0"),
            list(b"10.0.0.1:0/1\0\0"),
        ]);
        assert_eq!(lockers, [["client.1", "auto 7", "10.0.0.1:0/1"], ["client.2", "auto 8", ""]]);
    }
}
