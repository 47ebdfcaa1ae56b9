package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// maxStreamLine bounds one line of an event stream, in bytes: an event of 16 MiB in base64.
const maxStreamLine = 32 << 20

// A streamEvent is one event of a stream of server-sent events.
type streamEvent struct {
	id   string // the cursor after it
	data []byte // valid until the next read
}

// A streamReader reads server-sent events (WHATWG HTML, "Server-sent events").
type streamReader struct {
	r     *bufio.Scanner
	id    string
	retry time.Duration // what the server asked for; 0 if nothing
	data  []byte
}

func newStreamReader(r io.Reader) *streamReader {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 64<<10), maxStreamLine)
	s.Split(streamLines)
	return &streamReader{r: s}
}

// streamLines splits at CRLF, LF or CR. A CR at the very end of what is here ends its line only once the next byte
// shows that no LF follows.
func streamLines(b []byte, atEOF bool) (int, []byte, error) {
	i := bytes.IndexAny(b, "\r\n")
	switch {
	case i < 0 || b[i] == '\r' && i+1 == len(b) && !atEOF:
		return 0, nil, nil // a line that the end cuts off is dropped, as the standard says
	case b[i] == '\r' && i+1 < len(b) && b[i+1] == '\n':
		return i + 2, b[:i], nil
	}
	return i + 1, b[:i], nil
}

// next returns the next event; io.EOF when the stream ends.
func (s *streamReader) next() (streamEvent, error) {
	s.data = s.data[:0]
	some := false
	for s.r.Scan() {
		line := s.r.Bytes()
		if len(line) == 0 {
			if some {
				return streamEvent{id: s.id, data: bytes.TrimSuffix(s.data, []byte("\n"))}, nil
			}
			continue
		}
		field, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(field) {
		case "data":
			some = true
			s.data = append(append(s.data, value...), '\n')
		case "id":
			if bytes.IndexByte(value, 0) < 0 {
				s.id = string(value)
			}
		case "retry":
			if ms, err := strconv.ParseUint(string(value), 10, 31); err == nil {
				s.retry = time.Duration(ms) * time.Millisecond
			}
		}
	}
	if err := s.r.Err(); err != nil {
		return streamEvent{}, err
	}
	return streamEvent{}, io.EOF
}

// A follower follows a stream through lost connections.
type follower struct {
	c     *client
	url   *url.URL
	lost  func(err error, wait time.Duration) // told before each wait; err may be nil
	first time.Duration                       // the first wait; it doubles up to 16 times that
}

// errEnough ends a follow from within its callback.
var errEnough = errors.New("enough")

// follow hands every event to each until ctx ends or each returns an error. Failing to connect the first
// time is an error; later losses are waited out and the stream resumed after the last event seen.
func (f *follower) follow(ctx context.Context, each func(streamEvent) error) error {
	last, since := "", f.url.Query().Get("since")
	connected := false
	wait := f.first
	for {
		u := *f.url
		if connected && last == "" && since != "" {
			// Nothing seen yet: continue from when we connected rather than skip what came meanwhile.
			q := u.Query()
			q.Set("since", since)
			u.RawQuery = q.Encode()
		}
		seen, err := f.once(ctx, &u, &last, func(res *http.Response) {
			connected = true
			if t, err := http.ParseTime(res.Header.Get("Date")); err == nil && since == "" {
				since = t.UTC().Format(time.RFC3339)
			}
		}, each)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var p *problem
		var mine *callbackError
		switch {
		case errors.As(err, &mine):
			return mine.err
		case errors.As(err, &p) && p.Status != http.StatusServiceUnavailable && p.Status != http.StatusTooManyRequests && p.Status != http.StatusBadGateway && p.Status != http.StatusGatewayTimeout,
			err != nil && !connected:
			return err
		}
		if seen {
			wait = f.first
		}
		f.lost(err, wait)
		if err := sleep(ctx, wait); err != nil {
			return err
		}
		wait = min(2*wait, 16*f.first)
	}
}

// callbackError marks an error of follow's callback.
type callbackError struct{ err error }

func (c *callbackError) Error() string { return c.err.Error() }

// once reads one connection until it ends; seen tells whether any event came.
func (f *follower) once(ctx context.Context, u *url.URL, last *string, open func(*http.Response), each func(streamEvent) error) (seen bool, err error) {
	req, err := f.c.request(ctx, "GET", u, nil, "Accept", "text/event-stream")
	if err != nil {
		return false, err
	}
	if *last != "" {
		req.Header.Set("Last-Event-ID", *last)
	}
	res, err := f.c.send(req)
	if err != nil {
		return false, err
	}
	defer res.Body.Close()
	if media := res.Header.Get("Content-Type"); !strings.HasPrefix(media, "text/event-stream") {
		return false, &callbackError{fmt.Errorf("%s answered with %.60q instead of an event stream; is it a router?", f.c.base.Host, media)}
	}
	open(res)
	s := newStreamReader(res.Body)
	for {
		e, err := s.next()
		if s.retry > 0 {
			f.first = s.retry
		}
		if err == io.EOF {
			return seen, nil
		}
		if err != nil {
			return seen, err
		}
		seen = true
		if err := each(e); err != nil {
			return seen, &callbackError{err}
		}
		if e.id != "" {
			*last = e.id
		}
	}
}
