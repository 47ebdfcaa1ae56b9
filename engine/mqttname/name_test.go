package mqttname

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/millrace/millrace/engine/event"
	"pgregory.net/rapid"
)

// What MQTT's own examples say (4.7.1.2, 4.7.1.3, 4.7.2), and the corners of them.
var matches = []struct {
	filter, name string
	want         bool
}{
	{"sport/tennis/player1/#", "sport/tennis/player1", true},
	{"sport/tennis/player1/#", "sport/tennis/player1/ranking", true},
	{"sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true},
	{"sport/#", "sport", true},
	{"sport/#", "sports", false},
	{"#", "sport", true},
	{"#", "/", true},
	{"sport/tennis/+", "sport/tennis/player1", true},
	{"sport/tennis/+", "sport/tennis/player1/ranking", false},
	{"sport/+", "sport", false},
	{"sport/+", "sport/", true},
	{"+/+", "/finance", true},
	{"/+", "/finance", true},
	{"+", "/finance", false},
	{"+", "finance", true},
	{"+/tennis/#", "sport/tennis", true},
	{"+/tennis/#", "sport/tennis/a/b", true},
	{"sport/+/player1", "sport//player1", true},
	{"sport", "Sport", false},
	{"sport", "sport/", false},
	{"#", "$SYS/monitor", false}, // [MQTT-4.7.2-1]
	{"+/monitor/Clients", "$SYS/monitor/Clients", false},
	{"$SYS/#", "$SYS/monitor/Clients", true},
	{"$SYS/monitor/+", "$SYS/monitor/Clients", true},
	{"a/#", "a/$b", true},
	{"Å", "A\u030a", false}, // nothing is normalised [MQTT-4.7.3-4]
}

func TestMatch(t *testing.T) {
	for _, c := range matches {
		if got := Match(c.filter, c.name); got != c.want {
			t.Errorf("Match(%q, %q) = %v", c.filter, c.name, got)
		}
	}
}

func TestCheck(t *testing.T) {
	long := strings.Repeat("a", MaxLen+1)
	deep := strings.Repeat("/", MaxLevels)
	for _, c := range []struct {
		text, filter, name string // what the errors have; "" for none
	}{
		{"a", "", ""},
		{"a/+/b", "", "wildcard"},
		{"a/#", "", "wildcard"},
		{"/", "", ""},
		{"", "is empty", "is empty"},
		{"a/#/b", "# stands last", "wildcard"},
		{"a#", "whole level", "wildcard"},
		{"a/b+", "whole level", "wildcard"},
		{"+b/a", "whole level", "wildcard"},
		{"a\x00b", "U+0000 at byte 1", "U+0000"},
		{"a\x1f", "U+001F", "U+001F"},
		{"a\u0085", "U+0085", "U+0085"},
		{"a\ufffe", "U+FFFE", "U+FFFE"},
		{"a\xff", "not UTF-8 at byte 1", "not UTF-8"},
		{"\xed\xa0\x80", "not UTF-8", "not UTF-8"}, // a surrogate
		{"\ufeffa", "", ""},                        // [MQTT-1.5.4-3]
		{"a b/ü/日本", "", ""},
		{long, "1025 bytes; the limit is 1024", "the limit is 1024"},
		{long[1:], "", ""},
		{deep, "33 levels; the limit is 32", "the limit is 32"},
		{deep[1:], "", ""},
	} {
		for _, x := range []struct {
			err  error
			want string
		}{{CheckFilter(c.text), c.filter}, {CheckName(c.text), c.name}} {
			switch {
			case (x.err == nil) != (x.want == ""), x.err != nil && !strings.Contains(x.err.Error(), x.want):
				t.Errorf("%.40q: %v; want %q", c.text, x.err, x.want)
			case x.err != nil && strings.Contains(x.want, "limit") && !errors.Is(x.err, event.ErrTooLarge), x.err != nil && !strings.Contains(x.want, "limit") && !errors.Is(x.err, event.ErrInvalid):
				t.Errorf("%.40q: wrong kind of %v", c.text, x.err)
			}
		}
	}
}

// levels are few, so that what is drawn often matches.
func drawn(alphabet ...string) *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		return strings.Join(rapid.SliceOfN(rapid.SampledFrom(alphabet), 1, 4).Draw(t, "levels"), "/")
	})
}

