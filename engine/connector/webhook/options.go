// Package webhook delivers events as HTTP POST requests, signed as Standard Webhooks says.
package webhook

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/millrace/millrace/engine/egress"
	"github.com/millrace/millrace/engine/event"
)

// Dialer opens connections; *egress.Dialer is the one that checks where to.
type Dialer interface {
	DialContext(ctx context.Context, network, addr string) (net.Conn, error)
}

// Options of a Sink: what stands under deliver.webhook of a subscription, and what the process adds. Zero
// means default.
type Options struct {
	URL     string            `yaml:"url" rules:"required" about:"Where to: http or https; no user, no fragment."`                                                                // http or https; no user, no fragment
	Format  string            `yaml:"format" enum:"structured,binary,data" about:"A CloudEvent in JSON; the data as body and the attributes as ce-* headers; or the data alone."` // Structured, Binary or Data; Structured
	Secrets []string          `yaml:"secrets" about:"whsec_… (HMAC), or whsk_… (ed25519): the first signs first, all are sent while rotating; none: unsigned. Give references."`  // whsec_… or whsk_…; all sign, the first first; none: unsigned
	Headers map[string]string `yaml:"headers" about:"Sent besides the router's own. Never shown."`                                                                                // sent besides the router's own
	Timeout time.Duration     `yaml:"timeout" about:"Of one attempt, connecting included."`                                                                                       // of one attempt, connecting included; 15 s
	Batch   Batch             `yaml:"batch" about:"Several events in one request."`                                                                                               // several events in one request; zero: one each
	Reply   bool              `yaml:"reply" about:"An answer of 2xx is the reply to the event, where its producer asked for one."`                                                // an answer of 2xx is the reply to the event, where its producer asked for one

	Auth Auth              `yaml:"auth" about:"How the router shows the receiver who it is, besides signatures: one of basic, oauth2, oidc."` // one of its fields, or none
	TLS  egress.TLSOptions `yaml:"tls" about:"How TLS connections to the receiver are made."`                                                 // besides those of the process

	Dialer    Dialer           `yaml:"-"` // required
	Now       func() time.Time `yaml:"-"` // for timestamps; time.Now
	UserAgent string           `yaml:"-"` // "millrace"
	MaxConns  int              `yaml:"-"` // connections open at once; a Deliver beyond waits; 64
	TLSConfig *tls.Config      `yaml:"-"` // https: what to begin with where Dialer has none of its own; cloned
}

// The formats.
const (
	Structured = "structured" // a CloudEvent in JSON
	Binary     = "binary"     // the data as body, attributes as ce-* headers
	Data       = "data"       // the data as body and nothing of the attributes but Content-Type
)

const maxTimeout = 10 * time.Minute

// WithDefaults returns o with its zero fields filled.
func (o Options) WithDefaults() Options {
	if o.Format == "" {
		o.Format = Structured
	}
	if o.Timeout == 0 {
		o.Timeout = 15 * time.Second
	}
	o.Batch = o.Batch.withDefaults()
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.UserAgent == "" {
		o.UserAgent = "millrace"
	}
	if o.MaxConns == 0 {
		o.MaxConns = 64
	}
	return o
}

// Validate reports everything wrong in what a subscription says, each fault at its key: *event.Faults.
// Secrets, header values and the URL's query are never shown.
func (o Options) Validate() error {
	o = o.WithDefaults()
	var faults []event.Fault
	fault := func(at, format string, args ...any) {
		faults = append(faults, event.Fault{At: at, Detail: fmt.Sprintf(format, args...)})
	}
	if o.URL == "" {
		fault("url", "missing; want such as https://example.com/hook")
	} else if err := egress.CheckURL(o.URL); err != nil {
		fault("url", "%v", err)
	}
	if !slices.Contains([]string{Structured, Binary, Data}, o.Format) {
		fault("format", "is %.40q; want %s, %s or %s", o.Format, Structured, Binary, Data)
	}
	if len(o.Secrets) > maxSecrets {
		fault("secrets", "has %d; want at most %d", len(o.Secrets), maxSecrets)
	}
	for i, s := range o.Secrets {
		if _, err := parseSigner(s); err != nil {
			fault(fmt.Sprintf("secrets[%d]", i), "%v", err)
		}
	}
	if o.Timeout < 0 || o.Timeout > maxTimeout {
		fault("timeout", "is %s; want above 0 and at most %s", o.Timeout, maxTimeout)
	}
	o.Batch.check(o, fault)
	o.Auth.check(o, fault)
	if _, err := egress.NewTLS(o.TLS); err != nil {
		below(fault, "tls", err)
	}
	if o.MaxConns < 0 {
		fault("MaxConns", "is %d; want 1 or more", o.MaxConns)
	}
	if !safeValue(o.UserAgent) {
		fault("UserAgent", "has a control character")
	}
	seen := map[string]string{}
	for _, name := range sortedNames(o.Headers) {
		at, lower := "headers."+clip(name), strings.ToLower(name)
		if why := checkHeader(lower); why != "" {
			fault(at, "%s", why)
		} else if first, twice := seen[lower]; twice {
			fault(at, "is given twice, also as %s", first)
		}
		if !safeValue(o.Headers[name]) {
			fault(at, "its value has a line break or another control character")
		}
		seen[lower] = name
	}
	if len(faults) > 0 {
		return &event.Faults{Is: event.ErrInvalid, List: faults}
	}
	return nil
}

// maxSecrets bounds the signatures of one delivery: two suffice while rotating.
const maxSecrets = 8

func sortedNames(headers map[string]string) []string {
	names := make([]string, 0, len(headers))
	for name := range headers {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

// checkHeader says why a rules file may not set a header; lower is its name in lower case.
func checkHeader(lower string) string {
	if !isToken(lower) {
		return "is not a header name (RFC 9110 section 5.1)"
	}
	switch lower {
	case "connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "http2-settings":
		return "belongs to one connection (RFC 9110 section 7.6.1), which the router manages; drop it"
	case "host":
		return "is taken from the url; change that instead"
	case "content-length", "content-type", "content-encoding":
		return "follows from the event and the format; drop it"
	case "expect", "accept-encoding":
		return "would change how the receiver answers, which the router relies on; drop it"
	}
	for _, own := range []struct{ prefix, why string }{
		{"webhook-", "is the router's own: id, timestamp and signature of Standard Webhooks; drop it"},
		{"ce-", "is an attribute of the event (CloudEvents); set it where the event is made or in a function"},
		{"proxy-", "is for the proxy, which the process's egress policy names with its user and password; drop it"},
	} {
		if strings.HasPrefix(lower, own.prefix) {
			return own.why
		}
	}
	return ""
}

// isToken follows RFC 9110 section 5.6.2.
func isToken(s string) bool {
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0:
		default:
			return false
		}
	}
	return s != ""
}

// safeValue refuses what would end a header line or be refused by receivers (RFC 9110 section 5.5).
func safeValue(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7F {
			return false
		}
	}
	return true
}

func clip(s string) string {
	if len(s) > 60 {
		return s[:60] + "…"
	}
	return s
}
