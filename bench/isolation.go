package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// An isolation is a router with many subscriptions of which some have targets that are sick or gone. What counts is
// how the others fare, beside a router where all are well.
type isolation struct {
	key       string
	subs      int
	topics    int // an event is for one subscription in so many
	perSecond int // events published
	burst     int // events published at once, to see how fast they are delivered; 0: not measured
	sick      func(i int) sickness
}

type sickness int

const (
	well  sickness = iota
	drips          // answers a byte a second
	holds          // takes the request and never answers
	gone           // refuses connections
)

func oneInTwenty(i int) sickness {
	switch i % 20 {
	case 0:
		return drips
	case 10:
		return holds
	}
	return well
}

func oneInHundred(i int) sickness {
	if i%100 == i/1000 {
		return gone
	}
	return well
}

var (
	slowAmongFast = isolation{key: "slow", subs: 100, topics: 1, perSecond: 20, burst: 100, sick: oneInTwenty}
	deadAmongMany = isolation{key: "dead", subs: 10_000, topics: 1000, perSecond: 100, sick: oneInHundred}
)

func (s isolation) values() []string {
	v := []string{s.key + "-p99", s.key + "-none-p99"}
	if s.burst > 0 {
		v = append(v, s.key+"-rate", s.key+"-none-rate")
	}
	return v
}

func measureIsolation(s isolation) measurement {
	return measurement{name: fmt.Sprintf("%d subscriptions, some of them sick", s.subs), gives: s.values(),
		run: func(ctx context.Context, l *lab, _ func(string) float64, put func(string, float64)) error {
			sick, all := s.sick, s
			all.sick = func(int) sickness { return well }
			healthy := 0
			for i := range s.subs {
				if sick(i) == well {
					healthy++
				}
			}
			for name, x := range map[string]isolation{s.key + "-none": all, s.key: s} {
				p99, rate, err := x.run(ctx, l, func(i int) bool { return sick(i) == well }, healthy)
				if err != nil {
					return err
				}
				put(name+"-p99", p99)
				if s.burst > 0 {
					put(name+"-rate", rate)
				}
			}
			return nil
		}}
}

// run returns the p99 of the healthy subscriptions' deliveries in microseconds, and how many of a burst they get a
// second.
func (s isolation) run(ctx context.Context, l *lab, healthy func(i int) bool, many int) (p99, rate float64, err error) {
	to, err := newArrivals(healthy)
	if err != nil {
		return 0, 0, err
	}
	defer to.close()
	rules := filepath.Join(l.dir, fmt.Sprintf("isolation-%d", l.routers))
	if err := s.write(rules, to); err != nil {
		return 0, 0, err
	}
	r, err := l.router("--rules", rules)
	if err != nil {
		return 0, 0, err
	}
	defer r.stop()
	n := max(40, int(3*l.length().Seconds()*float64(s.perSecond)))
	tick := time.NewTicker(time.Second / time.Duration(s.perSecond))
	defer tick.Stop()
	var expect int64
	for i := range n {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return 0, 0, ctx.Err()
		}
		k := i * 7 % s.topics
		if i == n/4 {
			to.measuring.Store(true)
		}
		if err := r.call(ctx, "POST", "/v1/topics/isolated/events", "application/json", fmt.Appendf(nil, `{"k":%d,"at":%d}`, k, time.Now().UnixNano()), nil); err != nil {
			return 0, 0, err
		}
		for j := k; j < s.subs; j += s.topics {
			if healthy(j) {
				expect++
			}
		}
	}
	if err := to.await(ctx, expect); err != nil {
		return 0, 0, err
	}
	p99 = to.p99()
	if s.burst == 0 {
		return p99, 0, nil
	}
	to.measuring.Store(false)
	begin := time.Now()
	body := strings.Repeat("{\"k\":0,\"at\":0}\n", s.burst)
	if err := r.call(ctx, "POST", "/v1/topics/isolated/events", "application/x-ndjson", []byte(body), nil); err != nil {
		return 0, 0, err
	}
	if err := to.await(ctx, expect+int64(s.burst*many)); err != nil {
		return 0, 0, err
	}
	return p99, float64(s.burst*many) / time.Since(begin).Seconds(), nil
}

