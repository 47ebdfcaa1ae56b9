// Walking JSON as text. Positions are addresses; 0 means that there is none.

import { Buffer, View, literal, temporary, view } from "./bytes";

const EACH: u64 = 0x0101010101010101;
const QUOTES: u64 = EACH * 0x22;
const BACKSLASHES: u64 = EACH * 0x5c;

// marks sets the high bit of each byte of w that is zero, and perhaps of some after the first.
// @ts-ignore: decorator
@inline
function marks(w: u64): u64 {
  return (w - EACH) & ~w & (EACH << 7);
}

/** The names of a path, made once: "customer.email", "items[0].price", "items.0.price", "a\\.b". */
export class Path {
  names: StaticArray<View>;
  indices: StaticArray<i32>;

  constructor(path: string) {
    const all = literal(path);
    const names: View[] = [];
    const n = all.len;
    const name = new Buffer();
    for (let i = 0; n > 0; ) {
      name.clear();
      const close = bracketed(all, i);
      if (close) {
        for (i++; i < close - 1; i++) name.push(load<u8>(all.ptr + i));
        i = close;
      } else {
        const start = i;
        for (; i < n && load<u8>(all.ptr + i) != 0x2e && !(i > start && bracketed(all, i)); i++) {
          if (load<u8>(all.ptr + i) == 0x5c && i + 1 < n) i++;
          name.push(load<u8>(all.ptr + i));
        }
      }
      names.push(keep(name));
      if (i >= n) break;
      if (load<u8>(all.ptr + i) == 0x2e) i++; // another name follows, which may be empty
    }
    this.names = StaticArray.fromArray(names);
    this.indices = new StaticArray<i32>(names.length);
    for (let i = 0; i < names.length; i++) this.indices[i] = index(names[i]);
  }
}

function keep(b: Buffer): View {
  const v = changetype<View>(heap.alloc(8 + b.len));
  v.ptr = changetype<usize>(v) + 8;
  v.len = b.len;
  memory.copy(v.ptr, b.ptr, b.len);
  return v;
}

// @ts-ignore: decorator
@inline
function digit(c: u8): bool {
  return c - 0x30 <= 9;
}

// Where the "[12]" ends that begins at i, 0 if that is something else.
function bracketed(path: View, i: i32): i32 {
  if (i >= path.len || load<u8>(path.ptr + i) != 0x5b) return 0;
  let end = i + 1;
  while (end < path.len && digit(load<u8>(path.ptr + end))) end++;
  if (end == i + 1 || end == path.len || load<u8>(path.ptr + end) != 0x5d) return 0;
  end++;
  if (end == path.len) return end;
  const next = load<u8>(path.ptr + end);
  return next == 0x2e || next == 0x5b ? end : 0;
}

// The element of an array that a name means, -1 for none.
function index(name: View): i32 {
  if (!name.len || name.len > 9 || (load<u8>(name.ptr) == 0x30 && name.len > 1)) return -1;
  let n = 0;
  for (let i = 0; i < name.len; i++) {
    const c = load<u8>(name.ptr + i);
    if (!digit(c)) return -1;
    n = n * 10 + (c - 0x30);
  }
  return n;
}

export function space(at: usize, end: usize): usize {
  while (at < end) {
    const c = load<u8>(at);
    if (c > 0x20 || (c != 0x20 && c != 0x0a && c != 0x09 && c != 0x0d)) break;
    at++;
  }
  return at;
}

let escaped = false; // what the last call of quoted saw

// The end of the string that begins at at.
function quoted(at: usize, end: usize): usize {
  escaped = false;
  at++;
  while (at < end) {
    if (end - at >= 8) {
      const w = load<u64>(at);
      const m = marks(w ^ QUOTES) | marks(w ^ BACKSLASHES);
      if (!m) {
        at += 8;
        continue;
      }
      at += <usize>(ctz(m) >> 3);
    }
    const c = load<u8>(at);
    if (c == 0x22) return at + 1;
    if (c == 0x5c) {
      escaped = true;
      at++;
    }
    at++;
  }
  return 0;
}

