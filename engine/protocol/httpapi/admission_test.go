package httpapi

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/millrace/millrace/engine/admission"
	"github.com/millrace/millrace/engine/event"
	"github.com/valyala/fasthttp"
)

// requestCtx is a request on c.
func requestCtx(c *conn) *fasthttp.RequestCtx {
	ctx := &fasthttp.RequestCtx{}
	ctx.Init2(c, nil, true)
	return ctx
}

// While memory is short large bodies are refused before they are read, and small ones, /healthz and reads are not; when
// it is over everything is taken again.
func TestMemoryPressure(t *testing.T) {
	var live atomic.Int64 // per mille
	door, err := admission.New(admission.Options{LookEvery: 1, Usage: func() admission.Usage { return admission.Usage{Live: float64(live.Load()) / 1000} }})
	if err != nil {
		t.Fatal(err)
	}
	s, url := serve(t, Options{Backend: newFake("orders"), Door: door})
	post := func(n int) int {
		t.Helper()
		c := connect(t, url)
		defer c.nc.Close()
		_, _ = fmt.Fprintf(c.nc, "POST /v1/topics/orders/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%q", n+2, strings.Repeat("x", n))
		res, body := answer(t, c.r, "POST")
		if res.StatusCode == 503 && (res.Header.Get("Retry-After") == "" || !strings.Contains(body, "memory is short")) {
			t.Errorf("503 says %s", body)
		}
		return res.StatusCode
	}
	for _, x := range []struct{ live, tiny, middling, large int }{{500, 202, 202, 202}, {900, 202, 202, 503}, {970, 202, 503, 503}, {700, 202, 202, 202}} {
		live.Store(int64(x.live))
		if a, b, c := post(100), post(10_000), post(300_000); a != x.tiny || b != x.middling || c != x.large {
			t.Errorf("%d ‰ live: %d %d %d", x.live, a, b, c)
		}
		if res, _ := do(t, "GET", url+"/healthz", ""); res.StatusCode != 200 {
			t.Errorf("%d ‰ live: /healthz is %d", x.live, res.StatusCode)
		}
	}
	if n := refused(s, "memory"); n != 3 {
		t.Errorf("%d refusals are counted", n)
	}
}

// held is a fake whose Publish waits.
type held struct {
	*fake
	free chan struct{}
	in   atomic.Int32
}

func (h *held) Publish(ctx context.Context, topic string, evs []event.Event, pos []event.Position) error {
	if h.in.Add(1); len(evs[0].Data) > 20_000 {
		<-h.free
	}
	return h.fake.Publish(ctx, topic, evs, pos)
}

// Large bodies share a budget, from before the first byte of theirs is read until they are answered.
func TestBodiesShareABudget(t *testing.T) {
	h := &held{fake: newFake("orders"), free: make(chan struct{})}
	s, url := serve(t, Options{Backend: h, BodyBytes: 1 << 20, Limits: event.Limits{Body: 1 << 20}})
	const head = "POST /v1/topics/orders/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
	body := `"` + strings.Repeat("x", 500_000) + `"`
	var two []*lone
	for range 2 {
		c := connect(t, url)
		_, _ = fmt.Fprintf(c.nc, "%sContent-Length: %d\r\n\r\n%s", head, len(body), body)
		two = append(two, c)
	}
	eventually(t, "two are being answered", func() bool { return h.in.Load() == 2 })
	if used, _ := s.BodiesInFlight(); used != int64(2*len(body)) {
		t.Errorf("%d bytes in flight", used)
	}
	third := connect(t, url) // refused though nothing of its body was sent
	_, _ = fmt.Fprintf(third.nc, "%sContent-Length: %d\r\n\r\n", head, len(body))
	if res, text := answer(t, third.r, "POST"); res.StatusCode != 503 || res.Header.Get("Retry-After") == "" || !strings.Contains(text, "large bodies") {
		t.Errorf("a third: %d %s", res.StatusCode, text)
	}
	chunked := connect(t, url) // its length is not known before
	go func() {
		_, _ = io.WriteString(chunked.nc, head+"Transfer-Encoding: chunked\r\n\r\n")
		for range 100 {
			if _, err := fmt.Fprintf(chunked.nc, "2710\r\n%s\r\n", strings.Repeat("x", 10_000)); err != nil {
				return
			}
		}
	}()
	if res, text := answer(t, chunked.r, "POST"); res.StatusCode != 503 || !strings.Contains(text, "large bodies") {
		t.Errorf("a chunked one: %d %s", res.StatusCode, text)
	}
	if res, _ := do(t, "POST", url+"/v1/topics/orders/events", "{}", "Content-Type", "application/json"); res.StatusCode != 202 {
		t.Errorf("a small one: %d", res.StatusCode)
	}
	close(h.free)
	for _, c := range two {
		if res, text := answer(t, c.r, "POST"); res.StatusCode != 202 {
			t.Errorf("%d %s", res.StatusCode, text)
		}
	}
	gone := connect(t, url) // a client that leaves in the middle gives back what it had
	_, _ = fmt.Fprintf(gone.nc, "%sContent-Length: %d\r\n\r\n\"xx", head, len(body))
	eventually(t, "reserved", func() bool { used, _ := s.BodiesInFlight(); return used == int64(len(body)) })
	gone.nc.Close()
	eventually(t, "given back", func() bool { used, _ := s.BodiesInFlight(); return used == 0 })
	if refused(s, "bodies") != 2 {
		t.Errorf("%d refusals are counted", refused(s, "bodies"))
	}
}

