package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/protocol/hooks"
	"github.com/millrace/millrace/engine/protocol/httpapi"
	"github.com/millrace/millrace/engine/protocol/ws"
)

// The two tenants of these tests. Names of the same length, so that answers differ in the name alone.
const (
	acme      = "acme." // has everything
	developer = "no tenant, the role of this name"
	patterned = "no tenant, a role that may do everything with glbx.*"

	glbx = "glbx." // has a topic and a subscription of its own, and may do everything with them
)

// tenancy is a router with the two tenants.
type tenancy struct {
	*process
	keys  map[string]string // by tenant
	lease string            // of acme.workers
}

func startTenancy(t *testing.T) *tenancy {
	t.Helper()
	p := newProcess(t)
	p.o.token, p.o.autoCreate = "the-router's-own", true
	p.o.rules = p.o.data + ".yaml"
	p.o.auditTopic = "audit"
	p.o.accessFile = p.o.data + ".access.yaml"
	policy := `version: 1
roles:
  glbx-all: [{allow: [read, publish, manage, consume, operate, deploy, invoke], topics: [glbx.*], subscriptions: [glbx.*], functions: [glbx.*]}]
`
	if err := os.WriteFile(p.o.accessFile, []byte(policy), 0o600); err != nil {
		t.Fatal(err)
	}
	p.write(`version: 1
topics: {acme.orders: {}, glbx.own: {}, shared: {}}
functions: {glbx.pushed: {wasm: pushed}}
schedules: {acme.tick: {topic: acme.orders, every: 24h, type: tick}}
subscriptions:
  acme.spy: {topic: glbx.own, deliver: {pull: {}}}
  glbx.ruled: {topic: glbx.own, functions: [glbx.pushed], deliver: {topic: glbx.rest}, retry: {attempts: 1}}
`)
	p.start()
	t.Cleanup(func() { p.stop() })
	w := &tenancy{process: p, keys: map[string]string{"": p.o.token}}
	for name, role := range map[string]string{developer: "developer", patterned: "glbx-all"} {
		_, key, err := p.r.guard.CreateKey(t.Context(), nil, access.Key{Name: role, Roles: []string{role}})
		if err != nil {
			t.Fatal(err)
		}
		w.keys[name] = key
	}
	for _, tenant := range []string{acme, glbx} {
		_, key, err := p.r.guard.CreateKey(t.Context(), nil, access.Key{Name: tenant + "key", Roles: []string{"developer", "consumer", "operator"}, Tenant: tenant})
		if err != nil {
			t.Fatal(err)
		}
		w.keys[tenant] = key
	}
	const js = "text/javascript"
	const redact = `export default (event) => { event.replace("secret", "hidden"); return event }`
	w.as(acme, 200, "PUT", "/v1/functions/acme.redact", js, redact)
	w.as(acme, 201, "POST", "/v1/subscriptions", "application/json", `{"name":"acme.workers","topic":"acme.orders","functions":["acme.redact"],"deliver":{"pull":{}}}`)
	w.as(acme, 202, "POST", "/v1/topics/acme.orders/events?id=one", "application/json", `{"secret":1}`)
	var got struct {
		Deliveries []struct {
			Lease string
			Event struct{ Data map[string]any }
		}
	}
	if err := json.Unmarshal([]byte(w.as(acme, 200, "POST", "/v1/subscriptions/acme.workers/pull", "application/json", `{"wait":"20s"}`)), &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Deliveries) != 1 || got.Deliveries[0].Event.Data["secret"] != "hidden" {
		t.Fatalf("acme's function made %+v of its event", got)
	}
	w.lease = got.Deliveries[0].Lease
	w.as(glbx, 201, "POST", "/v1/subscriptions", "application/json", `{"name":"glbx.mine","topic":"glbx.own","deliver":{"pull":{}}}`)
	for _, name := range []string{"glbx.parking", "glbx.parked"} {
		w.as(glbx, 201, "POST", "/v1/topics", "application/json", `{"name":"`+name+`"}`)
	}
	w.as(glbx, 200, "PUT", "/v1/functions/glbx.first", "text/javascript", `export default () => pass()`)
	w.as(glbx, 201, "POST", "/v1/subscriptions", "application/json", `{"name":"glbx.parks","topic":"glbx.parking","functions":["glbx.first"],"deliver":{"pull":{}},"deadLetter":"glbx.parked"}`)
	w.as(glbx, 202, "POST", "/v1/topics/glbx.own/events?id=one", "application/json", `{}`)
	return w
}

