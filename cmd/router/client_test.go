package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
)

// Here stand servers that answer as no good router does; how commands work with a real one is tested by
// the scripts.

// runAt runs a command line against a server and returns its exit code and what it printed.
func runAt(t *testing.T, url string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	env := func(name string) string {
		return map[string]string{"MILLRACE_URL": url, "MILLRACE_TOKEN": "s3cret"}[name]
	}
	code = run(t.Context(), "", args, strings.NewReader(""), &out, &errs, env)
	return code, out.String(), errs.String()
}

func serveHandler(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

func TestProblemIsReadable(t *testing.T) {
	url := serveHandler(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer s3cret" {
			t.Errorf("Authorization: %q", r.Header.Get("Authorization"))
		}
		w.Header().Set("Content-Type", "application/problem+json; charset=utf-8")
		w.Header().Set("Retry-After", "7")
		w.WriteHeader(503)
		fmt.Fprint(w, `{"title":"Busy","status":503,"detail":"too much\u001b[2J",
			"errors":[{"at":"events[3].id","detail":"is empty"},{"at":"","detail":"twice"}]}`)
	})
	code, _, stderr := runAt(t, url, "topics", "list")
	want := "router: 503 Busy: too much\\x1b[2J (try again in 7 s)\n  events[3].id: is empty\n  twice\n"
	if code != exitFailed || stderr != want {
		t.Errorf("exit %d\ngot  %q\nwant %q", code, stderr, want)
	}
}

func TestProblemSaysNothingTwice(t *testing.T) {
	url := serveHandler(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(400)
		fmt.Fprint(w, `{"title":"Bad Request","detail":"a: is bad\nb: is worse","errors":[{"at":"a","detail":"is bad"},{"at":"b","detail":"is worse"}]}`)
	})
	_, _, stderr := runAt(t, url, "topics", "show", "x")
	if want := "router: 400 Bad Request: a: is bad\n  b: is worse\n"; stderr != want {
		t.Errorf("got  %q\nwant %q", stderr, want)
	}
}

// Whatever else answers at that address does not confuse the program or the terminal.
func TestNoRouterThere(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"a page":  func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>\x1b[2J") },
		"a proxy": func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "upstream\x1b[2J", http.StatusBadGateway) },
		"a redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusFound)
		},
		"nothing": func(w http.ResponseWriter, _ *http.Request) {},
	} {
		t.Run(name, func(t *testing.T) {
			url := serveHandler(t, h)
			for _, args := range [][]string{{"topics", "list"}, {"topics", "show", "x"}, {"pull", "x"}, {"tail", "x"}, {"publish", "x", "y"}} {
				code, stdout, stderr := runAt(t, url, args...)
				if code != exitFailed || !strings.HasPrefix(stderr, "router: ") {
					t.Errorf("%v: exit %d, %q", args, code, stderr)
				}
				if strings.ContainsRune(stdout+stderr, 0x1b) {
					t.Errorf("%v: an escape reaches the terminal: %q", args, stdout+stderr)
				}
			}
		})
	}
}

// A redirect would carry the token to whoever is named, and turn a POST into a GET.
func TestRedirectsAreNotFollowed(t *testing.T) {
	elsewhere := serveHandler(t, func(http.ResponseWriter, *http.Request) { t.Error("the redirect was followed") })
	url := serveHandler(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, elsewhere, http.StatusFound) })
	code, _, stderr := runAt(t, url, "topics", "list")
	if code != exitFailed || !strings.Contains(stderr, "redirected to "+elsewhere) {
		t.Errorf("exit %d, %q", code, stderr)
	}
}

