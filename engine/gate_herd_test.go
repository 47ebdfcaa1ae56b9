package engine

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// A herd is many endpoints behind their gates, in a time of its own: each gets an event every so often, all are down
// for hours, and then all are back. Endpoints have nothing to do with each other, so they are run one by one.
type herd struct {
	rng      *rand.Rand
	limits   breakerLimits
	rate     float64
	down, up int64 // Unix ns: between them nothing answers
	every    int64 // between two events of an endpoint
	until    int64

	attempts []int // by minute
	returns  []int // first successes after up, by minute
	most     int   // sends at once in an endpoint's first second
	stuck    int   // endpoints that are not found to be back
}

type endpoint struct {
	*herd
	circuit  breaker
	bucket   bucket
	backlog  int
	out      int
	woken    int64 // when a wake is due
	returned int64
	list     []herdEvent // the next one last
}

type herdEvent struct {
	at    int64
	what  byte // a: an event comes, w: look again, s and f: a send ends well or not
	epoch uint32
}

const (
	herdConcurrency = 16
	herdLatency     = int64(50 * time.Millisecond)
)

func (p *endpoint) add(e herdEvent) {
	i := len(p.list)
	for i > 0 && p.list[i-1].at <= e.at {
		i--
	}
	p.list = slices.Insert(p.list, i, e)
}

func (p *endpoint) run() {
	p.add(herdEvent{at: p.rng.Int64N(p.every), what: 'a'})
	p.add(herdEvent{at: p.down, what: 'a'}) // one event for all of them at once
	for {
		e := p.list[len(p.list)-1]
		p.list = p.list[:len(p.list)-1]
		if e.at >= p.until {
			break
		}
		switch e.what {
		case 'a':
			p.backlog++
			if e.at != p.down {
				p.add(herdEvent{at: e.at + p.every, what: 'a'})
			}
		case 'w':
			p.woken = 0
		case 's':
			p.out--
			if p.circuit.left(e.epoch) {
				p.circuit.succeeded(e.at, herdConcurrency)
			}
			if e.at > p.up && p.returned == 0 {
				p.returned = e.at
				p.returns[e.at/int64(time.Minute)]++
			}
		case 'f':
			p.out--
			p.backlog++
			if p.circuit.left(e.epoch) {
				p.circuit.failed(e.at, p.limits, "down", 0)
			}
		}
		p.send(e.at)
	}
	if p.returned == 0 || p.circuit.state != circuitClosed {
		p.stuck++
	}
}

func (p *endpoint) send(now int64) {
	for p.backlog > 0 && p.out < herdConcurrency {
		ok, at := p.circuit.admits(now)
		if ok {
			ok, at = p.bucket.ready(now)
		}
		if !ok {
			if at != 0 && (p.woken == 0 || at < p.woken) {
				p.woken = at
				p.add(herdEvent{at: at, what: 'w'})
			}
			return
		}
		p.circuit.out++
		p.bucket.take(1)
		p.backlog--
		p.out++
		p.attempts[now/int64(time.Minute)]++
		end := byte('s')
		if now >= p.down && now < p.up {
			end = 'f'
		}
		if p.returned != 0 && now-p.returned < rampStep {
			p.most = max(p.most, p.out)
		}
		p.add(herdEvent{now + herdLatency, end, p.circuit.epoch})
	}
}

// Ten thousand endpoints that were down for six hours are not met by what has waited for them all at once: that they
// are back is found out over minutes, and each is met by one send at a time at first. With a rate of twice what comes
// no minute sees more than twice the load of ordinary days.
func TestNoHerd(t *testing.T) {
	const endpoints = 10_000
	const hour, minute = int64(time.Hour), int64(time.Minute)
	const steady = float64(endpoints) // attempts a minute
	for name, rate := range map[string]float64{"no rate": 0, "a rate of twice the load": 2.0 / 60} {
		h := &herd{rng: rand.New(rand.NewPCG(1, 2)), limits: breakerLimits{10, 5 * time.Second, 5 * time.Minute}, rate: rate,
			down: hour / 6, up: 6*hour + hour/6, every: minute, until: 6*hour + hour/6 + 20*minute}
		h.attempts, h.returns = make([]int, h.until/minute), make([]int, h.until/minute)
		for range endpoints {
			p := endpoint{herd: h}
			p.bucket.set(rate, 0)
			p.run()
		}
		outage, after := h.attempts[70:h.up/minute], slices.Max(h.attempts[h.up/minute:])
		peak, back, probes := slices.Max(outage), slices.Max(h.returns), 0.0
		for _, n := range outage {
			probes += float64(n) / float64(len(outage))
		}
		t.Logf("%s: attempts a minute: %.0f with all well, %.0f (%d at most) when down for an hour and more, %d at most after; at most %d endpoints a minute are found to be back, with %d sends at once in their first second",
			name, steady, probes, peak, after, back, h.most)
		if float64(peak) > 2*probes || float64(peak) > steady {
			t.Errorf("%s: %d attempts in one minute of the outage, %.0f on average", name, peak, probes)
		}
		if float64(back) > 2*probes {
			t.Errorf("%s: %d endpoints are found to be back in one minute; there are %.0f probes a minute", name, back, probes)
		}
		if h.most > 1 {
			t.Errorf("%s: %d sends at once to an endpoint in its first second", name, h.most)
		}
		if rate > 0 && float64(after) > 2.02*steady {
			t.Errorf("%s: %d attempts a minute after the outage, with all well %.0f", name, after, steady)
		}
		if h.stuck > 0 {
			t.Errorf("%s: %d endpoints are not found to be back", name, h.stuck)
		}
	}
}
