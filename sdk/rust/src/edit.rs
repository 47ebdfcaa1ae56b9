use alloc::borrow::Cow;
use alloc::vec::Vec;
use core::fmt;

use crate::json::append_string;
use crate::scan::{cut_path, skip, space, Scan};

/// How many edits one [`apply`] takes.
pub const MAX_EDITS: usize = 64;

/// One change of a document.
#[derive(Clone, Copy, Debug)]
pub struct Edit<'a> {
    path: &'a str,
    value: &'a str,
    op: Op,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Set,
    SetText,
    Replace,
    ReplaceText,
    Remove,
}

impl<'a> Edit<'a> {
    /// Sets the value at a path, making it and the objects on the way if they are missing. `value` is JSON.
    pub const fn set(path: &'a str, value: &'a str) -> Self {
        Edit { path, value, op: Op::Set }
    }
    /// Is `set` with a string, which it quotes.
    pub const fn set_text(path: &'a str, value: &'a str) -> Self {
        Edit { path, value, op: Op::SetText }
    }
    /// Sets the value at a path if there is one. `value` is JSON.
    pub const fn replace(path: &'a str, value: &'a str) -> Self {
        Edit { path, value, op: Op::Replace }
    }
    /// Is `replace` with a string, which it quotes.
    pub const fn replace_text(path: &'a str, value: &'a str) -> Self {
        Edit { path, value, op: Op::ReplaceText }
    }
    /// Takes the value at a path away. That there is none is no error.
    pub const fn remove(path: &'a str) -> Self {
        Edit { path, value: "", op: Op::Remove }
    }

    fn sets(&self) -> bool {
        matches!(self.op, Op::Set | Op::SetText)
    }
}

/// Why a document was not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EditError {
    /// The document is not JSON.
    Json,
    /// The path leads through a value that is no object, or past the end of an array.
    Path,
    /// More than [`MAX_EDITS`] edits.
    Edits,
}

impl fmt::Display for EditError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            EditError::Json => "the document is not JSON",
            EditError::Path => "the path leads through a value that is no object, or past the end of an array",
            EditError::Edits => "more than 64 edits at once",
        })
    }
}

/// Appends the document with changes, made in a single pass, every other byte as it was. Of two edits of one
/// path the later counts; an edit inside a value that another one writes or removes does nothing. Missing
/// members are appended in the order of their edits. On an error `dst` is as it was.
pub fn apply(dst: &mut Vec<u8>, doc: &[u8], edits: &[Edit]) -> Result<(), EditError> {
    if edits.len() > MAX_EDITS {
        return Err(EditError::Edits);
    }
    let mut names = Vec::with_capacity(2 * edits.len());
    let mut ends = [0u32; MAX_EDITS + 1];
    let mut all = 0u64;
    for (i, e) in edits.iter().enumerate() {
        let mut rest = Some(e.path.as_bytes()).filter(|p| !p.is_empty());
        while let Some(path) = rest {
            let (name, more) = cut_path(path);
            names.push(name);
            rest = more;
        }
        ends[i + 1] = names.len() as u32;
        all |= 1 << i;
    }
    let kept = dst.len();
    let mut e = Editor { doc, dst, done: 0, edits, names: &names, ends: &ends };
    let result = e.root(all);
    if result.is_err() {
        dst.truncate(kept);
    }
    result
}

/// Copies a document with changes: what lies before `done` has been copied.
struct Editor<'a> {
    doc: &'a [u8],
    dst: &'a mut Vec<u8>,
    done: usize,
    edits: &'a [Edit<'a>],
    names: &'a [Cow<'a, [u8]>], // of all paths, one after the other
    ends: &'a [u32; MAX_EDITS + 1],
}

/// The edits of a set.
fn each(set: u64) -> impl Iterator<Item = usize> {
    let mut rest = set;
    core::iter::from_fn(move || {
        if rest == 0 {
            return None;
        }
        let i = rest.trailing_zeros() as usize;
        rest &= rest - 1;
        Some(i)
    })
}

