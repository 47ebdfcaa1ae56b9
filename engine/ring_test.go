package engine

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// smallRing is specOf with a ring of 50 events.
func smallRing(full event.WhenFull, subs ...SubscriptionSpec) Spec {
	spec := specOf(subs...)
	spec.Topics[0].Retain = event.Retain{Events: 50}
	spec.Topics[0].WhenFull = full
	return spec
}

// tryPublish publishes one event and reports whether the topic took it.
func (w *world) tryPublish(topic, id string) bool {
	w.t.Helper()
	err := w.e.Publish(w.t.Context(), topic, []event.Event{{ID: id, ClientID: true}}, make([]event.Position, 1))
	if err != nil && !errors.Is(err, event.ErrFull) {
		w.t.Fatal(err)
	}
	return err == nil
}

// fillUp publishes until the topic is full, and stays so, and returns what it took.
func (w *world) fillUp(topic, prefix string) (ids []string) {
	w.t.Helper()
	for i := range 10_000 {
		id := fmt.Sprint(prefix, i)
		if w.tryPublish(topic, id) {
			ids = append(ids, id)
			continue
		}
		w.flush() // the floor of what was settled until now
		if !w.tryPublish(topic, id) {
			return ids
		}
		ids = append(ids, id)
	}
	w.t.Fatalf("topic %s takes everything", topic)
	return nil
}

// pullAll pulls what there is now, without settling it.
func (w *world) pullAll(name string) (all []event.Lease) {
	w.t.Helper()
	for {
		got, err := w.e.Pull(w.t.Context(), name, 1000, 30*time.Millisecond)
		if err != nil {
			w.t.Fatal(err)
		}
		if len(got) == 0 {
			return all
		}
		all = append(all, got...)
	}
}

// A topic that rejects is full before it drops what is leased: expired or given back, every event is still there.
func TestRejectHoldsWhatIsLeased(t *testing.T) {
	w := newWorld(t, Options{})
	w.apply(smallRing(event.Reject, pullSpec("s", "orders", "")))
	ids := w.fillUp("orders", "a")
	got := w.pull("s", len(ids))
	w.ack("s", got[len(got)/2:]) // settled behind what is not
	if w.flush(); w.tryPublish("orders", "more") {
		t.Error("the ring let leased events go")
	}
	if _, err := w.e.Nack(t.Context(), "s", leaseIDs(got[:10]), 0); err != nil {
		t.Fatal(err)
	}
	again := w.pull("s", 10)
	if have := eventIDs(again); !slices.Equal(have, ids[:10]) {
		t.Errorf("given back: %v", have)
	}
	w.ack("s", again)
	w.ack("s", got[10:len(got)/2])
	eventually(t, "the topic takes events again", func() bool { return w.tryPublish("orders", "b") })
	if i := w.info("s"); i.Lost != 0 {
		t.Errorf("%d lost", i.Lost)
	}
}

// What is parked was copied out of the ring: it holds nothing up, and comes when it is due.
func TestRejectDoesNotHoldWhatIsParked(t *testing.T) {
	w := newWorld(t, Options{})
	w.apply(smallRing(event.Reject, pullSpec("s", "orders", "")))
	w.publish("orders", "late")
	if _, err := w.e.Nack(t.Context(), "s", leaseIDs(w.pull("s", 1)), 700*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		eventually(t, "room", func() bool { return w.tryPublish("orders", fmt.Sprint(i)) })
		for _, l := range w.pull("s", 1) {
			w.ack("s", []event.Lease{l})
		}
	}
	eventually(t, "the parked event", func() bool {
		got := w.pullAll("s")
		w.ack("s", got)
		return slices.Contains(eventIDs(got), "late") || w.info("s").Parked == 0
	})
	if i := w.info("s"); i.Lost != 0 || i.Delivered != 201 {
		t.Errorf("%d delivered, %d lost", i.Delivered, i.Lost)
	}
}

