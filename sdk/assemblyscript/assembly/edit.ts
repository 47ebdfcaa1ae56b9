import { Buffer, View, temporary } from "./bytes";
import { Path, Scan, open, skip, space } from "./scan";
import { appendString } from "./json";

/** Why apply did not change a document. */
export enum EditError {
  None,
  /** The document is not JSON. */
  Json,
  /** The path leads through a value that is no object, or past the end of an array. */
  Path,
  /** More than 64 edits. */
  Edits,
}

enum Op {
  Set,
  SetText,
  Replace,
  ReplaceText,
  Remove,
}

/** One change of a document, for apply. It may be made once and used for all events. */
export class Edit {
  constructor(public path: Path, public value: View, public op: i32) {}
}

/** Sets the value at a path, making it and the objects on the way if they are missing. The value is JSON. */
export function set(path: Path, value: View): Edit {
  return new Edit(path, value, Op.Set);
}
/** Is set with a text, which it quotes. */
export function setText(path: Path, value: View): Edit {
  return new Edit(path, value, Op.SetText);
}
/** Sets the value at a path if there is one. The value is JSON. */
export function replace(path: Path, value: View): Edit {
  return new Edit(path, value, Op.Replace);
}
/** Is replace with a text, which it quotes. */
export function replaceText(path: Path, value: View): Edit {
  return new Edit(path, value, Op.ReplaceText);
}
/** Takes the value at a path away. That there is none is no error. */
export function remove(path: Path): Edit {
  return new Edit(path, changetype<View>(0), Op.Remove);
}

/**
 * Appends to dst the document with changes, made in a single pass, every other byte as it was. Of two edits of one
 * path the later counts; an edit inside a value that another one writes or removes does nothing. Missing members
 * are appended in the order of their edits. On an error dst is as it was.
 */
export function apply(dst: Buffer, doc: View, edits: Edit[]): EditError {
  if (edits.length > 64) return EditError.Edits;
  const kept = dst.len;
  const e = changetype<Editor>(temporary(offsetof<Editor>()));
  e.end = doc.ptr + doc.len;
  e.done = doc.ptr;
  e.dst = changetype<usize>(dst);
  e.edits = changetype<usize>(edits);
  const err = e.all(doc.ptr);
  if (err) dst.len = kept;
  return err;
}

// Copies a document with changes: what lies before done has been copied. It is unmanaged, so that no event leaves
// work for the collector; its caller holds what it points to.
@unmanaged
class Editor {
  end: usize;
  done: usize;
  dst: usize;
  edits: usize;

  edit(i: i32): Edit {
    return unchecked(changetype<Edit[]>(this.edits)[i]);
  }

  all(doc: usize): EditError {
    const count = changetype<Edit[]>(this.edits).length;
    const from = space(doc, this.end);
    let whole = -1;
    let active: u64 = 0;
    for (let i = 0; i < count; i++) {
      if (!this.edit(i).path.names.length) whole = i;
      active |= <u64>1 << i;
    }
    let to: usize;
    if (whole < 0) {
      const err = this.within(from, 0, active);
      if (err) return err;
      to = reached;
    } else {
      to = skip(from, this.end);
      if (!to) return EditError.Json;
      if (this.edit(whole).op == Op.Remove) return EditError.Path;
      this.write(whole, from, to);
    }
    if (space(to, this.end) != this.end) return EditError.Json;
    this.copyTo(this.end);
    return EditError.None;
  }

  // Whether one of the edits must find its path.
  sets(active: u64): bool {
    for (; active; active &= active - 1) if (this.edit(<i32>ctz(active)).op <= Op.SetText) return true;
    return false;
  }

  // Changes what the edits name inside the value at from, and leaves where it ends in reached.
  within(from: usize, depth: i32, active: u64): EditError {
    const s = open(from, this.end);
    if (!s) {
      reached = skip(from, this.end);
      if (!reached) return EditError.Json;
      return this.sets(active) ? EditError.Path : EditError.None;
    }
    let kept = 0;
    let missing = active;
    while (s.next()) {
      let last = -1;
      let inside: u64 = 0;
      for (let m = s.array ? missing : active; m; m &= m - 1) {
        const i = <i32>ctz(m);
        const path = this.edit(i).path;
        if (!s.is(path, depth)) continue;
        missing &= ~(<u64>1 << i);
        if (depth + 1 == path.names.length) last = i;
        else inside |= <u64>1 << i;
      }
      if (last < 0 && inside) {
        const err = this.within(s.from, depth + 1, inside);
        if (err) return err;
        s.at = reached;
        kept++;
        continue;
      }
      const to = s.skip();
      if (!to) return EditError.Json;
      if (last < 0 || this.edit(last).op != Op.Remove) {
        if (last >= 0) this.write(last, s.from, to);
        kept++;
      } else {
        this.cut(s, to, kept > 0);
      }
    }
    if (s.bad) return EditError.Json;
    if (missing && this.sets(missing)) {
      if (s.array) return EditError.Path;
      this.copyTo(s.close);
      this.add(depth, missing, !kept);
    }
    reached = s.close + 1;
    return EditError.None;
  }

  // Leaves a member out, with the comma before it or, where none is kept, the one after it.
  cut(s: Scan, to: usize, before: bool): void {
    if (before) {
      this.copyTo(s.comma);
      this.done = to;
      return;
    }
    this.copyTo(s.start);
    this.done = space(to, this.end);
    if (this.done < this.end && load<u8>(this.done) == 0x2c) this.done++;
  }

  // Writes members of an object: one for each name that the edits have at a depth.
  add(depth: i32, missing: u64, first: bool): void {
    const dst = changetype<Buffer>(this.dst);
    while (missing) {
      const name = unchecked(this.edit(<i32>ctz(missing)).path.names[depth]);
      let last = -1;
      let inside: u64 = 0;
      for (let m = missing; m; m &= m - 1) {
        const i = <i32>ctz(m);
        const path = this.edit(i).path;
        if (!unchecked(path.names[depth]).equals(name)) continue;
        missing &= ~(<u64>1 << i);
        if (depth + 1 == path.names.length) last = i;
        else inside |= <u64>1 << i;
      }
      if (!this.sets(last >= 0 ? <u64>1 << last : inside)) continue;
      if (!first) dst.push(0x2c);
      first = false;
      appendString(dst, name);
      dst.push(0x3a);
      if (last >= 0) {
        this.put(last);
        continue;
      }
      dst.push(0x7b);
      this.add(depth + 1, inside, true);
      dst.push(0x7d);
    }
  }

  // Writes an edit's value in the place of what lies from from to to.
  write(edit: i32, from: usize, to: usize): void {
    this.copyTo(from);
    this.put(edit);
    this.done = to;
  }

  put(edit: i32): void {
    const e = this.edit(edit);
    const dst = changetype<Buffer>(this.dst);
    if (e.op == Op.SetText || e.op == Op.ReplaceText) appendString(dst, e.value);
    else dst.append(e.value);
  }

  copyTo(at: usize): void {
    if (at <= this.done) return;
    const n = <i32>(at - this.done);
    const dst = changetype<Buffer>(this.dst);
    memory.copy(dst.reserve(n), this.done, n);
    dst.len += n;
    this.done = at;
  }
}

let reached: usize = 0;
