package native_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
)

func TestSecrets(t *testing.T) {
	f := hostile(t, plugins.Options{}, event.Function{Secrets: map[string]string{"token": "s3cret"}, Config: map[string]string{"plain": "x"}})
	if got := show(call(t, f, "Ztoken", "Zplain")); got != "0:EMIT(s3cret) 1:EMIT(none)" {
		t.Error(got)
	}
}

// What a function says of its secrets while it starts is hidden as what it says later, also where it does not start.
func TestSecretsSaidWhileStarting(t *testing.T) {
	module := guestOf(t, "tattle.wat", func(out string) *exec.Cmd { return exec.Command("wat2wasm", "testdata/tattle.wat", "-o", out) })
	for name, config := range map[string]map[string]string{"starts": nil, "traps": {"trap": "yes"}} {
		var said []string
		h := newHost(t, plugins.Options{Log: func(_ string, _ int, m string) { said = append(said, m) }})
		digest, err := h.Put(t.Context(), module)
		if err != nil {
			t.Fatal(err)
		}
		_, err = h.Open(t.Context(), event.Function{Name: "tattle", Digest: digest, Secrets: map[string]string{"token": "s3cret"}, Config: config})
		if (err != nil) != (config != nil) {
			t.Errorf("%s: %v", name, err)
		}
		if all := strings.Join(said, "\n") + fmt.Sprint(err); strings.Contains(all, "s3cret") || !strings.Contains(all, "***") {
			t.Errorf("%s: it said %s", name, all)
		}
	}
}

func TestCounters(t *testing.T) {
	var said []string
	f := hostile(t, plugins.Options{Log: func(_ string, _ int, m string) { said = append(said, m) }}, event.Function{})
	call(t, f, "#", "#")
	got := f.Stats().Counters
	if len(got) != 64 || got["n0"] != 4 || got["n1"] != 4 || got["n63"] != 4 {
		t.Errorf("%v", got)
	}
	if all := strings.Join(said, "\n"); !strings.Contains(all, `counter "n64" was not counted`) || !strings.Contains(all, `"no good"`) || !strings.Contains(all, "(delta -5)") {
		t.Errorf("%s", all)
	}
}

// The guest asks for 4 bytes first, then for the answer that was kept: one request.
func TestHTTP(t *testing.T) {
	var asked []string
	f := hostile(t, plugins.Options{Fetch: func(ctx context.Context, r *plugins.Request) (*plugins.Response, error) {
		asked = append(asked, fmt.Sprintf("%s %s %v %s", r.Method, r.URL, r.Header, r.Body))
		switch {
		case strings.HasSuffix(r.URL, "/slow"):
			<-ctx.Done()
			return nil, ctx.Err()
		case strings.HasSuffix(r.URL, "/private"):
			return nil, fmt.Errorf("10.0.0.1: %w", event.ErrDenied)
		case strings.HasSuffix(r.URL, "/big"):
			return nil, plugins.ErrTooBig
		case strings.HasSuffix(r.URL, "/down"):
			return nil, errors.New("connection refused")
		}
		return &plugins.Response{Status: 200, Header: http.Header{"X-B": {"1", "2"}, "Content-Type": {"text/plain"}}, Body: []byte("hello")}, nil
	}}, event.Function{Allow: event.Allow{HTTP: []string{"api.example.com", "*.example.org:8443"}}, Limits: event.FunctionLimits{Wall: time.Minute}})

	for _, c := range []struct {
		url  string
		code uint32 // the low half of the result
		asks bool
	}{
		{"https://api.example.com/x", 12 + 42 + 5, true},
		{"https://A.example.org:8443/x", 12 + 42 + 5, true},
		{"https://example.org:8443/x", ^uint32(1), false},
		{"https://a.example.org/x", ^uint32(1), false},
		{"https://api.example.com:8443/x", ^uint32(1), false},
		{"https://api.example.com@evil.example/x", ^uint32(5), false},
		{"https://api.example.com.evil.example/x", ^uint32(1), false},
		{"ftp://api.example.com/x", ^uint32(5), false},
		{"api.example.com", ^uint32(5), false},
		{"https://api.example.com/private", ^uint32(1), true},
		{"https://api.example.com/big", ^uint32(2), true},
		{"https://api.example.com/slow", ^uint32(3), true}, // the guest gives it 200 ms
		{"https://api.example.com/down", ^uint32(4), true},
	} {
		asked = nil
		out := call(t, f, "H"+c.url)
		if len(out.Results) != 1 || out.Results[0].Arg != c.code || (len(asked) == 1) != c.asks {
			t.Errorf("%s: %v %d, asked %q", c.url, show(out), out.Results[0].Arg, asked)
			continue
		}
		if c.code < 1000 {
			if got := string(out.Results[0].Data); got[2:4] != "\xc8\x00" || got[12:] != "content-type: text/plain\r\nx-b: 1\r\nx-b: 2\r\nhello" {
				t.Errorf("%q", got)
			}
			if want := "GET " + c.url + " map[A:[b]] hi"; asked[0] != want {
				t.Errorf("asked %q, want %q", asked[0], want)
			}
		}
	}
}

