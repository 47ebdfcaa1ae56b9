package main

import (
	"bytes"
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/access"
)

// router bridges and GET /v1/bridges say where each bridge goes, whether the other side answers, why not, and how far one
// that forwards is behind, to who may read what it is, and nothing secret.
func TestBridgesAreListed(t *testing.T) {
	hq := startProcess(t, "version: 1\ntopics: {telemetry: , commands: }\n")
	wire := newCable(t, hq.base)
	p := newProcess(t)
	p.o.token, p.o.rules, p.o.accessFile = "the-router's-own", p.o.data+".yaml", p.o.data+".access.yaml"
	if err := os.WriteFile(p.o.accessFile, []byte("version: 1\nroles:\n  watcher: [{allow: [read], subscriptions: [bridge.to-*]}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.write(`version: 1
bridges:
  to-hq: {topic: telemetry, start: earliest, to: {router: ` + wire.URL + `, topic: telemetry, token: literal-token-1}}
  from-hq: {topic: commands, from: {router: ` + hq.base + `, topic: commands, start: earliest, token: literal-token-2}}
  acme.to-broker: {topic: acme.t, to: {mqtt: "mqtt://127.0.0.1:1", topic: x, user: me, password: literal-password-3}}
  glbx.from-broker: {topic: glbx.t, from: {mqtt: "mqtt://127.0.0.1:1", filters: [a/#, b/+], user: me, password: literal-password-4}}
`)
	p.bearer = p.o.token
	p.start()
	t.Cleanup(func() { p.stop() })
	list := func() map[string]bridgeDoc {
		text := p.must(200, "GET", "/v1/bridges", "", "")
		if regexp.MustCompile(`literal-(token|password)`).MatchString(text) {
			t.Fatalf("a secret is in %s", text)
		}
		var doc struct{ Bridges []bridgeDoc }
		d := json.NewDecoder(bytes.NewReader([]byte(text)))
		d.DisallowUnknownFields()
		if err := d.Decode(&doc); err != nil {
			t.Fatal(err)
		}
		all := map[string]bridgeDoc{}
		for _, b := range doc.Bridges {
			all[b.Name] = b
		}
		return all
	}
	p.sendAll("telemetry", numbered("a", 0, 10)...)
	hq.sendAll("commands", numbered("a", 0, 5)...)
	until(t, "all has gone and come", func() bool {
		all := list()
		to, from := all["to-hq"].State, all["from-hq"].State
		return to.Events == 10 && to.Behind.Events == 0 && from.Events == 5 && from.State == "running"
	})
	all := list()
	if to := all["to-hq"]; to.State.State != "running" || to.State.Behind.Bytes != 0 || to.State.Behind.Oldest != nil || to.State.LastError != nil || to.Side != wire.URL+" telemetry" ||
		to.Direction != "to" || to.Kind != "router" || to.Topic != "telemetry" || !strings.HasSuffix(to.Owner, ".yaml:3") {
		t.Errorf("%+v", to)
	}
	if from := all["from-hq"]; from.State.Last == nil || from.State.Since == nil || from.State.Behind != nil || from.Side != hq.base+" commands" || from.Direction != "from" {
		t.Errorf("%+v", from)
	}
	if b := all["glbx.from-broker"]; b.Kind != "mqtt" || b.Side != "mqtt://127.0.0.1:1 a/# b/+" {
		t.Errorf("%+v", b)
	}
	until(t, "the broker is waited for", func() bool { return list()["glbx.from-broker"].State.State == "waiting" })

	wire.sever()
	before := time.Now()
	p.sendAll("telemetry", numbered("b", 0, 20)...)
	until(t, "the link is down", func() bool { return list()["to-hq"].State.State == "waiting" })
	down := list()["to-hq"].State
	if down.Behind.Events != 20 || down.Behind.Bytes < 20*400 || down.Behind.Bytes > 20*800 || down.Behind.Oldest == nil || down.Behind.Oldest.Before(before.Add(-time.Second)) ||
		down.Behind.Oldest.After(time.Now().Add(time.Second)) || down.Since == nil || !strings.Contains(down.Reason, wire.URL) || down.LastError == nil || down.LastError.Reason != down.Reason {
		t.Errorf("%+v %+v", down, down.Behind)
	}
	code, table, _ := runAt(t, p.base, "bridges", "--token", p.o.token)
	if code != 0 || !regexp.MustCompile(`(?m)^to-hq +telemetry +to +http://\S+ telemetry +waiting +20\S+Z +10 +20 +[1-9]\d+ +20\S+Z +0 +0 +router http`).MatchString(table) || strings.Contains(table, "literal") {
		t.Errorf("exit %d\n%s", code, table)
	}
	if code, text, _ := runAt(t, p.base, "bridges", "-o", "json", "--token", p.o.token); code != 0 || !strings.Contains(text, `"behind"`) {
		t.Errorf("exit %d\n%s", code, text)
	}
	page, err := os.ReadFile("../../docs/bridges.md")
	if err != nil {
		t.Fatal(err)
	}
	shown := regexp.MustCompile("(?m)^\\$ router bridges\n(NAME .*)\nto-hq +telemetry +to +https://hq.example.com telemetry +waiting ").FindSubmatch(page)
	if head, _, _ := strings.Cut(table, "\n"); shown == nil || !slices.Equal(strings.Fields(string(shown[1])), strings.Fields(head)) {
		t.Errorf("docs/bridges.md does not show the columns %s", head)
	}

	for tenant, role := range map[string]string{"": "watcher", "acme.": "developer", "glbx.": "developer"} {
		_, key, err := p.r.guard.CreateKey(t.Context(), nil, access.Key{Name: "k", Roles: []string{role}, Tenant: tenant})
		if err != nil {
			t.Fatal(err)
		}
		_, text, _ := runAt(t, p.base, "bridges", "-o", "json", "--token", key)
		names := regexp.MustCompile(`"name":\s*"([^"]*)"`).FindAllStringSubmatch(text, -1)
		if tenant == "" && (len(names) != 1 || names[0][1] != "to-hq") || tenant != "" && (len(names) != 0 || !strings.Contains(text, `"bridges"`)) {
			t.Errorf("tenant %q, role %s is shown %s", tenant, role, text)
		}
	}

	wire.cut.Store(false)
	p.must(204, "POST", "/v1/subscriptions/bridge.to-hq/resume", "", "")
	until(t, "the rest has gone", func() bool { return list()["to-hq"].State.Behind.Events == 0 })
	if up := list()["to-hq"].State; up.State != "running" || up.Reason != "" || up.Since == nil || up.LastError == nil || up.Events != 30 {
		t.Errorf("%+v", up)
	}
	p.must(204, "POST", "/v1/subscriptions/bridge.to-hq/pause", "application/json", `{"reason":"maintenance"}`)
	if up := list()["to-hq"].State; up.State != "paused" || up.Reason != "maintenance" {
		t.Errorf("%+v", up)
	}
}
