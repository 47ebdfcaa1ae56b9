package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// published is where events go that nothing subscribes to.
const published = "/v1/topics/accepted/events?type=order.created"

// measureAccept measures single events over n connections, the router's answer being durable.
func measureAccept(n int) measurement {
	value := fmt.Sprintf("accept-%d", n)
	return measurement{name: fmt.Sprintf("durable accept, %d connections", n), gives: []string{value, value + "-cpu"},
		run: func(ctx context.Context, l *lab, _ func(string) float64, put func(string, float64)) error {
			r, err := l.mainRouter(ctx)
			if err != nil {
				return err
			}
			p, err := posting(ctx, l, r.child, published, "application/json", n, eventData)
			put(value, p.perSecond)
			put(value+"-cpu", p.cpu)
			return errors.Join(err, r.gone())
		}}
}

// measureNothing is the limit of that: the same requests to a server that does nothing.
func measureNothing(n int) measurement {
	value := fmt.Sprintf("nothing-%d", n)
	return measurement{name: fmt.Sprintf("do-nothing server, %d connections", n), gives: []string{value, value + "-cpu"},
		run: func(ctx context.Context, l *lab, _ func(string) float64, put func(string, float64)) error {
			c, err := l.receiver()
			if err != nil {
				return err
			}
			p, err := posting(ctx, l, c, published, "application/json", n, eventData)
			put(value, p.perSecond)
			put(value+"-cpu", p.cpu)
			return err
		}}
}

// batchEvents is how many events a batch has.
const (
	batchEvents      = 100
	batchConnections = 16
)

func measureBatch() measurement {
	return measurement{name: fmt.Sprintf("durable batches of %d, %d connections", batchEvents, batchConnections), gives: []string{"batch", "batch-cpu"},
		run: func(ctx context.Context, l *lab, _ func(string) float64, put func(string, float64)) error {
			r, err := l.mainRouter(ctx)
			if err != nil {
				return err
			}
			p, err := posting(ctx, l, r.child, published, "application/x-ndjson", batchConnections, func(i int) []byte { return batchData(batchEvents, i) })
			put("batch", p.perSecond*batchEvents)
			put("batch-cpu", p.cpu/batchEvents)
			return errors.Join(err, r.gone())
		}}
}

// posting measures POSTs to a child over n connections, each sending its own body again and again.
func posting(ctx context.Context, l *lab, to *child, path, contentType string, n int, body func(i int) []byte) (pace, error) {
	return closed(ctx, n, window{l.length(), to.cpu}, func(i int) (worker, error) {
		p, err := newPoster(ctx, to.addr, postRequest(to.addr, path, contentType, body(i)))
		if err != nil {
			return worker{}, err
		}
		return p.worker(), nil
	})
}

// measureRedis measures XADD of the same bodies to a Redis that syncs its log before it answers.
func measureRedis(n int) measurement {
	value := fmt.Sprintf("redis-%d", n)
	return measurement{name: fmt.Sprintf("Redis Streams, appendfsync always, %d connections", n), gives: []string{value},
		run: func(ctx context.Context, l *lab, _ func(string) float64, put func(string, float64)) error {
			if err := l.startRedis(ctx); err != nil {
				return err
			}
			p, err := closed(ctx, n, window{d: l.length()}, func(i int) (worker, error) {
				c, err := newRedisConn(ctx, l.redis.addr, "XADD", "stream", "*", "d", string(eventData(i)))
				if err != nil {
					return worker{}, err
				}
				return worker{do: c.do, close: func() { _ = c.conn.Close() }}, nil
			})
			put(value, p.perSecond)
			if err != nil {
				return errors.Join(err, l.redis.gone())
			}
			c, err := newRedisConn(ctx, l.redis.addr, "UNLINK", "stream")
			if err != nil {
				return err
			}
			return errors.Join(c.do(), c.conn.Close())
		}}
}

func (l *lab) startRedis(ctx context.Context) error {
	if l.redis != nil {
		return l.redis.gone()
	}
	path, err := exec.LookPath("redis-server")
	if err != nil {
		return fmt.Errorf("%w: redis-server is not installed; `make bench` installs it", errMissing)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0") // Redis does not say which port it took: find a free one
	if err != nil {
		return err
	}
	port := ln.Addr().(*net.TCPAddr).Port
	if err := ln.Close(); err != nil {
		return err
	}
	dir := filepath.Join(l.dir, "redis")
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	ready := func(line string) (string, bool) { return addr, strings.Contains(line, "Ready to accept connections") }
	l.redis, err = l.start("redis-server", ready, path, "--port", strconv.Itoa(port), "--bind", "127.0.0.1", "--dir", dir, "--save", "",
		"--appendonly", "yes", "--appendfsync", "always", "--auto-aof-rewrite-percentage", "0", "--daemonize", "no", "--logfile", "")
	return err
}

// A redisConn sends one command again and again and reads the answers: one line, or a string.
type redisConn struct {
	conn net.Conn
	req  []byte
	buf  []byte
}

func newRedisConn(ctx context.Context, addr string, command ...string) (*redisConn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(time.Now().Add(ioTimeout)); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return &redisConn{conn, respCommand(command...), make([]byte, 4<<10)}, nil
}

// respCommand is a command as RESP has it: an array of bulk strings.
func respCommand(words ...string) []byte {
	b := fmt.Appendf(nil, "*%d\r\n", len(words))
	for _, w := range words {
		b = fmt.Appendf(b, "$%d\r\n%s\r\n", len(w), w)
	}
	return b
}

func (c *redisConn) do() error {
	if _, err := c.conn.Write(c.req); err != nil {
		return err
	}
	n := 0
	for {
		m, err := c.conn.Read(c.buf[n:])
		if err != nil {
			return err
		}
		n += m
		if done, err := respAnswer(c.buf[:n]); done || err != nil {
			return err
		}
		if n == len(c.buf) {
			return fmt.Errorf("an answer of over %d bytes", n)
		}
	}
}

// respAnswer tells whether b is a whole answer: +text, :number, $length and text. -text is an error.
func respAnswer(b []byte) (done bool, err error) {
	line, rest, ok := bytes.Cut(b, []byte("\r\n"))
	if !ok {
		return false, nil
	}
	if len(line) == 0 {
		return false, errors.New("an empty answer")
	}
	switch line[0] {
	case '+', ':':
		return true, nil
	case '$':
		n, err := strconv.Atoi(string(line[1:]))
		return len(rest) >= n+2, err
	}
	return false, fmt.Errorf("redis answered %.200s", line)
}
