use alloc::vec::Vec;
use core::time::Duration;

use crate::event::{tag, u32_at};
use crate::Event;

const PASS: u8 = 0;
const EMIT: u8 = 1;
const DROP: u8 = 2;
const RETRY: u8 = 3;
const REJECT: u8 = 4;
const REPLY: u8 = 5;

const INHERIT: u8 = 1;
const SAME_DATA: u8 = 2;

const BATCH_HEADER: usize = 24;
const RESULT_HEADER: usize = 24;
const NO_VALUE: u32 = u32::MAX;

/// Takes what a handler says about its event: one of `pass`, `drop`, `retry` and `reject`, or any number of
/// events by `replace`, `relabel` and `emit`. `pass` may come with more events after it. `retry` and `reject`
/// discard the events before them. `reply` may come beside anything. Other combinations, and silence, fail
/// the event at the router. All bytes are copied at once.
pub struct Results {
    buf: Vec<u8>,
    index: u32,
}

impl Results {
    pub(crate) const fn new() -> Self {
        Results { buf: Vec::new(), index: 0 }
    }

    /// Calls `h` for every event of a batch and returns what it said.
    pub(crate) fn run(&mut self, batch: &mut [u8], h: &mut dyn FnMut(&Event, &mut Results)) -> &[u8] {
        self.buf.clear();
        self.buf.reserve(4 << 10); // no results must not look like a null answer
        let (header, mut at) = batch.split_at_mut(BATCH_HEADER);
        let count = u32_at(header, 4);
        for i in 0..count {
            // The router reads this cursor when the handler traps, so it must not be held back.
            unsafe { core::ptr::write_volatile(header[12..].as_mut_ptr() as *mut u32, i.to_le()) };
            self.index = i;
            let (event, _) = Event::cut(at);
            h(&event, self);
            let size = u32_at(at, 0) as usize;
            at = &mut at[size..];
        }
        header[12..16].copy_from_slice(&count.to_le_bytes());
        &self.buf
    }

    /// Delivers the event unchanged.
    pub fn pass(&mut self) {
        self.add(PASS, 0, 0, None, &[]);
    }

    /// Acknowledges the event and delivers nothing.
    pub fn drop(&mut self) {
        self.add(DROP, 0, 0, None, &[]);
    }

    /// Asks for another attempt after a while; zero leaves the delay to the subscription's policy.
    pub fn retry(&mut self, after: Duration) {
        self.add(RETRY, 0, after.as_millis().min(u32::MAX as u128) as u32, None, &[]);
    }

    /// Moves the event to the dead letters now.
    pub fn reject(&mut self, code: u32, reason: &str) {
        self.add(REJECT, 0, code, Some(reason.as_bytes()), &[]);
    }

    /// Answers a synchronous call; the status is one of HTTP, the content type "" means JSON.
    pub fn reply(&mut self, status: u32, content_type: &str, body: &[u8]) {
        let attr = [Attr::content_type(content_type)];
        self.add(REPLY, 0, status, Some(body), if content_type.is_empty() { &[] } else { &attr });
    }

    /// Delivers an event with the input's attributes and other data. Attributes that are given change or
    /// remove those of the input. Without an id the router derives one from the input's, the same in every
    /// attempt.
    pub fn replace(&mut self, data: &[u8], attrs: &[Attr]) {
        self.add(EMIT, INHERIT, 0, Some(data), attrs);
    }

    /// Delivers an event with the input's data and other attributes.
    pub fn relabel(&mut self, attrs: &[Attr]) {
        self.add(EMIT, INHERIT | SAME_DATA, 0, None, attrs);
    }

    /// Delivers an event of its own, which needs at least a source and a type.
    pub fn emit(&mut self, data: Option<&[u8]>, attrs: &[Attr]) {
        self.add(EMIT, 0, 0, data, attrs);
    }

