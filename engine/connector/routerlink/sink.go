package routerlink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/millrace/millrace/engine/event"
)

// Sink forwards events to a topic of another router. One Deliver at a time keeps their order.
type Sink struct {
	o    To
	link *link
	path string
	zip  *zstd.Encoder

	mu   sync.Mutex // of what follows: one request at a time
	body []byte
	wire []byte
	most int // events of a request: fewer after one that was too large
}

// Bounds of a request.
const (
	batchEvents = 1000
	batchBytes  = 1 << 20
	headerBytes = 6 << 10 // of the header that says where its events lie
)

// OpenSink returns a sink for o, or everything that is wrong in it. It connects to nothing yet.
func OpenSink(_ context.Context, o To) (*Sink, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	o = o.WithDefaults()
	l, err := newLink(o.Process, o.Router, o.Token, o.Timeout, o.TLS)
	if err != nil {
		return nil, err
	}
	zip, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(1<<20), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return nil, fmt.Errorf("zstd: %w", err)
	}
	return &Sink{o: o, link: l, zip: zip, path: "/v1/topics/" + o.Topic + "/events", most: batchEvents}, nil
}

// Batch says what Deliver takes at once.
func (s *Sink) Batch() (events, size int, wait time.Duration) { return batchEvents, batchBytes, 0 }

// Target is where it sends, the token included: to be compared, not to be shown.
func (s *Sink) Target() string { return s.o.Router + " " + s.o.Topic + " " + s.o.Token }

// Close frees what the sink holds.
func (s *Sink) Close() error {
	s.link.client.CloseIdleConnections()
	return s.zip.Close()
}

// Deliver sends ds in their order and returns nil once the other router has stored all, or had them. Of single events that
// it will never take the error is event.Permanent; of all others, and what comes after them, it is an *event.RetryAfter that
// is stalled: nothing is wrong with them.
func (s *Sink) Deliver(ctx context.Context, ds []event.Delivery) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	errs, failed := make([]error, len(ds)), false
	for from := 0; from < len(ds); {
		n := 1
		for n < s.most && from+n < len(ds) && ds[from+n].Line == ds[from].Line {
			n++
		}
		sent, err := s.send(ctx, ds[from:from+n], errs[from:from+n])
		if err != nil && from == 0 && !failed {
			return err
		}
		for i := range errs[from : from+sent] {
			failed = failed || errs[from+i] != nil
		}
		if err != nil {
			for i := from; i < len(ds); i++ {
				errs[i] = err
			}
			return &event.Partial{Errs: errs}
		}
		from += sent
	}
	switch {
	case !failed:
		return nil
	case len(ds) == 1:
		return errs[0]
	}
	return &event.Partial{Errs: errs}
}

// send sends as many of ds, which are of one line, as one request takes, and returns how many were dealt with: errs has what
// is wrong with single ones. An error is about the other side.
func (s *Sink) send(ctx context.Context, ds []event.Delivery, errs []error) (int, error) {
	left := make([]int, len(ds)) // that are not refused
	for i := range left {
		left[i] = i
	}
	for len(left) > 0 {
		taken, header := s.build(ds, left)
		r, err := s.post(ctx, header)
		if err != nil {
			return 0, &event.RetryAfter{Err: err, Stalled: true}
		}
		if r == nil {
			return s.upTo(left, taken, len(ds)), nil
		}
		at, why, alone := r.about(taken)
		switch {
		case alone && (r.status == 400 || r.status == 409 || r.status == 413 || r.status == 422):
			errs[left[at]] = event.Permanent(r.status, errors.New(s.link.words(r, "topic "+s.o.Topic, "publish")+why))
			left = append(left[:at], left[at+1:]...)
		case r.status == 413 || r.status == 431 || r.own && (r.status == 400 || r.status == 409 || r.status == 422):
			if taken == 1 {
				return 0, s.stalled(r)
			}
			s.most = max(1, taken/2)
		default:
			return 0, s.stalled(r)
		}
	}
	return len(ds), nil
}

