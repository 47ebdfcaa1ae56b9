package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// desk is a program that listen forwards to. It notes what it took, by key, in its order.
type desk struct {
	mu     sync.Mutex
	took   map[string]int // by id
	last   map[int]int    // by key: the highest number taken
	faults []string
	bodies []string
}

func (d *desk) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	var e struct {
		ID   string
		Data struct{ Key, N int }
	}
	_ = json.Unmarshal(body, &e)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.took[e.ID] == 0 && e.Data.N != d.last[e.Data.Key]+1 {
		d.faults = append(d.faults, fmt.Sprintf("%s came first after %d of its key", e.ID, d.last[e.Data.Key]))
	}
	d.took[e.ID]++
	d.last[e.Data.Key] = max(d.last[e.Data.Key], e.Data.N)
	d.bodies = append(d.bodies, string(body))
}

func (d *desk) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.took)
}

// await waits until f holds.
func await(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !f(); {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
		_ = sleep(t.Context(), 10*time.Millisecond)
	}
}

// startServe starts the real binary as a router on a directory of its own.
func startServe(t *testing.T) (*servedRouter, *client) {
	t.Helper()
	self, err := exec.LookPath("router")
	if err != nil {
		t.Fatal(err)
	}
	r := &servedRouter{self: self, dir: t.TempDir()}
	if err := os.WriteFile(filepath.Join(r.dir, "rules.yaml"), []byte("version: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := r.start(t.Context(), time.Minute); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if r.ended != nil {
			_ = r.cmd.Process.Kill()
			<-r.ended
		}
	})
	p := &program{env: func(string) string { return "" }}
	c, err := p.client(nil, &remote{server: r.url})
	if err != nil {
		t.Fatal(err)
	}
	return r, c
}

// startListen starts the real binary as a listener, to be killed.
func startListen(t *testing.T, r *servedRouter, args ...string) (*exec.Cmd, *tailText) {
	t.Helper()
	cmd := exec.Command(r.self, append([]string{"listen", "--server", r.url, "--as", "desk"}, args...)...)
	log := &tailText{}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	})
	return cmd, log
}

// Listen is killed in the middle, and the router too: nothing is lost and nothing skipped, and with `order: key` each key's
// events come in order.
func TestListenLivesThroughKills(t *testing.T) {
	t.Parallel()
	const keys, each = 20, 40
	ctx := t.Context()
	r, c := startServe(t)
	for kind, doc := range map[string]map[string]any{kindTopics: {"name": "orders"}} {
		if err := c.callJSON(ctx, "POST", c.path(kind), doc, nil); err != nil {
			t.Fatal(err)
		}
	}
	prod := map[string]any{"name": "prod", "topic": "orders", "order": "key", "deliver": map[string]any{"topic": "elsewhere"}}
	if err := c.callJSON(ctx, "POST", c.path(kindSubscriptions), prod, nil); err != nil {
		t.Fatal(err)
	}
	var body bytes.Buffer
	for n := range each {
		for k := range keys {
			fmt.Fprintf(&body, `{"specversion":"1.0","id":"k%d-%d","source":"/s","type":"t","partitionkey":"k%d","data":{"key":%d,"n":%d}}`+"\n", k, n+1, k, k, n+1)
		}
	}
	if _, err := c.call(ctx, "POST", c.path("topics", "orders", "events"), body.Bytes(), "Content-Type", "application/x-ndjson"); err != nil {
		t.Fatal(err)
	}
	d := &desk{took: map[string]int{}, last: map[int]int{}}
	s := httptest.NewServer(d)
	defer s.Close()

	first, log := startListen(t, r, "prod", "--forward-to", s.URL, "--since", "earliest")
	await(t, "a fourth is forwarded", func() bool { return d.count() >= keys*each/4 })
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = first.Wait() // killed
	if d.count() == keys*each {
		t.Fatalf("it was killed too late:\n%s", log)
	}
	_, log = startListen(t, r, "prod", "--forward-to", s.URL)
	await(t, "half is forwarded", func() bool { return d.count() >= keys*each/2 })
	if _, err := r.killAndStart(ctx, time.Minute); err != nil {
		t.Fatal(err)
	}
	await(t, "all is forwarded", func() bool { return d.count() == keys*each })
	if len(d.faults) > 0 {
		t.Errorf("out of order or skipped: %s\n%s", strings.Join(d.faults, "; "), log)
	}
	await(t, "all is acknowledged", func() bool {
		now, err := subscriptionNamed(ctx, c, "prod.listen-desk")
		return err == nil && now.waiting() == 0
	})
}

