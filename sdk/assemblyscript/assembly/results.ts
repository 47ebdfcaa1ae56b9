import { Buffer, View, literal, text } from "./bytes";
import { Event, Tag } from "./event";

/** An attribute for an event that a function makes. What never changes is best made once, with literal. */
export class Attr {
  constructor(public tag: u8, public kind: u8, public name: View | null, public value: View | null) {}

  /** Names the event; it must be the same in every attempt. */
  static id(v: View): Attr {
    return new Attr(<u8>Tag.ID, 0, null, v);
  }
  static source(v: View): Attr {
    return new Attr(<u8>Tag.Source, 5, null, v);
  }
  static type(v: View): Attr {
    return new Attr(<u8>Tag.Type, 0, null, v);
  }
  static subject(v: View): Attr {
    return new Attr(<u8>Tag.Subject, 0, null, v);
  }
  static contentType(v: View): Attr {
    return new Attr(<u8>Tag.ContentType, 0, null, v);
  }
  static schema(v: View): Attr {
    return new Attr(<u8>Tag.Schema, 4, null, v);
  }
  /** Sends the event to another topic instead of to the subscription's target. */
  static topic(v: View): Attr {
    return new Attr(<u8>Tag.Topic, 0, null, v);
  }
  static key(v: View): Attr {
    return new Attr(<u8>Tag.Key, 0, null, v);
  }
  static time(v: View): Attr {
    return new Attr(<u8>Tag.Time, 6, null, v);
  }
  /** An extension attribute: a name of lower-case letters and digits. */
  static extension(name: View, value: View): Attr {
    return new Attr(<u8>Tag.Extension, 0, name, value);
  }
  /** Removes an attribute that the event would have of its input: a tag, or an extension by its name. */
  static unset(tag: Tag, name: View | null = null): Attr {
    return new Attr(<u8>tag, 0, name, null);
  }
}

const none: Attr[] = [];

enum Kind {
  Pass,
  Emit,
  Drop,
  Retry,
  Reject,
  Reply,
}

/**
 * Takes what a handler says about its event: one of pass, drop, retry and reject, or any number of events by
 * replace, relabel and emit. pass may come with more events after it. retry and reject discard the events before
 * them. reply may come beside anything. Other combinations, and silence, fail the event at the router. All bytes
 * are copied at once.
 */
export class Results {
  private buf: Buffer = new Buffer();
  private index: u32 = 0;

  /** Delivers the event unchanged. */
  pass(): void {
    this.add(Kind.Pass, 0, 0, null, none);
  }
  /** Acknowledges the event and delivers nothing. */
  drop(): void {
    this.add(Kind.Drop, 0, 0, null, none);
  }
  /** Asks for another attempt after a while; 0 ms leaves the delay to the subscription's policy. */
  retry(ms: u32 = 0): void {
    this.add(Kind.Retry, 0, ms, null, none);
  }
  /** Moves the event to the dead letters now. */
  reject(code: u32, reason: string): void {
    this.add(Kind.Reject, 0, code, text(reason), none);
  }
  /** Answers a synchronous call; the status is one of HTTP, the content type "" means JSON. */
  reply(status: u32, contentType: string, body: View): void {
    this.add(Kind.Reply, 0, status, body, contentType.length ? [Attr.contentType(text(contentType))] : none);
  }
  /** Delivers an event with the input's attributes and other data. Attributes that are given change or remove those
   * of the input. Without an id the router derives one from the input's, the same in every attempt. */
  replace(data: View, attrs: Attr[] = none): void {
    this.add(Kind.Emit, 1, 0, data, attrs);
  }
  /** Delivers an event with the input's data and other attributes. */
  relabel(attrs: Attr[]): void {
    this.add(Kind.Emit, 3, 0, null, attrs);
  }
  /** Delivers an event of its own, which needs at least a source and a type. */
  emit(data: View | null, attrs: Attr[]): void {
    this.add(Kind.Emit, 0, 0, data, attrs);
  }

  private add(kind: Kind, flags: u8, arg: u32, data: View | null, attrs: Attr[]): void {
    const buf = this.buf;
    const start = buf.len;
    memory.fill(buf.reserve(24), 0, 24);
    buf.len += 24;
    for (let i = 0; i < attrs.length; i++) {
      const a = unchecked(attrs[i]);
      const name = a.name;
      const value = a.value;
      const h = buf.reserve(8);
      store<u8>(h, a.tag);
      store<u8>(h, a.kind, 1);
      store<u16>(h, name ? <u16>name.len : 0, 2);
      store<u32>(h, value ? value.len : u32.MAX_VALUE, 4);
      buf.len += 8;
      if (name) buf.append(name);
      if (value) buf.append(value);
      pad(buf, 3);
    }
    const off = buf.len - start;
    if (data) buf.append(data);
    pad(buf, 7);
    const h = buf.ptr + start;
    store<u32>(h, buf.len - start);
    store<u8>(h, <u8>kind, 4);
    store<u8>(h, flags, 5);
    store<u16>(h, <u16>attrs.length, 6);
    store<u32>(h, this.index, 8);
    store<u32>(h, arg, 12);
    if (data) {
      store<u32>(h, off, 16);
      store<u32>(h, data.len, 20);
    }
  }

  /** For the exports: begins a batch, comes to an event of it, and returns what was said. */
  // @ts-ignore: decorator
  @unsafe
  begin(): void {
    this.buf.clear().reserve(4096); // no results must not look like a null answer
  }
  // @ts-ignore: decorator
  @unsafe
  next(index: u32): void {
    this.index = index;
  }
  // @ts-ignore: decorator
  @unsafe
  get packed(): u64 {
    return (<u64>this.buf.ptr << 32) | this.buf.len;
  }
}

function pad(buf: Buffer, mask: i32): void {
  while (buf.len & mask) buf.push(0);
}
