package admission

import (
	"fmt"
	"math"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// A Room is what one client holds of the memory for large bodies. Its zero value holds nothing; its methods may be called
// from several goroutines.
type Room struct{ held, strange atomic.Int64 }

// rooms is the memory of large bodies that are being read or answered.
type rooms struct {
	budget    int64
	used      atomic.Int64
	strangers atomic.Int64 // of used, what nobody known sends
}

// ForStrangers is what of the room for large bodies those may use who have not shown who they are: half of it.
func (d *Door) ForStrangers() int64 { return d.rooms.budget / 2 }

// Reserve takes n bytes for a large body, unless the budget is used up. A body on its own always fits, since the budget is
// a body's limit at least; a stranger's if it is no more than their share. An error is event.ErrUnavailable.
func (d *Door) Reserve(r *Room, n int64, stranger bool) error {
	b := &d.rooms
	if stranger {
		if b.strangers.Add(n) > d.ForStrangers() {
			b.strangers.Add(-n)
			return d.noRoom()
		}
		r.strange.Add(n)
	}
	if b.used.Add(n) > b.budget {
		b.used.Add(-n) // what of it is strangers' goes with the request
		return d.noRoom()
	}
	r.held.Add(n)
	return nil
}

func (d *Door) noRoom() error {
	d.Refused(Bodies)
	return fmt.Errorf("large bodies that are being read use the %d MiB that there are for them; try again, or send smaller ones: %w", d.rooms.budget>>20, event.ErrUnavailable)
}

// Release gives back all that r holds.
func (d *Door) Release(r *Room) {
	if n := r.held.Swap(0); n != 0 {
		d.rooms.used.Add(-n)
	}
	if n := r.strange.Swap(0); n != 0 {
		d.rooms.strangers.Add(-n)
	}
}

// Return gives back n bytes of what r holds that is not a stranger's. Not beside a Release of r.
func (d *Door) Return(r *Room, n int64) {
	r.held.Add(-n)
	d.rooms.used.Add(-n)
}

// InFlight is the number of bytes of large bodies that are being read or answered, of those what strangers have sent, and
// how many may be.
func (d *Door) InFlight() (used, strangers, budget int64) {
	return d.rooms.used.Load(), d.rooms.strangers.Load(), d.rooms.budget
}

// Shed refuses a body of n bytes while memory is short: event.ErrUnavailable.
func (d *Door) Shed(n int64) error {
	if n <= fullBody {
		return nil
	}
	if most := d.pressure.most(); n > most {
		d.Refused(Memory)
		return fmt.Errorf("memory is short: bodies over %d KiB are not taken now; try again, or send smaller ones: %w", most>>10, event.ErrUnavailable)
	}
	return nil
}

// Usage is what the process makes of its memory.
type Usage struct {
	Live  float64 // share of the collector's limit that the last collection could not free; 0 without a limit
	GC    float64 // share of the machine that collecting took since the sample before
	Cycle uint64  // number of collections
}

// pressure says how large bodies may be while memory is short. It is looked at when a body comes, ten times a
// second at most, so that it costs nothing while nothing comes.
type pressure struct {
	every  int64 // ns between two looks
	level  atomic.Int32
	next   atomic.Int64 // ns since start
	start  time.Time
	sample func() Usage
	gather func() // collects

	mu    sync.Mutex
	last  uint64    // collections at the sample before
	since time.Time // when the number last changed
}

const (
	sampleEvery = 100 * time.Millisecond
	// Above these shares of the limit, or of the machine for collecting, bodies over 64 KiB and over 4 KiB are refused.
	tightLive, fullLive = 0.85, 0.95
	tightGC, fullGC     = 0.30, 0.45
	slack               = 0.05 // below them by this much it is over
	tightBody, fullBody = 64 << 10, 4 << 10
)

func newPressure() *pressure {
	return &pressure{every: int64(sampleEvery), start: time.Now(), sample: newSampler(), gather: runtime.GC}
}

// most is the largest body that is taken now.
func (p *pressure) most() int64 {
	now := int64(time.Since(p.start))
	if next := p.next.Load(); now >= next && p.next.CompareAndSwap(next, now+p.every) {
		p.look()
	}
	switch p.level.Load() {
	case 1:
		return tightBody
	case 2:
		return fullBody
	}
	return math.MaxInt64
}

// look takes a sample. While bodies are refused little is allocated and so nothing collected, and what is live would
// stay what it was: after a second without a collection it makes one.
func (p *pressure) look() {
	p.mu.Lock()
	defer p.mu.Unlock()
	u := p.sample()
	now := time.Now()
	if u.Cycle != p.last {
		p.last, p.since = u.Cycle, now
	} else if p.level.Load() > 0 && now.Sub(p.since) > time.Second {
		p.gather()
		u = p.sample()
		p.last, p.since = u.Cycle, time.Now()
	}
	p.level.Store(levelOf(u, p.level.Load()))
}

// levelOf is the level after a sample. Much collecting alone is a busy process; with a heap that is half full or more it
// is one that will not get out of it.
func levelOf(u Usage, before int32) int32 {
	above := func(level int32, live, gc float64) bool {
		if before >= level {
			live, gc = live-slack, gc-slack
		}
		return u.Live > live || u.GC > gc && u.Live > live-0.25
	}
	switch {
	case above(2, fullLive, fullGC):
		return 2
	case above(1, tightLive, tightGC):
		return 1
	}
	return 0
}

// newSampler reads the runtime's own figures.
func newSampler() func() Usage {
	names := []string{"/gc/heap/live:bytes", "/memory/classes/total:bytes", "/memory/classes/heap/released:bytes",
		"/memory/classes/heap/objects:bytes", "/memory/classes/heap/unused:bytes", "/memory/classes/heap/free:bytes",
		"/gc/cycles/total:gc-cycles", "/cpu/classes/gc/mark/assist:cpu-seconds", "/cpu/classes/gc/mark/dedicated:cpu-seconds",
		"/cpu/classes/gc/pause:cpu-seconds", "/cpu/classes/total:cpu-seconds"}
	samples := make([]metrics.Sample, len(names))
	for i, n := range names {
		samples[i].Name = n
	}
	var gc0, total0, share float64
	return func() Usage {
		metrics.Read(samples)
		size := func(i int) float64 { return float64(samples[i].Value.Uint64()) }
		seconds := func(i int) float64 { return samples[i].Value.Float64() }
		u := Usage{Cycle: samples[6].Value.Uint64()}
		if limit := debug.SetMemoryLimit(-1); limit > 0 && limit < math.MaxInt64 {
			beside := size(1) - size(2) - size(3) - size(4) - size(5) // stacks, the runtime's own
			u.Live = (size(0) + beside) / float64(limit)
		}
		gc, total := seconds(7)+seconds(8)+seconds(9), seconds(10)
		if total > total0 { // the figures move when a collection ends
			share = (gc - gc0) / (total - total0)
			gc0, total0 = gc, total
		}
		u.GC = share
		return u
	}
}
