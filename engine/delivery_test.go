package engine

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
)

func TestRetriesThenDeadLetter(t *testing.T) {
	w := newWorld(t, Options{})
	var tries atomic.Int32
	sink := &recorder{answer: func(d event.Delivery) error {
		if n := tries.Add(1); int(n) != d.Attempt {
			t.Errorf("try %d says attempt %d", n, d.Attempt)
		}
		return &event.RetryAfter{Err: errors.New("answered 503"), Code: 503}
	}}
	w.apply(specOf(push("s", "orders", "", sink)))
	w.publish("orders", "a=7")
	eventually(t, "a dead letter", func() bool { return len(w.ids("s.dead")) == 1 })
	rec := w.records("s.dead")[0]
	for name, want := range map[string]string{"deadlettersub": "s", "deadletterreason": "attempts", "deadlettercode": "503",
		"deadletterattempts": "3", "deadletterposition": "orders/0-0", "deadletterdetail": "answered 503"} {
		if a, _ := rec.Extension(name); a.Value != want {
			t.Errorf("%s is %q, want %q", name, a.Value, want)
		}
	}
	if string(rec.Data()) != "7" || rec.Attr(event.TagID) != "a" {
		t.Errorf("the dead letter is %q %q, want the event as it was", rec.Attr(event.TagID), rec.Data())
	}
	if got := slices.Compact(sink.deliveryIDs()); len(got) != 1 || tries.Load() != 3 {
		t.Errorf("%d tries under ids %v, want 3 under one", tries.Load(), got)
	}
	if i := w.info("s"); i.Parked != 0 || i.ParkedBytes != 0 || i.Outstanding != 0 {
		t.Errorf("left over: %+v", i)
	}
}

func TestAttemptsSurviveRestarts(t *testing.T) {
	w := newWorld(t, Options{})
	var last atomic.Int32
	sink := &recorder{answer: func(d event.Delivery) error {
		last.Store(int32(d.Attempt))
		return errors.New("down")
	}}
	spec := push("s", "orders", "", sink)
	spec.Retry = event.RetryPolicy{Attempts: 100, Schedule: []time.Duration{time.Millisecond, 50 * time.Millisecond}}
	w.apply(specOf(spec))
	w.publish("orders", "a")
	for want := range int32(3) {
		eventually(t, "another try", func() bool { return last.Load() > 2*want })
		before := last.Load()
		w.restart()
		eventually(t, "tries go on", func() bool { return last.Load() > before })
		if got := last.Load(); got > before+2 {
			t.Fatalf("attempt %d after the restart, %d before", got, before)
		}
	}
}

func TestPermanentFailureIsNotRetried(t *testing.T) {
	w := newWorld(t, Options{})
	sink := &recorder{answer: func(event.Delivery) error { return event.Permanent(422, errors.New("no")) }}
	w.apply(specOf(push("s", "orders", "", sink)))
	w.publish("orders", "a")
	eventually(t, "a dead letter", func() bool { return len(w.ids("s.dead")) == 1 })
	if n := len(sink.deliveryIDs()); n != 1 {
		t.Errorf("%d tries of what no retry mends", n)
	}
}

