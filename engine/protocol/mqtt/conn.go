package mqtt

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/millrace/millrace/engine/admission"
	"github.com/millrace/millrace/engine/event"
)

// A conn is one client's connection. One goroutine reads it; while messages come faster than one by one there is another,
// which stores and acknowledges them: see begin.
type conn struct {
	s      *Server
	nc     net.Conn
	visit  Visit
	ctx    context.Context // carries who publishes; it does not end with the connection. Set by connect.
	in     input
	out    output
	ended  chan struct{} // closed once the session is let go
	caller Caller        // nil before CONNECT is accepted
	sess   *session      // likewise
	seat   seat          // among those online; set before others can see it

	version byte
	alive   time.Duration // the longest silence of the client, keep alive with a half; 0: any
	heard   time.Time     // when reading went on after its last packet; zero: it has not
	room    int           // bytes that are reserved for the packet that is being read, a large one
	begun   time.Time     // when the packet that is being read began; zero: none has
	grace   time.Time     // to when its deadline was put off, once; zero: it was not
	expires uint32        // session expiry as CONNECT said it, in seconds
	aliases []string      // by topic alias - 1
	bye     byte          // reason code of the client's DISCONNECT
	said    bool          // it has sent one
	resumed bool          // the session was there before

	mu      sync.Mutex
	moved   sync.Cond  // of mu: a batch was taken or is done
	next    *batch     // gathered; nil: nothing
	storing bool       // something is being stored
	hand    bool       // store runs: it waits for more if nothing is being stored, and nobody else stores
	resting bool       // it is not to wait
	failed  error      // of store: the connection ends
	ending  *violation // why somebody else ends the connection; nil: nobody does
	pending int        // messages of QoS 1 that are not acknowledged
	work    sync.WaitGroup
}

func newConn(s *Server, nc net.Conn, visit Visit) *conn {
	c := &conn{s: s, nc: nc, visit: visit, ended: make(chan struct{})}
	c.moved.L = &c.mu
	c.in = input{nc: nc, pool: s.reads}
	c.in.buf = c.in.small[:]
	c.out = output{nc: nc, s: s, timeout: s.o.WriteTimeout, version: 4}
	return c
}

// end has the connection end with a reason code. The first reason counts.
func (c *conn) end(why *violation) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ending == nil {
		c.ending = why
		c.wake()
	}
}

// wake has the reading goroutine look why it is to end. The caller holds mu, or nothing is read yet.
func (c *conn) wake() { _ = c.nc.SetReadDeadline(time.Unix(1, 0)) }

// clientID is for the log: quoted by it.
func (c *conn) clientID() string {
	if c.sess == nil {
		return ""
	}
	return c.sess.clientID
}

// over is why the connection is to end; nil: it is not.
func (c *conn) over() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.why()
}

func (c *conn) why() error {
	if c.ending != nil {
		return c.ending
	}
	return c.failed
}

// run serves the client until one of both ends it. Once it returns nothing of the connection runs any more.
func (c *conn) run(ctx context.Context) {
	err := c.serve(ctx)
	if ending := c.over(); ending != nil {
		err = ending
	}
	if c.caller != nil {
		c.settle() // what came is stored and acknowledged, whatever ends the connection
	}
	c.leave()
	c.part(err)
}

// serve reads the client's packets; nil once it has sent DISCONNECT.
func (c *conn) serve(ctx context.Context) error {
	limit := connectSize
	connect := time.Now().Add(c.s.o.ConnectTimeout)
	if t, ok := c.nc.(interface {
		HandshakeContext(context.Context) error
	}); ok {
		shaking, cancel := context.WithDeadline(ctx, connect)
		err := t.HandshakeContext(shaking)
		if cancel(); err != nil {
			return err
		}
	}
	for {
		h, body, need, ok, bad := c.in.next(limit)
		switch {
		case c.caller == nil && c.in.w > 0 && c.in.buf[0]>>4 != packets.Connect: // [MQTT-3.1.0-1]
			return wrong("the first packet is of type %d; want CONNECT", c.in.buf[0]>>4)
		case bad != nil:
			return bad
		case !ok:
			if err := c.read(need, connect); err != nil {
				return err
			}
			continue
		}
		c.begun, c.grace, c.heard = time.Time{}, time.Time{}, time.Time{}
		c.s.stats.received[h.kind].Add(1)
		if c.caller == nil {
			if err := c.connect(ctx, body); err != nil {
				return err
			}
			c.visit.Release()
			stop := c.hold(ctx)
			defer stop()
			limit = c.s.packetSize()
		} else if err := c.packet(h, body); err != nil || c.said {
			return err
		}
	}
}

