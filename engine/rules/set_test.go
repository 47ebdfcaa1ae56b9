package rules

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
)

func parse(t *testing.T, src string, o Options) *Set {
	t.Helper()
	s, err := ParseBytes("r.yaml", []byte(src), o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestShow(t *testing.T) {
	s := parseFull(t)
	for name, effective := range map[string]bool{"shown": false, "effective": true} {
		got, err := s.Show(effective)
		if err != nil {
			t.Fatal(err)
		}
		golden := "testdata/full." + name + ".txt"
		if os.Getenv("UPDATE_GOLDEN") != "" {
			if err := os.WriteFile(golden, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != string(want) {
			t.Errorf("%s:\n%s", golden, got)
		}
		for _, text := range []string{string(got), string(s.JSON(effective))} {
			for _, secret := range []string{"tok-123456", "whsec_", "literal-secret"} {
				if strings.Contains(text, secret) {
					t.Errorf("%s shows %q", golden, secret)
				}
			}
		}
		// With the hidden header given, what is shown is rules, and means the same.
		again, err := ParseBytes("testdata/full.yaml", []byte(strings.ReplaceAll(string(got), "'***'", "literal-secret")), fileOptions())
		if err != nil {
			t.Fatalf("%v in\n%s", err, got)
		}
		if effective {
			if text, err := again.Show(true); err != nil || string(text) != string(want) {
				t.Errorf("read again: %v\n%s", err, text)
			}
		} else if again.Subscriptions[0].Fingerprint != s.Subscriptions[0].Fingerprint {
			t.Error("what is shown means something else")
		}
	}
}

// Secrets do not show whatever way they come in.
func TestSecretsDoNotShow(t *testing.T) {
	o := testOptions()
	s := parse(t, `
functions:
  f: {wasm: pushed, config: {password: hunter2hunter2, plain: "a ${env:BAD_SECRET} b", other: 1}}
subscriptions:
  s:
    topic: "${env:TOPIC}"
    filter: type == "${env:BAD_SECRET}"
    deliver: {webhook: {url: "https://u:hunter2hunter2@x.y/p?hunter2hunter2", secrets: [whsec_hunter2hunter2], headers: {Authorization: hunter2hunter2}}}
    retry: {attempts: "${env:N}"}
`, o)
	if d := s.Subscriptions[0]; d.Subscription.Topic != "orders" || d.Retry.Attempts != 7 || d.Filter != `type == "hunter2hunter2"` || s.Functions[0].Config["plain"] != "a hunter2hunter2 b" {
		t.Errorf("%+v", d.Subscription)
	}
	var all []string
	for _, effective := range []bool{false, true} {
		text, err := s.Show(effective)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, string(text), string(s.JSON(effective)))
		for _, want := range []string{"a ${env:BAD_SECRET} b", "${env:TOPIC}", "${env:N}", "***@x.y/p?***"} {
			if !strings.Contains(string(text), want) {
				t.Errorf("%q is not in\n%s", want, text)
			}
		}
	}
	all = append(all, string(s.Subscriptions[0].Subscription.Source), string(s.Subscriptions[0].Effective), string(s.Functions[0].Source), string(s.Functions[0].Effective))
	for _, text := range all {
		if strings.Contains(text, "hunter2") {
			t.Errorf("a secret in\n%s", text)
		}
	}
}

// A filter with a URL in it has no secrets.
func TestFiltersShow(t *testing.T) {
	const filter = `source == "https://u:p@x.y/?q=1"`
	s := parse(t, "subscriptions: {s: {topic: t, filter: '"+filter+"', deliver: {pull: }}}", testOptions())
	if got := string(s.Subscriptions[0].Subscription.Source); !strings.Contains(got, string(jsonString(filter))) {
		t.Error(got)
	}
}

// References are not looked into again, keys are left alone, $${ is a plain ${.
func TestReferences(t *testing.T) {
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte("line\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := parse(t, `functions: {f: {wasm: pushed, config: {"${env:N}": "<${env:NESTED}>", b: "$${env:N}", c: "${file:`+file+`}", d: "${env:EMPTY}", e: "${env:N}${env:N}"}}}`, fileOptions())
	for key, want := range map[string]string{"${env:N}": "<${env:API_TOKEN}>", "b": "${env:N}", "c": "line", "d": "", "e": "77"} {
		if got := s.Functions[0].Config[key]; got != want {
			t.Errorf("%s: %q, want %q", key, got, want)
		}
	}
}

func TestFingerprint(t *testing.T) {
	const base = "subscriptions: {s: {topic: t, deliver: {webhook: {url: 'https://x.y/', secrets: ['${env:HOOK_SECRET}']}}}}"
	print := func(src string, o Options) string { return parse(t, src, o).Subscriptions[0].Fingerprint }
	o := testOptions()
	want := print(base, o)
	for _, same := range []string{
		"# a comment\n" + strings.ReplaceAll(base, "'", `"`),
		"subscriptions: {s: {deliver: {webhook: {secrets: ['${env:HOOK_SECRET}'], url: 'https://x.y/'}}, topic: t}}",
		strings.Replace(base, "topic: t", "topic: t, start: earliest", 1),
		"topics: {t: {partitions: 2}}\n" + base,
	} {
		if print(same, o) != want {
			t.Errorf("another fingerprint: %s", same)
		}
	}
	for _, other := range []string{
		strings.Replace(base, "topic: t", "topic: u", 1),
		strings.Replace(base, "topic: t", "topic: t, concurrency: 16", 1),
		strings.Replace(base, "x.y", "x.z", 1),
	} {
		if print(other, o) == want {
			t.Errorf("the same fingerprint: %s", other)
		}
	}
	o.Getenv = func(string) (string, bool) { return "whsec_other", true }
	if print(base, o) == want {
		t.Error("a changed secret does not change the fingerprint")
	}
}

func TestDefaults(t *testing.T) {
	s := parse(t, `
topics: {a: , dead: {partitions: 2}, kept: {whenFull: drop-oldest}}
functions:
subscriptions:
  p: {topic: a, deliver: {pull: }, deadLetter: dead}
  q: {topic: a, deliver: {stream: }, deadLetter: kept, retry: {attempts: unlimited, jitter: 0}}
  r: {topic: b, deliver: {topic: a}, start: 2026-01-31T12:00:00Z}
`, testOptions())
	full := map[string]event.WhenFull{}
	for _, x := range s.Topics {
		full[x.Name] = x.WhenFull
	}
	want := map[string]event.WhenFull{"a": 0, "dead": event.Reject, "kept": 0, "q.out": 0, "b": 0, "r.dead": event.Reject}
	if len(full) != len(want) {
		t.Errorf("topics %v", full)
	}
	for name, w := range want {
		if got, ok := full[name]; !ok || got != w {
			t.Errorf("topic %s: %v, %v", name, got, ok)
		}
	}
	p, q, r := s.Subscriptions[0], s.Subscriptions[1], s.Subscriptions[2]
	if p.DeadLetter != "dead" || p.Deliver.AckDeadline != 10*time.Second || q.Retry.Attempts != event.Unlimited || q.Retry.Jitter != 0 {
		t.Errorf("%+v\n%+v", p.Subscription, q.Subscription)
	}
	if r.DeadLetter != "r.dead" || r.Start != (event.Start{At: event.AtTime, Time: time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)}) {
		t.Errorf("%+v", r.Subscription)
	}
}

func TestFolder(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Parse(t.Context(), dir, testOptions()); err == nil || !strings.Contains(err.Error(), "no *.yaml or *.yml file") {
		t.Errorf("an empty folder: %v", err)
	}
	if _, err := Parse(t.Context(), filepath.Join(dir, "none"), testOptions()); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("no folder: %v", err)
	}
	write("a.yaml", "topics: {t: {schema: s.json}}\nsubscriptions: {s: {topic: t, functions: [f], deliver: {pull: {}}}}\n")
	write("b.yml", "functions: {f: {wasm: pushed}}\n")
	write(".hidden.yaml", "oops")
	write("notes.txt", "oops")
	write("s.json", "{}")
	if err := os.Mkdir(filepath.Join(dir, "sub.yaml"), 0o755); err != nil {
		t.Fatal(err)
	}
	s, err := Parse(t.Context(), dir, testOptions())
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Topics) != 2 || len(s.Functions) != 1 || len(s.Subscriptions) != 1 || len(s.Files) != 3 {
		t.Errorf("%+v", s)
	}
	again, err := Parse(t.Context(), dir, testOptions())
	if err != nil || again.Revision != s.Revision || !strings.HasPrefix(s.Revision, "sha256:") {
		t.Errorf("revision %s, then %s, %v", s.Revision, again.Revision, err)
	}
	write("s.json", `{"type": "object"}`)
	if again, err = Parse(t.Context(), dir, testOptions()); err != nil || again.Revision == s.Revision {
		t.Errorf("another schema has the same revision: %v", err)
	}
	write("b.yml", "functions: {f: {wasm: pushed}}\ntopics:\n  t: {}\nsubscriptions:\n  s: {topic: t, deliver: {pull: {}}}\n")
	_, err = Parse(t.Context(), dir, testOptions())
	a, b := filepath.Join(dir, "a.yaml"), filepath.Join(dir, "b.yml")
	want := b + `:3:3: topic "t" is defined twice: here and at ` + a + ":1:10; keep one\n" +
		b + `:5:3: subscription "s" is defined twice: here and at ` + a + ":2:17; keep one"
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Parse(ctx, dir, testOptions()); err != context.Canceled {
		t.Errorf("after the end: %v", err)
	}
}

func TestUnits(t *testing.T) {
	for s, want := range map[string]time.Duration{"15s": 15 * time.Second, "1h30m": 90 * time.Minute, "7d": 168 * time.Hour, "2w": 336 * time.Hour,
		"1.5h": 90 * time.Minute, "250ms": 250 * time.Millisecond, "0s": 0, "1d12h": 36 * time.Hour, "3µs": 3 * time.Microsecond} {
		if got, err := parseDuration(s); err != nil || got != want {
			t.Errorf("%s: %v, %v", s, got, err)
		}
		if got, err := parseDuration(formatDuration(want)); err != nil || got != want {
			t.Errorf("%s is shown as %s", s, formatDuration(want))
		}
	}
	for _, s := range []string{"", "5", "s", "5 s", "-5s", "5S", "1e3s", ".s", "1..5s", "200000w", "106751d24h48m", "9999999999999999999s", "5s ", "5sx"} {
		if got, err := parseDuration(s); err == nil {
			t.Errorf("%q is %v", s, got)
		}
	}
	for s, want := range map[string]int64{"1": 1, "64MiB": 64 << 20, "1.5GiB": 3 << 29, "10MB": 1e7, "1 KiB": 1024, "5B": 5, "1kB": 1000, "2TiB": 2 << 40} {
		if got, err := parseSize(s); err != nil || got != want {
			t.Errorf("%s: %v, %v", s, got, err)
		}
		if got, err := parseSize(formatSize(want)); err != nil || got != want {
			t.Errorf("%s is shown as %s", s, formatSize(want))
		}
	}
	for _, s := range []string{"", "MiB", "-1", "1.5B", "1M", "1mib", "8388608TiB", "99999999999999999999", "1e3", "1..5MiB", "1MiBs"} {
		if got, err := parseSize(s); err == nil {
			t.Errorf("%q is %v", s, got)
		}
	}
}

// Parse alone falls back on the process: what comes over the network must not read it.
func TestWhoMayReadTheProcess(t *testing.T) {
	t.Setenv("RULES_TEST_VARIABLE", "orders")
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "name"), []byte("orders\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "r.yaml")
	for _, ref := range []string{"${env:RULES_TEST_VARIABLE}", "${file:name}"} {
		src := "subscriptions: {s: {topic: \"" + ref + "\", deliver: {pull: }}}"
		if err := os.WriteFile(file, []byte(src), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Parse(t.Context(), file, Options{})
		if err != nil || s.Subscriptions[0].Subscription.Topic != "orders" {
			t.Errorf("%s: %v", ref, err)
		}
		if _, err := ParseBytes(file, []byte(src), Options{}); err == nil || !strings.Contains(err.Error(), "not available here") {
			t.Errorf("%s from elsewhere: %v", ref, err)
		}
	}
}
