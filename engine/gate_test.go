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

// handClock is a clock that the test moves.
type handClock struct{ at atomic.Int64 }

func newHandClock() *handClock {
	c := &handClock{}
	c.at.Store(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC).UnixNano())
	return c
}

func (c *handClock) now() time.Time { return time.Unix(0, c.at.Load()) }

// forward moves the clock and lets the engine see it.
func (c *handClock) forward(w *world, d time.Duration) {
	c.at.Add(int64(d))
	w.e.alarms.nudge()
	w.e.parked.nudge()
}

// downSink is a sink that the test switches off and on, and that can hold its sends.
type downSink struct {
	host, target string
	down         atomic.Bool
	err          atomic.Pointer[error] // while down; nil: no answer
	tries        atomic.Int64
	hold         chan struct{} // not nil: every send waits for a value

	mu        sync.Mutex
	now, most int // sends under way
	ended     int
	got       []string
	by        map[string]int // by subscription
	attempts  []int
	sizes     []int // of batches
	queued    bool  // every send waits until release
	waiting   []chan struct{}
}

func (d *downSink) Deliver(ctx context.Context, ds []event.Delivery) error {
	d.tries.Add(1)
	d.mu.Lock()
	d.now++
	d.attempts = append(d.attempts, ds[0].Attempt)
	d.most = max(d.most, d.now)
	var turn chan struct{}
	if d.queued {
		turn = make(chan struct{})
		d.waiting = append(d.waiting, turn)
	}
	d.mu.Unlock()
	if turn != nil {
		<-turn
	}
	defer func() {
		d.mu.Lock()
		d.now--
		d.ended++
		d.mu.Unlock()
	}()
	if d.hold != nil {
		select {
		case <-d.hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if d.down.Load() {
		if err := d.err.Load(); err != nil {
			return *err
		}
		return errors.New("connection refused")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.by == nil {
		d.by = map[string]int{}
	}
	for i := range ds {
		d.by[ds[i].Subscription]++
		d.got = append(d.got, strings.Clone(ds[i].Event.Attr(event.TagID)))
	}
	return nil
}

// release lets the send go on that waits longest.
func (d *downSink) release(t *testing.T) {
	eventually(t, "a send waits", func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		if len(d.waiting) == 0 {
			return false
		}
		close(d.waiting[0])
		d.waiting = d.waiting[1:]
		return true
	})
}

func (d *downSink) Close() error { return nil }

func (d *downSink) Host() string { return d.host }

func (d *downSink) Target() string { return d.target }

func (d *downSink) fail(err error) {
	d.err.Store(&err)
	d.down.Store(true)
}

func (d *downSink) delivered() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.got)
}

// stays checks that something holds for as long as it takes others to do what they should not.
func stays(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(40 * time.Millisecond); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if !ok() {
			t.Fatal("not: " + what)
		}
	}
}

func circuitOf(w *world, name string) CircuitInfo { return w.info(name).Circuit }

// No attempt is spent while the circuit is open, one tells whether the target is back, and a failure of it counts as
// its event's.
func TestOpenCircuitSpendsNoAttempts(t *testing.T) {
	clock := newHandClock()
	w := newWorld(t, Options{Now: clock.now})
	sink := &downSink{}
	sink.down.Store(true)
	s := push("s", "orders", "", sink)
	s.Concurrency = 1
	s.Retry = event.RetryPolicy{Attempts: 100, Schedule: []time.Duration{time.Second}}
	w.apply(specOf(s))
	w.publish("orders", number("e", 50)...)
	eventually(t, "the circuit opens", func() bool { return circuitOf(w, "s").State == "open" })
	stays(t, "ten attempts", func() bool { return sink.tries.Load() == 10 })
	i := w.info("s")
	if i.State != "open" || i.Since == nil || i.Circuit.Next == nil || i.Circuit.Failures != 10 || !strings.Contains(i.Reason, "connection refused") {
		t.Errorf("the state says %+v", i)
	}
	if d := i.Circuit.Next.Sub(*i.Since); d < 4*time.Second || d > 6*time.Second {
		t.Errorf("open for %s at first", d)
	}
	open := 5 * time.Second
	for probe := range 5 {
		clock.forward(w, open/2) // everything parked is due long since
		stays(t, "no attempt while open", func() bool { return sink.tries.Load() == int64(10+probe) })
		clock.forward(w, open)
		eventually(t, "a probe", func() bool { return sink.tries.Load() == int64(11+probe) && circuitOf(w, "s").State == "open" })
		stays(t, "one probe alone", func() bool { return sink.tries.Load() == int64(11+probe) })
		next := circuitOf(w, "s").Next.Sub(clock.now())
		open = min(2*open, 5*time.Minute)
		if next < open*79/100 || next > open*121/100 {
			t.Fatalf("open for %s after probe %d, want %s with jitter", next, probe+1, open)
		}
	}
	if since := circuitOf(w, "s").Since; !since.Equal(*i.Since) {
		t.Errorf("the outage began at %s, it says %s", i.Since, since)
	}
	sink.down.Store(false)
	eventually(t, "all are delivered", func() bool { clock.forward(w, time.Minute); return sink.delivered() == 50 && w.settled("s") })
	if c := circuitOf(w, "s"); c.State != "closed" || w.info("s").State != "running" {
		t.Errorf("at the end %+v", c)
	}
	// 15 failures in all: had each event been tried while the target was down there were hundreds.
	if n := sink.tries.Load(); n != 65 {
		t.Errorf("%d tries for 50 events and 15 failures", n)
	}
}

