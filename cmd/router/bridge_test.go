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

// sever cuts it, also under what is being sent.
func (c *cable) sever() {
	c.cut.Store(true)
	c.CloseClientConnections()
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
	Lag, Delivered uint64
	Lost           uint64
	Circuit        struct{ State, Reason string }
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
	until(t, "some arrive", func() bool { return len(hq.events("telemetry")) > len(want) })
	want = append(want, more...)
	wire.sever()
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

// A bridge brings in what another router has, each event once and in its order, through outages, kills and a reload.
func TestBridgeBringsIn(t *testing.T) {
	hq := startProcess(t, "version: 1\ntopics: {commands: {partitions: 3}}\n")
	wire := newCable(t, hq.base)
	const rules = "version: 1\nbridges:\n  down:\n    topic: orders\n    from: {router: %s, topic: commands, start: earliest%s}\n"
	want := numbered("a", 0, 2500)
	hq.sendAll("commands", want...)
	edge := startProcess(t, fmt.Sprintf(rules, wire.URL, ""))
	until(t, "the first arrive", func() bool { return len(edge.events("orders")) == len(want) })
	wire.mute.Store(true)
	hq.sendAll("commands", "b000000")
	wire.sever()
	more := numbered("b", 1, 1500)
	hq.sendAll("commands", more...)
	want = append(append(want, "b000000"), more...)
	until(t, "it waits", func() bool {
		s := edge.r.inlets.states()
		return len(s) == 1 && s[0].State == "waiting" && strings.Contains(s[0].Reason, "broke off")
	})
	edge.stop()
	hq.stop()
	hq.start()
	wire.plug(t, hq.base)
	wire.mute.Store(false)
	wire.cut.Store(false)
	edge.start()
	until(t, "the rest arrives", func() bool { return len(edge.events("orders")) >= len(want) })
	edge.write(fmt.Sprintf(rules, wire.URL, ", filter: 'id != \"c000001\"'"))
	if err := edge.r.defs.reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	hq.sendAll("commands", numbered("c", 0, 3)...)
	want = append(want, "c000000", "c000002")
	until(t, "what the new rules want arrives", func() bool { return len(edge.events("orders")) >= len(want) })
	if wrong := inOrder(edge.events("orders"), want); wrong != "" {
		t.Error(wrong)
	}
	first := edge.must(200, "GET", "/v1/topics/orders/events?limit=1", "", "")
	if strings.Contains(first, "millraceposition\":\"0-0\",\"millraceposition") || !strings.Contains(first, `"`+event.ViaAttribute+`":"`+hq.r.engine.Name()+`"`) {
		t.Error(first)
	}
	metrics := edge.must(200, "GET", "/metrics", "", "")
	for _, want := range []string{`millrace_bridge_up{bridge="down"} 1`, `millrace_bridge_events_total{bridge="down",outcome="lost"} 0`} {
		if !strings.Contains(metrics, want) {
			t.Errorf("%s is not in the metrics", want)
		}
	}
	// What the other side has dropped is counted, and it goes on with the rest.
	edge.write(fmt.Sprintf(rules, wire.URL, ""))
	if err := edge.r.defs.reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	wire.sever()
	until(t, "it waits again", func() bool { return edge.r.inlets.states()[0].State == "waiting" })
	hq.write("version: 1\ntopics: {commands: {partitions: 3, retain: {events: 30}}}\n")
	if err := hq.r.defs.reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	hq.sendAll("commands", numbered("a", 3000, 3500)...)
	for _, id := range numbered("a", 3500, 3530) {
		hq.sendAll("commands", id)
	}
	until(t, "the ring turns over", func() bool { return len(hq.events("commands")) < 100 })
	left := hq.events("commands")
	wire.cut.Store(false)
	until(t, "the last arrives", func() bool { return slices.Contains(edge.events("orders"), "a003529") })
	want = append(want, slices.DeleteFunc(left, func(id string) bool { return slices.Contains(want, id) || id == "c000001" })...)
	if wrong := inOrder(edge.events("orders"), want); wrong != "" {
		t.Error(wrong)
	}
	for _, id := range left {
		if id < "a003000" || id > "a004000" {
			left = left[1:]
		}
	}
	if s := edge.r.inlets.states()[0]; int(s.Lost) != 530-len(left) {
		t.Errorf("%d lost, where %d of 530 were left", s.Lost, len(left))
	}
}

// From a subscription each delivery is stored once and acknowledged.
func TestBridgePulls(t *testing.T) {
	hq := startProcess(t, "version: 1\nsubscriptions:\n  work: {topic: commands, deliver: {pull: {}}}\n")
	wire := newCable(t, hq.base)
	edge := startProcess(t, "version: 1\nbridges:\n  down: {topic: orders, from: {router: "+wire.URL+", subscription: work}}\n")
	want := numbered("a", 0, 1200)
	hq.sendAll("commands", want...)
	until(t, "they arrive", func() bool { return len(edge.events("orders")) >= len(want) })
	until(t, "they are acknowledged", func() bool {
		return strings.Contains(hq.must(200, "GET", "/v1/subscriptions/work", "", ""), `"delivered":1200`)
	})
	if wrong := inOrder(edge.events("orders"), want); wrong != "" {
		t.Error(wrong)
	}
}

// Two routers that forward the same topic to each other have each event once.
func TestBridgesDoNotCircle(t *testing.T) {
	a, b := startProcess(t, "version: 1\n"), startProcess(t, "version: 1\n")
	for _, x := range []struct{ from, to *process }{{a, b}, {b, a}} {
		x.from.write("version: 1\nbridges: {over: {topic: shared, start: earliest, to: {router: " + x.to.base + ", topic: shared}}}\n")
		if err := x.from.r.defs.reload(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	a.sendAll("shared", "a000001")
	b.sendAll("shared", "b000001")
	for _, p := range []*process{a, b} {
		until(t, "both have both", func() bool { return len(p.events("shared")) == 2 })
		until(t, "all is sent", func() bool { s := p.subscriptionState("bridge.over"); return s.Delivered == 2 && s.Lag == 0 })
	}
	if x, y := a.events("shared"), b.events("shared"); len(x) != 2 || len(y) != 2 {
		t.Errorf("%v and %v", x, y)
	}
}

// What stands in the way is said where subscriptions and bridges are looked at, without the token.
func TestBridgeSaysWhy(t *testing.T) {
	hq := newProcess(t)
	hq.o.token = "right-token-0123456789"
	hq.start()
	t.Cleanup(func() { hq.stop() })
	secure := httptest.NewTLSServer(http.NotFoundHandler())
	defer secure.Close()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := "http://" + closed.Addr().String()
	closed.Close()
	edge := startProcess(t, `version: 1
bridges:
  to-token: {topic: t, to: {router: `+hq.base+`, topic: t, token: wrong-token-1}}
  to-topic: {topic: t, to: {router: `+hq.base+`, topic: nowhere, token: right-token-0123456789}}
  to-tls: {topic: t, to: {router: `+secure.URL+`, topic: t}}
  to-nobody: {topic: t, to: {router: `+nobody+`, topic: t}}
  from-token: {topic: t, from: {router: `+hq.base+`, topic: t, token: wrong-token-2}}
  from-topic: {topic: t, from: {router: `+hq.base+`, topic: nowhere, token: right-token-0123456789}}
  from-tls: {topic: t, from: {router: `+secure.URL+`, topic: t}}
  from-nobody: {topic: t, from: {router: `+nobody+`, topic: t}}
`)
	edge.sendAll("t", "a000001")
	defer func() {
		if t.Failed() {
			t.Log(edge.log.String())
		}
	}()
	for name, want := range map[string]string{"to-token": "401 Unauthorized: it does not take the token", "to-topic": "404 Not Found: there is no topic nowhere, or the token may not know of it",
		"to-tls": "certificate", "to-nobody": "refused"} {
		until(t, name, func() bool {
			s := edge.subscriptionState("bridge." + name)
			return s.Circuit.State != "closed" && strings.Contains(s.Circuit.Reason, want) && !strings.Contains(s.Circuit.Reason, "wrong-token")
		})
	}
	t.Log(edge.r.inlets.states())
	for name, want := range map[string]string{"from-token": "401 Unauthorized: it does not take the token", "from-topic": "404 Not Found: there is no topic nowhere",
		"from-tls": "certificate", "from-nobody": "refused"} {
		until(t, name, func() bool {
			for _, s := range edge.r.inlets.states() {
				if s.Name == name {
					return s.State == "waiting" && strings.Contains(s.Reason, want) && !strings.Contains(s.Reason, "wrong-token")
				}
			}
			return false
		})
	}
	edge.stop()
	if strings.Contains(edge.log.String(), "wrong-token") {
		t.Error("a token is in the log")
	}
}

// What the other side never takes becomes a dead letter with the reason, and does not hold up what comes behind it.
func TestBridgeDeadLettersConflicts(t *testing.T) {
	hq := startProcess(t, "version: 1\ntopics: {t: {schema: {type: object}}}\n")
	hq.must(202, "POST", "/v1/topics/t/events", "application/cloudevents+json", `{"specversion":"1.0","id":"a000002","source":"/a","type":"other","data":{}}`)
	edge := startProcess(t, "version: 1\nbridges: {up: {topic: t, start: earliest, to: {router: "+hq.base+", topic: t}}}\n")
	edge.sendAll("t", numbered("a", 1, 4)...)
	edge.must(202, "POST", "/v1/topics/t/events?id=a000004", "application/json", "[]")
	edge.sendAll("t", "a000005")
	until(t, "the others arrive", func() bool { return slices.Contains(hq.events("t"), "a000005") })
	if got := hq.events("t"); !slices.Equal(got, []string{"a000002", "a000001", "a000003", "a000005"}) {
		t.Errorf("%v", got)
	}
	until(t, "the dead letters", func() bool { return len(edge.events("bridge.up.dead")) == 2 })
	letters := edge.must(200, "GET", "/v1/subscriptions/bridge.up/deadletters", "", "")
	for _, want := range []string{`"reason":"permanent"`, "409 Conflict", "422"} {
		if !strings.Contains(letters, want) {
			t.Errorf("%s is not in %s", want, letters)
		}
	}
}
