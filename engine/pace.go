package engine

import (
	"context"
	"runtime"
	"time"
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

// end pauses for a multiple of the work that was done while somebody published: with two cores it leaves
// seven eighths of them to others, with many it hardly matters.
func (p *pace) end(ctx context.Context) {
	if p.e.turn.Load() == p.turn {
		return
	}
	if p.worked += time.Since(p.began); p.worked >= paceAfter {
		pause(ctx, 6*p.worked/time.Duration(runtime.GOMAXPROCS(0)))
		p.worked = 0
	}
}
