package httpapi

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/access"
	"github.com/valyala/fasthttp"
)

// selfSigned is a certificate for 127.0.0.1 and localhost, which may be a client's too.
func selfSigned(t *testing.T, name string) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, pool
}

// serveFaces starts a server on several faces of loopback and returns their addresses. The faces' Listeners are made here.
func serveFaces(t *testing.T, o Options, faces ...Face) (*Server, []string) {
	t.Helper()
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	var addrs []string
	for i := range faces {
		if faces[i].Listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		addrs = append(addrs, faces[i].Listener.Addr().String())
	}
	done := make(chan error, 1)
	go func() { done <- s.ServeFaces(context.Background(), faces...) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s, addrs
}

func tlsFace(t *testing.T) (Face, *tls.Config) {
	cert, pool := selfSigned(t, "router")
	return Face{TLS: &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}, MinVersion: tls.VersionTLS12}},
		&tls.Config{RootCAs: pool, ServerName: "localhost"}
}

func dialTLS(t *testing.T, addr string, c *tls.Config) *tls.Conn {
	t.Helper()
	nc, err := tls.Dial("tcp", addr, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(20 * time.Second))
	return nc
}

// answer reads one answer.
func answer(t *testing.T, r *bufio.Reader, method string) (*http.Response, string) {
	t.Helper()
	res, err := http.ReadResponse(r, &http.Request{Method: method})
	if err != nil {
		t.Fatal("no answer: ", err)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	return res, string(body)
}

// The hardening looks at the bytes of requests, which TLS must not hide: what plain connections are refused for, these
// are too, and a connection that was not at fault goes on.
func TestHardeningIsBehindTLS(t *testing.T) {
	face, client := tlsFace(t)
	_, addrs := serveFaces(t, Options{Backend: newFake("orders")}, face)
	for name, send := range map[string]string{
		"bare LF":      "GET /healthz HTTP/1.1\nHost: localhost\r\n\r\n",
		"two lengths":  "POST /v1/topics/orders/events HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
		"both lengths": "POST /v1/topics/orders/events HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"bare LF in a chunk": "POST /v1/topics/orders/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n" +
			"2\r\n{}\r\n0\r\nx: y\n\r\n",
	} {
		nc := dialTLS(t, addrs[0], client)
		r := bufio.NewReader(nc)
		_, _ = io.WriteString(nc, send+"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
		res, body := answer(t, r, "POST")
		if res.StatusCode != 400 || res.Header.Get("Strict-Transport-Security") == "" {
			t.Errorf("%s: %d %s, HSTS %q", name, res.StatusCode, body, res.Header.Get("Strict-Transport-Security"))
		}
		if b, err := io.ReadAll(r); err != nil || len(b) > 0 {
			t.Errorf("%s: a second answer %q, %v", name, b, err)
		}
	}
	nc := dialTLS(t, addrs[0], client)
	r := bufio.NewReader(nc)
	for range 2 {
		_, _ = io.WriteString(nc, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
		if res, _ := answer(t, r, "GET"); res.StatusCode != 200 || res.Header.Get("Strict-Transport-Security") != "max-age=31536000" {
			t.Errorf("%d, HSTS %q", res.StatusCode, res.Header.Get("Strict-Transport-Security"))
		}
	}
	if nc.ConnectionState().NegotiatedProtocol != "" {
		t.Errorf("without ALPN the protocol is %q", nc.ConnectionState().NegotiatedProtocol)
	}
}

func TestPlainRequestOnTLSIsTold(t *testing.T) {
	face, _ := tlsFace(t)
	s, addrs := serveFaces(t, Options{Backend: newFake()}, face)
	res, err := http.Get("http://" + addrs[0] + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, _ := io.ReadAll(res.Body); res.StatusCode != 400 || !strings.Contains(string(b), "HTTPS") || s.HandshakesFailed() != 1 {
		t.Errorf("%d %s, %d handshakes failed", res.StatusCode, b, s.HandshakesFailed())
	}
}

// A request that waits for events ends when its client goes, also where the client says goodbye in TLS first.
func TestClientGoneIsSeenBehindTLS(t *testing.T) {
	face, client := tlsFace(t)
	s, addrs := serveFaces(t, Options{Backend: newFake("orders")}, face)
	nc := dialTLS(t, addrs[0], client)
	if err := nc.Handshake(); err != nil {
		t.Fatal(err)
	}
	var c *conn
	eventually(t, "the connection is there", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		for c = range s.conns {
		}
		return c != nil
	})
	if c.hungUp() {
		t.Error("an open connection counts as hung up")
	}
	if err := nc.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "hung up", func() bool { return s.Connections() == 0 || c.hungUp() })

	// A stream is read for its end.
	nc = dialTLS(t, addrs[0], client)
	_, _ = io.WriteString(nc, "GET /v1/topics/orders/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
	res, err := http.ReadResponse(bufio.NewReader(nc), nil)
	if err != nil || res.StatusCode != 200 || res.Header.Get("Strict-Transport-Security") == "" {
		t.Fatal(res, err)
	}
	eventually(t, "a stream", func() bool { return s.Streams() == 1 })
	_ = nc.Close()
	eventually(t, "no stream", func() bool { return s.Streams() == 0 })
}

func TestDrainOverTLS(t *testing.T) {
	face, client := tlsFace(t)
	s, addrs := serveFaces(t, Options{Backend: newFake("orders"), DrainGrace: 50 * time.Millisecond}, face)
	half := dialTLS(t, addrs[0], client)
	_, _ = io.WriteString(half, "POST /v1/topics/orders/events HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
	silent, err := net.Dial("tcp", addrs[0]) // not even a handshake
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	eventually(t, "two connections", func() bool { return s.Connections() == 2 })
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	if res, _ := answer(t, bufio.NewReader(half), "POST"); res.StatusCode != 503 {
		t.Errorf("the half-sent request is answered with %d", res.StatusCode)
	}
}

func TestRedirect(t *testing.T) {
	o := Options{Backend: newFake(), SecurePort: 8443, Secure: func(h string) bool { return h == "events.example.com" || h == "::1" },
		Challenge: func(_ context.Context, host, path string) ([]byte, bool) {
			return []byte(host + path), strings.HasSuffix(path, "/token")
		}}
	_, addrs := serveFaces(t, o, Face{Serves: Redirect})
	for _, x := range []struct {
		send, location string
		status         int
	}{
		{"GET /v1/topics?x=1 HTTP/1.1\r\nHost: events.example.com:80\r\n\r\n", "https://events.example.com:8443/v1/topics?x=1", 308},
		{"GET http://events.example.com/a HTTP/1.1\r\nHost: events.example.com\r\n\r\n", "https://events.example.com:8443/a", 308},
		{"GET //evil.example/ HTTP/1.1\r\nHost: events.example.com\r\n\r\n", "https://events.example.com:8443//evil.example/", 308},
		{"GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", "https://[::1]:8443/", 308},
		{"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", "", 421},
		{"GET / HTTP/1.1\r\nHost: evil.example\r\nX-Forwarded-Host: events.example.com\r\n\r\n", "", 421},
		{"GET / HTTP/1.1\r\nHost: events.example.com@evil.example\r\n\r\n", "", 400},
		{"GET / HTTP/1.1\r\nHost: a\r\nHost: events.example.com\r\n\r\n", "", 400},
		{"GET /.well-known/acme-challenge/token HTTP/1.1\r\nHost: a.example\r\n\r\n", "", 200},
		{"POST / HTTP/1.1\r\nHost: events.example.com\r\nContent-Length: 1000000\r\n\r\n", "https://events.example.com:8443/", 308}, // never sent
		{"POST / HTTP/1.1\r\nHost: events.example.com\r\nContent-Length: 2\r\n\r\n{}", "https://events.example.com:8443/", 308},
	} {
		nc, err := net.Dial("tcp", addrs[0])
		if err != nil {
			t.Fatal(err)
		}
		_ = nc.SetDeadline(time.Now().Add(time.Minute))
		_, _ = io.WriteString(nc, x.send)
		res, body := answer(t, bufio.NewReader(nc), "GET")
		if res.StatusCode != x.status || res.Header.Get("Location") != x.location || x.status == 200 && body != "a.example/.well-known/acme-challenge/token" {
			t.Errorf("%q: %d %q %s", x.send, res.StatusCode, res.Header.Get("Location"), body)
		}
		nc.Close()
	}
}

// What requestOf does relies on fasthttp passing the header of its own RequestCtx.
func TestHeaderIsInsideItsRequest(t *testing.T) {
	ctx := &fasthttp.RequestCtx{}
	if requestOf(&ctx.Request.Header) != ctx {
		t.Fatal("requestOf finds another request")
	}
	s, url := serve(t, Options{Backend: newFake("orders")})
	for range 2 { // the connection is kept
		res, body := do(t, "POST", url+"/v1/topics/orders/events", fmt.Sprintf("%q", strings.Repeat("x", 100_000)), "Content-Type", "application/json")
		if res.StatusCode != 202 {
			t.Fatal(res.StatusCode, body)
		}
	}
	if used, _ := s.BodiesInFlight(); used != 0 {
		t.Errorf("%d bytes stay reserved", used)
	}
}

func policyOf(t *testing.T, text string) *access.Guard {
	t.Helper()
	policy, err := access.ParsePolicy("access.yaml", []byte(text), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	g, err := access.New(access.Options{Policy: policy, Token: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// The certificate that the handshake has verified is who asks, also for a body that is judged before it is read.
func TestClientCertificateIsThePrincipal(t *testing.T) {
	face, _ := tlsFace(t)
	pair, pool := selfSigned(t, "edge-7")
	face.TLS.ClientAuth, face.TLS.ClientCAs = tls.VerifyClientCertIfGiven, pool
	_, addrs := serveFaces(t, Options{Backend: newFake("orders"), Guard: policyOf(t, "version: 1\ncertificates: [{subject: \"edge-*\", roles: [publisher]}]\n")}, face)
	post := func(c *tls.Config, body string) int {
		t.Helper()
		tr := &http.Transport{TLSClientConfig: c}
		defer tr.CloseIdleConnections()
		res, err := (&http.Client{Transport: tr, Timeout: 20 * time.Second}).Post("https://"+addrs[0]+"/v1/topics/orders/events", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		return res.StatusCode
	}
	for _, body := range []string{"{}", `"` + strings.Repeat("x", 200_000) + `"`} {
		if code := post(&tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{pair}}, body); code != 202 {
			t.Errorf("with a certificate: %d", code)
		}
		if code := post(&tls.Config{InsecureSkipVerify: true}, body); code != 401 {
			t.Errorf("without: %d", code)
		}
	}
}

// eventually waits for what another goroutine brings about.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !is(); {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 20 s", what)
		}
		<-time.After(2 * time.Millisecond)
	}
}
