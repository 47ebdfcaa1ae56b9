package httpapi

import (
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/engine/access"
	"github.com/valyala/fasthttp"
)

// ClientLimits bound what one client may ask for, whoever it is. What one principal may, its roles say. The zero value
// of a field means its default; below zero is no bound.
type ClientLimits struct {
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
	// Proxies are whose word about the client's address is taken: of X-Forwarded-For, or with Forwarded of the header
	// of that name (RFC 7239).
	Proxies   []netip.Prefix
	Forwarded bool
	// BodyRate is how many bytes a second of a large body must arrive, after BodyGrace; 4 KiB and 10 s.
	BodyRate  int
	BodyGrace time.Duration
}

func (o ClientLimits) withDefaults() ClientLimits {
	if o.StrangerRate == 0 {
		o.StrangerRate = 20
	}
	if o.StrangerBurst == 0 {
		o.StrangerBurst = 200
	}
	if o.BodyRate == 0 {
		o.BodyRate = 4 << 10
	}
	if o.BodyGrace == 0 {
		o.BodyGrace = 10 * time.Second
	}
	return o
}

func (o ClientLimits) validate() error {
	for name, v := range map[string]float64{"Rate": o.Rate, "StrangerRate": o.StrangerRate} {
		if math.IsNaN(v) || math.IsInf(v, 0) || v > 1e9 {
			return fmt.Errorf("options: Clients.%s is %v; want requests a second, up to 1e9", name, v)
		}
	}
	return nil
}

// A limitKind names a limit in what is counted.
type limitKind int

const (
	limitConns limitKind = iota
	limitAddressConns
	limitAddressRate
	limitStrangers
	limitPrincipalConns
	limitPrincipalRate
	limitMemory
	limitBodies
	limitHeader
	limitBody
	limitSlow
	limitKinds
)

// limitNames are the label's values of millrace_limit_refusals_total.
var limitNames = [limitKinds]string{"connections", "address_connections", "address_rate", "stranger_rate", "principal_connections",
	"principal_rate", "memory", "bodies", "header_size", "body_size", "slow"}

// limiter keeps what clients have used.
type limiter struct {
	o          ClientLimits
	start      time.Time
	seed       maphash.Seed
	addrs      *table[addrKey]
	principals *table[string]
	address    rate
	strangers  rate

	refused    [limitKinds]atomic.Uint64
	handshakes atomic.Uint64 // that failed
	turning    chan struct{} // connections that are being turned away politely
	turned     sync.WaitGroup
}

func newLimiter(o ClientLimits) *limiter {
	return &limiter{o: o, start: time.Now(), seed: maphash.MakeSeed(), addrs: newTable[addrKey](), principals: newTable[string](),
		address: newRate(o.Rate, o.Burst), strangers: newRate(o.StrangerRate, o.StrangerBurst), turning: make(chan struct{}, 64)}
}

// now is monotonic, so that a wall clock that is set gives nobody credit.
func (l *limiter) now() int64 { return int64(time.Since(l.start)) }