// A toldAnswer is what can be told apart from outside.
type toldAnswer struct {
	status int
	header string
	body   string
}

func (w *tenancy) ask(tenant, method, path, contentType, body string) toldAnswer {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute) // the engine of scripts is compiled under the race detector
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, w.base+path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+w.keys[tenant])
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	a := toldAnswer{status: resp.StatusCode}
	resp.Header.Del("Date")
	for _, name := range slices.Sorted(maps.Keys(resp.Header)) {
		a.header += fmt.Sprint(name, resp.Header[name], "\n")
	}
	if resp.Header.Get("Cache-Control") == "no-store" && resp.StatusCode == 200 && resp.ContentLength < 0 {
		return a // a stream
	}
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	a.body = string(text)
	return a
}

func (w *tenancy) as(tenant string, status int, method, path, contentType, body string) string {
	w.t.Helper()
	a := w.ask(tenant, method, path, contentType, body)
	if a.status != status {
		w.t.Fatalf("%s as %q: %d %s; want %d", method+" "+path, tenant, a.status, a.body, status)
	}
	return a.body
}

// A question is how a route is asked about a name: NAME in the query and the body. Those of a route are asked one by one.
type question struct {
	query, contentType, body string
	of                       string // what NAME is, where the path does not say: topic, subscription or function
	own                      string // what glbx has that the path names, where NAME is beside it
}

// questions has a row for every route that names something: a new route needs a thought. Those of the kinds Whole,
// Listed, Known and Anyone need none.
var questions = map[string][]question{
	"POST /v1/topics/{topic}/events":                 {{contentType: "application/json", body: `{}`}, {query: "?dryRun=true", contentType: "application/json", body: `{}`}},
	"GET /v1/topics/{topic}/events":                  {{}, {query: "?wait=1s&since=1h"}},
	"GET /v1/topics/{topic}/events/{position}":       {{}},
	"GET /v1/topics/{topic}/events/{position}/reply": {{}},
	"GET /v1/topics/{topic}/events/{position}/trace": {{}},
	"GET /v1/topics/{topic}/stream":                  {{query: "?since=1h"}},
	"GET /v1/topics/{topic}":                         {{}},
	"PATCH /v1/topics/{topic}":                       {{contentType: "application/json", body: `{"retain":{"age":"1h"}}`}},
	"DELETE /v1/topics/{topic}":                      {{}},
	"POST /v1/publish":                               {{contentType: "application/json", body: `{"topic":"NAME","payload":1}`, of: "topic"}},
	"GET /v1/subscriptions/{name}/explain":           {{query: "?event=glbx.own/0-0"}, {query: "?event=acme.orders/0-0"}, {own: "glbx.mine", of: "topic", query: "?event=NAME/0-0"}, {query: "?mqttName=a/b"}},
	"GET /v1/subscriptions/{name}/stream":            {{}},
	"POST /v1/subscriptions/{name}/pull":             {{contentType: "application/json", body: `{}`}},
	"POST /v1/subscriptions/{name}/ack":              {{contentType: "application/json", body: `{"leases":["x"]}`}},
	"POST /v1/subscriptions/{name}/nack":             {{contentType: "application/json", body: `{"leases":["x"]}`}},
	"POST /v1/subscriptions/{name}/extend":           {{contentType: "application/json", body: `{"leases":["x"],"deadline":"60s"}`}},
	"POST /v1/subscriptions/{name}/seek":             {{contentType: "application/json", body: `{"to":"earliest"}`}},
	"POST /v1/subscriptions/{name}/pause":            {{}},
	"POST /v1/subscriptions/{name}/resume":           {{}},
	"GET /v1/subscriptions/{name}/deadletters":       {{}, {own: "glbx.mine", of: "topic", query: "?topic=NAME"}},
	"POST /v1/subscriptions/{name}/redrive": {{},
		{own: "glbx.mine", of: "topic", contentType: "application/json", body: `{"topic":"NAME"}`},
		{own: "glbx.parks", of: "function", contentType: "application/json", body: `{"function":"NAME"}`},
	},
	"POST /v1/subscriptions/{name}/purge": {{contentType: "application/json", body: `{"all":true,"dryRun":true}`},
		{own: "glbx.mine", of: "topic", contentType: "application/json", body: `{"all":true,"dryRun":true,"topic":"NAME"}`},
	},
	"POST /v1/subscriptions/{name}/replay": {{contentType: "application/json", body: `{"since":"1h"}`},
		{own: "glbx.parks", of: "function", contentType: "application/json", body: `{"since":"1h","function":"NAME","dryRun":true}`},
	},
	"GET /v1/subscriptions/{name}/replay":    {{}},
	"DELETE /v1/subscriptions/{name}/replay": {{}},
	"GET /v1/subscriptions/{name}/shadow":    {{}},
	"GET /v1/subscriptions/{name}":           {{}},
	"PATCH /v1/subscriptions/{name}": {{contentType: "application/json", body: `{"filter":"type == \"x\""}`},
		{own: "glbx.mine", of: "function", contentType: "application/json", body: `{"functions":["NAME"]}`},
		{own: "glbx.mine", of: "topic", contentType: "application/json", body: `{"deliver":{"pull":null,"topic":"NAME"}}`},
		{own: "glbx.mine", of: "topic", contentType: "application/json", body: `{"deadLetter":"NAME"}`},
	},
	"DELETE /v1/subscriptions/{name}":    {{}},
	"GET /v1/functions/{name}":           {{}},
	"PUT /v1/functions/{name}":           {{contentType: "text/javascript", body: `export default () => {}`}, {contentType: "application/json", body: `{"config":{}}`}},
	"DELETE /v1/functions/{name}":        {{}},
	"POST /v1/functions/{name}/rollback": {{}},
	"GET /v1/functions/{name}/logs":      {{}},
	"POST /v1/functions/{name}/invoke":   {{contentType: "application/json", body: `{}`}, {query: "?version=0123456789ab", contentType: "application/json", body: `{}`}},
	"POST /v1/topics":                    {{contentType: "application/json", body: `{"name":"NAME"}`, of: "topic"}},
	"POST /v1/subscriptions": {
		{contentType: "application/json", body: `{"name":"NAME","topic":"glbx.own","deliver":{"pull":{}}}`, of: "subscription"},
		{contentType: "application/json", body: `{"name":"glbx.new","topic":"NAME","deliver":{"pull":{}}}`, of: "topic"},
		{contentType: "application/json", body: `{"name":"glbx.new","topic":"glbx.own","deliver":{"topic":"NAME"}}`, of: "topic"},
		{contentType: "application/json", body: `{"name":"glbx.new","topic":"glbx.own","deliver":{"pull":{}},"deadLetter":"NAME"}`, of: "topic"},
		{contentType: "application/json", body: `{"name":"glbx.new","topic":"glbx.own","functions":["NAME"],"deliver":{"pull":{}}}`, of: "function"},
	},
}

