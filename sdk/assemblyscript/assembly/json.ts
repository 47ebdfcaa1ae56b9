// Reading and changing JSON by scanning it: decoding a document in WASM costs many times as much.
//
// A path is names joined by points, such as "customer.email" or "items.0.price"; a number steps into an array and
// may be written "items[0].price", a backslash takes the next byte as it is ("a\\.b" is one name; name puts them
// in), and the empty path is the document. Where an object has a name twice, readers see the last, as nearly every
// decoder does, and changes act on all, so that nothing that should be hidden stays behind. A document that is no
// JSON makes them find nothing or return an error; of values that the path passes by they look at brackets and
// quotes only.

import { Buffer, View, temporary, view } from "./bytes";
import { Path, Scan, open, rune, skip, space, unquote } from "./scan";

export { Path };
export { Edit, EditError, apply, set, setText, replace, replaceText, remove } from "./edit";

/** The path of the member with this name, whatever characters are in it. */
export function name(name: string): string {
  let path = "";
  for (let i = 0; i < name.length; i++) {
    const c = name.charAt(i);
    if (c == "." || c == "\\" || c == "[") path += "\\";
    path += c;
  }
  return path;
}

function find(doc: View, path: Path, any: bool): View | null {
  const end = doc.ptr + doc.len;
  let from = space(doc.ptr, end);
  let to: usize = 0;
  const depth = path.names.length;
  if (!depth) to = skip(from, end);
  for (let i = 0; i < depth; i++) {
    const s = open(from, end);
    if (!s) return null;
    to = 0;
    while (s.next()) {
      const e = s.skip();
      if (!e) return null;
      if (s.is(path, i)) {
        from = s.from;
        to = e;
        if (any && i + 1 == depth) break;
      }
    }
    if (s.bad || !to) return null;
  }
  return to ? view(from, <i32>(to - from)) : null;
}

/** The value at a path as it stands in the document. */
export function get(doc: View, path: Path): View | null {
  return find(doc, path, false);
}

/** Whether there is a value at a path, null included. */
export function has(doc: View, path: Path): bool {
  return find(doc, path, true) != null;
}

/** The string at a path, in UTF-8. Without escapes it borrows the document. */
export function getText(doc: View, path: Path): View | null {
  const v = get(doc, path);
  if (!v || v.len < 2 || load<u8>(v.ptr) != 0x22) return null;
  return unquote(v.ptr + 1, v.ptr + v.len - 1);
}

/** The string at a path. */
export function getString(doc: View, path: Path): string | null {
  const v = getText(doc, path);
  return v ? v.toString() : null;
}

/** An integer that was found. */
@unmanaged
export class Int {
  value: i64;
}

/** The integer at a path; 1.0 and 1e3 are none. */
export function getInt(doc: View, path: Path): Int | null {
  const v = get(doc, path);
  if (!v) return null;
  const end = v.ptr + v.len;
  const negative = load<u8>(v.ptr) == 0x2d;
  const limit: u64 = <u64>i64.MAX_VALUE + u64(negative);
  let n: u64 = 0;
  for (let at = v.ptr + usize(negative); at < end; at++) {
    const c = load<u8>(at) - 0x30;
    if (c > 9 || n > (limit - c) / 10) return null;
    n = n * 10 + c;
  }
  const out = changetype<Int>(temporary(offsetof<Int>()));
  out.value = negative ? <i64>(0 - n) : <i64>n;
  return out;
}

/** The number at a path, NaN if there is none. */
export function getFloat(doc: View, path: Path): f64 {
  const v = get(doc, path);
  if (!v) return NaN;
  const c = load<u8>(v.ptr);
  return c == 0x2d || c - 0x30 <= 9 ? parseFloat(v.toString()) : NaN;
}

/** The boolean at a path: 1, 0, or -1 if there is none. */
export function getBool(doc: View, path: Path): i32 {
  const v = get(doc, path);
  if (!v) return -1;
  const c = load<u8>(v.ptr);
  return c == 0x74 ? 1 : c == 0x66 ? 0 : -1;
}

/** Whether the document is a JSON object, as far as a scan of it can tell. */
export function isObject(doc: View): bool {
  const end = doc.ptr + doc.len;
  const s = open(space(doc.ptr, end), end);
  if (!s || s.array) return false;
  while (s.next()) if (!s.skip()) return false;
  return !s.bad && space(s.close + 1, end) == end;
}

/** Walks an array. */
@unmanaged
export class Elements {
  scan: Scan | null;

  /** The next element as it stands in the document, null at the end. */
  next(): View | null {
    const s = this.scan;
    if (!s || !s.next()) return null;
    const end = s.skip();
    return end ? view(s.from, <i32>(end - s.from)) : null;
  }
}

/** Begins to walk the array at a path; there are no elements if there is no array. A document that is cut off ends
 * it early: ask isObject first. */
export function elements(doc: View, path: Path): Elements {
  const e = changetype<Elements>(temporary(offsetof<Elements>()));
  const v = get(doc, path);
  e.scan = v ? open(v.ptr, v.ptr + v.len) : null;
  const s = e.scan;
  if (s && !s.array) e.scan = null;
  return e;
}

/** Appends text as a JSON string; what is no UTF-8 is replaced. */
export function appendString(b: Buffer, v: View): void {
  b.push(0x22);
  const end = v.ptr + v.len;
  for (let at = v.ptr; at < end; ) {
    const c = load<u8>(at);
    const n = rune(at, end);
    if (c == 0x22 || c == 0x5c) {
      b.push(0x5c).push(c);
    } else if (c < 0x20) {
      b.text("\\u00").push(hex(c >> 4)).push(hex(c & 15));
    } else if (n == 1) {
      b.push(c);
    } else if (!n) {
      b.push(0xef).push(0xbf).push(0xbd);
    } else {
      b.append(view(at, n));
    }
    at += <usize>max(n, 1);
  }
  b.push(0x22);
}

function hex(n: u8): u8 {
  return n < 10 ? 0x30 + n : 0x57 + n;
}
