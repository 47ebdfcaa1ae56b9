// Feeds lines to a compiled driver.ts: node driver.mjs driver.wasm < lines.
import { readFileSync } from "node:fs";

const { instance } = await WebAssembly.instantiate(readFileSync(process.argv[2]), {});
const { memory, room, line } = instance.exports;
const answers = [];
for (const text of readFileSync(0, "latin1").split("\n").slice(0, -1)) {
  const bytes = Buffer.from(text, "latin1");
  const at = room(bytes.length) >>> 0;
  new Uint8Array(memory.buffer, at, bytes.length).set(bytes);
  const packed = BigInt.asUintN(64, line(bytes.length));
  if (packed === 0n) {
    answers.push("-");
  } else {
    answers.push(Buffer.from(memory.buffer, Number(packed >> 32n), Number(packed & 0xffffffffn)).toString("hex"));
  }
}
process.stdout.write(answers.join("\n") + "\n");
