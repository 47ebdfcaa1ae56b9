package native_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
)

// stored is a state in memory, as the engine keeps it between calls.
type stored struct {
	rows map[string]plugins.StateWrite
	err  error
}

func (s *stored) LoadState(_ context.Context, key []byte) ([]byte, int64, bool, error) {
	w, ok := s.rows[string(key)]
	return w.Value, w.Expires, ok, s.err
}

func (s *stored) keep(out *plugins.Outcome) {
	for _, w := range out.Writes() {
		if w.Deleted {
			delete(s.rows, w.Key)
			continue
		}
		w.Value = bytes.Clone(w.Value)
		s.rows[w.Key] = w
	}
}

func (s *stored) String() string {
	var rows []string
	for k, w := range s.rows {
		rows = append(rows, fmt.Sprintf("%s=%s@%d", k, w.Value, w.Expires/1e9))
	}
	slices.Sort(rows)
	return strings.Join(rows, " ")
}

func stateful(t testing.TB) *plugins.Function {
	return open(t, newHost(t, plugins.Options{}), cGuest(t, "state.c"), event.Function{Allow: event.Allow{KV: true}})
}

// at calls f for one event that was received at a second.
func (s *stored) at(t testing.TB, f *plugins.Function, second uint64, script string) string {
	t.Helper()
	out := &plugins.Outcome{}
	c := &plugins.Call{Events: []event.Record{record(second, script)}, State: s}
	if err := f.Call(context.Background(), c, out); err != nil {
		t.Fatal(err)
	}
	s.keep(out)
	if len(out.Results) != 1 || out.Results[0].Verdict != plugins.Emit {
		return show(out)
	}
	return string(out.Results[0].Data)
}

func TestStateFunctions(t *testing.T) {
	f := stateful(t)
	s := &stored{rows: map[string]plugins.StateWrite{}}
	for i, c := range []struct {
		second uint64
		script string
		want   string
	}{
		{1, "gk;dk;sk", "!-1 !-1 !-1"},
		{1, "pk=hello;gk;sk", "0 hello 5"},
		{2, "gk;dk;gk;dk", "hello 0 !-1 !-1"},
		{3, "gk", "!-1"},
		{3, "an=5;an=-7;gn", "5 -2 -2"},
		{4, "an=2;gn", "0 0"},
		{4, "pn=x;an=1;gn", "0 !-6 x"},
		{4, "pn=9223372036854775806;an=1;an=1;gn", "0 9223372036854775807 !-6 9223372036854775807"},
		{4, "pn=-9223372036854775807;an=-1;an=-1;gn", "0 -9223372036854775808 !-6 -9223372036854775808"},
		{5, "on;on;gn", "!-6 !-6 -9223372036854775808"}, // nothing was added where the answer had no place
		{5, "pe=;ge;se", "0  "},
		{6, "p=v;g;d;a=1", "!-6 !-6 !-6 !-6"},
		{6, "K512;K513;V65536;V65537", "0 !-3 0 !-3"},
		{7, "V65536;sbig", "0 65536"},
		{10, "pt=v,3000;gt", "0 v"},
		{12, "gt", "v"},
		{13, "gt;dt", "!-1 !-1"},
		{12, "gt", "v"}, // received before it expired
		{13, "at=1;gt", "1 1"},
		{20, "pt=5,2000;at=1", "0 6"}, // a number keeps its time
		{21, "gt", "6"},
		{22, "gt;pt=-1,-1", "!-1 !-6"},
		{22, "pt=v,2000;pt=w;", "0 0"}, // without a time it is for ever
		{99, "gt", "w"},
		{99, "pt=v,9223372036854775807;gt", "0 v"},
	} {
		if got := s.at(t, f, c.second, c.script); got != c.want {
			t.Errorf("%d: %s\ngot  %q\nwant %q", i, c.script, got, c.want)
		}
	}
	out := &plugins.Outcome{}
	c := &plugins.Call{Events: []event.Record{record(1, "gk;pk=v;am=1;dk")}, State: s}
	for range 2 {
		if err := f.Call(context.Background(), c, out); err != nil {
			t.Fatal(err)
		}
		if reads, writes := out.StateOps(); reads != 3 || writes != 3 {
			t.Errorf("%d reads, %d writes", reads, writes)
		}
	}
}

func TestStateIsDeniedUnlessAllowed(t *testing.T) {
	h := newHost(t, plugins.Options{})
	f := open(t, h, cGuest(t, "state.c"), event.Function{})
	s := &stored{rows: map[string]plugins.StateWrite{}}
	if got, want := s.at(t, f, 1, "pk=v;gk;dk;ak=1"), "!-2 !-2 !-2 !-2"; got != want || len(s.rows) != 0 {
		t.Errorf("%q, left %s", got, s)
	}
}