// A paused subscription holds a ring that rejects; one that is disabled does for a day, and then says what it loses.
func TestRejectWaitsForThoseThatStand(t *testing.T) {
	var skip atomic.Int64
	w := newWorld(t, Options{Queue: 10, Now: func() time.Time { return time.Now().Add(time.Duration(skip.Load())) }})
	w.apply(smallRing(event.Reject, pullSpec("s", "orders", "")))
	if err := w.e.Pause(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	w.fillUp("orders", "a")
	skip.Add(int64(30 * 24 * time.Hour))
	if w.flush(); w.tryPublish("orders", "b") {
		t.Error("a paused subscription does not hold the ring")
	}
	w.e.plan.Load().subs["s"].disable(t.Context(), errors.New("410 Gone"))
	skip.Add(int64(23 * time.Hour))
	if w.flush(); w.tryPublish("orders", "b") {
		t.Error("a subscription that was disabled today does not hold the ring")
	}
	if i := w.info("s"); i.Lost != 0 {
		t.Fatalf("%d lost", i.Lost)
	}
	skip.Add(int64(2 * time.Hour))
	w.flush()
	for i := range 200 {
		if !w.tryPublish("orders", fmt.Sprint("c", i)) {
			t.Fatal("a subscription that has been disabled for over a day still holds the ring")
		}
	}
	lost := w.info("s").Lost // it is told at once, not when it is resumed
	if lost < 150 {
		t.Errorf("%d lost", lost)
	}
	if err := w.e.Resume(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	got := w.pullAll("s")
	if i := w.info("s"); i.Lost+uint64(len(got)) < lost || i.Loss.Events == 0 || i.Loss.Since.IsZero() {
		t.Errorf("%d lost, %d delivered, %+v", i.Lost, len(got), i.Loss)
	}
}

// Between the moment that a new subscription or a seek says where it begins and the next flush, the ring does not turn
// over what it will need.
func TestRejectHoldsForThoseThatBegin(t *testing.T) {
	w := newWorld(t, Options{Flush: time.Millisecond})
	fast := &recorder{}
	spec := smallRing(event.Reject, push("fast", "orders", "", fast))
	w.apply(spec)
	stop, published := make(chan struct{}), sync.WaitGroup{}
	published.Go(func() { // the ring turns over all the time
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				w.tryPublish("orders", fmt.Sprint(i))
			}
		}
	})
	for round := range 15 {
		name := fmt.Sprint("begins", round)
		with := spec
		s := pullSpec(name, "orders", "")
		s.Start = event.Start{At: event.Earliest}
		with.Subscriptions = append(slices.Clone(spec.Subscriptions), s)
		w.apply(with)
		var last event.Offset
		check := func(what string) {
			for i, l := range w.pull(name, 20) {
				off := l.Event.Offset()
				if i > 0 && off != last+1 {
					t.Errorf("%s: %d follows %d", what, off, last)
				}
				last = off
			}
			if i := w.info(name); i.Lost != 0 {
				t.Errorf("%s: %d lost", what, i.Lost)
			}
		}
		check("a new subscription")
		if err := w.e.Seek(t.Context(), name, event.Start{At: event.Latest}); err != nil {
			t.Fatal(err)
		}
		if err := w.e.Seek(t.Context(), name, event.Start{At: event.Earliest}); err != nil {
			t.Fatal(err)
		}
		check("a seek")
		w.apply(spec)
	}
	close(stop)
	published.Wait()
}

// After a restart nothing goes before the first flush knows who needs what; and what was settled just before a power cut
// is not called lost.
func TestRejectAcrossRestarts(t *testing.T) {
	w := crashWorld(t, Options{Flush: never})
	w.apply(smallRing(event.Reject, pullSpec("s", "orders", "")))
	ids := w.fillUp("orders", "a")
	w.ack("s", w.pull("s", 10))
	w.flush()
	after := w.powerCut(Options{Flush: never}, nil)
	if after.tryPublish("orders", "early") {
		t.Error("an event went before the subscriptions were there")
	}
	after.apply(w.spec)
	rest := after.pull("s", len(ids)-10)
	if have := eventIDs(rest); !slices.Equal(have, ids[10:]) {
		t.Errorf("after the restart: %v", have)
	}

	// Delivered and gone from the ring, but its row is not written yet when power fails.
	w = crashWorld(t, Options{Flush: never})
	sink := &recorder{}
	w.apply(smallRing(event.Reject, push("s", "orders", "", sink)))
	ids = w.fillUpDelivered(sink)
	after = w.powerCut(Options{}, nil)
	again := &recorder{}
	after.apply(smallRing(event.Reject, push("s", "orders", "", again)))
	eventually(t, "the rest", func() bool { return after.settled("s") })
	if i := after.info("s"); i.Lost != 0 {
		t.Errorf("%d of %d lost, all of which were delivered", i.Lost, len(ids))
	}
}

// fillUpDelivered turns the ring over several times, moving the floor without writing a cursor.
func (w *world) fillUpDelivered(sink *recorder) (ids []string) {
	w.t.Helper()
	for i := range 300 {
		id := fmt.Sprint(i)
		for !w.tryPublish("orders", id) {
			eventually(w.t, "all is delivered", func() bool { return len(sink.ids()) == len(ids) })
			eventually(w.t, "and taken note of", func() bool {
				w.e.refloor(w.e.plan.Load(), w.e.plan.Load().topics["orders"])
				return w.tryPublish("orders", id+"+")
			})
			ids = append(ids, id+"+")
		}
		ids = append(ids, id)
	}
	return ids
}