// hold ends the connection once its client may not go on.
func (c *conn) hold(ctx context.Context) (stop func()) {
	held, release := c.caller.Hold(ctx, nil)
	told := context.AfterFunc(held, func() {
		if errors.Is(context.Cause(held), admission.ErrRevoked) {
			c.end(&violation{packets.ErrNotAuthorized.Code, "what was shown in CONNECT is not valid any more"})
		}
	})
	return func() {
		told()
		release()
	}
}

// packet works on a packet that is not CONNECT.
func (c *conn) packet(h header, body []byte) error {
	var pk packets.Packet
	room := c.room
	if c.room = 0; room > 0 && h.kind != packets.Publish {
		defer c.caller.Return(room)
	}
	switch h.kind {
	case packets.Publish:
		if bad := c.publish(h, body, room); bad != nil {
			return bad
		}
		return nil
	case packets.Pubrel, packets.Puback, packets.Pubrec, packets.Pubcomp:
		if bad := readAck(h, body, c.version, &pk); bad != nil {
			return bad
		}
		if h.kind == packets.Pubrel {
			if bad := c.release(pk.PacketID); bad != nil {
				return bad
			}
			return nil
		}
		c.sess.out.acked(h.kind, pk.PacketID, pk.ReasonCode)
		return nil
	case packets.Subscribe, packets.Unsubscribe:
		if bad := readFilters(h, body, c.version, &pk); bad != nil {
			return bad
		}
		return c.filters(&pk)
	case packets.Pingreq:
		if len(body) > 0 {
			return malformed("PINGREQ with a body")
		}
		_, err := c.out.write(&packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingresp}})
		return err
	case packets.Disconnect:
		if bad := readDisconnect(h, body, c.version, &pk); bad != nil {
			return bad
		}
		return c.disconnect(&pk)
	case packets.Auth:
		if c.version == 5 { // [MQTT-4.12.0-7]: no method was agreed on
			return wrong("AUTH without an authentication method in CONNECT")
		}
	case packets.Connect: // [MQTT-3.1.0-2]
		return wrong("a second CONNECT")
	}
	return wrong("a packet of type %d, which clients do not send", h.kind)
}

// filters subscribes or unsubscribes and answers. Strings of pk borrow what is read, and are copied.
func (c *conn) filters(pk *packets.Packet) error {
	ack := packets.Packet{PacketID: pk.PacketID}
	if pk.FixedHeader.Type == packets.Unsubscribe {
		ack.FixedHeader.Type = packets.Unsuback
		list := make([]string, len(pk.Filters))
		for i := range pk.Filters {
			list[i] = clone(pk.Filters[i].Filter)
		}
		ack.ReasonCodes = c.sess.out.unsubscribe(list)
		_, err := c.out.write(&ack)
		return err
	}
	ack.FixedHeader.Type = packets.Suback
	for i := range pk.Filters {
		pk.Filters[i].Filter = clone(pk.Filters[i].Filter)
	}
	ack.ReasonCodes, ack.Properties.ReasonString = c.sess.out.subscribe(pk.Filters)
	if ack.Properties.ReasonString = clip(ack.Properties.ReasonString); c.version < 5 {
		for i, code := range ack.ReasonCodes {
			if code > 2 {
				ack.ReasonCodes[i] = 0x80 // 3.1.1: 3.9.3
			}
		}
	}
	_, err := c.out.write(&ack)
	if err == nil {
		c.sess.out.subscribed(pk.Filters)
	}
	return err
}

// disconnect takes the client's DISCONNECT.
func (c *conn) disconnect(pk *packets.Packet) error {
	if p := &pk.Properties; p.SessionExpiryIntervalFlag {
		if c.expires == 0 && p.SessionExpiryInterval != 0 { // 3.14.2.2.2
			return wrong("DISCONNECT gives the session %d s, which CONNECT said ends with the connection", p.SessionExpiryInterval)
		}
		c.sess.mu.Lock()
		c.sess.expiry = c.s.expiry(p.SessionExpiryInterval)
		c.sess.mu.Unlock()
	}
	c.bye, c.said = pk.ReasonCode, true
	return nil
}

