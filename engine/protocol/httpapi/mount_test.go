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

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/admission"
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

// What was taken over is bound like requests are: by the principal's rate and the room for large bodies; and it ends, before
// anything else is written, with what was shown to open it.
func TestConnectionsThatWereTakenOverAreBound(t *testing.T) {
	policy, err := access.ParsePolicy("access.yaml", []byte("version: 1\nroles: {slow: [{allow: [read], topics: [\"*\"]}]}\nlimits: {slow: {rate: 1/h, burst: 3}}\n"), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	g, key, text := keyed(t, access.Options{Policy: policy}, access.Key{Roles: []string{"slow"}})
	_, other, err := g.CreateKey(t.Context(), nil, access.Key{Name: key.Name, Roles: []string{"slow"}, Tenant: "other"})
	if err != nil {
		t.Fatal(err)
	}
	status := func(err error) int {
		if err == nil {
			return 200
		}
		p, _ := problemOf(err)
		return p.Status
	}
	m := Mount{Method: "GET", Path: "/v1/ws", Stream: true, In: Known, Serve: func(_ *fasthttp.RequestCtx, take func(func(context.Context, net.Conn, []byte)) error) error {
		return take(func(ctx context.Context, nc net.Conn, _ []byte) {
			_, _ = fmt.Fprintln(nc, "open")
			var b [1]byte
			for {
				if _, err := io.ReadFull(nc, b[:]); err != nil {
					return
				}
				switch b[0] {
				case 's':
					_, _ = fmt.Fprintf(nc, "%d\n", status(SessionOf(ctx).Spend()))
				case 'r':
					_, _ = fmt.Fprintf(nc, "%d\n", status(SessionOf(ctx).Reserve(600_000, 600_000)))
				case 'g':
					SessionOf(ctx).Release()
					_, _ = fmt.Fprintln(nc, "0")
				case 'w':
					_, _ = fmt.Fprintf(nc, "%t\n", SessionOf(ctx).Principal() != nil)
				case 'f':
					st := outStream{s: nc.(*conn).s, out: []byte("secret\n")}
					if st.flush(nc) != nil {
						_, _ = fmt.Fprintln(nc, "ended")
					}
				case 'e':
					<-ctx.Done()
					_, _ = fmt.Fprintln(nc, context.Cause(ctx) == admission.ErrRevoked)
				}
			}
		})
	}}
	s, url := serve(t, Options{Backend: newFake("orders"), Guard: g, BodyBytes: 1 << 20, Limits: event.Limits{Body: 1 << 20}, Mounts: []Mount{m}, Recheck: time.Hour})
	open := func(key string) func(string) string {
		c := connect(t, url)
		_, _ = fmt.Fprintf(c.nc, "GET /v1/ws HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n\r\n", key)
		if line, err := c.r.ReadString('\n'); err != nil || line != "open\n" {
			t.Fatal(line, err)
		}
		return func(what string) string {
			_, _ = io.WriteString(c.nc, what)
			line, err := c.r.ReadString('\n')
			if err != nil {
				t.Fatal(what, err)
			}
			return strings.TrimSpace(line)
		}
	}
	one := open(text)
	two := open(other)
	for i, x := range []struct {
		ask        func(string) string
		what, want string
	}{
		{one, "s", "200"}, {one, "s", "200"}, {one, "s", "429"}, {two, "s", "200"}, // the other of the same name
		{one, "r", "200"}, {two, "r", "503"}, {one, "g", "0"}, {two, "r", "200"}, {one, "w", "true"}, {one, "f", "secret"},
	} {
		if got := x.ask(x.what); got != x.want {
			t.Errorf("%d: %s: %q, want %q", i, x.what, got, x.want)
		}
	}
	if err := g.RevokeKey(t.Context(), nil, key.ID); err != nil {
		t.Fatal(err)
	}
	for _, x := range [][2]string{{"f", "ended"}, {"w", "false"}, {"e", "true"}} {
		if got := one(x[0]); got != x[1] {
			t.Errorf("revoked: %s: %q, want %q", x[0], got, x[1])
		}
		if got := two("w"); got != "true" {
			t.Errorf("the other: %q", got)
		}
	}
	if n := refused(s, "principal_rate"); n != 1 {
		t.Errorf("%d refusals are counted", n)
	}
}
