package engine

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// stuckCommits holds up commits that settle something while it is told to, and then passes or refuses them.
type stuckCommits struct {
	storage.Store
	stick atomic.Bool
	begun chan struct{}
	end   chan error
}

func (s *stuckCommits) Commit(ctx context.Context, b *storage.Batch) error {
	if slices.ContainsFunc(b.Ops, func(o storage.Op) bool { return o.Table == tableCursors }) && s.stick.CompareAndSwap(true, false) {
		s.begun <- struct{}{}
		if err := <-s.end; err != nil {
			return err
		}
	}
	return s.Store.Commit(ctx, b)
}

// stuckWorld has three events, two of one key, and leases of all of them from before a restart.
func stuckWorld(t *testing.T, order event.Order) (*world, *stuckCommits, []event.Lease) {
	store := &stuckCommits{begun: make(chan struct{}), end: make(chan error)}
	w := &world{t: t, fs: vfs.NewMem(), o: Options{Flush: time.Hour}} // what is written is settled
	w.wrap = func(s storage.Store) storage.Store { store.Store = s; return store }
	w.open()
	t.Cleanup(w.stop)
	spec := pullSpec("s", "orders", "")
	w.apply(specOf(spec))
	evs := []event.Event{{ID: "a", ClientID: true, PartitionKey: "k"}, {ID: "b", ClientID: true, PartitionKey: "k"}, {ID: "c", ClientID: true, PartitionKey: "other"}}
	if err := w.e.Publish(t.Context(), "orders", evs, make([]event.Position, len(evs))); err != nil {
		t.Fatal(err)
	}
	got := w.pull("s", 3)
	spec.Order = order
	w.spec = specOf(spec)
	w.restart()
	return w, store, got
}

// settling settles a lease in a commit that is held up when it returns.
func (w *world) settling(store *stuckCommits, id string, how event.Settling) (answer func() ([]event.Lost, error)) {
	type done struct {
		lost []event.Lost
		err  error
	}
	ended := make(chan done, 1)
	store.stick.Store(true)
	go func() {
		lost, err := w.e.Settle(context.Background(), "s", []string{id}, how)
		ended <- done{lost, err}
	}()
	<-store.begun
	return func() ([]event.Lost, error) { d := <-ended; return d.lost, d.err }
}

// A delivery that an acknowledgement of the run before is settling is nobody else's until that has ended; and those
// behind it wait with it where they keep an order. If it cannot be stored the delivery is due again.
func TestNothingIsLeasedWhileAnOldAckCommits(t *testing.T) {
	for name, order := range map[string]event.Order{"unordered": event.Unordered, "by key": event.ByKey} {
		for refused, refusal := range map[string]error{"stored": nil, "refused": errors.New("disk full")} {
			t.Run(name+", "+refused, func(t *testing.T) {
				w, store, old := stuckWorld(t, order)
				answer := w.settling(store, old[0].ID, event.Settling{})
				others := []string{"b", "c"}
				if order == event.ByKey {
					others = []string{"c"}
				}
				got := w.pull("s", len(others)) // the last: what was before it has been looked at
				more, err := w.e.Pull(t.Context(), "s", 10, 0)
				if ids := eventIDs(append(got, more...)); err != nil || !slices.Equal(ids, others) {
					t.Errorf("leased while the acknowledgement is under way: %v, %v; want %v", ids, err, others)
				}
				if lost := w.ack("s", old[:1]); len(lost) != 1 {
					t.Error("it was acknowledged twice")
				}
				store.end <- refusal
				lost, err := answer()
				if !errors.Is(err, refusal) || len(lost) > 0 {
					t.Errorf("%v, %v; want %v", lost, err, refusal)
				}
				want := slices.DeleteFunc([]string{"a", "b"}, func(id string) bool { return id == "a" && refusal == nil || slices.Contains(others, id) })
				for _, id := range want {
					next := w.pull("s", 1)
					if ids := eventIDs(next); ids[0] != id {
						t.Errorf("then %v, want %s", ids, id)
					}
					w.ack("s", next)
				}
				w.ack("s", got)
				if i := w.info("s"); i.Outstanding != 0 || i.Leased != 0 || i.Delivered != 3 {
					t.Errorf("%+v", i)
				}
				w.restart()
				if left, err := w.e.Pull(t.Context(), "s", 10, 0); err != nil || len(left) > 0 {
					t.Errorf("after another restart: %v, %v", eventIDs(left), err)
				}
			})
		}
	}
}

// What another has given back, and is being written as such, is not acknowledged by a lease of the run before:
// it would be handed out all the same.
func TestNoOldAckWhileTheDeliveryIsInHand(t *testing.T) {
	w, store, old := stuckWorld(t, event.Unordered)
	again := w.pull("s", 3)
	answer := w.settling(store, again[0].ID, event.Settling{Verb: event.Nack})
	late := make(chan []event.Lost, 1)
	go func() {
		lost, _ := w.e.Settle(context.Background(), "s", leaseIDs(old[:1]), event.Settling{})
		late <- lost
	}()
	eventually(t, "the late acknowledgement is answered or waits", func() bool {
		s := w.e.plan.Load().subs["s"]
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(late) > 0 || s.acks != nil
	})
	store.end <- nil
	if lost, err := answer(); err != nil || len(lost) > 0 {
		t.Fatal(lost, err)
	}
	if lost := <-late; len(lost) != 1 || lost[0] != (event.Lost{Lease: old[0].ID, Why: event.LostRestart}) {
		t.Errorf("lost %v", lost)
	}
	next := w.pull("s", 1)
	if ids := eventIDs(next); ids[0] != "a" || next[0].Attempt != 2 {
		t.Errorf("%v", ids)
	}
}

// What was leased anew and never reached its consumer can be acknowledged with the lease of the run before, and is
// not handed out then.
func TestOldAckAfterUnpull(t *testing.T) {
	w, _, old := stuckWorld(t, event.Unordered)
	if err := w.e.Unpull("s", leaseIDs(w.pull("s", 3))); err != nil {
		t.Fatal(err)
	}
	if lost := w.ack("s", old[:1]); len(lost) > 0 {
		t.Errorf("lost %v", lost)
	}
	if ids := eventIDs(w.pull("s", 2)); !slices.Equal(ids, []string{"b", "c"}) {
		t.Errorf("%v, want b and c", ids)
	}
}
