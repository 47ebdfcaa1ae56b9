package edge

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// A made is a certificate with its key.
type made struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// make1 makes a certificate; without an issuer it is an authority.
func make1(t *testing.T, issuer *made, until time.Time, names ...string) made {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: names[0]}, NotBefore: time.Now().Add(-time.Hour), NotAfter: until,
		DNSNames: names, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	parent, signer := c, crypto.Signer(key)
	if issuer == nil {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage, c.DNSNames = true, true, x509.KeyUsageCertSign, nil
	} else {
		parent, signer = issuer.cert, issuer.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return made{c, key}
}

func (m made) certPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: m.cert.Raw})
}

func (m made) keyPEM(t *testing.T) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(m.key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func (m made) pair() tls.Certificate {
	return tls.Certificate{Certificate: [][]byte{m.cert.Raw}, PrivateKey: m.key}
}

func write(t *testing.T, path string, text []byte) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// put writes a pair and names its files.
func put(t *testing.T, dir, name string, m made) Pair {
	t.Helper()
	return Pair{write(t, filepath.Join(dir, name+".crt"), m.certPEM()), write(t, filepath.Join(dir, name+".key"), m.keyPEM(t))}
}

// A text is a log that several goroutines write.
type text struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *text) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *text) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), s)
}

func newEdge(t *testing.T, o Options) (*Edge, *text) {
	t.Helper()
	log := &text{}
	o.Log = slog.New(slog.NewTextHandler(log, nil))
	e, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return e, log
}

// handshake connects to e as a client and says what each side knows.
func handshake(t *testing.T, e *Edge, client *tls.Config) (tls.ConnectionState, tls.ConnectionState, error) {
	t.Helper()
	return handshakeAt(t, e.Config(), client)
}

func handshakeAt(t *testing.T, server, client *tls.Config) (tls.ConnectionState, tls.ConnectionState, error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	type result struct {
		state tls.ConnectionState
		err   error
	}
	served := make(chan result, 1)
	go func() {
		nc, err := ln.Accept()
		if err != nil {
			served <- result{err: err}
			return
		}
		defer nc.Close()
		_ = nc.SetDeadline(time.Now().Add(time.Minute))
		c := tls.Server(nc, server)
		if err = c.Handshake(); err == nil {
			_, err = c.Write([]byte("x")) // with it go the tickets of TLS 1.3
		}
		served <- result{c.ConnectionState(), err}
	}()
	nc, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(time.Minute))
	c := tls.Client(nc, client)
	var b [1]byte
	_, err = c.Read(b[:])
	got := <-served
	if err == nil {
		err = got.err
	}
	return c.ConnectionState(), got.state, err
}