// read reads more of a packet that has need bytes. What has been gathered is stored meanwhile.
func (c *conn) read(need int, connect time.Time) error {
	known := c.caller != nil
	if known && need > largePacket && need > len(c.in.buf) {
		if err := c.caller.Reserve(need, need); err != nil {
			return &violation{packets.ErrServerBusy.Code, clip(err.Error())}
		}
		c.room = need
	}
	idle := c.in.r == c.in.w
	if idle {
		if c.begun, c.in.r, c.in.w = (time.Time{}), 0, 0; c.in.block == nil {
			c.in.rest()
		}
	}
	before := len(c.in.buf)
	c.in.room(need, known)
	if grown := len(c.in.buf) - max(before, strangerFree); !known && grown > 0 {
		if err := c.visit.Reserve(grown); err != nil {
			return &violation{packets.ErrServerBusy.Code, clip(err.Error())}
		}
	}
	if known {
		if err := c.out.flush(); err != nil {
			return err
		}
	}
	handed, err := c.begin(idle)
	if err != nil {
		return err
	}
	now := time.Now()
	if c.heard.IsZero() { // what was done with its packet is not the client's silence
		c.heard = now
	}
	if !idle && c.begun.IsZero() {
		c.begun = now
	}
	until, late := c.deadline(connect)
	short := idle && (c.in.block != nil || handed)
	if end := now.Add(lull); short && (until.IsZero() || end.Before(until)) {
		until, late = end, ""
	}
	c.mu.Lock()
	if err = c.why(); err == nil {
		err = c.nc.SetReadDeadline(until)
	}
	c.mu.Unlock()
	if err == nil {
		err = c.in.fill()
	}
	switch {
	case !errors.Is(err, errLull):
		return err
	case c.over() != nil:
		return c.over()
	case late == "": // a lull
		c.in.rest()
		c.rest()
		return nil
	case c.grace.IsZero(): // what came while the router itself stood still is not late, and past a deadline Read does not look
		c.grace = time.Now().Add(look)
		return nil
	}
	return &violation{packets.ErrKeepAliveTimeout.Code, late}
}

// deadline is by when the client has to be heard, and what it is told otherwise; the zero time is never.
func (c *conn) deadline(connect time.Time) (until time.Time, late string) {
	if c.caller == nil {
		until, late = connect, "no CONNECT came in time"
	} else if c.alive > 0 { // [MQTT-3.1.2-22]
		until, late = c.heard.Add(c.alive), "nothing came for one and a half times the keep alive"
	}
	if end := c.begun.Add(c.s.o.PacketTimeout); c.caller != nil && !c.begun.IsZero() && (until.IsZero() || end.Before(until)) {
		until, late = end, "a packet did not come to its end in time"
	}
	if !until.IsZero() && until.Before(c.grace) {
		until = c.grace
	}
	return until, late
}

// leave lets go of the session, and of everything that is held for the connection.
func (c *conn) leave() {
	if c.sess != nil {
		c.sess.out.detach()
		if err := c.sess.settle(c.ctx, c.s.o.Backend.Rows()); err != nil && !errors.Is(err, event.ErrUnavailable) {
			c.s.o.Log.Warn("what is known of messages of QoS 2 is not written", "client", c.sess.clientID, "error", err)
		}
		c.s.wills.gone(c.sess, c.said && c.bye == packets.CodeDisconnect.Code, c.s.draining.Load())
		c.s.sessions.leave(c.sess)
		c.s.online.leave(c)
	}
	close(c.ended)
	c.mu.Lock()
	next := c.next
	c.next = nil
	c.mu.Unlock()
	if next != nil {
		next.recycle(c.s.batches)
	}
	c.in.rest()
	if c.caller != nil {
		c.caller.Close()
	}
}

// part tells the client why the connection ends, if it is the server that ends it, and waits a little for it to go: closing
// with bytes unread would reset the connection, and with it the reason.
func (c *conn) part(err error) {
	defer c.out.close()
	var v *violation
	switch {
	case err == nil, errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed):
		return
	case !errors.As(err, &v) && c.over() == nil:
		return // the network's doing
	}
	code, text, _ := reasonOf(err)
	c.s.stats.ended[code].Add(1)
	c.s.o.Log.Debug("an MQTT connection is ended", "client", c.clientID(), "reason", code, "error", err)
	if c.sess == nil { // connect has answered, or there is nobody to answer to
		_ = c.nc.SetReadDeadline(time.Now().Add(c.s.o.CloseTimeout))
	} else if c.version == 5 {
		pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Disconnect}, ReasonCode: code}
		pk.Properties.ReasonString = text
		if c.out.last(&pk) != nil {
			return
		}
	}
	if w, ok := c.nc.(interface{ CloseWrite() error }); ok {
		_ = w.CloseWrite()
	}
	_ = c.nc.SetReadDeadline(time.Now().Add(c.s.o.CloseTimeout))
	_, _ = io.CopyN(io.Discard, c.nc, 1<<20)
}
