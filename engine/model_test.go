package engine

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"pgregory.net/rapid"

	"github.com/millrace/millrace/engine/event"
)

// Whatever happens (failures, pauses, reloads, restarts, power cuts), every event that was acknowledged ends
// as a delivery or a dead letter of the pushing subscription, and lies exactly once in the topic that the
// other one copies to.
func TestModel(t *testing.T) {
	runs := 0
	rapid.Check(t, func(r *rapid.T) {
		if runs++; runs > 40 { // each run opens several engines
			return
		}
		seed := rapid.Uint64().Draw(r, "seed")
		var failing atomic.Bool
		sink := &recorder{answer: func(event.Delivery) error {
			if failing.Load() && rand.IntN(3) == 0 {
				return errors.New("down")
			}
			return nil
		}}
		plan := func(n int) Spec {
			a := push("pushed", "orders", "", sink)
			a.Retry = event.RetryPolicy{Attempts: 3, Schedule: []time.Duration{time.Millisecond}}
			a.Fingerprint = fmt.Sprint(n)
			b := push("copied", "orders", "", nil)
			b.OpenSink, b.Deliver, b.Fingerprint = nil, event.Deliver{Face: event.ToTopic, Topic: "copies"}, fmt.Sprint(n)
			return specOf(a, b)
		}
		o := Options{Queue: 8, CircuitFailures: -1}
		w := &world{t: t, fs: vfs.NewCrashableMem(), o: o}
		w.open()
		defer func() { w.stop() }()
		w.apply(plan(0))
		var published []string
		for n := range rapid.IntRange(3, 10).Draw(r, "steps") {
			failing.Store(rapid.Bool().Draw(r, "failing"))
			ids := number(fmt.Sprintf("e%d-", n), rapid.IntRange(1, 60).Draw(r, "events"))
			w.publish("orders", ids...)
			published = append(published, ids...)
			var err error
			switch rapid.SampledFrom([]string{"pause", "resume", "reload", "restart", "power cut", "none"}).Draw(r, "then") {
			case "pause":
				err = w.e.Pause(t.Context(), "pushed")
			case "resume":
				err = w.e.Resume(t.Context(), "pushed")
			case "reload":
				w.apply(plan(n + 1))
			case "restart":
				w.restart()
			case "power cut":
				fs := w.fs.(*vfs.MemFS).CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: int(seed % 80), RNG: rand.New(rand.NewPCG(seed, uint64(n)))})
				spec := w.spec
				w.stop()
				w.fs = fs
				w.open()
				w.apply(spec)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		failing.Store(false)
		if err := w.e.Resume(t.Context(), "pushed"); err != nil {
			t.Fatal(err)
		}
		eventually(t, "all settled", func() bool {
			return w.settled("pushed") && w.settled("copied")
		})
		slices.Sort(published)
		if got := slices.Sorted(slices.Values(w.ids("copies"))); !slices.Equal(got, published) {
			t.Errorf("%d copies of %d events", len(got), len(published))
		}
		ended := map[string]bool{}
		for _, id := range append(sink.ids(), w.ids("pushed.dead")...) {
			ended[id] = true
		}
		for _, id := range published {
			if !ended[id] {
				t.Errorf("%s is neither delivered nor dead-lettered", id)
			}
		}
		if dead := w.ids("pushed.dead"); len(slices.Compact(slices.Sorted(slices.Values(dead)))) != len(dead) {
			t.Error("a dead letter is there twice")
		}
	})
}

// Ten thousand parked deliveries that come due at once are in memory a few at a time, and all delivered.
func TestHerd(t *testing.T) {
	w := newWorld(t, Options{Queue: 64, QueueBytes: 256 << 10})
	var down atomic.Bool
	down.Store(true)
	sink := &recorder{answer: func(event.Delivery) error {
		if down.Load() {
			return event.Disable(410, errors.New("gone"))
		}
		return nil
	}}
	s := push("s", "orders", "", sink)
	w.apply(specOf(s))
	sub := w.e.plan.Load().subs["s"]
	n := 10_000
	if raceEnabled {
		n = 2000 // the detector makes it a matter of the test's deadline
	}
	var sts []settlement
	for i := range n { // as if each had failed once
		ev := event.Event{ID: fmt.Sprintf("e%05d", i), Source: "/s", Type: "t", Data: []byte(strings.Repeat("x", 1000))}
		rec := event.Record(ev.AppendRecord(nil))
		rec.SetPlace(event.Position{Offset: event.Offset(i)}, 1)
		sub.mu.Lock()
		sub.cursors[0].out.add(event.Offset(i))
		sub.mu.Unlock()
		sts = append(sts, settlement{it: item{rec: rec, attempt: 1}, park: &parkedEvent{due: w.e.now().Add(300 * time.Millisecond).UnixNano(), attempt: 1}})
	}
	down.Store(false)
	if err := sub.settle(t.Context(), sts); err != nil {
		t.Fatal(err)
	}
	most := 0
	eventually(t, "all are delivered", func() bool {
		sub.mu.Lock()
		most = max(most, sub.dueBytes)
		sub.mu.Unlock()
		return len(sink.ids()) == n && w.info("s").Parked == 0
	})
	if most > 512<<10 {
		t.Errorf("%d bytes of what is due in memory at once, want at most twice 256 KiB", most)
	}
	if got := slices.Compact(slices.Sorted(slices.Values(sink.ids()))); len(got) != n {
		t.Errorf("%d different events delivered", len(got))
	}
}

