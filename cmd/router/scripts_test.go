package main

import (
	"strings"
	"testing"
)

// A script goes to a running router as source, handles events with state, is replaced and taken back; one that does
// not start changes nothing; all of it outlives a restart.
func TestScriptsOverHTTP(t *testing.T) {
	p := startProcess(t, `version: 1
functions: {tally: {wasm: pushed, allow: {kv: true}}}
subscriptions:
  counted: {topic: orders, functions: [tally], retry: {attempts: 1}, deliver: {topic: tallied}}
`)
	const script = `export default function (event, {kv}) {
	if (event.text === "\"bad\"") throw new TypeError("not this one");
	return emit({type: "tally", data: {n: kv.add("n"), by: "first"}});
}`
	p.must(200, "PUT", "/v1/functions/tally", "text/javascript; charset=utf-8", script)
	publish := func(data string) { p.must(202, "POST", "/v1/topics/orders/events", "application/json", data) }
	tallied := func(want string) {
		t.Helper()
		until(t, want, func() bool {
			_, text := p.call("GET", "/v1/topics/tallied/events", "", "")
			return strings.Contains(text, want)
		})
	}
	publish("1")
	publish("2")
	tallied(`{"n":2,"by":"first"}`)
	publish(`"bad"`)
	until(t, "the event's dead letter says where", func() bool {
		_, text := p.call("GET", "/v1/topics/counted.dead/events", "", "")
		return strings.Contains(text, "not this one") && strings.Contains(text, "function.js:2:") && strings.Contains(text, `"trap`)
	})

	if status, text := p.call("PUT", "/v1/functions/tally", "application/javascript", "export default () =>\n\treturn 1"); status != 400 || !strings.Contains(text, "function.js:2:") || !strings.Contains(text, "SyntaxError") {
		t.Errorf("a script with a mistake: %d %s; want 400 with its line", status, text)
	}
	if status, text := p.call("PUT", "/v1/functions/tally", "text/javascript", " "); status != 400 || !strings.Contains(text, "the source is empty") {
		t.Errorf("an empty script: %d %s", status, text)
	}
	if status, text := p.call("PUT", "/v1/functions/tally", "text/typescript", script); status != 415 || !strings.Contains(text, "text/javascript") {
		t.Errorf("another language: %d %s", status, text)
	}
	publish("3")
	tallied(`{"n":3,"by":"first"}`)

	p.must(200, "PUT", "/v1/functions/tally", "application/javascript", strings.ReplaceAll(script, "first", "second"))
	publish("4")
	tallied(`{"n":4,"by":"second"}`)
	p.stop()
	p.start()
	publish("5")
	tallied(`{"n":5,"by":"second"}`)
	p.must(200, "POST", "/v1/functions/tally/rollback", "application/json", "{}")
	publish("6")
	tallied(`{"n":6,"by":"first"}`)
}
