// Package access says who may come in and what they may do: principals by API key, JWT, client certificate or the
// router's own token, and what their roles allow on topics, subscriptions and functions. Every protocol asks the same
// Guard and the same Check.
package access

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// An Action is what somebody wants to do with a resource.
type Action string

const (
	Publish Action = "publish" // events to a topic
	Read    Action = "read"    // a topic's events, and every kind's definitions and state
	Consume Action = "consume" // pull, ack, nack, extend and stream a subscription
	Operate Action = "operate" // pause, seek, redrive, purge, replay, dead letters
	Manage  Action = "manage"  // create, change and delete topics and subscriptions
	Deploy  Action = "deploy"  // functions
	Invoke  Action = "invoke"  // functions
	Admin   Action = "admin"   // the whole router: rules, keys, metrics, backup
)

// A Kind is what sort of thing a name names.
type Kind uint8

const (
	Router Kind = iota // has no name
	Topic
	Subscription
	Function
	kinds
)

// String returns the kind's name as messages and the audit log have it.
func (k Kind) String() string {
	if k < kinds {
		return [...]string{"router", "topic", "subscription", "function"}[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// What asking can come to, besides success and event.ErrNotFound, which stands for "you may not know of it".
var (
	// ErrUnauthenticated is a 401: nobody that is known here.
	ErrUnauthenticated = errors.New("unauthenticated")
	// ErrDenied is a 403: known, but may not do this.
	ErrDenied = event.ErrDenied
)

// actions is a set of actions.
type actions uint16

// actionNames is every action in the order in which tables show them; an action's bit is its place here.
var actionNames = [...]Action{Publish, Read, Consume, Operate, Manage, Deploy, Invoke, Admin}

// applies says which actions mean something for which kind of resource.
var applies = [kinds]actions{
	Router:       Admin.bit(),
	Topic:        Publish.bit() | Read.bit() | Operate.bit() | Manage.bit(),
	Subscription: Read.bit() | Consume.bit() | Operate.bit() | Manage.bit(),
	Function:     Read.bit() | Deploy.bit() | Invoke.bit(),
}

// bit returns the set of a alone, the empty set if a is no action.
func (a Action) bit() actions {
	for i, name := range actionNames {
		if a == name {
			return 1 << i
		}
	}
	return 0
}

// Limits bound how much a principal may ask for. Zero is no limit of its own. Of several roles the highest of each
// counts, and a role without a limit lifts it.
type Limits struct {
	Rate  float64 // requests a second
	Burst int     // requests at once
	Conns int     // connections at once
}

// A Principal is somebody who came in. It does not change and may be used concurrently; Guard.Authenticate returns the
// same one for the same credentials as long as nothing about them changes.
type Principal struct {
	Name   string   // "key:ci", "jwt:corp/alice", "cert:edge-1", "token", "anyone"
	Tenant string   // prefix of every name that it may know; "" is all
	Roles  []string // not to be changed
	Limits Limits

	id      string // see Identity
	all     bool   // everything within the tenant
	grants  *grants
	expires int64 // unix nanoseconds; 0 never
	ended   atomic.Bool
	era     *era    // of the policy that its roles came from; nil never ends
	source  *source // of the token that it showed; nil: none
	set     *keySet // that verified it
}

// Identity tells p from every other principal, as Name, which two tenants' may share, does not. What somebody has used of
// his limits is kept by it.
func (p *Principal) Identity() string { return p.id }

// an era is the time between two changes of what roles mean.
type era struct{ ended atomic.Bool }

// Check returns nil if p may do a to the named resource. It wraps event.ErrNotFound where p may do nothing at all with
// it, because that it exists is secret, and ErrDenied where p may know it but not do this. On the Router, which has no
// name, Admin is what it says and needs a principal of no tenant; any other action asks whether p may do it anywhere,
// as lists do before they leave out what p may not see. Success allocates nothing. A nil p may do nothing.
func (p *Principal) Check(a Action, k Kind, name string) error {
	bit := a.bit()
	if p == nil {
		return fmt.Errorf("%w: nobody asked for %s", ErrDenied, a)
	}
	if p.allows(bit, k, name) {
		return nil
	}
	return p.refusal(a, k, name)
}

// allows reports whether one of the actions of bit is granted.
func (p *Principal) allows(bit actions, k Kind, name string) bool {
	switch {
	case bit == 0 || k >= kinds:
		return false
	case k == Router && bit == Admin.bit():
		// Rules, keys, metrics and backups show every tenant's.
		return p.Tenant == "" && (p.all || p.grants.router)
	case k == Router:
		return p.all || p.grants.anywhere&bit != 0
	case !strings.HasPrefix(name, p.Tenant):
		return false
	}
	return p.all || p.grants.allow(bit, k, name)
}

func (p *Principal) refusal(a Action, k Kind, name string) error {
	if k != Router && !p.Sees(k, name) {
		return fmt.Errorf("%s %.249q: %w", k, name, event.ErrNotFound)
	}
	if k == Router {
		return fmt.Errorf("%w: %s may not %s here", ErrDenied, p.Name, a)
	}
	return fmt.Errorf("%w: %s may not %s %s %.249q", ErrDenied, p.Name, a, k, name)
}

// Sees reports whether p may know of the named resource: whether it may do anything at all with it.
func (p *Principal) Sees(k Kind, name string) bool {
	if p == nil || k >= kinds {
		return false
	}
	return k == Router || p.allows(^actions(0), k, name)
}

// Ended reports whether what p was authenticated by no longer stands: the key was revoked or has expired, the token is
// past its life, its issuer has other keys than those that verified it, or the policy changed. Streams and connections
// that outlive a request ask now and then; who ends by no fault of his own comes in again.
func (p *Principal) Ended(now time.Time) bool {
	return p == nil || p.ended.Load() || p.era != nil && p.era.ended.Load() || p.expires != 0 && now.UnixNano() >= p.expires ||
		p.source != nil && p.source.set.Load() != p.set
}

// nanos is t in Unix nanoseconds, which end in 2262: what is good for longer, as certificates that end in 9999 are, is good
// until then.
func nanos(t time.Time) int64 {
	if t.Year() > 2261 {
		return math.MaxInt64
	}
	return t.UnixNano()
}

// anyone is who comes in where nothing is guarded.
func anyone() *Principal {
	return &Principal{Name: "anyone", id: "anyone", Roles: []string{"admin"}, all: true}
}

type (
	contextKey struct{}
	addrKey    struct{}
)

// With returns a context that carries p.
func With(ctx context.Context, p *Principal) context.Context {
	return context.WithValue(ctx, contextKey{}, p)
}

// From returns the principal that ctx carries, nil if none: a nil principal may do nothing.
func From(ctx context.Context) *Principal {
	p, _ := ctx.Value(contextKey{}).(*Principal)
	return p
}

// WithAddr returns a context that carries the address that somebody asks from, for the audit log.
func WithAddr(ctx context.Context, addr netip.Addr) context.Context {
	return context.WithValue(ctx, addrKey{}, addr)
}

// AddrFrom returns the address that ctx carries; the zero Addr if none.
func AddrFrom(ctx context.Context) netip.Addr {
	addr, _ := ctx.Value(addrKey{}).(netip.Addr)
	return addr
}
