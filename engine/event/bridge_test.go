package event

import (
	"slices"
	"strings"
	"testing"
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
