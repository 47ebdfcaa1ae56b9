package rules

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
)

func laughs() string {
	var b strings.Builder
	b.WriteString("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n")
	for i := range 12 {
		fmt.Fprintf(&b, "a%d: &a%d [%s]\n", i+1, i+1, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d,", i), 10), ","))
	}
	return b.String()
}

var bombs = map[string]string{
	"brackets":       strings.Repeat("[", 100_000),
	"braces":         strings.Repeat("{", 100_000),
	"keys":           strings.Repeat("{a: ", 9_000),
	"nested pairs":   strings.Repeat("[a: ", 9_000),
	"dashes":         strings.Repeat("- ", 100_000),
	"questions":      strings.Repeat("? ", 100_000),
	"indents":        indents(1_000),
	"laughs":         laughs(),
	"many":           "[" + strings.Repeat("x,", 400_000) + "]",
	"empties":        strings.Repeat("[],", 300_000),
	"comments":       strings.Repeat("#\n", 500_000),
	"comment keys":   strings.Repeat("#\na: 1\n", 100_000),
	"same keys":      strings.Repeat("a: 1\n", 200_000),
	"anchors":        strings.Repeat("- &a x\n", 100_000),
	"quotes":         strings.Repeat(`"`, 1_000_000),
	"blanks":         strings.Repeat(" ", 1_000_000),
	"newlines":       strings.Repeat("\n", 1_000_000),
	"colons":         strings.Repeat(":", 1_000_000),
	"one word":       strings.Repeat("x", 1_000_000),
	"ands":           strings.Repeat("&", 1_000_000),
	"tags":           strings.Repeat("!", 1_000_000),
	"directives":     strings.Repeat("%TAG ! tag:a\n", 50_000),
	"documents":      strings.Repeat("---\n", 250_000),
	"too long":       strings.Repeat("x", maxFile+1),
	"NUL":            "topics:\x00 {}",
	"references":     "version: \"" + strings.Repeat("${env:N}", 100_000) + "\"",
	"open reference": "version: 1\nfunctions: {f: {wasm: \"" + strings.Repeat("${", 400_000) + "\"}}",
	"expanded":       "functions: {f: {wasm: pushed, config: {a: \"" + strings.Repeat("${env:N}", 40_000) + "\", b: \"" + strings.Repeat("${env:LONG}", 40_000) + "\"}}}",
	"unset":          "functions: {f: {wasm: pushed, config: {" + repeat(20_000, `a%d: "${env:NOTHING}", `) + "}}}",
	"unknown names":  "functions:\n" + repeat(10_000, " f%d: {wasm: pushed}\n") + "subscriptions:\n" + repeat(8_000, " s%d: {topic: t, functions: [a,b,c,d,e,g,h,i], deliver: {pull: }}\n"),
	"typos":          "subscriptions: {" + repeat(10_000, "s%d: {topic: t, filter: 'typo == 1', deliver: {pull: }}, ") + "}",
	"settings":       "functions: {f: {wasm: pushed, js: x, config: {a: \"${env:N}\", " + repeat(60_000, "a%d: 1, ") + "}}}",
	"unknown keys":   repeat(20_000, "a%d: x\n"),
	"many commas":    "[" + strings.Repeat("[],", 1_200_000) + "]",
	"folded":         "version: >\n" + strings.Repeat("  a\n\n", 150_000),
}

func repeat(n int, format string) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, format, i)
	}
	return b.String()
}

func indents(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(strings.Repeat(" ", i) + "a:\n")
	}
	return b.String()
}

