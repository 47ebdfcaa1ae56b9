package engine

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// Keys whose target is slow hold up nobody else: neither several of them, none of which fills the queue alone, nor one
// whose events are large, so that few of them are as many bytes as the queue may hold.
func TestSlowKeysHoldUpThemselvesAlone(t *testing.T) {
	for _, c := range []struct {
		name               string
		o                  Options
		keys, events, size int
	}{
		{"several keys", Options{Queue: 64}, 6, 50, 10},
		{"large events", Options{QueueBytes: 64 << 10}, 1, 40, 8 << 10},
		{"large events of several keys", Options{QueueBytes: 64 << 10}, 6, 10, 8 << 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, c.o)
			slow := make(chan struct{}, c.keys)
			mend := sync.OnceFunc(func() { close(slow) })
			t.Cleanup(mend)
			var quick atomic.Int32
			sink := newKeyed(t, func(d event.Delivery) error {
				if strings.HasPrefix(d.Event.Attr(event.TagPartitionKey), "slow") {
					<-slow
				} else {
					quick.Add(1)
				}
				return nil
			})
			w.apply(specOf(ordered("s", sink)))
			data := []byte(`"` + strings.Repeat("x", c.size) + `"`)
			publish := func(key, id string) {
				evs := []event.Event{{ID: id, ClientID: true, PartitionKey: key, Data: data}}
				if err := w.e.Publish(t.Context(), "orders", evs, make([]event.Position, 1)); err != nil {
					t.Fatal(err)
				}
			}
			for i := range c.events {
				for k := range c.keys {
					publish(fmt.Sprintf("slow%d", k), fmt.Sprintf("%d-%d", k, i))
				}
			}
			for i := range 20 {
				publish(fmt.Sprintf("k%d", i), fmt.Sprintf("quick%d", i))
			}
			eventually(t, "the other keys' events are delivered", func() bool { return quick.Load() == 20 })
			for range 3 * c.keys { // each goes on a little: what became rows is read back, and must not fill the queue either
				slow <- struct{}{}
			}
			for i := range 20 {
				publish(fmt.Sprintf("k%d", i), fmt.Sprintf("quick2-%d", i))
			}
			eventually(t, "the other keys' next events are delivered", func() bool { return quick.Load() == 40 })
			mend()
			eventually(t, "all is settled", func() bool { return w.settled("s") && w.idle("s") })
			if got := len(sink.ids()); got != 40+c.keys*c.events {
				t.Errorf("%d deliveries of %d events", got, 40+c.keys*c.events)
			}
		})
	}
}

// tampered is a store whose commits fail while refuse says so.
type tampered struct {
	storage.Store
	refuse func(*storage.Batch) error
}

func (s *tampered) Commit(ctx context.Context, b *storage.Batch) error {
	if err := s.refuse(b); err != nil {
		return err
	}
	return s.Store.Commit(ctx, b)
}

