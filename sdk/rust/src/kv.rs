//! A function's state: values by key, which belong to the function's name and outlive its versions. Writes
//! take effect with the function's results and the position in the topic, or not at all, so that a retry
//! never applies one twice.

use alloc::vec::Vec;
use core::time::Duration;

use crate::host::{read, sys, HostError};

fn done(code: i32) -> Result<(), HostError> {
    match code {
        0 => Ok(()),
        n => Err(HostError::of(n as i64)),
    }
}

/// Returns a value, `None` where there is none or it has expired.
pub fn get(key: &str) -> Result<Option<Vec<u8>>, HostError> {
    match read(256, |buf, room| unsafe { sys::kv_get(key.as_ptr(), key.len() as u32, buf, room) }) {
        Err(HostError::NotFound) => Ok(None),
        other => other.map(Some),
    }
}

/// Stores a value, for a while or, with zero, until it is deleted. A fraction of a millisecond counts as one.
pub fn put(key: &str, value: &[u8], ttl: Duration) -> Result<(), HostError> {
    let ms = ttl.as_nanos().saturating_add(999_999) / 1_000_000;
    done(unsafe {
        sys::kv_put(key.as_ptr(), key.len() as u32, value.as_ptr(), value.len() as u32, ms.min(i64::MAX as u128) as i64)
    })
}

/// Removes a value. That there is none is no error.
pub fn delete(key: &str) -> Result<(), HostError> {
    match done(unsafe { sys::kv_del(key.as_ptr(), key.len() as u32) }) {
        Err(HostError::NotFound) => Ok(()),
        other => other,
    }
}

/// Adds to a number, 0 if there is none, and returns the sum.
pub fn add(key: &str, delta: i64) -> Result<i64, HostError> {
    let mut sum = 0;
    done(unsafe { sys::kv_add(key.as_ptr(), key.len() as u32, delta, &mut sum) })?;
    Ok(sum)
}
