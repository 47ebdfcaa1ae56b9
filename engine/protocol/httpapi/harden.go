package httpapi

import (
	"bytes"
	"cmp"
	"fmt"
	"net/netip"
	"strings"
	"unsafe"

	"github.com/millrace/millrace/engine/admission"
	"github.com/millrace/millrace/engine/event"
	"github.com/valyala/fasthttp"
)

// headers are those of a request that the server acts on, read from its raw bytes: fasthttp takes
// several framings that two parsers can read differently. All borrow the
// request.
type headers struct {
	host, origin, auth                    string
	contentType, contentEncoding          string
	connection                            string
	prefer, idempotencyKey, lastEventID   string
	bridge, acceptEncoding                string   // of another router
	forwarded, forwardedFor               string   // of proxies
	accessMethod, accessHeaders, webHook  string   // of OPTIONS
	ce                                    []header // ce-*
	length, encoding, hosts, types, auths int      // how many of Content-Length, Transfer-Encoding, …
	size, coding                          string   // Content-Length, Transfer-Encoding
}

type header struct{ name, value string }

// badFraming is the refusal of a request whose end is in doubt: the connection closes, so that nothing
// behind it is ever read as a request.
func badFraming(format string, args ...any) *refusal {
	r := refuse(fasthttp.StatusBadRequest, format, args...)
	r.close = true
	return r
}

// read parses a header block, each line of which ends with CRLF, the last one empty.
func (h *headers) read(raw []byte) *refusal {
	*h = headers{ce: h.ce[:0]}
	for len(raw) > 0 {
		i := bytes.IndexByte(raw, '\n')
		if i < 1 || raw[i-1] != '\r' {
			return badFraming("a header line ends with LF alone; lines end with CRLF (RFC 9112, 2.2)")
		}
		line := raw[:i-1]
		raw = raw[i+1:]
		if len(line) == 0 {
			break
		}
		if line[0] == ' ' || line[0] == '\t' {
			return badFraming("a header is folded over two lines; write it on one (RFC 9112, 5.2)")
		}
		colon := bytes.IndexByte(line, ':')
		if colon < 1 || !isToken(line[:colon]) {
			return badFraming("a header's name is not a token followed by a colon (RFC 9112, 5)")
		}
		value := bytes.Trim(line[colon+1:], " \t")
		for _, b := range value {
			if isControl(b) {
				return badFraming("the header %.40q has a control character (0x%02X) in its value", line[:colon], b)
			}
		}
		h.take(line[:colon], borrow(value))
	}
	switch {
	case h.length > 1:
		return badFraming("Content-Length is given twice (RFC 9112, 6.3)")
	case h.encoding > 1:
		return badFraming("Transfer-Encoding is given twice (RFC 9112, 6.1)")
	case h.length > 0 && h.encoding > 0:
		return badFraming("Content-Length and Transfer-Encoding are both given; send one (RFC 9112, 6.1)")
	case h.hosts > 1:
		return badFraming("Host is given twice (RFC 9112, 3.2)")
	case h.types > 1, h.auths > 1:
		return badFraming("Content-Type, Content-Encoding, Origin or Authorization is given twice")
	}
	return nil
}

func (h *headers) take(name []byte, value string) {
	// twice counts a header of which a second could be read instead of the first.
	once := func(at *string, n *int) {
		if *at != "" {
			*n = 2
		}
		*at = value
	}
	switch n := borrow(name); len(name) {
	case 4:
		if strings.EqualFold(n, "host") {
			h.host = value
			h.hosts++
		}
	case 6:
		switch {
		case strings.EqualFold(n, "origin"):
			once(&h.origin, &h.auths)
		case strings.EqualFold(n, "prefer"):
			h.prefer = joined(h.prefer, value)
		}
	case 9:
		if strings.EqualFold(n, "forwarded") {
			h.forwarded = joined(h.forwarded, value)
		}
	case 10:
		if strings.EqualFold(n, "connection") {
			h.connection = joined(h.connection, value)
		}
	case 12:
		if strings.EqualFold(n, "content-type") {
			once(&h.contentType, &h.types)
		}
	case 13:
		switch {
		case strings.EqualFold(n, "authorization"):
			once(&h.auth, &h.auths)
		case strings.EqualFold(n, "last-event-id"):
			h.lastEventID = value
		}
	case 14:
		if strings.EqualFold(n, "content-length") {
			h.size = value
			h.length++
		}
	case 15:
		switch {
		case strings.EqualFold(n, "idempotency-key"):
			once(&h.idempotencyKey, &h.types)
		case strings.EqualFold(n, "x-forwarded-for"):
			h.forwardedFor = joined(h.forwardedFor, value)
		case strings.EqualFold(n, event.BridgeHeader):
			once(&h.bridge, &h.types)
		case strings.EqualFold(n, "accept-encoding"):
			h.acceptEncoding = joined(h.acceptEncoding, value)
		}
	case 16:
		if strings.EqualFold(n, "content-encoding") {
			once(&h.contentEncoding, &h.types)
		}
	case 17:
		if strings.EqualFold(n, "transfer-encoding") {
			h.coding = value
			h.encoding++
		}
	case 22:
		if strings.EqualFold(n, "webhook-request-origin") {
			h.webHook = value
		}
	case 29:
		if strings.EqualFold(n, "access-control-request-method") {
			h.accessMethod = value
		}
	case 30:
		if strings.EqualFold(n, "access-control-request-headers") {
			h.accessHeaders = value
		}
	}
	if len(name) > 3 && name[2] == '-' && name[0]|0x20 == 'c' && name[1]|0x20 == 'e' {
		h.ce = append(h.ce, header{borrow(name), value})
	}
}

