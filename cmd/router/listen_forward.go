package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// How long things take when listening.
const (
	leaseTime   = 10 * time.Second // of a lease: what a killed listener held comes again after this
	extendEvery = 3 * time.Second
	pullWait    = 20 * time.Second
	firstWait   = time.Second // before what failed comes again; doubled with each attempt
	longestWait = 30 * time.Second
	lastWait    = 5 * time.Second // for what is under way when listen ends

	firstKnock   = 100 * time.Millisecond // between tries to reach a program or a router that is not there; doubled
	longestKnock = 2 * time.Second
)

// A deliverer sends deliveries on; *webhook.Sink is one.
type deliverer interface {
	Deliver(ctx context.Context, ds []event.Delivery) error
}

// A listener pulls from one subscription and forwards. What it holds it keeps leased until the program has answered.
//
// A delivery's way: pulled (leased), forwarded, and then acknowledged after 2xx or given back with a delay. While the program
// cannot be reached it stays here. A lease that is lost on the way, as when a laptop slept, means that the
// delivery comes again; no event is skipped by that.
type listener struct {
	p    *program
	c    *client
	o    *listening
	s    *listened
	sink deliverer

	every time.Duration // between prolongings of what is in hand
	slots chan struct{} // one for each delivery that may be in hand
	alone atomic.Bool   // the router cannot be reached, and that was said

	mu   sync.Mutex
	held map[string][]string // of the deliveries in hand, by id: their leases
	down bool                // nothing listens at the target, and that was said
	n    counts
}

// counts is what a listener has done.
type counts struct{ taken, again, failed, late int }

func newListener(p *program, c *client, o *listening, s *listened, sink deliverer) *listener {
	return &listener{p: p, c: c, o: o, s: s, sink: sink, every: extendEvery, slots: make(chan struct{}, s.concurrency), held: map[string][]string{}}
}

// run forwards until ctx ends, and then waits for what is under way; what is not answered within lastWait is given
// back. It returns when nothing is in hand any more; its error is an answer of the router's that time will not change, such as
// that the subscription is gone.
func (l *listener) run(ctx context.Context) (err error) {
	working, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var under sync.WaitGroup
	var keeping sync.WaitGroup
	keeping.Go(func() { l.keep(working) })
	for ctx.Err() == nil && err == nil {
		n := l.free(ctx)
		var ds []leased
		ds, err = l.pull(ctx, n)
		for _, d := range ds {
			if !l.hold(d) {
				continue
			}
			under.Go(func() {
				defer func() { <-l.slots }()
				l.forward(ctx, working, d)
			})
			n--
		}
		for range n {
			<-l.slots
		}
	}
	ended := make(chan struct{})
	go func() {
		under.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(lastWait):
	}
	stop()
	<-ended
	keeping.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// free waits until something more may be pulled and takes the slots for it; 0 if ctx ends first.
func (l *listener) free(ctx context.Context) (n int) {
	select {
	case <-ctx.Done():
		return 0
	case l.slots <- struct{}{}:
	}
	for n = 1; ; n++ {
		select {
		case l.slots <- struct{}{}:
		default:
			return n
		}
	}
}

// pull leases at most max deliveries. It returns none when there are none for a while, or ctx ends.
func (l *listener) pull(ctx context.Context, max int) ([]leased, error) {
	if max == 0 {
		return nil, nil
	}
	var got struct{ Deliveries []leased }
	err := l.persist(ctx, func() error {
		return l.c.callJSON(ctx, "POST", l.c.path(kindSubscriptions, l.s.name, "pull"), map[string]any{"max": max, "wait": pullWait.String()}, &got)
	})
	return got.Deliveries, err
}

// persist calls the router until it answers or ctx ends, and says once that it does not.
func (l *listener) persist(ctx context.Context, call func() error) (err error) {
	for wait := firstKnock; ; wait = min(2*wait, longestKnock) {
		err := call()
		var p *problem
		switch {
		case err == nil:
			if l.alone.Swap(false) {
				say(l.p.stderr, "the router is back")
			}
			return nil
		case ctx.Err() != nil, errors.As(err, &p) && p.Status < 500 && p.Status != http.StatusTooManyRequests:
			return err
		case !l.alone.Swap(true):
			say(l.p.stderr, "%s\nwaiting for the router; what is published is kept", lines(err.Error()))
		}
		if sleep(ctx, wait) != nil {
			return err
		}
	}
}

// hold notes what is in hand. It is false if the delivery was in hand already, as when a restarted router lends it once
// more: then it has one more lease.
func (l *listener) hold(d leased) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	leases, is := l.held[d.ID]
	l.held[d.ID] = append(leases, d.Lease)
	return !is
}

// leases takes a delivery out of hand.
func (l *listener) leases(d leased) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	leases := l.held[d.ID]
	delete(l.held, d.ID)
	return leases
}