// The end of the object or array that begins at at. It counts brackets, and depth costs nothing.
function skipNested(at: usize, end: usize): usize {
  let depth = 0;
  while (at < end) {
    if (end - at >= 8) {
      // With two bits masked all four brackets are 'y', and so are bytes that no JSON has outside of strings.
      const w = load<u64>(at);
      const m = marks(w ^ QUOTES) | marks(((w | (EACH * 0x20)) & ~(EACH * 6)) ^ (EACH * 0x79));
      if (!m) {
        at += 8;
        continue;
      }
      at += <usize>(ctz(m) >> 3);
    }
    const c = load<u8>(at);
    if (c == 0x22) {
      at = quoted(at, end);
      if (!at) return 0;
      continue;
    }
    if (c == 0x7b || c == 0x5b) depth++;
    else if ((c == 0x7d || c == 0x5d) && --depth == 0) return at + 1;
    at++;
  }
  return 0;
}

function digits(at: usize, end: usize): usize {
  const start = at;
  while (at < end && digit(load<u8>(at))) at++;
  return at == start ? 0 : at;
}

function number(at: usize, end: usize): usize {
  if (load<u8>(at) == 0x2d) at++;
  const whole = at;
  at = digits(at, end);
  if (!at || (load<u8>(whole) == 0x30 && at > whole + 1)) return 0;
  if (at < end && load<u8>(at) == 0x2e) {
    at = digits(at + 1, end);
    if (!at) return 0;
  }
  if (at < end && (load<u8>(at) | 0x20) == 0x65) {
    at++;
    if (at < end && (load<u8>(at) == 0x2b || load<u8>(at) == 0x2d)) at++;
    at = digits(at, end);
  }
  return at;
}

// The end of the value that begins at at.
export function skip(at: usize, end: usize): usize {
  if (at >= end) return 0;
  switch (load<u8>(at)) {
    case 0x22:
      return quoted(at, end);
    case 0x7b:
    case 0x5b:
      return skipNested(at, end);
    case 0x74: // true
      return end - at >= 4 && load<u32>(at) == 0x65757274 ? at + 4 : 0;
    case 0x66: // false
      return end - at >= 5 && load<u32>(at + 1) == 0x65736c61 ? at + 5 : 0;
    case 0x6e: // null
      return end - at >= 4 && load<u32>(at) == 0x6c6c756e ? at + 4 : 0;
  }
  const c = load<u8>(at);
  return c == 0x2d || digit(c) ? number(at, end) : 0;
}

/** Walks the members of an object or the elements of an array. */
@unmanaged
export class Scan {
  end: usize; // of the document
  at: usize; // the caller of next moves it to the end of the value at hand
  key: usize; // as it is written
  keyLen: i32;
  count: i32; // members seen
  close: usize; // the closing bracket, at the end
  comma: usize; // before the member at hand
  start: usize; // of the member: its key, or its value in an array
  from: usize; // its value
  array: bool;
  escaped: bool; // the key has a backslash
  bad: bool;

  /** Comes to the value of the next member. */
  next(): bool {
    const end = this.end;
    let at = space(this.at, end);
    this.bad = true; // until it is not
    if (at >= end) return false;
    let c = load<u8>(at);
    if (c == 0x7d || c == 0x5d) {
      this.bad = this.array != (c == 0x5d);
      this.close = at;
      return false;
    }
    if (this.count) {
      if (c != 0x2c) return false;
      this.comma = at;
      at = space(at + 1, end);
    }
    this.start = at;
    if (!this.array) {
      if (at >= end || load<u8>(at) != 0x22) return false;
      this.key = at + 1;
      at = quoted(at, end);
      if (!at) return false;
      this.keyLen = <i32>(at - 1 - this.key);
      this.escaped = escaped;
      at = space(at, end);
      if (at >= end || load<u8>(at) != 0x3a) return false;
      at = space(at + 1, end);
    }
    this.from = at;
    this.count++;
    this.bad = false;
    return true;
  }

  /** Moves past the value at hand and returns its end. */
  skip(): usize {
    const end = skip(this.from, this.end);
    this.bad = !end;
    this.at = end;
    return end;
  }

