package engine

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"
	"unsafe"

	"github.com/millrace/millrace/engine/event"
)

// A sender delivers what the subscription's sink takes at once: one event, or as many as its limits let it
// gather. One goroutine has it.
type sender struct {
	jobs       []job
	bytes      int // of their records
	deliveries []event.Delivery
	id         []byte // the deliveries' ids, one after the other
	ends       []int  // where each ends
	fits       func(item) bool
	affords    func(item) bool // takes out of the budget of sends what sending it takes
	charged    int64           // what it has taken
	short      bool            // it was not there
	closed     bool            // what came next does not fit
	limits     sinkLimits      // under which it gathers
	alarm      alarm           // ends the gathering
	reply      event.Reply     // where the sink puts one
	asks       bool            // it shall

	err     error          // of the send
	partial *event.Partial // err, if it is one
	aborted bool           // the drain has ended it
	pass    pass           // through the gate
	outside bool           // it is given back
	sts     []settlement

	line    string // of what was sent last: see event.Delivery.Line
	scratch []byte
}

func (s *subscription) send(crew *crew) {
	w := &sender{}
	w.affords = func(it item) bool { return s.affords(w, it) }
	ctx := s.e.working()
	s.mu.Lock()
	for {
		c, j, ok := s.nextJob(crew, w)
		if !ok {
			crew.running--
			s.mu.Unlock()
			return
		}
		w.begin(j, c.limits)
		if !w.pass.probe || batchOf(j.it) != 0 { // of what finds out whether the target is back there is least
			s.gather(c, w)
		}
		if len(w.jobs) > 0 {
			s.settleCharge(w)
		}
		s.kick() // others may take the rest
		switch {
		case len(w.jobs) == 0 && w.outside:
		case len(w.jobs) == 0:
			s.withdraw(&w.pass)
		default:
			s.sentOn(len(w.jobs))
			w.asks = !c.limits.several() && c.wantsReply(j)
			s.mu.Unlock()
			began := time.Now()
			w.deliver(ctx, s, c)
			w.aborted = ctx.Err() != nil
			s.observe(w, time.Since(began))
			v := verdictOf(w)
			down := w.pass.hostPassed(s, v)
			s.e.budget.ended(w.charged)
			w.charged = 0
			s.mu.Lock()
			s.passed(c, &w.pass, v, down)
			if w.err == nil && w.reply.Status != 0 {
				w.jobs[0].answered(w.reply)
			}
			s.sent(ctx, c, w)
		}
		s.mu.Unlock()
		s.leave(c)
		s.mu.Lock()
	}
}

// nextJob waits for something to send. The caller holds s.mu.
func (s *subscription) nextJob(crew *crew, w *sender) (*subConfig, job, bool) {
	for {
		if !s.stopped() && !s.ended {
			if c := s.under(); c != nil {
				if c.Deliver.Face != event.Push || crew.running > c.Concurrency {
					s.leaveLocked(c) // the definition has changed: others go on, or fewer
					return nil, job{}, false
				}
				if !s.filler.waits() && s.sendable(c) && s.enter(c, &w.pass) {
					w.short = false
					if j, ok := s.takeJob(c, w.affords); ok {
						return c, j, true
					}
					s.refund(w)
					s.withdraw(&w.pass)
					if w.short {
						s.shutGate(byMemory, 0)
					}
				}
				s.leaveLocked(c)
			}
		}
		if !s.rest(crew) {
			return nil, job{}, false
		}
	}
}

// takeJob takes what is to be sent next, if fits (nil: anything) agrees. The caller holds s.mu.
func (s *subscription) takeJob(c *subConfig, fits func(item) bool) (job, bool) {
	for s.sends.len() > 0 {
		if j := s.sends.at(0); fits != nil && j.it.gen == s.gen {
			it := j.it
			it.rec = j.rec // what would be sent
			if !fits(it) {
				return job{}, false
			}
		}
		j := s.sends.pop()
		if s.sends.len() == s.sendLimit(c)/2 || s.sends.len() == 0 {
			s.kickPump(c)
		}
		if j.it.gen == s.gen {
			return j, true
		}
	}
	if s.transforms(c) {
		return job{}, false
	}
	it, ok := s.nextThat(fits)
	return job{it: it, rec: it.rec}, ok
}

