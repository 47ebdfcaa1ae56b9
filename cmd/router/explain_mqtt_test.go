package main

import (
	"bytes"
	"errors"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/millrace/millrace/engine/event"
)

// What docs/mqtt.md shows of an explained name is what is printed, with the page's own rules.
func TestExplainedNameAsDocumented(t *testing.T) {
	path := filepath.Join(t.TempDir(), "millrace.yaml")
	if err := os.WriteFile(path, []byte(codeBlock(t, "mqtt.md", "yaml", 0)+codeBlock(t, "mqtt.md", "yaml", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"explain", "--mqtt-name", "plants/north/pump-7/temp", "--data", `{"celsius": 95}`, "--rules", path}
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "mqtt.md"))
	if err != nil {
		t.Fatal(err)
	}
	if shown := `$ router explain --mqtt-name plants/north/pump-7/temp --data '{"celsius": 95}' --rules millrace.yaml`; !strings.Contains(string(page), shown) {
		t.Errorf("docs/mqtt.md does not show %s", shown)
	}
	var out bytes.Buffer
	cmd := rootCommand(&program{stdout: &out, env: func(string) string { return "" }})
	cmd.SetArgs(args)
	if err := cmd.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := strings.ReplaceAll(regexp.QuoteMeta(codeBlock(t, "mqtt.md", "text", 0)), "…", ".*")
	if !regexp.MustCompile("^" + want + "$").MatchString(out.String()) {
		t.Errorf("it prints\n%s", &out)
	}
}

// Where many mappings do not take a name, those that match it are told of, and how many others there are.
func TestExplainedNameIsBounded(t *testing.T) {
	rules := "version: 1\ntopics: {a: {}}\nmqtt:\n  x/#: {topic: a}\n  \"#\": {topic: a}\n"
	for _, c := range "abcdefghijklmnopqrstuvwyz" {
		rules += "  " + string(c) + "/+: {topic: a}\n"
	}
	path := filepath.Join(t.TempDir(), "rules.yaml")
	if err := os.WriteFile(path, []byte(rules), 0o600); err != nil {
		t.Fatal(err)
	}
	x, err := (&program{env: func(string) string { return "" }}).explainNameDry(t.Context(), explaining{rules: path, name: "x/1"}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if x.Taken == nil || x.Taken.By != "x/#" || len(x.Others) != othersShown || x.More != 26-othersShown || !x.Others[0].Matches || x.Others[0].Filter != "#" {
		t.Errorf("%+v", x)
	}
}

// Over HTTP too: nothing is stored, and a mapping that is not there for the caller is none.
func TestExplainedNameOverHTTP(t *testing.T) {
	p := startProcess(t, codeBlock(t, "mqtt.md", "yaml", 0)+codeBlock(t, "mqtt.md", "yaml", 1))
	ask := func(status int, subscription, name, data string) string {
		t.Helper()
		q := url.Values{"mqttName": {name}, "data": {data}}.Encode()
		return p.must(status, "GET", "/v1/subscriptions/"+subscription+"/explain?"+q, "", "")
	}
	for _, c := range []struct{ subscription, name, data, want string }{
		{"hot", "plants/north/pump-7/temp", `{"celsius": 95}`, `"mqtt":{"name":"plants/north/pump-7/temp","by":"plants/+/+/temp"},"matched":true`},
		{"hot", "plants/north/pump-7/temp", `{"celsius": 95}`, `"outputs":[{"topic":"hot.out"`},
		{"hot", "plants/north/pump-7/temp", `{"celsius": 5}`, `"matched":false`},
		{"hot", "other", `1`, `"state":"other-topic"`},
	} {
		if got := ask(200, c.subscription, c.name, c.data); !strings.Contains(got, c.want) || strings.Contains(got, `"position"`) {
			t.Errorf("%s of %s %s: %s; want %s", c.subscription, c.name, c.data, got, c.want)
		}
	}
	ask(404, "lukewarm", "other", "")
	ask(200, "hot", strings.Repeat("é", 512), strings.Repeat("é", maxAsked/len("%C3%A9"))) // the longest
	ask(400, "hot", "other", strings.Repeat("a", maxAsked+1))
	for _, x := range []struct {
		bytes int
		rest  []string
		want  string
	}{
		{maxAsked / 3, []string{"hot"}, ""}, {maxAsked/3 + 1, []string{"hot"}, "in a URL"}, {1 << 16, nil, ""}, {1 << 16, []string{"hot", "--rules", p.o.rules}, ""},
	} {
		cmd := rootCommand(&program{stdout: io.Discard, stderr: io.Discard, env: func(string) string { return "" }})
		cmd.SetArgs(append([]string{"explain", "--server", p.base, "--mqtt-name", "other", "--data", strings.Repeat("\"", x.bytes)}, x.rest...))
		if err := cmd.ExecuteContext(t.Context()); (err != nil) != (x.want != "") || err != nil && !strings.Contains(err.Error(), x.want) {
			t.Errorf("%d quotes to %s: %v; want %q", x.bytes, x.rest, err, x.want)
		}
	}
	if got := ask(400, "hot", "other/#", ""); !strings.Contains(got, "?mqttName") || strings.Contains(got, "?mqttName.") {
		t.Error(got)
	}
	if got := p.must(200, "GET", "/v1/topics/readings/events", "", ""); !strings.Contains(got, `"events":[]`) {
		t.Errorf("something was stored: %s", got)
	}
	b := backend{Engine: p.r.engine, definitions: p.r.defs}
	anyTopic := func(string) error { return nil }
	for _, refused := range []string{"inbox", "readings"} { // that it goes into, and that the subscription reads
		_, err := b.ExplainMQTT(t.Context(), "hot", "other", nil, func(string) bool { return true }, func(topic string) error {
			if topic == refused {
				return event.ErrDenied
			}
			return nil
		})
		if !errors.Is(err, event.ErrDenied) {
			t.Errorf("who may not publish into %s runs functions on what he sends: %v", refused, err)
		}
	}
	_, hidden := b.ExplainMQTT(t.Context(), "hot", "other", nil, func(topic string) bool { return topic != "inbox" }, anyTopic)
	p.write("topics: {readings: {}}\nsubscriptions:\n  hot: {topic: readings, deliver: {pull: {}}}\n")
	until(t, "the mappings go", func() bool { return len(p.r.defs.MQTT().Sources()) == 0 })
	_, none := b.ExplainMQTT(t.Context(), "hot", "other", nil, func(string) bool { return true }, anyTopic)
	if !errors.Is(hidden, event.ErrNotFound) || none == nil || hidden.Error() != none.Error() {
		t.Errorf("a name that leads to what is hidden: %v; one that leads nowhere: %v", hidden, none)
	}
}
