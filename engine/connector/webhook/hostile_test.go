package webhook

import (
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/egress"
	"github.com/millrace/millrace/engine/event"
)

// take reads one request off c.
func take(br *bufio.Reader) bool {
	r, err := http.ReadRequest(br)
	if err != nil {
		return false
	}
	_, err = io.Copy(io.Discard, r.Body)
	return err == nil
}

// endless writes head, and body for as long as somebody takes it.
func endless(c net.Conn, head, body string) {
	if _, err := io.WriteString(c, head); err != nil {
		return
	}
	for {
		if _, err := io.WriteString(c, body); err != nil {
			return
		}
	}
}

func drip(c net.Conn, s string) {
	for i := 0; i < len(s); i++ {
		if _, err := c.Write([]byte{s[i]}); err != nil {
			return
		}
		time.Sleep(20 * time.Millisecond) // a byte at a time is the attack itself
	}
}

// What the receiver does, and what comes of it within a second or so and bounded memory.
func TestHostileReceivers(t *testing.T) {
	mega := strings.Repeat("x", 1<<20)
	for name, c := range map[string]struct {
		f    func(c net.Conn)
		want string // in the error; "" for success
		code int
	}{
		"silent":                {func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }, "no answer within 300ms (timeout)", 0},
		"closes at once":        {func(c net.Conn) {}, "closed the connection without an answer", 0},
		"closes in the headers": {func(c net.Conn) { _, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Le") }, "reading response headers: EOF", 0},
		"drips headers":         {func(c net.Conn) { drip(c, "HTTP/1.1 200 OK\r\nX-Slow: "+mega[:2000]) }, "no answer within 300ms (timeout)", 0},
		"drips the body of 200": {dripBody, "", 0},
		"drips the body of 500": {func(c net.Conn) {
			_, _ = io.WriteString(c, "HTTP/1.1 500 X\r\nContent-Length: 9999\r\n\r\nbro")
			drip(c, mega[:2000])
		}, `500 Internal Server Error; it says "bro`, 500},
		"huge body of 200": {func(c net.Conn) { endless(c, "HTTP/1.1 200 OK\r\nContent-Length: 10737418240\r\n\r\n", mega) }, "", 0},
		"huge body of 503": {func(c net.Conn) { endless(c, "HTTP/1.1 503 X\r\nContent-Length: 10737418240\r\n\r\n", mega) }, "503 Service Unavailable", 503},
		"endless chunks": {func(c net.Conn) {
			endless(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "100000\r\n"+mega+"\r\n")
		}, "", 0},
		"endless without size": {func(c net.Conn) { endless(c, "HTTP/1.1 500 X\r\n\r\n", mega) }, "500 Internal", 500},
		"endless headers":      {func(c net.Conn) { endless(c, "HTTP/1.1 200 OK\r\n", "X-Pad: "+mega[:1000]+"\r\n") }, "", 0},
		"endless headers, 503": {func(c net.Conn) { endless(c, "HTTP/1.1 503 X\r\n", "X-Pad: "+mega[:1000]+"\r\n") }, "503", 503},
		"endless first line":   {func(c net.Conn) { endless(c, "", mega) }, "first line is not that of HTTP", 0},
		"endless 100 Continue": {func(c net.Conn) { endless(c, "", "HTTP/1.1 100 Continue\r\n\r\n") }, "interim answers", 0},
		"not HTTP":             {func(c net.Conn) { _, _ = io.WriteString(c, "SSH-2.0-OpenSSH_9.6\r\n\r\n") }, "SSH-2.0", 0},
		"closes in the body":   {func(c net.Conn) { _, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc") }, "", 0},
		"escapes":              {func(c net.Conn) { _, _ = io.WriteString(c, "HTTP/1.1 400 X\r\nContent-Length: 6\r\n\r\n\x1b[2J\r\n") }, `400 Bad Request; it says "\x1b[2J\r\n"`, 400},
		"switches protocols":   {func(c net.Conn) { _, _ = io.WriteString(c, "HTTP/1.1 101 X\r\nUpgrade: x\r\n\r\n") }, "101 Switching", 101},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := serve(t, func(_ int, conn net.Conn) {
				if take(bufio.NewReader(conn)) {
					c.f(conn)
				}
			})
			s := open(t, Options{URL: url, Timeout: 300 * time.Millisecond})
			start := time.Now()
			err := s.Deliver(context.Background(), delivery("i", order))
			if took := time.Since(start); took > 20*time.Second {
				t.Errorf("took %s", took)
			}
			for _, l := range append(s.bare, s.live...) {
				if n := cap(l.answer) + l.br.Size(); n > 64<<10 {
					t.Errorf("%d bytes of the answer are kept", n)
				}
			}
			if c.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			var r *event.RetryAfter
			if !errors.As(err, &r) || !strings.Contains(err.Error(), c.want) || r.Code != c.code {
				t.Fatalf("error %v, want %q with code %d", err, c.want, c.code)
			}
			if len(err.Error()) > 1000 || strings.Contains(err.Error(), "topsecret") || strings.ContainsAny(err.Error(), "\x1b\r") {
				t.Errorf("error %q is too long, shows the query or has control characters", err)
			}
		})
	}
}

func dripBody(c net.Conn) {
	_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n")
	for {
		if _, err := c.Write([]byte("x")); err != nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// A bomb is never unpacked: the router asks for no compression and undoes none.
func TestGzipBomb(t *testing.T) {
	var sent atomic.Int64
	r := newReceiver(t, func(w http.ResponseWriter, req *http.Request) {
		if req.Header.Get("Accept-Encoding") != "" {
			t.Error("it asks for compression")
		}
		w.Header().Set("Content-Encoding", "gzip")
		w.WriteHeader(500)
		z := gzip.NewWriter(w)
		zeros := make([]byte, 1<<20)
		for range 64 {
			n, err := z.Write(zeros)
			sent.Add(int64(n))
			if err != nil {
				return
			}
		}
		z.Close()
	})
	s := open(t, Options{URL: r.URL, MaxConns: 4})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	var r2 *event.RetryAfter
	if err := s.Deliver(context.Background(), delivery("i", order)); !errors.As(err, &r2) || r2.Code != 500 {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if grew := after.TotalAlloc - before.TotalAlloc; grew > 8<<20 {
		t.Errorf("allocated %d bytes", grew)
	}
	l := append(s.bare, s.live...)[0]
	if n := cap(l.answer) + cap(l.buf); n > keepBuffer {
		t.Errorf("the lane keeps %d bytes", n)
	}
}

// The receiver closed the connection while it was idle: the delivery goes out once more, on a new one.
func TestStaleConnection(t *testing.T) {
	closed := make(chan struct{}, 8)
	url := serve(t, func(n int, c net.Conn) {
		if take(bufio.NewReader(c)) {
			_, _ = io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
		}
		c.Close()
		closed <- struct{}{}
	})
	s := open(t, Options{URL: url})
	for range 4 {
		if err := s.Deliver(context.Background(), delivery("i", order)); err != nil {
			t.Fatal(err)
		}
		<-closed
	}
}

// A request that may have been worked on is not sent twice by itself: not after part of an answer, not
// after a timeout, not on a fresh connection.
func TestNoBlindResend(t *testing.T) {
	for name, answer := range map[string]string{"part of an answer": "HTTP/1.1 2", "interim": "HTTP/1.1 100 Continue\r\n\r\n", "none": "wait"} {
		t.Run(name, func(t *testing.T) {
			var requests atomic.Int64
			url := serve(t, func(_ int, c net.Conn) {
				br := bufio.NewReader(c)
				for take(br) {
					if requests.Add(1) == 1 {
						_, _ = io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
						continue
					}
					if answer == "wait" {
						_, _ = br.Peek(1)
					} else {
						_, _ = io.WriteString(c, answer)
					}
					return
				}
			})
			s := open(t, Options{URL: url, Timeout: 200 * time.Millisecond})
			if err := s.Deliver(context.Background(), delivery("1", order)); err != nil {
				t.Fatal(err)
			}
			if err := s.Deliver(context.Background(), delivery("2", order)); err == nil {
				t.Fatal("no error")
			}
			if n := requests.Load(); n != 2 {
				t.Errorf("%d requests, want 2", n)
			}
		})
	}
}

// A receiver that pushes bytes beyond its answer does not get them read as the next one's.
func TestNoAnswerAhead(t *testing.T) {
	url := serve(t, func(n int, c net.Conn) {
		br := bufio.NewReader(c)
		for take(br) {
			_, _ = io.WriteString(c, "HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	})
	s := open(t, Options{URL: url})
	for range 3 {
		if err := s.Deliver(context.Background(), delivery("i", order)); event.Code(err) != 500 {
			t.Fatal(err)
		}
	}
}

func TestStatuses(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		code  int
		after string
		wait  time.Duration
	}{
		"200": {code: 200}, "201": {code: 201}, "202": {code: 202}, "204": {code: 204}, "299": {code: 299},
		"301": {code: 301}, "307": {code: 307}, "304": {code: 304}, "400": {code: 400}, "404": {code: 404}, "408": {code: 408}, "410": {code: 410},
		"429":             {code: 429, after: "120", wait: 2 * time.Minute},
		"503 date":        {code: 503, after: "Sun, 01 Mar 2026 12:00:30 GMT", wait: 30 * time.Second},
		"503 past":        {code: 503, after: "Sun, 01 Mar 2020 12:00:30 GMT"},
		"503 far":         {code: 503, after: "Sun, 01 Mar 2099 12:00:30 GMT", wait: 24 * time.Hour},
		"503 many":        {code: 503, after: "99999999999999999999999999", wait: 24 * time.Hour},
		"503 a day and 1": {code: 503, after: "86401", wait: 24 * time.Hour},
		"503 negative":    {code: 503, after: "-5"},
		"503 words":       {code: 503, after: "soon"},
		"599":             {code: 599},
	} {
		t.Run(name, func(t *testing.T) {
			hits := 0
			r := newReceiver(t, func(w http.ResponseWriter, _ *http.Request) {
				hits++
				if c.after != "" {
					w.Header().Set("Retry-After", c.after)
				}
				w.Header().Set("Location", "/elsewhere?token=topsecret")
				w.WriteHeader(c.code)
			})
			s := open(t, Options{URL: r.URL, Now: func() time.Time { return now }})
			err := s.Deliver(context.Background(), delivery("i", order))
			if hits != 1 {
				t.Errorf("%d requests", hits)
			}
			if c.code < 300 {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || event.Code(err) != c.code || strings.Contains(err.Error(), "topsecret") {
				t.Fatalf("error %v with code %d, want %d", err, event.Code(err), c.code)
			}
			if event.IsDisable(err) != (c.code == 410) {
				t.Errorf("disables: %v", event.IsDisable(err))
			}
			var ra *event.RetryAfter
			if c.code != 410 && (!errors.As(err, &ra) || ra.Wait != c.wait || event.IsPermanent(err)) {
				t.Errorf("%v: %+v, want a wait of %s", err, ra, c.wait)
			}
			if c.code/100 == 3 && !strings.Contains(err.Error(), "redirects are not followed") {
				t.Error(err)
			}
		})
	}
}

func TestTLSErrorsAreNamed(t *testing.T) {
	r := httptest.NewTLSServer(http.NotFoundHandler())
	defer r.Close()
	r.Config.ErrorLog = quiet()
	s := open(t, Options{URL: r.URL})
	err := s.Deliver(context.Background(), delivery("i", order))
	var ra *event.RetryAfter
	if !errors.As(err, &ra) || !strings.Contains(err.Error(), "TLS handshake: tls: failed to verify certificate") {
		t.Errorf("unknown authority: %v", err)
	}
	conf := r.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	conf.ServerName = "other.test"
	s = open(t, Options{URL: r.URL, TLSConfig: conf})
	if err := s.Deliver(context.Background(), delivery("i", order)); err == nil || !strings.Contains(err.Error(), "not other.test") {
		t.Errorf("other name: %v", err)
	}
	p := newReceiver(t, nil)
	s = open(t, Options{URL: strings.Replace(p.URL, "http:", "https:", 1)})
	if err := s.Deliver(context.Background(), delivery("i", order)); err == nil || !strings.Contains(err.Error(), "is it an http:// address?") {
		t.Errorf("plain HTTP: %v", err)
	}
}

func TestNetworkErrors(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + ln.Addr().String()
	ln.Close()
	guarded, err := egress.New(egress.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for want, o := range map[string]Options{
		"connection refused":      {URL: url},
		"--allow-private-targets": {URL: url, Dialer: guarded},
	} {
		s := open(t, o)
		var ra *event.RetryAfter
		if err := s.Deliver(context.Background(), delivery("i", order)); !errors.As(err, &ra) || ra.Code != 0 || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// MaxConns holds, and who waits for a place ends with its time.
func TestMaxConns(t *testing.T) {
	release := make(chan struct{})
	var now, most atomic.Int64
	r := newReceiver(t, func(http.ResponseWriter, *http.Request) {
		n := now.Add(1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		<-release
		now.Add(-1)
	})
	s := open(t, Options{URL: r.URL, MaxConns: 2})
	done := make(chan error, 3)
	for range 2 {
		go func() { done <- s.Deliver(context.Background(), delivery("i", order)) }()
	}
	for end := time.Now().Add(time.Minute); now.Load() < 2; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("two deliveries do not run at once")
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	if err := s.Deliver(ctx, delivery("i", order)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a third: %v", err)
	}
	close(release)
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if most.Load() != 2 {
		t.Errorf("%d at once", most.Load())
	}
}

func quiet() *log.Logger { return log.New(io.Discard, "", 0) }

// Once the status is there the outcome is: a body that drips on holds nobody until the timeout.
func TestSlowBodyDoesNotHold(t *testing.T) {
	for name, status := range map[string]string{"200": "200 OK", "500": "500 X"} {
		url := serve(t, func(_ int, c net.Conn) {
			if take(bufio.NewReader(c)) {
				_, _ = io.WriteString(c, "HTTP/1.1 "+status+"\r\nContent-Length: 10\r\n\r\nabc")
				_, _ = io.Copy(io.Discard, c)
			}
		})
		s := open(t, Options{URL: url, Timeout: time.Minute})
		start := time.Now()
		if err := s.Deliver(context.Background(), delivery("i", order)); (err == nil) != (name == "200") {
			t.Errorf("%s: %v", name, err)
		}
		if took := time.Since(start); took > 20*time.Second {
			t.Errorf("%s: took %s", name, took)
		}
	}
}

// overdue is a context whose deadline has passed and whose timer has not run yet.
type overdue struct{ context.Context }

func (overdue) Deadline() (time.Time, bool) { return time.Now().Add(-time.Millisecond), true }
func (overdue) Err() error                  { return nil }

// An end of the context is never taken for the receiver's timeout.
func TestContextDeadlineIsNotTheTimeout(t *testing.T) {
	s := open(t, Options{URL: "http://127.0.0.1:9/"})
	err := s.failed(overdue{context.Background()}, os.ErrDeadlineExceeded)
	var ra *event.RetryAfter
	if !errors.Is(err, context.DeadlineExceeded) || errors.As(err, &ra) {
		t.Errorf("%v", err)
	}
}

// Many sinks to one host share its cap although each keeps its connections alive.
func TestSinksShareTheCapOfAHost(t *testing.T) {
	r := &receiver{}
	r.Server = httptest.NewUnstartedServer(r.handler(nil))
	var conns, peak atomic.Int64
	r.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			peak.Store(max(peak.Load(), conns.Add(1)))
		case http.StateClosed:
			conns.Add(-1)
		}
	}
	r.Start()
	t.Cleanup(r.Close)
	d, err := egress.New(egress.Options{AllowPrivate: true, PerHost: 8})
	if err != nil {
		t.Fatal(err)
	}
	const sinks = 1000
	var wg sync.WaitGroup
	turns := make(chan *Sink, sinks)
	for range sinks {
		turns <- open(t, Options{URL: r.URL, Dialer: d, Timeout: time.Minute})
	}
	close(turns)
	for range 64 {
		wg.Go(func() {
			for s := range turns {
				if err := s.Deliver(context.Background(), delivery("i", order)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if n := len(r.all()); n < sinks {
		t.Errorf("%d arrived", n)
	}
	// The receiver sees a connection's end a little after its place was given on; without a cap it would see a thousand.
	if n := peak.Load(); n > sinks/4 {
		t.Errorf("%d connections were open at once; the cap is 8", n)
	}
}

// A keptConn is taken away while it is idle, but not closed yet.
type keptConn struct {
	net.Conn
	taken atomic.Bool
	after atomic.Int64 // writes since
}

func (c *keptConn) Idle() bool { c.taken.Store(true); return true }
func (c *keptConn) Busy() bool { return false }
func (c *keptConn) Write(b []byte) (int, error) {
	if c.taken.Load() {
		c.after.Add(1)
	}
	return c.Conn.Write(b)
}

type keptDialer struct{ conns []*keptConn }

func (d *keptDialer) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	d.conns = append(d.conns, &keptConn{Conn: c})
	return d.conns[len(d.conns)-1], nil
}

// A connection whose place was given away is not used again.
func TestTakenConnectionIsLeft(t *testing.T) {
	r := newReceiver(t, nil)
	d := &keptDialer{}
	s := open(t, Options{URL: r.URL, Dialer: d})
	for range 3 {
		if err := s.Deliver(context.Background(), delivery("i", order)); err != nil {
			t.Fatal(err)
		}
	}
	if len(d.conns) != 3 || d.conns[0].after.Load() != 0 {
		t.Errorf("%d connections, %d writes to one that was taken", len(d.conns), d.conns[0].after.Load())
	}
}