func TestNoGoroutineOutlivesAnEngine(t *testing.T) {
	before := 0
	for i := range 50 {
		w := &world{t: t, fs: vfs.NewMem()}
		w.open()
		w.apply(specOf(push("s", "orders", "", &recorder{}), pullSpec("q", "orders", "")))
		w.publish("orders", "a", "b")
		w.pull("q", 1)
		w.apply(specOf(push("s", "orders", "type == \"event\"", &recorder{})))
		w.stop()
		if i == 4 {
			before = runtime.NumGoroutine()
		}
	}
	eventually(t, "the goroutines have ended", func() bool { return runtime.NumGoroutine() <= before+5 })
}

// stubborn is a sink that answers only when its context ends.
type stubborn struct{ entered chan struct{} }

func (s stubborn) Deliver(ctx context.Context, _ []event.Delivery) error {
	close(s.entered)
	<-ctx.Done()
	return ctx.Err()
}
func (stubborn) Close() error { return nil }

func TestCloseAbortsWhatHangs(t *testing.T) {
	w := newWorld(t, Options{})
	hang := stubborn{make(chan struct{})}
	s := push("s", "orders", "", hang)
	w.apply(specOf(s))
	w.publish("orders", "a")
	<-hang.entered
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := w.e.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if err := w.store.Close(); err != nil {
		t.Fatal(err)
	}
	w.open()
	sink := &recorder{}
	w.apply(specOf(push("s", "orders", "", sink)))
	eventually(t, "it is delivered after the next start", func() bool { return slices.Equal(sink.ids(), []string{"a"}) })
}

func TestDrainRefusesAndEndsWaiting(t *testing.T) {
	w := newWorld(t, Options{AutoCreate: true})
	w.apply(specOf(pullSpec("q", "orders", "")))
	ended := make(chan error)
	go func() {
		_, err := w.e.Pull(t.Context(), "q", 1, time.Hour)
		ended <- err
	}()
	eventually(t, "it waits", func() bool {
		s := w.e.plan.Load().subs["q"]
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.pullers.Len() > 0
	})
	w.e.Drain()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	for _, topic := range []string{"orders", "new"} {
		if err := w.e.Publish(t.Context(), topic, []event.Event{{}}, make([]event.Position, 1)); !errors.Is(err, event.ErrUnavailable) {
			t.Errorf("publishing to %s while draining: %v", topic, err)
		}
	}
}

// One partition at a time, with one sender: first deliveries keep the order of their key.
func TestOrderPerKey(t *testing.T) {
	w := newWorld(t, Options{Queue: 16})
	var mu sync.Mutex
	last := map[string]int{}
	sink := &recorder{answer: func(d event.Delivery) error {
		var key string
		var n int
		if _, err := fmt.Sscanf(d.Event.Attr(event.TagID), "%1s%d", &key, &n); err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		if d.Attempt > 1 {
			return nil
		}
		if n != last[key]+1 {
			t.Errorf("%s%d after %s%d", key, n, key, last[key])
		}
		last[key] = n
		if n%17 == 0 {
			return errors.New("down")
		}
		return nil
	}}
	s := push("s", "orders", "", sink)
	s.Concurrency = 1
	spec := specOf(s)
	spec.Topics[0].Partitions = 4
	w.apply(spec)
	for n := 1; n <= 100; n++ {
		evs := make([]event.Event, 8)
		for i := range evs {
			key := string(rune('a' + i))
			evs[i] = event.Event{ID: fmt.Sprintf("%s%d", key, n), ClientID: true, PartitionKey: key}
		}
		if err := w.e.Publish(t.Context(), "orders", evs, make([]event.Position, len(evs))); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all", func() bool { return len(sink.ids()) == 800 })
}

// The detail of a dead letter is an attribute: no control characters, whole characters, bounded, so that the
// letter can be passed on like any event.
func TestDetailOfADeadLetterIsAnAttribute(t *testing.T) {
	w := newWorld(t, Options{})
	sink := &recorder{answer: func(event.Delivery) error {
		return event.Permanent(400, errors.New("a\r\nb\x00\u0085\ufffe\xff"+strings.Repeat("é", 2000)))
	}}
	forward := push("forward", "s.dead", "", nil)
	forward.OpenSink, forward.Deliver = nil, event.Deliver{Face: event.ToTopic, Topic: "kept"}
	w.apply(specOf(push("s", "orders", "", sink), forward))
	w.publish("orders", "a")
	eventually(t, "the dead letter is passed on", func() bool { return len(w.ids("kept")) == 1 })
	if a, _ := w.records("kept")[0].Extension("deadletterdetail"); len(a.Value) > 1024 || !strings.HasPrefix(a.Value, "a  b") {
		t.Errorf("%d bytes: %.20q", len(a.Value), a.Value)
	}
}
