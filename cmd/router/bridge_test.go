package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/millrace/millrace/engine/event"
)

// A cable is a way to a router that can be cut.
type cable struct {
	*httptest.Server
	cut   atomic.Bool
	to    atomic.Pointer[url.URL]
	mute  atomic.Bool // requests arrive, answers do not
	calls atomic.Int64
}

func newCable(t *testing.T, to string) *cable {
	c := &cable{}
	c.plug(t, to)
	proxy := &httputil.ReverseProxy{
		Rewrite:      func(r *httputil.ProxyRequest) { r.SetURL(c.to.Load()) },
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { panic(http.ErrAbortHandler) },
		ModifyResponse: func(*http.Response) error {
			if c.mute.Load() {
				return net.ErrClosed
			}
			return nil
		},
	}
	c.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.calls.Add(1)
		if c.cut.Load() {
			panic(http.ErrAbortHandler)
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(c.Close)
	return c
}

func (c *cable) plug(t *testing.T, to string) {
	u, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	c.to.Store(u)
}

// send publishes events with these ids in requests of at most 1,000, their keys being the ids' first letters.
func (p *process) sendAll(topic string, ids ...string) {
	p.t.Helper()
	for batch := range slices.Chunk(ids, 1000) {
		var b strings.Builder
		for _, id := range batch {
			fmt.Fprintf(&b, `{"specversion":"1.0","id":%q,"source":"/a","type":"t","partitionkey":%q,"data":{"text":%q}}`+"\n", id, id[:1], strings.Repeat("x", 400))
		}
		p.must(202, "POST", "/v1/topics/"+topic+"/events", "application/x-ndjson", b.String())
	}
}

// events reads the ids of all events of a topic.
func (p *process) events(topic string) (ids []string) {
	p.t.Helper()
	for after := ""; ; {
		var page struct {
			Events []struct{ ID string }
			Next   string
		}
		code, text := p.call("GET", "/v1/topics/"+topic+"/events?limit=1000"+after, "", "")
		if code == 404 {
			return nil
		}
		if err := json.Unmarshal([]byte(text), &page); err != nil {
			p.t.Fatal(err, text)
		}
		for _, e := range page.Events {
			ids = append(ids, e.ID)
		}
		if len(page.Events) == 0 {
			return ids
		}
		after = "&after=" + page.Next
	}
}

func numbered(letter string, from, to int) (ids []string) {
	for i := from; i < to; i++ {
		ids = append(ids, fmt.Sprintf("%s%06d", letter, i))
	}
	return ids
}

// inOrder reports what is wrong with the ids of a topic: each of want once, in order for each first letter.
func inOrder(got, want []string) string {
	seen, last := map[string]bool{}, map[byte]string{}
	for _, id := range got {
		if seen[id] {
			return id + " is there twice"
		}
		if seen[id] = true; id < last[id[0]] {
			return id + " comes after " + last[id[0]]
		}
		last[id[0]] = id
	}
	for _, id := range want {
		if !seen[id] {
			return id + " is missing"
		}
	}
	if len(got) != len(want) {
		return fmt.Sprintf("%d events, want %d", len(got), len(want))
	}
	return ""
}

func (p *process) subscriptionState(name string) (s struct {
	Lag     uint64
	Lost    uint64
	Circuit struct{ State, Reason string }
}) {
	p.t.Helper()
	var doc struct{ State json.RawMessage }
	text := p.must(200, "GET", "/v1/subscriptions/"+name, "", "")
	if err := json.Unmarshal([]byte(text), &doc); err != nil {
		p.t.Fatal(err)
	}
	if err := json.Unmarshal(doc.State, &s); err != nil {
		p.t.Fatalf("%v in %s", err, doc.State)
	}
	return s
}

// Events wait in the topic while the link is down, longer than its ring keeps them, and arrive once and in their order, also
// where the answers got lost and both sides were started again.
func TestBridgeForwardsThroughAnOutage(t *testing.T) {
	hq := startProcess(t, "version: 1\ntopics: {telemetry: {partitions: 3}}\n")
	wire := newCable(t, hq.base)
	edge := startProcess(t, "version: 1\ntopics: {readings: {retain: {bytes: 64KiB}, partitions: 2}}\nbridges:\n  up:\n    topic: readings\n    start: earliest\n    filter: id != 'a000007'\n    to: {router: "+wire.URL+", topic: telemetry}\n")
	want := numbered("a", 0, 500)
	edge.sendAll("readings", want...)
	want = slices.Delete(want, 7, 8)
	until(t, "the first arrive", func() bool { return len(hq.events("telemetry")) == len(want) })

	wire.mute.Store(true) // they arrive, and nobody here knows
	more := numbered("b", 0, 300)
	edge.sendAll("readings", more...)
	want = append(want, more...)
	until(t, "they arrive", func() bool { return len(hq.events("telemetry")) == len(want) })
	wire.cut.Store(true)
	more = append(numbered("a", 500, 2000), numbered("c", 0, 2000)...)
	edge.sendAll("readings", more...)
	want = append(want, more...)
	until(t, "the circuit opens", func() bool { return edge.subscriptionState("bridge.up").Circuit.State == "open" })
	edge.stop()
	hq.stop()
	edge.start()
	hq.start()
	edge.sendAll("readings", "d000000")
	want = append(want, "d000000")
	wire.plug(t, hq.base)
	wire.mute.Store(false)
	wire.cut.Store(false)
	until(t, "all arrive", func() bool { return len(hq.events("telemetry")) >= len(want) })
	if wrong := inOrder(hq.events("telemetry"), want); wrong != "" {
		t.Error(wrong)
	}
	if s := edge.subscriptionState("bridge.up"); s.Lost != 0 {
		t.Errorf("%+v", s)
	}
	if !strings.Contains(hq.must(200, "GET", "/v1/topics/telemetry/events?limit=1", "", ""), `"`+event.ViaAttribute+`":"`+edge.r.engine.Name()+`"`) {
		t.Error("it is not said by which router they came")
	}
}