// has and near are what acme has, and a name so near that an error would suggest it.
var has = map[string][2]string{
	"topic":        {"acme.orders", "acme.orderz"},
	"subscription": {"acme.workers", "acme.workerz"},
	"function":     {"acme.redact", "acme.redacz"},
}

// TestTwoTenants asks, of every route, as one tenant for what the other has and for what does not exist: nothing in the
// answers but the name may differ, and none may name anything else of the other's.
func TestTwoTenants(t *testing.T) {
	w := startTenancy(t)
	routes := httpapi.Routes()
	asked := map[string]bool{}
	for _, r := range routes {
		call := r.Method + " " + r.Path
		if r.In != httpapi.InPath && r.In != httpapi.InBody {
			path := strings.ReplaceAll(r.Path, "{id}", "k3v9x2m1q8zt")
			a := w.ask(glbx, r.Method, path, "", "")
			if strings.Contains(a.body, acme) {
				t.Errorf("%s shows %s", call, a.body)
			}
			if r.In == httpapi.Whole && a.status != 403 {
				t.Errorf("%s: %d %s; want 403: it is about the router as a whole", call, a.status, a.body)
			}
			continue
		}
		qs := questions[call]
		if len(qs) == 0 {
			t.Errorf("%s has no row in questions: what does a tenant see of another's there?", call)
		}
		asked[call] = true
		for _, q := range qs {
			for _, who := range []string{glbx, patterned} {
				w.compare(who, r, q)
			}
		}
	}
	for call := range questions {
		if !asked[call] {
			t.Errorf("questions has %s, which is no route", call)
		}
	}
	for _, m := range mounts(&ws.Server{}, &hooks.Server{}, &mqttFace{}) {
		if m.In == httpapi.InPath {
			t.Errorf("%s %s names something and is not asked about it here", m.Method, m.Path)
		}
	}
	w.others()
	w.ownThings()
	w.othersModules()
	w.auditTopic()
	w.sockets()
	w.reachable(routes)
}

