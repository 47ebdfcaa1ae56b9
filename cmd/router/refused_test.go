package main

import (
	"encoding/json"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/rules"
)

// auditLines keeps the log of a process.
type auditLines struct {
	lockedBuffer
	seen int // bytes
}

// denied are the refusals since the last time, as "principal addr action kind name".
func (a *auditLines) denied(t *testing.T) (lines []string) {
	t.Helper()
	text := a.String()[a.seen:]
	a.seen += len(text)
	for d := json.NewDecoder(strings.NewReader(text)); ; {
		var e struct{ Msg, Outcome, Principal, Addr, Action, Kind, Name string }
		if err := d.Decode(&e); err == io.EOF {
			return lines
		} else if err != nil {
			t.Fatal(err)
		}
		if e.Msg == "audit" && e.Outcome == access.Denied {
			lines = append(lines, strings.Join([]string{e.Principal, e.Addr, e.Action, e.Kind, e.Name}, " "))
		}
	}
}

// TestRefusalsInsideDefinitions: what a definition, a replay or a call of a version names is refused like what a path
// names, and audited and counted like it, once.
func TestRefusalsInsideDefinitions(t *testing.T) {
	p := newProcess(t)
	var log auditLines
	p.o.accessFile = p.o.data + ".access.yaml"
	const policy = `version: 1
roles:
  splits: [{allow: [invoke, read], functions: ["*"]}, {allow: [deploy], functions: [mine]}, {allow: [read, operate, manage], subscriptions: [payer]}, {allow: [read, publish, manage], topics: [due, payer.*]}]
`
	if err := os.WriteFile(p.o.accessFile, []byte(policy), 0o600); err != nil {
		t.Fatal(err)
	}
	p.o.token, p.o.auditTopic, p.o.log = "the-router's-own", "audit", slog.New(slog.NewJSONHandler(&log, nil))
	p.start()
	t.Cleanup(func() { p.stop() })
	w := &tenancy{process: p, keys: map[string]string{"": p.o.token}}
	for name, k := range map[string]access.Key{
		glbx:      {Roles: []string{"developer", "operator"}, Tenant: glbx},
		developer: {Roles: []string{"developer", "operator"}},
		splits:    {Roles: []string{"splits"}},
	} {
		k.Name = "k"
		_, key, err := p.r.guard.CreateKey(t.Context(), nil, k)
		if err != nil {
			t.Fatal(err)
		}
		w.keys[name] = key
	}
	const asJSON, asWASM = "application/json", "application/wasm"
	for _, topic := range []string{"acme.orders", "glbx.own"} {
		w.as("", 201, "POST", "/v1/topics", asJSON, `{"name":"`+topic+`"}`)
	}
	shown := w.as("", 200, "PUT", "/v1/functions/acme.fn", asWASM, versionModule(t, "acme's"))
	var fn struct{ Wasm string }
	if err := json.Unmarshal([]byte(shown), &fn); err != nil || fn.Wasm == "" {
		t.Fatal(shown, err)
	}
	w.as(glbx, 200, "PUT", "/v1/functions/glbx.fn", asWASM, versionModule(t, "glbx's"))
	w.as(glbx, 201, "POST", "/v1/subscriptions", asJSON, `{"name":"glbx.s","topic":"glbx.own","functions":["glbx.fn"],"deliver":{"pull":{}}}`)
	log.denied(t)
	count := func() (n uint64) {
		for _, r := range p.r.guard.Refusals() {
			n += r.Count
		}
		return n
	}
	before := count()
	sub := func(rest string) string { return `{"name":"glbx.new","topic":"glbx.own",` + rest + `}` }
	for i, c := range []struct {
		as           string
		status       int
		method, path string
		body, want   string
	}{
		{glbx, 404, "POST", "/v1/subscriptions", `{"name":"glbx.new","topic":"acme.orders","deliver":{"pull":{}}}`, "read topic acme.orders"},
		{glbx, 404, "POST", "/v1/subscriptions", sub(`"deliver":{"topic":"acme.orders"}`), "publish topic acme.orders"},
		{glbx, 404, "POST", "/v1/subscriptions", sub(`"deliver":{"pull":{}},"deadLetter":"acme.letters"`), "publish topic acme.letters"},
		{glbx, 404, "POST", "/v1/subscriptions", sub(`"deliver":{"pull":{}},"functions":["acme.fn"]`), "invoke function acme.fn"},
		{glbx, 404, "PATCH", "/v1/subscriptions/glbx.s", `{"topic":"acme.orders"}`, "read topic acme.orders"},
		{glbx, 404, "PATCH", "/v1/subscriptions/glbx.s", `{"shadow":["glbx.fn@DIGEST"]}`, "invoke function glbx.fn"},
		{glbx, 404, "POST", "/v1/subscriptions/glbx.s/replay", `{"since":"1h","function":"glbx.fn@DIGEST"}`, "invoke function glbx.fn"},
		{glbx, 404, "POST", "/v1/functions/glbx.fn/invoke?version=DIGEST", `{}`, "invoke function glbx.fn"},
		{glbx, 400, "PUT", "/v1/functions/glbx.fn", `{"module":"DIGEST"}`, "deploy function glbx.fn"},
		{developer, 403, "POST", "/v1/subscriptions", sub(`"deliver":{"topic":"audit"}`), "publish topic audit"},
		{developer, 403, "PATCH", "/v1/topics/audit", `{"retain":{"events":1}}`, "manage topic audit"},
		{developer, 403, "DELETE", "/v1/topics/audit", ``, "manage topic audit"},
		{glbx, 404, "POST", "/v1/subscriptions", sub(`"functions":["glbx.none"],"deliver":{"pull":{}}`), ""}, // his to name
	} {
		in := strings.NewReplacer("DIGEST", fn.Wasm)
		a := w.ask(c.as, c.method, in.Replace(c.path), asJSON, in.Replace(c.body))
		got := strings.Join(log.denied(t), "\n")
		if c.want != "" {
			c.want = "key:k 127.0.0.1 " + c.want
			before++
		}
		if n := count(); a.status != c.status || got != c.want || n != before {
			t.Errorf("%d: %s %s %s: %d %s; want %d; in the audit log is %q, want %q; %d counted, want %d", i, c.method, c.path, c.body, a.status, a.body, c.status, got, c.want, n, before)
			before = n
		}
	}
	w.socket(glbx).ask(`{"op":"publish","topic":"acme.orders","events":[1]}`)
	if got := strings.Join(log.denied(t), "\n"); got != "key:k 127.0.0.1 publish topic acme.orders" {
		t.Errorf("over a WebSocket: in the audit log is %q", got)
	}
	w.keptSecrets()
	w.othersSecrets()
}

