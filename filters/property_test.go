package filters

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/millrace/millrace/engine/event"
)

var scalars = []string{"1", "2", "1.0", "-0.0", "0.5", "5e-1", "9007199254740993", "9007199254740992", "1e400", "-7",
	`"a"`, `"b"`, `"\u0061"`, `"ab"`, `"1"`, `""`, `"2026-03-01T12:00:00Z"`, "true", "false", "null"}

func genJSON(depth int) *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		sort := 0
		if depth > 0 {
			sort = rapid.IntRange(0, 4).Draw(t, "sort")
		}
		switch sort {
		case 3:
			return "[" + strings.Join(rapid.SliceOfN(genJSON(depth-1), 0, 4).Draw(t, "list"), ", ") + "]"
		case 4, 2:
			var members []string
			for _, v := range rapid.SliceOfN(genJSON(depth-1), 0, 4).Draw(t, "members") {
				key := rapid.SampledFrom([]string{`"a"`, `"b"`, `"c"`, `"\u0063"`, `"d e"`}).Draw(t, "key")
				members = append(members, key+": "+v)
			}
			return "{" + strings.Join(members, " ,") + "}"
		}
		return rapid.SampledFrom(scalars).Draw(t, "scalar")
	})
}

func genEvent() *rapid.Generator[event.Event] {
	return rapid.Custom(func(t *rapid.T) event.Event {
		e := event.Event{ID: "1", Source: "/s", Topic: "t"}
		e.Type = rapid.SampledFrom([]string{"a", "b", "ab"}).Draw(t, "type")
		e.Subject = rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "subject")
		e.Time = rapid.SampledFrom([]string{"", "2026-03-01T12:00:00Z", "2026-03-01T13:00:00+01:00", "soon"}).Draw(t, "time")
		e.DataContentType = rapid.SampledFrom([]string{"", "application/json", "application/x+JSON; a=b", "text/plain"}).Draw(t, "ct")
		if v := rapid.SampledFrom([]string{"", "1", "2", "true", "a", "1.0"}).Draw(t, "ext"); v != "" {
			e.Extensions = []event.Attribute{{Name: "x", Value: v}}
		}
		data := genJSON(3).Draw(t, "data")
		if rapid.IntRange(0, 9).Draw(t, "broken") == 0 {
			data = data[:len(data)-1]
		}
		e.Data = []byte(data)
		return e
	})
}

var constants = []string{"1", "2", "1.0", "0.5", "0.50", "-7", "0", "9007199254740993", `"a"`, `"b"`, `"ab"`, `"1"`, "true", "false"}

// genValue draws an expression of a value; item allows the item of a predicate.
func genValue(depth int, item bool) *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		sort := rapid.IntRange(0, 7).Draw(t, "sort")
		if depth == 0 {
			sort %= 3
		}
		sub := func() string { return genValue(depth-1, item).Draw(t, "sub") }
		switch sort {
		case 0:
			return rapid.SampledFrom(constants).Draw(t, "constant")
		case 3:
			return "(" + sub() + rapid.SampledFrom([]string{" + ", " - ", " * ", " / ", " % "}).Draw(t, "arith") + sub() + ")"
		case 4:
			return rapid.SampledFrom([]string{"len", "lower", "upper", "trim"}).Draw(t, "fn") + "(" + sub() + ")"
		case 5:
			return "(" + genCondition(depth-1, item).Draw(t, "cond") + " ? " + sub() + " : " + sub() + ")"
		case 6:
			if item {
				return "#.a"
			}
			return "count(" + genPath().Draw(t, "list") + ", " + genCondition(depth-1, true).Draw(t, "body") + ")"
		}
		if item {
			return rapid.SampledFrom([]string{"#", ".a", "#.b.c", "#[0]", `#["d e"]`}).Draw(t, "item")
		}
		if rapid.Bool().Draw(t, "attribute") {
			return rapid.SampledFrom([]string{"type", "subject", "time", "ext.x", "key"}).Draw(t, "attr")
		}
		return genPath().Draw(t, "path")
	})
}

func genPath() *rapid.Generator[string] {
	return rapid.SampledFrom([]string{"data", "data.a", "data.b", "data.c", "data.a.b", "data.a.a", "data.b[0]", "data[0]", "data[1].a", `data["d e"]`, "data.c.c"})
}

