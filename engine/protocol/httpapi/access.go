package httpapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/event"
	"github.com/valyala/fasthttp"
)

// Where says where a call names what it is about.
type Where uint8

// The places. A route without one is refused when the server is made: nothing is open because it was forgotten.
const (
	_      Where = iota
	Anyone       // nowhere, and strangers may call: what it answers is nobody's secret, or it checks them itself
	Known        // nowhere: whoever has shown who he is may call
	InPath       // the first name of the path
	InBody       // what is sent names it: the call asks by itself, before it does anything
	Listed       // it is about all there are, and shows those that the caller may see
	Whole        // it is about the router as a whole
)

// needs is what a route asks of its caller.
type needs struct {
	may, or access.Action // or: is as good; "" for none
	of      access.Kind
	in      Where
}

func (n needs) validate() error {
	switch n.in {
	case Anyone, Known:
		return nil
	case InPath, InBody, Listed, Whole:
		if n.may != "" && (n.in == Whole) == (n.of == access.Router) {
			return nil
		}
	}
	return errors.New("does not say which action it is, on what, and where that is named")
}

// changes says whether a call is one for the audit log. Keys say so themselves.
func (r *route) changes() bool {
	switch {
	case r.method == "GET":
		return false
	case r.may == access.Admin:
		return r.path == "/v1/rules" || r.path == "/v1/rules/rollback"
	}
	return r.may == access.Manage || r.may == access.Deploy || r.may == access.Operate
}

// changed tells the audit log what the call has done.
func (c *call) changed() {
	kind := c.kind.String()
	if c.route.may == access.Admin {
		kind = "rules"
	}
	c.s.o.Guard.Changed(c.principal, kind, strings.Clone(c.name), c.route.method+" "+c.route.path)
}

// RouteInfo is a route as tests and documents see it.
type RouteInfo struct {
	Method, Path string
	Query        []string
	May, Or      access.Action
	Of           access.Kind
	In           Where
}

// Routes lists every call of this build besides mounts.
func Routes() []RouteInfo {
	rs := routes()
	infos := make([]RouteInfo, len(rs))
	for i, r := range rs {
		infos[i] = RouteInfo{r.method, r.path, r.query, r.may, r.or, r.of, r.in}
	}
	return infos
}

// asking is the part of a call that says who asks for what.
type asking struct {
	principal *access.Principal
	kind      access.Kind // of what was last asked for
	name      string      // "": nothing yet
}

// credentials are what the request shows. They borrow it.
func (c *call) credentials(h *fasthttp.RequestHeader) (access.Credentials, bool) {
	const scheme = "bearer "
	cred := access.Credentials{Certificate: c.certificate(), Addr: c.addr()}
	if a := c.h.auth; a != "" {
		if len(a) <= len(scheme) || !strings.EqualFold(a[:len(scheme)], scheme) {
			return cred, false
		}
		cred.Bearer = strings.TrimLeft(a[len(scheme):], " ")
		return cred, cred.Bearer != ""
	}
	if c.route != nil && c.route.stream { // browsers' EventSource and WebSocket send no headers of their own
		if _, q, ok := bytes.Cut(h.RequestURI(), []byte("?")); ok && bytes.Contains(q, []byte("access_token")) {
			var args fasthttp.Args
			args.ParseBytes(q)
			cred.Bearer = string(args.Peek("access_token"))
		}
	}
	return cred, true
}

// authenticate finds out who asks, and whether he asks too much.
func (c *call) authenticate(h *fasthttp.RequestHeader) error {
	if err := c.identify(h); err != nil {
		return err
	}
	return c.limit(c.principal)
}

