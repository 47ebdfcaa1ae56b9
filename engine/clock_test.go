package engine

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace/millrace/engine/event"
)

// standing is a clock that stands still until it is moved.
type standing struct{ ns atomic.Int64 }

func (c *standing) now() time.Time { return time.Unix(0, c.ns.Load()).UTC() }

// newStandingWorld is a world whose clock stands still.
func newStandingWorld(t *testing.T, o Options) (*world, *standing) {
	c := &standing{}
	c.ns.Store(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano())
	w := &world{t: t, fs: vfs.NewMem(), o: o, now: c.now}
	w.o.Now, w.o.AcceptClock = c.now, true
	w.open()
	t.Cleanup(w.stop)
	return w, c
}

// resting waits until nothing moves and returns when the next thing is due.
func (w *world) resting() (next time.Time) {
	w.t.Helper()
	eventually(w.t, "nothing moves", func() (ok bool) {
		next, ok = w.e.Resting()
		return ok
	})
	return next
}

// jump moves the clock from one due time to the next until nothing is due, at most n times.
func (w *world) jump(c *standing, n int) {
	w.t.Helper()
	for range n {
		next := w.resting()
		if next.IsZero() {
			return
		}
		c.ns.Store(next.UnixNano())
		w.e.ClockMoved()
	}
}

func TestRetriesOfDaysByAClockThatIsMoved(t *testing.T) {
	w, c := newStandingWorld(t, Options{CircuitFailures: -1})
	begin := c.now()
	var mu sync.Mutex
	var at []time.Duration
	sink := &recorder{answer: func(event.Delivery) error {
		mu.Lock()
		defer mu.Unlock()
		at = append(at, c.now().Sub(begin))
		return errors.New("down")
	}}
	s := push("s", "orders", "", sink)
	s.Retry = event.RetryPolicy{Attempts: 4, Schedule: []time.Duration{5 * time.Second, time.Hour, 24 * time.Hour}}
	w.apply(specOf(s))
	w.publish("orders", "a")
	w.jump(c, 100)
	if next := w.resting(); !next.IsZero() {
		t.Errorf("something is due at %s after all is over", next)
	}
	want := []time.Duration{0, 5 * time.Second, 5*time.Second + time.Hour, 5*time.Second + 25*time.Hour}
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(at, want) {
		t.Errorf("tried at %v, want %v", at, want)
	}
	if got := w.ids("s.dead"); !slices.Equal(got, []string{"a"}) {
		t.Errorf("dead letters %v, want a", got)
	}
}

func TestNothingRestsWhileSomethingIsInHand(t *testing.T) {
	w, _ := newStandingWorld(t, Options{})
	began, goOn := make(chan struct{}), make(chan struct{})
	sink := &recorder{answer: func(event.Delivery) error {
		close(began)
		<-goOn
		return nil
	}}
	w.apply(specOf(push("s", "orders", "", sink)))
	w.resting()
	w.publish("orders", "a")
	<-began
	if _, ok := w.e.Resting(); ok {
		t.Error("it rests with a send under way")
	}
	close(goOn)
	w.resting()
	if got := sink.ids(); !slices.Equal(got, []string{"a"}) {
		t.Errorf("at rest, %v was delivered; want a", got)
	}
}

// A chain of topics is at rest only when its end is: every time that the engine says so it must be true.
func TestRestMeansTheEndOfTheChain(t *testing.T) {
	w, _ := newStandingWorld(t, Options{})
	sink := &recorder{}
	forward := func(name, from, to string) SubscriptionSpec {
		return SubscriptionSpec{Subscription: event.Subscription{Name: name, Topic: from, DeadLetter: name + ".dead", Start: event.Start{At: event.Earliest},
			Deliver: event.Deliver{Face: event.ToTopic, Topic: to}}, Fingerprint: name}
	}
	w.apply(specOf(forward("one", "a", "b"), forward("two", "b", "c"), push("three", "c", "", sink)))
	for i, id := range number("e", 200) {
		w.publish("a", id)
		w.resting()
		if got := len(sink.ids()); got != i+1 {
			t.Fatalf("at rest after event %d, %d were delivered", i+1, got)
		}
	}
}

func TestABatchWaitsByTheEnginesClock(t *testing.T) {
	w, c := newStandingWorld(t, Options{})
	sink := &batcher{events: 10, bytes: 1 << 20, wait: time.Minute}
	w.apply(specOf(push("s", "orders", "", sink)))
	w.publish("orders", "a", "b")
	next := w.resting()
	if want := c.now().Add(time.Minute); !next.Equal(want) {
		t.Fatalf("next is due at %s, want %s: the batch waits for more", next, want)
	}
	if n := len(sink.all()); n != 0 {
		t.Fatalf("%d sends before the wait is over", n)
	}
	w.jump(c, 1)
	w.resting()
	if n := len(sink.all()); n != 1 {
		t.Errorf("%d sends after it, want 1", n)
	}
}

func TestConsumersAndThePausedDoNotKeepItFromResting(t *testing.T) {
	w, _ := newStandingWorld(t, Options{})
	sink := &recorder{}
	pulled := SubscriptionSpec{Subscription: event.Subscription{Name: "p", Topic: "orders", Deliver: event.Deliver{Face: event.Pull}}, Fingerprint: "p"}
	w.apply(specOf(pulled, push("s", "orders", "", sink)))
	if err := w.e.Pause(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	w.publish("orders", "a")
	w.resting()
	if err := w.e.Resume(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	w.resting()
	if got := sink.ids(); !slices.Equal(got, []string{"a"}) {
		t.Errorf("delivered %v after the resume, want a", got)
	}
}

func TestTheSecretOfANewStore(t *testing.T) {
	secret := [32]byte{1, 2, 3}
	w := newWorld(t, Options{Secret: secret})
	if w.e.secret != secret {
		t.Error("a new store has another secret than it was given")
	}
	w.o.Secret = [32]byte{9}
	w.restart()
	if w.e.secret != secret {
		t.Error("a store that has a secret got another")
	}
}

func TestAppendedIsToldOfOutputsAndDeadLetters(t *testing.T) {
	var mu sync.Mutex
	var got []string
	w := newWorld(t, Options{Observer: Observer{Appended: func(subscription, topic string, ev *event.Event) {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, subscription+" "+topic+" "+ev.ID)
	}}})
	bad := push("bad", "a", "", &recorder{answer: func(event.Delivery) error { return event.Permanent(0, errors.New("no")) }})
	out := SubscriptionSpec{Subscription: event.Subscription{Name: "out", Topic: "a", DeadLetter: "out.dead", Deliver: event.Deliver{Face: event.ToTopic, Topic: "b"}}, Fingerprint: "out"}
	w.apply(specOf(bad, out))
	w.publish("a", "x")
	eventually(t, "both are told", func() bool {
		mu.Lock()
		defer mu.Unlock()
		slices.Sort(got)
		return slices.Equal(got, []string{"bad bad.dead x", "out b x"})
	})
}
