use core::str;

pub(crate) fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([b[at], b[at + 1]])
}

pub(crate) fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    u32_at(b, at) as u64 | (u32_at(b, at + 4) as u64) << 32
}

pub(crate) mod tag {
    pub const EXTENSION: u8 = 0;
    pub const ID: u8 = 1;
    pub const SOURCE: u8 = 2;
    pub const TYPE: u8 = 3;
    pub const SUBJECT: u8 = 4;
    pub const CONTENT_TYPE: u8 = 5;
    pub const SCHEMA: u8 = 6;
    pub const TOPIC: u8 = 7;
    pub const KEY: u8 = 8;
    pub const TRACE_PARENT: u8 = 9;
    pub const TIME: u8 = 10;
}

/// One event as the router hands it over: a view of the batch. Text attributes that are absent are "".
pub struct Event<'a> {
    rec: &'a [u8],
}

impl<'a> Event<'a> {
    /// Reads the event at the start of `b`, which the router wrote, and returns what follows it.
    pub(crate) fn cut(b: &'a [u8]) -> (Event<'a>, &'a [u8]) {
        let (rec, rest) = b.split_at(u32_at(b, 0) as usize);
        (Event { rec }, rest)
    }

    /// The event's id.
    pub fn id(&self) -> &'a str {
        self.tagged(tag::ID)
    }
    /// The event's source.
    pub fn source(&self) -> &'a str {
        self.tagged(tag::SOURCE)
    }
    /// The event's type.
    pub fn event_type(&self) -> &'a str {
        self.tagged(tag::TYPE)
    }
    /// The event's subject.
    pub fn subject(&self) -> &'a str {
        self.tagged(tag::SUBJECT)
    }
    /// datacontenttype, "" where the producer gave none, which means JSON.
    pub fn content_type(&self) -> &'a str {
        self.tagged(tag::CONTENT_TYPE)
    }
    /// dataschema.
    pub fn schema(&self) -> &'a str {
        self.tagged(tag::SCHEMA)
    }
    /// Where the event lies.
    pub fn topic(&self) -> &'a str {
        self.tagged(tag::TOPIC)
    }
    /// The partition key.
    pub fn key(&self) -> &'a str {
        self.tagged(tag::KEY)
    }
    /// The trace context.
    pub fn trace_parent(&self) -> &'a str {
        self.tagged(tag::TRACE_PARENT)
    }
    /// The producer's time, RFC 3339 exactly as it was written.
    pub fn time(&self) -> &'a str {
        self.tagged(tag::TIME)
    }

    /// The event's data, `None` if it has none.
    pub fn data(&self) -> Option<&'a [u8]> {
        if u16_at(self.rec, 6) & 4 != 0 {
            return None;
        }
        let off = u32_at(self.rec, 32) as usize;
        Some(&self.rec[off..off + u32_at(self.rec, 36) as usize])
    }
    /// The event's data, empty if it has none.
    pub fn data_or_empty(&self) -> &'a [u8] {
        self.data().unwrap_or_default()
    }
    /// Whether the data is bytes rather than JSON or text.
    pub fn binary(&self) -> bool {
        u16_at(self.rec, 6) & 8 != 0
    }
    /// Whether somebody waits for a reply.
    pub fn reply_wanted(&self) -> bool {
        u16_at(self.rec, 6) & 1 != 0
    }
    /// 1 for the first attempt.
    pub fn attempt(&self) -> u32 {
        u32_at(self.rec, 24)
    }
    /// When the router took the event, in Unix nanoseconds.
    pub fn received(&self) -> i64 {
        u64_at(self.rec, 16) as i64
    }
    /// Where in its topic the event lies.
    pub fn partition(&self) -> u32 {
        u32_at(self.rec, 28)
    }
    /// Where in its partition the event lies.
    pub fn offset(&self) -> u64 {
        u64_at(self.rec, 8)
    }
    /// How many topics the event's ancestors passed.
    pub fn hops(&self) -> u32 {
        u32_at(self.rec, 44)
    }

    /// An extension attribute by name, in its string form.
    pub fn extension(&self, name: &str) -> Option<&'a str> {
        let tag = match name {
            "partitionkey" => tag::KEY,
            "traceparent" => tag::TRACE_PARENT,
            _ => return self.attrs().find(|a| a.0 == tag::EXTENSION && a.1 == name).map(|a| a.2),
        };
        Some(self.tagged(tag)).filter(|v| !v.is_empty())
    }

    /// The extension attributes that have no accessor of their own, as names and values.
    pub fn extensions(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.attrs().filter(|a| a.0 == tag::EXTENSION).map(|a| (a.1, a.2))
    }

    fn tagged(&self, tag: u8) -> &'a str {
        self.attrs().find(|a| a.0 == tag).map_or("", |a| a.2)
    }

    fn attrs(&self) -> Attrs<'a> {
        Attrs { b: &self.rec[u32_at(self.rec, 40) as usize..], left: u16_at(self.rec, 4) }
    }
}

struct Attrs<'a> {
    b: &'a [u8],
    left: u16,
}

impl<'a> Iterator for Attrs<'a> {
    type Item = (u8, &'a str, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        let b = self.b;
        let value = 8 + u16_at(b, 2) as usize;
        let end = value + u32_at(b, 4) as usize;
        self.b = &b[((end + 3) & !3).min(b.len())..];
        // The router takes no attribute that is not UTF-8; to check it again for every event would cost.
        Some(unsafe { (b[0], str::from_utf8_unchecked(&b[8..value]), str::from_utf8_unchecked(&b[value..end])) })
    }
}
