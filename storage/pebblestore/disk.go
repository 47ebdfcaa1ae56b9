package pebblestore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace/millrace/engine/event"
)

// spaceEvery is how long a reading of the free space is believed.
const spaceEvery = 100 * time.Millisecond

// A space keeps the disk from filling up: Pebble survives a full disk badly (pebble#3427, #6139), so
// commits are refused while there is still room for flushes, compactions and deletions. Batches of
// operations alone (cursors) may go down to a quarter of the reserve. Within the reserve lies a ballast file
// that is let go when even that is passed.
type space struct {
	fs      vfs.FS
	dir     string
	reserve uint64
	ballast string
	size    uint64

	mu      sync.Mutex
	avail   uint64
	known   bool // the file system tells
	read    time.Time
	written int64 // since read
	held    bool  // the ballast is there
}

func newSpace(fs vfs.FS, dir string, reserve int64) *space {
	s := &space{fs: fs, dir: dir, ballast: fs.PathJoin(dir, "ballast")}
	u, err := fs.GetDiskUsage(dir)
	s.known = err == nil && u.TotalBytes > 0
	switch {
	case reserve > 0:
		s.reserve = uint64(reserve)
	case s.known:
		s.reserve = min(max(64<<20, u.TotalBytes/20), u.TotalBytes/4, 1<<30)
	}
	s.avail = u.AvailBytes
	s.size = min(s.reserve/8, 64<<20)
	return s
}

// free is what the file system says is free.
func (s *space) free() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refresh(0)
	return s.avail
}

// refresh reads the free space if what is known is old, or if much was written since. mu is held.
func (s *space) refresh(n int64) {
	if !s.known {
		return
	}
	now := time.Now()
	margin := int64(1 << 20)
	if s.avail > s.reserve {
		margin = max(64<<10, int64(s.avail-s.reserve)/8)
	}
	if now.Sub(s.read) < spaceEvery && s.written+n < margin {
		return
	}
	if u, err := s.fs.GetDiskUsage(s.dir); err == nil {
		s.avail, s.read, s.written = u.AvailBytes, now, 0
	}
}

// wrote counts bytes given to Pebble: they cost about three times their size until a compaction is through.
func (s *space) wrote(n int64) {
	s.mu.Lock()
	s.written += n
	s.mu.Unlock()
}

// admit refuses a write of n bytes that would take the disk below its watermark.
func (s *space) admit(n int64, opsOnly bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.known {
		return nil
	}
	s.refresh(n)
	floor := s.reserve
	if opsOnly {
		floor /= 4
	}
	if s.avail >= floor+uint64(n+s.written) {
		return nil
	}
	return fmt.Errorf("the disk of %s: %w: %d bytes are free, %d are kept in reserve; free some space or lower what topics retain", s.dir, event.ErrFull, s.avail, floor)
}

// tend lets the ballast go when the disk is nearly full, and takes it again when there is room.
func (s *space) tend() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refresh(0)
	switch {
	case !s.known:
	case s.held && s.avail < s.reserve/2:
		s.drop()
	case !s.held && s.avail > s.reserve+2*s.size:
		s.held = s.take() == nil
	}
}

// short says whether commits are refused for want of space.
func (s *space) short() bool { return s.admit(0, false) != nil }

// full is called when an operation met a full disk, before it is tried once more. It also slows down
// Pebble, which retries flushes without a pause.
func (s *space) full() {
	s.mu.Lock()
	s.drop()
	s.avail = 0
	s.mu.Unlock()
	time.Sleep(20 * time.Millisecond)
}

func (s *space) drop() {
	if err := s.fs.Remove(s.ballast); err == nil || errors.Is(err, vfsNotExist) {
		s.held = false
	}
}

func (s *space) take() error {
	f, err := s.fs.Create(s.ballast, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	return errors.Join(f.Preallocate(0, int64(s.size)), f.Close())
}

// owes says whether what rings have dropped takes up more than three times what they hold. Left to itself Pebble
// keeps dropped ranges in its top level, and a ring that turns over took 25 times its size after as many
// turns. Asking back costs writing a memtable once more, so it is not done for every chunk.
func (s *Store) owes() bool {
	held := int64(0)
	s.eachLog(func(l *plog) {
		l.mu.Lock()
		held += l.bytes
		l.mu.Unlock()
	})
	return s.dropped.Load() > max(s.o.owed, 3*held)
}

// reclaim makes Pebble give back the space of what was dropped: left to itself it does so only after writes that,
// on a full disk, are refused.
func (s *Store) reclaim(ctx context.Context) {
	type span struct {
		l        *plog
		from, to event.Offset
	}
	var spans []span
	s.eachLog(func(l *plog) {
		l.mu.Lock()
		if l.freed < l.head {
			spans = append(spans, span{l, l.freed, l.head})
		}
		l.mu.Unlock()
	})
	if len(spans) == 0 || s.enter() != nil {
		return
	}
	owed := s.dropped.Load() // what is dropped from here on is asked back next time
	defer s.leave()
	flushed, err := s.db.AsyncFlush()
	if err != nil {
		return
	}
	select {
	case <-flushed:
	case <-ctx.Done():
		return
	}
	for _, sp := range spans {
		if err := s.db.Compact(ctx, appendKey(nil, kindBlock, sp.l.id, sp.from), appendKey(nil, kindBlock, sp.l.id, sp.to), false); err != nil {
			if ctx.Err() == nil {
				s.o.Logf("pebblestore: giving back the space of what was dropped: %v", err)
			}
			return
		}
		sp.l.mu.Lock()
		sp.l.freed = max(sp.l.freed, sp.to)
		sp.l.mu.Unlock()
	}
	s.dropped.Add(-owed)
}

// DiskSpace returns how many bytes of the disk that holds a directory are free for this process, and how many it has.
func DiskSpace(dir string) (free, total int64, err error) {
	u, err := vfs.Default.GetDiskUsage(dir)
	return int64(u.AvailBytes), int64(u.TotalBytes), err
}
