package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/examples/quickstart"
)

// process is a whole router in this process, on a port and a directory of its own.
type process struct {
	bearer string // what call shows; "" for nothing
	t      *testing.T
	o      routerOptions
	r      *router
	base   string
	hangup chan os.Signal
	stop   func()
	log    *bytes.Buffer
}

// newProcess is one that has not started, without rules.
func newProcess(t *testing.T) *process {
	t.Helper()
	p := &process{t: t, log: &bytes.Buffer{}, hangup: make(chan os.Signal), o: routerOptions{data: filepath.Join(t.TempDir(), "data"), listen: "127.0.0.1:0", private: true, look: 20 * time.Millisecond,
		memory: splitMemory(256 << 20), env: func(string) string { return "" }}}
	p.o.memory.Total = 0                                                           // the test's own limit stands
	p.o.cache = filepath.Join(os.Getenv("XDG_CACHE_HOME"), "millrace", "compiled") // the commands' too: see withCache
	p.o.log = slog.New(slog.NewTextHandler(p.log, nil))
	return p
}

func startProcess(t *testing.T, rules string) *process {
	t.Helper()
	p := newProcess(t)
	if rules != "" {
		p.o.rules = filepath.Join(filepath.Dir(p.o.data), "rules.yaml")
		p.write(rules)
	} else {
		p.o.autoCreate = true
	}
	p.start()
	t.Cleanup(func() { p.stop() })
	return p
}

func (p *process) write(rules string) {
	p.t.Helper()
	if err := os.WriteFile(p.o.rules, []byte(rules), 0o600); err != nil {
		p.t.Fatal(err)
	}
}

func (p *process) start() {
	p.t.Helper()
	r, err := openRouter(context.Background(), p.o)
	if err != nil {
		p.t.Fatal(err)
	}
	p.r, p.base = r, "http://"+r.ln.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.run(ctx, p.hangup) }()
	p.stop = func() {
		cancel()
		if err := <-ended; err != nil {
			p.t.Errorf("the router ended with %v", err)
		}
		p.stop = func() {}
	}
}