// nameShown is the first name of the certificate that a client is shown.
func nameShown(t *testing.T, e *Edge, server string) string {
	t.Helper()
	seen, _, err := handshake(t, e, &tls.Config{ServerName: server, InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	return nameOf(seen.PeerCertificates[0]) + "/" + seen.PeerCertificates[0].SerialNumber.String()
}

func TestCertificateByName(t *testing.T) {
	dir, far := t.TempDir(), time.Now().Add(time.Hour)
	ca := make1(t, nil, far, "ca")
	a, wild, b := make1(t, &ca, far, "a.example.com"), make1(t, &ca, far, "*.example.com"), make1(t, &ca, far, "b.example.org", "c.example.org")
	put(t, filepath.Join(dir, "folder"), "wild", wild)
	write(t, filepath.Join(dir, "folder", "b", "fullchain.pem"), b.certPEM())
	write(t, filepath.Join(dir, "folder", "b", "privkey.pem"), b.keyPEM(t))
	e, _ := newEdge(t, Options{Pairs: []Pair{put(t, dir, "a", a), {Cert: filepath.Join(dir, "folder")}}})
	for server, want := range map[string]made{"a.example.com": a, "A.example.com": a, "x.example.com": wild, "c.example.org": b, "x.y.example.com": a, "": a} {
		if got := nameShown(t, e, server); !strings.HasSuffix(got, "/"+want.cert.SerialNumber.String()) {
			t.Errorf("%q is shown %s", server, got)
		}
	}
	for host, want := range map[string]bool{"a.example.com": true, "z.example.com": true, "c.example.org": true, "evil.example": false, "": false, "x.y.example.com": false} {
		if e.Covers(host) != want {
			t.Errorf("Covers(%q) is %v", host, !want)
		}
	}
	if n := len(e.Expiries()); n != 3 {
		t.Errorf("%d expiries", n)
	}
}

func TestOnlySafeVersionsAndHTTP1(t *testing.T) {
	far := time.Now().Add(time.Hour)
	ca := make1(t, nil, far, "ca")
	e, _ := newEdge(t, Options{Pairs: []Pair{put(t, t.TempDir(), "a", make1(t, &ca, far, "localhost"))}})
	if _, _, err := handshake(t, e, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}); err == nil {
		t.Error("TLS 1.1 was taken")
	}
	seen, _, err := handshake(t, e, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2", "http/1.1"}})
	if err != nil || seen.Version != tls.VersionTLS13 || seen.NegotiatedProtocol != "http/1.1" {
		t.Errorf("%x %q %v", seen.Version, seen.NegotiatedProtocol, err)
	}
	if seen, _, err = handshake(t, e, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}); err != nil || seen.Version != tls.VersionTLS12 {
		t.Errorf("TLS 1.2: %x %v", seen.Version, err)
	}
}

// TestOneProtocol: a listener of another protocol speaks that alone, to who says so or says nothing, whoever's certificates it
// asks for.
func TestOneProtocol(t *testing.T) {
	dir, far := t.TempDir(), time.Now().Add(time.Hour)
	ca, next := make1(t, nil, far, "ca"), make1(t, nil, far, "next")
	client := make1(t, &ca, far, "client")
	file := write(t, filepath.Join(dir, "ca.pem"), ca.certPEM())
	o := Options{Pairs: []Pair{put(t, dir, "server", make1(t, &ca, far, "localhost"))}}
	open, _ := newEdge(t, o)
	o.ClientCA = file
	asks, _ := newEdge(t, o)
	c := &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{client.pair()}}
	mqtt := asks.ConfigOf("mqtt")
	for _, server := range []*tls.Config{open.ConfigOf("mqtt"), mqtt} {
		for i, said := range [][]string{{"http/1.1", "mqtt"}, {}, {"http/1.1"}, {"acme-tls/1"}} {
			c.NextProtos = said
			spoken := ""
			if i == 0 {
				spoken = "mqtt"
			}
			seen, _, err := handshakeAt(t, server, c)
			if (err == nil) != (i < 2) || err == nil && seen.NegotiatedProtocol != spoken {
				t.Errorf("who speaks %q is spoken to in %q, %v", said, seen.NegotiatedProtocol, err)
			}
		}
	}
	c.NextProtos = []string{"http/1.1"}
	if _, seen, err := handshake(t, asks, c); err != nil || len(seen.VerifiedChains) == 0 {
		t.Errorf("at the listener of HTTP: %v", err)
	}
	write(t, file, next.certPEM())
	asks.look(nil)
	c.NextProtos = nil
	for _, server := range []*tls.Config{asks.Config(), mqtt} {
		if _, _, err := handshakeAt(t, server, c); err == nil {
			t.Error("a client of an authority that is taken back comes in")
		}
	}
}

