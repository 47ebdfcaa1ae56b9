package filters

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// TestRefused: every refusal says what is wrong, where, and what is allowed.
func TestRefused(t *testing.T) {
	deep := func(open, mid, end string, n int) string {
		return strings.Repeat(open, n) + mid + strings.Repeat(end, n)
	}
	for _, c := range []struct {
		src    string
		column int
		says   []string
	}{
		{"", 1, []string{"empty"}},
		{"  ", 1, []string{"empty"}},
		{`tipe == "a"`, 1, []string{`unknown name "tipe"`, `did you mean "type"?`, "datacontenttype"}},
		{`id == "1" && subjcet == "a"`, 14, []string{`did you mean "subject"?`}},
		{`has(data.x) && starts(data.x)`, 16, []string{`unknown function "starts"`, "startsWith is an operator", "any"}},
		{`lenght(data.x) == 1`, 1, []string{`unknown function "lenght"`, `"len"`}},
		{`type(data.x) == "string"`, 1, []string{`unknown function "type"`}},
		{`get(data, "x") == 1`, 1, []string{`unknown function "get"`}},
		{`toJSON(data) == "x"`, 1, []string{`unknown function "toJSON"`}},
		{`repeat(data.x, 1000000) == ""`, 1, []string{`unknown function "repeat"`}},
		{`time > now()`, 8, []string{"now() is refused", "nothing but the event"}},
		{`date("2026-01-01") < time`, 1, []string{"date() is refused"}},
		{`reduce(data.a, #acc + #, "") == "x"`, 1, []string{"reduce is refused"}},
		{`any(data.a, any(#.b, # == 1))`, 13, []string{"any inside a predicate is refused"}},
		{`any(data.a, count(data.b, # == 1) > 1)`, 13, []string{"count inside a predicate is refused"}},
		{`any(data.a, #index > 1)`, 13, []string{"#index is refused"}},
		{`any(data.a, price > 1)`, 13, []string{`unknown name "price"`, "written .price"}},
		{`any(type, # == 1)`, 5, []string{"any goes through a list"}},
		{`sortBy(data.a, .b) == 1`, 1, []string{`unknown function "sortBy"`}},
		{`data.a matches data.b`, 16, []string{"must be a constant", "data.b"}},
		{`data.a matches ("a" + type)`, 21, []string{"must be a constant"}},
		{`data.a matches "("`, 16, []string{"missing closing )", "RE2"}},
		{`data.a matches "(a{1000}){1000}"`, 16, []string{"RE2"}},
		{`data.a matches "` + strings.Repeat("a{100}", 10) + `"`, 16, []string{"1002 instructions", "at most 500"}},
		{`type`, 1, []string{"type is a string, not a condition", "has(type)"}},
		{`"a"`, 1, []string{"is a value, not a condition"}},
		{`data.x + 1`, 8, []string{"is a value, not a condition"}},
		{`len(data.x)`, 1, []string{"is a value, not a condition"}},
		{`(data.a == 1) == (data.b == 1)`, 9, []string{"is a condition and stands where a value is compared"}},
		{`!type == "a"`, 1, []string{"! binds to type alone", "brackets"}},
		{`type == 5`, 9, []string{"type is a string and 5 is a number", "in quotes"}},
		{`type in ["a", 5]`, 15, []string{"type is a string and 5 is a number"}},
		{`type == ["a"]`, 9, []string{"a list stands only to the right of in"}},
		{`type in "abc"`, 9, []string{"in takes a list of constants"}},
		{`data.x in [data.y]`, 12, []string{"constants only"}},
		{`data.x in 1..5`, 12, []string{"a range is refused"}},
		{`time == "noon"`, 9, []string{`"noon" is not a time`, "RFC 3339"}},
		{`data.x != nil`, 8, []string{"never true", "has(data.x)"}},
		{`data.x < true`, 8, []string{"does not order booleans"}},
		{`(data.x ?? 1) == 1`, 9, []string{"?? is refused"}},
		{`data.x ** 2 == 4`, 8, []string{"operator ** is refused"}},
		{`data.x ?: true`, 14, []string{"?: without a middle part"}},
		{`let x = 1; x == 1`, 5, []string{"let is refused"}},
		{`true; true`, 1, []string{"a sequence (;) is refused"}},
		{`data[type] == 1`, 6, []string{"an index is a constant"}},
		{`data[-1] == 1`, 6, []string{"an index is a constant", "from 0"}},
		{`data[1:2] == 1`, 1, []string{"slice"}},
		{`data.x.toUpper() == "A"`, 8, []string{"is a method"}},
		{`$env == 1`, 1, []string{`unknown name "$env"`}},
		{`ext == "a"`, 1, []string{"ext.<name>"}},
		{`ext.Foo == "a"`, 1, []string{"lower-case"}},
		{`type.x == "a"`, 1, []string{"has no fields"}},
		{`{"a": 1} == 1`, 1, []string{"map"}},
		{`data.x == 99999999999999999999`, 0, []string{"value out of range"}},
		{`data.x == `, 0, []string{"unexpected token EOF"}},
		{"type == \"a\"\n&& tipe == \"b\"", 4, []string{"line 2, column 4", `"tipe"`}},
		{"type == \"a\u202eb\"", 11, []string{"U+202E", "direction"}},
		{"type == \"a\x00b\"", 11, []string{"U+0000"}},
		{"type == \"a\xff\"", 11, []string{"0xff", "not UTF-8"}},
		{"tуpe == \"a\"", 1, []string{"unknown name"}}, // a Cyrillic у
		{"data.ü == 1 && tipe == 1", 16, []string{`"tipe"`}},
		{strings.Repeat("a", MaxSource+1), 1, []string{"4097 bytes", "at most 4096"}},
		{strings.Repeat("(", 1_000_000), 1, []string{"1000000 bytes", "at most 4096"}},
		{strings.Repeat("(", 4096), 65, []string{"nest 65 deep", "at most 64"}},
		{deep("(", "true", ")", 65), 65, []string{"nest 65 deep"}},
		{deep("!", "true", "", 1500), 0, []string{"nests more than 256"}},
		{deep("-", "data.x", "", 1500) + " == 1", 0, []string{"nests more than 256"}},
		{strings.Repeat("true ? true : ", 280) + "true", 0, []string{"nests more than 256"}},
		{"data.x in [" + strings.Repeat("1,", 2030) + "1]", 0, []string{"too many parts", "at most 2000"}},
		{"data" + strings.Repeat(".a", 65) + " == 1", 0, []string{"more than 64 steps"}},
		// expr shares the middle operand of a < b < c: walked as a tree this one has 2^40 nodes.
		{deep("1 < (", "1", " < 2 ? 1 : 2) < 3", 40), 0, []string{"too many parts"}},
	} {
		began := time.Now()
		_, err := Compile(c.src)
		var e *Error
		if !errors.As(err, &e) {
			t.Errorf("%.80q: error %v", c.src, err)
			continue
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("%.80q: refused only after %s", c.src, took)
		}
		if c.column != 0 && e.Column != c.column {
			t.Errorf("%.80q: column %d, want %d (%s)", c.src, e.Column, c.column, e.Detail)
		}
		for _, says := range c.says {
			if !strings.Contains(err.Error(), says) {
				t.Errorf("%.80q: %q does not say %q", c.src, err, says)
			}
		}
		if len(err.Error()) > 1000 {
			t.Errorf("%.80q: the error has %d bytes", c.src, len(err.Error()))
		}
	}
}

