package rules

import (
	"fmt"
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