// upTo is how many events are dealt with when the first taken of left are.
func (s *Sink) upTo(left []int, taken, all int) int {
	if s.most < batchEvents {
		s.most = min(2*s.most, batchEvents)
	}
	if taken == len(left) {
		return all
	}
	return left[taken]
}

func (s *Sink) stalled(r *refusal) error {
	return &event.RetryAfter{Err: errors.New(s.link.words(r, "topic "+s.o.Topic, "publish")), Code: r.status, Wait: r.wait, Stalled: true}
}

// about says which of n events a refusal is about, if it is about one alone.
func (r *refusal) about(n int) (at int, why string, alone bool) {
	if !r.own {
		return 0, "", false
	}
	for _, f := range r.Errors {
		if f.At == event.BridgeHeader {
			return 0, "", false
		}
		rest, ok := strings.CutPrefix(f.At, "events[")
		num, _, closed := strings.Cut(rest, "]")
		if i, err := strconv.Atoi(num); ok && closed && err == nil && i >= 0 && i < n {
			return i, "", true
		}
	}
	return 0, "", n == 1
}

// build makes the body of a request of as many events as it takes, and its header; "" for those of no line.
func (s *Sink) build(ds []event.Delivery, left []int) (n int, header string) {
	s.body = append(s.body[:0], '[')
	from := event.Forwarded{By: s.o.Origin + "/" + ds[0].Subscription, Line: ds[0].Line}
	for n < len(left) && n < s.most {
		d := &ds[left[n]]
		before := len(s.body)
		if n > 0 {
			s.body = append(s.body, ',')
		}
		s.body = AppendVia(s.body, d.Event, s.o.Name)
		if n > 0 && len(s.body) > 2*batchBytes {
			s.body = s.body[:before]
			break
		}
		from.At = append(from.At, d.Event.Position())
		n++
	}
	s.body = append(s.body, ']')
	s.wire = s.zip.EncodeAll(s.body, s.wire[:0])
	if from.Line == "" {
		return n, ""
	}
	h := from.Append(nil)
	if len(h) > headerBytes && n > 1 {
		return s.build(ds, left[:n/2])
	}
	return n, string(h)
}

// post sends what was built; nil means that it was taken.
func (s *Sink) post(ctx context.Context, header string) (*refusal, error) {
	bounded, cancel := context.WithTimeout(ctx, s.o.Timeout)
	defer cancel()
	req, err := s.link.request(bounded, http.MethodPost, s.path)
	if err != nil {
		return nil, err
	}
	req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(s.wire)), int64(len(s.wire))
	req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(s.wire)), nil }
	req.Header.Set("Content-Type", "application/cloudevents-batch+json")
	req.Header.Set("Content-Encoding", "zstd")
	req.Header.Set("Prefer", "return=minimal")
	if header != "" {
		req.Header.Set(event.BridgeHeader, header)
	}
	res, err := s.link.client.Do(req)
	if err != nil {
		return nil, s.link.failed(ctx, err)
	}
	if res.StatusCode < 200 || res.StatusCode > 299 {
		return readRefusal(res), nil
	}
	defer res.Body.Close()
	_, err = io.Copy(io.Discard, io.LimitReader(res.Body, answerLimit)) // else the connection is not used again
	if err != nil {
		return nil, s.link.failed(ctx, err)
	}
	return nil, nil
}

// AppendVia appends an event in structured mode, with a router among those that it has passed.
func AppendVia(dst []byte, rec event.Record, name string) []byte {
	if via, ok := rec.Extension(event.ViaAttribute); ok {
		var e event.Event
		rec.Decode(&e)
		e.Set(event.Attr{Tag: event.TagExtension, Name: event.ViaAttribute, Value: via.Value + "," + name})
		return event.Record(e.AppendRecord(nil)).AppendStructured(dst)
	}
	dst = rec.AppendStructured(dst)
	dst = append(dst[:len(dst)-1], `,"`+event.ViaAttribute+`":"`...)
	return append(append(dst, name...), '"', '}')
}
