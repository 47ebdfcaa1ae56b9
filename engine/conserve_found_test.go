package engine

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace/millrace/engine/event"
)

// What the conservation test has found, one test each.

// keyed publishes events of one key, one at a time.
func (w *world) keyed(topic, key string, ids ...string) {
	w.t.Helper()
	for _, id := range ids {
		evs := []event.Event{{ID: id, ClientID: true, PartitionKey: key}}
		if err := w.e.Publish(w.t.Context(), topic, evs, make([]event.Position, 1)); err != nil {
			w.t.Fatal(err)
		}
	}
}

// After a crash the event that was in hand comes before those of its key that had become rows behind it.
func TestInHandComesBeforeItsKeysRowsAfterACrash(t *testing.T) {
	w := crashWorld(t, Options{Queue: 8, Flush: never})
	gate := make(chan struct{})
	t.Cleanup(func() { close(gate) })
	s := push("s", "orders", "", &recorder{answer: func(event.Delivery) error { <-gate; return nil }})
	s.Order = event.ByKey
	w.apply(specOf(s))
	ids := number("e", 40)
	w.keyed("orders", "k", ids...)
	eventually(t, "most have become rows", func() bool { return w.info("s").Parked > 20 })
	for seed := range uint64(3) {
		fs := w.fs.(*vfs.MemFS).CrashClone(vfs.CrashCloneCfg{RNG: rand.New(rand.NewPCG(seed, 1))})
		after := &world{t: t, fs: fs, o: Options{Queue: 8}}
		after.open()
		sink := &recorder{}
		s.OpenSink = push("", "", "", sink).OpenSink
		after.apply(specOf(s))
		eventually(t, "all", func() bool { return len(sink.ids()) == len(ids) })
		if got := sink.ids(); !slices.Equal(got, ids) {
			t.Errorf("delivered in the order %v", got)
		}
		after.stop()
	}
}

// A seek gives up the leases that were out, and a restart does not bring them back.
func TestLeasesFromBeforeASeekAndARestart(t *testing.T) {
	w := newWorld(t, Options{})
	w.apply(specOf(pullSpec("s", "orders", "")))
	w.publish("orders", number("e", 3)...)
	old := w.pull("s", 3)
	if err := w.e.Seek(t.Context(), "s", event.Start{At: event.Earliest}); err != nil {
		t.Fatal(err)
	}
	w.restart()
	eventually(t, "all are there again", func() bool { return w.info("s").Outstanding == 3 })
	if lost := w.ack("s", old); len(lost) != 3 {
		t.Errorf("%d of 3 leases from before the seek are refused", len(lost))
	}
	again := w.pull("s", 3)
	if got := fmt.Sprint(eventIDs(again)); got != fmt.Sprint(number("e", 3)) {
		t.Errorf("pulled %s after the seek, want all again", got)
	}
	w.restart()
	if lost := w.ack("s", again); len(lost) != 0 {
		t.Errorf("%d leases from after the seek are refused after a restart", len(lost))
	}
}
