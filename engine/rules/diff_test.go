package rules

import (
	"fmt"
	"strings"
	"testing"
)

func changes(all []Change) string {
	var b strings.Builder
	for _, c := range all {
		fmt.Fprintf(&b, "%s %s %s\n", c.Change, c.Kind, c.Name)
		for _, k := range c.Keys {
			fmt.Fprintf(&b, "  %s: %s → %s", k.Key, k.Old, k.New)
			if k.Hidden {
				b.WriteString(" (hidden)")
			}
			b.WriteString("\n")
		}
	}
	return b.String()
}

func TestDiff(t *testing.T) {
	secret := "first-value"
	o := testOptions()
	o.Getenv = func(string) (string, bool) { return secret, true }
	old := parse(t, `topics:
  orders: {retain: {bytes: 1GiB}}
  gone: {}
functions:
  f: {wasm: pushed, config: {a: 1}, secrets: {pin: abc-def, key: "${env:K}"}}
subscriptions:
  same: {topic: orders, deliver: {pull: }}
  hook: {topic: orders, filter: data.total > 100, deliver: {webhook: {url: "https://a.example", headers: {authorization: "Bearer ${env:K}"}}}}
  old: {topic: orders, deliver: {topic: elsewhere}}
hosts: {a.example: {rate: 10/s}}
`, o)
	secret = "second-value"
	next := parse(t, `# Written anew.
subscriptions:
  hook:
    deliver: {webhook: {url: "https://a.example", headers: {authorization: "Bearer ${env:K}"}, timeout: 5s}}
    filter: data.total > 500
    functions: [f]
    topic: orders
  same: {"topic": "orders", retry: {attempts: 10}, deliver: {pull: {ackDeadline: 10s}}}
  made: {topic: orders, deliver: {pull: }}
functions:
  f: {wasm: pushed, config: {a: 2, b: 3}, secrets: {pin: other-pin, key: "${env:K}"}}
topics:
  orders: {retain: {bytes: 512MiB, events: 1000}}
hosts: {a.example: {rate: 20/s}}
schedules: {nightly: {topic: orders, cron: "0 2 * * *"}}
`, o)
	want := `removed topic gone
changed topic orders
  retain.bytes: 1GiB → 512MiB
  retain.events:  → 1000
changed function f
  config.a: 1 → 2
  config.b:  → 3
  secrets.key: *** → *** (hidden)
  secrets.pin: *** → *** (hidden)
created subscription made
  hook
removed subscription old
changed host a.example
  rate: 10/s → 20/s
created schedule nightly
`
	hook := `changed subscription hook
  filter: data.total > 100 → data.total > 500
  deliver.webhook.timeout: 15s → 5s
  functions:  → ["f"]
  deliver.webhook.headers.authorization: *** → *** (hidden)
`
	got := changes(Diff(old, next))
	for _, line := range strings.Split(strings.Replace(want, "  hook\n", "", 1), "\n") {
		if !strings.Contains(got, line) {
			t.Errorf("%q is missing in\n%s", line, got)
		}
	}
	if !strings.Contains(got, "changed subscription hook\n  filter: data.total > 100 → data.total > 500\n") || strings.Contains(got, "same") {
		t.Errorf("got\n%s\nwant\n%s", got, hook)
	}
	for _, text := range []string{"first-value", "second-value", "abc-def", "other-pin"} {
		if strings.Contains(got, text) {
			t.Errorf("%q is shown in\n%s", text, got)
		}
	}
	if !strings.Contains(got, "  deliver.webhook.headers.authorization: *** → *** (hidden)\n") && !strings.Contains(got, "Bearer ${env:K} → Bearer ${env:K} (hidden)") {
		t.Errorf("a variable's other value is no change:\n%s", got)
	}
	if all := Diff(next, next); len(all) != 0 {
		t.Errorf("equal sets differ:\n%s", changes(all))
	}
	if got := changes(Diff(nil, old)); strings.Count(got, "created") != 7 || strings.Contains(got, "elsewhere") {
		t.Errorf("from nothing:\n%s", got)
	}
}

// Whoever only compares need not know what variables and files have in them.
func TestDiffOfWhatIsNotKnownHere(t *testing.T) {
	const text = `topics: {t: }
functions: {f: {wasm: pushed, secrets: {a: "${file:/run/secrets/a}", b: "${env:NOT_SET_HERE}"}}}
subscriptions: {s: {topic: t, deliver: {webhook: {url: "https://${env:NOT_SET_HERE}/x"}}}}
`
	dir := t.TempDir()
	writeFiles(t, dir, map[string]string{"old.yaml": text, "new.yaml": strings.Replace(text, "/x", "/y", 1)})
	o := testOptions()
	o.Getenv = func(string) (string, bool) { return "", false }
	if _, _, err := Pack(t.Context(), dir+"/old.yaml", o); err == nil {
		t.Error("a bundle to apply reads files of the machine")
	}
	o.Unresolved = true
	bundle, old, err := Pack(t.Context(), dir+"/old.yaml", o)
	if err != nil {
		t.Fatal(err)
	}
	_, next, err := Pack(t.Context(), dir+"/new.yaml", o)
	if err != nil {
		t.Fatal(err)
	}
	if got := changes(Diff(old, next)); got != "changed subscription s\n  deliver.webhook.url: https://${env:NOT_SET_HERE}/x → https://${env:NOT_SET_HERE}/y\n" {
		t.Errorf("got\n%s", got)
	}
	known := o
	known.Getenv = func(string) (string, bool) { return "host.example", true }
	known.ReadFile = func(string) ([]byte, error) { return []byte("a secret"), nil }
	inForce, err := ParseBytes("old.yaml", []byte(text), known)
	if err != nil {
		t.Fatal(err)
	}
	set, err := ParseBundle(t.Context(), bundle, known)
	if err != nil {
		t.Fatal(err)
	}
	if got := changes(Diff(inForce, set)); got != "" {
		t.Errorf("with the router's values:\n%s", got)
	}
}