// kickPump wakes a pump that waits for room in sends.
func (s *subscription) kickPump(c *subConfig) {
	if s.transforms(c) && s.queue.len()+s.due.len() > 0 && !s.ended {
		s.call(&s.pumps, s.pumpLimit(c), s.pump)
	}
}

// begin makes w hold one job.
func (w *sender) begin(j job, limits sinkLimits) {
	clear(w.jobs)
	w.jobs, w.bytes = append(w.jobs[:0], j), len(j.rec)
	w.limits, w.closed, w.outside = limits, false, false
}

// deliver hands w's jobs to the sink. A sink that panics has failed; it must not take the router down.
func (w *sender) deliver(ctx context.Context, s *subscription, c *subConfig) {
	w.err, w.partial = nil, nil
	defer func() {
		if r := recover(); r != nil {
			w.err = fmt.Errorf("the sink panicked: %v", r)
		}
		if w.err != nil && errors.As(w.err, &w.partial) && len(w.partial.Errs) != len(w.jobs) {
			w.err = fmt.Errorf("the sink tells of %d deliveries and had %d: %w", len(w.partial.Errs), len(w.jobs), w.err)
			w.partial = nil
		}
		clear(w.deliveries)
	}()
	w.id, w.ends, w.deliveries = w.id[:0], w.ends[:0], w.deliveries[:0]
	for _, j := range w.jobs {
		w.id = s.appendDeliveryID(w.id, j)
		w.ends = append(w.ends, len(w.id))
	}
	ids, from := unsafe.String(unsafe.SliceData(w.id), len(w.id)), 0
	for i, j := range w.jobs {
		w.deliveries = append(w.deliveries, event.Delivery{
			ID: ids[from:w.ends[i]], Subscription: s.name, Topic: s.topic.name, Event: j.rec, Attempt: int(j.it.attempt),
		})
		if c.Backlog > 0 && j.it.parked == nil {
			w.deliveries[i].Line = w.lineOf(s, j.it)
		}
		from = w.ends[i]
	}
	w.reply = event.Reply{}
	if w.asks {
		w.deliveries[0].Reply = &w.reply
	}
	w.err = c.sink.Deliver(ctx, w.deliveries)
}

// lineOf is the line of an item; those of a batch mostly share it.
func (w *sender) lineOf(s *subscription, it item) string {
	line := s.appendLine(w.scratch[:0], it.rec.Position(), it.gen)
	if w.scratch = line; string(line) != w.line {
		w.line = string(line)
	}
	return w.line
}

// errOf is how the send ended for one of the jobs.
func (w *sender) errOf(i int) error {
	if w.partial != nil {
		return w.partial.Errs[i]
	}
	return w.err
}

// observe tells how a send ended.
func (s *subscription) observe(w *sender, took time.Duration) {
	if len(w.jobs) > 1 {
		s.e.o.Observer.Batched(s.name, len(w.jobs))
	}
	for i := range w.jobs {
		switch err := w.errOf(i); {
		case err == nil:
			s.e.o.Observer.Delivered(s.name, took)
		case !w.aborted:
			s.e.o.Observer.Failed(s.name, int(w.jobs[i].it.attempt), err)
		}
	}
}

// appendDeliveryID writes <subscription>:<topic>@<incarnation>:<position>:<n>, and :<replay> where one delivers it
// again: a receiver that drops repeats has to take it. What was appended after a restoration from a backup has
// <incarnation>.<fork>.
func (s *subscription) appendDeliveryID(b []byte, j job) []byte {
	b = append(append(b, s.name...), ':')
	b = append(append(b, s.topic.name...), '@')
	b = strconv.AppendUint(b, uint64(s.topic.serial), 10)
	if f := s.topic.forkOf(j.it.rec.Position()); f != 0 {
		b = strconv.AppendUint(append(b, '.'), uint64(f), 16)
	}
	b = append(b, ':')
	b = append(j.it.rec.Position().Append(b), ':')
	b = strconv.AppendInt(b, int64(j.n), 10)
	if j.it.parked != nil && j.it.parked.replay != "" {
		b = append(append(b, ':'), j.it.parked.replay...)
	}
	return b
}

