package httpapi

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unsafe"

	"github.com/valyala/fasthttp"
)

// A Face is an address at which a Server is reached. Its faces share the server's limits and its drain.
type Face struct {
	Listener net.Listener
	TLS      *tls.Config // nil: plain
	Serves   Serves
}

// Serves says which calls a face answers.
type Serves uint8

const (
	// Everything is every call.
	Everything Serves = iota
	// Public is every call but administration, which answers there as what does not exist.
	Public
	// Redirect answers every request with the https URL of the same thing, and an ACME authority's.
	Redirect
)

// Serve answers on ln; see ServeFaces.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	return s.ServeFaces(ctx, Face{Listener: ln})
}

// ServeFaces answers on all faces until Shutdown has ended or ctx ends, which shuts down with 25 seconds for what is
// under way. It owns the listeners. One that others than this machine can reach is refused unless there is
// a token, a key or a policy, or Insecure says that none is wanted.
func (s *Server) ServeFaces(ctx context.Context, faces ...Face) error {
	ls, err := s.listen(faces)
	if err != nil {
		for _, f := range faces {
			f.Listener.Close()
		}
		return err
	}
	failed := make(chan error, len(ls))
	for _, l := range ls {
		go func() {
			err := s.fh.Serve(l)
			if err != nil {
				err = fmt.Errorf("httpapi: accept on %s: %w", l.Addr(), err)
			}
			failed <- err
		}()
	}
	select {
	case err := <-failed:
		if err == nil || s.draining() { // Shutdown closed the listener
			<-s.down
			return nil
		}
		return errors.Join(err, s.Shutdown(ctx))
	case <-ctx.Done():
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 25*time.Second)
		defer cancel()
		err := s.Shutdown(end)
		for range ls {
			<-failed
		}
		return err
	}
}

