package engine

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace/millrace/engine/event"
)

func (w *world) receive(id, key, data, proof string) (first string, repeat bool) {
	w.t.Helper()
	ev := &event.Event{ID: id, ClientID: id != "", Source: "/sources/s", Type: "t", PartitionKey: key, Data: []byte(data)}
	var p []byte
	if proof != "" {
		p = []byte(proof)
	}
	first, repeat, err := w.e.Receive(w.t.Context(), "hooks", ev, p)
	if err != nil {
		w.t.Fatal(err)
	}
	return first, repeat
}

// A webhook is told by its id alone, whatever its content and key, and by what was signed, whatever its id; also after a
// restart and past the topic's dedupe window, for 12 hours at least.
func TestReceiveTellsRepeats(t *testing.T) {
	now := time.Date(2026, 1, 31, 11, 59, 0, 0, time.UTC)
	var mu sync.Mutex
	clock := func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return now
	}
	advance := func(d time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		now = now.Add(d)
	}
	w := &world{t: t, fs: vfs.NewMem(), o: Options{Now: clock, AcceptClock: true}, now: clock}
	w.open()
	t.Cleanup(w.stop)
	w.apply(Spec{Topics: []event.Topic{{Name: "hooks", Partitions: 4, Dedupe: time.Second}}})
	steps := []struct {
		id, key, data, proof string
		wait                 time.Duration
		first                string
		repeat               bool
	}{
		{"a", "", "1", "pa", 0, "a", false},
		{"a", "", "1", "pa", 0, "a", true},
		{"a", "", "other", "pb", 0, "a", true},        // the same id, signed anew
		{"a", "another key", "1", "pc", 0, "a", true}, // which is another partition's
		{"b", "", "1", "pa", 0, "a", true},            // the same signed request under another id
		{"x", "", "1", "pb", 0, "a", true},            // what a repeat was signed with counts as well
		{"b", "", "1", "pd", 0, "b", false},
		{"c", "", "1", "", 0, "c", false},
		{"c", "", "1", "", time.Minute, "c", true}, // past the topic's window
		{"a", "", "1", "pa", 11 * time.Hour, "a", true},
		{"x", "", "1", "pa", 0, "a", true},
		{"a", "", "1", "pa", 13 * time.Hour, "a", false},
	}
	stored := 0
	for i, s := range steps {
		advance(s.wait)
		if i%2 == 1 {
			w.restart()
		}
		first, repeat := w.receive(s.id, s.key, s.data, s.proof)
		if first != s.first || repeat != s.repeat {
			t.Errorf("step %d %v: %s %v", i, s, first, repeat)
		}
		if !s.repeat {
			stored++
		}
	}
	if got := w.ids("hooks"); len(got) != stored {
		t.Errorf("stored %v; want %d", got, stored)
	}
	// What is old goes.
	advance(30 * time.Hour)
	w.receive("z", "", "1", "")
	n := 0
	if err := w.e.store.Scan(t.Context(), tableReceipts, nil, nil, func(_, _ []byte) error { n++; return nil }); err != nil || n != 1 {
		t.Errorf("%d receipts are kept, %v; want 1", n, err)
	}
}

// Many at once with the same id are one event.
func TestReceiveRaces(t *testing.T) {
	w := newWorld(t, Options{})
	w.apply(Spec{Topics: []event.Topic{{Name: "hooks", Partitions: 3}}})
	var g sync.WaitGroup
	var mu sync.Mutex
	fresh := map[string]int{}
	for i := range 60 {
		g.Add(1)
		go func() {
			defer g.Done()
			id := fmt.Sprintf("id%d", i%5)
			first, repeat := w.receive(id, fmt.Sprint(i), fmt.Sprint(i), fmt.Sprint("p", i%5))
			mu.Lock()
			defer mu.Unlock()
			if !repeat {
				fresh[first]++
			}
		}()
	}
	g.Wait()
	if ids := w.ids("hooks"); len(ids) != 5 || len(fresh) != 5 {
		slices.Sort(ids)
		t.Errorf("%v %v", ids, fresh)
	}
}

// What was published is no webhook, whatever source and id it claims: it keeps none out. Without an id and a proof each is an
// event of its own.
func TestReceiveBesidePublish(t *testing.T) {
	w := newWorld(t, Options{})
	w.apply(Spec{Topics: []event.Topic{{Name: "hooks"}}})
	for _, data := range []string{"1", "other"} {
		id := "a" + data
		evs := []event.Event{{ID: id, ClientID: true, Source: "/sources/s", Type: "t", Data: []byte(data)}}
		if err := w.e.Publish(t.Context(), "hooks", evs, make([]event.Position, 1)); err != nil {
			t.Fatal(err)
		}
		if first, repeat := w.receive(id, "", "1", ""); first != id || repeat {
			t.Errorf("%s %v", first, repeat)
		}
	}
	for range 2 {
		if _, repeat := w.receive("", "", "1", ""); repeat {
			t.Error("told by nothing")
		}
	}
	if _, _, err := w.e.Receive(t.Context(), "nowhere", &event.Event{Source: "/s", Type: "t"}, nil); !errors.Is(err, event.ErrNotFound) {
		t.Errorf("%v", err)
	}
}
