package httpapi

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// raw sends bytes on one connection and returns everything that comes back until the server closes. closed is false
// where it does not within a minute.
func raw(t *testing.T, base, send string) (answers []*http.Response, closed bool) {
	t.Helper()
	nc, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if _, err := io.WriteString(nc, send); err != nil {
		t.Fatal(err)
	}
	_ = nc.SetReadDeadline(time.Now().Add(time.Minute))
	all, err := io.ReadAll(nc)
	closed = !errors.Is(err, os.ErrDeadlineExceeded) // a reset ends it as well
	r := bufio.NewReader(bytes.NewReader(all))
	for {
		if _, err := r.Peek(1); err != nil {
			return answers, closed
		}
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatalf("behind %d answers come bytes that are none: %v in %.300q", len(answers), err, all)
		}
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatalf("answer %d breaks off: %v in %.300q", len(answers), err, all)
		}
		resp.Body = io.NopCloser(bytes.NewReader(b))
		answers = append(answers, resp)
	}
}

// TestSmuggling sends requests that two parsers could read differently, each followed by a second one.
// Whatever is smuggled into a request: never a second response.
func TestSmuggling(t *testing.T) {
	const h = "Host: localhost\r\n"
	const post = "POST /v1/topics/orders/events HTTP/1.1\r\n" + h + "Content-Type: text/plain\r\n"
	f := newFake("orders")
	_, base := serve(t, Options{Backend: f, HeaderTimeout: time.Second, Limits: event.Limits{Body: 100_000}})
	for _, tt := range []struct {
		name, send string
		status     int
	}{
		{"Content-Length and Transfer-Encoding", post + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
		{"Transfer-Encoding and Content-Length", post + "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n", 400},
		{"both, and the length is that of the chunk's data", post + "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", 400},
		{"the other way round", post + "Transfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n1\r\nx\r\n0\r\n\r\n", 400},
		{"the same in lower case", post + "transfer-encoding: CHUNKED\r\ncontent-length: 4\r\n\r\n0\r\n\r\n", 400},
		{"Content-Length twice", post + "Content-Length: 1\r\nContent-Length: 1\r\n\r\nx", 400},
		{"Content-Length twice, unlike", post + "Content-Length: 1\r\nContent-Length: 60\r\n\r\nx", 400},
		{"Content-Length as a list", post + "Content-Length: 1, 1\r\n\r\nx", 400},
		{"Content-Length +1", post + "Content-Length: +1\r\n\r\nx", 400},
		{"Content-Length -1", post + "Content-Length: -1\r\n\r\nx", 400},
		{"Content-Length in hex", post + "Content-Length: 0x1\r\n\r\nx", 400},
		{"Content-Length empty", post + "Content-Length: \r\n\r\n", 400},
		{"Content-Length with a point", post + "Content-Length: 1.0\r\n\r\nx", 400},
		{"Content-Length with a space inside", post + "Content-Length: 1 1\r\n\r\nx", 400},
		{"Content-Length past int64", post + "Content-Length: 9223372036854775808\r\n\r\nx", 400},
		{"Content-Length past uint64", post + "Content-Length: 18446744073709551617\r\n\r\nx", 400},
		{"Content-Length of 40 digits", post + "Content-Length: " + strings.Repeat("1", 40) + "\r\n\r\nx", 400},
		{"Content-Length over the limit", post + "Content-Length: 100001\r\n\r\nx", 413},
		{"Content-Length: with a space before the colon", post + "Content-Length : 1\r\n\r\nx", 400},
		{"Transfer-Encoding with a space before the colon", post + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400},
		{"Transfer-Encoding twice", post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
		{"Transfer-Encoding chunked, chunked", post + "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 400},
		{"Transfer-Encoding gzip, chunked", post + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400},
		{"Transfer-Encoding xchunked", post + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400},
		{"Transfer-Encoding identity", post + "Transfer-Encoding: identity\r\n\r\n", 400},
		{"Transfer-Encoding identity and Content-Length", post + "Transfer-Encoding: identity\r\nContent-Length: 1\r\n\r\nx", 400},
		{"Transfer-Encoding with vertical tab", post + "Transfer-Encoding: \vchunked\r\n\r\n0\r\n\r\n", 400},
		{"Transfer-Encoding empty", post + "Transfer-Encoding:\r\n\r\n", 400},
		{"Transfer-Encoding in HTTP/1.0", "POST /v1/topics/orders/events HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
		{"folded header", post + "X-A: b\r\n c\r\nContent-Length: 1\r\n\r\nx", 400},
		{"folded Transfer-Encoding", post + "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", 400},
		{"folded with tab", post + "X-A: b\r\n\tc\r\nContent-Length: 1\r\n\r\nx", 400},
		{"first header indented", "POST /v1/topics/orders/events HTTP/1.1\r\n Host: localhost\r\nContent-Length: 1\r\n\r\nx", 400},
		{"bare LF after a header", "POST /v1/topics/orders/events HTTP/1.1\r\n" + h + "X-A: b\nContent-Length: 1\r\n\r\nx", 400},
		{"bare LF after the request line", "GET /healthz HTTP/1.1\n" + h + "\r\n", 400},
		{"bare LF everywhere", "GET /healthz HTTP/1.1\nHost: localhost\n\n", 400},
		{"bare LF at the end", "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\n", 400},
		{"bare CR in a header", post + "X-A: b\rTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\nx", 400},
		{"NUL in a header", post + "X-A: b\x00c\r\nContent-Length: 1\r\n\r\nx", 400},
		{"NUL in a name", post + "X\x00A: b\r\nContent-Length: 1\r\n\r\nx", 400},
		{"a space in a name", post + "X A: b\r\nContent-Length: 1\r\n\r\nx", 400},
		{"no name", post + ": b\r\nContent-Length: 1\r\n\r\nx", 400},
		{"no colon", post + "nonsense\r\nContent-Length: 1\r\n\r\nx", 400},
		{"HTTP/1.2", "GET /healthz HTTP/1.2\r\n" + h + "\r\n", 400},
		{"HTTP/2.0", "GET /healthz HTTP/2.0\r\n" + h + "\r\n", 400},
		{"HTTP/0.9", "GET /healthz\r\n\r\n", 400},
		{"HTTP/1.10", "GET /healthz HTTP/1.10\r\n" + h + "\r\n", 400},
		{"http/1.1", "GET /healthz http/1.1\r\n" + h + "\r\n", 400},
		{"two spaces", "GET  /healthz HTTP/1.1\r\n" + h + "\r\n", 400},
		{"a space in the target", "GET /healthz /x HTTP/1.1\r\n" + h + "\r\n", 400},
		{"no Host", "GET /healthz HTTP/1.1\r\n\r\n", 400},
		{"Host twice", "GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400},
		{"another host in the target", "GET http://evil.example/healthz HTTP/1.1\r\n" + h + "\r\n", 400},
		{"CONNECT", "CONNECT evil.example:443 HTTP/1.1\r\n" + h + "\r\n", 400},
		{"a foreign Host", "GET /healthz HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403},
		{"a foreign Origin", "GET /healthz HTTP/1.1\r\n" + h + "Origin: http://evil.example\r\n\r\n", 403},
		{"Authorization twice", "GET /healthz HTTP/1.1\r\n" + h + "Authorization: a\r\nAuthorization: b\r\n\r\n", 400},
		{"TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400},
		{"chunk size -1", post + "Transfer-Encoding: chunked\r\n\r\n-1\r\nx\r\n0\r\n\r\n", 400},
		{"chunk size +1", post + "Transfer-Encoding: chunked\r\n\r\n+1\r\nx\r\n0\r\n\r\n", 400},
		{"chunk size 0x1", post + "Transfer-Encoding: chunked\r\n\r\n0x1\r\nx\r\n0\r\n\r\n", 400},
		{"chunk size with a space before", post + "Transfer-Encoding: chunked\r\n\r\n 1\r\nx\r\n0\r\n\r\n", 400},
		{"chunk size past int64", post + "Transfer-Encoding: chunked\r\n\r\nffffffffffffffff1\r\nx\r\n0\r\n\r\n", 400},
		{"chunk size over the limit", post + "Transfer-Encoding: chunked\r\n\r\nfffffff\r\nx", 413},
		{"chunk size with bare LF", post + "Transfer-Encoding: chunked\r\n\r\n1\nx\r\n0\r\n\r\n", 400},
		{"chunk without CRLF", post + "Transfer-Encoding: chunked\r\n\r\n1\r\nxy0\r\n\r\n", 400},
		{"chunk extension with LF", post + "Transfer-Encoding: chunked\r\n\r\n1;a\nb\r\nx\r\n0\r\n\r\n", 400},
		{"empty chunk size", post + "Transfer-Encoding: chunked\r\n\r\n\r\nx\r\n0\r\n\r\n", 400},
		{"Content-Length in a trailer", post + "Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nContent-Length: 5\r\n\r\n", 400},
		{"header flood", "GET /healthz HTTP/1.1\r\n" + h + strings.Repeat("X-A: b\r\n", 5000) + "\r\n", 431},
		{"a long target", "GET /" + strings.Repeat("a", 40_000) + " HTTP/1.1\r\n" + h + "\r\n", 431},
		{"an endless header", "GET /healthz HTTP/1.1\r\n" + h + "X-A: " + strings.Repeat("b", 40_000), 431},
	} {
		t.Run(tt.name, func(t *testing.T) {
			answers, closed := raw(t, base, tt.send+"GET /readyz?second HTTP/1.1\r\nHost: localhost\r\n\r\n")
			if len(answers) != 1 || !closed {
				t.Fatalf("%d answers, closed: %v", len(answers), closed)
			}
			a := answers[0]
			if a.StatusCode != tt.status || a.Header.Get("Content-Type") != "application/problem+json" || !a.Close {
				b, _ := io.ReadAll(a.Body)
				t.Errorf("%d %v %s", a.StatusCode, a.Header, b)
			}
		})
	}
	if n := len(stored(f, "orders")); n != 0 {
		t.Errorf("%d events stored of refused requests: %s", n, stored(f, "orders"))
	}
}

// TestGoodFraming is what must go on working on one connection.
func TestGoodFraming(t *testing.T) {
	const h = "Host: localhost\r\n"
	const post = "POST /v1/topics/orders/events HTTP/1.1\r\n" + h + "Content-Type: text/plain\r\n"
	_, base := serve(t, Options{Backend: newFake("orders")})
	for name, send := range map[string]string{
		"pipelined":             "GET /healthz HTTP/1.1\r\n" + h + "\r\n",
		"empty line before":     "\r\nGET /healthz HTTP/1.1\r\n" + h + "\r\n",
		"body with HTTP inside": post + "Content-Length: 24\r\n\r\nGET / HTTP/1.1\nHost: a\n\n",
		"chunks":                post + "Transfer-Encoding: chunked\r\n\r\n1;ext=1\r\nx\r\n00A\r\n0123456789\r\n0\r\n\r\n",
		"a refused small body":  "POST /v1/topics/none/events HTTP/1.1\r\n" + h + "Content-Length: 1\r\n\r\n1",
		"absolute form":         "GET http://localhost/healthz HTTP/1.1\r\n" + h + "\r\n",
		"expect":                post + "Expect: 100-continue\r\nContent-Length: 1\r\n\r\nx",
	} {
		answers, closed := raw(t, base, send+send+"GET /healthz HTTP/1.1\r\nHost: [::1]:80\r\nOrigin: http://[::1]:80\r\nConnection: close\r\n\r\n")
		n := 0
		for _, a := range answers {
			if a.StatusCode != 100 {
				n++
			}
		}
		want, last := 3, 200
		if name == "chunks" { // whose framing is looked at only where a read begins with the request: the second ends the connection
			want, last = 2, 202
		}
		if n != want || !closed || answers[len(answers)-1].StatusCode != last {
			t.Errorf("%s: %d answers, closed: %v", name, n, closed)
		}
	}
}

func TestSlowClientsGet408(t *testing.T) {
	_, base := serve(t, Options{Backend: newFake("orders"), HeaderTimeout: 50 * time.Millisecond, BodyTimeout: 50 * time.Millisecond})
	for _, send := range []string{
		"GET /healthz HT",
		"POST /v1/topics/orders/events HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n12",
		"POST /v1/topics/orders/events HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n12",
		"POST /v1/topics/orders/events HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12",
	} {
		answers, closed := raw(t, base, send)
		if len(answers) != 1 || answers[0].StatusCode != 408 || !closed {
			t.Errorf("%q: %d answers, closed: %v", send, len(answers), closed)
		}
	}
}

// TestRefusedBeforeItsBodyIsRead sends 32 MiB that nobody wants: the answer comes, and nothing is
// allocated for them.
func TestRefusedBeforeItsBodyIsRead(t *testing.T) {
	_, base := serve(t, Options{Backend: newFake("orders"), Guard: tokenGuard(t, "secret")})
	for _, tt := range []struct {
		headers string
		length  int
		status  string
	}{
		{"", 16 << 20, "401"}, // within the limit, without the token
		{"Authorization: Bearer secret\r\n", 32 << 20, "413"},
		{"Authorization: Bearer secret\r\nExpect: 100-continue\r\n", 32 << 20, "413"},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		nc, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		fmt.Fprintf(nc, "POST /v1/topics/orders/events HTTP/1.1\r\nHost: localhost\r\n%sContent-Length: %d\r\n\r\n", tt.headers, tt.length)
		go func() { // the server stops taking it at some point
			chunk := make([]byte, 64<<10)
			for sent := 0; sent < tt.length; sent += len(chunk) {
				if _, err := nc.Write(chunk); err != nil {
					return
				}
			}
		}()
		line, err := bufio.NewReader(nc).ReadString('\n')
		if err != nil || !strings.HasPrefix(line, "HTTP/1.1 "+tt.status) {
			t.Errorf("%q %v, want %s", line, err, tt.status)
		}
		runtime.ReadMemStats(&after)
		if grown := after.TotalAlloc - before.TotalAlloc; grown > 4<<20 {
			t.Errorf("%s: %d bytes allocated", tt.status, grown)
		}
	}
}

// TestBombs sends a few KB that would become 64 MiB.
func TestBombs(t *testing.T) {
	_, base := serve(t, Options{Backend: newFake("orders"), Limits: event.Limits{Body: 1 << 20}})
	for _, how := range []string{"gzip", "zstd"} {
		if _, err := described(); err != nil { // outside what is measured
			t.Fatal(err)
		}
		bomb := compressed(t, how, make([]byte, 64<<20))
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		resp, body := do(t, "POST", base+orders, bomb, "Content-Type", "text/plain", "Content-Encoding", how)
		runtime.ReadMemStats(&after)
		if resp.StatusCode != 413 || !strings.Contains(body, "1048576 bytes") {
			t.Errorf("%s: %d %s", how, resp.StatusCode, body)
		}
		if grown := after.TotalAlloc - before.TotalAlloc; grown > 24<<20 {
			t.Errorf("%s: %d bytes allocated for a bomb of %d", how, grown, len(bomb))
		}
	}
}

func TestOriginHostToken(t *testing.T) {
	f := newFake("orders")
	_, base := serve(t, Options{Backend: f, Guard: tokenGuard(t, "se-cret"), CORSOrigins: []string{"https://app.example.com"}, Hosts: []string{"router.example"}})
	bearer := []string{"Authorization", "Bearer se-cret"}
	for _, tt := range []struct {
		name, method, path string
		host               string
		headers            []string
		status             int
	}{
		{"no token", "GET", "/v1/topics", "", nil, 401},
		{"wrong token", "GET", "/v1/topics", "", []string{"Authorization", "Bearer se-cres"}, 401},
		{"longer token", "GET", "/v1/topics", "", []string{"Authorization", "Bearer se-cret2"}, 401},
		{"basic", "GET", "/v1/topics", "", []string{"Authorization", "Basic se-cret"}, 401},
		{"token", "GET", "/v1/topics", "", bearer, 200},
		{"token, another case", "GET", "/v1/topics", "", []string{"Authorization", "bEARER se-cret"}, 200},
		{"token in the query", "GET", "/v1/topics?access_token=se-cret", "", nil, 401},
		{"metrics", "GET", "/metrics", "", nil, 401},
		{"unknown path", "GET", "/nothing", "", nil, 401},
		{"method", "DELETE", "/v1/topics", "", nil, 401},
		{"health", "GET", "/healthz", "", nil, 200},
		{"ready", "GET", "/readyz", "", nil, 200},
		{"foreign origin", "GET", "/v1/topics", "", append([]string{"Origin", "https://evil.example"}, bearer...), 403},
		{"null origin", "GET", "/v1/topics", "", append([]string{"Origin", "null"}, bearer...), 403},
		{"foreign origin on health", "GET", "/healthz", "", []string{"Origin", "https://evil.example"}, 403},
		{"foreign origin, nothing there", "GET", "/x", "", []string{"Origin", "https://evil.example"}, 403},
		{"allowed origin", "GET", "/v1/topics", "", append([]string{"Origin", "https://app.example.com"}, bearer...), 200},
		{"foreign preflight", "OPTIONS", orders, "", []string{"Origin", "https://evil.example", "Access-Control-Request-Method", "POST"}, 403},
		{"allowed preflight", "OPTIONS", orders, "", []string{"Origin", "https://app.example.com", "Access-Control-Request-Method", "POST"}, 204},
		{"foreign host", "GET", "/healthz", "evil.example", nil, 403},
		{"foreign host with port", "GET", "/healthz", "evil.example:8080", nil, 403},
		{"own host", "GET", "/healthz", "ROUTER.example:8080", nil, 200},
		{"localhost", "GET", "/healthz", "localhost:1", nil, 200},
		{"IPv6", "GET", "/healthz", "[::1]:1", nil, 200},
		{"address that is none", "GET", "/healthz", "127.0.0.1.evil.example", nil, 403},
		{"own page", "GET", "/healthz", "localhost:1", []string{"Origin", "http://localhost:1"}, 200},
		{"405", "PUT", "/v1/topics", "", bearer, 405},
		{"404", "GET", "/v1/nothing", "", bearer, 404},
		{"HEAD", "HEAD", "/v1/topics", "", bearer, 200},
	} {
		req, _ := http.NewRequest(tt.method, base+tt.path, nil)
		req.Host = tt.host
		for i := 0; i < len(tt.headers); i += 2 {
			req.Header.Set(tt.headers[i], tt.headers[i+1])
		}
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != tt.status {
			t.Errorf("%s: %d %s", tt.name, resp.StatusCode, body)
		}
		if strings.Contains(string(body), "se-cret") {
			t.Errorf("%s: the token shows: %s", tt.name, body)
		}
		cors := resp.Header.Get("Access-Control-Allow-Origin")
		if want := strings.HasPrefix(tt.name, "allowed"); (cors == "https://app.example.com") != want {
			t.Errorf("%s: Access-Control-Allow-Origin %q", tt.name, cors)
		}
		switch tt.status {
		case 401:
			if !strings.HasPrefix(resp.Header.Get("WWW-Authenticate"), "Bearer") {
				t.Errorf("%s: no WWW-Authenticate", tt.name)
			}
		case 405:
			if a := resp.Header.Get("Allow"); a != "GET, HEAD, OPTIONS, POST" {
				t.Errorf("Allow %q", a)
			}
		}
	}
	for _, r := range routes() { // whatever there is
		for _, foreign := range []string{"Host: evil.example\r\n", "Host: localhost\r\nOrigin: http://evil.example\r\n"} {
			answers, closed := raw(t, base, r.method+" "+strings.NewReplacer("{", "", "}", "").Replace(r.path)+" HTTP/1.1\r\n"+foreign+"Authorization: Bearer se-cret\r\n\r\n")
			if len(answers) != 1 || answers[0].StatusCode != 403 || !closed {
				t.Errorf("%s %s with %s: %d answers, closed: %v", r.method, r.path, strings.TrimSpace(foreign), len(answers), closed)
			}
		}
	}
	openStream(t, base+"/v1/topics/orders/stream?access_token=se-cret")
	openStream(t, base+"/v1/topics/orders/stream", bearer...)
	if resp, body := do(t, "GET", base+"/v1/topics/orders/stream?access_token=se-cres", ""); resp.StatusCode != 401 {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	resp, _ := do(t, "OPTIONS", base+orders, "", append([]string{"WebHook-Request-Origin", "sender.example"}, bearer...)...)
	if resp.StatusCode != 204 || resp.Header.Get("WebHook-Allowed-Origin") != "sender.example" {
		t.Errorf("consent: %d %v", resp.StatusCode, resp.Header)
	}
	resp, _ = do(t, "OPTIONS", base+orders, "", "WebHook-Request-Origin", "sender.example")
	if resp.Header.Get("WebHook-Allowed-Origin") != "" {
		t.Error("consent without the token")
	}
}

func TestListenBeyondLoopback(t *testing.T) {
	try := func(o Options) error {
		o.Backend = newFake()
		s, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		ln, err := net.Listen("tcp", "0.0.0.0:0")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		return s.Serve(ctx, ln)
	}
	err := try(Options{})
	if err == nil || !strings.Contains(err.Error(), "MILLRACE_TOKEN") || !strings.Contains(err.Error(), "--insecure") {
		t.Errorf("%v", err)
	}
	if err := try(Options{Guard: tokenGuard(t, "x")}); err != nil {
		t.Error(err)
	}
	if err := try(Options{Insecure: true}); err != nil {
		t.Error(err)
	}
	for _, o := range []Options{{}, {Backend: newFake(), CORSOrigins: []string{"example.com"}}, {Backend: newFake(), HeaderBytes: 5}} {
		if _, err := New(o); err == nil {
			t.Errorf("%+v was taken", o)
		}
	}
}

// TestTheAnswerToARefusedBodyArrives sends a body that nobody reads to its end, and reads only then:
// without a gentle close the connection would be reset and the answer lost.
func TestTheAnswerToARefusedBodyArrives(t *testing.T) {
	_, base := serve(t, Options{Backend: newFake("orders"), Limits: event.Limits{Body: 1000}})
	for range 5 {
		nc, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		fmt.Fprint(nc, "POST /v1/topics/orders/events HTTP/1.1\r\nHost: localhost\r\nContent-Length: 300000\r\n\r\n")
		for range 300 {
			if _, err := nc.Write(make([]byte, 1000)); err != nil {
				t.Fatal(err)
			}
		}
		b, err := io.ReadAll(nc)
		if err != nil || !strings.HasPrefix(string(b), "HTTP/1.1 413") {
			t.Errorf("%q %v", b, err)
		}
	}
}

// What the HTTP library says of requests that it cannot read is logged without quoting them: they have credentials.
func TestTheLogQuotesNoRequest(t *testing.T) {
	var log locked
	lines := slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	const secret = "Authorization: Bearer canary\r\n"
	s, base := serve(t, Options{Backend: newFake("orders"), Log: lines, HeaderTimeout: 100 * time.Millisecond})
	for _, send := range []string{
		"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + secret + "nonsense\r\n\r\n",
		"GET /healthz HTTP/9.9\r\nHost: localhost\r\n" + secret + "\r\n",
		"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + secret + "X-A: " + strings.Repeat("b", 40_000) + "\r\n\r\n",
		"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + secret + "Content-Length: x\r\n\r\n",
		"canary\r\n\r\n",
		"POST /v1/topics/orders/events HTTP/1.1\r\nHost: localhost\r\n" + secret + "Transfer-Encoding: chunked\r\n\r\ncanary\r\n",
		"GET /healthz?access_token=canary HTTP/1.1\r\nHost: localhost\r\nX-Half",
	} {
		if answers, _ := raw(t, base, send); len(answers) != 1 || answers[0].StatusCode < 400 {
			t.Errorf("%.60q: %d answers", send, len(answers))
		}
	}
	if err := s.Shutdown(t.Context()); err != nil { // until all is said
		t.Error(err)
	}
	if text := log.String(); strings.Contains(text, "canary") || !strings.Contains(text, "level=DEBUG") {
		t.Errorf("the log says %.2000s", text)
	}
}

// locked is a log that several goroutines write.
type locked struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *locked) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}
