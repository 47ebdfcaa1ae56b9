package hooks

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// Fetch gets what a URL names, at most max bytes of it, following no redirects. An answer other than 200 is an error.
type Fetch func(ctx context.Context, url string, max int64) ([]byte, error)

// CertificateOptions configure Certificates. The zero value of a field means its default.
type CertificateOptions struct {
	Fetch Fetch          // must be given
	Roots *x509.CertPool // that certificates must chain to; the system's
	Now   func() time.Time
}

// Certificates fetches the certificates of senders that sign with them, and keeps the keys of those that are good. Its
// methods may be called from several goroutines.
type Certificates struct {
	o    CertificateOptions
	mu   sync.Mutex
	kept map[string]*kept // by URL
	busy int              // that are being fetched
}

// kept is what became of a URL. Until done is closed its other fields are the fetcher's.
type kept struct {
	done  chan struct{}
	key   *rsa.PublicKey
	err   error
	until time.Time
}

// Bounds of what strangers make the router fetch and keep: whoever knows a topic's name can name certificates.
const (
	maxKept         = 32
	maxFetches      = 4 // at a time
	maxCertificate  = 32 << 10
	maxChain        = 4 // certificates that are added to one that came alone
	keepKey         = 24 * time.Hour
	keepRefusal     = time.Minute
	keepUnreachable = 5 * time.Second
)

// NewCertificates returns an empty set.
func NewCertificates(o CertificateOptions) (*Certificates, error) {
	if o.Fetch == nil {
		return nil, errors.New("hooks: certificate options: Fetch is missing")
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Certificates{o: o, kept: map[string]*kept{}}, nil
}

// key returns the key of the certificate at a URL, once it is known to be of one of names and to chain to a root. Several
// callers wait for one fetch. Errors wrap event.ErrUnverified where the certificate is no good, event.ErrUnavailable where
// that cannot be told now.
func (c *Certificates) key(ctx context.Context, from string, names []string) (*rsa.PublicKey, error) {
	c.mu.Lock()
	k := c.kept[from]
	fetching := false
	if k == nil || k.over(c.o.Now()) {
		if c.busy >= maxFetches {
			c.mu.Unlock()
			return nil, fmt.Errorf("%d certificates are being fetched: %w", maxFetches, event.ErrUnavailable)
		}
		c.room()
		k, fetching = &kept{done: make(chan struct{})}, true
		c.kept[from] = k
		c.busy++
	}
	c.mu.Unlock()
	if !fetching {
		select {
		case <-k.done:
			return k.key, k.err
		case <-ctx.Done():
			return nil, fmt.Errorf("the signing certificate did not come in time: %w", event.ErrUnavailable)
		}
	}
	k.key, k.until, k.err = c.fetch(ctx, from, names)
	close(k.done)
	c.mu.Lock()
	c.busy--
	c.mu.Unlock()
	return k.key, k.err
}

// over reports whether what was found has had its time.
func (k *kept) over(now time.Time) bool {
	select {
	case <-k.done:
		return !now.Before(k.until)
	default:
		return false
	}
}

// room makes room for one more: what ends first goes, refusals before keys, so that a flood of made-up URLs does not push
// out the certificate that is in use.
func (c *Certificates) room() {
	for len(c.kept) >= maxKept {
		var first string
		var worst *kept
		for at, k := range c.kept {
			select {
			case <-k.done:
			default:
				continue
			}
			if worst == nil || (k.key == nil) != (worst.key == nil) && k.key == nil || (k.key == nil) == (worst.key == nil) && k.until.Before(worst.until) {
				first, worst = at, k
			}
		}
		delete(c.kept, first)
	}
}

// fetch gets a certificate and judges it.
func (c *Certificates) fetch(ctx context.Context, from string, names []string) (*rsa.PublicKey, time.Time, error) {
	now := c.o.Now()
	doc, err := c.o.Fetch(ctx, from, maxCertificate)
	if err != nil {
		return nil, now.Add(keepUnreachable), fmt.Errorf("the signing certificate cannot be fetched (%v): %w", bare(err), event.ErrUnavailable)
	}
	leaf, others, err := readCertificates(doc)
	if err == nil {
		err = named(leaf, names)
	}
	if err == nil {
		err = c.chain(ctx, leaf, others, now)
	}
	key, ok := (*rsa.PublicKey)(nil), false
	if err == nil {
		if key, ok = leaf.PublicKey.(*rsa.PublicKey); !ok || key.N.BitLen() < 2048 || key.N.BitLen() > 8192 {
			key, err = nil, unverified("SigningCertURL", "the certificate's key is none of RSA with 2048 to 8192 bits")
		}
	}
	switch {
	case errors.Is(err, event.ErrUnavailable):
		return nil, now.Add(keepUnreachable), err
	case err != nil:
		return nil, now.Add(keepRefusal), err
	}
	until := now.Add(keepKey)
	if leaf.NotAfter.Before(until) {
		until = leaf.NotAfter
	}
	return key, until, nil
}

func readCertificates(doc []byte) (leaf *x509.Certificate, others []*x509.Certificate, err error) {
	for rest := doc; len(others) <= maxChain; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if block.Type != "CERTIFICATE" || err != nil {
			return nil, nil, unverified("SigningCertURL", "what is there is no certificate in PEM")
		}
		if leaf == nil {
			leaf = cert
		} else {
			others = append(others, cert)
		}
	}
	if leaf == nil {
		return nil, nil, unverified("SigningCertURL", "what is there is no certificate in PEM")
	}
	return leaf, others, nil
}

