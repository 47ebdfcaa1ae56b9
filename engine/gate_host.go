package engine

import (
	"context"
	"maps"
	"math"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// hosts are the gates of the hosts that subscriptions in force send to.
type hosts struct {
	e  *Engine
	mu sync.Mutex
	by map[string]*hostGate // by "host:port"

	limits map[string]event.Host // of the definition in force, by host or host:port
}

// A hostGate is what all subscriptions that send to one host:port share: a circuit that counts only that nothing
// is answered at all, a rate, and so many sends at once. Those who find it shut stand in line and are let through
// in turn, one send each.
type hostGate struct {
	e    *Engine
	name string
	refs int // definitions; guarded by hosts.mu

	plain atomic.Bool   // nothing is limited, and all is well: nobody needs the mutex
	shaky atomic.Bool   // plain, with failures since the last success
	epoch atomic.Uint32 // of circuit

	mu      sync.Mutex // taken after a subscription's
	circuit breaker
	limits  event.Host
	rate    bucket
	busy    int           // sends under way that are counted
	by      *subscription // whose failures those in a row are,
	several bool          // unless they are of several
	line    fifo[*subscription]
	inLine  map[*subscription]struct{}
	invited map[*subscription]struct{} // out of the line, woken, and not come yet
	until   int64                      // that places are kept for the first of them
	alarm   alarm
}

// hostPass is a pass's part of its host.
type hostPass struct {
	epoch uint32
	plain bool // not counted
	probe bool
}

// inviteFor is how long a place is kept for a subscription whose turn it is: it comes at once unless it was
// stopped at that very moment.
const inviteFor = int64(20 * time.Millisecond)

// use returns the gate of a host, for one definition.
func (h *hosts) use(name string) *hostGate {
	h.mu.Lock()
	defer h.mu.Unlock()
	g := h.by[name]
	if g == nil {
		g = &hostGate{e: h.e, name: name, inLine: map[*subscription]struct{}{}, invited: map[*subscription]struct{}{}}
		g.alarm.ring = func(context.Context) { g.ring(h.e.now().UnixNano()) }
		g.limit(h.limitsOf(name))
		if h.by == nil {
			h.by = map[string]*hostGate{}
		}
		h.by[name] = g
	}
	g.refs++
	return g
}

// leave gives back what use returned.
func (h *hosts) leave(g *hostGate) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if g.refs--; g.refs == 0 {
		delete(h.by, g.name)
		h.e.alarms.set(&g.alarm, 0)
	}
}

// set puts other limits in force.
func (h *hosts) set(list []event.Host) {
	limits := make(map[string]event.Host, len(list))
	for _, l := range list {
		limits[l.Name] = l
	}
	h.mu.Lock()
	if maps.Equal(h.limits, limits) {
		h.mu.Unlock()
		return
	}
	h.limits = limits
	gates := make([]*hostGate, 0, len(h.by))
	for _, g := range h.by {
		g.limit(h.limitsOf(g.name))
		gates = append(gates, g)
	}
	h.mu.Unlock()
	for _, g := range gates {
		g.ring(h.e.now().UnixNano())
	}
}

// limitsOf are those of a host:port, else those of its host. The caller holds h.mu.
func (h *hosts) limitsOf(name string) event.Host {
	if l, ok := h.limits[name]; ok {
		return l
	}
	host, _, err := net.SplitHostPort(name)
	if err != nil {
		host = name
	}
	return h.limits[host]
}

func (h *hostGate) limit(l event.Host) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.limits = l
	h.rate.set(l.Rate, h.e.now().UnixNano())
	h.settled()
}

// settled sets plain anew. The caller holds h.mu.
func (h *hostGate) settled() {
	h.epoch.Store(h.circuit.epoch)
	h.shaky.Store(h.circuit.failures > 0)
	h.plain.Store(h.circuit.calm() && h.limits.Concurrency == 0 && h.limits.Rate == 0 && h.line.len() == 0)
}

// free is how many sends may begin now, and when it is worth looking again if none may; 0: when one ends.
func (h *hostGate) free(now int64) (n int, at int64) {
	ok, at := h.circuit.admits(now)
	if !ok {
		return 0, at
	}
	n = h.circuit.free(now)
	if h.limits.Concurrency > 0 {
		n = min(n, h.limits.Concurrency-h.busy)
	}
	if n <= 0 {
		return 0, 0
	}
	if ok, at = h.rate.ready(now); !ok {
		return 0, at
	}
	if h.limits.Rate > 0 {
		n = min(n, int(h.rate.tokens))
	}
	return n, 0
}

