package main

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
)

func cutAll(t *testing.T, c cutter, events, size int) []string {
	t.Helper()
	var out []string
	for {
		b, err := c.next(events, size)
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, string(b))
	}
}

func TestNDJSONIsCutBetweenEvents(t *testing.T) {
	in := "{\"a\":1}\n{\"a\":\n2}{\"a\":3} [4]\n\n\"five\"\n"
	for _, c := range []struct {
		events, size int
		want         []string
	}{
		{10, 1000, []string{"{\"a\":1}\n{\"a\":\n2}\n{\"a\":3}\n[4]\n\"five\"\n"}},
		{2, 1000, []string{"{\"a\":1}\n{\"a\":\n2}\n", "{\"a\":3}\n[4]\n", "\"five\"\n"}},
		{10, 20, []string{"{\"a\":1}\n{\"a\":\n2}\n", "{\"a\":3}\n[4]\n\"five\"\n"}},
		{10, 1, []string{"{\"a\":1}\n", "{\"a\":\n2}\n", "{\"a\":3}\n", "[4]\n", "\"five\"\n"}}, // too large alone: the router says so
	} {
		got := cutAll(t, &ndjsonCutter{dec: json.NewDecoder(strings.NewReader(in))}, c.events, c.size)
		if !slices.Equal(got, c.want) {
			t.Errorf("%d events, %d bytes: got %q, want %q", c.events, c.size, got, c.want)
		}
	}
}

// However CSV is cut, the rows are the same, and every body has the header.
func TestCSVIsCutBetweenRows(t *testing.T) {
	var in strings.Builder
	in.WriteString("\ufeffname,note\r\n")
	for i := range 50 {
		fmt.Fprintf(&in, "n%d,\"two\nlines, \"\"quoted\"\" %d\"\r\n", i, i)
	}
	all, err := csv.NewReader(strings.NewReader(strings.TrimPrefix(in.String(), "\ufeff"))).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ events, size int }{{1000, 1 << 20}, {7, 1 << 20}, {1000, 300}, {1, 1}} {
		rows := [][]string{all[0]}
		bodies := cutAll(t, newCSVCutter(strings.NewReader(in.String())), c.events, c.size)
		for _, b := range bodies {
			got, err := csv.NewReader(strings.NewReader(b)).ReadAll()
			if err != nil {
				t.Fatalf("%q: %v", b, err)
			}
			if !slices.Equal(got[0], all[0]) {
				t.Fatalf("a body begins with %q", got[0])
			}
			if n := len(got) - 1; n > c.events || n > 1 && len(b) > c.size {
				t.Errorf("a body of %d events and %d bytes, at most %d and %d", n, len(b), c.events, c.size)
			}
			rows = append(rows, got[1:]...)
		}
		if !slices.EqualFunc(rows, all, slices.Equal[[]string]) {
			t.Errorf("%d events, %d bytes: %d rows of %d, or others", c.events, c.size, len(rows), len(all))
		}
	}
	one := cutAll(t, newCSVCutter(strings.NewReader("x\n\"\"\n1\n")), 10, 1000)
	if want := []string{"x\n\"\"\n1\n"}; !slices.Equal(one, want) {
		t.Errorf("an empty cell alone in its row: %q, want %q", one, want)
	}
}

func TestKindOfInput(t *testing.T) {
	for _, c := range []struct {
		o    publishing
		want string
	}{
		{publishing{}, ""},
		{publishing{file: "a.NDJSON"}, ndjsonType},
		{publishing{file: "a.jsonl"}, ndjsonType},
		{publishing{file: "a.csv"}, csvType},
		{publishing{file: "a.csv", ndjson: true}, ndjsonType},
		{publishing{file: "a.ndjson", csv: true}, csvType},
		{publishing{file: "a.csv", contentType: "text/plain"}, "text/plain"},
		{publishing{contentType: "Text/CSV; charset=utf-8"}, csvType},
	} {
		if got := c.o.kind(); got != c.want {
			t.Errorf("%+v: %q, want %q", c.o, got, c.want)
		}
	}
	for data, want := range map[string]string{`{"a":1}`: "application/json", "hello": "text/plain; charset=utf-8", "\xff\xfe": "application/octet-stream", "a\x00": "application/octet-stream"} {
		if got := sniff([]byte(data)); got != want {
			t.Errorf("sniff(%q) = %q, want %q", data, got, want)
		}
	}
}

func TestReceiverFailsAsTold(t *testing.T) {
	for _, c := range []struct {
		fail, status int
		want         []int
	}{
		{0, 0, []int{204, 204}},
		{2, 0, []int{500, 500, 204, 204}},
		{1, 429, []int{429, 204}},
		{0, 410, []int{410, 410}},
	} {
		rc := &receiver{fail: c.fail, status: c.status}
		for i, want := range c.want {
			for _, id := range []string{"a", "b"} {
				if got := rc.answer(received{Try: rc.count(id)}); got != want {
					t.Errorf("--fail %d --status %d: try %d of %s answered %d, want %d", c.fail, c.status, i+1, id, got, want)
				}
			}
		}
	}
	rc := &receiver{}
	for i := range maxTries + 10 {
		rc.count(fmt.Sprint(i))
	}
	if len(rc.tries) != maxTries || len(rc.order) != maxTries {
		t.Errorf("%d ids are remembered, %d in order", len(rc.tries), len(rc.order))
	}
}

func TestBenchEventCarriesItsNumber(t *testing.T) {
	for _, n := range []int{0, 7, 123456} {
		b := appendBenchEvent(nil, n, 64)
		if got, ok := benchNumber(b); len(b) != 64 || !json.Valid(b) || !ok || got != n {
			t.Errorf("%d: %s gives %d, %t", n, b, got, ok)
		}
	}
	for in, want := range map[string]bool{`{"pad":"x","n": 12}`: true, `{}`: false, `{"n":"x"}`: false, `{"n":`: false} {
		if _, ok := benchNumber([]byte(in)); ok != want {
			t.Errorf("%s: %t", in, ok)
		}
	}
}
