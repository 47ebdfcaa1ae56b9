package grpcapi

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"unsafe"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"

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
	batch                                     // borrows from wire
	wire     mem.Buffer                       // what came; nil: batch borrows from asked
	asked    *millracev1.PublishStreamRequest // what protobuf had to decode
	sequence uint64
	size     int    // of what came; from hold on with what was made of it
	to       string // the topic
	err      error  // why nothing of it is to be stored
	pos      []event.Position
}

// takenPool keeps the memory of requests that were answered.
var takenPool = sync.Pool{New: func() any { return new(taken) }}

// keptEvents is how many events a request may have had whose memory is kept.
const keptEvents = 1000

// holds is how many bytes the request takes: many small events take more than what they were sent in.
func (t *taken) holds() int {
	const ofEvent, ofAttribute = int(unsafe.Sizeof(event.Event{})), int(unsafe.Sizeof(event.Attribute{}))
	n := t.size + len(t.events)*ofEvent + t.parts*ofAttribute
	if t.asked != nil { // the messages and the events that are made of them, about as large
		n += 2 * len(t.asked.GetEvents()) * ofEvent
		for _, e := range t.asked.GetEvents() {
			n += len(e.GetAttributes()) * 5 * ofAttribute
		}
	}
	return n
}

// drop lets go of what was received, at which nobody may look any more.
func (t *taken) drop() {
	if t.wire != nil {
		t.wire.Free()
	}
	clear(t.events)
	clear(t.attrs)
	*t = taken{batch: batch{events: t.events[:0], attrs: t.attrs[:0]}, sequence: t.sequence, to: t.to, pos: t.pos[:0]}
}

// free is drop of a request that was answered.
func (t *taken) free() {
	t.drop()
	if cap(t.events) <= keptEvents && cap(t.attrs) <= 2*keptEvents {
		takenPool.Put(t)
	}
}

// names is the topic that the request names. It borrows.
func (t *taken) names() string {
	if t.asked != nil {
		return t.asked.GetTopic()
	}
	return t.topic
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
			broken = x.s.guarded(func() error { return p.read(ctx) })
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
		t := takenPool.Get().(*taken)
		err := p.stream.RecvMsg(t)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
		if name := t.names(); name != "" && name != p.topic { // also of one that is refused: those behind it mean the same
			p.topic = strings.Clone(name)
		}
		t.sequence, t.to = sequence, p.topic
		t.size = t.holds()
		err = p.hold(ctx, t.size)
		if sequence > 1 && ctx.Err() == nil { // the first came with the call
			if err := paced(ctx, p.se); err != nil {
				return err
			}
		}
		if err != nil {
			if ctx.Err() != nil {
				return err
			}
			t.drop()
			t.err = err
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
	if t.to == "" {
		return event.Invalid("topic", "is missing; name the topic in the first request at least")
	}
	if _, err := may(p.stream.Context(), access.Publish, access.Topic, t.to); err != nil {
		return err
	}
	if t.asked != nil {
		t.events, err = eventsOf(t.asked.GetEvents(), p.s.o.Limits)
	}
	t.pos = slices.Grow(t.pos[:0], len(t.events))[:len(t.events)]
	return err
}

// hold waits until what is not answered leaves room for another n bytes: no more than one request may be of the largest
// size at once. Large ones need room in the router too.
func (p *pipeline) hold(ctx context.Context, n int) error {
	for {
		p.mu.Lock()
		if ctx.Err() != nil { // nor may room be taken that nobody gives back
			p.mu.Unlock()
			return context.Cause(ctx)
		}
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
		var answer any
		if t.err != nil {
			st := p.s.told(millracev1.Events_PublishStream_FullMethodName, p.s.unseen(p.se, access.Topic, t.to, t.err))
			answer = &millracev1.PublishStreamResponse{Sequence: t.sequence, Error: st.Proto()}
		} else {
			answer = &outgoing{body: appendAnswer(newBody(), t.sequence, t.events, t.pos)}
		}
		if err := out.send(answer); err != nil {
			return err
		}
		t.free() // errors borrow too
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
		if of[t.to] == nil {
			topics = append(topics, t.to)
		}
		of[t.to] = append(of[t.to], t)
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
	b := gatheredPool.Get().(*gathered)
	for _, t := range list {
		b.events = append(b.events, t.events...)
	}
	b.pos = slices.Grow(b.pos, events)[:events]
	if err := p.s.o.Backend.Publish(ctx, topic, b.events, b.pos); err != nil {
		for _, t := range list { // what the router filled in is not in these
			t.err = p.s.o.Backend.Publish(ctx, topic, t.events, t.pos)
		}
	} else {
		at := 0
		for _, t := range list {
			for i := range t.events {
				t.events[i].ID = b.events[at+i].ID
			}
			at += copy(t.pos, b.pos[at:])
		}
	}
	b.free()
}

// gathered are the events of several requests.
type gathered struct {
	events []event.Event
	pos    []event.Position
}

var gatheredPool = sync.Pool{New: func() any { return new(gathered) }}

func (b *gathered) free() {
	if cap(b.events) > 8*keptEvents {
		return
	}
	clear(b.events)
	b.events, b.pos = b.events[:0], b.pos[:0]
	gatheredPool.Put(b)
}