func TestGoneDisablesAndResumeDelivers(t *testing.T) {
	w := newWorld(t, Options{})
	var mended atomic.Bool
	sink := &recorder{answer: func(event.Delivery) error {
		if mended.Load() {
			return nil
		}
		return event.Disable(410, errors.New("answered 410 Gone"))
	}}
	w.apply(specOf(push("s", "orders", "", sink)))
	w.publish("orders", "a")
	eventually(t, "it is disabled", func() bool { return w.info("s").State == "disabled" })
	w.publish("orders", "b", "c")
	w.restart()
	if i := w.info("s"); i.State != "disabled" || i.Reason != "answered 410 Gone" {
		t.Fatalf("after a restart %s %q", i.State, i.Reason)
	}
	if got := sink.ids(); len(got) != 0 {
		t.Fatalf("a disabled subscription delivered %v", got)
	}
	mended.Store(true)
	if err := w.e.Resume(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all three", func() bool { return len(sink.ids()) == 3 })
}

// A subscription that is slow leaves the live feed and comes back: nobody waits for it, and it neither
// misses nor repeats an event.
func TestSlowSubscriptionCatchesUp(t *testing.T) {
	w := newWorld(t, Options{Queue: 8})
	gate := make(chan struct{})
	slow := &recorder{answer: func(event.Delivery) error { <-gate; return nil }}
	fast := &recorder{}
	a, b := push("slow", "orders", "", slow), push("fast", "orders", "", fast)
	a.Concurrency = 2
	w.apply(specOf(a, b))
	want := number("e", 2000)
	for i := 0; i < len(want); i += 50 {
		w.publish("orders", want[i:i+50]...)
	}
	eventually(t, "the fast one has all", func() bool { return len(fast.ids()) == len(want) })
	if n := len(slow.ids()); n != 0 {
		t.Fatalf("the slow one has %d already", n)
	}
	if i := w.info("slow"); i.Outstanding > 8+2 {
		t.Errorf("%d in hand with a queue of 8 and 2 senders", i.Outstanding)
	}
	close(gate)
	eventually(t, "the slow one has all", func() bool { return len(slow.ids()) == len(want) && w.info("slow").Outstanding == 0 })
	got := slow.ids()
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Error("the slow one missed or repeated events")
	}
	eventually(t, "it is on the live feed again", func() bool { return w.info("slow").Lag == 0 })
	w.publish("orders", "last")
	eventually(t, "the last one", func() bool { return len(slow.ids()) == len(want)+1 })
}

func TestRingThatOvertakesIsCounted(t *testing.T) {
	w := newWorld(t, Options{Queue: 4})
	gate := make(chan struct{})
	sink := &recorder{answer: func(event.Delivery) error { <-gate; return nil }}
	s := push("s", "orders", "", sink)
	s.Concurrency = 1
	spec := specOf(s)
	spec.Topics[0].Retain = event.Retain{Events: 200}
	w.apply(spec)
	data := `"` + string(make([]byte, 0)) + fmt.Sprintf("%01000d", 1) + `"`
	for i := range 3000 {
		w.publish("orders", fmt.Sprintf("e%d=%s", i, data))
	}
	close(gate)
	eventually(t, "it reaches the end", func() bool { i := w.info("s"); return i.Lag == 0 && i.Outstanding == 0 })
	i := w.info("s")
	if i.Lost == 0 || i.Lost+i.Delivered != 3000 {
		t.Errorf("%d delivered and %d lost of 3000", i.Delivered, i.Lost)
	}
}

func TestParkedBytesStopReading(t *testing.T) {
	w := newWorld(t, Options{Queue: 8, CircuitFailures: -1})
	var down atomic.Bool
	down.Store(true)
	sink := &recorder{answer: func(event.Delivery) error {
		if down.Load() {
			return errors.New("down")
		}
		return nil
	}}
	s := push("s", "orders", "", sink)
	s.Parked = 20_000
	s.Retry = event.RetryPolicy{Attempts: event.Unlimited, Schedule: []time.Duration{20 * time.Millisecond}}
	w.apply(specOf(s))
	data := fmt.Sprintf("%01000d", 1)
	for _, id := range number("e", 300) {
		w.publish("orders", id+"=1"+data)
	}
	eventually(t, "it says that parked is full", func() bool { i := w.info("s"); return i.State == "waiting" && i.ParkedBytes >= 20_000 })
	if i := w.info("s"); i.Lag == 0 {
		t.Errorf("it read everything all the same: %+v", i)
	}
	down.Store(false)
	eventually(t, "all are delivered", func() bool { return len(sink.ids()) == 300 && w.info("s").Parked == 0 })
}

