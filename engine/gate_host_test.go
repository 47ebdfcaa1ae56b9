package engine

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
)

func shutOf(w *world, name string) shutBy {
	s := w.e.plan.Load().subs[name]
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gate.shut
}

// A rate holds over time, whatever waits, and puts off without counting attempts.
func TestRateHolds(t *testing.T) {
	for _, c := range []struct {
		rate   float64
		events int
		burst  float64
	}{{100, 300, 10}, {10.0 / 60, 10, 1}} {
		clock := newHandClock()
		w := newWorld(t, Options{Now: clock.now})
		sink := &downSink{}
		s := push("s", "orders", "", sink)
		s.Rate = c.rate
		w.apply(specOf(s))
		began := clock.now()
		w.publish("orders", number("e", c.events)...)
		step := time.Duration(1e9 / c.rate)
		for sink.delivered() < c.events {
			eventually(t, "it waits for the rate", func() bool { return shutOf(w, "s") == byRate || sink.delivered() == c.events })
			if most := 1 + c.burst + c.rate*clock.now().Sub(began).Seconds(); float64(sink.delivered()) > most {
				t.Fatalf("%d sent after %s at %v a second", sink.delivered(), clock.now().Sub(began), c.rate)
			}
			waits := w.info("s").Circuit.RateWaits
			clock.forward(w, step)
			eventually(t, "it looks again", func() bool { return w.info("s").Circuit.RateWaits > waits || sink.delivered() == c.events })
		}
		took := clock.now().Sub(began).Seconds()
		if want := float64(c.events) / c.rate; took < want*0.9 || took > want*1.1+2*step.Seconds() {
			t.Errorf("%d events at %v a second took %v s", c.events, c.rate, took)
		}
		if i := w.info("s"); i.Circuit.RateWaits == 0 || i.Failed != 0 || slices.Max(sink.attempts) != 1 {
			t.Errorf("%+v", i)
		}
	}
}

// A batch is charged for all that is in it.
func TestRateCountsEventsOfBatches(t *testing.T) {
	b := bucket{}
	b.set(100, 0)
	now := int64(0)
	sent := 0
	for now < int64(10*time.Second) {
		ok, at := b.ready(now)
		if ok {
			b.take(50)
			sent += 50
			continue
		}
		if at <= now {
			t.Fatalf("look again at %d, it is %d", at, now)
		}
		now = at
	}
	if sent < 950 || sent > 1100 {
		t.Errorf("%d events in 10 s at 100 a second", sent)
	}
}

func hosted(name string, sink Sink) SubscriptionSpec {
	s := push(name, "orders", "", sink)
	s.Retry = event.RetryPolicy{Attempts: 1000, Schedule: []time.Duration{time.Millisecond}}
	s.Fingerprint = name
	return s
}

// Subscriptions to one host share what it takes at once, in turn, however much each has to send.
func TestHostIsSharedFairly(t *testing.T) {
	const subs, events, places = 20, 20, 4
	w := newWorld(t, Options{})
	sink := &downSink{host: "api.example.com:443", queued: true}
	var specs []SubscriptionSpec
	for i := range subs {
		s := hosted(fmt.Sprintf("s%02d", i), sink)
		s.Concurrency = 1 + i%8
		specs = append(specs, s)
	}
	spec := specOf(specs...)
	spec.Hosts = []event.Host{{Name: "api.example.com", Concurrency: places}, {Name: "api.example.com:80", Concurrency: 1}}
	w.apply(spec)
	w.publish("orders", number("e", events)...)
	under := func() int {
		sink.mu.Lock()
		defer sink.mu.Unlock()
		return sink.now
	}
	eventually(t, "all places are taken", func() bool { return under() == places })
	for n := range subs * events {
		sink.release(t)
		if subs*events-n > 2*subs { // near the end it may be one subscription's that is left
			eventually(t, "the place is taken again", func() bool { return under() == places })
		}
		if n == subs*events/2 {
			sink.mu.Lock()
			least, most := events, 0
			for i := range subs {
				got := sink.by[fmt.Sprintf("s%02d", i)]
				least, most = min(least, got), max(most, got)
			}
			sink.mu.Unlock()
			if least < events/2-4 || most > events/2+4 {
				t.Errorf("half way the subscriptions have had %d to %d sends of %d each", least, most, events/2)
			}
		}
	}
	eventually(t, "all are delivered", func() bool { return sink.delivered() == subs*events })
	if sink.most > places {
		t.Errorf("%d sends at once, %d are allowed", sink.most, places)
	}
	// Without the limit it is open to all again, and a gate that nobody uses is gone.
	spec.Hosts = nil
	w.apply(spec)
	sink.mu.Lock()
	sink.queued = false
	sink.mu.Unlock()
	w.publish("orders", number("f", events)...)
	eventually(t, "all are delivered", func() bool { return sink.delivered() == 2*subs*events })
	w.apply(specOf())
	eventually(t, "the host's gate is freed", func() bool {
		w.e.hosts.mu.Lock()
		defer w.e.hosts.mu.Unlock()
		return len(w.e.hosts.by) == 0
	})
}

