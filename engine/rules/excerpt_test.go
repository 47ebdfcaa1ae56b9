package rules

import (
	"errors"
	"strings"
	"testing"

	"github.com/millrace/millrace/engine/event"
)

func long(t *testing.T, src string) string {
	t.Helper()
	_, err := ParseBytes("r.yaml", []byte(src), testOptions())
	var f *event.Faults
	if !errors.As(err, &f) {
		t.Fatalf("%v of\n%s", err, src)
	}
	return f.Long()
}

// Each fault shows its line, with a mark below its column.
func TestExcerpts(t *testing.T) {
	for _, c := range []struct{ src, want string }{
		{"topics:\n  orders: {retian: {age: 7d}}\n", "     2 |   orders: {retian: {age: 7d}}\n       |            ^"},
		{"topics:\n\torders: {}\n", "     2 |  orders: {}\n       | ^"},
		{"subscriptions: {é: 1}\n", "     1 | subscriptions: {é: 1}\n       |                 ^"},
		{"subscriptions:\n  s:\n    topic: t\n    filter: type == 'a' && nosuch == 1\n    deliver: {pull: {}}\n", "     4 |     filter: type == 'a' && nosuch == 1\n       |                            ^"},
		{"topics: {a: {dedupe: 1}, " + strings.Repeat("x", 100) + ": {}}\n", "     1 | topics: {a: {dedupe: 1}, " + strings.Repeat("x", 46) + "…\n       |                      ^"},
		{"topics: {" + strings.Repeat("x", 100) + ": {dedupe: 1}}\n", "     1 | …" + strings.Repeat("x", 59) + ": {dedupe: 1}}\n       |  " + strings.Repeat(" ", 70) + "^"},
	} {
		if got := long(t, c.src); !strings.HasSuffix(got, c.want) {
			t.Errorf("%s\ngot\n%s\nwant\n%s", c.src, got, c.want)
		}
	}
}

// No line shows a literal secret, whatever is wrong around it; references are shown.
func TestExcerptsHideSecrets(t *testing.T) {
	hook := func(rest string) string {
		return "subscriptions:\n  s:\n    topic: t\n    deliver:\n      webhook:\n        url: https://x.y\n" + rest
	}
	for name, c := range map[string]struct{ src, want string }{
		"flow":     {hook("        headers: {authorization: hunter2, x: [1]}\n"), "headers: {authorization: ***, x: [***]}"},
		"behind":   {"functions: {f: {wasm: pushed, secrets: {a: hunter2, b: 'hun''ter2'}, limts: 1}}\n", "secrets: {a: ***, b: ***}, limts: 1}}\n       | " + strings.Repeat(" ", 57) + "^"},
		"itself":   {"functions: {f: {wasm: pushed, secrets: {a: [hunter2]}}}\n", "secrets: {a: [***]}}}\n       | " + strings.Repeat(" ", 43) + "^"},
		"list":     {hook("        secrets: [hunter2, \"hun\\\"ter2\"]\n"), "secrets: [***, ***]"},
		"url":      {hook("") + "  r: {topic: t, deliver: {webhook: {url: 'https://u:hunter2@x.y/?hunter2', no: 1}}}\n", "url: ***, no: 1"},
		"lines":    {hook("        secrets:\n          - |\n            hunter2\n            ${env:NOTHING} hunter2\n        no: 1\n"), "    10 | ***\n"},
		"plain":    {hook("        headers: {a: hunter2\n           hunter2, 7: {}, b: hunter2}\n"), "***"},
		"misspelt": {"functions: {f: {wasm: pushed, secrest: {a: hunter2}}}\n", "secrest: {a: ***}"},
		"unknown":  {hook("        pasword: hunter2\n"), ""},
		"anchor":   {hook("        headers: {a: &a hunter2, b: *a, c: [1]}\n"), ""},
		"comment":  {"topics: {a: {no: 1}} # token hunter2\n", "topics: {a: {no: 1}} ***"},
		"hook":     {"functions: {f: {wasm: pushed, config: {a: whsec_hunter2, b: [1]}}}\n", "config: {a: ***, b: [1]}"},
		"value":    {"functions: {f: {wasm: pushed, config: {a: '${env:BAD_SECRET}', b: hunter2hunter2, c: [1]}}}\n", "config: {a: '${env:BAD_SECRET}', b: ***, c: [1]}"},
		"refs":     {hook("        headers: {authorization: \"Bearer ${env:NOTHING}\", a: \"${env:NOTHING}\"}\n"), "authorization: \"Bearer ${env:NOTHING}\", a: \"${env:NOTHING}\"}"},
		"partly":   {hook("        headers: {authorization: \"Bearer hunter2${env:NOTHING}\"}\n"), "authorization: ***}"},
		"broken":   {hook("        headers: {authorization: hunter2, x: [\n"), ""},
		"broken 2": {hook("        headers:\n         a: hunter2\n\tb: hunter2\n"), ""},
		"twice":    {hook("        headers: {a: hunter2, a: hunter2}\n"), ""},
		"broken 3": {"topics:\n  a: {\n  b: {}\nfunctions:\n  f: {secrets: {a: hunter2}}}}}\n", ""},
	} {
		got := long(t, c.src)
		if strings.Contains(got, "hunter2") || strings.Contains(got, "ter2") {
			t.Errorf("%s shows a secret:\n%s", name, got)
		}
		if !strings.Contains(got, c.want) {
			t.Errorf("%s: got\n%s\nwant %s", name, got, c.want)
		}
	}
}

// Of two secrets that have one text in common no part is told, whichever is found first.
func TestSecretsWithinSecrets(t *testing.T) {
	p := &parser{secrets: map[string]bool{"": true, "hunter2": true, "hunter2-2024": true, "old-hunter2": true, "2024-x": true, "a\"b": true}}
	for text, want := range map[string]string{
		`is "hunter2-2024", which is bad`:  `is "***", which is bad`,
		`hunter2, old-hunter2 and hunter2`: `***, *** and ***`,
		`is "a\"b" or a"b`:                 `is "***" or ***`,
		`Grüße hunter2!`:                   `Grüße ***!`,
		`old-hunter2-2024-x.`:              `*********.`,
		`nothing`:                          `nothing`,
	} {
		for range 20 { // a map's order is another each time
			if got := p.withoutSecrets(text); got != want {
				t.Fatalf("%s: %s, want %s", text, got, want)
			}
		}
	}
}
