package httpapi

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// An attack is one request, or what looks like one. Behind it a second request is on the connection at once.
type attack struct {
	name, send string
	status     int   // of the answer; 0: the connection ends without one
	behind     []int // of what is answered behind it: the second request if this one ends where it says
}

const (
	attackHost = "Host: localhost\r\n"
	attackPost = "POST /v1/topics/orders/events HTTP/1.1\r\n" + attackHost + "Content-Type: text/plain\r\n"
	// attackInner is what an attacker wants to be read as a request of its own.
	attackInner = "POST /v1/topics/smuggled/events HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx"
)

// kept is the answer to the second request.
var kept = []int{200}

// launch sends every attack with a second request behind it. One that leaves its own end in doubt closes the
// connection, so the second is never answered; another keeps it, and exactly one more answer comes.
func launch(t *testing.T, attacks []attack) {
	t.Helper()
	f := newFake("orders", "smuggled")
	_, base := serve(t, Options{Backend: f, HeaderTimeout: time.Second, BodyTimeout: time.Second, Limits: event.Limits{Body: 20_000}})
	for _, tt := range attacks {
		t.Run(tt.name, func(t *testing.T) {
			answers, closed := raw(t, base, tt.send+"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
			var got, want []int
			for _, a := range answers {
				if a.StatusCode != 100 {
					got = append(got, a.StatusCode)
				}
			}
			if tt.status != 0 {
				want = append(want, tt.status)
			}
			want = append(want, tt.behind...)
			if !slices.Equal(got, want) || !closed {
				t.Errorf("answered %v, want %v; closed: %v", got, want, closed)
				for _, a := range answers {
					b, _ := io.ReadAll(a.Body)
					t.Logf("%.300s", b)
				}
			}
		})
	}
	if n := len(stored(f, "smuggled")); n != 0 {
		t.Errorf("%d smuggled requests were obeyed", n)
	}
}

func TestAttackLengths(t *testing.T) {
	inner := attackInner
	var attacks []attack
	for _, te := range []string{
		"chunked, identity", "identity, chunked", "chunked,", ",chunked", "chunked;q=1", `"chunked"`, "'chunked'", "chun ked", "chunked chunked", "x", "deflate",
		"chunked\x00", "\x0cchunked", "\xa0chunked", "\x00chunked", "chunked\x7f", "chunke", "chunkedd", "cow", "chunked\xff", "c\u0127unked", "chunked\t,", "gzip\r\n\tchunked",
	} {
		attacks = append(attacks, attack{name: "Transfer-Encoding: " + te, status: 400,
			send: attackPost + "Transfer-Encoding: " + te + "\r\n\r\n0\r\n\r\n" + inner})
		attacks = append(attacks, attack{name: "Content-Length and Transfer-Encoding: " + te, status: 400,
			send: attackPost + "Content-Length: 5\r\nTransfer-Encoding: " + te + "\r\n\r\n0\r\n\r\n" + inner})
	}
	for _, name := range []string{"Transfer-Encoding\t", "Transfer-Encoding\x00", "\x00Transfer-Encoding", "Transfer-Encoding\x0b", "\tTransfer-Encoding", " Transfer-Encoding",
		"Transfer-Encoding \t", "Transfer\x00-Encoding", "Tr\u0430nsfer-Encoding", "Transfer Encoding", "\xa0Transfer-Encoding", "(Transfer-Encoding)", "Transfer-Encoding\r"} {
		attacks = append(attacks, attack{name: "named " + name, status: 400,
			send: attackPost + "Content-Length: 5\r\n" + name + ": chunked\r\n\r\n0\r\n\r\n" + inner})
	}
	for _, cl := range []string{"1;", "1e0", "\u0661", "1_0", "\x0b1", "1\x00", "1\x0b", "0x", "1,", ",1", "1,2", "one", "NaN", "--1", "1-", "1 \x00", "\"1\"", "1\r\n 1", strings.Repeat("0", 40) + "1"} {
		attacks = append(attacks, attack{name: "Content-Length: " + cl, status: 400, send: attackPost + "Content-Length: " + cl + "\r\n\r\nx" + inner})
	}
	attacks = append(attacks,
		attack{"Content-Length in two cases", attackPost + "Content-Length: 1\r\ncONTENT-lENGTH: 1\r\n\r\nx", 400, nil},
		attack{"three Content-Lengths", attackPost + "Content-Length: 1\r\nX-A: b\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", 400, nil},
		attack{"Content-Length 0 and a body that is a request", attackPost + "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n" + inner, 400, nil},
		attack{"Transfer-Encoding in two cases", attackPost + "transfer-encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", 400, nil},
		attack{"Transfer-Encoding of a GET in HTTP/1.0", "GET /healthz HTTP/1.0\r\n" + attackHost + "Transfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n0\r\n\r\n" + inner, 400, nil},
		attack{"Content-Length with a leading zero", attackPost + "Content-Length: 01\r\n\r\nx", 202, kept},
		attack{"Content-Length amid blanks", attackPost + "Content-Length: \t 1 \t\r\n\r\nx", 202, kept},
		attack{"another header that looks like it", attackPost + "Transfer_Encoding: chunked\r\nContent_Length: 5\r\nContent-Length: 1\r\n\r\nx", 202, kept},
		attack{"TE", attackPost + "TE: chunked\r\nContent-Length: 1\r\n\r\nx", 202, kept},
		attack{"CHUNKED", attackPost + "TRANSFER-ENCODING: CHUNKED\r\n\r\n1\r\nx\r\n0\r\n\r\n", 202, kept},
		attack{"tabs around chunked", attackPost + "Transfer-Encoding:\tchunked\t\r\n\r\n1\r\nx\r\n0\r\n\r\n", 202, kept},
		attack{"GET whose body is a request", "GET /healthz HTTP/1.1\r\n" + attackHost + "Content-Length: 81\r\n\r\n" + inner, 200, kept},
		attack{"GET whose chunk is a request, refused", "GET /healthz HTTP/1.1\r\n" + attackHost + "Transfer-Encoding: chunked\r\n\r\n51\r\n" + inner + "\r\n0\r\n\r\n", 413, nil},
		attack{"GET whose chunk is a request", "GET /v1/openapi.json HTTP/1.1\r\n" + attackHost + "Transfer-Encoding: chunked\r\n\r\n51\r\n" + inner + "\r\n0\r\n\r\n", 200, kept},
		attack{"DELETE whose body is a request", "DELETE /v1/topics/none HTTP/1.1\r\n" + attackHost + "Content-Length: 81\r\n\r\n" + inner, 404, kept},
		attack{"OPTIONS whose body is a request", "OPTIONS * HTTP/1.1\r\n" + attackHost + "Content-Length: 81\r\n\r\n" + inner, 204, kept},
		attack{"a body that is a request, refused", "POST /v1/nothing HTTP/1.1\r\n" + attackHost + "Content-Length: 81\r\n\r\n" + inner, 404, kept},
	)
	if len(inner) != 81 {
		t.Fatalf("the inner request has %d bytes", len(inner))
	}
	launch(t, attacks)
}

func TestAttackChunks(t *testing.T) {
	const chunked = attackPost + "Transfer-Encoding: chunked\r\n\r\n"
	var attacks []attack
	for _, body := range []string{
		"1 \r\nx\r\n0\r\n\r\n", "1\t\r\nx\r\n0\r\n\r\n", "1\r\r\nx\r\n0\r\n\r\n", "\n1\r\nx\r\n0\r\n\r\n", "1\r\nx\n0\r\n\r\n", "1\r\nx\r0\r\n\r\n", "1\r\nx\r\n0\n\r\n", "1\r\nx\r\n0\r\n\n",
		"1\r\nx0\r\n\r\n", "1\r\nx\r\n\r\n0\r\n\r\n", "g\r\nx\r\n0\r\n\r\n", ";a\r\nx\r\n0\r\n\r\n", "1\x00\r\nx\r\n0\r\n\r\n", "0X1\r\nx\r\n0\r\n\r\n", "1_0\r\nx\r\n0\r\n\r\n", "1.0\r\nx\r\n0\r\n\r\n",
		"8000000000000000\r\nx\r\n0\r\n\r\n", "FFFFFFFFFFFFFFFF\r\nx\r\n0\r\n\r\n", "10000000000000001\r\nx\r\n0\r\n\r\n", "00000000000000001\r\nx\r\n0\r\n\r\n", "--1\r\nx\r\n0\r\n\r\n", "1,1\r\nx\r\n0\r\n\r\n",
		"1;a=\"\n\"\r\nx\r\n0\r\n\r\n", "1;a\rb\r\nx\r\n0\r\n\r\n", "1;a\x00\r\nx\r\n0\r\n\r\n", "1 ;a\nb\r\nx\r\n0\r\n\r\n", "1\r\nx\r\n0;a\nb\r\n\r\n", "\xef\xbc\x91\r\nx\r\n0\r\n\r\n", "1\r\nx\r\n", "\r\n0\r\n\r\n",
		"1\r\nx\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n", "1\r\nx\r\n0\r\nHost: evil.example\r\n\r\n", "1\r\nx\r\n0\r\nAuthorization: Bearer x\r\n\r\n", "1\r\nx\r\n0\r\nContent-Type: application/json\r\n\r\n",
		"1\r\nx\r\n0\r\nContent-Encoding: gzip\r\n\r\n", "1\r\nx\r\n0\r\nTrailer : x\r\n\r\n", "1\r\nx\r\n0\r\nX-A: b\n\r\n", "1\r\nx\r\n0\r\n X-A: b\r\n\r\n", "1\r\nx\r\n0\r\nX-A\r\n\r\n", "1\r\nx\r\n0\r\nX\x00A: b\r\n\r\n",
	} {
		attacks = append(attacks, attack{name: strings.ToValidUTF8(body, "?"), send: chunked + body + attackInner, status: 400})
	}
	attacks = append(attacks,
		attack{"an extension", chunked + "1;a=b;c=\"d\"\r\nx\r\n0;e\r\n\r\n", 202, kept},
		attack{"zeroes", chunked + "0001\r\nx\r\n000\r\n\r\n", 202, kept},
		attack{"a chunk that is a request", chunked + "51\r\n" + attackInner + "\r\n0\r\n\r\n", 202, kept},
		attack{"an endless extension", chunked + "1;" + strings.Repeat("a", 200_000) + "\r\nx\r\n0\r\n\r\n", 400, nil},
		attack{"an endless size", chunked + strings.Repeat("0", 200_000) + "1\r\nx\r\n0\r\n\r\n", 400, nil},
		attack{"endless trailers", chunked + "1\r\nx\r\n0\r\n" + strings.Repeat("X-A: b\r\n", 30_000) + "\r\n", 431, nil},
		attack{"many chunks of one byte, over the limit", chunked + strings.Repeat("1\r\nx\r\n", 22_000), 413, nil},
	)
	launch(t, attacks)
}

func TestAttackLines(t *testing.T) {
	var attacks []attack
	for _, line := range []string{
		"GET /healthz\rX HTTP/1.1", "GET /healthz HTTP/1.1\rX: y", "GET /heal\x00thz HTTP/1.1", "GET\t/healthz\tHTTP/1.1", "GET\t/healthz HTTP/1.1", "GET /healthz\tHTTP/1.1", "GET\x0b/healthz HTTP/1.1", "GET /heal\x7fthz HTTP/1.1",
		" GET /healthz HTTP/1.1", "GET /healthz  HTTP/1.1", "GET /healthz HTTP/1.1 ", "GET /healthz HTTP/1.1\x00", "GET /healthz HTTP/01.1", "GET /healthz HTTP/1.01", "GET /healthz HTTP/1.1x", "GET /healthz HTTP/11", "GET /healthz HTTP/1,1",
		"GET /healthz HTTP/3", "GET /healthz HTTP/9.9", "GET /healthz HTTP/0.9", "GET /healthz HTTPS/1.1", "GET /healthz ICY/1.1", "GET /healthz HTTP /1.1", "GET /healthz HTTP/ 1.1", "GET /healthz 1.1", "GET HTTP/1.1", "GET", "/healthz HTTP/1.1",
		"GET\x00 /healthz HTTP/1.1", "G\x00T /healthz HTTP/1.1", "G(T /healthz HTTP/1.1", "G\xc3\x89T /healthz HTTP/1.1", ": /healthz HTTP/1.1", "GET healthz HTTP/1.1", "GET ?x HTTP/1.1", "GET \\healthz HTTP/1.1", "GET localhost/healthz HTTP/1.1",
		"GET http://localhost@evil.example/healthz HTTP/1.1", "GET http://evil.example@localhost/healthz HTTP/1.1", "GET http://localhost:80/healthz HTTP/1.1", "GET http:///healthz HTTP/1.1", "GET http:/healthz HTTP/1.1", "GET http:healthz HTTP/1.1", "GET :///healthz HTTP/1.1",
		"GET ftp://localhost/healthz HTTP/1.1", "GET x://localhost/healthz HTTP/1.1", "GET http://localhost\\@evil.example/healthz HTTP/1.1", "GET http://localhost%00.evil.example/healthz HTTP/1.1", "GET http://localhost /healthz HTTP/1.1",
		"CONNECT localhost:80 HTTP/1.1", "CONNECT localhost HTTP/1.1", "CONNECT http://localhost/healthz HTTP/1.1", "CONNECT /healthz HTTP/1.1", "PRI * HTTP/2.0", "GET * HTTP/2", "\x00\x00\x00\x04GET /healthz HTTP/1.1",
	} {
		attacks = append(attacks, attack{name: strings.ToValidUTF8(line, "?"), send: line + "\r\n" + attackHost + "\r\n", status: 400})
	}
	attacks = append(attacks,
		attack{"HTTP/2's preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00", 400, nil},
		attack{"the preface of h2 with a Host", "PRI * HTTP/2.0\r\n" + attackHost + "\r\nSM\r\n\r\n", 400, nil},
		attack{"a method in lower case", "get /healthz HTTP/1.1\r\n" + attackHost + "\r\n", 405, kept},
		attack{"an unknown method", "BREW /healthz HTTP/1.1\r\n" + attackHost + "\r\n", 405, kept},
		attack{"TRACE", "TRACE /healthz HTTP/1.1\r\n" + attackHost + "Authorization: Bearer canary\r\n\r\n", 405, kept},
		attack{"a method of 5,000 letters", strings.Repeat("A", 5000) + " /healthz HTTP/1.1\r\n" + attackHost + "\r\n", 405, kept},
		attack{"a method of 50,000 letters", strings.Repeat("A", 50_000) + " /healthz HTTP/1.1\r\n" + attackHost + "\r\n", 431, nil},
		attack{"a method without an end", strings.Repeat("A", 50_000), 431, nil},
		attack{"GET *", "GET * HTTP/1.1\r\n" + attackHost + "\r\n", 404, kept},
		attack{"the absolute form in capitals", "GET HTTP://LOCALHOST/healthz HTTP/1.1\r\n" + attackHost + "\r\n", 200, kept},
		attack{"a flood of empty lines", strings.Repeat("\r\n", 20_000) + "GET /healthz HTTP/1.1\r\n" + attackHost + "\r\n", 0, nil},
	)
	launch(t, attacks)
}

func TestAttackHosts(t *testing.T) {
	var attacks []attack
	for _, host := range []string{"user@localhost", "user:pw@localhost", "localhost/", "localhost?x", "localhost#x", "localhost\\", "localhost, evil.example", "localhost evil.example", "local\thost",
		"localhost:80:80", "localhost:evil.example", "localhost:-1", "localhost:0x50", "localhost:123456", "[::1", "[::1]evil.example", "[::1]:x", "::1]", "[localhost]", "[::1%evil.example]", "%6cocalhost", "localhost%00",
		"loc\u0430lhost", "localhost\xff", "http://localhost", "localhost;x", "\"localhost\"", "<localhost>"} {
		attacks = append(attacks, attack{name: strings.ToValidUTF8(host, "?"), status: 400, send: "GET /healthz HTTP/1.1\r\nHost: " + host + "\r\n\r\n"})
	}
	for _, host := range []string{"localhost.", "localhost.evil.example", "127.1", "0x7f000001", "2130706433", "evil.example", "127.0.0.1.evil.example", "xn--localhost"} {
		attacks = append(attacks, attack{name: "foreign " + host, status: 403, send: "GET /healthz HTTP/1.1\r\nHost: " + host + "\r\n\r\n"})
	}
	attacks = append(attacks,
		attack{"an empty Host", "GET /healthz HTTP/1.1\r\nHost:\r\n\r\n", 400, nil},
		attack{"an empty port", "GET /healthz HTTP/1.1\r\nHost: localhost:\r\n\r\n", 200, kept},
		attack{"Host in two cases", "GET /healthz HTTP/1.1\r\nHost: localhost\r\nhOST: evil.example\r\n\r\n", 400, nil},
		attack{"Host with a blank before the colon", "GET /healthz HTTP/1.1\r\nHost : localhost\r\n\r\n", 400, nil},
		attack{"Host and its fold", "GET /healthz HTTP/1.1\r\nHost: localhost\r\n .evil.example\r\n\r\n", 400, nil},
		attack{"no Host, but a header that names one", "GET /healthz HTTP/1.1\r\nX-Forwarded-Host: localhost\r\n\r\n", 400, nil},
		attack{"X-Forwarded-Host", "GET /healthz HTTP/1.1\r\nHost: evil.example\r\nX-Forwarded-Host: localhost\r\nForwarded: host=localhost\r\n\r\n", 403, nil},
		attack{"HTTP/1.0 without Host", "GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", 200, kept},
		attack{"an origin that only begins like the router's", "GET /healthz HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost.evil.example\r\n\r\n", 403, nil},
		attack{"an origin with user info", "GET /healthz HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost@evil.example\r\n\r\n", 403, nil},
		attack{"the origin null", "GET /healthz HTTP/1.1\r\nHost: localhost\r\nOrigin: null\r\n\r\n", 403, nil},
		attack{"an origin without a scheme", "GET /healthz HTTP/1.1\r\nHost: localhost\r\nOrigin: localhost\r\n\r\n", 403, nil},
		attack{"two origins", "GET /healthz HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\nOrigin: http://evil.example\r\n\r\n", 400, nil},
	)
	launch(t, attacks)
}

func TestAttackTargets(t *testing.T) {
	var attacks []attack
	for _, name := range []string{"%00", "a%00b", "..%2f..%2fetc", "%2e%2e", "..", ".", "%2E", "%c0%af", "%c0%ae%c0%ae", "%e0%80%af", "%f0%80%80%af", "%ff", "%ed%a0%80", "%zz", "%", "%4", "%u002e", "a%2Fb", "a%5cb", "a\\b", "a%20b", "a%0d%0aX:y", "%e2%80%ae", "%25", "%252e%252e",
		"a:b", "a;b", "a@b", "a*", "a%3fb", "a%23b", strings.Repeat("a", 300), strings.Repeat("%61", 300)} {
		attacks = append(attacks, attack{name: name, status: 400, behind: kept, send: "GET /v1/topics/" + name + "/events HTTP/1.1\r\n" + attackHost + "\r\n"})
	}
	for _, target := range []string{"//healthz", "/./healthz", "/x/../healthz", "/healthz/", "/healthz/.", "/healthz;x", "/healthz%20", "/%68ealthz", "/healthz%00", "/HEALTHZ", "/v1//topics", "//evil.example/healthz", "/\\evil.example/healthz", "/http://localhost/healthz",
		"/v1/topics/orders/events/../../../../etc/passwd", "/%2e%2e/healthz", "/v1/topics/orders%2fevents/x/y/z"} {
		attacks = append(attacks, attack{name: target, status: 404, behind: kept, send: "GET " + target + " HTTP/1.1\r\n" + attackHost + "\r\n"})
	}
	for _, query := range []string{"x", "limit=1&limit=1", "limit=1&li%6dit=1", "limit=%00", "%00=1", "limit=1;limit=2", "limit=%zz", "limit=-1", "limit=99999999999999999999", "limit=0x1", "limit=1e1", "after=../../x", "after=%ff", "wait=1h", "wait=-1s", "wait=1e9", "filter=" + strings.Repeat("(", 2000), "access_token=x", "since=0000-00-00", "since=9999999999999999999s"} {
		attacks = append(attacks, attack{name: "?" + query, status: 400, behind: kept, send: "GET /v1/topics/orders/events?" + query + " HTTP/1.1\r\n" + attackHost + "\r\n"})
	}
	launch(t, attacks)
}

func TestAttackHopByHop(t *testing.T) {
	const get = "GET /healthz HTTP/1.1\r\n" + attackHost
	launch(t, []attack{
		{"h2c upgrade", get + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n", 200, kept},
		{"h2c upgrade with a body", attackPost + "Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 1\r\n\r\nx", 202, kept},
		{"a WebSocket where there is none", get + "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", 200, kept},
		{"Upgrade: TLS/1.0", get + "Connection: Upgrade\r\nUpgrade: TLS/1.0\r\n\r\n", 200, kept},
		{"Connection names Host", get + "Connection: Host, Content-Length\r\n\r\n", 200, kept},
		{"Connection: keep-alive, close", get + "Connection: keep-alive, close\r\n\r\n", 200, nil},
		{"Expect of something else", attackPost + "Expect: 200-ok\r\nContent-Length: 1\r\n\r\nx", 202, kept},
		{"Expect twice", attackPost + "Expect: 100-continue\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx", 202, kept},
		{"Expect in capitals", attackPost + "Expect: 100-CONTINUE\r\nContent-Length: 1\r\n\r\nx", 202, kept},
		{"Expect without a body", get + "Expect: 100-continue\r\n\r\n", 200, kept},
		{"Expect with chunks", attackPost + "Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", 202, kept},
		{"Expect with too much", attackPost + "Expect: 100-continue\r\nContent-Length: 200000\r\n\r\n", 413, nil},
		{"Expect with a length that is none", attackPost + "Expect: 100-continue\r\nContent-Length: 1x\r\n\r\nx", 400, nil},
		{"Expect with both", attackPost + "Expect: 100-continue\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, nil},
		{"Expect, and a request for the body", attackPost + "Expect: 100-continue\r\nContent-Length: 81\r\n\r\n" + attackInner, 202, kept},
		{"a method by header", get + "X-HTTP-Method-Override: DELETE\r\nX-Method-Override: DELETE\r\n\r\n", 200, kept},
		{"a target by header", get + "X-Original-URL: /v1/topics\r\nX-Rewrite-URL: /v1/topics\r\n\r\n", 200, kept},
		{"many small headers", get + strings.Repeat("A:\r\n", 3500) + "\r\n", 200, kept},
		{"one header of 15 KiB", get + "X-A: " + strings.Repeat("b", 15<<10) + "\r\n\r\n", 200, kept},
		{"one header too long", get + "X-A: " + strings.Repeat("b", 17<<10) + "\r\n\r\n", 431, nil},
		{"a name too long", get + strings.Repeat("b", 17<<10) + ": a\r\n\r\n", 431, nil},
		{"many cookies", get + strings.Repeat("Cookie: a=b\r\n", 5000) + "\r\n", 431, nil},
		{"a chunked request behind a whole one", get + "\r\n" + attackPost + "Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\n", 200, []int{202}},
		{"a range", get + "Range: bytes=0-0," + strings.Repeat("1-,", 3000) + "\r\n\r\n", 200, kept},
		{"half a request behind a whole one", get + "\r\nPOST /v1/topics/orders/events HTTP/1.1\r\n" + attackHost + "Content-Length: 500\r\n\r\n", 200, []int{408}},
		{"bytes that are no request behind a whole one", get + "\r\n\x00\x01\x02\x03\r\n\r\n", 200, []int{400}},
	})
}

// An honest client that sends its chunks one by one keeps its connection.
func TestChunksInPartsKeepTheConnection(t *testing.T) {
	_, base := serve(t, Options{Backend: newFake("orders")})
	nc, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(time.Minute))
	r := bufio.NewReader(nc)
	for range 3 {
		// The answer to 100-continue says that the head was read: what follows comes in reads of its own.
		_, _ = io.WriteString(nc, attackPost+"Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n")
		if resp, err := http.ReadResponse(r, nil); err != nil || resp.StatusCode != 100 {
			t.Fatalf("%v %v", resp, err)
		}
		for _, part := range []string{"5;a", "=b\r", "\nab", "cde\r\nA\r\n0123456789", "\r\n0\r\nX-Sum", ": 1\r\n\r", "\n"} {
			if _, err := io.WriteString(nc, part); err != nil {
				t.Fatal(err)
			}
		}
		resp, err := http.ReadResponse(r, nil)
		if err != nil || resp.StatusCode != 202 || resp.Close {
			t.Fatalf("%v %v", resp, err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
	}
}

// FuzzChunks compares with the standard library's reader: what is taken has the same data and the same end there, and
// how the bytes are cut into reads makes no difference.
func FuzzChunks(f *testing.F) {
	for _, s := range []string{"0\r\n\r\n", "1\r\nx\r\n0\r\n\r\n", "a;b=\"c\"\r\n0123456789\r\n0;d\r\nX-A: b\r\n\r\nGET", "1 \r\nx\r\n0\r\n\r\n", "0\r\n\n", "00000000000000001\r\n", "1\r\nx\n0\r\n\r\n"} {
		f.Add([]byte(s), uint8(1))
	}
	f.Fuzz(func(t *testing.T, b []byte, step uint8) {
		end := func(step int) (int, error) {
			c := chunks{at: chunkSize}
			for i := 0; i < len(b); i += step {
				part := b[i:min(len(b), i+step)]
				for j := range part { // the end is at one byte
					if err := c.feed(part[j:j+1], 4096); err != nil {
						return 0, err
					}
					if c.at == noChunks {
						return i + j + 1, nil
					}
				}
			}
			return 0, io.ErrUnexpectedEOF
		}
		whole := chunks{at: chunkSize}
		wholeErr := whole.feed(b, 4096)
		n, err := end(max(1, int(step)))
		if (wholeErr == nil && whole.at == noChunks) != (err == nil) || (wholeErr != nil) != errors.Is(err, errChunks) {
			t.Fatalf("at once: %v, in parts: %v", wholeErr, err)
		}
		if err != nil {
			return
		}
		const head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
		resp, err := http.ReadResponse(bufio.NewReader(io.MultiReader(strings.NewReader(head), bytes.NewReader(b[:n]))), nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Fatalf("%q is taken to %d; net/http says %v", b, n, err)
		}
	})
}
