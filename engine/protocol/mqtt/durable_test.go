package mqtt

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/millrace/millrace/engine/event"
)

// gate has a router's commits wait, each until it is let go.
type gate struct {
	waiting atomic.Int32
	open    chan error
}

func (g *gate) publish([]event.Event) error {
	g.waiting.Add(1)
	return <-g.open
}

// nothingFor fails where the server sends something while it must not: what came next must be the answer to a ping.
func (c *client) wantSilence() {
	c.t.Helper()
	c.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}})
	c.want(packets.Pingresp)
}

// PUBACK and PUBREC come once the store has said that the events are durable, and not before. What comes meanwhile is stored
// with the next commit, all of it at once, and is acknowledged in its order.
func TestAcknowledgedOnceDurable(t *testing.T) {
	f := newFakeRouter(t)
	g := &gate{open: make(chan error)}
	f.hook(g.publish, nil)
	r := newRig(t, f, nil, Options{})
	c, _ := r.connect(5, "dev", nil)
	c.send(message(1, 1, "log/a", "1"), message(2, 2, "log/a", "2")) // two: one would be stored where the pings are read
	eventually(t, "the first commit", func() bool { return g.waiting.Load() == 1 })
	var more []packets.Packet
	for id := uint16(3); id <= 102; id++ {
		more = append(more, message(2-byte(id%2), id, "log/a", fmt.Sprint(id)))
	}
	c.send(more...)
	c.wantSilence()
	if n := len(f.stored("logs")); n != 0 {
		t.Fatalf("%d events are stored", n)
	}
	g.open <- nil
	for id := uint16(1); id <= 102; id++ {
		if id == 3 {
			g.open <- nil
		}
		kind := packets.Puback
		if id%2 == 0 {
			kind = packets.Pubrec
		}
		if pk := c.want(kind); pk.PacketID != id {
			t.Fatalf("acknowledged %d, want %d", pk.PacketID, id)
		}
	}
	if f.commits != 2 {
		t.Fatalf("%d commits of 102 messages; want 2", f.commits)
	}
	for i, data := range f.stored("logs") {
		if data != fmt.Sprint(i+1) {
			t.Fatalf("event %d has %q", i, data)
		}
	}
	close(g.open)
}

// A store that fails is never an acknowledgement: in 5.0 a reason code says so, in 3.1.1 the connection ends.
func TestFailedStore(t *testing.T) {
	for _, c := range []struct {
		err  error
		code byte
	}{
		{fmt.Errorf("the store is read-only: %w", event.ErrUnavailable), 0x83},
		{fmt.Errorf("the topic: %w", event.ErrFull), 0x97},
		{event.Bad(event.ErrSchema, "data", "is not what the topic's schema says"), 0x99},
		{event.Bad(event.ErrTooLarge, "data", "is large"), 0x97},
		{event.ErrDenied, 0x87},
		{event.ErrNotFound, 0x90},
		{errors.New("a secret of the disk's"), 0x83},
	} {
		for qos := byte(1); qos <= 2; qos++ {
			f := newFakeRouter(t)
			f.hook(func([]event.Event) error { return c.err }, nil)
			r := newRig(t, f, nil, Options{})
			five, _ := r.connect(5, "five", nil)
			five.send(message(qos, 9, "log/a", "x"))
			pk, err := five.read()
			if err != nil || pk.PacketID != 9 || pk.ReasonCode != c.code {
				t.Fatalf("%v: got %+v, %v; want 0x%02X", c.err, pk, err, c.code)
			}
			if pk.Properties.ReasonString == "" || pk.ReasonCode == 0x83 && !errors.Is(c.err, event.ErrUnavailable) && pk.Properties.ReasonString == c.err.Error() {
				t.Fatalf("%v: the reason is %q", c.err, pk.Properties.ReasonString)
			}
			five.send(message(qos, 9, "log/a", "x")) // the id is free
			if pk, err := five.read(); err != nil || pk.PacketID != 9 || pk.ReasonCode != c.code {
				t.Fatalf("%v: got %+v, %v; want 0x%02X", c.err, pk, err, c.code)
			}
			three, _ := r.connect(4, "three", nil)
			three.send(message(qos, 9, "log/a", "x"))
			three.wantEnd(0)
			if n := r.s.Stats().Ended[c.code]; n != 1 {
				t.Fatalf("%v: %d connections were ended for it; want 1", c.err, n)
			}
			r.stop()
		}
	}
}

