package rules

import (
	"errors"
	"math"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	"github.com/millrace/millrace/engine/event"
)

var ratePer = []struct {
	name    string
	seconds float64
}{{"s", 1}, {"m", 60}, {"h", 3600}, {"d", 86400}}

// ParseRate reads how many a second: 500/s, 10/m, 2.5/s, 100/h, 5/d; 0 for unlimited.
func ParseRate(s string) (float64, error) { return event.ParseRate(s) }

// formatRate is the shortest form that ParseRate reads back.
func formatRate(r float64) string {
	if r == 0 {
		return "unlimited"
	}
	for _, u := range ratePer {
		if n := math.Round(r * u.seconds); n >= 1 && math.Abs(n-r*u.seconds) < 1e-9*n {
			return strconv.FormatFloat(n, 'f', -1, 64) + "/" + u.name
		}
	}
	return strconv.FormatFloat(r, 'f', -1, 64) + "/s"
}

func (p *parser) rate(n *node) float64 {
	s, ok := p.str(n)
	if !ok {
		return 0
	}
	r, err := ParseRate(s)
	if err != nil {
		p.bad(n, "is %s; %v", n.shown(), err)
	}
	return r
}

// Host is what the rules say of a host that is sent to.
type Host struct {
	event.Host
	source    *doc
	effective *doc
}

// host reads one entry of `hosts`.
func (p *parser) host(key, n *node) {
	name, err := hostName(key.raw)
	if err != nil {
		p.fault(key, "host %s %v", quote(key.raw), err)
		return
	}
	if first := p.hostKeys[name]; first != nil {
		p.fault(key, "host %q is defined twice: here and at %s; keep one", name, first.place())
		return
	}
	p.hostKeys[name] = key
	h := Host{Host: event.Host{Name: name, Owner: p.owner(key)}, source: mask(n)}
	f, ok := p.fields(n, hostShape)
	if !ok {
		return
	}
	if v := f["concurrency"]; v != nil && (v.kind != scalar || v.raw != "unlimited") {
		i, _ := p.integer(v, 1, maxConcurrency, "a number of sends under way at once, or unlimited")
		h.Concurrency = int(i)
	}
	if v := f["rate"]; v != nil {
		h.Rate = p.rate(v)
	}
	e := &doc{kind: mapping}
	if h.Concurrency == 0 {
		e.set("concurrency", text("unlimited"))
	} else {
		e.set("concurrency", number(int64(h.Concurrency)))
	}
	e.set("rate", text(formatRate(h.Rate)))
	h.effective = e.over(h.source)
	p.hosts = append(p.hosts, h)
}

var dnsName = regexp.MustCompile(`^[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*\.?$`)

// hostName is a name or an address as sinks say theirs, with a port or without.
func hostName(s string) (string, error) {
	if strings.Contains(s, "/") {
		return "", errors.New("is more than a host; want its name alone, such as api.example.com or api.example.com:8443")
	}
	host, port := strings.ToLower(s), ""
	if h, p, err := net.SplitHostPort(host); err == nil {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 {
			return "", errors.New("has a port that is none; want 1 to 65535")
		}
		host, port = h, strconv.FormatUint(n, 10)
	}
	addr, err := netip.ParseAddr(strings.Trim(host, "[]"))
	switch {
	case err == nil:
		host = addr.String()
	case strings.Contains(host, "*"):
		return "", errors.New("is a pattern; want one host's name, such as api.example.com: each has limits of its own")
	case len(host) > 253 || !dnsName.MatchString(host):
		return "", errors.New("is not a host; want a name or an address, with a port or without, such as api.example.com or 10.0.0.7:8080")
	}
	if port == "" {
		return host, nil
	}
	return net.JoinHostPort(host, port), nil
}
