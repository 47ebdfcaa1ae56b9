package httpapi

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/access"
	"github.com/valyala/fasthttp"
)

// memoryKeys keeps keys for as long as a test runs.
type memoryKeys struct{}

func (memoryKeys) Keys(context.Context) ([]access.Key, error) { return nil, nil }
func (memoryKeys) PutKey(context.Context, access.Key) error   { return nil }
func (memoryKeys) DeleteKey(context.Context, string) error    { return nil }
func noFetch(context.Context, string, int64) ([]byte, error)  { return nil, io.EOF }
func (a *audited) add(e access.AuditEntry)                    { a.mu.Lock(); a.all = append(a.all, e); a.mu.Unlock() }
func (a *audited) entries() []access.AuditEntry               { a.mu.Lock(); defer a.mu.Unlock(); return a.all }

// audited is an audit log in memory.
type audited struct {
	mu  sync.Mutex
	all []access.AuditEntry
}

// keyed is a guard that knows a token and has a key of the roles.
func keyed(tb testing.TB, o access.Options, k access.Key) (g *access.Guard, key access.Key, text string) {
	tb.Helper()
	o.Keys, o.HTTP = memoryKeys{}, noFetch
	g, err := access.New(o)
	if err != nil {
		tb.Fatal(err)
	}
	k.Name = "test"
	if key, text, err = g.CreateKey(context.Background(), nil, k); err != nil {
		tb.Fatal(err)
	}
	return g, key, text
}

// TestRoutesSayWhatTheyNeed: a route, or a mount, that was given no thought does not serve.
func TestRoutesSayWhatTheyNeed(t *testing.T) {
	for _, r := range routes() {
		if err := r.needs.validate(); err != nil {
			t.Errorf("%s %s %v", r.method, r.path, err)
		}
	}
	nothing := func(*fasthttp.RequestCtx, func(func(context.Context, net.Conn, []byte)) error) error { return nil }
	for _, m := range []Mount{
		{}, {In: InPath}, {In: InPath, May: access.Read}, {In: Whole, May: access.Read, Of: access.Topic}, {In: InBody, Of: access.Topic}, {In: 99},
	} {
		m.Method, m.Path, m.Serve = "GET", "/v1/mounted", nothing
		if _, err := New(Options{Backend: newFake(), Mounts: []Mount{m}}); err == nil || !strings.Contains(err.Error(), "/v1/mounted") {
			t.Errorf("%+v: %v; want it refused", m, err)
		}
	}
}

// TestWhoMayDoWhat asks with keys of several roles.
func TestWhoMayDoWhat(t *testing.T) {
	f := newFake("orders", "eu.orders")
	f.docs["subscriptions"]["workers"] = []byte(`{"name":"workers"}`)
	var log audited
	g, _, publisher := keyed(t, access.Options{Token: "root", Audit: log.add}, access.Key{Roles: []string{"publisher"}})
	_, reader, err := g.CreateKey(t.Context(), nil, access.Key{Name: "reader", Roles: []string{"reader"}, Tenant: "eu"})
	if err != nil {
		t.Fatal(err)
	}
	_, base := serve(t, Options{Backend: f, Guard: g})
	const asJSON = "application/json"
	for _, c := range []struct {
		token, method, path, body string
		status                    int
	}{
		{"", "GET", "/v1/openapi.json", "", 401}, {publisher, "GET", "/v1/openapi.json", "", 200}, {"", "GET", "/healthz", "", 200}, {"", "GET", "/readyz", "", 200},
		{publisher + "x", "GET", "/healthz", "", 200}, {publisher + "x", "GET", "/v1/topics", "", 401}, {"root", "GET", "/metrics", "", 200}, {publisher, "GET", "/metrics", "", 403},
		{publisher, "POST", "/v1/topics/orders/events", `{}`, 202}, {publisher, "POST", "/v1/publish", `{"topic":"orders","payload":1}`, 202},
		{publisher, "GET", "/v1/topics/orders/events", "", 403}, {publisher, "GET", "/v1/topics/orders/events/0-0/reply", "", 404}, // there is none
		{reader, "GET", "/v1/topics/eu.orders/events/0-0/reply", "", 404}, {reader, "GET", "/v1/topics/orders/events/0-0/reply", "", 404},
		{reader, "GET", "/v1/topics/eu.orders/events", "", 200}, {reader, "GET", "/v1/topics/orders/events", "", 404},
		{reader, "POST", "/v1/topics/eu.orders/events", `{}`, 403}, {reader, "POST", "/v1/publish", `{"topic":"orders","payload":1}`, 404},
		{publisher, "POST", "/v1/topics", `{"name":"new"}`, 403}, {publisher, "DELETE", "/v1/topics/orders", "", 403}, {publisher, "PUT", "/v1/functions/f", `{}`, 404},
		{publisher, "POST", "/v1/subscriptions/workers/pull", `{}`, 404}, {reader, "POST", "/v1/subscriptions/workers/pull", `{}`, 404}, {publisher, "PUT", "/v1/rules", "version: 1", 403}, {publisher, "GET", "/v1/keys", "", 403},
		{"root", "GET", "/v1/keys", "", 200}, {"root", "GET", "/v1/keys/k3v9x2m1q8zt", "", 404}, {"root", "POST", "/v1/keys", `{"name":"n","roles":["nobody"]}`, 400},
		{"root", "POST", "/v1/keys", `{"name":"n","roles":["reader"],"expires":"soon"}`, 400}, {"root", "POST", "/v1/topics", `{"name":"new"}`, 201},
	} {
		headers := []string{"Content-Type", asJSON}
		if c.token != "" {
			headers = append(headers, "Authorization", "Bearer "+c.token)
		}
		resp, body := do(t, c.method, base+c.path, c.body, headers...)
		if resp.StatusCode != c.status {
			t.Errorf("%.8s %s %s: %d %s; want %d", c.token, c.method, c.path, resp.StatusCode, body, c.status)
		}
		if strings.Contains(body, "eu.orders") && c.token != "root" && !strings.Contains(c.path, "eu.orders") {
			t.Errorf("%s %s names what is another's: %s", c.method, c.path, body)
		}
	}
	changed := 0
	for _, e := range log.entries() {
		if e.Outcome == access.Changed && e.Kind == "topic" && e.Name == "new" && e.Principal == "token" {
			changed++
		}
		if text := e.Detail + e.Name + e.Principal; strings.Contains(text, publisher) || strings.Contains(text, reader) {
			t.Errorf("a key is in the audit log: %+v", e)
		}
	}
	if changed != 1 {
		t.Errorf("the new topic is %d times in the audit log: %+v", changed, log.entries())
	}
}

