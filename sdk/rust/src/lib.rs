#![doc = include_str!("../README.md")]
#![no_std]
#![warn(missing_docs)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod edit;
mod event;
pub mod host;
pub mod json;
mod results;
#[doc(hidden)]
pub mod rt;
mod scan;

#[cfg(feature = "http")]
pub mod http;
#[cfg(feature = "kv")]
pub mod kv;

pub use event::Event;
pub use host::{clock, config, count, log, now, random, HostError, Level};
#[cfg(feature = "secrets")]
pub use host::secret;
pub use results::{Attr, Results};

/// Makes a handler the function that this module is.
///
/// `handler!(handle)` takes a `fn(&Event, &mut Results)`. `handler!(new, handle)` takes a `fn() -> S`, which
/// runs once while the module starts and is the place to read the configuration, and a
/// `fn(&mut S, &Event, &mut Results)`.
#[macro_export]
macro_rules! handler {
    ($handle:expr) => {
        $crate::handler!(|| (), |_: &mut (), e: &$crate::Event, out: &mut $crate::Results| {
            let handle: fn(&$crate::Event, &mut $crate::Results) = $handle;
            handle(e, out)
        });
    };
    ($new:expr, $handle:expr) => {
        #[doc(hidden)]
        #[no_mangle]
        pub extern "C" fn millrace_abi_v1() -> u32 {
            $crate::rt::install($new, $handle)
        }
        #[doc(hidden)]
        #[no_mangle]
        pub extern "C" fn millrace_buffer(n: u32) -> *mut u8 {
            $crate::rt::buffer(n)
        }
        #[doc(hidden)]
        #[no_mangle]
        pub unsafe extern "C" fn millrace_handle(ptr: *mut u8, len: u32) -> u64 {
            $crate::rt::handle(ptr, len)
        }
    };
}
