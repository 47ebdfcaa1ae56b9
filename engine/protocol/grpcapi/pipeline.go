package grpcapi

import (
	"context"
	"errors"
	"io"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/admission"
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/sdk/client/millracev1"
)

// publishStream is what the generated code calls the stream.
type publishStream = grpc.BidiStreamingServer[millracev1.PublishStreamRequest, millracev1.PublishStreamResponse]

// A pipeline publishes what comes on one stream. One goroutine reads requests; another stores all that have come
// while it stored those before, and answers them in their order.
type pipeline struct {
	s      *Server
	se     *admission.Session
	stream publishStream
	topic  string // of the request before; the reader's

	taken chan *taken // requests that wait to be stored

	mu       sync.Mutex
	bytes    int           // of requests that are not answered
	reserved int           // of them, what there is room for
	fewer    chan struct{} // holds one when bytes are fewer
}

// taken is a request that will be answered.
type taken struct {
	sequence uint64
	size     int
	topic    string
	events   []event.Event
	in       *millracev1.PublishStreamRequest
	err      error // why nothing of it is to be stored
	pos      []event.Position
}

// PublishStream stores request after request.
func (x *events) PublishStream(stream publishStream) error {
	se, err := sessionOf(stream.Context())
	if err != nil {
		return err
	}
	p := &pipeline{s: x.s, se: se, stream: stream, taken: make(chan *taken, maxInFlight), fewer: make(chan struct{}, 1)}
	out := &line{stream: stream}
	return x.s.supervise(stream.Context(), se, nil, func(ctx context.Context) error {
		var broken error // of the reader; set when taken is closed
		x.s.detached.Go(func() {
			defer close(p.taken)
			broken = p.read(ctx)
		})
		for {
			select {
			case first, more := <-p.taken:
				if !more {
					return broken
				}
				if err := p.store(first, out); err != nil {
					return err
				}
			case <-ctx.Done(): // what was taken is answered
				for {
					select {
					case first, more := <-p.taken:
						if !more {
							return context.Cause(ctx)
						}
						if err := p.store(first, out); err != nil {
							return err
						}
					default:
						return context.Cause(ctx)
					}
				}
			}
		}
	})
}

// read takes requests until the client has sent its last, which is no error, or ctx ends.
func (p *pipeline) read(ctx context.Context) error {
	for sequence := uint64(1); ; sequence++ {
		in, err := p.stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
		if sequence > 1 { // the first came with the call
			if err := paced(ctx, p.se); err != nil {
				return err
			}
		}
		if name := in.GetTopic(); name != "" { // also of one that is refused: those behind it mean the same
			p.topic = name
		}
		t := &taken{sequence: sequence, size: proto.Size(in), in: in}
		if err := p.hold(ctx, t.size); err != nil {
			if ctx.Err() != nil {
				return err
			}
			t.size, t.in, t.err = 0, nil, err
		} else {
			t.err = p.check(t)
		}
		select {
		case p.taken <- t:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// check says what keeps a request from being stored, and makes its events.
func (p *pipeline) check(t *taken) (err error) {
	t.topic = p.topic
	if t.topic == "" {
		return event.Invalid("topic", "is missing; name the topic in the first request at least")
	}
	if _, err := may(p.stream.Context(), access.Publish, access.Topic, t.topic); err != nil {
		return err
	}
	if t.events, err = eventsOf(t.in.GetEvents(), p.s.o.Limits); err == nil {
		t.pos = make([]event.Position, len(t.events))
	}
	return err
}

// hold waits until what is not answered leaves room for another n bytes: no more than one request may be of the largest
// size at once. Large ones need room in the router too.
func (p *pipeline) hold(ctx context.Context, n int) error {
	for {
		p.mu.Lock()
		if p.bytes == 0 || p.bytes+n <= p.s.o.Limits.Body {
			defer p.mu.Unlock()
			if need := p.bytes + n - max(p.reserved, largeMessage); need > 0 {
				if err := p.se.Reserve(need, n); err != nil {
					return err
				}
				p.reserved += need
			}
			p.bytes += n
			return nil
		}
		p.mu.Unlock()
		select {
		case <-p.fewer:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (p *pipeline) let(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bytes -= n; p.bytes == 0 && p.reserved > 0 {
		p.reserved = 0
		p.se.Release()
	}
	select {
	case p.fewer <- struct{}{}:
	default:
	}
}

// store stores first and all that have come behind it, and answers them.
func (p *pipeline) store(first *taken, out *line) error {
	all := []*taken{first}
	for len(all) < maxInFlight {
		select {
		case t, more := <-p.taken:
			if more {
				all = append(all, t)
				continue
			}
		default:
		}
		break
	}
	// The client may go while this is stored: what was taken is stored all the same.
	ctx := p.se.Context(context.WithoutCancel(p.stream.Context()))
	p.commit(ctx, all)
	size := 0
	defer func() { p.let(size) }()
	for _, t := range all {
		size += t.size
	}
	for _, t := range all {
		answer := &millracev1.PublishStreamResponse{Sequence: t.sequence}
		if t.err != nil {
			answer.Error = p.s.told(millracev1.Events_PublishStream_FullMethodName, p.s.unseen(p.se, access.Topic, t.topic, t.err)).Proto()
		} else {
			answer.Events = publishedOf(t.events, t.pos)
		}
		if err := out.send(answer); err != nil {
			return err
		}
	}
	return nil
}

// commit stores requests: those of one topic in one piece and in their order, topics beside each other.
func (p *pipeline) commit(ctx context.Context, all []*taken) {
	var topics []string
	of := map[string][]*taken{}
	for _, t := range all {
		if t.err != nil {
			continue
		}
		if of[t.topic] == nil {
			topics = append(topics, t.topic)
		}
		of[t.topic] = append(of[t.topic], t)
	}
	if len(topics) == 1 {
		p.topicful(ctx, topics[0], of[topics[0]])
		return
	}
	var wg sync.WaitGroup
	for _, name := range topics {
		wg.Go(func() { p.topicful(ctx, name, of[name]) })
	}
	wg.Wait()
}

// topicful stores requests for one topic: as few commits as the limit of events allows. Where one of several is at fault,
// each is stored by itself.
func (p *pipeline) topicful(ctx context.Context, topic string, list []*taken) {
	for len(list) > 0 {
		n, events := 0, 0
		for n < len(list) && (n == 0 || events+len(list[n].events) <= p.s.o.Limits.Events) {
			events += len(list[n].events)
			n++
		}
		p.together(ctx, topic, list[:n], events)
		list = list[n:]
	}
}

func (p *pipeline) together(ctx context.Context, topic string, list []*taken, events int) {
	if len(list) == 1 {
		list[0].err = p.s.o.Backend.Publish(ctx, topic, list[0].events, list[0].pos)
		return
	}
	evs := make([]event.Event, 0, events)
	for _, t := range list {
		evs = append(evs, t.events...)
	}
	pos := make([]event.Position, events)
	if err := p.s.o.Backend.Publish(ctx, topic, evs, pos); err != nil {
		for _, t := range list {
			// Made anew: the router has filled in what was left out, and would not know the event again by that.
			if t.events, t.err = eventsOf(t.in.GetEvents(), p.s.o.Limits); t.err == nil {
				t.err = p.s.o.Backend.Publish(ctx, topic, t.events, t.pos)
			}
		}
		return
	}
	at := 0
	for _, t := range list {
		for i := range t.events {
			t.events[i].ID = evs[at+i].ID
		}
		at += copy(t.pos, pos[at:])
	}
}