func (c *call) identify(h *fasthttp.RequestHeader) error {
	cred, ok := c.credentials(h)
	var err error
	if ok {
		c.principal, err = c.s.o.Guard.Authenticate(c.s.work, cred)
	}
	if ok && err == nil {
		if nc := connOf(c.ctx); nc != nil {
			nc.known, nc.knownAs = true, c.s.limits.hash(cred.Bearer)
		}
		return nil
	}
	c.principal = nil
	if err != nil && !errors.Is(err, access.ErrUnauthenticated) {
		return err
	}
	how := "send Authorization: Bearer <token>, the token being a key that `router keys create` made, or the router's MILLRACE_TOKEN"
	if c.route != nil && c.route.stream {
		how += ", or ?access_token=<token>"
	}
	if cred.Bearer == "" {
		return refuse(fasthttp.StatusUnauthorized, "%s", how).with("WWW-Authenticate", `Bearer realm="millrace"`)
	}
	// RFC 6750, 3.1. What is wrong with a key is said to who has it: nobody learns from it that another exists.
	return refuse(fasthttp.StatusUnauthorized, "%s; %s", err, how).with("WWW-Authenticate", `Bearer realm="millrace", error="invalid_token"`)
}

// allowed asks for what the path names.
func (c *call) allowed() error {
	switch r := c.route; r.in {
	case InPath:
		if r.or != "" && c.principal.Check(r.or, r.of, c.params[0]) == nil {
			c.kind, c.name = r.of, c.params[0]
			return nil
		}
		return c.may(r.may, r.of, c.params[0])
	case Whole, Listed: // of a list: whether there can be anything on it
		return c.may(r.may, access.Router, "")
	}
	return nil
}

// may asks whether the caller may do something. What he may not even see is answered as what does not exist.
func (c *call) may(a access.Action, k access.Kind, name string) error {
	c.kind, c.name = k, name
	err := c.principal.Check(a, k, name)
	if err != nil { // also of a large body, which is not read then: the call does not come here again
		c.s.o.Guard.Refused(c.principal, c.addr(), a, k, name, err)
	}
	if errors.Is(err, event.ErrNotFound) {
		return NotFound(k, name)
	}
	return err
}

// mayMake asks whether the caller may make something of a name. That says nothing of what there is: it is the same for
// every name that is not his.
func (c *call) mayMake(k access.Kind, name string) error {
	err := c.may(access.Manage, k, name)
	if errors.Is(err, event.ErrNotFound) {
		return event.Bad(event.ErrDenied, "name", fmt.Sprintf("%.80q is no name of yours: you may not make a %s of it", name, k))
	}
	return err
}

// NotFound is the answer to whoever may not see everything, about what does not exist and about what he may not see: no
// other name is in it.
func NotFound(k access.Kind, name string) error {
	return event.Bad(event.ErrNotFound, k.String(), fmt.Sprintf("%s %.80q does not exist, or is not for you to see", k, name))
}

// Unseen turns an error about what does not exist, which suggests other names, into one that does not where p may not see
// everything. has says whether something exists; what is missing may also be a part of it, whose error stays.
func Unseen(p *access.Principal, k access.Kind, name string, err error, has func(access.Kind, string) bool) error {
	if !errors.Is(err, event.ErrNotFound) || p == nil || p.Everything() || name == "" || has(k, name) {
		return err
	}
	return NotFound(k, name)
}

// UnseenLeases makes leases that others were handed, to whoever may not see everything, ones that nobody was.
func UnseenLeases(p *access.Principal, lost []event.Lost) []event.Lost {
	for i := range lost {
		if lost[i].Why == event.LostForeign && !p.Everything() {
			lost[i].Why = event.LostUnknown
		}
	}
	return lost
}

func (c *call) unseen(err error) error {
	if err == nil || c.name == "" {
		return err
	}
	return Unseen(c.principal, c.kind, strings.Clone(c.name), err, c.s.o.Backend.Has)
}

// context is that of the call's work, with who asks and from where: for the parts of the router that ask on.
func (c *call) context() context.Context {
	return access.WithAddr(access.With(c.s.work, c.principal), c.addr())
}

// A session is who reads a connection that stays open. What he may changes while he reads: his key is revoked, his
// token expires, his roles are others.
type session struct {
	s     *Server
	cred  access.Credentials
	needs needs
	name  string
	who   atomic.Pointer[access.Principal]

	nc     *conn   // that he is at the other end of
	client *bucket // of his address
	end    func()  // ends the connection: he may not go on
}

type sessionKey struct{}