func named(leaf *x509.Certificate, names []string) error {
	if slices.ContainsFunc(names, func(n string) bool { return leaf.VerifyHostname(n) == nil }) {
		return nil
	}
	return unverified("SigningCertURL", "the certificate is of %.200q; want one of %s", strings.Join(leaf.DNSNames, ", "), strings.Join(names, ", "))
}

// chain verifies a certificate up to a root. Where the sender's file has the certificate alone, as SNS's do, what issued it
// is fetched from where it says (RFC 5280, 4.2.2.1): a root vouches for that, not the place.
func (c *Certificates) chain(ctx context.Context, leaf *x509.Certificate, others []*x509.Certificate, now time.Time) error {
	between := x509.NewCertPool()
	for _, cert := range others {
		between.AddCert(cert)
	}
	last := leaf
	if len(others) > 0 {
		last = others[len(others)-1]
	}
	for range maxChain {
		_, err := leaf.Verify(x509.VerifyOptions{Roots: c.o.Roots, Intermediates: between, CurrentTime: now})
		var unknown x509.UnknownAuthorityError
		switch {
		case err == nil:
			return nil
		case !errors.As(err, &unknown):
			return unverified("SigningCertURL", "the certificate is no good: %v", err)
		}
		at := slices.IndexFunc(last.IssuingCertificateURL, issuerPlace)
		if at < 0 || bytes.Equal(last.RawSubject, last.RawIssuer) {
			return unverified("SigningCertURL", "no root that this router trusts vouches for the certificate")
		}
		doc, err := c.o.Fetch(ctx, last.IssuingCertificateURL[at], maxCertificate)
		if err != nil {
			return fmt.Errorf("what issued the signing certificate cannot be fetched (%v): %w", bare(err), event.ErrUnavailable)
		}
		if block, _ := pem.Decode(doc); block != nil {
			doc = block.Bytes
		}
		if last, err = x509.ParseCertificate(doc); err != nil {
			return unverified("SigningCertURL", "what issued the certificate is no certificate")
		}
		between.AddCert(last)
	}
	return unverified("SigningCertURL", "no root that this router trusts vouches for the certificate within %d steps", maxChain)
}

// issuerPlace reports whether what issued a certificate may be fetched from a URL: those of the authorities that Amazon
// uses. Such URLs are http: what they give is signed.
func issuerPlace(raw string) bool {
	u, err := url.Parse(raw)
	if err != nil || len(raw) > 200 || u.Scheme != "http" && u.Scheme != "https" || u.User != nil || u.Port() != "" || u.RawQuery != "" {
		return false
	}
	return strings.HasSuffix(u.Host, ".amazontrust.com") || strings.HasSuffix(u.Host, ".digicert.com")
}

// bare is an error without the URL that was called, which may have a token in it.
func bare(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}
