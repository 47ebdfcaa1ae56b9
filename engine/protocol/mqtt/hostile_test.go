package mqtt

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/admission"
	"github.com/millrace/millrace/engine/event"
)

// properties5 is a PUBLISH of QoS 1 in 5.0 with properties as they are on the wire.
func publish5(name string, id uint16, props, payload []byte) []byte {
	b := appendText(nil, name)
	b = append(b, byte(id>>8), byte(id), byte(len(props)))
	b = append(append(b, props...), payload...)
	return append([]byte{packets.Publish<<4 | 2, byte(len(b))}, b...)
}

// What a client does against MQTT ends its connection, with the reason code that says what; in 3.1.1 without a word.
func TestViolations(t *testing.T) {
	f := newFakeRouter(t)
	r := newRig(t, f, nil, Options{})
	ok := func(pk packets.Packet, change func(b []byte) []byte) []byte {
		pk.ProtocolVersion = 5
		b := encode(t, pk)
		if change != nil {
			b = change(b)
		}
		return b
	}
	first := func(v byte) func(b []byte) []byte {
		return func(b []byte) []byte { b[0] = v; return b }
	}
	large := append([]byte{packets.Publish << 4}, appendLength(nil, r.s.packetSize())...)
	for _, c := range []struct {
		what string
		code byte
		raw  []byte
	}{
		{"a second CONNECT", 0x82, ok(connectPacket(5, "dev", nil), nil)},
		{"a length of five bytes", 0x81, []byte{packets.Publish << 4, 0x80, 0x80, 0x80, 0x80, 0x01}},
		{"a length in too many bytes", 0x81, []byte{packets.Pingreq << 4, 0x80, 0x00}},
		{"a packet that is too large", 0x95, large},
		{"QoS 3", 0x81, ok(message(1, 1, "log/a", "x"), first(packets.Publish<<4|6))},
		{"DUP with QoS 0", 0x82, ok(message(0, 0, "log/a", "x"), first(packets.Publish<<4|8))},
		{"flags of PINGREQ", 0x81, []byte{packets.Pingreq<<4 | 1, 0}},
		{"flags of PUBREL", 0x81, []byte{packets.Pubrel << 4, 2, 0, 1}},
		{"flags of SUBSCRIBE", 0x81, []byte{packets.Subscribe << 4, 7, 0, 1, 0, 0, 1, 'a', 0}},
		{"type 0", 0x82, []byte{0, 0}},
		{"a packet of a server", 0x82, []byte{packets.Connack << 4, 2, 0, 0}},
		{"PINGREQ with a body", 0x81, []byte{packets.Pingreq << 4, 1, 0}},
		{"AUTH", 0x82, []byte{packets.Auth << 4, 2, 0x18, 0}},
		{"a + in a name", 0x90, ok(message(1, 1, "log/+", "x"), nil)},
		{"a # in a name", 0x90, ok(message(0, 0, "log/#", "x"), nil)},
		{"no name", 0x82, ok(message(1, 1, "", "x"), nil)},
		{"a name that is not UTF-8", 0x81, ok(message(1, 1, "log/\xff", "x"), nil)},
		{"a name with U+0000", 0x81, ok(message(1, 1, "log/\x00", "x"), nil)},
		{"a name with a surrogate", 0x81, ok(message(1, 1, "log/\xed\xa0\x80", "x"), nil)},
		{"a name that is longer than its packet", 0x81, []byte{packets.Publish << 4, 3, 0, 200, 'a'}},
		{"packet id 0", 0x82, publish5("log/a", 0, nil, nil)},
		{"a property that there is not", 0x81, publish5("log/a", 1, []byte{0x7F, 0}, nil)},
		{"a property of another packet", 0x82, publish5("log/a", 1, []byte{packets.PropReceiveMaximum, 0, 1}, nil)},
		{"a subscription identifier from a client", 0x82, publish5("log/a", 1, []byte{packets.PropSubscriptionIdentifier, 1}, nil)},
		{"a property twice", 0x82, publish5("log/a", 1, []byte{packets.PropPayloadFormat, 0, packets.PropPayloadFormat, 0}, nil)},
		{"a payload format of 2", 0x82, publish5("log/a", 1, []byte{packets.PropPayloadFormat, 2}, nil)},
		{"properties that are cut off", 0x81, publish5("log/a", 1, []byte{packets.PropMessageExpiryInterval, 0, 0}, []byte{0, 1})},
		{"properties that are longer than the packet", 0x81, []byte{packets.Publish<<4 | 2, 6, 0, 1, 'a', 0, 1, 9}},
		{"a content type that is not UTF-8", 0x81, publish5("log/a", 1, []byte{packets.PropContentType, 0, 1, 0xFF}, nil)},
		{"a user property that is cut off", 0x81, publish5("log/a", 1, []byte{packets.PropUser, 0, 1, 'a', 0}, nil)},
		{"a response topic with a wildcard", 0x82, publish5("log/a", 1, []byte{packets.PropResponseTopic, 0, 1, '#'}, nil)},
		{"topic alias 0", 0x94, publish5("log/a", 1, []byte{packets.PropTopicAlias, 0, 0}, nil)},
		{"a topic alias over the maximum", 0x94, publish5("log/a", 1, []byte{packets.PropTopicAlias, 0, aliasMax + 1}, nil)},
		{"a topic alias that stands for nothing", 0x82, publish5("", 1, []byte{packets.PropTopicAlias, 0, 3}, nil)},
		{"too many user properties", 0x97, append(append([]byte{packets.Publish << 4}, appendLength(nil, 3+2+257*5)...), append([]byte{0, 1, 'a', 0x85, 0x0A}, bytes.Repeat([]byte{packets.PropUser, 0, 0, 0, 0}, 257)...)...)},
		{"SUBSCRIBE without a filter", 0x82, []byte{packets.Subscribe<<4 | 2, 3, 0, 1, 0}},
		{"SUBSCRIBE without options", 0x81, []byte{packets.Subscribe<<4 | 2, 6, 0, 1, 0, 0, 1, 'a'}},
		{"SUBSCRIBE with packet id 0", 0x82, []byte{packets.Subscribe<<4 | 2, 7, 0, 0, 0, 0, 1, 'a', 0}},
		{"SUBSCRIBE with reserved bits", 0x81, []byte{packets.Subscribe<<4 | 2, 7, 0, 1, 0, 0, 1, 'a', 0x40}},
		{"SUBSCRIBE of QoS 3", 0x82, []byte{packets.Subscribe<<4 | 2, 7, 0, 1, 0, 0, 1, 'a', 3}},
		{"SUBSCRIBE with retain handling 3", 0x82, []byte{packets.Subscribe<<4 | 2, 7, 0, 1, 0, 0, 1, 'a', 0x30}},
		{"SUBSCRIBE with subscription identifier 0", 0x82, []byte{packets.Subscribe<<4 | 2, 9, 0, 1, 2, packets.PropSubscriptionIdentifier, 0, 0, 1, 'a', 0}},
		{"No Local where it is shared", 0x82, append([]byte{packets.Subscribe<<4 | 2, 16, 0, 1, 0, 0, 10}, "$share/g/a\x04"...)},
		{"UNSUBSCRIBE without a filter", 0x82, []byte{packets.Unsubscribe<<4 | 2, 3, 0, 1, 0}},
		{"an acknowledgement of packet id 0", 0x82, []byte{packets.Puback << 4, 2, 0, 0}},
		{"an acknowledgement that is cut off", 0x81, []byte{packets.Puback << 4, 1, 0}},
		{"a reason code that PUBREL has not", 0x82, []byte{packets.Pubrel<<4 | 2, 3, 0, 1, 0x80}},
		{"bytes behind DISCONNECT", 0x81, []byte{packets.Disconnect << 4, 3, 0, 0, 0}},
		{"a session expiry where there was none", 0x82, []byte{packets.Disconnect << 4, 7, 0, 5, packets.PropSessionExpiryInterval, 0, 0, 0, 1}},
	} {
		t.Run(c.what, func(t *testing.T) {
			cl, _ := r.connect(5, "dev", nil)
			cl.t = t
			cl.raw(c.raw)
			cl.wantEnd(c.code)
		})
	}
	three, _ := r.connect(4, "dev", nil)
	three.raw([]byte{packets.Pingreq<<4 | 1, 0})
	three.wantEnd(0)
}