// A rate of a host holds for all of its subscriptions together.
func TestHostRateHolds(t *testing.T) {
	clock := newHandClock()
	w := newWorld(t, Options{Now: clock.now})
	sink := &downSink{host: "h:1"}
	spec := specOf(hosted("a", sink), hosted("b", sink), hosted("c", sink))
	spec.Hosts = []event.Host{{Name: "h:1", Rate: 10}}
	w.apply(spec)
	began := clock.now()
	w.publish("orders", number("e", 20)...)
	for sink.delivered() < 60 {
		eventually(t, "all wait", func() bool {
			for _, name := range []string{"a", "b", "c"} {
				if shutOf(w, name) != byHost && !w.settled(name) {
					return false
				}
			}
			return true
		})
		if most := 2 + 10*clock.now().Sub(began).Seconds(); float64(sink.delivered()) > most {
			t.Fatalf("%d sent after %s", sink.delivered(), clock.now().Sub(began))
		}
		if clock.now().Sub(began) > 8*time.Second {
			t.Fatalf("only %d of 60 sent after %s at 10 a second", sink.delivered(), clock.now().Sub(began))
		}
		had := sink.delivered()
		clock.forward(w, 100*time.Millisecond)
		eventually(t, "one is sent", func() bool { return sink.delivered() > had })
	}
	sink.mu.Lock()
	defer sink.mu.Unlock()
	if sink.by["a"] != 20 || sink.by["b"] != 20 {
		t.Errorf("%v", sink.by)
	}
}

// A host that does not answer is found out about once, not by each subscription for itself; when it is back they are
// let through in turn.
func TestDeadHostIsSharedKnowledge(t *testing.T) {
	const subs, events = 100, 5
	clock := newHandClock()
	w := newWorld(t, Options{Now: clock.now})
	sink := &downSink{host: "gone.example:443"}
	sink.down.Store(true)
	alone := &downSink{host: "well.example:443"}
	specs := []SubscriptionSpec{hosted("well", alone)}
	for i := range subs {
		s := hosted(fmt.Sprintf("s%02d", i), sink)
		s.Concurrency = 1
		specs = append(specs, s)
	}
	w.apply(specOf(specs...))
	w.publish("orders", number("e", events)...)
	open := func() bool {
		c := w.info("s50").Circuit
		return c.State == "open" && c.Host == "gone.example:443"
	}
	eventually(t, "the host's circuit opens", open)
	stays(t, "at most one attempt each besides", func() bool { return sink.tries.Load() <= subs+20 })
	if i := w.info("s07"); i.State != "open" || i.Since == nil {
		t.Errorf("%+v", i)
	}
	tries := sink.tries.Load()
	for range 6 {
		next := w.info("s50").Circuit.Next
		if next == nil {
			t.Fatal("no next try")
		}
		clock.forward(w, next.Sub(clock.now())-time.Millisecond)
		stays(t, "nothing before", func() bool { return sink.tries.Load() == tries })
		clock.forward(w, time.Millisecond)
		eventually(t, "one probe", func() bool { return sink.tries.Load() == tries+1 && open() })
		stays(t, "for all of them", func() bool { return sink.tries.Load() == tries+1 })
		tries++
	}
	if alone.delivered() != events {
		t.Errorf("another host got %d of %d", alone.delivered(), events)
	}
	sink.down.Store(false)
	eventually(t, "all are delivered", func() bool { clock.forward(w, time.Minute); return sink.delivered() == subs*events })
	host := w.e.plan.Load().subs["s50"].config.Load().host
	eventually(t, "the host's gate is out of the way", func() bool {
		w.publish("orders", "more")
		clock.forward(w, time.Minute)
		return host.plain.Load() && w.info("s50").State == "running"
	})
}

