package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
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