// TestBounds: what an event makes too dear is no match and counted, also under || and !, and it ends soon.
func TestBounds(t *testing.T) {
	list := func(item string, n int) string { return `{"a":[` + strings.Repeat(item+",", n-1) + item + "]}" }
	xs := strings.Repeat("x", 1<<20)
	for _, c := range []struct {
		src, data string
		errors    uint64
		match     bool
	}{
		{`any(data.a, # == 2) || true`, list("1", maxItems), 0, true},
		{`any(data.a, # == 2) || true`, list("1", maxItems+1), 1, false},
		{`!any(data.a, # == 2)`, list("1", maxItems+1), 1, false},
		{`"x" in data.a || true`, list("1", maxItems+1), 1, false},
		{`"x" not in data.a`, list("1", maxItems), 0, true},
		{`len(data.a) == 10001`, list("1", maxItems+1), 0, true},
		{`data.a + data.a == ""`, `{"a":"` + xs + `"}`, 1, false},
		{`data.a + "y" == ""`, `{"a":"` + xs[:1000] + `"}`, 0, false},
		{`data.a matches "(x+x+)+y"`, `{"a":"` + xs + `"}`, 0, false},
		{`data.a matches "(x{1,100}){1,2}y"`, `{"a":"` + xs + `"}`, 1, false},
		{`data.a + 1 > 0`, `{"a":1` + strings.Repeat("0", maxDigits-2) + `1}`, 0, true},
		{`data.a + 1 > 0`, `{"a":1` + strings.Repeat("0", maxDigits) + `1}`, 1, false},
		{`data.a + 1 > 0`, `{"a":1e999999999}`, 1, false},
		{`data.a > 1`, `{"a":1e999999999}`, 0, true},
		{`data.a > 1`, `{"a":1e9999999999}`, 0, false},
		{`data.a * data.a > 1`, `{"a":1e999999999}`, 1, false},
		{strings.Repeat("any(data.a, .b == 1) || ", 100) + "true", list(`{"b":2}`, maxItems), 1, false},
		{strings.Repeat("any(data.a, .b.c.d == 1) || ", 100) + "true", `{"a":[{"z":"` + xs[:1000000] + `"},1]}`, 1, false},
		{`has(data) || type == "order.created"`, strings.Repeat("[", 1_000_000), 0, true},
		{`has(data)`, strings.Repeat("[", maxDepth) + strings.Repeat("]", maxDepth), 0, true},
		{`has(data)`, strings.Repeat("[", maxDepth+1) + strings.Repeat("]", maxDepth+1), 0, false},
		{`any(data.a, has(#[0][0]))`, `{"a":[` + strings.Repeat("[", 1000) + strings.Repeat("]", 1000) + `]}`, 0, true},
	} {
		p := mustCompile(t, c.src)
		rec := record(sample(c.data))
		s := &Scratch{}
		began := time.Now()
		if got := p.Match(rec, s); got != c.match || s.Errors != c.errors {
			t.Errorf("%.60s with %.30s…: %t with %d errors, want %t with %d", c.src, c.data, got, s.Errors, c.match, c.errors)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("%.60s with %.30s…: took %s", c.src, c.data, took)
		}
		// The Scratch is as good as new.
		if !mustCompile(t, `any(data.l, # == 1) && data.l[1] == "a"`).Match(record(sample(`{"l":[1,"\u0061"]}`)), s) {
			t.Errorf("%.60s: the next event does not match", c.src)
		}
	}
}