// call returns the status and the body of one request.
func (p *process) call(method, path, contentType, body string) (int, string) {
	p.t.Helper()
	req, err := http.NewRequestWithContext(p.t.Context(), method, p.base+path, strings.NewReader(body))
	if err != nil {
		p.t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	if p.bearer != "" {
		req.Header.Set("Authorization", "Bearer "+p.bearer)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

func (p *process) must(status int, method, path, contentType, body string) string {
	p.t.Helper()
	got, text := p.call(method, path, contentType, body)
	if got != status {
		p.t.Fatalf("%s %s: %d %s; want %d", method, path, got, text, status)
	}
	return text
}

// until polls for at most a minute.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

const twoTopics = `version: 1
topics: {orders: {}}
subscriptions:
  copy: {topic: orders, deliver: {topic: copies}}
`

func TestWhatTheFileOwnsTheAPIRefuses(t *testing.T) {
	p := startProcess(t, twoTopics)
	for _, c := range []struct{ method, path, body string }{
		{"PATCH", "/v1/subscriptions/copy", `{"filter":"true"}`},
		{"DELETE", "/v1/subscriptions/copy", ""},
		{"PATCH", "/v1/topics/orders", `{"retain":{"events":5}}`},
		{"DELETE", "/v1/topics/orders", ""},
	} {
		text := p.must(409, c.method, c.path, "application/json", c.body)
		if !strings.Contains(text, "rules.yaml:") {
			t.Errorf("%s %s: %s; want the file and the line", c.method, c.path, text)
		}
	}
	p.must(201, "POST", "/v1/subscriptions", "application/json", `{"name":"mine","topic":"orders","deliver":{"pull":{}}}`)
	p.must(200, "PATCH", "/v1/subscriptions/mine", "application/json", `{"filter":"data.a == 1"}`)
	p.stop()
	p.start()
	if text := p.must(200, "GET", "/v1/subscriptions/mine", "", ""); !strings.Contains(text, "data.a == 1") || !strings.Contains(text, `"owner":"api"`) {
		t.Errorf("after a restart: %s", text)
	}
}

func TestReload(t *testing.T) {
	p := startProcess(t, twoTopics)
	p.write(twoTopics + "  more: {topic: orders, deliver: {pull: {}}}\n")
	until(t, "the file's change is in force", func() bool {
		status, _ := p.call("GET", "/v1/subscriptions/more", "", "")
		return status == 200
	})
	p.write(twoTopics + "  more: {topic: orders, deliver: {pul: {}}}\n")
	until(t, "the bad file is reported", func() bool {
		_, text := p.call("GET", "/readyz", "", "")
		return strings.Contains(text, "rules.yaml:5:") && strings.Contains(text, "pull")
	})
	p.must(200, "GET", "/v1/subscriptions/more", "", "")
	p.must(202, "POST", "/v1/topics/orders/events", "application/json", "{}")
	p.write(twoTopics)
	until(t, "the next good file is in force", func() bool {
		status, _ := p.call("GET", "/v1/subscriptions/more", "", "")
		return status == 404
	})
	p.must(200, "GET", "/v1/topics/copies", "", "")
}

// Every field of a topic that rules can set is looked at when they change: one that is not would be read, shown, and
// never put in force.
func TestEveryChangeOfATopicCounts(t *testing.T) {
	base := func() event.Topic {
		return event.Topic{Name: "orders", Partitions: 2, Dedupe: time.Minute, Schema: []byte("{}"), Retain: event.Retain{Bytes: 1, Age: 1, Events: 1}, Trace: event.Trace{Keep: 1, Sample: 0.5}}
	}
	if other := base(); !sameTopic(base(), other) {
		t.Error("a topic differs from itself")
	}
	other := base()
	other.Owner = event.Owner{File: "elsewhere.yaml", Line: 1}
	if !sameTopic(base(), other) {
		t.Error("where a topic is written counts")
	}
	var change func(path string, at func(*event.Topic) reflect.Value)
	change = func(path string, at func(*event.Topic) reflect.Value) {
		other := base()
		v := at(&other)
		switch v.Kind() {
		case reflect.Struct:
			for i := range v.NumField() {
				change(path+"."+v.Type().Field(i).Name, func(t *event.Topic) reflect.Value { return at(t).Field(i) })
			}
			return
		case reflect.String:
			v.SetString("x")
		case reflect.Slice:
			v.SetBytes([]byte("true"))
		case reflect.Float64:
			v.SetFloat(0.25)
		case reflect.Uint8:
			v.SetUint(1)
		case reflect.Int, reflect.Int64:
			v.SetInt(7)
		default:
			t.Fatalf("%s is a %s: teach this test to change it", path, v.Kind())
		}
		if sameTopic(base(), other) {
			t.Errorf("a change of %s is none", path)
		}
	}
	topic := reflect.TypeFor[event.Topic]()
	for i := range topic.NumField() {
		if name := topic.Field(i).Name; name != "Owner" {
			change(name, func(t *event.Topic) reflect.Value { return reflect.ValueOf(t).Elem().Field(i) })
		}
	}
}

func TestPushedFunctionWaitsForItsVersion(t *testing.T) {
	p := startProcess(t, `version: 1
functions: {redact: {wasm: pushed}}
subscriptions:
  audit: {topic: orders, functions: [redact], deliver: {topic: audited}}
`)
	p.must(202, "POST", "/v1/topics/orders/events", "application/json", `{"total":1,"email":"a@example.com"}`)
	until(t, "the subscription says what it waits for", func() bool {
		_, text := p.call("GET", "/v1/subscriptions/audit", "", "")
		return strings.Contains(text, `"state":"waiting"`) && strings.Contains(text, "functions push redact")
	})
	module, err := fs.ReadFile(quickstart.Files, "functions/redact.wasm")
	if err != nil {
		t.Fatal(err)
	}
	p.must(200, "PUT", "/v1/functions/redact", "application/wasm", string(module))
	until(t, "the event comes out", func() bool {
		_, text := p.call("GET", "/v1/topics/audited/events", "", "")
		return strings.Contains(text, `"email":"***"`)
	})
	if status, text := p.call("PUT", "/v1/functions/redact", "application/wasm", "\x7fELF"); status != 400 {
		t.Errorf("a module that is none: %d %s", status, text)
	}
}

func TestImpliedTopicKeepsWhatItIsWhenPatched(t *testing.T) {
	p := startProcess(t, "")
	p.must(202, "POST", "/v1/topics/orders/events", "application/json", "{}")
	p.must(201, "POST", "/v1/subscriptions", "application/json", `{"name":"s","topic":"orders","deliver":{"webhook":{"url":"http://127.0.0.1:9/"}}}`)
	p.must(200, "PATCH", "/v1/topics/s.dead", "application/json", `{"retain":{"bytes":"10MiB"}}`)
	var doc struct {
		WhenFull string
		Retain   struct{ Bytes, Age string }
	}
	if err := json.Unmarshal([]byte(p.must(200, "GET", "/v1/topics/s.dead", "", "")), &doc); err != nil {
		t.Fatal(err)
	}
	if doc.WhenFull != "reject" || doc.Retain.Bytes != "10MiB" || doc.Retain.Age != "7d" {
		t.Errorf("after the patch: %+v", doc)
	}
}

func TestMetricsAreThere(t *testing.T) {
	p := startProcess(t, twoTopics)
	p.must(202, "POST", "/v1/topics/orders/events", "application/json", "{}")
	until(t, "the copy is counted", func() bool {
		text := p.must(200, "GET", "/metrics", "", "")
		return strings.Contains(text, `millrace_published_events_total{topic="orders"} 1`) &&
			strings.Contains(text, `millrace_subscription_delivered_total{subscription="copy"} 1`) &&
			strings.Contains(text, "millrace_store_degraded 0")
	})
}

// A revision is the same for the same definitions and another for others.
func TestRevision(t *testing.T) {
	a := revision(nil, owned{kindTopics: {"a": []byte(`{}`)}})
	for name, other := range map[string]string{
		"another name": revision(nil, owned{kindTopics: {"b": []byte(`{}`)}}),
		"another kind": revision(nil, owned{kindFunctions: {"a": []byte(`{}`)}}),
		"another text": revision(nil, owned{kindTopics: {"a": []byte(`{"partitions": 2}`)}}),
		"one more":     revision(nil, owned{kindTopics: {"a": []byte(`{}`), "b": []byte(`{}`)}}),
		"none":         revision(nil, nil),
	} {
		if other == a {
			t.Errorf("%s: %s for both", name, a)
		}
	}
	if again := revision(nil, owned{kindTopics: {"a": []byte(`{}`)}}); again != a || len(a) != 12 {
		t.Errorf("%q, then %q", a, again)
	}
}
