package engine

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// keyed is a sink that watches what order per key promises: one delivery of a key in hand at a time, and first
// deliveries in the order of their offsets.
type keyed struct {
	recorder
	t testing.TB

	kmu    sync.Mutex
	inHand map[string]bool
	first  map[string]event.Offset // of each key: the highest offset seen
}

func newKeyed(t testing.TB, answer func(d event.Delivery) error) *keyed {
	k := &keyed{t: t, inHand: map[string]bool{}, first: map[string]event.Offset{}}
	k.answer = func(d event.Delivery) error {
		key, off := strings.Clone(d.Event.Attr(event.TagPartitionKey)), d.Event.Offset()
		if key != "" {
			k.kmu.Lock()
			if k.inHand[key] {
				t.Errorf("key %s: two deliveries at a time", key)
			}
			k.inHand[key] = true
			if d.Attempt == 1 {
				if last, ok := k.first[key]; ok && off < last {
					t.Errorf("key %s: first delivery of %d after %d", key, off, last)
				}
				k.first[key] = max(k.first[key], off)
			}
			k.kmu.Unlock()
			defer func() {
				k.kmu.Lock()
				k.inHand[key] = false
				k.kmu.Unlock()
			}()
		}
		if answer == nil {
			return nil
		}
		return answer(d)
	}
	return k
}

// publishKeys stores events given as "key/id".
func (w *world) publishKeys(topic string, events ...string) {
	w.t.Helper()
	evs := make([]event.Event, len(events))
	for i, s := range events {
		key, id, _ := strings.Cut(s, "/")
		evs[i] = event.Event{ID: id, ClientID: true, PartitionKey: key, Data: []byte(`{}`)}
	}
	if err := w.e.Publish(w.t.Context(), topic, evs, make([]event.Position, len(evs))); err != nil {
		w.t.Fatal(err)
	}
}

// idle reports whether a subscription holds nothing of any key.
func (w *world) idle(name string) bool {
	s := w.e.plan.Load().subs[name]
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.lanes.open) == 0 && s.lanes.held == 0 && len(s.lanes.moving) == 0 && s.lanes.bytes == 0 && s.lanes.fetch.len() == 0
}

func ordered(name string, sink Sink) SubscriptionSpec {
	s := push(name, "orders", "", sink)
	s.Order = event.ByKey
	s.Concurrency = 16
	return s
}

// Keys that fail, restarts, a small queue and a reload: each key stays in order, and nothing is left behind.
func TestKeysStayInOrder(t *testing.T) {
	w := newWorld(t, Options{Queue: 32})
	var failing atomic.Bool
	failing.Store(true)
	sink := newKeyed(t, func(event.Delivery) error {
		if failing.Load() && rand.IntN(5) == 0 {
			return errors.New("down")
		}
		return nil
	})
	s := ordered("s", sink)
	s.Retry = event.RetryPolicy{Attempts: event.Unlimited, Schedule: []time.Duration{2 * time.Millisecond}}
	spec := specOf(s)
	spec.Topics[0].Partitions = 3
	w.apply(spec)
	total := 0
	for round := range 6 {
		var events []string
		for i := range 150 {
			key := fmt.Sprintf("k%d", rand.IntN(12))
			if i%10 == 0 {
				key = "" // without a key there is no order to keep
			}
			events = append(events, fmt.Sprintf("%s/e%d-%d", key, round, i))
		}
		w.publishKeys("orders", events...)
		total += len(events)
		switch round {
		case 2:
			w.restart()
		case 4:
			s.Fingerprint, s.Concurrency = "another", 8
			spec.Subscriptions = []SubscriptionSpec{s}
			w.apply(spec)
		}
	}
	failing.Store(false)
	eventually(t, "all is settled", func() bool { return w.settled("s") && w.idle("s") })
	ids := sink.ids()
	slices.Sort(ids)
	if got := len(slices.Compact(ids)); got != total {
		t.Errorf("%d of %d events delivered", got, total)
	}
}