// TestMissingCounted: a comparison that could not be made is counted, and is no error.
func TestMissingCounted(t *testing.T) {
	s := &Scratch{}
	mustCompile(t, `data.a == 1 || data.b != "x" || type == "order.created"`).Match(record(sample(`{"b":1}`)), s)
	if s.Missing != 2 || s.Errors != 0 {
		t.Fatalf("%d missing and %d errors, want 2 and 0", s.Missing, s.Errors)
	}
}

// TestOnlyJSON: data of another content type, and bytes, have no paths.
func TestOnlyJSON(t *testing.T) {
	p := mustCompile(t, "data.a == 1")
	for contentType, want := range map[string]bool{"": true, "application/json": true, "application/json; charset=utf-8": true,
		"application/cloudevents+JSON": true, "text/json": true, "text/plain": false, "json": false, "application/xjson": false, "+json": true} {
		e := sample(`{"a":1}`)
		e.DataContentType = contentType
		if got := p.Match(record(e), &Scratch{}); got != want {
			t.Errorf("%q: %t, want %t", contentType, got, want)
		}
	}
	e := sample(`{"a":1}`)
	e.Binary = true
	if p.Match(record(e), &Scratch{}) {
		t.Error("bytes were read as JSON")
	}
}

// TestReset: after Reset a record's fields are read once, and another record is another event.
func TestReset(t *testing.T) {
	p, q := mustCompile(t, "data.a == 1"), mustCompile(t, "data.a == 2")
	one, two := record(sample(`{"a":1}`)), record(sample(`{"a":2}`))
	s := &Scratch{}
	s.Reset(one)
	if !p.Match(one, s) || q.Match(one, s) || !p.Match(one, s) || p.Match(two, s) || !q.Match(two, s) {
		t.Fatal("a Scratch mixes events up")
	}
	buf := append(event.Record(nil), one...)
	for range 2 { // one buffer, two events, no Reset
		s.Reset(one)
		copy(buf, one)
		if !p.Match(buf, s) {
			t.Fatal("1 is not 1")
		}
		if copy(buf, two); p.Match(buf, s) {
			t.Fatal("the event before was matched")
		}
	}
	s.Reset(buf)
	before := s.scan.visits
	q.Match(buf, s)
	q.Match(buf, s)
	if n := s.scan.visits - before; n != 2 {
		t.Fatalf("the data was scanned for %d nodes, want 2", n)
	}
}

