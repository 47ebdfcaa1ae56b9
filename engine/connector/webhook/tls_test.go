package webhook

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/egress"
	"github.com/millrace/millrace/engine/event"
)

// An authority signs certificates of the test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  string
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	return issue(t, name, nil, time.Hour)
}

// issue makes a certificate of by, or of itself, for name and 127.0.0.1.
func issue(t *testing.T, name string, by *authority, life time.Duration) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<60))
	if err != nil {
		t.Fatal(err)
	}
	of := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(life),
		DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: by == nil, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	parent, signer := of, key
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, of, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))}
}

func (a *authority) pair() tls.Certificate {
	return tls.Certificate{Certificate: [][]byte{a.cert.Raw}, PrivateKey: a.key}
}

// tlsReceiver answers over TLS as c says.
func tlsReceiver(t *testing.T, c *tls.Config) string {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if len(r.TLS.PeerCertificates) > 0 {
			w.Header().Set("X-Peer", r.TLS.PeerCertificates[0].Subject.CommonName)
		}
	}))
	s.TLS, s.Config.ErrorLog = c, quiet()
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.URL
}

// Authorities, client certificates, versions and pins of a subscription; what fails is named in words and retried.
func TestTLSOptions(t *testing.T) {
	ca, other := newAuthority(t, "ca"), newAuthority(t, "other")
	server, expired, client := issue(t, "server", ca, time.Hour), issue(t, "server", ca, -time.Hour), issue(t, "client", ca, time.Hour)
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	plain := tlsReceiver(t, &tls.Config{Certificates: []tls.Certificate{server.pair()}})
	old := tlsReceiver(t, &tls.Config{Certificates: []tls.Certificate{server.pair()}, MaxVersion: tls.VersionTLS12})
	ancient := tlsReceiver(t, &tls.Config{Certificates: []tls.Certificate{server.pair()}, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11})
	late := tlsReceiver(t, &tls.Config{Certificates: []tls.Certificate{expired.pair()}})
	mutual := tlsReceiver(t, &tls.Config{Certificates: []tls.Certificate{server.pair()}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool})
	trust := egress.TLSOptions{CA: []string{other.pem, ca.pem}}
	with := func(change func(o *egress.TLSOptions)) egress.TLSOptions {
		o := trust
		change(&o)
		return o
	}
	for name, c := range map[string]struct {
		url  string
		o    egress.TLSOptions
		want string
	}{
		"trusted":         {plain, trust, ""},
		"not trusted":     {plain, egress.TLSOptions{}, "signed by unknown authority; if its authority is to be trusted, name it under tls.ca"},
		"other authority": {plain, egress.TLSOptions{CA: []string{other.pem}}, "unknown authority"},
		"expired":         {late, trust, "expired"},
		"other name":      {strings.Replace(plain, "127.0.0.1", "localhost", 1), trust, "the url must have a name that the certificate is for"},
		"version 1.2":     {old, trust, ""},
		"too old":         {old, with(func(o *egress.TLSOptions) { o.MinVersion = "1.3" }), "no version of TLS from tls.minVersion on"},
		"far too old":     {ancient, trust, "protocol version"},
		"pinned": {plain, with(func(o *egress.TLSOptions) {
			o.Pins = []string{egress.PinOf(other.cert).String(), egress.PinOf(server.cert).String()}
		}), ""},
		"authority pinned":   {plain, with(func(o *egress.TLSOptions) { o.Pins = []string{egress.PinOf(ca.cert).String()} }), ""},
		"other pinned":       {plain, with(func(o *egress.TLSOptions) { o.Pins = []string{egress.PinOf(other.cert).String()} }), "has the key " + egress.PinOf(server.cert).String()},
		"client certificate": {mutual, with(func(o *egress.TLSOptions) { o.Certificate, o.PrivateKey = client.pem, pemOf(t, client.key) }), ""},
		"no client":          {mutual, trust, "the receiver wants a client certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, Options{URL: c.url, TLS: c.o})
			err := s.Deliver(t.Context(), delivery("i", order))
			var retry *event.RetryAfter
			switch {
			case c.want == "" && err != nil:
				t.Error(err)
			case c.want != "" && (!errors.As(err, &retry) || !strings.Contains(err.Error(), c.want)):
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

// What the process says of TLS holds for every sink, also for those that are open and have connections.
func TestTLSOptionsOfTheProcess(t *testing.T) {
	ca := newAuthority(t, "ca")
	server := issue(t, "server", ca, time.Hour)
	url := tlsReceiver(t, &tls.Config{Certificates: []tls.Certificate{server.pair()}})
	trust := egress.TLSOptions{CA: []string{ca.pem}}
	d, err := egress.New(egress.Options{AllowPrivate: true, Policy: &egress.Policy{TLS: trust}, Resolver: here{}})
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, Options{URL: strings.Replace(url, "127.0.0.1", "server", 1), Dialer: d})
	set := func(p egress.Policy) error {
		t.Helper()
		if err := d.SetPolicy(&p); err != nil {
			t.Fatal(err)
		}
		return s.Deliver(t.Context(), delivery("i", order))
	}
	if err := s.Deliver(t.Context(), delivery("i", order)); err != nil {
		t.Fatal(err)
	}
	pins := func(c *x509.Certificate) []egress.HostPins {
		return []egress.HostPins{{Host: "server", Pins: []egress.Pin{egress.PinOf(c)}}, {Host: "elsewhere", Pins: []egress.Pin{{}}}}
	}
	if err := set(egress.Policy{TLS: trust, Pins: pins(server.cert)}); err != nil {
		t.Error(err)
	}
	var pin *egress.PinError
	if err := set(egress.Policy{TLS: trust, Pins: pins(newAuthority(t, "x").cert)}); !errors.As(err, &pin) {
		t.Errorf("another pin: %v", err)
	}
	if err := set(egress.Policy{}); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("authority taken away: %v", err)
	}
	if err := set(egress.Policy{TLS: trust, Deny: []egress.Rule{{Hosts: []string{"server"}}}}); !errors.Is(err, egress.ErrBlocked) {
		t.Errorf("denied meanwhile: %v", err)
	}
	if err := set(egress.Policy{TLS: trust}); err != nil {
		t.Error(err)
	}
}

// here resolves every name to this machine.
type here struct{}

func (here) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
}
