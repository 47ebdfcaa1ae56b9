package edge

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"
)

// ACMEOptions say whom to ask for certificates (RFC 8555), and for which hosts. To set it is to agree with the
// authority's terms of service.
type ACMEOptions struct {
	Hosts     []string // names with a dot in them; no wildcards, which take a challenge by DNS
	Directory string   // of the authority; "": Let's Encrypt's
	Email     string   // where the authority may write to; may be empty
	Cache     string   // folder of the account's key and the certificates; made if missing

	HTTP http.RoundTripper // asks the authority; required
}

// An authority gets and renews certificates.
type authority struct {
	m     *autocert.Manager
	log   *slog.Logger
	hosts []string
	http  http.Handler

	mu   sync.Mutex
	ends map[string]time.Time // of the certificate that was last shown for a host
}

func newAuthority(o ACMEOptions, log *slog.Logger) (*authority, error) {
	var hosts []string
	for _, h := range o.Hosts {
		h = strings.ToLower(strings.TrimSuffix(h, "."))
		if !strings.Contains(h, ".") || strings.ContainsAny(h, "*/: ") {
			return nil, fmt.Errorf("the host %.100q cannot have a certificate this way; want a full name such as events.example.com", h)
		}
		hosts = append(hosts, h)
	}
	if len(hosts) == 0 {
		return nil, errors.New("no host is named; want --acme-host events.example.com")
	}
	if o.Directory == "" {
		o.Directory = acme.LetsEncryptURL
	}
	if u, err := url.Parse(o.Directory); err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("the directory %.200q is not an https URL", o.Directory)
	}
	if o.HTTP == nil {
		return nil, errors.New("no HTTP client is given to ask the ACME authority with")
	}
	a := &authority{log: log, hosts: hosts, ends: map[string]time.Time{}, m: &autocert.Manager{
		Prompt: autocert.AcceptTOS, Cache: autocert.DirCache(o.Cache), Email: o.Email, HostPolicy: autocert.HostWhitelist(hosts...),
		Client: &acme.Client{DirectoryURL: o.Directory, UserAgent: "millrace",
			HTTPClient: &http.Client{Transport: &orders{next: o.HTTP, at: map[string]string{}}, Timeout: 30 * time.Second,
				// Nothing in RFC 8555 sends a client on, and who did could name any address: the transport goes where the
				// operator may. It is an error, since x/crypto/acme asks again for ever after an answer of 3xx.
				CheckRedirect: func(*http.Request, []*http.Request) error { return errSentOn }}},
	}}
	a.http = a.m.HTTPHandler(http.NotFoundHandler())
	return a, nil
}

var errSentOn = errors.New("the ACME authority redirects, which is not followed; name the URL of its directory itself with --acme-dir")

func (a *authority) serves(host string) bool {
	return slices.Contains(a.hosts, strings.ToLower(strings.TrimSuffix(host, ".")))
}

func (a *authority) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	c, err := a.m.GetCertificate(hello)
	if err != nil {
		return nil, err
	}
	if c.Leaf != nil && !slices.Contains(hello.SupportedProtos, acme.ALPNProto) {
		a.mu.Lock()
		a.ends[strings.ToLower(hello.ServerName)] = c.Leaf.NotAfter
		a.mu.Unlock()
	}
	return c, nil
}

func (a *authority) expiries() (out []Expiry) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, h := range a.hosts {
		if at, ok := a.ends[h]; ok {
			out = append(out, Expiry{h, at})
		}
	}
	return out
}

// challenge asks autocert's handler, which wants net/http's request, for the answer to a token.
func (a *authority) challenge(ctx context.Context, host, path string) ([]byte, bool) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+host+path, nil)
	if err != nil {
		return nil, false
	}
	w := &answer{head: http.Header{}, code: http.StatusOK}
	a.http.ServeHTTP(w, r)
	return w.body, w.code == http.StatusOK
}

// An answer is what a handler of net/http says.
type answer struct {
	head http.Header
	code int
	body []byte
}

func (a *answer) Header() http.Header { return a.head }

func (a *answer) WriteHeader(code int) { a.code = code }

func (a *answer) Write(b []byte) (int, error) {
	a.body = append(a.body, b...)
	return len(b), nil
}

// fetch gets every host's certificate, so that the first client need not wait and a failure is told before one comes,
// and looks again twice a day. A failure is tried again after a minute, then twice as long, up to six hours: authorities
// count failures.
func (a *authority) fetch(ctx context.Context) {
	const often = 12 * time.Hour
	next, wait := time.Duration(0), time.Minute
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(next):
		}
		next = often
		for _, h := range a.hosts {
			_, err := a.certificate(&tls.ClientHelloInfo{ServerName: h, SupportedVersions: []uint16{tls.VersionTLS13, tls.VersionTLS12},
				SignatureSchemes: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256}, SupportedCurves: []tls.CurveID{tls.CurveP256},
				CipherSuites: []uint16{tls.TLS_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}})
			if err != nil && ctx.Err() == nil {
				a.log.Error("no certificate could be had from the ACME authority", "host", h, "error", err, "again", wait)
				next = wait
			}
		}
		if next == often {
			wait = time.Minute
		} else {
			wait = min(2*wait, 6*time.Hour)
		}
	}
}
