package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// A farSide takes what a bridge sends while it is up.
type farSide struct {
	mu    sync.Mutex
	up    bool
	ids   []string
	lines []string
	tries int
	bad   string // an id that it never takes
	most  int    // deliveries that it takes of a batch, then it is down; 0: all
}

func (f *farSide) Deliver(_ context.Context, ds []event.Delivery) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tries++
	down := &event.RetryAfter{Err: errors.New("nobody is there"), Stalled: true}
	if !f.up {
		return down
	}
	errs, failed := make([]error, len(ds)), false
	for i, d := range ds {
		id := d.Event.Attr(event.TagID)
		switch {
		case f.most > 0 && i >= f.most:
			errs[i], failed = down, true
		case id == f.bad:
			errs[i], failed = event.Permanent(409, errors.New("it has another of that id")), true
		default:
			f.ids, f.lines = append(f.ids, id), append(f.lines, d.Line)
		}
	}
	if failed {
		return &event.Partial{Errs: errs}
	}
	return nil
}

func (f *farSide) Batch() (int, int, time.Duration) { return 100, 1 << 20, 0 }
func (f *farSide) Close() error                     { return nil }

func (f *farSide) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *farSide) has(n int) func() bool {
	return func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return len(f.ids) >= n
	}
}

func bridgeSpec(f *farSide, bytes int64) SubscriptionSpec {
	return SubscriptionSpec{
		Subscription: event.Subscription{Name: "bridge.b", Topic: "orders", Deliver: event.Deliver{Face: event.Push, Kind: "far"}, Concurrency: 1,
			DeadLetter: "dead", Backlog: bytes, Retry: event.RetryPolicy{Attempts: event.Unlimited, Schedule: []time.Duration{time.Millisecond}}},
		OpenSink: func(context.Context) (Sink, error) { return f, nil }, Fingerprint: fmt.Sprint(bytes),
	}
}

func backlogSpec(f *farSide, bytes int64) Spec {
	spec := specOf(bridgeSpec(f, bytes))
	spec.Topics[0].Retain = event.Retain{Events: 50}
	return spec
}

func fiveDigits(from, to int) (ids []string) {
	for i := from; i < to; i++ {
		ids = append(ids, fmt.Sprintf("%05d", i))
	}
	return ids
}

// While the other side is down a bridge's events wait in the topic, past its bounds and through a restart, with no attempt
// spent, and then go in their order; what the other side never takes becomes a dead letter.
func TestBacklogWaitsInTheTopic(t *testing.T) {
	f := &farSide{bad: "00500", most: 70}
	w := newWorld(t, Options{Queue: 64})
	w.apply(backlogSpec(f, 1<<20))
	ids := fiveDigits(0, 1500)
	w.publish("orders", ids[:1000]...)
	eventually(t, "it is tried", func() bool { f.mu.Lock(); defer f.mu.Unlock(); return f.tries > 0 })
	w.flush()
	w.restart()
	w.publish("orders", ids[1000:]...)
	if i := w.info("bridge.b"); i.Parked != 0 || i.Lost != 0 {
		t.Errorf("%+v", i)
	}
	f.set(func() { f.up = true })
	eventually(t, "all arrive", f.has(len(ids)-1))
	var line string
	f.set(func() {
		if want := slices.Delete(slices.Clone(ids), 500, 501); !slices.Equal(f.ids, want) {
			t.Errorf("%d arrive, in another order", len(f.ids))
		}
		if line = f.lines[0]; line == "" || line != f.lines[len(f.lines)-1] {
			t.Errorf("lines %q and %q", line, f.lines[len(f.lines)-1])
		}
	})
	eventually(t, "the dead letter", func() bool { return len(w.ids("dead")) == 1 })
	eventually(t, "the ring is of its size again", func() bool {
		w.flush()
		w.publish("orders", "more")
		return len(w.ids("orders")) <= 51
	})
	if err := w.e.Seek(t.Context(), "bridge.b", event.Start{At: event.Earliest}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "what is left goes once more, in another line, or it would be dropped", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.lines[len(f.lines)-1] != line
	})
}

