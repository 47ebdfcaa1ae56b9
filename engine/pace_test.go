package engine

import (
	"context"
	"testing"
	"time"

	"github.com/millrace/millrace/storage"
)

// A feeder pauses where it holds up publishers, and neither where nobody publishes nor where it would lose by it.
func TestFeedersPaceThemselves(t *testing.T) {
	ended, end := context.WithCancel(t.Context()) // a pause under it takes no time
	end()
	ring := storage.Bounds{Head: 0, Next: 1_000_000}
	for _, tt := range []struct {
		name    string
		publish bool
		read    uint64
		work    time.Duration
		left    bool // work that no pause was made for
	}{
		{"publishers wait", true, 500_000, time.Second, false},
		{"nobody publishes", false, 500_000, time.Second, true},
		{"not worth a pause yet", true, 500_000, 0, true},
	} {
		e := &Engine{}
		p := pace{e: e, worked: tt.work}
		p.begin()
		if tt.publish {
			e.turn.Add(1)
		}
		p.end(ended, tt.read, ring)
		if (p.worked > 0) != tt.left {
			t.Errorf("%s: %s of work are left, want some: %v", tt.name, p.worked, tt.left)
		}
	}
	for _, tt := range []struct {
		name string
		read uint64
		left bool
	}{
		{"it gains on the publishers", 400_000 + 2*10_000, false},
		{"it would never be done", 400_000 + 2*10_000 - 1, true},
		{"a seek has moved it back", 200_000, false},
	} {
		e := &Engine{}
		p := pace{e: e, worked: time.Second, read: 400_000, next: 990_000}
		p.begin()
		e.turn.Add(1)
		p.end(ended, tt.read, ring)
		if (p.worked > 0) != tt.left {
			t.Errorf("%s: %s of work are left, want some: %v", tt.name, p.worked, tt.left)
		}
	}
	for name, read := range map[string]uint64{"the ring is about to overtake it": 1000, "nearly there": 995_000} {
		e := &Engine{}
		p := pace{e: e, worked: time.Hour} // a pause would outlast the test
		p.begin()
		e.turn.Add(1)
		p.end(t.Context(), read, ring)
		if p.worked != 0 {
			t.Errorf("%s: its work counts", name)
		}
	}
}