// What is wrong with CONNECT is answered in CONNACK, as far as the client's version has a word for it.
func TestConnectRefused(t *testing.T) {
	r := newRig(t, newFakeRouter(t), nil, Options{ConnectTimeout: time.Second})
	five := func(with func(pk *packets.Packet)) []byte { return encode(t, connectPacket(5, "dev", with)) }
	four := func(with func(pk *packets.Packet)) []byte { return encode(t, connectPacket(4, "dev", with)) }
	set := func(b []byte, at int, v byte) []byte { b[at] = v; return b }
	const silence = -1
	for _, c := range []struct {
		what    string
		code    int
		version byte
		raw     []byte
	}{
		{"another packet first", silence, 5, []byte{packets.Pingreq << 4, 0}},
		{"another protocol", silence, 5, []byte("GET / HTTP/1.1\r\n\r\n")},
		{"another name", silence, 4, set(four(nil), 4, 'X')},
		{"version 3", 1, 4, set(four(nil), 8, 3)},
		{"version 6", 0x84, 5, set(five(nil), 8, 6)},
		{"the reserved flag", 0x81, 5, set(five(nil), 9, 3)},
		{"a will of QoS 3", 0x81, 5, set(five(nil), 9, 0x1E)},
		{"a will that is none, of QoS 1", 0x81, 5, set(five(nil), 9, 0x0A)},
		{"a will that is none, to be kept", silence, 4, set(four(nil), 9, 0x22)},
		{"a password without a user name", silence, 4, four(func(pk *packets.Packet) { pk.Connect.PasswordFlag, pk.Connect.Password = true, []byte("x") })},
		{"an authentication method", 0x8C, 5, five(func(pk *packets.Packet) { pk.Properties.AuthenticationMethod = "SCRAM" })},
		{"no client id for a session that stays", 2, 4, encode(t, connectPacket(4, "", func(pk *packets.Packet) { pk.Connect.Clean = false }))},
		{"a client id that is too long", 0x85, 5, encode(t, connectPacket(5, strings.Repeat("x", maxClientID+1), nil))},
		{"a client id that is not UTF-8", 0x81, 5, encode(t, connectPacket(5, "\xff", nil))},
		{"a receive maximum of 0", 0x82, 5, append([]byte{packets.Connect << 4, 16 + 3}, append([]byte("\x00\x04MQTT\x05\x02\x00\x00"), 3, packets.PropReceiveMaximum, 0, 0, 0, 3, 'd', 'e', 'v')...)},
		{"bytes behind it", 0x81, 5, func() []byte { b := five(nil); b[1]++; return append(b, 0) }()},
		{"a will with a wildcard", 0x90, 5, five(func(pk *packets.Packet) { pk.Connect.WillFlag, pk.Connect.WillTopic = true, "log/#" })},
		{"a will that no mapping takes", 0x90, 5, five(func(pk *packets.Packet) { pk.Connect.WillFlag, pk.Connect.WillTopic = true, "unknown" })},
		{"one that is cut off", silence, 5, five(nil)[:9]},
		{"nothing", silence, 5, nil},
		{"a size that no CONNECT has", silence, 5, []byte{packets.Connect << 4, 0xFF, 0xFF, 0x7F}},
	} {
		t.Run(c.what, func(t *testing.T) {
			cl := r.dial()
			cl.t, cl.version = t, c.version
			cl.raw(c.raw)
			pk, err := cl.read()
			switch {
			case c.code == silence:
				if err == nil {
					t.Fatalf("got %+v; want nothing", pk)
				}
			case err != nil || pk.FixedHeader.Type != packets.Connack || int(pk.ReasonCode) != c.code:
				t.Fatalf("got %+v, %v; want CONNACK 0x%02X", pk, err, c.code)
			default:
				cl.wantEnd(0)
			}
		})
	}
}

