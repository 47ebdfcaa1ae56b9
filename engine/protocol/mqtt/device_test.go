package mqtt

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/millrace/millrace/engine/access"
)

// newOut is a server over a router, without connections.
func newOut(t testing.TB, r *logRouter, o Options) *Server {
	t.Helper()
	guard, err := access.New(access.Options{Off: true})
	if err != nil {
		t.Fatal(err)
	}
	o.Backend, o.Door = r, &fakeDoor{guard: guard}
	s, err := New(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func closeOut(t testing.TB, s *Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Error(err)
	}
}

// A handClock is a server's time that the test moves, while what it has begun may look at it.
type handClock struct{ at atomic.Pointer[time.Time] }

func newHandClock() *handClock {
	c, at := &handClock{}, time.Now()
	c.at.Store(&at)
	return c
}

func (c *handClock) now() time.Time { return *c.at.Load() }

func (c *handClock) forward(d time.Duration) {
	at := c.now().Add(d)
	c.at.Store(&at)
}

// A device is a client's side of a session: a packetWriter whose packets it keeps.
type device struct {
	t    testing.TB
	s    *Server
	sess *session

	mu     sync.Mutex
	got    []packets.Packet
	auto   bool // everything is acknowledged at once
	hold   chan struct{}
	closed bool
	most   int // messages that were under way at once
	flies  map[uint16]bool
}

// The caller of devices; nil in tests of access alone.
func anybody(t testing.TB) Caller {
	t.Helper()
	guard, err := access.New(access.Options{Off: true})
	if err != nil {
		t.Fatal(err)
	}
	c, err := (&fakeDoor{guard: guard}).Open(context.Background(), access.Credentials{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

type deviceOptions struct {
	id      string
	clean   bool
	expiry  time.Duration
	window  uint16
	version byte
	caller  Caller
	auto    bool
	hold    chan struct{}
}

// join connects a device, and tells whether its session was there.
func join(t testing.TB, s *Server, o deviceOptions) (*device, bool) {
	t.Helper()
	if o.caller == nil {
		o.caller = anybody(t)
	}
	if o.version == 0 {
		o.version = 5
	}
	if o.window == 0 {
		o.window = 65535
	}
	d := &device{t: t, s: s, auto: o.auto, hold: o.hold, flies: map[uint16]bool{}}
	sess, present, err := s.sessions.take(context.Background(), o.caller, o.id, o.clean, o.expiry)
	if err != nil {
		t.Fatal(err)
	}
	d.sess = sess
	if err := sess.out.attach(d, connectParams{version: o.version, receiveMaximum: o.window, caller: o.caller, present: present}); err != nil {
		t.Fatal(err)
	}
	return d, present
}

// part ends the connection.
func (d *device) part() {
	d.mu.Lock()
	d.closed = true
	if d.hold != nil {
		close(d.hold)
		d.hold = nil
	}
	d.mu.Unlock()
	d.sess.out.detach()
	d.s.sessions.leave(d.sess)
}

func (d *device) write(pk *packets.Packet) (bool, error) {
	d.mu.Lock()
	hold, closed := d.hold, d.closed
	d.mu.Unlock()
	if hold != nil {
		<-hold
	}
	if closed {
		return false, errors.New("closed")
	}
	var b bytes.Buffer
	var err error
	switch pk.FixedHeader.Type { // what cannot be encoded must not be sent
	case packets.Publish:
		err = pk.PublishEncode(&b)
	case packets.Pubrel:
		err = pk.PubrelEncode(&b)
	}
	if err != nil {
		d.t.Errorf("encode: %v", err)
	}
	d.mu.Lock()
	d.got = append(d.got, *pk)
	if pk.FixedHeader.Type == packets.Publish && pk.FixedHeader.Qos > 0 {
		d.flies[pk.PacketID] = true
		d.most = max(d.most, len(d.flies))
	}
	auto := d.auto
	d.mu.Unlock()
	if auto {
		d.answer(pk)
	}
	return true, nil
}

func (d *device) flush() error { return nil }

// answer acknowledges a packet.
func (d *device) answer(pk *packets.Packet) {
	switch {
	case pk.FixedHeader.Type == packets.Pubrel:
		d.landed(pk.PacketID)
		d.sess.out.acked(packets.Pubcomp, pk.PacketID, 0)
	case pk.FixedHeader.Qos == 1:
		d.landed(pk.PacketID)
		d.sess.out.acked(packets.Puback, pk.PacketID, 0)
	case pk.FixedHeader.Qos == 2:
		d.sess.out.acked(packets.Pubrec, pk.PacketID, 0)
	}
}

func (d *device) landed(id uint16) {
	d.mu.Lock()
	delete(d.flies, id)
	d.mu.Unlock()
}

func (d *device) sub(filter string, qos byte, with ...func(*packets.Subscription)) byte {
	d.t.Helper()
	code, _ := d.subReason(filter, qos, with...)
	return code
}

func (d *device) subReason(filter string, qos byte, with ...func(*packets.Subscription)) (byte, string) {
	s := packets.Subscription{Filter: filter, Qos: qos}
	for _, f := range with {
		f(&s)
	}
	codes, reason := d.sess.out.subscribe([]packets.Subscription{s})
	d.sess.out.subscribed([]packets.Subscription{s})
	return codes[0], reason
}

// published are the PUBLISHes that came, and payloads what they carried.
func (d *device) published() (all []packets.Packet) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, pk := range d.got {
		if pk.FixedHeader.Type == packets.Publish {
			all = append(all, pk)
		}
	}
	return all
}

func (d *device) payloads() (all []string) {
	for _, pk := range d.published() {
		all = append(all, string(pk.Payload))
	}
	return all
}

// gets waits until payloads are exactly want.
func (d *device) gets(want ...string) {
	d.t.Helper()
	for end := time.Now().Add(20 * time.Second); !slices.Equal(d.payloads(), want); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			d.t.Fatalf("got %q, want %q", d.payloads(), want)
		}
	}
}

// idle waits until nothing is left to be sent to a session, and it is live.
func (d *device) idle() {
	d.t.Helper()
	o := d.sess.out
	eventually(d.t, "the session is idle", func() bool {
		o.mu.Lock()
		defer o.mu.Unlock()
		for _, f := range o.feeds {
			if !f.live {
				return false
			}
		}
		return !o.pumping && o.queue.len() == 0
	})
}
