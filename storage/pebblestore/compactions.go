package pebblestore

import (
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// compactions lets Pebble compact as much as it asks for, but not before the store is open: while Pebble opens it
// starts those that are due and then waits for them to end before it looks for obsolete files, which takes
// seconds behind a large backlog (pebble v2.1.7, scanObsoleteFiles). Its own scheduler cannot be held back.
//
// Pebble calls TrySchedule with its mutex held, so nothing here calls Pebble under mu.
type compactions struct {
	mu      sync.Mutex
	db      pebble.DBForCompaction
	running int
	held    bool // until the store is open
	ending  sync.Once
	wake    chan struct{}
	end     chan struct{}
	ended   chan struct{}
}

const (
	// compactionCheck is how often what Pebble may run is looked at: it changes with what waits to be compacted.
	compactionCheck = 100 * time.Millisecond
	// compactionHold is how long an opening holds compactions back: raising a store's format may wait for some.
	compactionHold = 10 * time.Second
)

func newCompactions() *compactions {
	return &compactions{held: true, wake: make(chan struct{}, 1), end: make(chan struct{})}
}

// release lets compactions begin.
func (s *compactions) release() {
	s.mu.Lock()
	s.held = false
	s.mu.Unlock()
	s.UpdateGetAllowedWithoutPermission()
}

// Register implements pebble.CompactionScheduler.
func (s *compactions) Register(_ int, db pebble.DBForCompaction) {
	s.db, s.ended = db, make(chan struct{})
	go func() {
		defer close(s.ended)
		ticker, late := time.NewTicker(compactionCheck), time.NewTimer(compactionHold)
		defer ticker.Stop()
		defer late.Stop()
		for {
			select {
			case <-s.end:
				return
			case <-s.wake:
			case <-ticker.C:
			case <-late.C:
				s.release()
			}
			for s.grant() {
			}
		}
	}()
}

// stop has nothing more granted, of a store that did not open.
func (s *compactions) stop() { s.ending.Do(func() { close(s.end) }) }

// Unregister implements pebble.CompactionScheduler: nothing is granted once it returns.
func (s *compactions) Unregister() {
	s.stop()
	<-s.ended
	s.mu.Lock()
	s.held = true
	s.mu.Unlock()
}

// TrySchedule implements pebble.CompactionScheduler.
func (s *compactions) TrySchedule() (bool, pebble.CompactionGrantHandle) {
	if !s.reserve() {
		return false, nil
	}
	return true, s
}

func (s *compactions) reserve() bool {
	allowed := s.db.GetAllowedWithoutPermission()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held || s.running >= allowed {
		return false
	}
	s.running++
	return true
}

// grant starts a compaction that waits, and reports whether there was one.
func (s *compactions) grant() bool {
	if !s.reserve() {
		return false
	}
	if waits, _ := s.db.GetWaitingCompaction(); waits && s.db.Schedule(s) {
		return true
	}
	s.mu.Lock()
	s.running--
	s.mu.Unlock()
	return false
}

// UpdateGetAllowedWithoutPermission implements pebble.CompactionScheduler.
func (s *compactions) UpdateGetAllowedWithoutPermission() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Done implements pebble.CompactionGrantHandle.
func (s *compactions) Done() {
	s.mu.Lock()
	s.running--
	s.mu.Unlock()
	s.UpdateGetAllowedWithoutPermission()
}

// Started implements pebble.CompactionGrantHandle.
func (s *compactions) Started() {}

// MeasureCPU implements pebble.CompactionGrantHandle.
func (s *compactions) MeasureCPU(pebble.CompactionGoroutineKind) {}

// CumulativeStats implements pebble.CompactionGrantHandle.
func (s *compactions) CumulativeStats(pebble.CompactionGrantHandleStats) {}
