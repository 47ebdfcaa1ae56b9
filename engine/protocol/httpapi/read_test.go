package httpapi

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
)

func (f *fake) put(t testing.TB, topic, typ string, n int) {
	t.Helper()
	for range n {
		if err := f.Publish(context.Background(), topic, []event.Event{{Type: typ, Data: []byte("1")}}, make([]event.Position, 1)); err != nil {
			t.Fatal(err)
		}
	}
}

type polled struct {
	Events []map[string]any
	Next   string
}

func poll(t *testing.T, url string) (p polled) {
	t.Helper()
	resp, body := do(t, "GET", url, "")
	if resp.StatusCode != 200 {
		t.Fatalf("%s: %d %s", url, resp.StatusCode, body)
	}
	if err := json.Unmarshal([]byte(body), &p); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPoll(t *testing.T) {
	f := newFake("orders")
	f.put(t, "orders", "a", 150)
	f.put(t, "orders", "b", 1)
	_, base := serve(t, Options{Backend: f, Now: func() time.Time { return f.epoch.Add(200 * time.Second) }})
	u := base + orders
	p := poll(t, u)
	if len(p.Events) != 100 || p.Events[0]["millraceposition"] != "0-0" || p.Events[0]["recordedtime"] != "2026-01-02T03:04:05Z" {
		t.Fatalf("%d events, the first %v", len(p.Events), p.Events[0])
	}
	p = poll(t, u+"?limit=1000&after="+p.Next)
	if len(p.Events) != 51 || p.Events[0]["millraceposition"] != "0-100" {
		t.Fatalf("%d events, the first %v", len(p.Events), p.Events[0])
	}
	if p = poll(t, u+"?after="+p.Next); len(p.Events) != 0 || p.Next != "c151" {
		t.Errorf("%+v", p)
	}
	if p = poll(t, u+"?filter="+url.QueryEscape(`type == "b"`)); len(p.Events) != 1 {
		t.Errorf("%+v", p)
	}
	if p = poll(t, u+"?since=2026-01-02T03:06:35Z"); len(p.Events) != 1 {
		t.Errorf("%+v", p)
	}
	if p = poll(t, u+"?since=1m"); len(p.Events) != 11 {
		t.Errorf("%d events since a minute", len(p.Events))
	}
	if f.open != 0 {
		t.Errorf("%d readers left open", f.open)
	}
	for _, tt := range []struct {
		query  string
		status int
		words  string
	}{
		{"?limit=0", 400, "1 to 1000"}, {"?limit=1001", 400, "1 to 1000"}, {"?wait=31s", 400, "0s to 30s"}, {"?wait=x", 400, "0s to 30s"},
		{"?since=yesterday", 400, "RFC 3339"}, {"?since=1m&after=c1", 400, "one of them"}, {"?after=zzz", 400, "cursor"}, {"?filter=nonsense", 400, "filter"},
	} {
		resp, body := do(t, "GET", u+tt.query, "")
		if resp.StatusCode != tt.status || !strings.Contains(body, tt.words) {
			t.Errorf("%s: %d %s", tt.query, resp.StatusCode, body)
		}
	}
	f.topics["orders"].head = 10
	if resp, body := do(t, "GET", u+"?after=c5", ""); resp.StatusCode != 410 || !strings.Contains(body, "c10") {
		t.Errorf("overtaken: %d %s", resp.StatusCode, body)
	}
	if resp, body := do(t, "GET", u+"/0-150", ""); resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "application/cloudevents+json" {
		t.Errorf("%d %s", resp.StatusCode, body)
	} else {
		like(t, body, `{"type":"b","millraceposition":"0-150","specversion":"1.0"}`)
	}
	for path, status := range map[string]int{"/0-999": 404, "/x": 400, "/0-999/more": 404} {
		if resp, body := do(t, "GET", u+path, ""); resp.StatusCode != status {
			t.Errorf("%s: %d %s", path, resp.StatusCode, body)
		}
	}
}

func TestLongPollWakes(t *testing.T) {
	f := newFake("orders")
	_, base := serve(t, Options{Backend: f})
	got := make(chan polled)
	go func() {
		defer close(got)
		resp, err := http.Get(base + orders + "?wait=30s")
		if err != nil {
			t.Error(err)
			return
		}
		defer resp.Body.Close()
		var p polled
		if err := json.NewDecoder(resp.Body).Decode(&p); err != nil {
			t.Error(err)
		}
		got <- p
	}()
	f.until(t, "a reader", func() bool { return f.open == 1 })
	f.put(t, "orders", "x", 1)
	if p := <-got; len(p.Events) != 1 || p.Next != "c1" {
		t.Errorf("%+v", p)
	}
	if p := poll(t, base+orders+"?after=c1&wait=20ms"); len(p.Events) != 0 || p.Next != "c1" {
		t.Errorf("%+v", p)
	}
}

// until waits for a condition of the fake.
func (f *fake) until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; {
		f.mu.Lock()
		ok := cond()
		f.mu.Unlock()
		if ok {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("no %s within a minute", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestAnEventPublishedAgainShowsItsNewPlaceOnce(t *testing.T) {
	f := newFake("orders")
	_, base := serve(t, Options{Backend: f})
	f.put(t, "orders", "x", 2)
	_, doc := do(t, "GET", base+orders+"/0-1", "")
	resp, body := do(t, "POST", base+orders, doc, "Content-Type", "application/cloudevents+json")
	if resp.StatusCode != 202 {
		t.Fatal(body)
	}
	_, doc = do(t, "GET", base+orders+"/0-2", "")
	if strings.Count(doc, "millraceposition") != 1 || strings.Count(doc, "recordedtime") != 1 {
		t.Error(doc)
	}
	like(t, doc, `{"millraceposition":"0-2","recordedtime":"2026-01-02T03:04:06Z"}`)
}

// sse is an open stream.
type sse struct {
	resp *http.Response
	r    *bufio.Reader
}

func openStream(t *testing.T, url string, headers ...string) *sse {
	t.Helper()
	req, err := http.NewRequest("GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("%d %v", resp.StatusCode, resp.Header)
	}
	return &sse{resp, bufio.NewReader(resp.Body)}
}

// block reads to the next empty line.
func (s *sse) block(t *testing.T) map[string]string {
	t.Helper()
	m := map[string]string{}
	for {
		line, err := s.r.ReadString('\n')
		if err != nil {
			m["error"] = err.Error()
			return m
		}
		if line = strings.TrimSuffix(line, "\n"); line == "" {
			return m
		}
		k, v, _ := strings.Cut(line, ":")
		m[k] = strings.TrimPrefix(v, " ")
	}
}

func TestStream(t *testing.T) {
	f := newFake("orders", "live.out")
	f.put(t, "orders", "old", 3)
	srv, base := serve(t, Options{Backend: f, Heartbeat: 20 * time.Millisecond})
	s := openStream(t, base+"/v1/topics/orders/stream")
	if b := s.block(t); b["id"] != "c3" || b["retry"] != "1000" {
		t.Fatalf("%v", b)
	}
	f.put(t, "orders", "new", 1)
	next := func(s *sse) map[string]string {
		for {
			if b := s.block(t); b["data"] != "" || b["error"] != "" {
				return b
			}
		}
	}
	b := next(s)
	if _, named := b["event"]; named || b["id"] != "c4" {
		t.Errorf("%v", b)
	}
	like(t, b["data"], `{"type":"new","millraceposition":"0-3","specversion":"1.0"}`)
	for b = s.block(t); b["data"] != "" || len(b) == 0; b = s.block(t) {
	}
	if _, comment := b[""]; !comment || b["id"] != "c4" {
		t.Errorf("no heartbeat: %v", b)
	}

	resumed := openStream(t, base+"/v1/topics/orders/stream?after=c3&event=type", "Last-Event-ID", "c1")
	if b := next(resumed); b["id"] != "c2" || b["event"] != "old" {
		t.Errorf("%v", b)
	}
	f.put(t, "live.out", "out", 1)
	out := openStream(t, base+"/v1/subscriptions/live/stream?since=1000d")
	like(t, next(out)["data"], `{"type":"out"}`)

	for range 5 { // a client that goes is noticed though nothing is sent to it
		gone := openStream(t, base+"/v1/topics/orders/stream")
		gone.resp.Body.Close()
	}
	f.until(t, "end of the readers", func() bool { return f.open == 3 })
	if n := srv.Streams(); n < 3 {
		t.Errorf("%d streams", n)
	}

	for query, status := range map[string]int{"?after=zzz": 400, "?event=x": 400, "?limit=3": 400} {
		if resp, body := do(t, "GET", base+"/v1/topics/orders/stream"+query, ""); resp.StatusCode != status {
			t.Errorf("%s: %d %s", query, resp.StatusCode, body)
		}
	}
	if resp, body := do(t, "GET", base+"/v1/topics/none/stream", ""); resp.StatusCode != 404 {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	if resp, _ := do(t, "HEAD", base+"/v1/topics/orders/stream", ""); resp.StatusCode != 200 {
		t.Errorf("HEAD: %d", resp.StatusCode)
	}
}

// TestStreamLosesASilentClientAtOnce does not need a write to notice: with an hour between comments and no events, only a
// reader can notice.
func TestStreamLosesASilentClientAtOnce(t *testing.T) {
	f := newFake("orders")
	_, base := serve(t, Options{Backend: f, Heartbeat: time.Hour})
	s := openStream(t, base+"/v1/topics/orders/stream")
	f.until(t, "reader", func() bool { return f.open == 1 })
	s.resp.Body.Close()
	f.until(t, "end of the reader", func() bool { return f.open == 0 })
}

func TestStreamKeepsToOneLineOfData(t *testing.T) {
	f := newFake("orders")
	_, base := serve(t, Options{Backend: f})
	s := openStream(t, base+"/v1/topics/orders/stream")
	s.block(t)
	do(t, "POST", base+orders, "{\n\"a\":\r\n1}", "Content-Type", "application/json")
	like(t, s.block(t)["data"], `{"data":{"a":1}}`)
}

func TestStreamDropsASlowReader(t *testing.T) {
	f := newFake("orders")
	_, base := serve(t, Options{Backend: f, WriteTimeout: 50 * time.Millisecond})
	nc, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	_ = nc.(*net.TCPConn).SetReadBuffer(4096)
	fmt.Fprintf(nc, "GET /v1/topics/orders/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
	f.until(t, "reader", func() bool { return f.open == 1 })
	big := []byte(`"` + strings.Repeat("x", 900_000) + `"`)
	for range 20 {
		if err := f.Publish(context.Background(), "orders", []event.Event{{Data: big}}, make([]event.Position, 1)); err != nil {
			t.Fatal(err)
		}
	}
	f.until(t, "end of the reader", func() bool { return f.open == 0 })
}

func TestStreamEndsWhenTheRingOvertakesIt(t *testing.T) {
	f := newFake("orders")
	f.put(t, "orders", "x", 5)
	_, base := serve(t, Options{Backend: f})
	s := openStream(t, base+"/v1/topics/orders/stream?after=c5")
	s.block(t)
	f.mu.Lock()
	f.topics["orders"].head = 9
	f.mu.Unlock()
	f.put(t, "orders", "x", 5)
	if b := s.block(t); !strings.Contains(b[""], "dropped") {
		t.Errorf("%v", b)
	}
	if resp, body := do(t, "GET", base+"/v1/topics/orders/stream", "", "Last-Event-ID", "c5"); resp.StatusCode != 410 {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}

func TestStreamsAreBounded(t *testing.T) {
	f := newFake("orders")
	srv, base := serve(t, Options{Backend: f, MaxConns: 2})
	for range 2 {
		openStream(t, base+"/v1/topics/orders/stream")
	}
	f.until(t, "two streams", func() bool { return srv.Streams() == 2 })
	if resp, body := do(t, "GET", base+"/v1/topics/orders/stream", ""); resp.StatusCode != 503 {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}

// scans is a fake whose readers pass over events for ever, as a filter that nothing passes makes them.
type scans struct{ *fake }

type scanner struct{ Reader }

func (s scans) OpenTopic(ctx context.Context, topic string, start event.Start, filter string) (Reader, error) {
	r, err := s.fake.OpenTopic(ctx, topic, start, filter)
	return scanner{r}, err
}

func (scanner) TryNext(context.Context) (event.Record, bool, bool, error) {
	return nil, false, true, nil
}

func TestASelectiveFilterHoldsNothing(t *testing.T) {
	f := newFake("orders")
	_, base := serve(t, Options{Backend: scans{f}, Heartbeat: 10 * time.Millisecond})
	for _, query := range []string{"", "?wait=20ms"} {
		if p := poll(t, base+orders+query); len(p.Events) != 0 || p.Next == "" {
			t.Errorf("%q: %+v", query, p)
		}
	}
	s := openStream(t, base+"/v1/topics/orders/stream")
	s.block(t)
	if b := s.block(t); b["id"] == "" { // a heartbeat
		t.Errorf("%v", b)
	}
}

// TestLiveStreamsShareALine renders an event once for all streams that wait for it; streams with a filter or a type line too.
func TestLiveStreamsShareALine(t *testing.T) {
	f := newFake("orders")
	s, base := serve(t, Options{Backend: f})
	var streams []*bufio.Reader
	for _, query := range []string{"", "", "?event=type", "?filter=type+%3D%3D+%22a%22"} {
		resp, err := http.Get(base + "/v1/topics/orders/stream" + query)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		streams = append(streams, bufio.NewReader(resp.Body))
	}
	do(t, "POST", base+orders+"?type=a", "{\n\"n\":1}", "Content-Type", "application/json")
	do(t, "POST", base+orders+"?type=b", `2`, "Content-Type", "application/json")
	for n, r := range streams {
		for at, typ := range []string{"a", "b"} {
			if n == 3 && typ == "b" {
				continue
			}
			var line string
			for !strings.HasPrefix(line, "data: ") {
				var err error
				if line, err = r.ReadString('\n'); err != nil {
					t.Fatal(err)
				}
			}
			f.mu.Lock()
			rec := f.topics["orders"].recs[at]
			f.mu.Unlock()
			shared := s.shown[at].Load()
			if shared == nil || line != "data: "+string(shared.line)+"\n" || &shared.rec[0] != &rec[0] {
				t.Errorf("stream %d was sent %q; shared is %v", n, line, shared)
			}
			like(t, strings.TrimPrefix(line, "data: "), `{"type":"`+typ+`"}`)
		}
	}
}

// TestIdleStreamIsSmall holds what the server keeps for a stream that waits, this test's own client included: fasthttp's
// buffers and the request are not kept.
func TestIdleStreamIsSmall(t *testing.T) {
	const streams, most = 200, 20 << 10
	f := newFake("orders")
	s, base := serve(t, Options{Backend: f})
	used := func() int {
		runtime.GC()
		runtime.GC() // and what pools let go
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc + m.StackInuse)
	}
	open := func() {
		nc, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { nc.Close() })
		fmt.Fprint(nc, "GET /v1/topics/orders/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
	}
	open()
	f.until(t, "first stream", func() bool { n, _ := s.SSE(); return n == 1 })
	before := used()
	for range streams {
		open()
	}
	f.until(t, "streams", func() bool { n, _ := s.SSE(); return n == streams+1 })
	each := (used() - before) / streams
	t.Logf("%d bytes a stream", each)
	if each > most {
		t.Errorf("a stream that waits keeps %d bytes; at most %d", each, most)
	}
}