// compare asks about what acme has, about what nobody has, and about what glbx could have and has not.
func (w *tenancy) compare(who string, r httpapi.RouteInfo, q question) {
	w.t.Helper()
	kind := q.of
	if r.In == httpapi.InPath && q.own == "" {
		kind = r.Of.String()
	}
	names := []string{has[kind][0], has[kind][1]}
	makes := r.In == httpapi.InBody || r.May == access.Publish && r.Method == "POST" || r.Method == "PUT"
	if !makes && q.own == "" {
		names = append(names, strings.Replace(has[kind][0], acme, glbx, 1))
	}
	var first toldAnswer
	for i, name := range names {
		in := cmp.Or(q.own, name)
		path := strings.NewReplacer("{topic}", in, "{name}", in, "{position}", "0-0").Replace(r.Path) + strings.ReplaceAll(q.query, "NAME", name)
		a := w.ask(who, r.Method, path, q.contentType, strings.ReplaceAll(q.body, "NAME", name))
		for at, s := range map[string]*string{"header": &a.header, "body": &a.body} {
			*s = strings.ReplaceAll(*s, name, strings.Repeat("·", len(name)))
			if rest := strings.ReplaceAll(*s, "acme.orders", ""); !strings.Contains(q.query, acme) && strings.Contains(*s, acme) || strings.Contains(rest, acme) {
				w.t.Errorf("%s %s as %s: the %s names what is another's: %s", r.Method, path, who, at, *s)
			}
		}
		if a.status/100 != 4 || a.status == 400 {
			w.t.Errorf("%s %s %s as %s: %d %s", r.Method, path, q.body, who, a.status, a.body)
		}
		if i == 0 {
			first = a
		} else if a != first {
			w.t.Errorf("as %s: %s %s %s\nhas   %s\nhas not %s: %+v\n%+v", who, r.Method, r.Path, q.body, names[0], name, first, a)
		}
	}
}

