//! What a function asks its router for. Outside of WASM, in a handler's own tests, there is no router: the
//! log is dropped, nothing is configured, stored or allowed, and time stands still.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// How much a log line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Level {
    /// For whoever works on the function.
    Debug = 0,
    /// Worth knowing.
    Info = 1,
    /// Odd, and dealt with.
    Warn = 2,
    /// Somebody should look.
    Error = 3,
}

/// Why the router did not do what it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostError {
    /// There is none.
    NotFound,
    /// Denied to this function.
    Denied,
    /// Too big.
    TooBig,
    /// The call's time is over.
    Deadline,
    /// The other side could not be reached or failed.
    Io,
    /// An argument that the router does not take.
    BadArgument,
    /// An error that this SDK does not know.
    Unknown(i64),
}

impl HostError {
    pub(crate) fn of(code: i64) -> Self {
        match code {
            -1 => HostError::NotFound,
            -2 => HostError::Denied,
            -3 => HostError::TooBig,
            -4 => HostError::Deadline,
            -5 => HostError::Io,
            -6 => HostError::BadArgument,
            n => HostError::Unknown(n),
        }
    }
}

impl fmt::Display for HostError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            HostError::NotFound => "not found",
            HostError::Denied => "denied to this function",
            HostError::TooBig => "too big",
            HostError::Deadline => "the call's time is over",
            HostError::Io => "the other side could not be reached or failed",
            HostError::BadArgument => "an argument that the router does not take",
            HostError::Unknown(n) => return write!(f, "error {}, which this SDK does not know", n),
        })
    }
}

/// Calls `read` with a buffer, and again with a larger one if the answer is larger.
#[allow(dead_code)]
pub(crate) fn read(first: usize, mut read: impl FnMut(*mut u8, u32) -> i64) -> Result<Vec<u8>, HostError> {
    let mut buf: Vec<u8> = Vec::with_capacity(first);
    loop {
        let n = read(buf.as_mut_ptr(), buf.capacity() as u32);
        if n < 0 {
            return Err(HostError::of(n));
        }
        if n as usize <= buf.capacity() {
            unsafe { buf.set_len(n as usize) }; // the router wrote them
            return Ok(buf);
        }
        buf.reserve_exact(n as usize);
    }
}

/// Writes a line to the function's log, which is bounded in length and rate.
pub fn log(level: Level, message: &str) {
    unsafe { sys::log(level as i32, message.as_ptr(), message.len() as u32) }
}

/// A value of the function's configuration. It asks the router: read what does not change once.
pub fn config(key: &str) -> Option<String> {
    let b = read(256, |buf, room| unsafe { sys::config_get(key.as_ptr(), key.len() as u32, buf, room) }).ok()?;
    String::from_utf8(b).ok()
}

/// A secret that the function was given. Read it when it is needed rather than once: it may be changed.
#[cfg(feature = "secrets")]
pub fn secret(name: &str) -> Result<Vec<u8>, HostError> {
    read(256, |buf, room| unsafe { sys::secret_get(name.as_ptr(), name.len() as u32, buf, room) })
}

/// Adds to a counter of the function, which the router shows with its metrics.
pub fn count(name: &str, delta: i64) {
    unsafe { sys::counter_add(name.as_ptr(), name.len() as u32, delta) }
}

/// When the router received the event at work, in Unix nanoseconds: the same in every attempt, so that a
/// retry decides alike.
pub fn now() -> i64 {
    unsafe { sys::now() }
}

/// The true time in Unix nanoseconds. What depends on it may come out differently in a retry.
pub fn clock() -> i64 {
    unsafe { sys::clock() }
}

/// Fills `p` with bytes that are the same in every attempt at the event at work and unpredictable otherwise.
pub fn random(p: &mut [u8]) {
    unsafe { sys::random(p.as_mut_ptr(), p.len() as u32) }
}

#[cfg(target_arch = "wasm32")]
#[allow(dead_code)]
pub(crate) mod sys {
    #[link(wasm_import_module = "millrace_v1")]
    extern "C" {
        pub fn log(level: i32, ptr: *const u8, len: u32);
        pub fn config_get(k: *const u8, klen: u32, buf: *mut u8, room: u32) -> i64;
        pub fn secret_get(k: *const u8, klen: u32, buf: *mut u8, room: u32) -> i64;
        pub fn kv_get(k: *const u8, klen: u32, buf: *mut u8, room: u32) -> i64;
        pub fn kv_put(k: *const u8, klen: u32, v: *const u8, vlen: u32, ttl: i64) -> i32;
        pub fn kv_del(k: *const u8, klen: u32) -> i32;
        pub fn kv_add(k: *const u8, klen: u32, delta: i64, sum: *mut i64) -> i32;
        pub fn counter_add(name: *const u8, len: u32, delta: i64);
        pub fn http(req: *const u8, len: u32, buf: *mut u8, room: u32) -> i64;
        pub fn now() -> i64;
        pub fn clock() -> i64;
        pub fn random(ptr: *mut u8, len: u32);
    }
}

#[cfg(not(target_arch = "wasm32"))]
#[allow(dead_code)]
pub(crate) mod sys {
    const NOT_FOUND: i64 = -1;
    const DENIED: i64 = -2;

    pub unsafe fn log(_: i32, _: *const u8, _: u32) {}
    pub unsafe fn config_get(_: *const u8, _: u32, _: *mut u8, _: u32) -> i64 {
        NOT_FOUND
    }
    pub unsafe fn secret_get(_: *const u8, _: u32, _: *mut u8, _: u32) -> i64 {
        NOT_FOUND
    }
    pub unsafe fn kv_get(_: *const u8, _: u32, _: *mut u8, _: u32) -> i64 {
        NOT_FOUND
    }
    pub unsafe fn kv_put(_: *const u8, _: u32, _: *const u8, _: u32, _: i64) -> i32 {
        DENIED as i32
    }
    pub unsafe fn kv_del(_: *const u8, _: u32) -> i32 {
        DENIED as i32
    }
    pub unsafe fn kv_add(_: *const u8, _: u32, _: i64, _: *mut i64) -> i32 {
        DENIED as i32
    }
    pub unsafe fn counter_add(_: *const u8, _: u32, _: i64) {}
    pub unsafe fn http(_: *const u8, _: u32, _: *mut u8, _: u32) -> i64 {
        DENIED
    }
    pub unsafe fn now() -> i64 {
        0
    }
    pub unsafe fn clock() -> i64 {
        0
    }
    pub unsafe fn random(ptr: *mut u8, len: u32) {
        core::ptr::write_bytes(ptr, 0, len as usize)
    }
}
