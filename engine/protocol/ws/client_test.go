package ws

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	frames "github.com/gobwas/ws"
	"github.com/millrace/millrace/engine/event"
	"github.com/valyala/fasthttp"
)

// A fake is a backend of one topic, "orders", kept in memory, of which the subscription "workers" pulls.
type fake struct {
	mu      sync.Mutex
	recs    []event.Record
	grown   chan struct{}
	head    int // offsets below are gone
	leases  map[string]int
	done    map[int]bool
	attempt map[int]int
	nacked  []string
	open    int
	block   chan struct{} // publishing waits for it
	blocked int

	unpulled int
}

func newFake() *fake {
	return &fake{grown: make(chan struct{}), leases: map[string]int{}, done: map[int]bool{}, attempt: map[int]int{}}
}

func (f *fake) Publish(_ context.Context, topic string, evs []event.Event, pos []event.Position) error {
	if topic != "orders" {
		return event.Bad(event.ErrNotFound, "topic", fmt.Sprintf("%q is not there", topic))
	}
	f.mu.Lock()
	if block := f.block; block != nil {
		f.blocked++
		f.mu.Unlock()
		<-block
		f.mu.Lock()
	}
	defer f.mu.Unlock()
	for i := range evs {
		pos[i] = event.Position{Offset: uint64(len(f.recs))}
		if evs[i].ID == "" {
			evs[i].ID = "made-" + strconv.Itoa(len(f.recs))
		}
		evs[i].Source, evs[i].Type = "/topics/orders", "t"
		rec := event.Record(evs[i].AppendRecord(nil))
		rec.SetPlace(pos[i], 1)
		f.recs = append(f.recs, rec)
	}
	close(f.grown)
	f.grown = make(chan struct{})
	return nil
}

type fakeReader struct {
	f   *fake
	at  int
	odd bool // passes events at odd offsets
}

