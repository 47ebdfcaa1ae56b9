package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"
	"github.com/miekg/dns"

	"github.com/millrace/millrace/engine/edge"
	"github.com/millrace/millrace/engine/event"
)

// certified writes a certificate of its own authority, for a server at localhost and for a client of that name.
func certified(t *testing.T, name string) (certFile, keyFile string, pair tls.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(48 * time.Hour), DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	priv, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for path, b := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: priv}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// asker asks a router's addresses; dial may be nil.
func asker(t *testing.T, c *tls.Config, dial func(context.Context, string, string) (net.Conn, error)) *http.Client {
	tr := &http.Transport{TLSClientConfig: c, DialContext: dial}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func ask(t *testing.T, c *http.Client, method, url, body string, headers ...string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

// Administration is answered at its own address; at the public one it is as if it did not exist. Both are one server.
func TestAdminListen(t *testing.T) {
	cert, key, _ := certified(t, "router")
	p := newProcess(t)
	p.o.autoCreate = true
	p.o.edge = edgeOptions{certs: []string{cert}, keys: []string{key}, admin: "127.0.0.1:0", clientCerts: "require"}
	p.start()
	defer func() { p.stop() }()
	public := "https://" + p.r.ln.Addr().String()
	admin := "http://" + p.r.faces[1].Listener.Addr().String()
	c := asker(t, &tls.Config{InsecureSkipVerify: true}, nil)
	for _, x := range []struct {
		method, path, body string
		public, admin      int
	}{
		{"POST", "/v1/topics/orders/events", `{"total":1}`, 202, 202},
		{"GET", "/v1/topics/orders/events", "", 200, 200},
		{"GET", "/healthz", "", 200, 200},
		{"GET", "/v1/topics", "", 200, 200},
		{"GET", "/metrics", "", 404, 200},
		{"GET", "/v1/rules", "", 404, 200},
		{"GET", "/v1/keys", "", 404, 200},
		{"POST", "/v1/topics", `{"name":"a"}`, 405, 201},
		{"DELETE", "/v1/topics/a", "", 405, 204},
		{"POST", "/v1/subscriptions/none/purge", `{"all":true}`, 404, 404},
		{"GET", "/v1/subscriptions/none/deadletters", "", 404, 404},
	} {
		code, body := ask(t, c, x.method, public+x.path, x.body)
		if code != x.public || code == 404 && !strings.Contains(body, "there is nothing at") {
			t.Errorf("public: %s %s: %d %s", x.method, x.path, code, body)
		}
		if code, body = ask(t, c, x.method, admin+x.path, x.body); code != x.admin || strings.Contains(body, "there is nothing at") {
			t.Errorf("admin: %s %s: %d %s", x.method, x.path, code, body)
		}
	}
	if _, body := ask(t, c, "GET", admin+"/metrics", ""); !strings.Contains(body, "\nmillrace_connections ") ||
		!strings.Contains(body, `millrace_limit_refusals_total{limit="memory"} 0`) || !strings.Contains(body, `millrace_tls_certificate_expiry_seconds{name="localhost"} 17`) {
		t.Errorf("the metrics lack the edge's:\n%.2000s", body)
	}
	p.stop()
	if _, err := net.Dial("tcp", strings.TrimPrefix(admin, "http://")); err == nil {
		t.Error("the address of administration is open after the drain")
	}
}

// The socket of the file system is the operator's alone, and is taken over from a router that has gone.
func TestAdminOnASocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "mr") // a socket's path may have 100 bytes
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "admin.sock")
	left, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	left.(*net.UnixListener).SetUnlinkOnClose(false)
	left.Close()
	p := newProcess(t)
	p.o.edge = edgeOptions{admin: unixPrefix + path}
	p.start()
	defer func() { p.stop() }()
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	c := asker(t, nil, func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", path) })
	if code, body := ask(t, c, "GET", "http://localhost/v1/rules", ""); code != 200 {
		t.Errorf("%d %s", code, body)
	}
	if code, _ := p.call("GET", "/v1/rules", "", ""); code != 404 {
		t.Errorf("public: %d", code)
	}
	if _, err := listenAt(t.Context(), unixPrefix+path); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("a socket that answers was taken over: %v", err)
	}
}

