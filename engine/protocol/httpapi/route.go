package httpapi

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/event"
	"github.com/valyala/fasthttp"
)

// A route is one call of the API. The table is equal to the paths and methods of openapi.json.
type route struct {
	method  string
	path    string // {topic} and the like stand for one segment
	handle  func(*call) error
	stream  bool // takes ?access_token=
	mounted bool // another package answers
	query   []string

	anyQuery bool
	needs
}

// routes is every route of this build. GET answers HEAD too.
func routes() []*route {
	publish := []string{"id", "type", "subject", "key", "types", "dryRun"}
	stream := []string{"after", "since", "filter", "event"}
	rs := []*route{
		{method: "POST", path: "/v1/topics/{topic}/events", handle: (*call).publish, query: publish, needs: needs{may: access.Publish, of: access.Topic, in: InPath}},
		{method: "GET", path: "/v1/topics/{topic}/events", handle: (*call).poll, query: []string{"after", "since", "limit", "filter", "wait"}, needs: needs{may: access.Read, of: access.Topic, in: InPath}},
		{method: "GET", path: "/v1/topics/{topic}/events/{position}", handle: (*call).one, needs: needs{may: access.Read, of: access.Topic, in: InPath}},
		{method: "GET", path: "/v1/topics/{topic}/events/{position}/reply", handle: (*call).readReply, query: []string{"wait"}, needs: needs{may: access.Publish, or: access.Read, of: access.Topic, in: InPath}},
		{method: "GET", path: "/v1/topics/{topic}/events/{position}/trace", handle: (*call).trace, needs: needs{may: access.Read, of: access.Topic, in: InPath}},
		{method: "GET", path: "/v1/subscriptions/{name}/explain", handle: (*call).explain, query: []string{"event", "mqttName", "data"}, needs: needs{may: access.Read, of: access.Subscription, in: InPath}},
		{method: "GET", path: "/v1/topics/{topic}/stream", handle: (*call).streamTopic, query: stream, stream: true, needs: needs{may: access.Read, of: access.Topic, in: InPath}},
		{method: "POST", path: "/v1/publish", handle: (*call).publishShort, query: []string{"dryRun"}, needs: needs{may: access.Publish, of: access.Topic, in: InBody}},
		{method: "GET", path: "/v1/subscriptions/{name}/stream", handle: (*call).streamSubscription, query: stream, stream: true, needs: needs{may: access.Consume, of: access.Subscription, in: InPath}},
		{method: "POST", path: "/v1/subscriptions/{name}/pull", handle: (*call).pull, needs: needs{may: access.Consume, of: access.Subscription, in: InPath}},
		{method: "POST", path: "/v1/subscriptions/{name}/ack", handle: (*call).ack, needs: needs{may: access.Consume, of: access.Subscription, in: InPath}},
		{method: "POST", path: "/v1/subscriptions/{name}/nack", handle: (*call).nack, needs: needs{may: access.Consume, of: access.Subscription, in: InPath}},
		{method: "POST", path: "/v1/subscriptions/{name}/extend", handle: (*call).extend, needs: needs{may: access.Consume, of: access.Subscription, in: InPath}},
		{method: "POST", path: "/v1/subscriptions/{name}/seek", handle: (*call).seek, needs: needs{may: access.Operate, of: access.Subscription, in: InPath}},
		{method: "POST", path: "/v1/subscriptions/{name}/pause", handle: (*call).pause, needs: needs{may: access.Operate, of: access.Subscription, in: InPath}},
		{method: "POST", path: "/v1/subscriptions/{name}/resume", handle: (*call).resume, needs: needs{may: access.Operate, of: access.Subscription, in: InPath}},
		{method: "GET", path: "/v1/subscriptions/{name}/deadletters", handle: (*call).deadLetters, query: []string{"limit", "after", "filter", "since", "before", "topic"}, needs: needs{may: access.Operate, of: access.Subscription, in: InPath}},
		{method: "POST", path: "/v1/subscriptions/{name}/redrive", handle: (*call).redrive, needs: needs{may: access.Operate, of: access.Subscription, in: InPath}},
		{method: "POST", path: "/v1/subscriptions/{name}/purge", handle: (*call).purge, needs: needs{may: access.Operate, of: access.Subscription, in: InPath}},
		{method: "POST", path: "/v1/subscriptions/{name}/replay", handle: (*call).replay, needs: needs{may: access.Operate, of: access.Subscription, in: InPath}},
		{method: "GET", path: "/v1/subscriptions/{name}/replay", handle: (*call).readReplay, needs: needs{may: access.Operate, of: access.Subscription, in: InPath}},
		{method: "DELETE", path: "/v1/subscriptions/{name}/replay", handle: (*call).cancelReplay, needs: needs{may: access.Operate, of: access.Subscription, in: InPath}},
		{method: "GET", path: "/v1/schedules", handle: (*call).schedules, needs: needs{may: access.Read, of: access.Topic, in: Listed}},
		{method: "GET", path: "/v1/bridges", handle: list("bridges"), needs: needs{may: access.Read, of: access.Subscription, in: Listed}},
		{method: "GET", path: "/v1/functions", handle: list("functions"), needs: needs{may: access.Read, of: access.Function, in: Listed}},
		{method: "GET", path: "/v1/functions/{name}", handle: show("functions"), needs: needs{may: access.Read, of: access.Function, in: InPath}},
		{method: "PUT", path: "/v1/functions/{name}", handle: (*call).pushFunction, needs: needs{may: access.Deploy, of: access.Function, in: InPath}},
		{method: "DELETE", path: "/v1/functions/{name}", handle: remove("functions"), needs: needs{may: access.Deploy, of: access.Function, in: InPath}},
		{method: "POST", path: "/v1/functions/{name}/rollback", handle: (*call).rollback, needs: needs{may: access.Deploy, of: access.Function, in: InPath}},
		{method: "GET", path: "/v1/functions/{name}/logs", handle: (*call).functionLogs, query: []string{"follow", "limit"}, needs: needs{may: access.Deploy, of: access.Function, in: InPath}},
		{method: "GET", path: "/v1/subscriptions/{name}/shadow", handle: (*call).shadow, needs: needs{may: access.Read, of: access.Subscription, in: InPath}},
		{method: "POST", path: "/v1/functions/{name}/invoke", handle: (*call).invoke, query: []string{"version", "id", "type", "subject", "key"}, needs: needs{may: access.Invoke, of: access.Function, in: InPath}},
		{method: "GET", path: "/v1/rules", handle: (*call).rules, needs: needs{may: access.Admin, of: access.Router, in: Whole}},
		{method: "PUT", path: "/v1/rules", handle: (*call).applyRules, query: []string{"author", "message", "undelivered"}, needs: needs{may: access.Admin, of: access.Router, in: Whole}},
		{method: "POST", path: "/v1/rules/validate", handle: (*call).validateRules, needs: needs{may: access.Admin, of: access.Router, in: Whole}},
		{method: "POST", path: "/v1/rules/backtest", handle: (*call).backtest, query: []string{"since", "until", "limit", "topics", "subscriptions", "functions", "examples", "budget", "before"}, needs: needs{may: access.Admin, of: access.Router, in: Whole}},
		{method: "POST", path: "/v1/rules/diff", handle: (*call).diffRules, needs: needs{may: access.Admin, of: access.Router, in: Whole}},
		{method: "GET", path: "/v1/rules/revisions", handle: (*call).rulesRevisions, needs: needs{may: access.Admin, of: access.Router, in: Whole}},
		{method: "POST", path: "/v1/rules/rollback", handle: (*call).rollbackRules, query: []string{"author", "message", "undelivered"}, needs: needs{may: access.Admin, of: access.Router, in: Whole}},
		{method: "GET", path: "/v1/keys", handle: (*call).keys, needs: needs{may: access.Admin, of: access.Router, in: Whole}},
		{method: "POST", path: "/v1/keys", handle: (*call).createKey, needs: needs{may: access.Admin, of: access.Router, in: Whole}},
		{method: "GET", path: "/v1/keys/{id}", handle: (*call).showKey, needs: needs{may: access.Admin, of: access.Router, in: Whole}},
		{method: "DELETE", path: "/v1/keys/{id}", handle: (*call).revokeKey, needs: needs{may: access.Admin, of: access.Router, in: Whole}},
		{method: "POST", path: "/v1/keys/{id}/rotate", handle: (*call).rotateKey, needs: needs{may: access.Admin, of: access.Router, in: Whole}},
		{method: "GET", path: "/v1/backup", handle: (*call).backup, query: []string{"rate"}, needs: needs{may: access.Admin, in: Whole}},
		{method: "GET", path: "/v1/openapi.json", handle: (*call).openapi, needs: needs{in: Known}},
		{method: "GET", path: "/healthz", handle: (*call).healthz, needs: needs{in: Anyone}},
		{method: "GET", path: "/readyz", handle: (*call).readyz, needs: needs{in: Anyone}},
		{method: "GET", path: "/metrics", handle: (*call).metrics, needs: needs{may: access.Admin, of: access.Router, in: Whole}},
	}
	for _, k := range []struct {
		kind, param string
		of          access.Kind
	}{{"topics", "{topic}", access.Topic}, {"subscriptions", "{name}", access.Subscription}} {
		to := func(may access.Action, in Where) needs { return needs{may: may, of: k.of, in: in} }
		all, one := "/v1/"+k.kind, "/v1/"+k.kind+"/"+k.param
		rs = append(rs,
			&route{method: "GET", path: all, handle: list(k.kind), needs: to(access.Read, Listed)},
			&route{method: "POST", path: all, handle: create(k.kind, k.of), needs: to(access.Manage, InBody)},
			&route{method: "GET", path: one, handle: show(k.kind), needs: to(access.Read, InPath)},
			&route{method: "PATCH", path: one, handle: change(k.kind), needs: to(access.Manage, InPath)},
			&route{method: "DELETE", path: one, handle: remove(k.kind), needs: to(access.Manage, InPath)})
	}
	return rs
}

