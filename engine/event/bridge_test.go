package event

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestForwardedTravels(t *testing.T) {
	for _, at := range [][]Position{
		{{0, 0}}, {{0, 5}, {0, 6}, {0, 900}, {3, 1}, {3, 1 << 60}}, {{1, 7}, {0, 7}, {1, 8}}, {{0, 9}, {0, 3}},
	} {
		f := Forwarded{By: "r1/hq", Line: "7.0.2", At: slices.Clone(at)}
		v := string(f.Append(nil))
		if got, err := ParseForwarded(v, len(at)); err != nil || got.By != f.By || got.Line != f.Line || !slices.Equal(got.At, at) {
			t.Errorf("%v as %q: %v %v", at, v, got, err)
		}
		if _, err := ParseForwarded(v, len(at)+1); err == nil {
			t.Errorf("%q stands for %d events", v, len(at)+1)
		}
	}
}

func TestForwardedRefuses(t *testing.T) {
	for _, v := range []string{"", "a", "a;b", ";b;AAEA", "a;;AAEA", "a;b;***", "a;b;AAH", "a;b;AA", strings.Repeat("x", 301) + ";b;AAEA", "a;b;gICAgBABAA"} {
		if f, err := ParseForwarded(v, 1); err == nil {
			t.Errorf("%q is %+v", v, f)
		}
	}
}

func TestLoops(t *testing.T) {
	long := strings.TrimSuffix(strings.Repeat("x,", MaxVia), ",")
	for via, want := range map[string]bool{"": false, "b": false, "a": true, "b,a,c": true, "ab,ba": false, long: false, long + ",y": true} {
		if Loops(via, "a") != want {
			t.Errorf("%q: %v", via, !want)
		}
	}
}

func FuzzForwarded(f *testing.F) {
	for _, at := range [][]Position{{{0, 0}}, {{0, 5}, {0, 6}, {3, 1}}} {
		w := Forwarded{By: "r1/hq", Line: "7.0.2", At: at}
		f.Add(string(w.Append(nil)), len(at))
	}
	f.Add("a;b;_____w8BAA", 1)
	f.Fuzz(func(t *testing.T, v string, n int) {
		if n < 0 || n > 1000 {
			return
		}
		got, err := ParseForwarded(v, n)
		if err != nil {
			return
		}
		if len(got.At) != n {
			t.Fatalf("%d places of %d", len(got.At), n)
		}
		again, err := ParseForwarded(string(got.Append(nil)), n)
		if err != nil || !slices.Equal(again.At, got.At) {
			t.Fatalf("%q: %v, then %v %v", v, got, again, err)
		}
	})
}

// Backoff doubles up to its bound, waits what is asked for at the least, and ends with its context.
func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			fails      int
			least      time.Duration
			from, upTo time.Duration
		}{{0, 0, 400 * time.Millisecond, 600 * time.Millisecond}, {3, 0, 3200 * time.Millisecond, 4800 * time.Millisecond}, {1000, 0, 24 * time.Second, 36 * time.Second},
			{0, time.Minute, time.Minute, time.Minute}} {
			began := time.Now()
			Backoff(t.Context(), c.fails, c.least)
			if d := time.Since(began); d < c.from || d > c.upTo {
				t.Errorf("%d failures, at least %s: %s", c.fails, c.least, d)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		if Backoff(ctx, 1000, 0); time.Since(began) != time.Second {
			t.Errorf("it goes on for %s after its context ended", time.Since(began))
		}
	})
}
