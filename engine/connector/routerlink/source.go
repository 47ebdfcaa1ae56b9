package routerlink

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/millrace/millrace/engine/egress"
	"github.com/millrace/millrace/engine/event"
)

// From is what a bridge brings in from another router: what stands under `from`, and what the process adds. Zero means
// default.
type From struct {
	Router       string            `yaml:"router" rules:"required" about:"URL of the other router's API."`
	Topic        string            `yaml:"topic" about:"On the other router: it is read from where this one stopped."`
	Subscription string            `yaml:"subscription" about:"In place of topic: a pull subscription of the other router, which keeps the place."`
	Token        string            `yaml:"token" about:"What the other router takes: it needs read on topic, or consume on subscription, nothing else. Give a reference."`
	Start        string            `yaml:"start" about:"Of topic: where a new bridge begins: latest, earliest, a time, or a duration back."` // latest
	Filter       string            `yaml:"filter" rules:"filter" about:"Of topic: which events; at most 4 KiB. The other router looks at it."`
	Timeout      time.Duration     `yaml:"timeout" about:"Of one request, connecting included, waiting for events aside."` // 30 s
	TLS          egress.TLSOptions `yaml:"tls" about:"How TLS connections to it are made."`

	Process `yaml:"-"`
	Wait    time.Duration `yaml:"-"` // for events, in one request; 25 s
}

// WithDefaults returns o with its zero fields filled.
func (o From) WithDefaults() From {
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	if o.Start == "" && o.Subscription == "" {
		o.Start = latest
	}
	if o.Wait == 0 {
		o.Wait = 25 * time.Second
	}
	return o
}

const (
	latest   = "latest"
	earliest = "earliest"
)

// Validate reports everything wrong in what rules say, each fault at its key: *event.Faults. Secrets are never shown.
func (o From) Validate() error {
	f := faults{event.Faults{Is: event.ErrInvalid}}
	f.router(o.Router)
	switch {
	case o.Topic == "" && o.Subscription == "":
		f.Add("topic", "missing; want the topic of the other router, or subscription: one of its pull subscriptions")
	case o.Topic != "" && o.Subscription != "":
		f.Add("subscription", "is beside topic; keep one of them")
	case o.Topic != "":
		f.name("topic", o.Topic)
		if o.Start != "" && o.Start != latest && o.Start != earliest {
			if _, err := event.ParseSince(o.Start, time.Now()); err != nil {
				f.Add("start", "is %.60q; want latest, earliest, a time such as 2026-01-31T12:00:00Z, or a duration back such as 24h", o.Start)
			}
		}
	default:
		f.name("subscription", o.Subscription)
		if o.Start != "" {
			f.Add("start", "is of a topic; the subscription of the other router says where it begins")
		}
		if o.Filter != "" {
			f.Add("filter", "is of a topic; the subscription of the other router has its own")
		}
	}
	f.token(o.Token)
	f.timeout(o.WithDefaults().Timeout)
	f.tls(o.TLS)
	return f.Err()
}

// Bounds of what is read at once.
const (
	pageEvents = 1000
	pullEvents = 500
	pageBytes  = 128 << 20 // of an answer, unpacked: 8 MiB and an event of any size
	unackedMax = 20_000
)

// Source brings events in from another router.
type Source struct {
	o     From
	link  *link
	place place

	name, stamp string // of who answered last
	unzip       *zstd.Decoder
	events      []event.Event
	body        []byte
}

// place is what is remembered of how far it has come.
type place struct {
	Of     string            `json:"of"`               // which topic or subscription of which router
	Cursor string            `json:"cursor,omitempty"` // of the topic
	Stamp  string            `json:"stamp,omitempty"`  // of the topic that the cursor is of
	Next   map[uint32]uint64 `json:"next,omitempty"`   // the first offset of each partition that was not read
	Gap    bool              `json:"gap,omitempty"`    // the cursor was overtaken: it goes on with what there is

	Unacked []string `json:"unacked,omitempty"` // deliveries of the subscription that are stored, and the other side may not know
}