func TestStreamReader(t *testing.T) {
	in := ": hello\n\nid: 1\ndata: a\n\n" + // a comment, then an event
		"data:b\r\ndata: c\r\n\r\n" + // two lines of data, CRLF; the id stays
		"id: 2\rdata: d\r\r" + // CR alone
		"event: x\nretry: 50\nunknown: y\n\n" + // no data: no event
		"id: 3\ndata\n\n" + // a field without a value
		"id: 4\ndata: cut off\n"
	s := newStreamReader(iotestOneByte{strings.NewReader(in)})
	var got []string
	for {
		e, err := s.next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, e.id+"="+string(e.data))
	}
	if want := []string{"1=a", "1=b\nc", "2=d", "3="}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if s.retry.Milliseconds() != 50 {
		t.Errorf("retry is %s", s.retry)
	}
}

// iotestOneByte reads a byte at a time, so that every cut between reads is met.
type iotestOneByte struct{ r io.Reader }

func (o iotestOneByte) Read(b []byte) (int, error) { return o.r.Read(b[:1]) }

// A stream that breaks is resumed after the last event that was printed; nothing is printed twice or left out.
func TestTailResumes(t *testing.T) {
	var mu sync.Mutex
	var asked []string
	url := serveHandler(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked = append(asked, r.Header.Get("Last-Event-ID")+"|"+r.URL.Query().Get("since"))
		n := len(asked)
		mu.Unlock()
		w.Header().Set("Date", "Thu, 01 Jan 2026 00:00:00 GMT")
		if n == 4 {
			w.Header().Set("Retry-After", "1")
			http.Error(w, "draining", http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprint(w, "retry: 1\n\n")
		switch n {
		case 1: // broken before any event
		case 2:
			fmt.Fprint(w, "id: c1\ndata: {\"id\":\"1\",\"type\":\"t\"}\n\nid: c2\ndata: {\"id\":\"half")
		case 3:
			fmt.Fprint(w, "id: c2\ndata: {\"id\":\"2\",\"type\":\"t\"}\n\n")
		default:
			fmt.Fprint(w, "id: c3\ndata: {\"id\":\"3\",\"type\":\"t\"}\n\n")
		}
	})
	code, stdout, stderr := runAt(t, url, "tail", "orders", "--max", "3")
	if want := "-  t  1\n-  t  2\n-  t  3\n"; code != exitDone || stdout != want {
		t.Errorf("exit %d, printed %q (%s), want %q", code, stdout, stderr, want)
	}
	want := []string{"|", "|2026-01-01T00:00:00Z", "c1|", "c2|", "c2|"}
	for i, a := range asked {
		if i >= 2 {
			a, _, _ = strings.Cut(a, "|")
			a += "|"
		}
		if i >= len(want) || a != want[i] {
			t.Errorf("request %d asked for %q, want %q", i, a, want)
		}
	}
	if !strings.Contains(stderr, "trying again") {
		t.Errorf("nothing is said about the lost connection: %q", stderr)
	}
}

func TestTailStopsWhereWaitingIsPointless(t *testing.T) {
	for _, status := range []int{400, 401, 404, 410} {
		n := 0
		url := serveHandler(t, func(w http.ResponseWriter, r *http.Request) {
			if n++; n > 1 {
				w.WriteHeader(status)
				return
			}
			w.Header().Set("Content-Type", "text/event-stream")
			fmt.Fprint(w, "retry: 1\n\nid: 1\ndata: {}\n\n")
		})
		if code, _, stderr := runAt(t, url, "tail", "x"); code != exitFailed || !strings.Contains(stderr, fmt.Sprint(status)) {
			t.Errorf("%d: exit %d, %q", status, code, stderr)
		}
	}
}

// Interrupting a tail is how it ends: no failure.
func TestTailEndsWithItsContext(t *testing.T) {
	url := serveHandler(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprint(w, "id: 1\ndata: {}\n\n")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	out := writerFunc(func(b []byte) (int, error) { cancel(); return len(b), nil })
	if code := run(ctx, "", []string{"tail", "x", "--server", url}, strings.NewReader(""), out, io.Discard, func(string) string { return "" }); code != exitDone {
		t.Errorf("exit %d", code)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }
