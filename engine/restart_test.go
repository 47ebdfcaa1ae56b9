package engine

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

const never = 1 << 40 // a flush interval: the test flushes itself

// powerCut returns a world on what the disk would hold after a power cut now: synced data alone.
func (w *world) powerCut(o Options, now func() time.Time) *world {
	w.t.Helper()
	fs := w.fs.(*vfs.MemFS).CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 0, RNG: rand.New(rand.NewPCG(1, 2))})
	next := &world{t: w.t, fs: fs, o: o, now: now}
	next.open()
	w.t.Cleanup(next.stop)
	return next
}

func crashWorld(t *testing.T, o Options) *world {
	w := &world{t: t, fs: vfs.NewCrashableMem(), o: o}
	w.open()
	t.Cleanup(w.stop)
	return w
}

func (w *world) flush() {
	w.t.Helper()
	if err := w.e.flush(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

// A subscription that was just made to begin at the earliest event does so after a power cut too, although
// the topic's checkpoint lies ahead of its start.
func TestStartSurvivesAPowerCut(t *testing.T) {
	w := crashWorld(t, Options{Flush: never})
	w.apply(Spec{Topics: []event.Topic{{Name: "orders"}, {Name: "s.dead"}}})
	w.publish("orders", number("e", 20)...)
	eventually(t, "the topic's reader has passed them", func() bool { return w.e.plan.Load().topics["orders"].parts[0].live.Load() == 20 })
	w.flush()
	gate := make(chan struct{})
	t.Cleanup(func() { close(gate) })
	w.apply(specOf(push("s", "orders", "", &recorder{answer: func(event.Delivery) error { <-gate; return nil }})))
	after := w.powerCut(Options{}, nil)
	sink := &recorder{}
	after.apply(specOf(push("s", "orders", "", sink)))
	eventually(t, "all events from the earliest on", func() bool { return len(sink.ids()) == 20 })
}

// What the ring drops while the router is down is counted, not passed over in silence.
func TestLossWhileDownIsCounted(t *testing.T) {
	w := crashWorld(t, Options{Flush: never})
	gate := make(chan struct{})
	t.Cleanup(func() { close(gate) })
	spec := specOf(push("s", "orders", "", &recorder{answer: func(event.Delivery) error { <-gate; return nil }}))
	spec.Topics[0].Retain = event.Retain{Age: time.Hour}
	w.apply(spec)
	w.flush() // the cursor's row goes: the checkpoint covers it
	w.publish("orders", number("e", 10)...)
	sink := &recorder{}
	spec.Subscriptions[0].OpenSink = push("", "", "", sink).OpenSink
	later := func() time.Time { return time.Now().Add(100 * time.Hour) }
	after := w.powerCut(Options{Now: later}, later)
	after.flush() // before anything is applied
	after.apply(spec)
	after.publish("orders", "last")
	eventually(t, "all are delivered or counted", func() bool {
		i := after.info("s")
		return i.Lag == 0 && i.Outstanding == 0 && int(i.Lost)+len(sink.ids()) == 11
	})
	if i := after.info("s"); i.Lost == 0 {
		t.Error("nothing was lost: the test shows nothing")
	}
}

// holds is a log that remembers how far it was allowed to drop events.
type holds struct {
	storage.Log
	floor event.Offset
}

func (h *holds) Hold(floor event.Offset) { h.floor = max(h.floor, floor) }

// Between the start and the first plan nobody is known to need a topic's events; one that rejects keeps them
// all the same.
func TestNothingIsGivenUpBeforeTheFirstPlan(t *testing.T) {
	w := newWorld(t, Options{Flush: never})
	spec := specOf(push("s", "orders", "", &recorder{}))
	spec.Topics[0].WhenFull = event.Reject
	w.apply(spec)
	if err := w.e.Pause(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	w.publish("orders", number("e", 10)...)
	w.stop()
	w.open()
	p := w.e.plan.Load().topics["orders"].parts[0]
	log := &holds{Log: p.log}
	p.log = log
	w.flush()
	if log.floor != 0 {
		t.Errorf("events below %d were given up before any plan", log.floor)
	}
	w.apply(spec)
	w.flush()
	if log.floor != 0 {
		t.Errorf("events below %d were given up that a paused subscription has not settled", log.floor)
	}
}

// While one subscription's settlement holds the checkpoint back, another that is folded into the same flush
// must not fall behind what it has put into its topic.
func TestCheckpointHeldBackRepeatsNoOutputs(t *testing.T) {
	w := crashWorld(t, Options{Flush: never})
	gate := make(chan struct{})
	t.Cleanup(func() { close(gate) })
	slow := push("slow", "orders", "", &recorder{answer: func(event.Delivery) error { <-gate; return nil }})
	copies := push("copies", "orders", "", nil)
	copies.OpenSink, copies.Deliver = nil, event.Deliver{Face: event.ToTopic, Topic: "out"}
	w.apply(specOf(slow, copies))
	w.publish("orders", number("e", 10)...)
	eventually(t, "the copies are made", func() bool {
		i := w.info("copies")
		return len(w.ids("out")) == 10 && i.Outstanding == 0 && i.Lag == 0
	})
	s := w.e.plan.Load().subs["slow"]
	s.commits.Lock() // as if a settlement were under way
	w.flush()
	s.commits.Unlock()
	after := w.powerCut(Options{}, nil)
	slow.OpenSink = push("", "", "", &recorder{}).OpenSink
	after.apply(specOf(slow, copies))
	eventually(t, "all settled", func() bool {
		a, b := after.info("copies"), after.info("slow")
		return a.Lag+b.Lag+uint64(a.Outstanding+b.Outstanding) == 0
	})
	if n := len(after.ids("out")); n != 10 {
		t.Errorf("%d outputs of 10 events after a power cut", n)
	}
}

// A clock that was set back an hour, or forward ten years, between two runs neither expires events nor makes
// every parked delivery due, nor voids the leases of the run before.
func TestClockJumpsBetweenRuns(t *testing.T) {
	for name, jump := range map[string]time.Duration{"back an hour": -time.Hour, "forward ten years": 10 * 365 * 24 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			var ahead atomic.Int64
			now := func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
			w := &world{t: t, fs: vfs.NewMem(), o: Options{Now: now, CircuitFailures: -1}, now: now}
			w.open()
			t.Cleanup(w.stop)
			var tries atomic.Int32
			sink := &recorder{answer: func(event.Delivery) error { tries.Add(1); return errors.New("down") }}
			s := push("s", "orders", "", sink)
			s.Retry = event.RetryPolicy{Attempts: 100, Schedule: []time.Duration{24 * time.Hour}}
			w.apply(specOf(s, pullSpec("q", "orders", "")))
			w.publish("orders", number("e", 30)...)
			eventually(t, "all are parked", func() bool { return w.info("s").Parked == 30 })
			leased := w.pull("q", 1)
			w.stop()
			ahead.Store(int64(jump))
			w.open()
			w.apply(specOf(s, pullSpec("q", "orders", "")))
			if lost := w.ack("q", leased); len(lost) != 0 {
				t.Error("a lease of the run before does not count any more")
			}
			w.publish("orders", "last")
			eventually(t, "the last one is tried", func() bool { return w.info("s").Parked == 31 })
			if n := tries.Load(); n != 31 {
				t.Errorf("%d tries of 31 events, each an hour or more from its next", n)
			}
			if n := len(w.ids("orders")); n != 31 {
				t.Errorf("%d events left of 31", n)
			}
			if lag := w.pull("q", 30); len(lag) != 30 {
				t.Errorf("%d to pull", len(lag))
			}
		})
	}
}

func TestCloseTwice(t *testing.T) {
	w := newWorld(t, Options{})
	sink := &recorder{}
	w.apply(specOf(push("s", "orders", "", sink)))
	for range 2 {
		if err := w.e.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if sink.closed != 1 {
		t.Errorf("the sink was closed %d times", sink.closed)
	}
}

// Seeking to the earliest event keeps what waits of events that have left the ring: reading on will not
// bring them back.
func TestSeekKeepsParkedEventsThatLeftTheRing(t *testing.T) {
	w := newWorld(t, Options{})
	var down atomic.Bool
	down.Store(true)
	sink := &recorder{answer: func(event.Delivery) error {
		if down.Load() {
			return errors.New("down")
		}
		return nil
	}}
	s := push("s", "orders", "", sink)
	s.Retry = event.RetryPolicy{Attempts: 100, Schedule: []time.Duration{30 * time.Millisecond, time.Hour}}
	spec := specOf(s)
	spec.Topics[0].Retain = event.Retain{Events: 100}
	w.apply(spec)
	w.publish("orders", "old")
	eventually(t, "it is parked", func() bool { return w.info("s").Parked == 1 })
	if err := w.e.Pause(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	data := fmt.Sprintf("=%01000d", 1)
	for i := 0; w.e.plan.Load().topics["orders"].parts[0].log.Bounds().Head == 0; i++ {
		w.publish("orders", fmt.Sprintf("e%d%s", i, data))
	}
	if err := w.e.Seek(t.Context(), "s", event.Start{At: event.Earliest}); err != nil {
		t.Fatal(err)
	}
	down.Store(false)
	if err := w.e.Resume(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the old one too", func() bool { return slices.Contains(sink.ids(), "old") && w.info("s").Parked == 0 })
}