// OpenSource returns a source for o, or everything that is wrong in it. It connects to nothing yet.
func OpenSource(_ context.Context, o From) (*Source, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	o = o.WithDefaults()
	l, err := newLink(o.Process, o.Router, o.Token, o.Timeout, o.TLS)
	if err != nil {
		return nil, err
	}
	return &Source{o: o, link: l}, nil
}

// Run implements event.Intake.
func (s *Source) Run(ctx context.Context, into event.Inlet) {
	defer s.link.client.CloseIdleConnections()
	step := s.page
	if s.o.Subscription != "" {
		step = s.pull
	}
	fails, loaded := 0, false
	for ctx.Err() == nil {
		var err error
		if !loaded {
			if err = s.load(ctx, into); err == nil {
				loaded = true
			}
		}
		if loaded {
			err = step(ctx, into)
		}
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			fails = 0
			continue
		}
		into.Tell(err)
		var after *event.RetryAfter
		least := time.Duration(0)
		if errors.As(err, &after) {
			least = after.Wait
		}
		event.Backoff(ctx, fails, least)
		fails++
	}
}

// load reads how far it has come; a place of another topic or router counts for nothing.
func (s *Source) load(ctx context.Context, into event.Inlet) error {
	b, err := into.Place(ctx)
	if err != nil {
		return err
	}
	of := s.o.Router + " topic " + s.o.Topic
	if s.o.Subscription != "" {
		of = s.o.Router + " subscription " + s.o.Subscription
	}
	s.place = place{}
	if err := json.Unmarshal(b, &s.place); err != nil || s.place.Of != of {
		s.place = place{Of: of}
	}
	return nil
}

// keep stores events with the place.
func (s *Source) keep(ctx context.Context, into event.Inlet, evs []event.Event) error {
	b, err := json.Marshal(s.place)
	if err != nil {
		return fmt.Errorf("place of a bridge: %w", err)
	}
	return into.Take(ctx, evs, b)
}

// page reads the events after the cursor, waiting for the first.
func (s *Source) page(ctx context.Context, into event.Inlet) error {
	q := url.Values{"limit": {fmt.Sprint(pageEvents)}, "wait": {s.o.Wait.String()}}
	switch {
	case s.place.Cursor != "":
		q.Set("after", s.place.Cursor)
	case s.place.Gap || s.o.Start == earliest:
	case s.o.Start == latest: // the place is known before the first event
		q.Set("since", "0s")
		q.Del("wait")
	default:
		q.Set("since", s.o.Start)
	}
	if s.o.Filter != "" {
		q.Set("filter", s.o.Filter)
	}
	r, err := s.ask(ctx, http.MethodGet, "/v1/topics/"+s.o.Topic+"/events?"+q.Encode(), nil)
	if err != nil {
		return err
	}
	if r != nil {
		if r.status == http.StatusGone && s.place.Cursor != "" {
			into.Lost(0, s.link.words(r, "topic "+s.o.Topic, "read"))
			s.place.Cursor, s.place.Gap = "", true
			return nil
		}
		return s.refused(r, "topic "+s.o.Topic, "read")
	}
	var page struct {
		Events json.RawMessage `json:"events"`
		Next   string          `json:"next"`
	}
	if err := json.Unmarshal(s.body, &page); err != nil || page.Next == "" {
		return fmt.Errorf("router %s: its answer is not that of a router's topic", s.link.shown)
	}
	if s.events, err = event.ParseBatch(page.Events, wide(), s.events[:0]); err != nil {
		return fmt.Errorf("router %s: an event that it sent cannot be read: %w", s.link.shown, err)
	}
	was := s.place
	before, lost := s.advance(page.Next)
	if len(before) == 0 && page.Next == was.Cursor {
		into.Tell(nil)
		return nil
	}
	if err := s.keep(ctx, into, before); err != nil {
		s.place = was
		return err
	}
	if lost > 0 {
		into.Lost(lost, "")
	}
	into.Tell(nil)
	return nil
}

