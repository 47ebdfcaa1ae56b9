package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// A worker does one thing again and again; it belongs to one goroutine.
type worker struct {
	do    func() error
	close func()
}

// padded keeps counters on cache lines of their own.
type padded struct {
	n atomic.Int64
	_ [56]byte
}

// window is the time in which a load is measured: after a warm-up, between two readings of a counter.
type window struct {
	d   time.Duration
	cpu func() float64 // seconds of CPU that a process has taken; nil: nobody asks
}

// pace is what a window has seen.
type pace struct {
	perSecond float64
	cpu       float64 // microseconds of CPU for one
}

// watch warms up for a quarter of the window and reads the counter before and after the rest. Nothing is seen if ctx ends
// meanwhile.
func (w window) watch(ctx context.Context, count func() int64) (p pace) {
	if sleep(ctx, w.d/4) != nil {
		return p
	}
	cpu := func() float64 {
		if w.cpu == nil {
			return 0
		}
		return w.cpu()
	}
	begin, before, used := time.Now(), count(), cpu()
	if sleep(ctx, w.d) != nil {
		return p
	}
	took, n := time.Since(begin), float64(count()-before)
	if n > 0 {
		p = pace{n / took.Seconds(), (cpu() - used) * 1e6 / n}
	}
	return p
}

// length is the warm-up's and the window's.
func (w window) length() time.Duration { return w.d/4 + w.d }

var errNothing = errors.New("nothing was done in the time")

// closed lets n workers work without a pause and returns the pace at which they end their work. It ends when ctx does, too.
func closed(ctx context.Context, n int, win window, open func(i int) (worker, error)) (p pace, err error) {
	counts := make([]padded, n)
	total := func() (sum int64) {
		for i := range counts {
			sum += counts[i].n.Load()
		}
		return sum
	}
	err = crew(ctx, n, win.length(), open, func(i int, w worker) error {
		if err := w.do(); err != nil {
			return err
		}
		counts[i].n.Add(1)
		return nil
	}, func(ctx context.Context) { p = win.watch(ctx, total) })
	if err == nil && p.perSecond == 0 {
		err = errNothing
	}
	return p, err
}

// crew opens n workers, lets each step until watch returns or one fails, and closes them.
func crew(ctx context.Context, n int, d time.Duration, open func(i int) (worker, error), step func(i int, w worker) error, watch func(context.Context)) error {
	workers := make([]worker, 0, n)
	var once sync.Once
	closeAll := func() {
		once.Do(func() {
			for _, w := range workers {
				w.close()
			}
		})
	}
	defer closeAll()
	for i := range n {
		w, err := open(i)
		if err != nil {
			return err
		}
		workers = append(workers, w)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, d+30*time.Second, errors.New("it hangs"))
	defer cancel()
	watching, failed := context.WithCancel(ctx)
	defer failed()
	var stop atomic.Bool
	var first atomic.Pointer[error]
	var wg sync.WaitGroup
	for i, w := range workers {
		wg.Go(func() {
			for !stop.Load() {
				if err := step(i, w); err != nil {
					if !stop.Load() {
						first.CompareAndSwap(nil, &err)
						failed()
					}
					return
				}
			}
		})
	}
	watch(watching)
	stop.Store(true)
	ended := make(chan struct{})
	go func() {
		wg.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(10 * time.Second): // one hangs: what it waits for is closed under it
		err := errors.New("a worker did not end within 10 s")
		first.CompareAndSwap(nil, &err)
		closeAll()
		<-ended
	}
	if err := first.Load(); err != nil {
		return *err
	}
	return context.Cause(ctx)
}

// sleep waits d or until ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// A poster sends the same request over one connection, waiting for each answer. It is leaner than an HTTP client: the
// generator shall take as little of the cores as it can.
type poster struct {
	conn net.Conn
	req  []byte
	seq  int // where in req the event's number stands; −1: nowhere
	buf  []byte
}

const ioTimeout = 2 * time.Minute // more than any measurement takes with its bounds

func newPoster(ctx context.Context, addr string, req []byte) (*poster, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(time.Now().Add(ioTimeout)); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	p := &poster{conn: conn, req: bytes.Clone(req), seq: bytes.Index(req, []byte(numberMark)), buf: make([]byte, 4<<10)}
	if p.seq >= 0 {
		p.seq += len(numberMark)
	}
	return p, nil
}

func (p *poster) worker() worker {
	return worker{do: p.post, close: func() { _ = p.conn.Close() }}
}

