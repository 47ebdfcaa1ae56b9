package rules

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

const cachedRules = `version: 1
functions: {f: {wasm: pushed}}
subscriptions:
  a:
    topic: t
    filter: data.n == 1
    functions: [f]
    deliver: {webhook: {url: "https://example.com/${env:X}"}}
  b: {topic: t, deliver: {stream: {retain: {age: 1d}}}}
  c: {topic: t, deliver: {topic: u}}
`

// What a cache has makes the same set as reading everything anew, and is used only where nothing has changed.
func TestCache(t *testing.T) {
	env := map[string]string{"X": "one"}
	o := Options{Sinks: testOptions().Sinks, Getenv: func(name string) (string, bool) { v, ok := env[name]; return v, ok }, Cache: &Cache{}}
	parse := func(text string) *Set {
		t.Helper()
		with, err := ParseBytes("rules.yaml", []byte(text), o)
		if err != nil {
			t.Fatal(err)
		}
		plain := o
		plain.Cache = nil
		want, err := ParseBytes("rules.yaml", []byte(text), plain)
		if err != nil {
			t.Fatal(err)
		}
		if string(with.JSON(true)) != string(want.JSON(true)) || with.Revision != want.Revision {
			t.Errorf("with a cache:\n%s\nwithout:\n%s", with.JSON(true), want.JSON(true))
		}
		for i := range want.Subscriptions {
			a, b := with.Subscriptions[i], want.Subscriptions[i]
			if a.Fingerprint != b.Fingerprint || !reflect.DeepEqual(a.Subscription, b.Subscription) || !reflect.DeepEqual(a.hidden, b.hidden) {
				t.Errorf("with a cache %+v, without %+v", a, b)
			}
		}
		return with
	}
	first := parse(cachedRules)
	moved := parse("# a line more\n" + cachedRules)
	if moved.Subscriptions[0].Program != first.Subscriptions[0].Program {
		t.Error("a filter that did not change was compiled again")
	}
	if line := moved.Subscriptions[0].Owner.Line; line != first.Subscriptions[0].Owner.Line+1 {
		t.Errorf("it is said to be at line %d", line)
	}
	for from, to := range map[string]string{"data.n == 1": "data.n == 2", "age: 1d": "age: 2d", "topic: u": "topic: v", "topic: t": "topic: w",
		"${env:X}": "$${env:X}", "    filter:": "    concurrency: 3\n    filter:"} {
		parse(strings.ReplaceAll(cachedRules, from, to))
		parse(cachedRules)
	}
	env["X"] = "two"
	if changed := parse(cachedRules); changed.Subscriptions[0].Fingerprint == first.Subscriptions[0].Fingerprint {
		t.Error("another value of a variable was not noticed")
	}
	// Faults are found whatever was good before, and at their new places.
	for i, c := range []struct{ from, to, want string }{
		{"functions: {f: ", "functions: {g: ", `unknown function "f"`},
		{"functions: {f: {wasm: pushed}}", "topics: {t: {schema: {properties: {m: {}}, additionalProperties: false}}}\nfunctions: {f: {wasm: pushed}}", ":7:"},
	} {
		_, err := ParseBytes("rules.yaml", []byte(strings.Replace(cachedRules, c.from, c.to, 1)), o)
		if err == nil || !strings.Contains(fmt.Sprint(err), c.want) {
			t.Errorf("%d: %v; want %s", i, err, c.want)
		}
		parse(cachedRules)
	}
	delete(env, "X")
	if _, err := ParseBytes("rules.yaml", []byte(cachedRules), o); err == nil || !strings.Contains(err.Error(), `"X" is not set`) {
		t.Errorf("a variable that is gone: %v", err)
	}
}

