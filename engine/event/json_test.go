package event

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

func TestCheckJSONNamesTheByte(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"", "it ends at byte 0"},
		{"   ", "it ends at byte 3"},
		{"{", "it ends at byte 1"},
		{`{"a":1,}`, "at byte 7 ('}'): want a name"},
		{`{"a" 1}`, "at byte 5 ('1'): want :"},
		{`{"a":1 "b":2}`, `at byte 7 ('"'): want , or }`},
		{`{1:2}`, "at byte 1 ('1'): want a name"},
		{`[1,2`, "it ends at byte 4"},
		{`[1}`, "at byte 2 ('}'): want , or ]"},
		{`[1,]`, "at byte 3 (']'): want a value"},
		{`{"a":[1,{"b":tru}]}`, "at byte 16 ('}'): want true"},
		{`"abc`, "it ends at byte 4"},
		{`"abcdefghijklmno` + "\n" + `"`, `at byte 16 ('\n'): a control character`},
		{`"ab\x"`, `at byte 3 ('\\'): want one of`},
		{`"ab\u12g4"`, `at byte 3 ('\\'): want one of`},
		{"\"caf\xe9 au lait\"", "at byte 4 ('é'): want UTF-8"},
		{`01`, "at byte 1 ('1'): more follows"},
		{`-`, "it ends at byte 1"},
		{`1.`, "it ends at byte 2; want a digit after the point"},
		{`1e+`, "it ends at byte 3; want a digit in the exponent"},
		{`{} {}`, "at byte 3 ('{'): more follows"},
		{"\ufeff{}", "at byte 0"},
		{`nul`, "it ends at byte 3; want null"},
		{`NaN`, "at byte 0 ('N'): want a value"},
	} {
		err := CheckJSON([]byte(c.in))
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v; want %q", c.in, err, c.want)
		}
		if json.Valid([]byte(c.in)) && !strings.Contains(c.in, "\xe9") {
			t.Errorf("%q is valid to encoding/json", c.in)
		}
	}
	for _, in := range []string{`{}`, ` [ ] `, `0`, `-0.5e-10`, `"é\ud83d\ude00\u00e9\/"`, `{"a":[{"b":[null,true,false]}], "" :""}`,
		"\t\r\n 1 ", `12345678901234567890123456789.5`, `["aaaaaaa\"","aaaaaaaa\\"]`} {
		if err := CheckJSON([]byte(in)); err != nil {
			t.Errorf("%q: %v", in, err)
		}
	}
}

// TestEveryByteOfAString puts every byte at every place of the eight that are looked at together.
func TestEveryByteOfAString(t *testing.T) {
	for c := range 256 {
		for at := 1; at < 20; at++ {
			in := []byte(`"` + strings.Repeat("x", 20) + `"`)
			in[at] = byte(c)
			want := c >= 0x20 && c < 0x80 && c != '"' && c != '\\'
			if err := CheckJSON(in); (err == nil) != want {
				t.Errorf("0x%02X at %d: %v", c, at, err)
			}
		}
	}
}

func TestDepthIsBoundedWithoutStack(t *testing.T) {
	nest := func(n int) []byte { return []byte(strings.Repeat("[", n) + strings.Repeat("]", n)) }
	if err := CheckJSON(nest(maxDepth)); err != nil {
		t.Error(err)
	}
	for _, b := range [][]byte{nest(maxDepth + 1), nest(8 << 20), []byte(strings.Repeat(`{"a":`, 1<<20))} {
		if err := CheckJSON(b); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "nest deeper than 1000") {
			t.Errorf("%d bytes: %v", len(b), err)
		}
	}
	mixed := strings.Repeat(`{"a":[`, maxDepth/2) + strings.Repeat(`]}`, maxDepth/2)
	if err := CheckJSON([]byte(mixed)); err != nil {
		t.Error(err)
	}
	if err := CheckJSON([]byte(strings.Replace(mixed, "]}", "}]", 1))); err == nil {
		t.Error("crossed brackets pass")
	}
	// Data nests as deep inside an event as alone.
	var e Event
	doc := `{"specversion":"1.0","id":"1","source":"s","type":"t","data":` + string(nest(maxDepth)) + `}`
	if err := ParseStructured([]byte(doc), Limits{}, &e); err != nil {
		t.Error(err)
	}
}

func TestSplitJSON(t *testing.T) {
	var got []string
	collect := func(i int, doc []byte) error {
		if i != len(got) {
			t.Errorf("index %d, want %d", i, len(got))
		}
		got = append(got, string(doc))
		return nil
	}
	if err := SplitJSON([]byte("{\"a\":1}\n\n [2]\r\n\"x\" true\n3 {}[]\n"), collect); err != nil {
		t.Fatal(err)
	}
	if s := strings.Join(got, "|"); s != `{"a":1}|[2]|"x"|true|3|{}|[]` {
		t.Errorf("got %s", s)
	}
	got = nil
	if err := SplitJSON([]byte(" \n"), collect); err != nil || got != nil {
		t.Errorf("white space alone: %v, %v", err, got)
	}
	got = nil
	err := SplitJSON([]byte("{}\n{}\n{\"a\"}\n"), collect)
	if !errors.Is(err, ErrInvalid) || !strings.HasPrefix(err.Error(), "events[2]: broken JSON at byte 10") || len(got) != 2 {
		t.Errorf("%v after %d", err, len(got))
	}
	for _, in := range []string{"1{}", `true"x"`, "nulltrue", `"a""b"`} {
		if err := SplitJSON([]byte(in), func(int, []byte) error { return nil }); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", in, err)
		}
	}
	stop := errors.New("stop")
	n := 0
	err = SplitJSON([]byte("1 2 3"), func(i int, _ []byte) error {
		if n++; i == 1 {
			return stop
		}
		return nil
	})
	if !errors.Is(err, stop) || n != 2 || !strings.HasPrefix(err.Error(), "events[1]") {
		t.Errorf("%v after %d calls", err, n)
	}
}

func TestEscapes(t *testing.T) {
	for _, s := range []string{"", "plain", "a\"b\\c/d", "\b\f\n\r\t\x00\x01\x1f\x7f", "é€😀\u2028", "\U0010ffff", strings.Repeat("x", 100) + "\""} {
		q := appendQuoted(nil, s)
		var back string
		if err := json.Unmarshal(q, &back); err != nil || back != s {
			t.Errorf("%q quoted as %s, read back as %q, %v", s, q, back, err)
		}
		got, ok := stringOf(q, false)
		if !ok || got != s {
			t.Errorf("%s means %q, %v", q, got, ok)
		}
		std, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := stringOf(std, false); !ok || got != s {
			t.Errorf("%s means %q, %v", std, got, ok)
		}
	}
	if q := string(appendQuoted(nil, "a\xffb\xe2\x82")); q != "\"a\ufffdb\ufffd\ufffd\"" {
		t.Errorf("bytes that are not UTF-8: %+q", q)
	}
	if s, ok := stringOf([]byte(`"\ud83d\ude00"`), false); !ok || s != "😀" {
		t.Errorf("a surrogate pair: %q, %v", s, ok)
	}
	for _, in := range []string{`"\ud83d"`, `"\ude00"`, `"\ud83dx"`, `"\ud83d\n"`, `"\ude00\ud83d"`} {
		if s, ok := stringOf([]byte(in), false); ok {
			t.Errorf("%s means %q", in, s)
		}
	}
}
