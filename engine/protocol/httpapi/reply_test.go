package httpapi

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
)

func (f *fake) Ask(ctx context.Context, topic string, evs []event.Event, pos []event.Position, end <-chan struct{}) (*event.Reply, error) {
	if err := f.Publish(ctx, topic, evs, pos); err != nil || f.replies == nil {
		return nil, err
	}
	return f.await(end), nil
}

func (f *fake) await(end <-chan struct{}) *event.Reply {
	count := func(n int) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.asking += n
	}
	count(1)
	defer count(-1)
	select {
	case r := <-f.replies:
		return r
	case <-end:
		return nil
	}
}

func (f *fake) Reply(ctx context.Context, topic string, pos event.Position, end <-chan struct{}) (*event.Reply, error) {
	if _, err := f.Event(ctx, topic, pos); err != nil {
		return nil, err
	}
	r := f.await(end)
	if r == nil {
		return nil, fmt.Errorf("no reply: %w", event.ErrNotFound)
	}
	return r, nil
}

func (f *fake) Invoke(ctx context.Context, function, version string, ev *event.Event) (*event.Invocation, error) {
	if _, err := f.Show(ctx, "functions", function); err != nil {
		return nil, err
	}
	if f.fail != nil {
		return nil, f.fail
	}
	f.version, f.invoked = strings.Clone(version), ev.Clone()
	return f.invoking, nil
}

func (f *fake) waiters() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asking
}

// until polls a condition, for at most a minute.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

func TestReplyIsTheAnswer(t *testing.T) {
	f := newFake("orders")
	f.replies = make(chan *event.Reply, 1)
	_, base := serve(t, Options{Backend: f})
	for i, c := range []struct {
		path, body string
		headers    []string
		reply      event.Reply
	}{
		{"/v1/topics/orders/events", `{"total":1}`, []string{"Prefer", "wait=5"}, event.Reply{Status: 200, ContentType: "application/json", Data: []byte(`{"ok":true}`)}},
		{"/v1/topics/orders/events", `{"total":1}`, []string{"Prefer", `respond-async, WAIT="5"; x=y`}, event.Reply{Status: 418, ContentType: "text/plain", Data: []byte("no coffee")}},
		{"/v1/publish", `{"topic":"orders","payload":1}`, []string{"Prefer", "wait=5"}, event.Reply{Status: 204}},
		{"/v1/publish", `{"topic":"orders","payload":1}`, []string{"Prefer", "wait=5, wait=x"}, event.Reply{Status: 500, ContentType: "text/html", Data: []byte("<script>alert(1)</script>")}},
		{"/v1/topics/orders/events", `1`, []string{"Prefer", "wait=5, return=minimal"}, event.Reply{Status: 200, Data: []byte("plain")}},
	} {
		f.replies <- &c.reply
		resp, body := do(t, "POST", base+c.path, c.body, append(c.headers, "Content-Type", "application/json")...)
		h := resp.Header
		if resp.StatusCode != c.reply.Status || h.Get("Content-Type") != c.reply.ContentType || body != string(c.reply.Data) {
			t.Errorf("%d: %d %q %q", i, resp.StatusCode, h.Get("Content-Type"), body)
		}
		if want := fmt.Sprintf("/v1/topics/orders/events/0-%d/reply", i); h.Get("Content-Location") != want || h.Get("Preference-Applied") != "wait=5" || h.Get("Location") != "" {
			t.Errorf("%d: headers %v", i, h)
		}
		if !strings.Contains(h.Get("Content-Security-Policy"), "sandbox") || h.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%d: a browser would run it: %v", i, h)
		}
	}
	f.replies <- &event.Reply{Status: 206, ContentType: "text/plain", Data: []byte("late")}
	if resp, body := do(t, "GET", base+"/v1/topics/orders/events/0-1/reply?wait=1s", ""); resp.StatusCode != 206 || body != "late" {
		t.Errorf("the reply's own path: %d %q", resp.StatusCode, body)
	}
	for path, want := range map[string]int{"0-1/reply": 404, "0-1/reply?wait=10ms": 404, "0-99/reply?wait=1s": 404, "x/reply": 400, "0-1/reply?wait=31s": 400} {
		if resp, body := do(t, "GET", base+"/v1/topics/orders/events/"+path, ""); resp.StatusCode != want {
			t.Errorf("%s: %d %s", path, resp.StatusCode, body)
		}
	}
}