// keep prolongs the leases in hand until ctx ends. One that cannot be prolonged is noticed when it is acknowledged.
func (l *listener) keep(ctx context.Context) {
	for sleep(ctx, l.every) == nil {
		l.mu.Lock()
		leases := make([]string, 0, len(l.held))
		for _, of := range l.held {
			leases = append(leases, of...)
		}
		l.mu.Unlock()
		if len(leases) == 0 {
			continue
		}
		try, cancel := context.WithTimeout(ctx, extendEvery)
		_ = l.c.callJSON(try, "POST", l.c.path(kindSubscriptions, l.s.name, "extend"),
			map[string]any{"leases": leases, "deadline": leaseTime.String()}, nil) // tried again soon
		cancel()
	}
}

// forward sends one delivery to the program, as often as nothing answers there, and settles it. New tries end with
// ctx, what is under way with working.
func (l *listener) forward(ctx, working context.Context, d leased) {
	e, delivery, err := l.delivery(d)
	if err != nil {
		say(l.p.stderr, "%v; it is given back", err)
		l.giveBack(working, d, longestWait)
		return
	}
	for wait := firstKnock; ; wait = min(2*wait, longestKnock) {
		reply := &event.Reply{}
		delivery.Reply = reply
		began := time.Now()
		err := l.sink.Deliver(working, []event.Delivery{delivery})
		took := time.Since(began)
		switch {
		case working.Err() != nil && err != nil: // listen ends
			l.giveBack(context.WithoutCancel(working), d, 0)
			return
		case isRefused(err):
			l.said(true, err)
			if sleep(ctx, wait) == nil {
				continue
			}
			l.giveBack(context.WithoutCancel(working), d, 0)
			return
		}
		l.said(false, nil)
		if err == nil {
			l.ack(working, d, e, reply.Status, took)
			return
		}
		if event.IsDisable(err) {
			err = fmt.Errorf("%w; so it is in production, and here it comes again", err)
		}
		back := delayOf(err, d.Attempt)
		l.report(e, d, event.Code(err), took, err, back)
		l.giveBack(working, d, back)
		return
	}
}

// delayOf is how long what failed is given back for.
func delayOf(err error, attempt int) time.Duration {
	var r *event.RetryAfter
	if errors.As(err, &r) && r.Wait > 0 {
		return r.Wait
	}
	return min(firstWait<<min(attempt-1, 10), longestWait)
}

// said notes whether something listens at the target, and says it when that changes.
func (l *listener) said(down bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if down == l.down {
		return
	}
	l.down = down
	if down {
		say(l.p.stderr, "nothing listens at %s (%s): holding on and trying again; no attempt is spent", clean(shownURL(l.o.to)), clean(err.Error()))
		return
	}
	say(l.p.stderr, "%s listens again", clean(shownURL(l.o.to)))
}

// ack acknowledges what the program took. A router that is away is waited for: its leases outlive its restart.
func (l *listener) ack(ctx context.Context, d leased, e *event.Event, status int, took time.Duration) {
	var settled struct {
		Lost    []string
		Reasons []string
	}
	leases := l.leases(d)
	err := l.persist(ctx, func() error {
		return l.c.callJSON(ctx, "POST", l.c.path(kindSubscriptions, l.s.name, "ack"), map[string]any{"leases": leases}, &settled)
	})
	if err == nil && len(settled.Lost) == len(leases) {
		why := ""
		if len(settled.Reasons) > 0 {
			why = " (" + settled.Reasons[0] + ")"
		}
		err = fmt.Errorf("the lease was no longer held%s: it comes again", why)
	}
	l.report(e, d, status, took, err, 0)
}

// giveBack returns a delivery to the router, due again after a delay. Where that fails its lease runs out.
func (l *listener) giveBack(ctx context.Context, d leased, after time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, lastWait)
	defer cancel()
	_ = l.c.callJSON(ctx, "POST", l.c.path(kindSubscriptions, l.s.name, "nack"),
		map[string]any{"leases": l.leases(d), "delay": after.String()}, nil)
}

// delivery makes of what was pulled what the router would have sent.
func (l *listener) delivery(d leased) (*event.Event, event.Delivery, error) {
	e := &event.Event{}
	if err := event.ParseStructured(withoutPlace(d.Event), event.Limits{}.WithDefaults(), e); err != nil {
		return nil, event.Delivery{}, fmt.Errorf("%s sent an event that is none: %w", l.c.base.Host, err)
	}
	return e, event.Delivery{ID: d.ID, Subscription: l.s.name, Topic: l.s.source.Topic, Event: event.Record(e.AppendRecord(nil)), Attempt: d.Attempt}, nil
}

// withoutPlace takes from a pulled event what the router adds when it shows one: where it lies, and when it came. Both
// stand at its end.
func withoutPlace(doc json.RawMessage) []byte {
	text := strings.TrimSpace(string(doc))
	at := strings.LastIndex(text, `,"millraceposition":"`)
	if at < 0 {
		return doc
	}
	return append([]byte(text[:at]), '}')
}

// statusOf is a code for people.
func statusOf(code int) string {
	if code == 0 {
		return "---"
	}
	if text := http.StatusText(code); text != "" {
		return fmt.Sprintf("%d %s", code, text)
	}
	return fmt.Sprint(code)
}
