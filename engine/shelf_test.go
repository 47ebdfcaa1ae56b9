package engine

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace/millrace/engine/event"
)

func shelfOf(t *testing.T, w *world, owner string) *Shelf {
	t.Helper()
	s, err := w.e.Shelf(owner)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func onShelf(t *testing.T, s *Shelf, shelf event.Shelf, under string) map[string]string {
	t.Helper()
	got := map[string]string{}
	err := s.Scan(t.Context(), shelf, under, func(k string, v []byte) error {
		got[k] = string(v)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// Rows of an owner are his alone, are changed all or none and in order, and outlive the process.
func TestShelf(t *testing.T) {
	w := newWorld(t, Options{})
	a, b := shelfOf(t, w, "a"), shelfOf(t, w, "b")
	sessions := event.ShelfSessions
	row := func(key, value string) event.ShelfRow {
		return event.ShelfRow{Shelf: sessions, Key: key, Value: []byte(value)}
	}
	keep := func(s *Shelf, rows ...event.ShelfRow) {
		t.Helper()
		if err := s.Keep(t.Context(), rows...); err != nil {
			t.Fatal(err)
		}
	}
	keep(a, row("x1", "1"), row("x2", "2"), row("x\xff3", "3"), row("y", "4"), event.ShelfRow{Shelf: event.ShelfPackets, Key: "x1", Value: []byte("p")})
	keep(b, row("x1", "other"))
	keep(a)
	if got, want := onShelf(t, a, sessions, "x"), (map[string]string{"x1": "1", "x2": "2", "x\xff3": "3"}); !maps.Equal(got, want) {
		t.Fatalf("under x: %v", got)
	}
	// In order: what is removed first can be put again by the same write.
	keep(a, event.ShelfRow{Shelf: sessions, Key: "x", Under: true}, row("x9", "9"), event.ShelfRow{Shelf: sessions, Key: "y"})
	w.restart()
	a, b = shelfOf(t, w, "a"), shelfOf(t, w, "b")
	if got, want := onShelf(t, a, sessions, ""), (map[string]string{"x9": "9"}); !maps.Equal(got, want) {
		t.Fatalf("after a restart: %v", got)
	}
	if got := onShelf(t, b, sessions, ""); len(got) != 1 || got["x1"] != "other" {
		t.Fatalf("another owner's: %v", got)
	}
	if v, err := a.Load(t.Context(), event.ShelfPackets, "x1"); err != nil || string(v) != "p" {
		t.Fatalf("a row of another shelf: %q, %v", v, err)
	}
	if v, err := a.Load(t.Context(), sessions, "none"); err != nil || v != nil {
		t.Fatalf("a row that is not there: %q, %v", v, err)
	}
	stop := errors.New("enough")
	if err := a.Scan(t.Context(), sessions, "", func(string, []byte) error { return stop }); !errors.Is(err, stop) {
		t.Fatalf("a scan that was ended: %v", err)
	}
}

func TestShelfBounds(t *testing.T) {
	w := newWorld(t, Options{})
	a := shelfOf(t, w, "a")
	for _, owner := range []string{"", strings.Repeat("x", 33)} {
		if _, err := w.e.Shelf(owner); !errors.Is(err, event.ErrInvalid) {
			t.Errorf("owner %q: %v", owner, err)
		}
	}
	good := event.ShelfRow{Key: "good", Value: []byte("1")}
	for name, bad := range map[string][]event.ShelfRow{
		"key":   {good, {Key: strings.Repeat("k", event.MaxShelfKey+1), Value: []byte{1}}},
		"value": {good, {Key: "k", Value: make([]byte, event.MaxShelfValue+1)}},
		"shelf": {good, {Shelf: event.Shelves, Key: "k", Value: []byte{1}}},
		"under": {good, {Key: "k", Value: []byte{1}, Under: true}},
		"rows":  slices.Repeat([]event.ShelfRow{good}, event.MaxShelfRows+1),
	} {
		if err := a.Keep(t.Context(), bad...); err == nil {
			t.Errorf("%s: kept", name)
		}
	}
	if got := onShelf(t, a, event.ShelfSessions, ""); len(got) != 0 {
		t.Fatalf("what was refused left %v", got)
	}
}

// What Keep returned for is there after a power cut, whole.
func TestShelfPowerCut(t *testing.T) {
	disk := vfs.NewCrashableMem()
	w := &world{t: t, fs: disk}
	w.open()
	a := shelfOf(t, w, "a")
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			k := fmt.Sprint(i)
			if err := a.Keep(t.Context(), event.ShelfRow{Key: k, Value: []byte(k)}, event.ShelfRow{Shelf: event.ShelfRetained, Key: k, Value: []byte(k)}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	crashed := disk.CrashClone(vfs.CrashCloneCfg{})
	w.stop()
	after := &world{t: t, fs: crashed}
	after.open()
	defer after.stop()
	a = shelfOf(t, after, "a")
	for _, shelf := range []event.Shelf{event.ShelfSessions, event.ShelfRetained} {
		if got := onShelf(t, a, shelf, ""); len(got) != 20 {
			t.Fatalf("shelf %d has %d of 20 rows after a power cut", shelf, len(got))
		}
	}
}

// Where a reader stands can be told by partition, and a cursor be made of it.
func TestReaderOffsets(t *testing.T) {
	w := newWorld(t, Options{})
	w.apply(specOf(push("all", "orders", "", &recorder{})))
	w.publish("orders", "a", "b", "c")
	r, err := w.e.OpenTopic(t.Context(), "orders", event.Start{At: event.Earliest}, "")
	if err != nil {
		t.Fatal(err)
	}
	first, _, _, err := r.TryNext(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	at := r.Offsets(nil)
	if at[first.Partition()] != first.Offset()+1 || r.CursorAt(at) != r.Cursor() {
		t.Fatalf("after %s: %v, cursor %q and %q", first.Position(), at, r.CursorAt(at), r.Cursor())
	}
	at[first.Partition()]--
	again, err := w.e.OpenTopic(t.Context(), "orders", event.Start{At: event.AtCursor, Cursor: r.CursorAt(at)}, "")
	if err != nil {
		t.Fatal(err)
	}
	if rec, ok, _, err := again.TryNext(t.Context()); err != nil || !ok || rec.Position() != first.Position() {
		t.Fatalf("read again: %v, %v", ok, err)
	}
}
