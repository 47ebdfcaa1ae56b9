package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Every test that docs/semantics.md names as the proof of a promise is there, and every row that promises
// something names one.
func TestSemanticsNameTheirProofs(t *testing.T) {
	page, named := proofsOf(t, "semantics.md")
	if len(named) < 40 {
		t.Errorf("docs/semantics.md names %d tests", len(named))
	}
	for line := range strings.Lines(page) {
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
