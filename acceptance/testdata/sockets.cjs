// Speaks to a router with other people's clients of streams: ws and eventsource. The router is stopped and started again at
// its address meanwhile; this says what it is ready for, one word a line, and "ok" when every event came once and in order.
//
//	NODE_PATH=... node sockets.cjs 127.0.0.1:8080 100
"use strict";
const assert = require("node:assert/strict");
const WebSocket = require("ws");
const { EventSource } = require("eventsource");

const [addr, total] = [process.argv[2], Number(process.argv[3])];
const half = total / 2;

// A client speaks over one socket: ask resolves with the answer to a ref, events go to on.
function open(on = {}) {
  const socket = new WebSocket(`ws://${addr}/v1/ws`); // offers permessage-deflate
  const waiting = new Map();
  const ended = [];
  const closed = new Promise((resolve) => socket.on("close", (code) => resolve({ code, ended })));
  socket.on("error", () => {}); // refused while the router is down: closed says so
  socket.on("message", (data, binary) => {
    assert.equal(binary, false);
    const m = JSON.parse(data);
    if (m.op === "event") on[m.ref](m);
    else if (m.op === "end") ended.push(m);
    else if (m.op !== "cursor") {
      waiting.get(m.ref)(m);
      waiting.delete(m.ref);
    }
  });
  return new Promise((resolve, reject) => {
    socket.on("close", reject);
    socket.on("open", () => {
      assert.equal(socket.extensions, "");
      let n = 0;
      const ask = (m) => new Promise((answered) => {
        const ref = m.ref ?? `q${n++}`;
        waiting.set(ref, answered);
        socket.send(JSON.stringify({ ...m, ref }));
      });
      resolve({ ask, closed, socket });
    });
  });
}

async function again(on) {
  for (;;) {
    try { return await open(on); } catch { await new Promise((r) => setTimeout(r, 50)); }
  }
}

const number = (m) => m.event.data.n;

async function main() {
  // What is published comes back once and in order, over both, across the restart; credit is what is waited for.
  const read = [], sent = [];
  let after;
  const source = new EventSource(`http://${addr}/v1/topics/plain/stream`);
  source.onmessage = (e) => sent.push(JSON.parse(e.data).data.n);
  await new Promise((resolve) => { source.onopen = resolve; });

  let client = await open();
  const subscribe = async () => {
    const ref = "read";
    const ok = await client.ask({ op: "subscribe", ref, topic: "plain", credit: 5, ...(after ? { after } : {}) });
    assert.equal(ok.op, "ok", JSON.stringify(ok));
    after ??= ok.cursor;
  };
  const on = { read: (m) => {
    read.push(number(m));
    after = m.cursor;
    if (read.length % 5 === 0) client.ask({ op: "credit", ref: "read", credit: 5 });
  } };
  client.socket.close();
  client = await open(on);
  // The answers to credit have the subscription's ref, as the answer to subscribe.
  await subscribe();

  const publish = async (c, from, to) => {
    for (let n = from; n < to; n++) {
      const ok = await c.ask({ op: "publish", topic: "plain", events: [{ n }] });
      assert.equal(ok.op, "ok", JSON.stringify(ok));
      assert.equal(ok.events.length, 1);
    }
  };
  const publisher = await open();
  await publish(publisher, 0, half);
  console.log("restart");
  const { code, ended } = await client.closed;
  assert.equal(code, 1001);
  assert.deepEqual(ended.map((m) => m.ref), ["read"]);
  assert.equal(ended[0].status, 503);
  after = ended[0].cursor;
  client = await again(on);
  await subscribe();
  await publish(await again(), half, total);
  const all = [...Array(total).keys()];
  const until = Date.now() + 30000;
  while ((read.length < total || sent.length < total) && Date.now() < until) await new Promise((r) => setTimeout(r, 20));
  assert.deepEqual(read, all);
  assert.deepEqual(sent, all);
  source.close();

  // Pulling: nacked comes again, acked does not, and what is held when the socket closes is another's at once.
  const first = [], second = [];
  const wait = async (list, n) => { while (list.length < n) await new Promise((r) => setTimeout(r, 5)); };
  const one = await open({ w: (m) => first.push(m) });
  assert.equal((await one.ask({ op: "subscribe", ref: "w", subscription: "workers", credit: 3 })).op, "ok");
  await one.ask({ op: "publish", topic: "jobs", events: [{ n: 0 }, { n: 1 }, { n: 2 }, { n: 3 }] });
  await wait(first, 3);
  const lease = (n) => [first.find((m) => number(m) === n).lease];
  const held = first.map(number).sort();
  assert.deepEqual((await one.ask({ op: "ack", leases: lease(held[0]) })).lost, []);
  assert.deepEqual((await one.ask({ op: "extend", leases: lease(held[1]), deadline: "60s" })).lost, []);
  assert.deepEqual((await one.ask({ op: "nack", leases: lease(held[2]), delay: "0s" })).lost, []);
  assert.deepEqual((await one.ask({ op: "ack", leases: lease(held[2]) })).reasons, ["unknown"]);
  one.socket.terminate();
  const two = await open({ w: (m) => second.push(m) });
  await two.ask({ op: "subscribe", ref: "w", subscription: "workers" });
  await wait(second, 3);
  assert.deepEqual(second.map(number).sort(), [0, 1, 2, 3].filter((n) => n !== held[0]));
  assert.ok(second.every((m) => m.attempt === (held.includes(number(m)) ? 2 : 1)), JSON.stringify(second));
  assert.deepEqual((await two.ask({ op: "ack", leases: second.map((m) => m.lease) })).lost, []);
  const refused = await two.ask({ op: "subscribe", ref: "x", topic: "nowhere" });
  assert.equal(refused.op, "error");
  assert.equal(refused.status, 404);
  assert.ok(refused.detail && refused.type.startsWith("urn:millrace:problem:"));
  two.socket.close(1000);
  assert.equal((await two.closed).code, 1000);
  client.socket.close();
  console.log("ok");
  process.exit(0);
}

main().catch((err) => {
  console.log(err);
  process.exit(1);
});
