package client

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/millrace/millrace/sdk/client/millracev1"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
)

// PublisherOptions configure a Publisher. The zero value of a field means its default.
type PublisherOptions struct {
	// Requests is how many requests are under way unanswered at once; 16. With 1, events keep the order in which they were
	// published whatever happens. With more they keep it as long as the router refuses none: what is behind a refused one
	// is under way already.
	Requests int
	// Events and Bytes bound what is queued and under way together; past either Publish waits. 10,000 and 64 MiB.
	Events int
	Bytes  int
	// Batch is how many events go into one request at most, where several wait; 500.
	Batch int
	// Dedupe is the topic's dedupe window; 2 min. An event that was sent, and not answered, longer ago is not sent again,
	// because it might be stored twice: it fails with ErrUncertain. < 0: it is sent again, however long ago.
	Dedupe time.Duration
}

func (o PublisherOptions) withDefaults() PublisherOptions {
	fill := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	fill(&o.Requests, 16)
	fill(&o.Events, 10_000)
	fill(&o.Bytes, 64<<20)
	fill(&o.Batch, 500)
	if o.Dedupe == 0 {
		o.Dedupe = 2 * time.Minute
	}
	return o
}

// Bounds of a request, which are the router's.
const (
	maxRequestEvents = 10_000
	maxRequestBytes  = 16<<20 - 4<<10 // the rest is for the topic's name
	batchBytes       = 1 << 20        // past which a request takes no further events
)

var (
	// ErrUncertain is what becomes of events that were sent and whose answer did not come before the dedupe window or the
	// publisher ended, or which the router refused when they were sent again: they may be stored or not.
	ErrUncertain = errors.New("it was sent and not answered, and may be stored or not")
	// ErrClosed is what becomes of events that are published behind Close.
	ErrClosed = errors.New("the publisher is closed")
)

// Publisher publishes to one topic over one stream, with many requests under way. When the stream breaks it opens another
// and sends again what was not answered, under the same ids, so that the router stores it once.
type Publisher struct {
	c     *Client
	topic string
	o     PublisherOptions

	mu      sync.Mutex
	changed chan struct{} // closed and made anew whenever something below changes
	queue   []*Sending    // not sent, or to be sent again
	flight  []request     // sent and unanswered, in order
	events  int           // in both
	bytes   int           // in both
	hold    time.Time     // nothing is sent before: the router put something off
	offs    int           // how often it did since it took something
	most    int           // bytes past which a request takes no further events: less than batchBytes where the router takes less
	err     error         // why it ended; nil: it has not
	closing bool          // takes no more
	stopped bool          // Close ends it
	stop    func()        // ends it at once
	done    chan struct{} // closed when it has ended
}

// A request is what is answered together.
type request struct{ parts []*Sending }

// Sending is what one call of Publish handed over.
type Sending struct {
	events []*Event
	size   int
	first  time.Time // when it was sent first, of the times after which it may be stored
	cut    bool      // it was under way when a stream broke: it may be stored, whatever is answered when it is sent again
	alone  bool      // it shared a request that was refused, and is sent by itself
	done   chan struct{}
	stored []*millracev1.Published
	err    error
}

// Done is closed when the events are stored or have failed.
func (s *Sending) Done() <-chan struct{} { return s.done }

