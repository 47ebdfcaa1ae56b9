package egress

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"net/url"
)

// A Judgement says what would come of connecting to a URL.
type Judgement struct {
	URL       string             `json:"url"` // scheme, host and port only
	Allowed   bool               `json:"allowed"`
	Why       string             `json:"why,omitempty"`    // it is not
	Reason    string             `json:"reason,omitempty"` // special, denied, unlisted or notation; "" for a lookup that failed
	Addresses []AddressJudgement `json:"addresses,omitempty"`
	Proxy     string             `json:"proxy,omitempty"` // it goes through, as scheme://host:port
	Names     bool               `json:"names,omitempty"` // the proxy is given the name and looks it up by itself
}

// An AddressJudgement is what a host resolves to, and whether that may be connected to.
type AddressJudgement struct {
	Addr    netip.Addr `json:"address"`
	Allowed bool       `json:"allowed"`
	Why     string     `json:"why,omitempty"`
}

// Judge looks the host of a URL up and judges it as DialContext would. It connects to nothing but the resolver. The error
// is of a URL that is none.
func (d *Dialer) Judge(ctx context.Context, raw string) (j Judgement, err error) {
	if err := CheckURL(raw); err != nil {
		return j, err
	}
	u, err := url.Parse(raw)
	if err != nil {
		return j, err // unreachable after CheckURL
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	addr := net.JoinHostPort(u.Hostname(), port)
	j.URL = u.Scheme + "://" + addr
	t, err := d.target(addr)
	if err != nil {
		return j, err
	}
	r := d.rules.Load()
	ctx, cancel := context.WithTimeout(ctx, d.o.Timeout)
	defer cancel()
	refuse := func(err error) {
		j.Allowed, j.Why = false, err.Error()
		var blocked *blockedError
		if errors.As(err, &blocked) {
			j.Reason = reasonName(blocked.reason)
		}
	}
	if err := d.checkName(r, t); err != nil {
		refuse(err)
		return j, nil
	}
	if r.Proxy.takesName(t) {
		j.Names = true
	}
	if r.Proxy.takes(t, netip.Addr{}) {
		j.Proxy = r.Proxy.Scheme + "://" + r.Proxy.Addr
	}
	addrs, err := d.resolve(ctx, "ip", t)
	if err != nil {
		if j.Allowed = j.Names; !j.Allowed {
			refuse(err)
		}
		return j, nil
	}
	var first error
	for _, a := range addrs {
		err := d.check(r, t, a)
		judged := AddressJudgement{Addr: a, Allowed: err == nil}
		if err != nil {
			judged.Why = err.Error()
			first = errors.Join(first, err)
		}
		j.Allowed = j.Allowed || err == nil
		j.Addresses = append(j.Addresses, judged)
	}
	if !j.Allowed {
		refuse(first)
	}
	return j, nil
}