// A dead-letter topic that is full stops its subscription, visibly, and nobody else.
func TestFullDeadLetterTopicStopsOnlyItsSubscription(t *testing.T) {
	w := newWorld(t, Options{})
	bad := &recorder{answer: func(event.Delivery) error { return event.Permanent(400, errors.New("no")) }}
	good := &recorder{}
	spec := specOf(push("bad", "orders", "", bad), push("good", "orders", "", good))
	for i := range spec.Topics {
		if spec.Topics[i].Name == "bad.dead" {
			spec.Topics[i].Retain = event.Retain{Events: 5}
		}
	}
	w.apply(spec)
	w.publish("orders", number("e", 40)...)
	eventually(t, "the good one has all", func() bool { return len(good.ids()) == 40 })
	eventually(t, "the bad one says why it waits", func() bool { return w.info("bad").State == "waiting" })
	if n := len(w.ids("bad.dead")); n > 40 || n == 40 {
		t.Fatalf("%d dead letters in a topic that holds 5", n)
	}
	for i := range spec.Topics {
		spec.Topics[i].Retain = event.Retain{}
	}
	w.apply(spec)
	eventually(t, "every dead letter is there", func() bool { return len(w.ids("bad.dead")) == 40 })
	if got := w.ids("bad.dead"); len(slices.Compact(slices.Sorted(slices.Values(got)))) != 40 {
		t.Error("dead letters were written twice")
	}
}

func TestLoopThroughTopicsEnds(t *testing.T) {
	w := newWorld(t, Options{})
	circle := func(from, to string) SubscriptionSpec {
		s := push(from+"-to-"+to, from, "", nil)
		s.OpenSink = nil
		s.Deliver = event.Deliver{Face: event.ToTopic, Topic: to}
		return s
	}
	w.apply(specOf(circle("a", "b"), circle("b", "a")))
	w.publish("a", "x")
	dead := func() int { return len(w.ids("a-to-b.dead")) + len(w.ids("b-to-a.dead")) }
	eventually(t, "the circle ends in a dead letter", func() bool { return dead() == 1 })
	for _, r := range append(w.records("a-to-b.dead"), w.records("b-to-a.dead")...) {
		if a, _ := r.Extension("deadletterreason"); a.Value != "hops" {
			t.Errorf("reason %q, want hops", a.Value)
		}
	}
	if n := len(w.ids("a")) + len(w.ids("b")); n != 1+maxHops {
		t.Errorf("%d events on the way, want %d", n, 1+maxHops)
	}
}

// Whatever fails, and however often: in the end every event is delivered, or is a dead letter, once.
func TestEveryEventIsAccountedFor(t *testing.T) {
	w := newWorld(t, Options{Queue: 16, CircuitFailures: -1}) // ten failures in a row happen
	sink := &recorder{answer: func(d event.Delivery) error {
		switch rand.IntN(10) {
		case 0, 1, 2:
			return errors.New("down")
		case 3:
			return &event.RetryAfter{Err: errors.New("busy"), Wait: time.Millisecond}
		}
		return nil
	}}
	s := push("s", "orders", "", sink)
	s.Retry.Schedule = []time.Duration{time.Millisecond}
	w.apply(specOf(s))
	want := number("e", 1500)
	for i := 0; i < len(want); i += 100 {
		w.publish("orders", want[i:i+100]...)
		if i%500 == 400 {
			w.restart()
		}
	}
	defer func() { t.Logf("%+v", w.info("s")) }()
	eventually(t, "all settled", func() bool { return w.settled("s") })
	seen := map[string]int{}
	for _, id := range sink.ids() {
		seen[id] |= 1
	}
	for _, id := range w.ids("s.dead") {
		if seen[id]&2 != 0 {
			t.Errorf("%s is a dead letter twice", id)
		}
		seen[id] |= 2
	}
	for _, id := range want {
		if seen[id] == 0 {
			t.Errorf("%s is lost", id)
		}
	}
}