// enter lets one send of s through, or puts s in line. The caller holds s.mu.
func (h *hostGate) enter(s *subscription, now int64) (hostPass, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, turn := h.invited[s]
	delete(h.invited, s)
	n, _ := h.free(now)
	if n > 0 && (turn || n > len(h.invited) && h.line.len() == 0) {
		h.busy++
		h.circuit.out++
		h.rate.take(1)
		return hostPass{epoch: h.circuit.epoch, probe: h.circuit.state == circuitHalfOpen}, true
	}
	if _, in := h.inLine[s]; !in {
		h.inLine[s] = struct{}{}
		h.line.push(s)
	}
	h.plain.Store(false)
	h.arm(now)
	return hostPass{}, false
}

// arm sets the alarm for who stands in line. The caller holds h.mu.
func (h *hostGate) arm(now int64) {
	n, at := h.free(now)
	switch {
	case h.line.len() == 0 && len(h.invited) == 0:
		at = 0
	case len(h.invited) > 0: // should one of them not come
		at = h.until
	case n > 0:
		at = now
	}
	h.e.alarms.set(&h.alarm, at)
}

// next takes those out of the line whose turn it is. The caller holds h.mu.
func (h *hostGate) next(now int64) []*subscription {
	var turn []*subscription
	for n, _ := h.free(now); h.line.len() > 0 && n > len(h.invited); {
		s := h.line.pop()
		delete(h.inLine, s)
		if len(h.invited) == 0 {
			h.until = now + inviteFor
		}
		h.invited[s] = struct{}{}
		turn = append(turn, s)
	}
	h.arm(now)
	h.settled()
	return turn
}

// instead is turnKeeper.instead. The caller holds no lock.
func (h *hostGate) instead(s *subscription, now int64) []*subscription {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.invited, s)
	return h.next(now)
}

// ring is what the alarm does.
func (h *hostGate) ring(now int64) {
	h.mu.Lock()
	if now >= h.until {
		clear(h.invited)
	}
	turn := h.next(now)
	h.mu.Unlock()
	wakeInTurn(h, turn, now)
}

// withdraw gives back a pass with which nothing was sent. The caller may hold a subscription's mutex.
func (h *hostGate) withdraw(p hostPass) {
	if p.plain {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.busy--
	h.circuit.left(p.epoch)
	h.rate.take(-1)
	h.arm(h.e.now().UnixNano())
}

// passed notes how a send ended, and calls who may go next. It reports whether the host is down. The caller holds no
// lock.
func (h *hostGate) passed(s *subscription, p hostPass, v verdict) (down bool) {
	if p.plain && (v.kind == noVerdict || v.kind != noAnswer && !h.shaky.Load()) {
		return false
	}
	now := h.e.now().UnixNano()
	h.mu.Lock()
	b := &h.circuit
	current := p.epoch == b.epoch
	if !p.plain {
		h.busy--
		b.left(p.epoch)
	}
	var opened, closed bool
	was := b.since
	switch {
	case !current || v.kind == noVerdict:
	case v.kind == noAnswer:
		opened = h.failed(s, v, now)
	default:
		full := math.MaxInt
		if h.line.len() == 0 {
			full = b.limit
		}
		closed = b.succeeded(now, full)
	}
	down = b.state != circuitClosed
	reason, next, failures := b.reason, b.next, b.failures
	turn := h.next(now)
	h.mu.Unlock()
	switch {
	case opened:
		h.e.o.Log.Warn("a host does not answer and its circuit opens; events for it wait and no attempt is spent on them",
			"host", h.name, "failures", failures, "next", time.Unix(0, next).UTC(), "error", reason)
	case closed:
		h.e.o.Log.Warn("a host answers again; its circuit is closed", "host", h.name, "open for", time.Duration(now-was).Round(time.Millisecond))
	}
	wakeInTurn(h, turn, now)
	return down
}

// failed notes that a send of s got no answer. What fails for one subscription alone is about that one: the path or
// certificate that it asks for, say. Its own circuit opens then; others go on. The caller holds h.mu.
func (h *hostGate) failed(s *subscription, v verdict, now int64) (opened bool) {
	b := &h.circuit
	if b.failures == 0 {
		h.by, h.several = s, false
	}
	h.several = h.several || h.by != s
	limits := h.e.circuit
	if !h.several && b.state == circuitClosed {
		limits.failures = -1
	}
	return b.failed(now, limits, clip(v.err.Error(), 512), v.after)
}

func (h *hostGate) info(now int64) CircuitInfo {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.circuit.info(now)
}

// probeNow has an open circuit tried at once. The caller may hold a subscription's mutex.
func (h *hostGate) probeNow() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.circuit.state == circuitOpen {
		now := h.e.now().UnixNano()
		h.circuit.next = now
		h.arm(now)
	}
}
