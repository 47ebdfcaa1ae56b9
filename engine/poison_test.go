package engine

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// witness is a store that looks whether each dead letter is written with what settles its event.
type witness struct {
	storage.Store
	dead            uint32 // the dead-letter topic's incarnation
	letters, single atomic.Int32
}

func (w *witness) Commit(ctx context.Context, b *storage.Batch) error {
	n := 0
	for _, a := range b.Appends {
		if a.Log.Topic == w.dead {
			n += len(a.Entries)
		}
	}
	if n > 0 {
		w.letters.Add(int32(n))
		if !slices.ContainsFunc(b.Ops, func(o storage.Op) bool {
			return o.Table == tableCursors || (o.Table == tableParked || o.Table == tableLanes) && o.Kind == storage.Delete
		}) {
			w.single.Add(1)
		}
	}
	return w.Store.Commit(ctx, b)
}

// One event of each of a thousand keys makes the function trap, and the subscription keeps the keys' order: every
// other event is delivered once, in order, on its first try; the others are dead letters, each in one commit with
// the cursor, and there once after a power cut, too.
func TestPoisonOfEveryKeyIsIsolated(t *testing.T) {
	keys := 1000
	if raceEnabled {
		keys = 100 // the detector makes an instance dear
	}
	w, digest := functionWorld(t, Options{})
	w.stop()
	w.fs = vfs.NewCrashableMem()
	see := &witness{}
	w.wrap = func(s storage.Store) storage.Store {
		see.Store = s
		return see
	}
	w.open()
	sink := &recorder{}
	spec := through(digest, 1, sink, func(s *SubscriptionSpec) { s.Order = event.ByKey })
	w.apply(Spec{Topics: spec.Topics})
	see.dead = w.e.plan.Load().topics["s.dead"].serial
	w.apply(spec)
	for _, part := range []string{"1p", "2t", "3p"} {
		for first := 0; first < keys; first += 50 {
			evs := make([]event.Event, 50)
			for i := range evs {
				key := fmt.Sprintf("k%04d", first+i)
				evs[i] = event.Event{ID: key + part[:1], ClientID: true, PartitionKey: key, Data: []byte(part[1:])}
			}
			if err := w.e.Publish(t.Context(), "orders", evs, make([]event.Position, len(evs))); err != nil {
				t.Fatal(err)
			}
		}
	}
	for dead := -1; !w.settled("s"); { // a trap costs an instance
		was := dead
		eventually(t, "more are settled", func() bool { dead = int(see.letters.Load()); return dead > was || w.settled("s") })
	}
	last := map[string]string{}
	for _, id := range sink.ids() {
		if key := id[:5]; id <= last[key] {
			t.Errorf("%s came after %s", id, last[key])
		} else {
			last[key] = id
		}
	}
	if got, tries := len(sink.ids()), len(sink.deliveryIDs()); got != 2*keys || tries != 2*keys || len(last) != keys {
		t.Errorf("%d deliveries of %d keys in %d tries; want 2 of each of %d, on the first try", got, len(last), tries, keys)
	}
	if n := see.single.Load(); n > 0 || int(see.letters.Load()) != keys {
		t.Errorf("%d dead letters; %d commits of them without the cursor", see.letters.Load(), n)
	}
	check := func(when string, ids []string) {
		t.Helper()
		slices.Sort(ids)
		if n := len(slices.Compact(slices.Clone(ids))); n != keys || len(ids) != keys || slices.ContainsFunc(ids, func(id string) bool { return !strings.HasSuffix(id, "2") }) {
			t.Errorf("%s: %d dead letters of %d events", when, len(ids), n)
		}
	}
	check("before", w.ids("s.dead"))
	after := &world{t: t, o: w.o, fs: w.fs.(*vfs.MemFS).CrashClone(vfs.CrashCloneCfg{RNG: rand.New(rand.NewPCG(1, 2))})}
	w.stop()
	after.open()
	defer after.stop()
	after.apply(spec)
	eventually(t, "all are settled again", func() bool { return after.settled("s") })
	check("after a power cut", after.ids("s.dead"))
}
