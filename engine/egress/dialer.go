// Package egress connects to outside places without letting a rules file, an API client or a DNS server
// point the router at its own machine or network: every address is checked against the registries of
// special-purpose addresses, and the address that was checked is the one connected to.
package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Resolver finds a host's addresses; *net.Resolver is one. Network is "ip", "ip4" or "ip6".
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// Options of a Dialer. Zero means default.
type Options struct {
	AllowPrivate bool           // connect to special-purpose addresses too: --allow-private-targets
	Allow        []netip.Prefix // ranges to connect to although they are special
	Deny         []netip.Prefix // ranges never to connect to; stands above all else
	Timeout      time.Duration  // bounds one DialContext, lookup and wait for a slot included; 10 s
	Resolver     Resolver       // the system's
	PerHost      int            // connections open to one host name at once; 256
}

// attempts is how many of a host's addresses one DialContext tries.
const attempts = 4

// Dialer opens guarded TCP connections. It may be used from several goroutines at once. It obeys no
// proxy variable of the environment.
type Dialer struct {
	o        Options
	specials []special
	slots    slots
}

// New returns a Dialer, or what is wrong in o.
func New(o Options) (*Dialer, error) {
	var errs []error
	if o.Timeout < 0 {
		errs = append(errs, fmt.Errorf("egress: Timeout: %s is negative", o.Timeout))
	}
	if o.PerHost < 0 {
		errs = append(errs, fmt.Errorf("egress: PerHost: %d is negative", o.PerHost))
	}
	for i, p := range o.Allow {
		if !p.IsValid() {
			errs = append(errs, fmt.Errorf("egress: Allow[%d]: not a prefix; want such as 10.1.0.0/16", i))
		}
	}
	for i, p := range o.Deny {
		if !p.IsValid() {
			errs = append(errs, fmt.Errorf("egress: Deny[%d]: not a prefix; want such as 10.1.0.0/16", i))
		}
	}
	if o.Timeout == 0 {
		o.Timeout = 10 * time.Second
	}
	if o.PerHost == 0 {
		o.PerHost = 256
	}
	if o.Resolver == nil {
		o.Resolver = net.DefaultResolver
	}
	d := &Dialer{o: o, specials: specials()}
	d.slots.init(o.PerHost)
	return d, errors.Join(errs...)
}

// ErrBlocked is what every *BlockedError wraps.
var ErrBlocked = errors.New("address not allowed as a target")

// BlockedError says which address of a host may not be connected to, and why.
type BlockedError struct {
	Host  string // as it was given
	Addr  netip.Addr
	Range netip.Prefix
	Why   string // the registry's entry, or the option that denies it
	Hint  string // what would allow it
}

func (e *BlockedError) Error() string {
	at := e.Addr.String()
	if a, err := netip.ParseAddr(e.Host); err != nil || a != e.Addr {
		at = fmt.Sprintf("%.80s has the address %s", e.Host, at)
	}
	return fmt.Sprintf("%s, in %s (%s): not allowed as a target; %s", at, e.Range, e.Why, e.Hint)
}

// Unwrap returns ErrBlocked.
func (e *BlockedError) Unwrap() error { return ErrBlocked }

// CheckAddr returns a *BlockedError unless a may be connected to. IPv4 within IPv6 (mapped, compatible,
// translated, NAT64, 6to4, Teredo, ISATAP) counts as what it embeds.
func (d *Dialer) CheckAddr(a netip.Addr) error { return d.check(a.String(), a) }

func (d *Dialer) check(host string, a netip.Addr) error {
	bare := a.Unmap().WithZone("") // a Prefix contains no address with a zone
	inner := [3]netip.Addr{bare}
	n := 1
	if bare.Is6() {
		v4, k, _ := embedded(bare)
		n += copy(inner[1:], v4[:k])
	}
	for _, x := range inner[:n] {
		for _, p := range d.o.Deny {
			if p.Contains(x) {
				return &BlockedError{host, a, p, "denied by this process's options", "its operator decides"}
			}
		}
	}
	if d.o.AllowPrivate {
		return nil
	}
	s, ok := d.rangeOf(bare)
	if !ok {
		return nil
	}
	for _, p := range d.o.Allow {
		if p.Contains(bare) {
			return nil
		}
	}
	return &BlockedError{host, a, s.prefix, s.name + ", " + s.by, "--allow-private-targets allows it"}
}

// DialContext resolves the host of addr ("host:port") once, checks its addresses, and connects to the
// first of at most four allowed ones that answers. The connection is a *Conn. A host beyond its cap of
// connections waits until one closes or is idle. Network is "tcp", "tcp4" or "tcp6". The error is a
// *BlockedError where no address is allowed.
func (d *Dialer) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	lookup, ok := map[string]string{"tcp": "ip", "tcp4": "ip4", "tcp6": "ip6"}[network]
	if !ok {
		return nil, fmt.Errorf("dial %.80s: network %q: want tcp, tcp4 or tcp6", addr, network)
	}
	host, portText, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("dial %.80q: want host:port: %w", addr, err)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil || port == 0 {
		return nil, fmt.Errorf("dial %.80s: port %.20q: want 1 to 65535", host, portText)
	}
	if err := CheckHost(host); err != nil {
		return nil, fmt.Errorf("dial: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, d.o.Timeout)
	defer cancel()

	slot, err := d.slots.acquire(ctx, strings.ToLower(strings.TrimSuffix(host, ".")))
	if err != nil {
		return nil, err
	}
	tcp, err := d.connect(ctx, network, lookup, host, uint16(port))
	if err != nil {
		slot.release()
		return nil, err
	}
	return slot.conn(tcp), nil
}

func (d *Dialer) connect(ctx context.Context, network, lookup, host string, port uint16) (*net.TCPConn, error) {
	addrs, err := d.resolve(ctx, lookup, host)
	if err != nil {
		return nil, err
	}
	var blocked error
	allowed := addrs[:0]
	for _, a := range addrs {
		if err := d.check(host, a); err == nil {
			allowed = append(allowed, a)
		} else if blocked == nil {
			blocked = err
		}
	}
	if len(allowed) == 0 {
		return nil, blocked
	}
	allowed = allowed[:min(len(allowed), attempts)]
	var errs []error
	for i, a := range allowed {
		tcp, err := d.connectTo(ctx, network, netip.AddrPortFrom(a.Unmap(), port), len(allowed)-i)
		if err == nil {
			return tcp, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, fmt.Errorf("connect to %.80s: %w", host, errors.Join(errs...))
}

// connectTo gives one address its share of what is left of the time.
func (d *Dialer) connectTo(ctx context.Context, network string, to netip.AddrPort, left int) (*net.TCPConn, error) {
	if deadline, ok := ctx.Deadline(); ok && left > 1 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(deadline)/time.Duration(left))
		defer cancel()
	}
	// By address: no second lookup can answer otherwise than the one that was checked.
	return new(net.Dialer).DialTCP(ctx, network, netip.AddrPort{}, to)
}

// resolve returns the addresses of host, at least one.
func (d *Dialer) resolve(ctx context.Context, lookup, host string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}, nil
	}
	addrs, err := d.o.Resolver.LookupNetIP(ctx, lookup, host)
	if err != nil {
		return nil, fmt.Errorf("look up %.80s: %w", host, err)
	}
	if len(addrs) == 0 {
		return nil, fmt.Errorf("look up %.80s: it has no address", host)
	}
	return append([]netip.Addr(nil), addrs...), nil // the caller reorders them
}