// The error of a connection repeats the URL, in whose query there may be secrets; the log does not.
func TestHTTPErrorsKeepTheQueryToThemselves(t *testing.T) {
	var said []string
	f := hostile(t, plugins.Options{
		Log: func(_ string, _ int, m string) { said = append(said, m) },
		Fetch: func(_ context.Context, r *plugins.Request) (*plugins.Response, error) {
			return nil, &url.Error{Op: "Get", URL: r.URL, Err: errors.New("connection refused")}
		},
	}, event.Function{Allow: event.Allow{HTTP: []string{"h.example"}}})
	call(t, f, "Hhttp://h.example/path?token=s3cret")
	if all := strings.Join(said, "\n"); !strings.Contains(all, "http GET http://h.example/path: connection refused") || strings.Contains(all, "s3cret") {
		t.Errorf("%q", all)
	}
}

// A request is parsed only if it is of a sensible size.
func TestHTTPRequestsAreBounded(t *testing.T) {
	f := open(t, newHost(t, plugins.Options{}), cGuest(t, "labour.c"), event.Function{Limits: event.FunctionLimits{CPU: 10 * time.Second}})
	if got := call(t, f, "h"); show(got) != "0!output" {
		t.Errorf("%s %v", show(got), got.Failures)
	}
}

// What a request leaves behind, as dialers do, may look at its context when the instance is at the next call.
func TestHTTPContextOutlivesTheCall(t *testing.T) {
	seen := make(chan context.Context, 1)
	var left sync.WaitGroup
	f := hostile(t, plugins.Options{Instances: 1, Fetch: func(ctx context.Context, _ *plugins.Request) (*plugins.Response, error) {
		left.Go(func() {
			for range 1000 {
				_, _ = ctx.Deadline()
				_ = ctx.Value("key")
			}
		})
		seen <- ctx
		return &plugins.Response{Status: 200}, nil
	}}, event.Function{Allow: event.Allow{HTTP: []string{"h"}}})
	type key struct{}
	for i := range 20 {
		var out plugins.Outcome
		if err := f.Call(context.WithValue(context.Background(), key{}, i), &plugins.Call{Events: []event.Record{record(1, "Hhttp://h/")}}, &out); err != nil {
			t.Fatal(err)
		}
		if ctx := <-seen; ctx.Value(key{}) != i || ctx.Err() == nil {
			t.Errorf("call %d: the context of its request is of %v and ended with %v", i, ctx.Value(key{}), ctx.Err())
		}
	}
	left.Wait()
}

// A start function runs before there is a memory that host functions could use.
func TestStartFunctionHasNoMemory(t *testing.T) {
	module := guestOf(t, "start.wat", func(out string) *exec.Cmd { return exec.Command("wat2wasm", "testdata/start.wat", "-o", out) })
	h := newHost(t, plugins.Options{})
	digest, err := h.Put(context.Background(), module)
	if err != nil {
		t.Fatal(err)
	}
	_, err = h.Open(context.Background(), event.Function{Name: "f", Digest: digest})
	if !errors.Is(err, event.ErrInvalid) || !strings.Contains(err.Error(), "call it from _initialize or later") {
		t.Error(err)
	}
}

// What a function waits for counts for its wall time, and ends there.
func TestHTTPEndsWithTheCall(t *testing.T) {
	f := hostile(t, plugins.Options{Fetch: func(ctx context.Context, _ *plugins.Request) (*plugins.Response, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}}, event.Function{Allow: event.Allow{HTTP: []string{"h"}}, Limits: event.FunctionLimits{Wall: 20 * time.Millisecond}})
	out := call(t, f, "p", "Hhttp://h/", "p")
	if got := show(out); got != "0:PASS 1!deadline 2:PASS" || !strings.Contains(out.Failures[0].Err.Error(), "limits.wall") {
		t.Errorf("%s %v", got, out.Failures)
	}
}
