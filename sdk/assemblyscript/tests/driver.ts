// Runs the scanner for a test: line takes fields in hexadecimal, "op doc path" or "edit doc" and three fields an
// edit, and returns what comes out, address and length packed; 0 is nothing.

import { Buffer, View, release } from "../assembly/bytes";
import {
  Edit, EditError, Path, apply, elements, get, getBool, getInt, getText, has, isObject, remove, replace, replaceText, set, setText,
} from "../assembly/json";

const input = new Buffer();
const output = new Buffer();

export function room(n: i32): usize {
  return input.clear().reserve(n);
}

// A field in memory that ends where the field does, as far as this can be had: nothing but zeros follow.
function fields(at: usize, end: usize): View[] {
  const all: View[] = [];
  while (at <= end) {
    let stop = at;
    while (stop < end && load<u8>(stop) != 0x20) stop++;
    const p = heap.alloc(<usize>(stop - at) / 2 + 16);
    let n = 0;
    for (let i = at; i + 1 < stop; i += 2) store<u8>(p + n++, (digit(load<u8>(i)) << 4) | digit(load<u8>(i + 1)));
    memory.fill(p + n, 0, 16);
    const v = changetype<View>(heap.alloc(8));
    v.ptr = p;
    v.len = n;
    all.push(v);
    at = stop + 1;
  }
  return all;
}

function digit(c: u8): u8 {
  return c <= 0x39 ? c - 0x30 : c - 0x57;
}

export function line(n: i32): u64 {
  release();
  output.clear().reserve(1);
  const f = fields(input.ptr, input.ptr + n);
  const ok = run(f[0].toString(), f);
  for (let i = 0; i < f.length; i++) {
    heap.free(f[i].ptr);
    heap.free(changetype<usize>(f[i]));
  }
  return ok ? (<u64>output.ptr << 32) | output.len : 0;
}

function run(op: string, f: View[]): bool {
  const doc = f[1];
  if (op == "edit") {
    const edits: Edit[] = [];
    for (let i = 2; i < f.length; i += 3) edits.push(edit(f[i].toString(), new Path(f[i + 1].toString()), f[i + 2]));
    output.text("kept");
    const err = apply(output, doc, edits);
    if (output.len < 4 || (err && output.len != 4)) unreachable();
    if (err) output.text(err == EditError.Json ? "!json" : err == EditError.Path ? "!path" : "!edits");
    output.len -= 4;
    memory.copy(output.ptr, output.ptr + 4, output.len);
    return true;
  }
  const path = new Path(f[2].toString());
  if (op == "object") {
    output.text(isObject(doc).toString());
  } else if (op == "elements") {
    const all = elements(doc, path);
    for (let e = all.next(); e; e = all.next()) {
      if (output.len) output.push(0x7c);
      output.append(e);
    }
  } else if (op == "int") {
    const n = getInt(doc, path);
    if (!n) return false;
    output.text(n.value.toString());
  } else if (op == "bool") {
    const b = getBool(doc, path);
    if (b < 0) return false;
    output.text(b ? "true" : "false");
  } else {
    const v = op == "string" ? getText(doc, path) : get(doc, path);
    if (!v) return false;
    if (!has(doc, path)) unreachable();
    output.append(v);
  }
  return true;
}

function edit(op: string, path: Path, value: View): Edit {
  if (op == "set") return set(path, value);
  if (op == "settext") return setText(path, value);
  if (op == "replace") return replace(path, value);
  if (op == "replacetext") return replaceText(path, value);
  return remove(path);
}
