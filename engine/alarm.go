package engine

import (
	"container/heap"
	"context"
	"sync"
	"time"
)

// alarms call their owners at a time, one goroutine for all of them: a timer each would run on the wall clock, a
// goroutine each would wait for most of its life, and a look at all subscriptions whenever one has something to do
// would cost each of thousands.
type alarms struct {
	mu   sync.Mutex
	list alarmHeap
	wake chan struct{}

	ringing bool   // the one that was taken last is at work
	rung    uint64 // so many were taken
}

// An alarm is part of what it wakes.
type alarm struct {
	at    int64 // Unix ns; 0: not set
	index int
	ring  func(ctx context.Context) // called without locks
}

// set sets an alarm anew; 0 unsets it.
func (a *alarms) set(x *alarm, at int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch was := x.at; {
	case at == was:
		return
	case at == 0:
		heap.Remove(&a.list, x.index)
		x.at = 0
		return
	case was == 0:
		x.at = at
		heap.Push(&a.list, x)
	default:
		x.at = at
		heap.Fix(&a.list, x.index)
	}
	if x.index == 0 {
		a.nudge()
	}
}

// sooner sets an alarm unless it is set to an earlier time.
func (a *alarms) sooner(x *alarm, at int64) {
	a.mu.Lock()
	earlier := x.at == 0 || at < x.at
	a.mu.Unlock()
	if earlier {
		a.set(x, at)
	}
}

// nudge makes the loop look at the clock.
func (a *alarms) nudge() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// due takes an alarm whose time has come. Whoever asks has ended what the one before does.
func (a *alarms) due(now int64) (x *alarm, next int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ringing = false
	if len(a.list) == 0 {
		return nil, now + int64(time.Hour)
	}
	if x = a.list[0]; x.at > now {
		return nil, x.at
	}
	heap.Pop(&a.list)
	x.at = 0
	a.ringing = true
	a.rung++
	return x, 0
}

// follow rings alarms when it is time, until ctx ends.
func (e *Engine) follow(ctx context.Context, a *alarms) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for ctx.Err() == nil {
		now := e.now().UnixNano()
		x, next := a.due(now)
		if x != nil {
			x.ring(ctx)
			continue
		}
		timer.Reset(max(time.Duration(next-now), 0))
		select {
		case <-ctx.Done():
		case <-a.wake:
		case <-timer.C:
		}
	}
}

type alarmHeap []*alarm

func (h alarmHeap) Len() int           { return len(h) }
func (h alarmHeap) Less(i, j int) bool { return h[i].at < h[j].at }

func (h alarmHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *alarmHeap) Push(x any) {
	a := x.(*alarm)
	a.index = len(*h)
	*h = append(*h, a)
}

func (h *alarmHeap) Pop() any {
	last := len(*h) - 1
	x := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return x
}