// A change is taken while the router runs; half of one is not, is told once, and the old certificate is shown on.
func TestCertificatesAreReadAgain(t *testing.T) {
	dir, far := t.TempDir(), time.Now().Add(time.Hour)
	ca := make1(t, nil, far, "ca")
	first, second, third := make1(t, &ca, far, "a.example.com"), make1(t, &ca, far, "a.example.com"), make1(t, &ca, far, "a.example.com")
	folder := filepath.Join(dir, "folder")
	put(t, folder, "f", make1(t, &ca, far, "b.example.com"))
	files := put(t, dir, "a", first)
	e, log := newEdge(t, Options{Pairs: []Pair{files, {Cert: folder}}})
	shows := func(m made) bool {
		return strings.HasSuffix(nameShown(t, e, "a.example.com"), "/"+m.cert.SerialNumber.String())
	}
	told := map[string]bool{}
	const complaint = "what was read before stays"

	whole := second.certPEM()
	for name, cert := range map[string][]byte{"the certificate without its key": whole, "half of it": whole[:len(whole)/2], "nothing": nil} {
		write(t, files.Cert, cert)
		before := log.count(complaint)
		told = e.look(map[string]bool{}) // each as if it were the first: two of them are told in the same words
		told = e.look(told)
		if !shows(first) {
			t.Errorf("%s: the old one is not shown", name)
		}
		if n := log.count(complaint) - before; n != 1 {
			t.Errorf("%s: told %d times", name, n)
		}
	}
	if log.count("PRIVATE") > 0 {
		t.Error("the log shows a key")
	}
	put(t, dir, "a", second)
	if told = e.look(told); !shows(second) || len(told) != 0 {
		t.Errorf("the new pair is not shown, or still told of: %v", told)
	}
	put(t, folder, "g", third) // one more in the folder
	if e.look(told); len(e.Expiries()) != 3 {
		t.Errorf("%d certificates with one more in the folder", len(e.Expiries()))
	}
	if err := os.Remove(filepath.Join(folder, "f.crt")); err != nil {
		t.Fatal(err)
	}
	if e.look(told); len(e.Expiries()) != 2 {
		t.Errorf("%d certificates with one less", len(e.Expiries()))
	}
}

func TestWatchLooksAndEnds(t *testing.T) {
	dir, far := t.TempDir(), time.Now().Add(time.Hour)
	ca := make1(t, nil, far, "ca")
	e, _ := newEdge(t, Options{Pairs: []Pair{put(t, dir, "a", make1(t, &ca, far, "a.example.com"))}, Look: time.Millisecond})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); e.Watch(ctx, nil) }()
	put(t, dir, "a", make1(t, &ca, far, "b.example.com"))
	for end := time.Now().Add(time.Minute); !e.Covers("b.example.com"); {
		if time.Now().After(end) {
			t.Fatal("the change was not seen")
		}
		<-time.After(time.Millisecond)
	}
	cancel()
	<-done
}

func TestEndOfCertificatesIsTold(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	ca := make1(t, nil, now.Add(time.Hour), "ca")
	pairs := []Pair{put(t, dir, "a", make1(t, &ca, now.Add(13*24*time.Hour), "soon.example.com")),
		put(t, dir, "b", make1(t, &ca, now.Add(15*24*time.Hour), "later.example.com"))}
	e, log := newEdge(t, Options{Pairs: pairs, Now: func() time.Time { return now }})
	for range 3 {
		e.warn()
	}
	if log.count("expires soon") != 1 || log.count("soon.example.com") != 1 {
		t.Errorf("told %d times", log.count("expires soon"))
	}
	now = now.Add(25 * time.Hour)
	if e.warn(); log.count("expires soon") != 3 {
		t.Errorf("a day later told %d times", log.count("expires soon"))
	}
	now = now.Add(20 * 24 * time.Hour)
	if e.warn(); log.count("has expired") != 2 {
		t.Errorf("of the end told %d times", log.count("has expired"))
	}
}

func TestBadFilesAreRefusedAtTheStart(t *testing.T) {
	dir, far := t.TempDir(), time.Now().Add(time.Hour)
	ca := make1(t, nil, far, "ca")
	good := put(t, dir, "good", make1(t, &ca, far, "a.example.com"))
	other := put(t, dir, "other", make1(t, &ca, far, "a.example.com"))
	for want, o := range map[string]Options{
		"there is no certificate":   {},
		"does not match":            {Pairs: []Pair{{good.Cert, other.Key}}},
		"no such file":              {Pairs: []Pair{{good.Cert, filepath.Join(dir, "none")}}},
		"holds no pair":             {Pairs: []Pair{{Cert: t.TempDir()}}},
		"names a folder of pairs":   {Pairs: []Pair{{Cert: filepath.Join(dir, "none")}}},
		"want PEM":                  {Pairs: []Pair{good}, ClientCA: write(t, filepath.Join(dir, "ca.pem"), []byte("nonsense"))},
		"want certificates only":    {Pairs: []Pair{good}, ClientCA: good.Key},
		"cannot have a certificate": {ACME: &ACMEOptions{Hosts: []string{"*.example.com"}, Cache: dir}},
		"is not an https URL":       {ACME: &ACMEOptions{Hosts: []string{"a.example.com"}, Directory: "http://x", Cache: dir}},
	} {
		if _, err := New(o); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "-----") {
			t.Errorf("want %q: %v", want, err)
		}
	}
}

