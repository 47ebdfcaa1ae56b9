package httpapi

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/access"
)

// tokenGuard is a guard that knows one token.
func tokenGuard(tb testing.TB, token string) *access.Guard {
	tb.Helper()
	g, err := access.New(access.Options{Token: token})
	if err != nil {
		tb.Fatal(err)
	}
	return g
}

// serve starts a server on loopback and returns its URL. It is shut down with the test.
func serve(t *testing.T, o Options) (*Server, string) {
	t.Helper()
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(context.Background(), ln) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil && !strings.Contains(err.Error(), "shut down") { // the test was over before it began
			t.Error(err)
		}
	})
	return s, "http://" + ln.Addr().String()
}

// do sends a request; headers are pairs.
func do(t *testing.T, method, url, body string, headers ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header[headers[i]] = append(req.Header[headers[i]], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	conforms(t, req, body, resp, string(b))
	return resp, string(b)
}
