package client

import (
	"context"
	"errors"
	"io"
	"iter"
	"sync"

	"github.com/millrace/millrace/sdk/client/millracev1"
	"google.golang.org/grpc/codes"
)

// From is what is read: make it with Topic or Subscription.
type From struct{ topic, subscription string }

// Topic is the topic of that name.
func Topic(name string) From { return From{topic: name} }

// Subscription is what the subscription of that name puts out, which delivers to a topic or a stream.
func Subscription(name string) From { return From{subscription: name} }

// ReadOptions say what of it. The zero value of a field means its default.
type ReadOptions struct {
	Start  *millracev1.Start // of Follow: Latest; of Read: Earliest
	Filter string            // only events that this expression passes; "": all
	Limit  uint64            // so many events and no more; 0: no bound
}

// Reader reads a topic from one place on. One loop over it runs at a time; its other methods are for everyone.
type Reader struct {
	c      *Client
	from   From
	o      ReadOptions
	follow bool

	mu     sync.Mutex
	cursor string
	got    uint64
	busy   bool
}

// Read reads what is there, to the end.
func (c *Client) Read(from From, o ReadOptions) *Reader { return &Reader{c: c, from: from, o: o} }

// Follow reads on and waits for events to come.
func (c *Client) Follow(from From, o ReadOptions) *Reader {
	return &Reader{c: c, from: from, o: o, follow: true}
}

// Cursor is the place behind the last event that the loop's body was done with, and behind events that the filter passed
// over: who begins there ([After]) misses nothing. It is "" as long as nothing is known.
func (r *Reader) Cursor() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cursor
}

// All walks the events, each once. When the stream breaks it opens another behind the event before. An error is the last
// thing that it yields, without an event: an [Error] that no other try would mend, such as OUT_OF_RANGE where the topic's
// ring has overtaken the reader, or ctx's. Another loop over the same Reader goes on behind the event with which the one
// before ended.
func (r *Reader) All(ctx context.Context) iter.Seq2[*Received, error] {
	return func(yield func(*Received, error) bool) {
		r.mu.Lock()
		busy := r.busy
		r.busy = true
		r.mu.Unlock()
		if busy {
			yield(nil, errorf(codes.FailedPrecondition, "another loop over this Reader runs"))
			return
		}
		defer func() {
			r.mu.Lock()
			r.busy = false
			r.mu.Unlock()
		}()
		for try := 1; ; try++ {
			came, err := r.stream(ctx, yield)
			if came {
				try = 1
			}
			switch {
			case errors.Is(err, errStopped):
				return
			case ctx.Err() != nil:
				yield(nil, ctx.Err())
				return
			case err == nil: // the end of what is there, or of the limit
				return
			}
			ok, after := r.c.cut(err)
			if !ok {
				yield(nil, asError(err))
				return
			}
			wait := r.c.o.Backoff.wait(try, after)
			r.c.o.Log.Warn("millrace: reading was cut off and begins again", "topic", r.from.topic, "subscription", r.from.subscription, "error", err, "in", wait)
			if !sleep(ctx, wait) {
				yield(nil, ctx.Err())
				return
			}
		}
	}
}

var errStopped = errors.New("the loop was left")

// request is what to ask for now; false if there is nothing left to ask for.
func (r *Reader) request() (*millracev1.ReadRequest, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	q := &millracev1.ReadRequest{Start: r.o.Start, Filter: r.o.Filter, Follow: r.follow}
	if r.o.Limit > 0 {
		if r.got >= r.o.Limit {
			return nil, false
		}
		q.Limit = r.o.Limit - r.got
	}
	if r.cursor != "" {
		q.Start = After(r.cursor)
	}
	if r.from.subscription != "" {
		q.From = &millracev1.ReadRequest_Subscription{Subscription: r.from.subscription}
	} else {
		q.From = &millracev1.ReadRequest_Topic{Topic: r.from.topic}
	}
	return q, true
}

// stream reads over one stream until it ends; came tells that it was of use. nil is the end of everything.
func (r *Reader) stream(ctx context.Context, yield func(*Received, error) bool) (came bool, err error) {
	q, more := r.request()
	if !more {
		return false, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := r.c.events.Read(ctx, q)
	if err != nil {
		return false, err
	}
	for {
		batch, err := s.Recv()
		if errors.Is(err, io.EOF) {
			if _, more := r.request(); r.follow && more {
				return came, err // the router stops
			}
			return came, nil
		}
		if err != nil {
			return came, err
		}
		came = true
		for _, e := range batch.Events {
			if !yield(e, nil) {
				r.behind(e.Cursor, 1)
				return true, errStopped
			}
			r.behind(e.Cursor, 1)
		}
		r.behind(batch.Cursor, 0)
	}
}

// behind notes where the reader is.
func (r *Reader) behind(cursor string, events uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got += events
	if cursor != "" {
		r.cursor = cursor
	}
}