// What fails for one subscription alone does not shut the host for others.
func TestOneBadPathLeavesTheHostOpen(t *testing.T) {
	clock := newHandClock()
	w := newWorld(t, Options{Now: clock.now})
	bad, good := &downSink{host: "h:1"}, &downSink{host: "h:1"}
	bad.down.Store(true)
	w.apply(specOf(hosted("bad", bad)))
	w.publish("orders", number("e", 50)...)
	eventually(t, "its own circuit opens", func() bool { c := circuitOf(w, "bad"); return c.State == "open" && c.Host == "" })
	w.apply(specOf(hosted("bad", bad), hosted("good", good)))
	w.publish("orders", number("f", 50)...)
	eventually(t, "the other gets its events", func() bool { return good.delivered() == 100 })
	if c := circuitOf(w, "good"); c.State != "closed" {
		t.Errorf("%+v", c)
	}
}

// A subscription that is stopped, moved or removed while it stands in line holds up nobody.
func TestLineOutlivesThoseInIt(t *testing.T) {
	w := newWorld(t, Options{})
	sink := &downSink{host: "h:1", hold: make(chan struct{})}
	var specs []SubscriptionSpec
	for i := range 8 {
		specs = append(specs, hosted(fmt.Sprintf("s%d", i), sink))
	}
	spec := specOf(specs...)
	spec.Hosts = []event.Host{{Name: "h", Concurrency: 1}}
	w.apply(spec)
	w.publish("orders", number("e", 10)...)
	eventually(t, "the place is taken", func() bool {
		sink.mu.Lock()
		defer sink.mu.Unlock()
		return sink.now == 1
	})
	stays(t, "the others stand in line", func() bool { return true })
	for i := range 3 {
		if err := w.e.Pause(t.Context(), fmt.Sprintf("s%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.e.Seek(t.Context(), "s3", event.Start{At: event.Latest}); err != nil {
		t.Fatal(err)
	}
	elsewhere := hosted("s4", &downSink{host: "other:1"})
	elsewhere.Fingerprint = "s4 elsewhere"
	next := specOf(append(append([]SubscriptionSpec{elsewhere}, specs[:4]...), specs[6:]...)...) // s5 goes
	next.Hosts = spec.Hosts
	w.apply(next)
	close(sink.hold)
	eventually(t, "those that stay are done", func() bool { return w.settled("s6") && w.settled("s7") && w.settled("s4") })
	for i := range 3 {
		if err := w.e.Resume(t.Context(), fmt.Sprintf("s%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "so are those that were paused", func() bool { return w.settled("s0") && w.settled("s1") && w.settled("s2") })
	if sink.most > 1 {
		t.Errorf("%d at once", sink.most)
	}
}

// A crash forgets the circuit, not the attempts.
func TestAttemptsOutliveACrash(t *testing.T) {
	clock := newHandClock()
	w := crashWorld(t, Options{Now: clock.now})
	sink := &downSink{}
	sink.down.Store(true)
	s := hosted("s", sink)
	s.Concurrency = 1
	w.apply(specOf(s))
	w.publish("orders", "a")
	for range 4 {
		tries := sink.tries.Load()
		eventually(t, "another try", func() bool { clock.forward(w, 2*time.Millisecond); return sink.tries.Load() > tries })
	}
	// The clock may have gone past the time of one more try: what was tried when all tries are counted is had.
	var had int64
	eventually(t, "it is parked", func() bool { had = sink.tries.Load(); return w.info("s").Retried == uint64(had) })
	after := w.powerCut(Options{Now: clock.now}, nil)
	most := sink.tries.Load() // one more may have been due
	again := &downSink{}
	s.OpenSink = push("", "", "", again).OpenSink
	after.apply(specOf(s))
	eventually(t, "it is tried again", func() bool { clock.forward(after, time.Second); return again.delivered() == 1 })
	again.mu.Lock()
	defer again.mu.Unlock()
	if got := int64(again.attempts[0]); got <= had || got > most+1 {
		t.Errorf("after %d to %d tries and a power cut it is try %d", had, most, got)
	}
}