  /** Whether the member at hand is what name number depth of a path means. */
  is(path: Path, depth: i32): bool {
    if (this.array) return unchecked(path.indices[depth]) == this.count - 1;
    const name = unchecked(path.names[depth]);
    if (!this.escaped) return this.keyLen == name.len && memory.compare(this.key, name.ptr, name.len) == 0;
    return unquote(this.key, this.key + this.keyLen).equals(name);
  }
}

/** Begins to walk what is at at, null if that is neither object nor array. */
export function open(at: usize, end: usize): Scan | null {
  if (at >= end) return null;
  const c = load<u8>(at);
  if (c != 0x7b && c != 0x5b) return null;
  const s = changetype<Scan>(temporary(offsetof<Scan>()));
  s.end = end;
  s.at = at + 1;
  s.count = 0;
  s.array = c == 0x5b;
  s.escaped = false;
  s.bad = false;
  return s;
}

/** Undoes the escapes of a string's inside; without any it borrows it. */
export function unquote(at: usize, end: usize): View {
  let i = at;
  while (i < end && load<u8>(i) != 0x5c) i++;
  if (i == end) return view(at, <i32>(end - at));
  const out = temporary(end - at + 4); // no escape is longer than what it stands for, but a broken one at the end
  let o = out;
  for (i = at; i < end; ) {
    const c = load<u8>(i++);
    if (c != 0x5c || i == end) {
      store<u8>(o++, c);
      continue;
    }
    const e = load<u8>(i++);
    switch (e) {
      case 0x62: store<u8>(o++, 8); break;
      case 0x66: store<u8>(o++, 12); break;
      case 0x6e: store<u8>(o++, 10); break;
      case 0x72: store<u8>(o++, 13); break;
      case 0x74: store<u8>(o++, 9); break;
      case 0x75: {
        let r = hex4(i, end);
        i = end - i < 4 ? end : i + 4;
        if (r >= 0xd800 && r < 0xdc00 && end - i >= 6 && load<u16>(i) == 0x755c) {
          const low = hex4(i + 2, end);
          if (low >= 0xdc00 && low < 0xe000) {
            i += 6;
            r = 0x10000 + ((r - 0xd800) << 10) + (low - 0xdc00);
          }
        }
        o += putRune(o, r < 0 || (r >= 0xd800 && r < 0xe000) ? 0xfffd : r);
        break;
      }
      default: store<u8>(o++, e);
    }
  }
  return view(out, <i32>(o - out));
}

function hex4(at: usize, end: usize): i32 {
  if (end - at < 4) return -1;
  let n = 0;
  for (let i = at; i < at + 4; i++) {
    const c = load<u8>(i);
    const l = c | 0x20;
    if (digit(c)) n = (n << 4) | (c - 0x30);
    else if (l >= 0x61 && l <= 0x66) n = (n << 4) | (l - 0x57);
    else return -1;
  }
  return n;
}

function putRune(o: usize, r: i32): usize {
  if (r < 0x80) {
    store<u8>(o, r);
    return 1;
  }
  const n = r < 0x800 ? 2 : r < 0x10000 ? 3 : 4;
  for (let i = n - 1; i > 0; i--, r >>= 6) store<u8>(o + i, 0x80 | (r & 0x3f));
  store<u8>(o, (n == 2 ? 0xc0 : n == 3 ? 0xe0 : 0xf0) | r);
  return n;
}

// The length of the UTF-8 character at at, 0 if there is none.
export function rune(at: usize, end: usize): i32 {
  const c = load<u8>(at);
  if (c < 0x80) return 1;
  const n = c >= 0xc2 && c < 0xe0 ? 2 : (c & 0xf0) == 0xe0 ? 3 : c >= 0xf0 && c < 0xf5 ? 4 : 0;
  if (!n || <i32>(end - at) < n) return 0;
  for (let k = 1; k < n; k++) if ((load<u8>(at + k) & 0xc0) != 0x80) return 0;
  const second = load<u8>(at + 1);
  const overlong = (c == 0xe0 && second < 0xa0) || (c == 0xf0 && second < 0x90);
  const beyond = (c == 0xed && second >= 0xa0) || (c == 0xf4 && second >= 0x90);
  return overlong || beyond ? 0 : n;
}