// write makes the rules, in files of a bounded size.
func (s isolation) write(dir string, to *arrivals) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	const each = 1000
	for first := 0; first < s.subs; first += each {
		var b strings.Builder
		b.WriteString("subscriptions:\n")
		for i := first; i < min(first+each, s.subs); i++ {
			filter := ""
			if s.topics > 1 {
				filter = fmt.Sprintf(", filter: data.k == %d", i%s.topics)
			}
			fmt.Fprintf(&b, "  s%d: {topic: isolated%s, deadLetter: isolated.dead, deliver: {webhook: {url: %q, format: data}}}\n", i, filter, to.url(i, s.sick(i)))
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%d.yaml", first)), []byte(b.String()), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// arrivals are receivers of all kinds.
type arrivals struct {
	healthy    func(i int) bool
	server     *http.Server
	fast, slow net.Listener
	hole       net.Listener
	end        chan struct{} // closed: those that are slow give up
	count      atomic.Int64  // of healthy subscriptions
	measuring  atomic.Bool

	mu   sync.Mutex
	took []float64 // µs
	wg   sync.WaitGroup
}

func newArrivals(healthy func(i int) bool) (*arrivals, error) {
	a := &arrivals{healthy: healthy, end: make(chan struct{})}
	var errs [3]error
	a.fast, errs[0] = net.Listen("tcp", "0.0.0.0:0")
	a.slow, errs[1] = net.Listen("tcp", "0.0.0.0:0")
	a.hole, errs[2] = net.Listen("tcp", "0.0.0.0:0")
	if err := errors.Join(errs[:]...); err != nil {
		a.close()
		return nil, err
	}
	a.server = &http.Server{Handler: a, ReadHeaderTimeout: time.Minute}
	a.wg.Go(func() { _ = a.server.Serve(a.fast) })
	a.wg.Go(func() { a.serve(a.slow, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") })
	a.wg.Go(func() { a.serve(a.hole, "") })
	return a, nil
}

// url is that of a subscription's target. Each hundredth part of them has a host of its own.
func (a *arrivals) url(i int, s sickness) string {
	port := func(l net.Listener) int { return l.Addr().(*net.TCPAddr).Port }
	switch s {
	case drips:
		return fmt.Sprintf("http://127.2.1.%d:%d/%d", 1+i%100, port(a.slow), i)
	case holds:
		return fmt.Sprintf("http://127.2.2.%d:%d/%d", 1+i%100, port(a.hole), i)
	case gone:
		return fmt.Sprintf("http://127.2.3.%d:9/%d", 1+i%100, i)
	}
	return fmt.Sprintf("http://127.2.0.%d:%d/%d", 1+i%100, port(a.fast), i)
}

// ServeHTTP takes deliveries of those that are well, and of those that would be sick elsewhere.
func (a *arrivals) ServeHTTP(_ http.ResponseWriter, r *http.Request) {
	now := time.Now().UnixNano()
	var i int
	if _, err := fmt.Sscanf(r.URL.Path, "/%d", &i); err != nil || !a.healthy(i) {
		return
	}
	if a.measuring.Load() {
		var sent struct{ At int64 }
		if b, err := io.ReadAll(r.Body); err == nil && json.Unmarshal(b, &sent) == nil {
			a.mu.Lock()
			a.took = append(a.took, float64(now-sent.At)/1e3)
			a.mu.Unlock()
		}
	}
	a.count.Add(1)
}

// serve takes what comes and answers a byte a second.
func (a *arrivals) serve(l net.Listener, answer string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		a.wg.Go(func() {
			defer c.Close()
			a.wg.Go(func() { _, _ = io.Copy(io.Discard, c) })
			second := time.NewTicker(time.Second)
			defer second.Stop()
			for i := 0; ; i++ {
				select {
				case <-a.end:
					return
				case <-second.C:
				}
				if i < len(answer) {
					if _, err := io.WriteString(c, answer[i:i+1]); err != nil {
						return
					}
				}
			}
		})
	}
}

func (a *arrivals) await(ctx context.Context, n int64) error {
	for end := time.Now().Add(60 * time.Second); a.count.Load() < n; {
		if time.Now().After(end) {
			return fmt.Errorf("%d deliveries are missing after a minute", n-a.count.Load())
		}
		if err := sleep(ctx, time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

func (a *arrivals) p99() float64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	slices.Sort(a.took)
	return percentile(a.took, 0.99)
}

func (a *arrivals) close() {
	close(a.end)
	if a.server != nil {
		_ = a.server.Close()
	}
	for _, l := range []net.Listener{a.fast, a.slow, a.hole} {
		if l != nil {
			_ = l.Close()
		}
	}
	a.wg.Wait()
}
