//! What the exports of a module call. WASM has one thread and one entry point, so there is one of each.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cell::UnsafeCell;

use crate::{Event, Results};

type Handler = Box<dyn FnMut(&Event, &mut Results)>;

struct Global(UnsafeCell<State>);

struct State {
    batch: Vec<u64>, // words, for the alignment that records have
    out: Results,
    handler: Option<Handler>,
}

// The router calls an instance from one place at a time, and never from within a call.
unsafe impl Sync for Global {}

static STATE: Global = Global(UnsafeCell::new(State { batch: Vec::new(), out: Results::new(), handler: None }));

/// Makes the handler and returns what the marker says: the features that the function requires.
pub fn install<S: 'static>(new: impl FnOnce() -> S, handle: impl Fn(&mut S, &Event, &mut Results) + 'static) -> u32 {
    let mut state = new();
    let h: Handler = Box::new(move |e, out| handle(&mut state, e, out));
    unsafe { (*STATE.0.get()).handler = Some(h) };
    features()
}

const fn features() -> u32 {
    cfg!(feature = "kv") as u32
        | (cfg!(feature = "http") as u32) << 1
        | (cfg!(feature = "reply") as u32) << 2
        | (cfg!(feature = "secrets") as u32) << 3
}

/// Returns room for a batch, null if there is no memory for it.
pub fn buffer(n: u32) -> *mut u8 {
    let batch = unsafe { &mut (*STATE.0.get()).batch };
    let words = (n as usize + 7) / 8;
    if words > batch.len() {
        batch.clear(); // or growing would copy what the last batch left
        if batch.try_reserve(words).is_err() {
            return core::ptr::null_mut();
        }
        batch.resize(batch.capacity(), 0);
    }
    batch.as_mut_ptr() as *mut u8
}

/// Runs the handler over a batch.
///
/// # Safety
/// The router wrote `len` bytes of a batch at `ptr`, which `buffer` returned.
pub unsafe fn handle(ptr: *mut u8, len: u32) -> u64 {
    let state = &mut *STATE.0.get();
    let handler = match state.handler.as_mut() {
        Some(h) => h,
        None => return 0,
    };
    let out = state.out.run(core::slice::from_raw_parts_mut(ptr, len as usize), handler);
    (out.as_ptr() as usize as u64) << 32 | out.len() as u64
}
