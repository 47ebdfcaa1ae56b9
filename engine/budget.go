package engine

import (
	"context"
	"sync"
	"sync/atomic"
)

// smallSend is how many bytes of records a send may carry without being counted: what is this small is bounded well
// enough by how many sends there are.
const smallSend = 4 << 10

// A sendBudget bounds the bytes of events that are being sent, over all subscriptions: for each a sink holds a request's
// body at least as large. Without it ten thousand subscriptions to one topic hold ten thousand bodies of one event. While
// there is room a send costs one atomic addition. Once there is none, subscriptions stand in line and are let through in
// turn, one send each; what they would send stays where it is. One send always may go where nothing else does.
type sendBudget struct {
	e      *Engine
	limit  int64 // bytes
	used   atomic.Int64
	queued atomic.Int32 // how many are in line or invited: nobody else needs the mutex while it is 0
	asked  atomic.Int64 // bytes that those in line want

	mu       sync.Mutex // taken after a subscription's
	line     fifo[*subscription]
	needs    map[*subscription]int64 // of those in line
	invited  map[*subscription]int64 // out of the line, woken, and not come yet: what is kept for them
	promised int64                   // of those, together
	until    int64                   // that it is kept for the first of them
	alarm    alarm
}

func (b *sendBudget) open(e *Engine) {
	b.e, b.limit = e, e.o.SendBytes
	b.needs, b.invited = map[*subscription]int64{}, map[*subscription]int64{}
	b.alarm.ring = func(context.Context) { b.ring(e.now().UnixNano()) }
}

// fits takes n bytes if they are there, or if nothing is taken at all.
func (b *sendBudget) fits(n, promised int64) bool {
	for {
		used := b.used.Load()
		if used+promised > 0 && used+promised+n > b.limit {
			return false
		}
		if b.used.CompareAndSwap(used, used+n) {
			return true
		}
	}
}