    fn add(&mut self, kind: u8, flags: u8, arg: u32, data: Option<&[u8]>, attrs: &[Attr]) {
        let start = self.buf.len();
        self.buf.extend_from_slice(&[0; RESULT_HEADER]);
        for a in attrs {
            a.put(&mut self.buf);
        }
        let off = self.buf.len() - start;
        if let Some(d) = data {
            self.buf.extend_from_slice(d);
        }
        pad(&mut self.buf, 8);
        let h = &mut self.buf[start..];
        let size = h.len() as u32;
        h[..4].copy_from_slice(&size.to_le_bytes());
        h[4] = kind;
        h[5] = flags;
        h[6..8].copy_from_slice(&(attrs.len() as u16).to_le_bytes());
        h[8..12].copy_from_slice(&self.index.to_le_bytes());
        h[12..16].copy_from_slice(&arg.to_le_bytes());
        if let Some(d) = data {
            h[16..20].copy_from_slice(&(off as u32).to_le_bytes());
            h[20..24].copy_from_slice(&(d.len() as u32).to_le_bytes());
        }
    }
}

fn pad(b: &mut Vec<u8>, to: usize) {
    while b.len() % to != 0 {
        b.push(0);
    }
}

/// An attribute for an event that a function makes.
#[derive(Clone, Copy)]
pub struct Attr<'a> {
    tag: u8,
    kind: u8,
    name: &'a str,
    value: Option<&'a str>,
}

impl<'a> Attr<'a> {
    const fn tagged(tag: u8, kind: u8, value: &'a str) -> Self {
        Attr { tag, kind, name: "", value: Some(value) }
    }

    /// Names the event; it must be the same in every attempt.
    pub const fn id(v: &'a str) -> Self {
        Self::tagged(tag::ID, 0, v)
    }
    /// Sets the source.
    pub const fn source(v: &'a str) -> Self {
        Self::tagged(tag::SOURCE, 5, v)
    }
    /// Sets the type.
    pub const fn event_type(v: &'a str) -> Self {
        Self::tagged(tag::TYPE, 0, v)
    }
    /// Sets the subject.
    pub const fn subject(v: &'a str) -> Self {
        Self::tagged(tag::SUBJECT, 0, v)
    }
    /// Sets datacontenttype.
    pub const fn content_type(v: &'a str) -> Self {
        Self::tagged(tag::CONTENT_TYPE, 0, v)
    }
    /// Sets dataschema.
    pub const fn schema(v: &'a str) -> Self {
        Self::tagged(tag::SCHEMA, 4, v)
    }
    /// Sends the event to another topic instead of to the subscription's target.
    pub const fn topic(v: &'a str) -> Self {
        Self::tagged(tag::TOPIC, 0, v)
    }
    /// Sets the partition key.
    pub const fn key(v: &'a str) -> Self {
        Self::tagged(tag::KEY, 0, v)
    }
    /// Sets the time, RFC 3339.
    pub const fn time(v: &'a str) -> Self {
        Self::tagged(tag::TIME, 6, v)
    }
    /// Sets an extension attribute: a name of lower-case letters and digits.
    pub fn extension(name: &'a str, value: &'a str) -> Self {
        Attr { value: Some(value), ..Self::unset(name) }
    }
    /// Removes an attribute that the event would have of its input.
    pub fn unset(name: &'a str) -> Self {
        let tag = match name {
            "id" => tag::ID,
            "source" => tag::SOURCE,
            "type" => tag::TYPE,
            "subject" => tag::SUBJECT,
            "datacontenttype" => tag::CONTENT_TYPE,
            "dataschema" => tag::SCHEMA,
            "partitionkey" => tag::KEY,
            "traceparent" => tag::TRACE_PARENT,
            "time" => tag::TIME,
            _ => return Attr { tag: tag::EXTENSION, kind: 0, name, value: None },
        };
        Attr { tag, kind: 0, name: "", value: None }
    }

    fn put(&self, b: &mut Vec<u8>) {
        b.extend_from_slice(&[self.tag, self.kind]);
        b.extend_from_slice(&(self.name.len() as u16).to_le_bytes());
        b.extend_from_slice(&self.value.map_or(NO_VALUE, |v| v.len() as u32).to_le_bytes());
        b.extend_from_slice(self.name.as_bytes());
        b.extend_from_slice(self.value.unwrap_or_default().as_bytes());
        pad(b, 4);
    }
}
