// Package admission bounds what clients may have and send, whichever protocol they speak: connections, requests, and
// memory for what is being read. The faces of a router share one Door, so that nobody gains by speaking another
// protocol.
package admission

import (
	"fmt"
	"hash/maphash"
	"math"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/event"
)

// Limits bound what one client may ask for, whoever it is. What one principal may, its roles say. The zero value of a field
// means its default; below zero is no bound.
type Limits struct {
	// Conns is how many connections one address may have at once, of IPv6 one /64. The default is a tenth of MaxConns,
	// and loopback is then not bound; trusted proxies never are.
	Conns int
	// Rate is how many requests a second one address may send, and Burst how many at once after a pause. The default is
	// no bound: what comes in is bound by principal.
	Rate  float64
	Burst int
	// StrangerRate is how many requests a second an address may send that nobody known stands for: wrong credentials, and
	// calls that are open to strangers. 20; StrangerBurst is 200.
	StrangerRate  float64
	StrangerBurst int
	// Proxies are addresses that stand for many clients: their connections are not bound, and their word is taken about
	// the client's address: of X-Forwarded-For, or with Forwarded of the header of that name (RFC 7239).
	Proxies   []netip.Prefix
	Forwarded bool
}

// Trusts reports whether an address is one of the proxies.
func (l *Limits) Trusts(a netip.Addr) bool {
	for _, p := range l.Proxies {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// Client is the address of who sent a request with these headers, where peer is who sent it to us.
func (l *Limits) Client(peer netip.Addr, forwardedFor, forwarded string) netip.Addr {
	if len(l.Proxies) == 0 {
		return peer
	}
	if l.Forwarded {
		forwardedFor = forwarded
	}
	return ClientOf(peer, forwardedFor, l.Forwarded, l.Trusts)
}

func (l Limits) withDefaults() Limits {
	if l.StrangerRate == 0 {
		l.StrangerRate = 20
	}
	if l.StrangerBurst == 0 {
		l.StrangerBurst = 200
	}
	return l
}

func (l Limits) validate() error {
	for name, v := range map[string]float64{"Rate": l.Rate, "StrangerRate": l.StrangerRate} {
		if math.IsNaN(v) || math.IsInf(v, 0) || v > 1e9 {
			return fmt.Errorf("options: %s is %v; want requests a second, up to 1e9", name, v)
		}
	}
	return nil
}

// Options configure a Door. The zero value of a field means its default.
type Options struct {
	Limits
	Guard *access.Guard // says who callers are; nil is one that is off
	// MaxConns is how many connections Enter lets in at once; 10,000. Faces that count their own, as HTTP does, do not
	// use it, but a tenth of it bounds every address on all of them.
	MaxConns int
	// Bytes is what large bodies may take together while they are read and answered; 256 MiB.
	Bytes   int64
	Recheck time.Duration // between two looks whether whoever has a connection open may go on; 10 s
	Now     func() time.Time

	Usage     func() Usage  // of the process's memory; nil: the runtime's own figures
	LookEvery time.Duration // between two looks at it; 100 ms
}

// A Door lets clients in or does not. Its methods may be called from several goroutines.
type Door struct {
	o          Options
	start      time.Time
	seed       maphash.Seed
	addrs      *table[addrKey]
	principals *table[string]
	address    rate
	strangers  rate
	entered    atomic.Int64 // connections that Enter let in
	rooms      rooms
	pressure   *pressure
	refused    [limits]atomic.Uint64
}

// New returns a door.
func New(o Options) (*Door, error) {
	o.Limits = o.Limits.withDefaults()
	if err := o.Limits.validate(); err != nil {
		return nil, fmt.Errorf("admission: %w", err)
	}
	if o.Guard == nil {
		var err error
		if o.Guard, err = access.New(access.Options{Off: true}); err != nil {
			return nil, fmt.Errorf("admission: %w", err)
		}
	}
	if o.MaxConns == 0 {
		o.MaxConns = 10_000
	}
	if o.Bytes == 0 {
		o.Bytes = 256 << 20
	}
	if o.Recheck == 0 {
		o.Recheck = 10 * time.Second
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	d := &Door{o: o, start: time.Now(), seed: maphash.MakeSeed(), addrs: newTable[addrKey](), principals: newTable[string](),
		address: newRate(o.Rate, o.Burst), strangers: newRate(o.StrangerRate, o.StrangerBurst), pressure: newPressure()}
	d.rooms.budget = o.Bytes
	if o.Usage != nil {
		d.pressure.sample = o.Usage
	}
	if o.LookEvery > 0 {
		d.pressure.every = int64(o.LookEvery)
	}
	return d, nil
}

// Client is the address of who sent a request: see Limits.Client.
func (d *Door) Client(peer netip.Addr, forwardedFor, forwarded string) netip.Addr {
	return d.o.Client(peer, forwardedFor, forwarded)
}

// Guard says who callers are.
func (d *Door) Guard() *access.Guard { return d.o.Guard }

// A Limit names a limit in what is counted.
type Limit int

// The limits.
const (
	Conns Limit = iota
	AddressConns
	AddressRate
	StrangerRate
	PrincipalConns
	PrincipalRate
	Memory
	Bodies
	HeaderSize
	BodySize
	Slow
	limits
)

func (l Limit) String() string {
	return [limits]string{"connections", "address_connections", "address_rate", "stranger_rate", "principal_connections",
		"principal_rate", "memory", "bodies", "header_size", "body_size", "slow"}[l]
}

// Refused counts something that a limit has refused. The door's own methods have counted what they refuse.
func (d *Door) Refused(l Limit) { d.refused[l].Add(1) }

// Refusals calls each with every limit and how often it has refused something.
func (d *Door) Refusals(each func(limit string, n uint64)) {
	for l := range limits {
		each(l.String(), d.refused[l].Load())
	}
}

// TooMany is the error of a client that has, or asks for, more than it may.
type TooMany struct {
	Limit Limit
	Wait  time.Duration // after which it may try again
	Burst int           // how much the rate gives at once after a pause; 0 where it is no rate
	text  string
}

func (t *TooMany) Error() string { return t.text }

func (d *Door) tooMany(l Limit, wait time.Duration, r rate, format string, args ...any) *TooMany {
	d.Refused(l)
	t := &TooMany{Limit: l, Wait: wait, text: fmt.Sprintf(format, args...)}
	if r.bounds() {
		t.Burst = r.burst()
	}
	return t
}

// now is monotonic, so that a wall clock that is set gives nobody credit.
func (d *Door) now() int64 { return int64(time.Since(d.start)) }

// Account is that of an address: of IPv6 its /64's.
func (d *Door) Account(a netip.Addr) *Account { return d.addrs.get(keyOf(a), d.now()) }

// connsOf is how many connections an address may have; 0: as many as it likes.
func (d *Door) connsOf(a netip.Addr) int {
	switch {
	case d.o.Conns < 0 || !a.IsValid() || d.o.Trusts(a):
		return 0
	case d.o.Conns > 0:
		return d.o.Conns
	case a.IsLoopback():
		return 0
	}
	return max(d.o.MaxConns/10, 1)
}

// Connect counts another connection of an address on its account, or says that it is one too many: a *TooMany.
func (d *Door) Connect(b *Account, a netip.Addr) error {
	if n, most := int(b.conns.Add(1)), d.connsOf(a); most > 0 && n > most {
		b.conns.Add(-1)
		return d.tooMany(AddressConns, time.Second, rate{}, "your address has %d connections open, which is the limit; use those", most)
	}
	return nil
}

// Disconnect ends what Connect and ConnectAs have counted.
func (b *Account) Disconnect() { b.conns.Add(-1) }

// Request takes a request from what an address may send; an error is a *TooMany.
func (d *Door) Request(b *Account) error {
	if !d.address.bounds() {
		return nil
	}
	if wait := b.requests.take(d.now(), d.address); wait > 0 {
		return d.tooMany(AddressRate, wait, d.address, "your address sends more than %g requests a second; wait", d.o.Rate)
	}
	return nil
}

// Guessing says that an address has asked too often without being known: a *TooMany. Ask before its credentials are looked
// at: were right ones let through, guessing would cost only the guesses that were wrong.
func (d *Door) Guessing(b *Account) error {
	if !d.strangers.bounds() {
		return nil
	}
	if n, _ := b.strangers.left(d.now(), d.strangers); n > 0 {
		return nil
	}
	return d.tooStrange(time.Duration(d.strangers.each))
}

// Stranger takes a request that nobody known stands for from what an address may send; an error is a *TooMany.
func (d *Door) Stranger(b *Account) error {
	if !d.strangers.bounds() {
		return nil
	}
	if wait := b.strangers.take(d.now(), d.strangers); wait > 0 {
		return d.tooStrange(wait)
	}
	return nil
}

func (d *Door) tooStrange(wait time.Duration) error {
	return d.tooMany(StrangerRate, wait, d.strangers, "your address has sent too many requests without valid credentials; wait")
}

// Hash is of what a caller shows, to know it again on his connection. Its seed is the process's own.
func (d *Door) Hash(bearer string) uint64 { return maphash.String(d.seed, bearer) }

// ConnectAs counts a connection as its principal's; held is the account of whom it counted as before. An error is a
// *TooMany.
func (d *Door) ConnectAs(p *access.Principal, held *atomic.Pointer[Account]) error {
	most := p.Limits.Conns
	if most <= 0 {
		return nil
	}
	b := d.principals.get(p.Identity(), d.now())
	if held.Load() == b {
		return nil
	}
	if n := b.conns.Add(1); int(n) > most {
		b.conns.Add(-1)
		return d.tooMany(PrincipalConns, time.Second, rate{}, "%s has %d connections open, which is the limit; use those", p.Name, most)
	}
	if before := held.Swap(b); before != nil {
		before.Disconnect()
	}
	return nil
}

// Standing is how a principal stands to his rate.
type Standing struct {
	Burst int           // how many requests the rate gives at once after a pause; 0: there is no rate
	Left  int           // how many there are now
	Full  time.Duration // until there are all again
}

// RequestAs takes a request from what a principal may send; an error is a *TooMany.
func (d *Door) RequestAs(p *access.Principal) (Standing, error) {
	r := newRate(p.Limits.Rate, p.Limits.Burst)
	if !r.bounds() {
		return Standing{}, nil
	}
	now := d.now()
	b := d.principals.get(p.Identity(), now)
	if wait := b.requests.take(now, r); wait > 0 {
		return Standing{}, d.tooMany(PrincipalRate, wait, r, "%s sends more than %g requests a second; wait", p.Name, p.Limits.Rate)
	}
	n, full := b.requests.left(now, r)
	return Standing{r.burst(), n, full}, nil
}

// ErrRevoked is why what a client keeps open ends: the client may not go on.
var ErrRevoked = fmt.Errorf("what you have shown is not valid any more, or you may not read this any more: %w", event.ErrDenied)
