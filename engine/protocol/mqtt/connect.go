package mqtt

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/admission"
	"github.com/millrace/millrace/engine/event"
)

func clone(s string) string { return strings.Clone(s) }

// connect takes CONNECT and answers it. An error ends the connection.
func (c *conn) connect(ctx context.Context, body []byte) error {
	var pk packets.Packet
	bad := readConnect(body, &pk)
	c.version = pk.ProtocolVersion
	if c.version != 4 && c.version != 5 { // answered as far as a client of that version can be (3.1.2.2)
		c.version = 4
		if pk.ProtocolVersion > 5 {
			c.version = 5
		}
	}
	p := &pk.Properties
	c.out.version, c.out.most = c.version, p.MaximumPacketSize
	c.out.problems = !p.RequestProblemInfoFlag || p.RequestProblemInfo == 1
	if bad != nil {
		return c.refuse(bad)
	}
	if p.AuthenticationMethod != "" || p.AuthenticationData != nil { // 4.12
		return c.refuse(&violation{packets.ErrBadAuthenticationMethod.Code, "no authentication method is taken: put an API key or a token into the password"})
	}
	assigned := pk.Connect.ClientIdentifier == ""
	switch id := pk.Connect.ClientIdentifier; {
	case assigned && c.version == 4 && !pk.Connect.Clean: // 3.1.1: [MQTT-3.1.3-8]
		return c.refuse(&violation{packets.ErrClientIdentifierNotValid.Code, "a session that stays needs a client id"})
	case len(id) > maxClientID:
		return c.refuse(&violation{packets.ErrClientIdentifierNotValid.Code, fmt.Sprintf("the client id has %d bytes; the limit is %d", len(id), maxClientID)})
	case assigned:
		pk.Connect.ClientIdentifier = "millrace-" + newID()
	}
	caller, err := c.visit.Open(ctx, c.credentials(&pk))
	if err != nil {
		return c.refuse(c.stranger(err, &pk))
	}
	c.caller, c.ctx = caller, caller.Context(context.WithoutCancel(ctx))
	present, err := c.enter(ctx, &pk)
	if err != nil {
		c.caller = nil
		caller.Close()
		return c.refuse(err)
	}
	c.resumed = present
	c.alive = time.Duration(pk.Connect.Keepalive) * time.Second * 3 / 2
	ack := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Connack}, SessionPresent: present}
	if ack.Properties = (packets.Properties{ReceiveMaximum: receiveMax, TopicAliasMaximum: aliasMax, MaximumPacketSize: uint32(c.s.packetSize())}); assigned {
		ack.Properties.AssignedClientID = c.sess.clientID
	}
	if given := uint32(c.s.expiry(c.expires) / time.Second); given != c.expires { // 3.2.2.3.2
		ack.Properties.SessionExpiryInterval, ack.Properties.SessionExpiryIntervalFlag = given, true
	}
	if _, err := c.out.write(&ack); err != nil {
		return err
	}
	if err := c.out.flush(); err != nil {
		return err
	}
	params := connectParams{version: c.version, receiveMaximum: p.ReceiveMaximum, maxPacket: p.MaximumPacketSize,
		problemInfo: c.out.problems, responseInfo: p.RequestResponseInfo == 1, caller: caller, present: present}
	if params.receiveMaximum == 0 {
		params.receiveMaximum = 65535
	}
	return c.sess.out.attach(&c.out, params)
}

