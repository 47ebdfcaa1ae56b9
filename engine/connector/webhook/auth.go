package webhook

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/millrace/millrace/engine/egress"
	"github.com/millrace/millrace/engine/event"
)

// Auth is how the router shows a receiver who it is. At most one field is set.
type Auth struct {
	Basic  *Basic  `yaml:"basic" about:"User and password (RFC 7617)."`
	OAuth2 *OAuth2 `yaml:"oauth2" about:"An access token that an authorization server gives for client credentials (RFC 6749 section 4.4)."`
	OIDC   *OIDC   `yaml:"oidc" about:"An ID token that the router signs itself; receivers check it with what 'router webhooks jwks' prints."`
}

// Basic is HTTP's Basic authentication.
type Basic struct {
	User     string `yaml:"user" rules:"required" about:"Without a colon."`
	Password string `yaml:"password" about:"Give a reference. Never shown."`
}

// authorization makes the value of the header Authorization.
type authorization interface {
	// value returns it, if need be after asking for a token.
	value(ctx context.Context) (string, error)
	// answered tells how the receiver answered to it.
	answered(value string, status int)
}

// check reports what is wrong in a.
func (a Auth) check(o Options, fault func(at, format string, args ...any)) {
	n := 0
	if b := a.Basic; b != nil {
		n++
		if b.User == "" || strings.Contains(b.User, ":") || !safeValue(b.User) {
			fault("auth.basic.user", "wants a user without a colon and control characters")
		}
		if !safeValue(b.Password) {
			fault("auth.basic.password", "has a control character")
		}
	}
	if a.OAuth2 != nil {
		n++
		a.OAuth2.check(fault)
	}
	if a.OIDC != nil {
		n++
		a.OIDC.check(o, fault)
	}
	if n > 1 {
		fault("auth", "has %d ways; want one of basic, oauth2, oidc", n)
	}
	for _, name := range sortedNames(o.Headers) {
		if n > 0 && strings.EqualFold(name, "authorization") {
			fault("headers."+name, "does not go with auth, which makes that header; remove one of them")
		}
	}
}

// open returns what o.Auth asks for; nil for nothing.
func (a Auth) open(o Options) (authorization, error) {
	switch {
	case a.Basic != nil:
		return fixed("Basic " + base64.StdEncoding.EncodeToString([]byte(a.Basic.User+":"+a.Basic.Password))), nil
	case a.OAuth2 != nil:
		return a.OAuth2.open(o), nil
	case a.OIDC != nil:
		return a.OIDC.open(o)
	}
	return nil, nil
}

// fixed never changes.
type fixed string

func (f fixed) value(context.Context) (string, error) { return string(f), nil }
func (f fixed) answered(string, int)                  {}

// authorize puts what the receiver is to be shown into l. The error is one failed attempt.
func (s *Sink) authorize(ctx context.Context, l *lane, deadline time.Time) error {
	if s.auth == nil {
		return nil
	}
	within, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	value, err := s.auth.value(within)
	if err == nil {
		l.auth = value
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("webhook %s: %w", s.target.name, ctx.Err())
	}
	var wait time.Duration
	var later *event.RetryAfter
	if errors.As(err, &later) {
		wait = later.Wait
	}
	return &event.RetryAfter{Err: fmt.Errorf("webhook %s was not sent: %w", s.target.name, err), Wait: wait}
}

// tlsOf returns what makes the configuration of connections to host.
func tlsOf(o Options, host string) (func() (*tls.Config, error), error) {
	own, err := egress.NewTLS(o.TLS)
	if err != nil {
		return nil, err
	}
	config := egress.TLSFor(host, own)
	if d, ok := o.Dialer.(interface {
		TLS(string, *egress.TLS) func() (*tls.Config, error)
	}); ok {
		config = d.TLS(host, own)
	}
	if o.TLSConfig == nil {
		return config, nil
	}
	return func() (*tls.Config, error) {
		c, err := config()
		if err != nil {
			return nil, err
		}
		c = c.Clone()
		if c.RootCAs == nil {
			c.RootCAs = o.TLSConfig.RootCAs
		}
		if o.TLSConfig.ServerName != "" {
			c.ServerName = o.TLSConfig.ServerName
		}
		return c, nil
	}, nil
}

// client returns the HTTP client for token endpoints: it connects as the sink does and follows no redirects.
func (o Options) client() *http.Client {
	if d, ok := o.Dialer.(interface{ Client() *http.Client }); ok && o.TLSConfig == nil {
		return d.Client()
	}
	return &http.Client{
		Transport: &http.Transport{DialContext: o.Dialer.DialContext, TLSClientConfig: o.TLSConfig.Clone(), DisableCompression: true,
			IdleConnTimeout: idleLimit, MaxResponseHeaderBytes: headerLimit},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// below reports faults of a part of the options at that part's key.
func below(fault func(at, format string, args ...any), at string, err error) {
	var faults *event.Faults
	if !errors.As(err, &faults) {
		fault(at, "%v", err)
		return
	}
	for _, f := range faults.List {
		fault(at+"."+f.At, "%s", f.Detail)
	}
}
