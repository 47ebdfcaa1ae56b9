package admission

import (
	"testing"
	"time"
)

func TestLevels(t *testing.T) {
	for _, x := range []struct {
		live, gc float64
		before   int32
		want     int32
	}{
		{0, 0, 0, 0}, {0.5, 0.5, 0, 0}, {0.7, 0.3, 0, 0}, {0.7, 0.4, 0, 1}, {0.86, 0, 0, 1}, {0.82, 0, 1, 1}, {0.82, 0, 0, 0}, {0.79, 0, 1, 0},
		{0.96, 0, 0, 2}, {0.92, 0, 2, 2}, {0.92, 0, 1, 1}, {0.89, 0, 2, 1}, {0.8, 0.5, 0, 2}, {0, 0.9, 2, 0},
	} {
		if got := levelOf(Usage{Live: x.live, GC: x.gc}, x.before); got != x.want {
			t.Errorf("live %v, collecting %v, before %d: level %d, want %d", x.live, x.gc, x.before, got, x.want)
		}
	}
}

// The runtime's own figures make sense, and what is asked for often is looked up rarely.
func TestSamples(t *testing.T) {
	sample := newSampler()
	if u := sample(); u.Live < 0 || u.Live > 10 || u.GC < 0 || u.GC > 1 {
		t.Errorf("%+v", u)
	}
	p := newPressure()
	looked := 0
	p.sample = func() Usage { looked++; return Usage{} }
	for began := time.Now(); time.Since(began) < sampleEvery/2; {
		p.most()
	}
	if looked > 1 {
		t.Errorf("looked %d times within half of the time", looked)
	}
}

// While everything is refused nothing is collected by itself, and what is live would never be seen to have gone.
func TestPressureCollectsToSeeItsEnd(t *testing.T) {
	p := newPressure()
	u, gathered := Usage{Live: 0.9, Cycle: 7}, 0
	p.sample = func() Usage { return u }
	p.gather = func() { gathered++; u.Live, u.Cycle = 0.1, 8 }
	p.look()
	if p.level.Load() != 1 || gathered != 0 {
		t.Fatalf("level %d, %d collections", p.level.Load(), gathered)
	}
	p.since = time.Now().Add(-2 * time.Second)
	if p.look(); p.level.Load() != 0 || gathered != 1 {
		t.Errorf("a second later: level %d, %d collections", p.level.Load(), gathered)
	}
}