// Every packet that the codec's own tests have, good and bad, is answered or ends the connection, and nothing worse; so is
// every one before CONNECT.
func TestCodecsTable(t *testing.T) {
	f := newFakeRouter(t)
	r := newRig(t, f, nil, Options{CloseTimeout: 5 * time.Millisecond})
	n := 0
	for kind, cases := range packets.TPacketData {
		for _, c := range cases {
			if len(c.RawBytes) == 0 {
				continue
			}
			for _, version := range []byte{4, 5} {
				if n++; version == 4 && n%6 != 2 { // most are about 5.0
					continue
				}
				cl, _ := r.connect(version, fmt.Sprint(n), nil)
				cl.raw(append(slices.Clone(c.RawBytes), packets.Disconnect<<4, 0))
				_ = cl.nc.(*net.TCPConn).CloseWrite()
				if _, err := io.Copy(io.Discard, cl.nc); err != nil && !errors.Is(err, net.ErrClosed) && !strings.Contains(err.Error(), "reset") {
					t.Fatalf("%s %s: %v", packets.PacketNames[kind], c.Desc, err)
				}
				cl.nc.Close()
				if kind != packets.Connect {
					before := r.dial()
					before.raw(c.RawBytes)
					_ = before.nc.(*net.TCPConn).CloseWrite()
					before.wantEnd(0)
				}
			}
		}
	}
	if n < 250 {
		t.Fatalf("%d packets: this is not the table", n)
	}
	eventually(t, "the end of all", func() bool { return r.s.Stats().Connections == 0 })
	c, _ := r.connect(5, "after", nil)
	c.send(message(1, 1, "log/a", "x"))
	if pk := c.want(packets.Puback); pk.ReasonCode != 0 {
		t.Fatalf("PUBACK %+v", pk)
	}
}

