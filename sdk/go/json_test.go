package millrace

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestGet(t *testing.T) {
	doc := []byte(` { "a" : {"b":[1, {"c":"x\ty\u00e9\ud83d\ude00"}], "d.e":true}, "n":-12, "f":1.5e3, "z":null, "dup":1, "dup":{"k":2}, "esc\u0061":7, "":8 } `)
	for path, want := range map[string]string{
		"a.b.0": "1", "a.b.1.c": `"x\ty\u00e9\ud83d\ude00"`, `a.d\.e`: "true", "n": "-12", "z": "null", "dup": `{"k":2}`,
		"dup.k": "2", "esca": "7", "": string(bytes.TrimSpace(doc)),
		"a.b.2": "-", "a.b.01": "-", "a.b.x": "-", "a.b.": "-", "n.x": "-", "missing": "-", "a.d.e": "-",
	} {
		got := "-"
		if v, ok := Get(doc, path); ok {
			got = string(v)
		}
		if got != want {
			t.Errorf("Get(%q) = %s, want %s", path, got, want)
		}
	}
	if s, ok := GetString(doc, "a.b.1.c"); !ok || s != "x\tyé😀" {
		t.Errorf("GetString = %q, %v", s, ok)
	}
	if n, ok := GetInt(doc, "n"); !ok || n != -12 {
		t.Errorf("GetInt = %d, %v", n, ok)
	}
	if _, ok := GetInt(doc, "f"); ok {
		t.Error("GetInt takes 1.5e3")
	}
	if f, ok := GetFloat(doc, "f"); !ok || f != 1500 {
		t.Errorf("GetFloat = %v, %v", f, ok)
	}
	if b, ok := GetBool(doc, `a.d\.e`); !ok || !b {
		t.Errorf("GetBool = %v, %v", b, ok)
	}
	if _, ok := GetString(doc, "n"); ok {
		t.Error("GetString takes a number")
	}
}

func TestSetAndDelete(t *testing.T) {
	for _, c := range []struct{ op, doc, path, want string }{
		{"set", `{"a":1}`, "a", `{"a":"v"}`},
		{"set", `{"a":1}`, "b", `{"a":1,"b":"v"}`},
		{"set", `{ }`, "b.c.d", `{ "b":{"c":{"d":"v"}}}`},
		{"set", `{"a":{"b":1},"c":2}`, "a.b", `{"a":{"b":"v"},"c":2}`},
		{"set", `{"a":1,"x":0,"a":2}`, "a", `{"a":"v","x":0,"a":"v"}`},
		{"set", `{"a":[1,2]}`, "a.1", `{"a":[1,"v"]}`},
		{"set", `{"a":[1,2]}`, "a.2", "path"},
		{"set", `{"a":1}`, "a.b", "path"},
		{"set", `{"a":1`, "a", "json"},
		{"set", `{"a" 1}`, "a", "json"},
		{"set", ``, "a", "json"},
		{"set", `{} x`, "a", "json"},
		{"set", `[]`, "", `"v"`},
		{"del", `{"a":1,"b":2,"c":3}`, "a", `{"b":2,"c":3}`},
		{"del", `{"a":1,"b":2,"c":3}`, "b", `{"a":1,"c":3}`},
		{"del", `{"a":1, "b":2}`, "b", `{"a":1}`},
		{"del", `{"a":1,"a":2}`, "a", `{}`},
		{"del", `{"a":1,"a":2,"b":3,"a":4}`, "a", `{"b":3}`},
		{"del", `{"a":{"s":1},"a":{"s":2,"k":3}}`, "a.s", `{"a":{},"a":{"k":3}}`},
		{"del", `{"a":[1,2,3]}`, "a.1", `{"a":[1,3]}`},
		{"del", `{"a":1}`, "b.c", `{"a":1}`},
		{"del", `{"a":1}`, "a.c", `{"a":1}`},
	} {
		dst := []byte("kept")
		var got []byte
		var err error
		if c.op == "set" {
			got, err = SetString(dst, []byte(c.doc), c.path, "v")
		} else {
			got, err = Delete(dst, []byte(c.doc), c.path)
		}
		s := strings.TrimPrefix(string(got), "kept")
		switch {
		case errors.Is(err, ErrPath):
			s += "path"
		case errors.Is(err, ErrJSON):
			s += "json"
		}
		if s != c.want || !strings.HasPrefix(string(got), "kept") {
			t.Errorf("%s %s at %q = %s, want %s", c.op, c.doc, c.path, s, c.want)
		}
	}
}

