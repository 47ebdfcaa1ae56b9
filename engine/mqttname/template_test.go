package mqttname

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestTemplate(t *testing.T) {
	attributes := map[string]string{"subject": "pump/1", "tenant": "acme", "empty": ""}
	for _, c := range []struct{ text, want, pattern string }{
		{"alerts/{subject}", "alerts/pump/1", "alerts/#"},
		{"alerts", "alerts", "alerts"},
		{"a-{tenant}/x/{subject}", "a-acme/x/pump/1", "#"},
		{"t/{tenant}/{subject}", "t/acme/pump/1", "t/#"},
		{"t/x{tenant}", "t/xacme", "t/#"},
		{"{{{tenant}}}", "{acme}", "#"},
		{"{empty}", "", "#"},
		{"", "", ""},
		{"{absent}", "-", "#"},
		{"{1}", "-", "#"},
	} {
		tp, err := ParseTemplate(c.text)
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		got, ok := tp.Append(nil, func(name string) (string, bool) {
			v, ok := attributes[name]
			return v, ok
		})
		if ok != (c.want != "-") || ok && string(got) != c.want || tp.Pattern() != c.pattern || tp.String() != c.text {
			t.Errorf("%s: %q, %v; its names lie in %q", c.text, got, ok, tp.Pattern())
		}
	}
	for text, want := range map[string]string{
		"a/{subject": "opens a brace and does not close it at byte 2", "a}": "closes a brace that is not open at byte 1", "{}": `has the field "" at byte 0`,
		"{Subject}": `has the field "Subject"`, "{0}": `has the field "0"`, "{01}": `"01"`, "{-1}": `"-1"`, "{a b}": `"a b"`,
		strings.Repeat("x", MaxLen+1): "the limit is 1024",
	} {
		if _, err := ParseTemplate(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40s: %v; want %q", text, err, want)
		}
	}
	tp, _ := ParseTemplate("{3}-{1}{tenant}/{id}/{id}")
	if tp.Max() != 3 || !slices.Equal(tp.Attributes(), []string{"tenant", "id"}) {
		t.Errorf("%d, %q", tp.Max(), tp.Attributes())
	}
}

func TestUnfill(t *testing.T) {
	for _, c := range []struct {
		template, text string
		want           []string // nil: not of this template
	}{
		{"{1}", "a/b", []string{"a/b", ""}},
		{"{1}/{2}", "a/b/c", []string{"a", "b/c"}},
		{"{2}.{1}", "a.b", []string{"b", "a"}},
		{"com.example.{2}", "com.example.x", []string{"", "x"}},
		{"{1}.end", "a.end.end", []string{"a.end", ""}},
		{"{1}-{1}", "a-a", []string{"a", ""}},
		{"{1}-{1}", "a-b", nil},
		{"{1}-{1}", "-b", nil}, // an empty piece is a piece
		{"{1}{2}", "ab", nil},
		{"x{1}", "y", nil},
		{"{1}x", "y", nil},
		{"{1}/{2}/z", "a", nil},
		{"lit", "lit", []string{"", ""}},
		{"lit", "literal", nil},
		{"{3}", "a", nil},
		{"{subject}", "a", nil},
	} {
		tp, err := ParseTemplate(c.template)
		if err != nil {
			t.Fatal(err)
		}
		pieces := make([]string, 2)
		if ok := tp.Unfill(c.text, pieces); ok != (c.want != nil) || ok && !slices.Equal(pieces, c.want) {
			t.Errorf("%s of %s: %q, %v", c.template, c.text, pieces, ok)
		}
	}
}

// What is found by Unfill gives the same text back, and what a template made can be found.
func TestUnfillGivesBack(t *testing.T) {
	part := rapid.SampledFrom([]string{"{1}", "{2}", "/", ".", "ab"})
	piece := rapid.StringMatching(`[a-c]{1,3}`)
	rapid.Check(t, func(t *rapid.T) {
		tp, err := ParseTemplate(strings.Join(rapid.SliceOfN(part, 1, 6).Draw(t, "template"), ""))
		if err != nil {
			t.Fatal(err)
		}
		text := string(tp.AppendPieces(nil, []string{piece.Draw(t, "1"), piece.Draw(t, "2")}))
		found := make([]string, 2)
		if !tp.Unfill(text, found) {
			return // two fields without text between them, or text that looks like a piece
		}
		if again := string(tp.AppendPieces(nil, found)); again != text {
			t.Fatalf("%s: %q comes back as %q from %q", tp, text, again, found)
		}
	})
}

func TestTemplateAllocatesNothing(t *testing.T) {
	tp, err := ParseTemplate("a/{1}/{2}")
	if err != nil {
		t.Fatal(err)
	}
	named, err := ParseTemplate("a/{subject}")
	if err != nil {
		t.Fatal(err)
	}
	pieces, dst := []string{"x", "y"}, make([]byte, 0, 64)
	if n := testing.AllocsPerRun(100, func() {
		dst = tp.AppendPieces(dst[:0], pieces)
		dst, _ = named.Append(dst, func(string) (string, bool) { return "s", true })
	}); n != 0 || string(dst) != "a/x/ya/s" {
		t.Errorf("%v allocations, %q", n, dst)
	}
}
