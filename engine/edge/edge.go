// Package edge holds what a router shows those who connect by TLS: its own certificates, from files that are read again
// when they change or from an ACME authority, and the authorities whose client certificates it takes.
package edge

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/acme"
)

// Options configure an Edge. The zero value of a field means its default.
type Options struct {
	// Pairs are certificates with their keys. The first is shown where no name fits.
	Pairs []Pair
	// ACME gets certificates for its hosts by itself; nil: none are.
	ACME *ACMEOptions

	// ClientCA is a PEM file of the authorities that client certificates are checked against; "": none are asked for.
	ClientCA string
	// OptionalClientCerts lets clients in that show no certificate; one that is shown must be good all the same.
	OptionalClientCerts bool

	Look time.Duration // between two looks at the files; 5 s
	Warn time.Duration // before the end of a certificate from which the log tells of it, daily; 14 days
	Log  *slog.Logger
	Now  func() time.Time
}

// An Edge makes the TLS configuration of listeners and keeps what it is made from up to date while Watch runs. Its
// methods may be called from several goroutines.
type Edge struct {
	o       Options
	base    *tls.Config
	acme    *authority                  // nil without ACME
	certs   atomic.Pointer[set]         // from files
	cas     atomic.Pointer[authorities] // nil without ClientCA
	files   *files
	lastSay map[string]time.Time // when the log told of a certificate's end; Watch's own
}

// New reads every file once; what is wrong with any of them is an error here, and a line of the log later.
func New(o Options) (*Edge, error) {
	if o.Look == 0 {
		o.Look = 5 * time.Second
	}
	if o.Warn == 0 {
		o.Warn = 14 * 24 * time.Hour
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if len(o.Pairs) == 0 && o.ACME == nil {
		return nil, errors.New("tls: there is no certificate: name one with --tls-cert and --tls-key, or a host with --acme-host")
	}
	e := &Edge{o: o, files: &files{pairs: o.Pairs}, lastSay: map[string]time.Time{}}
	s, errs := e.files.read(nil)
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	e.certs.Store(s)
	if o.ClientCA != "" {
		a, err := readAuthorities(o.ClientCA)
		if err != nil {
			return nil, fmt.Errorf("tls: %w", err)
		}
		e.cas.Store(a)
	}
	if o.ACME != nil {
		var err error
		if e.acme, err = newAuthority(*o.ACME, o.Log); err != nil {
			return nil, fmt.Errorf("acme: %w", err)
		}
	}
	protos := []string{"http/1.1"}
	if e.acme != nil {
		protos = append(protos, acme.ALPNProto)
	}
	e.base = e.ConfigOf(protos...)
	return e, nil
}

// Config is the configuration of a listener of HTTP, at which an ACME authority looks as well. All listeners may share it;
// its session tickets are rotated by crypto/tls.
func (e *Edge) Config() *tls.Config { return e.base }

// ConfigOf is the configuration of listeners of other protocols, by their names in ALPN (RFC 7301).
func (e *Edge) ConfigOf(protos ...string) *tls.Config {
	c := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: protos, GetCertificate: e.certificate}
	if e.o.ClientCA == "" {
		return c
	}
	challenge := c.Clone() // an ACME authority that looks at us has no certificate of a client
	c.ClientAuth = tls.RequireAndVerifyClientCert
	if e.o.OptionalClientCerts {
		c.ClientAuth = tls.VerifyClientCertIfGiven
	}
	c.ClientCAs = e.cas.Load().pool
	c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if e.acme != nil && len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == acme.ALPNProto {
			return challenge, nil
		}
		return e.cas.Load().configOf(c), nil
	}
	return c
}

// certificate chooses what a client is shown: of a file whose names fit, of the ACME authority, else the first pair.
func (e *Edge) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	s := e.certs.Load()
	challenge := slices.Contains(hello.SupportedProtos, acme.ALPNProto)
	if c := s.find(hello); c != nil && !challenge {
		return c, nil
	}
	if e.acme != nil && (challenge || e.acme.serves(hello.ServerName)) {
		return e.acme.certificate(hello)
	}
	if len(s.all) > 0 {
		return s.all[0], nil
	}
	return nil, fmt.Errorf("tls: no certificate fits %.100q", hello.ServerName)
}

