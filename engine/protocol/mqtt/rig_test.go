package mqtt

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/event"
)

// A fakeRouter is a Backend in memory that tests can hold up, break and look into.
type fakeRouter struct {
	names *Names

	mu      sync.Mutex
	commits int                      // of events
	events  map[string][]event.Event // by topic
	rows    map[string][]byte
	keeps   int
	seen    map[string]bool               // source, id
	publish func(evs []event.Event) error // before anything is stored; nil: nothing
	keep    func(rows []event.ShelfRow) error
}

func newFakeRouter(t *testing.T, mappings ...event.MQTTMapping) *fakeRouter {
	t.Helper()
	if mappings == nil {
		mappings = []event.MQTTMapping{{Filter: "plant/+/temp", Topic: "temps", Type: "temp", Subject: "{1}"}, {Filter: "log/#", Topic: "logs"}, {Filter: "secret/#", Topic: "secret"}}
	}
	n, err := NewNames(mappings, nil)
	if err != nil {
		t.Fatal(err)
	}
	return &fakeRouter{names: n, events: map[string][]event.Event{}, rows: map[string][]byte{}, seen: map[string]bool{}}
}

func (f *fakeRouter) Publish(_ context.Context, topic string, evs []event.Event, pos []event.Position) error {
	f.mu.Lock()
	hook := f.publish
	f.mu.Unlock()
	if hook != nil {
		if err := hook(evs); err != nil {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.commits++
	for i := range evs {
		if key := evs[i].Source + "\x00" + evs[i].ID; evs[i].ClientID {
			if f.seen[key] {
				continue
			}
			f.seen[key] = true
		}
		pos[i].Offset = uint64(len(f.events[topic]))
		f.events[topic] = append(f.events[topic], evs[i].Clone())
	}
	return nil
}

func (f *fakeRouter) MQTT() *Names { return f.names }
func (f *fakeRouter) Rows() Rows   { return f }

func (f *fakeRouter) Keep(_ context.Context, rows ...event.ShelfRow) error {
	if len(rows) == 0 {
		return nil
	}
	f.mu.Lock()
	hook := f.keep
	f.mu.Unlock()
	if hook != nil {
		if err := hook(rows); err != nil {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.keeps++
	for _, r := range rows {
		key := string(rune(r.Shelf)) + r.Key
		switch {
		case r.Under:
			for k := range f.rows {
				if strings.HasPrefix(k, key) {
					delete(f.rows, k)
				}
			}
		case r.Value == nil:
			delete(f.rows, key)
		default:
			f.rows[key] = bytes.Clone(r.Value)
		}
	}
	return nil
}

func (f *fakeRouter) Load(_ context.Context, shelf event.Shelf, key string) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.rows[string(rune(shelf))+key], nil
}

func (f *fakeRouter) Scan(_ context.Context, shelf event.Shelf, under string, fn func(string, []byte) error) error {
	f.mu.Lock()
	var keys []string
	for k := range f.rows {
		if strings.HasPrefix(k, string(rune(shelf))+under) {
			keys = append(keys, k)
		}
	}
	f.mu.Unlock()
	slices.Sort(keys)
	for _, k := range keys {
		f.mu.Lock()
		v := f.rows[k]
		f.mu.Unlock()
		if err := fn(k[1:], v); err != nil {
			return err
		}
	}
	return nil
}

var errFake = errors.New("this router is a fake")

func (f *fakeRouter) OpenTopic(context.Context, string, event.Start, string) (Reader, error) {
	return nil, errFake
}
func (f *fakeRouter) Event(context.Context, string, event.Position) (event.Record, error) {
	return nil, errFake
}
func (f *fakeRouter) Pulls() []PullSource { return nil }
func (f *fakeRouter) Pull(context.Context, string, int, time.Duration) ([]event.Lease, error) {
	return nil, errFake
}
func (f *fakeRouter) Unpull(string, []string) error { return errFake }
func (f *fakeRouter) Settle(context.Context, string, []string, event.Settling) ([]event.Lost, error) {
	return nil, errFake
}

// stored are the data of a topic's events.
func (f *fakeRouter) stored(topic string) (data []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.events[topic] {
		data = append(data, string(f.events[topic][i].Data))
	}
	return data
}

func (f *fakeRouter) hook(publish func([]event.Event) error, keep func([]event.ShelfRow) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.publish, f.keep = publish, keep
}

// A fakeDoor lets in whom a guard knows.
type fakeDoor struct {
	guard *access.Guard

	mu                       sync.Mutex
	callers                  []*fakeCaller
	spend                    func() error
	reserve                  func(n int) error
	open                     error
	strangers, strangersMost int // bytes of CONNECTs; 0: any number
}

func (d *fakeDoor) Enter(netip.Addr) (Visit, error) { return d, nil }
func (d *fakeDoor) Known(identity string) Caller {
	p := d.guard.Known(identity)
	if p == nil {
		return nil
	}
	return &fakeCaller{d: d, p: p}
}
func (d *fakeDoor) Leave()   {}
func (d *fakeDoor) Release() {}
func (d *fakeDoor) Reserve(n int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.strangers += n; d.strangersMost > 0 && d.strangers > d.strangersMost {
		return event.ErrUnavailable
	}
	return nil
}
func (d *fakeDoor) Open(ctx context.Context, cred access.Credentials) (Caller, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open != nil {
		return nil, d.open
	}
	p, err := d.guard.Authenticate(ctx, cred)
	if err != nil {
		return nil, err
	}
	c := &fakeCaller{d: d, p: p}
	d.callers = append(d.callers, c)
	return c, nil
}

type fakeCaller struct {
	d    *fakeDoor
	p    *access.Principal
	held context.CancelCauseFunc
	room int
}

func (c *fakeCaller) Principal() *access.Principal { return c.p }
func (c *fakeCaller) May(a access.Action, k access.Kind, name string) error {
	return c.p.Check(a, k, name)
}
func (c *fakeCaller) Context(ctx context.Context) context.Context { return access.With(ctx, c.p) }
func (c *fakeCaller) Spend() error {
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	if c.d.spend != nil {
		return c.d.spend()
	}
	return nil
}
func (c *fakeCaller) Reserve(n, _ int) error {
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	c.room += n
	if c.d.reserve != nil {
		return c.d.reserve(n)
	}
	return nil
}
func (c *fakeCaller) Return(n int) {
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	c.room -= n
}
func (c *fakeCaller) Close() {
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	c.room = 0
}
func (c *fakeCaller) Hold(ctx context.Context, _ func() error) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	c.d.mu.Lock()
	c.held = cancel
	c.d.mu.Unlock()
	return ctx, func() { cancel(nil) }
}

// A rig is a server at a port of loopback.
type rig struct {
	t      testing.TB
	router *fakeRouter
	door   *fakeDoor
	s      *Server
	addr   string
	served chan error
}

// newRig serves; without a guard everything is allowed to everybody.
func newRig(t testing.TB, f *fakeRouter, guard *access.Guard, o Options) *rig {
	t.Helper()
	if guard == nil {
		var err error
		if guard, err = access.New(access.Options{Off: true}); err != nil {
			t.Fatal(err)
		}
	}
	r := &rig{t: t, router: f, door: &fakeDoor{guard: guard}, served: make(chan error, 1)}
	if o.Door = r.door; o.Backend == nil {
		o.Backend = f
	}
	if o.CloseTimeout == 0 {
		o.CloseTimeout = 50 * time.Millisecond
	}
	var err error
	if r.s, err = New(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.addr = ln.Addr().String()
	go func() { r.served <- r.s.Serve(context.Background(), ln) }()
	t.Cleanup(r.stop)
	return r
}

// stop shuts down; again it does nothing.
func (r *rig) stop() {
	if r.s.draining.Load() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := r.s.Shutdown(ctx); err != nil {
		r.t.Error(err)
	}
	if err := <-r.served; err != nil {
		r.t.Error(err)
	}
}

// A client speaks MQTT to a rig.
type client struct {
	t       testing.TB
	nc      net.Conn
	r       *bufio.Reader
	version byte
}

func (r *rig) dial() *client {
	r.t.Helper()
	nc, err := net.Dial("tcp", r.addr)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { nc.Close() })
	return &client{t: r.t, nc: nc, r: bufio.NewReader(nc), version: 5}
}

// connectPacket is a CONNECT of a clean session, changed by with.
func connectPacket(version byte, id string, with func(pk *packets.Packet)) packets.Packet {
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Connect}, ProtocolVersion: version}
	pk.Connect.ProtocolName, pk.Connect.Clean, pk.Connect.ClientIdentifier = []byte("MQTT"), true, id
	if with != nil {
		with(&pk)
	}
	return pk
}