// Files that did not change are not read again, and what is wrong between them and others is said as if they were.
func TestCacheOfFiles(t *testing.T) {
	dir := t.TempDir()
	files := map[string]string{
		"a.yaml": "version: 1\ntopics: {t: {}}\nfunctions: {f: {wasm: pushed}}\n",
		"b.yaml": "subscriptions:\n  one: {topic: t, filter: data.n == 1, functions: [f], deliver: {webhook: {url: \"https://example.com/\"}}}\n  two: {topic: t, deliver: {topic: out}}\n",
		"c.yaml": "subscriptions:\n  three: {topic: t, deliver: {pull: {}}}\n",
		"d.yaml": "subscriptions:\n  four: {topic: t, deliver: {stream: {retain: {age: 1d}}}}\n",
	}
	write := func(changed map[string]string) {
		t.Helper()
		for name, text := range files {
			if other, ok := changed[name]; ok {
				text = other
			}
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	o := testOptions()
	o.Cache = &Cache{}
	same := func(what string) {
		t.Helper()
		plain := o
		plain.Cache = nil
		want, wantErr := Parse(t.Context(), dir, plain)
		got, err := Parse(t.Context(), dir, o)
		if fmt.Sprint(err) != fmt.Sprint(wantErr) {
			t.Errorf("%s: with a cache: %v\nwithout: %v", what, err, wantErr)
		}
		if err != nil || wantErr != nil {
			return
		}
		if string(got.JSON(true)) != string(want.JSON(true)) || got.Revision != want.Revision || !reflect.DeepEqual(got.Files, want.Files) || !reflect.DeepEqual(got.Sources, want.Sources) {
			t.Errorf("%s: with a cache:\n%s\nwithout:\n%s", what, got.JSON(true), want.JSON(true))
		}
		for i, b := range want.Subscriptions {
			if a := got.Subscriptions[i]; a.Fingerprint != b.Fingerprint || !reflect.DeepEqual(a.Subscription, b.Subscription) {
				t.Errorf("%s: with a cache %+v, without %+v", what, a, b)
			}
		}
	}
	write(nil)
	same("read first")
	if n := len(o.Cache.files); n != 2 { // not a, which has more than subscriptions, nor d, whose bounds a topic may contradict
		t.Fatalf("%d files are remembered", n)
	}
	for what, changed := range map[string]map[string]string{
		"nothing":                       nil,
		"a subscription":                {"c.yaml": "subscriptions:\n\n  three: {topic: t, filter: data.n == 2, deliver: {pull: {}}}\n"},
		"one more":                      {"c.yaml": files["c.yaml"] + "  five: {topic: t, deliver: {pull: {}}}\n"},
		"one moved":                     {"c.yaml": "# a line\n" + files["c.yaml"]},
		"one taken twice":               {"d.yaml": files["c.yaml"]},
		"one taken twice, read first":   {"a.yaml": files["a.yaml"] + files["c.yaml"]},
		"a function that goes":          {"a.yaml": "version: 1\ntopics: {t: {}}\n"},
		"a topic that was implied":      {"d.yaml": "topics: {out: {}}\n"},
		"a topic with a schema":         {"a.yaml": "version: 1\ntopics: {t: {schema: {properties: {m: {}}, additionalProperties: false}}}\nfunctions: {f: {wasm: pushed}}\n"},
		"a topic in other letters":      {"d.yaml": "topics: {T: {}}\n"},
		"dead letters in other letters": {"d.yaml": "topics: {Three.dead: {}}\n"},
		"a circle":                      {"c.yaml": "subscriptions:\n  three: {topic: out, deliver: {topic: t}}\n"},
		"a circle of dead letters":      {"c.yaml": "subscriptions:\n  three: {topic: two.dead, deliver: {pull: {}}, deadLetter: t}\n"},
		"nonsense":                      {"c.yaml": "subscriptions: ["},
	} {
		write(changed)
		same(what)
		same(what + ", again")
		write(nil)
		same("as before " + what)
	}
	first := o.Cache.subs["one"]
	got, err := Parse(t.Context(), dir, o)
	if err != nil || got.Subscriptions[0].Program != first.done.Program || got.Subscriptions[0].Owner.Line != 2 {
		t.Errorf("read again: %+v, %v", got, err)
	}
}
