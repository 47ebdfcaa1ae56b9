package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/millrace/millrace/sdk/client/millracev1"
	"google.golang.org/grpc/codes"
)

// ReceiveOptions configure Receive. The zero value of a field means its default.
type ReceiveOptions struct {
	Concurrency int // handlers that run at once; 16
	// Credit is how many deliveries this consumer holds at once, those that wait for a handler included; 4 × Concurrency,
	// at most 10,000.
	Credit int
	// Deadline is to when leases are prolonged from each time on, 10 s to 600 s; 60 s. They are every third of it, first 4 s
	// after they came.
	Deadline time.Duration
	// Hold is for how long a delivery is held altogether; 1 h. A handler that takes longer loses it.
	Hold time.Duration
	// Delay is after how long a delivery whose handler failed is due again; nil: by 0 s. To use an error of the handler's
	// own, look for it with errors.As.
	Delay func(d *Delivery, err error) time.Duration
	// Finish is for how long Receive goes on once its context has ended and the last handler is back, to settle what they
	// have done; 10 s.
	Finish time.Duration
}

func (o ReceiveOptions) check() (ReceiveOptions, error) {
	if o.Concurrency <= 0 {
		o.Concurrency = 16
	}
	if o.Credit <= 0 {
		o.Credit = 4 * o.Concurrency
	}
	o.Credit = min(o.Credit, maxCredit)
	fill := func(v *time.Duration, d time.Duration) {
		if *v == 0 {
			*v = d
		}
	}
	fill(&o.Deadline, time.Minute)
	fill(&o.Hold, time.Hour)
	fill(&o.Finish, 10*time.Second)
	if o.Deadline < minDeadline || o.Deadline > maxDeadline {
		return o, errorf(codes.InvalidArgument, "ReceiveOptions.Deadline is %s; want %s to %s", o.Deadline, minDeadline, maxDeadline)
	}
	if o.Delay == nil {
		o.Delay = func(*Delivery, error) time.Duration { return 0 }
	}
	return o, nil
}

// Bounds of the router's.
const (
	maxCredit   = 10_000
	minDeadline = 10 * time.Second
	maxDeadline = 600 * time.Second
	maxDelay    = 24 * time.Hour
	maxLeases   = 1000 // of one request; the router takes ten times that
	maxSettles  = 4    // unanswered at once: more would be smaller, and each is a write there
	maxLate     = 10_000
	againFor    = 5 * time.Second // what was leased anew before an acknowledgement was answered is on its way here, or to another

	firstExtend = 4 * time.Second // well within the shortest deadline, whatever the clocks here and there say
)

// ErrLost is the cause of a handler's context that ended because the delivery is not held any more: another consumer has it
// or will. What the handler returns is of no account then.
var ErrLost = errors.New("the delivery's lease was lost")

// Handler works on a delivery: nil settles it for good, an error gives it back. Its context ends when the delivery is lost
// ([ErrLost]) or Receive's context ends.
type Handler func(ctx context.Context, d *Delivery) error

// Receive calls handle for deliveries of a pull subscription, for as long as ctx lasts: then it waits for the handlers that
// run, settles what they did, gives back the rest and returns nil. It acknowledges durably and in batches, prolongs leases while
// handlers run, and connects again when the stream breaks: a delivery that comes once more while it is worked on, or before
// its acknowledgement was answered, is not handled twice. An [Error] that no other try would mend ends it, too.
//
// Delivery is at least once all the same: what a consumer did before it was gone is done again by the next.
func (c *Client) Receive(ctx context.Context, subscription string, handle Handler, o ReceiveOptions) error {
	o, err := o.check()
	if err != nil {
		return err
	}
	r := &receiver{c: c, name: subscription, o: o, handle: handle, held: map[string]*holding{}, late: map[string]repeat{}, finished: make(chan *holding), in: make(chan arrival)}
	return r.run(ctx)
}

