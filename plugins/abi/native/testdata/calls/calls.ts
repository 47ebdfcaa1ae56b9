// Makes every call of the router that the SDK has and says what came of it, as its siblings do.

import { Attr, Buffer, Event, HostError, Level, Results, Tag, count, handle, lastError, literal, log, now, random } from "millrace/assembly";
import { Request, fetch } from "millrace/assembly/http";
import * as kv from "millrace/assembly/kv";
import { secret } from "millrace/assembly/secret";
export * from "millrace/assembly/exports";

const last = literal("last");
const gone = literal("gone");
const attrs: Attr[] = [Attr.topic(literal("audit")), Attr.subject(literal("s")), Attr.unset(Tag.Extension, literal("region"))];
const said = new Buffer();
const bytes = new Buffer();

handle((e: Event, out: Results): void => {
  if (e.data.toString() == "later") {
    out.retry(1500);
    return;
  }
  log(Level.Warn, "hello");
  count(literal("seen"), 2);
  random(bytes.clear(), 8);
  said.clear().text("now=" + (now() == e.received).toString() + " random=" + (load<u64>(bytes.ptr) != 0).toString());
  const was = kv.get(last);
  said.text(" was=" + (was ? was.toString() : "none"));
  kv.put(last, e.data, 3600 * 1000);
  kv.put(gone, e.data);
  kv.del(gone);
  said.text(" gone=" + (kv.get(gone) != null || lastError() != HostError.NotFound).toString());
  const sum = kv.add(literal("sum"), -3);
  said.text(" sum=" + (sum ? sum.value.toString() : "?"));
  said.text(" bad=" + (!kv.add(last, 1) && lastError() == HostError.BadArgument).toString());
  const token = secret("token");
  said.text(" token=" + (token ? token.toString() : "?"));
  said.text(" none=" + (secret("none") != null).toString());
  const ask = new Request("https://api.example.com/x").header("X-A", "b");
  ask.method = "POST";
  ask.body = literal("ask");
  ask.timeout = 1500;
  const answer = fetch(ask);
  if (answer) {
    const tag = answer.header("X-Tag");
    said.text(" status=" + answer.status.toString() + " tag=" + (tag ? tag : "") + " body=" + answer.body.len.toString());
  }
  said.text(" denied=" + (!fetch(new Request("https://other.example.com/")) && lastError() == HostError.Denied).toString());
  out.relabel(attrs);
  out.replace(said.view());
});
