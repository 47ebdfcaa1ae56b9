package engine

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// Settle settles or prolongs leases; it returns once that is durable. lost are those that were no longer
// held, in the order given: nothing was done about them.
//
// Errors: event.ErrNotFound, ErrConflict (not a pull subscription), ErrInvalid (a delay, deadline or reply
// out of bounds), and what the store refuses: then all leases are held as before.
func (e *Engine) Settle(ctx context.Context, name string, ids []string, how event.Settling) (lost []event.Lost, err error) {
	if err := checkSettling(&how); err != nil {
		return nil, err
	}
	s, c, err := e.pullable(name)
	if err != nil {
		return nil, err
	}
	defer s.leave(c)
	switch how.Verb {
	case event.Ack:
		return s.ack(ctx, c, ids, how.Reply)
	case event.Nack:
		return s.nack(ctx, ids, how.Delay)
	}
	return s.extend(ids, how.Deadline), nil
}

// Bounds of what a consumer may ask for: as much delay as Retry-After may ask, and Google Pub/Sub's longest
// ack deadline.
const (
	longestDelay    = maxWait
	longestDeadline = 600 * time.Second
)

func checkSettling(how *event.Settling) error {
	if how.Delay < 0 || how.Delay > longestDelay {
		return event.Invalid("delay", fmt.Sprintf("is %s; want 0s to %s", how.Delay, longestDelay))
	}
	if how.Deadline < 0 || how.Deadline > longestDeadline {
		return event.Invalid("deadline", fmt.Sprintf("is %s; want up to %s from now, or 0s to give back", how.Deadline, longestDeadline))
	}
	if how.Verb == event.Extend && how.Deadline == 0 {
		how.Verb = event.Nack
	}
	if how.Reply == nil {
		return nil
	}
	if err := how.Reply.Check(); err != nil {
		return event.At("reply", err)
	}
	own := *how.Reply
	own.From = "pull"
	how.Reply = fit(&own, nil)
	return nil
}

// Ack is Settle with event.Ack; lost are the leases that were no longer held.
func (e *Engine) Ack(ctx context.Context, name string, ids []string) (lost []string, err error) {
	return e.AckReply(ctx, name, ids, nil)
}

// AckReply is Ack with a reply to the producers of the leased events that asked for one.
func (e *Engine) AckReply(ctx context.Context, name string, ids []string, reply *event.Reply) (lost []string, err error) {
	return lostIDs(e.Settle(ctx, name, ids, event.Settling{Verb: event.Ack, Reply: reply}))
}

// Nack gives leases back, due again after delay.
func (e *Engine) Nack(ctx context.Context, name string, ids []string, delay time.Duration) (lost []string, err error) {
	return lostIDs(e.Settle(ctx, name, ids, event.Settling{Verb: event.Nack, Delay: delay}))
}

// Extend moves the leases' deadlines to d from now.
func (e *Engine) Extend(ctx context.Context, name string, ids []string, d time.Duration) (lost []string, err error) {
	return lostIDs(e.Settle(ctx, name, ids, event.Settling{Verb: event.Extend, Deadline: d}))
}

func lostIDs(lost []event.Lost, err error) ([]string, error) {
	var ids []string
	for _, l := range lost {
		ids = append(ids, l.Lease)
	}
	return ids, err
}

// ackGroup is what consumers settle in one commit: while one is under way those that come gather for the
// next, so that many consumers of one subscription cost as many syncs as one.
type ackGroup struct {
	sts  []settlement
	done chan struct{} // closed when err is known
	err  error
}

// settleTogether is settle in one commit with those of other callers. What puts something into topics goes
// alone: a topic that was deleted or is full must not fail the others.
func (s *subscription) settleTogether(ctx context.Context, sts []settlement) error {
	if len(sts) == 0 {
		return nil
	}
	for i := range sts {
		if len(sts[i].outputs) > 0 {
			return s.settle(ctx, sts)
		}
	}
	s.mu.Lock()
	g := s.acks
	leads := g == nil
	if leads {
		g = &ackGroup{done: make(chan struct{})}
		s.acks = g
	}
	g.sts = append(g.sts, sts...)
	s.mu.Unlock()
	if !leads {
		<-g.done
		return g.err
	}
	s.acking.Lock() // until the commit before has ended; others join meanwhile
	defer s.acking.Unlock()
	s.mu.Lock()
	s.acks = nil
	s.mu.Unlock()
	g.err = s.settle(context.WithoutCancel(ctx), g.sts) // the others' consumers are still there
	close(g.done)
	return g.err
}

// ending is how a lease came to its end.
type ending uint8

const (
	settled ending = iota
	expired
	returned
)

// endedLeases numbers leases and remembers how those ended that were not acknowledged, the exception, so
// that whoever comes late with one is told why. It is safe for use by many goroutines.
type endedLeases struct {
	last atomic.Uint64

	mu     sync.Mutex
	how    map[uint64]ending
	order  fifo[uint64]
	before uint64 // of leases up to this number some are forgotten
}

// endedKept bounds what is remembered: some 3 MB for a router whose leases all expire.
const endedKept = 1 << 15

func (e *endedLeases) next() uint64 { return e.last.Add(1) }

func (e *endedLeases) note(seq uint64, how ending) {
	if how == settled {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.how == nil {
		e.how = map[uint64]ending{}
	}
	e.how[seq] = how
	e.order.push(seq)
	for e.order.len() > endedKept {
		old := e.order.pop()
		e.before = max(e.before, old)
		delete(e.how, old)
	}
}

// forget undoes note: the lease lives on.
func (e *endedLeases) forget(seq uint64) {
	e.mu.Lock()
	delete(e.how, seq)
	e.mu.Unlock()
}

// why says how a lease of this run that is not held came to its end. One that is too old for this memory has
// outlived its deadline by far.
func (e *endedLeases) why(seq uint64) event.LostWhy {
	e.mu.Lock()
	defer e.mu.Unlock()
	how, known := e.how[seq]
	switch {
	case how == returned:
		return event.LostReturned
	case known || seq <= e.before:
		return event.LostExpired
	}
	return event.LostSettled
}