// A receiver belongs to the goroutine of run, which alone looks at its members; handlers and the streams' readers speak to
// it by channels.
type receiver struct {
	c      *Client
	name   string
	o      ReceiveOptions
	handle Handler

	held    map[string]*holding // by delivery
	late    map[string]repeat   // deliveries that were handled and may come again all the same
	waiting []*holding          // for a handler, in order
	running int

	finished chan *holding
	in       chan arrival

	stream  *outgoing   // nil: there is none
	settles []*settling // to be sent, or to be sent again
	flight  []*settling // sent on stream and unanswered, in order
	sent    uint64      // settles answered on stream
	hold    time.Time   // none is sent before
	credit  int         // granted on stream and not used
	try     int
	retry   <-chan time.Time // when to begin again
	err     error            // why it ends
	ending  bool             // no new handlers
}

// A holding is a delivery that this consumer has.
type holding struct {
	d       *Delivery
	from    *outgoing // over which it came last
	since   time.Time
	extend  time.Time // when it is prolonged next
	asked   bool      // an extension is under way
	cancel  context.CancelCauseFunc
	running bool
	stale   bool // not begun, and its stream is gone: whether it is still held is being asked
	done    bool // the handler has returned err
	lost    bool // whatever it returns is of no account
	err     error
}

// A repeat is what comes again of a delivery that was handled: this attempt or a later one, until then. A lower one is what
// somebody moved the subscription back for, and it is to be handled again.
type repeat struct {
	attempt uint32
	until   time.Time
}

// A settling is a request about leases, and what of.
type settling struct {
	how *millracev1.Settling
	of  []*holding
}

// An arrival is what a stream's reader has to say.
type arrival struct {
	from *outgoing
	r    *millracev1.SubscribeResponse
	err  error
}

// outgoing is a stream. Its writer is a goroutine of its own, because a router that does not read must not keep leases from
// being looked after.
type outgoing struct {
	s      millracev1.Events_SubscribeClient
	send   chan *millracev1.SubscribeRequest
	cancel context.CancelFunc
	ended  chan struct{} // reader and writer are gone
}

func (r *receiver) run(ctx context.Context) error {
	// What is done must still be told when ctx has ended.
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer r.drop()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	over := ctx.Done()
	var deadline <-chan time.Time
	r.open(life)
	for {
		r.start(ctx)
		r.flush()
		if r.ending && r.running == 0 {
			if len(r.settles) == 0 && len(r.flight) == 0 || r.err != nil {
				return r.err
			}
			if deadline == nil {
				stop := time.NewTimer(r.o.Finish)
				defer stop.Stop()
				deadline = stop.C
			}
		}
		select {
		case <-over:
			over, r.ending = nil, true
		case <-deadline:
			return fmt.Errorf("not all that was handled could be settled within %s, and comes again", r.o.Finish)
		case a := <-r.in:
			if a.from == r.stream {
				r.take(a)
			}
		case h := <-r.finished:
			r.running--
			r.returned(h)
		case <-r.retry:
			r.retry = nil
			r.open(life)
		case now := <-tick.C:
			r.prolong(now)
		}
	}
}