// Covers reports whether the router has, or can get, a certificate for host, which has no port.
func (e *Edge) Covers(host string) bool {
	host = strings.ToLower(host)
	if e.acme != nil && e.acme.serves(host) {
		return true
	}
	for _, c := range e.certs.Load().all {
		if c.Leaf.VerifyHostname(host) == nil {
			return true
		}
	}
	return false
}

// Challenge answers an ACME authority that asks for the token of HTTP-01 at host; ok is false where there is none.
func (e *Edge) Challenge(ctx context.Context, host, path string) (answer []byte, ok bool) {
	if e.acme == nil {
		return nil, false
	}
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return e.acme.challenge(ctx, host, path)
}

// An Expiry says until when a certificate is good.
type Expiry struct {
	Name string // the first of its names
	At   time.Time
}

// Expiries are those of all certificates that are shown now.
func (e *Edge) Expiries() []Expiry {
	var out []Expiry
	for _, c := range e.certs.Load().all {
		out = append(out, Expiry{nameOf(c.Leaf), c.Leaf.NotAfter})
	}
	if e.acme != nil {
		out = append(out, e.acme.expiries()...)
	}
	return out
}

// Watch looks at the files again and again, and at once when a signal asks for it, until ctx ends. What cannot be used
// is told and changes nothing. It also gets certificates from the ACME authority before a client asks for them.
func (e *Edge) Watch(ctx context.Context, hangup <-chan os.Signal) {
	if e.acme != nil {
		done := make(chan struct{})
		go func() {
			defer close(done)
			e.acme.fetch(ctx)
		}()
		defer func() { <-done }()
	}
	tick := time.NewTicker(e.o.Look)
	defer tick.Stop()
	told := map[string]bool{} // faults of the last look: each is told once
	for {
		told = e.look(told)
		e.warn()
		select {
		case <-ctx.Done():
			return
		case <-hangup:
		case <-tick.C:
		}
	}
}

// look reads the files and swaps in what has changed; it returns the faults there are now.
func (e *Edge) look(told map[string]bool) map[string]bool {
	now := map[string]bool{}
	tell := func(err error) {
		if now[err.Error()] = true; !told[err.Error()] {
			e.o.Log.Error("the TLS files cannot be used; what was read before stays", "error", err)
		}
	}
	old := e.certs.Load()
	s, errs := e.files.read(old)
	for _, err := range errs {
		tell(err)
	}
	if s.differs(old) {
		e.certs.Store(s)
		for _, c := range s.all {
			if !slices.ContainsFunc(old.all, func(o *tls.Certificate) bool { return o.Leaf.Equal(c.Leaf) }) {
				e.o.Log.Info("a TLS certificate was loaded", "name", nameOf(c.Leaf), "until", c.Leaf.NotAfter.UTC())
			}
		}
	}
	if e.o.ClientCA == "" {
		return now
	}
	a, err := readAuthorities(e.o.ClientCA)
	if err != nil {
		tell(err)
	} else if a.sum != e.cas.Load().sum {
		e.cas.Store(a)
		e.o.Log.Info("the authorities of client certificates were loaded", "file", e.o.ClientCA)
	}
	return now
}

// warn tells of certificates that end soon, once a day each.
func (e *Edge) warn() {
	now := e.o.Now()
	for _, x := range e.Expiries() {
		left := x.At.Sub(now)
		if left > e.o.Warn || now.Sub(e.lastSay[x.Name]) < 24*time.Hour {
			continue
		}
		e.lastSay[x.Name] = now
		if left <= 0 {
			e.o.Log.Error("a TLS certificate has expired: clients refuse it; put a new one in its place", "name", x.Name, "since", x.At.UTC())
			continue
		}
		e.o.Log.Warn("a TLS certificate expires soon; put a new one in its place", "name", x.Name, "at", x.At.UTC(), "days", int(left.Hours()/24))
	}
}

// nameOf is the name by which a certificate is told.
func nameOf(c *x509.Certificate) string {
	switch {
	case len(c.DNSNames) > 0:
		return c.DNSNames[0]
	case len(c.IPAddresses) > 0:
		return c.IPAddresses[0].String()
	case c.Subject.CommonName != "":
		return c.Subject.CommonName
	}
	return c.SerialNumber.String()
}
