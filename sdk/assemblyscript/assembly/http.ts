// HTTP requests through the router, to the hosts that the function's configuration allows and within the call's
// time. Nothing takes a request back: a retry of an event makes its requests again. Importing this requires a
// router that makes them.

import { Buffer, View, temporary, text, view } from "./bytes";
import { Feature, HostError, failed, require } from "./host";

// @ts-ignore: decorator
@external("millrace_v1", "http")
declare function hostHTTP(req: usize, len: i32, buf: usize, room: i32): i64;

require(Feature.HTTP);

/** An answer, whatever its status says. */
@unmanaged
export class Response {
  status: i32;
  headers: View; // "name: value\r\n" lines
  body: View;

  /** The first value of a header, whose name's case does not matter. */
  header(name: string): string | null {
    const lines = this.headers.toString().split("\n");
    for (let i = 0; i < lines.length; i++) {
      const colon = lines[i].indexOf(":");
      if (colon > 0 && lines[i].slice(0, colon).trim().toLowerCase() == name.toLowerCase()) return lines[i].slice(colon + 1).trim();
    }
    return null;
  }
}

/** What to ask. A timeout of 0 ms leaves it to the router. */
export class Request {
  method: string = "GET";
  body: View | null = null;
  timeout: u32 = 0;
  headers: string = "";

  constructor(public url: string) {}

  /** Adds a header. A line break in it makes the request a bad argument: it would make another header. */
  header(name: string, value: string): Request {
    if (name.includes("\n") || name.includes("\r") || name.includes(":") || value.includes("\n") || value.includes("\r")) this.method = "";
    this.headers += name + ": " + value + "\r\n";
    return this;
  }
}

const buf = new Buffer();

/** Makes a request; null means that lastError says why there is no answer. */
export function fetch(r: Request): Response | null {
  if (!r.method.length || r.method.length > 0xffff) {
    failed(HostError.BadArgument);
    return null;
  }
  const method = text(r.method);
  const url = text(r.url);
  const headers = text(r.headers);
  const body = r.body;
  const h = buf.clear().reserve(20);
  store<u16>(h, 1);
  store<u16>(h, <u16>method.len, 2);
  store<u32>(h, url.len, 4);
  store<u32>(h, headers.len, 8);
  store<u32>(h, body ? body.len : 0, 12);
  store<u32>(h, r.timeout, 16);
  buf.len = 20;
  buf.append(method).append(url).append(headers);
  if (body) buf.append(body);

  let room: i64 = 16 << 10;
  let p = temporary(<usize>room);
  let n = hostHTTP(buf.ptr, buf.len, p, <i32>room);
  if (n > room) { // the router keeps it: no request asks for what it has
    room = n;
    p = temporary(<usize>room);
    n = hostHTTP(buf.ptr, 0, p, <i32>room);
  }
  if (failed(n)) return null;
  if (n < 12 || n > room || load<u16>(p) != 1 || <u64>load<u32>(p, 4) + load<u32>(p, 8) + 12 != <u64>n) {
    failed(HostError.IO);
    return null;
  }
  const out = changetype<Response>(temporary(offsetof<Response>()));
  out.status = load<u16>(p, 2);
  out.headers = view(p + 12, load<u32>(p, 4));
  out.body = view(p + 12 + load<u32>(p, 4), load<u32>(p, 8));
  return out;
}