// A call may not leave more than a megabyte behind; what it takes back does not count.
func TestStagedStateIsBounded(t *testing.T) {
	f := stateful(t)
	s := &stored{rows: map[string]plugins.StateWrite{}}
	big := strings.Repeat("v", 60<<10)
	var script strings.Builder
	for i := range 18 {
		fmt.Fprintf(&script, "pk%d=%s;", i, big)
	}
	if got, want := s.at(t, f, 1, script.String()+"pk0=;pk17="+big), strings.Repeat("0 ", 17)+"!-3 0 0"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// What a run wrote that then fails is gone, for the events that run again as well; the poisoned event's
// stays out.
func TestFailedRunLeavesNoState(t *testing.T) {
	f := stateful(t)
	s := &stored{rows: map[string]plugins.StateWrite{}}
	s.at(t, f, 1, "an=100;pgone=soon")
	c := &plugins.Call{State: s}
	for i, script := range []string{"an=1", "an=1;dgone", "an=1000;pbad=1;pgone=never;t", "an=1;ggone"} {
		c.Events = append(c.Events, record(uint64(i+2), script))
	}
	out := &plugins.Outcome{}
	for range 2 { // the outcome is used again
		if err := f.Call(context.Background(), c, out); err != nil {
			t.Fatal(err)
		}
		if got, want := show(out), "0:EMIT(101) 1:EMIT(102 0) 2!trap 3:EMIT(103 !-1)"; got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
	s.keep(out)
	if got, want := s.String(), "n=103@0"; got != want {
		t.Errorf("state %s, want %s", got, want)
	}
}

// A state that cannot be read decides nothing.
func TestUnreadableStateDecidesNothing(t *testing.T) {
	f := stateful(t)
	broken := errors.New("the disk is gone")
	c := &plugins.Call{Events: []event.Record{record(1, "pk=v"), record(2, "gk2")}, State: &stored{err: broken}}
	out := &plugins.Outcome{}
	err := f.Call(context.Background(), c, out)
	if !errors.Is(err, broken) || !errors.Is(err, event.ErrUnavailable) || len(out.Results)+len(out.Failures)+len(out.Writes()) != 0 {
		t.Errorf("%v, %s, %d writes", err, show(out), len(out.Writes()))
	}
}

// The functions against a map, over calls, traps and times.
func TestStateAgainstAModel(t *testing.T) {
	f := stateful(t)
	type value struct {
		text    string
		expires uint64 // ms; 0: never
	}
	rapid.Check(t, func(t *rapid.T) {
		model := map[string]value{}
		s := &stored{rows: map[string]plugins.StateWrite{}}
		second := uint64(1)
		for range rapid.IntRange(1, 12).Draw(t, "calls") {
			second += uint64(rapid.IntRange(0, 3).Draw(t, "seconds"))
			now := second * 1000
			next := map[string]value{}
			for k, v := range model {
				next[k] = v
			}
			live := func(k string) (value, bool) {
				v, ok := next[k]
				return v, ok && (v.expires == 0 || v.expires > now)
			}
			var script, want []string
			for range rapid.IntRange(1, 6).Draw(t, "statements") {
				k := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "key")
				v, ok := live(k)
				answer := "0"
				switch op := rapid.SampledFrom([]string{"g", "p", "d", "a"}).Draw(t, "op"); op {
				case "g":
					script = append(script, "g"+k)
					if answer = v.text; !ok {
						answer = "!-1"
					}
				case "p":
					text, ttl := strconv.Itoa(rapid.IntRange(-9, 9).Draw(t, "value")), rapid.IntRange(0, 4).Draw(t, "ttl")*1000
					next[k] = value{text: text}
					if ttl > 0 {
						next[k] = value{text, now + uint64(ttl)}
					}
					script = append(script, fmt.Sprintf("p%s=%s,%d", k, text, ttl))
				case "d":
					script = append(script, "d"+k)
					if delete(next, k); !ok {
						answer = "!-1"
					}
				case "a":
					delta := rapid.SampledFrom([]int64{1, -3, math.MaxInt64, math.MinInt64 + 1}).Draw(t, "delta")
					script = append(script, fmt.Sprintf("a%s=%d", k, delta))
					n := int64(0)
					if ok {
						n, _ = strconv.ParseInt(v.text, 10, 64)
					} else {
						v = value{}
					}
					if delta > 0 && n > math.MaxInt64-delta || delta < 0 && n < math.MinInt64-delta {
						answer = "!-6"
						break
					}
					answer = strconv.FormatInt(n+delta, 10)
					next[k] = value{answer, v.expires}
				}
				want = append(want, answer)
			}
			if rapid.IntRange(0, 4).Draw(t, "trap") == 0 {
				out := &plugins.Outcome{}
				c := &plugins.Call{Events: []event.Record{record(second, strings.Join(script, ";")+";t")}, State: s}
				if err := f.Call(context.Background(), c, out); err != nil || len(out.Failures) != 1 || len(out.Writes()) != 0 {
					t.Fatalf("%v, %s, %d writes", err, show(out), len(out.Writes()))
				}
				continue
			}
			out := &plugins.Outcome{}
			c := &plugins.Call{Events: []event.Record{record(second, strings.Join(script, ";"))}, State: s}
			if err := f.Call(context.Background(), c, out); err != nil {
				t.Fatal(err)
			}
			if got := string(out.Results[0].Data); got != strings.Join(want, " ") {
				t.Fatalf("at %d: %v\ngot  %s\nwant %v", now, script, got, want)
			}
			s.keep(out)
			model = next
		}
	})
}
