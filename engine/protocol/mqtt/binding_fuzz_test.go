package mqtt

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/millrace/millrace/engine/event"
	"github.com/mochi-mqtt/server/v2/packets"
)

// Any bytes of a PUBLISH: nothing panics, and what is taken keeps its payload and its attributes on the way out and in
// again.
func FuzzPublish(f *testing.F) {
	for _, c := range bindingTable {
		var b bytes.Buffer
		pk := c.in
		if err := pk.PublishEncode(&b); err != nil {
			f.Fatal(err)
		}
		_, n, err := packets.DecodeLength(bytes.NewReader(b.Bytes()[1:]))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes()[1+n:], pk.ProtocolVersion == 5)
	}
	for _, c := range packets.TPacketData[packets.Publish] {
		if len(c.RawBytes) > 2 {
			f.Add(c.RawBytes[2:], c.Packet != nil && c.Packet.ProtocolVersion == 5)
		}
	}
	names := namesOf(f, append([]event.MQTTMapping{{Filter: "#", Topic: "inbox"}}, bindingNames...))
	f.Fuzz(func(t *testing.T, b []byte, v5 bool) {
		first, ok := decodePublish(b, v5)
		if !ok {
			return
		}
		var in intake
		var ev event.Event
		if _, err := in.take(&ev, &first, names, event.Limits{}, testTime); err != nil {
			return
		}
		if err := ev.CheckRecord(); err != nil {
			t.Fatalf("%+v is valid and no record: %v", ev, err)
		}
		out := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Publish}, ProtocolVersion: 5}
		if !give(&out, record(ev), first.TopicName, false, testTime) {
			t.Fatal("has ended as it came")
		}
		var wire bytes.Buffer
		if err := out.PublishEncode(&wire); err != nil {
			t.Fatalf("%+v: %v", out, err)
		}
		_, n, err := packets.DecodeLength(bytes.NewReader(wire.Bytes()[1:]))
		if err != nil {
			t.Fatal(err)
		}
		second, ok := decodePublish(wire.Bytes()[1+n:], true)
		if !ok {
			t.Fatalf("%+v cannot be read back", out)
		}
		var in2 intake
		var again event.Event
		if _, err := in2.take(&again, &second, names, event.Limits{}, testTime); err != nil {
			// A CloudEvent's JSON data is what it says; without a content type, a JSON payload and no datacontenttype it
			// may be another's under a mapping of CloudEvents.
			m, _, _ := names.Route(first.TopicName, nil)
			if m.CloudEvents && out.Properties.ContentType == "" {
				return
			}
			t.Fatalf("%+v\ngoes out as %+v\nand is refused: %v", ev, out.Properties, err)
		}
		if again.ID != ev.ID || again.Source != ev.Source || again.Type != ev.Type || again.Subject != ev.Subject || again.PartitionKey != ev.PartitionKey ||
			again.Time != ev.Time || again.DataSchema != ev.DataSchema || again.TraceParent != ev.TraceParent || !bytes.Equal(again.Data, ev.Data) {
			t.Fatalf("%+v\ncomes back as\n%+v", ev, again)
		}
		for _, a := range ev.Extensions {
			b, ok := record(again).Extension(a.Name)
			if !ok || b.Value != a.Value {
				t.Fatalf("extension %s %q comes back as %q", a.Name, a.Value, b.Value)
			}
		}
		old := packets.Packet{ProtocolVersion: 4}
		if give(&old, record(ev), first.TopicName, true, testTime); !json.Valid(old.Payload) {
			t.Fatalf("to 3.1.1 goes %q", old.Payload)
		}
	})
}

func decodePublish(b []byte, v5 bool) (pk packets.Packet, ok bool) {
	pk = packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Publish}, ProtocolVersion: 4}
	if v5 {
		pk.ProtocolVersion = 5
	}
	return pk, pk.PublishDecode(b) == nil
}