impl<'a> Editor<'a> {
    /// Name number `depth` of an edit's path and whether it is the last.
    fn name(&self, edit: usize, depth: usize) -> (&'a [u8], bool) {
        let at = self.ends[edit] as usize + depth;
        let names: &'a [Cow<'a, [u8]>] = self.names;
        (&names[at], at + 1 == self.ends[edit + 1] as usize)
    }

    /// Whether one of the edits must find its path.
    fn sets(&self, active: u64) -> bool {
        each(active).any(|i| self.edits[i].sets())
    }

    fn root(&mut self, all: u64) -> Result<(), EditError> {
        let from = space(self.doc, 0);
        let to = match self.edits.iter().rposition(|e| e.path.is_empty()) {
            None => self.within(from, 0, all)?,
            Some(whole) => {
                let to = skip(self.doc, from).ok_or(EditError::Json)?;
                if self.edits[whole].op == Op::Remove {
                    return Err(EditError::Path);
                }
                self.write(whole, from, to);
                to
            }
        };
        if space(self.doc, to) != self.doc.len() {
            return Err(EditError::Json);
        }
        self.copy_to(self.doc.len());
        Ok(())
    }

    /// Changes what the edits name inside the value at `from`, and returns where it ends.
    fn within(&mut self, from: usize, depth: usize, active: u64) -> Result<usize, EditError> {
        let mut s = match Scan::open(self.doc, from) {
            Some(s) => s,
            None => {
                let to = skip(self.doc, from).ok_or(EditError::Json)?;
                return if self.sets(active) { Err(EditError::Path) } else { Ok(to) };
            }
        };
        let (mut kept, mut missing) = (0, active);
        while s.next() {
            let (mut last, mut inside) = (None, 0u64);
            for i in each(if s.array { missing } else { active }) {
                let (name, ends) = self.name(i, depth);
                if !s.is(name) {
                    continue;
                }
                missing &= !(1 << i);
                if ends {
                    last = Some(i);
                } else {
                    inside |= 1 << i;
                }
            }
            if !self.member(&mut s, last, depth, inside, kept)? {
                kept += 1;
            }
        }
        if s.bad {
            return Err(EditError::Json);
        }
        if missing != 0 && self.sets(missing) {
            if s.array {
                return Err(EditError::Path);
            }
            self.copy_to(s.close);
            self.add(depth, missing, kept == 0);
        }
        Ok(s.close + 1)
    }

    /// Does to the member at hand what the edit called `last` says, or those inside, and moves past it. It
    /// tells whether the member was removed.
    fn member(&mut self, s: &mut Scan, last: Option<usize>, depth: usize, inside: u64, kept: usize) -> Result<bool, EditError> {
        if last.is_none() && inside != 0 {
            s.at = self.within(s.from, depth + 1, inside)?;
            return Ok(false);
        }
        let to = s.skip().ok_or(EditError::Json)?;
        let edit = match last {
            Some(i) => i,
            None => return Ok(false),
        };
        if self.edits[edit].op != Op::Remove {
            self.write(edit, s.from, to);
            return Ok(false);
        }
        if kept > 0 {
            // With the comma before it.
            self.copy_to(s.comma);
            self.done = to;
        } else {
            // With the comma after it.
            self.copy_to(s.start);
            self.done = space(self.doc, to);
            if self.doc.get(self.done) == Some(&b',') {
                self.done += 1;
            }
        }
        Ok(true)
    }

    /// Writes members of an object: one for each name that the edits have at a depth.
    fn add(&mut self, depth: usize, mut missing: u64, mut first: bool) {
        while missing != 0 {
            let (name, _) = self.name(missing.trailing_zeros() as usize, depth);
            let (mut last, mut inside) = (None, 0u64);
            for i in each(missing) {
                let (n, ends) = self.name(i, depth);
                if n != name {
                    continue;
                }
                missing &= !(1 << i);
                if ends {
                    last = Some(i);
                } else {
                    inside |= 1 << i;
                }
            }
            if !last.map_or_else(|| self.sets(inside), |i| self.edits[i].sets()) {
                continue;
            }
            if !first {
                self.dst.push(b',');
            }
            first = false;
            append_string(self.dst, &alloc::string::String::from_utf8_lossy(name));
            self.dst.push(b':');
            match last {
                Some(i) => self.put(i),
                None => {
                    self.dst.push(b'{');
                    self.add(depth + 1, inside, true);
                    self.dst.push(b'}');
                }
            }
        }
    }

    /// Writes an edit's value in the place of what lies from `from` to `to`.
    fn write(&mut self, edit: usize, from: usize, to: usize) {
        self.copy_to(from);
        self.put(edit);
        self.done = to;
    }

    fn put(&mut self, edit: usize) {
        let e = &self.edits[edit];
        match e.op {
            Op::SetText | Op::ReplaceText => append_string(self.dst, e.value),
            _ => self.dst.extend_from_slice(e.value.as_bytes()),
        }
    }

    fn copy_to(&mut self, at: usize) {
        if at > self.done {
            self.dst.extend_from_slice(&self.doc[self.done..at]);
            self.done = at;
        }
    }
}