func TestApply(t *testing.T) {
	for _, c := range []struct {
		doc   string
		edits []Edit
		want  string
	}{
		{`{"email":"a","n":1}`, []Edit{ReplaceText("email", "***"), SetTo("enriched", "true")}, `{"email":"***","n":1,"enriched":true}`},
		{` { } `, []Edit{ReplaceText("email", "***"), SetTo("enriched", "true")}, ` { "enriched":true} `},
		{`{"enriched":{"email":1}}`, []Edit{ReplaceText("email", "***"), SetTo("enriched", "true")}, `{"enriched":true}`},
		{`{"em\u0061il":[1]}`, []Edit{ReplaceText("email", "*")}, `{"em\u0061il":"*"}`},
		{`{"a":{"b":1,"c":2},"d":[1,{"e":2}]}`, []Edit{Remove("a.b"), SetTo("a.x.y", "7"), SetTo("a.x.z", "8"), SetTo("d[1].e", "3"), Remove("d.0")},
			`{"a":{"c":2,"x":{"y":7,"z":8}},"d":[{"e":3}]}`},
		{`{"a":1}`, []Edit{SetTo("a", "2"), SetTo("a", "3"), SetTo("b.c", "1"), SetTo("b", "{}")}, `{"a":3,"b":{}}`},
		{`{"a":{"b":1}}`, []Edit{Remove("a"), SetTo("a.b", "2")}, `{}`},
		{`{"a":1,"b":2}`, []Edit{Remove("a"), Remove("b"), SetTo("c", "3")}, `{"c":3}`},
		{`{"a":1,"b":2}`, []Edit{Remove("b"), ReplaceWith("x.y", "3")}, `{"a":1}`},
		{`[1,2,3]`, []Edit{SetTo("[0]", "9"), Remove("2")}, `[9,2]`},
		{`{"a":1}`, []Edit{SetTo("a", "2"), SetTo("", "[]")}, `[]`},
		{`{"a":1}`, []Edit{SetTo("b", "2"), SetTo("a.x", "2")}, "path"},
		{`{"a":1}`, []Edit{ReplaceWith("a.x", "2"), Remove("a.x.y")}, `{"a":1}`},
		{`[1]`, []Edit{SetTo("enriched", "true")}, "path"},
		{`"s"`, []Edit{SetTo("enriched", "true")}, "path"},
		{`{"a":1]`, []Edit{SetTo("enriched", "true")}, "json"},
		{`{"a":tru}`, []Edit{SetTo("enriched", "true")}, "json"},
		{`{"a":01}`, []Edit{SetTo("enriched", "true")}, "json"},
		{``, nil, "json"},
		{`{"a":1}`, make([]Edit, MaxEdits+1), "edits"},
	} {
		got, err := Apply([]byte("kept"), []byte(c.doc), c.edits...)
		s := strings.TrimPrefix(string(got), "kept")
		switch {
		case errors.Is(err, ErrPath):
			s += "path"
		case errors.Is(err, ErrJSON):
			s += "json"
		case errors.Is(err, ErrEdits):
			s += "edits"
		}
		if s != c.want {
			t.Errorf("%s: %s, want %s", c.doc, s, c.want)
		}
	}
}

