package grpcapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/admission"
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/sdk/client/millracev1"
)

type subscribeStream = grpc.BidiStreamingServer[millracev1.SubscribeRequest, millracev1.SubscribeResponse]

const defaultCredit = 100

// A subscriber is one stream of events under credit. One goroutine works on what the client says, another sends.
type subscriber struct {
	s      *Server
	se     *admission.Session
	stream subscribeStream
	out    *line
	source
	reader Reader // nil of a pull subscription

	working sync.Mutex // held while a settle is worked on and answered
	over    bool       // none is any more; guarded by working

	mu        sync.Mutex
	abandoned bool                 // before it began
	credit    int                  // events that may still be sent
	leased    map[string]time.Time // deliveries that the client holds, until their deadline; nil of a reader
	more      chan struct{}        // holds one when there is more credit or room
}

// Subscribe streams events, and settles deliveries.
func (x *events) Subscribe(stream subscribeStream) error {
	ctx := stream.Context()
	se, err := sessionOf(ctx)
	if err != nil {
		return err
	}
	u := &subscriber{s: x.s, se: se, stream: stream, more: make(chan struct{}, 1), out: &line{stream: stream}}
	begun := make(chan struct{})
	// What he may do with what is read is known once he has said what that is.
	still := func() error {
		select {
		case <-begun:
			return u.still()
		default:
			return nil
		}
	}
	return x.s.supervise(ctx, se, still, func(ctx context.Context) (err error) {
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(errEnded)
		x.s.detached.Go(func() {
			err := x.s.guarded(func() error { return u.listen(ctx, begun) })
			if errors.Is(err, io.EOF) {
				select {
				case <-begun: // a client that says no more may still read
					return
				default:
					err = event.Invalid("begin", "is missing: the first message says what to stream")
				}
			}
			cancel(err)
		})
		select {
		case <-begun:
		case <-ctx.Done():
			u.abandon(begun)
			return context.Cause(ctx)
		}
		if u.reader != nil {
			err = u.read(ctx)
			u.reader.Close()
		} else {
			err = u.pull(ctx)
		}
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		u.working.Lock() // what is under way is still answered
		u.over = true
		u.working.Unlock()
		// A router that stops leaves leases as they are: they can be settled after its restart.
		if u.reader == nil && !errors.Is(err, errDraining) {
			u.giveBack(ctx)
		}
		return err
	})
}

// guarded turns a panic into an error.
func (s *Server) guarded(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			s.o.Log.Error("a gRPC stream panicked", "panic", p)
			err = errors.New("the stream panicked")
		}
	}()
	return f()
}

func (u *subscriber) still() error { return about(u.kind, u.name, u.se.May(u.may, u.kind, u.name)) }

// listen works on what the client says, until it says no more (io.EOF) or something that it may not.
func (u *subscriber) listen(ctx context.Context, begun chan<- struct{}) error {
	settles := uint64(0)
	for first := true; ; first = false {
		in, err := u.stream.Recv()
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if !first {
			if err := paced(ctx, u.se); err != nil {
				return err
			}
		}
		begin, isBegin := in.GetRequest().(*millracev1.SubscribeRequest_Begin)
		switch {
		case first != isBegin && first:
			return event.Invalid("begin", "is missing: the first message says what to stream")
		case first != isBegin:
			return event.Invalid("begin", "came again: one stream streams one thing; open another")
		case first:
			if err := u.begin(ctx, begin.Begin); err != nil {
				return err
			}
			if !u.publish(begun) {
				return errEnded
			}
			continue
		}
		switch m := in.GetRequest().(type) {
		case *millracev1.SubscribeRequest_Credit:
			if !u.grant(int64(m.Credit.GetAdd())) {
				return event.Invalid("credit.add", fmt.Sprintf("is %d, with which more than %d events would be granted; grant no more than were sent", m.Credit.GetAdd(), maxCredit))
			}
		case *millracev1.SubscribeRequest_Settle:
			settles++
			if err := u.answer(settles, m.Settle); err != nil {
				return err
			}
		default:
			return event.Invalid("request", "is empty; send credit or settle")
		}
	}
}