// administers reports whether the call changes or looks into the router itself, rather than using it.
func (r *route) administers() bool {
	switch r.may {
	case access.Admin, access.Manage, access.Deploy, access.Operate:
		return true
	}
	return false
}

// A node is one segment of the routes' paths.
type node struct {
	next   map[string]*node
	param  *node
	routes []*route // that end here
	allow  string   // their methods
}

func tree(rs []*route) *node {
	root := &node{}
	for _, r := range rs {
		n := root
		for seg := range strings.SplitSeq(r.path[1:], "/") {
			if seg[0] == '{' {
				if n.param == nil {
					n.param = &node{}
				}
				n = n.param
				continue
			}
			if n.next == nil {
				n.next = map[string]*node{}
			}
			if n.next[seg] == nil {
				n.next[seg] = &node{}
			}
			n = n.next[seg]
		}
		n.routes = append(n.routes, r)
		methods := []string{"OPTIONS"}
		for _, r := range n.routes {
			methods = append(methods, r.method)
			if r.method == "GET" {
				methods = append(methods, "HEAD")
			}
		}
		slices.Sort(methods)
		n.allow = strings.Join(slices.Compact(methods), ", ")
	}
	return root
}

// takesEvents is the route of a node by which events are sent to what the path names; nil if there is none.
func (n *node) takesEvents() *route {
	for _, r := range n.routes {
		if r.method == "POST" && r.may == access.Publish && r.in == InPath {
			return r
		}
	}
	return nil
}

