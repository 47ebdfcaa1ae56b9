package httpapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/admission"
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
			nc.known, nc.knownAs = true, c.s.door.Hash(cred.Bearer)
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
		return access.NotFound(k, name)
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

func (c *call) unseen(err error) error {
	if err == nil || c.name == "" {
		return err
	}
	return access.Unseen(c.principal, c.kind, strings.Clone(c.name), err, c.s.o.Backend.Has)
}

// context is that of the call's work, with who asks and from where: for the parts of the router that ask on.
func (c *call) context() context.Context {
	return access.WithAddr(access.With(c.s.work, c.principal), c.addr())
}

// A session is who reads a connection that stays open, by a call that asks something of him.
type session struct {
	*admission.Session
	needs needs
	name  string
}

type sessionKey struct{}

// SessionOf is of who is at the other end of a connection that a Mount took over; nil elsewhere.
func SessionOf(ctx context.Context) *admission.Session {
	if se, ok := ctx.Value(sessionKey{}).(*session); ok {
		return se.Session
	}
	return nil
}

func (c *call) session() *session {
	cred, _ := c.credentials(&c.ctx.Request.Header)
	cred.Bearer = strings.Clone(cred.Bearer)
	p, nc := c.principal, connOf(c.ctx)
	if c.route.needs.in == Anyone {
		p = nil
	}
	var from *admission.Account
	if nc != nil {
		from = nc.client
	}
	se := &session{Session: c.s.door.Session(p, cred, from), needs: c.route.needs, name: strings.Clone(c.params[0])}
	if nc != nil {
		nc.se = se
	}
	return se
}

// may asks again for what the call has asked for.
func (se *session) may() error {
	p := se.Principal()
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

// hold returns a context that ends when ctx does, or, for admission.ErrRevoked, when the caller may not go on. Call stop.
func (se *session) hold(ctx context.Context) (_ context.Context, stop func()) {
	return se.Hold(access.WithAddr(context.WithValue(ctx, sessionKey{}, se), se.Addr()), se.may)
}

// still asks again after a call has waited.
func (c *call) still() error {
	if err := c.identify(&c.ctx.Request.Header); err != nil {
		return err
	}
	return c.allowed()
}
