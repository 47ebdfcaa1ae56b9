package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/millrace/millrace/engine/event"
)

// TestTurnsOfAFlood has one name ask for more than it may: it is refused, half of the place is left to others, and those take
// turns with it.
func TestTurnsOfAFlood(t *testing.T) {
	g := newTurns()
	g.slots, g.share = 2, 1
	ctx := t.Context()
	if err := g.enter(ctx, "flood"); err != nil {
		t.Fatal(err)
	}
	granted := make(chan string, turnsQueue+2)
	wait := func(name string) {
		want := g.state(name) + 1
		go func() {
			if err := g.enter(ctx, name); err != nil {
				t.Error(err)
			}
			granted <- name
		}()
		eventually(t, name+" waits", func() bool { return g.state(name) == want })
	}
	for range turnsQueue {
		wait("flood")
	}
	if err := g.enter(ctx, "flood"); !errors.Is(err, event.ErrUnavailable) {
		t.Errorf("the flood's %d. that waits: %v", turnsQueue+1, err)
	}
	if err := g.enter(ctx, "other"); err != nil { // at once
		t.Fatal("another: ", err)
	}
	wait("other") // both slots are taken
	wait("third")
	g.leave("other")
	g.leave("flood")
	var order []string
	last := map[string]int{}
	for i := range turnsQueue + 2 {
		name := <-granted // of the two whose turn it is
		order, last[name] = append(order, name), i
		g.leave(name)
	}
	if last["other"] > turnsQueue/2 || last["third"] > turnsQueue/2 {
		t.Errorf("the flood came first: %v", order)
	}
	if g.running != 0 || g.waiting != 0 || len(g.lines) != 0 || len(g.order) != 0 {
		t.Errorf("left over: %d at work, %d waiting, %d lines, %d in the order", g.running, g.waiting, len(g.lines), len(g.order))
	}
}

// state is how many of a name wait.
func (t *turns) state(name string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	if l := t.lines[name]; l != nil {
		return len(l.waiting)
	}
	return 0
}

// TestTurnsOfMany fills the place with many names: one that has nothing under way still comes in, and who gives up leaves
// nothing behind.
func TestTurnsOfMany(t *testing.T) {
	g := newTurns()
	ctx, give := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for i := range turnsMost/turnsQueue + g.slots {
		for range turnsQueue + 1 {
			all.Go(func() {
				if g.enter(ctx, fmt.Sprint(i)) == nil {
					<-ctx.Done()
					g.leave(fmt.Sprint(i))
				}
			})
		}
	}
	full := func() int {
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.waiting
	}
	eventually(t, "all wait", func() bool { return full() >= turnsMost })
	before := full()
	all.Go(func() { _ = g.enter(ctx, "quiet") })
	eventually(t, "one more name waits", func() bool { return g.state("quiet") == 1 && full() >= before })
	if err := g.enter(ctx, "quiet"); !errors.Is(err, event.ErrUnavailable) {
		t.Errorf("a second of it: %v", err)
	}
	give()
	all.Wait()
	if g.running != 0 || g.waiting != 0 || len(g.lines) != 0 || len(g.order) != 0 {
		t.Errorf("left over: %d at work, %d waiting, %d lines, %d in the order", g.running, g.waiting, len(g.lines), len(g.order))
	}
}

// TestAFloodAtOneSource: while strangers keep the function of one source busy, which is told so, those of others and what
// operators invoke go on.
func TestAFloodAtOneSource(t *testing.T) {
	w, digest := functionWorld(t, Options{})
	w.apply(through(digest, 1, &outputs{}, nil))
	judge := func(source string) error {
		_, err := w.e.Judge(t.Context(), "f0", &event.Event{Source: source, Data: []byte("p")})
		return err
	}
	const flood = "/sources/flood"
	g := w.e.judging
	for range g.share { // as those do that take long
		if err := g.enter(t.Context(), flood); err != nil {
			t.Fatal(err)
		}
	}
	var all sync.WaitGroup
	for range turnsQueue {
		all.Go(func() {
			if err := judge(flood); err != nil {
				t.Error(err)
			}
		})
	}
	eventually(t, "the flood waits", func() bool { return g.state(flood) == turnsQueue })
	if err := judge(flood); !errors.Is(err, event.ErrUnavailable) {
		t.Errorf("the flood: %v", err)
	}
	if err := judge("/sources/other"); err != nil {
		t.Errorf("another source: %v", err)
	}
	for range cap(w.e.invoking.slots) + 1 {
		if _, err := w.e.Invoke(t.Context(), "f0", "", &event.Event{Source: flood, Data: []byte("p")}); err != nil {
			t.Errorf("invoke: %v", err)
		}
	}
	for range g.share {
		g.leave(flood)
	}
	all.Wait()
}