// Each is refused, in bounded time: far above what it takes (mostly below 100 ms, with the race detector ten times that), far below what a bomb takes.
func TestBombs(t *testing.T) {
	for name, bomb := range bombs {
		t.Run(name, func(t *testing.T) {
			begin := time.Now()
			_, err := ParseBytes("bomb.yaml", []byte(bomb), testOptions())
			took := time.Since(begin)
			if !errors.Is(err, event.ErrInvalid) || !strings.HasPrefix(err.Error(), "bomb.yaml:") {
				t.Errorf("%.200v", err)
			}
			if err != nil && len(err.Error()) > 64<<10 {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
			t.Logf("%v: %.150v", took, err)
			if took > 30*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

// Schemas whose alternatives multiply, or that refer to themselves, cost no more than others: what cannot be looked
// through is taken.
func TestSchemaBombs(t *testing.T) {
	var wide strings.Builder
	wide.WriteString("{$ref: '#/$defs/a0', $defs: {")
	for i := range 40 {
		fmt.Fprintf(&wide, "a%[1]d: {anyOf: [{$ref: '#/$defs/b%[1]d'}, {$ref: '#/$defs/b%[1]d'}]}, ", i)
		fmt.Fprintf(&wide, "b%d: {properties: {x: {$ref: '#/$defs/a%d'}}, oneOf: [{$ref: '#/$defs/a%[2]d'}, {}]}, ", i, min(i+1, 39))
	}
	wide.WriteString("}}")
	for name, c := range map[string]struct{ schema, fault string }{
		"wide":   {wide.String(), ""},
		"itself": {"{anyOf: [{$ref: '#'}, {type: object}], properties: {x: {$ref: '#'}}}", ""},
		"all":    {"{allOf: [{$ref: '#'}], properties: {x: {type: string}}}", "data.x is a string"},
	} {
		begin := time.Now()
		_, err := ParseBytes("r.yaml", []byte("topics: {t: {schema: "+c.schema+"}}\nsubscriptions:\n"+repeat(10, "  s%d: {topic: t, filter: data.x > 5 && data.x.x.x.x.x == 1, deliver: {pull: {}}}\n")), testOptions())
		if c.fault == "" && err != nil || c.fault != "" && (err == nil || !strings.Contains(err.Error(), c.fault)) {
			t.Errorf("%s: %.300v, want %q", name, err, c.fault)
		}
		if took := time.Since(begin); took > 30*time.Second {
			t.Errorf("%s took %v", name, took)
		}
	}
}

// A folder of which files are broken, cut off or gone says all of it at once, each at its place, and calls nothing
// unknown that may stand in a file that it could not read.
func TestBrokenFolder(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"a.yaml":     "topics: {orders: {}}\nfunctions: {f: {wasm: f.wasm}, g: {wasm: gone.wasm}}\n",
		"b.yaml":     "topics:\n  orders: {}\nfunctions:\n  F: {wasm: pushed}\n",
		"cut.yaml":   "functions:\n  later: {wasm: pushed}\nsubscriptions:\n  s: {topic: orders, deli",
		"empty.yaml": "",
		"tab.yaml":   "topics:\n\tx: {}\n",
		"use.yaml":   "subscriptions:\n  u: {topic: orders, functions: [later], filter: 'nosuch', deliver: {webhook: {url: '${env:GONE}'}}}\n",
		"f.wasm":     "\x00asm\x01\x00\x00\x00",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("nowhere", filepath.Join(dir, "gone.yaml")); err != nil {
		t.Fatal(err)
	}
	o := testOptions()
	o.ReadFile, o.CheckModule = nil, func([]byte) error { return errors.New("function f: it does not compile any more") }
	_, err := Parse(t.Context(), dir, o)
	if !errors.Is(err, event.ErrInvalid) {
		t.Fatal(err)
	}
	var got []string
	for _, f := range faultsOf(t, err) {
		got = append(got, strings.ReplaceAll(f.At+": "+f.Detail, dir+"/", ""))
	}
	for i, want := range []string{
		`a.yaml:2:23: functions.f.wasm: file "f.wasm": function f: it does not compile any more`,
		`a.yaml:2:42: functions.g.wasm: file "gone.wasm": no such file or directory`,
		`b.yaml:2:3: topic "orders" is defined twice: here and at a.yaml:1:10; keep one`,
		`b.yaml:4:3: function "F" differs from "f" at a.yaml:2:13 in case alone`,
		`cut.yaml:3:1: not YAML: `,
		`empty.yaml:1:1: there is nothing in it`,
		`gone.yaml:1:1: cannot be read: open gone.yaml: no such file or directory`,
		`tab.yaml:2:1: not YAML: found character that cannot start any token; indent with spaces, not tabs`,
		`use.yaml:2:51: subscriptions.u.filter: unknown name "nosuch"`,
		`use.yaml:2:86: subscriptions.u.deliver.webhook.url: environment variable "GONE" is not set`,
	} {
		if i >= len(got) || !strings.HasPrefix(got[i], want) {
			t.Errorf("got\n%s\nwant, at %d,\n%s", strings.Join(got, "\n"), i, want)
		}
	}
	if len(got) != 10 {
		t.Errorf("%d faults", len(got))
	}
}

// FuzzParse: rules are refused or understood; what is understood is shown, and what is shown without
// secrets is understood in the same way.
func FuzzParse(f *testing.F) {
	for _, bomb := range bombs {
		if len(bomb) < 10_000 {
			f.Add([]byte(bomb))
		}
	}
	f.Add([]byte("version: 1\ntopics: {t: {partitions: 3, schema: {type: object}}}\nfunctions: {f: {wasm: pushed, config: {a: \"${env:N}\"}}}\n" +
		"subscriptions:\n  s:\n    topic: t\n    start: 24h\n    functions: [f]\n    filter: |\n      type == 'a'\n    deliver: {webhook: {url: https://x.y, secrets: [whsec_a]}}\n    retry: {attempts: 3, schedule: [1s, 5m]}\n"))
	f.Add([]byte("subscriptions: {s: &a {topic: t, deliver: {stream: {retain: {bytes: 1MiB}}}}, r: *a}"))
	f.Add([]byte("subscriptions: {s: {topic: t, filter: \"typo \\\" == 1\", deliver: {box: {l: [1], m: {a: 1}, in: {x: y}, f: 1e3}}}}"))
	f.Fuzz(func(t *testing.T, src []byte) {
		if len(src) > 64<<10 {
			return
		}
		begin := time.Now()
		s, err := ParseBytes("f.yaml", src, testOptions())
		if took := time.Since(begin); took > 5*time.Second { // 64 KiB take milliseconds
			t.Errorf("took %v", took)
		}
		if err != nil {
			for _, fault := range faultsOf(t, err) {
				if (!strings.HasPrefix(fault.At, "f.yaml:") && !strings.HasPrefix(fault.Detail, "and ")) || strings.ContainsAny(fault.Detail, "\n\x00\x1b") {
					t.Errorf("%+v", fault)
				}
			}
			return
		}
		for _, effective := range []bool{false, true} {
			text, err := s.Show(effective)
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Contains(text, []byte(hidden)) {
				continue
			}
			again, err := ParseBytes("f.yaml", text, testOptions())
			if err != nil {
				t.Fatalf("%q is shown as\n%s\nwhich is refused: %v", src, text, err)
			}
			if a, b := s.JSON(true), again.JSON(true); !bytes.Equal(a, b) {
				t.Fatalf("%q is shown as\n%s\nand means\n%s\nthen\n%s", src, text, a, b)
			}
		}
	})
}

// FuzzDefinition is the same for documents of the API and their patches.
func FuzzDefinition(f *testing.F) {
	f.Add([]byte(`{"name":"s","topic":"t","deliver":{"pull":{}}}`), []byte(`{"topic":null}`))
	f.Add([]byte(`{"name":"s","schema":{"a":[1,{"b":null}]},"wasm":"pushed"}`), []byte(`{"schema":{"a":{}},"config":{"a":"\ud83d\ude00"}}`))
	f.Fuzz(func(t *testing.T, old, patch []byte) {
		o := testOptions()
		doc, err := MergePatch(old, patch)
		if err != nil {
			return
		}
		again, err := MergePatch(doc, []byte(`{}`))
		if err != nil || !bytes.Equal(again, doc) {
			t.Fatalf("%s\nread again is\n%s\n%v", doc, again, err)
		}
		if s, err := ParseSubscription(doc, o); err == nil && !strings.Contains(string(s.Effective), hidden) {
			if _, err := ParseSubscription(s.Effective, o); err != nil {
				t.Fatalf("%s: %v", s.Effective, err)
			}
		}
		if s, err := ParseTopic(doc, o); err == nil {
			if _, err := ParseTopic(s.Effective, o); err != nil {
				t.Fatalf("%s: %v", s.Effective, err)
			}
		}
		if s, err := ParseFunction(doc, o); err == nil && !strings.Contains(string(s.Effective), hidden) {
			if _, err := ParseFunction(s.Effective, o); err != nil {
				t.Fatalf("%s: %v", s.Effective, err)
			}
		}
	})
}

// Faults beyond a bound are counted, not kept.
func TestFaultsAreBounded(t *testing.T) {
	p := newParser(testOptions())
	p.file(&source{name: "r.yaml", text: []byte(bombs["same keys"])})
	if len(p.faults) != maxKept {
		t.Errorf("%d are kept", len(p.faults))
	}
	if err := p.err(); !strings.HasSuffix(err.Error(), "\nand 199899 more") || strings.Count(err.Error(), "\n") != maxFaults {
		t.Errorf("…%s", err.Error()[len(err.Error())-100:])
	}
}