var (
	names   = drawn("a", "b", "", "$c").Filter(ValidName)
	filters = drawn("a", "b", "", "$c", "+", "+", "#").Filter(ValidFilter)
)

// naive is 4.7 word by word.
func naive(filter, name string) bool {
	f, n := strings.Split(filter, "/"), strings.Split(name, "/")
	if strings.HasPrefix(name, "$") && (f[0] == "+" || f[0] == "#") {
		return false
	}
	for i, level := range f {
		switch {
		case level == "#":
			return len(n) >= i
		case i >= len(n), level != "+" && level != n[i]:
			return false
		}
	}
	return len(f) == len(n)
}

func TestMatchAsNaive(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f, n := filters.Draw(t, "filter"), names.Draw(t, "name")
		if got, want := Match(f, n), naive(f, n); got != want {
			t.Fatalf("Match(%q, %q) = %v", f, n, got)
		}
	})
}

// all are the names of up to five levels: more than the filters have, so that two filters which share a name share one
// of these.
func everyName() (all []string) {
	level := []string{"a", "b", "", "$c"}
	last := []string{""}
	for range 5 {
		var next []string
		for _, head := range last {
			for _, l := range level {
				name := l
				if head != "" {
					name = head[1:] + "/" + l
				}
				next = append(next, "x"+name) // x so that an empty head is told from an empty name
			}
		}
		for _, n := range next {
			if ValidName(n[1:]) {
				all = append(all, n[1:])
			}
		}
		last = next
	}
	return all
}

func TestOverlap(t *testing.T) {
	every := everyName()
	rapid.Check(t, func(t *rapid.T) {
		a, b := filters.Draw(t, "a"), filters.Draw(t, "b")
		want := slices.ContainsFunc(every, func(n string) bool { return naive(a, n) && naive(b, n) })
		if got := Overlap(a, b); got != want {
			t.Fatalf("Overlap(%q, %q) = %v", a, b, got)
		}
	})
}

func TestMoreSpecific(t *testing.T) {
	for _, c := range []struct{ a, b string }{
		{"a/b", "a/+"}, {"a/+", "a/#"}, {"a", "a/#"}, {"a/+/+", "+/b/c"}, {"a/b/#", "a/+/c"}, {"+/b", "#"}, {"a/+/c", "a/+/#"},
	} {
		if !MoreSpecific(c.a, c.b) || MoreSpecific(c.b, c.a) {
			t.Errorf("%q does not go before %q", c.a, c.b)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		a, b := filters.Draw(t, "a"), filters.Draw(t, "b")
		if MoreSpecific(a, b) && MoreSpecific(b, a) || Overlap(a, b) && a != b && !MoreSpecific(a, b) && !MoreSpecific(b, a) {
			t.Fatalf("of %q and %q none goes first", a, b)
		}
	})
}

// What the wildcards took, put back, is the name.
func TestCaptureFill(t *testing.T) {
	if got := Capture("s/+/#", "s/a/b/c"); !slices.Equal(got, []string{"a", "b/c"}) {
		t.Errorf("captured %q", got)
	}
	rapid.Check(t, func(t *rapid.T) {
		f, n := filters.Draw(t, "filter"), names.Draw(t, "name")
		if !naive(f, n) {
			return
		}
		pieces := Capture(f, n)
		if len(pieces) != Wildcards(f) {
			t.Fatalf("%q of %q: %q", f, n, pieces)
		}
		back, ok := AppendFill([]byte("x"), f, pieces)
		if last := len(pieces) - 1; last >= 0 && pieces[last] == "" && strings.HasSuffix(f, "#") {
			// a/# took nothing of a and of a/ alike; the first is what comes back, unless it is no name
			if head := strings.TrimSuffix(n, "/"); ok && string(back[1:]) != n && string(back[1:]) != head {
				t.Fatalf("%q of %q: %q comes back as %q", f, n, pieces, back)
			}
			return
		}
		if !ok || string(back) != "x"+n {
			t.Fatalf("%q of %q: %q comes back as %q, %v", f, n, pieces, back, ok)
		}
	})
	for _, c := range []struct {
		filter string
		pieces []string
	}{
		{"+/b", []string{"a/c"}}, {"+", []string{"$SYS"}}, {"#", []string{""}}, {"+/+", []string{"a"}}, {"a/+", []string{"+"}}, {"a/#", []string{strings.Repeat("x", MaxLen)}},
	} {
		if got, ok := AppendFill(nil, c.filter, c.pieces); ok {
			t.Errorf("%q is filled with %.20q: %.40q", c.filter, c.pieces, got)
		}
	}
}

