package engine

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// holding is what sinks have in hand at once, all of them together.
type holding struct {
	now, most atomic.Int64
	open      chan struct{} // closed: they hold nothing back any more
}

// holdSink holds every send until it is let go, of events larger than small ones.
type holdSink struct {
	h     *holding
	batch int
	took  atomic.Int64
}

func (k *holdSink) Deliver(ctx context.Context, ds []event.Delivery) error {
	n := 0
	for _, d := range ds {
		n += len(d.Event)
	}
	k.took.Add(int64(len(ds)))
	if n <= smallSend {
		return nil
	}
	now := k.h.now.Add(int64(n))
	defer k.h.now.Add(-int64(n))
	for most := k.h.most.Load(); now > most && !k.h.most.CompareAndSwap(most, now); most = k.h.most.Load() {
	}
	select {
	case <-k.h.open:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

func (k *holdSink) Close() error { return nil }

type holdBatches struct{ *holdSink }

func (k holdBatches) Batch() (int, int, time.Duration) { return k.batch, 1 << 20, time.Millisecond }

func publishEvents(w *world, evs ...event.Event) {
	w.t.Helper()
	if err := w.e.Publish(w.t.Context(), "orders", evs, make([]event.Position, len(evs))); err != nil {
		w.t.Fatal(err)
	}
}

// Whatever many subscriptions have to send of large events, no more of it than the budget, or one event, is in the hands
// of sinks; small events of others go out meanwhile; all of it goes in the end, and nothing stays taken or in line.
func TestSendsStayInTheirBudget(t *testing.T) {
	const size, subs, events = 64 << 10, 40, 5
	for _, c := range []struct {
		name   string
		budget int64
		batch  int
		text   int // bytes of an event
		most   int64
	}{
		{"single", 5 * size, 0, size, 5 * size},
		{"one that is larger than the budget", size / 2, 0, size, size + 1<<10},
		{"batches of large ones", 5 * size, 3, size, 5 * size},
		{"batches of small ones", 64 << 10, 16, 3 << 10, 64 << 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := &holding{open: make(chan struct{})}
			w := newWorld(t, Options{SendBytes: c.budget})
			var specs []SubscriptionSpec
			var sinks []*holdSink
			for i := range subs {
				k := &holdSink{h: h, batch: c.batch}
				var sink Sink = k
				if c.batch > 0 {
					sink = holdBatches{k}
				}
				s := push(fmt.Sprint("s", i), "orders", `type == "large"`, sink)
				s.Order = []event.Order{event.Unordered, event.ByKey}[i%2]
				specs, sinks = append(specs, s), append(sinks, k)
			}
			light := &holdSink{h: h}
			specs = append(specs, push("light", "orders", `type == "small"`, light))
			w.apply(specOf(specs...))
			text := []byte(`"` + strings.Repeat("x", c.text) + `"`)
			var evs []event.Event
			for i := range events {
				evs = append(evs, event.Event{ID: fmt.Sprint("l", i), Source: "/s", Type: "large", PartitionKey: fmt.Sprint(i), Data: text})
			}
			publishEvents(w, evs...)
			eventually(t, "sends wait, or go as small ones", func() bool {
				_, waiting, _ := w.e.SendBytes()
				return waiting > 0 || c.text < smallSend && sinks[subs-1].took.Load() > 0
			})
			publishEvents(w, event.Event{ID: "small", Source: "/s", Type: "small", Data: []byte("1")})
			eventually(t, "the small one goes", func() bool { return light.took.Load() == 1 })
			close(h.open)
			for i := range subs {
				eventually(t, "all goes", func() bool { return w.settled(fmt.Sprint("s", i)) && sinks[i].took.Load() == events })
			}
			if most := h.most.Load(); most > c.most {
				t.Errorf("%d bytes were with sinks at once; the budget is %d", most, c.budget)
			}
			eventually(t, "all is given back", func() bool {
				used, waiting, _ := w.e.SendBytes()
				return used == 0 && waiting == 0 && w.e.budget.queued.Load() == 0
			})
			for i := range subs {
				if f := w.info(fmt.Sprint("s", i)).Failed; f != 0 {
					t.Errorf("s%d: %d attempts spent on waiting", i, f)
				}
			}
		})
	}
}

// A subscription that has much to send does not keep another one out: they go in turn.
func TestBudgetIsSharedInTurn(t *testing.T) {
	e := &Engine{o: Options{SendBytes: 10 << 10}.withDefaults()}
	e.alarms.wake = make(chan struct{}, 1)
	b := &e.budget
	b.open(e)
	greedy, modest := &subscription{e: e}, &subscription{e: e}
	if !b.take(greedy, 8<<10) {
		t.Fatal("an empty budget has no room")
	}
	if b.take(modest, 8<<10) || b.take(greedy, 1<<10) {
		t.Fatal("one that came later, or asks for little, goes before who waits")
	}
	b.used.Add(-8 << 10)
	b.mu.Lock()
	turn := b.next(time.Now().UnixNano())
	b.mu.Unlock()
	if len(turn) != 2 || turn[0] != modest {
		t.Fatalf("%d are let through; want the one that waits longest first", len(turn))
	}
	if !b.take(modest, 8<<10) || !b.take(greedy, 1<<10) || b.queued.Load() != 0 {
		t.Error("those whose turn it is do not get what is kept for them")
	}
}

// Where there is room, and for small events at any time, the budget costs no allocation and no lock.
func TestBudgetAllocatesNothing(t *testing.T) {
	if raceEnabled {
		return // the race detector allocates
	}
	e := &Engine{o: Options{}.withDefaults()}
	e.budget.open(e)
	s, w := &subscription{e: e}, &sender{}
	e.budget.mu.Lock() // who needs it stands
	defer e.budget.mu.Unlock()
	large, small := item{rec: make(event.Record, 1<<20)}, item{rec: make(event.Record, 1<<10)}
	if n := testing.AllocsPerRun(100, func() {
		if !s.affords(w, large) || !s.affords(w, small) || w.charged != 0 {
			t.Fatal("there is room")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