func genCondition(depth int, item bool) *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		sort := rapid.IntRange(0, 11).Draw(t, "sort")
		if depth <= 0 {
			sort %= 6
		}
		sub := func() string { return genCondition(depth-1, item).Draw(t, "sub") }
		val := func() string { return genValue(max(depth-1, 0), item).Draw(t, "val") }
		switch sort {
		case 0, 1:
			return val() + rapid.SampledFrom([]string{" == ", " != ", " < ", " <= ", " > ", " >= "}).Draw(t, "rel") + val()
		case 2:
			list := rapid.SliceOfN(rapid.SampledFrom(constants), 1, 12).Draw(t, "list")
			return val() + rapid.SampledFrom([]string{" in [", " not in ["}).Draw(t, "in") + strings.Join(list, ", ") + "]"
		case 3:
			return val() + rapid.SampledFrom([]string{" contains ", " startsWith ", " endsWith ", " not contains ", " not endsWith "}).Draw(t, "op") + val()
		case 4:
			if item {
				return "has(.a)"
			}
			return "has(" + genPath().Draw(t, "path") + ")"
		case 5:
			if item {
				return "#"
			}
			return rapid.SampledFrom([]string{"data.a", "ext.x", "type matches \"^a\"", "type not matches \"b$\"", "\"a\" in data.b", "1 not in data.b"}).Draw(t, "bare")
		case 6, 7:
			return "(" + sub() + " && " + sub() + ")"
		case 8:
			return "(" + sub() + " || " + sub() + ")"
		case 9:
			return rapid.SampledFrom([]string{"!(", "not ("}).Draw(t, "not") + sub() + ")"
		case 10:
			return "(" + sub() + " ? " + sub() + " : " + sub() + ")"
		}
		if item {
			return "# == .a"
		}
		return rapid.SampledFrom([]string{"any", "all", "none"}).Draw(t, "fn") + "(" + genPath().Draw(t, "list") + ", " + genCondition(depth-1, true).Draw(t, "body") + ")"
	})
}

// TestMachinesAgree: what runs on the small machine and what runs on expr's come to the same, for every
// filter and event; so does what an explanation says.
func TestMachinesAgree(t *testing.T) {
	compared, matched := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		src := genCondition(3, false).Draw(t, "filter")
		p, err := Compile(src)
		if err != nil {
			return // such as type == 1
		}
		whole, err := compile(src, true)
		if err != nil {
			t.Fatalf("%s compiles for one machine only: %v", src, err)
		}
		for range 8 { // one event seldom matches
			e := genEvent().Draw(t, "event")
			rec := record(e)
			var a, b Scratch
			is := p.Match(rec, &a)
			if other := whole.Match(rec, &b); is != other || a.Errors != b.Errors {
				t.Fatalf("%s with %s: %t (%d errors), on expr's machine %t (%d errors)", src, e.Data, is, a.Errors, other, b.Errors)
			}
			if x := p.Explain(rec); x.Matched != is || len(x.Parts) == 0 || x.Parts[0].Value != is {
				t.Fatalf("%s with %s: %t, explained as %s", src, e.Data, is, x)
			}
			compared++
			if is {
				matched++
			}
		}
	})
	if compared < 240 || matched < 5 {
		t.Fatalf("only %d filters compared, %d matched", compared, matched)
	}
}

// TestIndexEqualsNaive: an index finds exactly what evaluating every program finds.
func TestIndexEqualsNaive(t *testing.T) {
	hits := 0
	rapid.Check(t, func(t *rapid.T) {
		var programs []*Program
		for _, src := range rapid.SliceOfN(genIndexed(), 0, 12).Draw(t, "filters") {
			p, err := Compile(src)
			if err != nil {
				continue
			}
			programs = append(programs, p)
			if len(src)%7 == 0 {
				programs = append(programs, nil)
			}
		}
		x := NewIndex(programs)
		var a, b Scratch
		for _, e := range rapid.SliceOfN(genEvent(), 1, 4).Draw(t, "events") {
			rec := record(e)
			if rapid.Bool().Draw(t, "reset") {
				a.Reset(rec)
				b.Reset(rec)
			}
			want := []int{-1}
			for i, p := range programs {
				if p.Match(rec, &a) {
					want = append(want, i)
				}
			}
			got := x.Match(rec, &b, []int{-1})
			if !slices.Equal(got, want) {
				t.Fatalf("with %s the index finds %v, one by one it is %v", e.Data, got, want)
			}
			hits += len(want) - 1
		}
	})
	if hits < 10 {
		t.Fatalf("only %d hits", hits)
	}
}

