package engine

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/filters"
	"github.com/millrace/millrace/storage"
)

// quiet is a sink that does nothing.
type quiet struct{}

func (quiet) Deliver(context.Context, []event.Delivery) error { return nil }
func (quiet) Close() error                                    { return nil }

// blockOf packs events into a block, as the store would.
func blockOf(first event.Offset, n int) *storage.Block {
	b := &storage.Block{First: first, Count: n}
	for i := range n {
		ev := event.Event{ID: fmt.Sprint(i), Source: "/s", Type: "order.created", PartitionKey: fmt.Sprint("key-", i), Data: []byte(`{"total":250,"country":"DE"}`)}
		at := len(b.Records)
		b.Records = ev.AppendRecord(b.Records)
		event.Record(b.Records[at:]).SetPlace(event.Position{Offset: first + event.Offset(i)}, 1)
	}
	return b
}

// Matching an event, queueing it, taking it, delivering and settling it: nothing is allocated for it.
func TestHandingOnAllocatesNothing(t *testing.T) {
	if raceEnabled {
		return // the race detector allocates; the same test runs without it
	}
	w := newWorld(t, Options{Flush: 1 << 40, Queue: 1 << 12, QueueBytes: 1 << 30})
	var subs []SubscriptionSpec
	for i := range 20 {
		s := push(fmt.Sprintf("s%d", i), "orders", fmt.Sprintf(`type == "order.created" && data.total > %d`, i*20), quiet{})
		s.DeadLetter = "dead"
		s.Order = []event.Order{event.Unordered, event.ByKey}[i%2]
		subs = append(subs, s)
	}
	w.apply(specOf(subs...))
	p := w.e.plan.Load().topics["orders"].parts[0]
	all := p.feeds.Load().subs
	for _, s := range all {
		s.mu.Lock()
		s.ended = true // nobody takes from the queues but this test
		s.mu.Unlock()
	}
	const events = 64
	blocks := make([]*storage.Block, 60)
	for i := range blocks {
		blocks[i] = blockOf(event.Offset(i*events), events)
	}
	var scratch filters.Scratch
	var hits []int
	sender := &sender{}
	next := 0
	round := func() {
		hits = w.e.handOn(p, blocks[next], &scratch, hits)
		next++
		for _, s := range all {
			c := s.config.Load()
			s.mu.Lock()
			for it, ok := s.next(); ok; it, ok = s.next() {
				s.mu.Unlock()
				sender.begin(job{it: it, rec: it.rec}, c.limits)
				sender.deliver(t.Context(), s, c)
				s.mu.Lock()
				s.sent(t.Context(), c, sender)
			}
			s.mu.Unlock()
		}
	}
	for range 5 { // rings and lists grow to their size
		round()
	}
	delivered := all[0].c.Delivered
	allocs := testing.AllocsPerRun(50, round)
	if got := all[0].c.Delivered - delivered; got < 50*events {
		t.Fatalf("only %d events passed", got)
	}
	if allocs > 0 {
		t.Errorf("%v allocations for %d events", allocs, events)
	}
	for _, s := range all {
		s.mu.Lock()
		s.ended = false
		s.mu.Unlock()
	}
}

// quietBatches takes batches of 50 and does nothing.
type quietBatches struct{ quiet }

func (quietBatches) Batch() (int, int, time.Duration) { return 50, 1 << 20, time.Millisecond }

// The same where events go out in batches: gathering, delivering and settling them.
func TestBatchesAllocateNothing(t *testing.T) {
	if raceEnabled {
		return // as above
	}
	w := newWorld(t, Options{Flush: 1 << 40, Queue: 1 << 12, QueueBytes: 1 << 30})
	w.apply(specOf(push("s", "orders", "", quietBatches{})))
	p := w.e.plan.Load().topics["orders"].parts[0]
	s := p.feeds.Load().subs[0]
	c := s.config.Load()
	s.mu.Lock()
	s.ended = true // nobody takes from the queue but this test; and a sender does not wait for more
	s.mu.Unlock()
	const events = 64
	blocks := make([]*storage.Block, 60)
	for i := range blocks {
		blocks[i] = blockOf(event.Offset(i*events), events)
	}
	var scratch filters.Scratch
	var hits []int
	sender := &sender{}
	next, batches := 0, 0
	round := func() {
		hits = w.e.handOn(p, blocks[next], &scratch, hits)
		next++
		s.mu.Lock()
		defer s.mu.Unlock()
		for {
			s.enter(c, &sender.pass)
			j, ok := s.takeJob(c, nil)
			if !ok {
				s.withdraw(&sender.pass)
				return
			}
			sender.begin(j, c.limits)
			s.gather(c, sender)
			s.mu.Unlock()
			sender.deliver(t.Context(), s, c)
			s.observe(sender, 0)
			s.mu.Lock()
			s.passed(c, &sender.pass, verdictOf(sender), false)
			s.sent(t.Context(), c, sender)
			batches++
		}
	}
	for range 5 {
		round()
	}
	delivered, before := s.c.Delivered, batches
	allocs := testing.AllocsPerRun(50, round)
	if got, n := s.c.Delivered-delivered, batches-before; got < 50*events || n != 2*51 {
		t.Fatalf("%d events passed in %d batches; want 50 and 14 each time", got, n)
	}
	if allocs > 0 {
		t.Errorf("%v allocations for %d events in two batches", allocs, events)
	}
	s.mu.Lock()
	s.ended = false
	s.mu.Unlock()
}

// Publishing one event with a client's id allocates nothing beyond what the store needs for a commit.
func TestAdmittingAllocatesNothing(t *testing.T) {
	if raceEnabled {
		return // as above
	}
	w := newWorld(t, Options{})
	w.apply(Spec{Topics: []event.Topic{{Name: "orders"}}})
	topic := w.e.plan.Load().topics["orders"]
	evs := []event.Event{{ID: "a", Source: "/s", Type: "t", Time: "2026-01-01T00:00:00Z", ClientID: true, Data: []byte(`{"a":1}`)}}
	p := publications.Get().(*publication)
	allocs := testing.AllocsPerRun(100, func() {
		for i := range evs {
			if err := w.e.admit(topic, p, &evs[i]); err != nil {
				t.Fatal(err)
			}
		}
		p.reset()
	})
	if allocs > 0 {
		t.Errorf("%v allocations to admit an event", allocs)
	}
}
