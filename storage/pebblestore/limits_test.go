package pebblestore

import (
	"context"
	"encoding/binary"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// TestCommitAllocates: a commit allocates for its block and little else, however many events it has.
func TestCommitAllocates(t *testing.T) {
	ctx := context.Background()
	s := mustOpen(t, Options{Dir: "data", FS: vfs.NewMem(), BlockCache: 1 << 20})
	mustLog(t, s, logID, storage.LogOptions{Bytes: 1 << 30})
	allocs := func(n int) float64 {
		b := batchOf(logID, 0, n, 100)
		return testing.AllocsPerRun(50, func() {
			if err := s.Commit(ctx, b); err != nil {
				t.Fatal(err)
			}
		})
	}
	few, many := allocs(10), allocs(2000)
	t.Logf("%v allocations for 10 events, %v for 2,000", few, many)
	if many > few+10 {
		t.Fatalf("%v allocations for 10 events, %v for 2,000", few, many)
	}
	if few > 25 {
		t.Fatalf("%v allocations a commit", few)
	}
}

// clients makes a batch of n events with ids that count from a number.
func clients(from, n int) *storage.Batch {
	b := batchOf(logID, from, n, 10)
	for i := range b.Appends[0].Entries {
		e := &b.Appends[0].Entries[i]
		e.Client = true
		binary.BigEndian.PutUint64(e.ID[:], uint64(from+i))
	}
	return b
}

// TestDedupeBound: past its bytes the index forgets the oldest ids, and counts them; the newest are still known.
func TestDedupeBound(t *testing.T) {
	ctx := context.Background()
	const bound = 1 << 20
	s := mustOpen(t, Options{Dir: "data", FS: vfs.NewMem(), DedupeBytes: bound})
	mustLog(t, s, logID, storage.LogOptions{Dedupe: time.Hour})
	const n = 40_000
	for at := 0; at < n; at += 1000 {
		if err := s.Commit(ctx, clients(at, 1000)); err != nil {
			t.Fatal(err)
		}
		if held := s.Stats().DedupeBytes; held > bound {
			t.Fatalf("%d bytes are held", held)
		}
	}
	if s.Stats().DedupeShortened == 0 {
		t.Fatal("nothing was counted")
	}
	for _, c := range []struct {
		from   int
		repeat bool
	}{{n - 1000, true}, {0, false}} {
		b := clients(c.from, 1000)
		if err := s.Commit(ctx, b); err != nil {
			t.Fatal(err)
		}
		for i, e := range b.Appends[0].Entries {
			if e.Repeat != c.repeat {
				t.Fatalf("id %d: repeat is %t", c.from+i, e.Repeat)
			}
		}
	}
}

// TestDedupePersistedGoes: the entries beside the blocks go after the window.
func TestDedupePersistedGoes(t *testing.T) {
	ctx := context.Background()
	var seconds atomic.Int64 // the store reads its clock from goroutines of its own
	seconds.Store(1e9)
	s := mustOpen(t, Options{Dir: "data", FS: vfs.NewMem(), Now: func() time.Time { return time.Unix(seconds.Load(), 0) }})
	mustLog(t, s, logID, storage.LogOptions{Dedupe: time.Minute})
	count := func() (n int) {
		t.Helper()
		if err := s.scanKeys(kindDedupe, logID, 0, func(event.Offset, []byte) error { n++; return nil }); err != nil {
			t.Fatal(err)
		}
		return n
	}
	for i := range 300 {
		if err := s.Commit(ctx, clients(i, 1)); err != nil {
			t.Fatal(err)
		}
		seconds.Add(1)
		if i%10 == 0 {
			if err := s.Maintain(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := count(); n < 60 || n > 90 {
		t.Fatalf("%d of 300 entries are kept for a window of 60", n)
	}
}

// TestFreshBound: blocks kept for live readers stay within their bytes, and readers that are behind read from the disk.
func TestFreshBound(t *testing.T) {
	ctx := context.Background()
	s := mustOpen(t, Options{Dir: "data", FS: vfs.NewMem(), BlockCache: 100_000})
	l := mustLog(t, s, logID, storage.LogOptions{})
	for i := range 100 {
		if err := s.Commit(ctx, batchOf(logID, i, 1, 10_000)); err != nil {
			t.Fatal(err)
		}
	}
	held := 0
	p := l.(*plog)
	p.mu.Lock()
	for _, b := range p.fresh {
		held += len(b.Records)
	}
	oldest := p.fresh[0]
	p.mu.Unlock()
	if held > 100_000 || held < 50_000 {
		t.Fatalf("%d bytes are held", held)
	}
	bs, err := l.Read(ctx, oldest.First, 0, nil)
	if err != nil || bs[0] != oldest {
		t.Fatalf("a fresh block was copied: %v", err)
	}
	bs, err = l.Read(ctx, 0, 0, nil)
	if err != nil || bs[0].First != 0 || bs[0].Count != 1 {
		t.Fatal(err)
	}
}

// TestPending: more waiting commits than allowed are refused, not gathered without bound.
func TestPending(t *testing.T) {
	ctx := context.Background()
	s := mustOpen(t, Options{Dir: "data", FS: vfs.NewMem(), MaxPending: 4})
	mustLog(t, s, logID, storage.LogOptions{})
	s.encoding.Lock() // the committer stands still
	errs := make(chan error, 64)
	for i := range cap(errs) {
		go func() { errs <- s.Commit(ctx, batchOf(logID, i, 1, 10)) }()
	}
	refused := 0
	for refused < 40 { // at most 2 groups of 4 are in the committer's hands, and 4 in the queue
		if err := <-errs; !errors.Is(err, event.ErrUnavailable) {
			t.Fatal(err)
		}
		refused++
	}
	s.encoding.Unlock()
	for range cap(errs) - refused {
		if err := <-errs; err != nil && !errors.Is(err, event.ErrUnavailable) {
			t.Fatal(err)
		}
	}
}

func TestClock(t *testing.T) {
	now := time.Unix(1e9, 0)
	c := clock{now: func() time.Time { return now }}
	c.start(0)
	for _, step := range []struct{ wall, want time.Duration }{
		{time.Second, time.Second}, {-time.Hour, 0}, {time.Hour + time.Second, time.Second},
		{10 * clockJump, 0}, {time.Minute, time.Minute}, {-10 * clockJump, 0}, {time.Minute, time.Minute},
	} {
		before := c.last
		now = now.Add(step.wall)
		if got := time.Duration(c.read() - before); got != step.want {
			t.Fatalf("the wall stepped %s: time went on by %s, want %s", step.wall, got, step.want)
		}
	}
	accepting := clock{now: func() time.Time { return now }, accept: true}
	if accepting.start(now.Add(-10 * clockJump).UnixNano()); accepting.last != now.UnixNano() {
		t.Fatal("a clock that accepts does not follow")
	}
}

func TestOptions(t *testing.T) {
	_, err := Open(context.Background(), Options{MaxPending: -1, MemTable: 1})
	for _, want := range []string{"Dir", "MaxPending: -1", "MemTable: 1"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Fatalf("%v does not name %s", err, want)
		}
	}
}
