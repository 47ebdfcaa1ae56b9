package engine

import (
	"context"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// inLine waits until n consumers stand in line.
func (w *world) inLine(name string, n int) {
	w.t.Helper()
	s := w.e.plan.Load().subs[name]
	eventually(w.t, fmt.Sprintf("%d consumers wait", n), func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.pullers.Len() == n
	})
}

// lossOf settles and returns why each lease was not held.
func (w *world) lossOf(name string, ids []string, how event.Settling) (why []event.LostWhy) {
	w.t.Helper()
	lost, err := w.e.Settle(w.t.Context(), name, ids, how)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, l := range lost {
		why = append(why, l.Why)
	}
	return why
}

// Those who wait are served in the order in which they came, each with its share: one that asks for much leaves the
// others theirs.
func TestConsumersShare(t *testing.T) {
	w := newWorld(t, Options{})
	w.apply(specOf(pullSpec("s", "orders", "")))
	const consumers, events = 8, 64
	got := make([][]event.Lease, consumers)
	var wg sync.WaitGroup
	for i := range consumers {
		wg.Go(func() {
			var err error
			if got[i], err = w.e.Pull(t.Context(), "s", 10_000, time.Minute); err != nil {
				t.Error(err)
			}
		})
		w.inLine("s", i+1)
	}
	w.publish("orders", number("e", events)...) // one block: all are there when the first looks
	wg.Wait()
	total, next := 0, 0
	for i, ls := range got {
		total += len(ls)
		if len(ls) == 0 || len(ls) > events/2 {
			t.Errorf("consumer %d of %d got %d of %d events", i, consumers, len(ls), events)
		}
		for _, id := range eventIDs(ls) {
			if id != fmt.Sprintf("e%05d", next) {
				t.Errorf("consumer %d got %s, want e%05d: they are served in line", i, id, next)
			}
			next++
		}
	}
	rest := w.pullAll("s")
	if total+len(rest) != events {
		t.Errorf("%d and %d of %d", total, len(rest), events)
	}
}

