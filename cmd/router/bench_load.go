package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"
	"golang.org/x/sync/errgroup"
)

// load publishes all events over the bench's connections and returns how long each request took. Where
// sink is not nil it is told when the request with an event began. done counts what was accepted.
func (b *bench) load(ctx context.Context, topic string, sink *benchSink, done *atomic.Int64) ([]time.Duration, error) {
	requests := (b.o.events + b.o.batch - 1) / b.o.batch
	took := make([]time.Duration, requests)
	hc := &fasthttp.Client{MaxConnsPerHost: b.o.connections, NoDefaultUserAgentHeader: true, MaxIdemponentCallAttempts: 1}
	defer hc.CloseIdleConnections()
	u := b.c.path("topics", topic, "events").String()
	var next atomic.Int64
	begin := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	for range min(b.o.connections, requests) {
		g.Go(func() error {
			w := b.worker(hc, u)
			defer w.free()
			for {
				i := int(next.Add(1) - 1)
				if i >= requests {
					return nil
				}
				if b.o.rate > 0 {
					due := begin.Add(time.Duration(float64(i*b.o.batch) / float64(b.o.rate) * float64(time.Second)))
					if err := sleep(ctx, time.Until(due)); err != nil {
						return err
					}
				}
				from, to := i*b.o.batch, min((i+1)*b.o.batch, b.o.events)
				at := time.Now()
				for n := from; sink != nil && n < to; n++ {
					sink.sentAt(n, at)
				}
				if err := w.send(ctx, from, to); err != nil {
					return err
				}
				took[i] = time.Since(at)
				done.Add(int64(to - from))
			}
		})
	}
	return took, g.Wait()
}

// A benchWorker publishes over one connection at a time, with one request and answer that it reuses.
type benchWorker struct {
	hc   *fasthttp.Client
	req  *fasthttp.Request
	res  *fasthttp.Response
	body []byte
	size int
}

func (b *bench) worker(hc *fasthttp.Client, url string) *benchWorker {
	w := &benchWorker{hc: hc, req: fasthttp.AcquireRequest(), res: fasthttp.AcquireResponse(), size: b.o.size}
	w.req.SetRequestURI(url)
	w.req.Header.SetMethod("POST")
	w.req.Header.Set("Prefer", "return=minimal")
	w.req.Header.SetContentType("application/json")
	if b.o.batch > 1 {
		w.req.Header.SetContentType(ndjsonType)
	}
	if b.c.token != "" {
		w.req.Header.Set("Authorization", "Bearer "+b.c.token)
	}
	return w
}

func (w *benchWorker) free() {
	fasthttp.ReleaseRequest(w.req)
	fasthttp.ReleaseResponse(w.res)
}

// send publishes the events from up to to, again while the router says that it is busy.
func (w *benchWorker) send(ctx context.Context, from, to int) error {
	w.body = w.body[:0]
	for n := from; n < to; n++ {
		w.body = append(appendBenchEvent(w.body, n, w.size), '\n')
	}
	w.req.SetBodyRaw(w.body)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := w.hc.DoTimeout(w.req, w.res, 30*time.Second); err != nil {
			return fmt.Errorf("publishing: %w", err)
		}
		status := w.res.StatusCode()
		if status < 300 {
			return nil
		}
		if status != http.StatusServiceUnavailable && status != http.StatusTooManyRequests {
			p := &problem{}
			if json.Unmarshal(w.res.Body(), p) != nil {
				p.Detail = string(w.res.Body()[:min(len(w.res.Body()), 300)])
			}
			p.Status = status
			return fmt.Errorf("publishing: %w", p)
		}
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}

// appendBenchEvent appends {"n":<n>,"pad":"xxx"} of size bytes.
func appendBenchEvent(dst []byte, n, size int) []byte {
	start := len(dst)
	dst = append(dst, `{"n":`...)
	dst = strconv.AppendInt(dst, int64(n), 10)
	dst = append(dst, `,"pad":"`...)
	for len(dst)-start < size-2 {
		dst = append(dst, 'x')
	}
	return append(dst, `"}`...)
}