// What says that the event is at fault, not the target, opens nothing.
func TestRefusalsLeaveTheCircuitClosed(t *testing.T) {
	for _, err := range []error{
		&event.RetryAfter{Err: errors.New("bad request"), Code: 400}, &event.RetryAfter{Err: errors.New("moved"), Code: 302},
		event.Permanent(0, errors.New("cannot be written")), event.Permanent(422, errors.New("no")),
	} {
		w := newWorld(t, Options{})
		sink := &downSink{}
		sink.fail(err)
		s := push("s", "orders", "", sink)
		s.Retry = event.RetryPolicy{Attempts: 30, Schedule: []time.Duration{time.Millisecond}}
		w.apply(specOf(s))
		w.publish("orders", number("e", 30)...)
		eventually(t, "all are dead letters", func() bool { return len(w.ids("s.dead")) == 30 })
		if c := circuitOf(w, "s"); c.State != "closed" {
			t.Errorf("%v: %+v", err, c)
		}
	}
}

// Retry-After keeps an open circuit open for that long, and never for more than a day.
func TestCircuitObeysRetryAfter(t *testing.T) {
	for asked, want := range map[time.Duration][2]time.Duration{
		time.Second:    {4 * time.Second, 6 * time.Second}, // a probe a second would spend an event's attempts in no time
		time.Hour:      {time.Hour, 72 * time.Minute},
		24 * time.Hour: {24 * time.Hour, 24 * time.Hour},
		1 << 62:        {24 * time.Hour, 24 * time.Hour},
	} {
		b := breaker{}
		for range 10 {
			b.failed(1, breakerLimits{10, 5 * time.Second, 5 * time.Minute}, "503", asked)
		}
		if wait := time.Duration(b.next - 1); b.state != circuitOpen || wait < want[0] || wait > want[1] {
			t.Errorf("Retry-After %s: open for %s, want %s", asked, wait, want)
		}
	}
}

// A target that comes back is met by one send, then two, then four: twice as many a second at most.
func TestCircuitRampsUp(t *testing.T) {
	clock := newHandClock()
	w := newWorld(t, Options{Now: clock.now})
	sink := &downSink{}
	sink.down.Store(true)
	s := push("s", "orders", "", sink)
	s.Concurrency = 8
	s.Retry = event.RetryPolicy{Attempts: 100, Schedule: []time.Duration{time.Millisecond}}
	w.apply(specOf(s))
	w.publish("orders", number("e", 200)...)
	eventually(t, "the circuit opens", func() bool { return circuitOf(w, "s").State == "open" && w.info("s").Parked >= 10 })
	stays(t, "no more tries", func() bool { return sink.tries.Load() <= 18 })
	sink.hold = make(chan struct{})
	sink.down.Store(false)
	under := func() int {
		sink.mu.Lock()
		defer sink.mu.Unlock()
		return sink.now
	}
	pass := func() { // one send ends before what follows is looked at
		sink.mu.Lock()
		before := sink.ended
		sink.mu.Unlock()
		sink.hold <- struct{}{}
		eventually(t, "a send ends", func() bool {
			sink.mu.Lock()
			defer sink.mu.Unlock()
			return sink.ended > before
		})
	}
	clock.forward(w, 10*time.Second)
	eventually(t, "a probe", func() bool { return under() == 1 })
	stays(t, "only the probe", func() bool { return under() == 1 })
	for _, limit := range []int{1, 2, 4, 8} {
		for range limit { // successes within the same second allow no more
			pass()
			eventually(t, fmt.Sprintf("%d sends", limit), func() bool { return under() == limit })
		}
		stays(t, fmt.Sprintf("no more than %d", limit), func() bool { return under() == limit })
		clock.forward(w, 1100*time.Millisecond)
		pass()
		eventually(t, "twice as many", func() bool { return under() == min(2*limit, 8) })
	}
	close(sink.hold)
	eventually(t, "all are delivered", func() bool { clock.forward(w, time.Second); return sink.delivered() == 200 && w.settled("s") })
}