// A call is one request being answered. It is pooled: nothing of it is kept after the answer.
type call struct {
	s      *Server
	ctx    *fasthttp.RequestCtx
	h      headers
	route  *route
	allow  string
	params [2]string // what stands for {…}, decoded

	consents *route // of OPTIONS: what web hooks would be sent by; nil: nothing takes them here

	asking
	publishing
}

func (c *call) reset() {
	s, p, ce := c.s, c.publishing, c.h.ce
	clear(ce)
	p.reset()
	*c = call{s: s, publishing: p, h: headers{ce: ce[:0]}}
}

// serve judges, finds the route and answers.
func (c *call) serve() error {
	nc := connOf(c.ctx)
	if nc == nil {
		return fmt.Errorf("the connection is a %T, not this server's", c.ctx.Conn())
	}
	if nc.bareLF {
		return badFraming("the request line ends with LF alone; lines end with CRLF (RFC 9112, 2.2)")
	}
	if nc.on.face.Serves == Redirect {
		return c.redirect(nc)
	}
	if nc.refusal != nil { // it was judged when its headers came
		if c.s.admit(&c.ctx.Request.Header, &c.h, nc.on.loopback) == nil && c.h.origin != "" {
			c.cors()
		}
		return nc.refusal
	}
	err := c.s.judge(c, &c.ctx.Request.Header)
	if c.closes() {
		c.ctx.SetConnectionClose()
	}
	if c.h.origin != "" {
		c.cors()
	}
	if err != nil {
		return err
	}
	if c.route == nil {
		return c.options()
	}
	if err := c.checkQuery(); err != nil {
		return err
	}
	n, _ := sizeOf(c.h.size)
	if n != int64(len(c.ctx.Request.Body())) && c.h.length > 0 {
		return badFraming("the body has not the %d bytes that Content-Length says", n)
	}
	if nc.incoming.began.IsZero() { // a large one was let in before it was read
		if err := c.s.door.Shed(n); err != nil {
			return err
		}
	}
	err = c.route.handle(c)
	if c.route.mounted && c.route.in == Anyone {
		err = c.strangerEnds(err)
	}
	if err != nil {
		return c.unseen(err)
	}
	if c.route.changes() {
		c.changed()
	}
	return nil
}