// sent takes note of how a send ended. What has to be written is in one commit. The caller holds s.mu; it is
// released meanwhile.
func (s *subscription) sent(ctx context.Context, c *subConfig, w *sender) {
	var disables error
	var shared due
	var back []item
	for i, j := range w.jobs {
		err := w.errOf(i)
		if err != nil && w.aborted { // by the drain: not an attempt
			continue
		}
		if c.Backlog > 0 && j.step == nil && j.it.parked == nil && event.IsStalled(err) {
			s.c.Failed++
			back = append(back, j.it)
			continue
		}
		st, ok := s.outcome(ctx, c, j, err)
		if !ok {
			continue
		}
		if j.step != nil && j.step.bad {
			err = j.step.failed.err
		}
		if event.IsDisable(err) {
			disables = err
		}
		shared.share(&st, err)
		w.sts = append(w.sts, st)
	}
	if len(back) > 0 {
		s.takeBack(back)
	}
	if len(w.sts) == 0 {
		return
	}
	if w.err != nil && w.partial == nil && len(w.jobs) > 1 {
		resendTogether(w.sts)
	}
	s.commit(ctx, w.sts, disables)
	clear(w.sts)
	w.sts = w.sts[:0]
}

// outcome takes note of how one send ended, and returns what of it is to be written, if anything is.
func (s *subscription) outcome(ctx context.Context, c *subConfig, j job, err error) (settlement, bool) {
	if err == nil {
		s.c.Delivered++
	} else {
		s.c.Failed++
	}
	st := j.step
	if st == nil {
		switch {
		case err == nil && j.reply != nil:
			s.settleReply(ctx, settlement{it: j.it, reply: j.reply, made: j.made})
			return settlement{}, false
		case err == nil:
			s.done(j.it, j.made, traceDelivered)
			return settlement{}, false
		}
		f := failureOf(err)
		f.made = j.made
		return s.afterFailure(c, j.it, f), true
	}
	st.left--
	if err == nil {
		st.done = append(st.done, uint32(j.n))
	} else if !st.bad {
		st.bad, st.failed = true, failureOf(err)
	}
	switch {
	case st.left > 0:
	case st.recalled:
		s.again(j.it)
		s.kick()
	case st.bad:
		st.failed.done, st.failed.hash, st.failed.made = st.done, hashOutputs(st.recs), j.made
		return s.afterFailure(c, j.it, st.failed), true
	case len(st.outputs) > 0 || st.reply != nil:
		return settlement{it: j.it, outputs: st.outputs, reply: st.reply, made: j.made}, true
	default:
		s.done(j.it, j.made, traceDelivered)
	}
	return settlement{}, false
}

// commit writes settlements and disables the subscription if one of them asks for it.
func (s *subscription) commit(ctx context.Context, sts []settlement, disables error) {
	s.mu.Unlock()
	s.settleUntil(ctx, sts)
	if disables != nil {
		s.disable(ctx, disables)
	}
	s.mu.Lock()
}

func failureOf(err error) failure {
	f := failure{err: err}
	var after *event.RetryAfter
	switch {
	case event.IsDisable(err):
	case event.IsPermanent(err):
		f.final, f.reason = true, "permanent"
	case errors.As(err, &after):
		f.wait = after.Wait
	}
	return f
}

// afterFailure decides about an item. One whose target disables the subscription is kept for when it
// resumes, whatever its attempts.
func (s *subscription) afterFailure(c *subConfig, it item, f failure) settlement {
	if f.made == nil {
		f.made = c
	}
	if event.IsDisable(f.err) {
		park := s.park(it, f.err)
		park.due, park.attempt, park.done, park.hash, park.digests = s.e.now().UnixNano(), it.attempt-1, f.done, f.hash, f.made.digests
		return settlement{it: it, park: park, failed: &f}
	}
	if c.Retry.On4xx == event.DeadLetter4xx && !f.final && final4xx(event.Code(f.err)) {
		f.final, f.reason = true, "permanent"
	}
	return s.fail(c, it, f)
}

// final4xx reports whether an answer says that the request itself is at fault. 408, 425 and 429 ask for another
// try (RFC 9110 section 15.5.9, RFC 8470 section 5.2, RFC 6585 section 4).
func final4xx(code int) bool {
	return code >= 400 && code <= 499 && code != 408 && code != 425 && code != 429
}
