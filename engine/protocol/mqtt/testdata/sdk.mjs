// The CloudEvents SDK's own MQTT binding, line by line: {make, event} answers the event as a message of MQTT, {read, message}
// a message as the event that the SDK finds in it.
import { createInterface } from "node:readline"
import { CloudEvent, MQTT } from "cloudevents"

const text = v => v instanceof Uint8Array ? Buffer.from(v).toString("base64") : typeof v === "string" ? v : v === undefined ? "" : JSON.stringify(v)

for await (const line of createInterface({ input: process.stdin })) {
  const ask = JSON.parse(line)
  if (ask.make) {
    const m = MQTT[ask.make](new CloudEvent(ask.event))
    const user = Object.entries(m["User Properties"]).filter(([, v]) => v !== undefined).map(([k, v]) => [k, String(v)])
    console.log(JSON.stringify({ contentType: m.PUBLISH["Content Type"] ?? "", user, payload: text(m.payload), bytes: m.payload instanceof Uint8Array }))
    continue
  }
  const { contentType, user, payload } = ask.read
  const headers = Object.fromEntries(user)
  const message = { PUBLISH: { "Content Type": contentType || undefined }, headers, "User Properties": headers, body: payload, payload }
  console.log(JSON.stringify({ found: MQTT.isEvent(message), event: MQTT.isEvent(message) ? MQTT.toEvent(message, true) : null }))
}
