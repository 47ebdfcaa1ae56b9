package pebblestore

import (
	"sync"
	"time"
)

// clockJump is the forward step of the wall clock that is not believed.
const clockJump = 365 * 24 * time.Hour

// A clock is the wall clock that never goes back and does not follow a forward step of over a year, unless
// it is told to accept it: such a step would let every event and dedupe entry expire at once.
type clock struct {
	now    func() time.Time
	accept bool

	mu   sync.Mutex
	wall int64 // the last reading
	last int64 // the last result
	skew int64 // what the wall clock is ahead by and is not believed
}

// start sets the time at which the previous run ended, 0 if there was none. It says by how much the
// wall clock is not followed.
func (c *clock) start(last int64) time.Duration {
	c.wall, c.last = last, last
	if last == 0 {
		c.wall = c.now().UnixNano()
	}
	c.read()
	return time.Duration(c.skew)
}

// read returns Unix nanoseconds that never fall.
func (c *clock) read() int64 {
	w := c.now().UnixNano()
	c.mu.Lock()
	defer c.mu.Unlock()
	switch step := w - c.wall; {
	case step > int64(clockJump) && !c.accept:
		c.skew += step
	case step < -int64(clockJump) && c.skew > 0:
		c.skew = max(0, c.skew+step)
	}
	c.wall = w
	c.last = max(c.last, w-c.skew)
	return c.last
}
