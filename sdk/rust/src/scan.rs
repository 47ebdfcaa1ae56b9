//! Walking JSON as text.

use alloc::borrow::Cow;
use alloc::vec::Vec;

const LOWS: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;

/// Sets the high bit of each byte of `w` that is zero, and perhaps of some after the first.
fn marks(w: u64) -> u64 {
    w.wrapping_sub(LOWS) & !w & HIGHS
}

fn word(doc: &[u8], at: usize) -> Option<u64> {
    let b = doc.get(at..at + 8)?;
    Some(u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
}

/// Walks the members of an object or the elements of an array. After `next` the caller moves `at` to the end
/// of the value at hand.
pub(crate) struct Scan<'a> {
    doc: &'a [u8],
    pub at: usize,
    pub array: bool,
    pub bad: bool,
    pub count: usize, // members seen
    pub close: usize, // where the closing bracket is, at the end
    pub comma: usize, // before the member at hand
    pub start: usize, // of the member: its key, or its value in an array
    pub from: usize,  // its value
    key: &'a [u8],    // as it is written
    escaped: bool,    // the key has a backslash
}

impl<'a> Scan<'a> {
    pub fn open(doc: &'a [u8], at: usize) -> Option<Self> {
        let array = match doc.get(at)? {
            b'{' => false,
            b'[' => true,
            _ => return None,
        };
        Some(Scan { doc, at: at + 1, array, bad: false, count: 0, close: 0, comma: 0, start: 0, from: 0, key: b"", escaped: false })
    }

    /// Comes to the value of the next member.
    pub fn next(&mut self) -> bool {
        match self.step() {
            Some(more) => more,
            None => {
                self.bad = true;
                false
            }
        }
    }

    fn step(&mut self) -> Option<bool> {
        let doc = self.doc;
        let mut at = space(doc, self.at);
        let c = *doc.get(at)?;
        if c == b'}' || c == b']' {
            if self.array != (c == b']') {
                return None;
            }
            self.close = at;
            return Some(false);
        }
        if self.count > 0 {
            if c != b',' {
                return None;
            }
            self.comma = at;
            at = space(doc, at + 1);
        }
        self.start = at;
        if !self.array {
            if *doc.get(at)? != b'"' {
                return None;
            }
            let (end, escaped) = quoted(doc, at)?;
            self.key = &doc[at + 1..end - 1];
            self.escaped = escaped;
            at = space(doc, end);
            if *doc.get(at)? != b':' {
                return None;
            }
            at = space(doc, at + 1);
        }
        self.from = at;
        self.count += 1;
        Some(true)
    }

    /// Moves past the value at hand and returns its end.
    pub fn skip(&mut self) -> Option<usize> {
        match skip(self.doc, self.from) {
            Some(end) => {
                self.at = end;
                Some(end)
            }
            None => {
                self.bad = true;
                None
            }
        }
    }

    /// Whether the member at hand has a name or a number.
    pub fn is(&self, seg: &[u8]) -> bool {
        if self.array {
            return index(seg) == Some(self.count - 1);
        }
        if self.escaped {
            return unquote(self.key).as_ref() == seg;
        }
        self.key == seg
    }
}

/// The element of an array that a name of a path means.
pub(crate) fn index(seg: &[u8]) -> Option<usize> {
    if seg.is_empty() || seg.len() > 9 || seg[0] == b'0' && seg.len() > 1 {
        return None;
    }
    seg.iter().try_fold(0, |n, c| if c.is_ascii_digit() { Some(n * 10 + (c - b'0') as usize) } else { None })
}

/// Cuts a path's first name off. What is left is `None` at the end, and may be empty.
pub(crate) fn cut_path(path: &[u8]) -> (Cow<[u8]>, Option<&[u8]>) {
    if let Some(end) = bracketed(path, 0) {
        return (Cow::Borrowed(&path[1..end - 1]), after(path, end));
    }
    let mut name = Cow::Borrowed(&path[..0]);
    let mut i = 0;
    while i < path.len() {
        match path[i] {
            b'.' => return (name, Some(&path[i + 1..])),
            b'[' if i > 0 && bracketed(path, i).is_some() => return (name, Some(&path[i..])),
            b'\\' if i + 1 < path.len() => {
                i += 1;
                name.to_mut().push(path[i]);
            }
            c => match &mut name {
                Cow::Borrowed(b) => *b = &path[..i + 1],
                Cow::Owned(v) => v.push(c),
            },
        }
        i += 1;
    }
    (name, None)
}

fn after(path: &[u8], end: usize) -> Option<&[u8]> {
    match path.get(end) {
        None => None,
        Some(b'.') => Some(&path[end + 1..]),
        _ => Some(&path[end..]),
    }
}

/// Where the "[12]" ends that begins at `i`.
fn bracketed(path: &[u8], i: usize) -> Option<usize> {
    let inside = path.get(i..)?.strip_prefix(b"[")?;
    let digits = inside.iter().take_while(|c| c.is_ascii_digit()).count();
    if digits == 0 || inside.get(digits) != Some(&b']') {
        return None;
    }
    match inside.get(digits + 1) {
        None | Some(b'.') | Some(b'[') => Some(i + digits + 2),
        _ => None,
    }
}

