// Drives clients of the npm package mqtt by lines of JSON: a command a line comes in, its answer {n, …} goes out, and so
// does each message that a client receives, as {client, message}.
'use strict';
const mqtt = require('mqtt');
const fs = require('fs');

const clients = new Map();
const say = (line) => process.stdout.write(JSON.stringify(line) + '\n');
const file = (path) => (path ? fs.readFileSync(path) : undefined);
const bytes = (base64) => Buffer.from(base64, 'base64');

const settled = (call) => new Promise((resolve, reject) => call((error, value) => (error ? reject(error) : resolve(value))));

function properties(m) {
  const p = {};
  if (m.contentType) p.contentType = m.contentType;
  if (m.responseTopic) p.responseTopic = m.responseTopic;
  if (m.correlation) p.correlationData = Buffer.from(m.correlation);
  if (m.expiry) p.messageExpiryInterval = m.expiry;
  if (m.text) p.payloadFormatIndicator = true;
  if (m.alias) p.topicAlias = m.alias;
  if (m.user) p.userProperties = m.user;
  return p;
}

const commands = {
  open: ({ client: name, connect: c, version }) =>
    new Promise((resolve, reject) => {
      const v5 = version === 5;
      const client = mqtt.connect(c.url, {
        clientId: c.id, username: c.user || undefined, password: c.password || undefined, protocolVersion: version, clean: !c.keep, resubscribe: false,
        ca: file(c.ca), cert: file(c.certificate), key: file(c.certificate),
        reconnectPeriod: c.again ? 50 : 0, connectTimeout: 20000,
        will: c.will && { topic: c.will.topic, payload: c.will.payload, qos: c.will.qos, retain: c.will.retain },
        properties: v5 ? { sessionExpiryInterval: c.expiry, ...(c.receiveMaximum ? { receiveMaximum: c.receiveMaximum } : {}) } : undefined,
      });
      clients.set(name, { client, v5 });
      // Acknowledged once this calls back.
      client.handleMessage = (packet, done) => {
        const p = packet.properties || {};
        say({
          client: name,
          message: {
            topic: packet.topic, payload: packet.payload.toString('base64'), qos: packet.qos, retain: packet.retain, dup: packet.dup,
            contentType: p.contentType, responseTopic: p.responseTopic, correlation: p.correlationData && p.correlationData.toString(),
            expiry: p.messageExpiryInterval, text: p.payloadFormatIndicator === true, user: p.userProperties && { ...p.userProperties },
          },
        });
        done();
      };
      client.once('connect', (packet) => resolve({ present: packet.sessionPresent }));
      client.on('error', (error) => {
        if (error.code > 0) error.message = `refused ${error.code}`;
        reject(error);
        if (!c.again) client.end(true);
      });
      if (!c.again) client.once('close', () => reject(new Error('the connection was closed')));
    }),
  publish: async ({ client: name, message: m }) => {
    const { client, v5 } = clients.get(name);
    const packet = await settled((done) =>
      client.publish(m.topic, bytes(m.payload), { qos: m.qos, retain: m.retain, properties: v5 ? properties(m) : undefined }, done));
    if (packet && packet.reasonCode >= 0x80) throw new Error(`refused ${packet.reasonCode}`);
    return {};
  },
  subscribe: async ({ client: name, filter, qos }) => {
    const granted = await settled((done) => clients.get(name).client.subscribe(filter, { qos }, done));
    return { granted: granted[0].qos };
  },
  unsubscribe: async ({ client: name, filter }) => {
    await settled((done) => clients.get(name).client.unsubscribe(filter, done));
    return {};
  },
  close: async ({ client: name }) => {
    await settled((done) => clients.get(name).client.end(false, {}, () => done()));
    return {};
  },
  drop: async ({ client: name }) => {
    const { client } = clients.get(name);
    await new Promise((resolve) => {
      client.once('close', resolve);
      client.stream.destroy();
    });
    client.end(true);
    return {};
  },
};

require('readline').createInterface({ input: process.stdin }).on('line', async (line) => {
  const command = JSON.parse(line);
  try {
    say({ n: command.n, ...(await commands[command.do](command)) });
  } catch (error) {
    say({ n: command.n, error: String(error.message || error) });
  }
}).on('close', () => process.exit(0));
