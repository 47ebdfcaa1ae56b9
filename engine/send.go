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

// A sender delivers one event at a time to the subscription's sink.
type sender struct {
	deliveries [1]event.Delivery
	id         []byte
	reply      event.Reply // where the sink puts one
	asks       bool        // it shall
}

func (s *subscription) send(crew *crew) {
	var w sender
	ctx := s.e.working()
	s.mu.Lock()
	for {
		c, j, ok := s.nextJob(crew)
		if !ok {
			crew.running--
			s.mu.Unlock()
			return
		}
		w.asks = c.wantsReply(j)
		s.mu.Unlock()
		began := time.Now()
		err := w.deliver(ctx, s, c, j)
		if err == nil {
			s.e.o.Observer.Delivered(s.name, time.Since(began))
		}
		s.mu.Lock()
		if err == nil && w.reply.Status != 0 {
			j.answered(w.reply)
		}
		s.sent(ctx, c, j, err)
		s.mu.Unlock()
		s.leave(c)
		s.mu.Lock()
	}
}

// nextJob waits for something to send. The caller holds s.mu.
func (s *subscription) nextJob(crew *crew) (*subConfig, job, bool) {
	for {
		if !s.stopped() && !s.ended {
			if c := s.under(); c != nil {
				if c.Deliver.Face != event.Push || crew.running > c.Concurrency {
					s.leaveLocked(c) // the definition has changed: others go on, or fewer
					return nil, job{}, false
				}
				if s.sends.len() > 0 {
					j := s.sends.pop()
					if s.sends.len() == s.sendLimit(c)/2 || s.sends.len() == 0 {
						s.kickPump(c)
					}
					if j.it.gen == s.gen {
						s.kick()
						return c, j, true
					}
					s.leaveLocked(c)
					continue
				}
				if !s.transforms(c) {
					if it, ok := s.next(); ok {
						s.kick()
						return c, job{it: it, rec: it.rec}, true
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

// kickPump wakes a pump that waits for room in sends.
func (s *subscription) kickPump(c *subConfig) {
	if s.transforms(c) && s.queue.len()+s.due.len() > 0 && !s.ended {
		s.call(&s.pumps, s.pumpLimit(c), s.pump)
	}
}

// deliver hands one output to the sink. A sink that panics has failed; it must not take the router down.
func (w *sender) deliver(ctx context.Context, s *subscription, c *subConfig, j job) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the sink panicked: %v", r)
		}
	}()
	w.id = s.appendDeliveryID(w.id[:0], j)
	w.deliveries[0] = event.Delivery{
		ID: unsafe.String(unsafe.SliceData(w.id), len(w.id)), Subscription: s.name, Topic: s.topic.name,
		Event: j.rec, Attempt: int(j.it.attempt),
	}
	w.reply = event.Reply{}
	if w.asks {
		w.deliveries[0].Reply = &w.reply
	}
	return c.sink.Deliver(ctx, w.deliveries[:])
}

// appendDeliveryID writes <subscription>:<topic>@<incarnation>:<position>:<n>.
func (s *subscription) appendDeliveryID(b []byte, j job) []byte {
	b = append(append(b, s.name...), ':')
	b = append(append(b, s.topic.name...), '@')
	b = append(strconv.AppendUint(b, uint64(s.topic.serial), 10), ':')
	b = append(j.it.rec.Position().Append(b), ':')
	return strconv.AppendInt(b, int64(j.n), 10)
}

// sent takes note of how a send ended. The caller holds s.mu; it is released while something is committed.
func (s *subscription) sent(ctx context.Context, c *subConfig, j job, err error) {
	st := j.step
	if err == nil {
		s.c.Delivered++
	} else {
		if ctx.Err() != nil { // aborted by the drain: not an attempt
			return
		}
		s.c.Failed++
		s.mu.Unlock()
		s.e.o.Observer.Failed(s.name, int(j.it.attempt), err)
		s.mu.Lock()
	}
	if st == nil {
		switch {
		case err == nil && j.reply != nil:
			s.settleReply(ctx, settlement{it: j.it, reply: j.reply})
			return
		case err == nil:
			s.done(j.it)
			return
		}
		f := failureOf(err)
		f.made = j.made
		s.commit(ctx, s.afterFailure(c, j.it, f), err)
		return
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
		s.commit(ctx, s.afterFailure(c, j.it, st.failed), st.failed.err)
	case len(st.outputs) > 0 || st.reply != nil:
		s.commit(ctx, settlement{it: j.it, outputs: st.outputs, reply: st.reply}, nil)
	default:
		s.done(j.it)
	}
}

func (s *subscription) commit(ctx context.Context, st settlement, err error) {
	s.mu.Unlock()
	s.settleUntil(ctx, []settlement{st})
	if event.IsDisable(err) {
		s.disable(ctx, err)
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
		return settlement{it: it, park: park}
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