// number puts n into the request.
func (p *poster) number(n int) {
	digits := p.req[p.seq : p.seq+numberDigits]
	for i := len(digits) - 1; i >= 0; i-- {
		digits[i] = '0' + byte(n%10)
		n /= 10
	}
}

// post sends the request and reads the whole answer, which must be 2xx.
func (p *poster) post() error {
	_, err := p.ask()
	return err
}

// ask is post; it returns the answer, header and body, which stays valid until the next.
func (p *poster) ask() ([]byte, error) {
	if _, err := p.conn.Write(p.req); err != nil {
		return nil, err
	}
	n := 0
	for {
		m, err := p.conn.Read(p.buf[n:])
		if err != nil {
			return nil, err
		}
		n += m
		size, ok, err := answerSize(p.buf[:n])
		if err != nil {
			return nil, err
		}
		if !ok {
			if n == len(p.buf) {
				p.buf = append(p.buf, make([]byte, len(p.buf))...)
			}
			continue
		}
		if size > len(p.buf) {
			if size > 32<<20 {
				return nil, fmt.Errorf("an answer of %d bytes", size)
			}
			p.buf = append(p.buf, make([]byte, size-len(p.buf))...)
		}
		if _, err := io.ReadFull(p.conn, p.buf[n:max(n, size)]); err != nil {
			return nil, err
		}
		if p.buf[9] != '2' {
			return nil, fmt.Errorf("it answered %.400s", p.buf[:max(n, size)])
		}
		return p.buf[:max(n, size)], nil
	}
}

// answerSize tells how many bytes an answer has, header and body, once its header is in b.
func answerSize(b []byte) (size int, ok bool, err error) {
	end := bytes.Index(b, []byte("\r\n\r\n"))
	if end < 0 {
		return 0, false, nil
	}
	end += 4
	if len(b) < 13 || !bytes.HasPrefix(b, []byte("HTTP/1.1 ")) {
		return 0, false, fmt.Errorf("%.60q is no answer of HTTP/1.1", b)
	}
	if string(b[9:12]) == "204" {
		return end, true, nil
	}
	name := []byte("\r\nContent-Length: ")
	at := bytes.Index(b[:end], name)
	if at < 0 {
		return 0, false, fmt.Errorf("the answer %.60q has no Content-Length", b)
	}
	digits := b[at+len(name) : end]
	n, err := strconv.Atoi(string(digits[:bytes.IndexByte(digits, '\r')]))
	return end + n, true, err
}

// postRequest writes a POST as a client would.
func postRequest(addr, path, contentType string, body []byte) []byte {
	return fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s", path, addr, contentType, len(body), body)
}

// eventBytes is the size of an event's data.
const eventBytes = 1024

// eventData is an order of 1 KiB: what filters and the function look at stands in it, the rest does not compress well.
func eventData(seed int) []byte {
	b := fmt.Appendf(nil, `{%s%0*d","kind":"order","total":250.75,"country":"DE","email":"ann@example.com","note":"`, numberMark, numberDigits, seed)
	rng := rand.New(rand.NewPCG(1, uint64(seed)))
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	for len(b) < eventBytes-2 {
		b = append(b, letters[rng.IntN(len(letters))])
	}
	return append(b, `"}`...)
}

// batchData is n events as NDJSON.
func batchData(n, seed int) []byte {
	var b []byte
	for i := range n {
		b = append(append(b, eventData(seed*n+i)...), '\n')
	}
	return b
}

// paced posts n numbered events over the posters at so many a second, spread evenly, and returns when each request
// began, Unix ns. What is late because its connection was still busy counts from when it was due; what the timer made
// late does not.
func paced(ctx context.Context, posters []*poster, n int, perSecond float64) ([]int64, error) {
	sent := make([]int64, n)
	gap := float64(time.Second) / perSecond
	begin := time.Now().Add(10 * time.Millisecond)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for c, p := range posters {
		wg.Go(func() {
			for i := c; i < n; i += len(posters) {
				due := begin.Add(time.Duration(float64(i) * gap))
				if wait := time.Until(due); wait > 0 {
					if sleep(ctx, wait) != nil {
						return
					}
					due = time.Now()
				} else if ctx.Err() != nil {
					return
				}
				sent[i] = due.UnixNano()
				p.number(i)
				if err := p.post(); err != nil {
					cancel(err)
					return
				}
			}
		})
	}
	wg.Wait()
	return sent, context.Cause(ctx)
}
