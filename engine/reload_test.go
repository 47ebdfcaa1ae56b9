package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// A plan that fails must not have shrunk a ring on the way: what left it would not come back.
func TestRefusedPlanDropsNoEvents(t *testing.T) {
	w := newWorld(t, Options{})
	spec := Spec{Topics: []event.Topic{{Name: "orders"}}}
	w.apply(spec)
	data := fmt.Sprintf("=%01000d", 1)
	for i := range 50 {
		var ids []string
		for _, id := range number(fmt.Sprintf("e%d-", i), 100) {
			ids = append(ids, id+data)
		}
		w.publish("orders", ids...)
	}
	bad := specOf(push("s", "orders", "", nil))
	bad.Topics[0].Retain = event.Retain{Events: 10}
	bad.Subscriptions[0].OpenSink = func(context.Context) (Sink, error) { return nil, errors.New("no such host") }
	if err := w.e.Apply(t.Context(), bad); err == nil {
		t.Fatal("a plan whose sink does not open was applied")
	}
	w.publish("orders", "last")
	if n := len(w.ids("orders")); n != 5001 {
		t.Errorf("%d events after a refused plan, want 5001", n)
	}
}

func TestDuplicateDefinitionsAreRefused(t *testing.T) {
	w := newWorld(t, Options{})
	s := push("s", "orders", "", &recorder{})
	for want, change := range map[string]func(*Spec){
		"topics.orders":   func(p *Spec) { p.Topics = append(p.Topics, event.Topic{Name: "orders"}) },
		"subscriptions.s": func(p *Spec) { p.Subscriptions = append(p.Subscriptions, s) },
		"functions.f":     func(p *Spec) { p.Functions = []event.Function{{Name: "f"}, {Name: "f"}} },
		"topics.negative": func(p *Spec) { p.Topics = append(p.Topics, event.Topic{Name: "negative", Partitions: -1}) },
		"topics.huge":     func(p *Spec) { p.Topics = append(p.Topics, event.Topic{Name: "huge", Partitions: 1 << 30}) },
		"subscriptions.me": func(p *Spec) {
			m := push("me", "orders", "", &recorder{})
			m.DeadLetter = "orders"
			p.Subscriptions = append(p.Subscriptions, m)
		},
	} {
		spec := specOf(s)
		change(&spec)
		if err := w.e.Apply(t.Context(), spec); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want a refusal at %s", err, want)
		}
	}
}

// A subscription that becomes a pull queue: the senders of before must not take from it.
func TestPushBecomesPull(t *testing.T) {
	w := newWorld(t, Options{})
	gate, entered := make(chan struct{}), make(chan struct{}, 1)
	sink := &recorder{answer: func(event.Delivery) error { entered <- struct{}{}; <-gate; return nil }}
	s := push("s", "orders", "", sink)
	s.Concurrency = 1
	w.apply(specOf(s))
	w.publish("orders", "a", "b", "c", "d")
	<-entered
	w.apply(specOf(pullSpec("s", "orders", "s.dead")))
	close(gate)
	eventually(t, "a is settled", func() bool { return w.info("s").Delivered == 1 })
	got := w.pull("s", 3)
	if ids := eventIDs(got); !slices.Equal(ids, []string{"b", "c", "d"}) || got[0].Attempt != 1 {
		t.Errorf("pulled %v, the first with attempt %d", ids, got[0].Attempt)
	}
	if i := w.info("s"); i.Failed != 0 {
		t.Errorf("%d attempts failed", i.Failed)
	}
}

func TestLoweredConcurrencyIsObeyed(t *testing.T) {
	w := newWorld(t, Options{})
	var now, most atomic.Int32
	sink := &recorder{answer: func(event.Delivery) error {
		n := now.Add(1)
		defer now.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		time.Sleep(time.Millisecond) // the work of a receiver
		return nil
	}}
	s := push("s", "orders", "", sink)
	s.Concurrency = 8
	w.apply(specOf(s))
	w.publish("orders", number("a", 200)...)
	eventually(t, "eight at once", func() bool { return most.Load() == 8 })
	s.Concurrency, s.Fingerprint = 2, "two"
	w.apply(specOf(s))
	before := len(sink.ids())
	eventually(t, "those of before have ended", func() bool { return len(sink.ids()) > before+16 })
	most.Store(0)
	w.publish("orders", number("b", 200)...)
	eventually(t, "all", func() bool { return len(sink.ids()) == 400 })
	if n := most.Load(); n > 2 {
		t.Errorf("%d sends at once after concurrency was set to 2", n)
	}
}

func TestRaisedParkedBytesResumeReading(t *testing.T) {
	w := newWorld(t, Options{Queue: 8, CircuitFailures: -1})
	sink := &recorder{answer: func(d event.Delivery) error {
		if strings.HasPrefix(d.Event.Attr(event.TagID), "bad") {
			return errors.New("down")
		}
		return nil
	}}
	s := push("s", "orders", "", sink)
	s.Parked = 1000
	s.Retry = event.RetryPolicy{Attempts: event.Unlimited, Schedule: []time.Duration{time.Hour}}
	w.apply(specOf(s))
	w.publish("orders", number("bad", 40)...)
	eventually(t, "it says that parked is full", func() bool { return w.info("s").State == "waiting" })
	w.publish("orders", "good")
	s.Parked, s.Fingerprint = 1<<20, "more"
	w.apply(specOf(s))
	eventually(t, "the good one is delivered", func() bool { return slices.Contains(sink.ids(), "good") })
}

