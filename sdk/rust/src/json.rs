//! Reading and changing JSON by scanning it: decoding a document in WASM costs many times as much.
//!
//! A path is names joined by points, such as `customer.email` or `items.0.price`; a number steps into an array
//! and may be written `items[0].price`, a backslash takes the next byte as it is (`a\.b` is one name; [`name`]
//! puts them in), and the empty path is the document. Where an object has a name twice, readers see the last,
//! as nearly every decoder does, and changes act on all, so that nothing that should be hidden stays behind. A
//! document that is no JSON makes them find nothing or return an error; of values that the path passes by they
//! look at brackets and quotes only.

use alloc::borrow::Cow;
use alloc::string::String;
use alloc::vec::Vec;
use core::str;

pub use crate::edit::{apply, Edit, EditError, MAX_EDITS};
use crate::scan::{cut_path, skip, space, unquote, Scan};

/// The path of the member with this name, whatever bytes are in it.
pub fn name(name: &str) -> String {
    let mut path = String::with_capacity(name.len());
    for c in name.chars() {
        if matches!(c, '.' | '\\' | '[') {
            path.push('\\');
        }
        path.push(c);
    }
    path
}

/// Whether the document is a JSON object, as far as a scan of it can tell.
pub fn is_object(doc: &[u8]) -> bool {
    let mut s = match Scan::open(doc, space(doc, 0)) {
        Some(s) if !s.array => s,
        _ => return false,
    };
    while s.next() {
        if s.skip().is_none() {
            return false;
        }
    }
    !s.bad && space(doc, s.close + 1) == doc.len()
}

/// The value at a path as it stands in the document.
pub fn get<'a>(doc: &'a [u8], path: &str) -> Option<&'a [u8]> {
    find(doc, path, false)
}

/// Whether there is a value at a path, null included.
pub fn has(doc: &[u8], path: &str) -> bool {
    find(doc, path, true).is_some()
}

/// Stops at the first value if any will do.
fn find<'a>(doc: &'a [u8], path: &str, any: bool) -> Option<&'a [u8]> {
    let mut from = space(doc, 0);
    if path.is_empty() {
        return Some(&doc[from..skip(doc, from)?]);
    }
    let mut rest = Some(path.as_bytes());
    let mut to = from;
    while let Some(path) = rest {
        let (seg, more) = cut_path(path);
        let mut s = Scan::open(doc, from)?;
        let mut found = None;
        while s.next() {
            let end = s.skip()?;
            if s.is(&seg) {
                found = Some((s.from, end));
                if any && more.is_none() {
                    break;
                }
            }
        }
        if s.bad {
            return None;
        }
        (from, to) = found?;
        rest = more;
    }
    Some(&doc[from..to])
}

/// The string at a path. Without escapes it borrows the document; what is no UTF-8 is replaced.
pub fn get_str<'a>(doc: &'a [u8], path: &str) -> Option<Cow<'a, str>> {
    let v = get(doc, path)?;
    if v.len() < 2 || v[0] != b'"' {
        return None;
    }
    Some(match unquote(&v[1..v.len() - 1]) {
        Cow::Borrowed(b) => String::from_utf8_lossy(b),
        Cow::Owned(b) => Cow::Owned(String::from_utf8_lossy(&b).into_owned()),
    })
}

/// The integer at a path; 1.0 and 1e3 are none.
pub fn get_int(doc: &[u8], path: &str) -> Option<i64> {
    str::from_utf8(get(doc, path)?).ok()?.parse().ok()
}

/// The number at a path.
pub fn get_float(doc: &[u8], path: &str) -> Option<f64> {
    let v = get(doc, path)?;
    if !matches!(v[0], b'-' | b'0'..=b'9') {
        return None;
    }
    str::from_utf8(v).ok()?.parse().ok().filter(|n: &f64| n.is_finite())
}

/// The boolean at a path.
pub fn get_bool(doc: &[u8], path: &str) -> Option<bool> {
    match get(doc, path)? {
        b"true" => Some(true),
        b"false" => Some(false),
        _ => None,
    }
}

/// The elements of the array at a path as they stand in the document; none if there is no array. A document
/// that is cut off ends it early: ask [`is_object`] first.
pub fn elements<'a>(doc: &'a [u8], path: &str) -> Elements<'a> {
    let array = get(doc, path).unwrap_or_default();
    Elements { array, scan: Scan::open(array, 0).filter(|s| s.array) }
}

/// The elements of an array.
pub struct Elements<'a> {
    array: &'a [u8],
    scan: Option<Scan<'a>>,
}

impl<'a> Iterator for Elements<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let s = self.scan.as_mut()?;
        if !s.next() {
            return None;
        }
        let end = s.skip()?;
        Some(&self.array[s.from..end])
    }
}

/// Appends the document with the value, which is JSON, at a path; objects that are missing on the way are
/// made. On an error `dst` is as it was. Reuse it from event to event.
pub fn set(dst: &mut Vec<u8>, doc: &[u8], path: &str, value: &str) -> Result<(), EditError> {
    apply(dst, doc, &[Edit::set(path, value)])
}

/// Is [`set`] with a string, which it quotes.
pub fn set_text(dst: &mut Vec<u8>, doc: &[u8], path: &str, value: &str) -> Result<(), EditError> {
    apply(dst, doc, &[Edit::set_text(path, value)])
}

/// Appends the document without the value at a path. That there is none is no error.
pub fn delete(dst: &mut Vec<u8>, doc: &[u8], path: &str) -> Result<(), EditError> {
    apply(dst, doc, &[Edit::remove(path)])
}

/// Appends `s` as a JSON string.
pub fn append_string(dst: &mut Vec<u8>, s: &str) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    dst.push(b'"');
    for &c in s.as_bytes() {
        match c {
            b'"' | b'\\' => dst.extend_from_slice(&[b'\\', c]),
            0..=0x1f => dst.extend_from_slice(&[b'\\', b'u', b'0', b'0', HEX[(c >> 4) as usize], HEX[(c & 15) as usize]]),
            _ => dst.push(c),
        }
    }
    dst.push(b'"');
}