// joined is two values of a header that is a list.
func joined(a, b string) string {
	if a == "" {
		return b
	}
	return a + ", " + b
}

// isToken reports whether b is a token (RFC 9110, 5.6.2).
func isToken(b []byte) bool {
	for _, c := range b {
		if !isTokenByte(c) {
			return false
		}
	}
	return len(b) > 0
}

func isTokenByte(c byte) bool {
	switch {
	case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-':
		return true
	}
	return c < 0x7F && strings.IndexByte("!#$%&'*+._`|~^", c) >= 0
}

// admit decides from the request line and the headers alone whether a request may go on.
func (s *Server) admit(h *fasthttp.RequestHeader, hd *headers, loopback bool) *refusal {
	if p := h.Protocol(); string(p) != "HTTP/1.1" && string(p) != "HTTP/1.0" {
		return badFraming("the protocol is %.20q; this server speaks HTTP/1.1 and HTTP/1.0", p)
	}
	if bad := hd.read(h.RawHeaders()); bad != nil {
		return bad
	}
	if hd.encoding > 0 && !strings.EqualFold(hd.coding, "chunked") {
		return badFraming("Transfer-Encoding is not chunked, the only one taken (RFC 9112, 6.1)")
	}
	if string(h.Method()) == "CONNECT" {
		return badFraming("CONNECT asks for a tunnel; this server is no proxy")
	}
	if hd.hosts > 0 && !wellFormedHost(hd.host) {
		return badFraming("the Host %.80q is not a name or an address with perhaps a port (RFC 9112, 3.2)", hd.host)
	}
	if uri := h.RequestURI(); len(uri) == 0 || uri[0] != '/' {
		if !sameAuthority(borrow(uri), hd.host) && string(uri) != "*" {
			return badFraming("the request target %.60q is not a path, nor a URL of the Host %.60q: this server is no proxy", uri, hd.host)
		}
	}
	if bad := s.admitHost(hd, loopback); bad != nil {
		bad.close = true
		return bad
	}
	if bad := s.admitOrigin(hd); bad != nil {
		bad.close = true
		return bad
	}
	return nil
}

func sameAuthority(uri, host string) bool {
	scheme, rest, ok := strings.Cut(uri, "://")
	if !strings.EqualFold(scheme, "http") && !strings.EqualFold(scheme, "https") {
		return false
	}
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		rest = rest[:i]
	}
	return ok && strings.EqualFold(rest, host)
}

// wellFormedHost takes a name, an IPv4 address or an IPv6 address in brackets, with a port or without: what a browser
// can send, and nothing that two parsers could take for two hosts.
func wellFormedHost(v string) bool {
	name, port := v, ""
	if i := strings.LastIndexByte(v, ':'); i >= 0 && strings.IndexByte(v[i:], ']') < 0 {
		name, port = v[:i], v[i+1:]
	}
	if len(port) > 5 || strings.Trim(port, "0123456789") != "" {
		return false
	}
	if n := len(name); n > 2 && name[0] == '[' && name[n-1] == ']' {
		return strings.Trim(name[1:n-1], "0123456789abcdefABCDEF.:") == ""
	}
	for i := range len(name) {
		if c := name[i]; !isTokenByte(c) || strings.IndexByte("!#$%&'*+`|~^", c) >= 0 {
			return false
		}
	}
	return len(name) < 256
}

// admitHost keeps pages away whose host name was made to resolve to this machine (DNS rebinding).
// See docs/http.md.
func (s *Server) admitHost(hd *headers, loopback bool) *refusal {
	if len(s.o.Hosts) == 0 && !loopback || hd.hosts == 0 { // HTTP/1.0 without Host is no browser
		return nil
	}
	name := hd.host
	if i := strings.LastIndexByte(name, ':'); i >= 0 && strings.IndexByte(name[i:], ']') < 0 {
		name = name[:i]
	}
	if strings.EqualFold(name, "localhost") {
		return nil
	}
	for _, allowed := range s.o.Hosts {
		if strings.EqualFold(name, allowed) || strings.EqualFold(hd.host, allowed) {
			return nil
		}
	}
	if n := len(name); n > 2 && name[0] == '[' && name[n-1] == ']' {
		name = name[1 : n-1]
	}
	if _, err := netip.ParseAddr(name); err == nil {
		return nil
	}
	return refuse(fasthttp.StatusForbidden, "the Host %.80q is not one of this router; use an IP address or localhost, or start it with --host %.80s", hd.host, event.Visible(name))
}

