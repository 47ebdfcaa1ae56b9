// A function's state: values by key, which belong to the function's name and outlive its versions. Writes take
// effect with the function's results and the position in the topic, or not at all, so that a retry never applies
// one twice. Importing this requires a router that keeps state. After null or false, lastError says why.

import { View, temporary } from "./bytes";
import { Feature, HostError, ask, failed, lastError, require } from "./host";

// @ts-ignore: decorator
@external("millrace_v1", "kv_get")
declare function hostGet(k: usize, klen: i32, buf: usize, room: i32): i64;
// @ts-ignore: decorator
@external("millrace_v1", "kv_put")
declare function hostPut(k: usize, klen: i32, v: usize, vlen: i32, ttl: i64): i32;
// @ts-ignore: decorator
@external("millrace_v1", "kv_del")
declare function hostDelete(k: usize, klen: i32): i32;
// @ts-ignore: decorator
@external("millrace_v1", "kv_add")
declare function hostAdd(k: usize, klen: i32, delta: i64, sum: usize): i32;

require(Feature.State);

/** A value, null where there is none, it has expired, or lastError is another than NotFound. */
export function get(key: View): View | null {
  return ask((k: usize, klen: i32, buf: usize, room: i32): i64 => hostGet(k, klen, buf, room), key);
}

/** Stores a value, for a while or, with 0 ms, until it is deleted. */
export function put(key: View, value: View, ttl: i64 = 0): bool {
  return !failed(hostPut(key.ptr, key.len, value.ptr, value.len, ttl));
}

/** Removes a value. That there is none is no error. */
export function del(key: View): bool {
  return !failed(hostDelete(key.ptr, key.len)) || lastError() == HostError.NotFound;
}

/** A sum. */
@unmanaged
export class Sum {
  value: i64;
}

/** Adds to a number, 0 if there is none, and returns the sum. */
export function add(key: View, delta: i64): Sum | null {
  const sum = changetype<Sum>(temporary(offsetof<Sum>()));
  return failed(hostAdd(key.ptr, key.len, delta, changetype<usize>(sum))) ? null : sum;
}