// Connections that say they will send much, or nothing, cost next to nothing until they have shown who they are.
func TestHalfOpen(t *testing.T) {
	const n = 2000
	r := newRig(t, newFakeRouter(t), nil, Options{ConnectTimeout: time.Minute})
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	before := heap()
	list := make([]net.Conn, n)
	for i := range list {
		nc, err := net.Dial("tcp", r.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		list[i] = nc
		if _, err := nc.Write([]byte{packets.Connect << 4, 0xF0, 0xFF, 0x03, 0, 4, 'M', 'Q'}); err != nil { // almost 64 KiB
			t.Fatal(err)
		}
	}
	eventually(t, "the connections", func() bool { return r.s.Stats().Connections == n })
	c, _ := r.connect(5, "dev", nil)
	c.send(message(1, 1, "log/a", "x"))
	c.want(packets.Puback)
	if each := (int64(heap()) - int64(before)) / n; each > 12<<10 {
		t.Fatalf("a connection that has only begun costs %d bytes", each)
	}
}

// Who does not read what it is sent is dropped.
func TestSlowReader(t *testing.T) {
	r := newRig(t, newFakeRouter(t), nil, Options{WriteTimeout: time.Second})
	here, there := net.Pipe()
	defer here.Close()
	r.s.attend(t.Context(), there, r.door, nil)
	c := &client{t: t, nc: here, r: bufio.NewReader(here), version: 5}
	c.send(connectPacket(5, "dev", nil))
	c.want(packets.Connack)
	c.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}})
	eventually(t, "the count", func() bool { return r.s.Stats().Slow == 1 })
	c.wantEnd(0)
}

// Who is silent for one and a half times its keep alive is dropped; who pings is not. So is who does not end a packet.
func TestKeepAlive(t *testing.T) {
	r := newRig(t, newFakeRouter(t), nil, Options{PacketTimeout: 200 * time.Millisecond})
	alive := func(pk *packets.Packet) { pk.Connect.Keepalive = 1 }
	begun := time.Now() // the server counts from what it has read, which is later
	silent, _ := r.connect(5, "silent", alive)
	pings, _ := r.connect(5, "pings", alive)
	slow, _ := r.connect(5, "slow", nil)
	slow.raw([]byte{packets.Publish << 4})
	slow.wantEnd(packets.ErrKeepAliveTimeout.Code)
	for time.Since(begun) < 1200*time.Millisecond {
		pings.wantSilence()
		time.Sleep(100 * time.Millisecond)
	}
	silent.wantEnd(packets.ErrKeepAliveTimeout.Code)
	if d := time.Since(begun); d < 1400*time.Millisecond {
		t.Fatalf("dropped after %s", d)
	}
	pings.wantSilence()
}

