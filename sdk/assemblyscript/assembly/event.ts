import { View, text, view } from "./bytes";

export enum Tag {
  Extension,
  ID,
  Source,
  Type,
  Subject,
  ContentType,
  Schema,
  Topic,
  Key,
  TraceParent,
  Time,
}

/** One event as the router hands it over. It and its views are valid until the handler returns. */
@unmanaged
export class Event {
  rec: usize;

  get id(): string {
    return this.text(Tag.ID);
  }
  get source(): string {
    return this.text(Tag.Source);
  }
  get type(): string {
    return this.text(Tag.Type);
  }
  get subject(): string {
    return this.text(Tag.Subject);
  }
  /** datacontenttype, "" where the producer gave none, which means JSON. */
  get contentType(): string {
    return this.text(Tag.ContentType);
  }
  /** dataschema. */
  get schema(): string {
    return this.text(Tag.Schema);
  }
  /** Where the event lies. */
  get topic(): string {
    return this.text(Tag.Topic);
  }
  /** The partition key. */
  get key(): string {
    return this.text(Tag.Key);
  }
  get traceParent(): string {
    return this.text(Tag.TraceParent);
  }
  /** The producer's time, RFC 3339 exactly as it was written, "" if there is none. */
  get time(): string {
    return this.text(Tag.Time);
  }

  /** An extension attribute by name, in its string form. */
  extension(name: string): string | null {
    const v = name == "partitionkey" ? this.attribute(Tag.Key) : name == "traceparent" ? this.attribute(Tag.TraceParent) : this.attribute(Tag.Extension, text(name));
    return v ? v.toString() : null;
  }

  /** An attribute as bytes, which costs less than a string. */
  attribute(tag: Tag, name: View | null = null): View | null {
    const klen: u32 = name ? name.len : 0;
    let a = this.rec + load<u32>(this.rec, 40);
    for (let left = load<u16>(this.rec, 4); left; left--) {
      const k: u32 = load<u16>(a, 2);
      const v = load<u32>(a, 4);
      if (load<u8>(a) == <u8>tag && k == klen && (!name || memory.compare(a + 8, name.ptr, k) == 0)) return view(a + 8 + k, v);
      a += (8 + k + v + 3) & ~3;
    }
    return null;
  }

  private text(tag: Tag): string {
    const v = this.attribute(tag);
    return v ? v.toString() : "";
  }

  /** The event's data, empty if it has none. */
  get data(): View {
    if (!this.hasData) return view(this.rec, 0);
    return view(this.rec + load<u32>(this.rec, 32), load<u32>(this.rec, 36));
  }
  get hasData(): bool {
    return !(load<u16>(this.rec, 6) & 4);
  }
  /** Whether the data is bytes rather than JSON or text. */
  get binary(): bool {
    return (load<u16>(this.rec, 6) & 8) != 0;
  }
  /** Whether somebody waits for a reply. */
  get replyWanted(): bool {
    return (load<u16>(this.rec, 6) & 1) != 0;
  }
  /** 1 for the first. */
  get attempt(): u32 {
    return load<u32>(this.rec, 24);
  }
  /** When the router took the event, in Unix nanoseconds. */
  get received(): i64 {
    return load<i64>(this.rec, 16);
  }
  get partition(): u32 {
    return load<u32>(this.rec, 28);
  }
  get offset(): u64 {
    return load<u64>(this.rec, 8);
  }
  /** How many topics the event's ancestors passed. */
  get hops(): u32 {
    return load<u32>(this.rec, 44);
  }
}
