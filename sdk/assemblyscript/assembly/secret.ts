// The secrets that a function was given. Importing this requires a router that has them.

import { View, text } from "./bytes";
import { Feature, ask, require } from "./host";

// @ts-ignore: decorator
@external("millrace_v1", "secret_get")
declare function hostSecret(k: usize, klen: i32, buf: usize, room: i32): i64;

require(Feature.Secrets);

/** A secret, null where there is none or it is not this function's: lastError says which. Read it when it is needed
 * rather than once: it may be changed. */
export function secret(name: string): View | null {
  return ask((k: usize, klen: i32, buf: usize, room: i32): i64 => hostSecret(k, klen, buf, room), text(name));
}
