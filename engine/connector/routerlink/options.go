// Package routerlink forwards events to another router, and reads those of another router, over its HTTP API.
package routerlink

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/millrace/millrace/engine/egress"
	"github.com/millrace/millrace/engine/event"
)

// To is where a bridge forwards to: what stands under `to`, and what the process adds. Zero means default.
type To struct {
	Router  string            `yaml:"router" rules:"required" about:"URL of the other router's API."`
	Topic   string            `yaml:"topic" rules:"required" about:"On the other router. It is made there only where that router says so."`
	Token   string            `yaml:"token" about:"What the other router takes: it needs publish on topic, nothing else. Give a reference."`
	Timeout time.Duration     `yaml:"timeout" about:"Of one request, connecting included."` // 30 s
	TLS     egress.TLSOptions `yaml:"tls" about:"How TLS connections to it are made."`

	Process `yaml:"-"`
}

// Process is what the process says of every link.
type Process struct {
	Dialer    *egress.Dialer
	Client    *http.Client // instead of the dialer's; for tests
	UserAgent string
	Name      string // of this router in lists of those that an event has passed
	Origin    string // of this router where it forwards to
}

const (
	defaultTimeout = 30 * time.Second
	maxTimeout     = 10 * time.Minute
)

// WithDefaults returns o with its zero fields filled.
func (o To) WithDefaults() To {
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	return o
}

// Validate reports everything wrong in what rules say, each fault at its key: *event.Faults. Secrets are never shown.
func (o To) Validate() error {
	f := faults{event.Faults{Is: event.ErrInvalid}}
	f.router(o.Router)
	f.name("topic", o.Topic)
	f.token(o.Token)
	f.timeout(o.WithDefaults().Timeout)
	f.tls(o.TLS)
	return f.Err()
}

// faults gathers what is wrong.
type faults struct{ event.Faults }

func (f *faults) router(raw string) {
	if raw == "" {
		f.Add("router", "missing; want the URL of the other router, such as https://hq.example.com")
		return
	}
	u, err := url.Parse(raw)
	if err == nil && u.User != nil {
		f.Add("router", "has a user or password in it; give token beside it, such as token: ${env:HQ_TOKEN}")
		return
	}
	if bad := egress.CheckURL(raw); bad != nil {
		f.Add("router", "%v", bad)
		return
	}
	if err != nil || u.RawQuery != "" || u.ForceQuery {
		f.Add("router", "has a query; want the URL of the other router's API alone, such as https://hq.example.com")
	}
}

func (f *faults) name(at, name string) {
	if err := event.CheckName(at, name); err != nil {
		f.Add(at, "is %.60q; want the name of one on the other router, of letters, digits and . _ -", name)
	}
}

func (f *faults) token(token string) {
	for _, r := range token {
		if r <= ' ' || r >= 0x7F {
			f.Add("token", "has a blank or another character that does not go into a header")
			return
		}
	}
}

func (f *faults) timeout(d time.Duration) {
	if d < time.Second || d > maxTimeout {
		f.Add("timeout", "is %s; want 1s to %s", d, maxTimeout)
	}
}

func (f *faults) tls(o egress.TLSOptions) {
	if _, err := egress.NewTLS(o); err != nil {
		f.List = append(f.List, below("tls", err)...)
	}
}

func below(at string, err error) []event.Fault {
	var fs *event.Faults
	if asFaults(err, &fs) {
		out := make([]event.Fault, len(fs.List))
		for i, x := range fs.List {
			out[i] = event.Fault{At: at + "." + x.At, Detail: x.Detail}
		}
		return out
	}
	return []event.Fault{{At: at, Detail: err.Error()}}
}

// link is the way to another router.
type link struct {
	base    string // URL, without a slash at its end
	shown   string // scheme and host
	token   string
	timeout time.Duration
	client  *http.Client
	agent   string
}

func newLink(p Process, raw, token string, timeout time.Duration, tls egress.TLSOptions) (*link, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return nil, event.Invalid("router", "cannot be read")
	}
	l := &link{base: strings.TrimRight(raw, "/"), shown: u.Scheme + "://" + u.Host, token: token, timeout: timeout, client: p.Client, agent: p.UserAgent}
	if l.client == nil {
		if p.Dialer == nil {
			return nil, fmt.Errorf("link to %s: no dialer", l.shown)
		}
		own, err := egress.NewTLS(tls)
		if err != nil {
			return nil, event.At("tls", err)
		}
		l.client = p.Dialer.ClientWith(own)
	}
	return l, nil
}

// request makes a request to the other router.
func (l *link) request(ctx context.Context, method, path string) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, method, l.base+path, nil)
	if err != nil {
		return nil, fmt.Errorf("router %s: %w", l.shown, err)
	}
	if l.token != "" {
		req.Header.Set("Authorization", "Bearer "+l.token)
	}
	if l.agent != "" {
		req.Header.Set("User-Agent", l.agent)
	}
	return req, nil
}
