// What a module exports. An entry file has the line: export * from "millrace/assembly/exports";

import "./abort"; // so that the compiler finds it
import { release } from "./bytes";
import { Event } from "./event";
import { Results } from "./results";
import { required } from "./host";
import { handler } from "./handler";

let batch: usize = 0;
let room: usize = 0;
const out = new Results();
const event = changetype<Event>(heap.alloc(offsetof<Event>()));

export function millrace_abi_v1(): i32 {
  return required();
}

export function millrace_buffer(n: usize): usize {
  // Nothing of a handler is at work here, so that nothing but globals holds objects: the one place to collect them.
  __collect();
  if (n > room) {
    if (batch) heap.free(batch);
    room = max<usize>(1 << 16, n + n / 4);
    batch = heap.alloc(room);
  }
  return batch;
}

export function millrace_handle(ptr: usize, len: usize): u64 {
  const count = load<u32>(ptr, 4);
  const h = handler();
  if (!h) return 0;
  let at = ptr + 24;
  out.begin();
  for (let i: u32 = 0; i < count; i++) {
    store<u32>(ptr, i, 12); // the router reads this cursor when the handler traps
    out.next(i);
    event.rec = at;
    h(event, out);
    release();
    at += load<u32>(at);
  }
  store<u32>(ptr, count, 12);
  return out.packed;
}