// Caller is who is at the other end of a connection that a Mount took over, as it is known now. Nil: nobody, or not any
// more.
func Caller(ctx context.Context) *access.Principal {
	if se, ok := ctx.Value(sessionKey{}).(*session); ok {
		return se.now(ctx)
	}
	return nil
}

// now is who the caller is; nil, and the connection ends, where what he has shown has just ended.
func (se *session) now(ctx context.Context) *access.Principal {
	p := se.who.Load()
	if se.needs.in == Anyone || !p.Ended(se.s.o.Now()) {
		return p
	}
	if se.check(ctx) != nil {
		se.end()
		return nil
	}
	return se.who.Load()
}

// Spend takes a message on a connection that a Mount took over from what its caller and its address may send, as if it
// were a request.
func Spend(ctx context.Context) error {
	se, ok := ctx.Value(sessionKey{}).(*session)
	if !ok {
		return nil
	}
	l := se.s.limits
	if l.address.bounds() && se.client != nil {
		if wait := se.client.requests.take(l.now(), l.address); wait > 0 {
			return l.tooFast(wait)
		}
	}
	p := se.now(ctx)
	if p == nil || p.Limits.Rate <= 0 { // of nobody: who asks next is told why
		return nil
	}
	now := l.now()
	_, err := l.spend(p, l.principals.get(p.Identity(), now), now)
	return err
}

// Reserve takes n more bytes of the room for large bodies for a message on a connection that a Mount took over, which has
// size bytes with them. Release gives them back, and so does the end of the connection.
func Reserve(ctx context.Context, n, size int) error {
	se, ok := ctx.Value(sessionKey{}).(*session)
	if !ok {
		return nil
	}
	if err := se.s.shed(int64(size)); err != nil {
		return err
	}
	if !se.s.bodies.reserve(se.nc, int64(n), se.needs.in == Anyone) {
		return se.s.tooManyBodies()
	}
	return nil
}

// Release gives back all that Reserve took.
func Release(ctx context.Context) {
	if se, ok := ctx.Value(sessionKey{}).(*session); ok {
		se.s.bodies.release(se.nc)
	}
}

// ErrRevoked is why the context of a connection ends whose caller may not read it any more.
var ErrRevoked = fmt.Errorf("what you have shown is not valid any more, or you may not read this any more: %w", event.ErrDenied)

func (c *call) session() *session {
	cred, _ := c.credentials(&c.ctx.Request.Header)
	cred.Bearer = strings.Clone(cred.Bearer)
	se := &session{s: c.s, cred: cred, needs: c.route.needs, name: strings.Clone(c.params[0])}
	se.who.Store(c.principal)
	if nc := connOf(c.ctx); nc != nil {
		se.nc, se.client, nc.se = nc, nc.client, se
	}
	return se
}

// check asks again; an error is that of whoever may not go on.
func (se *session) check(ctx context.Context) error {
	if se.needs.in == Anyone {
		return nil
	}
	p, err := se.s.o.Guard.Authenticate(ctx, se.cred)
	if err != nil {
		return err
	}
	se.who.Store(p)
	switch n := se.needs; n.in {
	case InPath:
		if n.or != "" && p.Check(n.or, n.of, se.name) == nil {
			return nil
		}
		return p.Check(n.may, n.of, se.name)
	case Whole:
		return p.Check(n.may, access.Router, "")
	}
	return nil
}

// hold returns a context that ends when ctx does, or, for ErrRevoked, when the caller may not go on. Call stop.
func (se *session) hold(ctx context.Context) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(access.WithAddr(context.WithValue(ctx, sessionKey{}, se), se.cred.Addr))
	se.end = func() { cancel(ErrRevoked) }
	var again *time.Timer
	again = time.AfterFunc(time.Hour, func() {
		switch err := se.check(ctx); {
		case ctx.Err() != nil:
		case err != nil:
			cancel(ErrRevoked)
		default:
			again.Reset(se.s.o.Recheck)
		}
	})
	again.Reset(se.s.o.Recheck)
	return ctx, func() {
		cancel(nil)
		again.Stop()
	}
}

// still asks again after a call has waited.
func (c *call) still() error {
	if err := c.identify(&c.ctx.Request.Header); err != nil {
		return err
	}
	return c.allowed()
}
