package engine

import (
	"math"
	"sync"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// floor is the offset below which a topic that rejects may drop events. The flush moves it up behind what is
// settled. Whoever is about to need older events pins it first: between the moment that a new subscription
// or a seek resolves where it begins and the next flush, the ring must not turn over.
type floor struct {
	mu   sync.Mutex
	last event.Offset // as the flush found it; 0 before the first
	pins int
	low  event.Offset // of the pins
}

// set moves the floor; while there are pins it goes no further than they allow. The caller holds f.mu from
// before it looked where the floor is.
func (f *floor) set(log storage.Log, at event.Offset) {
	f.last = at
	if f.pins > 0 {
		at = min(at, f.low)
	}
	log.Hold(at)
}

// pin keeps everything from at on; 0 is all there is.
func (f *floor) pin(log storage.Log, at event.Offset) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pins == 0 {
		f.low = math.MaxUint64
	}
	f.pins++
	f.low = min(f.low, at)
	log.Hold(min(f.last, f.low))
}

func (f *floor) unpin() {
	f.mu.Lock()
	f.pins--
	f.mu.Unlock()
}

// pin keeps what a subscription of t that starts at start will need until the pin is taken back; after that
// its cursors hold the floor.
func (t *topic) pin(start event.Start) (unpin func()) {
	for _, p := range t.parts {
		at := event.Offset(0)
		if start.At == event.Latest {
			at = p.log.Bounds().Next
		}
		p.floor.pin(p.log, at)
	}
	return func() {
		for _, p := range t.parts {
			p.floor.unpin()
		}
	}
}

// refloor moves the floors of t as the flush does.
func (e *Engine) refloor(plan *Plan, t *topic) {
	if plan.deadLetters == nil || t.def.Load().WhenFull != event.Reject && t.held.Load() == 0 { // nil: no plan says yet who needs what
		return
	}
	for _, p := range t.parts {
		p.hold(plan.deadLetters[t.name], e.now())
	}
}

// pinned is a topic whose ring must not turn over until the change is in force or given up.
type pinned struct {
	t     *topic
	unpin func()
}

func (c *change) pin(t *topic, start event.Start) {
	c.pins = append(c.pins, pinned{t, t.pin(start)})
}

// settleFloors takes the pins of a change back and moves the floors that it may have moved; the flush moves
// all. old is the plan before it.
func (e *Engine) settleFloors(c *change, old *Plan) {
	for _, p := range c.pins {
		p.unpin()
	}
	plan := e.plan.Load()
	if old.deadLetters == nil { // no floor was looked for before
		for _, t := range plan.topics {
			e.refloor(plan, t)
		}
		return
	}
	moved := map[*topic]bool{}
	for _, p := range c.pins {
		moved[p.t] = true
	}
	for t := range c.touched {
		moved[t] = true
	}
	for _, d := range c.defs {
		moved[d.t] = true
	}
	for name := range old.deadLetters {
		if t := plan.topics[name]; t != nil && !plan.deadLetters[name] {
			moved[t] = true
		}
	}
	for t := range moved {
		e.refloor(plan, t)
	}
}
