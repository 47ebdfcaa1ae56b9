package pebblestore

import (
	"context"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace/millrace/storage"
)

// A ring that turns over many times takes a few times its size on the disk, not as many times as it turned.
func TestRingGivesItsSpaceBack(t *testing.T) {
	const ring, turns = 4 << 20, 25
	ctx := context.Background()
	s := mustOpen(t, Options{Dir: "data", FS: vfs.NewMem(), Now: time.Now, MemTable: 1 << 20, owed: ring})
	defer s.Close()
	mustLog(t, s, logID, storage.LogOptions{Bytes: ring})
	for n := 0; n < turns*ring; n += 64 << 10 {
		if err := s.Commit(ctx, batchOf(logID, n, 8, 8<<10)); err != nil {
			t.Fatal(err)
		}
	}
	deadline := time.Now().Add(20 * time.Second)
	for used := s.db.Metrics().DiskSpaceUsage(); used > 8*ring; used = s.db.Metrics().DiskSpaceUsage() {
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes on the disk for a ring of %d after %d turns", used, ring, turns)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
