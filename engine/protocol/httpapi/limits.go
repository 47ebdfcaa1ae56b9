package httpapi

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/admission"
	"github.com/millrace/millrace/engine/event"
	"github.com/valyala/fasthttp"
)

// ClientLimits bound what one client may ask for, whoever it is. The zero value of a field means its default.
type ClientLimits struct {
	admission.Limits // of every face
	// BodyRate is how many bytes a second of a large body must arrive, after BodyGrace; 4 KiB and 10 s.
	BodyRate  int
	BodyGrace time.Duration
}

func (o ClientLimits) withDefaults() ClientLimits {
	if o.BodyRate == 0 {
		o.BodyRate = 4 << 10
	}
	if o.BodyGrace == 0 {
		o.BodyGrace = 10 * time.Second
	}
	return o
}

// Connections is the number of open connections: streams are among them.
func (s *Server) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// HandshakesFailed is the number of TLS handshakes that have failed.
func (s *Server) HandshakesFailed() uint64 { return s.handshakes.Load() }

// enter counts a connection that was accepted; false: it was turned away.
func (s *Server) enter(c *conn) bool {
	if c.peer.IsValid() {
		c.counted = s.door.Account(c.peer)
		if err := s.door.Connect(c.counted, c.peer); err != nil {
			s.turnAway(c, err)
			return false
		}
	}
	s.mu.Lock()
	full := len(s.conns)-s.streams >= s.o.MaxConns
	if !full {
		s.conns[c] = struct{}{}
	}
	s.mu.Unlock()
	if full {
		if c.counted != nil {
			c.counted.Disconnect()
		}
		s.door.Refused(admission.Conns)
		s.turnAway(c, fmt.Errorf("%d connections are open, which is the limit; try again: %w", s.o.MaxConns, event.ErrUnavailable))
	}
	return !full
}

// turnAway answers a connection that is one too many, without reading from it. Nobody waits for it: it is answered by
// a goroutine of a bounded number, or not at all, and behind TLS, where an answer would cost a handshake, it is closed.
func (s *Server) turnAway(c *conn, why error) {
	if c.tls != nil {
		_ = c.raw.Close()
		return
	}
	select {
	case s.turning <- struct{}{}:
	default:
		_ = c.raw.Close()
		return
	}
	s.turned.Go(func() {
		defer func() { <-s.turning }()
		defer c.raw.Close()
		c.answerPlain(why)
		if w, ok := c.raw.(interface{ CloseWrite() error }); ok && w.CloseWrite() == nil {
			c.drain(lingerTime, 1<<20)
		}
	})
}

// leave is called once or more when a connection closes.
func (s *Server) leave(c *conn) {
	s.mu.Lock()
	_, here := s.conns[c]
	delete(s.conns, c)
	s.mu.Unlock()
	if !here {
		return
	}
	if c.counted != nil {
		c.counted.Disconnect()
	}
	if b := c.holds.Swap(nil); b != nil {
		b.Disconnect()
	}
	s.door.Release(&c.room)
	if c.se != nil {
		c.se.Close()
	}
}

// tooMany is the answer to what a client has, or asks for, too much of. The headers are those of
// draft-ietf-httpapi-ratelimit-headers-03, which is what clients read.
func tooMany(t *admission.TooMany) *refusal {
	seconds := int((t.Wait + time.Second - 1) / time.Second)
	after := strconv.Itoa(max(seconds, 1))
	bad := refuse(fasthttp.StatusTooManyRequests, "%s", t).with("Retry-After", after)
	if t.Burst > 0 {
		bad = bad.with("RateLimit-Limit", strconv.Itoa(t.Burst)).with("RateLimit-Remaining", "0").with("RateLimit-Reset", after)
	}
	bad.close = t.Limit == admission.PrincipalConns
	return bad
}

