package filters

import (
	"fmt"
	"strings"
	"testing"
)

// Reads are in the order of the source, each at the place where its path begins.
func TestReads(t *testing.T) {
	for _, c := range []struct{ src, want string }{
		{`type == "a" && ext.x > 1`, ""},
		{`data.total > 100`, `> data.total number:100`},
		{`"x" == data.a["b c"][0]`, `== data.a["b c"][0] string:x`},
		{`data.c not in ["DE", 5, true]`, `in data.c string:DE number:5 boolean:true`},
		{`has(data.a) || !(data.b == nil)`, "has data.a\n== data.b null:nil"},
		{`data.ok && !data.no`, "a condition data.ok (boolean)\na condition data.no (boolean)"},
		{`data.a contains "x" || data.b matches "y"`, "contains data.a (string)\nmatches data.b (string)"},
		{`any(data.items, .price > 1 && data.x == 2)`, "any data.items (array)\n> data.items[].price number:1\n== data.x number:2"},
		{`count(data.items, .a == 1) > 2`, "count data.items (array)\n== data.items[].a number:1"},
		{`any(filter(data.items, .a == 1), .b == 2)`, "filter data.items (array)\n== data.items[].a number:1\n== data.items[].b number:2"},
		{`all(map(data.items, .a), # == 2)`, "map data.items (array)\nmap data.items[].a"},
		{`data.a + data.b * 2 > -1`, "+ data.a (string number)\n* data.b (number)"},
		{`len(data.a) == 1 && lower(data.b) == "x"`, "len data.a (string array object)\nlower data.b (string)"},
		{`"x" in data.tags`, "in data.tags (array)\nin data.tags[] string:x"},
		{`(data.p ? data.a : data.b) > 5`, "a condition data.p (boolean)\n> data.a number:5\n> data.b number:5"},
		{`data.a < data.b`, "< data.a (string number)\n< data.b (string number)"},
		{`data == 5`, "== data number:5"},
	} {
		p, err := Compile(c.src)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, r := range p.Reads() {
			s := r.Operator + " " + r.Name
			if r.Kinds != nil {
				s += " (" + strings.Join(r.Kinds, " ") + ")"
			}
			for _, k := range r.Constants {
				s += fmt.Sprintf(" %s:%s", k.Kind, k.Value)
				if at := string([]rune(c.src)[k.At:]); k.Kind == "string" && !strings.HasPrefix(at, `"`+k.Value) || k.Kind == "number" && !strings.HasPrefix(at, strings.TrimPrefix(k.Value, "0")) && !strings.HasPrefix(at, "-") {
					t.Errorf("%s: constant %s at %q", c.src, k.Value, at)
				}
			}
			begin := r.Name
			if i := strings.Index(begin, "[]"); i >= 0 && r.Name != "data.tags[]" {
				begin = strings.TrimPrefix(begin[i+2:], "[]")
			}
			if at := string([]rune(c.src)[r.At:]); r.Name != "data.tags[]" && !strings.HasPrefix(at, begin) {
				t.Errorf("%s: %s at %q", c.src, r.Name, at)
			}
			got = append(got, s)
		}
		want := c.want
		if strings.Join(got, "\n") != want {
			t.Errorf("%s\ngot\n%s\nwant\n%s", c.src, strings.Join(got, "\n"), want)
		}
	}
}
