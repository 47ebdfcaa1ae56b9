//! HTTP requests through the router, to the hosts that the function's configuration allows and within the
//! call's time. Nothing takes a request back: a retry of an event makes its requests again.

use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use crate::event::{u16_at, u32_at};
use crate::host::{sys, HostError};

const VERSION: u16 = 1;
const REQUEST_HEADER: usize = 20;
const RESPONSE_HEADER: usize = 12;

/// What to ask. A timeout of zero leaves it to the router.
#[derive(Clone, Copy, Default)]
pub struct Request<'a> {
    /// GET if it is empty.
    pub method: &'a str,
    /// Where to.
    pub url: &'a str,
    /// Names and values.
    pub headers: &'a [(&'a str, &'a str)],
    /// What to send.
    pub body: &'a [u8],
    /// How long to wait.
    pub timeout: Duration,
}

/// An answer, whatever its status says.
#[derive(Debug)]
pub struct Response {
    /// The status.
    pub status: u16,
    head: String,
    /// What came.
    pub body: Vec<u8>,
}

impl Response {
    /// Names and values, as they came.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.head.lines().filter_map(|l| l.split_once(':')).map(|(k, v)| (k.trim(), v.trim()))
    }

    /// The first value of a name, whose case does not matter.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers().find(|(k, _)| k.eq_ignore_ascii_case(name)).map(|(_, v)| v)
    }
}

/// Makes a request and returns the answer.
pub fn fetch(r: &Request) -> Result<Response, HostError> {
    let req = encode(r)?;
    let mut buf: Vec<u8> = Vec::with_capacity(16 << 10);
    let mut n = unsafe { sys::http(req.as_ptr(), req.len() as u32, buf.as_mut_ptr(), buf.capacity() as u32) };
    if n > buf.capacity() as i64 {
        // The router keeps it: no request asks for what it has.
        buf.reserve_exact(n as usize);
        n = unsafe { sys::http(req.as_ptr(), 0, buf.as_mut_ptr(), buf.capacity() as u32) };
    }
    if n < 0 {
        return Err(HostError::of(n));
    }
    unsafe { buf.set_len((n as usize).min(buf.capacity())) };
    decode(&buf).ok_or(HostError::Io)
}

/// Writes the version, the lengths and the timeout in ms, then method, URL, header lines and body. A line
/// break inside a header is refused here: it would make another header.
fn encode(r: &Request) -> Result<Vec<u8>, HostError> {
    let method = if r.method.is_empty() { "GET" } else { r.method };
    let breaks = |s: &str| s.contains(|c| c == '\r' || c == '\n');
    if method.len() > u16::MAX as usize || r.headers.iter().any(|(k, v)| k.is_empty() || k.contains(':') || breaks(k) || breaks(v)) {
        return Err(HostError::BadArgument);
    }
    let head: usize = r.headers.iter().map(|(k, v)| k.len() + v.len() + 4).sum();
    let ms = (r.timeout.as_nanos() + 999_999) / 1_000_000;
    let mut b = Vec::with_capacity(REQUEST_HEADER + method.len() + r.url.len() + head + r.body.len());
    b.extend_from_slice(&VERSION.to_le_bytes());
    b.extend_from_slice(&(method.len() as u16).to_le_bytes());
    for n in [r.url.len(), head, r.body.len(), ms.min(u32::MAX as u128) as usize] {
        b.extend_from_slice(&(n as u32).to_le_bytes());
    }
    b.extend_from_slice(method.as_bytes());
    b.extend_from_slice(r.url.as_bytes());
    for (k, v) in r.headers {
        for s in [k, ": ", v, "\r\n"] {
            b.extend_from_slice(s.as_bytes());
        }
    }
    b.extend_from_slice(r.body);
    Ok(b)
}

/// Reads the version, the status, the lengths, header lines and body.
fn decode(b: &[u8]) -> Option<Response> {
    if b.len() < RESPONSE_HEADER || u16_at(b, 0) != VERSION {
        return None;
    }
    let (head, body) = (u32_at(b, 4) as usize, u32_at(b, 8) as usize);
    let rest = &b[RESPONSE_HEADER..];
    if head.checked_add(body)? != rest.len() {
        return None;
    }
    let (head, body) = rest.split_at(head);
    Some(Response { status: u16_at(b, 2), head: String::from_utf8_lossy(head).into_owned(), body: body.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoding() {
        let headers = [("x-a", "1"), ("b", "")];
        let r = Request { method: "POST", url: "http://a/", headers: &headers, body: b"hi", timeout: Duration::from_millis(1500) };
        let want = b"\x01\0\x04\0\x09\0\0\0\x0d\0\0\0\x02\0\0\0\xdc\x05\0\0POSThttp://a/x-a: 1\r\nb: \r\nhi";
        assert_eq!(encode(&r).unwrap(), want);
        for h in [("a", "1\r\nb: 2"), ("a\n", ""), ("a:b", ""), ("", "v")] {
            assert_eq!(encode(&Request { headers: &[h], ..r }), Err(HostError::BadArgument), "{:?}", h);
        }
        let got = decode(b"\x01\0\xc9\0\x16\0\0\0\x02\0\0\0Content-Type: a/b\r\nx:1ok").unwrap();
        assert_eq!((got.status, got.header("content-type"), got.header("X"), &got.body[..]), (201, Some("a/b"), Some("1"), &b"ok"[..]));
        for s in [&b""[..], b"\x02\0\xc8\0\0\0\0\0\0\0\0\0", b"\x01\0\xc8\0\x05\0\0\0\0\0\0\0a"] {
            assert!(decode(s).is_none());
        }
        assert_eq!(fetch(&r).unwrap_err(), HostError::Denied);
    }
}