// TestEveryRefusalIsAudited: whatever the size of the body that was not read for it.
func TestEveryRefusalIsAudited(t *testing.T) {
	var log audited
	g, _, reader := keyed(t, access.Options{Token: "root", Audit: log.add}, access.Key{Roles: []string{"reader"}})
	_, base := serve(t, Options{Backend: newFake("orders"), Guard: g})
	for i, body := range []io.Reader{strings.NewReader("{}"), strings.NewReader(strings.Repeat("x", 100_000)), io.MultiReader(strings.NewReader("{}"))} {
		req, _ := http.NewRequest("POST", base+"/v1/topics/orders/events", body)
		req.Header.Set("Authorization", "Bearer "+reader)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		denied := 0
		for _, e := range log.entries() {
			if e.Outcome == access.Denied && e.Name == "orders" {
				denied++
			}
		}
		if n := g.Refusals()[2].Count; resp.StatusCode != 403 || denied != i+1 || n != uint64(i+1) {
			t.Errorf("body %d: %d, %d entries, %d counted", i, resp.StatusCode, denied, n)
		}
	}
}

// TestFirstAndLastKey: keys turn access control on by an admin's, and do not leave a router that nobody can manage.
func TestFirstAndLastKey(t *testing.T) {
	g, err := access.New(access.Options{Off: true, Keys: memoryKeys{}})
	if err != nil {
		t.Fatal(err)
	}
	_, base := serve(t, Options{Backend: newFake("orders"), Guard: g})
	ask := func(token, method, path, body string, status int) string {
		t.Helper()
		headers := []string{"Content-Type", "application/json"}
		if token != "" {
			headers = append(headers, "Authorization", "Bearer "+token)
		}
		resp, text := do(t, method, base+path, body, headers...)
		if resp.StatusCode != status {
			t.Fatalf("%s %s: %d %s; want %d", method, path, resp.StatusCode, text, status)
		}
		return text
	}
	key := func(text string) (id, key string) {
		_, rest, _ := strings.Cut(text, `"id":"`)
		id, _, _ = strings.Cut(rest, `"`)
		_, rest, _ = strings.Cut(text, `"key":"`)
		key, _, _ = strings.Cut(rest, `"`)
		return id, key
	}
	for _, body := range []string{`{"name":"a","roles":["reader"]}`, `{"name":"a","roles":["admin"],"tenant":"acme"}`, `{"name":"a","roles":["admin"],"expires":"1h"}`} {
		ask("", "POST", "/v1/keys", body, 409)
	}
	first, admin := key(ask("", "POST", "/v1/keys", `{"name":"a","roles":["admin"]}`, 201))
	ask("", "GET", "/v1/topics", "", 401)
	second, _ := key(ask(admin, "POST", "/v1/keys", `{"name":"b","roles":["reader"]}`, 201))
	if list := ask(admin, "GET", "/v1/keys", "", 200); strings.Contains(list, `"key"`) || strings.Contains(list, admin) {
		t.Errorf("the list shows %s", list)
	}
	ask(admin, "DELETE", "/v1/keys/"+first, "", 409)
	_, again := key(ask(admin, "POST", "/v1/keys/"+first+"/rotate", `{}`, 200))
	ask(admin, "GET", "/v1/topics", "", 401)
	ask(again, "DELETE", "/v1/keys/"+second, "", 204)
	ask(again, "DELETE", "/v1/keys/"+first, "", 204)
	ask("", "GET", "/v1/topics", "", 200) // on loopback, where everybody could before
}

