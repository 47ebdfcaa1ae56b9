package engine

import (
	"context"
	"runtime"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// A pace keeps a feeder that skims its backlog, where hardly anything matches, from taking a core from those
// who publish: they would wait for it, and it for nobody. It belongs to one goroutine.
type pace struct {
	e      *Engine
	turn   uint32 // of the engine when the step began: it grows with every publish
	began  time.Time
	worked time.Duration // beside publishers, since the last pause

	read, next event.Offset // of the feeder and of the ring, when the last pause began
}

// paceAfter is how much work goes between two pauses: a timer is no more exact than this.
const paceAfter = 2 * time.Millisecond

func (p *pace) begin() {
	p.turn, p.began = p.e.turn.Load(), time.Now()
}

// paceMost bounds a pause: what was worked in many steps that did not gain enough is not rested for at once.
const paceMost = 20 * time.Millisecond

// paceBehind is how far a feeder must be behind to pause: what is left below that is soon done.
const paceBehind = 10_000 // events

// paceGain is how many events a feeder has to read for each that is published before it pauses again: a backlog
// that is large, or slow to read, would else never come to an end.
const paceGain = 2

// end pauses for a multiple of the work that was done while somebody published: with two cores it leaves
// seven eighths of them to others, with many it hardly matters. One that the ring is about to overtake does
// not pause: read is how far it has come.
func (p *pace) end(ctx context.Context, read event.Offset, ring storage.Bounds) {
	if p.e.turn.Load() == p.turn {
		return
	}
	p.worked += time.Since(p.began)
	if read+paceBehind > ring.Next || read < ring.Head+(ring.Next-ring.Head)/16 {
		p.worked = 0
	}
	if read < p.read {
		p.next = 0 // it was moved back: what it gains is measured from here
	}
	if p.worked < paceAfter || p.next != 0 && read < p.read+paceGain*(ring.Next-p.next) {
		return
	}
	p.read, p.next = read, ring.Next
	pause(ctx, min(6*p.worked/time.Duration(runtime.GOMAXPROCS(0)), paceMost))
	p.worked = 0
}
