package main

import (
	"os"
	"strings"
	"testing"

	"github.com/millrace/millrace/engine/access"
)

// TestPartialRoles: who may do some things with a name is shown no more of it by one call than by another. Everything
// that only a reader may know says swordfish; names that are nobody's business say hush.
func TestPartialRoles(t *testing.T) {
	p := newProcess(t)
	p.o.token, p.o.rules, p.o.accessFile = "the-router's-own", p.o.data+".yaml", p.o.data+".access.yaml"
	p.write(`version: 1
topics: {secret.t: {}, lobby: {}, hush.t: {}}
schedules: {secret.tick: {topic: secret.t, every: 24h, type: tick, data: {password: swordfish}}}
subscriptions:
  secret.s: {topic: secret.t, filter: data.password == "swordfish", deliver: {pull: {}}}
  secret.u: {topic: lobby, filter: data.password != "swordfish", deliver: {pull: {}}}
  hush.s: {topic: hush.t, deliver: {pull: {}}}
`)
	policy := `version: 1
roles:
  uses: [{allow: [consume], subscriptions: [secret.*]}, {allow: [publish], topics: [secret.*]}, {allow: [invoke], functions: [secret.*]}, {allow: [read], topics: [lobby]}]
  mends: [{allow: [operate], subscriptions: [secret.*]}, {allow: [publish], topics: [secret.*]}, {allow: [read], topics: [lobby]}]
  manages: [{allow: [manage], topics: [secret.*], subscriptions: [secret.*]}, {allow: [deploy], functions: [secret.*]}, {allow: [read], topics: [lobby]}]
  replays: [{allow: [operate], subscriptions: [secret.*]}, {allow: [invoke], functions: [secret.*]}]
`
	if err := os.WriteFile(p.o.accessFile, []byte(policy), 0o600); err != nil {
		t.Fatal(err)
	}
	p.start()
	t.Cleanup(func() { p.stop() })
	w := &tenancy{process: p, keys: map[string]string{"": p.o.token}}
	for _, role := range []string{"uses", "mends", "replays", "manages", "publisher"} {
		_, key, err := p.r.guard.CreateKey(t.Context(), nil, access.Key{Name: role, Roles: []string{role}})
		if err != nil {
			t.Fatal(err)
		}
		w.keys[role] = key
	}
	w.as("", 200, "PUT", "/v1/functions/secret.fn", "text/javascript", `export default () => null // swordfish`)
	w.as("", 200, "PUT", "/v1/functions/secret.fn", "application/json", `{"config":{"password":"swordfish"}}`)
	w.as("", 200, "PUT", "/v1/functions/hush.fn", "text/javascript", `export default () => null`)
	w.as("", 201, "POST", "/v1/topics", "application/json", `{"name":"letters"}`)
	w.as("", 201, "POST", "/v1/subscriptions", "application/json", `{"name":"secret.f","topic":"lobby","functions":["hush.fn"],"deliver":{"pull":{}},"deadLetter":"letters"}`)
	w.as("", 202, "POST", "/v1/topics/lobby/events?id=one", "application/json", `{"password":"open"}`)
	for _, c := range []struct {
		as                 string
		status             int
		method, path, body string
		shows              string // "": nothing of note
	}{
		{"uses", 200, "GET", "/v1/subscriptions", "", `"subscriptions":[]`},
		{"uses", 200, "GET", "/v1/topics", "", `"lobby"`},
		{"uses", 200, "GET", "/v1/functions", "", `"functions":[]`},
		{"uses", 200, "GET", "/v1/schedules", "", `"schedules":[]`},
		{"uses", 403, "GET", "/v1/subscriptions/secret.s", "", ""},
		{"uses", 403, "GET", "/v1/functions/secret.fn", "", ""},
		{"uses", 403, "GET", "/v1/topics/secret.t", "", ""},
		{"uses", 403, "GET", "/v1/topics/secret.t/events", "", ""},
		{"uses", 404, "GET", "/v1/subscriptions/hush.s", "", ""},
		{"uses", 200, "POST", "/v1/topics/secret.t/events?dryRun=true", `{"password":"x"}`, `"matches":[]`},
		{"uses", 200, "GET", "/v1/topics/lobby/events/0-0/trace", "", `lobby`},
		{"uses", 403, "GET", "/v1/subscriptions/secret.u/explain?event=lobby/0-0", "", ""},
		{"uses", 403, "GET", "/v1/subscriptions/secret.s/deadletters", "", ""},
		{"uses", 403, "GET", "/v1/backup", "", ""},
		{"uses", 403, "GET", "/metrics", "", ""},
		{"mends", 404, "GET", "/v1/subscriptions/secret.s/deadletters?topic=hush.t", "", "see"},
		{"mends", 404, "GET", "/v1/subscriptions/secret.s/deadletters?topic=hish.t", "", "see"},
		{"mends", 403, "GET", "/v1/subscriptions/secret.s/deadletters?topic=secret.t", "", ""},
		{"mends", 200, "GET", "/v1/subscriptions/secret.s/deadletters?topic=lobby", "", ""},
		{"mends", 403, "POST", "/v1/subscriptions/secret.s/purge", `{"topic":"lobby","all":true}`, ""},
		{"mends", 404, "POST", "/v1/subscriptions/secret.s/purge", `{"topic":"hush.t","all":true}`, "see"},
		{"mends", 404, "POST", "/v1/subscriptions/secret.s/redrive", `{"topic":"hish.t"}`, "see"},
		{"mends", 409, "POST", "/v1/subscriptions/secret.s/redrive", `{}`, "no dead-letter topic"},
		{"mends", 200, "GET", "/v1/subscriptions", "", `"subscriptions":[]`},
		{"mends", 404, "POST", "/v1/subscriptions/secret.f/replay", `{"since":"1h","function":"zz"}`, `function \"zz\" does not exist, or`},
		{"mends", 404, "POST", "/v1/subscriptions/secret.f/replay", `{"since":"1h","function":"hush.fn"}`, `function \"hush.fn\" does not exist, or`},
		{"mends", 404, "POST", "/v1/subscriptions/secret.s/replay", `{"since":"1h","function":"hush.fn"}`, `function \"hush.fn\" does not exist, or`},
		{"mends", 404, "POST", "/v1/subscriptions/secret.f/replay", `{"since":"1h","function":"hush.fn@sha256:00"}`, `function \"hush.fn\" does not exist, or`},
		{"mends", 404, "POST", "/v1/subscriptions/secret.f/redrive", `{"function":"zz"}`, `function \"zz\" does not exist, or`},
		{"mends", 404, "POST", "/v1/subscriptions/secret.f/redrive", `{"function":"hush.fn"}`, `function \"hush.fn\" does not exist, or`},
		{"replays", 409, "POST", "/v1/subscriptions/secret.f/replay", `{"since":"1h","function":"secret.fn"}`, "is no function of subscription secret.f"},
		{"replays", 409, "POST", "/v1/subscriptions/secret.f/redrive", `{"function":"secret.fn"}`, "is no function of subscription secret.f"},
		{"replays", 404, "POST", "/v1/subscriptions/secret.f/replay", `{"since":"1h","function":"secret.none"}`, `function \"secret.none\" does not exist, or`},
		{"", 409, "POST", "/v1/subscriptions/secret.f/replay", `{"since":"1h","function":"zz"}`, "is no function of subscription secret.f"},
		{"manages", 201, "POST", "/v1/topics", `{"name":"secret.own"}`, `{"name":"secret.own"}`},
		{"manages", 403, "GET", "/v1/topics/secret.own", "", ""},
		{"manages", 200, "PATCH", "/v1/topics/secret.own", `{"retain":{"events":5}}`, `{"name":"secret.own"}`},
		{"manages", 201, "POST", "/v1/subscriptions", `{"name":"secret.g","topic":"lobby","deliver":{"pull":{}}}`, `{"name":"secret.g"}`},
		{"manages", 200, "PATCH", "/v1/subscriptions/secret.g", `{"concurrency":2}`, `{"name":"secret.g"}`},
		{"manages", 200, "PUT", "/v1/functions/secret.fn", `{"config":{"password":"swordfish","n":"1"}}`, `{"name":"secret.fn"}`},
		{"manages", 200, "PUT", "/v1/functions/secret.fn", `{"config":{"password":"swordfish","n":"1"}}`, `{"name":"secret.fn"}`},
		{"", 400, "PATCH", "/v1/topics/secret.own", `{"name":"other"}`, `"at":"name"`},
		{"", 400, "PATCH", "/v1/topics/secret.own", `{"name":null}`, `"at":"name"`},
		{"", 400, "PATCH", "/v1/subscriptions/secret.f", `{"name":"other"}`, `"at":"name"`},
		{"", 400, "PUT", "/v1/functions/secret.fn", `{"name":"other"}`, `"at":"name"`},
		{"", 200, "PATCH", "/v1/topics/secret.own", `{"name":"secret.own","retain":{"events":6}}`, `"secret.own"`},
		{"", 200, "GET", "/v1/topics/lobby", "", `"incarnation"`},
		{"publisher", 403, "GET", "/v1/schedules", "", ""},
		{"publisher", 403, "GET", "/v1/topics", "", ""},
		{"publisher", 200, "POST", "/v1/topics/secret.t/events?dryRun=true", `{"password":"x"}`, `"matches":[]`},
		{"", 200, "POST", "/v1/topics/secret.t/events?dryRun=true", `{"password":"x"}`, `"secret.s"`}, // who may read does
	} {
		a := w.ask(c.as, c.method, c.path, "application/json", c.body)
		named := c.path + c.body
		if a.status != c.status || !strings.Contains(a.body, c.shows) || c.as != "" && (strings.Contains(a.body, "swordfish") || strings.Contains(a.body, "incarnation") ||
			strings.Contains(a.body, "hush") && !strings.Contains(named, "hush")) {
			t.Errorf("%s as %q %s %s: %d %s; want %d with %q", c.method, c.as, c.path, c.body, a.status, a.body, c.status, c.shows)
		}
	}
}
