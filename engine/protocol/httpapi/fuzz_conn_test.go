package httpapi

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// A saidConn is a client that says what it has to say at once and then goes; what it is answered is kept.
type saidConn struct {
	net.Conn
	in     io.Reader
	mu     sync.Mutex
	out    bytes.Buffer
	closed chan struct{}
	once   sync.Once
}

func (c *saidConn) Read(p []byte) (int, error) { return c.in.Read(p) }
func (c *saidConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.Write(p)
}
func (c *saidConn) Close() error                     { c.once.Do(func() { close(c.closed) }); return nil }
func (c *saidConn) LocalAddr() net.Addr              { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }
func (c *saidConn) RemoteAddr() net.Addr             { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 2} }
func (c *saidConn) SetDeadline(time.Time) error      { return nil }
func (c *saidConn) SetReadDeadline(time.Time) error  { return nil }
func (c *saidConn) SetWriteDeadline(time.Time) error { return nil }

// failures is a log that keeps what a server says of its own failures: panics, and errors that it has no answer for.
type failures struct {
	mu   sync.Mutex
	said []string
}

func (f *failures) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelError }
func (f *failures) WithAttrs([]slog.Attr) slog.Handler           { return f }
func (f *failures) WithGroup(string) slog.Handler                { return f }
func (f *failures) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	b.WriteString(r.Message)
	r.Attrs(func(a slog.Attr) bool { b.WriteString(" " + a.String()); return true })
	f.mu.Lock()
	defer f.mu.Unlock()
	f.said = append(f.said, b.String())
	return nil
}

// heard is a server for fuzzers, which waits for nothing: its answer is all that a connection was told that said these
// bytes.
func heard(f *testing.F, o Options) func(t *testing.T, b *fake, said []byte) []byte {
	log := &failures{}
	o.Log, o.Backend, o.Limits = slog.New(log), newFake(), event.Limits{Body: 1 << 16, Events: 64}
	s, err := New(o)
	if err != nil {
		f.Fatal(err)
	}
	s.stopWait() // as if nothing ever came in time
	return func(t *testing.T, b *fake, said []byte) []byte {
		s.o.Backend = b
		raw := &saidConn{in: bytes.NewReader(said), closed: make(chan struct{})}
		nc := s.nowhere.newConn(raw)
		s.enter(nc)
		_ = s.fh.ServeConn(nc)
		if nc.se == nil { // else whoever took it over closes it
			_ = nc.Close()
		}
		<-raw.closed
		if n, _ := s.BodiesInFlight(); n != 0 {
			t.Fatalf("%d bytes of bodies are still reserved", n)
		}
		log.mu.Lock()
		defer log.mu.Unlock()
		if len(log.said) > 0 {
			t.Fatal(log.said)
		}
		raw.mu.Lock()
		defer raw.mu.Unlock()
		return raw.out.Bytes()
	}
}

// FuzzConnection says anything on a connection. Everything that is answered is HTTP to net/http, nothing fails inside,
// and whoever shows nothing that the router knows gets no further than the calls that are anybody's.
func FuzzConnection(f *testing.F) {
	answered := strangers(f)
	f.Fuzz(func(t *testing.T, said []byte) {
		answered(t, said, bytes.Contains(said, []byte("/healthz")) || bytes.Contains(said, []byte("/readyz")))
	})
}

// FuzzCall makes each call of the API with any parameters, headers and body, to the same ends as FuzzConnection.
func FuzzCall(f *testing.F) {
	answered := strangers(f)
	all := routes()
	f.Fuzz(func(t *testing.T, call, second, query, headers string, body []byte) {
		i := slices.IndexFunc(all, func(r *route) bool { return r.method+" "+r.path == call })
		if i < 0 { // what became of its name names another
			i = int(crc32.ChecksumIEEE([]byte(call)) % uint32(len(all)))
		}
		r := all[i]
		path := strings.NewReplacer("/functions/{name}", "/functions/f", "{topic}", "orders", "{name}", "orders", "{position}", url.PathEscape(second), "{id}", url.PathEscape(second)).Replace(r.path)
		if query != "" {
			path += "?" + query
		}
		if strings.ContainsAny(path, " \r\n") || strings.Contains(headers, "\r\n\r\n") {
			return // which is FuzzConnection's
		}
		said := fmt.Appendf(nil, "%s %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n", r.method, path, len(body))
		if headers != "" {
			said = append(append(said, headers...), "\r\n"...)
		}
		answered(t, append(append(said, "\r\n"...), body...), r.in == Anyone)
	})
}

// strangers is a router that anybody may use, and one whose callers are strangers to it: both answer what is said.
func strangers(f *testing.F) func(t *testing.T, said []byte, anybodys bool) {
	open, shut := heard(f, Options{}), heard(f, Options{Guard: tokenGuard(f, "the fuzzer does not know this token")})
	world := func() *fake {
		b := newFake("orders", "orders.out")
		b.invoking = &event.Invocation{}
		evs := []event.Event{{ID: "1", ClientID: true}, {ID: "2", Type: "x", ClientID: true}}
		for topic := range b.topics {
			if err := b.Publish(context.Background(), topic, evs, make([]event.Position, len(evs))); err != nil {
				f.Fatal(err)
			}
		}
		b.docs["subscriptions"]["orders"], b.docs["functions"]["f"] = []byte(`{"name":"orders"}`), []byte(`{"name":"f"}`)
		return b
	}
	return func(t *testing.T, said []byte, anybodys bool) {
		b := world()
		answersTo(t, said, open(t, b, said), func(*http.Response) {})
		if b.open != 0 {
			t.Fatalf("%d readers are open", b.open)
		}
		b = world()
		answersTo(t, said, shut(t, b, said), func(resp *http.Response) {
			if resp.StatusCode < 300 && resp.Header.Get("Allow") == "" && !anybodys {
				t.Fatalf("a stranger is answered %d", resp.StatusCode)
			}
		})
		if n := len(b.topics["orders"].recs); n != 2 || len(b.leases)+len(b.seeks)+len(b.paused) != 0 || len(b.docs["subscriptions"]) != 1 {
			t.Fatalf("a stranger changed something: %d events, %v, %v, %v", n, b.leases, b.seeks, b.paused)
		}
	}
}

// answersTo takes apart what was answered to said.
func answersTo(t *testing.T, said, answered []byte, each func(*http.Response)) {
	r := bufio.NewReader(bytes.NewReader(answered))
	heads := bytes.Count(bytes.ToUpper(said), []byte("HEAD "))
	for n := 0; ; n++ {
		if _, err := r.Peek(1); err == io.EOF {
			return
		}
		// That an answer to HEAD has no body is known from the request alone; where there may be one, answers are told
		// apart by their status lines.
		var req *http.Request
		if heads > 0 {
			req = &http.Request{Method: "HEAD"}
		}
		resp, err := http.ReadResponse(r, req)
		if err != nil {
			if heads > 0 { // the body of an answer to another method
				return
			}
			t.Fatalf("answer %d is no HTTP: %v\n%q", n, err, answered)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Fatalf("answer %d is cut off: %v\n%q", n, err, answered)
		}
		if resp.StatusCode == 500 {
			t.Fatalf("answer %d is 500", n)
		}
		each(resp)
	}
}