// The circuit outlives a new definition with the same target, and is forgotten with another one.
func TestReloadKeepsTheCircuit(t *testing.T) {
	clock := newHandClock()
	w := newWorld(t, Options{Now: clock.now})
	sink := &downSink{target: "http://a/1"}
	sink.down.Store(true)
	s := push("s", "orders", "", sink)
	s.Fingerprint = "1"
	s.Retry = event.RetryPolicy{Attempts: 100, Schedule: []time.Duration{time.Millisecond}}
	w.apply(specOf(s))
	w.publish("orders", number("e", 50)...)
	eventually(t, "the circuit opens", func() bool { return circuitOf(w, "s").State == "open" })
	stays(t, "those under way end", func() bool { return circuitOf(w, "s").State == "open" })
	tries := sink.tries.Load()
	s.Concurrency, s.Fingerprint = 3, "2"
	w.apply(specOf(s))
	stays(t, "the same target: still open", func() bool { return sink.tries.Load() == tries && circuitOf(w, "s").State == "open" })
	other := &downSink{target: "http://b/1"}
	next := push("s", "orders", "", other)
	next.Retry, next.Fingerprint = s.Retry, "3"
	w.apply(specOf(next))
	eventually(t, "another target gets them all", func() bool { clock.forward(w, time.Second); return other.delivered() == 50 && w.settled("s") })
	if n := sink.tries.Load(); n != tries {
		t.Errorf("the old target was tried %d more times", n-tries)
	}
}