func (l *limiter) proxy(a netip.Addr) bool {
	for _, p := range l.o.Proxies {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// connsOf is how many connections an address may have; 0: as many as it likes.
func (l *limiter) connsOf(a netip.Addr, maxConns int) int {
	switch {
	case l.o.Conns < 0 || !a.IsValid() || l.proxy(a):
		return 0
	case l.o.Conns > 0:
		return l.o.Conns
	case a.IsLoopback():
		return 0
	}
	return max(maxConns/10, 1)
}

// LimitRefusals calls each with every limit and how often it has refused something.
func (s *Server) LimitRefusals(each func(limit string, n uint64)) {
	for i, name := range limitNames {
		each(name, s.limits.refused[i].Load())
	}
}

// Connections is the number of open connections: streams are among them.
func (s *Server) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// HandshakesFailed is the number of TLS handshakes that have failed.
func (s *Server) HandshakesFailed() uint64 { return s.limits.handshakes.Load() }

// enter counts a connection that was accepted; false: it was turned away.
func (s *Server) enter(c *conn) bool {
	l := s.limits
	if c.peer.IsValid() {
		b := l.addrs.get(keyOf(c.peer), l.now())
		c.counted = b
		if n, most := int(b.conns.Add(1)), l.connsOf(c.peer, s.o.MaxConns); most > 0 && n > most {
			b.conns.Add(-1)
			s.turnAway(c, limitAddressConns, fasthttp.StatusTooManyRequests, "your address has %d connections open, which is the limit; use those", most)
			return false
		}
	}
	s.mu.Lock()
	full := len(s.conns)-s.streams >= s.o.MaxConns
	if !full {
		s.conns[c] = struct{}{}
	}
	s.mu.Unlock()
	if full {
		if c.counted != nil {
			c.counted.conns.Add(-1)
		}
		s.turnAway(c, limitConns, fasthttp.StatusServiceUnavailable, "%d connections are open, which is the limit; try again", s.o.MaxConns)
	}
	return !full
}

// turnAway answers a connection that is one too many, without reading from it. Nobody waits for it: it is answered by
// a goroutine of a bounded number, or not at all, and behind TLS, where an answer would cost a handshake, it is closed.
func (s *Server) turnAway(c *conn, kind limitKind, status int, format string, args ...any) {
	s.limits.refused[kind].Add(1)
	if c.tls != nil {
		_ = c.raw.Close()
		return
	}
	select {
	case s.limits.turning <- struct{}{}:
	default:
		_ = c.raw.Close()
		return
	}
	s.limits.turned.Go(func() {
		defer func() { <-s.limits.turning }()
		defer c.raw.Close()
		c.answerPlain(status, fmt.Sprintf(format, args...))
		if w, ok := c.raw.(interface{ CloseWrite() error }); ok && w.CloseWrite() == nil {
			c.drain(lingerTime, 1<<20)
		}
	})
}

// leave is called once or more when a connection closes.
func (s *Server) leave(c *conn) {
	s.mu.Lock()
	_, here := s.conns[c]
	delete(s.conns, c)
	s.mu.Unlock()
	if !here {
		return
	}
	if c.counted != nil {
		c.counted.conns.Add(-1)
	}
	if b := c.holds.Swap(nil); b != nil {
		b.conns.Add(-1)
	}
	s.bodies.release(c)
}

// tooMany is the answer to a request past a limit. The headers are those of draft-ietf-httpapi-ratelimit-headers-03,
// which is what clients read.
func tooMany(wait time.Duration, r rate, format string, args ...any) *refusal {
	seconds := int((wait + time.Second - 1) / time.Second)
	after := strconv.Itoa(max(seconds, 1))
	bad := refuse(fasthttp.StatusTooManyRequests, format, args...).with("Retry-After", after)
	if r.bounds() {
		bad = bad.with("RateLimit-Limit", strconv.Itoa(r.burst())).with("RateLimit-Remaining", "0").with("RateLimit-Reset", after)
	}
	return bad
}

// arrive finds out by address whose request this is, and takes it from what that address may send, once. An address that
// has asked too often without being known is refused before its credentials are looked at: were right ones let
// through, guessing would cost only the guesses that were wrong. What was good on the same connection before goes on.
func (c *call) arrive(h *fasthttp.RequestHeader) error {
	nc, l := connOf(c.ctx), c.s.limits
	if nc == nil || nc.counted == nil || nc.asked {
		return nil
	}
	nc.asked, nc.from, nc.client = true, nc.peer, nc.counted
	if len(l.o.Proxies) > 0 && l.proxy(nc.peer) {
		value := c.h.forwardedFor
		if l.o.Forwarded {
			value = c.h.forwarded
		}
		if nc.from = clientOf(nc.peer, value, l.o.Forwarded, l.proxy); nc.from != nc.peer {
			nc.client = l.addrs.get(keyOf(nc.from), l.now())
		}
	}
	if l.address.bounds() {
		if wait := nc.client.requests.take(l.now(), l.address); wait > 0 {
			return l.tooFast(wait)
		}
	}
	if !l.strangers.bounds() {
		return nil
	}
	if n, _ := nc.client.strangers.left(l.now(), l.strangers); n == 0 {
		if cred, ok := c.credentials(h); ok && nc.known && nc.knownAs == l.hash(cred.Bearer) {
			return nil
		}
		return l.tooStrange(time.Duration(l.strangers.each))
	}
	return nil
}

// hash is of what a caller shows, to know it again on his connection. Its seed is the process's own.
func (l *limiter) hash(bearer string) uint64 { return maphash.String(l.seed, bearer) }

// isKnown finds out whether a call that strangers may make is of somebody known, where that changes the answer: guesses
// count like those at any other call.
func (c *call) isKnown() (bool, error) {
	h := &c.ctx.Request.Header
	if c.h.auth == "" && c.certificate() == nil && !c.s.o.Guard.Off() {
		return false, nil
	}
	if err := c.arrive(h); err != nil {
		return false, err
	}
	err := c.authenticate(h)
	if unknown(err) {
		return false, c.stranger()
	}
	return err == nil, nil
}

func (l *limiter) tooFast(wait time.Duration) error {
	l.refused[limitAddressRate].Add(1)
	return tooMany(wait, l.address, "your address sends more than %g requests a second; wait", l.o.Rate)
}

func (l *limiter) tooStrange(wait time.Duration) error {
	l.refused[limitStrangers].Add(1)
	return tooMany(wait, l.strangers, "your address has sent too many requests without valid credentials; wait")
}

// stranger takes a request that nobody known stands for from what its address may send.
func (c *call) stranger() error {
	nc, l := connOf(c.ctx), c.s.limits
	if nc == nil || nc.client == nil || nc.strange || !l.strangers.bounds() {
		return nil
	}
	nc.strange = true
	if wait := nc.client.strangers.take(l.now(), l.strangers); wait > 0 {
		return l.tooStrange(wait)
	}
	return nil
}

// strangerEnds takes a call that strangers may make from what the address may send where the call itself did not know
// the caller: err, or the status that it has set, is a refusal.
func (c *call) strangerEnds(err error) error {
	status := c.ctx.Response.StatusCode()
	if err != nil {
		p, _ := problemOf(err)
		status = p.Status
	}
	switch status {
	case fasthttp.StatusUnauthorized, fasthttp.StatusForbidden, fasthttp.StatusNotFound:
		if e := c.stranger(); e != nil {
			return e
		}
	}
	return err
}

// unknown reports whether err says that nobody known has asked.
func unknown(err error) bool {
	if err == nil {
		return false // before r is allocated
	}
	var r *refusal
	return errors.As(err, &r) && r.status == fasthttp.StatusUnauthorized || errors.Is(err, access.ErrUnauthenticated)
}

// limit takes the request from what its principal may send, once, and its connection from those it may have.
func (c *call) limit(p *access.Principal) error {
	nc, l := connOf(c.ctx), c.s.limits
	if nc == nil || p == nil {
		return nil
	}
	if p.Limits == (access.Limits{}) || nc.limited {
		return nil
	}
	nc.limited = true
	now := l.now()
	b := l.principals.get(p.Identity(), now)
	if most := p.Limits.Conns; most > 0 && nc.holds.Load() != b {
		if n := b.conns.Add(1); int(n) > most {
			b.conns.Add(-1)
			l.refused[limitPrincipalConns].Add(1)
			bad := tooMany(time.Second, rate{}, "%s has %d connections open, which is the limit; use those", p.Name, most)
			bad.close = true
			return bad
		}
		if before := nc.holds.Swap(b); before != nil {
			before.conns.Add(-1)
		}
	}
	r, err := l.spend(p, b, now)
	if err == nil && r.bounds() {
		c.tellLimit(b, now, r)
	}
	return err
}

// spend takes one request from what a principal, whose bucket b is, may send.
func (l *limiter) spend(p *access.Principal, b *bucket, now int64) (rate, error) {
	r := newRate(p.Limits.Rate, p.Limits.Burst)
	if !r.bounds() {
		return r, nil
	}
	if wait := b.requests.take(now, r); wait > 0 {
		l.refused[limitPrincipalRate].Add(1)
		return r, tooMany(wait, r, "%s sends more than %g requests a second; wait", p.Name, p.Limits.Rate)
	}
	return r, nil
}

// tellLimit says on every answer to a principal with a rate what is left of it.
func (c *call) tellLimit(b *bucket, now int64, r rate) {
	if c.ctx == nil {
		return
	}
	n, full := b.requests.left(now, r)
	var buf [20]byte
	h := &c.ctx.Response.Header
	h.SetBytesV("RateLimit-Limit", strconv.AppendInt(buf[:0], int64(r.burst()), 10))
	h.SetBytesV("RateLimit-Remaining", strconv.AppendInt(buf[:0], int64(n), 10))
	h.SetBytesV("RateLimit-Reset", strconv.AppendInt(buf[:0], int64((full+time.Second-1)/time.Second), 10))
}

// requestEnds forgets what was decided about a request, for the next one on its connection.
func (c *conn) requestEnds() {
	c.s.bodies.release(c)
	c.asked, c.limited, c.strange, c.refusal, c.incoming = false, false, false, nil, arriving{}
}

// drain reads what the peer still sends, for a while.
func (c *conn) drain(d time.Duration, most int64) {
	_ = c.raw.SetReadDeadline(time.Now().Add(d))
	var b [512]byte
	for most > 0 {
		n, err := c.raw.Read(b[:])
		if most -= int64(n); err != nil {
			return
		}
	}
}
