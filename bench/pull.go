package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// What the pull rows use: consumers of one subscription or group, each taking a batch and acknowledging all of it before
// it takes the next.
const (
	pullConsumers = 64
	pullBatch     = 100
)

// pullEvents is how many events are pulled in a round.
func (l *lab) pullEvents() int {
	const whole = batchEvents * batchConnections // as fill publishes them
	return (max(l.o.backlog/5, 20_000) + whole - 1) / whole * whole
}

// measurePull measures how fast consumers empty a pull subscription over HTTP: every acknowledgement is durable when it is
// answered.
func measurePull() measurement {
	var r *routerProcess
	return measurement{name: fmt.Sprintf("pull and ack, %d consumers", pullConsumers), gives: []string{"pull", "pull-cpu"},
		run: func(ctx context.Context, l *lab, _ func(string) float64, put func(string, float64)) error {
			var err error
			if r == nil {
				if r, err = l.router(); err != nil {
					return err
				}
				for _, c := range [][2]string{{"/v1/topics", `{"name":"pulled"}`}, {"/v1/subscriptions", `{"name":"pullers","topic":"pulled","deliver":{"pull":{}}}`}} {
					if err := r.call(ctx, "POST", c[0], "application/json", []byte(c[1]), nil); err != nil {
						return err
					}
				}
				if err := r.fill(ctx, "pulled", l.pullEvents()); err != nil {
					return err
				}
			}
			if err := r.call(ctx, "POST", "/v1/subscriptions/pullers/seek", "application/json", []byte(`{"to":"earliest"}`), nil); err != nil {
				return err
			}
			used := r.cpu()
			n := l.pullEvents()
			perSecond, err := drained(ctx, pullConsumers, n, func(int) (drainer, error) { return newHTTPPuller(ctx, r.addr, "pullers", pullBatch) })
			put("pull", perSecond)
			put("pull-cpu", (r.cpu()-used)*1e6/float64(n))
			return errors.Join(err, r.gone())
		}}
}

// measureRedisPull is the same with a consumer group of a Redis that syncs its log before it answers.
func measureRedisPull() measurement {
	filled := false
	return measurement{name: fmt.Sprintf("XREADGROUP and XACK, %d consumers", pullConsumers), gives: []string{"redis-pull"},
		run: func(ctx context.Context, l *lab, _ func(string) float64, put func(string, float64)) error {
			if err := l.startRedis(ctx); err != nil {
				return err
			}
			admin, err := newRESPConn(ctx, l.redis.addr)
			if err != nil {
				return err
			}
			defer admin.conn.Close()
			n := l.pullEvents()
			if !filled {
				for i := 0; i < n; i += pullBatch { // pipelined
					var b []byte
					for j := i; j < i+pullBatch; j++ {
						b = append(b, respCommand("XADD", "jobs", "*", "d", string(eventData(j)))...)
					}
					if err := admin.send(b); err != nil {
						return err
					}
					for range pullBatch {
						if err := admin.answer(nil); err != nil {
							return err
						}
					}
				}
				filled = true
			} else if err := admin.call("XGROUP", "DESTROY", "jobs", "g"); err != nil {
				return err
			}
			if err := admin.call("XGROUP", "CREATE", "jobs", "g", "0"); err != nil {
				return err
			}
			perSecond, err := drained(ctx, pullConsumers, n, func(i int) (drainer, error) { return newRedisPuller(ctx, l.redis.addr, i) })
			put("redis-pull", perSecond)
			return errors.Join(err, l.redis.gone())
		}}
}

// A drainer takes one batch, acknowledges it and says how many it had.
type drainer interface {
	batch() (int, error)
	close()
}

// drained lets n consumers take a backlog of so many events and returns how many a second they took.
func drained(ctx context.Context, n, events int, open func(i int) (drainer, error)) (float64, error) {
	ds := make([]drainer, 0, n)
	closeAll := sync.OnceFunc(func() {
		for _, d := range ds {
			d.close()
		}
	})
	defer closeAll()
	for i := range n {
		d, err := open(i)
		if err != nil {
			return 0, err
		}
		ds = append(ds, d)
	}
	stop := context.AfterFunc(ctx, closeAll)
	defer stop()
	var taken, took atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, n)
	begin := time.Now()
	for i, d := range ds {
		wg.Go(func() {
			for taken.Load() < int64(events) && ctx.Err() == nil && time.Since(begin) < time.Minute {
				got, err := d.batch()
				if err != nil {
					errs[i] = err
					return
				}
				if taken.Add(int64(got)) >= int64(events) {
					took.CompareAndSwap(0, int64(time.Since(begin))) // others still wait for more
				}
			}
		})
	}
	wg.Wait()
	if err := errors.Join(append(errs, ctx.Err())...); err != nil {
		return 0, err
	}
	if taken.Load() < int64(events) {
		return 0, fmt.Errorf("%d of %d events were taken within %s", taken.Load(), events, time.Since(begin).Round(time.Second))
	}
	return float64(events) / time.Duration(took.Load()).Seconds(), nil
}

// httpPuller pulls over one connection.
type httpPuller struct {
	p         *poster
	pull, ack []byte // requests up to what changes
	body      []byte
}