// admitOrigin keeps away web pages of other sites: any page can post to loopback.
func (s *Server) admitOrigin(hd *headers) *refusal {
	o := hd.origin
	if o == "" {
		return nil
	}
	if _, rest, ok := strings.Cut(o, "://"); ok && strings.EqualFold(rest, hd.host) {
		return nil // the router's own console
	}
	if s.allowsOrigin(o) {
		return nil
	}
	return refuse(fasthttp.StatusForbidden, "pages of the Origin %.80q may not call this router; start it with --cors-origin %.80s to allow them", o, event.Visible(o))
}

func (s *Server) allowsOrigin(o string) bool {
	for _, allowed := range s.o.CORSOrigins {
		if allowed == "*" || strings.EqualFold(allowed, o) {
			return true
		}
	}
	return false
}

// headerReceived runs before a body is read. A small body is in memory already and is judged with the
// rest; for a large one a request that will be refused is cut before its body, so that nothing is
// allocated for what nobody will read.
func (s *Server) headerReceived(h *fasthttp.RequestHeader) fasthttp.RequestConfig {
	n := h.ContentLength()
	if n >= 0 && n <= s.o.HeaderBytes || n == -2 {
		return fasthttp.RequestConfig{}
	}
	c := s.calls.Get().(*call)
	c.ctx = requestOf(h)
	defer func() { c.reset(); s.calls.Put(c) }()
	nc := connOf(c.ctx)
	if nc == nil {
		return fasthttp.RequestConfig{}
	}
	if nc.refusal = s.admitBody(c, h, nc); nc.refusal != nil {
		h.SetContentLength(0) // serve judges again, and answers with this
		h.SetConnectionClose()
		h.Del("Expect")
	}
	return fasthttp.RequestConfig{ReadTimeout: s.o.BodyTimeout}
}

// admitBody decides whether a large body is read.
func (s *Server) admitBody(c *call, h *fasthttp.RequestHeader, nc *conn) error {
	if nc.on.face.Serves == Redirect {
		return &last{errRedirect}
	}
	if err := s.judge(c, h); err != nil {
		return err
	}
	n := int64(h.ContentLength())
	if err := s.door.Shed(max(n, 0)); err != nil {
		return &last{err}
	}
	if err := nc.expect(n, c.route == nil || c.route.in == Anyone); err != nil {
		return &last{err}
	}
	return nil
}

// judge is everything that is decided before a body is read; it fills in c.h and c.route. It looks at the
// raw headers, the request line and whether the server drains, and so comes to the same when asked again.
func (s *Server) judge(c *call, h *fasthttp.RequestHeader) error {
	if bad := s.admit(h, &c.h, c.on().loopback); bad != nil {
		return bad
	}
	size, err := sizeOf(c.h.size)
	if err != nil {
		return err
	}
	if err = c.find(h); unknown(err) {
		err = cmp.Or(c.stranger(), err)
	}
	if err == nil && size > int64(s.o.Limits.Body) {
		err = bodyTooLarge(s.o.Limits.Body)
	}
	if err == nil && c.takesNoBody() && (c.h.encoding > 0 || size > int64(s.o.HeaderBytes)) {
		s.door.Refused(admission.BodySize)
		err = refuse(fasthttp.StatusRequestEntityTooLarge, "this call takes no body: send it without one")
	}
	if err == nil && s.draining() && (c.route == nil || c.route.in != Anyone) {
		err = errDraining
	}
	if err != nil && (c.h.encoding > 0 || size > int64(s.o.HeaderBytes)) {
		return &last{err} // the body was not read: its bytes are still on the connection
	}
	return err
}

// takesNoBody reports whether the call is one that anybody may make and that reads nothing: OPTIONS and health checks. A
// large body would take room for nothing that is another's.
func (c *call) takesNoBody() bool {
	return c.route == nil || c.route.in == Anyone && !c.route.mounted
}

// sizeOf reads a Content-Length: digits and nothing else (RFC 9110, 8.6).
func sizeOf(v string) (int64, error) {
	n := int64(0)
	for i := range len(v) {
		d := v[i]
		if d < '0' || d > '9' || len(v) > 18 {
			return 0, badFraming("Content-Length is %.40q; want a number of bytes in plain digits", v)
		}
		n = n*10 + int64(d-'0')
	}
	return n, nil
}

// last is an error after which the connection closes.
type last struct{ error }

func (l *last) Unwrap() error { return l.error }

func borrow(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

func bytesOf(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }

func invalidf(at, format string, args ...any) error {
	return event.Invalid(at, fmt.Sprintf(format, args...))
}
