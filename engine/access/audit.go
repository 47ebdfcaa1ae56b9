package access

import (
	"errors"
	"fmt"
	"hash/maphash"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// The outcomes of an AuditEntry.
const (
	Denied          = "denied"          // known, but may not do this, or may not know of it
	Unauthenticated = "unauthenticated" // nobody known here
	Changed         = "changed"         // keys, policy, rules or definitions
	Taken           = "taken"           // a copy of all that there is
	LeftOut         = "left-out"        // Detail says how many refusals before this one have no entry
)

// An AuditEntry is one line of the audit log. It holds no secret.
type AuditEntry struct {
	Time      time.Time `json:"time"`
	Principal string    `json:"principal,omitempty"` // "" where nobody was let in
	Addr      string    `json:"addr,omitempty"`
	Action    Action    `json:"action,omitempty"`
	Kind      string    `json:"kind,omitempty"` // "topic", "key"…
	Name      string    `json:"name,omitempty"`
	Outcome   string    `json:"outcome"`
	Detail    string    `json:"detail,omitempty"`
}

// Refusals may not fill a disk: a flood of them leaves entries of refusalRate a second in all, and of shareRate a
// second of one address, of IPv6 one /64 (or of what shares its slot, which nobody outside can tell). Where many addresses
// use up what there is for all, each has reserveRate a second still, so that no flood hides everything of somebody else.
// What is left out is counted, and said with the next entry.
const (
	refusalRate, refusalBurst = 20, 200
	shareRate, shareBurst     = 2, 20
	reserveRate               = 1.0 / 20
	shares                    = 256
)

// share is what of the entries one slot of addresses has.
type share struct{ usual, reserve bucket }

// bucket is a token bucket that is filled when it is asked.
type bucket struct {
	level float64
	last  time.Time
}

func (b *bucket) take(now time.Time, rate, burst float64) bool {
	if b.last.IsZero() {
		b.level = burst
	} else if since := now.Sub(b.last); since > 0 {
		b.level = min(burst, b.level+rate*since.Seconds())
	}
	b.last = now
	if b.level < 1 {
		return false
	}
	b.level--
	return true
}

type auditor struct {
	tell    func(AuditEntry)
	now     func() time.Time
	denied  atomic.Uint64
	hidden  atomic.Uint64
	unknown atomic.Uint64
	expired atomic.Uint64

	mu    sync.Mutex
	all   bucket
	seed  maphash.Seed
	share [shares]share
	left  uint64
}

func (a *auditor) init(o Options) { a.tell, a.now, a.seed = o.Audit, o.Now, maphash.MakeSeed() }

// admit reports whether a refusal at addr gets an entry, and how many before it got none.
func (a *auditor) admit(addr netip.Addr, now time.Time) (ok bool, left uint64) {
	addr = addr.Unmap().WithZone("")
	of := addr.As16()
	if addr.Is6() {
		clear(of[8:]) // who has one has them all
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	s := &a.share[maphash.Bytes(a.seed, of[:])%shares]
	if !s.usual.take(now, shareRate, shareBurst) || !a.all.take(now, refusalRate, refusalBurst) && !s.reserve.take(now, reserveRate, 1) {
		a.left++
		return false, 0
	}
	left, a.left = a.left, 0
	return true, left
}

func (a *auditor) refused(addr netip.Addr, e AuditEntry) {
	if a.tell == nil {
		return
	}
	e.Time = a.now()
	e.Name, e.Detail = strings.Clone(e.Name), strings.Clone(e.Detail) // a name may be borrowed from the request
	ok, left := a.admit(addr, e.Time)
	if !ok {
		return
	}
	if addr.IsValid() {
		e.Addr = addr.String()
	}
	if left > 0 {
		a.tell(AuditEntry{Time: e.Time, Outcome: LeftOut, Detail: fmt.Sprintf("%d refusals before this were too many to be written down", left)})
	}
	a.tell(e)
}

func (a *auditor) unauthenticated(addr netip.Addr, err error) {
	if errors.Is(err, errExpired) {
		a.expired.Add(1)
	} else {
		a.unknown.Add(1)
	}
	a.refused(addr, AuditEntry{Outcome: Unauthenticated, Detail: err.Error()})
}

// Refused notes that err, of p's Check, was answered to a call from addr.
func (g *Guard) Refused(p *Principal, addr netip.Addr, a Action, k Kind, name string, err error) {
	if errors.Is(err, event.ErrNotFound) {
		g.audit.hidden.Add(1)
	} else {
		g.audit.denied.Add(1)
	}
	e := AuditEntry{Action: a, Kind: k.String(), Name: clip(name), Outcome: Denied, Detail: err.Error()}
	if p != nil {
		e.Principal = p.Name
	}
	g.audit.refused(addr, e)
}

// Changed notes that p changed something: kind "key", "rules", "topic"… Changes are never left out.
func (g *Guard) Changed(p *Principal, kind, name, detail string) {
	if g.o.Audit == nil {
		return
	}
	// Both may be borrowed from the request.
	e := AuditEntry{Time: g.o.Now(), Kind: kind, Name: strings.Clone(clip(name)), Outcome: Changed, Detail: strings.Clone(detail)}
	if p != nil {
		e.Principal = p.Name
	}
	g.o.Audit(e)
}

// Taken notes that p, at addr, took all that there is: kind "backup". That is never left out.
func (g *Guard) Taken(p *Principal, addr netip.Addr, kind, detail string) {
	if g.o.Audit == nil {
		return
	}
	e := AuditEntry{Time: g.o.Now(), Kind: kind, Outcome: Taken, Detail: strings.Clone(detail)}
	if p != nil {
		e.Principal = p.Name
	}
	if addr.IsValid() {
		e.Addr = addr.String()
	}
	g.o.Audit(e)
}

// A Refusal is how often somebody was refused for a reason, since the start.
type Refusal struct {
	Reason string // "unauthenticated", "expired", "denied", "hidden" (answered as what does not exist)
	Count  uint64
}

// Refusals returns the counts, for metrics.
func (g *Guard) Refusals() []Refusal {
	return []Refusal{
		{"unauthenticated", g.audit.unknown.Load()}, {"expired", g.audit.expired.Load()},
		{"denied", g.audit.denied.Load()}, {"hidden", g.audit.hidden.Load()},
	}
}

// clip shortens what a stranger sent.
func clip(s string) string {
	if len(s) > event.MaxName {
		return s[:event.MaxName]
	}
	return s
}
