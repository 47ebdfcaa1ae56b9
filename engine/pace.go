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
}

// paceAfter is how much work goes between two pauses: a timer is no more exact than this.
const paceAfter = 2 * time.Millisecond

func (p *pace) begin() {
	p.turn, p.began = p.e.turn.Load(), time.Now()
}

// paceBehind is how far a feeder must be behind to pause: what is left below that is soon done.
const paceBehind = 10_000 // events

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
	if p.worked >= paceAfter {
		pause(ctx, 6*p.worked/time.Duration(runtime.GOMAXPROCS(0)))
		p.worked = 0
	}
}
