package httpapi

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/valyala/fasthttp"
)

// TestMountsAreBehindTheChecks asks for a mounted call as nobody should; what is mounted is not reached. Then it is taken
// over, with what was sent ahead, and ends with the drain.
func TestMountsAreBehindTheChecks(t *testing.T) {
	reached := 0
	taken := make(chan []byte, 1)
	mount := Mount{Method: "GET", Path: "/v1/mounted", Query: []string{"q"}, Stream: true, In: Known,
		Serve: func(ctx *fasthttp.RequestCtx, take func(func(context.Context, net.Conn, []byte)) error) error {
			reached++
			if string(ctx.QueryArgs().Peek("q")) == "bad" {
				return event.Invalid("?q", "is bad")
			}
			return take(func(draining context.Context, nc net.Conn, ahead []byte) {
				taken <- ahead
				fmt.Fprint(nc, "taken\n")
				<-draining.Done()
				fmt.Fprint(nc, "drained\n")
			})
		}}
	s, base := serve(t, Options{Backend: newFake(), Guard: tokenGuard(t, "secret"), Mounts: []Mount{mount}, DrainGrace: 50 * time.Millisecond})
	addr := strings.TrimPrefix(base, "http://")
	ask := func(head string) (net.Conn, *bufio.Reader) {
		nc, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { nc.Close() })
		_ = nc.SetDeadline(time.Now().Add(20 * time.Second))
		fmt.Fprint(nc, head)
		return nc, bufio.NewReader(nc)
	}
	const token = "Authorization: Bearer secret\r\n"
	for _, tt := range []struct {
		head   string
		status int
	}{
		{"GET /v1/mounted HTTP/1.1\r\nHost: localhost\r\n\r\n", 401},
		{"GET /v1/mounted?access_token=guess HTTP/1.1\r\nHost: localhost\r\n\r\n", 401},
		{"GET /v1/mounted HTTP/1.1\r\nHost: localhost\r\nOrigin: https://evil.example\r\n" + token + "\r\n", 403},
		{"GET /v1/mounted HTTP/1.1\r\nHost: evil.example\r\n" + token + "\r\n", 403},
		{"GET /v1/mounted?other=1 HTTP/1.1\r\nHost: localhost\r\n" + token + "\r\n", 400},
		{"POST /v1/mounted HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n" + token + "\r\n", 405},
	} {
		_, r := ask(tt.head)
		resp, err := http.ReadResponse(r, nil)
		if err != nil || resp.StatusCode != tt.status || resp.Header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%q: %v %v; want %d", tt.head, resp, err, tt.status)
		}
	}
	if reached != 0 {
		t.Fatalf("reached %d times", reached)
	}
	_, r := ask("GET /v1/mounted?q=bad HTTP/1.1\r\nHost: localhost\r\n" + token + "\r\n")
	if resp, err := http.ReadResponse(r, nil); err != nil || resp.StatusCode != 400 {
		t.Errorf("%v %v; want the mount's error", resp, err)
	}
	_, r = ask("GET /v1/mounted?access_token=secret HTTP/1.1\r\nHost: localhost\r\n\r\nahead")
	if ahead := <-taken; string(ahead) != "ahead" {
		t.Errorf("%q was sent ahead", ahead)
	}
	if s.Streams() != 1 {
		t.Errorf("%d streams", s.Streams())
	}
	go func() { _ = s.Shutdown(context.Background()) }() // the test's end waits for it
	if b, err := io.ReadAll(r); err != nil || string(b) != "taken\ndrained\n" {
		t.Errorf("%q, %v", b, err)
	}
}