// lines is a log that tests look into.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *lines) count(words string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.buf.String(), words)
}

// What drop-oldest drops is counted for each subscription that had not read it: at once, kept over restarts, with the
// gap and since when, and in the log once.
func TestDropOldestCountsWhatIsLost(t *testing.T) {
	var log lines
	w := newWorld(t, Options{Log: slog.New(slog.NewTextHandler(&log, nil)), Queue: 10})
	fast := &recorder{}
	w.apply(smallRing(event.DropOldest, pullSpec("s", "orders", ""), push("fast", "orders", "", fast)))
	if err := w.e.Pause(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	publish := func(prefix string, n int) {
		want := len(fast.ids())
		for i := range n { // one after the other: the fast one loses nothing
			w.publish("orders", fmt.Sprint(prefix, i))
			eventually(t, "the fast one keeps up", func() bool { return len(fast.ids()) == want+i+1 })
		}
	}
	publish("a", 300)
	w.watch()
	paused := w.info("s").Lost
	if paused == 0 || log.count("overtakes") != 1 {
		t.Errorf("while it is paused: %d lost, %d lines", paused, log.count("overtakes"))
	}
	if err := w.e.Resume(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	got := w.pullAll("s")
	w.ack("s", got)
	i := w.info("s")
	if i.Lost != paused || i.Lost+uint64(len(got)) != 300 {
		t.Errorf("%d lost, %d before, %d delivered of 300", i.Lost, paused, len(got))
	}
	if l := i.Loss; l.Events != i.Lost || l.To-l.From == 0 || l.Since.IsZero() || l.Last.Before(l.Since) {
		t.Errorf("%+v", l)
	}
	if n := w.info("fast").Lost; n != 0 {
		t.Errorf("the fast one lost %d", n)
	}
	w.watch()
	w.watch()
	if log.count("overtakes") != 1 || log.count("loses no more") != 1 {
		t.Errorf("%d beginnings and %d ends in the log", log.count("overtakes"), log.count("loses no more"))
	}
	w.restart()
	if n := w.info("s"); n.Loss != i.Loss || n.Lost != i.Lost {
		t.Errorf("after a restart: %d lost, %+v, want %+v", n.Lost, n.Loss, i.Loss)
	}
	if err := w.e.Pause(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	fast = &recorder{}
	w.apply(smallRing(event.DropOldest, pullSpec("s", "orders", ""), func() SubscriptionSpec {
		s := push("fast", "orders", "", fast)
		s.Fingerprint = "another"
		return s
	}()))
	publish("b", 200)
	if n := w.info("s").Lost; n <= i.Lost {
		t.Errorf("a second gap adds nothing: %d", n)
	}
	w.watch()
	if log.count("overtakes") != 2 {
		t.Errorf("the second gap: %d lines in all", log.count("overtakes"))
	}
}

// watch does what the flush loop does every ten seconds.
func (w *world) watch() {
	for _, s := range w.e.plan.Load().subs {
		s.watchLosses()
		s.refresh()
	}
}

// A subscription that matches nothing for long does not find after a restart that it has lost what it had passed over.
func TestWhatIsPassedOverIsNotLost(t *testing.T) {
	w := crashWorld(t, Options{Flush: never})
	sink := &recorder{}
	spec := smallRing(event.DropOldest, push("s", "orders", `type == "wanted"`, sink))
	w.apply(spec)
	w.flush()
	s := w.e.plan.Load().subs["s"]
	s.mu.Lock()
	s.cursors[0].hasRow = true // as after a flush that some other subscription's settlement held back
	row := put(tableCursors, key32x2(s.serial, 0), s.cursors[0].appendRow(nil, 0))
	s.mu.Unlock()
	if err := w.store.Commit(t.Context(), &storage.Batch{Ops: []storage.Op{row}}); err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		id := fmt.Sprint(i)
		w.publish("orders", id)
		eventually(t, "it is passed over", func() bool { return w.info("s").Lag == 0 })
	}
	w.watch()
	w.flush()
	after := w.powerCut(Options{}, nil)
	after.apply(spec)
	eventually(t, "it has caught up", func() bool { return after.info("s").Lag == 0 })
	if n := after.info("s").Lost; n != 0 {
		t.Errorf("%d lost", n)
	}
}