pub(crate) fn space(doc: &[u8], mut at: usize) -> usize {
    while at < doc.len() && matches!(doc[at], b' ' | b'\n' | b'\t' | b'\r') {
        at += 1;
    }
    at
}

/// The end of the string that begins at `at`, and whether it has escapes.
fn quoted(doc: &[u8], mut at: usize) -> Option<(usize, bool)> {
    at += 1;
    let mut escaped = false;
    while let Some(w) = word(doc, at) {
        let m = marks(w ^ LOWS * b'"' as u64) | marks(w ^ LOWS * b'\\' as u64);
        if m == 0 {
            at += 8;
            continue;
        }
        at += m.trailing_zeros() as usize / 8;
        if doc[at] == b'"' {
            return Some((at + 1, escaped));
        }
        escaped = true;
        at += 2;
    }
    while at < doc.len() {
        match doc[at] {
            b'"' => return Some((at + 1, escaped)),
            b'\\' => {
                escaped = true;
                at += 1;
            }
            _ => {}
        }
        at += 1;
    }
    None
}

/// The end of the value that begins at `at`.
pub(crate) fn skip(doc: &[u8], at: usize) -> Option<usize> {
    let literal = |w: &[u8]| if doc[at..].starts_with(w) { Some(at + w.len()) } else { None };
    match doc.get(at)? {
        b'"' => quoted(doc, at).map(|q| q.0),
        b'{' | b'[' => skip_nested(doc, at),
        b'-' | b'0'..=b'9' => number(doc, at),
        b't' => literal(b"true"),
        b'f' => literal(b"false"),
        b'n' => literal(b"null"),
        _ => None,
    }
}

fn digits(doc: &[u8], at: usize) -> Option<usize> {
    let n = doc[at..].iter().take_while(|c| c.is_ascii_digit()).count();
    if n > 0 {
        Some(at + n)
    } else {
        None
    }
}

fn number(doc: &[u8], mut at: usize) -> Option<usize> {
    if doc[at] == b'-' {
        at += 1;
    }
    let whole = at;
    at = digits(doc, at)?;
    if doc[whole] == b'0' && at > whole + 1 {
        return None;
    }
    if doc.get(at) == Some(&b'.') {
        at = digits(doc, at + 1)?;
    }
    if matches!(doc.get(at), Some(b'e') | Some(b'E')) {
        at += 1;
        if matches!(doc.get(at), Some(b'+') | Some(b'-')) {
            at += 1;
        }
        at = digits(doc, at)?;
    }
    Some(at)
}

/// The end of the object or array that begins at `at`. It counts brackets, and depth costs nothing.
fn skip_nested(doc: &[u8], mut at: usize) -> Option<usize> {
    let mut depth = 0usize;
    while at < doc.len() {
        if let Some(w) = word(doc, at) {
            // With two bits masked all four brackets are 'y', and so are bytes that no JSON has outside of strings.
            let m = marks(w ^ LOWS * b'"' as u64) | marks((w | LOWS * 0x20) & !(LOWS * 6) ^ LOWS * b'y' as u64);
            if m == 0 {
                at += 8;
                continue;
            }
            at += m.trailing_zeros() as usize / 8;
        }
        match doc[at] {
            b'"' => {
                at = quoted(doc, at)?.0;
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => {
                depth -= 1;
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            _ => {}
        }
        at += 1;
    }
    None
}

/// Undoes the escapes of a string's inside; without any it borrows it.
pub(crate) fn unquote(b: &[u8]) -> Cow<[u8]> {
    if !b.contains(&b'\\') {
        return Cow::Borrowed(b);
    }
    let mut out = Vec::with_capacity(b.len());
    let mut i = 0;
    while i < b.len() {
        if b[i] != b'\\' || i + 1 == b.len() {
            out.push(b[i]);
            i += 1;
            continue;
        }
        i += 2;
        match b[i - 1] {
            b'b' => out.push(8),
            b'f' => out.push(12),
            b'n' => out.push(b'\n'),
            b'r' => out.push(b'\r'),
            b't' => out.push(b'\t'),
            b'u' => {
                let first = hex4(b, i);
                i += 4;
                let mut c = first.and_then(char::from_u32);
                if let (Some(hi @ 0xD800..=0xDBFF), Some(b"\\u")) = (first, b.get(i..i + 2)) {
                    if let Some(lo @ 0xDC00..=0xDFFF) = hex4(b, i + 2) {
                        c = char::from_u32(0x10000 + ((hi - 0xD800) << 10) + (lo - 0xDC00));
                        i += 6;
                    }
                }
                let mut room = [0; 4];
                out.extend_from_slice(c.unwrap_or('\u{FFFD}').encode_utf8(&mut room).as_bytes());
            }
            c => out.push(c),
        }
    }
    Cow::Owned(out)
}

fn hex4(b: &[u8], at: usize) -> Option<u32> {
    b.get(at..at + 4)?.iter().try_fold(0, |n, c| Some(n << 4 | (*c as char).to_digit(16)?))
}