// ownThings looks at what glbx has, of which acme and the router's admin use some.
func (w *tenancy) ownThings() {
	w.t.Helper()
	for _, c := range []struct {
		status                     int
		method, path, body, expect string
	}{
		{200, "GET", "/v1/topics/glbx.own", "", "glbx.mine"},
		{200, "GET", "/v1/topics", "", "glbx.own"},
		{200, "GET", "/v1/subscriptions", "", "glbx.mine"},
		{200, "GET", "/v1/functions", "", `"functions"`},
		{200, "GET", "/v1/schedules", "", `"schedules"`},
		{200, "POST", "/v1/topics/glbx.own/events?dryRun=true", "{}", "glbx.mine"},
		{200, "GET", "/v1/topics/glbx.own/events/0-0/trace", "", `"matched":2,`},
		{404, "GET", "/v1/topics/glbx.own/events/0-9", "", "0-9"}, // of what he has he is told more
		{201, "POST", "/v1/topics", `{"name":"glbx.more"}`, "glbx.more"},
		{202, "POST", "/v1/topics/glbx.auto/events", "{}", "accepted"},
		{409, "POST", "/v1/topics", `{"name":"glbx.more"}`, "exists"},
		{404, "GET", "/v1/topics/acme.auto", "", "does not exist"},
		{204, "DELETE", "/v1/topics/glbx.more", "", ""},
	} {
		a := w.ask(glbx, c.method, c.path, "application/json", c.body)
		if rest := strings.ReplaceAll(a.body, "acme.auto", ""); a.status != c.status || !strings.Contains(a.body, c.expect) || strings.Contains(rest, acme) {
			w.t.Errorf("%s %s: %d %s; want %d with %s and nothing of acme's", c.method, c.path, a.status, a.body, c.status, c.expect)
		}
	}
	// The admin has made a subscription of acme's that uses a topic of glbx's: what stands in the way is not named.
	w.as("", 201, "POST", "/v1/topics", "application/json", `{"name":"glbx.used"}`)
	w.as("", 201, "POST", "/v1/subscriptions", "application/json", `{"name":"acme.taps","topic":"glbx.used","deliver":{"pull":{}}}`)
	if body := w.as(glbx, 409, "DELETE", "/v1/topics/glbx.used", "", ""); strings.Contains(body, acme) {
		w.t.Errorf("what uses a topic is named: %s", body)
	}
	// Functions name topics while they run: those of a tenant's subscription reach its own.
	w.as(glbx, 200, "PUT", "/v1/functions/glbx.emit", "text/javascript", `export default (e) => [emit({topic: "acme.orders"}), emit({topic: "glbx.out"})]`)
	w.as(glbx, 200, "PUT", "/v1/functions/glbx.good", "text/javascript", `export default (e) => emit({topic: "glbx.out"})`)
	w.as(glbx, 201, "POST", "/v1/topics", "application/json", `{"name":"glbx.out"}`)
	for _, name := range []string{"emit", "good"} {
		w.as(glbx, 201, "POST", "/v1/subscriptions", "application/json", `{"name":"glbx.`+name+`","topic":"glbx.own","functions":["glbx.`+name+`"],"deliver":{"topic":"glbx.rest"},"retry":{"attempts":1}}`)
	}
	// So do those that it pushes, whoever made the subscription. Where a subscription delivers to is its maker's to say.
	w.as(glbx, 200, "PUT", "/v1/functions/glbx.pushed", "text/javascript", `export default (e) => emit({topic: "acme.orders"})`)
	w.as("", 201, "POST", "/v1/subscriptions", "application/json", `{"name":"glbx.lent","topic":"glbx.own","functions":["glbx.emit"],"deliver":{"topic":"glbx.rest"},"retry":{"attempts":1}}`)
	w.as(glbx, 201, "POST", "/v1/subscriptions", "application/json", `{"name":"glbx.copies","topic":"glbx.own","deliver":{"topic":"glbx.rest"},"retry":{"attempts":1}}`)
	w.as("", 200, "PATCH", "/v1/subscriptions/glbx.copies", "application/merge-patch+json", `{"deliver":{"topic":"shared"}}`)
	w.as(glbx, 202, "POST", "/v1/topics/glbx.own/events?id=two", "application/json", `{}`)
	for name, total := range map[string]int{"emit": 1, "lent": 1, "ruled": 2} { // the rules' one was there before the first event
		until(w.t, "what emits to another's topic is a dead letter of "+name, func() bool {
			body := w.as(glbx, 200, "GET", "/v1/subscriptions/glbx."+name+"/deadletters", "", "")
			return strings.Contains(body, `not for glbx.`+name+` to see`) && strings.Contains(body, fmt.Sprintf(`"total":%d`, total))
		})
	}
	until(w.t, "what the admin has delivered elsewhere arrives", func() bool {
		return strings.Count(w.as("", 200, "GET", "/v1/topics/shared/events", "", ""), `"id":`) == 1
	})
	until(w.t, "what emits to its own arrives", func() bool {
		return strings.Count(w.as(glbx, 200, "GET", "/v1/topics/glbx.out/events", "", ""), `"id":`) == 1
	})
	if body := w.as("", 200, "GET", "/v1/topics/acme.orders/events", "", ""); strings.Count(body, `"id":`) != 1 {
		w.t.Errorf("acme.orders has %s", body)
	}
}

