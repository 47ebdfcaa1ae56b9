package grpcapi

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/admission"
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/sdk/client/millracev1"
)

// A source is what a stream reads.
type source struct {
	kind access.Kind
	may  access.Action // on it, for as long as it is read
	name string
}

// sourceOf is what a request names, one of a topic and a subscription.
func sourceOf(topic, subscription string, ofTopic, ofSubscription bool) (source, error) {
	switch {
	case ofTopic:
		return source{access.Topic, access.Read, topic}, event.CheckName("topic", topic)
	case ofSubscription:
		return source{access.Subscription, access.Consume, subscription}, event.CheckName("subscription", subscription)
	}
	return source{}, event.Invalid("from", "is missing; name a topic or a subscription")
}

// open begins to read.
func (s *Server) openSource(ctx context.Context, se *admission.Session, src source, start event.Start, filter string) (Reader, error) {
	open := s.o.Backend.OpenTopic
	if src.kind == access.Subscription {
		open = s.o.Backend.OpenSubscription
	}
	r, err := open(se.Context(ctx), src.name, start, filter)
	if err != nil {
		return nil, s.unseen(se, src.kind, src.name, err)
	}
	return r, nil
}

// Read streams what is there, and what comes if the client follows.
func (x *events) Read(in *millracev1.ReadRequest, stream grpc.ServerStreamingServer[millracev1.ReadResponse]) error {
	ctx := stream.Context()
	se, err := sessionOf(ctx)
	if err != nil {
		return err
	}
	_, topic := in.GetFrom().(*millracev1.ReadRequest_Topic)
	_, sub := in.GetFrom().(*millracev1.ReadRequest_Subscription)
	src, err := sourceOf(in.GetTopic(), in.GetSubscription(), topic, sub)
	if err != nil {
		return err
	}
	still := func() error { return about(src.kind, src.name, se.May(src.may, src.kind, src.name)) }
	if err := still(); err != nil {
		return err
	}
	def := event.Start{At: event.Earliest}
	if in.GetFollow() {
		def.At = event.Latest
	}
	start, err := startOf(in.GetStart(), def, x.s.o.Now())
	if err != nil {
		return err
	}
	reader, err := x.s.openSource(ctx, se, src, start, in.GetFilter())
	if err != nil {
		return err
	}
	out := &line{stream: stream}
	return x.s.supervise(ctx, se, still, func(ctx context.Context) error {
		defer reader.Close()
		r := &reading{reader: reader, every: x.s.o.Heartbeat, still: still, left: in.GetLimit(), bounded: in.GetLimit() > 0, follow: in.GetFollow(),
			events: func(body []byte, cursor string) error {
				return out.send(&outgoing{body: body, tail: appendText(nil, 2, cursor)})
			}}
		r.beat = func(cursor string) error { return out.send(&millracev1.ReadResponse{Cursor: cursor}) }
		return r.run(ctx)
	})
}

// A reading sends what a reader has.
type reading struct {
	reader Reader
	every  time.Duration                          // between two messages
	still  func() error                           // whether the client may still read it
	events func(body []byte, cursor string) error // sends events, encoded
	beat   func(cursor string) error
	// allowed waits until events may be sent and says how many; nil: any number.
	allowed func(context.Context) (int, error)
	spent   func(int)

	bounded bool
	left    uint64 // events, if bounded
	follow  bool
	told    string // the cursor that the client knows
}

// run reads until there is no more to read or ctx ends.
func (r *reading) run(ctx context.Context) error {
	for !r.bounded || r.left > 0 {
		most := batchEvents
		if r.allowed != nil {
			n, err := r.allowed(ctx)
			if err != nil {
				return err
			}
			most = min(most, n)
		}
		if r.bounded {
			most = int(min(uint64(most), r.left))
		}
		batch, n, end, err := r.gather(ctx, most)
		if n > 0 {
			if err := r.still(); err != nil { // what he may do can have changed since the batch before
				return err
			}
			cursor := r.reader.Cursor()
			if err := r.events(batch, cursor); err != nil {
				return err
			}
			r.told, r.left = cursor, r.left-uint64(n)
			if r.spent != nil {
				r.spent(n)
			}
		}
		switch {
		case err != nil && n == 0:
			return err
		case err != nil: // told by the next call, which begins with it
		case end && !r.follow:
			if r.told == r.reader.Cursor() {
				return nil
			}
			return r.tell()
		}
	}
	return nil
}

// gather returns n events, encoded, at most so many: as many as are ready, or the first that comes. Without one it returns
// when a heartbeat was sent. end: there is nothing more now.
func (r *reading) gather(ctx context.Context, most int) (batch []byte, n int, end bool, err error) {
	began := time.Now()
	take := func(rec event.Record) {
		if n++; n == 1 {
			batch = newBody()
		}
		batch = appendReceived(batch, rec, r.reader.Cursor())
	}
	for n < most && len(batch) < batchBytes {
		rec, ok, more, err := r.reader.TryNext(ctx)
		switch {
		case err != nil:
			return batch, n, false, err
		case ok:
			take(rec)
			continue
		case n > 0, !more && !r.follow:
			return batch, n, !more, nil
		case ctx.Err() != nil:
			return nil, 0, false, context.Cause(ctx)
		case more && time.Since(began) < r.every: // a selective filter: look on
			continue
		case more:
			return nil, 0, false, r.tell()
		case r.told == "": // a client that loses the connection before its first event misses nothing
			return nil, 0, false, r.tell()
		}
		wait, cancel := context.WithTimeout(ctx, r.every)
		rec, err = r.reader.Next(wait)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			return nil, 0, false, r.tell()
		}
		if err != nil {
			return nil, 0, false, err
		}
		take(rec)
	}
	return batch, n, false, nil
}

// tell tells the cursor alone.
func (r *reading) tell() error {
	r.told = r.reader.Cursor()
	return r.beat(r.told)
}
