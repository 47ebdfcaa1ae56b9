package httpapi

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
	"go.uber.org/goleak"
)

// TestShutdown holds that a drain ends in time: with half-sent requests, an open stream, a long poll and a publish that
// the store is still at, Shutdown ends within its grace; what is under way finishes, and streams end with
// a cursor from which the client resumes.
func TestShutdown(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreTopFunction("github.com/valyala/fasthttp.updateServerDate.func1"),
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"), goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"),
		goleak.IgnoreCurrent())
	f := newFake("orders", "slow")
	s, err := New(Options{Backend: f, HeaderTimeout: time.Hour, BodyTimeout: time.Hour, IdleTimeout: time.Hour, DrainGrace: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(context.Background(), ln) }()
	addr := ln.Addr().String()
	dial := func(send string) net.Conn {
		nc, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { nc.Close() })
		fmt.Fprint(nc, send)
		return nc
	}
	const head = "POST /v1/topics/orders/events HTTP/1.1\r\nHost: localhost\r\n"
	halfHead := dial("POST /v1/topics/ord")
	halfBody := dial(head + "Content-Length: 10\r\n\r\n123")
	halfLarge := dial(head + "Content-Length: 100000\r\n\r\n123")
	idle := dial("")
	stream := dial("GET /v1/topics/orders/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
	longPoll := dial("GET /v1/topics/orders/events?wait=30s HTTP/1.1\r\nHost: localhost\r\n\r\n")
	f.until(t, "stream and long poll", func() bool { return f.open == 2 })
	f.mu.Lock()
	f.block = make(chan struct{})
	f.mu.Unlock()
	publishing := dial("POST /v1/topics/slow/events HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n1")
	f.until(t, "publish", func() bool { return f.blocked == 1 })

	down := make(chan error, 1)
	began := time.Now()
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		down <- s.Shutdown(ctx)
	}()
	read := func(nc net.Conn) string {
		_ = nc.SetReadDeadline(time.Now().Add(time.Minute))
		b, err := io.ReadAll(nc)
		if err != nil {
			t.Errorf("%v after %q", err, b)
		}
		return string(b)
	}
	if got := read(stream); !strings.Contains(got, "shutting down") || !strings.HasSuffix(got, "id: c0\n\n") {
		t.Errorf("the stream ended with %q", got)
	}
	if got := read(longPoll); !strings.HasPrefix(got, "HTTP/1.1 200") || !strings.Contains(got, `{"events":[],"next":"c0"}`) {
		t.Errorf("the long poll got %q", got)
	}
	for name, nc := range map[string]net.Conn{"half a head": halfHead, "half a body": halfBody, "half a large body": halfLarge} {
		if got := read(nc); !strings.HasPrefix(got, "HTTP/1.1 503") || !strings.Contains(got, "Retry-After: ") || !strings.Contains(got, "Connection: close") {
			t.Errorf("%s got %q", name, got)
		}
	}
	read(idle)
	if _, err := net.Dial("tcp", addr); err == nil {
		t.Error("connections are still accepted")
	}
	select {
	case err := <-down:
		t.Fatalf("Shutdown did not wait for the publish: %v", err)
	default:
	}
	close(f.block)
	if got := read(publishing); !strings.HasPrefix(got, "HTTP/1.1 202") {
		t.Errorf("the publish got %q", got)
	}
	if err := <-down; err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("Shutdown took %s", took)
	}
	if f.open != 0 {
		t.Errorf("%d readers left open", f.open)
	}
}

// TestDraining asks a server that is shutting down on a connection that is still open.
func TestDraining(t *testing.T) {
	f := newFake("orders")
	s, base := serve(t, Options{Backend: f, DrainGrace: 2 * time.Second})
	nc, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	fmt.Fprint(nc, "POST /v1/topics/orders/events HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n") // the blank line is to come
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(time.Millisecond) {
		s.mu.Lock()
		n := len(s.conns)
		s.mu.Unlock()
		if n == 1 {
			break
		}
	}
	down := make(chan error, 1)
	go func() { down <- s.Shutdown(context.Background()) }()
	for !s.draining() {
		time.Sleep(time.Millisecond)
	}
	fmt.Fprint(nc, "\r\n1")
	resp, err := http.ReadResponse(bufio.NewReader(nc), nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" || !resp.Close {
		t.Errorf("%d %v", resp.StatusCode, resp.Header)
	}
	if err := <-down; err != nil {
		t.Error(err)
	}
	if n := len(stored(f, "orders")); n != 0 {
		t.Errorf("%d events stored", n)
	}
}

// TestShutdownGivesUp lets its context end while the store hangs.
func TestShutdownGivesUp(t *testing.T) {
	f := newFake("orders")
	f.block = make(chan struct{})
	s, err := New(Options{Backend: f, DrainGrace: 10 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(context.Background(), ln) }()
	nc, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	fmt.Fprint(nc, "POST /v1/topics/orders/events HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n1")
	f.until(t, "publish", func() bool { return f.blocked == 1 })
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := s.Shutdown(ctx); err == nil {
		t.Error("a shutdown that cut a request off returned nil")
	}
	<-served
	close(f.block)
}

func TestEngineErrorsBecomeStatuses(t *testing.T) {
	f := newFake("orders")
	_, base := serve(t, Options{Backend: f})
	for _, tt := range []struct {
		err    error
		status int
	}{
		{event.ErrInvalid, 400}, {event.ErrDenied, 403}, {event.ErrNotFound, 404}, {event.ErrConflict, 409}, {event.ErrGone, 410},
		{event.ErrTooLarge, 413}, {event.ErrSchema, 422}, {event.ErrUnsupported, 501}, {event.ErrUnavailable, 503}, {event.ErrFull, 507},
		{io.ErrShortWrite, 500},
	} {
		f.mu.Lock()
		f.fail = fmt.Errorf("hidden reason: %w", tt.err)
		f.mu.Unlock()
		resp, body := do(t, "POST", base+orders, "1", "Content-Type", "application/json")
		if resp.StatusCode != tt.status || resp.Header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%v: %d %s", tt.err, resp.StatusCode, body)
		}
		if strings.Contains(body, "hidden reason") == (tt.status == 500) {
			t.Errorf("%v: %s", tt.err, body)
		}
		if (resp.Header.Get("Retry-After") != "") != (tt.status == 503) {
			t.Errorf("%v: Retry-After %q", tt.err, resp.Header.Get("Retry-After"))
		}
	}
	f.fail = &event.Faults{Is: event.ErrSchema, List: []event.Fault{{At: "events[3].data.total", Detail: "is \x1b[31ma string\u202e"}, {At: "x", Detail: "y"}}}
	_, body := do(t, "POST", base+orders, "1", "Content-Type", "application/json")
	like(t, body, `{"status":422,"errors":[{"at":"events[3].data.total","detail":"is \\x1b[31ma string\\u202e"},{"at":"x","detail":"y"}]}`)
	f.fail = nil
}