// listen wraps the faces' listeners, unless one of them may not be served.
func (s *Server) listen(faces []Face) ([]*listener, error) {
	if len(faces) == 0 {
		return nil, errors.New("httpapi: there is nothing to listen on")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining() || s.faces != nil {
		return nil, errors.New("httpapi: this server has been shut down or serves already")
	}
	var ls []*listener
	for _, f := range faces {
		l := &listener{Listener: f.Listener, s: s, face: f, routes: s.routes, loopback: isLoopback(f.Listener.Addr()), close: sync.OnceValue(f.Listener.Close)}
		if f.Serves != Redirect && !l.loopback && !s.o.Insecure && !s.o.Guard.StayOn() {
			return nil, fmt.Errorf("httpapi: %s can be reached from other machines and no token is set: set MILLRACE_TOKEN, "+
				"or listen on 127.0.0.1, or say --insecure to serve everybody", f.Listener.Addr())
		}
		if f.Serves == Public {
			l.routes = s.public
		}
		ls = append(ls, l)
	}
	s.faces = ls
	return ls, nil
}

// newConn wraps what was accepted. TLS is below the wrapper, which so sees the bytes of requests.
func (l *listener) newConn(raw net.Conn) *conn {
	c := &conn{Conn: raw, raw: raw, s: l.s, on: l, fresh: true}
	if l.face.TLS != nil {
		c.tls = tls.Server(raw, l.face.TLS)
		c.Conn = c.tls
	}
	if a, ok := raw.RemoteAddr().(*net.TCPAddr); ok {
		c.peer = a.AddrPort().Addr().Unmap()
	}
	return c
}

// handshake makes the TLS connection, within the deadline that the first read has.
func (c *conn) handshake() error {
	c.shaken = true
	_ = c.raw.SetWriteDeadline(time.Now().Add(c.s.o.HeaderTimeout))
	err := c.tls.Handshake()
	_ = c.raw.SetWriteDeadline(time.Time{})
	if err != nil {
		c.s.handshakes.Add(1)
		c.s.o.Log.Debug("a TLS handshake failed", "from", c.peer, "error", err)
		var plain tls.RecordHeaderError
		if errors.As(err, &plain) && plain.Conn != nil && looksLikeHTTP(plain.RecordHeader[:]) {
			c.answerPlain(refuse(fasthttp.StatusBadRequest, "this address speaks HTTPS; use https:// in the URL"))
		}
		return io.EOF // nothing more can be said
	}
	st := c.tls.ConnectionState()
	if len(st.VerifiedChains) > 0 {
		c.leaf = st.VerifiedChains[0][0]
	}
	if st.NegotiatedProtocol != "" && st.NegotiatedProtocol != "http/1.1" { // the handshake was the answer: RFC 8737, 3
		return io.EOF
	}
	return nil
}

// looksLikeHTTP reports whether a record's header is the beginning of a plain request.
func looksLikeHTTP(b []byte) bool {
	return slices.ContainsFunc([]string{"GET /", "POST ", "PUT /", "HEAD ", "PATCH", "DELET", "OPTIO"},
		func(m string) bool { return bytes.HasPrefix(b, []byte(m)) })
}

// answerPlain writes a whole answer on the connection below TLS, which waits for nobody: the kernel has room for the
// first bytes of a connection.
func (c *conn) answerPlain(why error) {
	p, _ := problemOf(why)
	status := p.Status
	doc, _ := ProblemOf(why)
	_ = c.raw.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = fmt.Fprintf(c.raw, "HTTP/1.1 %d %s\r\nServer: millrace\r\nContent-Type: application/problem+json\r\nContent-Length: %d\r\n%sConnection: close\r\n\r\n%s",
		status, fasthttp.StatusMessage(status), len(doc), retryAfter(status), doc)
}

func retryAfter(status int) string {
	if status == fasthttp.StatusTooManyRequests || status == fasthttp.StatusServiceUnavailable {
		return "Retry-After: 1\r\n"
	}
	return ""
}

// hungUp reports whether the client has closed the connection, without reading what it has sent.
func (c *conn) hungUp() bool { return hungUp(c.raw, c.tls != nil) }

// connOf is the connection of a request, nil if it is not this server's.
func connOf(ctx *fasthttp.RequestCtx) *conn {
	if ctx == nil {
		return nil
	}
	c, _ := ctx.Conn().(*conn)
	return c
}

// requestOf is the request whose header fasthttp has read. HeaderReceived is told only of the header, and who sends a
// request, which decides whether its body is read, is known from its connection alone. fasthttp has passed the header
// inside its RequestCtx since there was the hook; TestHeaderIsInsideItsRequest fails should that end.
func requestOf(h *fasthttp.RequestHeader) *fasthttp.RequestCtx {
	var ctx *fasthttp.RequestCtx
	const inside = unsafe.Offsetof(ctx.Request) + unsafe.Offsetof(ctx.Request.Header)
	return (*fasthttp.RequestCtx)(unsafe.Add(unsafe.Pointer(h), -int(inside)))
}

// certificate is what the client showed and the listener verified; nil if none.
func (c *call) certificate() *x509.Certificate {
	if nc := connOf(c.ctx); nc != nil {
		return nc.leaf
	}
	return nil
}

// addr is the client's address; not valid on a unix socket.
func (c *call) addr() netip.Addr {
	if nc := connOf(c.ctx); nc != nil {
		return cmp.Or(nc.from, nc.peer)
	}
	return netip.Addr{}
}

// on is the face's listener that the request came in by.
func (c *call) on() *listener {
	if nc := connOf(c.ctx); nc != nil {
		return nc.on
	}
	return c.s.nowhere
}

var errRedirect = errors.New("redirect")

// redirect answers on a Redirect face. The host is one that the router shows a certificate for: the header is the
// client's, and must not make the router send others anywhere.
func (c *call) redirect(nc *conn) error {
	h := &c.ctx.Request.Header
	if bad := c.s.admit(h, &c.h, false); bad != nil {
		return bad
	}
	path := borrow(h.RequestURI())
	if i := strings.Index(path, "://"); i >= 0 && path[0] != '/' {
		_, path, _ = strings.Cut(path[i+3:], "/")
		path = "/" + path
	} else if path[0] != '/' { // OPTIONS *
		path = "/"
	}
	if nc.refusal != nil {
		linger(c.ctx)
		c.ctx.SetConnectionClose()
	}
	name := c.h.host
	if i := strings.LastIndexByte(name, ':'); i >= 0 && strings.IndexByte(name[i:], ']') < 0 {
		name = name[:i]
	}
	if strings.HasPrefix(path, "/.well-known/acme-challenge/") && c.s.o.Challenge != nil {
		if answer, ok := c.s.o.Challenge(c.s.work, name, path); ok {
			c.ctx.SetContentType("text/plain")
			c.ctx.SetStatusCode(fasthttp.StatusOK)
			c.ctx.SetBody(answer)
			return nil
		}
	}
	if c.s.o.Secure == nil || !c.s.o.Secure(strings.Trim(name, "[]")) {
		return refuse(fasthttp.StatusMisdirectedRequest, "the Host %.80q is none that this router has a certificate for; use https:// and its name", c.h.host)
	}
	to := "https://" + name
	if c.s.o.SecurePort != 443 {
		to += ":" + strconv.Itoa(c.s.o.SecurePort)
	}
	c.ctx.Response.Header.Set("Location", to+path)
	c.ctx.SetStatusCode(fasthttp.StatusPermanentRedirect)
	return nil
}