// arrive finds out by address whose request this is, and takes it from what that address may send, once. An address that
// has asked too often without being known is refused before its credentials are looked at: were right ones let
// through, guessing would cost only the guesses that were wrong. What was good on the same connection before goes on.
func (c *call) arrive(h *fasthttp.RequestHeader) error {
	nc, d := connOf(c.ctx), c.s.door
	if nc == nil || nc.counted == nil || nc.asked {
		return nil
	}
	nc.asked, nc.from, nc.client = true, nc.peer, nc.counted
	if nc.from = c.s.o.Clients.Client(nc.peer, c.h.forwardedFor, c.h.forwarded); nc.from != nc.peer {
		nc.client = d.Account(nc.from)
	}
	if err := d.Request(nc.client); err != nil {
		return err
	}
	if nc.known {
		if cred, ok := c.credentials(h); ok && nc.knownAs == d.Hash(cred.Bearer) {
			return nil
		}
	}
	return d.Guessing(nc.client)
}

// isKnown finds out whether a call that strangers may make is of somebody known, where that changes the answer: guesses
// count like those at any other call.
func (c *call) isKnown() (bool, error) {
	h := &c.ctx.Request.Header
	if c.h.auth == "" && c.certificate() == nil && !c.s.o.Guard.Off() {
		return false, nil
	}
	if err := c.arrive(h); err != nil {
		return false, err
	}
	err := c.authenticate(h)
	if unknown(err) {
		return false, c.stranger()
	}
	return err == nil, nil
}

// stranger takes a request that nobody known stands for from what its address may send.
func (c *call) stranger() error {
	nc := connOf(c.ctx)
	if nc == nil || nc.client == nil || nc.strange {
		return nil
	}
	nc.strange = true
	return c.s.door.Stranger(nc.client)
}

// strangerEnds takes a call that strangers may make from what the address may send where the call itself did not know
// the caller: err, or the status that it has set, is a refusal.
func (c *call) strangerEnds(err error) error {
	status := c.ctx.Response.StatusCode()
	if err != nil {
		p, _ := problemOf(err)
		status = p.Status
	}
	switch status {
	case fasthttp.StatusUnauthorized, fasthttp.StatusForbidden, fasthttp.StatusNotFound:
		if e := c.stranger(); e != nil {
			return e
		}
	}
	return err
}

// unknown reports whether err says that nobody known has asked.
func unknown(err error) bool {
	if err == nil {
		return false // before r is allocated
	}
	var r *refusal
	return errors.As(err, &r) && r.status == fasthttp.StatusUnauthorized || errors.Is(err, access.ErrUnauthenticated)
}

// limit takes the request from what its principal may send, once, and its connection from those it may have.
func (c *call) limit(p *access.Principal) error {
	nc, d := connOf(c.ctx), c.s.door
	if nc == nil || p == nil {
		return nil
	}
	if p.Limits == (access.Limits{}) || nc.limited {
		return nil
	}
	nc.limited = true
	if err := d.ConnectAs(p, &nc.holds); err != nil {
		return err
	}
	st, err := d.RequestAs(p)
	if err == nil && st.Burst > 0 && c.ctx != nil {
		c.tellLimit(st)
	}
	return err
}

// tellLimit says on every answer to a principal with a rate what is left of it.
func (c *call) tellLimit(st admission.Standing) {
	var buf [20]byte
	h := &c.ctx.Response.Header
	h.SetBytesV("RateLimit-Limit", strconv.AppendInt(buf[:0], int64(st.Burst), 10))
	h.SetBytesV("RateLimit-Remaining", strconv.AppendInt(buf[:0], int64(st.Left), 10))
	h.SetBytesV("RateLimit-Reset", strconv.AppendInt(buf[:0], int64((st.Full+time.Second-1)/time.Second), 10))
}

// requestEnds forgets what was decided about a request, for the next one on its connection.
func (c *conn) requestEnds() {
	c.s.door.Release(&c.room)
	c.asked, c.limited, c.strange, c.refusal, c.incoming = false, false, false, nil, arriving{}
}

// drain reads what the peer still sends, for a while.
func (c *conn) drain(d time.Duration, most int64) {
	_ = c.raw.SetReadDeadline(time.Now().Add(d))
	var b [512]byte
	for most > 0 {
		n, err := c.raw.Read(b[:])
		if most -= int64(n); err != nil {
			return
		}
	}
}