// genIndexed draws filters that often require equalities.
func genIndexed() *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		parts := []string{}
		for range rapid.IntRange(1, 3).Draw(t, "parts") {
			field := rapid.SampledFrom([]string{"type", "subject", "time", "ext.x", "data.a", "data.b", "data.c", "data.a.b", "data"}).Draw(t, "field")
			c := rapid.SampledFrom(append([]string{`"2026-03-01T12:00:00Z"`, "1e400", "nil"}, constants...))
			switch rapid.IntRange(0, 5).Draw(t, "part") {
			case 0:
				parts = append(parts, genCondition(1, false).Draw(t, "cond"))
			case 1:
				parts = append(parts, field+" in ["+strings.Join(rapid.SliceOfN(c, 1, 4).Draw(t, "list"), ",")+"]")
			case 2:
				parts = append(parts, c.Draw(t, "const")+" == "+field)
			default:
				parts = append(parts, field+" == "+c.Draw(t, "const"))
			}
		}
		return strings.Join(parts, rapid.SampledFrom([]string{" && ", " && ", " || "}).Draw(t, "connective"))
	})
}

// TestScannerIsJSON: the scanner takes what encoding/json takes, and reads the same numbers and strings.
func TestScannerIsJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		doc := []byte(genJSON(4).Draw(t, "doc"))
		if rapid.Bool().Draw(t, "break") {
			doc[rapid.IntRange(0, len(doc)-1).Draw(t, "at")] = rapid.SampledFrom([]byte(`{}[],:"\ 01-e.tu`+"\x01\n")).Draw(t, "byte")
		}
		checkScan(t, string(doc))
	})
	for _, doc := range []string{"", " ", "01", "-", "1.", ".5", "1e", "1e+", `"\u12"`, `"\x"`, "\"\t\"", "[1,]", `{"a":1,}`, `{"a"}`, `{a:1}`, "[1 2]", "truer", "nul", "[", "]", "{]", " [ ] ", `{"a":[{}]}`, "1 1", "\uFEFF1"} {
		checkScan(t, doc)
	}
}

func checkScan(t interface{ Fatalf(string, ...any) }, doc string) {
	tr := newTree()
	path := []segment{{"a", -1}, {"b", -1}}
	node := tr.add(path)
	top := tr.add(path[:1])
	var sc scanner
	ok := sc.scan(tr, doc)
	if want := json.Valid([]byte(doc)); ok != want {
		t.Fatalf("%q: JSON is %t, want %t", doc, ok, want)
	}
	var v any
	if json.Unmarshal([]byte(doc), &v) != nil {
		return
	}
	m, _ := v.(map[string]any)
	a, hasA := m["a"]
	if _, found := sc.at(tr, top, 0); found != hasA {
		t.Fatalf("%s: a found %t, want %t", doc, found, hasA)
	}
	ma, _ := a.(map[string]any)
	b, hasB := ma["b"]
	f, found := sc.at(tr, node, 0)
	if found != hasB {
		t.Fatalf("%s: a.b found %t, want %t", doc, found, hasB)
	}
	if !found {
		return
	}
	var s Scratch
	switch got := s.decode(doc[f.from:f.to], f.escaped); want := b.(type) {
	case string:
		if !utf8.ValidString(doc) {
			return // encoding/json mends bytes that are not UTF-8; a filter compares them as they are
		}
		if got.kind != text || got.s != want {
			t.Fatalf("%s: a.b is %v, want %q", doc, got, want)
		}
	case []any, map[string]any:
		n := 0
		s.items(got.s, func(value) bool { n++; return true })
		if l, isList := want.([]any); isList && n != len(l) {
			t.Fatalf("%s: a.b has %d items, want %d", doc, n, len(l))
		}
	}
}