func TestElementsAndNames(t *testing.T) {
	got := ""
	for e := range Elements([]byte(`{"items": [ {"a":[1]} , "x,y" ,3]}`), "items") {
		got += string(e) + ";"
	}
	for e := range Elements([]byte(`{"items":{"a":1}}`), "items") {
		got += string(e) + "?"
	}
	if got != `{"a":[1]};"x,y";3;` {
		t.Error(got)
	}
	doc := []byte(`{"a.b[0]\\":1,"a":{"b":[2]}}`)
	for path, want := range map[string]string{Name(`a.b[0]\`): "1", "a.b[0]": "2", "a.b.0": "2", `a\.b[0]`: "", "a.b[x]": ""} {
		if v, _ := Get(doc, path); string(v) != want {
			t.Errorf("%s: %s, want %s", path, v, want)
		}
	}
	for doc, want := range map[string]bool{`{}`: true, ` {"a":[1}} `: true, `[]`: false, ``: false, `{"a":1}x`: false, `{"a":1`: false, `{"a":[1}`: false, `{"a":nul}`: false} {
		if IsObject([]byte(doc)) != want {
			t.Errorf("%s: %v", doc, !want)
		}
	}
}

func TestScanningAllocatesNothing(t *testing.T) {
	doc := []byte(`{"customer":{"email":"a@b","n":[1,2,3]},"total":12.5,"items":[{"sku":"x"},{"sku":"y"}]}`)
	dst := make([]byte, 0, 1024)
	var got string
	if n := testing.AllocsPerRun(100, func() {
		got, _ = GetString(doc, "customer.email")
		dst, _ = SetString(dst[:0], doc, "customer.email", "***")
		GetFloat(doc, "total")
	}); n != 0 || got != "a@b" {
		t.Fatalf("%v allocations an event, %q", n, got)
	}
}

// FuzzAgainstEncodingJSON holds reading, setting and deleting to the standard decoder.
func FuzzAgainstEncodingJSON(f *testing.F) {
	f.Add([]byte(`{"a":{"b":[1,{"c":"x"}]},"a":{"b":2}}`), "a.b", "v")
	f.Add([]byte(`{"a":{"b":[1,{"c":"x"}]}}`), "a.b.1.c", "\x00\"\\é")
	f.Add([]byte(`{"":1,"\u0061":2}`), "a", "")
	f.Add([]byte(`[[],{}]`), "1.x", "v")
	f.Fuzz(func(t *testing.T, doc []byte, path, value string) {
		got, ok := Get(doc, path)
		set, setErr := SetString(nil, doc, path, value)
		del, delErr := Delete(nil, doc, path)
		if !json.Valid(doc) || !utf8.Valid(doc) || !utf8.ValidString(path) || !utf8.ValidString(value) {
			return // no crash is all that is promised
		}
		want, wantOK := walk(decode(t, doc), path)
		if ok != wantOK {
			t.Fatalf("Get(%s, %q) found %v, the decoder %v", doc, path, ok, wantOK)
		}
		if ok && !reflect.DeepEqual(decode(t, got), want) {
			t.Fatalf("Get(%s, %q) = %s, the decoder has %v", doc, path, got, want)
		}
		if setErr == nil {
			v, ok := walk(decode(t, set), path)
			clean, _ := json.Marshal(value)
			if !ok || !reflect.DeepEqual(v, decode(t, clean)) {
				t.Fatalf("Set(%s, %q, %q) = %s", doc, path, value, set)
			}
		} else if ok && !bytes.Contains(doc, []byte(`"`)) {
			t.Fatalf("Set(%s, %q) of what is there: %v", doc, path, setErr)
		}
		if delErr == nil {
			if _, ok := walk(decode(t, del), path); ok && !strings.ContainsAny(path, "0123456789") {
				t.Fatalf("Delete(%s, %q) = %s", doc, path, del)
			}
		}
	})
}

// FuzzApply holds two changes in one pass to the same one after the other.
func FuzzApply(f *testing.F) {
	f.Add([]byte(`{"a":{"b":1},"c":[1,{"d":2}]}`), "a.b", "c[1].d", uint8(0))
	f.Add([]byte(`{"a":1,"a":{}}`), "x.y", "x.z", uint8(1))
	f.Add([]byte(` { } `), "a", "b.c", uint8(5))
	f.Fuzz(func(t *testing.T, doc []byte, one, two string, ops uint8) {
		if !json.Valid(doc) || !utf8.ValidString(one) || !utf8.ValidString(two) || within(one, two) || within(two, one) {
			return // an edit within another's value does nothing, which one after the other is not so
		}
		edit := func(path string, op uint8) Edit {
			switch op % 3 {
			case 0:
				return SetTo(path, "9")
			case 1:
				return ReplaceText(path, "\"")
			}
			return SetText(path, "é")
		}
		a, b := edit(one, ops), edit(two, ops/3)
		got, err := Apply(nil, doc, a, b)
		first, wantErr := Apply(nil, doc, a)
		var want []byte
		if wantErr == nil {
			want, wantErr = Apply(nil, first, b)
		}
		if (err == nil) != (wantErr == nil) || err == nil && !bytes.Equal(got, want) {
			t.Fatalf("%s at %q and %q:\n got %s %v\nwant %s %v", doc, one, two, got, err, want, wantErr)
		}
		if err == nil && !json.Valid(got) {
			t.Fatalf("%s at %q and %q: %s", doc, one, two, got)
		}
	})
}

// within reports whether a path leads through another or is the same.
func within(outer, inner string) bool {
	names := func(path string) (all []string) {
		for more := path != ""; more; {
			var name string
			name, path, more = cutPath(path)
			all = append(all, name)
		}
		return all
	}
	o, i := names(outer), names(inner)
	return len(o) <= len(i) && slices.Equal(o, i[:len(o)])
}

func decode(t *testing.T, doc []byte) (v any) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(doc))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%s: %v", doc, err)
	}
	return v
}

func walk(v any, path string) (any, bool) {
	for more := path != ""; more; {
		var seg string
		seg, path, more = cutPath(path)
		switch x := v.(type) {
		case map[string]any:
			w, ok := x[seg]
			if !ok {
				return nil, false
			}
			v = w
		case []any:
			found := false
			for i := range x {
				if s := (scan{array: true, count: i + 1}); s.is(seg) {
					v, found = x[i], true
				}
			}
			if !found {
				return nil, false
			}
		default:
			return nil, false
		}
	}
	return v, true
}
