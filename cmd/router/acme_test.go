package main

import (
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/millrace/millrace/engine/egress"
)

// A connectProxy joins those who ask it by CONNECT with whom they name, and keeps the names.
type connectProxy struct {
	mu    sync.Mutex
	asked []string
}

// start serves until the test's end and returns the proxy's URL.
func (c *connectProxy) start(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(c)
	t.Cleanup(s.Close)
	return s.URL
}

func (c *connectProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	c.asked = append(c.asked, r.Host)
	c.mu.Unlock()
	there, err := net.Dial("tcp", r.Host)
	if err != nil || r.Method != http.MethodConnect {
		http.Error(w, "want CONNECT to what answers", http.StatusBadGateway)
		return
	}
	defer there.Close()
	here, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer here.Close()
	_, _ = io.WriteString(here, "HTTP/1.1 200 OK\r\n\r\n")
	go func() { _, _ = io.Copy(there, here); there.Close() }()
	_, _ = io.Copy(here, there)
}

// only returns the names that it was asked for, each once.
func (c *connectProxy) only() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	slices.Sort(c.asked)
	return strings.Join(slices.Compact(c.asked), " ")
}

// The ACME authority is the operator's choice: it may lie on the router's own network, but not where the egress policy
// denies; its certificate must be of the system's authorities, --acme-ca's, or the policy's.
func TestACMEIsAskedThroughTheDialer(t *testing.T) {
	cert, key, pair := certified(t, "directory")
	authority := httptest.NewUnstartedServer(http.NotFoundHandler())
	authority.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	authority.Config.ErrorLog = log.New(io.Discard, "", 0)
	authority.StartTLS()
	defer authority.Close()
	policy := func(p egress.Policy) *egress.Dialer {
		t.Helper()
		d, err := egress.New(egress.Options{Policy: &p})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	text, err := os.ReadFile(cert)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		dialer *egress.Dialer
		ca     string
		want   string
	}{
		"its own authority":        {dialer: policy(egress.Policy{}), ca: cert},
		"the policy's authority":   {dialer: policy(egress.Policy{TLS: egress.TLSOptions{CA: []string{string(text)}}})},
		"an unlisted one":          {dialer: policy(egress.Policy{Only: true}), ca: cert},
		"an authority of nobody's": {dialer: policy(egress.Policy{}), want: "unknown authority"},
		"denied":                   {dialer: policy(egress.Policy{Deny: []egress.Rule{{CIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}}}), ca: cert, want: "denied"},
		"no file":                  {dialer: policy(egress.Policy{}), ca: filepath.Join(t.TempDir(), "none"), want: "--acme-ca"},
		"a key":                    {dialer: policy(egress.Policy{}), ca: key, want: "--acme-ca"},
	} {
		transport, err := acmeTransport(c.dialer, c.ca)
		if err == nil {
			var res *http.Response
			if res, err = (&http.Client{Transport: transport}).Get(authority.URL); err == nil {
				res.Body.Close()
			}
		}
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) || c.want == "denied" && !errors.Is(err, egress.ErrBlocked) {
			t.Errorf("%s: %v; want %q", name, err, c.want)
		}
	}
}
