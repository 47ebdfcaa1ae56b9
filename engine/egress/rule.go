package egress

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// A Policy says which targets may be connected to, and how. The zero Policy allows the public Internet. It is
// not changed once a Dialer has it.
type Policy struct {
	Private bool   // special-purpose addresses too, as --allow-private-targets
	Only    bool   // what no rule of Allow names is refused
	Allow   []Rule // with CIDRs also where they are special
	Deny    []Rule // stands above all else
	Proxy   *Proxy // nil: none
	TLS     TLSOptions
	Pins    []HostPins // keys that hosts must have, besides those of a subscription
	Source  string     // names it in errors; "": the process's options

	tls *TLS
}

// A Rule names targets. All of what it gives must hold: one of the hosts, one of the prefixes, one of the ports. What
// it does not give holds for every target.
type Rule struct {
	Hosts []string       // names in lower case: example.com, or *.example.com for all names below
	CIDRs []netip.Prefix // of the addresses that are connected to
	Ports []PortRange
	At    string // where it stands, such as deny[0] at egress.yaml:4:5
}

// A PortRange is from First to Last, both in it.
type PortRange struct{ First, Last uint16 }

func (p PortRange) String() string {
	if p.First == p.Last {
		return strconv.Itoa(int(p.First))
	}
	return fmt.Sprintf("%d-%d", p.First, p.Last)
}

// HostPins are keys of which a host's certificate, or one that vouches for it, must have one.
type HostPins struct {
	Host string // as in Rule.Hosts
	Pins []Pin
}

// Validate says everything that is wrong in p.
func (p *Policy) Validate() error {
	var errs []error
	check := func(list string, rules []Rule) {
		for i, r := range rules {
			at := r.At
			if at == "" {
				at = fmt.Sprintf("%s[%d]", list, i)
			}
			if len(r.Hosts)+len(r.CIDRs)+len(r.Ports) == 0 {
				errs = append(errs, fmt.Errorf("%s: names nothing; want hosts, cidrs or ports", at))
			}
			for _, h := range r.Hosts {
				if err := checkPattern(h); err != nil {
					errs = append(errs, fmt.Errorf("%s: %w", at, err))
				}
			}
			for _, c := range r.CIDRs {
				if !c.IsValid() {
					errs = append(errs, fmt.Errorf("%s: not a prefix; want such as 10.1.0.0/16", at))
				}
			}
			for _, ports := range r.Ports {
				if ports.First == 0 || ports.Last < ports.First {
					errs = append(errs, fmt.Errorf("%s: ports %s; want 1 to 65535, the lower first", at, ports))
				}
			}
		}
	}
	check("allow", p.Allow)
	check("deny", p.Deny)
	if p.Proxy != nil {
		errs = append(errs, p.Proxy.validate())
	}
	for _, h := range p.Pins {
		if err := checkPattern(h.Host); err != nil {
			errs = append(errs, fmt.Errorf("pins: %w", err))
		}
	}
	return errors.Join(errs...)
}

// checkPattern says what is wrong with a host of a rule.
func checkPattern(h string) error {
	name, _ := strings.CutPrefix(h, "*.")
	if _, err := netip.ParseAddr(name); err == nil {
		return fmt.Errorf("host %.80q is an address; give it under cidrs, such as %s/32", h, "192.0.2.1")
	}
	if err := checkHost(name); err != nil {
		return err
	}
	if name != canonical(name) {
		return fmt.Errorf("host %.80q: write it in lower case, without a dot at the end: %.80q", h, strings.TrimSuffix(h, name)+canonical(name))
	}
	return nil
}

// canonical is how a name is compared: whatever case, with and without the root's dot, it is one host.
func canonical(host string) string { return strings.ToLower(strings.TrimSuffix(host, ".")) }

// matchHost reports whether pattern names host, which is canonical.
func matchHost(pattern, host string) bool {
	if below, ok := strings.CutPrefix(pattern, "*"); ok {
		return len(host) > len(below) && strings.HasSuffix(host, below)
	}
	return pattern == host
}

// host returns the pattern that names a canonical host; ok also where r gives no hosts.
func (r *Rule) host(host string) (pattern string, ok bool) {
	for _, p := range r.Hosts {
		if matchHost(p, host) {
			return p, true
		}
	}
	return "", len(r.Hosts) == 0
}

func (r *Rule) port(port uint16) bool {
	return len(r.Ports) == 0 || slices.ContainsFunc(r.Ports, func(p PortRange) bool { return p.First <= port && port <= p.Last })
}

// addr returns the prefix that holds a; ok also where r gives none.
func (r *Rule) addr(a netip.Addr) (prefix netip.Prefix, ok bool) {
	for _, p := range r.CIDRs {
		if p.Contains(a) {
			return p, true
		}
	}
	return prefix, len(r.CIDRs) == 0
}

func (r *Rule) at() string {
	if r.At == "" {
		return "this process's options"
	}
	return r.At
}