// othersModules asks for a module of acme's as who knows its digest: it is not there.
func (w *tenancy) othersModules() {
	w.t.Helper()
	versionOf := func(tenant, name string) string {
		var fn struct{ Wasm string }
		if err := json.Unmarshal([]byte(w.as(tenant, 200, "GET", "/v1/functions/"+name, "", "")), &fn); err != nil {
			w.t.Fatal(err)
		}
		return fn.Wasm
	}
	theirs, own := versionOf(acme, "acme.redact"), versionOf(glbx, "glbx.emit")
	for _, c := range []struct{ method, path, body string }{
		{"PUT", "/v1/functions/glbx.fn", `{"module":"DIGEST"}`},
		{"POST", "/v1/functions/glbx.emit/invoke?version=DIGEST", `{}`},
		{"POST", "/v1/subscriptions/glbx.emit/replay", `{"since":"1h","function":"glbx.emit@DIGEST","dryRun":true}`},
		{"POST", "/v1/subscriptions/glbx.emit/replay", `{"since":"1h","function":"glbx.emit@SHORT","dryRun":true}`},
		{"POST", "/v1/subscriptions/glbx.emit/redrive", `{"function":"glbx.emit@DIGEST","dryRun":true}`},
		{"PATCH", "/v1/subscriptions/glbx.emit", `{"shadow":["glbx.emit@DIGEST"]}`},
		{"PATCH", "/v1/subscriptions/glbx.emit", `{"shadow":["glbx.emit@SHORT"]}`},
	} {
		ask := func(digest string) toldAnswer {
			in := strings.NewReplacer("DIGEST", digest, "SHORT", digest[:20])
			a := w.ask(glbx, c.method, in.Replace(c.path), "application/json", in.Replace(c.body))
			a.body = strings.ReplaceAll(strings.ReplaceAll(a.body, digest, "·"), digest[:20], "·")
			return a
		}
		a, b := ask(theirs), ask("sha256:0123456789abc"+theirs[20:])
		if a.status/100 != 4 || a != b {
			w.t.Errorf("%s %s %s of another's module: %+v\none of nothing: %+v", c.method, c.path, c.body, a, b)
		}
		if mine := ask(own); mine.status/100 != 2 {
			w.t.Errorf("%s %s %s of its own: %+v", c.method, c.path, c.body, mine)
		}
	}
	if body := w.as(glbx, 200, "GET", "/v1/subscriptions/glbx.emit", "", ""); !strings.Contains(body, "glbx.emit@"+own) {
		w.t.Errorf("a shadow's version is not written out: %s", body)
	}
}

// auditTopic tries to write to the audit log, to shorten it and to delete it, without a tenant.
func (w *tenancy) auditTopic() {
	w.t.Helper()
	w.as(developer, 200, "PUT", "/v1/functions/forge", "text/javascript", `export default (e) => emit({topic: "audit", type: "access.changed"})`)
	w.as(developer, 201, "POST", "/v1/subscriptions", "application/json", `{"name":"forge","topic":"shared","functions":["forge"],"deliver":{"pull":{}},"retry":{"attempts":1}}`)
	w.as(developer, 202, "POST", "/v1/topics/shared/events", "application/json", `{}`)
	until(w.t, "what emits to the audit log is a dead letter", func() bool {
		return strings.Contains(w.as("", 200, "GET", "/v1/subscriptions/forge/deadletters", "", ""), "only the router writes")
	})
	for _, c := range []struct {
		as           string
		status       int
		method, path string
		body         string
	}{
		{developer, 403, "POST", "/v1/topics/audit/events", `{}`},
		{developer, 403, "POST", "/v1/subscriptions", `{"name":"s","topic":"shared","deliver":{"topic":"audit"}}`},
		{developer, 403, "POST", "/v1/subscriptions", `{"name":"s","topic":"shared","deliver":{"topic":"other"},"deadLetter":"audit"}`},
		{developer, 403, "PATCH", "/v1/topics/audit", `{"retain":{"events":1}}`},
		{developer, 403, "DELETE", "/v1/topics/audit", ``},
		{"", 403, "DELETE", "/v1/topics/audit", ``},
		{"", 200, "PATCH", "/v1/topics/audit", `{"retain":{"age":"24h"}}`},
	} {
		w.as(c.as, c.status, c.method, c.path, "application/json", c.body)
	}
}

// reachable asks the same as acme, who may: the test would say little if nobody were let in.
func (w *tenancy) reachable(routes []httpapi.RouteInfo) {
	w.t.Helper()
	last := func(r httpapi.RouteInfo) int { // what removes things comes last
		switch {
		case r.Method == "DELETE" && strings.HasSuffix(r.Path, "}"):
			return 1 + int(access.Function) - int(r.Of)
		}
		return 0
	}
	slices.SortStableFunc(routes, func(a, b httpapi.RouteInfo) int { return last(a) - last(b) })
	for _, r := range routes {
		if r.In != httpapi.InPath {
			continue
		}
		name := has[r.Of.String()][0]
		path := strings.NewReplacer("{topic}", name, "{name}", name, "{position}", "0-0").Replace(r.Path)
		for _, q := range questions[r.Method+" "+r.Path] {
			if q.own != "" {
				continue
			}
			q.query = strings.Replace(q.query, "glbx.own", "acme.orders", 1)
			a := w.ask(acme, r.Method, path+q.query, q.contentType, q.body)
			if a.status == 401 || a.status == 403 || strings.Contains(a.body, "not for you to see") {
				w.t.Errorf("%s %s as its owner: %d %s", r.Method, path, a.status, a.body)
			}
		}
	}
}
