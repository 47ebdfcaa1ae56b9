package mqtt

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/millrace/millrace/engine/event"
)

// only is the one connection that a server has.
func (r *rig) only() (c *conn) {
	r.t.Helper()
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	for c = range r.s.conns {
	}
	if len(r.s.conns) != 1 {
		r.t.Errorf("%d connections; want 1", len(r.s.conns))
	}
	return c
}

// handed reports whether store runs.
func (c *conn) handed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.hand
}

// A client that sends a message once the last one is acknowledged has its messages stored by the goroutine that reads them.
// One that sends several at once has another, which ends once the client waits for each again, or is silent.
func TestWhoStores(t *testing.T) {
	f := newFakeRouter(t)
	r := newRig(t, f, nil, Options{})
	c, _ := r.connect(5, "dev", nil)
	of := r.only()
	var handed []bool // of each commit, while it is made
	f.hook(func([]event.Event) error {
		of.mu.Lock()
		defer of.mu.Unlock()
		handed = append(handed, of.storing) // store's word
		return nil
	}, nil)
	var want []bool
	var stored []string
	id := uint16(0)
	send := func(n int, by bool) {
		t.Helper()
		var list []packets.Packet
		for range n {
			id++
			stored = append(stored, fmt.Sprint(id))
			list = append(list, message(1+byte(id%2), id, "log/a", fmt.Sprint(id)))
		}
		c.send(list...)
		for _, m := range list {
			pk, err := c.read()
			if err != nil || pk.PacketID != m.PacketID || pk.ReasonCode != 0 {
				t.Fatalf("got %+v, %v; want %d acknowledged", pk, err, m.PacketID)
			}
		}
		want = append(want, by)
	}
	for range 3 {
		send(1, false)
	}
	send(3, true)
	for range singleMost {
		send(1, true)
	}
	eventually(t, "the end of what stores, before a lull", func() bool {
		of.mu.Lock()
		defer of.mu.Unlock()
		return !of.hand && !of.resting
	})
	send(1, false)
	send(2, true)
	eventually(t, "its end for silence", func() bool { return !of.handed() })
	send(1, false)
	if !slices.Equal(handed, want) {
		t.Errorf("stored by the other goroutine: %v; want %v", handed, want)
	}
	if got := f.stored("logs"); !slices.Equal(got, stored) {
		t.Errorf("logs has %q", got)
	}
}

// While the reading goroutine stores, its client cannot be heard: that is neither the client's silence nor a lull.
func TestStoringIsNoSilence(t *testing.T) {
	f := newFakeRouter(t)
	r := newRig(t, f, nil, Options{})
	c, _ := r.connect(5, "dev", nil)
	of := r.only()
	c.send(message(1, 1, "log/a", strings.Repeat("more than a silent client's bytes come into, ", 2))) // from here on there are lulls
	c.want(packets.Puback)
	const alive = lull + 100*time.Millisecond
	g := &gate{open: make(chan error)}
	f.hook(func(evs []event.Event) error {
		of.alive = alive // the goroutine is the one that reads: see TestWhoStores
		return g.publish(evs)
	}, nil)
	c.send(message(1, 2, "log/a", "stalls"))
	eventually(t, "the commit", func() bool { return g.waiting.Load() == 1 })
	f.hook(func([]event.Event) error { of.alive = 0; return nil }, nil)
	c.send(message(1, 3, "log/a", "is not read"), packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}})
	<-time.After(alive + 50*time.Millisecond)
	g.open <- nil
	for id := uint16(2); id <= 3; id++ {
		if id == 3 {
			c.want(packets.Pingresp) // what is answered at once
		}
		if pk := c.want(packets.Puback); pk.PacketID != id || pk.ReasonCode != 0 {
			t.Fatalf("PUBACK %+v; want %d", pk, id)
		}
	}
}

// A connection whose session is taken over stores and acknowledges what has come before it lets go, also where the goroutine
// that reads it is the one that stores; and its failure is the connection's end in 3.1.1.
func TestTakenOverWhileStoring(t *testing.T) {
	for _, fails := range []bool{false, true} {
		f := newFakeRouter(t)
		g := &gate{open: make(chan error)}
		f.hook(g.publish, nil)
		r := newRig(t, f, nil, Options{})
		version := byte(5)
		if fails {
			version = 4
		}
		c, _ := r.connect(version, "dev", nil)
		of := r.only()
		c.send(message(1, 1, "log/a", "1"))
		eventually(t, "the commit", func() bool { return g.waiting.Load() == 1 })
		next := r.dial()
		next.send(connectPacket(5, "dev", nil))
		eventually(t, "the other's coming", func() bool { return of.over() != nil })
		select {
		case <-of.ended:
			t.Error("the session is let go while a message is being stored")
		default:
		}
		c.send(message(1, 2, "log/a", "2")) // is not read any more
		if fails {
			g.open <- errors.New("the disk's")
			c.wantEnd(0)
		} else {
			g.open <- nil
			if pk := c.want(packets.Puback); pk.PacketID != 1 {
				t.Fatalf("PUBACK of %d", pk.PacketID)
			}
			c.wantEnd(packets.ErrSessionTakenOver.Code)
		}
		if pk := next.want(packets.Connack); pk.ReasonCode != 0 {
			t.Fatalf("CONNACK %+v", pk)
		}
		want := 1
		if fails {
			want = 0
		}
		if n := len(f.stored("logs")); n != want {
			t.Errorf("%d events are stored; want %d", n, want)
		}
		close(g.open)
		r.stop()
	}
}