func TestClientCertificates(t *testing.T) {
	dir, far := t.TempDir(), time.Now().Add(time.Hour)
	ca, otherCA := make1(t, nil, far, "ca"), make1(t, nil, far, "other")
	client, stranger, ended := make1(t, &ca, far, "client"), make1(t, &otherCA, far, "stranger"), make1(t, &ca, time.Now().Add(-time.Minute), "ended")
	pair := put(t, dir, "server", make1(t, &ca, far, "localhost"))
	file := write(t, filepath.Join(dir, "ca.pem"), ca.certPEM())
	for _, optional := range []bool{false, true} {
		e, _ := newEdge(t, Options{Pairs: []Pair{pair}, ClientCA: file, OptionalClientCerts: optional})
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			for name, x := range map[string]struct {
				cert []tls.Certificate
				good bool
			}{
				"good": {[]tls.Certificate{client.pair()}, true}, "none": {nil, optional},
				"of another authority": {[]tls.Certificate{stranger.pair()}, false}, "expired": {[]tls.Certificate{ended.pair()}, false},
			} {
				c := &tls.Config{InsecureSkipVerify: true, MaxVersion: version}
				if x.cert != nil { // shown whatever the server says that it takes
					c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &x.cert[0], nil }
				}
				_, seen, err := handshake(t, e, c)
				if (err == nil) != x.good || x.good && x.cert != nil && !slices.ContainsFunc(seen.VerifiedChains, func(c []*x509.Certificate) bool { return c[0].Equal(client.cert) }) {
					t.Errorf("optional %v, TLS %x, %s: %v", optional, version, name, err)
				}
			}
		}
	}
}

// Whose authority is taken out of the file comes in no more, also not by a session from before.
func TestAuthoritiesAreReadAgain(t *testing.T) {
	dir, far := t.TempDir(), time.Now().Add(time.Hour)
	ca, next := make1(t, nil, far, "ca"), make1(t, nil, far, "next")
	client := make1(t, &ca, far, "client")
	file := write(t, filepath.Join(dir, "ca.pem"), ca.certPEM())
	e, log := newEdge(t, Options{Pairs: []Pair{put(t, dir, "server", make1(t, &ca, far, "localhost"))}, ClientCA: file})
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(fmt.Sprintf("%x", version), func(t *testing.T) {
			write(t, file, ca.certPEM())
			e.look(nil)
			c := &tls.Config{InsecureSkipVerify: true, ServerName: "localhost", Certificates: []tls.Certificate{client.pair()},
				ClientSessionCache: tls.NewLRUClientSessionCache(4), MaxVersion: version}
			for i := range 2 {
				_, seen, err := handshake(t, e, c)
				if err != nil || seen.DidResume != (i == 1) || len(seen.VerifiedChains) == 0 {
					t.Fatalf("handshake %d: resumed %v, %v", i, seen.DidResume, err)
				}
			}
			write(t, file, nil) // half written
			e.look(nil)
			if _, _, err := handshake(t, e, c); err != nil || log.count("cannot be used") == 0 {
				t.Fatalf("with a file that cannot be used: %v", err)
			}
			write(t, file, next.certPEM())
			e.look(nil)
			if _, _, err := handshake(t, e, c); err == nil {
				t.Fatal("a session of an authority that is taken back goes on")
			}
		})
	}
}
