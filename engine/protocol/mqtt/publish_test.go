package mqtt

import (
	"slices"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"
)

// What clients publish at every QoS, in both versions, is stored by the mapping of its name and acknowledged.
func TestPublish(t *testing.T) {
	for _, version := range []byte{4, 5} {
		f := newFakeRouter(t)
		r := newRig(t, f, nil, Options{})
		c, ok := r.connect(version, "dev", nil)
		if ok.ReasonCode != 0 || ok.SessionPresent {
			t.Fatalf("CONNACK %+v", ok)
		}
		c.send(message(0, 0, "plant/a/temp", "0"), message(1, 7, "plant/b/temp", "1"), message(2, 7, "log/x", "2"))
		if pk := c.want(packets.Puback); pk.PacketID != 7 || pk.ReasonCode != 0 {
			t.Fatalf("PUBACK %+v", pk)
		}
		if pk := c.want(packets.Pubrec); pk.PacketID != 7 || pk.ReasonCode != 0 {
			t.Fatalf("PUBREC %+v", pk)
		}
		c.send(ack(packets.Pubrel, 7))
		if pk := c.want(packets.Pubcomp); pk.PacketID != 7 || pk.ReasonCode != 0 {
			t.Fatalf("PUBCOMP %+v", pk)
		}
		if got := f.stored("temps"); !slices.Equal(got, []string{"0", "1"}) {
			t.Fatalf("temps has %q", got)
		}
		if got := f.stored("logs"); !slices.Equal(got, []string{"2"}) {
			t.Fatalf("logs has %q", got)
		}
		if ev := f.events["temps"][1]; ev.Subject != "b" || ev.Type != "temp" {
			t.Fatalf("the event is %+v", ev)
		}
		c.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}})
		c.want(packets.Pingresp)
		c.send(bye(0))
		c.wantEnd(0)
	}
}