// closes says whether the connection ends with this request: the client says so in a list that fasthttp reads as one
// word, or the body is chunked and its framing was not looked at, so that no request may follow it.
func (c *call) closes() bool {
	if c.h.encoding > 0 {
		if nc, ok := c.ctx.Conn().(*conn); ok && nc.unseen {
			return true
		}
	}
	if c.h.connection == "" {
		return false
	}
	for option := range strings.SplitSeq(c.h.connection, ",") {
		if strings.EqualFold(strings.Trim(option, " \t"), "close") {
			return true
		}
	}
	return false
}

// find sets the route and its parameters from the request line, or says why there is none.
func (c *call) find(h *fasthttp.RequestHeader) error {
	path := borrow(h.RequestURI())
	if i := strings.IndexAny(path, "?#"); i >= 0 {
		path = path[:i]
	}
	if len(path) > 0 && path[0] != '/' { // absolute form
		if _, path, _ = strings.Cut(path, "://"); true {
			if i := strings.IndexByte(path, '/'); i >= 0 {
				path = path[i:]
			} else {
				path = "/"
			}
		}
	}
	n, params := c.on().routes, 0
	var bad error
	for rest := path; rest != ""; {
		seg := rest[1:]
		if i := strings.IndexByte(seg, '/'); i >= 0 {
			seg = seg[:i]
		}
		rest = rest[1+len(seg):]
		if next := n.next[seg]; next != nil {
			n = next
			continue
		}
		if n = n.param; n == nil {
			break
		}
		seg, err := unescape(seg)
		if err == nil && params == 0 { // the first is a name, which a second may belong to
			err = event.CheckName("path", seg)
		}
		if err != nil && bad == nil {
			bad = err
		}
		if params < len(c.params) {
			c.params[params] = seg
		}
		params++
	}
	found := n != nil && len(n.routes) > 0
	method := borrow(h.Method())
	if found {
		c.allow = n.allow
		for _, r := range n.routes {
			if r.method == method || r.method == "GET" && method == "HEAD" {
				c.route = r
			}
		}
	}
	if method == "OPTIONS" && (found || path == "*" || path == "/") && c.route == nil {
		if found && bad == nil {
			c.consents = n.takesEvents()
		}
		return c.arrive(h)
	}
	if c.route == nil || c.route.in != Anyone || c.route.mounted {
		if err := c.arrive(h); err != nil {
			return err
		}
	}
	if c.route == nil || c.route.in != Anyone {
		if err := c.authenticate(h); err != nil {
			return err
		}
	}
	switch {
	case !found:
		return refuse(fasthttp.StatusNotFound, "there is nothing at %.200q in this build; /v1/openapi.json lists what there is", path)
	case c.route == nil:
		return refuse(fasthttp.StatusMethodNotAllowed, "%.20q is not a method of %.200q; allowed are %s", method, path, n.allow).with("Allow", n.allow)
	case bad != nil:
		return bad
	}
	return c.allowed()
}

