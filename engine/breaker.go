package engine

import (
	"math"
	"math/rand/v2"
	"time"
)

// circuitState is how a circuit stands.
type circuitState uint8

const (
	circuitClosed circuitState = iota
	circuitOpen
	circuitHalfOpen // one send at a time tells whether the target is back
)

func (s circuitState) String() string { return [...]string{"closed", "open", "half-open"}[s] }

// breakerLimits say when a circuit opens and for how long.
type breakerLimits struct {
	failures    int           // in a row, until it opens; negative: never
	first, most time.Duration // open at first, and at most: it doubles
}

// A breaker is a circuit: it opens after so many failures in a row, lets nothing through for a time that doubles,
// then one send at a time, and after a success twice as many each second, so that a target that comes back is not
// met by all that has waited for it. It has no lock and no clock: its owner has. Times are Unix ns.
type breaker struct {
	state    circuitState
	epoch    uint32 // grows each time that it opens: how an earlier send ends says nothing any more
	out      int    // sends of this epoch under way
	limit    int    // of out, while it comes back; 0: none
	well     int    // successes at this limit
	grown    int64  // when limit was set
	failures int    // in a row
	trips    int    // times it has opened since all was well
	since    int64  // closed, or not closed, since; 0: the start
	next     int64  // open: when it is tried again
	reason   string // the last failure
	last     string // the same, also after all was well again
	lastAt   int64  // when; 0: there was none
}

const (
	rampStep     = int64(time.Second) // the shortest time between two limits of a circuit that comes back
	rampFailures = 3                  // in a row, until a circuit that comes back opens again
)

// calm reports that nothing has to be looked at: it is closed, and was so for long enough.
func (b *breaker) calm() bool { return b.state == circuitClosed && b.limit == 0 }

// admits reports whether a send may begin now; if not, when it may, 0 for when one that is under way ends.
func (b *breaker) admits(now int64) (ok bool, at int64) {
	switch b.state {
	case circuitOpen:
		if now < b.next {
			return false, b.next
		}
		b.state = circuitHalfOpen
		return true, 0
	case circuitHalfOpen:
		return b.out == 0, 0
	}
	return b.limit == 0 || b.out < b.limit, 0
}

// free is how many sends may begin now.
func (b *breaker) free(now int64) int {
	switch ok, _ := b.admits(now); {
	case !ok:
		return 0
	case b.state == circuitHalfOpen:
		return 1
	case b.limit > 0:
		return b.limit - b.out
	}
	return math.MaxInt
}

// left notes that a send of an epoch has ended; false if that says nothing any more.
func (b *breaker) left(epoch uint32) bool {
	if epoch != b.epoch {
		return false
	}
	b.out--
	return true
}

// succeeded notes that a send of this epoch was answered. full is the limit from which there is none. It reports
// whether the circuit has closed.
func (b *breaker) succeeded(now int64, full int) (closed bool) {
	b.failures = 0
	if b.state == circuitHalfOpen {
		b.state, b.since, b.next = circuitClosed, now, 0
		b.limit, b.well, b.grown = 1, 1, now
		return true
	}
	if b.limit == 0 {
		return false
	}
	if b.well++; b.well < b.limit || now-b.grown < rampStep {
		return false
	}
	if b.limit, b.well, b.grown = 2*b.limit, 0, now; b.limit >= full {
		b.limit, b.trips, b.reason = 0, 0, ""
	}
	return false
}

// failed notes that a send of this epoch has found the target unwell. after is how long the target asked to be
// left alone, 0 if it did not. It reports whether the circuit has opened from being closed.
func (b *breaker) failed(now int64, l breakerLimits, reason string, after time.Duration) (opened bool) {
	b.failures++
	b.reason, b.last, b.lastAt = reason, reason, now
	switch {
	case l.failures < 0:
		return false
	case b.state == circuitHalfOpen:
		b.open(now, l, after)
		return false
	case b.limit > 0:
		b.limit, b.well, b.grown = max(1, b.limit/2), 0, now
		if b.failures < min(rampFailures, l.failures) {
			return false
		}
	case b.failures < l.failures:
		return false
	}
	b.since = now
	b.open(now, l, after)
	return true
}

func (b *breaker) open(now int64, l breakerLimits, after time.Duration) {
	wait := float64(l.most)
	if b.trips < 32 {
		wait = min(wait, float64(l.first)*float64(int64(1)<<b.trips))
	}
	wait *= 0.8 + 0.4*rand.Float64()
	if after > 0 { // it is the least; what many were told alike is not kept to alike
		wait = min(max(wait, float64(after)*(1+0.2*rand.Float64())), float64(maxWait))
	}
	b.state, b.next = circuitOpen, now+int64(wait)
	b.epoch++
	b.trips++
	b.out, b.limit = 0, 0
}

// A bucket lets through what a rate allows, with a tenth of a second's worth at once. The zero bucket lets
// everything through.
type bucket struct {
	rate   float64 // a second; 0: no bound
	tokens float64 // below 0 after a batch
	at     int64   // of tokens, Unix ns
}

func (b *bucket) burst() float64 { return max(1, b.rate/10) }

// set changes the rate; what it has gathered stays, within the new burst.
func (b *bucket) set(rate float64, now int64) {
	if b.rate == rate {
		return
	}
	if b.rate == 0 {
		b.tokens, b.at = 1, now
	} else {
		b.fill(now)
	}
	b.rate = rate
	b.tokens = min(b.tokens, b.burst())
}

func (b *bucket) fill(now int64) {
	if now > b.at {
		b.tokens = min(b.burst(), b.tokens+float64(now-b.at)*b.rate/1e9)
		b.at = now
	}
}

// ready reports whether one may pass now; if not, when that is worth another look: not for each single one
// where they are many.
func (b *bucket) ready(now int64) (ok bool, at int64) {
	if b.rate == 0 {
		return true, 0
	}
	if b.fill(now); b.tokens >= 1 {
		return true, 0
	}
	want := max(1, b.rate/100)
	return false, now + int64(math.Ceil((want-b.tokens)/b.rate*1e9))
}

func (b *bucket) take(n int) {
	if b.rate != 0 {
		b.tokens -= float64(n)
	}
}
