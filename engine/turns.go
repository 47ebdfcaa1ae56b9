package engine

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"

	"github.com/millrace/millrace/engine/event"
)

// What strangers set off, functions that verify webhooks, has a place of its own beside Invoke's, in which the sources take
// turns: each may use half of it and keep a few waiting, so that who floods one source keeps himself waiting.
const (
	turnsQueue = 16  // of one source that wait
	turnsMost  = 256 // of all that wait; a source that has nothing under way comes in beyond that
)

// turns is a bound on what runs at once, shared by name. Create it with newTurns.
type turns struct {
	slots, share int // at work: in all, and of one name

	mu      sync.Mutex
	running int
	waiting int
	lines   map[string]*turnLine // of who runs or waits
	order   []*turnLine          // of those with somebody waiting, whose turn is next first
}

type turnLine struct {
	name    string
	running int
	waiting []chan struct{} // closed when it is their turn
}

func newTurns() *turns {
	slots := max(2, runtime.GOMAXPROCS(0)/2)
	return &turns{slots: slots, share: slots / 2, lines: map[string]*turnLine{}}
}

// enter waits for a turn of name. The caller leaves if there is no error; ErrUnavailable says that too many of its name
// wait already, and ctx's error that it ended first.
func (t *turns) enter(ctx context.Context, name string) error {
	t.mu.Lock()
	l := t.lines[name]
	if l == nil {
		l = &turnLine{name: name}
	}
	if len(l.waiting) == 0 && t.running < t.slots && l.running < t.share {
		t.lines[name] = l
		t.start(l)
		t.mu.Unlock()
		return nil
	}
	if len(l.waiting) >= turnsQueue || t.waiting >= turnsMost && len(l.waiting)+l.running > 0 {
		n := len(l.waiting)
		t.mu.Unlock()
		return fmt.Errorf("%d wait for the function already: %w", n, event.ErrUnavailable)
	}
	t.lines[name] = l
	mine := make(chan struct{})
	if l.waiting = append(l.waiting, mine); len(l.waiting) == 1 {
		t.order = append(t.order, l)
	}
	t.waiting++
	t.mu.Unlock()
	select {
	case <-mine:
		return nil
	case <-ctx.Done():
	}
	t.mu.Lock()
	if i := slices.Index(l.waiting, mine); i >= 0 {
		l.waiting = slices.Delete(l.waiting, i, i+1)
		t.waiting--
		t.tidy(l)
		t.mu.Unlock()
		return ctx.Err()
	}
	t.mu.Unlock()
	t.leave(name) // it was given its turn meanwhile
	return ctx.Err()
}

// start counts one of l as at work. mu is held.
func (t *turns) start(l *turnLine) {
	t.running++
	l.running++
}

// leave ends a turn of name, and gives the next.
func (t *turns) leave(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.lines[name]
	t.running--
	l.running--
	t.tidy(l)
	for t.running < t.slots {
		i := slices.IndexFunc(t.order, func(l *turnLine) bool { return l.running < t.share })
		if i < 0 {
			return
		}
		next := t.order[i]
		t.order = append(slices.Delete(t.order, i, i+1), next) // behind the others
		mine := next.waiting[0]
		next.waiting = slices.Delete(next.waiting, 0, 1)
		t.waiting--
		t.start(next)
		t.tidy(next)
		close(mine)
	}
}

// tidy forgets of l what has ended. mu is held.
func (t *turns) tidy(l *turnLine) {
	if len(l.waiting) > 0 {
		return
	}
	if i := slices.Index(t.order, l); i >= 0 {
		t.order = slices.Delete(t.order, i, i+1)
	}
	if l.running == 0 {
		delete(t.lines, l.name)
	}
}
