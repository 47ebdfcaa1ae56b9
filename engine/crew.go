package engine

import (
	"runtime"
	"sync"

	"github.com/millrace/millrace/engine/event"
)

// A crew is a set of goroutines that do one kind of work of a subscription, started when there is work.
type crew struct {
	running, idle int
	shrink        bool // the idle ones shall end
	wake          *sync.Cond
}

// kick sees to it that somebody works on what is queued. The caller holds s.mu.
func (s *subscription) kick() {
	c := s.config.Load()
	if s.filler.waits() && (s.gatherEnds(s.filler.c, s.filler.gen) || s.filled(c)) {
		s.filler.wake.Signal()
	}
	if s.ended || s.stopped() {
		return
	}
	switch {
	case s.transforms(c):
		if s.queue.len()+s.due.len() > 0 {
			s.call(&s.pumps, s.pumpLimit(c), s.pump)
		}
		if s.sends.len() > 0 {
			if c.Deliver.Face == event.Push {
				s.callSender(c)
			} else {
				s.wakePullers()
			}
		}
	case c.Deliver.Face == event.Pull:
		if s.queue.len()+s.due.len()+s.sends.len() > 0 {
			s.wakePullers()
		}
	default:
		if s.queue.len()+s.due.len()+s.sends.len() > 0 {
			s.callSender(c)
		}
	}
}

// callSender sees to it that somebody sends, unless the gate is shut: who opens it sees to it then. While one
// gathers, what comes is for that one.
func (s *subscription) callSender(c *subConfig) {
	if !s.filler.waits() && s.gate.shut == notShut {
		s.call(&s.senders, c.Concurrency, s.send)
	}
}

func (s *subscription) call(crew *crew, limit int, work func(*crew)) {
	crew.shrink = false
	if crew.idle > 0 {
		crew.idle-- // here rather than by who wakes: a second call must not count on the same one
		crew.wake.Signal()
		return
	}
	if crew.running < limit {
		crew.running++
		s.workers.Go(func() { work(crew) })
	}
}

// rest waits for work; false tells the worker to end. The caller holds s.mu.
func (s *subscription) rest(crew *crew) bool {
	if s.ended || crew.shrink {
		return false
	}
	crew.idle++
	crew.wake.Wait()
	return !s.ended
}

// trim ends the workers that have nothing to do.
func (s *subscription) trim() {
	s.mu.Lock()
	for _, c := range []*crew{&s.pumps, &s.senders} {
		if c.idle > 0 {
			c.shrink, c.idle = true, 0
			c.wake.Broadcast()
		}
	}
	s.mu.Unlock()
}

// transforms reports whether events pass a pump rather than go out as they are.
func (s *subscription) transforms(c *subConfig) bool {
	return len(c.functions) > 0 || c.Deliver.Face == event.ToTopic || c.Deliver.Face == event.Stream
}

// pumpLimit: topics keep the order of what is put into them, so one pump; sends run side by side anyway.
func (s *subscription) pumpLimit(c *subConfig) int {
	if c.Deliver.Face == event.Push {
		return runtime.GOMAXPROCS(0)
	}
	return 1
}
