package client

import (
	"time"

	"github.com/millrace/millrace/sdk/client/millracev1"
	"google.golang.org/grpc/codes"
)

// returned settles what a handler is done with.
func (r *receiver) returned(h *holding) {
	h.running, h.done = false, true
	if h.lost || r.err != nil {
		r.forget(h)
		return
	}
	r.settle(h)
}

// forget lets a delivery go; there is room for another.
func (r *receiver) forget(h *holding) {
	if r.held[h.d.Id] == h {
		delete(r.held, h.d.Id)
	}
}

// settle acknowledges what is done, or gives it back, together with others where it can.
func (r *receiver) settle(h *holding) {
	if h.err == nil {
		r.add(h, nil)
		return
	}
	delay := min(max(r.o.Delay(h.d, h.err), 0), maxDelay)
	r.add(h, &delay)
}

// add puts a lease to those that are to be settled; delay nil acknowledges.
func (r *receiver) add(h *holding, delay *time.Duration) {
	if n := len(r.settles); n > 0 {
		last := r.settles[n-1]
		same := false
		switch verb := last.how.Verb.(type) {
		case *millracev1.Settling_Ack:
			same = delay == nil
		case *millracev1.Settling_Nack:
			same = delay != nil && verb.Nack.Delay.AsDuration() == *delay
		}
		if same && len(last.of) < maxLeases {
			last.how.Leases, last.of = append(last.how.Leases, h.d.Lease), append(last.of, h)
			return
		}
	}
	how := Ack(h.d.Lease)
	if delay != nil {
		how = Nack(*delay, h.d.Lease)
	}
	r.settles = append(r.settles, &settling{how: how, of: []*holding{h}})
}

// flush sends what is to be settled, and grants credit for what was.
func (r *receiver) flush() {
	if r.stream == nil {
		return
	}
	for len(r.settles) > 0 && len(r.flight) < maxSettles && time.Now().After(r.hold) {
		s := r.settles[0]
		if !r.say(&millracev1.SubscribeRequest{Request: &millracev1.SubscribeRequest_Settle{Settle: s.how}}) {
			return
		}
		r.settles, r.flight = r.settles[1:], append(r.flight, s)
	}
	if r.ending {
		return
	}
	// Not for every delivery: a message for each would cost as much as the delivery.
	if add := r.o.Credit - len(r.held) - r.credit; add > 0 && (add >= r.o.Credit/4 || r.credit == 0) {
		if r.say(&millracev1.SubscribeRequest{Request: &millracev1.SubscribeRequest_Credit{Credit: &millracev1.SubscribeCredit{Add: uint32(add)}}}) {
			r.credit += add
		}
	}
}

// say sends a message unless too many wait to be sent.
func (r *receiver) say(m *millracev1.SubscribeRequest) bool {
	select {
	case r.stream.send <- m:
		return true
	default:
		return false
	}
}

// settled works on the answer to the first settle that is unanswered.
func (r *receiver) settled(a *millracev1.SubscribeSettled) {
	r.sent++
	if a.Sequence != r.sent || len(r.flight) == 0 {
		r.broke(errorf(codes.Internal, "the router answered settle %d when %d was the next of %d", a.Sequence, r.sent, len(r.flight)))
		return
	}
	s := r.flight[0]
	r.flight = r.flight[1:]
	if a.Error != nil {
		err := ofProto(a.Error)
		if ok, after := r.c.cut(err); ok { // put off
			r.settles = append([]*settling{s}, r.settles...)
			r.try++
			r.hold = time.Now().Add(r.c.o.Backoff.wait(r.try, after))
			return
		}
		r.end(err)
		return
	}
	lost := make(map[string]millracev1.LostReason, len(a.Lost))
	for _, l := range a.Lost {
		lost[l.Lease] = l.Reason
	}
	r.try = 0
	for i, h := range s.of {
		lease := s.how.Leases[i]
		if h.d.Lease != lease { // it has another since
			continue
		}
		reason, gone := lost[lease]
		switch {
		case s.extends() && gone:
			r.lose(h)
		case s.extends():
			h.asked, h.stale = false, false
		default:
			if h.err == nil {
				r.expect(h, gone, reason)
			}
			r.forget(h)
		}
	}
}

// expect notes that a delivery which was handled may come again all the same: its acknowledgement came too late, or for
// a lease that came over a stream which broke, so that the router may have handed it out again before it had that.
func (r *receiver) expect(h *holding, gone bool, why millracev1.LostReason) {
	now := time.Now()
	var again repeat
	switch {
	case gone && (why == millracev1.LostReason_LOST_REASON_EXPIRED || why == millracev1.LostReason_LOST_REASON_RETURNED):
		again = repeat{h.d.Attempt + 1, now.Add(maxDeadline)} // it was given back, which counts as an attempt
	case gone && why == millracev1.LostReason_LOST_REASON_RESTART, !gone && h.from != r.stream:
		// A router that was killed counts this attempt once more, as it does after a seek: only time tells them apart.
		again = repeat{h.d.Attempt, now.Add(againFor)}
	default:
		return
	}
	if len(r.late) >= maxLate {
		clear(r.late)
	}
	r.late[h.d.Id] = again
}

// lose takes a delivery from whoever works on it.
func (r *receiver) lose(h *holding) {
	h.lost = true
	if h.running {
		h.cancel(ErrLost)
		return // it counts until the handler is back
	}
	r.forget(h)
}

// prolong extends what is held for a while.
func (r *receiver) prolong(now time.Time) {
	if r.stream == nil || r.err != nil {
		return
	}
	var s *settling
	for _, h := range r.held {
		switch {
		case h.done || h.lost || h.asked || now.Before(h.extend):
		case now.Sub(h.since) > r.o.Hold:
			r.lose(h)
		default:
			if s == nil || len(s.of) == maxLeases {
				s = &settling{how: Extend(r.o.Deadline)}
				r.settles = append(r.settles, s)
			}
			s.how.Leases, s.of = append(s.how.Leases, h.d.Lease), append(s.of, h)
			h.asked, h.extend = true, now.Add(r.o.Deadline/3)
		}
	}
}
