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
	"unsafe"
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
	HTTP func(ctx context.Context, url string, max int64) ([]byte, error)
	// Fetched is told of every such fetch once it has ended, from several goroutines; must return at once.
	Fetched func(IssuerState)
	Audit   func(AuditEntry) // told of refusals and changes, from several goroutines; must return at once
	Now     func() time.Time // nil: time.Now
	Off     bool             // everything is allowed, to the principal "anyone", for as long as there is no key
}

// A Guard authenticates. All methods are safe for concurrent use.
type Guard struct {
	o      Options
	anyone atomic.Pointer[Principal] // who comes in while nothing is guarded
	token  [sha256.Size]byte
	asked  bool // a token is set
	rules  atomic.Pointer[inForce]
	change sync.Mutex    // held while rules or keys change
	stays  atomic.Bool   // on, whatever becomes of the keys
	wake   chan struct{} // has Run look at what is due
	keys   keyring
	audit  auditor
}

// inForce is what the policy in force comes to; it is replaced as a whole.
type inForce struct {
	policy  *Policy
	roles   map[string]*role
	era     *era
	token   *Principal  // who shows Options.Token
	sources []*source   // of tokens
	tokens  *tokenCache // nil: no issuers
	certs   *tokenCache // nil: no certificates
}

// New returns a Guard with the store's keys loaded.
func New(o Options) (*Guard, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if strings.HasPrefix(o.Token, keyPrefix) {
		return nil, fmt.Errorf("access: Token begins with %s, which is how API keys begin: choose another", keyPrefix)
	}
	g := &Guard{o: o, asked: o.Token != "", token: sha256.Sum256([]byte(o.Token)), wake: make(chan struct{}, 1)}
	g.anyone.Store(anyone())
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
func (g *Guard) Off() bool { return g.o.Off && !g.stays.Load() && len(*g.keys.byID.Load()) == 0 }

// StayOn has the guard never be Off again, and reports false if it is Off now: of a router that others can reach, keys
// may be all that guards it, and it must not open when the last of them goes.
func (g *Guard) StayOn() bool {
	g.change.Lock()
	defer g.change.Unlock()
	if g.Off() {
		return false
	}
	g.stays.Store(true)
	return true
}

// SetPolicy puts p in force, nil for the built-in roles alone. Whoever is connected is Ended and comes in again. Keys
// that were fetched from a URL that p has too stay in use. The caller notes it as Changed: it knows by whom.
func (g *Guard) SetPolicy(p *Policy) error {
	g.change.Lock()
	defer g.change.Unlock()
	next := &inForce{policy: p, roles: p.all(), era: new(era)}
	last := g.rules.Load()
	if p != nil {
		for _, is := range p.issuers {
			if is.url != "" && g.o.HTTP == nil {
				return fmt.Errorf("access: issuer %s has its keys at a URL, and nothing here fetches them: name a file", is.name)
			}
			next.sources = append(next.sources, newSource(is, g.wake, last))
		}
		if len(p.issuers) > 0 {
			next.tokens = new(tokenCache)
		}
		if len(p.certs) > 0 {
			next.certs = new(tokenCache)
		}
	}
	next.token = next.principal("token", "", []string{"admin"})
	g.rules.Store(next)
	g.keys.compile(next)
	if last != nil {
		last.era.ended.Store(true)
	}
	select {
	case g.wake <- struct{}{}:
	default:
	}
	return nil
}

// Authenticate returns who shows these credentials; an error wraps ErrUnauthenticated if nobody known here does. A
// bearer token that is not good is refused whatever the certificate says. A key and a token seen before cost no
// allocation and take no lock.
func (g *Guard) Authenticate(ctx context.Context, c Credentials) (*Principal, error) {
	// Loaded before it is asked whether there is a key: who comes in beside the first one is Ended by it.
	if p := g.anyone.Load(); g.Off() {
		return p, nil
	}
	p, err := g.authenticate(ctx, c)
	if errors.Is(err, ErrUnauthenticated) { // an issuer whose keys are not there yet refuses nobody
		g.audit.unauthenticated(c.Addr, err)
	}
	return p, err
}

// Known returns who has an Identity, as he is now, where that can be found out without his credentials: of the router's token
// and of API keys that stand, and of everybody where nothing is guarded. nil: nobody, or not to be found out.
func (g *Guard) Known(identity string) *Principal {
	if p := g.anyone.Load(); g.Off() {
		return p
	}
	f, now := g.rules.Load(), g.o.Now()
	if g.asked && identity == f.token.id {
		return f.token
	}
	id, ok := strings.CutPrefix(identity, "key:")
	if !ok {
		return nil
	}
	if h := (*g.keys.byID.Load())[id]; h != nil && !h.principal.Ended(now) {
		return h.principal
	}
	return nil
}

func (g *Guard) authenticate(ctx context.Context, c Credentials) (*Principal, error) {
	f, now := g.rules.Load(), g.o.Now()
	switch {
	case c.Bearer == "" && c.Certificate == nil:
		return nil, errNothing
	case c.Bearer == "":
		return f.certificate(c.Certificate, now)
	case strings.HasPrefix(c.Bearer, keyPrefix):
		return g.keys.find(c.Bearer, now)
	case len(c.Bearer) > maxBearer:
		return nil, errLong
	}
	// Digests are compared, so that not even the length of the token shows.
	sum := sha256.Sum256(bytesOf(c.Bearer))
	if g.asked && subtle.ConstantTimeCompare(sum[:], g.token[:]) == 1 {
		return f.token, nil
	}
	if f.tokens == nil || !looksLikeJWT(c.Bearer) {
		return nil, errUnknown
	}
	if p := f.tokens.get(&sum, now); p != nil {
		return p, nil
	}
	return f.authenticateJWT(ctx, strings.Clone(c.Bearer), sum, now)
}

// bytesOf is s without a copy; it must not be written to. A conversion allocates where it cannot be told that what
// takes the bytes lets go of them, as of hashes in assembly.
func bytesOf(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }

const maxBearer = 16 << 10

var (
	errNothing = fmt.Errorf("%w: send Authorization: Bearer with an API key or a token", ErrUnauthenticated)
	errUnknown = fmt.Errorf("%w: the bearer token is not known here", ErrUnauthenticated)
	errLong    = fmt.Errorf("%w: the bearer token has over %d bytes", ErrUnauthenticated, maxBearer)
)

// principal compiles what roles allow. Names that are no role here allow nothing.
func (f *inForce) principal(name, tenant string, roles []string) *Principal {
	p := &Principal{Name: name, Tenant: tenant, Roles: roles, grants: new(grants), era: f.era, id: name + "\x00" + tenant}
	first := true
	for _, r := range roles {
		r := f.roles[r]
		if r == nil {
			continue
		}
		p.all = p.all || r.all
		for _, gr := range r.grants {
			p.grants.add(r.name, gr)
		}
		if first {
			p.Limits, first = r.limits, false
			continue
		}
		p.Limits = Limits{raise(p.Limits.Rate, r.limits.Rate), raise(p.Limits.Burst, r.limits.Burst), raise(p.Limits.Conns, r.limits.Conns)}
	}
	return p
}
