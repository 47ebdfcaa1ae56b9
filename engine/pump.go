package engine

import (
	"context"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// A pump takes batches off a subscription's queue, runs its functions over them, and hands what comes out
// to the senders or pullers, or puts it into a topic in one commit with the cursor.

const (
	batchEvents = 256
	batchBytes  = 1 << 20
	batchTime   = time.Millisecond // of guest time: it holds up the collector for everybody
)

// step is an item of which several outputs, or some for topics, are under way. The subscription's mutex
// guards it.
type step struct {
	it       item
	config   *subConfig
	left     int // sends not ended
	failed   failure
	bad      bool
	recalled bool // outputs were given back: what is left of it ends, and the item runs again
	done     []uint32
	recs     []event.Record
	outputs  []output // appended when every send has ended well
	reply    *event.Reply
}

// job is one send.
type job struct {
	it   item
	step *step // nil where the item has this one output and nothing else
	n    int   // of the outputs
	rec  event.Record
	made *subConfig // whose functions put it out; nil where there are none. Its sink may be closed

	reply *event.Reply // where there is no step
}

func (s *subscription) pump(crew *crew) {
	h := newChain(s)
	ctx := s.e.working()
	perEvent := time.Duration(0) // smoothed cost of an event in the functions
	for {
		limit := batchEvents
		if perEvent > 0 {
			limit = max(1, min(batchEvents, int(batchTime/perEvent)))
		}
		if !s.batch(crew, h, limit) {
			return
		}
		c, all := h.c, h.items
		var failed error
		for rest := all; len(rest) > 0; {
			n, under, release, err := s.sameChain(ctx, c, rest)
			h.c, h.items, rest = under, rest[:n], rest[n:]
			if err == nil {
				if err = s.runBatch(ctx, h); !h.c.stateful {
					perEvent = (perEvent*7 + h.took/time.Duration(n)) / 8
				}
			}
			if err != nil {
				s.putBack(h.items, "function cannot run: "+err.Error())
				failed = err
			}
			release()
		}
		s.leave(c)
		clear(all)
		clear(h.level)
		h.items = all[:0]
		if failed == nil {
			continue
		}
		s.mu.Lock()
		over := s.ended || ctx.Err() != nil // taken again it would fail again, until the drain is out of time and after
		if over {
			crew.running--
		}
		s.mu.Unlock()
		if over {
			return
		}
		pause(ctx, 200*time.Millisecond)
	}
}

// runBatch takes a batch through the functions and hands on what they make of it. It fails if a function cannot
// run at all; h.items is then what nothing was decided about.
func (s *subscription) runBatch(ctx context.Context, h *chain) error {
	if h.c.stateful { // it settles what it runs
		return s.runStateful(ctx, h)
	}
	began := time.Now()
	err := h.run(ctx)
	h.took = time.Since(began)
	if err != nil {
		return err
	}
	s.unblock()
	if h.c.Deliver.Face == event.ToTopic || h.c.Deliver.Face == event.Stream {
		s.toTopic(ctx, h)
	} else {
		s.handOver(ctx, h)
	}
	return nil
}

// batch waits for items and takes some; false ends the pump.
func (s *subscription) batch(crew *crew, h *chain, limit int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		h.c = s.under()
		if h.c != nil && h.c.stateful && crew.running > 1 && !s.ended {
			s.leaveLocked(h.c) // the definition has changed: state has one pump
			crew.running--
			s.kick()
			return false
		}
		if h.c != nil && !s.stopped() && s.transforms(h.c) && s.sends.len() < s.sendLimit(h.c) {
			h.items = h.items[:0]
			bytes := 0
			for len(h.items) < limit && bytes < batchBytes {
				it, ok := s.next()
				if !ok {
					break
				}
				h.items = append(h.items, it)
				bytes += len(it.rec)
			}
			if len(h.items) > 0 {
				s.kick() // another pump may take the rest
				return true
			}
		}
		if h.c != nil {
			s.leaveLocked(h.c)
		}
		if !s.rest(crew) {
			crew.running--
			return false
		}
	}
}

// sendLimit is how much may wait between the functions and the senders.
func (s *subscription) sendLimit(c *subConfig) int {
	if c.Deliver.Face == event.Pull {
		return s.e.o.Queue
	}
	return max(64, 2*c.Concurrency)
}

// putBack returns items that nothing was decided about.
func (s *subscription) putBack(items []item, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, it := range items {
		if it.gen == s.gen {
			s.again(it)
		}
	}
	s.waiting = why
}

func (s *subscription) unblock() {
	s.mu.Lock()
	s.waiting = ""
	s.mu.Unlock()
}

