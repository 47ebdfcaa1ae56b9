package engine

import (
	"errors"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace/millrace/engine/event"
)

// A copy of a store that goes on beside it, or in its place, keeps what was there before under its old names, so that a
// receiver drops repeats, and gives what comes after names that are not the original's; the original's leases and those
// of its cursors that stand behind what the copy never had are refused.
func TestForkOfARestoredCopy(t *testing.T) {
	w := newWorld(t, Options{})
	spec := specOf(pullSpec("work", "orders", ""))
	w.apply(spec)
	w.publish("orders", "a", "b")
	read := func(w *world, n int) string {
		t.Helper()
		r, err := w.e.OpenTopic(t.Context(), "orders", event.Start{At: event.Earliest}, "")
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		for range n {
			if _, err := r.Next(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		return r.Cursor()
	}
	before := read(w, 2)
	sn, err := w.store.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var copies [2]*world
	for i := range copies {
		c := &world{t: t, fs: vfs.NewMem(), o: Options{Fork: uint32(0xc0ffee + i)}}
		if ok, err := vfs.Clone(w.fs, c.fs, sn.Dir, "store"); err != nil || !ok {
			t.Fatal(ok, err)
		}
		copies[i] = c
	}
	if err := sn.Close(); err != nil {
		t.Fatal(err)
	}
	w.publish("orders", "lost-1", "lost-2")
	behind := read(w, 4)
	original := w.pull("work", 4)

	names := map[string]bool{}
	for _, l := range original[2:] {
		names[l.Delivery] = true
	}
	for _, c := range copies {
		c.open()
		t.Cleanup(c.stop)
		c.apply(spec)
		c.publish("orders", "c", "d", "e")
		if lost, err := c.e.Ack(t.Context(), "work", leaseIDs(original)); err != nil || len(lost) != 4 {
			t.Errorf("the original's leases in the copy: %d of 4 refused, %v", len(lost), err)
		}
		got := c.pull("work", 5)
		for i, l := range got {
			if i < 2 && l.Delivery != original[i].Delivery {
				t.Errorf("%q was %q before the restoration", l.Delivery, original[i].Delivery)
			}
			if i >= 2 {
				if names[l.Delivery] {
					t.Errorf("%q is the name of two deliveries", l.Delivery)
				}
				names[l.Delivery] = true
			}
		}
		if _, err := c.e.OpenTopic(t.Context(), "orders", event.Start{At: event.AtCursor, Cursor: before}, ""); err != nil {
			t.Errorf("a cursor of before: %v", err)
		}
		_, err := c.e.OpenTopic(t.Context(), "orders", event.Start{At: event.AtCursor, Cursor: behind}, "")
		if !errors.Is(err, event.ErrGone) || !strings.Contains(err.Error(), "restored from a backup") {
			t.Errorf("a cursor behind what was lost: %v", err)
		}
		own := read(c, 5)
		at := got[3].Delivery
		c.o.Fork = 0 // the store knows
		c.restart()
		if _, err := c.e.OpenTopic(t.Context(), "orders", event.Start{At: event.AtCursor, Cursor: own}, ""); err != nil {
			t.Errorf("the copy's own cursor after a restart: %v", err)
		}
		for _, l := range c.pull("work", 5) {
			if l.Event.Offset() == 3 && l.Delivery != at {
				t.Errorf("after a restart %q is %q", at, l.Delivery)
			}
		}
		grown := spec
		grown.Topics = append(grown.Topics[:len(grown.Topics):len(grown.Topics)], event.Topic{Name: "new", Partitions: 1, Retain: grown.Topics[0].Retain})
		c.apply(grown)
		if serial := c.e.plan.Load().topics["new"].serial; serial < 1<<16 {
			t.Errorf("a new topic got the number %d, which the original gives next", serial)
		}
	}
	_, err = copies[1].e.OpenTopic(t.Context(), "orders", event.Start{At: event.AtCursor, Cursor: read(copies[0], 5)}, "")
	if !errors.Is(err, event.ErrGone) {
		t.Errorf("the cursor of another copy: %v", err)
	}
}