// A client that comes again takes its session over; with somebody else's client id nobody does.
func TestTakeOver(t *testing.T) {
	guard, err := access.New(access.Options{Token: "the token of this router", Keys: &keyStore{}})
	if err != nil {
		t.Fatal(err)
	}
	root, err := guard.Authenticate(t.Context(), access.Credentials{Bearer: "the token of this router"})
	if err != nil {
		t.Fatal(err)
	}
	_, key, err := guard.CreateKey(t.Context(), root, access.Key{Name: "other", Roles: []string{"admin"}})
	if err != nil {
		t.Fatal(err)
	}
	_, tenant, err := guard.CreateKey(t.Context(), root, access.Key{Name: "other", Tenant: "acme.", Roles: []string{"admin"}})
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, newFakeRouter(t), guard, Options{})
	as := func(secret string) func(pk *packets.Packet) {
		return func(pk *packets.Packet) {
			persistent(pk)
			pk.Connect.UsernameFlag, pk.Connect.Username = true, []byte("whoever")
			pk.Connect.PasswordFlag, pk.Connect.Password = true, []byte(secret)
		}
	}
	first, _ := r.connect(5, "dev", as("the token of this router"))
	second, ok := r.connect(5, "dev", as("the token of this router"))
	if ok.ReasonCode != 0 || !ok.SessionPresent {
		t.Fatalf("CONNACK %+v", ok)
	}
	first.wantEnd(packets.ErrSessionTakenOver.Code)
	for _, version := range []byte{4, 5} {
		_, ok = r.connect(version, "dev", as(key))
		if want := map[byte]byte{4: 2, 5: 0x85}[version]; ok.ReasonCode != want {
			t.Fatalf("CONNACK 0x%02X; want 0x%02X", ok.ReasonCode, want)
		}
	}
	another, ok := r.connect(5, "dev", as(tenant)) // what two tenants call the same are two
	if ok.ReasonCode != 0 || ok.SessionPresent {
		t.Fatalf("CONNACK %+v", ok)
	}
	another.wantSilence()
	second.wantSilence()
	second.send(bye(0))
	second.wantEnd(0)
	if _, ok = r.connect(5, "dev", as(key)); ok.ReasonCode != 0 || ok.SessionPresent {
		t.Fatalf("CONNACK %+v", ok)
	}

	// Nobody and strangers.
	for _, c := range []struct {
		version, code byte
		secret        string
	}{{4, 4, "a guess"}, {5, 0x86, "a guess"}, {4, 5, ""}, {5, 0x87, ""}} {
		_, ok := r.connect(c.version, "new", func(pk *packets.Packet) {
			if c.secret != "" {
				as(c.secret)(pk)
			}
		})
		if ok.ReasonCode != c.code {
			t.Fatalf("CONNACK 0x%02X; want 0x%02X", ok.ReasonCode, c.code)
		}
		if strings.Contains(ok.Properties.ReasonString, "guess") {
			t.Fatalf("CONNACK says %q", ok.Properties.ReasonString)
		}
	}
}

// A keyStore keeps keys in memory.
type keyStore struct{}

func (s *keyStore) Keys(context.Context) ([]access.Key, error) { return nil, nil }
func (s *keyStore) PutKey(context.Context, access.Key) error   { return nil }
func (s *keyStore) DeleteKey(context.Context, string) error    { return nil }

// What a client showed in CONNECT can be taken back: its connection ends.
func TestRevoked(t *testing.T) {
	r := newRig(t, newFakeRouter(t), nil, Options{})
	c, _ := r.connect(5, "dev", nil)
	c.wantSilence()
	r.door.mu.Lock()
	held := r.door.callers[0].held
	r.door.mu.Unlock()
	held(admission.ErrRevoked)
	c.wantEnd(packets.ErrNotAuthorized.Code)
}

