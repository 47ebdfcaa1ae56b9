package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// The page on dead letters does what it says, from its first command to its last.
func TestDeadLettersPage(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "deadletters.md"))
	if err != nil {
		t.Fatal(err)
	}
	var script strings.Builder
	waiting := "" // the command whose output the next text is, sooner or later
	commands := 0
	for _, x := range blocksOf(string(page)) {
		switch x.kind {
		case "sh":
			for line := range strings.SplitSeq(tutorialCommands(x.text), "\n") {
				if rest, ok := strings.CutPrefix(line, "router receive"); ok {
					line = `start HOOK 'receiving at (http://\S+)' router receive --listen 127.0.0.1:0` + rest
				}
				script.WriteString(line + "\n")
				commands++
			}
		case "sh eventually":
			waiting = strings.TrimSpace(tutorialCommands(x.text))
		case "text":
			var all []string
			for line := range strings.SplitSeq(x.text, "\n") {
				all = append(all, pattern(line))
			}
			if waiting != "" {
				fmt.Fprintf(&script, "eventually '%s' %s\n", strings.Join(all, `\n`), waiting)
				waiting = ""
				continue
			}
			for _, p := range all {
				fmt.Fprintf(&script, "stdout '%s'\n", p)
			}
		default:
			t.Errorf("a block of kind %q that this test does not run:\n%s", x.kind, x.text)
		}
	}
	if commands < 8 {
		t.Errorf("the page has %d commands", commands)
	}
	script.WriteString("router deadletters list shop\nstderr 'shop has no dead letters'\nfinish HOOK\nfinish MILLRACE_URL\n")
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "page.txtar"), []byte(script.String()), 0o666); err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, scriptParams(dir))
}

// A redrive that takes several calls leaves alone what was given up since the first began, adds up, and fails if
// something is in the way.
func TestRedriveCallsUntilItIsDone(t *testing.T) {
	var asked []map[string]any
	answers := []string{
		`{"redriven":300,"left":120,"stopped":"time","until":"2026-01-02T03:04:05Z"}`,
		`{"redriven":100,"left":20,"stopped":"time","until":"2026-01-02T03:04:05Z"}`,
		`{"redriven":10,"left":10,"skipped":2,"why":"it \u001b[2J","stopped":"parked.bytes: no room","until":"2026-01-02T03:04:05Z"}`,
	}
	url := serveHandler(t, func(w http.ResponseWriter, r *http.Request) {
		var in map[string]any
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil || r.Method != "POST" || r.URL.Path != "/v1/subscriptions/s/redrive" {
			t.Errorf("%s %s %v", r.Method, r.URL, err)
		}
		asked = append(asked, in)
		fmt.Fprint(w, answers[len(asked)-1])
	})
	code, stdout, stderr := runAt(t, url, "deadletters", "redrive", "s", "--limit", "1000", "--rate", "150/m")
	if code != exitFailed || stdout != "redriven 410 dead letters of s\n" || stderr != "2 dead letters left where they are: it \\x1b[2J\nrouter: 10 dead letters left: parked.bytes: no room\n" {
		t.Errorf("exit %d, %q, %q", code, stdout, stderr)
	}
	want := `[{"limit":1000,"rate":2.5},{"before":"2026-01-02T03:04:05Z","limit":700,"rate":2.5},{"before":"2026-01-02T03:04:05Z","limit":600,"rate":2.5}]`
	if got, _ := json.Marshal(asked); string(got) != want {
		t.Errorf("asked %s\nwant  %s", got, want)
	}
}

func TestPurgeTakesNoAnswerForNo(t *testing.T) {
	for answer, want := range map[string]bool{"y\n": true, " YES \n": true, "": false, "\n": false, "n\n": false, "yesterday\n": false} {
		var errs bytes.Buffer
		p := &program{stdin: strings.NewReader(answer), stderr: &errs}
		if got := p.agreed("drop 3 dead letters of s for good?"); got != want || errs.String() != "drop 3 dead letters of s for good? [y/N] " {
			t.Errorf("%q: %v after %q", answer, got, errs.String())
		}
	}
}

// What is given up shows in metrics and in the subscription's state, and is gone from there when it is finished.
func TestDeadLettersAreShown(t *testing.T) {
	p := startProcess(t, `
subscriptions:
  hook:
    topic: orders
    retry: {attempts: 1}
    deliver: {webhook: {url: "http://127.0.0.1:1/"}}
`)
	p.must(202, "POST", "/v1/topics/orders/events", "application/json", "{}")
	shows := func(dead, redriven, purged int) {
		t.Helper()
		until(t, "it is counted", func() bool {
			text := p.must(200, "GET", "/metrics", "", "")
			doc := p.must(200, "GET", "/v1/subscriptions/hook", "", "")
			for _, line := range []string{fmt.Sprintf(`millrace_subscription_deadletters{subscription="hook"} %d`, dead),
				fmt.Sprintf(`millrace_subscription_redriven_total{subscription="hook"} %d`, redriven), fmt.Sprintf(`millrace_subscription_purged_total{subscription="hook"} %d`, purged)} {
				if !strings.Contains(text, line+"\n") {
					return false
				}
			}
			return strings.Contains(doc, fmt.Sprintf(`"purged":%d,"deadLetters":%d`, purged, dead)) && strings.Contains(doc, fmt.Sprintf(`"redriven":%d,`, redriven))
		})
	}
	shows(1, 0, 0)
	p.must(200, "POST", "/v1/subscriptions/hook/redrive", "application/json", "{}")
	shows(1, 1, 0)
	p.must(200, "POST", "/v1/subscriptions/hook/purge", "application/json", `{"all":true}`)
	shows(0, 1, 1)
}
