package pebblestore

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

func appendOne(s *Store, t *testing.T, id storage.LogID, n int) error {
	e := &event.Event{ID: fmt.Sprint(n), Source: "/s", Type: "t", Data: make([]byte, 2000)}
	return s.Commit(t.Context(), &storage.Batch{
		Appends: []storage.Append{{Log: id, Entries: []storage.Entry{{Event: e}}}},
		Ops:     []storage.Op{{Table: 3, Key: []byte("n"), Value: []byte(e.ID)}},
	})
}

// A snapshot that is taken while others commit holds every commit that had returned, opens and checks as a data
// directory does, and what happens to the store afterwards does not touch it.
func TestSnapshotUnderLoad(t *testing.T) {
	fs := vfs.NewMem()
	s, err := Open(t.Context(), Options{Dir: "data", FS: fs, MemTable: 128 << 10})
	if err != nil {
		t.Fatal(err)
	}
	ids := []storage.LogID{{Topic: 1}, {Topic: 2}}
	var logs []storage.Log
	for _, id := range ids {
		l, err := s.OpenLog(t.Context(), id, storage.LogOptions{Bytes: 256 << 10}) // turns over
		if err != nil {
			t.Fatal(err)
		}
		logs = append(logs, l)
	}
	var acked [2]atomic.Uint64
	var stop atomic.Bool
	var writers sync.WaitGroup
	defer writers.Wait()
	defer stop.Store(true)
	for i, id := range ids {
		writers.Go(func() {
			for n := 0; !stop.Load(); n++ {
				if err := appendOne(s, t, id, n); err != nil {
					t.Error(err)
					return
				}
				acked[i].Store(uint64(n) + 1)
			}
		})
	}
	var least [3][2]uint64
	for round := range least {
		if err := logs[0].Wait(t.Context(), acked[0].Load()+40); err != nil {
			t.Fatal(err)
		}
		for i := range acked {
			least[round][i] = acked[i].Load()
		}
		sn, err := s.Snapshot(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Snapshot(t.Context()); !errors.Is(err, event.ErrConflict) {
			t.Errorf("a second snapshot at once: %v", err)
		}
		// The store goes on: it would delete what the snapshot links to.
		if err := logs[0].Wait(t.Context(), acked[0].Load()+60); err != nil {
			t.Fatal(err)
		}
		if ok, err := vfs.Clone(fs, fs, sn.Dir, fmt.Sprint("copy", round)); err != nil || !ok {
			t.Fatal(ok, err)
		}
		if err := sn.Close(); err != nil {
			t.Fatal(err)
		}
	}
	stop.Store(true)
	writers.Wait()
	for round := range least {
		dir := fmt.Sprint("copy", round)
		if err := checkDir(t.Context(), fs, dir, true, func(l string) { t.Log(l) }); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		c, err := Open(t.Context(), Options{Dir: dir, FS: fs})
		if err != nil {
			t.Fatal(err)
		}
		for i, id := range ids {
			l, err := c.OpenLog(t.Context(), id, storage.LogOptions{Bytes: 256 << 10})
			if err != nil {
				t.Fatal(err)
			}
			if next := l.Bounds().Next; next < least[round][i] {
				t.Errorf("round %d, log %d: %d events were acknowledged, %d are in the snapshot", round, i, least[round][i], next)
			}
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := fs.Stat("data/" + snapshotName); err == nil {
		t.Error("a closed snapshot is still there")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// A snapshot that cannot be written is refused; the store goes on, and the next one succeeds. One that a killed
// process left goes with the next start.
func TestSnapshotFailsAlone(t *testing.T) {
	var left atomic.Int64
	left.Store(-1)
	mem := vfs.NewMem()
	fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if !strings.HasPrefix(op.Path, "data/"+snapshotName) || op.Kind.ReadOrWrite() != errorfs.OpIsWrite {
			return nil
		}
		if left.Add(-1) == 0 {
			return errorfs.ErrInjected
		}
		return nil
	}))
	s, err := Open(t.Context(), Options{Dir: "data", FS: fs, MemTable: 128 << 10})
	if err != nil {
		t.Fatal(err)
	}
	id := storage.LogID{Topic: 1}
	if _, err := s.OpenLog(t.Context(), id, storage.LogOptions{Bytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	refused := 0
	for n := 0; ; n++ {
		if err := appendOne(s, t, id, n); err != nil {
			t.Fatalf("after %d faults in snapshots: %v", n, err)
		}
		left.Store(int64(n) + 1)
		sn, err := s.Snapshot(t.Context())
		fired := left.Swap(-1) <= 0
		if err != nil {
			refused++
		} else if err := sn.Close(); err != nil {
			t.Fatal(err)
		}
		if s.degraded() != nil {
			t.Fatalf("fault %d in the snapshot: %v", n, s.degraded())
		}
		if !fired {
			break
		}
	}
	if refused < 5 {
		t.Errorf("%d faults were met", refused)
	}
	left.Store(-1)
	if _, err := s.Snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(t.Context(), Options{Dir: "data", FS: fs}); err != nil {
		t.Fatal(err)
	}
	if _, err := mem.Stat("data/" + snapshotName); err == nil {
		t.Error("the snapshot of a process that ended is still there")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// The log that Pebble wrote to while it copied it may have a gap in the copy, after which Pebble would open nothing.
func TestSnapshotCutsItsNewestLog(t *testing.T) {
	fs := vfs.NewMem()
	s, err := Open(t.Context(), Options{Dir: "data", FS: fs})
	if err != nil {
		t.Fatal(err)
	}
	id := storage.LogID{Topic: 1}
	if _, err := s.OpenLog(t.Context(), id, storage.LogOptions{Bytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	for n := range 50 {
		if err := appendOne(s, t, id, n); err != nil {
			t.Fatal(err)
		}
	}
	sn, err := s.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	names, err := fs.List("data/snapshot/pebble")
	if err != nil {
		t.Fatal(err)
	}
	newest := ""
	for _, name := range names {
		if strings.HasSuffix(name, ".log") {
			newest = max(newest, name)
		}
	}
	b, err := readFile(fs, "data/snapshot/pebble/"+newest)
	if err != nil {
		t.Fatal(err)
	}
	clear(b[50_000:65_536]) // blocks of 32 KiB: the second was read before it was full, the third after
	f := &files{fs: fs, dir: "data/snapshot", db: "data/snapshot/pebble"}
	if err := errors.Join(f.write(true), writeFile(fs, f.db, newest, b)); err != nil {
		t.Fatal(err)
	}
	if err := checkDir(t.Context(), fs, f.dir, false, func(string) {}); err == nil {
		t.Fatal("the gap is no fault: the test does not show what it is to show")
	}
	if err := f.cutNewestLog(); err != nil {
		t.Fatal(err)
	}
	c, err := Open(t.Context(), Options{Dir: f.dir, FS: fs})
	if err != nil {
		t.Fatal(err)
	}
	l, err := c.OpenLog(t.Context(), id, storage.LogOptions{Bytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if next := l.Bounds().Next; next < 20 || next > 25 {
		t.Errorf("%d of 50 events are before the gap at byte 50,000", next)
	}
	if err := errors.Join(c.Close(), sn.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
}
