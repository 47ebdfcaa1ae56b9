package httpapi

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// Functions of the fake: rollbacks are echoed, the log is one that tests feed.

func (f *fake) Rollback(ctx context.Context, name, to string) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.docs["functions"][name] == nil {
		return nil, fmt.Errorf("function %s: %w", name, event.ErrNotFound)
	}
	if to == "sha256:file" {
		return nil, event.Bad(event.ErrConflict, "name", "is defined at rules.yaml:7")
	}
	return fmt.Appendf(nil, `{"name":%q,"versions":[{"digest":%q,"since":"2026-01-31T12:00:00Z","state":"current"}]}`, name, to), nil
}

func (f *fake) Shadow(ctx context.Context, sub string) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.docs["subscriptions"][sub] == nil {
		return nil, fmt.Errorf("subscription %s: %w", sub, event.ErrNotFound)
	}
	return fmt.Appendf(nil, `{"subscription":%q,"shadows":[]}`, sub), nil
}

func (f *fake) FunctionLog(ctx context.Context, name string, limit int) (LogReader, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.docs["functions"][name] == nil {
		return nil, fmt.Errorf("function %s: %w", name, event.ErrNotFound)
	}
	l := &fakeLog{lines: make(chan string, 1000)}
	for i := range min(limit, 3) {
		l.lines <- fmt.Sprintf(`{"level":"info","message":"line %d"}`, i)
	}
	f.log.Lock()
	f.logs = append(f.logs, l)
	f.log.Unlock()
	return l, nil
}

type fakeLogs struct {
	log  sync.Mutex
	logs []*fakeLog
}

type fakeLog struct{ lines chan string }

func (l *fakeLog) Next(ctx context.Context) ([]byte, error) {
	select {
	case line, ok := <-l.lines:
		if !ok {
			return nil, event.ErrGone
		}
		return []byte(line), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *fakeLog) TryNext() ([]byte, bool) {
	select {
	case line, ok := <-l.lines:
		return []byte(line), ok
	default:
		return nil, false
	}
}

func TestRollbackAndShadow(t *testing.T) {
	_, base := serve(t, Options{Backend: newFake()})
	js := []string{"Content-Type", "application/json"}
	u := base + "/v1/functions/redact"
	do(t, "PUT", u, "\x00asm\x01\x00\x00\x00", "Content-Type", "application/wasm")
	for body, want := range map[string]int{"": 200, `{"to":"sha256:01234567"}`: 200, `{"to":"sha256:file"}`: 409, `{"version":"x"}`: 400, `{`: 400} {
		resp, got := do(t, "POST", u+"/rollback", body, js...)
		if resp.StatusCode != want || want == 200 && body != "" && !strings.Contains(got, "sha256:01234567") || want == 409 && !strings.Contains(got, "rules.yaml:7") {
			t.Errorf("%s: %d %s", body, resp.StatusCode, got)
		}
	}
	if resp, _ := do(t, "POST", base+"/v1/functions/none/rollback", ""); resp.StatusCode != 404 {
		t.Errorf("%d", resp.StatusCode)
	}
	do(t, "POST", base+"/v1/subscriptions", `{"name":"w"}`, js...)
	if resp, body := do(t, "GET", base+"/v1/subscriptions/w/shadow", ""); resp.StatusCode != 200 || !strings.Contains(body, `"shadows":[]`) {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	if resp, _ := do(t, "GET", base+"/v1/subscriptions/none/shadow", ""); resp.StatusCode != 404 {
		t.Errorf("%d", resp.StatusCode)
	}
}

func TestFunctionLogs(t *testing.T) {
	_, base := serve(t, Options{Backend: newFake()})
	u := base + "/v1/functions/redact"
	do(t, "PUT", u, "\x00asm\x01\x00\x00\x00", "Content-Type", "application/wasm")
	for query, want := range map[string]int{"": 3, "?limit=2": 2, "?limit=0": 0, "?follow=false&limit=1000": 3} {
		resp, body := do(t, "GET", u+"/logs"+query, "")
		if n := strings.Count(body, "\n"); resp.StatusCode != 200 || n != want || resp.Header.Get("Content-Type") != "application/x-ndjson" {
			t.Errorf("%s: %d, %d lines: %s", query, resp.StatusCode, n, body)
		}
	}
	for _, query := range []string{"?limit=-1", "?limit=1001", "?limit=x", "?follow=1", "?since=1h"} {
		if resp, body := do(t, "GET", u+"/logs"+query, ""); resp.StatusCode != 400 {
			t.Errorf("%s: %d %s", query, resp.StatusCode, body)
		}
	}
	if resp, _ := do(t, "GET", base+"/v1/functions/none/logs?follow=true", ""); resp.StatusCode != 404 {
		t.Errorf("%d", resp.StatusCode)
	}
}

// A follower gets lines as they come, an empty one while there are none, and the end when the function is
// removed or the server drains.
func TestFollowFunctionLogs(t *testing.T) {
	for _, end := range []string{"gone", "drain"} {
		f := newFake()
		s, base := serve(t, Options{Backend: f, Heartbeat: 20 * time.Millisecond})
		u := base + "/v1/functions/redact"
		do(t, "PUT", u, "\x00asm\x01\x00\x00\x00", "Content-Type", "application/wasm")
		resp, err := http.Get(u + "/logs?follow=true&limit=1")
		if err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(resp.Body)
		next := func() string {
			t.Helper()
			if !lines.Scan() {
				t.Fatalf("%s: the stream ended: %v", end, lines.Err())
			}
			return lines.Text()
		}
		if got := next(); got != `{"level":"info","message":"line 0"}` || resp.StatusCode != 200 {
			t.Errorf("%d %s", resp.StatusCode, got)
		}
		if got := next(); got != "" {
			t.Errorf("%q, want an empty line", got)
		}
		f.log.Lock()
		l := f.logs[0]
		f.log.Unlock()
		l.lines <- "more"
		got := next()
		for got == "" {
			got = next()
		}
		if got != "more" {
			t.Errorf("%q", got)
		}
		if end == "gone" {
			close(l.lines)
		} else if err := s.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		for lines.Scan() {
			if lines.Text() != "" {
				t.Errorf("%q", lines.Text())
			}
		}
		if err := lines.Err(); err != nil {
			t.Error(err)
		}
		resp.Body.Close()
		if n := s.Streams(); end == "drain" && n != 0 {
			t.Errorf("%d streams are open", n)
		}
	}
}