func (f *fake) OpenTopic(_ context.Context, topic string, start event.Start, filter string) (Reader, error) {
	if topic != "orders" {
		return nil, event.Bad(event.ErrNotFound, "topic", fmt.Sprintf("%q is not there", topic))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	r := &fakeReader{f: f, at: len(f.recs), odd: filter == "odd"}
	if start.At == event.AtCursor {
		n, err := strconv.Atoi(start.Cursor)
		if err != nil {
			return nil, event.Invalid("cursor", "is none")
		}
		r.at = n
	}
	f.open++
	return r, nil
}

func (f *fake) OpenSubscription(ctx context.Context, name string, start event.Start, filter string) (Reader, error) {
	switch name {
	case "out":
		return f.OpenTopic(ctx, "orders", start, filter)
	case "workers", "hook":
		return nil, event.Bad(event.ErrConflict, "subscription", "it does not stream")
	}
	return nil, event.Bad(event.ErrNotFound, "subscription", "there is none")
}

func (r *fakeReader) Next(ctx context.Context) (event.Record, error) {
	for {
		r.f.mu.Lock()
		grown := r.f.grown
		r.f.mu.Unlock()
		rec, ok, _, err := r.TryNext(ctx)
		if ok || err != nil {
			return rec, err
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (r *fakeReader) TryNext(context.Context) (event.Record, bool, bool, error) {
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	if r.at < r.f.head {
		return nil, false, false, event.Bad(event.ErrGone, "cursor", "the ring has overtaken it")
	}
	for r.at < len(r.f.recs) {
		if r.at++; !r.odd || r.at%2 == 0 {
			return r.f.recs[r.at-1], true, false, nil
		}
	}
	return nil, false, false, nil
}

func (r *fakeReader) Cursor() string { return strconv.Itoa(r.at) }

func (r *fakeReader) Close() {
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	r.f.open--
}

func (f *fake) Pull(ctx context.Context, sub string, most int, wait time.Duration) ([]event.Lease, error) {
	if sub != "workers" {
		return nil, event.Bad(event.ErrConflict, "subscription", fmt.Sprintf("%q delivers by webhook", sub))
	}
	end := time.NewTimer(wait)
	defer end.Stop()
	for {
		f.mu.Lock()
		grown := f.grown
		var out []event.Lease
		for i := 0; i < len(f.recs) && len(out) < most; i++ {
			if f.done[i] {
				continue
			}
			f.done[i] = true
			f.attempt[i]++
			id := fmt.Sprintf("L%d.%d", i, f.attempt[i])
			f.leases[id] = i
			out = append(out, event.Lease{ID: id, Attempt: f.attempt[i], Deadline: time.Now().Add(time.Minute), Event: f.recs[i]})
		}
		f.mu.Unlock()
		if len(out) > 0 || wait == 0 {
			return out, nil
		}
		select {
		case <-grown:
		case <-end.C:
			return nil, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (f *fake) Settle(_ context.Context, _ string, leases []string, how event.Settling) (lost []event.Lost, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, id := range leases {
		i, ok := f.leases[id]
		switch {
		case !ok:
			lost = append(lost, event.Lost{Lease: id, Why: event.LostSettled})
			continue
		case how.Verb == event.Nack:
			f.done[i] = false
			f.nacked = append(f.nacked, id)
			fallthrough
		case how.Verb == event.Ack:
			delete(f.leases, id)
		}
	}
	close(f.grown)
	f.grown = make(chan struct{})
	return lost, nil
}

func (f *fake) Unpull(_ string, leases []string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, id := range leases {
		f.done[f.leases[id]] = false
		f.attempt[f.leases[id]]--
		delete(f.leases, id)
	}
	f.unpulled += len(leases)
	return nil
}

// A host is a listener with a server mounted, which does as httpapi does: the connection is served by a goroutine of its own.
type host struct {
	*Server
	f     *fake
	addr  string
	drain context.CancelFunc
	live  *sync.WaitGroup
}

func start(t *testing.T, o Options) *host {
	t.Helper()
	f := newFake()
	o.Backend = f
	o.Problem = func(err error) ([]byte, bool) {
		doc, _ := json.Marshal(map[string]any{"status": 400, "detail": err.Error()})
		return doc, false
	}
	o.Render = func(dst []byte, rec event.Record) []byte { return rec.AppendStructured(dst) }
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	draining, drain := context.WithCancel(context.Background())
	h := &host{Server: s, f: f, drain: drain, live: &sync.WaitGroup{}}
	fh := &fasthttp.Server{KeepHijackedConns: true, Handler: func(ctx *fasthttp.RequestCtx) {
		err := s.Serve(ctx, func(serve func(context.Context, net.Conn, []byte)) error {
			nc := ctx.Conn()
			_ = nc.(*net.TCPConn).SetWriteBuffer(256 << 10)
			ctx.HijackSetNoResponse(true)
			ctx.Hijack(func(net.Conn) {
				h.live.Go(func() {
					defer nc.Close()
					serve(draining, nc, nil)
				})
			})
			return nil
		})
		if err != nil {
			ctx.SetStatusCode(400)
			ctx.SetBodyString(err.Error())
		}
	}}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h.addr = ln.Addr().String()
	done := make(chan error, 1)
	go func() { done <- fh.Serve(ln) }()
	t.Cleanup(func() {
		drain()
		h.live.Wait()
		if err := fh.Shutdown(); err != nil {
			t.Error(err)
		}
		<-done
	})
	return h
}

// A client is a WebSocket client that sends what it is told, right or wrong.
type client struct {
	t  *testing.T
	nc net.Conn
	r  *bufio.Reader
}

func (h *host) dial(t *testing.T, change ...func(net.Conn)) *client {
	t.Helper()
	nc, err := net.Dial("tcp", h.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	for _, c := range change {
		c(nc)
	}
	fmt.Fprint(nc, "GET /v1/ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\n"+
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n")
	c := &client{t, nc, bufio.NewReaderSize(nc, 1<<10)}
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	// The sample of RFC 6455, 1.3.
	if resp.StatusCode != 101 || resp.Header.Get("Sec-WebSocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" || resp.Header.Get("Sec-WebSocket-Extensions") != "" {
		t.Fatal(resp)
	}
	return c
}

// raw sends bytes as they are.
func (c *client) raw(b []byte) {
	if _, err := c.nc.Write(b); err != nil {
		c.t.Logf("write: %v", err)
	}
}

func (c *client) frame(op frames.OpCode, fin bool, payload string) {
	c.raw(frames.MustCompileFrame(frames.MaskFrame(frames.NewFrame(op, fin, []byte(payload)))))
}

func (c *client) say(format string, args ...any) {
	c.frame(frames.OpText, true, fmt.Sprintf(format, args...))
}

// message is any that the server sends.
type message struct {
	Op, Ref, Cursor, Position, Lease, Detail string
	Attempt, Credit, Status                  int
	Lost, Reasons                            []string
	Event                                    struct {
		ID   string
		Data json.RawMessage
	}
	Events []struct{ ID, Position string }
}

// hear returns the next message, answering pings.
func (c *client) hear() message {
	c.t.Helper()
	m, code, err := c.next()
	if err != nil || code != 0 {
		c.t.Fatalf("heard close %d, %v", code, err)
	}
	return m
}

// next returns the next message, or the code with which the server closed.
func (c *client) next() (m message, code frames.StatusCode, err error) {
	_ = c.nc.SetReadDeadline(time.Now().Add(20 * time.Second))
	for {
		f, err := frames.ReadFrame(c.r)
		if err != nil {
			return m, 0, err
		}
		if f.Header.Masked {
			return m, 0, errors.New("the server masked a frame")
		}
		switch f.Header.OpCode {
		case frames.OpPing:
			c.frame(frames.OpPong, true, string(f.Payload))
		case frames.OpPong:
			return message{Op: "pong", Detail: string(f.Payload)}, 0, nil
		case frames.OpClose:
			code, reason := frames.ParseCloseFrameData(f.Payload)
			return message{Detail: reason}, code, nil
		default:
			return m, 0, json.Unmarshal(f.Payload, &m)
		}
	}
}

// want hears one message and checks its op and ref.
func (c *client) want(op, ref string) message {
	c.t.Helper()
	m := c.hear()
	if m.Op != op || m.Ref != ref {
		c.t.Fatalf("heard %+v; want %s %q", m, op, ref)
	}
	return m
}

// closes waits for the server's close frame, skipping messages.
func (c *client) closes(code frames.StatusCode, reason string) {
	c.t.Helper()
	for {
		m, got, err := c.next()
		if err != nil {
			c.t.Fatalf("%v before a close frame with %d", err, code)
		}
		if got != 0 {
			if got != code || !strings.Contains(m.Detail, reason) {
				c.t.Errorf("closed with %d %q; want %d %q", got, m.Detail, code, reason)
			}
			return
		}
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never: " + what)
		}
	}
}
