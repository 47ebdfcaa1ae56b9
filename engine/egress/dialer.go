// Package egress connects to outside places without letting a rules file, an API client or a DNS server
// point the router at its own machine or network: every address is checked against the registries of
// special-purpose addresses and the operator's lists, and the address that was checked is the one connected to.
package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
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
	Policy       *Policy        // besides those; SetPolicy puts another in its place
	Timeout      time.Duration  // bounds one DialContext, lookup and wait for a slot included; 10 s
	Resolver     Resolver       // the system's
	PerHost      int            // connections open to one host name at once; 256
}

// attempts is how many of a host's addresses one DialContext tries.
const attempts = 4

// Dialer opens guarded TCP connections. It may be used from several goroutines at once. It obeys no
// proxy variable of the environment.
type Dialer struct {
	*shared
	named bool // targets were named by the operator: see Operator
}

// shared is what a Dialer and its Operator have in common.
type shared struct {
	o        Options
	specials []special
	slots    slots
	rules    atomic.Pointer[ruleset]
	setting  sync.Mutex // held by SetPolicy
	refusals [reasons]atomic.Uint64
	clients  sync.Mutex
	client   map[bool]*http.Client // by Dialer.named
}

// ruleset is what is in force: a policy and what the options add to it.
type ruleset struct {
	Policy
	allow, deny []Rule
	epoch       uint64
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
	d := &Dialer{shared: &shared{o: o, specials: specials(), client: map[bool]*http.Client{}}}
	d.slots.init(o.PerHost)
	if o.Policy == nil {
		o.Policy = &Policy{}
	}
	errs = append(errs, d.SetPolicy(o.Policy))
	return d, errors.Join(errs...)
}

// SetPolicy puts p in force, or says what is wrong in it and changes nothing. Connections that p does not allow are
// closed, also while they are in use; idle ones are not used again.
func (d *Dialer) SetPolicy(p *Policy) error {
	if err := p.Validate(); err != nil {
		return fmt.Errorf("egress: %w", err)
	}
	next := &ruleset{Policy: *p, allow: p.Allow, deny: p.Deny}
	next.Private = next.Private || d.o.AllowPrivate
	if len(d.o.Allow) > 0 {
		next.allow = append([]Rule{{CIDRs: d.o.Allow}}, next.allow...)
	}
	if len(d.o.Deny) > 0 {
		next.deny = append([]Rule{{CIDRs: d.o.Deny}}, next.deny...)
	}
	var err error
	if next.tls, err = NewTLS(p.TLS); err != nil {
		return fmt.Errorf("egress: tls: %w", err)
	}
	d.setting.Lock()
	defer d.setting.Unlock()
	if was := d.rules.Load(); was != nil {
		next.epoch = was.epoch + 1
	}
	d.rules.Store(next)
	for _, c := range d.slots.all() {
		if d.recheck(next, c) != nil {
			_ = c.Close()
		}
	}
	d.clients.Lock()
	defer d.clients.Unlock()
	for _, c := range d.client {
		c.CloseIdleConnections()
	}
	return nil
}

// Operator returns the same dialer for targets that the operator has named on the command line or in a file of the
// process: they may lie on its own network and need no rule of allow. What is denied stays so.
func (d *Dialer) Operator() *Dialer { return &Dialer{shared: d.shared, named: true} }

// A target is what is to be connected to, before its addresses are known.
type target struct {
	host  string // as it was given
	name  string // canonical; "" for an address
	port  uint16 // 0: any
	named bool   // by the operator
}

func (d *Dialer) target(addr string) (t target, err error) {
	host, portText, err := net.SplitHostPort(addr)
	if err != nil {
		return t, fmt.Errorf("dial %.80q: want host:port: %w", addr, err)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil || port == 0 {
		return t, fmt.Errorf("dial %.80s: port %.20q: want 1 to 65535", host, portText)
	}
	if err := checkHost(host); err != nil {
		d.refused(reasonNotation)
		return t, fmt.Errorf("dial: %w", err)
	}
	t = target{host: host, port: uint16(port), named: d.named}
	if _, err := netip.ParseAddr(host); err != nil {
		t.name = canonical(host)
	}
	return t, nil
}

// DialContext resolves the host of addr ("host:port") once, checks its addresses, and connects to the
// first of at most four allowed ones that answers, through the proxy if there is one. The connection is a *Conn. A host
// beyond its cap of connections waits until one closes or is idle. Network is "tcp", "tcp4" or "tcp6". The error is a
// *blockedError where no address is allowed.
func (d *Dialer) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	lookup, ok := map[string]string{"tcp": "ip", "tcp4": "ip4", "tcp6": "ip6"}[network]
	if !ok {
		return nil, fmt.Errorf("dial %.80s: network %q: want tcp, tcp4 or tcp6", addr, network)
	}
	t, err := d.target(addr)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, d.o.Timeout)
	defer cancel()

	slot, err := d.slots.acquire(ctx, canonical(t.host))
	if err != nil {
		return nil, err
	}
	c, err := d.connect(ctx, network, lookup, t)
	if err != nil {
		slot.release()
		var blocked *blockedError
		if errors.As(err, &blocked) {
			d.refused(blocked.reason)
		}
		return nil, err
	}
	slot.keep(c)
	if now := d.rules.Load(); now.epoch != c.epoch { // SetPolicy has not seen it
		if err := d.recheck(now, c); err != nil {
			_ = c.Close()
			return nil, err
		}
	}
	return c, nil
}