// othersSecrets calls a function that one may call and not deploy in a version that one has pushed as another: it would run
// with the first's secrets.
func (w *tenancy) othersSecrets() {
	w.t.Helper()
	const asJSON, asWASM = "application/json", "application/wasm"
	digest := func(name, version string) string {
		w.t.Helper()
		var fn struct{ Wasm string }
		if err := json.Unmarshal([]byte(w.as("", 200, "PUT", "/v1/functions/"+name, asWASM, versionModule(w.t, version))), &fn); err != nil {
			w.t.Fatal(err)
		}
		return fn.Wasm
	}
	before, now, mine := digest("pay", "1"), digest("pay", "2"), digest("mine", "3")
	w.as("", 201, "POST", "/v1/topics", asJSON, `{"name":"due"}`)
	w.as("", 201, "POST", "/v1/subscriptions", asJSON, `{"name":"payer","topic":"due","functions":["pay"],"deliver":{"pull":{}}}`)
	for _, c := range []struct {
		as, version string
		good        bool
	}{
		{splits, mine, false}, {splits, before, true}, {splits, now, true}, {developer, mine, true},
	} {
		as := func(status int, method, path, body string) {
			w.t.Helper()
			if a := w.ask(c.as, method, path, asJSON, body); (a.status/100 == 2) != c.good || !c.good && a.status != status {
				w.t.Errorf("%s %s %s as %s: %d %s; want good %t", method, path, body, c.as, a.status, a.body, c.good)
			}
		}
		as(404, "POST", "/v1/functions/pay/invoke?version="+c.version, `{"total":1,"email":"a@example.com"}`)
		as(404, "POST", "/v1/subscriptions/payer/replay", `{"since":"1h","function":"pay@`+c.version+`","dryRun":true}`)
		as(404, "PATCH", "/v1/subscriptions/payer", `{"shadow":["pay@`+c.version+`"]}`)
	}
}

