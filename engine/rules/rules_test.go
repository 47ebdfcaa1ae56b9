package rules

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
)

func parseFull(t *testing.T) *Set {
	t.Helper()
	s, err := Parse(t.Context(), "testdata/full.yaml", testOptions())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestFullExample(t *testing.T) {
	s := parseFull(t)
	var topics []string
	for _, x := range s.Topics {
		topics = append(topics, fmt.Sprintf("%s %v %d %s %s %v", x.Name, x.Implied, x.Retain.Bytes, x.Retain.Age, x.Dedupe, x.WhenFull))
	}
	want := []string{
		"orders false 1073741824 168h0m0s 2m0s 0",
		"big-eu-orders.dead true 1073741824 168h0m0s 2m0s 1",
		"audit.dead true 1073741824 168h0m0s 2m0s 1",
		"live.dead true 1073741824 168h0m0s 2m0s 1",
		"calm.dead true 1073741824 168h0m0s 2m0s 1",
		"live.out false 1073741824 1h0m0s 2m0s 0",
		"audit true 1073741824 168h0m0s 2m0s 0",
	}
	if !reflect.DeepEqual(topics, want) {
		t.Errorf("topics:\n%s\nwant:\n%s", strings.Join(topics, "\n"), strings.Join(want, "\n"))
	}
	if len(s.Topics[0].Schema) == 0 || s.Topics[0].Owner != (event.Owner{File: "testdata/full.yaml", Line: 3}) {
		t.Errorf("orders: %+v", s.Topics[0])
	}
	f := s.Functions[0]
	if f.Path != "functions/redact.wasm" || len(f.Module) != 8 || f.Config["field"] != "email" ||
		f.Digest != "sha256:93a44bbb96c751218e4c00d479e4c14358122a389acca16205b1e4d0dc5f9476" || f.Limits.Memory != 64<<20 || f.Limits.Output != 4<<20 {
		t.Errorf("redact: %+v", f)
	}
	if f := s.Functions[1]; !f.Pushed || f.Digest != "" || f.Limits.Memory != 64<<20 {
		t.Errorf("later: %+v", f)
	}
	got := s.Subscriptions[0].Subscription
	got.Source = nil
	if want := (event.Subscription{
		Name: "big-eu-orders", Topic: "orders", Functions: []string{"redact"}, Concurrency: 16, Parked: 256 << 20,
		Filter:     `type == "order.created" && data.total > 100 && data.country in ["DE", "FR"]`,
		Deliver:    event.Deliver{Kind: "webhook"},
		Retry:      event.RetryPolicy{Attempts: 10, Schedule: event.DefaultSchedule, Jitter: 0.2},
		DeadLetter: "big-eu-orders.dead", Owner: event.Owner{File: "testdata/full.yaml", Line: 19},
	}); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if s.Subscriptions[0].Program == nil || s.Subscriptions[0].OpenSink == nil || s.Subscriptions[1].Program != nil || s.Subscriptions[1].OpenSink != nil {
		t.Error("programs and sinks are not where they belong")
	}
	if w := s.Subscriptions[1]; w.DeadLetter != "" || w.Deliver != (event.Deliver{Face: event.Pull, AckDeadline: 10 * time.Second}) || w.Retry.Jitter != 0.2 {
		t.Errorf("workers: %+v", w.Subscription)
	}
	if l := s.Subscriptions[3]; l.Deliver != (event.Deliver{Face: event.Stream, Topic: "live.out", StreamKeep: event.Retain{Age: time.Hour}}) {
		t.Errorf("live: %+v", l.Subscription)
	}
	if want := []string{"testdata/full.yaml", "testdata/functions/redact.wasm", "testdata/schemas/order.json"}; !reflect.DeepEqual(s.Files, want) {
		t.Errorf("files %q", s.Files)
	}
}

func fileOptions() Options {
	o := testOptions()
	o.ReadFile = os.ReadFile
	return o
}

// Each testdata/bad/*.yaml is refused with exactly the lines of the .txt beside it.
func TestBad(t *testing.T) {
	files, err := filepath.Glob("testdata/bad/*.yaml")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			_, err := Parse(t.Context(), file, testOptions())
			if err == nil {
				t.Fatal("it was accepted")
			}
			golden := strings.TrimSuffix(file, ".yaml") + ".txt"
			got := strings.ReplaceAll(err.Error(), "testdata/bad/", "") + "\n"
			if os.Getenv("UPDATE_GOLDEN") != "" {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
			place := regexp.MustCompile(`^[a-z-]+\.yaml:\d+:\d+: .`)
			for _, line := range strings.Split(strings.TrimSpace(got), "\n") {
				if !place.MatchString(line) && !strings.HasPrefix(line, "and ") {
					t.Errorf("no place in %q", line)
				}
				for _, secret := range []string{"hunter2", "tok-123456", "literal-secret"} {
					if strings.Contains(line, secret) {
						t.Errorf("a secret in %q", line)
					}
				}
			}
		})
	}
}

// A script is a module that holds it; what is wrong with it is said at its place.
func TestScripts(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"f.js": "export default () => pass()", "bad.js": "\xff"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write := func(text string) string {
		path := filepath.Join(dir, "rules.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	o := testOptions()
	o.ReadFile = nil
	set, err := Parse(t.Context(), write("version: 1\nfunctions:\n  f: {js: f.js}\n"), o)
	if err != nil {
		t.Fatal(err)
	}
	f := set.Functions[0]
	if language, source, ok := plugins.ScriptOf(f.Module); !ok || language != "js" || string(source) != "export default () => pass()" || f.Digest == "" || f.Path != "f.js" {
		t.Errorf("%+v", f)
	}
	for text, want := range map[string]string{
		"version: 1\nfunctions:\n  f: {js: none.js}\n":            "rules.yaml:3:11: functions.f.js: file \"none.js\"",
		"version: 1\nfunctions:\n  f: {js: bad.js}\n":             "rules.yaml:3:11: functions.f.js: file \"bad.js\": module: the source is not UTF-8",
		"version: 1\nfunctions:\n  f: {js: f.js, wasm: pushed}\n": "rules.yaml:3:11: functions.f.js: stands beside \"wasm\"",
	} {
		if _, err := Parse(t.Context(), write(text), o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\ngot  %v\nwant %s", text, err, want)
		}
	}
}

// A filter that was written with a reference is explained without what that stands for.
func TestExplainedFilterHidesReferences(t *testing.T) {
	o := Options{Getenv: func(string) (string, bool) { return `se"cret-value`, true }, Sinks: map[string]SinkKind{}}
	s, err := ParseBytes("r.yaml", []byte("version: 1\nsubscriptions: {s: {topic: t, filter: 'ext.token == `${env:TOKEN}` && type != \"a\"', deliver: {pull: {}}}}\n"), o)
	if err != nil {
		t.Fatal(err)
	}
	ev := event.Event{ID: "1", Source: "/s", Type: "b"}
	for _, extension := range []string{"", `se"cret-value`} {
		if extension != "" {
			ev.Extensions = []event.Attribute{{Name: "token", Value: extension}}
		}
		said := s.Subscriptions[0].Program.Explain(event.Record(ev.AppendRecord(nil)))
		if said.Matched != (extension != "") {
			t.Errorf("%q: %+v", extension, said)
		}
		text := said.String() + s.Subscriptions[0].Program.Shown()
		for _, p := range said.Parts {
			text += p.Source
		}
		if said.Matched {
			text = s.Subscriptions[0].Program.Shown() // the event shows its own
		}
		if strings.Contains(text, "cret-value") || !strings.Contains(text, "***") {
			t.Error(text)
		}
	}
}
