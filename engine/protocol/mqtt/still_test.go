package mqtt

import (
	"bufio"
	"bytes"
	"net"
	"sync/atomic"
	"testing"
	"time"

	frames "github.com/gobwas/ws"
	"github.com/mochi-mqtt/server/v2/packets"
)

// pair is a connection over loopback, from both ends.
func pair(t *testing.T) (here, there net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if here, err = net.Dial("tcp", ln.Addr().String()); err == nil {
		t.Cleanup(func() { here.Close() })
		there, err = ln.Accept()
	}
	if err != nil {
		t.Fatal(err)
	}
	return here, there
}

// A stoppedConn is of a router that stands still, once it is told to, from when it says how long it waits until go on is
// closed, by when that has passed.
type stoppedConn struct {
	net.Conn
	stop  atomic.Pointer[chan struct{}] // go on
	never atomic.Bool                   // everything it waits for has passed
}

func (c *stoppedConn) SetReadDeadline(at time.Time) error {
	if time.Until(at) > 2*lull {
		if on := c.stop.Swap(nil); on != nil {
			<-*on
			at = time.Unix(1, 0)
		}
		if c.never.Load() {
			at = time.Unix(1, 0)
		}
	}
	return c.Conn.SetReadDeadline(at)
}

// What came while the router itself stood still, for longer than a client may be silent or a packet may take, came in time.
func TestStandStill(t *testing.T) {
	r := newRig(t, newFakeRouter(t), nil, Options{ConnectTimeout: time.Hour, PacketTimeout: time.Hour})
	part := message(1, 1, "log/a", "x")
	part.ProtocolVersion = 5
	publish := encode(t, part)
	ping := []byte{packets.Pingreq << 4, 0}
	for _, x := range []struct {
		what        string
		alive       uint16
		first, rest []byte
		answers     []byte
	}{
		{"keep alive", 3600, ping, ping, []byte{packets.Pingresp, packets.Pingresp}},
		{"packet timeout", 0, publish[:3], publish[3:], []byte{packets.Puback}},
	} {
		t.Run(x.what, func(t *testing.T) {
			here, there := pair(t)
			nc := &stoppedConn{Conn: there}
			c := &client{t: t, nc: here, r: bufio.NewReader(here), version: 5}
			still := func(first, rest []byte) {
				t.Helper()
				c.raw(first)
				eventually(t, "the stop", func() bool { return nc.stop.Load() == nil })
				c.raw(rest)
			}
			on := make(chan struct{})
			nc.stop.Store(&on)
			r.s.attend(t.Context(), nc, r.door, nil)
			hello := connectPacket(5, "dev", func(pk *packets.Packet) { pk.Connect.Keepalive = x.alive })
			still(nil, encode(t, hello))
			close(on)
			c.want(packets.Connack)

			on = make(chan struct{})
			nc.stop.Store(&on)
			still(x.first, x.rest)
			close(on)
			for _, kind := range x.answers {
				c.want(kind)
			}
			nc.never.Store(true) // and nothing comes
			c.raw(x.first)
			c.wantEnd(packets.ErrKeepAliveTimeout.Code)
		})
	}
}

// A lateConn's writer sets the deadline of a write just after somebody else has ended that.
type lateConn struct {
	net.Conn
	late atomic.Bool
}

func (c *lateConn) SetWriteDeadline(at time.Time) error {
	if time.Until(at) < 0 && !c.late.Swap(true) {
		at = time.Now().Add(time.Hour)
	}
	return c.Conn.SetWriteDeadline(at)
}

// Who has lost its link comes back by another at once: a write into the old one does not keep its session from it.
func TestTakeOverWhileWriting(t *testing.T) {
	r := newRig(t, newFakeRouter(t), nil, Options{WriteTimeout: time.Hour, ConnectTimeout: 2 * time.Second})
	hello := encode(t, connectPacket(5, "dev", persistent))
	ping := []byte{packets.Pingreq << 4, 0}
	for _, x := range []struct {
		what        string
		wrap        func(nc net.Conn) net.Conn
		hello, ping []byte
	}{
		{"a connection", func(nc net.Conn) net.Conn { return nc }, hello, ping},
		{"a deadline that is set late", func(nc net.Conn) net.Conn { return &lateConn{Conn: nc} }, hello, ping},
		{"a WebSocket", func(nc net.Conn) net.Conn { return newWebSocket(r.s, nc) }, frame(t, frames.NewBinaryFrame(hello)), frame(t, frames.NewPingFrame(nil))},
	} {
		t.Run(x.what, func(t *testing.T) {
			here, there := net.Pipe()
			defer here.Close()
			r.s.attend(t.Context(), x.wrap(there), r.door, nil)
			ask := func(b []byte, n int) {
				t.Helper()
				if _, err := here.Write(b); err != nil {
					t.Fatal(err)
				}
				if _, err := here.Read(make([]byte, n)); err != nil {
					t.Fatal(err)
				}
			}
			ask(x.hello, 1<<10)
			ask(x.ping, 1) // the rest of the answer is not read
			c, ok := r.connect(5, "dev", persistent)
			if ok.ReasonCode != 0 || !ok.SessionPresent {
				t.Fatalf("CONNACK 0x%02X, session present %v", ok.ReasonCode, ok.SessionPresent)
			}
			c.send(bye(0))
			c.wantEnd(0)
		})
	}
}

func frame(t *testing.T, f frames.Frame) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := frames.WriteFrame(&b, frames.MaskFrame(f)); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