func TestNoReplyInTime(t *testing.T) {
	f := newFake("orders")
	f.replies = make(chan *event.Reply)
	_, base := serve(t, Options{Backend: f})
	began := time.Now()
	resp, body := do(t, "POST", base+"/v1/topics/orders/events?id=i", "1", "Content-Type", "application/json", "Prefer", "wait=1, return=minimal")
	if resp.StatusCode != 202 || body != `{"accepted":1}`+"\n" || resp.Header.Get("Location") != "/v1/topics/orders/events/0-0/reply" || time.Since(began) < time.Second {
		t.Errorf("%d %s %v after %s", resp.StatusCode, body, resp.Header, time.Since(began))
	}
	if got := resp.Header["Preference-Applied"]; strings.Join(got, ", ") != "wait=1, return=minimal" {
		t.Errorf("applied %v", got)
	}
	f.replies = nil // nobody will reply
	resp, body = do(t, "POST", base+"/v1/topics/orders/events", "1", "Content-Type", "application/json", "Prefer", "wait=3600")
	if resp.StatusCode != 202 || !strings.Contains(body, `"position":"0-1"`) || resp.Header.Get("Preference-Applied") != "wait=30" {
		t.Errorf("%d %s %v", resp.StatusCode, body, resp.Header)
	}
}

// A client that goes away frees its waiter at once, and a drain ends the waiting of those that stay.
func TestWaitersEnd(t *testing.T) {
	f := newFake("orders")
	f.replies = make(chan *event.Reply)
	s, base := serve(t, Options{Backend: f})
	send := func(request string) net.Conn {
		c, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, request); err != nil {
			t.Fatal(err)
		}
		return c
	}
	const publish = "POST /v1/topics/orders/events HTTP/1.1\r\nHost: localhost\r\nPrefer: wait=30\r\nContent-Type: application/json\r\nContent-Length: 1\r\n\r\n1"
	for range 5 {
		var conns []net.Conn
		for range 200 {
			conns = append(conns, send(publish))
		}
		until(t, "all wait", func() bool { return f.waiters() == 200 })
		for _, c := range conns {
			c.Close()
		}
		until(t, "nobody waits for those who left", func() bool { return f.waiters() == 0 })
	}
	publisher := send(publish)
	defer publisher.Close()
	pipelined := send(strings.Repeat(publish, 2)) // what is sent behind it does not count as leaving
	defer pipelined.Close()
	reader := send("GET /v1/topics/orders/events/0-0/reply?wait=30s HTTP/1.1\r\nHost: localhost\r\n\r\n")
	defer reader.Close()
	until(t, "three wait", func() bool { return f.waiters() == 3 })
	shut := make(chan error, 1)
	go func() { shut <- s.Shutdown(context.Background()) }()
	for c, want := range map[net.Conn]int{publisher: 202, pipelined: 202, reader: 404} {
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != want || want == 202 && resp.Header.Get("Location") == "" {
			t.Errorf("answered %d, %v", resp.StatusCode, resp.Header)
		}
	}
	if err := <-shut; err != nil {
		t.Error(err)
	}
}

func TestAckCarriesAReply(t *testing.T) {
	f := newFake("work")
	_, base := serve(t, Options{Backend: f})
	for _, c := range []struct{ reply, want string }{
		{`{}`, `200 "" ""`},
		{`{"data":{"total": 1}}`, `200 "application/json" "{\"total\": 1}"`},
		{`{"status":404,"contentType":"text/plain","data":"né"}`, `404 "text/plain" "né"`},
		{`{"contentType":"application/vnd.x+json","data":[]}`, `200 "application/vnd.x+json" "[]"`},
		{`{"contentType":"image/png","data_base64":"AAE="}`, `200 "image/png" "\x00\x01"`},
	} {
		resp, body := do(t, "POST", base+"/v1/subscriptions/work/ack", `{"leases":["a"],"reply":`+c.reply+`}`, "Content-Type", "application/json")
		if got := fmt.Sprintf("%d %q %q", f.replied.Status, f.replied.ContentType, f.replied.Data); resp.StatusCode != 200 || got != c.want {
			t.Errorf("%s: %d %s, %s", c.reply, resp.StatusCode, body, got)
		}
	}
	if do(t, "POST", base+"/v1/subscriptions/work/ack", `{"leases":["a"]}`, "Content-Type", "application/json"); f.replied != nil {
		t.Error("an ack without a reply has one")
	}
}

