package httpapi

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"unsafe"

	"github.com/millrace/millrace/engine/event"
)

// This file serves server-sent events (WHATWG HTML, 9.2). A stream's connection is taken from fasthttp:
// a reader of its own then sees at once that the client has gone, where a writer would see it only at the
// next event.

// streamFlush is how many bytes of events are gathered before they are written; more wait for nobody.
const streamFlush = 64 << 10

// A stream is a reader whose events are sent as they come.
type stream struct {
	outStream
	reader Reader
	typed  bool // ?event=type
	live   bool // it has read all there was: others read what it reads now
}

// streamTopic is GET /v1/topics/{topic}/stream.
func (c *call) streamTopic() error { return c.stream(c.s.o.Backend.OpenTopic) }

// streamSubscription is GET /v1/subscriptions/{name}/stream.
func (c *call) streamSubscription() error { return c.stream(c.s.o.Backend.OpenSubscription) }

func (c *call) stream(open func(context.Context, string, event.Start, string) (Reader, error)) error {
	st := &stream{outStream: c.outStream()}
	switch v := c.query("event"); v {
	case "":
	case "type":
		st.typed = true
	default:
		return invalidf("?event", "is %.20q; want type, or leave it out so that onmessage fires", v)
	}
	if err := c.s.roomForStream(); err != nil {
		return err
	}
	start, err := c.startOf(event.Start{At: event.Latest})
	if err != nil {
		return err
	}
	if id := c.h.lastEventID; id != "" { // a browser's reconnect repeats the URL, so this says more
		start = event.Start{At: event.AtCursor, Cursor: strings.Clone(id)}
	}
	if st.reader, err = open(c.s.work, strings.Clone(c.params[0]), start, strings.Clone(c.query("filter"))); err != nil {
		return err
	}
	h := &c.ctx.Response.Header
	if c.ctx.IsHead() {
		st.reader.Close()
		h.SetContentType("text/event-stream")
		h.Set("Cache-Control", "no-store")
		return nil
	}
	return c.takeOver(&takeover{serve: st.serve, never: st.reader.Close})
}

// serve sends events until the client is gone, too slow, or the server drains.
func (st *stream) serve(draining context.Context, nc net.Conn, _ []byte) {
	defer st.reader.Close()
	st.s.sseReaders.Add(1)
	defer func() {
		if st.s.sseReaders.Add(-1) == 0 {
			st.s.shown.forget()
		}
	}()
	ctx, stop := watch(draining, nc)
	defer stop()

	st.begin("text/event-stream")
	st.out = append(st.out, "retry: 1000\n"...)
	st.cursor() // so that a client which loses the connection before its first event misses nothing
	for st.beat(ctx, nc) {
	}
}

// beat sends what comes until the next heartbeat is due, and that; false once the stream has ended.
func (st *stream) beat(ctx context.Context, nc net.Conn) bool {
	beat, cancel := context.WithTimeout(ctx, st.s.o.Heartbeat)
	defer cancel()
	for st.flush(nc) == nil {
		err := st.fill(beat)
		switch {
		case err == nil:
			continue
		case errors.Is(err, context.DeadlineExceeded):
			st.out = append(st.out, ": \n"...)
			st.cursor() // a filter may have passed over events meanwhile
			return true
		case st.s.wait.Err() != nil:
			st.out = append(st.out, ": the router is shutting down; come back with Last-Event-ID\n"...)
		case ctx.Err() != nil:
			return false // the client has gone
		case errors.Is(err, event.ErrGone):
			st.out = append(st.out, ": events were dropped before this stream had read them; coming back with Last-Event-ID says which\n"...)
			st.out = append(st.out, '\n')
			_ = st.flush(nc)
			return false
		default:
			st.s.o.Log.Warn("a stream failed", "error", err)
			st.out = append(st.out, ": the router failed; come back with Last-Event-ID\n"...)
		}
		st.cursor()
		_ = st.flush(nc)
		return false
	}
	return false
}

// fill gathers what there is, waiting for the first event up to the heartbeat, when ctx ends.
func (st *stream) fill(ctx context.Context) error {
	for n := 0; len(st.out) < streamFlush; n++ {
		rec, ok, more, err := st.reader.TryNext(ctx)
		switch {
		case err == nil && ok:
			st.event(rec)
			continue
		case err == nil && more && n == 0 && ctx.Err() == nil:
			n = -1 // a selective filter: look on
			continue
		case err != nil && n == 0, ctx.Err() != nil && n == 0:
			return errors.Join(err, ctx.Err())
		case n > 0:
			st.live = true
			return nil // send these first
		}
		st.live = true
		if rec, err = st.reader.Next(ctx); err != nil {
			return err
		}
		st.event(rec)
	}
	st.live = false
	return nil
}

// event appends one event: id, perhaps event, data.
func (st *stream) event(rec event.Record) {
	out := append(st.out, "id: "...)
	out = append(out, st.reader.Cursor()...)
	if st.typed {
		out = append(out, "\nevent: "...)
		out = append(out, rec.Attr(event.TagType)...)
	}
	out = append(out, "\ndata: "...)
	if st.live && rec.Len() <= maxShown {
		out = append(out, st.s.shown.of(rec)...)
	} else {
		out = appendLine(out, rec)
	}
	st.out = append(out, '\n', '\n')
}

// appendLine appends an event as one line.
func appendLine(out []byte, rec event.Record) []byte {
	from := len(out)
	out = appendEvent(out, rec)
	// JSON has line breaks between its tokens alone, where one is as good as another.
	for i := from; i < len(out); i++ {
		if out[i] == '\n' || out[i] == '\r' {
			out[i] = ' '
		}
	}
	return out
}

// maxShown bounds the records whose lines are kept.
const maxShown = 64 << 10

// shown are the lines of the last events that live streams have sent: an event that comes is rendered once, however many
// read its topic. Streams that are behind render for themselves. It may be used from several goroutines.
type shown [16]atomic.Pointer[shownLine]

type shownLine struct {
	rec  event.Record
	line []byte
}

// of returns an event's line, which is read-only. A record that comes from the log is the same memory for all who read
// it live; keeping it keeps that memory from being another record's.
func (s *shown) of(rec event.Record) []byte {
	at := &s[rec.Offset()%uint64(len(s))]
	if l := at.Load(); l != nil && unsafe.SliceData(l.rec) == unsafe.SliceData(rec) {
		return l.line
	}
	l := &shownLine{rec, appendLine(make([]byte, 0, rec.Len()+rec.Len()/4+256), rec)}
	at.Store(l)
	return l.line
}

// forget lets go of the events.
func (s *shown) forget() {
	for i := range s {
		s[i].Store(nil)
	}
}

// cursor appends an id without data: clients take it as their Last-Event-ID and fire no event.
func (st *stream) cursor() {
	st.out = append(st.out, "id: "...)
	st.out = append(st.out, st.reader.Cursor()...)
	st.out = append(st.out, '\n', '\n')
}

// flush writes what was gathered; a client that takes too long to take it is dropped, and may resume.
func (st *stream) flush(nc net.Conn) error {
	err := st.outStream.flush(nc)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		st.s.sseDropped.Add(1)
	}
	keep := 2 * streamFlush
	if st.live { // a stream that waits keeps little
		keep = 4 << 10
	}
	if cap(st.out) > keep {
		st.out = nil
	}
	return err
}