// Whoever shows nothing takes no room from those who do: calls that read nothing take no body, and what strangers send to
// be looked at has half of the room.
func TestStrangersLeaveRoomForBodies(t *testing.T) {
	free := make(chan struct{})
	in := atomic.Int32{}
	source := Mount{Method: "POST", Path: "/v1/sources/{name}", In: Anyone, AnyQuery: true, Serve: func(ctx *fasthttp.RequestCtx, _ func(func(context.Context, net.Conn, []byte)) error) error {
		in.Add(1)
		<-free
		return nil
	}}
	s, url := serve(t, Options{Backend: newFake("orders"), Guard: policyOf(t, "version: 1\n"), BodyBytes: 1 << 20, Limits: event.Limits{Body: 1 << 20}, Mounts: []Mount{source}})
	for _, what := range []string{"OPTIONS *", "OPTIONS /v1/topics/orders/events", "GET /healthz", "GET /readyz"} {
		for _, body := range []string{"Content-Length: 1000000", "Transfer-Encoding: chunked"} {
			c := connect(t, url) // nothing of the body is sent
			_, _ = fmt.Fprintf(c.nc, "%s HTTP/1.1\r\nHost: localhost\r\n%s\r\n\r\n", what, body)
			if res, text := answer(t, c.r, "POST"); res.StatusCode != 413 {
				t.Errorf("%s with %s: %d %s", what, body, res.StatusCode, text)
			}
		}
	}
	if used, _ := s.BodiesInFlight(); used != 0 {
		t.Errorf("%d bytes in flight", used)
	}
	hook := func(n int) *lone {
		c := connect(t, url)
		_, _ = fmt.Fprintf(c.nc, "POST /v1/sources/nope HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s", n, strings.Repeat("x", min(n, 400_000)))
		return c
	}
	first := hook(400_000)
	eventually(t, "one is being answered", func() bool { return in.Load() == 1 })
	second, large := hook(400_000), hook(600_000)
	if res, text := answer(t, second.r, "POST"); res.StatusCode != 503 {
		t.Errorf("past the strangers' half: %d %s", res.StatusCode, text)
	}
	if res, text := answer(t, large.r, "POST"); res.StatusCode != 413 {
		t.Errorf("more than the strangers' half: %d %s", res.StatusCode, text)
	}
	if res, text := do(t, "POST", url+"/v1/topics/orders/events", `"`+strings.Repeat("x", 600_000)+`"`, "Content-Type", "application/json", "Authorization", "Bearer secret"); res.StatusCode != 202 {
		t.Errorf("of somebody known: %d %s", res.StatusCode, text)
	}
	close(free)
	answer(t, first.r, "POST")
	eventually(t, "given back", func() bool { used, strangers, _ := s.door.InFlight(); return used == 0 && strangers == 0 })
}

// A connection that stays open keeps no large buffer: ten thousand of them would keep gigabytes.
func TestBuffersOfBodiesAreGivenBack(t *testing.T) {
	s, err := New(Options{Backend: newFake()})
	if err != nil {
		t.Fatal(err)
	}
	ctx := requestCtx(&conn{s: s, on: s.nowhere})
	ctx.Request.SetBody(make([]byte, 1<<20))
	if s.finish(ctx); len(ctx.Request.Body()) != 0 {
		t.Errorf("%d bytes are kept", len(ctx.Request.Body()))
	}
}
