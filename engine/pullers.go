package engine

import (
	"container/list"
	"context"
	"fmt"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// Consumers that wait stand in line. The first is called when there is something to pull; it takes its share
// and calls the next if something is left. So nobody starves, an event wakes one consumer rather than all,
// and one that asks for a thousand does not leave nine others idle.

// pullerLine is who waits for deliveries of a subscription. The subscription's mutex guards it.
type pullerLine struct{ list.List } // of *puller

// puller is one Pull that waits.
type puller struct {
	wake   chan struct{} // has room for one
	called bool          // woken, and has not looked since
}

// pullBytes is how many bytes of records one Pull hands out, but for the last: no answer grows past it by
// more than one event.
const pullBytes = 8 << 20

// Pull leases up to max deliveries until the subscription's ack deadline, waiting up to wait for the first.
// It returns none, and no error, if none came. While others wait it hands out no more than an equal share of
// what is there. Nothing is leased once ctx has ended; what was leased just before is returned, without an error:
// a caller that cannot use it any more gives it back with Unpull.
func (e *Engine) Pull(ctx context.Context, name string, max int, wait time.Duration) ([]event.Lease, error) {
	var timeout <-chan time.Time
	if wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		timeout = t.C
	}
	for {
		s, c, err := e.pullable(name)
		if err != nil {
			return nil, err
		}
		leases, w := s.pull(ctx, c, max, wait > 0)
		s.leave(c)
		if w == nil {
			return unlessLeased(ctx, leases)
		}
		again, leases, err := s.stand(ctx, w, max, timeout)
		if !again {
			return leases, err
		}
	}
}

// unlessLeased tells that ctx has ended unless there are leases: with an error they would be forgotten, and held by nobody
// until their deadline.
func unlessLeased(ctx context.Context, leases []event.Lease) ([]event.Lease, error) {
	if len(leases) > 0 {
		return leases, nil
	}
	return nil, ctx.Err()
}

// pull takes what is there, unless others wait for it already; with stay it joins the line if it gets nothing.
func (s *subscription) pull(ctx context.Context, c *subConfig, max int, stay bool) ([]event.Lease, *puller) {
	s.mu.Lock()
	var taken []*lease
	if s.pullers.Len() == 0 && ctx.Err() == nil {
		taken = s.take(c, max)
	}
	if len(taken) == 0 && stay && ctx.Err() == nil && !s.ended && !s.e.draining.Load() {
		w := &puller{wake: make(chan struct{}, 1)}
		s.pullers.PushBack(w)
		s.wakePullers()
		s.mu.Unlock()
		return nil, w
	}
	s.mu.Unlock()
	return s.hand(taken), nil
}

// stand waits in line until w gets something or gives up. again tells that the definition must be looked at
// anew.
func (s *subscription) stand(ctx context.Context, w *puller, max int, timeout <-chan time.Time) (again bool, leases []event.Lease, err error) {
	for {
		select {
		case <-w.wake:
		case <-timeout:
			s.stepOut(w)
			return false, nil, nil
		case <-ctx.Done():
			s.stepOut(w)
			return false, nil, ctx.Err()
		}
		c := s.under()
		if c == nil || c.Deliver.Face != event.Pull {
			if c != nil {
				s.leave(c)
			}
			s.stepOut(w)
			return true, nil, nil // and be told why
		}
		s.mu.Lock()
		w.called = false
		var taken []*lease
		if ctx.Err() == nil {
			taken = s.take(c, min(max, s.share()))
		}
		over := len(taken) > 0 || ctx.Err() != nil || s.ended || s.e.draining.Load()
		if over {
			s.outOfLine(w)
		}
		s.mu.Unlock()
		s.leave(c)
		if over {
			leases, err = unlessLeased(ctx, s.hand(taken))
			return false, leases, err
		}
	}
}

// stepOut leaves the line without anything.
func (s *subscription) stepOut(w *puller) {
	s.mu.Lock()
	s.outOfLine(w)
	s.mu.Unlock()
}

// outOfLine takes w out of the line; whoever is first now is called if something is left. The caller holds
// s.mu.
func (s *subscription) outOfLine(w *puller) {
	for e := s.pullers.Front(); e != nil; e = e.Next() {
		if e.Value == w {
			s.pullers.Remove(e)
			break
		}
	}
	s.wakePullers()
}

// wakePullers calls the first in line if there is something for it. The caller holds s.mu.
func (s *subscription) wakePullers() {
	first := s.pullers.Front()
	if first == nil || s.stopped() || len(s.leases.out) >= s.e.o.MaxLeases || s.pullReady(s.config.Load()) == 0 {
		return
	}
	first.Value.(*puller).call()
}

// dismissPullers calls everybody in line: the subscription ends, or the router drains. The caller holds s.mu.
func (s *subscription) dismissPullers() {
	for e := s.pullers.Front(); e != nil; e = e.Next() {
		e.Value.(*puller).call()
	}
}

func (w *puller) call() {
	if !w.called {
		w.called = true
		w.wake <- struct{}{} // there is room: it is emptied before called is unset
	}
}

// pullReady is about how much there is to pull. The caller holds s.mu.
func (s *subscription) pullReady(c *subConfig) int {
	n := s.sends.len()
	if !s.transforms(c) {
		n += s.due.len() + s.queue.len()
	}
	return n
}

// share is what one in line may take: an equal part of what is there. The caller holds s.mu.
func (s *subscription) share() int {
	n := max(1, s.pullers.Len())
	return max(1, (s.pullReady(s.config.Load())+n-1)/n)
}

// take leases up to max of what is there. The caller holds s.mu and a reference on c.
func (s *subscription) take(c *subConfig, max int) []*lease {
	var taken []*lease
	deadline := s.e.now().Add(c.Deliver.AckDeadline).UnixNano()
	for bytes := 0; len(taken) < max && bytes < pullBytes && len(s.leases.out) < s.e.o.MaxLeases && !s.stopped() && !s.ended; {
		j, ok := s.nextPull(c)
		if !ok {
			break
		}
		c.refs.Add(1) // the caller holds one, so it is not closed meanwhile
		l := &lease{job: j, config: c, deadline: deadline, seq: s.e.ended.next()}
		s.lend(l)
		taken = append(taken, l)
		bytes += len(j.rec)
	}
	return taken
}

// hand writes down leases for their consumer, away from s.mu: each costs a MAC.
func (s *subscription) hand(taken []*lease) []event.Lease {
	if len(taken) == 0 {
		return nil
	}
	deadline := time.Unix(0, taken[0].deadline).UTC()
	leases := make([]event.Lease, len(taken))
	for i, l := range taken {
		leases[i] = event.Lease{ID: s.leaseID(l.job, l.seq), Delivery: string(s.appendDeliveryID(nil, l.job)), Attempt: int(l.job.it.attempt), Deadline: deadline, Event: l.job.rec}
	}
	return leases
}

// Unpull takes leases back that never reached their consumer: what they lent is there for the next at once,
// and the attempt does not count.
func (e *Engine) Unpull(name string, ids []string) error {
	s, c, err := e.pullable(name)
	if err != nil {
		return fmt.Errorf("unpull: %w", err)
	}
	defer s.leave(c)
	held, _ := s.settleLeases(ids, false, returned)
	s.mu.Lock()
	for _, l := range held {
		switch {
		case l.job.it.gen != s.gen:
		case l.job.made != nil || l.job.step != nil:
			s.sends.push(l.job)
		default:
			s.again(l.job.it)
		}
	}
	s.kick()
	s.mu.Unlock()
	s.free(held)
	return nil
}
