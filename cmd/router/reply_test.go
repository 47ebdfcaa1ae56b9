package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// What docs/request-response.md shows happens as it stands there, with curl.
func TestRequestResponseExample(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "quote.c"), []byte(codeBlock(t, "request-response.md", "c", 0)), 0o600); err != nil {
		t.Fatal(err)
	}
	args := strings.Fields(strings.Replace(codeBlock(t, "request-response.md", "sh", 0), "-I sdk/c", "-I ../../sdk/c", 1))
	args = append(args[1:len(args)-2], filepath.Join(dir, "quote.wasm"), filepath.Join(dir, "quote.c"))
	if text, err := exec.Command("clang-19", args...).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	module, err := os.ReadFile(filepath.Join(dir, "quote.wasm"))
	if err != nil {
		t.Fatal(err)
	}
	stock := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if body, err := io.ReadAll(r.Body); err != nil || string(body) != `{"item": "tea"}` {
			t.Errorf("%v: %s", err, body)
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"left":3}`)
	}))
	defer stock.Close()
	rules := strings.Replace(codeBlock(t, "request-response.md", "yaml", 0), "http://127.0.0.1:9000", stock.URL, 1)
	p := startProcessWith(t, rules, map[string]string{"quote.wasm": string(module)})

	for block := 1; block <= 3; block++ {
		var script, want []string
		for line := range strings.Lines(codeBlock(t, "request-response.md", "sh", block)) {
			line = strings.TrimSuffix(line, "\n")
			if text, ok := strings.CutPrefix(line, "# "); ok {
				want = append(want, strings.ReplaceAll(regexp.QuoteMeta(text), "…", ".+"))
				continue
			}
			if strings.HasPrefix(line, "curl ") {
				line = "curl -sS " + strings.TrimPrefix(line, "curl ") + "; echo"
			}
			script = append(script, line)
		}
		cmd := exec.Command("sh", "-ec", strings.Join(script, "\n"))
		cmd.Env = append(os.Environ(), "MILLRACE_URL="+p.base)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		got := slices.DeleteFunc(strings.Split(string(out), "\n"), func(s string) bool { return s == "" })
		if len(got) != len(want) {
			t.Fatalf("printed %d lines, want %d:\n%s", len(got), len(want), out)
		}
		for i := range got {
			if !regexp.MustCompile("^" + want[i] + "$").MatchString(got[i]) {
				t.Errorf("block %d line %d: %s, want %s", block, i, got[i], want[i])
			}
		}
	}
	metrics := p.must(200, "GET", "/metrics", "", "")
	for _, line := range []string{`millrace_replies_total{from="function"} 2`, `millrace_replies_total{from="push"} 1`, `millrace_replies_total{from="pull"} 1`,
		`millrace_replies_discarded_total{why="second"} 0`, "millrace_reply_waiters 0", "millrace_reply_seconds_count 4"} {
		if !strings.Contains(metrics, line) {
			t.Errorf("%s is not in /metrics", line)
		}
	}
	if text := p.must(200, "GET", "/v1/functions/quote/logs", "", ""); !strings.Contains(text, `"reply":1`) {
		t.Errorf("the function's log does not tell of its replies: %s", text)
	}

	for _, c := range []struct {
		args           []string
		code           int
		stdout, stderr string
	}{
		{[]string{"--type", "order.created", `{"total": 7}`}, 0, `^{"shipping":9}$`, "^$"},
		{[]string{"--type", "order.created", `[]`}, exitFailed, "^an order has a total\n$", "^status 422\n$"},
		{[]string{"--type", "approval.asked", `1`}, exitFailed, `^0-\d+  `, `no reply within 1s; a later one will be at /v1/topics/orders/events/0-\d+/reply\n$`},
		{[]string{"--type", "nobody", `1`}, exitFailed, `^0-\d+  `, "no reply"},
		{[]string{"--ndjson", "1\n2"}, exitUsage, "^$", "--wait goes with one event"},
		{[]string{"--wait", "31s", "1"}, exitUsage, "^$", "want 1s to 30s"},
	} {
		code, stdout, stderr := runAt(t, p.base, append([]string{"publish", "orders", "--wait", "1s"}, c.args...)...)
		if code != c.code || !regexp.MustCompile(c.stdout).MatchString(stdout) || !regexp.MustCompile(c.stderr).MatchString(stderr) {
			t.Errorf("%v: exit %d\n%s\n%s", c.args, code, stdout, stderr)
		}
	}
	if code, _, stderr := runAt(t, p.base, "publish", "nowhere", "--wait", "1s", "1"); code != exitFailed || !strings.Contains(stderr, "404") {
		t.Errorf("an unknown topic: exit %d, %s", code, stderr)
	}
	if code, stdout, stderr := runAt(t, p.base, "invoke", "quote", `{"total": 1000}`); code != 0 || strings.TrimSpace(stdout) != `{"shipping":0}` {
		t.Errorf("invoke: exit %d, %q, %q", code, stdout, stderr)
	}
}

// How long a reply takes: two commits and what lies between them, no flush.
func TestReplyComesBeforeTheNextFlush(t *testing.T) {
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "x") }))
	defer hook.Close()
	p := startProcessWith(t, "version: 1\nsubscriptions:\n  s:\n    topic: orders\n    deliver:\n      webhook: {url: "+hook.URL+", reply: true}\n", nil)
	var took []time.Duration
	for range 50 {
		req, err := http.NewRequest("POST", p.base+"/v1/topics/orders/events", strings.NewReader("1"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Prefer", "wait=10")
		req.Header.Set("Content-Type", "application/json")
		began := time.Now()
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || string(body) != "x" || res.StatusCode != 200 {
			t.Fatalf("%v: %d %s", err, res.StatusCode, body)
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	t.Logf("p50 %s, p90 %s", took[25], took[45])
	if fastest := took[0]; fastest > 90*time.Millisecond { // were it the flush, the fastest of 50 could not beat it often
		t.Errorf("the fastest of %d replies took %s", len(took), fastest)
	}
}
