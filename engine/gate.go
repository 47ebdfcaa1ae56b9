package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// A gate is what a subscription's sender passes before it takes an event: the circuit of its target, its rate, and
// what all subscriptions to the same host share. An event that may not go now is not taken: it waits where it is,
// with no attempt spent. The subscription's mutex guards the gate.
type gate struct {
	circuit breaker
	rate    bucket
	shut    shutBy // senders are not woken until who shut it opens it
	alarm   alarm
	waited  bool   // for events to go together, and then could not go
	needs   int64  // bytes of the batch that did not fit into the budget of sends
	target  string // of the sink that the circuit is about

	rateWaits, hostWaits uint64 // sends that were put off
}

// shutBy says what a subscription's senders wait for.
type shutBy uint8

const (
	notShut shutBy = iota
	byCircuit
	byRate
	byHost
	byMemory
)

// A pass is one send's way through the gate and back.
type pass struct {
	epoch uint32
	probe bool // it tells whether the target is back
	host  *hostGate
	at    hostPass
}

// Hosted is what a Sink has that sends to one host: subscriptions to the same one share its circuit, and the limits
// set for it.
type Hosted interface {
	Host() string // "host:port"
}

// Targeted is what a Sink has that can say whether another one sends to the same place. The text is compared only;
// it may hold secrets.
type Targeted interface {
	Target() string
}

// verdict is what a send says about its target.
type verdict struct {
	err   error
	kind  verdictKind
	after time.Duration // the target asks to be left alone for
}

type verdictKind uint8

const (
	wellTarget   verdictKind = iota // it has answered and is at work, whatever it said
	unwellTarget                    // it has answered that it cannot: 5xx, 429
	noAnswer                        // name resolution, connection, TLS, timeout
	noVerdict                       // the send was not about it
)

func verdictOf(w *sender) verdict {
	err := w.err
	if err == nil {
		return verdict{}
	}
	v := verdict{err: err}
	var after *event.RetryAfter
	if errors.As(err, &after) {
		v.after = after.Wait
	}
	switch code := event.Code(err); {
	case w.aborted:
		v.kind = noVerdict
	case w.partial != nil || event.IsDisable(err): // an answer in detail, and one to be believed
	case event.IsStalled(err):
		v.kind = unwellTarget
	case code >= 500 || code == 429:
		v.kind = unwellTarget
	case code != 0:
	case event.IsPermanent(err):
		v.kind = noVerdict
	default:
		v.kind = noAnswer
	}
	return v
}

// enter lets one send through the gate, or sees to it that senders are woken when it would. The caller holds s.mu
// and has something to send.
func (s *subscription) enter(c *subConfig, p *pass) bool {
	g := &s.gate
	*p = pass{epoch: g.circuit.epoch}
	if g.circuit.calm() && c.Rate == 0 && (c.host == nil || c.host.plain.Load()) {
		g.circuit.out++
		if c.host != nil {
			p.host, p.at = c.host, hostPass{epoch: c.host.epoch.Load(), plain: true}
		}
		return true
	}
	now := s.e.now().UnixNano()
	ok, at := g.circuit.admits(now)
	if !ok {
		s.shutGate(byCircuit, at)
		return false
	}
	g.rate.set(c.Rate, now)
	if ok, at = g.rate.ready(now); !ok {
		g.rateWaits++
		s.shutGate(byRate, at)
		return false
	}
	if c.host != nil {
		if p.at, ok = c.host.enter(s, now); !ok {
			g.hostWaits++
			s.shutGate(byHost, 0)
			return false
		}
		p.host = c.host
	}
	g.rate.take(1)
	g.circuit.out++
	p.probe = g.circuit.state == circuitHalfOpen || p.at.probe
	return true
}

func (s *subscription) shutGate(by shutBy, at int64) {
	s.gate.shut = by
	s.e.alarms.set(&s.gate.alarm, at)
}

// A turnKeeper has a line of subscriptions that wait for something that they share: a host, memory.
type turnKeeper interface {
	// instead takes s, which did not come, out of those that were called, and returns whose turn it is in its place.
	instead(s *subscription, now int64) []*subscription
}

// wakeInTurn wakes those whose turn it is. The caller holds no lock.
func wakeInTurn(k turnKeeper, turn []*subscription, now int64) {
	for len(turn) > 0 {
		s := turn[0]
		turn = turn[1:]
		s.mu.Lock()
		comes := s.openGate()
		s.mu.Unlock()
		if !comes { // it has nothing to send any more
			turn = append(turn, k.instead(s, now)...)
		}
	}
}

// openGate lets senders be woken again. It reports whether there is something for them to do. The caller holds
// s.mu.
func (s *subscription) openGate() bool {
	s.gate.shut = notShut
	s.kick()
	return !s.ended && !s.stopped() && s.sendable(s.config.Load())
}

// sendable reports whether something waits to be sent. The caller holds s.mu.
func (s *subscription) sendable(c *subConfig) bool {
	return c.Deliver.Face == event.Push && (s.sends.len() > 0 || !s.transforms(c) && s.queue.len()+s.due.len() > 0)
}

