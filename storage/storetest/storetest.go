// Package storetest holds the promises of a storage.Store, for every implementation: Run is the suite, Ledger
// what tests with crashes and disk faults count with.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// A Harness makes stores to be tested.
type Harness struct {
	// New makes an empty place for a store. open opens the store there with a clock; it is called again
	// after Close.
	New func(t *testing.T) (open func(now func() time.Time) (storage.Store, error))
	// Maintain does now what a store does by itself now and then: drop by age, expire ids.
	Maintain func(ctx context.Context, s storage.Store) error
}

// Run tests the promises.
func Run(t *testing.T, h Harness) {
	for _, c := range []struct {
		name string
		test func(t *testing.T, e *env)
	}{
		{"DenseOffsets", denseOffsets},
		{"Atomic", atomic},
		{"Refusal", refusal},
		{"Dedupe", dedupe},
		{"DedupeWithinBatch", dedupeWithinBatch},
		{"DedupeConcurrent", dedupeConcurrent},
		{"Read", read},
		{"Since", since},
		{"Wait", wait},
		{"RetainBytes", retainBytes},
		{"RetainAge", retainAge},
		{"RetainEvents", retainEvents},
		{"Reject", reject},
		{"Held", held},
		{"Trim", trim},
		{"DropLog", dropLog},
		{"Tables", tables},
		{"Concurrent", concurrent},
		{"Context", contexts},
		{"Closed", closed},
		{"ClockBack", clockBack},
		{"ClockForward", clockForward},
		{"Claim", claim},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := &env{t: t, h: h, ctx: t.Context(), open: h.New(t)}
			e.clock.t = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
			e.start()
			defer func() { _ = e.s.Close() }()
			c.test(t, e)
		})
	}
}

// An env is one test's store.
type env struct {
	t     *testing.T
	h     Harness
	ctx   context.Context
	open  func(now func() time.Time) (storage.Store, error)
	s     storage.Store
	clock fakeClock
}

type fakeClock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *fakeClock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *fakeClock) step(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func (e *env) start() {
	e.t.Helper()
	s, err := e.open(e.clock.now)
	if err != nil {
		e.t.Fatal(err)
	}
	e.s = s
}

func (e *env) restart() {
	e.t.Helper()
	if err := e.s.Close(); err != nil {
		e.t.Fatal(err)
	}
	e.start()
}

func (e *env) maintain() {
	e.t.Helper()
	e.ok(e.h.Maintain(e.ctx, e.s))
}

func (e *env) ok(err error) {
	e.t.Helper()
	if err != nil {
		e.t.Fatal(err)
	}
}

func (e *env) is(err, want error) {
	e.t.Helper()
	if !errors.Is(err, want) {
		e.t.Fatalf("error %v, want %v", err, want)
	}
}

func (e *env) log(topic uint32, o storage.LogOptions) storage.Log {
	e.t.Helper()
	if o.Bytes == 0 {
		o.Bytes = 1 << 30
	}
	l, err := e.s.OpenLog(e.ctx, storage.LogID{Topic: topic, Partition: 4}, o)
	e.ok(err)
	return l
}

func entry(id string, size int) storage.Entry {
	return storage.Entry{Event: &event.Event{ID: id, Source: "/s", Type: "t", Data: make([]byte, size)}}
}

// client makes an entry that takes part in the dedupe window.
func client(id, content string) storage.Entry {
	e := storage.Entry{Event: &event.Event{ID: id, Source: "/s", Type: "t", Data: []byte(content), ClientID: true}, Client: true}
	h := fnv.New128a()
	h.Write([]byte("/s\x00" + id))
	h.Sum(e.ID[:0])
	c := fnv.New64a()
	c.Write([]byte(content))
	e.Content = c.Sum64()
	return e
}

func to(topic uint32, entries ...storage.Entry) storage.Append {
	return storage.Append{Log: storage.LogID{Topic: topic, Partition: 4}, Entries: entries}
}

func (e *env) commit(appends ...storage.Append) (*storage.Batch, error) {
	b := &storage.Batch{Appends: appends}
	return b, e.s.Commit(e.ctx, b)
}

func (e *env) add(topic uint32, entries ...storage.Entry) []storage.Entry {
	e.t.Helper()
	b, err := e.commit(to(topic, entries...))
	e.ok(err)
	return b.Appends[0].Entries
}

func (e *env) ids(l storage.Log, from event.Offset) []string {
	e.t.Helper()
	var ids []string
	next := from
	e.ok(ReadAll(e.ctx, l, from, func(r event.Record) {
		if r.Offset() != next {
			e.t.Fatalf("offset %d, want %d", r.Offset(), next)
		}
		next++
		ids = append(ids, r.Attr(event.TagID))
	}))
	return ids
}

func (e *env) same(got, want any) {
	e.t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		e.t.Fatalf("got %v, want %v", got, want)
	}
}