// Wait returns where the events are stored, one for each in their order, or why none is. ctx ends only the waiting.
func (s *Sending) Wait(ctx context.Context) ([]*millracev1.Published, error) {
	select {
	case <-s.done:
		return s.stored, s.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Publisher begins to publish to a topic. It works until ctx ends or it is closed; close it.
func (c *Client) Publisher(ctx context.Context, topic string, o PublisherOptions) *Publisher {
	p := &Publisher{c: c, topic: topic, o: o.withDefaults(), most: batchBytes, changed: make(chan struct{}), done: make(chan struct{})}
	ctx, p.stop = context.WithCancel(ctx)
	go p.run(ctx)
	return p
}

// Publish hands over events, which are stored all or none, and returns at once unless too much is under way: then it waits
// until there is room or ctx ends. Events without an id are given one. They must not be changed before the Sending is done.
func (p *Publisher) Publish(ctx context.Context, events ...*Event) (*Sending, error) {
	s := &Sending{events: named(events), done: make(chan struct{})}
	for _, e := range s.events {
		s.size += proto.Size(e) + 4
	}
	switch {
	case len(events) == 0 || len(events) > maxRequestEvents:
		return nil, errorf(codes.InvalidArgument, "%d events; want 1 to %d at once", len(events), maxRequestEvents)
	case s.size > maxRequestBytes:
		return nil, errorf(codes.InvalidArgument, "the events have %d bytes; at most %d go at once", s.size, maxRequestBytes)
	}
	for {
		p.mu.Lock()
		switch {
		case p.closing:
			p.mu.Unlock()
			return nil, ErrClosed
		case p.err != nil:
			defer p.mu.Unlock()
			return nil, p.err
		case p.events == 0 || p.events+len(events) <= p.o.Events && p.bytes+s.size <= p.o.Bytes:
			p.events, p.bytes = p.events+len(events), p.bytes+s.size
			p.queue = append(p.queue, s)
			p.signal()
			p.mu.Unlock()
			return s, nil
		}
		changed := p.changed
		p.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Flush waits until everything that was handed over is stored or has failed. It does not say which.
func (p *Publisher) Flush(ctx context.Context) error {
	for {
		p.mu.Lock()
		idle, changed := p.events == 0, p.changed
		p.mu.Unlock()
		if idle {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Close takes no more, waits until everything is answered, and ends the publisher. When ctx ends, what is unanswered by then
// fails, and Close returns ctx's error. Of a publisher that has ended by itself it returns why, as Err does.
func (p *Publisher) Close(ctx context.Context) error {
	p.mu.Lock()
	p.closing = true
	p.signal()
	p.mu.Unlock()
	err := p.Flush(ctx)
	p.mu.Lock()
	p.stopped = true
	p.mu.Unlock()
	p.stop()
	<-p.done
	if why := p.Err(); err == nil && why != ErrClosed {
		err = why
	}
	return err
}

// Err is why the publisher ended, nil while it works: an [Error] that no other try would mend, its context's, or ErrClosed.
func (p *Publisher) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// signal wakes whoever waits for a change. Callers hold mu.
func (p *Publisher) signal() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// finish is what s came to. Callers hold mu.
func (p *Publisher) finish(s *Sending, stored []*millracev1.Published, err error) {
	p.events, p.bytes = p.events-len(s.events), p.bytes-s.size
	s.stored, s.err, s.events = stored, err, nil
	close(s.done)
}

// run keeps a stream open while there is something to send.
func (p *Publisher) run(ctx context.Context) {
	defer close(p.done)
	defer p.stop()
	var err error
	for try := 1; ; try++ {
		if err = p.pending(ctx); err != nil {
			break
		}
		var answered bool
		answered, err = p.stream(ctx)
		if answered {
			try = 1
		}
		if ctx.Err() != nil {
			err = ctx.Err()
			break
		}
		ok, after := p.c.cut(err)
		if !ok && !tooLarge(err) {
			break
		}
		wait := p.c.o.Backoff.wait(try, after)
		p.c.o.Log.Warn("millrace: publishing was cut off and begins again", "topic", p.topic, "error", err, "in", wait)
		if !sleep(ctx, wait) {
			err = ctx.Err()
			break
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err = asError(err); p.stopped && ctx.Err() != nil {
		p.err = ErrClosed
	}
	for _, s := range p.queue {
		if s.first.IsZero() {
			p.finish(s, nil, p.err)
		} else {
			p.finish(s, nil, errors.Join(p.err, ErrUncertain))
		}
	}
	p.queue = nil
	p.signal()
}

// pending waits until there is something to send.
func (p *Publisher) pending(ctx context.Context) error {
	for {
		p.mu.Lock()
		some, changed := len(p.queue) > 0, p.changed
		p.mu.Unlock()
		if some {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// stream publishes over one stream until it breaks; answered tells that it was of use.
func (p *Publisher) stream(ctx context.Context) (answered bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	s, err := p.c.events.PublishStream(ctx)
	if err != nil {
		cancel()
		return false, err
	}
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		p.send(ctx, s)
	}()
	defer func() {
		cancel()
		<-sent
		p.mu.Lock()
		if tooLarge(err) {
			p.split(asError(err))
		}
		p.again()
		p.mu.Unlock()
	}()
	for n := uint64(1); ; n++ {
		r, err := s.Recv()
		if err != nil {
			return answered, err
		}
		if err := p.answer(n, r); err != nil {
			return answered, err
		}
		answered = true
	}
}

// send sends what is queued, as much at once as may be. Why a stream broke is Recv's to say.
func (p *Publisher) send(ctx context.Context, s millracev1.Events_PublishStreamClient) {
	topic := p.topic
	for {
		events, hold, changed := p.next()
		if events == nil {
			wait := time.NewTimer(hold)
			select {
			case <-changed:
			case <-wait.C:
			case <-ctx.Done():
			}
			wait.Stop()
			if ctx.Err() != nil {
				return
			}
			continue
		}
		if s.Send(&millracev1.PublishStreamRequest{Topic: topic, Events: events}) != nil {
			return
		}
		topic = "" // as before
	}
}

// next takes the events of one request off the queue; none if there are none, or too many requests are under way. Then the
// channel tells when to look again, and at the latest that is in hold.
func (p *Publisher) next() (events []*Event, hold time.Duration, changed <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if hold = p.hold.Sub(now); hold > 0 {
		return nil, hold, p.changed
	}
	for len(p.queue) > 0 && len(p.flight) < p.o.Requests {
		var parts []*Sending
		n, size := 0, 0
		for len(p.queue) > 0 {
			s := p.queue[0]
			if p.o.Dedupe > 0 && !s.first.IsZero() && now.Sub(s.first) > p.o.Dedupe*9/10 { // the rest is for the way there
				p.queue = p.queue[1:]
				p.finish(s, nil, ErrUncertain)
				p.signal()
				continue
			}
			if len(parts) > 0 && (s.alone || parts[0].alone || n+len(s.events) > p.o.Batch || size+s.size > p.most) {
				break
			}
			p.queue = p.queue[1:]
			if s.first.IsZero() {
				s.first = now
			}
			parts, n, size = append(parts, s), n+len(s.events), size+s.size
			events = append(events, s.events...)
		}
		if len(parts) > 0 {
			p.flight = append(p.flight, request{parts})
			return events, 0, nil
		}
	}
	return nil, time.Hour, p.changed
}

// answer settles the first request that is unanswered.
func (p *Publisher) answer(n uint64, r *millracev1.PublishStreamResponse) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if r.Sequence != n || len(p.flight) == 0 {
		return errorf(codes.Internal, "the router answered request %d when %d was the next of %d", r.Sequence, n, len(p.flight))
	}
	parts := p.flight[0].parts
	if r.Error != nil {
		p.flight = p.flight[1:]
		p.refused(parts, ofProto(r.Error))
		p.signal()
		return nil
	}
	all := 0
	for _, s := range parts {
		all += len(s.events)
	}
	if len(r.Events) != all {
		return errorf(codes.Internal, "the router answered %d events with %d", all, len(r.Events))
	}
	p.flight, p.offs = p.flight[1:], 0
	at := 0
	for _, s := range parts {
		n := len(s.events)
		p.finish(s, r.Events[at:at+n:at+n], nil)
		at += n
	}
	p.signal()
	return nil
}

// refused says what becomes of a request that the router refused. Of several parts each is sent by itself: the fault is
// that of one. What is put off is sent again. None of it is stored, but for what was under way before when a stream broke:
// of that the refusal says nothing.
func (p *Publisher) refused(parts []*Sending, err *Error) {
	if err.Temporary() {
		p.offs++
		p.hold = time.Now().Add(p.c.o.Backoff.wait(p.offs, err.RetryAfter))
	} else if len(parts) == 1 {
		p.fail(parts[0], err)
		return
	}
	for _, s := range parts {
		if s.alone = s.alone || !err.Temporary(); !s.cut {
			s.first = time.Time{}
		}
	}
	p.queue = append(slices.Clone(parts), p.queue...)
}

// fail is finish with why the router refuses s, which says nothing of a time before. Callers hold mu.
func (p *Publisher) fail(s *Sending, err error) {
	if s.cut {
		err = errors.Join(err, ErrUncertain)
	}
	p.finish(s, nil, err)
}

// tooLarge reports whether a stream ended because gRPC itself, before the router saw it, refused a message for its size.
func tooLarge(err error) bool {
	e, _ := asError(err).(*Error)
	return e != nil && e.Code == codes.ResourceExhausted && e.Reason == "" && e.RetryAfter == 0
}

// split deals with the request that was too large, which is the largest: of one part it fails, else all that follow are
// smaller. Callers hold mu.
func (p *Publisher) split(err error) {
	largest, size := -1, -1
	for i, r := range p.flight {
		all := 0
		for _, s := range r.parts {
			all += s.size
		}
		if all > size {
			largest, size = i, all
		}
	}
	switch {
	case largest < 0:
	case len(p.flight[largest].parts) == 1:
		p.fail(p.flight[largest].parts[0], err)
		p.flight = slices.Delete(p.flight, largest, largest+1)
		p.signal()
	default:
		p.most = size / 2
	}
}

// again puts what is unanswered back in front of the queue. Callers hold mu.
func (p *Publisher) again() {
	var back []*Sending
	for _, r := range p.flight {
		for _, s := range r.parts {
			s.cut = true
		}
		back = append(back, r.parts...)
	}
	p.flight = nil
	p.queue = append(back, p.queue...)
}
