package access

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Credentials are what somebody shows.
type Credentials struct {
	Bearer      string            // of Authorization: Bearer; borrowed for the call
	Certificate *x509.Certificate // verified by the listener
	Addr        netip.Addr        // for the audit log
}

// Options say whom a Guard lets in. The zero value lets in nobody.
type Options struct {
	Token  string   // MILLRACE_TOKEN: principal "token" of role admin; "" is none
	Policy *Policy  // nil: built-in roles only
	Keys   KeyStore // nil: no API keys
	// HTTP fetches a JWKS from a URL, through the process's guarded dialer: the body of an answer 200 of up to max
	// bytes. nil: policies may name files only.
	HTTP  func(ctx context.Context, url string, max int64) ([]byte, error)
	Audit func(AuditEntry) // told of refusals and changes, from several goroutines; must return at once
	Now   func() time.Time // nil: time.Now
	Off   bool             // everything is allowed, to the principal "anyone", for as long as there is no key
}

// A Guard authenticates. All methods are safe for concurrent use.
type Guard struct {
	o      Options
	anyone *Principal
	token  [sha256.Size]byte
	asked  bool // a token is set
	rules  atomic.Pointer[inForce]
	change sync.Mutex // held while rules or keys change
	keys   keyring
	audit  auditor
}

// inForce is what the policy in force comes to; it is replaced as a whole.
type inForce struct {
	policy *Policy
	roles  map[string]*role
	era    *era
	token  *Principal
}

// New returns a Guard with the store's keys loaded.
func New(o Options) (*Guard, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if strings.HasPrefix(o.Token, keyPrefix) {
		return nil, fmt.Errorf("access: Token begins with %s, which is how API keys begin: choose another", keyPrefix)
	}
	g := &Guard{o: o, anyone: anyone(), asked: o.Token != "", token: sha256.Sum256([]byte(o.Token))}
	g.audit.init(o)
	if err := g.keys.load(context.Background(), o.Keys); err != nil {
		return nil, fmt.Errorf("access: cannot read the API keys: %w", err)
	}
	if err := g.SetPolicy(o.Policy); err != nil {
		return nil, err
	}
	return g, nil
}

// Off reports whether nothing is guarded now.
func (g *Guard) Off() bool { return g.o.Off && len(*g.keys.byID.Load()) == 0 }

// ByKeysAlone reports whether nothing but keys guards: the first one turns the guard on, and nobody could make others if
// there were keys and none of an admin.
func (g *Guard) ByKeysAlone() bool { return g.o.Off }

// SetPolicy puts p in force, nil for the built-in roles alone. Whoever is connected is Ended and comes in again.
func (g *Guard) SetPolicy(p *Policy) error {
	g.change.Lock()
	defer g.change.Unlock()
	next := &inForce{policy: p, roles: p.all(), era: new(era)}
	next.token = next.principal("token", "", []string{"admin"})
	last := g.rules.Swap(next)
	g.keys.compile(next)
	if last != nil {
		last.era.ended.Store(true)
	}
	return nil
}

// Authenticate returns who shows these credentials; an error wraps ErrUnauthenticated if nobody known here does. A
// bearer token that is not good is refused whatever the certificate says. A key and a token seen before cost no
// allocation and take no lock.
func (g *Guard) Authenticate(ctx context.Context, c Credentials) (*Principal, error) {
	if g.Off() {
		return g.anyone, nil
	}
	p, err := g.authenticate(ctx, c)
	if err != nil {
		g.audit.unauthenticated(c.Addr, err)
	}
	return p, err
}

func (g *Guard) authenticate(ctx context.Context, c Credentials) (*Principal, error) {
	now := g.rules.Load()
	switch {
	case c.Bearer == "" && c.Certificate == nil:
		return nil, errNothing
	case c.Bearer == "":
		return nil, errNothing
	case strings.HasPrefix(c.Bearer, keyPrefix):
		return g.keys.find(c.Bearer, g.o.Now())
	case len(c.Bearer) > maxBearer:
		return nil, errLong
	}
	// Digests are compared, so that not even the length of the token shows.
	sum := sha256.Sum256([]byte(c.Bearer))
	if g.asked && subtle.ConstantTimeCompare(sum[:], g.token[:]) == 1 {
		return now.token, nil
	}
	return nil, errUnknown
}

const maxBearer = 16 << 10

var (
	errNothing = fmt.Errorf("%w: send Authorization: Bearer with an API key or a token", ErrUnauthenticated)
	errUnknown = fmt.Errorf("%w: the bearer token is not known here", ErrUnauthenticated)
	errLong    = fmt.Errorf("%w: the bearer token has over %d bytes", ErrUnauthenticated, maxBearer)
)

// principal compiles what roles allow. Names that are no role here allow nothing.
func (f *inForce) principal(name, tenant string, roles []string) *Principal {
	p := &Principal{Name: name, Tenant: tenant, Roles: roles, grants: new(grants), era: f.era}
	first := true
	for _, r := range roles {
		r := f.roles[r]
		if r == nil {
			continue
		}
		p.all = p.all || r.all
		for _, gr := range r.grants {
			p.grants.add(gr)
		}
		if first {
			p.Limits, first = r.limits, false
			continue
		}
		p.Limits = Limits{raise(p.Limits.Rate, r.limits.Rate), raise(p.Limits.Burst, r.limits.Burst), raise(p.Limits.Conns, r.limits.Conns)}
	}
	return p
}

// A Policy is what a policy file says; see ParsePolicy. It does not change.
type Policy struct{ roles []role }

// all returns every role by name, the built-in ones included.
func (p *Policy) all() map[string]*role {
	roles := map[string]*role{}
	for _, r := range builtin() {
		roles[r.name] = &r
	}
	if p != nil {
		for i := range p.roles {
			roles[p.roles[i].name] = &p.roles[i]
		}
	}
	return roles
}

// ParsePolicy reads a policy file.
func ParsePolicy(path string, text []byte, read func(string) ([]byte, error), getenv func(string) (string, bool)) (*Policy, error) {
	return nil, errors.New("access: policy files are not read yet")
}
