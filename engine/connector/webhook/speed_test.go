package webhook

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/valyala/fasthttp"
	"go.uber.org/goleak"

	"github.com/millrace/millrace/engine/event"
)

// plainReceiver answers every request of a known size with 204 and allocates nothing meanwhile.
func plainReceiver(t testing.TB) string {
	return serve(t, func(_ int, c net.Conn) {
		br := bufio.NewReaderSize(c, 64<<10)
		end, length := []byte("\r\n\r\n"), []byte("\r\nContent-Length: ")
		answer := []byte("HTTP/1.1 204 No Content\r\n\r\n")
		for {
			if _, err := br.Peek(1); err != nil {
				return
			}
			b, _ := br.Peek(br.Buffered())
			i, j := bytes.Index(b, end), bytes.Index(b, length)
			if i < 0 || j < 0 {
				return
			}
			n := 0
			for _, d := range b[j+len(length) : i] {
				if d < '0' || d > '9' {
					break
				}
				n = n*10 + int(d-'0')
			}
			if _, err := br.Discard(i + 4 + n); err != nil {
				return
			}
			if _, err := c.Write(answer); err != nil {
				return
			}
		}
	})
}

// The steady path allocates nothing: building, signing, sending, reading the answer.
func TestDeliverAllocatesNothing(t *testing.T) {
	url := plainReceiver(t)
	ascii := order
	ascii.Subject, ascii.Extensions = "s-1", nil // percent-encoding allocates; what needs none must not
	for _, format := range []string{Structured, Binary, Data} {
		s := open(t, Options{URL: url, Format: format, Secrets: []string{secretA, secretB}})
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		ds := delivery("s:t@1:0-42:0", ascii)
		if n := testing.AllocsPerRun(200, func() {
			if err := s.Deliver(ctx, ds); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%s: Deliver allocates %v times", format, n)
		}
		l := newLane(s.target)
		if n := testing.AllocsPerRun(200, func() {
			if _, err := s.target.build(l, &ds[0], 1_700_000_000); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%s: build allocates %v times", format, n)
		}
	}
}

// Idle connections are closed after a while, and nothing is left after Close.
func TestIdleAndClose(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	r := newReceiver(t, nil)
	defer r.Close()
	s := open(t, Options{URL: r.URL})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if err := s.Deliver(ctx, delivery("i", order)); err != nil {
		t.Fatal(err)
	}
	if len(s.live) != 1 || !s.armed {
		t.Fatalf("%d connections are kept, timer %v", len(s.live), s.armed)
	}
	s.reap()
	if len(s.live) != 1 {
		t.Fatal("a fresh connection was closed")
	}
	s.live[0].idle = time.Now().Add(-idleLimit)
	s.reap()
	if len(s.live) != 0 || s.armed {
		t.Fatalf("%d idle connections are left, timer %v", len(s.live), s.armed)
	}
	if err := s.Deliver(ctx, delivery("i", order)); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	r.CloseClientConnections()
}

// A late end of an earlier delivery's context leaves the next one alone.
func TestContextsChange(t *testing.T) {
	r := newReceiver(t, nil)
	s := open(t, Options{URL: r.URL, MaxConns: 1})
	for i := range 200 {
		ctx, cancel := context.WithCancel(context.Background())
		if err := s.Deliver(ctx, delivery(strconv.Itoa(i), order)); err != nil {
			t.Fatal(err)
		}
		go cancel()
	}
}

// The three clients, each at 64 deliveries at once behind the same guarded dialer.
func BenchmarkClients(b *testing.B) {
	url := plainReceiver(b)
	d := private(b)
	body := order.AppendRecord(nil)
	run := func(b *testing.B, f func() error) {
		b.ReportAllocs()
		work := make(chan struct{}, 64)
		var wg sync.WaitGroup
		for range 64 {
			wg.Go(func() {
				for range work {
					if err := f(); err != nil {
						b.Error(err)
					}
				}
			})
		}
		for b.Loop() {
			work <- struct{}{}
		}
		close(work)
		wg.Wait()
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "deliveries/s")
	}
	b.Run("sink", func(b *testing.B) {
		s := open(b, Options{URL: url, Secrets: []string{secretA}})
		ds := []event.Delivery{{ID: "s:t@1:0-42:0", Event: body, Attempt: 1}}
		run(b, func() error { return s.Deliver(context.Background(), ds) })
	})
	b.Run("sink without signature", func(b *testing.B) {
		s := open(b, Options{URL: url})
		ds := []event.Delivery{{ID: "s:t@1:0-42:0", Event: body, Attempt: 1}}
		run(b, func() error { return s.Deliver(context.Background(), ds) })
	})
	b.Run("fasthttp do-nothing", func(b *testing.B) {
		c := &fasthttp.Client{MaxConnsPerHost: 64, Dial: func(addr string) (net.Conn, error) {
			return d.DialContext(context.Background(), "tcp", addr)
		}}
		doc := event.Record(body).AppendStructured(nil)
		run(b, func() error {
			req, resp := fasthttp.AcquireRequest(), fasthttp.AcquireResponse()
			defer fasthttp.ReleaseRequest(req)
			defer fasthttp.ReleaseResponse(resp)
			req.Header.SetMethod("POST")
			req.SetRequestURI(url)
			req.SetBodyRaw(doc)
			return c.DoTimeout(req, resp, 15*time.Second)
		})
	})
	b.Run("net/http do-nothing", func(b *testing.B) {
		c := &http.Client{Timeout: 15 * time.Second, Transport: &http.Transport{DialContext: d.DialContext, MaxIdleConnsPerHost: 64, DisableCompression: true}}
		doc := event.Record(body).AppendStructured(nil)
		run(b, func() error {
			resp, err := c.Post(url, "application/json", bytes.NewReader(doc))
			if err != nil {
				return err
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			return resp.Body.Close()
		})
	})
}
