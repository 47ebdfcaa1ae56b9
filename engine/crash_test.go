package engine

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace/millrace/engine/event"
)

// A power cut at any moment: every acknowledged event is there, everything a subscription puts into a
// topic is there once, dead letters too, and nothing waits for ever.
func TestPowerCut(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { powerCut(t, rand.New(rand.NewPCG(seed, 1))) })
	}
}

func powerCut(t *testing.T, r *rand.Rand) {
	disk := vfs.NewCrashableMem()
	w := &world{t: t, fs: disk}
	w.open()
	copies := push("copies", "orders", "data.n % 2 == 0", nil)
	copies.OpenSink, copies.Deliver = nil, event.Deliver{Face: event.ToTopic, Topic: "even"}
	refused := push("refused", "orders", "data.n % 3 == 0", &recorder{answer: func(event.Delivery) error {
		return event.Permanent(400, errors.New("no"))
	}})
	spec := specOf(copies, refused)
	w.apply(spec)

	var mu sync.Mutex
	acknowledged := map[string]bool{}
	var publishers sync.WaitGroup
	stop := make(chan struct{})
	for p := range 4 {
		publishers.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				id := fmt.Sprintf("p%d-%d", p, n)
				evs := []event.Event{{ID: id, ClientID: true, Data: fmt.Appendf(nil, `{"n":%d}`, n)}}
				if w.e.Publish(t.Context(), "orders", evs, make([]event.Position, 1)) == nil {
					mu.Lock()
					acknowledged[id] = true
					mu.Unlock()
				}
			}
		})
	}
	want := 100 + r.IntN(400)
	eventually(t, "some are acknowledged", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(acknowledged) > want
	})
	mu.Lock()
	known := make(map[string]bool, len(acknowledged))
	for id := range acknowledged {
		known[id] = true
	}
	crashed := disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: r.IntN(80), RNG: rand.New(rand.NewPCG(r.Uint64(), 2))})
	mu.Unlock()
	close(stop)
	publishers.Wait()
	w.stop()

	after := &world{t: t, fs: crashed}
	after.open()
	defer after.stop()
	after.apply(spec)
	stored := map[string]bool{}
	for _, id := range after.ids("orders") {
		if stored[id] {
			t.Errorf("%s is stored twice", id)
		}
		stored[id] = true
	}
	for id := range known {
		if !stored[id] {
			t.Errorf("%s was acknowledged and is lost", id)
		}
	}
	eventually(t, "both have caught up", func() bool {
		a, b := after.info("copies"), after.info("refused")
		return a.Lag+b.Lag+uint64(a.Outstanding+b.Outstanding) == 0
	})
	even, dead := map[string]int{}, map[string]int{}
	for _, id := range after.ids("even") {
		even[id]++
	}
	for _, id := range after.ids("refused.dead") {
		dead[id]++
	}
	for id := range stored {
		var n int
		if _, err := fmt.Sscanf(id[strings.Index(id, "-")+1:], "%d", &n); err != nil {
			t.Fatal(err)
		}
		if got, want := even[id], 1-n%2; got != want {
			t.Errorf("%s is %d times in topic even, want %d", id, got, want)
		}
		if got, want := dead[id], truth(n%3 == 0); got != want {
			t.Errorf("%s is dead-lettered %d times, want %d", id, got, want)
		}
	}
}

func truth(b bool) int {
	if b {
		return 1
	}
	return 0
}

// A store that takes nothing any more: whoever publishes is told, and nobody hangs.
func TestPublishAfterTheStoreClosed(t *testing.T) {
	w := newWorld(t, Options{})
	w.apply(Spec{Topics: []event.Topic{{Name: "orders"}}})
	if err := w.store.Close(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	err := w.e.Publish(t.Context(), "orders", []event.Event{{}}, make([]event.Position, 1))
	if !errors.Is(err, event.ErrUnavailable) || time.Since(began) > time.Minute {
		t.Errorf("%v after %s", err, time.Since(began))
	}
	closeQuietly(w)
}

// closeQuietly ends an engine whose store is closed already: it cannot write its cursors any more.
func closeQuietly(w *world) {
	_ = w.e.Close(w.t.Context())
	w.e = nil
}
