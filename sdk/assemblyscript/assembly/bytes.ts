// Bytes outside of the garbage collector's care: a function sees megabytes an event, and most of them only pass
// by. Views and what else is temporary come from an arena that begins anew with every event.

/** A view of bytes that somebody else owns. One that a function was given is valid until its handler returns. */
@unmanaged
export class View {
  ptr: usize;
  len: i32;

  /** Reports whether two views show the same bytes. */
  equals(other: View): bool {
    return this.len == other.len && memory.compare(this.ptr, other.ptr, this.len) == 0;
  }

  /** The bytes as a string, which is a copy. */
  toString(): string {
    return String.UTF8.decodeUnsafe(this.ptr, this.len);
  }
}

const CHUNK: usize = 1 << 16;
// Each chunk begins with the address of the next and its own end.
let first: usize = 0;
let chunk: usize = 0;
let at: usize = 0;
let end: usize = 0;

/** Memory that is free again when the event at work is done, a multiple of 8. */
// @ts-ignore: decorator
@unsafe
export function temporary(size: usize): usize {
  size = (size + 7) & ~7;
  if (at + size > end || !at) nextChunk(size);
  const p = at;
  at += size;
  return p;
}

function nextChunk(size: usize): void {
  let next = chunk ? load<usize>(chunk) : first;
  if (!next || load<usize>(next, 8) - next - 16 < size) {
    const room = max(CHUNK, size + 16);
    const fresh = heap.alloc(room);
    store<usize>(fresh, next);
    store<usize>(fresh, fresh + room, 8);
    if (chunk) store<usize>(chunk, fresh);
    else first = fresh;
    next = fresh;
  }
  chunk = next;
  at = next + 16;
  end = load<usize>(next, 8);
}

/** Takes all temporary memory back. What an odd event needed beyond a megabyte is returned to the heap. */
// @ts-ignore: decorator
@unsafe
export function release(): void {
  if (chunk != first) {
    let kept: usize = 0;
    let last = first;
    for (let c = first; c; ) {
      const next = load<usize>(c);
      const size = load<usize>(c, 8) - c;
      if (kept + size <= 1 << 20 || c == first) {
        kept += size;
        last = c;
      } else {
        store<usize>(last, next);
        heap.free(c);
      }
      c = next;
    }
  }
  chunk = first;
  at = first ? first + 16 : 0;
  end = first ? load<usize>(first, 8) : 0;
}

/** A view of memory. */
// @ts-ignore: decorator
@unsafe
export function view(ptr: usize, len: i32): View {
  const v = changetype<View>(temporary(offsetof<View>()));
  v.ptr = ptr;
  v.len = len;
  return v;
}

function encode(s: string, p: usize, len: i32): View {
  const v = changetype<View>(p);
  v.ptr = p + 8;
  v.len = len;
  String.UTF8.encodeUnsafe(changetype<usize>(s), s.length, v.ptr);
  return v;
}

/** The bytes of a string for good: for constants, made once while the module starts. */
export function literal(s: string): View {
  const len = String.UTF8.byteLength(s);
  return encode(s, heap.alloc(8 + len), len);
}

/** The bytes of a string until the handler returns. */
export function text(s: string): View {
  const len = String.UTF8.byteLength(s);
  return encode(s, temporary(8 + len), len);
}

/** Bytes that grow. Keep one in a global and clear it: an instance handles one event at a time. */
export class Buffer {
  ptr: usize = 0;
  len: i32 = 0;
  private room: i32 = 0;

  clear(): Buffer {
    this.len = 0;
    return this;
  }

  /** Makes room for more bytes and returns where they go. */
  // @ts-ignore: decorator
  @unsafe
  reserve(n: i32): usize {
    if (n > this.room - this.len) {
      const room = max(1024, max(this.room * 2, this.len + n));
      this.ptr = this.ptr ? heap.realloc(this.ptr, room) : heap.alloc(room);
      this.room = room;
    }
    return this.ptr + this.len;
  }

  push(c: u8): Buffer {
    store<u8>(this.reserve(1), c);
    this.len++;
    return this;
  }

  append(v: View): Buffer {
    memory.copy(this.reserve(v.len), v.ptr, v.len);
    this.len += v.len;
    return this;
  }

  /** Appends a string in UTF-8. */
  text(s: string): Buffer {
    const n = String.UTF8.byteLength(s);
    String.UTF8.encodeUnsafe(changetype<usize>(s), s.length, this.reserve(n));
    this.len += n;
    return this;
  }

  /** What was appended; valid until more is. */
  view(): View {
    return view(this.ptr, this.len);
  }
}