// splits is who may call what it may not deploy.
const splits = "may invoke and not deploy"

// keptSecrets points a webhook elsewhere, as who may change it and was never shown what it sends.
func (w *tenancy) keptSecrets() {
	w.t.Helper()
	const asJSON = "application/json"
	w.as(glbx, 201, "POST", "/v1/subscriptions", asJSON, `{"name":"glbx.hook","topic":"glbx.own","deliver":{"webhook":{"url":"http://127.0.0.1:1/a","headers":{"authorization":"Bearer swordfish"}}}}`)
	w.as(glbx, 200, "PATCH", "/v1/subscriptions/glbx.hook", asJSON, `{"deliver":{"webhook":{"url":"http://127.0.0.1:1/b"}}}`)
	body := w.as(glbx, 400, "PATCH", "/v1/subscriptions/glbx.hook", asJSON, `{"deliver":{"webhook":{"url":"http://127.0.0.1:2/b"}}}`)
	if !strings.Contains(body, `"at":"deliver.webhook.headers.authorization"`) || strings.Contains(body, "swordfish") {
		w.t.Error(body)
	}
	body = w.as(glbx, 200, "PATCH", "/v1/subscriptions/glbx.hook", asJSON, `{"deliver":{"webhook":{"url":"http://127.0.0.1:2/b","headers":{"authorization":"Bearer new"}}}}`)
	if !strings.Contains(body, "127.0.0.1:2/b") {
		w.t.Error(body)
	}
}

// TestTemplatesInRules: a template whose parts run together is refused where the rules are read, at its place.
func TestTemplatesInRules(t *testing.T) {
	const text = `version: 1
sources:
  s:
    topic: t
    verify:
      hmac: {secret: "${env:S}", header: x-sig, template: "{header.x-id}{body}"}
`
	o := rules.Options{Schemes: sourceSchemes(nil), Bridges: bridgeKinds(linkProcess{}), Getenv: func(string) (string, bool) { return "quite-a-secret", true }}
	_, err := rules.ParseBytes("rules.yaml", []byte(text), o)
	if err == nil || !strings.Contains(err.Error(), "rules.yaml:6:59: ") || !strings.Contains(err.Error(), "{header.x-id} and {body} side by side") || strings.Contains(err.Error(), "quite-a-secret") {
		t.Error(err)
	}
	if _, err := rules.ParseBytes("rules.yaml", []byte(strings.Replace(text, "}{", "}.{", 1)), o); err != nil {
		t.Error(err)
	}
}

// TestShortToken: a router does not start with a token that could be guessed, says what to do, and does not repeat it.
func TestShortToken(t *testing.T) {
	open := func(token string) error {
		_, err := openGuard(routerOptions{token: token}, nil, nil, nil)
		return err
	}
	for _, token := range []string{"x", "s3cr3t-of-15-ch"} {
		err := open(token)
		if err == nil || !strings.Contains(err.Error(), "16 or more") || !strings.Contains(err.Error(), "openssl rand") || strings.Contains(err.Error(), token) && len(token) > 1 {
			t.Errorf("%d characters: %v", len(token), err)
		}
	}
}