func TestInvokeAnswers(t *testing.T) {
	f := newFake()
	_, base := serve(t, Options{Backend: f})
	if resp, body := do(t, "POST", base+"/v1/functions/f/invoke", "1", "Content-Type", "application/json"); resp.StatusCode != 404 {
		t.Errorf("no such function: %d %s", resp.StatusCode, body)
	}
	f.docs["functions"]["f"] = []byte(`{}`)
	made := event.Event{ID: "i~0", Source: "/s", Type: "t", DataContentType: "application/json", Data: []byte(`{"a":1}`)}
	f.invoking = &event.Invocation{Fuel: 7, Took: 1500, Results: []event.Invoked{
		{Verdict: "emit", Event: made.AppendRecord(nil)}, {Verdict: "emit", Event: made.AppendRecord(nil), Topic: "other"}, {Verdict: "drop"},
		{Verdict: "pass"}, {Verdict: "reject", Code: 422, Reason: `no "total"`}, {Verdict: "retry", Delay: 1500}}}
	resp, body := do(t, "POST", base+"/v1/functions/f/invoke?version=sha256:x&type=order.created&id=i", `{"total": 1}`, "Content-Type", "application/json")
	const ev = `"event":{"specversion":"1.0","id":"i~0","source":"/s","type":"t","datacontenttype":"application/json","data":{"a":1}}}`
	if want := `{"results":[{"verdict":"emit",` + ev + `,{"verdict":"emit","topic":"other",` + ev + `,{"verdict":"drop"},{"verdict":"pass"},` +
		`{"verdict":"reject","code":422,"reason":"no \"total\""},{"verdict":"retry","delay":"1.5s"}],"fuel":7,"time":"1.5µs"}` + "\n"; resp.StatusCode != 200 || !sameText(body, want) {
		t.Errorf("%d\n%s\nwant\n%s", resp.StatusCode, body, want)
	}
	if f.version != "sha256:x" || f.invoked.Type != "order.created" || f.invoked.ID != "i" || string(f.invoked.Data) != `{"total": 1}` {
		t.Errorf("invoked %q with %+v", f.version, f.invoked)
	}
	f.invoking = &event.Invocation{Reply: &event.Reply{Status: 201, ContentType: "text/csv", Data: []byte("a,b")}}
	if resp, body := do(t, "POST", base+"/v1/functions/f/invoke", `{"specversion":"1.0","id":"1","source":"/s","type":"t"}`, "Content-Type", "application/cloudevents+json"); resp.StatusCode != 201 ||
		body != "a,b" || resp.Header.Get("Content-Type") != "text/csv" || resp.Header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("%d %q %v", resp.StatusCode, body, resp.Header)
	}
	for _, c := range []struct {
		kind, body string
		status     int
	}{{"application/x-ndjson", "1\n2\n", 400}, {"text/csv", "a\n1\n", 415}, {"application/json", "{", 400}} {
		if resp, body := do(t, "POST", base+"/v1/functions/f/invoke", c.body, "Content-Type", c.kind); resp.StatusCode != c.status {
			t.Errorf("%s: %d %s", c.kind, resp.StatusCode, body)
		}
	}
	f.fail = event.Bad(event.ErrFunction, "trap", "unreachable")
	if resp, body := do(t, "POST", base+"/v1/functions/f/invoke", "1", "Content-Type", "application/json"); resp.StatusCode != 502 ||
		!strings.Contains(body, `"at":"trap"`) || !strings.Contains(body, "urn:millrace:problem:function") {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}

// sameText takes how Go writes µ in JSON for µ.
func sameText(got, want string) bool { return strings.ReplaceAll(got, `\u00b5`, "µ") == want }

// An unmodified client: what curl prints is the reply.
func TestCurlGetsTheReply(t *testing.T) {
	f := newFake("orders")
	f.replies = make(chan *event.Reply, 1)
	_, base := serve(t, Options{Backend: f})
	f.replies <- &event.Reply{Status: 200, ContentType: "application/json", Data: []byte(`{"total":250}`)}
	out, err := exec.Command("curl", "-sS", "--fail", base+"/v1/topics/orders/events", "-H", "Prefer: wait=10", "-d", `{"total": 250}`).CombinedOutput()
	if err != nil || string(out) != `{"total":250}` {
		t.Errorf("%v: %s", err, out)
	}
}