// However often the other side is tried in vain, with many events or with one, they go in their order.
func TestBacklogKeepsItsOrder(t *testing.T) {
	f := &farSide{}
	w := newWorld(t, Options{Queue: 64})
	w.apply(backlogSpec(f, 1<<20))
	ids := fiveDigits(0, 300)
	w.publish("orders", ids...)
	eventually(t, "a batch and two probes fail", func() bool { f.mu.Lock(); defer f.mu.Unlock(); return f.tries >= 3 })
	f.set(func() { f.up = true })
	eventually(t, "all arrive", f.has(len(ids)))
	f.set(func() {
		if !slices.Equal(f.ids, ids) {
			t.Errorf("they arrive in another order: %v", f.ids)
		}
	})
}

// Past its bytes the oldest of a backlog leave, and are counted.
func TestBacklogIsBounded(t *testing.T) {
	f := &farSide{}
	w := newWorld(t, Options{Queue: 64})
	w.apply(backlogSpec(f, 100_000))
	ids := fiveDigits(0, 4000)
	for batch := range slices.Chunk(ids, 100) {
		w.publish("orders", batch...)
	}
	if got := w.ids("orders"); len(got) < 500 || len(got) > 2000 {
		t.Errorf("%d wait", len(got))
	}
	w.flush()
	f.set(func() { f.up = true })
	eventually(t, "the last arrives", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return len(f.ids) > 0 && f.ids[len(f.ids)-1] == ids[len(ids)-1]
	})
	lost := w.info("bridge.b").Lost
	if lost == 0 || int(lost)+len(f.ids) != len(ids) || !slices.IsSorted(f.ids) {
		t.Errorf("%d arrive and %d are lost of %d", len(f.ids), lost, len(ids))
	}
}

// What is forwarded again is dropped however long ago it was, but not what a line after a seek or nobody's line brings.
func TestForwardedOnce(t *testing.T) {
	w := newWorld(t, Options{})
	w.apply(specOf(pullSpec("s", "orders", "")))
	tries := 0
	put := func(line string, offsets ...event.Offset) event.Taken {
		t.Helper()
		from := event.Forwarded{By: "x", Line: line}
		var evs []event.Event
		tries++ // another id each time: the dedupe window does not help
		for _, off := range offsets {
			evs = append(evs, event.Event{ID: fmt.Sprint(line, ".", off, " in ", tries), ClientID: true})
			from.At = append(from.At, event.Position{Partition: event.Partition(off % 2), Offset: off})
		}
		taken, err := w.e.PublishForwarded(t.Context(), "orders", evs, make([]event.Position, len(evs)), from)
		if err != nil {
			t.Fatal(err)
		}
		return taken
	}
	put("1", 0, 1, 2)
	w.restart()
	if got := put("1", 1, 2, 3, 4); got.Repeats != 2 {
		t.Errorf("%+v", got)
	}
	if got := put("1", 3, 4); got.Repeats != 2 {
		t.Errorf("%+v", got)
	}
	if got := put("2", 0); got.Repeats != 0 {
		t.Errorf("another line: %+v", got)
	}
	if got := w.ids("orders"); !slices.Equal(got, []string{"1.0 in 1", "1.1 in 1", "1.2 in 1", "1.3 in 2", "1.4 in 2", "2.0 in 4"}) {
		t.Errorf("%v", got)
	}
	// A refused batch moves nothing.
	from := event.Forwarded{By: "x", Line: "2", At: []event.Position{{Offset: 2}, {Offset: 4}}}
	evs := []event.Event{{ID: "new", ClientID: true}, {ID: "old", ClientID: true, Subject: "other"}}
	w.publish("orders", "old")
	_, err := w.e.PublishForwarded(t.Context(), "orders", evs, make([]event.Position, 2), from)
	var faults *event.Faults
	if !errors.Is(err, event.ErrConflict) || !errors.As(err, &faults) || faults.List[0].At != "events[1].id" {
		t.Errorf("%v", err)
	}
	if got := put("2", 2); got.Repeats != 0 {
		t.Errorf("after a refusal: %+v", got)
	}
	// What has been here is dropped.
	evs = []event.Event{{ID: "round", ClientID: true, Extensions: []event.Attribute{{Name: event.ViaAttribute, Value: "a," + w.e.Name()}}}}
	if taken, err := w.e.PublishForwarded(t.Context(), "orders", evs, make([]event.Position, 1), event.Forwarded{By: "y", Line: "1", At: make([]event.Position, 1)}); err != nil || taken.Loops != 1 {
		t.Errorf("%+v %v", taken, err)
	}
}