// A delivery that began before its dead-letter topic was replaced and deleted ends in the one in force.
func TestDeadLetterTopicReplacedDuringADelivery(t *testing.T) {
	w := newWorld(t, Options{})
	gate, entered := make(chan struct{}), make(chan struct{})
	sink := &recorder{answer: func(event.Delivery) error {
		entered <- struct{}{}
		<-gate
		return event.Permanent(400, errors.New("no"))
	}}
	s := push("s", "orders", "", sink)
	w.apply(specOf(s))
	w.publish("orders", "a")
	<-entered
	s.DeadLetter, s.Fingerprint = "other.dead", "other"
	w.apply(specOf(s))
	if err := w.e.DeleteTopic(t.Context(), "s.dead"); err != nil {
		t.Fatal(err)
	}
	close(gate)
	eventually(t, "a dead letter in the new topic", func() bool { return len(w.ids("other.dead")) == 1 })
}

// What waits for room in a topic that is then deleted does not wait for ever.
func TestOutputTopicDeletedWhileASettlementWaits(t *testing.T) {
	w := newWorld(t, Options{})
	to := func(topic string) Spec {
		s := push("s", "orders", "", nil)
		s.OpenSink, s.Deliver, s.Fingerprint = nil, event.Deliver{Face: event.ToTopic, Topic: topic}, topic
		spec := specOf(s)
		for i := range spec.Topics {
			if spec.Topics[i].Name == "small" {
				spec.Topics[i].Retain, spec.Topics[i].WhenFull = event.Retain{Events: 2}, event.Reject
			}
		}
		return spec
	}
	w.apply(to("small"))
	hold := pullSpec("hold", "small", "")
	spec := to("small")
	spec.Subscriptions = append(spec.Subscriptions, hold)
	w.apply(spec)
	for _, id := range number("e", 40) {
		w.publish("orders", id)
	}
	eventually(t, "it waits for room", func() bool { return w.info("s").State == "waiting" })
	stored := w.ids("small")
	w.apply(to("large"))
	if err := w.e.DeleteTopic(t.Context(), "small"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the rest is in the new topic", func() bool {
		i := w.info("s")
		return len(w.ids("large"))+len(stored) == 40 && i.Outstanding == 0 && i.Parked == 0
	})
}

// An event's first publish makes its topic; it must not reset one that somebody defined meanwhile.
func TestAutoCreateNeverChangesATopic(t *testing.T) {
	w := newWorld(t, Options{AutoCreate: true})
	w.apply(Spec{Topics: []event.Topic{{Name: "defined", Retain: event.Retain{Events: 77}}}})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			evs := []event.Event{{ID: fmt.Sprint(i), ClientID: true}}
			if err := w.e.Publish(t.Context(), "fresh", evs, make([]event.Position, 1)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := len(w.ids("fresh")); n != 8 {
		t.Errorf("%d of 8 events", n)
	}
	// As if it had looked before the definition was applied.
	if _, err := w.e.autoCreate(t.Context(), "defined"); err != nil {
		t.Fatal(err)
	}
	if i, _ := w.e.Topic("defined"); i.Retain.Events != 77 {
		t.Errorf("its bounds were reset to %+v", i.Retain)
	}
}

// Reloads under load, good and bad: no event is lost or repeated in topics, and a bad plan changes nothing.
func TestReloadUnderLoad(t *testing.T) {
	w := newWorld(t, Options{})
	sink := &recorder{}
	plan := func(n int) Spec {
		a := push("pushed", "orders", "", sink)
		a.Fingerprint = fmt.Sprint("a", n)
		a.Concurrency = 1 + n%7
		b := push("copied", "orders", "", nil)
		b.OpenSink, b.Deliver, b.Fingerprint = nil, event.Deliver{Face: event.ToTopic, Topic: "copies"}, fmt.Sprint("b", n)
		spec := specOf(a, b)
		for i := range n % 3 {
			spec.Subscriptions = append(spec.Subscriptions, push(fmt.Sprint("extra", i), "orders", "", &recorder{}))
			spec.Topics = append(spec.Topics, event.Topic{Name: fmt.Sprint("extra", i, ".dead")})
		}
		return spec
	}
	w.apply(plan(0))
	var published []string
	var publisher sync.WaitGroup
	stop := make(chan struct{})
	publisher.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			ids := number(fmt.Sprintf("e%d-", n), 10)
			w.publish("orders", ids...)
			published = append(published, ids...)
		}
	})
	for n := range 60 {
		w.apply(plan(n))
		if n%3 == 0 {
			bad := plan(n + 1)
			bad.Subscriptions[1].Topic = "ordres"
			if err := w.e.Apply(t.Context(), bad); err == nil || !strings.Contains(err.Error(), `did you mean "orders"`) {
				t.Errorf("a bad plan: %v", err)
			}
		}
	}
	close(stop)
	publisher.Wait()
	eventually(t, "all settled", func() bool {
		a, b := w.info("pushed"), w.info("copied")
		return a.Lag+b.Lag+uint64(a.Outstanding+b.Outstanding) == 0
	})
	want := slices.Sorted(slices.Values(published))
	if got := slices.Sorted(slices.Values(w.ids("copies"))); !slices.Equal(got, want) {
		t.Errorf("%d copies of %d events", len(got), len(want))
	}
	if got := slices.Sorted(slices.Values(sink.ids())); !slices.Equal(got, want) {
		t.Errorf("%d deliveries of %d events, none failed", len(got), len(want))
	}
}