// withdraw gives back a pass with which nothing was sent. The caller holds s.mu.
func (s *subscription) withdraw(p *pass) {
	s.gate.rate.take(-1)
	s.gate.circuit.left(p.epoch)
	if p.host != nil {
		p.host.withdraw(p.at)
	}
	if s.gate.shut == byCircuit {
		s.openGate()
	}
}

// sentOn notes how many events go out under one pass. The caller holds s.mu.
func (s *subscription) sentOn(events int) {
	if events > 1 {
		s.gate.rate.take(events - 1)
	}
}

// hostPassed tells the host's gate how a send ended, without s.mu: others may be let through now. It reports
// whether the host is down, so that its circuit is the one that counts.
func (p *pass) hostPassed(s *subscription, v verdict) (down bool) {
	return p.host != nil && p.host.passed(s, p.at, v)
}

// passed tells the gate how a send ended. The caller holds s.mu.
func (s *subscription) passed(c *subConfig, p *pass, v verdict, hostDown bool) {
	g := &s.gate
	b := &g.circuit
	if !b.left(p.epoch) {
		return
	}
	if v.kind == wellTarget && b.calm() {
		b.failures = 0
		return
	}
	now := s.e.now().UnixNano()
	was := *b
	switch {
	case v.kind == noVerdict:
	case v.kind == wellTarget:
		if b.succeeded(now, c.Concurrency) {
			s.announce("a target answers again; its circuit is closed", "open for", time.Duration(now-was.since).Round(time.Millisecond))
		}
	case v.kind == noAnswer && hostDown: // once the host is back this one need not wait any longer
	default:
		if b.failed(now, s.e.circuitOf(c), clip(v.err.Error(), 512), v.after) {
			s.announce("a target's circuit opens; its events wait and no attempt is spent on them", "failures", b.failures,
				"next", time.Unix(0, b.next).UTC(), "error", b.reason)
		}
	}
	if g.shut == byCircuit { // a slot is free, or there are more; or what they wait for has moved
		s.openGate()
	}
}

// announce logs without the subscription's mutex, which the caller holds.
func (s *subscription) announce(what string, args ...any) {
	s.mu.Unlock()
	s.e.o.Log.Warn(what, append([]any{"subscription", s.name}, args...)...)
	s.mu.Lock()
}

// ringGate is what the gate's alarm does.
func (s *subscription) ringGate(context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.openGate()
}

// retarget makes the gate that of a new definition: what is known about another target counts no more.
func (s *subscription) retarget(c *subConfig) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := targetOf(c.sink); t != s.gate.target {
		epoch := s.gate.circuit.epoch
		s.gate.circuit = breaker{epoch: epoch + 1}
		s.gate.target = t
	}
	s.openGate()
}

func targetOf(sink Sink) string {
	if t, ok := sink.(Targeted); ok {
		return t.Target()
	}
	return ""
}

// CircuitInfo is how a subscription's circuit stands, or that of its host where that one is open.
type CircuitInfo struct {
	State    string     // closed, open or half-open
	Host     string     // "host:port" if it is the host's, which all subscriptions to it share
	Since    *time.Time // it was closed, or is not closed any more; nil: the start
	Failures int        // in a row
	Next     *time.Time // open: when it is tried again
	Reason   string     // the last failure

	Last   string     // the last failure ever, also while all is well again
	LastAt *time.Time // nil: there was none

	RateWaits, HostWaits uint64 // sends that were put off by the rate, and by the host's limits
}

// words is why the circuit is not closed, and when it is tried again.
func (i CircuitInfo) words() string {
	b := "the target's circuit is " + i.State
	if i.Host != "" {
		b = "the circuit of the host " + i.Host + " is " + i.State
	}
	if i.Next != nil {
		b += ", tried again at " + i.Next.Format(time.RFC3339)
	} else {
		b += ", tried with the next event"
	}
	return fmt.Sprintf("%s; %d failures in a row, the last: %s", b, i.Failures, i.Reason)
}

// circuitInfo is s's circuit. The caller holds s.mu.
func (s *subscription) circuitInfo(c *subConfig) CircuitInfo {
	now := s.e.now().UnixNano()
	info := s.gate.circuit.info(now)
	if c.host != nil && info.State == circuitClosed.String() {
		if h := c.host.info(now); h.State != circuitClosed.String() {
			info, info.Host = h, c.host.name
		}
	}
	info.RateWaits, info.HostWaits = s.gate.rateWaits, s.gate.hostWaits
	return info
}

func (b *breaker) info(now int64) CircuitInfo {
	state := b.state
	if state == circuitOpen && now >= b.next { // nothing has come since
		state = circuitHalfOpen
	}
	at := func(t int64) *time.Time {
		if t == 0 {
			return nil
		}
		u := time.Unix(0, t).UTC()
		return &u
	}
	info := CircuitInfo{State: state.String(), Since: at(b.since), Failures: b.failures, Reason: b.reason, Last: b.last, LastAt: at(b.lastAt)}
	if state == circuitOpen {
		info.Next = at(b.next)
	}
	return info
}

// probeNow has an open circuit tried at once: somebody says that the target is back. The caller holds s.mu.
func (s *subscription) probeNow() {
	if b := &s.gate.circuit; b.state == circuitOpen {
		b.next = s.e.now().UnixNano()
		s.openGate()
	}
	if h := s.config.Load().host; h != nil {
		h.probeNow()
	}
}
