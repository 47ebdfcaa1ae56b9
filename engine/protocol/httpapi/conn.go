package httpapi

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/millrace/millrace/engine/admission"
	"github.com/valyala/fasthttp"
)

// A listener hands out conns, and waits where fasthttp would give up.
type listener struct {
	net.Listener
	s        *Server
	face     Face
	routes   *node        // that the face answers
	loopback bool         // only this machine can reach it
	close    func() error // once
}

// Close may be called again: fasthttp closes what Shutdown has closed.
func (l *listener) Close() error { return l.close() }

// Accept waits, rather than fails, while the process or the machine is out of file descriptors or memory.
func (l *listener) Accept() (net.Conn, error) {
	pause, said := 5*time.Millisecond, time.Time{}
	for {
		nc, err := l.Listener.Accept()
		if err == nil {
			if c := l.newConn(nc); l.s.enter(c) {
				return c, nil
			}
			pause = 5 * time.Millisecond
			continue
		}
		if !passing(err) {
			return nil, err
		}
		if time.Since(said) > time.Minute {
			said = time.Now()
			l.s.o.Log.Warn("accepting connections pauses", "error", err)
		}
		select {
		case <-time.After(pause):
		case <-l.s.wait.Done():
		}
		pause = min(2*pause, time.Second)
	}
}

func passing(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.EINTR} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// A conn is a client's connection. Reads and the fields without a lock belong to the goroutine that
// serves it.
type conn struct {
	net.Conn           // tls, else raw
	raw      net.Conn  // of the operating system
	tls      *tls.Conn // nil on a plain face
	s        *Server
	on       *listener
	peer     netip.Addr                        // whoever is at the other end; not valid on a unix socket
	counted  *admission.Account                // of peer, where its connections are counted; nil without a peer
	holds    atomic.Pointer[admission.Account] // of the principal whose connection this counts as

	shaken bool              // the TLS handshake was tried
	leaf   *x509.Certificate // that the client showed and the handshake verified; nil if none

	fresh   bool // what is read next begins a request
	idle    bool // nothing was read since the last answer
	last    byte // of what was read of the request line
	bareLF  bool // the request line ended with LF alone
	unseen  bool // the head of the request came in several reads, or behind another request
	body    chunks
	framing error // of the body; nothing is read any more

	known    bool   // somebody who may come in was on this connection
	knownAs  uint64 // by the hash of what he showed
	incoming arriving
	room     admission.Room // for the body

	// Of the request that is being answered. It is judged twice if its body is large.
	from    netip.Addr         // who sent it, behind proxies
	client  *admission.Account // of from
	asked   bool               // it was taken from what its address may send
	strange bool               // and from what strangers may
	limited bool               // and from what its principal may
	refusal error              // why its body was not read; nil if it was

	se *session // of who reads it, once it was taken over

	linger  atomic.Bool // the peer may still be sending what nobody will read
	pending atomic.Pointer[takeover]
}

// connState follows what fasthttp does with a connection, to know where requests begin.
func connState(nc net.Conn, state fasthttp.ConnState) {
	c, ok := nc.(*conn)
	if !ok {
		return
	}
	switch state {
	case fasthttp.StateIdle:
		c.fresh, c.idle, c.bareLF, c.last = true, true, false, 0
		c.unseen, c.body = false, chunks{}
	case fasthttp.StateActive:
		if c.idle { // the request was pipelined: it is in fasthttp's buffer, reads go on in its middle
			c.fresh, c.unseen = false, true
		}
		c.idle = false
	}
}

// Read also looks at what fasthttp does not tell: how a request line ends (RFC 9112, 2.2), and whether a chunked body
// ends where everybody else sees its end.
func (c *conn) Read(p []byte) (int, error) {
	if c.tls != nil && !c.shaken {
		if err := c.handshake(); err != nil {
			return 0, err
		}
	}
	n, err := c.readBody(p)
	if c.idle = false; n == 0 {
		return n, err
	}
	if c.fresh {
		c.begin(p[:n])
	} else if c.body.at != noChunks {
		c.framing = c.body.feed(p[:n], c.s.o.HeaderBytes)
	}
	if c.framing != nil {
		return 0, c.framing
	}
	return n, err
}

// begin looks at the first bytes of a request, until its first line has ended.
func (c *conn) begin(b []byte) {
	if c.last == 0 {
		if b = bytes.TrimLeft(b, "\r\n"); len(b) == 0 { // empty lines before a request are allowed
			return
		}
		if end := bytes.Index(b, []byte("\r\n\r\n")); end < 0 {
			c.unseen = true
		} else if saysChunked(b[:end]) {
			c.body.at = chunkSize
			c.framing = c.body.feed(b[end+4:], c.s.o.HeaderBytes)
		}
	}
	if i := bytes.IndexByte(b, '\n'); i >= 0 {
		if i > 0 {
			c.last = b[i-1]
		}
		c.bareLF, c.fresh = c.last != '\r', false
	} else {
		c.last = b[len(b)-1]
	}
}

// SetReadDeadline keeps within the time by which everything must have arrived while draining.
func (c *conn) SetReadDeadline(t time.Time) error {
	for {
		at := c.s.drainAt.Load()
		if end := time.Unix(0, at); at != 0 && (t.IsZero() || t.After(end)) {
			t = end
		}
		if err := c.Conn.SetReadDeadline(t); err != nil || c.s.drainAt.Load() == at {
			return err
		}
	}
}

// SetDeadline is SetReadDeadline and SetWriteDeadline.
func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetWriteDeadline(t), c.SetReadDeadline(t))
}

// What bounds a gentle close: a client that goes on sending a body several times over the limit still gets
// its 413.
const (
	lingerTime  = 500 * time.Millisecond
	lingerBytes = 64 << 20
)

// Close takes in a little of what the peer is still sending, if the request was refused before it was
// read: to close at once would reset the connection and with it the answer (RFC 9112, 9.6).
func (c *conn) Close() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok && c.linger.Load() && w.CloseWrite() == nil {
		_ = c.Conn.SetReadDeadline(time.Now().Add(lingerTime))
		_, _ = io.CopyN(io.Discard, c.Conn, lingerBytes)
	}
	if t := c.pending.Swap(nil); t != nil { // it was never begun
		t.never()
	}
	c.s.leave(c)
	return c.Conn.Close()
}

// linger makes the connection of ctx close gently.
func linger(ctx *fasthttp.RequestCtx) {
	if c, ok := ctx.Conn().(*conn); ok {
		c.linger.Store(true)
	}
}

func isLoopback(a net.Addr) bool {
	switch a := a.(type) {
	case *net.TCPAddr:
		return a.IP.IsLoopback()
	case *net.UnixAddr:
		return true
	}
	return false
}
