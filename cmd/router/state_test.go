package main

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// codeBlock is the n-th block of code of a page in a language.
func codeBlock(t *testing.T, page, language string, n int) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", page))
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(string(text), "\n```"+language+"\n")
	if len(parts) <= n+1 {
		t.Fatalf("docs/%s has no block %d of %s", page, n, language)
	}
	code, _, _ := strings.Cut(parts[n+1], "\n```")
	return code + "\n"
}

// The example of docs/state.md does what the page says, over a webhook that fails every other time.
func TestStateExample(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "nth.c"), []byte(codeBlock(t, "state.md", "c", 0)), 0o600); err != nil {
		t.Fatal(err)
	}
	args := strings.Fields(strings.Replace(codeBlock(t, "state.md", "sh", 0), "-I sdk/c", "-I ../../sdk/c", 1))
	args = append(args[1:len(args)-2], filepath.Join(dir, "nth.wasm"), filepath.Join(dir, "nth.c"))
	if text, err := exec.Command("clang-19", args...).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	module, err := os.ReadFile(filepath.Join(dir, "nth.wasm"))
	if err != nil {
		t.Fatal(err)
	}

	var mu sync.Mutex
	var got []string
	calls := map[string]int{}
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		id := r.Header.Get("webhook-id")
		if calls[id]++; err != nil || calls[id] == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		var e struct{ Data json.RawMessage }
		if err := json.Unmarshal(body, &e); err != nil {
			t.Errorf("%v: %s", err, body)
		}
		got = append(got, string(e.Data))
	}))
	defer hook.Close()
	rules := strings.Replace(codeBlock(t, "state.md", "yaml", 0), "http://127.0.0.1:9000/orders", hook.URL, 1) +
		"    retry: {schedule: [1ms]}\n"
	p := startProcessWith(t, rules, map[string]string{"nth.wasm": string(module)})
	publish := func(body string) { p.must(202, "POST", "/v1/topics/orders/events", "application/json", body) }
	for _, order := range []string{`{"customer":"ada"}`, `{"customer":"bob"}`, `{"customer":"ada"}`} {
		publish(order)
	}
	want := slices.Sorted(strings.Lines(codeBlock(t, "state.md", "json", 0)))
	until(t, "three orders arrive", func() bool { mu.Lock(); defer mu.Unlock(); return len(got) == 3 })
	mu.Lock()
	slices.Sort(got)
	if strings.Join(got, "\n")+"\n" != strings.Join(want, "") {
		t.Errorf("arrived\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, ""))
	}
	mu.Unlock()

	var shown struct {
		Deliver map[string]any
		Topic   string
		State   struct {
			State                                  string
			StateKeys, StateBytes, Matched, Failed int
			Delivered                              int
		}
	}
	until(t, "they are settled", func() bool {
		if err := json.Unmarshal([]byte(p.must(200, "GET", "/v1/subscriptions/numbered", "", "")), &shown); err != nil {
			t.Fatal(err)
		}
		return shown.State.Delivered == 3
	})
	s := shown.State
	if shown.Deliver["webhook"] == nil || shown.Topic != "orders" || s.State != "running" || s.StateKeys != 2 || s.StateBytes != len("ada2bob1") ||
		s.Matched != 3 || s.Failed != 3 {
		t.Errorf("shown as %+v", shown)
	}
	if text := p.must(200, "GET", "/v1/functions/nth", "", ""); !strings.Contains(text, `"allow":{"kv":true}`) {
		t.Errorf("the function is shown without what it may do: %s", text)
	}
	metrics := p.must(200, "GET", "/metrics", "", "")
	for _, line := range []string{`millrace_subscription_state_keys{subscription="numbered"} 2`, `millrace_subscription_state_bytes{subscription="numbered"} 8`,
		`millrace_function_state_total{function="nth",op="read"} 3`, `millrace_function_state_total{function="nth",op="write"} 3`,
		`millrace_subscription_delivered_total{subscription="numbered"} 3`} {
		if !strings.Contains(metrics, line) {
			t.Errorf("%s is not in /metrics", line)
		}
	}
	if text := p.must(200, "GET", "/v1/topics/numbered.out/events", "", ""); strings.Count(text, `"nth"`) != 3 {
		t.Errorf("topic numbered.out: %s", text)
	}
	// Over the API a subscription of its own: counted for itself, and gone with its topic.
	p.must(201, "POST", "/v1/subscriptions", "application/json",
		`{"name":"other","topic":"orders","functions":["nth"],"start":"earliest","deliver":{"pull":{}}}`)
	until(t, "its outputs are stored", func() bool {
		_, text := p.call("GET", "/v1/topics/other.out/events", "", "")
		return strings.Count(text, `"nth"`) == 3
	})
	p.must(204, "DELETE", "/v1/subscriptions/other", "", "")
	p.must(404, "GET", "/v1/topics/other.out", "", "")
	p.must(200, "GET", "/v1/topics/numbered.out", "", "")
}
