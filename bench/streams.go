package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// streamReaders is how many read one topic: as many streams as the router allows. A quick run has fewer.
const streamReaders = 10_000

func (l *lab) streamReaders() int {
	if l.o.quick {
		return streamReaders / 20
	}
	return streamReaders
}

// fanEvents is how many events reach all of them, one after the other; the median counts.
const fanEvents = 15

// streamMeasurements are those of many readers of one topic.
func streamMeasurements() []measurement {
	return []measurement{measureFan(), measureStreams()}
}

func streamRows() []row {
	return []row{
		{key: "stream-memory", group: "streams", name: fmt.Sprintf("resident memory of each of %d SSE readers of one topic / bound", streamReaders),
			values: []string{"stream-kib"}, figure: value("stream-kib"), limit: constant(30),
			show: func(v float64) string { return fmt.Sprintf("%.3g KiB", v) }, lower: true, floor: 1,
			note: "What the router's resident memory has grown by when all are open and 15 events have reached them."},
		{key: "stream-all", group: "streams", name: "publish until the last of them has the event / one pass of writes to as many connections",
			values: []string{"stream-all", "fan-all"}, figure: value("stream-all"), limit: value("fan-all"), show: micros, ratio: times, lower: true, floor: 4, aim: 2,
			note: "One pass: a server that does nothing but write as many bytes to every connection in a loop, read by the same readers, which share the cores."},
		{key: "stream-cpu", group: "streams", name: "the router's CPU for one reader's event / that of the pass", values: []string{"stream-cpu", "fan-cpu"},
			figure: value("stream-cpu"), limit: value("fan-cpu"), show: micros, ratio: times, lower: true},
	}
}

// measureStreams opens readers of server-sent events and looks at the router's memory before and after; then it
// publishes one event after the other and takes the time from the start of the request until the last reader has it.
func measureStreams() measurement {
	return measurement{name: "readers of one topic", gives: []string{"stream-kib", "stream-all", "stream-cpu"}, once: true,
		run: func(ctx context.Context, l *lab, _ func(string) float64, put func(string, float64)) error {
			r, err := l.router()
			if err != nil {
				return err
			}
			defer r.stop()
			if err := r.call(ctx, "POST", "/v1/topics", "application/json", []byte(`{"name":"fan"}`), nil); err != nil {
				return err
			}
			p, err := newPoster(ctx, r.addr, postRequest(r.addr, "/v1/topics/fan/events?type=order.created", "application/json", eventData(1)))
			if err != nil {
				return err
			}
			defer p.conn.Close()
			for range 100 { // what publishing alone takes in
				if err := p.post(); err != nil {
					return err
				}
			}
			before, err := r.rss()
			if err != nil {
				return err
			}
			crowd, err := gatherCrowd(ctx, l.streamReaders(), r.addr, "GET /v1/topics/fan/stream HTTP/1.1\r\nHost: localhost\r\n\r\n", "\n\n")
			if err != nil {
				return err
			}
			defer crowd.close()
			if err := crowd.run(ctx, r.cpu, p.post, "\ndata: ", "stream", put); err != nil {
				return errors.Join(err, r.gone())
			}
			after, err := r.rss()
			put("stream-kib", (after-before)*1024/float64(len(crowd.conns)))
			return err
		}}
}

// measureFan is measureStreams' limit.
func measureFan() measurement {
	return measurement{name: "one pass of writes", gives: []string{"fan-all", "fan-cpu"}, once: true,
		run: func(ctx context.Context, l *lab, _ func(string) float64, put func(string, float64)) error {
			c, err := l.start("the pass", listensAt, l.self, fanCommand)
			if err != nil {
				return err
			}
			defer c.stop()
			crowd, err := gatherCrowd(ctx, l.streamReaders(), c.addr, "r", "r")
			if err != nil {
				return err
			}
			defer crowd.close()
			control, err := net.Dial("tcp", c.addr)
			if err != nil {
				return err
			}
			defer control.Close()
			pass := func() error {
				_, err := control.Write([]byte("g"))
				return err
			}
			return crowd.run(ctx, c.cpu, pass, "x", "fan", put)
		}}
}

