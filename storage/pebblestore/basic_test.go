package pebblestore

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

func mustOpen(t testing.TB, o Options) *Store {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	if o.Logf == nil {
		o.Logf = t.Logf
	}
	s, err := Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

var logID = storage.LogID{Topic: 7, Partition: 3}

func mustLog(t testing.TB, s *Store, id storage.LogID, o storage.LogOptions) storage.Log {
	t.Helper()
	if o.Bytes == 0 {
		o.Bytes = 1 << 30
	}
	l, err := s.OpenLog(context.Background(), id, o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func batchOf(id storage.LogID, from, n int, size int) *storage.Batch {
	b := &storage.Batch{Appends: []storage.Append{{Log: id}}}
	for i := range n {
		b.Appends[0].Entries = append(b.Appends[0].Entries, storage.Entry{Event: &event.Event{
			ID: fmt.Sprint(from + i), Source: "/test", Type: "t", Data: make([]byte, size)}})
	}
	return b
}

func TestReopen(t *testing.T) {
	ctx := context.Background()
	fs := vfs.NewMem()
	for round := range 3 {
		s := mustOpen(t, Options{Dir: "data", FS: fs, Now: time.Now})
		l := mustLog(t, s, logID, storage.LogOptions{})
		if b := l.Bounds(); b.Next != event.Offset(round*10) {
			t.Fatalf("round %d: next is %d", round, b.Next)
		}
		b := batchOf(logID, round*10, 10, 100)
		b.Ops = []storage.Op{{Table: 1, Key: []byte("k"), Value: []byte{byte(round)}}}
		if err := s.Commit(ctx, b); err != nil {
			t.Fatal(err)
		}
		if p := b.Appends[0].Entries[9].Position; p != (event.Position{Partition: 3, Offset: event.Offset(round*10 + 9)}) {
			t.Fatalf("position %s", p)
		}
		blocks, err := l.Read(ctx, 0, 1<<20, nil)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, b := range blocks {
			for r := b.Records; len(r) > 0; n++ {
				rec, rest, err := event.CutRecord(r)
				if err != nil || rec.Offset() != event.Offset(n) || rec.Attr(event.TagID) != fmt.Sprint(n) {
					t.Fatalf("record %d: %v", n, err)
				}
				r = rest
			}
		}
		if n != round*10+10 {
			t.Fatalf("%d events", n)
		}
		if c, _ := s.Claim(ctx, logID); c.Epoch() != uint64(round+1) {
			t.Fatalf("epoch %d", c.Epoch())
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