func newHTTPPuller(ctx context.Context, addr, name string, max int) (*httpPuller, error) {
	path := "/v1/subscriptions/" + name
	p, err := newPoster(ctx, addr, nil)
	if err != nil {
		return nil, err
	}
	return &httpPuller{p: p,
		pull: postRequest(addr, path+"/pull", "application/json", fmt.Appendf(nil, `{"max":%d,"wait":"200ms"}`, max)),
		ack:  fmt.Appendf(nil, "POST %s/ack HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: ", path, addr)}, nil
}

func (h *httpPuller) close() { _ = h.p.conn.Close() }

func (h *httpPuller) batch() (int, error) {
	h.p.req = h.pull
	answer, err := h.p.ask()
	if err != nil {
		return 0, err
	}
	n := 0
	h.body = append(h.body[:0], `{"leases":[`...)
	mark := []byte(`{"lease":"`)
	for {
		i := bytes.Index(answer, mark)
		if i < 0 {
			break
		}
		answer = answer[i+len(mark):]
		end := bytes.IndexByte(answer, '"')
		if n++; n > 1 {
			h.body = append(h.body, ',')
		}
		h.body = append(append(append(h.body, '"'), answer[:end]...), '"')
	}
	if n == 0 {
		return 0, nil
	}
	h.body = append(h.body, `]}`...)
	h.p.req = fmt.Appendf(h.ack[:len(h.ack):len(h.ack)], "%d\r\n\r\n%s", len(h.body), h.body)
	if answer, err = h.p.ask(); err != nil {
		return 0, err
	}
	if !bytes.Contains(answer, []byte(`{"lost":[]}`)) {
		return 0, fmt.Errorf("acknowledging: %.200s", answer)
	}
	return n, nil
}

// respConn is a connection to Redis whose answers are taken apart.
type respConn struct {
	conn net.Conn
	buf  []byte
	from int
	to   int
}

func newRESPConn(ctx context.Context, addr string) (*respConn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(time.Now().Add(ioTimeout)); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return &respConn{conn: conn, buf: make([]byte, 256<<10)}, nil
}

func (c *respConn) send(b []byte) error {
	_, err := c.conn.Write(b)
	return err
}

func (c *respConn) call(words ...string) error {
	if err := c.send(respCommand(words...)); err != nil {
		return err
	}
	return c.answer(nil)
}

// line reads up to the end of a line.
func (c *respConn) line() ([]byte, error) {
	for {
		if i := bytes.IndexByte(c.buf[c.from:c.to], '\n'); i > 0 {
			l := c.buf[c.from : c.from+i-1]
			c.from += i + 1
			return l, nil
		}
		if err := c.more(); err != nil {
			return nil, err
		}
	}
}

// more reads on. What was read and not used yet moves to the front.
func (c *respConn) more() error {
	if c.to == len(c.buf) {
		if c.from == 0 {
			c.buf = append(c.buf, make([]byte, len(c.buf))...)
		}
		c.to = copy(c.buf, c.buf[c.from:c.to])
		c.from = 0
	}
	n, err := c.conn.Read(c.buf[c.to:])
	c.to += n
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// answer reads one answer and shows every string in it to each, which may be nil.
func (c *respConn) answer(each func([]byte)) error {
	l, err := c.line()
	if err != nil {
		return err
	}
	if len(l) == 0 {
		return errors.New("an empty line from redis")
	}
	kind := l[0]
	if kind == '-' {
		return fmt.Errorf("redis answered %.200s", l)
	}
	if kind != '$' && kind != '*' {
		return nil
	}
	n, err := strconv.Atoi(string(l[1:]))
	if err != nil {
		return err
	}
	if kind == '*' {
		for range n {
			if err := c.answer(each); err != nil {
				return err
			}
		}
		return nil
	}
	if n < 0 {
		return nil
	}
	for c.to-c.from < n+2 {
		if err := c.more(); err != nil {
			return err
		}
	}
	if each != nil {
		each(c.buf[c.from : c.from+n])
	}
	c.from += n + 2
	return nil
}

// redisPuller is one consumer of the group.
type redisPuller struct {
	c    *respConn
	read []byte
	ids  []string
}

func newRedisPuller(ctx context.Context, addr string, i int) (*redisPuller, error) {
	c, err := newRESPConn(ctx, addr)
	if err != nil {
		return nil, err
	}
	return &redisPuller{c: c, read: respCommand("XREADGROUP", "GROUP", "g", "c"+strconv.Itoa(i), "COUNT", strconv.Itoa(pullBatch), "BLOCK", "200", "STREAMS", "jobs", ">")}, nil
}

func (r *redisPuller) close() { _ = r.c.conn.Close() }

func (r *redisPuller) batch() (int, error) {
	if err := r.c.send(r.read); err != nil {
		return 0, err
	}
	r.ids = append(r.ids[:0], "XACK", "jobs", "g")
	at := 0 // the stream's name, then id, field and value of each entry
	err := r.c.answer(func(s []byte) {
		if at > 0 && at%3 == 1 {
			r.ids = append(r.ids, string(s))
		}
		at++
	})
	if n := len(r.ids) - 3; err != nil || n == 0 {
		return 0, err
	}
	if err := r.c.send(respCommand(r.ids...)); err != nil {
		return 0, err
	}
	return len(r.ids) - 3, r.c.answer(nil)
}