// benchNumber finds n in what appendBenchEvent wrote, or what a function made of it.
func benchNumber(body []byte) (int, bool) {
	_, rest, ok := bytes.Cut(body, []byte(`"n":`))
	if !ok {
		return 0, false
	}
	rest = bytes.TrimLeft(rest, " ")
	end := 0
	for end < len(rest) && rest[end] >= '0' && rest[end] <= '9' {
		end++
	}
	n, err := strconv.Atoi(string(rest[:end]))
	return n, err == nil
}

// A benchSink receives the webhooks of a bench and knows which events have come.
type benchSink struct {
	ln      net.Listener
	srv     *fasthttp.Server
	served  chan error
	began   time.Time
	sent    []atomic.Int64 // by n: when publishing began, in ns after began, plus 1
	came    []atomic.Bool
	took    []time.Duration // by n
	count   atomic.Int64
	last    atomic.Int64 // when the newest first delivery came, in ns after began
	repeats atomic.Int64
	done    *atomic.Int64
	all     chan struct{} // closed when every event has come
}

// openBenchSink listens for events deliveries at an address.
func openBenchSink(listen string, events int, done *atomic.Int64) (*benchSink, error) {
	ln, err := net.Listen("tcp", listen)
	if err != nil {
		return nil, fmt.Errorf("receiving webhooks: %w; name a free address with --listen", err)
	}
	s := &benchSink{ln: ln, served: make(chan error, 1), began: time.Now(), sent: make([]atomic.Int64, events),
		came: make([]atomic.Bool, events), took: make([]time.Duration, events), done: done, all: make(chan struct{})}
	s.srv = &fasthttp.Server{Handler: s.receive, NoDefaultServerHeader: true, NoDefaultDate: true, CloseOnShutdown: true, MaxRequestBodySize: 32 << 20}
	go func() { s.served <- s.srv.Serve(ln) }()
	return s, nil
}

func (s *benchSink) address() string { return s.ln.Addr().String() }

func (s *benchSink) sentAt(n int, at time.Time) { s.sent[n].Store(int64(at.Sub(s.began)) + 1) }

func (s *benchSink) lastAt() time.Time { return s.began.Add(time.Duration(s.last.Load())) }

func (s *benchSink) receive(ctx *fasthttp.RequestCtx) {
	at := int64(time.Since(s.began))
	n, ok := benchNumber(ctx.PostBody())
	if !ok || n >= len(s.came) {
		ctx.SetStatusCode(http.StatusUnprocessableEntity)
		return
	}
	ctx.SetStatusCode(http.StatusNoContent)
	if s.came[n].Swap(true) {
		s.repeats.Add(1)
		return
	}
	if sent := s.sent[n].Load(); sent > 0 {
		s.took[n] = time.Duration(at - sent + 1)
	}
	for last := s.last.Load(); at > last && !s.last.CompareAndSwap(last, at); last = s.last.Load() {
	}
	s.done.Add(1)
	if s.count.Add(1) == int64(len(s.came)) {
		close(s.all)
	}
}

// wait returns once every event has come, or an error when none has come for as long as patience.
func (s *benchSink) wait(ctx context.Context, patience time.Duration) error {
	tick := time.NewTicker(min(patience, time.Second))
	defer tick.Stop()
	before, since := s.count.Load(), time.Now()
	for {
		select {
		case <-s.all:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		if now := s.count.Load(); now != before {
			before, since = now, time.Now()
		}
		if time.Since(since) >= patience {
			return fmt.Errorf("%d of %d events were delivered, then none for %s; does the filter match all of them, "+
				"and may the router deliver to %s (--allow-private-targets)?", before, len(s.came), patience, s.address())
		}
	}
}

// close stops receiving and waits for the server to end.
func (s *benchSink) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_ = s.srv.ShutdownWithContext(ctx) // connections that the router keeps open end with the process
	<-s.served
}