// Pause, seek, resume and drain beside an open circuit: nothing is lost and nothing is stuck.
func TestOperatingBesideAnOpenCircuit(t *testing.T) {
	clock := newHandClock()
	w := newWorld(t, Options{Now: clock.now})
	sink := &downSink{}
	sink.down.Store(true)
	s := push("s", "orders", "", sink)
	s.Retry = event.RetryPolicy{Attempts: 100, Schedule: []time.Duration{time.Millisecond}}
	w.apply(specOf(s))
	w.publish("orders", number("e", 50)...)
	eventually(t, "the circuit opens", func() bool { return circuitOf(w, "s").State == "open" })
	if err := w.e.PauseFor(t.Context(), "s", "they move house"); err != nil {
		t.Fatal(err)
	}
	if i := w.info("s"); i.State != "paused" || i.Reason != "they move house" || i.Since == nil {
		t.Errorf("paused: %+v", i)
	}
	stays(t, "those under way end", func() bool { return true })
	tries := sink.tries.Load()
	clock.forward(w, time.Hour)
	stays(t, "paused while the circuit would be tried", func() bool { return sink.tries.Load() == tries })
	if err := w.e.Seek(t.Context(), "s", event.Start{At: event.Earliest}); err != nil {
		t.Fatal(err)
	}
	w.restart()
	if i := w.info("s"); i.State != "paused" || i.Reason != "they move house" {
		t.Errorf("after a restart: %+v", i)
	}
	if err := w.e.Resume(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the circuit opens again", func() bool { return circuitOf(w, "s").State == "open" })
	sink.down.Store(false)
	if err := w.e.Resume(t.Context(), "s"); err != nil { // somebody knows that it is back
		t.Fatal(err)
	}
	eventually(t, "it is tried at once", func() bool { return sink.delivered() > 0 })
	eventually(t, "all are delivered", func() bool { clock.forward(w, time.Second); return w.settled("s") })
	sink.mu.Lock()
	defer sink.mu.Unlock()
	slices.Sort(sink.got)
	if got := slices.Compact(sink.got); len(got) != 50 {
		t.Errorf("%d of 50 events came", len(got))
	}
}

// batching is a sink that takes several events at once.
type batching struct {
	*downSink
	wait time.Duration
}

func (b batching) Batch() (events, bytes int, wait time.Duration) { return 10, 1 << 20, b.wait }

func (b batching) Deliver(ctx context.Context, ds []event.Delivery) error {
	b.mu.Lock()
	b.sizes = append(b.sizes, len(ds))
	b.mu.Unlock()
	return b.downSink.Deliver(ctx, ds)
}

// What finds out whether a target of batches is back is one event, not a batch of them, unless it is one that is sent
// again as it was; and nothing is stuck behind it.
func TestCircuitBesideBatches(t *testing.T) {
	clock := newHandClock()
	w := newWorld(t, Options{Now: clock.now})
	sink := batching{&downSink{}, 0}
	sink.down.Store(true)
	s := push("s", "orders", "", sink)
	s.Concurrency, s.Rate = 2, 10_000
	s.Retry = event.RetryPolicy{Attempts: 1000, Schedule: []time.Duration{time.Hour}}
	w.apply(specOf(s))
	w.publish("orders", number("e", 200)...)
	eventually(t, "the circuit opens", func() bool { clock.forward(w, 10*time.Millisecond); return circuitOf(w, "s").State == "open" })
	stays(t, "those under way end", func() bool { return true })
	tries := sink.tries.Load()
	clock.forward(w, 7*time.Second)
	eventually(t, "a probe", func() bool { return sink.tries.Load() == tries+1 })
	sink.mu.Lock()
	if n := sink.sizes[len(sink.sizes)-1]; n != 1 {
		t.Errorf("the probe has %d events", n)
	}
	sink.mu.Unlock()
	sink.down.Store(false)
	eventually(t, "all are delivered", func() bool { clock.forward(w, time.Minute); return sink.delivered() == 200 && w.settled("s") })
}

// A send that nothing limits passes the gate without an allocation, and one that is limited as well.
func TestPassingTheGateAllocatesNothing(t *testing.T) {
	if raceEnabled {
		return // the race detector allocates
	}
	for _, limits := range []event.Host{{}, {Name: "h", Concurrency: 8, Rate: 1e6}} {
		w := newWorld(t, Options{})
		spec := push("s", "orders", "", &downSink{host: "h:1"})
		if limits.Name != "" {
			spec.Rate = 1e6
		}
		all := specOf(spec)
		all.Hosts = []event.Host{limits}
		w.apply(all)
		s := w.e.plan.Load().subs["s"]
		c := s.config.Load()
		if limits.Name != "" {
			s.gate.rate.set(1e6, w.e.now().UnixNano())
			s.gate.rate.tokens, c.host.rate.tokens = 1000, 1000
		}
		var sent sender
		allocs := testing.AllocsPerRun(100, func() {
			s.mu.Lock()
			if !s.enter(c, &sent.pass) {
				t.Error("it is shut")
			}
			s.mu.Unlock()
			v := verdictOf(&sent)
			down := sent.pass.hostPassed(s, v)
			s.mu.Lock()
			s.passed(c, &sent.pass, v, down)
			s.mu.Unlock()
		})
		if allocs > 0 {
			t.Errorf("%v allocations a send with %+v", allocs, limits)
		}
	}
}

// A subscription that waits for more events to go with its first gets its turn at a host that others keep busy.
func TestWaitingForABatchKeepsItsTurn(t *testing.T) {
	w := newWorld(t, Options{})
	busy := &downSink{host: "h:1", hold: make(chan struct{})}
	calm := batching{&downSink{host: "h:1"}, 5 * time.Millisecond}
	b := hosted("calm", calm)
	b.Topic = "rare"
	spec := specOf(hosted("busy", busy), b)
	spec.Hosts = []event.Host{{Name: "h", Concurrency: 1}}
	w.apply(spec)
	w.publish("orders", number("e", 500)...)
	w.publish("rare", "a")
	sent := 0
	eventually(t, "the calm one gets through", func() bool {
		select {
		case busy.hold <- struct{}{}:
			sent++
		case <-time.After(time.Millisecond):
		}
		return calm.delivered() == 1
	})
	if sent > 100 {
		t.Errorf("the busy one has sent %d first", sent)
	}
	close(busy.hold)
}