// collect makes what a batch puts into the subscription's topic.
func (h *chain) collect(ctx context.Context) {
	for _, l := range h.level {
		x := &h.fates[l.origin]
		if x.failed {
			continue
		}
		var ev event.Event
		l.rec.Decode(&ev)
		out, err := h.at.outputTo(ctx, h.c.Deliver.Topic, &ev)
		if err != nil {
			h.failed(l.origin, outputFailure(err, nil))
			continue
		}
		x.outputs = append(x.outputs, out)
	}
}

// toTopic settles a batch with everything that it puts into topics.
func (s *subscription) toTopic(ctx context.Context, h *chain) {
	h.collect(ctx)
	outputs, dropped := 0, 0
	sts := make([]settlement, 0, len(h.items))
	for i, it := range h.items {
		x := &h.fates[i]
		if x.failed {
			sts = append(sts, s.failing(h.c, it, x.failure))
			continue
		}
		if len(x.outputs) == 0 && x.reply == nil {
			dropped++
		} else {
			outputs++
		}
		sts = append(sts, x.settlement(h.c, it))
	}
	began := time.Now()
	if s.settleUntil(ctx, sts) {
		s.delivered(h.c, outputs, dropped, time.Since(began))
	}
}

// delivered counts what a batch has put into topics. From a function half it is still to be delivered.
func (s *subscription) delivered(c *subConfig, outputs, dropped int, took time.Duration) {
	if c.half == functionHalf {
		outputs = 0
	}
	s.mu.Lock()
	s.c.Dropped += uint64(dropped)
	s.c.Delivered += uint64(outputs)
	s.mu.Unlock()
	for range outputs {
		s.e.o.Observer.Delivered(s.name, took)
	}
}

// failing reports a failure and decides about it.
func (s *subscription) failing(c *subConfig, it item, f failure) settlement {
	s.mu.Lock()
	s.c.Failed++
	s.mu.Unlock()
	s.e.o.Observer.Failed(s.name, int(it.attempt), f.err)
	return s.fail(c, it, f)
}

// handOver queues a batch's outputs for senders or pullers; what came to nothing is settled at once.
func (s *subscription) handOver(ctx context.Context, h *chain) {
	var sts []settlement
	at := 0
	s.mu.Lock()
	if f := s.config.Load().Deliver.Face; f == event.ToTopic || f == event.Stream {
		for _, it := range h.items { // nobody sends any more: see recall
			s.again(it)
		}
		s.kick()
		s.mu.Unlock()
		return
	}
	for i, it := range h.items {
		from := at
		for at < len(h.level) && h.level[at].origin == i {
			at++
		}
		x := &h.fates[i]
		switch outs := h.level[from:at]; {
		case x.failed:
			s.mu.Unlock()
			sts = append(sts, s.failing(h.c, it, x.failure))
			s.mu.Lock()
		case len(outs) == 0 && len(x.outputs) == 0 && x.reply == nil:
			s.c.Dropped++
			s.done(it, h.c, traceFiltered)
		case len(outs) == 0:
			sts = append(sts, x.settlement(h.c, it))
		case len(outs) == 1 && len(x.outputs) == 0:
			s.sends.push(job{it: it, rec: outs[0].rec, made: h.c, reply: x.reply})
		default:
			s.queueStep(h.c, it, outs, x)
		}
	}
	s.kick()
	s.mu.Unlock()
	if len(sts) > 0 {
		s.settleUntil(ctx, sts)
	}
}

// queueStep queues the sends of an item with several outputs, without those that an earlier try has sent.
func (s *subscription) queueStep(c *subConfig, it item, outs []link, x *fate) {
	st := &step{it: it, config: c, outputs: x.outputs, reply: x.reply}
	for _, l := range outs {
		st.recs = append(st.recs, l.rec)
	}
	var sent map[uint32]bool
	if p := it.parked; p != nil && len(p.done) > 0 && p.hash == hashOutputs(st.recs) {
		sent = make(map[uint32]bool, len(p.done))
		for _, n := range p.done {
			sent[n] = true
		}
		st.done = append(st.done, p.done...)
	}
	for n, rec := range st.recs {
		if !sent[uint32(n)] {
			st.left++
			s.sends.push(job{it: it, step: st, n: n, rec: rec, made: c})
		}
	}
	if st.left == 0 { // all were sent; what failed was the settlement
		s.workers.Go(func() {
			s.settleUntil(s.e.working(), []settlement{{it: it, outputs: st.outputs, reply: st.reply, made: c}})
		})
	}
}