// begin opens what is streamed and says so.
func (u *subscriber) begin(ctx context.Context, in *millracev1.SubscribeBegin) error {
	_, topic := in.GetFrom().(*millracev1.SubscribeBegin_Topic)
	_, sub := in.GetFrom().(*millracev1.SubscribeBegin_Subscription)
	src, err := sourceOf(in.GetTopic(), in.GetSubscription(), topic, sub)
	if err != nil {
		return err
	}
	u.source, u.credit = src, defaultCredit
	if in.Credit != nil {
		if u.credit = int(min(in.GetCredit(), maxCredit+1)); u.credit > maxCredit {
			return event.Invalid("credit", fmt.Sprintf("is %d; want 0 to %d", in.GetCredit(), maxCredit))
		}
	}
	if err := u.still(); err != nil {
		return err
	}
	start, err := startOf(in.GetStart(), event.Start{At: event.Latest}, u.s.o.Now())
	if err != nil {
		return err
	}
	answer := &millracev1.SubscribeBegun{Credit: uint32(u.credit)}
	u.reader, err = u.s.openSource(ctx, u.se, src, start, in.GetFilter())
	if errors.Is(err, event.ErrConflict) && src.kind == access.Subscription { // not streamed: pulled?
		u.leased = map[string]time.Time{}
		if _, err = u.s.o.Backend.Pull(u.se.Context(ctx), u.name, 0, 0); err == nil && (in.GetStart() != nil || in.GetFilter() != "") {
			err = event.Invalid("start", fmt.Sprintf("%q is pulled: it has its own place and filter, so leave start and filter out (Seek moves it)", u.name))
		}
		err = u.s.unseen(u.se, u.kind, u.name, err)
	}
	if err != nil {
		return err
	}
	if u.reader != nil {
		answer.Cursor = u.reader.Cursor()
	}
	err = u.out.send(&millracev1.SubscribeResponse{Response: &millracev1.SubscribeResponse_Begun{Begun: answer}})
	if err != nil && u.reader != nil {
		u.reader.Close()
	}
	return err
}

// publish says that what is streamed is open, unless the stream is over: then it is closed again.
func (u *subscriber) publish(begun chan<- struct{}) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.abandoned {
		close(begun)
	} else if u.reader != nil {
		u.reader.Close()
	}
	return !u.abandoned
}

// abandon ends a stream that may just be about to begin.
func (u *subscriber) abandon(begun <-chan struct{}) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.abandoned = true
	select {
	case <-begun:
		if u.reader != nil {
			u.reader.Close()
		}
	default:
	}
}

// grant adds credit; false if that would be more than maxCredit.
func (u *subscriber) grant(n int64) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if int64(u.credit)+n > maxCredit {
		return false
	}
	u.credit += int(n)
	u.wake()
	return true
}

func (u *subscriber) wake() {
	select {
	case u.more <- struct{}{}:
	default:
	}
}

// answer settles and says what came of it. What is wrong with the request is answered too.
func (u *subscriber) answer(sequence uint64, in *millracev1.Settling) error {
	u.working.Lock()
	defer u.working.Unlock()
	if u.over {
		return errEnded
	}
	out := &millracev1.SubscribeSettled{Sequence: sequence}
	lost, err := u.settle(in)
	if out.Lost = lost; err != nil {
		out.Error = u.s.told(millracev1.Events_Subscribe_FullMethodName, err).Proto()
	}
	return u.out.send(&millracev1.SubscribeResponse{Response: &millracev1.SubscribeResponse_Settled{Settled: out}})
}