// TestInstants: times are read as the rest of the router reads them.
func TestInstants(t *testing.T) {
	for _, s := range []string{"2026-03-01T12:00:00Z", "2026-03-01T12:00:00.123456789Z", "2026-03-01T12:00:00.1234567891Z", "2026-02-29T00:00:00Z",
		"2024-02-29T23:59:59+05:30", "2024-02-29T23:59:60Z", "2024-02-29t00:00:00z", "2024-02-29T00:00:00", "2024-02-29T00:00:00+24:00",
		"2024-02-29T00:00:00+23:60", "2024-02-29T00:00:00+25:00", "2024-02-29T00:00:00-00:00", "2024-02-29T00:00:00,5Z", "2024-02-29T00:00:00.Z", "0000-01-01T00:00:00Z", "9999-12-31T23:59:59.9-12:00", "2024-2-29T00:00:00Z", "20240229T000000Z", ""} {
		checkInstant(t, s)
	}
	rapid.Check(t, func(t *rapid.T) {
		at := time.Unix(rapid.Int64Range(-62135596800, 253402300799).Draw(t, "s"), rapid.Int64Range(0, 999999999).Draw(t, "ns"))
		s := at.In(time.FixedZone("", 60*rapid.IntRange(-1439, 1439).Draw(t, "zone"))).Format(time.RFC3339Nano)
		if b := []byte(s); rapid.Bool().Draw(t, "break") {
			b[rapid.IntRange(0, len(b)-1).Draw(t, "at")] = rapid.SampledFrom([]byte("0123456789T:-+.,Z")).Draw(t, "byte")
			s = string(b)
		}
		checkInstant(t, s)
	})
}

func checkInstant(t interface{ Errorf(string, ...any) }, s string) {
	want, err := event.ParseTime(s)
	got := parseInstant(s)
	if (got.kind == instant) != (err == nil) {
		t.Errorf("%q: read %v, event.ParseTime says %v", s, got, err)
	} else if err == nil && (got.i != want.Unix() || int(got.n) != want.Nanosecond()) {
		t.Errorf("%q: %d.%09d, want %d.%09d", s, got.i, got.n, want.Unix(), want.Nanosecond())
	}
}

// TestNumbersExact holds numbers against math/big.
func TestNumbersExact(t *testing.T) {
	number := rapid.StringMatching(`-?(0|[1-9][0-9]{0,24})(\.[0-9]{1,12})?([eE][+-]?[0-9]{1,2})?`)
	rapid.Check(t, func(t *rapid.T) {
		a, b := number.Draw(t, "a"), number.Draw(t, "b")
		if rapid.Bool().Draw(t, "same") {
			b = strings.Replace(a, "-", "", 1) + "0"
			if !strings.Contains(a, ".") || strings.ContainsAny(a, "eE") {
				b = a
			}
		}
		x, ok1 := parseNumber(a)
		y, ok2 := parseNumber(b)
		if !ok1 || !ok2 {
			t.Fatalf("%s %t, %s %t", a, ok1, b, ok2)
		}
		ra, rb := rational(t, a), rational(t, b)
		if got, want := compareNumbers(x, y), ra.Cmp(rb); (got < 0) != (want < 0) || (got > 0) != (want > 0) {
			t.Fatalf("%s against %s: %d, want %d", a, b, got, want)
		}
		if same := string(x.appendDigits(nil)) == string(y.appendDigits(nil)) && x.kind == y.kind && (x.kind == decimal || x.i == y.i); same != (ra.Cmp(rb) == 0) {
			t.Fatalf("%s and %s share a bucket: %t", a, b, same)
		}
		for _, o := range []op{opAdd, opSubtract, opMultiply} {
			got, err := compute(o, x, y)
			if err != nil {
				t.Fatalf("%s, %s: %v", a, b, err)
			}
			if want := exactly(o, ra, rb); rational(t, exponentForm(got)).Cmp(want) != 0 {
				t.Fatalf("%s, %s, op %d: %s, want %s", a, b, o, exponentForm(got), want)
			}
		}
	})
}

func exponentForm(v value) string {
	if v.kind == integer {
		return fmt.Sprint(v.i)
	}
	sign := ""
	if v.b {
		sign = "-"
	}
	return fmt.Sprintf("%s0.%se%d", sign, strings.ReplaceAll(v.s, ".", ""), v.i)
}
