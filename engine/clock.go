package engine

import (
	"time"

	"github.com/millrace/millrace/engine/event"
)

// A caller whose Options.Now is a clock of its own, such as a test of rules that lets days pass in a moment, moves it,
// says so, and learns when there is nothing left to do but wait.

// ClockMoved has all that waits for a time look at the clock now. It is for a clock that Options.Now moves by itself:
// timers run on the machine's.
func (e *Engine) ClockMoved() {
	e.parked.nudge()
	e.alarms.nudge()
}

// Resting reports whether nothing moves: what was published is read, matched, run, sent and settled, or waits for a
// time, for a consumer that pulls, or for somebody who resumes the subscription. Next is when the first of it is due;
// zero if nothing waits for a time. It is only a snapshot where the clock goes on, or others publish, pull or settle
// meanwhile.
func (e *Engine) Resting() (next time.Time, ok bool) {
	before := e.activity()
	now := e.now().UnixNano()
	for _, s := range e.plan.Load().subs {
		if !s.resting(now) {
			return time.Time{}, false
		}
	}
	var first int64
	for _, a := range []*alarms{&e.parked, &e.alarms} {
		at, quiet := a.resting(now)
		if !quiet {
			return time.Time{}, false
		}
		if at != 0 && (first == 0 || at < first) {
			first = at
		}
	}
	at, quiet := e.schedules.resting(now)
	if !quiet {
		return time.Time{}, false
	}
	if at != 0 && (first == 0 || at < first) {
		first = at
	}
	// A subscription that was looked at early may have been given work by one that was looked at late: by an append,
	// at the end of a send to their host, or by an alarm. All of these count.
	if e.activity() != before {
		return time.Time{}, false
	}
	if first != 0 {
		next = time.Unix(0, first).UTC()
	}
	return next, true
}

// activity is what grows whenever something happens that gives others work.
type activity struct {
	appended uint64 // events
	settled  uint64 // sends, steps and rows
	rung     uint64 // alarms
}

func (e *Engine) activity() (a activity) {
	p := e.plan.Load()
	for _, t := range p.topics {
		for _, part := range t.parts {
			a.appended += part.log.Bounds().Next
		}
	}
	for _, s := range p.subs {
		s.mu.Lock()
		a.settled += s.c.Delivered + s.c.Failed + s.c.Parked + s.c.DeadLettered + s.c.Dropped
		s.mu.Unlock()
	}
	for _, list := range []*alarms{&e.parked, &e.alarms} {
		list.mu.Lock()
		a.rung += list.rung
		list.mu.Unlock()
	}
	return a
}

// resting reports whether no alarm is due or at work, and when the next one is; 0 if none is set.
func (a *alarms) resting(now int64) (next int64, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.ringing:
		return 0, false
	case len(a.list) == 0:
		return 0, true
	}
	return a.list[0].at, a.list[0].at > now
}

// resting reports whether nobody works on the subscription, and nobody would if the clock stood still.
func (s *subscription) resting(now int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.config.Load()
	for i, p := range s.topic.parts {
		cur := s.cursors[i]
		if len(cur.recover) > 0 || p.live.Load() < p.log.Bounds().Next {
			return false
		}
		if !cur.attached && s.queue.len() <= s.e.o.Queue/2 && !s.full() { // its feeder reads on
			return false
		}
	}
	gathers := 0
	if f := &s.filler; f.waits() {
		if f.end <= now || s.gatherEnds(f.c, f.gen) || s.filled(f.c) {
			return false
		}
		gathers = 1
	}
	l := &s.lanes
	switch {
	case s.pumps.running > s.pumps.idle, s.senders.running > s.senders.idle+gathers:
		return false
	case len(l.moving) > 0, l.mover, l.fetching, s.seeking, s.gathered != nil, s.acks != nil:
		return false
	case s.stopped():
		return true
	}
	takes := s.queue.len()+s.due.len() > 0
	if s.transforms(c) {
		if takes && s.sends.len() < s.sendLimit(c) {
			return false
		}
		takes = s.sends.len() > 0
	} else {
		takes = takes || s.sends.len() > 0
	}
	return !takes || c.Deliver.Face == event.Pull || s.gate.shut != notShut || gathers > 0
}

// resting reports whether no schedule is due or at work, and when the next one is; 0 if there is none.
func (b *scheduleBook) resting(now int64) (next int64, ok bool) {
	if !b.firing.TryLock() {
		return 0, false
	}
	defer b.firing.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.all {
		if due := s.due(); due != 0 && (next == 0 || due < next) {
			next = due
		}
	}
	return next, next == 0 || next > now
}
