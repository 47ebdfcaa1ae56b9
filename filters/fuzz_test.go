package filters

import "testing"

// FuzzCompile: no source panics, and what compiles runs alike on both machines.
func FuzzCompile(f *testing.F) {
	for _, src := range []string{`type == "a" && data.total > 100`, `any(data.items, .a in [1, 2])`, `not (x ? -1 : len("a") ** 2)`, "data[`a`]?.b ?? 1", `a | filter(# not in {1: 2})`, `'\u{1F600}' < b"x"[1:]`, `if true {1} else {2}`, `data.x < 1 < 2`, "// c\n/* d */ true"} {
		f.Add(src, `{"items":[{"a":1}],"x":0}`)
	}
	f.Fuzz(func(t *testing.T, src, data string) {
		p, err := Compile(src)
		if err != nil {
			if len(err.Error()) > 2000 {
				t.Fatalf("an error of %d bytes", len(err.Error()))
			}
			return
		}
		whole, err := compile(src, true)
		if err != nil {
			t.Fatalf("for one machine only: %v", err)
		}
		rec := record(sample(data))
		var a, b Scratch
		is, other := p.Match(rec, &a), whole.Match(rec, &b)
		if is != other && a.Errors == b.Errors {
			t.Fatalf("%t and %t", is, other)
		}
		if x := p.Explain(rec); x.Matched != is || x.String() == "" {
			t.Fatalf("%t, explained as %s", is, x)
		}
		if hits := NewIndex([]*Program{p}).Match(rec, &a, nil); (len(hits) == 1) != is {
			t.Fatalf("the index finds %v", hits)
		}
	})
}

// FuzzMatch: no data panics, and the scanner reads it as encoding/json does.
func FuzzMatch(f *testing.F) {
	for _, data := range []string{`{"a":{"b":1},"a":2}`, `{"a":{"b":"\ud800\u0041"}}`, `[[1,2],{"a":null}]`, `{"a":{"b":[1e400,-0]}}`, "{", `"\u`} {
		f.Add(data)
	}
	var programs []*Program
	for _, src := range []string{`data.a.b == 1`, `any(data.a.b, # > 1 || .c == 2)`, `"x" in data.a`, `data.a + data.b > 1`, `len(data) == 2`, `data[0][1] == 2`, `lower(data.a.b) contains "a"`} {
		p, err := Compile(src)
		if err != nil {
			f.Fatal(err)
		}
		programs = append(programs, p)
	}
	x := NewIndex(programs)
	f.Fuzz(func(t *testing.T, data string) {
		if len(data) < 1000 { // encoding/json nests deeper than a filter
			checkScan(t, data)
		}
		rec := record(sample(data))
		var a, b Scratch
		hits := x.Match(rec, &a, nil)
		for i, p := range programs {
			if is := p.Match(rec, &b); is != (len(hits) > 0 && hits[0] == i) {
				t.Fatalf("%s: %t, the index finds %v", p.Source(), is, hits)
			} else if is {
				hits = hits[1:]
			}
		}
	})
}