// recheck judges an open connection by other rules than those that it was opened under.
func (d *Dialer) recheck(r *ruleset, c *Conn) error {
	if err := d.checkName(r, c.target); err != nil || !c.addr.IsValid() {
		return err
	}
	return d.check(r, c.target, c.addr)
}

func (d *Dialer) connect(ctx context.Context, network, lookup string, t target) (*Conn, error) {
	r := d.rules.Load()
	allowed, err := d.allowed(ctx, r, lookup, t)
	if err != nil {
		return nil, err
	}
	allowed = allowed[:min(len(allowed), attempts)]
	var errs []error
	for i, a := range allowed {
		to := hop{addr: a.Unmap(), port: t.port}
		if !a.IsValid() {
			to.name = t.host
		}
		raw, err := d.connectTo(ctx, r, network, t, to, len(allowed)-i)
		if err == nil {
			return &Conn{Conn: raw, target: t, addr: a, rules: &d.rules, epoch: r.epoch}, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, fmt.Errorf("connect to %.80s: %w", t.host, errors.Join(errs...))
}

// allowed returns the addresses of t that may be connected to, at least one. An invalid one stands for a name that is
// handed to the proxy.
func (d *Dialer) allowed(ctx context.Context, r *ruleset, lookup string, t target) ([]netip.Addr, error) {
	if err := d.checkName(r, t); err != nil {
		return nil, err
	}
	addrs, err := d.resolve(ctx, lookup, t)
	if err != nil {
		if r.Proxy.takesName(t) {
			return []netip.Addr{{}}, nil // only the proxy can tell
		}
		return nil, err
	}
	var blocked error
	allowed := addrs[:0]
	for _, a := range addrs {
		if err := d.check(r, t, a); err == nil {
			allowed = append(allowed, a)
		} else if blocked == nil {
			blocked = err
		}
	}
	if len(allowed) == 0 {
		return nil, blocked
	}
	if r.Proxy.takesName(t) {
		return []netip.Addr{{}}, nil
	}
	return allowed, nil
}

// A hop is what a connection is made to: an address, or a name that the proxy is to look up.
type hop struct {
	addr netip.Addr
	name string // instead
	port uint16
}

func (h hop) String() string {
	if h.name != "" {
		return net.JoinHostPort(h.name, strconv.Itoa(int(h.port)))
	}
	return netip.AddrPortFrom(h.addr, h.port).String()
}

// connectTo gives one address its share of what is left of the time.
func (d *Dialer) connectTo(ctx context.Context, r *ruleset, network string, t target, to hop, left int) (net.Conn, error) {
	if deadline, ok := ctx.Deadline(); ok && left > 1 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(deadline)/time.Duration(left))
		defer cancel()
	}
	if r.Proxy.takes(t, to.addr) {
		return r.Proxy.dial(ctx, r.tls, to)
	}
	// By address: no second lookup can answer otherwise than the one that was checked.
	c, err := new(net.Dialer).DialTCP(ctx, network, netip.AddrPort{}, netip.AddrPortFrom(to.addr, to.port))
	if err != nil {
		return nil, err // not c: a nil *net.TCPConn in an interface is not nil
	}
	return c, nil
}

// resolve returns the addresses of a target, at least one.
func (d *Dialer) resolve(ctx context.Context, lookup string, t target) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(t.host); err == nil {
		return []netip.Addr{a}, nil
	}
	addrs, err := d.o.Resolver.LookupNetIP(ctx, lookup, t.host)
	if err != nil {
		return nil, fmt.Errorf("look up %.80s: %w", t.host, err)
	}
	if len(addrs) == 0 {
		return nil, fmt.Errorf("look up %.80s: it has no address", t.host)
	}
	return append([]netip.Addr(nil), addrs...), nil // the caller reorders them
}