// A seek that the store refuses moves nothing, and what is parked is counted as it is: with a wrong count the next
// start would find nothing to do and leave the rows where they are.
func TestSeekThatIsRefusedMovesNothing(t *testing.T) {
	var refuse, down atomic.Bool
	down.Store(true)
	w := &world{t: t, fs: vfs.NewMem()}
	w.wrap = func(s storage.Store) storage.Store {
		return &tampered{s, func(b *storage.Batch) error {
			if refuse.Load() && writes(b, tableSubs) {
				return event.ErrUnavailable
			}
			return nil
		}}
	}
	w.open()
	defer w.stop()
	sink := newKeyed(t, func(event.Delivery) error {
		if down.Load() {
			return errors.New("down")
		}
		return nil
	})
	s := ordered("s", sink)
	s.Retry = event.RetryPolicy{Attempts: event.Unlimited, Schedule: []time.Duration{time.Hour}} // each tries once, then what is counted stands still
	w.apply(specOf(s))
	w.publishKeys("orders", "a/1", "b/2", "a/3", "c/4", "a/5")
	eventually(t, "all are parked, or behind those", func() bool { return w.info("s").Parked == 5 && w.rows(tableParked) == 3 })
	before := w.info("s")
	refuse.Store(true)
	if err := w.e.Seek(t.Context(), "s", event.Start{At: event.Earliest}); !errors.Is(err, event.ErrUnavailable) {
		t.Fatal(err)
	}
	if i := w.info("s"); i.Parked != 5 || i.ParkedBytes != before.ParkedBytes || i.Lag != 0 || i.Outstanding != 0 {
		t.Errorf("after a seek that was refused: %+v", i)
	}
	w.publishKeys("orders", "d/6")
	eventually(t, "another is parked", func() bool { return w.info("s").Parked == 6 })
	refuse.Store(false)
	w.restart()
	if i := w.info("s"); i.Parked != 6 {
		t.Errorf("%d parked after a restart, want 6", i.Parked)
	}
	down.Store(false)
	if err := w.e.Seek(t.Context(), "s", event.Start{At: event.Earliest}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all is delivered", func() bool { return w.settled("s") && w.idle("s") && len(sink.ids()) >= 6 })
	if i := w.info("s"); i.ParkedBytes != 0 || w.rows(tableParked)+w.rows(tableLanes) != 0 {
		t.Errorf("rows are left behind: %+v", i)
	}
}

// What became too old while it waited is not all read into memory when its dead letters cannot be written.
func TestExpiredEventsAreFetchedAsTheyAreWritten(t *testing.T) {
	var refuse atomic.Bool
	w := &world{t: t, fs: vfs.NewMem(), o: Options{CircuitFailures: -1}}
	w.wrap = func(s storage.Store) storage.Store {
		return &tampered{s, func(b *storage.Batch) error {
			if refuse.Load() && len(b.Appends) > 0 {
				return event.ErrFull
			}
			return nil
		}}
	}
	w.open()
	t.Cleanup(w.stop)
	sink := &recorder{answer: func(event.Delivery) error { return errors.New("down") }}
	s := push("s", "orders", "", sink)
	s.Concurrency = 64
	s.Retry = event.RetryPolicy{Attempts: event.Unlimited, Schedule: []time.Duration{time.Minute}}
	w.apply(specOf(s))
	const n = 4 * moveEvents
	w.publish("orders", number("e", n)...)
	eventually(t, "all are parked", func() bool { return w.info("s").Parked == n })
	if err := w.e.Pause(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	s.Retry.MaxAge, s.Fingerprint = time.Millisecond, "short-lived"
	w.apply(specOf(s))
	refuse.Store(true)
	if err := w.e.Resume(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	at := w.e.plan.Load().subs["s"]
	held := func() int {
		at.mu.Lock()
		defer at.mu.Unlock()
		return len(at.lanes.moving)
	}
	later := func() { at.tick(t.Context(), w.e.now().Add(2*time.Minute)) } // when all are due
	eventually(t, "the first are fetched", func() bool { later(); return held() > 0 })
	for range n / dueBatch {
		later()
	}
	if got := held(); got >= moveEvents+dueBatch {
		t.Errorf("%d in memory", got)
	}
	refuse.Store(false)
	eventually(t, "all are given up", func() bool { later(); return w.settled("s") && w.info("s").DeadLetters == n })
}

// An event that is there twice, as it is after a seek back and a redrive, and fails twice at the same time, stays
// there twice and is counted so.
func TestTwinsParkedAtOnce(t *testing.T) {
	w := newWorld(t, Options{})
	w.apply(specOf(push("s", "orders", "", &recorder{})))
	w.publish("orders", "a")
	eventually(t, "it is delivered", func() bool { return w.settled("s") })
	s := w.e.plan.Load().subs["s"]
	rec := w.records("orders")[0]
	due := w.e.now().Add(time.Hour).UnixNano()
	var sts []settlement
	for range 2 {
		twin := &parkedEvent{due: 1}
		sts = append(sts, settlement{it: item{rec: rec, parked: twin, gen: s.gen}, park: &parkedEvent{due: due, attempt: 1}})
	}
	if err := s.settle(t.Context(), sts); err != nil {
		t.Fatal(err)
	}
	if rows := w.rows(tableParked); rows != 2 {
		t.Errorf("%d rows, want 2", rows)
	}
}