// A message that is at fault does not take those beside it with it.
func TestFaultOfOne(t *testing.T) {
	f := newFakeRouter(t)
	g := &gate{open: make(chan error, 1)}
	bad := func(evs []event.Event) error {
		for i := range evs {
			if string(evs[i].Data) == "bad" {
				return event.At(fmt.Sprintf("events[%d]", i), event.Bad(event.ErrSchema, "data", "is bad"))
			}
		}
		return nil
	}
	f.hook(g.publish, nil)
	r := newRig(t, f, nil, Options{})
	c, _ := r.connect(5, "dev", nil)
	c.send(message(1, 1, "log/a", "0"), message(0, 0, "log/a", "0")) // two, as above
	eventually(t, "the first commit", func() bool { return g.waiting.Load() == 1 })
	var all []packets.Packet
	for id := uint16(2); id <= 40; id++ {
		data := fmt.Sprint(id)
		if id%13 == 0 {
			data = "bad"
		}
		all = append(all, message(1, id, "log/a", data))
	}
	c.send(all...)
	c.wantSilence()
	f.hook(bad, nil)
	g.open <- nil
	c.want(packets.Puback)
	for id := uint16(2); id <= 40; id++ {
		want := byte(0)
		if id%13 == 0 {
			want = packets.ErrPayloadFormatInvalid.Code
		}
		if pk := c.want(packets.Puback); pk.PacketID != id || pk.ReasonCode != want {
			t.Fatalf("PUBACK of %d with 0x%02X; want %d with 0x%02X", pk.PacketID, pk.ReasonCode, id, want)
		}
	}
	if n := len(f.stored("logs")); n != 38 {
		t.Fatalf("%d events are stored; want 38", n)
	}
}

// Messages of several topics are stored each in its topic's order, and acknowledged in the order in which they came.
func TestSeveralTopics(t *testing.T) {
	f := newFakeRouter(t)
	g := &gate{open: make(chan error)}
	f.hook(g.publish, nil)
	r := newRig(t, f, nil, Options{})
	c, _ := r.connect(5, "dev", nil)
	c.send(message(1, 1, "log/a", "first"), message(0, 0, "log/a", "second")) // two, as above
	eventually(t, "the first commit", func() bool { return g.waiting.Load() == 1 })
	var all []packets.Packet
	for id := uint16(2); id <= 31; id++ {
		all = append(all, message(1, id, [...]string{"log/a", "plant/x/temp", "secret/b", "unknown"}[id%4], fmt.Sprint(id)))
	}
	c.send(all...)
	c.wantSilence()
	f.hook(nil, nil)
	close(g.open)
	for id := uint16(1); id <= 31; id++ {
		want := byte(0)
		if id%4 == 3 {
			want = packets.ErrTopicNameInvalid.Code
		}
		if pk := c.want(packets.Puback); pk.PacketID != id || pk.ReasonCode != want {
			t.Fatalf("PUBACK of %d with 0x%02X; want %d with 0x%02X", pk.PacketID, pk.ReasonCode, id, want)
		}
	}
	if f.commits != 4 {
		t.Fatalf("%d commits; want 4", f.commits)
	}
	for topic, from := range map[string]int{"temps": 5, "secret": 2} {
		var want []string
		for id := from; id <= 31; id += 4 {
			want = append(want, fmt.Sprint(id))
		}
		if got := f.stored(topic); !slices.Equal(got, want) {
			t.Fatalf("%s has %q, want %q", topic, got, want)
		}
	}
}

// What a client has sent is stored and acknowledged also where it says DISCONNECT at once behind it, or the router stops.
func TestEndAwaitsStore(t *testing.T) {
	f := newFakeRouter(t)
	g := &gate{open: make(chan error)}
	f.hook(g.publish, nil)
	r := newRig(t, f, nil, Options{})
	c, _ := r.connect(5, "dev", nil)
	c.send(message(1, 1, "log/a", "1"), message(0, 0, "log/a", "2"), bye(0))
	stays, _ := r.connect(5, "other", nil)
	stays.send(message(1, 5, "log/a", "3"))
	eventually(t, "the commits", func() bool { return g.waiting.Load() == 2 })
	stopped := make(chan struct{})
	go func() { defer close(stopped); r.stop() }()
	eventually(t, "the end", func() bool { return r.s.draining.Load() })
	close(g.open)
	if pk := c.want(packets.Puback); pk.ReasonCode != 0 {
		t.Fatalf("PUBACK %+v", pk)
	}
	c.wantEnd(0)
	if pk := stays.want(packets.Puback); pk.ReasonCode != 0 {
		t.Fatalf("PUBACK %+v", pk)
	}
	stays.wantEnd(packets.ErrServerShuttingDown.Code)
	<-stopped
	if n := len(f.stored("logs")); n != 3 {
		t.Fatalf("%d events are stored; want 3", n)
	}
}

func persistent(pk *packets.Packet) {
	pk.Connect.Clean = false
	pk.Properties.SessionExpiryInterval, pk.Properties.SessionExpiryIntervalFlag = 3600, true
}