// TestARevokedKeyEndsStreams: what was opened with a key does not outlive it, nor does a wait.
func TestARevokedKeyEndsStreams(t *testing.T) {
	f := newFake("orders", "later")
	g, k, text := keyed(t, access.Options{Token: "root"}, access.Key{Roles: []string{"reader"}})
	s, base := serve(t, Options{Backend: f, Guard: g, Recheck: 10 * time.Millisecond})
	f.put(t, "orders", "t", 1)
	resp, err := http.Get(base + "/v1/topics/orders/stream?since=2026-01-01T00:00:00Z&access_token=" + text)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	r := bufio.NewReader(resp.Body)
	for line := ""; !strings.HasPrefix(line, "data:"); {
		if line, err = r.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	polled := make(chan int, 1)
	go func() {
		req, _ := http.NewRequest("GET", base+"/v1/topics/later/events?wait=20s", nil)
		req.Header.Set("Authorization", "Bearer "+text)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			polled <- 0
			return
		}
		resp.Body.Close()
		polled <- resp.StatusCode
	}()
	until(t, "the poll waits", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.open == 2
	})
	if err := g.RevokeKey(t.Context(), nil, k.ID); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(r); err != nil || strings.Contains(string(rest), "data:") {
		t.Errorf("after the key was revoked: %q, %v", rest, err)
	}
	until(t, "the stream is gone", func() bool { return s.Streams() == 0 })
	f.put(t, "later", "t", 1)
	if status := <-polled; status != 401 {
		t.Errorf("the poll was answered %d; want 401", status)
	}
}

// TestConsentAsksForPublish: web hooks are consented to for who may send them there, and as to who sends them: what he may
// not see does not exist, what he may not do is denied, and a stranger gets none.
func TestConsentAsksForPublish(t *testing.T) {
	var log audited
	policy, err := access.ParsePolicy("access.yaml", []byte("version: 1\nroles:\n  some: [{allow: [publish], topics: [orders]}, {allow: [read], topics: [lobby]}]\n"), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	g, _, some := keyed(t, access.Options{Token: "root", Policy: policy, Audit: log.add}, access.Key{Roles: []string{"some"}})
	_, base := serve(t, Options{Backend: newFake("orders", "lobby", "hidden"), Guard: g})
	denied := 0
	for _, c := range []struct {
		token, path string
		status      int
		consent     bool
	}{
		{some, "/v1/topics/orders/events", 204, true},
		{some, "/v1/topics/lobby/events", 403, false},
		{some, "/v1/topics/hidden/events", 404, false},
		{some, "/v1/topics/none/events", 404, false},
		{"root", "/v1/topics/hidden/events", 204, true},
		{"root", "/v1/topics/hidden", 204, false}, // nothing takes them there
		{"root", "/v1/subscriptions/x/pause", 204, false},
		{"root", "/v1/publish", 204, false},
		{"root", "/v1/topics/%41%00/events", 204, false},
		{"root", "/", 204, false},
		{"", "/v1/topics/orders/events", 204, false},
		{"wrong", "/v1/topics/orders/events", 204, false},
	} {
		headers := []string{"WebHook-Request-Origin", "sender.example"}
		if c.token != "" {
			headers = append(headers, "Authorization", "Bearer "+c.token)
		}
		resp, body := do(t, "OPTIONS", base+c.path, "", headers...)
		if got := resp.Header.Get("WebHook-Allowed-Origin"); resp.StatusCode != c.status || (got != "") != c.consent {
			t.Errorf("%.8s %s: %d %s, consents to %q; want %d, %t", c.token, c.path, resp.StatusCode, body, got, c.status, c.consent)
		}
		if c.status/100 == 4 {
			denied++
		}
	}
	for _, e := range log.entries() {
		if e.Outcome == access.Denied && e.Action == access.Publish {
			denied--
		}
	}
	if denied != 0 {
		t.Errorf("%d of the refusals are not in the audit log: %+v", denied, log.entries())
	}
}