// open begins a stream.
func (r *receiver) open(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	s, err := r.c.events.Subscribe(ctx)
	if err != nil {
		cancel()
		r.broke(err)
		return
	}
	out := &outgoing{s: s, send: make(chan *millracev1.SubscribeRequest, 64), cancel: cancel, ended: make(chan struct{})}
	// What is held comes again where the router has taken it back, and wants credit once more.
	credit := uint32(min(r.o.Credit, max(0, 2*r.o.Credit-len(r.held))))
	begin := &millracev1.SubscribeBegin{From: &millracev1.SubscribeBegin_Subscription{Subscription: r.name}, Credit: &credit}
	out.send <- &millracev1.SubscribeRequest{Request: &millracev1.SubscribeRequest_Begin{Begin: begin}}
	r.stream, r.credit, r.sent = out, int(credit), 0
	wrote := make(chan struct{})
	go func() {
		defer close(wrote)
		for {
			select {
			case m := <-out.send:
				if s.Send(m) != nil { // Recv says why
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	go func() {
		defer close(out.ended)
		for {
			m, err := s.Recv()
			select {
			case r.in <- arrival{out, m, err}:
			case <-ctx.Done():
				err = ctx.Err()
			}
			if err != nil {
				cancel()
				<-wrote
				return
			}
		}
	}()
}

// drop ends the stream, if there is one; what was not answered on it is to be sent again.
func (r *receiver) drop() {
	if r.stream == nil {
		return
	}
	r.stream.cancel()
	<-r.stream.ended
	r.stream = nil
	r.settles = append(r.flight, r.settles...)
	r.flight = nil
	r.settles = slices.DeleteFunc(r.settles, (*settling).extends)
	now := time.Now()
	for _, h := range r.held {
		if h.asked, h.stale = false, !h.running && !h.done; h.stale {
			h.extend = now
		} else {
			h.extend = now.Add(firstExtend) // by then it may have come again
		}
	}
}

func (s *settling) extends() bool {
	_, is := s.how.Verb.(*millracev1.Settling_Extend)
	return is
}

// broke says what becomes of a stream that ended.
func (r *receiver) broke(err error) {
	r.drop()
	ok, after := r.c.cut(err)
	if !ok {
		r.end(asError(err))
		return
	}
	r.try++
	wait := r.c.o.Backoff.wait(r.try, after)
	r.c.o.Log.Warn("millrace: receiving was cut off and begins again", "subscription", r.name, "error", err, "in", wait)
	r.retry = time.After(wait)
}

// end stops for a reason that stays: handlers that run are told.
func (r *receiver) end(err error) {
	if r.err == nil {
		r.err = err
	}
	r.ending, r.waiting, r.settles = true, nil, nil
	for _, h := range r.held {
		if h.running {
			h.cancel(err)
		}
	}
}

// take works on what came.
func (r *receiver) take(a arrival) {
	if a.err != nil {
		r.broke(a.err)
		return
	}
	switch m := a.r.Response.(type) {
	case *millracev1.SubscribeResponse_Begun:
		r.try = 0
		r.prolong(time.Now())
	case *millracev1.SubscribeResponse_Deliveries:
		now := time.Now()
		for _, d := range m.Deliveries.Deliveries {
			r.credit--
			r.arrived(d, now)
		}
	case *millracev1.SubscribeResponse_Settled:
		r.settled(m.Settled)
	case *millracev1.SubscribeResponse_Events:
		r.broke(errorf(codes.FailedPrecondition, "the subscription %q is not pulled; read it with Follow", r.name))
	}
}

// arrived takes a delivery. One that is here already was leased anew because its stream broke.
func (r *receiver) arrived(d *Delivery, now time.Time) {
	again, ok := r.late[d.Id]
	delete(r.late, d.Id)
	if ok && d.Attempt >= again.attempt && now.Before(again.until) {
		h := &holding{d: d, from: r.stream, since: now, done: true}
		r.held[d.Id] = h
		r.settle(h)
		return
	}
	h := r.held[d.Id]
	if h == nil || h.lost || h.done && h.err != nil { // given back, and the answer is still to come
		h = &holding{since: now}
		r.held[d.Id] = h
		r.waiting = append(r.waiting, h)
	}
	h.d, h.from, h.extend, h.asked, h.stale = d, r.stream, now.Add(firstExtend), false, false
	if h.done {
		r.settle(h)
	}
}

// start begins handlers.
func (r *receiver) start(ctx context.Context) {
	if r.ending {
		return
	}
	var stale []*holding
	i := 0
	for ; i < len(r.waiting) && r.running < r.o.Concurrency; i++ {
		switch h := r.waiting[i]; {
		case h.lost:
		case h.stale:
			stale = append(stale, h)
		default:
			r.begin(ctx, h)
		}
	}
	if r.waiting = r.waiting[i:]; len(stale) > 0 {
		r.waiting = append(stale, r.waiting...)
	}
}

// begin starts a handler.
func (r *receiver) begin(ctx context.Context, h *holding) {
	ctx, h.cancel = context.WithCancelCause(ctx)
	h.running = true
	r.running++
	go func(d *Delivery) { // which the holding may replace
		err := r.handle(ctx, d)
		h.cancel(nil)
		h.err = err // the receiver looks at it behind the send
		r.finished <- h
	}(h.d)
}