// unescape decodes the percent-encoding of a path's segment.
func unescape(s string) (string, error) {
	if strings.IndexByte(s, '%') < 0 {
		return s, nil
	}
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			out = append(out, s[i])
			continue
		}
		if i+2 >= len(s) {
			return s, event.Invalid("path", fmt.Sprintf("%.60q has a %% without two hex digits", s))
		}
		a, b := unhex(s[i+1]), unhex(s[i+2])
		if a > 15 || b > 15 {
			return s, event.Invalid("path", fmt.Sprintf("%.60q has a %% without two hex digits", s))
		}
		out = append(out, a<<4|b)
		i += 2
	}
	return borrow(out), nil
}

func unhex(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c|0x20 >= 'a' && c|0x20 <= 'f':
		return c | 0x20 - 'a' + 10
	}
	return 255
}

// checkQuery refuses parameters that the route does not act on, and those given twice.
func (c *call) checkQuery() error {
	if c.route.anyQuery || bytes.IndexByte(c.ctx.Request.Header.RequestURI(), '?') < 0 {
		return nil
	}
	seen := uint64(0)
	for k := range c.ctx.QueryArgs().All() {
		if c.route.stream && string(k) == "access_token" {
			continue
		}
		i := slices.Index(c.route.query, borrow(k))
		if i < 0 {
			takes := "none"
			if len(c.route.query) > 0 {
				takes = strings.Join(c.route.query, ", ")
			}
			return invalidf("?"+clip(string(k)), "is not a parameter of this call; it takes %s", takes)
		}
		if seen&(1<<i) != 0 {
			return event.Invalid("?"+string(k), "is given twice")
		}
		seen |= 1 << i
	}
	return nil
}

// query is a parameter of the query, "" if it is absent. It borrows the request.
func (c *call) query(name string) string { return borrow(c.ctx.QueryArgs().Peek(name)) }

// cors lets the pages that admitOrigin let through read the answer.
func (c *call) cors() {
	if !c.s.allowsOrigin(c.h.origin) {
		return
	}
	h := &c.ctx.Response.Header
	h.Set("Access-Control-Allow-Origin", c.h.origin)
	h.Set("Access-Control-Expose-Headers", "Retry-After, Preference-Applied, Location, Content-Location, ETag, Allow")
	h.Add("Vary", "Origin")
}

// options answers OPTIONS: the methods, a browser's preflight, and the consent that CloudEvents' web
// hooks ask for before they deliver.
func (c *call) options() error {
	h := &c.ctx.Response.Header
	if c.allow == "" {
		c.allow = "GET, HEAD, OPTIONS, POST, PUT, PATCH, DELETE"
	}
	h.Set("Allow", c.allow)
	if c.h.origin != "" && c.h.accessMethod != "" && c.s.allowsOrigin(c.h.origin) {
		h.Set("Access-Control-Allow-Methods", c.allow)
		if c.h.accessHeaders != "" {
			h.Set("Access-Control-Allow-Headers", c.h.accessHeaders)
		}
		h.Set("Access-Control-Max-Age", "600")
	}
	// HTTP 1.1 Web Hooks for Event Delivery, 4.
	if c.h.webHook != "" && c.consents != nil {
		known, err := c.isKnown()
		if err != nil {
			return err
		}
		if known { // who may not send them is told as when he sends them
			if err := c.may(c.consents.may, c.consents.of, c.params[0]); err != nil {
				return err
			}
			h.Set("WebHook-Allowed-Origin", c.h.webHook)
			h.Set("WebHook-Allowed-Rate", "*")
		}
	}
	c.ctx.SetStatusCode(fasthttp.StatusNoContent)
	return nil
}

func clip(s string) string {
	if len(s) > 60 {
		return s[:60] + "…"
	}
	return s
}