// Nobody starves while others come again and again, and what a consumer leaves by going away is there for the next.
func TestNoConsumerStarves(t *testing.T) {
	w := newWorld(t, Options{})
	w.apply(specOf(pullSpec("s", "orders", "")))
	served := make(chan int, 100)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for {
				got, err := w.e.Pull(ctx, "s", 1, time.Minute)
				if err != nil {
					return
				}
				served <- i
				if _, err := w.e.Ack(t.Context(), "s", leaseIDs(got)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	w.inLine("s", 4)
	count := map[int]int{}
	for i := range 40 {
		w.publish("orders", fmt.Sprint(i))
		count[<-served]++
		w.inLine("s", 4)
	}
	for i := range 4 {
		if count[i] != 10 {
			t.Errorf("consumer %d was served %d of 40 times", i, count[i])
		}
	}
	gone, leave := context.WithCancel(t.Context())
	last := make(chan error, 1)
	cancel()
	wg.Wait()
	go func() {
		_, err := w.e.Pull(gone, "s", 1, time.Minute)
		last <- err
	}()
	w.inLine("s", 1)
	leave()
	if err := <-last; err == nil {
		t.Error("a consumer that went away got an answer")
	}
	w.publish("orders", "x")
	if got := eventIDs(w.pull("s", 1)); got[0] != "x" || w.info("s").Leased != 1 {
		t.Errorf("%v, %d leased", got, w.info("s").Leased)
	}
}

// Consumers that wait are woken one by one: an event for one costs the others nothing.
func TestOneEventWakesOneConsumer(t *testing.T) {
	w := newWorld(t, Options{})
	w.apply(specOf(pullSpec("s", "orders", "")))
	s := w.e.plan.Load().subs["s"]
	ws := make([]*puller, 3)
	for i := range ws {
		if _, ws[i] = s.pull(t.Context(), s.config.Load(), 1, true); ws[i] == nil {
			t.Fatal("it does not wait")
		}
	}
	w.publish("orders", "a")
	eventually(t, "the first is called", func() bool { return len(ws[0].wake) == 1 })
	if len(ws[1].wake)+len(ws[2].wake) != 0 {
		t.Error("others are called as well")
	}
	s.stepOut(ws[0]) // it gives up at that moment: the next is called
	eventually(t, "the second is called", func() bool { return len(ws[1].wake) == 1 })
	s.stepOut(ws[1])
	s.stepOut(ws[2])
}

// What never reached its consumer is there for the next at once, as if it had not been handed out.
func TestUnpull(t *testing.T) {
	w := newWorld(t, Options{})
	w.apply(specOf(pullSpec("s", "orders", "")))
	w.publish("orders", "a", "b")
	got := w.pull("s", 2)
	if err := w.e.Unpull("s", leaseIDs(got)); err != nil {
		t.Fatal(err)
	}
	again := w.pull("s", 2)
	if ids := eventIDs(again); !slices.Equal(ids, []string{"a", "b"}) || again[0].Attempt != 1 {
		t.Errorf("%v, attempt %d", ids, again[0].Attempt)
	}
	if why := w.lossOf("s", leaseIDs(got), event.Settling{}); len(why) != 2 {
		t.Errorf("leases that were taken back were acknowledged: %v", why)
	}
	w.ack("s", again)
}

// looks is a context that ends at the nth look at it.
type looks struct {
	context.Context
	left atomic.Int64
}

func (c *looks) Err() error {
	if c.left.Add(-1) < 0 {
		return context.Canceled
	}
	return nil
}

// At whatever moment a consumer goes away, deliveries are lent to nobody but him whom they are handed to.
func TestNothingIsLeasedBesideAnError(t *testing.T) {
	w := newWorld(t, Options{})
	w.apply(specOf(pullSpec("s", "orders", "")))
	for _, first := range []bool{true, false} { // the event is there already, or he waits for it
		served := 0
		for n := range 6 {
			ctx := &looks{Context: t.Context()}
			ctx.left.Store(int64(n))
			if first {
				w.publish("orders", fmt.Sprint(first, n))
				eventually(t, "there is something to pull", func() bool {
					s := w.e.plan.Load().subs["s"]
					s.mu.Lock()
					defer s.mu.Unlock()
					return s.pullReady(s.config.Load()) == 1
				})
			}
			var got []event.Lease
			var err error
			pulled := make(chan struct{})
			go func() {
				defer close(pulled)
				got, err = w.e.Pull(ctx, "s", 10, time.Minute)
			}()
			if !first {
				eventually(t, "he waits or is gone", func() bool {
					s := w.e.plan.Load().subs["s"]
					s.mu.Lock()
					defer s.mu.Unlock()
					select {
					case <-pulled:
						return true
					default:
						return s.pullers.Len() == 1
					}
				})
				w.publish("orders", fmt.Sprint(first, n))
			}
			<-pulled
			if err != nil && len(got) > 0 || w.info("s").Leased != len(got) {
				t.Errorf("event first %v, gone at look %d: %d leases and %v, %d leased", first, n, len(got), err, w.info("s").Leased)
			}
			served += len(got)
			w.ack("s", append(got, w.pull("s", 1-len(got))...))
		}
		if served == 0 || served == 6 {
			t.Errorf("event first %v: served %d of 6 times: the test shows nothing", first, served)
		}
	}
}

// A lease is settled once; whoever comes too late is refused and told why, whatever has become of the delivery.
func TestWhyLeasesAreLost(t *testing.T) {
	w := newWorld(t, Options{})
	fast := pullSpec("fast", "orders", "")
	fast.Deliver.AckDeadline = 20 * time.Millisecond
	w.apply(specOf(pullSpec("s", "orders", ""), pullSpec("other", "orders", ""), fast))
	w.publish("orders", "a")
	ack, nack := event.Settling{}, event.Settling{Verb: event.Nack}
	is := func(what string, got []event.LostWhy, want ...event.LostWhy) {
		t.Helper()
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}

	one := leaseIDs(w.pull("s", 1))
	is("another's", w.lossOf("other", one, ack), event.LostForeign)
	is("given back", w.lossOf("s", one, nack))
	is("after that", w.lossOf("s", one, ack), event.LostReturned)
	two := leaseIDs(w.pull("s", 1))
	is("given back, leased anew", w.lossOf("s", one, nack), event.LostReturned)
	is("by deadline 0", w.lossOf("s", two, event.Settling{Verb: event.Extend}))
	three := leaseIDs(w.pull("s", 1))
	is("the newest", w.lossOf("s", three, ack))
	is("twice", w.lossOf("s", three, ack), event.LostSettled)
	is("extended after the end", w.lossOf("s", three, event.Settling{Verb: event.Extend, Deadline: time.Minute}), event.LostSettled)
	is("given back, settled by another", w.lossOf("s", append(one, two...), ack), event.LostReturned, event.LostReturned)
	is("twice in one request", w.lossOf("s", append(three, three...), ack), event.LostSettled, event.LostSettled)

	old := leaseIDs(w.pull("fast", 1))
	eventually(t, "it expires", func() bool { return w.info("fast").Leased == 0 })
	is("expired", w.lossOf("fast", old, ack), event.LostExpired)
	next := w.pull("fast", 1)
	is("expired, leased anew", w.lossOf("fast", old, ack), event.LostExpired)
	if next[0].Attempt != 2 {
		t.Errorf("attempt %d", next[0].Attempt)
	}
	eventually(t, "it is settled at last", func() bool { return len(w.ack("fast", w.pull("fast", 1))) == 0 })
	is("expired, settled by another", w.lossOf("fast", old, ack), event.LostExpired)

	moved := leaseIDs(w.pull("other", 1))
	if err := w.e.Seek(t.Context(), "other", event.Start{At: event.Earliest}); err != nil {
		t.Fatal(err)
	}
	is("moved", w.lossOf("other", moved, ack), event.LostSeek)
	before := leaseIDs(w.pull("other", 1))
	w.restart()
	w.pull("other", 1)
	is("of an earlier run, leased anew", w.lossOf("other", before, ack), event.LostRestart)
}

// Leases that nobody handed out do nothing, however many and however long they are.
func TestInventedLeases(t *testing.T) {
	w := newWorld(t, Options{})
	w.apply(specOf(pullSpec("s", "orders", "")))
	w.publish("orders", "a")
	genuine := leaseIDs(w.pull("s", 1))[0]
	ids := []string{"", "x", strings.Repeat("A", 1<<20), strings.Repeat("A", len(genuine)), genuine + "A", genuine[:len(genuine)-1], "\x00", strings.Repeat("ÿ", len(genuine)/2)}
	raw, err := base64.RawURLEncoding.DecodeString(genuine)
	if err != nil {
		t.Fatal(err)
	}
	for i := range raw { // each field, and the MAC
		b := slices.Clone(raw)
		b[i] ^= 1
		ids = append(ids, base64.RawURLEncoding.EncodeToString(b))
	}
	for range 10_000 - len(ids) {
		ids = append(ids, genuine[:20])
	}
	for _, how := range []event.Settling{{}, {Verb: event.Nack}, {Verb: event.Extend, Deadline: time.Minute}} {
		why := w.lossOf("s", ids, how)
		if len(why) != len(ids) {
			t.Fatalf("%d of %d refused", len(why), len(ids))
		}
		for i, r := range why {
			if r != event.LostUnknown {
				t.Errorf("%.90q is %s", ids[i], r)
			}
		}
	}
	if why := w.lossOf("s", []string{genuine}, event.Settling{}); len(why) != 0 {
		t.Errorf("the real one: %v", why)
	}
	for _, bad := range []event.Settling{{Verb: event.Nack, Delay: -1}, {Verb: event.Nack, Delay: longestDelay + 1}, {Verb: event.Extend, Deadline: -1}, {Verb: event.Extend, Deadline: longestDeadline + 1}} {
		if _, err := w.e.Settle(t.Context(), "s", []string{genuine}, bad); err == nil || !strings.Contains(err.Error(), "want") {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

// Acknowledgements of many consumers share commits.
func TestAcksShareCommits(t *testing.T) {
	w := newWorld(t, Options{})
	w.apply(specOf(pullSpec("s", "orders", "")))
	w.publish("orders", number("e", 40)...)
	got := w.pull("s", 40)
	s := w.e.plan.Load().subs["s"]
	s.commits.Lock() // a commit is under way
	var wg sync.WaitGroup
	for i := range got {
		wg.Go(func() { w.ack("s", got[i:i+1]) })
	}
	eventually(t, "they gather", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.acks != nil && len(s.acks.sts) >= 38 // the first leads, and may have gone alone
	})
	s.commits.Unlock()
	wg.Wait()
	if i := w.info("s"); i.Delivered != 40 || i.Outstanding != 0 || i.Leased != 0 {
		t.Errorf("%+v", i)
	}
}
