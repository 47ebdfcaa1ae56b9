package engine

import (
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// A function that keeps state runs once for an event, however often its delivery fails, also through a
// restart, for pushing and pulling.
func TestDeliveryThatFailsDoesNotRunTheFunctionAgain(t *testing.T) {
	w, digests := stateWorld(t)
	var down atomic.Bool
	down.Store(true)
	sink := &outputs{}
	sink.answer = func(event.Delivery) error {
		if down.Load() {
			return errors.New("down")
		}
		return nil
	}
	spec := keeping(through(digests[0], 1, sink, func(s *SubscriptionSpec) { s.Retry.Attempts = 1000 }))
	w.apply(spec)
	w.publish("orders", "a=an=1", "b=an=1", "c=an=1;dx")
	eventually(t, "deliveries fail", func() bool { i := w.info("s"); return i.Retried > 6 && i.Parked == 3 })
	w.restart()
	down.Store(false)
	eventually(t, "all settled", func() bool { return w.rest("s") })
	if got, want := sink.sorted(), []string{"a~s~0=1", "b~s~0=2", "c~s~0=3 !-1"}; !slices.Equal(got, want) {
		t.Errorf("delivered %q, want %q", got, want)
	}
	i := w.info("s")
	if i.Topic != "orders" || i.Deliver.Face != event.Push || i.Delivered != 3 || len(w.e.Subscriptions()) != 1 {
		t.Errorf("it is not one subscription to its owner: %+v", i)
	}
	if ids := sink.deliveryIDs(); !strings.HasPrefix(ids[0], "s:s.out@") || len(slices.Compact(slices.Sorted(slices.Values(ids)))) != 3 {
		t.Errorf("delivery ids %v", ids)
	}

	// As a queue: what was given back comes again, as it was.
	w.apply(keeping(through(digests[0], 1, nil, func(s *SubscriptionSpec) {
		s.OpenSink, s.Deliver, s.Fingerprint = nil, event.Deliver{Face: event.Pull, AckDeadline: time.Minute}, "pull"
	})))
	w.publish("orders", "d=an=1")
	var leases []event.Lease
	pull := func() bool {
		var err error
		if leases, err = w.e.Pull(t.Context(), "s", 10, 0); err != nil {
			t.Fatal(err)
		}
		return len(leases) > 0
	}
	for range 3 {
		eventually(t, "it is there", pull)
		if got := string(leases[0].Event.Data()); got != "4" || len(leases) != 1 {
			t.Fatalf("%d leases of %q", len(leases), got)
		}
		if lost, err := w.e.Nack(t.Context(), "s", leaseIDs(leases), 0); err != nil || len(lost) != 0 {
			t.Fatal(lost, err)
		}
	}
	eventually(t, "it is there", pull)
	if lost := w.ack("s", leases); len(lost) != 0 {
		t.Error("the lease was lost")
	}
	eventually(t, "all settled", func() bool { return w.rest("s") })
	if _, err := w.e.OpenSubscription(t.Context(), "s", event.Start{}, ""); !errors.Is(err, event.ErrConflict) {
		t.Errorf("a queue was opened as a stream: %v", err)
	}
}

// With a subscription go its state and the topic that the router put between its halves; one that somebody
// defined stays.
func TestRemovingASubscriptionRemovesItsState(t *testing.T) {
	for _, own := range []bool{false, true} {
		t.Run(fmt.Sprint(own), func(t *testing.T) {
			w, digests := stateWorld(t)
			spec := keeping(through(digests[0], 1, &recorder{}, nil))
			if own {
				spec.Topics = append(spec.Topics, event.Topic{Name: "s.out", Partitions: 3})
				for _, kept := range []bool{true, false} { // now, or when the functions come to keep state
					if err := w.e.Apply(t.Context(), spec); !errors.Is(err, event.ErrConflict) || !strings.Contains(err.Error(), `"s.out", which is somebody's`) {
						t.Errorf("a subscription of the API's took a topic by its name: %v", err)
					}
					if kept {
						plain := through(digests[0], 1, &recorder{}, nil)
						plain.Topics = spec.Topics
						w.apply(plain)
					}
				}
				spec.Subscriptions[0].Owner = event.Owner{File: "rules.yaml", Line: 1}
			} else {
				spec.Topics[0].Partitions, spec.Topics[0].Retain.Events, spec.Topics[0].WhenFull = 2, 1000, event.Reject
			}
			w.apply(spec)
			out, err := w.e.Topic("s.out")
			if err != nil {
				t.Fatal(err)
			}
			if own && out.Partitions != 3 || !own && (out.Partitions != 2 || out.Retain.Events != 1000 || out.WhenFull != event.Reject) {
				t.Errorf("topic %+v", out.Topic)
			}
			w.publish("orders", "a=pk=v,100000")
			eventually(t, "all settled", func() bool { return w.rest("s") })
			if err := w.e.DeleteTopic(t.Context(), "s.out"); !errors.Is(err, event.ErrConflict) {
				t.Errorf("the topic between the halves: %v", err)
			}
			w.restart()
			if w.rows(tableState) != 1 || w.rows(tableStateExpiry) != 1 || w.info("s").StateKeys != 1 {
				t.Fatalf("state: %d rows", w.rows(tableState))
			}
			spec.Subscriptions = nil
			w.apply(spec)
			if n := w.rows(tableState) + w.rows(tableStateExpiry) + w.rows(tableStateSize) + w.rows(tableSubs); n != 0 {
				t.Errorf("%d rows stay", n)
			}
			if _, err := w.e.Topic("s.out"); own != (err == nil) {
				t.Errorf("topic s.out: %v", err)
			}
			w.restart()
			if _, err := w.e.Topic("s.out"); own != (err == nil) {
				t.Errorf("topic s.out after a restart: %v", err)
			}
		})
	}
}

// A subscription becomes one with state and ceases to be: nothing is lost, counted twice or delivered twice.
func TestStateComesAndGoes(t *testing.T) {
	w, digests := stateWorld(t)
	var up atomic.Bool
	sink := &outputs{}
	sink.answer = func(event.Delivery) error {
		if up.Load() {
			return nil
		}
		return errors.New("down")
	}
	plain := func() Spec {
		return through(digests[0], 1, sink, func(s *SubscriptionSpec) { s.Retry.Attempts = 1000 })
	}
	w.apply(plain())
	for i := range 200 {
		w.publish("orders", fmt.Sprintf("a%d=an=1", i))
	}
	w.apply(keeping(plain()))
	for i := range 200 {
		w.publish("orders", fmt.Sprintf("b%d=an=1", i))
	}
	eventually(t, "the functions have run", func() bool { return w.settled("s") })
	w.apply(plain())
	w.restart()
	w.publish("orders", "c=an=1")
	up.Store(true)
	eventually(t, "all settled", func() bool { return w.rest("s") })
	counted, denied := 0, 0
	got := sink.sorted()
	for _, d := range got {
		if strings.HasSuffix(d, "!-2") {
			denied++
		} else {
			counted++
		}
	}
	if len(got) < 401 || len(slices.Compact(got)) != 401 {
		t.Errorf("%d deliveries", len(got))
	}
	if n, _ := strconv.Atoi(w.value("s", "f0", "n")); counted != n || denied == 0 {
		t.Errorf("counted to %d, %d counts delivered, %d denied", n, counted, denied)
	}
}

// The workers of a subscription that ran its functions side by side leave when they keep state from now on.
func TestStateHasOneWorker(t *testing.T) {
	w, digests := stateWorld(t)
	w.apply(through(digests[0], 1, &recorder{}, func(s *SubscriptionSpec) { s.Concurrency = 1000 }))
	s := w.e.plan.Load().subs["s"]
	publish := func(prefix string) {
		events := number(prefix, 2000)
		for i := range events {
			events[i] += "=an=1"
		}
		w.publish("orders", events...)
	}
	for round := 0; ; round++ {
		publish(fmt.Sprint("plain", round))
		s.mu.Lock()
		workers := s.pumps.running
		s.mu.Unlock()
		if workers > 1 || runtime.GOMAXPROCS(0) == 1 {
			break
		}
	}
	w.apply(keeping(through(digests[0], 1, nil, func(s *SubscriptionSpec) { copies(s); s.Fingerprint = "keeping" })))
	publish("kept")
	eventually(t, "all settled", func() bool { return w.rest("s") })
	counts := map[string]int{}
	for _, d := range w.datas("copies") {
		if d != "!-2" { // made before it was allowed
			counts[d]++
		}
	}
	if !maps.Equal(counts, oneTo(len(counts))) || len(counts) < 2000 {
		t.Errorf("%d different counts, the highest kept is %s", len(counts), w.value("s", "f0", "n"))
	}
}

// Pausing holds both halves; a seek leaves nothing behind that was put out before; a dead letter says which
// half it left.
func TestHalvesAreOneToTheirOwner(t *testing.T) {
	w, digests := stateWorld(t)
	sink := &outputs{}
	var refuse atomic.Bool
	sink.answer = func(d event.Delivery) error {
		if refuse.Load() {
			return event.Permanent(400, errors.New("no"))
		}
		return nil
	}
	w.apply(keeping(through(digests[0], 1, sink, nil)))
	if err := w.e.Pause(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	w.publish("orders", "a=an=1", "b=an=1")
	if i := w.info("s"); i.State != "paused" {
		t.Errorf("state %s", i.State)
	}
	if n := len(w.ids("s.out")); n != 0 {
		t.Errorf("%d outputs while paused", n)
	}
	refuse.Store(true)
	if err := w.e.Resume(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	w.publish("orders", "c=x")
	eventually(t, "all settled", func() bool { return w.rest("s") })
	halves := map[string]string{}
	for _, r := range w.records("s.dead") {
		half, _ := r.Extension("deadletterhalf")
		sub, _ := r.Extension("deadlettersub")
		pos, _ := r.Extension("deadletterposition")
		topic, _, _ := strings.Cut(pos.Value, "/")
		halves[strings.Clone(r.Attr(event.TagID))] = half.Value + " " + sub.Value + " " + topic
	}
	if want := map[string]string{"a~s~0": "delivery s s.out", "b~s~0": "delivery s s.out", "c": "function s orders"}; !maps.Equal(halves, want) {
		t.Errorf("dead letters %v", halves)
	}
	if i := w.info("s"); i.DeadLettered != 3 || i.Failed != 3 {
		t.Errorf("%d dead letters, %d failures", i.DeadLettered, i.Failed)
	}

	refuse.Store(false)
	d, err := w.e.delivering("s")
	if err != nil {
		t.Fatal(err)
	}
	d.disable(t.Context(), errors.New("410")) // the target is gone: the functions go on
	w.publish("orders", "d=an=1")
	eventually(t, "it is put out", func() bool { return len(w.ids("s.out")) == 3 })
	if err := w.e.Seek(t.Context(), "s", event.Start{At: event.Latest}); err != nil {
		t.Fatal(err)
	}
	if err := w.e.Resume(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	w.publish("orders", "e=an=1")
	eventually(t, "all settled", func() bool { return w.rest("s") && len(sink.sorted()) > 0 })
	if got := sink.sorted(); !slices.Equal(got, []string{"e~s~0=4"}) {
		t.Errorf("delivered %v after a seek to the end", got)
	}
	if _, err := w.e.Subscription("s/delivery"); err == nil {
		t.Error("a half has a name of its own")
	}
}