// advance moves the place behind a page, and returns what is new of it, and how many events were passed over in a gap.
func (s *Source) advance(cursor string) (fresh []event.Event, lost uint64) {
	next := make(map[uint32]uint64, len(s.place.Next))
	if s.place.Stamp == s.stamp {
		for p, off := range s.place.Next {
			next[p] = off
		}
	}
	fresh = s.events[:0]
	for i := range s.events {
		e := &s.events[i]
		pos, ok := takePosition(e)
		if ok {
			have, known := next[pos.Partition]
			if known && pos.Offset < have {
				continue
			}
			if known && s.o.Filter == "" { // of a partition there is every offset
				lost += pos.Offset - have
			}
			next[pos.Partition] = pos.Offset + 1
		}
		s.via(e)
		fresh = append(fresh, *e)
	}
	s.place.Cursor, s.place.Stamp, s.place.Next = cursor, s.stamp, next
	s.place.Gap = false
	return fresh, lost
}

// positionAttribute is how the other router says where an event lies.
const positionAttribute = "millraceposition"

// takePosition takes out of an event where it lies on the other router.
func takePosition(e *event.Event) (event.Position, bool) {
	for i, a := range e.Extensions {
		if a.Name == positionAttribute {
			e.Extensions = slices.Delete(e.Extensions, i, i+1)
			pos, err := event.ParsePosition(a.Value)
			return pos, err == nil
		}
	}
	return event.Position{}, false
}

// via notes that the event has passed the other router.
func (s *Source) via(e *event.Event) {
	if s.name == "" {
		return
	}
	for i := range e.Extensions {
		if a := &e.Extensions[i]; a.Name == event.ViaAttribute {
			a.Value += "," + s.name
			return
		}
	}
	e.Extensions = append(e.Extensions, event.Attribute{Name: event.ViaAttribute, Value: s.name})
}

// wide are limits beyond those of any router: what is too large here is refused where it is stored.
func wide() event.Limits {
	l := event.Limits{}.WithDefaults()
	l.Event, l.Body, l.Events, l.Attrs = pageBytes, pageBytes, 10*pageEvents, l.Attrs+2
	return l
}

func (s *Source) refused(r *refusal, what, action string) error {
	return &event.RetryAfter{Err: errors.New(s.link.words(r, what, action)), Code: r.status, Wait: r.wait}
}

// ask sends a request and reads the answer into body; a refusal if it is not 2xx.
func (s *Source) ask(ctx context.Context, method, path string, send []byte) (*refusal, error) {
	bounded, cancel := context.WithTimeout(ctx, s.o.Wait+s.o.Timeout)
	defer cancel()
	req, err := s.link.request(bounded, method, path)
	if err != nil {
		return nil, err
	}
	if send != nil {
		req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(send)), int64(len(send))
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set(event.BridgeHeader, s.o.Name)
	req.Header.Set("Accept-Encoding", "zstd")
	res, err := s.link.client.Do(req)
	if err != nil {
		return nil, s.link.failed(ctx, err)
	}
	if res.StatusCode < 200 || res.StatusCode > 299 {
		return readRefusal(res), nil
	}
	defer res.Body.Close()
	name, stamp, _ := strings.Cut(res.Header.Get(event.RouterHeader), ";")
	if len(name) > 64 || strings.Trim(name, "0123456789abcdef") != "" {
		name = ""
	}
	s.name, s.stamp = name, stamp
	return nil, s.read(ctx, res)
}

// read unpacks an answer in no more memory than the limit.
func (s *Source) read(ctx context.Context, res *http.Response) error {
	var in io.Reader = res.Body
	if res.Header.Get("Content-Encoding") == "zstd" {
		if s.unzip == nil {
			z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(8<<20), zstd.WithDecoderMaxMemory(pageBytes))
			if err != nil {
				return fmt.Errorf("zstd: %w", err)
			}
			s.unzip = z
		}
		if err := s.unzip.Reset(res.Body); err != nil {
			return s.link.failed(ctx, err)
		}
		in = s.unzip
	}
	b := bytes.NewBuffer(s.body[:0])
	n, err := b.ReadFrom(io.LimitReader(in, pageBytes+1))
	s.body = b.Bytes()
	switch {
	case err != nil:
		return s.link.failed(ctx, err)
	case n > pageBytes:
		return fmt.Errorf("router %s: its answer has over %d bytes", s.link.shown, pageBytes)
	}
	return nil
}
