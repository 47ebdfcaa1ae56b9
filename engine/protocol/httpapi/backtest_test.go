package httpapi

import (
	"context"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// fakeBacktests notes what was asked and answers with a report of one subscription.
type fakeBacktests struct {
	asked  BacktestQuery
	bundle string
	held   bool // its place
	hang   chan struct{}
}

func (f *fakeBacktests) OpenBacktest(_ context.Context, bundle []byte, q BacktestQuery) (BacktestRun, error) {
	switch {
	case f.held:
		return nil, fmt.Errorf("one is at work: %w", event.ErrUnavailable)
	case strings.HasPrefix(string(bundle), "bad"):
		return nil, event.Invalid("rules.yaml:1:1", "a fake's fault")
	}
	f.asked, f.bundle, f.held = q, string(bundle), true
	return f, nil
}

func (f *fakeBacktests) Run(ctx context.Context, tell func([]byte)) ([]byte, error) {
	for i := range 3 {
		tell(fmt.Appendf(nil, `{"events":%d,"inRange":3,"changed":0,"failed":0}`, i))
	}
	if strings.HasPrefix(f.bundle, "late") {
		return nil, event.Bad(event.ErrNotFound, "topic", "a late fault")
	}
	if f.hang != nil {
		<-ctx.Done()
		close(f.hang)
		return nil, ctx.Err()
	}
	return []byte(`{"events":3,"inRange":3,"bytes":0,"seconds":0.1,"complete":true,"before":0,"after":0,"gained":0,"lost":0,"different":0,"changed":0,"failed":0,"topics":[],"subscriptions":[]}`), nil
}

func (f *fakeBacktests) Close() { f.held = false }

const anyRules = "version: 1\n"

func TestBacktest(t *testing.T) {
	f := newFake("orders")
	_, base := serve(t, Options{Backend: f})
	u := base + "/v1/rules/backtest"
	resp, body := do(t, "POST", u+"?since=2026-01-02T00:00:00Z&until=2026-01-03T00:00:00Z&limit=9&topics=a,b&subscriptions=s&functions=true&budget=5s&before=r7&examples=7", anyRules, "Content-Type", "application/yaml")
	want := BacktestQuery{Since: time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC), Until: time.Date(2026, 1, 3, 0, 0, 0, 0, time.UTC), Last: 9, Topics: []string{"a", "b"},
		Subscriptions: []string{"s"}, Functions: "true", Budget: 5 * time.Second, Before: "r7", Examples: 7}
	lines := strings.Split(strings.TrimSpace(body), "\n")
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "application/x-ndjson" || len(lines) != 4 || !strings.HasPrefix(lines[0], `{"progress":{"events":0`) || !strings.HasPrefix(lines[3], `{"report":{"events":3`) {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	if !reflect.DeepEqual(f.asked, want) || f.bundle != anyRules {
		t.Errorf("asked %+v of %q", f.asked, f.bundle)
	}
	resp, body = do(t, "POST", u, anyRules, "Content-Type", "application/yaml", "Accept", "application/json")
	if resp.StatusCode != 200 || !strings.HasPrefix(body, `{"events":3`) || f.held || !reflect.DeepEqual(f.asked, BacktestQuery{Budget: time.Minute}) {
		t.Errorf("%d %s; held %t, asked %+v", resp.StatusCode, body, f.held, f.asked)
	}
	for query, words := range map[string]string{"?since=yesterday": "RFC 3339", "?limit=0": "at least 1", "?budget=1h": "up to 10m", "?functions=some": "true (run all)", "?examples=1001": "1 to 1000", "?what=1": "not a parameter"} {
		if resp, body := do(t, "POST", u+query, anyRules); resp.StatusCode != 400 || !strings.Contains(body, words) {
			t.Errorf("%s: %d %s", query, resp.StatusCode, body)
		}
	}
	if resp, body := do(t, "POST", u, "bad"); resp.StatusCode != 400 || !strings.Contains(body, "rules.yaml:1:1") {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	if _, body := do(t, "POST", u, "late"); !strings.Contains(body, `{"problem":{`) || !strings.Contains(body, "a late fault") || strings.Contains(body, "report") {
		t.Errorf("%s", body)
	}
	if resp, body := do(t, "POST", u, "late", "Accept", "application/json"); resp.StatusCode != 404 || f.held {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	f.held = true
	if resp, body := do(t, "POST", u, anyRules); resp.StatusCode != 503 {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}

// A client that goes ends the work.
func TestBacktestEndsWithItsClient(t *testing.T) {
	f := newFake("orders")
	f.hang = make(chan struct{})
	_, base := serve(t, Options{Backend: f})
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, "POST", base+"/v1/rules/backtest", strings.NewReader(anyRules))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	_ = resp.Body.Close()
	select {
	case <-f.hang:
	case <-time.After(time.Minute):
		t.Error("it goes on without its client")
	}
}