// What listen sends is what the router sends, byte for byte, but for the name of the subscription and the time.
func TestListenSendsWhatTheRouterSends(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	r, c := startServe(t)
	type request struct {
		header http.Header
		body   string
	}
	var mu sync.Mutex
	got := map[string][]request{}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body)
		mu.Lock()
		defer mu.Unlock()
		got[req.URL.Path] = append(got[req.URL.Path], request{req.Header, string(body)})
	}))
	defer s.Close()
	const secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	if err := c.callJSON(ctx, "POST", c.path(kindTopics), map[string]any{"name": "orders"}, nil); err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"structured", "binary", "data"} {
		hook := map[string]any{"url": s.URL + "/prod-" + format, "format": format, "secrets": []string{secret}}
		doc := map[string]any{"name": format, "topic": "orders", "concurrency": 1, "deliver": map[string]any{"webhook": hook}}
		if err := c.callJSON(ctx, "POST", c.path(kindSubscriptions), doc, nil); err != nil {
			t.Fatal(err)
		}
	}
	events := []string{
		`{"specversion":"1.0","id":"a","source":"/s","type":"t","subject":"ä \" x","time":"2026-01-31T12:00:00.10+01:00","partitionkey":"k","data":{"b":1.0,  "a":[1e3,"ü\u00e9"]}}`,
		`{"specversion":"1.0","id":"b","source":"/s","type":"t","recordedtime":"2020-01-01T00:00:00Z","num":7,"yes":true,"data_base64":"AAH/"}`,
		`{"specversion":"1.0","id":"c","source":"/s","type":"t","datacontenttype":"text/plain","data":"a line\n,\"millraceposition\":\""}`,
		`{"specversion":"1.0","id":"d","source":"/s","type":"t"}`,
	}
	for _, e := range events {
		if _, err := c.call(ctx, "POST", c.path("topics", "orders", "events"), []byte(e), "Content-Type", "application/cloudevents+json"); err != nil {
			t.Fatal(err)
		}
	}
	for _, format := range []string{"structured", "binary", "data"} {
		startListen(t, r, format, "--forward-to", s.URL+"/desk-"+format, "--since", "earliest", "--secret", secret, "--concurrency", "1")
	}
	await(t, "all came twice", func() bool {
		mu.Lock()
		defer mu.Unlock()
		n := 0
		for _, requests := range got {
			n += len(requests)
		}
		return n == 2*3*len(events)
	})
	mu.Lock()
	defer mu.Unlock()
	for _, format := range []string{"structured", "binary", "data"} {
		for i, want := range got["/prod-"+format] {
			have := got["/desk-"+format][i]
			if have.body != want.body {
				t.Errorf("%s: body\n%s\nthe router sends\n%s", format, have.body, want.body)
			}
			id := want.header.Get("Webhook-Id")
			if got, want := have.header.Get("Webhook-Id"), strings.Replace(id, format+":", format+".listen-desk:", 1); got != want {
				t.Errorf("%s: webhook-id %q, want %q", format, got, want)
			}
			if !strings.HasPrefix(have.header.Get("Webhook-Signature"), "v1,") {
				t.Errorf("%s: signature %q", format, have.header.Get("Webhook-Signature"))
			}
			for _, h := range []http.Header{have.header, want.header} {
				h.Del("Webhook-Id")
				h.Del("Webhook-Timestamp")
				h.Del("Webhook-Signature")
			}
			if fmt.Sprint(have.header) != fmt.Sprint(want.header) {
				t.Errorf("%s: headers\n%v\nthe router sends\n%v", format, have.header, want.header)
			}
		}
	}
}
