package mqtt

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/millrace/millrace/engine/event"
)

// All wills together have so much room, whether their clients are there or not, and after a restart too. Who brings one too
// many is not let in, and changes nothing; what is replaced, taken back or published makes room.
func TestWillBytes(t *testing.T) {
	f := newFakeRouter(t)
	o := Options{WillGrace: time.Hour, WillBytes: 2*8<<10 + 4*messageCost}
	r := newRig(t, f, nil, o)
	large := strings.Repeat("x", 8<<10)
	none := func() { // is left, whatever was done
		t.Helper()
		eventually(t, "the end of the wills", func() bool { s := r.s.Stats(); return s.Wills == 0 && s.WillBytes == 0 })
		if n := willsOnDisk(t, f); n > 0 {
			t.Errorf("%d wills have a row still", n)
		}
	}
	refused := func() {
		t.Helper()
		before := r.s.Stats()
		_, ok := r.connect(5, "c", withWill(large, 0))
		if ok.ReasonCode != packets.ErrQuotaExceeded.Code || !strings.Contains(ok.Properties.ReasonString, "wills") {
			t.Errorf("CONNACK 0x%02X %q", ok.ReasonCode, ok.Properties.ReasonString)
		}
		eventually(t, "the count", func() bool {
			return r.s.Stats().Ended[packets.ErrQuotaExceeded.Code] > before.Ended[packets.ErrQuotaExceeded.Code]
		})
		if s := r.s.Stats(); s.Wills != 2 || s.WillBytes != before.WillBytes || s.Sessions != before.Sessions {
			t.Errorf("after a refusal there are %d wills of %d bytes and %d sessions; before it %d bytes, %d sessions", s.Wills, s.WillBytes, s.Sessions, before.WillBytes, before.Sessions)
		}
	}
	a, _ := r.connect(5, "a", withWill(large, 3600))
	r.connect(5, "b", withWill(large, 3600))
	refused()
	if _, ok := r.connect(4, "c", withWill(large, 0)); ok.ReasonCode != 3 {
		t.Errorf("3.1.1: CONNACK 0x%02X", ok.ReasonCode)
	}
	a.nc.Close()
	refused()
	if _, ok := r.connect(5, "a", withWill(large, 3600)); ok.ReasonCode != 0 || r.s.Stats().Wills != 2 { // in the place of its own
		t.Fatalf("CONNACK %+v", ok)
	}
	r.stop()
	r = newRig(t, f, nil, o)
	refused()
	a, _ = r.connect(5, "a", withWill("", 0))
	c, ok := r.connect(5, "c", withWill(large, 0))
	if ok.ReasonCode != 0 {
		t.Fatalf("CONNACK %+v", ok)
	}
	a.send(bye(0))
	c.nc.Close()
	eventually(t, "the will", func() bool { return slices.Equal(f.stored("logs"), []string{large}) })
	b, _ := r.connect(5, "b", func(pk *packets.Packet) { pk.Connect.Clean = true }) // its session ends, and its will is due
	eventually(t, "the other will", func() bool { return len(f.stored("logs")) == 2 })
	b.send(bye(0))
	none()

	// Nor does a CONNECT keep room that could not be stored; and what its session left is as it was.
	d, _ := r.connect(5, "d", withWill("left", 1))
	d.nc.Close()
	eventually(t, "the end", func() bool { return r.s.Stats().Connections == 0 })
	f.hook(nil, func(rows []event.ShelfRow) error {
		if rows[0].Key[0] == willRows && rows[0].Value != nil {
			return event.ErrUnavailable
		}
		return nil
	})
	for _, id := range []string{"d", "e"} {
		if _, ok := r.connect(5, id, withWill("never there", 0)); ok.ReasonCode < 0x80 {
			t.Errorf("%s: CONNACK %+v", id, ok)
		}
	}
	f.hook(nil, nil)
	eventually(t, "the will that was left", func() bool { return slices.Contains(f.stored("logs"), "left") })
	none()
	if slices.Contains(f.stored("logs"), "never there") {
		t.Error("a will was published of a connection that there was not")
	}
}

// A client that comes back while its will is being forgotten, as it was published, keeps the next one over a crash.
func TestWillWhileTheLastIsForgotten(t *testing.T) {
	f := newFakeRouter(t)
	r := newRig(t, f, nil, Options{})
	forgets, on := make(chan struct{}), make(chan struct{})
	c, _ := r.connect(5, "dev", withWill("one", 0))
	f.hook(nil, func(rows []event.ShelfRow) error {
		if rows[0].Key[0] == willRows && rows[0].Value == nil {
			f.hook(nil, nil)
			close(forgets)
			<-on
		}
		return nil
	})
	c.nc.Close()
	<-forgets
	c = r.dial()
	c.send(connectPacket(5, "dev", withWill("two", 0)))
	here := make(chan packets.Packet, 1)
	go func() {
		pk, _ := c.read()
		here <- pk
	}()
	select { // what is wrong would be done by now
	case pk := <-here:
		here <- pk
	case <-time.After(50 * time.Millisecond):
	}
	close(on)
	if pk := <-here; pk.FixedHeader.Type != packets.Connack || pk.ReasonCode != 0 {
		t.Fatalf("got %+v", pk)
	}
	r.stop()
	if n := willsOnDisk(t, f); n != 1 {
		t.Errorf("%d wills have a row; want that of who is there", n)
	}
}

func willsOnDisk(t *testing.T, f *fakeRouter) (n int) {
	_ = f.Scan(t.Context(), event.ShelfPackets, string(rune(willRows)), func(string, []byte) error { n++; return nil })
	return n
}