// A key whose first event fails for hours holds up nobody else, though the ring turns over meanwhile; then its
// events come in order.
func TestFailingKeyHoldsUpItselfAlone(t *testing.T) {
	w := newWorld(t, Options{Queue: 16})
	var down atomic.Bool
	down.Store(true)
	sink := newKeyed(t, func(d event.Delivery) error {
		if down.Load() && d.Event.Attr(event.TagPartitionKey) == "bad" {
			return errors.New("down")
		}
		return nil
	})
	s := ordered("s", sink)
	s.Retry = event.RetryPolicy{Attempts: event.Unlimited, Schedule: []time.Duration{30 * time.Millisecond}}
	spec := specOf(s)
	spec.Topics[0].Retain.Events = 100
	w.apply(spec)
	var want []string
	for i := range 400 {
		w.publishKeys("orders", fmt.Sprintf("bad/b%d", i), fmt.Sprintf("good/g%d", i))
		want = append(want, fmt.Sprintf("b%d", i))
		if i%40 == 39 {
			eventually(t, "the good key goes on", func() bool { return w.info("s").Lag == 0 && slices.Contains(sink.ids(), fmt.Sprintf("g%d", i)) })
		}
	}
	if i := w.info("s"); i.Lost != 0 {
		t.Fatalf("%d events lost to the ring", i.Lost)
	}
	w.restart()
	if got := sink.ids(); slices.Contains(got, "b0") {
		t.Fatal("an event of the failing key was taken")
	}
	down.Store(false)
	eventually(t, "all is settled", func() bool { return w.settled("s") && w.idle("s") })
	var got []string
	for _, id := range sink.ids() {
		if id[0] == 'b' {
			got = append(got, id)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("the failing key's events came as %v", got)
	}
}

// A target that is slow for one key does not keep the queue full of it.
func TestSlowKeyLeavesTheQueueToOthers(t *testing.T) {
	w := newWorld(t, Options{Queue: 16})
	release := make(chan struct{})
	sink := newKeyed(t, func(d event.Delivery) error {
		if d.Event.Attr(event.TagPartitionKey) == "slow" {
			<-release
		}
		return nil
	})
	w.apply(specOf(ordered("s", sink)))
	var want []string
	for i := range 200 {
		w.publishKeys("orders", fmt.Sprintf("slow/s%d", i))
		want = append(want, fmt.Sprintf("s%d", i))
	}
	w.publishKeys("orders", "fast/f1", "/f2")
	eventually(t, "other keys pass", func() bool { return len(sink.ids()) == 2 })
	close(release)
	eventually(t, "all is settled", func() bool { return w.settled("s") && w.idle("s") })
	if got := sink.ids()[2:]; !slices.Equal(got, want) {
		t.Errorf("the slow key's events came as %v", got)
	}
}

// Every output of an event is delivered before the key's next event; what waits in a lane survives pauses,
// seeks and a change to no order and back.
func TestLanesThroughOperations(t *testing.T) {
	w := newWorld(t, Options{Queue: 16})
	var down atomic.Bool
	down.Store(true)
	sink := newKeyed(t, func(event.Delivery) error {
		if down.Load() {
			return errors.New("down")
		}
		return nil
	})
	s := ordered("s", sink)
	s.Retry = event.RetryPolicy{Attempts: event.Unlimited, Schedule: []time.Duration{time.Hour}}
	w.apply(specOf(s))
	var want []string
	for i := range 50 {
		w.publishKeys("orders", fmt.Sprintf("k/e%d", i))
		want = append(want, fmt.Sprintf("e%d", i))
	}
	eventually(t, "all wait in the store", func() bool { i := w.info("s"); return i.Parked == 50 && i.Outstanding == 0 })
	if err := w.e.Seek(t.Context(), "s", event.Start{At: event.Latest}); err != nil {
		t.Fatal(err)
	}
	if !w.settled("s") || !w.idle("s") {
		t.Fatalf("a seek to the end left %+v", w.info("s"))
	}
	if err := w.e.Seek(t.Context(), "s", event.Start{At: event.Earliest}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all wait again", func() bool { i := w.info("s"); return i.Parked == 50 && i.Outstanding == 0 })
	if err := w.e.Pause(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	w.restart()
	down.Store(false)
	sink.kmu.Lock()
	clear(sink.first) // the seek goes back
	sink.kmu.Unlock()
	// Its order is given up: what has become rows still comes in order.
	s.Order, s.Fingerprint = event.Unordered, "unordered"
	w.apply(specOf(s))
	if err := w.e.Seek(t.Context(), "s", event.Start{At: event.Earliest}); err != nil {
		t.Fatal(err)
	}
	s.Order, s.Fingerprint = event.ByKey, "ordered"
	w.apply(specOf(s))
	if err := w.e.Resume(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all is settled", func() bool { return w.settled("s") && w.idle("s") })
	if got := sink.ids(); !slices.Equal(got, want) {
		t.Errorf("delivered %v", got)
	}
}

// Pullers get one event of a key at a time, the next once it is settled; one that is given back holds the key.
func TestLanesOfPullers(t *testing.T) {
	w := newWorld(t, Options{})
	s := push("s", "orders", "", nil)
	s.OpenSink, s.Order, s.Deliver = nil, event.ByKey, event.Deliver{Face: event.Pull}
	w.apply(specOf(s))
	w.publishKeys("orders", "a/a1", "a/a2", "b/b1", "a/a3", "/x1", "/x2")
	ids := func(ls []event.Lease) (out []string) {
		for _, l := range ls {
			out = append(out, l.Event.Attr(event.TagID))
		}
		return out
	}
	pull := func(want ...string) []event.Lease {
		t.Helper()
		var all []event.Lease
		eventually(t, fmt.Sprintf("%v to pull, got %v", want, ids(all)), func() bool {
			ls, err := w.e.Pull(t.Context(), "s", 10, 0)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, ls...)
			return len(all) >= len(want)
		})
		if got := ids(all); !slices.Equal(got, want) {
			t.Fatalf("pulled %v, want %v", got, want)
		}
		return all
	}
	first := pull("a1", "b1", "x1", "x2")
	if lost, err := w.e.Nack(t.Context(), "s", []string{first[0].ID}, 0); err != nil || len(lost) > 0 {
		t.Fatal(lost, err)
	}
	again := pull("a1")
	if again[0].Attempt != 2 {
		t.Errorf("attempt %d, want 2", again[0].Attempt)
	}
	if _, err := w.e.Ack(t.Context(), "s", []string{again[0].ID}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"a2", "a3"} {
		l := pull(want)
		if _, err := w.e.Ack(t.Context(), "s", []string{l[0].ID}); err != nil {
			t.Fatal(err)
		}
	}
}

// An event with deliverat waits in the store, holds up nobody of its key, outlives the ring and a restart, and
// is delivered then and not before.
func TestDelayedEvents(t *testing.T) {
	var ahead atomic.Int64
	now := func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	w := newWorld(t, Options{Now: now})
	due := time.Now().Add(time.Hour)
	sink := newKeyed(t, func(d event.Delivery) error {
		if d.Event.Attr(event.TagID) == "later" {
			if d.Attempt != 1 {
				t.Errorf("attempt %d, want 1: waiting is none", d.Attempt)
			}
			if at := now(); at.Before(due) {
				t.Errorf("delivered %s early", due.Sub(at))
			}
		}
		return nil
	})
	spec := specOf(ordered("s", sink))
	spec.Topics[0].Retain.Events = 50
	w.apply(spec)
	publish := func(id, at string) error {
		evs := []event.Event{{ID: id, ClientID: true, PartitionKey: "delayed", Extensions: []event.Attribute{{Name: "deliverat", Value: at}}}}
		return w.e.Publish(t.Context(), "orders", evs, make([]event.Position, 1))
	}
	if err := publish("later", due.UTC().Format(time.RFC3339Nano)); err != nil {
		t.Fatal(err)
	}
	w.publishKeys("orders", "delayed/now")
	for i := range 200 {
		w.publishKeys("orders", fmt.Sprintf("other/o%d", i))
		if i%20 == 19 {
			eventually(t, "the ring overtakes nobody", func() bool { return len(sink.ids()) == i+2 })
		}
	}
	eventually(t, "the others pass", func() bool { return len(sink.ids()) == 201 && w.info("s").Parked == 1 })
	if got := sink.ids(); !slices.Contains(got, "now") || slices.Contains(got, "later") {
		t.Fatalf("delivered %v", got)
	}
	w.restart()
	sink.kmu.Lock()
	clear(sink.first) // a delayed event comes behind others of its key
	sink.kmu.Unlock()
	ahead.Store(int64(time.Hour + time.Second))
	w.e.parked.nudge()
	eventually(t, "it is delivered", func() bool { return slices.Contains(sink.ids(), "later") })
	eventually(t, "all is settled", func() bool { return w.settled("s") && w.idle("s") })
	for _, bad := range []string{"tomorrow", time.Now().Add(31 * 24 * time.Hour).Format(time.RFC3339)} {
		if err := publish("bad", bad); !errors.Is(err, event.ErrInvalid) || !strings.Contains(err.Error(), "deliverat") {
			t.Errorf("deliverat %q: %v", bad, err)
		}
	}
}