func (u *subscriber) settle(in *millracev1.Settling) ([]*millracev1.Lost, error) {
	if u.reader != nil {
		return nil, event.Invalid("settle", fmt.Sprintf("%s %q is streamed: only deliveries of a pull subscription are settled", u.kind, u.name))
	}
	how, err := u.s.settlingOf(in)
	if err != nil {
		return nil, err
	}
	if err := u.still(); err != nil {
		return nil, err
	}
	// The client may go while this is stored.
	lost, err := u.s.settle(context.WithoutCancel(u.stream.Context()), u.se, u.name, in.GetLeases(), how)
	if err != nil {
		return nil, err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, id := range in.GetLeases() {
		switch _, held := u.leased[id]; {
		case held && how.Deadline > 0:
			u.leased[id] = u.s.o.Now().Add(how.Deadline)
		case held:
			delete(u.leased, id)
		}
	}
	u.wake()
	return lost, nil
}

// allowed waits until events may be sent and says how many. Deliveries that the client holds count against maxLeased
// until they are settled or expire.
func (u *subscriber) allowed(ctx context.Context) (int, error) {
	for {
		u.mu.Lock()
		n, full := u.credit, false
		if u.leased != nil {
			if len(u.leased) >= maxLeased {
				now := u.s.o.Now()
				maps.DeleteFunc(u.leased, func(_ string, deadline time.Time) bool { return deadline.Before(now) })
			}
			full = len(u.leased) >= maxLeased
			n = min(n, maxLeased-len(u.leased), pullBatch)
		}
		u.mu.Unlock()
		if n > 0 {
			return n, nil
		}
		var expired <-chan time.Time
		if full {
			expired = time.After(time.Second) // some leases may be
		}
		select {
		case <-u.more:
		case <-expired:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}

func (u *subscriber) spent(n int) {
	u.mu.Lock()
	u.credit -= n
	u.mu.Unlock()
}

// read sends events of a reader.
func (u *subscriber) read(ctx context.Context) error {
	r := &reading{reader: u.reader, every: u.s.o.Heartbeat, still: u.still, follow: true, told: u.reader.Cursor(), allowed: u.allowed, spent: u.spent, beat: u.beat,
		events: func(body []byte, _ string) error {
			return u.out.send(&outgoing{head: headOf(2, len(body)), body: body})
		}}
	return r.run(ctx)
}

func (u *subscriber) beat(cursor string) error {
	return u.out.send(&millracev1.SubscribeResponse{Response: &millracev1.SubscribeResponse_Heartbeat{Heartbeat: &millracev1.SubscribeHeartbeat{Cursor: cursor}}})
}

// pull sends deliveries.
func (u *subscriber) pull(ctx context.Context) error {
	for {
		n, err := u.allowed(ctx)
		if err != nil {
			return err
		}
		began := time.Now()
		leases, err := u.s.o.Backend.Pull(u.se.Context(ctx), u.name, n, min(pullWait, u.s.o.Heartbeat))
		if err != nil {
			return u.s.unseen(u.se, u.kind, u.name, err)
		}
		if len(leases) == 0 {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if time.Since(began) < 10*time.Millisecond { // it did not wait: the router begins to drain
				pause(ctx, 50*time.Millisecond)
				continue
			}
			if err := u.beat(""); err != nil {
				return err
			}
			continue
		}
		u.mu.Lock()
		u.credit -= len(leases)
		for i := range leases {
			u.leased[leases[i].ID] = leases[i].Deadline
		}
		u.mu.Unlock()
		if err := u.still(); err != nil { // what he may do can have changed while he waited
			return errors.Join(err, u.unsent(leases))
		}
		if err := u.deliver(ctx, leases); err != nil {
			return err
		}
	}
}

// deliver sends leases, several messages of them where they are large. What is not sent is given back.
func (u *subscriber) deliver(ctx context.Context, leases []event.Lease) error {
	for len(leases) > 0 {
		n, size := 0, 0
		for n < len(leases) && n < batchEvents && (n == 0 || size < batchBytes) {
			size += leases[n].Event.Len()
			n++
		}
		err := context.Cause(ctx)
		if err == nil {
			body := newBody()
			for i := range leases[:n] {
				body = appendDelivery(body, &leases[i])
			}
			err = u.out.send(&outgoing{head: headOf(3, len(body)), body: body})
		}
		if err != nil {
			return errors.Join(err, u.unsent(leases))
		}
		leases = leases[n:]
	}
	return nil
}

// unsent returns what the client was not sent: it was no attempt.
func (u *subscriber) unsent(leases []event.Lease) error {
	if len(leases) == 0 {
		return nil
	}
	ids := idsOf(leases)
	u.mu.Lock()
	for _, id := range ids {
		delete(u.leased, id)
	}
	u.mu.Unlock()
	return u.s.o.Backend.Unpull(u.name, ids)
}

// giveBack makes deliveries that were not settled due again.
func (u *subscriber) giveBack(ctx context.Context) {
	u.mu.Lock()
	held := slices.Collect(maps.Keys(u.leased))
	u.leased = map[string]time.Time{}
	u.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unpullTime)
	defer cancel()
	for some := range slices.Chunk(held, 1000) {
		if _, err := u.s.o.Backend.Settle(ctx, u.name, some, event.Settling{Verb: event.Nack}); err != nil {
			u.s.o.Log.Warn("deliveries of a gRPC stream that ended come again when their leases expire", "subscription", u.name, "error", err)
			return
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
