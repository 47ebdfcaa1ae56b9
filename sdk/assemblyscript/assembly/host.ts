// What a function asks its router for.

import { Buffer, View, text, temporary, view } from "./bytes";

// @ts-ignore: decorator
@external("millrace_v1", "log")
declare function hostLog(level: i32, ptr: usize, len: i32): void;
// @ts-ignore: decorator
@external("millrace_v1", "config_get")
declare function hostConfig(k: usize, klen: i32, buf: usize, room: i32): i64;
// @ts-ignore: decorator
@external("millrace_v1", "now")
declare function hostNow(): i64;
// @ts-ignore: decorator
@external("millrace_v1", "clock")
declare function hostClock(): i64;
// @ts-ignore: decorator
@external("millrace_v1", "random")
declare function hostRandom(ptr: usize, len: i32): void;
// @ts-ignore: decorator
@external("millrace_v1", "counter_add")
declare function hostCount(name: usize, len: i32, delta: i64): void;

/** A part of the convention that not every router has. */
export enum Feature {
  State = 1,
  HTTP = 2,
  Reply = 4,
  Secrets = 8,
}

let features: i32 = 0;

/** Declares features that the function cannot do without: a router that lacks one refuses the module instead of
 * failing its events. Importing "kv", "http" and "secret" declares theirs; only replies are to be declared. */
export function require(f: Feature): void {
  features |= f;
}

/** What was required. */
export function required(): i32 {
  return features;
}

/** Why the router did not do what it was asked for. */
export enum HostError {
  None = 0,
  NotFound = -1,
  Denied = -2,
  TooBig = -3,
  Deadline = -4,
  IO = -5,
  BadArgument = -6,
}

export enum Level {
  Debug,
  Info,
  Warn,
  Error,
}

let failure: i32 = 0;

/** Why the last call that answered null or false did so. */
export function lastError(): HostError {
  return failure;
}

// @ts-ignore: decorator
@unsafe
export function failed(code: i64): bool {
  failure = code < 0 ? <i32>code : 0;
  return code < 0;
}

/** Calls get with room for an answer, and again with more if the answer is larger. */
// @ts-ignore: decorator
@unsafe
export function ask(get: (k: usize, klen: i32, buf: usize, room: i32) => i64, key: View): View | null {
  let room: i64 = 0;
  let n: i64 = 256;
  let p: usize = 0;
  while (n > room) {
    room = n;
    p = temporary(<usize>room);
    n = get(key.ptr, key.len, p, <i32>room);
  }
  return failed(n) ? null : view(p, <i32>n);
}

/** Writes a line to the function's log, which is bounded in length and rate. */
export function log(level: Level, message: string): void {
  const v = text(message);
  hostLog(level, v.ptr, v.len);
}

/** A value of the function's configuration. Read what does not change once, while the module starts. */
export function config(key: string): string | null {
  const v = ask((k: usize, klen: i32, buf: usize, room: i32): i64 => hostConfig(k, klen, buf, room), text(key));
  return v ? v.toString() : null;
}

/** A value of the function's configuration, or what to take where it is not set. */
export function configOr(key: string, fallback: string): string {
  const v = config(key);
  return v === null ? fallback : v;
}

/** When the router received the event at work, in Unix nanoseconds: the same in every attempt, so that a retry
 * decides alike. */
export function now(): i64 {
  return hostNow();
}

/** The true time. What depends on it may come out differently in a retry. */
export function clock(): i64 {
  return hostClock();
}

/** Appends n bytes that are the same in every attempt at the event at work and unpredictable otherwise. */
export function random(b: Buffer, n: i32): void {
  hostRandom(b.reserve(n), n);
  b.len += n;
}

/** Adds to a counter of the function, which the router shows with its metrics. */
export function count(name: View, delta: i64 = 1): void {
  hostCount(name.ptr, name.len, delta);
}
