package engine

import (
	"cmp"
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// A sink that takes several events in one Deliver is handed batches: a sender takes what is queued and waits a
// little for more. One sender of a subscription gathers at a time, so that events that trickle in fill one
// batch rather than begin many.

// sinkLimits bound what a sink takes in one Deliver.
type sinkLimits struct {
	events int           // 1: no batches
	bytes  int           // of the events' records; a larger event goes alone
	wait   time.Duration // for more, since the first was taken
}

func (l sinkLimits) several() bool { return l.events > 1 }

func limitsOf(sink Sink) sinkLimits {
	if b, ok := sink.(Batcher); ok {
		events, bytes, wait := b.Batch()
		if bytes <= 0 {
			bytes = batchBytes
		}
		return sinkLimits{max(events, 1), bytes, wait}
	}
	return sinkLimits{events: 1}
}

// filler is the sender that waits for more. The subscription's mutex guards it.
type filler struct {
	wake          *sync.Cond
	c             *subConfig // under which it gathers; nil: nobody waits
	gen           uint32     // of what it has
	events, bytes int        // what it still takes
	end           int64      // Unix ns: it waits no longer
}

func (f *filler) waits() bool { return f.c != nil }

// filled reports whether what is queued may fill the batch of the sender that waits, or is as much as will be
// queued.
func (s *subscription) filled(c *subConfig) bool {
	if s.transforms(c) {
		return s.sends.len() > 0
	}
	f := &s.filler
	return s.sends.len() > 0 || s.queue.len()+s.due.len() >= min(f.events, s.e.o.Queue/2) ||
		s.queue.pinned+s.dueBytes >= min(f.bytes, s.e.o.QueueBytes/2)
}

// gatherEnds reports whether what was gathered under a definition, in a generation, is to go out at once, or not at all.
func (s *subscription) gatherEnds(c *subConfig, gen uint32) bool {
	return s.ended || s.stopped() || s.config.Load() != c || s.gen != gen
}

// gather adds to w what may go out together with its first job. Members of a batch have had equally many
// attempts, and those of one that failed whole are sent together again, without others. No jobs are left in w if
// they cannot go now: a seek has made them void, or they are given back. The caller holds s.mu; it is released while
// w waits.
func (s *subscription) gather(c *subConfig, w *sender) {
	if !w.limits.several() {
		return
	}
	if w.fits == nil {
		w.fits = w.fitting // once: it is an allocation
	}
	s.fill(c, w)
	waits := w.limits.wait > 0 && !w.full() && !s.gate.waited
	s.gate.waited = false
	if waits {
		s.withdraw(&w.pass) // others of the target's host shall not wait because this one waits for events
		w.outside = true
		s.refund(w) // nor others for the budget of sends
		s.waitForMore(c, w)
		goes := len(w.jobs) > 0 && s.mayGo(c)
		if goes && s.enter(c, &w.pass) {
			w.outside = false
		} else {
			s.gate.waited = goes // when its turn comes it goes at once, or it would stand in line for ever
			s.putJobsBack(w)
		}
	}
	// By position, as rows are read again: a batch that is resent is byte for byte what it was.
	if !slices.IsSortedFunc(w.jobs, compareJobs) {
		slices.SortFunc(w.jobs, compareJobs)
	}
}

// waitForMore fills w until it is full or its time is over, or something interrupts.
func (s *subscription) waitForMore(c *subConfig, w *sender) {
	gen, end := s.gen, s.e.now().Add(w.limits.wait).UnixNano()
	w.ringAt(s, end)
	for !w.full() && !s.gatherEnds(c, gen) && s.e.now().UnixNano() < end {
		f := &s.filler
		f.end, f.c, f.gen, f.events, f.bytes = end, c, gen, w.limits.events-len(w.jobs), w.limits.bytes-w.bytes
		f.wake.Wait()
		f.c = nil
		if s.gen == gen && s.config.Load() == c {
			s.fill(c, w)
		}
	}
	s.e.alarms.set(&w.alarm, 0)
	if s.gen != gen { // all that was gathered is void
		w.jobs = w.jobs[:0]
	}
}

// mayGo reports whether what was gathered may be sent under c still. Of a subscription that ends it may: that is
// the last chance before the next start.
func (s *subscription) mayGo(c *subConfig) bool {
	return s.ended || !s.stopped() && s.config.Load() == c
}

// putJobsBack puts what w holds where it is taken from again.
func (s *subscription) putJobsBack(w *sender) { s.putBackFrom(w, 0) }

// putBackFrom puts back what w holds from the n-th job on.
func (s *subscription) putBackFrom(w *sender, n int) {
	face := s.config.Load().Deliver.Face
	for _, j := range w.jobs[n:] {
		switch {
		case j.made == nil:
			s.again(j.it)
		case face == event.Push || face == event.Pull:
			s.sends.push(j)
		default: // nobody would take outputs: see recall
			if j.step != nil {
				j.step.recalled = true
				if j.step.left--; j.step.left > 0 {
					continue
				}
			}
			s.again(j.it)
		}
	}
	clear(w.jobs[n:])
	w.jobs = w.jobs[:n]
}

// full reports whether w need not wait for more.
func (w *sender) full() bool { return w.closed || len(w.jobs) == w.limits.events || w.complete() }

func compareJobs(a, b job) int {
	x, y := a.it.rec.Position(), b.it.rec.Position()
	return cmp.Or(cmp.Compare(x.Partition, y.Partition), cmp.Compare(x.Offset, y.Offset), cmp.Compare(a.n, b.n))
}

// fill takes what is queued and fits.
func (s *subscription) fill(c *subConfig, w *sender) {
	for len(w.jobs) < w.limits.events && !w.closed {
		j, ok := s.takeJob(c, w.fits)
		if !ok {
			return
		}
		w.jobs = append(w.jobs, j)
		w.bytes += len(j.rec)
	}
}

func (w *sender) fitting(it item) bool {
	first := w.jobs[0].it
	w.closed = it.attempt != first.attempt || batchOf(it) != batchOf(first) || w.bytes+len(it.rec) > w.limits.bytes
	return !w.closed
}

// complete reports whether nobody can be missing: a batch that is resent is fetched as a whole. Its members come
// one by one where functions make them.
func (w *sender) complete() bool { return batchOf(w.jobs[0].it) != 0 && w.jobs[0].made == nil }

// batchOf names the batch that failed whole and is sent again with this item in it; 0: none.
func batchOf(it item) uint64 {
	if it.parked == nil {
		return 0
	}
	return it.parked.batch
}

// ringAt wakes the subscription's filler when w has waited long enough. The caller holds s.mu.
func (w *sender) ringAt(s *subscription, at int64) {
	if w.alarm.ring == nil {
		w.alarm.ring = func(context.Context) {
			s.mu.Lock()
			s.filler.wake.Signal() // one that waits for something else looks at its own end and waits on
			s.mu.Unlock()
		}
	}
	s.e.alarms.set(&w.alarm, at)
}

// A due gives those of a batch that failed in the same way the same time of the next try, so that they are sent
// together again; each of its own would be a request each.
type due struct {
	at   int64
	wait time.Duration
}

func (d *due) share(st *settlement, err error) {
	if st.park == nil {
		return
	}
	if wait := failureOf(err).wait; d.at == 0 || wait != d.wait {
		d.at, d.wait = st.park.due, wait
	}
	st.park.due = d.at
}

// resendTogether makes the members of a batch that failed whole due at the same time, under a name of their own.
func resendTogether(sts []settlement) {
	batch := rand.Uint64() | 1
	var at int64
	for i := range sts {
		p := sts[i].park
		if p == nil {
			continue
		}
		if at == 0 {
			// Rows are read by due time: two batches that fail at once must not be read mixed.
			at = p.due - int64(batch>>1%1000)
		}
		p.due, p.batch = at, batch
	}
}