// connect dials and connects, and returns CONNACK too.
func (r *rig) connect(version byte, id string, with func(pk *packets.Packet)) (*client, packets.Packet) {
	r.t.Helper()
	c := r.dial()
	c.version = version
	c.send(connectPacket(version, id, with))
	return c, c.want(packets.Connack)
}

func encode(t testing.TB, pk packets.Packet) []byte {
	t.Helper()
	var b bytes.Buffer
	var err error
	pk.Mods.AllowResponseInfo = true // the codec leaves out what is not of CONNACK else
	switch pk.FixedHeader.Type {
	case packets.Connect:
		err = pk.ConnectEncode(&b)
	case packets.Publish:
		err = pk.PublishEncode(&b)
	case packets.Puback, packets.Pubrec, packets.Pubcomp:
		err = pk.PubackEncode(&b)
	case packets.Pubrel:
		pk.FixedHeader.Qos = 1
		err = pk.PubrelEncode(&b)
	case packets.Subscribe:
		pk.FixedHeader.Qos = 1
		err = pk.SubscribeEncode(&b)
	case packets.Unsubscribe:
		pk.FixedHeader.Qos = 1
		err = pk.UnsubscribeEncode(&b)
	case packets.Disconnect:
		err = pk.DisconnectEncode(&b)
	case packets.Pingreq:
		err = pk.PingreqEncode(&b)
	case packets.Auth:
		err = pk.AuthEncode(&b)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func (c *client) send(list ...packets.Packet) {
	c.t.Helper()
	var b []byte
	for _, pk := range list {
		if pk.ProtocolVersion == 0 {
			pk.ProtocolVersion = c.version
		}
		b = append(b, encode(c.t, pk)...)
	}
	c.raw(b)
}

func (c *client) raw(b []byte) {
	c.t.Helper()
	if _, err := c.nc.Write(b); err != nil {
		c.t.Fatal(err)
	}
}

// read reads a packet; io.EOF or another error once the server has closed.
func (c *client) read() (pk packets.Packet, err error) {
	_ = c.nc.SetReadDeadline(time.Now().Add(20 * time.Second))
	first, err := c.r.ReadByte()
	if err != nil {
		return pk, err
	}
	n, _, err := packets.DecodeLength(c.r)
	if err != nil {
		return pk, err
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(c.r, body); err != nil {
		return pk, err
	}
	if err := pk.FixedHeader.Decode(first); err != nil {
		return pk, err
	}
	pk.FixedHeader.Remaining, pk.ProtocolVersion = n, c.version
	switch pk.FixedHeader.Type {
	case packets.Connack:
		err = pk.ConnackDecode(body)
	case packets.Publish:
		err = pk.PublishDecode(body)
	case packets.Puback, packets.Pubrec, packets.Pubrel, packets.Pubcomp:
		err = pk.PubackDecode(body)
	case packets.Suback:
		err = pk.SubackDecode(body)
	case packets.Unsuback:
		err = pk.UnsubackDecode(body)
	case packets.Disconnect:
		err = pk.DisconnectDecode(body)
	}
	return pk, err
}

func (c *client) want(kind byte) packets.Packet {
	c.t.Helper()
	pk, err := c.read()
	if err != nil {
		c.t.Fatalf("want %s, got %v", packets.PacketNames[kind], err)
	}
	if pk.FixedHeader.Type != kind {
		c.t.Fatalf("want %s, got %s with 0x%02X %s", packets.PacketNames[kind], packets.PacketNames[pk.FixedHeader.Type], pk.ReasonCode, pk.Properties.ReasonString)
	}
	return pk
}

// wantEnd reads until the server closes; the last packet is DISCONNECT with the code, or, with code 0, there is none.
func (c *client) wantEnd(code byte) {
	c.t.Helper()
	var last packets.Packet
	for {
		pk, err := c.read()
		if err != nil {
			var slow net.Error
			if errors.As(err, &slow) && slow.Timeout() {
				c.t.Fatal("the server does not close")
			}
			break
		}
		last = pk
	}
	if got := last.FixedHeader.Type == packets.Disconnect; got != (code != 0) || got && last.ReasonCode != code {
		c.t.Fatalf("the last packet is of type %d with 0x%02X %q; want DISCONNECT 0x%02X (0: none)", last.FixedHeader.Type, last.ReasonCode, last.Properties.ReasonString, code)
	}
}

func message(qos byte, id uint16, name, data string) packets.Packet {
	return packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: qos}, PacketID: id, TopicName: name, Payload: []byte(data)}
}

func ack(kind byte, id uint16) packets.Packet {
	return packets.Packet{FixedHeader: packets.FixedHeader{Type: kind}, PacketID: id}
}

func bye(code byte) packets.Packet {
	return packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Disconnect}, ReasonCode: code}
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what + " did not come")
		}
	}
}
