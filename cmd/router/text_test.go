package main

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode"
)

var hostile = "a\x1b[2Jb\x07c\u009bd\u202ee\u2028f\x7f\r\n\tg\U000e0001é✓"

func TestCleanLeavesNothingToATerminal(t *testing.T) {
	for in, want := range map[string]string{
		"plain é ✓":         "plain é ✓",
		"\x1b[31mred":       `\x1b[31mred`,
		"a\nb\tc":           `a\nb\tc`,
		"\u009b2J":          `\u009b2J`,
		"evil\u202etxt.exe": `evil\u202etxt.exe`,
		"bad\xff":           `bad\xff`,
	} {
		if got := clean(in); got != want {
			t.Errorf("clean(%q) = %q, want %q", in, got, want)
		}
	}
	if got := clean(hostile); strings.IndexFunc(got, unprintable) >= 0 {
		t.Errorf("clean leaves %q", got)
	}
	if got := lines("a\x1b\nb"); got != "a\\x1b\nb" {
		t.Errorf("lines gives %q", got)
	}
}

func TestCleanJSONSaysTheSame(t *testing.T) {
	var raw strings.Builder
	e := json.NewEncoder(&raw)
	e.SetEscapeHTML(false)
	if err := e.Encode(map[string]string{"x": hostile}); err != nil {
		t.Fatal(err)
	}
	// The encoder leaves these as they are; a router may too.
	doc := []byte(raw.String())
	if strings.IndexFunc(raw.String(), unprintable) < 0 {
		t.Fatal("the document is harmless already: this tests nothing")
	}
	got := cleanJSON(doc)
	for _, r := range string(got) {
		if r != '\n' && (unicode.IsControl(r) || unicode.Is(unicode.Cf, r)) {
			t.Errorf("cleanJSON leaves %q in %q", r, got)
		}
	}
	var back map[string]string
	if err := json.Unmarshal(got, &back); err != nil || back["x"] != hostile {
		t.Errorf("cleanJSON turned %q into %q (%v)", hostile, back["x"], err)
	}
}

func TestEventLine(t *testing.T) {
	for doc, want := range map[string]string{
		`{"id":"1","type":"t","time":"2026-01-01T00:00:00Z","subject":"s","partitionkey":"k","data":{"a":1}}`: `2026-01-01T00:00:00Z  t  1  subject=s  key=k  {"a":1}`,
		`{"id":"1","type":"t"}`:                         `-  t  1`,
		`{"id":"1","type":"t","data_base64":"AAE="}`:    `-  t  1  base64:AAE=`,
		`{"id":"\u001b[2J","type":"t","data":"\u202e"}`: `-  t  \x1b[2J  "\u202e"`,
	} {
		if got, err := eventLine([]byte(doc)); err != nil || got != want {
			t.Errorf("%s\ngot  %q (%v)\nwant %q", doc, got, err, want)
		}
	}
}