// enter gives the connection the client's session, which the one before it has then let go.
func (c *conn) enter(ctx context.Context, pk *packets.Packet) (present bool, err error) {
	who := c.caller.Principal()
	if who == nil {
		return false, admission.ErrRevoked
	}
	k := &pk.Connect
	id := clone(k.ClientIdentifier)
	if c.expires = pk.Properties.SessionExpiryInterval; c.version == 4 && !k.Clean {
		c.expires = forever
	}
	last, err := newWill(c, pk)
	if err != nil {
		return false, err
	}
	defer func() {
		if last != nil && err != nil {
			c.s.wills.free(last)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, c.s.o.ConnectTimeout) // for the connection before to let go
	defer cancel()
	if err := c.s.online.enter(ctx, c, who, id); err != nil {
		return false, err
	}
	sess, present, err := c.s.sessions.take(c.ctx, c.caller, id, k.Clean, c.s.expiry(c.expires))
	if err == nil {
		if err = sess.loadInbox(c.ctx, c.s.o.Backend.Rows(), present); err == nil {
			err = c.s.wills.here(c.ctx, sess, present, last)
		}
		if err != nil {
			c.s.sessions.leave(sess)
		}
	}
	if err != nil {
		c.s.online.leave(c)
		return false, fmt.Errorf("the session cannot be opened: %w", err)
	}
	c.sess = sess
	return present, nil
}

// forever is the session expiry of a session that does not end by itself (3.1.2.11.2).
const forever = 0xFFFFFFFF

// expiry is how long a session outlives its connection that asked for so many seconds.
func (s *Server) expiry(seconds uint32) time.Duration {
	if seconds == forever {
		return s.o.MaxExpiry
	}
	return min(time.Duration(seconds)*time.Second, s.o.MaxExpiry)
}

// packetSize is the largest packet of a client that has come in.
func (s *Server) packetSize() int { return s.o.Limits.Event + packetSurplus }

// credentials are what a client shows: an API key or a token as its password, whatever its user name is, and the
// certificate that its TLS connection was made with.
func (c *conn) credentials(pk *packets.Packet) access.Credentials {
	cred := access.Credentials{Bearer: string(pk.Connect.Password), Addr: peerOf(c.nc)}
	if t, ok := c.nc.(interface{ ConnectionState() tls.ConnectionState }); ok {
		if st := t.ConnectionState(); len(st.VerifiedChains) > 0 {
			cred.Certificate = st.PeerCertificates[0]
		}
	}
	return cred
}

func peerOf(nc interface{ RemoteAddr() net.Addr }) netip.Addr {
	if a, ok := nc.RemoteAddr().(*net.TCPAddr); ok {
		return a.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// stranger is what somebody is told who is not let in.
func (c *conn) stranger(err error, pk *packets.Packet) error {
	switch {
	case !errors.Is(err, access.ErrUnauthenticated):
		return err
	case pk.Connect.PasswordFlag:
		return &violation{packets.ErrBadUsernameOrPassword.Code, "the password is not an API key or token that is known here"}
	}
	return &violation{packets.ErrNotAuthorized.Code, "put an API key or a token into the password"}
}

// refuse answers CONNECT with why it is not accepted, which it returns. A client of 3.1.1 is told only what there is a
// return code for.
func (c *conn) refuse(err error) error {
	code, text, internal := reasonOf(err)
	switch {
	case internal:
		c.s.o.Log.Error("an MQTT client is not let in", "error", err)
		code = packets.ErrServerUnavailable.Code
	case errors.Is(err, event.ErrUnavailable):
		code = packets.ErrServerUnavailable.Code
	}
	v := &violation{code, text}
	ack := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Connack}, ReasonCode: code}
	ack.Properties.ReasonString = text
	if c.version == 4 {
		three, ok := connectCode(code)
		if !ok {
			return v
		}
		ack.ReasonCode = three
	}
	_ = c.out.last(&ack) // it is over anyway
	return v
}

// online are the connections of clients by tenant and client id: what two tenants call the same are two clients.
type online struct {
	mu  sync.Mutex
	all map[onlineKey]*conn
}

type onlineKey struct{ tenant, clientID string }

// who a connection is of.
type seat struct {
	key   onlineKey
	owner string
}

// stuck is how long a connection has to let go of its session before a write that its client does not take is ended: a
// device that came by another way is at the end of a link that takes nothing any more.
const stuck = 100 * time.Millisecond

// enter makes c the one connection of a client. One that the same principal has is ended, and has let go of the session once
// enter returns [MQTT-3.1.4-3]; another principal's stays, and c does not get in.
func (o *online) enter(ctx context.Context, c *conn, who *access.Principal, id string) error {
	at := seat{onlineKey{who.Tenant, id}, who.Identity()}
	for {
		o.mu.Lock()
		old := o.all[at.key]
		if old == nil {
			o.all[at.key], c.seat = c, at
			o.mu.Unlock()
			return nil
		}
		o.mu.Unlock()
		if old.seat.owner != at.owner {
			return &violation{packets.ErrClientIdentifierNotValid.Code, "the client id is in use by somebody else"}
		}
		old.end(&violation{packets.ErrSessionTakenOver.Code, "another connection has taken the session over"})
		select {
		case <-old.ended:
		case <-time.After(stuck): // and once more: the next write, or one that was just begun, sets a deadline of its own
			_ = old.nc.SetWriteDeadline(time.Unix(1, 0))
		case <-ctx.Done():
			return fmt.Errorf("the connection that has the session does not let it go: %w", event.ErrUnavailable)
		}
	}
}

// leave takes c out.
func (o *online) leave(c *conn) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.all[c.seat.key] == c {
		delete(o.all, c.seat.key)
	}
}