// A router gets its certificate from a real ACME server (Pebble, Let's Encrypt's own for tests) by either challenge, keeps
// it, and needs the authority no more at the next start.
func TestACME(t *testing.T) {
	t.Setenv("PEBBLE_VA_NOSLEEP", "1")
	t.Setenv("PEBBLE_WFE_NONCEREJECT", "0")
	names := namesHere(t)
	dirCert, _, dirPair := certified(t, "directory")
	for _, challenge := range []string{"tls-alpn-01", "http-01"} {
		t.Run(challenge, func(t *testing.T) {
			authority := httptest.NewUnstartedServer(nil)
			authority.TLS = &tls.Config{Certificates: []tls.Certificate{dirPair}}
			authority.StartTLS()
			defer authority.Close()
			p := newProcess(t)
			acme := edge.ACMEOptions{Hosts: []string{"events.example.com"}, Directory: authority.URL + wfe.DirectoryPath}
			p.o.edge = edgeOptions{redirect: "127.0.0.1:0", clientCerts: "require", acme: acme, acmeCA: dirCert}
			proxy := &connectProxy{}
			if challenge == "http-01" { // by the proxy and the authorities of the egress policy
				p.o.edge.acmeCA, p.o.egress = "", filepath.Join(t.TempDir(), "egress.yaml")
				policy := fmt.Sprintf("version: 1\nproxy: {url: %q}\ntls: {ca: [%q]}\n", proxy.start(t), dirCert)
				if err := os.WriteFile(p.o.egress, []byte(policy), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			p.o.hosts = []string{"events.example.com"}
			r, err := openRouter(t.Context(), p.o)
			if err != nil {
				t.Fatal(err)
			}
			port := func(i int) int { return int(netip.MustParseAddrPort(r.faces[i].Listener.Addr().String()).Port()) }
			httpPort, tlsPort := 1, port(0)
			if challenge == "http-01" {
				httpPort, tlsPort = port(1), 1
			}
			quiet := log.New(io.Discard, "", 0)
			memory := db.NewMemoryStore()
			authorities := ca.New(quiet, memory, "", "ecdsa", 0, 1, map[string]ca.Profile{"default": {Description: "tests"}})
			front := wfe.New(quiet, memory, va.New(quiet, httpPort, tlsPort, false, names, memory), authorities, []string{"example.org"}, false, false, 0, 0)
			authority.Config.Handler = front.Handler()

			ctx, cancel := context.WithCancel(context.Background())
			ended := make(chan error, 1)
			go func() { ended <- r.run(ctx, nil) }()
			defer func() { cancel(); <-ended }()
			for end := time.Now().Add(30 * time.Second); len(r.edge.Expiries()) == 0; {
				if time.Now().After(end) {
					t.Fatalf("no certificate within 30 s\n%s", p.log)
				}
				<-time.After(5 * time.Millisecond)
			}
			roots := x509.NewCertPool()
			roots.AddCert(authorities.GetRootCert(0).Cert)
			c := asker(t, &tls.Config{RootCAs: roots, ServerName: "events.example.com"}, func(ctx context.Context, network, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, network, r.ln.Addr().String())
			})
			if code, body := ask(t, c, "GET", "https://events.example.com/healthz", ""); code != 200 {
				t.Errorf("%d %s", code, body)
			}
			if asked, want := proxy.only(), authority.Listener.Addr().String(); challenge == "http-01" && asked != want {
				t.Errorf("the proxy was asked for %q; want %s alone", asked, want)
			}
			again, err := edge.New(edge.Options{ACME: &edge.ACMEOptions{Hosts: acme.Hosts, Directory: "https://127.0.0.1:1/", Cache: filepath.Join(p.o.data, "acme"), HTTP: testDialer(t).Client().Transport}})
			if err != nil {
				t.Fatal(err)
			}
			hello := &tls.ClientHelloInfo{ServerName: "events.example.com", SupportedVersions: []uint16{tls.VersionTLS13},
				SignatureSchemes: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256}, SupportedCurves: []tls.CurveID{tls.CurveP256}, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}}
			if _, err := again.Config().GetCertificate(hello); err != nil {
				t.Errorf("the kept certificate is not used: %v", err)
			}
			if hello.ServerName = "other.example.com"; again.Covers(hello.ServerName) {
				t.Error("a name that is not ours is covered")
			}
			if _, err := again.Config().GetCertificate(hello); err == nil {
				t.Error("a certificate for a name that is not ours was asked for")
			}
		})
	}
}

// namesHere is a name server, over TCP, to which every name is this machine.
func namesHere(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &dns.Server{Listener: ln, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(q)
		if q.Question[0].Qtype == dns.TypeA {
			m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.IPv4(127, 0, 0, 1)}}
		}
		_ = w.WriteMsg(m)
	})}
	done := make(chan error, 1)
	go func() { done <- s.ActivateAndServe() }()
	t.Cleanup(func() {
		_ = s.Shutdown()
		<-done
	})
	return ln.Addr().String()
}

// What the flags of sizes say holds for HTTP, for sockets and for the engine.
func TestSizesAreOptions(t *testing.T) {
	p := newProcess(t)
	p.o.autoCreate = true
	p.o.edge.limits = event.Limits{Event: 1000, Body: 4000, Events: 3}
	p.start()
	defer func() { p.stop() }()
	for body, want := range map[string]int{`{}`: 202, `"` + strings.Repeat("x", 1200) + `"`: 413, "1\n2\n3\n": 202, "1\n2\n3\n4\n": 413, `"` + strings.Repeat("x", 5000) + `"`: 413} {
		kind := "application/json"
		if strings.Contains(body, "\n") {
			kind = "application/x-ndjson"
		}
		if code, answer := p.call("POST", "/v1/topics/orders/events", kind, body); code != want {
			t.Errorf("%d bytes: %d %s", len(body), code, answer)
		}
	}
	var out bytes.Buffer
	out.WriteString(p.r.shown())
	if !strings.Contains(out.String(), "1000B an event, 3.9KiB a request, 3 events a request") {
		t.Errorf("serve says\n%s", &out)
	}
}
