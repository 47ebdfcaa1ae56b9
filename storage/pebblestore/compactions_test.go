package pebblestore

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// waiting is a database that has compactions to run.
type waiting struct {
	mu             sync.Mutex
	waits, allowed int
	begun          []pebble.CompactionGrantHandle
}

func (w *waiting) GetAllowedWithoutPermission() int { return w.allowed }

func (w *waiting) GetWaitingCompaction() (bool, pebble.WaitingCompaction) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.waits > 0, pebble.WaitingCompaction{}
}

func (w *waiting) Schedule(h pebble.CompactionGrantHandle) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waits == 0 {
		return false
	}
	w.waits--
	w.begun = append(w.begun, h)
	return true
}

func (w *waiting) running() int {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.begun)
}

// No compaction begins while the store is opened, as many as are allowed once it is, and none after it was closed.
func TestCompactionsWaitForTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, s := &waiting{waits: 5, allowed: 2}, newCompactions()
		s.Register(2, w)
		if ok, _ := s.TrySchedule(); ok {
			t.Error("one begins while the store is opened")
		}
		time.Sleep(time.Second)
		if n := w.running(); n != 0 {
			t.Errorf("%d begin while the store is opened", n)
		}
		s.release()
		if n := w.running(); n != 2 {
			t.Errorf("%d begin, 2 are allowed", n)
		}
		if ok, _ := s.TrySchedule(); ok {
			t.Error("a third begins")
		}
		w.begun[0].Done()
		if n := w.running(); n != 3 {
			t.Errorf("%d have begun after the first was done, want 3", n)
		}
		w.begun[1].Done()
		w.begun[2].Done()
		if n := w.running(); n != 5 {
			t.Errorf("%d have begun, want all", n)
		}
		w.begun[3].Done()
		if ok, h := s.TrySchedule(); !ok || h == nil {
			t.Error("nothing runs and none may begin")
		}
		w.begun[4].Done()
		s.Unregister()
		w.waits = 1
		time.Sleep(time.Second)
		if ok, _ := s.TrySchedule(); ok || w.running() != 5 {
			t.Error("one begins after the store was closed")
		}
	})
}

// Raising the format of a store may wait for compactions: they are not held for ever.
func TestCompactionsAreNotHeldForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, s := &waiting{waits: 1, allowed: 1}, newCompactions()
		s.Register(2, w)
		defer s.Unregister()
		time.Sleep(compactionHold + time.Millisecond)
		if n := w.running(); n != 1 {
			t.Errorf("%d have begun after %s", n, compactionHold)
		}
	})
}
