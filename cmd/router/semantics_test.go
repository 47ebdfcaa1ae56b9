package main

import (
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Every test that docs/semantics.md names as the proof of a promise is there, and every row that promises
// something names one.
func TestSemanticsNameTheirProofs(t *testing.T) {
	root := filepath.Join("..", "..")
	have := map[string]bool{}
	declared := regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "node_modules" || d.Name() == ".git") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		text, err := os.ReadFile(path)
		for _, m := range declared.FindAllStringSubmatch(string(text), -1) {
			have[m[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(root, "docs", "semantics.md"))
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`(Test\\w+)`").FindAllStringSubmatch(string(page), -1)
	for _, m := range named {
		if !have[m[1]] {
			t.Errorf("docs/semantics.md names %s, which is no test of this project", m[1])
		}
	}
	if len(named) < 40 {
		t.Errorf("docs/semantics.md names %d tests", len(named))
	}
	for line := range strings.Lines(string(page)) {
		if cells := strings.Split(strings.TrimSpace(line), "|"); strings.HasPrefix(line, "|") && len(cells) == 5 && !strings.HasPrefix(cells[1], "-") &&
			!strings.Contains(line, "`Test") && !strings.Contains(line, "| Test |") && !strings.Contains(line, "| none between") {
			t.Errorf("docs/semantics.md promises without a test: %s", line)
		}
	}
}

// The reminder of docs/semantics.md is accepted at once, and waits in the store.
func TestDelayedExampleIsRun(t *testing.T) {
	p := startProcess(t, "version: 1\ntopics: {orders: {}}\nsubscriptions:\n  s: {topic: orders, deliver: {pull: {}}}\n")
	commands, answer, ok := strings.Cut(codeBlock(t, "semantics.md", "sh", 0), "# ")
	if !ok {
		t.Fatal("the example shows no answer")
	}
	cmd := exec.Command("sh", "-ec", strings.Replace(commands, "curl ", "curl -sS ", 1))
	cmd.Env = append(os.Environ(), "MILLRACE_URL="+p.base)
	out, err := cmd.CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != strings.TrimSpace(answer) {
		t.Fatalf("%v: %s, want %s", err, out, answer)
	}
	var got struct{ Deliveries []any }
	if err := json.Unmarshal([]byte(p.must(200, "POST", "/v1/subscriptions/s/pull", "application/json", `{"max": 1, "wait": "200ms"}`)), &got); err != nil || len(got.Deliveries) != 0 {
		t.Errorf("%v: pulled %v", err, got)
	}
	if text := p.must(200, "GET", "/v1/subscriptions/s", "", ""); !strings.Contains(text, `"parked":1`) {
		t.Errorf("the subscription is %s", text)
	}
}