// take takes n bytes for a send of s, or puts s in line. The caller holds s.mu.
func (b *sendBudget) take(s *subscription, n int64) bool {
	if b.queued.Load() == 0 && b.fits(n, 0) {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	kept, turn := b.invited[s]
	delete(b.invited, s)
	b.promised -= kept
	_, waits := b.needs[s]
	if !turn && !waits { // before it looks at what is left: who gives back looks at this afterwards
		b.queued.Add(1)
	}
	if (turn || !waits && b.line.len() == 0) && b.fits(n, b.promised) {
		b.queued.Add(-1)
		return true
	}
	if !waits {
		b.needs[s] = n
		b.asked.Add(n)
		b.line.push(s)
	}
	b.arm(b.e.now().UnixNano())
	return false
}

// more takes n further bytes for a send that has some, unless others wait for them.
func (b *sendBudget) more(n int64) bool { return b.queued.Load() == 0 && b.fits(n, 0) }

// giveBack gives n bytes back; those whose turn it is are called by the alarm. The caller may hold a subscription's mutex.
func (b *sendBudget) giveBack(n int64) {
	if n == 0 {
		return
	}
	if b.used.Add(-n); b.queued.Load() == 0 {
		return
	}
	b.mu.Lock()
	b.arm(b.e.now().UnixNano())
	b.mu.Unlock()
}

// ended gives back what a send had, and calls who may go next. The caller holds no lock.
func (b *sendBudget) ended(n int64) {
	if n == 0 {
		return
	}
	if b.used.Add(-n); b.queued.Load() == 0 {
		return
	}
	now := b.e.now().UnixNano()
	b.mu.Lock()
	turn := b.next(now)
	b.mu.Unlock()
	wakeInTurn(b, turn, now)
}

// room reports whether the first in line may go. The caller holds b.mu.
func (b *sendBudget) room() bool {
	if b.line.len() == 0 {
		return false
	}
	held := b.used.Load() + b.promised
	return held == 0 || held+b.needs[b.line.at(0)] <= b.limit
}

// arm sets the alarm for who stands in line. The caller holds b.mu.
func (b *sendBudget) arm(now int64) {
	var at int64
	switch {
	case b.room():
		at = now
	case len(b.invited) > 0: // should one of them not come
		at = b.until
	}
	b.e.alarms.set(&b.alarm, at)
}

// next takes those out of the line whose turn it is. The caller holds b.mu.
func (b *sendBudget) next(now int64) []*subscription {
	var turn []*subscription
	for b.room() {
		s := b.line.pop()
		n := b.needs[s]
		delete(b.needs, s)
		b.asked.Add(-n)
		if len(b.invited) == 0 {
			b.until = now + inviteFor
		}
		b.invited[s] = n
		b.promised += n
		turn = append(turn, s)
	}
	b.arm(now)
	return turn
}

// instead is turnKeeper.instead. The caller holds no lock.
func (b *sendBudget) instead(s *subscription, now int64) []*subscription {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.forget(s)
	return b.next(now)
}

// forget takes back an invitation. The caller holds b.mu.
func (b *sendBudget) forget(s *subscription) {
	if n, ok := b.invited[s]; ok {
		delete(b.invited, s)
		b.promised -= n
		b.queued.Add(-1)
	}
}

// ring is what the alarm does.
func (b *sendBudget) ring(now int64) {
	b.mu.Lock()
	if now >= b.until {
		for s := range b.invited {
			b.forget(s)
		}
	}
	turn := b.next(now)
	b.mu.Unlock()
	wakeInTurn(b, turn, now)
}

// SendBytes is how many bytes of events larger than 4 KiB are being sent, how many of them sends wait for that did not fit
// (of each subscription the next send alone), and how many there may be at once.
func (e *Engine) SendBytes() (used, waiting, limit int64) {
	b := &e.budget
	return b.used.Load(), b.asked.Load(), b.limit
}

// affords takes out of the budget what sending it takes, in place of what was taken before. The caller holds s.mu.
func (s *subscription) affords(w *sender, it item) bool {
	n := max(charge(len(it.rec)), s.gate.needs)
	s.e.budget.giveBack(w.charged)
	w.charged = 0
	if n == 0 {
		return true
	}
	if w.short = !s.e.budget.take(s, n); w.short {
		return false
	}
	w.charged, s.gate.needs = n, 0
	return true
}

// refund gives back what w has taken and does not need. The caller may hold s.mu.
func (s *subscription) refund(w *sender) {
	s.e.budget.giveBack(w.charged)
	w.charged = 0
}

// charge is what a send of n bytes of records takes out of the budget.
func charge(n int) int64 {
	if n <= smallSend {
		return 0
	}
	return int64(n)
}

// settleCharge takes for a batch what all its events take. What does not fit goes later; a batch that is sent again goes
// as a whole or not yet, and then no jobs are left in w. The caller holds s.mu.
func (s *subscription) settleCharge(w *sender) {
	n := charge(w.bytes) - w.charged
	if n <= 0 {
		s.e.budget.giveBack(-n)
		w.charged += n
		return
	}
	if s.e.budget.more(n) {
		w.charged += n
		return
	}
	keep, bytes := 0, 0
	if batchOf(w.jobs[0].it) == 0 {
		for keep < len(w.jobs) && charge(bytes+len(w.jobs[keep].rec)) <= w.charged {
			bytes += len(w.jobs[keep].rec)
			keep++
		}
	}
	if keep > 0 {
		s.putBackFrom(w, keep)
		s.e.budget.giveBack(w.charged - charge(bytes))
		w.charged = charge(bytes)
		return
	}
	s.refund(w)
	s.gate.needs, s.gate.waited = charge(w.bytes), true
	s.putJobsBack(w)
	if s.e.budget.take(s, s.gate.needs) { // there is room by now: kept for the try that follows
		s.e.budget.giveBack(s.gate.needs)
		return
	}
	s.shutGate(byMemory, 0)
}
