package engine

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// A counter counts every event once, whatever happens: power cuts, functions that trap, ask for another try
// or reject, deliveries that fail. Each count goes out once.
func TestCounterThroughPowerCuts(t *testing.T) {
	host, digests := stateHost(t)
	for seed := range uint64(10) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			countThroughPowerCuts(t, rand.New(rand.NewPCG(seed, 7)), Options{Host: host}, digests)
		})
	}
}

func countThroughPowerCuts(t *testing.T, r *rand.Rand, o Options, digests [2]string) {
	disk := vfs.NewCrashableMem()
	var mu sync.Mutex
	refused := map[string]bool{}
	sink := &recorder{answer: func(d event.Delivery) error {
		mu.Lock()
		defer mu.Unlock()
		if id := strings.Clone(d.ID); !refused[id] {
			refused[id] = true
			if len(refused)%3 == 0 {
				return errors.New("down")
			}
		}
		return nil
	}}
	spec := keeping(through(digests[0], 1, sink, func(s *SubscriptionSpec) { s.Retry.Schedule = []time.Duration{time.Millisecond} }))
	var known []string // ids of acknowledged events
	scripts := []string{"an=1", "an=1", "an=1", "an=1", "an=1", "an=1;1", "an=1;1", "pnever=1;t", "pnever=1;x", "an=1;dnever"}
	for range 3 {
		w := &world{t: t, fs: disk, o: o}
		count := 0
		cut := make(chan *vfs.MemFS, 1)
		settles, power, before := 1+r.IntN(12), vfs.CrashCloneCfg{UnsyncedDataPercent: r.IntN(80), RNG: rand.New(rand.NewPCG(r.Uint64(), 2))}, disk
		w.wrap = func(s storage.Store) storage.Store {
			return &cutStore{Store: s, after: func(b *storage.Batch) {
				mu.Lock()
				defer mu.Unlock()
				if writes(b, tableState) || writes(b, tableCursors) {
					settles--
				}
				if settles == 0 {
					settles--
					count = len(known)
					cut <- before.CrashClone(power)
				}
			}}
		}
		w.open()
		w.apply(spec)
		var publishers sync.WaitGroup
		for p := range 2 {
			pick := rand.New(rand.NewPCG(r.Uint64(), uint64(p)))
			publishers.Go(func() {
				for range 60 {
					id := fmt.Sprintf("%d-%d", p, pick.Uint64())
					evs := []event.Event{{ID: id, ClientID: true, Data: []byte(scripts[pick.IntN(len(scripts))])}}
					if w.e.Publish(t.Context(), "orders", evs, make([]event.Position, 1)) == nil {
						mu.Lock()
						known = append(known, id)
						mu.Unlock()
					}
				}
			})
		}
		publishers.Wait()
		eventually(t, "the cut, or all settled", func() bool { return len(cut) > 0 || w.rest("s") })
		mu.Lock()
		if settles > 0 {
			settles, count = -1, len(known)
			cut <- disk.CrashClone(vfs.CrashCloneCfg{})
		}
		mu.Unlock()
		crashed := <-cut
		w.stop()
		disk = crashed
		known = known[:count] // what was acknowledged after the cut never was
	}

	after := &world{t: t, fs: disk, o: o}
	after.open()
	defer after.stop()
	after.apply(spec)
	eventually(t, "all settled", func() bool { return after.rest("s") })
	stored, bad := map[string]bool{}, 0
	for _, rec := range after.records("orders") {
		stored[strings.Clone(rec.Attr(event.TagID))] = true
		if strings.HasPrefix(string(rec.Data()), "pnever") {
			bad++
		}
	}
	for _, id := range known {
		if !stored[id] {
			t.Errorf("%s was acknowledged and is lost", id)
		}
	}
	outs := tally(after.datas("s.out"))
	good := len(stored) - bad
	want := oneTo(good)
	for data, n := range outs {
		first, _, _ := strings.Cut(data, " ") // the answers to the addition and perhaps to a kv_del
		if want[first]--; want[first] != 0 || n != 1 {
			t.Errorf("count %q was put out %d times of %d events", data, n, good)
		}
	}
	if len(outs) != good {
		t.Errorf("%d counts of %d events", len(outs), good)
	}
	if n := len(after.ids("s.dead")); n != bad {
		t.Errorf("%d dead letters of %d events that fail", n, bad)
	}
	if i := after.info("s"); i.StateKeys != 1 || i.StateBytes != int64(1+len(strconv.Itoa(good))) {
		t.Errorf("%d keys of %d bytes, want n alone", i.StateKeys, i.StateBytes)
	}
}

// cutStore tells of every commit once it is through, before whoever made it knows.
type cutStore struct {
	storage.Store
	after func(*storage.Batch)
}

func (s *cutStore) Commit(ctx context.Context, b *storage.Batch) error {
	err := s.Store.Commit(ctx, b)
	if err == nil {
		s.after(b)
	}
	return err
}

func writes(b *storage.Batch, t storage.Table) bool {
	return slices.ContainsFunc(b.Ops, func(o storage.Op) bool { return o.Table == t })
}

// refusingStore refuses commits of state.
type refusingStore struct {
	storage.Store
	refuse func() error
}

func (s *refusingStore) Commit(ctx context.Context, b *storage.Batch) error {
	if writes(b, tableState) {
		if err := s.refuse(); err != nil {
			return err
		}
	}
	return s.Store.Commit(ctx, b)
}

// A batch whose commit is refused is tried again. One of whose topics is gone meanwhile runs anew: that of
// its events which then fails has left nothing to the others.
func TestStateOfRefusedCommits(t *testing.T) {
	host, digests := stateHost(t)
	w := &world{t: t, fs: vfs.NewMem(), o: Options{Host: host}}
	tries := 0
	w.wrap = func(s storage.Store) storage.Store {
		return &refusingStore{s, func() error {
			switch tries++; tries {
			case 1, 2:
				return event.ErrUnavailable
			case 3:
				if err := w.e.DeleteTopic(t.Context(), "extra"); err != nil {
					t.Error(err)
				}
				return event.ErrNotFound
			}
			return nil
		}}
	}
	w.open()
	defer w.stop()
	spec := keeping(through(digests[0], 1, nil, copies))
	spec.Topics = append(spec.Topics, event.Topic{Name: "extra"})
	w.apply(spec)
	w.publish("orders", "gone=an=100;fextra", "bad=an=100;x", "b=an=1", "c=an=1;dn;an=7")
	eventually(t, "all settled", func() bool { return w.rest("s") })
	if got := w.datas("copies"); !slices.Equal(got, []string{"1", "2 0 7"}) {
		t.Errorf("counted %q", got)
	}
	if i := w.info("s"); w.value("s", "f0", "n") != "7" || i.StateKeys != 1 || i.StateBytes != 2 {
		t.Errorf("n is %q, %d keys, %d bytes", w.value("s", "f0", "n"), i.StateKeys, i.StateBytes)
	}
	if got := slices.Sorted(slices.Values(w.ids("s.dead"))); !slices.Equal(got, []string{"bad", "gone"}) {
		t.Errorf("dead letters %v", got)
	}
}
