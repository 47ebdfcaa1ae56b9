package httpapi

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

// bodies is the memory of requests' bodies that are being read or answered: those larger than HeaderBytes, which has
// buffers of its own.
type bodies struct {
	budget    int64
	used      atomic.Int64
	strangers atomic.Int64 // of used, what nobody known sends
}

// ofStrangers is what of the budget they may use: the other half is for those who have shown who they are.
func (b *bodies) ofStrangers() int64 { return b.budget / 2 }

// reserve takes n bytes for c, unless the budget is used up. A body on its own always fits, since the budget is a body's
// limit at least; a stranger's if it is no more than their share.
func (b *bodies) reserve(c *conn, n int64, stranger bool) bool {
	if stranger {
		if b.strangers.Add(n) > b.ofStrangers() {
			b.strangers.Add(-n)
			return false
		}
		c.strangers.Add(n)
	}
	if b.used.Add(n) > b.budget {
		b.used.Add(-n) // what of it is strangers' goes with the request
		return false
	}
	c.reserved.Add(n)
	return true
}

func (b *bodies) release(c *conn) {
	if n := c.reserved.Swap(0); n != 0 {
		b.used.Add(-n)
	}
	if n := c.strangers.Swap(0); n != 0 {
		b.strangers.Add(-n)
	}
}

// arriving is a large body that is being read.
type arriving struct {
	began   time.Time // zero while there is none
	until   time.Time
	got     int
	metered bool // its length is not known: it reserves as it comes

	stranger bool // nobody known sends it
}

// expect prepares a connection for a body of n bytes, -1 if nobody knows. Room for all of it is taken at once: that is
// how much memory the parser takes before it reads.
func (c *conn) expect(n int64, stranger bool) error {
	now := time.Now()
	c.incoming = arriving{began: now, until: now.Add(c.s.o.BodyTimeout), metered: n < 0, stranger: stranger}
	if share := c.s.bodies.ofStrangers(); stranger && n > share {
		c.s.limits.refused[limitBody].Add(1)
		return bodyTooLarge(int(share))
	}
	if n > 0 && !c.s.bodies.reserve(c, n, stranger) {
		return c.s.tooManyBodies()
	}
	return nil
}

func (s *Server) tooManyBodies() error {
	s.limits.refused[limitBodies].Add(1)
	return fmt.Errorf("large bodies that are being read use the %d MiB that there are for them; try again, or send smaller ones: %w", s.bodies.budget>>20, event.ErrUnavailable)
}

// readBody reads; a part of a large body at the rate that it must have, and within the budget.
func (c *conn) readBody(p []byte) (int, error) {
	in := &c.incoming
	if in.began.IsZero() {
		return c.Conn.Read(p)
	}
	if o := &c.s.limits.o; o.BodyRate > 0 {
		at := in.began.Add(o.BodyGrace + time.Duration(float64(in.got)/float64(o.BodyRate)*float64(time.Second)))
		if at.After(in.until) {
			at = in.until
		}
		if err := c.SetReadDeadline(at); err != nil {
			return 0, err
		}
	}
	n, err := c.Conn.Read(p)
	in.got += n
	if in.metered && n > 0 && !c.s.bodies.reserve(c, int64(n), in.stranger) {
		c.refusal = c.s.tooManyBodies()
		return 0, c.refusal
	}
	return n, err
}

// A usage is what the process makes of its memory.
type usage struct {
	live  float64 // share of the collector's limit that the last collection could not free; 0 without a limit
	gc    float64 // share of the machine that collecting took since the sample before
	cycle uint64  // number of collections
}

// pressure says how large bodies may be while memory is short. It is looked at when a body comes, ten times a
// second at most, so that it costs nothing while nothing comes.
type pressure struct {
	level  atomic.Int32
	next   atomic.Int64 // ns since start
	start  time.Time
	sample func() usage
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
	return &pressure{start: time.Now(), sample: newSampler(), gather: runtime.GC}
}

// most is the largest body that is taken now.
func (p *pressure) most() int64 {
	now := int64(time.Since(p.start))
	if next := p.next.Load(); now >= next && p.next.CompareAndSwap(next, now+int64(sampleEvery)) {
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
	if u.cycle != p.last {
		p.last, p.since = u.cycle, now
	} else if p.level.Load() > 0 && now.Sub(p.since) > time.Second {
		p.gather()
		u = p.sample()
		p.last, p.since = u.cycle, time.Now()
	}
	p.level.Store(levelOf(u, p.level.Load()))
}

// levelOf is the level after a sample. Much collecting alone is a busy process; with a heap that is half full or more it
// is one that will not get out of it.
func levelOf(u usage, before int32) int32 {
	above := func(level int32, live, gc float64) bool {
		if before >= level {
			live, gc = live-slack, gc-slack
		}
		return u.live > live || u.gc > gc && u.live > live-0.25
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
func newSampler() func() usage {
	names := []string{"/gc/heap/live:bytes", "/memory/classes/total:bytes", "/memory/classes/heap/released:bytes",
		"/memory/classes/heap/objects:bytes", "/memory/classes/heap/unused:bytes", "/memory/classes/heap/free:bytes",
		"/gc/cycles/total:gc-cycles", "/cpu/classes/gc/mark/assist:cpu-seconds", "/cpu/classes/gc/mark/dedicated:cpu-seconds",
		"/cpu/classes/gc/pause:cpu-seconds", "/cpu/classes/total:cpu-seconds"}
	samples := make([]metrics.Sample, len(names))
	for i, n := range names {
		samples[i].Name = n
	}
	var gc0, total0, share float64
	return func() usage {
		metrics.Read(samples)
		size := func(i int) float64 { return float64(samples[i].Value.Uint64()) }
		seconds := func(i int) float64 { return samples[i].Value.Float64() }
		u := usage{cycle: samples[6].Value.Uint64()}
		if limit := debug.SetMemoryLimit(-1); limit > 0 && limit < math.MaxInt64 {
			beside := size(1) - size(2) - size(3) - size(4) - size(5) // stacks, the runtime's own
			u.live = (size(0) + beside) / float64(limit)
		}
		gc, total := seconds(7)+seconds(8)+seconds(9), seconds(10)
		if total > total0 { // the figures move when a collection ends
			share = (gc - gc0) / (total - total0)
			gc0, total0 = gc, total
		}
		u.gc = share
		return u
	}
}

// shed refuses a body of n bytes while memory is short.
func (s *Server) shed(n int64) error {
	if n <= fullBody {
		return nil
	}
	if most := s.pressure.most(); n > most {
		s.limits.refused[limitMemory].Add(1)
		return fmt.Errorf("memory is short: bodies over %d KiB are not taken now; try again, or send smaller ones: %w", most>>10, event.ErrUnavailable)
	}
	return nil
}

// BodiesInFlight is the number of bytes of large bodies that are being read or answered, and how many may be.
func (s *Server) BodiesInFlight() (used, budget int64) { return s.bodies.used.Load(), s.bodies.budget }
