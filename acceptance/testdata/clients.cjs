// Speaks to a router with other people's packages: publishes with the CloudEvents SDK, reads back over the API and as webhooks,
// and verifies signatures with Standard Webhooks' library. Prints "ok N" or what is wrong.
//
//	NODE_PATH=... node clients.cjs http://127.0.0.1:8080 whsec_...
"use strict";
const assert = require("node:assert/strict");
const http = require("node:http");
const { CloudEvent, HTTP } = require("cloudevents");
const { Webhook } = require("standardwebhooks");

const [url, secret] = process.argv.slice(2);
const verifier = new Webhook(secret);
let checks = 0;

const events = [
  { type: "com.example.plain", subject: "s/1", data: { n: 1, nested: { list: [1, 2.5, "drei", null, true] } } },
  { type: "com.example.unicode", subject: "grüße €", data: { text: "ä 日本 \u{1F600} \"quoted\"" } },
  { type: "com.example.extension", partitionkey: "k1", level: 5, flag: true, data: { a: [] } },
  { type: "com.example.text", datacontenttype: "text/plain", data: "only text" },
  { type: "com.example.time", time: "2026-03-01T12:00:00.123Z", dataschema: "https://example.com/schema", data: { b: {} } },
].map((e, i) => new CloudEvent({ source: "/js", id: `js-${i}`, datacontenttype: "application/json", ...e }));

async function send(topic, { headers, body }) {
  const resp = await fetch(`${url}/v1/topics/${topic}/events`, { method: "POST", headers, body });
  const text = await resp.text();
  assert.equal(resp.status, 202, text);
  return JSON.parse(text);
}

// What an SDK's event says, in the order of names. The times differ in notation alone.
function plain(e) {
  const doc = JSON.parse(JSON.stringify(e));
  doc.time = new Date(doc.time).toISOString();
  return doc;
}

// Headers are percent-encoded (CloudEvents HTTP binding 3.1.3.2); the SDK leaves that to its user.
const escaped = (e) => (e.subject ? e.cloneWith({ subject: encodeURI(e.subject) }) : e);

// Binary mode has no types: extensions come back as text.
const untyped = (doc) => ({ ...doc, ...("level" in doc && { level: String(doc.level) }), ...("flag" in doc && { flag: String(doc.flag) }) });

function equal(got, want, how) {
  assert.deepEqual(plain(got), plain(want), how);
  checks++;
}

async function api(method, path, doc) {
  const resp = await fetch(url + path, { method, headers: { "content-type": "application/json" }, body: doc && JSON.stringify(doc) });
  const text = await resp.text();
  assert.ok(resp.ok, `${method} ${path}: ${resp.status} ${text}`);
  return text ? JSON.parse(text) : undefined;
}

async function main() {
  const received = new Map(); // by path: [{headers, body}]
  let arrived = () => {};
  const server = http.createServer((req, res) => {
    const chunks = [];
    req.on("data", (c) => chunks.push(c));
    req.on("end", () => {
      if (!received.has(req.url)) received.set(req.url, []);
      received.get(req.url).push({ headers: req.headers, body: Buffer.concat(chunks) });
      res.writeHead(204).end();
      arrived();
    });
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  const target = `http://127.0.0.1:${server.address().port}`;

  const modes = {
    binary: async (topic) => { for (const e of events) await send(topic, HTTP.binary(escaped(e))); },
    structured: async (topic) => { for (const e of events) await send(topic, HTTP.structured(e)); },
    batch: async (topic) => {
      const answer = await send(topic, { headers: { "content-type": "application/cloudevents-batch+json" }, body: JSON.stringify(events) });
      assert.deepEqual(answer.events.map((e) => e.id), events.map((e) => e.id));
    },
  };
  for (const mode of Object.keys(modes)) {
    await api("POST", "/v1/topics", { name: mode });
    for (const format of ["structured", "binary"])
      await api("POST", "/v1/subscriptions", { name: `${mode}-${format}`, topic: mode,
        deliver: { webhook: { url: `${target}/${mode}/${format}`, format, secrets: [secret] } } });
  }
  for (const [mode, publish] of Object.entries(modes)) await publish(mode);

  for (const mode of Object.keys(modes)) {
    const read = await api("GET", `/v1/topics/${mode}/events`);
    assert.equal(read.events.length, events.length);
    read.events.forEach((doc, i) => {
      const want = mode === "binary" ? untyped(plain(events[i])) : events[i];
      const got = HTTP.toEvent({ headers: { "content-type": "application/cloudevents+json" }, body: JSON.stringify(withoutPlace(doc)) });
      equal(got, want, `${mode}, read over the API`);
    });
  }

  const wanted = Object.keys(modes).flatMap((m) => [`/${m}/structured`, `/${m}/binary`]);
  const complete = () => wanted.every((p) => (received.get(p) || []).length >= events.length);
  while (!complete()) await new Promise((done) => { arrived = done; });
  for (const p of wanted) {
    for (const { headers, body } of received.get(p)) {
      const json = headers["content-type"] !== "text/plain";
      if (json) {
        verifier.verify(body.toString(), headers);
        assert.throws(() => verifier.verify(body.toString() + " ", headers), `${p}: a changed body verifies`);
        assert.throws(() => verifier.verify(body.toString(), { ...headers, "webhook-id": "other" }), `${p}: a changed id verifies`);
        checks++;
      }
      const got = HTTP.toEvent({ headers, body: body.toString() });
      let want = plain(events.find((e) => e.id === got.id));
      if (p.endsWith("/binary") || p.startsWith("/binary/")) want = untyped(want);
      const doc = p.endsWith("/binary") ? untyped(plain(got)) : plain(got);
      if (doc.subject) doc.subject = decodeURIComponent(doc.subject); // the SDK leaves percent-encoding of headers as it is
      equal(doc, want, p);
    }
  }
  server.close();
  server.closeAllConnections();
  console.log(`ok ${checks}`);
}

// What the API adds to a CloudEvent says where the event lies and since when.
function withoutPlace({ millraceposition, recordedtime, ...event }) {
  assert.match(millraceposition, /^\d+-\d+$/);
  assert.ok(Date.parse(recordedtime) > 0, recordedtime);
  return event;
}

main().catch((err) => { console.error(err); process.exit(1); });