// Who sends more than he may is told; a packet for which there is no room ends the connection; and what was reserved for
// large packets is given back once they are stored.
func TestLimits(t *testing.T) {
	f := newFakeRouter(t)
	r := newRig(t, f, nil, Options{})
	r.door.spend = func() error { return &admission.TooMany{Limit: admission.PrincipalRate, Wait: time.Second} }
	c, _ := r.connect(5, "dev", nil)
	c.send(message(1, 1, "log/a", "x"))
	if pk := c.want(packets.Puback); pk.ReasonCode != packets.ErrQuotaExceeded.Code {
		t.Fatalf("PUBACK %+v", pk)
	}
	three, _ := r.connect(4, "three", nil)
	three.send(message(1, 1, "log/a", "x"))
	three.wantEnd(0)
	r.door.mu.Lock()
	r.door.spend = nil
	r.door.mu.Unlock()
	large := strings.Repeat("x", 300<<10)
	for id := uint16(2); id < 6; id++ {
		c.send(message(1, id, "log/a", large))
	}
	for range 4 {
		if pk := c.want(packets.Puback); pk.ReasonCode != 0 {
			t.Fatalf("PUBACK %+v", pk)
		}
	}
	if got := f.stored("logs"); len(got) != 4 || got[3] != large {
		t.Fatalf("%d events are stored", len(got))
	}
	eventually(t, "the room that was reserved", func() bool {
		r.door.mu.Lock()
		defer r.door.mu.Unlock()
		return r.door.callers[0].room == 0
	})
	r.door.mu.Lock()
	r.door.reserve = func(int) error { return event.ErrUnavailable }
	r.door.mu.Unlock()
	c.raw([]byte{packets.Publish << 4, 0xFF, 0xFF, 0x3})
	c.wantEnd(packets.ErrServerBusy.Code)
}

// What large messages have reserved is given back with each that is stored, whatever has come behind it.
func TestRoomIsGivenBackOneByOne(t *testing.T) {
	f := newFakeRouter(t)
	g := &gate{open: make(chan error)}
	f.hook(g.publish, nil)
	r := newRig(t, f, nil, Options{})
	c, _ := r.connect(5, "dev", nil)
	reserved := func() int {
		r.door.mu.Lock()
		defer r.door.mu.Unlock()
		return r.door.callers[0].room
	}
	large := strings.Repeat("x", 300<<10)
	c.send(message(1, 1, "log/a", large))
	eventually(t, "the first is being stored", func() bool { return g.waiting.Load() == 1 })
	one := reserved()
	for id := uint16(2); id < 5; id++ {
		c.send(message(1, id, "log/a", large))
		eventually(t, "another waits", func() bool { return reserved() == 2*one })
		g.open <- nil
		c.want(packets.Puback)
		eventually(t, "the one before is given back", func() bool { return reserved() == one })
		eventually(t, "it is being stored", func() bool { return g.waiting.Load() == int32(id) })
	}
	g.open <- nil
	c.want(packets.Puback)
	eventually(t, "all is given back", func() bool { return reserved() == 0 })
}

// A message past the receive maximum leaves nothing behind: its session can go on.
func TestPastTheReceiveMaximum(t *testing.T) {
	in := &inbox{ids: map[uint16]*received{}}
	for id := uint16(1); id <= 3; id++ {
		if r, busy := in.take(id, 3); r == nil || busy {
			t.Fatalf("packet id %d is refused", id)
		}
	}
	if r, busy := in.take(4, 3); r != nil || busy || in.size() != 3 {
		t.Errorf("one more is taken: %v, %d are known", r, in.size())
	}
}

// What comes of a large CONNECT needs room, as a stranger's; small ones ask for none.
func TestConnectNeedsRoom(t *testing.T) {
	f := newFakeRouter(t)
	r := newRig(t, f, nil, Options{})
	r.door.mu.Lock()
	r.door.strangersMost = 20 << 10
	r.door.mu.Unlock()
	r.connect(5, "small", nil)
	r.door.mu.Lock()
	n := r.door.strangers
	r.door.mu.Unlock()
	if n != 0 {
		t.Errorf("a small CONNECT has taken %d bytes", n)
	}
	c := r.dial()
	c.raw(append([]byte{packets.Connect << 4, 0xFF, 0xFF, 0x2}, make([]byte, 40<<10)...))
	c.wantEnd(0)
	r.door.mu.Lock()
	defer r.door.mu.Unlock()
	if r.door.strangers < 20<<10 {
		t.Errorf("it ended with %d bytes taken", r.door.strangers)
	}
}