// A trie answers as its filters do one by one, the most specific first, after any adding and removing.
func TestTrieAsNaive(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type entry struct {
			filter string
			v      int
		}
		var trie Trie[int]
		var table Table[int]
		var model []entry
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			e := entry{filters.Draw(t, "filter"), rapid.IntRange(0, 2).Draw(t, "value")}
			if len(model) > 0 && rapid.Bool().Draw(t, "known") {
				e = rapid.SampledFrom(model).Draw(t, "entry")
			}
			if rapid.IntRange(0, 2).Draw(t, "op") > 0 {
				trie.Add(e.filter, e.v)
				model = append(model, e)
				continue
			}
			at := slices.Index(model, e)
			if got := trie.Remove(e.filter, e.v); got != (at >= 0) {
				t.Fatalf("Remove(%v) = %v", e, got)
			}
			if at >= 0 {
				model = slices.Delete(model, at, at+1)
			}
		}
		if trie.Len() != len(model) {
			t.Fatalf("has %d; want %d", trie.Len(), len(model))
		}
		if len(model) == 0 && !trie.root.empty() {
			t.Fatal("nodes are left of what is gone")
		}
		name := names.Draw(t, "name")
		var got, want []int
		var best string
		for _, e := range model {
			table.Put(e.filter, e.v)
			if naive(e.filter, name) {
				want = append(want, e.v)
				if best == "" || MoreSpecific(e.filter, best) {
					best = e.filter
				}
			}
		}
		trie.MatchBytes([]byte(name), func(v int) bool {
			got = append(got, v)
			return true
		})
		first, ok := table.First(name)
		if ok != (len(want) > 0) || ok && !slices.Contains(model, entry{best, first}) {
			t.Fatalf("first of %q: %v, %v; want one of %q", name, first, ok, best)
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Fatalf("%q finds %v; want %v", name, got, want)
		}
	})
}

// Readers look up while others add and remove; it is the race detector that looks on.
func TestTrieConcurrent(t *testing.T) {
	var trie Trie[*int]
	stays := new(int)
	trie.Add("a/#", stays)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for range 500 {
				v, filter := new(int), []string{"a/+", "a/b", "+/b", "#"}[rand.IntN(4)]
				if g%2 == 0 {
					trie.Add(filter, v)
					trie.Remove(filter, v)
					continue
				}
				found := false
				trie.Match("a/b", func(v *int) bool {
					found = found || v == stays
					return true
				})
				if !found {
					t.Error("what stays was not found")
				}
			}
		})
	}
	wg.Wait()
	if trie.Len() != 1 {
		t.Errorf("%d are left", trie.Len())
	}
}

func TestMatchAllocatesNothing(t *testing.T) {
	var trie Trie[int]
	for i, f := range []string{"s/+/t", "s/#", "+/1/#", "#", "s/1/t", "other/+"} {
		trie.Add(f, i)
	}
	name, pieces, dst := []byte("s/1/t"), make([]string, 0, 4), make([]byte, 0, 64)
	var found int
	if n := testing.AllocsPerRun(100, func() {
		found = 0
		trie.MatchBytes(name, func(int) bool {
			found++
			return true
		})
		Match("s/+/#", "s/1/t")
		pieces = AppendCapture(pieces[:0], "s/+/#", "s/1/t")
		dst, _ = AppendFill(dst[:0], "s/+/#", pieces)
	}); n != 0 || found != 5 || string(dst) != "s/1/t" {
		t.Errorf("%v allocations a match of %d, %q", n, found, dst)
	}
}