func TestNil(t *testing.T) {
	var p *Program
	if !p.Match(record(sample("")), &Scratch{}) || p.Source() != "" || !p.Explain(record(sample(""))).Matched {
		t.Fatal("a nil Program does not match")
	}
	if got := NewIndex([]*Program{nil, mustCompile(t, `type == "x"`), nil}).Match(record(sample("")), &Scratch{}, nil); fmt.Sprint(got) != "[0 2]" {
		t.Fatalf("got %v", got)
	}
}

func TestExplain(t *testing.T) {
	for _, c := range [][3]string{
		{`type == "order.created" && data.total > 100`, `{"total":50}`, `no match: data.total > 100 is false (data.total is 50)`},
		{`type == "order.created" && data.total > 100`, `{}`, `no match: data.total > 100 is false (data.total is missing)`},
		{`data.a == 1 || data.b == "x"`, `{"b":"x"}`, `match: data.b == "x" is true (data.b is "x")`},
		{`data.a == 1 || subject == "x"`, `{"a":0.5}`, `no match: data.a == 1 || subject == "x" is false (data.a is 0.5, subject is missing)`},
		{`data.a not in [1]`, `{}`, `no match: data.a not in [1] is false (data.a is missing)`},
		{`len(data.a) > 1 ? data.b : data.c`, `{"a":"xy","b":true}`, `match: data.b is true (data.b is true)`},
		{`time > "2027-01-01T00:00:00Z"`, `{}`, `no match: time > "2027-01-01T00:00:00Z" is false (time is "2026-03-01T12:00:00Z")`},
		{`data.a * data.a > 1 || true`, `{"a":1e999999999}`, `no match: given up: a number has too many digits`},
	} {
		if got := mustCompile(t, c[0]).Explain(record(sample(c[1]))).String(); !strings.HasPrefix(got, c[2]) {
			t.Errorf("%s with %s:\n got %s\nwant %s", c[0], c[1], got, c[2])
		}
	}
}

// TestNoAllocations: what most filters consist of costs no memory per event.
func TestNoAllocations(t *testing.T) {
	srcs := []string{
		`type == "order.created" && data.total > 100.5 && data.country in ["DE", "FR"]`,
		`data.note == "a\n\"b\"" && data.note startsWith "a" && not (data.note contains "zz") && data.note endsWith "\""`,
		`time > "2026-01-01T00:00:00+05:30" && ext.level == 5 && ext.flag && key != "x" && subject == "none" || has(data.items[1].a)`,
		`data.total in [1, 2, 250.75] && "DE" in data.tags && 1e300 > data.total && (has(data.x) ? data.x : !data.y)`,
		`data.country matches "^D[A-Z]$" && data["a b"] == nil`,
	}
	rec := record(sample(`{"total":250.75,"country":"DE","note":"a\n\"b\"","items":[1,{"a":2}],"tags":["\u0041","DE"],"a b":null}`))
	s := &Scratch{}
	var programs []*Program
	for _, src := range srcs {
		p := mustCompile(t, src)
		if !p.Match(rec, s) {
			t.Errorf("%s does not match: %s", src, p.Explain(rec))
		}
		if n := testing.AllocsPerRun(200, func() { p.Match(rec, s) }); n != 0 {
			t.Errorf("%s allocates %v times", src, n)
		}
		programs = append(programs, p)
	}
	x := NewIndex(programs)
	dst := x.Match(rec, s, nil)
	if len(dst) != len(srcs) {
		t.Fatalf("the index finds %v", dst)
	}
	if n := testing.AllocsPerRun(200, func() { dst = x.Match(rec, s, dst[:0]) }); n != 0 {
		t.Errorf("Index.Match allocates %v times", n)
	}
}