// fanCommand as first argument makes this program the server of one pass.
const fanCommand = "fan"

// serveFan takes connections that send r, answering r, and writes to all of them for every g, until ctx or stdin ends.
func serveFan(ctx context.Context, stdin io.Reader, stdout io.Writer) error {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "listen %s\n", ln.Addr())
	var mu sync.Mutex
	var all []net.Conn
	frame := bytes.Repeat([]byte("x"), 1400)
	serve := func(nc net.Conn) {
		var b [1]byte
		for {
			if _, err := nc.Read(b[:]); err != nil {
				return
			}
			mu.Lock()
			if b[0] == 'r' {
				all = append(all, nc)
				_, _ = nc.Write(b[:])
			} else {
				for _, c := range all {
					_, _ = c.Write(frame)
				}
			}
			mu.Unlock()
		}
	}
	go func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			go serve(nc)
		}
	}()
	parent := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, stdin) // ends with the parent
		close(parent)
	}()
	select {
	case <-parent:
	case <-ctx.Done():
	}
	return ln.Close() // open connections end with the process
}

// A crowd is many connections that wait for events.
type crowd struct {
	conns []net.Conn
	mark  atomic.Pointer[[]byte] // begins what counts
	got   atomic.Int64
	all   chan struct{} // one for every event that everyone has
	wg    sync.WaitGroup
}

// gatherCrowd opens the connections, sends hello on each and waits for its answer up to answered.
func gatherCrowd(ctx context.Context, size int, addr, hello, answered string) (c *crowd, err error) {
	c = &crowd{all: make(chan struct{}, 1)}
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	for range size {
		nc, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		if err != nil {
			return c, fmt.Errorf("reader %d: %w (each takes a file here and one there: ulimit -n)", len(c.conns), err)
		}
		c.conns = append(c.conns, nc)
		_ = nc.SetDeadline(time.Now().Add(30 * time.Second))
		if _, err := nc.Write([]byte(hello)); err != nil {
			return c, err
		}
		b, at := make([]byte, 1<<10), 0
		for !bytes.HasSuffix(b[:at], []byte(answered)) {
			m, err := nc.Read(b[at:])
			if at += m; err != nil {
				return c, fmt.Errorf("reader %d was told %q: %w", len(c.conns), b[:at], err)
			}
		}
		_ = nc.SetDeadline(time.Time{})
	}
	for _, nc := range c.conns {
		c.wg.Go(func() {
			var b [2 << 10]byte
			for {
				n, err := nc.Read(b[:])
				if err != nil {
					return
				}
				if bytes.Contains(b[:n], *c.mark.Load()) && c.got.Add(1) == int64(size) {
					c.all <- struct{}{}
				}
			}
		})
	}
	return c, nil
}

func (c *crowd) close() {
	for _, nc := range c.conns {
		_ = nc.Close()
	}
	c.wg.Wait()
}

// run makes events happen one by one and notes how long each took to reach everyone, and the CPU per reader.
func (c *crowd) run(ctx context.Context, cpu func() float64, happen func() error, mark, name string, put func(string, float64)) error {
	b := []byte(mark)
	c.mark.Store(&b)
	var took []float64
	var used float64
	for i := range fanEvents {
		c.got.Store(0)
		if i == 1 { // the first is the warm-up
			used = cpu()
		}
		began := time.Now()
		if err := happen(); err != nil {
			return err
		}
		late := time.NewTimer(60 * time.Second)
		select {
		case <-c.all:
		case <-late.C:
			return fmt.Errorf("%d of %d readers got event %d within a minute", c.got.Load(), len(c.conns), i)
		case <-ctx.Done():
			return ctx.Err()
		}
		late.Stop()
		if took = append(took, float64(time.Since(began).Microseconds())); i == 0 {
			took = nil
		}
	}
	slices.Sort(took)
	put(name+"-all", took[len(took)/2])
	put(name+"-cpu", (cpu()-used)*1e6/float64(len(took)*len(c.conns)))
	return nil
}