// A message of QoS 2 becomes one event, however often it is sent again: on the connection, on another one, after a restart
// that lost what was not durable, and after one that could not say what had become of it.
func TestExactlyOnce(t *testing.T) {
	f := newFakeRouter(t)
	r := newRig(t, f, nil, Options{})
	c, _ := r.connect(5, "dev", persistent)
	c.send(message(2, 1, "log/a", "one"))
	c.want(packets.Pubrec)
	again := message(2, 1, "log/a", "one")
	again.FixedHeader.Dup = true
	c.send(again)
	c.want(packets.Pubrec)
	c.nc.Close()
	eventually(t, "the end", func() bool { return r.s.Stats().Connections == 0 })
	c, ok := r.connect(5, "dev", persistent)
	if !ok.SessionPresent {
		t.Fatal("the session is gone")
	}
	c.send(again)
	c.want(packets.Pubrec)
	c.nc.Close()
	r.stop()

	// The next process knows the message by its row, and so does one whose row says less: there the router tells by the id.
	for _, stored := range []bool{true, false} {
		if !stored {
			for key, v := range f.rows {
				if len(key) > 1 && key[1] == inRows {
					v[0] = 0
				}
			}
		}
		r = newRig(t, f, nil, Options{})
		c, ok = r.connect(5, "dev", persistent)
		if !ok.SessionPresent {
			t.Fatal("the session is gone")
		}
		c.send(again)
		if pk := c.want(packets.Pubrec); pk.ReasonCode != 0 {
			t.Fatalf("PUBREC %+v", pk)
		}
		c.nc.Close()
		r.stop()
	}
	if got := f.stored("logs"); !slices.Equal(got, []string{"one"}) {
		t.Fatalf("logs has %q", got)
	}

	// Once it is released the id is free, for another message; and a session that ends takes its rows along.
	r = newRig(t, f, nil, Options{})
	c, _ = r.connect(5, "dev", persistent)
	c.send(ack(packets.Pubrel, 1))
	c.want(packets.Pubcomp)
	c.send(message(2, 1, "log/a", "two"))
	c.want(packets.Pubrec)
	c.nc.Close()
	eventually(t, "the end", func() bool { return r.s.Stats().Connections == 0 })
	c, ok = r.connect(5, "dev", nil)
	if ok.SessionPresent {
		t.Fatal("a clean start has a session")
	}
	c.send(message(2, 1, "log/a", "three"))
	c.want(packets.Pubrec)
	if got := f.stored("logs"); !slices.Equal(got, []string{"one", "two", "three"}) {
		t.Fatalf("logs has %q", got)
	}
	for key := range f.rows {
		if key[1] == inRows {
			t.Errorf("a row is left: %q", key)
		}
	}
}

// The row of a message of QoS 2 is durable before its event goes out, and gone before PUBCOMP: a process that dies in between
// is followed by one that knows.
func TestRowsFirst(t *testing.T) {
	f := newFakeRouter(t)
	var order []string
	f.hook(func(evs []event.Event) error { order = append(order, "event "+evs[0].ID); return nil },
		func(rows []event.ShelfRow) error {
			for _, row := range rows {
				if row.Shelf != event.ShelfPackets || row.Key[0] != inRows {
					continue
				}
				if row.Value == nil {
					order = append(order, "gone")
				} else {
					order = append(order, "row "+string(row.Value[1:]))
				}
			}
			return nil
		})
	r := newRig(t, f, nil, Options{})
	c, _ := r.connect(5, "dev", persistent)
	c.send(message(2, 1, "log/a", "one"))
	c.want(packets.Pubrec)
	if len(order) != 2 || order[0] != "row "+order[1][len("event "):] {
		t.Fatalf("in this order: %q", order)
	}
	order = nil
	c.send(ack(packets.Pubrel, 1))
	c.want(packets.Pubcomp)
	if len(order) == 0 || order[len(order)-1] != "gone" {
		t.Fatalf("in this order: %q", order)
	}
	// Where the row cannot go, the id is not said to be free.
	c.send(message(2, 2, "log/a", "two"))
	c.want(packets.Pubrec)
	f.hook(nil, func(rows []event.ShelfRow) error { return event.ErrUnavailable })
	c.send(ack(packets.Pubrel, 2))
	c.wantEnd(packets.ErrImplementationSpecificError.Code)
	// And without its row no message goes out.
	f.hook(nil, nil)
	c, _ = r.connect(5, "dev", persistent)
	f.hook(nil, func(rows []event.ShelfRow) error { return event.ErrUnavailable })
	c.send(message(2, 3, "log/a", "three"))
	if pk := c.want(packets.Pubrec); pk.ReasonCode != packets.ErrImplementationSpecificError.Code {
		t.Fatalf("PUBREC %+v", pk)
	}
	if got := f.stored("logs"); !slices.Equal(got, []string{"one", "two"}) {
		t.Fatalf("logs has %q", got)
	}
	f.hook(nil, nil)
}

// More messages under way than the receive maximum end the connection; those of QoS 2 count until PUBCOMP.
func TestReceiveMaximum(t *testing.T) {
	f := newFakeRouter(t)
	r := newRig(t, f, nil, Options{})
	c, ok := r.connect(5, "dev", nil)
	most := ok.Properties.ReceiveMaximum
	if most != receiveMax {
		t.Fatalf("the receive maximum is %d", most)
	}
	var all []packets.Packet
	for id := uint16(1); id <= most; id++ {
		all = append(all, message(2, id, "log/a", "x"))
	}
	c.send(all...)
	for range most {
		c.want(packets.Pubrec)
	}
	c.send(message(1, most+1, "log/a", "x"))
	c.wantEnd(packets.ErrReceiveMaximum.Code)
	r.stop()
}
